//! Appending: an idempotent producer, its acknowledgements counted in order.
//!
//! A producer's linger is fixed when it is made, and no one value is right: a lone record must not wait, and
//! of a hundred thousand a second each must, or a broker is asked for every twenty of them. So there are several
//! producers, a calm one and hotter ones. One is in use; it is changed for another by the rate of appending, once
//! everything it was given is acknowledged: so the order stays, and the count of acknowledgements a prefix.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext, Message,
    client::DefaultClientContext,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header as KafkaHeader, OwnedHeaders},
    producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, PurgeConfig, ThreadedProducer},
};
use tokio::{sync::Notify, time::timeout};

use super::{PARTITION, traffic::Traffic};
use crate::{
    changelog::{Counts, Writer},
    envelope::{HEADER_NAME, Header, Packer},
    fault::{Fault, Result},
    kafka::{Cluster, Resource, fault_of},
    names,
    pace::Pace,
    position::Offset,
};

/// How much a writer may hold, and how long it may wait for company.
#[derive(Clone, Copy, Debug)]
pub struct WriterLimits {
    /// Bytes queued before [`Writer::append`] waits. The producer copies each record into the queue.
    pub queue_bytes: usize,
    /// How long a record waits for others to share a request with.
    pub linger: Duration,
    /// Records that are taken one after the other share one of the topic's, up to so many bytes; 0 has each stand alone.
    pub pack_bytes: usize,
    /// Records of the topic that share a request, up to so many bytes; a larger one stands alone. A broker holds what stands
    /// together against the topic's `max.message.bytes`, as it comes: where it does not compress, all of it.
    pub batch_bytes: usize,
}

impl Default for WriterLimits {
    /// 8 MiB: a few requests in flight and as much again behind them. A lone record does not wait; while the
    /// stream is hot it is some milliseconds at least. A batch is what a broker takes unless it was told otherwise.
    fn default() -> Self {
        Self { queue_bytes: 8 << 20, linger: Duration::ZERO, pack_bytes: 0, batch_bytes: 1_000_000 }
    }
}

/// A pack's bytes, at most. Readers keep a pack as long as they keep one of its values: small, then.
pub const PACK_BYTES: usize = 48 << 10;

/// Records queued before [`Writer::append`] waits, however small they are.
const QUEUE_RECORDS: usize = 20_000;

/// A full queue is looked at again after this: some hundreds of records later, at full speed.
const ROOM_INTERVAL: Duration = Duration::from_millis(2);

/// While more is on its way, acknowledgements are gathered for so long before anyone is told: what waits
/// for them is what the server may release, and nothing a reader of the stream would see.
const GATHER: Duration = Duration::from_millis(2);

/// A report of what failed comes so soon, at most, after those of what the client gave up for it.
const REPORTED_WITHIN: Duration = Duration::from_millis(500);

/// From so many records a second on, each waits so long for company.
struct Gathering {
    rate: f64,
    linger: Duration,
}

/// A stream is hot where a request for each of its records would begin to fill a core. Up to some hundreds share one then,
/// and what a request costs the broker, and everybody behind it, hardly counts.
const HOT: Gathering = Gathering { rate: 3_000.0, linger: Duration::from_millis(2) };
/// Packs that come so fast gather longer: there are fewer of them, and a client that has few under way sends the next
/// sooner.
const HOT_PACKS: Gathering = Gathering { rate: 20_000.0, linger: Duration::from_millis(5) };
/// A stream is as hot as it was until there are so many times fewer.
const COOLS: f64 = 3.0;
/// What a rate is taken over: long enough that one transaction is not a stream.
const PACE_INTERVAL: Duration = Duration::from_millis(50);

/// Records under way to the state topic with which another checkpoint is left out: where it takes none, they must not fill
/// the stream's queue, and this is a hundredth of it. The next says more.
const KEPT_MAX: u64 = 200;
/// In the same way for where a region may begin, which is said again beside each checkpoint: there is room left for it.
const STARTS_MAX: u64 = 2 * KEPT_MAX;

