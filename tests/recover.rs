//! Proves that a link that lost a part of its stream, or met a conflict, is brought up again without a full copy, while
//! the source is written to: what it missed comes anew, deletions included, and both regions are equal.

use std::time::Duration;

use rand::Rng;
use testbed::{
    Daemon, Region, TwoRegions, eventually, said,
    writers::{Writers, seed},
};

const LANDFALL: &str = env!("CARGO_BIN_EXE_landfall");
const PATIENCE: Duration = Duration::from_secs(180);
const TOPIC: &str = "landfall.us-east-1.main";

const TABLES: &str = "
    create table numbered (id int8 primary key, n int4 not null, note text);
    create schema \"da.ta\";
    grant usage on schema \"da.ta\" to public;
    alter default privileges in schema \"da.ta\" grant all on tables to public;
    create table \"da.ta\".\"Named rows\" (a text, b int4, n int4, primary key (b, a));
    create table bare (n int4, note text);
    alter table bare replica identity full;
    create table seated (id int4 primary key, seat int4 not null unique);
    create table wide (id int4 primary key, n int4, document text);
    alter table wide alter document set storage external";

/// Two regions that hold the same rows.
async fn stage() -> (TwoRegions, Daemon, Daemon) {
    let regions = TwoRegions::start(15, 18, 1).await.unwrap();
    regions.execute_both(TABLES).await.unwrap();
    let sends = regions.us.config().source(&["public.*", "\"da.ta\".*"]).to_toml();
    let us = regions.us.start_daemon(LANDFALL, &sends).await.unwrap();
    let eu = regions.eu.start_daemon(LANDFALL, &regions.eu_receives()).await.unwrap();
    eu.wait_heartbeat(PATIENCE).await.unwrap();
    let rows = "insert into numbered select g, g, 'row ' || g from generate_series(1, 10000) g;
         insert into \"da.ta\".\"Named rows\" select 'Ä' || g % 100, g, g from generate_series(1, 1000) g;
         insert into bare select g % 10, 'twice or more' from generate_series(1, 100) g;
         insert into wide select g, g, repeat(md5(g::text), 200) from generate_series(1, 400) g;
         insert into seated select g, g from generate_series(1, 400) g;
         grant select on all tables in schema public to public";
    regions.us.execute(rows).await.unwrap();
    regions.equal(PATIENCE, &[&us, &eu]).await.unwrap();
    (regions, us, eu)
}

async fn halts(daemon: &Daemon, code: &str) {
    eventually(PATIENCE, code, async || {
        let (_, page) = daemon.http_get("/status").await?;
        Ok(page.contains("\"state\":\"halted\"") && page.contains(code))
    })
    .await
    .unwrap_or_else(|error| panic!("{error}\n{}", daemon.log_tail()));
}

async fn ready(daemon: &Daemon) {
    eventually(
        PATIENCE,
        "the region is ready",
        async || Ok(daemon.http_get("/health/ready").await?.0 == 200),
    )
    .await
    .unwrap();
}

/// Writes to every row there is, among them keys that move and leave an out-of-line value unmentioned.
async fn writer(region: &Region) -> Writers {
    let pause = Duration::from_millis(2);
    let start = Writers::start(region, 1, seed(), pause, |_, done, random| {
        let (id, small) = (random.random_range(1..=10_000), random.random_range(1..=400));
        let fresh = 100_000 + done;
        match random.random_range(0..8) {
            0 => format!("insert into numbered values ({fresh}, 0, 'fresh')"),
            1 => format!("delete from numbered where id = {id}"),
            2 => format!("update numbered set id = {fresh}, n = n + 1 where id = {id}"),
            3 => format!("update wide set id = {fresh} where id = {small}"),
            4 => format!("update wide set n = n + 1 where id = {small}"),
            5 => format!("update \"da.ta\".\"Named rows\" set n = n + 1 where b = {small}"),
            6 => format!("update seated set seat = seat where id = {small}"),
            _ => format!("update numbered set n = n + 1 where id between {id} and {id} + 5"),
        }
    });
    start.await.unwrap()
}

