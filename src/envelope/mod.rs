//! The wire format, docs/wire-format.md in code: a binary [`Header`] and a JSON value.

pub mod body;
pub mod decode;
mod encode;
mod header;
mod layout;
#[cfg(test)]
mod tests;
mod tracker;

pub use encode::{Encoded, Encoder, Unwritable};
pub use header::{Flags, HEADER_LEN, HEADER_NAME, Header, InvalidHeader, Kind};
pub use tracker::{Broken, Tracker, Verdict};
