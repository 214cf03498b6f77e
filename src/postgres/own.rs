//! Landfall's own tables, in its own schema.

use tokio_postgres::Client;

use super::fault_of;
use crate::{
    fault::{Fault, Result},
    names::SCHEMA,
};

/// The advisory lock (of one transaction) under which they are made: "LANDFALL" in ASCII.
const LOCK: i64 = 0x4c41_4e44_4641_4c4c;

/// Makes `tables` of our schema, and the schema, where one of them is missing. `statements` makes them
/// all, each `IF NOT EXISTS`.
///
/// # Errors
/// Where the server does not answer, or the role may not.
pub async fn make(client: &Client, tables: &[&str], statements: &str) -> Result<()> {
    let failed = |error: tokio_postgres::Error| -> Fault {
        fault_of(&error).at(format_args!("make our own tables in schema {SCHEMA}"))
    };
    // Asked first: `CREATE … IF NOT EXISTS` demands the privilege even where there is nothing to do.
    let sql = "SELECT bool_and(to_regclass($1 || '.' || t) IS NOT NULL), to_regnamespace($1) IS NULL
                 FROM unnest($2::text[]) t";
    let row = client.query_one(sql, &[&SCHEMA, &tables]).await.map_err(failed)?;
    if row.get(0) {
        return Ok(());
    }
    let schema = if row.get(1) { format!("CREATE SCHEMA IF NOT EXISTS {SCHEMA};") } else { String::new() };
    client
        .batch_execute(&format!("BEGIN; SELECT pg_advisory_xact_lock({LOCK}); {schema} {statements}; COMMIT"))
        .await
        .map_err(failed)
}
