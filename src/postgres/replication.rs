//! A replication connection: what a slot's walsender sends, as whole messages without copying them, and
//! our feedback to it.
//!
//! ```text
//!   a thread of its own                                  whoever asks for the next frame
//!   socket ──read──▶ gulp ──▶ channel of few gulps ──▶ buffer ──cut──▶ Frame, Frame, …
//!      ▲   nap while hot
//!      └── status every 250 ms: a busy reader is never taken for dead
//! ```
//!
//! A walsender sends each message by itself and wakes its reader each time; an eager reader spends more on
//! waking up, and makes the walsender spend more on waking it, than on anything else. So after a read that
//! brought much the thread sleeps a moment, and the kernel gathers what comes. After a read that brought
//! little it does not: then nothing piles up, and a change is not held back. The thread has a reactor of its
//! own, because one that is shared would be woken for the socket while nobody wants to read it.
//!
//! Asleep, it wants the kernel to gather at the *walsender's* end. On one host each message is a packet that the
//! walsender itself carries through all of the network's layers, unless our window is closed: then it is appended
//! to the packet that waits. So the window is a small part of what comes in a nap, and after one everything there is
//! is read, what the walsender's end held back included (docs/decisions/0008-calm-and-hot.md).
//!
//! Start-up, authentication and TLS are `pgwire-replication`'s; its reader is not used, because it hands
//! each message through a channel that is bounded by messages and not by bytes.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::FutureExt;
use pgwire_replication::{
    PgWireError,
    auth::ScramClient,
    protocol::{
        framing::{
            read_backend_message, write_copy_data, write_password_message, write_query, write_startup_message,
        },
        messages::{parse_auth_request, parse_error_response},
        replication::{PG_EPOCH_MICROS, encode_standby_status_update},
    },
    tls::rustls::{MaybeTlsStream, maybe_upgrade_to_tls},
};
use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    net::TcpStream,
    sync::{Notify, mpsc, oneshot},
    time::{sleep, timeout},
};

use super::{
    Address, OUTPUT_SETTINGS,
    connect::{WATCHED, dial},
    vanished::{Line, Noted},
};
use crate::{clock, lsn::Lsn, names::literal, pace::Pace};

/// How long the server waits to hear from us before it gives us up, whatever it does with others: a daemon that is frozen
/// holds the slot, and whoever stands by waits for it.
const SENDER_TIMEOUT: &str = "15s";
/// How often the server hears from us at least: many times within [`SENDER_TIMEOUT`], whatever else there is to do.
const STATUS_INTERVAL: Duration = Duration::from_millis(250);
/// Between two statuses at least, however much is confirmed.
const STATUS_GAP: Duration = Duration::from_millis(20);
/// How long a server may take to accept us, handshakes included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// One read of the socket takes at most so much.
const GULP: usize = 256 << 10;
/// And so much while the stream is calm.
const SIP: usize = 16 << 10;
/// Gulps that may wait for whoever asks. With the one being read and the one being cut, a megabyte.
const GULPS: usize = 2;
/// Bytes a second below which a stream is calm: some thousand small transactions.
const CALM: f64 = 200e3;
/// What a rate is taken over: long enough that one transaction is not a stream.
const PACE_INTERVAL: Duration = Duration::from_millis(20);
/// What a nap of the longest kind gathers at least: some three hundred small changes. Measured: with fewer, where all of the
/// way has two cores, waking everybody up costs a quarter of it (docs/decisions/0008-calm-and-hot.md).
const HANDFUL: f64 = 48e3;
/// The shortest nap: from where a stream is hot each wake-up should bring two changes at least, all along the
/// way to the target.
const NAP_MIN: Duration = Duration::from_millis(2);
/// The longest nap. What a hot stream's change may wait for company.
const NAP_MAX: Duration = Duration::from_millis(10);
/// What the kernel is asked to hold for us, of a server on the same host; it takes twice as much. With 8 KB a loopback
/// interface, whose packets are of 64, stands still for tenths of a second.
const WINDOW: usize = 32 << 10;
/// A message longer than this is no message: Postgres's own limit for one.
const MESSAGE_MAX: usize = 1 << 30;
/// Where a status says how far was flushed: PostgreSQL documentation, "Streaming Replication Protocol".
const FLUSHED: std::ops::Range<usize> = 9..17;
/// Protocol version 3.0.
const PROTOCOL: i32 = 196_608;

