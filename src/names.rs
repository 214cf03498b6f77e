//! What things are called in Postgres and Kafka, in one place.

use crate::region::Region;

/// The schema Landfall keeps its own tables in, on every side. Never published.
pub const SCHEMA: &str = "landfall";
/// The publication a source reads, unless the config says otherwise.
pub const PUBLICATION: &str = "landfall";
/// The stream a link reads, unless the config says otherwise.
pub const STREAM: &str = "main";
/// The prefix of our heartbeats in a database's log (`pg_logical_emit_message`).
pub const HEARTBEAT_PREFIX: &str = "landfall.heartbeat";
/// The prefix of messages that are there to be committed and flushed: nobody reads them.
pub const FLUSH_PREFIX: &str = "landfall.flush";
/// The prefix of a backfill's watermarks there.
pub const WATERMARK_PREFIX: &str = "landfall.watermark";
/// What every replication origin of ours begins with.
const ORIGIN_PREFIX: &str = "landfall/";

/// The slot a source reads: `landfall_<region>_<database>`, lower case, other signs as `_`, cut to
/// the 63 bytes a slot name may have (slot names are cluster-wide, hence the database in it).
pub fn slot(region: &Region, database: &str) -> String {
    let mut name: String = format!("landfall_{region}_{database}")
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' })
        .collect();
    name.truncate(63);
    name
}

/// The session that reads a stream's slot, as its server calls it.
pub fn capture_session(stream: &str) -> String {
    format!("landfall capture {stream}")
}

/// The topic of one stream: `landfall.<region>.<stream>`.
pub fn topic(region: &Region, stream: &str) -> String {
    format!("landfall.{region}.{stream}")
}

/// The compacted topic that keeps a region's stream checkpoints.
pub fn state_topic(region: &Region) -> String {
    topic(region, "state")
}

/// The topic in which other regions ask a region for something.
pub fn control_topic(region: &Region) -> String {
    topic(region, "control")
}

/// The key in the state topic under which it stands where a region may begin `topic` in its middle.
pub fn start_key(topic: &str, to: &str) -> String {
    format!("{topic}/start/{to}")
}

/// The replication origin under which a stream is applied: `landfall/<region>/<stream>/<lane>`.
pub fn origin(region: &Region, stream: &str, lane: u16) -> String {
    format!("{ORIGIN_PREFIX}{region}/{stream}/{lane}")
}

/// Whether a replication origin is one a Landfall sink applies under.
pub fn is_ours(origin: &str) -> bool {
    origin.starts_with(ORIGIN_PREFIX)
}

/// The consumer group whose offsets show people and tools where a link stands.
pub fn group(to: &Region, from: &Region, stream: &str) -> String {
    format!("landfall.{to}.from.{from}.{stream}")
}

/// A Postgres identifier, quoted.
pub fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// A Postgres string constant, quoted.
pub fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if text.contains('\\') { format!(" E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// `schema.table`, both quoted.
pub fn qualified(schema: &str, table: &str) -> String {
    format!("{}.{}", quoted(schema), quoted(table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_what_they_name() {
        let region: Region = "eu-west-1".parse().unwrap();
        assert_eq!(slot(&region, "Shop.Main"), "landfall_eu_west_1_shop_main");
        assert_eq!(slot(&region, &"x".repeat(90)).len(), 63);
        assert_eq!(topic(&region, STREAM), "landfall.eu-west-1.main");
        assert_eq!(origin(&region, STREAM, 0), "landfall/eu-west-1/main/0");
        assert!(is_ours(&origin(&region, STREAM, 3)) && !is_ours("pg_16390"));
        assert_eq!(qualified("a\"b", "C"), "\"a\"\"b\".\"C\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("a\\b"), " E'a\\\\b'");
    }
}
