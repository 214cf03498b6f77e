//! What an inspector sees of a real Postgres.

use std::time::Duration;

use landfall::{
    fault::Code,
    sink::{Inspector, postgres::PostgresInspector},
    verify::{About, Answer, Found, Layout, TableName},
};

use crate::{PostgresTarget, Target, only_postgres::claimed};

fn table() -> TableName {
    TableName { schema: "public".to_owned(), table: "t".to_owned() }
}

fn every_row() -> About {
    About::Rows { table: table(), after: None, upto: None }
}

/// What the source's region says that has no row in it.
fn no_row() -> Answer {
    Answer {
        verification: "v".to_owned(),
        number: 1,
        took_micros: 1,
        layout: Some(Layout { columns: vec!["id".to_owned(), "v".to_owned()], key: vec!["id".to_owned()] }),
        found: Found::Rows { rows: Vec::new(), upto: None },
        unsure: Vec::new(),
        all_unsure: false,
    }
}

/// Beside a sink, which makes its tables.
async fn inspector(target: &PostgresTarget) -> PostgresInspector {
    drop(claimed(target).await);
    PostgresInspector::new(target.config())
}

/// The keys of what is found.
fn keys(found: Found) -> Vec<String> {
    match found {
        Found::Rows { rows, .. } => rows.into_iter().map(|row| row.key.join(",")).collect(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_table_that_is_rewritten_as_it_is_held_is_not_taken_for_empty() {
    let target = PostgresTarget::new("a_table_that_is_rewritten_as_it_is_held").await;
    for id in 1..=3 {
        target.put(id, "1").await;
    }
    let mut inspector = inspector(&target).await;
    target.run("BEGIN; ALTER TABLE t ALTER v TYPE int8 USING v::int8").await;
    let waiting = "SELECT count(*)::text FROM pg_locks WHERE relation = 't'::regclass AND NOT granted";
    let rewritten = async {
        // As long as is waited for it, where nobody waits.
        for _ in 0..40 {
            if target.ask(waiting).await.as_deref() == Some("1") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        target.run("COMMIT").await;
    };
    let t = table();
    let (held, ()) = tokio::join!(inspector.hold(&t), rewritten);
    held.unwrap();
    // Written behind it: that is not what was held.
    target.put(4, "4").await;
    assert_eq!(keys(inspector.look(&every_row(), &no_row()).await.unwrap()), ["1", "2", "3"]);
}

#[tokio::test]
async fn whoever_alters_a_table_for_long_is_not_waited_for() {
    let target = PostgresTarget::new("whoever_alters_a_table_for_long").await;
    target.put(1, "one").await;
    let mut inspector = inspector(&target).await;
    target.run("BEGIN; LOCK TABLE t").await;
    let fault = inspector.hold(&table()).await.unwrap_err();
    assert_eq!(fault.code(), Code::TargetBusy, "{fault}");
    assert!(fault.message().contains("public.t"), "{fault}");
    target.run("COMMIT").await;
    inspector.hold(&table()).await.unwrap();
    assert_eq!(keys(inspector.look(&every_row(), &no_row()).await.unwrap()), ["1"]);
}

#[tokio::test]
async fn what_cannot_be_looked_at_is_said_and_stops_nobody() {
    let target = PostgresTarget::new("what_cannot_be_looked_at").await;
    let mut inspector = inspector(&target).await;
    let role = crate::server::ROLE;
    for (sql, why) in [
        (format!("REVOKE ALL ON t FROM {role}"), "permission denied"),
        ("ALTER TABLE t RENAME TO elsewhere".to_owned(), "there is no table public.t"),
        ("CREATE VIEW t AS SELECT * FROM elsewhere".to_owned(), "there is no table public.t"),
        ("DROP SCHEMA public CASCADE".to_owned(), "there is no table public.t"),
    ] {
        target.run(&sql).await;
        inspector.hold(&table()).await.unwrap();
        match inspector.look(&every_row(), &no_row()).await.unwrap() {
            Found::Refused(said) => assert!(said.contains(why), "{sql}: {said}"),
            other => panic!("{sql}: {other:?}"),
        }
    }
}
