//! Proves that a table whose rows nothing tells apart is copied whatever its size: portion by portion under one snapshot,
//! while it is written to, whatever dies on the way, and in nobody's way who wants to change it.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::StdRng};
use testbed::{
    Daemon, TwoRegions, eventually, said,
    writers::{Writers, seed},
};

const LANDFALL: &str = env!("CARGO_BIN_EXE_landfall");
const PATIENCE: Duration = Duration::from_secs(180);

/// Rows that are there several times, with values that are kept out of line; about 24 MiB, six portions and more.
const BARE: &str = "create table bare (n int4, note text, document text);
    alter table bare replica identity full;
    alter table bare alter document set storage external";
const ROWS: u64 = 3_000;
const FILL: &str = "insert into bare select g % 500, case when g % 3 > 0 then E'tab\\tback\\\\slash' end,
        repeat(md5((g % 100)::text), 256) from generate_series(1, 3000) g";

/// A source with these rows, a target that holds something else, and the daemons of both.
async fn stage(tables: &str, rows: &str) -> (TwoRegions, Daemon, Daemon) {
    let regions = TwoRegions::start(15, 18, 1).await.unwrap();
    regions.execute_both(tables).await.unwrap();
    regions.us.execute(rows).await.unwrap();
    regions.eu.execute("insert into bare values (1, 'stale')").await.unwrap();
    let us = regions.us.start_daemon(LANDFALL, &regions.us_sends()).await.unwrap();
    let eu = regions.eu.start_daemon(LANDFALL, &regions.eu_receives()).await.unwrap();
    eu.wait_heartbeat(PATIENCE).await.unwrap();
    regions.us.execute("grant select on all tables in schema public to landfall").await.unwrap();
    (regions, us, eu)
}

async fn ask(us: &Daemon, more: &[&str]) {
    eventually(PATIENCE, "the backfill is asked for", async || {
        let asked = us.command(&[&["backfill", "--to", "eu-west-1", "--detach"], more].concat()).await?;
        Ok(asked.status.success())
    })
    .await
    .unwrap();
}

/// The newest backfill, as `status --json` gives it.
async fn newest(us: &Daemon) -> serde_json::Value {
    let status = us.command(&["backfill", "status", "--json"]).await.unwrap();
    let noted: serde_json::Value =
        serde_json::from_slice(&status.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(&status)));
    noted[0].clone()
}

fn copied(backfill: &serde_json::Value) -> u64 {
    backfill["tables"].as_array().unwrap().iter().map(|it| it["rows"].as_u64().unwrap()).sum()
}

async fn wait_copied(us: &Daemon, rows: std::ops::Range<u64>) {
    eventually(PATIENCE, "a part is copied", async || Ok(rows.contains(&copied(&newest(us).await))))
        .await
        .unwrap();
}