/// Takes from the log what us writes while eu is down: eu's link halts, and dies at `crash_at` later on.
async fn lose(regions: &TwoRegions, eu: &mut Daemon, crash_at: Option<&str>) {
    eu.kill9().unwrap();
    // Everybody takes the next one's seat: whoever is written to finds it taken here.
    let missed = "update seated set seat = -seat; update seated set seat = 1 + -seat % 400;
         update numbered set note = 'changed' where id % 50 = 0; delete from numbered where id % 70 = 0;
         insert into numbered select 20000 + g, g, 'new' from generate_series(1, 200) g;
         update \"da.ta\".\"Named rows\" set a = a || '!' where b % 100 = 0; update wide set document = 'short' where id % 40 = 0;
         update wide set id = id + 1000 where id % 40 = 1; delete from wide where id % 40 = 2";
    regions.us.execute(missed).await.unwrap();
    let kafka = &regions.us.kafka;
    let written = "select pg_current_wal_lsn()::text";
    let written = regions.us.postgres.query_text("shop", written).await.unwrap().unwrap();
    // Confirmed once it is in the log.
    let confirmed = format!("select (confirmed_flush_lsn >= '{written}')::text from pg_replication_slots");
    eventually(PATIENCE, "what is missed is captured", async || {
        Ok(regions.us.postgres.query_text("shop", &confirmed).await?.as_deref() == Some("true"))
    })
    .await
    .unwrap();
    let gone = kafka.end_offset(TOPIC).await.unwrap();
    kafka.delete_records(TOPIC, gone).await.unwrap();
    if let Some(point) = crash_at {
        eu.set_env("LANDFALL_CRASH_AT", point);
    }
    eu.start_again().unwrap();
    halts(eu, "LF-RETENTION-PASSED").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_are_gone_are_made_up_for_while_it_is_written() {
    let (regions, us, mut eu) = stage().await;
    lose(&regions, &mut eu, None).await;
    let writer = writer(&regions.us).await;
    let plan = eu.command(&["recover"]).await.unwrap();
    let told = said(&plan);
    let all = ["--execute", "that were not applied are gone", "5 that have come from there"];
    assert!(plan.status.success() && all.iter().all(|it| told.contains(it)), "{told}");
    halts(&eu, "LF-RETENTION-PASSED").await;
    let recovered = eu.command(&["recover", "--execute"]).await.unwrap();
    let told = said(&recovered);
    println!("{told}");
    assert!(
        recovered.status.success() && told.contains("recovered: 5 tables"),
        "{told}\n{}\n{}",
        us.log_tail(),
        eu.log_tail()
    );
    assert!(eu.log().contains("was in the way"), "a seat was taken by one who has another by now");
    assert_eq!(writer.stop_after(200, PATIENCE).await.unwrap().refused, [""; 0]);
    regions.equal(PATIENCE, &[&us, &eu]).await.unwrap();
    ready(&eu).await;
    // Strict again: what does not find its row halts.
    regions.eu.execute("delete from numbered where id = 20001").await.unwrap();
    regions.us.execute("update numbered set n = 0 where id = 20001").await.unwrap();
    halts(&eu, "LF-CONFLICT").await;

    // The same brings a link past a conflict, and tells what it cannot mend.
    regions.us.execute("insert into bare values (77, 'new')").await.unwrap();
    regions.eu.execute("insert into bare values (78, 'nobody''s')").await.unwrap();
    let recovered = eu.command(&["recover", "--execute"]).await.unwrap();
    let told = said(&recovered);
    assert!(
        recovered.status.code() == Some(1) && told.contains("public.bare") && told.contains("backfill"),
        "{told}"
    );
    let mut page = String::new();
    eventually(PATIENCE, "the region is joining", async || {
        let (code, told) = eu.http_get("/health/ready").await?;
        page = told;
        Ok(code == 503 && page.contains("joining"))
    })
    .await
    .unwrap_or_else(|error| panic!("{error}\n{page}"));
    let filled = us.command(&["backfill", "--to", "eu-west-1", "--table", "public.bare"]).await.unwrap();
    assert!(filled.status.success(), "{}", said(&filled));
    regions.equal(PATIENCE, &[&us, &eu]).await.unwrap();
    let again = eu.command(&["recover", "--execute"]).await.unwrap();
    assert!(again.status.success(), "{}", said(&again));
    ready(&eu).await;

    // What made this target whole makes no other so: one that holds nothing does not begin there.
    eu.kill9().unwrap();
    regions.eu.execute("drop schema landfall cascade; delete from numbered").await.unwrap();
    regions.eu.grant(&eu).await.unwrap();
    eu.start_again().unwrap();
    halts(&eu, "LF-GENESIS-GONE").await;
}

/// A table that cannot be read for a while keeps the recovery from its end, and no table from what is written meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_that_is_not_done_ends_where_the_region_is_recovered() {
    let (regions, us, mut eu) = stage().await;
    // More than it fills before the link is recovered.
    let asked = us
        .command(&["backfill", "--to", "eu-west-1", "--detach", "--max-rows-per-second", "100"])
        .await
        .unwrap();
    assert!(asked.status.success(), "{}", said(&asked));
    let state = async || {
        let status = us.command(&["backfill", "status", "--json"]).await.unwrap();
        serde_json::from_slice::<serde_json::Value>(&status.stdout).unwrap()[0]["state"].clone()
    };
    eventually(PATIENCE, "it is half-way", async || {
        let sql = "select count(*)::text from landfall.backfill_table where state = 'copying' and after is not null";
        Ok(regions.us.postgres.query_text("shop", sql).await?.as_deref() == Some("1"))
    })
    .await
    .unwrap_or_else(|error| panic!("{error}\n{}", us.log_tail()));
    lose(&regions, &mut eu, None).await;
    assert_eq!(state().await, "running");
    let recovered = eu.command(&["recover", "--execute"]).await.unwrap();
    assert!(recovered.status.success(), "{}\n{}\n{}", said(&recovered), us.log_tail(), eu.log_tail());
    assert_eq!(state().await, "canceled");
    regions.equal(PATIENCE, &[&us, &eu]).await.unwrap();
    ready(&eu).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_on_either_side_it_is_carried_to_its_end_and_every_table_flows_meanwhile() {
    let (regions, mut us, mut eu) = stage().await;
    lose(&regions, &mut eu, Some("verify.before_mended:2")).await;
    let client = regions.us.connect().await.unwrap();
    client.batch_execute("begin; lock table wide in access exclusive mode").await.unwrap();
    let mut asked = eu.start_command(&["recover", "--execute"]).unwrap();
    for next in [Some("verify.before_kept:2"), None] {
        assert!(eu.wait_exit(PATIENCE).await.is_some(), "it did not die\n{}", eu.log_tail());
        eu.remove_env("LANDFALL_CRASH_AT");
        if let Some(point) = next {
            eu.set_env("LANDFALL_CRASH_AT", point);
        }
        eu.start_again().unwrap();
    }
    us.kill9().unwrap();
    us.start_again().unwrap();
    for (id, note) in [(90_000, "one"), (90_001, "other")] {
        regions.us.execute(&format!("insert into numbered values ({id}, 0, '{note}')")).await.unwrap();
        let sql = format!("select note from numbered where id = {id}");
        eventually(PATIENCE, "what is written meanwhile arrives", async || {
            Ok(regions.eu.postgres.query_text("shop", &sql).await?.as_deref() == Some(note))
        })
        .await
        .unwrap_or_else(|error| panic!("{error}\n{}\n{}", us.log_tail(), eu.log_tail()));
    }
    assert!(asked.try_wait().unwrap().is_none(), "it ended before it had compared every table");
    client.batch_execute("commit").await.unwrap();
    let recovered = asked.wait_with_output().await.unwrap();
    let told = said(&recovered);
    assert!(
        recovered.status.success() && told.contains("recovered: 5 tables"),
        "{told}\n{}\n{}",
        us.log_tail(),
        eu.log_tail()
    );
    regions.equal(PATIENCE, &[&us, &eu]).await.unwrap();
    ready(&eu).await;
}

/// Both regions publish everything, and one has written to a table that the other has had nothing of yet: whose rows it
/// holds, only they know.
#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_takes_no_row_that_only_this_region_can_have() {
    let regions = TwoRegions::start_both(15, 18).await.unwrap();
    regions
        .execute_both("create table ours (id int8 primary key, note text); grant all on ours to public")
        .await
        .unwrap();
    let us = regions.us.config().source(&["public.*"]).link(&regions.eu).to_toml();
    let eu = regions.eu.config().source(&["public.*"]).link(&regions.us).to_toml();
    let us = regions.us.start_daemon(LANDFALL, &us).await.unwrap();
    let eu = regions.eu.start_daemon(LANDFALL, &eu).await.unwrap();
    for daemon in [&us, &eu] {
        daemon.wait_heartbeat(PATIENCE).await.unwrap();
    }
    regions.us.execute("insert into ours values (1, 'ours')").await.unwrap();
    let arrived = async |region: &Region, sql: &str| {
        eventually(PATIENCE, sql, async || {
            Ok(region.postgres.query_text("shop", sql).await?.as_deref() == Some("1"))
        })
        .await
        .unwrap();
    };
    arrived(&regions.eu, "select count(*)::text from ours").await;
    // Of a region that only receives there is nothing to compare, and the link begins anew all the same.
    let recovered = us.command(&["recover", "--execute"]).await.unwrap();
    let told = said(&recovered);
    assert!(recovered.status.success() && told.contains("recovered: 0 tables"), "{told}\n{}", eu.log_tail());
    arrived(&regions.us, "select (count(*) + 1)::text from landfall.recovery").await;

    let young = "create table young (id int8 primary key, note text); grant all on young to public";
    regions.execute_both(young).await.unwrap();
    for region in [&regions.us, &regions.eu] {
        let publish = "alter publication landfall add table young";
        region.postgres.execute("shop", publish).await.unwrap();
    }
    // What eu writes does not come to us.
    regions.us.execute("alter table young add check (note = 'nothing')").await.unwrap();
    regions.eu.execute("insert into young values (1, 'newest')").await.unwrap();
    halts(&us, "LF-ROW-REJECTED").await;
    for _ in 0..2 {
        let recovered = eu.command(&["recover", "--execute"]).await.unwrap();
        let told = said(&recovered);
        let left = told.contains("left as they are") && told.contains("public.young");
        assert!(recovered.status.code() == Some(1) && left, "{told}");
        assert!(told.contains("recovered: 1 tables"), "{told}");
    }
    ready(&eu).await;
    // Nor does a repair, but where somebody says that the other region has them.
    let repaired = eu.command(&["repair", "--execute"]).await.unwrap();
    let told = said(&repaired);
    assert!(repaired.status.code() == Some(2) && told.contains("nothing tells which region"), "{told}");
    arrived(&regions.eu, "select count(*)::text from young where note = 'newest'").await;
    let repaired = eu.command(&["repair", "--execute", "--table", "public.young"]).await.unwrap();
    assert!(repaired.status.success(), "{}", said(&repaired));
    arrived(&regions.eu, "select (count(*) + 1)::text from young").await;
}
