//! What a server sends: any bytes decode or are refused, and nothing is allocated beyond them.

#![no_main]

use landfall::postgres::pgoutput;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = pgoutput::decode(bytes::Bytes::copy_from_slice(data));
});
