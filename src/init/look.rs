//! What is there: versions, tables, and what the role would lack.

use tokio_postgres::Client;

use super::{Wishes, wrong};
use crate::{
    check::grants_of,
    fault::{Code, Result},
    names::quoted,
    postgres::{
        Address, Connection,
        catalog::{ServerFacts, TableFacts, VERSION_MIN, server_facts, tables_in_scope},
        connect, fault_of,
        tables::shapes,
    },
    scope::{Pattern, Scope},
    sink::postgres::{ObstacleKind, judge},
};

/// What was seen.
pub(super) struct Seen {
    /// The tables that are carried.
    pub(super) scope: Scope,
    /// The statements each side needs, the role aside.
    pub(super) sql: [Vec<String>; 2],
    /// The two databases, as the role will reach them.
    pub(super) addresses: [Address; 2],
    /// Whether the sending server has to be restarted.
    pub(super) restart: bool,
    /// Each side in a line.
    pub(super) said: Vec<String>,
    /// What stands in the way.
    pub(super) obstacles: Vec<String>,
}

pub(super) async fn at(wishes: &Wishes, from: &Address, to: &Address) -> Result<Seen> {
    let (source, target) = (connect(from, "landfall init").await?, connect(to, "landfall init").await?);
    let (ours, theirs) = (server_facts(&source).await?, server_facts(&target).await?);
    for (facts, side) in [(&ours, &wishes.from), (&theirs, &wishes.to)] {
        if facts.version_number < VERSION_MIN {
            return Err(wrong(format!("{}: PostgreSQL {} is older than 15", side.region, facts.version)));
        }
        if facts.in_recovery {
            return Err(wrong(format!("{}: the server is a standby; name the primary", side.region)));
        }
    }
    let all = Scope(vec![pattern("*.*")?]);
    let patterns = match &wishes.tables {
        Some(patterns) => patterns.clone(),
        None => schemas(&tables_in_scope(&source, &all).await?)?,
    };
    let scope = Scope(patterns);
    let tables = tables_in_scope(&source, &scope).await?;
    let mut obstacles = left_out(&tables);
    if tables.is_empty() {
        obstacles.push(format!("no table of {} matches {scope} yet", wishes.from.region));
    }
    obstacles.extend(unlike(wishes, &source, &target, &scope, &tables).await?);
    let sending = super::files::sending(wishes, &scope, from, 1)?;
    let taking = super::files::taking(wishes, to)?;
    let mut sql = [
        as_role(&source, from, &wishes.role, async || grants_of(&source, &sending, Some(&scope)).await)
            .await?,
        as_role(&target, to, &wishes.role, async || grants_of(&target, &taking, Some(&scope)).await).await?,
    ];
    let restart = ours.wal_level != "logical";
    if restart {
        sql[0]
            .insert(0, "ALTER SYSTEM SET wal_level = logical;  -- restart the server afterwards".to_owned());
    }
    let said = |facts: &ServerFacts, region: &crate::region::Region, more: String| {
        format!("{region}: database {} of PostgreSQL {}{more}", facts.database, facts.version)
    };
    Ok(Seen {
        said: vec![
            said(&ours, &wishes.from.region, format!(", {} tables in {scope}", tables.len())),
            said(&theirs, &wishes.to.region, String::new()),
        ],
        scope,
        sql,
        addresses: [from.clone(), to.clone()],
        restart,
        obstacles,
    })
}

/// A pattern for each schema that has tables; where there are none yet, the schema everybody has.
fn schemas(tables: &[TableFacts]) -> Result<Vec<Pattern>> {
    let mut schemas: Vec<&str> = tables.iter().map(|table| table.schema.as_str()).collect();
    schemas.dedup();
    if schemas.is_empty() {
        schemas.push("public");
    }
    let plain = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let text =
        |schema: &str| if plain(schema) { format!("{schema}.*") } else { format!("{}.*", quoted(schema)) };
    schemas.into_iter().map(|schema| pattern(&text(schema))).collect()
}

fn pattern(text: &str) -> Result<Pattern> {
    text.parse().map_err(|error: crate::scope::InvalidPattern| wrong(error.to_string()))
}

fn left_out(tables: &[TableFacts]) -> Vec<String> {
    let unusable = tables.iter().filter(|table| !table.is_usable());
    let said = |table: &TableFacts| {
        let (name, sql) = (table.name(), table.quoted());
        match &table.unlike {
            _ if !table.logged => {
                format!("{name} is unlogged and is left out: ALTER TABLE {sql} SET LOGGED;")
            }
            Some(unlike) if table.identity_usable => {
                format!("{name} is left out: {}: {}", unlike.why(), unlike.mend())
            }
            _ => format!(
                "{name} has no usable replica identity and is left out: ALTER TABLE {sql} ADD PRIMARY KEY (...);"
            ),
        }
    };
    unusable.map(said).collect()
}

/// What of the source's tables the target does not take, column by column.
async fn unlike(
    wishes: &Wishes,
    source: &Client,
    target: &Client,
    scope: &Scope,
    tables: &[TableFacts],
) -> Result<Vec<String>> {
    let (mut missing, mut said) = (0, Vec::new());
    for shape in shapes(source, scope).await? {
        let same = |table: &&TableFacts| *table.schema == *shape.schema && *table.table == *shape.table;
        if !tables.iter().find(same).is_some_and(TableFacts::is_usable) {
            continue;
        }
        for obstacle in judge(target, &shape).await?.obstacles {
            match obstacle.kind {
                ObstacleKind::Missing => missing += 1,
                ObstacleKind::Column => said.push(format!("{}: {};", obstacle.what, obstacle.sql)),
                // Of whoever looks; the role's own are in the SQL.
                ObstacleKind::Privilege | ObstacleKind::RowSecurity => (),
            }
        }
    }
    if missing > 0 {
        said.push(format!(
            "{missing} tables are not in the database of {} yet: pg_dump --schema-only '{}' | psql '{}', then begin again",
            wishes.to.region,
            shown(&wishes.from.url),
            shown(&wishes.to.url)
        ));
    }
    Ok(said)
}

/// A url without its password.
fn shown(url: &str) -> String {
    crate::config::database_address(url)
        .map_or_else(|_| "…".to_owned(), |it| crate::config::database_url(&it))
}

/// Asks as the role, which need not be there yet: whatever that takes is rolled back.
async fn as_role<T>(
    client: &Connection,
    address: &Address,
    role: &str,
    ask: impl AsyncFnOnce() -> Result<T>,
) -> Result<T> {
    if address.user == role {
        return ask().await;
    }
    let failed = |error: tokio_postgres::Error| {
        let fault = fault_of(&error).at(format_args!("look around at {address} as the role {role}"));
        match fault.code() {
            Code::PrivilegeMissing => {
                fault.remedied_by("give the url of a superuser; it is only looked with, and not kept")
            }
            _ => fault,
        }
    };
    let exists = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)";
    let exists: bool = client.query_one(exists, &[&role]).await.map_err(failed)?.get(0);
    let create = if exists { String::new() } else { format!("CREATE ROLE {};", quoted(role)) };
    client
        .batch_execute(&format!("BEGIN; {create} SET LOCAL ROLE {}", quoted(role)))
        .await
        .map_err(failed)?;
    let answer = ask().await;
    let ended = client.batch_execute("ROLLBACK").await.map_err(failed);
    answer.and_then(|answer| ended.map(|()| answer))
}
