//! Postgres as a technology: connecting, decoding its replication protocol, asking its catalogs.
//! Knows words, and nothing of streams, sinks or Kafka.

pub mod catalog;
mod connect;
mod digest;
pub mod grants;
mod lookout;
pub mod own;
pub mod pgoutput;
mod replication;
pub mod tables;
mod vanished;

pub use connect::{
    Address, Connection, OUTPUT_SETTINGS, TlsMode, connect, fault_of, find_operators, wire_fault,
};
pub use digest::Digest;
pub use lookout::{GIVE_WAY_INTERVAL, Lookout};
pub use replication::{Frame, Replication};
