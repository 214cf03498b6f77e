//! Landfall carries committed changes from one region's database to the others: it tails each
//! region's log into a durable Kafka buffer and, in every other region, applies the changes as
//! ordered, idempotent batches. ARCHITECTURE.md is the map; `tests/layers.rs` keeps it true.

#![warn(clippy::disallowed_methods)]

pub mod api;
pub mod change;
pub mod changelog;
pub mod check;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod crash;
pub mod daemon;
pub mod envelope;
pub mod fault;
pub mod init;
pub mod kafka;
pub mod lsn;
pub mod metrics;
pub mod names;
pub mod pace;
pub mod pipeline;
pub mod plan;
pub mod position;
pub mod postgres;
pub mod progress;
pub mod region;
pub mod retry;
pub mod roster;
pub mod scope;
pub mod secret;
pub mod sink;
pub mod source;
pub mod stamp;
pub mod task;
pub mod verify;
