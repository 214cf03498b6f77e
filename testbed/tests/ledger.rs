//! The ledger finds what is wrong, and nothing where all is well.
//!
//! Postgres's own logical replication carries the changes here, from 15 to 18:
//! something that is right, and is not ours.

use std::time::Duration;

use testbed::ledger::{self, Ledger, Plan, Record, Report};
use testbed::postgres::Shutdown;
use testbed::probe::Probe;
use testbed::{Postgres, checksum, eventually, probe};

const DB: &str = "postgres";
const PATIENCE: Duration = Duration::from_secs(120);

struct Pair {
    source: Postgres,
    target: Postgres,
    plan: Plan,
}

impl Pair {
    async fn start() -> Pair {
        let (source, target) =
            tokio::try_join!(Postgres::start(15, "source"), Postgres::start(18, "target")).unwrap();
        let plan = Plan { writers: 3, accounts: 20, ..Plan::default() };
        println!("seed {}", plan.seed);
        for side in [&source, &target] {
            let client = side.connect(DB).await.unwrap();
            ledger::create_tables(&client).await.unwrap();
            probe::create_table(&client).await.unwrap();
        }
        source.execute(DB, "create publication everything for all tables").await.unwrap();
        target
            .execute(
                DB,
                &format!(
                    "create subscription everything connection \
                     'host=127.0.0.1 port={} user=postgres dbname={DB}' \
                     publication everything",
                    source.port()
                ),
            )
            .await
            .unwrap();
        // Until every table is ready they are copied one by one, each in a
        // snapshot of its own: the watch sees that, and rightly calls it torn.
        eventually(PATIENCE, "tables are ready", async || {
            let waiting = target
                .query_text(
                    DB,
                    "select count(*) filter (where srsubstate <> 'r') from pg_subscription_rel \
                     having count(*) = 4",
                )
                .await?;
            Ok(waiting.as_deref() == Some("0"))
        })
        .await
        .unwrap();
        let client = source.connect(DB).await.unwrap();
        ledger::open_accounts(&client, &plan).await.unwrap();
        Pair { source, target, plan }
    }

    async fn compare(&self, record: &Record) -> Report {
        let source = self.source.connect(DB).await.unwrap();
        let target = self.target.connect(DB).await.unwrap();
        record.compare(&source, &target).await.unwrap()
    }

    async fn on_target(&self, sql: &str) {
        self.target.execute(DB, sql).await.unwrap();
    }