/// Appends to a topic.
pub struct KafkaWriter {
    cluster: Cluster,
    /// The calm one first, then hotter and hotter ones, and from how many records a second each is used.
    producers: Vec<(f64, ThreadedProducer<Acks>)>,
    /// Which of them is in use.
    used: usize,
    pace: Pace,
    packer: Packer,
    given_bytes: u64,
    queue_bytes: usize,
    delivered: Arc<Delivered>,
    topic: String,
    state_topic: String,
    /// Records given for the state topic.
    kept_given: u64,
    /// How many it had taken when that was last looked at, and since when it has had one to take.
    kept_seen: (u64, Option<Instant>),
}

/// What a record is, to its delivery report: so many of the stream's, or none of it.
const CHECKPOINT: usize = 0;

/// Counts delivery reports. With one partition and idempotence they come in the order of sending.
struct Acks(Arc<Delivered>, Traffic);

struct Delivered {
    /// Records of the stream given to any of the producers, and those acknowledged.
    counts: Arc<Counts>,
    bytes: AtomicU64,
    offset: AtomicI64,
    /// Checkpoints that the state topic took, and those that came to their end in any way.
    kept: AtomicU64,
    kept_ended: AtomicU64,
    /// What failed first, and of which topic: a checkpoint, or the stream.
    failed: OnceLock<(Of, KafkaError)>,
    /// The client gave records up for something that failed, which has a report of its own; and when.
    given_up: OnceLock<(Instant, KafkaError)>,
    changed: Notify,
}

#[derive(Clone, Copy, PartialEq)]
enum Of {
    Stream,
    Checkpoint,
}

impl ClientContext for Acks {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // The client warns of `enable.gapless.guarantee` at each start: its authors call it experimental.
        if facility != "CONFWARN" {
            DefaultClientContext.log(level, facility, message);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "Kafka producer");
        // The client would try for ever, and what it waits for is a person: the next session says so.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Authentication) {
            let _ = self.0.failed.set((Of::Stream, error));
            self.0.changed.notify_waiters();
        }
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.1.take(statistics);
    }
}

impl ProducerContext for Acks {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, records: usize) {
        use RDKafkaErrorCode as K;
        let given_up = |error: &KafkaError| {
            matches!(error.rdkafka_error_code(), Some(K::PurgeQueue | K::PurgeInflight | K::Fatal))
        };
        match result {
            Err((error, _)) if records == CHECKPOINT => {
                self.0.kept_ended.fetch_add(1, Ordering::Relaxed);
                // Where there is no such topic, the next checkpoint will do. What is refused for good has ended the
                // producer. `BrokerDestroy` is what the client says of a record that came to a partition it was just forgetting
                // (`rd_kafka_toppar_destroy_final`).
                let gone =
                    [K::UnknownTopic, K::UnknownTopicOrPartition, K::UnknownPartition, K::BrokerDestroy];
                if given_up(error) || error.rdkafka_error_code().is_some_and(|code| gone.contains(&code)) {
                    return;
                }
                let _ = self.0.failed.set((Of::Checkpoint, error.clone()));
            }
            Ok(_) if records == CHECKPOINT => {
                self.0.kept.fetch_add(1, Ordering::Relaxed);
                self.0.kept_ended.fetch_add(1, Ordering::Relaxed);
                return;
            }
            // Behind a failed record nothing counts: the count is a prefix.
            Ok(_) if self.0.failed.get().is_some() => (),
            Ok(message) => {
                // After a retry the broker may answer without the offset (-1): then the last stays.
                if message.offset() >= 0 {
                    self.0.offset.store(message.offset(), Ordering::Relaxed);
                }
                self.0.bytes.fetch_add(message.payload_len() as u64, Ordering::Relaxed);
                self.0.counts.acknowledge(records as u64);
            }
            Err((error, _)) if given_up(error) => {
                let _ = self.0.given_up.set((Instant::now(), error.clone()));
            }
            Err((error, _)) => {
                let _ = self.0.failed.set((Of::Stream, error.clone()));
            }
        }
        self.0.changed.notify_waiters();
    }
}

