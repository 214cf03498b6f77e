//! Tables whose rows may be older than the place the stream has come to: what of them is in the way of a row that comes
//! is older than it, and goes.
//!
//! The source has every unique index that matters here, so no two of its rows have one value at a place of the stream.
//! Where a row that comes meets its value in another row, that one is as the other once was: it was not mended yet. It is
//! taken away, and comes again as it is by now, if it still is there.

use std::borrow::Cow;

use super::Session;
use crate::{
    change::{Cell, Change, Row, Shape, copy_text},
    names::{literal, qualified, quoted},
    sink::postgres::{
        table::Table,
        trouble::{self, Attempt, Clash, Trouble},
    },
};

/// How often one change may find rows in its way: once for each unique index, of which few tables have as many. A change
/// that finds more is refused as it is elsewhere.
const IN_THE_WAY_MAX: usize = 32;

/// The expressions a unique index is over, and its condition, as they are written in a statement about its table; none
/// where it is no index of this table or of a part of it: a trigger may have met the one of another. And whether we may
/// take rows from that part by its own name: through the table we may.
const INDEX: &str = "SELECT ARRAY(SELECT pg_get_indexdef(i.indexrelid, at, true)
                                  FROM generate_series(1, i.indnkeyatts::int) at ORDER BY at),
                            pg_get_expr(i.indpred, i.indrelid, true),
                            i.indrelid,
                            has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(i.indrelid, 'SELECT')
                                AND has_table_privilege(i.indrelid, 'DELETE')
                       FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_namespace n ON n.oid = x.relnamespace
                      WHERE n.nspname = $1 AND x.relname = $2
                        AND (i.indrelid = $3::text::regclass
                             OR i.indrelid IN (SELECT relid FROM pg_partition_tree($3::text::regclass)))";

impl Session {
    /// Applies one change to a table that may be stale; gives how many rows it touched where that is not what it holds.
    pub(super) async fn one_over_stale(&mut self, change: &Change) -> Attempt<Option<u64>> {
        let come = rows_that_come(change);
        if come.is_empty() {
            return self.one(change).await;
        }
        for _ in 0..IN_THE_WAY_MAX {
            self.run("SAVEPOINT over_stale").await?;
            let refusal = match self.one(change).await {
                Ok(touched) => {
                    self.run("RELEASE SAVEPOINT over_stale").await?;
                    return Ok(touched);
                }
                Err(Trouble::Differs(refusal)) => refusal,
                Err(trouble) => return Err(trouble),
            };
            let Some(clash) = refusal.clash() else { return Err(Trouble::Differs(refusal)) };
            self.run("ROLLBACK TO SAVEPOINT over_stale").await?;
            if self.take_out_of_the_way(change.shape(), &come, clash).await? == 0 {
                return Err(Trouble::Differs(refusal));
            }
        }
        self.one(change).await
    }

    /// Takes away the rows that have a value of one of `come` under the unique index that was violated; gives how many.
    async fn take_out_of_the_way(&self, shape: &Shape, come: &[Row], clash: &Clash) -> Attempt<u64> {
        let failed = |error: tokio_postgres::Error| trouble::of_rows(&error);
        let table = self.known.table(shape);
        let index = self.client().query_opt(INDEX, &[&clash.schema, &clash.index, &table.name]).await;
        let Some(index) = index.map_err(failed)? else { return Ok(0) };
        let index = Index {
            expressions: index.get(0),
            condition: index.get(1),
            part: index.get(2),
            by_name: index.get(3),
        };
        let mut taken = 0;
        for row in come {
            let take = take_away(table, shape, row, clash, &index);
            taken += self.client().execute(take.as_str(), &[]).await.map_err(failed)?;
        }
        let (table, index) = (shape.to_string(), clash.index.as_str());
        tracing::info!(table, index, taken, "a row that may be stale was in the way of one that came");
        Ok(taken)
    }
}

/// A unique index that was violated.
struct Index {
    expressions: Vec<String>,
    condition: Option<String>,
    /// The oid of its table, a partition perhaps.
    part: u32,
    /// We may take rows from that by its own name.
    by_name: bool,
}

fn rows_that_come(change: &Change) -> Cow<'_, [Row]> {
    match change {
        Change::Insert { new, .. } | Change::Update { new, .. } => Cow::Borrowed(std::slice::from_ref(new)),
        Change::Chunk { text, .. } => Cow::Owned(copy_text::rows(text)),
        Change::Delete { .. } | Change::Truncate { .. } | Change::Watermark { .. } => Cow::Borrowed(&[]),
    }
}

/// The statement that takes away whatever row has the values that an index over `expressions` has of a row that comes.
///
/// What is computed of that row is computed in a query of its own, which sees no other: an expression over a column that
/// is not given would else be one over the table's own, and every row would meet it.
fn take_away(table: &Table, shape: &Shape, row: &Row, clash: &Clash, index: &Index) -> String {
    let Index { expressions, condition, part, by_name } = index;
    let values: Vec<String> = (row.0.iter().zip(&shape.columns).enumerate())
        .map(|(at, (cell, column))| {
            let value = match cell {
                Cell::Value(text) => literal(&String::from_utf8_lossy(text)),
                // What is not known equals nothing.
                _ => "NULL".to_owned(),
            };
            format!("{value}::{} AS {}", table.type_name(at), quoted(&column.name))
        })
        .collect();
    let names: Vec<String> = (1..=expressions.len()).map(|at| quoted(&format!("landfall {at}"))).collect();
    let pairs = || expressions.iter().zip(&names);
    let computed: Vec<String> = pairs().map(|(of, name)| format!("({of}) AS {name}")).collect();
    let mut meets: Vec<String> = pairs().map(|(of, name)| format!("({of}) = {name}")).collect();
    meets.extend(condition.iter().map(|condition| format!("({condition})")));
    let from = if *by_name {
        qualified(&clash.schema, &clash.table)
    } else {
        // Slower: the server looks into every partition.
        meets.push(format!("tableoid = {part}"));
        table.name.clone()
    };
    format!(
        "WITH come AS (SELECT {}), theirs AS (SELECT {} FROM come) DELETE FROM {}{from} USING theirs WHERE {}",
        values.join(", "),
        computed.join(", "),
        table.only,
        meets.join(" AND "),
    )
}
