//! Change by change: what a set of changes was at odds with, and what a backfill brings.

use super::{
    Group, Session,
    blocker::{ask_blocker, watch, with_blocker},
    park::Why,
    wait_or_fail,
};
use crate::{
    change::{Change, Mark, Ordered, copy_text},
    crash,
    fault::{Code, Fault, Result},
    plan::Keep,
    position::Position,
    postgres::find_operators,
    sink::{
        Step,
        postgres::{
            known::Chunk,
            meanwhile,
            pipeline::Pipeline,
            trouble::{self, Attempt, Trouble},
        },
    },
};

/// What becomes of a row that has a unique value of one that comes, in a table that may be stale.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum InTheWay {
    /// It is older, and goes.
    Goes,
    /// It may be newer: what comes was kept aside.
    Stays,
}

impl Session {
    /// Change by change in the order they came, each source transaction a transaction of its own:
    /// ends at the culprit with everything before its transaction committed, or, where only the set
    /// was at odds with itself (two rows that swap a unique value), goes through.
    pub(super) async fn redo(&mut self, group: Group<'_>) -> Result<bool> {
        tracing::info!(after = %group.to.after, transactions = group.steps.len(), "redone change by change");
        self.each_alone(group).await.map(|()| true)
    }

    pub(super) async fn each_alone(&mut self, group: Group<'_>) -> Result<()> {
        for alone in group.split() {
            let copied = alone.steps.iter().any(Step::is_copy);
            if !copied && let Some(ahead) = self.ahead_of(alone.steps).await? {
                self.park(&alone, Why::Behind(ahead)).await?;
                continue;
            }
            let mut attempt = 1;
            let mut looked_anew = false;
            while let Err(trouble) = self.try_alone(&alone).await {
                self.touched.extend(self.brought.drain());
                match trouble {
                    // It may be the table that was altered, and takes no row like that: that is not for parking.
                    Trouble::Fault(fault) if !copied && self.parks(&fault) && !looked_anew => {
                        tracing::debug!(%fault, "looking at the tables anew");
                        self.known.forget();
                        find_operators(&self.connection).await?;
                        looked_anew = true;
                    }
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
        let ask = ask_blocker(&config, self.backend.pid);
        let (answered, blocker) = watch(self.alone(group), config.lock_timeout / 2, ask).await;
        if let Err(trouble) = answered {
            let _ = self.run("ROLLBACK").await;
            self.end_failed_lanes().await?;
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
            self.one_by_one(step, InTheWay::Goes).await?;
        }
        Ok(())
    }

    pub(super) async fn one_by_one(&mut self, step: &Step, in_the_way: InTheWay) -> Attempt<()> {
        // In the heap: it holds the transactions of several sessions, and few steps come to it.
        let done = Box::pin(self.side_by_side(step)).await?;
        for ordered in &step.frame.changes[done..] {
            self.one_of(ordered, step.frame.head.position, in_the_way).await?;
        }
        Ok(())
    }

    /// Applies one change of the transaction at `position`.
    pub(super) async fn one_of(
        &mut self,
        ordered: &Ordered,
        position: Position,
        in_the_way: InTheWay,
    ) -> Attempt<()> {
        let change = &ordered.change;
        if let Change::Chunk { keys: Some(_), .. } = change {
            return self.mend(change).await;
        }
        let goes = in_the_way == InTheWay::Goes && self.is_stale(change.shape());
        let applied = if goes { self.one_over_stale(change).await } else { self.one(change).await };
        match applied {
            Ok(None) => match change {
                // What is read under one snapshot is older than whatever came behind its mark.
                Change::Chunk { shape, .. } if !self.is_under_snapshot(shape) => {
                    self.overtake_rows(change).await
                }
                _ => Ok(()),
            },
            Ok(Some(touched)) => {
                Err(Trouble::Fault(trouble::of_count(touched, change, position, ordered.ordinal)))
            }
            Err(Trouble::Stale(refusal) | Trouble::Differs(refusal)) => {
                let fault = trouble::of_change(refusal, change, position, ordered.ordinal);
                Err(Trouble::Fault(self.with_what_is_parked(fault, change)))
            }
            Err(trouble) => Err(trouble),
        }
    }

    /// Puts rows right. Where they do not go in, for a row that somebody made here, everything stays as it was: whoever
    /// asked for it looks afterwards, and the stream goes on.
    async fn mend(&mut self, change: &Change) -> Attempt<()> {
        self.run("SAVEPOINT mend").await?;
        let stale = self.is_stale(change.shape());
        let applied = if stale { self.one_over_stale(change).await } else { self.one(change).await };
        let why = match applied {
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
    pub(super) async fn one(&mut self, change: &Change) -> Attempt<Option<u64>> {
        let former;
        let ready = match change {
            Change::Chunk { shape, text, meanwhile: Some(meanwhile), .. } => {
                former = copy_text::rows(text);
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
                        let rows = copy_text::rows(keys);
                        self.known.require_found_by(shape, &rows)?;
                        rows
                    }
                    None if !replace.is_empty() => {
                        self.known.require_found_within(shape, replace)?;
                        copy_text::rows(text)
                    }
                    None if *again || self.is_touched(shape) => copy_text::rows(text),
                    None => Vec::new(),
                };
                let chunk = Chunk { text, rows: u64::from(*rows), former: &former, replace };
                self.known.make_chunk_ready(&self.connection, shape, chunk).await?
            }
            Change::Watermark { shapes, mark } => {
                let settled = *mark == Mark::Settled;
                let shapes: Vec<_> =
                    shapes.iter().filter(|shape| !settled || self.is_stale(shape)).cloned().collect();
                for shape in &shapes {
                    if *mark == Mark::Done && self.is_under_snapshot(shape) {
                        let table = self.known.table(shape);
                        meanwhile::make_up(&self.connection, &self.config, shape, table).await?;
                    } else if self.is_under_snapshot(shape) {
                        meanwhile::forget(&self.connection, &self.config, shape).await?;
                    }
                }
                self.mark(&shapes, *mark).await?;
                match mark {
                    Mark::Begin | Mark::Snapshot => {
                        shapes.iter().map(|shape| self.known.empty(shape)).collect()
                    }
                    Mark::Wait | Mark::Stale | Mark::Done | Mark::Settled => Vec::new(),
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
}
