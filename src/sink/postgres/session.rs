//! Taking hold of the target: our own tables, the lease, the epoch, the session's settings.
//!
//! ```text
//!  connect ▶ own tables ▶ lease ▶ epoch + 1, our backend's id ▶ settings ▶ origin ▶ shapes
//!                           │ held by a backend that lives: LF-TARGET-HELD
//!                           └ by one that does not: it is ended first, and with it its open
//!                             transaction, its row locks and its hold on the origin
//! ```
//!
//! Whether a backend lives, [`life`] says; whoever holds a target shows itself
//! every two seconds ([`Sink::flush`](crate::sink::Sink::flush)). A daemon that was merely frozen
//! loses its backend, and wakes up to a session that is gone.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, Row, error::SqlState, types::ToSql};

use super::{
    PostgresSinkConfig, inspect,
    life::{self, Doubt},
    meanwhile, parked,
    wire::Timestamp,
};
use crate::{
    change::Shape,
    fault::{Code, Fault, Result},
    names::{self, literal, qualified},
    plan::{Joining, JoiningTables},
    position::{ApplyEpoch, Incarnation, Offset, Sequence, WriterEpoch},
    postgres::{
        Connection, connect, fault_of,
        grants::{self, Duties},
        own,
    },
    progress::{Cursor, Heartbeat, Progress},
    sink::COPY_SESSIONS_MAX,
    stamp::Micros,
};

/// How long the end of a backend is waited for. It ends between two rows; a longer wait means its
/// host hangs.
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// The lane that applies. Those above it bring in what a backfill copies, beside it.
pub(super) const LANE: u16 = 0;

/// A backend of the target's server: process ids return, so its start belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Backend {
    pub(super) pid: i32,
    pub(super) start: Timestamp,
}

impl Backend {
    /// That of a session.
    pub(super) async fn of(client: &Client) -> Result<Self> {
        let ours = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()";
        let ours = client.query_one(ours, &[]).await.map_err(sql("ask for our backend"))?;
        Ok(Self { pid: ours.get(0), start: ours.get(1) })
    }
}

/// A held target.
pub(super) struct Held {
    pub(super) connection: Connection,
    pub(super) backend: Backend,
    pub(super) epoch: ApplyEpoch,
    pub(super) progress: Option<Progress>,
    pub(super) shapes: Vec<Arc<Shape>>,
    pub(super) joining: JoiningTables,
    pub(super) recovers: bool,
    pub(super) kept: parked::Kept,
}

/// Takes hold; `former` is a backend of this very process, which is ended without a question.
pub(super) async fn claim(
    config: &PostgresSinkConfig,
    former: Option<Backend>,
    doubt: &mut Doubt,
) -> Result<Held> {
    let application = format!("landfall apply {}/{}", config.from, config.stream);
    let connection = connect(&config.address, &application).await?;
    let at = |fault: Fault| fault.at(format_args!("claim {} for {application}", config.address));
    take_hold(config, connection, former, doubt).await.map_err(at)
}

async fn take_hold(
    config: &PostgresSinkConfig,
    connection: Connection,
    former: Option<Backend>,
    doubt: &mut Doubt,
) -> Result<Held> {
    let backend = Backend::of(&connection).await?;
    set_lock_timeout(&connection, config.lock_timeout).await?;
    grants::require(&connection, Duties { source: false, sink: true }, OWN_TABLES).await?;
    let tables_of_ours = [TABLES, inspect::TABLES, meanwhile::TABLE, parked::TABLES].join(";");
    own::make(&connection, OWN_TABLES, &tables_of_ours).await?;
    if let Some(former) = former {
        end(&connection, former).await?;
    }
    let (epoch, progress) = raise_epoch(config, &connection, backend, former, doubt).await?;
    connection.batch_execute(SETTINGS).await.map_err(sql("set up the session"))?;
    take_origin(config, &connection, former, doubt).await?;
    let link = config.from.as_str();
    let rows = connection
        .query(
            "SELECT body::text FROM landfall.shape WHERE link = $1 AND stream = $2 ORDER BY fingerprint",
            &[&link, &config.stream],
        )
        .await
        .map_err(sql("read the shapes"))?;
    let shapes = rows.iter().map(|row| shape_of(row.get(0))).collect::<Result<_>>()?;
    // A table that was dropped has nothing to be filled with any more.
    let gone = "DELETE FROM landfall.joining
                 WHERE to_regclass(format('%I.%I', schema_name, table_name)) IS NULL";
    connection.execute(gone, &[]).await.map_err(sql("forget tables that were dropped"))?;
    let abandoned = connection.execute(meanwhile::FORGET_ABANDONED, &[]).await;
    abandoned.map_err(sql("forget what was kept of tables that are filled no more"))?;
    let rows = connection
        .query(
            "SELECT schema_name, table_name, mark FROM landfall.joining
              WHERE link = $1 AND stream = $2",
            &[&link, &config.stream],
        )
        .await
        .map_err(sql("read which tables a backfill has begun"))?;
    let standing = |mark: &str| match mark {
        "wait" => Joining::Waiting,
        "snapshot" => Joining::Snapshot,
        "stale" => Joining::Stale,
        _ => Joining::Copying,
    };
    let joining = rows.iter().map(|row| (qualified(row.get(0), row.get(1)), standing(row.get(2)))).collect();
    let recovers = "SELECT EXISTS (SELECT FROM landfall.recovery WHERE link = $1 AND stream = $2)";
    let recovers = connection
        .query_one(recovers, &[&link, &config.stream])
        .await
        .map_err(sql("read whether the link is to be recovered"))?
        .get(0);
    let kept = parked::Kept::read(&connection, link, &config.stream).await?;
    Ok(Held { connection, backend, epoch, progress, shapes, joining, recovers, kept })
}

