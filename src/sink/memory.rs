//! A target in memory, for the tests of whatever drives a sink.
//!
//! Keeps the same promises as the real one: rows and progress move together, an old epoch is
//! refused, a conflict is named with everything before it committed. A row is known by the columns of
//! its replica identity, under `FULL` by all of them (and may be there several times).

mod aside;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;

use self::aside::{Aside, Parked, locators, overtake, retry, with_parts};
use super::{
    Applied, Attended, Batch, Claim, Comparison, Conflict, ConflictKind, Inspected, Inspector, LinkStanding,
    OnRefusal, PARKED_CHANGES_MAX, Replayed, Sink, Step, Verification, Wish,
};
use crate::{
    change::{Cell, Change, Fingerprint, Mark, Meanwhile, Row, Shape, copy_text},
    fault::{Code, Fault, Result},
    plan::{Joining, parked::ParkedId},
    position::{ApplyEpoch, Sequence},
    progress::Progress,
    stamp::Micros,
    verify::{About, Answer, Found, Settled, TableName},
};

type Key = Vec<KeyCell>;
type Table = BTreeMap<Key, Vec<Row>>;

/// A key's cell, ordered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct KeyCell(Option<Vec<u8>>);

/// What outlives a sink: the tables and the progress. Clones are the same target.
#[derive(Clone, Debug, Default)]
pub struct MemoryTarget(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    tables: BTreeMap<String, Table>,
    progress: Option<Progress>,
    epoch: ApplyEpoch,
    shapes: BTreeMap<Fingerprint, Arc<Shape>>,
    conflicts: Vec<Conflict>,
    transactions: u64,
    /// Tables a backfill has begun and not ended.
    joining: BTreeMap<String, Joining>,
    aside: Aside,
    /// The number of the last transaction that was parked.
    last_parked: i64,
    /// Rows that came and went since the snapshot their table is copied under.
    meanwhile: BTreeMap<String, Vec<(Meanwhile, Row)>>,
    /// What tables were altered to.
    altered: BTreeMap<String, Arc<Shape>>,
}

impl State {
    /// Requires that the tables have the columns a step brings. One that nobody has altered has any.
    fn require_fit(&self, step: &Step) -> Result<()> {
        for shape in step.changes().flat_map(Change::shapes) {
            let Some(table) = self.altered.get(&shape.to_string()) else { continue };
            if let Some(column) = shape.columns.iter().find(|column| !table.columns.contains(column)) {
                let message = format!("table {shape} has no column {column}");
                return Err(Fault::new(Code::TableDiffers, message));
            }
        }
        Ok(())
    }
}

impl MemoryTarget {
    /// Alters a table: from now on it takes rows of these columns, or of some of them.
    pub fn alter(&self, to: &Arc<Shape>) {
        self.state().altered.insert(to.to_string(), Arc::clone(to));
    }

    /// Asks for something to be done with parked transactions.
    pub fn ask(&self, ids: &[ParkedId], wish: Wish) {
        let mut state = self.state();
        let of = |(at, _): &(&ParkedId, &mut Parked)| ids.contains(at);
        state.aside.transactions.iter_mut().filter(of).for_each(|(_, parked)| parked.asked = Some(wish));
    }

    /// The numbers of the transactions that are parked.
    pub fn parked(&self) -> Vec<ParkedId> {
        self.state().aside.transactions.keys().copied().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nobody panics while holding the target")
    }

    /// The rows of a table (`schema.table`), in the order of their keys.
    pub fn rows(&self, table: &str) -> Vec<Row> {
        self.state()
            .tables
            .get(table)
            .map_or_else(Vec::new, |table| table.values().flatten().cloned().collect())
    }

    /// What is committed.
    pub fn progress(&self) -> Option<Progress> {
        self.state().progress.clone()
    }

    /// The conflicts that stopped a batch so far.
    pub fn conflicts(&self) -> Vec<Conflict> {
        self.state().conflicts.clone()
    }

    /// How many target transactions were committed.
    pub fn transactions(&self) -> u64 {
        self.state().transactions
    }

