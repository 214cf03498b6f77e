//! What the roads hold in their hands: meters that keep their counters.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prometheus::{Counter, Gauge, Histogram, IntCounter, IntCounterVec};

use super::Metrics;
use crate::{change::Operation, region::Region, stamp::Micros};

/// How many tables a family counts by name, in a daemon's life. A database with more of them, or one whose tables come and
/// go, keeps its figures (the rest is counted as [`OTHER`]), and a scrape keeps a size that can be stored.
const TABLES_MAX: usize = 1000;

/// The tables beyond [`TABLES_MAX`].
const OTHER: &str = "(other)";

/// A family of counters by table; a clone is the same family. Who is counted by name stays so, whoever counts: a figure
/// that went on under [`OTHER`] would look like a table that nobody writes to.
#[derive(Clone, Debug)]
pub(super) struct TableFamily {
    pub(super) counters: IntCounterVec,
    named: Arc<Mutex<HashSet<String>>>,
}

impl TableFamily {
    pub(super) fn new(counters: IntCounterVec) -> Self {
        Self { counters, named: Arc::default() }
    }

    /// What a table, `schema.table`, is counted as: by its name, or as [`OTHER`].
    pub(super) fn label<'a>(&self, table: &'a str) -> &'a str {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if named.contains(table) {
            return table;
        }
        if named.len() >= TABLES_MAX {
            return OTHER;
        }
        named.insert(table.to_owned());
        table
    }
}

/// Changes by table and operation. The last table asked for is found without hashing: changes come in
/// runs.
#[derive(Clone, Debug)]
struct TableCounters {
    family: TableFamily,
    labels: Vec<String>,
    places: HashMap<String, usize>,
    tables: Vec<Table>,
    last: usize,
}

#[derive(Clone, Debug)]
struct Table {
    schema: Box<str>,
    name: Box<str>,
    operations: [Option<IntCounter>; Operation::ALL.len()],
}

impl TableCounters {
    fn new(family: TableFamily, labels: Vec<String>) -> Self {
        Self { family, labels, places: HashMap::new(), tables: Vec::new(), last: 0 }
    }

    fn add(&mut self, schema: &str, table: &str, operation: Operation, changes: u64) {
        let is = |kept: &Table| *kept.name == *table && *kept.schema == *schema;
        if !self.tables.get(self.last).is_some_and(is) {
            self.last = self.place(schema, table);
        }
        let kept = &mut self.tables[self.last];
        let counter = kept.operations[operation as usize].get_or_insert_with(|| {
            let table = if kept.schema.is_empty() {
                OTHER.to_owned()
            } else {
                format!("{}.{}", kept.schema, kept.name)
            };
            let mut labels: Vec<&str> = self.labels.iter().map(String::as_str).collect();
            labels.extend([table.as_str(), operation.as_str()]);
            self.family.counters.with_label_values(&labels)
        });
        counter.inc_by(changes);
    }

    fn place(&mut self, schema: &str, table: &str) -> usize {
        // A zero byte parts the names: no identifier holds one.
        let key = format!("{schema}\0{table}");
        let known = self.places.get(&key).copied();
        if let Some(place) = known {
            return place;
        }
        let is_other = self.family.label(&format!("{schema}.{table}")) == OTHER;
        let (key, schema, table) = if is_other { (String::new(), "", "") } else { (key, schema, table) };
        *self.places.entry(key).or_insert_with(|| {
            let operations = [const { None }; Operation::ALL.len()];
            self.tables.push(Table { schema: schema.into(), name: table.into(), operations });
            self.tables.len() - 1
        })
    }
}

/// A counter that is fed with totals, each of them since the session began.
#[derive(Clone, Debug)]
struct Total {
    counter: IntCounter,
    reached: u64,
}

impl Total {
    fn new(counter: IntCounter) -> Self {
        Self { counter, reached: 0 }
    }

    fn reach(&mut self, total: u64) {
        if total > self.reached {
            self.counter.inc_by(total - self.reached);
            self.reached = total;
        }
    }
}

/// Counts what a source has put into Kafka. One for each session.
#[derive(Clone, Debug)]
pub struct CaptureMeter {
    transactions: IntCounter,
    bytes: IntCounter,
    sent: Total,
    read: Histogram,
    appended: Histogram,
    changes: TableCounters,
}

impl CaptureMeter {
    pub(super) fn new(metrics: &Metrics, region: &Region, stream: &str) -> Self {
        let stage = |stage| metrics.stages.with_label_values(&[region.as_str(), stream, stage]);
        Self {
            transactions: metrics.captured_transactions.with_label_values::<&str>(&[]),
            bytes: metrics.bytes_produced.with_label_values::<&str>(&[]),
            sent: Total::new(metrics.bytes_sent.with_label_values::<&str>(&[])),
            read: stage("read"),
            appended: stage("appended"),
            changes: TableCounters::new(metrics.captured_changes.clone(), Vec::new()),
        }
    }

    /// Whole transactions were given to Kafka.
    pub fn transactions(&self, transactions: u64) {
        self.transactions.inc_by(transactions);
    }

    /// Changes were given to Kafka.
    pub fn changes(&mut self, schema: &str, table: &str, operation: Operation, changes: u64) {
        self.changes.add(schema, table, operation, changes);
    }

    /// Values of so many bytes were given to Kafka.
    pub fn bytes(&self, bytes: u64) {
        self.bytes.inc_by(bytes);
    }

