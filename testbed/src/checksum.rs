//! Whole tables held against each other without carrying their rows about.
//!
//! A table's sum is its number of rows and the sum of a 64-bit hash of every
//! row's text. It does not depend on the order of rows, and is the same on
//! every major version. All tables are read in one snapshot, under settings
//! that make text the same everywhere.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use tokio_postgres::Client;

/// One table, in figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSum {
    /// Its rows.
    pub rows: i64,
    /// The sum of its rows' hashes, in decimal digits.
    pub sum: String,
}

/// Tables by `schema.name`.
pub type Sums = BTreeMap<String, TableSum>;

/// What makes a value's text depend on nothing but the value.
const SAME_TEXT: &str = "set local timezone = 'UTC'; set local datestyle = 'ISO'; \
     set local intervalstyle = 'postgres'; set local extra_float_digits = 3; \
     set local bytea_output = 'hex'; set local lc_monetary = 'C'; set local search_path = ''";

/// The tables of one schema.
pub async fn tables(client: &Client, schema: &str) -> Result<Sums> {
    sums(client, Some(schema)).await
}

/// All tables of a database, but for the system's and Landfall's own.
pub async fn database(client: &Client) -> Result<Sums> {
    sums(client, None).await
}

async fn sums(client: &Client, schema: Option<&str>) -> Result<Sums> {
    client
        .batch_execute(&format!("begin isolation level repeatable read read only; {SAME_TEXT}"))
        .await
        .context("open a snapshot")?;
    let sums = in_snapshot(client, schema).await;
    // Whatever came of it, the session is handed back as it was.
    client.batch_execute("rollback").await.context("close the snapshot")?;
    sums
}

async fn in_snapshot(client: &Client, schema: Option<&str>) -> Result<Sums> {
    let tables = client
        .query(
            // Partitions count through their parent, foreign tables not at all.
            "select n.nspname::text, c.relname::text, format('%I.%I', n.nspname, c.relname) \
             from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
             where c.relkind in ('r', 'p') and not c.relispartition \
               and c.relpersistence <> 't' \
               and n.nspname not in ('pg_catalog', 'information_schema', 'landfall') \
               and n.nspname !~ '^pg_(toast|temp)' \
               and ($1::text is null or n.nspname = $1)",
            &[&schema],
        )
        .await
        .context("list the tables")?;
    let mut sums = Sums::new();
    for table in tables {
        let name = format!("{}.{}", table.get::<_, &str>(0), table.get::<_, &str>(1));
        let quoted: &str = table.get(2);
        let row = client
            .query_one(
                &format!(
                    "select count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0)::text \
                     from {quoted} t"
                ),
                &[],
            )
            .await
            .with_context(|| format!("sum up {name}"))?;
        sums.insert(name, TableSum { rows: row.get(0), sum: row.get(1) });
    }
    Ok(sums)
}

/// A line for every table that is not the same on both sides; none when all
/// are.
pub fn differences(source: &Sums, target: &Sums) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, here) in source {
        match target.get(name) {
            None => lines.push(format!("{name}: not on the target")),
            Some(there) if there.rows != here.rows => {
                lines.push(format!("{name}: {} rows on the source, {} on the target", here.rows, there.rows))
            }
            Some(there) if there != here => {
                lines.push(format!("{name}: {} rows each, with other values", here.rows));
            }
            Some(_) => {}
        }
    }
    for name in target.keys().filter(|name| !source.contains_key(*name)) {
        lines.push(format!("{name}: not on the source"));
    }
    lines
}
