//! `landfall explain`: what a code or a finding means, what follows from it, and what is to be done; of a
//! setting, what it does and what it takes.

use std::fmt::Write;

use serde::Serialize;

use super::{
    GOOD, UNKNOWN,
    page::{WIDTH, cut, wrapped},
};
use crate::{
    check::Kind,
    config::{SETTINGS, nearest},
    fault::{Code, Consequence},
};

/// What can be said of one name.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Entry {
    /// The name, as logs, status, check and documents have it.
    name: &'static str,
    /// What it names.
    of: Of,
    meaning: &'static str,
    /// What comes of it; of a setting, what it is where it is not given.
    follows: String,
    /// What is to be done; of a setting, what it may be.
    remedy: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Of {
    Fault,
    Finding,
    Setting,
}

fn entries() -> Vec<Entry> {
    let codes = Code::ALL.iter().map(|code| Entry {
        name: code.as_str(),
        of: Of::Fault,
        meaning: code.meaning(),
        follows: follows(*code).to_owned(),
        remedy: code.remedy(),
    });
    let kinds = Kind::ALL.iter().map(|kind| Entry {
        name: kind.as_str(),
        of: Of::Finding,
        meaning: kind.meaning(),
        follows: "`landfall check` names it, with what it saw; nothing is changed.".to_owned(),
        remedy: kind.advice(),
    });
    let settings = SETTINGS.iter().map(|setting| Entry {
        name: setting.path,
        of: Of::Setting,
        meaning: setting.meaning,
        follows: format!("Where it is not given: {}.", setting.default_text()),
        remedy: setting.form,
    });
    codes.chain(kinds).chain(settings).collect()
}

fn follows(code: Code) -> &'static str {
    match (code, code.consequence()) {
        (Code::ConfigInvalid, _) => "The process ends with exit code 2 before it touches anything.",
        (Code::NotServed, _) => "The command that asked ends with exit code 2.",
        (_, Consequence::Retry) => "It is tried again by itself, later and later, up to once in a while.",
        (_, Consequence::Halt) => {
            "The stream it happened on stops where it is, and nothing is skipped. It looks again every few \
             seconds and goes on by itself where the cause is gone."
        }
    }
}

/// Explains `name`, or lists everything there is.
pub(super) fn run(name: Option<&str>, json: bool) -> u8 {
    let all = entries();
    let Some(name) = name else {
        print!("{}", if json { document(&all) } else { list(&all) });
        return GOOD;
    };
    match find(&all, name) {
        found if !found.is_empty() => {
            print!(
                "{}",
                if json { document(&found) } else { found.iter().map(|entry| page(entry)).collect() }
            );
            GOOD
        }
        _ => {
            let near = near(&all, name);
            let lists = "`landfall explain` lists all";
            let near = match near.len() {
                0 => lists.to_owned(),
                1..=NEAR_MAX => format!("did you mean {}?", near.join(", ")),
                _ => format!("did you mean {}? {lists}", near[..NEAR_MAX].join(", ")),
            };
            eprintln!("landfall: there is no code, finding or setting {name}; {near}");
            UNKNOWN
        }
    }
}

/// What bears the name, upper and lower case apart; a code also without its `LF-`.
fn find<'a>(all: &'a [Entry], name: &str) -> Vec<&'a Entry> {
    let name = general(name);
    let named = |entry: &&Entry| {
        entry.name.eq_ignore_ascii_case(&name)
            || entry.name.strip_prefix("LF-").is_some_and(|bare| bare.eq_ignore_ascii_case(&name))
    };
    all.iter().filter(named).collect()
}

/// As many names are offered in the place of one that there is not: more are a list, and that there is.
const NEAR_MAX: usize = 12;

/// What may have been meant: what has all of its words in its own name, a setting's key (`linger`) before the rest; or
/// else what is spelled most alike, with or without a setting's section and a code's `LF-`.
fn near(all: &[Entry], name: &str) -> Vec<&'static str> {
    let asked = bare(&general(name));
    let key = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let words = words(&asked);
    let has_all = |entry: &&Entry| {
        let own = bare(entry.name);
        let own = self::words(&own);
        !words.is_empty() && words.iter().all(|word| own.contains(word))
    };
    let mut near: Vec<&'static str> = all.iter().filter(has_all).map(|entry| entry.name).collect();
    near.sort_by_key(|name| key(name) != asked);
    if !near.is_empty() {
        return near;
    }
    let spelled: Vec<[String; 2]> =
        all.iter().map(|entry| [bare(entry.name), key(&bare(entry.name))]).collect();
    let known: Vec<&str> = spelled.iter().flatten().map(String::as_str).collect();
    let Some(meant) = nearest(&asked, &known) else { return near };
    let alike = all.iter().zip(&spelled).filter(|(_, spelled)| spelled.iter().any(|it| it == meant));
    alike.map(|(entry, _)| entry.name).collect()
}

