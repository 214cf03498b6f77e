//! Every kind of thing `check` can find: its stable id, what it means, and what is done about it. What was
//! seen, and the statement that mends just that, stand in the finding itself.

use std::fmt;

use serde::{Serialize, Serializer};

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $name:ident = $id:literal, $advice:literal;)+) => {
        /// A kind of finding. Its id is never reused and never renamed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Kind { $($(#[doc = $doc])+ $name,)+ }

        impl Kind {
            /// Every kind there is.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// As printed.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $id,)+ }
            }

            /// What it means: the text that stands above it here.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii_start(),)+ }
            }

            /// What a person does about it.
            pub fn advice(self) -> &'static str {
                match self { $(Self::$name => $advice,)+ }
            }
        }
    };
}

kinds! {
    // The settings, without any server.

    /// A setting is missing, misspelled, out of range, or given twice.
    Config = "config",
        "correct the file or the variable that is named; `landfall explain` with the setting's path says what it takes";
    /// A file that a setting names is not there or cannot be read.
    FileMissing = "file-missing",
        "put the file there, readable by whoever runs the daemon, or correct the path";
    /// Passwords and rows travel in plain text to another machine.
    PlainText = "plain-text",
        "set sslmode=verify-full in database.url, or security.protocol to ssl or sasl_ssl";
    /// TLS is used, but the server need not prove who it is: whoever stands between can read everything.
    ServerUnproven = "server-unproven",
        "set sslmode=verify-full, with sslrootcert where the certificate is of a private authority";
    /// Whoever reaches the machine can read the daemon's health, metrics and status: the listener asks nobody who
    /// they are.
    ListenerOpen = "listener-open",
        "listen on 127.0.0.1, or let a firewall decide who reaches the port";
    /// The topic is kept by so few brokers that losing one loses changes or stops the stream.
    ReplicasFew = "replicas-few",
        "run three brokers or more with kafka.replication_factor = 3 and kafka.min_insync_replicas = 2";

    // The server.

    /// The database could not be asked, so nothing about it can be told.
    DatabaseAnswer = "database-answer",
        "start the server, or correct database.url, the role or its password";
    /// The server is older than PostgreSQL 15.
    ServerVersion = "server-version",
        "upgrade the server to PostgreSQL 15 or newer";
    /// The server is a standby: it can neither be written to nor keep the slot.
    ServerStandby = "server-standby",
        "point database.url at the primary";
    /// The server is another one than the stream came from.
    ServerChanged = "server-changed",
        "point database.url at the stream's server, or begin the stream anew: `landfall recover --source` in its region, then `landfall recover` where it is read";
    /// The server writes too little into its log for changes to be decoded.
    WalLevel = "wal-level",
        "set wal_level = logical and restart the server";
    /// Rows do not remember when, and by which region, they were committed. Nothing needs it as long as each table
    /// has one writing region; a table that gets several needs it from before their first write.
    TrackCommitTimestamp = "track-commit-timestamp",
        "set track_commit_timestamp = on and restart the server, if a table is ever to have several writers";
    /// The server takes the session that reads the slot for a synchronous standby, as it does with `*`: a commit may be told
    /// to its client that is in Kafka and on no standby, and where no standby is there it waits for Kafka.
    SynchronousStandby = "synchronous-standby",
        "name the standbys in synchronous_standby_names, in place of *, and reload";
    /// While this region's Kafka is away, the log of changes stays on the server's disk, without a limit.
    SlotUnlimited = "slot-unlimited",
        "set max_slot_wal_keep_size to what the disk can spare: beyond it the slot is lost, but not the server";
    /// The server keeps so little log for a slot that a short outage of this region's Kafka loses it.
    WalRoom = "wal-room",
        "raise max_slot_wal_keep_size, to hold the log of an hour or more, and reload";
    /// The server gives up a slot that nobody has read for a while, however much room there is: a daemon that is away for
    /// longer has lost its stream.
    SlotIdle = "slot-idle",
        "set idle_replication_slot_timeout = 0, or to longer than a daemon may ever be away, and reload";
    /// Whether the server's disk has room for the log that a slot may keep.
    WalDisk = "wal-disk",
        "free disk where the server keeps pg_wal, or lower max_slot_wal_keep_size";
    /// All replication slots are taken, or nearly.
    SlotsLeft = "slots-left",
        "drop a slot nobody reads, or raise max_replication_slots and restart";
    /// All senders are at work, or nearly.
    SendersLeft = "senders-left",
        "raise max_wal_senders and restart";
    /// There are fewer replication origins left than links.
    OriginsLeft = "origins-left",
        "raise max_replication_slots (from PostgreSQL 18 on max_active_replication_origins) and restart";
    /// The slot of that name is for another database, another use or another stream.
    SlotForeign = "slot-foreign",
        "set source.slot to another name";
    /// The slot is gone, and the stream has begun: somebody dropped it, or the server failed over to one that never had it.
    SlotMissing = "slot-missing",
        "begin the stream anew: `landfall recover --source` in its region, then `landfall recover` where it is read";
    /// The server invalidated the slot: what it held is gone from the server.
    SlotLost = "slot-lost",
        "raise max_slot_wal_keep_size (or idle_replication_slot_timeout, where it was idle), begin the stream anew: `landfall recover --source` in its region, then `landfall recover` where it is read";
    /// The slot is over its limit, and is lost at the next checkpoint.
    SlotUnreserved = "slot-unreserved",
        "start the source now, or raise max_slot_wal_keep_size and reload";
    /// The slot is being read: a daemon of this region runs.
    SlotActive = "slot-active",
        "nothing, where it is the one you know of";

    // The role.

    /// The role may not read the log.
    RoleReplication = "role-replication",
        "run the ALTER ROLE shown as a superuser (on Amazon RDS: GRANT rds_replication)";
    /// The role may not set session_replication_role, without which the target's own triggers and cascades would
    /// act a second time.
    RoleSessionReplicationRole = "role-session-replication-role",
        "run the GRANT SET ON PARAMETER shown as a superuser";
    /// The role may not work under a replication origin, which tells its writes from the application's.
    RoleOriginFunctions = "role-origin-functions",
        "run the GRANT EXECUTE statements shown as a superuser";
    /// The role may neither use nor make the schema `landfall`, where progress is kept; or tables in it belong to another
    /// role, as they do where the role in the url has changed, or a restore left out who owned them.
    Schema = "schema",
        "run the statements shown as a superuser";

    // What goes out.

    /// No table matches source.tables.
    ScopeEmpty = "scope-empty",
        "correct source.tables, or create the tables";
    /// A table that source.tables names is not there.
    TableMissing = "table-missing",
        "correct source.tables, or create the table";
    /// A table of the scope is unlogged: its changes are not in the log and are not carried.
    TableUnlogged = "table-unlogged",
        "ALTER TABLE … SET LOGGED, or leave it out of source.tables";
    /// A table of the scope has no usable replica identity, so an update or a delete could not name its row. It is
    /// left out.
    ReplicaIdentity = "replica-identity",
        "add a primary key, or set REPLICA IDENTITY FULL";
    /// A partition has another replica identity than its table, is unlogged, or is a foreign table. The server asks the
    /// partition what it logs: the application's updates and deletes of its rows would fail, or not say what the row was.
    /// Where its table is not published yet, it is left out.
    PartitionDiffers = "partition-differs",
        "run the ALTER TABLE shown, for this partition and whenever one is made; a primary key of the whole table needs none of it";
    /// A partition that is emptied or taken away by itself keeps its rows in the other regions: of a table that is
    /// published as one, the server replicates no TRUNCATE of a partition, and no DROP or DETACH of anything.
    PartitionEmptied = "partition-emptied",
        "DELETE its rows in place of TRUNCATE, or do the same in each region; `landfall repair` removes what is left";
    /// A table has REPLICA IDENTITY FULL: each update and delete carries the whole old row. Where the target has no
    /// unique key either, each is found by comparing whole rows.
    IdentityFull = "identity-full",
        "add a primary key and set REPLICA IDENTITY DEFAULT, where the table is large or often changed";
    /// A generated column is not carried: each side computes its own.
    GeneratedColumn = "generated-column",
        "nothing, where the target's column is generated by the same expression";
    /// An identity or serial column's values are carried, the sequence behind it is not: after a change of the
    /// writing region its next value collides with a row that is there.
    SequenceBehind = "sequence-behind",
        "before the application writes to another region, set that region's sequences past the greatest value";
    /// A column holds numbers or names that mean something on its own server only, such as a large object's.
    LocalMeaning = "local-meaning",
        "keep the content in a bytea column, or leave the table out of source.tables";
    /// The publication is not there.
    PublicationMissing = "publication-missing",
        "run the CREATE PUBLICATION shown as the tables' owner, where the role may not, or the stream has begun";
    /// The publication publishes the schema `landfall`, as one FOR ALL TABLES does: the source does not begin.
    PublicationOwnTables = "publication-own-tables",
        "make the publication anew for the tables that are carried, as shown, or name another in source.publication";
    /// The publication lacks tables of the scope: their changes are not carried.
    PublicationTables = "publication-tables",
        "run the ALTER PUBLICATION shown as its owner";
    /// The publication leaves out inserts, updates, deletes or truncates.
    PublicationOperations = "publication-operations",
        "run the ALTER PUBLICATION shown as its owner";
    /// The publication publishes a partitioned table partition by partition, not as the one table it is.
    PublicationPartitions = "publication-partitions",
        "run the ALTER PUBLICATION shown as its owner";
    /// The publication lets only some rows through.
    PublicationRowFilter = "publication-row-filter",
        "add the table anew without a row filter, as shown";
    /// The publication leaves out columns.
    PublicationColumns = "publication-columns",
        "add the table anew without a column list, as shown";
    /// A table is published, and it or one of its partitions has no replica identity that serves: the application's own
    /// UPDATEs and DELETEs fail.
    PublicationBreaksUpdates = "publication-breaks-updates",
        "take the table out of the publication, or give it a key, as shown";

    // What comes in.

    /// A table that the stream carries is not there at the target.
    TargetMissing = "target-missing",
        "create it as it is at the source: pg_dump --schema-only there, psql here";
    /// A table does not take the stream's rows: a column is missing, of another type, generated, or must be given.
    TargetDiffers = "target-differs",
        "run the ALTER TABLE shown at the target";
    /// The role may not write a table that the stream carries.
    TargetPrivilege = "target-privilege",
        "run the GRANT shown at the target as the table's owner";
    /// Row security at the target hides rows from the role.
    TargetRowSecurity = "target-row-security",
        "run the ALTER ROLE … BYPASSRLS shown as a superuser";
    /// A table at the target has no unique key among the columns that name a row: each update and delete looks at the
    /// whole table.
    TargetKey = "target-key",
        "add the source's primary key or unique index at the target";
    /// A trigger at the target fires although changes are applied with session_replication_role = replica: what it
    /// does was done at the source already, or is meant to happen here.
    TargetTriggers = "target-triggers",
        "ALTER TABLE … ENABLE TRIGGER (not ALWAYS, not REPLICA), unless it shall fire for carried rows";
    /// Which tables and columns the stream carries is not, or not wholly, known here, so they were not compared.
    TargetUnknown = "target-unknown",
        "give the sending region's settings with --against, or check again once the stream has begun";

    // Kafka.

    /// The brokers of this region do not answer.
    Brokers = "brokers",
        "start the brokers, or correct kafka.brokers and kafka.properties";
    /// The other region's brokers do not answer.
    LinkBrokers = "link-brokers",
        "mend the line to the other region, or correct the link's brokers and properties";
    /// There are fewer brokers than copies wanted of each record.
    BrokersFew = "brokers-few",
        "start more brokers, or set kafka.replication_factor and kafka.min_insync_replicas lower";
    /// This region's topic is not there, or its settings would lose data or break order.
    Topic = "topic",
        "nothing before the first start, which creates it; one that was there and is gone has to be begun anew; else change its settings as listed";
    /// The other region's topic is not there, or cannot be what a link reads.
    LinkTopic = "link-topic",
        "start the other region's daemon with a [source]; a topic that was there and is gone has to be begun anew";
    /// The brokers refuse records as large as source.max_record_bytes.
    TopicRecordSize = "topic-record-size",
        "raise the topic's max.message.bytes, or lower source.max_record_bytes";
    /// Whether the brokers can hold the stream for as long as kafka.retention says, at the rate measured now.
    BufferRoom = "buffer-room",
        "give the brokers the disk named, or compare it with what they have: kafka-log-dirs.sh --describe";
    /// How long the other region's topic keeps what this region has not read.
    LinkRetention = "link-retention",
        "raise the topic's retention.ms in the other region to 24 h or more";

    // Both sides.

    /// Two clocks differ, or could not be held against each other. Lag is told by them; nothing is decided by them.
    Clocks = "clocks",
        "let chrony or ntpd keep both machines' clocks";
    /// Tables that ought to be equal do not look it.
    TablesUnequal = "tables-unequal",
        "if nothing is under way: rows that were there before the stream began come by `landfall backfill`, and `landfall verify` names those that differ";
    /// Whether tables are equal on both sides could not be told, or was told of some of them only.
    TablesUntold = "tables-untold",
        "give the other region's settings with --against, and --deep for exact counts";
    /// Tables that ought to be equal look it.
    TablesEqual = "tables-equal",
        "nothing";
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn kinds_are_unique_and_say_what_to_do() {
        let names: HashSet<_> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
        assert_eq!(names.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            let meaning = kind.meaning();
            assert!(meaning.ends_with('.') && !meaning.contains("  "), "{kind}: {meaning:?}");
            assert!(!kind.advice().is_empty(), "{kind}");
        }
    }
}
