//! One session of capturing: from taking hold of the slot to the first fault, or the stop.

mod copied;

use std::{
    collections::{HashSet, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt;

use super::{
    CaptureParams, FINISH,
    appender::Appender,
    aside::Aside,
    beside::{keep, listen, watch},
    copy::{self, Desk},
    resume::{Decision, Diverged, Resume, Tail},
    tail::{self, Checkpoint, OwnBarrier},
};
use crate::{
    change::{Change, Fingerprint, Ordered},
    changelog::{Log, Writer},
    clock,
    envelope::{
        Encoded, Encoder, Flags, Kind,
        body::{self, Abort, Anchor, Barrier, Beat, Commit, Genesis, HeartbeatBody, Idle, Schema},
    },
    fault::{Code, Fault, Result},
    kafka::ENOUGH_REPLICAS,
    metrics::{CaptureMeter, Metrics, QueueMeter},
    names,
    position::{Incarnation, Offset, Position, PostgresPosition, Sequence, WriterEpoch},
    roster::{Roster, SourceEntry, State},
    source::{Copier, Event, Keeper, Opened, Source},
    stamp::Micros,
    task::Stop,
};

/// An idle record at most so often. A few a second release an idle server's log soon enough, and let a
/// shutting down server go within a second.
const IDLE_INTERVAL: Duration = Duration::from_millis(200);
/// How long what was read before a fault may take to become durable.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long the topic beside the stream's may take nothing before people are told. A leader is elected in less.
const UNKEPT_PATIENCE: Duration = Duration::from_secs(30);
/// Events taken before acknowledgements are looked at again.
const GULP: usize = 256;

/// What a session leaves behind.
#[derive(Default)]
pub(super) struct Left {
    /// Something went through, beyond where it began.
    pub(super) ran: bool,
    /// The last checkpoint read or made: as true as one that is kept, where what is kept cannot be read.
    checkpoint: Option<Checkpoint>,
    /// The server has just shown that it has the last transaction of a tail that is gone.
    proven: bool,
}

pub(super) async fn run<S: Source, L: Log>(
    params: &CaptureParams,
    source: &mut S,
    log: &L,
    roster: &Roster,
    metrics: &Metrics,
    stop: Stop,
    left: &mut Left,
) -> Result<()> {
    let entry = &roster.source();
    let Hold { opened, mut keeper, mut copier, begun, resume } =
        take_hold(params, source, log, entry, left).await?;
    let Begun { mut appender, tail, epoch } = begun;
    copier.written_by(epoch);
    let desk = &Desk::new();
    let aside = Aside::new(copier.filling().await?);
    // What was kept there is durable.
    let starts =
        copier.starts().await?.into_iter().map(|(region, start)| (region, Sequence(0), start)).collect();
    // Whatever this session appends stands there or behind it.
    let offset = log.bounds().await?.map_or(Offset(0), |bounds| bounds.high);
    // Of a tail that is gone nothing is in the log but what the slot confirmed, however far the checkpoint was.
    let (last, through) = if tail.gone {
        (None, opened.confirmed)
    } else {
        (tail.last, tail.through.unwrap_or(opened.consistent))
    };
    let counts = appender.writer().counts();
    let mut capture = Capture {
        params,
        source,
        encoder: Encoder::new(&params.region, &params.database, params.format),
        incarnation: opened.incarnation,
        epoch,
        appender,
        resume,
        transaction: None,
        announced: HashSet::new(),
        encoded: Encoded::default(),
        seen: through,
        through,
        last,
        durable: None,
        idle_at: Instant::now(),
        checkpoint_at: Instant::now(),
        is_unkept: false,
        entry,
        unacknowledged: VecDeque::new(),
        meter: metrics.capture(&params.region, &params.stream),
        queue: metrics.queue("kafka"),
        desk,
        aside,
        starts,
        offset,
        checkpoint: &mut left.checkpoint,
        carried: opened.scope.into_iter().collect(),
        began: through,
        ran: &mut left.ran,
    };
    entry.unkept.forget();
    // Of the last session, whose numbers may have been others: what is durable is told by the records of this one.
    entry.acked.forget();
    let outcome = tokio::select! {
        outcome = capture.run(stop) => outcome,
        fault = keep(&mut keeper, params.heartbeat_interval, entry, roster) => Err(fault),
        fault = watch(log, &counts, entry, State::Running) => Err(fault),
        never = copy::run(params, &mut copier, log, desk, entry) => match never {},
        never = listen(log, &params.stream, desk) => match never {},
    };
    outcome.map_err(|fault| fault.at(format_args!("stream {} of {}", params.stream, params.region)))
}

/// A server and a log that belong together.
struct Hold<S: Source, W> {
    opened: Opened,
    keeper: S::Keeper,
    copier: S::Copier,
    begun: Begun<W>,
    resume: Resume,
}

/// A log that is ours to append to, behind its tail.
struct Begun<W> {
    appender: Appender<W>,
    tail: Tail,
    epoch: WriterEpoch,
}

/// Takes hold of the server and of the log, and holds the one against the other.
///
/// Where retention took the tail, what the server sends again is appended again: of a server that is another it would be
/// read as the stream's. So it is read up to the last transaction that is known of first, and then from its beginning.
async fn take_hold<S: Source, L: Log>(
    params: &CaptureParams,
    source: &mut S,
    log: &L,
    entry: &SourceEntry,
    left: &mut Left,
) -> Result<Hold<S, L::Writer>> {
    loop {
        let (opened, mut keeper, mut copier) = source.open().await?;
        let mut begun = begin(params, (log, entry), &opened, &mut keeper, &mut left.checkpoint).await?;
        let resume = Resume::new(&begun.tail, opened.confirmed, opened.written).map_err(diverged)?;
        if begun.tail.gone {
            if !std::mem::take(&mut left.proven) && !resume.is_proven() {
                prove(source, resume).await?;
                tracing::info!("the stream's tail is gone; the server has the last transaction of it");
                left.proven = true;
                continue;
            }
            // What the slot confirmed was in it; the sinks know whether they have it. Of what was put into it beside the
            // database's log they do not.
            copier.begin_anew().await?;
            let anchor = Anchor { after: opened.confirmed, next: begun.appender.sequence().next() };
            begun.appender.barrier(&barrier(&opened, Some(anchor))).await?;
            settle(&mut begun.appender, log, entry).await?;
        }
        return Ok(Hold { opened, keeper, copier, begun, resume });
    }
}

/// Reads what the server sends until it has shown that it has the last transaction; appends and confirms nothing.
async fn prove<S: Source>(source: &mut S, mut resume: Resume) -> Result<()> {
    let mut inside = false;
    while !resume.is_proven() {
        match source.next().await? {
            Event::Begin(begin) => {
                resume.begin(&begin).map_err(diverged)?;
                inside = true;
            }
            Event::Commit(_) => inside = false,
            // Inside a transaction it says nothing about its end.
            Event::Idle(position) if !inside => {
                resume.passed(&position).map_err(diverged)?;
            }
            _ => (),
        }
    }
    Ok(())
}

/// Waits until what a session begins with is durable. As long as the log does not take it, people are told.
async fn settle<L: Log>(appender: &mut Appender<L::Writer>, log: &L, entry: &SourceEntry) -> Result<()> {
    let (counts, before) = (appender.writer().counts(), entry.state());
    tokio::select! {
        outcome = appender.settle() => {
            if entry.state() != before {
                entry.set(State::Starting);
            }
            outcome
        }
        fault = watch(log, &counts, entry, State::Starting) => Err(fault),
    }
}

/// What a barrier of this writer's holds.
fn barrier(opened: &Opened, anchor: Option<Anchor>) -> Vec<u8> {
    body::to_value(&Barrier { server: opened.server.clone(), time: clock::now(), anchor })
}

/// Raises the writer epoch, puts the barrier, reads the tail up to it; begins the stream where it has
/// not begun.
async fn begin<L: Log, K: Keeper>(
    params: &CaptureParams,
    (log, entry): (&L, &SourceEntry),
    opened: &Opened,
    keeper: &mut K,
    remembered: &mut Option<Checkpoint>,
) -> Result<Begun<L::Writer>> {
    log.ensure(!opened.live).await?;
    let lost = |what: String| {
        let topic = names::topic(&params.region, &params.stream);
        Fault::new(
            Code::TopicLost,
            format!("topic {topic}: {what}; stream incarnation {}", opened.incarnation),
        )
    };
    *remembered = remembered.filter(|checkpoint| checkpoint.incarnation == opened.incarnation);
    // Before the bounds: what a dying writer still appends, and tells in a checkpoint, is within them then.
    let checkpoint: Option<Checkpoint> = match log.checkpoint().await {
        Ok(Some(value)) => Some(body::from_value(&value).map_err(|error| {
            Fault::new(Code::RecordCorrupt, "read the stream's checkpoint").because(error)
        })?),
        // Somebody deleted its topic.
        Ok(None) => *remembered,
        // Its topic may have no leader, or too few replicas to say where it ends, while the stream's is well.
        Err(fault)
            if remembered.is_some()
                && matches!(fault.code(), Code::KafkaRejected | Code::KafkaUnreachable) =>
        {
            let code = fault.code().as_str();
            tracing::warn!(%fault, code, "the stream goes on from the checkpoint its last session knew");
            *remembered
        }
        Err(fault) => return Err(fault),
    };
    let checkpoint = checkpoint.filter(|checkpoint| checkpoint.incarnation == opened.incarnation);
    *remembered = checkpoint;
    let bounds = log.bounds().await?.ok_or_else(|| lost("it does not exist".into()))?;
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
    let mut above = checkpoint.map_or(WriterEpoch(0), |checkpoint| checkpoint.epoch);
    let (mut appender, end, epoch) = loop {
        let epoch = keeper.raise_epoch(above).await?;
        let mut appender =
            Appender::new(log.writer()?, opened.incarnation, epoch, Sequence(0), params.max_record_bytes);
        let value = barrier(opened, None);
        appender.barrier(&value).await?;
        settle(&mut appender, log, entry).await?;
        crate::crash::point("capture.after_barrier");
        let own = OwnBarrier { value: &value, from: bounds.high, epoch };
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
    if end.tail.gone {
        return Ok(Begun { appender, tail: end.tail, epoch });
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
        settle(&mut appender, log, entry).await?;
        keeper.mark_live().await?;
        let tail = Tail { through: Some(opened.consistent), ..Tail::default() };
        return Ok(Begun { appender, tail, epoch });
    }
    keeper.mark_live().await?;
    Ok(Begun { appender, tail: end.tail, epoch })
}

fn diverged(error: Diverged) -> Fault {
    let code = match error {
        Diverged::SlotAhead { .. } => Code::SlotAhead,
        Diverged::ServerBehind { .. } | Diverged::Other { .. } | Diverged::Missing(_) => Code::ServerDiverged,
    };
    Fault::new(code, "hold the log's tail against the server").because(error)
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
    /// The last record that is durable and ends something, and what is in the log up to it.
    durable: Option<(Sequence, Position)>,
    idle_at: Instant,
    checkpoint_at: Instant,
    /// Whether people were told that no checkpoint is taken.
    is_unkept: bool,
    entry: &'a SourceEntry,
    /// The last record of each transaction that is not known to be durable, and when it was read.
    unacknowledged: VecDeque<(Sequence, Micros)>,
    meter: CaptureMeter,
    queue: QueueMeter,
    /// Where what a backfill reads is handed over.
    desk: &'a Desk,
    /// What changes in tables being read.
    aside: Aside,
    /// Where regions may begin the stream: the region, the first record that counts, and all of it as it is kept.
    starts: Vec<(String, Sequence, String)>,
    /// Where a record stands that is durable, and none later than the last that is known to be.
    offset: Offset,
    /// The last one made.
    checkpoint: &'a mut Option<Checkpoint>,
    /// The tables that the stream had carried until the session began.
    carried: HashSet<String>,
    /// Everything up to here was known to be in the log, or not of the stream, when the session began.
    began: Position,
    /// Whether something beyond that has become durable.
    ran: &'a mut bool,
}

/// The transaction being read.
struct Transaction {
    begin: Position,
    /// It stands in the log, or was applied here by a sink.
    skip: bool,
    /// Changes up to this ordinal stand in the log.
    complete_after: Option<Option<u64>>,
    /// The log says that nothing of the stream is in it; what is so where it lies.
    empty: Option<Diverged>,
    /// Whether its first record stands in the log.
    begun: bool,
    /// Whether a change of the stream was read: then it is one, whatever messages stand beside it.
    changed: bool,
    /// The last change read: held back until it is known whether another follows, because the last one
    /// is marked.
    held: Option<Ordered>,
    beat: Option<Bytes>,
    watermark: Option<Bytes>,
}

impl<S: Source, W: Writer> Capture<'_, S, W> {
    async fn run(&mut self, stop: Stop) -> Result<()> {
        let outcome = self.capture(stop).await;
        if outcome.is_err() {
            // What was read before it is good, and whoever comes next may get no further than this.
            let _ = tokio::time::timeout(LAST_WORDS, self.appender.settle()).await;
        }
        outcome
    }

    async fn capture(&mut self, mut stop: Stop) -> Result<()> {
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
            self.appender.hand_over().await?;
            crate::crash::point("capture.after_hand_over");
            self.tell()?;
        }
    }

    /// What was given to the log becomes durable and is confirmed; a transaction half read is
    /// completed by whoever comes next.
    async fn finish(&mut self) -> Result<()> {
        let settled = tokio::time::timeout(FINISH, async {
            self.appender.settle().await?;
            self.tell()?;
            // Whoever comes next reads from the newest, and would else read what was appended since the last one.
            if let Some((sequence, through)) = self.durable {
                let is_last = self.appender.sequence() == sequence;
                let last = self.appender.writer().last_offset().filter(|_| is_last);
                self.keep_checkpoint(sequence, through, last.unwrap_or(self.offset))?;
                self.appender.writer().all_kept().await?;
            }
            Ok(())
        });
        settled.await.unwrap_or(Ok(()))
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
            Event::Watermark(content) => {
                if let Some(transaction) = &mut self.transaction {
                    transaction.watermark = Some(content);
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
        let (mut skip, mut complete_after, mut empty) = (false, None, None);
        match self.resume.begin(&begin).map_err(diverged)? {
            Decision::Skip => skip = true,
            Decision::Append => (),
            Decision::Complete(ordinal) => complete_after = Some(ordinal),
            Decision::AbortThenAppend(open) => self.abort(open).await?,
            Decision::Nothing(otherwise) => empty = Some(otherwise),
        }
        let Position::Postgres(at) = begin;
        self.aside.note(at.xid);
        self.encoder.begin(&begin, at.time);
        let begun = complete_after.is_some();
        self.transaction = Some(Transaction {
            begin,
            skip,
            complete_after,
            empty,
            begun,
            changed: false,
            held: None,
            beat: None,
            watermark: None,
        });
        Ok(())
    }

    async fn change(&mut self, mut ordered: Ordered) -> Result<()> {
        let transaction = self.transaction.as_mut().ok_or_else(outside)?;
        transaction.changed = true;
        let stands = transaction.complete_after.flatten().is_some_and(|last| ordered.ordinal <= last);
        if transaction.skip || stands {
            return Ok(());
        }
        if let Some(otherwise) = transaction.empty {
            let mut shapes = ordered.change.shapes().iter();
            if shapes.any(|shape| self.carried.contains(&shape.to_string())) {
                return Err(diverged(otherwise));
            }
            // Its table was published, and out of scope then: what was written before it is carried, a backfill brings.
            return Ok(());
        }
        if !self.aside.is_idle() {
            let Position::Postgres(at) = transaction.begin;
            if let Some(table) = self.aside.change(at.xid, &mut ordered.change) {
                self.appender.hand_over().await?;
                self.desk.restart(&table).await;
            }
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
        let read = clock::now();
        // In one of ours there is nothing else; anybody may write such a message into one of theirs.
        if let Some(content) = transaction.watermark.take().filter(|_| !transaction.changed) {
            return self.watermark(transaction, &content, end).await;
        }
        let beat = transaction.beat.take().and_then(|content| serde_json::from_slice::<Beat>(&content).ok());
        if let Some(otherwise) = transaction.empty.filter(|_| beat.is_some()) {
            return Err(diverged(otherwise));
        }
        match (transaction.held.take(), beat) {
            (Some(last), _) => {
                self.transaction = Some(transaction);
                self.append(last, Some(end)).await?;
                self.transaction = None;
                self.count(&at, read);
            }
            (None, _) if transaction.begun => {
                let value = body::to_value(&Commit { position: end });
                self.appender.append(Kind::Commit, Flags::LAST, b"", &value).await?;
                self.count(&at, read);
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

    /// Counts a transaction whose last record was just given to the log.
    fn count(&mut self, end: &PostgresPosition, read: Micros) {
        self.meter.transactions(1);
        self.meter.read(read.seconds_since(end.time));
        self.entry.read_seconds.set(read.seconds_since(end.time).max(0.0));
        self.unacknowledged.push_back((self.appender.sequence(), read));
    }

    /// Appends one change of the transaction in hand; its last with the transaction's `end`.
    async fn append(&mut self, ordered: Ordered, end: Option<Position>) -> Result<()> {
        let transaction = self.transaction.as_mut().expect("changes are appended inside their transaction");
        let (first, begin) = (!std::mem::replace(&mut transaction.begun, true), transaction.begin);
        self.announce(&ordered.change).await?;
        let (kind, change) = match &ordered.change {
            change @ Change::Truncate { .. } => (Kind::Truncate, change),
            change => (Kind::Change, change),
        };
        self.encoder.change(change, ordered.ordinal, end.as_ref(), &mut self.encoded).map_err(|error| {
            Fault::new(Code::ProtocolUnknown, format!("encode change {} at {begin}", ordered.ordinal))
                .because(error)
        })?;
        let flags = Flags::when(first, Flags::FIRST).with(Flags::when(end.is_some(), Flags::LAST));
        crate::crash::point("capture.before_produce");
        let shape = change.shape();
        self.meter.changes(&shape.schema, &shape.table, change.operation(), 1);
        self.meter.bytes(self.encoded.value.len() as u64);
        self.entry.changes.add(1);
        self.appender.append(kind, flags, &self.encoded.key, &self.encoded.value).await
    }

    /// Describes the shapes a change names, where this writer has not.
    async fn announce(&mut self, change: &Change) -> Result<()> {
        for shape in change.shapes() {
            let fingerprint = shape.fingerprint();
            if self.announced.insert(fingerprint) {
                let body = Schema { fingerprint: fingerprint.to_string(), shape: shape.as_ref().clone() };
                self.appender.append(Kind::Schema, Flags::NONE, b"", &body::to_value(&body)).await?;
            }
        }
        Ok(())
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
        // Inside a transaction that is half in the log, readers would take it for a part of it.
        let inside = self.transaction.is_some() || self.resume.is_open();
        if inside || !behind || self.idle_at.elapsed() < IDLE_INTERVAL {
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
        self.meter.sent(self.appender.writer().sent());
        self.entry.appended.set(self.appender.sequence());
        self.tell_unkept();
        let Some(durable) = self.appender.durable() else { return Ok(()) };
        crate::crash::point("capture.after_ack");
        // Not before something went through: what stopped the session before is met on the way.
        self.entry.set(State::Running);
        *self.ran |= !self.began.covers(&durable.position);
        self.source.confirm(&durable.position);
        crate::crash::point("capture.after_confirm");
        let Position::Postgres(at) = durable.position;
        self.entry.confirmed.set(at.end);
        self.entry.acked.set(durable.sequence);
        let now = clock::now();
        self.entry.last_append.set(now);
        while let Some((_, read)) = self.unacknowledged.front().filter(|(last, _)| *last <= durable.sequence)
        {
            self.meter.appended(now.seconds_since(*read));
            self.entry.buffer_seconds.set(now.seconds_since(*read).max(0.0));
            self.unacknowledged.pop_front();
        }
        let Position::Postgres(seen) = self.seen;
        self.entry.captured.set(seen.end);
        self.last = durable.transaction.or(self.last);
        self.durable = Some((durable.sequence, durable.position));
        self.offset = durable.offset.unwrap_or(self.offset);
        let Some(offset) = durable.offset.filter(|_| self.checkpoint_at <= Instant::now()) else {
            return Ok(());
        };
        // Not before it is there: whoever comes after us gives its number to another record.
        for (region, _, start) in self.starts.iter().filter(|(_, first, _)| *first <= durable.sequence) {
            self.appender.writer().keep_start(region, start.as_bytes())?;
        }
        let waits = self.starts.iter().any(|(_, first, _)| *first > durable.sequence);
        let interval = if waits { Duration::ZERO } else { self.params.checkpoint_interval };
        self.checkpoint_at = Instant::now() + interval;
        self.keep_checkpoint(durable.sequence, durable.position, offset)
    }

    /// Tells people where the topic beside the stream's takes nothing. The stream goes on.
    fn tell_unkept(&mut self) {
        let is_unkept = self.appender.writer().unkept().is_some_and(|waits| waits >= UNKEPT_PATIENCE);
        if std::mem::replace(&mut self.is_unkept, is_unkept) == is_unkept {
            return;
        }
        let topic = names::state_topic(&self.params.region);
        if !is_unkept {
            tracing::info!(topic, "checkpoints are kept again");
            return self.entry.unkept.forget();
        }
        let seconds = UNKEPT_PATIENCE.as_secs();
        let fault = Fault::new(
            Code::KafkaRejected,
            format!(
                "topic {topic} has taken no checkpoint for {seconds} s: the stream goes on, its next start reads more of it, and a region that is being filled cannot begin"
            ),
        )
        .remedied_by(ENOUGH_REPLICAS);
        let code = fault.code().as_str();
        tracing::warn!(code, next = fault.remedy(), "{}", fault.message());
        self.entry.unkept.set(fault.to_string());
    }

    /// Keeps a checkpoint at a record that is durable, soon; `offset` is at or before it.
    fn keep_checkpoint(&mut self, sequence: Sequence, through: Position, offset: Offset) -> Result<()> {
        let (incarnation, epoch, last) = (self.incarnation, self.epoch, self.last);
        let checkpoint = Checkpoint { incarnation, epoch, sequence, offset, last, through };
        *self.checkpoint = Some(checkpoint);
        self.appender.writer().keep_checkpoint(&body::to_value(&checkpoint))
    }
}

fn outside() -> Fault {
    Fault::new(Code::ProtocolUnknown, "a change or commit comes outside a transaction")
}

#[cfg(test)]
mod tests;
