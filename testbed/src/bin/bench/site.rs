//! The servers every contender is measured on: one source, one target with a database for each contender,
//! one Kafka for all sites of a run, and a line of a length to choose before each.

use std::time::Duration;

use anyhow::Result;
use testbed::{Kafka, Postgres, Wan};

use super::warm::warm_up;

/// The source's database.
pub const SOURCE: &str = "bench";

/// The servers of one part of a run.
pub struct Site<'a> {
    /// What its regions, topics and connectors are told apart from other sites' by.
    pub name: &'a str,
    /// Where changes are made.
    pub source: Postgres,
    /// Where they go.
    pub target: Postgres,
    /// The buffer of those who have one.
    pub kafka: &'a Kafka,
    /// The line before the source, for those who have none.
    pub line: Wan,
    /// The source's port at the far end of that line.
    pub far_port: u16,
}

/// What both servers are set to: the memory and log a server of this size would be given; durability as it
/// comes.
const SETTINGS: &[(&str, &str)] = &[
    ("shared_buffers", "1GB"),
    ("max_wal_size", "16GB"),
    ("checkpoint_timeout", "30min"),
    ("logical_decoding_work_mem", "64MB"),
    ("autovacuum", "off"),
    ("fsync", "on"),
];

/// Starts a broker, and warms it up: one that is new is slow for a minute, and so is each new one.
pub async fn broker() -> Result<Kafka> {
    let kafka = Kafka::start_lasting().await?;
    warm_up(&kafka).await?;
    Ok(kafka)
}

impl<'a> Site<'a> {
    /// Starts its database servers, beside a broker that others have used.
    pub async fn start(name: &'a str, kafka: &'a Kafka) -> Result<Self> {
        let server = |name| {
            let builder = Postgres::builder(15, name);
            SETTINGS.iter().fold(builder, |builder, (setting, value)| builder.setting(setting, value)).start()
        };
        let (source, target) = tokio::try_join!(server("source"), server("target"))?;
        source.create_database(SOURCE).await?;
        let line = Wan::new()?;
        let far = line.forward(testbed::ports::loopback(source.port()))?;
        let site = Self { name, source, target, kafka, line, far_port: far.port() };
        // Whoever had the broker before may have failed far away from it.
        site.set_rtt(Duration::ZERO);
        Ok(site)
    }

    /// Puts source and target this far apart.
    pub fn set_rtt(&self, rtt: Duration) {
        self.line.set_rtt(rtt);
        self.kafka.wan().set_rtt(rtt);
    }

    /// What the servers and machine are, for the report.
    pub async fn about(&self) -> Result<Vec<(String, String)>> {
        let mut facts = Vec::new();
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        facts.push((
            "machine".into(),
            format!("{} cores, {}", cores, model.trim_start_matches([' ', '\t', ':'])),
        ));
        let version = self.source.query_text(SOURCE, "select version()").await?.unwrap_or_default();
        facts.push(("Postgres".into(), version.split(" on ").next().unwrap_or_default().to_owned()));
        let settings: Vec<String> =
            SETTINGS.iter().map(|(name, value)| format!("`{name} = {value}`")).collect();
        facts.push(("server settings".into(), settings.join(", ")));
        Ok(facts)
    }
}
