//! What our role must be allowed to do, and the SQL that allows exactly that: said by `check` before
//! anything runs, and by the roads where they meet it.

use std::fmt::Write;

use tokio_postgres::Client;

use super::{
    catalog::{RolePrivileges, TableFacts, role_privileges},
    own,
};
use crate::{
    fault::{Code, Fault, Result},
    names::{SCHEMA, qualified, quoted},
};

/// What a role is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duties {
    /// It reads the log.
    pub source: bool,
    /// It applies changes.
    pub sink: bool,
}

/// A kind of privilege.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// To read the log.
    Replication,
    /// To switch the target's own triggers off for a session.
    SessionReplicationRole,
    /// To work under a replication origin.
    OriginFunctions,
    /// To keep tables of our own.
    Schema,
}

/// A privilege that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// Its kind.
    pub privilege: Privilege,
    /// What the role may not do.
    pub evidence: String,
    /// Statements for a superuser, each ended by a semicolon.
    pub sql: String,
}

/// What the role lacks for its duties, tables aside, our own among them ([`own::lacking`]).
pub fn lacking(role: &RolePrivileges, duties: Duties) -> Vec<Lack> {
    let mut lacks = Vec::new();
    let mut lack = |privilege, evidence, sql| lacks.push(Lack { privilege, evidence, sql });
    let name = quoted(&role.role);
    if duties.source && !role.replication {
        lack(
            Privilege::Replication,
            format!(
                "the role {} may not read the log (on Amazon RDS: GRANT rds_replication TO {name})",
                role.role
            ),
            format!("ALTER ROLE {name} REPLICATION;"),
        );
    }
    if duties.sink && !role.set_replication_role {
        lack(
            Privilege::SessionReplicationRole,
            format!("the role {} may not set session_replication_role: triggers would fire twice", role.role),
            format!("GRANT SET ON PARAMETER session_replication_role TO {name};"),
        );
    }
    if duties.sink && !role.origin_functions_missing.is_empty() {
        let grants = role.origin_functions_missing.iter();
        let grants: Vec<String> = grants
            .map(|function| format!("GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {name};"))
            .collect();
        lack(
            Privilege::OriginFunctions,
            format!("the role {} may not execute {}", role.role, role.origin_functions_missing.join(", ")),
            grants.join("\n"),
        );
    }
    match &role.schema_owner {
        Some(owner) if !role.schema_usable => lack(
            Privilege::Schema,
            format!("the schema {SCHEMA} belongs to {owner}, the role {} may not create in it", role.role),
            format!("GRANT USAGE, CREATE ON SCHEMA {SCHEMA} TO {name};"),
        ),
        None if !role.create_on_database => lack(
            Privilege::Schema,
            format!(
                "there is no schema {SCHEMA}, and the role {} may not create one in the database {}",
                role.role, role.database
            ),
            format!("CREATE SCHEMA {SCHEMA} AUTHORIZATION {name};"),
        ),
        _ => (),
    }
    lacks
}

/// Requires everything of the role at once, so that its owner is asked once; `own_tables` are those of ours that its duties
/// need.
///
/// # Errors
/// [`Code::PrivilegeMissing`] with every statement that is needed, the users' tables aside.
pub async fn require(client: &Client, duties: Duties, own_tables: &[&str]) -> Result<()> {
    let role = role_privileges(client).await?;
    let mut lacks = lacking(&role, duties);
    lacks.extend(own::lacking(client, own_tables).await?);
    if lacks.is_empty() {
        return Ok(());
    }
    let work = if duties.source { "read the log of" } else { "apply changes to" };
    let message = format!("role {} lacks privileges to {work} database {}", role.role, role.database);
    let grants: Vec<String> = lacks.into_iter().map(|lack| lack.sql.replace('\n', " ")).collect();
    Err(Fault::new(Code::PrivilegeMissing, message).remedied_by(format!(
        "run there as a superuser: {} it is tried again without a restart",
        grants.join(" ")
    )))
}

/// Lets `role` into the database: everybody may, until it is revoked from PUBLIC.
pub fn connect_to(role: &str, database: &str) -> String {
    format!("GRANT CONNECT ON DATABASE {} TO {};", quoted(database), quoted(role))
}

/// Lets `role` use what is in the schemas.
pub fn use_schemas(role: &str, schemas: &[String]) -> String {
    let names: Vec<String> = schemas.iter().map(|schema| quoted(schema)).collect();
    format!("GRANT USAGE ON SCHEMA {} TO {};", names.join(", "), quoted(role))
}

