//! Deliver: another region's log into this region's database, each transaction whole and once.
//!
//! ```text
//! log ──records──▶ tracker ──▶ assembler ──batches──▶ sink
//!                  (what counts)   (whole transactions)  │ rows + progress, one commit
//!        start ◀── locate ◀──────── progress ◀───────────┘
//! ```
//!
//! The place lives with the rows: a session begins by asking the target where it stands, and whatever
//! goes wrong ends the session. What is told to others (roster, metrics, group offsets) is what the
//! target has flushed.

mod assemble;
mod locate;
mod session;
mod verify;

use std::{sync::Arc, time::Duration};

pub use assemble::BatchLimits;

use crate::{
    changelog::Log,
    fault::Fault,
    metrics::Metrics,
    pipeline::setback::Setback,
    region::Region,
    roster::LinkEntry,
    sink::{Conflict, Inspector, Sink},
    task::Stop,
};

/// How a link delivers.
#[derive(Clone, Debug)]
pub struct DeliverParams {
    /// This region.
    pub here: Region,
    /// The region the changes come from.
    pub from: Region,
    /// Its stream.
    pub stream: String,
    /// When a batch is full.
    pub limits: BatchLimits,
    /// How long an open target transaction waits for the rest of its source transaction before it is
    /// rolled back: it holds locks and keeps the target from cleaning up.
    pub open_transaction_timeout: Duration,
}

/// Delivers until asked to stop. Faults end up on the roster; nothing ends the road but the stop.
pub async fn run<L: Log, S: Sink, I: Inspector>(
    params: DeliverParams,
    log: Arc<L>,
    (mut sink, mut inspector): (S, I),
    entry: Arc<LinkEntry>,
    metrics: Metrics,
    mut stop: Stop,
) {
    let mut setback = Setback::new();
    // The conflict this link stands at. It meets it again at each look, and it is still one.
    let mut stands_at: Option<String> = None;
    while !stop.is_asked() {
        let mut running = false;
        let target = (&mut sink, &mut inspector);
        let outcome = session::run(&params, &log, target, &entry, &metrics, stop.clone(), &mut running).await;
        let Err(fault) = outcome else { return };
        if let Some(conflict) = conflict_of(&fault)
            && stands_at.as_ref() != Some(&fault.message())
        {
            metrics.conflict(conflict.kind.as_str(), "halted", &conflict.table);
            stands_at = Some(fault.message());
        }
        setback.meet(&fault, running, &entry, &metrics, &mut stop).await;
    }
}

/// The conflict a fault tells of; its message names table, key and position.
fn conflict_of(fault: &Fault) -> Option<&Conflict> {
    std::error::Error::source(fault).and_then(|cause| cause.downcast_ref())
}
