//! The ledger: an independent witness of what was committed.
//!
//! ```text
//!            acknowledged? ── yes: acked · lost answer: unknown ──▶ Record
//!                 ▲                                                   │
//!  writers ──▶ source ──▶ (whatever carries changes) ──▶ target      ▼
//!                 └──────────────── Record::compare ◀────┴──▶ Report
//! ```
//!
//! Writers transfer money between accounts, and every transaction leaves marks
//! of different kinds, so that whatever goes wrong shows in at least one:
//!
//! | Mark | What it shows |
//! |---|---|
//! | `ledger_entry`: a new row for every transfer | a lost transaction |
//! | `ledger_counter`: `n = n + 1` | one applied twice, as it does not forgive it |
//! | `ledger_account.version`: raised by every update | one applied twice, or out of order |
//! | `ledger_account.balance`: its total never changes | half a transaction |
//! | deleted entries, counted in the counters below 0 | one that rose from the dead |
//!
//! In every snapshot of either database the total of the balances is the same,
//! and the entries that exist are those counted minus those counted as
//! deleted: [`watch_totals`] looks for a snapshot where it is not so.
//!
//! It knows nothing of Landfall, and keeps what it knows in memory: about ten
//! bytes for each transaction.

mod compare;
mod watch;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::postgres;

pub use compare::Report;
pub use watch::{Watch, WatchReport, watch_totals};

/// What every account holds at first.
const OPENING_BALANCE: i64 = 1000;

/// A commit that takes longer counts as unknown: its session is given up.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);

/// While the source is away, it is asked again this often.
const RECONNECT: Duration = Duration::from_millis(50);

/// An entry's id is its writer's number above this many bits of sequence.
const SEQUENCE_BITS: u32 = 40;

/// What the writers do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Writers at work at the same time, one session each.
    pub writers: u32,
    /// Accounts they share, at least two.
    pub accounts: u32,
    /// Transactions per second, all writers together; None for as many as the
    /// source takes.
    pub rate: Option<f64>,
    /// Decides who pays whom; printed by the caller, it repeats the choices
    /// (though not the timing).
    pub seed: u64,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan { writers: 4, accounts: 100, rate: None, seed: rand::random() }
    }
}

/// Makes the ledger's tables; needed on both sides, before anything else.
pub async fn create_tables(client: &Client) -> Result<()> {
    client
        .batch_execute(
            "create table ledger_account(
                 id int8 primary key, balance int8 not null, version int8 not null);
             create table ledger_entry(
                 id int8 primary key, writer int4 not null, seq int8 not null,
                 amount int8 not null, note text);
             create table ledger_counter(id int4 primary key, n int8 not null);",
        )
        .await
        .context("make the ledger's tables")
}

/// Opens the accounts, in one transaction; needed on the source only, once
/// what carries the changes is there to see it (or on both, before).
pub async fn open_accounts(source: &Client, plan: &Plan) -> Result<()> {
    ensure!(plan.accounts >= 2, "a transfer needs two accounts");
    source
        .batch_execute(&format!(
            "begin;
             insert into ledger_account
                 select id, {OPENING_BALANCE}, 0 from generate_series(1, {}) id;
             insert into ledger_counter
                 select id, 0 from generate_series(-{writers}, {writers} - 1) id;
             commit;",
            plan.accounts,
            writers = plan.writers
        ))
        .await
        .context("open the accounts")
}

/// Writers at work. Dropped without [`Ledger::stop`], they end at once.
#[derive(Debug)]
pub struct Ledger {
    writers: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    pause: AtomicBool,
    acked: AtomicU64,
    unknown: AtomicU64,
    refused: AtomicU64,
    record: Mutex<Record>,
}

/// Every transaction whose fate the ledger knows or must leave open.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Transactions that were acknowledged.
    pub acked: u64,
    /// Transactions whose answer was lost.
    pub unknown: u64,
    /// Transactions that the source refused or that were rolled back.
    pub refused: u64,
    /// The entries of acknowledged transactions: first id, and how many.
    entries: Vec<(i64, u8)>,
    /// The entries of transactions whose answer was lost.
    unknown_entries: Vec<(i64, u8)>,
    /// Entries deleted by acknowledged transactions.
    deleted: HashSet<i64>,
    /// Entries deleted by transactions whose answer was lost.
    maybe_deleted: HashSet<i64>,
}

