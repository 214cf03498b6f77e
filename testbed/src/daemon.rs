//! A Landfall daemon as a process: started from a binary and a configuration
//! text, killed, frozen, and asked over its own HTTP port.
//!
//! The binary is whatever path the test gives (`env!("CARGO_BIN_EXE_landfall")`
//! in Landfall's own tests); nothing here links to it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::process::{Process, Recipe, Signal};
use crate::{eventually, home, http, process};

/// What a daemon is started with.
#[derive(Clone, Debug)]
pub struct Builder {
    binary: PathBuf,
    name: String,
    config: String,
    http: Option<SocketAddr>,
    env: Vec<(String, String)>,
}

impl Builder {
    /// The address of `[http] listen`, where it is asked for its health and
    /// figures. The configuration must say the same.
    pub fn http(mut self, address: SocketAddr) -> Builder {
        self.http = Some(address);
        self
    }

    /// One environment variable.
    pub fn env(mut self, key: &str, value: &str) -> Builder {
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Starts it; it need not be ready when this returns.
    pub fn start(self) -> Result<Daemon> {
        let mut daemon = self.stopped()?;
        daemon.start_again()?;
        Ok(daemon)
    }

    /// Writes its configuration, for commands that need no daemon, and does
    /// not start it.
    pub fn stopped(self) -> Result<Daemon> {
        let scratch = home::scratch(&format!("daemon-{}", self.name))?;
        let daemon = Daemon { process: None, spec: self, scratch };
        daemon.write_config()?;
        Ok(daemon)
    }
}

/// A daemon, running or not. Dropped, it is killed.
#[derive(Debug)]
pub struct Daemon {
    process: Option<Process>,
    spec: Builder,
    scratch: TempDir,
}

impl Daemon {
    /// A daemon of this binary with this configuration. The name is for
    /// directories and messages.
    pub fn builder(binary: impl AsRef<Path>, name: &str, config: &str) -> Builder {
        Builder {
            binary: binary.as_ref().to_owned(),
            name: name.to_owned(),
            config: config.to_owned(),
            http: None,
            env: Vec::new(),
        }
    }

    /// The file its configuration is in.
    pub fn config_path(&self) -> PathBuf {
        self.scratch.path().join("landfall.toml")
    }

    /// Gives it another configuration from its next start on.
    pub fn set_config(&mut self, config: &str) -> Result<()> {
        self.spec.config = config.to_owned();
        self.write_config()
    }

    fn write_config(&self) -> Result<()> {
        std::fs::write(self.config_path(), &self.spec.config).context("write the configuration")
    }

    /// Sets an environment variable from its next start on.
    pub fn set_env(&mut self, key: &str, value: &str) {
        self.remove_env(key);
        self.spec.env.push((key.to_owned(), value.to_owned()));
    }

    /// Takes an environment variable away from its next start on.
    pub fn remove_env(&mut self, key: &str) {
        self.spec.env.retain(|(known, _)| known != key);
    }

    /// Starts it again after it has ended. The log goes on.
    pub fn start_again(&mut self) -> Result<()> {
        if let Some(process) = &mut self.process {
            ensure!(process.exited().is_some(), "{} is running ({})", self.spec.name, process.pid());
        }
        let mut recipe = Recipe::new(&self.spec.name, &self.spec.binary, &self.log_path())
            .arg("run")
            .arg("--config")
            .arg(self.config_path())
            .current_dir(self.scratch.path());
        for (key, value) in &self.spec.env {
            recipe = recipe.env(key, value);
        }
        self.process = Some(recipe.spawn()?);
        Ok(())
    }

    /// Runs another command of the same binary, with the same configuration
    /// and environment, such as `["status", "--json"]`; returns how it ended
    /// and what it printed.
    pub async fn command(&self, args: &[&str]) -> Result<Output> {
        let output = self.start_command(args)?.wait_with_output().await;
        output.with_context(|| format!("run {} {args:?}", self.spec.binary.display()))
    }

