//! What a topic must be to hold a stream for a day: created so, or refused with the difference.

use std::time::{Duration, Instant};

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    client::DefaultClientContext,
    consumer::Consumer,
    error::KafkaError,
    types::RDKafkaErrorCode,
};

use super::{Asker, Cluster, REQUEST_TIMEOUT, Resource, fault_of};
use crate::{
    fault::{Code, Fault, Result},
    task,
};

/// How long a topic that is made may not be there yet, or one that is deleted still be, and how often it is looked for.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(30);
const SETTLE_LOOK: Duration = Duration::from_millis(200);

/// How many copies must have a record before it counts.
const MIN_INSYNC: &str = "min.insync.replicas";

/// What a stream's topic must be.
#[derive(Clone, Debug, Default)]
pub struct TopicRules {
    /// How long records are kept at least.
    pub retention: Duration,
    /// Copies of each record.
    pub replication_factor: i32,
    /// Copies that must have a record before it counts.
    pub min_insync_replicas: i32,
    /// Compacted by key, in place of deleted by age: for the small topic of checkpoints.
    pub compacted: bool,
}

impl TopicRules {
    /// What a topic is made with.
    fn settings(&self) -> Vec<(&'static str, String)> {
        let mut settings = vec![
            ("message.timestamp.type", "LogAppendTime".to_owned()),
            (MIN_INSYNC, self.min_insync_replicas.to_string()),
            ("cleanup.policy", if self.compacted { "compact" } else { "delete" }.to_owned()),
        ];
        if self.compacted {
            // Each session of a link reads it whole, and a segment is not compacted while it is written.
            settings.push(("segment.ms", "600000".to_owned()));
        } else {
            settings.extend([
                ("retention.ms", self.retention.as_millis().to_string()),
                ("retention.bytes", "-1".to_owned()),
                // A segment goes only as a whole: an hour bounds what is kept past its time.
                ("segment.ms", "3600000".to_owned()),
            ]);
        }
        settings
    }

    /// Makes such a topic, for whoever keeps that from us.
    pub fn creation(&self, cluster: &Cluster, topic: &str) -> String {
        let settings = self.settings().into_iter().map(|(name, value)| format!(" --config {name}={value}"));
        format!(
            "kafka-topics.sh --bootstrap-server {cluster} --create --topic {topic} --partitions 1 --replication-factor {}{}",
            self.replication_factor,
            settings.collect::<String>()
        )
    }
}

/// What a topic is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicFacts {
    /// Its partitions.
    pub partitions: usize,
    /// Copies of its first partition.
    pub replicas: usize,
    /// Effective settings, the broker's defaults included.
    pub settings: Vec<(String, String)>,
}

impl TopicFacts {
    /// A setting's effective value.
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.settings.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// How long records are kept; none where for ever.
    pub fn retention(&self) -> Option<Duration> {
        let millis: i64 = self.setting("retention.ms")?.parse().ok()?;
        u64::try_from(millis).ok().map(Duration::from_millis)
    }
}

/// Who the brokers of a cluster are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterFacts {
    /// Each, as it announces itself.
    pub brokers: Vec<BrokerAddress>,
}

/// A broker, as it announces itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerAddress {
    /// Its number.
    pub id: i32,
    /// Where it listens.
    pub host: String,
    /// The port there.
    pub port: u16,
}

/// Asks who the brokers are.
///
/// # Errors
/// The cluster does not answer.
pub async fn cluster_facts(cluster: &Cluster) -> Result<ClusterFacts> {
    let (asker, doing) = (Asker::new(cluster, None)?, format!("ask for the brokers at {cluster}"));
    let question = move || asker.ask(doing, |client| client.fetch_metadata(None, REQUEST_TIMEOUT));
    let metadata = task::blocking(question).await?;
    let brokers = metadata.brokers().iter().map(|broker| BrokerAddress {
        id: broker.id(),
        host: broker.host().to_owned(),
        port: u16::try_from(broker.port()).unwrap_or(0),
    });
    Ok(ClusterFacts { brokers: brokers.collect() })
}

