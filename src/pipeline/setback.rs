//! What a road does about a fault: says so on the roster, and waits before the next session.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    fault::{Code, Consequence, Fault},
    metrics::Metrics,
    retry::Retry,
    roster::{State, StateEntry},
    task::Stop,
};

/// The first wait after a session that ran, and the longest: short enough that who mends something sees
/// it go on, long enough that a server that is down is not kept busy saying so.
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(5);
/// How long a halted stream waits before it looks whether a person has acted. Looking carries nothing:
/// what stopped the stream stops it again (a source that gets as far as its log appends a barrier).
const HALT_RECHECK: Duration = Duration::from_secs(5);

/// Waits between a road's sessions.
pub(super) struct Setback(Retry);

impl Setback {
    pub(super) fn new() -> Self {
        Self(Retry::new(FIRST, LONGEST))
    }

    /// A session that `began` then ended with `fault`; `ran` says that something went through in it, beyond where it began.
    /// One that lasted longer than the longest wait did as well. Returns when it is time for the next, or the stop is asked
    /// for.
    pub(super) async fn meet(
        &mut self,
        fault: &Fault,
        (began, ran): (Instant, bool),
        entry: &StateEntry,
        metrics: &Metrics,
        stop: &mut Stop,
    ) {
        // Not because it was set up: what the next is to do first may fail each time, and costs each time.
        if ran || began.elapsed() > LONGEST {
            self.0.reset();
        }
        // Somebody else is at it: to look whether they still are is no setback.
        let stands_by = matches!(fault.code(), Code::SlotBusy | Code::TargetHeld | Code::Superseded);
        if !stands_by {
            metrics.retry(fault.code());
        }
        let delay = match fault.consequence() {
            Consequence::Halt => HALT_RECHECK,
            Consequence::Retry => self.0.next_delay(),
        };
        entry.set(match (fault.consequence(), fault.code()) {
            (Consequence::Halt, _) => State::halted(fault),
            _ if stands_by => State::standby(fault.message()),
            _ => State::retrying(fault, self.0.attempt()),
        });
        tokio::select! {
            () = tokio::time::sleep(delay) => (),
            () = stop.asked() => (),
        }
    }
}
