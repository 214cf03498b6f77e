//! How the whole daemon stands, worst first: the document behind `GET /status` and `landfall status`.

use std::{
    cmp::Ordering,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::health::{Health, health};
use crate::{
    roster::{DatabaseHealth, LinkEntry, Roster, Sample, SourceEntry, State, StateEntry},
    stamp::Micros,
};

/// How a daemon stands. A figure that is unknown is null.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Its region.
    pub region: String,
    /// `active`, `joining` or `draining`.
    pub mode: String,
    /// Whether users may be sent here.
    pub ready: bool,
    /// Why not, where they may not.
    pub not_ready_because: Option<String>,
    /// Whether the database answers: `healthy`, `unhealthy` or `unasked`.
    pub database: String,
    /// What it does, the worst first.
    pub streams: Vec<StreamStatus>,
}

/// How one road stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StreamStatus {
    /// `source` or `link`.
    pub role: String,
    /// The region whose changes it carries.
    pub from: String,
    /// The stream.
    pub stream: String,
    /// starting, running, standby, retrying or halted.
    pub state: String,
    /// For how long.
    pub state_seconds: f64,
    /// The code of what went wrong.
    pub code: Option<String>,
    /// What went wrong, or what is waited for.
    pub message: Option<String>,
    /// What a person does about it.
    pub remedy: Option<String>,
    /// The attempt that failed, where it is tried again.
    pub attempt: Option<u32>,
    /// What went wrong last, though it may be over.
    pub last_error: Option<LastErrorStatus>,
    /// What should be known though nothing has stopped.
    pub warnings: Vec<String>,
    /// Changes carried a second, over the last ten.
    pub changes_per_second: Option<f64>,
    /// Where time was spent, in the order it passed: by the last transaction of a source, the last
    /// heartbeat of a link.
    pub stages: Vec<StageStatus>,
    /// A source's figures.
    pub source: Option<SourceFigures>,
    /// A link's figures.
    pub link: Option<LinkFigures>,
}

/// What went wrong last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastErrorStatus {
    /// Its code.
    pub code: String,
    /// What was being done and what stood in the way.
    pub message: String,
    /// How long ago it was met the last time.
    pub seconds_ago: f64,
}

/// A source's figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceFigures {
    /// Up to where the log has been read.
    pub captured: Option<String>,
    /// Up to where the server may release it.
    pub confirmed: Option<String>,
    /// What the slot retains.
    pub slot_retained_bytes: Option<u64>,
    /// What may still be written.
    pub slot_safe_bytes: Option<u64>,
    /// When that is used up.
    pub slot_seconds_to_invalidation: Option<f64>,
    /// The last record given to Kafka.
    pub appended: Option<u64>,
    /// The last record acknowledged.
    pub acked: Option<u64>,
    /// How full the queue to Kafka is.
    pub queue_fill_ratio: Option<f64>,
    /// How long ago a record was acknowledged.
    pub last_append_seconds_ago: Option<f64>,
}

/// A link's figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkFigures {
    /// The age of the last applied heartbeat.
    pub lag_seconds: Option<f64>,
    /// What 99 of 100 looks of the last minutes did not exceed.
    pub lag_p99_seconds: Option<f64>,
    /// The lag in the last minutes, a pair a second, oldest first: how many seconds ago, and the lag then.
    pub lag_history: Vec<(f64, Option<f64>)>,
    /// The last record applied and flushed.
    pub applied: Option<u64>,
    /// The source's position there.
    pub position: Option<String>,
    /// How far the source's clock goes ahead of ours; null where heartbeats do not come back.
    pub clock_offset_seconds: Option<f64>,
    /// How long until retention deletes what is still needed.
    pub headroom_seconds: Option<f64>,
    /// How long the topic keeps a record.
    pub retention_seconds: Option<f64>,
    /// Where the topic ends.
    pub end_offset: Option<i64>,
    /// How many records of the topic are not applied yet; packed, each may be many changes.
    pub offset_lag: Option<u64>,
    /// Whether a transaction larger than memory is open.
    pub transaction_open: Option<bool>,
    /// How many transactions are parked.
    pub parked: Option<u64>,
}

/// One stage of the way from a commit there to the commit here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageStatus {
    /// Its name.
    pub stage: String,
    /// How long it took.
    pub seconds: f64,
}

