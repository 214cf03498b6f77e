//! Kafka Connect with Debezium in it: what Landfall is measured against.
//!
//! ```text
//!   postgres ──▶ Debezium's source ──▶ kafka ──▶ Debezium's JDBC sink ──▶ postgres
//!                └─ a connector ─┘               └── a connector ───┘
//!                └───────────────── one stand-alone worker ────────┘
//! ```
//!
//! A worker is a JVM that is told over HTTP which connectors to run. What the
//! two connectors are told is in [`debezium`]; any other plug-in's settings can
//! be given as JSON. `scripts/setup-rivals` fetches all of it.
//!
//! HAZARD: the JDBC sink keeps an error to itself until it is next handed
//! records, up to a minute later. Until then its state is running; look at the
//! target, or at the log, for what was really written.

pub mod debezium;

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{Process, Recipe};
use crate::{Kafka, home, http, ports, process};

/// Six seconds alone; a good deal more where compilers share the machine.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// A worker's own patience with a connector's answer, for instance about a
/// database that hangs. It says so then, which is worth waiting for.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(90);

/// The memory and the collector that Kafka's own start script of a stand-alone
/// worker asks for.
const JVM: &[&str] = &[
    "-server",
    "-Xms256m",
    "-Xmx2g",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS",
];

/// How a connector is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It and all its tasks run. Whether it has reached its database or its
    /// topics yet, Connect does not say.
    Running,
    /// It has no task yet, or was stopped: Connect's own word for it.
    Waiting(String),
    /// It gave up, and will not begin again by itself.
    Failed {
        /// The exception with its stack.
        trace: String,
    },
}

/// A stand-alone worker. Dropped, it is killed and its files are removed.
#[derive(Debug)]
pub struct Connect {
    // Declared before the files, so that it ends before they go.
    process: Process,
    http: SocketAddr,
    scratch: TempDir,
}

impl Connect {
    /// Starts a worker without connectors next to this Kafka, and waits until
    /// it takes orders. The error names `scripts/setup-rivals` where its jars
    /// are missing.
    pub async fn start(kafka: &Kafka) -> Result<Connect> {
        Connect::start_on(&kafka.local()).await
    }

    /// The same with bootstrap servers of one's own, for instance those behind
    /// the WAN.
    pub async fn start_on(bootstrap_servers: &str) -> Result<Connect> {
        let java = home::program("java")?;
        let installation = home::connect()?;
        let scratch = home::scratch("connect")?;
        let http = ports::loopback(ports::free()?);
        let properties = scratch.path().join("worker.properties");
        let settings = worker(bootstrap_servers, http, &installation, scratch.path());
        std::fs::write(&properties, settings).context("write worker.properties")?;

        let mut recipe = Recipe::new("connect", &java, &scratch.path().join("log"));
        for option in JVM {
            recipe = recipe.arg(option);
        }
        let process = recipe
            .arg("-cp")
            .arg(installation.join("libs/*"))
            .arg("org.apache.kafka.connect.cli.ConnectStandalone")
            .arg(&properties)
            .current_dir(scratch.path())
            .spawn()?;
        let mut connect = Connect { process, http, scratch };
        connect.takes_orders().await?;
        Ok(connect)
    }

