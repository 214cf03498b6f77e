//! One session of capturing: from taking hold of the slot to the first fault, or the stop.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt;

use super::{
    CaptureParams, FINISH,
    appender::Appender,
    resume::{Decision, Diverged, Resume, Tail},
    tail::{self, Checkpoint, OwnBarrier},
};
use crate::{
    change::{Change, Fingerprint, Ordered},
    changelog::{Log, Writer},
    clock,
    envelope::{
        Encoded, Encoder, Flags, Kind,
        body::{self, Abort, Anchor, Barrier, Beat, Commit, Echo, Genesis, HeartbeatBody, Idle, Schema},
    },
    fault::{Code, Fault, Result},
    metrics::{CaptureMeter, Metrics, QueueMeter},
    names,
    position::{Incarnation, Position, Sequence, WriterEpoch},
    roster::{Roster, SourceEntry, State},
    source::{Event, Keeper, Opened, Source},
    task::Stop,
};

/// An idle record at most so often. A few a second release an idle server's log soon enough, and let a
/// shutting down server go within a second.
const IDLE_INTERVAL: Duration = Duration::from_millis(200);
/// How often the slot, the publication and the log are looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// Events taken before acknowledgements are looked at again.
const GULP: usize = 256;

pub(super) async fn run<S: Source, L: Log>(
    params: &CaptureParams,
    source: &mut S,
    log: &L,
    roster: &Roster,
    metrics: &Metrics,
    stop: Stop,
    running: &mut bool,
) -> Result<()> {
    let entry = &roster.source();
    let (opened, mut keeper) = source.open().await?;
    let (appender, tail, epoch) = begin(params, log, &opened, &mut keeper).await?;
    let resume = Resume::new(&tail, opened.confirmed, opened.written).map_err(diverged)?;
    let through = tail.through.unwrap_or(opened.consistent);
    let mut capture = Capture {
        params,
        source,
        encoder: Encoder::new(&params.region, &params.database),
        incarnation: opened.incarnation,
        epoch,
        appender,
        resume,
        transaction: None,
        announced: HashSet::new(),
        encoded: Encoded::default(),
        seen: through,
        through,
        last: tail.last,
        idle_at: Instant::now(),
        checkpoint_at: Instant::now(),
        entry,
        meter: metrics.capture(),
        queue: metrics.queue("kafka"),
    };
    *running = true;
    let outcome = tokio::select! {
        outcome = capture.run(stop) => outcome,
        fault = keep(&mut keeper, params.heartbeat_interval, entry, roster) => Err(fault),
        fault = watch(log, entry) => Err(fault),
    };
    outcome.map_err(|fault| fault.at(format_args!("stream {} of {}", params.stream, params.region)))
}

