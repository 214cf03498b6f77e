//! Records into batches: whole transactions together, a transaction larger than memory slice by slice.
//!
//! ```text
//! records    S c c C │ h │ c C │ c c c c c c c c … C │ i      S schema  C last change  h heartbeat
//! steps      [ whole ]     [w]   [slice][slice][last]          i idle
//! batches    [   one batch   ]   [batch][batch][batch][batch: only the place]
//! ```

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    change::{Change, Frame, Ordered, Shape, TransactionHead},
    envelope::{
        Flags, Header, Kind,
        body::{self, Abort, Answered, Beat, Commit, HeartbeatBody, Idle},
        decode::{self, Decoded, Shapes, Unreadable},
    },
    fault::{Code, Fault, Result},
    position::{Incarnation, Offset, Position, Sequence},
    progress::{Arrival, Cursor, Heartbeat},
    region::Region,
    roster::Between,
    sink::{Batch, Grouping, Step},
    stamp::Micros,
    verify::Answer,
};

/// When a batch is full.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Changes. A batch of 500 to 5,000 costs the same per change; fewer keep locks short.
    pub changes: usize,
    /// Bytes in memory. A batch being applied, one waiting and one being filled exist at once.
    pub bytes: usize,
}

/// A place alone, without changes, is worth a commit only so often: each is a write that the target's
/// own log carries.
const PLACE_INTERVAL: Duration = Duration::from_secs(5);

/// What comes out.
#[derive(Debug)]
pub enum Output {
    /// To be applied.
    Batch(Batch),
    /// The open target transaction is void: the source will never send its rest.
    Abandon,
}

enum Item {
    Step(Step),
    Abandon,
}

/// Takes records in the order that counts, gives batches.
pub struct Assembler {
    incarnation: Incarnation,
    limits: BatchLimits,
    shapes: Shapes,
    fresh_shapes: Vec<Arc<Shape>>,
    /// Given with slices of a transaction that has not ended: where it is abandoned, the sink has lost them with it.
    shapes_given_ahead: Vec<Arc<Shape>>,
    /// The last record taken.
    cursor: Cursor,
    /// What the sink's progress will be once everything given so far is applied.
    after: Sequence,
    open: Option<Open>,
    parts: Vec<u8>,
    /// The change in parts begins its transaction: said by its first part, and met with its last.
    parts_begin: bool,
    /// The answer that is the open transaction.
    answer: Option<Arc<Answer>>,
    /// What this target already has: behind an anchor it is sent again. No place goes back before it.
    has: Option<Position>,
    items: VecDeque<Item>,
    changes: usize,
    bytes: usize,
    heartbeat: Option<Heartbeat>,
    /// What the last beat that came back says of the two clocks, until it is taken.
    clocks: Option<Between>,
    /// This region: whose beats come back.
    here: Region,
    /// When a place was last given.
    placed_at: Instant,
}

/// A transaction begun and not ended.
struct Open {
    head: TransactionHead,
    changes: Vec<Ordered>,
    bytes: usize,
    last_ordinal: u64,
    /// Nothing of it has been given yet.
    first: bool,
    skip: bool,
}

impl Assembler {
    /// Goes on behind `cursor`, at a sink whose progress is `after`, knowing `shapes`.
    pub fn new(
        incarnation: Incarnation,
        cursor: Cursor,
        after: Sequence,
        shapes: Vec<Arc<Shape>>,
        limits: BatchLimits,
        here: Region,
    ) -> Self {
        Self {
            incarnation,
            limits,
            shapes: shapes.into_iter().map(|shape| (shape.fingerprint(), shape)).collect(),
            fresh_shapes: Vec::new(),
            shapes_given_ahead: Vec::new(),
            cursor,
            after,
            open: None,
            parts: Vec::new(),
            parts_begin: false,
            answer: None,
            has: cursor.position,
            items: VecDeque::new(),
            changes: 0,
            bytes: 0,
            heartbeat: None,
            clocks: None,
            here,
            placed_at: Instant::now(),
        }
    }

    /// The last record taken.
    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// What the source's clock goes ahead of ours, where a beat has come back since this was last asked.
    pub fn take_clocks(&mut self) -> Option<Between> {
        self.clocks.take()
    }

    /// A writer's barrier was passed.
    pub fn barrier(&mut self, header: &Header, offset: Offset) {
        self.cursor.epoch = header.epoch;
        self.cursor.offset = offset;
    }

