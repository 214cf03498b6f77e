//! How a daemon stands, as a table of at most 80 columns: a line for each stream, the worst first, and
//! below it what there is to say.

use std::fmt::Write;

use super::badness;
use crate::{
    cli::page::{bytes, cut, painted, plain, seconds, wrapped},
    control::status::{Status, StreamStatus},
};

/// An error that is over is told for so long; the daemon's answer keeps it for ever.
const ERROR_TOLD_SECONDS: f64 = 86_400.0;

pub(super) fn table(status: &Status, colour: bool) -> String {
    let mut page = String::new();
    let ready = if status.ready { painted("ready", 0, colour) } else { painted("not ready", 2, colour) };
    let _ = writeln!(page, "{} is {ready}, {}, database {}", status.region, status.mode, status.database);
    if let Some(why) = &status.not_ready_because {
        wrapped(why, 4).iter().for_each(|line| page.extend([line, "\n"]));
    }
    if status.streams.is_empty() {
        return page;
    }
    let head =
        ["STATE", "ROLE", "STREAM", "LAG", "P99", "RATE", "WAITING", "PARK", "LEFT"].map(str::to_owned);
    let _ = writeln!(page, "\n{}", line(&head, &head[0]));
    for stream in &status.streams {
        let cells = cells(stream);
        let state = painted(&format!("{:<8}", cells[0]), badness(&stream.state), colour);
        let _ = writeln!(page, "{}", line(&cells, &state));
        below(&mut page, stream);
    }
    page
}

/// The cells in their widths; the first as `state`, which may be in colour.
fn line(cells: &[String; 9], state: &str) -> String {
    let [_, role, name, lag, p99, rate, waiting, parked, left] = cells;
    let line = format!(
        "{state:<8} {role:<6} {name:<19} {lag:>7} {p99:>7} {rate:>6} {waiting:>8} {parked:>4} {left:>7}"
    );
    line.trim_end().to_owned()
}

/// What waits is, of a link, the records of the topic it has not applied; of a source, the log its slot
/// keeps. What is left is the time until retention takes the one or the server the other. What is parked is not
/// among what waits: it is behind the link.
fn cells(stream: &StreamStatus) -> [String; 9] {
    let unknown = || "?".to_owned();
    let told = |value: Option<f64>| value.map_or_else(unknown, seconds);
    let rate = stream.changes_per_second.map_or_else(unknown, rate);
    let (lag, p99, waiting, parked, left) = match (&stream.link, &stream.source) {
        (Some(link), _) => (
            told(link.lag_seconds),
            told(link.lag_p99_seconds),
            link.offset_lag.map_or_else(unknown, records),
            link.parked.map_or_else(unknown, |parked| {
                if parked > 9_999 { ">9k".to_owned() } else { parked.to_string() }
            }),
            told(link.headroom_seconds),
        ),
        (None, Some(source)) => (
            "-".to_owned(),
            "-".to_owned(),
            source.slot_retained_bytes.map_or_else(unknown, bytes),
            "-".to_owned(),
            source.slot_seconds_to_invalidation.map_or_else(|| "-".to_owned(), seconds),
        ),
        (None, None) => (unknown(), unknown(), unknown(), unknown(), unknown()),
    };
    let name = cut(&format!("{}/{}", stream.from, stream.stream), 19);
    [stream.state.clone(), stream.role.clone(), name, lag, p99, rate, waiting, parked, left]
}

/// Records of a topic.
fn records(records: u64) -> String {
    match records {
        r @ 0..10_000 => format!("{r} rec"),
        r @ 10_000..1_000_000 => format!("{}k rec", r / 1_000),
        r => format!("{}M rec", r / 1_000_000),
    }
}

/// Changes a second.
fn rate(rate: f64) -> String {
    match rate {
        r if r < 9.95 => format!("{r:.1}/s"),
        r if r < 9_999.5 => format!("{r:.0}/s"),
        r => format!("{:.0}k/s", r / 1e3),
    }
}