    /// Puts a row in from outside, as another writer would.
    pub fn put(&self, shape: &Shape, row: Row) {
        let mut state = self.state();
        let table = state.tables.entry(shape.to_string()).or_default();
        table.entry(key(shape, &row)).or_default().push(row);
    }

    /// Takes a row away from outside, by an image that has its key.
    pub fn remove(&self, shape: &Shape, image: &Row) {
        let mut state = self.state();
        if let Some(table) = state.tables.get_mut(&shape.to_string()) {
            table.remove(&key(shape, image));
        }
    }
}

/// Applies a stream to a [`MemoryTarget`].
#[derive(Debug)]
pub struct MemorySink {
    target: MemoryTarget,
    on_refusal: OnRefusal,
    epoch: Option<ApplyEpoch>,
    /// The tables as they were before the open transaction touched them.
    open: Option<Before>,
    /// The open transaction, where it is kept aside, and what refused it.
    keeping: Option<(Parked, Option<Fault>)>,
    /// The place before a transaction larger than memory that is to be parked, and what refused it.
    condemned: Option<(Sequence, Option<Fault>)>,
}

/// What to put back.
#[derive(Debug, Default)]
struct Before {
    /// The rows under a key before a transaction touched it, latest last.
    rows: Vec<(String, Key, Vec<Row>)>,
    joining: BTreeMap<String, Joining>,
    aside: Aside,
    meanwhile: BTreeMap<String, Vec<(Meanwhile, Row)>>,
}

impl Before {
    fn of(state: &State) -> Self {
        Self {
            rows: Vec::new(),
            joining: state.joining.clone(),
            aside: state.aside.clone(),
            meanwhile: state.meanwhile.clone(),
        }
    }
}

impl MemorySink {
    /// A sink that holds nothing yet.
    pub fn new(target: MemoryTarget, on_refusal: OnRefusal) -> Self {
        Self { target, on_refusal, epoch: None, open: None, keeping: None, condemned: None }
    }

    fn roll_back(&mut self) {
        self.keeping = None;
        if let Some(before) = self.open.take() {
            undo(&mut self.target.state(), before);
        }
    }

    fn try_apply(&mut self, batch: &Batch) -> Result<Applied> {
        let target = self.target.clone();
        let mut state = target.state();
        let at = state.progress.as_ref().map_or(Sequence(0), |progress| progress.through.sequence);
        let same_life = state.progress.as_ref().is_none_or(|it| it.incarnation == batch.incarnation);
        if Some(state.epoch) != self.epoch || at != batch.after || !same_life {
            let message = "a newer apply epoch holds the target, or its progress is elsewhere";
            return Err(Fault::new(Code::Superseded, message));
        }
        for shape in &batch.shapes {
            state.shapes.insert(shape.fingerprint(), shape.clone());
        }
        let count = batch.steps.len();
        let mut applied = Applied::default();
        for (index, step) in batch.steps.iter().enumerate() {
            if step.frame.first != (self.open.is_none() && self.keeping.is_none()) {
                return Err(Fault::new(Code::Internal, "a slice does not follow the one before"));
            }
            state.require_fit(step)?;
            if step.frame.first
                && let Some((_, refused)) = self.condemned.take_if(|(after, _)| *after == batch.after)
            {
                self.keeping = Some((Parked::default(), refused));
            }
            if let Some((kept, _)) = &mut self.keeping {
                kept.changes.extend(with_parts(step));
                applied.aside.push(step.frame.head.position);
            } else if let Err(refused) = self.apply_step(&mut state, step) {
                let refused = refused?;
                let waits_from_its_first = step.frame.first && refused.is_none();
                if !step.frame.is_whole() && !waits_from_its_first {
                    self.condemned = Some((batch.after, refused));
                    return Err(Fault::new(Code::Parking, "the transaction is larger than memory"));
                }
                self.keeping = Some((Parked::of(step), refused));
                applied.aside.push(step.frame.head.position);
            }
            if step.frame.last {
                self.open = None;
                if let Some((mut kept, refused)) = self.keeping.take() {
                    if refused.is_none() {
                        kept.asked = state.aside.wish_ahead_of(&kept);
                    }
                    applied.refused.extend(refused);
                    if state.aside.changes() + kept.changes.len() as u64 > PARKED_CHANGES_MAX {
                        return Err(Fault::new(Code::ParkedFull, "no more changes may be parked"));
                    }
                    state.last_parked += 1;
                    let id = ParkedId(state.last_parked);
                    state.aside.add(id, kept);
                }
                let last = index + 1 == count;
                commit(&mut state, batch, if last { batch.through } else { step.through }, last);
            }
        }
        if count == 0 {
            commit(&mut state, batch, batch.through, true);
        }
        let at = state.progress.as_ref().map_or(Sequence(0), |progress| progress.through.sequence);
        let (joining, parked) = (state.joining.len(), state.aside.transactions.len());
        Ok(Applied { flushed: at, joining, parked, ..applied })
    }

