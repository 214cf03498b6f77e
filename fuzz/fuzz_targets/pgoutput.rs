//! What a server sends: any bytes are a message or are refused. A message holds no more than its bytes, and
//! written back it is the same message.

#![no_main]

use bytes::Bytes;
use landfall::postgres::pgoutput;
use libfuzzer_sys::fuzz_target;

#[path = "../../tests/golden/rewrite.rs"]
mod rewrite;

fuzz_target!(|data: &[u8]| {
    let Ok(message) = pgoutput::decode(Bytes::copy_from_slice(data)) else { return };
    let again = rewrite::bytes(&message);
    assert!(again.len() <= data.len(), "{message:?} is more than was sent");
    assert_eq!(pgoutput::decode(again.into()).as_ref(), Ok(&message));
});
