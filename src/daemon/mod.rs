//! The daemon: starts everything, owns every task, ends everything in order.
//!
//! On SIGTERM or SIGINT (and SIGHUP, from the terminal it was started at): ready goes false, the roads are asked to end
//! and finish what is in hand within [`ROADS_TIMEOUT`]; health is served until they have. What is cut off then is taken up
//! again at the next start, from progress that lives with the rows.

mod logs;
mod manager;
mod roads;

use std::{io::IsTerminal, process::ExitCode, sync::Arc, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};
use tracing::Instrument;

use manager::{Manager, Turning, Turns};
pub use roads::{Parts, Road};

use crate::{
    api,
    config::{HttpSettings, Settings},
    control::{history, probe},
    fault::{Code, Consequence, Fault, Result},
    metrics::Metrics,
    roster::Roster,
    task::{self, Stop},
};

/// How long the roads may take to finish what is in hand; what orchestrators grant before they kill
/// (30 s at most of them) is longer.
const ROADS_TIMEOUT: Duration = Duration::from_secs(10);

/// How long requests in flight may take after that.
const HTTP_TIMEOUT: Duration = Duration::from_secs(1);

/// How long it is waited for the listener's address: an interface that comes up late, a daemon that is just ending.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs a daemon until it is told to end: 0 then; where it could not start 2, or 1 if that may pass by itself.
pub async fn run(settings: Settings) -> ExitCode {
    logs::start(&settings.log);
    let log = settings.log.clone();
    match run_until_told(settings).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            // Whatever log.level leaves out: whoever started it has to learn why it is not there.
            logs::always(&log, || {
                tracing::error!(code = %fault.code(), next = fault.remedy(), "{}", fault.message());
            });
            ExitCode::from(match fault.code().consequence() {
                Consequence::Retry => 1,
                Consequence::Halt => 2,
            })
        }
    }
}

async fn run_until_told(settings: Settings) -> Result<()> {
    let mut signals = Signals::new()?;
    let roster = Arc::new(Roster::new(settings.region.clone()));
    let metrics = Metrics::new(roster.clone());
    announce(&settings, &roster);
    let Some(listener) = listen(&settings.http, &mut signals).await? else { return Ok(()) };
    tracing::info!(region = %settings.region, http = %settings.http.listen, "landfall {}", env!("CARGO_PKG_VERSION"));

    let (stop_roads, roads_stop) = task::stopper();
    let (stop_rest, rest_stop) = task::stopper();
    let board =
        api::Board { roster: roster.clone(), metrics: metrics.clone(), max_lag: settings.ready.max_lag };
    let http = task::spawn("http", api::serve(listener, board, rest_stop.clone()));
    let history = task::spawn("history", history::run(roster.clone(), rest_stop.clone()));
    let probe =
        task::spawn("probe", probe::run(settings.database.clone(), roster.clone(), rest_stop.clone()));
    let parts = Parts { settings, roster: roster.clone(), metrics, stop: roads_stop.clone() };
    let roads: Vec<Owned> =
        roads::roads(&parts)?.into_iter().map(|road| Owned::start(road, &roster, &roads_stop)).collect();

    let manager = Arc::new(Manager::from_environment());
    let turns = roads.iter().map(|road| Arc::clone(&road.turns)).collect();
    let feeding = manager::feed(Arc::clone(&manager), turns, roster.clone(), rest_stop);
    let watchdog = task::spawn("watchdog", feeding);
    manager.say("READY=1");

    let told = signals.next().await;
    manager.say("STOPPING=1");
    tracing::info!(signal = told, "ending: finishing what is in hand");
    roster.set_draining();
    stop_roads.stop();
    let deadline = Instant::now() + ROADS_TIMEOUT;
    for road in roads {
        road.end(deadline).await;
    }
    stop_rest.stop();
    end("watchdog", watchdog).await;
    end("history", history).await;
    end("probe", probe).await;
    if let Some(Err(error)) = end("http", http).await {
        tracing::warn!(%error, "the HTTP listener broke");
    }
    tracing::info!("ended");
    Ok(())
}