    /// So many bytes have been sent to Kafka in this session.
    pub fn sent(&mut self, total: u64) {
        self.sent.reach(total);
    }

    /// A transaction was read so long after its commit; less than 0, by clocks that disagree, counts as 0.
    pub fn read(&self, seconds: f64) {
        self.read.observe(seconds.max(0.0));
    }

    /// A transaction was acknowledged so long after it was read.
    pub fn appended(&self, seconds: f64) {
        self.appended.observe(seconds.max(0.0));
    }
}

/// Counts what a link has applied. One for each session.
#[derive(Clone, Debug)]
pub struct DeliverMeter {
    transactions: IntCounter,
    bytes: IntCounter,
    received: Total,
    stale: IntCounter,
    redone: IntCounter,
    latency: Histogram,
    fetched: Histogram,
    applied: Histogram,
    changes: TableCounters,
}

impl DeliverMeter {
    pub(super) fn new(metrics: &Metrics, from: &Region, stream: &str) -> Self {
        let link = [from.as_str(), stream];
        let labels = link.map(str::to_owned).to_vec();
        let stage = |stage| metrics.stages.with_label_values(&[from.as_str(), stream, stage]);
        Self {
            transactions: metrics.applied_transactions.with_label_values(&link),
            bytes: metrics.bytes_consumed.with_label_values(&link),
            received: Total::new(metrics.bytes_received.with_label_values(&link)),
            stale: metrics.stale_records.with_label_values(&link),
            redone: metrics.redone_batches.with_label_values::<&str>(&[]),
            latency: metrics.latency.with_label_values(&link),
            fetched: stage("fetched"),
            applied: stage("applied"),
            changes: TableCounters::new(metrics.applied_changes.clone(), labels),
        }
    }

    /// Whole transactions were committed and flushed.
    pub fn transactions(&self, transactions: u64) {
        self.transactions.inc_by(transactions);
    }

    /// Changes were committed.
    pub fn changes(&mut self, schema: &str, table: &str, operation: Operation, changes: u64) {
        self.changes.add(schema, table, operation, changes);
    }

    /// A transaction was visible here so long after its commit there. Clocks that disagree make it
    /// negative; that counts as 0.
    pub fn latency(&self, seconds: f64) {
        self.latency.observe(seconds.max(0.0));
    }

    /// A transaction's last record was read here so long after its log took it in, on the two regions'
    /// clocks; less than 0 counts as 0.
    pub fn fetched(&self, seconds: f64) {
        self.fetched.observe(seconds.max(0.0));
    }

    /// A transaction was committed here so long after it was read.
    pub fn applied(&self, seconds: f64) {
        self.applied.observe(seconds.max(0.0));
    }

    /// Values of so many bytes were read.
    pub fn bytes(&self, bytes: u64) {
        self.bytes.inc_by(bytes);
    }

    /// So many bytes have come over the line in this session.
    pub fn received(&mut self, total: u64) {
        self.received.reach(total);
    }

    /// A dead writer's late record was passed over.
    pub fn stale_record(&self) {
        self.stale.inc();
    }

    /// A batch was redone change by change.
    pub fn redone_batch(&self) {
        self.redone.inc();
    }
}

/// Counts what a link compares.
#[derive(Clone, Debug)]
pub struct VerifyMeter {
    metrics: Metrics,
    link: [String; 2],
    ranges: IntCounter,
    differences: IntCounter,
    given_up: IntCounter,
}

impl VerifyMeter {
    pub(super) fn new(metrics: &Metrics, from: &Region, stream: &str) -> Self {
        let link = [from.to_string(), stream.to_owned()];
        Self {
            metrics: metrics.clone(),
            ranges: metrics.verified_ranges.with_label_values(&link),
            differences: metrics.verify_differences.with_label_values(&link),
            given_up: metrics.verify_given_up.with_label_values(&link),
            link,
        }
    }

    /// So many ranges were compared, and so many rows of them differ.
    pub fn compared(&self, ranges: u64, differences: u64) {
        self.ranges.inc_by(ranges);
        self.differences.inc_by(differences);
    }

    /// A table could not be compared.
    pub fn given_up(&self) {
        self.given_up.inc();
    }

    /// Every table was found equal, last at this time.
    pub fn clean(&self, at: Micros) {
        self.metrics.verify_clean.with_label_values(&self.link).set(at.0 / 1_000_000);
    }
}

/// Shows how full a queue is, and how long it made its writer wait.
#[derive(Clone, Debug)]
pub struct QueueMeter {
    metrics: Metrics,
    name: String,
    blocked: Counter,
    fill: Option<Gauge>,
}

impl QueueMeter {
    pub(super) fn new(metrics: &Metrics, name: &str) -> Self {
        let blocked = metrics.backpressure.with_label_values(&[name]);
        Self { metrics: metrics.clone(), name: name.to_owned(), blocked, fill: None }
    }

    /// The queue is so full, 0 to 1.
    pub fn fill(&mut self, ratio: f64) {
        let gauge = || self.metrics.queue_fill.with_label_values(&[&self.name]);
        self.fill.get_or_insert_with(gauge).set(ratio);
    }

    /// Its writer waited for room.
    pub fn blocked(&self, waited: Duration) {
        self.blocked.inc_by(waited.as_secs_f64());
    }
}
