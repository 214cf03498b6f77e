//! What a topic holds: any bytes are a record or are refused. The first 32 stand for the header.

#![no_main]

use std::sync::Arc;

use landfall::{
    change::{Column, Identity, Shape},
    envelope::{HEADER_LEN, Header, decode},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (header, value) = data.split_at(data.len().min(HEADER_LEN));
    let _ = Header::open(Some(header), b"", value);
    let column = |name: &str, type_name: &str, key| Column {
        name: name.into(),
        type_schema: "pg_catalog".into(),
        type_name: type_name.into(),
        typmod: -1,
        key,
    };
    let columns = [column("id", "int8", true), column("n", "int4", false), column("text", "text", false)];
    let shape =
        Shape { schema: "public".into(), table: "t".into(), identity: Identity::Default, columns: columns.into() };
    let shapes = [(shape.fingerprint(), Arc::new(shape))].into();
    let value = bytes::Bytes::copy_from_slice(value);
    let _ = decode::change(&value, &shapes);
    let _ = decode::truncate(&value, &shapes);
    let _ = decode::schema(&value);
});
