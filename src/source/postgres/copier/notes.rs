//! What is kept of a backfill in schema `landfall`, and how it is written.

use std::time::Duration;

use tokio_postgres::{Client, Row};

use super::{super::throttle::Limits, sql};
use crate::fault::Result;

/// What a request and its tables are kept in.
pub(in crate::source::postgres) const TABLES: &str = "create table if not exists landfall.backfill (
    id text primary key,
    stream text not null,
    regions text[] not null,
    every_table boolean not null,
    state text not null default 'requested',
    max_rows_per_second bigint,
    max_bytes_per_second bigint,
    max_lag_seconds double precision,
    max_source_load double precision not null default 1,
    chunk_rows bigint not null,
    requested timestamptz not null default now(),
    begun timestamptz,
    ended timestamptz,
    start text,
    asked_by text,
    waits_for text);
create table if not exists landfall.backfill_table (
    backfill text not null references landfall.backfill on delete cascade,
    place int not null,
    schema_name text not null,
    table_name text not null,
    state text not null default 'waiting',
    after text[],
    key text[],
    rows bigint not null default 0,
    bytes bigint not null default 0,
    chunks bigint not null default 0,
    expected_rows bigint not null,
    expected_bytes bigint not null,
    begun timestamptz,
    ended timestamptz,
    primary key (backfill, place));
create table if not exists landfall.backfill_condition (
    backfill text primary key references landfall.backfill on delete cascade,
    condition text not null)";

/// What a backfill is held to, as [`held_to`] takes it.
pub(super) const LIMITS: &str =
    "max_rows_per_second, max_bytes_per_second, max_source_load, max_lag_seconds, chunk_rows";

/// Whether a table was begun, and the key it has come to.
pub(super) type Standing = (bool, Option<Vec<String>>);

/// What is to be kept once a portion is durable.
pub(super) struct Ticket {
    pub(super) backfill: String,
    /// Its table's, where it is of one.
    pub(super) place: Option<i32>,
    pub(super) kept: Kept,
}

pub(super) enum Kept {
    Begun,
    /// With the names of the columns its rows are read along.
    TableBegun(Vec<String>),
    /// In the same way, and its backfill with it.
    BothBegun(Vec<String>),
    Chunk(ChunkTicket),
    /// The table is copied anew.
    Nothing,
}

pub(super) struct ChunkTicket {
    /// Where the table stood before it.
    pub(super) before: Standing,
    /// Whether what was counted of the table before counts no more.
    pub(super) first: bool,
    pub(super) done: bool,
    pub(super) after: Option<Vec<String>>,
    pub(super) rows: i64,
    pub(super) bytes: i64,
    /// What the table may wait for all the same.
    pub(super) waits_for: Option<String>,
}

/// What a backfill is held to, by the columns of [`LIMITS`] from this one on: the limits, the lag, and a chunk's rows.
pub(super) fn held_to(row: &Row, at: usize) -> (Limits, Option<Duration>, u64) {
    let rate = |at| row.get::<_, Option<i64>>(at).map(i64::unsigned_abs);
    let limits =
        Limits { rows_per_second: rate(at), bytes_per_second: rate(at + 1), source_load: row.get(at + 2) };
    let lag_max = row.get::<_, Option<f64>>(at + 3).map(Duration::from_secs_f64);
    (limits, lag_max, row.get::<_, i64>(at + 4).max(1).unsigned_abs())
}

/// That the stream is still this writer's: of one that was frozen, readers drop what it gave since.
fn is_ours(epoch: usize) -> String {
    format!(
        "(${epoch}::int8 is null or exists (
             select from landfall.stream s join landfall.backfill b using (stream)
              where b.id = $1 and s.writer_epoch = ${epoch} for share of s))"
    )
}

impl Ticket {
    /// Keeps what is to be kept, where the stream is still of this writer epoch.
    pub(super) async fn keep(
        &self,
        connection: &Client,
        start: Option<&str>,
        epoch: Option<i64>,
    ) -> Result<()> {
        let (id, place) = (&self.backfill, &self.place);
        let failed = sql("keep how far a backfill has come");
        match &self.kept {
            Kept::Nothing => Ok(()),
            Kept::Begun => {
                // All of them are begun behind it, also those that were before.
                let begun = format!(
                    "with begun as (
                         update landfall.backfill
                            set state = case state when 'requested' then 'running' else state end,
                                begun = coalesce(begun, now()), start = $2, waits_for = null
                          where id = $1 and state in ('requested', 'running', 'paused') and {}
                         returning id)
                     update landfall.backfill_table set state = 'waiting', after = null
                      where backfill in (select id from begun)",
                    is_ours(3)
                );
                connection.execute(&begun, &[id, &start, &epoch]).await.map(drop).map_err(failed)
            }
            Kept::TableBegun(key) | Kept::BothBegun(key) => {
                if matches!(self.kept, Kept::BothBegun(_)) {
                    let begun = format!(
                        "update landfall.backfill
                            set state = case state when 'requested' then 'running' else state end,
                                begun = coalesce(begun, now()), waits_for = null
                          where id = $1 and state in ('requested', 'running', 'paused') and {}",
                        is_ours(2)
                    );
                    connection.execute(&begun, &[id, &epoch]).await.map_err(&failed)?;
                }
                let begun = format!(
                    "update landfall.backfill_table
                        set state = 'copying', after = null, key = $3, rows = 0, bytes = 0, chunks = 0,
                            begun = now(), ended = null
                      where backfill = $1 and place = $2 and {}",
                    is_ours(4)
                );
                connection.execute(&begun, &[id, place, key, &epoch]).await.map(drop).map_err(failed)
            }
            Kept::Chunk(chunk) => {
                // Held back meanwhile, it is over all the same where this was its last.
                let kept = format!(
                    "with ours as (select {} as so), kept as (
                         update landfall.backfill_table
                            set state = case when $3 then 'done' else 'copying' end, after = $4,
                                rows = case when $7 then 0 else rows end + $5,
                                bytes = case when $7 then 0 else bytes end + $6,
                                chunks = case when $7 then 0 else chunks end + 1,
                                key = case when $7 then null else key end, begun = coalesce(begun, now()),
                                ended = case when $3 then now() end
                          where backfill = $1 and place = $2 and (select so from ours))
                     update landfall.backfill
                        set waits_for = case when not over then $8 end,
                            state = case when over then 'done' else state end,
                            ended = case when over then now() end
                       from (select $3 and not exists (
                                 select from landfall.backfill_table
                                  where backfill = $1 and place <> $2 and state <> 'done') as over) o
                      where id = $1 and state in ('running', 'paused') and (select so from ours)",
                    is_ours(9)
                );
                connection
                    .execute(
                        &kept,
                        &[
                            id,
                            place,
                            &chunk.done,
                            &chunk.after,
                            &chunk.rows,
                            &chunk.bytes,
                            &chunk.first,
                            &chunk.waits_for,
                            &epoch,
                        ],
                    )
                    .await
                    .map(drop)
                    .map_err(failed)
            }
        }
    }
}
