//! One session of delivering: from taking hold of the target to the first fault, or the stop.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout, timeout_at},
};

use super::{
    DeliverParams,
    assemble::{Assembler, Output},
    conflict_of,
    locate::locate,
    verify::{self, Meeting},
};
use crate::{
    changelog::{Bounds, Entry, Log, Reader},
    clock,
    envelope::{
        Broken, Tracker, Verdict,
        body::{self, Barrier, Start},
    },
    fault::{Code, Fault, Result},
    metrics::{DeliverMeter, Metrics},
    position::{Offset, Position, Sequence, WriterEpoch},
    progress::{Arrival, Cursor, Heartbeat, Progress},
    roster::{Between, LinkEntry, State},
    sink::{Applied, Batch, Claim, Inspector, Sink, Step},
    stamp::Micros,
    task::{self, Stop},
};

/// How often the log is looked at: partitions, and what retention is about to take.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// And how often it is asked how long it keeps a record: somebody may give the links more time. Each answer takes
/// connections of its own.
const RETENTION_INTERVAL: Duration = Duration::from_secs(55);
/// How often, at least, what is flushed is asked for, and the target shown that this sink lives.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// How soon what was committed is flushed where no batch follows: what is told to others is older by so much,
/// and an idle target's disk is not asked more often.
const FLUSH_SOON: Duration = Duration::from_millis(20);
/// How long a target may take to roll a transaction back that nothing more comes of for now.
const ABANDON_TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is asked, while something is parked, whether somebody wants something done with it.
const ATTEND_INTERVAL: Duration = Duration::from_secs(1);
/// The same where there was no time for all of it: the stream has a turn in between.
const ATTEND_SOON: Duration = Duration::from_millis(100);

pub(super) async fn run<L: Log, S: Sink, I: Inspector>(
    params: &DeliverParams,
    log: &Arc<L>,
    (sink, inspector): (&mut S, &mut I),
    entry: &Arc<LinkEntry>,
    metrics: &Metrics,
    stop: Stop,
    ran: &mut bool,
) -> Result<()> {
    // Before anything is claimed: while the log is out of reach there is nothing to apply.
    log.bounds().await?;
    let claim = sink.claim().await?;
    entry.fill(claim.joining, clock::now());
    entry.parked.set(claim.parked);
    let (from, start) = locate(log.as_ref(), claim.progress.as_ref(), (&params.here, claim.recovers)).await?;
    let reader = log.reader(from)?;
    let (give, take) = mpsc::channel(1);
    let meter = metrics.deliver(&params.from, &params.stream);
    let seen = Arc::new(Seen::new());
    // Where it is begun in its middle, whatever place it is begun from: that may be one that the log has lost.
    let applied = claim.progress.as_ref().map_or(Offset(0), |progress| Offset(progress.through.offset.0 + 1));
    let next = start.as_ref().map_or(applied, |start| start.offset);
    let next = Arc::new(AtomicI64::new(next.0));
    let reading = Reading::new(params, reader, claim.clone(), start, meter.clone(), give, Arc::clone(&seen));
    let reading = Guarded(task::spawn("link reader", reading.run()));
    let (look, watched) = mpsc::channel(1);
    let retention = log.retention().await?;
    let watching = watch(Arc::clone(log), Arc::clone(&next), retention, look);
    let _watching = Guarded(task::spawn("link watch", watching));
    let meeting = &Meeting::default();
    let mut applying = Applying {
        meeting,
        params,
        sink,
        log: log.as_ref(),
        entry,
        meter,
        take,
        open_since: None,
        untold: VecDeque::new(),
        watched,
        appended: None,
        seen,
        moving: false,
        next,
        metrics,
        ran,
        attend_at: (claim.parked > 0).then(Instant::now),
    };
    applying.show(claim.progress.as_ref());
    entry.retention_seconds.replace(retention.map(|kept| kept.as_secs_f64()));
    let meter = metrics.verify(&params.from, &params.stream);
    let outcome = tokio::select! {
        outcome = applying.run(stop) => outcome,
        never = verify::run(params, log.as_ref(), inspector, meeting, meter) => match never {},
    };
    // Wherever it was: a transaction left open would keep the target from cleaning up, and others from their rows. Where it
    // cannot be told to end, its session is given up.
    inspector.let_go();
    if outcome.is_err() && applying.open_since.is_some() {
        let _ = timeout(ABANDON_TIMEOUT, applying.sink.abandon()).await;
    }
    let outcome = match outcome {
        // The reader went away: it knows why.
        Err(fault) if fault.code() == Code::Stopping => reading.join().await,
        outcome => outcome,
    };
    outcome.map_err(|fault| fault.at(format_args!("link from {} ({})", params.from, params.stream)))
}

