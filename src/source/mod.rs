//! The port to a source: a database's committed transactions, in commit order.

pub mod memory;
pub mod postgres;

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{
    change::{Mark, Ordered, Shape},
    envelope::body::Server,
    fault::Result,
    position::{Incarnation, Position, WriterEpoch},
    verify::{Answer, Key, Question, TableName},
};

/// What a source sends.
#[derive(Clone, Debug)]
pub enum Event {
    /// A transaction begins; its `end` is not known yet and repeats `commit`.
    Begin(Position),
    /// The transaction begun was applied from elsewhere, under this replication origin.
    Origin(String),
    /// A change of the transaction begun.
    Change(Ordered),
    /// One of our own heartbeats, inside the transaction begun.
    Heartbeat(Bytes),
    /// A watermark our own copier sent, inside the transaction begun.
    Watermark(Bytes),
    /// The transaction begun ends here.
    Commit(Position),
    /// Everything up to here has been sent.
    Idle(Position),
}

/// What a source found when it took hold of its log.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The server.
    pub server: Server,
    /// The stream's life, as the database knows it.
    pub incarnation: Incarnation,
    /// Whether the stream has begun: then nothing may be created in place of what is missing.
    pub live: bool,
    /// The stream holds everything committed after this.
    pub consistent: Position,
    /// The server sends again everything committed after this, and nothing before it.
    pub confirmed: Position,
    /// Up to where the server's log goes now.
    pub written: Position,
    /// The tables of the stream, `schema.table`.
    pub scope: Vec<String>,
}

/// A database's log. One session at a time holds it.
pub trait Source: Send {
    /// Works beside the log while it is read.
    type Keeper: Keeper;
    /// Reads rows that were there before the stream.
    type Copier: Copier;
    /// Looks at what is kept of the log, whether or not it is read.
    type Watcher: Watcher;

    /// Takes hold of the log and begins to read it.
    ///
    /// # Errors
    /// [`Code::SlotBusy`](crate::fault::Code::SlotBusy) where another session holds it.
    fn open(&mut self) -> impl Future<Output = Result<(Opened, Self::Keeper, Self::Copier)>> + Send;

    /// The next event. Safe to be cancelled.
    fn next(&mut self) -> impl Future<Output = Result<Event>> + Send;

    /// The log up to here may be released: it stands elsewhere, durably.
    fn confirm(&mut self, position: &Position);

    /// Looks at what is kept of the log. Connects only when it looks.
    fn watcher(&self) -> Self::Watcher;
}

/// A part of what a backfill is to bring.
#[derive(Debug)]
pub struct Portion {
    /// The regions it is for.
    pub to: Vec<String>,
    /// What it is.
    pub content: Content,
}

/// What a portion is.
#[derive(Debug)]
pub enum Content {
    /// How the backfill stands with tables.
    Mark {
        /// The tables.
        shapes: Vec<Arc<Shape>>,
        /// How it stands with them.
        mark: Mark,
        /// Whether they are all the stream carries, and wait: then a region may begin it here.
        every: bool,
    },
    /// Rows of a table begin to come, and the stream says nothing of it: only those that meet a condition do, in place
    /// of those with the same keys.
    Begin {
        /// The table.
        shape: Arc<Shape>,
    },
    /// Rows of one table, read between the low watermark and now.
    Rows(Rows),
    /// What another region asked for, read in the same way.
    Answer {
        /// The answer.
        answer: Answer,
        /// What was read for it, where it was a table.
        read: Option<ReadFor>,
        /// What comes with it.
        with: With,
    },
}

/// What was read for an answer.
#[derive(Debug)]
pub struct ReadFor {
    /// The table.
    pub shape: Arc<Shape>,
    /// The columns that tell its rows apart.
    pub key: Box<[usize]>,
    /// Which transactions were seen.
    pub seen: Snapshot,
}