type Result<T> = std::result::Result<T, PgWireError>;

/// What a walsender sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A message of the output plugin.
    Log {
        /// Where in the log it stands.
        start: Lsn,
        /// The message: pgoutput's.
        data: Bytes,
    },
    /// Nothing to send up to here.
    KeepAlive {
        /// How far the server has looked.
        end: Lsn,
        /// The server's clock, in microseconds since 2000.
        time: i64,
    },
}

/// A slot being read. Dropped, it ends.
pub struct Replication {
    gulps: mpsc::Receiver<Result<BytesMut>>,
    /// What was read and is not cut yet.
    buffer: BytesMut,
    feedback: Arc<Feedback>,
}

/// What the reading thread is told.
#[derive(Default)]
struct Feedback {
    confirmed: AtomicU64,
    changed: Notify,
}

impl Replication {
    /// Starts to read the slot where it is confirmed.
    ///
    /// # Errors
    /// As the transport tells them: the server is away, refuses us, or refuses to start.
    pub async fn start(address: &Address, slot: &str, publication: &str, application: &str) -> Result<Self> {
        let (started, outcome) = oneshot::channel();
        let (put, gulps) = mpsc::channel(GULPS);
        let feedback = Arc::new(Feedback::default());
        let request = Request {
            address: address.clone(),
            slot: slot.to_owned(),
            publication: publication.to_owned(),
            application: application.to_owned(),
        };
        let shared = Arc::clone(&feedback);
        // Ends when the receiver of its gulps is dropped, or the connection ends.
        crate::task::spawn_thread("replication", move || match tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
        {
            Ok(runtime) => runtime.block_on(read(&request, started, put, &shared)),
            Err(error) => drop(started.send(Err(error.into()))),
        });
        outcome.await.unwrap_or_else(|_| Err(PgWireError::Server("the reading thread ended".to_owned())))?;
        Ok(Self { gulps, buffer: BytesMut::new(), feedback })
    }

    /// The next message; none once the server has ended the stream. May be dropped and asked again.
    ///
    /// # Errors
    /// What the server says, a connection that broke, or bytes that are no message.
    pub async fn next(&mut self) -> Result<Option<Frame>> {
        loop {
            while let Some(message) = cut(&mut self.buffer)? {
                if let Some(outcome) = self.frame(message)? {
                    return Ok(outcome);
                }
            }
            let Some(gulp) = self.gulps.recv().await.transpose()? else { return Ok(None) };
            if self.buffer.is_empty() {
                self.buffer = gulp;
                continue;
            }
            // A message goes on: room for all of it at once, however many gulps it takes.
            let wanted = announced(&self.buffer).unwrap_or(0).saturating_sub(self.buffer.len());
            self.buffer.reserve(wanted.max(gulp.len()));
            self.buffer.extend_from_slice(&gulp);
        }
    }

    /// Tells the server what it may release, soon.
    pub fn confirm(&self, end: Lsn) {
        if self.feedback.confirmed.fetch_max(end.0, Ordering::Relaxed) < end.0 {
            self.feedback.changed.notify_one();
        }
    }

    /// What a message of the connection is to the reader: a frame, the end, or (none) nothing.
    fn frame(&mut self, (tag, mut payload): (u8, Bytes)) -> Result<Option<Option<Frame>>> {
        let short = || PgWireError::Protocol("a replication message ends early".to_owned());
        match tag {
            b'd' => match payload.try_get_u8().map_err(|_| short())? {
                b'w' => {
                    let start = Lsn(payload.try_get_u64().map_err(|_| short())?);
                    let _end = payload.try_get_u64().map_err(|_| short())?;
                    let _time = payload.try_get_i64().map_err(|_| short())?;
                    Ok(Some(Some(Frame::Log { start, data: payload })))
                }
                b'k' => {
                    let end = Lsn(payload.try_get_u64().map_err(|_| short())?);
                    let time = payload.try_get_i64().map_err(|_| short())?;
                    if payload.try_get_u8().map_err(|_| short())? != 0 {
                        self.feedback.changed.notify_one();
                    }
                    Ok(Some(Some(Frame::KeepAlive { end, time })))
                }
                kind => {
                    Err(PgWireError::Protocol(format!("unknown replication message {:?}", char::from(kind))))
                }
            },
            b'E' => Err(PgWireError::Server(parse_error_response(&payload))),
            // Notices and parameters.
            b'N' | b'S' => Ok(None),
            // The server ends the copy: it shuts down.
            b'c' | b'C' | b'Z' => Ok(Some(None)),
            tag => Err(PgWireError::Protocol(format!("unexpected message {:?}", char::from(tag)))),
        }
    }
}

