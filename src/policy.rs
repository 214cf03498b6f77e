//! Which tables leave a region. Silence means withhold.

use std::{fmt, str::FromStr};

/// A set of tables, by patterns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope(pub Vec<Pattern>);

/// `schema.table`, where `*` stands for any run of characters in either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    schema: String,
    table: String,
}

/// Why a text is no pattern.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no table pattern: write schema.table, with `*` for any characters, as in public.*")]
pub struct InvalidPattern(String);

impl FromStr for Pattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        match text.split_once('.') {
            Some((schema, table)) if !schema.is_empty() && !table.is_empty() => {
                Ok(Self { schema: schema.to_owned(), table: table.to_owned() })
            }
            _ => Err(InvalidPattern(text.to_owned())),
        }
    }
}

impl Scope {
    /// Whether a table is in the set. Landfall's own and the system's never are.
    pub fn has(&self, schema: &str, table: &str) -> bool {
        let system =
            schema == crate::names::SCHEMA || schema == "information_schema" || schema.starts_with("pg_");
        !system
            && self.0.iter().any(|pattern| matches(&pattern.schema, schema) && matches(&pattern.table, table))
    }
}

/// Whether `text` is `pattern` with each `*` standing for some run of characters.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, rest)) => {
            let Some(tail) = text.strip_prefix(head) else { return false };
            (0..=tail.len()).filter(|at| tail.is_char_boundary(*at)).any(|at| matches(rest, &tail[at..]))
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_take_what_they_say_and_never_our_own_tables() {
        let scope = |patterns: &[&str]| Scope(patterns.iter().map(|text| text.parse().unwrap()).collect());
        let table = [
            (&["public.*"][..], "public.orders", true),
            (&["public.*"], "sales.orders", false),
            (&["public.order*"], "public.orders_2026", true),
            (&["*.orders"], "sales.orders", true),
            (&["*.*_log"], "audit.web_log", true),
            (&["*.*_log"], "audit.web_logs", false),
            (&["*.*"], "landfall.progress", false),
            (&["*.*"], "pg_catalog.pg_class", false),
            (&["a.b", "c.d"], "c.d", true),
        ];
        for (patterns, name, expected) in table {
            let (schema, table) = name.split_once('.').unwrap();
            assert_eq!(scope(patterns).has(schema, table), expected, "{patterns:?} {name}");
        }
        for bad in ["", "orders", ".orders", "public."] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }
}
