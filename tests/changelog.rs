//! Proves the changelog port's promises, the same for the log in memory and the one in Kafka.

use std::time::{Duration, Instant};

use landfall::{
    changelog::{
        Log, Reader, Writer,
        kafka::{KafkaLog, PACK_BYTES, Topics, WriterLimits},
        memory::MemoryLog,
    },
    envelope::{Flags, Header, Kind},
    fault::Code,
    kafka::{Cluster, TopicRules},
    position::{Incarnation, Offset, Sequence, WriterEpoch},
};
use testbed::{Daemon, Kafka, Region, eventually};

const LANDFALL: &str = env!("CARGO_BIN_EXE_landfall");
const PATIENCE: Duration = Duration::from_secs(180);

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
async fn promises<L: Log>(log: L, packs: bool, low: impl AsyncFn(i64)) {
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
        writer.hand_over().await.unwrap();
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
    writer.hand_over().await.unwrap();
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

    // What is given without a pause stands there in its order, each once; where there are packs, several at an offset:
    // small ones and large ones, empty ones, ones with a line feed, and a barrier among them.
    let value = |sequence: u64| match sequence % 100 {
        1 => Vec::new(),
        2 => b"two\nlines".to_vec(),
        3 => vec![b'x'; 2 * PACK_BYTES],
        4 => vec![b'x'; PACK_BYTES - 1],
        other => vec![b'v'; other as usize * 10],
    };
    let written = writer.acknowledged();
    for sequence in 502..=3_000 {
        if sequence == 1_700 {
            let barrier = Header { kind: Kind::Barrier, sequence: Sequence(0), ..header(0) };
            writer.append(&barrier, b"", b"a barrier").await.unwrap();
        }
        writer.append(&header(sequence), b"key", &value(sequence)).await.unwrap();
    }
    writer.hand_over().await.unwrap();
    writer.hand_over().await.unwrap();
    while writer.acknowledged() < written + 2_500 {
        writer.acknowledged_beyond(writer.acknowledged()).await.unwrap();
    }
    let all = read(&mut log.reader(Offset(501)).unwrap(), 2_500).await;
    let expected = (502..1_700).chain([0]).chain(1_700..=3_000);
    assert!(all.iter().map(|(_, sequence, _)| *sequence).eq(expected));
    for (_, sequence, found) in &all {
        let value = if *sequence == 0 { b"a barrier".to_vec() } else { value(*sequence) };
        assert!(*found == value, "{sequence}: {} bytes", found.len());
    }
    // Each but the last of those that stand at an offset says that more do.
    let (mut reader, mut places) = (log.reader(Offset(501)).unwrap(), Vec::new());
    while places.len() < all.len() {
        places.extend(reader.read().await.unwrap().iter().map(|entry| (entry.offset, entry.more)));
    }
    assert!(places.windows(2).all(|pair| pair[0].1 == (pair[0].0 == pair[1].0)));
    assert_eq!(places.last().map(|(_, more)| *more), Some(false));
    let high = log.bounds().await.unwrap().unwrap().high;
    assert_eq!(writer.last_offset(), Some(Offset(high.0 - 1)));
    assert!(all.iter().map(|(offset, ..)| *offset).is_sorted());
    assert_eq!(high.0 == 501 + 2_500, !packs, "the log ends at {high}");
    // From an offset on comes everything that stands there.
    for offset in (501..high.0).step_by(7) {
        let first = read(&mut log.reader(Offset(offset)).unwrap(), 1).await[0].clone();
        assert_eq!(Some(&first), all.iter().find(|(at, ..)| *at == offset));
    }
}

#[tokio::test]
async fn the_log_in_memory_keeps_its_promises() {
    let log = MemoryLog::default();
    let shared = log.clone();
    promises(log, true, async |low| shared.retain_from(Offset(low))).await;
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
    for (pack_bytes, name) in [(0, "log"), (PACK_BYTES, "packed")] {
        let limits = WriterLimits { pack_bytes, ..WriterLimits::default() };
        let topics = Topics {
            stream: name.into(),
            state: format!("{name}-state"),
            control: format!("{name}-control"),
        };
        let log = KafkaLog::new(cluster.clone(), topics, "group".into(), rules.clone(), limits).unwrap();
        let low = async |low| assert_eq!(kafka.delete_records(name, low).await.unwrap(), low);
        promises(log, pack_bytes > 0, low).await;
    }
}

