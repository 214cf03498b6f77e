//! Backfills: requests that stand in schema `landfall`, tables read chunk by chunk between two watermarks, and how
//! far each has come.
//!
//! A request is written by whoever asks ([`request`]); a copier takes the oldest that is not done, and keeps, with
//! each chunk that has become durable, the key it ended with. So a chunk is read again after a crash and none is
//! left out; what is read again is exact again where it then stands in the log.

use std::{
    collections::{HashSet, VecDeque},
    time::{Duration, Instant},
};

use tokio_postgres::Client;

mod notes;

pub(super) use notes::TABLES;
use notes::{ChunkTicket, Kept, LIMITS, Standing, Ticket, held_to};

use super::{
    PostgresSourceConfig,
    answer::{self, Ours},
    backfill, publication,
    ranges::Readers,
    slot,
    table::Table,
    throttle::{Limits, Strain},
    whole::{self, Reading, Sessions},
};
use crate::{
    change::Mark,
    fault::{Fault, Result},
    names::{WATERMARK_PREFIX, qualified},
    position::WriterEpoch,
    postgres::{Connection, catalog, connect, fault_of},
    source::{Content, Copier, Portion, Rows},
    verify::Question,
};

/// A chunk is about so many bytes: what it costs besides its rows (two watermarks, each a commit) is then a small part
/// of it, and two of them are held in memory at once.
pub(super) const CHUNK_BYTES: u64 = 4 << 20;
/// The first chunk of a table shows how large its rows are.
const FIRST_ROWS: u64 = 1_000;
/// A table is read by several sessions once a chunk of it was so large: none is opened for a small one.
const SEVERAL_BYTES: u64 = CHUNK_BYTES / 4;
/// A table that is begun anew so often in a row may never come to its end: then that is said.
const ANEW_TIMES: u32 = 3;
/// How often somebody may have asked for something.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Where the server would give the slot up, copying waits while less than this share of what it keeps is left,
const HEADROOM_MIN: f64 = 0.25;
/// and is the slower the nearer it comes to it from here on.
const HEADROOM_ENOUGH: f64 = 0.5;
/// Where the server never gives it up, the disk is the limit, which no server tells. So many times what it may hold between
/// two checkpoints (`max_wal_size`) is taken for one.
const UNLIMITED_WAL_SIZES: i64 = 8;
/// The share of the time that is read at least meanwhile.
const SLOWEST: f64 = 0.05;

/// Copies on a connection of its own, made when there is something to do.
pub struct PostgresCopier {
    pub(super) config: PostgresSourceConfig,
    pub(super) connection: Option<Connection>,
    /// What the questions of a verification are held against.
    pub(super) ours: Ours,
    /// Others that read beside it.
    readers: Readers,
    looked: Option<Instant>,
    work: Option<Work>,
    /// Given and not told of, oldest first.
    given: VecDeque<Ticket>,
    /// Whose stream it is put into.
    epoch: Option<WriterEpoch>,
    /// Tables that this copier has begun: what it gives of them nobody gave before.
    known: HashSet<(String, i32)>,
    /// Why the newest portion was not taken, and how often in a row.
    refused: Option<(&'static str, u32)>,
    /// When the next portion may be read, for the rate and the load that were asked for.
    not_before: Instant,
    /// Rows in the next chunk.
    chunk_rows: u64,
    /// Bytes in the last one.
    chunk_bytes: u64,
    /// Whether the server has time to spare.
    strain: Strain,
    /// The share of the time that may be spent reading for the slot's sake.
    headroom: f64,
    /// The table that is read under one snapshot, of the backfill in hand: that of this place.
    reading: Option<(i32, Reading)>,
    /// How often in a row its reading broke off.
    broke_off: u32,
}

/// The backfill in hand.
struct Work {
    id: String,
    regions: Vec<String>,
    every: bool,
    waits: bool,
    /// Which rows are copied, of its one table: those that meet this.
    condition: Option<String>,
    limits: Limits,
    lag_max: Option<Duration>,
    chunk_rows: u64,
    tables: Vec<WorkTable>,
}

struct WorkTable {
    place: i32,
    schema: String,
    table: String,
    begun: bool,
    done: bool,
    /// The key of the last row given,
    after: Option<Vec<String>>,
    /// and the names of its columns.
    key: Option<Vec<String>>,
}

impl WorkTable {
    fn standing(&self) -> Standing {
        (self.begun, self.after.clone())
    }

