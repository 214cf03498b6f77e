//! What one road writes on the board: its state, and its figures.

use std::{
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    Figure, History, Tally,
    clocks::{Between, Clocks},
};
use crate::{
    clock,
    fault::{Code, Fault},
    lsn::Lsn,
    names,
    position::Sequence,
    progress::Heartbeat,
    region::Region,
    stamp::Micros,
};

/// What a road is doing.
///
/// ```text
/// Starting ──▶ Running ◀──▶ Retrying ──▶ Halted
///    └──▶ Standby ──▶ Starting             └──▶ Starting, once a person has acted
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Connecting, checking, reading where to go on.
    Starting,
    /// Moving, or ready to.
    Running,
    /// Another daemon does this work; this one takes over when that one is gone.
    Standby {
        /// Since when.
        since: Micros,
        /// Who holds it.
        why: String,
    },
    /// Something went wrong that may heal.
    Retrying {
        /// What was being done and what stood in the way.
        fault: String,
        /// Its code.
        code: Code,
        /// What a person does about it, should it not heal.
        remedy: String,
        /// The attempt that failed, counted from 1.
        attempt: u32,
    },
    /// Stopped until a person has acted.
    Halted {
        /// Its code.
        code: Code,
        /// What was being done and what stood in the way.
        message: String,
        /// What a person does about it.
        remedy: String,
    },
}

impl State {
    /// Every name a state can have.
    pub const NAMES: [&str; 5] = ["starting", "running", "standby", "retrying", "halted"];

    /// The state after a fault that may heal.
    pub fn retrying(fault: &Fault, attempt: u32) -> Self {
        let remedy = fault.remedy().to_owned();
        Self::Retrying { fault: fault.message(), code: fault.code(), remedy, attempt }
    }

    /// The state after a fault that only a person mends.
    pub fn halted(fault: &Fault) -> Self {
        Self::Halted { code: fault.code(), message: fault.message(), remedy: fault.remedy().to_owned() }
    }

    /// The state of one who waits for another daemon to be gone.
    pub fn standby(why: impl Into<String>) -> Self {
        Self::Standby { since: clock::now(), why: why.into() }
    }

    /// As printed in metrics and status.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Standby { .. } => "standby",
            Self::Retrying { .. } => "retrying",
            Self::Halted { .. } => "halted",
        }
    }

    /// The code of what went wrong, where something did.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Starting | Self::Running | Self::Standby { .. } => None,
            Self::Retrying { code, .. } | Self::Halted { code, .. } => Some(*code),
        }
    }
}

/// What went wrong last, though it may be over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastError {
    /// Its code.
    pub code: Code,
    /// What was being done and what stood in the way.
    pub message: String,
    /// When it was met; of one that was met again and again, the last time.
    pub at: Micros,
}

/// A state, since when a road has been in it, and what it has carried.
#[derive(Debug)]
pub struct StateEntry {
    road: String,
    now: Mutex<(State, Micros)>,
    /// The last fault.
    pub last_error: Figure<LastError>,
    /// Changes carried since the daemon began.
    pub changes: Tally,
    /// How it stood in the last minutes.
    pub history: History,
}

impl StateEntry {
    fn new(road: String) -> Self {
        Self {
            road,
            now: Mutex::new((State::Starting, clock::now())),
            last_error: Figure::default(),
            changes: Tally::default(),
            history: History::default(),
        }
    }

