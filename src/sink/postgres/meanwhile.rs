//! Tables that are copied under one snapshot: what changes in them meanwhile is kept beside them, and made up for when
//! the last row has come.
//!
//! ```text
//!  snapshot     emptied, then portion after portion, as the rows were at one moment
//!  a change     two texts at most in landfall.meanwhile: a row that went, one that came
//!  done         by their difference, rows are taken away, then put in; landfall.meanwhile is empty
//! ```
//!
//! It is kept in the database, not in memory: a table may be copied for hours and be written to all the while. Those
//! that went are taken away in one pass over the table, however many they are; and before one is put in, so a row that
//! changed never stands beside its former self, whatever is unique here.

use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};
use tokio_postgres::{Client, Statement, types::ToSql};

use super::{
    PostgresSinkConfig,
    statement::put_element,
    table::Table,
    trouble::{self, Attempt},
    wire::AsText,
};
use crate::{
    change::{Cell, Meanwhile, Shape},
    fault::{Code, Fault},
    plan::Keep,
};

/// What is kept. A row is an array of its columns' texts, as the source wrote them.
pub(super) const TABLE: &str = "
    CREATE TABLE IF NOT EXISTS landfall.meanwhile (
        link text NOT NULL,
        stream text NOT NULL,
        schema_name text NOT NULL,
        table_name text NOT NULL,
        came bool NOT NULL,
        cells text[] NOT NULL
    );
    COMMENT ON TABLE landfall.meanwhile IS
        'Rows that came and went in tables that a backfill copies under one snapshot, until they are whole.'";

/// Rows of tables that are not being filled any more.
pub(super) const FORGET_ABANDONED: &str = "
    DELETE FROM landfall.meanwhile m
     WHERE NOT EXISTS (SELECT FROM landfall.joining j
                        WHERE (j.link, j.stream, j.schema_name, j.table_name)
                            = (m.link, m.stream, m.schema_name, m.table_name))";

/// Keeps rows.
pub(super) const KEEP: &str = "
    INSERT INTO landfall.meanwhile (link, stream, schema_name, table_name, came, cells)
    SELECT $1::text, $2::text, $3::text, $4::text, u.came, u.cells::text[]
      FROM unnest($5::bool[], $6::text[]) AS u (came, cells)";

/// Those of one table.
const OF_TABLE: &str = "(link, stream, schema_name, table_name) = ($1, $2, $3, $4)";

fn parameters(config: &PostgresSinkConfig, keep: &Keep<'_>) -> [AsText<Bytes>; 6] {
    let text = |text: &str| AsText(Bytes::copy_from_slice(text.as_bytes()));
    let (mut came, mut rows, mut row) = (BytesMut::from("{"), BytesMut::from("{"), BytesMut::new());
    for (at, (what, cells)) in keep.rows.iter().enumerate() {
        if at > 0 {
            came.put_u8(b',');
            rows.put_u8(b',');
        }
        came.put_u8(if *what == Meanwhile::Came { b't' } else { b'f' });
        row.clear();
        put_array(&mut row, cells);
        put_element(&mut rows, &row);
    }
    came.put_u8(b'}');
    rows.put_u8(b'}');
    let (link, stream, shape) = (config.from.as_str(), config.stream.as_str(), keep.shape);
    [
        text(link),
        text(stream),
        text(&shape.schema),
        text(&shape.table),
        AsText(came.freeze()),
        AsText(rows.freeze()),
    ]
}

/// A row's cells, each of which is given.
fn put_array(out: &mut BytesMut, cells: &[&Cell]) {
    out.put_u8(b'{');
    for (at, cell) in cells.iter().enumerate() {
        if at > 0 {
            out.put_u8(b',');
        }
        match cell {
            Cell::Value(text) => put_element(out, text),
            // Encrypted cells are refused before, the others are no cells of a row that is kept.
            Cell::Null | Cell::Unchanged | Cell::Withheld | Cell::Encrypted { .. } => out.put_slice(b"NULL"),
        }
    }
    out.put_u8(b'}');
}

/// Keeps rows; gives how many.
pub(super) async fn keep(
    client: &Client,
    config: &PostgresSinkConfig,
    statement: &Statement,
    keep: &Keep<'_>,
) -> Result<u64, tokio_postgres::Error> {
    client.execute_raw(statement, parameters(config, keep)).await
}

/// Forgets what is kept of a table.
pub(super) async fn forget(client: &Client, config: &PostgresSinkConfig, shape: &Shape) -> Attempt<()> {
    let forget = format!("DELETE FROM landfall.meanwhile WHERE {OF_TABLE}");
    let (link, stream) = (config.from.as_str(), config.stream.as_str());
    let forgotten = client.execute(&forget, &[&link, &stream, &&*shape.schema, &&*shape.table]).await;
    forgotten.map(drop).map_err(|error| trouble::of_guard(&error))
}