    /// Applies a step; where it is to be parked, leaves nothing of it and says so, with what refuses it where something
    /// does.
    fn apply_step(
        &mut self,
        state: &mut State,
        step: &Step,
    ) -> std::result::Result<(), Result<Option<Fault>>> {
        let copied = step.is_copy();
        let before = self.open.get_or_insert_with(|| Before::of(state));
        let waits = !copied && state.aside.rows.ahead_of(step.changes(), &locators(step)).is_some();
        let refused = if waits { Some(None) } else { apply_changes(state, before, step).err().map(Some) };
        let Some(refused) = refused else { return Ok(()) };
        let conflict = match refused {
            Some(conflict) if copied || self.on_refusal == OnRefusal::Halt => {
                return Err(Err(conflict.into_fault()));
            }
            conflict => conflict,
        };
        if let Some(before) = self.open.take() {
            undo(state, before);
        }
        Err(Ok(conflict.map(Conflict::into_fault)))
    }
}

fn apply_changes(state: &mut State, before: &mut Before, step: &Step) -> std::result::Result<(), Conflict> {
    for ordered in &step.frame.changes {
        if let Err(kind) = apply(state, before, &ordered.change) {
            let position = step.frame.head.position;
            let conflict = Conflict::of(kind, &ordered.change, position, ordered.ordinal);
            state.conflicts.push(conflict.clone());
            return Err(conflict);
        }
    }
    Ok(())
}

fn commit(state: &mut State, batch: &Batch, through: crate::progress::Cursor, last: bool) {
    let former = state.progress.take();
    let heartbeat = batch.heartbeat.filter(|_| last);
    state.progress = Some(Progress {
        incarnation: batch.incarnation,
        through,
        heartbeat: heartbeat.or_else(|| former.as_ref().and_then(|it| it.heartbeat)),
        grouped_through: former.map_or(Sequence(0), |it| it.grouped_through),
    });
    state.transactions += 1;
}

fn undo(state: &mut State, before: Before) {
    state.joining = before.joining;
    state.aside = before.aside;
    state.meanwhile = before.meanwhile;
    for (table, key, rows) in before.rows.into_iter().rev() {
        let table = state.tables.entry(table).or_default();
        if rows.is_empty() {
            table.remove(&key);
        } else {
            table.insert(key, rows);
        }
    }
}

fn key(shape: &Shape, row: &Row) -> Key {
    let mut columns: Vec<usize> = shape.key_columns().collect();
    if columns.is_empty() {
        columns = (0..shape.columns.len()).collect();
    }
    let cell = |at: usize| match &row.0[at] {
        Cell::Value(text) => KeyCell(Some(text.to_vec())),
        _ => KeyCell(None),
    };
    columns.into_iter().map(cell).collect()
}

