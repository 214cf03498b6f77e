//! Sessions that write until they are told to stop, and what tests that throw dice share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use rand::{SeedableRng, rngs::StdRng};
use tokio::task::JoinHandle;

use crate::{Region, wait::eventually};

/// The seed of this run: `LANDFALL_SEED`, or a new one. Printed, so that a run can be repeated.
pub fn seed() -> u64 {
    let seed = std::env::var("LANDFALL_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(rand::random);
    println!("seed {seed}");
    seed
}

/// Writers at work.
pub struct Writers {
    stop: Arc<AtomicBool>,
    statements: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<Written>>,
}

/// What writers did.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Statements that went through.
    pub statements: u64,
    /// Those that did not, with the server's words.
    pub refused: Vec<String>,
}

impl Writers {
    /// Starts `count` of them. Each runs one statement after the other: what `statement` makes of its number, of how
    /// many went through so far, and of the dice.
    pub async fn start(
        region: &Region,
        count: u64,
        seed: u64,
        pause: Duration,
        statement: impl Fn(u64, u64, &mut StdRng) -> String + Clone + Send + 'static,
    ) -> Result<Self> {
        let (stop, statements) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = Vec::new();
        for writer in 0..count {
            let client = region.connect().await?;
            let (stop, all, statement) = (Arc::clone(&stop), Arc::clone(&statements), statement.clone());
            let mut random = StdRng::seed_from_u64(seed ^ writer);
            tasks.push(tokio::spawn(async move {
                let mut written = Written::default();
                while !stop.load(Ordering::Relaxed) {
                    let statement = statement(writer, written.statements, &mut random);
                    match client.batch_execute(&statement).await {
                        Ok(()) => {
                            written.statements += 1;
                            all.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => written.refused.push(format!("{error:?}: {statement}")),
                    }
                    tokio::time::sleep(pause).await;
                }
                written
            }));
        }
        Ok(Self { stop, statements, tasks })
    }

    /// Ends them, once so many statements went through: on a busy machine they take their time.
    ///
    /// # Errors
    /// Where they do not within `patience`.
    pub async fn stop_after(self, enough: u64, patience: Duration) -> Result<Written> {
        eventually(patience, "enough is written", async || {
            Ok(self.statements.load(Ordering::Relaxed) > enough)
        })
        .await?;
        self.stop().await
    }

    /// Ends them; all they did.
    pub async fn stop(self) -> Result<Written> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Written::default();
        for task in self.tasks {
            let written = task.await?;
            all.statements += written.statements;
            all.refused.extend(written.refused);
        }
        Ok(all)
    }
}
