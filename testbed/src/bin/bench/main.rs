//! The benchmark: Landfall and what users have today, in turn, on one machine, over the same rows.
//!
//! ```text
//!   for each workload                                   a site of its own
//!     for each round
//!       write ▶ receiver ▶ landfall source ▶ landfall sink ▶ native        each drains the same log
//!       write ▶ landfall, both ▶ native, durable ▶ debezium
//!   latency of 200 rows/s at 0 and 80 ms
//!   the first copy of a table: psql ▶ native ▶ landfall backfill
//! ```
//!
//! `make bench` and `make bench-quick` build what is needed and start it. Prints a line for each figure as it
//! is taken, `ratio NAME VALUE GOAL` for each goal, and writes docs/benchmarks. Ends with 0 where all was
//! measured, whether or not a goal is met.

mod backfill;
mod debezium;
mod landfall;
mod latency;
mod measure;
mod native;
mod report;
mod site;
mod stalls;
mod svg;
mod warm;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use debezium::Debezium;
use landfall::Landfall;
use native::{Native, Receiver};
use report::{Goal, Report};
use site::{SOURCE, Site};
use workload::{ALL, Workload};

const USAGE: &str = "usage: bench PATH-OF-LANDFALL [--quick] [--rounds N] [--scale X] [--only WORKLOAD,...] \
                     [--rtt MS,...] [--no-debezium] [--out DIRECTORY]";
/// What a short run takes.
const QUICK: &[&str] = &["insert-1", "insert-1000", "update-1", LATENCY];
/// Stands for the latencies in `--only`.
const LATENCY: &str = "latency";
/// Rows a second while latency is measured.
const PACE: f64 = 200.0;
/// Rows a transaction from which on it is a giant.
const GIANT: u64 = 1_000_000;
/// What comes first and does not count, as a share of the rows.
const WARM_SHARE: u64 = 3;
/// Commits that wait for the disk are so slow that a small share of the rows tells.
const DURABLE_SHARE: u64 = 20;

struct Plan {
    binary: PathBuf,
    rounds: usize,
    scale: f64,
    only: Option<Vec<String>>,
    rtts: Vec<u64>,
    latency: Duration,
    debezium: bool,
    out: Option<PathBuf>,
}

impl Plan {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self> {
        let binary = args.next().context(USAGE)?;
        // The daemon runs in a directory of its own.
        let binary = std::fs::canonicalize(&binary).with_context(|| format!("find {binary}"))?;
        let mut plan = Self {
            binary,
            rounds: 3,
            scale: 1.0,
            only: None,
            rtts: vec![0, 80, 150],
            latency: Duration::from_secs(20),
            debezium: true,
            out: Some("docs/benchmarks".into()),
        };
        let names = |list: String| list.split(',').map(str::to_owned).collect::<Vec<_>>();
        while let Some(arg) = args.next() {
            let mut value = || args.next().context(USAGE);
            match arg.as_str() {
                "--quick" => {
                    plan.rounds = 1;
                    // Less, and a burst in some buffer passes for a rate.
                    plan.scale = 0.5;
                    plan.only = Some(QUICK.iter().map(|&name| name.to_owned()).collect());
                    plan.rtts = vec![0];
                    plan.latency = Duration::from_secs(8);
                    plan.out = None;
                }
                "--rounds" => plan.rounds = value()?.parse().context(USAGE)?,
                "--scale" => plan.scale = value()?.parse().context(USAGE)?,
                "--only" => plan.only = Some(names(value()?)),
                "--rtt" => {
                    let list = names(value()?);
                    plan.rtts = list.iter().map(|ms| ms.parse()).collect::<Result<_, _>>().context(USAGE)?;
                }
                // Most of a run's time is its: for whoever tunes the others.
                "--no-debezium" => plan.debezium = false,
                "--out" => plan.out = Some(value()?.into()),
                _ => anyhow::bail!("{arg}: {USAGE}"),
            }
        }
        Ok(plan)
    }

