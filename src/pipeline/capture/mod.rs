//! Capture: a database's committed changes, in commit order, into its region's log.
//!
//! ```text
//! slot ──event──▶ resume ──▶ encode ──▶ appender ──▶ log
//!   ▲              (skip what stands       │
//!   └── confirm ◀── in the log)        ack ┘
//! ```
//!
//! Persist, then tell: the slot is confirmed only up to what every in-sync replica has. A crash between
//! the ack and the confirmation makes the server send again what stands in the log; [`resume`] knows it
//! by the log's own tail. Why keepalives may move the slot: the server sends transactions in commit
//! order, so a keepalive's position says that everything before it has been sent, and what of it is of
//! the stream stands before the idle record in the same log.

mod appender;
mod aside;
mod behind;
mod beside;
mod copy;
pub mod resume;
mod session;
mod tail;

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    changelog::Log, envelope::Format, metrics::Metrics, pipeline::setback::Setback, region::Region,
    roster::Roster, source::Source, task::Stop,
};

/// How a stream is captured.
#[derive(Clone, Debug)]
pub struct CaptureParams {
    /// This region.
    pub region: Region,
    /// The stream.
    pub stream: String,
    /// The database's name, for the envelope.
    pub database: String,
    /// How often a heartbeat goes through the log.
    pub heartbeat_interval: Duration,
    /// How often a checkpoint is kept beside the log: bounds what a start reads again.
    pub checkpoint_interval: Duration,
    /// A larger change is appended in parts.
    pub max_record_bytes: usize,
    /// How its records are written.
    pub format: Format,
}

/// Captures until asked to stop. Faults end up on the roster; nothing ends the road but the stop.
pub async fn run<S: Source, L: Log>(
    params: CaptureParams,
    source: S,
    log: L,
    roster: Arc<Roster>,
    metrics: Metrics,
    stop: Stop,
) {
    let (entry, watcher) = (roster.source(), source.watcher());
    tokio::select! {
        biased;
        () = sessions(&params, source, &log, &roster, &metrics, stop) => (),
        never = beside::look_on(watcher, &entry) => match never {},
    }
}

/// Session after session.
async fn sessions<S: Source, L: Log>(
    params: &CaptureParams,
    mut source: S,
    log: &L,
    roster: &Roster,
    metrics: &Metrics,
    mut stop: Stop,
) {
    let entry = roster.source();
    let mut setback = Setback::new();
    let mut left = session::Left::default();
    while !stop.is_asked() {
        left.ran = false;
        let began = Instant::now();
        let outcome = tokio::select! {
            outcome = session::run(params, &mut source, log, roster, metrics, stop.clone(), &mut left) => outcome,
            // The session finishes what is in hand when it is asked to stop; while it is still being
            // set up there is nothing in hand.
            () = stopped_early(stop.clone()) => Ok(()),
        };
        let Err(fault) = outcome else { return };
        setback.meet(&fault, (began, left.ran), &entry, metrics, &mut stop).await;
    }
}

/// How long what is in hand may take to become durable once the stop is asked for.
const FINISH: Duration = Duration::from_secs(5);

async fn stopped_early(mut stop: Stop) {
    stop.asked().await;
    // A running session ends by itself well before this.
    tokio::time::sleep(FINISH + Duration::from_secs(1)).await;
}
