//! Brokers start, keep topics over their faults, and are seen from the other
//! region through the WAN only.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use testbed::Kafka;
use testbed::kafka::{Admin, Record};
use testbed::wan::Direction;

#[tokio::test]
async fn one_broker_keeps_topics() {
    let started = Instant::now();
    let mut kafka = Kafka::start(1).await.unwrap();
    println!("started in {:?}", started.elapsed());

    assert!(!kafka.topic_exists("landfall.a.main").await.unwrap());
    kafka.create_topic("landfall.a.main", 1, &[("retention.ms", "86400000")]).await.unwrap();
    assert!(kafka.topic_exists("landfall.a.main").await.unwrap());
    assert_eq!(kafka.end_offset("landfall.a.main").await.unwrap(), 0);
    assert_eq!(kafka.delete_records("landfall.a.main", 0).await.unwrap(), 0);
    assert!(kafka.delete_records("landfall.a.main", 5).await.is_err(), "there are no five records");
    kafka.alter_config("landfall.a.main", &[("retention.ms", "5000")]).await.unwrap();
    let refused = kafka.alter_config("landfall.a.main", &[("retention.ms", "soon")]).await.unwrap_err();
    assert!(format!("{refused:#}").contains("retention.ms"), "{refused:#}");
    kafka.add_partitions("landfall.a.main", 3).await.unwrap();
    assert_eq!(kafka.admin().partitions("landfall.a.main").await.unwrap().len(), 3);

    kafka.kill(0).await.unwrap();
    assert!(kafka.topic_exists("landfall.a.main").await.is_err());
    kafka.start_again(0).await.unwrap();
    assert!(kafka.topic_exists("landfall.a.main").await.unwrap());
    println!("stopped in {:?}", kafka.stop(0).await.unwrap());
    kafka.start_again(0).await.unwrap();
    kafka.delete_topic("landfall.a.main").await.unwrap();
    assert!(!kafka.topic_exists("landfall.a.main").await.unwrap());
}

/// A broker looks into every batch before it takes it, so one it takes is
/// well made.
#[tokio::test]
async fn records_are_appended_in_order() {
    let kafka = Kafka::start(1).await.unwrap();
    kafka.create_topic("written", 1, &[("max.message.bytes", "2000")]).await.unwrap();
    let record = |value: &[u8]| Record {
        key: Some(b"k".to_vec()),
        value: Some(value.to_vec()),
        headers: vec![("h".to_owned(), vec![0, 0xff])],
    };
    assert_eq!(kafka.append("written", &[record(b"a"), Record::default()]).await.unwrap(), 0);
    assert_eq!(kafka.append("written", &[record(&[b'b'; 1000])]).await.unwrap(), 2);
    assert!(kafka.append("written", &[record(&[b'c'; 3000])]).await.is_err(), "it is too large");
    assert_eq!(kafka.end_offset("written").await.unwrap(), 3);
    assert!(kafka.append("unwritten", &[record(b"a")]).await.is_err(), "there is no such topic");
}

/// The remote bootstrap server leads through the proxy, and so does the
/// address the broker advertises there.
#[tokio::test]
async fn the_other_region_comes_through_the_wan() {
    let kafka = Kafka::start(1).await.unwrap();
    kafka.create_topic("far", 1, &[]).await.unwrap();
    let far = Admin::new([kafka.remote().parse::<SocketAddr>().unwrap()]);

    kafka.wan().set_rtt(Duration::from_millis(100));
    let before = kafka.wan().delivered_bytes(Direction::Down);
    let connections = kafka.wan().accepted_connections();
    let started = Instant::now();
    // Metadata, then the leader it names: two connections, two exchanges.
    assert_eq!(far.end_offset("far", 0).await.unwrap(), 0);
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(400), "{took:?}");
    assert!(kafka.wan().delivered_bytes(Direction::Down) > before);
    assert_eq!(kafka.wan().accepted_connections(), connections + 2);

    let started = Instant::now();
    assert_eq!(kafka.end_offset("far").await.unwrap(), 0);
    println!("the own region asks in {:?}", started.elapsed());
    assert_eq!(kafka.wan().accepted_connections(), connections + 2);

    kafka.wan().cut();
    assert!(far.topic_exists("far").await.is_err());
    kafka.wan().heal();
    testbed::eventually(Duration::from_secs(60), "the cable is mended", async || {
        far.topic_exists("far").await
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn three_brokers_elect_another_leader() {
    let started = Instant::now();
    let mut kafka = Kafka::start(3).await.unwrap();
    println!("started in {:?}", started.elapsed());
    kafka.create_topic("led", 1, &[]).await.unwrap();
    let partitions = kafka.admin().partitions("led").await.unwrap();
    assert_eq!(partitions[0].replicas.len(), 3);

    let leader = kafka.leader("led", 0).await.unwrap();
    kafka.kill(leader).await.unwrap();
    let started = Instant::now();
    testbed::eventually(Duration::from_secs(120), "another leads", async || {
        Ok(kafka.leader("led", 0).await? != leader)
    })
    .await
    .unwrap();
    println!("another leads after {:?}", started.elapsed());
    assert_eq!(kafka.end_offset("led").await.unwrap(), 0);
    kafka.start_again(leader).await.unwrap();
    testbed::eventually(Duration::from_secs(120), "all are in sync", async || {
        Ok(kafka.admin().partitions("led").await?[0].in_sync.len() == 3)
    })
    .await
    .unwrap();
    kafka.restart_all().await.unwrap();
    assert!(kafka.topic_exists("led").await.unwrap());
}