/// Raises the writer epoch, puts the barrier, reads the tail up to it; begins the stream where it has
/// not begun.
async fn begin<L: Log, K: Keeper>(
    params: &CaptureParams,
    log: &L,
    opened: &Opened,
    keeper: &mut K,
) -> Result<(Appender<L::Writer>, Tail, WriterEpoch)> {
    log.ensure(!opened.live).await?;
    let lost = |what: String| {
        let topic = names::topic(&params.region, &params.stream);
        Fault::new(
            Code::TopicLost,
            format!("topic {topic}: {what}; stream incarnation {}", opened.incarnation),
        )
    };
    let bounds = log.bounds().await?.ok_or_else(|| lost("it does not exist".into()))?;
    let checkpoint: Option<Checkpoint> = match log.checkpoint().await? {
        Some(value) => Some(body::from_value(&value).map_err(|error| {
            Fault::new(Code::RecordCorrupt, "read the stream's checkpoint").because(error)
        })?),
        None => None,
    };
    let checkpoint = checkpoint.filter(|checkpoint| checkpoint.incarnation == opened.incarnation);
    if opened.live {
        match checkpoint {
            Some(at) if at.offset >= bounds.high => {
                let last = bounds.high.0 - 1;
                return Err(lost(format!(
                    "it ends at offset {last}, the stream reached {} at {} or later: gone is everything after {}",
                    at.sequence, at.offset, at.through
                )));
            }
            None if bounds.low == bounds.high && bounds.low.0 == 0 => {
                return Err(lost(format!("it is empty, the stream began at {}", opened.consistent)));
            }
            _ => (),
        }
    }
    let barrier = |anchor| {
        let server = opened.server.clone();
        body::to_value(&Barrier { server, time: clock::now(), anchor })
    };
    let mut above = checkpoint.map_or(WriterEpoch(0), |checkpoint| checkpoint.epoch);
    let (mut appender, end, epoch) = loop {
        let epoch = keeper.raise_epoch(above).await?;
        let mut appender =
            Appender::new(log.writer()?, opened.incarnation, epoch, Sequence(0), params.max_record_bytes);
        let value = barrier(None);
        appender.barrier(&value).await?;
        appender.settle().await?;
        crate::crash::point("capture.after_barrier");
        let own = OwnBarrier { value: &value, from: bounds.high };
        let end = tail::read(log, opened.incarnation, own, bounds, checkpoint).await.map_err(|fault| {
            // What a stream that has begun finds in place of itself has replaced it.
            if opened.live && fault.code() == Code::StreamForeign { lost(fault.message()) } else { fault }
        })?;
        if end.highest < epoch {
            break (appender, end, epoch);
        }
        // A server that was restored from a copy has forgotten the epochs it gave after it.
        above = end.highest;
    };
    appender.continue_after(end.sequence);
    if end.lost {
        // Retention took the tail. What the slot confirmed was in it; the sinks know whether they have it.
        let anchor = Anchor { after: opened.confirmed, next: end.sequence.next() };
        appender.barrier(&barrier(Some(anchor))).await?;
        appender.settle().await?;
        return Ok((appender, Tail { last: None, through: Some(opened.confirmed), open: None }, epoch));
    }
    if end.sequence == Sequence(0) {
        if opened.live {
            return Err(lost(format!(
                "it holds nothing of the stream, which began at {}",
                opened.consistent
            )));
        }
        let genesis = Genesis {
            region: params.region.to_string(),
            stream: params.stream.clone(),
            server: opened.server.clone(),
            database: params.database.clone(),
            consistent: opened.consistent,
            scope: opened.scope.clone(),
            time: clock::now(),
        };
        appender.append(Kind::Genesis, Flags::NONE, b"", &body::to_value(&genesis)).await?;
        appender.settle().await?;
        keeper.mark_live().await?;
        let tail = Tail { last: None, through: Some(opened.consistent), open: None };
        return Ok((appender, tail, epoch));
    }
    keeper.mark_live().await?;
    Ok((appender, end.tail, epoch))
}

fn diverged(error: Diverged) -> Fault {
    let code = match error {
        Diverged::SlotAhead { .. } => Code::SlotAhead,
        Diverged::ServerBehind { .. } | Diverged::Other { .. } | Diverged::Missing(_) => Code::ServerDiverged,
    };
    Fault::new(code, "hold the log's tail against the server").because(error)
}

/// Heartbeats, and a look at the slot and the publication; ends with the first fault.
async fn keep<K: Keeper>(keeper: &mut K, heartbeat: Duration, entry: &SourceEntry, roster: &Roster) -> Fault {
    let mut beat = tokio::time::interval(heartbeat);
    let mut inspect = tokio::time::interval(WATCH_INTERVAL);
    let mut safe_before: Option<(u64, Instant)> = None;
    loop {
        let outcome = tokio::select! {
            _ = beat.tick() => {
                let content = Beat { sent: clock::now(), echo: echoes(roster) };
                let content = serde_json::to_string(&content).expect("a beat has text keys and finite numbers");
                keeper.beat(&content).await
            }
            _ = inspect.tick() => keeper.inspect().await.map(|vitals| {
                entry.slot_retained_bytes.replace(vitals.retained_bytes);
                entry.slot_safe_bytes.replace(vitals.safe_bytes);
                entry.slot_seconds_to_invalidation.replace(vitals.safe_bytes.zip(safe_before).and_then(
                    |(safe, (before, at))| {
                        let rate = before.saturating_sub(safe) as f64 / at.elapsed().as_secs_f64();
                        (rate > 0.0).then(|| safe as f64 / rate)
                    },
                ));
                safe_before = vitals.safe_bytes.map(|safe| (safe, Instant::now()));
                entry.warnings.set(vitals.left_out);
            }),
        };
        if let Err(fault) = outcome {
            return fault;
        }
    }
}

