//! A table whose rows nothing tells apart, read from its first row to its last under one snapshot.
//!
//! ```text
//!  lock the table ▶ take the snapshot ▶ COPY ─ portion ─ portion ─ … ─ last ▶ ROLLBACK
//!        │ against changes of its shape   │ the server waits while nobody takes one
//!        └ whoever waits for the table is let in: reading ends, and begins anew
//! ```
//!
//! Nothing says of such a table how far it has been read, so what ends early begins anew. Meanwhile the server keeps what
//! the snapshot sees: rows that die are not vacuumed away, in any table of the database.
//!
//! Whoever waits for the table is let in (`Lookout`).

use std::{
    pin::{Pin, pin},
    time::{Duration, Instant},
};

use futures_util::TryStreamExt;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_postgres::CopyOutStream;

use super::{
    PostgresSourceConfig,
    copier::CHUNK_BYTES,
    table::{SNAPSHOT, Table, Texts, begin_to_read, snapshot_of},
};
use crate::{
    fault::{Code, Fault, Result},
    postgres::{Connection, GIVE_WAY_INTERVAL, Lookout, connect, fault_of},
    source::Snapshot,
    task,
};

/// What becomes of a table somebody else was let in to.
const BEGINS_ANEW: &str = "the table is copied from its first row again; where this happens again and again, do it when the backfill is done";
/// The first portion is small: changes are kept aside from before the snapshot until it stands in the log.
const FIRST_ROWS: u64 = 1_000;

fn sql(doing: &'static str) -> impl Fn(tokio_postgres::Error) -> Fault {
    move |error| fault_of(&error).at(doing)
}

/// Sessions to read a table with: made before its low watermark is sent, since that takes a while.
pub(super) struct Sessions {
    reader: Connection,
    lookout: Lookout,
}

/// A table that is being read. Ends with its value, wherever it stands.
pub(super) struct Reading {
    pub(super) table: Table,
    pub(super) seen: Snapshot,
    portions: mpsc::Receiver<Result<Portion>>,
    task: JoinHandle<()>,
}

/// Some of its rows.
pub(super) struct Portion {
    pub(super) texts: Texts,
    pub(super) is_first: bool,
    pub(super) is_last: bool,
    /// How long reading them took.
    pub(super) took: Duration,
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Sessions {
    pub(super) async fn open(config: &PostgresSourceConfig) -> Result<Self> {
        let application = format!("landfall backfill {}", config.stream);
        let reader = connect(&config.address, &application).await?;
        let settings = "set lock_timeout = '2s'";
        reader.batch_execute(settings).await.map_err(sql("set up a session that copies a table"))?;
        Ok(Self { reader, lookout: Lookout::open(&config.address, &application).await? })
    }

    /// Begins to read a table, at most so many rows at once; none where its rows can be told apart by now.
    pub(super) async fn read(self, schema: &str, name: &str, rows_max: u64) -> Result<Option<Reading>> {
        let failed = sql("read a table under one snapshot");
        let before = Table::look(&self.reader, schema, name).await?;
        self.reader.batch_execute(&begin_to_read(&before.from())).await.map_err(&failed)?;
        let seen = self.reader.query_one(SNAPSHOT, &[]).await.map_err(&failed)?;
        let seen = snapshot_of(seen.get(0))?;
        let table = Table::look(&self.reader, schema, name).await?;
        if !table.key.is_empty() {
            return Ok(None);
        }
        let copy = format!("COPY ({}) TO STDOUT", table.every_row());
        let copied = self.reader.copy_out(&copy).await.map_err(&failed)?;
        // One portion waits while the one before it is on its way.
        let (sender, portions) = mpsc::channel(1);
        let from = table.from();
        let task = task::spawn("table reader", async move {
            let outcome = hand_over(self, copied, &from, rows_max, &sender).await;
            // Before it is told: whoever waits for the table has waited long enough. Nobody may listen any more.
            if let Err(fault) = outcome {
                let _ = sender.send(Err(fault)).await;
            }
        });
        Ok(Some(Reading { table, seen, portions, task }))
    }
}

impl Reading {
    /// The next portion, when it is read.
    pub(super) async fn next(&mut self) -> Result<Portion> {
        let ended = || Err(Fault::new(Code::Internal, "the reading of a table has ended"));
        self.portions.recv().await.unwrap_or_else(ended)
    }
}

/// Reads portion after portion, each once there is room for it. The sessions end with it.
async fn hand_over(
    sessions: Sessions,
    copied: CopyOutStream,
    from: &str,
    rows_max: u64,
    portions: &mpsc::Sender<Result<Portion>>,
) -> Result<()> {
    let mut copied = pin!(copied);
    let mut is_first = true;
    let mut lookout = tokio::time::interval(GIVE_WAY_INTERVAL);
    loop {
        let room = tokio::select! {
            room = portions.reserve() => room,
            _ = lookout.tick() => {
                sessions.lookout.require_nobody_waits(from).await.map_err(|fault| fault.remedied_by(BEGINS_ANEW))?;
                continue;
            }
        };
        let Ok(room) = room else { return Ok(()) };
        let rows_max = if is_first { rows_max.min(FIRST_ROWS) } else { rows_max };
        let portion = portion(copied.as_mut(), is_first, rows_max).await.map_err(|fault| fault.at(from))?;
        let is_last = portion.is_last;
        if is_last {
            let ended = sessions.reader.batch_execute("ROLLBACK").await;
            ended.map_err(sql("end the reading of a table"))?;
        }
        room.send(Ok(portion));
        if is_last {
            return Ok(());
        }
        is_first = false;
    }
}

async fn portion(mut copied: Pin<&mut CopyOutStream>, is_first: bool, rows_max: u64) -> Result<Portion> {
    let since = Instant::now();
    let mut texts = Texts::new();
    let is_last = loop {
        match copied.try_next().await.map_err(sql("copy rows"))? {
            None => break true,
            Some(line) => texts.push(&line),
        }
        if texts.rows >= rows_max || texts.bytes >= CHUNK_BYTES {
            break false;
        }
    };
    Ok(Portion { texts, is_first, is_last, took: since.elapsed() })
}
