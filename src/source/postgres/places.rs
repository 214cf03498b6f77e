//! By what a publication holds each table. The server drops that with the table's place in it, and never gives it again:
//! so a table that was taken out and put in again between two looks is known, though both of them find it there. What was
//! written to it meanwhile is not in the log as the server sends it, which says nothing of it.

use super::PostgresSourceConfig;
use crate::{
    fault::{Fault, Result},
    postgres::{Connection, fault_of},
    verify::TableName,
};

pub(super) const TABLE: &str = "create table if not exists landfall.published (
    stream text not null,
    schema_name text not null,
    table_name text not null,
    relation oid not null,
    publication oid not null,
    place oid not null,
    primary key (stream, schema_name, table_name, publication, place))";

/// A table may have a place of its own, and one by its schema. Any that stayed has kept it published. The name of one that
/// has another by now is remembered as long as it is published.
///
/// HAZARD: nothing is written where there is no publication. Before Postgres 18 the server could not decode that, nor anything
/// behind it.
const LOOK: &str = "
    WITH now AS (
        SELECT n.nspname::text AS schema_name, c.relname::text AS table_name, c.oid AS relation,
               p.oid AS publication, at.place
          FROM pg_publication p
         CROSS JOIN LATERAL (
               SELECT r.oid AS place, r.prrelid AS relation FROM pg_publication_rel r WHERE r.prpubid = p.oid
                UNION ALL
               SELECT s.oid, t.oid FROM pg_publication_namespace s
                 JOIN pg_class t ON t.relnamespace = s.pnnspid AND t.relkind IN ('r', 'p')
                WHERE s.pnpubid = p.oid) at
          JOIN pg_class c ON c.oid = at.relation
          JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE p.pubname = $2),
    stayed AS (
        SELECT k.* FROM landfall.published k
          JOIN now USING (schema_name, table_name, publication, place) WHERE k.stream = $1),
    gone AS (
        DELETE FROM landfall.published k
         WHERE k.stream = $1 AND EXISTS (SELECT FROM now)
           AND (k.schema_name, k.table_name, k.publication, k.place) NOT IN (
               SELECT schema_name, table_name, publication, place FROM now)
           AND k.relation NOT IN (
               SELECT relation FROM now
                WHERE (now.schema_name, now.table_name) <> (k.schema_name, k.table_name))),
    come AS (
        INSERT INTO landfall.published SELECT $1, now.* FROM now ON CONFLICT DO NOTHING)
    SELECT DISTINCT schema_name, table_name
      FROM landfall.published k JOIN now USING (schema_name, table_name)
     WHERE k.stream = $1
       AND (schema_name, table_name) NOT IN (SELECT schema_name, table_name FROM stayed)
     ORDER BY 1, 2";

const RENAMED: &str = "
    SELECT DISTINCT k.schema_name, k.table_name, n.nspname::text, c.relname::text
      FROM landfall.published k
      JOIN pg_class c ON c.oid = k.relation
      JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE k.stream = $1 AND (k.schema_name, k.table_name) <> (n.nspname::text, c.relname::text)
     ORDER BY 1, 2";

/// What became of tables in scope.
pub(super) struct Looked {
    /// Those that are published, and were not at some time since the last look; they are so from now on.
    pub(super) lost: Vec<TableName>,
    /// Those that are published by another name, which is not in scope.
    pub(super) renamed: Vec<(TableName, TableName)>,
}

/// Looks at them, and keeps what there is for the next look.
///
/// # Errors
/// Where the server does not answer.
pub(super) async fn look(connection: &Connection, config: &PostgresSourceConfig) -> Result<Looked> {
    let failed = |error: tokio_postgres::Error| -> Fault {
        fault_of(&error).at("look by what the publication holds its tables")
    };
    let name = |row: &tokio_postgres::Row, at| TableName { schema: row.get(at), table: row.get(at + 1) };
    let holds = |table: &TableName| config.scope.holds(&table.schema, &table.table);
    let lost = connection.query(LOOK, &[&config.stream, &config.publication]).await.map_err(failed)?;
    let renamed = connection.query(RENAMED, &[&config.stream]).await.map_err(failed)?;
    Ok(Looked {
        lost: lost.iter().map(|row| name(row, 0)).filter(holds).collect(),
        renamed: renamed
            .iter()
            .map(|row| (name(row, 0), name(row, 2)))
            .filter(|(before, now)| holds(before) && !holds(now))
            .collect(),
    })
}

/// Forgets them: a stream begins.
///
/// # Errors
/// Where the server does not answer.
pub(super) async fn forget(connection: &Connection, config: &PostgresSourceConfig) -> Result<()> {
    let sql = "delete from landfall.published where stream = $1";
    let forgotten = connection.execute(sql, &[&config.stream]).await;
    forgotten.map(drop).map_err(|error| fault_of(&error).at("forget by what the publication held its tables"))
}
