//! How things stand while the load runs: asked of the two daemons and of the probe, drawn twice a second.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use testbed::{Ledger, http, probe::Probe};
use tokio::task::JoinHandle;

use crate::screen::{SCALE, Screen, sparkline};

/// How often it is drawn.
const EVERY: Duration = Duration::from_millis(500);
/// A daemon that is dead refuses at once; one whose machine is busy may take a moment.
const PATIENCE: Duration = Duration::from_millis(400);
/// Half a minute, as wide as a line allows.
const SHOWN: usize = 60;

/// What is at work while things break.
#[derive(Debug)]
pub struct Load {
    /// Bank transfers.
    pub ledger: Ledger,
    /// Rows whose way is measured.
    pub probe: Probe,
}

/// Draws until it is stopped.
#[derive(Debug)]
pub struct Standing {
    task: JoinHandle<()>,
    lags: Arc<Mutex<Vec<f64>>>,
    act: Arc<Mutex<String>>,
}

impl Standing {
    /// Begins.
    pub fn start(screen: Arc<Screen>, us: SocketAddr, eu: SocketAddr, load: Arc<Load>) -> Standing {
        let (lags, act) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(String::new())));
        let task = tokio::spawn({
            let (lags, act) = (Arc::clone(&lags), Arc::clone(&act));
            async move {
                let mut tick = tokio::time::interval(EVERY);
                tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                loop {
                    tick.tick().await;
                    let (us, eu) = tokio::join!(ask(us, "source"), ask(eu, "link"));
                    let lags = {
                        let mut lags = lock(&lags);
                        lags.push(load.probe.lag().as_secs_f64());
                        lags.clone()
                    };
                    let title = lock(&act).clone();
                    let table = table(&screen, &title, &us, &eu, &load, &lags);
                    screen.draw(table, || line(&us, &eu, &load, &lags));
                }
            }
        });
        Standing { task, lags, act }
    }

    /// Names the act that is played.
    pub fn act(&self, title: &str) {
        title.clone_into(&mut lock(&self.act));
    }

    /// Ends, and gives the lag of the whole run.
    pub async fn stop(self) -> Vec<f64> {
        self.task.abort();
        let _ = self.task.await;
        lock(&self.lags).clone()
    }
}

fn lock<T>(what: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A daemon's stream of this role; null where the daemon does not answer.
async fn ask(daemon: SocketAddr, role: &str) -> Value {
    let answer = tokio::time::timeout(PATIENCE, http::get(daemon, "/status")).await;
    let Ok(Ok((200, body))) = answer else { return Value::Null };
    let status: Value = serde_json::from_str(&body).unwrap_or_default();
    let streams = status["streams"].as_array();
    streams.and_then(|all| all.iter().find(|it| it["role"] == role)).cloned().unwrap_or_default()
}

fn table(screen: &Screen, act: &str, us: &Value, eu: &Value, load: &Load, lags: &[f64]) -> Vec<String> {
    let link = &eu["link"];
    let now = &lags[lags.len().saturating_sub(SHOWN)..];
    let clock = screen.elapsed().as_secs();
    vec![
        format!("{act:<68}{:>8}", format!("{}:{:02}", clock / 60, clock % 60)),
        format!(
            "us-east-1 → eu-west-1 {:<9} lag {:>6} p99 {:>6} {:>6}/s {:>5} waiting",
            state(eu),
            seconds(&link["lag_seconds"]),
            seconds(&link["lag_p99_seconds"]),
            whole(&eu["changes_per_second"]),
            whole(&link["offset_lag"]),
        ),
        format!(
            "us-east-1 → its Kafka {:<9} the slot keeps {:>9} {:>6}/s",
            state(us),
            kib(&us["source"]["slot_retained_bytes"]),
            whole(&us["changes_per_second"]),
        ),
        format!(
            "{:<21} {:>7} transfers acknowledged, {:>5} probes under way",
            "seen from outside",
            load.ledger.acked(),
            load.probe.latency().missing
        ),
        format!("lag  {}", sparkline(now, SHOWN)),
        format!("     {SCALE}"),
    ]
}

fn line(us: &Value, eu: &Value, load: &Load, lags: &[f64]) -> String {
    let now = &lags[lags.len().saturating_sub(SHOWN)..];
    format!(
        "{} acked {:>6} · under way {:>4} · eu {} lag {} {}/s · us {} slot {}",
        sparkline(now, 20),
        load.ledger.acked(),
        load.probe.latency().missing,
        state(eu),
        seconds(&eu["link"]["lag_seconds"]),
        whole(&eu["changes_per_second"]),
        state(us),
        kib(&us["source"]["slot_retained_bytes"]),
    )
}

fn state(stream: &Value) -> &str {
    stream["state"].as_str().unwrap_or("no answer")
}

fn seconds(value: &Value) -> String {
    value.as_f64().map_or("?".to_owned(), |seconds| format!("{seconds:.1} s"))
}

fn whole(value: &Value) -> String {
    value.as_f64().map_or("?".to_owned(), |figure| format!("{figure:.0}"))
}

fn kib(value: &Value) -> String {
    value.as_u64().map_or("?".to_owned(), |bytes| format!("{} KiB", bytes / 1024))
}
