//! How long a committed row takes until a reader at the target sees it.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use testbed::postgres;

use super::site::{SOURCE, Site};

/// Between two looks at the target: the resolution, with the look itself. A tenth of what is measured.
const LOOK: Duration = Duration::from_micros(100);
/// What comes first and does not count.
const WARM: Duration = Duration::from_secs(2);
/// How long the last rows may take.
const TAIL: Duration = Duration::from_secs(30);

/// The waits of all rows, in milliseconds, ascending.
#[derive(Clone, Debug, Default)]
pub struct Latency(pub Vec<f64>);

impl Latency {
    /// The wait that this share of the rows did not exceed.
    pub fn quantile(&self, share: f64) -> f64 {
        let rank = (share * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }
}

/// Inserts so many rows a second into `probe` for some time, each a transaction, and watches them arrive.
pub async fn measure(site: &Site<'_>, database: &str, per_second: f64, time: Duration) -> Result<Latency> {
    let committed: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let done = Arc::new(AtomicBool::new(false));
    let seen = Arc::new(AtomicI64::new(0));
    let client = site.source.connect(SOURCE).await?;
    let row = client.query_one("select coalesce(max(id), 0) from probe", &[]).await?;
    let first: i64 = row.get(0);

    // A thread of its own: a timer of tokio's rounds up to a millisecond.
    let looker = std::thread::spawn({
        let (url, done, committed) = (site.target.url(database), done.clone(), committed.clone());
        let seen = seen.clone();
        move || look(&url, first, &done, &committed, &seen)
    });

    let insert = client.prepare("insert into probe (id) values ($1)").await?;
    let began = Instant::now();
    let warm = (per_second * WARM.as_secs_f64()) as i64;
    let rows = warm + (per_second * time.as_secs_f64()) as i64;
    for at in 0..rows {
        let due = began + Duration::from_secs_f64(at as f64 / per_second);
        tokio::time::sleep_until(due.into()).await;
        client.execute(&insert, &[&(first + at + 1)]).await.context("insert a row")?;
        committed.lock().map_err(|_| anyhow!("the looker died"))?.push(Instant::now());
    }
    let last = Instant::now();
    while seen.load(Ordering::Relaxed) < rows && last.elapsed() < TAIL && !looker.is_finished() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    done.store(true, Ordering::Relaxed);
    let mut waits = looker.join().map_err(|_| anyhow!("the looker died"))??;
    anyhow::ensure!(waits.len() as i64 == rows, "{} of {rows} rows arrived at {database}", waits.len());
    // A contender that has just been started is not what is measured.
    waits.drain(..warm as usize);
    waits.sort_by(f64::total_cmp);
    Ok(Latency(waits))
}

/// Looks at the target until all rows are seen; a row's wait ends when its id is no larger than the largest.
/// Nobody looks while nothing is under way: on two cores the looking itself would be what is measured.
fn look(
    url: &str,
    first: i64,
    done: &AtomicBool,
    committed: &Mutex<Vec<Instant>>,
    seen: &AtomicI64,
) -> Result<Vec<f64>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = postgres::connect(url).await?;
        let statement = client.prepare("select coalesce(max(id), 0) from probe").await?;
        let mut waits = Vec::new();
        // Seen before the writer heard of its own commit: counted once it has.
        let mut arrived: Vec<Instant> = Vec::new();
        while !done.load(Ordering::Relaxed) {
            let outstanding = committed.lock().map_err(|_| anyhow!("the writer died"))?.len() > waits.len();
            if outstanding {
                let largest: i64 = client.query_one(&statement, &[]).await?.get(0);
                let now = Instant::now();
                arrived.resize((largest - first).max(0) as usize, now);
                let known = committed.lock().map_err(|_| anyhow!("the writer died"))?;
                while waits.len() < arrived.len().min(known.len()) {
                    let at = waits.len();
                    waits.push(arrived[at].saturating_duration_since(known[at]).as_secs_f64() * 1e3);
                }
                drop(known);
                seen.store(waits.len() as i64, Ordering::Relaxed);
            }
            std::thread::sleep(LOOK);
        }
        Ok(waits)
    })
}