fn apply(state: &mut State, before: &mut Before, change: &Change) -> std::result::Result<(), ConflictKind> {
    let name = change.shape().to_string();
    let mut touch = |state: &mut State, key: &Key| {
        let rows = state.tables.entry(name.clone()).or_default().get(key).cloned().unwrap_or_default();
        before.rows.push((name.clone(), key.clone(), rows));
    };
    let joining = state.joining.get(&name).copied();
    if joining == Some(Joining::Waiting) && !change.is_copy() {
        return Ok(());
    }
    let copying = matches!(joining, Some(Joining::Copying | Joining::Stale));
    if joining == Some(Joining::Snapshot) && !matches!(change, Change::Truncate { .. }) && !change.is_copy() {
        let kept = state.meanwhile.entry(name).or_default();
        for row in came_and_went(change) {
            kept.push(row);
        }
        return Ok(());
    }
    match change {
        Change::Watermark { shapes, mark } => {
            for shape in shapes {
                let name = shape.to_string();
                if *mark == Mark::Settled && state.joining.get(&name) != Some(&Joining::Stale) {
                    continue;
                }
                let kept = state.meanwhile.remove(&name).unwrap_or_default();
                match mark {
                    Mark::Settled => drop(state.joining.remove(&name)),
                    Mark::Done => {
                        make_up(state, before, shape, kept)?;
                        state.joining.remove(&name);
                    }
                    Mark::Snapshot => {
                        empty(state, before, &name);
                        state.joining.insert(name, Joining::Snapshot);
                    }
                    Mark::Wait => drop(state.joining.insert(name, Joining::Waiting)),
                    Mark::Stale => drop(state.joining.insert(name, Joining::Stale)),
                    Mark::Begin => {
                        empty(state, before, &name);
                        state.joining.insert(name, Joining::Copying);
                    }
                }
            }
            overtake(state, change);
            Ok(())
        }
        Change::Chunk { text, meanwhile: Some(meanwhile), .. } => {
            let rows = copy_text::lines(text).map(|line| Row(copy_text::fields(&line).collect()));
            state.meanwhile.entry(name).or_default().extend(rows.map(|row| (*meanwhile, row)));
            Ok(())
        }
        Change::Chunk { shape, text, keys, .. } => {
            let key_of = |line: Bytes| key(shape, &Row(copy_text::fields(&line).collect()));
            if let Some(keys) = keys {
                let mended: BTreeSet<Key> = copy_text::lines(keys).map(key_of).collect();
                let table = state.tables.get(&name);
                let stands = |key: &Key| table.is_some_and(|table| table.contains_key(key));
                if copy_text::lines(text).map(key_of).any(|key| !mended.contains(&key) && stands(&key)) {
                    // A row that is not to be mended stands in the way: nothing is.
                    return Ok(());
                }
            }
            for key in keys.iter().flat_map(copy_text::lines).map(key_of) {
                touch(state, &key);
                take(state, shape, &key);
            }
            for line in copy_text::lines(text) {
                let row = Row(copy_text::fields(&line).collect());
                let key = key(shape, &row);
                touch(state, &key);
                if is_unique(shape) && joining != Some(Joining::Snapshot) {
                    take(state, shape, &key);
                }
                put(state, shape, key, row).map_err(|()| ConflictKind::InsertExists)?;
            }
            if joining != Some(Joining::Snapshot) {
                overtake(state, change);
            }
            Ok(())
        }
        Change::Insert { shape, new } => {
            let key = key(shape, new);
            touch(state, &key);
            if copying {
                take(state, shape, &key);
            }
            put(state, shape, key, new.clone()).map_err(|()| ConflictKind::InsertExists)
        }
        Change::Delete { shape, old } => {
            let key = key(shape, old);
            touch(state, &key);
            let taken = take(state, shape, &key).is_some();
            if taken || copying { Ok(()) } else { Err(ConflictKind::DeleteMissing) }
        }
        Change::Update { shape, old, new } => {
            let old_key = key(shape, old.as_ref().unwrap_or(new));
            touch(state, &old_key);
            let former = match take(state, shape, &old_key) {
                Some(former) => former,
                // It is still to come, unless it moves to where everything has come already.
                None if copying && !(key(shape, new) != old_key && new.0.iter().all(is_given)) => {
                    return Ok(());
                }
                None if copying => new.clone(),
                None => return Err(ConflictKind::UpdateMissing),
            };
            let given = |(new, former): (&Cell, &Cell)| match new {
                Cell::Unchanged | Cell::Withheld => former.clone(),
                new => new.clone(),
            };
            let row = Row(new.0.iter().zip(&*former.0).map(given).collect());
            let new_key = key(shape, &row);
            touch(state, &new_key);
            if copying {
                take(state, shape, &new_key);
            }
            put(state, shape, new_key, row).map_err(|()| ConflictKind::UpdateExists)
        }
        Change::Truncate { shapes, .. } => {
            shapes.iter().for_each(|shape| empty(state, before, &shape.to_string()));
            Ok(())
        }
    }
}

