//! What only a real Postgres can show.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::SinkExt;
use landfall::{
    change::{Cell, Change, Column, Identity, Row, Shape},
    fault::{Code, Fault},
    position::Sequence,
    postgres::connect,
    sink::{
        PARKED_CHANGES_MAX, Sink, Wish,
        postgres::{PostgresSink, parked},
    },
};

use crate::{
    PostgresTarget, Target,
    log::{Log, TIME, delete, insert, row, shape, shape_with, update, value},
    promises::{claim_soon, rows, sliced},
    server::Server,
};

/// The shape of a table as a source would describe it.
pub(crate) async fn shape_of(target: &PostgresTarget, table: &str) -> Arc<Shape> {
    let sql = "SELECT a.attname::text, n.nspname::text, t.typname::text, a.atttypmod,
                      c.relreplident = 'f' OR coalesce(a.attnum = ANY (i.indkey::int2[]), false),
                      c.relreplident = 'f'
                 FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
                 JOIN pg_type d ON d.oid = a.atttypid
                 JOIN pg_type t ON t.oid = CASE WHEN d.typtype = 'd' THEN d.typbasetype ELSE d.oid END
                 JOIN pg_namespace n ON n.oid = t.typnamespace
                 LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
                WHERE c.oid = $1::text::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";
    let rows = target.database.client.query(sql, &[&table]).await.unwrap();
    let full: bool = rows[0].get(5);
    let column = |row: &tokio_postgres::Row| Column {
        name: row.get::<_, &str>(0).into(),
        type_schema: row.get::<_, &str>(1).into(),
        type_name: row.get::<_, &str>(2).into(),
        typmod: row.get(3),
        key: row.get(4),
    };
    Arc::new(Shape::new(
        "public",
        table,
        if full { Identity::Full } else { Identity::Default },
        rows.iter().map(column).collect::<Vec<_>>(),
    ))
}

/// All rows of a table as pgoutput would send them: `format` uses the type's own output.
async fn images(target: &PostgresTarget, shape: &Shape, table: &str) -> Vec<Row> {
    let columns: Vec<String> = shape
        .columns
        .iter()
        .map(|it| landfall::names::quoted(&it.name))
        .map(|name| format!("CASE WHEN num_nulls({name}) = 0 THEN format('%s', {name}) END"))
        .collect();
    let sql = format!("SELECT {} FROM {table} ORDER BY 1", columns.join(", "));
    let rows = target.database.client.query(&sql, &[]).await.unwrap();
    let cell = |text: Option<String>| text.map_or(Cell::Null, |text| value(&text));
    let width = shape.columns.len();
    rows.iter().map(|row| Row((0..width).map(|at| cell(row.get(at))).collect())).collect()
}

pub(crate) async fn claimed(target: &PostgresTarget) -> PostgresSink {
    let mut sink = target.sink();
    sink.claim().await.unwrap();
    sink
}

pub(crate) fn remedy(fault: &Fault, code: Code) -> String {
    assert_eq!(fault.code(), code, "{fault}");
    fault.remedy().to_owned()
}

