//! Which rows are spoken for by transactions that were kept aside.
//!
//! A transaction that the target refuses may be parked: kept beside the progress, to be applied later. Whatever comes
//! after it and says something of the same rows must wait behind it, or an older row would take a newer one's place
//! when it is applied at last. Rows are told apart by their keys as text: a row that takes another text for its key says
//! so, with both. Where a key is not to be had, the whole table is spoken for.
//!
//! HAZARD: nothing else that is unique is known here, and two texts that are one key to the database are two. A row that
//! comes later with such a value may be there before the parked one is tried again, which then stays refused.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{Locator, Locators, has_all, is_given, key_row};
use crate::{
    change::{Cell, Change, Row, Shape, copy_text},
    verify::TableName,
};

/// A parked transaction's number: higher than that of every one parked before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ParkedId(pub i64);

impl fmt::Display for ParkedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a change says something of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Part {
    /// The table.
    pub table: TableName,
    /// The row; none where it is all of them, or nobody can tell which.
    pub row: Option<RowName>,
}

/// A row by its key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RowName {
    /// The columns that tell rows apart.
    pub columns: Box<[Box<str>]>,
    /// Their values, each behind its length: equal exactly where they are.
    pub key: Box<[u8]>,
}

impl Part {
    fn whole(shape: &Shape) -> Self {
        Self { table: name_of(shape), row: None }
    }
}

fn name_of(shape: &Shape) -> TableName {
    TableName { schema: shape.schema.to_string(), table: shape.table.to_string() }
}

/// Everything a change says something of. Marks of a backfill say nothing of rows.
///
/// # Panics
/// Where a shape has no locator: the caller looks at tables first.
pub fn parts_of(change: &Change, locators: &Locators) -> Vec<Part> {
    let shape = change.shape();
    let mut parts = Vec::with_capacity(1);
    match change {
        Change::Truncate { shapes, .. } => return shapes.iter().map(|shape| Part::whole(shape)).collect(),
        Change::Watermark { .. } => return parts,
        _ => (),
    }
    let found_by = match &locators[&shape.fingerprint()] {
        Locator::Key(columns) | Locator::Columns(columns) if !columns.is_empty() => Some(&**columns),
        _ => None,
    };
    let Some(columns) = found_by else { return vec![Part::whole(shape)] };
    let part = |row: &Row, columns: &[usize]| Part {
        table: name_of(shape),
        row: Some(row_name(shape, columns, columns.iter().map(|&at| &row.0[at]))),
    };
    match change {
        Change::Insert { new: row, .. } | Change::Delete { old: row, .. } => {
            parts.push(if has_all(row, columns) { part(row, columns) } else { Part::whole(shape) });
        }
        Change::Update { old, new, .. } => {
            let Some(old) = key_row(old.as_ref(), Some(new), columns) else {
                return vec![Part::whole(shape)];
            };
            parts.push(part(old, columns));
            let cell = |&at: &usize| if is_given(&new.0[at]) { &new.0[at] } else { &old.0[at] };
            let moved =
                Part { table: name_of(shape), row: Some(row_name(shape, columns, columns.iter().map(cell))) };
            if moved != parts[0] {
                parts.push(moved);
            }
        }
        // A mended row's line holds at least the columns it is found by; a copied one's holds all.
        Change::Chunk { text, keys, .. } => {
            for line in [Some(text), keys.as_ref()].into_iter().flatten().flat_map(copy_text::lines) {
                parts.push(part(&Row(copy_text::fields(&line).collect()), columns));
            }
            parts.sort_by(|one, other| {
                one.row.as_ref().map(|it| &it.key).cmp(&other.row.as_ref().map(|it| &it.key))
            });
            parts.dedup();
        }
        Change::Truncate { .. } | Change::Watermark { .. } => (),
    }
    parts
}

fn row_name<'a>(shape: &Shape, columns: &[usize], cells: impl Iterator<Item = &'a Cell>) -> RowName {
    let mut key = Vec::with_capacity(16 * columns.len());
    for cell in cells {
        match cell {
            Cell::Value(value) => {
                key.extend_from_slice(&(value.len() as u64 + 1).to_be_bytes());
                key.extend_from_slice(value);
            }
            _ => key.extend_from_slice(&0u64.to_be_bytes()),
        }
    }
    RowName { columns: columns.iter().map(|&at| shape.columns[at].name.clone()).collect(), key: key.into() }
}

