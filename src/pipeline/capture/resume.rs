//! Where a source goes on: the log's own tail held against what the server sends again.
//!
//! ```text
//! server   ─────────C══════════════▶      C confirmed: everything behind it is sent again
//! log      ──────────────L───T·o·         L last whole transaction, T the position reached,
//!                                         o a transaction half appended
//! ```
//!
//! C beyond T: the server released what the log does not hold. L among what is sent again, but not the
//! same, or not there: the server is not the one the log came from, whatever its name says.
//!
//! Where retention took the tail, L and T are those of the last checkpoint, and bind the server as much. What it sends again
//! is appended again then.

use crate::{
    lsn::Lsn,
    position::{Position, PostgresPosition},
};

/// What a log's tail holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// The last transaction that is whole in the log.
    pub last: Option<Position>,
    /// Everything up to here is in the log, or not of the stream.
    pub through: Option<Position>,
    /// A transaction that was begun in the log and not ended.
    pub open: Option<Open>,
    /// Retention took it, and a checkpoint tells of it: what the server sends again is appended again.
    pub gone: bool,
}

/// A transaction half appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// The transaction.
    pub position: Position,
    /// Its last change that is whole in the log.
    pub ordinal: Option<u64>,
}

/// What to do with a transaction the server sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It stands in the log.
    Skip,
    /// Append it.
    Append,
    /// Append what comes after this ordinal: the rest stands in the log.
    Complete(Option<u64>),
    /// The half transaction will never be completed: say so in the log, then append this one.
    AbortThenAppend(Position),
    /// The log says that nothing of the stream is in it. So it may be (a watermark, somebody else's message, what a
    /// sink applied here); where something is, this is why the log cannot be continued.
    Nothing(Diverged),
}

/// Why the log cannot be continued from this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Diverged {
    /// The slot released what the log does not hold.
    #[error(
        "the slot is confirmed up to {confirmed}, the log holds everything only up to {through}: what lies between is lost"
    )]
    SlotAhead {
        /// The slot's.
        confirmed: Lsn,
        /// The log's.
        through: Lsn,
    },
    /// The server's log ends before ours.
    #[error("the server's log ends at {written}, the stream has seen it up to {through}")]
    ServerBehind {
        /// The server's.
        written: Lsn,
        /// Ours.
        through: Lsn,
    },
    /// Another transaction stands where ours did.
    #[error("the log's transaction at {} (xid {}) is another at the server: xid {xid} at {commit}", ours.commit, ours.xid)]
    Other {
        /// As the log has it.
        ours: PostgresPosition,
        /// What the server sent.
        commit: Lsn,
        /// Its transaction id.
        xid: u32,
    },
    /// The server does not have the log's last transaction.
    #[error("the server does not have the log's last transaction at {} (xid {})", .0.commit, .0.xid)]
    Missing(PostgresPosition),
}

/// Holds what the server sends against the tail, until it is past it.
#[derive(Clone, Debug)]
pub struct Resume {
    last: Option<PostgresPosition>,
    through: Lsn,
    open: Option<(PostgresPosition, Option<u64>)>,
    /// Whether the log's last transaction was seen again, or will not be sent.
    proven: bool,
    /// Whether nothing stands in the log any more of what is sent again.
    gone: bool,
}

impl Resume {
    /// For a log that ends with `tail`, at a server whose slot is `confirmed` and whose log is
    /// `written` up to there.
    ///
    /// # Errors
    /// The two cannot belong together.
    pub fn new(tail: &Tail, confirmed: Position, written: Position) -> Result<Self, Diverged> {
        let postgres = |Position::Postgres(at)| at;
        let (confirmed, written) = (postgres(confirmed).end, postgres(written).end);
        let through = tail.through.map(postgres).map_or(confirmed, |at| at.end);
        // A tail that is gone went on behind its checkpoint; the sinks know whether they have what was confirmed of it.
        if confirmed > through && !tail.gone {
            return Err(Diverged::SlotAhead { confirmed, through });
        }
        if written < through {
            return Err(Diverged::ServerBehind { written, through });
        }
        let last = tail.last.map(postgres);
        let open = tail.open.map(|open| (postgres(open.position), open.ordinal));
        let proven = last.is_none_or(|last| last.end <= confirmed);
        Ok(Self { last, through, open, proven, gone: tail.gone })
    }

