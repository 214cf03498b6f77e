//! A Postgres database's log, through a logical replication slot.

mod keeper;
mod publication;
mod setup;
mod slot;

use std::{collections::HashMap, sync::Arc, time::Duration};

use pgwire_replication::{PgWireError, ReplicationClient, ReplicationConfig, ReplicationEvent};
use tokio_postgres::types::Type;

pub use keeper::PostgresKeeper;

use crate::{
    change::{Cell, Change, Column, Ordered, Row, Shape},
    fault::{Code, Fault, Result},
    lsn::Lsn,
    names,
    position::{Position, PostgresPosition},
    postgres::{
        Address, OUTPUT_SETTINGS,
        pgoutput::{self, Message, Old, Relation},
        wire_fault,
    },
    scope::Scope,
    source::{Event, Opened, Source},
    stamp::Micros,
};

/// How often the server hears from us at least. Well below the least `wal_sender_timeout` in use, and
/// what a confirmation may be late by.
const STATUS_INTERVAL: Duration = Duration::from_millis(250);
/// Events between the transport's task and ours. Enough for a read of the socket; a slow log shows
/// through TCP soon.
const EVENTS: usize = 16;

/// What a source reads.
#[derive(Clone, Debug)]
pub struct PostgresSourceConfig {
    /// The database.
    pub address: Address,
    /// The stream's name.
    pub stream: String,
    /// The tables.
    pub scope: Scope,
    /// The publication.
    pub publication: String,
    /// The slot.
    pub slot: String,
}

/// Reads a slot.
pub struct PostgresSource {
    config: PostgresSourceConfig,
    session: Option<Session>,
}

struct Session {
    client: ReplicationClient,
    tables: Tables,
    /// Of the next change in the transaction begun.
    ordinal: u64,
}

/// Tables and types as the server has described them in this session.
struct Tables {
    scope: Scope,
    /// None for a table that is published and not in scope.
    relations: HashMap<u32, Option<Arc<Shape>>>,
    types: HashMap<u32, (String, String)>,
}

impl PostgresSource {
    /// Connects only when opened.
    pub fn new(config: PostgresSourceConfig) -> Self {
        Self { config, session: None }
    }

    fn replication(&self) -> ReplicationConfig {
        let address = &self.config.address;
        ReplicationConfig::new(
            &address.host,
            &address.user,
            address.password.reveal(),
            &address.database,
            &self.config.slot,
            self.config.publication.as_str(),
        )
        .with_port(address.port)
        .with_tls(address.tls_config())
        .with_status_interval(STATUS_INTERVAL)
        .with_wakeup_interval(STATUS_INTERVAL)
        .with_buffer_size(EVENTS)
        .with_options(OUTPUT_SETTINGS)
        .with_application_name(format!("landfall capture {}", self.config.stream))
    }
}

impl Source for PostgresSource {
    type Keeper = PostgresKeeper;

    async fn open(&mut self) -> Result<(Opened, PostgresKeeper)> {
        self.session = None;
        let (opened, keeper) = setup::prepare(&self.config).await?;
        // Starts at the slot's confirmed position: the server knows it, and would move there anyway.
        let mut client = ReplicationClient::connect(self.replication()).await.map_err(wire_fault)?;
        client.wait_started().await.map_err(|error| start_fault(error, &self.config.slot))?;
        let tables =
            Tables { scope: self.config.scope.clone(), relations: HashMap::new(), types: HashMap::new() };
        self.session = Some(Session { client, tables, ordinal: 0 });
        Ok((opened, keeper))
    }

    async fn next(&mut self) -> Result<Event> {
        let session = self.session.as_mut().expect("opened before it is read");
        loop {
            let event =
                session.client.recv().await.map_err(|error| stream_fault(error, &self.config.slot))?;
            let Some(event) = event else {
                return Err(Fault::new(Code::DatabaseUnreachable, "the server ended the replication stream"));
            };
            if let Some(event) = session.event(event)? {
                return Ok(event);
            }
        }
    }

    fn confirm(&mut self, position: &Position) {
        let Position::Postgres(at) = position;
        if let Some(session) = &self.session {
            session.client.update_applied_lsn(pgwire_replication::Lsn::from_u64(at.end.0));
        }
    }
}

impl Session {
    /// What an event of the transport is to us; none where it is nothing.
    fn event(&mut self, event: ReplicationEvent) -> Result<Option<Event>> {
        let position = |commit: u64, end: u64, xid, time| {
            Position::Postgres(PostgresPosition { commit: Lsn(commit), end: Lsn(end), xid, time })
        };
        Ok(match event {
            ReplicationEvent::Begin { final_lsn, xid, commit_time_micros } => {
                self.ordinal = 0;
                let time = Micros::from_postgres(commit_time_micros);
                Some(Event::Begin(position(final_lsn.as_u64(), final_lsn.as_u64(), xid, time)))
            }
            ReplicationEvent::Commit { lsn, end_lsn, commit_time_micros } => {
                let time = Micros::from_postgres(commit_time_micros);
                Some(Event::Commit(position(lsn.as_u64(), end_lsn.as_u64(), 0, time)))
            }
            ReplicationEvent::KeepAlive { wal_end, server_time_micros, .. } => {
                let time = Micros::from_postgres(server_time_micros);
                Some(Event::Idle(position(wal_end.as_u64(), wal_end.as_u64(), 0, time)))
            }
            ReplicationEvent::Message { transactional, prefix, content, .. } => {
                let ours = transactional && prefix == names::HEARTBEAT_PREFIX;
                self.ordinal += u64::from(transactional);
                ours.then_some(Event::Heartbeat(content))
            }
            ReplicationEvent::XLogData { wal_start, data, .. } => {
                let message = pgoutput::decode(data).map_err(|error| {
                    let place = format!("decode the message at {wal_start}");
                    Fault::new(Code::ProtocolUnknown, place).because(error)
                })?;
                self.message(message).map_err(|fault| fault.at(format_args!("message at {wal_start}")))?
            }
            // Never asked for.
            ReplicationEvent::StoppedAt { .. } => None,
        })
    }

