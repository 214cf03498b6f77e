//! Batches into target transactions.
//!
//! ```text
//!  whole frames ▶ plan ▶ one transaction, pipelined ▶ every count as expected? ▶ commit
//!                           │ deadlock, lock: again        │ no, or a row refused
//!                           │ table changed: look again    ▼
//!                           └──────────────▶ redo: each source transaction its own, change by change
//!  a slice     ▶ plan ▶ savepoint, statements ▶ as expected? ▶ keep open, or progress and commit
//! ```

mod attend;
mod blocker;
mod park;
mod slice;

use std::{collections::HashSet, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::SinkExt;
use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, Statement, types::PgLsn};

pub(super) use self::park::Condemned;
use self::{
    blocker::{ask_blocker, watch, with_blocker},
    park::Why,
};
use super::{
    PostgresSinkConfig,
    guard::{Guard, Move},
    known::{Chunk, Known, Ready},
    meanwhile,
    parked::Kept,
    pipeline::Pipeline,
    session::Held,
    statement::{Array, copy_data},
    trouble::{self, Attempt, Refusal, Trouble},
    wire::{AsText, Timestamp},
};
use crate::{
    change::{Cell, Change, Mark, Row, Shape, copy_text},
    crash,
    fault::{Code, Fault, Result},
    plan::{Joining, Keep, parked::ParkedId},
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
    pid: i32,
    guard: Guard,
    known: Known,
    committed: Sequence,
    flushed: Sequence,
    /// When the first commit that is not known to be flushed was made.
    unflushed_since: Option<Instant>,
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
}

/// One target transaction's worth of whole frames.
#[derive(Clone, Copy)]
struct Group<'a> {
    steps: &'a [Step],
    shapes: &'a [Arc<Shape>],
    to: Move,
    synchronous: bool,
}

impl<'a> Group<'a> {
    fn of(batch: &'a Batch, synchronous: bool) -> Self {
        let to = Move {
            incarnation: batch.incarnation,
            after: batch.after,
            through: batch.through,
            heartbeat: batch.heartbeat,
            grouped: batch.steps.len() > 1,
        };
        Self { steps: &batch.steps, shapes: &batch.shapes, to, synchronous }
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
        let head = Self { steps, shapes: self.shapes, to, synchronous: false };
        (head, Some(Self { steps: behind, shapes: &[], to: rest_to, synchronous: self.synchronous }))
    }

    fn position(&self) -> Option<Position> {
        self.steps.last().map(|step| step.frame.head.position)
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
            pid: held.backend.pid,
            guard,
            known,
            committed,
            flushed: committed,
            unflushed_since: None,
            open: None,
            marked: Vec::new(),
            touched,
            kept: held.kept,
            overtakes: false,
            condemned,
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

    /// Commits a transaction that changes nothing where something is unflushed.
    pub(super) async fn flush(&mut self) -> Result<Sequence> {
        if self.open.is_some() || self.committed == self.flushed {
            self.run("SELECT 1").await?;
            return Ok(self.flushed);
        }
        self.touch().await.map_err(into_fault)?;
        self.note_commit(self.committed, true);
        Ok(self.flushed)
    }

    /// A transaction that proves we still hold the target, with a synchronous commit. Where the guard fails,
    /// what the server makes of the COMMIT behind it is a rollback.
    async fn touch(&self) -> Attempt<()> {
        let mut pipeline = Pipeline::default();
        pipeline.send(self.simple(begin(true))).await;
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

    fn note_commit(&mut self, through: Sequence, synchronous: bool) {
        self.committed = through;
        for (table, mark) in self.marked.drain(..) {
            // A table that keeps its rows may hold any of them.
            match mark {
                Mark::Stale => drop(self.touched.insert(table.clone())),
                Mark::Wait | Mark::Begin | Mark::Snapshot | Mark::Done => drop(self.touched.remove(&table)),
            }
            match mark {
                Mark::Wait => drop(self.known.joining.insert(table, Joining::Waiting)),
                Mark::Begin | Mark::Stale => drop(self.known.joining.insert(table, Joining::Copying)),
                Mark::Snapshot => drop(self.known.joining.insert(table, Joining::Snapshot)),
                Mark::Done => drop(self.known.joining.remove(&table)),
            }
        }
        if synchronous {
            self.flushed = through;
            self.unflushed_since = None;
        } else {
            self.unflushed_since.get_or_insert_with(Instant::now);
        }
    }

    /// Whether the next commit waits for the disk: while batch follows batch nobody asks for a flush.
    fn is_synchronous(&self) -> bool {
        self.unflushed_since.is_some_and(|since| since.elapsed() >= self.config.flush_interval)
    }

    async fn apply_whole(&mut self, batch: &Batch) -> Result<bool> {
        let whole = Group::of(batch, self.is_synchronous());
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
                Err(trouble) => wait_or_fail(trouble, &mut attempt).await?,
            }
        }
    }

