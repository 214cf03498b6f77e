//! Proves that what a daemon tells is so: health, lag, slot and head-room are held against the parts they
//! speak of; an idle source releases its log and its server; a stop is a clean one.

use std::time::{Duration, Instant};

use testbed::{Daemon, TwoRegions, eventually, postgres::Shutdown};

const LANDFALL: &str = env!("CARGO_BIN_EXE_landfall");
const PATIENCE: Duration = Duration::from_secs(180);

async fn stage() -> (TwoRegions, Daemon, Daemon) {
    let regions = TwoRegions::start(15, 18, 1).await.unwrap();
    regions.execute_both("create table t (id int8 primary key, n int4)").await.unwrap();
    let us = regions.us.start_daemon(LANDFALL, &regions.us_sends()).await.unwrap();
    let mut eu = regions.eu.start_daemon(LANDFALL, &regions.eu_receives()).await.unwrap();
    eu.wait_ready(PATIENCE).await.unwrap();
    eu.wait_heartbeat(PATIENCE).await.unwrap();
    (regions, us, eu)
}

async fn rows(regions: &TwoRegions) -> i64 {
    let count = regions.eu.postgres.query_text("shop", "select count(*)::text from t").await.unwrap();
    count.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn health_says_what_the_database_says() {
    let (mut regions, us, eu) = stage().await;
    // A probe that a busy machine answered late makes a region unready until the next one.
    let (mut status, mut page) = (0, String::new());
    eventually(PATIENCE, "it is ready", async || {
        (status, page) = eu.http_get("/health/ready").await?;
        Ok(status == 200)
    })
    .await
    .unwrap_or_else(|error| panic!("{error}\n{page}"));
    let ready: serde_json::Value = serde_json::from_str(&page).unwrap();
    let fields: Vec<_> = ready.as_object().unwrap().keys().cloned().collect();
    assert_eq!(
        (status, ready["status"].as_str(), ready["region"].as_str()),
        (200, Some("READY"), Some("eu-west-1"))
    );
    assert_eq!(fields.len(), 5, "{page}");
    assert!(ready["replica_lag_seconds"].as_f64().is_some_and(|lag| lag < 30.0), "{page}");
    assert_eq!(
        (ready["database_connection"].as_str(), ready["system_mode"].as_str()),
        (Some("healthy"), Some("active"))
    );
    assert_eq!(us.http_get("/health/shallow").await.unwrap().0, 200);
    eventually(PATIENCE, "without links there is no lag", async || {
        Ok(us.http_get("/health/ready").await?.1.contains("\"replica_lag_seconds\":0"))
    })
    .await
    .unwrap();

    regions.eu.postgres.stop(Shutdown::Immediate).await.unwrap();
    eventually(PATIENCE, "the daemon is not ready without its database", async || {
        let (status, page) = eu.http_get("/health/ready").await?;
        Ok(status == 503
            && page.contains("\"status\":\"DEGRADED\"")
            && page.contains("\"system_mode\":\"draining\"")
            && page.contains("\"error\""))
    })
    .await
    .unwrap();
    regions.eu.postgres.start_again().await.unwrap();
    eventually(PATIENCE, "it is ready again", async || Ok(eu.http_get("/health/ready").await?.0 == 200))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_are_those_of_the_parts() {
    let (regions, us, eu) = stage().await;
    regions.us.execute("insert into t select g, 0 from generate_series(1, 1000) g").await.unwrap();
    eventually(PATIENCE, "the rows arrive", async || Ok(rows(&regions).await == 1000)).await.unwrap();
    // Rows are seen before the daemon that committed them has counted them.
    for (daemon, what) in [(&us, "captured"), (&eu, "applied")] {
        let metric = format!("replication_{what}_changes_total{{table=\"public.t\",operation=\"insert\"}}");
        let mut told = None;
        eventually(PATIENCE, &format!("they are told as {what}"), async || {
            told = daemon.metric(&metric).await?;
            Ok(told == Some(1000.0))
        })
        .await
        .unwrap_or_else(|error| panic!("{error}; {told:?}"));
    }
    // A busy log that is not ours, read between two looks at the slot: the figure is the server's.
    let sql = "select (pg_current_wal_lsn() - restart_lsn)::int8::text from pg_replication_slots";
    eventually(PATIENCE, "the slot's bytes are the server's, within what a moment writes", async || {
        let server: f64 = regions.us.postgres.query_text("shop", sql).await?.unwrap_or_default().parse()?;
        let told = us.metric("replication_slot_retained_bytes").await?;
        Ok(told.is_some_and(|told| (told - server).abs() < 65_536.0))
    })
    .await
    .unwrap();
    eventually(PATIENCE, "a link that keeps up has all of the topic's day", async || {
        Ok(eu
            .metric("replication_buffer_headroom_seconds")
            .await?
            .is_some_and(|left| (86_390.0..=86_400.0).contains(&left)))
    })
    .await
    .unwrap();
    // An application locks what is to be applied: no error, and still it shows.
    let blocker = regions.eu.connect().await.unwrap();
    blocker.batch_execute("begin; lock table t").await.unwrap();
    regions.us.execute("update t set n = 1").await.unwrap();
    let locked = Instant::now();
    eventually(PATIENCE, "the lag grows though no row changes any more", async || {
        Ok(eu.metric("replication_lag_seconds").await?.is_some_and(|lag| lag > 4.0))
    })
    .await
    .unwrap();
    println!("a blocked sink shows after {:?}", locked.elapsed());
    blocker.batch_execute("rollback").await.unwrap();
    eventually(PATIENCE, "it goes on by itself", async || {
        let n = regions.eu.postgres.query_text("shop", "select min(n)::text from t").await?;
        Ok(n.as_deref() == Some("1")
            && eu.metric("replication_lag_seconds").await?.is_some_and(|lag| lag < 4.0))
    })
    .await
    .unwrap();
    assert_eq!(eu.metric("replication_conflicts_total").await.unwrap().unwrap_or(0.0), 0.0);
    let offset = eu.metric("replication_clock_offset_seconds").await.unwrap();
    assert_eq!(offset, None, "no heartbeat comes back over one link: unknown, not 0");
    let mut page = String::new();
    eventually(PATIENCE, "status finds nothing", async || {
        let status = eu.command(&["status", "--json"]).await?;
        page = String::from_utf8_lossy(&status.stdout).into_owned();
        Ok(status.status.success())
    })
    .await
    .unwrap_or_else(|error| panic!("{error}\n{page}"));
    let check = us.command(&["check", "--json"]).await.unwrap();
    assert!(check.status.code().is_some_and(|code| code < 2), "{}", String::from_utf8_lossy(&check.stderr));
    serde_json::from_slice::<serde_json::Value>(&check.stdout).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_source_releases_its_log_and_its_server() {
    let (mut regions, us, _eu) = stage().await;
    // Log that is none of ours, in transactions of a megabyte. (1 GiB with LANDFALL_IDLE_MIB=1024.)
    let mib: u32 = std::env::var("LANDFALL_IDLE_MIB").ok().and_then(|mib| mib.parse().ok()).unwrap_or(256);
    regions.us.execute("create schema unpublished; create table unpublished.u (x text)").await.unwrap();
    let client = regions.us.connect().await.unwrap();
    for _ in 0..mib {
        client
            .batch_execute("insert into unpublished.u select repeat('x', 1000) from generate_series(1, 900)")
            .await
            .unwrap();
    }
    let sql = "select (pg_current_wal_lsn() - restart_lsn)::int8::text from pg_replication_slots";
    eventually(PATIENCE, "the slot is let go", async || {
        let kept: u64 = regions.us.postgres.query_text("shop", sql).await?.unwrap_or_default().parse()?;
        Ok(kept < 64 << 20)
    })
    .await
    .unwrap();
    // What a shutdown writes to the disk is not the walsender's: it is written before.
    regions.us.execute("checkpoint").await.unwrap();
    let took = regions.us.postgres.stop(Shutdown::Fast).await.unwrap();
    println!("the server stopped after {took:?}");
    assert!(took < Duration::from_secs(30), "a fast shutdown hung on our walsender: {took:?}");
    drop(us);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_left_to_a_slot_is_what_the_server_leaves_it() {
    let (mut regions, us, _eu) = stage().await;
    regions.us.postgres.set("max_slot_wal_keep_size", "1GB").await.unwrap();
    // Nothing can be appended, so nothing is released.
    regions.us.kafka.kill(0).await.unwrap();
    let client = regions.us.connect().await.unwrap();
    let writer = tokio::spawn(async move {
        loop {
            client
                .batch_execute("select pg_logical_emit_message(false, 'fill', repeat('x', 800000))")
                .await?;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        #[allow(unreachable_code, reason = "gives the task its type")]
        Ok::<(), tokio_postgres::Error>(())
    });
    let sql = "select safe_wal_size::text from pg_replication_slots";
    let safe = async || -> f64 {
        regions.us.postgres.query_text("shop", sql).await.unwrap().unwrap().parse().unwrap()
    };
    eventually(PATIENCE, "the time left is told as the server has it", async || {
        let (before, at) = (safe().await, Instant::now());
        tokio::time::sleep(Duration::from_secs(4)).await;
        let after = safe().await;
        let truth = after * at.elapsed().as_secs_f64() / (before - after);
        let told = us.metric("replication_slot_seconds_to_invalidation").await?;
        let bytes = us.metric("replication_slot_safe_bytes").await?;
        println!("told {told:?} s and {bytes:?} bytes, in truth {truth:.0} s and {after:.0} bytes");
        let near =
            |told: Option<f64>, truth: f64, by: f64| told.is_some_and(|it| (it / truth - 1.0).abs() < by);
        Ok(near(told, truth, 0.5) && near(bytes, after, 0.1))
    })
    .await
    .unwrap();
    writer.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_is_clean_and_nothing_is_lost_by_it() {
    let (regions, mut us, mut eu) = stage().await;
    let client = regions.us.connect().await.unwrap();
    let mut id = 0;
    for _ in 0..3 {
        for _ in 0..200 {
            id += 1;
            client.execute("insert into t values ($1, 0)", &[&i64::from(id)]).await.unwrap();
        }
        for daemon in [&mut us, &mut eu] {
            let (status, took) = daemon.sigterm(Duration::from_secs(60)).await.unwrap();
            // Its roads may take ten seconds, its listener and what looks after it a second each.
            assert!(status.success() && took < Duration::from_secs(25), "{status} after {took:?}");
            daemon.start_again().unwrap();
        }
    }
    eventually(PATIENCE, "everything arrives", async || Ok(rows(&regions).await == i64::from(id)))
        .await
        .unwrap();
}
