//! The wide-area network between two regions: a TCP proxy whose conditions can
//! be changed while connections run.
//!
//! ```text
//!            ┌ read ─▶ bandwidth ─▶ delay line ─▶ stall ─▶ flip, slice ─▶ write ┐
//!  client ◀──┤                                                                  ├──▶ server
//!            └ write ◀─ …                                             … ◀─ read ┘
//! ```
//!
//! One [`Wan`] is one cable: conditions and counters are common to everything
//! it forwards, and its bandwidth is shared by all connections. Latency is a
//! delay line, not a pause per chunk: what is sent during a round trip arrives
//! during one. The proxy runs on a thread of its own, so that a busy test does
//! not slow the network down.
//!
//! Memory is bounded: a connection holds at most [`DELAY_LINE_BYTES`] per
//! direction; after that it stops reading, and TCP slows the sender down.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout};

use crate::ports;

/// What one connection may have under way in one direction. With 100 ms one
/// way this lets 80 MB/s through, more than the machines these tests run on.
pub const DELAY_LINE_BYTES: usize = 8 * 1024 * 1024;

/// The most that is read at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// With a bandwidth limit a chunk is cut to what passes in this time, so that
/// connections take turns and the flow stays even.
const TURN: Duration = Duration::from_millis(10);

/// A direction through the cable, seen from whoever connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    Up,
    /// From the server to the client: where a sink reads a remote Kafka, the
    /// data.
    Down,
}

/// How a cut cable answers those who try to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Open connections are reset, new ones refused: a router that knows.
    Refuse,
    /// Open connections fall silent and are reset only at [`Wan::heal`]; who
    /// connects is left without a word: packets that vanish, or a host.
    Blackhole,
}

/// The conditions of one direction.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Lane {
    latency: Duration,
    bandwidth_bytes_per_second: Option<u64>,
    stalled: bool,
    slice_bytes: Option<usize>,
    flip_probability: f64,
    /// What a connection that is new delivers before it falls silent.
    silent_after_bytes: Option<u64>,
}

const CLEAR: Lane = Lane {
    latency: Duration::ZERO,
    bandwidth_bytes_per_second: None,
    stalled: false,
    slice_bytes: None,
    flip_probability: 0.0,
    silent_after_bytes: None,
};

#[derive(Clone, Copy, Debug)]
struct Conditions {
    up: Lane,
    down: Lane,
    cut: Option<Cut>,
    /// Raised whenever every open connection is to be reset.
    resets: u64,
}

impl Conditions {
    fn lane(&self, direction: Direction) -> &Lane {
        match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        }
    }

    fn lane_mut(&mut self, direction: Direction) -> &mut Lane {
        match direction {
            Direction::Up => &mut self.up,
            Direction::Down => &mut self.down,
        }
    }

    fn holds(&self, direction: Direction) -> bool {
        self.lane(direction).stalled || self.cut == Some(Cut::Blackhole)
    }
}

/// What passes through one direction of the cable, over all connections.
#[derive(Debug, Default)]
struct Meter {
    delivered_bytes: AtomicU64,
    flipped_bits: AtomicU64,
    /// The wire is busy until then; only with a bandwidth limit.
    busy_until: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Cable {
    conditions: watch::Sender<Conditions>,
    up: Meter,
    down: Meter,
    connections: AtomicUsize,
    accepted: AtomicU64,
}

impl Cable {
    fn meter(&self, direction: Direction) -> &Meter {
        match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        }
    }
}

#[derive(Debug)]
struct Engine {
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Dropping it in place would panic inside an async test.
            runtime.shutdown_background();
        }
    }
}

/// A handle on the cable. Clones address the same one; the last one dropped
/// ends the proxy and everything it carries.
#[derive(Clone, Debug)]
pub struct Wan {
    cable: Arc<Cable>,
    engine: Arc<Engine>,
}

