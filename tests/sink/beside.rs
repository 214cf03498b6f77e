//! Chunks that several sessions bring in side by side, on a real Postgres.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
    time::Duration,
};

use landfall::{
    change::{Change, Mark},
    fault::Code,
    postgres::connect,
    sink::{
        OnRefusal, Sink,
        postgres::{PostgresSink, PostgresSinkConfig},
    },
};
use tokio::net::{TcpListener, TcpStream};

use crate::{
    PostgresTarget, Target,
    log::{Log, delete, insert, row, shape, update},
    only_postgres::{killed_at, remedy},
    promises::{chunk, mark},
    server::{ROLE, Server},
};

/// Rows in each text: enough for a session to begin with another while one is at work.
const ROWS: i64 = 2_000;

/// Texts of a chunk, by their places.
pub(crate) fn texts(of: Range<i64>) -> Vec<Change> {
    let text = |at: i64| (at * ROWS..(at + 1) * ROWS).map(|id| format!("{id}\tv{id}\n")).collect::<String>();
    of.map(|at| chunk(text(at), false)).collect()
}

fn sink(target: &PostgresTarget, copy_sessions: u16) -> PostgresSink {
    PostgresSink::new(PostgresSinkConfig { copy_sessions, ..target.config() })
}

/// A sink that has begun to fill the table.
async fn begun(target: &PostgresTarget, copy_sessions: u16) -> (PostgresSink, Log) {
    let mut sink = sink(target, copy_sessions);
    sink.claim().await.unwrap();
    let mut log = Log::new();
    sink.apply(&log.one(vec![mark(Mark::Begin)])).await.unwrap();
    (sink, log)
}

/// Every row is there, once, as it came.
async fn has(target: &PostgresTarget, ids: Range<i64>) {
    let rows = target.rows().await;
    let expected: Vec<_> = ids.map(|id| (id, format!("v{id}"))).collect();
    assert!(rows == expected, "{} rows, {} expected", rows.len(), expected.len());
}

