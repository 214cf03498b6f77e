//! From settings to roads: what a region's daemon carries.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::{
    changelog::kafka::{KafkaLog, PACK_BYTES, Topics, WriterLimits},
    config::{KafkaSettings, LinkSettings, Settings, SourceSettings},
    envelope::Format,
    fault::Result,
    kafka::{Cluster, TopicRules},
    metrics::Metrics,
    names,
    pipeline::{
        capture::{self, CaptureParams},
        deliver::{self, BatchLimits, DeliverParams},
    },
    roster::Roster,
    sink::postgres::{PostgresInspector, PostgresSink, PostgresSinkConfig},
    source::postgres::{PostgresSource, PostgresSourceConfig},
    task::Stop,
};

/// What roads are made of.
#[derive(Debug)]
pub struct Parts {
    /// What the daemon was told.
    pub settings: Settings,
    /// Where a road writes what it does.
    pub roster: Arc<Roster>,
    /// Where it counts.
    pub metrics: Metrics,
    /// Says when to end.
    pub stop: Stop,
}

/// A source or a link at work. It ends soon after [`Parts::stop`] asks, never before.
pub struct Road {
    /// Its name on the roster ([`StateEntry::road`](crate::roster::StateEntry::road)).
    pub name: String,
    /// Its work.
    pub future: BoxFuture<'static, ()>,
}

/// The roads the settings ask for: the source, where there is one, then the links.
///
/// # Errors
/// A Kafka client cannot be set up: a property it does not know.
pub(super) fn roads(parts: &Parts) -> Result<Vec<Road>> {
    let settings = &parts.settings;
    let mut roads = Vec::new();
    if let Some((source, kafka)) = settings.source.as_ref().zip(settings.kafka.as_ref()) {
        roads.push(source_road(parts, source, kafka)?);
    }
    for link in &settings.links {
        roads.push(link_road(parts, link)?);
    }
    Ok(roads)
}

fn source_road(parts: &Parts, source: &SourceSettings, kafka: &KafkaSettings) -> Result<Road> {
    let settings = &parts.settings;
    let region = &settings.region;
    // Where a record may not be as large as a pack, neither is a pack.
    let pack_bytes = match source.format {
        Format::Debezium => 0,
        // Its header may have some kilobytes besides.
        Format::Packed => PACK_BYTES.min(source.max_record_bytes / 2),
    };
    let limits = WriterLimits::default();
    let limits = WriterLimits {
        linger: source.linger,
        pack_bytes,
        batch_bytes: limits.batch_bytes.min(source.max_record_bytes),
        ..limits
    };
    let log = KafkaLog::new(
        kafka.cluster(),
        Topics::of(region, &source.stream),
        format!("landfall.{region}.source"),
        kafka.topic_rules(),
        limits,
    )?;
    let params = CaptureParams {
        region: region.clone(),
        stream: source.stream.clone(),
        database: settings.database.database.clone(),
        heartbeat_interval: source.heartbeat_interval,
        checkpoint_interval: source.checkpoint_interval,
        max_record_bytes: source.max_record_bytes,
        format: source.format,
    };
    let reader = PostgresSource::new(PostgresSourceConfig {
        address: settings.database.clone(),
        stream: source.stream.clone(),
        scope: source.scope.clone(),
        publication: source.publication.clone(),
        slot: source.slot.clone(),
        copy_sessions: source.copy_sessions,
        peers: settings.peers(),
    });
    let entry = parts.roster.source();
    entry.name_stream(&source.stream);
    let name = entry.road().to_owned();
    let road = capture::run(
        params,
        reader,
        log,
        Arc::clone(&parts.roster),
        parts.metrics.clone(),
        parts.stop.clone(),
    );
    Ok(Road { name, future: Box::pin(road) })
}

fn link_road(parts: &Parts, link: &LinkSettings) -> Result<Road> {
    let settings = &parts.settings;
    let log = KafkaLog::new(
        Cluster { brokers: link.brokers.clone(), properties: link.properties.0.clone() },
        Topics::of(&link.from, &link.stream),
        names::group(&settings.region, &link.from, &link.stream),
        // A link only reads: it makes no topic and holds none to rules that are its owner's.
        TopicRules::default(),
        WriterLimits::default(),
    )?
    .fetching(link.fetch_bytes);
    let params = DeliverParams {
        here: settings.region.clone(),
        from: link.from.clone(),
        stream: link.stream.clone(),
        limits: BatchLimits { changes: link.batch_changes, bytes: link.batch_bytes },
        open_transaction_timeout: link.open_transaction_timeout,
    };
    if let Some(interval) = link.verify_interval {
        parts.metrics.verifies_every(&link.from, &link.stream, interval);
    }
    let target = PostgresSinkConfig {
        flush_interval: link.flush_interval,
        verify_interval: link.verify_interval,
        on_refusal: link.on_refusal,
        copy_sessions: link.copy_sessions,
        ..PostgresSinkConfig::new(
            settings.database.clone(),
            settings.region.clone(),
            link.from.clone(),
            link.stream.as_str(),
        )
    };
    let target = (PostgresSink::new(target.clone()), PostgresInspector::new(target));
    let entry = parts.roster.link(&link.from, &link.stream);
    let name = entry.road().to_owned();
    let road = deliver::run(params, Arc::new(log), target, entry, parts.metrics.clone(), parts.stop.clone());
    Ok(Road { name, future: Box::pin(road) })
}