/// How the daemon stands, `now`.
pub fn status(roster: &Roster, max_lag: Option<Duration>, now: Micros) -> Status {
    let mut streams: Vec<StreamStatus> =
        roster.find_source().iter().map(|source| of_source(source, now)).collect();
    streams.extend(roster.links().iter().map(|link| of_link(link, now)));
    streams.sort_by(worst_first);
    let not_ready_because = match health(roster, max_lag, now) {
        Health::Ready { .. } => None,
        Health::Degraded { error, .. } => Some(error),
    };
    Status {
        region: roster.region().to_string(),
        mode: roster.mode().as_str().to_owned(),
        ready: not_ready_because.is_none(),
        not_ready_because,
        database: match roster.database() {
            DatabaseHealth::Healthy => "healthy",
            DatabaseHealth::Unhealthy(_) => "unhealthy",
            DatabaseHealth::Unasked => "unasked",
        }
        .to_owned(),
        streams,
    }
}

/// By state, then by lag; unknown lag is worse than any.
fn worst_first(a: &StreamStatus, b: &StreamStatus) -> Ordering {
    let lag = |stream: &StreamStatus| match &stream.link {
        None => 0.0,
        Some(link) => link.lag_seconds.unwrap_or(f64::INFINITY),
    };
    badness(&b.state).cmp(&badness(&a.state)).then(lag(b).total_cmp(&lag(a)))
}

fn badness(state: &str) -> usize {
    let by_badness = ["running", "standby", "starting", "retrying", "halted"];
    by_badness.iter().position(|name| *name == state).unwrap_or(by_badness.len())
}

fn stream(role: &str, from: &str, stream: &str, entry: &StateEntry, now: Micros) -> StreamStatus {
    let state = entry.state();
    let (message, remedy, attempt) = match &state {
        State::Starting | State::Running => (None, None, None),
        State::Standby { why, .. } => (Some(why.clone()), None, None),
        State::Retrying { fault, remedy, attempt, .. } => {
            (Some(fault.clone()), Some(remedy.clone()), Some(*attempt))
        }
        State::Halted { message, remedy, .. } => (Some(message.clone()), Some(remedy.clone()), None),
    };
    StreamStatus {
        role: role.to_owned(),
        from: from.to_owned(),
        stream: stream.to_owned(),
        state: state.name().to_owned(),
        state_seconds: now.seconds_since(entry.state_since()).max(0.0),
        code: state.code().map(|code| code.as_str().to_owned()),
        message,
        remedy,
        attempt,
        last_error: entry.last_error.get().map(|error| LastErrorStatus {
            code: error.code.as_str().to_owned(),
            message: error.message,
            seconds_ago: now.seconds_since(error.at).max(0.0),
        }),
        warnings: Vec::new(),
        changes_per_second: entry.history.changes_per_second(),
        stages: Vec::new(),
        source: None,
        link: None,
    }
}

fn of_source(source: &SourceEntry, now: Micros) -> StreamStatus {
    let slot = source.slot(Instant::now());
    let figures = SourceFigures {
        captured: source.captured.get().map(|lsn| lsn.to_string()),
        confirmed: source.confirmed.get().map(|lsn| lsn.to_string()),
        slot_retained_bytes: slot.retained_bytes,
        slot_safe_bytes: slot.safe_bytes,
        slot_seconds_to_invalidation: slot.seconds_to_invalidation,
        appended: source.appended.get().map(|sequence| sequence.0),
        acked: source.acked.get().map(|sequence| sequence.0),
        queue_fill_ratio: source.queue_fill.get(),
        last_append_seconds_ago: source.last_append.get().map(|then| now.seconds_since(then).max(0.0)),
    };
    StreamStatus {
        warnings: source.warned_of(),
        stages: stages([("read", source.read_seconds.get()), ("buffer", source.buffer_seconds.get())]),
        source: Some(figures),
        ..stream("source", source.region().as_str(), source.stream(), source, now)
    }
}

fn of_link(link: &LinkEntry, now: Micros) -> StreamStatus {
    let figures = LinkFigures {
        lag_seconds: link.lag_seconds(now),
        lag_p99_seconds: link.history.lag_p99_seconds(),
        lag_history: lag_history(link, now),
        applied: link.applied.get().map(|sequence| sequence.0),
        position: link.position.get(),
        clock_offset_seconds: link.clock_offset_seconds.get(),
        headroom_seconds: link.headroom_seconds_at(now),
        retention_seconds: link.retention_seconds.get(),
        end_offset: link.end_offset.get(),
        offset_lag: link.offset_lag.get(),
        transaction_open: link.transaction_open.get(),
        parked: link.parked.get().map(|parked| parked as u64),
    };
    StreamStatus {
        warnings: link.joining().into_iter().collect(),
        stages: stages([
            ("source", link.source_seconds.get()),
            ("wide area", link.line_seconds.get()),
            ("apply", link.apply_seconds.get()),
        ]),
        link: Some(figures),
        ..stream("link", link.from().as_str(), link.stream(), link, now)
    }
}

