//! The first copy of a table: `COPY | COPY` through psql, which a person at a terminal has, native logical
//! replication's own initial copy, and `landfall backfill`, which goes through Kafka and lets both sides be used.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testbed::{Kafka, home};
use tokio::process::Command;

use super::landfall::{self, Landfall};
use super::measure::{Drain, Group, Watch, until};
use super::report::Report;
use super::site::{SOURCE, Site};
use super::{Plan, native};

/// Stands for it in `--only`.
pub const NAME: &str = "backfill";
const ROWS: f64 = 2_000_000.0;
/// The database at the target that psql copies into.
const PLAIN: &str = "plain";
const SCHEMA: &str =
    "create table big (id int8 primary key, a int4, b int4, c int8, d numeric, e text, f text, g bool,
    h timestamptz, i uuid)";

/// Every contender in each round, each into an empty table.
pub async fn run(plan: &Plan, kafka: &Kafka, report: &mut Report) -> Result<()> {
    let rows = (ROWS * plan.scale) as u64;
    println!("{NAME}: {rows} rows of ten columns into an empty table");
    let site = Site::start(NAME, kafka).await?;
    site.source.execute(SOURCE, SCHEMA).await?;
    let fill = format!(
        "insert into big select g, g % 1000, g, g * 7, g / 3.0, 'name of row ' || g, md5(g::text), g % 2 = 0,
                '2026-01-01'::timestamptz + g * interval '1 second', md5(g::text)::uuid
           from generate_series(1, {rows}) g; analyze big; create publication copied for table big"
    );
    site.source.execute(SOURCE, &fill).await?;
    for database in [PLAIN, native::DATABASE] {
        site.target.create_database(database).await?;
        site.target.execute(database, SCHEMA).await?;
    }
    let mut landfall = Landfall::set_up(plan, &site, SCHEMA).await?;
    for _ in 0..plan.rounds {
        for contender in ["copy", "native", "landfall"] {
            let database = match contender {
                "copy" => PLAIN,
                "native" => native::DATABASE,
                _ => landfall::DATABASE,
            };
            site.target.execute(database, "truncate big; checkpoint").await?;
            let mut groups = vec![
                Group { name: "source Postgres", pid: site.source.pid().unwrap_or(0) },
                Group { name: "target Postgres", pid: site.target.pid().unwrap_or(0) },
            ];
            if contender == "landfall" {
                landfall.start().await?;
                groups.push(Group { name: "Kafka", pid: site.kafka.pid(0).unwrap_or(0) });
                groups.extend(landfall.groups());
            }
            let watch = Watch::start(groups);
            let mut peak = None;
            match contender {
                "copy" => copy(&site).await?,
                "native" => subscribe(&site).await?,
                _ => peak = Some(landfall.backfill().await.with_context(|| landfall.logs())?),
            }
            let drain = Drain { peak_mib: peak, ..watch.stop(rows, rows) };
            report.drain(NAME, "rate", contender, &drain);
            if contender == "landfall" {
                report.add(format!("{NAME}/read/{contender}"), "rows/s", read(&site, rows).await?);
                landfall.stop().await?;
            }
            let equal = "select count(*)::text || ' ' || sum(hashtextextended(big::text, 0))::text from big";
            let (ours, theirs) = (
                site.source.query_text(SOURCE, equal).await?,
                site.target.query_text(database, equal).await?,
            );
            ensure!(ours == theirs, "{contender} brought {theirs:?} of {ours:?}");
            if contender == "native" {
                site.target.execute(database, "drop subscription copied").await?;
            }
        }
    }
    // Last, since what is read so is nowhere but in Kafka.
    for _ in 0..plan.rounds {
        landfall.read_alone(&site).await.with_context(|| landfall.logs())?;
        report.add(format!("{NAME}/read-alone/landfall"), "rows/s", read(&site, rows).await?);
    }
    Ok(())
}

/// How fast the rows of the last backfill came into the source's Kafka, a second.
async fn read(site: &Site<'_>, rows: u64) -> Result<f64> {
    let read = format!(
        "select ({rows} / extract(epoch from ended - begun))::text
           from landfall.backfill_table order by ended desc limit 1"
    );
    Ok(site.source.query_text(SOURCE, &read).await?.context("a backfill is done")?.parse()?)
}

async fn copy(site: &Site<'_>) -> Result<()> {
    let psql = |url: String, sql: &str| -> Result<Command> {
        let mut command = Command::new(home::program("psql")?);
        command.args(["-qX", "-v", "ON_ERROR_STOP=1", "-c", sql, &url]).kill_on_drop(true);
        Ok(command)
    };
    let mut out = psql(site.source.url(SOURCE), "copy big to stdout")?.stdout(Stdio::piped()).spawn()?;
    let pipe: Stdio = out.stdout.take().context("the pipe was asked for")?.try_into()?;
    let into = psql(site.target.url(PLAIN), "copy big from stdin")?.stdin(pipe).status().await?;
    ensure!(into.success() && out.wait().await?.success(), "copy through psql");
    Ok(())
}

async fn subscribe(site: &Site<'_>) -> Result<()> {
    let subscription = format!(
        "create subscription copied connection 'host=127.0.0.1 port={} user=postgres dbname={SOURCE}' publication copied",
        site.source.port()
    );
    site.target.execute(native::DATABASE, &subscription).await?;
    let ready = "select count(*) = 1 from pg_subscription_rel where srsubstate in ('s', 'r')";
    tokio::time::timeout(Duration::from_secs(600), until(&site.target, native::DATABASE, ready)).await?
}
