//! What a topic holds: any bytes are a record or are refused, and what is read is read the same once it is
//! written again. The first 32 bytes stand for the header, the others for the value; the key is empty. Where the header is
//! a pack's, the next byte says how many records it has, and their marks follow.

#![no_main]

use std::{
    fmt::Debug,
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use landfall::{
    change::{Change, Column, Identity, Shape},
    envelope::{
        Encoded, Encoder, Format, HEADER_LEN, Header, Kind, Packer, unpack,
        body::{self, Abort, Answered, Barrier, Commit, Genesis, HeartbeatBody, Idle},
        decode::{self, Decoded, Shapes},
    },
    stamp::Micros,
};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};

/// The table of the seeds.
static SHAPES: LazyLock<Shapes> = LazyLock::new(|| {
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
    let shape = Shape::new("public", "t", Identity::Default, columns);
    Shapes::from_iter([(shape.fingerprint(), Arc::new(shape))])
});

fuzz_target!(|data: &[u8]| {
    let Some((head, value)) = data.split_first_chunk::<HEADER_LEN>() else {
        assert!(Header::open(Some(data), b"", b"").is_err());
        return;
    };
    let _ = Header::open(Some(head), b"", value);
    pack(head, value);
    // Nobody guesses a checksum: from here on it is right, so that what it guards is reached.
    let mut head = *head;
    let sum = crc32fast::hash(&[&head[..28], &[0; 4], value].concat());
    head[28..].copy_from_slice(&sum.to_be_bytes());
    let Ok(header) = Header::open(Some(&head), b"", value) else { return };
    let sealed = header.seal(b"", value);
    assert_eq!(sealed[..24], head[..24]);

    match header.kind {
        Kind::Change => change(&Bytes::copy_from_slice(value)),
        Kind::Truncate => {
            if let Ok(read) = decode::truncate(value, &SHAPES) {
                same(&read, |value| decode::truncate(value, &SHAPES));
            }
        }
        Kind::Schema => {
            if let Ok((fingerprint, shape)) = decode::schema(value) {
                let written = body::Schema { fingerprint: fingerprint.to_string(), shape: (*shape).clone() };
                assert_eq!(decode::schema(&body::to_value(&written)).unwrap(), (fingerprint, shape));
            }
        }
        Kind::Genesis => plain::<Genesis>(value),
        Kind::Barrier => plain::<Barrier>(value),
        Kind::Commit => plain::<Commit>(value),
        Kind::Abort => plain::<Abort>(value),
        Kind::Heartbeat => plain::<HeartbeatBody>(value),
        Kind::Idle => plain::<Idle>(value),
        Kind::Chunk => copied(value, |value| decode::chunk(value, &SHAPES)),
        Kind::Watermark => copied(value, |value| decode::watermark(value, &SHAPES)),
        Kind::Answer => plain::<Answered>(value),
        // A part is put together with others first.
        Kind::Part => (),
    }
});

/// What is unpacked packs as it was.
fn pack(head: &[u8; HEADER_LEN], rest: &[u8]) {
    let Some((count, rest)) = rest.split_first() else { return };
    let Some((marks, value)) = rest.split_at_checked(3 * usize::from(*count)) else { return };
    let mut sealed = [head, marks].concat();
    let value = Bytes::copy_from_slice(value);
    let _ = unpack(&sealed, b"", &value);
    let sum = crc32fast::hash(&[&head[..28], marks, &[0; 4], &value].concat());
    sealed[28..HEADER_LEN].copy_from_slice(&sum.to_be_bytes());
    let Ok(records) = unpack(&sealed, b"", &value) else { return };
    assert_eq!(records.len(), usize::from(*count));
    let mut packer = Packer::new(1 << 20);
    for (header, value) in &records {
        assert!(packer.may_share(header, value) && packer.take(header, b"", value), "{header:?}");
    }
    let packed = packer.packed().unwrap();
    if records.len() > 1 {
        assert_eq!(packed.header[..24], sealed[..24]);
        assert_eq!(packed.header[HEADER_LEN..], sealed[HEADER_LEN..]);
        assert_eq!(packed.value, &value[..]);
    }
}

fn change(value: &Bytes) {
    if let Ok(read) = decode::change(value, &SHAPES) {
        same(&read, |value| decode::change(value, &SHAPES));
    }
}

/// A change that was read is written as a change that reads the same.
fn same(read: &Decoded, decode: impl Fn(&Bytes) -> Result<Decoded, decode::Unreadable>) {
    // The encoder counts from one for Debezium; nobody has so many changes.
    if read.ordinal == u64::MAX {
        return;
    }
    let mut encoder = Encoder::new(&"us-east-1".parse().unwrap(), "shop", Format::Debezium);
    encoder.begin(&read.position, Micros(0));
    let mut written = Encoded::default();
    encoder.change(&read.change, read.ordinal, Some(&read.position), &mut written).unwrap();
    let value = Bytes::from(written.value);
    let again = decode(&value).unwrap_or_else(|error| panic!("{error:?}: {read:?} as {value:?}"));
    assert_eq!((&again.change, again.ordinal, again.position), (&read.change, read.ordinal, read.position));
    if let Change::Truncate { .. } = again.change {
        assert!(written.key.is_empty(), "a truncate has no key");
    }
}

/// The same of what a backfill brings.
fn copied(value: &[u8], decode: impl Fn(&Bytes) -> Result<Decoded, decode::Unreadable>) {
    let Ok(read) = decode(&Bytes::copy_from_slice(value)) else { return };
    let mut encoder = Encoder::new(&"us-east-1".parse().unwrap(), "shop", Format::Debezium);
    encoder.begin(&read.position, Micros(0));
    let mut written = Encoded::default();
    let to = read.to.as_deref().unwrap_or_default();
    encoder.copy(&read.change, read.ordinal, Some(&read.position), to, &mut written).unwrap();
    let again = decode(&Bytes::from(written.value)).unwrap();
    assert_eq!((again.change, again.ordinal, again.to), (read.change, read.ordinal, read.to));
}

fn plain<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &[u8]) {
    if let Ok(read) = body::from_value::<T>(value) {
        assert_eq!(body::from_value::<T>(&body::to_value(&read)).unwrap(), read);
    }
}
