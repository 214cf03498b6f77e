//! Debezium's connector for Postgres and its JDBC sink, in one warm Kafka Connect worker for all workloads.
//!
//! It reads a database of its own at the same server: what takes the others seconds takes it minutes, and a slot on
//! theirs would have to be drained of all they are measured with.

use std::time::Duration;

use anyhow::{Result, anyhow};
use testbed::connect::State;
use testbed::connect::debezium::{JdbcSink, PostgresSource};
use testbed::{Connect, Kafka};
use tokio_postgres::Client;

use super::landfall::arrive;
use super::measure::{Drain, Group, Watch, until, until_so};
use super::report::Report;
use super::site::Site;
use super::workload::{Workload, Written};

/// Its database, at the source and at the target.
pub const DATABASE: &str = "debezium";
const START: Duration = Duration::from_secs(60);
/// Of the rows the others are given it is given one in so many: a rate is as sure, for it takes as long.
const SHARE: u64 = 3;
/// Between two looks whether a connector has given up.
const LOOK: Duration = Duration::from_secs(2);

fn prefix(site: &str) -> String {
    format!("debezium-{site}")
}

/// A workload's connectors, deleted while others are measured: the worker keeps where they stood.
pub struct Debezium<'a> {
    connect: &'a Connect,
    /// What both connectors' names and all topics begin with.
    prefix: String,
    tables: Vec<String>,
    writer: Client,
    /// Transactions written so far.
    last: u64,
}

impl<'a> Debezium<'a> {
    /// Makes the tables on both sides, and the slot; its source reads from now on.
    pub async fn set_up(
        connect: &'a Connect,
        site: &Site<'_>,
        workload: &Workload,
        schema: &str,
    ) -> Result<Self> {
        for server in [&site.source, &site.target] {
            server.create_database(DATABASE).await?;
            server.execute(DATABASE, schema).await?;
        }
        let tables = workload.tables.iter().map(|table| format!("public.{table}")).collect();
        let writer = site.source.connect(DATABASE).await?;
        let debezium = Self { connect, prefix: prefix(site.name), tables, writer, last: 0 };
        debezium.read(site).await?;
        Ok(debezium)
    }

    /// Lets a share of so many rows through, unmeasured: a JVM that is cold, caches that are empty. It is at rest then.
    pub async fn warm(&mut self, site: &Site<'_>, workload: &Workload, rows: u64) -> Result<()> {
        let written = self.write(workload, rows).await?;
        self.apply(site).await?;
        self.applied(site, workload, &written).await?;
        self.rest(site).await?;
        self.connect.delete(&self.connector("sink")).await
    }

    /// One round, of a share of so many rows.
    pub async fn round(
        &mut self,
        site: &Site<'_>,
        workload: &Workload,
        rows: u64,
        report: &mut Report,
    ) -> Result<()> {
        let written = self.write(workload, rows).await?;
        let drain = self.capture(site, &written).await?;
        report.drain(workload.name, "capture", DATABASE, &drain);
        // What was captured is applied unmeasured.
        self.apply(site).await?;
        self.applied(site, workload, &written).await?;
        let written = self.write(workload, rows).await?;
        let drain = self.whole(site, workload, &written).await?;
        report.drain(workload.name, "whole", DATABASE, &drain);
        self.connect.delete(&self.connector("sink")).await
    }

    async fn write(&mut self, workload: &Workload, rows: u64) -> Result<Written> {
        let written = workload.write(&self.writer, self.last, (rows / SHARE).max(1)).await?;
        self.last = written.last;
        Ok(written)
    }

    /// Ends what has not ended: a connector whose servers are gone would be in everybody's way.
    pub async fn end(connect: &Connect, site: &str) {
        for end in ["source", "sink"] {
            // Where there is none there is nothing to end.
            let _ = connect.delete(&format!("{}-{end}", prefix(site))).await;
        }
    }

    /// The name of its source or its sink.
    fn connector(&self, end: &str) -> String {
        format!("{}-{end}", self.prefix)
    }