    fn name(&self) -> String {
        qualified(&self.schema, &self.table)
    }
}

fn sql(doing: &'static str) -> impl Fn(tokio_postgres::Error) -> Fault {
    move |error| fault_of(&error).at(doing)
}

impl PostgresCopier {
    pub(super) fn new(config: PostgresSourceConfig) -> Self {
        Self {
            config,
            connection: None,
            ours: Ours::default(),
            readers: Readers::new(),
            looked: None,
            work: None,
            given: VecDeque::new(),
            epoch: None,
            known: HashSet::new(),
            refused: None,
            not_before: Instant::now(),
            chunk_rows: FIRST_ROWS,
            chunk_bytes: 0,
            strain: Strain::default(),
            headroom: 1.0,
            reading: None,
            broke_off: 0,
        }
    }

    /// A connection, made where there is none that lives.
    pub(super) async fn connection(&mut self) -> Result<&Connection> {
        if self.connection.as_ref().is_none_or(|connection| connection.is_closed()) {
            let application = format!("landfall backfill {}", self.config.stream);
            let connected = connect(&self.config.address, &application).await;
            // What a role or a server has left of connections is this one's before it is theirs.
            let connection = connected.inspect_err(|_| self.readers.close())?;
            // A watermark is committed only once what was committed before it is shown, however long a standby takes:
            // unless that standby is capture, which may wait for this session. And a lock on one table must not hold up
            // what else waits for this session.
            let waits =
                if slot::is_standby(&connection, &self.config).await? { "local" } else { "remote_apply" };
            let settings = format!("set synchronous_commit = {waits}; set lock_timeout = '2s'");
            connection.batch_execute(&settings).await.map_err(sql("set up a session that copies"))?;
            self.connection = Some(connection);
        }
        Ok(self.connection.as_ref().expect("made above"))
    }

    /// Takes up the oldest backfill that is neither done nor held back.
    async fn take_up(&mut self) -> Result<Option<Work>> {
        let (stream, config) = (self.config.stream.clone(), self.config.clone());
        let connection = self.connection().await?;
        // One after the other: of two that fill one table each would leave the other's half behind.
        let oldest = format!(
            "select id, regions, every_table, state = 'requested', state = 'paused',
                (select condition from landfall.backfill_condition c where c.backfill = id), {LIMITS}
              from landfall.backfill where stream = $1 and state in ('requested', 'running', 'paused')
             order by requested, id limit 1"
        );
        let failed = sql("look for a backfill that is asked for");
        let Some(row) = connection.query_opt(&oldest, &[&stream]).await.map_err(&failed)? else {
            return Ok(None);
        };
        if row.get(4) {
            return Ok(None);
        }
        let (id, every, condition): (String, bool, Option<String>) = (row.get(0), row.get(2), row.get(5));
        // Some rows of a table are no reason to wait for the others.
        let waits = row.get(3) && condition.is_none();
        if every && waits {
            // Where a stream may begin, every table it carries begins: also one that was published since.
            let mut carried = publication::tables(connection, &config).await?;
            let theirs = backfill::received_from(connection, &config.peers).await?;
            carried.retain(|table| !theirs.contains(table));
            let (schemas, names): (Vec<String>, Vec<String>) =
                carried.into_iter().map(|it| (it.schema, it.table)).unzip();
            let add = "insert into landfall.backfill_table
                     (backfill, place, schema_name, table_name, expected_rows, expected_bytes)
                 select $1, (select coalesce(max(place), -1) from landfall.backfill_table where backfill = $1)
                            + row_number() over (), s, t, 0, 0
                   from unnest($2::text[], $3::text[]) u (s, t)
                  where not exists (select from landfall.backfill_table
                                     where backfill = $1 and schema_name = s and table_name = t)";
            connection.execute(add, &[&id, &schemas, &names]).await.map_err(&failed)?;
        }
        let tables = "select place, schema_name, table_name, state <> 'waiting', state = 'done', after, key
              from landfall.backfill_table where backfill = $1 order by place";
        let tables = connection.query(tables, &[&id]).await.map_err(&failed)?;
        // Where all of them are to wait, what was copied before that mark counts no more: it was held back before it was
        // kept that it had begun.
        let tables = tables.iter().map(|row| WorkTable {
            place: row.get(0),
            schema: row.get(1),
            table: row.get(2),
            begun: !waits && row.get(3),
            done: !waits && row.get(4),
            after: row.get::<_, Option<_>>(5).filter(|_| !waits),
            key: row.get(6),
        });
        let tables = tables.collect();
        (self.chunk_rows, self.chunk_bytes) = (FIRST_ROWS, 0);
        let (limits, lag_max, chunk_rows) = held_to(&row, 6);
        Ok(Some(Work {
            id,
            regions: row.get(1),
            every,
            waits,
            condition,
            limits,
            lag_max,
            chunk_rows,
            tables,
        }))
    }

