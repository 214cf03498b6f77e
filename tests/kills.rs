//! Proves that anything may die anywhere: under a load whose witness stands outside, each daemon is
//! ended with SIGKILL at every crash point there is, again and again; servers, brokers and the line go
//! too. Afterwards every acknowledged commit is at the target, once.
//!
//! `LANDFALL_SEED` repeats a choice of points, and an odd one has records packed; `LANDFALL_KILLS` sets how many (30 in CI).

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::StdRng};
use testbed::{
    Daemon, Ledger, TwoRegions, eventually,
    ledger::{self, Plan},
    postgres::Shutdown,
};

const LANDFALL: &str = env!("CARGO_BIN_EXE_landfall");
const AT_SOURCE: &[&str] = &[
    "capture.after_barrier",
    "capture.after_read",
    "capture.before_produce",
    "capture.after_produce",
    "capture.after_hand_over",
    "capture.after_ack",
    "capture.after_confirm",
];
const AT_SINK: &[&str] =
    &["apply.mid_batch", "apply.before_commit", "apply.commit_sent", "apply.after_commit"];
/// What is awaited takes a second or two; on a machine that compiles meanwhile many times that.
const PATIENCE: Duration = Duration::from_secs(180);

fn number(name: &str, otherwise: impl FnOnce() -> u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or_else(otherwise)
}

/// Two regions, a daemon each, the ledger at work on the source.
struct Stage {
    regions: TwoRegions,
    us: Daemon,
    eu: Daemon,
    ledger: Ledger,
}

impl Stage {
    async fn set(us_major: u16, eu_major: u16, brokers: usize, seed: u64) -> Self {
        let packed = seed % 2 == 1;
        println!("seed {seed}: records are {}", if packed { "packed" } else { "one for each change" });
        let regions = TwoRegions::start(us_major, eu_major, brokers).await.unwrap();
        for region in [&regions.us, &regions.eu] {
            ledger::create_tables(&region.connect().await.unwrap()).await.unwrap();
        }
        let sends = regions.us.config().source(&["public.*"]);
        let sends = if packed { sends.packed() } else { sends };
        let mut us = regions.us.start_daemon(LANDFALL, &sends.to_toml()).await.unwrap();
        let mut eu = regions.eu.start_daemon(LANDFALL, &regions.eu_receives()).await.unwrap();
        us.wait_ready(PATIENCE).await.unwrap();
        eu.wait_ready(PATIENCE).await.unwrap();
        let source = regions.us.connect().await.unwrap();
        regions.us.begun(PATIENCE).await.unwrap();
        let plan = Plan { writers: 4, accounts: 50, rate: Some(300.0), seed };
        ledger::open_accounts(&source, &plan).await.unwrap();
        let ledger = Ledger::start(&regions.us.url(), &plan);
        Self { regions, us, eu, ledger }
    }

    /// Makes a table in both regions, and has it carried.
    async fn make(&self, table: &str) {
        self.regions.execute_both(&format!("create table {table}")).await.unwrap();
        self.regions.us.grant(&self.us).await.unwrap();
        self.regions.eu.grant(&self.eu).await.unwrap();
    }

