//! The replication slot: whether it is the one the stream came through, and can still be read.

use tokio_postgres::{Client, error::SqlState};

use super::PostgresSourceConfig;
use crate::{
    fault::{Code, Fault, Result},
    lsn::Lsn,
    names::{self, quoted},
    postgres::{
        Connection,
        catalog::{self, NAME_STANDBYS, SlotFacts},
        fault_of,
    },
    source::Kept,
};

/// Creates the slot. Everything committed after the position returned will be sent.
pub(super) async fn create(connection: &Connection, config: &PostgresSourceConfig) -> Result<Lsn> {
    let doing = format!("create slot `{}`", config.slot);
    let sql = "select lsn::text from pg_create_logical_replication_slot($1::text, 'pgoutput')";
    let row = connection.query_one(sql, &[&config.slot]).await.map_err(|error| {
        let fault = fault_of(&error).at(&doing);
        match error.code() {
            Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                fault.remedied_by(format!("ALTER ROLE {} REPLICATION;", quoted(&config.address.user)))
            }
            Some(&SqlState::CONFIGURATION_LIMIT_EXCEEDED) => Fault::new(Code::ServerSetting, fault.message())
                .remedied_by(
                    "raise max_replication_slots and restart the server, or drop a slot nobody reads",
                ),
            _ => fault,
        }
    })?;
    let at: String = row.get(0);
    at.parse().map_err(|error| Fault::new(Code::ProtocolUnknown, doing).because(error))
}

/// What the server keeps for the slot.
pub(super) fn kept(slot: &SlotFacts) -> Kept {
    let bytes = |bytes: Option<i64>| bytes.map(|bytes| bytes.max(0).unsigned_abs());
    Kept { retained_bytes: bytes(slot.retained_bytes), safe_bytes: bytes(slot.safe_wal_bytes) }
}

/// Whether the server takes the session that reads the slot for a synchronous standby. Where there is no other, what
/// commits there waits until that session confirms it; what that session waits for must not wait for it in turn.
///
/// What commits without waiting may be lost with the server. Of the stream's own row and epochs a start finds that out, by
/// the topic's tail; a backfill's progress is made again; that a table is to be begun anew may be forgotten, which a
/// comparison finds.
pub(super) async fn is_standby(connection: &Connection, config: &PostgresSourceConfig) -> Result<bool> {
    catalog::is_standby(connection, &names::capture_session(&config.stream)).await
}

/// What people should know where it does.
pub(super) fn standby_warning(config: &PostgresSourceConfig) -> String {
    format!(
        "synchronous_standby_names takes the session that reads slot `{}` for a synchronous standby: a commit may be told to its client that no standby has, and waits for Kafka where none is there: {NAME_STANDBYS}",
        config.slot
    )
}

/// Refuses a slot that cannot be read from any more.
pub(super) fn refuse_lost(slot: &SlotFacts, name: &str) -> Result<()> {
    if !slot.is_lost() {
        return Ok(());
    }
    let why = slot.invalidation.as_deref().unwrap_or("the server removed log it needed");
    let after = slot.confirmed_flush.unwrap_or(Lsn::INVALID);
    let message = format!(
        "slot `{name}` was invalidated ({why}); what was committed after {after} is gone from the server"
    );
    Err(Fault::new(Code::SlotLost, message))
}

/// Another stream of this database that has begun, and is read through the slot.
pub(super) async fn other_stream(client: &Client, slot: &str, stream: &str) -> Result<Option<String>> {
    let sql = "select stream from landfall.stream where slot = $1 and stream <> $2 and live limit 1";
    let other = client.query_opt(sql, &[&slot, &stream]).await;
    Ok(other.map_err(|error| fault_of(&error).at("read landfall.stream"))?.map(|row| row.get(0)))
}

/// Refuses a slot that another stream is read through: what the one confirms, the server gives nobody any more.
pub(super) async fn refuse_shared(connection: &Connection, config: &PostgresSourceConfig) -> Result<()> {
    let Some(other) = other_stream(connection, &config.slot, &config.stream).await? else { return Ok(()) };
    let message = format!(
        "slot `{}` is that of stream `{other}`, stream `{}` needs its own",
        config.slot, config.stream
    );
    Err(Fault::new(Code::SlotMissing, message).remedied_by("name another slot in source.slot"))
}

/// Refuses a slot of another kind or database.
pub(super) fn refuse_foreign(slot: &SlotFacts, config: &PostgresSourceConfig) -> Result<()> {
    let (plugin, database) = (slot.plugin.as_deref(), slot.database.as_deref());
    if plugin == Some("pgoutput") && database == Some(&config.address.database) {
        return Ok(());
    }
    let message = format!(
        "slot `{}` is {} on database {}, not pgoutput on {}",
        config.slot,
        plugin.unwrap_or("a physical slot"),
        database.unwrap_or("(none)"),
        config.address.database
    );
    Err(Fault::new(Code::SlotMissing, message).remedied_by("name another slot in source.slot"))
}
