//! Proves what `on_refusal = "park"` promises, on real parts: what a region's database refuses is kept aside whole and
//! visibly, with whatever changes the same rows later; everything else goes on; and what is asked for afterwards happens
//! once, whoever dies meanwhile.
//!
//! `LANDFALL_SEED` repeats the dice; `LANDFALL_KILLS` sets how often the daemon dies (15 in CI).

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;
use testbed::{
    Daemon, TwoRegions, checksum,
    daemon::said,
    eventually,
    region::DATABASE,
    writers::{Writers, seed},
};

const LANDFALL: &str = env!("CARGO_BIN_EXE_landfall");
const PATIENCE: Duration = Duration::from_secs(180);
const CRASH_POINTS: &[&str] = &[
    "apply.before_commit",
    "parked.before_commit",
    "apply.mid_batch",
    "parked.after_commit",
    "apply.after_commit",
];

struct Stage {
    regions: TwoRegions,
    _us: Daemon,
    eu: Daemon,
}

impl Stage {
    async fn set(tables: &str, link: &str) -> Self {
        let regions = TwoRegions::start(15, 18, 1).await.unwrap();
        regions.execute_both(tables).await.unwrap();
        let us = regions.us.start_daemon(LANDFALL, &regions.us_sends()).await.unwrap();
        // To be compared with, a source's rows are read.
        regions.us.execute("grant select on all tables in schema public to landfall").await.unwrap();
        let parks = regions.eu.config().link_with(
            &regions.us.name,
            &regions.us.kafka.remote(),
            &format!("on_refusal = \"park\"\n{link}"),
        );
        let eu = regions.eu.start_daemon(LANDFALL, &parks.to_toml()).await.unwrap();
        eu.wait_heartbeat(PATIENCE).await.unwrap();
        Self { regions, _us: us, eu }
    }

    async fn ask(&self, sql: &str) -> Option<String> {
        self.regions.eu.postgres.query_text(DATABASE, sql).await.unwrap()
    }

    /// Waits until the target answers so.
    async fn holds(&self, sql: &str, expected: &str) {
        let holds = eventually(PATIENCE, sql, async || {
            let found = self.regions.eu.postgres.query_text(DATABASE, sql).await?;
            Ok(found.as_deref() == Some(expected))
        });
        if let Err(error) = holds.await {
            panic!("{error:#}\n{:?}\n{}", self.ask(sql).await, self.eu.log_tail());
        }
    }

    /// A command, which must end so; what it printed.
    async fn command(&self, line: &str, code: i32) -> String {
        let words: Vec<&str> = line.split(' ').collect();
        let output = self.eu.command(&words).await.unwrap();
        assert_eq!(output.status.code(), Some(code), "{line}: {}\n{}", said(&output), self.eu.log_tail());
        String::from_utf8(output.stdout).unwrap()
    }

