//! Real Postgres clusters, a real Kafka, the WAN between them and an
//! independent ledger. Landfall's tests, demo and benches all stand on it.
//!
//! ```text
//!       region A                  WAN                  region B
//!  ┌──────────┐  ┌───────┐   ┌───────────┐
//!  │ postgres │  │ kafka │──▶│ TCP proxy │──▶ the daemon of region B
//!  └──────────┘  └───────┘   └───────────┘
//!        ▲            ▲   every broker advertises the proxy to the other side
//!     ledger       daemon
//! ```
//!
//! Nothing here knows Landfall: the daemon is a path to a binary and a
//! configuration text, and the ledger looks at the two databases from outside.
//!
//! Promises kept by every part:
//! - Everything listens on loopback, on free ports.
//! - What was started is ended by its own process id: on drop, and by the
//!   kernel when the test itself is killed.
//! - Files live in a scratch directory that is removed on drop; directories of
//!   tests that were killed are swept by the next one.
//!
//! `scripts/setup` fetches the servers; [`home`] finds them. What Landfall is
//! measured against, Debezium in [`connect`], is fetched by `scripts/setup-rivals`.

pub mod authority;
pub mod browser;
pub mod checksum;
pub mod connect;
pub mod cpu;
mod crc;
pub mod daemon;
pub mod home;
pub mod http;
pub mod kafka;
pub mod ledger;
pub mod load;
pub mod ports;
pub mod postgres;
pub mod probe;
pub mod process;
pub mod prometheus;
pub mod region;
pub mod wait;
pub mod wan;
pub mod writers;

pub use authority::Authority;
pub use browser::Browser;
pub use connect::Connect;
pub use daemon::{Daemon, said};
pub use kafka::Kafka;
pub use ledger::Ledger;
pub use postgres::Postgres;
pub use prometheus::Prometheus;
pub use region::{Region, TwoRegions};
pub use wait::eventually;
pub use wan::Wan;
pub use writers::Writers;
