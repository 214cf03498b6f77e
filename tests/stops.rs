//! Proves that what must stop a stream does, by name: each state is caused on real parts, shows its code,
//! what is in question and what to do, and nothing is skipped: what was not mended does not arrive, and
//! what was goes on by itself.

use std::time::Duration;

use landfall::{
    changelog::{
        Log, Writer,
        kafka::{KafkaLog, Topics, WriterLimits},
    },
    envelope::{Flags, HEADER_NAME, Header, Kind, body},
    kafka::{Cluster, TopicRules},
    lsn::Lsn,
    names,
    position::{Incarnation, Position, PostgresPosition, Sequence, WriterEpoch},
    stamp::Micros,
};
use rdkafka::{
    ClientConfig,
    message::{Header as KafkaHeader, OwnedHeaders},
    producer::{BaseRecord, Producer, ThreadedProducer},
};
use testbed::{Daemon, Postgres, Region, TwoRegions, eventually, postgres::Shutdown};

const LANDFALL: &str = env!("CARGO_BIN_EXE_landfall");
const TOPIC: &str = "landfall.us-east-1.main";
const SLOT: &str = "landfall_us_east_1_shop";
const PATIENCE: Duration = Duration::from_secs(180);
const DOWN: Duration = Duration::from_secs(60);
/// What docs/guarantees.md promises of a daemon that is frozen, where another stands by: ten seconds without a sign, and
/// those between two looks; and as many as a busy machine takes to start what takes over.
const TAKEN_OVER: Duration = Duration::from_secs(60);

/// Two regions with one table, a daemon each, one row across.
struct Stage {
    regions: TwoRegions,
    us: Daemon,
    eu: Daemon,
}

impl Stage {
    /// A second daemon of the receiving region.
    fn successor(&self) -> Daemon {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], testbed::ports::free().unwrap()));
        let eu = &self.regions.eu;
        let config = self.regions.eu_receives().replace(&eu.http.to_string(), &address.to_string());
        Daemon::builder(LANDFALL, "successor", &config).http(address).start().unwrap()
    }

    async fn set(more: &str) -> Self {
        Self::set_on(15, 18, more).await
    }

    async fn set_on(us_major: u16, eu_major: u16, more: &str) -> Self {
        let regions = TwoRegions::start(us_major, eu_major, 1).await.unwrap();
        regions.execute_both("create table t (id int8 primary key, note text)").await.unwrap();
        let us = regions
            .us
            .config()
            .source(&["public.*"])
            .to_toml()
            .replace("[source]", &format!("[source]\n{more}"));
        let us = regions.us.start_daemon(LANDFALL, &us).await.unwrap();
        let eu = regions.eu.start_daemon(LANDFALL, &regions.eu_receives()).await.unwrap();
        let stage = Self { regions, us, eu };
        stage.regions.us.begun(PATIENCE).await.unwrap();
        stage.write(1).await;
        stage.arrives(1).await;
        stage
    }

    async fn write(&self, id: i64) {
        self.regions.us.execute(&format!("insert into t values ({id}, 'row')")).await.unwrap();
    }

    async fn holds(&self, id: i64) -> bool {
        let sql = format!("select count(*)::text from t where id = {id}");
        self.regions.eu.postgres.query_text("shop", &sql).await.unwrap().as_deref() == Some("1")
    }

    async fn arrives(&self, id: i64) {
        let arrived =
            eventually(PATIENCE, &format!("row {id} arrives"), async || Ok(self.holds(id).await)).await;
        if let Err(error) = arrived {
            panic!("{error}\n--- us\n{}\n--- eu\n{}", self.us.log_tail(), self.eu.log_tail());
        }
    }

    /// Waits until the source warns so.
    async fn warns(&self, of: &str) {
        eventually(PATIENCE, &format!("it warns: {of}"), async || {
            Ok(self.us.http_get("/status").await?.1.contains(of))
        })
        .await
        .unwrap();
    }

    /// Waits until the halted link has looked twice more: once at least from its beginning.
    async fn looks_again(&self, code: &str) {
        let of = format!("replication_retries_total{{class=\"{code}\"}}");
        let looks = async || self.eu.metric(&of).await.unwrap().unwrap_or(0.0);
        let before = looks().await;
        eventually(PATIENCE, "it looks again", async || Ok(looks().await >= before + 2.0)).await.unwrap();
    }

    async fn sql(&self, sql: &str) -> String {
        self.regions.us.postgres.query_text("shop", sql).await.unwrap().unwrap_or_default()
    }

    async fn stop_source(&mut self) {
        self.us.sigterm(DOWN).await.unwrap();
        // The server notices a moment later that nobody reads the slot any more.
        eventually(PATIENCE, "nobody reads the slot", async || {
            Ok(self.sql("select bool_or(active)::text from pg_replication_slots").await == "false")
        })
        .await
        .unwrap();
    }

    /// Copies the source's server as it is now, and leaves its daemon stopped.
    async fn copy_of_server(&mut self) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        self.stop_source().await;
        self.regions.us.postgres.stop(Shutdown::Fast).await.unwrap();
        self.regions.us.postgres.backup_to(&copy.path().join("copy")).await.unwrap();
        self.regions.us.postgres.start_again().await.unwrap();
        copy
    }

    /// Puts the copy in the place of the source's server.
    async fn restore(&mut self, copy: &tempfile::TempDir) {
        self.regions.us.postgres.stop(Shutdown::Fast).await.unwrap();
        self.regions.us.postgres.restore_from(&copy.path().join("copy")).await.unwrap();
        self.regions.us.postgres.start_again().await.unwrap();
    }

    /// Waits for two checkpoints more: whatever the last may lie behind the stream's end, there is no row in it.
    async fn checkpoints(&self) {
        let kept = async || self.regions.us.kafka.end_offset("landfall.us-east-1.state").await;
        let before = kept().await.unwrap();
        eventually(PATIENCE, "two checkpoints more are kept", async || Ok(kept().await? >= before + 2))
            .await
            .unwrap();
    }

    /// Has retention take all of a stream whose source is away, once the sink has it.
    async fn tail_goes(&self) {
        let kafka = &self.regions.us.kafka;
        let end = kafka.end_offset(TOPIC).await.unwrap();
        // A place alone is kept a few seconds later.
        let reached = format!("select bool_and(kafka_offset + 1 >= {end})::text from landfall.progress");
        eventually(PATIENCE, "the sink is at the end", async || {
            Ok(self.regions.eu.postgres.query_text("shop", &reached).await?.as_deref() == Some("true"))
        })
        .await
        .unwrap();
        kafka.delete_records(TOPIC, end).await.unwrap();
    }

    async fn stop_sink(&mut self) {
        self.eu.sigterm(DOWN).await.unwrap();
    }

    /// Does what the link's remedy says: it goes on, and both regions hold the same rows.
    async fn recover(&self, next: i64) {
        let done = self.eu.command(&["recover", "--execute"]).await.unwrap();
        let told = testbed::said(&done);
        assert!(
            done.status.success(),
            "{told}\n--- us\n{}\n--- eu\n{}",
            self.us.log_tail(),
            self.eu.log_tail()
        );
        println!("{told}");
        self.regions.equal(PATIENCE, &[&self.us, &self.eu]).await.unwrap();
        shows(&self.eu, "us-east-1", "running", None).await;
        self.write(next).await;
        self.arrives(next).await;
    }

    /// Writes megabytes of log, more than a server's own records move the slot by meanwhile, and waits until both metrics
    /// and status tell that the slot keeps them.
    async fn slot_grows(&self) {
        let known =
            eventually(DOWN, "the slot's figures are told", async || Ok(slot(&self.us).await.is_some()));
        if let Err(error) = known.await {
            panic!("{error}\n{}", self.us.log_tail());
        }
        let (retained, safe) = slot(&self.us).await.unwrap();
        self.sql("select pg_logical_emit_message(false, 'fill', repeat('x', 32000000))::text").await;
        let mut told = None;
        let grown = eventually(DOWN, "they grow with the log", async || {
            told = slot(&self.us).await;
            Ok(told.is_some_and(|(kept, left)| kept >= retained + 8e6 && left <= safe - 8e6))
        });
        if let Err(error) = grown.await {
            panic!("{error}: {told:?} after {retained} and {safe}\n{}", self.us.log_tail());
        }
    }

    /// Waits until as many sessions as that look at the slot for nobody else.
    async fn watched_by(&self, sessions: &str) {
        let count =
            "select count(*)::text from pg_stat_activity where application_name like 'landfall watch%'";
        eventually(DOWN, &format!("{sessions} sessions watch the slot"), async || {
            Ok(self.regions.us.postgres.query_text("shop", count).await?.as_deref() == Some(sessions))
        })
        .await
        .unwrap();
    }
}

