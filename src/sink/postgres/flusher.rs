//! Flushing beside the batches.
//!
//! A server's log is sequential: a commit that waits for the disk takes every commit before it along, whoever made
//! them. So while batch follows batch another session makes that commit, and none of the batches waits.

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinHandle, time::Instant};

use super::PostgresSinkConfig;
use crate::{
    fault::{Code, Fault, Result},
    names,
    position::Sequence,
    postgres::{Connection, connect, fault_of},
    task,
};

/// A flush that has lasted so long is waited for: what is committed and not told of is kept in memory.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is flushed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flushed {
    /// Everything up to here.
    pub(super) through: Sequence,
    /// When it was committed, at the latest: what was committed later may not be flushed.
    pub(super) since: Instant,
}

/// A session that flushes, made when there is something to flush.
#[derive(Default)]
pub(super) struct Flusher {
    /// At rest.
    connection: Option<Connection>,
    under_way: Option<UnderWay>,
}

struct UnderWay {
    what: Flushed,
    /// Gives the session back.
    work: JoinHandle<Result<Connection>>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.work.abort();
    }
}

impl Flusher {
    /// Begins to flush what is committed by now, unless another flush is under way.
    pub(super) fn begin(&mut self, config: &Arc<PostgresSinkConfig>, through: Sequence) {
        if self.under_way.is_none() {
            let work = flush(config.clone(), self.connection.take());
            let what = Flushed { through, since: Instant::now() };
            self.under_way = Some(UnderWay { what, work: task::spawn("flush", work) });
        }
    }

    /// What has been flushed since the last call. Waits only for a flush that has lasted [`PATIENCE`].
    ///
    /// # Errors
    /// Where the server was out of reach, or refused.
    pub(super) async fn flushed(&mut self) -> Result<Option<Flushed>> {
        match &self.under_way {
            Some(flush) if flush.work.is_finished() || flush.what.since.elapsed() >= PATIENCE => {
                self.finish().await
            }
            _ => Ok(None),
        }
    }

    /// Waits for the flush that is under way.
    ///
    /// # Errors
    /// As those of [`Flusher::flushed`].
    pub(super) async fn finish(&mut self) -> Result<Option<Flushed>> {
        let Some(mut flush) = self.under_way.take() else { return Ok(None) };
        let ended = (&mut flush.work).await;
        let broke = |error| Fault::new(Code::Internal, "the task that flushes broke").because(error);
        self.connection = Some(ended.map_err(broke)??);
        Ok(Some(flush.what))
    }
}

/// A commit that waits for the disk. A message makes it: it needs no table, and only what has written something is
/// waited for.
async fn flush(config: Arc<PostgresSinkConfig>, connection: Option<Connection>) -> Result<Connection> {
    let doing = |error| fault_of(&error).at("flush what was committed");
    let connection = match connection.filter(|connection| !connection.is_closed()) {
        Some(connection) => connection,
        None => {
            let application = format!("landfall flush {}/{}", config.from, config.stream);
            let connection = connect(&config.address, &application).await?;
            connection.batch_execute("SET synchronous_commit = on").await.map_err(doing)?;
            connection
        }
    };
    let message = format!("SELECT pg_logical_emit_message(true, '{}', '')", names::FLUSH_PREFIX);
    connection.batch_execute(&message).await.map_err(doing)?;
    Ok(connection)
}
