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

use std::{collections::HashMap, sync::Arc};

use crate::change::{Cell, Change, Fingerprint, Operation, Row, Shape};

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
}

/// Rows of one table that come, change or go alike. Must touch exactly `count` rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows<'a> {
    /// The table's shape.
    pub shape: &'a Arc<Shape>,
    /// Insert, update or delete.
    pub operation: Operation,
    /// The columns written.
    pub set: Box<[usize]>,
    /// The columns that find the row.
    pub locate: Box<[usize]>,
    /// Whether `locate` may find several equal rows, of which one is meant. Then `count` is 1.
    pub any_of_equal: bool,
    /// How many rows.
    pub count: usize,
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
pub fn plan<'a>(
    changes: impl IntoIterator<Item = &'a Change>,
    locators: &Locators,
) -> Result<Vec<Action<'a>>, Unlocatable> {
    let mut segment = Segment::default();
    let mut actions = Vec::new();
    for change in changes {
        if let Change::Truncate { .. } = change {
            segment.cut(&mut actions);
            actions.push(each(change, &Locator::Nowhere)?);
            continue;
        }
        let mut table = segment.table(change.shape(), locators);
        if segment.meets_other_shape(table) {
            segment.cut(&mut actions);
            table = segment.table(change.shape(), locators);
        }
        if !segment.fold(table, change) {
            let locator = segment.tables[table].locator.clone();
            segment.cut(&mut actions);
            actions.push(each(change, &locator)?);
        }
    }
    segment.cut(&mut actions);
    Ok(actions)
}

/// The action of one change alone.
///
/// # Errors
/// [`Unlocatable`] where the change does not say which row it means.
pub fn each<'a>(change: &'a Change, locator: &Locator) -> Result<Action<'a>, Unlocatable> {
    let lost = || Unlocatable { shape: change.shape().clone(), operation: change.operation() };
    let (new, located) = match change {
        Change::Truncate { shapes, .. } => return Ok(Action::Truncate { shapes }),
        Change::Insert { new, .. } => (Some(new), None),
        Change::Update { old, new, .. } => (Some(new), Some((old.as_ref(), Some(new)))),
        Change::Delete { old, .. } => (None, Some((Some(old), None))),
    };
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
            if set.is_empty() {
                set.push(locate[0]);
            }
            let cell = |at: usize| if is_given(&new.0[at]) { &new.0[at] } else { &row.0[at] };
            cells = set.iter().map(|&at| cell(at)).collect();
        }
        cells.extend(locate.iter().map(|&at| &row.0[at]));
    }
    Ok(Action::Rows(Rows {
        shape: change.shape(),
        operation: change.operation(),
        set: set.into_boxed_slice(),
        any_of_equal: *locator == Locator::WholeRow && !locate.is_empty(),
        locate,
        count: 1,
        cells,
    }))
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
    by_address: HashMap<usize, usize>,
    by_fingerprint: HashMap<Fingerprint, usize>,
    /// The shape each table was met under in this segment.
    by_name: HashMap<(&'a str, &'a str), usize>,
    entries: Vec<Entry<'a>>,
    /// The last entry of each row.
    rows: HashMap<(usize, Vec<u8>), usize>,
}

struct Table<'a> {
    shape: &'a Arc<Shape>,
    locator: Locator,
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
    fn table(&mut self, shape: &'a Arc<Shape>, locators: &Locators) -> usize {
        let address = Arc::as_ptr(shape) as usize;
        if let Some(&table) = self.by_address.get(&address) {
            return table;
        }
        let fingerprint = shape.fingerprint();
        let tables = &mut self.tables;
        let table = *self.by_fingerprint.entry(fingerprint).or_insert_with(|| {
            let locator = locators.get(&fingerprint).expect("every shape was given a locator").clone();
            tables.push(Table { shape, locator });
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
                let moves =
                    |key: &Row| columns.iter().any(|&at| is_given(&new.0[at]) && new.0[at] != key.0[at]);
                (key.filter(|key| !moves(key)), new)
            }
            Change::Delete { old, .. } => (has_all(old, columns).then_some(old), old),
            Change::Truncate { .. } => return false,
        };
        let Some(key) = key else { return false };
        let name = (table, key_text(key, columns));
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
            (Operation::Truncate, _) | (_, Operation::Truncate) => return false,
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
    let width = table.shape.columns.len();
    let mut set: Vec<usize> = match operation {
        Operation::Delete => Vec::new(),
        _ => (0..width).filter(|&at| is_given(entry.content.cell(at))).collect(),
    };
    if operation == Operation::Update {
        set.retain(|at| !key.contains(at));
        if set.is_empty() {
            set.push(key[0]);
        }
    }
    let cell = |at: usize| {
        // A key is never moved here: where the later image does not repeat it, it is the key.
        let cell = entry.content.cell(at);
        if is_given(cell) { cell } else { &entry.key.0[at] }
    };
    let cells = set.iter().map(|&at| cell(at)).chain(locate.iter().map(|&at| &entry.key.0[at]));
    for action in &mut actions[begun..] {
        if let Action::Rows(rows) = action
            && *rows.set == *set
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
        set: set.into_boxed_slice(),
        locate: locate.into(),
        any_of_equal: false,
        count: 1,
        cells,
    })
}

/// A key as bytes that are equal exactly where its cells are.
fn key_text(row: &Row, columns: &[usize]) -> Vec<u8> {
    let mut text = Vec::with_capacity(16);
    for &at in columns {
        match &row.0[at] {
            Cell::Value(value) => {
                text.extend_from_slice(&(value.len() as u64 + 1).to_be_bytes());
                text.extend_from_slice(value);
            }
            _ => text.extend_from_slice(&0u64.to_be_bytes()),
        }
    }
    text
}
