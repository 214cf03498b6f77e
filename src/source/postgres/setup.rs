//! What must stand before a slot can be read: our schema, the publication, the slot. Created where the
//! stream has not begun and the role may; else refused, with the SQL for who may.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::AtomicBool},
};

use tokio_postgres::Row;

use super::{PostgresKeeper, PostgresSourceConfig, copier, places, publication, slot};
use crate::{
    envelope::body::Server,
    fault::{Code, Fault, Result},
    lsn::Lsn,
    position::{Incarnation, Position, PostgresPosition},
    postgres::{
        Connection, catalog, connect, fault_of,
        grants::{self, Duties},
        own,
    },
    source::Opened,
    stamp::Micros,
};

/// A source's tables in schema `landfall`.
pub const OWN_TABLES: &[&str] = &["stream", "published", "backfill", "backfill_table", "backfill_condition"];

/// The stream's row in schema `landfall`: what tells a fresh stream from a lost one.
const STREAM_TABLE: &str = "create table if not exists landfall.stream (
    stream text primary key,
    incarnation text not null,
    live boolean not null,
    writer_epoch bigint not null,
    system text not null,
    consistent pg_lsn not null,
    slot text not null,
    scope text[] not null,
    begun timestamptz not null default now())";

/// Has a session wait for no standby.
const ALONE: &str = "set synchronous_commit = local";
const SET_UP: &str = "set up a session of the source";

/// A place in the log that is no transaction's.
pub(super) fn at(lsn: Lsn) -> Position {
    Position::Postgres(PostgresPosition { commit: lsn, end: lsn, xid: 0, time: Micros(0) })
}

/// The stream as its database knows it.
struct StreamRow {
    incarnation: Incarnation,
    live: bool,
    system: String,
    consistent: Lsn,
    scope: Vec<String>,
}

/// A stream and its slot, as they were found before the slot is ours.
pub(super) struct Prepared {
    server: Server,
    stream: StreamRow,
    connection: Connection,
    config: PostgresSourceConfig,
}

impl Prepared {
    /// What there is to know once the slot is ours: whoever held it until a moment ago may have confirmed more meanwhile.
    pub(super) async fn opened(self, told: Arc<AtomicBool>) -> Result<(Opened, PostgresKeeper)> {
        let Self { server, stream, connection, config } = self;
        // A standby that is away holds up neither heartbeats nor a start. What a server that fails over loses of this is found
        // out at the next start, as slot.rs says.
        let alone = connection.batch_execute(ALONE).await;
        alone.map_err(|error| fault_of(&error).at(SET_UP))?;
        let keeper = PostgresKeeper::new(connection, config, stream.scope.iter().cloned().collect(), told);
        let (confirmed, written) = keeper.stands().await?;
        let StreamRow { incarnation, live, consistent, scope, .. } = stream;
        let consistent = at(consistent);
        let opened = Opened { server, incarnation, live, consistent, confirmed, written, scope };
        Ok((opened, keeper))
    }
}

pub(super) async fn prepare(config: &PostgresSourceConfig) -> Result<Prepared> {
    let connection = connect(&config.address, &format!("landfall source {}", config.stream)).await?;
    let server = server(&connection).await?;
    if slot::is_standby(&connection, config).await? {
        tracing::warn!("{}", slot::standby_warning(config));
        let alone = connection.batch_execute(ALONE).await;
        alone.map_err(|error| fault_of(&error).at(SET_UP))?;
    }
    grants::require(&connection, Duties { source: true, sink: false }, OWN_TABLES).await?;
    let own_tables = format!("{STREAM_TABLE}; {}; {}", places::TABLE, copier::TABLES);
    own::make(&connection, OWN_TABLES, &own_tables).await?;
    let known = stream_row(&connection, &config.stream).await?;
    let stream = match known {
        Some(stream) if stream.live => {
            refuse_other_server(&stream, &server, config)?;
            publication::glance(&connection, config, &stream.scope.iter().cloned().collect()).await?;
            stream
        }
        _ => begin(&connection, config, &server).await?,
    };
    let slot = catalog::slot(&connection, &config.slot).await?.ok_or_else(|| {
        let message = format!(
            "slot `{}` does not exist, but stream `{}` (incarnation {}) was begun at {}; what was committed after the end of its log is gone",
            config.slot, config.stream, stream.incarnation, stream.consistent
        );
        Fault::new(Code::SlotMissing, message)
    })?;
    slot::refuse_lost(&slot, &config.slot)?;
    slot::refuse_foreign(&slot, config)?;
    Ok(Prepared { server, stream, connection, config: config.clone() })
}

