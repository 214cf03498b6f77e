//! A transaction larger than memory: slice after slice into one target transaction that stays open.

use std::sync::Arc;

use super::{
    Move, Open, Session,
    alone::InTheWay,
    answers,
    blocker::{ask_blocker, watch},
    into_fault,
    park::{Why, refusal},
    with_blocker,
};
use crate::{
    change::Shape,
    crash,
    fault::{Code, Fault, Result},
    progress::Heartbeat,
    sink::{
        Batch, Step,
        postgres::{
            guard::Origin,
            known::{distinct_shapes, of_two_shapes},
            pipeline::Pipeline,
            trouble::{self, Attempt, Trouble},
        },
    },
};

impl Session {
    pub(super) async fn apply_slice(&mut self, batch: &Batch, step: &Step) -> Result<bool> {
        let copied = step.is_copy();
        let kept = self.open.as_ref().is_some_and(|open| open.aside.is_some());
        let ahead = match copied || kept {
            true => Ok(None),
            false => self.ahead_of(std::slice::from_ref(step)).await,
        };
        let ahead = ahead.map_err(|fault| self.of_slices(fault, step))?;
        if self.open.is_none() {
            if let Some(ahead) = ahead {
                self.condemn_from_its_first(batch, step, ahead);
            }
            self.open_aside(batch, step).await.map_err(into_fault)?;
        }
        if self.open.as_ref().is_some_and(|open| open.aside.is_some()) {
            self.require_room_for_slice(batch, step)?;
            self.slice_aside(batch, step).await.map_err(into_fault)?;
            return Ok(false);
        }
        let sliced = match ahead {
            Some(ahead) => Err(self.condemn(batch, step, Why::Behind(ahead)).into()),
            None => self.try_slice(batch, step).await,
        };
        let sliced = match sliced {
            Err(Trouble::Fault(fault)) if !copied && self.parks(&fault) => {
                Err(self.condemn(batch, step, Why::Refused(fault)).into())
            }
            sliced => sliced,
        };
        if sliced.is_err() {
            self.open = None;
            self.marked.clear();
            let _ = self.run("ROLLBACK").await;
        }
        if self.overtakes && self.open.is_none() && sliced.is_ok() {
            self.read_parked().await?;
        }
        sliced.map_err(into_fault)
    }

    /// Keeps a slice aside; with the last, commits.
    async fn slice_aside(&mut self, batch: &Batch, step: &Step) -> Attempt<()> {
        let Some(open) = &mut self.open else {
            return Err(Fault::new(Code::Internal, "no transaction is open").into());
        };
        open.heartbeat = batch.heartbeat.or(open.heartbeat);
        let heartbeat = open.heartbeat;
        let Some((id, why)) = open.aside.take() else {
            return Err(Fault::new(Code::Internal, "nothing is kept aside").into());
        };
        self.keep_slice(id, batch, step).await?;
        if !step.frame.last {
            if let Some(open) = &mut self.open {
                open.aside = Some((id, why));
            }
            return Ok(());
        }
        self.close(batch, step, heartbeat).await?;
        self.refused.extend(refusal(why, id));
        Ok(())
    }

