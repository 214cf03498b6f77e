//! A chunk that is read by several sessions, each its range of it, under one snapshot.
//!
//! ```text
//!  copier's own   lock ▶ snapshot, exported ▶ where ranges end ▶ COPY range 0 ─┐
//!  a further one         the same snapshot ─────────────────────▶ COPY range 1 ─┼▶ one chunk, in the key's order
//!  …                                                                            ┘
//! ```
//!
//! They all see the same, so together they are what one session would have read. A range that does not come to its end
//! ends the chunk: what was read before it is the chunk, and what was read behind it is read again with the next. So
//! neither a session that dies nor rows that are larger than those before leave anything out.
//!
//! HAZARD: the copier's own session holds the table until all have read, and a further one that waits for the table does
//! so behind somebody who waits for the first. The server sees no deadlock there: [`LOCK_TIMEOUT`] ends it.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::{
    Stream,
    future::{join, join_all, poll_fn},
};
use tokio::time::timeout;
use tokio_postgres::{CopyOutStream, SimpleQueryMessage};

use super::{
    PostgresSourceConfig,
    table::{
        ALONG_THE_INDEX, BEGIN, READ_BYTES_MAX, Read, SNAPSHOT, Table, Texts, begin_to_read, snapshot_of,
    },
};
use crate::{
    fault::{Code, Fault, Result},
    names::literal,
    postgres::{Connection, connect, fault_of},
};

/// How long none is opened after one failed.
const REST: Duration = Duration::from_secs(60);
/// How long opening them may take: the copier reads nothing meanwhile.
const PATIENCE_TO_OPEN: Duration = Duration::from_secs(2);
/// How long they stay open with nothing to do. A limit on what is read may have chunks come this slowly.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// How long a further session waits for the table: whoever is before it there waits for us.
const LOCK_TIMEOUT: &str = "set lock_timeout = '200ms'";
/// How long a further session may take to begin, to begin to send, to end, and to send behind the copier's own: that one
/// waits meanwhile, and whoever wants the table waits for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sessions beside the copier's own.
pub(super) struct Readers {
    open: Vec<Connection>,
    /// None is opened since then, for a while.
    rests: Option<Instant>,
    /// It was said that there are fewer than were asked for.
    told: bool,
    used: Instant,
}

fn sql(doing: &'static str) -> impl Fn(tokio_postgres::Error) -> Fault {
    move |error| fault_of(&error).at(doing)
}

impl Readers {
    pub(super) fn new() -> Self {
        Self { open: Vec::new(), rests: None, told: false, used: Instant::now() }
    }

    /// Opens those that were asked for and are missing, or as many as can be had.
    pub(super) async fn open(&mut self, config: &PostgresSourceConfig) {
        self.open.retain(|reader| !reader.is_closed());
        let wanted = usize::from(config.copy_sessions).saturating_sub(1);
        if self.open.len() >= wanted || self.rests.is_some_and(|since| since.elapsed() < REST) {
            return;
        }
        let opening = timeout(PATIENCE_TO_OPEN, async {
            while self.open.len() < wanted {
                self.open.push(open(config).await?);
            }
            Ok(())
        });
        let late = || Err(Fault::new(Code::DatabaseUnreachable, "no further session within two seconds"));
        match opening.await.unwrap_or_else(|_| late()) {
            Ok(()) => self.told = false,
            Err(fault) => self.do_without(&fault),
        }
    }

    fn do_without(&mut self, fault: &Fault) {
        self.rests = Some(Instant::now());
        if !mem::replace(&mut self.told, true) {
            tracing::warn!(%fault, next = fault.remedy(), "tables are read by fewer sessions than `copy_sessions` says");
        }
    }

    /// Ends them all.
    pub(super) fn close(&mut self) {
        self.open.clear();
    }

    /// Ends them where they had nothing to do for a while.
    pub(super) fn close_idle(&mut self) {
        if self.used.elapsed() > IDLE_MAX {
            self.close();
        }
    }

