//! Turns changes in their order into few set-based actions with the same outcome.
//!
//! ```text
//!  changes, in order             actions
//!  insert 1 ─┐                   ┌ level 0   deletes, updates, inserts; each one statement per
//!  update 1 ─┴▶ insert 1' ──────▶│           table (and, for updates, per set of columns given)
//!  delete 2 ──▶ delete 2         │
//!  insert 2 ──▶ insert 2         │
//!  delete 2 ──▶ delete 2 ───────▶└ level 1
//! ```
//!
//! Changes to one row are folded where the outcome *and what would betray a divergence* stay the
//! same: an insert then an update is one insert, an insert then a delete are two actions one level
//! apart, since the insert must still find that its row is not there. So a plan of which every
//! action touches as many rows as it holds went exactly as its changes would have gone one by one;
//! where one does not, the caller redoes them one by one ([`each`]) and learns which it was.
//!
//! What changes a key, or finds its row by more than a key, or empties tables, cuts: everything
//! before it is done first, then it alone.
//!
//! HAZARD: folding knows rows by the text of their keys, and no other unique constraint. Two rows
//! that swap a unique value, or two texts that are one key to the database, can make a set fail
//! that would pass one by one; never the other way round. The caller's redo covers that.

pub mod parked;

use std::{collections::HashMap, sync::Arc};

use crate::{
    change::{Cell, Change, Fingerprint, Meanwhile, Operation, Row, Shape},
    names::qualified,
};

#[cfg(test)]
mod tests;

/// How a table's rows are found at the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Locator {
    /// By these columns, which the target keeps unique and not null.
    Key(Box<[usize]>),
    /// By these columns, which nothing keeps unique there: change by change, each finding one row.
    Columns(Box<[usize]>),
    /// By the whole row, of which there may be several: change by change, each taking any one.
    WholeRow,
    /// Not at all: rows can only come.
    Nowhere,
}

/// How each shape's rows are found.
pub type Locators = HashMap<Fingerprint, Locator>;

/// How changes to a table are taken while a backfill fills it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joining {
    /// Its rows are stale and its turn comes: no change counts.
    Waiting,
    /// It holds some of its rows, and those exactly. A change to a row that has not come passes; a row that
    /// comes takes the place of what is there.
    Copying,
    /// Its rows may be older than the place the stream has come to, or missing, and are mended one by one. Changes are
    /// taken as while it is copied.
    Stale,
    /// It holds some of its rows as they were under one snapshot. What changed since is kept until the last has come.
    Snapshot,
}

/// The tables a backfill has begun and not ended, by their names as [`table_key`] has them.
pub type JoiningTables = HashMap<String, Joining>;

/// A table's name, as no other has it: unquoted, `"a.b"."c"` and `"a"."b.c"` read the same.
pub fn table_key(shape: &Shape) -> String {
    qualified(&shape.schema, &shape.table)
}

/// What is known of the target's tables.
#[derive(Clone, Copy, Debug)]
pub struct Tables<'t> {
    /// How each shape's rows are found.
    pub locators: &'t Locators,
    /// The tables that are not whole yet.
    pub joining: &'t JoiningTables,
}

impl Tables<'_> {
    fn joining(&self, shape: &Shape) -> Option<Joining> {
        // Asked for with every change, and nearly always in vain.
        if self.joining.is_empty() { None } else { self.joining.get(&table_key(shape)).copied() }
    }
}

/// One statement's worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<'a> {
    /// Rows of one table, treated alike.
    Rows(Rows<'a>),
    /// Tables to empty, in one statement. Sequences are each region's own: no change carries what they
    /// count, and so none sets them back.
    Truncate {
        /// The tables.
        shapes: &'a [Arc<Shape>],
    },
    /// Rows to be kept until their table is whole.
    Keep(Keep<'a>),
}

/// Rows of one table that came or went since the snapshot it is copied under. Their order says nothing: the table ends
/// with as many of each row as it had, and came, less those that went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keep<'a> {
    /// The table's shape.
    pub shape: &'a Arc<Shape>,
    /// Each with a cell for every column of the shape.
    pub rows: Vec<(Meanwhile, Vec<&'a Cell>)>,
}

/// Rows of one table that come, change or go alike. Must touch exactly `count` rows, or where it is not `exact`
/// no more than that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows<'a> {
    /// The table's shape.
    pub shape: &'a Arc<Shape>,
    /// Insert, update or delete.
    pub operation: Operation,
    /// The columns written; none in an update that changes nothing, whose rows must be there all the same.
    pub set: Box<[usize]>,
    /// The columns that find the row.
    pub locate: Box<[usize]>,
    /// Whether `locate` may find several equal rows, of which one is meant. Then `count` is 1.
    pub any_of_equal: bool,
    /// How many rows.
    pub count: usize,
    /// Whether every row must be there: else it may still be to come.
    pub exact: bool,
    /// Row by row: the cells of `set`, then those of `locate`.
    pub cells: Vec<&'a Cell>,
}