/// How long a session waits for one lock.
pub(super) async fn set_lock_timeout(client: &Client, timeout: Duration) -> Result<()> {
    let set = format!("SET lock_timeout = {}", timeout.as_millis());
    client.batch_execute(&set).await.map_err(sql("set up the session"))
}

/// Of a session that applies: rows come as they are, whatever triggers and foreign keys say of them. A generic plan made
/// while a table was empty must not stay a sequential scan once it is not; and no statement of ours is worth compiling.
/// Answers are few and always read, so where one is not acknowledged nobody is there: what is locked is let go.
pub(super) const SETTINGS: &str = "
    SET session_replication_role = replica; SET synchronous_commit = off; SET plan_cache_mode = force_generic_plan;
    SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;
    SET jit = off; SET tcp_user_timeout = '30s'";

fn sql(doing: &'static str) -> impl Fn(tokio_postgres::Error) -> Fault {
    move |error| fault_of(&error).at(doing)
}

/// A sink's tables in schema `landfall`.
pub const OWN_TABLES: &[&str] = &[
    "recovery",
    "progress",
    "shape",
    "joining",
    "meanwhile",
    "verification",
    "verification_table",
    "verification_finding",
    "parked",
    "parked_change",
    "parked_row",
];

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS landfall.progress (
        link text NOT NULL,
        stream text NOT NULL,
        lane int4 NOT NULL,
        apply_epoch int8 NOT NULL DEFAULT 0,
        session_pid int4,
        session_start timestamptz,
        incarnation text,
        sequence int8 NOT NULL DEFAULT 0,
        writer_epoch int8 NOT NULL DEFAULT 0,
        position jsonb,
        kafka_offset int8 NOT NULL DEFAULT 0,
        heartbeat_sent timestamptz,
        heartbeat_arrived timestamptz,
        grouped_through int8 NOT NULL DEFAULT 0,
        PRIMARY KEY (link, stream, lane)
    ) WITH (fillfactor = 10);
    COMMENT ON TABLE landfall.progress IS
        'Where each Landfall link stands in its stream. Committed together with its rows.';
    CREATE TABLE IF NOT EXISTS landfall.shape (
        link text NOT NULL,
        stream text NOT NULL,
        fingerprint text NOT NULL,
        body jsonb NOT NULL,
        PRIMARY KEY (link, stream, fingerprint)
    );
    CREATE TABLE IF NOT EXISTS landfall.joining (
        link text NOT NULL,
        stream text NOT NULL,
        schema_name text NOT NULL,
        table_name text NOT NULL,
        mark text NOT NULL,
        since timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (link, stream, schema_name, table_name)
    );
    CREATE TABLE IF NOT EXISTS landfall.recovery (
        link text NOT NULL,
        stream text NOT NULL,
        asked timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (link, stream)
    );
    COMMENT ON TABLE landfall.recovery IS
        'Links that may go on where their source is now, until what they missed has come.';
    COMMENT ON TABLE landfall.joining IS
        'Tables that a backfill is filling: they do not hold all their rows yet.'";