/// A broker holds a whole batch against what a record of the topic may be.
#[tokio::test(flavor = "multi_thread")]
async fn records_that_a_topic_takes_one_by_one_are_taken_together() {
    let kafka = Kafka::start(1).await.unwrap();
    kafka.create_topic("log", 1, &[("max.message.bytes", "100000")]).await.unwrap();
    kafka.create_topic("state", 1, &[]).await.unwrap();
    let cluster = Cluster { brokers: vec![kafka.local()], properties: Vec::new() };
    let linger = Duration::from_millis(200);
    let limits = WriterLimits { linger, batch_bytes: 90_000, ..WriterLimits::default() };
    let log = KafkaLog::new(cluster, topics(), "group".into(), TopicRules::default(), limits).unwrap();
    let mut writer = log.writer().unwrap();
    for sequence in 1..=20 {
        let random: Vec<u8> = (0..40_000).map(|_| rand::random()).collect();
        writer.append(&header(sequence), b"", &random).await.unwrap();
    }
    while writer.acknowledged() < 20 {
        writer.acknowledged_beyond(writer.acknowledged()).await.unwrap();
    }
    let all = read(&mut log.reader(Offset(0)).unwrap(), 20).await;
    assert_eq!(all.iter().map(|it| it.1).collect::<Vec<_>>(), (1..=20).collect::<Vec<_>>());
}

/// It would stand where the refused one should: a hole.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_out_behind_a_record_that_is_refused_for_good() {
    let kafka = Kafka::start(1).await.unwrap();
    kafka.create_topic("log", 1, &[("max.message.bytes", "100000")]).await.unwrap();
    kafka.create_topic("state", 1, &[]).await.unwrap();
    let cluster = Cluster { brokers: vec![kafka.local()], properties: Vec::new() };
    let limits = WriterLimits::default();
    let log = KafkaLog::new(cluster, topics(), "group".into(), TopicRules::default(), limits).unwrap();
    let mut writer = log.writer().unwrap();
    writer.append(&header(1), b"", b"first").await.unwrap();
    writer.acknowledged_beyond(0).await.unwrap();
    let large: Vec<u8> = (0..300_000).map(|_| rand::random()).collect();
    writer.append(&header(2), b"", &large).await.unwrap();
    // As a session that has not heard of it yet.
    let mut refused = None;
    let (mut sequence, begun) = (2, Instant::now());
    while refused.is_none() && begun.elapsed() < PATIENCE {
        sequence += 1;
        refused = writer.append(&header(sequence), b"", b"behind it").await.err();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let refused = refused.expect("nothing is taken any more");
    assert!(
        refused.code() == Code::KafkaRejected && refused.remedy().contains("max.message.bytes"),
        "{refused}"
    );
    drop(writer);
    let mut next = log.writer().unwrap();
    next.append(&header(9), b"", b"the next").await.unwrap();
    next.acknowledged_beyond(0).await.unwrap();
    let all = read(&mut log.reader(Offset(0)).unwrap(), 2).await;
    assert_eq!(all.iter().map(|it| it.1).collect::<Vec<_>>(), [1, 9]);
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

/// With one of three brokers gone such a topic takes nothing, while others do.
const NO_WRITES: &[(&str, &str)] = &[("min.insync.replicas", "3")];
const WRITES: &[(&str, &str)] = &[("min.insync.replicas", "2")];

/// Which broker goes. A topic that lost its leader and has too few replicas may not even be readable: where it ends is known
/// to a follower that has fetched since, and to another only once there are enough of them.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Gone {
    Leader,
    Follower,
}

