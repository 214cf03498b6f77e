//! Reading: a consumer on a thread of its own, which hands over records in bounded helpings.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use rdkafka::{
    ClientConfig, Message, Offset as KafkaOffset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, ConsumerContext, DefaultConsumerContext},
    error::{KafkaError, KafkaResult},
    message::{BorrowedMessage, Headers},
    types::RDKafkaErrorCode,
};
use tokio::sync::mpsc;

use super::{
    PARTITION,
    fetch::{BYTES_AT_FIRST, Fetch},
    traffic::Traffic,
};
use crate::{
    changelog::{Entry, Reader},
    envelope::{HEADER_NAME, Header, is_pack, unpack},
    fault::{Code, Fault, Result},
    kafka::{Cluster, REQUEST_TIMEOUT, Resource, fault_of},
    position::Offset,
    stamp::Micros,
    task,
};

/// A helping's bytes: enough to be worth handing over, small enough that a few do not matter.
const HELPING_BYTES: usize = 512 << 10;
const HELPING_RECORDS: usize = 1024;
/// Values are copied side by side into buffers of this size. What keeps one keeps its buffer: small, then.
const BUFFER_BYTES: usize = 64 << 10;
/// Helpings that wait to be taken. With the fetch queue they bound what a slow sink leaves in memory.
const HELPINGS: usize = 4;
const SOCKET_TIMEOUT: &str = "socket.timeout.ms";
/// How long an answer may take. It comes as a whole or is asked for again: 3 MiB of it at 100 KiB/s.
const ANSWER_MILLIS: &str = "30000";
/// How soon the thread notices that nobody reads any more.
const TURN: Duration = Duration::from_millis(100);

/// Reads a topic.
pub struct KafkaReader {
    topic: String,
    helpings: mpsc::Receiver<Result<Vec<Entry>>>,
    traffic: Traffic,
    stop: Arc<AtomicBool>,
}

impl KafkaReader {
    pub(super) fn open(
        cluster: &Cluster,
        topic: &str,
        group: &str,
        from: Offset,
        fetch_bytes: Option<usize>,
    ) -> Result<Self> {
        let traffic = Traffic::default();
        let mut source = Source {
            cluster: cluster.clone(),
            topic: topic.to_owned(),
            group: group.to_owned(),
            next: from,
            fetch: Fetch::new(fetch_bytes),
        };
        let mut consumer = source.consumer(traffic.clone())?;
        let (give, helpings) = mpsc::channel(HELPINGS);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        // Ends by itself once `stop` is set or the receiver is gone.
        task::spawn_thread("kafka reader", move || {
            let mut buffer = BytesMut::new();
            while !stopped.load(Ordering::Relaxed) {
                let helping = match source.helping(&consumer, &mut buffer) {
                    Ok(entries) if entries.is_empty() => continue,
                    helping => helping,
                };
                let last = helping.is_err();
                if give.blocking_send(helping).is_err() || last {
                    return;
                }
                if let Some(bytes) = source.fetch.follow(consumer.context().told()) {
                    tracing::debug!(topic = source.topic, bytes, "what one request to Kafka asks for");
                    // What the old one has waiting is read again: gone first, so that it is never there twice.
                    let traffic = consumer.context().handed_on();
                    drop(consumer);
                    consumer = match source.consumer(traffic) {
                        Ok(consumer) => consumer,
                        // Nobody is there to hear it where this fails.
                        Err(fault) => return drop(give.blocking_send(Err(fault))),
                    };
                }
            }
        });
        Ok(Self { topic: topic.to_owned(), helpings, traffic, stop })
    }

    fn ended(&self) -> Fault {
        Fault::new(Code::Internal, format!("the reader of topic {} has ended", self.topic))
    }
}

impl Drop for KafkaReader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Reader for KafkaReader {
    async fn read(&mut self) -> Result<Vec<Entry>> {
        self.helpings.recv().await.unwrap_or_else(|| Err(self.ended()))
    }

    fn read_now(&mut self) -> Result<Option<Vec<Entry>>> {
        match self.helpings.try_recv() {
            Ok(helping) => helping.map(Some),
            Err(mpsc::error::TryRecvError::Empty) => Ok(None),
            Err(mpsc::error::TryRecvError::Disconnected) => Err(self.ended()),
        }
    }

    fn received(&self) -> u64 {
        self.traffic.received()
    }
}

/// What is read, and how far it has been.
struct Source {
    cluster: Cluster,
    topic: String,
    group: String,
    /// What is read next.
    next: Offset,
    fetch: Fetch,
}

impl Source {
    /// One that reads from `next` on.
    fn consumer(&self, traffic: Traffic) -> Result<BaseConsumer<Traffic>> {
        let mut config = self.cluster.client("reader");
        if !self.cluster.properties.iter().any(|(name, _)| name == SOCKET_TIMEOUT) {
            config.set(SOCKET_TIMEOUT, ANSWER_MILLIS);
        }
        consumer(Traffic::told_by(&mut config), &self.group, self.fetch.bytes(), traffic)
            .and_then(|consumer| {
                assign(&consumer, &self.topic, KafkaOffset::Offset(self.next.0)).map(|()| consumer)
            })
            .map_err(|error| fault_of(self.doing(), error))
    }

    /// What has arrived, up to a helping; empty where nothing has within a turn.
    fn helping(&mut self, consumer: &BaseConsumer<Traffic>, buffer: &mut BytesMut) -> Result<Vec<Entry>> {
        let helping = helping(consumer, buffer).map_err(|error| {
            self.cluster.fault_of(self.doing(), error, "Read", Resource::Topic(&self.topic))
        })?;
        if let Some(last) = helping.last() {
            self.next = Offset(last.offset.0 + 1);
        }
        Ok(helping)
    }

