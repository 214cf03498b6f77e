//! What is known of the target's tables, and the statements prepared for them.

use std::{
    collections::{HashMap, HashSet},
    pin::pin,
    sync::Arc,
};

use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::{Client, Statement};

use super::{
    PostgresSinkConfig, meanwhile,
    statement::{self, Array, copy_data},
    table::{self, Table},
    trouble::{self, Attempt, Trouble},
};
use crate::{
    change::{Cell, Change, Column, Fingerprint, Operation, Row, Shape},
    crash,
    fault::{Code, Fault, Result},
    plan::{Action, JoiningTables, Keep, Locator, Locators, Rows, Tables, all_gone, each, plan},
    sink::Step,
};

/// Prepared statements kept, and shapes. When there are more they are all made anew: a limit on
/// memory here and at the server, not a cache policy.
const KEPT_MAX: usize = 1000;

/// Rows that come are copied from so many on. Measured: a copied row costs the server a third less than one of
/// an array, and beginning to copy costs a round trip, which is as much as some two hundred rows.
const COPY_MIN: usize = 200;

/// What is copied goes in pieces of so many bytes. The server counts a piece once it is there, and by that count a copy over
/// a slow line is told from one whose daemon is gone.
const COPY_PIECE: usize = 64 << 10;

/// Up to so many rows of a batch the server counts what it touched itself, and the commit needs no answer before it.
/// Counting costs it a little for each row; an answer costs as much as some dozens of them.
const COUNTED_MAX: usize = 64;

/// What helps where one transaction has two shapes of a table that cannot both fit it.
const FITS_NO_TABLE: &str = "make the table here as it is at the source now, and run `landfall recover --execute` in this region: \
     the link goes on behind that transaction, and the rows that differ come anew";

/// What a prepared statement is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct StatementName {
    shape: Fingerprint,
    operation: Operation,
    way: Way,
    set: Box<[usize]>,
    locate: Box<[usize]>,
}

/// How rows travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Way {
    /// As arrays.
    Arrays,
    /// As arrays, to rows whose key is the same text.
    ByText,
    /// As arrays, counted by the server.
    Counted,
    /// As a copy.
    Copy,
}

