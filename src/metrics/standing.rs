//! How things stand: gauges read from the roster at each scrape.

use std::{sync::Arc, time::Instant};

use prometheus::{
    GaugeVec, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use crate::{
    clock,
    roster::{Roster, State},
    stamp::Micros,
};

/// Reads the roster when it is asked.
pub(super) struct Standing {
    roster: Arc<Roster>,
    descriptions: Vec<Desc>,
}

struct Gauges {
    lag: GaugeVec,
    headroom: GaugeVec,
    retention: GaugeVec,
    clock_offset: GaugeVec,
    state: GaugeVec,
    parked: GaugeVec,
    warnings: GaugeVec,
    retained: GaugeVec,
    safe: GaugeVec,
    seconds_left: GaugeVec,
}

impl Gauges {
    fn new() -> Self {
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            GaugeVec::new(Opts::new(name, help), labels).expect("a valid metric")
        };
        let link = ["from", "stream"];
        Self {
            lag: gauge(
                "replication_lag_seconds",
                "Age of the last heartbeat applied and flushed here, corrected by the clock offset where that is known.",
                &link,
            ),
            headroom: gauge(
                "replication_buffer_headroom_seconds",
                "Time until retention deletes the first record this link still needs.",
                &link,
            ),
            retention: gauge(
                "replication_buffer_retention_seconds",
                "How long the other region's Kafka keeps a record: the head-room of a link that keeps up.",
                &link,
            ),
            clock_offset: gauge(
                "replication_clock_offset_seconds",
                "How far the source region's clock goes ahead of this one's; absent where heartbeats do not come back.",
                &link,
            ),
            state: gauge(
                "replication_stream_state",
                "1 for the state a stream is in, 0 for the others; role is source or link.",
                &["role", "from", "stream", "state"],
            ),
            parked: gauge(
                "replication_parked_transactions",
                "Transactions of another region that are kept aside here: refused, or waiting behind one that was.",
                &link,
            ),
            warnings: gauge(
                "replication_warnings",
                "What a person should know though nothing has stopped, as the status lists it: of a source, tables that are not carried as the settings say; 1 of a link whose region still has to be filled.",
                &["role", "from", "stream"],
            ),
            retained: gauge(
                "replication_slot_retained_bytes",
                "Write-ahead log the slot keeps this region's server from removing.",
                &[],
            ),
            safe: gauge(
                "replication_slot_safe_bytes",
                "What may still be written before the server may invalidate the slot; absent without a limit.",
                &[],
            ),
            seconds_left: gauge(
                "replication_slot_seconds_to_invalidation",
                "When that is used up at the present rate of writing.",
                &[],
            ),
        }
    }

    fn all(&self) -> [&GaugeVec; 10] {
        [
            &self.lag,
            &self.headroom,
            &self.retention,
            &self.clock_offset,
            &self.state,
            &self.parked,
            &self.warnings,
            &self.retained,
            &self.safe,
            &self.seconds_left,
        ]
    }

    fn read(&self, roster: &Roster, now: Micros) {
        let set = |gauge: &GaugeVec, labels: &[&str], value: Option<f64>| {
            if let Some(value) = value {
                gauge.with_label_values(labels).set(value);
            }
        };
        let state = |role: &str, from: &str, stream: &str, state: &State| {
            for name in State::NAMES {
                let here = f64::from(u8::from(name == state.name()));
                set(&self.state, &[role, from, stream, name], Some(here));
            }
        };
        if let Some(source) = roster.find_source() {
            let labels = ["source", source.region().as_str(), source.stream()];
            state(labels[0], labels[1], labels[2], &source.state());
            let looked = source.warnings.get().is_some();
            set(&self.warnings, &labels, looked.then(|| source.warned_of().len() as f64));
            let slot = source.slot(Instant::now());
            set(&self.retained, &[], slot.retained_bytes.map(|bytes| bytes as f64));
            set(&self.safe, &[], slot.safe_bytes.map(|bytes| bytes as f64));
            set(&self.seconds_left, &[], slot.seconds_to_invalidation);
        }
        for link in roster.links() {
            let labels = [link.from().as_str(), link.stream()];
            state("link", labels[0], labels[1], &link.state());
            set(&self.lag, &labels, link.lag_seconds(now));
            set(&self.headroom, &labels, link.headroom_seconds_at(now));
            set(&self.retention, &labels, link.retention_seconds.get());
            set(&self.clock_offset, &labels, link.clock_offset_seconds.get());
            set(&self.parked, &labels, link.parked.get().map(|parked| parked as f64));
            let joining = link.is_joining().map(|is| f64::from(u8::from(is)));
            set(&self.warnings, &["link", labels[0], labels[1]], joining);
        }
    }
}

impl Standing {
    pub(super) fn new(roster: Arc<Roster>) -> Self {
        let gauges = Gauges::new();
        let descriptions = gauges.all().iter().flat_map(|gauge| gauge.desc()).cloned().collect();
        Self { roster, descriptions }
    }
}

impl Collector for Standing {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let gauges = Gauges::new();
        gauges.read(&self.roster, clock::now());
        gauges.all().iter().flat_map(|gauge| gauge.collect()).collect()
    }
}
