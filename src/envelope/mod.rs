//! The wire format, docs/wire-format.md in code: a binary [`Header`] and a JSON value.

pub mod body;
pub mod decode;
mod encode;
mod header;
mod layout;
mod pack;
#[cfg(test)]
mod tests;
mod tracker;

pub use encode::{Encoded, Encoder, Format, Unwritable};
pub use header::{Flags, HEADER_LEN, HEADER_NAME, Header, InvalidHeader, Kind};
pub(crate) use pack::is_pack;
pub use pack::{PACK_RECORDS_MAX, Packed, Packer, unpack};
pub use tracker::{Broken, Tracker, Verdict};