/// What a change brings and takes away, where it says all its row holds.
fn came_and_went(change: &Change) -> Vec<(Meanwhile, Row)> {
    let (gone, came) = match change {
        Change::Insert { new, .. } => (None, Some(new.clone())),
        Change::Delete { old, .. } => (Some(old.clone()), None),
        Change::Update { old: Some(old), new, .. } => {
            let cells = new.0.iter().zip(&old.0).map(|(new, old)| if is_given(new) { new } else { old });
            (Some(old.clone()), Some(Row(cells.cloned().collect())))
        }
        _ => (None, None),
    };
    let rows = [(Meanwhile::Gone, gone), (Meanwhile::Came, came)];
    let rows: Vec<_> = rows.into_iter().filter_map(|(what, row)| Some((what, row?))).collect();
    if rows.iter().all(|(_, row)| row.0.iter().all(is_given)) { rows } else { Vec::new() }
}

/// Takes away and puts in what went and came while a table was copied under one snapshot.
fn make_up(
    state: &mut State,
    before: &mut Before,
    shape: &Shape,
    kept: Vec<(Meanwhile, Row)>,
) -> std::result::Result<(), ConflictKind> {
    // What came and went again was never among the rows that were copied.
    let mut net: Vec<(Row, i64)> = Vec::new();
    for (what, row) in kept {
        let by = if what == Meanwhile::Came { 1 } else { -1 };
        match net.iter_mut().find(|(other, _)| *other == row) {
            Some((_, count)) => *count += by,
            None => net.push((row, by)),
        }
    }
    net.sort_by_key(|(_, count)| *count);
    for (row, count) in net {
        let key = key(shape, &row);
        let rows = state.tables.entry(shape.to_string()).or_default().get(&key).cloned().unwrap_or_default();
        before.rows.push((shape.to_string(), key.clone(), rows));
        for _ in 0..count.unsigned_abs() {
            if count < 0 {
                let table = state.tables.entry(shape.to_string()).or_default();
                let rows = table.get_mut(&key).filter(|rows| rows.contains(&row));
                let rows = rows.ok_or(ConflictKind::DeleteMissing)?;
                let at = rows.iter().position(|other| *other == row).expect("it is among them");
                rows.remove(at);
                if rows.is_empty() {
                    table.remove(&key);
                }
            } else {
                put(state, shape, key.clone(), row.clone()).map_err(|()| ConflictKind::InsertExists)?;
            }
        }
    }
    Ok(())
}

fn is_given(cell: &Cell) -> bool {
    !matches!(cell, Cell::Unchanged | Cell::Withheld)
}

fn is_unique(shape: &Shape) -> bool {
    use crate::change::Identity::{Default, Index};
    matches!(shape.identity, Default | Index) && shape.key_columns().next().is_some()
}

fn empty(state: &mut State, before: &mut Before, table: &str) {
    let rows = state.tables.remove(table).unwrap_or_default();
    before.rows.extend(rows.into_iter().map(|(key, rows)| (table.to_owned(), key, rows)));
}

fn put(state: &mut State, shape: &Shape, key: Key, row: Row) -> std::result::Result<(), ()> {
    let unique = is_unique(shape);
    let rows = state.tables.entry(shape.to_string()).or_default().entry(key).or_default();
    if unique && !rows.is_empty() {
        return Err(());
    }
    rows.push(row);
    Ok(())
}