/// Judges who holds the target, and takes its place: one winner, by the row's lock.
async fn raise_epoch(
    config: &PostgresSinkConfig,
    client: &Connection,
    backend: Backend,
    former: Option<Backend>,
    doubt: &mut Doubt,
) -> Result<(ApplyEpoch, Option<Progress>)> {
    let link = config.from.as_str();
    let lane = i32::from(LANE);
    let name: [&(dyn ToSql + Sync); 3] = [&link, &config.stream, &lane];
    // Read without a lock, and before anything is inserted: a holder in the middle of a transaction
    // has the row locked, and even `ON CONFLICT DO NOTHING` waits for it.
    let read = "SELECT session_pid, session_start FROM landfall.progress
                 WHERE link = $1 AND stream = $2 AND lane = $3";
    let holder = client.query_opt(read, &name).await.map_err(sql("read who holds the target"))?;
    if holder.is_none() {
        let begin = "INSERT INTO landfall.progress (link, stream, lane) VALUES ($1, $2, $3)
                     ON CONFLICT DO NOTHING";
        client.execute(begin, &name).await.map_err(sql("begin the progress row"))?;
    }
    let holder = holder.as_ref().and_then(backend_of);
    if let Some(holder) = holder
        && Some(holder) != former
    {
        end_unless_alive(client, holder, doubt).await?;
    }
    // Also where another newcomer wins in a moment: its chunks come in by fewer sessions then, for a minute.
    end_lanes(config, client).await?;
    let (pid, start) = (holder.map(|it| it.pid), holder.map(|it| it.start));
    // What a lane of an earlier holder has begun is waited for: it holds the row against nobody but us.
    client.batch_execute("BEGIN").await.map_err(sql("raise the apply epoch"))?;
    let wait = "SELECT FROM landfall.progress WHERE link = $1 AND stream = $2 AND lane = $3 FOR UPDATE";
    client.execute(wait, &name).await.map_err(sql("wait for the former holder's sessions"))?;
    let row = client
        .query_opt(
            "UPDATE landfall.progress
                SET apply_epoch = apply_epoch + 1, session_pid = $6, session_start = $7
              WHERE link = $1 AND stream = $2 AND lane = $3
                AND session_pid IS NOT DISTINCT FROM $4 AND session_start IS NOT DISTINCT FROM $5
             RETURNING apply_epoch, incarnation, sequence, writer_epoch, position::text, kafka_offset,
                       heartbeat_sent, heartbeat_arrived, grouped_through,
                       set_config('synchronous_commit', 'on', true)",
            &[&link, &config.stream, &lane, &pid, &start, &backend.pid, &backend.start],
        )
        .await
        .map_err(sql("raise the apply epoch"))?;
    let Some(row) = row else {
        return Err(Fault::new(Code::TargetHeld, "another daemon took the target a moment ago"));
    };
    client.batch_execute("COMMIT").await.map_err(sql("raise the apply epoch"))?;
    Ok((ApplyEpoch(row.get(0)), progress_of(&row)?))
}

fn backend_of(row: &Row) -> Option<Backend> {
    Some(Backend { pid: row.get::<_, Option<_>>(0)?, start: row.get::<_, Option<_>>(1)? })
}

/// Tells a backend to end; false where it is gone.
async fn is_told_to_end(
    client: &Connection,
    backend: Backend,
) -> std::result::Result<bool, tokio_postgres::Error> {
    // A transaction sees the backends that there were at its first look.
    client.batch_execute("SELECT pg_stat_clear_snapshot()").await?;
    let tell = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND backend_start = $2";
    Ok(client.query_opt(tell, &[&backend.pid, &backend.start]).await?.is_some())
}

async fn end_unless_alive(client: &Connection, holder: Backend, doubt: &mut Doubt) -> Result<()> {
    let Some((seen, who)) = life::look(client, holder).await? else { return Ok(()) };
    if doubt.lives(holder, seen, Instant::now()) {
        return Err(Fault::new(Code::TargetHeld, format!("held by backend {} ({who})", holder.pid)));
    }
    end(client, holder).await
}