    /// Whether the backfill in hand may go on: nobody holds it back, and the slot is in no danger.
    async fn may_go_on(&mut self) -> Result<bool> {
        self.readers.close_idle();
        let Some(id) = self.work.as_ref().map(|work| work.id.clone()) else { return Ok(false) };
        let slot = self.config.slot.clone();
        let connection = self.connection().await?;
        let now = format!(
            "select state in ('requested', 'running'), {LIMITS} from landfall.backfill where id = $1"
        );
        let now = connection.query_opt(&now, &[&id]).await.map_err(sql("ask whether to go on"))?;
        let Some(now) = now.filter(|row| row.get(0)) else {
            self.put_down();
            return Ok(false);
        };
        let Some(slot) = catalog::slot(connection, &slot).await? else { return Ok(false) };
        if let Some(work) = &mut self.work {
            // They may have been changed by whoever asked again.
            (work.limits, work.lag_max, work.chunk_rows) = held_to(&now, 1);
        }
        // One that is lost keeps nothing: its stream says so.
        let kept = slot.retained_bytes.unwrap_or(0).max(0);
        let (safe, otherwise) = match slot.safe_wal_bytes {
            Some(safe) => (safe, String::new()),
            None => (
                UNLIMITED_WAL_SIZES * slot.wal_size_bytes - kept,
                format!(
                    ", or set max_slot_wal_keep_size to what the disk can spare: it is not set, and taken for \
                     {UNLIMITED_WAL_SIZES} times max_wal_size"
                ),
            ),
        };
        let Some(share) = headroom(safe, kept) else {
            let why = format!(
                "the slot: the server keeps {kept} bytes of log for it, and there is room for {} more (next: see with \
                 `landfall status` what the source waits for; it goes on by itself once the slot has room{otherwise})",
                safe.max(0)
            );
            self.note_wait(&why).await?;
            return Ok(false);
        };
        self.headroom = share;
        Ok(true)
    }

