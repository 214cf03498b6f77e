//! Beside the stream: writer epochs, heartbeats, and a look at the slot and the publication.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use super::{
    PostgresSourceConfig,
    places::{self, Looked},
    publication::{self, Glance},
    setup, slot,
};
use crate::{
    fault::{Code, Fault, Result},
    lsn::Lsn,
    names,
    position::{Position, WriterEpoch},
    postgres::{Connection, catalog, fault_of},
    source::{Keeper, Vitals},
    verify::TableName,
};

/// Works on a connection of its own, so that it never waits for the stream.
pub struct PostgresKeeper {
    connection: Connection,
    config: PostgresSourceConfig,
    /// The tables the stream has carried so far.
    scope: HashSet<String>,
    /// That the publication is not as it was has been told since it last was.
    told: Arc<AtomicBool>,
}

impl PostgresKeeper {
    pub(super) fn new(
        connection: Connection,
        config: PostgresSourceConfig,
        scope: HashSet<String>,
        told: Arc<AtomicBool>,
    ) -> Self {
        Self { connection, config, scope, told }
    }

    /// What was confirmed of the slot, and up to where the server's log goes.
    pub(super) async fn stands(&self) -> Result<(Position, Position)> {
        let slot = catalog::slot(&self.connection, &self.config.slot).await?;
        let confirmed = slot.and_then(|slot| slot.confirmed_flush).unwrap_or(Lsn::INVALID);
        Ok((setup::at(confirmed), setup::at(catalog::current_lsn(&self.connection).await?)))
    }

    /// Notes tables that the stream carries from now on: none of them may be lost again unsaid.
    async fn carries(&mut self, tables: &[TableName]) -> Result<()> {
        let names = tables.iter().map(ToString::to_string);
        let new: Vec<String> = names.filter(|name| !self.scope.contains(name)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let sql = "update landfall.stream set scope = scope || $2::text[] where stream = $1";
        let done = self.connection.execute(sql, &[&self.config.stream, &new]).await;
        done.map_err(|error| fault_of(&error).at("note which tables the stream carries"))?;
        self.scope.extend(new);
        Ok(())
    }
}

impl Keeper for PostgresKeeper {
    async fn raise_epoch(&mut self, above: WriterEpoch) -> Result<WriterEpoch> {
        let sql = "update landfall.stream set writer_epoch = greatest(writer_epoch, $2) + 1
            where stream = $1 returning writer_epoch";
        let row = self.connection.query_one(sql, &[&self.config.stream, &i64::from(above.0)]).await;
        let epoch: i64 = row.map_err(|error| fault_of(&error).at("raise the writer epoch"))?.get(0);
        u32::try_from(epoch).map(WriterEpoch).map_err(|_| {
            Fault::new(Code::Internal, format!("landfall.stream holds the writer epoch {epoch}"))
        })
    }

    async fn mark_live(&mut self) -> Result<()> {
        let sql = "update landfall.stream set live = true where stream = $1 and not live";
        let done = self.connection.execute(sql, &[&self.config.stream]).await;
        done.map(|_| ()).map_err(|error| fault_of(&error).at("mark the stream as begun"))
    }

    async fn beat(&mut self, content: &str) -> Result<()> {
        let sql = "select pg_logical_emit_message(true, $1::text, $2::text)";
        let sent = self.connection.query_one(sql, &[&names::HEARTBEAT_PREFIX, &content]).await;
        sent.map(|_| ()).map_err(|error| fault_of(&error).at("send a heartbeat"))
    }

    async fn inspect(&mut self) -> Result<Vitals> {
        let name = &self.config.slot;
        let Some(slot) = catalog::slot(&self.connection, name).await? else {
            return Err(Fault::new(
                Code::SlotMissing,
                format!("slot `{name}` was dropped while it was read"),
            ));
        };
        slot::refuse_lost(&slot, name)?;
        let published = publication::glance(&self.connection, &self.config, &self.scope).await;
        let changed = published.as_ref().is_err_and(|fault| fault.code() == Code::PublicationChanged);
        self.told.fetch_or(changed, Relaxed);
        let Glance { tables, mut amiss } = published?;
        let Looked { lost, renamed } = places::look(&self.connection, &self.config).await?;
        if !self.told.swap(false, Relaxed) && !lost.is_empty() {
            return Err(publication::taken_out(&self.config, &lost));
        }
        amiss.extend(renamed.iter().map(|(before, now)| publication::renamed(before, now)));
        self.carries(&tables).await?;
        if slot::is_standby(&self.connection, &self.config).await? {
            amiss.push(slot::standby_warning(&self.config));
        }
        Ok(Vitals { kept: slot::kept(&slot), amiss })
    }
}
