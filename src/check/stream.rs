//! A look into a stream's topic: what its schema records say it carries, how fast it grows, and by which
//! clock. Reads a bounded part of each end, as any reader may, and leaves no trace.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use crate::{
    change::Shape,
    changelog::{
        Bounds, Entry, Log, Reader,
        kafka::{KafkaLog, Topics, WriterLimits},
    },
    clock,
    config::LinkSettings,
    envelope::{Kind, body, body::Genesis, decode},
    fault::Result,
    kafka::{Cluster, TopicRules},
    position::Offset,
    region::Region,
    stamp::Micros,
};

/// How many records of each end are read: seconds of a busy stream, all of a young one.
const READ_MAX: i64 = 20_000;
/// How much of each end is read, where records are packed.
const READ_BYTES_MAX: u64 = 64 << 20;
/// How long each end may take; over a narrow line less is read.
const READ_TIME: Duration = Duration::from_secs(10);
/// How long the next record is waited for: a source that runs appends a heartbeat every second, unless it
/// was told otherwise.
const LIVE_TIME: Duration = Duration::from_secs(3);
/// The span the rate is measured over: long enough that one batch job is not taken for the load.
const RATE_SPAN: Duration = Duration::from_secs(600);
/// What a record takes beside its value: header, key, framing.
const RECORD_OVERHEAD: u64 = 100;

/// What was seen of a stream.
#[derive(Debug)]
pub(super) struct Stream {
    /// What is in the topic.
    pub(super) bounds: Bounds,
    /// The tables its genesis names, where the genesis was read.
    pub(super) scope: Option<Vec<String>>,
    /// The last shape of each table whose schema record was read, by table.
    pub(super) shapes: BTreeMap<(String, String), Arc<Shape>>,
    /// How many records of the topic were read,
    pub(super) read: i64,
    /// and where the last of them stood.
    pub(super) at: Option<Offset>,
    /// Records a second over the last minutes, and over how many seconds; none of an empty topic.
    pub(super) rate: Option<(f64, f64)>,
    /// The bytes of a record, before compression, as the last records have it.
    pub(super) record_bytes: Option<f64>,
    /// A record that came while we looked: when the broker took it in, and when it was here.
    pub(super) arrival: Option<(Micros, Micros)>,
}

impl Stream {
    /// Whether every record of the topic was read.
    pub(super) fn is_whole(&self) -> bool {
        self.bounds.low == Offset(0) && self.read >= self.bounds.high.0
    }
}

/// Looks at a region's own stream.
pub(super) async fn own(cluster: Cluster, region: &Region, stream: &str) -> Result<Option<Stream>> {
    look(cluster, Topics::of(region, stream)).await
}

/// Looks at the stream a link reads.
pub(super) async fn of_link(link: &LinkSettings) -> Result<Option<Stream>> {
    let cluster = Cluster { brokers: link.brokers.clone(), properties: link.properties.0.clone() };
    look(cluster, Topics::of(&link.from, &link.stream)).await
}

/// What is in the topic of a link now; none where there is none.
pub(super) async fn bounds_of_link(link: &LinkSettings) -> Result<Option<Bounds>> {
    let cluster = Cluster { brokers: link.brokers.clone(), properties: link.properties.0.clone() };
    log(cluster, Topics::of(&link.from, &link.stream))?.bounds().await
}

fn log(cluster: Cluster, topics: Topics) -> Result<KafkaLog> {
    // The group is only named to the client: nothing joins it, nothing is committed to it.
    let group = "landfall.check".to_owned();
    KafkaLog::new(cluster, topics, group, TopicRules::default(), WriterLimits::default())
}

