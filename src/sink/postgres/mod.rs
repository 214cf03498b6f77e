//! A Postgres database as a target.
//!
//! ```text
//!  session    claim: own tables, lease, epoch, settings, origin
//!  life       whether whoever holds a target lives
//!  apply      batches, transactions; what is redone, what is flushed; in files of their own: slices, what is parked
//!  pipeline   one transaction's statements, sent without waiting in between
//!  lane       sessions beside it, for the rows of a chunk
//!  flusher    what is committed, flushed beside the batches
//!  guard      the progress row: compare-and-set that fails inside the server
//!  trouble    what an error of the server means to a batch
//!  known      tables looked at and statements prepared so far
//!  meanwhile  what changes in tables that are copied under one snapshot
//!  parked     what was kept aside, for whoever asks
//!  standing   what a target keeps of a stream, for whoever only looks
//!  table      whether the target's table takes a shape's rows, and how a row is found
//!  statement  SQL text, and rows as arrays
//! ```
//!
//! Rows and progress are committed together, so a commit may be asynchronous: a crash of the server
//! takes both back. What is *told* ([`Applied::flushed`]) is only what a synchronous commit has
//! flushed; the log is sequential, so one such commit flushes every one before it.

mod apply;
mod flusher;
mod guard;
mod inspect;
mod known;
mod lane;
mod life;
mod meanwhile;
pub mod parked;
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
pub use session::OWN_TABLES;
pub use standing::{Standing, standing};
pub use table::{Judgement, Obstacle, ObstacleKind, judge};

use self::{
    apply::{Condemned, Session},
    life::Doubt,
    session::Backend,
};
use super::{Applied, Attended, Batch, Claim, OnRefusal, Sink};
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
    /// How long commits may stay unflushed while more is waiting, before a flush is begun; what is told to others lags
    /// behind by this, the flush and a batch.
    pub flush_interval: Duration,
    /// How often the target is compared with the source, where nobody asks.
    pub verify_interval: Option<Duration>,
    /// What becomes of a transaction that the target refuses.
    pub on_refusal: OnRefusal,
    /// Sessions that bring in the rows of a backfill's chunk side by side; with 1, only the one that applies.
    pub copy_sessions: u16,
    /// How long one lock is waited for, before the batch is rolled back and tried again.
    pub lock_timeout: Duration,
}

impl PostgresSinkConfig {
    /// With the defaults: flushed every 100 ms, a lock waited for 10 s, compared when somebody asks, halted by what
    /// is refused, two sessions that copy.
    pub fn new(address: Address, to: Region, from: Region, stream: impl Into<String>) -> Self {
        let (flush_interval, lock_timeout) = (Duration::from_millis(100), Duration::from_secs(10));
        Self {
            address,
            to,
            from,
            stream: stream.into(),
            flush_interval,
            verify_interval: None,
            on_refusal: OnRefusal::Halt,
            copy_sessions: 2,
            lock_timeout,
        }
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
    /// Whether whoever holds the target lives.
    doubt: Doubt,
    /// What the next session is to keep aside.
    condemned: Option<Condemned>,
}

impl PostgresSink {
    /// A sink that holds nothing yet.
    pub fn new(config: PostgresSinkConfig) -> Self {
        Self {
            config: Arc::new(config),
            session: None,
            former: None,
            doubt: Doubt::default(),
            condemned: None,
        }
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
        let held = session::claim(&self.config, self.former, &mut self.doubt).await?;
        self.former = Some(held.backend);
        let claim = Claim {
            epoch: held.epoch,
            progress: held.progress.clone(),
            shapes: held.shapes.clone(),
            joining: held.joining.len(),
            recovers: held.recovers,
            parked: held.kept.transactions.len(),
        };
        self.session = Some(Session::new(self.config.clone(), held, self.condemned.take()).await?);
        Ok(claim)
    }

    async fn apply(&mut self, batch: &Batch) -> Result<Applied> {
        let mut session = self.take()?;
        match session.apply(batch).await {
            Ok(applied) => {
                self.session = Some(session);
                Ok(applied)
            }
            Err(fault) => {
                self.condemned = session.condemned();
                Err(fault.at(self.place()))
            }
        }
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

    async fn attend(&mut self) -> Result<Attended> {
        let mut session = self.take()?;
        let attended = session.attend().await.map_err(|fault| fault.at(self.place()))?;
        self.session = Some(session);
        Ok(attended)
    }
}
