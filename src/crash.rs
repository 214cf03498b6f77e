//! Points at which a test may kill the process, to prove that anything may be killed anywhere.
//!
//! `LANDFALL_CRASH_AT=apply.after_commit:3` ends the process with SIGKILL when it reaches that point
//! for the third time. Without the variable a point costs one comparison.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering},
};

struct Armed {
    point: String,
    /// Reaches left before the end.
    left: AtomicU64,
}

static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

/// A named place in the code. Ends the process where the environment asks for it.
pub fn point(name: &str) {
    let armed = ARMED.get_or_init(|| {
        let asked = std::env::var("LANDFALL_CRASH_AT").ok()?;
        let (point, times) = asked.rsplit_once(':')?;
        Some(Armed { point: point.to_owned(), left: AtomicU64::new(times.parse().ok()?) })
    });
    let Some(armed) = armed else { return };
    if armed.point == name && armed.left.fetch_sub(1, Ordering::Relaxed) == 1 {
        die();
    }
}

#[allow(unsafe_code, reason = "SIGKILL to oneself is the end no handler sees, and std has no call for it")]
fn die() {
    // SAFETY: kill and getpid take and return plain numbers.
    unsafe {
        libc::kill(libc::getpid(), libc::SIGKILL);
    }
}
