//! The record held against both databases, row by row.

use std::collections::HashMap;
use std::fmt;

use anyhow::{Context, Result};
use tokio_postgres::Client;

use super::{OPENING_BALANCE, Record};
use crate::checksum::{self, Sums};

/// Descriptions kept; beyond it they are only counted.
const DESCRIBED: usize = 20;

/// Rows fetched at once.
const FETCH: u32 = 20_000;

/// What the comparison found. Only one without a finding is clean.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Transactions that were acknowledged.
    pub acked: u64,
    /// Transactions whose answer was lost.
    pub unknown: u64,
    /// Of those, how many the source did commit.
    pub unknown_committed: u64,
    /// Effects that are missing on the target: entries, counts, versions.
    pub lost: u64,
    /// Effects that are on the target too often: entries that should not be
    /// there or are there twice, counts and versions that went too far.
    pub doubled: u64,
    /// All findings, of whatever kind.
    pub findings: u64,
    /// The first findings, described.
    pub mismatches: Vec<String>,
    /// Tables compared by checksum.
    pub tables: usize,
    /// Rows on the source.
    pub rows: i64,
}

impl Report {
    /// Whether the target is what the source is, and both are what the record
    /// says.
    pub fn is_clean(&self) -> bool {
        self.findings == 0
    }

    fn found(&mut self, what: String) {
        self.findings += 1;
        if self.mismatches.len() < DESCRIBED {
            self.mismatches.push(what);
        }
    }

    fn lost(&mut self, effects: u64, what: String) {
        self.lost += effects;
        self.found(what);
    }

    fn doubled(&mut self, effects: u64, what: String) {
        self.doubled += effects;
        self.found(what);
    }

    /// Something that only ever rises, and must be as high on both sides.
    fn risen(&mut self, what: &str, source: i64, target: i64) {
        let line = || format!("{what}: {source} on the source, {target} on the target");
        match target.cmp(&source) {
            std::cmp::Ordering::Less => self.lost(source.abs_diff(target), line()),
            std::cmp::Ordering::Greater => self.doubled(source.abs_diff(target), line()),
            std::cmp::Ordering::Equal => {}
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "acked={} unknown={} (committed {}) lost={} doubled={} tables={} rows={} findings={}",
            self.acked,
            self.unknown,
            self.unknown_committed,
            self.lost,
            self.doubled,
            self.tables,
            self.rows,
            self.findings
        )?;
        for mismatch in &self.mismatches {
            write!(f, "\n  {mismatch}")?;
        }
        let more = self.findings - self.mismatches.len() as u64;
        if more > 0 {
            write!(f, "\n  and {more} more")?;
        }
        Ok(())
    }
}

/// An account: balance and version.
type Accounts = HashMap<i64, (i64, i64)>;

/// The ledger as it stands in one database, in one snapshot.
struct Books {
    accounts: Accounts,
    counters: HashMap<i64, i64>,
    /// The hash of each entry, and how many rows bear its id.
    entries: HashMap<i64, (i64, u32)>,
    sums: Sums,
}

impl Record {
    /// Whether the source has all that was acknowledged, and the target is the
    /// same as the source. Both must be at rest: no writer, nothing under way.
    pub async fn compare(&self, source: &Client, target: &Client) -> Result<Report> {
        let source = read(source).await.context("read the source's ledger")?;
        let target = read(target).await.context("read the target's ledger")?;
        Ok(self.judge(&source, &target))
    }

