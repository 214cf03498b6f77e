//! Questions to a server's catalogs, with typed answers: what it is set to, what our role may do,
//! which tables there are, what is published, how a slot stands.
//!
//! Every statement runs with no privilege beyond CONNECT, on PostgreSQL 15 to 18, so that `check` can
//! say what is missing instead of failing on it. Columns that came with a later version are read
//! through `to_jsonb`, and are unknown before it.

use tokio_postgres::{Client, Row, error::SqlState};

use super::fault_of;
use crate::{
    fault::{Code, Fault, Result},
    lsn::Lsn,
    names::qualified,
    scope::Scope,
};

/// The oldest version that is supported: `has_parameter_privilege`, and row filters that are shown.
pub const VERSION_MIN: i32 = 150_000;

/// What the server is, and how much of what replication needs is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFacts {
    /// As a number: 150004 is 15.4.
    pub version_number: i32,
    /// As the server writes it.
    pub version: String,
    /// `wal_level`.
    pub wal_level: String,
    /// `track_commit_timestamp`.
    pub track_commit_timestamp: bool,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// `max_replication_slots`.
    pub slots_max: i64,
    /// Slots there are.
    pub slots_used: i64,
    /// `max_wal_senders`.
    pub senders_max: i64,
    /// Senders at work.
    pub senders_used: i64,
    /// How many origins may be in use at once.
    pub origins_max: i64,
    /// The names of those there are.
    pub origins: Vec<String>,
    /// `max_slot_wal_keep_size` in bytes; none where it is unlimited.
    pub slot_keep_bytes: Option<i64>,
    /// `idle_replication_slot_timeout` as it is shown; none where it is never, as before PostgreSQL 18.
    pub slot_idle_timeout: Option<String>,
    /// Where the server keeps its files, where the role may know.
    pub data_directory: Option<String>,
    /// Where its log ends, as a count of bytes.
    pub wal_bytes: i64,
    /// The server's clock, in microseconds since 1970.
    pub clock: i64,
    /// The database we are connected to.
    pub database: String,
    /// `synchronous_standby_names`.
    pub standby_names: String,
}

/// Asks what the server is.
///
/// # Errors
/// Where the server does not answer.
pub async fn server_facts(client: &Client) -> Result<ServerFacts> {
    let row = one(client, "ask for the server's settings", SERVER_FACTS, &[]).await?;
    Ok(ServerFacts {
        version_number: row.get(0),
        version: row.get(1),
        wal_level: row.get(2),
        track_commit_timestamp: row.get(3),
        in_recovery: row.get(4),
        slots_max: row.get(5),
        slots_used: row.get(6),
        senders_max: row.get(7),
        senders_used: row.get(8),
        origins_max: row.get(9),
        origins: row.get(10),
        slot_keep_bytes: row.get(11),
        slot_idle_timeout: row.get(12),
        data_directory: row.get(13),
        wal_bytes: row.get(14),
        clock: row.get(15),
        database: row.get(16),
        standby_names: row.get(17),
    })
}

const SERVER_FACTS: &str = "
    SELECT current_setting('server_version_num')::int,
           current_setting('server_version'),
           current_setting('wal_level'),
           current_setting('track_commit_timestamp')::bool,
           pg_is_in_recovery(),
           current_setting('max_replication_slots')::int8,
           (SELECT count(*) FROM pg_replication_slots),
           current_setting('max_wal_senders')::int8,
           (SELECT count(*) FROM pg_stat_replication),
           coalesce(current_setting('max_active_replication_origins', true),
                    current_setting('max_replication_slots'))::int8,
           ARRAY(SELECT roname FROM pg_replication_origin),
           (SELECT CASE WHEN setting::int8 < 0 THEN NULL ELSE setting::int8 * 1048576 END
              FROM pg_settings WHERE name = 'max_slot_wal_keep_size'),
           nullif(current_setting('idle_replication_slot_timeout', true), '0'),
           (SELECT setting FROM pg_settings WHERE name = 'data_directory'),
           (CASE WHEN pg_is_in_recovery() THEN coalesce(pg_last_wal_replay_lsn(), '0/0')
                 ELSE pg_current_wal_lsn() END - '0/0'::pg_lsn)::int8,
           (extract(epoch FROM clock_timestamp()) * 1000000)::int8,
           current_database()::text,
           current_setting('synchronous_standby_names')";

