//! The replication slot: what the server says of it, and whether it is the one the stream came through.

use tokio_postgres::error::SqlState;

use super::{PostgresSourceConfig, setup::lsn};
use crate::{
    fault::{Code, Fault, Result},
    lsn::Lsn,
    names::quoted,
    postgres::{Connection, fault_of},
};

/// What the server says of a slot.
pub(super) struct SlotFacts {
    plugin: String,
    database: String,
    pub(super) confirmed: Lsn,
    wal_status: Option<String>,
    pub(super) retained_bytes: Option<u64>,
    pub(super) safe_bytes: Option<u64>,
}

pub(super) async fn facts(connection: &Connection, slot: &str) -> Result<Option<SlotFacts>> {
    let sql = "select coalesce(plugin, '')::text, coalesce(database, '')::text,
            coalesce(confirmed_flush_lsn, '0/0')::text, wal_status,
            (pg_current_wal_lsn() - restart_lsn)::int8, safe_wal_size
        from pg_replication_slots where slot_name = $1::text";
    let row =
        connection.query_opt(sql, &[&slot]).await.map_err(|error| fault_of(&error).at("ask for the slot"))?;
    let Some(row) = row else { return Ok(None) };
    let bytes = |at| row.get::<_, Option<i64>>(at).map(|bytes| bytes.max(0).unsigned_abs());
    Ok(Some(SlotFacts {
        plugin: row.get(0),
        database: row.get(1),
        confirmed: lsn(row.get(2))?,
        wal_status: row.get(3),
        retained_bytes: bytes(4),
        safe_bytes: bytes(5),
    }))
}

/// Creates the slot. Everything committed after the position returned will be sent.
pub(super) async fn create(connection: &Connection, config: &PostgresSourceConfig) -> Result<Lsn> {
    let sql = "select lsn::text from pg_create_logical_replication_slot($1::text, 'pgoutput')";
    let row = connection.query_one(sql, &[&config.slot]).await.map_err(|error| {
        let fault = fault_of(&error).at(format_args!("create slot `{}`", config.slot));
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
    lsn(row.get(0))
}

impl SlotFacts {
    /// Refuses a slot that cannot be read from any more.
    pub(super) fn refuse_lost(&self, name: &str) -> Result<()> {
        if self.wal_status.as_deref() != Some("lost") {
            return Ok(());
        }
        let message = format!(
            "slot `{name}` was invalidated: the server removed log it needed; what was committed after {} is gone from the server",
            self.confirmed
        );
        Err(Fault::new(Code::SlotLost, message))
    }

    /// Refuses a slot of another kind or database.
    pub(super) fn refuse_foreign(&self, config: &PostgresSourceConfig) -> Result<()> {
        if self.plugin == "pgoutput" && self.database == config.address.database {
            return Ok(());
        }
        let message = format!(
            "slot `{}` is `{}` on database `{}`, not pgoutput on `{}`",
            config.slot, self.plugin, self.database, config.address.database
        );
        Err(Fault::new(Code::SlotMissing, message).remedied_by("name another slot in source.slot"))
    }
}
