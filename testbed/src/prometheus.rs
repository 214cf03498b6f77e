//! A real Prometheus that scrapes daemons once a second, and is asked what it found.
//!
//! What a dashboard or an alert asks can only be shown to be right by the one who will be asked: queries
//! go over its own HTTP interface, and the answers are what a panel would draw.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Process, Recipe};
use crate::{eventually, home, http, ports, process};

/// It starts within a second; a machine that compiles meanwhile takes longer.
const START_TIMEOUT: Duration = Duration::from_secs(180);

/// How often it scrapes, and the distance between two points of [`Prometheus::range`].
pub const SCRAPE_INTERVAL: Duration = Duration::from_secs(1);

/// A running Prometheus. Dropped, it is killed and its files are removed.
#[derive(Debug)]
pub struct Prometheus {
    _process: Process,
    address: SocketAddr,
    started: f64,
    _scratch: TempDir,
}

/// One line a query gives: its labels, and its finite values in the order of time.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its labels.
    pub labels: serde_json::Map<String, Value>,
    /// Its values, without those that are no number.
    pub values: Vec<f64>,
}

impl Prometheus {
    /// Starts one that scrapes `/metrics` of these, with these files of rules. It has scraped each of them once: what moves
    /// from now on, it sees move.
    pub async fn start(targets: &[SocketAddr], rules: &[&Path]) -> Result<Prometheus> {
        let program = home::program("prometheus")?;
        let scratch = home::scratch("prometheus")?;
        let targets: Vec<String> = targets.iter().map(SocketAddr::to_string).collect();
        let mut config = format!(
            "global: {{scrape_interval: {0}s, evaluation_interval: {0}s}}\n\
             scrape_configs: [{{job_name: landfall, static_configs: [{{targets: {targets:?}}}]}}]\n\
             rule_files:\n",
            SCRAPE_INTERVAL.as_secs()
        );
        for file in rules {
            let file = file.canonicalize().with_context(|| format!("find the rules {}", file.display()))?;
            let _ = writeln!(config, "  - {file:?}");
        }
        let path = scratch.path().join("prometheus.yml");
        std::fs::write(&path, config).context("write prometheus.yml")?;
        let (address, log) = (ports::loopback(ports::free()?), scratch.path().join("log"));
        let process = Recipe::new("prometheus", &program, &log)
            .arg(format!("--config.file={}", path.display()))
            .arg(format!("--storage.tsdb.path={}", scratch.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .current_dir(scratch.path())
            .spawn()?;
        let mut prometheus = Prometheus { _process: process, address, started: now(), _scratch: scratch };
        let ready = eventually(START_TIMEOUT, "Prometheus is ready", async || {
            if let Some(status) = prometheus._process.exited() {
                bail!("it ended at its start ({status})");
            }
            Ok(http::get(address, "/-/ready").await?.0 == 200)
        });
        ready.await.with_context(|| process::tail(&log, 20))?;
        // It looks only every five seconds what there is to scrape.
        let scraped = eventually(START_TIMEOUT, "each target was scraped", async || {
            let found = prometheus.range("up").await?;
            Ok(found.iter().filter(|target| !target.values.is_empty()).count() == targets.len())
        });
        scraped.await.with_context(|| process::tail(&log, 20))?;
        Ok(prometheus)
    }

    /// What a panel draws for a query: every second from the start on. An error where it does not parse.
    pub async fn range(&self, query: &str) -> Result<Vec<Series>> {
        let path = format!(
            "/api/v1/query_range?query={}&start={}&end={}&step={}",
            encoded(query),
            self.started,
            now(),
            SCRAPE_INTERVAL.as_secs()
        );
        let data = self.ask(&path).await.with_context(|| format!("run the query {query}"))?;
        let result = data["result"].as_array().context("a result that is no list")?;
        let series = result.iter().map(|series| {
            let points = series["values"].as_array().into_iter().flatten();
            let values = points.filter_map(|point| point[1].as_str()?.parse().ok());
            Series {
                labels: series["metric"].as_object().cloned().unwrap_or_default(),
                values: values.filter(|value: &f64| value.is_finite()).collect(),
            }
        });
        Ok(series.collect())
    }

    /// The values a label has in series that match.
    pub async fn label_values(&self, label: &str, series: &str) -> Result<Vec<String>> {
        let path = format!("/api/v1/label/{label}/values?match[]={}", encoded(series));
        let data = self.ask(&path).await?;
        let values = data.as_array().context("an answer that is no list")?;
        Ok(values.iter().filter_map(|value| Some(value.as_str()?.to_owned())).collect())
    }

    /// The alerts of its rules, as it read them.
    pub async fn alerts(&self) -> Result<Vec<Value>> {
        let data = self.ask("/api/v1/rules?type=alert").await?;
        let groups = data["groups"].as_array().context("an answer without groups")?;
        Ok(groups.iter().filter_map(|group| group["rules"].as_array()).flatten().cloned().collect())
    }

    async fn ask(&self, path: &str) -> Result<Value> {
        let (status, body) = http::get(self.address, path).await?;
        ensure!(status == 200, "Prometheus answered {status}: {body}");
        let mut answer: Value = serde_json::from_str(&body).context("an answer that is no JSON")?;
        Ok(answer["data"].take())
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// A query as part of a URL.
fn encoded(text: &str) -> String {
    let mut url = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            url.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(url, "%{byte:02X}");
        }
    }
    url
}