/// What comes with an answer, in its transaction.
#[derive(Debug)]
pub enum With {
    /// Nothing.
    Nothing,
    /// Rows that are to be mended.
    Rows(Mend),
    /// How it stands with tables.
    Mark {
        /// The tables.
        shapes: Vec<Arc<Shape>>,
        /// How it stands with them.
        mark: Mark,
    },
    /// A place to begin the stream at, with the rows that the other region has.
    Recovery {
        /// The tables whose rows may be stale there.
        shapes: Vec<Arc<Shape>>,
        /// Tables of which that is not known ([`Start::left_out`](crate::envelope::body::Start::left_out)).
        left_out: Vec<TableName>,
    },
}

/// Rows that are to be put in place of another region's.
#[derive(Debug)]
pub struct Mend {
    /// Their keys,
    pub keys: Vec<Key>,
    /// and those of them that there are, as text ([`copy_text`](crate::change::copy_text)), whole lines.
    pub text: Bytes,
}

/// Rows of one table.
#[derive(Debug)]
pub struct Rows {
    /// The table.
    pub shape: Arc<Shape>,
    /// The columns that tell its rows apart. None where nothing does: then all of its rows are read under one snapshot,
    /// portion by portion.
    pub key: Box<[usize]>,
    /// Whether they are the first of a table that is read under one snapshot. Only before these a low watermark is sent.
    pub first: bool,
    /// Which transactions the rows show. One whose commit stands before the low watermark in the log may be missing:
    /// a server shows a transaction to others a moment after it wrote its commit.
    pub seen: Snapshot,
    /// Whether they are the table's last.
    pub done: bool,
    /// Whether some of them may have been read by a copier before this one.
    pub again: bool,
    /// Whether only those that meet a condition are among them: each takes the place of what has its key, and the table
    /// neither begins nor is done with them.
    pub replace: bool,
    /// The rows as text ([`copy_text`](crate::change::copy_text)), whole lines.
    pub texts: Vec<Bytes>,
}

/// Which transactions a reader sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Every transaction below is seen, where it committed.
    pub low: u64,
    /// None from here on is.
    pub high: u64,
    /// Those between the two that are not.
    pub open: Vec<u64>,
}

impl Snapshot {
    /// Whether a transaction that has committed since is among what was seen. `xid` is the lower half of its number,
    /// as the log has it: the nearest number to the snapshot with that half is meant.
    pub fn sees(&self, xid: u32) -> bool {
        let ahead = xid.wrapping_sub(self.high as u32).cast_signed();
        let number = self.high.wrapping_add_signed(i64::from(ahead));
        number < self.low || number < self.high && !self.open.contains(&number)
    }
}

/// Reads what backfills are asked for, beside a log that is being read, on a connection of its own.
///
/// ```text
///  next: low watermark ▶ read      send: high watermark      done
///            │                              │                 ▲
///  log ──────┴── changes meanwhile ─────────┴──▶ capture ─────┘ durable
/// ```
pub trait Copier: Send + 'static {
    /// Tables of backfills that are not done, by their quoted names.
    fn filling(&mut self) -> impl Future<Output = Result<Vec<String>>> + Send;

    /// The next portion; none where nothing is asked for now. Sends the low watermark `low` makes of a table's name
    /// before a row is read.
    fn next(
        &mut self,
        low: impl Fn(&str) -> String + Send,
    ) -> impl Future<Output = Result<Option<Portion>>> + Send;

    /// Reads what another region asks. Sends the low watermark `low` makes of a table's name twice before a row is
    /// read: what was committed before the first a server shows by the time the second is through, where nothing hangs
    /// there. What was committed before the second is held against what is seen. Where `given_up` comes before that of a
    /// table without a key, which may take minutes, there is none.
    ///
    /// # Errors
    /// Where the database cannot be asked now; what it will not tell is an answer too.
    fn answer(
        &mut self,
        question: &Question,
        low: impl Fn(&str) -> String + Send,
        given_up: impl Future<Output = ()> + Send,
    ) -> impl Future<Output = Result<Option<Portion>>> + Send;

    /// The regions that what is given next is for, and how far the slowest may be behind; none where nobody cares.
    fn lag_max(&self) -> Option<(&[String], Duration)>;

    /// Says that nothing is given because something is waited for, to whoever follows it.
    fn wait_for(&mut self, why: &str) -> impl Future<Output = Result<()>> + Send;

    /// Sends a watermark.
    fn send(&mut self, watermark: &str) -> impl Future<Output = Result<()>> + Send;

    /// The oldest portion that [`Copier::next`] gave and was not told of is durable. `start` is where a region may
    /// begin the stream, of one that makes this possible.
    fn done(&mut self, start: Option<&str>) -> impl Future<Output = Result<()>> + Send;

    /// The newest portion was not taken, for this reason: it is next again, smaller and later.
    fn again(&mut self, why: &'static str);

    /// A table, by its quoted name, must be copied from its first row on. Kept before it returns.
    fn restart(&mut self, table: &str) -> impl Future<Output = Result<()>> + Send;

    /// What is given from here on is written by the writer of this epoch: where a later one has taken the stream over, nothing
    /// of it is kept.
    fn written_by(&mut self, epoch: WriterEpoch);

    /// What was given may be gone from the log: every backfill that is not done begins anew, with all its tables.
    fn begin_anew(&mut self) -> impl Future<Output = Result<()>> + Send;

    /// Where regions may begin the stream, of backfills that are not done: the region, and what
    /// [`Copier::done`] was given.
    fn starts(&mut self) -> impl Future<Output = Result<Vec<(String, String)>>> + Send;
}

