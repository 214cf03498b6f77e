//! The board between the two roads: the data roads write on it what they do, control and the HTTP
//! listener read it. It holds states and figures, never a row, and nobody waits at it.
//!
//! A figure that nobody has written yet is unknown, not 0: see [`Figure`].

mod clocks;
mod entry;
mod figure;
mod history;

use std::sync::{
    Arc, Mutex, OnceLock, PoisonError,
    atomic::{AtomicBool, Ordering},
};

pub use clocks::Between;
pub use entry::{LastError, LinkEntry, Slot, SourceEntry, State, StateEntry};
pub use figure::{Figure, Tally};
pub use history::{HISTORY_SECONDS, History, Sample};

use crate::{fault::Fault, region::Region};

/// Whether users may be sent here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They may, as far as this daemon is concerned.
    Active,
    /// A backfill is filling this region: it does not hold all its rows yet.
    Joining,
    /// The daemon was told to end, or its own database does not answer.
    Draining,
}

impl Mode {
    /// As printed in health and status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Joining => "joining",
            Self::Draining => "draining",
        }
    }
}

/// Whether this region's own database answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseHealth {
    /// Nobody has asked it yet.
    Unasked,
    /// It answered the last time.
    Healthy,
    /// It did not, for this reason.
    Unhealthy(String),
}

/// What every road of this daemon is doing.
#[derive(Debug)]
pub struct Roster {
    region: Region,
    source: OnceLock<Arc<SourceEntry>>,
    links: Mutex<Vec<Arc<LinkEntry>>>,
    database: Mutex<DatabaseHealth>,
    ending: AtomicBool,
}

impl Roster {
    /// An empty board for the daemon of `region`.
    pub fn new(region: Region) -> Self {
        Self {
            region,
            source: OnceLock::new(),
            links: Mutex::default(),
            database: Mutex::new(DatabaseHealth::Unasked),
            ending: AtomicBool::new(false),
        }
    }

    /// The daemon's region.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// The source's place on the board, made where there is none yet.
    pub fn source(&self) -> Arc<SourceEntry> {
        self.source.get_or_init(|| Arc::new(SourceEntry::new(self.region.clone()))).clone()
    }

    /// The source's place, where this daemon has a source.
    pub fn find_source(&self) -> Option<Arc<SourceEntry>> {
        self.source.get().cloned()
    }

