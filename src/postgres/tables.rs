//! What the catalogs say of tables column by column: the shapes a stream would carry, and what whoever
//! carries them should know. For `check` and `init`; a stream itself learns its shapes from the log.

use tokio_postgres::Client;

use super::fault_of;
use crate::{
    change::{Column, Identity, Shape},
    fault::{Code, Fault, Result},
    names::qualified,
    scope::Scope,
};

/// What should be known of a table before it is carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableTraits {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub table: String,
    /// Columns the server computes; they are not published.
    pub generated: Vec<String>,
    /// Columns whose values come from a sequence.
    pub sequences: Vec<String>,
    /// Columns whose values mean something on their own server only, with their types.
    pub local: Vec<String>,
    /// How many rows there are, as the planner believes; none where it was never counted.
    pub rows: Option<i64>,
    /// Whether our role may read it.
    pub readable: bool,
}

impl TableTraits {
    /// `schema.table`, as a stream's scope names it.
    pub fn name(&self) -> String {
        format!("{}.{}", self.schema, self.table)
    }
}

/// Tables that stand for themselves, as a publication names them.
const TABLES: &str = "
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence IN ('p', 'u')
       AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname NOT IN ('information_schema', 'landfall')
     ORDER BY 1, 2";

/// Columns of a table whose condition holds, by name.
fn columns_where(condition: &str, text: &str) -> String {
    format!(
        "ARRAY(SELECT {text} FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
                WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND ({condition})
                ORDER BY a.attnum)"
    )
}

/// What should be known of the tables in scope, by name.
///
/// # Errors
/// Where the server does not answer.
pub async fn traits(client: &Client, scope: &Scope) -> Result<Vec<TableTraits>> {
    let sql = format!(
        "SELECT n.nspname::text, c.relname::text, {}, {}, {},
                CASE WHEN c.relkind = 'r' AND c.reltuples >= 0 THEN c.reltuples::int8
                     WHEN c.relkind = 'p' THEN
                         (SELECT CASE WHEN min(k.reltuples) >= 0 THEN sum(k.reltuples)::int8 END
                            FROM pg_partition_tree(c.oid) p JOIN pg_class k ON k.oid = p.relid
                           WHERE p.isleaf) END,
                has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
                    AND NOT row_security_active(c.oid) {TABLES}",
        columns_where("a.attgenerated <> ''", "a.attname::text"),
        columns_where(
            // By the catalogs: pg_get_serial_sequence() would ask for a privilege on the schema.
            "EXISTS (SELECT FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
                      WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
                        AND d.refobjid = c.oid AND d.refobjsubid = a.attnum AND d.deptype IN ('a', 'i'))",
            "a.attname::text",
        ),
        columns_where(
            "t.oid IN ('oid'::regtype, 'xid'::regtype, 'xid8'::regtype, 'tid'::regtype, 'pg_lsn'::regtype)
             OR t.typname = 'lo'",
            "a.attname || ' ' || format_type(a.atttypid, a.atttypmod)",
        ),
    );
    let rows = client.query(&sql, &[]).await.map_err(|error| fault_of(&error).at("look at the tables"))?;
    let traits = rows.iter().map(|row| TableTraits {
        schema: row.get(0),
        table: row.get(1),
        generated: row.get(2),
        sequences: row.get(3),
        local: row.get(4),
        rows: row.get(5),
        readable: row.get(6),
    });
    Ok(traits.filter(|table| scope.holds(&table.schema, &table.table)).collect())
}

/// Joins, to each column `a` of a statement, the type that the log describes it by: a domain's base type `bt` in its schema
/// `bn`, and `base.typmod`.
macro_rules! base_type {
    () => {
        "
      JOIN LATERAL (
               WITH RECURSIVE b (oid, typmod, depth) AS (
                   SELECT a.atttypid, a.atttypmod, 0
                   UNION ALL
                   SELECT t.typbasetype, CASE WHEN t.typtypmod >= 0 THEN t.typtypmod ELSE b.typmod END,
                          b.depth + 1
                     FROM b JOIN pg_type t ON t.oid = b.oid WHERE t.typtype = 'd')
               SELECT oid, typmod FROM b ORDER BY depth DESC LIMIT 1) base ON true
      JOIN pg_type bt ON bt.oid = base.oid JOIN pg_namespace bn ON bn.oid = bt.typnamespace "
    };
}
pub(crate) use base_type;

