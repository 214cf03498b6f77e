//! Proves that what is measured is so: a link's bytes are those the line between the regions carried, its
//! stages add up to the whole way, and its head-room goes on falling while the line is cut.

use std::time::Duration;

use testbed::{Daemon, TwoRegions, eventually, wan::Direction};

const LANDFALL: &str = env!("CARGO_BIN_EXE_landfall");
const PATIENCE: Duration = Duration::from_secs(180);

/// Transactions, each of a few rows whose values compress as those of an application do.
const TRANSACTIONS: u32 = 400;

async fn stage() -> (TwoRegions, Daemon, Daemon) {
    let regions = TwoRegions::start(15, 18, 1).await.unwrap();
    regions.set_rtt(Duration::from_millis(80));
    regions.execute_both("create table t (id int8 primary key, note text)").await.unwrap();
    let us = regions.us.start_daemon(LANDFALL, &regions.us_sends()).await.unwrap();
    let mut eu = regions.eu.start_daemon(LANDFALL, &regions.eu_receives()).await.unwrap();
    eu.wait_ready(PATIENCE).await.unwrap();
    // What was written before its stream began no link can find.
    eu.wait_heartbeat(PATIENCE).await.unwrap();
    (regions, us, eu)
}

async fn load(regions: &TwoRegions) {
    let client = regions.us.connect().await.unwrap();
    for number in 0..TRANSACTIONS {
        let sql = format!(
            "insert into t select {number} * 100 + g, repeat(md5(random()::text) || ' is the note of a row ', 8)
             from generate_series(1, 50) g"
        );
        client.batch_execute(&sql).await.unwrap();
    }
}

async fn figure(daemon: &Daemon, name: &str) -> f64 {
    daemon.metric(name).await.unwrap().unwrap_or_else(|| panic!("{name} is not told"))
}

/// The sum of a histogram, and how often it was observed.
async fn histogram(daemon: &Daemon, name: &str, labels: &str) -> (f64, f64) {
    let sum = figure(daemon, &format!("{name}_sum{labels}")).await;
    (sum, figure(daemon, &format!("{name}_count{labels}")).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_and_stages_of_a_link_are_those_of_its_parts() {
    let (regions, us, eu) = stage().await;
    load(&regions).await;
    eventually(PATIENCE, "everything is applied", async || {
        let applied = eu.metric("replication_applied_transactions_total").await?;
        Ok(applied == Some(f64::from(TRANSACTIONS)))
    })
    .await
    .unwrap();

    // The client tells what it received once a second, and the line goes on carrying heartbeats meanwhile.
    let line = regions.us.kafka.wan();
    eventually(PATIENCE, "the bytes received are those the line delivered, within a twentieth", async || {
        let received = eu.metric("replication_bytes_received_total{from=\"us-east-1\"}").await?;
        let delivered = line.delivered_bytes(Direction::Down) as f64;
        println!("received {received:?}, delivered {delivered}");
        Ok(received.is_some_and(|received| (received / delivered - 1.0).abs() < 0.05))
    })
    .await
    .unwrap();
    let received = figure(&eu, "replication_bytes_received_total").await;
    let before = figure(&eu, "replication_bytes_consumed_total").await;
    let produced = figure(&us, "replication_bytes_produced_total").await;
    // A topic keeps batches as they were sent, and hands them on so. Both clients tell some seconds later.
    let told = eventually(PATIENCE, "the bytes sent are about those received", async || {
        let sent = us.metric("replication_bytes_sent_total").await?;
        Ok(sent.is_some_and(|sent| (sent / received - 1.0).abs() < 0.2))
    });
    let told = told.await;
    let sent = figure(&us, "replication_bytes_sent_total").await;
    println!("produced {produced}, sent {sent}, received {received}, unpacked {before}");
    // What is no change (schema, heartbeats, places) is read and not counted as produced.
    assert!(before > produced && before < produced * 1.05, "{before} unpacked, {produced} produced");
    assert!(received < before / 2.0, "rows that repeat themselves were not compressed");
    assert!(told.is_ok(), "{sent} sent, {received} received");

    let name = "replication_stage_latency_seconds";
    let mut stages = Vec::new();
    for (daemon, stage) in [(&us, "read"), (&us, "appended"), (&eu, "fetched"), (&eu, "applied")] {
        let labels = format!("{{from=\"us-east-1\",stream=\"main\",stage=\"{stage}\"}}");
        let (sum, count) = histogram(daemon, name, &labels).await;
        println!("{stage}: {:.1} ms", sum / count * 1e3);
        assert_eq!(count, f64::from(TRANSACTIONS), "{stage}: every transaction once");
        stages.push(sum);
    }
    let (whole, count) = histogram(&eu, "replication_end_to_end_latency_seconds", "").await;
    println!("the whole way: {:.1} ms", whole / count * 1e3);
    assert!(stages[2] >= count * 0.04, "fetched in less than the line takes one way");
    // Kafka's clock has milliseconds, and the acknowledgement's way back is nobody's wait.
    let slack = count * 0.002;
    let [read, appended, fetched, applied] = stages[..] else { unreachable!() };
    assert!(read + fetched + applied <= whole + slack, "{stages:?} and {whole}");
    assert!(whole <= read + appended + fetched + applied + slack, "{stages:?} and {whole}");
}

#[tokio::test(flavor = "multi_thread")]
async fn head_room_falls_while_the_line_is_cut() {
    let (regions, _us, eu) = stage().await;
    let headroom = async || eu.metric("replication_buffer_headroom_seconds").await;
    let whole = 86_400.0;
    eventually(PATIENCE, "a link that keeps up has all of it", async || {
        Ok(headroom().await?.is_some_and(|left| left > whole - 5.0))
    })
    .await
    .unwrap();
    assert_eq!(figure(&eu, "replication_buffer_retention_seconds").await, whole);
    regions.cut();
    eventually(PATIENCE, "retention goes on though nobody can look", async || {
        Ok(headroom().await?.is_some_and(|left| left < whole - 8.0))
    })
    .await
    .unwrap();
    regions.heal();
    eventually(PATIENCE, "it is whole again", async || {
        Ok(headroom().await?.is_some_and(|left| left > whole - 5.0))
    })
    .await
    .unwrap();
    // As the runbook has it, who gives the link more time sees that it has it.
    let kafka = &regions.us.kafka;
    kafka.alter_config("landfall.us-east-1.main", &[("retention.ms", "259200000")]).await.unwrap();
    eventually(PATIENCE, "it is three days", async || {
        Ok(headroom().await?.is_some_and(|left| left > 3.0 * whole - 5.0))
    })
    .await
    .unwrap();
}
