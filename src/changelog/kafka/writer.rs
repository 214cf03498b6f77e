//! Appending: an idempotent producer, its acknowledgements counted in order.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext, Message,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header as KafkaHeader, OwnedHeaders},
    producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer},
};
use tokio::sync::Notify;

use super::PARTITION;
use crate::{
    changelog::Writer,
    envelope::{HEADER_NAME, Header},
    fault::{Code, Fault, Result},
    kafka::{Cluster, fault_of},
    position::Offset,
};

/// How much a writer may hold, and how long it may wait for company.
#[derive(Clone, Copy, Debug)]
pub struct WriterLimits {
    /// Bytes queued before [`Writer::append`] waits. The producer copies each record into the queue.
    pub queue_bytes: usize,
    /// How long a record waits for others to share a request with.
    pub linger: Duration,
}

impl Default for WriterLimits {
    /// 8 MiB: a few requests in flight and as much again behind them. A fifth of a millisecond: what is
    /// read together is sent together, and a lone record hardly waits.
    fn default() -> Self {
        Self { queue_bytes: 8 << 20, linger: Duration::from_micros(200) }
    }
}

/// Records queued before [`Writer::append`] waits, however small they are.
const QUEUE_RECORDS: usize = 20_000;

/// A full queue is looked at again after this: some hundreds of records later, at full speed.
const ROOM_INTERVAL: Duration = Duration::from_millis(2);

/// While more is on its way, acknowledgements are gathered for so long before anyone is told: what waits
/// for them is what the server may release, and nothing a reader of the stream would see.
const GATHER: Duration = Duration::from_millis(2);

/// Appends to a topic.
pub struct KafkaWriter {
    producer: ThreadedProducer<Acks>,
    topic: String,
    state_topic: String,
}

/// Which queue a delivery report belongs to.
const STREAM: usize = 0;
const CHECKPOINT: usize = 1;

/// Counts delivery reports. With one partition and idempotence they come in the order of sending.
struct Acks(Arc<Delivered>);

struct Delivered {
    records: AtomicU64,
    offset: AtomicI64,
    failed: OnceLock<KafkaError>,
    changed: Notify,
}

impl ClientContext for Acks {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "Kafka producer");
    }
}

impl ProducerContext for Acks {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, queue: usize) {
        if queue == CHECKPOINT {
            return;
        }
        match result {
            // Behind a failed record nothing counts: the count is a prefix.
            Ok(_) if self.0.failed.get().is_some() => (),
            Ok(message) => {
                // After a retry the broker may answer without the offset (-1): then the last stays.
                if message.offset() >= 0 {
                    self.0.offset.store(message.offset(), Ordering::Relaxed);
                }
                self.0.records.fetch_add(1, Ordering::Release);
            }
            Err((error, _)) => {
                let _ = self.0.failed.set(error.clone());
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
            records: AtomicU64::new(0),
            offset: AtomicI64::new(-1),
            failed: OnceLock::new(),
            changed: Notify::new(),
        });
        let producer = cluster
            .client("writer")
            // Implies acks=all, unlimited retries and order kept with 5 requests in flight.
            .set("enable.idempotence", "true")
            // Never give a record up: a hole would follow. The queue fills and the source waits.
            .set("message.timeout.ms", "0")
            .set("compression.type", "zstd")
            .set("compression.level", "1")
            .set("linger.ms", (limits.linger.as_secs_f64() * 1e3).to_string())
            // Beyond the largest `max_record_bytes`: what a record may be is the topic's to say.
            .set("message.max.bytes", "16777216")
            .set("batch.num.messages", "10000")
            .set("queue.buffering.max.messages", QUEUE_RECORDS.to_string())
            .set("queue.buffering.max.kbytes", (limits.queue_bytes >> 10).to_string())
            .create_with_context(Acks(delivered))
            .map_err(|error| fault_of("set up a Kafka producer", error))?;
        Ok(Self { producer, topic: topic.to_owned(), state_topic: state_topic.to_owned() })
    }

    fn delivered(&self) -> &Arc<Delivered> {
        &self.producer.context().0
    }

    fn failure(&self) -> Option<Fault> {
        let error = self.delivered().failed.get()?;
        Some(fault_of(format_args!("append to topic {}", self.topic), error.clone()))
    }
}

impl Writer for KafkaWriter {
    async fn append(&mut self, header: &Header, key: &[u8], value: &[u8]) -> Result<Duration> {
        let sealed = header.seal(key, value);
        let headers = OwnedHeaders::new_with_capacity(1)
            .insert(KafkaHeader { key: HEADER_NAME, value: Some(sealed.as_slice()) });
        let mut record = BaseRecord::with_opaque_to(&self.topic, STREAM)
            .partition(PARTITION)
            .key(key)
            .payload(value)
            .headers(headers);
        let mut since = None;
        loop {
            record = match self.producer.send(record) {
                Ok(()) => return Ok(since.map_or(Duration::ZERO, |since: Instant| since.elapsed())),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), record)) => record,
                Err((error, _)) => {
                    return Err(fault_of(format_args!("append to topic {}", self.topic), error));
                }
            };
            if let Some(fault) = self.failure() {
                return Err(fault);
            }
            since.get_or_insert_with(Instant::now);
            // A delivery makes room; not for each is it worth waking up.
            tokio::time::sleep(ROOM_INTERVAL).await;
        }
    }

    fn acknowledged(&self) -> u64 {
        self.delivered().records.load(Ordering::Acquire)
    }

    fn last_offset(&self) -> Option<Offset> {
        let offset = self.delivered().offset.load(Ordering::Relaxed);
        (offset >= 0).then_some(Offset(offset))
    }

    async fn acknowledged_beyond(&self, seen: u64) -> Result<()> {
        loop {
            let changed = self.delivered().changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(fault) = self.failure() {
                return Err(fault);
            }
            if self.acknowledged() > seen {
                return Ok(());
            }
            changed.await;
            if self.producer.in_flight_count() > 0 {
                tokio::time::sleep(GATHER).await;
            }
        }
    }

    fn keep_checkpoint(&mut self, value: &[u8]) -> Result<()> {
        let record = BaseRecord::with_opaque_to(&self.state_topic, CHECKPOINT)
            .partition(PARTITION)
            .key(self.topic.as_bytes())
            .payload(value);
        match self.producer.send(record) {
            // The queue is full of what matters more; the next one will do.
            Ok(()) | Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => Ok(()),
            Err((error, _)) => {
                Err(Fault::new(Code::KafkaRejected, format!("append to topic {}", self.state_topic))
                    .because(error))
            }
        }
    }

    fn fill(&self) -> f64 {
        f64::from(self.producer.in_flight_count()) / QUEUE_RECORDS as f64
    }
}
