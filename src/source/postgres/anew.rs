//! A stream that has lost something, forgotten at its source: whoever reads the database next begins another.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, error::SqlState};

use super::slot;
use crate::{
    fault::{Code, Fault, Result},
    postgres::{
        catalog::{self, SlotFacts},
        fault_of,
    },
};

/// A slot that one session reads for longer than this is read by a stream that goes on: twice as long as one that has
/// halted waits before it looks again, in a session of its own.
const SESSION_TIMEOUT: Duration = Duration::from_secs(12);
/// How long a session may take to end that is told to.
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// What a source's database knows of a stream.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The incarnation it has begun; none where it has begun nothing.
    pub incarnation: Option<String>,
    /// Its topic holds the beginning.
    pub is_live: bool,
    /// The server it came from; none where it has begun nothing.
    pub system: Option<String>,
    /// The slot, where there is one.
    pub slot: Option<SlotFacts>,
    /// Another stream that has begun, and is read through it.
    pub slot_of: Option<String>,
}

/// Looks at what a source's database knows of a stream.
///
/// # Errors
/// Where the server does not answer, or the role may not.
pub async fn known(client: &Client, stream: &str, slot_name: &str) -> Result<Known> {
    let slot = catalog::slot(client, slot_name).await?;
    let made = "SELECT to_regclass('landfall.stream') IS NOT NULL";
    if !client.query_one(made, &[]).await.map_err(sql("look for our own tables"))?.get::<_, bool>(0) {
        return Ok(Known { slot, ..Known::default() });
    }
    let row = "SELECT incarnation, live, system FROM landfall.stream WHERE stream = $1";
    let row = client.query_opt(row, &[&stream]).await.map_err(sql("read landfall.stream"))?;
    Ok(Known {
        incarnation: row.as_ref().map(|row| row.get(0)),
        is_live: row.as_ref().is_some_and(|row| row.get(1)),
        system: row.map(|row| row.get(2)),
        slot,
        slot_of: slot::other_stream(client, slot_name, stream).await?,
    })
}

/// Requires that no stream goes on through the slot: that nobody reads it, or somebody who begins again and again, as a
/// daemon that has halted does. Also where a stream goes on there is nobody for a moment, after a broken connection; so it
/// is looked for a while, but where the slot can send nothing any more.
///
/// # Errors
/// [`Code::SlotBusy`] where one session keeps reading.
pub async fn require_halted(client: &Client, slot: &str) -> Result<()> {
    let (mut last, mut readers) = (None, 0);
    let (mut since, mut held) = (Instant::now(), Instant::now());
    while since.elapsed() < SESSION_TIMEOUT {
        let Some(facts) = catalog::slot(client, slot).await?.filter(|slot| !slot.is_lost()) else {
            return Ok(());
        };
        match facts.active_pid {
            None => held = Instant::now(),
            Some(now) if last == Some(now) => (),
            // One other is what a stream that goes on has after a broken connection.
            Some(_) if readers == 2 => return Ok(()),
            Some(now) => {
                (last, readers) = (Some(now), readers + 1);
                (since, held) = (Instant::now(), Instant::now());
            }
        }
        sleep(LOOK).await;
    }
    let Some(reader) = last.filter(|_| held.elapsed() >= SESSION_TIMEOUT / 2) else { return Ok(()) };
    let message = format!("process {reader} of the server sends from slot `{slot}`: the stream goes on");
    Err(Fault::new(Code::SlotBusy, message).remedied_by(
        "leave it; where the stream is to be begun anew all the same, stop this region's daemon first",
    ))
}

/// Forgets a stream and the backfills of it, and drops its slot; a session that reads it is ended.
///
/// # Errors
/// Where the server does not answer, or the role may not. What is not forgotten then is by the next call.
pub async fn forget(client: &Client, stream: &str, slot: &str) -> Result<()> {
    let since = Instant::now();
    loop {
        let end = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
                    WHERE slot_name = $1 AND active_pid IS NOT NULL";
        client.execute(end, &[&slot]).await.map_err(sql("end the session that reads the slot"))?;
        let drop =
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1";
        match client.execute(drop, &[&slot]).await {
            Ok(_) => break,
            // It has not ended yet, or another has begun.
            Err(error) if error.code() == Some(&SqlState::OBJECT_IN_USE) && since.elapsed() < END_TIMEOUT => {
                sleep(LOOK).await;
            }
            Err(error) => return Err(sql("drop the slot")(error)),
        }
    }
    for table in ["backfill", "stream"] {
        let made = "SELECT to_regclass('landfall.' || $1) IS NOT NULL";
        let made = client.query_one(made, &[&table]).await.map_err(sql("look for our own tables"))?;
        if made.get(0) {
            let forget = format!("DELETE FROM landfall.{table} WHERE stream = $1");
            client.execute(&forget, &[&stream]).await.map_err(sql("forget the stream"))?;
        }
    }
    Ok(())
}

fn sql(doing: &'static str) -> impl Fn(tokio_postgres::Error) -> Fault {
    move |error| fault_of(&error).at(doing)
}