fn take(state: &mut State, shape: &Shape, key: &Key) -> Option<Row> {
    let table = state.tables.entry(shape.to_string()).or_default();
    let rows = table.get_mut(key)?;
    let row = rows.pop();
    if rows.is_empty() {
        table.remove(key);
    }
    row
}

impl Sink for MemorySink {
    async fn claim(&mut self) -> Result<Claim> {
        self.roll_back();
        let mut state = self.target.state();
        state.epoch.0 += 1;
        self.epoch = Some(state.epoch);
        Ok(Claim {
            epoch: state.epoch,
            progress: state.progress.clone(),
            shapes: state.shapes.values().cloned().collect(),
            joining: state.joining.len(),
            recovers: false,
            parked: state.aside.transactions.len(),
        })
    }

    async fn apply(&mut self, batch: &Batch) -> Result<Applied> {
        let applied = self.try_apply(batch);
        if applied.is_err() {
            self.roll_back();
        }
        applied
    }

    async fn flush(&mut self) -> Result<Sequence> {
        let state = self.target.state();
        Ok(state.progress.as_ref().map_or(Sequence(0), |progress| progress.through.sequence))
    }

    async fn abandon(&mut self) -> Result<()> {
        self.roll_back();
        self.condemned = None;
        Ok(())
    }

    async fn attend(&mut self) -> Result<Attended> {
        let target = self.target.clone();
        let mut state = target.state();
        let mut replayed = Vec::new();
        let asked: Vec<_> = state.aside.transactions.iter().filter(|(_, it)| it.asked.is_some()).collect();
        let asked: Vec<(ParkedId, Parked)> = asked.into_iter().map(|(id, it)| (*id, it.clone())).collect();
        let idle = self.open.is_none() && self.keeping.is_none();
        for (id, parked) in asked.into_iter().filter(|_| idle) {
            if parked.asked == Some(Wish::Discard) || retry(&mut state, id, &parked) {
                state.aside.remove(id);
                if parked.asked == Some(Wish::Retry) {
                    replayed.extend(parked.changes.iter().map(|(change, _)| Replayed {
                        shape: Arc::clone(change.shape()),
                        operation: change.operation(),
                        rows: 1,
                    }));
                }
            } else if let Some(kept) = state.aside.transactions.get_mut(&id) {
                kept.asked = None;
            }
        }
        Ok(Attended { parked: state.aside.transactions.len(), more: false, replayed })
    }
}

impl Drop for MemorySink {
    fn drop(&mut self) {
        self.roll_back();
    }
}

/// Looks into nothing: nobody asks a target in memory for a verification.
pub struct MemoryInspector;

impl Inspector for MemoryInspector {
    async fn standing(&mut self) -> Result<LinkStanding> {
        Ok(LinkStanding::default())
    }

    async fn take_up(&mut self) -> Result<Option<Verification>> {
        Ok(None)
    }

    async fn begin(&mut self, _id: &str, _carried: &[TableName]) -> Result<Vec<(TableName, String)>> {
        Ok(Vec::new())
    }

    async fn hold(&mut self, _table: &TableName) -> Result<()> {
        Ok(())
    }

    async fn look(&mut self, _about: &About, _answer: &Answer) -> Result<Found> {
        Ok(Found::Refused("a target in memory has no tables".to_owned()))
    }

    async fn keep(&mut self, _: &str, _: &Inspected, _: &Settled, _: &Comparison) -> Result<()> {
        Ok(())
    }

    async fn mended(&mut self, _: &str, _: &Inspected, _: &[crate::verify::Key]) -> Result<()> {
        Ok(())
    }

    async fn is_wanted(&mut self, _id: &str) -> Result<bool> {
        Ok(false)
    }

    async fn goes_on(&mut self, _id: &str) -> Result<()> {
        Ok(())
    }

    fn let_go(&mut self) {}

    async fn wait_for(&mut self, _id: &str, _why: Option<&str>) -> Result<bool> {
        Ok(false)
    }

    async fn last_clean(&mut self) -> Result<Option<Micros>> {
        Ok(None)
    }

    async fn end(&mut self, _id: &str) -> Result<()> {
        Ok(())
    }
}
