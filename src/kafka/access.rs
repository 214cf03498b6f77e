//! How brokers refuse us: a certificate that proves nothing, a name it is not for, a password, an
//! operation we may not do; each told as what it is, with what mends it.
//!
//! A request that fails says only that nobody answered. Why the connection failed is an event of its own
//! in the client's queue: an [`Asker`] keeps the last such event, and looks at it when a request fails.

use std::{
    fmt,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, KafkaResult},
    types::RDKafkaErrorCode as K,
};

use super::{Cluster, REQUEST_TIMEOUT, fault_of};
use crate::fault::{Code, Fault, Result};

/// How long the client's queue has to be silent to count as empty: its events are there when a request fails.
const LOOK: Duration = Duration::from_millis(5);
/// How long its events are taken out at most, where every line of the library's own log is among them.
const LOOK_MAX: Duration = Duration::from_secs(2);

/// A client that asks about topics, and can say why nobody answered.
pub struct Asker {
    cluster: Cluster,
    client: BaseConsumer<Heard>,
}

impl Asker {
    /// Sets a client up; with a `group`, it can publish that group's offsets.
    ///
    /// # Errors
    /// [`Code::ConfigInvalid`] where a property, or a file it names, is not what it must be.
    pub fn new(cluster: &Cluster, group: Option<&str>) -> Result<Self> {
        let mut config = cluster.client("asker");
        // A hang-up is told at this level only, and not as an event.
        if (config.log_level as i32) < RDKafkaLogLevel::Info as i32 {
            config.set_log_level(RDKafkaLogLevel::Info);
        }
        if let Some(group) = group {
            config.set("group.id", group).set("enable.auto.commit", "false");
        }
        let heard =
            Heard { principal: cluster.principal(), group: group.map(Into::into), ..Heard::default() };
        let client = config
            .create_with_context(heard)
            .map_err(|error| fault_of(format_args!("set up a client of {cluster}"), error))?;
        Ok(Self { cluster: cluster.clone(), client })
    }

    /// The client itself, for what needs no answer.
    pub fn client(&self) -> &BaseConsumer<Heard> {
        &self.client
    }

    /// Asks, and where nobody answers, says why. Blocks for as long as the question does.
    ///
    /// # Errors
    /// What the question met, or why it met nobody.
    pub fn ask<T>(
        &self,
        doing: impl fmt::Display,
        question: impl FnOnce(&BaseConsumer<Heard>) -> KafkaResult<T>,
    ) -> Result<T> {
        let answer = question(&self.client);
        // Also after an answer: what nobody takes out of the queue stays in memory.
        self.look();
        let mut heard = self.client.context().last();
        let error = match answer {
            Ok(answer) => {
                *heard = None;
                return Ok(answer);
            }
            Err(error) => error,
        };
        let refusal = heard.clone();
        drop(heard);
        Err(match (error.rdkafka_error_code(), refusal) {
            (Some(K::BrokerTransportFailure | K::AllBrokersDown | K::OperationTimedOut), Some(refusal)) => {
                self.refused(&doing, refusal)
            }
            _ => fault_of(doing, error),
        })
    }

    /// The partitions of a topic, and the replicas of the first; none where there is no such topic.
    ///
    /// # Errors
    /// Nobody answers, we may not know, or the brokers know something else to say of it.
    pub fn layout(&self, topic: &str) -> Result<Option<(usize, usize)>> {
        let doing = format!("ask for topic {topic} at {}", self.cluster);
        let metadata = self.ask(&doing, |client| client.fetch_metadata(Some(topic), REQUEST_TIMEOUT))?;
        let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
            return Ok(None);
        };
        match found.error().map(K::from) {
            // Describe would do for the question; but whoever asks it goes on to read, which implies it.
            Some(K::TopicAuthorizationFailed) => {
                return Err(self.cluster.denied(doing, "Read", Resource::Topic(topic)));
            }
            // Without a leader, as a broker says of a topic: it is being made.
            Some(K::UnknownTopicOrPartition | K::UnknownTopic | K::LeaderNotAvailable) => return Ok(None),
            Some(code) => return Err(fault_of(doing, KafkaError::MetadataFetch(code))),
            None => (),
        }
        let partitions = found.partitions();
        Ok(partitions.first().map(|first| (partitions.len(), first.replicas().len())))
    }

    /// Takes every event out of the client's queue.
    fn look(&self) {
        let heard = self.client.context();
        let until = Instant::now() + LOOK_MAX;
        loop {
            let before = heard.events.load(Relaxed);
            // Nothing is assigned, so that no message can come of it.
            let error = self.client.poll(LOOK).is_some();
            let quiet = !error && heard.events.load(Relaxed) == before;
            if quiet || Instant::now() > until {
                return;
            }
        }
    }

    fn refused(&self, doing: impl fmt::Display, refusal: Refusal) -> Fault {
        let reason = refusal.reason;
        let unverified = reason.contains("certificate verify failed");
        let message = format!("{doing}: {reason}");
        if refusal.code == K::BrokerTransportFailure {
            // They hung up: a guess, which an outage looks like for a moment.
            return Fault::new(Code::KafkaUnreachable, message).remedied_by(
                "nothing is lost meanwhile; look at the brokers and the network, and if it stays, hold \
                 security.protocol of the settings against the brokers' listener",
            );
        }
        let fault = Fault::new(Code::KafkaRefused, message);
        if refusal.code == K::Authentication {
            return fault.remedied_by(format!(
                "hold sasl.mechanism, sasl.username and the password of the settings against the brokers' user \
                 {}: mended there, it goes on by itself; mended here, restart the daemon",
                self.cluster.principal()
            ));
        }
        if unverified && self.another_name_would_do() {
            return fault.remedied_by(
                "the certificate is trusted, but made for another host: write in `brokers`, and in the brokers' \
                 advertised.listeners, the names that stand in their certificates (subjectAltName)",
            );
        }
        if unverified {
            return fault.remedied_by(
                "the certificate is signed by nobody who is trusted here: let properties.\"ssl.ca.location\" name \
                 the file of the authority that signed the brokers' certificates, and restart the daemon",
            );
        }
        fault
    }

    /// Whether the certificate that was refused is trusted but for its name. Asked by a handshake without
    /// the check of the name, in which nothing of ours is sent: no password follows it.
    fn another_name_would_do(&self) -> bool {
        let without = |name: &String| !name.starts_with("sasl.") && !name.starts_with("ssl.endpoint");
        let mut cluster = self.cluster.clone();
        cluster.properties.retain(|(name, _)| without(name) && name != "security.protocol");
        let mut config = cluster.client("asker");
        config.set("security.protocol", "ssl").set("ssl.endpoint.identification.algorithm", "none");
        let Ok(client) = config.create_with_context::<_, BaseConsumer<Heard>>(Heard::default()) else {
            return false;
        };
        let asker = Self { cluster, client };
        let _ = asker.client.fetch_metadata(None, Duration::from_secs(1));
        asker.look();
        let heard = asker.client.context().last();
        !heard.as_ref().is_some_and(|refusal| refusal.reason.contains("certificate verify failed"))
    }
}

