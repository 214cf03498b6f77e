//! The wire format, docs/wire-format.md in code: a binary [`Header`] and a JSON value.

mod header;

pub use header::{Flags, HEADER_LEN, HEADER_NAME, Header, InvalidHeader, Kind};
