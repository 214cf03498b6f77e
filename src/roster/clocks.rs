//! How far another region's clock goes ahead of ours, from beats that came back.

use crate::stamp::Micros;

/// Two clocks drift apart by less than this, a second: quartz does by some tens of microseconds.
const DRIFT: f64 = 200e-6;
/// Where no more is known than this allows, in seconds, the clocks are taken to agree as far as they can: half of what a
/// backlog delays one way would else be taken for a difference.
const TELLS_WITHIN: f64 = 5.0;

/// What another clock goes ahead of ours, in seconds, as one beat and its echo tell it: nothing arrives before it was sent.
/// They lie as far apart as both ways took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Between {
    /// At least so much: less, and the echo came before it was sent.
    pub least: f64,
    /// At most so much: more, and the beat arrived before it was sent.
    pub most: f64,
}

/// What all beats tell together. A slow one tells little, and takes nothing from what a quick one told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clocks {
    known: Between,
    at: Micros,
}

impl Clocks {
    /// Known by one beat.
    pub(super) fn new(told: Between, now: Micros) -> Self {
        Self { known: told, at: now }
    }

    /// Takes in what another beat tells.
    pub(super) fn hear(&mut self, told: Between, now: Micros) {
        let drifted = DRIFT * now.seconds_since(self.at).max(0.0);
        let least = (self.known.least - drifted).max(told.least);
        let most = (self.known.most + drifted).min(told.most);
        // Both cannot be: somebody has set one of the clocks.
        self.known = if least <= most { Between { least, most } } else { told };
        self.at = now;
    }

    /// How far the other goes ahead, in seconds, as NTP has it: right where both ways take equally long. None where too
    /// little is known.
    pub(super) fn told(&self) -> Option<f64> {
        let Between { least, most } = self.known;
        (most - least <= TELLS_WITHIN).then(|| f64::midpoint(least, most))
    }

    /// The same, and where too little is known, as little as can be.
    pub(super) fn offset(&self) -> f64 {
        let Between { least, most } = self.known;
        self.told().unwrap_or_else(|| 0_f64.clamp(least, most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Micros {
        Micros(seconds * 1_000_000)
    }

    /// A beat that took `there` and came back in `back`, of a clock that goes ahead by `offset`.
    fn told(offset: f64, there: f64, back: f64) -> Between {
        Between { least: offset - back, most: offset + there }
    }

    fn near(clocks: &Clocks, offset: f64, within: f64) {
        assert!(
            (clocks.offset() - offset).abs() <= within,
            "{clocks:?} tells {}, not {offset}",
            clocks.offset()
        );
    }

    #[test]
    fn what_there_and_back_differ_by_is_halved() {
        near(&Clocks::new(told(5.0, 0.1, 0.1), at(0)), 5.0, 1e-9);
        near(&Clocks::new(told(-5.0, 0.0, 0.2), at(0)), -5.1, 1e-9);
    }

    #[test]
    fn a_backlog_one_way_changes_nothing() {
        for offset in [0.0, 0.7, -3.0] {
            let mut clocks = Clocks::new(told(offset, 0.08, 0.09), at(0));
            for second in 1..3_600 {
                let late = f64::from(second).min(600.0);
                clocks.hear(told(offset, 0.1, late), at(i64::from(second)));
                near(&clocks, offset, 0.4);
            }
        }
    }

    #[test]
    fn where_little_is_known_clocks_agree_as_far_as_they_can() {
        assert_eq!(Clocks::new(told(0.0, 600.0, 0.1), at(0)).told(), None);
        near(&Clocks::new(told(0.0, 600.0, 0.1), at(0)), 0.0, 1e-9);
        near(&Clocks::new(told(-3.0, 600.0, 0.1), at(0)), 0.0, 1e-9);
        near(&Clocks::new(told(7.0, 600.0, 0.1), at(0)), 6.9, 1e-9);
    }

    #[test]
    fn a_clock_that_is_set_or_drifts_is_followed() {
        let mut clocks = Clocks::new(told(0.0, 0.05, 0.05), at(0));
        clocks.hear(told(2.0, 0.06, 0.05), at(1));
        near(&clocks, 2.0, 0.1);
        // By 50 microseconds a second, for a day.
        for second in 1..86_400 {
            clocks.hear(told(2.0 + 50e-6 * second as f64, 0.05, 0.05), at(second));
        }
        near(&clocks, 2.0 + 50e-6 * 86_400.0, 0.05);
    }
}
