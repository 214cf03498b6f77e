//! Tables that a backfill, a repair or a recovery brings rows of, on a real Postgres.

use std::{sync::Arc, time::Duration};

use landfall::{
    change::{Cell, Change, Identity, Mark, Meanwhile, Row, Shape},
    fault::Code,
    sink::{Sink, Wish, postgres::PostgresSink},
};

use crate::{
    PostgresTarget, Target,
    log::{Log, delete, insert, row, shape, update, value},
    only_postgres::{claimed, remedy, shape_of},
    promises::{keyless, keyless_mark, mark, mending, portion, replacing},
};

#[tokio::test]
async fn rows_that_take_the_place_of_others_are_never_passed_over() {
    let target = PostgresTarget::new("rows_that_take_the_place").await;
    target.run("ALTER TABLE t ADD UNIQUE (v)").await;
    target.put(1, "old").await;
    target.put(7, "taken").await;
    let mut config = target.config();
    config.lock_timeout = Duration::from_millis(300);
    let mut sink = PostgresSink::new(config);
    sink.claim().await.unwrap();
    let mut log = Log::new();
    let chunk = log.one(vec![replacing("1\tnew\n")]);
    target.run("BEGIN; UPDATE t SET v = 'theirs' WHERE id = 1").await;
    let fault = sink.apply(&chunk).await.unwrap_err();
    assert_eq!(fault.code(), Code::TargetBusy, "it is waited for: {fault}");
    target.run("ROLLBACK").await;
    sink.claim().await.unwrap();
    sink.apply(&chunk).await.unwrap();
    assert_eq!(target.rows().await, [(1, "new".to_owned()), (7, "taken".to_owned())]);

    // Another row has what is unique here: it is not for us to say which of them goes.
    let taken = log.one(vec![replacing("2\ttaken\n")]);
    assert_eq!(sink.apply(&taken).await.unwrap_err().code(), Code::RowRejected);
    assert_eq!(target.rows().await.len(), 2);
    target.remove(7).await;
    sink.claim().await.unwrap();
    sink.apply(&taken).await.unwrap();

    // Found by something else than the source's key, another row than is meant would go.
    target.run("ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t ALTER v SET NOT NULL").await;
    sink.claim().await.unwrap();
    let mut change = replacing("3\tnew\n");
    if let Change::Chunk { shape, .. } = &mut change {
        *shape = Arc::new(Shape::new("public", "t", Identity::Full, shape.columns.clone()));
    }
    let other = log.one(vec![change]);
    remedy(&sink.apply(&other).await.unwrap_err(), Code::TableDiffers);
    assert_eq!(target.rows().await, [(1, "new".to_owned()), (2, "taken".to_owned())]);
    target.run("ALTER TABLE t ADD PRIMARY KEY (id); ALTER TABLE t DROP CONSTRAINT t_v_key").await;
    sink.claim().await.unwrap();
    sink.apply(&other).await.unwrap();
    assert_eq!(target.rows().await.len(), 3);
}

