//! Proves that a backfill stays exact where it is got in the way of: two at once, keys that move across the border of what
//! is copied, chunks cut by their bytes, and a database that ends the daemon's sessions.

use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng, rngs::StdRng};
use testbed::{
    Daemon, TwoRegions, eventually,
    writers::{Writers, seed},
};

const LANDFALL: &str = env!("CARGO_BIN_EXE_landfall");
const PATIENCE: Duration = Duration::from_secs(180);

/// A source with these rows, a target with none, and the daemons of both.
async fn stage(tables: &str, rows: &str) -> (TwoRegions, Daemon, Daemon) {
    let regions = TwoRegions::start(15, 18, 1).await.unwrap();
    regions.execute_both(tables).await.unwrap();
    regions.us.execute(rows).await.unwrap();
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

async fn noted(us: &Daemon) -> Vec<serde_json::Value> {
    let status = us.command(&["backfill", "status", "--json"]).await.unwrap();
    serde_json::from_slice(&status.stdout).unwrap_or_default()
}

fn copied(noted: &[serde_json::Value]) -> u64 {
    let tables = noted.iter().flat_map(|it| it["tables"].as_array().unwrap());
    tables.map(|it| it["rows"].as_u64().unwrap()).sum()
}

async fn wait_copied(us: &Daemon, rows: u64) {
    eventually(PATIENCE, "a part is copied", async || Ok(copied(&noted(us).await) >= rows)).await.unwrap();
}

/// So many backfills are done, nobody had to act, and both regions hold the same.
async fn ends_equal(regions: &TwoRegions, us: &Daemon, eu: &Daemon, backfills: usize) {
    let done = eventually(PATIENCE, "every backfill is done", async || {
        let noted = noted(us).await;
        Ok(noted.len() == backfills && noted.iter().all(|it| it["state"] == "done"))
    });
    if let Err(error) = done.await {
        panic!("{error:#}\n--- us\n{}\n--- eu\n{}", us.log_tail(), eu.log_tail());
    }
    regions.equal(PATIENCE, &[us, eu]).await.unwrap();
}

const NUMBERED: &str = "create table numbered (id int8 primary key, n int8 not null, note text)";

fn numbered(count: u64) -> String {
    format!("insert into numbered select g, g, 'row ' || g from generate_series(1, {count}) g")
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_overlap_are_done_one_after_the_other() {
    let seed = seed();
    let tables = format!("{NUMBERED}; create table other (id int8 primary key, n int4)");
    let rows = format!("{}; insert into other select g, g from generate_series(1, 2000) g", numbered(8_000));
    let (regions, us, eu) = stage(&tables, &rows).await;
    let writers = Writers::start(&regions.us, 2, seed, Duration::from_millis(2), |writer, done, random| {
        let id = random.random_range(1..=8_000);
        match random.random_range(0..3) {
            0 => format!("insert into numbered values ({}, 0)", 10_000 + done * 2 + writer),
            1 => format!("delete from numbered where id = {id}"),
            _ => format!("update numbered set n = n + 1 where id = {id}"),
        }
    })
    .await
    .unwrap();
    let slowly = ["--chunk-rows", "500", "--max-rows-per-second", "700"];
    ask(&us, &slowly).await;
    wait_copied(&us, 1_000).await;
    // The same table once more, while the first is in the middle of it.
    ask(&us, &[&slowly[..], &["--table", "public.numbered"]].concat()).await;
    let both = noted(&us).await;
    assert!(both.len() == 2 && both.iter().all(|it| it["state"] != "done"), "they overlap: {both:?}");
    eventually(PATIENCE, "the first is done before the second begins", async || {
        let noted = noted(&us).await;
        let (first, second): (Vec<_>, Vec<_>) =
            noted.into_iter().partition(|it| it["tables"].as_array().unwrap().len() == 2);
        let first_done = first[0]["state"] == "done";
        assert!(first_done || copied(&second) == 0, "both copy: {first:?} {second:?}");
        Ok(first_done)
    })
    .await
    .unwrap();
    writers.stop_after(100, PATIENCE).await.unwrap();
    ends_equal(&regions, &us, &eu, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_move_across_the_border_come_once() {
    let seed = seed();
    let (regions, us, eu) = stage(NUMBERED, &numbered(10_000)).await;
    // Each writer's rows have keys of their own: low in what is copied first, high in what is copied last.
    let writers = Writers::start(&regions.us, 3, seed, Duration::from_millis(1), |writer, _, random| {
        let row = random.random_range(0..1_600_u64) * 3 + writer + 1;
        let (low, high) = (row, 1_000_000 + row);
        let swap = random.random_range(4_801..10_000) / 3 * 3 + writer;
        match random.random_range(0..4) {
            0 => format!("update numbered set id = {high}, n = n + 1 where id = {low}"),
            1 => format!("update numbered set id = {low}, n = n + 1 where id = {high}"),
            // There and back in one transaction.
            2 => format!(
                "begin; update numbered set id = {high} where id = {low}; update numbered set id = {low}, n = n + 1 where id = {high}; commit"
            ),
            _ => format!(
                "begin; update numbered set id = -{swap} where id = {swap}; update numbered set id = {swap}, note = 'back' where id = -{swap}; commit"
            ),
        }
    })
    .await
    .unwrap();
    ask(&us, &["--chunk-rows", "300", "--max-rows-per-second", "1500"]).await;
    wait_copied(&us, 9_000).await;
    let written = writers.stop_after(500, PATIENCE).await.unwrap();
    println!("{} statements, {} refused", written.statements, written.refused.len());
    assert!(written.refused.is_empty(), "{:?}", written.refused.first());
    ends_equal(&regions, &us, &eu, 1).await;
    // Every row that was there is there once, whatever its key is now.
    let rows = regions.eu.connect().await.unwrap();
    let counts = rows.query_one("select count(*) from numbered", &[]).await.unwrap();
    assert_eq!(counts.get::<_, i64>(0), 10_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_cut_by_their_bytes_are_resumed() {
    let mut random = StdRng::seed_from_u64(seed());
    // Narrow rows first, so that what comes next is asked for by thousands; then 96 MiB of half a MiB each.
    let tables = "create table wide (id int4 primary key, n int4, document text);
        alter table wide alter document set storage external";
    let rows = "insert into wide select g, g, 'narrow' from generate_series(1, 2000) g;
        insert into wide select g, g, repeat(md5(g::text), 16384) from generate_series(2001, 2192) g";
    let (regions, mut us, eu) = stage(tables, rows).await;
    ask(&us, &["--max-bytes-per-second", "8MiB"]).await;
    for least in [2_001, 2_060] {
        wait_copied(&us, least + random.random_range(0..50)).await;
        let before = copied(&noted(&us).await);
        us.kill9().unwrap();
        regions.us.execute("update wide set n = n + 1 where id % 50 = 0").await.unwrap();
        us.start_again().unwrap();
        us.wait_ready(PATIENCE).await.unwrap();
        let after = copied(&noted(&us).await);
        println!("killed with {before} rows copied, {after} afterwards");
        assert!(after >= before, "what was copied is not read again");
    }
    ends_equal(&regions, &us, &eu, 1).await;
    let kept = regions.us.connect().await.unwrap();
    let kept = kept.query_one("select chunks from landfall.backfill_table", &[]).await.unwrap();
    // 96 MiB in chunks of 8 MiB at most; asked for by their rows, they would be three.
    let chunks: i64 = kept.get(0);
    assert!(chunks >= 12, "{chunks}");
    let noted = noted(&us).await;
    assert_eq!(copied(&noted), 2_192);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_the_database_ends_are_opened_again() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let (regions, mut us, eu) = stage(NUMBERED, &numbered(12_000)).await;
    let writers = Writers::start(&regions.us, 2, seed, Duration::from_millis(2), |writer, done, random| {
        let id = random.random_range(1..=12_000);
        match random.random_range(0..4) {
            0 => format!("insert into numbered values ({}, 0)", 20_000 + done * 2 + writer),
            1 => format!("delete from numbered where id = {id}"),
            _ => format!("update numbered set n = n + 1 where id = {id}"),
        }
    })
    .await
    .unwrap();
    ask(&us, &["--chunk-rows", "500", "--max-rows-per-second", "1500"]).await;
    let killer = regions.us.connect().await.unwrap();
    let (mut ended, begun) = (0, Instant::now());
    // A round may find none: they are opened again after a while.
    while ended < 8 && begun.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(random.random_range(200..1_500))).await;
        let sql = "select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = 'landfall'";
        ended += killer.query_one(sql, &[]).await.unwrap().get::<_, i64>(0);
    }
    println!("{ended} sessions ended");
    assert!(ended >= 8, "{ended}");
    done_while_written(&us).await;
    writers.stop_after(100, PATIENCE).await.unwrap();
    assert!(us.is_running());
    ends_equal(&regions, &us, &eu, 1).await;
}

/// The backfill ends though writes go on.
async fn done_while_written(us: &Daemon) {
    eventually(PATIENCE, "the backfill is done", async || {
        Ok(noted(us).await.first().is_some_and(|it| it["state"] == "done"))
    })
    .await
    .unwrap_or_else(|error| panic!("{error:#}\n{}", us.log_tail()));
}
