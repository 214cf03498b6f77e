//! What a change costs in our own hands, step by step: decoding the server's message, writing the record,
//! sealing it; opening it, reading it, planning it. A row of `orders`, as the large benchmark has it.
//!
//! `cargo bench --bench codec`; figures are for one thread and one change.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use divan::{Bencher, black_box, counter::ItemsCount};
use landfall::{
    change::{Cell, Change, Column, Identity, Row, Shape},
    envelope::{Encoded, Encoder, Flags, Format, Header, Kind, decode},
    lsn::Lsn,
    plan::{JoiningTables, Locator, Tables, plan},
    position::{Incarnation, Position, PostgresPosition, Sequence, WriterEpoch},
    postgres::pgoutput,
    stamp::Micros,
};

fn main() {
    divan::main();
}

const COLUMNS: &[(&str, &str)] = &[
    ("id", "int8"),
    ("customer", "int4"),
    ("amount", "int8"),
    ("status", "text"),
    ("note", "text"),
    ("at", "timestamptz"),
];

fn shape() -> Arc<Shape> {
    let column = |(at, (name, type_name)): (usize, &(&str, &str))| Column {
        name: (*name).into(),
        type_schema: "pg_catalog".into(),
        type_name: (*type_name).into(),
        typmod: -1,
        key: at == 0,
    };
    let columns: Vec<Column> = COLUMNS.iter().enumerate().map(column).collect();
    Arc::new(Shape::new("public", "orders", Identity::Default, columns))
}

fn texts(id: u64) -> [String; 6] {
    let customer = id * 7919 % 100_000;
    [
        id.to_string(),
        customer.to_string(),
        (id * 31 % 1_000_000).to_string(),
        "packed".to_owned(),
        format!("order {id} of customer {customer}, packed by hand"),
        "2026-11-21 09:30:15.123456+00".to_owned(),
    ]
}

fn insert(shape: &Arc<Shape>, id: u64) -> Change {
    let cells = texts(id).map(|text| Cell::Value(Bytes::from(text)));
    Change::Insert { shape: shape.clone(), new: Row(cells.to_vec().into()) }
}

fn position() -> Position {
    let (commit, end) = (Lsn(0x16_b374_d848), Lsn(0x16_b374_d878));
    Position::Postgres(PostgresPosition { commit, end, xid: 7_654_321, time: Micros(1_795_253_415_123_456) })
}

fn encoded() -> Encoded {
    let mut encoder = Encoder::new(&"us-east-1".parse().unwrap(), "shop", Format::Debezium);
    encoder.begin(&position(), Micros(1_795_253_415_123_456));
    let mut out = Encoded::default();
    encoder.change(&insert(&shape(), 1_234_567), 0, Some(&position()), &mut out).unwrap();
    out
}

const HEADER: Header = Header {
    kind: Kind::Change,
    flags: Flags(3),
    epoch: WriterEpoch(7),
    incarnation: Incarnation(0x0102_0304_0506_0708),
    sequence: Sequence(123_456_789),
};

/// The server's `Insert` message, taken apart.
#[divan::bench]
fn pgoutput_insert(bencher: Bencher<'_, '_>) {
    let mut message = BytesMut::new();
    message.put_u8(b'I');
    message.put_u32(16_384);
    message.put_u8(b'N');
    message.put_u16(COLUMNS.len() as u16);
    for text in texts(1_234_567) {
        message.put_u8(b't');
        message.put_u32(text.len() as u32);
        message.put_slice(text.as_bytes());
    }
    let message = message.freeze();
    bencher.counter(ItemsCount::new(1_u32)).bench(|| pgoutput::decode(black_box(message.clone())).unwrap());
}

/// The record of a change that is a transaction of its own.
#[divan::bench]
fn encode_insert(bencher: Bencher<'_, '_>) {
    let change = insert(&shape(), 1_234_567);
    let mut encoder = Encoder::new(&"us-east-1".parse().unwrap(), "shop", Format::Debezium);
    let mut out = Encoded::default();
    bencher.counter(ItemsCount::new(1_u32)).bench_local(|| {
        encoder.begin(&position(), Micros(1_795_253_415_123_456));
        encoder.change(black_box(&change), 0, Some(&position()), &mut out).unwrap();
    });
}

#[divan::bench]
fn seal(bencher: Bencher<'_, '_>) {
    let Encoded { key, value } = encoded();
    bencher.counter(ItemsCount::new(1_u32)).bench(|| HEADER.seal(black_box(&key), black_box(&value)));
}

#[divan::bench]
fn open(bencher: Bencher<'_, '_>) {
    let Encoded { key, value } = encoded();
    let sealed = HEADER.seal(&key, &value);
    bencher
        .counter(ItemsCount::new(1_u32))
        .bench(|| Header::open(black_box(Some(&sealed[..])), black_box(&key), black_box(&value)).unwrap());
}

/// A record's value, read.
#[divan::bench]
fn decode_insert(bencher: Bencher<'_, '_>) {
    let value = Bytes::from(encoded().value);
    let shapes = decode::Shapes::from_iter([(shape().fingerprint(), shape())]);
    bencher
        .counter(ItemsCount::new(1_u32))
        .bench(|| decode::change(black_box(&value), black_box(&shapes)).unwrap());
}

/// A batch of inserts and a batch of updates, made into statements' worth.
#[divan::bench(args = ["insert", "update"])]
fn plan_2000(bencher: Bencher<'_, '_>, operation: &str) {
    let shape = shape();
    let changes: Vec<Change> = (0..2000)
        .map(|id| match insert(&shape, id) {
            Change::Insert { shape, new } if operation == "update" => {
                Change::Update { shape, old: None, new }
            }
            insert => insert,
        })
        .collect();
    let (locators, joining) =
        ([(shape.fingerprint(), Locator::Key([0].into()))].into(), JoiningTables::new());
    let tables = Tables { locators: &locators, joining: &joining };
    bencher
        .counter(ItemsCount::new(changes.len()))
        .bench(|| plan(black_box(&changes), tables).unwrap().len());
}
