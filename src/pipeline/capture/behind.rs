//! How far other regions are behind, reckoned where their changes come from: for a backfill that is not to hold those
//! changes up.
//!
//! A region tells people up to which record it has applied the stream. Here it is noted, now and then, where the log
//! ends. The oldest end that a region has not passed is as old as what it lacks, at least.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::position::Offset;

/// How often the log's end is noted. What is reckoned is too small by so much, and by what a region lacked already when
/// the first end was noted.
pub(super) const NOTE_INTERVAL: Duration = Duration::from_secs(1);
/// Ends that are kept, an hour's. With more, every second one is forgotten.
const ENDS_MAX: usize = 3_600;

/// Ends of the log that not every region has passed, oldest first.
#[derive(Debug, Default)]
pub(super) struct Behind {
    ends: VecDeque<(Instant, Offset)>,
}

impl Behind {
    /// The log ends before `end`, `now`.
    pub(super) fn note(&mut self, end: Offset, now: Instant) {
        let grown = self.ends.back().is_none_or(|(_, last)| *last < end);
        if !grown {
            return;
        }
        if self.ends.len() >= ENDS_MAX {
            let mut keeps = false;
            self.ends.retain(|_| {
                keeps = !keeps;
                keeps
            });
        }
        self.ends.push_back((now, end));
    }

    /// How old what the slowest region lacks is at least, `now`; it has applied everything before `applied`.
    pub(super) fn lag(&mut self, applied: Offset, now: Instant) -> Duration {
        while self.ends.front().is_some_and(|(_, end)| *end <= applied) {
            self.ends.pop_front();
        }
        self.ends.front().map_or(Duration::ZERO, |(noted, _)| now - *noted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_as_far_behind_as_what_it_lacks_is_old() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut behind = Behind::default();
        assert_eq!(behind.lag(Offset(0), at(0)), Duration::ZERO);
        behind.note(Offset(10), at(0));
        behind.note(Offset(20), at(1));
        // Nothing was appended: what it lacks is as old as it was.
        behind.note(Offset(20), at(5));
        assert_eq!(behind.lag(Offset(0), at(6)), Duration::from_secs(6));
        assert_eq!(behind.lag(Offset(10), at(6)), Duration::from_secs(5));
        assert_eq!(behind.lag(Offset(20), at(6)), Duration::ZERO);
        behind.note(Offset(30), at(7));
        assert_eq!(behind.lag(Offset(29), at(9)), Duration::from_secs(2));
    }

    #[test]
    fn only_so_many_ends_are_kept() {
        let began = Instant::now();
        let mut behind = Behind::default();
        for end in 0..2 * ENDS_MAX {
            behind.note(Offset(end as i64 + 1), began);
        }
        assert!(behind.ends.len() <= ENDS_MAX);
        let (first, last) = (behind.ends.front().unwrap(), behind.ends.back().unwrap());
        assert_eq!((first.1, last.1), (Offset(1), Offset(2 * ENDS_MAX as i64)));
    }
}
