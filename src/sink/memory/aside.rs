//! What a target in memory keeps aside.

use std::collections::{BTreeMap, BTreeSet};

use super::{Before, State, apply, is_unique, undo};
use crate::{
    change::{Change, Mark, Shape},
    plan::{
        Locator, Locators,
        parked::{ParkedId, ParkedRows, Part, parts_of},
    },
    sink::{Step, Wish},
    verify::TableName,
};

/// What is parked.
#[derive(Clone, Debug, Default)]
pub(super) struct Aside {
    pub(super) transactions: BTreeMap<ParkedId, Parked>,
    pub(super) rows: ParkedRows,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Parked {
    /// Its changes, and what each speaks for: whether a backfill has brought newer rows for that.
    pub(super) changes: Vec<(Change, Vec<(Part, bool)>)>,
    pub(super) asked: Option<Wish>,
}

impl Parked {
    pub(super) fn of(step: &Step) -> Self {
        Self { changes: with_parts(step).collect(), asked: None }
    }
}

impl Aside {
    pub(super) fn changes(&self) -> u64 {
        self.transactions.values().map(|parked| parked.changes.len() as u64).sum()
    }

    pub(super) fn add(&mut self, id: ParkedId, parked: Parked) {
        for (part, overtaken) in parked.changes.iter().flat_map(|(_, parts)| parts) {
            if *overtaken && part.row.is_none() {
                // A table that was copied anew is whole, whatever else is to be emptied along with it.
                continue;
            }
            self.rows.add(id, part);
        }
        self.transactions.insert(id, parked);
    }

    /// What waits behind one that is to be applied again is to be as well.
    pub(super) fn wish_ahead_of(&self, parked: &Parked) -> Option<Wish> {
        let parts = parked.changes.iter().flat_map(|(_, parts)| parts);
        let ahead = parts.filter_map(|(part, _)| self.rows.holder(part)).min()?;
        self.transactions.get(&ahead)?.asked.filter(|wish| *wish == Wish::Retry)
    }

    pub(super) fn remove(&mut self, id: ParkedId) {
        let parked = self.transactions.remove(&id);
        for (part, _) in parked.iter().flat_map(|parked| &parked.changes).flat_map(|(_, parts)| parts) {
            self.rows.remove(id, part);
        }
    }

    /// Newer rows have come for these parts.
    fn overtake(&mut self, is: impl Fn(&Part) -> bool) {
        for (id, mut parked) in std::mem::take(self).transactions {
            for (part, overtaken) in parked.changes.iter_mut().flat_map(|(_, parts)| parts) {
                *overtaken |= is(part);
            }
            parked.changes.retain(|(_, parts)| parts.iter().any(|(_, overtaken)| !overtaken));
            if !parked.changes.is_empty() {
                self.add(id, parked);
            }
        }
    }
}

/// How rows are found here.
pub(super) fn locators(step: &Step) -> Locators {
    let shapes = step.changes().flat_map(Change::shapes);
    shapes.map(|shape| (shape.fingerprint(), locator(shape))).collect()
}

fn locator(shape: &Shape) -> Locator {
    if is_unique(shape) { Locator::Key(shape.key_columns().collect()) } else { Locator::WholeRow }
}

pub(super) fn with_parts(step: &Step) -> impl Iterator<Item = (Change, Vec<(Part, bool)>)> + '_ {
    let locators = locators(step);
    step.changes().map(move |change| {
        let parts = parts_of(change, &locators).into_iter().map(|part| (part, false)).collect();
        (change.clone(), parts)
    })
}

/// Newer rows have come: what is parked of exactly these goes.
pub(super) fn overtake(state: &mut State, change: &Change) {
    let name = |shape: &Shape| TableName { schema: shape.schema.to_string(), table: shape.table.to_string() };
    let tables: Vec<TableName> = change.shapes().iter().map(|shape| name(shape)).collect();
    if let Change::Watermark { mark, .. } = change {
        if !matches!(mark, Mark::Done | Mark::Settled) {
            state.aside.overtake(|part| tables.contains(&part.table));
        }
    } else if !state.aside.rows.is_whole(&tables[0]) {
        let locators = Locators::from([(change.shape().fingerprint(), locator(change.shape()))]);
        let rows: BTreeSet<_> = parts_of(change, &locators)
            .into_iter()
            .filter_map(|part| part.row)
            .map(|row| (row.columns, row.key))
            .collect();
        let is = |part: &Part| {
            part.table == tables[0]
                && part.row.as_ref().is_some_and(|row| rows.contains(&(row.columns.clone(), row.key.clone())))
        };
        state.aside.overtake(is);
    }
}

/// Applies a parked transaction, or leaves nothing of it.
pub(super) fn retry(state: &mut State, id: ParkedId, parked: &Parked) -> bool {
    let mut parts = parked.changes.iter().flat_map(|(_, parts)| parts);
    let waits = |(part, overtaken): &(Part, bool)| {
        *overtaken || state.aside.rows.holder(part).is_some_and(|ahead| ahead < id)
    };
    if parts.any(waits) {
        return false;
    }
    let mut before = Before::of(state);
    for (change, _) in &parked.changes {
        if apply(state, &mut before, change).is_err() {
            undo(state, before);
            return false;
        }
    }
    true
}