/// What a slot retains and what may still be written, where metrics and status tell it.
async fn slot(daemon: &Daemon) -> Option<(f64, f64)> {
    let retained = daemon.metric("replication_slot_retained_bytes").await.unwrap();
    let safe = daemon.metric("replication_slot_safe_bytes").await.unwrap();
    let status: serde_json::Value =
        serde_json::from_str(&daemon.http_get("/status").await.unwrap().1).unwrap();
    let source = status["streams"].as_array()?.iter().find(|stream| stream["role"] == "source")?;
    source["source"]["slot_retained_bytes"].as_u64()?;
    retained.zip(safe)
}

/// Waits until a road of the daemon shows the code, and returns what it says: message and remedy.
async fn shows(daemon: &Daemon, from: &str, state: &str, code: Option<&str>) -> String {
    let found = std::cell::RefCell::new(String::new());
    let awaited = format!("{from} is {state} with {code:?}");
    let outcome = eventually(PATIENCE, &awaited, async || {
        let (_, page) = daemon.http_get("/status").await?;
        let status: serde_json::Value = serde_json::from_str(&page)?;
        let streams = status["streams"].as_array().cloned().unwrap_or_default();
        *found.borrow_mut() = page;
        let stream = streams.iter().find(|stream| {
            stream["from"] == from
                && stream["state"] == state
                && code.is_none_or(|code| stream["code"] == code)
        });
        let Some(stream) = stream else { return Ok(false) };
        *found.borrow_mut() = format!(
            "{} | {} | {}",
            stream["message"].as_str().unwrap_or(""),
            stream["remedy"].as_str().unwrap_or(""),
            stream["warnings"]
        );
        Ok(true)
    });
    if let Err(error) = outcome.await {
        panic!("{error}; {}\n{}", found.borrow(), daemon.log_tail());
    }
    let said = found.into_inner();
    println!("{} {said}", code.unwrap_or(state));
    said
}

async fn halts(daemon: &Daemon, from: &str, code: &str) -> String {
    shows(daemon, from, "halted", Some(code)).await
}

