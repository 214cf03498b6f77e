//! A Postgres database as a target.
//!
//! ```text
//!  session    claim: own tables, lease, epoch, settings, origin
//!  apply      batches, transactions, slices; what is redone, what is flushed
//!  pipeline   one transaction's statements, sent without waiting in between
//!  guard      the progress row: compare-and-set that fails inside the server
//!  trouble    what an error of the server means to a batch
//!  known      tables looked at and statements prepared so far
//!  standing   what a target keeps of a stream, for whoever only looks
//!  table      whether the target's table takes a shape's rows, and how a row is found
//!  statement  SQL text, and rows as arrays
//! ```
//!
//! Rows and progress are committed together, so a commit may be asynchronous: a crash of the server
//! takes both back. What is *told* ([`Applied::flushed`]) is only what a synchronous commit has
//! flushed; the log is sequential, so one such commit flushes every one before it.

mod apply;
mod guard;
mod inspect;
mod known;
mod pipeline;
mod session;
mod standing;
mod statement;
mod table;
mod trouble;
pub mod verification;
mod wire;

use std::{sync::Arc, time::Duration};

pub use inspect::PostgresInspector;
pub use standing::{Standing, standing};
pub use table::{Judgement, Obstacle, ObstacleKind, judge};

use self::{apply::Session, session::Backend};
use super::{Applied, Batch, Claim, Sink};
use crate::{
    fault::{Code, Fault, Result},
    position::Sequence,
    postgres::Address,
    region::Region,
};

/// What a Postgres sink is told.
#[derive(Clone, Debug)]
pub struct PostgresSinkConfig {
    /// The target.
    pub address: Address,
    /// The region the target is in.
    pub to: Region,
    /// The region the stream comes from.
    pub from: Region,
    /// The stream.
    pub stream: String,
    /// How long commits may stay unflushed while more is waiting: what is told to others lags
    /// behind by no more than this.
    pub flush_interval: Duration,
    /// How often the target is compared with the source, where nobody asks.
    pub verify_interval: Option<Duration>,
    /// How long one lock is waited for, before the batch is rolled back and tried again.
    pub lock_timeout: Duration,
}

impl PostgresSinkConfig {
    /// With the defaults: flushed every 100 ms, a lock waited for 10 s, compared when somebody asks.
    pub fn new(address: Address, to: Region, from: Region, stream: impl Into<String>) -> Self {
        let (flush_interval, lock_timeout) = (Duration::from_millis(100), Duration::from_secs(10));
        let stream = stream.into();
        Self { address, to, from, stream, flush_interval, verify_interval: None, lock_timeout }
    }
}

/// Applies one stream to one Postgres database.
pub struct PostgresSink {
    config: Arc<PostgresSinkConfig>,
    /// Taken out while it is used, and put back where that went well: a session in an unknown state,
    /// or one whose user was cancelled, is dropped and with it its open transaction.
    session: Option<Session>,
    /// The backend of our last session. Nobody but us can be behind it.
    former: Option<Backend>,
}

impl PostgresSink {
    /// A sink that holds nothing yet.
    pub fn new(config: PostgresSinkConfig) -> Self {
        Self { config: Arc::new(config), session: None, former: None }
    }

    fn take(&mut self) -> Result<Session> {
        let unclaimed = || Fault::new(Code::Internal, "the sink was used without a claim");
        self.session.take().ok_or_else(unclaimed)
    }

    fn place(&self) -> String {
        let PostgresSinkConfig { from, to, stream, .. } = &*self.config;
        format!("apply {from}/{stream} in {to}")
    }
}

impl Sink for PostgresSink {
    async fn claim(&mut self) -> Result<Claim> {
        self.session = None;
        let held = session::claim(&self.config, self.former).await?;
        self.former = Some(held.backend);
        let claim = Claim {
            epoch: held.epoch,
            progress: held.progress.clone(),
            shapes: held.shapes.clone(),
            joining: held.joining.len(),
            recovers: held.recovers,
        };
        self.session = Some(Session::new(self.config.clone(), held).await?);
        Ok(claim)
    }

    async fn apply(&mut self, batch: &Batch) -> Result<Applied> {
        let mut session = self.take()?;
        let applied = session.apply(batch).await.map_err(|fault| fault.at(self.place()))?;
        self.session = Some(session);
        Ok(applied)
    }

    async fn flush(&mut self) -> Result<Sequence> {
        let mut session = self.take()?;
        let flushed = session.flush().await.map_err(|fault| fault.at(self.place()))?;
        self.session = Some(session);
        Ok(flushed)
    }

    async fn abandon(&mut self) -> Result<()> {
        let mut session = self.take()?;
        session.abandon().await.map_err(|fault| fault.at(self.place()))?;
        self.session = Some(session);
        Ok(())
    }
}
