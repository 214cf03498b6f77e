//! A chunk's texts, brought in by every session there is.

use futures_util::future::join_all;

use super::{Session, alone::InTheWay, into_fault};
use crate::{
    change::{Change, Ordered},
    sink::{
        Step,
        postgres::{
            guard::Origin,
            lane::{OfChunk, Texts},
            trouble::Attempt,
        },
    },
};

impl Session {
    /// Brings in the texts of a chunk that a step begins with, where several sessions can: gives how many. Those of a lane
    /// are committed before ours; what a lane failed at, this session does itself, and learns why.
    pub(super) async fn side_by_side(&mut self, step: &Step) -> Attempt<usize> {
        let texts = self.count_texts(&step.frame.changes);
        let Some((ours, others)) = step.frame.changes[..texts].split_first() else { return Ok(0) };
        let lanes = self.lanes.take(&self.config, self.guard.epoch(), others.len()).await;
        let Change::Chunk { shape, again, .. } = &ours.change else { return Ok(0) };
        if lanes.is_empty() {
            return Ok(0);
        }
        let (position, time) = (step.frame.head.position, step.frame.head.time);
        let of = OfChunk {
            shape,
            replaces: *again || self.is_touched(shape),
            origin: Origin::of(Some(position), Some(time)),
        };
        self.ahead.insert(shape.to_string());
        let texts_there_are = texts;
        let texts = &Texts::new(&step.frame.changes[..texts]);
        let work = lanes.into_iter().map(async |mut lane| {
            let mut taken = Vec::new();
            let brought = lane.bring(texts, of, &mut taken).await;
            (lane, taken, brought)
        });
        let (own, brought) = tokio::join!(self.take_part(texts, step), join_all(work));
        let mut left = Vec::new();
        for (lane, taken, brought) in brought {
            match brought {
                Ok(()) => self.lanes.put(lane),
                Err(trouble) => {
                    let fault = into_fault(trouble);
                    tracing::warn!(%fault, "rows that one session did not bring in are brought in by another");
                    self.lanes.note_failure();
                    left.extend(taken);
                }
            }
        }
        own?;
        for ordered in left {
            // Whether its commit went through, nobody knows.
            let mut ordered = ordered.clone();
            if let Change::Chunk { again, .. } = &mut ordered.change {
                *again = true;
            }
            self.one_of(&ordered, position, InTheWay::Goes).await?;
        }
        Ok(texts_there_are)
    }

    async fn take_part(&mut self, texts: &Texts<'_>, step: &Step) -> Attempt<()> {
        while let Some(ordered) = texts.take() {
            let brought = self.one_of(ordered, step.frame.head.position, InTheWay::Goes).await;
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