impl Wan {
    /// A cable without latency or limits, forwarding nothing yet.
    pub fn new() -> Result<Wan> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("testbed-wan")
            .enable_all()
            .build()
            .context("start the thread of the WAN")?;
        Ok(Wan {
            cable: Arc::new(Cable {
                conditions: watch::Sender::new(Conditions { up: CLEAR, down: CLEAR, cut: None, resets: 0 }),
                up: Meter::default(),
                down: Meter::default(),
                connections: AtomicUsize::new(0),
                accepted: AtomicU64::new(0),
            }),
            engine: Arc::new(Engine { runtime: Some(runtime) }),
        })
    }

    /// Listens on a free port and forwards every connection to the target,
    /// which need not be there yet. Returns the address to connect to.
    pub fn forward(&self, target: SocketAddr) -> Result<SocketAddr> {
        let address = ports::loopback(ports::free()?);
        let listener = listen(address)?;
        let runtime = self.engine.runtime.as_ref().context("the WAN has ended")?;
        runtime.spawn(accept(self.cable.clone(), address, listener, target));
        Ok(address)
    }

    /// Half of the round trip in each direction.
    pub fn set_rtt(&self, rtt: Duration) {
        self.set_latency(Direction::Up, rtt / 2);
        self.set_latency(Direction::Down, rtt - rtt / 2);
    }

    /// The one-way latency. What is under way keeps the old one, and order.
    pub fn set_latency(&self, direction: Direction, latency: Duration) {
        self.change(|now| now.lane_mut(direction).latency = latency);
    }

    /// Bytes per second for both directions, each; None lifts the limit.
    pub fn set_bandwidth(&self, bytes_per_second: Option<u64>) {
        self.set_bandwidth_of(Direction::Up, bytes_per_second);
        self.set_bandwidth_of(Direction::Down, bytes_per_second);
    }

    /// Bytes per second for one direction; None lifts the limit.
    pub fn set_bandwidth_of(&self, direction: Direction, bytes_per_second: Option<u64>) {
        self.change(|now| {
            now.lane_mut(direction).bandwidth_bytes_per_second = bytes_per_second.map(|limit| limit.max(1));
        });
    }

    /// Delivers in pieces of at most this many bytes; None ends it.
    pub fn set_slice(&self, bytes: Option<usize>) {
        self.change(|now| {
            now.up.slice_bytes = bytes.map(|bytes| bytes.max(1));
            now.down.slice_bytes = now.up.slice_bytes;
        });
    }

    /// Turns over one bit of a byte with this probability per byte (at most
    /// one in each chunk of 64 KiB); 0 ends it.
    pub fn set_flip(&self, direction: Direction, probability: f64) {
        self.change(|now| now.lane_mut(direction).flip_probability = probability.clamp(0.0, 1.0));
    }

    /// Connections made from now on fall silent in this direction once they have delivered so many bytes, and stay open;
    /// None lets them go on, and new ones be.
    pub fn set_silent_after(&self, direction: Direction, bytes: Option<u64>) {
        self.change(|now| now.lane_mut(direction).silent_after_bytes = bytes);
    }

    /// Holds every byte back in both directions; connections stay open.
    pub fn stall(&self) {
        self.change(|now| {
            now.up.stalled = true;
            now.down.stalled = true;
        });
    }

    /// Holds every byte of one direction back; connections stay open.
    pub fn stall_one_way(&self, direction: Direction) {
        self.change(|now| now.lane_mut(direction).stalled = true);
    }

    /// Ends a stall, in both directions.
    pub fn resume(&self) {
        self.change(|now| {
            now.up.stalled = false;
            now.down.stalled = false;
        });
    }

    /// Cuts the cable: open connections are reset, new ones refused. Whoever
    /// connects in the first moment may still be accepted, and is then reset.
    pub fn cut(&self) {
        self.cut_as(Cut::Refuse);
    }

    /// Cuts the cable in the way given.
    pub fn cut_as(&self, how: Cut) {
        self.change(|now| {
            if how == Cut::Refuse {
                now.resets += 1;
            }
            now.cut = Some(how);
        });
    }

    /// Mends the cable. Connections that fell silent are reset.
    pub fn heal(&self) {
        self.change(|now| {
            if now.cut.take() == Some(Cut::Blackhole) {
                now.resets += 1;
            }
        });
    }

    /// Resets every open connection, both sides of it, and lets new ones
    /// through at once.
    pub fn reset_all(&self) {
        self.change(|now| now.resets += 1);
    }

    /// Bytes delivered so far in one direction.
    pub fn delivered_bytes(&self, direction: Direction) -> u64 {
        self.cable.meter(direction).delivered_bytes.load(Ordering::Relaxed)
    }

    /// Bytes delivered so far in both directions.
    pub fn bytes(&self) -> u64 {
        self.delivered_bytes(Direction::Up) + self.delivered_bytes(Direction::Down)
    }

    /// Bits turned over so far in one direction.
    pub fn flipped_bits(&self, direction: Direction) -> u64 {
        self.cable.meter(direction).flipped_bits.load(Ordering::Relaxed)
    }

    /// Connections that are open now.
    pub fn open_connections(&self) -> usize {
        self.cable.connections.load(Ordering::Relaxed)
    }

    /// Connections made so far; a storm of reconnections shows here.
    pub fn accepted_connections(&self) -> u64 {
        self.cable.accepted.load(Ordering::Relaxed)
    }

    fn change(&self, change: impl FnOnce(&mut Conditions)) {
        self.cable.conditions.send_modify(change);
    }
}

