//! What stands in the way in the database: asked of its catalogs, then judged without it.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use super::{
    Finding, Kind, Options, Severity, clocks, disk, error, halt, kafka::Streams, note, of_fault, pair, room,
    tables, target, warning,
};
use crate::{
    clock,
    config::{Settings, SourceSettings},
    fault::{Code, Result},
    names::{self, qualified, quoted},
    postgres::{
        Connection,
        catalog::{
            NAME_STANDBYS, PublicationFacts, RolePrivileges, ServerFacts, SlotFacts, TableFacts, Unlike,
            VERSION_MIN, is_among, publication, role_privileges, server_facts, slot, system_identity,
            tables_in_scope, tables_not_writable, type_schemas_not_usable,
        },
        connect,
        grants::{
            Duties, Lack, Privilege, connect_to, create_publication, lacking, publish_also, publish_whole,
            use_schemas, write_tables,
        },
        own,
        tables::{shapes, traits},
    },
    region::Region,
    scope::Scope,
    sink::ORIGINS_LEFT,
    source::postgres::anew,
    stamp::Micros,
};

/// The least time the log's growth is watched for.
const RATE_SPAN: Duration = Duration::from_secs(1);

/// Asks and judges.
pub(super) async fn check(settings: &Settings, options: &Options, streams: &Streams) -> Result<Vec<Finding>> {
    let client = ask(settings).await?;
    let before = clock::now();
    let server = server_facts(&client).await?;
    let (after, since) = (clock::now(), Instant::now());
    let mut findings = of_server(&server, settings);
    findings.push(clocks::asked("the clock of the database", before, Micros(server.clock), after));
    if server.version_number < VERSION_MIN {
        // The other questions are not understood by so old a server.
        return Ok(findings);
    }
    let role = role_privileges(&client).await?;
    let mut lacks = lacking(&role, duties(settings));
    lacks.extend(own::lacking(&client, &own_tables(settings)).await?);
    // What the role may not read says nothing.
    let readable = lacks.iter().all(|lack| lack.privilege != Privilege::Schema);
    findings.extend(of_lacks(lacks));
    let other = match &options.against {
        Some(other) => match connect(&other.database, "landfall check").await {
            Ok(client) => Some(Other { settings: other, client }),
            // What there is to say of this region is said all the same.
            Err(fault) => {
                let fault = fault.at(format_args!("the database of {}", other.region));
                findings.push(of_fault(Kind::DatabaseAnswer, &fault));
                None
            }
        },
        None => None,
    };
    let slot = match &settings.source {
        Some(source) => {
            let found = tables_in_scope(&client, &source.scope).await?;
            let published = publication(&client, &source.publication).await?;
            findings.extend(tables::of_scope(&found, source));
            findings.extend(tables::of_traits(&traits(&client, &source.scope).await?));
            let known = match readable {
                true => anew::known(&client, &source.stream, &source.slot).await?,
                false => anew::Known { slot: slot(&client, &source.slot).await?, ..anew::Known::default() },
            };
            let system = system_identity(&client).await?.system_identifier.to_string();
            findings.extend(of_system(&known, &system, source));
            findings.extend(of_sharing(&known, source));
            findings.extend(of_publication(published.as_ref(), &found, &role, source, known.is_live));
            findings.extend(of_slot(known.slot.as_ref(), &server, source, known.is_live));
            known.slot
        }
        None => None,
    };
    for (link, stream) in settings.links.iter().zip(streams) {
        let authority = match other.as_ref().filter(|other| other.settings.region == link.from) {
            Some(other) => match &other.settings.source {
                Some(source) => Some(carried(&other.client, &source.scope).await?),
                None => None,
            },
            None => None,
        };
        // Brokers that do not answer say nothing of the topic; it is not taken for gone.
        let Some(stream) = stream else { continue };
        match target::of_link(&client, link, stream.as_ref(), authority.as_deref()).await {
            Ok(found) => findings.extend(found),
            // What there is to say of the others, and of the role, is said all the same.
            Err(fault) => {
                let fault = fault.at(format_args!("look at the link from {}", link.from));
                findings.push(of_fault(Kind::DatabaseAnswer, &fault));
            }
        }
    }
    findings.extend(of_other(settings, &client, other.as_ref(), options.deep).await?);
    if settings.source.is_some() {
        // Watched while everything else was asked.
        sleep(RATE_SPAN.saturating_sub(since.elapsed())).await;
        let (grown, seconds) = (server_facts(&client).await?.wal_bytes - server.wal_bytes, since.elapsed());
        let rate = grown.max(0) as f64 / seconds.as_secs_f64();
        let free = disk::of_server(&settings.database, server.data_directory.as_deref());
        findings.extend(room::of_log(server.slot_keep_bytes, slot.as_ref(), free.as_ref(), rate));
    }
    Ok(findings)
}