/// A name in small letters, a code's without its `LF-`.
fn bare(name: &str) -> String {
    let name = name.to_lowercase();
    name.strip_prefix("lf-").map_or_else(|| name.clone(), str::to_owned)
}

fn words(name: &str) -> Vec<&str> {
    name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect()
}

/// A name as it may be copied from a log or a mistake: `[LF-CONFIG]`, `link[0].from`, `kafka.brokers[1]`.
fn general(name: &str) -> String {
    let name = name.trim_start_matches('[').trim_end_matches([']', ':']);
    let mut general = String::new();
    let mut rest = name;
    while let Some((head, tail)) = rest.split_once('[') {
        general.push_str(head);
        // A number is kept as a place for one only inside a path.
        rest = tail.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start_matches(']');
        if rest.starts_with('.') {
            general.push_str("[]");
        }
    }
    general.push_str(rest);
    match general.split_once(".properties.") {
        Some((section, _)) => format!("{section}.properties"),
        None => general,
    }
}

fn document<T: Serialize>(entries: &[T]) -> String {
    let written = serde_json::to_string_pretty(entries).expect("texts only");
    format!("{written}\n")
}

fn page(entry: &Entry) -> String {
    let mut page = format!("{}\n", entry.name);
    let titles = match entry.of {
        Of::Fault | Of::Finding => ["means", "then", "next"],
        Of::Setting => ["means", "else", "takes"],
    };
    for (title, text) in titles.into_iter().zip([entry.meaning, &entry.follows, entry.remedy]) {
        let lines = wrapped(text, 9);
        let first = lines.first().map_or("", |line| line.trim_start());
        let _ = writeln!(page, "  {title:<5}  {first}");
        lines.iter().skip(1).for_each(|line| page.extend([line, "\n"]));
    }
    page
}

fn list(all: &[Entry]) -> String {
    let mut page = String::new();
    let titles = [
        (Of::Fault, "Codes of logs and status:"),
        (Of::Finding, "Findings of `landfall check`:"),
        (Of::Setting, "Settings:"),
    ];
    for (of, title) in titles {
        let _ = writeln!(page, "{title}");
        for entry in all.iter().filter(|entry| entry.of == of) {
            let _ = writeln!(page, "{}", cut(&format!("  {:<29} {}", entry.name, entry.meaning), WIDTH));
        }
    }
    page.push_str("`landfall explain NAME` says more.\n");
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_and_says_all_three_things() {
        let all = entries();
        assert_eq!(all.len(), Code::ALL.len() + Kind::ALL.len() + SETTINGS.len());
        for entry in &all {
            let found = find(&all, entry.name);
            assert!(found.contains(&entry), "{}", entry.name);
            let page = page(entry);
            assert_eq!(
                page.lines().filter(|line| line.get(2..3).is_some_and(|it| it != " ")).count(),
                4,
                "{page}"
            );
            let fits = |line: &str| line.chars().count() <= WIDTH || !line.trim().contains(' ');
            assert!(page.lines().all(fits), "{page}");
            assert!(list(&all).contains(&format!("\n  {} ", entry.name)), "{}", entry.name);
        }
    }

    #[test]
    fn a_code_is_found_however_it_was_copied() {
        let all = entries();
        for name in
            ["LF-RETENTION-PASSED", "lf-retention-passed", "retention-passed", "[LF-RETENTION-PASSED]"]
        {
            assert_eq!(find(&all, name)[0].name, "LF-RETENTION-PASSED", "{name}");
        }
        for (name, expected) in [
            ("link[0].from", "link[].from"),
            ("link[].from:", "link[].from"),
            ("kafka.brokers[2]", "kafka.brokers"),
            ("link[1].properties.\"sasl.password\"", "link[].properties"),
            ("[LF-CONFIG]", "LF-CONFIG"),
        ] {
            assert_eq!(find(&all, name)[0].name, expected, "{name}");
        }
        // Both a code and a finding.
        assert_eq!(find(&all, "slot-lost").len(), 2);
        assert!(find(&all, "LF-NOTHING").is_empty());
    }
}