    /// The next rows, in the order of the key, read by `own` and those that are open.
    pub(super) async fn read(
        &mut self,
        own: &Connection,
        table: &Table,
        after: Option<&[String]>,
        limit: u64,
    ) -> Result<Read> {
        // Where this ends early, none is left that is in the middle of something.
        let mut readers = mem::take(&mut self.open);
        let of_use = usize::try_from(limit.saturating_sub(1)).unwrap_or(usize::MAX).min(readers.len());
        let at_rest = readers.split_off(of_use);
        if readers.is_empty() {
            self.open = at_rest;
            return table.read(own, after, limit).await;
        }
        let failed = sql("read a table by several sessions");
        let begin = format!("{}; {ALONG_THE_INDEX}; {SNAPSHOT}", begin_to_read(&table.from()));
        let shown = text_of(&own.simple_query(&begin).await.map_err(&failed)?)?;
        let seen = snapshot_of(&shown)?;
        let exported = match own.simple_query("SELECT pg_export_snapshot()").await {
            Ok(exported) => text_of(&exported)?,
            Err(error) => {
                self.do_without(&fault_of(&error).at("export a snapshot"));
                own.batch_execute("ROLLBACK").await.map_err(&failed)?;
                return table.read(own, after, limit).await;
            }
        };
        let step = limit / (readers.len() as u64 + 1);
        let begun = join_all(readers.iter().map(|reader| {
            let begun = timeout(PATIENCE, begin_as(reader, &exported, &shown));
            async { begun.await.unwrap_or_else(|_| Err(no_answer())) }
        }));
        let (ends, begun) = join(ends(own, table, after, step, readers.len()), begun).await;
        let mut ends = ends?;
        let mut sessions = Vec::with_capacity(readers.len());
        for (reader, begun) in readers.into_iter().zip(begun) {
            match begun {
                Ok(()) => sessions.push(reader),
                Err(fault) => self.do_without(&fault),
            }
        }
        ends.truncate(sessions.len());

        let count = ends.len() + 1;
        let starts = std::iter::once(after).chain(ends.iter().map(|end| Some(end.as_slice())));
        let copies =
            std::iter::once(own).chain(&sessions).zip(starts).enumerate().map(|(at, (session, start))| {
                let limit = if at + 1 < count { step } else { limit - step * at as u64 };
                let copy = format!("COPY ({}) TO STDOUT", table.chunk(start, limit));
                async move {
                    let copied = async { session.copy_out(&copy).await.map_err(|error| fault_of(&error)) };
                    if at == 0 {
                        return copied.await;
                    }
                    timeout(PATIENCE, copied).await.unwrap_or_else(|_| Err(no_answer()))
                }
            });
        let mut ranges = Ranges::of(join_all(copies).await).map_err(|fault| fault.at(&table.shape))?;
        ranges.read().await.map_err(|fault| fault.at(&table.shape))?;
        if let Some(fault) = ranges.lost.take() {
            self.do_without(&fault.at(&table.shape));
        }
        let whole = ranges.ranges.iter().take_while(|range| range.is_whole).count();
        let half_way = whole == 0;
        // What the server still sends to the others, nobody wants.
        let unused = sessions.split_off(count - 1);
        sessions.truncate(whole.saturating_sub(1));
        sessions.extend(unused);
        let end = async |session: &Connection| session.batch_execute("ROLLBACK").await;
        let own_end = async { if half_way { Ok(()) } else { end(own).await } };
        let ends_of_others = sessions.iter().map(|session| timeout(PATIENCE, end(session)));
        let (own_end, ended) = join(own_end, join_all(ends_of_others)).await;
        own_end.map_err(sql("end the reading of a chunk"))?;
        let sessions = sessions
            .into_iter()
            .zip(ended)
            .filter_map(|(session, end)| matches!(end, Ok(Ok(()))).then_some(session));

        let mut read = Read {
            texts: Vec::new(),
            rows: 0,
            bytes: 0,
            seen,
            cut: whole < count,
            half_way,
            sessions: u32::try_from(count).unwrap_or(u32::MAX),
            looked: None,
        };
        for (at, range) in ranges.ranges.into_iter().enumerate() {
            (read.rows, read.bytes) = (read.rows + range.texts.rows, read.bytes + range.texts.bytes);
            let texts = range.texts.into_texts();
            if range.is_whole && ends.get(at).is_some_and(|end| table.last_key(&texts).as_ref() != Some(end))
            {
                let message = format!("a range of {} did not end where its index says", table.shape);
                let fault = Fault::new(Code::Internal, message);
                self.do_without(&fault);
                return Err(fault);
            }
            read.texts.extend(texts);
        }
        self.open = sessions.chain(at_rest).collect();
        self.used = Instant::now();
        Ok(read)
    }
}

fn no_answer() -> Fault {
    Fault::new(Code::DatabaseUnreachable, "a further session gives no answer")
}

async fn open(config: &PostgresSourceConfig) -> Result<Connection> {
    let application = format!("landfall backfill {} beside", config.stream);
    let reader = connect(&config.address, &application).await?;
    reader.batch_execute(LOCK_TIMEOUT).await.map_err(sql("set up a further session that copies"))?;
    Ok(reader)
}