impl KafkaWriter {
    pub(super) fn open(
        cluster: &Cluster,
        topic: &str,
        state_topic: &str,
        limits: WriterLimits,
    ) -> Result<Self> {
        let delivered = Arc::new(Delivered {
            counts: Arc::default(),
            bytes: AtomicU64::new(0),
            offset: AtomicI64::new(-1),
            kept: AtomicU64::new(0),
            kept_ended: AtomicU64::new(0),
            failed: OnceLock::new(),
            given_up: OnceLock::new(),
            changed: Notify::new(),
        });
        let hotter: &[Gathering] = if limits.pack_bytes > 0 { &[HOT, HOT_PACKS] } else { &[HOT] };
        let calm = Gathering { rate: 0.0, linger: limits.linger };
        let producer = |of: &Gathering| {
            let linger = of.linger.max(limits.linger);
            let mut config = cluster.client("writer");
            Traffic::told_by(&mut config)
                // Implies acks=all, unlimited retries and order kept with up to 5 requests in flight.
                .set("enable.idempotence", "true")
                // Never give a record up: a hole would follow. The queue fills and the source waits.
                .set("message.timeout.ms", "0")
                // Nor go on behind one that the broker refuses for good (larger than the topic takes): it ends the producer.
                .set("enable.gapless.guarantee", "true")
                .set("compression.type", "zstd")
                .set("compression.level", "1")
                .set("linger.ms", (linger.as_secs_f64() * 1e3).to_string())
                // Beyond the largest `max_record_bytes`: what a record may be is the topic's to say.
                .set("message.max.bytes", "16777216")
                .set("batch.num.messages", "10000")
                .set("batch.size", limits.batch_bytes.to_string())
                .set("queue.buffering.max.messages", QUEUE_RECORDS.to_string())
                .set("queue.buffering.max.kbytes", (limits.queue_bytes >> 10).to_string())
                .create_with_context(Acks(Arc::clone(&delivered), Traffic::default()))
                .map(|producer| (of.rate, producer))
                .map_err(|error| fault_of("set up a Kafka producer", error))
        };
        let producers = std::iter::once(&calm).chain(hotter).map(producer).collect::<Result<_>>()?;
        Ok(Self {
            cluster: cluster.clone(),
            producers,
            used: 0,
            pace: Pace::new(PACE_INTERVAL, Instant::now()),
            packer: Packer::new(limits.pack_bytes),
            given_bytes: 0,
            queue_bytes: limits.queue_bytes,
            topic: topic.to_owned(),
            state_topic: state_topic.to_owned(),
            delivered,
            kept_given: 0,
            kept_seen: (0, None),
        })
    }

    /// The one in use.
    fn producer(&self) -> &ThreadedProducer<Acks> {
        &self.producers[self.used].1
    }

    /// Records of the stream given to any of them.
    fn given(&self) -> u64 {
        self.delivered.counts.given()
    }

    /// All of them.
    fn each(&self) -> impl Iterator<Item = &ThreadedProducer<Acks>> {
        self.producers.iter().map(|(_, producer)| producer)
    }

