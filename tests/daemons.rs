//! The tests that run daemons between real servers, as one program: it is linked once, and while the last test of one file
//! waits, those of the next go on. `cargo test --test daemons kills::` runs one file's.

mod access;
mod anew;
mod backfill;
mod backfill_faults;
mod backfill_keyless;
mod changelog;
mod dashboards;
mod data;
mod kills;
mod memory;
mod observe;
mod onboarding;
mod page;
mod parked;
mod privileges;
mod procedures;
mod recover;
mod secrets;
mod stops;
mod truth;
mod vanished;
mod verify;
