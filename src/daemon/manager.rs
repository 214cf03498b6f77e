//! What the service manager is told (sd_notify): that we serve, that we still turn, that we are ending.
//!
//! The watchdog is fed only by a proof. A beat needs the runtime's timer, a thread of its blocking pool, the
//! roster's locks, and of every road a turn of its own thread since the last one. Whether rows move is another
//! question, and health's: a link that waits for a lock, a database or a cut line is no reason to be killed.

use std::{
    os::unix::net::{SocketAddr, UnixDatagram},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::{
    roster::Roster,
    task::{self, Stop},
};

/// Beats within the time the service manager grants: two may be late before it acts.
const BEATS: u32 = 3;
/// How often a road turns at least. Often enough for any patience one would set, and not felt.
const TURN: Duration = Duration::from_millis(250);

/// The service manager, where one wants to hear of us.
#[derive(Debug)]
pub(super) struct Manager {
    socket: Option<UnixDatagram>,
    /// How long it waits for a beat before it kills us.
    pub(super) patience: Option<Duration>,
}

impl Manager {
    /// Takes what systemd gives its services. Whatever cannot be used is said and left out: the rows are
    /// worth more than being watched.
    pub(super) fn from_environment() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        let socket = variable("NOTIFY_SOCKET").and_then(|path| match connect(&path) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(%error, path, "NOTIFY_SOCKET cannot be used; the service manager is told nothing");
                None
            }
        });
        let ours = variable("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let micros =
            variable("WATCHDOG_USEC").and_then(|text| text.parse().ok()).filter(|micros| *micros > 0);
        Self { socket, patience: micros.filter(|_| ours).map(Duration::from_micros) }
    }

    /// Says it, where anybody listens.
    pub(super) fn say(&self, state: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.send(state.as_bytes()) {
            tracing::debug!(%error, state, "the service manager did not take it");
        }
    }
}

fn connect(path: &str) -> std::io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    // Rather lose a word than wait for whoever does not read.
    socket.set_nonblocking(true)?;
    #[cfg(target_os = "linux")]
    if let Some(name) = path.strip_prefix('@') {
        use std::os::linux::net::SocketAddrExt;
        socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?;
        return Ok(socket);
    }
    socket.connect_addr(&SocketAddr::from_pathname(path)?)?;
    Ok(socket)
}

/// Feeds the watchdog for as long as everything turns, until the end is asked for.
pub(super) async fn feed(manager: Arc<Manager>, roads: Vec<Arc<Turns>>, roster: Arc<Roster>, mut stop: Stop) {
    let Some(patience) = manager.patience else { return };
    // A road that turns has done so between two beats.
    let beat = (patience / BEATS).max(TURN * 2);
    let mut seen = vec![0; roads.len()];
    let mut tick = tokio::time::interval(beat);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => (),
            () = stop.asked() => return,
        }
        let turning = roads.iter().zip(&mut seen).all(|(road, seen)| road.turned(seen));
        let board = Arc::clone(&roster);
        let answered = timeout(beat, task::blocking(move || board.mode())).await;
        if turning && answered.is_ok() {
            manager.say("WATCHDOG=1");
        } else {
            tracing::error!(turning, blocking_pool = answered.is_ok(), "stuck: the watchdog is not fed");
        }
    }
}

/// Counts the turns of a road.
#[derive(Debug, Default)]
pub(super) struct Turns(AtomicU64);

/// Instead of a count: the road has ended, which the roster shows.
const ENDED: u64 = u64::MAX;

impl Turns {
    /// Whether the road has turned since `seen`, which is brought up to now, or turns no more.
    fn turned(&self, seen: &mut u64) -> bool {
        let before = std::mem::replace(seen, self.0.load(Relaxed));
        *seen != before || *seen == ENDED
    }
}

/// A road's future that counts its turns, and is woken for one every [`TURN`] by the runtime it runs on: where
/// anything keeps that runtime's thread, there is none.
pub(super) struct Turning<F> {
    road: F,
    turns: Arc<Turns>,
    /// Made with the first turn, on the runtime that it is to wake.
    next: Option<Pin<Box<Sleep>>>,
}

impl<F> Turning<F> {
    pub(super) fn new(road: F, turns: Arc<Turns>) -> Self {
        Self { road, turns, next: None }
    }
}

impl<F: Future + Unpin> Future for Turning<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let polled = Pin::new(&mut self.road).poll(context);
        self.turns.0.fetch_add(1, Relaxed);
        if polled.is_pending() {
            let next = self.next.get_or_insert_with(|| Box::pin(sleep(TURN)));
            while next.as_mut().poll(context).is_ready() {
                next.as_mut().reset(Instant::now() + TURN);
            }
        }
        polled
    }
}

impl<F> Drop for Turning<F> {
    fn drop(&mut self) {
        self.turns.0.store(ENDED, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn whatever_keeps_a_road_s_thread_starves_the_watchdog() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let heard = UnixDatagram::bind(&path).unwrap();
        heard.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        let hear = || {
            let mut word = [0; 64];
            heard.recv(&mut word).ok().map(|length| String::from_utf8_lossy(&word[..length]).into_owned())
        };
        let socket = connect(path.to_str().unwrap()).unwrap();
        let manager = Arc::new(Manager { socket: Some(socket), patience: Some(Duration::from_millis(1500)) });
        let turns = Arc::new(Turns::default());
        let (release, blocked) = std::sync::mpsc::channel::<()>();
        let (begin, begun) = tokio::sync::oneshot::channel::<()>();
        let road = Box::pin(async move {
            // Not the road itself, but a task beside it, does what none may: it waits inside a step.
            task::spawn("link reader", async move {
                let _ = begun.await;
                let _ = blocked.recv();
            });
            std::future::pending::<()>().await;
        });
        let road = task::spawn_alone("road", Turning::new(road, Arc::clone(&turns)));
        let roster = Arc::new(Roster::new("eu-west-1".parse().unwrap()));
        let (stopper, stop) = task::stopper();
        let feeding = task::spawn("watchdog", feed(manager, vec![Arc::clone(&turns)], roster, stop));

        assert_eq!(hear().as_deref(), Some("WATCHDOG=1"), "it turns, though nothing happens");
        begin.send(()).unwrap();
        let starved = (0..10).any(|_| hear().is_none());
        assert!(starved, "it is fed though a road's thread is stuck");
        release.send(()).unwrap();
        assert_eq!(hear().as_deref(), Some("WATCHDOG=1"), "it turns again");
        drop(road);
        let mut seen = turns.0.load(Relaxed);
        while seen != ENDED {
            tokio::time::sleep(TURN).await;
            turns.turned(&mut seen);
        }
        assert_eq!(hear().as_deref(), Some("WATCHDOG=1"), "a road that ended is the roster's matter");
        stopper.stop();
        feeding.await.unwrap();
    }
}
