//! The benchmark: Landfall and what users have today, in turn, on one machine, over the same rows.
//!
//! ```text
//!   a broker for all that follows
//!   latency of 200 rows/s, near and far
//!   growth: a million rows ▶ ten million
//!   the first copy of a table: psql ▶ native ▶ landfall backfill
//!   a Kafka Connect worker for all of Debezium's
//!   for each workload                                   database servers of its own
//!     for each round
//!       write ▶ debezium                                                   in a database of its own
//!       write ▶ receiver ▶ landfall source ▶ landfall sink ▶ native        each drains the same log
//!       write ▶ landfall, both ▶ native                                    near and far
//!       write ▶ native, durable
//! ```
//!
//! `make bench` and `make bench-quick` build what is needed and start it. Prints a line for each figure as it
//! is taken, `ratio NAME VALUE GOAL` for each goal, and writes docs/benchmarks. Ends with 0 where all was
//! measured, whether or not a goal is met. Interrupted (Ctrl-C), it reports what it has measured until then.

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
use testbed::{Connect, Kafka};
use tokio_postgres::Client;
use workload::{ALL, Workload, Written};

const USAGE: &str = "usage: bench PATH-OF-LANDFALL [--quick] [--rounds N] [--scale X] [--only WORKLOAD,...] \
                     [--rtt MS,...] [--source SETTING]... [--link SETTING]... [--no-debezium] [--out DIRECTORY]";
/// What a short run takes.
const QUICK: &[&str] = &["insert-1", "insert-1000", "update-1", LATENCY];
/// Stands for the latencies in `--only`.
const LATENCY: &str = "latency";
/// Rows a second while latency is measured.
const PACE: f64 = 200.0;
/// Rows a second, and for how long, before it is measured: what a broker meets for the first time, it compiles at the
/// cost of whoever is measured then.
const PACE_BEFORE: f64 = 1_000.0;
const TIME_BEFORE: Duration = Duration::from_secs(15);
/// Rows a transaction from which on it is a giant.
const GIANT: u64 = 1_000_000;
/// Stands in `--only` for how each grows with its rows.
const GROWTH: &str = "growth";
/// The workload that grows, how many rows it has at first, and what its figures are called then and later.
const GROWS: &str = "insert-1000";
const FEW: u64 = 1_000_000;
const GROWTH_FEW: &str = "growth-1m";
const GROWTH_MANY: &str = "growth-10m";
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
    /// Settings of Landfall's link that are not the defaults, a line each.
    link: Vec<String>,
    /// The same of its source.
    source: Vec<String>,
    latency: Duration,
    debezium: bool,
    /// Leaves out what no goal is about.
    goals_only: bool,
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
            link: Vec::new(),
            source: Vec::new(),
            latency: Duration::from_secs(20),
            debezium: true,
            goals_only: false,
            out: Some("docs/benchmarks".into()),
        };
        let names = |list: String| list.split(',').map(str::to_owned).collect::<Vec<_>>();
        while let Some(arg) = args.next() {
            let mut value = || args.next().context(USAGE);
            match arg.as_str() {
                "--quick" => {
                    plan.rounds = 1;
                    // Less, and a burst in some buffer passes for a rate.
                    plan.scale = 0.4;
                    plan.goals_only = true;
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
                "--link" => plan.link.push(value()?),
                "--source" => plan.source.push(value()?),
                // Most of a run's time is its: for whoever tunes the others.
                "--no-debezium" => plan.debezium = false,
                "--out" => plan.out = Some(value()?.into()),
                _ => anyhow::bail!("{arg}: {USAGE}"),
            }
        }
        Ok(plan)
    }

    /// The rows of one drain.
    fn rows(&self, workload: &Workload) -> u64 {
        ((workload.rows as f64 * self.scale) as u64).max(workload.rows_per_transaction)
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
    let mut about = Vec::new();
    if !plan.goals_only {
        let stalls = stalls::watch();
        println!("machine: {stalls}");
        about.push(("evenness".into(), stalls.to_string()));
    }
    // What fails, or is interrupted, is said; what was measured besides is worth the hours it took.
    let mut failed = Vec::new();
    let mut site = Vec::new();
    tokio::select! {
        () = measure(plan, &mut report, &mut site, &mut failed) => (),
        _ = tokio::signal::ctrl_c() => report.missing("the rest", "the run was interrupted"),
    }
    for (name, error) in &failed {
        report.failed(name, error);
    }
    judge(plan, &mut report);
    about.splice(0..0, site);
    about.push(("rounds".into(), plan.rounds.to_string()));
    about.push(("scale".into(), format!("{} of the full number of rows", plan.scale)));
    about.push(("took".into(), format!("{} s", began.elapsed().as_secs())));
    for (name, settings) in [("source", &plan.source), ("link", &plan.link)] {
        if !settings.is_empty() {
            about.push((name.into(), format!("`{}`", settings.join("`, `"))));
        }
    }
    if let Some(out) = &plan.out {
        report.write(out, &about)?;
        println!("written to {}", out.display());
    }
    anyhow::ensure!(failed.is_empty(), "{} of the workloads failed", failed.len());
    Ok(())
}