/// The rows that parked transactions speak for.
#[derive(Clone, Debug, Default)]
pub struct ParkedRows {
    /// Few: nearly always none.
    tables: Vec<ParkedTable>,
}

#[derive(Clone, Debug)]
struct ParkedTable {
    name: TableName,
    /// What its rows are told apart by. One that is told by other columns could be any of them.
    columns: Box<[Box<str>]>,
    rows: HashMap<Box<[u8]>, BTreeSet<ParkedId>>,
    whole: BTreeSet<ParkedId>,
}

impl ParkedTable {
    /// The oldest that speaks for the same.
    fn holder(&self, row: Option<&RowName>) -> Option<ParkedId> {
        let whole = self.whole.first();
        let row = match row {
            Some(row) if row.columns == self.columns => self.rows.get(&row.key).and_then(BTreeSet::first),
            _ => self.rows.values().filter_map(BTreeSet::first).min(),
        };
        whole.into_iter().chain(row).min().copied()
    }
}

impl ParkedRows {
    /// Whether nobody speaks for anything.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// `id` speaks for a part.
    pub fn add(&mut self, id: ParkedId, part: &Part) {
        let at = self.tables.iter().position(|table| table.name == part.table).unwrap_or_else(|| {
            self.tables.push(ParkedTable {
                name: part.table.clone(),
                columns: Box::default(),
                rows: HashMap::new(),
                whole: BTreeSet::new(),
            });
            self.tables.len() - 1
        });
        let table = &mut self.tables[at];
        match &part.row {
            Some(row) if table.rows.is_empty() || table.columns == row.columns => {
                table.columns = row.columns.clone();
                table.rows.entry(row.key.clone()).or_default().insert(id);
            }
            _ => drop(table.whole.insert(id)),
        }
    }

    /// `id` speaks for a part no more.
    pub fn remove(&mut self, id: ParkedId, part: &Part) {
        let Some(at) = self.tables.iter().position(|table| table.name == part.table) else { return };
        let table = &mut self.tables[at];
        // Told by other columns, it was added as one that speaks for all.
        table.whole.remove(&id);
        if let Some(row) = &part.row
            && let Some(ids) = table.rows.get_mut(&row.key)
        {
            ids.remove(&id);
            if ids.is_empty() {
                table.rows.remove(&row.key);
            }
        }
        if table.rows.is_empty() && table.whole.is_empty() {
            self.tables.swap_remove(at);
        }
    }

    /// Whether somebody speaks for a whole table.
    pub fn is_whole(&self, table: &TableName) -> bool {
        self.tables.iter().any(|it| it.name == *table && !it.whole.is_empty())
    }

    /// The oldest that speaks for a part, or for something it may be.
    pub fn holder(&self, part: &Part) -> Option<ParkedId> {
        self.tables.iter().find(|table| table.name == part.table)?.holder(part.row.as_ref())
    }

