//! A password or key: usable, never printable.

use std::fmt;

/// A text that appears in no log, metric, error or page.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text` from being printed.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// What a file holds, without its line's end: editors and `echo` put it there, and it is no part of a secret.
    pub fn of_line(text: &str) -> Self {
        let text = text.strip_suffix('\n').unwrap_or(text);
        Self::new(text.strip_suffix('\r').unwrap_or(text))
    }

    /// The text, for the one place that sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether there is nothing to keep.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
