//! Every metric there is, under `replication_`, in base units; each carries the daemon's own `region`.
//!
//! Counters and histograms are written by the roads through meters, which keep their children so that
//! the hot path is an atomic add. Gauges that say how things *stand* (lag, slot, head-room, state) are
//! not kept here at all: they are read from the roster at each scrape, so that a road that is stuck
//! cannot leave a good figure standing. What is unknown is absent from the output, never 0.

mod meter;
mod standing;

use std::{collections::HashMap, sync::Arc, time::Duration};

use prometheus::{
    CounterVec, Encoder, GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use meter::TableFamily;
pub use meter::{CaptureMeter, DeliverMeter, QueueMeter, VerifyMeter};
use standing::Standing;

use crate::{clock, fault::Code, region::Region, roster::Roster};

/// Resolves 1 ms (a region next door) and 900 s (a cable being mended) alike.
const LATENCY_BUCKETS: [f64; 21] = [
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0,
    120.0, 300.0, 600.0, 900.0,
];

/// The metrics of one daemon; a clone is the same metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    captured_transactions: IntCounterVec,
    captured_changes: TableFamily,
    applied_transactions: IntCounterVec,
    applied_changes: TableFamily,
    latency: HistogramVec,
    stages: HistogramVec,
    stale_records: IntCounterVec,
    redone_batches: IntCounterVec,
    bytes_produced: IntCounterVec,
    bytes_sent: IntCounterVec,
    bytes_consumed: IntCounterVec,
    bytes_received: IntCounterVec,
    queue_fill: GaugeVec,
    backpressure: CounterVec,
    verified_ranges: IntCounterVec,
    verify_differences: IntCounterVec,
    verify_given_up: IntCounterVec,
    verify_clean: IntGaugeVec,
    verify_interval: IntGaugeVec,
    retries: IntCounterVec,
    conflicts: TableFamily,
}