/// The length of the message the buffer begins with, once its head is there.
fn announced(buffer: &BytesMut) -> Option<usize> {
    let head: [u8; 4] = buffer.get(1..5)?.try_into().ok()?;
    Some(1 + u32::from_be_bytes(head) as usize)
}

/// Cuts the first whole message off: its tag and what follows its length.
fn cut(buffer: &mut BytesMut) -> Result<Option<(u8, Bytes)>> {
    let Some(length) = announced(buffer) else { return Ok(None) };
    if !(5..=MESSAGE_MAX).contains(&length) {
        return Err(PgWireError::Protocol(format!("a message of {length} bytes")));
    }
    if buffer.len() < length {
        return Ok(None);
    }
    let mut message = buffer.split_to(length).freeze();
    let tag = message.get_u8();
    message.advance(4);
    Ok(Some((tag, message)))
}

/// What a connection is opened with.
struct Request {
    address: Address,
    slot: String,
    publication: String,
    application: String,
}

/// The thread: opens the connection, reads it and reports to it until one of the two ends.
async fn read(
    request: &Request,
    started: oneshot::Sender<Result<()>>,
    put: mpsc::Sender<Result<BytesMut>>,
    feedback: &Feedback,
) {
    let stream = timeout(CONNECT_TIMEOUT, start(request)).await.unwrap_or_else(|_| {
        let seconds = CONNECT_TIMEOUT.as_secs();
        Err(PgWireError::Server(format!("no answer within {seconds} s")))
    });
    let (stream, line) = match stream {
        Ok(started) => started,
        Err(error) => return drop(started.send(Err(error))),
    };
    if started.send(Ok(())).is_err() {
        return;
    }
    let (reader, writer) = tokio::io::split(stream);
    tokio::select! {
        () = gulps(reader, &put) => (),
        () = report(writer, feedback) => (),
        () = put.closed() => (),
        () = line.until_gone() => {
            let gone = io::Error::new(io::ErrorKind::TimedOut, "nobody is there any more");
            drop(put.send(Err(gone.into())).await);
        }
    }
}

async fn gulps(mut reader: ReadHalf<Noted<MaybeTlsStream>>, put: &mpsc::Sender<Result<BytesMut>>) {
    let mut pace = Pace::new(PACE_INTERVAL, Instant::now());
    let mut rest = Duration::ZERO;
    loop {
        let room = if rest.is_zero() { SIP } else { GULP };
        let mut gulp = BytesMut::with_capacity(room);
        match reader.read_buf(&mut gulp).await {
            Ok(0) => return,
            Ok(_) => (),
            Err(error) => return drop(put.send(Err(error.into())).await),
        }
        let mut broke = None;
        while !rest.is_zero() && gulp.len() < room && broke.is_none() {
            match read_at_once(&mut reader, &mut gulp).await {
                Ok(0) => break,
                Ok(_) => (),
                Err(error) => broke = Some(error),
            }
        }
        let brought = gulp.len();
        if put.send(Ok(gulp)).await.is_err() {
            return;
        }
        if let Some(error) = broke {
            return drop(put.send(Err(error.into())).await);
        }
        if let Some(rate) = pace.note(brought as u64, Instant::now()) {
            rest = nap(rate);
        }
        // A full gulp was not all there was.
        if brought < room && !rest.is_zero() {
            // The thread, not the task: asleep in the reactor it would be woken by each message.
            std::thread::sleep(rest);
        }
    }
}