    /// Fills a region no longer that is recovered: which rows it lacks the comparison finds, and the chunks that it has not
    /// had would meet them.
    pub(super) async fn leave_out(&mut self, region: &str) -> Result<()> {
        let stream = self.config.stream.clone();
        let connection = self.connection().await?;
        let leave = "update landfall.backfill
               set regions = case when regions = array[$2] then regions else array_remove(regions, $2) end,
                   state = case when regions = array[$2] then 'canceled' else state end,
                   ended = case when regions = array[$2] then now() end
             where stream = $1 and state in ('requested', 'running', 'paused') and $2 = any (regions)
            returning id";
        let left = connection.query(leave, &[&stream, &region]).await;
        let left = left.map_err(sql("leave a region out that is recovered"))?;
        for row in &left {
            let id: String = row.get(0);
            tracing::warn!(id, region, "the backfill fills this region no longer: it is recovered");
        }
        if !left.is_empty() {
            self.put_down();
        }
        Ok(())
    }

    /// Leaves the backfill in hand; a table that is read under one snapshot begins anew when it is taken up again.
    fn put_down(&mut self) {
        (self.work, self.reading, self.broke_off) = (None, None, 0);
        self.readers.close();
    }

    /// What keeps the oldest backfill from being taken up, where that can be said.
    async fn note_unable(&mut self, fault: &Fault) {
        let stream = self.config.stream.clone();
        let why = format!("[{}] {} (next: {})", fault.code(), fault.message(), fault.remedy());
        let say = "update landfall.backfill set waits_for = $2
             where id = (select id from landfall.backfill
                          where stream = $1 and state in ('requested', 'running') order by requested, id limit 1)
               and waits_for is distinct from $2";
        let said = match self.connection().await {
            Ok(connection) => {
                connection.execute(say, &[&stream, &why]).await.map_err(|error| fault_of(&error))
            }
            Err(fault) => Err(fault),
        };
        if let Err(fault) = said {
            tracing::debug!(%fault, "nobody can be told why a backfill is not taken up");
        }
    }

    async fn note_wait(&mut self, why: &str) -> Result<()> {
        let Some(id) = self.work.as_ref().map(|work| work.id.clone()) else { return Ok(()) };
        let connection = self.connection().await?;
        let say =
            "update landfall.backfill set waits_for = $2 where id = $1 and waits_for is distinct from $2";
        connection.execute(say, &[&id, &why]).await.map(drop).map_err(sql("say what a backfill waits for"))
    }

