//! Which tables a stream carries: patterns over `schema.table`.

use std::{fmt, str::FromStr};

use crate::names;

/// Tables by pattern. A table is in scope where any pattern matches it, unless it lives in a schema
/// that is never published: the server's own, or ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope(pub Vec<Pattern>);

impl Scope {
    /// Whether the table is carried.
    pub fn holds(&self, schema: &str, table: &str) -> bool {
        !is_reserved(schema) && self.0.iter().any(|pattern| pattern.matches(schema, table))
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let patterns: Vec<&str> = self.0.iter().map(|pattern| &*pattern.text).collect();
        f.write_str(&patterns.join(", "))
    }
}

fn is_reserved(schema: &str) -> bool {
    schema == names::SCHEMA || schema == "information_schema" || schema.starts_with("pg_")
}

/// One pattern: `schema.table`, where `*` stands for any text. Names are compared as they are, upper
/// and lower case apart; a part in double quotes is taken literally, dots and stars included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: Box<str>,
    schema: Part,
    table: Part,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Exactly(Box<str>),
    /// The texts between the stars; at least two.
    Like(Box<[Box<str>]>),
}

/// Why a text is no pattern.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPattern {
    /// It is not two parts.
    #[error("`{0}` is no table pattern: expected schema.table, as in public.* or sales.order_*")]
    Shape(String),
    /// It names a schema that is never published.
    #[error("`{0}` names a schema that is never published")]
    Reserved(String),
}

impl Pattern {
    /// The pattern that names exactly this table.
    pub fn exactly(schema: &str, table: &str) -> Self {
        Self {
            text: names::qualified(schema, table).into(),
            schema: Part::Exactly(schema.into()),
            table: Part::Exactly(table.into()),
        }
    }

    /// Whether it means the table.
    pub fn matches(&self, schema: &str, table: &str) -> bool {
        self.schema.matches(schema) && self.table.matches(table)
    }

    /// The table it names, where it names exactly one.
    pub fn as_table(&self) -> Option<(&str, &str)> {
        match (&self.schema, &self.table) {
            (Part::Exactly(schema), Part::Exactly(table)) => Some((schema, table)),
            _ => None,
        }
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Part {
    /// Reads one part from the front of `text`, and returns what is behind it.
    fn read(text: &str) -> Option<(Self, &str)> {
        let Some(quoted) = text.strip_prefix('"') else {
            let (part, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
            let blank = |c: char| c.is_whitespace() || c == '"';
            if part.is_empty() || part.contains(blank) {
                return None;
            }
            if part.contains('*') {
                return Some((Self::Like(part.split('*').map(Into::into).collect()), rest));
            }
            return Some((Self::Exactly(part.into()), rest));
        };
        let mut name = String::new();
        let mut signs = quoted.char_indices().peekable();
        while let Some((at, sign)) = signs.next() {
            match sign {
                '"' if signs.next_if(|(_, next)| *next == '"').is_some() => name.push('"'),
                '"' if name.is_empty() => return None,
                '"' => return Some((Self::Exactly(name.into()), &quoted[at + 1..])),
                _ => name.push(sign),
            }
        }
        None
    }

    fn matches(&self, name: &str) -> bool {
        let texts = match self {
            Self::Exactly(text) => return **text == *name,
            Self::Like(texts) => texts,
        };
        let (first, last) = (&*texts[0], &*texts[texts.len() - 1]);
        let Some(mut rest) = name.strip_prefix(first) else { return false };
        for text in &texts[1..texts.len() - 1] {
            let Some(at) = rest.find(&**text) else { return false };
            rest = &rest[at + text.len()..];
        }
        rest.ends_with(last)
    }
}

impl FromStr for Pattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let parts = || {
            let (schema, rest) = Part::read(text)?;
            let (table, rest) = Part::read(rest.strip_prefix('.')?)?;
            rest.is_empty().then_some((schema, table))
        };
        let (schema, table) = parts().ok_or_else(|| InvalidPattern::Shape(text.to_owned()))?;
        match &schema {
            Part::Exactly(name) if is_reserved(name) => Err(InvalidPattern::Reserved(text.to_owned())),
            _ => Ok(Self { text: text.into(), schema, table }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_they_read() {
        for (pattern, schema, table, expected) in [
            ("public.*", "public", "orders", true),
            ("public.*", "sales", "orders", false),
            ("*.*", "sales", "orders", true),
            ("*.*", "landfall", "progress", false),
            ("*.*", "pg_catalog", "pg_class", false),
            ("*.*", "information_schema", "sql_features", false),
            ("public.order_*", "public", "order_lines", true),
            ("public.order_*", "public", "orders", false),
            ("public.*_2*_x", "public", "a_2024_x", true),
            ("public.a*a", "public", "a", false),
            ("public.a*a", "public", "aa", true),
            ("Public.t", "public", "t", false),
            ("\"a.b\".\"c*\"", "a.b", "c*", true),
            ("\"a.b\".\"c*\"", "a.b", "cd", false),
            ("\"a\"\"b\".t", "a\"b", "t", true),
        ] {
            let scope = Scope(vec![pattern.parse().unwrap()]);
            assert_eq!(scope.holds(schema, table), expected, "{pattern} on {schema}.{table}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in ["", "orders", ".orders", "public.", "a.b.c", "\"a.b", "a b.c", "\"\".t", "a.\"b\"c"] {
            assert_eq!(text.parse::<Pattern>(), Err(InvalidPattern::Shape(text.into())), "{text}");
        }
        for text in ["landfall.progress", "pg_catalog.*"] {
            assert_eq!(text.parse::<Pattern>(), Err(InvalidPattern::Reserved(text.into())), "{text}");
        }
    }
}