/// How many transactions the rows there are came in.
async fn transactions(target: &PostgresTarget) -> i64 {
    let count = "SELECT count(DISTINCT xmin::text)::text FROM t";
    target.ask(count).await.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_comes_in_by_several_sessions_under_origins_of_their_own() {
    let target = PostgresTarget::new("a_chunk_comes_in_by_several").await;
    let (mut sink, mut log) = begun(&target, 3).await;
    sink.apply(&log.one(texts(0..8))).await.unwrap();
    has(&target, 0..8 * ROWS).await;
    assert_eq!(transactions(&target).await, 3, "ours and two others");
    let origins = "SELECT string_agg(DISTINCT o.roname, ' ' ORDER BY o.roname)
                     FROM t, pg_xact_commit_timestamp_origin(t.xmin) c JOIN pg_replication_origin o ON o.roident = c.roident";
    let origin = |lane| format!("landfall/us-east-1/{}/{lane}", target.stream);
    assert_eq!(target.ask(origins).await.unwrap(), [origin(0), origin(1), origin(2)].join(" "));
    // The next, a slice, changes in between, and the last.
    sink.apply(&log.one(vec![update(&shape(), None, row(["7", "seven"]))])).await.unwrap();
    let first = log.slice(texts(8..12), true, false);
    sink.apply(&log.batch(vec![first])).await.unwrap();
    let mut rest = texts(12..16);
    rest.push(mark(Mark::Done));
    let rest = log.slice(rest, false, true);
    assert_eq!(sink.apply(&log.batch(vec![rest])).await.unwrap().joining, 0);
    sink.apply(&log.one(vec![update(&shape(), None, row(["7", "v7"]))])).await.unwrap();
    has(&target, 0..16 * ROWS).await;
    let lanes = "SELECT count(*)::text FROM pg_stat_activity
                  WHERE application_name LIKE 'landfall copy%' AND datname = current_database()";
    let gone = async {
        while target.ask(lanes).await.unwrap() != "0" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let gone = tokio::time::timeout(Duration::from_secs(60), gone).await;
    gone.expect("sessions that copied are there when nothing is copied any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_one_session_a_chunk_is_one_transaction() {
    let target = PostgresTarget::new("with_one_session_a_chunk").await;
    let (mut sink, mut log) = begun(&target, 1).await;
    sink.apply(&log.one(texts(0..8))).await.unwrap();
    has(&target, 0..8 * ROWS).await;
    assert_eq!(transactions(&target).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_somebody_uses_is_passed_over() {
    let target = PostgresTarget::new("an_origin_that_somebody_uses").await;
    let (mut sink, mut log) = begun(&target, 2).await;
    let origin = format!("landfall/us-east-1/{}/1", target.stream);
    target
        .run(&format!(
            "SELECT pg_replication_origin_create('{origin}'); SELECT pg_replication_origin_session_setup('{origin}')"
        ))
        .await;
    sink.apply(&log.one(texts(0..4))).await.unwrap();
    has(&target, 0..4 * ROWS).await;
    assert_eq!(transactions(&target).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_other_session_is_to_be_had_a_chunk_comes_in_by_one() {
    let server = Server::alone();
    let target = PostgresTarget::on(&server, "where_no_other_session").await;
    let (mut sink, mut log) = begun(&target, 4).await;
    // No connection, and then no origin but those that are left to other links.
    target.run(&format!("ALTER ROLE {ROLE} CONNECTION LIMIT 1")).await;
    sink.apply(&log.one(texts(0..4))).await.unwrap();
    assert_eq!(transactions(&target).await, 1);
    let most: i64 =
        target.ask("SELECT current_setting('max_replication_slots')").await.unwrap().parse().unwrap();
    target.run(&format!("ALTER ROLE {ROLE} CONNECTION LIMIT -1")).await;
    target
        .run(&format!("SELECT pg_replication_origin_create('o' || o) FROM generate_series(1, {most} - 4) o"))
        .await;
    sink.claim().await.unwrap();
    sink.apply(&log.one(texts(4..8))).await.unwrap();
    // One was to be had: with ours and the two that are left, that is all.
    assert_eq!(transactions(&target).await, 3);
    has(&target, 0..8 * ROWS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_one_session_is_refused_is_named_and_comes_once_it_may() {
    let target = PostgresTarget::new("a_row_that_one_session_is_refused").await;
    // Of the first text, which is ours, of the second, which is another's, and of any.
    for bad in [1, ROWS + 5, 3 * ROWS + 5, 7 * ROWS + 9] {
        target.run("TRUNCATE t; DROP TABLE IF EXISTS landfall.joining, landfall.progress CASCADE").await;
        target.run(&format!("ALTER TABLE t ADD CONSTRAINT bad CHECK (id <> {bad})")).await;
        let (mut sink, mut log) = begun(&target, 3).await;
        let batch = log.one(texts(0..8));
        let fault = sink.apply(&batch).await.unwrap_err();
        assert!(
            remedy(&fault, Code::RowRejected).len() > 5 && fault.to_string().contains("\"bad\""),
            "{fault}"
        );
        target.run("ALTER TABLE t DROP CONSTRAINT bad").await;
        let progress = sink.claim().await.unwrap().progress.unwrap();
        assert_eq!(progress.through.sequence, batch.after, "nothing of it counts");
        sink.apply(&batch).await.unwrap();
        has(&target, 0..8 * ROWS).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_parked_of_a_row_gives_way_whoever_brings_the_row() {
    let target = PostgresTarget::new("what_is_parked_of_a_row_gives_way").await;
    let config = PostgresSinkConfig { copy_sessions: 3, on_refusal: OnRefusal::Park, ..target.config() };
    let mut sink = PostgresSink::new(config);
    sink.claim().await.unwrap();
    let mut log = Log::new();
    let mut begin = log.one(vec![mark(Mark::Begin)]);
    begin.shapes = vec![shape()];
    sink.apply(&begin).await.unwrap();
    target.run("ALTER TABLE t ADD CONSTRAINT dated CHECK (v <> 'dated')").await;
    // One row of each text.
    for at in 0..8 {
        let dated = insert(&shape(), row([&(at * ROWS + 7).to_string(), "dated"]));
        assert_eq!(sink.apply(&log.one(vec![dated])).await.unwrap().parked, at as usize + 1);
    }
    assert_eq!(sink.apply(&log.one(texts(0..8))).await.unwrap().parked, 0);
    assert!(transactions(&target).await > 1, "other sessions have brought rows");
    has(&target, 0..8 * ROWS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_whose_end_never_comes_leaves_rows_that_are_exact() {
    let target = PostgresTarget::new("a_chunk_whose_end_never_comes").await;
    let (mut sink, mut log) = begun(&target, 3).await;
    let first = log.slice(texts(0..6), true, false);
    sink.apply(&log.batch(vec![first])).await.unwrap();
    sink.abandon().await.unwrap();
    // The second text is always another session's. Changes to its rows count, and the same rows come again with the next.
    let (changes, goes) = (ROWS + 10, ROWS + 11);
    let gone = delete(&shape(), row([&goes.to_string(), ""]));
    let changed = update(&shape(), None, row([&changes.to_string(), "ten"]));
    sink.apply(&log.one(vec![changed, gone])).await.unwrap();
    let rows = target.rows().await;
    assert!(rows.contains(&(changes, "ten".to_owned())) && rows.iter().all(|(id, _)| *id != goes));
    assert!(rows.contains(&(ROWS, format!("v{ROWS}"))));
    sink.apply(&log.one(texts(0..8))).await.unwrap();
    has(&target, 0..8 * ROWS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_session_has_under_way_is_over_before_another_holds_the_target() {
    let target = PostgresTarget::new("what_a_session_has_under_way").await;
    let (mut sink, mut log) = begun(&target, 2).await;
    let batch = log.one(texts(0..8));
    // Both sessions come to a row of somebody's transaction, and stand.
    let theirs = (0..8).map(|at| format!("({}, 'theirs')", at * ROWS + 7)).collect::<Vec<_>>().join(", ");
    target.run(&format!("BEGIN; INSERT INTO t VALUES {theirs}")).await;
    let standing = "SELECT count(*)::text FROM pg_stat_activity
                     WHERE application_name LIKE 'landfall %' AND datname = current_database()
                       AND wait_event_type = 'Lock'";
    // By a session in no transaction: one sees what it saw first.
    let onlooker = connect(&target.database.address, "test").await.unwrap();
    let stand = async || onlooker.query_one(standing, &[]).await.unwrap().get::<_, String>(0);
    let cut = async {
        while stand().await != "2" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        applied = sink.apply(&batch) => panic!("nobody stood in the way: {applied:?}"),
        () = cut => {}
    }
    let claim = sink.claim().await.unwrap();
    assert_eq!(claim.progress.unwrap().through.sequence, batch.after);
    assert_eq!(stand().await, "0");
    target.run("ROLLBACK").await;
    assert_eq!(target.rows().await, [], "nothing of it comes any more");
    sink.apply(&batch).await.unwrap();
    has(&target, 0..8 * ROWS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_an_earlier_holder_is_waited_for() {
    let target = PostgresTarget::new("a_session_of_an_earlier_holder").await;
    let (first, _) = begun(&target, 2).await;
    drop(first);
    // One that nobody may end: another role's.
    target.run("BEGIN; SELECT FROM landfall.progress FOR KEY SHARE").await;
    let mut second =
        PostgresSink::new(PostgresSinkConfig { lock_timeout: Duration::from_millis(300), ..target.config() });
    let fault = loop {
        match second.claim().await {
            Err(fault) if fault.code() == Code::TargetHeld => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            claim => break claim.unwrap_err(),
        }
    };
    assert_eq!(fault.code(), Code::TargetBusy, "{fault}");
    target.run("COMMIT").await;
    second.claim().await.unwrap();
}

/// Where new connections are led to.
async fn switch(to: Arc<AtomicU16>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut ours, _)) = listener.accept().await {
            let mut theirs = TcpStream::connect(("127.0.0.1", to.load(Relaxed))).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut ours, &mut theirs).await });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn no_session_copies_into_another_server_than_the_one_that_is_held() {
    let (here, there) = (Server::alone(), Server::alone());
    let here = PostgresTarget::on(&here, "no_session_copies_into_another").await;
    let there = PostgresTarget::on(&there, "no_session_copies_into_another").await;
    // Claimed once as well, and as far: by its epoch and its place it is the same.
    let (_theirs, _) = begun(&there, 1).await;
    let leads_to = Arc::new(AtomicU16::new(here.database.address.port));
    let mut config = PostgresSinkConfig { copy_sessions: 3, ..here.config() };
    config.address.port = switch(leads_to.clone()).await;
    let mut sink = PostgresSink::new(config);
    sink.claim().await.unwrap();
    let mut log = Log::new();
    sink.apply(&log.one(vec![mark(Mark::Begin)])).await.unwrap();
    leads_to.store(there.database.address.port, Relaxed);
    sink.apply(&log.one(texts(0..8))).await.unwrap();
    has(&here, 0..8 * ROWS).await;
    assert_eq!(there.rows().await, []);
    let lanes = "SELECT count(*)::text FROM pg_replication_origin WHERE roname NOT LIKE '%/0'";
    assert_eq!(there.ask(lanes).await.unwrap(), "0", "nothing is made there either");
}

#[tokio::test]
async fn killed_when_one_session_has_committed_the_chunk_is_next_again() {
    let target = PostgresTarget::new("killed_when_one_session").await;
    let mut sink = killed_at(&target, "lane_committed:1", "chunk").await;
    let found = target.rows().await.len() as i64;
    assert!(found > 0 && found < 8 * ROWS && found % ROWS == 0, "some texts are there: {found} rows");
    let mut log = filled();
    let progress = sink.claim().await.unwrap().progress.unwrap();
    assert_eq!(progress.through.sequence, log.after);
    sink.apply(&log.one(texts(0..8))).await.unwrap();
    has(&target, 0..8 * ROWS).await;
}

/// A log behind the mark that begins to fill the table.
fn filled() -> Log {
    let mut log = Log::new();
    log.one(vec![mark(Mark::Begin)]);
    log
}

/// What the process does that is killed.
pub(crate) async fn fill(mut sink: PostgresSink) {
    let mut log = Log::new();
    sink.apply(&log.one(vec![mark(Mark::Begin)])).await.unwrap();
    sink.apply(&log.one(texts(0..8))).await.unwrap();
    panic!("the process was to be killed before this");
}