fn below(page: &mut String, stream: &StreamStatus) {
    let mut say = |text: String| wrapped(&plain(&text), 4).iter().for_each(|line| page.extend([line, "\n"]));
    if let Some(message) = &stream.message {
        let code = stream.code.as_ref().map(|code| format!("[{code}] ")).unwrap_or_default();
        let attempt = stream.attempt.map(|attempt| format!(" (attempt {attempt})")).unwrap_or_default();
        say(format!("{code}{message}{attempt}"));
    }
    if let Some(remedy) = &stream.remedy {
        say(format!("next: {remedy}"));
    }
    let over = stream
        .last_error
        .as_ref()
        .filter(|error| stream.code.as_ref() != Some(&error.code) && error.seconds_ago < ERROR_TOLD_SECONDS);
    if let Some(error) = over {
        say(format!("last error, {} ago: [{}] {}", seconds(error.seconds_ago), error.code, error.message));
    }
    if !stream.stages.is_empty() {
        let whole: f64 = stream.stages.iter().map(|stage| stage.seconds).sum();
        let share = |part: f64| if whole > 0.0 { 100.0 * part / whole } else { 0.0 };
        let stages = stream.stages.iter().map(|stage| {
            format!("{} {} ({:.0} %)", stage.stage, seconds(stage.seconds), share(stage.seconds))
        });
        say(format!("time: {}", stages.collect::<Vec<_>>().join(", ")));
    }
    if let Some(parked) = stream.link.as_ref().and_then(|link| link.parked).filter(|parked| *parked > 0) {
        let are = if parked == 1 { "transaction is" } else { "transactions are" };
        say(format!(
            "{parked} {are} parked, their rows differ from the source's: `landfall parked` lists them"
        ));
    }
    if stream.link.as_ref().is_some_and(|link| link.transaction_open == Some(true)) {
        say("a transaction larger than memory is open".to_owned());
    }
    if let Some(left) = stream.source.as_ref().and_then(|source| source.slot_seconds_to_invalidation) {
        say(format!("the slot is lost in {} at the present rate of writing", seconds(left)));
    }
    for warning in &stream.warnings {
        say(format!("warning: {warning}"));
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::{
        clock,
        control::status::status,
        fault::{Code, Fault},
        progress::Heartbeat,
        roster::{Roster, Sample, State},
        stamp::Micros,
    };

    fn roster() -> Roster {
        let roster = Roster::new("eu-west-1".parse().unwrap());
        roster.database_healthy(true, "");
        let source = roster.source();
        source.set(State::Running);
        source.see_slot(Some(3 << 30), Some(7_020_000), Instant::now());
        let link = roster.link(&"us-east-1".parse().unwrap(), "main");
        link.fill(0, clock::now());
        link.set(State::Running);
        let now = clock::now().0;
        let sent = Micros(now - 1_400_000);
        link.beat(
            Heartbeat { sent, appended: Some(Micros(sent.0 + 30_000)), arrived: Micros(sent.0 + 90_000) },
            Micros(sent.0 + 100_000),
        );
        link.headroom_seconds.set(86_000.0);
        link.offset_lag.set(12);
        link.parked.set(3);
        for (ago, changes) in [(10, 0), (0, 31_000)] {
            let at = Micros(now - ago * 1_000_000);
            link.history.note(Sample { at, lag_seconds: Some(2.0), changes });
        }
        roster
    }

    #[test]
    fn a_line_for_each_stream() {
        let text = table(&status(&roster(), None, clock::now()), false);
        let expected = [
            "eu-west-1 is ready, active, database healthy",
            "",
            "STATE    ROLE   STREAM                  LAG     P99   RATE  WAITING PARK    LEFT",
            "running  link   us-east-1/main        1.4 s   2.0 s 3100/s   12 rec    3  23.9 h",
            "    time: source 30 ms (30 %), wide area 60 ms (60 %), apply 10 ms (10 %)",
            "    3 transactions are parked, their rows differ from the source's: `landfall",
            "    parked` lists them",
            "running  source eu-west-1/main            -       -      ?  3.0 GiB    -       -",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_there_is_to_say_fits_too() {
        let roster = roster();
        let message = "read the topic landfall.us-east-1.main at offset 12: ".repeat(4);
        let link = roster.link(&"us-east-1".parse().unwrap(), "main");
        link.set(State::retrying(&Fault::new(Code::KafkaUnreachable, "ask the brokers"), 2));
        link.set(State::Running);
        let text = table(&status(&roster, None, clock::now()), false);
        assert!(text.contains("last error, 0 ms ago: [LF-KAFKA-UNREACHABLE] ask the brokers"), "{text}");
        link.set(State::halted(&Fault::new(Code::SequenceBroken, message)));
        let other =
            roster.link(&"a-region-name-of-32-bytes-exactly".get(..32).unwrap().parse().unwrap(), "main");
        other.fill(0, clock::now());
        roster.source().warnings.set(vec!["public.t\u{1b}[31m is in scope and not published".into()]);
        let source = roster.source();
        let soon = source.slot_seen().unwrap() + Duration::from_secs(20);
        source.see_slot(Some(3 << 30), Some(7_000_000), soon);
        let text = table(&status(&roster, None, clock::now()), false);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.lines().nth(3).unwrap().starts_with("halted   link"), "{text}");
        assert!(text.contains("[LF-SEQUENCE]") && text.contains("next: the log is damaged"), "{text}");
        assert!(!text.contains("last error"), "what is there is not over: {text}");
        assert!(text.contains("warning: public.t") && text.contains("lost in 117 min"), "{text}");
        assert!(text.contains("a-region-name-of-3…       ?       ?      ?        ?    ?       ?"), "{text}");
        assert!(!text.contains('\x1b') && table(&status(&roster, None, clock::now()), true).contains('\x1b'));
    }

    #[test]
    fn rates_read_well() {
        for (value, expected) in [(0.0, "0.0/s"), (9.97, "10/s"), (9_999.0, "9999/s"), (123_456.0, "123k/s")]
        {
            assert_eq!(rate(value), expected);
        }
    }
}
