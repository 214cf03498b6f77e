//! Tables that are not whole: how a backfill or a recovery stands with them.

use std::sync::Arc;

use super::Session;
use crate::{
    change::{Change, Mark, Shape},
    plan::{Joining, table_key},
    sink::{
        Step,
        postgres::{
            trouble::{self, Attempt},
            verification::END_RECOVERY,
        },
    },
};

impl Session {
    /// Notes the tables being filled that changes may insert into.
    pub(super) fn note_touched(&mut self, steps: &[Step]) {
        if self.known.joining.is_empty() {
            return;
        }
        for change in steps.iter().flat_map(Step::changes) {
            let brings = match change {
                Change::Insert { .. } | Change::Update { old: Some(_), .. } => true,
                Change::Chunk { keys, replace, .. } => keys.is_some() || !replace.is_empty(),
                _ => false,
            };
            if brings {
                self.touched.insert(table_key(change.shape()));
            }
        }
    }

    /// Whether a table being filled may hold rows of a chunk that has not come.
    pub(super) fn is_touched(&self, shape: &Shape) -> bool {
        !self.is_emptied_now(shape) && self.touched.contains(&table_key(shape))
    }

    /// Whether a table holds rows as they were under one snapshot.
    pub(super) fn is_under_snapshot(&self, shape: &Shape) -> bool {
        self.stands(shape, Mark::Snapshot, Joining::Snapshot)
    }

    /// Whether a table's rows may be older than the place the stream has come to.
    pub(super) fn is_stale(&self, shape: &Shape) -> bool {
        self.stands(shape, Mark::Stale, Joining::Stale)
    }

    /// Whether a table is being filled by key, and what it holds stays where this transaction does not.
    pub(super) fn is_filled_by_key(&self, shape: &Shape) -> bool {
        self.stands(shape, Mark::Begin, Joining::Copying)
            && !self.is_emptied_now(shape)
            && self.known.keeps_keys_unique(shape)
    }

    /// How a table stands, by the last mark of the transaction that is open, or else by what was committed.
    fn stands(&self, shape: &Shape, mark: Mark, joining: Joining) -> bool {
        if self.marked.is_empty() && self.known.joining.is_empty() {
            return false;
        }
        let table = table_key(shape);
        match self.marked.iter().rev().find(|(marked, _)| *marked == table) {
            Some((_, last)) => *last == mark,
            None => self.known.joining.get(&table) == Some(&joining),
        }
    }

    /// Whether the transaction that is open begins with this table.
    pub(super) fn is_emptied_now(&self, shape: &Shape) -> bool {
        let table = table_key(shape);
        self.marked.iter().any(|(marked, mark)| *marked == table && *mark == Mark::Begin)
    }

    /// Notes how a backfill stands with tables, in the transaction that is open.
    pub(super) async fn mark(&mut self, shapes: &[Arc<Shape>], mark: Mark) -> Attempt<()> {
        let (link, stream) = (self.config.from.as_str(), self.config.stream.as_str());
        for shape in shapes {
            let (schema, table) = (&*shape.schema, &*shape.table);
            let client = &self.connection;
            let done = match mark {
                Mark::Wait | Mark::Begin | Mark::Snapshot | Mark::Stale => {
                    let keep = "INSERT INTO landfall.joining (link, stream, schema_name, table_name, mark)
                                VALUES ($1, $2, $3, $4, $5)
                                ON CONFLICT (link, stream, schema_name, table_name)
                                DO UPDATE SET mark = excluded.mark, since = now()";
                    client.execute(keep, &[&link, &stream, &schema, &table, &mark.as_str()]).await
                }
                Mark::Done | Mark::Settled => {
                    let forget = "DELETE FROM landfall.joining
                                   WHERE (link, stream, schema_name, table_name) = ($1, $2, $3, $4)";
                    let forgotten = client.execute(forget, &[&link, &stream, &schema, &table]).await;
                    match forgotten {
                        Ok(_) => client.execute(END_RECOVERY, &[&link, &stream]).await,
                        failed => failed,
                    }
                }
            };
            done.map_err(|error| trouble::of_guard(&error))?;
            self.marked.push((table_key(shape), mark));
        }
        for shape in shapes {
            self.overtake_table(shape, mark).await?;
        }
        Ok(())
    }
}
