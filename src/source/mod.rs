//! The port to a source: a database's committed transactions, in commit order.

pub mod memory;
pub mod postgres;

use std::future::Future;

use bytes::Bytes;

use crate::{
    change::Ordered,
    envelope::body::Server,
    fault::Result,
    position::{Incarnation, Position, WriterEpoch},
};

/// What a source sends.
#[derive(Clone, Debug)]
pub enum Event {
    /// A transaction begins; its `end` is not known yet and repeats `commit`.
    Begin(Position),
    /// The transaction begun was applied from elsewhere, under this replication origin.
    Origin(String),
    /// A change of the transaction begun.
    Change(Ordered),
    /// One of our own heartbeats, inside the transaction begun.
    Heartbeat(Bytes),
    /// The transaction begun ends here.
    Commit(Position),
    /// Everything up to here has been sent.
    Idle(Position),
}

/// What a source found when it took hold of its log.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The server.
    pub server: Server,
    /// The stream's life, as the database knows it.
    pub incarnation: Incarnation,
    /// Whether the stream has begun: then nothing may be created in place of what is missing.
    pub live: bool,
    /// The stream holds everything committed after this.
    pub consistent: Position,
    /// The server sends again everything committed after this, and nothing before it.
    pub confirmed: Position,
    /// Up to where the server's log goes now.
    pub written: Position,
    /// The tables of the stream, `schema.table`.
    pub scope: Vec<String>,
}

/// A database's log. One session at a time holds it.
pub trait Source: Send {
    /// Works beside the log while it is read.
    type Keeper: Keeper;

    /// Takes hold of the log and begins to read it.
    ///
    /// # Errors
    /// [`Code::SlotBusy`](crate::fault::Code::SlotBusy) where another session holds it.
    fn open(&mut self) -> impl Future<Output = Result<(Opened, Self::Keeper)>> + Send;

    /// The next event. Safe to be cancelled.
    fn next(&mut self) -> impl Future<Output = Result<Event>> + Send;

    /// The log up to here may be released: it stands elsewhere, durably.
    fn confirm(&mut self, position: &Position);
}

/// What a database says of the slot beside the stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vitals {
    /// Log kept for us, in bytes.
    pub retained_bytes: Option<u64>,
    /// Log that may still be written before the server gives the slot up, where it has a limit.
    pub safe_bytes: Option<u64>,
    /// Tables in scope that are not published, each with the reason.
    pub left_out: Vec<String>,
}

/// Works beside a log that is being read, on a connection of its own.
pub trait Keeper: Send + 'static {
    /// Takes the next writer epoch, higher than every one before and than `above`.
    fn raise_epoch(&mut self, above: WriterEpoch) -> impl Future<Output = Result<WriterEpoch>> + Send;

    /// Notes that the stream has begun.
    fn mark_live(&mut self) -> impl Future<Output = Result<()>> + Send;

    /// Sends a heartbeat through the log.
    fn beat(&mut self, content: &str) -> impl Future<Output = Result<()>> + Send;

    /// Looks after the slot and the publication.
    ///
    /// # Errors
    /// What must stop the stream.
    fn inspect(&mut self) -> impl Future<Output = Result<Vitals>> + Send;
}
