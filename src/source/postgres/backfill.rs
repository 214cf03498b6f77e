//! What is asked of a copier, and how far it has come, for whoever asks: rows of `landfall.backfill` and
//! `landfall.backfill_table`. The daemon that reads the slot does the work.

use std::time::Duration;

use serde::Serialize;
use tokio_postgres::{Client, Row, SimpleQueryMessage};

use super::{publication, table::Table};
use crate::{
    fault::{Code, Fault, Result},
    names::qualified,
    postgres::{Connection, catalog, fault_of},
    scope::Pattern,
    source::postgres::PostgresSourceConfig,
    stamp::Micros,
};

/// What somebody wants copied.
#[derive(Clone, Debug)]
pub struct Request {
    /// The regions it is for.
    pub to: Vec<String>,
    /// The tables; every one that is carried, where none is named.
    pub tables: Vec<Pattern>,
    /// Which rows, where not all: those that meet this condition, of one table ([`require_condition`]).
    pub condition: Option<String>,
    /// At most so many rows a second.
    pub max_rows_per_second: Option<u64>,
    /// At most so many bytes of them a second, as `COPY` writes them.
    pub max_bytes_per_second: Option<u64>,
    /// Nothing is read while a region is behind by more.
    pub max_lag: Option<Duration>,
    /// The share of the time that may be spent reading, above 0 and at most 1.
    pub max_source_load: f64,
    /// At most so many rows between two watermarks.
    pub chunk_rows: u64,
}

/// A backfill, and how far it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Backfill {
    /// Its name.
    pub id: String,
    /// The regions it is for.
    pub to: Vec<String>,
    /// `requested`, `running`, `paused`, `done` or `canceled`.
    pub state: String,
    /// What it waits for, where it does not go on by itself.
    pub waits_for: Option<String>,
    /// When it was asked for, in microseconds since 1970.
    pub requested: Micros,
    /// When its last row was in the log.
    pub ended: Option<Micros>,
    /// Its tables, in the order they are copied.
    pub tables: Vec<TableProgress>,
}

/// A table, and how far it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TableProgress {
    /// `schema.table`.
    pub table: String,
    /// Which of its rows are copied, where not all: those that meet this, as SQL has it behind WHERE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// `waiting`, `copying` or `done`.
    pub state: String,
    /// Rows in the log.
    pub rows: u64,
    /// Bytes of them, as `COPY` writes them.
    pub bytes: u64,
    /// Rows there are to copy, by the server's own estimate; 0 where it has none.
    pub expected_rows: u64,
    /// Bytes the table takes on disk.
    pub expected_bytes: u64,
}

impl TableProgress {
    /// Its schema, and its own name.
    pub fn name(&self) -> (&str, &str) {
        self.table.split_once('.').unwrap_or(("", &self.table))
    }
}

impl Backfill {
    /// Whether it is over, one way or the other.
    pub fn is_over(&self) -> bool {
        matches!(self.state.as_str(), "done" | "canceled")
    }

    /// Which rows of its table are copied, where not all.
    pub fn condition(&self) -> Option<&str> {
        self.tables.iter().find_map(|table| table.condition.as_deref())
    }

    /// Rows in the log.
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|table| table.rows).sum()
    }

    /// Rows there are to copy, as far as it is known: no less than what was found.
    pub fn expected_rows(&self) -> u64 {
        let expected = |table: &TableProgress| match table.state.as_str() {
            "done" => table.rows,
            _ => table.rows.max(table.expected_rows),
        };
        self.tables.iter().map(expected).sum()
    }
}

fn sql(doing: &'static str) -> impl Fn(tokio_postgres::Error) -> Fault {
    move |error| fault_of(&error).at(doing)
}

/// Whether a daemon reads the slot now.
///
/// # Errors
/// Where the server does not answer.
pub async fn is_served(client: &Client, slot: &str) -> Result<bool> {
    Ok(catalog::slot(client, slot).await?.is_some_and(|slot| slot.active_pid.is_some()))
}

/// The tables a request is of, with what the server knows of their size.
///
/// # Errors
/// [`Code::TableDiffers`] where a pattern names no table that is carried.
pub async fn tables(
    client: &Client,
    published: Vec<String>,
    wanted: &[Pattern],
) -> Result<Vec<TableProgress>> {
    let found = |name: &&String| {
        let (schema, table) = name.split_once('.').unwrap_or(("", name));
        wanted.is_empty() || wanted.iter().any(|pattern| pattern.matches(schema, table))
    };
    let names: Vec<String> = published.iter().filter(found).cloned().collect();
    for pattern in wanted {
        let matches = |name: &String| {
            let (schema, table) = name.split_once('.').unwrap_or(("", name));
            pattern.matches(schema, table)
        };
        if !names.iter().any(matches) {
            let message = format!("`{}` names no table that the stream carries", pattern.as_str());
            let carried = format!("it carries {}", published.join(", "));
            return Err(Fault::new(Code::TableDiffers, message).remedied_by(carried));
        }
    }
    let mut tables = Vec::with_capacity(names.len());
    for name in names {
        let (schema, table) = name.split_once('.').unwrap_or(("", &name));
        let size = "SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::int8, coalesce(sum(pg_table_size(c.oid)), 0)::int8
              FROM pg_class c
             WHERE c.relkind = 'r' AND (c.oid = $1::text::regclass
                   OR c.oid IN (SELECT relid FROM pg_partition_tree($1::text::regclass)))";
        let row = client
            .query_one(size, &[&qualified(schema, table)])
            .await
            .map_err(sql("ask how large a table is"))?;
        tables.push(TableProgress {
            table: name.clone(),
            condition: None,
            state: "waiting".to_owned(),
            rows: 0,
            bytes: 0,
            expected_rows: row.get::<_, i64>(0).unsigned_abs(),
            expected_bytes: row.get::<_, i64>(1).unsigned_abs(),
        });
    }
    Ok(tables)
}

