//! Whether whoever holds a target lives.
//!
//! | its backend | lives |
//! |---|---|
//! | is idle, or idle in a transaction | while it was at work within [`LEASE`] |
//! | computes, or waits for a lock or a disk | for certain: that comes to an end, and it is idle then |
//! | is in the middle of a statement, and waits for its client | while more of it comes within [`LEASE`] |
//!
//! The last is where rows are copied in. To the server such a session is at work, and it stays so when its daemon is frozen
//! or its host without power. How much has come it does tell, and not when: so it takes two looks.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Client;

use super::{session::Backend, wire::Timestamp};
use crate::{fault::Result, postgres::fault_of};

/// How long a holder that shows no sign is still believed to live: five times the interval it shows
/// itself in.
const LEASE: Duration = Duration::from_secs(10);

/// What is seen of a backend.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// It began or ended something within [`LEASE`], by the target's clock. Like what follows, hidden where it is another
    /// role's.
    recent: Option<bool>,
    active: Option<bool>,
    waits_for_client: bool,
    sign: Sign,
}

/// What is another whenever something came of its client.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Sign {
    began: Option<Timestamp>,
    copied_bytes: Option<i64>,
}

/// Looks at a backend; none where it is gone. Says whose it is, as well.
pub(super) async fn look(client: &Client, backend: Backend) -> Result<Option<(Seen, String)>> {
    let look = "SELECT a.state_change > clock_timestamp() - $3 * interval '1 second', a.state = 'active',
                       a.wait_event_type IS NOT DISTINCT FROM 'Client', a.state_change, p.bytes_processed,
                       a.application_name || ' from ' || coalesce(a.client_addr::text, 'a local socket')
                  FROM pg_stat_activity a LEFT JOIN pg_stat_progress_copy p ON p.pid = a.pid
                 WHERE a.pid = $1 AND a.backend_start = $2";
    let row = client.query_opt(look, &[&backend.pid, &backend.start, &LEASE.as_secs_f64()]).await;
    let row = row.map_err(|error| fault_of(&error).at("ask whether the holder lives"))?;
    Ok(row.map(|row| {
        let sign = Sign { began: row.get(3), copied_bytes: row.get(4) };
        let seen = Seen { recent: row.get(0), active: row.get(1), waits_for_client: row.get(2), sign };
        let who: Option<String> = row.get(5);
        (seen, who.unwrap_or_else(|| "a session of another role".to_owned()))
    }))
}

/// What was seen of a backend that waited for its client, and when first. Kept from look to look.
#[derive(Debug, Default)]
pub(super) struct Doubt(Option<(Backend, Sign, Instant)>);

impl Doubt {
    /// Whether a backend lives of which this is seen now.
    pub(super) fn lives(&mut self, backend: Backend, seen: Seen, now: Instant) -> bool {
        let active = seen.active == Some(true);
        if !(active && seen.waits_for_client) {
            self.0 = self.0.filter(|(of, ..)| *of != backend);
            return active || seen.recent.unwrap_or(true);
        }
        let since = match self.0 {
            Some((of, sign, since)) if (of, sign) == (backend, seen.sign) => since,
            _ => now,
        };
        self.0 = Some((backend, seen.sign, since));
        now.duration_since(since) < LEASE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_a_client_lives_while_something_comes() {
        let began = Instant::now();
        let (one, other) = (1, 2);
        let backend = |pid| Backend { pid, start: Timestamp(0) };
        let mut doubt = Doubt::default();
        let copies = |bytes| Seen {
            recent: Some(false),
            active: Some(true),
            waits_for_client: true,
            sign: Sign { began: Some(Timestamp(7)), copied_bytes: Some(bytes) },
        };
        let computes = Seen { waits_for_client: false, ..copies(1) };
        let idle = Seen { active: Some(false), ..copies(1) };
        let hidden = Seen { recent: None, active: None, ..computes };
        for (second, pid, seen, lives) in [
            (0, one, copies(1), true),
            (9, one, copies(1), true),
            (10, one, copies(2), true),
            (19, one, copies(2), true),
            (20, one, copies(2), false),
            (21, other, copies(2), true),
            (22, one, copies(2), true),
            (30, other, computes, true),
            (31, one, computes, true),
            (33, one, copies(2), true),
            (43, one, copies(2), false),
            (44, one, Seen { recent: Some(true), ..idle }, true),
            (45, one, idle, false),
            (46, one, hidden, true),
        ] {
            let now = began + Duration::from_secs(second);
            assert_eq!(doubt.lives(backend(pid), seen, now), lives, "after {second} s");
        }
    }
}
