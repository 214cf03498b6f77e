//! Sessions beside the one that applies, for the rows of a chunk.
//!
//! A chunk's texts hold different rows of one table that is being filled, and say of each what it is at one place of the
//! stream. So they may come in any order, each for itself, and before the progress does: the commit that moves it is made
//! when every text is in. Where that never happens the chunk is next again, and its rows take the place of those that
//! came.
//!
//! ```text
//!  apply   begin, progress ── text 1 ── text 3 ── text 4 ──── commit
//!  lane 1       begin, epoch ── text 2 ── text 5 ── commit ┘
//! ```
//!
//! A lane holds the progress row against nobody but who raises the epoch: it is held back until every lane has ended,
//! and a lane that begins later finds another epoch than its own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;
use tokio_postgres::{Statement, types::ToSql};

use super::{
    PostgresSinkConfig,
    guard::Origin,
    known::{Chunk, Known},
    pipeline::Pipeline,
    session::{LANE, SETTINGS, lane_application, make_origin, use_origin},
    trouble::{self, Attempt, Refusal, Trouble},
};
use crate::{
    change::{Change, Ordered, Shape, copy_text},
    crash,
    fault::Result,
    names::literal,
    position::ApplyEpoch,
    postgres::{Connection, connect, fault_of},
};

/// How long no lane is made after one failed.
const REST: Duration = Duration::from_secs(60);

/// Texts of a chunk, for whoever is free.
pub(super) struct Texts<'a> {
    changes: &'a [Ordered],
    taken: AtomicUsize,
}

impl<'a> Texts<'a> {
    pub(super) fn new(changes: &'a [Ordered]) -> Self {
        Self { changes, taken: AtomicUsize::new(0) }
    }

    /// The next that nobody has taken.
    pub(super) fn take(&self) -> Option<&'a Ordered> {
        self.changes.get(self.taken.fetch_add(1, Relaxed))
    }

    /// Nobody takes another.
    pub(super) fn stop(&self) {
        self.taken.store(self.changes.len(), Relaxed);
    }
}

/// What is true of all texts of a chunk.
#[derive(Clone, Copy)]
pub(super) struct OfChunk<'a> {
    pub(super) shape: &'a Arc<Shape>,
    /// Rows with their keys may be there already.
    pub(super) replaces: bool,
    pub(super) origin: Option<Origin>,
}

/// The lanes there are, made when there is something for them to do.
#[derive(Default)]
pub(super) struct Lanes {
    open: Vec<Lane>,
    /// When one failed last.
    failed: Option<Instant>,
}

impl Lanes {
    /// Takes the lanes out, so many at most; makes those that are missing.
    pub(super) async fn take(
        &mut self,
        config: &Arc<PostgresSinkConfig>,
        epoch: ApplyEpoch,
        wanted: usize,
    ) -> Vec<Lane> {
        self.open.retain(|lane| !lane.connection.is_closed());
        let wanted = wanted.min(usize::from(config.copy_sessions).saturating_sub(1));
        let rests = self.failed.is_some_and(|since| since.elapsed() < REST);
        while self.open.len() < wanted && !rests {
            let is_free = |number: &u16| self.open.iter().all(|lane| lane.number != *number);
            let number = (LANE + 1..).find(is_free).expect("there are more numbers than lanes");
            match Lane::open(config, epoch, number).await {
                Ok(lane) => self.open.push(lane),
                Err(fault) => {
                    tracing::warn!(%fault, next = fault.remedy(), "a backfill's rows come in by fewer sessions");
                    self.failed = Some(Instant::now());
                    break;
                }
            }
        }
        let kept = self.open.len().saturating_sub(wanted);
        self.open.split_off(kept)
    }

    /// Puts one back that is at rest.
    pub(super) fn put(&mut self, lane: Lane) {
        self.open.push(lane);
    }

    /// One came to nothing and is gone.
    pub(super) fn note_failure(&mut self) {
        self.failed = Some(Instant::now());
    }

