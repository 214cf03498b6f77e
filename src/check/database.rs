//! What stands in the way in the database: asked of its catalogs, then judged without it.

use super::{Finding, Severity};
use crate::{
    config::{Settings, SourceSettings},
    fault::Result,
    names::{qualified, quoted},
    postgres::{
        Connection,
        catalog::{
            PublicationFacts, RolePrivileges, ServerFacts, SlotFacts, TableFacts, VERSION_MIN, publication,
            role_privileges, server_facts, slot, tables_in_scope, tables_not_writable,
            type_schemas_not_usable,
        },
        connect,
        grants::{Duties, create_publication, lacking, use_schemas, write_tables},
    },
};

/// Asks and judges.
pub(super) async fn check(settings: &Settings) -> Result<Vec<Finding>> {
    let client = ask(settings).await?;
    let server = server_facts(&client).await?;
    let mut findings = of_server(&server, settings);
    if server.version_number < VERSION_MIN {
        // The other questions are not understood by so old a server.
        return Ok(findings);
    }
    let role = role_privileges(&client).await?;
    findings.extend(of_role(&role, duties(settings)));
    if let Some(source) = &settings.source {
        let tables = tables_in_scope(&client, &source.scope).await?;
        let published = publication(&client, &source.publication).await?;
        let slot = slot(&client, &source.slot).await?;
        findings.extend(of_tables(&tables, source));
        findings.extend(of_publication(published.as_ref(), &tables, &role, source));
        findings.extend(of_slot(slot.as_ref(), &server, source));
    }
    Ok(findings)
}

async fn ask(settings: &Settings) -> Result<Connection> {
    connect(&settings.database, "landfall check").await
}

fn duties(settings: &Settings) -> Duties {
    Duties { source: settings.source.is_some(), sink: !settings.links.is_empty() }
}

/// The statements that let the role of the settings do its work, for a superuser, in the database of the
/// settings. For a link they name every table the role may not write. None where nothing is missing.
pub(super) async fn grants(settings: &Settings) -> Result<Vec<String>> {
    let client = ask(settings).await?;
    let role = role_privileges(&client).await?;
    let mut sql: Vec<String> = lacking(&role, duties(settings)).into_iter().map(|lack| lack.sql).collect();
    if let Some(source) = &settings.source {
        let tables = tables_in_scope(&client, &source.scope).await?;
        let published = publication(&client, &source.publication).await?;
        let findings = of_publication(published.as_ref(), &tables, &role, source);
        let refused = findings.into_iter().filter(|finding| finding.severity == Severity::Error);
        sql.extend(refused.filter_map(|finding| finding.mend));
    }
    if !settings.links.is_empty() {
        // Which of them a link writes to, only its stream says.
        let tables = tables_not_writable(&client).await?;
        sql.extend((!tables.is_empty()).then(|| {
            let grants = write_tables(&role.role, &tables);
            format!("-- every table there is: strike out what no other region sends\n{grants}")
        }));
        let schemas = type_schemas_not_usable(&client).await?;
        sql.extend((!schemas.is_empty()).then(|| use_schemas(&role.role, &schemas)));
    }
    Ok(sql)
}

fn error(id: &'static str, evidence: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding::new(id, Severity::Error, evidence).mended_by(mend)
}

fn warning(id: &'static str, evidence: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding::new(id, Severity::Warning, evidence).mended_by(mend)
}