/// Requires that a condition is one, and can be asked of a table's rows, before anything is asked for; gives how many meet
/// it, by the server's own estimate.
///
/// It becomes part of a statement: alone and in brackets it must be one condition both times, or it would be more than
/// that (`true) or (true`, `true limit 1`).
///
/// # Errors
/// [`Code::ConfigInvalid`] with what the server says of it; [`Code::TableDiffers`] where nothing tells the table's rows
/// apart.
pub async fn require_condition(client: &Client, table: &TableProgress, condition: &str) -> Result<u64> {
    let (schema, name) = table.name();
    let found = Table::look(client, schema, name).await?;
    require_key(&found)?;
    let from = found.from();
    let refuse = |why: String| {
        let message = format!("the condition `{condition}` cannot be asked of {}: {why}", table.table);
        Fault::new(Code::ConfigInvalid, message).remedied_by(
            "write it as it would stand behind WHERE in a SELECT from that table, such as \"id <= 1000\"; nothing was asked for, ask again",
        )
    };
    let refused = |error: tokio_postgres::Error| {
        let fault = fault_of(&error);
        // Its own mistake, and not a server that is out of reach or keeps something from us.
        if fault.code() == Code::Internal { refuse(fault.message()) } else { fault.at("try the condition") }
    };
    for statement in [
        format!("SELECT 1 FROM {from} WHERE {condition}"),
        format!("SELECT 1 FROM {from} WHERE ({condition})"),
    ] {
        let statement = client.prepare(&statement).await.map_err(refused)?;
        if !statement.params().is_empty() {
            return Err(refuse("it has a parameter, which nobody gives a value".to_owned()));
        }
    }
    let explain = format!("EXPLAIN (FORMAT JSON) SELECT 1 FROM {from} WHERE ({condition})");
    client.batch_execute("BEGIN READ ONLY").await.map_err(refused)?;
    let planned = client.simple_query(&explain).await;
    client.batch_execute("ROLLBACK").await.map_err(refused)?;
    let planned = planned.map_err(refused)?;
    let text: String = planned
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        })
        .collect();
    let plan: serde_json::Value = serde_json::from_str(&text)
        .map_err(|error| Fault::new(Code::ProtocolUnknown, "read a plan").because(error))?;
    Ok(plan[0]["Plan"]["Plan Rows"].as_f64().unwrap_or(0.0) as u64)
}

/// Requires that rows can be told apart: only then can some of them take the place of others.
pub(super) fn require_key(table: &Table) -> Result<()> {
    if !table.key.is_empty() {
        return Ok(());
    }
    let message =
        format!("nothing tells the rows of {} apart: none can take the place of another", table.shape);
    Err(Fault::new(Code::TableDiffers, message).remedied_by(
        "give the table a primary key, or copy all of it: landfall backfill --table without --where",
    ))
}

/// Requires that our role may read every one of the tables (schema, name), all of its rows.
///
/// # Errors
/// [`Code::PrivilegeMissing`] with the SQL that allows it.
pub async fn require_readable<'a>(
    client: &Client,
    tables: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<()> {
    let names: Vec<String> = tables.map(|(schema, table)| qualified(schema, table)).collect();
    let lacking = "SELECT format('GRANT SELECT ON %s TO %I;', t, current_user)
              FROM unnest($1::text[]) t WHERE NOT has_table_privilege(t, 'SELECT')
             UNION ALL
            SELECT format('ALTER ROLE %I BYPASSRLS;', current_user)
             WHERE (SELECT bool_or(row_security_active(t)) FROM unnest($1::text[]) t)";
    let rows = client.query(lacking, &[&names]).await.map_err(sql("ask what may be read"))?;
    if rows.is_empty() {
        return Ok(());
    }
    let grants: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    let message = format!("the daemon's role may not read every row of {} tables", rows.len());
    Err(Fault::new(Code::PrivilegeMissing, message)
        .remedied_by(format!("run as a superuser: {} then ask again", grants.join(" "))))
}

