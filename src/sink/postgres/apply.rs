//! Batches into target transactions.
//!
//! ```text
//!  whole frames ▶ plan ▶ one transaction, pipelined ▶ every count as expected? ▶ commit
//!                           │                         (of a few rows the server asks, and nobody waits in between)
//!                           │ deadlock, lock: again        │ no, or a row refused
//!                           │ table changed: look again    ▼
//!                           ├──────────────▶ redo: each source transaction its own, change by change
//!                           └ some do not fit their table: the same, up to the first of those
//!  a slice     ▶ plan ▶ savepoint, statements ▶ as expected? ▶ keep open, or progress and commit
//! ```

mod alone;
mod attend;
mod beside;
mod blocker;
mod joining;
mod park;
mod slice;
mod stale;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

pub(super) use self::park::Condemned;
use self::{
    blocker::{ask_blocker, watch, with_blocker},
    park::Why,
};
use super::{
    PostgresSinkConfig,
    flusher::Flusher,
    guard::{Guard, Move, Origin},
    known::{Known, Ready},
    lane::Lanes,
    parked::Kept,
    pipeline::Pipeline,
    session::{Backend, Held},
    trouble::{self, Attempt, Refusal, Trouble},
    wire::AsText,
};
use crate::{
    change::{Cell, Change, Mark, Shape},
    crash,
    fault::{Code, Fault, Result},
    plan::{Joining, parked::ParkedId},
    position::{Position, Sequence},
    postgres::{Connection, fault_of},
    progress::Heartbeat,
    sink::{Applied, Batch, Grouping, Step},
};

/// Deadlocks and serialization failures in a row before the caller is told: each attempt yields to
/// whoever won, so more than a few mean that something else is wrong.
const ATTEMPTS_MAX: u32 = 5;
/// Lock timeouts in a row before the caller is told: each has waited for `lock_timeout` already.
const LOCK_ATTEMPTS_MAX: u32 = 2;

/// A held target, and everything known of it.
pub(super) struct Session {
    config: Arc<PostgresSinkConfig>,
    connection: Connection,
    backend: Backend,
    guard: Guard,
    known: Known,
    committed: Sequence,
    flushed: Sequence,
    /// When the first commit that is not known to be flushed was made.
    unflushed_since: Option<Instant>,
    flusher: Flusher,
    /// The sessions beside this one.
    lanes: Lanes,
    /// Tables being filled that may hold rows of the chunk in hand already: a lane has brought some.
    brought: HashSet<String>,
    open: Option<Open>,
    /// What the transaction that is open marks, for when it is committed.
    marked: Vec<(String, Mark)>,
    /// Tables being filled that may hold rows of chunks to come: one was inserted since they were emptied.
    touched: HashSet<String>,
    /// What is parked.
    kept: Kept,
    /// The transaction that is open has overtaken some of it.
    overtakes: bool,
    /// A transaction larger than memory that is to be parked.
    condemned: Option<Condemned>,
    /// There was no time for everything that was asked for, at this moment.
    in_arrears: Option<Instant>,
    /// What of it met a lock, and is not tried before this moment.
    busy: HashMap<ParkedId, Instant>,
    /// The transactions of the batch in hand that were kept aside,
    aside: Vec<Position>,
    /// and why those were that the target refuses.
    refused: Vec<Fault>,
}

/// A target transaction that stays open from slice to slice.
struct Open {
    after: Sequence,
    heartbeat: Option<Heartbeat>,
    /// Where its changes are kept aside: as which parked transaction, and why.
    aside: Option<(ParkedId, Why)>,
    /// The shapes its slices brought so far.
    shapes: Vec<Arc<Shape>>,
}

/// One target transaction's worth of whole frames.
#[derive(Clone, Copy)]
struct Group<'a> {
    steps: &'a [Step],
    shapes: &'a [Arc<Shape>],
    to: Move,
}

impl<'a> Group<'a> {
    fn of(batch: &'a Batch) -> Self {
        let to = Move {
            incarnation: batch.incarnation,
            after: batch.after,
            through: batch.through,
            heartbeat: batch.heartbeat,
            grouped: batch.steps.len() > 1,
        };
        Self { steps: &batch.steps, shapes: &batch.shapes, to }
    }