/// Everything there is to measure; what takes longest comes last.
async fn measure(
    plan: &Plan,
    report: &mut Report,
    about: &mut Vec<(String, String)>,
    failed: &mut Vec<(&'static str, anyhow::Error)>,
) {
    let kafka = match site::broker().await {
        Ok(kafka) => kafka,
        Err(error) => return failed.push(("Kafka", error)),
    };
    if plan.takes(LATENCY) {
        match latencies(plan, &kafka, report).await {
            Ok(site) => *about = site,
            Err(error) => failed.push((LATENCY, error)),
        }
    }
    if plan.takes(GROWTH) {
        failed.extend(growth(plan, &kafka, report).await.err().map(|error| (GROWTH, error)));
    }
    if plan.takes(backfill::NAME) {
        failed.extend(backfill::run(plan, &kafka, report).await.err().map(|error| (backfill::NAME, error)));
    }
    let mut workloads = ALL.iter().filter(|workload| plan.takes(workload.name)).peekable();
    // Not before somebody needs it: it is another JVM beside what is measured.
    let connect = match workloads.peek() {
        Some(_) if plan.debezium && testbed::home::has_rivals() => match Connect::start(&kafka).await {
            Ok(connect) => Some(connect),
            Err(error) => {
                report.failed("debezium", &error);
                None
            }
        },
        _ => None,
    };
    for workload in workloads {
        match drains(plan, workload, (&kafka, connect.as_ref()), report).await {
            Ok(site) => *about = site,
            Err(error) => failed.push((workload.name, error)),
        }
        if let Some(connect) = &connect {
            Debezium::end(connect, workload.name).await;
        }
    }
}

/// Every drain of one workload.
async fn drains(
    plan: &Plan,
    workload: &Workload,
    (kafka, connect): (&Kafka, Option<&Connect>),
    report: &mut Report,
) -> Result<Vec<(String, String)>> {
    println!("{}: {}", workload.name, workload.about);
    let site = Site::start(workload.name, kafka).await?;
    let schema = (workload.setup)();
    site.source.execute(SOURCE, &schema).await?;
    let mut landfall = Landfall::set_up(plan, &site, &schema).await?;
    let native = Native::set_up(&site, &workload.tables.join(", "), &schema).await?;
    let receiver = Receiver::set_up(&site).await?;
    let name = workload.name;
    let rows = plan.rows(workload);
    // The first rows of each do not count: caches, a JVM of the rival's that compiles.
    let (lead, rounds) =
        if workload.rows_per_transaction < GIANT { (rows / WARM_SHARE, plan.rounds) } else { (0, 1) };
    // One transaction of five million rows is more than its queues bear on this machine.
    let mut debezium = match connect {
        Some(connect) if workload.rows_per_transaction < GIANT => {
            let mut rival = Debezium::set_up(connect, &site, workload, &schema).await?;
            match rival.warm(&site, workload, lead).await {
                Ok(()) => Some(rival),
                Err(error) => {
                    report.failed(&format!("debezium on {name}"), &error);
                    Debezium::end(connect, name).await;
                    None
                }
            }
        }
        _ => None,
    };
    let mut writer = Writer { client: site.source.connect(SOURCE).await?, workload, last: 0 };
    let outcome = async {
        if lead > 0 {
            let written = writer.write(lead).await?;
            receiver.drain(&site, &written).await?;
            landfall.whole(&site, workload, &written).await?;
            native.whole(&site, workload, &written, false).await?;
        }
        for _ in 0..rounds {
            if let Some(debezium) = &mut debezium {
                debezium.round(&site, workload, rows, report).await?;
                // The others pass over what it was given before they are measured.
                let written = writer.write(1).await?;
                receiver.drain(&site, &written).await?;
                landfall.whole(&site, workload, &written).await?;
                native.whole(&site, workload, &written, false).await?;
            }
            let written = writer.write(rows).await?;
            report.drain(name, "capture", "receiver", &receiver.drain(&site, &written).await?);
            report.drain(name, "capture", "landfall", &landfall.capture(&site, &written).await?);
            report.drain(name, "apply", "landfall", &landfall.apply(&site, workload, &written).await?);
            report.drain(name, "whole", "native", &native.whole(&site, workload, &written, false).await?);

            for &rtt in &plan.rtts {
                let what = if rtt == 0 { "whole".to_owned() } else { format!("whole-{rtt}ms") };
                site.set_rtt(Duration::from_millis(rtt));
                let written = writer.write(rows).await?;
                report.drain(name, &what, "landfall", &landfall.whole(&site, workload, &written).await?);
                report.drain(name, &what, "native", &native.whole(&site, workload, &written, false).await?);
                receiver.drain(&site, &written).await?;
                site.set_rtt(Duration::ZERO);
            }

            if lead > 0 && !plan.goals_only {
                let written = writer.write(rows / DURABLE_SHARE).await?;
                let durable = native.whole(&site, workload, &written, true).await?;
                report.drain(name, "whole", "native-durable", &durable);
                landfall.whole(&site, workload, &written).await?;
                receiver.drain(&site, &written).await?;
            }
        }
        let source = (&site.source, SOURCE);
        workload.require_equal(source, (&site.target, landfall::DATABASE)).await?;
        workload.require_equal(source, (&site.target, native::DATABASE)).await?;
        match &debezium {
            Some(_) => {
                let there = debezium::DATABASE;
                workload.require_equal((&site.source, there), (&site.target, there)).await
            }
            None => Ok(()),
        }
    };
    outcome.await.with_context(|| landfall.logs())?;
    site.about().await
}

/// Writes a workload at the source.
struct Writer<'a> {
    client: Client,
    workload: &'a Workload,
    /// Transactions written so far.
    last: u64,
}