    async fn equal(&self) {
        eventually(PATIENCE, "both sides are equal", async || {
            let source = checksum::database(&self.source.connect(DB).await?).await?;
            let target = checksum::database(&self.target.connect(DB).await?).await?;
            let differences = checksum::differences(&source, &target);
            anyhow::ensure!(differences.is_empty(), "{differences:?}");
            Ok(true)
        })
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ledger_sees_what_is_wrong() {
    let mut pair = Pair::start().await;
    let watch = ledger::watch_totals(&pair.target.url(DB));
    let probe = Probe::start(&pair.source.url(DB), &pair.target.url(DB), Duration::from_millis(20));
    let ledger = Ledger::start(&pair.source.url(DB), &pair.plan);
    eventually(PATIENCE, "300 commits", async || Ok(ledger.acked() >= 300)).await.unwrap();
    pair.source.kill().await.unwrap();
    pair.source.start_again().await.unwrap();
    let before = ledger.acked();
    eventually(PATIENCE, "300 more commits", async || Ok(ledger.acked() >= before + 300)).await.unwrap();
    let record = ledger.stop().await.unwrap();
    let latency = probe.stop(PATIENCE).await;
    println!("probe: {latency}");
    assert!(latency.count() > 10);
    assert_eq!(latency.missing, 0);

    // All is well.
    pair.equal().await;
    let report = pair.compare(&record).await;
    println!("{report}");
    assert!(report.is_clean(), "{report}");
    assert!(report.acked >= 600);
    assert_eq!(report.tables, 4);
    eventually(PATIENCE, "it looked", async || Ok(watch.report().moves > 3)).await.unwrap();
    let report = watch.stop();
    assert_eq!(report.torn, 0, "{report}");

    // Half of a transfer is seen by itself.
    let watch = ledger::watch_totals(&pair.target.url(DB));
    eventually(PATIENCE, "it looks", async || Ok(watch.report().snapshots > 0)).await.unwrap();
    assert_eq!(watch.report().torn, 0, "{}", watch.report());
    pair.on_target("update ledger_account set balance = balance - 5 where id = 1").await;
    eventually(PATIENCE, "it is seen", async || Ok(watch.report().torn > 0)).await.unwrap();
    let report = watch.stop();
    assert!(report.examples[0].contains("money"), "{report}");
    pair.on_target("update ledger_account set balance = balance + 5 where id = 1").await;
    assert!(pair.compare(&record).await.is_clean());

    // A row is lost.
    pair.on_target("create table aside as select * from ledger_entry order by id limit 1").await;
    pair.on_target("delete from ledger_entry where id in (select id from aside)").await;
    let report = pair.compare(&record).await;
    assert_eq!((report.lost, report.doubled), (1, 0), "{report}");
    assert!(!report.is_clean());
    pair.on_target("insert into ledger_entry select * from aside").await;
    assert!(pair.compare(&record).await.is_clean());

    // A value is changed.
    pair.on_target(
        "update ledger_entry set note = coalesce(note, '') || ' ' where id in (select id from aside)",
    )
    .await;
    let report = pair.compare(&record).await;
    assert_eq!((report.lost, report.doubled), (0, 0), "{report}");
    assert!(!report.is_clean());
    pair.on_target(
        "update ledger_entry e set note = a.note from aside a where a.id = e.id; drop table aside",
    )
    .await;

    // A counter is counted twice.
    pair.on_target("update ledger_counter set n = n + 1 where id = 0").await;
    let report = pair.compare(&record).await;
    assert_eq!((report.lost, report.doubled), (0, 1), "{report}");
    pair.on_target("update ledger_counter set n = n - 1 where id = 0").await;
    assert!(pair.compare(&record).await.is_clean());

    // An entry is there twice.
    pair.on_target(
        "alter table ledger_entry drop constraint ledger_entry_pkey; \
         insert into ledger_entry select * from ledger_entry order by id limit 1",
    )
    .await;
    let report = pair.compare(&record).await;
    assert_eq!((report.lost, report.doubled), (0, 1), "{report}");
}

/// The ledger must see through a crash that loses what was acknowledged: the
/// source itself is put back to an earlier state.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_forgets_is_found_out() {
    let mut source = Postgres::start(15, "forgetful").await.unwrap();
    let plan = Plan { writers: 2, rate: Some(200.0), ..Plan::default() };
    let client = source.connect(DB).await.unwrap();
    ledger::create_tables(&client).await.unwrap();
    ledger::open_accounts(&client, &plan).await.unwrap();
    drop(client);
    source.stop(Shutdown::Fast).await.unwrap();
    let dir = testbed::home::scratch("backup").unwrap();
    let backup = dir.path().join("data");
    source.backup_to(&backup).await.unwrap();
    source.start_again().await.unwrap();

    let started = std::time::Instant::now();
    let ledger = Ledger::start(&source.url(DB), &plan);
    eventually(PATIENCE, "100 commits", async || Ok(ledger.acked() >= 100)).await.unwrap();
    assert!(started.elapsed() > Duration::from_millis(400), "200 in a second were asked for");
    ledger.pause();
    // What they have begun they finish. Sixty more would be there otherwise.
    eventually(PATIENCE, "they rest", async || {
        let before = ledger.acked();
        tokio::time::sleep(Duration::from_millis(300)).await;
        Ok(ledger.acked() == before)
    })
    .await
    .unwrap();
    let paused = ledger.acked();
    ledger.resume();
    eventually(PATIENCE, "it goes on", async || Ok(ledger.acked() > paused)).await.unwrap();
    let record = ledger.stop().await.unwrap();
    source.stop(Shutdown::Immediate).await.unwrap();
    source.restore_from(&backup).await.unwrap();
    source.start_again().await.unwrap();

    let client = source.connect(DB).await.unwrap();
    let report = record.compare(&client, &client).await.unwrap();
    assert!(report.lost >= 100, "{report}");
    assert!(!report.is_clean());
}
