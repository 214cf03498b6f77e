//! Kafka: whether the brokers answer, whether the topics are what they must be, whether the brokers can hold
//! what is coming, and what their clocks say.

use futures_util::future::join_all;

use super::{
    Finding, Kind, clocks, database, error, halt, note, of_fault,
    room::{Growth, of_buffer},
    stream::{self, Stream},
    warning,
};
use crate::{
    config::{KafkaSettings, LinkSettings, Settings, SourceSettings},
    fault::{Code, Fault, Result},
    kafka::{Cluster, TopicFacts, TopicRules, cluster_facts, refuse_differences, rooms, topic_facts},
    names,
};

/// What Kafka adds to a record of ours beside its key and value.
const RECORD_ROOM: u64 = 1 << 10;
/// What a link must be able to make up for.
const DAY_MILLIS: i64 = 86_400_000;

/// What was seen of the links' streams, in their order; none where the brokers did not answer.
pub(super) type Streams = Vec<Option<Option<Stream>>>;

pub(super) async fn check(settings: &Settings) -> (Streams, Vec<Finding>) {
    let source = async {
        match settings.source.as_ref().zip(settings.kafka.as_ref()) {
            Some((source, kafka)) => of_source(settings, source, kafka).await,
            None => Vec::new(),
        }
    };
    let links = join_all(settings.links.iter().map(of_link));
    let (mut findings, links) = tokio::join!(source, links);
    let mut streams = Vec::new();
    for (stream, found) in links {
        streams.push(stream);
        findings.extend(found);
    }
    (streams, findings)
}

async fn of_source(settings: &Settings, source: &SourceSettings, kafka: &KafkaSettings) -> Vec<Finding> {
    let topic = names::topic(&settings.region, &source.stream);
    let mut findings = Vec::new();
    if let Err(fault) = look_at_source(settings, source, kafka, &topic, &mut findings).await {
        findings.push(of_fault(Kind::Brokers, &fault));
    }
    findings
}

async fn look_at_source(
    settings: &Settings,
    source: &SourceSettings,
    kafka: &KafkaSettings,
    topic: &str,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    let cluster = kafka.cluster();
    let brokers = cluster_facts(&cluster).await?;
    if brokers.brokers.len() < usize::from(kafka.min_insync_replicas) {
        findings.push(error(
            Kind::BrokersFew,
            format!(
                "{} broker(s) answer, and a change counts as safe once {} have it",
                brokers.brokers.len(),
                kafka.min_insync_replicas
            ),
            "start more brokers: the source goes on by itself",
        ));
    }
    let facts = topic_facts(&cluster, topic).await?;
    let rules = kafka.topic_rules();
    findings.extend(if facts.is_none() && database::has_begun(settings, source).await {
        let evidence = format!("topic {topic} is gone, and stream {} has begun", source.stream);
        Some(halt(Kind::Topic, Code::TopicLost, &evidence))
    } else {
        of_topic(&cluster, topic, facts.as_ref(), &rules)
    });
    let state = names::state_topic(&settings.region);
    let compacted = TopicRules { compacted: true, ..rules };
    findings.extend(of_topic(&cluster, &state, topic_facts(&cluster, &state).await?.as_ref(), &compacted));
    let Some(facts) = facts else {
        let few = usize::from(kafka.min_insync_replicas)..usize::from(kafka.replication_factor);
        if few.contains(&brokers.brokers.len()) {
            findings.push(error(
                Kind::BrokersFew,
                format!(
                    "{} broker(s) answer, and {} copies of each record are wanted",
                    brokers.brokers.len(),
                    kafka.replication_factor
                ),
                "start more brokers, or set kafka.replication_factor and kafka.min_insync_replicas",
            ));
        }
        return Ok(());
    };
    let most: Option<u64> = facts.setting("max.message.bytes").and_then(|most| most.parse().ok());
    let wanted = source.max_record_bytes as u64 + RECORD_ROOM;
    if let Some(most) = most.filter(|most| *most < wanted) {
        findings.push(error(
            Kind::TopicRecordSize,
            format!(
                "topic {topic} takes records of up to {most} bytes, source.max_record_bytes is {}",
                source.max_record_bytes
            ),
            format!(
                "kafka-configs.sh --bootstrap-server {} --alter --topic {topic} --add-config max.message.bytes={wanted}",
                kafka.brokers.join(",")
            ),
        ));
    }
    let stream = stream::own(cluster.clone(), &settings.region, &source.stream).await?;
    let rooms = rooms(&cluster, &brokers, topic).await;
    let growth = stream.as_ref().and_then(|stream| {
        let ((records, seconds), record_bytes) = stream.rate.zip(stream.record_bytes)?;
        Some(Growth { records, seconds, record_bytes, held: stream.bounds.high.0 - stream.bounds.low.0 })
    });
    findings.push(of_buffer(topic, growth, rooms.as_deref(), kafka));
    let whose = "the clock of this region's Kafka";
    findings.extend(
        stream.and_then(|stream| stream.arrival).map(|(stamped, here)| clocks::heard(whose, stamped, here)),
    );
    Ok(())
}

/// Whether a topic of ours is what it must be.
fn of_topic(
    cluster: &Cluster,
    topic: &str,
    facts: Option<&TopicFacts>,
    rules: &TopicRules,
) -> Option<Finding> {
    let Some(facts) = facts else {
        let evidence =
            format!("topic {topic} is not there yet; the source creates it when it begins, where it may");
        return Some(note(Kind::Topic, evidence).mended_by(rules.creation(cluster, topic)));
    };
    refuse_differences(cluster, topic, facts, rules).err().map(|fault| of_fault(Kind::Topic, &fault))
}

async fn of_link(link: &LinkSettings) -> (Option<Option<Stream>>, Vec<Finding>) {
    let mut findings = Vec::new();
    let stream = look_at_link(link, &mut findings).await;
    match stream {
        Ok(stream) => (Some(stream), findings),
        Err(fault) => {
            let kind = match fault.code() {
                Code::PartitionsChanged => Kind::LinkTopic,
                _ => Kind::LinkBrokers,
            };
            findings.push(of_fault(kind, &fault));
            (None, findings)
        }
    }
}

async fn look_at_link(
    link: &LinkSettings,
    findings: &mut Vec<Finding>,
) -> std::result::Result<Option<Stream>, Fault> {
    let topic = names::topic(&link.from, &link.stream);
    let cluster = Cluster { brokers: link.brokers.clone(), properties: link.properties.0.clone() };
    let (facts, stream) = tokio::try_join!(topic_facts(&cluster, &topic), stream::of_link(link))?;
    let Some((facts, stream)) = facts.zip(stream) else {
        let evidence =
            format!("topic {topic} is not there yet: start the daemon of {} with a [source]", link.from);
        findings.push(note(Kind::LinkTopic, evidence));
        return Ok(None);
    };
    let kept: Option<i64> = facts.setting("retention.ms").and_then(|kept| kept.parse().ok());
    if let Some(kept) = kept.filter(|kept| (0..DAY_MILLIS).contains(kept)) {
        findings.push(warning(
            Kind::LinkRetention,
            format!("topic {topic} keeps records for {} s: a longer cut loses changes", kept / 1000),
            format!(
                "kafka.retention = \"24h\" in the settings of {}, and retention.ms={DAY_MILLIS} on the topic",
                link.from
            ),
        ));
    }
    let whose = format!("the clock of {}'s Kafka", link.from);
    findings.push(match stream.arrival {
        Some((stamped, here)) => clocks::heard(&whose, stamped, here),
        None => clocks::unheard(&whose, "no record came while we listened"),
    });
    Ok(Some(stream))
}
