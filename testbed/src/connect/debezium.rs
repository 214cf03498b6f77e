//! What Debezium's two connectors are told: to be as quick as their makers say
//! they can be, and to do what Landfall does, nothing more.
//!
//! A figure measured against defaults would flatter Landfall, so whatever the
//! connectors' own documentation offers for throughput is set; each setting
//! that is not plain says where it comes from. Connect lets a connector
//! override its Kafka clients' settings, so that all of it stands here.

use serde_json::{Value, json};

/// The superuser of [`Postgres`](crate::Postgres), who has no password.
const USER: &str = "postgres";

/// Debezium's source for Postgres: one slot's changes, each table's to a topic
/// of its own named `<topic_prefix>.<schema>.<table>`.
#[derive(Clone, Copy, Debug)]
pub struct PostgresSource<'a> {
    /// The database server's port on loopback, or that of a proxy before it.
    pub port: u16,
    /// The database to read.
    pub database: &'a str,
    /// The publication to read through; made for these tables if there is none.
    pub publication: &'a str,
    /// The slot to read from; made if there is none.
    pub slot: &'a str,
    /// The tables, as `schema.table`; each is a regular expression.
    pub tables: &'a [&'a str],
    /// What topics' names begin with.
    pub topic_prefix: &'a str,
}

impl PostgresSource<'_> {
    /// The settings, to be given to [`Connect::create`](super::Connect::create).
    ///
    /// Rows that are there already are not copied: the source begins with what
    /// is committed after its slot has become active in
    /// `pg_replication_slots`, a moment after the connector runs.
    pub fn config(&self) -> Value {
        json!({
            "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
            // It never has more than one: a slot has one reader.
            "tasks.max": "1",
            "database.hostname": "127.0.0.1",
            "database.port": self.port.to_string(),
            "database.user": USER,
            "database.dbname": self.database,
            "database.sslmode": "disable",
            // The plug-in that Postgres itself brings; the default is another.
            "plugin.name": "pgoutput",
            "publication.name": self.publication,
            "publication.autocreate.mode": "filtered",
            "slot.name": self.slot,
            "table.include.list": self.tables.join(","),
            "topic.prefix": self.topic_prefix,
            "snapshot.mode": "no_data",
            // Ten times what they are unless set. The reference wants the
            // queue larger than a batch.
            "max.batch.size": "20480",
            "max.queue.size": "81920",
            // The wait for new changes when the queue is empty, 500 ms unless
            // set: it would be most of the latency.
            "poll.interval.ms": "10",
            // A delete is one record instead of two; the sink needs only one.
            "tombstones.on.delete": "false",
            // Brokers here make no topics by themselves. One partition, as
            // Landfall has; -1 is the brokers' own replication factor.
            "topic.creation.default.partitions": "1",
            "topic.creation.default.replication.factor": "-1",
            // JSON with schemas repeats itself. Kafka's own advice for
            // throughput is to wait a little, send more at once, and compress.
            "producer.override.compression.type": "zstd",
            "producer.override.linger.ms": "10",
            "producer.override.batch.size": "524288"
        })
    }
}

/// Debezium's JDBC sink: puts each row's last state into the table it came
/// from, which must be there.
#[derive(Clone, Copy, Debug)]
pub struct JdbcSink<'a> {
    /// The database server's port on loopback, or that of a proxy before it.
    pub port: u16,
    /// The database to write to.
    pub database: &'a str,
    /// Which topics to take; a regular expression for a topic's whole name.
    pub topics_regex: &'a str,
}

impl JdbcSink<'_> {
    /// The settings, to be given to [`Connect::create`](super::Connect::create).
    ///
    /// Rows are written whole, by primary key: an update or an insert that
    /// comes twice does no harm, and a table without a primary key does not
    /// work. Transactions are not kept together.
    pub fn config(&self) -> Value {
        json!({
            "connector.class": "io.debezium.connector.jdbc.JdbcSinkConnector",
            "tasks.max": "1",
            // The driver's own switch for sending a batch of inserts as one.
            "connection.url": format!(
                "jdbc:postgresql://127.0.0.1:{}/{}?reWriteBatchedInserts=true",
                self.port, self.database
            ),
            "connection.username": USER,
            "connection.password": "",
            "topics.regex": self.topics_regex,
            // As the change itself says, not as its topic: unless set, a
            // topic's dots become underscores of one table's name.
            "collection.name.format": "${source.schema}.${source.table}",
            "insert.mode": "upsert",
            "primary.key.mode": "record_key",
            "delete.enabled": "true",
            // The reference for throughput: larger batches, fed by polls as
            // large; changes of one row in a batch reduced to the last.
            "batch.size": "5000",
            "use.reduction.buffer": "true",
            // One statement for a batch, a column an array. The connector's
            // own words promise five to ten times the rate; on two cores, where
            // the JVM is the limit, no difference could be told.
            "dialect.postgres.unnest.insert.enabled": "true",
            "consumer.override.max.poll.records": "5000",
            // A topic that is made after the sink is found within a second
            // instead of five minutes.
            "consumer.override.metadata.max.age.ms": "1000"
        })
    }
}