    async fn takes_orders(&mut self) -> Result<()> {
        let started = Instant::now();
        loop {
            // First, so that nobody else's answer is taken for its own.
            if let Some(status) = self.process.exited() {
                bail!("Kafka Connect ended at its start ({status}):\n{}", self.log_tail());
            }
            let last = match http::get(self.http, "/connector-plugins").await {
                Ok((200, _)) => return Ok(()),
                Ok((status, body)) => format!("{status} {body}"),
                Err(error) => format!("{error:#}"),
            };
            if started.elapsed() > START_TIMEOUT {
                bail!("Kafka Connect takes no orders after {START_TIMEOUT:?} ({last}):\n{}", self.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Gives it a connector under a new name. It is accepted when this returns,
    /// not started; the error holds what Connect finds wrong with the settings.
    pub async fn create(&self, name: &str, config: &Value) -> Result<()> {
        let order = json!({"name": name, "config": config}).to_string();
        self.ask("POST", "/connectors", Some(&order))
            .await
            .with_context(|| format!("create the connector {name}"))?;
        Ok(())
    }

    /// Stops a connector and forgets it. How far it came stays known under its
    /// name, and a source's slot stays in its database.
    pub async fn delete(&self, name: &str) -> Result<()> {
        self.ask("DELETE", &format!("/connectors/{name}"), None)
            .await
            .with_context(|| format!("delete the connector {name}"))?;
        Ok(())
    }

    /// How a connector is; an error where there is none of that name.
    pub async fn state(&self, name: &str) -> Result<State> {
        let answer = self
            .ask("GET", &format!("/connectors/{name}/status"), None)
            .await
            .with_context(|| format!("ask for the state of {name}"))?;
        state_in(&answer)
    }

    /// Waits until a connector runs. One that has failed is an error at once,
    /// with its trace.
    pub async fn wait_running(&self, name: &str, timeout: Duration) -> Result<()> {
        let started = Instant::now();
        loop {
            // Connect knows a new connector a moment after it has accepted it.
            let last = match self.state(name).await {
                Ok(State::Running) => return Ok(()),
                Ok(State::Failed { trace }) => bail!("{name} has failed: {trace}"),
                Ok(State::Waiting(word)) => word,
                Err(error) => format!("{error:#}"),
            };
            if started.elapsed() > timeout {
                bail!("{name} does not run after {timeout:?} ({last}):\n{}", self.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn ask(&self, method: &str, path: &str, json: Option<&str>) -> Result<Value> {
        let (status, body) = http::request(self.http, method, path, json, REQUEST_TIMEOUT).await?;
        if !(200..300).contains(&status) {
            bail!("Kafka Connect answered {status}: {body}");
        }
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&body).with_context(|| format!("an answer that is not JSON: {body}"))
    }

    /// The worker's process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The memory the worker holds now, in KiB.
    pub fn vm_rss_kib(&self) -> Result<u64> {
        self.process.vm_rss_kib()
    }

    /// Lets [`Connect::vm_hwm_kib`] begin with what the worker holds now.
    pub fn forget_peak(&self) -> Result<()> {
        // `CLEAR_REFS_MM_HIWATER_RSS`, proc(5).
        std::fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").context("forget a worker's peak")
    }

    /// The most memory the worker has held at once, in KiB.
    pub fn vm_hwm_kib(&self) -> Result<u64> {
        self.process.vm_hwm_kib()
    }

    /// A directory in which connectors may write, removed with the worker.
    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// Everything it and its connectors have written so far.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.process.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        process::tail(self.process.log_path(), 60)
    }
}

fn worker(bootstrap_servers: &str, http: SocketAddr, installation: &Path, scratch: &Path) -> String {
    let mut properties = String::new();
    let mut set = |name: &str, value: &str| {
        properties.push_str(&format!("{name}={value}\n"));
    };
    set("bootstrap.servers", bootstrap_servers);
    set("listeners", &format!("http://{http}"));
    set("plugin.path", &installation.join("plugins").display().to_string());
    // All of these plug-ins carry a list of what is in them, and reading it is
    // quicker than looking at every class.
    set("plugin.discovery", "service_load");
    set("offset.storage.file.filename", &scratch.join("offsets").display().to_string());
    // What Connect ships with, as it ships: the JDBC sink needs the schemas.
    for converter in ["key.converter", "value.converter"] {
        set(converter, "org.apache.kafka.connect.json.JsonConverter");
        set(&format!("{converter}.schemas.enable"), "true");
    }
    properties
}

fn state_in(answer: &Value) -> Result<State> {
    let connector = answer.get("connector").context("a status without a connector")?;
    let tasks = answer.get("tasks").and_then(Value::as_array).context("a status without tasks")?;
    let word = |of: &Value| of.get("state").and_then(Value::as_str).unwrap_or("UNKNOWN").to_owned();
    let parts = || std::iter::once(connector).chain(tasks);
    if let Some(failed) = parts().find(|part| word(part) == "FAILED") {
        let trace = failed.get("trace").and_then(Value::as_str).unwrap_or("no trace is given");
        return Ok(State::Failed { trace: trace.to_owned() });
    }
    if let Some(other) = parts().map(word).find(|word| word != "RUNNING") {
        return Ok(State::Waiting(other));
    }
    if tasks.is_empty() {
        return Ok(State::Waiting("no task yet".to_owned()));
    }
    Ok(State::Running)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connector_is_as_the_worst_of_its_parts() {
        let state = |connector: &str, tasks: Value| {
            state_in(&json!({"name": "c", "connector": {"state": connector}, "tasks": tasks})).unwrap()
        };
        let failed = json!({"id": 1, "state": "FAILED", "trace": "at x"});
        assert_eq!(state("RUNNING", json!([{"state": "RUNNING"}])), State::Running);
        assert_eq!(state("RUNNING", json!([])), State::Waiting("no task yet".into()));
        assert_eq!(state("RUNNING", json!([{"state": "UNASSIGNED"}])), State::Waiting("UNASSIGNED".into()));
        assert_eq!(
            state("RUNNING", json!([{"state": "RUNNING"}, failed])),
            State::Failed { trace: "at x".into() }
        );
        assert!(state_in(&json!({})).is_err());
    }
}