    async fn portion(&mut self, low: impl Fn(&str) -> String) -> Result<Option<Portion>> {
        let Some(work) = &self.work else { return Ok(None) };
        let (to, id) = (work.regions.clone(), work.id.clone());
        if work.waits {
            let every = work.every;
            let names: Vec<_> =
                work.tables.iter().map(|table| (table.schema.clone(), table.table.clone())).collect();
            let connection = self.connection().await?;
            let mut shapes = Vec::with_capacity(names.len());
            for (schema, table) in &names {
                shapes.push(Table::look(connection, schema, table).await?.shape);
            }
            if let Some(work) = &mut self.work {
                work.waits = false;
            }
            self.given.push_back(Ticket { backfill: id, place: None, kept: Kept::Begun });
            return Ok(Some(Portion { to, content: Content::Mark { shapes, mark: Mark::Wait, every } }));
        }
        let Some(at) = work.tables.iter().position(|table| !table.done) else { return Ok(None) };
        let table = &work.tables[at];
        let place = table.place;
        let name = (id.clone(), place);
        let begin = !table.begun;
        let again = !begin && !self.known.contains(&name);
        let (schema, table_name, after) = (table.schema.clone(), table.table.clone(), table.after.clone());
        let (watermark, condition) = (low(&table.name()), work.condition.clone());
        let (limit, rows_max) = (self.chunk_rows.min(work.chunk_rows), work.chunk_rows);
        let since = Instant::now();
        let (key_before, before) = (table.key.clone(), table.standing());
        let connection = self.connection().await?;
        let found = Table::look(connection, &schema, &table_name).await?;
        // One that was begun while nothing told its rows apart has no key noted.
        let moved = !begin && key_before.unwrap_or_default() != found.key_names();
        if condition.is_some() {
            backfill::require_key(&found)?;
        }
        if (begin || moved) && !found.key.is_empty() {
            // On its own: what changes from here on is applied, and what was read later is laid over it.
            if let Some(work) = &mut self.work {
                let table = &mut work.tables[at];
                (table.begun, table.after, table.key) = (true, None, Some(found.key_names()));
            }
            (self.chunk_rows, self.chunk_bytes) = (FIRST_ROWS, 0);
            self.known.insert(name);
            let names = found.key_names();
            let (kept, content) = match condition {
                Some(_) => (Kept::BothBegun(names), Content::Begin { shape: found.shape }),
                None => {
                    let shapes = vec![found.shape];
                    (Kept::TableBegun(names), Content::Mark { shapes, mark: Mark::Begin, every: false })
                }
            };
            self.given.push_back(Ticket { backfill: id, place: Some(place), kept });
            return Ok(Some(Portion { to, content }));
        }
        if found.key.is_empty() {
            backfill::require_logged_key(&found)?;
            return self.some_of_all(at, &watermark).await;
        }
        let by_several = condition.is_none() && self.chunk_bytes >= SEVERAL_BYTES;
        if by_several {
            // Before the low watermark, since it takes a while.
            self.readers.open(&self.config).await;
        }
        self.connection().await?;
        let connection = self.connection.as_ref().expect("made above");
        let sent = Instant::now();
        send(connection, &watermark).await?;
        let committed = sent.elapsed();
        // Behind the watermark: a change of shape before it is seen here, and one after it by looking again.
        let found = Table::look(connection, &schema, &table_name).await?;
        let read = match &condition {
            None if by_several => self.readers.read(connection, &found, after.as_deref(), limit).await,
            None => found.read(connection, after.as_deref(), limit).await,
            Some(condition) => {
                backfill::require_key(&found)?;
                found.read_matching(connection, after.as_deref(), limit, condition).await
            }
        };
        if read.as_ref().map_or(true, |read| read.half_way) {
            // What the server still sends, nobody wants.
            self.connection = None;
        }
        let read = read?;
        let took = since.elapsed();
        found.require_unaltered(self.connection().await?).await?;
        self.strain.note(committed);

        let is_last = if condition.is_some() { read.looked.is_none() } else { read.rows < limit };
        let done = !read.cut && is_last;
        let last_key = read.looked.clone().filter(|_| !read.cut).or_else(|| found.last_key(&read.texts));
        let ticket = ChunkTicket {
            before,
            first: false,
            done,
            after: last_key.or(after),
            rows: i64::try_from(read.rows).unwrap_or(i64::MAX),
            bytes: i64::try_from(read.bytes).unwrap_or(i64::MAX),
            waits_for: None,
        };
        if let Some(work) = &mut self.work {
            let table = &mut work.tables[at];
            (table.begun, table.done, table.after) = (true, done, ticket.after.clone());
            let share = self.strain.share().min(self.headroom);
            // The watermark's commit waited; it read nothing.
            let reading = (read.sessions, took.saturating_sub(committed));
            self.not_before = since + work.limits.next_after(read.rows, read.bytes, reading, share);
        }
        self.given.push_back(Ticket { backfill: id, place: Some(place), kept: Kept::Chunk(ticket) });
        self.chunk_rows = next_limit(limit, read.rows, read.bytes).min(rows_max);
        self.chunk_bytes = read.bytes;
        Ok(Some(Portion {
            to,
            content: Content::Rows(Rows {
                shape: found.shape,
                key: found.key,
                first: false,
                seen: read.seen,
                done,
                again,
                replace: condition.is_some(),
                texts: read.texts,
            }),
        }))
    }