/// In milliseconds: it is sent every few seconds, and nobody sees more.
fn lag_history(link: &LinkEntry, now: Micros) -> Vec<(f64, Option<f64>)> {
    let rounded = |seconds: f64| (seconds * 1e3).round() / 1e3;
    let pair =
        |sample: Sample| (rounded(now.seconds_since(sample.at).max(0.0)), sample.lag_seconds.map(rounded));
    link.history.samples().into_iter().map(pair).collect()
}

/// Every stage that is known. A page and a table show whatever stands here, in this order.
fn stages(known: impl IntoIterator<Item = (&'static str, Option<f64>)>) -> Vec<StageStatus> {
    let stage = |(stage, seconds): (&str, Option<f64>)| {
        seconds.map(|seconds| StageStatus { stage: stage.to_owned(), seconds })
    };
    known.into_iter().filter_map(stage).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fault::{Code, Fault},
        progress::Heartbeat,
    };

    #[test]
    fn the_worst_comes_first_and_unknown_is_null() {
        let roster = Roster::new("eu-west-1".parse().unwrap());
        roster.database_healthy(true, "");
        roster.source().set(State::Running);
        let now = crate::clock::now();
        for (name, lag) in [("slow", Some(9)), ("fast", Some(1)), ("new", None)] {
            let link = roster.link(&name.parse().unwrap(), "main");
            link.set(State::Running);
            if let Some(seconds) = lag {
                let sent = Micros(now.0 - seconds * 1_000_000);
                link.heartbeat.set(Heartbeat { sent, appended: None, arrived: sent });
            }
        }
        let fault = Fault::new(Code::SequenceBroken, "read #9");
        roster.link(&"halted".parse().unwrap(), "main").set(State::halted(&fault));
        roster.link(&"shaky".parse().unwrap(), "main").set(State::retrying(&fault, 3));
        let status = status(&roster, None, now);
        let order: Vec<&str> = status.streams.iter().map(|stream| stream.from.as_str()).collect();
        assert_eq!(order, ["halted", "shaky", "new", "slow", "fast", "eu-west-1"]);
        assert_eq!(status.streams[0].code.as_deref(), Some("LF-SEQUENCE"));
        assert_eq!(status.streams[1].attempt, Some(3));
        let error = status.streams[1].last_error.clone().unwrap();
        assert_eq!((error.code.as_str(), error.message.as_str()), ("LF-SEQUENCE", "read #9"));
        let json = serde_json::to_string(&status).unwrap();
        assert!(json.contains(r#""lag_seconds":null"#), "{json}");
        assert_eq!(serde_json::from_str::<Status>(&json).unwrap().streams.len(), 6);
    }

    #[test]
    fn what_was_stays_to_be_seen_when_it_is_over() {
        let roster = Roster::new("eu-west-1".parse().unwrap());
        let link = roster.link(&"us-east-1".parse().unwrap(), "main");
        link.set(State::retrying(&Fault::new(Code::KafkaUnreachable, "ask the brokers"), 1));
        link.set(State::Running);
        let now = Micros(crate::clock::now().0 + 2_000_000);
        let ago = |micros: i64| Micros(now.0 - micros);
        for (micros, lag_seconds) in [(2_000_400, None), (1_000_000, Some(0.1234)), (0, Some(1.5))] {
            link.history.note(Sample { at: ago(micros), lag_seconds, changes: 40 });
        }
        link.beat(
            Heartbeat { sent: ago(900_000), appended: Some(ago(800_000)), arrived: ago(650_000) },
            ago(600_000),
        );
        let stream = status(&roster, None, now).streams.remove(0);
        assert_eq!((stream.state.as_str(), stream.code), ("running", None));
        let error = stream.last_error.unwrap();
        assert!(error.code == "LF-KAFKA-UNREACHABLE" && (1.9..5.0).contains(&error.seconds_ago), "{error:?}");
        assert_eq!(stream.changes_per_second, Some(0.0));
        let stages = stream.stages;
        let link = stream.link.unwrap();
        assert_eq!(link.lag_history, [(2.0, None), (1.0, Some(0.123)), (0.0, Some(1.5))]);
        assert_eq!(link.lag_p99_seconds, Some(1.5));
        let stages: Vec<_> = stages.iter().map(|it| (it.stage.as_str(), it.seconds)).collect();
        assert_eq!(stages, [("source", 0.1), ("wide area", 0.15), ("apply", 0.05)]);
    }
}
