//! What is written is read back as it was, whatever it holds.

use std::sync::Arc;

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    change::{Cell, Change, Column, Identity, Mark, Meanwhile, Row, Shape},
    lsn::Lsn,
    position::{Position, PostgresPosition},
    stamp::Micros,
};

fn position(end: u64) -> Position {
    Position::Postgres(PostgresPosition {
        commit: Lsn(77),
        end: Lsn(end),
        xid: 5,
        time: Micros(1_700_000_000_123_456),
    })
}

fn column(name: &str, type_name: &str, key: bool) -> Column {
    Column {
        name: name.into(),
        type_schema: "pg_catalog".into(),
        type_name: type_name.into(),
        typmod: -1,
        key,
    }
}

fn shape() -> Arc<Shape> {
    let columns = [
        column("id", "int8", true),
        column("n \"q\"", "int4", false),
        column("yes", "bool", false),
        column("text", "text", false),
        column("doc", "jsonb", false),
    ];
    Arc::new(Shape::new("public", "t", Identity::Default, columns))
}

fn value(text: &str) -> Cell {
    Cell::Value(Bytes::copy_from_slice(text.as_bytes()))
}

/// In both formats: read, they are the same. Gives Debezium's.
fn round_trip(change: &Change, end: Option<&Position>) -> (Encoded, decode::Decoded) {
    let (_, packed) = round_trip_as(Format::Packed, change, end);
    let (written, read) = round_trip_as(Format::Debezium, change, end);
    assert_eq!(read, packed);
    (written, read)
}

fn round_trip_as(format: Format, change: &Change, end: Option<&Position>) -> (Encoded, decode::Decoded) {
    let mut encoder = Encoder::new(&"us-east-1".parse().unwrap(), "shop", format);
    encoder.begin(&position(77), Micros(1_700_000_000_123_456));
    let mut out = Encoded::default();
    encoder.change(change, 3, end, &mut out).unwrap();
    let shapes = decode::Shapes::from_iter([(shape().fingerprint(), shape())]);
    let value = Bytes::from(out.value.clone());
    let decoded = match change {
        Change::Truncate { .. } => decode::truncate(&value, &shapes).unwrap(),
        _ => decode::change(&value, &shapes).unwrap(),
    };
    (out, decoded)
}

