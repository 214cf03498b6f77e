//! Postgres's own logical replication, and its decoder alone.

use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use testbed::home;

use super::landfall::arrive;
use super::measure::{Drain, Group, Watch, until};
use super::site::{SOURCE, Site};
use super::workload::{Workload, Written};

/// Its database at the target.
pub const DATABASE: &str = "native";

/// A subscription.
pub struct Native;

impl Native {
    /// Makes the publication, the slot, the target's tables and the subscription, disabled. Without an
    /// initial copy: both sides are filled alike. Everything else is as `CREATE SUBSCRIPTION` has it.
    pub async fn set_up(site: &Site<'_>, workload_tables: &str, schema: &str) -> Result<Self> {
        site.target.create_database(DATABASE).await?;
        site.target.execute(DATABASE, schema).await?;
        site.source
            .execute(SOURCE, &format!("create publication native for table {workload_tables}"))
            .await?;
        let slot = "select pg_create_logical_replication_slot('native', 'pgoutput')";
        site.source.execute(SOURCE, slot).await?;
        let subscription = format!(
            "create subscription native connection 'host=127.0.0.1 port={} user=postgres dbname={SOURCE}'
                 publication native with (create_slot = false, slot_name = native, copy_data = false, enabled = false)",
            site.far_port
        );
        site.target.execute(DATABASE, &subscription).await?;
        Ok(Self)
    }

    /// Lets it apply from now on. `durable`: its commits wait for the disk, which they do not unless asked.
    pub async fn enable(&self, site: &Site<'_>, durable: bool) -> Result<()> {
        let durable = if durable { "on" } else { "off" };
        site.target
            .execute(DATABASE, &format!("alter subscription native set (synchronous_commit = {durable})"))
            .await?;
        site.target.execute(DATABASE, "alter subscription native enable").await
    }

    /// Stops it, and waits until it has let go of the slot.
    pub async fn disable(&self, site: &Site<'_>) -> Result<()> {
        site.target.execute(DATABASE, "alter subscription native disable").await?;
        let free = "select not active from pg_replication_slots where slot_name = 'native'";
        until(&site.source, SOURCE, free).await
    }

    /// The whole way.
    pub async fn whole(
        &self,
        site: &Site<'_>,
        workload: &Workload,
        written: &Written,
        durable: bool,
    ) -> Result<Drain> {
        let before = site.line.bytes();
        let watch = Watch::start(vec![
            Group { name: "source Postgres", pid: site.source.pid().unwrap_or(0) },
            Group { name: "target Postgres", pid: site.target.pid().unwrap_or(0) },
        ]);
        self.enable(site, durable).await?;
        let mut drain = arrive(site, workload, written, watch, DATABASE).await?;
        drain.bytes_per_row = Some((site.line.bytes() - before) as f64 / written.all_rows as f64);
        self.disable(site).await?;
        Ok(drain)
    }
}

/// `pg_recvlogical` with pgoutput into nothing: what decoding and one reader cost.
pub struct Receiver;

impl Receiver {
    /// Makes its slot; what is written from now on is what it reads.
    pub async fn set_up(site: &Site<'_>) -> Result<Self> {
        let sql = "select pg_create_logical_replication_slot('receiver', 'pgoutput')";
        site.source.execute(SOURCE, sql).await?;
        Ok(Self)
    }

    /// Reads everything that was written since the last time, over TCP.
    pub async fn drain(&self, site: &Site<'_>, written: &Written) -> Result<Drain> {
        let end = written.last_lsn;
        let mut command = tokio::process::Command::new(home::program("pg_recvlogical")?);
        command
            .args(["-h", "127.0.0.1", "-p", &site.source.port().to_string(), "-U", "postgres", "-d", SOURCE])
            .args(["-S", "receiver", "--start", "--no-loop", "-s", "1", "-f", "/dev/null"])
            .args(["-E", &format!("{:X}/{:X}", end >> 32, end & 0xffff_ffff)])
            .args(["-o", "proto_version=1", "-o", "publication_names=native"])
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let began = Instant::now();
        let watch =
            Watch::start(vec![Group { name: "source Postgres", pid: site.source.pid().unwrap_or(0) }]);
        let output = command.output().await.context("run pg_recvlogical")?;
        ensure!(output.status.success(), "pg_recvlogical: {}", String::from_utf8_lossy(&output.stderr));
        let took = began.elapsed();
        // Its walsender ends a moment later, and only then is its time on the server's account.
        let gone = "select not active from pg_replication_slots where slot_name = 'receiver'";
        until(&site.source, SOURCE, gone).await?;
        let mut drain = watch.stop(written.rows, written.all_rows);
        // It shows no sentinel: its start, a few hundredths of a second, counts.
        drain.rows_per_second = written.all_rows as f64 / took.as_secs_f64();
        Ok(drain)
    }
}