/// Another region, whose database can be asked too.
struct Other<'a> {
    settings: &'a Settings,
    client: Connection,
}

/// The shapes of what is carried: what could not be is a finding of its own.
async fn carried(client: &Connection, scope: &Scope) -> Result<Vec<crate::change::Shape>> {
    let tables = tables_in_scope(client, scope).await?;
    let mut shapes = shapes(client, scope).await?;
    shapes.retain(|shape| {
        let same = |table: &&TableFacts| *table.schema == *shape.schema && *table.table == *shape.table;
        tables.iter().find(same).is_some_and(TableFacts::is_usable)
    });
    Ok(shapes)
}

/// What both regions' databases, held against each other, show.
async fn of_other(
    settings: &Settings,
    client: &Connection,
    other: Option<&Other<'_>>,
    deep: bool,
) -> Result<Vec<Finding>> {
    let Some(other) = other else {
        let evidence = "whether tables look equal on both sides cannot be told from one side";
        return Ok(vec![note(Kind::TablesUntold, evidence).mended_by(
            "landfall check --against FILE, with the other region's settings; --deep counts rows",
        )]);
    };
    let (here, there) = (&settings.region, &other.settings.region);
    let mut findings = Vec::new();
    let before = clock::now();
    let theirs = server_facts(&other.client).await?.clock;
    let whose = format!("the clock of the database of {there}");
    findings.push(clocks::asked(&whose, before, Micros(theirs), clock::now()));
    let linked = |to: &Settings, from: &Region| to.links.iter().any(|link| link.from == *from);
    let mut paired = false;
    if let Some(source) = other.settings.source.as_ref().filter(|_| linked(settings, there)) {
        let between = format!("{there} to {here}");
        let shapes = carried(&other.client, &source.scope).await?;
        findings.extend(pair::of_rows(&other.client, client, &source.scope, &shapes, &between, deep).await?);
        paired = true;
    }
    if let Some(source) = settings.source.as_ref().filter(|_| linked(other.settings, here)) {
        let between = format!("{here} to {there}");
        let shapes = carried(client, &source.scope).await?;
        findings.extend(pair::of_rows(client, &other.client, &source.scope, &shapes, &between, deep).await?);
        for link in other.settings.links.iter().filter(|link| link.from == *here) {
            findings.extend(target::of_tables(&other.client, link, &shapes, there).await?);
        }
        paired = true;
    }
    if !paired {
        let evidence =
            format!("neither of {here} and {there} links to the other: there is nothing to compare");
        findings.push(note(Kind::TablesUntold, evidence));
    }
    Ok(findings)
}

async fn ask(settings: &Settings) -> Result<Connection> {
    connect(&settings.database, "landfall check").await
}

fn duties(settings: &Settings) -> Duties {
    Duties { source: settings.source.is_some(), sink: !settings.links.is_empty() }
}

/// Whether the source's stream has begun, as far as its database says: what is missing then is gone.
pub(super) async fn has_begun(settings: &Settings, source: &SourceSettings) -> bool {
    let known = async || anew::known(&*ask(settings).await?, &source.stream, &source.slot).await;
    known().await.is_ok_and(|known| known.is_live)
}