impl Ledger {
    /// Sets the writers to work on the source.
    pub fn start(source_url: &str, plan: &Plan) -> Ledger {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            pause: AtomicBool::new(false),
            acked: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            record: Mutex::new(Record::default()),
        });
        let writers = (0..plan.writers)
            .map(|number| {
                let writer = Writer {
                    number,
                    url: source_url.to_owned(),
                    plan: plan.clone(),
                    shared: shared.clone(),
                    random: StdRng::seed_from_u64(plan.seed.wrapping_add(u64::from(number))),
                    next: 0,
                    mine: Record::default(),
                    alive: Vec::new(),
                };
                tokio::spawn(writer.run())
            })
            .collect();
        Ledger { writers, shared }
    }

    /// Transactions acknowledged so far.
    pub fn acked(&self) -> u64 {
        self.shared.acked.load(Ordering::Relaxed)
    }

    /// Transactions whose answer was lost so far.
    pub fn unknown(&self) -> u64 {
        self.shared.unknown.load(Ordering::Relaxed)
    }

    /// Lets the writers rest; what they have begun they finish.
    pub fn pause(&self) {
        self.shared.pause.store(true, Ordering::Relaxed);
    }

    /// Ends a pause.
    pub fn resume(&self) {
        self.shared.pause.store(false, Ordering::Relaxed);
    }

    /// Lets every writer finish its transaction, and returns the record.
    pub async fn stop(mut self) -> Result<Record> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for writer in std::mem::take(&mut self.writers) {
            writer.await.context("end a writer of the ledger")?;
        }
        let mut record = self.shared.record.lock().unwrap_or_else(|poison| poison.into_inner());
        Ok(std::mem::take(&mut *record))
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        for writer in &self.writers {
            writer.abort();
        }
    }
}

/// How a transaction ended, as far as its writer knows.
enum Fate {
    Acked,
    Refused,
    Unknown,
}

/// One transaction, before it is sent.
struct Transfer {
    sql: String,
    first: i64,
    entries: u8,
    deletes: Option<i64>,
    rolls_back: bool,
}

struct Writer {
    number: u32,
    url: String,
    plan: Plan,
    shared: Arc<Shared>,
    random: StdRng,
    /// The sequence number of the next entry.
    next: i64,
    mine: Record,
    /// Entries of its own that are known to exist, to choose a victim from.
    alive: Vec<i64>,
}

impl Writer {
    async fn run(mut self) {
        let mut pace = self.plan.rate.map(|rate| {
            let each = f64::from(self.plan.writers) / rate.max(0.001);
            let mut pace = tokio::time::interval(Duration::from_secs_f64(each));
            // After an outage the rate goes on as before, without a burst.
            pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            pace
        });
        let mut session: Option<Client> = None;
        while !self.shared.stop.load(Ordering::Relaxed) {
            if self.shared.pause.load(Ordering::Relaxed) {
                tokio::time::sleep(RECONNECT).await;
                continue;
            }
            if let Some(pace) = &mut pace {
                pace.tick().await;
            }
            let client = match session.take() {
                Some(client) => client,
                None => match self.connect().await {
                    Ok(client) => client,
                    Err(_) => {
                        tokio::time::sleep(RECONNECT).await;
                        continue;
                    }
                },
            };
            let transfer = self.draw();
            let fate = commit(&client, &transfer.sql).await;
            let keep = match fate {
                Fate::Acked => true,
                // The session still stands inside the failed transaction.
                Fate::Refused => client.batch_execute("rollback").await.is_ok(),
                Fate::Unknown => false,
            };
            self.note(&transfer, fate);
            if keep {
                session = Some(client);
            }
        }
        let mut record = self.shared.record.lock().unwrap_or_else(|poison| poison.into_inner());
        record.acked += self.mine.acked;
        record.unknown += self.mine.unknown;
        record.refused += self.mine.refused;
        record.entries.append(&mut self.mine.entries);
        record.unknown_entries.append(&mut self.mine.unknown_entries);
        record.deleted.extend(self.mine.deleted.drain());
        record.maybe_deleted.extend(self.mine.maybe_deleted.drain());
    }

    async fn connect(&mut self) -> Result<Client> {
        let attempt = async {
            let client = postgres::connect(&self.url).await?;
            if self.next == 0 {
                // A ledger that ran before on this database has used ids.
                let row = client
                    .query_one(
                        "select coalesce(max(seq), 0) from ledger_entry where writer = $1",
                        &[&(self.number as i32)],
                    )
                    .await?;
                self.next = row.get::<_, i64>(0) + 1000;
            }
            Ok(client)
        };
        tokio::time::timeout(ANSWER_PATIENCE, attempt).await.context("connect in time")?
    }

