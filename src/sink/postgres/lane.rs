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
//! A lane holds the progress row against nobody but who raises the epoch, and finds there whom it works for, and that this
//! is at the place before the chunk: so it is the same server, and no other that an address leads to meanwhile. Who claims
//! the target waits until every lane has ended, and a lane that begins later finds another epoch.
//!
//! Whoever applies stands in its transaction until the lanes have ended. So none of their answers may take long: what a lane
//! does not bring in within [`PATIENCE`], or waits for a lock for, is brought in by the session that applies, which is seen to wait.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{Instant, timeout};
use tokio_postgres::{Statement, error::SqlState, types::ToSql};

use super::{
    PostgresSinkConfig,
    guard::{Origin, number},
    known::{Chunk, Known},
    pipeline::Pipeline,
    session::{Backend, LANE, SETTINGS, lane_application, make_origin, set_lock_timeout, use_origin},
    trouble::{self, Attempt, Refusal, Trouble},
    wire::Timestamp,
};
use crate::{
    change::{Change, Ordered, Shape, copy_text},
    crash,
    fault::{Code, Fault, Result},
    names::{self, literal},
    position::{ApplyEpoch, Sequence},
    postgres::{Connection, catalog::server_facts, connect, fault_of},
    sink::{COPY_SESSIONS_MAX, ORIGINS_LEFT},
};

/// How long no lane is made after one failed.
const REST: Duration = Duration::from_secs(60);
/// How long one text may take a lane, or the end of its transaction. A text is some hundred kilobytes.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long making lanes may take, while the session that applies waits with its transaction.
const PATIENCE_TO_OPEN: Duration = Duration::from_secs(2);
/// How long a lane waits for one lock: not for one that the session that applies holds, and waits for it meanwhile.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);

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

/// Whom lanes work for: the session that holds the target.
#[derive(Clone, Copy)]
pub(super) struct Holder {
    pub(super) epoch: ApplyEpoch,
    pub(super) backend: Backend,
}

impl Holder {
    /// Requires that a server shows it: an address may lead to another one by now, where nothing is to be made.
    async fn require_seen(self, config: &PostgresSinkConfig, connection: &Connection) -> Result<()> {
        let seen = "SELECT EXISTS (SELECT FROM landfall.progress
                                    WHERE link = $1 AND stream = $2 AND apply_epoch = $3 AND session_pid = $4
                                      AND session_start = $5)";
        let (link, Self { epoch, backend }) = (config.from.as_str(), self);
        let seen = connection
            .query_one(seen, &[&link, &config.stream, &epoch.0, &backend.pid, &backend.start])
            .await
            .map_err(|error| fault_of(&error).at("look for the session that applies"))?;
        if seen.get(0) {
            return Ok(());
        }
        let message = format!("{} does not show the session that applies", config.address);
        Err(Fault::new(Code::Superseded, message))
    }
}

/// What is true of all texts of a chunk.
#[derive(Clone, Copy)]
pub(super) struct OfChunk<'a> {
    pub(super) shape: &'a Arc<Shape>,
    /// Where the progress is until the chunk counts.
    pub(super) after: Sequence,
    /// Rows with their keys may be there already.
    pub(super) replaces: bool,
    pub(super) origin: Option<Origin>,
}

/// The lanes there are, made when there is something for them to do.
#[derive(Default)]
pub(super) struct Lanes {
    open: Vec<Lane>,
    /// None is made since then, for a while.
    rests: Option<Instant>,
    /// The sessions of those that failed: they may be at work yet.
    failed: Vec<Backend>,
}

impl Lanes {
    /// Takes the lanes out, so many at most; makes those that are missing.
    pub(super) async fn take(
        &mut self,
        config: &Arc<PostgresSinkConfig>,
        holder: Holder,
        wanted: usize,
    ) -> Vec<Lane> {
        self.open.retain(|lane| !lane.connection.is_closed());
        if self.rests.is_some_and(|since| since.elapsed() < REST) {
            return Vec::new();
        }
        let wanted = wanted.min(usize::from(config.copy_sessions).saturating_sub(1));
        if self.open.len() < wanted {
            let opened = match timeout(PATIENCE_TO_OPEN, self.open_more(config, holder, wanted)).await {
                Ok(opened) => opened,
                Err(_) => Err(Fault::new(Code::TargetBusy, "no further session within two seconds")),
            };
            if let Err(fault) = opened {
                tracing::warn!(%fault, next = fault.remedy(), "a backfill's rows come in by fewer sessions");
                self.rest();
            }
        }
        let kept = self.open.len().saturating_sub(wanted);
        self.open.split_off(kept)
    }

    async fn open_more(
        &mut self,
        config: &Arc<PostgresSinkConfig>,
        holder: Holder,
        wanted: usize,
    ) -> Result<()> {
        for number in LANE + 1..COPY_SESSIONS_MAX {
            if self.open.len() == wanted {
                return Ok(());
            }
            if self.open.iter().all(|lane| lane.number != number) {
                self.open.extend(Lane::open(config, holder, number).await?);
            }
        }
        if self.open.len() == wanted {
            return Ok(());
        }
        Err(Fault::new(Code::TargetBusy, "somebody else uses the link's replication origins"))
    }