/// The tables a stream carries now, `schema.table`.
///
/// # Errors
/// Where the publication is not as it must be, or no stream has begun.
pub async fn carried(connection: &Connection, config: &PostgresSourceConfig) -> Result<Vec<String>> {
    let begun = "select to_regclass('landfall.backfill_condition') is not null";
    let begun = connection.query_one(begun, &[]).await.map_err(sql("look for our own tables"))?;
    if !begun.get::<_, bool>(0) {
        let message = format!("no daemon has begun stream `{}` of this database", config.stream);
        return Err(Fault::new(Code::SlotMissing, message).remedied_by("start `landfall run` first"));
    }
    Ok(publication::check(connection, config, true, &[]).await?.tables)
}

/// Asks for a backfill; gives its name.
///
/// # Errors
/// Where the server does not answer, or the role may not.
pub async fn request(
    client: &Client,
    stream: &str,
    request: &Request,
    tables: &[TableProgress],
) -> Result<String> {
    let failed = sql("ask for a backfill");
    let id = format!("{:08x}", rand::random::<u32>());
    let rate = |rate: Option<u64>| rate.map(|rate| i64::try_from(rate).unwrap_or(i64::MAX));
    let (rows, bytes) = (rate(request.max_rows_per_second), rate(request.max_bytes_per_second));
    let lag = request.max_lag.map(|lag| lag.as_secs_f64());
    let every = request.tables.is_empty();
    client.batch_execute("begin").await.map_err(&failed)?;
    let ask = "insert into landfall.backfill 
             (id, stream, regions, every_table, max_rows_per_second, max_bytes_per_second, max_lag_seconds,
              max_source_load, chunk_rows)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
    let chunk_rows = i64::try_from(request.chunk_rows).unwrap_or(i64::MAX);
    client
        .execute(
            ask,
            &[&id, &stream, &request.to, &every, &rows, &bytes, &lag, &request.max_source_load, &chunk_rows],
        )
        .await
        .map_err(&failed)?;
    let add = "insert into landfall.backfill_table
             (backfill, place, schema_name, table_name, expected_rows, expected_bytes)
         values ($1, $2, $3, $4, $5, $6)";
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    for (place, table) in (0_i32..).zip(tables) {
        let (schema, name) = table.table.split_once('.').unwrap_or(("", &table.table));
        client
            .execute(
                add,
                &[&id, &place, &schema, &name, &number(table.expected_rows), &number(table.expected_bytes)],
            )
            .await
            .map_err(&failed)?;
    }
    if let Some(condition) = &request.condition {
        let add = "insert into landfall.backfill_condition (backfill, condition) values ($1, $2)";
        client.execute(add, &[&id, condition]).await.map_err(&failed)?;
    }
    client.batch_execute("commit").await.map_err(&failed)?;
    Ok(id)
}

/// Every backfill of a stream there is a note of, the newest first.
///
/// # Errors
/// Where the server does not answer, or the role may not.
pub async fn all(client: &Client, stream: &str) -> Result<Vec<Backfill>> {
    let failed = sql("read how far backfills are");
    let backfills = "select id, regions, state, waits_for, (extract(epoch from requested) * 1000000)::int8,
                (extract(epoch from ended) * 1000000)::int8
           from landfall.backfill where stream = $1 order by requested desc, id";
    let tables = "select t.backfill, schema_name || '.' || table_name, t.state, rows, bytes, expected_rows, expected_bytes,
                condition
           from landfall.backfill_table t join landfall.backfill b on b.id = t.backfill
           left join landfall.backfill_condition c on c.backfill = b.id
          where b.stream = $1 order by t.backfill, place";
    let rows = client.query(backfills, &[&stream]).await.map_err(&failed)?;
    let tables = client.query(tables, &[&stream]).await.map_err(&failed)?;
    Ok(rows.iter().map(|row| backfill_of(row, &tables)).collect())
}

fn backfill_of(row: &Row, tables: &[Row]) -> Backfill {
    let id: String = row.get(0);
    let of_it = tables.iter().filter(|table| table.get::<_, &str>(0) == id);
    let number = |row: &Row, at| row.get::<_, i64>(at).max(0).unsigned_abs();
    Backfill {
        to: row.get(1),
        state: row.get(2),
        waits_for: row.get(3),
        requested: Micros(row.get(4)),
        ended: row.get::<_, Option<i64>>(5).map(Micros),
        tables: of_it
            .map(|row| TableProgress {
                table: row.get(1),
                state: row.get(2),
                rows: number(row, 3),
                bytes: number(row, 4),
                expected_rows: number(row, 5),
                expected_bytes: number(row, 6),
                condition: row.get(7),
            })
            .collect(),
        id,
    }
}

/// Changes what is to become of a backfill, where it is in one of the states `from`; false where it is not.
///
/// # Errors
/// Where the server does not answer, or the role may not.
pub async fn set_state(client: &Client, id: &str, from: &[&str], to: &str) -> Result<bool> {
    let set = "update landfall.backfill
           set state = case when $3 = 'running' and begun is null then 'requested' else $3 end,
               ended = case when $3 = 'canceled' then now() end
         where id = $1 and state = any($2)";
    let from: Vec<String> = from.iter().map(|&state| state.to_owned()).collect();
    let changed = client.execute(set, &[&id, &from, &to]).await;
    changed.map(|count| count > 0).map_err(sql("change what is to become of a backfill"))
}
