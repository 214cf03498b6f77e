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
    change::{Change, Frame, Operation, Shape},
    fault::{Fault, Result},
    position::{ApplyEpoch, Incarnation, Position, Sequence},
    progress::{Arrival, Cursor, Heartbeat, Progress},
    stamp::Micros,
    verify::{About, Answer, Found, Key, Options, Settled, TableName},
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
}

impl Batch {
    /// Whether the batch ends inside a transaction.
    pub fn leaves_open(&self) -> bool {
        self.steps.last().is_some_and(|step| !step.frame.last)
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
    /// When its last record came, for whoever measures.
    pub arrival: Arrival,
    /// What the source's region answered, for whoever compares: true of the place behind this step. Then it is the
    /// last of its batch.
    pub answer: Option<Arc<Answer>>,
}

impl Step {
    /// Whether a backfill brings it: then all of its changes are.
    pub fn is_copy(&self) -> bool {
        self.changes().any(Change::is_copy)
    }

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
    /// Tables that a backfill has begun and not ended.
    pub joining: usize,
    /// Somebody wants the link to go on where its source is now, with the rows there are here.
    pub recovers: bool,
    /// Transactions that are parked.
    pub parked: usize,
}

/// What becomes of a source transaction that the target refuses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnRefusal {
    /// The link stops before it, until a person has acted.
    #[default]
    Halt,
    /// It is parked whole, with whatever changes the same rows later, and the link goes on.
    Park,
}

/// How many changes of one link may be parked. Each of their rows is known in memory, in some 250 bytes and its key; and a
/// region that is short of more than this is no replica any longer, which somebody ought to look at. Where they are
/// reached, the link stops ([`Code::ParkedFull`](crate::fault::Code::ParkedFull)).
pub const PARKED_CHANGES_MAX: u64 = 100_000;

/// Sessions at a target that may bring in the rows of a backfill side by side. More gain nothing there: each waits for the
/// same table and the same log.
pub const COPY_SESSIONS_MAX: u16 = 16;

/// Replication origins that those sessions leave to links that have none yet: a link that gets none cannot apply at all.
pub const ORIGINS_LEFT: i64 = 2;

/// What applying a batch brought.
#[derive(Debug, Default)]
pub struct Applied {
    /// The number up to which everything is committed *and flushed*: what may be told to others.
    /// Lags behind what is committed where commits are asynchronous; unchanged by an open slice.
    pub flushed: Sequence,
    /// Whether the batch was redone change by change.
    pub redone: bool,
    /// Tables that a backfill has begun and not ended.
    pub joining: usize,
    /// Transactions that are parked.
    pub parked: usize,
    /// The transactions of the batch whose changes were not applied but kept aside.
    pub aside: Vec<Position>,
    /// Why those of them were that the target refused: the others wait behind one that is parked.
    pub refused: Vec<Fault>,
}

/// What somebody wants done with a parked transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Applied, as it came.
    Retry,
    /// Forgotten: its changes never come here.
    Discard,
}

impl Wish {
    /// The word used in our tables and in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Discard => "discard",
        }
    }
}

/// What was done with what is parked.
#[derive(Debug, Default)]
pub struct Attended {
    /// Transactions that are still parked.
    pub parked: usize,
    /// There was no time for everything that is asked for.
    pub more: bool,
    /// What those that are no longer have changed, by table and operation.
    pub replayed: Vec<Replayed>,
}

/// Changes of parked transactions that were applied.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// The table.
    pub shape: Arc<Shape>,
    /// What was done.
    pub operation: Operation,
    /// How many changes.
    pub rows: u64,
}

/// A target database.
///
/// A table that a backfill has marked is taken otherwise until it is done ([`Mark`](crate::change::Mark)): while
/// it waits, no change to it counts; from its beginning on, a change to a row that is not there passes, and one that
/// comes is put in place of what is there. In a step that a backfill brings, every change is a backfill's, and no
/// other step is in its batch.
///
/// A transaction that the target refuses may be parked ([`OnRefusal`]): its changes are kept in the commit that moves
/// the progress over it, and every later transaction that changes one of the same rows is parked behind it, refused or
/// not. What a backfill or a repair brings is never parked, and what is parked of exactly the rows it brings goes.
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

    /// Applies a batch. When it returns, the rows and the progress are committed together and visible, or, for
    /// a slice that leaves its transaction open, held in the open target transaction. What is committed need
    /// not be flushed: [`Sink::flush`] makes it so.
    ///
    /// # Errors
    /// [`Code::Superseded`](crate::fault::Code::Superseded) where a newer epoch holds the target or
    /// the progress is not at `batch.after`: nothing was written. A conflict or a refused row names
    /// its table, key and position: everything before its transaction is committed, nothing of it.
    /// A conflict's fault has a [`Conflict`] as its source, for whoever counts them.
    /// [`Code::TableDiffers`](crate::fault::Code::TableDiffers) where a table does not take what a transaction brings: the
    /// same, though the shape of the table may change within a batch.
    /// [`Code::Parking`](crate::fault::Code::Parking) where a transaction larger than memory is to be parked, which does
    /// not wait behind another from its first slice on: it is, when this sink is claimed and it is given again.
    fn apply(&mut self, batch: &Batch) -> impl Future<Output = Result<Applied>> + Send;

    /// Makes sure everything committed is flushed, and returns the number up to which it is. Also
    /// shows the target that this sink lives: to be called at least every two seconds, and soon after the
    /// last batch where no other follows it.
    fn flush(&mut self) -> impl Future<Output = Result<Sequence>> + Send;

    /// Rolls an open target transaction back: its first slice is next again.
    fn abandon(&mut self) -> impl Future<Output = Result<()>> + Send;

    /// Does what somebody asked for with what is parked, oldest first: applies a transaction, each in a commit of its own,
    /// or forgets it. What came behind one that is to be applied again is to be as well. After about a second it takes up no
    /// further one, or, where there was no time for all, after some times as long as the stream went on since. One that is
    /// refused again stays, and so does one that stands behind another. Nothing where a target transaction is open. To be
    /// called now and then while something is parked.
    fn attend(&mut self) -> impl Future<Output = Result<Attended>> + Send;
}

