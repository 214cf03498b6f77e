//! A cluster starts quickly, survives what is done to it, and is a server of
//! its own.

use std::time::{Duration, Instant};

use testbed::Postgres;
use testbed::postgres::Shutdown;

async fn count(postgres: &Postgres) -> i64 {
    postgres.query_one("postgres", "select count(*) from kept", &[]).await.unwrap().get(0)
}

async fn lives_through_its_faults(major: u16) {
    // The first one of all makes the template.
    drop(Postgres::start(major, "first").await.unwrap());
    let started = Instant::now();
    let mut postgres =
        Postgres::builder(major, "faults").setting("max_slot_wal_keep_size", "64MB").start().await.unwrap();
    println!("started in {:?}", started.elapsed());

    let shown = async |setting: &str| {
        postgres.query_text("postgres", &format!("show {setting}")).await.unwrap().unwrap()
    };
    assert_eq!(shown("wal_level").await, "logical");
    assert_eq!(shown("track_commit_timestamp").await, "on");
    assert_eq!(shown("max_slot_wal_keep_size").await, "64MB");
    assert!(shown("server_version").await.starts_with(&major.to_string()));

    postgres
        .execute("postgres", "create table kept(id int primary key); insert into kept values (1)")
        .await
        .unwrap();
    let took = postgres.stop(Shutdown::Fast).await.unwrap();
    println!("fast shutdown in {took:?}");
    assert!(took < Duration::from_secs(60));

    let backup = testbed::home::scratch("backup").unwrap();
    let backup = backup.path().join("data");
    postgres.backup_to(&backup).await.unwrap();
    postgres.start_again().await.unwrap();
    let identity = system_identifier(&postgres).await;

    postgres.execute("postgres", "insert into kept values (2)").await.unwrap();
    postgres.kill().await.unwrap();
    assert!(postgres.connect("postgres").await.is_err());
    postgres.start_again().await.unwrap();
    assert_eq!(count(&postgres).await, 2);

    postgres.stop(Shutdown::Immediate).await.unwrap();
    postgres.restore_from(&backup).await.unwrap();
    postgres.start_again().await.unwrap();
    assert_eq!(count(&postgres).await, 1);
    assert_eq!(system_identifier(&postgres).await, identity);

    postgres.set("work_mem", "7MB").await.unwrap();
    testbed::eventually(Duration::from_secs(60), "work_mem is reloaded", async || {
        let shown = postgres.query_text("postgres", "show work_mem").await?;
        Ok(shown.as_deref() == Some("7MB"))
    })
    .await
    .unwrap();
}

async fn system_identifier(postgres: &Postgres) -> String {
    postgres
        .query_text("postgres", "select system_identifier from pg_control_system()")
        .await
        .unwrap()
        .unwrap()
}

#[tokio::test]
async fn postgres_15_lives_through_its_faults() {
    lives_through_its_faults(15).await;
}

#[tokio::test]
async fn postgres_18_lives_through_its_faults() {
    lives_through_its_faults(18).await;
}

/// Both are copies of one template; Landfall tells servers apart by this.
#[tokio::test]
async fn two_clusters_are_two_servers() {
    let one = Postgres::start(15, "one").await.unwrap();
    let other = Postgres::start(15, "other").await.unwrap();
    assert_ne!(system_identifier(&one).await, system_identifier(&other).await);
    let pid = one.pid().unwrap();
    drop(one);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

/// A snapshot of a running server is a server that crashed at that moment; a
/// standby that is promoted has what it has received, and no more.
#[tokio::test]
async fn copies_of_a_running_server_come_up() {
    let mut primary = Postgres::start(18, "primary").await.unwrap();
    primary
        .execute("postgres", "create table kept(id int primary key); insert into kept values (1)")
        .await
        .unwrap();
    primary
        .query_text("postgres", "select pg_create_logical_replication_slot('theirs', 'pgoutput')")
        .await
        .unwrap();
    let mut standby = primary.standby("standby").await.unwrap();
    primary.execute("postgres", "insert into kept values (2)").await.unwrap();
    testbed::eventually(Duration::from_secs(60), "it has streamed", async || Ok(count(&standby).await == 2))
        .await
        .unwrap();
    assert_eq!(system_identifier(&primary).await, system_identifier(&standby).await);

    let dir = testbed::home::scratch("snapshot").unwrap();
    let snapshot = dir.path().join("data");
    primary.snapshot_to(&snapshot).await.unwrap();
    assert_eq!(count(&primary).await, 2, "it goes on");

    // What the standby has not received when it is promoted is lost.
    standby.stop_following().await.unwrap();
    primary.execute("postgres", "insert into kept values (3)").await.unwrap();
    primary.kill().await.unwrap();
    standby.promote().await.unwrap();
    assert_eq!(count(&standby).await, 2);
    let port = primary.port();
    primary.take_over_port(&mut standby).await.unwrap();
    assert_eq!(standby.port(), port);
    standby.execute("postgres", "insert into kept values (4)").await.unwrap();
    let slots = standby.query_text("postgres", "select count(*) from pg_replication_slots").await.unwrap();
    assert_eq!(slots.as_deref(), Some("0"));

    primary.restore_from(&snapshot).await.unwrap();
    primary.start_again().await.unwrap();
    assert_eq!(count(&primary).await, 2);
}