/// Asks the cluster what a topic is; none where there is none.
///
/// # Errors
/// The cluster does not answer.
pub async fn topic_facts(cluster: &Cluster, topic: &str) -> Result<Option<TopicFacts>> {
    let Some((partitions, replicas)) = layout(cluster, topic).await? else { return Ok(None) };
    let admin = admin(cluster)?;
    let resource = ResourceSpecifier::Topic(topic);
    let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT));
    let doing = || format!("describe topic {topic} at {cluster}");
    let fault = |error| cluster.fault_of(doing(), error, "DescribeConfigs", Resource::Topic(topic));
    let mut answers = admin.describe_configs([&resource], &options).await.map_err(fault)?;
    let answer = answers.pop().ok_or_else(|| Fault::new(Code::KafkaRejected, doing()))?;
    let described = answer.map_err(|code| fault(KafkaError::Global(code)))?;
    // Every topic has some: the library tells nothing of a refusal but that it is empty.
    if described.entries.is_empty() {
        return Err(cluster.denied(doing(), "DescribeConfigs", Resource::Topic(topic)));
    }
    let settings = described
        .entries
        .into_iter()
        .filter_map(|entry| entry.value.map(|value| (entry.name, value)))
        .collect();
    Ok(Some(TopicFacts { partitions, replicas, settings }))
}

/// How many partitions a topic has, and replicas of the first; none where there is no such topic.
async fn layout(cluster: &Cluster, topic: &str) -> Result<Option<(usize, usize)>> {
    let (asker, topic) = (Asker::new(cluster, None)?, topic.to_owned());
    task::blocking(move || asker.layout(&topic)).await
}

/// Makes sure a topic is what it must be, and creates one that is not there where it `may` be. One that
/// is not there and may not be created is left for the reader to miss: it knows what is gone with it.
///
/// # Errors
/// [`Code::TopicSettings`] or [`Code::PartitionsChanged`] with each difference and how to mend it.
pub async fn ensure_topic(
    cluster: &Cluster,
    topic: &str,
    rules: &TopicRules,
    may_create: bool,
) -> Result<()> {
    if let Some(facts) = topic_facts(cluster, topic).await? {
        return refuse_differences(cluster, topic, &facts, rules);
    }
    if !may_create {
        return Ok(());
    }
    let settings = rules.settings();
    let new = NewTopic::new(topic, 1, TopicReplication::Fixed(rules.replication_factor));
    let new = settings.iter().fold(new, |new, (name, value)| new.set(name, value));
    let options = AdminOptions::new().operation_timeout(Some(REQUEST_TIMEOUT));
    let doing = || format!("create topic {topic} at {cluster}");
    let fault = |error| cluster.fault_of(doing(), error, "Create", Resource::Topic(topic));
    let answers = admin(cluster)?.create_topics([&new], &options).await.map_err(fault)?;
    match answers.into_iter().next() {
        Some(Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => (),
        Some(Err((_, code @ RDKafkaErrorCode::InvalidReplicationFactor))) => {
            let message = format!("{} with {} replicas: {code}", doing(), rules.replication_factor);
            return Err(Fault::new(Code::TopicSettings, message).remedied_by(
                "start more brokers, or set kafka.replication_factor and kafka.min_insync_replicas",
            ));
        }
        Some(Err((_, code))) => return Err(fault(KafkaError::Global(code))),
        None => return Err(Fault::new(Code::KafkaRejected, doing())),
    }
    settle(cluster, topic, true).await.map_err(|fault| fault.at(doing()))
}

/// Waits until a topic is there, or is not: a broker answers before every one of them knows it.
async fn settle(cluster: &Cluster, topic: &str, there: bool) -> Result<()> {
    let since = Instant::now();
    while layout(cluster, topic).await?.is_some() != there {
        if since.elapsed() > SETTLE_TIMEOUT {
            let is = if there { "not there" } else { "still there" };
            let message = format!("it is {is} after {} s", SETTLE_TIMEOUT.as_secs());
            return Err(Fault::new(Code::KafkaRejected, message));
        }
        tokio::time::sleep(SETTLE_LOOK).await;
    }
    Ok(())
}

/// Deletes a topic with all it holds; good too where there is none. Returns once it is gone.
///
/// # Errors
/// The cluster does not answer, or does not let us.
pub async fn delete_topic(cluster: &Cluster, topic: &str) -> Result<()> {
    let options = AdminOptions::new().operation_timeout(Some(REQUEST_TIMEOUT));
    let doing = || format!("delete topic {topic} at {cluster}");
    let fault = |error| cluster.fault_of(doing(), error, "Delete", Resource::Topic(topic));
    let answers = admin(cluster)?.delete_topics(&[topic], &options).await.map_err(fault)?;
    match answers.into_iter().next() {
        Some(Ok(_) | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition))) => (),
        Some(Err((_, code))) => return Err(fault(KafkaError::Global(code))),
        None => return Err(Fault::new(Code::KafkaRejected, doing())),
    }
    settle(cluster, topic, false).await.map_err(|fault| fault.at(doing()))
}

