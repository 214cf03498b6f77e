//! Proves that a region that has nothing is filled while everybody writes: rows that were there before the stream
//! come across between its changes, each exactly once, and afterwards both regions are equal.
//!
//! `LANDFALL_SEED` repeats the dice; `LANDFALL_KILLS` sets how often a daemon dies (at each point once, unless set).

use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng, rngs::StdRng};
use testbed::{
    Daemon, Region, TwoRegions, eventually, said,
    writers::{Writers, seed},
};
use tokio::io::{AsyncBufReadExt, BufReader};

const LANDFALL: &str = env!("CARGO_BIN_EXE_landfall");
const PATIENCE: Duration = Duration::from_secs(180);

/// Every way a table can be told apart, and values that are kept out of line.
const TABLES: &str = "
    create table numbered (id int8 primary key, n int4 not null, note text);
    create table named (a text, b uuid, n int4, primary key (b, a));
    create table bare (n int4, note text);
    alter table bare replica identity full;
    create table wide (id int4 primary key, n int4, document text, bytes bytea);
    alter table wide alter document set storage external, alter bytes set storage external;
    create table empty (id int4 primary key)";

/// Of which 500 are more than one text of a chunk.
fn rows(count: u64) -> String {
    format!(
        "insert into numbered
           select g, g, case when g % 7 > 0 then E'tab\\tline\\nback\\\\slash ' || g || repeat('.', 700) end
           from generate_series(1, {count}) g;
         insert into named select 'Ä' || g % 100, gen_random_uuid(), g from generate_series(1, {count} / 10) g;
         insert into bare select g % 10, 'twice or more' from generate_series(1, {count} / 100) g;
         insert into wide select g, g, repeat(md5(g::text), 200), decode(repeat(md5(g::text), 100), 'hex')
           from generate_series(1, {count} / 100) g"
    )
}

/// Writes to the same rows that are being copied. A deadlock, or a key that is taken: nothing was written.
async fn writers(regions: &TwoRegions, count: u64, rows: u64, seed: u64) -> Writers {
    let pause = Duration::from_millis(2);
    let start = Writers::start(&regions.us, count, seed, pause, move |writer, done, random| {
        let id = random.random_range(1..=rows);
        let fresh = rows + done * count + writer + 1;
        let small = random.random_range(1..=rows / 100);
        // Ids of this writer's own: the row, its new self, its end.
        match random.random_range(0..9) {
            0 => format!("insert into numbered values ({fresh}, 0, 'fresh')"),
            1 => format!("delete from numbered where id = {id}"),
            2 => format!("update numbered set id = {fresh}, n = n + 1 where id = {id}"),
            3 => format!("update wide set n = n + 1 where id = {small}"),
            4 => format!("update wide set document = 'short {fresh}' where id = {small}"),
            5 => "insert into bare values (3, 'twice or more')".to_owned(),
            6 => "delete from bare where ctid = (select ctid from bare limit 1)".to_owned(),
            7 => format!("update named set n = n + 1 where a = 'Ä{}'", id % 100),
            _ => format!("update numbered set n = n + 1 where id between {id} and {id} + 5"),
        }
    });
    start.await.unwrap()
}

/// A source with rows, and a target with none.
async fn stage(count: u64) -> (TwoRegions, Daemon, Daemon) {
    let regions = TwoRegions::start(15, 18, 1).await.unwrap();
    regions.execute_both(TABLES).await.unwrap();
    regions.us.execute(&rows(count)).await.unwrap();
    // What the target holds is stale, and is replaced.
    let stale = "insert into numbered values (1, -1, 'stale'), (-77, 0, 'never there');
        insert into bare select 3, 'twice or more' from generate_series(1, 50)";
    regions.eu.execute(stale).await.unwrap();
    let sends = regions.us.config().source(&["public.*"]).packed().to_toml();
    let us = regions.us.start_daemon(LANDFALL, &sends).await.unwrap();
    let eu = regions.eu.start_daemon(LANDFALL, &regions.eu_receives()).await.unwrap();
    eu.wait_heartbeat(PATIENCE).await.unwrap();
    (regions, us, eu)
}

/// Asks what would be copied, and allows what the answer says is lacking.
async fn allow(regions: &TwoRegions, us: &Daemon) {
    let ask = || us.command(&["backfill", "--to", "eu-west-1", "--dry-run"]);
    let refused = said(&ask().await.unwrap());
    let grants = refused.split("as a superuser: ").nth(1).and_then(|tail| tail.split(" then ").next());
    regions.us.execute(grants.unwrap_or_else(|| panic!("no SQL in {refused}"))).await.unwrap();
    let plan = ask().await.unwrap();
    assert!(plan.status.success() && said(&plan).contains("public.numbered"), "{}", said(&plan));
}