    /// Notes that records are about to be given, and changes the producer where the rate calls for it.
    ///
    /// Only the stream is waited for: the state topic may have no leader, or too few replicas, while the stream's goes on. A
    /// checkpoint that one producer still holds may then come behind a newer one of another producer. That does no harm: it
    /// is as true as when it was made, a start that finds it reads more of the tail, as it would had its writer died before
    /// the newer one; and so with where a region may begin. The next one takes its place.
    async fn choose(&mut self, records: usize) -> Result<()> {
        let Some(rate) = self.pace.note(records as u64, Instant::now()) else { return Ok(()) };
        let due = due(self.producers.iter().map(|(from, _)| *from), self.used, rate);
        if due != self.used {
            while self.acknowledged() < self.given() {
                self.check()?;
                tokio::time::sleep(ROOM_INTERVAL).await;
            }
            self.used = due;
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        self.failure().map_or(Ok(()), Err)
    }

    fn failure(&self) -> Option<Fault> {
        let Some((of, error)) = self.delivered.failed.get() else {
            let (since, error) = self.delivered.given_up.get()?;
            return (since.elapsed() > REPORTED_WITHIN).then(|| self.fault(&self.topic, error.clone()));
        };
        let topic = if *of == Of::Checkpoint { &self.state_topic } else { &self.topic };
        Some(self.fault(topic, error.clone()))
    }

    /// Why the client takes nothing any more: the report of what failed may still be on its way.
    async fn ended(&self, error: KafkaError) -> Fault {
        let since = Instant::now();
        loop {
            match self.failure() {
                Some(fault) => return fault,
                None if since.elapsed() > REPORTED_WITHIN => return self.fault(&self.topic, error),
                None => tokio::time::sleep(ROOM_INTERVAL).await,
            }
        }
    }

    fn fault(&self, topic: &str, error: KafkaError) -> Fault {
        // A producer that may write no topic at all is refused its id, and fails every record for that.
        let denied = |producer: &ThreadedProducer<Acks>| {
            let (code, _) = producer.client().fatal_error()?;
            (code == RDKafkaErrorCode::ClusterAuthorizationFailed).then_some(code)
        };
        let error = self.each().find_map(denied).map_or(error, KafkaError::MessageProduction);
        let doing = format_args!("append to topic {topic}");
        self.cluster.fault_of(doing, error, "Write", Resource::Topic(topic))
    }
}

impl Writer for KafkaWriter {
    async fn append(&mut self, header: &Header, key: &[u8], value: &[u8]) -> Result<Duration> {
        if !self.packer.may_share(header, value) {
            let waited = self.hand_over().await?;
            return Ok(waited + self.send(&header.seal(key, value), key, value, 1).await?);
        }
        if self.packer.take(header, key, value) {
            return Ok(Duration::ZERO);
        }
        let waited = self.hand_over().await?;
        assert!(self.packer.take(header, key, value), "the first of a pack is taken");
        Ok(waited)
    }

    async fn hand_over(&mut self) -> Result<Duration> {
        // Taken out for as long as it is sent: a send that is cancelled is of a session that has ended.
        let mut packer = std::mem::replace(&mut self.packer, Packer::new(0));
        let sent = match packer.packed() {
            Some(packed) => self.send(&packed.header, packed.key, packed.value, packed.records).await,
            None => Ok(Duration::ZERO),
        };
        packer.clear();
        self.packer = packer;
        sent
    }

    fn acknowledged(&self) -> u64 {
        self.delivered.counts.acknowledged()
    }

    fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.delivered.counts)
    }

    fn last_offset(&self) -> Option<Offset> {
        let offset = self.delivered.offset.load(Ordering::Relaxed);
        (offset >= 0).then_some(Offset(offset))
    }

    async fn acknowledged_beyond(&self, seen: u64) -> Result<()> {
        loop {
            let changed = self.delivered.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            self.check()?;
            if self.acknowledged() > seen {
                return Ok(());
            }
            // What was given up is told when its reason has not come for a while.
            let _ = timeout(REPORTED_WITHIN, changed).await;
            if self.acknowledged() < self.given() {
                tokio::time::sleep(GATHER).await;
            }
        }
    }

    fn keep_checkpoint(&mut self, value: &[u8]) -> Result<()> {
        if self.keeping() >= KEPT_MAX {
            return Ok(());
        }
        let key = self.topic.clone();
        self.keep(key.as_bytes(), value)
    }

    fn keep_start(&mut self, to: &str, value: &[u8]) -> Result<()> {
        if self.keeping() >= STARTS_MAX {
            return Ok(());
        }
        self.keep(names::start_key(&self.topic, to).as_bytes(), value)
    }

    fn unkept(&mut self) -> Option<Duration> {
        let (kept, ended) =
            (self.delivered.kept.load(Ordering::Relaxed), self.delivered.kept_ended.load(Ordering::Relaxed));
        let (seen, since) = &mut self.kept_seen;
        if *seen < kept {
            *seen = kept;
            *since = (ended < self.kept_given).then(Instant::now);
        }
        since.map(|since| since.elapsed())
    }

    async fn all_kept(&self) -> Result<()> {
        while self.each().any(|producer| producer.in_flight_count() > 0) {
            self.check()?;
            tokio::time::sleep(ROOM_INTERVAL).await;
        }
        self.check()
    }

    fn fill(&self) -> f64 {
        let records = f64::from(self.producer().in_flight_count()) / QUEUE_RECORDS as f64;
        let bytes = self.given_bytes.saturating_sub(self.delivered.bytes.load(Ordering::Relaxed));
        records.max(bytes as f64 / self.queue_bytes as f64)
    }

    fn sent(&self) -> u64 {
        self.each().map(|producer| producer.context().1.sent()).sum()
    }
}