/// Compares what a topic is with what it must be.
///
/// # Errors
/// [`Code::TopicSettings`] or [`Code::PartitionsChanged`] with each difference and how to mend it.
pub fn refuse_differences(
    cluster: &Cluster,
    topic: &str,
    facts: &TopicFacts,
    rules: &TopicRules,
) -> Result<()> {
    if facts.partitions != 1 {
        return Err(Fault::new(
            Code::PartitionsChanged,
            format!("topic {topic} has {} partitions, a stream has exactly 1", facts.partitions),
        ));
    }
    let differences = differences(facts, rules);
    if differences.is_empty() {
        return Ok(());
    }
    let list: Vec<_> = differences.iter().map(|(is, must)| format!("{is}, must be {must}")).collect();
    let few = (facts.replicas as i64) < i64::from(rules.replication_factor);
    let mut mend = Vec::new();
    if few {
        mend.push(format!(
            "kafka-reassign-partitions.sh --bootstrap-server {cluster} --execute --reassignment-json-file FILE, which names {} brokers: \
             {{\"version\":1,\"partitions\":[{{\"topic\":\"{topic}\",\"partition\":0,\"replicas\":[…]}}]}}",
            rules.replication_factor
        ));
    }
    // More replicas than there are in sync would be asked for: nothing could be appended. It is said again once they are there.
    let later = |must: &str| few && must.starts_with(MIN_INSYNC);
    let set: Vec<_> = differences
        .iter()
        .map(|(_, must)| &**must)
        .filter(|must| must.contains('=') && !later(must))
        .collect();
    if !set.is_empty() {
        mend.push(format!(
            "kafka-configs.sh --bootstrap-server {cluster} --alter --entity-type topics --entity-name {topic} --add-config {}",
            set.join(",")
        ));
    }
    Err(Fault::new(Code::TopicSettings, format!("topic {topic}: {}", list.join("; ")))
        .remedied_by(mend.join("; then ")))
}

