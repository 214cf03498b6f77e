//! One table's verification: what to ask next, and what follows from an answer.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    mem,
    time::Duration,
};

use super::{About, Answer, Difference, Finding, Found, Key, RowHash, Sum, TableName};

/// Keys in one question: each is a look-up on both sides.
pub const KEYS_MAX: usize = 200;
/// Rows of one table that differ and are looked at: with more it is another table, unless they are put right as they are
/// found.
pub const FINDINGS_MAX: usize = 10_000;
/// How often a key that changed while it was read is asked for again: it is read within some milliseconds, and one
/// that changes a hundred times a second stands still for most questions.
const TRIES_MAX: u32 = 50;
/// A table without a key is read as a whole each time: no less often while that has taken less than this,
const KEYLESS_READING_MAX: Duration = Duration::from_secs(10);
/// and so often where one time takes longer.
const KEYLESS_TRIES: u32 = 3;

/// How a table is compared.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Rows in a range, about: so many are looked at one by one where their sums differ.
    pub range_rows: u32,
    /// Ranges in a question.
    pub ranges: u32,
    /// Whether findings are to show the rows.
    pub values: bool,
}

/// What has been compared to its end since it was last told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Up to this key,
    pub through: Option<Key>,
    /// or up to the table's end.
    pub ended: bool,
    /// Rows there, in the ranges compared.
    pub rows: u64,
    /// The ranges.
    pub ranges: u64,
    /// What differs.
    pub findings: Vec<Finding>,
    /// So much differs that the rest of these ranges was not looked at: they are compared again, or given up.
    pub cut: bool,
}

/// The hashes of the rows with each key, in order. Where no index keeps rows apart, a key may have several.
pub fn hashes(rows: &[RowHash]) -> HashMap<&Key, Vec<&str>> {
    let mut hashes: HashMap<&Key, Vec<&str>> = HashMap::new();
    for row in rows {
        hashes.entry(&row.key).or_default().push(&row.hash);
    }
    hashes.values_mut().for_each(|hashes| hashes.sort_unstable());
    hashes
}

/// Compares one table.
#[derive(Debug)]
pub struct Survey {
    table: TableName,
    options: Options,
    /// Ranges in hand whose sums differ: behind this key, up to that one.
    differing: VecDeque<(Option<Key>, Option<Key>)>,
    /// Rows in hand that may differ.
    keys: VecDeque<Key>,
    tries: HashMap<Key, u32>,
    /// How long a table without a key was read for.
    reading: Duration,
    /// What the ranges in hand come to.
    in_hand: Option<Settled>,
    /// Everything up to here is compared,
    through: Option<Key>,
    /// and everything there is.
    ended: bool,
}

impl Survey {
    /// Compares a table, from the row behind `after` on.
    pub fn new(table: TableName, after: Option<Key>, options: Options) -> Self {
        Self {
            table,
            options,
            differing: VecDeque::new(),
            keys: VecDeque::new(),
            tries: HashMap::new(),
            reading: Duration::ZERO,
            in_hand: None,
            through: after,
            ended: false,
        }
    }

    /// What to ask next; nothing where the table is compared, or what is in hand wants to be
    /// [settled](Survey::settled) first.
    pub fn next(&self) -> Option<About> {
        let table = self.table.clone();
        // Keys first: those of one range at a time are held.
        if !self.keys.is_empty() {
            let keys = self.keys.iter().take(KEYS_MAX).cloned().collect();
            return Some(About::Keys { table, keys, values: self.options.values });
        }
        if let Some((after, upto)) = self.differing.front() {
            return Some(About::Rows { table, after: after.clone(), upto: upto.clone() });
        }
        let Options { range_rows, ranges, .. } = self.options;
        let more = self.in_hand.is_none() && !self.ended;
        more.then(|| About::Sums { table, after: self.through.clone(), range_rows, ranges })
    }

    /// What is compared to its end, once there is something.
    pub fn settled(&mut self) -> Option<Settled> {
        if !self.differing.is_empty() || !self.keys.is_empty() {
            return None;
        }
        let mut settled = self.in_hand.take()?;
        if settled.cut {
            (settled.through, settled.ended) = (self.through.clone(), false);
        }
        self.through.clone_from(&settled.through);
        self.ended = settled.ended;
        self.tries.clear();
        Some(settled)
    }

    /// Takes the answer to [`Survey::next`], and what is here at its place, asked the same.
    ///
    /// # Errors
    /// Where they are not about the same: a reason to give the table up.
    pub fn take(&mut self, answer: &Answer, here: &Found) -> Result<(), String> {
        match (&answer.found, here) {
            (Found::Refused(why), _) => Err(why.clone()),
            (_, Found::Refused(why)) => Err(why.clone()),
            (Found::Sums(there), Found::Sums(here)) => self.take_sums(answer, there, here),
            (Found::Rows { rows: there, upto }, Found::Rows { rows: here, .. }) => {
                self.take_rows(there, upto.as_ref(), here);
                Ok(())
            }
            (Found::Keys(there), Found::Keys(here)) => {
                self.take_keys(answer, there, here);
                Ok(())
            }
            _ => Err("the answer is not to what was asked".to_owned()),
        }
    }

