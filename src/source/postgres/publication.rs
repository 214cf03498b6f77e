//! The publication: held against the scope, and created where the stream has not begun.

use super::PostgresSourceConfig;
use crate::{
    fault::{Code, Fault, Result},
    names::{SCHEMA, qualified, quoted},
    postgres::{Connection, fault_of},
};

/// The tables of a stream, `schema.table`, and those in scope that are not in it, each with the SQL
/// that would change that.
pub(super) struct Published {
    pub(super) tables: Vec<String>,
    pub(super) left_out: Vec<String>,
}

/// Checks the publication, and creates it where the stream is not `live`.
///
/// # Errors
/// [`Code::PublicationChanged`] where it is gone, or a table the stream began with is no longer
/// published as a whole.
pub(super) async fn check(
    connection: &Connection,
    config: &PostgresSourceConfig,
    live: bool,
    begun_with: &[String],
) -> Result<Published> {
    let name = &config.publication;
    let in_scope = tables(connection, config).await?;
    let sql = "select pubinsert and pubupdate and pubdelete and pubtruncate from pg_publication
        where pubname = $1::text";
    let whole = connection.query_opt(sql, &[name]).await.map_err(|error| asking(&error))?;
    let Some(whole) = whole else { return create(connection, config, live, &in_scope).await };
    if !whole.get::<_, bool>(0) {
        let mend =
            format!("ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate');", quoted(name));
        return refuse(format!("publication `{name}` does not publish every kind of change"), mend);
    }
    let tables = published(connection, config).await?;
    let lost: Vec<_> = in_scope
        .iter()
        .filter(|table| begun_with.contains(&table.name()) && !tables.contains(&table.name()))
        .collect();
    if live && !lost.is_empty() {
        let list = lost.iter().map(|table| table.name()).collect::<Vec<_>>().join(", ");
        let add = lost.iter().map(|table| table.quoted()).collect::<Vec<_>>().join(", ");
        let message = format!(
            "publication `{name}` no longer publishes {list}, which stream `{}` carries",
            config.stream
        );
        return refuse(message, format!("ALTER PUBLICATION {} ADD TABLE {add};", quoted(name)));
    }
    let left_out = left_out(&in_scope, name, |table| tables.contains(&table.name()));
    Ok(Published { tables, left_out })
}

/// What is published of the scope, all of it whole.
async fn published(connection: &Connection, config: &PostgresSourceConfig) -> Result<Vec<String>> {
    let name = &config.publication;
    let sql = "select schemaname::text, tablename::text, rowfilter is not null,
            cardinality(attnames) < (select count(*) from pg_attribute where attnum > 0 and not attisdropped
                and attgenerated = '' and attrelid = format('%I.%I', schemaname, tablename)::regclass)
        from pg_publication_tables where pubname = $1::text";
    let rows = connection.query(sql, &[name]).await.map_err(|error| asking(&error))?;
    let mut tables = Vec::new();
    for row in rows {
        let (schema, table): (String, String) = (row.get(0), row.get(1));
        if schema == SCHEMA {
            let message = format!("publication `{name}` publishes schema {SCHEMA}, which is Landfall's own");
            return refuse(message, "publish tables by name or by schema instead of FOR ALL TABLES".into());
        }
        if !config.scope.holds(&schema, &table) {
            continue;
        }
        if row.get(2) || row.get::<_, Option<bool>>(3) == Some(true) {
            let message =
                format!("publication `{name}` publishes {schema}.{table} with a row filter or a column list");
            let (publication, table) = (quoted(name), qualified(&schema, &table));
            let mend = format!(
                "ALTER PUBLICATION {publication} DROP TABLE {table}; ALTER PUBLICATION {publication} ADD TABLE {table};"
            );
            return refuse(message, mend);
        }
        tables.push(format!("{schema}.{table}"));
    }
    Ok(tables)
}

async fn create(
    connection: &Connection,
    config: &PostgresSourceConfig,
    live: bool,
    in_scope: &[Table],
) -> Result<Published> {
    let name = &config.publication;
    let usable: Vec<_> = in_scope.iter().filter(|table| table.usable).collect();
    let list = usable.iter().map(|table| table.quoted()).collect::<Vec<_>>().join(", ");
    let sql = format!(
        "CREATE PUBLICATION {} FOR TABLE {list} WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = true);",
        quoted(name)
    );
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
    let tables = usable.iter().map(|table| table.name()).collect();
    Ok(Published { tables, left_out: left_out(in_scope, name, |table| table.usable) })
}

struct Table {
    schema: String,
    table: String,
    /// Publishing it does not break the application's own UPDATEs.
    usable: bool,
}

impl Table {
    fn name(&self) -> String {
        format!("{}.{}", self.schema, self.table)
    }

    fn quoted(&self) -> String {
        qualified(&self.schema, &self.table)
    }
}

/// Every table in scope. A partitioned table stands for its partitions.
async fn tables(connection: &Connection, config: &PostgresSourceConfig) -> Result<Vec<Table>> {
    let sql = "select n.nspname::text, c.relname::text,
            c.relreplident = 'f' or c.relreplident in ('d', 'i') and exists (
                select from pg_index i where i.indrelid = c.oid and i.indisvalid
                and case c.relreplident when 'd' then i.indisprimary else i.indisreplident end)
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where c.relkind in ('r', 'p') and not c.relispartition and c.relpersistence = 'p'
        order by 1, 2";
    let rows = connection.query(sql, &[]).await.map_err(|error| fault_of(&error).at("list the tables"))?;
    let tables = rows.iter().map(|row| Table { schema: row.get(0), table: row.get(1), usable: row.get(2) });
    Ok(tables.filter(|table| config.scope.holds(&table.schema, &table.table)).collect())
}

fn left_out(tables: &[Table], publication: &str, published: impl Fn(&Table) -> bool) -> Vec<String> {
    let out = tables.iter().filter(|table| !published(table));
    out.map(|table| {
        let name = table.quoted();
        if table.usable {
            let publication = quoted(publication);
            format!("{name} is not published: ALTER PUBLICATION {publication} ADD TABLE {name};")
        } else {
            format!("{name} has no usable replica identity: give it a primary key, or ALTER TABLE {name} REPLICA IDENTITY FULL;")
        }
    })
    .collect()
}

fn asking(error: &tokio_postgres::Error) -> Fault {
    fault_of(error).at("ask for the publication")
}

fn refuse<T>(message: String, mend: String) -> Result<T> {
    Err(Fault::new(Code::PublicationChanged, message).remedied_by(mend))
}
