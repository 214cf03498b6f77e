//! A chunk's texts, brought in by every session there is.

use std::{pin::pin, time::Duration};

use futures_util::future::join_all;
use tokio::time::sleep;

use super::{Session, alone::InTheWay, into_fault};
use crate::{
    change::{Change, Ordered},
    fault::Result,
    plan::table_key,
    position::Position,
    sink::{
        Step,
        postgres::{
            guard::Origin,
            lane::{Holder, OfChunk, Texts},
            session::end_lane,
            trouble::Attempt,
        },
    },
};

/// How often the session that applies is seen while it waits for lanes.
const SHOW_INTERVAL: Duration = Duration::from_secs(2);

impl Session {
    /// Brings in the texts of a chunk that a step begins with, where several sessions can: gives how many. Those of a lane
    /// are committed before ours; what a lane failed at, this session does itself, and learns why.
    pub(super) async fn side_by_side(&mut self, step: &Step) -> Attempt<usize> {
        let count = self.count_texts(&step.frame.changes);
        let Some((first, others)) = step.frame.changes[..count].split_first() else { return Ok(0) };
        let Change::Chunk { shape, again, .. } = &first.change else { return Ok(0) };
        let holder = Holder { epoch: self.guard.epoch(), backend: self.backend };
        let lanes = self.lanes.take(&self.config, holder, others.len()).await;
        if lanes.is_empty() {
            return Ok(0);
        }
        let head = &step.frame.head;
        let of = OfChunk {
            shape,
            after: self.committed,
            replaces: *again || self.is_touched(shape),
            origin: Origin::of(Some(head.position), Some(head.time)),
        };
        self.brought.insert(table_key(shape));
        let texts = &Texts::new(&step.frame.changes[..count]);
        let work = lanes.into_iter().map(async |mut lane| {
            let mut taken = Vec::new();
            let brought = lane.bring(texts, of, &mut taken).await;
            (lane, taken, brought)
        });
        let (own, lanes) = self.beside(texts, head.position, join_all(work)).await;
        let (mut there, mut left) = (Vec::new(), Vec::new());
        for (lane, taken, brought) in lanes {
            match brought {
                Ok(()) => {
                    self.lanes.put(lane);
                    there.extend(taken);
                }
                Err(trouble) => {
                    let fault = into_fault(trouble);
                    tracing::warn!(%fault, "rows that one session did not bring in are brought in by another");
                    self.lanes.give_up(lane);
                    left.extend(taken);
                }
            }
        }
        if own.is_err() {
            // Perhaps over what another of them has: it is tried again by one session, which learns why.
            self.lanes.rest();
        }
        own?;
        self.end_failed_lanes().await?;
        for ordered in there {
            self.overtake_rows(&ordered.change).await?;
        }
        for ordered in left {
            // Whether a lane's commit went through, nobody knows.
            let mut ordered = ordered.clone();
            if let Change::Chunk { again, .. } = &mut ordered.change {
                *again = true;
            }
            self.one_of(&ordered, head.position, InTheWay::Goes).await?;
        }
        Ok(count)
    }

    /// Ends the sessions of lanes that failed: what they have under way would meet ours.
    pub(super) async fn end_failed_lanes(&mut self) -> Result<()> {
        for backend in self.lanes.take_failed() {
            end_lane(&self.connection, backend).await?;
        }
        Ok(())
    }

    /// Takes part, and waits for the others.
    async fn beside<T>(
        &mut self,
        texts: &Texts<'_>,
        position: Position,
        others: impl Future<Output = T>,
    ) -> (Attempt<()>, T) {
        let mut others = pin!(others);
        let mut done = None;
        let own = {
            let mut own = pin!(self.take_part(texts, position));
            loop {
                tokio::select! {
                    biased;
                    own = &mut own => break own,
                    others = &mut others, if done.is_none() => done = Some(others),
                }
            }
        };
        let done = loop {
            match done {
                Some(done) => break done,
                None => tokio::select! {
                    others = &mut others => done = Some(others),
                    // Whoever holds a target shows that it lives. Where our own part has failed, the server says so again.
                    () = sleep(SHOW_INTERVAL) => drop(self.run("SELECT 1").await),
                },
            }
        };
        (own, done)
    }

    async fn take_part(&mut self, texts: &Texts<'_>, position: Position) -> Attempt<()> {
        while let Some(ordered) = texts.take() {
            let brought = self.one_of(ordered, position, InTheWay::Goes).await;
            if brought.is_err() {
                texts.stop();
                return brought;
            }
        }
        Ok(())
    }

    /// How many of these changes, from the first on, are texts of one chunk, of a table that several sessions may fill.
    fn count_texts(&self, changes: &[Ordered]) -> usize {
        let Some(Change::Chunk { shape, .. }) = changes.first().map(|first| &first.change) else { return 0 };
        if !self.is_filled_by_key(shape) {
            return 0;
        }
        let fingerprint = shape.fingerprint();
        let is_text = |ordered: &&Ordered| match &ordered.change {
            Change::Chunk { shape, keys: None, replace, meanwhile: None, .. } => {
                replace.is_empty() && shape.fingerprint() == fingerprint
            }
            _ => false,
        };
        changes.iter().take_while(is_text).count()
    }
}
