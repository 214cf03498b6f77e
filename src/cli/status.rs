//! `landfall status`: the daemon's own account of itself, for people.

use std::{fmt::Write, path::Path};

use super::{
    FOUND, GOOD, UNKNOWN, complain, environment, give_up,
    http::get,
    page::{bytes, cut, painted, seconds, wrapped},
};
use crate::{
    config::Settings,
    control::status::{Status, StreamStatus},
    fault::{Code, Fault},
};

pub(super) async fn run(path: &Path, json: bool) -> u8 {
    // Only the listener's address is needed: whoever may ask need not be able to read the secrets.
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            let message = format!("read {}: {error}", path.display());
            return give_up(json, &Fault::new(Code::ConfigInvalid, message));
        }
    };
    let settings = match Settings::from_parts(&text, environment(), &|_| Ok("unread".to_owned())) {
        Ok(settings) => settings,
        Err(mistakes) if json => return give_up(json, &mistakes.into()),
        Err(mistakes) => {
            complain(path, &mistakes);
            return UNKNOWN;
        }
    };
    let answer = match get(settings.http.listen, "/status").await {
        Ok(answer) => answer,
        Err(fault) => return give_up(json, &fault),
    };
    let status: Status = match serde_json::from_str(&answer) {
        Ok(status) => status,
        Err(error) => {
            let message = "read the daemon's answer: it is of another version, or no daemon of ours";
            return give_up(json, &Fault::new(Code::Internal, message).because(error));
        }
    };
    if json {
        println!("{answer}");
    } else {
        print!("{}", page(&status, super::colour()));
    }
    if is_good(&status) { GOOD } else { FOUND }
}

fn is_good(status: &Status) -> bool {
    let well = |stream: &StreamStatus| badness(&stream.state) < 2 && stream.warnings.is_empty();
    status.ready && status.streams.iter().all(well)
}

fn badness(state: &str) -> usize {
    match state {
        "running" | "standby" => 0,
        "starting" => 1,
        _ => 2,
    }
}

/// The page, at most 80 columns wide: a line for each stream, and below it what there is to say.
fn page(status: &Status, colour: bool) -> String {
    let mut page = String::new();
    let ready = if status.ready { painted("ready", 0, colour) } else { painted("not ready", 2, colour) };
    let _ = writeln!(page, "{} is {ready}, {}, database {}", status.region, status.mode, status.database);
    if let Some(why) = &status.not_ready_because {
        wrapped(why, 4).iter().for_each(|line| page.extend([line, "\n"]));
    }
    if status.streams.is_empty() {
        return page;
    }
    let _ = writeln!(page, "\n{:<9} {:<7} {:<30} {:>9}  FIGURES", "STATE", "ROLE", "STREAM", "LAG");
    for stream in &status.streams {
        let state = format!("{:<9}", stream.state);
        let name = cut(&format!("{}/{}", stream.from, stream.stream), 30);
        let lag = match &stream.link {
            None => "-".to_owned(),
            Some(link) => link.lag_seconds.map_or("unknown".to_owned(), seconds),
        };
        let _ = writeln!(
            page,
            "{} {:<7} {name:<30} {lag:>9}  {}",
            painted(&state, badness(&stream.state), colour),
            stream.role,
            figures(stream)
        );
        below(&mut page, stream);
    }
    page
}

/// At most 20 columns.
fn figures(stream: &StreamStatus) -> String {
    let source = stream.source.iter().filter_map(|source| source.slot_retained_bytes);
    let slot = source.map(|retained| format!("slot {}", bytes(retained)));
    let link = stream.link.iter().filter_map(|link| link.headroom_seconds);
    let room = link.map(|left| format!("head-room {}", seconds(left)));
    slot.chain(room).next().unwrap_or_default()
}

fn below(page: &mut String, stream: &StreamStatus) {
    let mut say = |text: String| wrapped(&text, 4).iter().for_each(|line| page.extend([line, "\n"]));
    if let Some(message) = &stream.message {
        let code = stream.code.as_ref().map(|code| format!("[{code}] ")).unwrap_or_default();
        let attempt = stream.attempt.map(|attempt| format!(" (attempt {attempt})")).unwrap_or_default();
        say(format!("{code}{message}{attempt}"));
    }
    if let Some(remedy) = &stream.remedy {
        say(format!("next: {remedy}"));
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
    use super::*;
    use crate::{
        clock,
        control::status::status,
        progress::Heartbeat,
        roster::{Roster, State},
        stamp::Micros,
    };

    fn roster() -> Roster {
        let roster = Roster::new("eu-west-1".parse().unwrap());
        roster.database_healthy(true, "");
        let source = roster.source();
        source.set(State::Running);
        source.slot_retained_bytes.set(3 << 30);
        let link = roster.link(&"us-east-1".parse().unwrap(), "main");
        link.set(State::Running);
        let sent = Micros(clock::now().0 - 400_000);
        link.heartbeat.set(Heartbeat { sent, arrived: sent });
        link.headroom_seconds.set(86_000.0);
        roster
    }

    #[test]
    fn a_page_reads_well_and_fits() {
        let roster = roster();
        let shown = status(&roster, None, clock::now());
        assert!(is_good(&shown));
        let text = page(&shown, false);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "eu-west-1 is ready, active, database healthy");
        assert_eq!(lines[2], "STATE     ROLE    STREAM                               LAG  FIGURES");
        assert_eq!(lines[3], "running   link    us-east-1/main                     0.4 s  head-room 23.9 h");
        assert_eq!(lines[4], "running   source  eu-west-1/main                         -  slot 3.0 GiB");

        let fault = Fault::new(
            Code::SequenceBroken,
            "read the topic landfall.us-east-1.main at offset 12: ".repeat(4),
        );
        roster.link(&"us-east-1".parse().unwrap(), "main").set(State::halted(&fault));
        roster.link(&"a-region-name-of-32-bytes-exactly".get(..32).unwrap().parse().unwrap(), "main");
        roster.source().warnings.set(vec!["public.t is in scope and not published".into()]);
        let shown = status(&roster, None, clock::now());
        assert!(!is_good(&shown));
        let text = page(&shown, false);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.lines().nth(3).unwrap().starts_with("halted    link"), "{text}");
        assert!(text.contains("[LF-SEQUENCE]") && text.contains("next: the log is damaged"), "{text}");
        assert!(text.contains("warning: public.t") && text.contains("unknown"), "{text}");
        assert!(!text.contains('\x1b') && page(&shown, true).contains('\x1b'));
    }
}