/// A task that ends with its owner.
struct Guarded(JoinHandle<Result<()>>);

impl Guarded {
    /// What it ended with; a panic is a fault of ours.
    async fn join(mut self) -> Result<()> {
        let broken = |error| Fault::new(Code::Internal, "the reader's task broke").because(error);
        (&mut self.0).await.unwrap_or_else(|error| Err(broken(error)))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A look at the log.
struct Look {
    /// The first record that was not applied when the log was asked. The answer may wait before it is
    /// taken: to hold it against a later place would be to find the log too short.
    next: Offset,
    bounds: Result<Option<Bounds>>,
    /// How long the topic keeps a record, as it was last known.
    retention: Option<Duration>,
}

/// Asks for the log's bounds again and again. On a task of its own: over a cut line an answer takes
/// seconds, and applying does not wait for it.
async fn watch<L: Log>(
    log: Arc<L>,
    next: Arc<AtomicI64>,
    mut retention: Option<Duration>,
    seen: mpsc::Sender<Look>,
) -> Result<()> {
    let mut asked = Instant::now();
    let mut tick = tokio::time::interval(WATCH_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let next = Offset(next.load(Relaxed));
        let bounds = log.bounds().await;
        if bounds.is_ok() && asked.elapsed() >= RETENTION_INTERVAL {
            // Where there is no answer, what was known stays.
            retention = log.retention().await.unwrap_or(retention);
            asked = Instant::now();
        }
        if seen.send(Look { next, bounds, retention }).await.is_err() {
            return Ok(());
        }
    }
}

/// Reads records, decides which count, makes batches of them.
struct Reading<R> {
    reader: R,
    tracker: Option<Tracker>,
    /// The reader began at or before the place reached.
    catching_up: bool,
    /// That place, and who had written what was applied there.
    reached: Option<(Offset, WriterEpoch)>,
    assembler: Option<Assembler>,
    claim: Claim,
    params: DeliverParams,
    meter: DeliverMeter,
    give: mpsc::Sender<Read>,
    seen: Arc<Seen>,
}

/// What came of the log in this session, for whoever applies.
struct Seen {
    began: Instant,
    /// When the first record, which stands at or behind the place it began at, had been appended, in microseconds; 0
    /// before one came.
    oldest: AtomicI64,
    /// When the last one came, in milliseconds since the session began.
    last: AtomicU64,
}

impl Seen {
    fn new() -> Self {
        Self { began: Instant::now(), oldest: AtomicI64::new(0), last: AtomicU64::new(0) }
    }

    fn note(&self, first: &Entry) {
        let _ = self.oldest.compare_exchange(0, first.appended.0, Relaxed, Relaxed);
        let millis = self.began.elapsed().as_millis();
        self.last.store(u64::try_from(millis).unwrap_or(u64::MAX), Relaxed);
    }

    fn last(&self) -> Instant {
        self.began + Duration::from_millis(self.last.load(Relaxed))
    }
}

/// An output, and when the last record before it was appended.
struct Read {
    output: Output,
    appended: Micros,
    clocks: Option<Between>,
}

impl<R: Reader> Reading<R> {
    fn new(
        params: &DeliverParams,
        reader: R,
        claim: Claim,
        start: Option<Start>,
        meter: DeliverMeter,
        give: mpsc::Sender<Read>,
        seen: Arc<Seen>,
    ) -> Self {
        let applied = claim.progress.as_ref().map_or(Sequence(0), |at| at.through.sequence);
        // A start in the middle is of the log as it is.
        let reached = claim.progress.as_ref().filter(|_| start.is_none());
        let reached = reached.map(|at| (at.through.offset, at.through.epoch));
        let begun = match start {
            Some(start) => {
                tracing::info!(from = %params.from, sequence = %start.sequence, "the stream is begun where a backfill begins");
                Some((start.incarnation, cursor_before(&start)))
            }
            None => claim.progress.as_ref().map(|at| (at.incarnation, at.through)),
        };
        let tracker =
            begun.map(|(incarnation, cursor)| Tracker::new(incarnation, cursor.epoch, cursor.sequence));
        let assembler = begun.map(|(incarnation, cursor)| {
            let (shapes, here) = (claim.shapes.clone(), params.here.clone());
            Assembler::new(incarnation, cursor, applied, shapes, params.limits, here)
        });
        Self {
            reader,
            tracker,
            catching_up: true,
            reached,
            assembler,
            claim,
            params: params.clone(),
            meter,
            give,
            seen,
        }
    }

    async fn run(mut self) -> Result<()> {
        let mut appended = Micros::default();
        let give = self.give.clone();
        // A place that has waited long enough becomes due without another record.
        let mut due = tokio::time::interval(FLUSH_INTERVAL);
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let ready = self.assembler.as_ref().is_some_and(Assembler::is_ready);
            let full = self.assembler.as_ref().is_some_and(Assembler::is_full);
            tokio::select! {
                permit = give.reserve(), if ready => {
                    let Ok(permit) = permit else { return Ok(()) };
                    let Some(assembler) = &mut self.assembler else { continue };
                    if let Some(output) = assembler.give() {
                        let clocks = assembler.take_clocks();
                        permit.send(Read { output, appended, clocks });
                    }
                }
                _ = due.tick() => self.meter.received(self.reader.received()),
                entries = self.reader.read(), if !full || !ready => {
                    let entries = entries.map_err(|fault| match fault.code() {
                        // Looked at again from the start of a session, where the reason gets its name.
                        Code::RetentionPassed | Code::TopicLost => Fault::new(Code::KafkaRejected, fault.message()),
                        _ => fault,
                    })?;
                    if let Some(first) = entries.first() {
                        self.seen.note(first);
                    }
                    appended = entries.last().map_or(appended, |entry| entry.appended);
                    let now = clock::now();
                    for entry in entries {
                        self.take(entry, now)?;
                    }
                }
            }
        }
    }

    fn take(&mut self, entry: Entry, now: Micros) -> Result<()> {
        self.meter.bytes(entry.value.len() as u64);
        let offset = entry.offset;
        let header = entry
            .header
            .map_err(|error| Fault::new(Code::RecordCorrupt, format!("record at {offset}")).because(error))?;
        let begin = || Tracker::new(header.incarnation, WriterEpoch(0), Sequence(0));
        let tracker = self.tracker.get_or_insert_with(begin);
        let assembler = self.assembler.get_or_insert_with(|| {
            let cursor =
                Cursor { sequence: Sequence(0), epoch: WriterEpoch(0), offset: Offset(-1), position: None };
            Assembler::new(
                header.incarnation,
                cursor,
                cursor.sequence,
                self.claim.shapes.clone(),
                self.params.limits,
                self.params.here.clone(),
            )
        });
        let place = || format!("{} record {} at {offset}", header.kind, header.sequence);
        let verdict = tracker.place(&header, self.catching_up).map_err(|error| match error {
            Broken::Incarnation { .. } => Fault::new(Code::TopicLost, place()).because(error),
            Broken::Hole { last: Sequence(0), .. } => Fault::new(Code::GenesisGone, place()).because(error),
            Broken::Hole { .. } | Broken::Repeat { .. } | Broken::Epoch { .. } => {
                Fault::new(Code::SequenceBroken, place()).because(error)
            }
        })?;
        if let Some((reached, epoch)) = self.reached
            && offset <= reached
            && header.epoch > epoch
        {
            let message = format!(
                "{}: of writer epoch {}, where what was applied was of {}: the log has lost its end, and goes on otherwise",
                place(),
                header.epoch.0,
                epoch.0
            );
            return Err(Fault::new(Code::SequenceBroken, message));
        }
        match verdict {
            Verdict::Next => {
                self.catching_up = false;
                let arrival = Arrival { appended: entry.appended, fetched: now };
                assembler.take(&header, (offset, entry.more), &entry.value, arrival)
            }
            Verdict::Stale => {
                self.meter.stale_record();
                Ok(())
            }
            Verdict::Known => Ok(()),
            Verdict::Barrier => {
                let barrier: Barrier = body::from_value(&entry.value)
                    .map_err(|error| Fault::new(Code::RecordCorrupt, place()).because(error))?;
                assembler.barrier(&header, offset);
                match barrier.anchor {
                    Some(anchor) if anchor.next > tracker.sequence().next() => {
                        let reached = assembler.cursor().position;
                        if !reached.is_some_and(|reached| reached.covers(&anchor.after)) {
                            let reached = reached.map_or("nothing".to_owned(), |reached| reached.to_string());
                            let message = format!(
                                "retention took the stream's records {} to {} while its source was down; applied here: {reached}, needed: {}",
                                tracker.sequence().next(),
                                anchor.next,
                                anchor.after
                            );
                            return Err(Fault::new(Code::RetentionPassed, message));
                        }
                        tracker.anchor(&anchor);
                        assembler.anchored(anchor.next);
                        Ok(())
                    }
                    _ => Ok(()),
                }
            }
        }
    }
}

/// Applies batches, and tells what is flushed.
struct Applying<'a, S, L> {
    /// Where whoever verifies waits for answers.
    meeting: &'a Meeting,
    params: &'a DeliverParams,
    sink: &'a mut S,
    log: &'a L,
    entry: &'a LinkEntry,
    meter: DeliverMeter,
    take: mpsc::Receiver<Read>,
    /// Since when the open target transaction has waited for more.
    open_since: Option<Instant>,
    /// Committed, and not known to be flushed, oldest first. As many as commits between two flushes.
    untold: VecDeque<Untold>,
    /// What the log was when last looked at.
    watched: mpsc::Receiver<Look>,
    /// When the last record that was applied had been appended.
    appended: Option<Micros>,
    seen: Arc<Seen>,
    /// Something was applied in this session.
    moving: bool,
    /// The offset behind it, for the look at the log.
    next: Arc<AtomicI64>,
    metrics: &'a Metrics,
    /// Something of this session has been flushed.
    ran: &'a mut bool,
    /// When what is parked is attended to next; never, where nothing is.
    attend_at: Option<Instant>,
}

