//! The end: every row of both sides compared, and what the ledger outside has to say of it.

use std::time::Duration;

use anyhow::Result;
use testbed::ledger::{Record, WatchReport};
use testbed::probe::Latency;
use testbed::{TwoRegions, checksum, eventually};

use crate::screen::Screen;

/// What was found.
pub struct Verdict {
    tables: usize,
    rows: i64,
    acked: u64,
    lost: u64,
    doubled: u64,
    clean: bool,
    latency: Latency,
}

impl Verdict {
    /// Whether both sides are equal, and the ledger's record agrees.
    pub fn is_equal(&self) -> bool {
        self.clean && self.lost == 0 && self.doubled == 0
    }

    /// The last line.
    pub fn line(&self) -> String {
        let word = if self.is_equal() { "equal" } else { "DIFFERENT" };
        let ms = |figure: Option<f64>| figure.map_or("unknown".to_owned(), |ms| format!("{ms:.0}"));
        format!(
            "verdict: {word} tables={} rows={} acked={} lost={} doubled={} lag_p50_ms={} lag_p99_ms={}",
            self.tables,
            self.rows,
            self.acked,
            self.lost,
            self.doubled,
            ms(self.latency.p50_ms()),
            ms(self.latency.p99_ms())
        )
    }
}

/// Compares both sides, and says what differs.
pub async fn compare(
    screen: &Screen,
    regions: &TwoRegions,
    record: Record,
    watch: WatchReport,
    latency: Latency,
) -> Result<Verdict> {
    let source = regions.us.connect().await?;
    let target = regions.eu.connect().await?;
    let (mut ours, mut theirs) = (checksum::Sums::new(), checksum::Sums::new());
    // A session of pgbench's that was in its commit may have been a moment behind the probe.
    let equal = eventually(Duration::from_secs(10), "both sides are equal", async || {
        ours = checksum::database(&source).await?;
        theirs = checksum::database(&target).await?;
        Ok(checksum::differences(&ours, &theirs).is_empty())
    });
    let _ = equal.await;
    let mut findings = checksum::differences(&ours, &theirs);
    for (name, table) in &ours {
        screen.print(&format!("             {name:<28} {:>8} rows  sum {}", table.rows, table.sum));
    }
    let report = record.compare(&source, &target).await?;
    findings.extend(report.mismatches.iter().cloned());
    screen.say(format!(
        "the target was looked at in {} snapshots: {} did not add up",
        watch.snapshots, watch.torn
    ));
    findings.extend(watch.examples.into_iter().take(2));
    if latency.missing > 0 {
        findings.push(format!("{} rows of the probe never arrived", latency.missing));
    }
    if ours.is_empty() || report.acked == 0 {
        findings.push("nothing was compared".to_owned());
    }
    for finding in &findings {
        screen.print(&format!("             different: {finding}"));
    }
    Ok(Verdict {
        tables: ours.len(),
        rows: ours.values().map(|table| table.rows).sum(),
        acked: report.acked,
        lost: report.lost,
        doubled: report.doubled,
        clean: findings.is_empty() && report.is_clean() && watch.torn == 0,
        latency,
    })
}