/// Opens the listener; where its address is not there yet or still taken, as at a boot, it is tried for a while. None where
/// we are told to end meanwhile.
async fn listen(settings: &HttpSettings, signals: &mut Signals) -> Result<Option<api::Listening>> {
    let since = Instant::now();
    let mut told = false;
    loop {
        let fault = match api::listen(settings).await {
            Err(fault) if fault.code() == Code::ListenerBusy && since.elapsed() < LISTEN_TIMEOUT => fault,
            outcome => return outcome.map(Some),
        };
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(code = %fault.code(), next = fault.remedy(), "{}", fault.message());
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => (),
            signal = signals.next() => {
                tracing::info!(signal, "ended before it could listen");
                return Ok(None);
            }
        }
    }
}

/// Puts every road the settings ask for on the roster before anyone can read it: what is not running
/// yet is shown as starting, never left out.
fn announce(settings: &Settings, roster: &Roster) {
    if let Some(source) = &settings.source {
        roster.source().name_stream(&source.stream);
    }
    for link in &settings.links {
        roster.link(&link.from, &link.stream);
    }
}

/// A road, and its name. The task watches it: what drives the road is a thread of its own.
struct Owned {
    name: String,
    task: JoinHandle<()>,
    turns: Arc<Turns>,
}

impl Owned {
    /// Starts a road, and watches it: one that breaks, or ends unasked, is shown as halted.
    fn start(road: Road, roster: &Arc<Roster>, stop: &Stop) -> Self {
        let Road { name, future } = road;
        let (roster, stop, watched) = (roster.clone(), stop.clone(), name.clone());
        let span = tracing::info_span!("road", name);
        let turns = Arc::new(Turns::default());
        let road = Turning::new(Box::pin(future.instrument(span)), Arc::clone(&turns));
        let road = task::spawn_alone("road", road);
        let watch = async move {
            let ended = road.await;
            let problem = match ended {
                Err(error) => format!("{watched}: its task broke: {error}"),
                Ok(()) if !stop.is_asked() => format!("{watched}: its task ended though nobody asked it to"),
                Ok(()) => return,
            };
            let fault = Fault::new(Code::Internal, problem);
            roster.halt(&watched, &fault.remedied_by("restart the daemon; report it with the log around it"));
        };
        Self { name, task: task::spawn("watch", watch), turns }
    }

    async fn end(mut self, deadline: Instant) {
        if timeout_at(deadline, &mut self.task).await.is_err() {
            tracing::warn!(road = self.name, "did not finish in time; it resumes at the next start");
            self.task.abort();
            let _ = self.task.await;
        }
    }
}

async fn end<T>(name: &'static str, mut task: JoinHandle<T>) -> Option<T> {
    match timeout(HTTP_TIMEOUT, &mut task).await {
        Ok(ended) => ended.inspect_err(|error| tracing::error!(task = name, %error, "broke")).ok(),
        Err(_) => {
            task.abort();
            None
        }
    }
}

/// What tells a daemon to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// Somebody sits at it: when the terminal goes, so do we.
    at_terminal: bool,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| {
            signal(kind).map_err(|error| Fault::new(Code::Internal, "listen for signals").because(error))
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
            at_terminal: std::io::stdin().is_terminal(),
        })
    }

    async fn next(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => {
                    if self.at_terminal {
                        return "SIGHUP";
                    }
                    // Whoever changed the settings means well: to end here would stop what they want to go on.
                    tracing::warn!("SIGHUP changes nothing: the settings are read at the start; restart the daemon");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::roster::State;

    fn roster() -> Arc<Roster> {
        Arc::new(Roster::new("eu-west-1".parse().unwrap()))
    }

    #[tokio::test]
    async fn a_road_that_breaks_or_ends_unasked_is_shown_as_halted() {
        for broken in [true, false] {
            let roster = roster();
            let source = roster.source();
            let (_stopper, stop) = task::stopper();
            let future = async move { assert!(!broken, "this panic is part of the test") }.boxed();
            let road = Road { name: source.road().to_owned(), future };
            Owned::start(road, &roster, &stop).task.await.unwrap();
            let State::Halted { code, message, .. } = source.state() else { panic!("{:?}", source.state()) };
            assert_eq!(code, Code::Internal, "{message}");
        }
    }

    #[tokio::test]
    async fn a_road_that_does_not_end_is_cut_off() {
        let roster = roster();
        let (stopper, stop) = task::stopper();
        let road = Road { name: "link a/main".to_owned(), future: std::future::pending().boxed() };
        let road = Owned::start(road, &roster, &stop);
        stopper.stop();
        let deadline = Instant::now() + Duration::from_millis(20);
        timeout(Duration::from_secs(5), road.end(deadline)).await.unwrap();
        assert!(Instant::now() >= deadline);
    }
}