impl KafkaWriter {
    /// Queues one record of the topic that is so many of the stream's.
    async fn send(&mut self, header: &[u8], key: &[u8], value: &[u8], records: usize) -> Result<Duration> {
        let headers =
            OwnedHeaders::new_with_capacity(1).insert(KafkaHeader { key: HEADER_NAME, value: Some(header) });
        // Nothing goes out behind what failed: it would be a hole.
        self.check()?;
        self.choose(records).await?;
        let mut record = BaseRecord::with_opaque_to(&self.topic, records)
            .partition(PARTITION)
            .key(key)
            .payload(value)
            .headers(headers);
        let mut since = None;
        loop {
            record = match self.producer().send(record) {
                Ok(()) => {
                    self.delivered.counts.give(records as u64);
                    self.given_bytes += value.len() as u64;
                    return Ok(since.map_or(Duration::ZERO, |since: Instant| since.elapsed()));
                }
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), record)) => record,
                Err((error @ KafkaError::MessageProduction(RDKafkaErrorCode::Fatal), _)) => {
                    return Err(self.ended(error).await);
                }
                Err((error, _)) => {
                    return Err(self.fault(&self.topic, error));
                }
            };
            self.check()?;
            since.get_or_insert_with(Instant::now);
            // A delivery makes room; not for each is it worth waking up.
            tokio::time::sleep(ROOM_INTERVAL).await;
        }
    }

    /// Records under way to the state topic.
    fn keeping(&self) -> u64 {
        self.kept_given.saturating_sub(self.delivered.kept_ended.load(Ordering::Relaxed))
    }

    /// Queues what is kept in the state topic under `key`.
    fn keep(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let record = BaseRecord::with_opaque_to(&self.state_topic, CHECKPOINT)
            .partition(PARTITION)
            .key(key)
            .payload(value);
        match self.producer().send(record).map_err(|(error, _)| error) {
            Ok(()) => {
                self.kept_given += 1;
                self.kept_seen.1.get_or_insert_with(Instant::now);
                Ok(())
            }
            // The queue is full of what matters more; the next one will do.
            Err(KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) => Ok(()),
            // Somebody deleted it: the next session makes it anew.
            Err(KafkaError::MessageProduction(
                RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownPartition,
            )) => {
                self.kept_seen.1.get_or_insert_with(Instant::now);
                Ok(())
            }
            Err(error) => Err(self.fault(&self.state_topic, error)),
        }
    }
}

impl Drop for KafkaWriter {
    /// What is not acknowledged is the next session's to send. Each producer waits for its thread when it is dropped, and would
    /// send on meanwhile.
    fn drop(&mut self) {
        for producer in self.each() {
            producer.purge(PurgeConfig::default().queue().inflight());
        }
    }
}

/// The hottest producer that so many records a second call for, of those that are used from these rates on.
fn due(from: impl DoubleEndedIterator<Item = f64> + ExactSizeIterator, used: usize, rate: f64) -> usize {
    from.enumerate()
        .rev()
        .find(|(at, from)| rate >= if *at <= used { from / COOLS } else { *from })
        .map_or(0, |(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_stays_as_hot_as_it_was_for_a_while() {
        let due = |used, rate| due([0.0, HOT.rate, HOT_PACKS.rate].into_iter(), used, rate);
        assert_eq!([due(0, 0.0), due(0, 2_999.0), due(0, 3_000.0), due(0, 20_000.0)], [0, 0, 1, 2]);
        assert_eq!([due(1, 19_999.0), due(1, 1_001.0), due(1, 999.0)], [1, 1, 0]);
        assert_eq!([due(2, 7_000.0), due(2, 6_000.0), due(2, 999.0)], [2, 1, 0]);
    }
}
