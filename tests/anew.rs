//! Proves that a stream that has lost something is begun anew as docs/operating.md says: by its command, and its own
//! statements, taken from the paper.

use std::time::Duration;

use testbed::{Daemon, TwoRegions, checksum, eventually, region::DATABASE, said};

const LANDFALL: &str = env!("CARGO_BIN_EXE_landfall");
const PATIENCE: Duration = Duration::from_secs(180);

/// The statements of the section.
fn statements() -> String {
    let paper = std::fs::read_to_string("docs/operating.md").unwrap();
    let section = paper.split("\n## Beginning a stream anew").nth(1).unwrap();
    section.split("```sql\n").nth(1).unwrap().split("```").next().unwrap().to_owned()
}

/// What the source has lost.
#[derive(Clone, Copy, PartialEq)]
enum Lost {
    Topic,
    Slot,
    /// All that its database knew of it.
    Schema,
}

/// The last step of the paper.
#[derive(Clone, Copy, PartialEq)]
enum Last {
    Fill,
    Recover,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_begun_anew_as_the_paper_says_and_its_region_filled() {
    begin_anew(Lost::Topic, Last::Fill).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_its_database_knows_nothing_of_is_begun_anew_and_its_link_recovered() {
    begin_anew(Lost::Schema, Last::Recover).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_slot_is_gone_is_begun_anew_and_its_link_recovered() {
    begin_anew(Lost::Slot, Last::Recover).await;
}

async fn begin_anew(lost: Lost, last: Last) {
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

    // Changes are committed that nobody will ever read.
    let change = "update t set n = 1; delete from t where id = 7; insert into t values (101, 1)";
    match lost {
        Lost::Topic => {
            eu.kill9().unwrap();
            regions.us.execute(change).await.unwrap();
            regions.us.kafka.delete_topic("landfall.us-east-1.main").await.unwrap();
            eu.start_again().unwrap();
            for daemon in [&us, &eu] {
                halted(daemon, "LF-TOPIC-LOST").await;
            }
            let early = eu.command(&["recover", "--execute"]).await.unwrap();
            let early = String::from_utf8_lossy(&early.stderr).into_owned();
            assert!(early.contains("[LF-TOPIC-LOST]") && early.contains("recover --source"), "{early}");
        }
        Lost::Slot => {
            us.kill9().unwrap();
            // The server notices a moment later that nobody reads the slot any more, and drops none that is read.
            eventually(PATIENCE, "nobody reads the slot", async || {
                let read = "select bool_or(active)::text from pg_replication_slots";
                Ok(regions.us.postgres.query_text(DATABASE, read).await?.as_deref() == Some("false"))
            })
            .await
            .unwrap();
            let drop = "select pg_drop_replication_slot(slot_name) from pg_replication_slots";
            regions.us.execute(drop).await.unwrap();
            regions.us.execute(change).await.unwrap();
            us.start_again().unwrap();
            halted(&us, "LF-SLOT-MISSING").await;
        }
        Lost::Schema => {
            us.kill9().unwrap();
            regions.us.execute("drop schema landfall cascade").await.unwrap();
            regions.us.execute(change).await.unwrap();
            regions.us.grant(&us).await.unwrap();
            us.start_again().unwrap();
            halted(&us, "LF-STREAM-FOREIGN").await;
        }
    }

    let plan = us.command(&["recover", "--source"]).await.unwrap();
    let told = String::from_utf8_lossy(&plan.stdout);
    assert!(plan.status.success() && told.contains("topic"), "{told}");
    // It is the region's, and another stream's as well.
    assert!(!told.contains("landfall.us-east-1.state"), "{told}");
    let slots = "select count(*)::text from pg_replication_slots";
    let there = regions.us.postgres.query_text(DATABASE, slots).await.unwrap();
    let (kept, is) = match lost {
        Lost::Topic => ("1", "its topic is not there"),
        Lost::Slot => ("0", "which is gone"),
        Lost::Schema => ("1", "topic landfall.us-east-1.main is deleted"),
    };
    assert_eq!(there.as_deref(), Some(kept), "nothing was asked for yet");
    assert!(told.contains(is), "{told}");
    let done = us.command(&["recover", "--source", "--execute"]).await.unwrap();
    let told = said(&done);
    assert!(done.status.success() && told.contains("begun anew"), "{told}\n{}", us.log_tail());
    assert!(
        regions.us.kafka.end_offset("landfall.us-east-1.state").await.unwrap() > 0,
        "it is left as it was"
    );
    regions.us.execute("grant select on t to landfall").await.unwrap();
    if last == Last::Fill {
        let asked = us.command(&["backfill", "--to", "eu-west-1", "--detach"]).await.unwrap();
        assert!(asked.status.success(), "{}", said(&asked));
        eventually(PATIENCE, "a table is copied", async || {
            let status = us.command(&["backfill", "status", "--json"]).await?;
            let status: serde_json::Value = serde_json::from_slice(&status.stdout)?;
            let state = &status[0]["tables"][0]["state"];
            Ok(state == "copying" || state == "done")
        })
        .await
        .unwrap_or_else(|error| panic!("{error}\n{}", us.log_tail()));
        eu.sigterm(PATIENCE).await.unwrap();
        regions.eu.execute(&statements()).await.unwrap();
        eu.start_again().unwrap();
    }
    regions.us.execute("insert into t values (102, 2)").await.unwrap();
    regions.us.execute("delete from t where id = 1").await.unwrap();
    let done = match last {
        Last::Fill => us.command(&["backfill", "--to", "eu-west-1"]).await.unwrap(),
        Last::Recover => eu.command(&["recover", "--execute"]).await.unwrap(),
    };
    assert!(done.status.success(), "{}\n{}\n{}", said(&done), us.log_tail(), eu.log_tail());
    eventually(PATIENCE, "both sides are equal, with what came after the copy", async || {
        let ours = checksum::database(&regions.us.connect().await?).await?;
        let theirs = checksum::database(&regions.eu.connect().await?).await?;
        Ok(ours.values().map(|table| table.rows).sum::<i64>() == 100
            && checksum::differences(&ours, &theirs).is_empty())
    })
    .await
    .unwrap();
    eventually(PATIENCE, "the region is ready", async || Ok(eu.http_get("/health/ready").await?.0 == 200))
        .await
        .unwrap();

    // Now nothing is lost, and it goes on, also behind a connection that breaks.
    let broken = "select pg_terminate_backend(active_pid)::text from pg_replication_slots";
    assert_eq!(regions.us.postgres.query_text(DATABASE, broken).await.unwrap().as_deref(), Some("true"));
    let refused = us.command(&["recover", "--source", "--execute"]).await.unwrap();
    assert!(
        refused.status.code() == Some(2) && said(&refused).contains("[LF-SLOT-BUSY]"),
        "{}",
        said(&refused)
    );
}

async fn halted(daemon: &Daemon, code: &str) {
    eventually(PATIENCE, "the stream has halted", async || {
        Ok(daemon.http_get("/status").await?.1.contains(code))
    })
    .await
    .unwrap();
}