const AT_SOURCE: &[&str] = &[
    "backfill.after_read",
    "backfill.before_append",
    "backfill.mid_chunk",
    "backfill.before_kept",
    "backfill.after_kept",
];
const AT_SINK: &[&str] = &["apply.mid_chunk", "apply.before_commit", "apply.after_commit"];
/// Where several sessions bring in the rows.
const AT_LANE: &str = "apply.lane_committed";

/// The backfills there are a note of, as `status --json` gives them.
async fn noted(us: &Daemon) -> Vec<serde_json::Value> {
    let status = us.command(&["backfill", "status", "--json"]).await.unwrap();
    serde_json::from_slice(&status.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(&status)))
}

/// How many rows of it are copied.
fn copied(backfill: &serde_json::Value) -> u64 {
    backfill["tables"].as_array().unwrap().iter().map(|it| it["rows"].as_u64().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_point_of_a_chunk_every_row_comes_once() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let (regions, mut us, mut eu) = stage(30_000).await;
    allow(&regions, &us).await;
    let writers = writers(&regions, 2, 30_000, seed).await;
    let ask =
        ["backfill", "--to", "eu-west-1", "--detach", "--chunk-rows", "500", "--max-rows-per-second", "4000"];
    let every: Vec<&str> = AT_SOURCE.iter().chain(AT_SINK).copied().chain([AT_LANE]).collect();
    let kills =
        std::env::var("LANDFALL_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(every.len());
    for at in 0..kills {
        let point = every.get(at).copied().unwrap_or_else(|| every[random.random_range(0..every.len())]);
        eventually(PATIENCE, "a backfill has a good part of its way before it", async || {
            let noted = noted(&us).await;
            if let Some(now) = noted.iter().find(|it| it["state"] != "done") {
                // Near its end a point is not reached as often as it is to be.
                return Ok(copied(now) < 20_000);
            }
            let again = us.command(&[&ask[..], &["--again"]].concat()).await?;
            Ok(again.status.success())
        })
        .await
        .unwrap();
        let daemon = if AT_SOURCE.contains(&point) { &mut us } else { &mut eu };
        let reach = if at < AT_SOURCE.len() { 1 } else { random.random_range(1..=6) };
        daemon.die_at(point, reach, PATIENCE).await.unwrap();
    }
    eventually(PATIENCE, "the last backfill is done", async || {
        Ok(noted(&us).await.iter().all(|it| it["state"] == "done"))
    })
    .await
    .unwrap();
    writers.stop_after(100, PATIENCE).await.unwrap();
    regions.equal(PATIENCE, &[&us, &eu]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_between_the_watermarks_is_what_counts() {
    let (regions, mut us, eu) = stage(2_000).await;
    allow(&regions, &us).await;
    let dir = tempfile::tempdir().unwrap();
    let hold = dir.path().join("hold");
    std::fs::write(&hold, "").unwrap();
    us.kill9().unwrap();
    us.set_env("LANDFALL_HOLD_AT", &format!("backfill.after_read:{}", hold.display()));
    us.start_again().unwrap();
    eventually(PATIENCE, "the backfill is asked for", async || {
        let asked = us.command(&["backfill", "--to", "eu-west-1", "--detach"]).await?;
        Ok(asked.status.success())
    })
    .await
    .unwrap();
    // Each time something was read the daemon stands still, and what was read is made untrue.
    let held = |us: &Daemon| us.log().matches("held at backfill.after_read").count();
    for turn in 0.. {
        eventually(PATIENCE, "something was read, or all was", async || {
            Ok(held(&us) > turn || noted(&us).await.iter().all(|it| it["state"] == "done"))
        })
        .await
        .unwrap();
        if held(&us) <= turn {
            // The tables are named, and come in six chunks or more.
            assert!(turn > 6, "{turn}");
            break;
        }
        regions
            .us
            .execute(&format!(
                "begin; update wide set document = 'new {turn}' where id = 1; update wide set n = -{turn} where id = 1; commit;
                 update wide set n = -1 where id = 2; delete from wide where id = 2;
                 delete from wide where id = 3; insert into wide values (3, -{turn}, 'again');
                 update wide set n = n + 1 where id = 4;
                 insert into wide values (2, 0, 'third life'); delete from numbered where id = 10 + {turn};
                 update numbered set id = 100000 + {turn} where id = 20 + {turn};
                 update wide set id = 1000 + {turn} where id = 5 + {turn};
                 insert into numbered values (-1 - {turn}, 0);
                 insert into bare values ({turn}, 'new'), (1, 'twice or more');
                 delete from bare where ctid = (select min(ctid) from bare);
                 update bare set note = 'changed' where ctid = (select max(ctid) from bare)"
            ))
            .await
            .unwrap();
        std::fs::remove_file(&hold).unwrap();
    }
    regions.equal(PATIENCE, &[&us, &eu]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn held_back_let_go_on_and_ended_it_says_so() {
    let (regions, mut us, mut eu) = stage(20_000).await;
    allow(&regions, &us).await;
    let run = async |args: &[&str]| {
        let output = us.command(&[&["backfill"], args].concat()).await.unwrap();
        (output.status.code(), said(&output))
    };
    let state = async || noted(&us).await[0]["state"].as_str().unwrap_or_default().to_owned();
    // So slowly that it is far from its end whenever it is held back, however busy the machine is.
    let ask = ["--to", "eu-west-1", "--chunk-rows", "500", "--max-rows-per-second", "500", "--detach"];
    let (code, said) = run(&ask).await;
    assert_eq!(code, Some(0), "{said}");
    eventually(PATIENCE, "the region is joining", async || {
        let (code, page) = eu.http_get("/health/ready").await?;
        Ok(code == 503
            && page.contains("\"system_mode\":\"joining\"")
            && page.contains("tables still to fill"))
    })
    .await
    .unwrap();
    assert_eq!(run(&["pause"]).await.0, Some(0));
    assert_eq!(state().await, "paused");
    assert_eq!(run(&["pause"]).await.0, Some(1), "nothing is left to pause");
    // A chunk that was read when it was held back still comes. One a second would, were it not.
    let stands_still = async || {
        eventually(PATIENCE, "nothing is copied any more", async || {
            let before = copied(&noted(&us).await[0]);
            tokio::time::sleep(Duration::from_secs(2)).await;
            Ok(copied(&noted(&us).await[0]) == before)
        })
        .await
        .unwrap();
        assert!(copied(&noted(&us).await[0]) < 20_000, "it went on to its end");
    };
    stands_still().await;
    // From its first answer on, readers are kept away by a daemon that can ask nothing of the other region.
    regions.cut();
    eu.kill9().unwrap();
    eu.start_again().unwrap();
    eventually(PATIENCE, "it says again that tables are to be filled", async || {
        let (code, page) = eu.http_get("/health/ready").await?;
        assert_eq!(code, 503, "{page}");
        Ok(page.contains("tables still to fill"))
    })
    .await
    .unwrap();
    regions.heal();
    assert_eq!(run(&["resume"]).await.0, Some(0));
    // Held back once more, it is let go on by a second that asks for the same, and follows the first: as fast as it
    // goes, since the second asks for no limit.
    let id = noted(&us).await[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(run(&["pause", &id]).await.0, Some(0));
    stands_still().await;
    let (code, said) = run(&["--to", "eu-west-1"]).await;
    assert!(code == Some(0) && said.contains("goes on") && said.contains("has applied it"), "{said}");
    regions.equal(PATIENCE, &[&us, &eu]).await.unwrap();
    eventually(PATIENCE, "the region is ready", async || Ok(eu.http_get("/health/ready").await?.0 == 200))
        .await
        .unwrap();
    let (code, said) = run(&["--to", "eu-west-1"]).await;
    assert!(code == Some(0) && said.contains("--again"), "{said}");
    assert_eq!(noted(&us).await.len(), 1);
    let asked_by = regions.us.postgres.query_text("shop", "select asked_by from landfall.backfill").await;
    assert!(asked_by.unwrap().is_some_and(|by| by.contains('@')));

    assert_eq!(run(&[&ask[..], &["--again"]].concat()).await.0, Some(0));
    // A second that asks for the same changes what the one under way is held to, while it is.
    assert_eq!(run(&[&ask[..5], &["9", "--detach"]].concat()).await.0, Some(0));
    let held_to = "select max_rows_per_second::text from landfall.backfill where state <> 'done'";
    assert_eq!(regions.us.postgres.query_text("shop", held_to).await.unwrap().as_deref(), Some("9"));
    assert_eq!(run(&["cancel", "no-such"]).await.0, Some(2));
    assert_eq!(run(&["cancel"]).await.0, Some(0));
    assert_eq!(state().await, "canceled");
    // What it has emptied on its way, the one that was done before it does not hold any more.
    let (code, said) = run(&["--to", "eu-west-1", "--detach"]).await;
    assert!(code == Some(0) && said.contains("is asked for"), "{said}");
    assert_eq!(run(&["cancel"]).await.0, Some(0));

    // Rows do not come before the changes of a region that is behind.
    regions.cut();
    assert_eq!(run(&[&ask[..], &["--again", "--max-lag", "2s"]].concat()).await.0, Some(0));
    eventually(PATIENCE, "it waits for the region", async || {
        let waits_for = noted(&us).await[0]["waits_for"].as_str().unwrap_or_default().to_owned();
        Ok(waits_for.starts_with("eu-west-1 is ") && waits_for.ends_with("s behind; --max-lag is 2 s"))
    })
    .await
    .unwrap();
    assert_eq!(state().await, "running");
    regions.heal();
    let (code, said) = run(&["--to", "eu-west-1"]).await;
    assert!(code == Some(0) && said.contains("has applied it"), "{said}");
    regions.equal(PATIENCE, &[&us, &eu]).await.unwrap();
    for (args, says) in [
        (&["--to", "us-east-1"][..], "LF-CONFIG"),
        (&["--to", "eu-west-1", "--table", "public.none"], "names no table"),
    ] {
        let (code, said) = run(args).await;
        assert!(code == Some(2) && said.contains(says), "{said}");
    }
    // How long it would take is known by now.
    let plan =
        us.command(&["backfill", "--to", "eu-west-1", "--again", "--dry-run", "--json"]).await.unwrap();
    let plan: serde_json::Value = serde_json::from_slice(&plan.stdout).unwrap();
    assert!(plan["seconds"].as_f64().unwrap() > 0.0 && plan["pace"] == "earlier", "{plan}");
    // A region that nobody has heard of may be a mistake; and it is a daemon that copies.
    let (code, said) = run(&["--to", "eu-north-1", "--detach"]).await;
    assert!(code == Some(0) && said.contains("is that its name?"), "{said}");
    us.kill9().unwrap();
    eventually(PATIENCE, "nobody reads the slot", async || {
        let refused = us.command(&["backfill", "--to", "eu-west-1", "--again"]).await?;
        Ok(refused.status.code() == Some(2) && testbed::said(&refused).contains("[LF-NOT-SERVED]"))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_region_is_filled_while_the_other_is_written() {
    let (regions, us, eu) = stage(30_000).await;
    allow(&regions, &us).await;
    let writers = writers(&regions, 4, 30_000, seed()).await;
    // Nobody may have counted its rows yet: they are about as many as there are all the same.
    let plan = us.command(&["backfill", "--to", "eu-west-1", "--dry-run", "--json"]).await.unwrap();
    let plan: serde_json::Value = serde_json::from_slice(&plan.stdout).unwrap();
    let numbered =
        plan["tables"].as_array().unwrap().iter().find(|it| it["table"] == "public.numbered").unwrap();
    assert!((20_000..45_000).contains(&numbered["expected_rows"].as_u64().unwrap()), "{plan}");
    let filled = us.command(&["backfill", "--to", "eu-west-1"]).await.unwrap();
    println!("{}", said(&filled));
    assert!(filled.status.success(), "{}\n{}\n{}", said(&filled), us.log_tail(), eu.log_tail());
    writers.stop_after(100, PATIENCE).await.unwrap();
    regions.equal(PATIENCE, &[&us, &eu]).await.unwrap();
}

/// Its rows are read once, and appended once.
#[tokio::test(flavor = "multi_thread")]
async fn two_regions_are_filled_by_one() {
    let (regions, us, eu) = stage(5_000).await;
    allow(&regions, &us).await;
    let ap = Region::start("ap-south-1", 18, 0).await.unwrap();
    ap.execute(TABLES).await.unwrap();
    let receives = ap.config().link(&regions.us).to_toml();
    let other = ap.start_daemon(LANDFALL, &receives).await.unwrap();
    other.wait_heartbeat(PATIENCE).await.unwrap();
    let writers = writers(&regions, 2, 5_000, seed()).await;
    let filled = us.command(&["backfill", "--to", "eu-west-1", "--to", "ap-south-1"]).await.unwrap();
    let told = said(&filled);
    assert!(
        filled.status.success() && told.contains("ap-south-1") && told.contains("eu-west-1"),
        "{told}\n{}\n{}",
        us.log_tail(),
        other.log_tail()
    );
    writers.stop_after(100, PATIENCE).await.unwrap();
    let noted = noted(&us).await;
    let all = noted.len() == 1 && noted[0]["to"] == serde_json::json!(["ap-south-1", "eu-west-1"]);
    assert!(all, "{noted:?}");
    regions.equal(PATIENCE, &[&us, &eu]).await.unwrap();
    let regions = TwoRegions { us: regions.us, eu: ap };
    regions.equal(PATIENCE, &[&us, &other]).await.unwrap();
}

/// What a table costs besides its rows is felt where there are hundreds.
#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_small_tables_are_filled_one_after_the_other() {
    const TABLES: u32 = 300;
    let regions = TwoRegions::start(15, 18, 1).await.unwrap();
    let create = format!(
        "do $$ begin for at in 1..{TABLES} loop
           execute format('create table small_%s (id int4 primary key, note text)', at);
         end loop; end $$"
    );
    regions.execute_both(&create).await.unwrap();
    let fill = format!(
        "do $$ begin for at in 1..{TABLES} loop
           execute format('insert into small_%s select g, ''row '' || g from generate_series(1, %s) g', at, at % 20);
         end loop; end $$; grant select on all tables in schema public to public"
    );
    regions.us.execute(&fill).await.unwrap();
    let us = regions.us.start_daemon(LANDFALL, &regions.us_sends()).await.unwrap();
    let eu = regions.eu.start_daemon(LANDFALL, &regions.eu_receives()).await.unwrap();
    eu.wait_heartbeat(PATIENCE).await.unwrap();
    let began = Instant::now();
    let filled = us.command(&["backfill", "--to", "eu-west-1"]).await.unwrap();
    assert!(filled.status.success(), "{}\n{}\n{}", said(&filled), us.log_tail(), eu.log_tail());
    println!("{TABLES} tables in {:.1} s", began.elapsed().as_secs_f64());
    regions.equal(PATIENCE, &[&us, &eu]).await.unwrap();
    let began = Instant::now();
    let compared = eu.command(&["verify", "--list", "0"]).await.unwrap();
    assert!(compared.status.success(), "{}", said(&compared));
    println!("compared in {:.1} s", began.elapsed().as_secs_f64());
}

/// Two regions that hold the same `count` rows, as the stream brought them.
async fn stage_of_equals(count: u64) -> (TwoRegions, Daemon, Daemon) {
    let regions = TwoRegions::start(15, 18, 1).await.unwrap();
    regions.execute_both(TABLES).await.unwrap();
    let us = regions.us.start_daemon(LANDFALL, &regions.us_sends()).await.unwrap();
    let eu = regions.eu.start_daemon(LANDFALL, &regions.eu_receives()).await.unwrap();
    eu.wait_heartbeat(PATIENCE).await.unwrap();
    regions.us.execute(&rows(count)).await.unwrap();
    regions.equal(PATIENCE, &[&us, &eu]).await.unwrap();
    allow(&regions, &us).await;
    (regions, us, eu)
}

/// Waits until everything written so far is applied.
async fn arrived(regions: &TwoRegions) {
    let id = -i64::from(rand::random::<u32>()) * 2 - 1;
    regions.us.execute(&format!("insert into numbered values ({id}, 0, 'the last')")).await.unwrap();
    eventually(PATIENCE, "the last row arrives", async || {
        let there = format!("select count(*)::text from numbered where id = {id}");
        Ok(regions.eu.postgres.query_text("shop", &there).await?.as_deref() == Some("1"))
    })
    .await
    .unwrap();
}

/// Requires that a query says the same in both regions.
async fn same(regions: &TwoRegions, sql: &str) {
    let (us, eu) = (regions.us.postgres.query_text("shop", sql), regions.eu.postgres.query_text("shop", sql));
    let (us, eu) = (us.await.unwrap(), eu.await.unwrap());
    assert!(us.is_some() && us == eu, "{sql}\n{us:?}\n{eu:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_meet_a_condition_take_the_place_of_others_and_no_row_besides() {
    const COUNT: u64 = 12_000;
    let seed = seed();
    let (regions, mut us, mut eu) = stage_of_equals(COUNT).await;
    // Rows of either kind are wrong, or missing; some are only here. Nobody writes those whose id ends in 0 or 5.
    let wrong = "update numbered set note = 'wrong'; delete from numbered where id % 5 = 0;
        insert into numbered values (-5, 1, 'only here'), (-6, 1, 'only here')";
    regions.eu.execute(wrong).await.unwrap();
    let kept = "select count(*)::text from numbered where id % 2 <> 0 and id % 3 <> 1 and note = 'wrong'";
    let kept_before = regions.eu.postgres.query_text("shop", kept).await.unwrap();

    let pause = Duration::from_millis(2);
    let writers = Writers::start(&regions.us, 2, seed, pause, |writer, done, random| {
        let id = 6 * random.random_range(0..COUNT / 6) + [1, 4][random.random_range(0..2)];
        let fresh = 30 * (COUNT + 2 * done + writer) + 4;
        let written_by_none = "id % 5 <> 0";
        match random.random_range(0..6) {
            0 => format!("insert into numbered values ({fresh}, 0, 'fresh')"),
            1 => format!("delete from numbered where id = {id} and {written_by_none}"),
            2 => format!("update numbered set id = {fresh} where id = {id} and {written_by_none}"),
            _ => format!("update numbered set n = n + 1 where id = {id} and {written_by_none}"),
        }
    });
    let writers = writers.await.unwrap();

    let slowly = ["--detach", "--chunk-rows", "300", "--max-rows-per-second", "2000"];
    let ask = ["backfill", "--to", "eu-west-1", "--table", "public.numbered", "--where", "id % 2 = 0"];
    let mut random = StdRng::seed_from_u64(seed);
    for point in AT_SOURCE.iter().chain(AT_SINK) {
        eventually(PATIENCE, "a backfill has a good part of its way before it", async || {
            if let Some(now) = noted(&us).await.iter().find(|it| it["state"] != "done") {
                return Ok(copied(now) < 4_000);
            }
            // One that is done is asked for again without a word: other rows may meet its condition now.
            Ok(us.command(&[&ask[..], &slowly].concat()).await?.status.success())
        })
        .await
        .unwrap();
        let daemon = if AT_SINK.contains(point) { &mut eu } else { &mut us };
        daemon.die_at(point, random.random_range(1..=2), PATIENCE).await.unwrap();
        let joining = "select count(*)::text from landfall.joining";
        let joining = regions.eu.postgres.query_text("shop", joining).await.unwrap();
        assert_eq!(joining.as_deref(), Some("0"), "no table waits for its rows");
    }
    eventually(PATIENCE, "the last backfill is done", async || {
        Ok(noted(&us).await.iter().all(|it| it["state"] == "done"))
    })
    .await
    .unwrap();
    let whole = us.command(&ask).await.unwrap();
    assert!(whole.status.success() && said(&whole).contains("has applied it"), "{}", said(&whole));
    writers.stop_after(100, PATIENCE).await.unwrap();
    arrived(&regions).await;
    let logs = || format!("{}\n{}", us.log_tail(), eu.log_tail());
    // What meets the condition is as it is there; what is gone there is gone here.
    same(
        &regions,
        "select count(*) || ' ' || md5(string_agg(numbered::text, ',' order by id)) from numbered
          where id % 2 = 0 and id <> -6",
    )
    .await;
    // What does not is as it was, or as the stream made it.
    assert_eq!(regions.eu.postgres.query_text("shop", kept).await.unwrap(), kept_before, "{}", logs());
    let ours = "select count(*) filter (where note = 'only here') || ' ' ||
                       count(*) filter (where id > 0 and id % 10 = 5) from numbered";
    assert_eq!(regions.eu.postgres.query_text("shop", ours).await.unwrap().as_deref(), Some("2 0"));
    let expected = "select (count(*) > 1000)::text from numbered where id > 0 and id % 10 = 0";
    assert_eq!(regions.eu.postgres.query_text("shop", expected).await.unwrap().as_deref(), Some("true"));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_meet_a_condition_are_as_they_became_between_the_watermarks() {
    let (regions, mut us, eu) = stage_of_equals(2_000).await;
    regions.eu.execute("update wide set document = 'wrong'").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let hold = dir.path().join("hold");
    std::fs::write(&hold, "").unwrap();
    us.kill9().unwrap();
    us.set_env("LANDFALL_HOLD_AT", &format!("backfill.after_read:{}", hold.display()));
    us.start_again().unwrap();
    // What a session finds asked for when it begins it knows from there.
    arrived(&regions).await;
    let ask = ["backfill", "--to", "eu-west-1", "--table", "public.wide", "--where", "id not in (7, 8)"];
    eventually(PATIENCE, "the backfill is asked for", async || {
        let asked = us.command(&[&ask[..], &["--detach", "--chunk-rows", "6"]].concat()).await?;
        Ok(asked.status.success())
    })
    .await
    .unwrap();
    let held = |us: &Daemon| us.log().matches("held at backfill.after_read").count();
    for turn in 0.. {
        eventually(PATIENCE, "something was read, or all was", async || {
            Ok(held(&us) > turn || noted(&us).await.iter().all(|it| it["state"] == "done"))
        })
        .await
        .unwrap();
        if held(&us) <= turn {
            assert!(turn > 3, "{turn}");
            break;
        }
        // A row that takes another key and leaves its document unmentioned: here it takes a wrong one along, to a place
        // that may have been passed.
        regions
            .us
            .execute(&format!(
                "update wide set document = 'new {turn}' where id = 1; update wide set n = -{turn} where id = 1;
                 update wide set n = -1 where id = 2; delete from wide where id = 2;
                 insert into wide values (2, {turn}, 'another life'); update wide set n = n + 1 where id = 4;
                 delete from wide where id = 10 + {turn} and {turn} < 3;
                 update wide set id = -{turn} where id = 20 - {turn} and {turn} in (1, 3, 4);
                 update wide set n = n + 1 where id in (7, 8)"
            ))
            .await
            .unwrap();
        std::fs::remove_file(&hold).unwrap();
    }
    arrived(&regions).await;
    let all = "select count(*) || ' ' || string_agg(id || ' ' || n || ' ' || left(document, 12) || ' ' ||
                      md5(wide::text), ',' order by id) from wide where id not in (7, 8)";
    same(&regions, all).await;
    let kept = "select string_agg(id || document, ' ' order by id) from wide where document = 'wrong'";
    let kept = regions.eu.postgres.query_text("shop", kept).await.unwrap();
    assert_eq!(kept.as_deref(), Some("7wrong 8wrong"), "{}", eu.log_tail());
}

/// Each row takes ten milliseconds to read, so fifty of them half a second: a quarter of two.
#[tokio::test(flavor = "multi_thread")]
async fn it_reads_for_the_share_of_the_time_that_it_is_given() {
    let (regions, us, eu) = stage_of_equals(400).await;
    let met = |rest: &str| {
        format!("create function met(int8) returns bool language plpgsql as 'begin {rest} return true; end'")
    };
    regions.us.execute(&met("perform pg_sleep(0.01);")).await.unwrap();
    regions.eu.execute(&met("")).await.unwrap();
    let ask = ["--table", "public.numbered", "--where", "met(id)", "--chunk-rows", "50"];
    let ask = [&["backfill", "--to", "eu-west-1", "--max-source-load", "0.25"], &ask[..]].concat();
    let began = Instant::now();
    let filled = us.command(&ask).await.unwrap();
    let took = began.elapsed();
    assert!(filled.status.success(), "{}\n{}\n{}", said(&filled), us.log_tail(), eu.log_tail());
    // Behind the last there is nothing to wait for.
    assert!(took >= Duration::from_secs(7 * 2), "{took:?}\n{}", said(&filled));
}

/// With no limit of the server's: eight times 32 MB are taken for one.
#[tokio::test(flavor = "multi_thread")]
async fn it_waits_while_the_slot_keeps_too_much() {
    let (regions, us, eu) = stage(5_000).await;
    allow(&regions, &us).await;
    regions.us.postgres.set("max_wal_size", "32MB").await.unwrap();
    let holder = regions.us.connect().await.unwrap();
    holder.batch_execute("begin; update numbered set n = n + 1 where id = 1").await.unwrap();
    for _ in 0..14 {
        let fills = "select pg_logical_emit_message(false, 'test', 'a segment'), pg_switch_wal()";
        regions.us.execute(fills).await.unwrap();
    }
    let asked = us.command(&["backfill", "--to", "eu-west-1", "--detach"]).await.unwrap();
    assert!(asked.status.success(), "{}", said(&asked));
    let waits = || async { noted(&us).await[0]["waits_for"].as_str().unwrap_or_default().to_owned() };
    eventually(PATIENCE, "it waits for the slot", async || {
        Ok(waits().await.contains("max_slot_wal_keep_size"))
    })
    .await
    .unwrap();
    assert_eq!(copied(&noted(&us).await[0]), 0);
    holder.batch_execute("commit").await.unwrap();
    eventually(PATIENCE, "it is done", async || Ok(noted(&us).await[0]["state"] == "done")).await.unwrap();
    regions.equal(PATIENCE, &[&us, &eu]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_that_is_none_is_refused_and_nothing_is_asked_for() {
    let (regions, us, eu) = stage_of_equals(2_000).await;
    let ask = async |args: &[&str]| {
        let output = us.command(&[&["backfill", "--to", "eu-west-1"], args].concat()).await.unwrap();
        (output.status.code(), said(&output))
    };
    let table = ["--table", "public.numbered"];
    for (condition, says) in [
        ("true) or (true", "syntax error"),
        ("true --", "syntax error"),
        ("true limit 1", "syntax error"),
        ("true; delete from numbered", "multiple commands"),
        ("true union select 1", "syntax error"),
        ("", "syntax error"),
        ("no_such > 1", "no_such"),
        ("n", "boolean"),
        ("n = $1", "parameter"),
        ("count(*) > 1", "aggregate"),
        ("n = 1 / 0", "division by zero"),
    ] {
        for how in [&[][..], &["--dry-run"]] {
            let (code, said) = ask(&[&table[..], &["--where", condition], how].concat()).await;
            let all = [says, "LF-CONFIG", "public.numbered", "nothing was asked for"];
            assert!(code == Some(2) && all.iter().all(|it| said.contains(it)), "{condition}: {said}");
        }
    }
    let condition = ["--where", "n > 0"];
    for (tables, says) in [
        (&[][..], "LF-CONFIG"),
        (&["--table", "public.numbered", "--table", "public.named"], "LF-CONFIG"),
        (&["--table", "public.n*"], "LF-CONFIG"),
        (&["--table", "public.bare"], "LF-TABLE"),
    ] {
        let (code, said) = ask(&[tables, &condition].concat()).await;
        assert!(code == Some(2) && said.contains(says), "{tables:?}: {said}");
    }
    assert!(noted(&us).await.is_empty(), "nothing was asked for");

    let (code, said) = ask(&[&table[..], &["--where", "id <= 100", "--dry-run"]].concat()).await;
    let all = ["where id <= 100", "no other row is touched"];
    assert!(code == Some(0) && all.iter().all(|it| said.contains(it)), "{said}");
    assert!(noted(&us).await.is_empty(), "nothing was asked for");

    // One that is done is never the same as another; one that is not is, where its condition is.
    let few = [&table[..], &["--where", "id <= 100"]].concat();
    for turn in 1..=2 {
        let (code, said) = ask(&few).await;
        assert!(code == Some(0) && said.contains("where id <= 100"), "{said}");
        let noted = noted(&us).await;
        assert!(noted.len() == turn && noted.iter().all(|it| copied(it) == 100), "{noted:?}");
        assert_eq!(noted[0]["tables"][0]["condition"], "id <= 100");
    }
    let run = async |args: &[&str]| us.command(&[&["backfill"], args].concat()).await.unwrap();
    let slowly = ["--detach", "--chunk-rows", "10", "--max-rows-per-second", "1"];
    assert_eq!(ask(&[&few[..], &slowly].concat()).await.0, Some(0));
    assert!(testbed::said(&run(&["status"]).await).contains("where id <= 100"));
    let (_, said) = ask(&[&few[..], &slowly].concat()).await;
    assert!(said.contains("goes on") && noted(&us).await.len() == 3, "{said}");
    for other in [&[&table[..], &["--where", "id <= 101"]].concat()[..], &table] {
        let (_, said) = ask(&[other, &slowly].concat()).await;
        assert!(!said.contains("goes on") && !said.contains("has copied"), "{said}");
    }
    let all = noted(&us).await;
    assert_eq!(all.len(), 5);
    // Which one is meant is asked, where it is not said; and who is behind another is told of it.
    let refused = run(&["cancel"]).await;
    let ids: Vec<&str> = all[..3].iter().map(|it| it["id"].as_str().unwrap()).collect();
    let says = testbed::said(&refused);
    assert!(refused.status.code() == Some(2) && ids.iter().all(|id| says.contains(id)), "{says}");
    let mut following = us.start_command(&["backfill", "--to", "eu-west-1", table[0], table[1]]).unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let waits = format!("waits: backfill {}", ids[2]);
    let told = async { while !lines.next_line().await.unwrap().expect("it says so").contains(&waits) {} };
    tokio::time::timeout(PATIENCE, told).await.unwrap();
    std::process::Command::new("kill").args(["-INT", &following.id().unwrap().to_string()]).status().unwrap();
    let says = testbed::said(&following.wait_with_output().await.unwrap());
    assert!(says.contains("goes on with backfill"), "{says}");
    for id in ids {
        assert!(run(&["cancel", id]).await.status.success());
    }
    // One that fails on a row copies none, says why, and holds up whatever is behind it until it is ended.
    assert_eq!(ask(&[&table[..], &["--where", "1 / (n - 100) < 2", "--detach"]].concat()).await.0, Some(0));
    eventually(PATIENCE, "it says what it waits for", async || {
        let noted = noted(&us).await;
        let waits_for = noted[0]["waits_for"].as_str().unwrap_or_default();
        Ok(copied(&noted[0]) == 0 && waits_for.contains("division by zero"))
    })
    .await
    .unwrap();
    assert!(run(&["cancel"]).await.status.success());
    // The one that would empty the table did not begin.
    regions.equal(PATIENCE, &[&us, &eu]).await.unwrap();
}