    fn takes(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.iter().any(|it| it == name))
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Plan::parse(std::env::args().skip(1)) {
        Ok(plan) => run(&plan).await,
        Err(error) => Err(error),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(plan: &Plan) -> Result<()> {
    let began = Instant::now();
    let mut report = Report::default();
    if !plan.debezium {
        report.missing("debezium", "it was left out (`--no-debezium`)");
    } else if !testbed::home::has_rivals() {
        report.missing("debezium", "it is not installed here; `scripts/setup-rivals` fetches it");
    }
    let stalls = stalls::watch();
    println!("machine: {stalls}");
    let mut about = Vec::new();
    // What fails is said; what was measured besides is worth the hours it took.
    let mut failed = Vec::new();
    for workload in ALL.iter().filter(|workload| plan.takes(workload.name)) {
        match drains(plan, workload, &mut report).await {
            Ok(site) => about = site,
            Err(error) => failed.push((workload.name, error)),
        }
    }
    if plan.takes(LATENCY) {
        match latencies(plan, &mut report).await {
            Ok(site) => about = site,
            Err(error) => failed.push((LATENCY, error)),
        }
    }
    if plan.takes(backfill::NAME) {
        failed.extend(backfill::run(plan, &mut report).await.err().map(|error| (backfill::NAME, error)));
    }
    for (name, error) in &failed {
        report.missing(name, &format!("{error:#}"));
    }
    judge(plan, &mut report);
    about.push(("evenness".into(), stalls.to_string()));
    about.push(("rounds".into(), plan.rounds.to_string()));
    about.push(("scale".into(), format!("{} of the full number of rows", plan.scale)));
    about.push(("took".into(), format!("{} s", began.elapsed().as_secs())));
    if let Some(out) = &plan.out {
        report.write(out, &about)?;
        println!("written to {}", out.display());
    }
    anyhow::ensure!(failed.is_empty(), "{} of the workloads failed", failed.len());
    Ok(())
}

/// Every drain of one workload.
async fn drains(plan: &Plan, workload: &Workload, report: &mut Report) -> Result<Vec<(String, String)>> {
    println!("{}: {}", workload.name, workload.about);
    let site = Site::start().await?;
    let schema = (workload.setup)();
    site.source.execute(SOURCE, &schema).await?;
    let mut landfall = Landfall::set_up(&plan.binary, &site, &schema).await?;
    let native = Native::set_up(&site, &workload.tables.join(", "), &schema).await?;
    let receiver = Receiver::set_up(&site).await?;
    // It takes minutes for what takes others seconds: one transaction of five million rows is left out.
    let mut debezium =
        if plan.debezium && testbed::home::has_rivals() && workload.rows_per_transaction < GIANT {
            Some(Debezium::set_up(&site, workload, &schema).await?)
        } else {
            None
        };
    let writer = site.source.connect(SOURCE).await?;
    let name = workload.name;
    let rows = ((workload.rows as f64 * plan.scale) as u64).max(workload.rows_per_transaction);
    let mut last = 0;
    let outcome = async {
        // The first rows of each do not count: caches, a JVM of the rival's that compiles.
        if workload.rows_per_transaction < GIANT {
            let written = workload.write(&writer, last, (rows / WARM_SHARE).max(1)).await?;
            last = written.last;
            receiver.drain(&site, &written).await?;
            landfall.whole(&site, workload, &written).await?;
            native.whole(&site, workload, &written, false).await?;
            if let Some(rival) = &debezium
                && let Err(error) = rival.whole(&site, workload, &written).await
            {
                report.missing(&format!("debezium on {name}"), &format!("{error:#}"));
                debezium = None;
            }
        }
        for _ in 0..plan.rounds {
            let written = workload.write(&writer, last, rows).await?;
            report.drain(name, "capture", "receiver", &receiver.drain(&site, &written).await?);
            report.drain(name, "capture", "landfall", &landfall.capture(&site, &written).await?);
            report.drain(name, "apply", "landfall", &landfall.apply(&site, workload, &written).await?);
            report.drain(name, "whole", "native", &native.whole(&site, workload, &written, false).await?);
            if let Some(debezium) = &debezium {
                report.drain(
                    name,
                    "capture",
                    "debezium",
                    &debezium.capture(&site, workload, &written).await?,
                );
            }
            last = written.last;

            for &rtt in &plan.rtts {
                let (what, far) =
                    if rtt == 0 { ("whole".to_owned(), false) } else { (format!("whole-{rtt}ms"), true) };
                site.set_rtt(Duration::from_millis(rtt));
                let written = workload.write(&writer, last, rows).await?;
                last = written.last;
                report.drain(name, &what, "landfall", &landfall.whole(&site, workload, &written).await?);
                report.drain(name, &what, "native", &native.whole(&site, workload, &written, false).await?);
                receiver.drain(&site, &written).await?;
                site.set_rtt(Duration::ZERO);
                if let Some(debezium) = &debezium {
                    let drain = debezium.whole(&site, workload, &written).await?;
                    // Its one worker stands beside both: only near is it comparable.
                    if !far {
                        report.drain(name, &what, "debezium", &drain);
                    }
                }
            }

            let written = workload.write(&writer, last, (rows / DURABLE_SHARE).max(1)).await?;
            last = written.last;
            report.drain(
                name,
                "whole",
                "native-durable",
                &native.whole(&site, workload, &written, true).await?,
            );
            landfall.whole(&site, workload, &written).await?;
            receiver.drain(&site, &written).await?;
            if let Some(debezium) = &debezium {
                debezium.whole(&site, workload, &written).await?;
            }
        }
        workload.require_equal(&site.source, &site.target, landfall::DATABASE).await?;
        workload.require_equal(&site.source, &site.target, native::DATABASE).await?;
        match &debezium {
            Some(_) => workload.require_equal(&site.source, &site.target, debezium::DATABASE).await,
            None => Ok(()),
        }
    };
    outcome.await.with_context(|| landfall.logs())?;
    site.about().await
}

/// Commit to visible, of each contender alone, near and far, and beside a key that never rests.
async fn latencies(plan: &Plan, report: &mut Report) -> Result<Vec<(String, String)>> {
    println!("latency: {PACE} rows/s, each a transaction");
    let site = Site::start().await?;
    let schema = "create table probe (id int8 primary key, at timestamptz not null default now());
        create table hot (id int8 primary key, n int8 not null); insert into hot values (1, 0)";
    site.source.execute(SOURCE, schema).await?;
    let mut landfall = Landfall::set_up(&plan.binary, &site, schema).await?;
    let native = Native::set_up(&site, "probe, hot", schema).await?;
    for _ in 0..plan.rounds {
        for &rtt in &plan.rtts {
            site.set_rtt(Duration::from_millis(rtt));
            let name = format!("latency-{rtt}ms");
            landfall.start().await?;
            measure_into(report, &site, plan, &name, "landfall", landfall::DATABASE).await?;
            if rtt == 0 {
                let hot = hot_key(&site).await?;
                measure_into(report, &site, plan, "latency-hot", "landfall", landfall::DATABASE).await?;
                hot.abort();
            }
            landfall.stop().await?;
            native.enable(&site, false).await?;
            measure::until(&site.target, native::DATABASE, &caught_up(&site).await?).await?;
            measure_into(report, &site, plan, &name, "native", native::DATABASE).await?;
            if rtt == 0 {
                let hot = hot_key(&site).await?;
                measure_into(report, &site, plan, "latency-hot", "native", native::DATABASE).await?;
                hot.abort();
            }
            native.disable(&site).await?;
            // So that the next one does not begin with a backlog.
            landfall.start().await?;
            measure::until(&site.target, landfall::DATABASE, &caught_up(&site).await?).await?;
            landfall.stop().await?;
        }
        site.set_rtt(Duration::ZERO);
    }
    site.about().await
}

/// The query that is true at a target that has every row of the probe.
async fn caught_up(site: &Site) -> Result<String> {
    let largest = site.source.query_text(SOURCE, "select coalesce(max(id), 0) from probe").await?;
    Ok(format!("select coalesce(max(id), 0) >= {} from probe", largest.unwrap_or_default()))
}

async fn measure_into(
    report: &mut Report,
    site: &Site,
    plan: &Plan,
    name: &str,
    contender: &str,
    database: &str,
) -> Result<()> {
    let latency = latency::measure(site, database, PACE, plan.latency).await?;
    for (figure, share) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
        report.add(format!("{name}/{figure}/{contender}"), "ms", latency.quantile(share));
    }
    Ok(())
}

/// One session that updates one row as fast as it can be acknowledged.
async fn hot_key(site: &Site) -> Result<tokio::task::JoinHandle<()>> {
    let client = site.source.connect(SOURCE).await?;
    let update = client.prepare("update hot set n = n + 1 where id = 1").await?;
    Ok(tokio::spawn(async move { while client.execute(&update, &[]).await.is_ok() {} }))
}

/// The goals, in the order of the page.
fn judge(plan: &Plan, report: &mut Report) {
    for workload in ALL.iter().filter(|workload| plan.takes(workload.name)) {
        let name = workload.name;
        let of = |what: &str, contender: &str| format!("{name}/{what}/{contender}");
        let many = workload.rows_per_transaction >= 1000;
        let capture = Goal::AtLeast(if many { 1.0 } else { 1.5 });
        let whole = Goal::AtLeast(if many { 1.2 } else { 1.5 });
        report.ratio(
            &format!("{name}-capture-vs-receiver"),
            &of("capture", "landfall"),
            &of("capture", "receiver"),
            capture,
        );
        report.ratio(
            &format!("{name}-whole-vs-native"),
            &of("whole", "landfall"),
            &of("whole", "native"),
            whole,
        );
        report.ratio(
            &format!("{name}-capture-vs-debezium"),
            &of("capture", "landfall"),
            &of("capture", "debezium"),
            Goal::AtLeast(5.0),
        );
        report.ratio(
            &format!("{name}-whole-vs-debezium"),
            &of("whole", "landfall"),
            &of("whole", "debezium"),
            Goal::AtLeast(10.0),
        );
        report.ratio(
            &format!("{name}-bytes-vs-native"),
            &of("whole-bytes", "landfall"),
            &of("whole-bytes", "native"),
            Goal::AtMost(0.3),
        );
        report.ratio(
            &format!("{name}-150ms-vs-0ms"),
            &of("whole-150ms", "landfall"),
            &of("whole", "landfall"),
            Goal::AtLeast(0.95),
        );
        if let Some(peak) = report.of(&of("whole-peak", "landfall")) {
            report.judge(&format!("{name}-peak-mib"), peak, Goal::AtMost(128.0));
        }
    }
    for &rtt in &plan.rtts {
        let far = rtt as f64;
        let (p50, p99) = if rtt == 0 { (1.5, 5.0) } else { (far + 5.0, 1.5 * far + 10.0) };
        for (figure, most) in [("p50", p50), ("p99", p99)] {
            if let Some(value) = report.of(&format!("latency-{rtt}ms/{figure}/landfall")) {
                report.judge(&format!("latency-{rtt}ms-{figure}"), value, Goal::AtMost(most));
            }
        }
    }
    for (rival, least) in [("copy", 0.8), ("native", 1.0)] {
        report.ratio(
            &format!("backfill-vs-{rival}"),
            "backfill/rate/landfall",
            &format!("backfill/rate/{rival}"),
            Goal::AtLeast(least),
        );
    }
    if let Some(peak) = report.of("backfill/peak/landfall") {
        report.judge("backfill-peak-mib", peak, Goal::AtMost(128.0));
    }
    report.ratio(
        "hot-key-p99-vs-idle",
        "latency-hot/p99/landfall",
        "latency-0ms/p99/landfall",
        Goal::AtMost(2.0),
    );
}
