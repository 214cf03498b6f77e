//! What the fuzzers begin with (fuzz/seeds): messages as real servers sent them, records as the encoder writes
//! them. Small, and one of each form, as a fuzzer finds the rest.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use landfall::{
    change::{Cell, Change, Column, Identity, Row, Shape},
    envelope::{
        Encoded, Encoder, Flags, Format, HEADER_LEN, Header, Kind, Packer,
        body::{
            Abort, Anchor, Barrier, Beat, Commit, Echo, Genesis, HeartbeatBody, Idle, Schema, Server,
            to_value,
        },
    },
    lsn::Lsn,
    position::{Incarnation, Position, PostgresPosition, Sequence, WriterEpoch},
    postgres::pgoutput::{self, Message, Old},
    stamp::Micros,
};

/// A longer message is no better a beginning.
const MESSAGE_BYTES_MAX: usize = 400;

/// Content by file name.
pub type Seeds = BTreeMap<String, Vec<u8>>;

/// The first of each form among the messages.
pub fn pgoutput(messages: &[Bytes]) -> Seeds {
    let mut seeds = Seeds::new();
    for message in messages.iter().filter(|message| message.len() <= MESSAGE_BYTES_MAX) {
        let form = form(&pgoutput::decode(message.clone()).unwrap());
        seeds.entry(form).or_insert_with(|| message.to_vec());
    }
    seeds
}

fn form(message: &Message) -> String {
    match message {
        Message::Begin { .. } => "begin".into(),
        Message::Commit { .. } => "commit".into(),
        Message::Logical { transactional, .. } => format!("logical-{transactional}"),
        Message::Relation(relation) => format!("relation-{:?}", relation.identity).to_lowercase(),
        Message::Type(name) if name.schema.is_empty() => "type-domain".into(),
        Message::Type(_) => "type".into(),
        Message::Origin { .. } => "origin".into(),
        Message::Insert { new, .. } => format!("insert-{}", cells(new)),
        Message::Update { old: None, new, .. } => format!("update-{}", cells(new)),
        Message::Update { old: Some(before), new, .. } => format!("update-{}-{}", old(before), cells(new)),
        Message::Delete { old: before, .. } => format!("delete-{}", old(before)),
        Message::Truncate { relations, .. } => format!("truncate-{}", relations.len()),
    }
}

fn old(old: &Old) -> String {
    match old {
        Old::Key(row) => format!("key-{}", cells(row)),
        Old::Full(row) => format!("full-{}", cells(row)),
    }
}

fn cells(Row(cells): &Row) -> String {
    let has = |what: fn(&Cell) -> bool, letter| if cells.iter().any(what) { letter } else { "" };
    let value = has(|cell| matches!(cell, Cell::Value(_)), "v");
    let null = has(|cell| *cell == Cell::Null, "n");
    let unchanged = has(|cell| *cell == Cell::Unchanged, "u");
    [value, null, unchanged].concat()
}

/// A record of each kind, the header before the value.
pub fn envelope() -> Seeds {
    let mut seeds = Seeds::new();
    let mut sequence = Sequence(0);
    let mut add = |name: &str, kind, flags, value: Vec<u8>| {
        sequence = sequence.next();
        let header = Header {
            kind,
            flags,
            epoch: WriterEpoch(2),
            incarnation: Incarnation(0x9f2c_41d0_77ab_e613),
            sequence,
        };
        seeds.insert(name.to_owned(), [&header.seal(b"", &value)[..], &value].concat());
    };
    let server = Server { system: "7572130494562828901".into(), timeline: 1 };
    let genesis = Genesis {
        region: "us-east-1".into(),
        stream: "main".into(),
        server: server.clone(),
        database: "shop".into(),
        consistent: position(0x100),
        scope: vec!["public.t".into()],
        time: TIME,
    };
    add("genesis", Kind::Genesis, Flags::NONE, to_value(&genesis));
    let anchor = Anchor { after: position(0x100), next: Sequence(52_001) };
    for (name, anchor) in [("barrier", None), ("barrier-anchor", Some(anchor))] {
        let barrier = Barrier { server: server.clone(), time: TIME, anchor };
        add(name, Kind::Barrier, Flags::NONE, to_value(&barrier));
    }
    let schema = Schema { fingerprint: shape().fingerprint().to_string(), shape: shape().as_ref().clone() };
    add("schema", Kind::Schema, Flags::NONE, to_value(&schema));
    for (name, change) in changes() {
        let kind = if let Change::Truncate { .. } = change { Kind::Truncate } else { Kind::Change };
        add(name, kind, Flags::FIRST.with(Flags::LAST), encoded(&change, Format::Debezium));
    }
    add("commit", Kind::Commit, Flags::LAST, to_value(&Commit { position: position(0x130) }));
    add("abort", Kind::Abort, Flags::LAST, to_value(&Abort { position: position(0x100) }));
    add("idle", Kind::Idle, Flags::NONE, to_value(&Idle { position: position(0x200) }));
    let echo = Echo { region: "eu-west-1".into(), sent: TIME, arrived: TIME };
    let beat = Beat { sent: TIME, echo: vec![echo] };
    let heartbeat = HeartbeatBody { position: position(0x230), beat };
    add("heartbeat", Kind::Heartbeat, Flags::NONE, to_value(&heartbeat));
    for (name, change) in
        changes().into_iter().filter(|(_, change)| !matches!(change, Change::Truncate { .. }))
    {
        let name = format!("{name}-packed");
        add(&name, Kind::Change, Flags::FIRST.with(Flags::LAST), encoded(&change, Format::Packed));
    }
    seeds.insert("pack".to_owned(), pack());
    seeds
}

