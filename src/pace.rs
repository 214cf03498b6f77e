//! How fast something comes.

use std::time::{Duration, Instant};

/// Counts, and says at the end of each interval how many there were a second. A single burst inside one is
/// not taken for a stream, and a pause ends one.
#[derive(Debug)]
pub struct Pace {
    interval: Duration,
    since: Instant,
    count: u64,
}

impl Pace {
    /// Counts from `now` on.
    pub fn new(interval: Duration, now: Instant) -> Self {
        Self { interval, since: now, count: 0 }
    }

    /// Adds to the count; the rate, in counts a second, where an interval is over.
    pub fn note(&mut self, count: u64, now: Instant) -> Option<f64> {
        self.count += count;
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed < self.interval {
            return None;
        }
        let rate = self.count as f64 / elapsed.as_secs_f64();
        (self.since, self.count) = (now, 0);
        Some(rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_told_at_the_end_of_an_interval_and_over_all_of_it() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pace = Pace::new(Duration::from_millis(20), start);
        assert_eq!(pace.note(100, at(1)), None, "a burst is no stream");
        assert_eq!(pace.note(100, at(20)), Some(10_000.0));
        assert_eq!(pace.note(1, at(21)), None);
        assert_eq!(pace.note(1, at(1020)), Some(2.0), "a pause ends it");
    }
}