impl Metrics {
    /// Metrics that read how things stand from `roster`.
    ///
    /// # Panics
    /// Where two metrics have one name: our own mistake, met by every test.
    pub fn new(roster: Arc<Roster>) -> Self {
        let region = HashMap::from([("region".to_owned(), roster.region().to_string())]);
        let registry = Registry::new_custom(None, Some(region)).expect("a valid label");
        let count = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels).expect("a valid metric");
            registry.register(Box::new(counter.clone())).expect("a name of its own");
            counter
        };
        let link = ["from", "stream"];
        let captured_transactions = count(
            "replication_captured_transactions_total",
            "Transactions of this region given to its Kafka.",
            &[],
        );
        let captured_changes = count(
            "replication_captured_changes_total",
            "Changes of this region given to its Kafka, by table and operation.",
            &["table", "operation"],
        );
        let applied_transactions = count(
            "replication_applied_transactions_total",
            "Transactions of another region committed and flushed here.",
            &link,
        );
        let applied_changes = count(
            "replication_applied_changes_total",
            "Changes of another region committed here, by table and operation.",
            &["from", "stream", "table", "operation"],
        );
        let stale_records = count(
            "replication_stale_records_dropped_total",
            "Late records of a dead writer, behind its successor's barrier, that were passed over.",
            &link,
        );
        let redone_batches = count(
            "replication_redone_batches_total",
            "Batches whose effect differed from what they hold and which were redone change by change.",
            &[],
        );
        let bytes_produced = count(
            "replication_bytes_produced_total",
            "Bytes of values given to this region's Kafka, before compression.",
            &[],
        );
        let bytes_sent = count(
            "replication_bytes_sent_total",
            "Bytes sent to this region's Kafka, compressed, with all that its protocol adds.",
            &[],
        );
        let bytes_consumed = count(
            "replication_bytes_consumed_total",
            "Bytes of values read from another region's Kafka, after decompression.",
            &link,
        );
        let bytes_received = count(
            "replication_bytes_received_total",
            "Bytes received from another region's Kafka, compressed, with all that its protocol adds.",
            &link,
        );
        let retries = count(
            "replication_retries_total",
            "Attempts that failed and were made again, by the code of what stood in the way.",
            &["class"],
        );
        let conflicts = count(
            "replication_conflicts_total",
            "Changes that met another row than they were made on, by kind, outcome and table.",
            &["conflict_type", "resolution", "entity_type"],
        );
        let verified_ranges = count(
            "replication_verify_ranges_total",
            "Ranges of rows that were compared with another region.",
            &link,
        );
        let verify_differences = count(
            "replication_verify_differences_total",
            "Rows that were found to differ from another region's, without those that changed each time they were looked at.",
            &link,
        );
        let verify_given_up = count(
            "replication_verify_given_up_total",
            "Tables that could not be compared with another region's, each time one could not; the log says why.",
            &link,
        );
        let gauge = |name: &str, help: &str| {
            let gauge = IntGaugeVec::new(Opts::new(name, help), &link).expect("a valid metric");
            registry.register(Box::new(gauge.clone())).expect("a name of its own");
            gauge
        };
        let verify_clean = gauge(
            "replication_verify_last_clean_timestamp_seconds",
            "When every table was last found equal to another region's, in seconds since 1970.",
        );
        let verify_interval = gauge(
            "replication_verify_interval_seconds",
            "How often a link compares by itself, as it is set; nothing where it is not.",
        );
        let time = |name: &str, help: &str, labels: &[&str]| {
            let options = HistogramOpts::new(name, help).buckets(LATENCY_BUCKETS.to_vec());
            let histogram = HistogramVec::new(options, labels).expect("a valid metric");
            registry.register(Box::new(histogram.clone())).expect("a name of its own");
            histogram
        };
        let latency = time(
            "replication_end_to_end_latency_seconds",
            "From a transaction's commit in its region to its commit here, on the two regions' clocks.",
            &link,
        );
        let stages = time(
            "replication_stage_latency_seconds",
            "A transaction's way, cut in four: read (since its commit) and appended (acknowledged by Kafka, since it was read), told by its own region; fetched (read here, since Kafka had it) and applied (committed and visible here, since it was fetched), told by the link.",
            &["from", "stream", "stage"],
        );
        let started = IntGauge::new(
            "replication_start_time_seconds",
            "When this daemon was started, in seconds since 1970.",
        )
        .expect("a valid metric");
        started.set(clock::now().0 / 1_000_000);
        let queue_fill = GaugeVec::new(
            Opts::new("replication_queue_fill_ratio", "How full a queue is, 0 to 1."),
            &["queue"],
        )
        .expect("a valid metric");
        let backpressure = CounterVec::new(
            Opts::new("replication_backpressure_seconds_total", "Time spent waiting for room in a queue."),
            &["queue"],
        )
        .expect("a valid metric");
        registry.register(Box::new(started)).expect("a name of its own");
        registry.register(Box::new(queue_fill.clone())).expect("a name of its own");
        registry.register(Box::new(backpressure.clone())).expect("a name of its own");
        registry.register(Box::new(Standing::new(roster))).expect("names of their own");
        Self {
            captured_transactions,
            captured_changes: TableFamily::new(captured_changes),
            applied_transactions,
            applied_changes: TableFamily::new(applied_changes),
            latency,
            stages,
            stale_records,
            redone_batches,
            bytes_produced,
            bytes_sent,
            bytes_consumed,
            bytes_received,
            queue_fill,
            backpressure,
            retries,
            conflicts: TableFamily::new(conflicts),
            verified_ranges,
            verify_differences,
            verify_given_up,
            verify_clean,
            verify_interval,
            registry,
        }
    }

    /// The meter of the source, which writes `stream` of `region`.
    pub fn capture(&self, region: &Region, stream: &str) -> CaptureMeter {
        CaptureMeter::new(self, region, stream)
    }

    /// A link's meter.
    pub fn deliver(&self, from: &Region, stream: &str) -> DeliverMeter {
        DeliverMeter::new(self, from, stream)
    }

    /// The meter of a link that compares.
    pub fn verify(&self, from: &Region, stream: &str) -> VerifyMeter {
        VerifyMeter::new(self, from, stream)
    }

    /// A link is set to compare so often by itself.
    pub fn verifies_every(&self, from: &Region, stream: &str, interval: Duration) {
        let seconds = i64::try_from(interval.as_secs()).unwrap_or(i64::MAX);
        self.verify_interval.with_label_values(&[&from.to_string(), stream]).set(seconds);
    }

    /// A queue's meter.
    pub fn queue(&self, name: &str) -> QueueMeter {
        QueueMeter::new(self, name)
    }

    /// Counts an attempt that failed for `code` and will be made again.
    pub fn retry(&self, code: Code) {
        self.retries.with_label_values(&[code.as_str()]).inc();
    }

    /// A change met another row than it was made on. Counted once, however often its link meets it again.
    pub fn conflict(&self, conflict_type: &str, resolution: &str, entity_type: &str) {
        let entity_type = self.conflicts.label(entity_type);
        self.conflicts.counters.with_label_values(&[conflict_type, resolution, entity_type]).inc();
    }

    /// All of it, as a scrape gets it (text format 0.0.4).
    ///
    /// # Panics
    /// Where a metric does not encode: our own mistake, met by every test.
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).expect("metrics encode");
        String::from_utf8(text).expect("metrics are UTF-8")
    }
}

#[cfg(test)]
mod tests;
