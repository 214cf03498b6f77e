//! Flushing beside the batches.
//!
//! A server's log is sequential: a commit that waits for the disk takes every commit before it along, whoever made
//! them. So while batch follows batch another session makes that commit, and none of the batches waits. It sees the
//! progress that it flushes: so it is the same server, and no other that an address leads to meanwhile.

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinHandle, time::Instant};

use super::{PostgresSinkConfig, session::LANE};
use crate::{
    fault::{Code, Fault, Result},
    names::{self, literal},
    position::{ApplyEpoch, Sequence},
    postgres::{Connection, connect, fault_of},
    task,
};

/// A flush that lasts longer is given up: what is committed and not told of is kept in memory.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long nothing is flushed here after one was given up or refused.
const REST: Duration = Duration::from_secs(10);

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
    /// When the last flush that came to nothing was given up.
    gave_up: Option<Instant>,
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
    /// Begins to flush what the holder of `epoch` has committed by now, unless another flush is under way. False
    /// where nobody can for now, and whoever asks has to.
    pub(super) fn begin(
        &mut self,
        config: &Arc<PostgresSinkConfig>,
        (epoch, through): (ApplyEpoch, Sequence),
    ) -> bool {
        if self.gave_up.is_some_and(|since| since.elapsed() < REST) {
            return false;
        }
        if self.under_way.is_none() {
            let work = flush(config.clone(), self.connection.take(), epoch, through);
            let what = Flushed { through, since: Instant::now() };
            self.under_way = Some(UnderWay { what, work: task::spawn("flush", work) });
        }
        true
    }

    /// What has been flushed since the last call. Never waits.
    pub(super) async fn flushed(&mut self) -> Option<Flushed> {
        let mut flush = self.under_way.take()?;
        if !flush.work.is_finished() {
            if flush.what.since.elapsed() < PATIENCE {
                self.under_way = Some(flush);
            } else {
                self.give_up(&Fault::new(Code::TargetBusy, "no answer within a second"));
            }
            return None;
        }
        let broke = |error| Fault::new(Code::Internal, "the task that flushes broke").because(error);
        match (&mut flush.work).await.map_err(broke).and_then(|flushed| flushed) {
            Ok(connection) => {
                self.connection = Some(connection);
                Some(flush.what)
            }
            Err(fault) => {
                self.give_up(&fault);
                None
            }
        }
    }

    fn give_up(&mut self, fault: &Fault) {
        let seconds = REST.as_secs();
        tracing::warn!(%fault, "batches wait for the target's disk themselves for {seconds} s");
        self.gave_up = Some(Instant::now());
    }
}

/// A commit that waits for the disk. A message makes it: only what has written something is waited for.
async fn flush(
    config: Arc<PostgresSinkConfig>,
    connection: Option<Connection>,
    epoch: ApplyEpoch,
    through: Sequence,
) -> Result<Connection> {
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
    let message = format!(
        "SELECT pg_logical_emit_message(true, '{}', '') FROM landfall.progress
          WHERE link = {} AND stream = {} AND lane = {LANE} AND apply_epoch = $1::text::int8
            AND sequence >= $2::text::int8",
        names::FLUSH_PREFIX,
        literal(config.from.as_str()),
        literal(&config.stream),
    );
    let sent = connection.execute(&message, &[&epoch.0.to_string(), &through.0.to_string()]).await;
    match sent.map_err(doing)? {
        1 => Ok(connection),
        _ => {
            let message = format!("{} does not show what was committed up to {through}", config.address);
            Err(Fault::new(Code::Superseded, message))
        }
    }
}
