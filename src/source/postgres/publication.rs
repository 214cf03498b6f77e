//! The publication: held against the scope, and created where the stream has not begun.
//!
//! HAZARD: it is looked at, again and again, on the thread that captures. What is done for each table must not look through
//! the others: with ten thousand of them the stream would stand still meanwhile.

use std::collections::HashSet;

use super::PostgresSourceConfig;
use crate::{
    fault::{Code, Fault, Result},
    names::{SCHEMA, qualified, quoted},
    postgres::{
        Connection,
        catalog::{self, PublicationFacts, TableFacts, Unlike, UnlikePartition},
        fault_of,
        grants::{create_publication, publish_also, publish_whole},
    },
    verify::TableName,
};

/// What is mended by SQL here is whole again only with this.
const COMPARE: &str = "-- What was written meanwhile is not in the stream: once it runs, `landfall verify` and `landfall repair --execute` in each \
    region that receives it.";
/// Heartbeats wait as long as a look at the publication does.
const LOCK_TIMEOUT: &str = "500ms";

/// The tables of a stream, and those in scope, whether or not they are in it.
pub(super) struct Published {
    pub(super) tables: Vec<TableName>,
    in_scope: Vec<TableFacts>,
}

/// What a look finds: the tables of a stream, and what is amiss: those in scope that are not in it, and those that should
/// not be as they are; each with the SQL that would change that.
pub(super) struct Glance {
    pub(super) tables: Vec<TableName>,
    pub(super) amiss: Vec<String>,
}

/// Checks the publication, and creates it where the stream is not `live`.
///
/// # Errors
/// [`Code::PublicationChanged`] where it is gone, or a table the stream has carried (as `schema.table`) is no longer
/// published as a whole.
pub(super) async fn check(
    connection: &Connection,
    config: &PostgresSourceConfig,
    live: bool,
    carried: &HashSet<String>,
) -> Result<Published> {
    let name = &config.publication;
    let in_scope = catalog::tables_in_scope(connection, &config.scope).await?;
    let Some(publication) = catalog::publication(connection, name).await? else {
        return create(connection, config, live, in_scope).await;
    };
    if !publication.operations_missing.is_empty() {
        let message =
            format!("publication `{name}` does not publish {}", publication.operations_missing.join(", "));
        let mend =
            format!("ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate');", quoted(name));
        return refuse(message, mend);
    }
    if publication.generated {
        let message =
            format!("publication `{name}` publishes generated columns, which each region computes itself");
        let mend = format!("ALTER PUBLICATION {} SET (publish_generated_columns = none);", quoted(name));
        return refuse(message, mend);
    }
    let parted = in_scope.iter().find(|table| table.partitioned);
    if let Some(table) = parted.filter(|_| !publication.via_root) {
        let message = format!(
            "publication `{name}` publishes {} partition by partition, not as one table",
            table.name()
        );
        let mend = format!("ALTER PUBLICATION {} SET (publish_via_partition_root = true);", quoted(name));
        return refuse(message, mend);
    }
    let tables = published(&publication, config)?;
    let lost = lost(&in_scope, carried, &tables);
    if live && !lost.is_empty() {
        let list = lost.iter().map(|table| table.name()).collect::<Vec<_>>().join(", ");
        let add = lost.iter().map(|table| table.quoted()).collect::<Vec<_>>().join(", ");
        let message = format!(
            "publication `{name}` no longer publishes {list}, which stream `{}` carries",
            config.stream
        );
        let mend = format!(
            "{} -- Or, what is to be carried no more: out of source.tables, and restart.",
            publish_also(name, &add)
        );
        return refuse(message, mend);
    }
    Ok(Published { tables, in_scope })
}

/// The tables a stream that has begun carries now.
///
/// # Errors
/// As of [`check`].
pub(super) async fn tables(connection: &Connection, config: &PostgresSourceConfig) -> Result<Vec<TableName>> {
    check(connection, config, true, &HashSet::new()).await.map(|published| published.tables)
}