impl<'a> Rows<'a> {
    /// How many cells a row has here.
    pub fn width(&self) -> usize {
        self.set.len() + self.locate.len()
    }

    /// The cells at one place of every row.
    pub fn column(&self, at: usize) -> impl Iterator<Item = &'a Cell> + '_ {
        self.cells.iter().skip(at).step_by(self.width().max(1)).copied()
    }
}

/// A change names no row that its [`Locator`] could find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unlocatable {
    /// The table's shape.
    pub shape: Arc<Shape>,
    /// What was to be done.
    pub operation: Operation,
}

/// The actions that have the outcome of `changes` in their order.
///
/// # Errors
/// [`Unlocatable`] where a change does not say which row it means.
///
/// # Panics
/// Where a shape has no locator: the caller looks at every table first.
/// Where a change is a backfill's: it is applied alone.
pub fn plan<'a>(
    changes: impl IntoIterator<Item = &'a Change>,
    tables: Tables<'_>,
) -> Result<Vec<Action<'a>>, Unlocatable> {
    let mut segment = Segment::default();
    let mut actions = Vec::new();
    let mut kept: Vec<Keep<'a>> = Vec::new();
    for change in changes {
        if let Change::Truncate { .. } = change {
            segment.cut(&mut actions);
            actions.extend(each(change, tables)?);
            continue;
        }
        let mut table = segment.table(change.shape(), tables);
        match segment.tables[table].joining {
            Some(Joining::Waiting) => continue,
            Some(Joining::Copying | Joining::Stale) => {
                segment.cut(&mut actions);
                actions.extend(each(change, tables)?);
                continue;
            }
            Some(Joining::Snapshot) => {
                let keep = kept_of(change);
                match kept.iter_mut().find(|it| it.shape.fingerprint() == keep.shape.fingerprint()) {
                    Some(before) => before.rows.extend(keep.rows),
                    None => kept.push(keep),
                }
                continue;
            }
            None => (),
        }
        if segment.meets_other_shape(table) {
            segment.cut(&mut actions);
            table = segment.table(change.shape(), tables);
            // It is the one whose changes may stand in the new segment.
            segment.meets_other_shape(table);
        }
        if !segment.fold(table, change) {
            segment.cut(&mut actions);
            actions.extend(each(change, tables)?);
        }
    }
    segment.cut(&mut actions);
    actions.extend(kept.into_iter().filter(|keep| !keep.rows.is_empty()).map(Action::Keep));
    Ok(actions)
}

/// The actions of one change alone: one, none to a table whose turn has not come, or several to one that holds
/// some of its rows.
///
/// # Errors
/// [`Unlocatable`] where the change does not say which row it means.
///
/// # Panics
/// As [`plan`] does.
pub fn each<'a>(change: &'a Change, tables: Tables<'_>) -> Result<Vec<Action<'a>>, Unlocatable> {
    let shape = change.shape();
    if let Change::Truncate { shapes, .. } = change {
        return Ok(vec![Action::Truncate { shapes }]);
    }
    let locator = tables.locators.get(&shape.fingerprint()).expect("every shape was given a locator");
    match tables.joining(shape) {
        None => Ok(vec![Action::Rows(alone(change, locator)?)]),
        Some(Joining::Waiting) => Ok(Vec::new()),
        Some(Joining::Copying | Joining::Stale) => in_place(change, locator),
        Some(Joining::Snapshot) => {
            let keep = kept_of(change);
            Ok(if keep.rows.is_empty() { Vec::new() } else { vec![Action::Keep(keep)] })
        }
    }
}

/// What a change brings and takes away, of a table that is copied under one snapshot.
///
/// Where it does not say all its row holds, the table is not the one that is copied any more: its replica identity was
/// another then, so its shape was, and the source begins it anew. Nothing is kept of such a change.
fn kept_of(change: &Change) -> Keep<'_> {
    let whole = |row: &Row| row.0.iter().all(is_given);
    let shape = change.shape();
    let rows = match change {
        Change::Insert { new, .. } if whole(new) => vec![(Meanwhile::Came, new.0.iter().collect())],
        Change::Delete { old, .. } if whole(old) => vec![(Meanwhile::Gone, old.0.iter().collect())],
        Change::Update { old: Some(old), new, .. } if whole(old) => {
            // An out-of-line value it did not touch is the old row's.
            let becomes = new.0.iter().zip(&old.0).map(|(new, old)| if is_given(new) { new } else { old });
            vec![(Meanwhile::Gone, old.0.iter().collect()), (Meanwhile::Came, becomes.collect())]
        }
        _ => Vec::new(),
    };
    Keep { shape, rows }
}

