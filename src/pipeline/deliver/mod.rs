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

use tokio::time::{Instant, timeout};

pub use assemble::BatchLimits;

use crate::{
    changelog::Log,
    clock,
    fault::{Code, Fault},
    metrics::Metrics,
    pipeline::setback::Setback,
    region::Region,
    roster::LinkEntry,
    sink::{Conflict, Inspector, LinkStanding, Sink},
    task::Stop,
};

/// How long a target may take to tell how a link stands, before the session that asks for more is begun.
const STANDING_TIMEOUT: Duration = Duration::from_secs(2);

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
        // Whatever keeps a session from it, or another daemon that applies: readers of this region are told how it stands.
        tokio::select! {
            () = show(&mut inspector, &entry) => (),
            () = stop.asked() => return,
        }
        let (began, mut ran) = (Instant::now(), false);
        let target = (&mut sink, &mut inspector);
        let outcome = session::run(&params, &log, target, &entry, &metrics, stop.clone(), &mut ran).await;
        let Err(fault) = outcome else { return };
        if matches!(fault.code(), Code::TargetHeld | Code::Superseded) {
            entry.stand_by();
        }
        if let Some(conflict) = conflict_of(&fault)
            && stands_at.as_ref() != Some(&fault.message())
        {
            metrics.conflict(conflict.kind.as_str(), "halted", &conflict.table);
            stands_at = Some(fault.message());
        }
        setback.meet(&fault, (began, ran), &entry, &metrics, &mut stop).await;
    }
}

/// Shows how the link stands in the target, where that answers soon.
async fn show<I: Inspector>(inspector: &mut I, entry: &LinkEntry) {
    let told = timeout(STANDING_TIMEOUT, inspector.standing()).await;
    // Whoever applies comes first, where the role may have few sessions.
    inspector.let_go();
    match told {
        Ok(Ok(standing)) => {
            let LinkStanding { heartbeat, joining, parked } = standing;
            entry.stands(heartbeat, (joining, parked), clock::now());
        }
        // The session meets the same, and says so.
        Ok(Err(fault)) => tracing::debug!(%fault, "where the link stands is not known"),
        Err(_) => tracing::debug!("where the link stands was not told in time"),
    }
}

/// The conflict a fault tells of; its message names table, key and position.
fn conflict_of(fault: &Fault) -> Option<&Conflict> {
    std::error::Error::source(fault).and_then(|cause| cause.downcast_ref())
}
