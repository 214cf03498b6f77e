//! Kafka: whether the brokers answer, and whether the topics are what they must be.

use super::{Finding, Severity};
use crate::{
    config::{KafkaSettings, LinkSettings, Settings, SourceSettings},
    fault::{Code, Fault},
    kafka::{Cluster, refuse_differences, topic_facts},
    names,
};

pub(super) async fn check(settings: &Settings) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some((source, kafka)) = settings.source.as_ref().zip(settings.kafka.as_ref()) {
        findings.extend(of_source(settings, source, kafka).await);
    }
    for link in &settings.links {
        findings.extend(of_link(link).await);
    }
    findings
}

async fn of_source(settings: &Settings, source: &SourceSettings, kafka: &KafkaSettings) -> Option<Finding> {
    let topic = names::topic(&settings.region, &source.stream);
    match topic_facts(&kafka.cluster(), &topic).await {
        Ok(Some(facts)) => refuse_differences(&topic, &facts, &kafka.topic_rules())
            .err()
            .map(|fault| of_fault("topic", &fault)),
        Ok(None) => {
            let evidence = format!("topic {topic} is not there yet; the source creates it when it begins");
            Some(Finding::new("topic", Severity::Note, evidence))
        }
        Err(fault) => Some(of_fault("brokers", &fault)),
    }
}

async fn of_link(link: &LinkSettings) -> Option<Finding> {
    let topic = names::topic(&link.from, &link.stream);
    let cluster = Cluster { brokers: link.brokers.clone(), properties: link.properties.0.clone() };
    match topic_facts(&cluster, &topic).await {
        Ok(Some(facts)) if facts.partitions != 1 => {
            let message =
                format!("topic {topic} has {} partitions, a stream has exactly 1", facts.partitions);
            Some(of_fault("link-topic", &Fault::new(Code::PartitionsChanged, message)))
        }
        Ok(Some(_)) => None,
        Ok(None) => {
            let evidence =
                format!("topic {topic} is not there yet: start the daemon of {} with a [source]", link.from);
            Some(Finding::new("link-topic", Severity::Warning, evidence))
        }
        Err(fault) => Some(of_fault("link-brokers", &fault)),
    }
}

fn of_fault(id: &'static str, fault: &Fault) -> Finding {
    Finding::new(id, Severity::Error, format!("{} ({})", fault.message(), fault.code()))
        .mended_by(fault.remedy())
}