    /// The next rows of a table whose rows nothing tells apart.
    async fn some_of_all(&mut self, at: usize, watermark: &str) -> Result<Option<Portion>> {
        let Some(work) = &self.work else { return Ok(None) };
        let table = &work.tables[at];
        let (to, id, place, before) = (work.regions.clone(), work.id.clone(), table.place, table.standing());
        let since = Instant::now();
        if self.reading.as_ref().is_none_or(|(of, _)| *of != place) {
            let (schema, name, rows_max) = (table.schema.clone(), table.table.clone(), work.chunk_rows);
            self.reading = None;
            let sessions = Sessions::open(&self.config).await?;
            let sent = Instant::now();
            send(self.connection().await?, watermark).await?;
            self.strain.note(sent.elapsed());
            let Some(reading) = sessions.read(&schema, &name, rows_max).await? else { return Ok(None) };
            self.reading = Some((place, reading));
        }
        let Some((_, reading)) = &mut self.reading else { return Ok(None) };
        let portion = match reading.next().await {
            Ok(portion) => portion,
            Err(fault) => {
                (self.reading, self.broke_off) = (None, self.broke_off + 1);
                return Err(fault);
            }
        };
        let whole::Portion { texts, is_first, is_last, took } = portion;
        let (shape, seen) = (reading.table.shape.clone(), reading.seen.clone());
        let ticket = ChunkTicket {
            before,
            first: is_first,
            done: is_last,
            after: None,
            rows: i64::try_from(texts.rows).unwrap_or(i64::MAX),
            bytes: i64::try_from(texts.bytes).unwrap_or(i64::MAX),
            waits_for: (self.broke_off >= ANEW_TIMES).then(|| {
                format!(
                    "{shape} to be left alone: its reading broke off {} times in a row and began anew. It ends once nobody \
                     changes the table's shape or empties it for as long as it takes; or give it a primary key, and it is \
                     copied by chunks",
                    self.broke_off
                )
            }),
        };
        if let Some(work) = &mut self.work {
            let table = &mut work.tables[at];
            (table.begun, table.done, table.after, table.key) = (true, is_last, None, None);
            let share = self.strain.share().min(self.headroom);
            self.not_before = since + work.limits.next_after(texts.rows, texts.bytes, (1, took), share);
        }
        if is_last {
            (self.reading, self.broke_off) = (None, 0);
        }
        self.given.push_back(Ticket { backfill: id, place: Some(place), kept: Kept::Chunk(ticket) });
        Ok(Some(Portion {
            to,
            content: Content::Rows(Rows {
                shape,
                key: Box::default(),
                first: is_first,
                seen,
                done: is_last,
                again: false,
                replace: false,
                texts: texts.into_texts(),
            }),
        }))
    }
}

/// The share of the time that may be spent reading where the server keeps so many bytes for the slot and gives it up after
/// so many more; none where nothing may be read.
fn headroom(safe: i64, kept: i64) -> Option<f64> {
    let left = safe as f64 / (safe as f64 + kept as f64).max(1.0);
    let share = (left - HEADROOM_MIN) / (HEADROOM_ENOUGH - HEADROOM_MIN);
    (share >= 0.0).then(|| share.clamp(SLOWEST, 1.0))
}

/// How many rows of that size make a chunk; never many more than were just seen.
fn next_limit(limit: u64, rows: u64, bytes: u64) -> u64 {
    let each = (bytes / rows.max(1)).max(1);
    (CHUNK_BYTES / each).max(1).min(limit.saturating_mul(8))
}

pub(super) async fn send(connection: &Client, watermark: &str) -> Result<()> {
    let emit = "select pg_logical_emit_message(true, $1::text, $2::text)";
    let sent = connection.query_one(emit, &[&WATERMARK_PREFIX, &watermark]).await;
    sent.map(drop).map_err(sql("send a watermark"))
}

impl Copier for PostgresCopier {
    async fn filling(&mut self) -> Result<Vec<String>> {
        let stream = self.config.stream.clone();
        let connection = self.connection().await?;
        let undone = "select distinct t.schema_name, t.table_name
              from landfall.backfill_table t join landfall.backfill b on b.id = t.backfill
             where b.stream = $1 and b.state in ('requested', 'running', 'paused') and t.state <> 'done'";
        let rows = connection.query(undone, &[&stream]).await.map_err(sql("list what is being copied"))?;
        Ok(rows.iter().map(|row| qualified(row.get(0), row.get(1))).collect())
    }

