//! What goes over a client's connections, as librdkafka tells it once a second: bytes of requests and
//! answers, compressed and whole, which nothing above the client gets to see.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rdkafka::{ClientConfig, ClientContext, consumer::ConsumerContext};
use serde::Deserialize;

/// How often the client tells.
const INTERVAL_MILLIS: &str = "1000";

/// What has gone over a client's connections so far. A clone is the same count, and a consumer's context.
#[derive(Clone, Debug, Default)]
pub(super) struct Traffic {
    told: Arc<Mutex<Told>>,
    /// What clients before this one came to.
    before: Told,
}

/// What a client has told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Told {
    /// Bytes sent.
    #[serde(rename = "tx_bytes")]
    pub(super) sent: u64,
    /// Answers received.
    #[serde(rename = "rx")]
    pub(super) answers: u64,
    /// Bytes received.
    #[serde(rename = "rx_bytes")]
    pub(super) received: u64,
    /// The records in them,
    #[serde(rename = "rxmsgs")]
    pub(super) records: u64,
    /// and the bytes of their keys and values, as they are once they are unpacked.
    #[serde(rename = "rxmsg_bytes")]
    pub(super) unpacked: u64,
}

impl Told {
    /// What has come since `before`.
    pub(super) fn since(self, before: Self) -> Self {
        self.with(before, u64::saturating_sub)
    }

    fn with(self, other: Self, by: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            sent: by(self.sent, other.sent),
            answers: by(self.answers, other.answers),
            received: by(self.received, other.received),
            records: by(self.records, other.records),
            unpacked: by(self.unpacked, other.unpacked),
        }
    }
}

impl Traffic {
    /// Makes a client tell.
    pub(super) fn told_by(config: &mut ClientConfig) -> &mut ClientConfig {
        config.set("statistics.interval.ms", INTERVAL_MILLIS)
    }

    /// The same count, for a client that takes over from the one before it, which is gone.
    pub(super) fn handed_on(&self) -> Self {
        Self { told: Arc::clone(&self.told), before: self.told() }
    }

    /// Takes what it tells.
    pub(super) fn take(&self, statistics: &[u8]) {
        match serde_json::from_slice::<Told>(statistics) {
            // The sums are over the brokers known now: where one goes, the count stays.
            Ok(told) => {
                let now = told.with(self.before, |told, before| told + before);
                let mut told = self.so_far();
                *told = told.with(now, u64::max);
            }
            Err(error) => tracing::debug!(%error, "Kafka client statistics not understood"),
        }
    }

    /// All of it.
    pub(super) fn told(&self) -> Told {
        *self.so_far()
    }

    fn so_far(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes sent.
    pub(super) fn sent(&self) -> u64 {
        self.told().sent
    }

    /// Bytes received.
    pub(super) fn received(&self) -> u64 {
        self.told().received
    }
}

impl ClientContext for Traffic {
    fn stats_raw(&self, statistics: &[u8]) {
        self.take(statistics);
    }
}

impl ConsumerContext for Traffic {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_goes_on_over_a_client_that_takes_over() {
        let told = |of: u64| {
            format!(r#"{{"tx_bytes":{of},"rx":{of},"rx_bytes":{of},"rxmsgs":{of},"rxmsg_bytes":{of}}}"#)
                .into_bytes()
        };
        let first = Traffic::default();
        first.take(&told(7));
        first.take(&told(5));
        assert_eq!(first.received(), 7, "a broker that goes takes nothing with it");
        let second = first.handed_on();
        second.take(&told(3));
        assert_eq!((first.sent(), second.received(), first.told().unpacked), (10, 10, 10));
        assert_eq!(second.told().since(second.before).answers, 3);
    }
}