    /// Whether the server is known to have the log's last transaction, as far as it is to send it.
    pub fn is_proven(&self) -> bool {
        self.proven
    }

    /// A transaction begins at the server.
    ///
    /// # Errors
    /// It shows that the server is not the one the log came from.
    pub fn begin(&mut self, Position::Postgres(sent): &Position) -> Result<Decision, Diverged> {
        let other = |ours| Diverged::Other { ours, commit: sent.commit, xid: sent.xid };
        let same = |ours: &PostgresPosition| {
            (ours.commit, ours.xid, ours.time) == (sent.commit, sent.xid, sent.time)
        };
        let again = if self.gone { Decision::Append } else { Decision::Skip };
        if let Some(last) = self.last {
            if sent.commit < last.commit {
                return Ok(again);
            }
            if sent.commit == last.commit {
                self.proven = true;
                return if same(&last) { Ok(again) } else { Err(other(last)) };
            }
            if !self.proven {
                return Err(Diverged::Missing(last));
            }
        } else if self.gone {
            // The checkpoint knew of no transaction, which says nothing of those before it.
            return Ok(Decision::Append);
        }
        // The log says that nothing of the stream lies between its last transaction and this.
        if sent.commit < self.through {
            let nothing =
                PostgresPosition { commit: self.through, end: self.through, xid: 0, time: sent.time };
            return Ok(Decision::Nothing(other(self.last.unwrap_or(nothing))));
        }
        match self.open.take() {
            None => Ok(Decision::Append),
            Some((open, ordinal)) if sent.commit == open.commit => {
                if same(&open) {
                    Ok(Decision::Complete(ordinal))
                } else {
                    Err(other(open))
                }
            }
            // It left no record, and the half transaction is still to come.
            Some((open, ordinal)) if sent.commit < open.commit => {
                self.open = Some((open, ordinal));
                Ok(Decision::Nothing(other(open)))
            }
            Some((open, _)) => Ok(Decision::AbortThenAppend(Position::Postgres(open))),
        }
    }