/// A change to a table that holds some of its rows.
fn in_place<'a>(change: &'a Change, locator: &Locator) -> Result<Vec<Action<'a>>, Unlocatable> {
    let columns: &[usize] = match locator {
        Locator::Key(columns) | Locator::Columns(columns) => columns,
        Locator::WholeRow | Locator::Nowhere => &[],
    };
    let shape = change.shape();
    let gone = |row| all_gone(shape, columns, std::slice::from_ref(row));
    let inexact = |rows: Rows<'a>| Action::Rows(Rows { exact: false, ..rows });
    let come = |new| alone_of(shape, Operation::Insert, Some(new), None, locator).map(Action::Rows);
    Ok(match change {
        // Nothing tells its rows apart: no key, and so nothing to take away first.
        change if columns.is_empty() => vec![inexact(alone(change, locator)?)],
        Change::Insert { new, .. } if has_all(new, columns) => vec![gone(new), come(new)?],
        Change::Update { old: Some(old), new, .. } if moves(Some(old), new, columns) => {
            if new.0.iter().all(is_given) {
                vec![gone(old), gone(new), come(new)?]
            } else {
                vec![gone(new), inexact(alone(change, locator)?)]
            }
        }
        change => vec![inexact(alone(change, locator)?)],
    })
}

/// Takes every row away that has the key of one of `rows`, where it is there. `rows` holds cells of all columns.
pub fn all_gone<'a>(shape: &'a Arc<Shape>, key: &[usize], rows: &'a [Row]) -> Action<'a> {
    Action::Rows(Rows {
        shape,
        operation: Operation::Delete,
        set: Box::default(),
        locate: key.into(),
        any_of_equal: false,
        count: rows.len(),
        exact: false,
        cells: rows.iter().flat_map(|row| key.iter().map(|&at| &row.0[at])).collect(),
    })
}

/// Whether an update gives its row another key.
fn moves(old: Option<&Row>, new: &Row, key: &[usize]) -> bool {
    let Some(old) = key_row(old, Some(new), key) else { return false };
    key.iter().any(|&at| is_given(&new.0[at]) && new.0[at] != old.0[at])
}

fn alone<'a>(change: &'a Change, locator: &Locator) -> Result<Rows<'a>, Unlocatable> {
    let (new, located) = match change {
        Change::Truncate { .. } | Change::Chunk { .. } | Change::Watermark { .. } => {
            unreachable!("neither is of single rows")
        }
        Change::Insert { new, .. } => (Some(new), None),
        Change::Update { old, new, .. } => (Some(new), Some((old.as_ref(), Some(new)))),
        Change::Delete { old, .. } => (None, Some((Some(old), None))),
    };
    alone_of(change.shape(), change.operation(), new, located, locator)
}

/// The old and the new image that say which row is meant.
type Images<'a> = (Option<&'a Row>, Option<&'a Row>);

fn alone_of<'a>(
    shape: &'a Arc<Shape>,
    operation: Operation,
    new: Option<&'a Row>,
    located: Option<Images<'a>>,
    locator: &Locator,
) -> Result<Rows<'a>, Unlocatable> {
    let lost = || Unlocatable { shape: shape.clone(), operation };
    let mut set: Vec<usize> = new.map_or_else(Vec::new, present);
    let mut cells: Vec<&Cell> = set.iter().filter_map(|&at| new.map(|row| &row.0[at])).collect();
    let mut locate = Box::default();
    if let Some((old, new)) = located {
        let row;
        (locate, row) = match locator {
            Locator::Key(columns) | Locator::Columns(columns) => {
                let row = key_row(old, new, columns).ok_or_else(lost)?;
                (columns.clone(), row)
            }
            Locator::WholeRow => {
                let row = old.ok_or_else(lost)?;
                (present(row).into_boxed_slice(), row)
            }
            Locator::Nowhere => return Err(lost()),
        };
        if locate.is_empty() {
            return Err(lost());
        }
        if let Some(new) = new {
            // What finds the row and stays is not written: an identity column would refuse even itself.
            set.retain(|at| !locate.contains(at) || new.0[*at] != row.0[*at]);
            cells = set.iter().map(|&at| &new.0[at]).collect();
        }
        cells.extend(locate.iter().map(|&at| &row.0[at]));
    }
    Ok(Rows {
        shape,
        operation,
        set: set.into_boxed_slice(),
        any_of_equal: *locator == Locator::WholeRow && !locate.is_empty(),
        locate,
        count: 1,
        exact: true,
        cells,
    })
}