/// Binds synchronously and hands the socket to whichever runtime polls it.
fn listen(address: SocketAddr) -> Result<std::net::TcpListener> {
    // The standard library sets SO_REUSEADDR, so that a mended cable gets its
    // port back at once.
    let listener = std::net::TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Accepts while the cable is whole, refuses while it is cut.
async fn accept(cable: Arc<Cable>, address: SocketAddr, listener: std::net::TcpListener, target: SocketAddr) {
    let mut conditions = cable.conditions.subscribe();
    let mut listener = TcpListener::from_std(listener).ok();
    let mut deaf = None;
    loop {
        let cut = conditions.borrow_and_update().cut;
        match cut {
            Some(Cut::Refuse) => (listener, deaf) = (None, None),
            Some(Cut::Blackhole) => {
                listener = None;
                if deaf.is_none() {
                    deaf = Deaf::at(address).await.ok();
                }
            }
            None => {
                deaf = None;
                if listener.is_none() {
                    listener = TcpListener::bind(address).await.ok();
                }
            }
        }
        let changed = match (&listener, cut) {
            (Some(listener), None) => {
                tokio::select! {
                    changed = conditions.changed() => changed,
                    accepted = listener.accept() => {
                        if let Ok((client, _)) = accepted {
                            let cable = cable.clone();
                            tokio::spawn(carry(cable, client, target));
                        }
                        Ok(())
                    }
                }
            }
            (None, None) => {
                // The port was not free at once; nobody else takes it for long.
                tokio::time::sleep(Duration::from_millis(50)).await;
                Ok(())
            }
            _ => conditions.changed().await,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Listens and takes nobody in: its queue is full, and the kernel drops what comes.
struct Deaf {
    _listener: TcpListener,
    _queue: Vec<TcpStream>,
}

impl Deaf {
    async fn at(address: SocketAddr) -> std::io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(1)?;
        let mut queue = Vec::new();
        while let Ok(waiting) = timeout(Duration::from_millis(100), TcpStream::connect(address)).await {
            queue.push(waiting?);
        }
        Ok(Self { _listener: listener, _queue: queue })
    }
}

/// Carries one connection until both sides have ended, or it is reset.
async fn carry(cable: Arc<Cable>, client: TcpStream, target: SocketAddr) {
    let mut conditions = cable.conditions.subscribe();
    let resets = conditions.borrow().resets;
    cable.accepted.fetch_add(1, Ordering::Relaxed);
    cable.connections.fetch_add(1, Ordering::Relaxed);
    tokio::select! {
        biased;
        // One that was accepted at the very moment of the cut ends here too.
        _ = conditions.wait_for(|now| now.resets != resets || now.cut == Some(Cut::Refuse)) => {}
        () = relay(&cable, client, target) => {}
    }
    cable.connections.fetch_sub(1, Ordering::Relaxed);
}

/// Closes with RST instead of FIN when dropped, unless it ended in order.
struct Line {
    stream: TcpStream,
    in_order: bool,
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.in_order {
            let _ = self.stream.set_zero_linger();
        }
    }
}

async fn relay(cable: &Cable, client: TcpStream, target: SocketAddr) {
    let _ = client.set_nodelay(true);
    let mut client = Line { stream: client, in_order: false };
    // A handshake crosses the cable too: the client's came back at once from
    // the proxy, so its first bytes wait that round trip here.
    let handshake = {
        let now = cable.conditions.borrow();
        now.up.latency + now.down.latency
    };
    tokio::time::sleep(handshake).await;
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    let _ = server.set_nodelay(true);
    let mut server = Line { stream: server, in_order: false };
    let (client_read, client_write) = client.stream.split();
    let (server_read, server_write) = server.stream.split();
    let ended = tokio::try_join!(
        pump(cable, Direction::Up, client_read, server_write),
        pump(cable, Direction::Down, server_read, client_write),
    );
    client.in_order = ended.is_ok();
    server.in_order = ended.is_ok();
}

/// What is on the delay line: bytes, and when they come out.
struct UnderWay {
    due: Instant,
    bytes: Vec<u8>,
}

/// One direction of one connection, until its sender has ended.
async fn pump(
    cable: &Cable,
    direction: Direction,
    mut from: tokio::net::tcp::ReadHalf<'_>,
    mut to: tokio::net::tcp::WriteHalf<'_>,
) -> std::io::Result<()> {
    let (line_in, mut line_out) = mpsc::unbounded_channel::<UnderWay>();
    let room = Semaphore::new(DELAY_LINE_BYTES);
    let meter = cable.meter(direction);
    let silent_after = cable.conditions.borrow().lane(direction).silent_after_bytes;

    let enter = async {
        let line_in = line_in;
        let mut buffer = vec![0u8; CHUNK_BYTES];
        loop {
            let limit = chunk_bytes(cable.conditions.borrow().lane(direction));
            let permit = room.acquire_many(limit as u32).await;
            let permit = permit.map_err(std::io::Error::other)?;
            // Waits for bytes before it takes a turn on the wire.
            let count = from.read(&mut buffer[..limit]).await?;
            permit.forget();
            room.add_permits(limit - count);
            wire(cable, direction, count).await;
            let due = Instant::now() + cable.conditions.borrow().lane(direction).latency;
            let bytes = buffer[..count].to_vec();
            // The other end lives as long as this future.
            let _ = line_in.send(UnderWay { due, bytes });
            if count == 0 {
                return Ok(());
            }
        }
    };

    let leave = async {
        let mut conditions = cable.conditions.subscribe();
        let mut delivered = 0;
        while let Some(UnderWay { due, mut bytes }) = line_out.recv().await {
            arrive(due).await;
            delivered += bytes.len() as u64;
            let is_silent = silent_after.is_some_and(|most| delivered > most);
            let holds = |now: &Conditions| {
                now.holds(direction) || is_silent && now.lane(direction).silent_after_bytes.is_some()
            };
            let lane = {
                let Ok(now) = conditions.wait_for(|now| !holds(now)).await else {
                    return Ok(());
                };
                *now.lane(direction)
            };
            if bytes.is_empty() {
                to.shutdown().await?;
                return Ok(());
            }
            if flip(&mut bytes, lane.flip_probability) {
                meter.flipped_bits.fetch_add(1, Ordering::Relaxed);
            }
            match lane.slice_bytes {
                None => to.write_all(&bytes).await?,
                Some(slice) => {
                    for piece in bytes.chunks(slice) {
                        to.write_all(piece).await?;
                        // Lets the receiver see the piece by itself.
                        tokio::task::yield_now().await;
                    }
                }
            }
            meter.delivered_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            room.add_permits(bytes.len());
        }
        Ok(())
    };

    tokio::try_join!(enter, leave).map(|_: ((), ())| ())
}

fn chunk_bytes(lane: &Lane) -> usize {
    match lane.bandwidth_bytes_per_second {
        None => CHUNK_BYTES,
        Some(limit) => {
            let turn = limit as f64 * TURN.as_secs_f64();
            // At least a small packet, or a slow wire would starve.
            (turn as usize).clamp(256, CHUNK_BYTES)
        }
    }
}

/// Waits until bytes come out of a delay line. A timer of tokio's rounds up to a millisecond, which is a mile in a lane
/// of a few and more than none has; so the last of the way is slept on a thread.
async fn arrive(due: Instant) {
    const ROUNDING: Duration = Duration::from_millis(2);
    let left = || due.saturating_duration_since(Instant::now());
    if left() > ROUNDING {
        tokio::time::sleep_until(due - ROUNDING).await;
    }
    let left = left();
    if !left.is_zero() {
        // What breaks it is the end of the runtime, and of the cable.
        let _ = tokio::task::spawn_blocking(move || std::thread::sleep(left)).await;
    }
}

/// Waits until the shared wire has taken this many bytes.
async fn wire(cable: &Cable, direction: Direction, count: usize) {
    let limit = cable.conditions.borrow().lane(direction).bandwidth_bytes_per_second;
    let Some(limit) = limit else { return };
    let sent = {
        let mut busy_until =
            cable.meter(direction).busy_until.lock().unwrap_or_else(|poison| poison.into_inner());
        let start = busy_until.map_or_else(Instant::now, |busy| busy.max(Instant::now()));
        let sent = start + Duration::from_secs_f64(count as f64 / limit as f64);
        *busy_until = Some(sent);
        sent
    };
    tokio::time::sleep_until(sent).await;
}

/// Turns over one bit, with the probability that at least one of these bytes
/// is hit.
fn flip(bytes: &mut [u8], probability: f64) -> bool {
    if probability <= 0.0 || bytes.is_empty() {
        return false;
    }
    let hit = 1.0 - (1.0 - probability).powf(bytes.len() as f64);
    if !rand::random_bool(hit.clamp(0.0, 1.0)) {
        return false;
    }
    let at = rand::random_range(0..bytes.len());
    bytes[at] ^= 1 << rand::random_range(0..8);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flip_changes_one_bit() {
        let mut bytes = vec![0u8; 1000];
        assert!(flip(&mut bytes, 1.0));
        let bits: u32 = bytes.iter().map(|byte| byte.count_ones()).sum();
        assert_eq!(bits, 1);
        assert!(!flip(&mut bytes, 0.0));
    }

    #[test]
    fn a_slow_wire_takes_small_chunks() {
        let slow = Lane { bandwidth_bytes_per_second: Some(125_000), ..CLEAR };
        assert_eq!(chunk_bytes(&slow), 1250);
        assert_eq!(chunk_bytes(&CLEAR), CHUNK_BYTES);
    }
}
