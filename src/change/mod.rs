//! What travels: the shape of a table, the cells of a row, a change, a slice of a transaction.
//!
//! Values are Postgres's own text from end to end and are never parsed into anything narrower, so a
//! NaN, a date BC or an array of arrays arrives as it left.

pub mod copy_text;
mod shape;

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use shape::{Column, Fingerprint, Identity, Shape};

use crate::{position::Position, region::Region, stamp::Micros};

/// One column's content in one row: five cases that never mix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// A value, as Postgres writes it as text.
    Value(Bytes),
    /// SQL NULL.
    Null,
    /// Not given: an out-of-line value the update did not touch, or a column an old image lacks.
    /// Never NULL.
    Unchanged,
    /// Kept back by policy before it left its region.
    Withheld,
    /// A value only the holder of a key can read.
    Encrypted {
        /// Names the key.
        key_id: Box<str>,
        /// The encrypted text.
        text: Bytes,
    },
}

impl Cell {
    /// The bytes this cell keeps in memory besides itself.
    pub fn weight(&self) -> usize {
        match self {
            Self::Value(text) | Self::Encrypted { text, .. } => text.len(),
            Self::Null | Self::Unchanged | Self::Withheld => 0,
        }
    }
}

/// A row's cells, one for each column of its shape, in that order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row(pub Box<[Cell]>);

impl Row {
    /// The bytes the row keeps in memory.
    pub fn weight(&self) -> usize {
        self.0.iter().map(|cell| cell.weight() + size_of::<Cell>()).sum()
    }
}

/// What a transaction did to one row, or to whole tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A row came.
    Insert {
        /// The table's shape.
        shape: Arc<Shape>,
        /// The row.
        new: Row,
    },
    /// A row changed.
    Update {
        /// The table's shape.
        shape: Arc<Shape>,
        /// The row before: all of it (replica identity FULL), or its key columns where the key
        /// changed, the rest [`Cell::Unchanged`]; none where the key is the new row's.
        old: Option<Row>,
        /// The row after.
        new: Row,
    },
    /// A row went.
    Delete {
        /// The table's shape.
        shape: Arc<Shape>,
        /// The row before, or its key columns and the rest [`Cell::Unchanged`].
        old: Row,
    },
    /// Tables were emptied, all in one statement: foreign keys forbid one by one.
    Truncate {
        /// The tables.
        shapes: Vec<Arc<Shape>>,
        /// `CASCADE` was given. Informs; the tables it reached are named.
        cascade: bool,
        /// `RESTART IDENTITY` was given.
        restart_identity: bool,
    },
    /// Rows of one table as they are here in the stream: a backfill copied them.
    Chunk {
        /// The table's shape.
        shape: Arc<Shape>,
        /// How many rows.
        rows: u32,
        /// Some of them may have come before: the process that copied them died.
        again: bool,
        /// Set where rows are mended: what is said is said of these rows alone, and whichever of them `text` does not
        /// hold is not there. In the same form, the key's columns given and the others NULL.
        keys: Option<Bytes>,
        /// Set where only rows that meet a condition are copied: the columns of the key they were read along. Each takes
        /// the place of what has the same values in them, and of other rows nothing is said.
        replace: Box<[usize]>,
        /// Set where the table is copied under one snapshot ([`Mark::Snapshot`]), of rows that came or went after it and
        /// before the mark.
        meanwhile: Option<Meanwhile>,
        /// The rows, in the text format of `COPY` ([`copy_text`]), every column of the shape in its order.
        text: Bytes,
    },
    /// Where a backfill stands with these tables.
    Watermark {
        /// The tables; one, unless they begin to wait.
        shapes: Vec<Arc<Shape>>,
        /// How it stands with them.
        mark: Mark,
    },
}

/// How a backfill stands with a table.
///
/// ```text
///  Wait           Begin          Done
///    │ rows: stale  │ empty, then  │ exactly as at the source
///    │ changes: not │ rows chunk by chunk; changes to
///    │ applied      │ rows that are not there yet pass
///
///  Snapshot                      Done
///    │ empty, then rows as they were │ what changed since is made up for,
///    │ at one moment; changes since  │ then exactly as at the source
///    │ then are kept, not applied
///
///  Stale                         Done
///    │ as it is, and mended; changes to rows that are not there pass
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// The tables will be copied. Until then nothing of them counts.
    Wait,
    /// The table is empty now, and its rows begin to come.
    Begin,
    /// The table is empty now, and its rows begin to come as they were at one moment before: nothing tells them apart, so
    /// no change can be held against those that have come. From here on changes to it are kept, and at its
    /// [`Mark::Done`] as many of each row are taken away and put in as went and came.
    Snapshot,
    /// The table's rows may be older than this place, and stay. A change to a row that is not there passes, one that
    /// comes takes the place of what is there, and what differs is mended.
    Stale,
    /// Every row of the table has come.
    Done,
    /// The table was compared, and what differed has come. Of one that is not [`Mark::Stale`] it says nothing: a backfill has
    /// begun it since, or it is whole.
    Settled,
}