/// What `check` finds that a source does not run with, by kind.
async fn errors(daemon: &Daemon) -> Vec<String> {
    let output = daemon.command(&["check", "--json"]).await.unwrap();
    let found: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let errors = found.iter().filter(|finding| finding["severity"] == "error");
    errors.map(|finding| finding["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_gone_and_one_made_anew_in_its_place() {
    let mut stage = Stage::set("").await;
    stage.stop_source().await;
    stage.sql(&format!("select pg_drop_replication_slot('{SLOT}')")).await;
    stage.us.start_again().unwrap();
    let said = halts(&stage.us, "us-east-1", "LF-SLOT-MISSING").await;
    assert!(said.contains(SLOT) && said.contains("incarnation"), "{said}");
    assert_eq!(errors(&stage.us).await, ["slot-missing"]);
    stage.write(2).await;
    stage.sql(&format!("select pg_create_logical_replication_slot('{SLOT}', 'pgoutput')::text")).await;
    let said = halts(&stage.us, "us-east-1", "LF-SLOT-AHEAD").await;
    assert!(said.contains("confirmed up to"), "{said}");
    assert!(!stage.holds(2).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_advanced_by_hand() {
    let mut stage = Stage::set("").await;
    stage.stop_source().await;
    stage.write(2).await;
    stage.sql(&format!("select pg_replication_slot_advance('{SLOT}', pg_current_wal_lsn())::text")).await;
    stage.us.start_again().unwrap();
    let said = halts(&stage.us, "us-east-1", "LF-SLOT-AHEAD").await;
    assert!(said.contains("what lies between is lost"), "{said}");
    assert!(!stage.holds(2).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_the_server_gave_up() {
    let mut stage = Stage::set("").await;
    stage.stop_source().await;
    stage.regions.us.postgres.set("max_slot_wal_keep_size", "16MB").await.unwrap();
    for _ in 0..4 {
        stage.sql("select pg_logical_emit_message(false, 'fill', repeat('x', 16000000))::text").await;
        stage.sql("select pg_switch_wal()::text").await;
    }
    stage.regions.us.execute("checkpoint").await.unwrap();
    stage.us.start_again().unwrap();
    let said = halts(&stage.us, "us-east-1", "LF-SLOT-LOST").await;
    assert!(said.contains("committed after"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_under_the_same_name() {
    let mut stage = Stage::set("").await;
    stage.stop_source().await;
    let other = Postgres::start(15, "other").await.unwrap();
    other.create_database("shop").await.unwrap();
    let system = stage.sql("select system from landfall.stream").await;
    let incarnation = stage.sql("select incarnation from landfall.stream").await;
    let copied = format!(
        "create table t (id int8 primary key, note text);
         create schema landfall;
         create table landfall.stream (stream text primary key, incarnation text not null, live boolean not null,
             writer_epoch bigint not null, system text not null, consistent pg_lsn not null, slot text not null,
             scope text[] not null, begun timestamptz not null default now());
         insert into landfall.stream
             values ('main', '{incarnation}', true, 3, '{system}', '0/1', '{SLOT}', '{{public.t}}');"
    );
    other.execute("shop", &copied).await.unwrap();
    let owned = "create role landfall login; alter schema landfall owner to landfall;
                 alter table landfall.stream owner to landfall";
    other.execute("shop", owned).await.unwrap();
    let url = other.url_as("landfall", "shop");
    let config = stage.regions.us.config().source(&["public.*"]).database_url(&url).to_toml();
    stage.us.set_config(&config).unwrap();
    let grants = stage.us.command(&["check", "--grants"]).await.unwrap();
    other.execute("shop", &String::from_utf8_lossy(&grants.stdout)).await.unwrap();
    stage.us.start_again().unwrap();
    let said = halts(&stage.us, "us-east-1", "LF-SERVER-CHANGED").await;
    assert!(said.contains("system"), "{said}");
    assert_eq!(errors(&stage.us).await, ["server-changed", "slot-missing"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_restored_from_a_copy_even_one_that_has_outgrown_the_log() {
    let mut stage = Stage::set("").await;
    let copy = stage.copy_of_server().await;
    stage.us.start_again().unwrap();
    stage.write(2).await;
    stage.arrives(2).await;
    stage.stop_source().await;
    stage.restore(&copy).await;
    stage.us.start_again().unwrap();
    halts(&stage.us, "us-east-1", "LF-SERVER-DIVERGED").await;
    // It outgrows what the log has seen of the other life.
    for id in 3..60 {
        stage.write(id).await;
    }
    stage.sql("select pg_logical_emit_message(false, 'fill', repeat('x', 8000000))::text").await;
    stage.us.kill9().unwrap();
    stage.us.start_again().unwrap();
    halts(&stage.us, "us-east-1", "LF-SERVER-DIVERGED").await;
    assert!(!stage.holds(3).await);
}

/// An epoch is raised in the database: a copy has forgotten those that were raised after it was made, and
/// gives the next writer one that the log knows already.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_server_gives_an_epoch_that_was_taken() {
    let mut stage = Stage::set("").await;
    let copy = stage.copy_of_server().await;
    stage.write(2).await;
    // It dies when the row stands in the log, and before a checkpoint knows its epoch.
    stage.us.set_env("LANDFALL_CRASH_AT", "capture.after_ack:1");
    stage.us.start_again().unwrap();
    stage.us.wait_exit(DOWN).await.unwrap();
    stage.us.remove_env("LANDFALL_CRASH_AT");
    stage.arrives(2).await;
    stage.restore(&copy).await;
    stage.us.start_again().unwrap();
    halts(&stage.us, "us-east-1", "LF-SERVER-DIVERGED").await;
    shows(&stage.eu, "us-east-1", "running", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_deleted_and_one_made_anew_in_its_place() {
    let stage = Stage::set("").await;
    let kafka = &stage.regions.us.kafka;
    kafka.delete_topic(TOPIC).await.unwrap();
    let said = halts(&stage.us, "us-east-1", "LF-TOPIC-LOST").await;
    assert!(said.contains(TOPIC) || said.contains("topic"), "{said}");
    assert_eq!(errors(&stage.us).await, ["topic"]);
    halts(&stage.eu, "us-east-1", "LF-TOPIC-LOST").await;
    let settings = [
        ("message.timestamp.type", "LogAppendTime"),
        ("retention.ms", "86400000"),
        ("retention.bytes", "-1"),
    ];
    kafka.create_topic(TOPIC, 1, &settings).await.unwrap();
    stage.write(2).await;
    // Each has looked at the new one by then: what a halt says is what its last look found.
    eventually(PATIENCE, "the link has seen that it is another", async || {
        Ok(halts(&stage.eu, "us-east-1", "LF-TOPIC-LOST").await.contains("ends at offset"))
    })
    .await
    .unwrap();
    eventually(PATIENCE, "so has the source", async || {
        Ok(!halts(&stage.us, "us-east-1", "LF-TOPIC-LOST").await.contains("does not exist"))
    })
    .await
    .unwrap();
    assert!(!stage.holds(2).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_deleted_before_they_were_read() {
    let mut stage = Stage::set("").await;
    stage.stop_sink().await;
    stage.write(2).await;
    stage.write(3).await;
    let kafka = &stage.regions.us.kafka;
    let before = kafka.end_offset(TOPIC).await.unwrap();
    eventually(PATIENCE, "the rows are captured", async || Ok(kafka.end_offset(TOPIC).await? > before + 2))
        .await
        .unwrap();
    let gone = kafka.end_offset(TOPIC).await.unwrap();
    kafka.delete_records(TOPIC, gone).await.unwrap();
    stage.eu.start_again().unwrap();
    let said = halts(&stage.eu, "us-east-1", "LF-RETENTION-PASSED").await;
    assert!(said.contains(&gone.to_string()) && said.contains("applied through"), "{said}");
    assert!(!stage.holds(3).await);
    // A target that holds nothing of the stream needs its beginning, which is gone as well.
    stage.stop_sink().await;
    stage.regions.eu.execute("drop schema landfall cascade").await.unwrap();
    stage.regions.eu.grant(&stage.eu).await.unwrap();
    stage.eu.start_again().unwrap();
    halts(&stage.eu, "us-east-1", "LF-GENESIS-GONE").await;
    let (code, health) = stage.eu.http_get("/health/ready").await.unwrap();
    assert!(code == 503 && health.contains("\"system_mode\":\"joining\""), "{health}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_that_retention_took_while_the_source_was_down() {
    let mut stage = Stage::set("checkpoint_interval = \"1s\"").await;
    stage.write(2).await;
    stage.arrives(2).await;
    stage.checkpoints().await;
    stage.stop_source().await;
    stage.write(3).await;
    stage.tail_goes().await;
    stage.us.start_again().unwrap();
    stage.arrives(3).await;
    stage.write(4).await;
    stage.arrives(4).await;
    shows(&stage.eu, "us-east-1", "running", None).await;
    // A server that dies forgets what it was told last, and sends again what the checkpoint speaks of.
    stage.checkpoints().await;
    stage.us.kill9().unwrap();
    stage.regions.us.postgres.stop(Shutdown::Immediate).await.unwrap();
    stage.regions.us.postgres.start_again().await.unwrap();
    stage.write(5).await;
    stage.tail_goes().await;
    stage.us.start_again().unwrap();
    stage.arrives(5).await;
    shows(&stage.eu, "us-east-1", "running", None).await;
    assert!(stage.us.log().contains("the server has the last transaction of it"), "{}", stage.us.log_tail());
}

/// What it writes from then on would be taken for what the other regions have.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_restored_from_a_copy_whose_tail_retention_took() {
    let mut stage = Stage::set("checkpoint_interval = \"1s\"").await;
    let copy = stage.copy_of_server().await;
    stage.us.start_again().unwrap();
    stage.write(2).await;
    stage.arrives(2).await;
    stage.checkpoints().await;
    stage.stop_source().await;
    stage.tail_goes().await;
    stage.restore(&copy).await;
    stage.us.start_again().unwrap();
    let said = halts(&stage.us, "us-east-1", "LF-SERVER-DIVERGED").await;
    assert!(said.contains("the server's log ends at"), "{said}");
    // It outgrows what the stream has seen of the other life.
    stage.write(3).await;
    stage.sql("select pg_logical_emit_message(false, 'fill', repeat('x', 8000000))::text").await;
    stage.us.kill9().unwrap();
    stage.us.start_again().unwrap();
    let outgrown =
        async || Ok(!halts(&stage.us, "us-east-1", "LF-SERVER-DIVERGED").await.contains("ends at"));
    eventually(PATIENCE, "it is told by what it sends", outgrown).await.unwrap();
    // Nothing of it went out: a region that is behind would have taken it for the stream's.
    shows(&stage.eu, "us-east-1", "running", None).await;
    assert!(!stage.holds(3).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_added() {
    let stage = Stage::set("").await;
    stage.regions.us.kafka.add_partitions(TOPIC, 2).await.unwrap();
    let said = halts(&stage.us, "us-east-1", "LF-PARTITIONS").await;
    assert!(said.contains("2 partitions"), "{said}");
    halts(&stage.eu, "us-east-1", "LF-PARTITIONS").await;
}

/// The records behind the one that is refused must not come before it.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_larger_than_the_topic_takes() {
    let stage = Stage::set("").await;
    stage.regions.execute_both("create table large (id int8 primary key, body bytea)").await.unwrap();
    let add = "alter publication landfall add table large";
    stage.regions.us.execute(add).await.unwrap();
    let grants = "grant select, insert, update, delete, truncate on large to landfall";
    stage.regions.eu.execute(grants).await.unwrap();
    stage.regions.us.kafka.alter_config(TOPIC, &[("max.message.bytes", "300000")]).await.unwrap();
    // What does not compress, and at once behind it many requests of what does.
    let writes = "begin;
        insert into large select 1, decode(string_agg(md5(random()::text), ''), 'hex') from generate_series(1, 40000);
        insert into large select g, 'small' from generate_series(2, 50000) g;
        commit";
    stage.regions.us.execute(writes).await.unwrap();
    let said = shows(&stage.us, "us-east-1", "retrying", Some("LF-KAFKA-REJECTED")).await;
    assert!(said.contains("max.message.bytes"), "{said}");
    // As nothing goes through, it is tried later and later.
    eventually(PATIENCE, "attempts are counted", async || {
        let status: serde_json::Value = serde_json::from_str(&stage.us.http_get("/status").await?.1)?;
        Ok(status["streams"][0]["attempt"].as_u64() >= Some(5))
    })
    .await
    .unwrap();
    stage.regions.us.kafka.alter_config(TOPIC, &[("max.message.bytes", "2000000")]).await.unwrap();
    stage.write(2).await;
    stage.arrives(2).await;
    stage.regions.equal(PATIENCE, &[&stage.us, &stage.eu]).await.unwrap();
    for daemon in [&stage.us, &stage.eu] {
        assert!(!daemon.log().contains("LF-SEQUENCE"), "{}", daemon.log_tail());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_whose_settings_lose_data() {
    let regions = TwoRegions::start(15, 18, 1).await.unwrap();
    regions.us.execute("create table t (id int8 primary key)").await.unwrap();
    regions.us.kafka.create_topic(TOPIC, 1, &[("retention.ms", "3600000")]).await.unwrap();
    let us = regions.us.start_daemon(LANDFALL, &regions.us_sends()).await.unwrap();
    let said = halts(&us, "us-east-1", "LF-TOPIC-SETTINGS").await;
    assert!(
        said.contains("retention.ms=3600000")
            && said.contains("--add-config")
            && said.contains("LogAppendTime"),
        "{said}"
    );
    // The other one it needs may be made beforehand, too: as is shown, and not otherwise.
    let check = async || testbed::said(&us.command(&["check"]).await.unwrap());
    let (state, found) = ("landfall.us-east-1.state", check().await);
    let brokers = regions.us.kafka.local();
    let shown = format!("kafka-topics.sh --bootstrap-server {brokers} --create --topic {state} ");
    assert!(found.contains(&shown) && found.contains("--config cleanup.policy=compact"), "{found}");
    regions.us.kafka.create_topic(state, 1, &[("cleanup.policy", "delete")]).await.unwrap();
    let found = check().await;
    assert!(found.contains(&format!("topic {state}: cleanup.policy=delete, must be")), "{found}");
}

/// A stream of an invented region, written by hand.
struct Forged {
    log: KafkaLog,
    topic: String,
    brokers: String,
}

impl Forged {
    const INCARNATION: Incarnation = Incarnation(7);

    async fn begin(region: &str, brokers: &str) -> Self {
        let region = region.parse().unwrap();
        let topic = names::topic(&region, "main");
        let cluster = Cluster { brokers: vec![brokers.to_owned()], properties: Vec::new() };
        let rules = TopicRules {
            retention: Duration::from_secs(86_400),
            replication_factor: 1,
            min_insync_replicas: 1,
            compacted: false,
        };
        let topics = Topics::of(&region, "main");
        let log = KafkaLog::new(cluster, topics, "forge".into(), rules, WriterLimits::default()).unwrap();
        log.ensure(true).await.unwrap();
        let forged = Self { log, topic, brokers: brokers.to_owned() };
        let consistent = at(1);
        let server = body::Server { system: "1".into(), timeline: 1 };
        let genesis = body::Genesis {
            region: region.to_string(),
            stream: "main".into(),
            server: server.clone(),
            database: "shop".into(),
            consistent,
            scope: Vec::new(),
            time: Micros(0),
        };
        let barrier = body::Barrier { server, time: Micros(0), anchor: None };
        forged
            .append(&[
                (Kind::Barrier, 0, body::to_value(&barrier)),
                (Kind::Genesis, 1, body::to_value(&genesis)),
            ])
            .await;
        forged
    }

    async fn append(&self, records: &[(Kind, u64, Vec<u8>)]) {
        let mut writer = self.log.writer().unwrap();
        for (kind, sequence, value) in records {
            writer.append(&header(*kind, *sequence), b"", value).await.unwrap();
        }
        writer.hand_over().await.unwrap();
        while writer.acknowledged() < records.len() as u64 {
            writer.acknowledged_beyond(writer.acknowledged()).await.unwrap();
        }
    }

    fn append_raw(&self, sealed: Option<&[u8]>, value: &[u8]) {
        append_raw(&self.brokers, &self.topic, sealed, value);
    }
}

fn append_raw(brokers: &str, topic: &str, sealed: Option<&[u8]>, value: &[u8]) {
    let producer: ThreadedProducer<rdkafka::producer::DefaultProducerContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
    let mut record = BaseRecord::<[u8], [u8]>::to(topic).partition(0).key(&b""[..]).payload(value);
    if let Some(sealed) = sealed {
        let header = KafkaHeader { key: HEADER_NAME, value: Some(sealed) };
        record = record.headers(OwnedHeaders::new().insert(header));
    }
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(PATIENCE).unwrap();
}

fn header(kind: Kind, sequence: u64) -> Header {
    Header {
        kind,
        flags: Flags::NONE,
        epoch: WriterEpoch(1),
        incarnation: Forged::INCARNATION,
        sequence: Sequence(sequence),
    }
}

fn at(lsn: u64) -> Position {
    Position::Postgres(PostgresPosition { commit: Lsn(lsn), end: Lsn(lsn), xid: 0, time: Micros(0) })
}

fn idle(lsn: u64) -> Vec<u8> {
    body::to_value(&body::Idle { position: at(lsn) })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_stream_stops_alone() {
    let regions = TwoRegions::start(15, 18, 1).await.unwrap();
    regions.execute_both("create table t (id int8 primary key, note text)").await.unwrap();
    let brokers = regions.us.kafka.local();
    let names = ["hole", "repeat", "foreign", "corrupt", "unknown", "newer", "late"];
    let mut config = regions.eu.config().link(&regions.us);
    for name in names {
        config = config.link_to(name, &brokers);
    }
    let us = regions.us.start_daemon(LANDFALL, &regions.us_sends()).await.unwrap();
    let mut streams = Vec::new();
    for name in names {
        let stream = Forged::begin(name, &brokers).await;
        stream.append(&[(Kind::Idle, 2, idle(2))]).await;
        streams.push(stream);
    }
    let [hole, repeat, foreign, corrupt, unknown, newer, late] = &streams[..] else { unreachable!() };
    hole.append(&[(Kind::Idle, 4, idle(4))]).await;
    repeat.append(&[(Kind::Idle, 2, idle(2))]).await;
    foreign.append_raw(None, b"{\"hello\":1}");
    let value = idle(3);
    let good = header(Kind::Idle, 3).seal(b"", &value);
    let mut spoiled = value.clone();
    spoiled[20] ^= 1;
    corrupt.append_raw(Some(&good), &spoiled);
    let mut kind = good;
    kind[1] = 200;
    let mut sum = crc32fast::Hasher::new();
    // The key is empty, and its length stands before it.
    [&kind[..28], &[0; 4], &value].into_iter().for_each(|part| sum.update(part));
    kind[28..].copy_from_slice(&sum.finalize().to_be_bytes());
    unknown.append_raw(Some(&kind), &value);
    let mut version = good;
    version[0] = 2;
    newer.append_raw(Some(&version), &value);
    // A dead writer's late write behind a barrier is no damage: dropped, and counted.
    let server = body::Server { system: "1".into(), timeline: 1 };
    let barrier = body::to_value(&body::Barrier { server, time: Micros(0), anchor: None });
    let second = |kind, sequence| Header { epoch: WriterEpoch(2), ..header(kind, sequence) };
    late.append_raw(Some(&second(Kind::Barrier, 0).seal(b"", &barrier)), &barrier);
    late.append(&[(Kind::Idle, 3, idle(3))]).await;
    late.append_raw(Some(&second(Kind::Idle, 3).seal(b"", &value)), &value);

    let eu = regions.eu.start_daemon(LANDFALL, &config.to_toml()).await.unwrap();
    for (name, code, says) in [
        ("hole", "LF-SEQUENCE", "#2 comes #4"),
        ("repeat", "LF-SEQUENCE", "#2 comes #2 again"),
        ("foreign", "LF-RECORD", "something else than Landfall"),
        ("corrupt", "LF-RECORD", "checksum"),
        ("unknown", "LF-RECORD", "unknown kind 200"),
        ("newer", "LF-RECORD", "version is 2"),
    ] {
        let said = halts(&eu, name, code).await;
        assert!(said.contains(says) && said.contains("offset"), "{said}");
    }
    shows(&eu, "late", "running", None).await;
    eventually(PATIENCE, "the late record is dropped and counted", async || {
        Ok(eu.metric("replication_stale_records_dropped_total{from=\"late\"}").await? >= Some(1.0))
    })
    .await
    .unwrap();
    // Another stream of the same daemon goes on. What was written before it began no link can find.
    regions.us.begun(PATIENCE).await.unwrap();
    regions.us.execute("insert into t values (1, 'row')").await.unwrap();
    let target = regions.eu.connect().await.unwrap();
    eventually(PATIENCE, "the healthy stream goes on", async || {
        Ok(target.query_one("select count(*) from t", &[]).await?.get::<_, i64>(0) == 1)
    })
    .await
    .unwrap();
    drop(us);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_daemon_wakes_after_its_successor_took_over() {
    let mut stage = Stage::set("").await;
    stage.eu.sigstop().unwrap();
    let successor = stage.successor();
    let said = shows(&successor, "us-east-1", "standby", None).await;
    assert!(!said.is_empty());
    stage.write(2).await;
    stage.arrives(2).await;
    shows(&successor, "us-east-1", "running", None).await;
    stage.eu.sigcont().unwrap();
    shows(&stage.eu, "us-east-1", "standby", None).await;
    stage.write(3).await;
    stage.arrives(3).await;
    shows(&successor, "us-east-1", "running", None).await;
    // What it shows from now on is how the target stands, which the other brings up to date.
    assert_eq!(stage.eu.metric("replication_buffer_headroom_seconds").await.unwrap(), None);
    let lag = async || stage.eu.metric("replication_lag_seconds").await;
    let mut before = lag().await.unwrap();
    eventually(PATIENCE, "its lag is the target's", async || {
        let now = lag().await?;
        Ok(std::mem::replace(&mut before, now) > now && now.is_some())
    })
    .await
    .unwrap();
}

/// Where its log lost what a link has applied, the source may go on: the link is brought past it by what its remedy says,
/// with what was deleted meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_place_beyond_the_end_of_the_topic() {
    let mut stage = Stage::set("").await;
    stage.regions.us.execute("grant select on t to landfall").await.unwrap();
    let rows = "insert into t select g, 'row' from generate_series(2, 100) g";
    stage.regions.us.execute(rows).await.unwrap();
    stage.arrives(100).await;
    stage.stop_sink().await;
    let place = "update landfall.progress set kafka_offset = kafka_offset + 1000000";
    stage.regions.eu.execute(place).await.unwrap();
    let missed = "delete from t where id <= 20; update t set note = 'changed' where id <= 30; insert into t values (101, 'row')";
    stage.regions.us.execute(missed).await.unwrap();
    stage.eu.start_again().unwrap();
    let said = halts(&stage.eu, "us-east-1", "LF-POSITION-BEYOND-END").await;
    assert!(said.contains("ends at offset") && said.contains("`landfall recover` in this region"), "{said}");
    assert!(stage.holds(1).await && !stage.holds(101).await);
    stage.recover(102).await;
    assert!(!stage.holds(1).await);

    // The source has gone on from a lost end: at the place of what was applied stands the barrier of its next writer, and
    // what follows has numbers that were applied of the end.
    stage.stop_sink().await;
    stage
        .regions
        .us
        .execute("delete from t where id <= 40; insert into t values (103, 'row')")
        .await
        .unwrap();
    stage.stop_source().await;
    let kafka = &stage.regions.us.kafka;
    let barrier = kafka.end_offset(TOPIC).await.unwrap();
    stage.us.start_again().unwrap();
    eventually(
        PATIENCE,
        "the next writer appends",
        async || Ok(kafka.end_offset(TOPIC).await? > barrier + 1),
    )
    .await
    .unwrap();
    let place =
        format!("update landfall.progress set sequence = sequence + 1000000, kafka_offset = {barrier}");
    stage.regions.eu.execute(&place).await.unwrap();
    stage.eu.start_again().unwrap();
    let said = halts(&stage.eu, "us-east-1", "LF-SEQUENCE").await;
    assert!(said.contains("lost its end") && said.contains("where only a link has halted"), "{said}");
    assert!(stage.holds(40).await && !stage.holds(103).await);
    stage.recover(104).await;
    assert!(!stage.holds(40).await);

    // What another program wrote is passed in the same way.
    append_raw(&stage.regions.us.kafka.local(), TOPIC, None, b"{\"hello\":1}");
    let said = halts(&stage.eu, "us-east-1", "LF-RECORD").await;
    assert!(said.contains("something else than Landfall"), "{said}");
    stage.regions.us.execute("delete from t where id <= 50").await.unwrap();
    stage.recover(105).await;
    assert!(!stage.holds(50).await);
    shows(&stage.us, "us-east-1", "running", None).await;
}

/// Most of all while nothing is read does a slot fill its server's disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_is_told_of_while_its_stream_stands_and_unknown_once_nobody_can_look() {
    let mut stage = Stage::set("").await;
    stage.regions.us.postgres.set("max_slot_wal_keep_size", "1GB").await.unwrap();
    stage.watched_by("0").await;
    stage.regions.us.execute("alter publication landfall drop table t").await.unwrap();
    halts(&stage.us, "us-east-1", "LF-PUBLICATION").await;
    stage.slot_grows().await;
    stage.watched_by("1").await;

    // A daemon that never got as far as its stream, for want of Kafka.
    stage.stop_source().await;
    stage.regions.us.execute("alter publication landfall add table t").await.unwrap();
    stage.regions.us.kafka.kill(0).await.unwrap();
    stage.us.start_again().unwrap();
    shows(&stage.us, "us-east-1", "retrying", Some("LF-KAFKA-UNREACHABLE")).await;
    stage.slot_grows().await;

    stage.regions.us.postgres.stop(Shutdown::Immediate).await.unwrap();
    eventually(DOWN, "what nobody can look at is unknown", async || {
        Ok(stage.us.metric("replication_slot_retained_bytes").await?.is_none()
            && slot(&stage.us).await.is_none())
    })
    .await
    .unwrap();
    stage.regions.us.postgres.start_again().await.unwrap();
    stage.slot_grows().await;
    stage.regions.us.kafka.start_again(0).await.unwrap();
    shows(&stage.us, "us-east-1", "running", None).await;
    stage.watched_by("0").await;
    assert!(slot(&stage.us).await.is_some(), "the session looks now");
    stage.write(2).await;
    stage.arrives(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_somebody_else_wrote() {
    let stage = Stage::set("").await;
    let target = |sql: &'static str| stage.regions.eu.execute(sql);
    target("insert into t values (2, 'not ours')").await.unwrap();
    stage.write(2).await;
    let said = halts(&stage.eu, "us-east-1", "LF-CONFLICT").await;
    assert!(said.contains("public") && said.contains("t") && said.contains('2'), "{said}");
    stage.looks_again("LF-CONFLICT").await;
    let conflicts =
        stage.eu.metric("replication_conflicts_total{conflict_type=\"insert_exists\"}").await.unwrap();
    assert_eq!(conflicts, Some(1.0));
    stage.write(3).await;
    stage.looks_again("LF-CONFLICT").await;
    assert!(!stage.holds(3).await);
    target("delete from t where id = 2").await.unwrap();
    stage.arrives(3).await;
    shows(&stage.eu, "us-east-1", "running", None).await;
    target("delete from t where id = 2").await.unwrap();
    stage.regions.us.execute("update t set note = 'changed' where id = 2").await.unwrap();
    halts(&stage.eu, "us-east-1", "LF-CONFLICT").await;
    target("insert into t values (2, 'row')").await.unwrap();
    shows(&stage.eu, "us-east-1", "running", None).await;
    target("delete from t where id = 3").await.unwrap();
    stage.regions.us.execute("delete from t where id = 3").await.unwrap();
    halts(&stage.eu, "us-east-1", "LF-CONFLICT").await;
    target("insert into t values (3, 'row')").await.unwrap();
    stage.write(4).await;
    stage.arrives(4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_lost_a_table_or_is_gone_and_a_table_that_is_new() {
    let stage = Stage::set("").await;
    stage.regions.us.execute("create table fresh (id int8 primary key)").await.unwrap();
    stage.warns("\\\"fresh\\\" is not published").await;
    shows(&stage.us, "us-east-1", "running", None).await;
    stage.regions.us.execute("alter publication landfall add table fresh").await.unwrap();
    eventually(PATIENCE, "the stream carries it", async || {
        let carried = "select ('public.fresh' = any (scope))::text from landfall.stream";
        Ok(stage.regions.us.postgres.query_text("shop", carried).await?.as_deref() == Some("true"))
    })
    .await
    .unwrap();
    // One that it began with, and one that came later.
    for table in ["t", "fresh"] {
        let lost = format!("alter publication landfall drop table {table}");
        stage.regions.us.execute(&lost).await.unwrap();
        let said = halts(&stage.us, "us-east-1", "LF-PUBLICATION").await;
        let mend = format!("ALTER PUBLICATION \"landfall\" ADD TABLE \"public\".\"{table}\"");
        assert!(said.contains(&mend) && said.contains("landfall verify"), "{said}");
        stage.regions.us.execute(&mend).await.unwrap();
        shows(&stage.us, "us-east-1", "running", None).await;
    }
    stage.write(2).await;
    stage.arrives(2).await;
    stage.regions.us.execute("drop publication landfall").await.unwrap();
    let said = halts(&stage.us, "us-east-1", "LF-PUBLICATION").await;
    assert!(said.contains("CREATE PUBLICATION"), "{said}");
    assert_eq!(errors(&stage.us).await, ["publication-missing"]);
    // A change from when there was none cannot be read any more.
    stage.write(3).await;
    stage.regions.us.execute("create publication landfall for table t, fresh").await.unwrap();
    eventually(PATIENCE, "it says what is to be done", async || {
        let (_, status) = stage.us.http_get("/status").await?;
        Ok(status.contains("LF-PUBLICATION") && status.contains("landfall recover --source"))
    })
    .await
    .unwrap();
}

/// Both looks find all well, and what was written between them is in nothing the server sends.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_out_of_the_publication_between_two_looks_and_one_that_left_the_scope() {
    let mut stage = Stage::set_on(18, 15, "").await;
    let noted = "select count(*)::text from landfall.published";
    eventually(PATIENCE, "its place is noted", async || Ok(stage.sql(noted).await == "1")).await.unwrap();
    stage.stop_source().await;
    // As a whole it is dropped and made anew, which 18 does not mind.
    for sql in ["drop publication landfall", "insert into t values (2, 'lost')"] {
        stage.regions.us.execute(sql).await.unwrap();
    }
    stage.regions.us.execute("create publication landfall for table t").await.unwrap();
    stage.us.start_again().unwrap();
    eventually(PATIENCE, "it is told", async || Ok(stage.us.log().contains("put in again"))).await.unwrap();
    stage.write(3).await;
    stage.arrives(3).await;
    assert!(!stage.holds(2).await);
    let told = "replication_retries_total{class=\"LF-PUBLICATION\"}";
    assert_eq!(stage.us.metric(told).await.unwrap(), Some(1.0), "{}", stage.us.log());

    stage.regions.us.execute("create schema archive; alter table t set schema archive").await.unwrap();
    stage.warns("public.t is archive.t by now, which source.tables leaves out").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_table_that_is_locked_for_long_and_one_that_is_dropped_under_the_look() {
    // 15 opens no table to say what is published.
    let mut stage = Stage::set_on(18, 15, "").await;
    let publish = "create table other (id int8 primary key); alter publication landfall add table other";
    stage.regions.us.execute(publish).await.unwrap();
    let holder = stage.regions.us.connect().await.unwrap();
    holder.batch_execute("begin; lock table other in access exclusive mode").await.unwrap();
    stage.warns("cannot be looked at now").await;
    // Nobody writes: what comes are heartbeats.
    let consumed = async || stage.eu.metric("replication_bytes_consumed_total").await.unwrap().unwrap_or(0.0);
    let before = consumed().await;
    eventually(PATIENCE, "heartbeats go on", async || Ok(consumed().await > before)).await.unwrap();
    stage.stop_source().await;
    stage.us.start_again().unwrap();
    stage.write(2).await;
    stage.arrives(2).await;
    // Behind the lock, and then there is no such table any more.
    let waits = "select count(*)::text from pg_stat_activity
        where application_name like 'landfall source%' and wait_event_type = 'Lock'";
    eventually(PATIENCE, "a look waits for the lock", async || Ok(stage.sql(waits).await == "1"))
        .await
        .unwrap();
    holder.batch_execute("drop table other; commit").await.unwrap();
    stage.write(3).await;
    stage.arrives(3).await;
    eventually(PATIENCE, "nothing is amiss any more", async || {
        Ok(!stage.us.http_get("/status").await?.1.contains("cannot be looked at"))
    })
    .await
    .unwrap();
    let log = stage.us.log();
    assert!(!log.contains("LF-INTERNAL") && !log.contains("LF-TARGET-BUSY"), "{log}");
}

/// A slice takes longer than an open transaction may wait for more, and all of it comes: something arrives meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_larger_than_memory_comes_over_a_line_that_is_slow() {
    let regions = TwoRegions::start(15, 18, 1).await.unwrap();
    regions.execute_both("create table t (id int8 primary key, note text)").await.unwrap();
    let us = regions.us.config().source(&["public.*"]).to_toml();
    let us = regions.us.start_daemon(LANDFALL, &us).await.unwrap();
    // Of 8 MB, half on the line: eight seconds for an answer of Kafka's, sixteen for a slice.
    let slow = "open_transaction_timeout = \"12s\"";
    let eu = regions.eu.config().link_with("us-east-1", &regions.us.kafka.remote(), slow).to_toml();
    let eu = regions.eu.start_daemon(LANDFALL, &eu).await.unwrap();
    eu.wait_heartbeat(PATIENCE).await.unwrap();
    regions.us.kafka.wan().set_bandwidth(Some(128 << 10));
    let rows = "insert into t select g, (select string_agg(md5(random()::text || g || i), '') from generate_series(1, 100) i)
                 from generate_series(1, 2500) g";
    regions.us.execute(rows).await.unwrap();
    regions.equal(PATIENCE, &[&us, &eu]).await.unwrap();
    assert!(!eu.log().contains("LF-TRANSACTION-STALLED"), "{}", eu.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_of_a_region_stands_by_and_takes_over() {
    let mut stage = Stage::set("").await;
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], testbed::ports::free().unwrap()));
    let config = stage.regions.us_sends().replace(&stage.regions.us.http.to_string(), &address.to_string());
    let second = Daemon::builder(LANDFALL, "second", &config).http(address).start().unwrap();
    shows(&second, "us-east-1", "standby", None).await;
    eventually(DOWN, "it knows of the slot that another reads", async || {
        Ok(second.metric("replication_slot_retained_bytes").await?.is_some())
    })
    .await
    .unwrap();
    stage.write(2).await;
    stage.arrives(2).await;
    stage.us.kill9().unwrap();
    stage.write(3).await;
    stage.arrives(3).await;
    shows(&second, "us-east-1", "running", None).await;
}

/// What was written before a table was altered and after it waits in one batch for a link that was away: the first goes, the
/// link halts at the second with what to run, and goes on by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_altered_while_a_link_is_away() {
    let mut stage = Stage::set("").await;
    stage.regions.execute_both("alter table t add n int4").await.unwrap();
    stage.write(2).await;
    stage.arrives(2).await;
    for (id, alters, column, mends) in [
        (10, "alter table t alter n type int8", "column n", "ALTER COLUMN \"n\" TYPE bigint"),
        (
            20,
            "alter table t add more varchar(10)",
            "column more",
            "ADD COLUMN \"more\" character varying(10)",
        ),
        (
            30,
            "alter table t alter more type varchar(20)",
            "column more",
            "ALTER COLUMN \"more\" TYPE character varying(20)",
        ),
    ] {
        stage.stop_sink().await;
        stage.write(id).await;
        stage.write(id + 1).await;
        stage.regions.us.execute(alters).await.unwrap();
        stage.regions.us.execute(&format!("update t set n = {id} where id = {id}")).await.unwrap();
        stage.write(id + 2).await;
        stage.eu.start_again().unwrap();
        let said = halts(&stage.eu, "us-east-1", "LF-TABLE").await;
        assert!(said.contains(column) && said.contains(mends), "{said}");
        assert!(stage.holds(id + 1).await, "what was written before goes through");
        assert!(!stage.holds(id + 2).await);
        stage.regions.eu.execute(&format!("ALTER TABLE t {mends}")).await.unwrap();
        stage.arrives(id + 2).await;
        shows(&stage.eu, "us-east-1", "running", None).await;
    }
    stage.regions.equal(PATIENCE, &[&stage.us, &stage.eu]).await.unwrap();

    // Within one transaction no ALTER helps. To be compared with, a source's rows are read.
    stage.regions.us.execute("grant select on t to landfall").await.unwrap();
    let both = "begin; insert into t (id, n) values (40, 1); alter table t alter n type numeric;
                insert into t (id, n) values (41, 1.5); commit";
    stage.regions.us.execute(both).await.unwrap();
    for alters in ["alter table t alter n type int8", "alter table t alter n type numeric"] {
        stage.regions.eu.execute(alters).await.unwrap();
        stage.looks_again("LF-TABLE").await;
        let said = halts(&stage.eu, "us-east-1", "LF-TABLE").await;
        assert!(said.contains("landfall recover --execute") && said.contains("column n"), "{said}");
    }
    stage.write(42).await;
    let recovered = stage.eu.command(&["recover", "--execute"]).await.unwrap();
    assert!(recovered.status.success(), "{}", testbed::daemon::said(&recovered));
    stage.arrives(42).await;
    stage.regions.equal(PATIENCE, &[&stage.us, &stage.eu]).await.unwrap();
}

/// To its server a session in the middle of a copy is at work, whoever has stopped in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_frozen_in_the_middle_of_a_copy_is_taken_for_dead() {
    let mut stage = Stage::set("").await;
    stage.stop_sink().await;
    let held = tempfile::tempdir().unwrap();
    std::fs::write(held.path().join("copy"), "").unwrap();
    stage.eu.set_env("LANDFALL_HOLD_AT", &format!("apply.mid_copy:{}", held.path().join("copy").display()));
    stage.eu.start_again().unwrap();
    stage
        .regions
        .us
        .execute("insert into t select g, 'many' from generate_series(1000, 1999) g")
        .await
        .unwrap();
    let copies = "select (count(*) = 1)::text from pg_stat_activity
                   where application_name like 'landfall apply%' and query like 'COPY%'
                     and state = 'active' and wait_event = 'ClientRead'";
    eventually(PATIENCE, "it is in the middle of a copy", async || {
        Ok(stage.regions.eu.postgres.query_text("shop", copies).await?.as_deref() == Some("true"))
    })
    .await
    .unwrap();
    stage.eu.sigstop().unwrap();

    let successor = stage.successor();
    let said = shows(&successor, "us-east-1", "standby", None).await;
    assert!(said.contains("held by backend"), "{said}");
    let since = std::time::Instant::now();
    stage.arrives(1999).await;
    assert!(since.elapsed() < TAKEN_OVER, "taken over after {:?}", since.elapsed());
    shows(&successor, "us-east-1", "running", None).await;
    drop(held);
    stage.eu.sigcont().unwrap();
    shows(&stage.eu, "us-east-1", "standby", None).await;
    stage.write(2).await;
    stage.arrives(2).await;
    stage.regions.equal(PATIENCE, &[&stage.us, &stage.eu]).await.unwrap();
}

/// From PostgreSQL 18 on it may carry what the target's table computes itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_publication_of_generated_columns() {
    let us = Region::start("us-east-1", 18, 1).await.unwrap();
    us.execute("create table t (id int8 primary key, twice int8 generated always as (id * 2) stored)")
        .await
        .unwrap();
    let daemon = us.start_daemon(LANDFALL, &us.config().source(&["public.*"]).to_toml()).await.unwrap();
    us.begun(PATIENCE).await.unwrap();
    us.execute("alter publication landfall set (publish_generated_columns = stored)").await.unwrap();
    let said = halts(&daemon, "us-east-1", "LF-PUBLICATION").await;
    let mend = "ALTER PUBLICATION \"landfall\" SET (publish_generated_columns = none);";
    assert!(said.contains("generated columns") && said.contains(mend), "{said}");
    us.execute(mend).await.unwrap();
    shows(&daemon, "us-east-1", "running", None).await;
}
