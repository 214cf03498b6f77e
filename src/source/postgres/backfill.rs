//! What is asked of a copier, and how far it has come, for whoever asks: rows of `landfall.backfill` and
//! `landfall.backfill_table`. The daemon that reads the slot does the work.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

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
    verify::TableName,
};

/// What somebody wants copied.
#[derive(Clone, Debug)]
pub struct Request {
    /// The regions it is for.
    pub to: Vec<String>,
    /// Whether it is of everything this region has to tell, also of what is published before it begins.
    pub every: bool,
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
    /// Who asks, for whoever reads later what was asked.
    pub by: String,
}

impl Request {
    /// Rows and bytes a second, the lag in seconds, and the rows of a chunk, as they are kept.
    fn limits(&self) -> (Option<i64>, Option<i64>, Option<f64>, i64) {
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let rates = [self.max_rows_per_second, self.max_bytes_per_second].map(|rate| rate.map(number));
        (rates[0], rates[1], self.max_lag.map(|lag| lag.as_secs_f64()), number(self.chunk_rows))
    }
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
    /// Its name; in JSON `schema.table`.
    #[serde(serialize_with = "as_text")]
    pub table: TableName,
    /// Which of its rows are copied, where not all: those that meet this, as SQL has it behind WHERE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// `waiting`, `copying` or `done`.
    pub state: String,
    /// Rows in the log.
    pub rows: u64,
    /// Bytes of them, as `COPY` writes them.
    pub bytes: u64,
    /// Rows there are to copy, about.
    pub expected_rows: u64,
    /// Bytes the table takes on disk.
    pub expected_bytes: u64,
}

fn as_text<S: serde::Serializer>(table: &TableName, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(table)
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

/// Pages of a table that are looked at where the server has not counted its rows yet.
const SAMPLED_PAGES: u32 = 20;
/// Tables below this size tell more of what a table costs than of what its rows do.
const PACE_BYTES_MIN: i64 = 1 << 20;

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

/// What a request is of.
#[derive(Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The tables.
    pub tables: Vec<TableName>,
    /// Those that are wanted and come here from another region: here they are older.
    pub left_out: Vec<TableName>,
    /// Whether that is everything this region has to tell.
    pub every: bool,
}

/// Chooses what is wanted among the tables a stream carries, everything where nothing is: but of `theirs`, those that come
/// here from another region, only what is named by its whole name.
///
/// # Errors
/// [`Code::TableDiffers`] where a pattern names no table that is carried.
pub fn choose(carried: Vec<TableName>, wanted: &[Pattern], theirs: &HashSet<TableName>) -> Result<Chosen> {
    let matches = |pattern: &Pattern, table: &TableName| pattern.matches(&table.schema, &table.table);
    for pattern in wanted {
        if !carried.iter().any(|table| matches(pattern, table)) {
            let message = format!("`{}` names no table that the stream carries", pattern.as_str());
            let carried: Vec<String> = carried.iter().map(ToString::to_string).collect();
            let carried = format!("it carries {}", carried.join(", "));
            return Err(Fault::new(Code::TableDiffers, message).remedied_by(carried));
        }
    }
    let is_theirs = |table: &TableName| theirs.contains(table);
    let is_named = |table: &TableName| {
        wanted.iter().any(|pattern| pattern.as_table() == Some((&*table.schema, &*table.table)))
    };
    let is_wanted =
        |table: &TableName| wanted.is_empty() || wanted.iter().any(|pattern| matches(pattern, table));
    let every = carried.iter().all(|table| is_wanted(table) || is_theirs(table));
    let (left_out, tables) =
        carried.into_iter().filter(is_wanted).partition(|table| is_theirs(table) && !is_named(table));
    Ok(Chosen { tables, left_out, every })
}