    /// The oldest that speaks for anything these changes speak for.
    ///
    /// # Panics
    /// As [`parts_of`] does.
    pub fn ahead_of<'a>(
        &self,
        changes: impl IntoIterator<Item = &'a Change>,
        locators: &Locators,
    ) -> Option<ParkedId> {
        let known = |shape: &Arc<Shape>| {
            self.tables.iter().any(|it| *it.name.table == *shape.table && *it.name.schema == *shape.schema)
        };
        // Most changes are to tables of which nothing is parked: no key is made for them.
        let changes = changes.into_iter().filter(|change| change.shapes().iter().any(known));
        changes.flat_map(|change| parts_of(change, locators)).filter_map(|part| self.holder(&part)).min()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::change::{Column, Identity};

    fn shape() -> Arc<Shape> {
        let column = |name: &str, key| Column {
            name: name.into(),
            type_schema: "pg_catalog".into(),
            type_name: "text".into(),
            typmod: -1,
            key,
        };
        let columns = vec![column("a", true), column("b", true), column("v", false)];
        Arc::new(Shape::new("public", "t", Identity::Default, columns))
    }

    fn row(cells: [Option<&'static str>; 3]) -> Row {
        let cell =
            |text: Option<&'static str>| text.map_or(Cell::Unchanged, |it| Cell::Value(it.as_bytes().into()));
        Row(cells.into_iter().map(cell).collect())
    }

    fn by(locator: Locator) -> Locators {
        Locators::from([(shape().fingerprint(), locator)])
    }

    fn keyed() -> Locators {
        by(Locator::Key([0, 1].into()))
    }

    fn come(a: &'static str, b: &'static str) -> Change {
        Change::Insert { shape: shape(), new: row([Some(a), Some(b), Some("v")]) }
    }

    #[test]
    fn a_row_that_moves_speaks_for_both_places() {
        let moves = Change::Update {
            shape: shape(),
            old: Some(row([Some("1"), Some("2"), None])),
            new: row([Some("1"), Some("3"), None]),
        };
        let stays = Change::Update { shape: shape(), old: None, new: row([Some("1"), Some("2"), Some("w")]) };
        let parts = parts_of(&moves, &keyed());
        assert_eq!(
            parts,
            [parts_of(&come("1", "2"), &keyed()), parts_of(&come("1", "3"), &keyed())].concat()
        );
        assert_eq!(parts_of(&stays, &keyed()), parts[..1]);
    }

    #[test]
    fn keys_that_read_alike_side_by_side_differ() {
        assert_ne!(parts_of(&come("1", "23"), &keyed()), parts_of(&come("12", "3"), &keyed()));
    }

    #[test]
    fn a_copied_row_is_the_row() {
        let text = Bytes::from_static(b"1\t2\tv\n4\t\\N\tv\n");
        let keys = Some(Bytes::from_static(b"1\t2\t\\N\n"));
        let chunk = Change::Chunk {
            shape: shape(),
            rows: 2,
            again: false,
            keys,
            replace: [].into(),
            meanwhile: None,
            text,
        };
        let parts = parts_of(&chunk, &keyed());
        assert_eq!(parts.len(), 2, "{parts:?}");
        assert!(parts.contains(&parts_of(&come("1", "2"), &keyed())[0]));
    }

    #[test]
    fn whoever_comes_first_is_ahead() {
        let mut parked = ParkedRows::default();
        let part = |change: &Change| parts_of(change, &keyed()).remove(0);
        let (one, other) = (come("1", "2"), come("3", "4"));
        parked.add(ParkedId(7), &part(&one));
        parked.add(ParkedId(9), &part(&one));
        assert_eq!(parked.ahead_of([&other], &keyed()), None);
        assert_eq!(parked.ahead_of([&other, &one], &keyed()), Some(ParkedId(7)));
        parked.remove(ParkedId(7), &part(&one));
        assert_eq!(parked.ahead_of([&one], &keyed()), Some(ParkedId(9)));
        // All of a table, and each of its rows.
        let empties = Change::Truncate { shapes: vec![shape()], cascade: false, restart_identity: false };
        assert_eq!(parked.ahead_of([&empties], &keyed()), Some(ParkedId(9)));
        parked.add(ParkedId(11), &part(&empties));
        assert_eq!(parked.ahead_of([&other], &keyed()), Some(ParkedId(11)));
        parked.remove(ParkedId(9), &part(&one));
        parked.remove(ParkedId(11), &part(&empties));
        assert!(parked.is_empty());
    }

    #[test]
    fn rows_told_by_other_columns_could_be_any() {
        let mut parked = ParkedRows::default();
        let (one, other) = (come("1", "2"), come("3", "4"));
        let by_v = by(Locator::Key([2].into()));
        let (part, odd) = (parts_of(&one, &keyed()).remove(0), parts_of(&one, &by_v).remove(0));
        parked.add(ParkedId(1), &part);
        assert_eq!(parked.ahead_of([&other], &by_v), Some(ParkedId(1)));
        parked.add(ParkedId(2), &odd);
        assert_eq!(parked.ahead_of([&other], &keyed()), Some(ParkedId(2)));
        assert_eq!(parked.ahead_of([&other], &by(Locator::WholeRow)), Some(ParkedId(1)));
        parked.remove(ParkedId(2), &odd);
        assert_eq!(parked.ahead_of([&other], &keyed()), None);
    }
}
