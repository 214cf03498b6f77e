//! Waiting before the next attempt: later and later, at most so late, never in step with others.
//!
//! The only user of the `backoff` crate, which is no longer maintained (`deny.toml` says why it is
//! here all the same): what it does is behind two methods, so that it can be replaced in this file.

use std::time::Duration;

use backoff::{ExponentialBackoff, ExponentialBackoffBuilder, backoff::Backoff};

/// The delays between attempts at one thing. They grow by half each time, are spread by half up and
/// down so that many who failed together do not return together, and never end: who gives up, and
/// when, is not decided here.
#[derive(Debug)]
pub struct Retry {
    delays: ExponentialBackoff,
    cap: Duration,
    attempt: u32,
}

impl Retry {
    /// The first delay is about `first`, none is longer than `cap`.
    pub fn new(first: Duration, cap: Duration) -> Self {
        let delays = ExponentialBackoffBuilder::new()
            .with_initial_interval(first)
            .with_max_interval(cap)
            .with_multiplier(1.5)
            .with_randomization_factor(0.5)
            .with_max_elapsed_time(None)
            .build();
        Self { delays, cap, attempt: 0 }
    }

    /// An attempt failed: how long to wait before the next.
    pub fn next_delay(&mut self) -> Duration {
        self.attempt = self.attempt.saturating_add(1);
        self.delays.next_backoff().unwrap_or(self.cap).min(self.cap)
    }

    /// How many attempts have failed in a row.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// An attempt succeeded: the next delay is short again.
    pub fn reset(&mut self) {
        self.attempt = 0;
        self.delays.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_cap_and_never_end() {
        let (first, cap) = (Duration::from_millis(100), Duration::from_secs(2));
        let mut retry = Retry::new(first, cap);
        let delays: Vec<Duration> = (0..200).map(|_| retry.next_delay()).collect();
        assert!(delays[0] >= first / 2 && delays[0] <= first * 3 / 2, "{delays:?}");
        assert!(delays.iter().all(|delay| *delay <= cap));
        assert!(delays[20..].iter().all(|delay| *delay >= cap / 2), "{delays:?}");
        assert!(delays[20..].iter().any(|delay| *delay != cap), "not spread: {delays:?}");
        assert_eq!(retry.attempt(), 200);
        retry.reset();
        assert!(retry.next_delay() <= first * 3 / 2);
        assert_eq!(retry.attempt(), 1);
    }
}