    async fn next(&mut self, low: impl Fn(&str) -> String + Send) -> Result<Option<Portion>> {
        if Instant::now() < self.not_before {
            // It may be long until then; whoever holds it back or ends it is heard meanwhile.
            if self.work.is_some() && self.looked.is_none_or(|looked| looked.elapsed() >= LOOK_INTERVAL) {
                self.looked = Some(Instant::now());
                self.may_go_on().await?;
                if self.work.is_none() {
                    self.not_before = Instant::now();
                }
            }
            return Ok(None);
        }
        if self.work.is_none() && self.given.is_empty() {
            if self.looked.is_some_and(|looked| looked.elapsed() < LOOK_INTERVAL) {
                return Ok(None);
            }
            self.looked = Some(Instant::now());
            let taken_up = self.take_up().await;
            if let Err(fault) = &taken_up {
                self.note_unable(fault).await;
            }
            self.work = taken_up?;
        }
        if self.work.is_none() || !self.may_go_on().await? {
            self.not_before = Instant::now() + LOOK_INTERVAL;
            return Ok(None);
        }
        if let Some((why, times)) = self.refused.filter(|(_, times)| *times > 3) {
            let why = format!(
                "the table to rest: {why}, {times} times in a row (next: it is tried again, later and with fewer rows each \
                 time; --chunk-rows reads fewer from the start)"
            );
            self.note_wait(&why).await?;
        }
        match self.portion(low).await {
            Ok(portion) => {
                if portion.is_none() && self.given.is_empty() {
                    self.put_down();
                }
                Ok(portion)
            }
            Err(fault) => {
                // It stands in nobody's way but its own: said where it is asked for, and tried again.
                let why = format!("[{}] {} (next: {})", fault.code(), fault.message(), fault.remedy());
                self.not_before = Instant::now() + 4 * LOOK_INTERVAL;
                self.note_wait(&why).await?;
                Ok(None)
            }
        }
    }

    fn lag_max(&self) -> Option<(&[String], Duration)> {
        let work = self.work.as_ref()?;
        Some((&work.regions, work.lag_max?))
    }

    async fn wait_for(&mut self, why: &str) -> Result<()> {
        // One that was held back or ended meanwhile waits for nothing more.
        if self.may_go_on().await? { self.note_wait(why).await } else { Ok(()) }
    }

    async fn send(&mut self, watermark: &str) -> Result<()> {
        let sent = Instant::now();
        send(self.connection().await?, watermark).await?;
        if self.reading.is_some() {
            // No low watermark tells how the server bears it.
            self.strain.note(sent.elapsed());
        }
        Ok(())
    }

    async fn answer(
        &mut self,
        question: &Question,
        low: impl Fn(&str) -> String + Send,
        given_up: impl Future<Output = ()> + Send,
    ) -> Result<Option<Portion>> {
        answer::answer(self, question, low, given_up).await
    }

    async fn done(&mut self, start: Option<&str>) -> Result<()> {
        self.connection().await?;
        let Some((ticket, connection)) = self.given.front().zip(self.connection.as_ref()) else {
            return Ok(());
        };
        let kept = ticket.keep(connection, start, self.epoch.map(|epoch| i64::from(epoch.0))).await;
        if kept.is_ok() {
            // Not before: what is not kept is kept when this is called again.
            self.given.pop_front();
            self.refused = None;
        } else {
            self.connection = None;
        }
        kept
    }