/// A verification that somebody asked for.
#[derive(Clone, Debug)]
pub struct Verification {
    /// Its name.
    pub id: String,
    /// How tables are compared.
    pub options: Options,
    /// The share of the time that may be spent reading, above 0 and at most 1.
    pub max_source_load: f64,
    /// Whether rows that differ are put right.
    pub mend: bool,
    /// Its tables; none where they are not known yet ([`Inspector::begin`]).
    pub tables: Option<Vec<Inspected>>,
}

/// A table that is to be compared.
#[derive(Clone, Debug)]
pub struct Inspected {
    /// Its place among the verification's tables.
    pub place: i32,
    /// The table.
    pub table: TableName,
    /// Everything up to here is compared.
    pub after: Option<Key>,
    /// How many rows were found that differ.
    pub differences: u64,
    /// Nothing is left to compare.
    pub done: bool,
}

/// How a table's comparison ended, or that it goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// There is more of it.
    GoesOn,
    /// Everything was compared.
    Ended,
    /// So much differs that the rest is not looked at.
    Enough,
    /// It could not be compared, for this reason.
    GivenUp(String),
}

/// What a target holds of a link, whoever has applied it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStanding {
    /// The last heartbeat that was applied.
    pub heartbeat: Option<Heartbeat>,
    /// Tables that a backfill or a recovery has begun and not ended.
    pub joining: usize,
    /// Transactions that are parked.
    pub parked: usize,
}

/// Looks into a target beside the sink, on a connection of its own, without taking hold of it.
pub trait Inspector: Send {
    /// What the target holds of the link; nothing, where our tables are not there or not ours to read.
    fn standing(&mut self) -> impl Future<Output = Result<LinkStanding>> + Send;

    /// The verification of this link that is next: the oldest that is not over, of those that somebody asked for where there
    /// are any.
    fn take_up(&mut self) -> impl Future<Output = Result<Option<Verification>>> + Send;

    /// Notes which tables the stream carries: those a verification asked for become its tables. What it asked for and
    /// cannot be compared becomes one that is done, and is given, with the reason.
    fn begin(
        &mut self,
        id: &str,
        carried: &[TableName],
    ) -> impl Future<Output = Result<Vec<(TableName, String)>>> + Send;

    /// Holds on to what is there now, for the next [`Inspector::look`] at this table. Waits for whoever alters it, but not
    /// for long: the link waits too.
    fn hold(&mut self, table: &TableName) -> impl Future<Output = Result<()>> + Send;

    /// What was there when it was held on to, asked what was answered: in the same ranges, by the same columns. What
    /// cannot be told is [`Found::Refused`].
    fn look(&mut self, about: &About, answer: &Answer) -> impl Future<Output = Result<Found>> + Send;

    /// Keeps what was compared of a table, in one commit. A row that was found before is noted once.
    fn keep(
        &mut self,
        id: &str,
        table: &Inspected,
        settled: &Settled,
        comparison: &Comparison,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Notes that rows found to differ are as they should be now.
    fn mended(
        &mut self,
        id: &str,
        table: &Inspected,
        keys: &[Key],
    ) -> impl Future<Output = Result<()>> + Send;

    /// Whether somebody wants the verification still, and it is this one's turn: one that nobody asked for waits, and goes on
    /// where it was, while there is another.
    fn is_wanted(&mut self, id: &str) -> impl Future<Output = Result<bool>> + Send;

    /// Counts an answer that was used, or a moment of rest: whoever waits for the verification knows by it that it goes on.
    fn goes_on(&mut self, id: &str) -> impl Future<Output = Result<()>> + Send;

    /// Lets go of what [`Inspector::hold`] held, whatever was going on.
    fn let_go(&mut self);

    /// Says what a verification waits for, or that it waits no more. False as [`Inspector::is_wanted`].
    fn wait_for(&mut self, id: &str, why: Option<&str>) -> impl Future<Output = Result<bool>> + Send;

    /// When a verification of every table last found them equal.
    fn last_clean(&mut self) -> impl Future<Output = Result<Option<Micros>>> + Send;

    /// Every table is compared, or given up: a verification is over.
    fn end(&mut self, id: &str) -> impl Future<Output = Result<()>> + Send;
}
