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

use std::{sync::Arc, time::Duration};

pub use assemble::BatchLimits;

use crate::{
    changelog::Log, metrics::Metrics, pipeline::setback::Setback, region::Region, roster::LinkEntry,
    sink::Sink, task::Stop,
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
pub async fn run<L: Log, S: Sink>(
    params: DeliverParams,
    log: Arc<L>,
    mut sink: S,
    entry: Arc<LinkEntry>,
    metrics: Metrics,
    mut stop: Stop,
) {
    let mut setback = Setback::new();
    while !stop.is_asked() {
        let mut running = false;
        let outcome =
            session::run(&params, &log, &mut sink, &entry, &metrics, stop.clone(), &mut running).await;
        let Err(fault) = outcome else { return };
        setback.meet(&fault, running, &entry, &metrics, &mut stop).await;
    }
}
