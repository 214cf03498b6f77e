//! Beside a session that captures: heartbeats, looks at the slot and the log, and an ear for what other regions ask.

use std::time::{Duration, Instant};

use tokio::time::{Interval, MissedTickBehavior};

use super::copy::Desk;
use crate::{
    changelog::{Counts, Log, Reader},
    clock,
    envelope::body::{Beat, Echo},
    fault::{Code, Fault},
    kafka::ENOUGH_REPLICAS,
    retry::Retry,
    roster::{Roster, SourceEntry, State},
    source::{Keeper, Watcher},
    verify::Question,
};

/// How often the slot, the publication and the log are looked at,
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// where a look at the first two is cheap: a fiftieth of the time goes into them at most, and with thousands of tables
/// one takes tenths of a second of the server's,
const WATCH_SHARE: u32 = 50;
/// but so often always.
const WATCH_INTERVAL_MAX: Duration = Duration::from_secs(30);
/// How long the stream's topic may take nothing before people are told: with a look now and then, within half a minute.
/// A leader is elected in less.
const UNTAKEN_PATIENCE: Duration = Duration::from_secs(20);
/// How often the slot is looked at while no session does. It is known for four of these.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// A database that takes longer to say how the slot stands does not say.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// Where questions cannot be heard, it is tried again after so long at most.
const LISTEN_RETRY_MAX: Duration = Duration::from_secs(10);

/// Heartbeats, and a look at the slot and the publication now and then; ends with the first fault.
pub(super) async fn keep<K: Keeper>(
    keeper: &mut K,
    heartbeat: Duration,
    entry: &SourceEntry,
    roster: &Roster,
) -> Fault {
    let mut beat = every(heartbeat);
    let mut next_look = Instant::now();
    loop {
        let outcome = tokio::select! {
            _ = beat.tick() => {
                let content = Beat { sent: clock::now(), echo: echoes(roster) };
                let content = serde_json::to_string(&content).expect("a beat has text keys and finite numbers");
                keeper.beat(&content).await
            }
            () = tokio::time::sleep_until(next_look.into()) => {
                let began = Instant::now();
                let looked = keeper.inspect().await;
                let now = Instant::now();
                next_look = now + look_pause(now - began);
                looked.map(|vitals| {
                    entry.see_slot(vitals.kept.retained_bytes, vitals.kept.safe_bytes, now);
                    entry.warnings.set(vitals.amiss);
                })
            }
        };
        if let Err(fault) = outcome {
            return fault;
        }
    }
}

