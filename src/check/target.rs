//! What comes in: whether this region's tables take what the stream carries, column by column as far as
//! the other side is known, and whether the link can go on from where it stands.

use std::{collections::BTreeMap, sync::Arc};

use tokio_postgres::Client;

use super::{
    Finding, Kind, error, halt, note, of_fault,
    stream::{self, Stream},
    warning,
};
use crate::{
    change::{Identity, Shape},
    changelog::Bounds,
    config::LinkSettings,
    fault::{Code, Result},
    names::qualified,
    plan::Locator,
    position::Offset,
    postgres::tables::triggers_that_fire,
    region::Region,
    sink::postgres::{Judgement, Obstacle, ObstacleKind, Standing, judge, standing},
};

/// Looks at one link. `authority` is what the other region's own catalogs say it sends, where they could be
/// asked; else its topic and what was met before must do.
pub(super) async fn of_link(
    client: &Client,
    link: &LinkSettings,
    stream: Option<&Stream>,
    authority: Option<&[Shape]>,
) -> Result<Vec<Finding>> {
    // Where the role may not read its own tables, that alone is the finding: the place they hold is not taken for none.
    let standing = standing(client, &link.from, &link.stream).await?;
    let applied = standing.as_ref().and_then(|standing| standing.applied);
    let mut bounds = stream.map(|stream| stream.bounds);
    if applied.zip(bounds).is_some_and(|(at, bounds)| at >= bounds.high) {
        // The topic was looked at before the place was read, and a link that runs goes on meanwhile.
        bounds = match stream::bounds_of_link(link).await {
            Ok(bounds) => bounds,
            Err(fault) => return Ok(vec![of_fault(Kind::LinkBrokers, &fault)]),
        };
    }
    let mut findings = Vec::new();
    findings.extend(standing.as_ref().and_then(|standing| of_place(link, bounds, standing)));
    let whose = format!("the stream of {}", link.from);
    let mut tables: BTreeMap<(String, String), Vec<Arc<Shape>>> = BTreeMap::new();
    let name = |shape: &Shape| (shape.schema.to_string(), shape.table.to_string());
    if let Some(shapes) = authority {
        tables.extend(shapes.iter().map(|shape| (name(shape), vec![Arc::new(shape.clone())])));
    } else {
        for shape in standing.unwrap_or_default().shapes {
            tables.entry(name(&shape)).or_default().push(shape);
        }
        for (name, shape) in stream.into_iter().flat_map(|stream| &stream.shapes) {
            tables.insert(name.clone(), vec![Arc::clone(shape)]);
        }
        let named = stream.and_then(|stream| stream.scope.as_deref()).unwrap_or_default();
        let mut unseen = 0;
        let known: Vec<String> = tables.keys().map(|(schema, table)| format!("{schema}.{table}")).collect();
        // Of a name with several dots it is not known where its schema ends.
        let plain = named.iter().filter(|name| !known.contains(name) && name.matches('.').count() == 1);
        for (schema, table) in plain.filter_map(|name| name.split_once('.')) {
            let shapes = tables.entry((schema.to_owned(), table.to_owned())).or_default();
            unseen += usize::from(shapes.is_empty());
        }
        findings.extend(of_knowledge(link, stream, tables.len(), unseen));
    }
    findings.extend(of_each(client, &whose, &tables).await?);
    Ok(findings)
}

/// Looks at what another region's link would write to, its shapes being known.
pub(super) async fn of_tables(
    client: &Client,
    link: &LinkSettings,
    shapes: &[Shape],
    there: &Region,
) -> Result<Vec<Finding>> {
    let name = |shape: &Shape| (shape.schema.to_string(), shape.table.to_string());
    let tables = shapes.iter().map(|shape| (name(shape), vec![Arc::new(shape.clone())])).collect();
    let mut findings = of_each(client, &format!("the stream of {}", link.from), &tables).await?;
    findings.iter_mut().for_each(|finding| finding.evidence = format!("at {there}: {}", finding.evidence));
    Ok(findings)
}

