//! A broker as anybody's is: with its code compiled. One that has just started spends a core of two on that for
//! the better part of a minute of work, and whoever is measured first pays.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rdkafka::ClientConfig;
use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::TopicPartitionList;
use testbed::Kafka;

const TOPIC: &str = "warm-up";
/// At full speed, many records a request.
const HOT: Duration = Duration::from_secs(8);
/// And a request for each: a code path is compiled for good after some ten thousand of them.
const CALM: Duration = Duration::from_secs(10);
/// Between two records of the calm part.
const STEP: Duration = Duration::from_micros(250);
/// How long the last requests may take.
const END: Duration = Duration::from_secs(30);

/// Writes and reads a topic of its own, near and through the line, the way everybody here does: idempotent, zstd,
/// a header to each record. A code path that was not taken before is one that is compiled anew.
pub async fn warm_up(kafka: &Kafka) -> Result<()> {
    kafka.create_topic(TOPIC, 1, &[("message.timestamp.type", "LogAppendTime")]).await?;
    let (near, far) = (kafka.local(), kafka.remote());
    tokio::task::spawn_blocking(move || {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| read(&far, &done));
            let written = write(&near);
            done.store(true, Ordering::Relaxed);
            let read = reader.join().unwrap_or_else(|_| anyhow::bail!("the reader died"));
            written.and(read).context("warm the broker up")
        })
    })
    .await?
}

fn write(brokers: &str) -> Result<()> {
    for (linger, time, step) in [("5", HOT, Duration::ZERO), ("0", CALM, STEP)] {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("enable.idempotence", "true")
            .set("compression.type", "zstd")
            .set("linger.ms", linger)
            .create()?;
        let began = Instant::now();
        let mut at = 0u64;
        while began.elapsed() < time {
            let row = format!(
                "{at:020}|{:020}|{}|{:x}",
                at % 97,
                "as much around a row as an envelope has. ".repeat(12),
                at.wrapping_mul(0x9e37_79b9)
            );
            let mark = at.to_be_bytes();
            let headers = OwnedHeaders::new().insert(Header { key: TOPIC, value: Some(&mark[..]) });
            match producer.send(BaseRecord::to(TOPIC).key(&mark[..]).payload(&row).headers(headers)) {
                Ok(()) => at += 1,
                Err(_) => {
                    producer.poll(Duration::from_millis(2));
                }
            }
            producer.poll(Duration::ZERO);
            if !step.is_zero() {
                std::thread::sleep(step);
            }
        }
        producer.flush(END)?;
    }
    Ok(())
}

fn read(brokers: &str, done: &AtomicBool) -> Result<()> {
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", brokers).set("group.id", TOPIC).create()?;
    let mut place = TopicPartitionList::new();
    place.add_partition_offset(TOPIC, 0, Offset::Beginning)?;
    consumer.assign(&place)?;
    while !done.load(Ordering::Relaxed) {
        // What fails here fails again where it is measured.
        drop(consumer.poll(Duration::from_millis(20)));
    }
    Ok(())
}