const TYPES: &str = r#"
    CREATE SCHEMA other;
    CREATE TYPE mood AS ENUM ('so', 'la la');
    CREATE TYPE other.mood AS ENUM ('la la', 'NULL', '');
    CREATE TYPE pair AS (a int4, b text);
    CREATE DOMAIN small AS varchar(7) CHECK (value <> 'no');
    CREATE TABLE source (
        id numeric PRIMARY KEY, b bool, i2 int2, i4 int4, i8 int8, f4 float4, f8 float8, n numeric(20,5),
        t text, vc varchar(9), bc bpchar(5), "char" "char", "we""ird Name" name, by bytea, d date, ti time(3),
        tz timetz, ts timestamp, tt timestamptz(2), iv interval, u uuid, j json, jb jsonb, x xml, i inet,
        c cidr, mac macaddr, mac8 macaddr8, pt point, bx box, pg polygon, bt bit(5), vb varbit, m money,
        ta text[], ia int4[], ba box[], pa pair[], p pair, e1 mood, e2 other.mood, ea other.mood[], dm small,
        ir int4range, mr int4multirange, tr tstzrange, tv tsvector, lsn pg_lsn, o oid, ea2 mood[]);
    INSERT INTO source (id) VALUES (0);
    INSERT INTO source VALUES (
        1, true, -32768, -2147483648, 9223372036854775807, 'NaN', '-infinity', 123456789012345.12345,
        '', 'NULL', 'ab', 'x', 'name', '\x00ff5c22', '4713-01-01 BC', '24:00', '23:59:59.999999+15',
        'infinity', '0044-03-15 12:00:00 BC', '-178000000 years 1 day -00:00:01',
        'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{"a" : 1, "a":2}', '{"b": [1, null, "\"\\"]}', '<a>"</a>',
        '::1/64', '10.0.0.0/8', '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05', '(1,-0)', '(1,2),(3,4)',
        '((0,0),(1,1),(2,0))', '10101', '1', '-12.34', '{"a\"b",NULL,"NULL","",\\,"{x,y}"}',
        '[0:1][1:2]={{1,2},{NULL,4}}', '{(1,2),(3,4);(5,6),(7,8)}', '{"(1,\"x \"\"y\"\"\")",NULL}',
        '(,"a, (b)")', 'la la', 'NULL', '{"","NULL",NULL}', 'dom "x"', '(,5)', '{[1,3),[5,7)}',
        '["2020-01-01 BC",infinity)', '''a b'':1A c', '16/B374D848', 4294967295, '{}');
    INSERT INTO source (id, f8, t, n, ta) VALUES
        (repeat('9', 60000)::numeric, 1e-300, E'line\nback\\slash "quote"\t', 'NaN', '{}'),
        (-0.10, 'infinity', 'null', -0.00001, NULL), ('NaN', -0.0, '{}', 1, '{{a},{b}}');
"#;

#[tokio::test]
async fn values_arrive_as_they_left() {
    let target = PostgresTarget::new("values_arrive_as_they_left").await;
    target.run(TYPES).await;
    target
        .run(
            "CREATE TABLE keyed (LIKE source INCLUDING ALL); CREATE TABLE keyless (LIKE source);
             ALTER TABLE keyless REPLICA IDENTITY FULL",
        )
        .await;
    let mut log = Log::new();
    let mut sink = claimed(&target).await;
    let same =
        "SELECT count(*)::text FROM (SELECT ours::text FROM source ours EXCEPT ALL SELECT theirs::text FROM";
    for table in ["keyed", "keyless"] {
        let shape = shape_of(&target, table).await;
        let rows = images(&target, &shape, "source").await;
        assert_eq!(rows.len(), 5);
        let come = rows.iter().map(|row| insert(&shape, row.clone())).collect();
        let applied = sink.apply(&log.one(come)).await.unwrap();
        assert!(!applied.redone, "{table}");
        assert_eq!(target.ask(&format!("{same} {table} theirs) x")).await.unwrap(), "0", "{table}");
        // Every value into every other row's place and back again, found by all there is to find by.
        let full = shape.identity == Identity::Full;
        let width = shape.columns.len();
        let emptied = |row: &Row| {
            let empty = |at: usize| if at == 0 { row.0[0].clone() } else { Cell::Null };
            Row((0..width).map(empty).collect())
        };
        let old = |row: &Row| full.then(|| row.clone());
        let empty = rows.iter().map(|row| update(&shape, old(row), emptied(row))).collect();
        sink.apply(&log.one(empty)).await.unwrap();
        let fill = rows.iter().map(|row| update(&shape, old(&emptied(row)), row.clone())).collect();
        let applied = sink.apply(&log.one(fill)).await.unwrap();
        assert!(!applied.redone, "{table}");
        assert_eq!(target.ask(&format!("{same} {table} theirs) x")).await.unwrap(), "0", "{table}");
        let go = rows.iter().map(|row| delete(&shape, row.clone())).collect();
        let applied = sink.apply(&log.one(go)).await.unwrap();
        assert!(!applied.redone, "{table}");
        assert_eq!(target.ask(&format!("SELECT count(*)::text FROM {table}")).await.unwrap(), "0");
    }
}

#[tokio::test]
async fn many_rows_are_copied_and_arrive_as_they_left() {
    let target = PostgresTarget::new("many_rows_are_copied").await;
    target
        .run(&format!(
            "{TYPES}; CREATE TABLE many (LIKE source); ALTER TABLE many REPLICA IDENTITY FULL;
             CREATE TABLE counted (id int8 PRIMARY KEY GENERATED ALWAYS AS IDENTITY, v text,
                                   twice int8 GENERATED ALWAYS AS (id * 2) STORED)"
        ))
        .await;
    let mut log = Log::new();
    let mut sink = claimed(&target).await;
    let many = shape_of(&target, "many").await;
    let rows = images(&target, &many, "source").await;
    let come = (0..100).flat_map(|_| rows.iter().map(|row| insert(&many, row.clone()))).collect();
    assert!(!sink.apply(&log.one(come)).await.unwrap().redone);
    for (ours, theirs) in
        [("many", "source, generate_series(1, 100)"), ("source, generate_series(1, 100)", "many")]
    {
        let of = |from: &str| format!("SELECT r::text FROM (SELECT {} FROM {from}) r", columns(&many, from));
        let differ = format!("SELECT count(*)::text FROM ({} EXCEPT ALL {}) x", of(ours), of(theirs));
        assert_eq!(target.ask(&differ).await.unwrap(), "0", "{ours} except {theirs}");
    }
    let counted = shape_of(&target, "counted").await;
    let counted = Shape::new("public", "counted", Identity::Default, counted.columns[..2].to_vec());
    let counted = Arc::new(counted);
    let numbered = |ids: std::ops::Range<i32>| ids.map(|id| insert(&counted, row([&id.to_string(), r"\N"])));
    assert!(!sink.apply(&log.one(numbered(0..300).collect())).await.unwrap().redone);
    let sum = "SELECT sum(twice) || ' of ' || min(v) || count(v) FROM counted";
    assert_eq!(target.ask(sum).await.unwrap(), r"89700 of \N300");
    // One among many that is there already is found and named; nothing of its transaction stays.
    target.run("INSERT INTO counted OVERRIDING SYSTEM VALUE VALUES (555, 'theirs')").await;
    let before = log.transaction(numbered(300..400).collect());
    let culprit = log.transaction(numbered(400..700).collect());
    let fault = sink.apply(&log.batch(vec![before, culprit])).await.unwrap_err();
    assert_eq!(fault.code(), Code::Conflict);
    assert!(fault.message().contains("555"), "{fault}");
    assert_eq!(target.ask("SELECT count(*) || ' ' || max(id) FROM counted").await.unwrap(), "401 555");
}

/// A shape's columns as a query names them.
fn columns(shape: &Shape, table: &str) -> String {
    let table = table.split(',').next().unwrap();
    let names = shape.columns.iter().map(|it| format!("{table}.{}", landfall::names::quoted(&it.name)));
    names.collect::<Vec<_>>().join(", ")
}

#[tokio::test]
async fn a_value_of_64_mb_passes() {
    let target = PostgresTarget::new("a_value_of_64_mb_passes").await;
    let mut log = Log::new();
    let mut sink = claimed(&target).await;
    for (id, size) in [(1, 20 << 20), (2, 64 << 20)] {
        let big = "\\\"é{ab".repeat(size / 7);
        sink.apply(&log.one(vec![insert(&shape(), row([&id.to_string(), &big]))])).await.unwrap();
        let same = format!("SELECT (v = repeat(E'\\\\\"é{{ab', {}))::text FROM t WHERE id = {id}", size / 7);
        assert_eq!(target.ask(&same).await.unwrap(), "true");
    }
}

#[tokio::test]
async fn unchanged_toast_stays() {
    let target = PostgresTarget::new("unchanged_toast_stays").await;
    target.run("CREATE TABLE wide (id int8 PRIMARY KEY, big text, n int4)").await;
    target
        .run("INSERT INTO wide SELECT 1, string_agg(md5(i::text), ''), 0 FROM generate_series(1, 9999) i")
        .await;
    let before = target.ask("SELECT md5(big) FROM wide").await;
    let shape = shape_of(&target, "wide").await;
    let unchanged = |id: &str, n: &str| Row([value(id), Cell::Unchanged, value(n)].into());
    let mut log = Log::new();
    let mut sink = claimed(&target).await;
    let changes = vec![
        insert(&shape, row(["2", "short", "0"])),
        update(&shape, None, unchanged("1", "1")),
        update(&shape, None, unchanged("2", "1")),
        update(&shape, Some(row(["1", "", ""])), unchanged("3", "2")),
    ];
    sink.apply(&log.one(changes)).await.unwrap();
    assert_eq!(target.ask("SELECT md5(big) FROM wide WHERE id = 3 AND n = 2").await, before);
    assert_eq!(target.ask("SELECT big FROM wide WHERE id = 2 AND n = 1").await.unwrap(), "short");
}

/// `UPDATE t SET body = body` where the body lies out of line: the source says nothing but which row it was.
#[tokio::test]
async fn an_update_that_gives_nothing_writes_nothing_and_still_finds_its_row() {
    let target = PostgresTarget::new("an_update_that_gives_nothing").await;
    target
        .run(
            "CREATE TABLE told (id int4 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text);
             ALTER TABLE told ALTER body SET STORAGE EXTERNAL;
             CREATE TABLE parts (id int4 PRIMARY KEY, body text) PARTITION BY RANGE (id);
             CREATE TABLE low PARTITION OF parts FOR VALUES FROM (0) TO (50);
             CREATE TABLE high PARTITION OF parts DEFAULT;
             CREATE TABLE loose (id int4, body text); ALTER TABLE loose REPLICA IDENTITY FULL;
             CREATE TABLE bodies AS SELECT g AS id, repeat(md5(g::text), 100) AS body FROM generate_series(1, 300) g;
             INSERT INTO told (body) SELECT body FROM bodies ORDER BY id;
             INSERT INTO parts SELECT * FROM bodies; INSERT INTO loose SELECT bodies.* FROM bodies, generate_series(1, 2)",
        )
        .await;
    let row_of = |id: i32, body: Cell| Row([value(&id.to_string()), body].into());
    let mut log = Log::new();
    let mut sink = claimed(&target).await;
    for table in ["told", "parts"] {
        let shape = shape_of(&target, table).await;
        let idle = |id| update(&shape, None, row_of(id, Cell::Unchanged));
        // Of few rows the server counts those it finds, of many it tells how many they are.
        for last in [3, 300] {
            let applied = sink.apply(&log.one((1..=last).map(idle).collect())).await.unwrap();
            assert!(!applied.redone, "{table}: {last}");
        }
        let mixed = vec![idle(1), update(&shape, None, row_of(1, value("new"))), idle(2), idle(1)];
        assert!(!sink.apply(&log.one(mixed)).await.unwrap().redone, "{table}");
        // One by one.
        for last in [3, 300] {
            let (before, culprit) = (log.transaction(vec![idle(5)]), (1..=last).chain([999]).map(idle));
            let (reached, culprit) = (before.through, log.transaction(culprit.collect()));
            let fault = sink.apply(&log.batch(vec![before, culprit])).await.unwrap_err();
            assert_eq!(fault.code(), Code::Conflict, "{fault}");
            assert!(fault.message().contains("(id)=(999)"), "{fault}");
            assert_eq!(sink.claim().await.unwrap().progress.unwrap().through, reached);
            log.after = reached.sequence;
        }
        let differ = format!(
            "SELECT string_agg(t.id || t.body, ',') FROM {table} t JOIN bodies b USING (id) WHERE t.body <> b.body"
        );
        assert_eq!(target.ask(&differ).await.unwrap(), "1new");
    }
    // Any one of equal rows.
    let loose = shape_of(&target, "loose").await;
    let body = target.ask("SELECT body FROM bodies WHERE id = 7").await.unwrap();
    let idle = update(&loose, Some(row_of(7, value(&body))), row_of(7, Cell::Unchanged));
    assert!(!sink.apply(&log.one(vec![idle.clone(), idle])).await.unwrap().redone);
    let gone = update(&loose, Some(row_of(7, value("other"))), row_of(7, Cell::Unchanged));
    assert_eq!(sink.apply(&log.one(vec![gone])).await.unwrap_err().code(), Code::Conflict);
    assert_eq!(
        target.ask("SELECT count(*)::text FROM loose JOIN bodies USING (id, body)").await.unwrap(),
        "600"
    );
}

#[tokio::test]
async fn keys_move_and_unique_values_swap() {
    let target = PostgresTarget::new("keys_move_and_unique_values_swap").await;
    let mut log = Log::new();
    let mut sink = claimed(&target).await;
    let s = shape();
    let key = |id: &str| Some(Row([value(id), Cell::Unchanged].into()));
    let changes = vec![
        insert(&s, row(["1", "a"])),
        insert(&s, row(["2", "b"])),
        update(&s, key("2"), row(["3", "b"])),
        update(&s, key("1"), row(["2", "a"])),
        update(&s, None, row(["2", "a2"])),
        delete(&s, row(["3", ""])),
        insert(&s, row(["1", "c"])),
    ];
    assert!(!sink.apply(&log.one(changes)).await.unwrap().redone);
    assert_eq!(target.rows().await, [(1, "c".to_owned()), (2, "a2".to_owned())]);
    target.run("CREATE UNIQUE INDEX ON t (v)").await;
    let swap = |first: &'static str, second: &'static str| {
        [
            update(&shape(), None, row(["1", "tmp"])),
            update(&shape(), None, row(["2", first])),
            update(&shape(), None, row(["1", second])),
        ]
    };
    let before = log.transaction(vec![insert(&s, row(["9", "z"]))]);
    let swapped = log.transaction(swap("c", "a2").to_vec());
    let applied = sink.apply(&log.batch(vec![before, swapped])).await.unwrap();
    assert!(applied.redone);
    assert_eq!(sink.flush().await.unwrap(), log.after);
    let rows = [(1, "a2".to_owned()), (2, "c".to_owned()), (9, "z".to_owned())];
    assert_eq!(target.rows().await, rows);
    // The same in slices.
    let first = log.slice(vec![delete(&s, row(["9", ""]))], true, false);
    sink.apply(&log.batch(vec![first])).await.unwrap();
    let last = log.slice(swap("a2", "c").to_vec(), false, true);
    assert!(sink.apply(&log.batch(vec![last])).await.unwrap().redone);
    assert_eq!(target.rows().await, [(1, "c".to_owned()), (2, "a2".to_owned())]);
}

#[tokio::test]
async fn commits_carry_the_origins_time_and_place() {
    let target = PostgresTarget::new("commits_carry_the_origins_time").await;
    let mut log = Log::new();
    let mut sink = claimed(&target).await;
    let mut expected = Vec::new();
    for at in 0..3_i64 {
        let mut step = log.transaction(vec![insert(&shape(), row([&at.to_string(), "x"]))]);
        step.frame.head.time.0 += at * 60_000_000;
        expected.push(step.frame.head.time.0);
        sink.apply(&log.batch(vec![step])).await.unwrap();
        if at == 1 {
            sink.flush().await.unwrap();
        }
    }
    let step = log.slice(vec![insert(&shape(), row(["3", "x"]))], true, false);
    sink.apply(&log.batch(vec![step])).await.unwrap();
    let mut step = log.slice(vec![insert(&shape(), row(["4", "x"]))], false, true);
    step.frame.head.time.0 += 1_000_001;
    expected.extend([step.frame.head.time.0; 2]);
    sink.apply(&log.batch(vec![step])).await.unwrap();
    let sql = "SELECT (extract(epoch FROM o.timestamp) * 1000000)::int8, n.roname
                 FROM t, pg_xact_commit_timestamp_origin(t.xmin) o
                 JOIN pg_replication_origin n ON n.roident = o.roident ORDER BY id";
    let rows = target.database.client.query(sql, &[]).await.unwrap();
    let times: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(times, expected);
    let origin = format!("landfall/us-east-1/{}/0", target.stream);
    assert!(rows.iter().all(|row| row.get::<_, &str>(1) == origin));
    let sql = format!(
        "SELECT (remote_lsn - '0/0') || '' FROM pg_replication_origin_status s
           JOIN pg_replication_origin o ON o.roident = s.local_id WHERE roname = '{origin}'"
    );
    let landfall::position::Position::Postgres(position) = log.position();
    assert_eq!(target.ask(&sql).await.unwrap(), position.end.0.to_string());
    assert_eq!(TIME.0, expected[0]);
}

#[tokio::test]
async fn equal_rows_without_a_key_are_taken_one_at_a_time() {
    let target = PostgresTarget::new("equal_rows_without_a_key").await;
    target.run("CREATE TABLE loose (a int4, b text, j json); ALTER TABLE loose REPLICA IDENTITY FULL").await;
    let shape = shape_of(&target, "loose").await;
    let image = |b: Cell| Row([value("1"), b, value("{}")].into());
    let twin = image(Cell::Null);
    let mut log = Log::new();
    let mut sink = claimed(&target).await;
    let changes = vec![
        insert(&shape, twin.clone()),
        insert(&shape, twin.clone()),
        insert(&shape, twin.clone()),
        update(&shape, Some(twin.clone()), image(value("x"))),
        delete(&shape, twin.clone()),
    ];
    assert!(!sink.apply(&log.one(changes)).await.unwrap().redone);
    let left = "SELECT string_agg(coalesce(b, 'null'), ',' ORDER BY b) FROM loose";
    assert_eq!(target.ask(left).await.unwrap(), "x,null");
    let twice = vec![delete(&shape, twin.clone()), delete(&shape, twin)];
    assert_eq!(sink.apply(&log.one(twice)).await.unwrap_err().code(), Code::Conflict);
    assert_eq!(target.ask(left).await.unwrap(), "x,null");
}

#[tokio::test]
async fn tables_bound_by_foreign_keys_are_emptied_together() {
    let target = PostgresTarget::new("tables_bound_by_foreign_keys").await;
    target
        .run(
            "CREATE TABLE parent (id serial PRIMARY KEY); CREATE TABLE child (id int4 REFERENCES parent);
             CREATE TABLE parts (id int8 PRIMARY KEY) PARTITION BY RANGE (id);
             CREATE TABLE part PARTITION OF parts DEFAULT; INSERT INTO parts VALUES (1);
             INSERT INTO parent DEFAULT VALUES; INSERT INTO child VALUES (1)",
        )
        .await;
    let mut shapes = Vec::new();
    for table in ["parent", "child", "parts"] {
        shapes.push(shape_of(&target, table).await);
    }
    let change = Change::Truncate { shapes: shapes.clone(), cascade: true, restart_identity: true };
    let mut log = Log::new();
    let mut sink = claimed(&target).await;
    let child = insert(&shapes[1], row(["8"]));
    sink.apply(&log.one(vec![child.clone(), change, child, insert(&shapes[2], row(["5"]))])).await.unwrap();
    let count = "SELECT (SELECT count(*) FROM parent) || ' ' || (SELECT count(*) FROM child) || ' ' ||
                        nextval('parent_id_seq') || ' ' || (SELECT string_agg(id::text, ',') FROM parts)";
    // A sequence goes on: its region's own.
    assert_eq!(target.ask(count).await.unwrap(), "0 1 2 5");
    let lone = Change::Truncate { shapes: shapes[..1].to_vec(), cascade: false, restart_identity: false };
    let refused = sink.apply(&log.one(vec![lone])).await.unwrap_err();
    assert_eq!(refused.code(), Code::RowRejected, "{refused}");
}

#[tokio::test]
async fn a_table_that_differs_is_named_with_the_ddl() {
    let target = PostgresTarget::new("a_table_that_differs").await;
    let mut log = Log::new();
    let mut sink = claimed(&target).await;
    let batch = log.one(vec![insert(&shape(), row(["1", "a"]))]);
    for (break_it, mend_it) in [
        ("DROP TABLE t", "CREATE TABLE \"public\".\"t\" (\"id\" bigint, \"v\" text, PRIMARY KEY (\"id\"))"),
        (
            "ALTER TABLE t DROP v",
            "ALTER TABLE \"public\".\"t\" ADD COLUMN \"v\" text /* with the DEFAULT it has at the source, or old rows differ */",
        ),
        (
            "ALTER TABLE t ALTER v TYPE varchar(3)",
            "ALTER TABLE \"public\".\"t\" ALTER COLUMN \"v\" TYPE text",
        ),
        (
            "ALTER TABLE t ADD extra int4 NOT NULL",
            "ALTER TABLE \"public\".\"t\" ALTER COLUMN \"extra\" DROP NOT NULL",
        ),
        (
            "ALTER TABLE t DROP v; ALTER TABLE t ADD v text GENERATED ALWAYS AS (id::text) STORED",
            "ALTER TABLE \"public\".\"t\" ALTER COLUMN \"v\" DROP EXPRESSION",
        ),
    ] {
        target.run(break_it).await;
        let remedy = remedy(&sink.apply(&batch).await.unwrap_err(), Code::TableDiffers);
        assert!(remedy.ends_with(mend_it), "{remedy}");
        target.run(mend_it).await;
        sink.claim().await.unwrap();
    }
    sink.apply(&batch).await.unwrap();
    assert_eq!(target.rows().await, [(1, "a".to_owned())]);
}

#[tokio::test]
async fn a_transaction_that_fits_no_table_says_what_helps() {
    let target = PostgresTarget::new("a_transaction_that_fits_no_table").await;
    let retyped = shape_with(&[("v", "varchar")]);
    let (before, after) = (insert(&shape(), row(["1", "a"])), insert(&retyped, row(["2", "b"])));
    let helps = |fault: &Fault| {
        assert!(remedy(fault, Code::TableDiffers).contains("`landfall recover --execute`"), "{fault}");
        let what = "one transaction writes public.t before and after the type of its column v is changed";
        assert_eq!(fault.message().matches(what).count(), 1, "{fault}");
    };
    let whole = Log::new().one(vec![before.clone(), after.clone()]);
    let slices = sliced(&mut Log::new(), vec![vec![before], vec![after]]);
    let mut sink = target.sink();
    for to in [&retyped, &shape()] {
        target.alter(to).await;
        sink.claim().await.unwrap();
        helps(&sink.apply(&whole).await.unwrap_err());
    }
    // Of one that is larger than memory it is said as soon as both have come.
    sink.claim().await.unwrap();
    sink.apply(&slices[0]).await.unwrap();
    helps(&sink.apply(&slices[1]).await.unwrap_err());
    assert_eq!(target.rows().await, []);
}

#[tokio::test]
async fn a_row_refused_by_a_constraint_is_named() {
    let target = PostgresTarget::new("a_row_refused_by_a_constraint").await;
    target.run("ALTER TABLE t ADD CONSTRAINT polite CHECK (v <> 'bad')").await;
    let mut log = Log::new();
    let mut sink = claimed(&target).await;
    let steps =
        ["ok", "bad"].map(|v| log.transaction(vec![insert(&shape(), row([&v.len().to_string(), v]))]));
    let batch = log.batch(steps.to_vec());
    let fault = sink.apply(&batch).await.unwrap_err();
    assert_eq!(fault.code(), Code::RowRejected);
    assert!(fault.message().contains("polite") && fault.message().contains("(id)=(3)"), "{fault}");
    assert_eq!(target.rows().await, [(2, "ok".to_owned())]);
    target.run("ALTER TABLE t DROP CONSTRAINT polite").await;
    let reached = sink.claim().await.unwrap().progress.unwrap().through.sequence;
    let rest = landfall::sink::Batch { after: reached, steps: batch.steps[1..].to_vec(), ..batch };
    sink.apply(&rest).await.unwrap();
    assert_eq!(target.rows().await.len(), 2);
}

#[tokio::test]
async fn ddl_under_a_running_session_is_noticed() {
    let target = PostgresTarget::new("ddl_under_a_running_session").await;
    let mut log = Log::new();
    let mut sink = claimed(&target).await;
    sink.apply(&log.one(vec![insert(&shape(), row(["1", "a"]))])).await.unwrap();
    target
        .run("ALTER TABLE t RENAME TO was; CREATE TABLE t (v text, more int4 DEFAULT 7, id int8 PRIMARY KEY)")
        .await;
    sink.apply(&log.one(vec![insert(&shape(), row(["2", "b"]))])).await.unwrap();
    assert_eq!(target.rows().await, [(2, "b".to_owned())]);
    target.run("ALTER TABLE t DROP v").await;
    let fault = sink.apply(&log.one(vec![insert(&shape(), row(["3", "c"]))])).await.unwrap_err();
    assert_eq!(fault.code(), Code::TableDiffers, "{fault}");
}

#[tokio::test]
async fn a_table_that_is_altered_here_under_a_running_session_is_not_parked() {
    let target = PostgresTarget::new("altered_here").await;
    target.run("ALTER TABLE t ADD more int4 NOT NULL DEFAULT 7").await;
    let mut log = Log::new();
    let mut sink = target.parking_sink();
    sink.claim().await.unwrap();
    sink.apply(&log.one(vec![insert(&shape(), row(["1", "a"]))])).await.unwrap();
    target.run("ALTER TABLE t ALTER more DROP DEFAULT").await;
    let batch = log.one(vec![insert(&shape(), row(["2", "b"]))]);
    let fault = sink.apply(&batch).await.unwrap_err();
    assert_eq!(fault.code(), Code::TableDiffers, "{fault}");
    target.run("ALTER TABLE t ALTER more SET DEFAULT 8").await;
    sink.claim().await.unwrap();
    sink.apply(&batch).await.unwrap();
    assert_eq!(target.rows().await, rows(&[(1, "a"), (2, "b")]));
    // What the table refuses of one row is.
    target.run("ALTER TABLE t ADD CHECK (v <> 'c')").await;
    let applied = sink.apply(&log.one(vec![insert(&shape(), row(["3", "c"]))])).await.unwrap();
    assert_eq!(applied.aside.len(), 1);
}

#[tokio::test]
async fn a_plain_role_is_told_what_to_grant() {
    let target = PostgresTarget::new("a_plain_role_is_told").await;
    target.run("CREATE ROLE plain LOGIN").await;
    let mut config = target.config();
    config.address.user = "plain".to_owned();
    let mut sink = PostgresSink::new(config);
    let grants = remedy(&sink.claim().await.unwrap_err(), Code::PrivilegeMissing);
    let sql = grants.strip_prefix("run there as a superuser: ").unwrap().rsplit_once("; it is").unwrap().0;
    target.run(sql).await;
    sink.claim().await.unwrap();
    let mut log = Log::new();
    let batch = log.one(vec![insert(&shape(), row(["1", "a"]))]);
    let grants = remedy(&sink.apply(&batch).await.unwrap_err(), Code::PrivilegeMissing);
    target.run(grants.split_once(": ").unwrap().1).await;
    sink.claim().await.unwrap();
    sink.apply(&batch).await.unwrap();
    assert_eq!(target.rows().await.len(), 1);
}

#[tokio::test]
async fn only_what_is_flushed_is_told() {
    let target = PostgresTarget::new("only_what_is_flushed").await;
    let mut config = target.config();
    config.flush_interval = Duration::from_millis(400);
    let mut sink = PostgresSink::new(config);
    sink.claim().await.unwrap();
    let mut log = Log::new();
    let mut next = || {
        let id = log.sequence.to_string();
        log.one(vec![insert(&shape(), row([&id, "x"]))])
    };
    let first = next();
    assert_eq!(sink.apply(&first).await.unwrap().flushed, Sequence(0));
    assert_eq!(target.rows().await.len(), 1, "seen before it is told");
    assert_eq!(sink.flush().await.unwrap(), first.through.sequence);
    let second = next();
    assert_eq!(sink.apply(&second).await.unwrap().flushed, first.through.sequence);
    tokio::time::sleep(Duration::from_millis(450)).await;
    let third = next();
    let told = sink.apply(&third).await.unwrap().flushed;
    assert!(told == first.through.sequence, "nobody waits for the disk, and nothing is told before: {told}");
    // While batch follows batch it is flushed beside them, and told with one that comes.
    let deadline = Instant::now() + Duration::from_secs(10);
    while sink.apply(&next()).await.unwrap().flushed < third.through.sequence {
        assert!(Instant::now() < deadline, "what was committed long ago is not flushed");
    }
}

#[tokio::test]
async fn a_target_whose_standby_does_not_answer_is_waited_for_before_long() {
    let target = PostgresTarget::on(&Server::alone(), "a_standby_does_not_answer").await;
    let mut config = target.config();
    config.flush_interval = Duration::from_millis(1);
    let mut sink = PostgresSink::new(config);
    sink.claim().await.unwrap();
    let mut log = Log::new();
    let mut next = || {
        let id = log.sequence.to_string();
        log.one(vec![insert(&shape(), row([&id, "x"]))])
    };
    // Whoever commits and waits for the disk waits for a standby that never comes from now on.
    target.run("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await;
    target.run("SELECT pg_reload_conf()").await;
    // From when the checkpointer has read that, which nobody is told.
    let onlooker = connect(&target.database.address, "test").await.unwrap();
    let commits = tokio::spawn(async move {
        loop {
            onlooker.batch_execute("SELECT pg_logical_emit_message(true, '', '')").await.unwrap();
        }
    });
    let waits = "SELECT count(*)::text FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    while target.ask(waits).await.unwrap() == "0" {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    commits.abort();
    // Applied all the same, and not told; what is not told of is kept, so this has an end.
    let began = Instant::now();
    let mut applied = 0;
    while let Ok(outcome) = tokio::time::timeout(Duration::from_secs(3), sink.apply(&next())).await {
        assert_eq!(outcome.unwrap().flushed, Sequence(0), "told what no standby has");
        assert!(began.elapsed() < Duration::from_secs(30), "what is not told of is kept for ever");
        applied += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(applied > 5, "nobody waits for the disk at once: {applied}");
    assert_eq!(target.rows().await.len(), applied + 1, "what waits is applied");
}

#[tokio::test]
async fn a_target_that_gives_no_second_session_is_flushed_by_the_first() {
    let server = Server::alone();
    let target = PostgresTarget::on(&server, "no_second_session").await;
    let mut config = target.config();
    config.flush_interval = Duration::from_millis(1);
    let mut sink = PostgresSink::new(config);
    sink.claim().await.unwrap();
    target.run("ALTER ROLE landfall CONNECTION LIMIT 1").await;
    let mut log = Log::new();
    let told = async {
        loop {
            let id = log.sequence.to_string();
            let batch = log.one(vec![insert(&shape(), row([&id, "x"]))]);
            if sink.apply(&batch).await.unwrap().flushed == batch.through.sequence {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), told).await.expect("something is told");
}

#[tokio::test]
async fn a_rule_of_the_targets_is_no_obstacle() {
    let target = PostgresTarget::new("a_rule_of_the_targets").await;
    let rule = "CREATE TABLE seen (id int8);
        CREATE RULE also AS ON INSERT TO t DO ALSO INSERT INTO seen VALUES (new.id);
        ALTER TABLE t ENABLE ALWAYS RULE also";
    target.run(rule).await;
    let mut sink = target.sink();
    sink.claim().await.unwrap();
    let mut log = Log::new();
    for id in ["1", "2"] {
        assert!(!sink.apply(&log.one(vec![insert(&shape(), row([id, "x"]))])).await.unwrap().redone);
    }
    assert_eq!(target.ask("SELECT string_agg(id::text, ',' ORDER BY id) FROM seen").await.unwrap(), "1,2");
}

#[tokio::test]
async fn of_many_updates_the_one_that_finds_no_row_is_named() {
    let target = PostgresTarget::new("of_many_updates").await;
    target.run("INSERT INTO t SELECT g, 'a' FROM generate_series(1, 200) g WHERE g <> 77").await;
    let mut sink = target.sink();
    sink.claim().await.unwrap();
    let mut log = Log::new();
    let change = |id: i32| update(&shape(), None, row([id.to_string().as_str(), "b"]));
    let before = log.transaction((1..=70).map(change).collect());
    let culprit = log.transaction((71..=200).map(change).collect());
    let fault = sink.apply(&log.batch(vec![before, culprit])).await.unwrap_err();
    assert_eq!(fault.code(), Code::Conflict, "{fault}");
    assert!(fault.message().contains("(id)=(77)"), "{fault}");
    let updated = "SELECT count(*)::text FROM t WHERE v = 'b'";
    assert_eq!(target.ask(updated).await.unwrap(), "70", "what came before it stays");
}

#[tokio::test]
async fn whoever_holds_a_lock_is_named() {
    let target = PostgresTarget::new("whoever_holds_a_lock").await;
    target.put(1, "a").await;
    let mut config = target.config();
    // Half of it is left for the question who is in the way, on a connection of its own.
    config.lock_timeout = Duration::from_secs(3);
    let mut sink = PostgresSink::new(config);
    sink.claim().await.unwrap();
    let mut log = Log::new();
    let batch = log.one(vec![update(&shape(), None, row(["1", "b"]))]);
    // What a session of somebody else does is shown to those who may see it; whose it is, to everybody.
    for (grant, shown) in [
        ("", "(postgres): its statement is shown to members of pg_read_all_stats"),
        ("GRANT pg_read_all_stats TO landfall", "SET v = 'theirs'"),
    ] {
        target.run(grant).await;
        target.run("BEGIN; UPDATE t SET v = 'theirs' WHERE id = 1").await;
        let fault = sink.apply(&batch).await.unwrap_err();
        assert_eq!(fault.code(), Code::TargetBusy);
        assert!(fault.message().contains(shown), "{fault}");
        target.run("ROLLBACK").await;
        sink.claim().await.unwrap();
    }
    // A session that has prepared nothing waits for a table before it has sent a row.
    target.run("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await;
    for _ in 0..2 {
        let fault = sink.apply(&batch).await.unwrap_err();
        assert!(fault.message().contains("LOCK TABLE t"), "{fault}");
        let mut config = target.config();
        config.lock_timeout = Duration::from_secs(3);
        drop(sink);
        sink = PostgresSink::new(config);
        claim_soon(&mut sink).await;
    }
    target.run("ROLLBACK; REVOKE pg_read_all_stats FROM landfall").await;
    sink.apply(&batch).await.unwrap();
    assert_eq!(target.rows().await, [(1, "b".to_owned())]);
}

/// The server refuses a key that is always its own before it has a row.
#[tokio::test]
async fn a_slice_that_cannot_be_prepared_is_refused_by_name() {
    let target = PostgresTarget::new("a_slice_that_cannot_be_prepared").await;
    target
        .run("DROP TABLE t; CREATE TABLE t (id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text UNIQUE)")
        .await;
    let mut log = Log::new();
    let mut sink = claimed(&target).await;
    let moves = update(&shape(), Some(row(["1", ""])), row(["2", "b"]));
    let batches = sliced(&mut log, vec![vec![insert(&shape(), row(["1", "a"]))], vec![moves]]);
    sink.apply(&batches[0]).await.unwrap();
    let fault = sink.apply(&batches[1]).await.unwrap_err();
    assert_eq!(fault.code(), Code::RowRejected, "{fault}");
    drop(sink);
    target.run("ALTER TABLE t ALTER id SET GENERATED BY DEFAULT").await;
    let mut sink = target.sink();
    claim_soon(&mut sink).await;
    for batch in &batches {
        sink.apply(batch).await.unwrap();
    }
    assert_eq!(target.rows().await, [(2, "b".to_owned())]);
}

#[tokio::test]
async fn a_living_holder_is_left_alone_and_a_silent_one_ended() {
    let target = PostgresTarget::new("a_living_holder").await;
    let mut log = Log::new();
    let mut first = claimed(&target).await;
    // Silent in the middle of a transaction, with the progress row locked.
    let open = log.slice(vec![insert(&shape(), row(["1", "lost"]))], true, false);
    first.apply(&log.batch(vec![open])).await.unwrap();
    let mut second = target.sink();
    let held = second.claim().await.unwrap_err();
    assert_eq!(held.code(), Code::TargetHeld, "{held}");
    tokio::time::sleep(Duration::from_millis(10_300)).await;
    second.claim().await.unwrap();
    second.apply(&log.one(vec![insert(&shape(), row(["2", "b"]))])).await.unwrap();
    // The first wakes up.
    let last = log.slice(vec![], false, true);
    let mut batch = log.batch(vec![last]);
    batch.after = Sequence(0);
    let gone = first.apply(&batch).await.unwrap_err();
    assert_eq!(gone.code(), Code::DatabaseUnreachable, "{gone}");
    assert_eq!(first.claim().await.unwrap_err().code(), Code::TargetHeld);
    assert_eq!(target.rows().await, [(2, "b".to_owned())]);
}

/// A holder in the middle of a copy is at work as the server has it, whether anything comes of it or not.
#[tokio::test]
async fn whoever_copies_slowly_is_left_alone_and_whoever_stops_in_the_middle_ended() {
    let target = PostgresTarget::new("whoever_copies_slowly").await;
    drop(claimed(&target).await);
    let slow = landfall::postgres::connect(&target.database.address, "slow").await.unwrap();
    let ours = "UPDATE landfall.progress SET (session_pid, session_start) =
                       (SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid())";
    slow.batch_execute(ours).await.unwrap();
    let mut copy = std::pin::pin!(slow.copy_in::<_, bytes::Bytes>("COPY t FROM STDIN").await.unwrap());
    let mut second = target.sink();
    let (began, mut silent) = (Instant::now(), Instant::now());
    for id in 1.. {
        copy.send(format!("{id}\t{id}\n").into()).await.unwrap();
        let held = second.claim().await.unwrap_err();
        assert_eq!(held.code(), Code::TargetHeld, "{held}");
        if began.elapsed() > Duration::from_secs(13) {
            break;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        silent = Instant::now();
    }
    let claim = claim_soon(&mut second).await;
    assert_eq!(claim.epoch.0, 2);
    assert!(silent.elapsed() > Duration::from_secs(9) && silent.elapsed() < Duration::from_secs(40));
    assert!(copy.finish().await.is_err(), "its session is gone");
    assert_eq!(target.rows().await, []);
}

#[tokio::test]
async fn a_server_asks_whether_we_are_still_there() {
    let target = PostgresTarget::new("a_server_asks").await;
    let settings = "SELECT concat_ws(' ', current_setting('tcp_keepalives_idle'), current_setting('tcp_keepalives_interval'),
                                          current_setting('tcp_keepalives_count'))";
    assert_eq!(target.ask(settings).await.unwrap(), "10 5 4");
}

#[tokio::test]
async fn nothing_at_the_target_acts_a_second_time() {
    let target = PostgresTarget::new("nothing_acts_a_second_time").await;
    target
        .run(
            "CREATE TABLE made (id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, k char(4) UNIQUE);
             CREATE TABLE held (id int8 PRIMARY KEY, m int8 REFERENCES made ON DELETE CASCADE);
             CREATE FUNCTION act() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'acted'; END $$;
             CREATE TRIGGER acts BEFORE INSERT OR UPDATE OR DELETE ON made EXECUTE FUNCTION act()",
        )
        .await;
    let (made, held) = (shape_of(&target, "made").await, shape_of(&target, "held").await);
    let mut log = Log::new();
    let mut sink = claimed(&target).await;
    let changes = vec![
        insert(&held, row(["1", "40"])),
        insert(&made, row(["40", "k   "])),
        insert(&made, row(["41", "l   "])),
    ];
    sink.apply(&log.one(changes)).await.unwrap();
    sink.apply(&log.one(vec![update(&made, None, row(["40", "m   "]))])).await.unwrap();
    sink.apply(&log.one(vec![delete(&made, row(["40", ""]))])).await.unwrap();
    let left = "SELECT (SELECT string_agg(id || k, ',') FROM made) || ' ' || (SELECT m FROM held)";
    assert_eq!(target.ask(left).await.unwrap(), "41l 40");
}

#[tokio::test]
async fn rows_are_found_through_the_index_whatever_the_keys_type() {
    let target = PostgresTarget::new("rows_are_found_through_the_index").await;
    // An extension is often put where nobody's path leads.
    let types = "CREATE TYPE mood AS ENUM ('x1', 'x2', 'x3'); CREATE DOMAIN code AS varchar(4);
        CREATE TYPE pair AS (a int4, b text); CREATE DOMAIN codes AS int4[];
        CREATE SCHEMA \"Ext\"; CREATE EXTENSION citext SCHEMA \"Ext\"; CREATE EXTENSION ltree SCHEMA \"Ext\"";
    target.run(types).await;
    let types = [
        ("int8", "#"),
        ("text", "x#"),
        ("varchar(9)", "x#"),
        ("char(5)", "x#   "),
        ("numeric(9,2)", "#.00"),
        ("uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1#"),
        ("mood", "x#"),
        ("code", "x#"),
        ("name", "x#"),
        ("text[]", "{x#}"),
        ("codes", "{1,#}"),
        ("pair", "(#,x)"),
        ("int4range", "[#,7)"),
        ("\"Ext\".citext", "x#"),
        ("\"Ext\".ltree", "x.y#"),
    ];
    let mut log = Log::new();
    let mut sink = claimed(&target).await;
    for (at, (ty, key)) in types.into_iter().enumerate() {
        let (table, keys) = (format!("by_{at}"), ["1", "2", "3"].map(|number| key.replace('#', number)));
        // Analyzed with none but dead rows, a table is one row to the planner, whatever it holds later.
        let made = format!(
            "CREATE TABLE {table} (k {ty} PRIMARY KEY, v text) WITH (autovacuum_enabled = off);
             INSERT INTO {table} VALUES ('{}'); DELETE FROM {table}; ANALYZE {table}",
            keys[0]
        );
        target.run(&made).await;
        let shape = shape_of(&target, &table).await;
        let all = |v: &'static str| keys.iter().map(move |key| row([key.as_str(), v]));
        sink.apply(&log.one(all("a").map(|row| insert(&shape, row)).collect())).await.unwrap();
        for _ in 0..3 {
            sink.apply(&log.one(all("b").map(|row| update(&shape, None, row)).collect())).await.unwrap();
        }
        let applied = sink.apply(&log.one(all("").map(|row| delete(&shape, row)).collect())).await.unwrap();
        assert!(!applied.redone);
    }
    // A backend reports its figures at the latest when it ends.
    drop(sink);
    let gone = "SELECT count(*)::text FROM pg_stat_activity
                 WHERE datname = current_database() AND application_name LIKE 'landfall apply%'";
    while target.ask(gone).await.unwrap() != "0" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Making the primary key and the DELETE read the table once each. Each of three rows is looked up four times.
    // By a key that is an array they may be found in one walk through the index.
    let scanned = "SELECT string_agg(format('%s: %s %s', relname, seq_scan, idx_scan), ', ' ORDER BY relname)
                     FROM pg_stat_user_tables s
                    WHERE relname LIKE 'by%' AND (seq_scan > 2 OR idx_scan < CASE WHEN EXISTS (
                          SELECT FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
                           WHERE a.attrelid = s.relid AND a.attname = 'k' AND t.typcategory = 'A') THEN 4 ELSE 12 END)";
    assert_eq!(target.ask(scanned).await, None);
}

/// The batch number `at`: one row, one record.
/// So many rows, each with a number of its own, behind so many batches of the like.
fn numbered(log: &mut Log, behind: i64, rows: i64) -> landfall::sink::Batch {
    let ids = behind * rows..(behind + 1) * rows;
    log.one(ids.map(|id| insert(&shape(), row([id.to_string().as_str(), "x"]))).collect())
}

#[tokio::test]
async fn killed_at_any_point_rows_and_progress_agree() {
    let points =
        [("mid_batch", 2..=2), ("before_commit", 2..=2), ("commit_sent", 2..=3), ("after_commit", 3..=3)];
    // Of few rows the commit goes with them, of many it follows.
    for ((point, committed), rows) in points.into_iter().flat_map(|it| [(it.clone(), 1), (it, 100)]) {
        let target = PostgresTarget::new(&format!("killed_at_{point}_{rows}")).await;
        let mut sink = killed_at(&target, &format!("{point}:3"), &rows.to_string()).await;
        let claim = sink.claim().await.unwrap();
        let found = target.rows().await.len() as i64;
        let batches = found / rows;
        assert!(found % rows == 0 && committed.contains(&batches), "{point}: {found} rows");
        let reached = claim.progress.unwrap().through.sequence;
        assert_eq!(reached, Sequence(1 + found as u64), "{point}");
        let mut log = Log { sequence: reached.0, after: reached, ..Log::new() };
        sink.apply(&numbered(&mut log, batches, rows)).await.unwrap();
    }
}

/// Has a process apply until it dies at a point; gives a sink that holds the target since.
pub(crate) async fn killed_at(target: &PostgresTarget, point: &str, what: &str) -> PostgresSink {
    use std::os::unix::process::ExitStatusExt;
    let child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "only_postgres::child_that_is_killed", "--ignored"])
        .env(landfall::crash::VARIABLE, format!("apply.{point}"))
        .env("SINK_TEST_PORT", target.database.address.port.to_string())
        .env("SINK_TEST_NAME", &target.stream)
        .env("SINK_TEST_WHAT", what)
        .output();
    let child = child.await.unwrap();
    assert_eq!(child.status.signal(), Some(9), "{point}: {}", String::from_utf8_lossy(&child.stdout));
    let mut sink = target.sink();
    loop {
        match sink.claim().await {
            Err(fault) if fault.code() == Code::TargetHeld => {}
            claim => {
                claim.unwrap();
                return sink;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Not a test of its own: the process that others have killed.
#[tokio::test]
#[ignore = "run by those that have it killed"]
async fn child_that_is_killed() {
    let (Ok(port), Ok(name)) = (std::env::var("SINK_TEST_PORT"), std::env::var("SINK_TEST_NAME")) else {
        return;
    };
    let address = crate::server::address(port.parse().unwrap(), &name, crate::server::ROLE);
    let (to, from) = ("eu-west-1".parse().unwrap(), "us-east-1".parse().unwrap());
    let config = landfall::sink::postgres::PostgresSinkConfig::new(address, to, from, name);
    let mut sink = PostgresSink::new(config);
    sink.claim().await.unwrap();
    let Ok(rows) = std::env::var("SINK_TEST_WHAT").unwrap().parse() else {
        return crate::beside::fill(sink).await;
    };
    let mut log = Log::new();
    for behind in 0..8 {
        sink.apply(&numbered(&mut log, behind, rows)).await.unwrap();
    }
}

/// Many inserts go in by COPY, sent behind the statements before it without waiting for their answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_refused_before_many_that_come_is_named() {
    let target = PostgresTarget::new("a_row_that_is_refused_before_many").await;
    target.put(1, "a").await;
    target.run("ALTER TABLE t ADD CHECK (v <> 'bad')").await;
    let mut sink = target.sink();
    sink.claim().await.unwrap();
    let mut log = Log::new();
    let many = (2..=500).map(|id| insert(&shape(), row([id.to_string().as_str(), "b"])));
    let changes = std::iter::once(update(&shape(), None, row(["1", "bad"]))).chain(many).collect();
    let batch = log.one(changes);
    let fault = sink.apply(&batch).await.unwrap_err();
    assert_eq!(fault.code(), Code::RowRejected, "{fault}");
    assert!(fault.message().contains("(id)=(1)"), "{fault}");
    target.run("ALTER TABLE t DROP CONSTRAINT t_v_check").await;
    sink.claim().await.unwrap();
    sink.apply(&batch).await.unwrap();
    assert_eq!(target.rows().await.len(), 500);
}

#[tokio::test]
async fn a_table_that_was_mended_meanwhile_takes_what_it_refused() {
    let target = PostgresTarget::new("a_table_that_was_mended_meanwhile_takes_what_it_refused").await;
    target
        .run(
            "CREATE DOMAIN short AS text CHECK (length(value) < 4);
             CREATE TABLE named (id int8 PRIMARY KEY, v short);
             CREATE TABLE source (id int8 PRIMARY KEY, v text)",
        )
        .await;
    let source = shape_of(&target, "source").await;
    let shape = Arc::new(Shape::new("public", "named", source.identity, source.columns.to_vec()));
    let mut log = Log::new();
    let mut sink = target.parking_sink();
    sink.claim().await.unwrap();
    let mut batch = log.one(vec![insert(&shape, row(["1", "abc"]))]);
    batch.shapes = vec![shape.clone()];
    sink.apply(&batch).await.unwrap();
    let applied = sink.apply(&log.one(vec![insert(&shape, row(["2", "long"]))])).await.unwrap();
    assert_eq!(applied.refused.iter().map(Fault::code).collect::<Vec<_>>(), [Code::RowRejected]);
    target.run("ALTER TABLE named ALTER v TYPE text").await;
    let applied = sink.apply(&log.one(vec![insert(&shape, row(["3", "longer"]))])).await.unwrap();
    assert_eq!((applied.parked, applied.aside.len()), (1, 0));
    target.wish(&target.parked().await, Wish::Retry).await;
    // Somebody else has asked for it, and would be told of a retry where it was thrown away.
    let ids = target.parked().await;
    let others = parked::ask(&target.database.client, &ids, Wish::Discard).await.unwrap();
    assert_eq!(others, ids);
    assert_eq!(sink.attend().await.unwrap().parked, 0);
    assert_eq!(
        target.ask("SELECT string_agg(v, ',' ORDER BY id) FROM named").await.unwrap(),
        "abc,long,longer"
    );
}

#[tokio::test]
async fn what_is_too_large_to_be_parked_halts_and_is_not_kept_again_and_again() {
    let target = PostgresTarget::new("what_is_too_large_to_be_parked_halts").await;
    let mut log = Log::new();
    let mut sink = target.parking_sink();
    sink.claim().await.unwrap();
    target.put(7, "theirs").await;
    let half = PARKED_CHANGES_MAX / 2 + 1;
    let slice = |from: u64| (from..from + half).map(|id| insert(&shape(), row([&id.to_string(), "v"])));
    let mut refused = vec![insert(&shape(), row(["7", "ours"]))];
    refused.extend(slice(100));
    let first = log.slice(refused, true, false);
    let mut first = log.batch(vec![first]);
    first.shapes = vec![shape()];
    let last = log.slice(slice(100 + half).collect(), false, true);
    let last = log.batch(vec![last]);
    assert_eq!(sink.apply(&first).await.unwrap_err().code(), Code::Parking);
    sink.claim().await.unwrap();
    sink.apply(&first).await.unwrap();
    let full = sink.apply(&last).await.unwrap_err();
    assert_eq!(full.code(), Code::ParkedFull, "{full}");
    // Each further look tries whether it can be applied by now.
    for _ in 0..2 {
        assert_eq!(sink.claim().await.unwrap().parked, 0);
        assert_eq!(sink.apply(&first).await.unwrap_err().code(), Code::ParkedFull);
    }
    target.remove(7).await;
    sink.claim().await.unwrap();
    sink.apply(&first).await.unwrap();
    sink.apply(&last).await.unwrap();
    assert_eq!(target.rows().await.len() as u64, 2 * half + 1);
}
