//! Proves that a stream that has lost something is begun anew as docs/operating.md says: its own steps and
//! its own statements, taken from the paper.

use std::time::Duration;

use testbed::{TwoRegions, checksum, eventually, region::DATABASE};

const LANDFALL: &str = env!("CARGO_BIN_EXE_landfall");
const PATIENCE: Duration = Duration::from_secs(180);

/// The statements of the section, as many blocks as there are steps with SQL.
fn statements() -> Vec<String> {
    let paper = std::fs::read_to_string("docs/operating.md").unwrap();
    let section = paper.split("\n## Beginning a stream anew").nth(1).unwrap();
    let blocks = section.split("```sql\n").skip(1).map(|tail| tail.split("```").next().unwrap());
    blocks.map(str::to_owned).collect()
}

/// The last step of the paper.
#[derive(Clone, Copy, PartialEq)]
enum Last {
    Fill,
    Recover,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_begun_anew_as_the_paper_says_and_its_region_filled() {
    begin_anew(Last::Fill).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_begun_anew_as_the_paper_says_and_its_link_recovered() {
    begin_anew(Last::Recover).await;
}

async fn begin_anew(last: Last) {
    let [at_the_source, at_the_target] = &statements()[..] else { panic!("the paper has other steps") };
    let regions = TwoRegions::start(15, 18, 1).await.unwrap();
    regions.execute_both("create table t (id int8 primary key, n int4)").await.unwrap();
    let mut us = regions.us.start_daemon(LANDFALL, &regions.us_sends()).await.unwrap();
    let mut eu = regions.eu.start_daemon(LANDFALL, &regions.eu_receives()).await.unwrap();
    eu.wait_heartbeat(PATIENCE).await.unwrap();
    regions.us.execute("insert into t select g, 0 from generate_series(1, 100) g").await.unwrap();
    eventually(PATIENCE, "the rows arrive", async || {
        let count = regions.eu.postgres.query_text(DATABASE, "select count(*)::text from t").await?;
        Ok(count.as_deref() == Some("100"))
    })
    .await
    .unwrap();

    // Changes are committed that nobody will ever read: the topic goes before they are.
    eu.kill9().unwrap();
    regions.us.execute("update t set n = 1; insert into t values (101, 1)").await.unwrap();
    regions.us.kafka.delete_topic("landfall.us-east-1.main").await.unwrap();
    eu.start_again().unwrap();
    for daemon in [&us, &eu] {
        eventually(PATIENCE, "both sides have halted", async || {
            let (_, status) = daemon.http_get("/status").await?;
            Ok(status.contains("LF-TOPIC-LOST"))
        })
        .await
        .unwrap();
    }

    us.sigterm(PATIENCE).await.unwrap();
    eu.sigterm(PATIENCE).await.unwrap();
    // The server notices a moment later that nobody reads the slot any more, and drops none that is read.
    eventually(PATIENCE, "nobody reads the slot", async || {
        let read = "select bool_or(active)::text from pg_replication_slots";
        Ok(regions.us.postgres.query_text(DATABASE, read).await?.as_deref() == Some("false"))
    })
    .await
    .unwrap();
    regions.us.execute(at_the_source).await.unwrap();
    for topic in ["landfall.us-east-1.main", "landfall.us-east-1.state"] {
        if regions.us.kafka.topic_exists(topic).await.unwrap() {
            regions.us.kafka.delete_topic(topic).await.unwrap();
        }
    }
    regions.eu.execute(at_the_target).await.unwrap();
    us.start_again().unwrap();
    eventually(PATIENCE, "the source runs", async || {
        let (_, status) = us.http_get("/status").await?;
        Ok(status.contains("\"state\":\"running\""))
    })
    .await
    .unwrap();
    eu.start_again().unwrap();
    regions.us.execute("grant select on t to landfall; insert into t values (102, 2)").await.unwrap();
    regions.us.execute("delete from t where id = 1").await.unwrap();
    let done = match last {
        Last::Fill => us.command(&["backfill", "--to", "eu-west-1"]).await.unwrap(),
        Last::Recover => eu.command(&["recover", "--execute"]).await.unwrap(),
    };
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}\n{}\n{}", us.log_tail(), eu.log_tail());
    eventually(PATIENCE, "both sides are equal, with what came after the copy", async || {
        let ours = checksum::database(&regions.us.connect().await?).await?;
        let theirs = checksum::database(&regions.eu.connect().await?).await?;
        Ok(ours.values().map(|table| table.rows).sum::<i64>() == 101
            && checksum::differences(&ours, &theirs).is_empty())
    })
    .await
    .unwrap();
    eventually(PATIENCE, "the region is ready", async || Ok(eu.http_get("/health/ready").await?.0 == 200))
        .await
        .unwrap();
}
