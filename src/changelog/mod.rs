//! The port to the durable buffer: one stream's log, appended to in its own region and read from
//! the others.

pub mod kafka;
pub mod memory;

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;

use crate::{
    envelope::{Header, InvalidHeader},
    fault::Result,
    position::{Incarnation, Offset},
    stamp::Micros,
};

/// A record as read.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Where it stood.
    pub offset: Offset,
    /// Whether more stand there behind it.
    pub more: bool,
    /// When the log took it in, on the log's clock.
    pub appended: Micros,
    /// Its header, proven against key and value; or what is wrong with it.
    pub header: std::result::Result<Header, InvalidHeader>,
    /// Its value.
    pub value: Bytes,
}

/// What is in a log now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The oldest record kept, or where the next one will stand.
    pub low: Offset,
    /// Where the next record will stand.
    pub high: Offset,
}

/// One stream's log.
pub trait Log: Send + Sync + 'static {
    /// Appends to it.
    type Writer: Writer;
    /// Reads it.
    type Reader: Reader;

    /// Makes sure that the log is what it must be, and creates it where it `may` be created.
    ///
    /// # Errors
    /// [`Code::TopicSettings`](crate::fault::Code::TopicSettings) with each difference.
    fn ensure(&self, may_create: bool) -> impl Future<Output = Result<()>> + Send;

    /// What is in it now; none where it does not exist.
    ///
    /// # Errors
    /// [`Code::PartitionsChanged`](crate::fault::Code::PartitionsChanged) where it is not one log
    /// any more; unreachable.
    fn bounds(&self) -> impl Future<Output = Result<Option<Bounds>>> + Send;

    /// How long it keeps a record at least; none where for ever, or unknown.
    fn retention(&self) -> impl Future<Output = Result<Option<Duration>>> + Send;

    /// Opens it for appending. Does not keep others from appending: epochs do.
    fn writer(&self) -> Result<Self::Writer>;

    /// Reads from `from` on, which must be within the bounds: every record that stands there.
    fn reader(&self, from: Offset) -> Result<Self::Reader>;

    /// The last checkpoint kept beside it.
    fn checkpoint(&self) -> impl Future<Output = Result<Option<Vec<u8>>>> + Send;

    /// Where region `to` may begin the stream in its middle, as it was last kept.
    fn start(&self, to: &str) -> impl Future<Output = Result<Option<Vec<u8>>>> + Send;

    /// Asks the region whose log it is for something. Nobody promises an answer: what is asked while its source is
    /// away is lost.
    ///
    /// # Errors
    /// It could not be put where that region reads it.
    fn ask(&self, question: &[u8]) -> impl Future<Output = Result<()>> + Send;

    /// Reads what other regions ask, from now on: each question is a record's value, without a header of ours. Makes
    /// the place they are put in, where there is none.
    fn questions(&self) -> impl Future<Output = Result<Self::Reader>> + Send;

    /// Shows people and tools up to where a reader has applied it. Never the truth.
    fn publish(&self, next: Offset);

    /// What the reader of that group last published; none where it never did. It may be late, or lost.
    ///
    /// # Errors
    /// It cannot be asked now, or not by us.
    fn published_by(&self, group: &str) -> impl Future<Output = Result<Option<Offset>>> + Send;
}

/// The life of the stream that a log holds: what its oldest record says, where there is one and it is ours.
///
/// # Errors
/// As for [`Log::bounds`] and [`Reader::read`].
pub async fn incarnation<L: Log>(log: &L, bounds: Bounds) -> Result<Option<Incarnation>> {
    if bounds.low == bounds.high {
        return Ok(None);
    }
    let entries = log.reader(bounds.low)?.read().await?;
    Ok(entries.first().and_then(|entry| entry.header.as_ref().ok()).map(|header| header.incarnation))
}