    /// A link's place on the board, made where there is none yet.
    pub fn link(&self, from: &Region, stream: &str) -> Arc<LinkEntry> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.iter().find(|link| link.from() == from && link.stream() == stream) {
            return link.clone();
        }
        let link = Arc::new(LinkEntry::new(from.clone(), stream));
        links.push(link.clone());
        link
    }

    /// Every link's place, in the order they were made.
    pub fn links(&self) -> Vec<Arc<LinkEntry>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the state of the road of that name, for the owner of its task: a road that broke cannot
    /// say so itself. Does nothing where it has said that it halted.
    pub fn halt(&self, road: &str, fault: &Fault) {
        let source = self.find_source();
        let links = self.links();
        let entries = source.iter().map(|source| &***source).chain(links.iter().map(|link| &***link));
        for entry in entries.filter(|entry| entry.road() == road) {
            if !matches!(entry.state(), State::Halted { .. }) {
                entry.set(State::halted(fault));
            }
        }
    }

    /// Draining from [`Roster::set_draining`] on, and while the database does not answer; joining while a backfill has
    /// begun tables and not ended them, or has and left the link behind.
    pub fn mode(&self) -> Mode {
        let well = *self.database.lock().unwrap_or_else(PoisonError::into_inner) == DatabaseHealth::Healthy;
        if !well || self.is_ending() {
            Mode::Draining
        } else if self.links().iter().any(|link| link.joining().is_some()) {
            Mode::Joining
        } else {
            Mode::Active
        }
    }

    /// The daemon was told to end. There is no way back.
    pub fn set_draining(&self) {
        self.ending.store(true, Ordering::Release);
    }

    /// Whether the daemon was told to end.
    pub fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// What the last question to the database brought; a change is logged here.
    pub fn database_healthy(&self, healthy: bool, error: &str) {
        let found =
            if healthy { DatabaseHealth::Healthy } else { DatabaseHealth::Unhealthy(error.to_owned()) };
        let mut database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let was_unwell = matches!(*database, DatabaseHealth::Unhealthy(_));
        match &found {
            DatabaseHealth::Healthy if *database != found => tracing::info!("the database answers"),
            DatabaseHealth::Unhealthy(error) if !was_unwell => {
                tracing::warn!(%error, "the database does not answer; not ready until it does");
            }
            _ => (),
        }
        *database = found;
    }

    /// Whether the database answers.
    pub fn database(&self) -> DatabaseHealth {
        self.database.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::{
        fault::{Code, Fault},
        progress::Heartbeat,
        stamp::Micros,
    };

    fn roster() -> Roster {
        Roster::new("eu-west-1".parse().unwrap())
    }

    #[test]
    fn the_mode_is_active_only_while_the_database_answers_and_nobody_asked_us_to_end() {
        let roster = roster();
        assert_eq!(roster.mode(), Mode::Draining);
        roster.database_healthy(true, "");
        assert_eq!(roster.mode(), Mode::Active);
        roster.database_healthy(false, "refused");
        assert_eq!(roster.mode(), Mode::Draining);
        assert_eq!(roster.database(), DatabaseHealth::Unhealthy("refused".into()));
        roster.database_healthy(true, "");
        let link = roster.link(&"us-east-1".parse().unwrap(), "main");
        assert_eq!(roster.mode(), Mode::Joining, "nobody has looked yet");
        link.fill(0, Micros(0));
        assert_eq!(roster.mode(), Mode::Active);
        link.fill(2, Micros(0));
        assert_eq!(roster.mode(), Mode::Joining);
        link.fill(0, Micros(0));
        assert_eq!(roster.mode(), Mode::Joining);
        let at = |seconds: i64| Micros(seconds * 1_000_000);
        let beat = |sent| Heartbeat { sent: at(sent), appended: None, arrived: at(sent) };
        link.beat(beat(100), at(111));
        assert_eq!(roster.mode(), Mode::Joining);
        link.beat(beat(110), at(112));
        assert_eq!(roster.mode(), Mode::Active);
        roster.set_draining();
        assert_eq!(roster.mode(), Mode::Draining);
    }

    #[test]
    fn an_entry_is_made_once() {
        let roster = roster();
        assert!(roster.find_source().is_none());
        let from = "us-east-1".parse().unwrap();
        assert!(Arc::ptr_eq(&roster.source(), &roster.source()));
        assert!(Arc::ptr_eq(&roster.link(&from, "main"), &roster.link(&from, "main")));
        assert!(!Arc::ptr_eq(&roster.link(&from, "main"), &roster.link(&from, "eu")));
        assert_eq!(roster.links().len(), 2);
    }

    #[test]
    fn lag_is_unknown_before_the_first_heartbeat_and_grows_while_none_is_applied() {
        let link = roster().link(&"us-east-1".parse().unwrap(), "main");
        assert_eq!(link.lag_seconds(Micros(9_000_000)), None);
        link.heartbeat.set(Heartbeat { sent: Micros(1_000_000), appended: None, arrived: Micros(1_100_000) });
        assert_eq!(link.lag_seconds(Micros(1_500_000)), Some(0.5));
        assert_eq!(link.lag_seconds(Micros(9_000_000)), Some(8.0));
        assert_eq!(link.lag_seconds(Micros(500_000)), Some(0.0), "a clock behind ours is no negative lag");
    }

    #[test]
    fn a_slot_that_nobody_looks_at_is_not_known() {
        let source = roster().source();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!((source.slot(start), source.slot_seen()), (Slot::default(), None));
        source.see_slot(Some(10_000), Some(8_000), start);
        let slot = Slot { retained_bytes: Some(10_000), safe_bytes: Some(8_000), ..Slot::default() };
        assert_eq!(source.slot(start), slot, "one look tells no rate");
        source.see_slot(Some(11_000), Some(7_000), at(2));
        assert_eq!(source.slot(at(2)).seconds_to_invalidation, None, "too soon to tell a rate");
        source.see_slot(Some(12_000), Some(6_000), at(20));
        assert_eq!(source.slot(at(25)).seconds_to_invalidation, Some(60.0));
        assert_eq!(source.slot(at(40)).retained_bytes, Some(12_000));
        assert_eq!(source.slot(at(41)), Slot::default());
        for look in 20..300 {
            source.see_slot(Some(12_000), Some(6_000), at(look));
        }
        let slot = Slot { retained_bytes: Some(12_000), safe_bytes: Some(6_000), ..Slot::default() };
        assert_eq!(source.slot(at(300)), slot, "nothing is written any more");
        source.see_slot(None, None, at(302));
        assert_eq!((source.slot(at(302)), source.slot_seen()), (Slot::default(), Some(at(302))));
    }

    #[test]
    fn a_slot_that_releases_in_steps_what_it_kept_is_hardly_in_danger() {
        let source = roster().source();
        let start = Instant::now();
        for look in (0..3_600).step_by(2) {
            // A thousand bytes a second, of which all but the last steps are released.
            let kept = (look % 15) * 1_000;
            let at = start + Duration::from_secs(look);
            source.see_slot(Some(kept), Some(10_000_000 - kept), at);
            // It would take ten thousand seconds, were nothing released.
            let left = source.slot(at).seconds_to_invalidation;
            assert!(look < 240 || left.is_none_or(|left| left > 80_000.0), "{left:?} after {look} s");
        }
    }

    #[test]
    fn a_state_is_made_from_a_fault() {
        let fault = Fault::new(Code::SlotLost, "open slot `s`");
        let source = roster().source();
        assert_eq!(source.state(), State::Starting);
        source.set(State::halted(&fault));
        let State::Halted { code, message, remedy } = source.state() else { panic!("not halted") };
        assert_eq!((code, message.as_str()), (Code::SlotLost, "open slot `s`"));
        assert_eq!(remedy, Code::SlotLost.remedy());
    }
}
