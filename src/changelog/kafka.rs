//! A log in Kafka: one topic of one partition.

mod control;
mod fetch;
mod reader;
mod traffic;
mod writer;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{
    Offset as KafkaOffset, TopicPartitionList,
    consumer::{CommitMode, Consumer},
};

use control::Control;
pub use fetch::FETCH_BYTES_MAX;
pub use reader::KafkaReader;
pub use writer::{KafkaWriter, PACK_BYTES, WriterLimits};

use crate::{
    changelog::{Bounds, Log},
    fault::{Code, Fault, Result},
    kafka::{Asker, Cluster, REQUEST_TIMEOUT, Resource, TopicRules, ensure_topic, topic_facts},
    names,
    position::Offset,
    region::Region,
    stamp::Micros,
    task,
};

/// The one partition of a stream's topic.
const PARTITION: i32 = 0;

/// How soon it is asked again whether a topic that was made is there.
const MADE_INTERVAL: Duration = Duration::from_millis(100);

/// The topics of a stream.
#[derive(Clone, Debug)]
pub struct Topics {
    /// Its records.
    pub stream: String,
    /// Its region's checkpoints, and where a stream may be begun in its middle.
    pub state: String,
    /// What other regions ask its region.
    pub control: String,
}

impl Topics {
    /// Of a region's stream.
    pub fn of(region: &Region, stream: &str) -> Self {
        Self {
            stream: names::topic(region, stream),
            state: names::state_topic(region),
            control: names::control_topic(region),
        }
    }
}

/// One stream's topic in one cluster.
pub struct KafkaLog {
    cluster: Cluster,
    topic: String,
    state_topic: String,
    control: Control,
    group: String,
    rules: TopicRules,
    limits: WriterLimits,
    fetch_bytes: Option<usize>,
    /// Asks for bounds and publishes group offsets; reads nothing.
    asker: Arc<Asker>,
    /// Others that ask for what readers of other groups published: a client speaks for one.
    askers: Mutex<BTreeMap<String, Arc<Asker>>>,
}

impl KafkaLog {
    /// For a stream's topics; `group` shows where a reader stands.
    ///
    /// # Errors
    /// The client cannot be set up (a property it does not know).
    pub fn new(
        cluster: Cluster,
        topics: Topics,
        group: String,
        rules: TopicRules,
        limits: WriterLimits,
    ) -> Result<Self> {
        let asker = Arc::new(Asker::new(&cluster, Some(&group))?);
        let Topics { stream: topic, state: state_topic, control } = topics;
        let control = Control::new(cluster.clone(), control);
        Ok(Self {
            cluster,
            topic,
            state_topic,
            control,
            group,
            rules,
            limits,
            fetch_bytes: None,
            asker,
            askers: Mutex::default(),
        })
    }

    /// Reads so many bytes with a request; with none, as many as suit what comes.
    #[must_use]
    pub fn fetching(self, fetch_bytes: Option<usize>) -> Self {
        Self { fetch_bytes, ..self }
    }

    /// Its topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The first record that was appended at `time` or later; none where none was.
    ///
    /// # Errors
    /// The cluster does not answer.
    pub async fn since(&self, time: Micros) -> Result<Option<Offset>> {
        let doing = format!("ask for the records of topic {} since a time at {}", self.topic, self.cluster);
        let found = self.ask(move |asker, topic| {
            asker.ask(doing, |client| {
                let mut list = TopicPartitionList::new();
                list.add_partition_offset(topic, PARTITION, KafkaOffset::Offset(time.0 / 1000))?;
                let found = client.offsets_for_times(list, REQUEST_TIMEOUT)?;
                Ok(found.find_partition(topic, PARTITION).and_then(|found| found.offset().to_raw()))
            })
        });
        Ok(found.await?.filter(|offset| *offset >= 0).map(Offset))
    }

    /// What was last kept in the state topic under `key`; none where there is no such topic.
    async fn kept(&self, key: String) -> Result<Option<Vec<u8>>> {
        // Asked first: to one who may not read it, or where it has no leader, a topic looks as if it had no partition.
        let (asker, topic) = (Arc::clone(&self.asker), self.state_topic.clone());
        if task::blocking(move || asker.layout(&topic)).await?.is_none() {
            return Ok(None);
        }
        let (cluster, topic, group) = (self.cluster.clone(), self.state_topic.clone(), self.group.clone());
        let place = format!("read what is kept in topic {topic} at {cluster}");
        let last = task::blocking(move || reader::last_value(&cluster, &topic, key.as_bytes(), &group)).await;
        let resource = Resource::Topic(&self.state_topic);
        last.map_err(|error| self.cluster.fault_of(place, error, "Read", resource))
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Asker, &str) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (asker, topic) = (Arc::clone(&self.asker), self.topic.clone());
        task::blocking(move || question(&asker, &topic)).await
    }
}

