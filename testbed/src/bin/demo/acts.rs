//! The stage, and what is played on it, act by act.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use testbed::ledger::{self, Ledger, Plan};
use testbed::load::Pgbench;
use testbed::postgres::Shutdown;
use testbed::probe::{self, Latency, Probe};
use testbed::region::DATABASE;
use testbed::{Daemon, TwoRegions, eventually};

use crate::screen::{SCALE, Screen, sparkline};
use crate::standing::{Load, Standing};
use crate::verdict::{self, Verdict};

/// Between the regions, there and back, from the second act on.
const RTT: Duration = Duration::from_millis(80);

/// Transfers and pgbench's transactions a second: a laptop carries them beside two databases, two
/// brokers and everything that watches.
const TRANSFERS: f64 = 200.0;
const PGBENCH: f64 = 100.0;

/// A probe's row so often. An outage then shows as many long waits, as users would see it.
const PROBE_PERIOD: Duration = Duration::from_millis(20);

/// Undisturbed, before the regions are moved apart.
const STEADY: Duration = Duration::from_secs(10);
/// Undisturbed at a distance, before the first fault and after the last: with what lies between the
/// faults longer than they are, so that half of the whole run's rows show what is usual.
const CALM: Duration = Duration::from_secs(15);
/// Undisturbed, between two faults.
const PAUSE: Duration = Duration::from_secs(5);
/// How long what was stopped or killed stays away.
const AWAY: Duration = Duration::from_secs(3);
/// How long the WAN is cut.
const CUT: Duration = Duration::from_secs(15);

/// What is under way at most where nothing is wrong: half a second's rows.
const FEW: usize = 25;
/// After a fault, and at the end, what is under way arrives within this, or never.
const CATCH_UP: Duration = Duration::from_secs(60);

/// Everything that runs from the beginning to the end.
pub struct Demo {
    /// Where it is shown.
    pub screen: Arc<Screen>,
    /// Databases, brokers, and the line.
    pub regions: TwoRegions,
    /// The daemon that sends.
    pub us: Daemon,
    /// The daemon that receives.
    pub eu: Daemon,
    /// A load.
    pub pgbench: Pgbench,
    plan: Plan,
}

/// What is under way while an act is played.
struct Playing {
    load: Arc<Load>,
    standing: Standing,
    act: usize,
}

/// How many acts there are.
const ACTS: usize = 6;

impl Demo {
    /// Starts servers and daemons.
    pub async fn start(binary: &Path) -> Result<Demo> {
        let screen = Arc::new(Screen::new());
        screen.say("starting us-east-1 (Postgres 15, Kafka) and eu-west-1 (Postgres 18)");
        let regions = TwoRegions::start(15, 18, 1).await?;
        let plan = Plan { writers: 4, accounts: 200, rate: Some(TRANSFERS), ..Plan::default() };
        for region in [&regions.us, &regions.eu] {
            let client = region.connect().await?;
            ledger::create_tables(&client).await?;
            probe::create_table(&client).await?;
            Pgbench::new(&region.url())?.create_tables().await?;
        }
        let pgbench = Pgbench::new(&regions.us.url())?;
        screen.say("they are up, with empty tables on both sides; the daemons start");
        let us = regions.us.start_daemon(binary, &regions.us_sends()).await?;
        let eu = regions.eu.start_daemon(binary, &regions.eu_receives()).await?;
        let mut demo = Demo { screen, regions, us, eu, pgbench, plan };
        demo.us.wait_ready(CATCH_UP).await?;
        demo.eu.wait_ready(CATCH_UP).await?;
        let eu = &demo.eu;
        let log = || format!("the log of eu-west-1's daemon:\n{}", eu.log_tail());
        eventually(CATCH_UP, "a heartbeat of us-east-1 is applied in eu-west-1", async || {
            Ok(eu.metric("replication_lag_seconds").await?.is_some())
        })
        .await
        .with_context(log)?;
        let pages = [&demo.regions.us, &demo.regions.eu].map(|region| format!("http://{}/", region.http));
        demo.screen.say(format!("both daemons run, each with a page of its own: {}", pages.join(" ")));
        Ok(demo)
    }

    /// Plays all acts, and compares.
    pub async fn run(&mut self) -> Result<Verdict> {
        let target = self.regions.eu.url();
        let watch = ledger::watch_totals(&target);
        ledger::open_accounts(&self.regions.us.connect().await?, &self.plan).await?;
        self.screen
            .say("pgbench fills its 100,000 accounts in one transaction: larger than a batch, it crosses in slices");
        self.pgbench.fill(1).await?;
        let accounts = "select count(*) from pgbench_accounts";
        let eu = &self.regions.eu.postgres;
        eventually(CATCH_UP, "pgbench's accounts are in eu-west-1", async || {
            Ok(eu.query_text(DATABASE, accounts).await?.as_deref() == Some("100000"))
        })
        .await?;
        let mut pgbench = self.pgbench.start(2, Some(PGBENCH))?;
        let load = Arc::new(Load {
            ledger: Ledger::start(&self.regions.us.url(), &self.plan),
            probe: Probe::start(&self.regions.us.url(), &target, PROBE_PERIOD),
        });
        self.screen.say(format!(
            "they are there; the load runs: {TRANSFERS} bank transfers/s (seed {}), {PGBENCH} pgbench transactions/s, \
             a probe every {} ms",
            self.plan.seed,
            PROBE_PERIOD.as_millis()
        ));
        let (screen, us, eu) = (Arc::clone(&self.screen), self.regions.us.http, self.regions.eu.http);
        let standing = Standing::start(screen, us, eu, Arc::clone(&load));
        let mut playing = Playing { load, standing, act: 0 };
        let (near, far) = self.undisturbed(&mut playing).await?;
        self.kills(&mut playing).await?;
        self.cut(&mut playing).await?;
        self.restarts(&mut playing).await?;
        tokio::time::sleep(CALM).await;

        ensure!(pgbench.is_running(), "pgbench has ended:\n{}", pgbench.log_tail());
        let Playing { load, standing, .. } = playing;
        let lags = standing.stop().await;
        self.screen.clear();
        self.screen.print("");
        self.screen.say("the load ends; what is under way arrives");
        let Load { ledger, probe } = Arc::into_inner(load).context("somebody still looks at the load")?;
        pgbench.stop().await?;
        let record = ledger.stop().await?;
        // One more row of the probe at least, behind the load's last: what arrives in commit order.
        tokio::time::sleep(PROBE_PERIOD * 5).await;
        let latency = probe.stop(CATCH_UP).await;
        self.screen.say(format!("latency side by side:         {near}"));
        self.screen.say(format!("latency {} ms apart:          {far}", RTT.as_millis()));
        self.screen.say(format!("latency over the whole run:   {latency}"));
        self.screen.print(&format!("             {}\n             {SCALE}", sparkline(&lags, 66)));
        verdict::compare(&self.screen, &self.regions, record, watch.stop(), latency).await
    }

