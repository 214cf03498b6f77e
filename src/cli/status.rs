//! `landfall status`: the daemon's own account of itself, once or again and again.

mod table;

use std::{
    io::{IsTerminal, Write, stdout},
    path::Path,
    time::Duration,
};

use super::{FOUND, GOOD, UNKNOWN, complain, environment, give_up, http::get};
use crate::{
    config::{HttpSettings, Settings},
    control::status::{Status, StreamStatus},
    fault::{Code, Fault, Result},
};
use table::table;

/// How often `--watch` looks: as often as heartbeats come.
const EVERY: Duration = Duration::from_secs(1);

/// What a terminal is told: go to the upper left; erase to the end of the line; of the screen; everything.
const HOME: &str = "\x1b[H";
const ERASE_LINE: &str = "\x1b[K";
const ERASE_BELOW: &str = "\x1b[J";
const ERASE_ALL: &str = "\x1b[2J";

pub(super) async fn run(path: &Path, json: bool, watching: bool) -> u8 {
    // Only the listener's address is needed: whoever may ask need not be able to read the secrets.
    let settings = match Settings::load_to_look(path, environment()) {
        Ok(settings) => settings,
        Err(mistakes) if json => return give_up(json, &mistakes.into()),
        Err(mistakes) => {
            complain(path, mistakes);
            return UNKNOWN;
        }
    };
    if watching {
        return watch(&settings.http, json).await;
    }
    match ask(&settings.http).await {
        Ok((answer, status)) => {
            if json {
                println!("{answer}");
            } else {
                print!("{}", table(&status, super::colour()));
            }
            verdict(&status)
        }
        Err(fault) => give_up(json, &fault),
    }
}

/// Looks again and again, until it is interrupted or nobody reads any more; ends as the last look did.
/// On a terminal each look takes the place of the one before, elsewhere it follows it.
async fn watch(http: &HttpSettings, json: bool) -> u8 {
    let in_place = stdout().is_terminal() && !json;
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    if in_place {
        print!("{ERASE_ALL}");
    }
    let mut last = UNKNOWN;
    loop {
        let look = async {
            tick.tick().await;
            ask(http).await
        };
        let looked = tokio::select! {
            looked = look => looked,
            _ = tokio::signal::ctrl_c() => return last,
        };
        let text = match &looked {
            Ok((answer, _)) if json => format!("{answer}\n"),
            Err(fault) if json => format!("{}\n", super::as_json(fault)),
            Ok((_, status)) => table(status, super::colour()),
            Err(fault) => format!("{fault}\n"),
        };
        last = looked.map_or(UNKNOWN, |(_, status)| verdict(&status));
        let text = if in_place { redrawn(&text) } else { text };
        let mut out = stdout().lock();
        if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
            return last;
        }
    }
}

/// The text over what stood there before.
fn redrawn(text: &str) -> String {
    let mut redrawn = String::from(HOME);
    text.lines().for_each(|line| redrawn.extend([line, ERASE_LINE, "\r\n"]));
    redrawn + ERASE_BELOW
}

async fn ask(http: &HttpSettings) -> Result<(String, Status)> {
    let answer = get(http, "/status").await?;
    let status = serde_json::from_str(&answer).map_err(|error| {
        let message = "read the daemon's answer: it is of another version, or no daemon of ours";
        let next =
            "use the landfall that runs there, and see that http.listen is the address it was started with";
        Fault::new(Code::NotServed, message).because(error).remedied_by(next)
    })?;
    Ok((answer, status))
}

fn verdict(status: &Status) -> u8 {
    // What only starts carries nothing yet: whoever waits for it before they write must not go on.
    let parks =
        |stream: &StreamStatus| stream.link.as_ref().and_then(|link| link.parked).is_some_and(|it| it > 0);
    let well =
        |stream: &StreamStatus| badness(&stream.state) == 0 && stream.warnings.is_empty() && !parks(stream);
    if status.ready && status.streams.iter().all(well) { GOOD } else { FOUND }
}

/// 0 good, 1 to be looked at, 2 bad.
fn badness(state: &str) -> usize {
    match state {
        "running" | "standby" => 0,
        "starting" => 1,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock,
        control::status::status,
        roster::{Roster, State},
    };

    #[test]
    fn it_ends_with_what_it_found() {
        let roster = Roster::new("eu-west-1".parse().unwrap());
        let seen = |roster: &Roster| verdict(&status(roster, None, clock::now()));
        assert_eq!(seen(&roster), FOUND, "the database was not asked yet");
        roster.database_healthy(true, "");
        assert_eq!(seen(&roster), GOOD);
        let link = roster.link(&"us-east-1".parse().unwrap(), "main");
        link.fill(0, clock::now());
        assert_eq!(seen(&roster), FOUND, "it only starts");
        link.set(State::standby("another holds it"));
        assert_eq!(seen(&roster), GOOD);
        link.set(State::halted(&Fault::new(Code::SequenceBroken, "read #9")));
        assert_eq!(seen(&roster), FOUND);
        link.set(State::Running);
        link.parked.set(1);
        assert_eq!(seen(&roster), FOUND);
        link.parked.set(0);
        roster.source().set(State::Running);
        assert_eq!(seen(&roster), GOOD);
        roster.source().warnings.set(vec!["public.t is not published".into()]);
        assert_eq!(seen(&roster), FOUND);
    }

    #[test]
    fn a_shorter_look_leaves_nothing_of_a_longer_one() {
        assert_eq!(redrawn("a\nb\n"), "\x1b[Ha\x1b[K\r\nb\x1b[K\r\n\x1b[J");
    }
}
