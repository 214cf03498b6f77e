//! What is done to the servers. Everything a server can say inside a transaction is said at least once.

/// One step; the statements are one transaction unless they say otherwise.
pub struct Step {
    /// What it shows.
    pub title: &'static str,
    /// What is done.
    pub sql: &'static str,
    /// A table, and what is copied into it afterwards.
    pub copy: Option<(&'static str, &'static str)>,
}

const fn step(title: &'static str, sql: &'static str) -> Step {
    Step { title, sql, copy: None }
}

/// Before the slot is made.
pub const SETUP: &str = "
create schema shop;
create schema aside;
create type shop.mood as enum ('sad', 'glad');
create type shop.extent as (width int4, label text);
create domain shop.positive as int4 check (value > 0);
create domain aside.short as varchar(8);

create table shop.kinds (
    id int8 primary key, yes bool, small int2, amount numeric(10, 2), ratio float8, price money,
    day date, moment timestamptz, clock time, span interval, raw bytea, doc jsonb, paper xml,
    uid uuid, net inet, mask bit(3), code char(4), note varchar(20), ids int4[], tags text[], range int4range,
    mood shop.mood, moods shop.mood[], extent shop.extent, extents shop.extent[],
    stock shop.positive, stocks shop.positive[], short aside.short
);
create table shop.plain (id int8 primary key, n int4, note text);
create table shop.large (id int8 primary key, n int4, body text);
alter table shop.large alter body set storage external;
create table shop.whole (id int8, note text, body text);
alter table shop.whole alter body set storage external;
alter table shop.whole replica identity full;
create table shop.indexed (id int8, place text not null, slot int4 not null, note text);
create unique index indexed_key on shop.indexed (slot, place);
alter table shop.indexed replica identity using index indexed_key;
create table shop.unnamed (note text);
alter table shop.unnamed replica identity nothing;
create table shop.parent (id int8 generated always as identity primary key, note text);
create table shop.child (id int8 primary key, parent int8 references shop.parent);
create table shop.summed (id int8 primary key, n int4, double int4 generated always as (n * 2) stored, gone int4);
alter table shop.summed drop column gone;
create table shop.split (id int8 primary key, note text) partition by range (id);
create table shop.split_low partition of shop.split for values from (0) to (10);
create table shop.split_high partition of shop.split for values from (10) to (20);
create table shop.\"Ä \"\"table\"\"\" (\"the id\" int8 primary key, \"naïve\" text);
create table aside.listed (id int8 primary key, secret text, note text);
create table aside.unpublished (id int8 primary key);

create publication whole for tables in schema shop;
create publication narrow for table aside.listed (id, note) where (id < 100);
select pg_replication_origin_create('elsewhere');
";