fn is_given(cell: &Cell) -> bool {
    !matches!(cell, Cell::Unchanged | Cell::Withheld)
}

fn present(row: &Row) -> Vec<usize> {
    (0..row.0.len()).filter(|&at| is_given(&row.0[at])).collect()
}

fn has_all(row: &Row, columns: &[usize]) -> bool {
    columns.iter().all(|&at| is_given(&row.0[at]))
}

/// The image that says which row is meant: the old one where it has the key, else the new one.
fn key_row<'a>(old: Option<&'a Row>, new: Option<&'a Row>, columns: &[usize]) -> Option<&'a Row> {
    [old, new].into_iter().flatten().find(|row| has_all(row, columns))
}

/// The changes since the last cut, folded.
#[derive(Default)]
struct Segment<'a> {
    tables: Vec<Table<'a>>,
    /// By the address of the shape, which is cheaper than its fingerprint.
    by_address: foldhash::HashMap<usize, usize>,
    by_fingerprint: foldhash::HashMap<Fingerprint, usize>,
    /// The shape each table was met under in this segment.
    by_name: foldhash::HashMap<(&'a str, &'a str), usize>,
    entries: Vec<Entry<'a>>,
    /// The last entry of each row.
    rows: foldhash::HashMap<(usize, Key<'a>), usize>,
}

struct Table<'a> {
    shape: &'a Arc<Shape>,
    locator: Locator,
    joining: Option<Joining>,
}

struct Entry<'a> {
    table: usize,
    level: u32,
    operation: Operation,
    /// What the row becomes; nothing is read from it for a delete.
    content: Content<'a>,
    /// The image the row's key is read from.
    key: &'a Row,
}

enum Content<'a> {
    AsGiven(&'a Row),
    Folded(Vec<&'a Cell>),
}

impl<'a> Content<'a> {
    fn cell(&self, at: usize) -> &'a Cell {
        match self {
            Self::AsGiven(row) => &row.0[at],
            Self::Folded(cells) => cells[at],
        }
    }

    /// Lays a later image over this one.
    fn fold(&mut self, later: &'a Row) {
        let cells = later.0.iter().enumerate();
        let over = |(at, cell): (usize, &'a Cell)| if is_given(cell) { cell } else { self.cell(at) };
        *self = Self::Folded(cells.map(over).collect());
    }
}

impl<'a> Segment<'a> {
    fn table(&mut self, shape: &'a Arc<Shape>, of: Tables<'_>) -> usize {
        let address = Arc::as_ptr(shape) as usize;
        if let Some(&table) = self.by_address.get(&address) {
            return table;
        }
        let fingerprint = shape.fingerprint();
        let tables = &mut self.tables;
        let table = *self.by_fingerprint.entry(fingerprint).or_insert_with(|| {
            let locator = of.locators.get(&fingerprint).expect("every shape was given a locator").clone();
            tables.push(Table { shape, locator, joining: of.joining(shape) });
            tables.len() - 1
        });
        self.by_address.insert(address, table);
        table
    }

    /// Whether this segment already holds changes to the same table under another shape: between
    /// those only the order they came in is right.
    fn meets_other_shape(&mut self, table: usize) -> bool {
        let shape = self.tables[table].shape;
        *self.by_name.entry((&shape.schema, &shape.table)).or_insert(table) != table
    }

    /// Takes a change in; false where it must stand alone.
    fn fold(&mut self, table: usize, change: &'a Change) -> bool {
        let Locator::Key(columns) = &self.tables[table].locator else {
            // Nothing but an insert can be told apart from its neighbours without a key, and an
            // insert collides with none of them.
            let Change::Insert { new, .. } = change else { return false };
            return !present(new).is_empty() && {
                self.push(table, 0, Operation::Insert, new, new);
                true
            };
        };
        let (key, content) = match change {
            Change::Insert { new, .. } => (has_all(new, columns).then_some(new), new),
            Change::Update { old, new, .. } => {
                let key = key_row(old.as_ref(), Some(new), columns);
                (key.filter(|_| !moves(old.as_ref(), new, columns)), new)
            }
            Change::Delete { old, .. } => (has_all(old, columns).then_some(old), old),
            Change::Truncate { .. } | Change::Chunk { .. } | Change::Watermark { .. } => return false,
        };
        let Some(key) = key else { return false };
        let name = (table, key_of(key, columns));
        let operation = change.operation();
        let Some(&last) = self.rows.get(&name) else {
            let at = self.push(table, 0, operation, content, key);
            self.rows.insert(name, at);
            return true;
        };
        use Operation::{Delete, Insert, Update};
        let entry = &mut self.entries[last];
        let level = entry.level;
        match (entry.operation, operation) {
            (Insert | Update, Update) => entry.content.fold(content),
            (Update, Delete) => entry.operation = Delete,
            // Within a level deletes run first, inserts last. After an update only a divergence
            // brings an insert, and it will be found out there.
            (Delete | Update, Insert) => {
                let at = self.push(table, level, operation, content, key);
                self.rows.insert(name, at);
            }
            (Insert, Insert | Delete) | (Delete, Delete | Update) => {
                let at = self.push(table, level + 1, operation, content, key);
                self.rows.insert(name, at);
            }
            (Operation::Truncate | Operation::Copy | Operation::Watermark, _)
            | (_, Operation::Truncate | Operation::Copy | Operation::Watermark) => return false,
        }
        true
    }

    fn push(&mut self, table: usize, level: u32, operation: Operation, row: &'a Row, key: &'a Row) -> usize {
        self.entries.push(Entry { table, level, operation, content: Content::AsGiven(row), key });
        self.entries.len() - 1
    }

    /// Writes down what was folded, and begins anew.
    fn cut(&mut self, actions: &mut Vec<Action<'a>>) {
        let mut entries = std::mem::take(&mut self.entries);
        self.rows.clear();
        self.by_name.clear();
        let rank = |entry: &Entry<'_>| {
            let phase = match entry.operation {
                Operation::Delete => 0u8,
                Operation::Update => 1,
                _ => 2,
            };
            (entry.level, phase, entry.table)
        };
        entries.sort_by_key(rank);
        for alike in entries.chunk_by(|one, other| rank(one) == rank(other)) {
            let table = &self.tables[alike[0].table];
            let begun = actions.len();
            for entry in alike {
                append(&mut actions[..], begun, entry, table)
                    .unwrap_or_else(|rows| actions.push(Action::Rows(rows)));
            }
        }
    }
}

