//! A Postgres database's log, through a logical replication slot.

pub mod anew;
mod answer;
pub mod backfill;
mod copier;
mod keeper;
mod places;
mod publication;
mod ranges;
mod setup;
mod slot;
mod table;
mod throttle;
mod watcher;
mod whole;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use pgwire_replication::PgWireError;
use tokio_postgres::types::Type;

pub use copier::PostgresCopier;
pub use keeper::PostgresKeeper;
pub use setup::OWN_TABLES;
pub use watcher::PostgresWatcher;

use crate::{
    change::{Cell, Change, Column, Ordered, Row, Shape},
    fault::{Code, Fault, Result},
    lsn::Lsn,
    names,
    position::{Position, PostgresPosition},
    postgres::{
        Address, Frame, Replication,
        pgoutput::{self, Message, Old, Relation},
        wire_fault,
    },
    scope::Scope,
    source::{Event, Opened, Source},
    stamp::Micros,
};

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
    /// How many sessions read a table of a backfill side by side.
    pub copy_sessions: u16,
    /// The regions this one has links from: what has come from them is theirs to tell.
    pub peers: Vec<String>,
}

/// Reads a slot.
pub struct PostgresSource {
    config: PostgresSourceConfig,
    session: Option<Session>,
    /// That the publication is not as it was has been told since it last was.
    told: Arc<AtomicBool>,
}

struct Session {
    replication: Replication,
    tables: Tables,
    /// Of the next change in the transaction begun.
    ordinal: u64,
}

/// Tables and types as the server has described them in this session.
struct Tables {
    scope: Scope,
    /// None for a table that is published and not in scope.
    relations: foldhash::HashMap<u32, Option<Arc<Shape>>>,
    types: HashMap<u32, (String, String)>,
}

impl PostgresSource {
    /// Connects only when opened.
    pub fn new(config: PostgresSourceConfig) -> Self {
        Self { config, session: None, told: Arc::default() }
    }
}

impl Source for PostgresSource {
    type Keeper = PostgresKeeper;
    type Copier = PostgresCopier;
    type Watcher = PostgresWatcher;

    async fn open(&mut self) -> Result<(Opened, PostgresKeeper, PostgresCopier)> {
        self.session = None;
        let prepared = setup::prepare(&self.config).await.inspect_err(|fault| {
            self.told.fetch_or(fault.code() == Code::PublicationChanged, Relaxed);
        })?;
        let config = &self.config;
        let application = names::capture_session(&config.stream);
        let replication =
            Replication::start(&config.address, &config.slot, &config.publication, &application)
                .await
                .map_err(|error| start_fault(error, &config.slot))?;
        let (opened, keeper) = prepared.opened(Arc::clone(&self.told)).await?;
        let tables = Tables {
            scope: self.config.scope.clone(),
            relations: foldhash::HashMap::default(),
            types: HashMap::new(),
        };
        self.session = Some(Session { replication, tables, ordinal: 0 });
        Ok((opened, keeper, PostgresCopier::new(self.config.clone())))
    }

    async fn next(&mut self) -> Result<Event> {
        let session = self.session.as_mut().expect("opened before it is read");
        loop {
            let frame =
                session.replication.next().await.map_err(|error| stream_fault(error, &self.config.slot))?;
            let Some(frame) = frame else {
                return Err(Fault::new(Code::DatabaseUnreachable, "the server ended the replication stream"));
            };
            if let Some(event) = session.event(frame)? {
                return Ok(event);
            }
        }
    }

    fn confirm(&mut self, position: &Position) {
        let Position::Postgres(at) = position;
        if let Some(session) = &self.session {
            session.replication.confirm(at.end);
        }
    }

    fn watcher(&self) -> PostgresWatcher {
        PostgresWatcher::new(self.config.clone())
    }
}

impl Session {
    /// What a frame is to us; none where it is nothing.
    fn event(&mut self, frame: Frame) -> Result<Option<Event>> {
        match frame {
            Frame::KeepAlive { end, time } => {
                Ok(Some(Event::Idle(position(end, end, 0, Micros::from_postgres(time)))))
            }
            Frame::Log { start, data } => {
                let message = pgoutput::decode(data).map_err(|error| {
                    Fault::new(Code::ProtocolUnknown, format!("decode the message at {start}")).because(error)
                })?;
                self.message(message).map_err(|fault| fault.at(format_args!("message at {start}")))
            }
        }
    }

    fn message(&mut self, message: Message) -> Result<Option<Event>> {
        let change = match message {
            Message::Begin { commit, time, xid } => {
                self.ordinal = 0;
                return Ok(Some(Event::Begin(position(commit, commit, xid, Micros::from_postgres(time)))));
            }
            Message::Commit { commit, end, time } => {
                return Ok(Some(Event::Commit(position(commit, end, 0, Micros::from_postgres(time)))));
            }
            Message::Logical { transactional, prefix, content, .. } => {
                self.ordinal += u64::from(transactional);
                return Ok(match prefix.as_str() {
                    names::HEARTBEAT_PREFIX if transactional => Some(Event::Heartbeat(content)),
                    names::WATERMARK_PREFIX if transactional => Some(Event::Watermark(content)),
                    _ => None,
                });
            }
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

fn position(commit: Lsn, end: Lsn, xid: u32, time: Micros) -> Position {
    Position::Postgres(PostgresPosition { commit, end, xid, time })
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
        let shape = Shape::new(relation.schema, relation.table, relation.identity, columns);
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
    if has_state(&error, "55006") {
        return Fault::new(Code::SlotBusy, format!("slot `{slot}` is held by another session"))
            .because(error);
    }
    slot_fault(error, slot)
}

fn stream_fault(error: PgWireError, slot: &str) -> Fault {
    // The server looks for the publication as it was at each change, and (but for a type) for nothing else by a name.
    if has_state(&error, "42704") {
        let message = format!("slot `{slot}` holds changes from when the publication was not there");
        return Fault::new(Code::PublicationChanged, message).because(error).remedied_by(
            "the server (before Postgres 18) cannot give them: `landfall recover --source` here begins the stream anew, then \
             `landfall recover --execute` in each region that receives it finds what differs",
        );
    }
    slot_fault(error, slot)
}

fn slot_fault(error: PgWireError, slot: &str) -> Fault {
    let text = error.to_string();
    let lost = text.contains("can no longer get changes from replication slot")
        || text.contains("requested WAL segment") && text.contains("has already been removed");
    if lost {
        return Fault::new(Code::SlotLost, format!("read slot `{slot}`")).because(error);
    }
    wire_fault(error).at(format_args!("read slot `{slot}`"))
}

/// Whether the server gave this SQLSTATE: what it says beside it is in its own language. The library keeps both in one text.
fn has_state(error: &PgWireError, state: &str) -> bool {
    matches!(error, PgWireError::Server(text) if text.contains(&format!("(SQLSTATE {state})")))
}