/// None where there is no topic.
async fn look(cluster: Cluster, topics: Topics) -> Result<Option<Stream>> {
    let log = log(cluster, topics)?;
    let Some(bounds) = log.bounds().await? else { return Ok(None) };
    let mut stream = Stream {
        bounds,
        scope: None,
        shapes: BTreeMap::new(),
        read: 0,
        at: None,
        rate: None,
        record_bytes: None,
        arrival: None,
    };
    let tail = Offset((bounds.high.0 - READ_MAX).max(bounds.low.0));
    let head = Offset((bounds.low.0 + READ_MAX).min(tail.0));
    if head > bounds.low {
        stream.read(&log, bounds.low, head).await?;
    }
    let (mut bytes, before) = (0, stream.read);
    let mut reader = log.reader(tail)?;
    let until = Instant::now() + READ_TIME;
    while stream.read - before < bounds.high.0 - tail.0 && bytes < READ_BYTES_MAX {
        let Ok(entries) = timeout_at(until, reader.read()).await else { break };
        for entry in entries?.iter().filter(|entry| entry.offset < bounds.high) {
            let shares = stream.at == Some(entry.offset);
            bytes += entry.value.len() as u64 + if shares { 1 } else { RECORD_OVERHEAD };
            stream.take(entry);
        }
    }
    let sampled = stream.read - before;
    stream.record_bytes = (sampled > 0).then(|| bytes as f64 / sampled as f64);
    // What comes from now on shows the broker's clock.
    let mut reader = log.reader(bounds.high)?;
    if let Ok(entries) = timeout_at(Instant::now() + LIVE_TIME, reader.read()).await {
        let arrived = clock::now();
        stream.arrival = entries?.last().map(|entry| (entry.appended, arrived));
    }
    stream.rate = rate(&log, bounds).await?;
    Ok(Some(stream))
}

/// By the broker's clock alone: from the first record of the span to the last there is.
async fn rate(log: &KafkaLog, bounds: Bounds) -> Result<Option<(f64, f64)>> {
    if bounds.high.0 - bounds.low.0 < 2 {
        return Ok(None);
    }
    let newest = first(log, Offset(bounds.high.0 - 1)).await?;
    let Some(newest) = newest else { return Ok(None) };
    let since = Micros(newest.appended.0 - RATE_SPAN.as_micros() as i64);
    let Some(from) = log.since(since).await? else { return Ok(None) };
    let Some(oldest) = first(log, from.max(bounds.low)).await? else { return Ok(None) };
    let seconds = newest.appended.seconds_since(oldest.appended);
    let records = (newest.offset.0 - oldest.offset.0) as f64;
    Ok((seconds > 1.0).then(|| (records / seconds, seconds)))
}

async fn first(log: &KafkaLog, at: Offset) -> Result<Option<Entry>> {
    let mut reader = log.reader(at)?;
    match timeout_at(Instant::now() + READ_TIME, reader.read()).await {
        Ok(entries) => Ok(entries?.into_iter().next()),
        Err(_) => Ok(None),
    }
}

impl Stream {
    async fn read(&mut self, log: &KafkaLog, from: Offset, end: Offset) -> Result<()> {
        let mut reader = log.reader(from)?;
        let until = Instant::now() + READ_TIME;
        let wanted = self.read + end.0 - from.0;
        let mut bytes = 0;
        while self.read < wanted && bytes < READ_BYTES_MAX {
            let Ok(entries) = timeout_at(until, reader.read()).await else { break };
            for entry in entries?.iter().filter(|entry| entry.offset < end) {
                bytes += entry.value.len() as u64;
                self.take(entry);
            }
        }
        Ok(())
    }

    /// A damaged record is the link's to halt on; here it says nothing.
    fn take(&mut self, entry: &Entry) {
        // Several of the stream's may stand at one offset.
        self.read += i64::from(self.at.replace(entry.offset) != Some(entry.offset));
        let Ok(header) = &entry.header else { return };
        match header.kind {
            Kind::Genesis => {
                if let Ok(genesis) = body::from_value::<Genesis>(&entry.value) {
                    // Another life of the stream begins: what came before is not carried any more.
                    self.shapes.clear();
                    self.scope = Some(genesis.scope);
                }
            }
            Kind::Schema => {
                if let Ok((_, shape)) = decode::schema(&entry.value) {
                    self.shapes.insert((shape.schema.to_string(), shape.table.to_string()), shape);
                }
            }
            _ => (),
        }
    }
}