/// In this order, each committed before the next one begins.
pub const STEPS: &[Step] = &[
    step(
        "an insert with every kind of value, and the types that are not built in",
        "insert into shop.kinds values (
            9223372036854775807, true, -32768, 12345678.90, 0.1, -1234.5,
            '2024-02-29', '2024-02-29 12:34:56.789+05:30', '23:59:59.999999', '1 year 2 mons -3 days 04:05:06.7',
            '\\x00ff10', '{\"b\": [1, null], \"a\": \"\\u00e9\"}', '<a b=\"c\">d</a>',
            '00112233-4455-6677-8899-aabbccddeeff', '10.1.2.3/8', b'101', 'ab', 'twenty',
            '{1,null,3}', '{\"a b\",\"c\\\\\\\"d\",\"\",null}', '[1,5)',
            'glad', '{sad,glad}', '(3,\"a, b\")', array[(1, 'x')::shop.extent, null], 7, '{1,2}', 'short')",
    ),
    step("an insert of NULLs", "insert into shop.kinds (id) values (2)"),
    step(
        "values at the edges",
        "insert into shop.kinds (id, amount, ratio, moment, span, raw, doc, ids, tags, range, note)
         values (3, 'NaN', '-Infinity', 'infinity', '0', '', 'null', '{}', '{{a},{b}}', 'empty', E'\\t\\n\\\\\"é𐍈')",
    ),
    step(
        "inserts of several rows",
        "insert into shop.plain select id, id * 10, 'row ' || id from generate_series(1, 6) id",
    ),
    step("an update that leaves the key alone", "update shop.plain set n = 11 where id = 1"),
    step("an update that changes the key", "update shop.plain set id = 102, n = null where id = 2"),
    step("an update that changes nothing", "update shop.plain set n = n where id = 3"),
    step("a delete", "delete from shop.plain where id = 4"),
    step(
        "an insert that finds its row, and one that does not",
        "insert into shop.plain values (5, 1, 'new'), (7, 1, 'new')
         on conflict (id) do update set n = -1, note = null",
    ),
    step(
        "a merge that updates, deletes and inserts",
        "merge into shop.plain using (values (5, 50), (6, null), (8, 80)) as given (id, n) on plain.id = given.id
         when matched and given.n is null then delete
         when matched then update set n = given.n
         when not matched then insert values (given.id, given.n, 'merged')",
    ),
    step(
        "large values",
        "insert into shop.large select id, id, repeat('large ', 350) from generate_series(1, 3) id",
    ),
    step("an update beside a large value", "update shop.large set n = 100 where id = 1"),
    step("an update of a large value", "update shop.large set body = repeat('larger ', 350) where id = 1"),
    step("an update of the key beside a large value", "update shop.large set id = 4 where id = 2"),
    step("a delete of a large value", "delete from shop.large where id = 3"),
    step(
        "the whole row as its identity",
        "insert into shop.whole values (1, 'one', repeat('whole ', 350)), (2, null, null);
         update shop.whole set note = 'uno' where id = 1;
         update shop.whole set id = 3 where id = 2;
         delete from shop.whole where id = 1",
    ),
    step(
        "an index as identity",
        "insert into shop.indexed values (1, 'here', 1, 'one'), (2, 'here', 2, 'two');
         update shop.indexed set note = null where slot = 1;
         update shop.indexed set place = 'there' where slot = 1;
         delete from shop.indexed where slot = 2",
    ),
    step("a table without identity", "insert into shop.unnamed values ('unnamed'), (null)"),
    step(
        "several tables truncated, with their sequences and what hangs on them",
        "insert into shop.parent (note) values ('parent');
         insert into shop.child values (1, 1);
         truncate shop.parent, shop.large restart identity cascade",
    ),
    step("one table truncated, and one that is not published", "truncate shop.whole, aside.unpublished"),
    step(
        "messages inside a transaction and outside",
        "select pg_logical_emit_message(true, 'note', 'first');
         insert into shop.unnamed values ('between');
         select pg_logical_emit_message(true, 'note', '');
         select pg_logical_emit_message(false, 'note', 'comes before its transaction')",
    ),
    step("a message alone in its transaction", "select pg_logical_emit_message(true, 'note', 'alone')"),
    step(
        "a transaction that came from elsewhere",
        "select pg_replication_origin_session_setup('elsewhere');
         begin;
         select pg_replication_origin_xact_setup('A/BCDEF012', '2024-02-29 12:00:00Z');
         insert into shop.plain values (20, 1, 'from elsewhere');
         update shop.plain set n = 2 where id = 20;
         commit;
         select pg_replication_origin_session_reset()",
    ),
    Step {
        title: "a copy of several rows",
        sql: "",
        copy: Some(("shop.plain", "30\t1\tcopied\n31\t\\N\t\\N\n32\t-3\ta\\tb\n")),
    },
    step(
        "what is rolled back to a savepoint does not come",
        "begin;
         insert into shop.plain values (40, 1, 'stays');
         savepoint s;
         insert into shop.plain values (41, 1, 'goes');
         rollback to s;
         insert into shop.plain values (42, 1, 'stays');
         commit",
    ),
    step("what is rolled back does not come", "begin; insert into shop.plain values (50, 1, 'goes'); rollback"),
    step("a generated column and a dropped one do not come", "insert into shop.summed (id, n) values (1, 21)"),
    step(
        "partitions come as themselves",
        "insert into shop.split values (1, 'low'), (11, 'high');
         update shop.split set id = 12 where id = 1",
    ),
    step(
        "names that need quotes",
        "insert into shop.\"Ä \"\"table\"\"\" values (1, 'yes');
         update shop.\"Ä \"\"table\"\"\" set \"the id\" = 2",
    ),
    step(
        "a list of columns, and a filter that rows enter and leave",
        "insert into aside.listed values (1, 'hidden', 'shown'), (100, 'hidden', 'filtered');
         update aside.listed set id = 101 where id = 1;
         update aside.listed set id = 2 where id = 100;
         update aside.listed set note = 'again' where id = 2",
    ),
    step("a table that is not published", "insert into aside.unpublished values (1)"),
    step(
        "a table whose columns change, within one transaction",
        "insert into shop.plain values (60, 1, 'three columns');
         alter table shop.plain add column more numeric(6, 3) default 1.5;
         insert into shop.plain values (61, 1, 'four columns', 2);
         alter table shop.plain rename column note to remark;
         alter table shop.plain alter column n type int8;
         insert into shop.plain values (62, 4294967296, 'renamed and wider', null);
         alter table shop.plain drop column more;
         alter table shop.plain replica identity full;
         update shop.plain set remark = 'whole' where id = 62",
    ),
    step(
        "a table and a type that are renamed",
        "alter type shop.mood rename to humour;
         alter table shop.kinds rename to sorts;
         insert into shop.sorts (id, mood) values (4, 'sad')",
    ),
];
