//! The ledger's invariants, looked at from outside while things happen.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::OPENING_BALANCE;
use crate::postgres;

/// The shortest pause between two looks.
const POLL: Duration = Duration::from_millis(10);

/// Looking takes at most this part of the time (one in so many), as it reads
/// every row and the machine has other work.
const SHARE: u32 = 4;

/// Descriptions kept; beyond it they are only counted.
const DESCRIBED: usize = 10;

/// One statement, hence one snapshot. The version total and the counter
/// only ever rise.
const LOOK: &str = "select \
     (select count(*) from ledger_account), \
     (select coalesce(sum(balance), 0)::int8 from ledger_account), \
     (select coalesce(sum(version), 0)::int8 from ledger_account), \
     (select count(*) from ledger_entry), \
     (select coalesce(sum(n) filter (where id >= 0), 0)::int8 from ledger_counter), \
     (select coalesce(sum(n) filter (where id < 0), 0)::int8 from ledger_counter)";

/// What was seen in all snapshots.
#[derive(Clone, Debug, Default)]
pub struct WatchReport {
    /// Snapshots taken.
    pub snapshots: u64,
    /// Of those, how many showed something that was not in the one before.
    pub moves: u64,
    /// Snapshots in which an invariant did not hold.
    pub torn: u64,
    /// The first of those, described.
    pub examples: Vec<String>,
}

impl fmt::Display for WatchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "snapshots={} moves={} torn={}", self.snapshots, self.moves, self.torn)?;
        for example in &self.examples {
            write!(f, "\n  {example}")?;
        }
        Ok(())
    }
}

/// A task that looks until it is stopped.
#[derive(Debug)]
pub struct Watch {
    task: JoinHandle<()>,
    report: Arc<Mutex<WatchReport>>,
}

impl Watch {
    /// What was seen so far.
    pub fn report(&self) -> WatchReport {
        self.report.lock().unwrap_or_else(|poison| poison.into_inner()).clone()
    }

    /// Ends the task, and says what it saw.
    pub fn stop(self) -> WatchReport {
        self.task.abort();
        self.report()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Looks at a database again and again, each time in one snapshot: whether the
/// total is that of the accounts opened, the entries are those counted, and
/// nothing that only rises has fallen. A database that is away for a while is
/// looked at again when it is back.
pub fn watch_totals(url: &str) -> Watch {
    let report = Arc::new(Mutex::new(WatchReport::default()));
    let task = tokio::spawn(look_on(url.to_owned(), report.clone()));
    Watch { task, report }
}

async fn look_on(url: String, report: Arc<Mutex<WatchReport>>) {
    let mut session: Option<Client> = None;
    let mut before: Option<Totals> = None;
    loop {
        let started = Instant::now();
        let look = async {
            let client = match session.take() {
                Some(client) => client,
                None => postgres::connect(&url).await?,
            };
            let row = client.query_one(LOOK, &[]).await.context("look")?;
            session = Some(client);
            anyhow::Ok(Totals {
                accounts: row.get(0),
                balance: row.get(1),
                version: row.get(2),
                entries: row.get(3),
                counted: row.get(4),
                deleted: row.get(5),
            })
        };
        if let Ok(now) = look.await {
            let mut report = report.lock().unwrap_or_else(|poison| poison.into_inner());
            report.snapshots += 1;
            report.moves += u64::from(before.as_ref().is_some_and(|before| *before != now));
            if let Err(error) = now.check(before.as_ref()) {
                report.torn += 1;
                if report.examples.len() < DESCRIBED {
                    report.examples.push(format!("{error}: {now:?}"));
                }
            }
            before = Some(now);
        }
        tokio::time::sleep(POLL.max(started.elapsed() * (SHARE - 1))).await;
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Totals {
    accounts: i64,
    balance: i64,
    version: i64,
    entries: i64,
    counted: i64,
    deleted: i64,
}

impl Totals {
    fn check(&self, before: Option<&Totals>) -> Result<()> {
        anyhow::ensure!(self.balance == self.accounts * OPENING_BALANCE, "money came or went");
        anyhow::ensure!(self.entries == self.counted - self.deleted, "entries are not those counted");
        if let Some(before) = before {
            anyhow::ensure!(self.version >= before.version, "versions fell");
            anyhow::ensure!(self.counted >= before.counted, "counters fell");
            anyhow::ensure!(self.deleted >= before.deleted, "deletions fell");
        }
        Ok(())
    }
}
