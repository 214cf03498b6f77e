//! From settings to roads: what a region's daemon carries.

use std::{future::Future, pin::Pin, sync::Arc};

use crate::{
    changelog::kafka::{KafkaLog, WriterLimits},
    config::{KafkaSettings, LinkSettings, Settings, SourceSettings},
    fault::Result,
    kafka::{Cluster, TopicRules},
    metrics::Metrics,
    names,
    pipeline::{
        capture::{self, CaptureParams},
        deliver::{self, BatchLimits, DeliverParams},
    },
    roster::Roster,
    sink::postgres::{PostgresSink, PostgresSinkConfig},
    source::postgres::{PostgresSource, PostgresSourceConfig},
    task::Stop,
};

/// Something a daemon does until it is asked to stop.
pub struct Road {
    /// For logs.
    pub name: String,
    /// Ends soon after the stop is asked for.
    pub future: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// The roads of a daemon: its source, where it has one, and its links.
///
/// # Errors
/// A Kafka client cannot be set up: a property it does not know.
pub fn roads(
    settings: &Settings,
    roster: &Arc<Roster>,
    metrics: &Arc<Metrics>,
    stop: &Stop,
) -> Result<Vec<Road>> {
    let mut roads = Vec::new();
    if let Some((source, kafka)) = settings.source.as_ref().zip(settings.kafka.as_ref()) {
        roads.push(source_road(settings, source, kafka, roster, metrics, stop)?);
    }
    for link in &settings.links {
        roads.push(link_road(settings, link, roster, metrics, stop)?);
    }
    Ok(roads)
}

/// What a stream's topic must be, by the settings of the region it is in.
pub fn topic_rules(kafka: &KafkaSettings) -> TopicRules {
    TopicRules {
        retention: kafka.retention,
        replication_factor: kafka.replication_factor.into(),
        min_insync_replicas: kafka.min_insync_replicas.into(),
        compacted: false,
    }
}

fn source_road(
    settings: &Settings,
    source: &SourceSettings,
    kafka: &KafkaSettings,
    roster: &Arc<Roster>,
    metrics: &Arc<Metrics>,
    stop: &Stop,
) -> Result<Road> {
    let region = &settings.region;
    let log = KafkaLog::new(
        Cluster { brokers: kafka.brokers.clone(), properties: kafka.properties.0.clone() },
        names::topic(region, &source.stream),
        names::state_topic(region),
        format!("landfall.{region}.source"),
        topic_rules(kafka),
        WriterLimits { linger: source.linger, ..WriterLimits::default() },
    )?;
    let params = CaptureParams {
        region: region.clone(),
        stream: source.stream.clone(),
        database: settings.database.database.clone(),
        heartbeat_interval: source.heartbeat_interval,
        checkpoint_interval: source.checkpoint_interval,
        max_record_bytes: source.max_record_bytes,
    };
    let reader = PostgresSource::new(PostgresSourceConfig {
        address: settings.database.clone(),
        stream: source.stream.clone(),
        scope: source.scope.clone(),
        publication: source.publication.clone(),
        slot: source.slot.clone(),
    });
    let entry = roster.source();
    entry.name_stream(&source.stream);
    let road = capture::run(params, reader, log, entry, Arc::clone(metrics), stop.clone());
    Ok(Road { name: format!("source {region}"), future: Box::pin(road) })
}

fn link_road(
    settings: &Settings,
    link: &LinkSettings,
    roster: &Arc<Roster>,
    metrics: &Arc<Metrics>,
    stop: &Stop,
) -> Result<Road> {
    let log = KafkaLog::new(
        Cluster { brokers: link.brokers.clone(), properties: link.properties.0.clone() },
        names::topic(&link.from, &link.stream),
        names::state_topic(&link.from),
        names::group(&settings.region, &link.from, &link.stream),
        // A link only reads: it makes no topic and holds none to rules that are its owner's.
        TopicRules::default(),
        WriterLimits::default(),
    )?;
    let params = DeliverParams {
        from: link.from.clone(),
        stream: link.stream.clone(),
        limits: BatchLimits { changes: link.batch_changes, bytes: link.batch_bytes },
        open_transaction_timeout: link.open_transaction_timeout,
    };
    let sink = PostgresSink::new(PostgresSinkConfig {
        flush_interval: link.flush_interval,
        ..PostgresSinkConfig::new(
            settings.database.clone(),
            settings.region.clone(),
            link.from.clone(),
            link.stream.as_str(),
        )
    });
    let entry = roster.link(&link.from, &link.stream);
    let road = deliver::run(params, Arc::new(log), sink, entry, Arc::clone(metrics), stop.clone());
    Ok(Road { name: format!("link from {}", link.from), future: Box::pin(road) })
}
