//! Landfall: a daemon that reads the source into Kafka, a daemon that applies from there.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testbed::{Daemon, eventually, ports};

use super::Plan;
use super::measure::{Drain, Group, Watch, until, until_so};
use super::site::{SOURCE, Site};
use super::workload::{Workload, Written};

/// Its database at the target.
pub const DATABASE: &str = "landfall";
const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(30);
const READ: Duration = Duration::from_secs(600);

/// Both daemons, started and stopped by each measurement.
pub struct Landfall {
    us: Daemon,
    eu: Daemon,
}

impl Landfall {
    /// Makes the target's tables and begins the stream; both daemons are stopped again.
    pub async fn set_up(plan: &Plan, site: &Site<'_>, schema: &str) -> Result<Self> {
        site.target.create_database(DATABASE).await?;
        site.target.execute(DATABASE, schema).await?;
        let daemon = |region: &str, rest: String, database: String| -> Result<Daemon> {
            let http = ports::loopback(ports::free()?);
            let config = format!(
                "region = \"{region}\"\n[database]\nurl = \"{database}\"\n{rest}\n[http]\nlisten = \"{http}\"\n"
            );
            Daemon::builder(plan.binary.clone(), region, &config).http(http).stopped()
        };
        let source = format!(
            "[kafka]\nbrokers = [\"{}\"]\nreplication_factor = 1\nmin_insync_replicas = 1\n[source]\ntables = [\"public.*\"]\n{}",
            site.kafka.local(),
            plan.source.join("\n")
        );
        let region = format!("us-{}", site.name);
        let link = format!(
            "[[link]]\nfrom = \"{region}\"\nbrokers = [\"{}\"]\n{}",
            site.kafka.remote(),
            plan.link.join("\n")
        );
        let us = daemon(&region, source, site.source.url(SOURCE))?;
        let eu = daemon("eu", link, site.target.url(DATABASE))?;
        let mut landfall = Self { us, eu };
        landfall.start().await?;
        landfall.stop().await?;
        Ok(landfall)
    }

    /// Starts both, and waits until heartbeats are applied.
    pub async fn start(&mut self) -> Result<()> {
        self.us.start_again()?;
        self.eu.start_again()?;
        let applied = async || {
            Ok(self.eu.metric("replication_lag_seconds").await.ok().flatten().is_some_and(|lag| lag < 3.0))
        };
        eventually(START, "heartbeats are applied", applied)
            .await
            .with_context(|| format!("{}\n{}", self.us.log_tail(), self.eu.log_tail()))
    }

    /// Stops both.
    pub async fn stop(&mut self) -> Result<()> {
        self.us.sigterm(STOP).await?;
        self.eu.sigterm(STOP).await?;
        Ok(())
    }

    /// Source to Kafka alone.
    pub async fn capture(&mut self, site: &Site<'_>, written: &Written) -> Result<Drain> {
        self.us.start_again()?;
        let mut watch = Watch::start(vec![
            Group { name: "source Postgres", pid: site.source.pid().unwrap_or(0) },
            Group { name: "Kafka", pid: site.kafka.pid(0).unwrap_or(0) },
            Group { name: "Landfall source", pid: self.us.pid().unwrap_or(0) },
        ]);
        let us = &self.us;
        let acknowledged = async |lsn: u64| {
            until_so("the log is acknowledged by Kafka", async || Ok(confirmed(us).await >= lsn)).await
        };
        if written.has_lead_in() {
            acknowledged(written.lead_in_lsn).await?;
            watch.lead_in();
        }
        acknowledged(written.last_lsn).await?;
        let mut drain = watch.stop(written.rows, written.all_rows);
        drain.peak_mib = Some(self.us.vm_hwm_kib()? as f64 / 1024.0);
        self.us.sigterm(STOP).await?;
        Ok(drain)
    }

    /// Kafka to the target alone: a backlog, caught up with.
    pub async fn apply(&mut self, site: &Site<'_>, workload: &Workload, written: &Written) -> Result<Drain> {
        self.eu.start_again()?;
        let watch = Watch::start(vec![
            Group { name: "target Postgres", pid: site.target.pid().unwrap_or(0) },
            Group { name: "Kafka", pid: site.kafka.pid(0).unwrap_or(0) },
            Group { name: "Landfall sink", pid: self.eu.pid().unwrap_or(0) },
        ]);
        let mut drain = arrive(site, workload, written, watch, DATABASE).await?;
        drain.peak_mib = Some(self.eu.vm_hwm_kib()? as f64 / 1024.0);
        self.eu.sigterm(STOP).await?;
        Ok(drain)
    }

