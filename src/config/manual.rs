//! What each setting is: its form, its default, what it does. docs/configuration.md shows this table and
//! `landfall explain` answers from it; tests hold it against what the walk asks for and what is in effect.

/// One setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its path; `link[].from` for each of the links.
    pub path: &'static str,
    /// What it may be.
    pub form: &'static str,
    /// What it is where it is not given; none where it has to be given, or has no value of its own then.
    pub default: Fallback,
    /// What it does, in whole sentences.
    pub meaning: &'static str,
}

/// What a setting is where it is not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// It has to be given wherever its section is.
    Required,
    /// It is absent, and that means something.
    Absent,
    /// This, as it would be written.
    Is(&'static str),
    /// What these words say, since it depends on others.
    Follows(&'static str),
}

impl Setting {
    /// The default in words.
    pub fn default_text(&self) -> &'static str {
        match self.default {
            Fallback::Required => "it has to be given",
            Fallback::Absent => "not set",
            Fallback::Is(text) | Fallback::Follows(text) => text,
        }
    }
}

use Fallback::{Absent, Follows, Is, Required};

const fn setting(
    path: &'static str,
    form: &'static str,
    default: Fallback,
    meaning: &'static str,
) -> Setting {
    Setting { path, form, default, meaning }
}

/// Every setting there is, in the order of the sections of a file.
pub const SETTINGS: &[Setting] = &[
    setting(
        "region",
        "1 to 32 of a-z, 0-9 and `-`, beginning with a letter",
        Required,
        "The region this daemon serves. Topics, slots and origins are named after it, so it never changes.",
    ),
    setting(
        "database.url",
        "`postgres://role@host:port/database?sslmode=…&sslrootcert=…`",
        Required,
        "This region's Postgres. `sslmode` is disable, prefer, require, verify-ca or verify-full (the default); `sslrootcert` is a file of certificates to trust in place of the public ones. Signs that mean something in a url are written as %XX; anything else in the url is refused.",
    ),
    setting(
        "database.password",
        "text",
        Absent,
        "The role's password. Rather given by the environment, or by `password_file`; one given by the environment goes before both.",
    ),
    setting(
        "database.password_file",
        "path",
        Absent,
        "A file that holds the password, and nothing else but a line's end. Read again at each connect: a password that is changed needs no restart.",
    ),
    setting(
        "kafka.brokers",
        "list of `host:port`",
        Required,
        "This region's Kafka: the brokers to ask first. The section is needed where there is a `[source]`.",
    ),
    setting(
        "kafka.replication_factor",
        "1 to 100",
        Is("3"),
        "How many brokers keep each record of a topic that Landfall creates; of one that is there it is the least.",
    ),
    setting(
        "kafka.min_insync_replicas",
        "1 to 100, not more than `replication_factor`",
        Follows("2, or `replication_factor` where that is 1"),
        "How many brokers must have a record before it counts as safe, and the database may forget it.",
    ),
    setting(
        "kafka.retention",
        "duration, 1d to 365d",
        Is("\"1d\""),
        "How long a topic keeps its records: a link that is cut for longer loses changes and halts.",
    ),
    setting(
        "kafka.allow_short_retention",
        "true or false",
        Is("false"),
        "Lets `retention` be less than a day, from 1s on. For tests.",
    ),
    setting(
        "kafka.properties",
        "table of texts",
        Absent,
        "How to be let in: `security.protocol`, `sasl.*` and `ssl.*` as librdkafka names them, and nothing else, since the promises depend on the rest. What `security.protocol` does not use is refused, and so is SASL without mechanism, user or password. None of the values is ever printed.",
    ),
    setting(
        "kafka.sasl_password_file",
        "path",
        Absent,
        "A file that holds the password of SASL, and nothing else but a line's end, in place of `sasl.password` among the properties.",
    ),
    setting(
        "source.tables",
        "list of patterns `schema.table`, `*` for any text",
        Required,
        "The tables whose changes go out. Only those that are written in this region: what comes in by a link is left out of it. A name with dots, stars or capitals may stand in double quotes inside the text. The schemas landfall, information_schema and pg_* are never carried.",
    ),
    setting(
        "source.publication",
        "1 to 63 bytes",
        Is("\"landfall\""),
        "The publication that lets the changes through. Created at the first start where the role may.",
    ),
    setting(
        "source.slot",
        "1 to 63 of a-z, 0-9 and `_`",
        Follows("`landfall_<region>_<database>`"),
        "The replication slot that is read, by this stream alone. Created at the first start; slot names are of the whole server.",
    ),
    setting(
        "source.stream",
        "1 to 32 of a-z, 0-9, `-` and `_`, beginning with a letter",
        Is("\"main\""),
        "The stream that is written: topic `landfall.<region>.<stream>`.",
    ),
    setting(
        "source.heartbeat_interval",
        "duration, 100ms to 5s",
        Is("\"1s\""),
        "How often a heartbeat is sent down the whole path. Lag is the age of the last one applied.",
    ),
    setting(
        "source.max_record_bytes",
        "size, 16KiB to 8MiB",
        Is("\"900KiB\""),
        "The largest record, and the most that goes to the brokers as one batch; a larger change is cut into parts. Keep it a KiB or more below the topic's max.message.bytes (as made, the brokers' message.max.bytes).",
    ),
    setting(
        "source.checkpoint_interval",
        "duration, 1s to 1h",
        Is("\"10s\""),
        "How often the stream's place is kept in the compacted topic `landfall.<region>.state`: bounds how much of its own topic a source reads when it starts.",
    ),
    setting(
        "source.linger",
        "duration, 0ms to 1s",
        Is("\"0ms\""),
        "How long a record waits for company on its way to Kafka while the stream is calm; a hot one gathers for 2 ms at least, one that is packed and brings more than 20,000 changes a second for 5. More gives larger batches and more lag.",
    ),
    setting(
        "source.format",
        "`debezium` or `packed`",
        Is("\"debezium\""),
        "How records are written. `debezium`: one for each change, in Debezium's envelope, for whoever else reads the topic. `packed`: changes that come one after the other share a record, up to 48 KiB of them, without what that envelope says twice: less work for source, Kafka and sinks, and fewer bytes; for topics that only Landfall reads. Sinks read both, so it may be changed at any time once every region that reads has a version that knows it.",
    ),
    setting(
        "source.copy_sessions",
        "1 to 16",
        Is("2"),
        "How many sessions read a table of a backfill side by side, each its range of a chunk, under one snapshot. Further ones are opened for tables of some megabytes that have a key, and closed when there is nothing to read; where there is no connection for them, fewer read.",
    ),
    setting("link[].from", "region name", Required, "The region whose changes come in by this link."),
    setting(
        "link[].brokers",
        "list of `host:port`",
        Required,
        "That region's Kafka: the brokers to ask first.",
    ),
    setting(
        "link[].stream",
        "stream name",
        Is("\"main\""),
        "The stream that is read: topic `landfall.<from>.<stream>`.",
    ),
    setting("link[].properties", "table of texts", Absent, "How to be let in there, as `kafka.properties`."),
    setting(
        "link[].sasl_password_file",
        "path",
        Absent,
        "The same for that Kafka's password, as `kafka.sasl_password_file`.",
    ),
    setting(
        "link[].ordering",
        "`transaction`",
        Is("\"transaction\""),
        "A source transaction becomes visible whole or not at all, in commit order. There is no other order yet.",
    ),
    setting(
        "link[].batch_changes",
        "1 to 1000000",
        Is("2000"),
        "How many changes one target transaction holds at most. It holds whole source transactions.",
    ),
    setting(
        "link[].batch_bytes",
        "size, 64KiB to 64MiB",
        Is("\"4MiB\""),
        "How many bytes of changes are held in memory for it. A larger source transaction moves in slices through one open target transaction.",
    ),
    setting(
        "link[].fetch_bytes",
        "size, 64KiB to 16MiB",
        Absent,
        "How many bytes one request to the other region's Kafka brings, compressed as they are kept. One is under way at a time: over a line with a round trip of 150 ms, 1 MiB is 7 MB/s. Not set, what comes decides: 256 KiB where it unpacks fortyfold to 3 MiB where it hardly does, so that a request comes to 10 MiB in memory. Set it where a line is to bring more than that, for twice as much memory as a request brings unpacked.",
    ),
    setting(
        "link[].open_transaction_timeout",
        "duration, 1s to 1h",
        Is("\"1m\""),
        "An open transaction of which nothing arrives for so long is rolled back and read again.",
    ),
    setting(
        "link[].flush_interval",
        "duration, 1ms to 2s",
        Is("\"100ms\""),
        "How long an applied batch may wait to be flushed while more is waiting. Lag and progress are told only of what is flushed.",
    ),
    setting(
        "link[].on_refusal",
        "`halt` or `park`",
        Is("\"halt\""),
        "What becomes of a source transaction that this region's database refuses: a conflict, a constraint. `halt` stops the link before it. `park` keeps it aside whole, with whatever changes the same rows later, and goes on; `landfall parked` lists, retries and discards.",
    ),
    setting(
        "link[].copy_sessions",
        "1 to 16",
        Is("2"),
        "How many sessions at this region's database bring in the rows of a backfill side by side. Each above the first takes a replication origin of its own, and keeps it (`max_replication_slots`, from PostgreSQL 18 on `max_active_replication_origins`); where there is none to spare, or no connection, the rows come in by fewer.",
    ),
    setting(
        "link[].verify_interval",
        "duration, 1m to 30d",
        Absent,
        "How often every table is compared with the region it comes from, as `landfall verify` does, at a tenth of the time at most. Not set, only when somebody asks.",
    ),
    setting(
        "http.listen",
        "`ip:port`",
        Is("\"127.0.0.1:9187\""),
        "Where health, metrics and status are served. Whoever reaches it can read them.",
    ),
    setting(
        "http.tls_certificate",
        "path",
        Absent,
        "The listener's certificate and those between it and its authority, in PEM. With it and `tls_key` the listener speaks TLS only; a renewed file is taken up without a restart.",
    ),
    setting("http.tls_key", "path", Absent, "The certificate's private key, in PEM."),
    setting(
        "http.allow_plaintext",
        "true or false",
        Is("false"),
        "Lets the listener be reached by other machines in plain text: where a proxy or a closed network stands before it. Without it an address beyond loopback needs a certificate.",
    ),
    setting(
        "ready.max_lag",
        "duration, 100ms to 1d",
        Absent,
        "A link that lags more makes the region not ready for users; so there has to be one. Not set, a region whose database answers is ready, and a cut line does not make both sides unready.",
    ),
    setting(
        "log.format",
        "`auto`, `text` or `json`",
        Is("\"auto\""),
        "The form of a line: `auto` is text on a terminal and JSON otherwise.",
    ),
    setting(
        "log.level",
        "a level, or a level and directives",
        Is("\"info\""),
        "error, warn, info, debug or trace, or `off`. Directives may follow for single parts, such as `info,landfall::sink=debug`: of Landfall, of librdkafka, or of pgwire_replication, rdkafka, rustls and tokio_postgres. What ends a start is written whatever this says.",
    ),
];

/// The table of docs/configuration.md: a chapter for each section, a paragraph for each setting.
#[cfg(test)]
pub(super) fn document() -> String {
    let mut text = String::new();
    let mut section = "";
    for setting in SETTINGS {
        let (of, key) = setting.path.rsplit_once('.').unwrap_or(("", setting.path));
        if of != section {
            section = of;
            let title = of.strip_suffix("[]").map_or_else(|| format!("[{of}]"), |list| format!("[[{list}]]"));
            text.push_str(&format!("## `{title}`\n\n"));
        }
        text.push_str(&format!("**`{key}`**: {}. Default: {}.\n", setting.form, code(setting.default)));
        text.push_str(&format!("{}\n\n", setting.meaning));
    }
    text
}

#[cfg(test)]
fn code(default: Fallback) -> String {
    match default {
        Is(text) => format!("`{text}`"),
        Required => "none, it has to be given".to_owned(),
        Absent => "not set".to_owned(),
        Follows(text) => text.to_owned(),
    }
}