struct Untold {
    through: Cursor,
    heartbeat: Option<Heartbeat>,
    /// When each of the transactions applied was committed, and when it came.
    commits: Vec<(Micros, Arrival)>,
    /// When they were committed here.
    visible: Micros,
}

impl<S: Sink, L: Log> Applying<'_, S, L> {
    async fn run(&mut self, mut stop: Stop) -> Result<()> {
        let mut flush_at = Instant::now();
        loop {
            // A line may be so slow that the next slice takes longer: its records come all the same.
            let stalls = || {
                self.open_since
                    .map(|since| since.max(self.seen.last()) + self.params.open_transaction_timeout)
            };
            let stalled = stalls();
            tokio::select! {
                biased;
                () = stop.asked() => return self.finish().await,
                // Before what is read: under load there is always more of that.
                Some(look) = self.watched.recv() => self.look(look)?,
                () = until(self.attend_at), if self.attend_at.is_some() && self.open_since.is_none() => {
                    self.attend().await?;
                }
                read = self.take.recv() => match read {
                    Some(read) => {
                        self.apply(read).await?;
                        let within = if self.untold.is_empty() { FLUSH_INTERVAL } else { FLUSH_SOON };
                        flush_at = Instant::now() + within;
                    }
                    None => return Err(Fault::new(Code::Stopping, "the reader has ended")),
                },
                () = sleep_until(flush_at) => {
                    let flushed = self.sink.flush().await?;
                    self.tell(flushed);
                    flush_at = Instant::now() + FLUSH_INTERVAL;
                }
                () = until(stalled), if stalled.is_some() => {
                    if stalls() > stalled {
                        continue;
                    }
                    self.sink.abandon().await?;
                    let seconds = self.params.open_transaction_timeout.as_secs();
                    let message = format!("nothing more of an open transaction came for {seconds} s");
                    return Err(Fault::new(Code::TransactionStalled, message));
                }
            }
        }
    }

    async fn apply(&mut self, read: Read) -> Result<()> {
        if let Some(clocks) = read.clocks {
            self.entry.compare_clocks(clocks, clock::now());
        }
        let batch = match read.output {
            Output::Batch(batch) => batch,
            Output::Abandon => {
                self.open_since = None;
                self.entry.transaction_open.set(false);
                return self.sink.abandon().await;
            }
        };
        let open = batch.leaves_open();
        let applied = self.sink.apply(&batch).await?;
        self.open_since = open.then(Instant::now);
        let first = !std::mem::replace(&mut self.moving, true);
        if first && !open {
            // Not at the next look: whoever has mended what stopped it would be told of it still.
            self.entry.set(State::Running);
        }
        self.entry.transaction_open.set(open);
        if applied.redone {
            self.meter.redone_batch();
        }
        self.note_parked(&applied);
        self.count(&batch, &applied.aside);
        self.entry.fill(applied.joining, clock::now());
        if !open {
            self.appended = Some(read.appended);
            self.next.store(batch.through.offset.0 + 1, Relaxed);
            let ended = batch.steps.iter().filter(|step| step.frame.last && !is_aside(step, &applied.aside));
            let commits = ended.map(|step| (step.frame.head.time, step.arrival)).collect();
            let visible = clock::now();
            self.untold.push_back(Untold {
                through: batch.through,
                heartbeat: batch.heartbeat,
                commits,
                visible,
            });
        }
        self.tell(applied.flushed);
        if let Some(answer) = batch.steps.last().and_then(|step| step.answer.as_ref()) {
            self.meeting.pass(answer).await;
        }
        Ok(())
    }

    fn count(&mut self, batch: &Batch, aside: &[Position]) {
        let mut rows = 0;
        for step in batch.steps.iter().filter(|step| !is_aside(step, aside)) {
            for change in step.changes() {
                let shape = change.shape();
                rows += change.rows();
                self.meter.changes(&shape.schema, &shape.table, change.operation(), change.rows());
            }
        }
        self.entry.changes.add(rows);
    }

    /// Shows what is parked, and counts the conflicts among what was parked just now.
    fn note_parked(&mut self, applied: &Applied) {
        for fault in &applied.refused {
            if let Some(conflict) = conflict_of(fault) {
                self.metrics.conflict(conflict.kind.as_str(), "parked", &conflict.table);
            }
        }
        self.show_parked(applied.parked);
    }

    fn show_parked(&mut self, parked: usize) {
        self.entry.parked.set(parked);
        let soon = Instant::now() + ATTEND_INTERVAL;
        self.attend_at = (parked > 0).then(|| self.attend_at.unwrap_or(soon));
    }

    async fn attend(&mut self) -> Result<()> {
        let attended = self.sink.attend().await?;
        for replayed in &attended.replayed {
            let (shape, rows) = (&replayed.shape, replayed.rows);
            self.entry.changes.add(rows);
            self.meter.changes(&shape.schema, &shape.table, replayed.operation, rows);
        }
        self.attend_at = attended.more.then(|| Instant::now() + ATTEND_SOON);
        self.show_parked(attended.parked);
        Ok(())
    }

    /// Tells everyone else what is flushed.
    fn tell(&mut self, flushed: Sequence) {
        let mut told = None;
        while let Some(untold) = self.untold.front().filter(|untold| untold.through.sequence <= flushed) {
            self.meter.transactions(untold.commits.len() as u64);
            for (commit, arrival) in &untold.commits {
                self.meter.latency(untold.visible.seconds_since(*commit));
                self.meter.fetched(arrival.fetched.seconds_since(arrival.appended));
                self.meter.applied(untold.visible.seconds_since(arrival.fetched));
            }
            if let Some(heartbeat) = untold.heartbeat {
                self.entry.beat(heartbeat, clock::now());
            }
            told = Some(untold.through);
            self.untold.pop_front();
        }
        if let Some(through) = told {
            *self.ran = true;
            self.entry.applied.set(through.sequence);
            if let Some(position) = through.position {
                self.entry.position.set(position.to_string());
            }
            self.log.publish(Offset(through.offset.0 + 1));
        }
    }

    fn show(&self, progress: Option<&Progress>) {
        let Some(progress) = progress else { return };
        self.entry.applied.set(progress.through.sequence);
        if let Some(heartbeat) = progress.heartbeat {
            self.entry.heartbeat.set(heartbeat);
        }
        if let Some(position @ Position::Postgres(_)) = progress.through.position {
            self.entry.position.set(position.to_string());
        }
    }

    /// Looks whether the log is still one, and how long what is not applied yet will be kept.
    fn look(&mut self, look: Look) -> Result<()> {
        let (next, retention) = (look.next, look.retention);
        let bounds = match look.bounds {
            Ok(bounds) => bounds,
            // The reader goes on by itself when the line is back, or the topic's new leader knows where it ends.
            Err(fault) if matches!(fault.code(), Code::KafkaUnreachable | Code::KafkaRejected) => {
                self.entry.set(State::retrying(&fault, 1));
                return Ok(());
            }
            Err(fault) => return Err(fault),
        };
        let Some(bounds) = bounds else {
            // The next session names it, with what was applied.
            return Err(Fault::new(Code::KafkaRejected, "the topic does not exist any more"));
        };
        self.entry.end_offset.set(bounds.high.0);
        self.entry.offset_lag.set(bounds.high.0.saturating_sub(next.0).max(0).unsigned_abs());
        if next > bounds.high {
            return Err(Fault::new(
                Code::KafkaRejected,
                format!("the topic ends at {} behind {next}", bounds.high),
            ));
        }
        // A session that finds what stopped the one before is not running: it has yet to get past it.
        if self.moving || next == bounds.high {
            self.entry.set(State::Running);
        }
        let oldest = self.seen.oldest.load(Relaxed);
        let waiting_since = self.appended.or((oldest > 0).then_some(Micros(oldest)));
        let age = match waiting_since {
            Some(since) if next < bounds.high => clock::now().seconds_since(since),
            None if next < bounds.high => return Ok(()),
            _ => 0.0,
        };
        self.entry.retention_seconds.replace(retention.map(|kept| kept.as_secs_f64()));
        self.entry.headroom_seconds.replace(retention.map(|kept| kept.as_secs_f64() - age));
        self.entry.headroom_looked.set(clock::now());
        Ok(())
    }

    /// The batch in hand is applied already; an open transaction is read again by whoever comes next.
    async fn finish(&mut self) -> Result<()> {
        if self.open_since.is_some() {
            self.sink.abandon().await?;
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        if let Ok(flushed) = timeout_at(deadline, self.sink.flush()).await {
            self.tell(flushed?);
        }
        Ok(())
    }
}

/// Whether a step's changes were kept aside.
fn is_aside(step: &Step, aside: &[Position]) -> bool {
    !aside.is_empty() && aside.contains(&step.frame.head.position)
}

/// The place just before the one a stream may be begun at.
fn cursor_before(start: &Start) -> Cursor {
    Cursor {
        sequence: Sequence(start.sequence.0 - 1),
        epoch: start.epoch,
        offset: Offset(start.offset.0 - 1),
        position: None,
    }
}

/// Ready at once where it is time already: a timer would let a millisecond pass, in which what is less urgent comes first.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) if deadline <= Instant::now() => (),
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
