//! Where a sink stands in a stream: the row it commits together with the rows it applied.

use crate::{
    position::{Incarnation, Offset, Position, Sequence, WriterEpoch},
    stamp::Micros,
};

/// A sink's place in one stream, as kept in the target database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The stream's life the place is in.
    pub incarnation: Incarnation,
    /// The last record applied or passed over.
    pub through: Cursor,
    /// The last applied heartbeat, where there was one.
    pub heartbeat: Option<Heartbeat>,
    /// The sequence number up to which changes were grouped, several source transactions to a target
    /// transaction: rows up to here carry the commit timestamp of their group's last.
    pub grouped_through: Sequence,
}

/// One record's place, by everything a reader needs to go on behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Its number: the truth.
    pub sequence: Sequence,
    /// The highest writer epoch whose barrier, or record, was seen.
    pub epoch: WriterEpoch,
    /// Where it stood in Kafka, or just before that where more stand there: a hint where to look.
    pub offset: Offset,
    /// The last source position that is complete up to here.
    pub position: Option<Position>,
}

/// When a record came, on two clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// When its log took it in, on the log's clock.
    pub appended: Micros,
    /// When it was read, on the sink daemon's clock.
    pub fetched: Micros,
}

/// A heartbeat's times, on two clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// When it was sent, on the source daemon's clock.
    pub sent: Micros,
    /// When its log took it in, on the log's clock; unknown of one that was read from a progress row.
    pub appended: Option<Micros>,
    /// When it arrived, on the sink daemon's clock.
    pub arrived: Micros,
}