/// How many records a writer was given, and how many of them every in-sync replica has: for whoever watches it while it
/// waits.
#[derive(Debug, Default)]
pub struct Counts {
    given: AtomicU64,
    acknowledged: AtomicU64,
}

impl Counts {
    /// Records that were queued.
    pub fn given(&self) -> u64 {
        self.given.load(Ordering::Acquire)
    }

    /// As for [`Writer::acknowledged`].
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    fn give(&self, records: u64) {
        self.given.fetch_add(records, Ordering::Release);
    }

    fn acknowledge(&self, records: u64) {
        self.acknowledged.fetch_add(records, Ordering::Release);
    }
}

/// Appends to a log. Records stand in it in the order they were given, each once. Several that were given one after the
/// other may stand at one offset.
pub trait Writer: Send + 'static {
    /// Takes a record; waits while the queue is full, and says how long it did. It may be kept until others come, or
    /// [`Writer::hand_over`] is called. Durable only once counted by [`Writer::acknowledged`].
    ///
    /// # Errors
    /// A record before it could not be appended: nothing more will be. Open another writer.
    fn append(
        &mut self,
        header: &Header,
        key: &[u8],
        value: &[u8],
    ) -> impl Future<Output = Result<Duration>> + Send;

    /// Queues whatever was taken and kept; waits and fails as [`Writer::append`] does. To be called before anything is
    /// waited for.
    fn hand_over(&mut self) -> impl Future<Output = Result<Duration>> + Send;

    /// How many of this writer's records every in-sync replica has, from the first on without a gap.
    fn acknowledged(&self) -> u64;

    /// The same, and what it was given.
    fn counts(&self) -> Arc<Counts>;

    /// The offset of the last record acknowledged, where the log told.
    fn last_offset(&self) -> Option<Offset>;

    /// Returns when [`Writer::acknowledged`] is more than `seen`.
    ///
    /// # Errors
    /// As for [`Writer::append`].
    fn acknowledged_beyond(&self, seen: u64) -> impl Future<Output = Result<()>> + Send;

    /// Queues a checkpoint beside the log, in place of the one before. Where nothing is taken there, it may be left out, or
    /// come behind a newer one.
    fn keep_checkpoint(&mut self, value: &[u8]) -> Result<()>;

    /// Queues where region `to` may begin the stream, in place of where it could before. Where nothing is taken there, it may
    /// be left out, later than a checkpoint is.
    fn keep_start(&mut self, to: &str, value: &[u8]) -> Result<()>;

    /// For how long nothing that was queued beside the log has been taken there; none where all of it has. The log itself
    /// waits for none of it.
    fn unkept(&mut self) -> Option<Duration>;

    /// Returns once nothing is queued any more, beside the log either.
    ///
    /// # Errors
    /// As for [`Writer::append`].
    fn all_kept(&self) -> impl Future<Output = Result<()>> + Send;

    /// How full the queue is, 0 to 1.
    fn fill(&self) -> f64;

    /// Bytes that went over the line so far, as they went: compressed, with all that the protocol adds.
    /// Known some seconds later; 0 where there is no line.
    fn sent(&self) -> u64;
}

/// Reads a log, in order, from where it was opened.
pub trait Reader: Send + 'static {
    /// The next records, at least one; waits for them. Safe to be cancelled.
    ///
    /// # Errors
    /// The log cannot be read on from here. Where that is because the place is out of its bounds,
    /// the code is [`Code::RetentionPassed`](crate::fault::Code::RetentionPassed), for the caller to
    /// find out which bound.
    fn read(&mut self) -> impl Future<Output = Result<Vec<Entry>>> + Send;

    /// The next records, where there are any now.
    ///
    /// # Errors
    /// As for [`Reader::read`].
    fn read_now(&mut self) -> Result<Option<Vec<Entry>>>;

    /// Bytes that came over the line so far, as they came: compressed, with all that the protocol adds.
    /// Known some seconds later; 0 where there is no line.
    fn received(&self) -> u64;
}