/// What is amiss with the publication of a stream that has begun; that it cannot be looked at, where a table of it is locked:
/// the server opens each one for it, and would wait behind whoever rewrites one. The stream reads on meanwhile.
///
/// # Errors
/// As of [`check`].
pub(super) async fn glance(
    connection: &Connection,
    config: &PostgresSourceConfig,
    carried: &HashSet<String>,
) -> Result<Glance> {
    let run = async |sql: &str| {
        connection.batch_execute(sql).await.map_err(|error| fault_of(&error).at("look at the publication"))
    };
    run(&format!("BEGIN; SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")).await?;
    let checked = check(connection, config, true, carried).await.map_err(|fault| match fault.code() {
        Code::PublicationChanged => {
            let remedy = format!("{} {COMPARE}", fault.remedy());
            fault.remedied_by(remedy)
        }
        _ => fault,
    });
    let ended = run("COMMIT").await;
    match checked {
        Ok(Published { tables, in_scope }) => {
            let amiss = amiss(&in_scope, &config.publication, &tables);
            ended.map(|()| Glance { tables, amiss })
        }
        Err(fault) if fault.code() == Code::TargetBusy => {
            let name = &config.publication;
            let amiss = vec![format!("publication `{name}` cannot be looked at now: {fault}")];
            ended.map(|()| Glance { tables: Vec::new(), amiss })
        }
        Err(fault) => Err(fault),
    }
}

/// Tables that were taken out, and put in again before anybody looked.
pub(super) fn taken_out(config: &PostgresSourceConfig, lost: &[TableName]) -> Fault {
    let list = lost.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let message = format!("{list}: taken out of publication `{}`, and put in again", config.publication);
    let remedy = format!("nothing here, it goes on by itself. {COMPARE}");
    Fault::new(Code::PublicationChanged, message).remedied_by(remedy)
}

/// What is amiss with a table that is published by a name that is not in scope.
pub(super) fn renamed(before: &TableName, now: &TableName) -> String {
    format!(
        "{before} is {now} by now, which source.tables leaves out: it is carried no more. Add that name to source.tables and \
         restart, or take the table out of the publication"
    )
}

/// What is published of the scope, all of it whole.
fn published(publication: &PublicationFacts, config: &PostgresSourceConfig) -> Result<Vec<TableName>> {
    let name = &config.publication;
    let mut tables = Vec::new();
    for found in &publication.tables {
        let (schema, table) = (&found.schema, &found.table);
        if schema == SCHEMA {
            let message = format!("publication `{name}` publishes schema {SCHEMA}, which is Landfall's own");
            return refuse(message, "publish tables by name or by schema instead of FOR ALL TABLES".into());
        }
        if !config.scope.holds(schema, table) {
            continue;
        }
        if found.row_filter.is_some() || !found.columns_left_out.is_empty() {
            let message =
                format!("publication `{name}` publishes {schema}.{table} with a row filter or a column list");
            return refuse(message, publish_whole(name, &qualified(schema, table)));
        }
        tables.push(TableName { schema: schema.clone(), table: table.clone() });
    }
    Ok(tables)
}

async fn create(
    connection: &Connection,
    config: &PostgresSourceConfig,
    live: bool,
    in_scope: Vec<TableFacts>,
) -> Result<Published> {
    let name = &config.publication;
    let usable: Vec<_> = in_scope.iter().filter(|table| table.is_usable()).collect();
    let sql = create_publication(name, &usable);
    if live {
        let message = format!("publication `{name}` was dropped, but stream `{}` reads it", config.stream);
        return refuse(message, sql);
    }
    if usable.is_empty() {
        let mend =
            "create the tables, give them primary keys, or correct source.tables; it goes on by itself";
        return refuse(format!("no table with a replica identity matches {}", config.scope), mend.into());
    }
    connection.batch_execute(&sql).await.map_err(|error| {
        let fault = fault_of(&error).at(format_args!("create publication `{name}`"));
        if fault.code() == Code::PrivilegeMissing { fault.remedied_by(sql) } else { fault }
    })?;
    let tables = usable.iter().map(|table| table_name(table)).collect();
    Ok(Published { tables, in_scope })
}

fn table_name(table: &TableFacts) -> TableName {
    TableName { schema: table.schema.clone(), table: table.table.clone() }
}

/// Schema and name of each.
fn names(tables: &[TableName]) -> HashSet<(&str, &str)> {
    tables.iter().map(|table| (&*table.schema, &*table.table)).collect()
}

