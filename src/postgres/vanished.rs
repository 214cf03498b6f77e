//! Notices a server that is gone without a word: a host without power, a network that drops what it is given.
//!
//! | what we wait for | who notices |
//! |---|---|
//! | more, and sent nothing since something came | the kernel, which asks ([`watch_over`]) |
//! | an answer to what we sent | [`Line::until_gone`], which asks whether anybody is there at all |
//!
//! What is not acknowledged the kernel repeats for a quarter of an hour (`tcp_retries2`). `TCP_USER_TIMEOUT` would
//! shorten that, and end as well a connection whose server is there and does not read, as one does that is busy with a
//! long statement (tcp(7) counts what stays unsent because the other end's window is closed).

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

/// After so long without a byte the kernel asks whether the other end is there,
const PROBE_AFTER: Duration = Duration::from_secs(10);
/// again after so long,
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// and gives up after so many questions.
const PROBES: u32 = 4;
/// How long what we sent may be without an answer before it is asked whether anybody is there.
const SILENCE: Duration = Duration::from_secs(10);
/// How often that is looked at, and how long whoever is there may take to say so.
const LOOK: Duration = Duration::from_secs(5);
/// So often in a row nobody was there: a line that is cut for a moment is none that is gone.
const TIMES: u32 = 3;
/// Has the kernel ask now and then whether the other end is there.
pub(super) fn watch_over(tcp: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(tcp, true)?;
    sockopt::set_tcp_keepidle(tcp, PROBE_AFTER)?;
    sockopt::set_tcp_keepintvl(tcp, PROBE_EVERY)?;
    sockopt::set_tcp_keepcnt(tcp, PROBES)?;
    Ok(())
}

/// A connection's other end, and since when something that was sent there has had no answer.
#[derive(Clone)]
pub(super) struct Line {
    peer: SocketAddr,
    began: Instant,
    /// In milliseconds since it began, and one more; 0 where nothing is unanswered.
    unanswered: Arc<AtomicU64>,
}

impl Line {
    pub(super) fn to(peer: SocketAddr) -> Self {
        Self { peer, began: Instant::now(), unanswered: Arc::default() }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    fn sent(&self) {
        if self.unanswered.load(Ordering::Relaxed) == 0 {
            self.unanswered.store(self.now(), Ordering::Relaxed);
        }
    }

    fn heard(&self) {
        self.unanswered.store(0, Ordering::Relaxed);
    }

    fn unanswered_for(&self) -> Duration {
        match self.unanswered.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => Duration::from_millis(self.now().saturating_sub(since)),
        }
    }

    /// Returns once what was sent has had no answer for a while and nobody is there any more to give one: three quarters
    /// of a minute after it was sent, at most.
    pub(super) async fn until_gone(&self) {
        let mut times = 0;
        while times < TIMES {
            sleep(LOOK).await;
            if self.unanswered_for() < SILENCE || is_there(self.peer).await {
                times = 0;
            } else {
                times += 1;
            }
        }
        tracing::warn!(server = %self.peer, "nobody is there any more: a connection is given up");
    }
}

/// A stream that notes what is sent and heard.
pub(super) struct Noted<S> {
    stream: S,
    line: Line,
}

impl<S> Noted<S> {
    pub(super) fn new(stream: S, line: Line) -> Self {
        Self { stream, line }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Noted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.line.heard();
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // Before it goes, or the answer might be noted first.
        self.line.sent();
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.line.sent();
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Whether anybody answers there, be it with a refusal: whoever refuses has the kernel end what is open.
async fn is_there(peer: SocketAddr) -> bool {
    match timeout(LOOK, TcpStream::connect(peer)).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => error.kind() == io::ErrorKind::ConnectionRefused,
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpSocket,
    };

    use super::*;

    /// A listener that takes nobody in any more: its queue is full, and whoever comes is left without a word, as by a host
    /// that is gone.
    async fn deaf() -> (SocketAddr, Vec<TcpStream>, tokio::net::TcpListener) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let at = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        while let Ok(Ok(one)) = timeout(Duration::from_millis(300), TcpStream::connect(at)).await {
            waiting.push(one);
        }
        (at, waiting, listener)
    }

    #[tokio::test]
    async fn whoever_takes_nobody_in_is_not_there_and_whoever_refuses_is() {
        let (at, _waiting, listener) = deaf().await;
        assert!(!is_there(at).await);
        drop(listener);
        assert!(is_there(at).await);
    }

    #[tokio::test]
    async fn only_what_was_sent_and_has_no_answer_counts() {
        let line = Line::to("127.0.0.1:5432".parse().unwrap());
        let (near, mut far) = tokio::io::duplex(64);
        let mut near = Noted::new(near, line.clone());
        sleep(Duration::from_millis(30)).await;
        assert_eq!(line.unanswered_for(), Duration::ZERO);
        near.write_all(b"ask").await.unwrap();
        sleep(Duration::from_millis(30)).await;
        near.write_all(b"ask more").await.unwrap();
        assert!(line.unanswered_for() >= Duration::from_millis(30), "since the first of it");
        far.write_all(b"answer").await.unwrap();
        near.read_exact(&mut [0; 6]).await.unwrap();
        assert_eq!(line.unanswered_for(), Duration::ZERO);
    }
}