    /// Nothing goes wrong; first side by side, then at a distance.
    async fn undisturbed(&self, playing: &mut Playing) -> Result<(Latency, Latency)> {
        self.caught_up(&playing.load).await?;
        self.act(
            playing,
            "steady",
            "the lag: without a distance, what the way itself takes; no transaction is ever seen half",
        );
        let near = self.calm(STEADY, &playing.load).await?;
        self.regions.set_rtt(RTT);
        self.act(
            playing,
            &format!("{} ms there and back between the regions", RTT.as_millis()),
            "a row needs half a round trip to cross, and waits about as long until the reader asks again",
        );
        let far = self.calm(CALM, &playing.load).await?;
        Ok((near, far))
    }

    /// Each daemon is killed.
    async fn kills(&mut self, playing: &mut Playing) -> Result<()> {
        self.act(
            playing,
            "kill -9 the daemon of us-east-1, then that of eu-west-1",
            "rows pile up in the slot, then in Kafka; none is lost, none applied twice",
        );
        self.us.kill9()?;
        tokio::time::sleep(AWAY).await;
        self.us.start_again()?;
        self.screen.say("us-east-1's starts again: it reads the tail of its own topic and goes on behind it");
        self.caught_up(&playing.load).await?;
        tokio::time::sleep(PAUSE).await;
        self.eu.kill9()?;
        self.screen.say("eu-west-1's is killed");
        tokio::time::sleep(AWAY).await;
        self.eu.start_again()?;
        self.screen.say("it starts again: it asks its own database where it stood");
        self.caught_up(&playing.load).await?;
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }

    /// The line is cut and mended.
    async fn cut(&mut self, playing: &mut Playing) -> Result<()> {
        self.act(
            playing,
            &format!("the WAN is cut for {} s", CUT.as_secs()),
            "the lag grows, the slot does not: what waits, waits in us-east-1's Kafka, not on its disk",
        );
        self.regions.cut();
        tokio::time::sleep(CUT).await;
        self.regions.heal();
        self.screen.say("it is mended: eu-west-1 reads on from where it stood");
        self.caught_up(&playing.load).await?;
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }

    /// A broker and a database are restarted.
    async fn restarts(&mut self, playing: &mut Playing) -> Result<()> {
        self.act(
            playing,
            "the broker of us-east-1 is restarted",
            "nothing can be kept, so nothing is confirmed: now the slot does grow, and shrinks again after",
        );
        self.regions.us.kafka.stop(0).await?;
        tokio::time::sleep(AWAY).await;
        self.regions.us.kafka.start_again(0).await?;
        self.screen.say("it is back; its one replica has everything that was acknowledged");
        self.caught_up(&playing.load).await?;
        tokio::time::sleep(PAUSE).await;

        self.act(
            playing,
            "the database of eu-west-1 is restarted",
            "its daemon is not ready meanwhile, and waits; rows and progress stand or fall together",
        );
        self.regions.eu.postgres.stop(Shutdown::Fast).await?;
        tokio::time::sleep(AWAY).await;
        self.regions.eu.postgres.start_again().await?;
        self.screen.say("it is back");
        self.caught_up(&playing.load).await?;
        Ok(())
    }

    fn act(&self, playing: &mut Playing, title: &str, watch: &str) {
        playing.act += 1;
        let title = format!("act {} of {ACTS}: {title}", playing.act);
        playing.standing.act(&title);
        self.screen.act(&title, watch);
    }

    /// Lets the load run, and returns the latencies of that time.
    async fn calm(&self, how_long: Duration, load: &Load) -> Result<Latency> {
        let before = load.probe.latency().count();
        tokio::time::sleep(how_long).await;
        let mut calm = load.probe.latency_after(before);
        // What is under way at this moment is not missing.
        calm.missing = 0;
        ensure!(calm.count() > 0, "no row of the probe arrived in {how_long:?}");
        Ok(calm)
    }

    /// Waits until no more is under way than where nothing is wrong.
    async fn caught_up(&self, load: &Load) -> Result<()> {
        let since = Instant::now();
        loop {
            let latency = load.probe.latency();
            if latency.missing <= FEW && latency.count() > 0 {
                self.screen.say(format!("caught up {:.1} s later", since.elapsed().as_secs_f64()));
                return Ok(());
            }
            if since.elapsed() > CATCH_UP {
                bail!("{} rows of the probe are still under way {CATCH_UP:?} later", latency.missing);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