    /// The sequence goes on at `next`; transactions up to the place reached are sent again.
    pub fn anchored(&mut self, next: Sequence) {
        self.cursor.sequence = Sequence(next.0 - 1);
        self.has = self.cursor.position;
        self.parts.clear();
        self.abandon_open();
    }

    /// Whether as much waits as a batch may hold.
    pub fn is_full(&self) -> bool {
        self.changes >= self.limits.changes || self.bytes >= self.limits.bytes
    }

    /// Whether [`Assembler::give`] gives something.
    pub fn is_ready(&self) -> bool {
        // Behind a transaction that is not complete there is no place to tell, so a beat waits for its end.
        !self.items.is_empty() || self.is_between() && (self.heartbeat.is_some() || self.is_place_due())
    }

    fn is_place_due(&self) -> bool {
        self.is_between() && self.cursor.sequence > self.after && self.placed_at.elapsed() >= PLACE_INTERVAL
    }

    /// Whether whoever goes on behind the last record lacks nothing: no transaction is open, and no value that came in part
    /// is about to open one.
    fn is_between(&self) -> bool {
        self.open.is_none() && self.parts.is_empty()
    }

    /// Takes the next record that counts, where it stood, and whether more stand there behind it.
    ///
    /// # Errors
    /// [`Code::RecordCorrupt`] where it is not what its kind must be.
    pub fn take(
        &mut self,
        header: &Header,
        (offset, more): (Offset, bool),
        value: &Bytes,
        arrival: Arrival,
    ) -> Result<()> {
        let now = arrival.fetched;
        let corrupt = |error: Unreadable| {
            let place = format!("{} record {} at {offset}", header.kind, header.sequence);
            Fault::new(Code::RecordCorrupt, place).because(error)
        };
        let mut position = self.cursor.position;
        let mut ended = false;
        if header.kind != Kind::Part {
            // Its writer died in the middle of a value; who came after it sends the whole, or nothing.
            self.parts.clear();
        }
        match header.kind {
            Kind::Change => {
                ended = self.change(decode::change(value, &self.shapes).map_err(corrupt)?, header, offset)?;
            }
            Kind::Truncate => {
                ended =
                    self.change(decode::truncate(value, &self.shapes).map_err(corrupt)?, header, offset)?;
            }
            Kind::Chunk => {
                ended = self.change(decode::chunk(value, &self.shapes).map_err(corrupt)?, header, offset)?;
            }
            Kind::Watermark => {
                ended =
                    self.change(decode::watermark(value, &self.shapes).map_err(corrupt)?, header, offset)?;
            }
            Kind::Answer => {
                let body: Answered = body::from_value(value).map_err(|error| corrupt(error.into()))?;
                let for_us = body.to.iter().any(|to| to == self.here.as_str());
                match (header.flags.has(Flags::FIRST), &mut self.open) {
                    (true, _) if for_us => {
                        self.begin(body.position, body.origin.as_bytes(), header, offset)?
                    }
                    (true, None) => position = Some(body.position),
                    (true, Some(_)) => {
                        return Err(misplaced(header, offset, "it begins a transaction inside another"));
                    }
                    // Behind rows that come with it.
                    (false, Some(open)) => open.head.position = body.position,
                    (false, None) => return Err(misplaced(header, offset, "no transaction is open")),
                }
                self.answer = for_us.then(|| Arc::new(body.answer));
                ended = true;
            }
            Kind::Part => {
                if header.flags.has(Flags::PART_FIRST) {
                    self.parts.clear();
                    self.parts_begin = header.flags.has(Flags::FIRST);
                }
                self.parts.extend_from_slice(value);
                if header.flags.has(Flags::PART_LAST) {
                    let whole = Bytes::from(std::mem::take(&mut self.parts));
                    let begins = Flags::when(self.parts_begin, Flags::FIRST);
                    let header = Header { flags: header.flags.with(begins), ..*header };
                    let decode = match header.flags.has(Flags::OF_CHUNK) {
                        true => decode::chunk,
                        false => decode::change,
                    };
                    let change = decode(&whole, &self.shapes).map_err(corrupt)?;
                    ended = self.change(change, &header, offset)?;
                }
            }
            Kind::Commit => {
                let body: Commit = body::from_value(value).map_err(|error| corrupt(error.into()))?;
                let open =
                    self.open.as_mut().ok_or_else(|| misplaced(header, offset, "no transaction is open"))?;
                require_same(open, body.position, header, offset)?;
                open.head.position = body.position;
                ended = true;
            }
            Kind::Abort => {
                body::from_value::<Abort>(value).map_err(|error| corrupt(error.into()))?;
                self.abandon_open();
            }
            Kind::Schema => {
                let (fingerprint, shape) = decode::schema(value).map_err(corrupt)?;
                if self.shapes.insert(fingerprint, Arc::clone(&shape)).is_none() {
                    self.fresh_shapes.push(shape);
                }
            }
            Kind::Heartbeat => {
                let body: HeartbeatBody = body::from_value(value).map_err(|error| corrupt(error.into()))?;
                self.heartbeat =
                    Some(Heartbeat { sent: body.beat.sent, appended: Some(arrival.appended), arrived: now });
                self.clocks = clocks_of(&body.beat, &self.here, now).or(self.clocks);
                position = Some(body.position);
            }
            Kind::Idle => {
                let body: Idle = body::from_value(value).map_err(|error| corrupt(error.into()))?;
                position = Some(body.position);
            }
            Kind::Genesis => {
                let body: body::Genesis = body::from_value(value).map_err(|error| corrupt(error.into()))?;
                position = Some(body.consistent);
            }
            Kind::Barrier => return Err(misplaced(header, offset, "a barrier stands outside the sequence")),
        }
        // While more stand there, whoever begins at this place has not passed the offset.
        let offset = if more { Offset(offset.0 - 1) } else { offset };
        let position = self.has.filter(|has| position.is_none_or(|at| has.covers(&at))).or(position);
        self.cursor = Cursor { sequence: header.sequence, epoch: header.epoch, offset, position };
        if ended {
            self.end(arrival);
        } else if self.open.as_ref().is_some_and(|open| self.exceeds(open)) {
            self.slice(arrival);
        }
        Ok(())
    }