/// Those of the scope that the stream has carried and that are published no more.
fn lost<'a>(
    in_scope: &'a [TableFacts],
    carried: &HashSet<String>,
    published: &[TableName],
) -> Vec<&'a TableFacts> {
    let published = names(published);
    let is_published = |table: &TableFacts| published.contains(&(&*table.schema, &*table.table));
    in_scope.iter().filter(|table| !is_published(table) && carried.contains(&table.name())).collect()
}

fn amiss(in_scope: &[TableFacts], publication: &str, published: &[TableName]) -> Vec<String> {
    let published = names(published);
    let said = |table: &TableFacts| {
        let name = table.quoted();
        match published.contains(&(&*table.schema, &*table.table)) {
            true if table.is_usable() => None,
            false if table.is_usable() => {
                Some(format!("{name} is not published: {}", publish_also(publication, &name)))
            }
            _ if !table.logged => Some(format!("{name} is unlogged: its changes are not in the log")),
            published => {
                let how = match (published, &table.unlike) {
                    (false, _) => "is left out",
                    (true, Some(UnlikePartition { fault: Unlike::Foreign | Unlike::Unlogged, .. })) => {
                        "is published, and not all of it is carried"
                    }
                    (true, _) => {
                        "is published, and the application's UPDATEs and DELETEs fail or do not say what the row was"
                    }
                };
                let (why, mend) = match &table.unlike {
                    Some(unlike) if table.identity_usable => (unlike.why(), unlike.mend()),
                    _ => ("no usable replica identity".to_owned(), table.identity_sql()),
                };
                Some(format!("{name} {how}: {why}: {mend}"))
            }
        }
    };
    in_scope.iter().filter_map(said).collect()
}

fn refuse<T>(message: String, mend: String) -> Result<T> {
    Err(Fault::new(Code::PublicationChanged, message).remedied_by(mend))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_scope(schema: &str, table: &str) -> TableFacts {
        TableFacts {
            schema: schema.into(),
            table: table.into(),
            owner: "shop".into(),
            partitioned: false,
            logged: true,
            identity: 'd',
            identity_usable: true,
            unlike: None,
        }
    }

    fn name(schema: &str, table: &str) -> TableName {
        TableName { schema: schema.into(), table: table.into() }
    }

    #[test]
    fn what_is_amiss_is_told_of_each_table_by_itself() {
        let keyless = |table| TableFacts { identity_usable: false, ..in_scope("public", table) };
        let unlogged = |table| TableFacts { logged: false, ..in_scope("public", table) };
        let tables = [
            in_scope("public", "fine"),
            in_scope("public", "new"),
            keyless("keyless"),
            keyless("keyless there"),
            unlogged("unlogged"),
            in_scope("other", "fine"),
        ];
        let published = [name("public", "fine"), name("public", "keyless there"), name("other", "gone")];
        let told = amiss(&tables, "landfall", &published);
        let begins = [
            r#""public"."new" is not published: BEGIN; LOCK TABLE "public"."new" IN SHARE MODE; ALTER PUBLICATION "landfall" ADD"#,
            r#""public"."keyless" is left out: no usable replica identity"#,
            r#""public"."keyless there" is published, and the application's UPDATEs and DELETEs fail"#,
            r#""public"."unlogged" is unlogged"#,
            r#""other"."fine" is not published"#,
        ];
        assert_eq!(told.len(), begins.len(), "{told:#?}");
        assert!(told.iter().zip(begins).all(|(told, begins)| told.starts_with(begins)), "{told:#?}");
    }

    #[test]
    fn a_table_is_lost_that_was_carried_and_is_in_scope_and_published_no_more() {
        let tables = ["stays", "lost", "never carried", "lost too"].map(|table| in_scope("public", table));
        let carried = ["public.lost too", "public.lost", "public.stays", "public.dropped", "other.stays"];
        let carried = carried.map(str::to_owned).into();
        let lost = |published: &[TableName]| -> Vec<String> {
            lost(&tables, &carried, published).into_iter().map(TableFacts::name).collect()
        };
        let published = [name("public", "stays"), name("other", "lost")];
        assert_eq!(lost(&published), ["public.lost", "public.lost too"]);
        assert_eq!(lost(&[]), ["public.stays", "public.lost", "public.lost too"]);
    }
}
