//! `[source]`: how this region's changes go out.

use std::time::Duration;

use super::{SECOND, stream_name, walk::Section};
use crate::{envelope::Format, names, postgres::Address, region::Region, scope::Scope};

/// How this region's changes go out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSettings {
    /// The tables that are carried.
    pub scope: Scope,
    /// The publication that lets them through.
    pub publication: String,
    /// The slot that is read.
    pub slot: String,
    /// The stream that is written.
    pub stream: String,
    /// How often a heartbeat is sent down the whole path.
    pub heartbeat_interval: Duration,
    /// The largest record; a larger change is cut into parts.
    pub max_record_bytes: usize,
    /// How often the stream's place is kept in the compacted topic.
    pub checkpoint_interval: Duration,
    /// How long a record waits for company on its way to Kafka while the stream is calm.
    pub linger: Duration,
    /// How many sessions read a table of a backfill side by side.
    pub copy_sessions: u16,
    /// How its records are written.
    pub format: Format,
}

/// No more than this reads side by side: a server has better use for its processors.
const COPY_SESSIONS_MAX: u64 = 16;

/// What `format` may say.
pub(super) const FORMATS: [(&str, Format); 2] = [("debezium", Format::Debezium), ("packed", Format::Packed)];

pub(super) fn walk(
    mut section: Section<'_>,
    region: Option<&Region>,
    database: Option<&Address>,
) -> Option<SourceSettings> {
    section.require("tables", "[\"public.*\"]");
    let tables = section.list("tables", str::parse);
    let publication_given = section.has("publication");
    let publication = section.parsed("publication", |text| {
        let fits = (1..=63).contains(&text.len()) && !text.contains('\0');
        if fits { Ok(text.to_owned()) } else { Err("expected a name of 1 to 63 bytes") }
    });
    let slot_given = section.has("slot");
    let slot = section.parsed("slot", |text| {
        let sign = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        let fits = (1..=63).contains(&text.len()) && text.bytes().all(sign);
        if fits {
            Ok(text.to_owned())
        } else {
            Err(format!("`{text}` is no slot name: use 1 to 63 of a-z, 0-9 and `_`"))
        }
    });
    let stream_given = section.has("stream");
    let stream = section.parsed("stream", stream_name);
    // A reader must see within 10 s that nothing is applied any more.
    let heartbeat = section.duration("heartbeat_interval", Duration::from_millis(100)..=5 * SECOND);
    // A broker takes 1 MiB unless it was told otherwise; the rest of the record needs room too.
    let record = section.size("max_record_bytes", 16 << 10..=8 << 20);
    let checkpoint = section.duration("checkpoint_interval", SECOND..=3600 * SECOND);
    let linger = section.duration("linger", Duration::ZERO..=SECOND);
    let copy_sessions = section.number("copy_sessions", 1..=COPY_SESSIONS_MAX);
    let format = section.word("format", &FORMATS);
    section.finish();
    if (publication_given && publication.is_none()) || (stream_given && stream.is_none()) {
        return None;
    }
    let slot = match slot {
        Some(slot) => slot,
        None if slot_given => return None,
        None => names::slot(region?, &database?.database),
    };
    Some(SourceSettings {
        scope: Scope(tables?),
        publication: publication.unwrap_or_else(|| names::PUBLICATION.to_owned()),
        slot,
        stream: stream.unwrap_or_else(|| names::STREAM.to_owned()),
        heartbeat_interval: heartbeat.unwrap_or(SECOND),
        max_record_bytes: record.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(900 << 10),
        checkpoint_interval: checkpoint.unwrap_or(10 * SECOND),
        linger: linger.unwrap_or(Duration::ZERO),
        copy_sessions: copy_sessions.and_then(|it| u16::try_from(it).ok()).unwrap_or(2),
        format: format.unwrap_or(Format::Debezium),
    })
}