    fn doing(&self) -> String {
        format!("read topic {} at {} from {}", self.topic, self.cluster, self.next)
    }
}

fn consumer<C: ConsumerContext>(
    config: &mut ClientConfig,
    group: &str,
    fetch_bytes: usize,
    context: C,
) -> KafkaResult<BaseConsumer<C>> {
    config
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // A place out of bounds is an error for us to name, never a jump.
        .set("auto.offset.reset", "error")
        .set("check.crcs", "true")
        .set("fetch.message.max.bytes", fetch_bytes.to_string())
        .set("fetch.max.bytes", fetch_bytes.max(4 << 20).to_string())
        // A batch that is larger than a fetch comes all the same.
        .set("receive.message.max.bytes", "33554432")
        // More is asked for while so much still waits: what a target applies in a long round trip.
        .set("queued.max.messages.kbytes", "8192")
        .set("queued.min.messages", "20000")
        // When the queue is full, look again in a moment and not in a second.
        .set("fetch.queue.backoff.ms", "5")
        .set("fetch.error.backoff.ms", "100")
        .set("fetch.wait.max.ms", "500")
        .create_with_context(context)
}

fn assign<C: ConsumerContext>(consumer: &BaseConsumer<C>, topic: &str, from: KafkaOffset) -> KafkaResult<()> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, PARTITION, from)?;
    consumer.assign(&list)
}

/// What has arrived, up to a helping; empty where nothing has within a turn.
fn helping<C: ConsumerContext>(consumer: &BaseConsumer<C>, buffer: &mut BytesMut) -> KafkaResult<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut bytes = 0;
    let mut wait = TURN;
    while entries.len() < HELPING_RECORDS && bytes < HELPING_BYTES {
        match consumer.poll(wait) {
            None => break,
            Some(Ok(message)) => {
                bytes += message.payload_len();
                take(&message, buffer, &mut entries);
                wait = Duration::ZERO;
            }
            // What was read before the error is still to be handed over; the error comes again or heals.
            Some(Err(error)) if is_passing(&error) => tracing::debug!(%error, "Kafka consumer"),
            Some(Err(error)) => return Err(error),
        }
    }
    Ok(entries)
}

/// Whether the client heals it by itself.
fn is_passing(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as K;
    let lasting = [
        K::AutoOffsetReset,
        K::OffsetOutOfRange,
        K::UnknownTopic,
        K::UnknownTopicOrPartition,
        K::UnknownPartition,
        K::TopicAuthorizationFailed,
        K::AllBrokersDown,
        K::Fatal,
        K::Authentication,
    ];
    !error.rdkafka_error_code().is_some_and(|code| lasting.contains(&code))
}

/// The records that stand at one offset. Their values are slices of `buffer`, shared with their neighbours', unless they
/// are large: one allocation serves many.
fn take(message: &BorrowedMessage<'_>, buffer: &mut BytesMut, entries: &mut Vec<Entry>) {
    let (key, value) = (message.key().unwrap_or_default(), message.payload().unwrap_or_default());
    let headers = message.headers();
    let sealed = headers
        .as_ref()
        .and_then(|headers| headers.iter().find(|header| header.key == HEADER_NAME))
        .and_then(|header| header.value);
    let kept = if value.len() > BUFFER_BYTES / 4 {
        Bytes::copy_from_slice(value)
    } else {
        if buffer.capacity() < value.len() {
            *buffer = BytesMut::with_capacity(BUFFER_BYTES);
        }
        buffer.extend_from_slice(value);
        buffer.split().freeze()
    };
    let offset = Offset(message.offset());
    let appended = Micros(message.timestamp().to_millis().unwrap_or(0) * 1000);
    let mut give = |header, value, more| entries.push(Entry { offset, more, appended, header, value });
    match sealed.filter(|sealed| is_pack(sealed)).map(|sealed| unpack(sealed, key, &kept)) {
        Some(Ok(records)) => {
            let mut left = records.len();
            for (header, value) in records {
                left -= 1;
                give(Ok(header), value, left > 0);
            }
        }
        Some(Err(error)) => give(Err(error), kept, false),
        None => give(Header::open(sealed, key, value), kept, false),
    }
}

/// The value of the last record with this key in a small topic; none where there is none.
pub(super) fn last_value(
    cluster: &Cluster,
    topic: &str,
    key: &[u8],
    group: &str,
) -> KafkaResult<Option<Vec<u8>>> {
    let consumer =
        consumer(&mut cluster.client("checkpoints"), group, BYTES_AT_FIRST, DefaultConsumerContext)?;
    let (low, high) = consumer.fetch_watermarks(topic, PARTITION, REQUEST_TIMEOUT)?;
    let mut last = None;
    if high == low {
        return Ok(last);
    }
    // All of it: some thousands of records between two compactions. No transactions are used, so the
    // last record stands at `high - 1`.
    assign(&consumer, topic, KafkaOffset::Offset(low))?;
    let mut heard = Instant::now();
    loop {
        match consumer.poll(TURN) {
            Some(Ok(message)) => {
                heard = Instant::now();
                if message.key() == Some(key) {
                    last = message.payload().map(<[u8]>::to_vec);
                }
                if message.offset() >= high - 1 {
                    return Ok(last);
                }
            }
            Some(Err(error)) if !is_passing(&error) => return Err(error),
            _ if heard.elapsed() > REQUEST_TIMEOUT => {
                return Err(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut));
            }
            _ => (),
        }
    }
}