    /// What the daemon says is parked.
    async fn parked(&self) -> u64 {
        let status = self.eu.http_get("/status").await.unwrap().1;
        let status: Value = serde_json::from_str(&status).unwrap();
        let link = status["streams"].as_array().unwrap().iter().find(|stream| stream["role"] == "link");
        link.unwrap()["link"]["parked"].as_u64().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_parked_seen_and_applied_when_it_can_be() {
    let tables = "create table orders (id int8 primary key, note text);
                  create table lines (id int8 primary key, of int8, note text)";
    let stage = Stage::set(tables, "").await;
    let us = |sql: &'static str| stage.regions.us.execute(sql);
    let eu = |sql: &'static str| stage.regions.eu.execute(sql);
    assert_eq!(stage.command("parked", 0).await, "nothing is parked\n");
    stage.command("parked retry --all", 0).await;

    eu("insert into orders values (7, 'somebody else''s')").await.unwrap();
    us("insert into lines values (1, 7, 'whole or not at all'); insert into orders values (7, 'ours')")
        .await
        .unwrap();
    us("insert into orders values (8, 'another')").await.unwrap();
    us("update orders set note = 'newer' where id = 7").await.unwrap();
    us("insert into orders values (9, 'last')").await.unwrap();
    stage
        .holds(
            "select string_agg(id || note, ',' order by id) from orders",
            "7somebody else's,8another,9last",
        )
        .await;
    assert_eq!(stage.ask("select count(*)::text from lines").await.as_deref(), Some("0"));

    // Everybody can see it.
    let seen = eventually(PATIENCE, "two are shown as parked", async || Ok(stage.parked().await == 2));
    seen.await.unwrap();
    assert_eq!(stage.eu.metric("replication_parked_transactions").await.unwrap(), Some(2.0));
    let conflicts = "replication_conflicts_total{conflict_type=\"insert_exists\",resolution=\"parked\"}";
    assert_eq!(stage.eu.metric(conflicts).await.unwrap(), Some(1.0));
    let status = stage.command("status", 1).await;
    assert!(status.contains("2 transactions are parked") && status.contains("running"), "{status}");
    let listed = stage.command("parked", 1).await;
    for part in
        ["us-east-1/main, 2 changes", "[LF-CONFLICT]", "(id)=(7)", "parked transaction 1", "public.lines"]
    {
        assert!(listed.contains(part), "{part}: {listed}");
    }
    let listed: Value = serde_json::from_str(&stage.command("parked list --json", 1).await).unwrap();
    let [first, second] = &listed.as_array().unwrap()[..] else { panic!("{listed}") };
    assert_eq!((&first["code"], &second["code"]), (&"LF-CONFLICT".into(), &Value::Null));
    let shown = stage.command(&format!("parked show {}", first["id"]), 1).await;
    assert!(shown.contains("insert public.lines (id)=(1)") && !shown.contains("whole or not"), "{shown}");
    let shown = stage.command(&format!("parked show {} --show-values", second["id"]), 1).await;
    assert!(shown.contains("update public.orders (id)=(7)") && shown.contains("note=newer"), "{shown}");

    // While the cause stands nothing comes of asking; nor out of turn.
    let left = stage.command("parked retry --all", 1).await;
    assert!(left.contains("tried again once") && left.ends_with("0 applied, 2 stay\n"), "{left}");
    stage.command("parked retry 9999", 2).await;
    eu("delete from orders where id = 7").await.unwrap();
    let left = stage.command(&format!("parked retry {}", second["id"]), 1).await;
    assert!(left.contains("spoken for by parked transaction"), "{left}");
    assert_eq!(stage.command("parked retry --all", 0).await, "2 applied\n");
    stage.regions.equal(PATIENCE, &[&stage.eu]).await.unwrap();
    assert_eq!(stage.command("parked", 0).await, "nothing is parked\n");
    // Ready with its next look at the database, if that one was late.
    let well = async || Ok(stage.eu.command(&["status"]).await?.status.code() == Some(0));
    eventually(PATIENCE, "all is well", well).await.unwrap();

    // What is discarded is missing, as verification says, until it is repaired.
    eu("insert into orders values (20, 'somebody else''s')").await.unwrap();
    us("insert into orders values (20, 'ours'), (21, 'ours')").await.unwrap();
    let parks = eventually(PATIENCE, "another is parked", async || Ok(stage.parked().await == 1));
    parks.await.unwrap();
    let said = stage.command("parked discard 3", 1).await;
    assert!(said.contains("nothing was changed"), "{said}");
    assert_eq!(stage.parked().await, 1);
    assert_eq!(stage.command("parked discard 3 --execute", 0).await, "1 discarded\n");
    assert!(stage.eu.log().contains("discarded, as was asked for"));
    let differ = stage.command("verify", 1).await;
    assert!(differ.contains("21") && differ.contains("20"), "{differ}");
    stage.command("repair --execute", 0).await;
    stage.regions.equal(PATIENCE, &[&stage.eu]).await.unwrap();

    // A repair brings what is parked as well, and then nothing is.
    eu("insert into orders values (30, 'somebody else''s')").await.unwrap();
    us("insert into orders values (30, 'ours'), (31, 'ours')").await.unwrap();
    us("delete from orders where id = 31").await.unwrap();
    let parks = eventually(PATIENCE, "two are parked", async || Ok(stage.parked().await == 2));
    parks.await.unwrap();
    stage.command("repair --execute", 0).await;
    stage.regions.equal(PATIENCE, &[&stage.eu]).await.unwrap();
    let left = stage.command("parked", 1).await;
    assert!(left.contains("public.orders"), "of row 31 nothing differs, and nothing came anew: {left}");
    // What is left of it came and went.
    assert_eq!(stage.command("parked retry --all", 0).await, "2 applied\n");
    stage.regions.equal(PATIENCE, &[&stage.eu]).await.unwrap();

    // A link that has halted for something else still does what it is asked for at each of its looks.
    eu("insert into orders values (40, 'somebody else''s')").await.unwrap();
    us("insert into orders values (40, 'ours')").await.unwrap();
    let parks = eventually(PATIENCE, "one is parked", async || Ok(stage.parked().await == 1));
    parks.await.unwrap();
    eu("alter table lines rename to others; delete from orders where id = 40").await.unwrap();
    us("insert into lines values (2, 40, 'a table that is not there')").await.unwrap();
    let halts = eventually(PATIENCE, "the link halts", async || {
        Ok(stage.eu.http_get("/status").await?.1.contains("\"code\":\"LF-TABLE\""))
    });
    halts.await.unwrap();
    assert_eq!(stage.command("parked retry --all", 0).await, "1 applied\n");
    eu("alter table others rename to lines").await.unwrap();
    stage.regions.equal(PATIENCE, &[&stage.eu]).await.unwrap();
    let runs = eventually(PATIENCE, "the link runs", async || {
        Ok(stage.eu.command(&["status"]).await?.status.success())
    });
    runs.await.unwrap();
}

/// Small transactions on few rows of two tables; now and then one that is larger than a batch.
fn statement(_writer: u64, _done: u64, random: &mut StdRng) -> String {
    let (id, n) = (random.random_range(0..40), random.random::<u16>());
    let other = random.random_range(0..40);
    match random.random_range(0..10) {
        0..4 => format!("insert into a values ({id}, {n}) on conflict (id) do update set n = excluded.n"),
        4 => format!("delete from a where id = {id}"),
        5 => format!("delete from b where id = {id}; update a set n = {n} where id = {id}"),
        6 => format!(
            "insert into b values ({id}, {n}) on conflict (id) do update set n = excluded.n;
             insert into a values ({other}, {n}) on conflict (id) do nothing"
        ),
        7 => format!("update a set id = {other} where id = {id} and not exists (select from a where id = {other})"),
        8 => format!("update b set n = {n} where id % 2 = 0"),
        _ => format!(
            "insert into b select g, {n} from generate_series(100, 160) g on conflict (id) do update set n = excluded.n;
             insert into a values ({id}, {n}) on conflict (id) do nothing"
        ),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_point_what_is_parked_comes_once() {
    let seed = seed();
    let kills = std::env::var("LANDFALL_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(15);
    let tables = "create table a (id int8 primary key, n int4); create table b (id int8 primary key, n int4)";
    let mut stage = Stage::set(tables, "batch_changes = 20").await;
    let writers =
        Writers::start(&stage.regions.us, 2, seed, Duration::from_millis(5), statement).await.unwrap();
    // Somebody else writes here, and takes some of it back.
    let stranger = |_: u64, _: u64, random: &mut StdRng| {
        let id = random.random_range(0..40);
        if random.random_bool(0.5) {
            format!("insert into a values ({id}, -1) on conflict (id) do nothing")
        } else {
            format!("delete from a where n = -1 and id <= {id}; update landfall.parked set asked = 'retry'")
        }
    };
    let pause = Duration::from_millis(300);
    let strangers = Writers::start(&stage.regions.eu, 1, seed ^ 0xff, pause, stranger).await.unwrap();
    let mut random = StdRng::seed_from_u64(seed);
    for kill in 0..kills {
        let point = CRASH_POINTS[kill % CRASH_POINTS.len()];
        let reach = if point.starts_with("parked") { 1 } else { random.random_range(1..60) };
        stage.eu.die_at(point, reach, PATIENCE).await.unwrap();
    }
    let (written, _) = (writers.stop().await.unwrap(), strangers.stop().await.unwrap());
    println!("{} statements at the source", written.statements);
    let (us, eu) = (stage.regions.us.connect().await.unwrap(), stage.regions.eu.connect().await.unwrap());
    let equal = eventually(PATIENCE, "nothing is parked and the regions are equal", async || {
        stage.regions.eu.execute("delete from a where n = -1").await?;
        let retried = stage.eu.command(&["parked", "retry", "--all"]).await?;
        let (us, eu) = (checksum::database(&us).await?, checksum::database(&eu).await?);
        Ok(retried.status.success() && checksum::differences(&us, &eu).is_empty())
    });
    if let Err(error) = equal.await {
        let parked = stage.eu.command(&["parked"]).await.unwrap();
        panic!("{error:#}\n{}\n{}", said(&parked), stage.eu.log_tail());
    }
    stage.command("parked", 0).await;
    assert!(stage.eu.log().contains("parked as"), "nothing was ever refused");
}