    /// The whole way, both daemons at work.
    pub async fn whole(&mut self, site: &Site<'_>, workload: &Workload, written: &Written) -> Result<Drain> {
        let before = site.kafka.wan().bytes();
        self.us.start_again()?;
        self.eu.start_again()?;
        let mut groups = vec![
            Group { name: "source Postgres", pid: site.source.pid().unwrap_or(0) },
            Group { name: "target Postgres", pid: site.target.pid().unwrap_or(0) },
            Group { name: "Kafka", pid: site.kafka.pid(0).unwrap_or(0) },
        ];
        groups.extend(self.groups());
        let watch = Watch::start(groups);
        let mut drain = arrive(site, workload, written, watch, DATABASE).await?;
        drain.bytes_per_row = Some((site.kafka.wan().bytes() - before) as f64 / written.all_rows as f64);
        drain.peak_mib = Some(self.us.vm_hwm_kib()?.max(self.eu.vm_hwm_kib()?) as f64 / 1024.0);
        self.stop().await?;
        Ok(drain)
    }

    /// The daemons that run.
    pub fn groups(&self) -> [Group; 2] {
        [("Landfall source", &self.us), ("Landfall sink", &self.eu)]
            .map(|(name, daemon)| Group { name, pid: daemon.pid().unwrap_or(0) })
    }

    /// Copies every table there is into the target; gives the larger of the daemons' peaks, in MiB.
    pub async fn backfill(&self) -> Result<f64> {
        self.ask_for_backfill(&[]).await?;
        Ok(self.us.vm_hwm_kib()?.max(self.eu.vm_hwm_kib()?) as f64 / 1024.0)
    }

    /// A backfill with nobody at the target: its rows come into Kafka.
    pub async fn read_alone(&mut self, site: &Site<'_>) -> Result<()> {
        self.us.start_again()?;
        let us = &self.us;
        eventually(START, "the source is up", async || Ok(confirmed(us).await > 0)).await?;
        self.ask_for_backfill(&["--detach"]).await?;
        let done = "select not exists (select from landfall.backfill where state <> 'done')";
        tokio::time::timeout(READ, until(&site.source, SOURCE, done)).await??;
        self.us.sigterm(STOP).await.map(drop)
    }

    async fn ask_for_backfill(&self, more: &[&str]) -> Result<()> {
        let done = self.us.command(&[&["backfill", "--to", "eu", "--again"], more].concat()).await?;
        let said =
            format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        ensure!(done.status.success(), "landfall backfill: {said}");
        Ok(())
    }

    /// The end of both logs, for a failure's message.
    pub fn logs(&self) -> String {
        format!("--- source\n{}\n--- sink\n{}", self.us.log_tail(), self.eu.log_tail())
    }
}

/// Waits for the sentinels at the target.
pub async fn arrive(
    site: &Site<'_>,
    workload: &Workload,
    written: &Written,
    mut watch: Watch,
    database: &str,
) -> Result<Drain> {
    if written.has_lead_in() {
        until(&site.target, database, &workload.arrived(written.lead_in)).await?;
        watch.lead_in();
    }
    until(&site.target, database, &workload.arrived(written.last)).await?;
    Ok(watch.stop(written.rows, written.all_rows))
}

/// The position the daemon has had acknowledged; 0 while it does not tell.
async fn confirmed(us: &Daemon) -> u64 {
    let Ok((200, page)) = us.http_get("/status").await else { return 0 };
    let status: serde_json::Value = serde_json::from_str(&page).unwrap_or_default();
    let lsn = status["streams"][0]["source"]["confirmed"].as_str().unwrap_or_default();
    let parts =
        lsn.split_once('/').map(|(high, low)| (u64::from_str_radix(high, 16), u64::from_str_radix(low, 16)));
    match parts {
        Some((Ok(high), Ok(low))) => high << 32 | low,
        _ => 0,
    }
}