    fn judge(&self, source: &Books, target: &Books) -> Report {
        let mut report = Report {
            acked: self.acked,
            unknown: self.unknown,
            tables: source.sums.len(),
            rows: source.sums.values().map(|table| table.rows).sum(),
            ..Report::default()
        };

        for id in ids(&self.entries) {
            let maybe = self.maybe_deleted.contains(&id);
            if maybe || self.deleted.contains(&id) {
                continue;
            }
            if !source.entries.contains_key(&id) {
                report.found(format!("entry {id}: acknowledged, and not on the source"));
            }
            if !target.entries.contains_key(&id) {
                report.lost(1, format!("entry {id}: acknowledged, and not on the target"));
            }
        }
        for id in &self.deleted {
            if source.entries.contains_key(id) {
                report.found(format!("entry {id}: deleted, and still on the source"));
            }
        }
        report.unknown_committed =
            self.unknown_entries.iter().filter(|(first, _)| source.entries.contains_key(first)).count()
                as u64;

        let acked: std::collections::HashSet<i64> = ids(&self.entries).collect();
        for (id, (hash, _)) in &source.entries {
            match target.entries.get(id) {
                // Those acknowledged are named above.
                None if acked.contains(id) && !self.maybe_deleted.contains(id) => {}
                None => report.lost(1, format!("entry {id}: on the source only")),
                Some((other, _)) if other != hash => {
                    report.found(format!("entry {id}: not the same on both sides"));
                }
                Some(_) => {}
            }
        }
        for (id, (_, rows)) in &target.entries {
            if *rows > 1 {
                report.doubled(u64::from(rows - 1), format!("entry {id}: {rows} rows on the target"));
            }
            if !source.entries.contains_key(id) {
                report.doubled(1, format!("entry {id}: on the target only"));
            }
        }

        for (id, &n) in &source.counters {
            match target.counters.get(id) {
                Some(&other) => report.risen(&format!("counter {id}"), n, other),
                None => report.lost(1, format!("counter {id}: not on the target")),
            }
        }
        for (id, &(balance, version)) in &source.accounts {
            let Some(&(other_balance, other_version)) = target.accounts.get(id) else {
                report.lost(1, format!("account {id}: not on the target"));
                continue;
            };
            report.risen(&format!("version of account {id}"), version, other_version);
            if balance != other_balance {
                report.found(format!(
                    "balance of account {id}: {balance} on the source, {other_balance} on the target"
                ));
            }
        }
        for (side, books) in [("source", source), ("target", target)] {
            let opened = books.accounts.len() as i64 * OPENING_BALANCE;
            let total: i64 = books.accounts.values().map(|(balance, _)| balance).sum();
            if total != opened {
                report.found(format!("total on the {side}: {total}, not {opened}"));
            }
        }
        for line in checksum::differences(&source.sums, &target.sums) {
            report.found(format!("checksum of {line}"));
        }
        report
    }
}

fn ids(entries: &[(i64, u8)]) -> impl Iterator<Item = i64> {
    entries.iter().flat_map(|&(first, count)| (0..i64::from(count)).map(move |place| first + place))
}

async fn read(client: &Client) -> Result<Books> {
    let mut sums = checksum::database(client).await?;
    sums.retain(|name, _| name.contains(".ledger_"));
    client
        .batch_execute("begin isolation level repeatable read read only")
        .await
        .context("open a snapshot")?;
    let rows = in_snapshot(client).await;
    client.batch_execute("rollback").await.context("close the snapshot")?;
    let (accounts, counters, entries) = rows?;
    Ok(Books { accounts, counters, entries, sums })
}

type Rows = (Accounts, HashMap<i64, i64>, HashMap<i64, (i64, u32)>);

async fn in_snapshot(client: &Client) -> Result<Rows> {
    let accounts = client
        .query("select id, balance, version from ledger_account", &[])
        .await?
        .iter()
        .map(|row| (row.get(0), (row.get(1), row.get(2))))
        .collect();
    let counters = client
        .query("select id::int8, n from ledger_counter", &[])
        .await?
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    client
        .batch_execute(
            "declare entries no scroll cursor for \
             select id, hashtextextended(e::text, 0) from ledger_entry e",
        )
        .await?;
    let mut entries = HashMap::new();
    loop {
        let rows = client.query(&format!("fetch {FETCH} from entries"), &[]).await?;
        if rows.is_empty() {
            break;
        }
        for row in rows {
            entries.entry(row.get(0)).or_insert((row.get(1), 0)).1 += 1;
        }
    }
    Ok((accounts, counters, entries))
}