#[tokio::test]
async fn a_row_that_may_be_stale_gives_way_to_one_that_has_its_unique_value() {
    let target = PostgresTarget::new("a_row_that_may_be_stale_gives_way").await;
    target
        .run("CREATE UNIQUE INDEX ON t (v); CREATE UNIQUE INDEX ON t (upper(v), (v IS NULL)) WHERE id > 0")
        .await;
    for (id, v) in [(1, "a"), (2, "b"), (3, "c"), (4, "d"), (6, "f")] {
        target.put(id, v).await;
    }
    let mut log = Log::new();
    let mut sink = claimed(&target).await;
    sink.apply(&log.one(vec![mark(Mark::Stale)])).await.unwrap();
    drop(sink);
    // Another session finds it as it was marked.
    let mut sink = claimed(&target).await;
    // By an expression, in an insert; two rows at once; in an update; in rows that mend.
    sink.apply(&log.one(vec![insert(&shape(), row(["9", "A"]))])).await.unwrap();
    sink.apply(&log.one(vec![update(&shape(), None, row(["2", "c"]))])).await.unwrap();
    sink.apply(&log.one(vec![mending("5\t\\N\n7\t\\N\n", "5\td\n7\tf\n")])).await.unwrap();
    let rows = [(2, "c"), (5, "d"), (7, "f"), (9, "A")].map(|(id, v)| (id, v.to_owned()));
    assert_eq!(target.rows().await, rows);
    // In a transaction larger than memory.
    let first = log.slice(vec![insert(&shape(), row(["10", "x"]))], true, false);
    sink.apply(&log.batch(vec![first])).await.unwrap();
    let last = log.slice(vec![insert(&shape(), row(["11", "c"]))], false, true);
    sink.apply(&log.batch(vec![last])).await.unwrap();
    let rows = [(5, "d"), (7, "f"), (9, "A"), (10, "x"), (11, "c")].map(|(id, v)| (id, v.to_owned()));
    assert_eq!(target.rows().await, rows);

    // What a trigger meets in another table is not the stream's to take away.
    target
        .run(
            "CREATE TABLE noted (id int8 PRIMARY KEY); INSERT INTO noted VALUES (12);
             CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
                 'BEGIN INSERT INTO noted VALUES (new.id); RETURN new; END';
             CREATE TRIGGER notes BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION note();
             ALTER TABLE t ENABLE ALWAYS TRIGGER notes",
        )
        .await;
    let met = log.one(vec![insert(&shape(), row(["12", "y"]))]);
    let fault = sink.apply(&met).await.unwrap_err();
    assert_eq!(target.ask("SELECT count(*)::text FROM noted").await.as_deref(), Some("1"), "{fault}");
    target.run("DROP TRIGGER notes ON t").await;
    drop(sink);
    let mut sink = claimed(&target).await;
    sink.apply(&met).await.unwrap();

    sink.apply(&log.one(vec![mark(Mark::Done)])).await.unwrap();
    let fault = sink.apply(&log.one(vec![insert(&shape(), row(["13", "x"]))])).await.unwrap_err();
    assert_eq!(fault.code(), Code::Conflict, "it is strict as before: {fault}");
    assert_eq!(target.rows().await.split_last(), Some((&(12, "y".to_owned()), &rows[..])));
}

#[tokio::test]
async fn a_row_of_a_partition_that_may_be_stale_gives_way() {
    let target = PostgresTarget::new("a_row_of_a_partition_that_may_be_stale").await;
    target
        .run(
            "DROP TABLE t;
             CREATE SCHEMA parts;
             CREATE TABLE t (id int8 PRIMARY KEY, v text) PARTITION BY RANGE (id);
             CREATE TABLE parts.low PARTITION OF t FOR VALUES FROM (0) TO (10);
             CREATE TABLE parts.high PARTITION OF t FOR VALUES FROM (10) TO (100);
             CREATE UNIQUE INDEX ON parts.low (v);
             CREATE UNIQUE INDEX ON parts.high (upper(v)) WHERE v <> ''",
        )
        .await;
    let mut log = Log::new();
    let mut sink = claimed(&target).await;
    // Whoever may write to a table need not be allowed to write to its partitions by their names.
    let role = crate::server::ROLE;
    for privileges in ["GRANT ALL ON SCHEMA parts TO", "REVOKE ALL ON SCHEMA parts FROM"] {
        target.run(&format!("TRUNCATE t; {privileges} {role}")).await;
        let tables = privileges.replace("SCHEMA parts", "parts.low, parts.high");
        target.run(&format!("{tables} {role}")).await;
        for (id, v) in [(1, "a"), (2, "b"), (11, "a"), (12, "B")] {
            target.put(id, v).await;
        }
        sink.apply(&log.one(vec![mark(Mark::Stale)])).await.unwrap();
        sink.apply(&log.one(vec![insert(&shape(), row(["3", "a"]))])).await.unwrap();
        sink.apply(&log.one(vec![insert(&shape(), row(["13", "b"]))])).await.unwrap();
        sink.apply(&log.one(vec![mark(Mark::Done)])).await.unwrap();
        let rows = [(2, "b"), (3, "a"), (11, "a"), (13, "b")].map(|(id, v)| (id, v.to_owned()));
        assert_eq!(target.rows().await, rows, "{privileges}");
    }
}