async fn ends_equal(regions: &TwoRegions, us: &Daemon, eu: &Daemon) {
    let done = eventually(PATIENCE, "the backfill is done", async || Ok(newest(us).await["state"] == "done"));
    if let Err(error) = done.await {
        panic!("{error:#}\n--- us\n{}\n--- eu\n{}", us.log_tail(), eu.log_tail());
    }
    regions.equal(PATIENCE, &[us, eu]).await.unwrap();
    let kept = "select count(*)::text from landfall.meanwhile";
    assert_eq!(regions.eu.postgres.query_text("shop", kept).await.unwrap().as_deref(), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_on_either_side_it_ends_equal_while_it_is_written() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let (regions, mut us, mut eu) = stage(BARE, FILL).await;
    let any = |condition: &str| format!("ctid = (select ctid from bare where {condition} limit 1)");
    let writers = Writers::start(&regions.us, 2, seed, Duration::from_millis(15), move |_, done, random| {
        let n = random.random_range(0..500);
        let (one, fresh) = (any(&format!("n = {n}")), format!("repeat(md5('{done}'), 256)"));
        // The table stays about as large as it is, however long this takes.
        match random.random_range(0..7) {
            0 => format!("insert into bare values ({n}, 'fresh', {fresh})"),
            1 => format!("insert into bare select * from bare where n = {n} limit 1"),
            2 => format!("delete from bare where {one}"),
            // One that leaves its document as it is, there and back, and one that does not.
            3 => format!("update bare set n = n + 500 where {one}"),
            4 => format!("update bare set n = n - 500 where {}", any("n >= 500")),
            5 => format!("update bare set document = {fresh} where {one}"),
            _ => format!(
                "begin; delete from bare where {one}; insert into bare values ({n}, null, {fresh}); commit"
            ),
        }
    })
    .await
    .unwrap();
    let slowly = ["--max-bytes-per-second", "8MiB"];
    // Each is reached at least so often while the table is copied once.
    for (of_source, point, reach_max) in [
        (true, "backfill.after_read", 6),
        (false, "apply.mid_chunk", 40),
        (true, "backfill.before_append", 6),
        (true, "backfill.mid_chunk", 60),
        (false, "apply.before_commit", 40),
        (true, "backfill.before_kept", 5),
        (false, "apply.mid_chunk", 40),
        (true, "backfill.after_kept", 5),
        (false, "apply.after_commit", 40),
    ] {
        eventually(PATIENCE, "a backfill has a good part of its way before it", async || {
            let all = us.command(&["backfill", "status", "--json"]).await?;
            let all: serde_json::Value = serde_json::from_slice(&all.stdout)?;
            if let Some(now) = all.as_array().unwrap().iter().find(|it| it["state"] != "done") {
                return Ok(copied(now) < ROWS / 2);
            }
            let again = ["backfill", "--to", "eu-west-1", "--detach", "--again"];
            Ok(us.command(&[&again[..], &slowly].concat()).await?.status.success())
        })
        .await
        .unwrap();
        let daemon = if of_source { &mut us } else { &mut eu };
        daemon.die_at(point, random.random_range(1..=reach_max), PATIENCE).await.unwrap();
    }
    // On a machine where commits are slow by now it reads for a twentieth of the time.
    let done =
        eventually(3 * PATIENCE, "the last is done", async || Ok(newest(&us).await["state"] == "done"));
    done.await
        .unwrap_or_else(|error| panic!("{error}\n--- us\n{}\n--- eu\n{}", us.log_tail(), eu.log_tail()));
    let written = writers.stop_after(200, PATIENCE).await.unwrap();
    println!("{} statements, {} refused", written.statements, written.refused.len());
    ends_equal(&regions, &us, &eu).await;
}

/// Sessions that hold a snapshot of a table that is copied.
async fn held_snapshots(regions: &TwoRegions) -> Option<String> {
    let held = "select count(*)::text from pg_stat_activity
        where application_name like 'landfall backfill%' and backend_xmin is not null and query ilike 'copy%'";
    regions.us.postgres.query_text("shop", held).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_wants_the_table_is_let_in_and_it_begins_anew() {
    let (regions, us, eu) = stage(BARE, FILL).await;
    // 24 MiB: 24 s, were there nothing in its way.
    ask(&us, &["--max-bytes-per-second", "1MiB"]).await;
    let part = 100..ROWS;
    let not_done = async || assert_ne!(newest(&us).await["state"], "done", "it was waited for");

    wait_copied(&us, part.clone()).await;
    assert_eq!(held_snapshots(&regions).await.as_deref(), Some("1"));
    let (us_ddl, eu_ddl) = ("alter table bare add extra int4 default 7", "alter table bare add extra int4");
    regions.eu.execute(eu_ddl).await.unwrap();
    regions.us.execute(us_ddl).await.unwrap();
    not_done().await;

    wait_copied(&us, part.clone()).await;
    // In one transaction: it would be done with an empty table in no time.
    regions.us.execute(&format!("begin; truncate bare; {FILL}; commit")).await.unwrap();
    not_done().await;

    // Held back, it holds nothing back; what it copied it copies again.
    wait_copied(&us, part.clone()).await;
    assert!(us.command(&["backfill", "pause"]).await.unwrap().status.success());
    eventually(PATIENCE, "the snapshot is let go", async || {
        Ok(held_snapshots(&regions).await.as_deref() == Some("0"))
    })
    .await
    .unwrap();
    regions.us.execute("delete from bare where n < 100").await.unwrap();
    // The same once more, without a limit: it goes on.
    ask(&us, &[]).await;
    ends_equal(&regions, &us, &eu).await;
    assert_eq!(copied(&newest(&us).await), ROWS - ROWS / 5, "what was begun and left is not counted");

    // Ended, it holds nothing either; and the table that was half full is filled by the next.
    ask(&us, &["--again", "--max-bytes-per-second", "2MiB"]).await;
    wait_copied(&us, part).await;
    assert!(us.command(&["backfill", "cancel"]).await.unwrap().status.success());
    eventually(PATIENCE, "the snapshot is let go", async || {
        Ok(held_snapshots(&regions).await.as_deref() == Some("0"))
    })
    .await
    .unwrap();
    // By then its rows can be told apart: they come chunk by chunk.
    let key = "alter table bare add id serial primary key; alter table bare replica identity default";
    regions.execute_both("truncate bare; drop sequence if exists bare_id_seq").await.unwrap();
    regions.execute_both(key).await.unwrap();
    regions.us.execute("insert into bare (n) select g from generate_series(1, 50) g").await.unwrap();
    regions
        .us
        .execute("update bare set n = n + 1 where id < 10; delete from bare where id = 11")
        .await
        .unwrap();
    ask(&us, &["--again"]).await;
    ends_equal(&regions, &us, &eu).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_begins_anew_again_and_again_says_so() {
    let (regions, us, eu) = stage(BARE, FILL).await;
    ask(&us, &["--max-bytes-per-second", "2MiB"]).await;
    let waits_for = async || newest(&us).await["waits_for"].as_str().unwrap_or_default().to_owned();
    for times in 0..3 {
        eventually(PATIENCE, "it is read", async || {
            Ok(held_snapshots(&regions).await.as_deref() == Some("1"))
        })
        .await
        .unwrap();
        assert!(!waits_for().await.contains("in a row"), "after {times}");
        regions.us.execute("begin; lock table bare; commit").await.unwrap();
    }
    // Said while it is read, until it is done.
    eventually(PATIENCE, "it says so", async || Ok(waits_for().await.contains("3 times in a row")))
        .await
        .unwrap();
    let before = copied(&newest(&us).await);
    wait_copied(&us, before + 1..ROWS).await;
    assert!(waits_for().await.contains("give it a primary key"), "{}", waits_for().await);
    ends_equal(&regions, &us, &eu).await;
    assert_eq!(waits_for().await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_which_changes_do_not_say_all_is_refused_until_they_say_all_of_the_row() {
    let table = format!(
        "{BARE}; create table shard (id int8, bucket int8 generated always as (id % 16) stored, note text,
             primary key (id, bucket))"
    );
    let rows = "insert into shard (id, note) select g, 'row ' || g from generate_series(1, 1000) g";
    let (regions, us, eu) = stage(&table, rows).await;
    ask(&us, &[]).await;
    eventually(PATIENCE, "it says why it waits", async || {
        let waits_for = newest(&us).await["waits_for"].as_str().unwrap_or_default().to_owned();
        Ok(waits_for.contains("column `bucket` of the key") && waits_for.contains("REPLICA IDENTITY FULL"))
    })
    .await
    .unwrap();
    regions.us.execute("alter table shard replica identity full").await.unwrap();
    eventually(PATIENCE, "the backfill is done", async || Ok(newest(&us).await["state"] == "done"))
        .await
        .unwrap();
    ends_equal(&regions, &us, &eu).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_wider_than_a_portion_and_tables_that_only_grow_are_copied() {
    let tables = format!(
        "{BARE}; create table grows (id int8 primary key, note text);
         create table parted (n int4, note text) partition by list (n);
         alter table parted replica identity full;
         create table parted_1 partition of parted for values in (1);
         create table parted_2 partition of parted default;
         alter table parted_1 replica identity full; alter table parted_2 replica identity full"
    );
    let rows = "insert into bare select g, null, repeat(md5(g::text), 160000) from generate_series(1, 4) g;
         insert into grows select g, 'row ' || g from generate_series(1, 5000) g;
         insert into parted select g % 3, 'row ' || g % 10 from generate_series(1, 5000) g";
    let (regions, us, eu) = stage(&tables, rows).await;
    // Left out of a publication that the daemon makes; in one that is there it may be.
    regions.us.execute("alter table grows replica identity nothing").await.unwrap();
    let writers = Writers::start(&regions.us, 2, seed(), Duration::from_millis(2), |writer, done, random| {
        match random.random_range(0..4) {
            0 => format!("insert into grows values ({}, 'new')", 10_000 + done * 2 + writer),
            1 => "insert into parted values (1, 'row 1')".to_owned(),
            2 => "update parted set n = 3 - n where (tableoid, ctid) = (select tableoid, ctid from parted where n > 0 limit 1)".to_owned(),
            _ => "delete from parted where (tableoid, ctid) = (select tableoid, ctid from parted limit 1)".to_owned(),
        }
    })
    .await
    .unwrap();
    ask(&us, &["--max-rows-per-second", "3000", "--chunk-rows", "500"]).await;
    eventually(PATIENCE, "the backfill is done", async || Ok(newest(&us).await["state"] == "done"))
        .await
        .unwrap();
    writers.stop_after(100, PATIENCE).await.unwrap();
    ends_equal(&regions, &us, &eu).await;
}
