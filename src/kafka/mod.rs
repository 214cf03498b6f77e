//! Kafka as a technology: how its clients are set up, what its errors mean, what a topic must be.

mod access;
mod log_dirs;
mod topic;

use std::{fmt, time::Duration};

use rdkafka::{ClientConfig, error::KafkaError, types::RDKafkaErrorCode};

use crate::{
    fault::{Code, Fault},
    secret::Secret,
};

pub use access::{Asker, Resource};
pub use log_dirs::{Room, rooms};
pub use topic::{
    BrokerAddress, ClusterFacts, TopicFacts, TopicRules, cluster_facts, delete_topic, ensure_topic,
    refuse_differences, topic_facts,
};

/// How long a request to a broker may take before it counts as unanswered. Several round trips over
/// the widest area.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Which cluster, and how to be let in.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// `host:port`, one or more.
    pub brokers: Vec<String>,
    /// Further client properties (`security.protocol`, `sasl.*`, `ssl.*`); values may be secrets.
    pub properties: Vec<(String, Secret)>,
}

impl Cluster {
    /// The settings every client of ours begins with.
    pub fn client(&self, name: &str) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", self.brokers.join(","))
            .set("client.id", format!("landfall-{name}"))
            .set("socket.keepalive.enable", "true")
            .set("reconnect.backoff.ms", "50")
            // A region that comes back is found within seconds, not tens of them.
            .set("reconnect.backoff.max.ms", "2000")
            .set("socket.connection.setup.timeout.ms", "5000")
            .set("socket.timeout.ms", "10000")
            // A partition that is added, or a topic that goes, is noticed within seconds.
            .set("topic.metadata.refresh.interval.ms", "2000")
            .set("topic.metadata.propagation.max.ms", "2000")
            .set("allow.auto.create.topics", "false");
        // What the library does, line by line, for whoever asks for it: `log.level = "info,librdkafka=trace"`.
        if tracing::enabled!(target: "librdkafka", tracing::Level::TRACE) {
            config.set("debug", "broker,security,metadata");
        }
        for (key, value) in &self.properties {
            config.set(key, value.reveal());
        }
        config
    }
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.brokers.join(","))
    }
}

/// What to do about a topic that takes nothing, or does not say where it ends, for want of brokers.
pub const ENOUGH_REPLICAS: &str =
    "start brokers until the topic has a leader, and as many replicas in sync as its min.insync.replicas";
const TOO_LARGE: &str = "raise max.message.bytes of the topic above source.max_record_bytes (kafka-configs.sh --alter --add-config), it \
    goes on by itself; or lower source.max_record_bytes and restart the daemon";

/// What a Kafka error means.
pub fn fault_of(doing: impl fmt::Display, error: KafkaError) -> Fault {
    use RDKafkaErrorCode as K;
    let code = match error.rdkafka_error_code() {
        Some(
            K::BrokerTransportFailure
            | K::AllBrokersDown
            | K::OperationTimedOut
            | K::TimedOutQueue
            | K::MessageTimedOut
            | K::Resolve
            | K::NetworkException
            // Asked of a broker that the cluster has meanwhile given up.
            | K::DestroyBroker,
        ) => Code::KafkaUnreachable,
        Some(K::UnknownTopic | K::UnknownTopicOrPartition) => Code::TopicLost,
        Some(K::Authentication | K::SSL | K::SaslAuthenticationFailed) => Code::KafkaRefused,
        Some(K::TopicAuthorizationFailed | K::GroupAuthorizationFailed | K::ClusterAuthorizationFailed) => {
            Code::KafkaDenied
        }
        Some(K::AutoOffsetReset | K::OffsetOutOfRange) => Code::RetentionPassed,
        _ => match error {
            // Without the error itself: its text repeats the value, which may be a secret.
            KafkaError::ClientConfig(_, why, key, _) => {
                return Fault::new(Code::ConfigInvalid, format!("{doing}: property {key}: {why}"));
            }
            KafkaError::ClientCreation(_) => Code::ConfigInvalid,
            _ => Code::KafkaRejected,
        },
    };
    let too_few = matches!(
        error.rdkafka_error_code(),
        // A partition without a leader is unknown to the client's library.
        Some(
            K::NotEnoughReplicas
                | K::NotEnoughReplicasAfterAppend
                | K::OffsetNotAvailable
                | K::LeaderNotAvailable
                | K::UnknownPartition
        )
    );
    let too_large = error.rdkafka_error_code() == Some(K::MessageSizeTooLarge);
    let fault = Fault::new(code, doing.to_string()).because(error);
    match (too_few, too_large) {
        (true, _) => fault.remedied_by(ENOUGH_REPLICAS),
        (_, true) => fault.remedied_by(TOO_LARGE),
        _ => fault,
    }
}
