//! Which records of a stream count: the rule every reader follows, sinks and a resuming source alike.
//!
//! ```text
//! epoch 1   #1 #2 #3 #4 .  .  #5            the zombie's late write, behind the barrier
//! epoch 2               ▮           #5 #6   ▮ barrier, outside the sequence
//! counted    1  2  3  4       ✗      5  6
//! ```
//!
//! A barrier of a higher epoch makes every later record of a lower one void; what is left must be
//! the numbers without a hole or a repeat.

use crate::{
    envelope::{
        body::Anchor,
        header::{Header, Kind},
    },
    position::{Incarnation, Sequence, WriterEpoch},
};

/// A reader's place in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracker {
    incarnation: Incarnation,
    epoch: WriterEpoch,
    sequence: Sequence,
}

/// What a record is to a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The next one.
    Next,
    /// A writer raised its epoch. Look for an [`Anchor`] in it.
    Barrier,
    /// A dead writer's late write: to be dropped, and counted.
    Stale,
    /// Read before: the reader began at or before its own place.
    Known,
}

/// Why a record cannot follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Another life of the stream: the topic was recreated.
    #[error("the record belongs to incarnation {found}, the reader to {expected}")]
    Incarnation {
        /// The reader's.
        expected: Incarnation,
        /// The record's.
        found: Incarnation,
    },
    /// A number is missing.
    #[error("after {last} comes {found}: records are missing")]
    Hole {
        /// The last number read.
        last: Sequence,
        /// The record's.
        found: Sequence,
    },
    /// A number comes again.
    #[error("after {last} comes {found} again")]
    Repeat {
        /// The last number read.
        last: Sequence,
        /// The record's.
        found: Sequence,
    },
    /// A writer that raised no barrier.
    #[error("a record of writer epoch {} comes without its barrier; the last was {}", found.0, last.0)]
    Epoch {
        /// The last epoch whose barrier was read.
        last: WriterEpoch,
        /// The record's.
        found: WriterEpoch,
    },
}

impl Tracker {
    /// A reader that has read everything up to `sequence`.
    pub fn new(incarnation: Incarnation, epoch: WriterEpoch, sequence: Sequence) -> Self {
        Self { incarnation, epoch, sequence }
    }

    /// The stream's life.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The highest epoch seen.
    pub fn epoch(&self) -> WriterEpoch {
        self.epoch
    }

    /// The last number counted.
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// Places the next record. `catching_up` says that the reader began before its own place, so
    /// that what it has already counted is [`Verdict::Known`] instead of a repeat.
    ///
    /// # Errors
    /// The record cannot follow; the tracker is unchanged.
    pub fn place(&mut self, header: &Header, catching_up: bool) -> Result<Verdict, Broken> {
        if header.incarnation != self.incarnation {
            return Err(Broken::Incarnation { expected: self.incarnation, found: header.incarnation });
        }
        if header.kind == Kind::Barrier {
            if header.epoch < self.epoch {
                return Ok(Verdict::Stale);
            }
            self.epoch = header.epoch;
            return Ok(Verdict::Barrier);
        }
        if catching_up && header.epoch <= self.epoch && header.sequence <= self.sequence {
            return Ok(Verdict::Known);
        }
        if header.epoch < self.epoch {
            return Ok(Verdict::Stale);
        }
        let (last, found) = (self.sequence, header.sequence);
        if header.epoch > self.epoch {
            return Err(Broken::Epoch { last: self.epoch, found: header.epoch });
        }
        if found <= last {
            return Err(Broken::Repeat { last, found });
        }
        if found > last.next() {
            return Err(Broken::Hole { last, found });
        }
        self.sequence = found;
        Ok(Verdict::Next)
    }

    /// Goes on behind a tail that retention took.
    ///
    /// # Panics
    /// Where the anchor would lead back: the writer that made it knew the numbers.
    pub fn anchor(&mut self, anchor: &Anchor) {
        assert!(
            anchor.next > self.sequence,
            "an anchor leads back from {} to {}",
            self.sequence,
            anchor.next
        );
        self.sequence = Sequence(anchor.next.0 - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::Flags;

    fn record(kind: Kind, epoch: u32, sequence: u64) -> Header {
        Header {
            kind,
            flags: Flags::NONE,
            epoch: WriterEpoch(epoch),
            incarnation: Incarnation(1),
            sequence: Sequence(sequence),
        }
    }

    #[test]
    fn records_are_placed_as_the_drawing_says() {
        use Kind::{Barrier, Change};
        let mut tracker = Tracker::new(Incarnation(1), WriterEpoch(1), Sequence(3));
        let table = [
            (record(Change, 1, 4), Ok(Verdict::Next)),
            (record(Barrier, 2, 0), Ok(Verdict::Barrier)),
            (record(Change, 1, 5), Ok(Verdict::Stale)),
            (record(Barrier, 1, 0), Ok(Verdict::Stale)),
            (record(Change, 2, 5), Ok(Verdict::Next)),
            (record(Change, 2, 5), Err(Broken::Repeat { last: Sequence(5), found: Sequence(5) })),
            (record(Change, 2, 7), Err(Broken::Hole { last: Sequence(5), found: Sequence(7) })),
            (record(Change, 3, 6), Err(Broken::Epoch { last: WriterEpoch(2), found: WriterEpoch(3) })),
            (record(Change, 2, 6), Ok(Verdict::Next)),
        ];
        for (header, expected) in table {
            assert_eq!(tracker.place(&header, false), expected, "{header:?}");
        }
        let other = Header { incarnation: Incarnation(2), ..record(Change, 2, 7) };
        assert!(matches!(tracker.place(&other, false), Err(Broken::Incarnation { .. })));
        assert_eq!(tracker.sequence(), Sequence(6));
    }

    #[test]
    fn a_reader_that_begins_before_its_place_knows_what_it_has() {
        let mut tracker = Tracker::new(Incarnation(1), WriterEpoch(2), Sequence(5));
        assert_eq!(tracker.place(&record(Kind::Change, 2, 5), true), Ok(Verdict::Known));
        assert_eq!(tracker.place(&record(Kind::Change, 1, 6), true), Ok(Verdict::Stale));
        assert_eq!(tracker.place(&record(Kind::Change, 2, 6), true), Ok(Verdict::Next));
    }
}