fn of_server(server: &ServerFacts, settings: &Settings) -> Vec<Finding> {
    let mut findings = Vec::new();
    if server.version_number < VERSION_MIN {
        findings.push(error(
            "server-version",
            format!("PostgreSQL {} is older than 15", server.version),
            "upgrade the server to PostgreSQL 15 or newer",
        ));
    }
    if server.in_recovery {
        findings.push(error(
            "server-standby",
            "the server is a standby: it can neither be written to nor keep the slot",
            "point database.url at the primary",
        ));
    }
    if settings.source.is_some() && server.wal_level != "logical" {
        findings.push(error(
            "wal-level",
            format!("wal_level is {}, a source needs logical", server.wal_level),
            "ALTER SYSTEM SET wal_level = logical;  -- then restart the server",
        ));
    }
    if !server.track_commit_timestamp {
        findings.push(warning(
            "track-commit-timestamp",
            "track_commit_timestamp is off: rows keep no version to resolve conflicts by",
            "ALTER SYSTEM SET track_commit_timestamp = on;  -- then restart the server",
        ));
    }
    if settings.source.is_some() && server.slot_keep_bytes.is_none() {
        findings.push(Finding::new(
            "slot-unlimited",
            Severity::Note,
            "max_slot_wal_keep_size is unlimited: while this region's Kafka is away the log stays on the \
             server's disk",
        ));
    }
    let links = settings.links.len() as i64;
    if server.origins_used + links > server.origins_max {
        findings.push(warning(
            "origins-left",
            format!(
                "{} of {} replication origins exist, and {links} link(s) may need one each",
                server.origins_used, server.origins_max
            ),
            "raise max_replication_slots (from PostgreSQL 18 on: max_active_replication_origins), restart",
        ));
    }
    findings
}

fn of_role(role: &RolePrivileges, duties: Duties) -> Vec<Finding> {
    lacking(role, duties).into_iter().map(|lack| error(lack.id, lack.evidence, lack.sql)).collect()
}

fn of_tables(tables: &[TableFacts], source: &SourceSettings) -> Vec<Finding> {
    let mut findings = Vec::new();
    if tables.is_empty() {
        findings.push(error(
            "scope-empty",
            format!("no table matches {}", source.scope),
            "correct source.tables, or create the tables",
        ));
    }
    for pattern in &source.scope.0 {
        let named = pattern.as_table();
        let there = |(schema, table)| tables.iter().any(|it| it.schema == schema && it.table == table);
        if !tables.is_empty() && named.is_some_and(|named| !there(named)) {
            findings.push(warning(
                "table-missing",
                format!("there is no table {}", pattern.as_str()),
                "correct source.tables, or create the table",
            ));
        }
    }
    for table in tables {
        let (name, sql) =
            (format!("{}.{}", table.schema, table.table), qualified(&table.schema, &table.table));
        if !table.logged {
            findings.push(warning(
                "table-unlogged",
                format!("{name} is unlogged: its changes are not in the log and are not carried"),
                format!("ALTER TABLE {sql} SET LOGGED;"),
            ));
        } else if !table.identity_usable {
            findings.push(warning(
                "replica-identity",
                format!("{name} has no usable replica identity, and is left out"),
                format!("ALTER TABLE {sql} ADD PRIMARY KEY (...);  -- or: ALTER TABLE {sql} REPLICA IDENTITY FULL;"),
            ));
        }
    }
    findings
}

