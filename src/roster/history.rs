//! The last minutes of one road: what the board showed once a second, for whoever comes after it happened.
//!
//! Only control writes here, on its own clock: a road that is stuck leaves no gap, its lag is seen to grow.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use crate::stamp::Micros;

/// How far back it goes: long enough to see what led to an alert, short enough to be sent every few
/// seconds to a page.
pub const HISTORY_SECONDS: f64 = 300.0;

/// One sample a second, and a few more where a clock is slewed: the oldest goes.
const SAMPLES_MAX: usize = 310;

/// Over how long a rate is taken: shorter jumps about, longer hides that a road has stopped.
const RATE_SECONDS: f64 = 10.0;

/// How one road stood at one time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// When.
    pub at: Micros,
    /// The most its lag was since the sample before; unknown before the first heartbeat, and of a source.
    pub lag_seconds: Option<f64>,
    /// Changes it had carried by then.
    pub changes: u64,
}

/// The samples of the last [`HISTORY_SECONDS`], oldest first. At most [`SAMPLES_MAX`] of them.
#[derive(Debug, Default)]
pub struct History(Mutex<VecDeque<Sample>>);

impl History {
    /// Adds a sample, and lets go of those that are too old. A clock that was set back begins anew:
    /// times before and after it do not compare.
    pub fn note(&self, sample: Sample) {
        let mut samples = self.lock();
        if samples.back().is_some_and(|last| sample.at < last.at) {
            samples.clear();
        }
        samples.push_back(sample);
        while samples.len() > SAMPLES_MAX
            || samples.front().is_some_and(|first| sample.at.seconds_since(first.at) > HISTORY_SECONDS)
        {
            samples.pop_front();
        }
    }

    /// The lag that 99 of 100 samples did not exceed; none before one was known.
    pub fn lag_p99_seconds(&self) -> Option<f64> {
        let mut lags: Vec<f64> = self.lock().iter().filter_map(|sample| sample.lag_seconds).collect();
        lags.sort_unstable_by(f64::total_cmp);
        let rank = (lags.len() as f64 * 0.99).ceil() as usize;
        lags.get(rank.checked_sub(1)?).copied()
    }

    /// Changes a second, over the last [`RATE_SECONDS`]; none before there are two samples.
    pub fn changes_per_second(&self) -> Option<f64> {
        let samples = self.lock();
        let last = samples.back()?;
        let first = samples.iter().find(|first| last.at.seconds_since(first.at) <= RATE_SECONDS)?;
        let seconds = last.at.seconds_since(first.at);
        (seconds > 0.0).then(|| last.changes.saturating_sub(first.changes) as f64 / seconds)
    }

    /// Every sample that is kept, oldest first.
    pub fn samples(&self) -> Vec<Sample> {
        self.lock().iter().copied().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Sample>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(second: i64, lag_seconds: Option<f64>, changes: u64) -> Sample {
        Sample { at: Micros(second * 1_000_000), lag_seconds, changes }
    }

    #[test]
    fn it_keeps_the_last_minutes_and_no_more() {
        let history = History::default();
        for second in 0..2000 {
            history.note(sample(second, Some(0.1), 0));
        }
        let kept = history.samples();
        assert_eq!((kept.len(), kept[0].at), (301, Micros(1_699_000_000)));
        for _ in 0..1000 {
            history.note(sample(1999, None, 0));
        }
        assert_eq!(history.samples().len(), SAMPLES_MAX);
        history.note(sample(5, Some(0.2), 0));
        assert_eq!(history.samples(), [sample(5, Some(0.2), 0)], "the clock was set back");
    }

    #[test]
    fn the_p99_is_that_of_the_known_samples() {
        let history = History::default();
        assert_eq!(history.lag_p99_seconds(), None);
        history.note(sample(0, None, 0));
        assert_eq!(history.lag_p99_seconds(), None, "unknown, not 0");
        for second in 1..=200 {
            history.note(sample(second, Some(f64::from(second as i32)), 0));
        }
        assert_eq!(history.lag_p99_seconds(), Some(198.0));
    }

    #[test]
    fn a_rate_is_that_of_the_last_seconds() {
        let history = History::default();
        history.note(sample(0, None, 0));
        assert_eq!(history.changes_per_second(), None);
        for second in 1..=60 {
            history.note(sample(second, None, 1000 + 5 * second as u64));
        }
        assert_eq!(history.changes_per_second(), Some(5.0));
        for second in 61..=75 {
            history.note(sample(second, None, 1300));
        }
        assert_eq!(history.changes_per_second(), Some(0.0), "a road that stopped shows as one");
    }
}