    /// Each source transaction alone. The last goes as far as the group does, and carries what the
    /// group has only once.
    fn split(self) -> Vec<Self> {
        let mut parts = Vec::with_capacity(self.steps.len());
        let mut rest = Some(self);
        while let Some(group) = rest {
            let (alone, behind) = group.split_at(1);
            parts.push(alone);
            rest = behind;
        }
        parts
    }

    /// The first `count` source transactions, and the rest where there is one.
    fn split_at(self, count: usize) -> (Self, Option<Self>) {
        if count >= self.steps.len() {
            return (self, None);
        }
        let (steps, behind) = self.steps.split_at(count);
        let through = steps.last().expect("some are taken").through;
        let to = Move { through, heartbeat: None, grouped: steps.len() > 1, ..self.to };
        let rest_to = Move { after: through.sequence, grouped: behind.len() > 1, ..self.to };
        let head = Self { steps, shapes: self.shapes, to };
        (head, Some(Self { steps: behind, shapes: &[], to: rest_to }))
    }

    fn position(&self) -> Option<Position> {
        self.steps.last().map(|step| step.frame.head.position)
    }

    /// That of the last source transaction.
    fn origin(&self) -> Option<Origin> {
        let time = self.steps.last().map(|step| step.frame.head.time);
        Origin::of(self.position().or(self.to.through.position), time)
    }
}

impl Session {
    pub(super) async fn new(
        config: Arc<PostgresSinkConfig>,
        held: Held,
        condemned: Option<Condemned>,
    ) -> Result<Self> {
        let guard = Guard::prepare(&held.connection, &config, held.epoch).await?;
        // The claim's own commit was synchronous: what its progress says is flushed.
        let committed = held.progress.map_or(Sequence(0), |progress| progress.through.sequence);
        // Whether something was inserted before this session, nobody knows.
        let touched = held.joining.keys().cloned().collect();
        let known = Known::new(held.joining);
        Ok(Self {
            config,
            connection: held.connection,
            backend: held.backend,
            guard,
            known,
            committed,
            flushed: committed,
            unflushed_since: None,
            flusher: Flusher::default(),
            lanes: Lanes::default(),
            brought: HashSet::new(),
            open: None,
            marked: Vec::new(),
            touched,
            kept: held.kept,
            overtakes: false,
            condemned,
            in_arrears: None,
            busy: HashMap::new(),
            aside: Vec::new(),
            refused: Vec::new(),
        })
    }

    fn client(&self) -> &Client {
        &self.connection
    }

    pub(super) async fn apply(&mut self, batch: &Batch) -> Result<Applied> {
        refuse_encrypted(batch)?;
        self.aside.clear();
        self.refused.clear();
        let whole = batch.steps.iter().all(|step| step.frame.is_whole());
        let redone = match (&self.open, &batch.steps[..]) {
            (None, _) if whole => self.apply_whole(batch).await?,
            (open, [step]) if !whole && open.is_none() == step.frame.first => {
                self.apply_slice(batch, step).await?
            }
            _ => {
                let message = "a batch is neither whole frames, with no transaction open, nor the next slice";
                return Err(Fault::new(Code::Internal, message));
            }
        };
        if self.known.joining.is_empty() {
            self.lanes.close();
        }
        self.flush_beside().await?;
        Ok(Applied {
            flushed: self.flushed,
            redone,
            joining: self.known.joining.len(),
            parked: self.kept.transactions.len(),
            aside: std::mem::take(&mut self.aside),
            refused: std::mem::take(&mut self.refused),
        })
    }

    /// The transaction that ended this session, where it is to be parked by the next.
    pub(super) fn condemned(self) -> Option<Condemned> {
        self.condemned
    }

    /// Has flushed what was committed `flush_interval` ago: nobody asks for it while batch follows batch.
    async fn flush_beside(&mut self) -> Result<()> {
        self.note_flushed().await;
        let is_due = self.unflushed_since.is_some_and(|since| since.elapsed() >= self.config.flush_interval);
        if !is_due {
            return Ok(());
        }
        if self.flusher.begin(&self.config, (self.guard.epoch(), self.committed)) {
            return Ok(());
        }
        // Nobody flushes beside us: this session waits for the disk itself, and is seen to be at work.
        if self.open.is_none() {
            self.touch().await.map_err(into_fault)?;
            self.note_all_flushed();
        }
        Ok(())
    }

