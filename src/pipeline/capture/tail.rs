//! Reading a stream's own tail: what stands in it is the checkpoint.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::resume::{Open, Tail};
use crate::{
    changelog::{Bounds, Entry, Log, Reader},
    envelope::{
        Flags, Header, Kind, PACK_RECORDS_MAX, Tracker, Verdict,
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
    /// The last record's number; 0 where there is none. Where the tail is gone, none was higher.
    pub sequence: Sequence,
    /// What the tail says; where it is gone, what the checkpoint does.
    pub tail: Tail,
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
    /// Its epoch.
    pub epoch: WriterEpoch,
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
/// A checkpoint may be a dead writer's, kept after its successor's barrier: of records that the barrier cut off. It is
/// taken for true where its record comes, and then the barrier of the very next epoch: nobody's else can stand before it.
/// Otherwise all that is kept is read, as where a writer raised its epoch and died before its barrier.
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
    let mut highest = checkpoint.map_or(WriterEpoch(0), |checkpoint| checkpoint.epoch);
    let mut found = None;
    if let Some(from) = checkpoint.filter(|checkpoint| checkpoint.offset >= bounds.low) {
        let scan = Scan::behind(&from);
        match read_from(log, from.offset, own, bounds, scan, &mut highest).await {
            Ok(scan) => found = Some(scan),
            Err(fault) if fault.code() == Code::SequenceBroken => {
                tracing::warn!(
                    sequence = from.sequence.0,
                    epoch = from.epoch.0,
                    offset = from.offset.0,
                    "the stream's tail does not fit its checkpoint, which a writer may have kept when another had taken its place: reading all that is kept of the stream: {fault}"
                );
            }
            Err(fault) => return Err(fault),
        }
    }
    let scan = match found {
        Some(scan) => scan,
        None => read_from(log, bounds.low, own, bounds, Scan::new(incarnation), &mut highest).await?,
    };
    let Some(tracker) = scan.tracker else {
        // Nothing of ours is left. Whether anything ever was, the checkpoint knows.
        let end =
            checkpoint.map_or(End { sequence: Sequence(0), tail: Tail::default(), highest }, |checkpoint| {
                // More numbers than there can have been: several records may stand at an offset.
                let offsets = (bounds.high.0 - checkpoint.offset.0).max(0).unsigned_abs();
                let since = offsets * PACK_RECORDS_MAX as u64;
                End {
                    sequence: Sequence(checkpoint.sequence.0 + since),
                    tail: Tail {
                        last: checkpoint.last,
                        through: Some(checkpoint.through),
                        open: None,
                        gone: true,
                    },
                    highest,
                }
            });
        return Ok(end);
    };
    Ok(End { sequence: tracker.sequence(), tail: scan.tail, highest })
}

async fn read_from<L: Log>(
    log: &L,
    from: Offset,
    own: OwnBarrier<'_>,
    bounds: Bounds,
    mut scan: Scan,
    highest: &mut WriterEpoch,
) -> Result<Scan> {
    let mut reader = log.reader(from)?;
    let mut read = 0_u64;
    'reading: loop {
        for entry in reader.read().await? {
            let place = entry.offset;
            let header = entry.header.clone();
            let header =
                header.map_err(|error| Fault::new(Code::RecordCorrupt, format!("{place}")).because(error))?;
            if header.kind == Kind::Barrier && place >= own.from && entry.value == own.value {
                break 'reading;
            }
            if header.incarnation == scan.incarnation {
                *highest = (*highest).max(header.epoch);
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
    scan.superseded_by(own.epoch)?;
    scan.settle().map_err(|error| {
        Fault::new(Code::RecordCorrupt, "the last change of the stream's own tail").because(error)
    })?;
    if scan.headless {
        let message =
            "the stream's own tail ends with a value whose first part is gone: where it was is not known";
        return Err(Fault::new(Code::RecordCorrupt, message));
    }
    Ok(scan)
}

/// What a checkpoint says is in the log.
#[derive(Clone, Copy)]
struct Claim {
    epoch: WriterEpoch,
    sequence: Sequence,
    /// The record was met.
    met: bool,
}

struct Scan {
    incarnation: Incarnation,
    /// None until the first record that counts.
    tracker: Option<Tracker>,
    /// The reader began before its place.
    catching_up: bool,
    /// The checkpoint that was begun with, until the barrier of the next writer.
    claim: Option<Claim>,
    /// The last barrier before the first record that counts: what is of a lower epoch does not.
    barrier: WriterEpoch,
    tail: Tail,
    /// The value in parts that is being read; none where retention took its first part.
    parts: Option<Vec<u8>>,
    /// Such a value has ended, and nothing that has a place has come since.
    headless: bool,
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
            claim: None,
            barrier: WriterEpoch(0),
            tail: Tail::default(),
            parts: None,
            headless: false,
            ends: None,
            opens: None,
        }
    }

    fn behind(from: &Checkpoint) -> Self {
        Self {
            tracker: Some(Tracker::new(from.incarnation, from.epoch, from.sequence)),
            tail: Tail { last: from.last, through: Some(from.through), open: None, gone: false },
            claim: Some(Claim { epoch: from.epoch, sequence: from.sequence, met: false }),
            ..Self::new(from.incarnation)
        }
    }

    /// The checkpoint's record must have come by now.
    fn bear_out(&self) -> Result<()> {
        match self.claim {
            Some(Claim { epoch, sequence, met: false }) => {
                let epoch = epoch.0;
                let message = format!(
                    "the checkpoint tells of record {sequence} of writer epoch {epoch}, which does not come where it should"
                );
                Err(Fault::new(Code::SequenceBroken, message))
            }
            _ => Ok(()),
        }
    }

    /// Another writer's barrier has come: of the next one, or somebody between them may have cut the checkpoint's off.
    fn superseded_by(&mut self, epoch: WriterEpoch) -> Result<()> {
        let Some(claim) = self.claim.filter(|claim| epoch > claim.epoch) else { return self.bear_out() };
        self.bear_out()?;
        if epoch.0 > claim.epoch.0 + 1 {
            let message = format!(
                "behind the checkpoint of writer epoch {} comes the barrier of {}, and none between",
                claim.epoch.0, epoch.0
            );
            return Err(Fault::new(Code::SequenceBroken, message));
        }
        self.claim = None;
        Ok(())
    }

    fn take(&mut self, header: &Header, entry: &Entry) -> Result<()> {
        if self.tracker.is_none() && header.incarnation == self.incarnation {
            if header.kind == Kind::Barrier {
                self.barrier = self.barrier.max(header.epoch);
            } else if header.epoch >= self.barrier {
                let before = Sequence(header.sequence.0 - 1);
                self.tracker = Some(Tracker::new(self.incarnation, header.epoch, before));
            }
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
        match verdict {
            Verdict::Known => {
                if let Some(claim) = &mut self.claim {
                    claim.met |= (claim.epoch, claim.sequence) == (header.epoch, header.sequence);
                }
            }
            Verdict::Barrier => {
                if self.claim.is_some_and(|claim| header.epoch > claim.epoch) {
                    self.superseded_by(header.epoch)?;
                }
            }
            Verdict::Next => self.bear_out()?,
            Verdict::Stale => (),
        }
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
                    self.parts = Some(Vec::new());
                }
                let is_last = header.flags.has(Flags::PART_LAST);
                match &mut self.parts {
                    Some(parts) => parts.extend_from_slice(value),
                    None => self.headless |= is_last,
                }
                if let Some(value) = self.parts.take_if(|_| is_last) {
                    let place: Place = body::from_value(&value)?;
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
            self.headless = false;
            self.tail.open = Some(Open { position: place.position, ordinal: Some(place.ordinal) });
        }
    }

    fn ended(&mut self, position: Position) {
        self.headless = false;
        self.tail = Tail { last: Some(position), through: Some(position), open: None, gone: false };
    }
}

fn foreign(header: &Header, ours: Incarnation) -> Fault {
    let message =
        format!("the topic holds incarnation {}, this database's stream is {ours}", header.incarnation);
    Fault::new(Code::StreamForeign, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        lsn::Lsn,
        position::{Offset, PostgresPosition},
        stamp::Micros,
    };

    #[test]
    fn a_value_whose_first_part_is_gone_is_passed_over_where_something_follows() {
        let count = |scan: &mut Scan, kind, flags, value: Vec<u8>| {
            let (epoch, incarnation, sequence) = (WriterEpoch(1), Incarnation(1), Sequence(1));
            let header = Header { kind, flags, epoch, incarnation, sequence };
            let entry = Entry {
                offset: Offset(7),
                more: false,
                appended: Micros(0),
                header: Ok(header),
                value: value.into(),
            };
            scan.count(&header, &entry).unwrap();
        };
        let at = PostgresPosition { commit: Lsn(1), end: Lsn(2), xid: 3, time: Micros(4) };
        let position = Position::Postgres(at);
        let place = body::to_value(&Commit { position });
        let (half, rest) = place.split_at(9);

        let mut scan = Scan::new(Incarnation(1));
        count(&mut scan, Kind::Part, Flags::NONE, half.to_vec());
        count(&mut scan, Kind::Part, Flags::PART_LAST, rest.to_vec());
        assert!(scan.headless && scan.tail.open.is_none(), "where it was is not known");
        count(&mut scan, Kind::Part, Flags::PART_FIRST, half.to_vec());
        count(&mut scan, Kind::Part, Flags::PART_LAST, rest.to_vec());
        assert!(!scan.headless && scan.tail.open.is_some());
        count(&mut scan, Kind::Part, Flags::PART_LAST, rest.to_vec());
        count(&mut scan, Kind::Commit, Flags::LAST, body::to_value(&Commit { position }));
        assert!(!scan.headless && scan.tail.last == Some(position));
    }
}
