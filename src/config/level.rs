//! `log.level`: a level, or directives as `tracing` has them. What `tracing` would take in silence and a daemon would fall
//! silent by is refused: a word that is no level (taken for a target, and every other line left out), a target that
//! nobody writes as, and single parts without a level for everything else.

use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use super::walk::nearest;

/// Levels by their names, which may also be numbers from 0 (off) to 5 (trace).
const LEVELS: &[&str] = &["error", "warn", "info", "debug", "trace", "off"];

/// Who writes lines: Landfall, what it passes on of librdkafka, and those of its libraries that can. A target begins
/// with one of them. A test holds them against Cargo.lock.
const WRITERS: &[&str] =
    &["landfall", "librdkafka", "pgwire_replication", "rdkafka", "rustls", "tokio_postgres"];

/// The directives without blanks, which `tracing` would not pass over; or everything that is wrong with them.
pub(super) fn directives(text: &str) -> Result<String, Vec<String>> {
    let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    let clean = parts.join(",");
    let mut problems: Vec<String> = parts.iter().filter_map(|part| problem(part)).collect();
    if parts.is_empty() {
        problems.push(expected());
    } else if problems.is_empty() && !parts.iter().any(|part| is_level(part)) {
        problems.push(format!(
            "`{clean}` leaves out every other line: put a level for everything before it, as in info,{clean}"
        ));
    } else if problems.is_empty()
        && let Err(error) = EnvFilter::try_new(&clean)
    {
        problems.push(format!("`{clean}`: {error}"));
    }
    if problems.is_empty() { Ok(clean) } else { Err(problems) }
}

/// What is wrong with one directive: a level, or `target[span{field=value}]=level`.
fn problem(directive: &str) -> Option<String> {
    if is_level(directive) {
        return None;
    }
    let (target, rest) = directive.split_at(directive.find(['[', '=']).unwrap_or(directive.len()));
    let writer = target.split("::").next().unwrap_or_default();
    let is_writer = WRITERS.contains(&writer);
    if rest.is_empty() && !is_writer {
        return Some(no_level(directive));
    }
    if !target.is_empty() && !is_writer {
        let near = nearest(writer, WRITERS).map(|near| format!("; did you mean `{near}`?"));
        let near = near.unwrap_or_else(|| format!("; there are {}", WRITERS.join(", ")));
        return Some(format!("`{directive}`: nobody here writes lines as `{writer}`{near}"));
    }
    if rest.starts_with('[') && !rest.contains(']') {
        return Some(format!("`{directive}` lacks its `]`"));
    }
    let level = rest.rsplit_once(']').map_or(rest, |(_, level)| level);
    match level.strip_prefix('=') {
        Some(level) if is_level(level) => None,
        Some(level) => Some(format!("`{directive}`: {}", no_level(level))),
        None => Some(format!("`{directive}` is without a level; for example {directive}=debug")),
    }
}

fn is_level(word: &str) -> bool {
    !word.is_empty() && word.parse::<LevelFilter>().is_ok()
}

fn no_level(word: &str) -> String {
    let lower = word.to_lowercase();
    let begins = |level: &&str| lower.starts_with(level) || level.starts_with(&lower);
    let meant = LEVELS.iter().copied().find(begins).or_else(|| nearest(&lower, LEVELS));
    let meant = meant.filter(|_| !word.is_empty());
    let meant = meant.map_or_else(expected, |level| format!("did you mean `{level}`?"));
    format!("`{word}` is no level; {meant}")
}

fn expected() -> String {
    "expected error, warn, info, debug or trace".to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn levels_and_parts_behind_a_level_are_taken_whatever_blanks_stand_between() {
        for (text, clean) in [
            ("info", "info"),
            (" WARN ", "WARN"),
            ("off", "off"),
            ("info,landfall::sink=debug", "info,landfall::sink=debug"),
            ("librdkafka=trace, warn,", "librdkafka=trace,warn"),
            (
                "info,[road]=debug,landfall[road{name=source}]=trace",
                "info,[road]=debug,landfall[road{name=source}]=trace",
            ),
        ] {
            assert_eq!(directives(text).as_deref(), Ok(clean), "{text}");
        }
    }

    #[test]
    fn nothing_is_taken_that_would_silence_a_daemon() {
        for (text, problems) in [
            ("warning", &["`warning` is no level; did you mean `warn`?"][..]),
            ("inof", &["`inof` is no level; did you mean `info`?"]),
            ("err", &["`err` is no level; did you mean `error`?"]),
            ("loud", &["`loud` is no level; expected error, warn, info, debug or trace"]),
            ("7", &["`7` is no level; expected error, warn, info, debug or trace"]),
            ("", &["expected error, warn, info, debug or trace"]),
            (" ,", &["expected error, warn, info, debug or trace"]),
            (
                "landfall::sink=debug",
                &[
                    "`landfall::sink=debug` leaves out every other line: put a level for everything before it, as in info,landfall::sink=debug",
                ],
            ),
            (
                "info,landfall::sink",
                &["`landfall::sink` is without a level; for example landfall::sink=debug"],
            ),
            (
                "info,landfal::sink=debug",
                &["`landfal::sink=debug`: nobody here writes lines as `landfal`; did you mean `landfall`?"],
            ),
            (
                "info,hyper=debug",
                &[
                    "`hyper=debug`: nobody here writes lines as `hyper`; there are landfall, librdkafka, pgwire_replication, rdkafka, rustls, tokio_postgres",
                ],
            ),
            (
                "infos,landfall=debgu",
                &[
                    "`infos` is no level; did you mean `info`?",
                    "`landfall=debgu`: `debgu` is no level; did you mean `debug`?",
                ],
            ),
            ("info,landfall=", &["`landfall=`: `` is no level; expected error, warn, info, debug or trace"]),
            ("info,[road", &["`[road` lacks its `]`"]),
            ("info,[road]", &["`[road]` is without a level; for example [road]=debug"]),
        ] {
            let expected: Vec<String> = problems.iter().map(|problem| (*problem).to_owned()).collect();
            assert_eq!(directives(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn those_who_write_lines_are_the_packages_that_can() {
        let lock = include_str!("../../Cargo.lock");
        let mut found = BTreeSet::from(["librdkafka".to_owned()]);
        for package in lock.split("[[package]]").skip(1) {
            let name = package.split('"').nth(1).unwrap().replace('-', "_");
            let writes = ["log", "tracing"].iter().any(|it| package.contains(&format!("\n \"{it}\",")));
            if writes && !name.starts_with("tracing") {
                found.insert(name);
            }
        }
        let told: BTreeSet<String> = WRITERS.iter().map(|it| (*it).to_owned()).collect();
        assert_eq!(told, found);
    }
}