async fn server(connection: &Connection) -> Result<Server> {
    let facts = catalog::server_facts(connection).await?;
    let refuse =
        |message: String, remedy: &str| Err(Fault::new(Code::ServerSetting, message).remedied_by(remedy));
    if facts.version_number < catalog::VERSION_MIN {
        let message = format!("the server is PostgreSQL {}, at least 15 is needed", facts.version);
        return refuse(message, "upgrade the server");
    }
    if facts.wal_level != "logical" {
        return refuse(
            format!("wal_level is `{}`, it must be `logical`", facts.wal_level),
            "ALTER SYSTEM SET wal_level = 'logical'; then restart the server",
        );
    }
    if facts.in_recovery {
        return refuse("the server is a standby".into(), "point the url at the primary");
    }
    let identity = catalog::system_identity(connection).await?;
    Ok(Server { system: identity.system_identifier.to_string(), timeline: identity.timeline })
}

fn refuse_other_server(stream: &StreamRow, server: &Server, config: &PostgresSourceConfig) -> Result<()> {
    if stream.system == server.system {
        return Ok(());
    }
    let message = format!(
        "stream `{}` came from system {}, this server is system {}",
        config.stream, stream.system, server.system
    );
    Err(Fault::new(Code::ServerChanged, message))
}

async fn stream_row(connection: &Connection, stream: &str) -> Result<Option<StreamRow>> {
    let sql =
        "select incarnation, live, system, consistent::text, scope from landfall.stream where stream = $1";
    let row = connection.query_opt(sql, &[&stream]).await;
    row.map_err(|error| fault_of(&error).at("read landfall.stream"))?
        .map(|row| parse_stream(&row))
        .transpose()
}

fn parse_stream(row: &Row) -> Result<StreamRow> {
    let incarnation: String = row.get(0);
    let incarnation = u64::from_str_radix(&incarnation, 16).map_err(|error| {
        Fault::new(Code::Internal, format!("landfall.stream holds the incarnation `{incarnation}`"))
            .because(error)
    })?;
    Ok(StreamRow {
        incarnation: Incarnation(incarnation),
        live: row.get(1),
        system: row.get(2),
        consistent: lsn(row.get(3))?,
        scope: row.get(4),
    })
}

/// Gives the stream a new incarnation, a publication and a slot. Nothing of it is in the log yet, so a
/// slot an earlier try left behind, or the owner made beforehand, serves: it has kept everything since. Another stream's
/// does not.
async fn begin(connection: &Connection, config: &PostgresSourceConfig, server: &Server) -> Result<StreamRow> {
    slot::refuse_shared(connection, config).await?;
    let published = publication::check(connection, config, false, &HashSet::new()).await?;
    let consistent = match catalog::slot(connection, &config.slot).await? {
        Some(slot) => {
            slot::refuse_lost(&slot, &config.slot)?;
            slot::refuse_foreign(&slot, config)?;
            slot.confirmed_flush.unwrap_or(Lsn::INVALID)
        }
        None => slot::create(connection, config).await?,
    };
    let sql = "insert into landfall.stream
            (stream, incarnation, live, writer_epoch, system, consistent, slot, scope)
        values ($1, $2, false, 0, $3, $4::text::pg_lsn, $5, $6)
        on conflict (stream) do update set system = excluded.system, consistent = excluded.consistent,
            slot = excluded.slot, scope = excluded.scope
        returning incarnation, live, system, consistent::text, scope";
    // Random, and kept by the row from here on: a genesis that was appended before the stream was
    // marked as begun is known by it.
    let incarnation = Incarnation(rand::random()).to_string();
    let consistent = consistent.to_string();
    let begun_with: Vec<String> = published.tables.iter().map(ToString::to_string).collect();
    let row = connection
        .query_one(
            sql,
            &[&config.stream, &incarnation, &server.system, &consistent, &config.slot, &begun_with],
        )
        .await
        .map_err(|error| fault_of(&error).at("write landfall.stream"))?;
    places::forget(connection, config).await?;
    parse_stream(&row)
}

fn lsn(text: &str) -> Result<Lsn> {
    text.parse().map_err(|error| Fault::new(Code::ProtocolUnknown, "read a position").because(error))
}
