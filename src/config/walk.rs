//! Walking the merged tree of settings: every key is asked for by name, what is left over is unknown.

use std::{fmt::Display, ops::RangeInclusive, path::Path, time::Duration};

use ::config::{Map, Value, ValueKind};

use super::{
    UNREAD, UNREAD_URL,
    mistake::Notes,
    units::{duration, show_duration, show_size, size},
};

/// What the environment's variables begin with; `__` parts the keys.
pub(super) const PREFIX: &str = "LANDFALL";

/// One table of the tree.
pub(super) struct Section<'a> {
    path: String,
    table: Map<String, Value>,
    known: Vec<&'static str>,
    notes: &'a Notes<'a>,
}

impl<'a> Section<'a> {
    /// The whole tree.
    pub(super) fn root(value: Value, notes: &'a Notes<'a>) -> Self {
        Self::new(String::new(), value, notes).unwrap_or_else(|| Self::empty(String::new(), notes))
    }

    fn new(path: String, value: Value, notes: &'a Notes<'a>) -> Option<Self> {
        match value.kind {
            ValueKind::Table(table) => Some(Self { path, table, known: Vec::new(), notes }),
            kind => {
                notes.add(path, format!("expected a section, found {}", name(&kind)));
                None
            }
        }
    }

    fn empty(path: String, notes: &'a Notes<'a>) -> Self {
        Self { path, table: Map::new(), known: Vec::new(), notes }
    }

    /// The path of a key of this section.
    pub(super) fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Notes a mistake at a key of this section.
    pub(super) fn wrong(&self, key: &str, problem: impl Into<String>) {
        self.notes.add(self.path(key), problem);
    }

    /// Notes a mistake at a path of its own.
    pub(super) fn note_at(&self, path: impl Into<String>, problem: impl Into<String>) {
        self.notes.add(path, problem);
    }

    /// Whether the key is given; asked before it is read.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Whether the key is given by the environment.
    pub(super) fn is_from_environment(&self, key: &str) -> bool {
        self.table.get(key).is_some_and(from_environment)
    }

    /// Whether the settings are only looked at, so that secrets need not be there.
    pub(super) fn looking(&self) -> bool {
        self.notes.looking
    }

    /// The variable of the environment that sets a key of this section.
    pub(super) fn variable(&self, key: &str) -> String {
        let path = self.path(key).to_uppercase().replace('[', "__").replace(']', "");
        format!("{PREFIX}__{}", path.replace('.', "__"))
    }

    /// Takes a section, or a list of them.
    fn take_raw(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.notes.ask(self.path(key));
        self.table.remove(key).filter(|value| value.kind != ValueKind::Nil)
    }

    /// Takes a value, from where it says it is.
    fn take(&mut self, key: &'static str) -> Option<Value> {
        let value = self.take_raw(key)?;
        self.resolved(&self.path(key), value)
    }

    /// A value may be `{ file = "/run/secrets/x" }` or `{ env = "NAME" }` in place of itself: then its text is
    /// what stands there, read as text from the environment is.
    fn resolved(&self, path: &str, value: Value) -> Option<Value> {
        let ValueKind::Table(table) = &value.kind else { return Some(value) };
        let Some((from, name)) = indirect(table) else { return Some(value) };
        let found = match from {
            "file" => (self.notes.read)(Path::new(name)).map_err(|error| format!("read {name}: {error}")),
            _ => self.notes.environment.iter().find(|(key, _)| key == name).map_or_else(
                || Err(format!("the environment has no variable {name}")),
                |(_, text)| Ok(text.clone()),
            ),
        };
        let stands_in = match path {
            "database.url" => Some(UNREAD_URL),
            _ if path.ends_with("password") || path.contains(".properties.") => Some(UNREAD),
            _ => None,
        };
        let stands_in = stands_in.filter(|_| self.looking()).map(str::to_owned);
        let found = found.or_else(|problem| stands_in.ok_or(problem));
        match found {
            Ok(text) => {
                let text = text.strip_suffix('\n').unwrap_or(&text);
                let text = text.strip_suffix('\r').unwrap_or(text).to_owned();
                Some(Value::new(Some(&ENVIRONMENT.to_owned()), ValueKind::String(text)))
            }
            Err(problem) => {
                self.notes.add(path, problem);
                None
            }
        }
    }

