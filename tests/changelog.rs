//! Proves the changelog port's promises, the same for the log in memory and the one in Kafka.

use std::time::Duration;

use landfall::{
    changelog::{
        Log, Reader, Writer,
        kafka::{KafkaLog, Topics, WriterLimits},
        memory::MemoryLog,
    },
    envelope::{Flags, Header, Kind},
    fault::Code,
    kafka::{Cluster, TopicRules},
    position::{Incarnation, Offset, Sequence, WriterEpoch},
};
use testbed::{Kafka, eventually};

fn header(sequence: u64) -> Header {
    Header {
        kind: Kind::Idle,
        flags: Flags::NONE,
        epoch: WriterEpoch(1),
        incarnation: Incarnation(1),
        sequence: Sequence(sequence),
    }
}

async fn read<R: Reader>(reader: &mut R, count: usize) -> Vec<(i64, u64, Vec<u8>)> {
    let mut found = Vec::new();
    while found.len() < count {
        for entry in reader.read().await.unwrap() {
            found.push((entry.offset.0, entry.header.unwrap().sequence.0, entry.value.to_vec()));
        }
    }
    found
}

fn topics() -> Topics {
    Topics { stream: "log".into(), state: "state".into(), control: "control".into() }
}

/// The suite. `low` moves the log's beginning, as retention would.
async fn promises<L: Log>(log: L, low: impl AsyncFn(i64)) {
    log.ensure(true).await.unwrap();
    let bounds = log.bounds().await.unwrap().expect("it was made");
    assert_eq!((bounds.low, bounds.high), (Offset(0), Offset(0)));
    assert_eq!(log.checkpoint().await.unwrap(), None);

    // A reader that was there first waits, and gets what comes.
    let mut early = log.reader(Offset(0)).unwrap();
    assert!(early.read_now().unwrap().is_none());
    let mut writer = log.writer().unwrap();
    for sequence in 1..=500 {
        writer.append(&header(sequence), b"key", format!("value {sequence}").as_bytes()).await.unwrap();
    }
    while writer.acknowledged() < 500 {
        writer.acknowledged_beyond(writer.acknowledged()).await.unwrap();
    }
    assert_eq!(writer.last_offset(), Some(Offset(499)));
    let all = read(&mut early, 500).await;
    for (at, (offset, sequence, value)) in all.iter().enumerate() {
        assert_eq!(
            (*offset, *sequence, value),
            (at as i64, at as u64 + 1, &format!("value {sequence}").into_bytes())
        );
    }
    assert_eq!(log.bounds().await.unwrap().unwrap().high, Offset(500));

    // From a place within; at the end it waits for the next one.
    assert_eq!(read(&mut log.reader(Offset(498)).unwrap(), 2).await[0].1, 499);
    let mut late = log.reader(Offset(500)).unwrap();
    writer.append(&header(501), b"", b"").await.unwrap();
    assert_eq!(read(&mut late, 1).await, vec![(500, 501, Vec::new())]);

    // The last checkpoint is the one.
    for checkpoint in [b"first", b"other"] {
        writer.keep_checkpoint(checkpoint).unwrap();
    }
    while writer.fill() > 0.0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(log.checkpoint().await.unwrap().as_deref(), Some(&b"other"[..]));

    // Questions come as they were put, to whoever listens then.
    log.questions().await.unwrap();
    log.ask(b"nobody listens").await.unwrap();
    let mut questions = log.questions().await.unwrap();
    log.ask(b"one").await.unwrap();
    log.ask(b"another").await.unwrap();
    let mut asked = Vec::new();
    while asked.len() < 2 {
        asked.extend(questions.read().await.unwrap().into_iter().map(|entry| entry.value.to_vec()));
    }
    assert_eq!(asked, [b"one".to_vec(), b"another".to_vec()]);

    // What a reader tells of itself is heard, by its group's name, and moves.
    assert_eq!(log.published_by("group").await.unwrap(), None);
    for next in [200, 500] {
        log.publish(Offset(next));
        eventually(Duration::from_secs(60), "what is published is heard", async || {
            Ok(log.published_by("group").await? == Some(Offset(next)))
        })
        .await
        .unwrap();
    }

    // A place that is gone, or not there yet, is an error and never a jump.
    low(100).await;
    assert_eq!(log.bounds().await.unwrap().unwrap().low, Offset(100));
    for place in [Offset(99), Offset(100_000)] {
        let fault = log.reader(place).unwrap().read().await.unwrap_err();
        assert_eq!(fault.code(), Code::RetentionPassed, "{fault}");
    }
    assert_eq!(read(&mut log.reader(Offset(100)).unwrap(), 1).await[0].0, 100);
}

#[tokio::test]
async fn the_log_in_memory_keeps_its_promises() {
    let log = MemoryLog::default();
    let shared = log.clone();
    promises(log, async |low| shared.retain_from(Offset(low))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_in_kafka_keeps_its_promises() {
    let kafka = Kafka::start(1).await.unwrap();
    let cluster = Cluster { brokers: vec![kafka.local()], properties: Vec::new() };
    let rules = TopicRules {
        retention: Duration::from_secs(86_400),
        replication_factor: 1,
        min_insync_replicas: 1,
        compacted: false,
    };
    let log = KafkaLog::new(cluster, topics(), "group".into(), rules, WriterLimits::default()).unwrap();
    promises(log, async |low| assert_eq!(kafka.delete_records("log", low).await.unwrap(), low)).await;
}

/// The WAN of the testbed is between a sink and the other region's Kafka: the round trip it sees is the
/// one that was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_across_the_wan_answers_after_its_round_trip() {
    let kafka = Kafka::start(1).await.unwrap();
    kafka.create_topic("log", 1, &[]).await.unwrap();
    let cluster = Cluster { brokers: vec![kafka.remote()], properties: Vec::new() };
    let limits = WriterLimits::default();
    let log = KafkaLog::new(cluster, topics(), "group".into(), TopicRules::default(), limits).unwrap();
    log.bounds().await.unwrap().unwrap();
    kafka.wan().set_rtt(Duration::from_millis(200));
    let asked = tokio::time::Instant::now();
    log.bounds().await.unwrap().unwrap();
    // Two questions, one after the other: the partitions, the bounds.
    let took = asked.elapsed();
    assert!(took >= Duration::from_millis(400), "{took:?}");
}
