//! What changes in tables that are being read, kept aside between two watermarks: laid over the rows of a backfill, told of
//! as unsure in an answer.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};

use super::copy::Watermark;
use crate::{
    change::{Cell, Change, Fingerprint, Meanwhile, Row, Shape, copy_text},
    plan::table_key,
    source::{Mend, ReadFor, Rows, Snapshot},
    verify::{self, Answer, Found},
};

/// Keys an answer names as changed: it is one record.
const UNSURE_MAX: usize = 2_000;
/// Changes kept aside between two watermarks, and bytes. With more the chunk is read again, smaller.
const ASIDE_CHANGES: usize = 20_000;
const ASIDE_BYTES: usize = 8 << 20;
/// Rows that are put together anew travel in texts of about this size.
const TEXT_BYTES: usize = 256 << 10;
/// Transactions that are remembered by their number: so many may commit between the moment a server writes a commit
/// and the moment it shows it.
const RECENT: usize = 65_536;

/// What was read does not show a transaction that stands before its low watermark.
const UNSHOWN: &str = "a transaction that had committed was not shown yet";

/// The columns, or what tells rows apart, are others than those that were read.
const RESHAPED: &str = "the table's shape changed meanwhile";
/// Its rows are read again from the first on, and these with them.
const TO_BEGIN: &str = "the table is to be begun anew";
/// What was read is gone, and what came after it may be there.
const TRUNCATED: &str = "the table was truncated meanwhile";

/// What capture knows of tables that are being read.
pub(super) struct Aside {
    /// The names of those that are being filled.
    filling: HashSet<String>,
    /// Those of them that are to be begun anew, and have not been: nothing that was copied before counts.
    to_begin: HashSet<String>,
    /// The transactions that came, latest last, by number: any table may be read next.
    recent: VecDeque<u32>,
    /// The table that is read now, from its low watermark on: for a backfill, or for an answer.
    window: Option<Window>,
    /// The table that is copied under one snapshot, once its first rows stand in the log.
    under_snapshot: Option<UnderSnapshot>,
}

/// What happens to a table that is copied under one snapshot. Its changes are the sink's to keep.
struct UnderSnapshot {
    table: String,
    shape: Fingerprint,
    spoiled: Option<&'static str>,
}

/// What happened to a table since the low watermark.
pub(super) struct Window {
    portion: u64,
    table: String,
    /// Each with its transaction's number.
    changes: Vec<(u32, Change)>,
    bytes: usize,
    /// Transactions before it, at its beginning.
    before: Vec<u32>,
    spoiled: Option<&'static str>,
}

impl Aside {
    pub(super) fn new(filling: Vec<String>) -> Self {
        Self {
            filling: filling.into_iter().collect(),
            to_begin: HashSet::new(),
            recent: VecDeque::new(),
            window: None,
            under_snapshot: None,
        }
    }

    /// Whether no table is being read: asked with every change.
    pub(super) fn is_idle(&self) -> bool {
        self.filling.is_empty() && self.window.is_none()
    }

    /// A transaction has come, whatever it is of.
    pub(super) fn note(&mut self, xid: u32) {
        if self.recent.len() >= RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(xid);
    }

    /// These tables are filled from here on.
    pub(super) fn fill(&mut self, shapes: &[Arc<Shape>]) {
        for shape in shapes {
            let table = table_key(shape);
            self.to_begin.remove(&table);
            self.filling.insert(table);
        }
    }

    /// A table's last rows are in the log.
    pub(super) fn filled(&mut self, shape: &Shape) {
        self.filling.remove(&table_key(shape));
    }

    /// A low watermark has come.
    pub(super) fn open(&mut self, watermark: &Watermark) {
        let Some(table) = watermark.low() else { return };
        self.window = Some(Window {
            portion: watermark.portion,
            table: table.to_owned(),
            changes: Vec::new(),
            bytes: 0,
            before: self.recent.iter().copied().collect(),
            spoiled: None,
        });
    }

    /// Takes note of a change. Gives the table's name where it must be begun anew: a row took another key and does not
    /// say all it holds, so what was copied before may miss it. Gives it once until the table is begun: each time the stream
    /// waits until that is kept, and a statement may move a million rows.
    pub(super) fn change(&mut self, xid: u32, change: &mut Change) -> Option<String> {
        let tables: Vec<String> = change.shapes().iter().map(|shape| table_key(shape)).collect();
        let filled = tables.iter().find(|table| self.filling.contains(*table));
        let read = self.window.as_ref().is_some_and(|window| tables.contains(&window.table));
        if filled.is_none() && !read {
            return None;
        }
        if let Change::Update { old: Some(old), new, .. } = change {
            complete(new, old);
        }
        if let Some(copied) = self.under_snapshot.as_mut().filter(|copied| tables.contains(&copied.table)) {
            copied.meet(change);
        }
        if let Some(window) = self.window.as_mut().filter(|window| tables.contains(&window.table)) {
            window.take(xid, change);
        }
        let Change::Update { shape, old: Some(old), new } = change else { return None };
        let moves = shape.key_columns().any(|at| {
            let (old, new) = (&old.0[at], &new.0[at]);
            *old != Cell::Unchanged && *new != Cell::Unchanged && old != new
        });
        let table = filled.filter(|_| moves && new.0.contains(&Cell::Unchanged))?;
        self.to_begin.insert(table.clone()).then(|| table.clone())
    }

