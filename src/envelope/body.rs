//! The values of records that carry no row: small, rare, and plain serde.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::{
    change::{Mark, Meanwhile, Shape},
    position::{Incarnation, Offset, Position, Sequence, WriterEpoch},
    stamp::Micros,
    verify::{Answer, TableName},
};

/// Every value of ours is a JSON object with our block under this name.
#[derive(Serialize, Deserialize)]
struct Ours<T> {
    landfall: T,
}

/// Begins an incarnation: what the stream is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Genesis {
    /// The region whose changes these are.
    pub region: String,
    /// The stream's name.
    pub stream: String,
    /// The server.
    pub server: Server,
    /// The database.
    pub database: String,
    /// Everything committed after this is in the stream.
    pub consistent: Position,
    /// The published tables, `schema.table`.
    pub scope: Vec<String>,
    /// When it was written, on the source daemon's clock.
    pub time: Micros,
}

/// Which server, and which of its lives. Changes between writer epochs only, so genesis and barriers
/// name it and no other record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// `pg_control_system().system_identifier`, as text: it exceeds what JSON numbers keep.
    pub system: String,
    /// The timeline. Shown; no part of equality.
    pub timeline: u32,
}

/// A writer raised its epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Barrier {
    /// The server it reads.
    pub server: Server,
    /// When, on the source daemon's clock.
    pub time: Micros,
    /// Set where retention took the stream's tail: where the sequence goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anchor: Option<Anchor>,
}

/// Where a sequence goes on whose last numbers retention took.
///
/// A reader that has everything up to `after` takes `next` as its next number and passes over the
/// transactions it already has; one that has not has lost something and halts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// The slot's confirmed position: the server sends everything after it again.
    pub after: Position,
    /// The next record's number, higher than any the lost tail can have had.
    pub next: Sequence,
}

/// The last change of this transaction was appended before it was known to be the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// Where the transaction ends.
    pub position: Position,
}

/// What there is of this transaction is void.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abort {
    /// The transaction.
    pub position: Position,
}

/// Nothing of interest up to here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idle {
    /// Up to where.
    pub position: Position,
}

/// A heartbeat that went through the source's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatBody {
    /// Where its transaction ends.
    pub position: Position,
    /// What the source's daemon wrote.
    pub beat: Beat,
}

/// What a source's daemon writes into its database's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// When it was sent, on the source daemon's clock.
    pub sent: Micros,
    /// For each inbound link, the peer's last beat as it arrived here: lets the peer estimate the
    /// offset between the clocks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub echo: Vec<Echo>,
}

/// A peer's beat, sent back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Echo {
    /// The peer.
    pub region: String,
    /// When it sent, on its clock.
    pub sent: Micros,
    /// When that arrived, on the clock of who echoes.
    pub arrived: Micros,
}

/// Tables were emptied in one statement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Truncate {
    /// Its transaction.
    pub position: Position,
    /// Its place there.
    pub ordinal: u64,
    /// The origin region.
    pub origin: String,
    /// The tables' shapes, by fingerprint.
    pub shapes: Vec<String>,
    /// `CASCADE` was given.
    pub cascade: bool,
    /// `RESTART IDENTITY` was given.
    pub restart_identity: bool,
}

/// Rows a backfill copied. A field that is not known may say that they are to be taken otherwise: it is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chunk<'a> {
    /// Its transaction: the one that carried the high watermark.
    pub position: Position,
    /// Its place there.
    pub ordinal: u64,
    /// The region the rows are of.
    pub origin: Cow<'a, str>,
    /// The regions it is for. To the others it is nothing.
    pub to: Vec<Cow<'a, str>>,
    /// The table's shape, by fingerprint.
    pub shape: Cow<'a, str>,
    /// How many rows.
    pub rows: u32,
    /// Set where some of them may have come before: the process that copied them died.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
    /// Set where rows are mended: the keys of those the record speaks of, as rows with NULL in every other column.
    /// Whichever of them `copy` does not hold is not there.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<Cow<'a, str>>,
    /// Set where only rows that meet a condition are copied: the names of the columns by which each takes the place of
    /// another. Of other rows nothing is said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replace: Vec<Cow<'a, str>>,
    /// Set where they came or went after the snapshot their table is copied under: to be made up for when it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meanwhile: Option<Meanwhile>,
    /// The rows, in the text format of `COPY`.
    #[serde(borrow)]
    pub copy: Cow<'a, str>,
}

/// Where a backfill stands with tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watermark {
    /// Its transaction.
    pub position: Position,
    /// Its place there.
    pub ordinal: u64,
    /// The region whose tables they are.
    pub origin: String,
    /// The regions it is for. To the others it is nothing.
    pub to: Vec<String>,
    /// The tables' shapes, by fingerprint.
    pub shapes: Vec<String>,
    /// How it stands with them.
    pub mark: Mark,
}

/// What a region holds, at the place of its transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// Its transaction.
    pub position: Position,
    /// Its place there.
    pub ordinal: u64,
    /// The region that answers.
    pub origin: String,
    /// The region it is for. To the others it is nothing.
    pub to: Vec<String>,
    /// The answer.
    pub answer: Answer,
}

/// Where a stream may be begun in its middle: every table it carries is copied, or compared, from here on. Kept in the state
/// topic for each region that was to be filled ([`crate::names::start_key`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The stream's life.
    pub incarnation: Incarnation,
    /// Who wrote.
    pub epoch: WriterEpoch,
    /// The first record that counts.
    pub sequence: Sequence,
    /// An offset at or before that record's.
    pub offset: Offset,
    /// Set where no rows follow but those in which one target differs: only who asked for it may begin there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recovery: bool,
    /// In a recovery, the last record of the transaction that says which tables are to be compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub through: Option<Sequence>,
    /// In a recovery, tables the stream carries that are not compared: nothing tells which of the two regions has their rows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<TableName>,
}

/// A table's shape, and the fingerprint changes name it by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schema {
    /// Its fingerprint, 16 hexadecimal digits.
    pub fingerprint: String,
    /// The shape.
    #[serde(flatten)]
    pub shape: Shape,
}

/// The body as a record's value.
pub fn to_value<T: Serialize>(body: &T) -> Vec<u8> {
    serde_json::to_vec(&Ours { landfall: body }).expect("bodies have text keys and finite numbers")
}

/// A record's value as the body it should be.
///
/// # Errors
/// What does not fit.
pub fn from_value<'a, T: Deserialize<'a>>(value: &'a [u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice::<Ours<T>>(value).map(|ours| ours.landfall)
}