    /// The open transaction, where there is one, is void: what of it was not given counts no more, and what was is undone.
    fn abandon_open(&mut self) {
        let Some(open) = self.open.take() else { return };
        self.changes -= open.changes.len();
        self.bytes -= open.bytes;
        if !open.first {
            self.items.push_back(Item::Abandon);
        }
    }

    /// Whether the open transaction alone fills a batch.
    fn exceeds(&self, open: &Open) -> bool {
        open.changes.len() >= self.limits.changes || open.bytes >= self.limits.bytes
    }

    /// Begins a transaction.
    fn begin(&mut self, position: Position, origin: &[u8], header: &Header, offset: Offset) -> Result<()> {
        if self.open.is_some() {
            return Err(misplaced(header, offset, "it begins a transaction inside another"));
        }
        let Position::Postgres(at) = position;
        let origin: Region = String::from_utf8_lossy(origin)
            .parse()
            .map_err(|error| misplaced(header, offset, "its origin is no region").because(error))?;
        // A transaction's commit record begins before it ends: whoever is beyond its beginning has it.
        let skip = self.has.is_some_and(|Position::Postgres(has)| has.end > at.commit);
        if !skip {
            self.has = None;
        }
        self.open = Some(Open {
            head: TransactionHead { position, time: at.time, origin },
            changes: Vec::new(),
            bytes: 0,
            last_ordinal: 0,
            first: true,
            skip,
        });
        Ok(())
    }

    /// Adds a change to its transaction; says whether it was the last.
    fn change(&mut self, decoded: Decoded, header: &Header, offset: Offset) -> Result<bool> {
        if header.flags.has(Flags::FIRST) {
            self.begin(decoded.position, &decoded.origin, header, offset)?;
        }
        let open = self.open.as_mut().ok_or_else(|| misplaced(header, offset, "no transaction is open"))?;
        require_same(open, decoded.position, header, offset)?;
        let first = open.first && open.changes.is_empty();
        if !first && decoded.ordinal <= open.last_ordinal {
            return Err(misplaced(header, offset, "its ordinal goes back within its transaction"));
        }
        open.last_ordinal = decoded.ordinal;
        let last = header.flags.has(Flags::LAST);
        if last {
            open.head.position = decoded.position;
        }
        let for_us = decoded.to.is_none_or(|to| to.iter().any(|to| to == self.here.as_str()));
        if !open.skip && for_us {
            let weight = weight(&decoded.change);
            open.bytes += weight;
            open.changes.push(Ordered { ordinal: decoded.ordinal, change: decoded.change });
            self.bytes += weight;
            self.changes += 1;
        }
        Ok(last)
    }