/// Tables with their size.
///
/// # Errors
/// [`Code::PrivilegeMissing`] as [`require_readable`] has it.
pub async fn tables(client: &Client, names: Vec<TableName>) -> Result<Vec<TableProgress>> {
    require_readable(client, names.iter().map(|it| (&*it.schema, &*it.table))).await?;
    let mut tables = Vec::with_capacity(names.len());
    for table in names {
        let (expected_rows, expected_bytes) = size(client, &qualified(&table.schema, &table.table)).await?;
        tables.push(TableProgress {
            table,
            condition: None,
            state: "waiting".to_owned(),
            rows: 0,
            bytes: 0,
            expected_rows,
            expected_bytes,
        });
    }
    Ok(tables)
}

/// Rows of a table, about, and the bytes it takes on disk; of a partitioned one, all partitions'.
async fn size(client: &Client, table: &str) -> Result<(u64, u64)> {
    let failed = sql("ask how large a table is");
    let parts = "SELECT oid, reltuples::float8, relpages::float8,
                (pg_relation_size(oid) / current_setting('block_size')::int8)::float8, pg_table_size(oid)
           FROM pg_class
          WHERE relkind = 'r' AND (oid = $1::text::regclass
                OR oid IN (SELECT relid FROM pg_partition_tree($1::text::regclass)))";
    let parts = client.query(parts, &[&table]).await.map_err(&failed)?;
    let (mut rows, mut bytes) = (0.0, 0);
    // Those that nobody has counted yet, with their pages.
    let mut unknown: HashMap<u32, f64> = HashMap::new();
    for part in &parts {
        let [tuples, pages_then, pages] = [1, 2, 3].map(|at| part.get::<_, f64>(at));
        bytes += part.get::<_, i64>(4);
        if tuples >= 0.0 && pages_then > 0.0 {
            rows += tuples * pages / pages_then;
        } else if pages > 0.0 {
            unknown.insert(part.get(0), pages);
        }
    }
    if !unknown.is_empty() {
        let sample = format!(
            "SELECT tableoid, count(*)::float8 FROM {table} WHERE ctid < '({SAMPLED_PAGES},0)' GROUP BY 1"
        );
        for part in client.query(&sample, &[]).await.map_err(&failed)? {
            let Some(pages) = unknown.get(&part.get(0)) else { continue };
            rows += part.get::<_, f64>(1) * pages / pages.min(f64::from(SAMPLED_PAGES));
        }
    }
    Ok((rows as u64, bytes.unsigned_abs()))
}

/// How many rows the server expects of a query; 0 where its plan does not say.
async fn planned_rows(client: &Client, select: &str) -> std::result::Result<u64, tokio_postgres::Error> {
    client.batch_execute("BEGIN READ ONLY").await?;
    let planned = client.simple_query(&format!("EXPLAIN (FORMAT JSON) {select}")).await;
    client.batch_execute("ROLLBACK").await?;
    let text: String = planned?
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        })
        .collect();
    let plan: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    Ok(plan[0]["Plan"]["Plan Rows"].as_f64().unwrap_or(0.0) as u64)
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
    let found = Table::look(client, &table.table.schema, &table.table.table).await?;
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
    planned_rows(client, &format!("SELECT 1 FROM {from} WHERE ({condition})")).await.map_err(refused)
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

/// Requires that changes say of a row all that its key does, or all it holds: only then does a copy meet them.
pub(super) fn require_logged_key(table: &Table) -> Result<()> {
    let Some(column) = &table.key_not_logged else { return Ok(()) };
    let message = format!(
        "column `{column}` of the key of {} is generated, and so not in the log: what changes while the table is copied cannot be told from it",
        table.shape
    );
    Err(Fault::new(Code::TableDiffers, message).remedied_by(format!(
        "run at the source: ALTER TABLE {} REPLICA IDENTITY FULL; the backfill goes on by itself",
        table.name
    )))
}