    /// Starts what [`Daemon::command`] runs, and does not wait for its end.
    pub fn start_command(&self, args: &[&str]) -> Result<tokio::process::Child> {
        let mut command = tokio::process::Command::new(&self.spec.binary);
        command
            .args(args)
            .arg("--config")
            .arg(self.config_path())
            .envs(self.spec.env.iter().map(|(key, value)| (key, value)))
            .current_dir(self.scratch.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command.spawn().with_context(|| format!("run {} {args:?}", self.spec.binary.display()))
    }

    /// Its process id; that of the last one after it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.exited().is_none())
    }

    /// Kills it with SIGKILL, and waits until it is gone.
    pub fn kill9(&mut self) -> Result<()> {
        self.running()?.kill_tree()
    }

    /// Asks it to end with SIGTERM; returns how it did, and how long it took.
    pub async fn sigterm(&mut self, timeout: Duration) -> Result<(ExitStatus, Duration)> {
        let started = Instant::now();
        self.running()?.signal(Signal::Terminate)?;
        match self.wait_exit(timeout).await {
            Some(status) => Ok((status, started.elapsed())),
            None => {
                bail!("{} did not end within {timeout:?} of SIGTERM:\n{}", self.spec.name, self.log_tail())
            }
        }
    }

    /// Freezes it.
    pub fn sigstop(&mut self) -> Result<()> {
        self.running()?.signal(Signal::Stop)
    }

    /// Thaws it.
    pub fn sigcont(&mut self) -> Result<()> {
        self.running()?.signal(Signal::Continue)
    }

    /// Waits until it ends by itself; None if it has not in time.
    pub async fn wait_exit(&mut self, timeout: Duration) -> Option<ExitStatus> {
        self.process.as_mut()?.wait_exit(timeout).await
    }

    /// Has it die at a crash point, reached so many times, and starts it again once it has.
    ///
    /// # Errors
    /// With its log, where it has not died in time.
    pub async fn die_at(&mut self, point: &str, reach: u64, patience: Duration) -> Result<()> {
        self.kill9()?;
        self.set_env("LANDFALL_CRASH_AT", &format!("{point}:{reach}"));
        self.start_again()?;
        let died = self.wait_exit(patience).await;
        self.remove_env("LANDFALL_CRASH_AT");
        ensure!(died.is_some(), "{point}:{reach} was not reached\n{}", self.log_tail());
        println!("killed at {point}, reached {reach} times");
        self.start_again()
    }

    fn running(&mut self) -> Result<&mut Process> {
        self.process.as_mut().with_context(|| format!("{} was not started", self.spec.name))
    }

    /// The file its output goes to.
    pub fn log_path(&self) -> PathBuf {
        self.scratch.path().join("log")
    }

    /// Everything it has written so far, over all its starts.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The last lines it has written.
    pub fn log_tail(&self) -> String {
        process::tail(&self.log_path(), 60)
    }

    /// The most memory it has held at once, in KiB.
    pub fn vm_hwm_kib(&self) -> Result<u64> {
        self.process.as_ref().context("it was not started")?.vm_hwm_kib()
    }

    /// The memory it holds now, in KiB.
    pub fn vm_rss_kib(&self) -> Result<u64> {
        self.process.as_ref().context("it was not started")?.vm_rss_kib()
    }

    /// Asks its HTTP port; returns the status and the body.
    pub async fn http_get(&self, path: &str) -> Result<(u16, String)> {
        let address = self.spec.http.context("no HTTP address was given")?;
        http::get(address, path).await
    }

