//! Verification: what one region asks another about the rows it holds, and what follows from the answers.
//!
//! ```text
//!  sums of ranges ── differ ──▶ hashes of that range's rows ── differ ──▶ those keys ── still ──▶ a finding
//!        │ equal                        │ equal                             │  ▲
//!        ▼                              ▼                                   │  └ a key that changed while
//!     next ranges                  nothing to find                          ▼    it was read is asked again
//! ```
//!
//! An answer stands in the stream, at a place: whoever has applied everything before it compares it with what is
//! there at that very place. It was read a moment before, and names the keys that changed in that moment.
//! [`Survey`] decides what is asked next; it reads no clock and asks nobody.

mod survey;

use serde::{Deserialize, Serialize};

pub use survey::{FINDINGS_MAX, KEYS_MAX, Options, Settled, Survey, hashes};

use crate::region::Region;

/// The values of a row's key, as text, in the key's order.
pub type Key = Vec<String>;

/// A table's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TableName {
    /// Its schema.
    pub schema: String,
    /// Its own name.
    pub table: String,
}

impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

/// What a region asks another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The verification it is of.
    pub verification: String,
    /// Its number there: an answer is known by it.
    pub number: u64,
    /// Who asks, and is to be answered.
    pub by: String,
    /// The stream to be answered in.
    pub stream: String,
    /// What it is about.
    pub about: About,
}

impl Question {
    /// Whether it can be answered: what is said back of it fits, and it holds no zero byte, as no text of a database does.
    pub fn is_sound(&self) -> bool {
        let mut texts: Vec<&String> = Vec::new();
        if let Some(table) = self.about.table() {
            texts.extend([&table.schema, &table.table]);
        }
        match &self.about {
            About::Sums { after, .. } => texts.extend(after.iter().flatten()),
            About::Rows { after, upto, .. } => texts.extend(after.iter().chain(upto).flatten()),
            About::Keys { keys, .. } | About::Mend { keys, .. } => texts.extend(keys.iter().flatten()),
            About::Recover { ours } => {
                texts.extend(ours.iter().flat_map(|table| [&table.schema, &table.table]));
            }
            About::Tables | About::Settle { .. } => (),
        }
        self.by.parse::<Region>().is_ok()
            && self.verification.len() <= NAME_MAX
            && texts.iter().all(|text| !text.contains('\0'))
    }
}

/// Bytes of a verification's name.
const NAME_MAX: usize = 64;

/// What a question is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum About {
    /// Which tables the stream carries.
    Tables,
    /// How many rows there are in each of the next ranges of a table, and the sum of their hashes.
    Sums {
        /// The table.
        table: TableName,
        /// The ranges begin behind this key; at the first row where none is given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<Key>,
        /// Rows in a range, about.
        range_rows: u32,
        /// At most so many ranges.
        ranges: u32,
    },
    /// The hash of each row of a range.
    Rows {
        /// The table.
        table: TableName,
        /// Rows behind this key,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<Key>,
        /// up to this one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        upto: Option<Key>,
    },
    /// The hashes of these rows.
    Keys {
        /// The table.
        table: TableName,
        /// Their keys.
        keys: Vec<Key>,
        /// Whether the rows themselves are to be told.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        values: bool,
    },
    /// These rows as they are: they are put in place of those here, with the answer.
    Mend {
        /// The table.
        table: TableName,
        /// Their keys.
        keys: Vec<Key>,
    },
    /// To begin the stream in its middle, with the rows there are: they may be older than that, until they are
    /// compared and mended.
    Recover {
        /// Tables that who asks publishes as well, and has no row of from there: what it holds of them may well be newer, and
        /// they are left as they are.
        ours: Vec<TableName>,
    },
    /// That a table's rows are as they are there.
    Settle {
        /// The table.
        table: TableName,
    },
}

impl About {
    /// The table it is about.
    pub fn table(&self) -> Option<&TableName> {
        match self {
            Self::Tables | Self::Recover { .. } => None,
            Self::Sums { table, .. }
            | Self::Rows { table, .. }
            | Self::Keys { table, .. }
            | Self::Mend { table, .. }
            | Self::Settle { table } => Some(table),
        }
    }
}

/// What a region answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The verification it is for.
    pub verification: String,
    /// The question's number.
    pub number: u64,
    /// How long it was read for, in microseconds.
    pub took_micros: u64,
    /// How the table is laid out there, where it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<Layout>,
    /// What was found.
    pub found: Found,
    /// Keys that changed while it was read: what is said of them may be older than the place the answer stands at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unsure: Vec<Key>,
    /// Set where something changed whose rows no key names: then all of it may be older.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all_unsure: bool,
}

/// The columns rows are compared by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Those that are carried, in their order.
    pub columns: Vec<String>,
    /// Those that tell rows apart. None where nothing does: then a table is one range.
    pub key: Vec<String>,
}

/// What a region holds, as far as it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Found {
    /// The tables a stream carries.
    Tables(Vec<TableName>),
    /// Ranges, one behind the other.
    Sums(Vec<Sum>),
    /// The rows of a range. Where they end before the range does, it was too much for one answer.
    Rows {
        /// The rows.
        rows: Vec<RowHash>,
        /// Up to where they go; the end of the table where none is given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        upto: Option<Key>,
    },
    /// Those of the rows asked for that there are.
    Keys(Vec<RowHash>),
    /// So many of the rows asked for, the first of them, come with this answer.
    Mended(usize),
    /// The mark that was asked for comes with this answer.
    Marked,
    /// It could not be told, for this reason.
    Refused(String),
}

/// Rows of a range, and the sum of their hashes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sum {
    /// The range's last key; the end of the table where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upto: Option<Key>,
    /// How many rows.
    pub rows: u64,
    /// The sum: it exceeds what JSON numbers keep.
    pub sum: String,
}

/// A row's key and hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowHash {
    /// Its key.
    pub key: Key,
    /// Its hash, 16 hexadecimal digits.
    pub hash: String,
    /// The row as text, cut where it is long, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row: Option<String>,
}

/// How a row differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// It is there, and not here.
    Missing,
    /// It is here, and not there.
    Extra,
    /// It is another one here.
    Different,
    /// It changed each time it was looked at.
    Unsure,
}

impl Difference {
    /// Its name in tables, JSON and on the screen.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Different => "different",
            Self::Unsure => "unsure",
        }
    }
}

/// A row that is not the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its key; empty where nothing tells the table's rows apart.
    pub key: Key,
    /// How it differs.
    pub difference: Difference,
    /// What is here, where it was asked for.
    pub here: Option<String>,
    /// What is there, where it was asked for.
    pub there: Option<String>,
}

#[cfg(test)]
mod tests;