#[tokio::test]
async fn what_was_parked_takes_no_row_away_that_may_be_newer() {
    let target = PostgresTarget::new("what_was_parked_takes_no_row_away").await;
    target.run("CREATE UNIQUE INDEX ON t (v); ALTER TABLE t ADD CONSTRAINT others CHECK (id <> 1)").await;
    let mut log = Log::new();
    let mut sink = target.parking_sink();
    sink.claim().await.unwrap();
    sink.apply(&log.one(vec![mark(Mark::Stale)])).await.unwrap();
    let mut refused = log.one(vec![insert(&shape(), row(["1", "taken"]))]);
    refused.shapes = vec![shape()];
    assert_eq!(sink.apply(&refused).await.unwrap().parked, 1);
    sink.apply(&log.one(vec![insert(&shape(), row(["7", "taken"]))])).await.unwrap();
    target.run("ALTER TABLE t DROP CONSTRAINT others").await;
    target.wish(&target.parked().await, Wish::Retry).await;
    assert_eq!(sink.attend().await.unwrap().parked, 1);
    assert_eq!(target.rows().await, [(7, "taken".to_owned())]);
}

#[tokio::test]
async fn what_is_parked_is_newer_than_what_one_snapshot_brings() {
    let target = PostgresTarget::new("what_is_parked_is_newer_than_what_one_snapshot").await;
    target.run("CREATE TABLE u (id int8 PRIMARY KEY, v text); INSERT INTO u VALUES (7, 'theirs')").await;
    let u = shape_of(&target, "u").await;
    let mut log = Log::new();
    let mut sink = target.parking_sink();
    sink.claim().await.unwrap();
    let mut begins = log.one(vec![keyless_mark(Mark::Snapshot), portion("1\ta\n", None)]);
    begins.shapes = vec![keyless(), u.clone()];
    sink.apply(&begins).await.unwrap();
    let changes = vec![
        update(&keyless(), Some(row(["2", "b"])), row(["2", "B"])),
        delete(&keyless(), row(["3", "c"])),
        insert(&u, row(["7", "ours"])),
    ];
    assert_eq!(sink.apply(&log.one(changes)).await.unwrap().parked, 1);
    sink.apply(&log.one(vec![portion("2\tb\n3\tc\n", None)])).await.unwrap();
    let changes = "SELECT count(*)::text FROM landfall.parked_change";
    assert_eq!(target.ask(changes).await.as_deref(), Some("3"));
    sink.apply(&log.one(vec![keyless_mark(Mark::Done)])).await.unwrap();
    target.run("DELETE FROM u").await;
    target.wish(&target.parked().await, Wish::Retry).await;
    assert_eq!(sink.attend().await.unwrap().parked, 0);
    assert_eq!(target.rows().await, [(1, "a".to_owned()), (2, "B".to_owned())]);
}

#[tokio::test]
async fn what_is_tried_again_takes_no_row_that_is_only_equal_to_its_own() {
    let target = PostgresTarget::new("what_is_tried_again_takes_no_row").await;
    target.run("CREATE TABLE n (k numeric PRIMARY KEY, v text CHECK (v <> 'no'))").await;
    let n = shape_of(&target, "n").await;
    let mut log = Log::new();
    let mut sink = target.parking_sink();
    sink.claim().await.unwrap();
    let mut refused = log.one(vec![insert(&n, row(["1.0", "no"]))]);
    refused.shapes = vec![n.clone()];
    sink.apply(&refused).await.unwrap();
    sink.apply(&log.one(vec![delete(&n, row(["1.0", "no"]))])).await.unwrap();
    // At the source it comes in its place.
    let comes = log.one(vec![insert(&n, row(["1.00", "yes"]))]);
    assert_eq!(sink.apply(&comes).await.unwrap().parked, 2);
    let parked = target.parked().await;
    target.wish(&parked[..1], Wish::Discard).await;
    target.wish(&parked[1..], Wish::Retry).await;
    assert_eq!(sink.attend().await.unwrap().parked, 1, "the row it deletes is not there");
    assert_eq!(target.ask("SELECT string_agg(k || v, ',') FROM n").await.as_deref(), Some("1.00yes"));
    let reason = target.ask("SELECT reason FROM landfall.parked").await.unwrap();
    assert!(reason.contains("landfall parked discard") && !reason.contains("by itself"), "{reason}");
}