    fn again(&mut self, why: &'static str) {
        let Some(ticket) = self.given.pop_back() else { return };
        let times = self.refused.map_or(0, |(_, times)| times) + 1;
        self.refused = Some((why, times));
        let rest = (LOOK_INTERVAL / 10 * times).min(10 * LOOK_INTERVAL);
        self.not_before = self.not_before.max(Instant::now() + rest);
        let Some(work) = self.work.as_mut().filter(|work| work.id == ticket.backfill) else { return };
        let table = work.tables.iter_mut().find(|table| Some(table.place) == ticket.place);
        match (ticket.kept, table) {
            (Kept::Begun, _) => work.waits = true,
            (Kept::TableBegun(_) | Kept::BothBegun(_), Some(table)) => table.begun = false,
            (Kept::Chunk(chunk), Some(table)) => {
                (table.begun, table.after) = chunk.before;
                self.reading = None;
                table.done = false;
                self.chunk_rows = (self.chunk_rows / 4).max(1);
            }
            _ => (),
        }
    }

    async fn restart(&mut self, table: &str) -> Result<()> {
        let stream = self.config.stream.clone();
        let connection = self.connection().await?;
        let restart = r#"update landfall.backfill_table t set state = 'waiting', after = null
              from landfall.backfill b
             where b.id = t.backfill and b.stream = $1 and b.state in ('requested', 'running', 'paused')
               and t.state <> 'done'
               and $2 = '"' || replace(t.schema_name, '"', '""') || '"."' || replace(t.table_name, '"', '""') || '"'
            returning t.backfill, t.place, set_config('synchronous_commit', 'local', true)"#;
        // Capture waits for it, and a standby that is waited for may be capture itself: forgotten, it is said again.
        let rows = connection
            .query(restart, &[&stream, &table])
            .await
            .map_err(sql("begin a table of a backfill anew"))?;
        // What was given of it is not kept any more; what stands of it in the log does no harm.
        for row in rows {
            let (id, place): (String, i32) = (row.get(0), row.get(1));
            let given = self.given.iter_mut().filter(|it| it.backfill == id && it.place == Some(place));
            given.for_each(|ticket| ticket.kept = Kept::Nothing);
            if let Some(work) = self.work.as_mut().filter(|work| work.id == id)
                && let Some(table) = work.tables.iter_mut().find(|table| table.place == place)
            {
                (table.begun, table.done, table.after) = (false, false, None);
                self.reading = self.reading.take().filter(|(of, _)| *of != place);
            }
        }
        Ok(())
    }

    fn written_by(&mut self, epoch: WriterEpoch) {
        self.epoch = Some(epoch);
    }

    async fn begin_anew(&mut self) -> Result<()> {
        let stream = self.config.stream.clone();
        let connection = self.connection().await?;
        let anew = "with anew as (
                 update landfall.backfill
                    set state = case state when 'paused' then state else 'requested' end, begun = null, start = null
                  where stream = $1 and state in ('requested', 'running', 'paused') returning id)
             update landfall.backfill_table set state = 'waiting', after = null
              where backfill in (select id from anew)";
        let begun = connection.execute(anew, &[&stream]).await.map_err(sql("begin backfills anew"))?;
        if begun > 0 {
            tracing::warn!(
                tables = begun,
                "what a backfill gave may be gone with the topic's tail: it begins anew"
            );
        }
        self.put_down();
        Ok(())
    }

    async fn starts(&mut self) -> Result<Vec<(String, String)>> {
        let stream = self.config.stream.clone();
        let connection = self.connection().await?;
        let starts = "select distinct on (region) region, start
              from landfall.backfill, unnest(regions) region
             where stream = $1 and state in ('running', 'paused') and start is not null
             order by region, begun desc";
        let rows = connection.query(starts, &[&stream]).await.map_err(sql("read where streams may begin"))?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_slot_has_left_slows_copying_down_and_ends_it() {
        assert_eq!(headroom(1_000, 0), Some(1.0));
        assert_eq!(headroom(500, 500), Some(1.0));
        assert_eq!(headroom(375, 625), Some(0.5));
        assert_eq!(headroom(250, 750), Some(SLOWEST));
        assert_eq!(headroom(249, 751), None);
        assert_eq!(headroom(-10, 1_000), None);
    }
}
