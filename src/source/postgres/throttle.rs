//! How fast a backfill may read: what was asked for, and what the database shows it can bear.
//!
//! A backfill commits a watermark before each chunk, as any application would commit something small. While that takes
//! as long as it did at best, the server has time to spare; where it takes several times as long, its users wait as
//! well, and reading is held to a share of the time that is smaller by as much.

use std::time::Duration;

/// Commits that take no longer tell of no strain: a disk that flushes now and then does this.
const CALM: Duration = Duration::from_millis(20);
/// The newest commit's part in what is taken for the latency now.
const NEWEST: f64 = 0.3;
/// By how much the shortest commit grows with each: it doubles in seventy chunks.
const FORGETS: f64 = 1.01;
/// The longest wait that the load alone asks for, in seconds: what a chunk took may be one hitch of a disk or a standby.
const REST_MAX: f64 = 60.0;
/// The smallest share of the time that is left to reading: a backfill that stood still would never tell that the strain
/// is over.
const SHARE_MIN: f64 = 0.05;

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) rows_per_second: Option<u64>,
    pub(super) bytes_per_second: Option<u64>,
    /// The share of the time that may be spent reading, above 0 and at most 1. What several sessions read side by side
    /// counts for each of them.
    pub(super) source_load: f64,
}

impl Limits {
    /// When the next chunk may be read, counted from when one of so many rows and bytes began to be; it took so many
    /// sessions so long, and the server bears that they read for `share` of the time.
    pub(super) fn next_after(
        &self,
        rows: u64,
        bytes: u64,
        (sessions, took): (u32, Duration),
        share: f64,
    ) -> Duration {
        let at = |rate: Option<u64>, much: u64| rate.map_or(0.0, |rate| much as f64 / rate.max(1) as f64);
        let for_rate = at(self.rows_per_second, rows).max(at(self.bytes_per_second, bytes));
        let within = |share: f64, took: Duration| {
            if share < 1.0 { (took.as_secs_f64() / share).min(REST_MAX) } else { 0.0 }
        };
        // What a server bears was learnt with as many sessions as there are.
        let for_load = within(share, took).max(within(self.source_load.max(0.01), took * sessions));
        Duration::from_secs_f64(for_rate.max(for_load))
    }
}

/// What the commits so far tell.
#[derive(Debug, Default)]
pub(super) struct Strain {
    /// The shortest commit, and what commits take now, both in seconds.
    seen: Option<(f64, f64)>,
}

impl Strain {
    /// A small commit took so long.
    pub(super) fn note(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        self.seen = Some(match self.seen {
            None => (took, took),
            // What was best once is not for ever: a server may become slower for good.
            Some((best, now)) => (took.min(best * FORGETS), now + NEWEST * (took - now)),
        });
    }

    /// The share of the time that may be spent reading, above 0 and at most 1.
    pub(super) fn share(&self) -> f64 {
        let Some((best, now)) = self.seen else { return 1.0 };
        let calm = best.max(CALM.as_secs_f64());
        (calm / now.max(calm)).max(SHARE_MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(millis: &[u64]) -> f64 {
        let mut strain = Strain::default();
        millis.iter().for_each(|&millis| strain.note(Duration::from_millis(millis)));
        strain.share()
    }

    #[test]
    fn the_slowest_of_what_was_asked_for_is_kept_to() {
        let limits = Limits { rows_per_second: None, bytes_per_second: None, source_load: 1.0 };
        let second = Duration::from_secs(1);
        let after = |limits: Limits, share| limits.next_after(1_000, 50_000, (1, second), share);
        assert_eq!(after(limits, 1.0), Duration::ZERO);
        let by_rows = Limits { rows_per_second: Some(500), ..limits };
        assert_eq!(after(by_rows, 1.0), Duration::from_secs(2));
        let by_bytes = Limits { bytes_per_second: Some(10_000), ..by_rows };
        assert_eq!(after(by_bytes, 1.0), Duration::from_secs(5));
        let by_load = Limits { source_load: 0.1, ..by_bytes };
        assert_eq!(after(by_load, 0.5), Duration::from_secs(10));
        assert_eq!(after(limits, 0.25), Duration::from_secs(4));
        // The load of four is four times that of one; the rate is what it is.
        let by_four = |limits: Limits, share| limits.next_after(1_000, 50_000, (4, second), share);
        assert_eq!(by_four(by_load, 0.5), Duration::from_secs(40));
        assert_eq!(by_four(by_bytes, 1.0), Duration::from_secs(5));
        assert_eq!((by_four(limits, 0.25), by_four(limits, 1.0)), (Duration::from_secs(4), Duration::ZERO));
    }

    #[test]
    fn a_server_that_commits_as_fast_as_ever_is_read_all_the_time() {
        assert_eq!((after(&[]), after(&[1, 3, 2]), after(&[60, 60, 60])), (1.0, 1.0, 1.0));
    }

    #[test]
    fn one_that_takes_longer_is_read_less_and_again_when_it_recovers() {
        let strained = after(&[[2; 5], [400; 5]].concat());
        assert!(strained > SHARE_MIN && strained < 0.1, "{strained}");
        assert_eq!(after(&[[2; 5], [60_000; 5]].concat()), SHARE_MIN);
        assert_eq!(after(&[[2; 5], [400; 5], [2; 5], [2; 5], [2; 5]].concat()), 1.0);
    }
}