    /// The open transaction is complete.
    fn end(&mut self, arrival: Arrival) {
        let answer = self.answer.take();
        let Some(open) = self.open.take() else { return };
        if open.skip {
            return;
        }
        self.cursor.position = Some(open.head.position);
        let frame = Frame { head: open.head, changes: open.changes, first: open.first, last: true };
        self.items.push_back(Item::Step(Step { frame, through: self.cursor, arrival, answer }));
    }

    /// What there is of the open transaction goes ahead.
    fn slice(&mut self, arrival: Arrival) {
        let Some(open) = &mut self.open else { return };
        let frame = Frame {
            head: open.head.clone(),
            changes: std::mem::take(&mut open.changes),
            first: std::mem::replace(&mut open.first, false),
            last: false,
        };
        open.bytes = 0;
        self.items.push_back(Item::Step(Step { frame, through: self.cursor, arrival, answer: None }));
    }

    /// The next thing to do, where there is one.
    pub fn give(&mut self) -> Option<Output> {
        if matches!(self.items.front(), Some(Item::Abandon)) {
            self.items.pop_front();
            self.fresh_shapes.append(&mut self.shapes_given_ahead);
            return Some(Output::Abandon);
        }
        let mut steps = Vec::new();
        while let Some(Item::Step(step)) = self.items.front() {
            // What a backfill brings changes how the changes behind it are to be taken.
            let whole = step.frame.is_whole() && !step.is_copy();
            // An answer is compared with what is there when it is the last that was applied.
            let ends = !whole || step.answer.is_some();
            if !whole && !steps.is_empty() {
                break;
            }
            if let Some(Item::Step(step)) = self.items.pop_front() {
                self.changes -= step.frame.changes.len();
                self.bytes -= step.frame.changes.iter().map(|ordered| weight(&ordered.change)).sum::<usize>();
                steps.push(step);
            }
            if ends {
                break;
            }
        }
        let all_given = self.items.is_empty() && self.is_between();
        let through = match steps.last() {
            // Records that change nothing have followed: the place behind them is as good.
            _ if all_given => self.cursor,
            Some(step) => step.through,
            None => return None,
        };
        if steps.is_empty() && self.heartbeat.is_none() && !self.is_place_due() {
            return None;
        }
        let after = self.after;
        let open = steps.last().is_some_and(|step| !step.frame.last);
        let mut heartbeat = None;
        let shapes = std::mem::take(&mut self.fresh_shapes);
        if open {
            self.shapes_given_ahead.extend(shapes.iter().cloned());
        } else {
            self.shapes_given_ahead.clear();
            self.after = through.sequence;
            self.placed_at = Instant::now();
            if all_given {
                heartbeat = self.heartbeat.take();
            }
        }
        Some(Output::Batch(Batch {
            incarnation: self.incarnation,
            after,
            through,
            steps,
            shapes,
            heartbeat,
            grouping: Grouping::Many,
        }))
    }
}

/// What a peer's clock goes ahead of ours: nothing arrives before it was sent, neither there nor back.
fn clocks_of(beat: &Beat, here: &Region, now: Micros) -> Option<Between> {
    let echo = beat.echo.iter().find(|echo| echo.region == here.as_str())?;
    Some(Between { least: beat.sent.seconds_since(now), most: echo.arrived.seconds_since(echo.sent) })
}

/// Refuses what is of another transaction than the one that is open.
fn require_same(open: &Open, position: Position, header: &Header, offset: Offset) -> Result<()> {
    let (Position::Postgres(begun), Position::Postgres(at)) = (open.head.position, position);
    if (begun.commit, begun.xid) == (at.commit, at.xid) {
        return Ok(());
    }
    Err(misplaced(header, offset, "it belongs to another transaction than the one that is open"))
}

fn weight(change: &Change) -> usize {
    change.weight()
}