/// What a database keeps of its log for the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Log kept for us, in bytes.
    pub retained_bytes: Option<u64>,
    /// Log that may still be written before the server gives the slot up, where it has a limit.
    pub safe_bytes: Option<u64>,
}

/// What a database says beside the stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vitals {
    /// What it keeps of its log.
    pub kept: Kept,
    /// What is amiss though nothing stops: tables in scope that are not published, or should not be as they are, each with
    /// the reason; and what the server is set to.
    pub amiss: Vec<String>,
}

/// Works beside a log that is being read, on a connection of its own.
pub trait Keeper: Send + 'static {
    /// Takes the next writer epoch, higher than every one before and than `above`.
    fn raise_epoch(&mut self, above: WriterEpoch) -> impl Future<Output = Result<WriterEpoch>> + Send;

    /// Notes that the stream has begun.
    fn mark_live(&mut self) -> impl Future<Output = Result<()>> + Send;

    /// Sends a heartbeat through the log.
    fn beat(&mut self, content: &str) -> impl Future<Output = Result<()>> + Send;

    /// Looks after the slot and the publication.
    ///
    /// # Errors
    /// What must stop the stream.
    fn inspect(&mut self) -> impl Future<Output = Result<Vitals>> + Send;
}

/// Looks at what a database keeps of its log while no session does, on a connection of its own: also where the log cannot
/// be read, or another session holds it.
pub trait Watcher: Send {
    /// What is kept now; unknown where there is nothing to keep it for. Safe to be cancelled.
    ///
    /// # Errors
    /// The database cannot be asked now.
    fn look(&mut self) -> impl Future<Output = Result<Kept>> + Send;

    /// Lets go of the connection, until it is looked again.
    fn rest(&mut self);
}

#[cfg(test)]
mod tests {
    use super::Snapshot;

    #[test]
    fn a_snapshot_sees_by_the_lower_half_of_a_number() {
        // Numbers have gone round once: the log has their lower half.
        let round = 1 << 32;
        let seen = Snapshot { low: round + 5, high: round + 10, open: vec![round + 5, round + 7] };
        for (xid, sees) in [(4, true), (5, false), (6, true), (7, false), (9, true), (10, false), (11, false)]
        {
            assert_eq!(seen.sees(xid), sees, "{xid}");
        }
        assert!(seen.sees(u32::MAX), "the last number before they went round");
        let before = Snapshot { low: round - 3, high: round - 2, open: vec![round - 3] };
        assert!(!before.sees(1), "it began after they went round");
        assert!(before.sees(u32::MAX - 3));
    }
}