/// An action and its statement.
pub(super) enum Ready<'a> {
    /// Rows that travel as arrays, a parameter for each column.
    Rows(Statement, Rows<'a>),
    /// The same, and the server fails where it touches more or fewer.
    Counted(Statement, Rows<'a>),
    /// Rows that come, as a copy.
    Copy(Statement, Rows<'a>),
    /// A backfill's rows, in the text they came in, and how many.
    Chunk(Statement, Bytes, u64),
    /// A backfill begins: the table is emptied.
    Empty(String),
    /// Rows kept until their table is whole.
    Keep(Statement, Keep<'a>),
    Truncate(String),
}

impl Ready<'_> {
    /// How many rows it must touch, where there is one right number and the server does not see to it.
    pub(super) fn expected(&self) -> Option<u64> {
        match self {
            Self::Rows(_, rows) | Self::Copy(_, rows) => rows.exact.then_some(rows.count as u64),
            Self::Chunk(_, _, rows) => Some(*rows),
            Self::Keep(_, keep) => Some(keep.rows.len() as u64),
            Self::Empty(_) | Self::Truncate(_) | Self::Counted(..) => None,
        }
    }

    /// Has the server do it; gives how many rows it touched, where that is told.
    pub(super) async fn run(
        &self,
        client: &Client,
        config: &PostgresSinkConfig,
    ) -> std::result::Result<u64, tokio_postgres::Error> {
        match self {
            Self::Rows(statement, rows) | Self::Counted(statement, rows) => {
                client.execute_raw(statement, Array::all(rows)).await
            }
            Self::Copy(statement, rows) => copy_in(client, statement, copy_data(rows)).await,
            Self::Chunk(statement, text, _) => copy_in(client, statement, text.clone()).await,
            Self::Keep(statement, keep) => meanwhile::keep(client, config, statement, keep).await,
            Self::Empty(sql) => client.execute(sql.as_str(), &[]).await,
            Self::Truncate(sql) => client.batch_execute(sql).await.map(|()| 0),
        }
    }

    /// Whether it fails in the server where it touches what it should not.
    pub(super) fn is_counted(&self) -> bool {
        matches!(self, Self::Counted(..))
    }

    /// Whether rows are streamed to the server.
    pub(super) fn is_copy(&self) -> bool {
        matches!(self, Self::Copy(..) | Self::Chunk(..))
    }
}

async fn copy_in(
    client: &Client,
    statement: &Statement,
    mut data: Bytes,
) -> std::result::Result<u64, tokio_postgres::Error> {
    let mut copy = pin!(client.copy_in(statement).await?);
    crash::point("apply.mid_copy");
    while !data.is_empty() {
        copy.send(data.split_to(data.len().min(COPY_PIECE))).await?;
    }
    copy.finish().await
}

/// A chunk, and the rows whose like may be there already.
pub(super) struct Chunk<'a> {
    pub(super) text: &'a Bytes,
    pub(super) rows: u64,
    pub(super) former: &'a [Row],
    /// The columns these are found by; those the table is found by here, where none are named.
    pub(super) replace: &'a [usize],
}

fn found_otherwise(shape: &Shape) -> Fault {
    let message = format!("{shape} is found here by other columns than the source's key");
    Fault::new(Code::TableDiffers, message)
        .remedied_by("make the source's primary key the target's, it goes on by itself")
}

/// The tables met so far, and the statements.
#[derive(Default)]
pub(super) struct Known {
    tables: HashMap<Fingerprint, Table>,
    locators: Locators,
    /// Tables that are not whole yet.
    pub(super) joining: JoiningTables,
    statements: HashMap<StatementName, Statement>,
    /// Keeps rows of any table.
    keep: Option<Statement>,
    /// Tables that the server counts nothing in: one has a rule, which no statement inside another may meet.
    uncounted: HashSet<Fingerprint>,
    /// A row has a key only where its text is the same, whatever the database takes for equal.
    by_text: bool,
}

impl Known {
    /// Nothing was met yet; these tables are not whole.
    pub(super) fn new(joining: JoiningTables) -> Self {
        Self { joining, ..Self::default() }
    }

    /// The changes' actions with their statements; with some that the server counts, where there is something to be
    /// gained by it.
    pub(super) async fn make_ready<'a>(
        &mut self,
        client: &Client,
        steps: &'a [Step],
        may_count: bool,
    ) -> Attempt<Vec<Ready<'a>>> {
        self.look_at_tables(client, steps).await?;
        let actions = plan(steps.iter().flat_map(Step::changes), self.tables())?;
        let counted = may_count && are_few(&actions) && !self.refuse_to_be_counted(&actions);
        let mut ready = Vec::with_capacity(actions.len());
        for action in actions {
            ready.push(self.make_action_ready(client, action, counted).await?);
        }
        Ok(ready)
    }

    /// Has a row be taken for the one a key names only where that key is the same text: where more than one text is equal
    /// for the database, the row there may be another, that came later.
    pub(super) fn find_by_text(&mut self, by_text: bool) {
        self.by_text = by_text;
    }

    /// How rows are found in the tables looked at.
    pub(super) fn locators(&self) -> &Locators {
        &self.locators
    }

    fn tables(&self) -> Tables<'_> {
        Tables { locators: &self.locators, joining: &self.joining }
    }

    /// One change's actions with their statements. Its table was looked at before.
    pub(super) async fn make_ready_alone<'a>(
        &mut self,
        client: &Client,
        change: &'a Change,
    ) -> Attempt<Vec<Ready<'a>>> {
        let mut ready = Vec::new();
        for action in each(change, self.tables())? {
            ready.push(self.make_action_ready(client, action, false).await?);
        }
        Ok(ready)
    }

    /// Whether a row can be found by less than all of it. Its table was looked at before.
    pub(super) fn finds_by_key(&self, shape: &Shape) -> bool {
        matches!(self.locators.get(&shape.fingerprint()), Some(Locator::Key(_) | Locator::Columns(_)))
    }

    /// Whether no two rows can have the key that rows are found by. Its table was looked at before.
    pub(super) fn keeps_keys_unique(&self, shape: &Shape) -> bool {
        matches!(self.locators.get(&shape.fingerprint()), Some(Locator::Key(_)))
    }

    /// Requires that rows are found here by columns that are given of each.
    pub(super) fn require_found_by(&self, shape: &Shape, rows: &[Row]) -> Result<()> {
        let columns: &[usize] = match self.locators.get(&shape.fingerprint()) {
            Some(Locator::Key(columns) | Locator::Columns(columns)) => columns,
            _ => &[],
        };
        let given = |row: &Row| columns.iter().all(|&at| matches!(row.0[at], Cell::Value(_)));
        if !columns.is_empty() && rows.iter().all(given) {
            return Ok(());
        }
        Err(found_otherwise(shape))
    }

    /// Requires that rows are found here by these columns, or by some of them.
    pub(super) fn require_found_within(&self, shape: &Shape, key: &[usize]) -> Result<()> {
        match self.locators.get(&shape.fingerprint()) {
            Some(Locator::Key(columns) | Locator::Columns(columns))
                if columns.iter().all(|at| key.contains(at)) =>
            {
                Ok(())
            }
            _ => Err(found_otherwise(shape)),
        }
    }

    /// What empties a table for the rows a backfill brings. Its table was looked at before.
    pub(super) fn empty<'a>(&self, shape: &Shape) -> Ready<'a> {
        Ready::Empty(statement::empty_text(self.table(shape)))
    }

    /// What brings a chunk's rows in, in place of those with the same keys. Its table was looked at before.
    pub(super) async fn make_chunk_ready<'a>(
        &mut self,
        client: &Client,
        shape: &'a Arc<Shape>,
        chunk: Chunk<'a>,
    ) -> Attempt<Vec<Ready<'a>>> {
        let fingerprint = shape.fingerprint();
        let mut ready = Vec::with_capacity(2);
        if let Locator::Key(columns) | Locator::Columns(columns) = &self.locators[&fingerprint]
            && !chunk.former.is_empty()
        {
            let columns = if chunk.replace.is_empty() { columns.clone() } else { chunk.replace.into() };
            let action = all_gone(shape, &columns, chunk.former);
            ready.push(self.make_action_ready(client, action, false).await?);
        }
        let all: Box<[usize]> = (0..shape.columns.len()).collect();
        let name = StatementName {
            shape: fingerprint,
            operation: Operation::Copy,
            way: Way::Copy,
            set: all.clone(),
            locate: Box::default(),
        };
        let statement = match self.statements.get(&name) {
            Some(statement) => statement.clone(),
            None => {
                let text = statement::copy_text(&self.tables[&fingerprint], &all);
                self.prepare(client, name, &text).await?
            }
        };
        ready.push(Ready::Chunk(statement, chunk.text.clone(), chunk.rows));
        Ok(ready)
    }

    async fn make_action_ready<'a>(
        &mut self,
        client: &Client,
        action: Action<'a>,
        counted: bool,
    ) -> Attempt<Ready<'a>> {
        let rows = match action {
            Action::Rows(rows) => rows,
            Action::Keep(keep) => return self.make_keep_ready(client, keep).await,
            Action::Truncate { shapes } => {
                let tables = shapes.iter().map(|shape| &self.tables[&shape.fingerprint()]);
                return Ok(Ready::Truncate(statement::truncate_text(tables)));
            }
        };
        let fingerprint = rows.shape.fingerprint();
        let is_insert = rows.operation == Operation::Insert;
        let (way, ready): (_, fn(_, _) -> _) = if counted {
            (Way::Counted, Ready::Counted)
        } else if is_insert && rows.count >= COPY_MIN && !rows.set.is_empty() {
            (Way::Copy, Ready::Copy)
        } else if self.by_text && !is_insert {
            (Way::ByText, Ready::Rows)
        } else {
            (Way::Arrays, Ready::Rows)
        };
        let name = StatementName {
            shape: fingerprint,
            operation: rows.operation,
            way,
            set: rows.set.clone(),
            locate: rows.locate.clone(),
        };
        if let Some(statement) = self.statements.get(&name) {
            return Ok(ready(statement.clone(), rows));
        }
        let table = &self.tables[&fingerprint];
        let text = match way {
            Way::Counted => statement::counted_text(table, &rows),
            Way::Copy => statement::copy_text(table, &rows.set),
            Way::Arrays => statement::text(table, &rows),
            Way::ByText => statement::text_by_text(table, &rows),
        };
        match self.prepare(client, name.clone(), &text).await {
            Err(Trouble::Stale(_)) if way == Way::Counted => {
                self.uncounted.insert(fingerprint);
                let text = statement::text(&self.tables[&fingerprint], &rows);
                let name = StatementName { way: Way::Arrays, ..name };
                Ok(Ready::Rows(self.prepare(client, name, &text).await?, rows))
            }
            prepared => Ok(ready(prepared?, rows)),
        }
    }

    fn refuse_to_be_counted(&self, actions: &[Action<'_>]) -> bool {
        actions.iter().any(|action| match action {
            Action::Rows(rows) => self.uncounted.contains(&rows.shape.fingerprint()),
            Action::Keep(_) | Action::Truncate { .. } => true,
        })
    }

    /// What keeps rows until their table is whole.
    pub(super) async fn make_keep_ready<'a>(
        &mut self,
        client: &Client,
        keep: Keep<'a>,
    ) -> Attempt<Ready<'a>> {
        let statement = match &self.keep {
            Some(statement) => statement.clone(),
            None => client.prepare(meanwhile::KEEP).await.map_err(|error| trouble::of_guard(&error))?,
        };
        Ok(Ready::Keep(self.keep.insert(statement).clone(), keep))
    }

    /// A table that was looked at before.
    pub(super) fn table(&self, shape: &Shape) -> &Table {
        &self.tables[&shape.fingerprint()]
    }

    async fn prepare(&mut self, client: &Client, name: StatementName, text: &str) -> Attempt<Statement> {
        let statement = client.prepare(text).await.map_err(|error| trouble::of_rows(&error))?;
        if self.statements.len() >= KEPT_MAX {
            self.statements.clear();
        }
        self.statements.insert(name, statement.clone());
        Ok(statement)
    }

    /// Looks at the tables that were not looked at yet.
    pub(super) async fn look_at_tables(&mut self, client: &Client, steps: &[Step]) -> Result<()> {
        let shapes = distinct_shapes(steps);
        match self.look_at(client, &shapes).await {
            Err(fault) if steps.len() == 1 => Err(of_two_shapes(fault, &shapes)),
            looked => looked,
        }
    }

    /// The same for the tables of these shapes.
    pub(super) async fn look_at(&mut self, client: &Client, wanted: &[&Arc<Shape>]) -> Result<()> {
        let is_new = |shape: &&&Arc<Shape>| !self.tables.contains_key(&shape.fingerprint());
        let new = wanted.iter().filter(is_new).count();
        if new > 0 && self.tables.len() + new > KEPT_MAX {
            self.forget();
        }
        for shape in wanted {
            let fingerprint = shape.fingerprint();
            if !self.tables.contains_key(&fingerprint) {
                let table = table::inspect(client, shape).await?;
                self.locators.insert(fingerprint, table.locator.clone());
                self.tables.insert(fingerprint, table);
            }
        }
        Ok(())
    }

    /// Forgets everything: the tables may have changed.
    pub(super) fn forget(&mut self) {
        self.tables.clear();
        self.locators.clear();
        self.statements.clear();
        self.uncounted.clear();
    }
}

