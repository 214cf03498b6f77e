//! How long a row takes from one database to the other, seen from outside.
//!
//! One session inserts a row at a fixed pace, whether or not the ones before
//! have arrived; another polls the target. So an outage shows as many long
//! waits, as users would see it, and not as one.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::postgres;

/// How often the target is asked: the resolution of the figures.
const POLL: Duration = Duration::from_millis(1);

/// While a database is away, it is asked again this often.
const RECONNECT: Duration = Duration::from_millis(50);

/// Makes the probe's table; needed on both sides.
pub async fn create_table(client: &Client) -> Result<()> {
    client
        .batch_execute(
            "create table ledger_probe(id int8 primary key, at timestamptz not null default now())",
        )
        .await
        .context("make the probe's table")
}

/// The latencies of all rows that arrived.
#[derive(Clone, Debug, Default)]
pub struct Latency {
    /// In ascending order.
    sorted: Vec<Duration>,
    /// Rows that were committed and had not arrived at the end.
    pub missing: usize,
}

impl Latency {
    /// How many rows arrived.
    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// The latency that this share of the rows (0 to 1) did not exceed.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let last = self.sorted.len().checked_sub(1)?;
        let rank = (share.clamp(0.0, 1.0) * self.sorted.len() as f64).ceil() as usize;
        Some(self.sorted[rank.saturating_sub(1).min(last)])
    }

    /// Half of the rows took no longer, in milliseconds.
    pub fn p50_ms(&self) -> Option<f64> {
        self.quantile(0.5).map(ms)
    }

    /// 99 of 100 rows took no longer, in milliseconds.
    pub fn p99_ms(&self) -> Option<f64> {
        self.quantile(0.99).map(ms)
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows", self.count())?;
        for (name, share) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)] {
            if let Some(latency) = self.quantile(share) {
                write!(f, " {name}={:.1}ms", ms(latency))?;
            }
        }
        if self.missing > 0 {
            write!(f, " missing={}", self.missing)?;
        }
        Ok(())
    }
}

fn ms(latency: Duration) -> f64 {
    latency.as_secs_f64() * 1000.0
}

/// Rows committed at the source and not yet seen, in the order of their ids,
/// and the waits of those that were.
#[derive(Debug, Default)]
struct UnderWay {
    waiting: VecDeque<(i64, Instant)>,
    taken: Vec<Duration>,
}

/// A probe at work.
#[derive(Debug)]
pub struct Probe {
    inserter: JoinHandle<()>,
    poller: JoinHandle<()>,
    under_way: Arc<Mutex<UnderWay>>,
}

impl Probe {
    /// Inserts a row into `ledger_probe` at the source once in a period and
    /// waits for it on the target.
    pub fn start(source_url: &str, target_url: &str, period: Duration) -> Probe {
        let under_way = Arc::new(Mutex::new(UnderWay::default()));
        Probe {
            inserter: tokio::spawn(insert(source_url.to_owned(), period, under_way.clone())),
            poller: tokio::spawn(poll(target_url.to_owned(), under_way.clone())),
            under_way,
        }
    }

    /// The figures so far; [`Latency::missing`] are then rows still under way.
    pub fn latency(&self) -> Latency {
        self.latency_after(0)
    }

    /// How long the oldest row under way has waited by now: the lag, as users see it. None under way
    /// is no lag.
    pub fn lag(&self) -> Duration {
        let under_way = self.under_way.lock().unwrap_or_else(|poison| poison.into_inner());
        under_way.waiting.front().map_or(Duration::ZERO, |(_, acked)| acked.elapsed())
    }

    /// The figures without the first rows to arrive, this many: those of a stretch of time begin
    /// where [`Latency::count`] stood.
    pub fn latency_after(&self, rows: usize) -> Latency {
        let under_way = self.under_way.lock().unwrap_or_else(|poison| poison.into_inner());
        let mut sorted = under_way.taken.get(rows..).unwrap_or_default().to_vec();
        sorted.sort_unstable();
        Latency { sorted, missing: under_way.waiting.len() }
    }

    /// Inserts no more, gives the rows under way this long to arrive, and
    /// returns the figures.
    pub async fn stop(self, patience: Duration) -> Latency {
        self.inserter.abort();
        let started = Instant::now();
        while self.latency().missing > 0 && started.elapsed() < patience {
            tokio::time::sleep(POLL).await;
        }
        self.latency()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.inserter.abort();
        self.poller.abort();
    }
}

async fn insert(url: String, period: Duration, under_way: Arc<Mutex<UnderWay>>) {
    let mut pace = tokio::time::interval(period);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut session: Option<Client> = None;
    let mut id: Option<i64> = None;
    loop {
        pace.tick().await;
        let attempt = async {
            let client = match session.take() {
                Some(client) => client,
                None => postgres::connect(&url).await?,
            };
            // After a lost answer too: the row may be there or not.
            let next = match id {
                Some(id) => id + 1,
                None => {
                    client.query_one("select coalesce(max(id), 0) + 1 from ledger_probe", &[]).await?.get(0)
                }
            };
            id = None;
            client.execute("insert into ledger_probe(id) values ($1)", &[&next]).await?;
            let acked = Instant::now();
            id = Some(next);
            session = Some(client);
            under_way.lock().unwrap_or_else(|poison| poison.into_inner()).waiting.push_back((next, acked));
            anyhow::Ok(())
        };
        if attempt.await.is_err() {
            tokio::time::sleep(RECONNECT).await;
        }
    }
}

async fn poll(url: String, under_way: Arc<Mutex<UnderWay>>) {
    let mut session: Option<Client> = None;
    loop {
        let look = async {
            let client = match session.take() {
                Some(client) => client,
                None => postgres::connect(&url).await?,
            };
            let oldest = {
                let under_way = under_way.lock().unwrap_or_else(|poison| poison.into_inner());
                under_way.waiting.front().map(|&(id, _)| id)
            };
            if let Some(oldest) = oldest {
                // Ids are committed in order by one session, so what follows
                // the oldest arrives after it, unless order is lost: then the
                // wait is the oldest one's.
                let rows = client.query("select id from ledger_probe where id >= $1", &[&oldest]).await?;
                let seen = Instant::now();
                let seen_ids: std::collections::HashSet<i64> = rows.iter().map(|row| row.get(0)).collect();
                let mut under_way = under_way.lock().unwrap_or_else(|poison| poison.into_inner());
                let UnderWay { waiting, taken } = &mut *under_way;
                waiting.retain(|(id, acked)| {
                    let arrived = seen_ids.contains(id);
                    if arrived {
                        taken.push(seen.saturating_duration_since(*acked));
                    }
                    !arrived
                });
            }
            session = Some(client);
            anyhow::Ok(())
        };
        let pause = match look.await {
            Ok(()) => POLL,
            Err(_) => RECONNECT,
        };
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_rows() {
        let latency = Latency { sorted: (1..=100).map(Duration::from_millis).collect(), missing: 0 };
        assert_eq!(latency.p50_ms(), Some(50.0));
        assert_eq!(latency.p99_ms(), Some(99.0));
        assert_eq!(latency.quantile(1.0), Some(Duration::from_millis(100)));
        assert_eq!(Latency::default().p50_ms(), None);
    }
}
