//! Time, processor time and bytes between two moments.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use testbed::{Postgres, cpu};

/// How often an arrival is looked for: a fraction of a percent of what is timed.
const POLL: Duration = Duration::from_millis(5);
/// Longer than any drain.
const PATIENCE: Duration = Duration::from_secs(300);

/// A group of processes whose time is added up.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its name in the report.
    pub name: &'static str,
    /// The process whose children belong to it.
    pub pid: u32,
}

/// A drain, measured.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    /// Rows between the two sentinels, by the second.
    pub rows_per_second: f64,
    /// Seconds of processor time per million rows, by group, over the whole drain.
    pub cpu: Vec<(&'static str, f64)>,
    /// Bytes on the line per row.
    pub bytes_per_row: Option<f64>,
    /// The most memory the contender's processes held, in MiB.
    pub peak_mib: Option<f64>,
    /// Cores busy with something that is not counted here, on average.
    pub other_cores: f64,
}

/// A running measurement.
pub struct Watch {
    began: Instant,
    groups: Vec<(Group, f64)>,
    busy: f64,
    lead_in: Option<Instant>,
}

impl Watch {
    /// Begins.
    pub fn start(groups: Vec<Group>) -> Self {
        let groups = groups.into_iter().map(|group| (group.clone(), cpu::tree_seconds(group.pid))).collect();
        Self { began: Instant::now(), groups, busy: cpu::machine_seconds(), lead_in: None }
    }

    /// The lead-in has arrived.
    pub fn lead_in(&mut self) {
        self.lead_in = Some(Instant::now());
    }

    /// Everything has arrived.
    pub fn stop(self, rows: u64, all_rows: u64) -> Drain {
        let end = Instant::now();
        let timed = end - self.lead_in.unwrap_or(self.began);
        let spent: Vec<(&'static str, f64)> = self
            .groups
            .iter()
            .map(|(group, before)| (group.name, cpu::tree_seconds(group.pid) - before))
            .collect();
        let counted: f64 = spent.iter().map(|(_, seconds)| seconds).sum();
        let busy = cpu::machine_seconds() - self.busy;
        let own = all_rows as f64 / 1e6;
        Drain {
            rows_per_second: rows as f64 / timed.as_secs_f64(),
            cpu: spent.into_iter().map(|(name, seconds)| (name, seconds / own)).collect(),
            other_cores: (busy - counted).max(0.0) / (end - self.began).as_secs_f64(),
            ..Drain::default()
        }
    }
}

/// Waits for a query to say `true`.
pub async fn until(server: &Postgres, database: &str, sql: &str) -> Result<()> {
    let client = server.connect(database).await?;
    let statement = client.prepare(sql).await?;
    until_so(sql, async || Ok(client.query_opt(&statement, &[]).await?.is_some_and(|row| row.get(0)))).await
}

/// Waits for something to be so.
pub async fn until_so(what: &str, so: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !so().await.with_context(|| format!("ask: {what}"))? {
        if began.elapsed() > PATIENCE {
            bail!("after {PATIENCE:?} it is still not so: {what}");
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// The middle one; of an even number the mean of the two.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        length if length % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}
