//! The end of a stream: numbers records, cuts what is too large, and knows what is durable.

use std::{collections::VecDeque, time::Duration};

use crate::{
    changelog::Writer,
    envelope::{Flags, Header, Kind},
    fault::Result,
    position::{Incarnation, Offset, Position, Sequence, WriterEpoch},
};

/// Appends a stream's records.
pub struct Appender<W> {
    writer: W,
    incarnation: Incarnation,
    epoch: WriterEpoch,
    sequence: Sequence,
    max_record_bytes: usize,
    /// Records given to the writer.
    given: u64,
    /// What may be confirmed once that many records are acknowledged, oldest first. Bounded by the
    /// writer's queue, which holds every record that is given and not acknowledged.
    pending: VecDeque<Mark>,
    /// An offset at or before the record after which this many were given: see [`Appender::durable`].
    sample: Option<(Offset, u64)>,
    /// How long the writer made us wait, since it was last asked for.
    waited: Duration,
}

struct Mark {
    given: u64,
    sequence: Sequence,
    position: Position,
    /// The end of a transaction of the stream, not just a place.
    transaction: bool,
}

/// What is known to be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durable {
    /// Everything up to here is in every in-sync replica.
    pub position: Position,
    /// The record that says so.
    pub sequence: Sequence,
    /// The last transaction of the stream among what became durable, where there was one.
    pub transaction: Option<Position>,
    /// An offset at or before that record's, where the log told one.
    pub offset: Option<Offset>,
}

impl<W: Writer> Appender<W> {
    /// Continues a stream behind `sequence`.
    pub fn new(
        writer: W,
        incarnation: Incarnation,
        epoch: WriterEpoch,
        sequence: Sequence,
        max_record_bytes: usize,
    ) -> Self {
        let pending = VecDeque::new();
        Self {
            writer,
            incarnation,
            epoch,
            sequence,
            max_record_bytes,
            given: 0,
            pending,
            sample: None,
            waited: Duration::ZERO,
        }
    }

    /// The last number given.
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// Goes on behind `sequence` from here.
    pub fn continue_after(&mut self, sequence: Sequence) {
        self.sequence = sequence;
    }

    /// The writer beneath.
    pub fn writer(&mut self) -> &mut W {
        &mut self.writer
    }

    /// Appends a barrier, outside the sequence.
    pub async fn barrier(&mut self, value: &[u8]) -> Result<()> {
        self.put(Kind::Barrier, Flags::NONE, Sequence(0), b"", value).await
    }

    /// Appends a record; a change or a chunk that is too large as parts.
    pub async fn append(&mut self, kind: Kind, flags: Flags, key: &[u8], value: &[u8]) -> Result<()> {
        if !matches!(kind, Kind::Change | Kind::Chunk) || value.len() <= self.max_record_bytes {
            let sequence = self.take_number();
            return self.put(kind, flags, sequence, key, value).await;
        }
        let parts = value.chunks(self.max_record_bytes);
        let last = parts.len() - 1;
        for (at, part) in parts.enumerate() {
            let mut marks = Flags::when(kind == Kind::Chunk, Flags::OF_CHUNK);
            if at == 0 {
                marks =
                    marks.with(Flags::PART_FIRST).with(Flags::when(flags.has(Flags::FIRST), Flags::FIRST));
            }
            if at == last {
                marks = marks.with(Flags::PART_LAST).with(Flags::when(flags.has(Flags::LAST), Flags::LAST));
            }
            let sequence = self.take_number();
            self.put(Kind::Part, marks, sequence, key, part).await?;
            crate::crash::point("capture.between_parts");
        }
        Ok(())
    }

    /// Notes that once everything given so far is durable, `position` may be confirmed.
    pub fn mark(&mut self, position: Position, transaction: bool) {
        self.pending.push_back(Mark { given: self.given, sequence: self.sequence, position, transaction });
    }

    /// Whether anything waits to become durable.
    pub fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }

    /// What has become durable since the last call.
    pub fn durable(&mut self) -> Option<Durable> {
        // Offset first, count second: the offset then belongs to one of the `acknowledged` records.
        let offset = self.writer.last_offset();
        let acknowledged = self.writer.acknowledged();
        let mut found: Option<Durable> = None;
        while let Some(mark) = self.pending.front().filter(|mark| mark.given <= acknowledged) {
            let transaction = if mark.transaction {
                Some(mark.position)
            } else {
                found.and_then(|found| found.transaction)
            };
            let behind = self.sample.filter(|(_, given)| *given <= mark.given).map(|(offset, _)| offset);
            found = Some(Durable {
                position: mark.position,
                sequence: mark.sequence,
                transaction,
                offset: behind,
            });
            self.pending.pop_front();
        }
        if let Some(offset) = offset {
            self.sample = Some((offset, acknowledged));
        }
        found
    }

    /// How long appending waited for room since this was last asked for.
    pub fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }

    /// Has the writer queue what it keeps. To be called before anything is waited for.
    pub async fn hand_over(&mut self) -> Result<()> {
        self.waited += self.writer.hand_over().await?;
        Ok(())
    }

    /// Waits until every record given so far is durable.
    pub async fn settle(&mut self) -> Result<()> {
        self.hand_over().await?;
        while self.writer.acknowledged() < self.given {
            self.writer.acknowledged_beyond(self.writer.acknowledged()).await?;
        }
        Ok(())
    }

    fn take_number(&mut self) -> Sequence {
        self.sequence = self.sequence.next();
        self.sequence
    }

    async fn put(
        &mut self,
        kind: Kind,
        flags: Flags,
        sequence: Sequence,
        key: &[u8],
        value: &[u8],
    ) -> Result<()> {
        let header = Header { kind, flags, epoch: self.epoch, incarnation: self.incarnation, sequence };
        self.waited += self.writer.append(&header, key, value).await?;
        self.given += 1;
        Ok(())
    }
}