/// Adds a row to the action that gives the same columns, or returns a new action for it.
fn append<'a>(
    actions: &mut [Action<'a>],
    begun: usize,
    entry: &Entry<'a>,
    table: &Table<'a>,
) -> Result<(), Rows<'a>> {
    let keyless: &[usize] = &[];
    let operation = entry.operation;
    let key = if let Locator::Key(columns) = &table.locator { columns } else { keyless };
    let locate = if operation == Operation::Insert { keyless } else { key };
    let given = |at: &usize| {
        let finds = operation == Operation::Update && key.contains(at);
        !finds && is_given(entry.content.cell(*at))
    };
    let width = if operation == Operation::Delete { 0 } else { table.shape.columns.len() };
    let set = || (0..width).filter(given);
    // A key is never moved here.
    let cells = set().map(|at| entry.content.cell(at)).chain(locate.iter().map(|&at| &entry.key.0[at]));
    for action in &mut actions[begun..] {
        if let Action::Rows(rows) = action
            && rows.set.iter().copied().eq(set())
        {
            rows.cells.extend(cells);
            rows.count += 1;
            return Ok(());
        }
    }
    let cells = cells.collect();
    Err(Rows {
        shape: table.shape,
        operation,
        set: set().collect(),
        locate: locate.into(),
        any_of_equal: false,
        count: 1,
        exact: true,
        cells,
    })
}

/// A row's key: equal exactly where its cells are, within one table.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Key<'a> {
    /// The only column's value, where it lies.
    One(&'a [u8]),
    /// Several columns' values, each behind its length, or one without a value.
    Several(Vec<u8>),
}

fn key_of<'a>(row: &'a Row, columns: &[usize]) -> Key<'a> {
    if let &[at] = columns
        && let Cell::Value(value) = &row.0[at]
    {
        return Key::One(value);
    }
    let mut text = Vec::with_capacity(16 * columns.len());
    for &at in columns {
        match &row.0[at] {
            Cell::Value(value) => {
                text.extend_from_slice(&(value.len() as u64 + 1).to_be_bytes());
                text.extend_from_slice(value);
            }
            _ => text.extend_from_slice(&0u64.to_be_bytes()),
        }
    }
    Key::Several(text)
}
