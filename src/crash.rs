//! Where this process can be made to die, so that tests prove "kill anything at any point".
//!
//! `LANDFALL_CRASH_AT="apply.before_commit:3"` kills the process with SIGKILL, which nothing can
//! soften, when it reaches that point for the third time. Without the variable a point costs one
//! atomic load. The points are named after what was last done on the path: `apply.mid_batch` (the
//! guard is sent, rows may be), `apply.mid_copy` (the server waits for rows to copy),
//! `apply.lane_committed` (rows of a chunk are, its progress is not), `apply.before_commit`,
//! `apply.commit_sent` (its answer has not come), `apply.after_commit` (not yet told).

use std::{
    path::PathBuf,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// The environment variable that names the point and the count.
pub const VARIABLE: &str = "LANDFALL_CRASH_AT";

/// The environment variable that names a point and a file: whoever reaches the point waits until the file is taken
/// away, and puts it back, to wait there again the next time; until its directory is gone. So a test can have something
/// happen at exactly that moment, each time.
pub const HOLD: &str = "LANDFALL_HOLD_AT";

static HELD: OnceLock<Option<(String, PathBuf)>> = OnceLock::new();

struct Appointment {
    point: String,
    left: AtomicU64,
}

static APPOINTMENT: OnceLock<Option<Appointment>> = OnceLock::new();

/// A place where this process may be made to die.
pub fn point(name: &str) {
    if let Some(appointment) = APPOINTMENT.get_or_init(read)
        && appointment.point == name
        && appointment.left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        eprintln!("crash point {name} reached");
        die();
    }
    if let Some((point, file)) = HELD.get_or_init(held)
        && point == name
    {
        eprintln!("held at {name}");
        while file.exists() {
            std::thread::sleep(Duration::from_millis(20));
        }
        // In a directory that is gone nothing holds any more.
        let _ = std::fs::write(file, "");
    }
}

/// Whether some point is one to die at.
pub fn is_armed() -> bool {
    APPOINTMENT.get_or_init(read).is_some()
}

fn held() -> Option<(String, PathBuf)> {
    let text = std::env::var(HOLD).ok()?;
    let (point, file) = text.split_once(':')?;
    Some((point.to_owned(), PathBuf::from(file)))
}

fn read() -> Option<Appointment> {
    parse(&std::env::var(VARIABLE).ok()?)
}

fn parse(text: &str) -> Option<Appointment> {
    let (point, count) = text.rsplit_once(':').unwrap_or((text, "1"));
    let count: u64 = count.parse().ok().filter(|count| *count > 0)?;
    Some(Appointment { point: point.to_owned(), left: AtomicU64::new(count) })
}

#[allow(unsafe_code)]
fn die() {
    // SAFETY: both calls take and return plain integers.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_appointment_names_a_point_and_a_count() {
        let read = |text| parse(text).map(|it| (it.point, it.left.into_inner()));
        assert_eq!(read("apply.after_commit:12"), Some(("apply.after_commit".to_owned(), 12)));
        assert_eq!(read("x"), Some(("x".to_owned(), 1)));
        assert_eq!(read("x:0"), None);
        assert_eq!(read("x:y"), None);
        point("nothing happens without an appointment");
    }
}