    /// A high watermark has come: nothing that changes behind it is asked for, whatever became of what was read. Gives the
    /// window it closes. That of a portion before it, which nothing came of, goes as well; that of a later one stays: of a
    /// connection that broke, a high watermark may come late.
    pub(super) fn close(&mut self, watermark: &Watermark) -> Option<Window> {
        let closed = self.window.take_if(|window| window.portion <= watermark.portion);
        closed.filter(|window| window.portion == watermark.portion)
    }

    /// The window that a high watermark closes, where what was read in it can be brought up to its end.
    fn taken(
        &mut self,
        watermark: &Watermark,
        shape: &Shape,
        seen: &Snapshot,
    ) -> std::result::Result<Window, &'static str> {
        let window = self.close(watermark).ok_or("its low watermark did not come")?;
        if window.before.iter().any(|xid| !seen.sees(*xid)) {
            return Err(UNSHOWN);
        }
        if let Some(why) = window.spoiled {
            return Err(why);
        }
        if window.changes.iter().any(|(_, change)| change.shape().fingerprint() != shape.fingerprint()) {
            return Err(RESHAPED);
        }
        Ok(window)
    }

    /// The rows that mend another region's, as they are at the high watermark.
    pub(super) fn mending(
        &mut self,
        watermark: &Watermark,
        read: &ReadFor,
        mend: &Mend,
    ) -> std::result::Result<Change, &'static str> {
        let changes = self.taken(watermark, &read.shape, &read.seen)?.changes;
        let takes_a_key = |change: &Change| matches!(change, Change::Update { old: Some(_), new, .. } if new.0.contains(&Cell::Unchanged));
        if changes.iter().any(|(_, change)| takes_a_key(change)) {
            return Err("a row took another key meanwhile, and does not say all it holds");
        }
        let fates = fates(&read.key, changes)?;
        let asked: HashSet<Key> = mend.keys.iter().map(bytes_of).collect();
        let goes = fates.iter().any(|(key, fate)| matches!(fate, Fate::Gone) && asked.contains(key));
        let comes = fates.iter().any(|(key, fate)| matches!(fate, Fate::Is(_)) && !asked.contains(key));
        // The key may only be written otherwise (`bob` as `Bob`, which are the same row's to a citext): taken away by the
        // one, the row that stands under the other would go.
        if goes && comes {
            return Err("a row that is to be mended went meanwhile, and another came that may be the same");
        }
        let mut text = BytesMut::from(&overlaid(&read.key, &fates, &mend.text)[..]);
        let width = read.shape.columns.len();
        let mut keys = BytesMut::new();
        let read_there: HashSet<Key> = copy_text::lines(&mend.text)
            .filter_map(|line| key_of(&Row(copy_text::fields(&line).collect()), &read.key))
            .collect();
        for key in &mend.keys {
            let mut cells = vec![Cell::Null; width];
            let key = bytes_of(key);
            for (at, value) in read.key.iter().zip(&key) {
                cells[*at] = Cell::Value(value.clone());
            }
            copy_text::put_row(&mut keys, &cells);
            // One that came since it was read.
            if let Some(Fate::Is(cells)) = fates.get(&key).filter(|_| !read_there.contains(&key)) {
                if cells.contains(&Cell::Unchanged) {
                    return Err("a row that is to be mended took this key meanwhile");
                }
                copy_text::put_row(&mut text, cells);
            }
        }
        let text = text.freeze();
        let rows = u32::try_from(memchr::memchr_iter(b'\n', &text).count()).expect("a few hundred keys");
        Ok(Change::Chunk {
            shape: read.shape.clone(),
            rows,
            again: false,
            keys: Some(keys.freeze()),
            replace: Box::default(),
            meanwhile: None,
            text,
        })
    }

    /// Says in an answer which of the keys it tells of changed while it was read. Of sums and of whole ranges nothing is
    /// said: where they differ, the keys are asked for. What does not show all that stands before it is no answer.
    pub(super) fn note_unsure(
        &mut self,
        watermark: &Watermark,
        read: &ReadFor,
        answer: &mut Answer,
    ) -> std::result::Result<(), &'static str> {
        let window = self.taken(watermark, &read.shape, &read.seen);
        if window.as_ref().is_err_and(|why| *why == UNSHOWN) {
            return Err(UNSHOWN);
        }
        let by_key = !read.key.is_empty();
        if by_key && !matches!(answer.found, Found::Keys(_)) {
            return Ok(());
        }
        let unseen = window.map(|window| {
            window.changes.into_iter().filter(|(xid, _)| !read.seen.sees(*xid)).collect::<Vec<_>>()
        });
        let text = |key: &Key| key.iter().map(|value| String::from_utf8_lossy(value).into_owned()).collect();
        match unseen {
            Ok(unseen) if unseen.is_empty() => (),
            Ok(unseen) if by_key && unseen.len() <= UNSURE_MAX => match fates(&read.key, unseen) {
                Ok(fates) => answer.unsure = fates.keys().map(text).collect(),
                Err(_) => answer.all_unsure = true,
            },
            _ => answer.all_unsure = true,
        }
        Ok(())
    }

    /// What is to be appended for rows that were read, where the window lets them be taken.
    pub(super) fn lay_over(
        &mut self,
        watermark: &Watermark,
        rows: Rows,
    ) -> std::result::Result<Vec<Change>, &'static str> {
        if rows.key.is_empty() {
            return self.under_snapshot(watermark, &rows);
        }
        let window = self.taken(watermark, &rows.shape, &rows.seen)?;
        if self.to_begin.contains(&window.table) {
            return Err(TO_BEGIN);
        }
        let fates = fates(&rows.key, window.changes)?;
        let texts = rows.texts.iter().map(|text| match fates.is_empty() {
            true => text.clone(),
            false => overlaid(&rows.key, &fates, text),
        });
        Ok(texts.filter(|text| !text.is_empty()).map(|text| chunk(&rows, text)).collect())
    }
}

