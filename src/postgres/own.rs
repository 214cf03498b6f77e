//! Landfall's own tables, in its own schema.

use tokio_postgres::Client;

use super::{
    fault_of,
    grants::{Lack, Privilege},
};
use crate::{
    fault::{Fault, Result},
    names::{SCHEMA, qualified, quoted},
};

/// The advisory lock (of one transaction) under which they are made: "LANDFALL" in ASCII.
const LOCK: i64 = 0x4c41_4e44_4641_4c4c;

/// What our role lacks on those of our `tables` that are there already, made by another role or brought back by a restore
/// that left out who owned them. To write them does, unless some are yet to be made: what goes with that is their owner's.
///
/// # Errors
/// Where the server does not answer.
pub async fn lacking(client: &Client, tables: &[&str]) -> Result<Option<Lack>> {
    let sql = "SELECT current_user::text, pg_get_userbyid(c.relowner)::text, c.relname::text
                 FROM pg_class c, (SELECT count(*) < cardinality($2::text[]) AS some FROM pg_class
                                    WHERE relnamespace = to_regnamespace($1) AND relname = ANY ($2)) missing
                WHERE c.relnamespace = to_regnamespace($1) AND c.relname = ANY ($2)
                  AND NOT pg_has_role(c.relowner, 'USAGE')
                  AND (missing.some OR NOT (has_table_privilege(c.oid, 'SELECT')
                                            AND has_table_privilege(c.oid, 'INSERT')
                                            AND has_table_privilege(c.oid, 'UPDATE')
                                            AND has_table_privilege(c.oid, 'DELETE')))
                ORDER BY c.relname";
    let rows = client.query(sql, &[&SCHEMA, &tables]).await;
    let rows = rows.map_err(|error| fault_of(&error).at("ask whose our own tables are"))?;
    let Some(first) = rows.first() else { return Ok(None) };
    let (role, owner): (String, String) = (first.get(0), first.get(1));
    let names: Vec<String> = rows.iter().map(|row| row.get(2)).collect();
    let sql = names
        .iter()
        .map(|name| format!("ALTER TABLE {} OWNER TO {};", qualified(SCHEMA, name), quoted(&role)));
    Ok(Some(Lack {
        privilege: Privilege::Schema,
        evidence: format!(
            "tables in the schema {SCHEMA} belong to {owner}, the role {role} may not use them as it must: {}",
            names.join(", ")
        ),
        sql: sql.collect::<Vec<_>>().join("\n"),
    }))
}

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
