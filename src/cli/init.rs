//! `landfall init`: three questions, where the flags have not answered them, and what came of it.

use std::{
    io::{BufRead, Write, stderr, stdin},
    path::PathBuf,
};

use clap::Args;

use super::{FOUND, GOOD, UNKNOWN, give_up};
use crate::{
    config::broker,
    init::{self, Outcome, Side, Wishes},
    region::Region,
    scope::Pattern,
};

/// What may be said in advance.
#[derive(Clone, Debug, Args)]
pub(super) struct Arguments {
    /// The database whose changes go out, as a superuser. Only looked at.
    #[arg(long, value_name = "URL")]
    from: Option<String>,
    /// The database they go to, as a superuser. Only looked at.
    #[arg(long, value_name = "URL")]
    to: Option<String>,
    /// The Kafka of the sending region, as host:port.
    #[arg(long, value_name = "BROKERS", value_delimiter = ',', value_parser = broker)]
    brokers: Option<Vec<String>>,
    /// The name of the sending region.
    #[arg(long, value_name = "NAME", default_value = "region-a")]
    from_region: Region,
    /// The name of the taking region.
    #[arg(long, value_name = "NAME", default_value = "region-b")]
    to_region: Region,
    /// The tables that are carried, as in source.tables; all there are, unless given.
    #[arg(long, value_name = "PATTERNS", value_delimiter = ',')]
    tables: Option<Vec<Pattern>>,
    /// The role the daemons work as.
    #[arg(long, value_name = "NAME", default_value = "landfall")]
    role: String,
    /// Where the files go.
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
}

pub(super) async fn run(arguments: Arguments, json: bool) -> u8 {
    let wishes = match wishes(arguments) {
        Ok(wishes) => wishes,
        Err(problem) => {
            eprintln!("landfall: {problem}");
            return UNKNOWN;
        }
    };
    match init::run(&wishes).await {
        Ok(outcome) => {
            if json {
                println!("{}", serde_json::to_string_pretty(&outcome).expect("texts only"));
            } else {
                print!("{}", page(&outcome));
            }
            if outcome.obstacles.is_empty() { GOOD } else { FOUND }
        }
        Err(fault) => give_up(json, &fault),
    }
}

fn wishes(arguments: Arguments) -> Result<Wishes, String> {
    let from = answered(arguments.from, "--from", "Which database's changes go out? (postgres://…)")?;
    let to = answered(arguments.to, "--to", "Which database do they go to? (postgres://…)")?;
    let brokers = match arguments.brokers {
        Some(brokers) => brokers,
        None => {
            let question = "Which Kafka stands beside the first? (host:port, several parted by commas)";
            let answer = answered(None, "--brokers", question)?;
            answer.split(',').map(|text| broker(text.trim())).collect::<Result<_, _>>()?
        }
    };
    Ok(Wishes {
        from: Side { region: arguments.from_region, url: from },
        to: Side { region: arguments.to_region, url: to },
        brokers: once(brokers),
        tables: arguments.tables.map(once),
        role: arguments.role,
        directory: arguments.dir,
    })
}

/// Each of them once: settings refuse what is listed twice.
fn once<T: PartialEq>(list: Vec<T>) -> Vec<T> {
    let mut kept = Vec::with_capacity(list.len());
    for item in list {
        if !kept.contains(&item) {
            kept.push(item);
        }
    }
    kept
}

/// The flag's answer, or else that of whoever sits at the terminal.
fn answered(given: Option<String>, flag: &str, question: &str) -> Result<String, String> {
    if let Some(given) = given {
        return Ok(given);
    }
    eprint!("{question}\n> ");
    // Where the prompt cannot be shown, the answer can still be read.
    let _ = stderr().flush();
    let mut line = String::new();
    let read = stdin().lock().read_line(&mut line).map_err(|error| format!("read the answer: {error}"))?;
    let answer = line.trim();
    if read == 0 || answer.is_empty() {
        return Err(format!("no answer; give {flag}"));
    }
    Ok(answer.to_owned())
}

fn page(outcome: &Outcome) -> String {
    let mut page = String::new();
    let mut part = |title: &str, lines: &[String]| {
        if !lines.is_empty() {
            page.extend([title, "\n"]);
            lines.iter().for_each(|line| page.extend(["  ", line, "\n"]));
        }
    };
    part("Seen:", &outcome.seen);
    part("In the way:", &outcome.obstacles);
    part("Written:", &outcome.files);
    part("Next, in this order:", &outcome.next);
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_twice_is_written_once() {
        assert_eq!(once(vec!["a:1", "b:1", "a:1"]), ["a:1", "b:1"]);
    }
}
