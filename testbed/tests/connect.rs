//! Debezium carries rows from one Postgres to another through Kafka Connect,
//! and what stock readers of Kafka Connect make of Landfall's records is what
//! docs/wire-format.md says. Without what `scripts/setup-rivals` fetches, these tests say so and pass.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testbed::connect::State;
use testbed::connect::debezium::{JdbcSink, PostgresSource};
use testbed::kafka::Record;
use testbed::{Connect, Kafka, Postgres, eventually, home};

/// A worker on a busy machine; what happens takes a second or two.
const PATIENCE: Duration = Duration::from_secs(180);

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

/// Four records: a heartbeat with its empty key, then the insert, the update
/// and the delete that docs/wire-format.md shows; Landfall's own tests hold
/// those against what its code writes. The header is that page's example,
/// whose checksum no stranger looks at.
fn landfall_records() -> Vec<Record> {
    const HEADER: [u8; 32] = [
        1, 9, 0, 0, 0, 0, 0, 2, 0x9f, 0x2c, 0x41, 0xd0, 0x77, 0xab, 0xe6, 0x13, //
        0, 0, 0, 0, 0, 0, 0, 52, 0, 0, 0, 0, 0xd1, 0x76, 0x89, 0x3f,
    ];
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/wire-format.md"));
    let page = page.unwrap();
    let examples = |kind: &str, key: &str| -> Vec<Record> {
        let section = page.split("\n### ").find(|section| section.starts_with(kind)).unwrap();
        let values = section.split("```json\n").skip(1).map(|rest| rest.split("```").next().unwrap());
        let record = |value: &str| Record {
            key: Some(key.as_bytes().to_vec()),
            value: Some(value.as_bytes().to_vec()),
            headers: vec![("landfall".to_owned(), HEADER.to_vec())],
        };
        values.map(record).collect()
    };
    [examples("heartbeat (8)", ""), examples("change (4)", r#"{"id":"9007199254740993"}"#)].concat()
}

#[tokio::test]
async fn stock_readers_see_landfalls_records_as_plain_json() {
    const TOPIC: &str = "landfall.us-east-1.main";
    const UNWRAP: &str = "io.debezium.transforms.ExtractNewRecordState";
    const AFTER: &str = "org.apache.kafka.connect.transforms.ExtractField$Value";
    if !rivals_are_here() {
        return;
    }
    let (target, kafka) = tokio::try_join!(Postgres::start(15, "target"), Kafka::start(1)).unwrap();
    let orders =
        "create table orders(id int8 primary key, quantity int4, paid bool, price numeric, note text)";
    target.execute("postgres", orders).await.unwrap();
    kafka.create_topic(TOPIC, 1, &[]).await.unwrap();
    let records = landfall_records();
    assert_eq!(records.len(), 4);
    kafka.append(TOPIC, &records).await.unwrap();
    let connect = Connect::start(&kafka).await.unwrap();

    let without_schemas = |mut config: Value| {
        for converter in ["key.converter", "value.converter"] {
            config[converter] = json!("org.apache.kafka.connect.json.JsonConverter");
            config[format!("{converter}.schemas.enable")] = json!("false");
        }
        config
    };
    let transformed = |mut config: Value, transform: &str| {
        config["transforms"] = json!("t");
        config["transforms.t.type"] = json!(transform);
        config
    };
    let file = |name: &str| {
        let path = connect.dir().join(name);
        let to_file =
            json!({"connector.class": "FileStreamSink", "topics": TOPIC, "file": path.to_str().unwrap()});
        without_schemas(to_file)
    };
    let jdbc = JdbcSink { port: target.port(), database: "postgres", topics_regex: TOPIC }.config();
    let mut jdbc_of_one_table = without_schemas(jdbc.clone());
    jdbc_of_one_table["collection.name.format"] = json!("orders");
    let mut after = transformed(file("after"), AFTER);
    after["transforms.t.field"] = json!("after");
    for (name, config) in [
        ("plain", file("plain")),
        ("unwrapped", transformed(file("unwrapped"), UNWRAP)),
        ("after", after),
        ("jdbc", transformed(without_schemas(jdbc.clone()), UNWRAP)),
        ("jdbc-one-table", jdbc_of_one_table),
        ("jdbc-schemas", jdbc),
    ] {
        connect.create(name, &config).await.unwrap();
    }

    let written = |name: &str| std::fs::read_to_string(connect.dir().join(name)).unwrap_or_default();
    eventually(PATIENCE, "the files hold all records", async || {
        Ok(["plain", "unwrapped", "after"].iter().all(|name| written(name).lines().count() == 4))
    })
    .await
    .unwrap_or_else(|error| panic!("{error:#}\n{}", connect.log_tail()));
    // The converter takes every record, whatever its kind, key and header.
    let plain = written("plain");
    for (line, part) in plain.lines().zip(["beat={", "op=c", "op=u", "op=d"]) {
        assert!(line.contains(part) && line.contains("landfall={"), "{line}");
    }
    // Debezium's transformation knows an envelope by its schema, and lets
    // everything else pass as it is.
    assert_eq!(written("unwrapped"), plain);
    // Connect's own takes a field by its name.
    let after = written("after");
    let after: Vec<&str> = after.lines().collect();
    assert_eq!((after[0], after[3]), ("null", "null"));
    assert!(after[1].contains("price=NaN") && after[1].contains("note=null"), "{}", after[1]);
    assert!(after[2].contains("price=19.90") && !after[2].contains("note"), "{}", after[2]);

    const NO_SCHEMA: &str = "Configured primary key mode 'record_key' cannot have null schema";
    let in_log = async |what: &str, times: usize| {
        eventually(PATIENCE, what, async || Ok(connect.log().matches(what).count() >= times)).await.unwrap();
    };
    // The sink warns, passes over every record, and is well.
    in_log("No resolvable table name", records.len()).await;
    // Told a table's name, it fails, but says so at the next records only.
    in_log(NO_SCHEMA, 1).await;
    kafka.append(TOPIC, &records).await.unwrap();
    for (name, why) in
        [("jdbc-one-table", NO_SCHEMA), ("jdbc-schemas", "JsonConverter with schemas.enable requires")]
    {
        eventually(PATIENCE, &format!("{name} has failed"), async || match connect.state(name).await? {
            State::Failed { trace } if trace.contains(why) => Ok(true),
            other => anyhow::bail!("{other:?}"),
        })
        .await
        .unwrap();
    }
    in_log("No resolvable table name", 2 * records.len()).await;
    assert_eq!(connect.state("jdbc").await.unwrap(), State::Running);
    assert_eq!(target.query_text("postgres", "select count(*) from orders").await.unwrap().unwrap(), "0");
}
