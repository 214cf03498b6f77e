//! The publication: held against the scope, and created where the stream has not begun.

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

/// The tables of a stream, and what is amiss: those in scope that are not in it, and those that should
/// not be as they are; each with the SQL that would change that.
pub(super) struct Published {
    pub(super) tables: Vec<TableName>,
    pub(super) amiss: Vec<String>,
}

/// Checks the publication, and creates it where the stream is not `live`.
///
/// # Errors
/// [`Code::PublicationChanged`] where it is gone, or a table the stream has carried is no longer
/// published as a whole.
pub(super) async fn check(
    connection: &Connection,
    config: &PostgresSourceConfig,
    live: bool,
    carried: &[String],
) -> Result<Published> {
    let name = &config.publication;
    let in_scope = catalog::tables_in_scope(connection, &config.scope).await?;
    let Some(publication) = catalog::publication(connection, name).await? else {
        return create(connection, config, live, &in_scope).await;
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
    let is_published = |table: &TableFacts| tables.contains(&table_name(table));
    let lost: Vec<_> =
        in_scope.iter().filter(|table| carried.contains(&table.name()) && !is_published(table)).collect();
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
    let amiss = amiss(&in_scope, name, is_published);
    Ok(Published { tables, amiss })
}

/// What is amiss with the publication of a stream that has begun; that it cannot be looked at, where a table of it is locked:
/// the server opens each one for it, and would wait behind whoever rewrites one. The stream reads on meanwhile.
///
/// # Errors
/// As of [`check`].
pub(super) async fn glance(
    connection: &Connection,
    config: &PostgresSourceConfig,
    carried: &[String],
) -> Result<Published> {
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
        Ok(published) => ended.map(|()| published),
        Err(fault) if fault.code() == Code::TargetBusy => {
            let name = &config.publication;
            let amiss = vec![format!("publication `{name}` cannot be looked at now: {fault}")];
            ended.map(|()| Published { tables: Vec::new(), amiss })
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
    in_scope: &[TableFacts],
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
    Ok(Published { tables, amiss: amiss(in_scope, name, TableFacts::is_usable) })
}

fn table_name(table: &TableFacts) -> TableName {
    TableName { schema: table.schema.clone(), table: table.table.clone() }
}

fn amiss(tables: &[TableFacts], publication: &str, published: impl Fn(&TableFacts) -> bool) -> Vec<String> {
    let said = |table: &TableFacts| {
        let name = table.quoted();
        match published(table) {
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
    tables.iter().filter_map(said).collect()
}

fn refuse<T>(message: String, mend: String) -> Result<T> {
    Err(Fault::new(Code::PublicationChanged, message).remedied_by(mend))
}
