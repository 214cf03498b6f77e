//! `[[link]]`: how another region's changes come in.

use std::{io, path::Path, time::Duration};

use super::{
    DAY, SECOND,
    kafka::{Properties, broker, properties},
    stream_name,
    walk::Section,
};
use crate::{
    changelog::kafka::FETCH_BYTES_MAX,
    names,
    region::Region,
    sink::{COPY_SESSIONS_MAX, OnRefusal},
};

/// How another region's changes come in.
#[derive(Clone, Debug)]
pub struct LinkSettings {
    /// The region they come from.
    pub from: Region,
    /// That region's Kafka: where to ask first, as `host:port`.
    pub brokers: Vec<String>,
    /// The stream that is read.
    pub stream: String,
    /// How to be let in.
    pub properties: Properties,
    /// How many changes one target transaction holds at most, unless one source transaction has more.
    pub batch_changes: usize,
    /// How many bytes of changes are held in memory for it.
    pub batch_bytes: usize,
    /// How many bytes one request to the other region's Kafka brings; none where as many as suit what comes.
    pub fetch_bytes: Option<usize>,
    /// How long a transaction larger than memory may stay open without anything arriving.
    pub open_transaction_timeout: Duration,
    /// How long an applied batch may wait to be flushed.
    pub flush_interval: Duration,
    /// What becomes of a transaction that this region's database refuses.
    pub on_refusal: OnRefusal,
    /// Sessions that bring in a backfill's rows side by side.
    pub copy_sessions: u16,
    /// How often the region is compared with the other; none where only when somebody asks.
    pub verify_interval: Option<Duration>,
}

pub(super) fn walk(
    mut section: Section<'_>,
    here: Option<&Region>,
    read: &dyn Fn(&Path) -> io::Result<String>,
) -> Option<LinkSettings> {
    section.require("from", "\"us-east-1\"");
    let from: Option<Region> = section.parsed("from", str::parse);
    if from.is_some() && from.as_ref() == here {
        section.wrong("from", "is this region: a link brings another region's changes");
    }
    section.require("brokers", "[\"kafka.us-east-1.internal:9092\"]");
    let brokers = section.list("brokers", broker);
    let stream_given = section.has("stream");
    let stream = section.parsed("stream", stream_name);
    let properties = properties(&mut section, read);
    section.parsed("ordering", |text| match text {
        "transaction" => Ok(()),
        "key" => Err("`key` is not available yet: only `transaction` is".to_owned()),
        _ => Err(format!("`{text}` is unknown: only `transaction` is known")),
    });
    let batch_changes = section.number("batch_changes", 1..=1_000_000);
    let batch_bytes = section.size("batch_bytes", 64 << 10..=64 << 20);
    let fetch_bytes = section.size("fetch_bytes", 64 << 10..=FETCH_BYTES_MAX as u64);
    let open_timeout = section.duration("open_transaction_timeout", SECOND..=3600 * SECOND);
    let flush = section.duration("flush_interval", Duration::from_millis(1)..=2 * SECOND);
    let verify = section.duration("verify_interval", 60 * SECOND..=30 * DAY);
    let on_refusal = section.word("on_refusal", &[("halt", OnRefusal::Halt), ("park", OnRefusal::Park)]);
    let copy_sessions = section.number("copy_sessions", 1..=u64::from(COPY_SESSIONS_MAX));
    section.finish();
    if stream_given && stream.is_none() {
        return None;
    }
    let size =
        |number: Option<u64>, default| number.and_then(|it| usize::try_from(it).ok()).unwrap_or(default);
    Some(LinkSettings {
        from: from?,
        brokers: brokers?,
        stream: stream.unwrap_or_else(|| names::STREAM.to_owned()),
        properties,
        batch_changes: size(batch_changes, 2_000),
        batch_bytes: size(batch_bytes, 4 << 20),
        fetch_bytes: fetch_bytes.and_then(|it| usize::try_from(it).ok()),
        open_transaction_timeout: open_timeout.unwrap_or(60 * SECOND),
        flush_interval: flush.unwrap_or(Duration::from_millis(100)),
        on_refusal: on_refusal.unwrap_or_default(),
        copy_sessions: copy_sessions.and_then(|it| u16::try_from(it).ok()).unwrap_or(2),
        verify_interval: verify,
    })
}

/// A stream is read by one link: two would fight for its progress.
pub(super) fn refuse_duplicates(root: &Section<'_>, links: &[Option<LinkSettings>]) {
    for (at, link) in links.iter().enumerate() {
        let Some(link) = link else { continue };
        let same = |other: &LinkSettings| other.from == link.from && other.stream == link.stream;
        if let Some(first) = links[..at].iter().position(|other| other.as_ref().is_some_and(same)) {
            root.wrong(
                &format!("link[{at}]"),
                format!("reads the stream `{}` of {} as link[{first}] does", link.stream, link.from),
            );
        }
    }
}
