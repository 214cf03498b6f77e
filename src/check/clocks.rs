//! Clocks: how far two of them are apart, as far as that can be told from one end.

use super::{Finding, Kind, note, warning};
use crate::stamp::Micros;

/// What lag may be wrong by before it misleads. Machines that keep their clocks are within milliseconds.
const APART_SECONDS: f64 = 1.0;

/// A clock that was asked between two moments of ours.
pub(super) fn asked(whose: &str, before: Micros, theirs: Micros, after: Micros) -> Finding {
    let middle = Micros(before.0 + (after.0 - before.0) / 2);
    judged(whose, theirs.seconds_since(middle), after.seconds_since(before) / 2.0)
}

/// A clock that stamped what arrived here a moment later. How long it was on its way is not known: the
/// broker hands a record over as soon as it has it, so what is left is about the line's delay.
pub(super) fn heard(whose: &str, stamped: Micros, arrived: Micros) -> Finding {
    judged(whose, stamped.seconds_since(arrived), 0.0)
}

/// A clock nothing was heard of.
pub(super) fn unheard(whose: &str, why: &str) -> Finding {
    note(Kind::Clocks, format!("how far {whose} is from this machine's cannot be told: {why}"))
}

fn judged(whose: &str, ahead: f64, uncertain: f64) -> Finding {
    let way = if ahead < 0.0 { "behind" } else { "ahead of" };
    let said = format!(
        "{whose} is {:.2} s {way} this machine's{}",
        ahead.abs(),
        if uncertain > 0.0 {
            format!(" (± {uncertain:.2} s)")
        } else {
            ", what the line takes included".to_owned()
        }
    );
    if ahead.abs() - uncertain > APART_SECONDS {
        warning(Kind::Clocks, said, "let chrony or ntpd keep both clocks: lag is told by them")
    } else {
        note(Kind::Clocks, said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Severity;

    #[test]
    fn only_what_is_surely_apart_is_warned_of() {
        let at = |seconds: f64| Micros((seconds * 1e6) as i64);
        for (finding, severity, said) in [
            (asked("it", at(10.0), at(10.1), at(10.2)), Severity::Note, "it is 0.00 s ahead of"),
            (asked("it", at(10.0), at(12.0), at(10.2)), Severity::Warning, "it is 1.90 s ahead of"),
            // Within what is uncertain.
            (asked("it", at(10.0), at(12.0), at(12.0)), Severity::Note, "(± 1.00 s)"),
            (heard("it", at(5.0), at(5.04)), Severity::Note, "it is 0.04 s behind"),
            (heard("it", at(5.0), at(9.0)), Severity::Warning, "it is 4.00 s behind"),
        ] {
            assert_eq!(finding.severity, severity, "{finding:?}");
            assert!(finding.evidence.contains(said), "{finding:?}");
        }
    }
}