    /// Puts one back that is at rest.
    pub(super) fn put(&mut self, lane: Lane) {
        self.open.push(lane);
    }

    /// One came to nothing.
    pub(super) fn give_up(&mut self, lane: Lane) {
        self.failed.push(lane.backend);
        self.rest();
    }

    /// None is made for a while, and those that there are have nothing to do.
    pub(super) fn rest(&mut self) {
        self.rests = Some(Instant::now());
    }

    /// The sessions of those that failed since the last call.
    pub(super) fn take_failed(&mut self) -> Vec<Backend> {
        std::mem::take(&mut self.failed)
    }

    /// Nothing is copied any more.
    pub(super) fn close(&mut self) {
        self.open.clear();
    }
}

/// A session that brings in texts of chunks.
pub(super) struct Lane {
    number: u16,
    backend: Backend,
    config: Arc<PostgresSinkConfig>,
    connection: Connection,
    guard: Statement,
    /// When the holder's backend began: process ids return.
    holder_start: Timestamp,
    known: Known,
}

impl Lane {
    /// None where its origin is in use.
    async fn open(config: &Arc<PostgresSinkConfig>, holder: Holder, number: u16) -> Result<Option<Self>> {
        let connection = connect(&config.address, &lane_application(config, number)).await?;
        let doing = |error: tokio_postgres::Error| fault_of(&error).at("set up a session that copies");
        let backend = Backend::of(&connection).await?;
        connection.batch_execute(SETTINGS).await.map_err(doing)?;
        set_lock_timeout(&connection, config.lock_timeout.min(LOCK_TIMEOUT)).await?;
        holder.require_seen(config, &connection).await?;
        require_room(&connection, &names::origin(&config.from, &config.stream, number)).await?;
        let origin = make_origin(config, &connection, number).await?;
        match use_origin(&connection, &origin).await {
            Err(error) if error.code() == Some(&SqlState::OBJECT_IN_USE) => return Ok(None),
            used => used.map_err(doing)?,
        }
        let guard = format!(
            "SELECT 1 / count(*), pg_replication_origin_xact_setup($1, $2)
               FROM (SELECT FROM landfall.progress
                      WHERE link = {} AND stream = {} AND lane = {LANE} AND apply_epoch = {}
                        AND session_pid = {} AND session_start = $3 AND sequence = $4
                        FOR KEY SHARE) held",
            literal(config.from.as_str()),
            literal(&config.stream),
            holder.epoch.0,
            holder.backend.pid,
        );
        let start = holder.backend.start;
        let guard = connection.prepare(&guard).await.map_err(doing)?;
        let (config, known) = (config.clone(), Known::default());
        Ok(Some(Self { number, backend, config, connection, guard, holder_start: start, known }))
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
        within(PATIENCE, self.begin(of)).await?;
        let mut next = Some(first);
        while let Some(text) = next {
            within(PATIENCE, self.bring_one(&text.change, of)).await?;
            next = texts.take();
            taken.extend(next);
        }
        within(PATIENCE, self.commit()).await?;
        crash::point("apply.lane_committed");
        Ok(())
    }

    async fn begin(&self, of: OfChunk<'_>) -> Attempt<()> {
        let mut pipeline = Pipeline::default();
        let parameters: [Box<dyn ToSql + Send + Sync>; 4] = [
            Box::new(of.origin.map(|it| it.end)),
            Box::new(of.origin.map(|it| it.time)),
            Box::new(self.holder_start),
            Box::new(number(of.after)?),
        ];
        pipeline.send(async { self.connection.batch_execute("BEGIN").await.map(|()| 0) }).await;
        pipeline.send(self.connection.execute_raw(&self.guard, parameters)).await;
        for _ in 0..2 {
            pipeline.answer().await.map_err(|error| trouble::of_guard(&error))?;
        }
        Ok(())
    }

    async fn commit(&self) -> Attempt<()> {
        self.connection.batch_execute("COMMIT").await.map_err(|error| trouble::of_rows(&error))
    }

    async fn bring_one(&mut self, change: &Change, of: OfChunk<'_>) -> Attempt<()> {
        let Change::Chunk { text, rows, .. } = change else { return Ok(()) };
        self.known.look_at(&self.connection, &[of.shape]).await?;
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

/// Requires that an origin is there, or that one may be made and leaves enough to others.
async fn require_room(connection: &Connection, origin: &str) -> Result<()> {
    let server = server_facts(connection).await?;
    let (used, most) = (server.origins.len() as i64, server.origins_max);
    if server.origins.iter().any(|it| it == origin) || used + 1 + ORIGINS_LEFT <= most {
        return Ok(());
    }
    let message =
        format!("{used} of {most} replication origins exist, and {ORIGINS_LEFT} are left to other links");
    Err(Fault::new(Code::TargetBusy, message).remedied_by(
        "raise max_replication_slots (from PostgreSQL 18 on: max_active_replication_origins) and restart the \
         server, or have fewer `copy_sessions`",
    ))
}

async fn within(patience: Duration, work: impl Future<Output = Attempt<()>>) -> Attempt<()> {
    let too_long = |_| {
        let message = format!("a session that copies did not answer for {} s", patience.as_secs());
        Trouble::Fault(Fault::new(Code::TargetBusy, message))
    };
    timeout(patience, work).await.map_err(too_long).and_then(|done| done)
}