/// Makes up for what changed in a table since the snapshot its rows are of.
pub(super) async fn make_up(
    client: &Client,
    config: &PostgresSinkConfig,
    shape: &Shape,
    table: &Table,
) -> Attempt<()> {
    let (link, stream) = (config.from.as_str(), config.stream.as_str());
    let name: [&(dyn ToSql + Sync); 4] = [&link, &stream, &&*shape.schema, &&*shape.table];
    let sums = format!(
        "SELECT coalesce(sum(n) FILTER (WHERE n > 0), 0)::int8, coalesce(-sum(n) FILTER (WHERE n < 0), 0)::int8
           FROM ({}) AS net",
        net()
    );
    let began = Instant::now();
    let row = client.query_one(&sums, &name).await.map_err(|error| trouble::of_guard(&error))?;
    let (came, gone): (i64, i64) = (row.get(0), row.get(1));
    if gone > 0 {
        // One pass over each side, whatever the server believes of a table it has not analyzed; until the commit only.
        let settings =
            "SET LOCAL enable_seqscan = on; SET LOCAL enable_hashjoin = on; SET LOCAL enable_nestloop = off";
        client.batch_execute(settings).await.map_err(|error| trouble::of_guard(&error))?;
        let taken = client.execute(&take_away(table, shape), &name).await;
        let taken = taken.map_err(|error| trouble::of_rows(&error))?;
        if taken != gone.unsigned_abs() {
            let message = format!(
                "{gone} rows of {shape} went while it was copied, and {taken} of them are here: somebody else writes to it"
            );
            return Err(Fault::new(Code::TableDiffers, message)
                .remedied_by(format!(
                    "end what else writes to it; then bring the link past this place by `landfall recover --execute` in \
                     this region, and copy the table once more: `landfall backfill --table {shape} --again` in the other"
                ))
                .into());
        }
    }
    if came > 0 {
        let put = client.execute(&put_in(table, shape), &name).await;
        let put = put.map_err(|error| trouble::of_rows(&error))?;
        if put != came.unsigned_abs() {
            let message = format!("{put} rows of {shape} came in where {came} were meant");
            return Err(Fault::new(Code::RowRejected, message)
                .remedied_by("look for a trigger (ENABLE REPLICA or ALWAYS) or a rule that drops rows")
                .into());
        }
    }
    if came + gone > 0 {
        // Nothing else is applied meanwhile: whoever wonders why the link lagged finds it here.
        let seconds = began.elapsed().as_secs_f64();
        tracing::info!(table = %shape, came, gone, seconds, "made up for what changed while the table was copied");
    }
    forget(client, config, shape).await
}

/// Each row that is kept, and how many of it are to come: less than none where some are to go.
fn net() -> String {
    let count = "sum(CASE WHEN came THEN 1 ELSE -1 END)";
    format!(
        "SELECT cells, {count} AS n FROM landfall.meanwhile WHERE {OF_TABLE} GROUP BY cells HAVING {count} <> 0"
    )
}

/// The columns of a row that is kept, as the table's own types.
fn typed(table: &Table, shape: &Shape) -> String {
    let columns = (0..shape.columns.len()).map(|at| format!("cells[{}]::{}", at + 1, table.type_name(at)));
    columns.collect::<Vec<_>>().join(", ")
}

/// Rows are the same where their texts are, written here both times: there are types without an equality, and such whose
/// equality is broader.
fn take_away(table: &Table, shape: &Shape) -> String {
    let (only, name, net, typed) = (table.only, &table.name, net(), typed(table, shape));
    let ours: Vec<String> =
        (0..shape.columns.len()).map(|at| format!("x.{}", table.column_name(at))).collect();
    let ours = ours.join(", ");
    format!(
        "DELETE FROM {only}{name} AS t USING (
             SELECT w.tableoid, w.ctid
               FROM (SELECT x.tableoid, x.ctid, o.n, row_number() OVER (PARTITION BY o.line) AS at
                       FROM {only}{name} AS x
                       JOIN (SELECT ROW({typed})::text AS line, -sum(n) AS n FROM ({net}) AS net
                              WHERE n < 0 GROUP BY 1) AS o ON ROW({ours})::text = o.line) AS w
              WHERE w.at <= w.n) AS g
          WHERE t.ctid = g.ctid AND t.tableoid = g.tableoid"
    )
}

fn put_in(table: &Table, shape: &Shape) -> String {
    let (name, net, typed) = (&table.name, net(), typed(table, shape));
    let names: Vec<String> = (0..shape.columns.len()).map(|at| table.column_name(at)).collect();
    format!(
        "INSERT INTO {name} ({}) OVERRIDING SYSTEM VALUE
         SELECT {typed} FROM ({net}) AS net CROSS JOIN LATERAL generate_series(1, net.n::int8) WHERE n > 0",
        names.join(", ")
    )
}
