//! Reading a stream's own tail: what stands in it is the checkpoint.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::resume::{Open, Tail};
use crate::{
    changelog::{Bounds, Entry, Log, Reader},
    envelope::{
        Flags, Header, Kind, Tracker, Verdict,
        body::{self, Abort, Commit, Genesis, HeartbeatBody, Idle},
    },
    fault::{Code, Fault, Result},
    position::{Incarnation, Offset, Position, Sequence, WriterEpoch},
};

/// Kept beside the log now and then: bounds how much of the tail is read at a start, and says where
/// the sequence stood where retention took all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The stream's life.
    pub incarnation: Incarnation,
    /// Who wrote.
    pub epoch: WriterEpoch,
    /// A record that is durable.
    pub sequence: Sequence,
    /// An offset at or before that record's.
    pub offset: Offset,
    /// The last whole transaction up to that record.
    pub last: Option<Position>,
    /// Everything up to here is in the log up to that record.
    pub through: Position,
}

/// A stream's end, as its log has it.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// The last record's number; 0 where there is none.
    pub sequence: Sequence,
    /// What the tail says.
    pub tail: Tail,
    /// Where the log's own record of the sequence is gone, where it goes on.
    pub lost: bool,
    /// The highest epoch that wrote before this writer's barrier.
    pub highest: WriterEpoch,
}

/// How a writer knows its own barrier: by what it holds and where it stands. Not by its epoch, which a
/// server that was restored from a copy may have given to somebody before.
#[derive(Clone, Copy, Debug)]
pub struct OwnBarrier<'a> {
    /// Its value.
    pub value: &'a [u8],
    /// Where the log ended before it was appended.
    pub from: Offset,
}

/// What every record with a place says of it.
#[derive(Deserialize)]
struct Place {
    position: Position,
    #[serde(default)]
    ordinal: u64,
}

/// Reads the log up to this writer's barrier.
///
/// # Errors
/// The log is not this stream's, or damaged.
pub async fn read<L: Log>(
    log: &L,
    incarnation: Incarnation,
    own: OwnBarrier<'_>,
    bounds: Bounds,
    checkpoint: Option<Checkpoint>,
) -> Result<End> {
    let checkpoint = checkpoint.filter(|checkpoint| checkpoint.incarnation == incarnation);
    let within = checkpoint.filter(|checkpoint| checkpoint.offset >= bounds.low);
    let mut scan = match within {
        Some(from) => Scan {
            tracker: Some(Tracker::new(incarnation, from.epoch, from.sequence)),
            tail: Tail { last: from.last, through: Some(from.through), open: None },
            ..Scan::new(incarnation)
        },
        None => Scan::new(incarnation),
    };
    let mut reader = log.reader(within.map_or(bounds.low, |checkpoint| checkpoint.offset))?;
    let mut read = 0_u64;
    let mut highest = checkpoint.map_or(WriterEpoch(0), |checkpoint| checkpoint.epoch);
    'reading: loop {
        for entry in reader.read().await? {
            let place = entry.offset;
            let header = entry.header.clone();
            let header =
                header.map_err(|error| Fault::new(Code::RecordCorrupt, format!("{place}")).because(error))?;
            if header.kind == Kind::Barrier && place >= own.from && entry.value == own.value {
                break 'reading;
            }
            if header.incarnation == incarnation {
                highest = highest.max(header.epoch);
            }
            scan.take(&header, &entry).map_err(|fault| fault.at(place))?;
            read += 1;
            if read.is_multiple_of(1_000_000) {
                tracing::info!(
                    records = read,
                    at = place.0,
                    until = bounds.high.0,
                    "reading the stream's own tail"
                );
            }
        }
    }
    scan.settle().map_err(|error| {
        Fault::new(Code::RecordCorrupt, "the last change of the stream's own tail").because(error)
    })?;
    let Some(tracker) = scan.tracker else {
        // Nothing of ours is left. Whether anything ever was, the checkpoint knows.
        let end = checkpoint.map_or(
            End { sequence: Sequence(0), tail: Tail::default(), lost: false, highest },
            |checkpoint| {
                let since = (bounds.high.0 - checkpoint.offset.0).max(0).unsigned_abs();
                End {
                    sequence: Sequence(checkpoint.sequence.0 + since),
                    tail: Tail { last: None, through: Some(checkpoint.through), open: None },
                    lost: true,
                    highest,
                }
            },
        );
        return Ok(end);
    };
    Ok(End { sequence: tracker.sequence(), tail: scan.tail, lost: false, highest })
}