impl Aside {
    /// Rows of a table that is copied under one snapshot: as they were then. The sink keeps what changes; but what came
    /// between the snapshot and its mark, with the first rows, stands in the log already, and comes a second time.
    ///
    /// What comes behind that mark the snapshot does not see: it was taken before the mark's message was written.
    fn under_snapshot(
        &mut self,
        watermark: &Watermark,
        rows: &Rows,
    ) -> std::result::Result<Vec<Change>, &'static str> {
        let mut changes: Vec<Change> = rows.texts.iter().map(|text| chunk(rows, text.clone())).collect();
        if rows.first {
            let window = self.taken(watermark, &rows.shape, &rows.seen)?;
            let unseen = window.changes.iter().filter(|(xid, _)| !rows.seen.sees(*xid));
            changes.extend(came_and_went(rows, unseen.map(|(_, change)| change))?);
            let (table, shape) = (table_key(&rows.shape), rows.shape.fingerprint());
            self.under_snapshot = Some(UnderSnapshot { table, shape, spoiled: None });
            self.fill(std::slice::from_ref(&rows.shape));
        }
        let shape = rows.shape.fingerprint();
        match &self.under_snapshot {
            Some(UnderSnapshot { spoiled: Some(why), .. }) => return Err(why),
            Some(copied) if copied.table == table_key(&rows.shape) && copied.shape == shape => (),
            _ => return Err(RESHAPED),
        }
        if rows.done {
            self.under_snapshot = None;
        }
        Ok(changes)
    }
}

impl UnderSnapshot {
    fn meet(&mut self, change: &Change) {
        if let Change::Truncate { .. } = change {
            self.spoiled.get_or_insert(TRUNCATED);
        } else if change.shape().fingerprint() != self.shape {
            self.spoiled.get_or_insert(RESHAPED);
        }
    }
}

impl Window {
    fn take(&mut self, xid: u32, change: &Change) {
        if self.spoiled.is_some() {
            return;
        }
        self.bytes += change.weight();
        if let Change::Truncate { .. } = change {
            self.spoiled = Some(TRUNCATED);
        } else if self.changes.len() >= ASIDE_CHANGES || self.bytes > ASIDE_BYTES {
            self.spoiled = Some("more changed meanwhile than is kept aside");
        }
        match self.spoiled {
            Some(_) => self.changes = Vec::new(),
            None => self.changes.push((xid, change.clone())),
        }
    }
}

/// Gives a row the values it left as they were, where the old image shows them (replica identity FULL): one that
/// takes another key is then whole where its old self never came.
fn complete(new: &mut Row, old: &Row) {
    for (new, old) in new.0.iter_mut().zip(&old.0) {
        if *new == Cell::Unchanged {
            new.clone_from(old);
        }
    }
}

