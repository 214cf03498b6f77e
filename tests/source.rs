//! Proves the source port's promises, the same for the source in memory and for a Postgres slot; and, on
//! the parts in memory, that the two roads lose and double nothing wherever a writer dies.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use landfall::{
    change::{Cell, Change, Column, Identity, Row, Shape},
    changelog::{
        Log, Reader, Writer,
        kafka::{KafkaLog, Topics, WriterLimits},
        memory::MemoryLog,
    },
    check,
    config::Settings,
    envelope::{Flags, Format, Header, Kind, Tracker},
    fault::{Code, Fault},
    kafka::{Cluster, TopicRules},
    metrics::Metrics,
    pipeline::{
        capture::{self, CaptureParams},
        deliver::{self, BatchLimits, DeliverParams},
    },
    position::{Offset, Position, Sequence, WriterEpoch},
    roster::{Roster, State},
    scope::Scope,
    sink::{
        Applied, Attended, Batch, Claim, OnRefusal, Sink,
        memory::{MemoryInspector, MemorySink, MemoryTarget},
    },
    source::{
        Content, Copier, Event, Keeper, Opened, Source, Watcher,
        memory::{MemoryCopier, MemoryDatabase, MemoryKeeper, MemorySource, MemoryWatcher},
        postgres::{PostgresSource, PostgresSourceConfig},
    },
    task,
    verify::{About, Found, Question, TableName},
};
use testbed::{Kafka, Postgres, eventually};

const PATIENCE: Duration = Duration::from_secs(120);

fn shape() -> Arc<Shape> {
    let column = Column {
        name: "id".into(),
        type_schema: "pg_catalog".into(),
        type_name: "int8".into(),
        typmod: -1,
        key: true,
    };
    Arc::new(Shape::new("public", "t", Identity::Default, [column]))
}

fn insert(id: usize) -> Change {
    Change::Insert { shape: shape(), new: Row([Cell::Value(id.to_string().into())].into()) }
}

/// The next transaction's beginning, how many changes it has, and its end; heartbeats and rest passed over.
async fn transaction<S: Source>(source: &mut S) -> (Position, usize, Position) {
    loop {
        let Event::Begin(begin) = source.next().await.unwrap() else { continue };
        let mut changes = 0;
        loop {
            match source.next().await.unwrap() {
                Event::Change(ordered) => {
                    assert_eq!(ordered.ordinal, changes as u64);
                    changes += 1;
                }
                Event::Commit(end) if changes > 0 => return (begin, changes, end),
                Event::Commit(_) => break,
                _ => (),
            }
        }
    }
}

/// The suite. `commit` commits a transaction of so many inserts.
async fn promises<S: Source>(mut source: S, mut second: S, commit: impl AsyncFn(usize)) {
    let (opened, mut keeper, _) = source.open().await.unwrap();
    assert!(!opened.live);
    // Everything committed after the consistent point comes, in commit order, whole.
    commit(3).await;
    commit(1).await;
    let (first, changes, first_end) = transaction(&mut source).await;
    assert_eq!(changes, 3);
    let (Position::Postgres(begin), Position::Postgres(end)) = (first, first_end);
    assert!(begin.commit == end.commit && end.end > end.commit);
    let (_, changes, second_end) = transaction(&mut source).await;
    assert!(changes == 1 && !first_end.covers(&second_end));
    // One session holds the log.
    assert_eq!(second.open().await.err().map(|fault| fault.code()), Some(Code::SlotBusy));
    // A heartbeat goes through the log.
    keeper.beat("{\"sent\":1}").await.unwrap();
    loop {
        if let Event::Heartbeat(content) = source.next().await.unwrap() {
            assert_eq!(&content[..], b"{\"sent\":1}");
            break;
        }
    }
    // Whoever watches looks beside the session, and where there is none.
    let mut watcher = source.watcher();
    let kept = async |watcher: &mut S::Watcher| watcher.look().await.unwrap().retained_bytes.unwrap();
    let before = kept(&mut watcher).await;
    // Epochs only rise, above whatever was seen elsewhere.
    let epoch = keeper.raise_epoch(WriterEpoch(0)).await.unwrap();
    assert!(keeper.raise_epoch(WriterEpoch(0)).await.unwrap() > epoch);
    assert!(keeper.raise_epoch(WriterEpoch(1000)).await.unwrap() > WriterEpoch(1000));
    keeper.mark_live().await.unwrap();
    // What was not confirmed comes again, the same; what was does not.
    drop(source);
    commit(1).await;
    let between = kept(&mut watcher).await;
    assert!(between > before, "{between} after {before}");
    watcher.rest();
    commit(1).await;
    assert!(kept(&mut watcher).await > between);
    let reopened = eventually(PATIENCE, "the log is let go", async || Ok(second.open().await.is_ok()));
    reopened.await.unwrap();
    assert_eq!(transaction(&mut second).await, (first, 3, first_end));
    second.confirm(&first_end);
    commit(2).await;
    assert_eq!(transaction(&mut second).await.2, second_end);
    for changes in [1, 1, 2] {
        assert_eq!(transaction(&mut second).await.1, changes);
    }
}

