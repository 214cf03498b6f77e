//! A stream made by hand: shapes, rows, transactions, batches.

use std::sync::Arc;

use landfall::{
    change::{Cell, Change, Column, Frame, Identity, Ordered, Row, Shape, TransactionHead},
    lsn::Lsn,
    position::{Incarnation, Offset, Position, PostgresPosition, Sequence, WriterEpoch},
    progress::{Arrival, Cursor, Heartbeat},
    sink::{Batch, Grouping, Step},
    stamp::Micros,
};

pub const TIME: Micros = Micros(1_700_000_000_123_456);

pub fn value(text: &str) -> Cell {
    Cell::Value(text.as_bytes().to_vec().into())
}

pub fn row<const N: usize>(cells: [&str; N]) -> Row {
    Row(cells.map(value).into())
}

/// `public.t (id int8 primary key, v text)`.
pub fn shape() -> Arc<Shape> {
    shape_with(&[("v", "text")])
}

/// `public.t` with these columns behind its key.
pub fn shape_with(columns: &[(&str, &str)]) -> Arc<Shape> {
    let column = |name: &str, type_name: &str, key| Column {
        name: name.into(),
        type_schema: "pg_catalog".into(),
        type_name: type_name.into(),
        typmod: -1,
        key,
    };
    let id = column("id", "int8", true);
    let others = columns.iter().map(|(name, type_name)| column(name, type_name, false));
    let columns: Vec<Column> = std::iter::once(id).chain(others).collect();
    Arc::new(Shape::new("public", "t", Identity::Default, columns))
}

pub fn insert(shape: &Arc<Shape>, new: Row) -> Change {
    Change::Insert { shape: shape.clone(), new }
}

pub fn update(shape: &Arc<Shape>, old: Option<Row>, new: Row) -> Change {
    Change::Update { shape: shape.clone(), old, new }
}

/// By a whole image, of which only the key is kept where the identity is no more.
pub fn delete(shape: &Arc<Shape>, mut old: Row) -> Change {
    if shape.identity != Identity::Full {
        for (cell, column) in old.0.iter_mut().zip(&shape.columns) {
            if !column.key {
                *cell = Cell::Unchanged;
            }
        }
    }
    Change::Delete { shape: shape.clone(), old }
}

/// Writes a stream, one sequence number for each change.
pub struct Log {
    pub incarnation: Incarnation,
    pub sequence: u64,
    /// Where the last batch ended: what the next one is after.
    pub after: Sequence,
    /// How many changes of its transaction the last slice ended behind.
    pub ordinal: u64,
}

impl Log {
    pub fn new() -> Self {
        Self { incarnation: Incarnation(0xfeed_0000_0000_0001), sequence: 1, after: Sequence(0), ordinal: 0 }
    }

    fn cursor(&self, position: Option<Position>) -> Cursor {
        let sequence = Sequence(self.sequence);
        Cursor { sequence, epoch: WriterEpoch(3), offset: Offset(self.sequence as i64 + 5), position }
    }

    pub fn position(&self) -> Position {
        let commit = Lsn(0x1000 * self.sequence);
        let end = Lsn(commit.0 + 0x30);
        Position::Postgres(PostgresPosition { commit, end, xid: self.sequence as u32, time: TIME })
    }

    pub fn slice(&mut self, changes: Vec<Change>, first: bool, last: bool) -> Step {
        self.sequence += changes.len().max(1) as u64;
        let position = self.position();
        let head = TransactionHead { position, time: TIME, origin: "us-east-1".parse().unwrap() };
        let begun = if first { 0 } else { self.ordinal };
        let changes = (begun..).zip(changes);
        let changes: Vec<_> = changes.map(|(ordinal, change)| Ordered { ordinal, change }).collect();
        self.ordinal = begun + changes.len() as u64;
        let arrival = Arrival { appended: TIME, fetched: TIME };
        Step {
            frame: Frame { head, changes, first, last },
            through: self.cursor(Some(position)),
            arrival,
            answer: None,
        }
    }

    pub fn transaction(&mut self, changes: Vec<Change>) -> Step {
        self.slice(changes, true, true)
    }

    /// A batch that follows the last one.
    pub fn batch(&mut self, steps: Vec<Step>) -> Batch {
        let through = match steps.last() {
            Some(step) => step.through,
            None => self.cursor(None),
        };
        let batch = Batch {
            incarnation: self.incarnation,
            after: self.after,
            through,
            steps,
            shapes: Vec::new(),
            heartbeat: None,
            grouping: Grouping::Many,
        };
        if !batch.leaves_open() {
            self.after = through.sequence;
        }
        batch
    }

    /// A batch of one transaction.
    pub fn one(&mut self, changes: Vec<Change>) -> Batch {
        let step = self.transaction(changes);
        self.batch(vec![step])
    }

    pub fn heartbeat() -> Heartbeat {
        Heartbeat { sent: TIME, appended: None, arrived: Micros(TIME.0 + 1234) }
    }
}
