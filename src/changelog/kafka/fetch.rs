//! How much one request asks for. One is under way at a time, so over a long line what it carries is the rate; and what it
//! brings is unpacked whole before the first record of it is seen, so it is the memory too. Change records unpack twofold or
//! twentyfold, which nobody knows beforehand: the size follows what has come.

use std::cmp::Ordering;

use super::traffic::Told;

/// What a request asks for until something has come.
pub(super) const BYTES_AT_FIRST: usize = 1 << 20;
/// What one request may be told to bring, at most.
pub const FETCH_BYTES_MAX: usize = 16 << 20;

/// What a request may come to, unpacked: 55 MB/s over a round trip of 150 ms, more than a target applies.
const UNPACKED: u64 = 10 << 20;
/// The sizes there are. More than the largest would be too much where what unpacks twofold is followed by what unpacks
/// twentyfold: one request is under way by then (`tests/memory.rs`).
const SIZES: [usize; 5] = [256 << 10, 512 << 10, 1 << 20, 2 << 20, 3 << 20];
/// What a record takes beside its key and its value: its headers, and what the client keeps of it. Hardly anything of a
/// pack, and a third more where each change is a record.
const RECORD: u64 = 256;
/// What must have come unpacked to tell by.
const ENOUGH: u64 = UNPACKED;

/// What a reader's requests ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fetch {
    bytes: usize,
    follows: bool,
    /// Up to where the size is settled.
    seen: Told,
}

impl Fetch {
    /// As much as somebody said, or else as fits.
    pub(super) fn new(told: Option<usize>) -> Self {
        Self { bytes: told.unwrap_or(BYTES_AT_FIRST), follows: told.is_none(), seen: Told::default() }
    }

    /// What a request asks for.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What it should ask for from now on, where that is something else; `told` is what has come since the beginning.
    pub(super) fn follow(&mut self, told: Told) -> Option<usize> {
        let came = told.since(self.seen);
        if !self.follows || held(came) < ENOUGH {
            return None;
        }
        self.seen = told;
        let bytes = fitting(self.bytes, came);
        (bytes != self.bytes).then(|| {
            self.bytes = bytes;
            bytes
        })
    }
}

/// What came, as it is held until it is taken.
fn held(came: Told) -> u64 {
    came.unpacked + came.records * RECORD
}

/// The size that suits what came by requests of `now`. A size is left for a larger one only where that fits by what came,
/// and for a smaller one only where it is half too large: nothing moves to and fro.
fn fitting(now: usize, came: Told) -> usize {
    let unpacked = |bytes: usize| bytes as u64 * held(came) / came.received.max(1);
    let largest = SIZES.into_iter().rev().find(|bytes| unpacked(*bytes) <= UNPACKED).unwrap_or(SIZES[0]);
    // At the end of the log there is less to bring than was asked for, and nothing to win; but what a larger size than the first
    // would bring, once there is more, is not waited for.
    let is_full = came.received / came.answers.max(1) >= now as u64 / 2;
    let is_due = match largest.cmp(&now) {
        Ordering::Greater => is_full,
        Ordering::Equal => false,
        Ordering::Less => unpacked(now) > UNPACKED * 3 / 2 && (is_full || now > BYTES_AT_FIRST),
    };
    if is_due { largest } else { now }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What came by `answers` of `bytes` each that unpack so far.
    fn came(answers: u64, bytes: u64, ratio: u64) -> Told {
        Told { answers, received: answers * bytes, unpacked: answers * bytes * ratio, ..Told::default() }
    }

    fn sum(one: Told, other: Told) -> Told {
        Told {
            answers: one.answers + other.answers,
            received: one.received + other.received,
            unpacked: one.unpacked + other.unpacked,
            ..Told::default()
        }
    }

    #[test]
    fn a_request_asks_for_what_fits_unpacked() {
        let full = BYTES_AT_FIRST as u64;
        let sizes = [
            (1, 3 << 20),
            (3, 3 << 20),
            (4, 2 << 20),
            (6, 1 << 20),
            (10, 1 << 20),
            (20, 512 << 10),
            (99, 256 << 10),
        ];
        for (ratio, bytes) in sizes {
            assert_eq!(fitting(BYTES_AT_FIRST, came(50, full, ratio)), bytes, "unpacks {ratio} times");
        }
        assert_eq!(fitting(3 << 20, came(50, 3 << 20, 20)), 512 << 10, "at one step");
    }

    #[test]
    fn what_each_record_takes_besides_counts() {
        let of_a_pack = came(50, 1 << 20, 5);
        assert_eq!(fitting(BYTES_AT_FIRST, of_a_pack), 2 << 20);
        let each_alone = Told { records: of_a_pack.unpacked / 700, ..of_a_pack };
        assert_eq!(fitting(BYTES_AT_FIRST, each_alone), 1 << 20);
    }

    #[test]
    fn it_asks_for_no_more_where_there_is_no_more() {
        assert_eq!(fitting(1 << 20, came(500, 20 << 10, 2)), 1 << 20);
        assert_eq!(fitting(1 << 20, came(500, 20 << 10, 20)), 1 << 20);
        assert_eq!(
            fitting(3 << 20, came(500, 20 << 10, 20)),
            512 << 10,
            "but for less, before there is more"
        );
    }

    #[test]
    fn it_stays_where_it_is_between_two_sizes() {
        // Settled at 2 MiB by what unpacks fivefold, it stays there until what comes unpacks more than 7.5 times.
        for ratio in [4, 5, 6, 7] {
            assert_eq!(fitting(2 << 20, came(50, 2 << 20, ratio)), 2 << 20, "unpacks {ratio} times");
        }
        assert_eq!(fitting(2 << 20, came(50, 2 << 20, 8)), 1 << 20);
    }

    #[test]
    fn it_follows_what_comes_and_not_what_once_came() {
        let mut fetch = Fetch::new(None);
        let mut all = came(1, 1 << 20, 2);
        assert_eq!(fetch.follow(all), None, "too little to tell by");
        all = sum(all, came(20, 1 << 20, 2));
        assert_eq!(fetch.follow(all), Some(3 << 20));
        assert_eq!(fetch.follow(all), None, "nothing has come since");
        all = sum(all, came(3, 3 << 20, 20));
        assert_eq!(fetch.follow(all), Some(512 << 10), "however much came before");
        assert_eq!(fetch.bytes(), 512 << 10);
    }

    #[test]
    fn it_is_what_somebody_said() {
        let mut fetch = Fetch::new(Some(64 << 10));
        assert_eq!((fetch.follow(came(50, 64 << 10, 1)), fetch.bytes()), (None, 64 << 10));
    }
}