/// Several records in one. The fuzz target finds where the header ends by how many there are.
fn pack() -> Vec<u8> {
    let mut packer = Packer::new(4096);
    for (at, (_, change)) in changes().iter().enumerate() {
        let header = Header {
            kind: if let Change::Truncate { .. } = change { Kind::Truncate } else { Kind::Change },
            flags: Flags::FIRST.with(Flags::LAST),
            epoch: WriterEpoch(2),
            incarnation: Incarnation(0x9f2c_41d0_77ab_e613),
            sequence: Sequence(100 + at as u64),
        };
        assert!(packer.take(&header, b"", &encoded(change, Format::Packed)));
    }
    let packed = packer.packed().unwrap();
    let (head, marks) = packed.header.split_at(HEADER_LEN);
    let count = u8::try_from(packed.records).unwrap();
    [head, &[count], marks, packed.value].concat()
}

const TIME: Micros = Micros(1_767_225_600_123_456);

fn position(end: u64) -> Position {
    Position::Postgres(PostgresPosition { commit: Lsn(0x100), end: Lsn(end), xid: 742, time: TIME })
}

/// The fuzz target knows this table.
fn shape() -> Arc<Shape> {
    let column = |name: &str, type_name: &str, key| Column {
        name: name.into(),
        type_schema: "pg_catalog".into(),
        type_name: type_name.into(),
        typmod: -1,
        key,
    };
    let columns = [
        column("id", "int8", true),
        column("n", "int4", false),
        column("yes", "bool", false),
        column("note", "text", false),
        column("doc", "jsonb", false),
    ];
    Arc::new(Shape::new("public", "t", Identity::Default, columns))
}

fn changes() -> Vec<(&'static str, Change)> {
    let value = |text: &'static str| Cell::Value(Bytes::from_static(text.as_bytes()));
    let row = |cells: [Cell; 5]| Row(cells.into());
    let shape = shape();
    let full = row([value("7"), value("-3"), value("t"), value("a\"b\\c\n\u{1}é𐍈"), value("{\"a\": [1]}")]);
    let sparse = row([value("8"), Cell::Null, value("f"), value(""), Cell::Unchanged]);
    let encrypted = Cell::Encrypted { key_id: "k1".into(), text: "c2VjcmV0".into() };
    let hidden = row([value("9"), value("1"), Cell::Null, Cell::Withheld, encrypted]);
    let key = row([value("7"), Cell::Unchanged, Cell::Unchanged, Cell::Unchanged, Cell::Unchanged]);
    vec![
        ("insert", Change::Insert { shape: shape.clone(), new: full.clone() }),
        ("insert-hidden", Change::Insert { shape: shape.clone(), new: hidden }),
        ("update", Change::Update { shape: shape.clone(), old: None, new: sparse.clone() }),
        ("update-key", Change::Update { shape: shape.clone(), old: Some(key.clone()), new: sparse.clone() }),
        ("update-full", Change::Update { shape: shape.clone(), old: Some(full), new: sparse }),
        ("delete", Change::Delete { shape: shape.clone(), old: key }),
        ("truncate", Change::Truncate { shapes: vec![shape], cascade: true, restart_identity: false }),
    ]
}

/// The change's value, as version 0.0.0 would write it: a seed does not change with a release.
fn encoded(change: &Change, format: Format) -> Vec<u8> {
    let mut encoder = Encoder::new(&"us-east-1".parse().unwrap(), "shop", format);
    encoder.begin(&position(0x100), TIME);
    let mut out = Encoded::default();
    encoder.change(change, 3, Some(&position(0x130)), &mut out).unwrap();
    let written = concat!("\"version\":\"", env!("CARGO_PKG_VERSION"), "\"");
    String::from_utf8(out.value).unwrap().replacen(written, "\"version\":\"0.0.0\"", 1).into_bytes()
}