/// Each published column as pgoutput describes it: a domain by its base type, generated ones left out.
const SHAPES: &str = concat!(
    "
    SELECT n.nspname::text, c.relname::text, c.relreplident::text, a.attname::text, bn.nspname::text,
           bt.typname::text, a.atttypmod,
           c.relreplident = 'f' OR EXISTS (
               SELECT FROM pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY k (attnum, at)
                WHERE i.indrelid = c.oid AND k.attnum = a.attnum AND k.at <= i.indnkeyatts
                  AND (c.relreplident = 'd' AND i.indisprimary OR c.relreplident = 'i' AND i.indisreplident))
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
       AND a.attgenerated = ''
",
    base_type!(),
    "
     WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p'
       AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname NOT IN ('information_schema', 'landfall')
     ORDER BY n.nspname, c.relname, a.attnum"
);

/// The shapes a stream of these tables would carry now, by name.
///
/// # Errors
/// Where the server does not answer.
pub async fn shapes(client: &Client, scope: &Scope) -> Result<Vec<Shape>> {
    let rows = client
        .query(SHAPES, &[])
        .await
        .map_err(|error| fault_of(&error).at("look at the tables' columns"))?;
    let mut shapes = Vec::new();
    for table in rows.chunk_by(|a, b| (a.get::<_, &str>(0), a.get::<_, &str>(1)) == (b.get(0), b.get(1))) {
        let (schema, name): (&str, &str) = (table[0].get(0), table[0].get(1));
        if !scope.holds(schema, name) {
            continue;
        }
        let identity = match table[0].get(2) {
            "d" => Identity::Default,
            "i" => Identity::Index,
            "f" => Identity::Full,
            _ => Identity::Nothing,
        };
        let columns: Vec<Column> = table
            .iter()
            .map(|row| Column {
                name: row.get::<_, &str>(3).into(),
                type_schema: row.get::<_, &str>(4).into(),
                type_name: row.get::<_, &str>(5).into(),
                typmod: row.get(6),
                key: row.get(7),
            })
            .collect();
        shapes.push(Shape::new(schema, name, identity, columns));
    }
    Ok(shapes)
}

/// Triggers of these tables that fire under `session_replication_role = replica`: table and trigger.
///
/// # Errors
/// Where the server does not answer.
pub async fn triggers_that_fire(
    client: &Client,
    tables: &[(String, String)],
) -> Result<Vec<(String, String, String)>> {
    let (schemas, names): (Vec<&str>, Vec<&str>) =
        tables.iter().map(|(schema, table)| (schema.as_str(), table.as_str())).unzip();
    let sql = "
        SELECT n.nspname::text, c.relname::text, g.tgname::text
          FROM unnest($1::text[], $2::text[]) it (schema, name)
          JOIN pg_namespace n ON n.nspname = it.schema
          JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = it.name
          JOIN pg_trigger g ON g.tgrelid = c.oid
         WHERE NOT g.tgisinternal AND g.tgenabled IN ('A', 'R')
         ORDER BY 1, 2, 3";
    let rows = client
        .query(sql, &[&schemas, &names])
        .await
        .map_err(|error| fault_of(&error).at("look at the triggers"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
}

/// How many rows a table has now, as a stream would carry them: those of inheriting tables travel under
/// their own names.
///
/// # Errors
/// Where the server does not answer, or the role may not read it.
pub async fn count(client: &Client, schema: &str, table: &str) -> Result<i64> {
    let name = qualified(schema, table);
    let failed = |error: tokio_postgres::Error| fault_of(&error).at(format_args!("count the rows of {name}"));
    let partitioned = "SELECT relkind = 'p' FROM pg_class WHERE oid = $1::text::regclass";
    let row = client.query_opt(partitioned, &[&name]).await.map_err(failed)?;
    let only = match row {
        Some(row) if row.get::<_, bool>(0) => "",
        Some(_) => "ONLY ",
        None => return Err(Fault::new(Code::TableDiffers, format!("there is no table {name}"))),
    };
    let row = client.query_one(&format!("SELECT count(*) FROM {only}{name}"), &[]).await.map_err(failed)?;
    Ok(row.get(0))
}