/// The topic takes nothing from now on, for want of that broker.
async fn stop_taking(kafka: &mut Kafka, topic: &str, gone: Gone) -> usize {
    kafka.alter_config(topic, NO_WRITES).await.unwrap();
    let leader = kafka.leader(topic, 0).await.unwrap();
    let broker = if gone == Gone::Leader { leader } else { (leader + 1) % 3 };
    kafka.kill(broker).await.unwrap();
    eventually(PATIENCE, "the others are in sync without it", async || {
        Ok(kafka.admin().partitions(topic).await?[0].in_sync.len() == 2)
    })
    .await
    .unwrap();
    broker
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_topic_that_takes_nothing_holds_up_no_writer() {
    for gone in [Gone::Follower, Gone::Leader] {
        holds_up_no_writer(gone).await;
    }
}

async fn holds_up_no_writer(gone: Gone) {
    // So long a follower is told nothing of an idle topic.
    let mut kafka = Kafka::start_with(3, &[("replica.fetch.wait.max.ms", "20000")]).await.unwrap();
    let cluster =
        Cluster { brokers: kafka.local().split(',').map(str::to_owned).collect(), properties: Vec::new() };
    let rules = TopicRules { replication_factor: 3, min_insync_replicas: 2, ..TopicRules::default() };
    let log = KafkaLog::new(cluster, topics(), "group".into(), rules, WriterLimits::default()).unwrap();
    log.ensure(true).await.unwrap();
    let mut writer = log.writer().unwrap();
    writer.keep_checkpoint(b"before").unwrap();
    tokio::time::timeout(PATIENCE, writer.all_kept()).await.unwrap().unwrap();
    assert_eq!(writer.unkept(), None);
    stop_taking(&mut kafka, "state", gone).await;

    // Calm, as fast as it goes, calm again: each time another producer is used. More checkpoints than are queued.
    let mut given = 0;
    for burst in [Duration::ZERO, Duration::from_millis(500), Duration::ZERO, Duration::from_millis(500)] {
        for _ in 0..300 {
            writer.keep_checkpoint(b"never").unwrap();
        }
        let until = Instant::now() + burst;
        loop {
            given += 1;
            let header = header(given);
            let appended = writer.append(&header, b"key", b"a value");
            tokio::time::timeout(PATIENCE, appended).await.expect("it is appended").unwrap();
            writer.hand_over().await.unwrap();
            if Instant::now() >= until {
                break;
            }
        }
        let settled = async {
            while writer.acknowledged() < given {
                writer.acknowledged_beyond(writer.acknowledged()).await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, settled).await.expect("it is acknowledged");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    match gone {
        Gone::Follower => eventually(PATIENCE, "it is read", async || {
            Ok(log.checkpoint().await?.as_deref() == Some(&b"before"[..]))
        })
        .await
        .unwrap(),
        Gone::Leader => eventually(PATIENCE, "it is told why it cannot be read", async || {
            let Err(fault) = log.checkpoint().await else { return Ok(false) };
            Ok(fault.code() == Code::KafkaRejected && fault.remedy().contains("min.insync.replicas"))
        })
        .await
        .unwrap(),
    }
    let unkept = writer.unkept().expect("it is told");
    assert!(unkept >= Duration::from_secs(3), "{unkept:?}");
    assert!(writer.fill() < 0.1, "{}", writer.fill());
    // Checkpoints are left out by now; where a region may begin is said once.
    writer.keep_start("eu-west-1", b"here").unwrap();

    kafka.alter_config("state", WRITES).await.unwrap();
    tokio::time::timeout(PATIENCE, writer.all_kept()).await.expect("it is taken").unwrap();
    assert_eq!(log.start("eu-west-1").await.unwrap().as_deref(), Some(&b"here"[..]));
    writer.keep_checkpoint(b"after").unwrap();
    tokio::time::timeout(PATIENCE, writer.all_kept()).await.unwrap().unwrap();
    assert_eq!(log.checkpoint().await.unwrap().as_deref(), Some(&b"after"[..]));
    assert_eq!(writer.unkept(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_whose_state_topic_takes_nothing_goes_on_and_says_so() {
    for gone in [Gone::Follower, Gone::Leader] {
        goes_on_and_says_so(gone).await;
    }
}

async fn goes_on_and_says_so(gone: Gone) {
    let mut us = Region::start("us-east-1", 18, 3).await.unwrap();
    us.execute("create table t (id int8 primary key)").await.unwrap();
    let settings = us.config().source(&["public.*"]).to_toml();
    let mut daemon = us.start_daemon(LANDFALL, &settings).await.unwrap();
    us.begun(PATIENCE).await.unwrap();
    let eu = Region::start("eu-west-1", 18, 0).await.unwrap();
    eu.execute("create table t (id int8 primary key)").await.unwrap();
    let mut reads = eu.start_daemon(LANDFALL, &eu.config().link(&us).to_toml()).await.unwrap();
    reads.wait_heartbeat(PATIENCE).await.unwrap();
    eventually(PATIENCE, "a checkpoint is kept", async || {
        Ok(us.kafka.end_offset("landfall.us-east-1.state").await? > 0)
    })
    .await
    .unwrap();
    let broker = stop_taking(&mut us.kafka, "landfall.us-east-1.state", gone).await;
    let told = "topic landfall.us-east-1.state has taken no checkpoint";
    eventually(PATIENCE, "it is told", async || {
        let (_, page) = daemon.http_get("/status").await?;
        Ok(page.contains(&format!("[LF-KAFKA-REJECTED] {told}")) && page.contains("\"running\""))
    })
    .await
    .unwrap_or_else(|error| panic!("{gone:?}: {error}\n{}", daemon.log_tail()));
    assert!(daemon.log().contains(told), "{}", daemon.log_tail());
    // Its next session goes on from what this one knew, where that cannot be read. Hot, then calm: it is acknowledged, and
    // the slot moves.
    us.execute("select pg_terminate_backend(active_pid) from pg_replication_slots").await.unwrap();
    us.execute("insert into t select g from generate_series(1, 100000) g").await.unwrap();
    us.execute("insert into t values (0)").await.unwrap();
    let end = us.postgres.query_text("shop", "select pg_current_wal_lsn()::text").await.unwrap().unwrap();
    let confirmed = format!("select (confirmed_flush_lsn >= '{end}')::text from pg_replication_slots");
    eventually(PATIENCE, "everything is confirmed", async || {
        Ok(us.postgres.query_text("shop", &confirmed).await?.as_deref() == Some("true"))
    })
    .await
    .unwrap_or_else(|error| panic!("{gone:?}: {error}\n{}", daemon.log_tail()));
    // A link that has a place in the log needs that topic no more than its source does.
    reads.kill9().unwrap();
    reads.start_again().unwrap();
    eventually(PATIENCE, "everything arrives", async || {
        Ok(eu.postgres.query_text("shop", "select count(*)::text from t").await?.as_deref() == Some("100001"))
    })
    .await
    .unwrap_or_else(|error| panic!("{gone:?}: {error}\n{}", reads.log_tail()));
    if gone == Gone::Leader {
        let log = daemon.log();
        let [unread, gone_on] =
            ["read what is kept", "goes on from the checkpoint"].map(|what| log.matches(what).count());
        println!("the checkpoint could not be read {unread} times");
        // It may not have been told of the topic at all.
        assert!(unread <= gone_on && log.matches("\"message\":\"running\"").count() > 1, "{log}");
        // A daemon that knows nothing waits where it cannot be read, and says what for.
        daemon.kill9().unwrap();
        daemon = us.start_daemon(LANDFALL, &settings).await.unwrap();
        eventually(PATIENCE, "it runs, or it is told what it waits for", async || {
            let (_, page) = daemon.http_get("/status").await?;
            let waits = page.contains("read what is kept in topic landfall.us-east-1.state")
                && page.contains("min.insync.replicas");
            // Another replica may lead it meanwhile, which knows where it ends.
            Ok(waits || page.contains("\"running\""))
        })
        .await
        .unwrap_or_else(|error| panic!("{error}\n{}", daemon.log_tail()));
    }
    us.kafka.start_again(broker).await.unwrap();
    eventually(PATIENCE, "it is told no more", async || {
        let (_, page) = daemon.http_get("/status").await?;
        Ok(page.contains("\"running\"") && !page.contains(told))
    })
    .await
    .unwrap_or_else(|error| panic!("{gone:?}: {error}\n{}", daemon.log_tail()));
}

/// What a source's daemon says it is doing: state, code and remedy; nothing where it says nothing.
async fn says(daemon: &Daemon) -> [String; 3] {
    let page = daemon.http_get("/status").await.map(|(_, page)| page).unwrap_or_default();
    let status: serde_json::Value = serde_json::from_str(&page).unwrap_or_default();
    ["state", "code", "remedy"].map(|what| status["streams"][0][what].as_str().unwrap_or("").to_owned())
}

/// Waits until a source's daemon says that its topic takes nothing.
async fn says_untaken(daemon: &Daemon) {
    eventually(PATIENCE, "it is told", async || {
        let [state, code, remedy] = says(daemon).await;
        Ok(state == "retrying" && code == "LF-KAFKA-REJECTED" && remedy.contains("min.insync.replicas"))
    })
    .await
    .unwrap_or_else(|error| panic!("{error}\n{}", daemon.log_tail()));
    assert_eq!(daemon.command(&["status"]).await.unwrap().status.code(), Some(1));
}

async fn runs(daemon: &Daemon) {
    eventually(PATIENCE, "it runs", async || Ok(says(daemon).await[0] == "running"))
        .await
        .unwrap_or_else(|error| panic!("{error}\n{}", daemon.log_tail()));
}

/// The client tries for ever without a word, and all the while the topic may tell where it ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_whose_topic_takes_nothing_says_so_running_and_starting() {
    for gone in [Gone::Follower, Gone::Leader] {
        untaken_is_told(gone).await;
    }
}

async fn untaken_is_told(gone: Gone) {
    let topic = "landfall.us-east-1.main";
    let mut us = Region::start("us-east-1", 18, 3).await.unwrap();
    us.execute("create table t (id int8 primary key)").await.unwrap();
    let settings = us.config().source(&["public.*"]).to_toml();
    let mut daemon = us.start_daemon(LANDFALL, &settings).await.unwrap();
    us.begun(PATIENCE).await.unwrap();
    runs(&daemon).await;
    let broker = stop_taking(&mut us.kafka, topic, gone).await;
    us.execute("insert into t values (1)").await.unwrap();
    let stopped = Instant::now();
    says_untaken(&daemon).await;
    println!("{gone:?}: told after {:?}", stopped.elapsed());
    // Nor is anything else said while it is so, though look after look finds the topic there.
    eventually(PATIENCE, "it has looked some times more", async || {
        let status: serde_json::Value = serde_json::from_str(&daemon.http_get("/status").await?.1)?;
        Ok(status["streams"][0]["attempt"].as_u64() >= Some(6))
    })
    .await
    .unwrap_or_else(|error| panic!("{gone:?}: {error}\n{}", daemon.log_tail()));
    says_untaken(&daemon).await;
    let log = daemon.log();
    let told = "the stream's topic has taken nothing for";
    assert!(gone == Gone::Leader || log.contains(told), "{gone:?}: {log}");
    assert_eq!(log.matches("\"message\":\"running\"").count(), 1, "{gone:?}: {log}");
    if gone == Gone::Follower {
        // At a start as well, where it waits for its barrier.
        daemon.kill9().unwrap();
        daemon = us.start_daemon(LANDFALL, &settings).await.unwrap();
        says_untaken(&daemon).await;
        assert!(daemon.log().contains(told), "{}", daemon.log());
    }
    us.kafka.alter_config(topic, WRITES).await.unwrap();
    runs(&daemon).await;
    let end = us.postgres.query_text("shop", "select pg_current_wal_lsn()::text").await.unwrap().unwrap();
    let confirmed = format!("select (confirmed_flush_lsn >= '{end}')::text from pg_replication_slots");
    eventually(PATIENCE, "everything is confirmed", async || {
        Ok(us.postgres.query_text("shop", &confirmed).await?.as_deref() == Some("true"))
    })
    .await
    .unwrap_or_else(|error| panic!("{gone:?}: {error}\n{}", daemon.log_tail()));
    us.kafka.start_again(broker).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_topic_that_is_deleted_ends_no_session_and_the_next_makes_it_anew() {
    let us = Region::start("us-east-1", 18, 1).await.unwrap();
    us.execute("create table t (id int8 primary key)").await.unwrap();
    let settings = us.config().source(&["public.*"]).to_toml();
    let mut daemon = us.start_daemon(LANDFALL, &settings).await.unwrap();
    us.begun(PATIENCE).await.unwrap();
    daemon.kill9().unwrap();
    let runs = |log: &str| log.matches("\"message\":\"running\"").count();
    let before = runs(&daemon.log());
    daemon.set_env("LANDFALL__SOURCE__CHECKPOINT_INTERVAL", "1s");
    daemon.start_again().unwrap();
    let state = "landfall.us-east-1.state";
    eventually(PATIENCE, "it runs", async || Ok(runs(&daemon.log()) > before)).await.unwrap();
    us.kafka.delete_topic(state).await.unwrap();
    eventually(PATIENCE, "it is told", async || {
        Ok(daemon.http_get("/status").await?.1.contains("has taken no checkpoint"))
    })
    .await
    .unwrap_or_else(|error| panic!("{error}\n{}", daemon.log_tail()));
    assert_eq!(runs(&daemon.log()), before + 1, "{}", daemon.log_tail());
    us.execute("select pg_terminate_backend(active_pid) from pg_replication_slots").await.unwrap();
    eventually(PATIENCE, "checkpoints are kept again", async || {
        let (_, page) = daemon.http_get("/status").await?;
        let kept = us.kafka.topic_exists(state).await? && us.kafka.end_offset(state).await? > 0;
        Ok(kept && page.contains("\"running\"") && !page.contains("has taken no checkpoint"))
    })
    .await
    .unwrap_or_else(|error| panic!("{error}\n{}", daemon.log_tail()));
}
