//! Places: in a database's log, and in a Kafka topic. Two types that never convert into each other.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{lsn::Lsn, stamp::Micros};

/// Where a committed transaction ends in its source database's log, tagged by database kind.
///
/// Sinks keep it and show it; what they compare is the [`Sequence`]. The only order they ever ask of
/// it is [`Position::covers`], where retention took the tail of a log and sequence numbers alone
/// cannot say what a sink already has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Position {
    /// A Postgres server's log.
    Postgres(PostgresPosition),
}

/// The end of one transaction in a Postgres server's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresPosition {
    /// Where the commit record begins. Identifies the transaction.
    pub commit: Lsn,
    /// Where the commit record ends. Confirming this, and no less, releases the transaction.
    pub end: Lsn,
    /// The transaction's id; 0 for a place that belongs to no transaction (an idle record).
    pub xid: u32,
    /// The commit timestamp; for an idle record the server's clock.
    pub time: Micros,
}

impl Position {
    /// Whether whoever stands here has everything up to and including `other`.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Postgres(ours), Self::Postgres(theirs)) => ours.end >= theirs.end,
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postgres(at) => write!(f, "{} (xid {})", at.end, at.xid),
        }
    }
}

/// The number of a record in its stream: dense, from the genesis on, the same for every reader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The genesis record's.
    pub const GENESIS: Self = Self(1);

    /// The one after this.
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("2^64 records do not fit into a stream's life"))
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// A record's place in a Kafka partition. A hint: jumps over what Kafka keeps for itself, and means
/// nothing in another cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(pub i64);

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "offset {}", self.0)
    }
}

/// One life of a stream, from its genesis on. A recreated topic has another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Which source process writes a stream: raised by each before it appends anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WriterEpoch(pub u32);

/// Which sink process applies a stream to a target: raised by each before it applies anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ApplyEpoch(pub i64);
