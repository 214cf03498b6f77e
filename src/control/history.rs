//! Looks at the board once a second, and keeps what it sees for the last minutes.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use crate::{
    clock,
    roster::{Roster, Sample},
    stamp::Micros,
    task::Stop,
};

/// How often. What the lag was between two looks is not lost: a sample holds the most it was.
const EVERY: Duration = Duration::from_secs(1);

/// Looks until the end is asked for.
pub async fn run(roster: Arc<Roster>, mut stop: Stop) {
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => note(&roster, clock::now()),
            () = stop.asked() => return,
        }
    }
}

/// Notes how every road stands, `now`.
fn note(roster: &Roster, now: Micros) {
    if let Some(source) = roster.find_source() {
        source.history.note(Sample { at: now, lag_seconds: None, changes: source.changes.get() });
    }
    for link in roster.links() {
        let lag_seconds = link.take_worst_lag(now);
        link.history.note(Sample { at: now, lag_seconds, changes: link.changes.get() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Heartbeat;

    #[test]
    fn a_link_that_stands_still_is_seen_to_fall_behind() {
        let roster = Roster::new("eu-west-1".parse().unwrap());
        let link = roster.link(&"us-east-1".parse().unwrap(), "main");
        note(&roster, Micros(0));
        link.beat(
            Heartbeat { sent: Micros(500_000), appended: None, arrived: Micros(700_000) },
            Micros(800_000),
        );
        link.changes.add(7);
        for second in 1..=3 {
            note(&roster, Micros(second * 1_000_000));
        }
        // Applied when the one before was 3.4 s old.
        link.beat(
            Heartbeat { sent: Micros(3_500_000), appended: None, arrived: Micros(3_800_000) },
            Micros(3_900_000),
        );
        note(&roster, Micros(4_000_000));
        note(&roster, Micros(5_000_000));
        let seen: Vec<_> = link.history.samples().iter().map(|it| (it.lag_seconds, it.changes)).collect();
        let lags = [None, Some(0.5), Some(1.5), Some(2.5), Some(3.4), Some(1.5)];
        assert_eq!(seen.iter().map(|it| it.0).collect::<Vec<_>>(), lags);
        assert_eq!((seen[0].1, seen[5].1), (0, 7));
    }
}