    /// Thinks up the next transaction: one to four transfers, each with its
    /// entry; now and then an old entry is deleted, a note is long enough to
    /// be stored out of line, or all of it is rolled back.
    fn draw(&mut self) -> Transfer {
        let transfers: u8 = if self.random.random_ratio(1, 8) { self.random.random_range(2..=4) } else { 1 };
        let writer = i64::from(self.number);
        let first = (writer << SEQUENCE_BITS) | self.next;
        let accounts = i64::from(self.plan.accounts);

        // Accounts are locked in the order of their ids, in every writer, so
        // that no two wait for each other.
        let mut moves: Vec<(i64, i64)> = Vec::new();
        let mut inserts = String::new();
        for place in 0..i64::from(transfers) {
            let payer = self.random.random_range(1..=accounts);
            let payee = 1 + (payer - 1 + self.random.random_range(1..accounts)) % accounts;
            let amount = self.random.random_range(1..=50i64);
            moves.push((payer, -amount));
            moves.push((payee, amount));
            let note = self.note_text();
            let seq = self.next + place;
            let id = first + place;
            inserts.push_str(&format!(
                "insert into ledger_entry values ({id}, {writer}, {seq}, {amount}, {note});"
            ));
        }
        moves.sort_unstable();

        let mut sql = String::from("begin;");
        for (account, amount) in moves {
            sql.push_str(&format!(
                "update ledger_account set balance = balance + {amount}, version = version + 1 \
                 where id = {account};"
            ));
        }
        sql.push_str(&inserts);
        sql.push_str(&format!("update ledger_counter set n = n + {transfers} where id = {writer};"));
        let deletes = (self.alive.len() > 10 && self.random.random_ratio(1, 10)).then(|| {
            let victim = self.random.random_range(0..self.alive.len());
            self.alive.swap_remove(victim)
        });
        if let Some(id) = deletes {
            sql.push_str(&format!(
                "delete from ledger_entry where id = {id}; \
                 update ledger_counter set n = n + 1 where id = {};",
                -1 - writer
            ));
        }
        let rolls_back = self.random.random_ratio(1, 40);
        sql.push_str(if rolls_back { "rollback;" } else { "commit;" });

        self.next += i64::from(transfers);
        Transfer { sql, first, entries: transfers, deletes, rolls_back }
    }

    /// A note as SQL: none, empty, with signs that need care, or 6 KB that do
    /// not compress.
    fn note_text(&mut self) -> String {
        match self.random.random_range(0..200) {
            0..20 => "null".to_owned(),
            20..40 => "''".to_owned(),
            40..60 => r#"E'tab\t "quoted" \\ back, it''s ünïcode ✓ 漢'"#.to_owned(),
            60 => {
                let long: String =
                    (0..375).map(|_| format!("{:016x}", self.random.random::<u64>())).collect();
                format!("'{long}'")
            }
            n => format!("'note {n}'"),
        }
    }

    fn note(&mut self, transfer: &Transfer, fate: Fate) {
        let entries = (transfer.first, transfer.entries);
        match fate {
            // The answer to a rollback is known too: it never happened. If
            // the answer is lost, it still never happened.
            _ if transfer.rolls_back => {
                self.alive.extend(transfer.deletes);
                self.mine.refused += 1;
                self.shared.refused.fetch_add(1, Ordering::Relaxed);
            }
            Fate::Acked => {
                self.mine.acked += 1;
                self.mine.entries.push(entries);
                self.mine.deleted.extend(transfer.deletes);
                self.alive.extend((0..i64::from(transfer.entries)).map(|n| transfer.first + n));
                self.shared.acked.fetch_add(1, Ordering::Relaxed);
            }
            Fate::Refused => {
                self.alive.extend(transfer.deletes);
                self.mine.refused += 1;
                self.shared.refused.fetch_add(1, Ordering::Relaxed);
            }
            Fate::Unknown => {
                self.mine.unknown += 1;
                self.mine.unknown_entries.push(entries);
                self.mine.maybe_deleted.extend(transfer.deletes);
                self.shared.unknown.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

async fn commit(client: &Client, sql: &str) -> Fate {
    match tokio::time::timeout(ANSWER_PATIENCE, client.batch_execute(sql)).await {
        Ok(Ok(())) => Fate::Acked,
        Ok(Err(error)) => match error.code() {
            // The server says no: nothing of it is committed. Only a session
            // that is being ended may have got its commit through.
            Some(code) if !ends_session(code.code()) => Fate::Refused,
            _ => Fate::Unknown,
        },
        Err(_) => Fate::Unknown,
    }
}

/// Class 57P (operator intervention), 08 (connection), XX (internal).
fn ends_session(code: &str) -> bool {
    ["57P", "08", "XX"].iter().any(|class| code.starts_with(class))
}
