//! The shape of a table, and the fingerprint by which changes name it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A table's columns as they were when a change was made. Never changed once made: another shape is
/// another value, with a fingerprint of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Fields")]
pub struct Shape {
    /// The table's schema.
    pub schema: Box<str>,
    /// The table.
    pub table: Box<str>,
    /// What its old images hold.
    pub identity: Identity,
    /// Its published columns, in order.
    pub columns: Box<[Column]>,
    /// Reckoned once: it is asked for with every change.
    #[serde(skip)]
    fingerprint: Fingerprint,
}

/// A shape as it is written down.
#[derive(Deserialize)]
struct Fields {
    schema: Box<str>,
    table: Box<str>,
    identity: Identity,
    columns: Box<[Column]>,
}

impl From<Fields> for Shape {
    fn from(fields: Fields) -> Self {
        Self::new(fields.schema, fields.table, fields.identity, fields.columns)
    }
}

/// One column of a shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: Box<str>,
    /// The schema of its type; of the base type where it is a domain.
    pub type_schema: Box<str>,
    /// Its type's name in `pg_type` (`int8`, `_text`); the base type's where it is a domain.
    pub type_name: Box<str>,
    /// Its type modifier; -1 for none.
    pub typmod: i32,
    /// Whether it is part of the replica identity. Under `FULL` every column is.
    pub key: bool,
}

/// What Postgres logs of a row that is changed or deleted (`REPLICA IDENTITY`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// The primary key's columns.
    Default,
    /// A unique index's columns.
    Index,
    /// The whole row.
    Full,
    /// Nothing: updates and deletes cannot be carried.
    Nothing,
}

/// Names a shape: equal shapes have equal fingerprints, on every machine and in every version.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub u64);

impl Shape {
    /// A table's shape.
    pub fn new(
        schema: impl Into<Box<str>>,
        table: impl Into<Box<str>>,
        identity: Identity,
        columns: impl Into<Box<[Column]>>,
    ) -> Self {
        let (schema, table, columns) = (schema.into(), table.into(), columns.into());
        let mut hash = Fnv::new();
        hash.text(&schema);
        hash.text(&table);
        hash.bytes(&[identity as u8]);
        for column in &columns {
            hash.text(&column.name);
            hash.text(&column.type_schema);
            hash.text(&column.type_name);
            hash.bytes(&column.typmod.to_be_bytes());
            hash.bytes(&[u8::from(column.key)]);
        }
        Self { schema, table, identity, columns, fingerprint: Fingerprint(hash.0) }
    }

    /// The shape's fingerprint: FNV-1a, 64 bits, over every field in order with its length.
    ///
    /// Not against malice: a stream has one writer. Two shapes of one stream that collide would be
    /// needed to mislead a reader, and each is checked column by column against the target's table.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The places of the replica identity's columns.
    pub fn key_columns(&self) -> impl Iterator<Item = usize> + '_ {
        self.columns.iter().enumerate().filter(|(_, column)| column.key).map(|(at, _)| at)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}.{}", self.name, self.type_schema, self.type_name)?;
        if self.typmod >= 0 { write!(f, " (modifier {})", self.typmod) } else { Ok(()) }
    }
}

struct Fnv(u64);

impl Fnv {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn text(&mut self, text: &str) {
        self.bytes(&(text.len() as u64).to_be_bytes());
        self.bytes(text.as_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Fingerprint {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_differs_in_a_shape_differs_in_its_fingerprint() {
        let column = |name: &str, typmod| Column {
            name: name.into(),
            type_schema: "pg_catalog".into(),
            type_name: "varchar".into(),
            typmod,
            key: false,
        };
        let shape = |columns: &[Column]| Shape::new("public", "t", Identity::Default, columns);
        let base = shape(&[column("ab", -1), column("c", -1)]);
        assert_eq!(base.fingerprint(), base.clone().fingerprint());
        // A fingerprint is on the wire and must not change with a version.
        assert_eq!(base.fingerprint().to_string(), "0a18bb9aba3ea9a6");
        let mut keyed = base.columns.clone();
        keyed[0].key = true;
        let full = Shape::new("public", "t", Identity::Full, base.columns.clone());
        for other in [
            shape(&[column("a", -1), column("bc", -1)]),
            shape(&[column("c", -1), column("ab", -1)]),
            shape(&[column("ab", 9), column("c", -1)]),
            shape(&keyed),
            full,
        ] {
            assert_ne!(base.fingerprint(), other.fingerprint(), "{other:?}");
        }
    }
}