    /// Changes the state. A transition is logged here and nowhere else; another attempt at what
    /// failed for the same code is none.
    pub fn set(&self, state: State) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let moved = now.0.name() != state.name() || now.0.code() != state.code();
        let road = self.road.as_str();
        match &state {
            _ if !moved => tracing::debug!(road, state = ?state, "still"),
            State::Starting => tracing::info!(road, "starting"),
            State::Running => tracing::info!(road, "running"),
            State::Standby { why, .. } => tracing::info!(road, why, "standing by"),
            State::Retrying { fault, code, remedy, attempt } => {
                tracing::warn!(road, %code, attempt, next = remedy, "{fault}");
            }
            State::Halted { code, message, remedy } => {
                tracing::error!(road, %code, next = remedy, "halted: {message}");
            }
        }
        let at = clock::now();
        if let State::Retrying { code, fault: message, .. } | State::Halted { code, message, .. } = &state {
            self.last_error.set(LastError { code: *code, message: message.clone(), at });
        }
        let since = if moved { at } else { now.1 };
        *now = (state, since);
    }

    /// The road's name, as in logs: `source us-east-1`, `link us-east-1/main`.
    pub fn road(&self) -> &str {
        &self.road
    }

    /// The state now.
    pub fn state(&self) -> State {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Since when.
    pub fn state_since(&self) -> Micros {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

/// How a slot stood when it was last looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Slot {
    /// The log it keeps the server from removing.
    pub retained_bytes: Option<u64>,
    /// What may still be written before it is in danger; unknown where the server sets no limit.
    pub safe_bytes: Option<u64>,
    /// When that will be used up at the present rate of writing.
    pub seconds_to_invalidation: Option<f64>,
}

/// A slot is known for so long after a look: twice what lies between two looks where whoever looked gives it up.
const SLOT_KNOWN: Duration = Duration::from_secs(20);
/// Two looks that lie closer together tell of no rate: a server moves what it keeps for a slot in steps, up to fifteen
/// seconds apart, and in between it looks as if all that is written were kept.
const RATE_MIN: Duration = Duration::from_secs(15);
/// Once there are looks so far back, the rate is taken over so long at least, and twice that at most.
const RATE_OVER: Duration = Duration::from_secs(120);

/// The source's place on the board.
#[derive(Debug)]
pub struct SourceEntry {
    entry: StateEntry,
    region: Region,
    stream: OnceLock<String>,
    /// Up to where the database's log has been read.
    pub captured: Figure<Lsn>,
    /// Up to where the database was told that it may release its log.
    pub confirmed: Figure<Lsn>,
    /// What was seen of the slot, and when.
    slot: Figure<(Slot, Instant)>,
    /// What might still be written at two earlier looks: a rate is told from the first to now.
    written: Figure<[(u64, Instant); 2]>,
    /// The last record given to Kafka.
    pub appended: Figure<Sequence>,
    /// The last record Kafka has acknowledged, with all before it.
    pub acked: Figure<Sequence>,
    /// How full the queue to Kafka is, 0 to 1.
    pub queue_fill: Figure<f64>,
    /// How long the last transaction took from its commit until it was read.
    pub read_seconds: Figure<f64>,
    /// How long it then took until Kafka had acknowledged it.
    pub buffer_seconds: Figure<f64>,
    /// When a record was last acknowledged.
    pub last_append: Figure<Micros>,
    /// What is to be warned of at the server: tables in scope that are not published, or should not be as they are.
    pub warnings: Figure<Vec<String>>,
    /// And what they should know of the topic beside the stream's, where it takes nothing.
    pub unkept: Figure<String>,
}

impl SourceEntry {
    pub(super) fn new(region: Region) -> Self {
        Self {
            entry: StateEntry::new(format!("source {region}")),
            region,
            stream: OnceLock::new(),
            captured: Figure::default(),
            confirmed: Figure::default(),
            slot: Figure::default(),
            written: Figure::default(),
            appended: Figure::default(),
            acked: Figure::default(),
            queue_fill: Figure::default(),
            read_seconds: Figure::default(),
            buffer_seconds: Figure::default(),
            last_append: Figure::default(),
            warnings: Figure::default(),
            unkept: Figure::default(),
        }
    }

    /// The region whose changes it reads: the daemon's own.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Says which stream it writes; only the first word counts.
    pub fn name_stream(&self, stream: &str) {
        self.stream.get_or_init(|| stream.to_owned());
    }

    /// The stream it writes.
    pub fn stream(&self) -> &str {
        self.stream.get().map_or(names::STREAM, String::as_str)
    }

    /// The slot was looked at, `now`: the log it retains, and what may still be written where the server sets a limit.
    pub fn see_slot(&self, retained_bytes: Option<u64>, safe_bytes: Option<u64>, now: Instant) {
        let before = safe_bytes.and(self.written.get());
        let seconds_to_invalidation = safe_bytes.zip(before).and_then(|(safe, [(before, at), _])| {
            let passed = now.duration_since(at);
            let rate = before.saturating_sub(safe) as f64 / passed.as_secs_f64();
            (passed >= RATE_MIN && rate > 0.0).then(|| safe as f64 / rate)
        });
        let looks = safe_bytes.map(|safe| match before {
            None => [(safe, now); 2],
            Some([_, last]) if now.duration_since(last.1) >= RATE_OVER => [last, (safe, now)],
            Some(looks) => looks,
        });
        self.written.replace(looks);
        self.slot.set((Slot { retained_bytes, safe_bytes, seconds_to_invalidation }, now));
    }

    /// When the slot was last looked at; never, where nobody has.
    pub fn slot_seen(&self) -> Option<Instant> {
        self.slot.get().map(|(_, at)| at)
    }

    /// What a person should know though nothing has stopped.
    pub fn warned_of(&self) -> Vec<String> {
        self.warnings.get().into_iter().flatten().chain(self.unkept.get()).collect()
    }

    /// How the slot stands. Unknown once nobody has been able to look for a while, whatever keeps them from it.
    pub fn slot(&self, now: Instant) -> Slot {
        let seen = self.slot.get().filter(|(_, at)| now.duration_since(*at) <= SLOT_KNOWN);
        seen.map(|(slot, _)| slot).unwrap_or_default()
    }
}

impl std::ops::Deref for SourceEntry {
    type Target = StateEntry;

    fn deref(&self) -> &StateEntry {
        &self.entry
    }
}

/// A region that was filled is one that readers may see once no link of it lags more than this: as fresh as it will be
/// under load, whatever the line's latency.
const JOINED_LAG_SECONDS: f64 = 10.0;

/// A link's place on the board.
#[derive(Debug)]
pub struct LinkEntry {
    entry: StateEntry,
    from: Region,
    stream: String,
    /// The last record that is applied *and flushed*.
    pub applied: Figure<Sequence>,
    /// The source's position there, as text.
    pub position: Figure<String>,
    /// The last heartbeat that was applied.
    pub heartbeat: Figure<Heartbeat>,
    /// How old a heartbeat was at most when the next was applied, since somebody last asked.
    worst_lag_seconds: Figure<f64>,
    /// How long that heartbeat took until its log had it: through the source's database and daemon.
    pub source_seconds: Figure<f64>,
    /// How long it then took until it was read here: over the line. On two clocks, corrected as
    /// [`LinkEntry::lag_seconds`] is.
    pub line_seconds: Figure<f64>,
    /// How long it then took until it was applied and flushed.
    pub apply_seconds: Figure<f64>,
    /// How long, at the last look at the log, until retention deletes the first record this link still
    /// needs.
    pub headroom_seconds: Figure<f64>,
    /// When that look was.
    pub headroom_looked: Figure<Micros>,
    /// How long the topic keeps a record: what the head-room is of a link that keeps up.
    pub retention_seconds: Figure<f64>,
    /// How far the source's clock goes ahead of ours, in seconds: from heartbeats that came back. Unknown
    /// on a one-way link.
    pub clock_offset_seconds: Figure<f64>,
    /// What they have told of the two clocks. Kept over sessions: a link that has fallen behind learns nothing new.
    clocks: Figure<Clocks>,
    /// Where the topic ends.
    pub end_offset: Figure<i64>,
    /// How many records of the topic, by offset, this link has not applied.
    pub offset_lag: Figure<u64>,
    /// Whether a transaction larger than memory is open in the target.
    pub transaction_open: Figure<bool>,
    /// Transactions that are parked.
    pub parked: Figure<usize>,
    /// Tables that a backfill is filling and has not ended.
    filling: Figure<usize>,
    /// A backfill has filled tables, and the link has not caught up since.
    catching_up: AtomicBool,
}

impl LinkEntry {
    pub(super) fn new(from: Region, stream: &str) -> Self {
        Self {
            entry: StateEntry::new(format!("link {from}/{stream}")),
            from,
            stream: stream.to_owned(),
            applied: Figure::default(),
            position: Figure::default(),
            heartbeat: Figure::default(),
            worst_lag_seconds: Figure::default(),
            source_seconds: Figure::default(),
            line_seconds: Figure::default(),
            apply_seconds: Figure::default(),
            headroom_seconds: Figure::default(),
            headroom_looked: Figure::default(),
            retention_seconds: Figure::default(),
            clock_offset_seconds: Figure::default(),
            clocks: Figure::default(),
            end_offset: Figure::default(),
            offset_lag: Figure::default(),
            transaction_open: Figure::default(),
            parked: Figure::default(),
            filling: Figure::default(),
            catching_up: AtomicBool::new(false),
        }
    }

    /// The region the changes come from.
    pub fn from(&self) -> &Region {
        &self.from
    }

    /// The stream it reads.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// A beat came back, `now`.
    pub fn compare_clocks(&self, told: Between, now: Micros) {
        let clocks = match self.clocks.get() {
            Some(mut clocks) => {
                clocks.hear(told, now);
                clocks
            }
            None => Clocks::new(told, now),
        };
        self.clock_offset_seconds.replace(clocks.told());
        self.clocks.set(clocks);
    }

    /// What the target holds of the link, whoever has applied it, `now`: the last heartbeat, tables begun and not ended, and
    /// what is parked.
    pub fn stands(&self, heartbeat: Option<Heartbeat>, (joining, parked): (usize, usize), now: Micros) {
        if let Some(beat) = heartbeat
            && self.heartbeat.get().is_none_or(|known| known.sent < beat.sent)
        {
            self.heartbeat.set(beat);
        }
        self.parked.set(parked);
        self.fill(joining, now);
    }

    /// Another daemon applies: what was known of this one's place in the log tells nobody anything.
    pub fn stand_by(&self) {
        let times =
            [&self.headroom_seconds, &self.retention_seconds, &self.source_seconds, &self.line_seconds];
        times.into_iter().chain([&self.apply_seconds]).for_each(Figure::forget);
        self.headroom_looked.forget();
        self.end_offset.forget();
        self.offset_lag.forget();
        self.transaction_open.forget();
    }

    /// A heartbeat was applied and flushed, `now`.
    pub fn beat(&self, beat: Heartbeat, now: Micros) {
        if let Some(lag) = self.lag_seconds(now) {
            let worst = self.worst_lag_seconds.get().map_or(lag, |worst| worst.max(lag));
            self.worst_lag_seconds.set(worst);
        }
        let offset = self.clocks.get().map_or(0.0, |clocks| clocks.offset());
        if let Some(appended) = beat.appended {
            self.source_seconds.set(appended.seconds_since(beat.sent).max(0.0));
            self.line_seconds.set((beat.arrived.seconds_since(appended) + offset).max(0.0));
        }
        self.apply_seconds.set(now.seconds_since(beat.arrived).max(0.0));
        self.heartbeat.set(beat);
        self.see_whether_joined(now);
    }

    /// The most the lag has been since this was last asked: between two heartbeats it rises by the time
    /// between them, and whoever looks once a second would else see any part of that, or always the same.
    pub fn take_worst_lag(&self, now: Micros) -> Option<f64> {
        let worst = self.worst_lag_seconds.get();
        self.worst_lag_seconds.forget();
        let lag = self.lag_seconds(now);
        if worst > lag { worst } else { lag }
    }

    /// So many tables are being filled by a backfill, `now`.
    pub fn fill(&self, tables: usize, now: Micros) {
        self.filling.set(tables);
        if tables > 0 {
            self.catching_up.store(true, Ordering::Relaxed);
        } else {
            self.see_whether_joined(now);
        }
    }

    fn see_whether_joined(&self, now: Micros) {
        // Between two clocks that differ nobody knows the lag over a single link; that nothing is left to apply, one does.
        let close = self.lag_seconds(now).is_some_and(|lag| lag <= JOINED_LAG_SECONDS)
            || self.offset_lag.get() == Some(0);
        if close && self.filling.get() == Some(0) {
            self.catching_up.store(false, Ordering::Relaxed);
        }
    }

    /// Why the region is none that readers may see yet: nobody has looked; it has nothing of the stream; tables have been
    /// begun here, by a backfill or a recovery, and not ended; or they have, and what was written meanwhile is still to
    /// come. The last is not kept beyond the process.
    pub fn joining(&self) -> Option<String> {
        match self.filling.get() {
            Some(tables) if tables > 0 => Some(format!(
                "{tables} tables still to fill, or to compare: where no backfill or recovery is under way, ask for it again"
            )),
            _ if self.catching_up.load(Ordering::Relaxed) => Some(format!(
                "its tables are filled or compared; what was written meanwhile comes, to within {JOINED_LAG_SECONDS} s"
            )),
            None => Some("whether tables are still to be filled has not been read yet".to_owned()),
            _ if matches!(self.state(), State::Halted { code: Code::GenesisGone, .. }) => Some(
                "nothing of the stream is here, and its beginning is gone: a backfill fills this region"
                    .to_owned(),
            ),
            _ => None,
        }
    }

    /// Whether it is; none while nobody has looked.
    pub fn is_joining(&self) -> Option<bool> {
        self.filling.get().map(|_| self.joining().is_some())
    }

    /// How old the last applied heartbeat is: what the target shows is at least as new as the source
    /// was then. None before the first. Its time is on the source's clock: corrected by the offset
    /// between the two where heartbeats come back, else taken as it is; never negative.
    pub fn lag_seconds(&self, now: Micros) -> Option<f64> {
        let offset = self.clocks.get().map_or(0.0, |clocks| clocks.offset());
        self.heartbeat.get().map(|beat| (now.seconds_since(beat.sent) + offset).max(0.0))
    }

    /// How long until retention deletes the first record this link still needs. Over a cut line nobody
    /// can look, and retention goes on all the same: what the last look left has aged since then.
    pub fn headroom_seconds_at(&self, now: Micros) -> Option<f64> {
        let aged = self.headroom_looked.get().map_or(0.0, |looked| now.seconds_since(looked).max(0.0));
        self.headroom_seconds.get().map(|left| left - aged)
    }
}

impl std::ops::Deref for LinkEntry {
    type Target = StateEntry;

    fn deref(&self) -> &StateEntry {
        &self.entry
    }
}