/// Why a connection was refused: not by an outage, which passes, but by one of the two ends.
#[derive(Clone)]
struct Refusal {
    code: K,
    reason: String,
}

/// What the library says where one end speaks TLS or SASL and the other does not: a guess of its own, or that
/// a broker hung up before its first word.
fn speaks_otherwise(reason: &str) -> bool {
    let hints = ["in state APIVERSION_QUERY", "security.protocol", "PLAINTEXT broker listener"];
    hints.iter().any(|hint| reason.contains(hint))
}

/// Keeps the refusal a client met last, until it gets through or meets something else: the library tells one
/// that repeats only now and then.
#[derive(Default)]
pub struct Heard {
    last: Mutex<Option<Refusal>>,
    events: AtomicU64,
    principal: String,
    group: Option<String>,
}

impl Heard {
    fn last(&self) -> MutexGuard<'_, Option<Refusal>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Heard {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.events.fetch_add(1, Relaxed);
        if facility == "FAIL" && speaks_otherwise(message) {
            *self.last() = Some(Refusal { code: K::BrokerTransportFailure, reason: message.to_owned() });
        }
        // What matters of it comes as the fault of whoever asked.
        match level {
            RDKafkaLogLevel::Debug => tracing::trace!(target: "librdkafka", facility, "{message}"),
            _ => tracing::debug!(target: "librdkafka", facility, "{message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.events.fetch_add(1, Relaxed);
        tracing::debug!(%error, reason, "Kafka client");
        let Some(code) = error.rdkafka_error_code() else { return };
        if matches!(code, K::Authentication | K::SSL) || speaks_otherwise(reason) {
            *self.last() = Some(Refusal { code, reason: reason.to_owned() });
        } else if code != K::AllBrokersDown {
            *self.last() = None;
        }
    }
}

impl ConsumerContext for Heard {
    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        self.events.fetch_add(1, Relaxed);
        let Err(error) = result else { return };
        if error.rdkafka_error_code() == Some(K::GroupAuthorizationFailed) {
            let group = self.group.as_deref().unwrap_or_default();
            let next = acl(&self.principal, "Read", Resource::Group(group));
            tracing::debug!(group, next, "the group's offset may not be published; nothing rests on it");
        } else {
            tracing::debug!(%error, "group offset not published");
        }
    }
}

/// What an operation is allowed on.
#[derive(Clone, Copy, Debug)]
pub enum Resource<'a> {
    /// A topic.
    Topic(&'a str),
    /// A consumer group.
    Group(&'a str),
}

fn acl(principal: &str, operation: &str, resource: Resource<'_>) -> String {
    let resource = match resource {
        Resource::Topic(topic) => format!("--topic {topic}"),
        Resource::Group(group) => format!("--group {group}"),
    };
    format!(
        "kafka-acls --bootstrap-server … --add --allow-principal {principal} --operation {operation} {resource}"
    )
}

impl Cluster {
    /// What the brokers call us, as far as the settings say: a certificate's name is the brokers' to make.
    pub(super) fn principal(&self) -> String {
        let user = self.properties.iter().find(|(name, _)| name == "sasl.username");
        format!("User:{}", user.map_or("…", |(_, user)| user.reveal()))
    }

    /// We are known, and may not do this: with the command that allows exactly this.
    pub fn denied(&self, doing: impl fmt::Display, operation: &str, resource: Resource<'_>) -> Fault {
        let principal = self.principal();
        let message = format!("{doing}: {principal} is not allowed the operation {operation}");
        let remedy =
            format!("run {}; it is tried again without a restart", acl(&principal, operation, resource));
        Fault::new(Code::KafkaDenied, message).remedied_by(remedy)
    }

    /// What `error` means, where `operation` on `resource` was asked for.
    pub fn fault_of(
        &self,
        doing: impl fmt::Display,
        error: KafkaError,
        operation: &str,
        resource: Resource<'_>,
    ) -> Fault {
        match error.rdkafka_error_code() {
            Some(
                K::TopicAuthorizationFailed | K::GroupAuthorizationFailed | K::ClusterAuthorizationFailed,
            ) => self.denied(doing, operation, resource),
            _ => fault_of(doing, error),
        }
    }
}