    /// Notes that a key which has to be there is not.
    pub(super) fn require(&self, key: &str, example: &str) {
        if !self.has(key) {
            self.wrong(key, format!("missing; for example {key} = {example}"));
        }
    }

    /// Notes that a section which has to be there is not.
    pub(super) fn require_section(&self, key: &str, with: &str) {
        if !self.has(key) {
            self.wrong(key, format!("missing; add [{key}] with {with}"));
        }
    }

    /// A text.
    pub(super) fn text(&mut self, key: &'static str) -> Option<String> {
        let value = self.take(key)?;
        match value.kind {
            ValueKind::String(text) => Some(text),
            kind => {
                self.wrong(key, format!("expected a text in quotes, found {}", name(&kind)));
                None
            }
        }
    }

    /// A text that means something.
    pub(super) fn parsed<T, E: Display>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.text(key)?;
        parse(&text).map_err(|error| self.wrong(key, error.to_string())).ok()
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        self.parsed(key, |text| {
            let found = words.iter().find(|(word, _)| *word == text);
            let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            found.map(|(_, value)| *value).ok_or_else(|| format!("`{text}` is none of {}", all.join(", ")))
        })
    }

    /// A yes or no.
    pub(super) fn flag(&mut self, key: &'static str) -> Option<bool> {
        let value = self.take(key)?;
        let environment = from_environment(&value);
        match value.kind {
            ValueKind::Boolean(flag) => Some(flag),
            ValueKind::String(text) if environment && text == "true" => Some(true),
            ValueKind::String(text) if environment && text == "false" => Some(false),
            kind => {
                self.wrong(key, format!("expected true or false, found {}", name(&kind)));
                None
            }
        }
    }

    /// A whole number.
    pub(super) fn number(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.take(key)?;
        let environment = from_environment(&value);
        let expected = format!("expected a whole number from {} to {}", range.start(), range.end());
        let number = match value.kind {
            ValueKind::I64(number) => u64::try_from(number).ok(),
            ValueKind::U64(number) => Some(number),
            // Also what is too large for a whole number.
            ValueKind::Float(_) => None,
            ValueKind::String(text) if environment => text.parse().ok(),
            kind => {
                self.wrong(key, format!("{expected}, found {}", name(&kind)));
                return None;
            }
        };
        let found = number.filter(|found| range.contains(found));
        if found.is_none() {
            self.wrong(key, expected);
        }
        found
    }

    /// A duration.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let value = self.take(key)?;
        let found = match value.kind {
            ValueKind::String(text) => duration(&text),
            kind => {
                let meant = meant(&kind, &range);
                Err(format!("expected a text in quotes, as in \"{meant}\", found {}", name(&kind)))
            }
        };
        let in_range = |found: Duration| {
            let (from, to) = (show_duration(*range.start()), show_duration(*range.end()));
            let fits = range.contains(&found);
            if fits { Ok(found) } else { Err(format!("expected a duration from {from} to {to}")) }
        };
        found.and_then(in_range).map_err(|problem| self.wrong(key, problem)).ok()
    }

    /// A size in bytes: a text with its unit, or a number of bytes.
    pub(super) fn size(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.take(key)?;
        let (from, to) = (show_size(*range.start()), show_size(*range.end()));
        let expected = format!("expected a size from {from} to {to}");
        let found = match value.kind {
            ValueKind::I64(number) => u64::try_from(number).map_err(|_| expected.clone()),
            // Also what is too large for a whole number.
            ValueKind::Float(_) => Err(expected.clone()),
            ValueKind::String(text) => size(&text),
            kind => Err(format!("{expected}, as in \"8MiB\", found {}", name(&kind))),
        };
        let in_range = |found: u64| if range.contains(&found) { Ok(found) } else { Err(expected) };
        found.and_then(in_range).map_err(|problem| self.wrong(key, problem)).ok()
    }

    /// A list of texts, each of which means something; from the environment, parted by commas. Where
    /// any does not, or is there twice, the list is given up, after all were looked at.
    pub(super) fn list<T: PartialEq, E: Display>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<Vec<T>> {
        let value = self.take(key)?;
        let environment = from_environment(&value);
        let texts: Vec<Result<String, ValueKind>> = match value.kind {
            ValueKind::Array(values) => {
                let values = values.into_iter().enumerate();
                let path = self.path(key);
                values
                    .filter_map(|(at, value)| self.resolved(&format!("{path}[{at}]"), value))
                    .map(|value| match value.kind {
                        ValueKind::String(text) => Ok(text),
                        kind => Err(kind),
                    })
                    .collect()
            }
            ValueKind::String(text) if environment => {
                text.split(',').map(|part| Ok(part.trim().to_owned())).collect()
            }
            kind => {
                let found = name(&kind);
                self.wrong(key, format!("expected a list of texts, as in [\"a\", \"b\"], found {found}"));
                return None;
            }
        };
        if texts.is_empty() {
            self.wrong(key, "the list is empty");
            return None;
        }
        let count = texts.len();
        let mut made: Vec<(usize, T)> = Vec::with_capacity(count);
        for (at, text) in texts.into_iter().enumerate() {
            let place = format!("{key}[{at}]");
            match text {
                Err(kind) => self.wrong(&place, format!("expected a text in quotes, found {}", name(&kind))),
                Ok(text) => match parse(&text) {
                    Ok(item) => {
                        let first = made.iter().find(|(_, other)| *other == item).map(|(first, _)| *first);
                        if let Some(first) = first {
                            let first = format!("{}[{first}]", self.path(key));
                            let problem =
                                format!("`{text}` is there already, as {first}: take one of them away");
                            self.wrong(&place, problem);
                        } else {
                            made.push((at, item));
                        }
                    }
                    Err(error) => self.wrong(&place, error.to_string()),
                },
            }
        }
        (made.len() == count).then(|| made.into_iter().map(|(_, item)| item).collect())
    }

    /// A section within this one.
    pub(super) fn section(&mut self, key: &'static str) -> Option<Section<'a>> {
        let value = self.take_raw(key)?;
        Section::new(self.path(key), value, self.notes)
    }

    /// A section within this one, empty where it is not given: all of it has defaults.
    pub(super) fn section_or_empty(&mut self, key: &'static str) -> Section<'a> {
        self.section(key).unwrap_or_else(|| Section::empty(self.path(key), self.notes))
    }

    /// A list of sections, `[[key]]`.
    pub(super) fn sections(&mut self, key: &'static str) -> Vec<Section<'a>> {
        let Some(value) = self.take_raw(key) else { return Vec::new() };
        match value.kind {
            ValueKind::Array(values) => {
                let values = values.into_iter().enumerate();
                values
                    .filter_map(|(at, value)| {
                        Section::new(format!("{}[{at}]", self.path(key)), value, self.notes)
                    })
                    .collect()
            }
            kind => {
                let found = name(&kind);
                self.wrong(key, format!("expected sections under [[{}]], found {found}", self.path(key)));
                Vec::new()
            }
        }
    }

    /// A table of names and texts, whatever the names; dots in a name may also be nested tables. What
    /// the environment says goes before what the file says. Each comes with its path.
    pub(super) fn names_and_texts(&mut self, key: &'static str) -> Vec<(String, String, String)> {
        let Some(value) = self.take_raw(key) else { return Vec::new() };
        let path = self.path(key);
        let ValueKind::Table(table) = value.kind else {
            self.wrong(key, format!("expected a section, found {}", name(&value.kind)));
            return Vec::new();
        };
        let mut found = Vec::new();
        self.flatten("", table, &mut found);
        found.sort_by(|(a, _, a_first), (b, _, b_first)| (a, !a_first).cmp(&(b, !b_first)));
        found.dedup_by(|(a, ..), (b, ..)| a == b);
        found.into_iter().map(|(name, text, _)| (format!("{path}.\"{name}\""), name, text)).collect()
    }

    fn flatten(&self, prefix: &str, table: Map<String, Value>, found: &mut Vec<(String, String, bool)>) {
        for (key, value) in table {
            let full = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
            let environment = from_environment(&value);
            match value.kind {
                ValueKind::String(text) => found.push((full, text, environment)),
                ValueKind::Table(table) if indirect(&table).is_some() => {
                    let path = format!("{}.properties.\"{full}\"", self.path);
                    let value = self.resolved(&path, Value::new(None, ValueKind::Table(table)));
                    let text = value.and_then(|value| value.into_string().ok());
                    found.extend(text.map(|text| (full, text, environment)));
                }
                ValueKind::Table(table) => self.flatten(&full, table, found),
                ValueKind::Boolean(flag) => found.push((full, flag.to_string(), environment)),
                ValueKind::I64(number) => found.push((full, number.to_string(), environment)),
                kind => self.notes.add(
                    format!("{}.properties.\"{full}\"", self.path),
                    format!("expected a text in quotes, found {}", name(&kind)),
                ),
            }
        }
    }

    /// The end of the section: every key nobody asked for is a mistake.
    pub(super) fn finish(self) {
        for key in self.table.keys() {
            let origin = match self.notes.places.variable(&self.path(key)) {
                Some(variable) => format!(" (set by {variable})"),
                None => String::new(),
            };
            let problem = match nearest(key, &self.known) {
                Some(known) => format!("unknown{origin}; did you mean `{known}`?"),
                None => format!("unknown{origin}; known here: {}", self.known.join(", ")),
            };
            self.wrong(key, problem);
        }
    }
}

/// How the `config` crate marks what the environment gave.
pub(super) const ENVIRONMENT: &str = "the environment";

fn from_environment(value: &Value) -> bool {
    match &value.kind {
        // A table that a variable's name made is marked as nobody's.
        ValueKind::Table(table) if indirect(table).is_some() => table.values().all(from_environment),
        _ => value.origin() == Some(ENVIRONMENT),
    }
}

/// Where a value says it is, where it is not given itself.
fn indirect(table: &Map<String, Value>) -> Option<(&'static str, &str)> {
    let (key, value) = table.iter().next().filter(|_| table.len() == 1)?;
    let from = ["file", "env"].into_iter().find(|from| from == key)?;
    match &value.kind {
        ValueKind::String(name) => Some((from, name)),
        _ => None,
    }
}

fn name(kind: &ValueKind) -> &'static str {
    match kind {
        ValueKind::Nil => "nothing",
        ValueKind::Boolean(_) => "true or false",
        ValueKind::I64(_) | ValueKind::I128(_) | ValueKind::U64(_) | ValueKind::U128(_) => "a whole number",
        ValueKind::Float(_) => "a number",
        ValueKind::String(_) => "a text",
        ValueKind::Table(_) => "a section",
        ValueKind::Array(_) => "a list",
    }
}

/// A duration as it may have been meant by a number without a unit: with the first unit that makes it one of the range.
fn meant(kind: &ValueKind, range: &RangeInclusive<Duration>) -> String {
    let with = |unit: &&str| match kind {
        ValueKind::I64(number) => Some(format!("{number}{unit}")),
        _ => None,
    };
    let fits = |text: &String| duration(text).is_ok_and(|it| range.contains(&it));
    let found = ["ms", "s", "m", "h", "d"].iter().filter_map(with).find(fits);
    found.unwrap_or_else(|| show_duration(*range.end()))
}

/// The known word a misspelled one was most likely meant to be: at most a third of its letters may be
/// wrong, or two (which two swapped letters are), or one in a short word.
pub fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let letters = word.chars().count();
    let allowed = if letters < 4 { 1 } else { (letters / 3).max(2) };
    let near = known.iter().map(|known| (distance(word, known), *known)).min()?;
    (near.0 <= allowed).then_some(near.1)
}

/// Letters to insert, drop or replace until `a` is `b`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelled_word_finds_its_neighbour() {
        let known = ["brokers", "retention", "replication_factor", "url"];
        for (word, expected) in [
            ("broker", Some("brokers")),
            ("bootstrap", None),
            ("retentoin", Some("retention")),
            ("replication_factors", Some("replication_factor")),
            ("uri", Some("url")),
            ("x", None),
        ] {
            assert_eq!(nearest(word, &known), expected, "{word}");
        }
    }
}