/// Ticks now, and then so often. What is missed while nobody answers is not made up for: after a day it would be tens of
/// thousands of requests in one go.
fn every(period: Duration) -> Interval {
    let mut tick = tokio::time::interval(period);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

/// How long nobody looks after a look that took so long.
fn look_pause(took: Duration) -> Duration {
    took.saturating_mul(WATCH_SHARE).clamp(WATCH_INTERVAL, WATCH_INTERVAL_MAX)
}

/// Looks at the slot whenever no session does: before the first has got anywhere, while one has halted or waits, where
/// another daemon reads it, where one looks seldom. What cannot be seen is unknown soon ([`SourceEntry::slot`]), and why it
/// cannot is told by who needs the database for more.
pub(super) async fn look_on<W: Watcher>(mut watcher: W, entry: &SourceEntry) -> std::convert::Infallible {
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + LOOK_INTERVAL, LOOK_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = None;
    loop {
        tick.tick().await;
        if entry.slot_seen() > seen {
            // A session did.
            watcher.rest();
        } else {
            match tokio::time::timeout(LOOK_TIMEOUT, watcher.look()).await {
                Ok(Ok(kept)) => entry.see_slot(kept.retained_bytes, kept.safe_bytes, Instant::now()),
                Ok(Err(fault)) => tracing::debug!(%fault, "the slot cannot be looked at"),
                Err(_) => tracing::debug!("the slot cannot be looked at: the database gives no answer"),
            }
        }
        seen = entry.slot_seen();
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
                Ok(question) => desk.ask(question, Instant::now()),
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

/// Looks whether the log is still the one written to, and takes what the writer with these counts gives it; ends with the
/// first fault that does not pass. One that does is shown until something was taken: then the road is `well` again.
pub(super) async fn watch<L: Log>(log: &L, counts: &Counts, entry: &SourceEntry, well: State) -> Fault {
    let mut tick = every(WATCH_INTERVAL);
    let mut untaken = Untaken::new(counts, Instant::now());
    let (mut reached, mut attempt) = (None, 0);
    loop {
        tick.tick().await;
        let bounds = log.bounds().await;
        let waits = untaken.look(counts, Instant::now());
        match bounds {
            Ok(Some(bounds)) if reached.is_some_and(|reached| bounds.high < reached) => {
                let message = format!("the topic ends at {}, it had reached {reached:?}", bounds.high);
                return Fault::new(Code::TopicLost, message);
            }
            Ok(Some(bounds)) => {
                reached = Some(bounds.high);
                if waits >= UNTAKEN_PATIENCE {
                    attempt += 1;
                    entry.set(State::retrying(&nothing_taken(waits), attempt));
                } else if attempt > 0 && waits.is_zero() {
                    attempt = 0;
                    entry.set(well.clone());
                }
            }
            Ok(None) => return Fault::new(Code::TopicLost, "the topic does not exist any more"),
            // The producer keeps what it has and goes on by itself; people should know meanwhile. A broker that has just
            // become the leader does not know at once where the topic ends.
            Err(fault) if matches!(fault.code(), Code::KafkaUnreachable | Code::KafkaRejected) => {
                attempt += 1;
                entry.set(State::retrying(&fault, attempt));
            }
            Err(fault) => return fault,
        }
    }
}

/// Why a topic that answers takes nothing: its leader would tell the producer, which tries for ever without a word.
fn nothing_taken(waits: Duration) -> Fault {
    let message = format!("the stream's topic has taken nothing for {} s", waits.as_secs());
    Fault::new(Code::KafkaRejected, message).remedied_by(ENOUGH_REPLICAS)
}

/// For how long nothing was taken of what a writer gave.
struct Untaken {
    acknowledged: u64,
    since: Instant,
}

impl Untaken {
    fn new(counts: &Counts, now: Instant) -> Self {
        Self { acknowledged: counts.acknowledged(), since: now }
    }

    /// None at all where something was taken since the last look, or nothing waits.
    fn look(&mut self, counts: &Counts, now: Instant) -> Duration {
        let acknowledged = counts.acknowledged();
        if acknowledged > self.acknowledged || acknowledged >= counts.given() {
            (self.acknowledged, self.since) = (acknowledged, now);
        }
        now - self.since
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fault::Result, position::WriterEpoch, source::Vitals};

    /// A database that gives no answer to the first heartbeat for so long, and goes after so many.
    struct Hangs {
        first_takes: Duration,
        answered: Option<Instant>,
        left: usize,
    }

    impl Keeper for Hangs {
        async fn raise_epoch(&mut self, above: WriterEpoch) -> Result<WriterEpoch> {
            Ok(above)
        }

        async fn mark_live(&mut self) -> Result<()> {
            Ok(())
        }

        async fn beat(&mut self, _: &str) -> Result<()> {
            if self.answered.is_none() {
                tokio::time::sleep(self.first_takes).await;
                self.answered = Some(Instant::now());
            }
            self.left =
                self.left.checked_sub(1).ok_or_else(|| Fault::new(Code::DatabaseUnreachable, "gone"))?;
            Ok(())
        }

        async fn inspect(&mut self) -> Result<Vitals> {
            Ok(Vitals::default())
        }
    }

    #[tokio::test]
    async fn heartbeats_that_were_missed_are_not_made_up_for() {
        let roster = Roster::new("us-east-1".parse().unwrap());
        let period = Duration::from_millis(50);
        let mut keeper = Hangs { first_takes: period * 20, answered: None, left: 8 };
        keep(&mut keeper, period, &roster.source(), &roster).await;
        // One at once, and seven more at their time: however slow we are, no sooner (but for a timer's own inexactness).
        let since = keeper.answered.unwrap().elapsed();
        assert!(since >= period * 6, "8 heartbeats within {since:?}");
    }

    #[test]
    fn the_longer_a_look_takes_the_less_often_it_is_taken() {
        let pauses = [0, 40, 200, 600, 5_000].map(|took| look_pause(Duration::from_millis(took)).as_secs());
        assert_eq!(pauses, [2, 2, 10, 30, 30]);
    }
}