fn chunk(rows: &Rows, text: Bytes) -> Change {
    let lines = memchr::memchr_iter(b'\n', &text).count();
    Change::Chunk {
        shape: rows.shape.clone(),
        rows: u32::try_from(lines).expect("a text of a chunk is some hundred kilobytes"),
        again: rows.again,
        keys: None,
        replace: if rows.replace { rows.key.clone() } else { Box::default() },
        meanwhile: None,
        text,
    }
}

/// The rows that changes brought and took away, of a table whose rows nothing tells apart.
fn came_and_went<'a>(
    rows: &Rows,
    changes: impl Iterator<Item = &'a Change>,
) -> std::result::Result<Vec<Change>, &'static str> {
    const PARTIAL: &str = "a change does not say all its row holds";
    let (mut came, mut gone) = (Vec::new(), Vec::new());
    for change in changes {
        match change {
            Change::Insert { new, .. } => came.push(new),
            Change::Delete { old, .. } => gone.push(old),
            Change::Update { old: Some(old), new, .. } => {
                gone.push(old);
                came.push(new);
            }
            _ => return Err(PARTIAL),
        }
    }
    let mut chunks = Vec::new();
    for (meanwhile, those) in [(Meanwhile::Came, came), (Meanwhile::Gone, gone)] {
        let mut text = BytesMut::new();
        for (at, row) in those.iter().enumerate() {
            if !row.0.iter().all(|cell| matches!(cell, Cell::Value(_) | Cell::Null)) {
                return Err(PARTIAL);
            }
            copy_text::put_row(&mut text, &*row.0);
            if text.len() > TEXT_BYTES || at + 1 == those.len() {
                let mut change = chunk(rows, text.split().freeze());
                if let Change::Chunk { meanwhile: is, .. } = &mut change {
                    *is = Some(meanwhile);
                }
                chunks.push(change);
            }
        }
    }
    Ok(chunks)
}

/// What became of a row.
enum Fate {
    Gone,
    /// Its cells, as far as they were given.
    Is(Vec<Cell>),
}

type Key = Vec<Bytes>;

fn bytes_of(key: &verify::Key) -> Key {
    key.iter().map(|value| Bytes::copy_from_slice(value.as_bytes())).collect()
}

fn key_of(row: &Row, key: &[usize]) -> Option<Key> {
    let value = |&at: &usize| match &row.0[at] {
        Cell::Value(text) => Some(text.clone()),
        _ => None,
    };
    key.iter().map(value).collect()
}

/// What became of each row that was changed.
fn fates(
    key: &[usize],
    changes: Vec<(u32, Change)>,
) -> std::result::Result<HashMap<Key, Fate>, &'static str> {
    const NAMELESS: &str = "a change does not name its row by the key that is read along";
    let mut fates: HashMap<Key, Fate> = HashMap::new();
    for (_, change) in changes {
        match &change {
            Change::Insert { new, .. } => {
                fates.insert(key_of(new, key).ok_or(NAMELESS)?, Fate::Is(new.0.to_vec()));
            }
            Change::Delete { old, .. } => {
                fates.insert(key_of(old, key).ok_or(NAMELESS)?, Fate::Gone);
            }
            Change::Update { old, new, .. } => {
                let after = key_of(new, key);
                let before = old.as_ref().and_then(|old| key_of(old, key)).or_else(|| after.clone());
                let before = before.ok_or(NAMELESS)?;
                let after = after.unwrap_or_else(|| before.clone());
                let former =
                    if before == after { fates.remove(&before) } else { fates.insert(before, Fate::Gone) };
                let mut cells = new.0.to_vec();
                if let Some(Fate::Is(former)) = former {
                    for (cell, former) in cells.iter_mut().zip(former) {
                        if *cell == Cell::Unchanged {
                            *cell = former;
                        }
                    }
                }
                fates.insert(after, Fate::Is(cells));
            }
            Change::Truncate { .. } | Change::Chunk { .. } | Change::Watermark { .. } => {
                return Err(NAMELESS);
            }
        }
    }
    Ok(fates)
}

/// The rows of a text with what became of them.
fn overlaid(key: &[usize], fates: &HashMap<Key, Fate>, text: &Bytes) -> Bytes {
    let mut out = BytesMut::with_capacity(text.len());
    for line in copy_text::lines(text) {
        let row = Row(copy_text::fields(&line).collect());
        match key_of(&row, key).and_then(|key| fates.get(&key)) {
            None => {
                out.extend_from_slice(&line);
                out.extend_from_slice(b"\n");
            }
            Some(Fate::Gone) => (),
            Some(Fate::Is(cells)) => {
                let over = cells.iter().zip(&row.0);
                let over = over.map(|(now, read)| if *now == Cell::Unchanged { read } else { now });
                copy_text::put_row(&mut out, over);
            }
        }
    }
    out.freeze()
}

#[cfg(test)]
mod tests;
