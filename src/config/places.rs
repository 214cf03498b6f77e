//! Where each setting was given: the line of the file, or the variable of the environment.

use std::{borrow::Cow, cmp::Reverse, collections::BTreeMap, ops::Range};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::walk::PREFIX;

/// Where settings were given, by their paths without quotes (`kafka.properties.sasl.password`).
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    file: Option<String>,
    lines: BTreeMap<String, usize>,
    variables: BTreeMap<String, String>,
}

impl Places {
    /// Of a file's text and the variables that are ours; `file` is its name in messages. Of a text that is
    /// no TOML there are no lines: what is wrong with it names its own.
    pub(super) fn of<'v>(
        file: Option<&str>,
        text: &str,
        variables: impl IntoIterator<Item = &'v String>,
    ) -> Self {
        let mut places = Self { file: file.map(str::to_owned), ..Self::default() };
        if let Ok(root) = DeTable::parse(text) {
            places.table(text, "", root.get_ref());
        }
        for variable in variables {
            let keys = variable.get(PREFIX.len() + 2..).unwrap_or_default().to_lowercase();
            let keys = keys.strip_prefix("link__").map_or_else(
                || keys.replace("__", "."),
                |rest| match rest.split_once("__") {
                    Some((at, keys)) => format!("link[{at}].{}", keys.replace("__", ".")),
                    None => format!("link[{rest}]"),
                },
            );
            places.variables.insert(keys, variable.clone());
        }
        places
    }

    fn table(&mut self, text: &str, prefix: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let path = if prefix.is_empty() {
                key.get_ref().to_string()
            } else {
                format!("{prefix}.{}", key.get_ref())
            };
            self.lines.entry(path.clone()).or_insert_with(|| line(text, key.span()));
            self.value(text, &path, value);
        }
    }

    fn value(&mut self, text: &str, path: &str, value: &Spanned<DeValue<'_>>) {
        match value.get_ref() {
            DeValue::Table(table) => self.table(text, path, table),
            DeValue::Array(items) => {
                for (at, item) in items.iter().enumerate() {
                    let path = format!("{path}[{at}]");
                    self.lines.insert(path.clone(), line(text, item.span()));
                    self.value(text, &path, item);
                }
            }
            _ => (),
        }
    }

    /// Where exactly this setting, or something in it, was given; the environment goes before the file.
    pub(super) fn given(&self, path: &str) -> Option<String> {
        let path = path.replace('"', "");
        self.variable(&path).or_else(|| self.lines.get(&path).map(|line| self.line(*line)))
    }

    /// The variable that gave this setting, or something in it.
    pub(super) fn variable(&self, path: &str) -> Option<String> {
        let path = path.replace('"', "");
        let within = format!("{path}.");
        let found = self.variables.iter().find(|(key, _)| **key == path || key.starts_with(&within));
        found.map(|(_, variable)| variable.clone())
    }

    /// The nearest place to look at: the setting's own, or that of the list or section it belongs to.
    pub(super) fn near(&self, path: &str) -> Option<String> {
        let mut path = path.replace('"', "");
        while !path.is_empty() {
            if let Some(place) = self.given(&path) {
                return Some(place);
            }
            path.truncate(path.rfind(['.', '[']).unwrap_or(0));
        }
        self.file.clone()
    }

    fn line(&self, line: usize) -> String {
        match &self.file {
            Some(file) => format!("{file}:{line}"),
            None => format!("line {line}"),
        }
    }
}

/// Everything that keeps a text from being TOML, each with its line and column. Never with the line itself: it
/// may hold a secret.
pub(super) fn broken(text: &str) -> Vec<String> {
    let (_, mut errors) = DeTable::parse_recoverable(text);
    errors.sort_by_key(|error| error.span().map_or(0, |span| span.start));
    let told = |error: &toml::de::Error| {
        let span = error.span().unwrap_or(0..0);
        let column = text[..span.start].rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
        let why = error.message().trim_end().replace('\n', "; ");
        format!("TOML parse error at line {}, column {column}: {why}", line(text, span))
    };
    errors.iter().map(told).collect()
}

/// The text with a plain number in the place of each that is too large for any setting (for 64 bits): what reads the
/// text would refuse all of it, without saying where; so the walk tells the number by its key.
pub(super) fn readable(text: &str) -> Cow<'_, str> {
    let mut found = Vec::new();
    if let Ok(root) = DeTable::parse(text) {
        root.get_ref().iter().for_each(|(_, value)| too_large(value, &mut found));
    }
    if found.is_empty() {
        return Cow::Borrowed(text);
    }
    found.sort_by_key(|span| Reverse(span.start));
    let mut text = text.to_owned();
    // With a fraction, so that no setting takes it for its value.
    found.into_iter().for_each(|span| text.replace_range(span, "0.5"));
    Cow::Owned(text)
}

fn too_large(value: &Spanned<DeValue<'_>>, found: &mut Vec<Range<usize>>) {
    let fits = match value.get_ref() {
        DeValue::Integer(it) => i64::from_str_radix(it.as_str(), it.radix()).is_ok(),
        DeValue::Float(it) => {
            let infinite = it.as_str().contains("inf");
            it.as_str().parse::<f64>().is_ok_and(|number| infinite || !number.is_infinite())
        }
        DeValue::Array(items) => {
            items.iter().for_each(|item| too_large(item, found));
            true
        }
        DeValue::Table(table) => {
            table.iter().for_each(|(_, item)| too_large(item, found));
            true
        }
        DeValue::String(_) | DeValue::Boolean(_) | DeValue::Datetime(_) => true,
    };
    if !fits {
        found.push(value.span());
    }
}

fn line(text: &str, span: Range<usize>) -> usize {
    text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_setting_has_its_line() {
        let text = "region = \"a\"\n[kafka]\nbrokers = [\n  \"a:1\",\n  \"b:1\",\n]\n\
                    [kafka.properties]\n\"sasl.password\" = \"x\"\nssl.ca.location = \"y\"\n\
                    [[link]]\nfrom = \"b\"\n[[link]]\nfrom = \"c\"\n[link.properties]\nx = 1\n";
        let variables = ["LANDFALL__KAFKA__RETENTION", "LANDFALL__LINK__1__BROKERS"].map(str::to_owned);
        let places = Places::of(Some("f.toml"), text, &variables);
        for (path, expected) in [
            ("region", Some("f.toml:1")),
            ("kafka", Some("LANDFALL__KAFKA__RETENTION")),
            ("kafka.brokers", Some("f.toml:3")),
            ("kafka.brokers[1]", Some("f.toml:5")),
            ("kafka.properties.\"sasl.password\"", Some("f.toml:8")),
            ("kafka.properties.\"ssl.ca.location\"", Some("f.toml:9")),
            ("kafka.retention", Some("LANDFALL__KAFKA__RETENTION")),
            ("link[1].from", Some("f.toml:13")),
            ("link[1].brokers[0]", None),
            ("link[1].properties.x", Some("f.toml:15")),
            ("http.listen", None),
        ] {
            assert_eq!(places.given(path).as_deref(), expected, "{path}");
        }
        assert_eq!(places.near("link[1].brokers[0]").as_deref(), Some("LANDFALL__LINK__1__BROKERS"));
        assert_eq!(places.near("kafka.brokers[7]").as_deref(), Some("f.toml:3"));
        assert_eq!(places.near("http.listen").as_deref(), Some("f.toml"));
    }
}