/// The SQL that names a server's standbys: those that hold its data.
pub const NAME_STANDBYS: &str = "ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (NAMES OF YOUR STANDBYS)'; SELECT pg_reload_conf();";

/// Whether the server takes a session that reads its log under this name for a synchronous standby: one that reads a
/// slot may be one as well. Its own rule: every name, or this one in whatever case.
///
/// # Errors
/// Where the server does not answer.
pub async fn is_standby(client: &Client, application: &str) -> Result<bool> {
    let sql = "SELECT current_setting('synchronous_standby_names')";
    let row = one(client, "ask whom the server waits for", sql, &[]).await?;
    Ok(is_among(row.get(0), application))
}

/// Whether a session of this name is among `synchronous_standby_names`.
pub fn is_among(standby_names: &str, application: &str) -> bool {
    let is_it = |name: &str| name == "*" || name.eq_ignore_ascii_case(application);
    // Every other part stands between quotes.
    standby_names.split('"').enumerate().any(|(at, part)| {
        if at % 2 == 1 {
            is_it(part)
        } else {
            part.split(|c: char| c.is_whitespace() || ",()".contains(c)).any(is_it)
        }
    })
}

/// What our role may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolePrivileges {
    /// Its name.
    pub role: String,
    /// Whether it is a superuser.
    pub superuser: bool,
    /// Whether it may read the log: the attribute, or what stands for it on a managed server.
    pub replication: bool,
    /// Whether it may `SET session_replication_role`.
    pub set_replication_role: bool,
    /// The replication-origin functions it may not execute, with their arguments.
    pub origin_functions_missing: Vec<String>,
    /// Whether it may connect to the database: asked as another role, it need not.
    pub connect_to_database: bool,
    /// Whether it may create schemas in the database.
    pub create_on_database: bool,
    /// Who owns the schema `landfall`, where it is there.
    pub schema_owner: Option<String>,
    /// Whether the role may use that schema, and create in it.
    pub schema_usable: bool,
    /// The database all this holds for.
    pub database: String,
}

/// Asks what our role may do.
///
/// # Errors
/// Where the server does not answer, or is older than [`VERSION_MIN`].
pub async fn role_privileges(client: &Client) -> Result<RolePrivileges> {
    let row = one(client, "ask for the role's privileges", ROLE_PRIVILEGES, &[]).await?;
    Ok(RolePrivileges {
        role: row.get(0),
        superuser: row.get(1),
        replication: row.get(2),
        set_replication_role: row.get(3),
        origin_functions_missing: row.get(4),
        connect_to_database: row.get(5),
        create_on_database: row.get(6),
        schema_owner: row.get(7),
        schema_usable: row.get(8),
        database: row.get(9),
    })
}

const ROLE_PRIVILEGES: &str = "
    SELECT current_user::text,
           r.rolsuper,
           r.rolsuper OR r.rolreplication OR EXISTS (
               SELECT FROM pg_roles m
                WHERE m.rolname IN ('rds_replication', 'rds_superuser')
                  AND pg_has_role(current_user, m.oid, 'USAGE')),
           has_parameter_privilege('session_replication_role', 'SET'),
           ARRAY(SELECT p.oid::regprocedure::text FROM pg_proc p
                  WHERE p.pronamespace = 'pg_catalog'::regnamespace
                    AND p.proname IN ('pg_replication_origin_create', 'pg_replication_origin_oid',
                                      'pg_replication_origin_session_setup',
                                      'pg_replication_origin_xact_setup')
                    AND NOT has_function_privilege(p.oid, 'EXECUTE')
                  ORDER BY 1),
           has_database_privilege(current_database(), 'CONNECT'),
           has_database_privilege(current_database(), 'CREATE'),
           (SELECT pg_get_userbyid(n.nspowner)::text FROM pg_namespace n WHERE n.nspname = 'landfall'),
           coalesce((SELECT has_schema_privilege(n.oid, 'USAGE') AND has_schema_privilege(n.oid, 'CREATE')
                       FROM pg_namespace n WHERE n.nspname = 'landfall'), false),
           current_database()::text
      FROM pg_roles r WHERE r.rolname = current_user";

