//! A log in Kafka: one topic of one partition.

mod reader;
mod writer;

use std::{sync::Arc, time::Duration};

use rdkafka::{
    Offset as KafkaOffset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer},
};

pub use reader::KafkaReader;
pub use writer::{KafkaWriter, WriterLimits};

use crate::{
    changelog::{Bounds, Log},
    fault::{Code, Fault, Result},
    kafka::{Cluster, REQUEST_TIMEOUT, TopicRules, ensure_topic, fault_of, topic_facts},
    position::Offset,
    task,
};

/// The one partition of a stream's topic.
const PARTITION: i32 = 0;

/// One stream's topic in one cluster.
pub struct KafkaLog {
    cluster: Cluster,
    topic: String,
    state_topic: String,
    group: String,
    rules: TopicRules,
    limits: WriterLimits,
    /// Asks for bounds and publishes group offsets; reads nothing.
    probe: Arc<BaseConsumer>,
}

impl KafkaLog {
    /// For `topic`, with its checkpoints in `state_topic`; `group` shows where a reader stands.
    ///
    /// # Errors
    /// The client cannot be set up (a property it does not know).
    pub fn new(
        cluster: Cluster,
        topic: String,
        state_topic: String,
        group: String,
        rules: TopicRules,
        limits: WriterLimits,
    ) -> Result<Self> {
        let mut config = cluster.client("probe");
        config.set("group.id", &group).set("enable.auto.commit", "false");
        let probe = config.create().map_err(|error| fault_of("set up a Kafka client", error))?;
        Ok(Self { cluster, topic, state_topic, group, rules, limits, probe: Arc::new(probe) })
    }

    /// Its topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    async fn ask<T: Send + 'static>(
        &self,
        what: &'static str,
        question: impl FnOnce(&BaseConsumer, &str) -> rdkafka::error::KafkaResult<T> + Send + 'static,
    ) -> Result<T> {
        let (probe, topic) = (Arc::clone(&self.probe), self.topic.clone());
        let answer = task::blocking(move || question(&probe, &topic)).await;
        answer.map_err(|error| {
            fault_of(format_args!("{what} of topic {} at {}", self.topic, self.cluster), error)
        })
    }
}

impl Log for KafkaLog {
    type Writer = KafkaWriter;
    type Reader = KafkaReader;

    async fn ensure(&self, may_create: bool) -> Result<()> {
        let compacted = TopicRules { compacted: true, ..self.rules.clone() };
        for (topic, rules) in [(&self.topic, &self.rules), (&self.state_topic, &compacted)] {
            ensure_topic(&self.cluster, topic, rules, may_create).await?;
        }
        Ok(())
    }

    async fn bounds(&self) -> Result<Option<Bounds>> {
        let partitions = self.ask("ask for the partitions", |probe, topic| {
            let metadata = probe.fetch_metadata(Some(topic), REQUEST_TIMEOUT)?;
            let found =
                metadata.topics().iter().find(|found| found.name() == topic && found.error().is_none());
            Ok(found.map_or(0, |found| found.partitions().len()))
        });
        match partitions.await? {
            0 => return Ok(None),
            1 => (),
            many => {
                let message = format!("topic {} has {many} partitions, a stream has exactly 1", self.topic);
                return Err(Fault::new(Code::PartitionsChanged, message));
            }
        }
        let bounds = self.ask("ask for the bounds", |probe, topic| {
            probe.fetch_watermarks(topic, PARTITION, REQUEST_TIMEOUT)
        });
        let (low, high) = bounds.await?;
        Ok(Some(Bounds { low: Offset(low), high: Offset(high) }))
    }

    async fn retention(&self) -> Result<Option<Duration>> {
        let facts = topic_facts(&self.cluster, &self.topic).await?;
        Ok(facts.and_then(|facts| facts.retention()))
    }

    fn writer(&self) -> Result<KafkaWriter> {
        KafkaWriter::open(&self.cluster, &self.topic, &self.state_topic, self.limits)
    }

    fn reader(&self, from: Offset) -> Result<KafkaReader> {
        KafkaReader::open(&self.cluster, &self.topic, &self.group, from)
    }

    async fn checkpoint(&self) -> Result<Option<Vec<u8>>> {
        let (cluster, topic, group) = (self.cluster.clone(), self.state_topic.clone(), self.group.clone());
        let place = format!("read checkpoints of topic {topic} at {cluster}");
        let key = self.topic.clone();
        let last = task::blocking(move || reader::last_value(&cluster, &topic, key.as_bytes(), &group)).await;
        last.map_err(|error| fault_of(place, error))
    }

    fn publish(&self, next: Offset) {
        let mut list = TopicPartitionList::new();
        let added = list.add_partition_offset(&self.topic, PARTITION, KafkaOffset::Offset(next.0));
        if let Err(error) = added.and_then(|()| self.probe.commit(&list, CommitMode::Async)) {
            tracing::debug!(%error, topic = self.topic, "group offset not published");
        }
    }
}
