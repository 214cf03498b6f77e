//! The wall clock, read in one place; words and rules get the time as an argument.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::stamp::Micros;

/// The time now, on this machine's clock.
pub fn now() -> Micros {
    let micros = match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros),
    };
    Micros(micros)
}
