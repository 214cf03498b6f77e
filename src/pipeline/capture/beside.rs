//! Beside a session that captures: heartbeats, looks at the slot and the log, and an ear for what other regions ask.

use std::time::{Duration, Instant};

use super::copy::Desk;
use crate::{
    changelog::{Log, Reader},
    clock,
    envelope::body::{Beat, Echo},
    fault::{Code, Fault},
    retry::Retry,
    roster::{Roster, SourceEntry, State},
    source::Keeper,
    verify::Question,
};

/// How often the slot, the publication and the log are looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// Where questions cannot be heard, it is tried again after so long at most.
const LISTEN_RETRY_MAX: Duration = Duration::from_secs(10);

/// Heartbeats, and a look at the slot and the publication; ends with the first fault.
pub(super) async fn keep<K: Keeper>(
    keeper: &mut K,
    heartbeat: Duration,
    entry: &SourceEntry,
    roster: &Roster,
) -> Fault {
    let mut beat = tokio::time::interval(heartbeat);
    let mut inspect = tokio::time::interval(WATCH_INTERVAL);
    let mut safe_before: Option<(u64, Instant)> = None;
    loop {
        let outcome = tokio::select! {
            _ = beat.tick() => {
                let content = Beat { sent: clock::now(), echo: echoes(roster) };
                let content = serde_json::to_string(&content).expect("a beat has text keys and finite numbers");
                keeper.beat(&content).await
            }
            _ = inspect.tick() => keeper.inspect().await.map(|vitals| {
                entry.slot_retained_bytes.replace(vitals.retained_bytes);
                entry.slot_safe_bytes.replace(vitals.safe_bytes);
                entry.slot_seconds_to_invalidation.replace(vitals.safe_bytes.zip(safe_before).and_then(
                    |(safe, (before, at))| {
                        let rate = before.saturating_sub(safe) as f64 / at.elapsed().as_secs_f64();
                        (rate > 0.0).then(|| safe as f64 / rate)
                    },
                ));
                safe_before = vitals.safe_bytes.map(|safe| (safe, Instant::now()));
                entry.warnings.set(vitals.left_out);
            }),
        };
        if let Err(fault) = outcome {
            return fault;
        }
    }
}

/// Hears what other regions ask. What goes wrong here stops no stream: it is told, and tried again.
pub(super) async fn listen<L: Log>(log: &L, stream: &str, desk: &Desk) -> std::convert::Infallible {
    let mut retry = Retry::new(WATCH_INTERVAL, LISTEN_RETRY_MAX);
    loop {
        let fault = hear(log, stream, desk, &mut retry).await;
        let delay = retry.next_delay();
        let (code, next) = (fault.code().as_str(), fault.remedy());
        tracing::warn!(%fault, code, next, "other regions cannot verify: what they ask is not heard");
        tokio::time::sleep(delay).await;
    }
}

async fn hear<L: Log>(log: &L, stream: &str, desk: &Desk, retry: &mut Retry) -> Fault {
    let mut reader = match log.questions().await {
        Ok(reader) => reader,
        Err(fault) => return fault,
    };
    loop {
        let entries = match reader.read().await {
            Ok(entries) => entries,
            Err(fault) => return fault,
        };
        retry.reset();
        for entry in entries {
            match serde_json::from_slice::<Question>(&entry.value) {
                Ok(question) if question.stream != stream => (),
                Ok(question) if !question.is_sound() => {
                    tracing::warn!(offset = %entry.offset, "a record of the control topic is no question of a region");
                }
                Ok(question) => desk.ask(question),
                Err(error) => {
                    tracing::warn!(%error, offset = %entry.offset, "a record of the control topic is no question");
                }
            }
        }
    }
}

/// The last beat of each peer, as it arrived here.
fn echoes(roster: &Roster) -> Vec<Echo> {
    let last =
        roster.links().into_iter().filter_map(|link| Some((link.from().to_string(), link.heartbeat.get()?)));
    last.map(|(region, beat)| Echo { region, sent: beat.sent, arrived: beat.arrived }).collect()
}

/// Looks whether the log is still the one written to; ends with the first fault that does not pass.
pub(super) async fn watch<L: Log>(log: &L, entry: &SourceEntry) -> Fault {
    let mut tick = tokio::time::interval(WATCH_INTERVAL);
    let mut reached = None;
    let mut attempt = 0;
    loop {
        tick.tick().await;
        match log.bounds().await {
            Ok(Some(bounds)) if reached.is_some_and(|reached| bounds.high < reached) => {
                let message = format!("the topic ends at {}, it had reached {reached:?}", bounds.high);
                return Fault::new(Code::TopicLost, message);
            }
            Ok(Some(bounds)) => {
                reached = Some(bounds.high);
                if attempt > 0 {
                    attempt = 0;
                    entry.set(State::Running);
                }
            }
            Ok(None) => return Fault::new(Code::TopicLost, "the topic does not exist any more"),
            // The producer keeps what it has and goes on by itself; people should know meanwhile.
            Err(fault) if fault.code() == Code::KafkaUnreachable => {
                attempt += 1;
                entry.set(State::retrying(&fault, attempt));
            }
            Err(fault) => return fault,
        }
    }
}