/// Requires that our role may read every one of the tables (schema, name), all of its rows.
///
/// # Errors
/// [`Code::PrivilegeMissing`] with the SQL that allows it.
pub async fn require_readable<'a>(
    client: &Client,
    tables: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<()> {
    let (schemas, names): (Vec<&str>, Vec<&str>) = tables.unzip();
    let lacking = "WITH t AS (
                SELECT c.oid, n.oid AS schema, n.nspname, c.relname
                  FROM unnest($1::text[], $2::text[]) AS w (schema, name)
                  JOIN pg_namespace n ON n.nspname = w.schema
                  JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name)
            SELECT DISTINCT format('GRANT USAGE ON SCHEMA %I TO %I;', nspname, current_user)
              FROM t WHERE NOT has_schema_privilege(schema, 'USAGE')
             UNION ALL
            SELECT format('GRANT SELECT ON %I.%I TO %I;', nspname, relname, current_user)
              FROM t WHERE NOT has_table_privilege(oid, 'SELECT')
             UNION ALL
            SELECT format('ALTER ROLE %I BYPASSRLS;', current_user)
             WHERE (SELECT bool_or(row_security_active(oid)) FROM t)";
    let rows = client.query(lacking, &[&schemas, &names]).await.map_err(sql("ask what may be read"))?;
    if rows.is_empty() {
        return Ok(());
    }
    let grants: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    Err(Fault::new(Code::PrivilegeMissing, "the daemon's role may not read every row of these tables")
        .remedied_by(format!("run as a superuser: {} then ask again", grants.join(" "))))
}

/// The tables a stream carries now.
///
/// # Errors
/// Where the publication is not as it must be, or no stream has begun.
pub async fn carried(connection: &Connection, config: &PostgresSourceConfig) -> Result<Vec<TableName>> {
    let begun = "select to_regclass('landfall.backfill_condition') is not null";
    let begun = connection.query_one(begun, &[]).await.map_err(sql("look for our own tables"))?;
    if !begun.get::<_, bool>(0) {
        let message = format!("no daemon has begun stream `{}` of this database", config.stream);
        return Err(Fault::new(Code::SlotMissing, message).remedied_by("start `landfall run` first"));
    }
    publication::tables(connection, config).await
}

/// Bytes a second, as tables take them on disk, that earlier backfills of the stream have copied where nothing held them
/// back; none where there was none that tells.
///
/// # Errors
/// Where the server does not answer, or the role may not.
pub async fn pace(client: &Client, stream: &str) -> Result<Option<f64>> {
    let pace =
        "select sum(expected_bytes)::float8 / nullif(sum(extract(epoch from t.ended - t.begun)), 0)::float8
           from landfall.backfill_table t join landfall.backfill b on b.id = t.backfill
          where b.stream = $1 and t.state = 'done' and t.ended > t.begun and expected_bytes >= $2
            and max_rows_per_second is null and max_bytes_per_second is null and max_lag_seconds is null
            and max_source_load = 1
            and not exists (select from landfall.backfill_condition c where c.backfill = b.id)";
    let pace = client.query_one(pace, &[&stream, &PACE_BYTES_MIN]).await;
    Ok(pace.map_err(sql("ask how fast earlier backfills were"))?.get(0))
}

/// Tables whose rows have ever come here from one of these regions: what is here of them is a copy of what is there.
///
/// # Errors
/// Where the server does not answer, or the role may not.
pub async fn received_from(client: &Client, regions: &[String]) -> Result<HashSet<TableName>> {
    received(client, regions, None).await
}

/// Whether this table is among those of [`received_from`].
///
/// # Errors
/// As of [`received_from`].
pub(super) async fn is_received_from(client: &Client, regions: &[String], table: &TableName) -> Result<bool> {
    received(client, regions, Some(table)).await.map(|tables| !tables.is_empty())
}