    /// Lets everything arrive, and holds the ledger against the target.
    async fn judge(self) {
        let acked = self.ledger.acked();
        let record = self.ledger.stop().await.unwrap();
        let source = self.regions.us.connect().await.unwrap();
        let target = self.regions.eu.connect().await.unwrap();
        self.regions.equal(2 * PATIENCE, &[&self.us, &self.eu]).await.unwrap();
        let report = record.compare(&source, &target).await.unwrap();
        assert!(report.is_clean() && acked > 0, "{report}");
        println!("{report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_point_nothing_is_lost_or_doubled() {
    let seed = number("LANDFALL_SEED", rand::random);
    let kills = number("LANDFALL_KILLS", || 30);
    let mut random = StdRng::seed_from_u64(seed);
    let mut stage = Stage::set(15, 18, 1, seed).await;
    for kill in 0..kills as usize {
        // Every point in turn, so that none is left out; where in its work is chance.
        let (daemon, point) = if kill % 3 == 2 {
            (&mut stage.eu, AT_SINK[kill / 3 % AT_SINK.len()])
        } else {
            (&mut stage.us, AT_SOURCE[(kill - kill / 3) % AT_SOURCE.len()])
        };
        let reach = if point == "capture.after_barrier" { 1 } else { random.random_range(1..60) };
        daemon.die_at(point, reach, PATIENCE).await.unwrap();
    }
    stage.judge().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_brokers_and_the_line_may_go_and_come_back() {
    let seed = number("LANDFALL_SEED", rand::random);
    let mut stage = Stage::set(18, 15, 1, seed).await;
    let pause = async |seconds| tokio::time::sleep(Duration::from_secs(seconds)).await;
    stage.regions.cut();
    pause(5).await;
    stage.regions.heal();
    println!("the line was cut");
    for _ in 0..3 {
        stage.regions.us.kafka.wan().reset_all();
        pause(1).await;
    }
    println!("connections were reset");
    stage.regions.eu.postgres.kill().await.unwrap();
    pause(1).await;
    stage.regions.eu.postgres.start_again().await.unwrap();
    println!("the target was killed");
    stage.regions.us.postgres.kill().await.unwrap();
    pause(1).await;
    stage.regions.us.postgres.start_again().await.unwrap();
    println!("the source was killed");
    stage.regions.us.kafka.restart_all().await.unwrap();
    println!("the broker was restarted");
    stage.regions.us.postgres.stop(Shutdown::Fast).await.unwrap();
    stage.regions.us.postgres.start_again().await.unwrap();
    println!("the source was restarted");
    pause(5).await;
    stage.judge().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_line_delays_and_nothing_more() {
    let seed = number("LANDFALL_SEED", rand::random);
    let stage = Stage::set(15, 18, 1, seed).await;
    let wan = stage.regions.us.kafka.wan();
    let pause = async |seconds| tokio::time::sleep(Duration::from_secs(seconds)).await;
    stage.regions.set_rtt(Duration::from_millis(150));
    wan.set_slice(Some(97));
    wan.set_bandwidth(Some(64 << 10));
    println!("64 KiB/s in pieces of 97 bytes");
    pause(5).await;
    wan.set_bandwidth(None);
    wan.set_slice(None);
    // No bits are turned over here: a batch's offset lies outside Kafka's checksum, and one that is turned
    // over leads to a halt (LF-POSITION-BEYOND-END), not to a delay. Against that there is TLS.
    wan.stall();
    pause(5).await;
    wan.resume();
    println!("stalled for 5 s");
    stage.judge().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_of_three_brokers_may_be_killed() {
    let seed = number("LANDFALL_SEED", rand::random);
    let mut stage = Stage::set(15, 15, 3, seed).await;
    for _ in 0..3 {
        let kafka = &mut stage.regions.us.kafka;
        let leader = kafka.leader("landfall.us-east-1.main", 0).await.unwrap();
        kafka.kill(leader).await.unwrap();
        println!("killed broker {leader}, the leader");
        tokio::time::sleep(Duration::from_secs(3)).await;
        kafka.start_again(leader).await.unwrap();
        let acked = stage.us.metric("replication_captured_transactions_total").await.unwrap();
        let us = &stage.us;
        eventually(PATIENCE, "changes are captured again", async || {
            Ok(us.metric("replication_captured_transactions_total").await? > acked)
        })
        .await
        .unwrap();
    }
    stage.judge().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_giant_transaction_cut_short_on_either_side_arrives_once() {
    let seed = number("LANDFALL_SEED", rand::random);
    let mut stage = Stage::set(15, 18, 1, seed).await;
    stage.make("giant (id int8 primary key, note text)").await;
    stage.us.kill9().unwrap();
    stage.eu.kill9().unwrap();
    let giant = "insert into giant select g, 'row ' || g from generate_series(1, 100000) g";
    stage.regions.us.execute(giant).await.unwrap();
    stage.us.die_at("capture.before_produce", 40_000, PATIENCE).await.unwrap();
    // In the middle of its slices: the target transaction is open.
    stage.eu.die_at("apply.mid_batch", 15, PATIENCE).await.unwrap();
    stage.judge().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_in_parts_whose_writer_dies_between_them_arrives_once() {
    let seed = number("LANDFALL_SEED", rand::random);
    let mut random = StdRng::seed_from_u64(seed);
    let mut stage = Stage::set(18, 15, 1, seed).await;
    stage.make("large (id int8 primary key, note text, tail int8)").await;
    for id in 0..number("LANDFALL_KILLS", || 30) / 6 {
        // Ten parts or so; what cannot be compressed makes every part a record of its own size. The
        // second statement finds the value unchanged, the third replaces it. The row before goes, so that
        // many rounds do not make a table that takes minutes to compare.
        let value = "(select string_agg(md5(random()::text), '') from generate_series(1, 250000))";
        let write = format!(
            "begin; insert into large values ({id}, {value}, 0); update large set tail = 1 where id = {id};
             update large set note = {value} where id = {id}; delete from large where id < {id}; commit"
        );
        stage.us.kill9().unwrap();
        stage.regions.us.execute(&write).await.unwrap();
        stage.us.die_at("capture.between_parts", random.random_range(1..12), PATIENCE).await.unwrap();
    }
    stage.judge().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_told_that_a_killed_target_had_not_flushed() {
    let seed = number("LANDFALL_SEED", rand::random);
    let mut stage = Stage::set(15, 18, 1, seed).await;
    let applied = async |daemon: &Daemon| -> u64 {
        let (_, page) = daemon.http_get("/status").await.unwrap();
        let status: serde_json::Value = serde_json::from_str(&page).unwrap();
        status["streams"][0]["link"]["applied"].as_u64().unwrap_or(0)
    };
    for round in 0..4 {
        // A burst, so that commits are asynchronous when the target dies.
        let from = round * 20_000;
        let many = format!(
            "do $$ begin for i in 1..5000 loop
                insert into ledger_entry values (-{from} - i, -1, i, 0, 'burst'); commit; end loop; end $$"
        );
        let eu = &stage.eu;
        eventually(PATIENCE, "the link keeps up", async || {
            Ok(eu.metric("replication_lag_seconds").await?.is_some_and(|lag| lag < 2.0))
        })
        .await
        .unwrap();
        let client = stage.regions.us.connect().await.unwrap();
        let burst = tokio::spawn(async move { client.batch_execute(&many).await });
        let before = applied(&stage.eu).await;
        eventually(PATIENCE, "the burst is being applied", async || Ok(applied(eu).await > before + 300))
            .await
            .unwrap();
        let told = applied(&stage.eu).await;
        stage.regions.eu.postgres.kill().await.unwrap();
        stage.eu.kill9().unwrap();
        stage.regions.eu.postgres.start_again().await.unwrap();
        let sql = "select sequence::text from landfall.progress";
        let found = stage.regions.eu.postgres.query_text("shop", sql).await.unwrap().unwrap();
        println!("told {told}, found {found}");
        assert!(found.parse::<u64>().unwrap() >= told, "told {told}, found {found}");
        burst.await.unwrap().unwrap();
        stage.eu.start_again().unwrap();
        stage.eu.wait_ready(PATIENCE).await.unwrap();
    }
    let clean = "delete from ledger_entry where writer = -1";
    stage.regions.us.execute(clean).await.unwrap();
    stage.judge().await;
}