impl Writer<'_> {
    async fn write(&mut self, rows: u64) -> Result<Written> {
        let written = self.workload.write(&self.client, self.last, rows.max(1)).await?;
        self.last = written.last;
        Ok(written)
    }
}

/// What ten times the rows cost: the same drain of [`FEW`] rows and of ten times as many, whatever the rounds and the
/// scale.
async fn growth(plan: &Plan, kafka: &Kafka, report: &mut Report) -> Result<()> {
    let workload = ALL.iter().find(|workload| workload.name == GROWS).context("it is one of them")?;
    println!("{GROWTH}: {} with {FEW} rows, and ten times as many", workload.name);
    let site = Site::start(GROWTH, kafka).await?;
    let schema = (workload.setup)();
    site.source.execute(SOURCE, &schema).await?;
    let mut landfall = Landfall::set_up(plan, &site, &schema).await?;
    let native = Native::set_up(&site, &workload.tables.join(", "), &schema).await?;
    let mut writer = Writer { client: site.source.connect(SOURCE).await?, workload, last: 0 };
    let written = writer.write(FEW / WARM_SHARE).await?;
    landfall.whole(&site, workload, &written).await?;
    native.whole(&site, workload, &written, false).await?;
    for (name, rows) in [(GROWTH_FEW, FEW), (GROWTH_MANY, 10 * FEW)] {
        let written = writer.write(rows).await?;
        let drain = landfall.whole(&site, workload, &written).await?;
        let own: f64 =
            drain.cpu.iter().filter(|(group, _)| group.starts_with("Landfall")).map(|(_, cpu)| cpu).sum();
        report.add(format!("{name}/own-cpu/landfall"), "s per million rows", own);
        report.drain(name, "whole", "landfall", &drain);
        report.drain(name, "whole", "native", &native.whole(&site, workload, &written, false).await?);
    }
    workload.require_equal((&site.source, SOURCE), (&site.target, landfall::DATABASE)).await
}

/// Commit to visible, of each contender alone, near and far, and beside a key that never rests.
async fn latencies(plan: &Plan, kafka: &Kafka, report: &mut Report) -> Result<Vec<(String, String)>> {
    println!("latency: {PACE} rows/s, each a transaction");
    let site = Site::start(LATENCY, kafka).await?;
    let schema = "create table probe (id int8 primary key, at timestamptz not null default now());
        create table hot (id int8 primary key, n int8 not null); insert into hot values (1, 0)";
    site.source.execute(SOURCE, schema).await?;
    let mut landfall = Landfall::set_up(plan, &site, schema).await?;
    let native = Native::set_up(&site, "probe, hot", schema).await?;
    landfall.start().await?;
    latency::measure(&site, landfall::DATABASE, PACE_BEFORE, TIME_BEFORE).await?;
    landfall.stop().await?;
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
            if plan.goals_only {
                continue;
            }
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
async fn caught_up(site: &Site<'_>) -> Result<String> {
    let largest = site.source.query_text(SOURCE, "select coalesce(max(id), 0) from probe").await?;
    Ok(format!("select coalesce(max(id), 0) >= {} from probe", largest.unwrap_or_default()))
}

async fn measure_into(
    report: &mut Report,
    site: &Site<'_>,
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
async fn hot_key(site: &Site<'_>) -> Result<tokio::task::JoinHandle<()>> {
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
    report.ratio(
        "growth-own-cpu-10m-vs-1m",
        &format!("{GROWTH_MANY}/own-cpu/landfall"),
        &format!("{GROWTH_FEW}/own-cpu/landfall"),
        Goal::AtMost(1.1),
    );
    if let Some(peak) = report.of(&format!("{GROWTH_MANY}/whole-peak/landfall")) {
        report.judge("growth-10m-peak-mib", peak, Goal::AtMost(128.0));
    }
    for (rival, least) in [("copy", 0.8), ("native", 1.0)] {
        report.ratio(
            &format!("backfill-vs-{rival}"),
            "backfill/rate/landfall",
            &format!("backfill/rate/{rival}"),
            Goal::AtLeast(least),
        );
    }
    if let Some(peak) = report.of("backfill/rate-peak/landfall") {
        report.judge("backfill-peak-mib", peak, Goal::AtMost(128.0));
    }
    report.ratio(
        "hot-key-p99-vs-idle",
        "latency-hot/p99/landfall",
        "latency-0ms/p99/landfall",
        Goal::AtMost(2.0),
    );
}
