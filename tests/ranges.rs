//! Proves that a chunk which several sessions read is what one session would have read: of one snapshot, each row once, in
//! the key's order; and that a session that cannot be had, is ended or has to wait takes no row along. The copier alone, on
//! a real Postgres: each of its chunks is held against every row that ever was.
//!
//! `LANDFALL_SEED` repeats the dice.

use std::{
    io::Write,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use landfall::{
    change::{Cell, copy_text},
    config::Settings,
    position::WriterEpoch,
    source::{
        Content, Copier, Rows, Source,
        postgres::{PostgresCopier, PostgresSource, PostgresSourceConfig},
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use testbed::{Postgres, Wan, eventually, ports, wan::Direction, writers::seed};

const PATIENCE: Duration = Duration::from_secs(120);
/// What the copier reads at most.
const READ_BYTES_MAX: usize = 8 << 20;

/// A table, by its columns, its key, what its key is for a number, and more.
struct Kind {
    columns: &'static str,
    key: &'static str,
    key_of: &'static str,
    more: &'static str,
}

/// Text whose order is not that of its bytes, with signs that are written otherwise in the form of COPY.
const WORD: &str = r"translate(left(md5(n::text), 13), '0123456789abcdef', E'aAbBäÄzZ\'\\\t é-_ß')";

const KINDS: &[Kind] = &[
    Kind { columns: "id int8 not null", key: "id", key_of: "n", more: "" },
    Kind {
        columns: "a int4 not null, b text collate \"und-x-icu\" not null",
        key: "b, a",
        key_of: "n % 3, left(WORD, 4)",
        more: "",
    },
    Kind { columns: "word text collate \"en-x-icu\" not null", key: "word", key_of: "WORD", more: "" },
    Kind {
        columns: "a numeric not null, b date not null",
        key: "a, b",
        key_of: "(n % 40) / 7.0, date '2026-01-01' + n",
        more: "",
    },
    Kind { columns: "id int8 not null", key: "id", key_of: "n", more: "partition by hash (id)" },
];

impl Kind {
    /// Every row says which transaction brought it, and how large it is. Those that went are kept in `gone`.
    fn create(&self, name: &str) -> String {
        let Self { columns, key, more, .. } = self;
        let parts = (0..3).map(|part| {
            format!("create table {name}_part{part} partition of {name} for values with (modulus 3, remainder {part});")
        });
        let parts: String = if more.is_empty() { String::new() } else { parts.collect() };
        format!(
            "create table {name} ({columns}, born xid8 not null default pg_current_xact_id(), size int4 not null,
                 pad text not null, primary key ({key})) {more}; {parts}
             create table gone_{name} ({columns}, born xid8, died xid8)"
        )
    }

    /// A query of rows, for each `n` of a set.
    fn rows(&self, size: &str, of: &str) -> String {
        let key_of = self.key_of.replace("WORD", WORD);
        format!("select {key_of}, pg_current_xact_id(), {size}, repeat('x', {size}) from {of}")
    }

    /// Has the rows go that a condition tells.
    fn delete(&self, name: &str, which: &str) -> String {
        format!(
            "with went as (delete from {name} where {which} returning {key}, born)
             insert into gone_{name} ({key}, born, died) select {key}, born, pg_current_xact_id() from went",
            key = self.key
        )
    }
}

/// A database with a stream, and who copies from it.
struct Stage {
    postgres: Postgres,
    copier: PostgresCopier,
}

impl Stage {
    async fn begin(tables: &str, user: &str, copy_sessions: u16) -> Self {
        let postgres = Postgres::start(15, "ranges").await.unwrap();
        let url = postgres.url_as(user, "shop");
        Self::begin_at(postgres, &url, tables, copy_sessions).await
    }

    async fn begin_at(postgres: Postgres, url: &str, tables: &str, copy_sessions: u16) -> Self {
        postgres.create_database("shop").await.unwrap();
        postgres.execute("shop", "create role landfall login superuser").await.unwrap();
        postgres.execute("shop", tables).await.unwrap();
        let settings = format!(
            "region = \"us-east-1\"\n[database]\nurl = \"{url}\"\n[kafka]\nbrokers = [\"k:1\"]\n[source]\ntables = [\"public.*\"]"
        );
        let settings = Settings::from_parts(&settings, [], &|_| unreachable!("no file is named")).unwrap();
        let source = settings.source.unwrap();
        let config = PostgresSourceConfig {
            address: settings.database,
            stream: source.stream,
            scope: source.scope,
            publication: source.publication,
            slot: source.slot,
            copy_sessions,
            peers: Vec::new(),
        };
        // The slot stays, and so does what it keeps.
        let (_, _, copier) = PostgresSource::new(config).open().await.unwrap();
        Self { postgres, copier }
    }

    async fn ask(&self, tables: &[&str], chunk_rows: u64) {
        let ask = format!(
            "insert into landfall.backfill (id, stream, regions, every_table, chunk_rows)
                 values ('it', 'main', '{{eu-west-1}}', false, {chunk_rows})"
        );
        self.postgres.execute("shop", &ask).await.unwrap();
        for (place, table) in tables.iter().enumerate() {
            let table = format!(
                "insert into landfall.backfill_table
                     (backfill, place, schema_name, table_name, expected_rows, expected_bytes)
                     values ('it', {place}, 'public', '{table}', 0, 0)"
            );
            self.postgres.execute("shop", &table).await.unwrap();
        }
    }

    /// The chunks of everything that was asked for; meanwhile is told of each.
    async fn copy(&mut self, mut meanwhile: impl AsyncFnMut(&Postgres, usize)) -> Vec<Rows> {
        let mut chunks = Vec::new();
        let since = Instant::now();
        while self.text("select state from landfall.backfill").await != "done" {
            assert!(
                since.elapsed() < PATIENCE,
                "{}",
                self.text("select backfill from landfall.backfill").await
            );
            let Some(portion) = self.copier.next(|table| format!("low {table}")).await.unwrap() else {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            };
            self.copier.send("high").await.unwrap();
            self.copier.done(None).await.unwrap();
            if let Content::Rows(rows) = portion.content {
                chunks.push(rows);
                meanwhile(&self.postgres, chunks.len()).await;
            }
        }
        chunks
    }

    async fn text(&self, sql: &str) -> String {
        self.postgres.query_text("shop", sql).await.unwrap().unwrap_or_default()
    }

    /// Waits until no session is left beside the copier's: it ends them where nothing is asked for any more.
    async fn let_go(&mut self) {
        eventually(PATIENCE, "no session is left beside", async || {
            self.copier.next(|_| unreachable!("nothing is read")).await?;
            Ok(beside(&self.postgres).await == 0)
        })
        .await
        .unwrap();
    }
}

async fn beside(postgres: &Postgres) -> usize {
    let sql = "select count(*)::text from pg_stat_activity where application_name like '% beside'";
    postgres.query_text("shop", sql).await.unwrap().unwrap().parse().unwrap()
}

/// A row as a chunk has it, and the place of its key among all there ever were.
type Row = (Vec<String>, u64);

fn rows_of(chunk: &Rows) -> Vec<Row> {
    let at = |name: &str| chunk.shape.columns.iter().position(|column| &*column.name == name).unwrap();
    let (born, size, pad) = (at("born"), at("size"), at("pad"));
    let text = |cell: &Cell| match cell {
        Cell::Value(text) => String::from_utf8(text.to_vec()).unwrap(),
        other => panic!("{other:?}"),
    };
    let lines = chunk.texts.iter().flat_map(copy_text::lines);
    lines
        .map(|line| {
            let cells: Vec<Cell> = copy_text::fields(&line).collect();
            assert_eq!(text(&cells[size]), text(&cells[pad]).len().to_string());
            let key = chunk.key.iter().map(|&at| text(&cells[at])).collect();
            (key, text(&cells[born]).parse().unwrap())
        })
        .collect()
}

fn bytes_of(chunk: &Rows) -> usize {
    chunk.texts.iter().map(bytes::Bytes::len).sum()
}

/// Every row there ever was, in the key's order: its key, and who brought it and took it away.
async fn history(postgres: &Postgres, name: &str, key: &str) -> Vec<(Row, Option<u64>)> {
    let texts = key.split(", ").map(|column| format!("{column}::text")).collect::<Vec<_>>().join(", ");
    let all = format!(
        "select array[{texts}], born::text, died::text
           from (select {key}, born, null as died from {name}
                 union all select {key}, born, died from gone_{name}) a order by {key}, a.born"
    );
    let number = |text: String| text.parse::<u64>().unwrap();
    let rows = postgres.query("shop", &all, &[]).await.unwrap();
    rows.iter()
        .map(|row| ((row.get(0), number(row.get(1))), row.get::<_, Option<String>>(2).map(number)))
        .collect()
}

/// Requires of each of a table's chunks that it is what its snapshot sees of all rows from where the one before ended.
fn assert_exact(chunks: &[Rows], history: &[(Row, Option<u64>)]) {
    let mut from = 0;
    for (number, chunk) in chunks.iter().enumerate() {
        let found = rows_of(chunk);
        let sees = |xid: u64| chunk.seen.sees(xid as u32);
        let upto = match found.last() {
            _ if chunk.done => history.len(),
            Some((last, _)) => history.iter().rposition(|((key, _), _)| key == last).unwrap() + 1,
            None => from,
        };
        assert!(upto >= from, "chunk {number} goes back");
        let there = |((_, born), died): &&(Row, Option<u64>)| sees(*born) && !died.is_some_and(sees);
        let expected: Vec<&Row> = history[from..upto].iter().filter(there).map(|(row, _)| row).collect();
        let differs = found.iter().zip(&expected).position(|(found, expected)| found != *expected);
        assert!(
            differs.is_none() && found.len() == expected.len(),
            "chunk {number}: {} rows, not {}; the first that differs is {differs:?}",
            found.len(),
            expected.len()
        );
        from = upto;
    }
    assert!(chunks.last().is_some_and(|chunk| chunk.done));
}

/// Ends writers by the time they are looked at.
struct Writers(Vec<tokio::task::JoinHandle<u64>>, tokio::sync::watch::Sender<bool>);

impl Writers {
    /// Rows come, go and change, some in one transaction with others far from them.
    async fn start(postgres: &Postgres, kind: &'static Kind, name: &str, count: u64, seed: u64) -> Self {
        let (end, ended) = tokio::sync::watch::channel(false);
        let mut tasks = Vec::new();
        for writer in 0..count {
            let client = postgres.connect("shop").await.unwrap();
            let mut random = StdRng::seed_from_u64(seed + writer);
            let (name, ended) = (name.to_owned(), ended.clone());
            tasks.push(tokio::spawn(async move {
                let mut statements = 0;
                while !*ended.borrow() {
                    let insert = |size: u32, of: String| {
                        format!(
                            "insert into {name} {} on conflict do nothing",
                            kind.rows(&size.to_string(), &of)
                        )
                    };
                    let some = random.random_range(1..1_000_000);
                    let random_rows = |count: u32| {
                        format!(
                            "({key}) in (select {key} from {name} order by random() limit {count})",
                            key = kind.key
                        )
                    };
                    let size = random.random_range(0..6_000);
                    let more = insert(size, format!("generate_series({some}, {some} + 20, 5) n"));
                    let fewer = kind.delete(&name, &random_rows(4));
                    let sql = match random.random_range(0..3) {
                        0 => more,
                        1 => fewer,
                        _ => format!("begin; {fewer}; {more}; commit"),
                    };
                    // A deadlock: nothing was written.
                    if client.batch_execute(&sql).await.is_err() {
                        client.batch_execute("rollback").await.unwrap();
                    }
                    statements += 1;
                }
                statements
            }));
        }
        Self(tasks, end)
    }

    async fn stop(self) -> u64 {
        self.1.send(true).unwrap();
        let mut statements = 0;
        for task in self.0 {
            statements += task.await.unwrap();
        }
        statements
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_chunk_is_what_one_snapshot_shows_of_its_rows() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    for kind in KINDS {
        let (sessions, chunk_rows) = (random.random_range(2..=5), random.random_range(300..600));
        let mut stage = Stage::begin(&kind.create("t"), "postgres", sessions).await;
        // Stretches of rows that are thirty times as large as those around them, of any length.
        let stretch = format!(
            "case when n % 700 between {0} and {0} + n / 700 * 25 then 150000 else 2500 + n * 7919 % 4000 end",
            random.random_range(0..500)
        );
        let rows = kind.rows(&stretch, "generate_series(1, 3500) n");
        let fill = format!("insert into t {rows} on conflict do nothing");
        stage.postgres.execute("shop", &fill).await.unwrap();
        let writers = Writers::start(&stage.postgres, kind, "t", 3, seed).await;
        stage.ask(&["t"], chunk_rows).await;
        let mut beside_max = 0;
        let chunks =
            stage.copy(async |postgres, _| beside_max = beside_max.max(beside(postgres).await)).await;
        let statements = writers.stop().await;
        let cut = chunks.iter().filter(|chunk| bytes_of(chunk) > READ_BYTES_MAX).count();
        println!(
            "{} by {sessions} sessions: {} chunks of {chunk_rows} rows, {cut} of them cut, {statements} statements",
            kind.key,
            chunks.len()
        );
        assert_eq!(beside_max, usize::from(sessions) - 1);
        let least = READ_BYTES_MAX + 200_000;
        assert!(chunks.iter().all(|chunk| bytes_of(chunk) < least), "memory is bounded");
        assert_exact(&chunks, &history(&stage.postgres, "t", kind.key).await);
        stage.let_go().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_grow_in_any_of_the_ranges_end_the_chunk_there() {
    const SESSIONS: u64 = 4;
    let names: Vec<String> = (0..SESSIONS).map(|range| format!("t{range}")).collect();
    let tables: Vec<String> = names.iter().map(|name| KINDS[0].create(name)).collect();
    let mut stage = Stage::begin(&tables.join(";"), "postgres", 4).await;
    for (range, name) in names.iter().enumerate() {
        // The second chunk is the first that several read: 400 rows, those of one range by 200 KB.
        let size = format!("case when n > 400 and n % 400 / 100 = {range} then 200000 else 4000 end");
        let rows = KINDS[0].rows(&size, "generate_series(1, 1000) m, lateral (select m - 1 as n) o");
        stage.postgres.execute("shop", &format!("insert into {name} {rows}")).await.unwrap();
    }
    stage.ask(&names.iter().map(String::as_str).collect::<Vec<_>>(), 400).await;
    let chunks = stage.copy(async |_, _| ()).await;
    for (range, name) in names.iter().enumerate() {
        let chunks: Vec<Rows> =
            chunks.iter().filter(|chunk| *chunk.shape.table == **name).map(again).collect();
        let second = rows_of(&chunks[1]).len();
        println!("{name}: {:?}", chunks.iter().map(|chunk| rows_of(chunk).len()).collect::<Vec<_>>());
        assert!((range * 100..(range + 1) * 100).contains(&second) && second > 0, "{name}: {second}");
        assert!(chunks.iter().all(|chunk| bytes_of(chunk) <= READ_BYTES_MAX + 200_100));
        assert_exact(&chunks, &history(&stage.postgres, name, "id").await);
    }
}

/// The same rows, of one's own.
fn again(rows: &Rows) -> Rows {
    let Rows { shape, key, first, seen, done, again, replace, texts } = rows;
    Rows {
        shape: Arc::clone(shape),
        key: key.clone(),
        seen: seen.clone(),
        texts: texts.clone(),
        first: *first,
        done: *done,
        again: *again,
        replace: *replace,
    }
}

/// What is logged while it lives, by tasks of this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn keep(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let lines = tracing_subscriber::fmt().with_ansi(false).with_writer(move || log.clone()).finish();
        tracing::subscriber::set_default(lines)
    }

    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains("fewer sessions")).map(str::to_owned).collect()
    }
}

/// Rows of one kind, by so many sessions.
async fn plain(copy_sessions: u16, user: &str) -> Stage {
    let stage = Stage::begin(&KINDS[0].create("t"), user, copy_sessions).await;
    fill(&stage).await;
    stage
}

async fn fill(stage: &Stage) {
    let rows = KINDS[0].rows("4000", "generate_series(1, 6000) n");
    stage.postgres.execute("shop", &format!("insert into t {rows}")).await.unwrap();
}

/// What a backfill gives is kept once it is durable, and it may be held back in between: also before it is kept that it has
/// begun, and let go on by somebody for whom it has not.
#[tokio::test]
async fn held_back_before_it_is_kept_that_it_began_no_table_misses_its_beginning() {
    for resumed_as in ["running", "requested", "anew"] {
        let mut stage = plain(1, "landfall").await;
        stage.ask(&["t"], 500).await;
        assert_eq!(given(&mut stage, 3).await, "wait, begin, 500 from 1");
        let set = async |stage: &Stage, what: &str| {
            stage.postgres.execute("shop", &format!("update landfall.backfill set {what}")).await.unwrap();
        };
        set(&stage, "state = 'paused'").await;
        eventually(PATIENCE, "it is put down", async || {
            Ok(stage.copier.next(|table| format!("low {table}")).await?.is_none())
        })
        .await
        .unwrap();
        for _ in 0..3 {
            stage.copier.done(None).await.unwrap();
        }
        assert_eq!(
            stage.text("select state || (begun is not null)::text from landfall.backfill").await,
            "pausedtrue"
        );
        if resumed_as == "running" {
            set(&stage, "state = 'running'").await;
            assert_eq!(given(&mut stage, 1).await, "500 from 501");
            continue;
        }
        if resumed_as == "requested" {
            // A moment before it was kept.
            set(&stage, "state = 'requested', begun = null").await;
        } else {
            // What it gave is gone from the log.
            set(&stage, "state = 'running'").await;
            stage.copier.begin_anew().await.unwrap();
        }
        assert_eq!(given(&mut stage, 3).await, "wait, begin, 500 from 1");
    }
}

/// What is given next, in so many portions.
async fn given(stage: &mut Stage, portions: usize) -> String {
    let mut given = Vec::new();
    let since = Instant::now();
    while given.len() < portions {
        assert!(since.elapsed() < PATIENCE, "nothing comes behind {given:?}");
        match stage.copier.next(|table| format!("low {table}")).await.unwrap().map(|portion| portion.content)
        {
            Some(Content::Mark { mark, .. }) => given.push(mark.as_str().to_owned()),
            Some(Content::Rows(rows)) => {
                let rows = rows_of(&rows);
                given.push(format!("{} from {}", rows.len(), rows[0].0[0]));
            }
            Some(Content::Begin { .. } | Content::Answer { .. }) => panic!("nobody asked for it"),
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
    given.join(", ")
}

/// A daemon that was frozen puts what it read into the log behind its successor's barrier, and is told that it is durable.
#[tokio::test]
async fn nothing_is_kept_for_a_writer_whose_stream_another_has_taken() {
    let mut stage = plain(1, "landfall").await;
    stage.ask(&["t"], 500).await;
    let kept = "select b.state || ' ' || t.state || ' ' || coalesce(t.after[1], '-')
                  from landfall.backfill b, landfall.backfill_table t";
    for (epoch, expected) in [(4, "requested waiting -"), (5, "running copying 500")] {
        stage.postgres.execute("shop", "update landfall.stream set writer_epoch = 5").await.unwrap();
        stage.copier.written_by(WriterEpoch(epoch));
        if epoch == 5 {
            // The successor's own.
            stage.copier.begin_anew().await.unwrap();
        }
        assert_eq!(given(&mut stage, 3).await, "wait, begin, 500 from 1");
        for _ in 0..3 {
            stage.copier.done(None).await.unwrap();
        }
        assert_eq!(stage.text(kept).await, expected);
    }
}

#[tokio::test]
async fn where_there_is_no_connection_for_them_fewer_read() {
    for left in [0, 1] {
        let log = Log::default();
        let _kept = log.keep();
        let mut stage = plain(4, "landfall").await;
        // One is the copier's own. A superuser would not be held to it.
        let limit = format!(
            "grant all on schema landfall to landfall; grant all on all tables in schema landfall, public to landfall;
             alter role landfall nosuperuser bypassrls connection limit {}",
            1 + left
        );
        stage.postgres.execute("shop", &limit).await.unwrap();
        stage.ask(&["t"], 500).await;
        let mut beside_max = 0;
        let chunks =
            stage.copy(async |postgres, _| beside_max = beside_max.max(beside(postgres).await)).await;
        assert_eq!(beside_max, left);
        assert_exact(&chunks, &history(&stage.postgres, "t", "id").await);
        assert_eq!(chunks.len(), 13, "no chunk is read twice");
        let lines = log.lines();
        assert!(lines.len() == 1 && lines[0].contains("too many connections"), "{lines:?}");
    }
}

#[tokio::test]
async fn one_that_is_ended_while_it_reads_takes_no_row_along() {
    let log = Log::default();
    let _kept = log.keep();
    let mut stage = plain(3, "postgres").await;
    // Waits inside the server: so nobody is ended a moment too late.
    let killer = stage.postgres.connect("shop").await.unwrap();
    let kill = "do $$ declare found int; begin
            loop
                perform pg_stat_clear_snapshot();
                select pid into found from pg_stat_activity
                 where application_name like '% beside' and state = 'active' and query like 'COPY%';
                exit when found is not null;
            end loop;
            perform pg_terminate_backend(found);
        end $$";
    let killer = tokio::spawn(async move { killer.batch_execute(kill).await.unwrap() });
    stage.ask(&["t"], 500).await;
    let chunks = stage.copy(async |_, _| ()).await;
    let rows: Vec<usize> = chunks.iter().map(|chunk| rows_of(chunk).len()).collect();
    println!("{rows:?}");
    assert_exact(&chunks, &history(&stage.postgres, "t", "id").await);
    tokio::time::timeout(PATIENCE, killer).await.expect("one was ended").unwrap();
    // It may have ended one chunk early.
    assert!(chunks.len() <= 14, "{rows:?}");
    stage.let_go().await;
    // None, where it had sent the last of its range by then: the range is whole, and the session is let go.
    assert!(log.lines().len() <= 1, "{:?}", log.lines());
}

#[tokio::test]
async fn one_that_stands_still_is_not_waited_for() {
    let log = Log::default();
    let _kept = log.keep();
    let mut stage = plain(3, "postgres").await;
    let stopper = stage.postgres.connect("shop").await.unwrap();
    // As it is when a connection is cut without a word: the server's process does nothing, and nobody says so. Between two
    // chunks: before one is stopped that is seen to read, it has read.
    let stop = "do $$ begin
            execute (select format('copy (select) to program %L', 'cat > /dev/null; kill -STOP ' || pid)
                       from pg_stat_activity where application_name like '% beside' limit 1);
        end $$";
    stage.ask(&["t"], 500).await;
    let chunks = stage.copy(async |_, number| {
        if number == 3 {
            stopper.batch_execute(stop).await.unwrap();
        }
    });
    let chunks = chunks.await;
    assert_exact(&chunks, &history(&stage.postgres, "t", "id").await);
    assert!(log.lines().len() == 1 && log.lines()[0].contains("no answer"), "{:?}", log.lines());
    let go_on = "select pid::text from pg_stat_activity where application_name like '% beside'";
    while let Some(pid) = stage.postgres.query_text("shop", go_on).await.unwrap() {
        let go_on = format!("copy (select) to program 'cat > /dev/null; kill -CONT {pid} || true'");
        stage.postgres.execute("shop", &go_on).await.unwrap();
        stage.copier.next(|_| unreachable!("nothing is read")).await.unwrap();
    }
}

#[tokio::test]
async fn of_one_that_falls_silent_amid_its_rows_none_is_taken() {
    let log = Log::default();
    let _kept = log.keep();
    let wan = Wan::new().unwrap();
    let postgres = Postgres::start(15, "ranges").await.unwrap();
    let near = ports::loopback(postgres.port());
    let url = postgres.url_as("postgres", "shop");
    let url = url.replace(&near.to_string(), &wan.forward(near).unwrap().to_string());
    let mut stage = Stage::begin_at(postgres, &url, &KINDS[0].create("t"), 3).await;
    fill(&stage).await;
    // The copier's own session is made; those beside it are to come. A range has 166 rows of 4 KB: the second that one
    // of them reads comes in part.
    stage.copier.next(|_| unreachable!("nothing is asked for")).await.unwrap();
    wan.set_silent_after(Direction::Down, Some(1_000_000));
    stage.ask(&["t"], 500).await;
    let copied = tokio::time::timeout(PATIENCE, stage.copy(async |_, _| ()));
    let chunks = copied.await.expect("nobody waits for it");
    let rows: Vec<usize> = chunks.iter().map(|chunk| rows_of(chunk).len()).collect();
    println!("{rows:?}");
    assert_exact(&chunks, &history(&stage.postgres, "t", "id").await);
    assert_eq!(
        rows.iter().filter(|&&rows| rows == 166).count(),
        1,
        "{rows:?}: one chunk ends with the copier's own range"
    );
    let lines = log.lines();
    assert!(lines.len() == 1 && lines[0].contains("no answer"), "{lines:?}");
    stage.let_go().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_the_table_is_soon_let_in() {
    let mut stage = plain(4, "postgres").await;
    let locker = stage.postgres.connect("shop").await.unwrap();
    let (end, ended) = tokio::sync::watch::channel(false);
    let locks = tokio::spawn(async move {
        let (mut times, mut longest) = (0, Duration::ZERO);
        while !*ended.borrow() {
            let since = Instant::now();
            locker.batch_execute("begin; lock table t; commit").await.unwrap();
            (times, longest) = (times + 1, longest.max(since.elapsed()));
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        (times, longest)
    });
    stage.ask(&["t"], 500).await;
    let chunks = stage.copy(async |_, _| ()).await;
    end.send(true).unwrap();
    let (times, longest) = locks.await.unwrap();
    println!("{times} locks, the longest wait {longest:?}, {} chunks", chunks.len());
    assert!(times > 5 && longest < Duration::from_secs(4), "{longest:?}");
    assert_exact(&chunks, &history(&stage.postgres, "t", "id").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_rewritten_as_it_is_read_is_not_empty() {
    // Another type; and the same, which nobody sees who looks at the table before and after.
    let alters = [("int8", "int8"), ("int4", "int4 using size + 0")];
    for ((type_name, to), sessions) in alters.into_iter().flat_map(|alter| [1, 3].map(|it| (alter, it))) {
        let mut stage = plain(sessions, "postgres").await;
        let client = Arc::new(tokio::sync::Mutex::new(stage.postgres.connect("shop").await.unwrap()));
        stage.ask(&["t"], 500).await;
        let chunks = stage.copy(async |_, number| {
            if number != 3 {
                return;
            }
            // Whoever reads next waits for it, and sees it as it then is.
            let client = Arc::clone(&client).lock_owned().await;
            client.batch_execute(&format!("begin; alter table t alter column size type {to}")).await.unwrap();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(300)).await;
                client.batch_execute("commit").await.unwrap();
            });
        });
        let chunks = chunks.await;
        println!("{sessions}: {:?}", chunks.iter().map(|chunk| rows_of(chunk).len()).collect::<Vec<_>>());
        assert_exact(&chunks, &history(&stage.postgres, "t", "id").await);
        assert_eq!(chunks.iter().map(|chunk| rows_of(chunk).len()).sum::<usize>(), 6_000);
        let size = |chunk: &Rows| {
            chunk.shape.columns.iter().find(|it| &*it.name == "size").unwrap().type_name.clone()
        };
        assert!(chunks[3..].iter().all(|chunk| &*size(chunk) == type_name), "rows in a shape they have not");
    }
}
