//! A real Apache Kafka, one broker or three, reachable from two sides.
//!
//! ```text
//!   own region ─────────────▶ LOCAL  ┐
//!                                    ├ broker (and controller)
//!   other region ──▶ Wan ──▶ REMOTE  ┘   advertises the proxy on REMOTE
//! ```
//!
//! A broker tells every client its own address in the first metadata answer,
//! and the client goes there. Were there one listener only, a client behind
//! the WAN would walk round it; so each path has a listener of its own, and
//! the remote one advertises the proxy.
//!
//! A secured Kafka has a third listener, SECURE, for its own region's daemon;
//! it and the remote one ask for TLS and a password and hold everybody to what
//! he is allowed. LOCAL stays as it is, for the testbed's own administration.

mod admin;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::process::{Process, Recipe, Signal};
use crate::wan::Wan;
use crate::{Authority, home, ports, process};

pub use admin::{Admin, Partition, Record};

/// Two seconds alone; a good deal more where compilers share the machine.
const START_TIMEOUT: Duration = Duration::from_secs(180);

/// The line a broker writes once it serves.
const STARTED: &str = "Kafka Server started";

/// The settings of every broker. Failover is short, so that a test of it is;
/// retention is looked at every second, so that it can be watched.
pub const DEFAULTS: &[(&str, &str)] = &[
    ("process.roles", "broker,controller"),
    ("controller.listener.names", "CONTROLLER"),
    ("inter.broker.listener.name", "LOCAL"),
    ("listener.security.protocol.map", "LOCAL:PLAINTEXT,REMOTE:PLAINTEXT,CONTROLLER:PLAINTEXT"),
    ("auto.create.topics.enable", "false"),
    ("unclean.leader.election.enable", "false"),
    ("offsets.topic.num.partitions", "1"),
    ("transaction.state.log.num.partitions", "1"),
    ("share.coordinator.state.topic.num.partitions", "1"),
    ("group.initial.rebalance.delay.ms", "0"),
    ("num.network.threads", "2"),
    ("num.io.threads", "2"),
    ("log.cleaner.dedupe.buffer.size", "16777216"),
    ("log.retention.check.interval.ms", "1000"),
    ("log.initial.task.delay.ms", "500"),
    ("broker.session.timeout.ms", "3000"),
    ("broker.heartbeat.interval.ms", "500"),
    ("controller.quorum.election.timeout.ms", "500"),
    ("controller.quorum.fetch.timeout.ms", "1000"),
    ("controlled.shutdown.enable", "true"),
];

/// A JVM that is small and quick to start rather than fast in the long run.
const QUICK: &[&str] = &["-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"];
/// One as Kafka's own start script has it, with half the heap.
const LASTING: &[&str] = &[
    "-server",
    "-Xms512m",
    "-Xmx512m",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
];

/// The host a secured broker is certified for.
const SECURED_HOST: &str = "localhost";

/// What makes a broker a secured one. Who comes over the plain listeners has
/// no name and may do everything: the brokers themselves, and the testbed.
const SECURED: &[(&str, &str)] = &[
    (
        "listener.security.protocol.map",
        "LOCAL:PLAINTEXT,SECURE:SASL_SSL,REMOTE:SASL_SSL,CONTROLLER:PLAINTEXT",
    ),
    ("ssl.keystore.type", "PEM"),
    ("sasl.enabled.mechanisms", "SCRAM-SHA-512"),
    ("listener.name.secure.scram-sha-512.sasl.jaas.config", SCRAM),
    ("listener.name.remote.scram-sha-512.sasl.jaas.config", SCRAM),
    ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"),
    ("super.users", "User:ANONYMOUS"),
];

const SCRAM: &str = "org.apache.kafka.common.security.scram.ScramLoginModule required;";

#[derive(Debug)]
struct Broker {
    process: Option<Process>,
    id: usize,
    local: u16,
    secure: u16,
    remote: u16,
    controller: u16,
    /// What the remote listener advertises.
    proxy: u16,
    properties: PathBuf,
    log: PathBuf,
}

/// A running Kafka. Ports stay the same over kills and starts. Dropped, its
/// brokers are killed and its files removed.
#[derive(Debug)]
pub struct Kafka {
    brokers: Vec<Broker>,
    wan: Wan,
    jvm: &'static [&'static str],
    is_secured: bool,
    _scratch: TempDir,
}

impl Kafka {
    /// Starts 1 or 3 brokers and waits until all of them serve. With 3, topics
    /// and Kafka's own have factor 3 and two in-sync replicas at least. With 0
    /// there is no Kafka: a region that only receives needs none.
    pub async fn start(brokers: usize) -> Result<Kafka> {
        Kafka::start_with(brokers, &[]).await
    }

