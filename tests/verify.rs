//! Proves that two regions are compared while they are written to: what differs is found, each row of it, and what
//! does not is not, whatever changes between the reading there and the looking here.

use std::time::{Duration, Instant};

use rand::Rng;
use serde_json::Value;
use testbed::{
    Daemon, Region, TwoRegions, eventually, said,
    writers::{Writers, seed},
};

const LANDFALL: &str = env!("CARGO_BIN_EXE_landfall");
const PATIENCE: Duration = Duration::from_secs(180);

/// Every way a table can be told apart.
const TABLES: &str = "
    create table numbered (id int8 primary key, n int4 not null, note text, at timestamptz default now());
    create table named (a text, b uuid, n float8, primary key (b, a));
    create table bare (n int4, note text);
    alter table bare replica identity full;
    create table empty (id int4 primary key)";

/// Two regions that hold the same `count` rows, as the stream brought them.
async fn stage(count: u64) -> (TwoRegions, Daemon, Daemon) {
    let regions = TwoRegions::start(15, 18, 1).await.unwrap();
    regions.execute_both(TABLES).await.unwrap();
    let us = regions.us.start_daemon(LANDFALL, &regions.us_sends()).await.unwrap();
    let eu = regions.eu.start_daemon(LANDFALL, &regions.eu_receives()).await.unwrap();
    eu.wait_heartbeat(PATIENCE).await.unwrap();
    let rows = format!(
        "insert into numbered select g, g, case when g % 7 > 0 then E'tab\\tline\\n ' || g end
           from generate_series(1, {count}) g;
         insert into named select 'Ä' || g % 100, gen_random_uuid(), g / 3.0 from generate_series(1, {count} / 10) g;
         insert into bare select g % 10, 'twice or more' from generate_series(1, 200) g"
    );
    regions.us.execute(&rows).await.unwrap();
    arrived(&regions).await;
    (regions, us, eu)
}

/// Waits until everything written so far is there.
async fn arrived(regions: &TwoRegions) {
    let id = -i64::from(rand::random::<u32>());
    regions.us.execute(&format!("insert into numbered values ({id}, 0, 'the last')")).await.unwrap();
    eventually(PATIENCE, "the last row arrives", async || {
        let there = format!("select count(*)::text from numbered where id = {id}");
        Ok(regions.eu.postgres.query_text("shop", &there).await?.as_deref() == Some("1"))
    })
    .await
    .unwrap();
}

/// Waits until a daemon that was started again applies its link.
async fn link_runs(daemon: &Daemon) {
    let running = r#"replication_stream_state{state="running",role="link"}"#;
    eventually(PATIENCE, "the link runs", async || Ok(daemon.metric(running).await? == Some(1.0)))
        .await
        .unwrap();
}

/// Allows the source's role to read what it is asked about, with the SQL that its refusal names.
async fn allow(regions: &TwoRegions, eu: &Daemon) {
    let refused = eu.command(&["verify", "--json"]).await.unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    let found: Value = serde_json::from_slice(&refused.stdout).unwrap();
    for table in found["tables"].as_array().unwrap() {
        let why = table["why"].as_str().unwrap();
        let grants = why.split("as a superuser: ").nth(1).and_then(|tail| tail.split(" then ").next());
        regions.us.execute(grants.unwrap_or_else(|| panic!("no SQL in {why}"))).await.unwrap();
    }
}

/// What `landfall verify` finds, and its exit code.
async fn verify(daemon: &Daemon, args: &[&str]) -> (Option<i32>, Value) {
    let output = daemon.command(&[&["verify", "--json"], args].concat()).await.unwrap();
    let last = String::from_utf8_lossy(&output.stdout).lines().last().unwrap_or_default().to_owned();
    let found = serde_json::from_str(&last).unwrap_or_else(|error| panic!("{error}: {}", said(&output)));
    (output.status.code(), found)
}

/// How each row found differs, `table: key difference`, in order.
fn findings(found: &Value) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for table in found["tables"].as_array().unwrap() {
        for finding in table["findings"].as_array().unwrap() {
            let key: Vec<&str> =
                finding["key"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
            let difference = finding["difference"].as_str().unwrap();
            all.push(format!("{}: {} {difference}", table["table"].as_str().unwrap(), key.join("/")));
        }
    }
    all.sort();
    all
}