/// Begins a transaction that sees what was exported: `shown`, or an address leads to more than one server.
async fn begin_as(reader: &Connection, exported: &str, shown: &str) -> Result<()> {
    let failed = sql("read under an exported snapshot");
    let id = literal(exported);
    let begin = format!("{BEGIN}; {ALONG_THE_INDEX}; SET TRANSACTION SNAPSHOT {id}; {SNAPSHOT}");
    let sees = text_of(&reader.simple_query(&begin).await.map_err(&failed)?)?;
    if sees == shown {
        return Ok(());
    }
    Err(Fault::new(Code::DatabaseUnreachable, format!("a further session sees {sees}, not {shown}")))
}

/// The keys that the first ranges end with, of so many rows each: as many as are asked for, or as there are.
async fn ends(
    own: &Connection,
    table: &Table,
    after: Option<&[String]>,
    rows: u64,
    count: usize,
) -> Result<Vec<Vec<String>>> {
    let mut ends: Vec<Vec<String>> = Vec::with_capacity(count);
    while ends.len() < count {
        let after = ends.last().map(Vec::as_slice).or(after);
        let Some(end) = table.end_of(own, after, rows).await? else { break };
        ends.push(end);
    }
    Ok(ends)
}

/// The one value that was asked for.
fn text_of(messages: &[SimpleQueryMessage]) -> Result<String> {
    let text = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    text.ok_or_else(|| Fault::new(Code::ProtocolUnknown, "the server gave no value"))
}

/// Ranges of a chunk, in the key's order. The first is the copier's own.
struct Ranges {
    ranges: Vec<Range>,
    /// Of all of them.
    bytes: u64,
    /// Why the chunk ends before one of them.
    lost: Option<Fault>,
}

struct Range {
    /// Until its last row has come.
    copied: Option<Pin<Box<CopyOutStream>>>,
    is_whole: bool,
    texts: Texts,
}

type Copied = Result<CopyOutStream>;

impl Ranges {
    fn of(copies: Vec<Copied>) -> Result<Self> {
        let mut ranges = Self { ranges: Vec::with_capacity(copies.len()), bytes: 0, lost: None };
        for copied in copies {
            match copied {
                Ok(copied) => ranges.ranges.push(Range {
                    copied: Some(Box::pin(copied)),
                    is_whole: false,
                    texts: Texts::new(),
                }),
                Err(fault) if ranges.ranges.is_empty() => return Err(fault),
                Err(fault) => {
                    ranges.lost = Some(fault);
                    break;
                }
            }
        }
        Ok(ranges)
    }

    /// Takes all that comes. Of those that send nothing more, a while after the copier's own has ended, none is waited for.
    async fn read(&mut self) -> Result<()> {
        poll_fn(|context| match self.poll(context) {
            Poll::Pending if self.ranges[0].copied.is_none() => Poll::Ready(Ok(())),
            polled => polled,
        })
        .await?;
        while let Some(at) = self.ranges.iter().position(|range| range.copied.is_some()) {
            let before = self.bytes;
            match timeout(PATIENCE, poll_fn(|context| self.poll(context))).await {
                Ok(read) => return read,
                Err(_) if self.bytes > before => (),
                Err(_) => {
                    self.lost = Some(no_answer());
                    self.give_up_from(at);
                }
            }
        }
        Ok(())
    }

    /// Takes what has come; ready when nothing more does.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        let mut at = 0;
        while at < self.ranges.len() {
            self.poll_range(at, context)?;
            at += 1;
        }
        // Each of these was asked until it had nothing.
        let waits = self.ranges.iter().any(|range| range.copied.is_some());
        if waits { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    fn poll_range(&mut self, at: usize, context: &mut Context<'_>) -> Result<()> {
        while let Some(range) = self.ranges.get_mut(at)
            && let Some(copied) = &mut range.copied
        {
            match copied.as_mut().poll_next(context) {
                Poll::Pending => break,
                Poll::Ready(None) => (range.copied, range.is_whole) = (None, true),
                Poll::Ready(Some(Ok(line))) => {
                    range.texts.push(&line);
                    self.bytes += line.len() as u64;
                    self.keep_within(READ_BYTES_MAX as u64);
                }
                Poll::Ready(Some(Err(error))) if at == 0 => return Err(fault_of(&error)),
                Poll::Ready(Some(Err(error))) => {
                    self.lost = Some(fault_of(&error));
                    self.give_up_from(at);
                }
            }
        }
        Ok(())
    }

    /// Ends the chunk in its last range where all before it is there, and before its last range where not, for as often
    /// as it is too large.
    fn keep_within(&mut self, bytes_max: u64) {
        while self.bytes > bytes_max {
            let last = self.ranges.len() - 1;
            if self.ranges[..last].iter().all(|range| range.is_whole) {
                self.ranges[last].copied = None;
                return;
            }
            self.give_up_from(last);
        }
    }

    fn give_up_from(&mut self, at: usize) {
        for range in self.ranges.drain(at..) {
            self.bytes -= range.texts.bytes;
        }
    }
}
