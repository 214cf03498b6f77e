//! The demo: two regions 80 ms apart under load, each daemon killed and the line between them cut, and
//! then every row of both databases held against the other's.
//!
//! ```text
//!   us-east-1                                    eu-west-1
//!   bank transfers ─┐
//!   pgbench ────────┼▶ Postgres 15 ▶ daemon ▶ Kafka ══ WAN ══▶ daemon ▶ Postgres 18
//!   probe ──────────┘                  ✗                ✗        ✗          │
//!        └───────────────── how long until the row is there? ───────────────┘
//! ```
//!
//! `make demo` builds what it needs and starts it. It takes one argument, the path of the `landfall`
//! binary (or `LANDFALL_BINARY`); its last line is the verdict, and it ends with 0 only where both sides
//! are equal and the ledger's record of what was acknowledged agrees. With `LANDFALL_TESTBED_KEEP` set,
//! the directories with all logs stay behind.
//!
//! pgbench's history table has no key. A table without one can carry no update and no delete, and equal
//! rows could not be told apart in the comparison, so it is given one of its own before the load starts
//! (`testbed::load`); nothing is left out.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use testbed::ledger::{self, Ledger, Plan};
use testbed::load::Pgbench;
use testbed::probe::{self, Latency, Probe};
use testbed::region::DATABASE;
use testbed::{Daemon, TwoRegions, checksum, eventually};

/// Between the regions, there and back.
const RTT: Duration = Duration::from_millis(80);

/// Transfers and pgbench's transactions a second: a laptop carries them beside two databases, two
/// brokers and everything that watches.
const TRANSFERS: f64 = 200.0;
const PGBENCH: f64 = 100.0;

/// A probe's row so often. An outage then shows as many long waits, as users would see it.
const PROBE_PERIOD: Duration = Duration::from_millis(20);

/// Undisturbed, before the first fault and after the last: longer together than the faults, so that
/// half of the whole run's rows show what is usual.
const CALM: Duration = Duration::from_secs(18);
/// Undisturbed, between two faults.
const PAUSE: Duration = Duration::from_secs(6);
/// How long a killed daemon stays away.
const AWAY: Duration = Duration::from_secs(3);
/// How long the WAN is cut.
const CUT: Duration = Duration::from_secs(15);