/// A table that could be carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableFacts {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub table: String,
    /// Its owner.
    pub owner: String,
    /// Whether its rows are spread over partitions.
    pub partitioned: bool,
    /// Whether its changes are in the log at all: an unlogged table's are not.
    pub logged: bool,
    /// `relreplident`: d(efault), i(ndex), f(ull), n(othing).
    pub identity: char,
    /// Whether updates and deletes name their row: FULL, or a valid, immediate key of the kind set.
    pub identity_usable: bool,
    /// A partition whose changes are not in the log as the table's are to be.
    pub unlike: Option<UnlikePartition>,
}

/// A partition that keeps its table from being carried: the server asks each partition, and not the table it is of, what
/// of an old row it logs, and whether it logs anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnlikePartition {
    /// Its name, quoted.
    pub name: String,
    /// How many more of the table's partitions are in the same way.
    pub more: i64,
    /// What is wrong with it.
    pub fault: Unlike,
}

/// What is wrong with a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unlike {
    /// It is a foreign table.
    Foreign,
    /// It is unlogged.
    Unlogged,
    /// It has another replica identity; what it should have, as it stands behind `REPLICA IDENTITY`.
    Identity(String),
}

impl UnlikePartition {
    /// What is wrong with it, by name.
    pub fn why(&self) -> String {
        let why = match &self.fault {
            Unlike::Foreign => "is a foreign table: its changes are not in the log",
            Unlike::Unlogged => "is unlogged: its changes are not in the log",
            Unlike::Identity(_) => {
                "has not the replica identity of its table, and each partition's own is what counts"
            }
        };
        let more = match self.more {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        format!("partition {}{more} {why}", self.name)
    }

    /// What puts it right: for all of them, where there are more.
    pub fn mend(&self) -> String {
        let (name, more) = (&self.name, self.more);
        let likewise =
            if more > 0 { format!("  -- and so {more} more of its partitions") } else { String::new() };
        match &self.fault {
            Unlike::Foreign => format!("detach {name}, or leave the table out of source.tables"),
            Unlike::Unlogged => format!("ALTER TABLE {name} SET LOGGED;{likewise}"),
            Unlike::Identity(wanted) => format!("ALTER TABLE {name} REPLICA IDENTITY {wanted};{likewise}"),
        }
    }
}

/// The tables in scope, by name. A partitioned table stands for its partitions, as it is published: how
/// rows are spread is each region's own affair.
///
/// # Errors
/// Where the server does not answer.
pub async fn tables_in_scope(client: &Client, scope: &Scope) -> Result<Vec<TableFacts>> {
    let rows = many(client, "list the tables", TABLES, &[]).await?;
    let tables = rows.iter().map(|row| TableFacts {
        schema: row.get(0),
        table: row.get(1),
        owner: row.get(2),
        partitioned: row.get(3),
        logged: row.get(4),
        identity: sign(row, 5),
        identity_usable: row.get(6),
        unlike: row.get::<_, Option<String>>(7).map(|name| UnlikePartition {
            name,
            more: row.get(8),
            fault: match (sign(row, 9), sign(row, 10)) {
                ('r', 'p') => Unlike::Identity(row.get(11)),
                ('r', _) => Unlike::Unlogged,
                _ => Unlike::Foreign,
            },
        }),
    });
    Ok(tables.filter(|table| scope.holds(&table.schema, &table.table)).collect())
}

/// A partition fits its table where it logs what the table says of an old row: all of it, or the columns of the same
/// index. Partitions are found without a lock on any of them: this is asked every few seconds.
const TABLES: &str = "
    WITH RECURSIVE keyed AS (
        SELECT i.indrelid, i.indexrelid FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
         WHERE i.indisvalid AND i.indimmediate
           AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END),
    part AS (
        SELECT c.oid AS root, c.oid AS part FROM pg_class c WHERE c.relkind = 'p' AND NOT c.relispartition
         UNION ALL
        SELECT p.root, h.inhrelid FROM part p JOIN pg_inherits h ON h.inhparent = p.part),
    unlike AS (
        SELECT DISTINCT ON (p.root) p.root, format('%I.%I', n.nspname, l.relname) AS name,
               count(*) OVER (PARTITION BY p.root) - 1 AS more, l.relkind::text, l.relpersistence::text,
               CASE r.relreplident
                   WHEN 'd' THEN 'DEFAULT'
                   WHEN 'i' THEN coalesce((
                       SELECT 'USING INDEX ' || quote_ident(x.relname)
                         FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
                        WHERE i.indrelid = l.oid AND pg_partition_root(i.indexrelid) = rk.indexrelid LIMIT 1), 'FULL')
                   ELSE 'FULL'
               END AS wanted
          FROM part p JOIN pg_class r ON r.oid = p.root JOIN pg_class l ON l.oid = p.part
          JOIN pg_namespace n ON n.oid = l.relnamespace
          LEFT JOIN keyed rk ON rk.indrelid = r.oid LEFT JOIN keyed lk ON lk.indrelid = l.oid
         WHERE l.relkind <> 'p'
           AND CASE
                   WHEN l.relkind <> 'r' OR l.relpersistence <> 'p' THEN true
                   WHEN l.relreplident = 'f' THEN false
                   WHEN r.relreplident = 'f' THEN true
                   WHEN rk.indexrelid IS NULL THEN false
                   ELSE pg_partition_root(lk.indexrelid) IS DISTINCT FROM rk.indexrelid
               END
         ORDER BY p.root, name)
    SELECT n.nspname::text, c.relname::text, pg_get_userbyid(c.relowner)::text, c.relkind = 'p',
           c.relpersistence = 'p', c.relreplident::text, c.relreplident = 'f' OR k.indexrelid IS NOT NULL,
           u.name, u.more, u.relkind, u.relpersistence, u.wanted
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN keyed k ON k.indrelid = c.oid LEFT JOIN unlike u ON u.root = c.oid
     WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence IN ('p', 'u')
       AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname NOT IN ('information_schema', 'landfall')
     ORDER BY 1, 2";

/// The schemas, besides those of tables, whose types a link's tables use and the role may not.
///
/// # Errors
/// Where the server does not answer.
pub async fn type_schemas_not_usable(client: &Client) -> Result<Vec<String>> {
    let sql = "
        SELECT DISTINCT tn.nspname::text
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
          JOIN pg_type t ON t.oid = a.atttypid JOIN pg_namespace tn ON tn.oid = t.typnamespace
         WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence IN ('p', 'u')
           AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname NOT IN ('information_schema', 'landfall')
           AND tn.oid <> n.oid AND NOT has_schema_privilege(tn.oid, 'USAGE')
         ORDER BY 1";
    let rows = many(client, "list the types that cannot be used", sql, &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The tables a link might write to and the role may not write: schema and name, in order.
///
/// # Errors
/// Where the server does not answer.
pub async fn tables_not_writable(client: &Client) -> Result<Vec<(String, String)>> {
    let sql = "
        SELECT n.nspname::text, c.relname::text
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence IN ('p', 'u')
           AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname NOT IN ('information_schema', 'landfall')
           AND NOT (has_schema_privilege(n.oid, 'USAGE')
                    AND (SELECT bool_and(has_table_privilege(c.oid, p))
                           FROM unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE}'::text[]) p))
         ORDER BY 1, 2";
    let rows = many(client, "list the tables that cannot be written", sql, &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// What a publication lets through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicationFacts {
    /// Its owner.
    pub owner: String,
    /// `FOR ALL TABLES`.
    pub all_tables: bool,
    /// Whether inserts, updates, deletes and truncates all pass.
    pub operations_missing: Vec<&'static str>,
    /// `publish_via_partition_root`.
    pub via_root: bool,
    /// `publish_generated_columns`, from PostgreSQL 18 on.
    pub generated: bool,
    /// What it publishes now.
    pub tables: Vec<PublishedTable>,
}

impl TableFacts {
    /// `schema.table`, as a stream's scope names it.
    pub fn name(&self) -> String {
        format!("{}.{}", self.schema, self.table)
    }

    /// `schema.table`, quoted.
    pub fn quoted(&self) -> String {
        qualified(&self.schema, &self.table)
    }

    /// Whether publishing it carries its changes, and does not break the application's own UPDATEs.
    pub fn is_usable(&self) -> bool {
        self.logged && self.identity_usable && self.unlike.is_none()
    }

    /// What gives it a replica identity. A partition takes a primary key from its table, and nothing else.
    pub fn identity_sql(&self) -> String {
        let name = self.quoted();
        let each = if self.partitioned {
            ", and so each of its partitions, now and whenever one is made"
        } else {
            ""
        };
        format!(
            "ALTER TABLE {name} ADD PRIMARY KEY (...);  -- or: ALTER TABLE {name} REPLICA IDENTITY FULL;{each}"
        )
    }
}

impl PublicationFacts {
    /// The table's place in it.
    pub fn find(&self, schema: &str, table: &str) -> Option<&PublishedTable> {
        self.tables.iter().find(|published| published.schema == schema && published.table == table)
    }
}

/// A table in a publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedTable {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub table: String,
    /// The condition rows must meet to be published.
    pub row_filter: Option<String>,
    /// Columns of the table (generated ones apart) that are not published.
    pub columns_left_out: Vec<String>,
}

/// A publication, where there is one of that name.
///
/// # Errors
/// Where the server does not answer, or is older than [`VERSION_MIN`]; [`Code::TargetBusy`] where one of its tables is
/// locked for longer than the session waits, or is dropped meanwhile.
pub async fn publication(client: &Client, name: &str) -> Result<Option<PublicationFacts>> {
    let Some(row) = many(client, "look at the publication", PUBLICATION, &[&name]).await?.into_iter().next()
    else {
        return Ok(None);
    };
    let rows = client.query(PUBLISHED_TABLES, &[&name]).await.map_err(|error| {
        // The server lists them, and opens each one: "could not open relation with OID".
        let is_dropped = error.code() == Some(&SqlState::INTERNAL_ERROR);
        let fault = fault_of(&error).at("list the publication's tables");
        if is_dropped { Fault::new(Code::TargetBusy, fault.message()) } else { fault }
    })?;
    let tables = rows.iter().map(|row| PublishedTable {
        schema: row.get(0),
        table: row.get(1),
        row_filter: row.get(2),
        columns_left_out: row.get(3),
    });
    let operations = [("insert", 2), ("update", 3), ("delete", 4), ("truncate", 5)];
    Ok(Some(PublicationFacts {
        owner: row.get(0),
        all_tables: row.get(1),
        operations_missing: operations
            .into_iter()
            .filter(|(_, at)| !row.get::<_, bool>(*at))
            .map(|(name, _)| name)
            .collect(),
        via_root: row.get(6),
        generated: row.get(7),
        tables: tables.collect(),
    }))
}

const PUBLICATION: &str = "
    SELECT pg_get_userbyid(pubowner)::text, puballtables, pubinsert, pubupdate, pubdelete, pubtruncate,
           pubviaroot, coalesce(to_jsonb(p) ->> 'pubgencols' <> 'n', false)
      FROM pg_publication p WHERE pubname = $1";

const PUBLISHED_TABLES: &str = "
    SELECT t.schemaname::text, t.tablename::text, t.rowfilter,
           ARRAY(SELECT a.attname::text FROM pg_attribute a
                  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
                    AND NOT a.attname = ANY (t.attnames)
                  ORDER BY a.attnum)
      FROM pg_publication_tables t
      JOIN pg_namespace n ON n.nspname = t.schemaname
      JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
     WHERE t.pubname = $1
     ORDER BY 1, 2";

/// How a logical slot stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotFacts {
    /// Its output plugin; none for a physical slot.
    pub plugin: Option<String>,
    /// Its database; none for a physical slot.
    pub database: Option<String>,
    /// The process that reads it.
    pub active_pid: Option<i32>,
    /// From where on the server keeps its log for it; none once it is lost.
    pub restart: Option<Lsn>,
    /// What was confirmed to it.
    pub confirmed_flush: Option<Lsn>,
    /// reserved, extended, unreserved or lost.
    pub wal_status: Option<String>,
    /// What may still be written before it is in danger; none where there is no limit, or it is lost.
    pub safe_wal_bytes: Option<i64>,
    /// What the server keeps for it.
    pub retained_bytes: Option<i64>,
    /// How much log the server may hold between two checkpoints, whatever slots need (`max_wal_size`).
    pub wal_size_bytes: i64,
    /// Why it was invalidated, where the version tells (17 on; on 16 only that it conflicted).
    pub invalidation: Option<String>,
    /// Whether it follows its primary's slot (17 on): it cannot be read here then.
    pub synced: bool,
}

impl SlotFacts {
    /// Whether it can never be read again.
    pub fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost") || self.invalidation.is_some()
    }
}

/// A slot, where there is one of that name.
///
/// # Errors
/// Where the server does not answer.
pub async fn slot(client: &Client, name: &str) -> Result<Option<SlotFacts>> {
    let rows = many(client, "look at the slot", SLOT, &[&name]).await?;
    let facts = |row: &Row| -> Result<SlotFacts> {
        Ok(SlotFacts {
            plugin: row.get(0),
            database: row.get(1),
            active_pid: row.get(2),
            restart: lsn(row, 3)?,
            confirmed_flush: lsn(row, 4)?,
            wal_status: row.get(5),
            safe_wal_bytes: row.get(6),
            retained_bytes: row.get(7),
            wal_size_bytes: row.get(10),
            invalidation: row.get(8),
            synced: row.get(9),
        })
    };
    rows.first().map(facts).transpose()
}

const SLOT: &str = "
    SELECT s.plugin::text, s.database::text, s.active_pid, s.restart_lsn::text, s.confirmed_flush_lsn::text,
           s.wal_status, s.safe_wal_size,
           (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END
               - s.restart_lsn)::int8,
           coalesce(to_jsonb(s)->>'invalidation_reason',
                    CASE WHEN (to_jsonb(s)->>'conflicting')::bool THEN 'conflicting' END),
           coalesce((to_jsonb(s)->>'synced')::bool, false), pg_size_bytes(current_setting('max_wal_size'))
      FROM pg_replication_slots s WHERE s.slot_name = $1";

/// Where the server's log ends: what is written, or on a standby replayed.
///
/// # Errors
/// Where the server does not answer.
pub async fn current_lsn(client: &Client) -> Result<Lsn> {
    let sql = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                           ELSE pg_current_wal_lsn() END::text";
    let row = one(client, "ask where the log ends", sql, &[]).await?;
    lsn(&row, 0)?.ok_or_else(|| Fault::new(Code::DatabaseUnreachable, "the standby has replayed nothing yet"))
}

/// Which server, and which of its lives, the log comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemIdentity {
    /// Given by initdb; kept by standbys and restored copies.
    pub system_identifier: u64,
    /// Raised by every promotion and point-in-time recovery.
    pub timeline: u32,
}

/// Asks which server it is. The timeline is read from the name of the file being written, since the
/// control file's is that of the last checkpoint, which a promotion does not wait for.
///
/// # Errors
/// Where the server does not answer.
pub async fn system_identity(client: &Client) -> Result<SystemIdentity> {
    let sql = "SELECT system_identifier::text,
                      CASE WHEN pg_is_in_recovery() THEN NULL
                           ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END,
                      (SELECT timeline_id FROM pg_control_checkpoint())
                 FROM pg_control_system()";
    let row = one(client, "ask which server it is", sql, &[]).await?;
    let strange =
        || Fault::new(Code::Internal, "the server names itself in a way this version does not know");
    // The server shows its unsigned identifier as a signed one.
    let system: i64 = row.get::<_, String>(0).parse().map_err(|_| strange())?;
    let control: i32 = row.get(2);
    let timeline = match row.get::<_, Option<String>>(1) {
        Some(digits) => u32::from_str_radix(&digits, 16).map_err(|_| strange())?,
        None => control.cast_unsigned(),
    };
    Ok(SystemIdentity { system_identifier: system.cast_unsigned(), timeline })
}

type Parameter<'a> = &'a (dyn tokio_postgres::types::ToSql + Sync);

async fn many(client: &Client, what: &str, sql: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>> {
    client.query(sql, parameters).await.map_err(|error| fault_of(&error).at(what))
}

async fn one(client: &Client, what: &str, sql: &str, parameters: &[Parameter<'_>]) -> Result<Row> {
    client.query_one(sql, parameters).await.map_err(|error| fault_of(&error).at(what))
}

fn lsn(row: &Row, at: usize) -> Result<Option<Lsn>> {
    let text: Option<&str> = row.get(at);
    let parsed = text.map(str::parse).transpose();
    parsed.map_err(|error: crate::lsn::InvalidLsn| Fault::new(Code::Internal, error.to_string()))
}

fn sign(row: &Row, at: usize) -> char {
    row.get::<_, &str>(at).chars().next().unwrap_or(' ')
}

#[cfg(test)]
mod tests {
    use super::is_among;

    #[test]
    fn a_session_is_a_standby_by_its_name_or_by_every_name() {
        for (names, is_one) in [
            ("", false),
            ("*", true),
            ("\"*\"", true),
            ("s1, s2", false),
            ("s1,*", true),
            ("FIRST 1 (s1, s2)", false),
            ("ANY 2 (s1, \"Landfall capture main\")", true),
            ("2(*)", true),
            ("\"landfall capture main2\"", false),
            ("landfall, capture, main", false),
        ] {
            assert_eq!(is_among(names, "landfall capture main"), is_one, "{names}");
        }
    }
}