    /// Commits a transaction that changes nothing where something is unflushed.
    pub(super) async fn flush(&mut self) -> Result<Sequence> {
        self.note_flushed().await;
        if self.open.is_some() || self.committed == self.flushed {
            self.run("SELECT 1").await?;
            return Ok(self.flushed);
        }
        self.touch().await.map_err(into_fault)?;
        self.note_all_flushed();
        Ok(self.flushed)
    }

    /// A transaction that proves we still hold the target, with a synchronous commit. Where the guard fails,
    /// what the server makes of the COMMIT behind it is a rollback.
    async fn touch(&self) -> Attempt<()> {
        let mut pipeline = Pipeline::default();
        pipeline.send(self.simple("BEGIN; SET LOCAL synchronous_commit = on")).await;
        pipeline.send(self.guard.touch(self.client(), self.committed)?).await;
        pipeline.send(self.simple("COMMIT")).await;
        for _ in 0..3 {
            pipeline.answer().await.map_err(|error| trouble::of_guard(&error))?;
        }
        Ok(())
    }

    pub(super) async fn abandon(&mut self) -> Result<()> {
        self.condemned = None;
        if let Some(open) = self.open.take() {
            self.marked.clear();
            self.touched.extend(self.brought.drain());
            self.run("ROLLBACK").await?;
            if open.aside.is_some() {
                self.read_parked().await?;
            }
        }
        Ok(())
    }

    async fn run(&self, sql: &str) -> Result<()> {
        self.client().batch_execute(sql).await.map_err(|error| fault_of(&error))
    }

    fn note_commit(&mut self, through: Sequence) {
        if through < self.committed {
            // Begun behind an end that the log has lost: what was flushed before says nothing of these numbers.
            self.flushed = Sequence(0);
        }
        self.committed = through;
        self.brought.clear();
        self.unflushed_since.get_or_insert_with(Instant::now);
        for (table, mark) in self.marked.drain(..) {
            // A table that keeps its rows may hold any of them.
            match mark {
                Mark::Stale => drop(self.touched.insert(table.clone())),
                Mark::Wait | Mark::Begin | Mark::Snapshot | Mark::Done | Mark::Settled => {
                    self.touched.remove(&table);
                }
            }
            match mark {
                Mark::Wait => drop(self.known.joining.insert(table, Joining::Waiting)),
                Mark::Begin => drop(self.known.joining.insert(table, Joining::Copying)),
                Mark::Stale => drop(self.known.joining.insert(table, Joining::Stale)),
                Mark::Snapshot => drop(self.known.joining.insert(table, Joining::Snapshot)),
                Mark::Done | Mark::Settled => drop(self.known.joining.remove(&table)),
            }
        }
    }

    async fn note_flushed(&mut self) {
        if let Some(flushed) = self.flusher.flushed().await {
            self.flushed = self.flushed.max(flushed.through);
            self.unflushed_since = (self.flushed < self.committed).then_some(flushed.since);
        }
    }

    /// A commit of this session waited for the disk.
    fn note_all_flushed(&mut self) {
        self.flushed = self.committed;
        self.unflushed_since = None;
    }

    async fn apply_whole(&mut self, batch: &Batch) -> Result<bool> {
        let whole = Group::of(batch);
        match batch.grouping {
            Grouping::Many => self.apply_run(whole).await,
            Grouping::One => {
                let mut redone = false;
                for alone in whole.split() {
                    redone |= self.apply_run(alone).await?;
                }
                Ok(redone)
            }
        }
    }

    /// Applies what waits behind nothing, as much at once as there is, and parks what does.
    async fn apply_run(&mut self, group: Group<'_>) -> Result<bool> {
        let (mut rest, mut redone) = (Some(group), false);
        while let Some(group) = rest.take() {
            if self.kept.rows.is_empty() || group.steps.iter().any(Step::is_copy) || group.steps.is_empty() {
                return Ok(self.apply_group(group).await? || redone);
            }
            let head;
            match self.count_free(group.steps).await? {
                0 => {
                    (head, rest) = group.split_at(1);
                    self.each_alone(head).await?;
                }
                free => {
                    (head, rest) = group.split_at(free);
                    redone |= self.apply_group(head).await?;
                }
            }
        }
        Ok(redone)
    }