fn misplaced(header: &Header, offset: Offset, why: &str) -> Fault {
    let place = format!("{} record {} at {offset}", header.kind, header.sequence);
    Fault::new(Code::RecordCorrupt, format!("{place}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        change::Identity,
        envelope::body::Echo,
        lsn::Lsn,
        position::{PostgresPosition, WriterEpoch},
        verify::Found,
    };

    #[test]
    fn two_clocks_differ_by_what_there_and_back_allow() {
        // Ours says 1,000 s when theirs says 1,005; each way takes 0.1 s; it lay there for 2 s.
        let seconds = |seconds: f64| Micros((seconds * 1e6) as i64);
        let echo = Echo { region: "eu-west-1".into(), sent: seconds(1000.0), arrived: seconds(1005.1) };
        let beat = Beat { sent: seconds(1007.1), echo: vec![echo] };
        let here = "eu-west-1".parse().unwrap();
        let Between { least, most } = clocks_of(&beat, &here, seconds(1002.2)).unwrap();
        assert!((least - 4.9).abs() < 1e-6 && (most - 5.1).abs() < 1e-6, "{least} {most}");
        assert_eq!(clocks_of(&beat, &"us-east-1".parse().unwrap(), seconds(1002.2)), None);
    }

    fn assembler(here: Region) -> Assembler {
        let limits = BatchLimits { changes: 10, bytes: 1_000 };
        let start =
            Cursor { sequence: Sequence(0), epoch: WriterEpoch(0), offset: Offset(-1), position: None };
        Assembler::new(Incarnation(1), start, Sequence(0), Vec::new(), limits, here)
    }

    /// The next record comes.
    fn take(assembler: &mut Assembler, kind: Kind, flags: Flags, value: Vec<u8>) {
        let sequence = assembler.cursor.sequence.next();
        let header = Header { kind, flags, epoch: WriterEpoch(1), incarnation: Incarnation(1), sequence };
        let arrival = Arrival { appended: Micros(1), fetched: Micros(2) };
        let offset = Offset(sequence.0 as i64);
        assembler.take(&header, (offset, false), &Bytes::from(value), arrival).unwrap();
    }

    fn head(origin: Region) -> TransactionHead {
        let at = PostgresPosition { commit: Lsn(1), end: Lsn(2), xid: 3, time: Micros(4) };
        TransactionHead { position: Position::Postgres(at), time: at.time, origin }
    }

    #[test]
    fn shapes_that_went_with_a_transaction_that_is_abandoned_are_given_again() {
        let here: Region = "eu-west-1".parse().unwrap();
        let mut assembler = assembler(here.clone());
        let step = |assembler: &mut Assembler, first, last| {
            let frame = Frame { head: head(here.clone()), changes: Vec::new(), first, last };
            let arrival = Arrival { appended: Micros(1), fetched: Micros(2) };
            assembler.items.push_back(Item::Step(Step {
                frame,
                through: assembler.cursor,
                arrival,
                answer: None,
            }));
        };
        let shapes = |assembler: &mut Assembler| match assembler.give() {
            Some(Output::Batch(batch)) => Some(batch.shapes.len()),
            Some(Output::Abandon) => None,
            None => panic!("nothing was given"),
        };
        let shape = |table: &str| Arc::new(Shape::new("public", table, Identity::Default, []));
        assembler.fresh_shapes.push(shape("one"));
        step(&mut assembler, true, false);
        assert_eq!(shapes(&mut assembler), Some(1));
        assembler.fresh_shapes.push(shape("other"));
        step(&mut assembler, false, false);
        assert_eq!(shapes(&mut assembler), Some(1));
        assembler.items.push_back(Item::Abandon);
        assert_eq!(shapes(&mut assembler), None);
        step(&mut assembler, true, false);
        assert_eq!(shapes(&mut assembler), Some(2), "with whatever comes next");
        step(&mut assembler, false, true);
        assert_eq!(shapes(&mut assembler), Some(0));
        step(&mut assembler, true, true);
        assert_eq!(shapes(&mut assembler), Some(0), "once it has ended they are kept");
    }

    /// Whoever goes on there has lost the parts before it, and takes the rest for the whole.
    #[test]
    fn no_place_is_told_in_the_middle_of_a_value_that_comes_in_parts() {
        let here: Region = "eu-west-1".parse().unwrap();
        let mut assembler = assembler(here.clone());
        let position = head(here.clone()).position;
        let beat = || {
            let beat = Beat { sent: Micros(1), echo: Vec::new() };
            body::to_value(&HeartbeatBody { position, beat })
        };
        let through = |assembler: &mut Assembler| match assembler.give() {
            Some(Output::Batch(batch)) => Some((batch.through.sequence, batch.heartbeat.is_some())),
            _ => None,
        };
        take(&mut assembler, Kind::Heartbeat, Flags::NONE, beat());
        assert_eq!(through(&mut assembler), Some((Sequence(1), true)));

        // A transaction that is whole, a beat, and the first half of what begins the next.
        let frame = Frame { head: head(here), changes: Vec::new(), first: true, last: true };
        let arrival = Arrival { appended: Micros(1), fetched: Micros(2) };
        let step = Step { frame, through: assembler.cursor, arrival, answer: None };
        take(&mut assembler, Kind::Heartbeat, Flags::NONE, beat());
        assembler.items.push_back(Item::Step(step));
        take(&mut assembler, Kind::Part, Flags::PART_FIRST.with(Flags::FIRST), b"half of ".to_vec());
        assembler.placed_at -= 2 * PLACE_INTERVAL;
        assert_eq!(through(&mut assembler), Some((Sequence(1), false)), "the place of the step");
        assembler.placed_at -= 2 * PLACE_INTERVAL;
        assert!(!assembler.is_ready(), "neither for the beat nor for the place");
        assert_eq!(through(&mut assembler), None);

        // Its writer died; the next says that nothing more comes.
        take(&mut assembler, Kind::Idle, Flags::NONE, body::to_value(&Idle { position }));
        assert!(assembler.is_ready());
        assert_eq!(through(&mut assembler), Some((Sequence(4), true)));
    }

    /// Neither at once nor by whoever goes on in the middle of it.
    #[test]
    fn what_is_sent_again_behind_an_anchor_is_not_applied_again() {
        let here: Region = "eu-west-1".parse().unwrap();
        let place = |commit, end| {
            let at = PostgresPosition { commit: Lsn(commit), end: Lsn(end), xid: 3, time: Micros(4) };
            Position::Postgres(at)
        };
        // A transaction that is one record.
        let transaction = |assembler: &mut Assembler, position| {
            let answer = Answer {
                verification: "v".to_owned(),
                number: 1,
                took_micros: 1,
                layout: None,
                found: Found::Keys(Vec::new()),
                unsure: Vec::new(),
                all_unsure: false,
            };
            let (origin, to) = ("us-east-1".to_owned(), vec!["eu-west-1".to_owned()]);
            let value = body::to_value(&Answered { position, ordinal: 0, origin, to, answer });
            take(assembler, Kind::Answer, Flags::FIRST.with(Flags::LAST), value);
        };
        let mut first = assembler(here.clone());
        first.cursor.position = Some(place(190, 200));
        first.anchored(Sequence(10));
        transaction(&mut first, place(100, 110));
        assert!(!first.is_ready(), "it is here");
        let beat = Beat { sent: Micros(1), echo: Vec::new() };
        let beat = body::to_value(&HeartbeatBody { position: place(110, 120), beat });
        take(&mut first, Kind::Heartbeat, Flags::NONE, beat);
        let Some(Output::Batch(batch)) = first.give() else { panic!("a beat is told") };
        assert_eq!(
            (batch.steps.len(), batch.through.position),
            (0, Some(place(190, 200))),
            "no place goes back"
        );

        let limits = BatchLimits { changes: 10, bytes: 1_000 };
        let (incarnation, after) = (Incarnation(1), batch.through.sequence);
        let mut next = Assembler::new(incarnation, batch.through, after, Vec::new(), limits, here);
        transaction(&mut next, place(150, 160));
        transaction(&mut next, place(190, 200));
        assert!(!next.is_ready(), "they are here as well");
        transaction(&mut next, place(200, 210));
        let Some(Output::Batch(batch)) = next.give() else { panic!("this one is not") };
        assert_eq!((batch.steps.len(), batch.through.position), (1, Some(place(200, 210))));
    }

    /// Whoever reads asks before each turn, and would turn for ever.
    #[test]
    fn a_beat_before_a_transaction_that_is_not_complete_is_no_reason_to_ask_again() {
        let here: Region = "eu-west-1".parse().unwrap();
        let mut assembler = assembler(here.clone());
        let beat = Heartbeat { sent: Micros(1), appended: None, arrived: Micros(2) };
        assembler.heartbeat = Some(beat);
        assert!(assembler.is_ready());
        assert!(matches!(assembler.give(), Some(Output::Batch(batch)) if batch.heartbeat.is_some()));

        let open = Open {
            head: head(here),
            changes: Vec::new(),
            bytes: 0,
            last_ordinal: 0,
            first: true,
            skip: false,
        };
        (assembler.heartbeat, assembler.open) = (Some(beat), Some(open));
        assert!(!assembler.is_ready());
        assert!(assembler.give().is_none());

        assembler.open = None;
        assert!(assembler.is_ready());
        assert!(matches!(assembler.give(), Some(Output::Batch(batch)) if batch.heartbeat.is_some()));
    }
}