/// Reads what is there: nothing, where nothing is or the connection ended, which the next who waits for it hears again.
async fn read_at_once(
    reader: &mut ReadHalf<Noted<MaybeTlsStream>>,
    gulp: &mut BytesMut,
) -> io::Result<usize> {
    if let Some(read) = reader.read_buf(gulp).now_or_never() {
        return read;
    }
    // After a read that took less than it asked for there is nothing until the reactor has looked.
    tokio::task::yield_now().await;
    reader.read_buf(gulp).now_or_never().unwrap_or(Ok(0))
}

/// How long to let a stream of so many bytes a second gather before the next read.
fn nap(bytes_per_second: f64) -> Duration {
    if bytes_per_second < CALM {
        return Duration::ZERO;
    }
    // The hotter the stream, the longer; the longest from where it would gather a handful.
    let hottest = HANDFUL / NAP_MAX.as_secs_f64();
    NAP_MAX.mul_f64((bytes_per_second / hottest).min(1.0)).max(NAP_MIN)
}

async fn start(request: &Request) -> Result<(Noted<MaybeTlsStream>, Line)> {
    let Request { address, slot, publication, application } = request;
    let (tcp, line) = dial(address).await?;
    narrow(&tcp)?;
    let stream = maybe_upgrade_to_tls(tcp, &address.tls_config(), &address.host).await?;
    let mut stream = Noted::new(stream, line.clone());
    let options = format!("{OUTPUT_SETTINGS} {WATCHED} -c wal_sender_timeout={SENDER_TIMEOUT}");
    let parameters = [
        ("user", address.user.as_str()),
        ("database", &address.database),
        ("replication", "database"),
        ("client_encoding", "UTF8"),
        ("application_name", application),
        ("options", &options),
    ];
    write_startup_message(&mut stream, PROTOCOL, &parameters).await?;
    authenticate(&mut stream, address).await?;
    // Position 0/0 means: where the slot is confirmed. Anything else would be moved there anyway.
    let sql = format!(
        "START_REPLICATION SLOT \"{slot}\" LOGICAL 0/0 (proto_version '1', publication_names {}, messages 'true')",
        literal(&crate::names::quoted(publication)),
    );
    write_query(&mut stream, &sql).await?;
    stream.flush().await?;
    loop {
        let message = read_backend_message(&mut stream).await?;
        match message.tag {
            b'W' => return Ok((stream, line)),
            b'E' => return Err(PgWireError::Server(parse_error_response(&message.payload))),
            _ => (),
        }
    }
}

/// Gives a line on one host its small window. Elsewhere a window must hold what is under way, and the kernel sees to that.
fn narrow(tcp: &TcpStream) -> io::Result<()> {
    if tcp.peer_addr()?.ip() == tcp.local_addr()?.ip() {
        sockopt::set_socket_recv_buffer_size(tcp, WINDOW)?;
    }
    Ok(())
}

/// Answers what the server asks until it is ready for a query.
async fn authenticate<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, address: &Address) -> Result<()> {
    loop {
        let message = read_backend_message(stream).await?;
        match message.tag {
            b'R' => {
                let (kind, content) = parse_auth_request(&message.payload)?;
                match kind {
                    AUTHENTICATED => (),
                    CLEAR_TEXT => {
                        let password = [address.current_password().await.reveal().as_bytes(), b"\0"].concat();
                        write_password_message(stream, &password).await?;
                    }
                    SASL => scram(stream, address, content).await?,
                    other => {
                        return Err(PgWireError::Auth(format!(
                            "the server asks for authentication of kind {other}; SCRAM-SHA-256, a password over TLS and trust are known: set password_encryption to scram-sha-256 and give the role its password again"
                        )));
                    }
                }
            }
            b'E' => return Err(PgWireError::Server(parse_error_response(&message.payload))),
            b'Z' => return Ok(()),
            _ => (),
        }
    }
}

// Kinds of authentication requests: PostgreSQL documentation, "Message Formats".
const AUTHENTICATED: i32 = 0;
const CLEAR_TEXT: i32 = 3;
const SASL: i32 = 10;
const SASL_CONTINUE: i32 = 11;
const SASL_FINAL: i32 = 12;
const MECHANISM: &[u8] = b"SCRAM-SHA-256";

