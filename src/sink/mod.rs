//! The port to a target: applies batches of a stream to a database, with the place reached.
//!
//! [`postgres`] is the real one, [`memory`] the one other tests run against; `tests/sink.rs` holds
//! both to the promises written here.

use std::{future::Future, sync::Arc};

pub mod conflict;
pub mod memory;
pub mod postgres;

pub use conflict::{Conflict, ConflictKind};

use crate::{
    change::{Change, Frame, Shape},
    fault::Result,
    position::{ApplyEpoch, Incarnation, Sequence},
    progress::{Cursor, Heartbeat, Progress},
};

/// What one target transaction (or a step of one) applies.
///
/// Either every frame is whole, or there is exactly one frame and it is a slice of a transaction
/// larger than memory: then the target transaction stays open from its first to its last slice.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The stream's life.
    pub incarnation: Incarnation,
    /// The number the sink's progress must have for this batch to be next: the same for every slice
    /// of one transaction, since progress moves with its commit.
    pub after: Sequence,
    /// Where the sink stands once the batch is committed: behind its last step, or further where
    /// records that change nothing follow it. Of no account in a slice that leaves its transaction
    /// open.
    pub through: Cursor,
    /// Slices of transactions, in commit order, and the place behind each.
    pub steps: Vec<Step>,
    /// Shapes met for the first time: kept beside the progress, in the same commit.
    pub shapes: Vec<Arc<Shape>>,
    /// The last heartbeat among the batch's records.
    pub heartbeat: Option<Heartbeat>,
    /// How many source transactions one target transaction may hold.
    pub grouping: Grouping,
    /// Whether more is waiting behind this batch. Where nothing is, the commit is flushed, so that
    /// what is told to others is soon true; else it may be asynchronous.
    pub more: bool,
}

impl Batch {
    /// Whether the batch ends inside a transaction.
    pub fn leaves_open(&self) -> bool {
        self.steps.last().is_some_and(|step| !step.frame.last)
    }

    /// How many changes there are in all frames.
    pub fn changes(&self) -> usize {
        self.steps.iter().map(|step| step.frame.changes.len()).sum()
    }
}

/// A frame and the place behind it. A sink that finds a batch out of order commits the transactions
/// before the culprit one by one, and needs to know where each ends.
#[derive(Clone, Debug)]
pub struct Step {
    /// The slice of a transaction.
    pub frame: Frame,
    /// The place behind it; of no account where the frame is not its transaction's last.
    pub through: Cursor,
}

impl Step {
    /// The changes, without their ordinals.
    pub fn changes(&self) -> impl Iterator<Item = &Change> {
        self.frame.changes.iter().map(|ordered| &ordered.change)
    }
}

/// Who writes decides how much may be grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grouping {
    /// Every table has one writing region: a target transaction may hold many source transactions,
    /// and statements may be set-based.
    Many,
    /// Several regions write: one source transaction is one target transaction, since its commit
    /// timestamp is the version of its rows.
    One,
}

/// What a sink found when it took hold of its target.
#[derive(Clone, Debug)]
pub struct Claim {
    /// This sink's epoch, higher than every earlier one's.
    pub epoch: ApplyEpoch,
    /// Where its predecessor left off; none where nothing of the stream was ever applied here.
    pub progress: Option<Progress>,
    /// The shapes met so far.
    pub shapes: Vec<Arc<Shape>>,
}

/// What applying a batch brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The number up to which everything is committed *and flushed*: what may be told to others.
    /// Lags behind what is committed where commits are asynchronous; unchanged by an open slice.
    pub flushed: Sequence,
    /// Whether the batch was redone change by change.
    pub redone: bool,
}

/// A target database.
///
/// One claim at a time; batches are given in order. After any error the sink is claimed anew before
/// it is used again, and the progress found then is the truth: a batch whose commit's answer was
/// lost may or may not have been applied.
pub trait Sink: Send {
    /// Takes hold of the target for one stream: ends what is left of a predecessor, raises the apply
    /// epoch, reads the progress.
    ///
    /// # Errors
    /// [`Code::TargetHeld`](crate::fault::Code::TargetHeld) where another daemon holds it and lives.
    fn claim(&mut self) -> impl Future<Output = Result<Claim>> + Send;

    /// Applies a batch. When it returns, the rows and the progress are committed together, or, for a
    /// slice that leaves its transaction open, held in the open target transaction.
    ///
    /// # Errors
    /// [`Code::Superseded`](crate::fault::Code::Superseded) where a newer epoch holds the target or
    /// the progress is not at `batch.after`: nothing was written. A conflict or a refused row names
    /// its table, key and position: everything before its transaction is committed, nothing of it.
    /// A conflict's fault has a [`Conflict`] as its source, for whoever counts them.
    fn apply(&mut self, batch: &Batch) -> impl Future<Output = Result<Applied>> + Send;

    /// Makes sure everything committed is flushed, and returns the number up to which it is. Also
    /// shows the target that this sink lives: to be called at least every two seconds.
    fn flush(&mut self) -> impl Future<Output = Result<Sequence>> + Send;

    /// Rolls an open target transaction back: its first slice is next again.
    fn abandon(&mut self) -> impl Future<Output = Result<()>> + Send;
}