/// The tables of ours that the settings' work needs.
fn own_tables(settings: &Settings) -> Vec<&'static str> {
    let Duties { source, sink } = duties(settings);
    let of = |needed: bool, tables: &'static [&'static str]| if needed { tables } else { &[] };
    [of(source, crate::source::postgres::OWN_TABLES), of(sink, crate::sink::postgres::OWN_TABLES)].concat()
}

/// The statements that let the role of the settings do its work, for a superuser, in the database of the
/// settings. For a link they name every table the role may not write. None where nothing is missing.
pub(super) async fn grants(settings: &Settings) -> Result<Vec<String>> {
    grants_of(&*ask(settings).await?, settings, None).await
}

/// The statements that let the current role of a session do the work of the settings; for a link, on the
/// tables in `scope` or else on every one, since only its stream says which it writes to.
///
/// # Errors
/// Where the database does not answer.
pub async fn grants_of(client: &Client, settings: &Settings, scope: Option<&Scope>) -> Result<Vec<String>> {
    let role = role_privileges(client).await?;
    let mut sql = Vec::new();
    sql.extend((!role.connect_to_database).then(|| connect_to(&role.role, &role.database)));
    let mut lacks = lacking(&role, duties(settings));
    lacks.extend(own::lacking(client, &own_tables(settings)).await?);
    sql.extend(lacks.into_iter().map(|lack| lack.sql));
    if let Some(source) = &settings.source {
        let tables = tables_in_scope(client, &source.scope).await?;
        let published = publication(client, &source.publication).await?;
        let findings = of_publication(published.as_ref(), &tables, &role, source, false);
        let refused = findings.into_iter().filter(|finding| finding.severity == Severity::Error);
        sql.extend(refused.filter_map(|finding| finding.mend));
    }
    if !settings.links.is_empty() {
        let mut tables = tables_not_writable(client).await?;
        let strike = match scope {
            Some(scope) => {
                tables.retain(|(schema, table)| scope.holds(schema, table));
                ""
            }
            None => "-- every table there is: strike out what no other region sends\n",
        };
        sql.extend((!tables.is_empty()).then(|| format!("{strike}{}", write_tables(&role.role, &tables))));
        let schemas = type_schemas_not_usable(client).await?;
        sql.extend((!schemas.is_empty()).then(|| use_schemas(&role.role, &schemas)));
    }
    Ok(sql)
}

fn of_server(server: &ServerFacts, settings: &Settings) -> Vec<Finding> {
    let mut findings = Vec::new();
    if server.version_number < VERSION_MIN {
        findings.push(error(
            Kind::ServerVersion,
            format!("PostgreSQL {} is older than 15", server.version),
            "upgrade the server to PostgreSQL 15 or newer",
        ));
    }
    if server.in_recovery {
        findings.push(error(
            Kind::ServerStandby,
            "the server is a standby: it can neither be written to nor keep the slot",
            "point database.url at the primary",
        ));
    }
    if settings.source.is_some() && server.wal_level != "logical" {
        findings.push(error(
            Kind::WalLevel,
            format!("wal_level is {}, a source needs logical", server.wal_level),
            "ALTER SYSTEM SET wal_level = logical;  -- then restart the server",
        ));
    }
    if !server.track_commit_timestamp {
        let evidence = "track_commit_timestamp is off: rows keep no version, which a table with several writing regions would need";
        let sql = "ALTER SYSTEM SET track_commit_timestamp = on;  -- then restart the server";
        findings.push(note(Kind::TrackCommitTimestamp, evidence).mended_by(sql));
    }
    if let Some(source) = &settings.source
        && is_among(&server.standby_names, &names::capture_session(&source.stream))
    {
        findings.push(warning(
            Kind::SynchronousStandby,
            format!(
                "synchronous_standby_names is {}: it takes the session that reads the slot for a synchronous standby",
                server.standby_names
            ),
            NAME_STANDBYS,
        ));
    }
    if let Some(timeout) = server.slot_idle_timeout.as_ref().filter(|_| settings.source.is_some()) {
        findings.push(warning(
            Kind::SlotIdle,
            format!("idle_replication_slot_timeout is {timeout}: the server gives up a slot that nobody has read for so long, and the stream with it"),
            "ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();",
        ));
    }
    let wanted = settings
        .links
        .iter()
        .flat_map(|link| (0..link.copy_sessions).map(|lane| names::origin(&link.from, &link.stream, lane)));
    let missing = wanted.filter(|origin| !server.origins.contains(origin)).count();
    // Sessions that copy are content with fewer, and leave some.
    let left = if settings.links.iter().any(|link| link.copy_sessions > 1) { ORIGINS_LEFT } else { 0 };
    if missing > 0 && (server.origins.len() + missing) as i64 + left > server.origins_max {
        findings.push(warning(
            Kind::OriginsLeft,
            format!(
                "{} of {} replication origins exist, and the links need {missing} more, one for each of their `copy_sessions`",
                server.origins.len(),
                server.origins_max
            ),
            "raise max_replication_slots (from PostgreSQL 18 on: max_active_replication_origins), restart",
        ));
    }
    findings
}