fn of_publication(
    published: Option<&PublicationFacts>,
    tables: &[TableFacts],
    role: &RolePrivileges,
    source: &SourceSettings,
) -> Vec<Finding> {
    let name = quoted(&source.publication);
    let carried: Vec<&TableFacts> = tables.iter().filter(|table| table.is_usable()).collect();
    let list = |tables: &[&TableFacts]| {
        let names: Vec<String> = tables.iter().map(|table| qualified(&table.schema, &table.table)).collect();
        names.join(", ")
    };
    let Some(published) = published else {
        if carried.is_empty() {
            return Vec::new();
        }
        let owns_all = carried.iter().all(|table| table.owner == role.role);
        let able = role.superuser || (role.create_on_database && owns_all);
        let severity = if able { Severity::Note } else { Severity::Error };
        let who =
            if able { "the first start creates it" } else { "the role may not create it: its owner must" };
        let evidence = format!("there is no publication {}; {who}", source.publication);
        let sql = create_publication(&source.publication, &carried);
        return vec![Finding::new("publication-missing", severity, evidence).mended_by(sql)];
    };
    let mut findings = Vec::new();
    let missing: Vec<&TableFacts> = carried
        .iter()
        .filter(|table| published.find(&table.schema, &table.table).is_none())
        .copied()
        .collect();
    if !missing.is_empty() {
        findings.push(error(
            "publication-tables",
            format!(
                "the publication {} lacks {} table(s) of the scope: {}",
                source.publication,
                missing.len(),
                list(&missing)
            ),
            format!("ALTER PUBLICATION {name} ADD TABLE {};", list(&missing)),
        ));
    }
    if !published.operations_missing.is_empty() {
        findings.push(error(
            "publication-operations",
            format!(
                "the publication {} leaves out {}",
                source.publication,
                published.operations_missing.join(", ")
            ),
            format!("ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate');"),
        ));
    }
    let parted = tables.iter().find(|table| table.partitioned);
    if let Some(table) = parted.filter(|_| !published.via_root) {
        findings.push(error(
            "publication-partitions",
            format!(
                "the publication {} publishes {} partition by partition, not as one table",
                source.publication,
                table.name()
            ),
            format!("ALTER PUBLICATION {name} SET (publish_via_partition_root = true);"),
        ));
    }
    for table in &published.tables {
        let (said, sql) =
            (format!("{}.{}", table.schema, table.table), qualified(&table.schema, &table.table));
        let facts = tables.iter().find(|facts| facts.schema == table.schema && facts.table == table.table);
        let anew =
            format!("ALTER PUBLICATION {name} DROP TABLE {sql}; ALTER PUBLICATION {name} ADD TABLE {sql};");
        if facts.is_some()
            && let Some(filter) = &table.row_filter
        {
            findings.push(error(
                "publication-row-filter",
                format!(
                    "the publication {} lets only rows of {said} through where {filter}",
                    source.publication
                ),
                anew.clone(),
            ));
        }
        if facts.is_some() && !table.columns_left_out.is_empty() {
            findings.push(error(
                "publication-columns",
                format!(
                    "the publication {} leaves out columns of {said}: {}",
                    source.publication,
                    table.columns_left_out.join(", ")
                ),
                anew,
            ));
        }
        if facts.is_some_and(|facts| !facts.identity_usable) {
            findings.push(error(
                "publication-breaks-updates",
                format!("{said} is published without a replica identity: the application's UPDATEs and DELETEs fail"),
                if published.all_tables {
                    format!("ALTER TABLE {sql} REPLICA IDENTITY FULL;")
                } else {
                    format!("ALTER PUBLICATION {name} DROP TABLE {sql};")
                },
            ));
        }
    }
    findings
}

fn of_slot(slot: Option<&SlotFacts>, server: &ServerFacts, source: &SourceSettings) -> Vec<Finding> {
    let mut findings = Vec::new();
    let name = &source.slot;
    let Some(slot) = slot else {
        if server.slots_used >= server.slots_max {
            findings.push(error(
                "slots-left",
                format!("all {} replication slots are taken, and {name} is not among them", server.slots_max),
                "drop a slot nobody reads, or raise max_replication_slots and restart",
            ));
        }
        findings.extend(senders(server));
        return findings;
    };
    if slot.plugin.as_deref() != Some("pgoutput") || slot.database.as_deref() != Some(&*server.database) {
        let (plugin, database) = (slot.plugin.as_deref(), slot.database.as_deref());
        findings.push(error(
            "slot-foreign",
            format!(
                "the slot {name} is for {} in {}, not for pgoutput in {}",
                plugin.unwrap_or("physical replication"),
                database.unwrap_or("no database"),
                server.database
            ),
            "set source.slot to another name",
        ));
    } else if slot.is_lost() {
        let why = slot.invalidation.as_deref().unwrap_or("it was over max_slot_wal_keep_size");
        findings.push(error(
            "slot-lost",
            format!(
                "the server invalidated the slot {name} ({why}): the changes it held are gone from the server"
            ),
            "raise max_slot_wal_keep_size, and copy the tables anew under a new incarnation",
        ));
    } else if slot.wal_status.as_deref() == Some("unreserved") {
        findings.push(warning(
            "slot-unreserved",
            format!("the slot {name} is over its limit, and is lost at the next checkpoint"),
            "start the source now, or raise max_slot_wal_keep_size and reload",
        ));
    }
    match slot.active_pid {
        Some(pid) => findings.push(Finding::new(
            "slot-active",
            Severity::Note,
            format!("the slot {name} is being read, by the server process {pid}"),
        )),
        None => findings.extend(senders(server)),
    }
    findings
}

fn senders(server: &ServerFacts) -> Option<Finding> {
    (server.senders_used >= server.senders_max).then(|| {
        error(
            "senders-left",
            format!("all {} senders are at work", server.senders_max),
            "raise max_wal_senders and restart",
        )
    })
}

#[cfg(test)]
mod tests;