    async fn try_group(&mut self, group: &Group<'_>) -> Attempt<()> {
        self.note_touched(group.steps);
        let ready = self.known.make_ready(&self.connection, group.steps).await?;
        let (answered, blocker) = self.watched(self.in_transaction(group, &ready)).await;
        if let Err(trouble) = answered {
            // Nothing is lost where this fails: so does whatever comes next.
            let _ = self.run("ROLLBACK").await;
            return Err(with_blocker(trouble, blocker));
        }
        self.commit(group).await
    }

    /// Notes the tables being filled that changes may insert into.
    fn note_touched(&mut self, steps: &[Step]) {
        if self.known.joining.is_empty() {
            return;
        }
        for change in steps.iter().flat_map(Step::changes) {
            let brings = match change {
                Change::Insert { .. } | Change::Update { old: Some(_), .. } => true,
                Change::Chunk { keys, replace, .. } => keys.is_some() || !replace.is_empty(),
                _ => false,
            };
            if brings {
                self.touched.insert(change.shape().to_string());
            }
        }
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
        crash::point("apply.mid_batch");
        answers(pipeline, own, &ready[answered..]).await
    }

    /// BEGIN, the guard, the origin, new shapes: returns how many statements that is.
    async fn send_head<'a>(&'a self, pipeline: &mut Pipeline<'a>, group: &Group<'_>) -> Result<usize> {
        pipeline.send(self.simple(begin(group.synchronous))).await;
        pipeline.send(self.guard.advance(self.client(), &group.to)?).await;
        let position = group.position().or(group.to.through.position);
        let origin = self.send_origin(pipeline, position, group.steps.last()).await;
        let shapes = self.send_shapes(pipeline, group.shapes).await?;
        Ok(2 + origin + shapes)
    }

    async fn simple(&self, sql: &str) -> std::result::Result<u64, tokio_postgres::Error> {
        self.client().batch_execute(sql).await.map(|()| 0)
    }

    /// Sends the replication origin's place and time: the commit timestamp of the target's
    /// transaction is then the last source transaction's.
    async fn send_origin<'a>(
        &'a self,
        pipeline: &mut Pipeline<'a>,
        position: Option<Position>,
        step: Option<&Step>,
    ) -> usize {
        let Some(Position::Postgres(at)) = position else { return 0 };
        let time = Timestamp::from(step.map_or(at.time, |step| step.frame.head.time));
        let lsn = PgLsn::from(at.end.0);
        let call = async move {
            let parameters: [Box<dyn tokio_postgres::types::ToSql + Send + Sync>; 2] =
                [Box::new(lsn), Box::new(time)];
            self.client().execute_raw(&self.guard.origin, parameters).await
        };
        pipeline.send(call).await;
        1
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
        match ready {
            Ready::Rows(statement, rows) => {
                let call = async move { self.client().execute_raw(statement, Array::all(rows)).await };
                pipeline.send(call).await;
            }
            Ready::Copy(statement, rows) => pipeline.send(self.copy_in(statement, copy_data(rows))).await,
            Ready::Chunk(statement, text, _) => pipeline.send(self.copy_in(statement, text.clone())).await,
            Ready::Empty(sql) => {
                let call = async move { self.client().execute(sql.as_str(), &[]).await };
                pipeline.send(call).await;
            }
            Ready::Keep(statement, keep) => {
                pipeline.send(meanwhile::keep(self.client(), &self.config, statement, keep)).await;
            }
            Ready::Truncate(sql) => pipeline.send(self.simple(sql)).await,
        }
    }

    async fn copy_in(
        &self,
        statement: &Statement,
        data: Bytes,
    ) -> std::result::Result<u64, tokio_postgres::Error> {
        let mut copy = pin!(self.client().copy_in(statement).await?);
        copy.send(data).await?;
        copy.finish().await
    }

    async fn commit(&mut self, group: &Group<'_>) -> Attempt<()> {
        crash::point("apply.before_commit");
        self.client().batch_execute("COMMIT").await.map_err(|error| trouble::of_rows(&error))?;
        crash::point("apply.after_commit");
        self.note_commit(group.to.through.sequence, group.synchronous);
        Ok(())
    }

    /// Change by change in the order they came, each source transaction a transaction of its own:
    /// ends at the culprit with everything before its transaction committed, or, where only the set
    /// was at odds with itself (two rows that swap a unique value), goes through.
    async fn redo(&mut self, group: Group<'_>) -> Result<bool> {
        tracing::info!(after = %group.to.after, transactions = group.steps.len(), "redone change by change");
        self.each_alone(group).await.map(|()| true)
    }

    async fn each_alone(&mut self, group: Group<'_>) -> Result<()> {
        for alone in group.split() {
            let copied = alone.steps.iter().any(Step::is_copy);
            if !copied && let Some(ahead) = self.ahead_of(alone.steps).await? {
                self.park(&alone, Why::Behind(ahead)).await?;
                continue;
            }
            let mut attempt = 1;
            while let Err(trouble) = self.try_alone(&alone).await {
                match trouble {
                    Trouble::Fault(fault) if !copied && self.parks(&fault) => {
                        self.park(&alone, Why::Refused(fault)).await?;
                        break;
                    }
                    trouble => wait_or_fail(trouble, &mut attempt).await?,
                }
            }
            if self.overtakes {
                self.read_parked().await?;
            }
        }
        Ok(())
    }

    async fn try_alone(&mut self, group: &Group<'_>) -> Attempt<()> {
        self.marked.clear();
        self.note_touched(group.steps);
        self.known.look_at_tables(&self.connection, group.steps).await?;
        let config = self.config.clone();
        let ask = ask_blocker(&config, self.pid);
        let (answered, blocker) = watch(self.alone(group), config.lock_timeout / 2, ask).await;
        if let Err(trouble) = answered {
            let _ = self.run("ROLLBACK").await;
            return Err(with_blocker(trouble, blocker));
        }
        match self.commit(group).await {
            Err(Trouble::Stale(refusal) | Trouble::Differs(refusal)) => {
                Err(Trouble::Fault(trouble::of_commit(refusal, group.position())))
            }
            committed => committed,
        }
    }

    /// Everything of a transaction but its end, change by change.
    async fn alone(&mut self, group: &Group<'_>) -> Attempt<()> {
        let mut pipeline = Pipeline::default();
        let own = self.send_head(&mut pipeline, group).await?;
        for _ in 0..own {
            pipeline.answer().await.map_err(|error| trouble::of_guard(&error))?;
        }
        drop(pipeline);
        for step in group.steps {
            self.one_by_one(step).await?;
        }
        Ok(())
    }

    async fn one_by_one(&mut self, step: &Step) -> Attempt<()> {
        let position = step.frame.head.position;
        for ordered in &step.frame.changes {
            let change = &ordered.change;
            if let Change::Chunk { keys: Some(_), .. } = change {
                self.mend(change).await?;
                continue;
            }
            let named = |refusal| trouble::of_change(refusal, change, position, ordered.ordinal);
            match self.one(change).await {
                Ok(None) => {
                    if let Change::Chunk { .. } = change {
                        self.overtake_rows(change).await?;
                    }
                }
                Ok(Some(touched)) => {
                    let fault = trouble::of_count(touched, change, position, ordered.ordinal);
                    return Err(Trouble::Fault(fault));
                }
                Err(Trouble::Stale(refusal) | Trouble::Differs(refusal)) => {
                    return Err(Trouble::Fault(named(refusal)));
                }
                Err(trouble) => return Err(trouble),
            }
        }
        Ok(())
    }

    /// Puts rows right. Where they do not go in, for a row that somebody made here, everything stays as it was: whoever
    /// asked for it looks afterwards, and the stream goes on.
    async fn mend(&mut self, change: &Change) -> Attempt<()> {
        self.run("SAVEPOINT mend").await?;
        let why = match self.one(change).await {
            Ok(None) => {
                self.overtake_rows(change).await?;
                return Ok(self.run("RELEASE SAVEPOINT mend").await?);
            }
            Ok(Some(touched)) => format!("{touched} rows were touched, {} ought to be", change.rows()),
            Err(Trouble::Stale(refusal) | Trouble::Differs(refusal)) => trouble::of_slice(refusal).message(),
            Err(Trouble::Fault(fault)) if fault.code() == Code::TableDiffers => fault.message(),
            // A row that the stream would not touch must not hold it up.
            Err(Trouble::Locked(fault)) => fault.message(),
            Err(trouble) => return Err(trouble),
        };
        tracing::warn!(table = %change.shape(), why, "rows could not be mended");
        Ok(self.run("ROLLBACK TO SAVEPOINT mend; RELEASE SAVEPOINT mend").await?)
    }

    /// Applies one change; gives how many rows it touched where that is not what it holds.
    async fn one(&mut self, change: &Change) -> Attempt<Option<u64>> {
        let former;
        let ready = match change {
            Change::Chunk { shape, text, meanwhile: Some(meanwhile), .. } => {
                former = rows_of(text);
                let rows = former.iter().map(|row| (*meanwhile, row.0.iter().collect())).collect();
                vec![self.known.make_keep_ready(&self.connection, Keep { shape, rows }).await?]
            }
            Change::Chunk { shape, rows, again, keys, replace, meanwhile: None, text } => {
                crash::point("apply.mid_chunk");
                let under_snapshot = self.is_under_snapshot(shape);
                // One that comes chunk by chunk meets changes to its rows meanwhile.
                if !under_snapshot && !self.is_emptied_now(shape) && !self.known.finds_by_key(shape) {
                    let message =
                        format!("{shape} has no unique index over the key that its rows are copied by");
                    return Err(Fault::new(Code::TableDiffers, message)
                        .remedied_by("make the source's primary key at the target, it goes on by itself")
                        .into());
                }
                former = match keys {
                    None if under_snapshot => Vec::new(),
                    Some(keys) => {
                        let rows = rows_of(keys);
                        self.known.require_found_by(shape, &rows)?;
                        rows
                    }
                    None if !replace.is_empty() => {
                        self.known.require_found_within(shape, replace)?;
                        rows_of(text)
                    }
                    None if *again || self.is_touched(shape) => rows_of(text),
                    None => Vec::new(),
                };
                let chunk = Chunk { text, rows: u64::from(*rows), former: &former, replace };
                self.known.make_chunk_ready(&self.connection, shape, chunk).await?
            }
            Change::Watermark { shapes, mark } => {
                for shape in shapes {
                    if *mark == Mark::Done && self.is_under_snapshot(shape) {
                        let table = self.known.table(shape);
                        meanwhile::make_up(&self.connection, &self.config, shape, table).await?;
                    } else if self.is_under_snapshot(shape) {
                        meanwhile::forget(&self.connection, &self.config, shape).await?;
                    }
                }
                self.mark(shapes, *mark).await?;
                match mark {
                    Mark::Begin | Mark::Snapshot => {
                        shapes.iter().map(|shape| self.known.empty(shape)).collect()
                    }
                    Mark::Wait | Mark::Stale | Mark::Done => Vec::new(),
                }
            }
            change => self.known.make_ready_alone(&self.connection, change).await?,
        };
        let mut pipeline = Pipeline::default();
        for action in &ready {
            // One at a time: a copy that is sent behind a statement that fails takes the connection down with it.
            self.send(&mut pipeline, action).await;
            let touched = pipeline.answer().await.map_err(|error| trouble::of_rows(&error))?;
            if action.expected().is_some_and(|expected| touched != expected) {
                return Ok(Some(touched));
            }
        }
        Ok(None)
    }

    /// Whether a table being filled may hold rows of a chunk that has not come.
    fn is_touched(&self, shape: &Shape) -> bool {
        !self.is_emptied_now(shape) && self.touched.contains(&shape.to_string())
    }

    /// Whether a table holds rows as they were under one snapshot.
    fn is_under_snapshot(&self, shape: &Shape) -> bool {
        let table = shape.to_string();
        match self.marked.iter().rev().find(|(marked, _)| *marked == table) {
            Some((_, mark)) => *mark == Mark::Snapshot,
            None => self.known.joining.get(&table) == Some(&Joining::Snapshot),
        }
    }

    /// Whether the transaction that is open begins with this table.
    fn is_emptied_now(&self, shape: &Shape) -> bool {
        let table = shape.to_string();
        self.marked.iter().any(|(marked, mark)| *marked == table && *mark == Mark::Begin)
    }

    /// Notes how a backfill stands with tables, in the transaction that is open.
    async fn mark(&mut self, shapes: &[Arc<Shape>], mark: Mark) -> Attempt<()> {
        let (link, stream) = (self.config.from.as_str(), self.config.stream.as_str());
        for shape in shapes {
            let (schema, table) = (&*shape.schema, &*shape.table);
            let client = &self.connection;
            let done = match mark {
                Mark::Wait | Mark::Begin | Mark::Snapshot | Mark::Stale => {
                    let keep = "INSERT INTO landfall.joining (link, stream, schema_name, table_name, mark)
                                VALUES ($1, $2, $3, $4, $5)
                                ON CONFLICT (link, stream, schema_name, table_name)
                                DO UPDATE SET mark = excluded.mark, since = now()";
                    client.execute(keep, &[&link, &stream, &schema, &table, &mark.as_str()]).await
                }
                Mark::Done => {
                    let forget = "DELETE FROM landfall.joining
                                   WHERE (link, stream, schema_name, table_name) = ($1, $2, $3, $4)";
                    let forgotten = client.execute(forget, &[&link, &stream, &schema, &table]).await;
                    // With the last table a recovery is over.
                    let over = "DELETE FROM landfall.recovery
                                 WHERE link = $1 AND stream = $2 AND NOT EXISTS (
                                       SELECT FROM landfall.joining j
                                        WHERE j.link = $1 AND j.stream = $2 AND j.mark = 'stale')";
                    match forgotten {
                        Ok(_) => client.execute(over, &[&link, &stream]).await,
                        failed => failed,
                    }
                }
            };
            done.map_err(|error| trouble::of_guard(&error))?;
            self.marked.push((shape.to_string(), mark));
        }
        for shape in shapes {
            self.overtake_table(shape, mark).await?;
        }
        Ok(())
    }

    /// Runs `work`; where it takes long, asks the server meanwhile who is in its way.
    async fn watched<T>(&self, work: impl Future<Output = T>) -> (T, Option<String>) {
        watch(work, self.config.lock_timeout / 2, ask_blocker(&self.config, self.pid)).await
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

fn rows_of(text: &Bytes) -> Vec<Row> {
    copy_text::lines(text).map(|line| Row(copy_text::fields(&line).collect())).collect()
}

fn begin(synchronous: bool) -> &'static str {
    if synchronous {
        "BEGIN; SET LOCAL synchronous_commit = on"
    } else {
        "BEGIN; SET LOCAL synchronous_commit = off"
    }
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
