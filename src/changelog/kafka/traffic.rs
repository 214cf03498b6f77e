//! What goes over a client's connections, as librdkafka tells it once a second: bytes of requests and
//! answers, compressed and whole, which nothing above the client gets to see.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use rdkafka::{ClientConfig, ClientContext, consumer::ConsumerContext};
use serde::Deserialize;

/// How often the client tells.
const INTERVAL_MILLIS: &str = "1000";

/// What has gone over a client's connections so far. A clone is the same count, and a consumer's context.
#[derive(Clone, Debug, Default)]
pub(super) struct Traffic(Arc<Count>);

#[derive(Debug, Default)]
struct Count {
    sent: AtomicU64,
    received: AtomicU64,
}

/// What of the statistics is read.
#[derive(Deserialize)]
struct Statistics {
    tx_bytes: u64,
    rx_bytes: u64,
}

impl Traffic {
    /// Makes a client tell.
    pub(super) fn told_by(config: &mut ClientConfig) -> &mut ClientConfig {
        config.set("statistics.interval.ms", INTERVAL_MILLIS)
    }

    /// Takes what it tells.
    pub(super) fn take(&self, statistics: &[u8]) {
        match serde_json::from_slice::<Statistics>(statistics) {
            // The sums are over the brokers known now: where one goes, the count stays.
            Ok(told) => {
                self.0.sent.fetch_max(told.tx_bytes, Ordering::Relaxed);
                self.0.received.fetch_max(told.rx_bytes, Ordering::Relaxed);
            }
            Err(error) => tracing::debug!(%error, "Kafka client statistics not understood"),
        }
    }

    /// Bytes sent.
    pub(super) fn sent(&self) -> u64 {
        self.0.sent.load(Ordering::Relaxed)
    }

    /// Bytes received.
    pub(super) fn received(&self) -> u64 {
        self.0.received.load(Ordering::Relaxed)
    }
}

impl ClientContext for Traffic {
    fn stats_raw(&self, statistics: &[u8]) {
        self.take(statistics);
    }
}

impl ConsumerContext for Traffic {}