impl Log for KafkaLog {
    type Writer = KafkaWriter;
    type Reader = KafkaReader;

    async fn ensure(&self, may_create: bool) -> Result<()> {
        ensure_topic(&self.cluster, &self.topic, &self.rules, may_create).await?;
        // What was in it is in the stream as well.
        let compacted = TopicRules { compacted: true, ..self.rules.clone() };
        ensure_topic(&self.cluster, &self.state_topic, &compacted, true).await
    }

    async fn bounds(&self) -> Result<Option<Bounds>> {
        match self.ask(|asker, topic| asker.layout(topic)).await?.map(|(partitions, _)| partitions) {
            None => return Ok(None),
            Some(1) => (),
            Some(many) => {
                let message = format!("topic {} has {many} partitions, a stream has exactly 1", self.topic);
                return Err(Fault::new(Code::PartitionsChanged, message));
            }
        }
        let doing = format!("ask for the bounds of topic {} at {}", self.topic, self.cluster);
        let bounds = self.ask(|asker, topic| {
            asker.ask(doing, |client| client.fetch_watermarks(topic, PARTITION, REQUEST_TIMEOUT))
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
        KafkaReader::open(&self.cluster, &self.topic, &self.group, from, self.fetch_bytes)
    }

    async fn checkpoint(&self) -> Result<Option<Vec<u8>>> {
        self.kept(self.topic.clone()).await
    }

    async fn start(&self, to: &str) -> Result<Option<Vec<u8>>> {
        self.kept(names::start_key(&self.topic, to)).await
    }

    async fn ask(&self, question: &[u8]) -> Result<()> {
        self.control.ask(question.to_vec()).await
    }

    async fn questions(&self) -> Result<KafkaReader> {
        let rules = TopicRules { retention: control::RETENTION, ..self.rules.clone() };
        let topic = self.control.topic();
        let layout = || {
            let (asker, asked) = (Arc::clone(&self.asker), topic.to_owned());
            task::blocking(move || asker.layout(&asked))
        };
        if layout().await?.is_none() {
            ensure_topic(&self.cluster, topic, &rules, true).await?;
            // Every broker learns of a topic a moment after it was made.
            let deadline = Instant::now() + REQUEST_TIMEOUT;
            while layout().await?.is_none() && Instant::now() < deadline {
                tokio::time::sleep(MADE_INTERVAL).await;
            }
        }
        let (asker, asked) = (Arc::clone(&self.asker), topic.to_owned());
        let doing = format!("ask for the bounds of topic {topic} at {}", self.cluster);
        let (_, high) = task::blocking(move || {
            asker.ask(doing, |client| client.fetch_watermarks(&asked, PARTITION, REQUEST_TIMEOUT))
        })
        .await?;
        KafkaReader::open(&self.cluster, topic, &self.group, Offset(high), self.fetch_bytes)
    }

    fn publish(&self, next: Offset) {
        let mut list = TopicPartitionList::new();
        let added = list.add_partition_offset(&self.topic, PARTITION, KafkaOffset::Offset(next.0));
        if let Err(error) = added.and_then(|()| self.asker.client().commit(&list, CommitMode::Async)) {
            tracing::debug!(%error, topic = self.topic, "group offset not published");
        }
    }

    async fn published_by(&self, group: &str) -> Result<Option<Offset>> {
        let doing = format!("ask where {group} stands in topic {} at {}", self.topic, self.cluster);
        let asker = {
            let mut askers = self.askers.lock().unwrap_or_else(PoisonError::into_inner);
            match askers.get(group) {
                Some(asker) => Arc::clone(asker),
                None => {
                    let asker = Arc::new(Asker::new(&self.cluster, Some(group))?);
                    askers.insert(group.to_owned(), Arc::clone(&asker));
                    asker
                }
            }
        };
        let topic = self.topic.clone();
        let found = task::blocking(move || {
            asker.ask(doing, |client| {
                let mut list = TopicPartitionList::new();
                list.add_partition(&topic, PARTITION);
                let found = client.committed_offsets(list, REQUEST_TIMEOUT)?;
                Ok(found.find_partition(&topic, PARTITION).and_then(|found| found.offset().to_raw()))
            })
        });
        Ok(found.await?.filter(|offset| *offset >= 0).map(Offset))
    }
}