impl Mark {
    /// The word used in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Begin => "begin",
            Self::Snapshot => "snapshot",
            Self::Stale => "stale",
            Self::Done => "done",
            Self::Settled => "settled",
        }
    }
}

/// What became of a row after the snapshot its table is copied under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Meanwhile {
    /// One like it came.
    Came,
    /// One like it went.
    Gone,
}

impl Change {
    /// The table, or the first of them.
    pub fn shape(&self) -> &Arc<Shape> {
        match self {
            Self::Insert { shape, .. }
            | Self::Update { shape, .. }
            | Self::Delete { shape, .. }
            | Self::Chunk { shape, .. } => shape,
            Self::Truncate { shapes, .. } | Self::Watermark { shapes, .. } => &shapes[0],
        }
    }

    /// Every table it names.
    pub fn shapes(&self) -> &[Arc<Shape>] {
        match self {
            Self::Truncate { shapes, .. } | Self::Watermark { shapes, .. } => shapes,
            change => std::slice::from_ref(change.shape()),
        }
    }

    /// Whether it is a backfill's: it is applied alone, never planned together with others.
    pub fn is_copy(&self) -> bool {
        matches!(self, Self::Chunk { .. } | Self::Watermark { .. })
    }

    /// How many rows it is of; 1 for what is not of rows.
    pub fn rows(&self) -> u64 {
        if let Self::Chunk { rows, .. } = self { u64::from(*rows) } else { 1 }
    }

    /// The operation's name in metrics and messages.
    pub fn operation(&self) -> Operation {
        match self {
            Self::Insert { .. } => Operation::Insert,
            Self::Update { .. } => Operation::Update,
            Self::Delete { .. } => Operation::Delete,
            Self::Truncate { .. } => Operation::Truncate,
            Self::Chunk { .. } => Operation::Copy,
            Self::Watermark { .. } => Operation::Watermark,
        }
    }

    /// The bytes the change keeps in memory.
    pub fn weight(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Insert { new, .. } => new.weight(),
                Self::Update { old, new, .. } => old.as_ref().map_or(0, Row::weight) + new.weight(),
                Self::Delete { old, .. } => old.weight(),
                Self::Truncate { .. } | Self::Watermark { .. } => 0,
                Self::Chunk { text, keys, .. } => text.len() + keys.as_ref().map_or(0, Bytes::len),
            }
    }
}

/// What kind of statement made a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// INSERT, COPY.
    Insert,
    /// UPDATE.
    Update,
    /// DELETE.
    Delete,
    /// TRUNCATE.
    Truncate,
    /// A backfill's rows.
    Copy,
    /// A backfill's mark.
    Watermark,
}

impl Operation {
    /// Every kind, in the order of their numbers.
    pub const ALL: [Self; 6] =
        [Self::Insert, Self::Update, Self::Delete, Self::Truncate, Self::Copy, Self::Watermark];

    /// The word used in metrics, logs and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Truncate => "truncate",
            Self::Copy => "copy",
            Self::Watermark => "watermark",
        }
    }
}

/// A change and its place in its transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ordered {
    /// Counted from 0 before anything is filtered: gaps are legal, going back is not.
    pub ordinal: u64,
    /// What happened.
    pub change: Change,
}

/// What is known of a transaction from its first record on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionHead {
    /// Its commit: until the last record is seen, `end` repeats `commit`.
    pub position: Position,
    /// The commit timestamp at the origin, given once.
    pub time: Micros,
    /// The region it was first committed in.
    pub origin: Region,
}

/// A slice of one transaction, in order; most transactions are one slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The transaction's, with its `end` known where `last` is set.
    pub head: TransactionHead,
    /// Its changes.
    pub changes: Vec<Ordered>,
    /// Whether the transaction begins here.
    pub first: bool,
    /// Whether it ends here.
    pub last: bool,
}

impl Frame {
    /// Whether the frame holds its transaction from beginning to end.
    pub fn is_whole(&self) -> bool {
        self.first && self.last
    }
}
