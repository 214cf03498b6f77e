//! A row that is there and should not be, or is not there and should.

use std::fmt;

use crate::{
    change::{Cell, Change, Row, Shape},
    fault::{Code, Fault},
    position::Position,
};

/// How a change and the target's rows contradict each other. Named as Postgres 18 names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConflictKind {
    /// An insert finds its row, or another one in its place.
    InsertExists,
    /// An update finds another row where it would put its own.
    UpdateExists,
    /// An update does not find its row.
    UpdateMissing,
    /// A delete does not find its row.
    DeleteMissing,
}

impl ConflictKind {
    /// The word used in metrics and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InsertExists => "insert_exists",
            Self::UpdateExists => "update_exists",
            Self::UpdateMissing => "update_missing",
            Self::DeleteMissing => "delete_missing",
        }
    }
}

/// One conflict, by everything a person needs to find it. The source of a fault with
/// [`Code::Conflict`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// What contradicts what.
    pub kind: ConflictKind,
    /// The table, `schema.table`.
    pub table: String,
    /// The row's key, as `(column, …)=(value, …)`.
    pub key: String,
    /// The transaction.
    pub position: Position,
    /// The change's place in it.
    pub ordinal: u64,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, table, key, position, ordinal } = self;
        let kind = kind.as_str();
        write!(f, "{kind}: {table} {key}, change {ordinal} of the transaction at {position}")
    }
}

impl std::error::Error for Conflict {}

impl Conflict {
    /// The conflict `change` ran into.
    pub fn of(kind: ConflictKind, change: &Change, position: Position, ordinal: u64) -> Self {
        Self { kind, table: change.shape().to_string(), key: key_of(change), position, ordinal }
    }

    /// The fault that stops the stream.
    pub fn into_fault(self) -> Fault {
        let remedy = match self.kind {
            ConflictKind::InsertExists | ConflictKind::UpdateExists => {
                "delete or move the row that stands in the way at the target, it goes on by itself"
            }
            ConflictKind::UpdateMissing => {
                "insert the row at the target as it was before, it goes on by itself"
            }
            ConflictKind::DeleteMissing => {
                "insert a row with this key at the target (it is deleted at once), it goes on by itself"
            }
        };
        let message = format!("apply a change to {}", self.table);
        Fault::new(Code::Conflict, message).because(self).remedied_by(remedy)
    }
}

/// The key a change names its row by, for people: long values are cut.
pub fn key_of(change: &Change) -> String {
    let row = match change {
        Change::Insert { new, .. } => new,
        Change::Update { old, new, .. } => old.as_ref().unwrap_or(new),
        Change::Delete { old, .. } => old,
        Change::Truncate { .. } | Change::Chunk { .. } | Change::Watermark { .. } => {
            return change.operation().as_str().to_owned();
        }
    };
    describe(change.shape(), row)
}

fn describe(shape: &Shape, row: &Row) -> String {
    let mut columns: Vec<usize> = shape.key_columns().collect();
    if columns.is_empty() {
        columns = (0..shape.columns.len()).collect();
    }
    let names: Vec<&str> = columns.iter().map(|&at| &*shape.columns[at].name).collect();
    let values: Vec<String> = columns.iter().map(|&at| shown(&row.0[at])).collect();
    format!("({})=({})", names.join(", "), values.join(", "))
}

fn shown(cell: &Cell) -> String {
    /// Enough to recognise a value by; a message is read by people.
    const CHARACTERS_MAX: usize = 64;
    match cell {
        Cell::Value(text) => {
            let text = String::from_utf8_lossy(text);
            let mut shown: String = text.chars().take(CHARACTERS_MAX).collect();
            if shown.len() < text.len() {
                shown.push('…');
            }
            shown
        }
        Cell::Null => "null".to_owned(),
        Cell::Unchanged => "unchanged".to_owned(),
        Cell::Withheld => "withheld".to_owned(),
        Cell::Encrypted { .. } => "encrypted".to_owned(),
    }
}