    fn take_sums(&mut self, answer: &Answer, there: &[Sum], here: &[Sum]) -> Result<(), String> {
        let last = there.last().ok_or("the answer names no range")?;
        let keyless = answer.layout.as_ref().is_some_and(|layout| layout.key.is_empty());
        let mut in_hand = Settled {
            through: last.upto.clone(),
            ended: last.upto.is_none(),
            rows: there.iter().fold(0, |rows, sum| rows.saturating_add(sum.rows)),
            ranges: there.len() as u64,
            findings: Vec::new(),
            cut: false,
        };
        let mut after = self.through.clone();
        for (there, here) in there.iter().zip(here) {
            let before = mem::replace(&mut after, there.upto.clone());
            let is_equal = (there.rows, &there.sum) == (here.rows, &here.sum);
            // What changed meanwhile is not in what was read: where what is here is the same, it may not have come.
            let is_unsure = keyless && answer.all_unsure;
            if is_unsure && self.reads_again(answer) {
                return Ok(());
            } else if is_equal && !is_unsure {
                continue;
            } else if !keyless {
                self.differing.push_back((before, there.upto.clone()));
            } else {
                let difference = if is_unsure { Difference::Unsure } else { Difference::Different };
                let rows = |sum: &Sum| Some(format!("{} rows", sum.rows));
                in_hand.findings.push(Finding {
                    key: Key::new(),
                    difference,
                    here: rows(here),
                    there: rows(there),
                });
            }
        }
        self.in_hand = Some(in_hand);
        Ok(())
    }

    fn take_rows(&mut self, there: &[RowHash], read_upto: Option<&Key>, here: &[RowHash]) {
        let Some((_, upto)) = self.differing.pop_front() else { return };
        if read_upto != upto.as_ref() {
            self.differing.push_front((read_upto.cloned(), upto));
        }
        let (of_there, of_here) = (hashes(there), hashes(here));
        let mut met = HashSet::new();
        let keys = there.iter().chain(here).map(|row| &row.key).filter(|key| met.insert(*key));
        self.keys.extend(keys.filter(|key| of_there.get(key) != of_here.get(key)).cloned());
        // Nobody asks for all the rows of a range that holds so many more.
        if here.len() >= there.len() + FINDINGS_MAX {
            self.in_hand.get_or_insert_default().cut = true;
        }
    }

    fn take_keys(&mut self, answer: &Answer, there: &[RowHash], here: &[RowHash]) {
        let asked: Vec<Key> = self.keys.drain(..self.keys.len().min(KEYS_MAX)).collect();
        let (of_there, of_here) = (hashes(there), hashes(here));
        let unsure: HashSet<&Key> = answer.unsure.iter().collect();
        for key in asked {
            let is_unsure = answer.all_unsure || unsure.contains(&key);
            if is_unsure && self.tried(&key) < TRIES_MAX {
                self.keys.push_back(key);
                continue;
            }
            let difference = match (of_there.get(&key), of_here.get(&key)) {
                _ if is_unsure => Difference::Unsure,
                (there, here) if there == here => continue,
                (Some(_), None) => Difference::Missing,
                (None, _) => Difference::Extra,
                (Some(_), Some(_)) => Difference::Different,
            };
            // Of many, two show that there are several.
            let shown = |rows: &[RowHash]| {
                let rows = rows.iter().filter(|row| row.key == key).filter_map(|row| row.row.as_deref());
                let rows: Vec<&str> = rows.take(2).collect();
                (!rows.is_empty()).then(|| rows.join(" and "))
            };
            let (here, there) = (shown(here), shown(there));
            let finding = Finding { key, difference, here, there };
            self.in_hand.get_or_insert_default().findings.push(finding);
        }
        if let Some(in_hand) = self.in_hand.as_mut().filter(|it| it.findings.len() >= FINDINGS_MAX) {
            // Unless these were the last.
            in_hand.cut |= !self.differing.is_empty() || !self.keys.is_empty();
            self.differing.clear();
            self.keys.clear();
        }
    }

    /// Whether a table without a key that changed while it was read is read once more.
    fn reads_again(&mut self, answer: &Answer) -> bool {
        self.reading = self.reading.saturating_add(Duration::from_micros(answer.took_micros));
        let tries = self.tried(&Key::new());
        tries < KEYLESS_TRIES || (tries < TRIES_MAX && self.reading < KEYLESS_READING_MAX)
    }

    /// How often a key was asked for, this time included.
    fn tried(&mut self, key: &Key) -> u32 {
        let tries = self.tries.entry(key.clone()).or_default();
        *tries += 1;
        *tries
    }
}