    /// Nothing is copied any more.
    pub(super) fn close(&mut self) {
        self.open.clear();
    }
}

/// A session that brings in texts of chunks.
pub(super) struct Lane {
    number: u16,
    config: Arc<PostgresSinkConfig>,
    epoch: ApplyEpoch,
    connection: Connection,
    guard: Statement,
    known: Known,
}

impl Lane {
    async fn open(config: &Arc<PostgresSinkConfig>, epoch: ApplyEpoch, number: u16) -> Result<Self> {
        let connection = connect(&config.address, &lane_application(config, number)).await?;
        let doing = |error: tokio_postgres::Error| fault_of(&error).at("set up a session that copies");
        connection.batch_execute(SETTINGS).await.map_err(doing)?;
        let wait = format!("SET lock_timeout = {}", config.lock_timeout.as_millis());
        connection.batch_execute(&wait).await.map_err(doing)?;
        let origin = make_origin(config, &connection, number).await?;
        use_origin(&connection, &origin).await.map_err(doing)?;
        let guard = format!(
            "SELECT 1 / count(*), pg_replication_origin_xact_setup($2, $3)
               FROM (SELECT FROM landfall.progress
                      WHERE link = {} AND stream = {} AND lane = {LANE} AND apply_epoch = $1 FOR KEY SHARE) held",
            literal(config.from.as_str()),
            literal(&config.stream),
        );
        let guard = connection.prepare(&guard).await.map_err(doing)?;
        Ok(Self { number, config: config.clone(), epoch, connection, guard, known: Known::default() })
    }

    /// Brings in what it can take of a chunk's texts, in one transaction; `taken` is what it took. Where it fails,
    /// nothing of it has come, unless the answer to its commit was lost.
    pub(super) async fn bring<'a>(
        &mut self,
        texts: &Texts<'a>,
        of: OfChunk<'_>,
        taken: &mut Vec<&'a Ordered>,
    ) -> Attempt<()> {
        let Some(first) = texts.take() else { return Ok(()) };
        taken.push(first);
        self.begin(of.origin).await?;
        let mut next = Some(first);
        while let Some(text) = next {
            self.bring_one(&text.change, of).await?;
            next = texts.take();
            taken.extend(next);
        }
        self.connection.batch_execute("COMMIT").await.map_err(|error| trouble::of_rows(&error))?;
        crash::point("apply.lane_committed");
        Ok(())
    }

    async fn begin(&self, origin: Option<Origin>) -> Attempt<()> {
        let mut pipeline = Pipeline::default();
        let parameters: [Box<dyn ToSql + Send + Sync>; 3] =
            [Box::new(self.epoch.0), Box::new(origin.map(|it| it.end)), Box::new(origin.map(|it| it.time))];
        pipeline.send(async { self.connection.batch_execute("BEGIN").await.map(|()| 0) }).await;
        pipeline.send(self.connection.execute_raw(&self.guard, parameters)).await;
        for _ in 0..2 {
            pipeline.answer().await.map_err(|error| trouble::of_guard(&error))?;
        }
        Ok(())
    }

    async fn bring_one(&mut self, change: &Change, of: OfChunk<'_>) -> Attempt<()> {
        let Change::Chunk { text, rows, .. } = change else { return Ok(()) };
        self.known.look_at(&self.connection, of.shape).await?;
        let former = if of.replaces { copy_text::rows(text) } else { Vec::new() };
        let chunk = Chunk { text, rows: u64::from(*rows), former: &former, replace: &[] };
        for action in self.known.make_chunk_ready(&self.connection, of.shape, chunk).await? {
            let touched = action.run(&self.connection, &self.config).await;
            let touched = touched.map_err(|error| trouble::of_rows(&error))?;
            if let Some(expected) = action.expected().filter(|expected| *expected != touched) {
                return Err(Trouble::Differs(Refusal::count(expected, touched)));
            }
        }
        Ok(())
    }
}