async fn received(
    client: &Client,
    regions: &[String],
    only: Option<&TableName>,
) -> Result<HashSet<TableName>> {
    let failed = sql("ask which tables come from another region");
    let made = client.query_one("SELECT to_regclass('landfall.shape') IS NOT NULL", &[]).await;
    if !made.map_err(&failed)?.get::<_, bool>(0) {
        return Ok(HashSet::new());
    }
    let received = "SELECT DISTINCT body ->> 'schema', body ->> 'table' FROM landfall.shape
         WHERE link = ANY($1)
           AND ($2::text IS NULL OR (body ->> 'schema' = $2 AND body ->> 'table' = $3::text))";
    let (schema, table) = only.map(|table| (&*table.schema, &*table.table)).unzip();
    let rows = client.query(received, &[&regions, &schema, &table]).await.map_err(&failed)?;
    Ok(rows.iter().map(|row| TableName { schema: row.get(0), table: row.get(1) }).collect())
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
    let (rows, bytes, lag, chunk_rows) = request.limits();
    client.batch_execute("begin").await.map_err(&failed)?;
    let ask = "insert into landfall.backfill 
             (id, stream, regions, every_table, max_rows_per_second, max_bytes_per_second, max_lag_seconds,
              max_source_load, chunk_rows, asked_by)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
    client
        .execute(
            ask,
            &[
                &id,
                &stream,
                &request.to,
                &request.every,
                &rows,
                &bytes,
                &lag,
                &request.max_source_load,
                &chunk_rows,
                &request.by,
            ],
        )
        .await
        .map_err(&failed)?;
    let add = "insert into landfall.backfill_table
             (backfill, place, schema_name, table_name, expected_rows, expected_bytes)
         values ($1, $2, $3, $4, $5, $6)";
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    for (place, table) in (0_i32..).zip(tables) {
        let TableName { schema, table: name } = &table.table;
        client
            .execute(
                add,
                &[&id, &place, schema, name, &number(table.expected_rows), &number(table.expected_bytes)],
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
    let tables =
        "select t.backfill, schema_name, table_name, t.state, rows, bytes, expected_rows, expected_bytes,
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
                table: TableName { schema: row.get(1), table: row.get(2) },
                state: row.get(3),
                rows: number(row, 4),
                bytes: number(row, 5),
                expected_rows: number(row, 6),
                expected_bytes: number(row, 7),
                condition: row.get(8),
            })
            .collect(),
        id,
    }
}

/// Holds a backfill to the limits of this request from its next chunk on.
///
/// # Errors
/// Where the server does not answer, or the role may not.
pub async fn set_limits(client: &Client, id: &str, request: &Request) -> Result<()> {
    let (rows, bytes, lag, chunk_rows) = request.limits();
    let set = "update landfall.backfill
           set max_rows_per_second = $2, max_bytes_per_second = $3, max_lag_seconds = $4, max_source_load = $5,
               chunk_rows = $6
         where id = $1";
    let set = client.execute(set, &[&id, &rows, &bytes, &lag, &request.max_source_load, &chunk_rows]).await;
    set.map(drop).map_err(sql("change what a backfill is held to"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_another_region_is_chosen_by_its_whole_name_only() {
        let theirs = [TableName { schema: "public".into(), table: "reviews".into() }].into();
        let choose = |wanted: &[&str]| {
            let carried = [("public", "orders"), ("public", "reviews"), ("sa.les", "items")]
                .map(|(schema, table)| TableName { schema: schema.into(), table: table.into() })
                .to_vec();
            let wanted: Vec<Pattern> = wanted.iter().map(|text| text.parse().unwrap()).collect();
            choose(carried, &wanted, &theirs)
        };
        for (wanted, tables, left_out, every) in [
            (&[][..], "public.orders sa.les.items", "public.reviews", true),
            (&["*.*"], "public.orders sa.les.items", "public.reviews", true),
            (&["public.orders"], "public.orders", "", false),
            (&["public.orders", "\"sa.les\".*"], "public.orders sa.les.items", "", true),
            (&["public.rev*"], "", "public.reviews", false),
            (&["public.reviews"], "public.reviews", "", false),
            (&["public.reviews", "*.*"], "public.orders public.reviews sa.les.items", "", true),
        ] {
            let chosen = choose(wanted).unwrap();
            let listed =
                |tables: &[TableName]| tables.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            let found = (listed(&chosen.tables), listed(&chosen.left_out), chosen.every);
            assert_eq!(found, (tables.to_owned(), left_out.to_owned(), every), "{wanted:?}");
        }
        let none = choose(&["public.ordres"]).unwrap_err();
        assert!(none.to_string().contains("names no table that the stream carries"), "{none}");
    }
}