    fn message(&mut self, message: Message) -> Result<Option<Event>> {
        let change = match message {
            Message::Origin { name, .. } => return Ok(Some(Event::Origin(name))),
            Message::Type(name) => {
                let schema = if name.schema.is_empty() { "pg_catalog".to_owned() } else { name.schema };
                self.tables.types.insert(name.id, (schema, name.name));
                return Ok(None);
            }
            Message::Relation(relation) => {
                self.tables.describe(relation)?;
                return Ok(None);
            }
            Message::Insert { relation, new } => {
                self.tables.shape(relation)?.map(|shape| Change::Insert { shape, new })
            }
            Message::Update { relation, old, new } => self.tables.shape(relation)?.map(|shape| {
                let old = old.map(|old| old_row(old, &shape));
                Change::Update { shape, old, new }
            }),
            Message::Delete { relation, old } => self.tables.shape(relation)?.map(|shape| {
                let old = old_row(old, &shape);
                Change::Delete { shape, old }
            }),
            Message::Truncate { relations, cascade, restart_identity } => {
                let mut shapes = Vec::new();
                for relation in relations {
                    shapes.extend(self.tables.shape(relation)?);
                }
                (!shapes.is_empty()).then_some(Change::Truncate { shapes, cascade, restart_identity })
            }
        };
        let ordinal = self.ordinal;
        self.ordinal += 1;
        Ok(change.map(|change| Event::Change(Ordered { ordinal, change })))
    }
}

/// An old image with what was not logged told apart from what is NULL.
fn old_row(old: Old, shape: &Shape) -> Row {
    match old {
        Old::Full(row) => row,
        Old::Key(Row(mut cells)) => {
            for (cell, column) in cells.iter_mut().zip(&shape.columns) {
                if !column.key {
                    *cell = Cell::Unchanged;
                }
            }
            Row(cells)
        }
    }
}

impl Tables {
    fn describe(&mut self, relation: Relation) -> Result<()> {
        if !self.scope.holds(&relation.schema, &relation.table) {
            self.relations.insert(relation.id, None);
            return Ok(());
        }
        let mut columns = Vec::with_capacity(relation.columns.len());
        for column in relation.columns {
            let (type_schema, type_name) = self.type_name(column.type_id).ok_or_else(|| {
                let (schema, table) = (&relation.schema, &relation.table);
                let message = format!(
                    "column `{}` of {schema}.{table} has the unknown type {}",
                    column.name, column.type_id
                );
                Fault::new(Code::ProtocolUnknown, message)
            })?;
            columns.push(Column {
                name: column.name.into(),
                type_schema: type_schema.into(),
                type_name: type_name.into(),
                typmod: column.typmod,
                key: column.key,
            });
        }
        let shape = Shape {
            schema: relation.schema.into(),
            table: relation.table.into(),
            identity: relation.identity,
            columns: columns.into(),
        };
        self.relations.insert(relation.id, Some(Arc::new(shape)));
        Ok(())
    }

    fn type_name(&self, id: u32) -> Option<(String, String)> {
        // The server names the types that are not built in; the built in ones have fixed ids.
        let named = self.types.get(&id).cloned();
        named.or_else(|| Type::from_oid(id).map(|known| (known.schema().to_owned(), known.name().to_owned())))
    }

    fn shape(&self, relation: u32) -> Result<Option<Arc<Shape>>> {
        let known = self.relations.get(&relation).cloned();
        known.ok_or_else(|| {
            Fault::new(
                Code::ProtocolUnknown,
                format!("a change names table {relation}, which was not described"),
            )
        })
    }
}

fn start_fault(error: PgWireError, slot: &str) -> Fault {
    let text = error.to_string();
    if text.contains("is active for PID") {
        return Fault::new(Code::SlotBusy, format!("slot `{slot}` is held by another session"))
            .because(error);
    }
    stream_fault(error, slot)
}

fn stream_fault(error: PgWireError, slot: &str) -> Fault {
    let text = error.to_string();
    let lost = text.contains("can no longer get changes from replication slot")
        || text.contains("requested WAL segment") && text.contains("has already been removed");
    if lost {
        return Fault::new(Code::SlotLost, format!("read slot `{slot}`")).because(error);
    }
    wire_fault(error).at(format_args!("read slot `{slot}`"))
}