async fn of_each(
    client: &Client,
    whose: &str,
    tables: &BTreeMap<(String, String), Vec<Arc<Shape>>>,
) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for ((schema, table), shapes) in tables {
        findings.extend(of_table(client, whose, schema, table, shapes).await?);
    }
    let names: Vec<_> = tables.keys().cloned().collect();
    findings.extend(triggers_that_fire(client, &names).await?.into_iter().map(|(schema, table, trigger)| {
        warning(
            Kind::TargetTriggers,
            format!("the trigger {trigger} of {schema}.{table} fires for carried rows too"),
            format!(
                "ALTER TABLE {} ENABLE TRIGGER {};  -- unless it shall fire for them",
                qualified(&schema, &table),
                crate::names::quoted(&trigger)
            ),
        )
    }));
    Ok(findings)
}

/// Whether the link can go on from where it stands.
fn of_place(link: &LinkSettings, bounds: Option<Bounds>, standing: &Standing) -> Option<Finding> {
    let from = &link.from;
    let halt = |code, evidence: String| Some(halt(Kind::LinkTopic, code, &evidence));
    match (standing.applied, bounds) {
        (Some(_), None) => halt(Code::TopicLost, format!("the topic of {from} was applied here and is gone")),
        (Some(at), Some(bounds)) if at.0 + 1 < bounds.low.0 => {
            let (next, low) = (Offset(at.0 + 1), bounds.low);
            let evidence =
                format!("records of {from} from {next} to before {low} are gone, and were not applied");
            halt(Code::RetentionPassed, evidence)
        }
        (Some(at), Some(bounds)) if at >= bounds.high => {
            let evidence = format!("the topic of {from} ends before {at}, which was applied here");
            halt(Code::PositionBeyondEnd, evidence)
        }
        (None, Some(bounds)) if bounds.low > Offset(0) => {
            let evidence = format!("nothing of {from} was applied here, and the stream's beginning is gone");
            halt(Code::GenesisGone, evidence)
        }
        _ => None,
    }
}

/// What is not known of the stream's tables.
fn of_knowledge(
    link: &LinkSettings,
    stream: Option<&Stream>,
    known: usize,
    unseen: usize,
) -> Option<Finding> {
    let from = &link.from;
    let how = "landfall check --against FILE, with the settings of that region";
    let Some(stream) = stream else {
        let evidence = format!("which tables {from} sends is not known yet: there is no stream to look into");
        return Some(note(Kind::TargetUnknown, evidence).mended_by(how));
    };
    if unseen > 0 {
        let evidence = format!(
            "{unseen} of {known} tables that {from} sends have had no change yet, so their columns are not known here"
        );
        return Some(note(Kind::TargetUnknown, evidence).mended_by(how));
    }
    (!stream.is_whole()).then(|| {
        let evidence = format!(
            "{} of the {} records of {from} were read: a table that none of them describes was not compared",
            stream.read,
            stream.bounds.high.0 - stream.bounds.low.0
        );
        note(Kind::TargetUnknown, evidence).mended_by(how)
    })
}

/// Judges one table by the shapes it is known under; where there are several, any that fits will do, since
/// which of them was the last is not known.
async fn of_table(
    client: &Client,
    whose: &str,
    schema: &str,
    table: &str,
    shapes: &[Arc<Shape>],
) -> Result<Vec<Finding>> {
    let mut judged: Option<Judgement> = None;
    for shape in shapes {
        let found = judge(client, shape).await?;
        let better = judged.as_ref().is_none_or(|it| found.obstacles.len() < it.obstacles.len());
        if better {
            judged = Some(found);
        }
    }
    let Some(judgement) = judged else {
        // Only its name is known: whether it is there and may be written.
        let nameless = Shape::new(schema, table, Identity::Nothing, []);
        let obstacles = judge(client, &nameless).await?.obstacles.into_iter();
        let told = obstacles.filter(|obstacle| obstacle.kind != ObstacleKind::Column);
        return Ok(told.map(|obstacle| of_obstacle(whose, schema, table, obstacle)).collect());
    };
    let slow = match &judgement.locator {
        Some(Locator::WholeRow) => Some("no unique key, and each update and delete compares whole rows"),
        Some(Locator::Columns(_)) => Some("no unique key among the columns that name a row"),
        _ => None,
    };
    let mut findings: Vec<Finding> =
        judgement.obstacles.into_iter().map(|obstacle| of_obstacle(whose, schema, table, obstacle)).collect();
    findings.extend(slow.map(|why| {
        warning(
            Kind::TargetKey,
            format!("{schema}.{table} has {why}"),
            format!(
                "add at the target the unique key that the source has: ALTER TABLE {} ADD PRIMARY KEY (...);",
                qualified(schema, table)
            ),
        )
    }));
    Ok(findings)
}