/// The last beat of each peer, as it arrived here.
fn echoes(roster: &Roster) -> Vec<Echo> {
    let last =
        roster.links().into_iter().filter_map(|link| Some((link.from().to_string(), link.heartbeat.get()?)));
    last.map(|(region, beat)| Echo { region, sent: beat.sent, arrived: beat.arrived }).collect()
}

/// Looks whether the log is still the one written to; ends with the first fault that does not pass.
async fn watch<L: Log>(log: &L, entry: &SourceEntry) -> Fault {
    let mut tick = tokio::time::interval(WATCH_INTERVAL);
    let mut reached = None;
    let mut attempt = 0;
    loop {
        tick.tick().await;
        match log.bounds().await {
            Ok(Some(bounds)) if reached.is_some_and(|reached| bounds.high < reached) => {
                let message = format!("the topic ends at {}, it had reached {reached:?}", bounds.high);
                return Fault::new(Code::TopicLost, message);
            }
            Ok(Some(bounds)) => {
                reached = Some(bounds.high);
                if attempt > 0 {
                    attempt = 0;
                    entry.set(State::Running);
                }
            }
            Ok(None) => return Fault::new(Code::TopicLost, "the topic does not exist any more"),
            // The producer keeps what it has and goes on by itself; people should know meanwhile.
            Err(fault) if fault.code() == Code::KafkaUnreachable => {
                attempt += 1;
                entry.set(State::retrying(&fault, attempt));
            }
            Err(fault) => return fault,
        }
    }
}

struct Capture<'a, S, W> {
    params: &'a CaptureParams,
    source: &'a mut S,
    incarnation: Incarnation,
    epoch: WriterEpoch,
    encoder: Encoder,
    appender: Appender<W>,
    resume: Resume,
    transaction: Option<Transaction>,
    /// Shapes this writer has described in the log.
    announced: HashSet<Fingerprint>,
    encoded: Encoded,
    /// Everything up to here has been sent by the server.
    seen: Position,
    /// Everything up to here is in the log, or not of the stream.
    through: Position,
    /// The last transaction of the stream that is durable.
    last: Option<Position>,
    idle_at: Instant,
    checkpoint_at: Instant,
    entry: &'a SourceEntry,
    meter: CaptureMeter,
    queue: QueueMeter,
}

/// The transaction being read.
struct Transaction {
    begin: Position,
    /// It stands in the log, or was applied here by a sink.
    skip: bool,
    /// Changes up to this ordinal stand in the log.
    complete_after: Option<Option<u64>>,
    /// Whether its first record stands in the log.
    begun: bool,
    /// The last change read: held back until it is known whether another follows, because the last one
    /// is marked.
    held: Option<Ordered>,
    beat: Option<Bytes>,
}