/// Ends a backend and waits until it is gone, and with it its locks and its hold on the origin.
async fn end(client: &Connection, backend: Backend) -> Result<()> {
    let since = Instant::now();
    while is_told_to_end(client, backend).await.map_err(sql("end another session's backend"))? {
        if since.elapsed() > END_TIMEOUT {
            let message = format!("backend {} was told to end and is still there", backend.pid);
            return Err(Fault::new(Code::TargetHeld, message));
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Ends the lanes of a holder that is gone: nobody looks at what they do any more.
async fn end_lanes(config: &PostgresSinkConfig, client: &Connection) -> Result<()> {
    let names: Vec<String> =
        (LANE + 1..COPY_SESSIONS_MAX).map(|lane| lane_application(config, lane)).collect();
    let rows = client
        .query(
            "SELECT pid, backend_start FROM pg_stat_activity
              WHERE application_name = ANY (SELECT left(name, 63) FROM unnest($1::text[]) name)
                AND usename = session_user AND datname = current_database()",
            &[&names],
        )
        .await
        .map_err(sql("ask for the former holder's sessions"))?;
    for lane in rows.iter().filter_map(backend_of) {
        end_lane(client, lane).await?;
    }
    Ok(())
}

/// The same as [`end`] for a session of the holder's own: nobody else holds the target meanwhile.
pub(super) async fn end_lane(client: &Connection, lane: Backend) -> Result<()> {
    let busy = |fault: Fault| match fault.code() {
        Code::TargetHeld => Fault::new(Code::TargetBusy, fault.message()),
        _ => fault,
    };
    end(client, lane).await.map_err(busy)
}

/// How the session of a lane is seen at the server, which cuts names. Where two links of one database have the same then,
/// who claims for one of them ends the other's lanes as well: they are made anew.
pub(super) fn lane_application(config: &PostgresSinkConfig, lane: u16) -> String {
    format!("landfall copy {lane} {}/{}", config.from, config.stream)
}

/// Makes the replication origin of a lane, unless it is there; gives its name.
pub(super) async fn make_origin(config: &PostgresSinkConfig, client: &Client, lane: u16) -> Result<String> {
    let origin = names::origin(&config.from, &config.stream, lane);
    let exists = client
        .query_one("SELECT pg_replication_origin_oid($1) IS NOT NULL", &[&origin])
        .await
        .map_err(sql("look for the replication origin"))?;
    if !exists.get::<_, bool>(0) {
        let made = client.execute("SELECT pg_replication_origin_create($1)", &[&origin]).await;
        match made {
            Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => {}
            made => drop(made.map_err(sql("create the replication origin"))?),
        }
    }
    Ok(origin)
}

/// Has a session's transactions stand under an origin. One session can use it at a time.
pub(super) async fn use_origin(
    client: &Client,
    origin: &str,
) -> std::result::Result<(), tokio_postgres::Error> {
    client.batch_execute(&format!("SELECT pg_replication_origin_session_setup({})", literal(origin))).await
}

async fn take_origin(
    config: &PostgresSinkConfig,
    client: &Connection,
    former: Option<Backend>,
    doubt: &mut Doubt,
) -> Result<()> {
    let origin = make_origin(config, client, LANE).await?;
    let since = Instant::now();
    loop {
        match use_origin(client, &origin).await {
            Ok(()) => return Ok(()),
            Err(error) if error.code() == Some(&SqlState::OBJECT_IN_USE) => {
                if since.elapsed() > END_TIMEOUT {
                    return Err(fault_of(&error).at("set up the replication origin"));
                }
                end_users_of_origin(config, client, former, doubt).await?;
                sleep(Duration::from_millis(50)).await;
            }
            Err(error) => return Err(sql("set up the replication origin")(error)),
        }
    }
}

/// The row named a holder that is gone, yet somebody has the origin: a session of the same link that
/// lost its claim half-way. Judged like a holder.
async fn end_users_of_origin(
    config: &PostgresSinkConfig,
    client: &Connection,
    former: Option<Backend>,
    doubt: &mut Doubt,
) -> Result<()> {
    let application = format!("landfall apply {}/{}", config.from, config.stream);
    let rows = client
        .query(
            // The server cuts application names.
            "SELECT pid, backend_start FROM pg_stat_activity
              WHERE application_name = left($1, 63) AND pid <> pg_backend_pid()
                AND datname = current_database()",
            &[&application],
        )
        .await
        .map_err(sql("ask who uses the replication origin"))?;
    let mut held = Ok(());
    for user in rows.iter().filter_map(backend_of) {
        let ended = if Some(user) == former {
            end(client, user).await
        } else {
            end_unless_alive(client, user, doubt).await
        };
        // One that lives may stand by like us: whoever has the origin is looked at all the same.
        held = held.and(ended);
    }
    held
}

pub(super) fn shape_of(body: &str) -> Result<Arc<Shape>> {
    serde_json::from_str(body)
        .map(Arc::new)
        .map_err(|error| Fault::new(Code::Internal, "read a shape from landfall.shape").because(error))
}

fn progress_of(row: &Row) -> Result<Option<Progress>> {
    let damaged = |what: &str| Fault::new(Code::Internal, format!("landfall.progress holds {what}"));
    let Some(incarnation) = row.get::<_, Option<&str>>(1) else { return Ok(None) };
    let incarnation = u64::from_str_radix(incarnation, 16).map_err(|_| damaged("no incarnation"))?;
    let number = |at| u64::try_from(row.get::<_, i64>(at)).map_err(|_| damaged("a negative number"));
    let position = match row.get::<_, Option<&str>>(4) {
        Some(text) => {
            Some(serde_json::from_str(text).map_err(|error| damaged("an unknown position").because(error))?)
        }
        None => None,
    };
    let time = |at| row.get::<_, Option<Timestamp>>(at).map(|it| Micros(it.0));
    Ok(Some(Progress {
        incarnation: Incarnation(incarnation),
        through: Cursor {
            sequence: Sequence(number(2)?),
            epoch: WriterEpoch(u32::try_from(number(3)?).map_err(|_| damaged("no writer epoch"))?),
            offset: Offset(row.get(5)),
            position,
        },
        heartbeat: time(6).zip(time(7)).map(|(sent, arrived)| Heartbeat { sent, appended: None, arrived }),
        grouped_through: Sequence(number(8)?),
    }))
}
