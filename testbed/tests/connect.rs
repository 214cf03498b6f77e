//! Debezium carries rows from one Postgres to another through Kafka Connect.
//! Without what `scripts/setup-rivals` fetches, these tests say so and pass.

use std::time::{Duration, Instant};

use testbed::connect::State;
use testbed::connect::debezium::{JdbcSink, PostgresSource};
use testbed::{Connect, Kafka, Postgres, eventually, home};

/// A worker on a busy machine; what happens takes a second or two.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether to go on. It prints why not, where nobody has fetched the rivals;
/// half of them missing is a failure of the test.
fn rivals_are_here() -> bool {
    let here = home::has_rivals();
    if !here {
        println!("skipped: there is no Kafka Connect here; scripts/setup-rivals fetches it");
    }
    here
}

const TABLE: &str =
    "create table t(id int8 primary key, grp int4, bal int8, name text, note text, ts timestamptz)";

/// All rows as one text.
const ROWS: &str = "select string_agg(t::text, E'\\n' order by id) from t";

#[tokio::test]
async fn debezium_carries_rows_from_one_postgres_to_another() {
    if !rivals_are_here() {
        return;
    }
    let (source, target, kafka) =
        tokio::try_join!(Postgres::start(15, "source"), Postgres::start(15, "target"), Kafka::start(1),)
            .unwrap();
    for postgres in [&source, &target] {
        postgres.create_database("shop").await.unwrap();
        postgres.execute("shop", TABLE).await.unwrap();
    }
    let started = Instant::now();
    let connect = Connect::start(&kafka).await.unwrap();
    println!("Kafka Connect took orders after {:?}", started.elapsed());

    let config = PostgresSource {
        port: source.port(),
        database: "shop",
        publication: "carried",
        slot: "debezium",
        tables: &["public.t"],
        topic_prefix: "p",
    };
    connect.create("source", &config.config()).await.unwrap();
    let config = JdbcSink { port: target.port(), database: "shop", topics_regex: "p\\.public\\..*" };
    connect.create("sink", &config.config()).await.unwrap();
    for name in ["source", "sink"] {
        connect.wait_running(name, PATIENCE).await.unwrap();
    }
    eventually(PATIENCE, "the source streams", async || {
        let active = "select count(*) from pg_replication_slots where slot_name = 'debezium' and active";
        Ok(source.query_text("shop", active).await?.as_deref() == Some("1"))
    })
    .await
    .unwrap();
    println!("both connectors ran after {:?}", started.elapsed());

    let changes = "insert into t select i, i % 7, i * 1000000000::int8, 'row ' || i, nullif(repeat('ü', i % 5), ''), \
                     timestamptz '2024-02-29 23:59:59.123456+00' + i * interval '1 hour' \
                     from generate_series(1, 1000) i; \
                   update t set bal = -bal, note = null where grp = 3; \
                   delete from t where grp = 5";
    let started = Instant::now();
    source.execute("shop", changes).await.unwrap();
    let wanted = source.query_text("shop", ROWS).await.unwrap();
    let outcome = eventually(PATIENCE, "all rows are there", async || {
        for name in ["source", "sink"] {
            if let State::Failed { trace } = connect.state(name).await? {
                anyhow::bail!("{name} has failed: {trace}");
            }
        }
        Ok(target.query_text("shop", ROWS).await? == wanted)
    })
    .await;
    outcome.unwrap_or_else(|error| panic!("{error:#}\n{}", connect.log_tail()));
    println!("1000 rows, their updates and deletes were there after {:?}", started.elapsed());
    println!("the worker holds {} MiB", connect.vm_rss_kib().unwrap() / 1024);

    connect.delete("sink").await.unwrap();
    let gone = connect.state("sink").await.unwrap_err();
    assert!(format!("{gone:#}").contains("404"), "{gone:#}");
    assert_eq!(connect.state("source").await.unwrap(), State::Running);
}