    /// The same, with broker settings of one's own.
    pub async fn start_with(brokers: usize, settings: &[(&str, &str)]) -> Result<Kafka> {
        Kafka::start_on(QUICK, brokers, settings, None).await
    }

    /// One broker to be measured: its JVM is set up as Kafka's own scripts do.
    pub async fn start_lasting() -> Result<Kafka> {
        Kafka::start_on(LASTING, 1, &[], None).await
    }

    /// A secured one: [`Kafka::secured`] and [`Kafka::remote`] speak TLS with a
    /// certificate of this authority for the host `localhost`, ask for a user
    /// and password (SCRAM-SHA-512; [`Admin::set_password`] makes them), and
    /// allow nobody anything that [`Admin::allow`] did not.
    pub async fn start_secured(brokers: usize, authority: &Authority) -> Result<Kafka> {
        Kafka::start_on(QUICK, brokers, &[], Some(authority)).await
    }

    async fn start_on(
        jvm: &'static [&'static str],
        brokers: usize,
        settings: &[(&str, &str)],
        authority: Option<&Authority>,
    ) -> Result<Kafka> {
        ensure!([0, 1, 3].contains(&brokers), "one broker or three, or none, not {brokers}");
        let scratch = home::scratch("kafka")?;
        let wan = Wan::new()?;
        let is_secured = authority.is_some();
        let mut kafka =
            Kafka { brokers: Vec::with_capacity(brokers), wan, jvm, is_secured, _scratch: scratch };
        for id in 1..=brokers {
            let remote = ports::free()?;
            let dir = kafka._scratch.path().join(id.to_string());
            std::fs::create_dir(&dir).context("make a broker's directory")?;
            kafka.brokers.push(Broker {
                process: None,
                id,
                local: ports::free()?,
                secure: ports::free()?,
                remote,
                controller: ports::free()?,
                proxy: kafka.wan.forward(ports::loopback(remote))?.port(),
                properties: dir.join("server.properties"),
                log: dir.join("log"),
            });
        }
        kafka.format(settings, authority)?;
        for index in 0..brokers {
            kafka.spawn(index)?;
        }
        for index in 0..brokers {
            kafka.serves(index, 0).await?;
        }
        Ok(kafka)
    }

    /// Writes what Kafka's own formatting tool would: settings, and an
    /// identity for the log directory. (The tool costs a JVM start each.)
    fn format(&self, settings: &[(&str, &str)], authority: Option<&Authority>) -> Result<()> {
        let cluster = identifier();
        let voters: Vec<String> = self
            .brokers
            .iter()
            .map(|broker| format!("{}@127.0.0.1:{}", broker.id, broker.controller))
            .collect();
        let factor = self.replication_factor().to_string();
        let in_sync = self.min_insync_replicas().to_string();
        for broker in &self.brokers {
            let dir = broker.properties.parent().context("its directory")?;
            let data = dir.join("data");
            std::fs::create_dir(&data).context("make a log directory")?;
            std::fs::write(
                data.join("meta.properties"),
                format!(
                    "version=1\ncluster.id={cluster}\nnode.id={}\ndirectory.id={}\n",
                    broker.id,
                    identifier()
                ),
            )
            .context("write meta.properties")?;

            let mut properties = String::new();
            let mut set = |name: &str, value: &str| {
                properties.push_str(&format!("{name}={value}\n"));
            };
            for (name, value) in DEFAULTS {
                set(name, value);
            }
            set("node.id", &broker.id.to_string());
            set("log.dirs", &data.display().to_string());
            set(
                "listeners",
                &format!(
                    "LOCAL://127.0.0.1:{},REMOTE://127.0.0.1:{},CONTROLLER://127.0.0.1:{}",
                    broker.local, broker.remote, broker.controller
                ),
            );
            set(
                "advertised.listeners",
                &format!("LOCAL://127.0.0.1:{},REMOTE://127.0.0.1:{}", broker.local, broker.proxy),
            );
            set("controller.quorum.voters", &voters.join(","));
            set("default.replication.factor", &factor);
            set("min.insync.replicas", &in_sync);
            for internal in [
                "offsets.topic.replication.factor",
                "transaction.state.log.replication.factor",
                "share.coordinator.state.topic.replication.factor",
            ] {
                set(internal, &factor);
            }
            for internal in ["transaction.state.log.min.isr", "share.coordinator.state.topic.min.isr"] {
                set(internal, &in_sync);
            }
            if let Some(authority) = authority {
                let store = dir.join("broker.pem");
                authority.issue(SECURED_HOST)?.together(&store)?;
                set("ssl.keystore.location", &store.display().to_string());
                for (name, value) in SECURED {
                    set(name, value);
                }
                set(
                    "listeners",
                    &format!(
                        "LOCAL://127.0.0.1:{},SECURE://127.0.0.1:{},REMOTE://127.0.0.1:{},CONTROLLER://127.0.0.1:{}",
                        broker.local, broker.secure, broker.remote, broker.controller
                    ),
                );
                set(
                    "advertised.listeners",
                    &format!(
                        "LOCAL://127.0.0.1:{},SECURE://{SECURED_HOST}:{},REMOTE://{SECURED_HOST}:{}",
                        broker.local, broker.secure, broker.proxy
                    ),
                );
            }
            // The last one wins.
            for (name, value) in settings {
                set(name, value);
            }
            std::fs::write(&broker.properties, properties).context("write server.properties")?;
        }
        Ok(())
    }

    /// The number of brokers, running or not.
    pub fn brokers(&self) -> usize {
        self.brokers.len()
    }

    /// The replication factor topics should have here.
    pub fn replication_factor(&self) -> u16 {
        if self.brokers.len() == 3 { 3 } else { 1 }
    }

    /// The in-sync replicas a write should need here.
    pub fn min_insync_replicas(&self) -> u16 {
        if self.brokers.len() == 3 { 2 } else { 1 }
    }

    /// Bootstrap servers for its own region, separated by commas.
    pub fn local(&self) -> String {
        self.servers("127.0.0.1", |broker| broker.local)
    }

    /// Bootstrap servers of a secured Kafka for its own region's daemon.
    pub fn secured(&self) -> String {
        self.servers(SECURED_HOST, |broker| broker.secure)
    }

    /// Bootstrap servers for the other region: through the WAN.
    pub fn remote(&self) -> String {
        let host = if self.is_secured { SECURED_HOST } else { "127.0.0.1" };
        self.servers(host, |broker| broker.proxy)
    }

    fn servers(&self, host: &str, port: impl Fn(&Broker) -> u16) -> String {
        let servers: Vec<String> =
            self.brokers.iter().map(|broker| format!("{host}:{}", port(broker))).collect();
        servers.join(",")
    }

    /// The cable between the other region and all these brokers.
    pub fn wan(&self) -> &Wan {
        &self.wan
    }

    /// Topic administration, over the own region's listeners.
    pub fn admin(&self) -> Admin {
        Admin::new(self.brokers.iter().map(|b| ports::loopback(b.local)))
    }

    /// Kills a broker (counted from 0) with SIGKILL.
    pub async fn kill(&mut self, index: usize) -> Result<()> {
        let broker = self.broker(index)?;
        let mut process = broker.process.take().context("it is stopped already")?;
        process.kill_tree()
    }

    /// Shuts a broker down in order, and says how long that took.
    pub async fn stop(&mut self, index: usize) -> Result<Duration> {
        /// A controlled shutdown hands leaders over; without a quorum it
        /// waits in vain, and is killed on drop.
        const PATIENCE: Duration = Duration::from_secs(90);
        let started = Instant::now();
        let broker = self.broker(index)?;
        let mut process = broker.process.take().context("it is stopped already")?;
        process.signal(Signal::Terminate)?;
        if process.wait_exit(PATIENCE).await.is_none() {
            bail!("broker {index} did not stop within {PATIENCE:?}");
        }
        Ok(started.elapsed())
    }

    /// Starts a killed or stopped broker again and waits until it serves.
    pub async fn start_again(&mut self, index: usize) -> Result<()> {
        let seen = self.lines_of_start(index)?;
        self.spawn(index)?;
        self.serves(index, seen).await
    }

    /// Shuts every broker down, then starts all of them.
    pub async fn restart_all(&mut self) -> Result<()> {
        for index in 0..self.brokers.len() {
            if let Some(mut process) = self.broker(index)?.process.take() {
                // At once: without a quorum an orderly end cannot be had, and
                // every acknowledged record is in the page cache anyway.
                process.kill_tree()?;
            }
        }
        let mut seen = Vec::new();
        for index in 0..self.brokers.len() {
            seen.push(self.lines_of_start(index)?);
            self.spawn(index)?;
        }
        for (index, seen) in seen.into_iter().enumerate() {
            self.serves(index, seen).await?;
        }
        Ok(())
    }

    /// The process id of a broker while it runs.
    pub fn pid(&self, index: usize) -> Option<u32> {
        self.brokers.get(index)?.process.as_ref().map(Process::pid)
    }

    /// The broker (counted from 0) that leads a topic's partition.
    pub async fn leader(&self, topic: &str, partition: i32) -> Result<usize> {
        let partitions = self.admin().partitions(topic).await?;
        let found = partitions
            .iter()
            .find(|known| known.index == partition)
            .with_context(|| format!("{topic} has no partition {partition}"))?;
        let id = usize::try_from(found.leader)
            .ok()
            .filter(|&id| id >= 1)
            .with_context(|| format!("{topic} has no leader now"))?;
        Ok(id - 1)
    }

    /// Whether there is such a topic.
    pub async fn topic_exists(&self, topic: &str) -> Result<bool> {
        self.admin().topic_exists(topic).await
    }

    /// Makes a topic with the usual factor and these settings.
    pub async fn create_topic(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) -> Result<()> {
        let factor = self.replication_factor();
        self.admin().create_topic(topic, partitions, factor, settings).await
    }

    /// Deletes a topic and waits until no broker shows it any more.
    pub async fn delete_topic(&self, topic: &str) -> Result<()> {
        self.admin().delete_topic(topic).await
    }

    /// Deletes the records of partition 0 before an offset; returns the first
    /// that is left.
    pub async fn delete_records(&self, topic: &str, before_offset: i64) -> Result<i64> {
        self.admin().delete_records(topic, 0, before_offset).await
    }

    /// Raises the number of partitions to a total.
    pub async fn add_partitions(&self, topic: &str, total: i32) -> Result<()> {
        self.admin().add_partitions(topic, total).await
    }

    /// Sets settings of a topic, leaving the others.
    pub async fn alter_config(&self, topic: &str, settings: &[(&str, &str)]) -> Result<()> {
        self.admin().alter_config(topic, settings).await
    }

    /// Appends records to partition 0, in order and all or none; returns the
    /// offset of the first.
    pub async fn append(&self, topic: &str, records: &[Record]) -> Result<i64> {
        self.admin().append(topic, 0, records).await
    }

    /// The offset of the first record of partition 0.
    pub async fn start_offset(&self, topic: &str) -> Result<i64> {
        self.admin().start_offset(topic, 0).await
    }

    /// The offset the next record of partition 0 will get.
    pub async fn end_offset(&self, topic: &str) -> Result<i64> {
        self.admin().end_offset(topic, 0).await
    }

    /// The last lines of a broker's log.
    pub fn log_tail(&self, index: usize) -> String {
        match self.brokers.get(index) {
            Some(broker) => process::tail(&broker.log, 40),
            None => format!("(no broker {index})"),
        }
    }

    fn broker(&mut self, index: usize) -> Result<&mut Broker> {
        let count = self.brokers.len();
        self.brokers.get_mut(index).with_context(|| format!("no broker {index} of {count}"))
    }

    fn lines_of_start(&self, index: usize) -> Result<usize> {
        let broker = self.brokers.get(index).context("no such broker")?;
        let log = std::fs::read(&broker.log).unwrap_or_default();
        Ok(String::from_utf8_lossy(&log).matches(STARTED).count())
    }

    fn spawn(&mut self, index: usize) -> Result<()> {
        let java = home::program("java")?;
        let libs = home::kafka_libs()?;
        let jvm = self.jvm;
        // What is not there, or of another Java, the JVM does without.
        let classes = libs.with_file_name("classes.jsa");
        let shared = (jvm == QUICK).then(|| format!("-XX:SharedArchiveFile={}", classes.display()));
        let broker = self.broker(index)?;
        ensure!(broker.process.is_none(), "broker {index} is running");
        let recipe = Recipe::new(&format!("broker {index}"), &java, &broker.log);
        let process = jvm
            .iter()
            .copied()
            .chain(shared.as_deref().filter(|_| classes.exists()))
            .fold(recipe, Recipe::arg)
            .arg("-cp")
            .arg(libs.join("*"))
            .arg("kafka.Kafka")
            .arg(&broker.properties)
            .spawn()?;
        broker.process = Some(process);
        Ok(())
    }

    /// Waits for the line that says so, once more than it was seen before.
    async fn serves(&mut self, index: usize, seen: usize) -> Result<()> {
        let started = Instant::now();
        while self.lines_of_start(index)? <= seen {
            let ended = self.broker(index)?.process.as_mut().and_then(|process| process.exited());
            if let Some(status) = ended {
                bail!("broker {index} ended at its start ({status}):\n{}", self.log_tail(index));
            }
            if started.elapsed() > START_TIMEOUT {
                bail!("broker {index} does not serve after {START_TIMEOUT:?}:\n{}", self.log_tail(index));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

/// A random identifier as Kafka writes them: 16 bytes in URL-safe base64
/// without padding, not beginning with a dash.
fn identifier() -> String {
    const SIGNS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    // 22 signs hold 132 bits; the last four must be zero, which the signs
    // A, Q, g and w are.
    let mut text: String = (0..21)
        .map(|place| {
            let signs = if place == 0 { 62 } else { 64 };
            char::from(SIGNS[rand::random_range(0..signs)])
        })
        .collect();
    text.push(char::from(SIGNS[16 * rand::random_range(0..4usize)]));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_is_sixteen_bytes() {
        for _ in 0..100 {
            let id = identifier();
            assert_eq!(id.len(), 22);
            assert!(!id.starts_with('-'), "{id}");
            assert!(id.ends_with(['A', 'Q', 'g', 'w']), "{id}");
        }
    }
}