#[tokio::test]
async fn what_meets_a_lock_is_still_asked_for_and_everything_behind_it() {
    let target = PostgresTarget::new("what_meets_a_lock_is_still_asked_for").await;
    target.put(7, "theirs").await;
    let mut log = Log::new();
    let mut sink = target.parking_sink();
    sink.claim().await.unwrap();
    let mut refused = log.one(vec![insert(&shape(), row(["7", "ours"]))]);
    refused.shapes = vec![shape()];
    sink.apply(&refused).await.unwrap();
    sink.apply(&log.one(vec![update(&shape(), None, row(["7", "ours, later"]))])).await.unwrap();
    let parked = target.parked().await;
    target.remove(7).await;
    target.wish(&parked, Wish::Retry).await;
    target.run("BEGIN; LOCK TABLE t IN SHARE MODE").await;
    assert_eq!(sink.attend().await.unwrap().parked, 2);
    target.run("COMMIT").await;
    let asked = "SELECT count(asked)::text FROM landfall.parked";
    assert_eq!(target.ask(asked).await.as_deref(), Some("2"));
    let reason = target.ask("SELECT reason FROM landfall.parked ORDER BY id LIMIT 1").await.unwrap();
    assert!(reason.contains("blocked by backend") && reason.contains("tried again"), "{reason}");
    let tries = async {
        while sink.attend().await.unwrap().parked > 0 {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), tries).await.expect("it is applied once the lock is gone");
    assert_eq!(target.rows().await, [(7, "ours, later".to_owned())]);
}

#[tokio::test]
async fn a_row_that_is_locked_is_not_mended_and_the_stream_goes_on() {
    let target = PostgresTarget::new("a_row_that_is_locked_is_not_mended").await;
    target.put(1, "old").await;
    let mut config = target.config();
    config.lock_timeout = Duration::from_millis(300);
    let mut sink = PostgresSink::new(config);
    sink.claim().await.unwrap();
    let mut log = Log::new();
    target.run("BEGIN; UPDATE t SET v = 'theirs' WHERE id = 1").await;
    sink.apply(&log.one(vec![mending("1\t\\N\n", "1\tnew\n")])).await.unwrap();
    sink.apply(&log.one(vec![insert(&shape(), row(["2", "b"]))])).await.unwrap();
    target.run("ROLLBACK").await;
    assert_eq!(target.rows().await, [(1, "old".to_owned()), (2, "b".to_owned())]);
}

/// Types without an equality, and such whose equality is broader than the same text; rows that are there several times.
const ODD: &str = "(a json, b point, c numeric, d char(4), e text, f bytea, g int4[], h float8)";