/// Each setting that would lose data or break order: what it is, what it must be.
fn differences(facts: &TopicFacts, rules: &TopicRules) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut require = |name: &str, fits: &dyn Fn(&str) -> bool, must: String| {
        let is = facts.setting(name).unwrap_or("unknown");
        if !fits(is) {
            found.push((format!("{name}={is}"), format!("{name}={must}")));
        }
    };
    let number = |text: &str| text.parse::<i64>().ok();
    let policy = if rules.compacted { "compact" } else { "delete" };
    require("cleanup.policy", &|is| is == policy, policy.into());
    if !rules.compacted {
        let least = rules.retention.as_millis() as i64;
        require(
            "retention.ms",
            &|is| number(is).is_some_and(|is| is == -1 || is >= least),
            least.to_string(),
        );
        require("retention.bytes", &|is| is == "-1", "-1".into());
        require("message.timestamp.type", &|is| is == "LogAppendTime", "LogAppendTime".into());
    }
    let least = i64::from(rules.min_insync_replicas);
    require(MIN_INSYNC, &|is| number(is).is_some_and(|is| is >= least), least.to_string());
    require("unclean.leader.election.enable", &|is| is == "false", "false".into());
    if (facts.replicas as i64) < i64::from(rules.replication_factor) {
        found
            .push((format!("{} replicas", facts.replicas), format!("at least {}", rules.replication_factor)));
    }
    found
}

fn admin(cluster: &Cluster) -> Result<AdminClient<DefaultClientContext>> {
    cluster.client("admin").create().map_err(|error| fault_of("set up a Kafka admin client", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_that_would_lose_data_is_named() {
        let rules = TopicRules {
            retention: Duration::from_secs(86_400),
            replication_factor: 3,
            min_insync_replicas: 2,
            compacted: false,
        };
        let good = [
            ("cleanup.policy", "delete"),
            ("retention.ms", "86400000"),
            ("retention.bytes", "-1"),
            ("message.timestamp.type", "LogAppendTime"),
            ("min.insync.replicas", "2"),
            ("unclean.leader.election.enable", "false"),
        ];
        let facts = |spoiled: Option<(&str, &str)>| TopicFacts {
            partitions: 1,
            replicas: 3,
            settings: good
                .iter()
                .map(|(key, value)| match spoiled {
                    Some((name, spoiled)) if name == *key => (name.to_owned(), spoiled.to_owned()),
                    _ => ((*key).to_owned(), (*value).to_owned()),
                })
                .collect(),
        };
        let cluster = Cluster { brokers: vec!["k:9092".into()], properties: Vec::new() };
        let refuse = |facts: &TopicFacts| refuse_differences(&cluster, "t", facts, &rules).unwrap_err();
        assert!(differences(&facts(None), &rules).is_empty());
        assert!(differences(&facts(Some(("retention.ms", "-1"))), &rules).is_empty());
        for spoiled in [
            ("cleanup.policy", "compact,delete"),
            ("retention.ms", "3600000"),
            ("retention.bytes", "1073741824"),
            ("message.timestamp.type", "CreateTime"),
            ("min.insync.replicas", "1"),
            ("unclean.leader.election.enable", "true"),
        ] {
            let fault = refuse(&facts(Some(spoiled)));
            assert_eq!(fault.code(), Code::TopicSettings);
            assert!(fault.message().contains(&format!("{}={}", spoiled.0, spoiled.1)), "{fault}");
        }
        let many = TopicFacts { partitions: 2, ..facts(None) };
        assert_eq!(refuse(&many).code(), Code::PartitionsChanged);

        // Of one replica two cannot be in sync: until it has more, nothing is set that would keep records out.
        let alone = |spoiled| TopicFacts { replicas: 1, ..facts(spoiled) };
        let fault = refuse(&alone(Some(("min.insync.replicas", "1"))));
        assert!(fault.message().contains("min.insync.replicas=1, must be min.insync.replicas=2"), "{fault}");
        let remedy = fault.remedy();
        assert!(remedy.starts_with("kafka-reassign-partitions.sh --bootstrap-server k:9092 "), "{remedy}");
        assert!(!remedy.contains("--add-config"), "{remedy}");
        let fault = refuse(&alone(Some(("retention.ms", "3600000"))));
        assert!(fault.remedy().ends_with("; then kafka-configs.sh --bootstrap-server k:9092 --alter --entity-type topics --entity-name t --add-config retention.ms=86400000"), "{fault}");
    }
}