struct Scan {
    incarnation: Incarnation,
    /// None until the first record that counts.
    tracker: Option<Tracker>,
    /// The reader began before its place.
    catching_up: bool,
    tail: Tail,
    parts: Vec<u8>,
    /// The newest change that ends a transaction, and the newest that does not, where it came later.
    ends: Option<Bytes>,
    opens: Option<Bytes>,
}

impl Scan {
    fn new(incarnation: Incarnation) -> Self {
        Self {
            incarnation,
            tracker: None,
            catching_up: true,
            tail: Tail::default(),
            parts: Vec::new(),
            ends: None,
            opens: None,
        }
    }

    fn take(&mut self, header: &Header, entry: &Entry) -> Result<()> {
        if self.tracker.is_none() && header.incarnation == self.incarnation && header.kind != Kind::Barrier {
            self.tracker =
                Some(Tracker::new(self.incarnation, header.epoch, Sequence(header.sequence.0 - 1)));
        }
        let Some(tracker) = &mut self.tracker else {
            return if header.incarnation == self.incarnation {
                Ok(())
            } else {
                Err(foreign(header, self.incarnation))
            };
        };
        let verdict = tracker.place(header, self.catching_up).map_err(|error| match error {
            crate::envelope::Broken::Incarnation { .. } => foreign(header, self.incarnation),
            error => Fault::new(Code::SequenceBroken, "read the stream's own tail").because(error),
        })?;
        if verdict != Verdict::Next {
            return Ok(());
        }
        self.catching_up = false;
        self.count(header, entry).map_err(|error| {
            Fault::new(Code::RecordCorrupt, format!("{} record {}", header.kind, header.sequence))
                .because(error)
        })
    }

    fn count(&mut self, header: &Header, entry: &Entry) -> std::result::Result<(), serde_json::Error> {
        let value = &entry.value;
        let is_change = matches!(
            header.kind,
            Kind::Change | Kind::Truncate | Kind::Chunk | Kind::Watermark | Kind::Answer
        );
        if is_change {
            // Of these only the newest tells anything: read once it is known to be.
            let last = header.flags.has(Flags::LAST);
            if last {
                self.ends = Some(value.clone());
            }
            self.opens = (!last).then(|| value.clone());
            return Ok(());
        }
        self.settle()?;
        match header.kind {
            Kind::Genesis => self.tail.through = Some(body::from_value::<Genesis>(value)?.consistent),
            Kind::Idle => self.tail.through = Some(body::from_value::<Idle>(value)?.position),
            Kind::Heartbeat => {
                let position = body::from_value::<HeartbeatBody>(value)?.position;
                self.ended(position);
            }
            Kind::Commit => self.ended(body::from_value::<Commit>(value)?.position),
            Kind::Abort => {
                body::from_value::<Abort>(value)?;
                self.tail.open = None;
            }
            Kind::Part => {
                if header.flags.has(Flags::PART_FIRST) {
                    self.parts.clear();
                }
                self.parts.extend_from_slice(value);
                if header.flags.has(Flags::PART_LAST) {
                    let place: Place = body::from_value(&std::mem::take(&mut self.parts))?;
                    self.placed(&place, header.flags);
                }
            }
            Kind::Schema
            | Kind::Barrier
            | Kind::Change
            | Kind::Truncate
            | Kind::Chunk
            | Kind::Watermark
            | Kind::Answer => (),
        }
        Ok(())
    }

    /// Reads the newest changes, which tell where the last transactions ended and began.
    fn settle(&mut self) -> std::result::Result<(), serde_json::Error> {
        if let Some(value) = self.ends.take() {
            self.ended(body::from_value::<Place>(&value)?.position);
        }
        if let Some(value) = self.opens.take() {
            self.placed(&body::from_value(&value)?, Flags::NONE);
        }
        Ok(())
    }

    fn placed(&mut self, place: &Place, flags: Flags) {
        if flags.has(Flags::LAST) {
            self.ended(place.position);
        } else {
            self.tail.open = Some(Open { position: place.position, ordinal: Some(place.ordinal) });
        }
    }

    fn ended(&mut self, position: Position) {
        self.tail = Tail { last: Some(position), through: Some(position), open: None };
    }
}

fn foreign(header: &Header, ours: Incarnation) -> Fault {
    let message =
        format!("the topic holds incarnation {}, this database's stream is {ours}", header.incarnation);
    Fault::new(Code::StreamForeign, message)
}