#[tokio::test]
async fn a_table_copied_under_one_snapshot_may_hold_anything_any_number_of_times() {
    let target = PostgresTarget::new("a_table_copied_under_one_snapshot_may_hold").await;
    let partitions = "CREATE TABLE parted_1 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE parted_2 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 1)";
    target.run(&format!("CREATE TABLE plain {ODD}")).await;
    target.run(&format!("CREATE TABLE parted {ODD} PARTITION BY HASH (e); {partitions}")).await;
    let mut log = Log::new();
    let mut sink = target.sink();
    sink.claim().await.unwrap();
    for table in ["plain", "parted"] {
        target.run(&format!("ALTER TABLE {table} REPLICA IDENTITY FULL")).await;
        let shape = shape_of(&target, table).await;
        let mark = |mark| Change::Watermark { shapes: vec![shape.clone()], mark };
        let odd = [r#"{"a": 1}"#, "(1,2)", "1.0", "ab  ", "ä\\\"{},", r"\x00ff", "{1,NULL}", "NaN"];
        // Equal to it for the types that know an equality, and another row.
        let other = [r#"{"a": 1}"#, "(1,2)", "1.00", "ab  ", "ä\\\"{},", r"\x00ff", "{1,NULL}", "NaN"];
        let nothing = Row(vec![Cell::Null; 8].into());
        let mut empty = nothing.clone();
        empty.0[4] = value("");
        let mut text = bytes::BytesMut::new();
        for row in [row(odd), row(odd), row(odd), row(other), nothing.clone(), nothing.clone(), empty.clone()]
        {
            landfall::change::copy_text::put_row(&mut text, &*row.0);
        }
        let (rows, text) = (7, text.freeze());
        let replace = Box::default();
        let all = Change::Chunk {
            shape: shape.clone(),
            rows,
            again: false,
            keys: None,
            replace,
            meanwhile: None,
            text,
        };
        sink.apply(&log.one(vec![mark(Mark::Snapshot), all])).await.unwrap();
        let moved = update(&shape, Some(row(odd)), row(other));
        let mut unchanged = row(odd);
        unchanged.0[4] = Cell::Unchanged;
        unchanged.0[7] = value("-0");
        let unchanged = update(&shape, Some(row(odd)), unchanged);
        let gone = vec![delete(&shape, nothing.clone()), insert(&shape, empty.clone()), moved, unchanged];
        sink.apply(&log.one(gone)).await.unwrap();
        assert_eq!(sink.apply(&log.one(vec![mark(Mark::Done)])).await.unwrap().joining, 0);
        let counts = format!(
            "SELECT string_agg(n, ' ' ORDER BY n) FROM (
                 SELECT coalesce(c::text, '-') || ',' || coalesce(h::text, '-') || ',' || coalesce(e, '-')
                        || ':' || count(*) AS n FROM {table} GROUP BY c::text, h::text, e) x"
        );
        let counts = target.ask(&counts).await.unwrap();
        let mut counts: Vec<&str> = counts.split(' ').collect();
        counts.sort_unstable();
        let expected =
            ["-,-,-:1", "-,-,:2", "1.0,-0,ä\\\"{},:1", "1.0,NaN,ä\\\"{},:1", "1.00,NaN,ä\\\"{},:2"];
        assert_eq!(counts, expected, "{table}");
        assert_eq!(target.ask("SELECT count(*)::text FROM landfall.meanwhile").await.as_deref(), Some("0"));
    }
}

#[tokio::test]
async fn a_row_that_went_meanwhile_and_is_not_there_stops_the_stream() {
    let target = PostgresTarget::new("a_row_that_went_meanwhile_and_is_not_there").await;
    let mut log = Log::new();
    let mut sink = target.sink();
    sink.claim().await.unwrap();
    let begins = vec![keyless_mark(Mark::Snapshot), portion("1\ta\n2\tb\n", None)];
    sink.apply(&log.one(begins)).await.unwrap();
    sink.apply(&log.one(vec![delete(&keyless(), row(["1", "a"]))])).await.unwrap();
    target.remove(1).await;
    let done = log.one(vec![keyless_mark(Mark::Done)]);
    let fault = sink.apply(&done).await.unwrap_err();
    assert_eq!(fault.code(), Code::TableDiffers, "{fault}");
    assert!(fault.remedy().contains("landfall recover") && fault.remedy().contains("--again"), "{fault}");
    assert_eq!(sink.claim().await.unwrap().joining, 1);
    // Behind the place that a recovery begins at, it is filled once more: what was kept of it counts no more.
    log.after = done.after;
    for changes in [
        vec![keyless_mark(Mark::Stale)],
        vec![keyless_mark(Mark::Snapshot), portion("2\tb\n", None)],
        vec![keyless_mark(Mark::Done)],
    ] {
        sink.apply(&log.one(changes)).await.unwrap();
    }
    assert_eq!(target.rows().await, [(2, "b".to_owned())]);
    // What is kept of a table that nobody fills any more is forgotten.
    let again = vec![keyless_mark(Mark::Snapshot), portion("3\tc\n", Some(Meanwhile::Came))];
    sink.apply(&log.one(again)).await.unwrap();
    target.run("DELETE FROM landfall.joining").await;
    sink.claim().await.unwrap();
    assert_eq!(target.ask("SELECT count(*)::text FROM landfall.meanwhile").await.as_deref(), Some("0"));
}