    /// Waits until `/health/ready` answers 200. The error holds the last
    /// answer and the end of the log.
    pub async fn wait_ready(&mut self, timeout: Duration) -> Result<()> {
        let started = Instant::now();
        let mut last = String::from("no answer");
        while started.elapsed() < timeout {
            // First, so that nobody else's answer is taken for its own.
            if let Some(status) = self.process.as_mut().and_then(Process::exited) {
                bail!("{} ended ({status}) before it was ready:\n{}", self.spec.name, self.log_tail());
            }
            match self.http_get("/health/ready").await {
                Ok((200, _)) => return Ok(()),
                Ok((status, body)) => last = format!("{status} {body}"),
                Err(error) => last = format!("{error:#}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("{} is not ready after {timeout:?}: {last}\n{}", self.spec.name, self.log_tail())
    }

    /// Waits until a heartbeat of a link has been applied: from then on the link carries what is written.
    ///
    /// # Errors
    /// The end of the log, where `patience` is over first.
    pub async fn wait_heartbeat(&self, patience: Duration) -> Result<()> {
        eventually(patience, "a heartbeat has arrived", async || {
            Ok(self.metric("replication_lag_seconds").await?.is_some())
        })
        .await
        .with_context(|| self.log_tail())
    }

    /// The value of a metric, named as in `name` or `name{label="value"}`.
    /// Labels not named may have any value; where several series fit, it is
    /// their sum. None if none fits.
    pub async fn metric(&self, wanted: &str) -> Result<Option<f64>> {
        let (status, page) = self.http_get("/metrics").await?;
        ensure!(status == 200, "/metrics answered {status}: {page}");
        metric_in(&page, wanted)
    }
}

/// A series' name, and its labels in order.
type Series = (String, Vec<(String, String)>);

/// Looks a metric up in a page of Prometheus's text format, as
/// [`Daemon::metric`] does.
pub fn metric_in(page: &str, wanted: &str) -> Result<Option<f64>> {
    let (wanted, rest) = series(wanted)?;
    ensure!(rest.trim().is_empty(), "after the labels: {rest:?}");
    let mut sum = None;
    for line in page.lines() {
        if line.starts_with('#') || line.trim().is_empty() {
            continue;
        }
        let (found, value) = series(line)?;
        if found.0 == wanted.0 && wanted.1.iter().all(|label| found.1.contains(label)) {
            let value: f64 = value
                .split_whitespace()
                .next()
                .and_then(|value| value.parse().ok())
                .with_context(|| format!("a metric without a value: {line}"))?;
            *sum.get_or_insert(0.0) += value;
        }
    }
    Ok(sum)
}

fn series(line: &str) -> Result<(Series, &str)> {
    let end = line.find(|sign: char| sign == '{' || sign.is_whitespace()).unwrap_or(line.len());
    let name = line[..end].to_owned();
    let mut labels = Vec::new();
    let Some(mut rest) = line[end..].strip_prefix('{') else {
        return Ok(((name, labels), &line[end..]));
    };
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(after) = rest.strip_prefix('}') {
            return Ok(((name, labels), after));
        }
        let (label, after) =
            rest.split_once("=\"").with_context(|| format!("a label without a value: {line}"))?;
        let mut value = String::new();
        let mut signs = after.char_indices();
        loop {
            match signs.next() {
                Some((at, '"')) => {
                    rest = &after[at + 1..];
                    break;
                }
                Some((_, '\\')) => match signs.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, sign)) => value.push(sign),
                    None => bail!("a label without an end: {line}"),
                },
                Some((_, sign)) => value.push(sign),
                None => bail!("a label without an end: {line}"),
            }
        }
        labels.push((label.trim().to_owned(), value));
    }
}

/// All that a command printed, for a message.
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP replication_lag_seconds lag\n\
        # TYPE replication_lag_seconds gauge\n\
        replication_lag_seconds{link=\"us to eu\",stream=\"main\"} 0.25\n\
        replication_conflicts_total{kind=\"a\\\"b\"} 2\n\
        replication_conflicts_total{kind=\"c\"} 3 1700000000\n\
        replication_up 1\n";

    #[test]
    fn a_metric_is_found_by_its_labels() {
        let look = |wanted| metric_in(PAGE, wanted).unwrap();
        assert_eq!(look("replication_up"), Some(1.0));
        assert_eq!(look("replication_lag_seconds"), Some(0.25));
        assert_eq!(look("replication_lag_seconds{stream=\"main\", link=\"us to eu\"}"), Some(0.25));
        assert_eq!(look("replication_lag_seconds{stream=\"other\"}"), None);
        assert_eq!(look("replication_conflicts_total"), Some(5.0));
        assert_eq!(look("replication_conflicts_total{kind=\"a\\\"b\"}"), Some(2.0));
        assert_eq!(look("replication"), None);
    }
}