    /// One target transaction, or where it does not go through, one for each of its frames.
    async fn apply_group(&mut self, group: Group<'_>) -> Result<bool> {
        if group.steps.iter().any(Step::is_copy) {
            return self.each_alone(group).await.map(|()| false);
        }
        let (mut attempt, mut looked_again) = (1, false);
        loop {
            match self.try_group(&group).await {
                Ok(()) => return Ok(false),
                Err(Trouble::Stale(_)) if !looked_again => {
                    looked_again = true;
                    self.known.forget();
                }
                Err(Trouble::Stale(_) | Trouble::Differs(_)) => return self.redo(group).await,
                // The source's table was altered between two of them: those before it fit, and are not to wait.
                Err(Trouble::Fault(fault)) if fault.code() == Code::TableDiffers && group.steps.len() > 1 => {
                    return self.redo(group).await;
                }
                Err(trouble) => wait_or_fail(trouble, &mut attempt).await?,
            }
        }
    }

    async fn try_group(&mut self, group: &Group<'_>) -> Attempt<()> {
        self.note_touched(group.steps);
        let config = self.config.clone();
        let ask = ask_blocker(&config, self.backend.pid);
        // A statement is prepared behind whoever has the table locked.
        let making = self.known.make_ready(&self.connection, group.steps, true);
        let (ready, blocker) = watch(making, config.lock_timeout / 2, ask).await;
        let ready = ready.map_err(|trouble| with_blocker(trouble, blocker))?;
        if ready.iter().all(Ready::is_counted) {
            let (committed, blocker) = self.watched(self.at_once(group, &ready)).await;
            drop(ready);
            committed.map_err(|trouble| with_blocker(trouble, blocker))?;
            self.note_commit(group.to.through.sequence);
            return Ok(());
        }
        let (answered, blocker) = self.watched(self.in_transaction(group, &ready)).await;
        if let Err(trouble) = answered {
            // Nothing is lost where this fails: so does whatever comes next.
            let _ = self.run("ROLLBACK").await;
            return Err(with_blocker(trouble, blocker));
        }
        self.commit(group).await
    }

    /// The whole of a transaction whose rows the server counts. Its end is sent right behind them: where one of them
    /// failed, it is a rollback.
    async fn at_once(&self, group: &Group<'_>, ready: &[Ready<'_>]) -> Attempt<()> {
        let mut pipeline = Pipeline::default();
        let own = self.send_head(&mut pipeline, group).await?;
        crash_behind("apply.mid_batch").await;
        for action in ready {
            self.send(&mut pipeline, action).await;
        }
        crash_behind("apply.before_commit").await;
        let lacks_any = pipeline.lacks_any();
        pipeline.send(self.simple(if lacks_any { "ROLLBACK" } else { "COMMIT" })).await;
        crash_behind("apply.commit_sent").await;
        answers(&mut pipeline, own, ready).await?;
        pipeline.answer().await.map_err(|error| trouble::of_rows(&error))?;
        crash::point("apply.after_commit");
        Ok(())
    }

    /// Everything of a transaction but its end, sent without waiting in between but before a copy. Returns once every
    /// statement has touched what it holds.
    async fn in_transaction(&self, group: &Group<'_>, ready: &[Ready<'_>]) -> Attempt<()> {
        let mut pipeline = Pipeline::default();
        let own = self.send_head(&mut pipeline, group).await?;
        self.all(&mut pipeline, own, ready).await
    }

    /// Sends actions behind `own` statements of ours, and takes every answer.
    async fn all<'a>(
        &'a self,
        pipeline: &mut Pipeline<'a>,
        own: usize,
        ready: &'a [Ready<'_>],
    ) -> Attempt<()> {
        let (mut own, mut answered) = (own, 0);
        for (at, action) in ready.iter().enumerate() {
            // A copy that is sent behind a statement that fails takes the connection down with it, and nobody would
            // learn why: what is before it is answered first.
            if action.is_copy() {
                answers(pipeline, std::mem::take(&mut own), &ready[answered..at]).await?;
                answered = at;
            }
            self.send(pipeline, action).await;
        }
        crash_behind("apply.mid_batch").await;
        answers(pipeline, own, &ready[answered..]).await
    }

    /// BEGIN, the guard with the origin, new shapes: returns how many statements that is.
    async fn send_head<'a>(&'a self, pipeline: &mut Pipeline<'a>, group: &Group<'_>) -> Result<usize> {
        pipeline.send(self.simple("BEGIN")).await;
        pipeline.send(self.guard.advance(self.client(), &group.to, group.origin())?).await;
        let shapes = self.send_shapes(pipeline, group.shapes).await?;
        Ok(2 + shapes)
    }

    async fn simple(&self, sql: &str) -> std::result::Result<u64, tokio_postgres::Error> {
        self.client().batch_execute(sql).await.map(|()| 0)
    }

    async fn send_shapes<'a>(&'a self, pipeline: &mut Pipeline<'a>, shapes: &[Arc<Shape>]) -> Result<usize> {
        for shape in shapes {
            let body = serde_json::to_string(&**shape)
                .map_err(|error| Fault::new(Code::Internal, "write a shape").because(error))?;
            let parameters = [AsText(shape.fingerprint().to_string()), AsText(body)];
            let call = async move { self.client().execute_raw(&self.guard.shape, parameters).await };
            pipeline.send(call).await;
        }
        Ok(shapes.len())
    }

    async fn send<'a>(&'a self, pipeline: &mut Pipeline<'a>, ready: &'a Ready<'_>) {
        pipeline.send(ready.run(self.client(), &self.config)).await;
    }

    async fn commit(&mut self, group: &Group<'_>) -> Attempt<()> {
        crash::point("apply.before_commit");
        let mut pipeline = Pipeline::default();
        pipeline.send(self.simple("COMMIT")).await;
        crash_behind("apply.commit_sent").await;
        pipeline.answer().await.map_err(|error| trouble::of_rows(&error))?;
        drop(pipeline);
        crash::point("apply.after_commit");
        self.note_commit(group.to.through.sequence);
        Ok(())
    }

    /// Runs `work`; where it takes long, asks the server meanwhile who is in its way.
    async fn watched<T>(&self, work: impl Future<Output = T>) -> (T, Option<String>) {
        watch(work, self.config.lock_timeout / 2, ask_blocker(&self.config, self.backend.pid)).await
    }
}