fn of_obstacle(whose: &str, schema: &str, table: &str, obstacle: Obstacle) -> Finding {
    let kind = match obstacle.kind {
        ObstacleKind::Missing => {
            return error(
                Kind::TargetMissing,
                format!("{whose} carries {schema}.{table}, which is not here"),
                format!("pg_dump --schema-only --table '{}' SOURCE | psql TARGET", qualified(schema, table)),
            );
        }
        ObstacleKind::Privilege => {
            let evidence = format!("the role may not write {schema}.{table}, which {whose} carries");
            return error(Kind::TargetPrivilege, evidence, obstacle.sql);
        }
        ObstacleKind::RowSecurity => Kind::TargetRowSecurity,
        ObstacleKind::Column => Kind::TargetDiffers,
    };
    error(kind, obstacle.what, format!("{};", obstacle.sql))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Severity;

    fn link() -> LinkSettings {
        let text = "region = \"a\"\n[database]\nurl = \"postgres://u@h/d\"\n[[link]]\nfrom = \"b\"\nbrokers = [\"k:1\"]";
        let settings = crate::config::Settings::from_parts(text, [], &|_| unreachable!()).unwrap();
        settings.links[0].clone()
    }

    fn stream(low: i64, high: i64, read: i64) -> Stream {
        Stream {
            bounds: Bounds { low: Offset(low), high: Offset(high) },
            scope: None,
            shapes: BTreeMap::new(),
            read,
            at: None,
            rate: None,
            record_bytes: None,
            arrival: None,
        }
    }

    #[test]
    fn a_link_goes_on_from_where_it_stands_or_says_why_not() {
        let applied = |at| Standing { applied: Some(Offset(at)), shapes: Vec::new() };
        for (standing, stream, expected) in [
            (Standing::default(), None, None),
            (Standing::default(), Some(stream(0, 9, 9)), None),
            (Standing::default(), Some(stream(3, 9, 6)), Some("LF-GENESIS-GONE")),
            (applied(5), None, Some("LF-TOPIC-LOST")),
            (applied(5), Some(stream(0, 9, 9)), None),
            (applied(5), Some(stream(6, 9, 3)), None),
            (applied(5), Some(stream(7, 9, 2)), Some("LF-RETENTION-PASSED")),
            (applied(8), Some(stream(0, 9, 9)), None),
            (applied(9), Some(stream(0, 9, 9)), Some("LF-POSITION-BEYOND-END")),
        ] {
            let found = of_place(&link(), stream.as_ref().map(|it| it.bounds), &standing);
            let code = expected.map(|code| format!("({code})"));
            match (&found, code) {
                (None, None) => (),
                (Some(finding), Some(code)) if finding.severity == Severity::Error => {
                    assert!(finding.evidence.ends_with(&code), "{finding:?}");
                }
                _ => panic!("{standing:?} {stream:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn what_was_not_read_is_said() {
        assert!(of_knowledge(&link(), Some(&stream(0, 9, 9)), 3, 0).is_none());
        let said = |stream: Option<Stream>, unseen| {
            of_knowledge(&link(), stream.as_ref(), 3, unseen).unwrap().evidence
        };
        assert!(said(None, 0).contains("no stream"));
        assert!(said(Some(stream(0, 9, 9)), 2).contains("2 of 3 tables"));
        assert!(said(Some(stream(4, 9, 5)), 0).contains("5 of the 5 records"));
        assert!(said(Some(stream(0, 90_000, 40_000)), 0).contains("40000 of the 90000 records"));
    }
}