async fn scram<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    address: &Address,
    mechanisms: &[u8],
) -> Result<()> {
    if !mechanisms.split(|byte| *byte == 0).any(|mechanism| mechanism == MECHANISM) {
        let offered = String::from_utf8_lossy(mechanisms).replace('\0', " ");
        return Err(PgWireError::Auth(format!("the server does not offer SCRAM-SHA-256 but {offered}")));
    }
    let scram = ScramClient::new(&address.user);
    let first = scram.client_first.as_bytes();
    let length = (first.len() as u32).to_be_bytes();
    write_password_message(stream, &[MECHANISM, b"\0", &length, first].concat()).await?;
    let answer = scram_answer(stream, SASL_CONTINUE).await?;
    let (last, message, salted) = scram.client_final(address.current_password().await.reveal(), &answer)?;
    write_password_message(stream, last.as_bytes()).await?;
    let answer = scram_answer(stream, SASL_FINAL).await?;
    ScramClient::verify_server_final(&answer, &salted, &message)
}

async fn scram_answer<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, expected: i32) -> Result<String> {
    loop {
        let message = read_backend_message(stream).await?;
        match message.tag {
            b'R' => {
                let (kind, content) = parse_auth_request(&message.payload)?;
                if kind != expected {
                    return Err(PgWireError::Auth(format!(
                        "the server answers {kind} where {expected} belongs"
                    )));
                }
                return Ok(String::from_utf8_lossy(content).into_owned());
            }
            b'E' => return Err(PgWireError::Server(parse_error_response(&message.payload))),
            _ => (),
        }
    }
}

/// Tells the server how far it may release, until the connection breaks: the reader meets that too, and
/// says so.
///
/// A server takes whoever has told it how far he has *flushed* for a standby, and where `synchronous_standby_names` is `*`
/// has each commit wait for the first of them: for Kafka, then, and for as long as Kafka is away. So that position is told
/// once, which is what moves the slot, and taken back in the same breath.
async fn report(mut writer: WriteHalf<Noted<MaybeTlsStream>>, feedback: &Feedback) {
    let mut told = 0;
    loop {
        let confirmed = feedback.confirmed.load(Ordering::Relaxed);
        let (at, now) = (pgwire_replication::Lsn::from_u64(confirmed), clock::now().0 - PG_EPOCH_MICROS);
        let mut status = encode_standby_status_update(at, now, false);
        let sent = async {
            let mut both = Vec::with_capacity(2 * (status.len() + 5));
            if told < confirmed {
                write_copy_data(&mut both, &status).await?;
            }
            status[FLUSHED].fill(0);
            write_copy_data(&mut both, &status).await?;
            writer.write_all(&both).await?;
            writer.flush().await.map_err(PgWireError::from)
        };
        if sent.await.is_err() {
            return;
        }
        told = confirmed;
        sleep(STATUS_GAP).await;
        let _ = timeout(STATUS_INTERVAL, feedback.changed.notified()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut_whole_wherever_reads_end() {
        let stream = b"d\0\0\0\x06abd\0\0\0\x04N\0\0\0\x05x";
        for first in 0..=stream.len() {
            let mut buffer = BytesMut::new();
            let mut found = Vec::new();
            for part in [&stream[..first], &stream[first..]] {
                buffer.extend_from_slice(part);
                while let Some(message) = cut(&mut buffer).unwrap() {
                    found.push(message);
                }
            }
            let expected = [(b'd', &b"ab"[..]), (b'd', b""), (b'N', b"x")]
                .map(|(tag, text)| (tag, Bytes::from_static(text)));
            assert_eq!(found, expected, "cut at {first}");
        }
    }

    #[test]
    fn a_length_that_cannot_be_is_refused() {
        for length in [0u32, 3, 1 << 30, u32::MAX] {
            let mut buffer = BytesMut::from(&b"d"[..]);
            buffer.extend_from_slice(&length.to_be_bytes());
            assert!(cut(&mut buffer).is_err(), "{length}");
        }
    }
}