#[tokio::test]
async fn the_source_in_memory_keeps_its_promises() {
    let database = MemoryDatabase::default();
    let commit = database.clone();
    promises(MemorySource::new(database.clone()), MemorySource::new(database), async |rows| {
        commit.commit((0..rows).map(insert).collect());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_keeps_its_promises() {
    for major in [15, 18] {
        let postgres = Postgres::start(major, "source").await.unwrap();
        postgres.create_database("shop").await.unwrap();
        postgres
            .execute("shop", "create table t (id int8 generated always as identity primary key)")
            .await
            .unwrap();
        // As a role that was given what `check --grants` prints, and nothing else.
        postgres.execute("shop", "create role landfall login").await.unwrap();
        let settings = format!(
            "region = \"us-east-1\"\n[database]\nurl = \"{}\"\n[kafka]\nbrokers = [\"k:1\"]\n[source]\ntables = [\"public.*\"]",
            postgres.url_as("landfall", "shop")
        );
        let settings = Settings::from_parts(&settings, [], &|_| unreachable!("no file is named")).unwrap();
        for sql in check::grants(&settings).await.unwrap() {
            postgres.execute("shop", &sql).await.unwrap();
        }
        let config = PostgresSourceConfig {
            address: settings.database,
            stream: "main".into(),
            scope: Scope(vec!["public.*".parse().unwrap()]),
            publication: "landfall".into(),
            slot: "landfall_test".into(),
            copy_sessions: 1,
            peers: Vec::new(),
        };
        let source = || PostgresSource::new(config.clone());
        promises(source(), source(), async |rows| {
            let sql = format!("insert into t select from generate_series(1, {rows})");
            postgres.execute("shop", &sql).await.unwrap();
        })
        .await;
        // Another stream would take from it what it has not read yet.
        let mut other =
            PostgresSource::new(PostgresSourceConfig { stream: "other".into(), ..config.clone() });
        let refused = other.open().await.err().expect("the slot is the first one's");
        assert_eq!(refused.code(), Code::SlotMissing, "{refused}");
        assert!(
            refused.message().contains("`main`") && refused.remedy().contains("source.slot"),
            "{refused}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_share_a_look_at_the_publication_but_for_what_a_stale_one_would_get_wrong() {
    let postgres = Postgres::start(18, "answers").await.unwrap();
    postgres.create_database("shop").await.unwrap();
    postgres
        .execute("shop", "create table old (id int8 primary key); insert into old values (1)")
        .await
        .unwrap();
    let settings = format!(
        "region = \"us-east-1\"\n[database]\nurl = \"{}\"\n[kafka]\nbrokers = [\"k:1\"]\n[source]\ntables = [\"public.*\"]",
        postgres.url("shop")
    );
    let settings = Settings::from_parts(&settings, [], &|_| unreachable!("no file is named")).unwrap();
    let config = PostgresSourceConfig {
        address: settings.database,
        stream: "main".into(),
        scope: Scope(vec!["public.*".parse().unwrap()]),
        publication: "landfall".into(),
        slot: "landfall_test".into(),
        copy_sessions: 1,
        peers: vec!["eu-west-1".into()],
    };
    let (_, _, mut copier) = PostgresSource::new(config).open().await.unwrap();
    let mut number = 0;
    let mut ask = async |about: About| {
        number += 1;
        let (verification, by, stream) = ("v".to_owned(), "eu-west-1".to_owned(), "main".to_owned());
        let question = Question { verification, number, by, stream, about };
        let portion = copier.answer(&question, |_| "low".into(), std::future::pending()).await;
        match portion.unwrap().expect("nobody gives up").content {
            Content::Answer { answer, .. } => answer.found,
            other => panic!("{other:?}"),
        }
    };
    let table = |table: &str| TableName { schema: "public".into(), table: table.into() };
    let sums = |name: &str| About::Sums { table: table(name), after: None, range_rows: 10, ranges: 10 };
    let mend = || About::Mend { table: table("old"), keys: vec![vec!["1".into()]] };

    assert_eq!(ask(About::Tables).await, Found::Tables(vec![table("old")]));
    postgres.set("log_statement", "all").await.unwrap();
    let began = std::time::Instant::now();
    for _ in 0..30 {
        assert!(matches!(ask(sums("old")).await, Found::Sums(_)));
        assert_eq!(ask(mend()).await, Found::Mended(1));
    }
    let looks = postgres.log().matches("FROM pg_publication_tables").count() as u64;
    assert!(looks <= 1 + began.elapsed().as_secs() / 10, "{looks} looks for 60 questions");

    // What was published since is told of at once.
    postgres
        .execute("shop", "create table new (id int8 primary key); alter publication landfall add table new")
        .await
        .unwrap();
    assert!(matches!(ask(sums("new")).await, Found::Sums(_)));
    // And nothing is put in the place of what began to come from there.
    let comes = r#"create table landfall.shape (link text, body jsonb);
        insert into landfall.shape values ('eu-west-1', '{"schema": "public", "table": "old"}')"#;
    postgres.execute("shop", comes).await.unwrap();
    let refused = ask(mend()).await;
    assert!(
        matches!(&refused, Found::Refused(why) if why.contains("come from another region")),
        "{refused:?}"
    );
    assert_eq!(ask(About::Tables).await, Found::Tables(vec![table("new")]));
    assert!(matches!(ask(sums("old")).await, Found::Refused(_)));
}

fn capture_params(checkpoint_interval: Duration) -> CaptureParams {
    CaptureParams {
        region: "us-east-1".parse().unwrap(),
        stream: "main".into(),
        database: "shop".into(),
        heartbeat_interval: Duration::from_secs(3600),
        checkpoint_interval,
        max_record_bytes: 900 << 10,
        format: Format::Debezium,
    }
}

#[tokio::test]
async fn a_writer_that_ends_leaves_nothing_to_be_read_again() {
    let (database, log) = (MemoryDatabase::default(), MemoryLog::default());
    let roster = Arc::new(Roster::new("us-east-1".parse().unwrap()));
    let metrics = Metrics::new(Arc::clone(&roster));
    let (stopper, stop) = task::stopper();
    // After the first, no checkpoint's time comes.
    let params = capture_params(Duration::from_secs(3600));
    let capture =
        capture::run(params, MemorySource::new(database.clone()), log.clone(), roster, metrics, stop);
    let work = async {
        for id in 0..5 {
            database.commit(vec![insert(id)]);
            let commits =
                || log.entries().iter().filter(|entry| entry.value.starts_with(b"{\"before\"")).count();
            eventually(PATIENCE, "it is appended", async || Ok(commits() == id + 1)).await.unwrap();
        }
        stopper.stop();
    };
    tokio::join!(capture, work);
    let kept = landfall::changelog::Log::checkpoint(&log).await.unwrap().expect("one is kept");
    let kept = serde_json::from_slice::<serde_json::Value>(&kept).unwrap()["landfall"].take();
    let entries = log.entries();
    let last = entries.last().unwrap();
    assert_eq!(kept["sequence"].as_u64(), Some(last.header.as_ref().unwrap().sequence.0), "{kept}");
    assert_eq!(kept["offset"].as_i64(), Some(last.offset.0), "{kept}");
}

/// Everything in a log.
async fn entries<L: Log>(log: &L) -> Vec<landfall::changelog::Entry> {
    let high = log.bounds().await.unwrap().unwrap().high;
    let (mut reader, mut found) = (log.reader(Offset(0)).unwrap(), Vec::new());
    while (found.len() as i64) < high.0 {
        found.extend(reader.read().await.unwrap());
    }
    found
}

/// Captures until the road has appended something and the log holds so many changes, or it has halted.
async fn capture_until<L: Log>(open: &impl Fn() -> L, database: &MemoryDatabase, changes: usize) -> State {
    let roster = Arc::new(Roster::new("us-east-1".parse().unwrap()));
    let (metrics, (stopper, stop)) = (Metrics::new(Arc::clone(&roster)), task::stopper());
    let source = MemorySource::new(database.clone());
    let params = capture_params(Duration::from_millis(1));
    let capture = capture::run(params, source, open(), Arc::clone(&roster), metrics, stop);
    let log = &open();
    let judge = async {
        eventually(PATIENCE, "it runs or halts", async || {
            let state = roster.source().state();
            let there = log.bounds().await?.is_some_and(|bounds| bounds.high.0 > 0);
            let held = if there { entries(log).await } else { Vec::new() };
            let held = held.iter().filter(|entry| entry.value.starts_with(b"{\"before\"")).count();
            Ok(matches!(state, State::Halted { .. }) || matches!(state, State::Running) && held >= changes)
        })
        .await
        .unwrap();
        stopper.stop();
        roster.source().state()
    };
    tokio::join!(capture, judge).1
}

async fn checkpoint<L: Log>(log: &L) -> serde_json::Value {
    serde_json::from_slice(&log.checkpoint().await.unwrap().expect("one is kept")).unwrap()
}

/// Keeps `value` as the log's checkpoint, behind all that was kept there.
async fn keep<W: Writer>(writer: &mut W, value: &serde_json::Value) {
    writer.keep_checkpoint(&serde_json::to_vec(value).unwrap()).unwrap();
    writer.all_kept().await.unwrap();
}

async fn append<W: Writer>(writer: &mut W, header: &Header, value: &[u8]) {
    let before = writer.acknowledged();
    writer.append(header, b"", value).await.unwrap();
    writer.hand_over().await.unwrap();
    while writer.acknowledged() == before {
        writer.acknowledged_beyond(before).await.unwrap();
    }
}

/// A dead writer's checkpoint lands after its successor's: of records that the successor's barrier cut off, whatever
/// offset it tells. The next start reads on all the same. A log with a hole halts it, with that checkpoint and without.
async fn a_late_checkpoint_stops_nobody<L: Log>(open: impl Fn() -> L) {
    let log = open();
    let database = MemoryDatabase::default();
    let mut id = 0;
    let mut commit = |count: usize| {
        for _ in 0..count {
            id += 1;
            database.commit(vec![insert(id)]);
        }
        id
    };
    let changes = commit(3);
    assert_eq!(capture_until(&open, &database, changes).await, State::Running);
    let dead = checkpoint(&log).await;
    let last = entries(&log).await.last().unwrap().header.clone().unwrap();
    let changes = commit(2);
    assert_eq!(capture_until(&open, &database, changes).await, State::Running);

    // The dead one goes on: nine records behind the barrier, and what it thinks of them.
    let mut writer = log.writer().unwrap();
    let first_late = log.bounds().await.unwrap().unwrap().high;
    let idle =
        serde_json::to_vec(&serde_json::json!({"landfall": {"position": dead["landfall"]["through"]}}));
    let idle = idle.unwrap();
    for next in 1..=9 {
        let sequence = Sequence(last.sequence.0 + next);
        append(&mut writer, &Header { kind: Kind::Idle, flags: Flags::NONE, sequence, ..last }, &idle).await;
    }
    let mut late = dead.clone();
    late["landfall"]["sequence"] = (last.sequence.0 + 9).into();
    let mut changes = changes;
    for offset in [first_late.0 + 8, dead["landfall"]["offset"].as_i64().unwrap(), 0, first_late.0] {
        late["landfall"]["offset"] = offset.into();
        keep(&mut writer, &late).await;
        changes = commit(2);
        let state = capture_until(&open, &database, changes).await;
        assert_eq!(state, State::Running, "a checkpoint at {offset}");
    }
    // Nothing is missing, nothing comes twice.
    let all = entries(&log).await;
    let mut tracker = Tracker::new(last.incarnation, WriterEpoch(0), Sequence(0));
    let mut counted = 0;
    for entry in &all {
        let verdict = tracker.place(entry.header.as_ref().unwrap(), false).unwrap();
        let is_change = entry.value.starts_with(b"{\"before\"");
        counted += usize::from(is_change && verdict == landfall::envelope::Verdict::Next);
    }
    assert_eq!(counted, changes);

    // A true hole.
    let good = checkpoint(&log).await;
    let end = all.last().unwrap().header.clone().unwrap();
    let epoch = tracker.epoch();
    let hole = Header {
        kind: Kind::Idle,
        flags: Flags::NONE,
        sequence: Sequence(tracker.sequence().0 + 2),
        epoch,
        ..end
    };
    append(&mut writer, &hole, &idle).await;
    for kept in [good, late] {
        keep(&mut writer, &kept).await;
        let state = capture_until(&open, &database, usize::MAX).await;
        assert_eq!(state.code(), Some(Code::SequenceBroken), "{state:?}");
    }
}

#[tokio::test]
async fn a_late_checkpoint_in_memory_stops_nobody() {
    let log = MemoryLog::default();
    a_late_checkpoint_stops_nobody(|| log.clone()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_checkpoint_in_kafka_stops_nobody() {
    let kafka = Kafka::start(1).await.unwrap();
    let cluster = Cluster { brokers: vec![kafka.local()], properties: Vec::new() };
    let rules = TopicRules {
        retention: Duration::from_secs(86_400),
        replication_factor: 1,
        min_insync_replicas: 1,
        compacted: false,
    };
    let topics = Topics { stream: "log".into(), state: "state".into(), control: "control".into() };
    let log = || {
        let (cluster, topics, limits) = (cluster.clone(), topics.clone(), WriterLimits::default());
        KafkaLog::new(cluster, topics, "group".into(), rules.clone(), limits).unwrap()
    };
    a_late_checkpoint_stops_nobody(log).await;
}

/// A source that fails within the first transaction, each time; it counts how often it was opened.
struct FailingSource(MemorySource, Arc<AtomicUsize>, usize);

impl Source for FailingSource {
    type Keeper = MemoryKeeper;
    type Copier = MemoryCopier;
    type Watcher = MemoryWatcher;

    async fn open(&mut self) -> landfall::fault::Result<(Opened, MemoryKeeper, MemoryCopier)> {
        self.1.fetch_add(1, Relaxed);
        self.2 = 0;
        self.0.open().await
    }

    async fn next(&mut self) -> landfall::fault::Result<Event> {
        let event = self.0.next().await?;
        self.2 += 1;
        if self.2 < 3 { Ok(event) } else { Err(Fault::new(Code::DatabaseUnreachable, "it is told to fail")) }
    }

    fn confirm(&mut self, position: &Position) {
        self.0.confirm(position);
    }

    fn watcher(&self) -> MemoryWatcher {
        self.0.watcher()
    }
}

/// A sink that takes nothing; it counts how often it was claimed.
struct FailingSink(MemorySink, Arc<AtomicUsize>);

impl Sink for FailingSink {
    async fn claim(&mut self) -> landfall::fault::Result<Claim> {
        self.1.fetch_add(1, Relaxed);
        self.0.claim().await
    }

    async fn apply(&mut self, _batch: &Batch) -> landfall::fault::Result<Applied> {
        Err(Fault::new(Code::DatabaseUnreachable, "it is told to fail"))
    }

    async fn flush(&mut self) -> landfall::fault::Result<Sequence> {
        self.0.flush().await
    }

    async fn abandon(&mut self) -> landfall::fault::Result<()> {
        self.0.abandon().await
    }

    async fn attend(&mut self) -> landfall::fault::Result<Attended> {
        self.0.attend().await
    }
}

/// Setting up costs the server as much each time, and is no success.
#[tokio::test]
async fn sessions_that_fail_before_anything_goes_through_come_later_and_later() {
    let region = |name: &str| name.parse().unwrap();
    let (stopper, stop) = task::stopper();
    let (database, log) = (MemoryDatabase::default(), MemoryLog::default());
    database.commit(vec![insert(1), insert(2)]);
    // Of two daemons: one whose source fails, and one that receives what a source that is well has appended.
    let (failing, well) =
        (Arc::new(Roster::new(region("us-east-1"))), Arc::new(Roster::new(region("us-east-1"))));
    let [metrics, of_well] = [&failing, &well].map(|roster| Metrics::new(Arc::clone(roster)));
    let (opened, claimed) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let params = || capture_params(Duration::from_millis(1));
    let source = FailingSource(MemorySource::new(database.clone()), Arc::clone(&opened), 0);
    let fails = capture::run(
        params(),
        source,
        MemoryLog::default(),
        Arc::clone(&failing),
        metrics.clone(),
        stop.clone(),
    );
    let source = MemorySource::new(MemoryDatabase::default());
    let capture = capture::run(params(), source, log.clone(), well, of_well, stop.clone());
    let link = failing.link(&region("eu-west-1"), "main");
    let params = DeliverParams {
        here: region("us-east-1"),
        from: region("eu-west-1"),
        stream: "main".into(),
        limits: BatchLimits { changes: 100, bytes: 1 << 20 },
        open_transaction_timeout: Duration::from_secs(60),
    };
    let sink = MemorySink::new(MemoryTarget::default(), OnRefusal::Halt);
    let sink = (FailingSink(sink, Arc::clone(&claimed)), MemoryInspector);
    let deliver = deliver::run(params, Arc::new(log), sink, Arc::clone(&link), metrics, stop);
    let judge = async {
        // The waits grow from 0.2 s by half, each as much as half longer or shorter: at most ten fit in.
        tokio::time::sleep(Duration::from_secs(6)).await;
        for (what, entry, count) in [("source", &**failing.source(), &opened), ("link", &**link, &claimed)] {
            let (state, count) = (entry.state(), count.load(Relaxed));
            let State::Retrying { attempt, .. } = state else { panic!("the {what} is {state:?}") };
            println!("{what}: {count} sessions, attempt {attempt}");
            assert!((4..=12).contains(&count) && attempt >= 4, "{what}: attempt {attempt} of {count}");
        }
        stopper.stop();
    };
    tokio::join!(fails, capture, deliver, judge);
}

#[tokio::test]
async fn wherever_a_writer_dies_the_roads_carry_each_transaction_once() {
    // Genesis, barriers, a schema, transactions of one to four changes: every record in turn is refused.
    for refused in 0..16 {
        let database = MemoryDatabase::default();
        let log = MemoryLog::default();
        let target = MemoryTarget::default();
        let (stopper, stop) = task::stopper();
        let region = |name: &str| name.parse().unwrap();
        let roster = Arc::new(Roster::new(region("us-east-1")));
        let metrics = Metrics::new(Arc::clone(&roster));
        let params = capture_params(Duration::from_millis(1));
        log.refuse_after(refused);
        let mut id = 0;
        for changes in [1, 4, 2, 3] {
            database.commit(
                (0..changes)
                    .map(|_| {
                        id += 1;
                        insert(id)
                    })
                    .collect(),
            );
        }
        let source = MemorySource::new(database.clone());
        let capture =
            capture::run(params, source, log.clone(), Arc::clone(&roster), metrics.clone(), stop.clone());
        let link = roster.link(&region("us-east-1"), "main");
        let params = DeliverParams {
            here: region("eu-west-1"),
            from: region("us-east-1"),
            stream: "main".into(),
            // Three changes a batch: some transactions go in slices.
            limits: BatchLimits { changes: 3, bytes: 1 << 20 },
            open_transaction_timeout: Duration::from_secs(60),
        };
        let sink = (MemorySink::new(target.clone(), OnRefusal::Halt), MemoryInspector);
        let deliver = deliver::run(params, Arc::new(log.clone()), sink, link, metrics.clone(), stop.clone());
        let judge = async {
            let arrived =
                eventually(PATIENCE, "every row arrives", async || Ok(target.rows("public.t").len() == id));
            arrived.await.unwrap_or_else(|error| panic!("refused {refused}: {error}; {:?}", log.entries()));
            // Each insert once: a second one would have been a conflict.
            assert!(target.conflicts().is_empty(), "refused {refused}");
            eventually(PATIENCE, "everything is confirmed", async || Ok(database.confirmed().0 >= 408))
                .await
                .unwrap();
            stopper.stop();
        };
        tokio::join!(capture, deliver, judge);
    }
}
