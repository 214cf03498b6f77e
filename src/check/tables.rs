//! The tables of a source's scope: which can be carried, and what whoever carries them should know.

use super::{Finding, Kind, error, note, warning};
use crate::{
    config::SourceSettings,
    names::qualified,
    postgres::{catalog::TableFacts, tables::TableTraits},
};

/// How many tables one finding names.
const NAMED: usize = 8;

/// Which tables of the scope can be carried.
pub(super) fn of_scope(tables: &[TableFacts], source: &SourceSettings) -> Vec<Finding> {
    let mut findings = Vec::new();
    if tables.is_empty() {
        findings.push(error(
            Kind::ScopeEmpty,
            format!("no table matches {}", source.scope),
            "correct source.tables, or create the tables",
        ));
    }
    for pattern in &source.scope.0 {
        let named = pattern.as_table();
        let there = |(schema, table)| tables.iter().any(|it| it.schema == schema && it.table == table);
        if !tables.is_empty() && named.is_some_and(|named| !there(named)) {
            findings.push(warning(
                Kind::TableMissing,
                format!("there is no table {}", pattern.as_str()),
                "correct source.tables, or create the table",
            ));
        }
    }
    for table in tables {
        let (name, sql) =
            (format!("{}.{}", table.schema, table.table), qualified(&table.schema, &table.table));
        if !table.logged {
            findings.push(warning(
                Kind::TableUnlogged,
                format!("{name} is unlogged: its changes are not in the log and are not carried"),
                format!("ALTER TABLE {sql} SET LOGGED;"),
            ));
        } else if !table.identity_usable {
            findings.push(warning(
                Kind::ReplicaIdentity,
                format!("{name} has no usable replica identity, and is left out"),
                table.identity_sql(),
            ));
        } else if let Some(unlike) = &table.unlike {
            findings.push(warning(
                Kind::PartitionDiffers,
                format!(
                    "{name} cannot be carried whole, and is left out where it is not published: {}",
                    unlike.why()
                ),
                unlike.mend(),
            ));
        }
    }
    let full: Vec<String> =
        tables.iter().filter(|table| table.identity == 'f').map(TableFacts::name).collect();
    findings.extend(listed(
        Kind::IdentityFull,
        &full,
        "REPLICA IDENTITY FULL, so updates and deletes carry whole rows:",
    ));
    let carried = tables.iter().filter(|table| table.partitioned && table.is_usable());
    let carried: Vec<String> = carried.map(TableFacts::name).collect();
    findings.extend(listed(
        Kind::PartitionEmptied,
        &carried,
        "TRUNCATE of the whole table is carried; TRUNCATE, DROP or DETACH of one partition is not:",
    ));
    findings
}

/// What should be known of those that are carried.
pub(super) fn of_traits(traits: &[TableTraits]) -> Vec<Finding> {
    let having = |columns: fn(&TableTraits) -> &Vec<String>| -> Vec<String> {
        let having = traits.iter().filter(|table| !columns(table).is_empty());
        having.map(|table| format!("{} ({})", table.name(), columns(table).join(", "))).collect()
    };
    let found = [
        listed(
            Kind::GeneratedColumn,
            &having(|it| &it.generated),
            "generated columns are computed by each side and not carried:",
        ),
        listed(
            Kind::SequenceBehind,
            &having(|it| &it.sequences),
            "values are carried, the sequences they come from are not:",
        ),
        listed(
            Kind::LocalMeaning,
            &having(|it| &it.local),
            "numbers are carried that mean something on their own server only:",
        ),
    ];
    found.into_iter().flatten().collect()
}

fn listed(kind: Kind, tables: &[String], what: &str) -> Option<Finding> {
    let named = tables.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    let more = match tables.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more tables"),
    };
    (!tables.is_empty()).then(|| note(kind, format!("{what} {named}{more}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_named_with_their_columns_a_few_of_many() {
        let table = |number: usize| TableTraits {
            schema: "public".into(),
            table: format!("t{number}"),
            generated: vec!["total".into()],
            sequences: if number == 0 { vec!["id".into(), "n".into()] } else { Vec::new() },
            local: Vec::new(),
            rows: None,
            readable: true,
        };
        let traits: Vec<_> = (0..10).map(table).collect();
        let found = of_traits(&traits);
        let kinds: Vec<_> = found.iter().map(|finding| finding.id).collect();
        assert_eq!(kinds, [Kind::GeneratedColumn, Kind::SequenceBehind]);
        assert!(found[0].evidence.ends_with("public.t7 (total) and 2 more tables"), "{found:?}");
        assert!(found[1].evidence.ends_with(": public.t0 (id, n)"), "{found:?}");
    }
}