/// What is under way at most where nothing is wrong: half a second's rows.
const FEW: usize = 25;
/// After a fault, and at the end, what is under way arrives within this, or never.
const CATCH_UP: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> ExitCode {
    let binary = std::env::args_os().nth(1).or_else(|| std::env::var_os("LANDFALL_BINARY"));
    let Some(binary) = binary else {
        eprintln!("usage: demo PATH-OF-LANDFALL (or `make demo`)");
        return ExitCode::from(2);
    };
    // The daemon runs in a directory of its own.
    let binary = match std::fs::canonicalize(&binary) {
        Ok(binary) => binary,
        Err(error) => {
            eprintln!("demo: find {}: {error}", binary.display());
            return ExitCode::from(2);
        }
    };
    let mut demo = match Demo::start(&binary).await {
        Ok(demo) => demo,
        Err(error) => return failed(&error),
    };
    match demo.run().await {
        Ok(verdict) => {
            println!("{}", verdict.line());
            if verdict.is_equal() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            for (region, daemon) in [("us-east-1", &demo.us), ("eu-west-1", &demo.eu)] {
                eprintln!("\nthe last lines of {region}'s daemon:\n{}", daemon.log_tail());
            }
            failed(&error)
        }
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("\n{error:#}\n");
    let first = error.to_string().lines().next().unwrap_or_default().to_owned();
    println!("verdict: DIFFERENT the demo did not come to its end: {first}");
    ExitCode::FAILURE
}

/// Everything that runs from the beginning to the end.
struct Demo {
    began: Instant,
    regions: TwoRegions,
    us: Daemon,
    eu: Daemon,
    plan: Plan,
    pgbench: Pgbench,
}

/// What is at work while things break.
struct Load {
    ledger: Ledger,
    probe: Probe,
}

impl Demo {
    async fn start(binary: &std::path::Path) -> Result<Demo> {
        let began = Instant::now();
        say(began, "starting us-east-1 (Postgres 15, Kafka) and eu-west-1 (Postgres 18, Kafka)");
        let regions = TwoRegions::start(15, 18, 1).await?;
        regions.set_rtt(RTT);
        say(began, format!("they are up, {} ms apart", RTT.as_millis()));

        let plan = Plan { writers: 4, accounts: 200, rate: Some(TRANSFERS), ..Plan::default() };
        for region in [&regions.us, &regions.eu] {
            let client = region.connect().await?;
            ledger::create_tables(&client).await?;
            probe::create_table(&client).await?;
            Pgbench::new(&region.url())?.create_tables().await?;
        }
        let pgbench = Pgbench::new(&regions.us.url())?;
        say(
            began,
            "empty tables made on both sides; pgbench_history is given a key, so that its rows can be told apart",
        );

        let us = regions.us.start_daemon(binary, &regions.us_sends()).await?;
        let eu = regions.eu.start_daemon(binary, &regions.eu_receives()).await?;
        let mut demo = Demo { began, regions, us, eu, plan, pgbench };
        demo.us.wait_ready(CATCH_UP).await?;
        demo.eu.wait_ready(CATCH_UP).await?;
        let eu = &demo.eu;
        let log = || format!("the log of eu-west-1's daemon:\n{}", eu.log_tail());
        eventually(CATCH_UP, "a heartbeat of us-east-1 is applied in eu-west-1", async || {
            Ok(lag(eu).await?.is_some())
        })
        .await
        .with_context(log)?;
        demo.say("both daemons run; heartbeats of us-east-1 arrive in eu-west-1");
        Ok(demo)
    }

    async fn run(&mut self) -> Result<Verdict> {
        let target = self.regions.eu.url();
        let watch = ledger::watch_totals(&target);
        ledger::open_accounts(&self.regions.us.connect().await?, &self.plan).await?;
        self.say("pgbench fills its 100,000 accounts in one transaction: larger than a batch, it crosses in slices");
        self.pgbench.fill(1).await?;
        let accounts = "select count(*) from pgbench_accounts";
        let eu = &self.regions.eu.postgres;
        eventually(CATCH_UP, "pgbench's accounts are in eu-west-1", async || {
            Ok(eu.query_text(DATABASE, accounts).await?.as_deref() == Some("100000"))
        })
        .await?;
        let mut pgbench = self.pgbench.start(2, Some(PGBENCH))?;
        let load = Load {
            ledger: Ledger::start(&self.regions.us.url(), &self.plan),
            probe: Probe::start(&self.regions.us.url(), &target, PROBE_PERIOD),
        };
        self.say(format!(
            "they are there; the load runs: {TRANSFERS} bank transfers/s (seed {}), {PGBENCH} pgbench transactions/s, \
             a probe every {} ms",
            self.plan.seed,
            PROBE_PERIOD.as_millis()
        ));
        self.caught_up(&load).await?;

        self.say(
            "nothing is broken. Watch: a row needs half a round trip to cross, and waits about as long \
             until the reader asks again",
        );
        let before = load.probe.latency().count();
        self.look_for(CALM, &load).await;
        // What is under way at this moment is not missing.
        let mut calm = load.probe.latency_after(before);
        calm.missing = 0;
        ensure!(calm.count() > 0, "no row of the probe arrived in {CALM:?}");

        self.say("kill -9 the daemon of us-east-1. Watch: rows pile up in its slot, and none is lost");
        self.us.kill9()?;
        self.look_for(AWAY, &load).await;
        self.us.start_again()?;
        self.say("started again: it reads the tail of its own topic and goes on behind it");
        self.caught_up(&load).await?;
        self.look_for(PAUSE, &load).await;

        self.say("kill -9 the daemon of eu-west-1. Watch: rows pile up in Kafka, none is applied twice");
        self.eu.kill9()?;
        self.look_for(AWAY, &load).await;
        self.eu.start_again()?;
        self.say("started again: it asks its own database where it stood");
        self.caught_up(&load).await?;
        self.look_for(PAUSE, &load).await;

        self.say(format!(
            "cut the WAN for {} s. Watch: the slot of us-east-1 goes on, its disk does not fill",
            CUT.as_secs()
        ));
        self.regions.cut();
        self.look_for(CUT, &load).await;
        self.regions.heal();
        self.say("the WAN is mended: eu-west-1 reads on from where it stood");
        self.caught_up(&load).await?;
        self.look_for(CALM, &load).await;

        ensure!(pgbench.is_running(), "pgbench has ended:\n{}", pgbench.log_tail());
        self.say("the load ends; what is under way arrives");
        let Load { ledger, probe } = load;
        pgbench.stop().await?;
        let record = ledger.stop().await?;
        // One more row of the probe at least, behind the load's last: what arrives in commit order.
        tokio::time::sleep(PROBE_PERIOD * 5).await;
        let latency = probe.stop(CATCH_UP).await;
        self.say(format!("latency while nothing was broken: {calm}"));
        self.say(format!("latency over the whole run:       {latency}"));

        let source = self.regions.us.connect().await?;
        let target = self.regions.eu.connect().await?;
        let (mut ours, mut theirs) = (checksum::Sums::new(), checksum::Sums::new());
        // A session of pgbench's that was in its commit may have been a moment behind the probe.
        let equal = eventually(Duration::from_secs(10), "both sides are equal", async || {
            ours = checksum::database(&source).await?;
            theirs = checksum::database(&target).await?;
            Ok(checksum::differences(&ours, &theirs).is_empty())
        });
        let _ = equal.await;
        let mut findings = checksum::differences(&ours, &theirs);
        for (name, table) in &ours {
            println!("             {name:<28} {:>8} rows  sum {}", table.rows, table.sum);
        }
        let report = record.compare(&source, &target).await?;
        findings.extend(report.mismatches.iter().cloned());
        let watch = watch.stop();
        self.say(format!(
            "the target was looked at in {} snapshots: {} did not add up",
            watch.snapshots, watch.torn
        ));
        findings.extend(watch.examples.into_iter().take(2));
        if latency.missing > 0 {
            findings.push(format!("{} rows of the probe never arrived", latency.missing));
        }
        if ours.is_empty() || report.acked == 0 {
            findings.push("nothing was compared".to_owned());
        }
        for finding in &findings {
            println!("             different: {finding}");
        }
        Ok(Verdict {
            tables: ours.len(),
            rows: ours.values().map(|table| table.rows).sum(),
            acked: report.acked,
            lost: report.lost,
            doubled: report.doubled,
            clean: findings.is_empty() && report.is_clean() && watch.torn == 0,
            latency,
        })
    }

    fn say(&self, text: impl AsRef<str>) {
        say(self.began, text);
    }

    /// Lets the load run, and says every few seconds how it stands.
    async fn look_for(&self, how_long: Duration, load: &Load) {
        let until = Instant::now() + how_long;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            tokio::time::sleep(left.min(Duration::from_secs(3))).await;
            println!("             {}", self.standing(load).await);
            if Instant::now() >= until {
                return;
            }
        }
    }

    async fn standing(&self, load: &Load) -> String {
        let under_way = load.probe.latency().missing;
        let lag = match lag(&self.eu).await {
            Ok(Some(seconds)) => format!("{seconds:.1} s behind by its own account"),
            Ok(None) => "waits for a heartbeat".to_owned(),
            Err(_) => "does not answer".to_owned(),
        };
        let retained = "select coalesce(max(pg_current_wal_lsn() - confirmed_flush_lsn), 0)::int8 / 1024 \
                        from pg_replication_slots";
        let retained = self.regions.us.postgres.query_text(DATABASE, retained).await;
        let retained = retained.ok().flatten().unwrap_or_default();
        format!(
            "acked {:>6} · under way {under_way:>4} probes · eu-west-1 {lag} · the slot holds {retained} KiB",
            load.ledger.acked()
        )
    }

    /// Waits until no more is under way than where nothing is wrong.
    async fn caught_up(&self, load: &Load) -> Result<()> {
        let since = Instant::now();
        let mut told = since;
        loop {
            let latency = load.probe.latency();
            if latency.missing <= FEW && latency.count() > 0 {
                self.say(format!("caught up {:.1} s later", since.elapsed().as_secs_f64()));
                return Ok(());
            }
            if since.elapsed() > CATCH_UP {
                bail!("{} rows of the probe are still under way {CATCH_UP:?} later", latency.missing);
            }
            if told.elapsed() > Duration::from_secs(3) {
                told = Instant::now();
                println!("             {}", self.standing(load).await);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn say(began: Instant, text: impl AsRef<str>) {
    println!("[{:>6.1} s]   {}", began.elapsed().as_secs_f64(), text.as_ref());
}

/// What the daemon says of the age of what it has applied.
async fn lag(daemon: &Daemon) -> Result<Option<f64>> {
    let (_, body) = daemon.http_get("/health/ready").await?;
    let body: serde_json::Value = serde_json::from_str(&body)?;
    Ok(body["replica_lag_seconds"].as_f64())
}

struct Verdict {
    tables: usize,
    rows: i64,
    acked: u64,
    lost: u64,
    doubled: u64,
    clean: bool,
    latency: Latency,
}

impl Verdict {
    fn is_equal(&self) -> bool {
        self.clean && self.lost == 0 && self.doubled == 0
    }

    fn line(&self) -> String {
        let word = if self.is_equal() { "equal" } else { "DIFFERENT" };
        let ms = |figure: Option<f64>| figure.map_or("unknown".to_owned(), |ms| format!("{ms:.0}"));
        format!(
            "verdict: {word} tables={} rows={} acked={} lost={} doubled={} lag_p50_ms={} lag_p99_ms={}",
            self.tables,
            self.rows,
            self.acked,
            self.lost,
            self.doubled,
            ms(self.latency.p50_ms()),
            ms(self.latency.p99_ms())
        )
    }
}