/// Takes the answers of `own` statements of ours, then of actions.
async fn answers(pipeline: &mut Pipeline<'_>, own: usize, ready: &[Ready<'_>]) -> Attempt<()> {
    for _ in 0..own {
        pipeline.answer().await.map_err(|error| trouble::of_guard(&error))?;
    }
    for action in ready {
        let touched = pipeline.answer().await.map_err(|error| trouble::of_rows(&error))?;
        if let Some(expected) = action.expected().filter(|expected| *expected != touched) {
            return Err(Trouble::Differs(Refusal::count(expected, touched)));
        }
    }
    Ok(())
}

/// A point to die at, behind what was sent: it is on its way then.
async fn crash_behind(point: &str) {
    if crash::is_armed() {
        tokio::task::yield_now().await;
    }
    crash::point(point);
}

/// Waits before the next attempt, or gives up.
async fn wait_or_fail(trouble: Trouble, attempt: &mut u32) -> Result<()> {
    let (fault, attempts_max) = match trouble {
        Trouble::Again(fault) => (fault, ATTEMPTS_MAX),
        Trouble::Locked(fault) => (fault, LOCK_ATTEMPTS_MAX),
        other => return Err(into_fault(other)),
    };
    if *attempt >= attempts_max {
        return Err(fault.at(format_args!("tried {attempt} times")));
    }
    tracing::debug!(%fault, attempt, "batch rolled back, tried again");
    let jitter = rand::random_range(5..50);
    sleep(Duration::from_millis(u64::from(*attempt) * jitter)).await;
    *attempt += 1;
    Ok(())
}

fn into_fault(trouble: Trouble) -> Fault {
    match trouble {
        Trouble::Fault(fault) | Trouble::Again(fault) | Trouble::Locked(fault) => fault,
        Trouble::Stale(refusal) | Trouble::Differs(refusal) => trouble::of_slice(refusal),
    }
}

/// Nothing here can read an encrypted cell, and its text is not its value.
fn refuse_encrypted(batch: &Batch) -> Result<()> {
    for change in batch.steps.iter().flat_map(Step::changes) {
        let new = match change {
            Change::Insert { new, .. } | Change::Update { new, .. } => new,
            Change::Delete { .. }
            | Change::Truncate { .. }
            | Change::Chunk { .. }
            | Change::Watermark { .. } => continue,
        };
        if new.0.iter().any(|cell| matches!(cell, Cell::Encrypted { .. })) {
            let message =
                format!("{} has an encrypted cell, which this version cannot apply", change.shape());
            return Err(Fault::new(Code::Internal, message));
        }
    }
    Ok(())
}
