//! The `landfall` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    keep_few_arenas();
    landfall::cli::main()
}

/// glibc gives each thread that allocates an arena of its own, up to eight for each core, and returns
/// little of them: with the Kafka client's threads a daemon held a third more than it used.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "mallopt has no safe binding")]
fn keep_few_arenas() {
    // SAFETY: sets a number before any other thread is there.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

#[cfg(not(target_env = "gnu"))]
fn keep_few_arenas() {}
