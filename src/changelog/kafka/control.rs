//! Asking another region: its control topic, in its own cluster.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rdkafka::{
    ClientContext,
    error::KafkaError,
    producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer},
};

use super::PARTITION;
use crate::{
    fault::{Code, Fault, Result},
    kafka::{Cluster, REQUEST_TIMEOUT, Resource, fault_of},
    task,
};

/// How long questions are kept: whoever asks asks again, and nobody reads old ones.
pub(super) const RETENTION: Duration = Duration::from_secs(3600);

/// Where a region is asked for something.
pub(super) struct Control {
    cluster: Cluster,
    topic: String,
    /// Made with the first question: most links never ask.
    producer: Arc<Mutex<Option<ThreadedProducer<Deliveries>>>>,
}

/// Why the last question was not taken.
#[derive(Clone, Default)]
struct Deliveries(Arc<Mutex<Option<KafkaError>>>);

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let failed = result.as_ref().err().map(|(error, _)| error.clone());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = failed;
    }
}

impl Control {
    pub(super) fn new(cluster: Cluster, topic: String) -> Self {
        Self { cluster, topic, producer: Arc::default() }
    }

    pub(super) fn topic(&self) -> &str {
        &self.topic
    }

    pub(super) async fn ask(&self, question: Vec<u8>) -> Result<()> {
        let (cluster, topic, producer) =
            (self.cluster.clone(), self.topic.clone(), Arc::clone(&self.producer));
        task::blocking(move || {
            let doing = format!("ask in topic {topic} at {cluster}");
            let mut producer = producer.lock().unwrap_or_else(PoisonError::into_inner);
            let producer = match &mut *producer {
                Some(producer) => producer,
                none => none.insert(open(&cluster).map_err(|error| fault_of(&doing, error))?),
            };
            let failed = |error| cluster.fault_of(&doing, error, "Write", Resource::Topic(&topic));
            let record = BaseRecord::<(), [u8]>::to(&topic).partition(PARTITION).payload(&question);
            producer.send(record).map_err(|(error, _)| failed(error))?;
            producer.flush(2 * REQUEST_TIMEOUT).map_err(failed)?;
            let refused = producer.context().0.lock().unwrap_or_else(PoisonError::into_inner).take();
            match refused.map(failed) {
                Some(fault) if fault.code() == Code::TopicLost => {
                    Err(Fault::new(Code::KafkaRejected, format!("topic {topic} does not exist at {cluster}"))
                        .remedied_by(
                            "the daemon of that region makes it: see that it runs, and is of this version",
                        ))
                }
                Some(fault) => Err(fault),
                None => Ok(()),
            }
        })
        .await
    }
}

fn open(cluster: &Cluster) -> std::result::Result<ThreadedProducer<Deliveries>, KafkaError> {
    let mut config = cluster.client("control");
    config.set("message.timeout.ms", REQUEST_TIMEOUT.as_millis().to_string()).set("linger.ms", "0");
    config.create_with_context(Deliveries::default())
}