    /// Whether a half transaction is still to be completed: nothing else may be appended before it is.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// The server has sent everything up to here. Gives the half transaction it passed without.
    ///
    /// # Errors
    /// It passed the log's last transaction without sending it.
    pub fn passed(&mut self, Position::Postgres(at): &Position) -> Result<Option<Position>, Diverged> {
        if let Some(last) = self.last.filter(|last| !self.proven && at.end >= last.end) {
            return Err(Diverged::Missing(last));
        }
        let passed = self.open.take_if(|(open, _)| at.end > open.commit);
        Ok(passed.map(|(open, _)| Position::Postgres(open)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stamp::Micros;

    fn at(commit: u64, xid: u32) -> Position {
        Position::Postgres(PostgresPosition {
            commit: Lsn(commit),
            end: Lsn(commit + 8),
            xid,
            time: Micros(i64::from(xid)),
        })
    }

    fn place(end: u64) -> Position {
        Position::Postgres(PostgresPosition { commit: Lsn(end), end: Lsn(end), xid: 0, time: Micros(0) })
    }

    fn tail(last: Option<Position>, through: u64, open: Option<Open>) -> Tail {
        Tail { last, through: Some(place(through)), open, gone: false }
    }

    #[test]
    fn what_stands_in_the_log_is_skipped_and_the_rest_appended() {
        let tail = tail(Some(at(100, 7)), 108, None);
        let mut resume = Resume::new(&tail, place(50), place(500)).unwrap();
        assert_eq!(resume.begin(&at(60, 5)), Ok(Decision::Skip));
        assert_eq!(resume.begin(&at(100, 7)), Ok(Decision::Skip));
        assert_eq!(resume.begin(&at(120, 8)), Ok(Decision::Append));
    }

    #[test]
    fn a_half_transaction_is_completed_or_aborted() {
        let open = Some(Open { position: at(120, 8), ordinal: Some(4) });
        let start = || Resume::new(&tail(Some(at(100, 7)), 108, open), place(108), place(500)).unwrap();
        assert_eq!(start().begin(&at(120, 8)), Ok(Decision::Complete(Some(4))));
        assert_eq!(start().begin(&at(140, 9)), Ok(Decision::AbortThenAppend(at(120, 8))));
        assert!(matches!(start().begin(&at(120, 9)), Err(Diverged::Other { .. })));
        // One that left no record comes before it, and it is completed all the same.
        let mut resume = start();
        assert!(matches!(resume.begin(&at(110, 9)), Ok(Decision::Nothing(Diverged::Other { .. }))));
        assert!(resume.is_open());
        assert_eq!(resume.begin(&at(120, 8)), Ok(Decision::Complete(Some(4))));
        assert!(!resume.is_open());
        assert_eq!(start().passed(&place(119)), Ok(None));
        assert_eq!(start().passed(&place(200)), Ok(Some(at(120, 8))));
    }

    #[test]
    fn another_server_is_told_by_what_it_sends() {
        let start = || Resume::new(&tail(Some(at(100, 7)), 150, None), place(50), place(500)).unwrap();
        assert!(
            matches!(start().begin(&at(100, 9)), Err(Diverged::Other { .. })),
            "same place, another transaction"
        );
        assert!(matches!(start().begin(&at(160, 9)), Err(Diverged::Missing(_))), "sent past it");
        assert!(matches!(start().passed(&place(160)), Err(Diverged::Missing(_))), "passed it");
        let mut resume = start();
        assert_eq!(resume.begin(&at(100, 7)), Ok(Decision::Skip));
        assert!(
            matches!(resume.begin(&at(120, 8)), Ok(Decision::Nothing(Diverged::Other { .. }))),
            "the log says nothing is there"
        );
    }

    #[test]
    fn of_a_tail_that_is_gone_the_last_transaction_is_proven_and_appended_again() {
        let gone = |last| Tail { gone: true, ..tail(last, 150, None) };
        let start = || Resume::new(&gone(Some(at(100, 7))), place(50), place(500)).unwrap();
        let mut resume = start();
        assert_eq!(resume.begin(&at(60, 5)), Ok(Decision::Append));
        assert!(!resume.is_proven());
        assert_eq!(resume.begin(&at(100, 7)), Ok(Decision::Append));
        assert!(resume.is_proven());
        assert!(
            matches!(resume.begin(&at(120, 8)), Ok(Decision::Nothing(Diverged::Other { .. }))),
            "the checkpoint says that nothing is there"
        );
        assert_eq!(resume.begin(&at(150, 9)), Ok(Decision::Append));
        assert!(matches!(start().begin(&at(100, 9)), Err(Diverged::Other { .. })), "another in its place");
        assert!(matches!(start().begin(&at(120, 8)), Err(Diverged::Missing(_))), "sent past it");
        assert!(matches!(start().passed(&place(120)), Err(Diverged::Missing(_))), "passed it");
        assert!(matches!(
            Resume::new(&gone(None), place(50), place(149)),
            Err(Diverged::ServerBehind { .. })
        ));
    }

    #[test]
    fn of_a_tail_that_is_gone_nothing_is_asked_that_a_healthy_server_lacks() {
        let gone = |last| Tail { gone: true, ..tail(last, 150, None) };
        let start = |last, confirmed| Resume::new(&gone(last), place(confirmed), place(500)).unwrap();
        // The slot confirmed the last transaction, the place behind it, or what came after the checkpoint.
        for confirmed in [108, 150, 300] {
            let mut resume = start(Some(at(100, 7)), confirmed);
            assert!(resume.is_proven(), "{confirmed}");
            assert_eq!(resume.begin(&at(310, 9)), Ok(Decision::Append));
            assert_eq!(resume.passed(&place(400)), Ok(None));
        }
        // A checkpoint that knows of no transaction.
        let mut resume = start(None, 50);
        assert!(resume.is_proven());
        assert_eq!(resume.begin(&at(100, 7)), Ok(Decision::Append));
    }

    #[test]
    fn a_slot_or_server_that_cannot_be_ours_is_refused_at_once() {
        let tail = tail(None, 100, None);
        assert!(matches!(Resume::new(&tail, place(101), place(500)), Err(Diverged::SlotAhead { .. })));
        assert!(matches!(Resume::new(&tail, place(50), place(99)), Err(Diverged::ServerBehind { .. })));
        assert!(Resume::new(&tail, place(100), place(100)).is_ok());
    }
}