fn of_lacks(lacks: Vec<Lack>) -> impl Iterator<Item = Finding> {
    let kind = |privilege| match privilege {
        Privilege::Replication => Kind::RoleReplication,
        Privilege::SessionReplicationRole => Kind::RoleSessionReplicationRole,
        Privilege::OriginFunctions => Kind::RoleOriginFunctions,
        Privilege::Schema => Kind::Schema,
    };
    lacks.into_iter().map(move |lack| error(kind(lack.privilege), lack.evidence, lack.sql))
}

fn of_publication(
    published: Option<&PublicationFacts>,
    tables: &[TableFacts],
    role: &RolePrivileges,
    source: &SourceSettings,
    live: bool,
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
        let sql = create_publication(&source.publication, &carried);
        if live {
            let evidence = format!(
                "there is no publication {}, and stream {} has begun",
                source.publication, source.stream
            );
            return vec![error(Kind::PublicationMissing, evidence, sql)];
        }
        let owns_all = carried.iter().all(|table| table.owner == role.role);
        let able = role.superuser || (role.create_on_database && owns_all);
        let severity = if able { Severity::Note } else { Severity::Error };
        let who =
            if able { "the first start creates it" } else { "the role may not create it: its owner must" };
        let evidence = format!("there is no publication {}; {who}", source.publication);
        return vec![Finding::new(Kind::PublicationMissing, severity, evidence).mended_by(sql)];
    };
    let mut findings = Vec::new();
    let own = published.all_tables || published.tables.iter().any(|table| table.schema == names::SCHEMA);
    if own && !carried.is_empty() {
        findings.push(error(
            Kind::PublicationOwnTables,
            format!(
                "the publication {} publishes the schema {} too, which is Landfall's own",
                source.publication,
                names::SCHEMA
            ),
            format!(
                "BEGIN; DROP PUBLICATION {name}; {} COMMIT;  -- where others read it, name another in source.publication",
                create_publication(&source.publication, &carried)
            ),
        ));
    }
    let missing: Vec<&TableFacts> = carried
        .iter()
        .filter(|table| published.find(&table.schema, &table.table).is_none())
        .copied()
        .collect();
    if !missing.is_empty() {
        findings.push(error(
            Kind::PublicationTables,
            format!(
                "the publication {} lacks {} table(s) of the scope: {}",
                source.publication,
                missing.len(),
                list(&missing)
            ),
            publish_also(&source.publication, &list(&missing)),
        ));
    }
    if !published.operations_missing.is_empty() {
        findings.push(error(
            Kind::PublicationOperations,
            format!(
                "the publication {} leaves out {}",
                source.publication,
                published.operations_missing.join(", ")
            ),
            format!("ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate');"),
        ));
    }
    if published.generated {
        findings.push(error(
            Kind::PublicationColumns,
            format!(
                "the publication {} publishes generated columns, which each region computes itself",
                source.publication
            ),
            format!("ALTER PUBLICATION {name} SET (publish_generated_columns = none);"),
        ));
    }
    let parted = tables.iter().find(|table| table.partitioned);
    if let Some(table) = parted.filter(|_| !published.via_root) {
        findings.push(error(
            Kind::PublicationPartitions,
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
        let anew = publish_whole(&source.publication, &sql);
        if facts.is_some()
            && let Some(filter) = &table.row_filter
        {
            findings.push(error(
                Kind::PublicationRowFilter,
                format!(
                    "the publication {} lets only rows of {said} through where {filter}",
                    source.publication
                ),
                anew.clone(),
            ));
        }
        if facts.is_some() && !table.columns_left_out.is_empty() {
            findings.push(error(
                Kind::PublicationColumns,
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
                Kind::PublicationBreaksUpdates,
                format!("{said} is published without a replica identity: the application's UPDATEs and DELETEs fail"),
                if published.all_tables {
                    format!("ALTER TABLE {sql} REPLICA IDENTITY FULL;")
                } else {
                    format!("ALTER PUBLICATION {name} DROP TABLE {sql};")
                },
            ));
        } else if let Some(unlike) = facts.and_then(|facts| facts.unlike.as_ref())
            && matches!(unlike.fault, Unlike::Identity(_))
        {
            findings.push(error(
                Kind::PublicationBreaksUpdates,
                format!(
                    "{said} is published, and UPDATEs and DELETEs of some of its rows fail or do not say what the row was: {}",
                    unlike.why()
                ),
                unlike.mend(),
            ));
        }
    }
    findings
}

/// Whether the server is the one that the stream came from.
fn of_system(known: &anew::Known, system: &str, source: &SourceSettings) -> Option<Finding> {
    let other = known.system.as_ref().filter(|other| known.is_live && *other != system)?;
    let evidence =
        format!("stream {} came from system {other}, this server is system {system}", source.stream);
    Some(halt(Kind::ServerChanged, Code::ServerChanged, &evidence))
}

/// Whether the slot is this stream's alone.
fn of_sharing(known: &anew::Known, source: &SourceSettings) -> Option<Finding> {
    let other = known.slot_of.as_ref()?;
    let evidence = format!("the slot {} is that of stream {other}", source.slot);
    Some(error(Kind::SlotForeign, evidence, "set source.slot to another name"))
}

fn of_slot(
    slot: Option<&SlotFacts>,
    server: &ServerFacts,
    source: &SourceSettings,
    live: bool,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let name = &source.slot;
    let Some(slot) = slot else {
        if live {
            let evidence = format!("there is no slot {name}, and stream {} has begun", source.stream);
            return vec![halt(Kind::SlotMissing, Code::SlotMissing, &evidence)];
        }
        if server.slots_used >= server.slots_max {
            findings.push(error(
                Kind::SlotsLeft,
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
            Kind::SlotForeign,
            format!(
                "the slot {name} is for {} in {}, not for pgoutput in {}",
                plugin.unwrap_or("physical replication"),
                database.unwrap_or("no database"),
                server.database
            ),
            "set source.slot to another name",
        ));
    } else if slot.is_lost() {
        let why = slot.invalidation.as_deref().unwrap_or("the server removed log it needed");
        let evidence = format!(
            "the server invalidated the slot {name} ({why}): the changes it held are gone from the server"
        );
        findings.push(if live {
            halt(Kind::SlotLost, Code::SlotLost, &evidence)
        } else {
            error(
                Kind::SlotLost,
                evidence,
                format!(
                    "SELECT pg_drop_replication_slot({});  -- the stream has not begun",
                    names::literal(name)
                ),
            )
        });
    } else if slot.wal_status.as_deref() == Some("unreserved") {
        findings.push(warning(
            Kind::SlotUnreserved,
            format!("the slot {name} is over its limit, and is lost at the next checkpoint"),
            "start the source now, or raise max_slot_wal_keep_size and reload",
        ));
    }
    match slot.active_pid {
        Some(pid) => findings.push(Finding::new(
            Kind::SlotActive,
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
            Kind::SendersLeft,
            format!("all {} senders are at work", server.senders_max),
            "raise max_wal_senders and restart",
        )
    })
}

#[cfg(test)]
mod tests;
