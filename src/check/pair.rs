//! Two regions held against each other, where both databases can be asked: do the tables one sends and the
//! other takes look equal, and are the clocks together?

use std::time::Duration;

use tokio::time::sleep;
use tokio_postgres::Client;

use super::{Finding, Kind, note, warning};
use crate::{
    change::Shape,
    fault::{Code, Result},
    postgres::tables::{TableTraits, count, traits},
    scope::Scope,
};

/// Estimates are as old as the last ANALYZE: what differs less says nothing.
const ESTIMATE_ROWS: i64 = 1000;
const ESTIMATE_SHARE: f64 = 0.1;
/// What is under way between two regions makes exact counts differ for a moment: so often they are taken
/// again, so far apart.
const COUNTS: u32 = 4;
const COUNT_PAUSE: Duration = Duration::from_secs(1);
/// How many tables one finding names.
const NAMED: usize = 8;

/// Compares the tables of a scope that are carried: those of these shapes.
pub(super) async fn of_rows(
    source: &Client,
    target: &Client,
    scope: &Scope,
    carried: &[Shape],
    between: &str,
    deep: bool,
) -> Result<Vec<Finding>> {
    let (ours, theirs) = (traits(source, scope).await?, traits(target, scope).await?);
    let mut comparison = Comparison::default();
    let is_carried = |table: &&TableTraits| {
        carried.iter().any(|it| *it.schema == *table.schema && *it.table == *table.table)
    };
    for table in ours.iter().filter(is_carried) {
        let Some(other) = theirs.iter().find(|it| (&it.schema, &it.table) == (&table.schema, &table.table))
        else {
            // A table that is missing is a finding of its own.
            continue;
        };
        if deep {
            comparison.exact(source, target, table, other).await?;
        } else {
            comparison.estimate(table, other);
        }
    }
    Ok(comparison.findings(between, deep))
}

#[derive(Debug, Default)]
struct Comparison {
    equal: usize,
    rows: i64,
    unequal: Vec<String>,
    untold: Vec<String>,
}

impl Comparison {
    fn estimate(&mut self, source: &TableTraits, target: &TableTraits) {
        match (source.rows, target.rows) {
            (Some(a), Some(b)) => self.compared(source, a, b, likely_equal(a, b)),
            _ => self.untold.push(source.name()),
        }
    }

    async fn exact(
        &mut self,
        source: &Client,
        target: &Client,
        table: &TableTraits,
        other: &TableTraits,
    ) -> Result<()> {
        let counted = async |client: &Client| match count(client, &table.schema, &table.table).await {
            Err(fault) if fault.code() == Code::PrivilegeMissing => Ok(None),
            counted => counted.map(Some),
        };
        if !table.readable || !other.readable {
            self.untold.push(table.name());
            return Ok(());
        }
        for left in (0..COUNTS).rev() {
            let (Some(a), Some(b)) = (counted(source).await?, counted(target).await?) else {
                self.untold.push(table.name());
                return Ok(());
            };
            if a == b || left == 0 {
                self.compared(table, a, b, a == b);
                return Ok(());
            }
            sleep(COUNT_PAUSE).await;
        }
        Ok(())
    }

    fn compared(&mut self, table: &TableTraits, source: i64, target: i64, equal: bool) {
        if equal {
            self.equal += 1;
            self.rows += source;
        } else {
            self.unequal
                .push(format!("{} has {source} rows at the source and {target} at the target", table.name()));
        }
    }

    fn findings(self, between: &str, deep: bool) -> Vec<Finding> {
        let how = if deep { "counted" } else { "as the planner estimates them" };
        let mut findings: Vec<Finding> = self
            .unequal
            .iter()
            .map(|what| {
                warning(
                    Kind::TablesUnequal,
                    format!("{what} ({between}, {how})"),
                    Kind::TablesUnequal.advice(),
                )
            })
            .collect();
        if !self.untold.is_empty() {
            let named = self.untold.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
            let (why, mend) = if deep {
                ("the role may not read them", "run it with roles that may SELECT from them on both sides")
            } else {
                ("never analyzed", "ANALYZE on both sides, or --deep")
            };
            let evidence =
                format!("{} tables could not be compared ({between}), {why}: {named}", self.untold.len());
            findings.push(note(Kind::TablesUntold, evidence).mended_by(mend));
        }
        if self.equal > 0 {
            let evidence = format!(
                "{} tables look equal ({between}), of {} rows together, {how}",
                self.equal, self.rows
            );
            findings.push(note(Kind::TablesEqual, evidence));
        }
        findings
    }
}

fn likely_equal(a: i64, b: i64) -> bool {
    let apart = (a - b).abs();
    apart <= ESTIMATE_ROWS || (apart as f64) <= ESTIMATE_SHARE * a.max(b) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: Option<i64>) -> TableTraits {
        TableTraits {
            schema: "public".into(),
            table: "t".into(),
            generated: Vec::new(),
            sequences: Vec::new(),
            local: Vec::new(),
            rows,
            readable: true,
        }
    }

    #[test]
    fn estimates_are_taken_for_what_they_are() {
        for (source, target, expected) in [
            (Some(10), Some(900), Kind::TablesEqual),
            (Some(10), Some(2000), Kind::TablesUnequal),
            (Some(1_000_000), Some(950_000), Kind::TablesEqual),
            (Some(1_000_000), Some(850_000), Kind::TablesUnequal),
            (Some(10), None, Kind::TablesUntold),
        ] {
            let mut comparison = Comparison::default();
            comparison.estimate(&table(source), &table(target));
            let kinds: Vec<_> = comparison.findings("a to b", false).iter().map(|it| it.id).collect();
            assert_eq!(kinds, [expected], "{source:?} {target:?}");
        }
    }
}