impl<S: Source, W: Writer> Capture<'_, S, W> {
    async fn run(&mut self, mut stop: Stop) -> Result<()> {
        let mut tick = tokio::time::interval(IDLE_INTERVAL / 2);
        loop {
            let waiting = self.appender.is_waiting();
            let seen = self.appender.writer().acknowledged();
            tokio::select! {
                event = self.source.next() => {
                    self.take(event?).await?;
                    // What has arrived already is taken without going round.
                    for _ in 1..GULP {
                        let Some(event) = self.source.next().now_or_never() else { break };
                        self.take(event?).await?;
                    }
                }
                outcome = self.appender.writer().acknowledged_beyond(seen), if waiting => outcome?,
                _ = tick.tick() => {}
                () = stop.asked() => return self.finish().await,
            }
            self.rest().await?;
            self.tell()?;
        }
    }

    /// What was given to the log becomes durable and is confirmed; a transaction half read is
    /// completed by whoever comes next.
    async fn finish(&mut self) -> Result<()> {
        let settled = tokio::time::timeout(FINISH, self.appender.settle()).await;
        self.checkpoint_at = Instant::now();
        self.tell()?;
        match settled {
            Ok(outcome) => outcome,
            Err(_) => Ok(()),
        }
    }

    async fn take(&mut self, event: Event) -> Result<()> {
        crate::crash::point("capture.after_read");
        match event {
            Event::Begin(begin) => self.begin(begin).await?,
            Event::Origin(name) => {
                if let Some(transaction) = self.transaction.as_mut().filter(|_| names::is_ours(&name)) {
                    transaction.skip = true;
                }
            }
            Event::Change(ordered) => self.change(ordered).await?,
            Event::Heartbeat(content) => {
                if let Some(transaction) = &mut self.transaction {
                    transaction.beat = Some(content);
                }
            }
            Event::Commit(end) => self.commit(end).await?,
            Event::Idle(position) if self.transaction.is_none() => {
                if let Some(open) = self.resume.passed(&position).map_err(diverged)? {
                    self.abort(open).await?;
                }
                self.saw(position);
            }
            // Inside a transaction it says nothing about its end.
            Event::Idle(_) => (),
        }
        Ok(())
    }

    async fn begin(&mut self, begin: Position) -> Result<()> {
        if let Some(transaction) = &self.transaction {
            let message = format!("a transaction begins at {begin} inside the one at {}", transaction.begin);
            return Err(Fault::new(Code::ProtocolUnknown, message));
        }
        let (mut skip, mut complete_after) = (false, None);
        match self.resume.begin(&begin).map_err(diverged)? {
            Decision::Skip => skip = true,
            Decision::Append => (),
            Decision::Complete(ordinal) => complete_after = Some(ordinal),
            Decision::AbortThenAppend(open) => self.abort(open).await?,
        }
        let Position::Postgres(at) = begin;
        self.encoder.begin(&begin, at.time);
        let begun = complete_after.is_some();
        self.transaction = Some(Transaction { begin, skip, complete_after, begun, held: None, beat: None });
        Ok(())
    }

    async fn change(&mut self, ordered: Ordered) -> Result<()> {
        let transaction = self.transaction.as_mut().ok_or_else(outside)?;
        let stands = transaction.complete_after.flatten().is_some_and(|last| ordered.ordinal <= last);
        if transaction.skip || stands {
            return Ok(());
        }
        match transaction.held.replace(ordered) {
            Some(before) => self.append(before, None).await,
            None => Ok(()),
        }
    }

    async fn commit(&mut self, end: Position) -> Result<()> {
        let mut transaction = self.transaction.take().ok_or_else(outside)?;
        let (Position::Postgres(begin), Position::Postgres(mut at)) = (transaction.begin, end);
        if at.commit != begin.commit {
            let message = format!("the transaction begun at {} ends at {}", begin.commit, at.commit);
            return Err(Fault::new(Code::ProtocolUnknown, message));
        }
        at.xid = begin.xid;
        let end = Position::Postgres(at);
        if transaction.skip {
            self.saw(end);
            return Ok(());
        }
        let beat = transaction.beat.take().and_then(|content| serde_json::from_slice::<Beat>(&content).ok());
        match (transaction.held.take(), beat) {
            (Some(last), _) => {
                self.transaction = Some(transaction);
                self.append(last, Some(end)).await?;
                self.transaction = None;
                self.meter.transactions(1);
            }
            (None, _) if transaction.begun => {
                let value = body::to_value(&Commit { position: end });
                self.appender.append(Kind::Commit, Flags::LAST, b"", &value).await?;
                self.meter.transactions(1);
            }
            (None, Some(beat)) => {
                let value = body::to_value(&HeartbeatBody { position: end, beat });
                self.appender.append(Kind::Heartbeat, Flags::NONE, b"", &value).await?;
            }
            // Nothing of the stream was in it.
            (None, None) => {
                self.saw(end);
                return Ok(());
            }
        }
        crate::crash::point("capture.after_produce");
        self.appender.mark(end, true);
        self.through = end;
        self.saw(end);
        Ok(())
    }

    /// Appends one change of the transaction in hand; its last with the transaction's `end`.
    async fn append(&mut self, ordered: Ordered, end: Option<Position>) -> Result<()> {
        let transaction = self.transaction.as_mut().expect("changes are appended inside their transaction");
        let first = !std::mem::replace(&mut transaction.begun, true);
        let shapes = match &ordered.change {
            Change::Truncate { shapes, .. } => &shapes[..],
            change => std::slice::from_ref(change.shape()),
        };
        for shape in shapes {
            let fingerprint = shape.fingerprint();
            if self.announced.insert(fingerprint) {
                let body = Schema { fingerprint: fingerprint.to_string(), shape: shape.as_ref().clone() };
                self.appender.append(Kind::Schema, Flags::NONE, b"", &body::to_value(&body)).await?;
            }
        }
        let (kind, change) = match &ordered.change {
            change @ Change::Truncate { .. } => (Kind::Truncate, change),
            change => (Kind::Change, change),
        };
        self.encoder.change(change, ordered.ordinal, end.as_ref(), &mut self.encoded).map_err(|error| {
            Fault::new(
                Code::ProtocolUnknown,
                format!("encode change {} at {}", ordered.ordinal, transaction.begin),
            )
            .because(error)
        })?;
        let flags = Flags::when(first, Flags::FIRST).with(Flags::when(end.is_some(), Flags::LAST));
        crate::crash::point("capture.before_produce");
        let shape = change.shape();
        self.meter.changes(&shape.schema, &shape.table, change.operation(), 1);
        self.meter.bytes(self.encoded.value.len() as u64);
        self.appender.append(kind, flags, &self.encoded.key, &self.encoded.value).await
    }

    async fn abort(&mut self, open: Position) -> Result<()> {
        let value = body::to_value(&Abort { position: open });
        self.appender.append(Kind::Abort, Flags::NONE, b"", &value).await
    }

    fn saw(&mut self, position: Position) {
        if !self.seen.covers(&position) {
            self.seen = position;
        }
    }

    /// Tells the log, now and then, how far the server has come with nothing of the stream.
    async fn rest(&mut self) -> Result<()> {
        let behind = !self.through.covers(&self.seen);
        if self.transaction.is_some() || !behind || self.idle_at.elapsed() < IDLE_INTERVAL {
            return Ok(());
        }
        self.idle_at = Instant::now();
        let value = body::to_value(&Idle { position: self.seen });
        self.appender.append(Kind::Idle, Flags::NONE, b"", &value).await?;
        self.appender.mark(self.seen, false);
        self.through = self.seen;
        Ok(())
    }

    /// Confirms what has become durable, and keeps a checkpoint of it now and then.
    fn tell(&mut self) -> Result<()> {
        let fill = self.appender.writer().fill();
        self.entry.queue_fill.set(fill);
        self.queue.fill(fill);
        self.queue.blocked(self.appender.take_waited());
        self.entry.appended.set(self.appender.sequence());
        let Some(durable) = self.appender.durable() else { return Ok(()) };
        crate::crash::point("capture.after_ack");
        // Not before something went through: what stopped the session before is met on the way.
        self.entry.set(State::Running);
        self.source.confirm(&durable.position);
        crate::crash::point("capture.after_confirm");
        let Position::Postgres(at) = durable.position;
        self.entry.confirmed.set(at.end);
        self.entry.acked.set(durable.sequence);
        self.entry.last_append.set(clock::now());
        let Position::Postgres(seen) = self.seen;
        self.entry.captured.set(seen.end);
        self.last = durable.transaction.or(self.last);
        let Some(offset) = durable.offset.filter(|_| self.checkpoint_at <= Instant::now()) else {
            return Ok(());
        };
        self.checkpoint_at = Instant::now() + self.params.checkpoint_interval;
        let checkpoint = Checkpoint {
            incarnation: self.incarnation,
            epoch: self.epoch,
            sequence: durable.sequence,
            offset,
            last: self.last,
            through: durable.position,
        };
        self.appender.writer().keep_checkpoint(&body::to_value(&checkpoint))
    }
}

fn outside() -> Fault {
    Fault::new(Code::ProtocolUnknown, "a change or commit comes outside a transaction")
}