    async fn try_slice(&mut self, batch: &Batch, step: &Step) -> Attempt<bool> {
        let frame = &step.frame;
        if self.open.is_none() {
            self.run("BEGIN").await?;
            let touch = self.guard.touch(self.client(), batch.after)?.await;
            touch.map_err(|error| trouble::of_guard(&error))?;
            self.open = Some(Open { after: batch.after, heartbeat: None, aside: None, shapes: Vec::new() });
        }
        let open = self.open.as_mut().expect("opened above");
        if open.after != batch.after {
            let message = format!("a slice after {} in a transaction after {}", batch.after, open.after);
            return Err(Fault::new(Code::Internal, message).into());
        }
        open.heartbeat = batch.heartbeat.or(open.heartbeat);
        let heartbeat = open.heartbeat;
        if frame.first {
            self.marked.clear();
        }
        self.note_touched(std::slice::from_ref(step));
        let copied = step.is_copy();
        let looked = self.known.look_at_tables(&self.connection, std::slice::from_ref(step)).await;
        looked.map_err(|fault| self.of_slices(fault, step))?;
        self.note_shapes(step);
        // What cannot even be prepared fails the open transaction as well.
        self.set_savepoint(batch).await?;
        let config = self.config.clone();
        let ask = ask_blocker(&config, self.backend.pid);
        let work = async {
            if copied {
                return Ok(());
            }
            let ready = self.known.make_ready(&self.connection, std::slice::from_ref(step), false).await?;
            self.all(&mut Pipeline::default(), 0, &ready).await
        };
        let (answered, blocker) = watch(work, config.lock_timeout / 2, ask).await;
        if copied && answered.is_ok() {
            self.one_by_one(step, InTheWay::Goes).await?;
        }
        let redone = match answered {
            Ok(()) => false,
            Err(Trouble::Stale(_) | Trouble::Differs(_)) => {
                self.run("ROLLBACK TO SAVEPOINT slice").await?;
                // Its tables may be others than those the statements were made for.
                self.known.forget();
                self.known.look_at_tables(&self.connection, std::slice::from_ref(step)).await?;
                self.one_by_one(step, InTheWay::Goes).await?;
                true
            }
            Err(trouble) => return Err(with_blocker(trouble, blocker)),
        };
        self.run("RELEASE SAVEPOINT slice").await?;
        if frame.last {
            self.close(batch, step, heartbeat).await?;
        }
        Ok(redone)
    }

    /// What to say where a slice does not fit its tables: an earlier one may have brought another shape of them.
    fn of_slices(&self, fault: Fault, step: &Step) -> Fault {
        let before = self.open.iter().flat_map(|open| &open.shapes);
        let shapes: Vec<&Arc<Shape>> = before.chain(distinct_shapes(std::slice::from_ref(step))).collect();
        of_two_shapes(fault, &shapes)
    }

    fn note_shapes(&mut self, step: &Step) {
        let Some(open) = &mut self.open else { return };
        for shape in distinct_shapes(std::slice::from_ref(step)) {
            if !open.shapes.contains(shape) {
                open.shapes.push(Arc::clone(shape));
            }
        }
    }

    async fn close(&mut self, batch: &Batch, step: &Step, heartbeat: Option<Heartbeat>) -> Attempt<()> {
        let to = Move {
            incarnation: batch.incarnation,
            after: batch.after,
            through: batch.through,
            heartbeat,
            grouped: false,
        };
        self.end_open(&to, step).await
    }

    /// Behind the batch's shapes: those stay when its rows are taken back.
    async fn set_savepoint(&self, batch: &Batch) -> Attempt<()> {
        let mut pipeline = Pipeline::default();
        let shapes = self.send_shapes(&mut pipeline, &batch.shapes).await?;
        pipeline.send(self.simple("SAVEPOINT slice")).await;
        answers(&mut pipeline, shapes + 1, &[]).await
    }

    /// Moves the progress and commits the open transaction.
    async fn end_open(&mut self, to: &Move, step: &Step) -> Attempt<()> {
        let position = Some(step.frame.head.position);
        let origin = Origin::of(position, Some(step.frame.head.time));
        let moved = self.guard.advance(self.client(), to, origin)?.await;
        moved.map_err(|error| trouble::of_guard(&error))?;
        crash::point("apply.before_commit");
        if let Err(error) = self.client().batch_execute("COMMIT").await {
            return Err(match trouble::of_rows(&error) {
                Trouble::Stale(refusal) | Trouble::Differs(refusal) => {
                    Trouble::Fault(trouble::of_commit(refusal, position))
                }
                trouble => trouble,
            });
        }
        crash::point("apply.after_commit");
        self.open = None;
        self.note_commit(to.through.sequence);
        Ok(())
    }
}
