//! Proves that what was committed in one region is what the other shows: every kind of statement, every
//! kind of value, whole transactions in order, in both directions at once without an echo.

use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::{
    Daemon, Ledger, TwoRegions, eventually,
    ledger::{self, Plan},
    said,
};

const LANDFALL: &str = env!("CARGO_BIN_EXE_landfall");
const PATIENCE: Duration = Duration::from_secs(180);

/// Both regions hold the tables of `schema`, and a daemon carries them from the first to the second.
async fn one_way(us_major: u16, eu_major: u16, schema: &str) -> (TwoRegions, Daemon, Daemon) {
    let regions = TwoRegions::start(us_major, eu_major, 1).await.unwrap();
    regions.execute_both(schema).await.unwrap();
    let us = regions.us.start_daemon(LANDFALL, &regions.us_sends()).await.unwrap();
    let eu = regions.eu.start_daemon(LANDFALL, &regions.eu_receives()).await.unwrap();
    regions.us.begun(PATIENCE).await.unwrap();
    (regions, us, eu)
}

const STATEMENTS: &str = "
    create table parent (id int8 primary key, name text unique, doc text);
    create table child (id int8 primary key generated always as identity,
        parent int8 not null references parent on delete cascade on update cascade, n int4);
    create table plain (a text, b text);
    alter table plain replica identity full;
    create table by_index (code text not null, region text not null, doc text, n int4);
    create unique index by_index_key on by_index (region, code);
    alter table by_index replica identity using index by_index_key;
    create table parts (id int8, at date, note text, primary key (id, at)) partition by range (at);
    create table parts_old partition of parts for values from ('2000-01-01') to ('2026-01-01');
    create table parts_new partition of parts for values from ('2026-01-01') to ('2100-01-01');
    create table keyless (n int4)";

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_statement_arrives() {
    for (us_major, eu_major) in [(15, 18), (18, 15)] {
        println!("PostgreSQL {us_major} to {eu_major}");
        let (regions, us, eu) = one_way(us_major, eu_major, STATEMENTS).await;
        let run = async |sql: &str| regions.us.execute(sql).await.unwrap();
        run("insert into parent select g, 'name ' || g, repeat(md5(g::text), 40000) from generate_series(1, 5) g").await;
        run("insert into child (parent, n) select 1 + g % 5, g from generate_series(1, 1000) g").await;
        // A large value the update does not touch; a key that moves, its children with it.
        run("update parent set name = 'renamed' where id = 1; update parent set id = 100 where id = 2").await;
        // A unique value swapped through a third, in one transaction.
        run("begin; update parent set name = 'x' where id = 3; update parent set name = 'name 3' where id = 4;
             update parent set name = 'name 4' where id = 3; commit").await;
        run("insert into plain select 'same', 'row' from generate_series(1, 3); delete from plain where ctid = '(0,1)';
             update plain set b = 'other' where ctid = '(0,2)'; insert into plain values (null, 'x'), ('', null)").await;
        run("insert into by_index select g::text, 'eu', repeat(md5(g::text), 4000), 0 from generate_series(1, 10) g;
             update by_index set n = n + 1; update by_index set code = 'moved' where code = '7';
             delete from by_index where code = '3'").await;
        run("insert into parts select g, date '2025-12-28' + g, 'p' from generate_series(1, 8) g;
             update parts set at = '2026-06-01' where id = 1; delete from parts where id = 8")
        .await;
        run("begin; insert into parent values (200, 'kept', ''); savepoint s; insert into parent values (201, 'undone', '');
             rollback to s; insert into parent values (202, 'kept too', null); commit").await;
        run("begin; insert into parent values (300, 'never', ''); rollback").await;
        run("insert into child (parent, n) values (100, 1); delete from parent where id = 100").await;
        run("copy parent (id, name) from program 'seq 1000 1100 | sed ''s/.*/&\tcopied &/'''").await;
        regions.equal(PATIENCE, &[&eu]).await.unwrap();
        run("truncate parent, child restart identity; insert into parent values (1, 'anew', null)").await;
        run("truncate plain; truncate parts").await;
        // Messages of somebody else's under names that are ours: what is beside them is carried, and they are nothing.
        for prefix in ["landfall.watermark", "landfall.heartbeat"] {
            run(&format!("select pg_logical_emit_message(true, '{prefix}', 'x')")).await;
            run(&format!(
                "begin; update parent set name = '{prefix}'; select pg_logical_emit_message(true, '{prefix}', '{{}}'); commit;
                 begin; insert into plain values ('beside', '{prefix}'); select pg_logical_emit_message(true, '{prefix}', 'x');
                 insert into plain values ('behind', '{prefix}'); commit"
            ))
            .await;
        }
        regions.equal(PATIENCE, &[&eu]).await.unwrap();
        // A table that could not be carried is left alone, and its application works on.
        run("insert into keyless values (1); update keyless set n = 2; delete from keyless").await;
        eventually(PATIENCE, "it is named", async || {
            let (_, page) = us.http_get("/status").await?;
            Ok(page.contains("keyless") && page.contains("replica identity"))
        })
        .await
        .unwrap();
    }
}

/// Partitioned tables by what tells their rows apart: all of it, an index, a primary key, and all of it where the
/// partition has a key of its own. As they are made, the partitions of three of them have another replica identity.
const PARTITIONED: &str = "
    create table log (at date not null, n int8, note text) partition by range (at);
    create table log_old partition of log for values from ('2000-01-01') to ('2026-01-01');
    create table log_new partition of log for values from ('2026-01-01') to ('2100-01-01');
    alter table log replica identity full;
    create table named (at date not null, n int8 not null, note text) partition by range (at);
    create table named_all partition of named default partition by range (n);
    create table named_all_of_all partition of named_all default;
    create unique index named_key on named (n, at);
    alter table named replica identity using index named_key;
    create table keyed (at date, n int8, note text, primary key (n, at)) partition by range (at);
    create table keyed_all partition of keyed default;
    create table half (at date not null, n int8, note text) partition by range (at);
    create table half_all (n int8 primary key, at date not null, note text);
    alter table half attach partition half_all default;
    alter table half replica identity full";

/// What `landfall check` says of this kind would mend it, run as it stands; how much there was.
async fn mend(regions: &TwoRegions, us: &Daemon, kind: &str) -> usize {
    let output = us.command(&["check", "--json"]).await.unwrap();
    let found: Vec<Value> =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
    let mends: Vec<&str> =
        found.iter().filter(|it| it["id"] == kind).map(|it| it["mend"].as_str().unwrap()).collect();
    for sql in &mends {
        regions.us.execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:#}"));
    }
    mends.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partitioned_table_is_carried_once_its_partitions_log_what_it_says_and_breaks_no_application() {
    for (us_major, eu_major) in [(15, 18), (18, 15)] {
        println!("PostgreSQL {us_major} to {eu_major}");
        let (regions, us, eu) = one_way(us_major, eu_major, PARTITIONED).await;
        // What an application does, across partitions too.
        let work = async |table: &str| {
            let sql = format!(
                "insert into {table} select date '2025-12-28' + g::int, g, 'as it was' from generate_series(1, 8) g;
                 update {table} set note = 'changed' where n in (2, 5); update {table} set note = null where n = 3;
                 update {table} set at = '2026-06-01' where n = 1; delete from {table} where n in (4, 8)"
            );
            regions.us.execute(&sql).await.unwrap_or_else(|error| panic!("{table}: {error:#}"));
        };
        let tables = ["log", "named", "keyed", "half"];
        for table in tables {
            work(table).await;
        }
        eventually(PATIENCE, "what is left out is named, with the partition", async || {
            let (_, page) = us.http_get("/status").await?;
            let named = ["public.log_new (and 1 more)", "public.named_all_of_all", "public.half_all"];
            Ok(named.iter().all(|name| page.contains(&format!("partition {name}")))
                && !page.contains("keyed"))
        })
        .await
        .unwrap();

        // What is shown mends it, a partition at a time.
        regions.us.execute("truncate log, named, half").await.unwrap();
        let mut mended = 0;
        while let more @ 1.. = mend(&regions, &us, "partition-differs").await {
            mended += more;
        }
        assert_eq!(mended, 4);
        assert_eq!(mend(&regions, &us, "publication-tables").await, 1);
        for table in tables.into_iter().filter(|table| *table != "keyed") {
            work(table).await;
        }
        regions.equal(PATIENCE, &[&eu]).await.unwrap();

        // One that is made later has no replica identity but its primary key, and that it has from its table.
        let later =
            "create table TABLE_later partition of TABLE for values from ('2100-01-01') to ('2200-01-01')";
        regions.execute_both(&later.replace("TABLE", "log")).await.unwrap();
        regions.execute_both(&later.replace("TABLE", "keyed")).await.unwrap();
        let insert = "insert into TABLE values ('2150-01-01', 1, 'later'), ('2150-01-02', 2, 'later')";
        let update = "update TABLE set note = 'changed' where at > '2100-01-01' and n = 1; delete from TABLE where at = '2150-01-02'";
        for statement in [insert, update] {
            regions.us.execute(&statement.replace("TABLE", "keyed")).await.unwrap();
        }
        regions.us.execute(&insert.replace("TABLE", "log")).await.unwrap();
        let refused = regions.us.execute(&update.replace("TABLE", "log")).await.unwrap_err();
        assert!(format!("{refused:#}").contains("does not have a replica identity"), "{refused:#}");
        eventually(PATIENCE, "a partition without a replica identity is warned of", async || {
            let (_, page) = us.http_get("/status").await?;
            Ok(page.contains("partition public.log_later has not the replica identity of its table"))
        })
        .await
        .unwrap();
        assert_eq!(mend(&regions, &us, "publication-breaks-updates").await, 1);
        regions.us.execute(&update.replace("TABLE", "log")).await.unwrap();
        regions.equal(PATIENCE, &[&eu]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_truncated_by_itself_keeps_its_rows_there_until_they_are_repaired() {
    let schema = "
        create table parts (id int8, at date, note text, primary key (id, at)) partition by range (at);
        create table parts_old partition of parts for values from ('2000-01-01') to ('2026-01-01');
        create table parts_new partition of parts for values from ('2026-01-01') to ('2100-01-01')";
    let (regions, us, eu) = one_way(15, 18, schema).await;
    let insert = "insert into parts select g, date '2020-01-01', 'old' from generate_series(1, 300) g;
         insert into parts select g, date '2030-01-01', 'new' from generate_series(1, 300) g";
    regions.us.execute(insert).await.unwrap();
    regions.equal(PATIENCE, &[&eu]).await.unwrap();
    let output = us.command(&["check", "--json"]).await.unwrap();
    assert!(said(&output).contains("partition-emptied"), "{}", said(&output));

    regions
        .us
        .execute("truncate parts_old; insert into parts values (0, '2030-01-01', 'behind it')")
        .await
        .unwrap();
    let count = async |rows: &str| {
        let sql = format!("select count(*)::text from parts where {rows}");
        regions.eu.postgres.query_text("shop", &sql).await.unwrap()
    };
    eventually(PATIENCE, "what was written behind it arrives", async || {
        Ok(count("note = 'behind it'").await.as_deref() == Some("1"))
    })
    .await
    .unwrap();
    assert_eq!(count("note = 'old'").await.as_deref(), Some("300"), "the server says nothing of it");

    regions.us.execute("grant select on all tables in schema public to landfall").await.unwrap();
    let output = eu.command(&["verify"]).await.unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let output = eu.command(&["repair", "--execute"]).await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    regions.equal(PATIENCE, &[&eu]).await.unwrap();

    // All of the table at once is another matter.
    regions.us.execute("truncate parts; insert into parts values (1, '2020-01-01', 'anew')").await.unwrap();
    regions.equal(PATIENCE, &[&eu]).await.unwrap();
}

const VALUES: &str = "
    create type mood as enum ('sad', 'it''s \"ok\"');
    create schema other; create type other.mood as enum ('other');
    create type pair as (a int4, b text);
    create domain short as varchar(5) check (value <> 'never');
    create table v (
        id int8 primary key, small int2, whole int4, yes bool, real4 float4, real8 float8, exact numeric, money2 numeric(12,2),
        word text, chars char(6), limited varchar(9), bytes bytea, day date, clock time, zoned timetz, stamp timestamp,
        stampz timestamptz, span interval, uid uuid, doc json, docb jsonb, ints int4[], nested int4[][], words text[],
        mood1 mood, mood2 other.mood, couple pair, pairs pair[], named short, range4 int4range, ranges tstzmultirange,
        net inet, mac macaddr, bits bit varying(9), place point, area box, areas box[], search tsvector, big int8,
        doubled int8 generated always as (whole::int8 * 2) stored)";

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_value_arrives_as_it_left() {
    let (regions, _us, eu) = one_way(15, 18, VALUES).await;
    let columns = "id, small, whole, yes, real4, real8, exact, money2, word, chars, limited, bytes, day, clock, zoned,
        stamp, stampz, span, uid, doc, docb, ints, nested, words, mood1, mood2, couple, pairs, named, range4, ranges, net,
        mac, bits, place, area, areas, search, big";
    let rows = [
        "1, -32768, -2147483648, true, 'NaN', '-Infinity', 'NaN', -0.01, '', '', '', '', '0044-03-15 BC', '24:00', '24:00+14',
         'infinity', '-infinity', '-178000000 years', '00000000-0000-0000-0000-000000000000', '{\"a\": 1, \"a\": 2 }', '\"\\u00e9\"',
         '{}', '{{1,2},{3,NULL}}', '{NULL,\"NULL\",\"\",\"a\\\"b\\\\c\",\"{x}\"}', 'it''s \"ok\"', 'other', '(1,\"a,\\\"b\\\"\")',
         array[row(1,null)::pair, row(null,'x y')::pair], 'short', '[1,5)', '{[2020-01-01,2021-01-01)}', '::1/128',
         '08:00:2b:01:02:03', '101', '(1.5,-2)', '(1,1),(0,0)', '{(1,1),(0,0);(3,3),(2,2)}', '''a b'':1A c', 9223372036854775807",
        "2, 32767, 2147483647, false, '1e-40', '4.9e-324', 10::numeric ^ 1000 / 7, 9999999999.99, E'line\\nbreak\\ttab\\\\ \\u0001 \"q\"',
         'ab', 'ä€😀', decode(repeat('00ff', 5000), 'hex'), '5874897-12-31', '00:00:00.000001', '12:00-15:59',
         '4713-01-01 00:00:00 BC', '294276-12-31 23:59:59.999999+00', '-1 mons +1 day -00:00:00.000001', gen_random_uuid(), '[]', 'null',
         '[2:3]={7,8}', '{}', '{a,b}', 'sad', null, null, '{}', '', 'empty', '{}', '10.0.0.0/8', 'ff:ff:ff:ff:ff:ff', '',
         '(NaN,Infinity)', null, null, '', -9223372036854775808",
    ];
    for row in rows {
        regions.us.execute(&format!("insert into v ({columns}) values ({row})")).await.unwrap();
    }
    regions.us.execute("insert into v (id) values (3)").await.unwrap();
    regions.equal(PATIENCE, &[&eu]).await.unwrap();
    regions.us.execute("update v set whole = coalesce(whole, 0) / 2, word = coalesce(word, '') || 'x'; delete from v where id = 2").await.unwrap();
    regions.equal(PATIENCE, &[&eu]).await.unwrap();
    // Twenty megabytes in one value, through a topic that takes one megabyte a record.
    regions.us.execute("insert into v (id, word) select 4, string_agg(md5(g::text), '\"') from generate_series(1, 640000) g").await.unwrap();
    regions.us.execute("update v set small = 7 where id = 4").await.unwrap();
    regions.equal(PATIENCE, &[&eu]).await.unwrap();
    let size = regions
        .eu
        .postgres
        .query_text("shop", "select (length(word) / 1000000)::text from v where id = 4")
        .await
        .unwrap();
    assert_eq!(size.as_deref(), Some("21"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_is_seen_whole_or_not_at_all() {
    let regions = TwoRegions::start(15, 15, 1).await.unwrap();
    for region in [&regions.us, &regions.eu] {
        ledger::create_tables(&region.connect().await.unwrap()).await.unwrap();
    }
    let sends = regions.us.config().source(&["public.*"]).packed().to_toml();
    let _us = regions.us.start_daemon(LANDFALL, &sends).await.unwrap();
    let eu = regions.eu.start_daemon(LANDFALL, &regions.eu_receives()).await.unwrap();
    regions.us.begun(PATIENCE).await.unwrap();
    let seed = rand::random();
    println!("seed {seed}");
    let plan = Plan { writers: 4, accounts: 20, rate: None, seed };
    ledger::open_accounts(&regions.us.connect().await.unwrap(), &plan).await.unwrap();
    regions.equal(PATIENCE, &[&eu]).await.unwrap();
    let watch = ledger::watch_totals(&regions.eu.url());
    let load = Ledger::start(&regions.us.url(), &plan);
    tokio::time::sleep(Duration::from_secs(8)).await;
    eventually(PATIENCE, "enough was written and seen", async || {
        let seen = watch.report();
        Ok(load.acked() > 100 && seen.snapshots > 20 && seen.moves > 5)
    })
    .await
    .unwrap();
    let record = load.stop().await.unwrap();
    regions.equal(PATIENCE, &[&eu]).await.unwrap();
    let watched = watch.stop();
    assert!(watched.torn == 0 && watched.snapshots > 20 && watched.moves > 5, "{watched:?}");
    let (us, target) = (regions.us.connect().await.unwrap(), regions.eu.connect().await.unwrap());
    let report = record.compare(&us, &target).await.unwrap();
    assert!(report.is_clean() && report.acked > 100, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_regions_linked_both_ways_do_not_echo() {
    let regions = TwoRegions::start_both(15, 18).await.unwrap();
    regions
        .execute_both("create table ours (id int8 primary key); create table theirs (id int8 primary key)")
        .await
        .unwrap();
    // Both publish both tables: only the origin tells what was written here.
    let config = |us: bool| {
        let (here, there) = if us { (&regions.us, &regions.eu) } else { (&regions.eu, &regions.us) };
        let config = here.config().source(&["public.*"]).link(there);
        // Each way with records of its own kind.
        if us { config.to_toml() } else { config.packed().to_toml() }
    };
    let us = regions.us.start_daemon(LANDFALL, &config(true)).await.unwrap();
    let eu = regions.eu.start_daemon(LANDFALL, &config(false)).await.unwrap();
    for region in [&regions.us, &regions.eu] {
        region.begun(PATIENCE).await.unwrap();
    }
    for batch in 0..50 {
        let insert =
            |table: &str| format!("insert into {table} select {batch} * 10 + g from generate_series(0, 9) g");
        regions.us.execute(&insert("ours")).await.unwrap();
        regions.eu.execute(&insert("theirs")).await.unwrap();
    }
    regions.equal(PATIENCE, &[&eu]).await.unwrap();
    let ends = async || {
        let us = regions.us.kafka.end_offset("landfall.us-east-1.main").await.unwrap();
        us + regions.eu.kafka.end_offset("landfall.eu-west-1.main").await.unwrap()
    };
    let (before, rests) = (ends().await, Instant::now());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let idle = ends().await - before;
    // Asking takes its time on a busy machine, and it rests meanwhile.
    let rest = rests.elapsed().as_secs_f64();
    println!("{idle} records in {rest:.1} s of rest, both topics");
    // A heartbeat a second and up to five idle records, on each side.
    assert!(idle as f64 <= 2.0 * rest * 6.0 + 4.0, "{idle} records in {rest:.1} s of rest");
    for (daemon, table) in [(&us, "ours"), (&eu, "theirs")] {
        let metric = format!("replication_captured_changes_total{{table=\"public.{table}\"}}");
        assert_eq!(daemon.metric(&metric).await.unwrap(), Some(500.0));
        // One machine, one clock: what comes back over both links says so.
        let mut offset = None;
        eventually(PATIENCE, "the clocks are told to agree", async || {
            offset = daemon.metric("replication_clock_offset_seconds").await?;
            Ok(offset.is_some_and(|offset| offset.abs() < 0.5))
        })
        .await
        .unwrap_or_else(|error| panic!("{error}; {offset:?}"));
        let all = daemon.metric("replication_captured_changes_total").await.unwrap();
        assert_eq!(all, Some(500.0), "nothing that came from the other side went back");
    }
}