#[test]
fn what_a_backfill_brings_survives() {
    let mut encoder = Encoder::new(&"us-east-1".parse().unwrap(), "shop", Format::Debezium);
    encoder.begin(&position(77), Micros(1_700_000_000_123_456));
    let shapes: decode::Shapes = decode::Shapes::from_iter([(shape().fingerprint(), shape())]);
    let to = ["eu-west-1".to_owned(), "ap-south-1".to_owned()];
    let text = "1\t2\tt\tä \\t \"quoted\" \\\\\t\\N\n2\t\\N\tf\t\t{}\n";
    let chunk = |text: &str, rows, again: bool| Change::Chunk {
        keys: again.then(|| "7\t\\N\t\\N\t\\N\t\\N\n".into()),
        shape: shape(),
        rows,
        again,
        replace: Box::default(),
        meanwhile: None,
        text: Bytes::copy_from_slice(text.as_bytes()),
    };
    let replacing = |at: usize| Change::Chunk {
        shape: shape(),
        rows: 2,
        again: false,
        keys: None,
        replace: [at].into(),
        meanwhile: None,
        text: Bytes::copy_from_slice(text.as_bytes()),
    };
    let meanwhile = |meanwhile| Change::Chunk {
        shape: shape(),
        rows: 2,
        again: false,
        keys: None,
        replace: Box::default(),
        meanwhile: Some(meanwhile),
        text: Bytes::copy_from_slice(text.as_bytes()),
    };
    let marks = [Mark::Wait, Mark::Begin, Mark::Snapshot, Mark::Stale, Mark::Done, Mark::Settled];
    let changes = marks.map(|mark| Change::Watermark { shapes: vec![shape()], mark });
    for change in changes.into_iter().chain([
        chunk(text, 2, false),
        chunk("1\t2\tt\tplain\t{}\n", 1, true),
        replacing(1),
        meanwhile(Meanwhile::Came),
        meanwhile(Meanwhile::Gone),
    ]) {
        let mut out = Encoded::default();
        encoder.copy(&change, 3, Some(&position(99)), &to, &mut out).unwrap();
        let value = Bytes::from(out.value);
        let read = match &change {
            Change::Chunk { .. } => decode::chunk(&value, &shapes).unwrap(),
            _ => decode::watermark(&value, &shapes).unwrap(),
        };
        let expected = decode::Decoded {
            position: position(99),
            origin: "us-east-1".into(),
            ordinal: 3,
            change,
            to: Some(to.to_vec()),
        };
        assert_eq!(read, expected);
    }
    let mut out = Encoded::default();
    encoder.copy(&replacing(0), 0, None, &to, &mut out).unwrap();
    let named = format!(r#""replace":["{}"]"#, shape().columns[0].name);
    let text_of = String::from_utf8(out.value.clone()).unwrap();
    assert!(text_of.contains(&named), "{text_of}");
    let unknown = text_of.replace(&named, r#""replace":["no such column"]"#);
    assert!(decode::chunk(&unknown.into_bytes().into(), &shapes).is_err(), "its table has no such column");
    let mut out = Encoded::default();
    encoder.copy(&chunk(text, 3, false), 0, None, &to, &mut out).unwrap();
    assert!(decode::chunk(&out.value.clone().into(), &shapes).is_err(), "it says three rows and holds two");
    encoder.copy(&chunk(text, 2, false), 0, None, &to, &mut out).unwrap();
    let newer =
        String::from_utf8(out.value.clone()).unwrap().replacen("\"rows\":2", "\"rows\":2,\"unless\":1", 1);
    assert!(decode::chunk(&newer.into_bytes().into(), &shapes).is_err(), "who wrote it may mean other rows");
    for (row, what) in
        [("1\t2\tt\tshort\n", "a field too few"), ("1\t2\tt\tlong\t{}\t\n", "a field too many")]
    {
        let mut out = Encoded::default();
        encoder.copy(&chunk(row, 1, false), 0, None, &to, &mut out).unwrap();
        assert!(decode::chunk(&out.value.into(), &shapes).is_err(), "{what}");
    }
}

#[test]
fn every_kind_of_change_and_cell_survives() {
    let full = Row([
        value("9223372036854775807"),
        value("-1"),
        value("t"),
        value("a\"b\\c\n\u{1}é\u{10348}"),
        value("{}"),
    ]
    .into());
    let sparse = Row([value("1"), Cell::Null, value("f"), value(""), Cell::Unchanged].into());
    let hidden = Row([
        value("1"),
        value("2"),
        Cell::Null,
        Cell::Withheld,
        Cell::Encrypted { key_id: "k1".into(), text: "secret".into() },
    ]
    .into());
    let key = Row([value("2"), Cell::Unchanged, Cell::Unchanged, Cell::Unchanged, Cell::Unchanged].into());
    let table = [
        Change::Insert { shape: shape(), new: full.clone() },
        Change::Insert { shape: shape(), new: hidden },
        Change::Update { shape: shape(), old: None, new: sparse.clone() },
        Change::Update { shape: shape(), old: Some(key.clone()), new: sparse.clone() },
        Change::Update { shape: shape(), old: Some(full), new: sparse },
        Change::Delete { shape: shape(), old: key },
        Change::Truncate { shapes: vec![shape()], cascade: true, restart_identity: false },
    ];
    let encrypted = |text: &str| Cell::Encrypted { key_id: "k1".into(), text: text.to_owned().into() };
    let cells = [value("1"), encrypted("one"), encrypted("two"), value(""), Cell::Null];
    let all_forms = Change::Insert { shape: shape(), new: Row(cells.into()) };
    for change in table.into_iter().chain([all_forms]) {
        for end in [None, Some(position(99))] {
            let (_, decoded) = round_trip(&change, end.as_ref());
            assert_eq!(decoded.change, change);
            assert_eq!((decoded.ordinal, &decoded.origin[..]), (3, &b"us-east-1"[..]));
            assert_eq!(decoded.position, end.unwrap_or(position(77)));
        }
    }
}

#[test]
fn the_envelope_is_debeziums_with_our_block_beside_it() {
    let new = Row([value("1"), value("2"), value("t"), value("x"), Cell::Unchanged].into());
    let (out, _) = round_trip(&Change::Update { shape: shape(), old: None, new }, Some(&position(99)));
    assert_eq!(String::from_utf8(out.key).unwrap(), r#"{"id":"1"}"#);
    let json: serde_json::Value = serde_json::from_slice(&out.value).unwrap();
    let expected = serde_json::json!({
        "before": null,
        "after": {"id": "1", "n \"q\"": 2, "yes": true, "text": "x"},
        "op": "u",
        "source": {
            "version": env!("CARGO_PKG_VERSION"), "connector": "postgresql", "name": "us-east-1", "snapshot": "false",
            "db": "shop", "schema": "public", "table": "t", "txId": 5, "lsn": 77, "ts_ms": 1_700_000_000_123_i64,
        },
        "ts_ms": 1_700_000_000_123_i64,
        "transaction": {"id": "5:77", "total_order": 4},
        "landfall": {
            "shape": shape().fingerprint().to_string(), "ordinal": 3, "origin": "us-east-1",
            "position": {"postgres": {"commit": "0/4D", "end": "0/63", "xid": 5, "time": 1_700_000_000_123_456_i64}},
            "unchanged": ["doc"],
        },
    });
    assert_eq!(json, expected);
}

#[test]
fn a_row_that_is_not_all_there_is_refused() {
    let shapes = decode::Shapes::from_iter([(shape().fingerprint(), shape())]);
    let (out, _) = round_trip(
        &Change::Insert {
            shape: shape(),
            new: Row([value("1"), value("2"), value("t"), value("x"), value("{}")].into()),
        },
        None,
    );
    let text = String::from_utf8(out.value).unwrap();
    for (from, to) in [
        ("\"text\":\"x\",", ""),
        ("\"text\":", "\"other\":"),
        ("\"op\":\"c\"", "\"op\":\"x\""),
        ("\"text\":\"x\"", "\"text\":[1]"),
        // The fuzzer's: in a form that is another column's.
        ("\"yes\":true", "\"yes\":\"t\""),
        ("\"yes\":true", "\"yes\":1"),
        ("\"n \\\"q\\\"\":2", "\"n \\\"q\\\"\":\"2\""),
        ("\"n \\\"q\\\"\":2", "\"n \\\"q\\\"\":2e0"),
        ("\"n \\\"q\\\"\":2", "\"n \\\"q\\\"\":true"),
        ("\"id\":\"1\"", "\"id\":1"),
    ] {
        assert!(text.contains(from));
        let spoiled = Bytes::from(text.replace(from, to));
        assert!(decode::change(&spoiled, &shapes).is_err(), "{to}");
    }
    assert!(matches!(
        decode::change(&Bytes::from(text), &decode::Shapes::default()),
        Err(decode::Unreadable::Shape(_))
    ));
}

#[test]
fn bytes_that_are_no_text_are_refused_by_table_and_column() {
    let mut encoder = Encoder::new(&"us-east-1".parse().unwrap(), "shop", Format::Debezium);
    encoder.begin(&position(77), Micros(0));
    let bad = Cell::Value(Bytes::from_static(b"\xff"));
    let new = Row([value("1"), value("2"), value("t"), bad, value("{}")].into());
    let error = encoder.change(&Change::Insert { shape: shape(), new }, 0, None, &mut Encoded::default());
    assert_eq!(error, Err(Unwritable::Encoding { table: "public.t".into(), column: "text".into() }));
}

#[test]
fn random_text_survives_and_damaged_text_never_panics() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let shapes = decode::Shapes::from_iter([(shape().fingerprint(), shape())]);
    for _ in 0..2_000 {
        let text: String = (0..random.random_range(0..24)).map(|_| random.random::<char>()).collect();
        let new = Row([value("1"), value("2"), value("t"), value(&text), Cell::Null].into());
        let change = Change::Insert { shape: shape(), new };
        let (out, decoded) = round_trip(&change, None);
        assert_eq!(decoded.change, change);
        let mut bytes = out.value;
        for _ in 0..3 {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
        let _ = decode::change(&bytes.into(), &shapes);
    }
}

/// Both ways to read a change agree, on what we lay out and on what is nearly that.
#[test]
fn what_is_read_in_one_pass_is_read_by_the_parser_just_so() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let columns =
        ["int8", "int4", "bool", "text"].map(|name| column(&format!("of {name}"), name, name == "int8"));
    let shape = Arc::new(Shape::new("public", "t", Identity::Default, columns));
    let shapes = decode::Shapes::from_iter([(shape.fingerprint(), shape.clone())]);
    let encoder = |format| Encoder::new(&"us-east-1".parse().unwrap(), "shop", format);
    let mut encoders = [encoder(Format::Debezium), encoder(Format::Packed)];
    let (mut in_one_pass, mut damaged_and_read) = (0, 0);
    for _ in 0..5_000 {
        let encoder = &mut encoders[random.random_range(0..2)];
        encoder.begin(&position(77), Micros(random.random_range(-9..9)));
        let cell = |text: &str, random: &mut StdRng| {
            if random.random_ratio(1, 9) { Cell::Null } else { value(text) }
        };
        let number = random.random_range(-12..12).to_string();
        let text = ["", "plain", "é\u{10348}", "null", "a\"b"][random.random_range(0..5)];
        let cells = [
            value(&number),
            cell(&number, &mut random),
            cell(["t", "f"][random.random_range(0..2)], &mut random),
            cell(text, &mut random),
        ];
        let (row, key) = (Row(cells.to_vec().into()), cells[0].clone());
        let old = Row([key, Cell::Unchanged, Cell::Unchanged, Cell::Unchanged].into());
        let change = match random.random_range(0..4) {
            0 => Change::Insert { shape: shape.clone(), new: row },
            1 => Change::Update { shape: shape.clone(), old: None, new: row },
            2 => Change::Update { shape: shape.clone(), old: Some(old), new: row },
            _ => Change::Delete { shape: shape.clone(), old },
        };
        let mut out = Encoded::default();
        let end = random.random::<bool>().then(|| position(99));
        encoder.change(&change, random.random_range(0..3), end.as_ref(), &mut out).unwrap();
        let mut record = out.value;
        assert_eq!(decode::change(&record.clone().into(), &shapes).unwrap().change, change);
        in_one_pass += u32::from(layout::change(&record.clone().into(), &shapes).is_some());
        for _ in 0..4 {
            let at = random.random_range(0..record.len());
            match random.random_range(0..4) {
                0 => record[at] = b"\"\\{}[]:,0-1.eE tnu/\n\0"[random.random_range(0..21)],
                1 => drop(record.remove(at)),
                2 => record.insert(at, record[random.random_range(0..record.len())]),
                _ => record.swap(at, random.random_range(0..at + 1)),
            }
            let damaged = Bytes::from(record.clone());
            if let Some(read) = layout::change(&damaged, &shapes) {
                damaged_and_read += 1;
                let parsed = decode::any_change(&damaged, &shapes);
                assert_eq!(parsed.ok(), Some(read), "{}", String::from_utf8_lossy(&damaged));
            }
        }
    }
    assert!(in_one_pass > 3_000, "{in_one_pass} of 5000");
    assert!(damaged_and_read > 100, "{damaged_and_read}: nothing was tried");
}