    /// Lets the source read from now on.
    async fn read(&self, site: &Site<'_>) -> Result<()> {
        let tables: Vec<&str> = self.tables.iter().map(String::as_str).collect();
        let config = PostgresSource {
            port: site.source.port(),
            database: DATABASE,
            publication: "debezium",
            slot: "debezium",
            tables: &tables,
            topic_prefix: &self.prefix,
        };
        let name = self.connector("source");
        self.connect.create(&name, &config.config()).await?;
        self.connect.wait_running(&name, START).await?;
        until(&site.source, DATABASE, "select active from pg_replication_slots where slot_name = 'debezium'")
            .await
    }

    /// Lets the sink apply from now on.
    async fn apply(&self, site: &Site<'_>) -> Result<()> {
        let topics = format!("{}\\.public\\..*", self.prefix);
        let config = JdbcSink { port: site.target.port(), database: DATABASE, topics_regex: &topics };
        self.connect.create(&self.connector("sink"), &config.config()).await
    }

    /// Stops the source, and waits until it has let go of the slot.
    async fn rest(&self, site: &Site<'_>) -> Result<()> {
        self.connect.delete(&self.connector("source")).await?;
        until(
            &site.source,
            DATABASE,
            "select not active from pg_replication_slots where slot_name = 'debezium'",
        )
        .await
    }

    fn groups(&self, site: &Site<'_>) -> Vec<Group> {
        vec![
            Group { name: "source Postgres", pid: site.source.pid().unwrap_or(0) },
            Group { name: "target Postgres", pid: site.target.pid().unwrap_or(0) },
            Group { name: "Kafka", pid: site.kafka.pid(0).unwrap_or(0) },
            Group { name: "Kafka Connect", pid: self.connect.pid() },
        ]
    }

    /// Waits until everything that was written is at the target.
    async fn applied(&self, site: &Site<'_>, workload: &Workload, written: &Written) -> Result<()> {
        let there = workload.arrived(written.last);
        tokio::select! {
            there = until(&site.target, DATABASE, &there) => there,
            failed = self.failure() => Err(failed),
        }
    }

    /// Source to Kafka alone.
    async fn capture(&self, site: &Site<'_>, written: &Written) -> Result<Drain> {
        let before = self.records(site.kafka).await;
        self.connect.forget_peak()?;
        let mut watch = Watch::start(self.groups(site));
        self.read(site).await?;
        for (rows, lead_in) in [(written.all_rows - written.rows, true), (written.all_rows, false)] {
            let all_there = async || Ok(self.records(site.kafka).await >= before + rows);
            until_so("every record is in its topic", all_there).await?;
            if lead_in {
                watch.lead_in();
            }
        }
        let mut drain = watch.stop(written.rows, written.all_rows);
        drain.peak_mib = Some(self.connect.vm_hwm_kib()? as f64 / 1024.0);
        self.rest(site).await?;
        Ok(drain)
    }

    /// The whole way, with a sink that waits for rows.
    async fn whole(&self, site: &Site<'_>, workload: &Workload, written: &Written) -> Result<Drain> {
        self.connect.forget_peak()?;
        let watch = Watch::start(self.groups(site));
        self.read(site).await?;
        let mut drain = tokio::select! {
            arrived = arrive(site, workload, written, watch, DATABASE) => arrived?,
            failed = self.failure() => return Err(failed),
        };
        drain.peak_mib = Some(self.connect.vm_hwm_kib()? as f64 / 1024.0);
        self.rest(site).await?;
        Ok(drain)
    }

    /// Returns once one of its connectors has given up, with the reason.
    async fn failure(&self) -> anyhow::Error {
        loop {
            for end in ["source", "sink"] {
                if let Ok(State::Failed { trace }) = self.connect.state(&self.connector(end)).await {
                    return anyhow!("the {end} has given up: {trace}");
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// How many changes its topics hold; a topic that does not exist yet holds none.
    async fn records(&self, kafka: &Kafka) -> u64 {
        let mut records = 0;
        for table in &self.tables {
            records +=
                kafka.end_offset(&format!("{}.{table}", self.prefix)).await.unwrap_or(0).cast_unsigned();
        }
        records
    }
}