/// Whether the server may count what these touch: few rows, each of which is to be touched once.
fn are_few(actions: &[Action<'_>]) -> bool {
    let counts = actions.iter().map(|action| match action {
        Action::Rows(rows) if rows.exact && !rows.any_of_equal && rows.width() > 0 => Some(rows.count),
        Action::Rows(_) | Action::Keep(_) | Action::Truncate { .. } => None,
    });
    counts.sum::<Option<usize>>().is_some_and(|rows| rows <= COUNTED_MAX)
}

/// What to say where shapes of one transaction do not all fit their tables. Where one table has two of them that differ in a
/// column's type, no table takes both, and the DDL that helps the one would be taken back for the other.
pub(super) fn of_two_shapes(fault: Fault, shapes: &[impl AsRef<Shape>]) -> Fault {
    let retyped = shapes.iter().enumerate().find_map(|(at, after)| {
        shapes[..at].iter().find_map(|before| retyped(before.as_ref(), after.as_ref()))
    });
    let said = fault.code() != Code::TableDiffers || fault.remedy() == FITS_NO_TABLE;
    match retyped.filter(|_| !said) {
        None => fault,
        Some((shape, column)) => fault
            .at(format_args!(
                "one transaction writes {shape} before and after the type of its column {column} is changed, and no table \
                 takes both"
            ))
            .remedied_by(FITS_NO_TABLE),
    }
}

/// The first column that has another type in a later shape of the same table.
fn retyped<'a>(before: &'a Shape, after: &Shape) -> Option<(&'a Shape, &'a str)> {
    if (&before.schema, &before.table) != (&after.schema, &after.table) {
        return None;
    }
    let is_retyped = |was: &&Column| {
        after.columns.iter().any(|is| {
            let same =
                (&is.type_schema, &is.type_name, is.typmod) == (&was.type_schema, &was.type_name, was.typmod);
            is.name == was.name && !same
        })
    };
    before.columns.iter().find(is_retyped).map(|column| (before, &*column.name))
}

/// The shapes of all changes, each once.
pub(super) fn distinct_shapes(steps: &[Step]) -> Vec<&Arc<Shape>> {
    let mut seen = HashSet::new();
    let mut distinct = Vec::new();
    for change in steps.iter().flat_map(Step::changes) {
        distinct.extend(change.shapes().iter().filter(|shape| seen.insert(Arc::as_ptr(shape) as usize)));
    }
    distinct
}