/// Lets `role` write the tables, given as schema and name, in order.
pub fn write_tables(role: &str, tables: &[(String, String)]) -> String {
    let mut sql = String::new();
    for group in tables.chunk_by(|a, b| a.0 == b.0) {
        let names: Vec<String> = group.iter().map(|(schema, table)| qualified(schema, table)).collect();
        // Writing to a string does not fail.
        let _ = write!(
            sql,
            "GRANT USAGE ON SCHEMA {} TO {role};\nGRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON {} TO {role};\n",
            quoted(&group[0].0),
            names.join(", "),
            role = quoted(role),
        );
    }
    sql.truncate(sql.trim_end().len());
    sql
}

/// Publishes the tables as a stream reads them: all they do, a partitioned one as the one table it is.
/// For the owner of them all.
pub fn create_publication(name: &str, tables: &[&TableFacts]) -> String {
    let tables: Vec<String> = tables.iter().map(|table| table.quoted()).collect();
    format!(
        "CREATE PUBLICATION {} FOR TABLE {} WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = true);",
        quoted(name),
        tables.join(", ")
    )
}

/// Publishes tables, given as quoted names, from one moment on: of a transaction that had written to one and not ended,
/// what it wrote before would be in no stream, and what a backfill reads meanwhile would not hold it either.
pub fn publish_also(publication: &str, tables: &str) -> String {
    let publication = quoted(publication);
    format!(
        "BEGIN; LOCK TABLE {tables} IN SHARE MODE; ALTER PUBLICATION {publication} ADD TABLE {tables}; COMMIT;"
    )
}

/// Publishes a table anew, whole, where it was published by halves; see [`publish_also`].
pub fn publish_whole(publication: &str, table: &str) -> String {
    let publication = quoted(publication);
    format!(
        "BEGIN; LOCK TABLE {table} IN SHARE MODE; ALTER PUBLICATION {publication} DROP TABLE {table}; \
         ALTER PUBLICATION {publication} ADD TABLE {table}; COMMIT;"
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A plain role that lacks nothing.
    pub(crate) fn role() -> RolePrivileges {
        RolePrivileges {
            role: "lf".into(),
            superuser: false,
            replication: true,
            set_replication_role: true,
            origin_functions_missing: Vec::new(),
            connect_to_database: true,
            create_on_database: true,
            schema_owner: None,
            schema_usable: false,
            database: "shop".into(),
        }
    }

    #[test]
    fn a_role_is_granted_exactly_what_it_lacks() {
        for (change, expected) in [
            (&(|_: &mut RolePrivileges| ()) as &dyn Fn(&mut RolePrivileges), None),
            (&|it| it.replication = false, Some("ALTER ROLE \"lf\" REPLICATION;")),
            (
                &|it| it.set_replication_role = false,
                Some("GRANT SET ON PARAMETER session_replication_role TO \"lf\";"),
            ),
            (
                &|it| it.origin_functions_missing = vec!["pg_replication_origin_oid(text)".into()],
                Some("GRANT EXECUTE ON FUNCTION pg_catalog.pg_replication_origin_oid(text) TO \"lf\";"),
            ),
            (&|it| it.create_on_database = false, Some("CREATE SCHEMA landfall AUTHORIZATION \"lf\";")),
            (
                &|it| it.schema_owner = Some("dba".into()),
                Some("GRANT USAGE, CREATE ON SCHEMA landfall TO \"lf\";"),
            ),
        ] {
            let mut role = role();
            change(&mut role);
            let lacks = lacking(&role, Duties { source: true, sink: true });
            let sql = lacks.first().map(|lack| &*lack.sql);
            assert_eq!((sql, lacks.len()), (expected, usize::from(expected.is_some())), "{role:?}");
        }
        let poor = RolePrivileges { replication: false, set_replication_role: false, ..role() };
        assert_eq!(lacking(&poor, Duties { source: true, sink: false })[0].privilege, Privilege::Replication);
        assert_eq!(
            lacking(&poor, Duties { source: false, sink: true })[0].privilege,
            Privilege::SessionReplicationRole
        );
    }

    #[test]
    fn tables_are_granted_by_schema() {
        let table = |schema: &str, table: &str| (schema.to_owned(), table.to_owned());
        let sql = write_tables("lf", &[table("a", "x"), table("a", "y"), table("b", "x")]);
        assert_eq!(
            sql,
            "GRANT USAGE ON SCHEMA \"a\" TO \"lf\";
GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON \"a\".\"x\", \"a\".\"y\" TO \"lf\";
GRANT USAGE ON SCHEMA \"b\" TO \"lf\";
GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON \"b\".\"x\" TO \"lf\";"
        );
    }
}