/// Writes some five hundred transactions a second to even ids.
async fn writers(region: &Region, rows: u64) -> Writers {
    const COUNT: u64 = 3;
    let pause = Duration::from_millis(2);
    let start = Writers::start(region, COUNT, seed(), pause, move |writer, done, random| {
        // Ids of this writer's own, so that none deadlocks.
        let mine = |at: u64| 2 * (at * COUNT + writer);
        let (id, fresh) = (mine(random.random_range(1..rows / 2 / COUNT)), mine(rows + done));
        match done % 100 {
            // A row that is hardly ever still.
            at if at % 4 == 0 => format!("update numbered set n = n + 1 where id = {}", mine(1)),
            at if at % 4 == 1 => format!("insert into numbered values ({fresh}, 0, 'fresh')"),
            2 => "insert into bare values (3, 'twice or more')".to_owned(),
            at if at % 4 == 2 => format!("delete from numbered where id = {id} and id > {}", mine(1)),
            7 if writer == 0 => format!("update named set n = n + 1 where a = 'Ä{}'", id % 100),
            _ => format!("update numbered set n = n + 1, at = now() where id = {id}"),
        }
    });
    start.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_rows_made_wrong_are_found_and_no_other_while_it_is_written() {
    let (regions, us, eu) = stage(40_000).await;
    allow(&regions, &eu).await;
    let writers = writers(&regions.us, 40_000).await;
    let began = Instant::now();
    let (code, found) = verify(&eu, &[]).await;
    assert_eq!(findings(&found), [""; 0], "{found}\n{}", us.log_tail());
    assert_eq!(code, Some(0), "{found}\n{}\n{}", us.log_tail(), eu.log_tail());
    assert_eq!(found["tables"].as_array().unwrap().len(), 4, "{found}");
    assert!(eu.metric("replication_verify_ranges_total").await.unwrap().unwrap() > 20.0);
    let given_up = eu.metric("replication_verify_given_up_total").await.unwrap();
    assert_eq!(given_up, Some(4.0), "each table once, before it might be read");
    assert!(eu.metric("replication_verify_last_clean_timestamp_seconds").await.unwrap().is_some());

    // Rows that nobody writes to, so that no change meets them and halts the link.
    let wrong = "
        update numbered set note = 'wrong' where id % 800 = 1;
        delete from numbered where id % 1600 = 3;
        insert into numbered select -1000000 - g, 0, 'nobody''s' from generate_series(1, 15) g;
        update named set n = -1 where b = any(array(select b from named where right(a, 1) ~ '[13579]' order by b limit 10))";
    regions.eu.execute(wrong).await.unwrap();
    let mut expected: Vec<String> =
        (0..50).map(|at| format!("public.numbered: {} different", at * 800 + 1)).collect();
    expected.extend((0..25).map(|at| format!("public.numbered: {} missing", at * 1600 + 3)));
    expected.extend((1..=15).map(|at| format!("public.numbered: {} extra", -1_000_000 - at)));
    let (code, found) = verify(&eu, &["--range-rows", "500"]).await;
    let (named, numbered): (Vec<_>, Vec<_>) =
        findings(&found).into_iter().partition(|it| it.starts_with("public.named"));
    expected.sort();
    assert_eq!((numbered, code), (expected, Some(1)), "{}", eu.log_tail());
    assert_eq!(named.len(), 10, "{named:?}");
    assert!(named.iter().all(|it| it.ends_with("different")), "{named:?}");

    assert!(!found.to_string().contains("wrong"), "values are shown to nobody who did not ask: {found}");
    // One table, with its values; a table that is equal is.
    let (code, found) = verify(&eu, &["--table", "public.numbered", "--show-values", "--list", "5"]).await;
    assert_eq!((code, found["tables"][0]["differences"].as_u64()), (Some(1), Some(90)));
    assert_eq!(findings(&found).len(), 5);
    let shown = eu.command(&["verify", "--table", "public.numbered", "--show-values"]).await.unwrap();
    let shown = said(&shown);
    assert!(shown.contains("wrong") && !shown.contains("more (--list"), "{shown}");
    assert_eq!(verify(&eu, &["--table", "public.em*", "--table", "public.bare"]).await.0, Some(0));

    let written = writers.stop_after(500, PATIENCE).await.unwrap();
    assert_eq!(written.refused, [""; 0]);
    println!("{:.0} transactions a second", written.statements as f64 / began.elapsed().as_secs_f64());

    // Rows that no key names are counted.
    arrived(&regions).await;
    regions.eu.execute("insert into bare values (1, 'too many')").await.unwrap();
    let (code, found) = verify(&eu, &["--table", "public.bare"]).await;
    assert_eq!(code, Some(1), "{found}");
    assert!(found["tables"][0]["findings"][0]["here"].as_str().unwrap().ends_with(" rows"), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_is_put_right_while_it_is_written() {
    let (regions, us, eu) = stage(20_000).await;
    allow(&regions, &eu).await;
    let writers = writers(&regions.us, 20_000).await;
    let wrong = "
        update numbered set note = 'wrong' where id % 200 = 1;
        delete from numbered where id % 500 = 3;
        insert into numbered select -1000000 - g, 0, 'nobody''s' from generate_series(1, 15) g;
        delete from named where right(a, 1) ~ '[135]' and n < 50";
    regions.eu.execute(wrong).await.unwrap();
    let repair = async |args: &[&str]| {
        let output = eu.command(&[&["repair", "--list", "1"], args].concat()).await.unwrap();
        (output.status.code(), said(&output))
    };
    let (code, said) = repair(&[]).await;
    assert!(code == Some(1) && said.contains("nothing was changed"), "{said}");
    let there = "select count(*)::text from numbered where note = 'wrong'";
    assert_eq!(regions.eu.postgres.query_text("shop", there).await.unwrap().as_deref(), Some("100"));
    let (code, said) = repair(&["--execute"]).await;
    assert!(
        code == Some(0) && said.contains("rows were put right"),
        "{said}\n{}\n{}",
        us.log_tail(),
        eu.log_tail()
    );
    assert!(eu.log().contains("a row is mended"), "each is told in the log");
    assert_eq!(writers.stop_after(500, PATIENCE).await.unwrap().refused, [""; 0]);
    arrived(&regions).await;
    regions.equal(PATIENCE, &[&us, &eu]).await.unwrap();

    // One that is missing, and one that took its place; and a table whose rows nothing tells apart.
    regions.execute_both("create unique index on numbered (n) where n > 1000000").await.unwrap();
    regions.us.execute("insert into numbered values (999999, 2000000, 'ours')").await.unwrap();
    arrived(&regions).await;
    let wrong = "delete from numbered where id = 999999; insert into numbered values (-7, 2000000, 'mine');
         insert into bare values (1, 'too many')";
    regions.eu.execute(wrong).await.unwrap();
    let (code, said) = repair(&["--execute", "--table", "public.bare"]).await;
    assert!(code == Some(1) && said.contains("public.bare"), "{said}");
    let (code, said) = repair(&["--execute", "--table", "public.numbered"]).await;
    assert!(code == Some(0) && said.contains("2 rows were put right"), "{said}");
    arrived(&regions).await;

    // A row that is there twice, where the table here has lost its key.
    let twice = "alter table numbered drop constraint numbered_pkey;
         insert into numbered select * from numbered where id = 8;
         insert into numbered select id, n + 1, note from numbered where id = 10";
    regions.eu.execute(twice).await.unwrap();
    let (code, found) = verify(&eu, &["--table", "public.numbered"]).await;
    let expected = ["public.numbered: 10 different", "public.numbered: 8 different"];
    assert_eq!((findings(&found), code), (expected.map(str::to_owned).to_vec(), Some(1)), "{found}");
    let (code, said) = repair(&["--execute", "--table", "public.numbered"]).await;
    assert!(code == Some(0) && said.contains("2 rows were put right"), "{said}\n{}", eu.log_tail());
    assert_eq!(verify(&eu, &["--table", "public.numbered"]).await.0, Some(0));
}

/// Of a table that differs so much comparing ends where ten thousand rows do. Repairing does not, and what was noted and
/// not yet put right when the daemon died is put right by the next.
#[tokio::test(flavor = "multi_thread")]
async fn however_much_differs_a_repair_that_ends_well_has_seen_all_of_it() {
    let (regions, us, mut eu) = stage(24_000).await;
    allow(&regions, &eu).await;
    let wrong = "update numbered set note = 'wrong' where id > 0 and id % 2 = 0;
        insert into numbered select -5000000000 - g, 0, 'nobody''s' from generate_series(1, 1000) g";
    regions.eu.execute(wrong).await.unwrap();
    let (code, found) = verify(&eu, &["--table", "public.numbered", "--list", "0"]).await;
    let table = &found["tables"][0];
    assert!(
        code == Some(1) && table["why"].as_str().unwrap().contains("the rest was not compared"),
        "{found}"
    );
    assert!((10_000..11_000).contains(&table["differences"].as_u64().unwrap()), "{found}");

    eu.kill9().unwrap();
    eu.set_env("LANDFALL_CRASH_AT", "verify.before_mended:2");
    eu.start_again().unwrap();
    link_runs(&eu).await;
    let asked =
        eu.start_command(&["repair", "--execute", "--table", "public.numbered", "--list", "1"]).unwrap();
    assert!(eu.wait_exit(PATIENCE).await.is_some(), "it did not die\n{}", eu.log_tail());
    eu.remove_env("LANDFALL_CRASH_AT");
    eu.start_again().unwrap();
    let output = asked.wait_with_output().await.unwrap();
    let said = said(&output);
    assert!(
        output.status.code() == Some(0) && said.contains("13000 rows were put right"),
        "{said}\n{}\n{}",
        us.log_tail(),
        eu.log_tail()
    );
    let audit = "select count(*) || ' ' || count(distinct key) || ' ' || bool_and(mended)
                   from landfall.verification_finding f join landfall.verification v on v.id = f.verification
                  where mend and asked_by like '%@%'";
    let audit = regions.eu.postgres.query_text("shop", audit).await.unwrap();
    assert_eq!(audit.as_deref(), Some("13000 13000 true"), "each row is noted once, and who asked");
    arrived(&regions).await;
    regions.equal(PATIENCE, &[&us, &eu]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_not_shown_yet_where_it_was_written_is_put_in_nobodys_place() {
    let (regions, us, eu) = stage(100).await;
    allow(&regions, &eu).await;
    let note = "select note from numbered where id = 7";
    let newest = async |region: &Region| {
        Ok(region.postgres.query_text("shop", note).await?.as_deref() == Some("newer"))
    };
    // A commit that waits for a standby stands in the log, and nobody is shown it.
    regions.us.postgres.set("synchronous_standby_names", "nobody").await.unwrap();
    let writer = regions.us.connect().await.unwrap();
    let pid: i32 = writer.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    let signal = |signal: &str| {
        let sent = std::process::Command::new("kill").args([signal, &pid.to_string()]).status();
        assert!(sent.unwrap().success());
    };
    // From when the checkpointer has read that, which nobody is told.
    let spare = regions.us.connect().await.unwrap();
    let commits = tokio::spawn(async move {
        let commit = "set synchronous_commit = on; select pg_logical_emit_message(true, '', '')";
        while spare.batch_execute(commit).await.is_ok() {}
    });
    eventually(PATIENCE, "commits wait", async || {
        let waiting = "select count(*)::text from pg_stat_activity where wait_event = 'SyncRep'";
        Ok(regions.us.postgres.query_text("shop", waiting).await?.as_deref() != Some("0"))
    })
    .await
    .unwrap();
    commits.abort();
    let write = "set synchronous_commit = on; update numbered set note = 'newer' where id = 7";
    let written = tokio::spawn(async move { writer.batch_execute(write).await });
    eventually(PATIENCE, "the newer row is in the other region", async || newest(&regions.eu).await)
        .await
        .unwrap();
    // Its server has what it waits for, and does not come to show it.
    signal("-STOP");
    regions.us.postgres.set("synchronous_standby_names", "").await.unwrap();
    assert!(!newest(&regions.us).await.unwrap(), "it is shown");

    let mut repair = eu.start_command(&["repair", "--execute", "--table", "public.numbered"]).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(10), repair.wait()).await;
    let stays = newest(&regions.eu).await.unwrap();
    assert!(stays, "an older row took its place\n{}\n{}", us.log_tail(), eu.log_tail());
    assert!(ended.is_err(), "it was answered from rows that are not all there\n{}", eu.log_tail());
    signal("-CONT");
    written.await.unwrap().unwrap();
    let ended = tokio::time::timeout(PATIENCE, repair.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(ended.status.code(), Some(0), "{}", said(&ended));
    assert!(newest(&regions.eu).await.unwrap(), "an older row took its place");
    regions.equal(PATIENCE, &[&us, &eu]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_is_not_told_what_its_own_rows_are() {
    let regions = TwoRegions::start_both(15, 18).await.unwrap();
    let table = "(id int8 primary key, note text)";
    regions.execute_both(&format!("create table ours {table}; create table theirs {table}")).await.unwrap();
    // Both publish both tables: only the origin tells what was written here.
    let us = regions.us.config().source(&["public.*"]).link(&regions.eu).to_toml();
    let eu = regions.eu.config().source(&["public.*"]).link(&regions.us).to_toml();
    let mut us = regions.us.start_daemon(LANDFALL, &us).await.unwrap();
    let mut eu = regions.eu.start_daemon(LANDFALL, &eu).await.unwrap();
    for daemon in [&us, &eu] {
        daemon.wait_heartbeat(PATIENCE).await.unwrap();
    }
    regions
        .us
        .execute("insert into ours values (1, 'ours'); grant select on ours, theirs to public")
        .await
        .unwrap();
    regions.eu.execute("insert into theirs values (1, 'theirs')").await.unwrap();
    eventually(PATIENCE, "both have arrived", async || {
        let there = regions.eu.postgres.query_text("shop", "select count(*)::text from ours").await?;
        let here = regions.us.postgres.query_text("shop", "select count(*)::text from theirs").await?;
        Ok(there.as_deref() == Some("1") && here.as_deref() == Some("1"))
    })
    .await
    .unwrap();
    // Where somebody writes what has come, neither region tells of that table, until one is said to be its home.
    regions.eu.execute("insert into ours values (2, 'a stray')").await.unwrap();
    eventually(PATIENCE, "it goes back", async || {
        let there = regions.us.postgres.query_text("shop", "select count(*)::text from ours").await?;
        Ok(there.as_deref() == Some("2"))
    })
    .await
    .unwrap();
    let (code, found) = verify(&eu, &[]).await;
    assert!(code == Some(2) && found["tables"][0]["table"] == "public.ours", "{found}");
    let given_up = eu.metric("replication_verify_given_up_total").await.unwrap();
    let clean = eu.metric("replication_verify_last_clean_timestamp_seconds").await.unwrap();
    assert_eq!((given_up, clean), (Some(1.0), None));
    let why = found["tables"][0]["why"].as_str().unwrap();
    let forget = why.split_once("under way: ").and_then(|(_, tail)| tail.strip_suffix(')')).expect(why);
    for daemon in [&mut us, &mut eu] {
        daemon.kill9().unwrap();
    }
    regions.us.execute(forget).await.unwrap();
    for daemon in [&mut us, &mut eu] {
        daemon.start_again().unwrap();
        link_runs(daemon).await;
    }
    let (code, found) = verify(&eu, &[]).await;
    assert!(code == Some(0) && found["tables"][0]["table"] == "public.ours", "{found}");
    // What us has of eu's rows is old: its link halts, and eu goes on writing.
    regions.us.execute("alter table theirs add check (note = 'theirs')").await.unwrap();
    regions
        .eu
        .execute("update theirs set note = 'newer'; insert into theirs values (2, 'newest')")
        .await
        .unwrap();
    eventually(PATIENCE, "the link to us halts", async || {
        Ok(us.http_get("/status").await?.1.contains("LF-ROW-REJECTED"))
    })
    .await
    .unwrap();
    let repaired = eu.command(&["repair", "--execute"]).await.unwrap();
    let said = said(&repaired);
    assert!(
        repaired.status.success() && said.contains("public.ours") && !said.contains("public.theirs"),
        "{said}"
    );
    let (code, found) = verify(&eu, &["--table", "public.theirs"]).await;
    assert!(code == Some(2) && found["tables"][0]["state"] == "unknown", "{found}");
    // Nor is it filled with them, unless somebody says so: they are older here.
    let plan = us.command(&["backfill", "--to", "eu-west-1", "--dry-run", "--json"]).await.unwrap();
    let plan: Value = serde_json::from_slice(&plan.stdout).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(plan["left_out"], serde_json::json!(["public.theirs"]), "{plan}");
    let filled = us.command(&["backfill", "--to", "eu-west-1"]).await.unwrap();
    let said = testbed::said(&filled);
    assert!(filled.status.success() && said.contains("left out: public.theirs"), "{said}");
    let named = ["backfill", "--to", "eu-west-1", "--table", "public.theirs", "--dry-run"];
    let named = testbed::said(&us.command(&named).await.unwrap());
    assert!(named.contains("1 tables"), "{named}");
    let rows = "select string_agg(note, ' ' order by id) from theirs";
    assert_eq!(regions.eu.postgres.query_text("shop", rows).await.unwrap().as_deref(), Some("newer newest"));
    // Where that is every table there is, there is nothing to do.
    regions.execute_both("drop table ours").await.unwrap();
    eventually(PATIENCE, "nothing is filled with what is older here", async || {
        let none = us.command(&["backfill", "--to", "eu-west-1"]).await?;
        let said = testbed::said(&none);
        Ok(none.status.code() == Some(2) && said.contains("public.theirs comes here from another region"))
    })
    .await
    .unwrap();
    // Where their home has moved, and the link that brought them is gone, the other region is filled with them, and begins
    // there.
    us.kill9().unwrap();
    us.set_config(&regions.us_sends()).unwrap();
    us.start_again().unwrap();
    let topic = "landfall.us-east-1.main";
    let end = regions.us.kafka.end_offset(topic).await.unwrap();
    regions.us.kafka.delete_records(topic, end).await.unwrap();
    regions.eu.execute("delete from landfall.progress where link = 'us-east-1'").await.unwrap();
    eu.kill9().unwrap();
    eu.start_again().unwrap();
    eventually(PATIENCE, "eu has nothing to begin with", async || {
        Ok(eu.http_get("/status").await?.1.contains("LF-GENESIS-GONE"))
    })
    .await
    .unwrap();
    let filled = us.command(&["backfill", "--to", "eu-west-1"]).await.unwrap();
    assert!(filled.status.success(), "{}\n{}\n{}", testbed::said(&filled), us.log_tail(), eu.log_tail());
    assert_eq!(regions.eu.postgres.query_text("shop", rows).await.unwrap().as_deref(), Some("theirs"));
}

#[tokio::test(flavor = "multi_thread")]
async fn unasked_it_is_compared_when_it_is_time_and_what_differs_is_counted() {
    let (regions, _us, mut eu) = stage(1_000).await;
    allow(&regions, &eu).await;
    regions.eu.execute("update numbered set note = 'wrong' where id in (7, 77)").await.unwrap();
    // Those that were asked for lie longer back than the interval.
    regions
        .eu
        .execute("update landfall.verification set requested = requested - interval '1 hour'")
        .await
        .unwrap();
    assert_eq!(eu.metric("replication_verify_interval_seconds").await.unwrap(), None);
    eu.kill9().unwrap();
    eu.set_env("LANDFALL__LINK__0__VERIFY_INTERVAL", "1m");
    eu.start_again().unwrap();
    eventually(PATIENCE, "two rows differ", async || {
        Ok(eu.metric("replication_verify_differences_total").await? == Some(2.0))
    })
    .await
    .unwrap();
    assert_eq!(eu.metric("replication_verify_interval_seconds").await.unwrap(), Some(60.0));
    assert_eq!(eu.metric("replication_verify_last_clean_timestamp_seconds").await.unwrap(), None);
    let repaired = eu.command(&["repair", "--execute"]).await.unwrap();
    assert!(repaired.status.success(), "{}", said(&repaired));
    // In the next minute, all is equal.
    eventually(PATIENCE, "everything is equal", async || {
        Ok(eu.metric("replication_verify_last_clean_timestamp_seconds").await?.is_some())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_interrupted_ends_and_holds_nothing() {
    let (regions, us, eu) = stage(20_000).await;
    allow(&regions, &eu).await;
    regions.eu.execute("update numbered set note = 'wrong' where id % 2 = 1").await.unwrap();
    let slow = ["repair", "--execute", "--max-source-load", "0.02", "--range-rows", "50"];
    let mut asked = eu.start_command(&slow).unwrap();
    let noted = "select coalesce(max(questions), 0)::text from landfall.verification where mend";
    eventually(PATIENCE, "it is under way", async || {
        let questions = regions.eu.postgres.query_text("shop", noted).await?;
        Ok(questions.is_some_and(|questions| questions.parse::<u32>().unwrap() > 5))
    })
    .await
    .unwrap();
    let pid = i32::try_from(asked.id().unwrap()).unwrap();
    std::process::Command::new("kill").args(["-TERM", &pid.to_string()]).status().unwrap();
    assert_eq!(asked.wait().await.unwrap().code(), Some(2));
    let state = "select state from landfall.verification where mend";
    assert_eq!(regions.eu.postgres.query_text("shop", state).await.unwrap().as_deref(), Some("canceled"));
    // The next one does not wait for it, and nothing is changed any more.
    let (code, first) = verify(&eu, &["--table", "public.numbered", "--list", "0"]).await;
    assert_eq!(code, Some(1), "{first}");
    let (_, second) = verify(&eu, &["--table", "public.numbered", "--list", "0"]).await;
    assert_eq!(first["tables"][0]["differences"], second["tables"][0]["differences"]);

    // A link that halts while it is looked lets go of its snapshot. It tries again every five seconds, and each time asks
    // anew: nothing goes on by that.
    regions
        .eu
        .execute("update numbered set note = 'wrong' where id = 2; delete from numbered where id = 4")
        .await
        .unwrap();
    let asked = eu
        .start_command(&["verify", "--max-source-load", "0.02", "--range-rows", "50", "--patience", "12"])
        .unwrap();
    let held = async || {
        let held = "select count(*)::text from pg_stat_activity
                     where application_name like 'landfall verify%' and state like 'idle in transaction%'";
        regions.eu.postgres.query_text("shop", held).await
    };
    eventually(PATIENCE, "something is held", async || Ok(held().await?.as_deref() != Some("0")))
        .await
        .unwrap();
    regions.us.execute("update numbered set n = 0 where id = 4").await.unwrap();
    eventually(PATIENCE, "the link halts, and nothing is held", async || {
        let (_, status) = eu.http_get("/status").await?;
        Ok(status.contains("LF-CONFLICT") && held().await?.as_deref() == Some("0"))
    })
    .await
    .unwrap();
    let given_up = tokio::time::timeout(Duration::from_secs(60), asked.wait_with_output()).await;
    let output = given_up.expect("it gives up").unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    regions.eu.execute("insert into numbered select 4, 4, 'row'").await.unwrap();
    drop(us);
}

/// After a table without a key, which is read for one question, it rests for many times as long.
#[tokio::test(flavor = "multi_thread")]
async fn a_rest_may_be_longer_than_anybody_is_patient() {
    let (regions, _us, eu) = stage(1_000).await;
    allow(&regions, &eu).await;
    let rows = "insert into bare select g, 'once' from generate_series(1, 60000) g";
    regions.us.execute(rows).await.unwrap();
    arrived(&regions).await;
    let began = Instant::now();
    let tables = ["--table", "public.bare", "--table", "public.empty"];
    let slowly = ["--max-source-load", "0.01", "--patience", "5"];
    let (code, found) = verify(&eu, &[&tables[..], &slowly].concat()).await;
    assert_eq!(code, Some(0), "{found}\n{}", eu.log_tail());
    assert!(began.elapsed() > Duration::from_secs(8), "it did not rest: {:?}", began.elapsed());

    // One that nobody asked for lets another go first meanwhile, and goes on where it was.
    let unasked = "insert into landfall.verification
             (id, link, stream, patterns, range_rows, show_values, mend, max_source_load, unasked)
         values ('unasked', 'us-east-1', 'main', '{public.bare,public.empty}', 2000, false, false, 0.01, true)";
    regions.eu.execute(unasked).await.unwrap();
    let stands = async |wanted: &str| {
        let stands = "select v.state || ' ' || string_agg(t.state, ' ' order by place)
               from landfall.verification v join landfall.verification_table t on t.verification = v.id
              where v.id = 'unasked' group by v.state";
        eventually(PATIENCE, wanted, async || {
            Ok(regions.eu.postgres.query_text("shop", stands).await?.as_deref() == Some(wanted))
        })
        .await
    };
    stands("running equal waiting").await.unwrap();
    let (code, found) = verify(&eu, &["--table", "public.named", "--patience", "5"]).await;
    assert_eq!(code, Some(0), "{found}\n{}", eu.log_tail());
    stands("done equal equal").await.unwrap();
    let ranges = "select sum(ranges)::text from landfall.verification_table where verification = 'unasked'";
    let ranges = regions.eu.postgres.query_text("shop", ranges).await.unwrap();
    assert_eq!(ranges.as_deref(), Some("2"), "what was compared is not compared again");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_between_reading_and_looking_differs_nowhere() {
    let (regions, mut us, mut eu) = stage(3_000).await;
    allow(&regions, &eu).await;
    let dir = tempfile::tempdir().unwrap();
    let hold = dir.path().join("hold");
    std::fs::write(&hold, "").unwrap();
    us.kill9().unwrap();
    us.set_env("LANDFALL_HOLD_AT", &format!("backfill.after_read:{}", hold.display()));
    us.start_again().unwrap();
    // Each time something was read the daemon stands still, and what was read is made untrue.
    let held = |us: &Daemon| us.log().matches("held at backfill.after_read").count();
    let spoil = async {
        for turn in 0.. {
            eventually(PATIENCE, "something was read", async || Ok(held(&us) > turn)).await.unwrap();
            let untrue = format!(
                "update numbered set n = -{turn} where id = 10; delete from numbered where id = 20 + {turn};
                 update numbered set id = 100000 + {turn} where id = 500 + {turn};
                 insert into numbered values (200000 + {turn}, 0);
                 delete from numbered where id = 7; insert into numbered values (7, {turn}, 'again');
                 update named set n = n + 1;
                 insert into empty values ({turn})"
            );
            regions.us.execute(&untrue).await.unwrap();
            if turn < 12 {
                regions.us.execute("insert into bare values (1, 'new')").await.unwrap();
            }
            std::fs::remove_file(&hold).unwrap();
        }
    };
    let (code, found) = tokio::select! {
        found = verify(&eu, &["--range-rows", "300"]) => found,
        () = spoil => unreachable!("it goes on"),
    };
    // The one row that was made untrue each time cannot be told; no other is called wrong.
    let doubted = findings(&found);
    assert!(doubted.iter().all(|it| it.ends_with("unsure")), "{doubted:?}");
    assert!(doubted.contains(&"public.numbered: 10 unsure".to_owned()), "{doubted:?}");
    assert_eq!(code, Some(2), "{found}");
    assert!(held(&us) > 20, "{}", held(&us));

    // What is refused here meanwhile, and parked, lacks here as it lacked in what was read.
    eu.kill9().unwrap();
    eu.set_env("LANDFALL__LINK__0__ON_REFUSAL", "park");
    eu.start_again().unwrap();
    link_runs(&eu).await;
    regions.eu.execute("alter table numbered add check (note is distinct from 'refused')").await.unwrap();
    let let_go = async || loop {
        let _ = std::fs::remove_file(&hold);
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let undisturbed = async |args: &[&str]| {
        tokio::select! {
            found = verify(&eu, args) => found,
            () = let_go() => unreachable!("it goes on"),
        }
    };
    assert_eq!(undisturbed(&[]).await.0, Some(0));
    std::fs::write(&hold, "").unwrap();
    let before = held(&us);
    let refuse = async {
        eventually(PATIENCE, "its tables were read", async || Ok(held(&us) > before)).await.unwrap();
        std::fs::remove_file(&hold).unwrap();
        eventually(PATIENCE, "the sums were", async || Ok(held(&us) > before + 1)).await.unwrap();
        regions.us.execute("update numbered set note = 'refused' where id = 8").await.unwrap();
        let_go().await;
    };
    let (code, found) = tokio::select! {
        found = verify(&eu, &["--table", "public.numbered"]) => found,
        () = refuse => unreachable!("it goes on"),
    };
    let why = found["tables"][0]["why"].as_str().unwrap_or_default();
    assert!(code == Some(2) && why.contains("parked while it was compared"), "{found}");
    let (code, found) = undisturbed(&["--table", "public.numbered"]).await;
    assert_eq!((findings(&found), code), (vec!["public.numbered: 8 different".to_owned()], Some(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_on_either_side_it_goes_on_and_finds_each_row_once() {
    let (regions, mut us, mut eu) = stage(20_000).await;
    allow(&regions, &eu).await;
    regions.eu.execute("delete from numbered where id % 1000 = 1").await.unwrap();
    for (point, reach) in
        [("verify.before_kept", 3), ("backfill.after_read", 5), ("backfill.before_append", 7)]
    {
        let daemon = if point.starts_with("verify") { &mut eu } else { &mut us };
        daemon.kill9().unwrap();
        daemon.set_env("LANDFALL_CRASH_AT", &format!("{point}:{reach}"));
        daemon.start_again().unwrap();
        let at_target = point.starts_with("verify");
        link_runs(&eu).await;
        let daemon = if at_target { &mut eu } else { &mut us };
        let died = daemon.wait_exit(Duration::from_millis(1)).await;
        assert!(died.is_none(), "{point}: it died before it was asked");
        let asked = eu.start_command(&["verify", "--json", "--range-rows", "100"]).unwrap();
        let daemon = if at_target { &mut eu } else { &mut us };
        let died = daemon.wait_exit(PATIENCE).await;
        daemon.remove_env("LANDFALL_CRASH_AT");
        assert!(died.is_some(), "{point}:{reach} was not reached\n{}", daemon.log_tail());
        daemon.start_again().unwrap();
        let output = asked.wait_with_output().await.unwrap();
        let last = String::from_utf8_lossy(&output.stdout).lines().last().unwrap_or_default().to_owned();
        let found: Value =
            serde_json::from_str(&last).unwrap_or_else(|error| panic!("{error}: {}", said(&output)));
        let expected: Vec<String> = {
            let mut all: Vec<_> =
                (0..20).map(|at| format!("public.numbered: {} missing", at * 1000 + 1)).collect();
            all.sort();
            all
        };
        assert_eq!(findings(&found), expected, "{point}\n{}\n{}", us.log_tail(), eu.log_tail());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_whose_key_is_sorted_otherwise_is_given_up_for_that() {
    let regions = TwoRegions::start(15, 18, 1).await.unwrap();
    let table = |collation: &str| format!("create table t (k text collate \"{collation}\" primary key)");
    regions.us.execute(&table("en-x-icu")).await.unwrap();
    regions.eu.execute(&table("C")).await.unwrap();
    let us = regions.us.start_daemon(LANDFALL, &regions.us_sends()).await.unwrap();
    let eu = regions.eu.start_daemon(LANDFALL, &regions.eu_receives()).await.unwrap();
    eu.wait_heartbeat(PATIENCE).await.unwrap();
    // In C every capital stands before every small letter.
    let rows = "insert into t select case when g % 2 = 0 then upper(h) else h end
        from generate_series(1, 30000) g, translate(md5(g::text), '0123456789', 'ghijklmnop') h";
    regions.us.execute(rows).await.unwrap();
    regions.equal(PATIENCE, &[&us, &eu]).await.unwrap();
    allow(&regions, &eu).await;
    let (code, found) = verify(&eu, &["--max-source-load", "1"]).await;
    let why = found["tables"][0]["why"].as_str().unwrap_or_default();
    assert!(code == Some(2) && why.contains("sorted otherwise"), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_told_is_not_called_equal() {
    let (regions, mut us, mut eu) = stage(100).await;
    allow(&regions, &eu).await;
    let says = async |daemon: &Daemon, args: &[&str], says: &str| {
        let output = daemon.command(&[&["verify"], args].concat()).await.unwrap();
        assert!(output.status.code() == Some(2) && said(&output).contains(says), "{}", said(&output));
    };
    says(&us, &[], "has no [[link]]").await;
    says(&eu, &["--from", "ap-south-1"], "no link from ap-south-1; there are links from us-east-1").await;
    // One of several is mistyped.
    let mistyped = ["--table", "public.named", "--table", "public.emty", "--table", "public.x*"];
    let (code, found) = verify(&eu, &mistyped).await;
    let tables = found["tables"].as_array().unwrap();
    let states: Vec<_> = tables.iter().map(|it| (it["table"].as_str(), it["state"].as_str())).collect();
    let expected = [("public.named", "equal"), ("public.emty", "unknown"), ("public.x*", "unknown")];
    assert_eq!(states, expected.map(|(table, state)| (Some(table), Some(state))), "{found}");
    assert_eq!(code, Some(2), "{found}");
    regions.eu.execute("alter table empty rename to gone").await.unwrap();
    let (code, found) = verify(&eu, &["--table", "public.empty"]).await;
    let why = found["tables"][0]["why"].as_str().unwrap();
    assert!(code == Some(2) && why.contains("there is no table public.empty"), "{found}");
    regions.eu.execute("alter table gone rename to empty").await.unwrap();

    // The other region's daemon is away.
    us.kill9().unwrap();
    says(&eu, &["--patience", "12"], "us-east-1 has not answered for").await;
    us.start_again().unwrap();
    assert_eq!(verify(&eu, &[]).await.0, Some(0));
    // Ours is.
    eu.kill9().unwrap();
    eventually(PATIENCE, "nobody holds the target", async || {
        let output = eu.command(&["verify"]).await?;
        Ok(output.status.code() == Some(2)
            && said(&output).contains("no daemon applies the link from us-east-1"))
    })
    .await
    .unwrap();
}

/// The sum of a table without a key is read from its first row to its last, here for a quarter of a minute.
#[tokio::test(flavor = "multi_thread")]
async fn the_long_reading_of_a_table_without_a_key_gives_way() {
    const ROWS: u32 = 60;
    let regions = TwoRegions::start(15, 18, 1).await.unwrap();
    // Filled before the stream begins: no such row fits into it.
    let tables = format!(
        "create table slow_there (n int4, note text) partition by range (n);
         create table slow_there_1 partition of slow_there default;
         alter table slow_there replica identity full; alter table slow_there_1 replica identity full;
         create table slow_here (n int4, note text); alter table slow_here replica identity full;
         create table wide (id int8 primary key, n int4, document text);
         alter table wide alter document set storage external;
         create function fill(place text) returns void language sql as
             'insert into slow_there select g, repeat(''slow'', 5000000) from generate_series(1, {ROWS}) g
               where place = ''there'' or g = 1;
              insert into slow_here select g, repeat(''slow'', 5000000) from generate_series(1, {ROWS}) g
               where place = ''here'' or g = 1'"
    );
    regions.execute_both(&tables).await.unwrap();
    let fill = async |region: &Region, place| region.execute(&format!("select fill('{place}')")).await;
    tokio::try_join!(fill(&regions.us, "there"), fill(&regions.eu, "here")).unwrap();
    let us = regions.us.start_daemon(LANDFALL, &regions.us_sends()).await.unwrap();
    let eu = regions.eu.start_daemon(LANDFALL, &regions.eu_receives()).await.unwrap();
    eu.wait_heartbeat(PATIENCE).await.unwrap();
    allow(&regions, &eu).await;

    let is_read = async |region: &Region, table: &str| {
        let reading = format!(
            "select count(*)::text from pg_stat_activity
              where application_name like 'landfall%' and state = 'active' and query like '%sum(%\"{table}\"%'"
        );
        let awaited = format!("{table} is read");
        eventually(PATIENCE, &awaited, async || {
            Ok(region.postgres.query_text("shop", &reading).await?.as_deref() == Some("1"))
        })
        .await
        .unwrap();
    };
    // Of a partitioned table somebody may want a part.
    for (table, wanted, region) in
        [("slow_there", "slow_there_1", &regions.us), ("slow_here", "slow_here", &regions.eu)]
    {
        let name = format!("public.{table}");
        let asked = eu.start_command(&["verify", "--json", "--table", &name]).unwrap();
        is_read(region, table).await;
        let lock = format!("begin; set lock_timeout = '10s'; lock table {wanted} in access exclusive mode");
        region.connect().await.unwrap().batch_execute(&lock).await.expect("it is let in");
        let output = asked.wait_with_output().await.unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(told.contains("LF-TARGET-BUSY") && told.contains("was let in"), "{}", said(&output));
    }

    // A table that must be begun anew is waited for by the stream.
    let rows = "insert into wide select g, g, repeat('long', 5000) from generate_series(1, 3000) g";
    regions.us.execute(rows).await.unwrap();
    regions.us.execute("grant select on wide to landfall").await.unwrap();
    let slowly = ["backfill", "--to", "eu-west-1", "--table", "public.wide", "--detach"];
    let slowly = [&slowly[..], &["--max-rows-per-second", "20", "--chunk-rows", "20"]].concat();
    let filled = us.command(&slowly).await.unwrap();
    assert!(filled.status.success(), "{}", said(&filled));
    let copied = "select count(*)::text from landfall.backfill_table where after is not null";
    eventually(PATIENCE, "it is being copied", async || {
        Ok(regions.us.postgres.query_text("shop", copied).await?.as_deref() == Some("1"))
    })
    .await
    .unwrap();
    let canceled = || {
        let log = regions.us.postgres.log();
        log.lines()
            .filter(|it| it.contains("landfall backfill") && it.contains("due to user request"))
            .count()
    };
    let before = canceled();
    let asked = eu.start_command(&["verify", "--json", "--table", "public.slow_there"]).unwrap();
    is_read(&regions.us, "slow_there").await;
    regions.us.execute("update wide set id = -1 where id = 1").await.unwrap();
    eventually(PATIENCE, "what was read is given up", async || Ok(canceled() > before)).await.unwrap();
    drop(asked);
}
