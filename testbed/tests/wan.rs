//! The cable does what is asked of it, and nothing else to the bytes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use testbed::Wan;
use testbed::wan::{Cut, Direction};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Sends back whatever comes.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.set_nodelay(true).unwrap();
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    address
}

async fn ping(stream: &mut TcpStream) -> std::io::Result<Duration> {
    let started = Instant::now();
    stream.write_all(b"ping").await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await?;
    assert_eq!(&answer, b"ping");
    Ok(started.elapsed())
}

async fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Sends bytes both ways at once, and returns those that came back.
async fn round(stream: TcpStream, bytes: &[u8]) -> Vec<u8> {
    let (mut read, mut write) = stream.into_split();
    let mut back = Vec::new();
    let (sent, received) = tokio::join!(
        async {
            write.write_all(bytes).await?;
            write.shutdown().await
        },
        read.read_to_end(&mut back)
    );
    sent.unwrap();
    received.unwrap();
    back
}

fn noise(count: usize) -> Vec<u8> {
    use rand::RngCore;
    let mut bytes = vec![0; count];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_round_trip_is_the_one_asked_for() {
    let wan = Wan::new().unwrap();
    let mut stream = connect(wan.forward(echo().await).unwrap()).await;
    for rtt_ms in [0, 80, 200, 20] {
        let rtt = Duration::from_millis(rtt_ms);
        wan.set_rtt(rtt);
        // Five, and on a busy machine as many as it takes until one is held up by nothing else.
        let (mut best, mut pings) = (Duration::MAX, 0);
        while pings < 5 || (best >= rtt + Duration::from_millis(15) && pings < 200) {
            let took = ping(&mut stream).await.unwrap();
            assert!(took >= rtt, "{took:?} for {rtt:?}");
            best = best.min(took);
            pings += 1;
        }
        assert!(best < rtt + Duration::from_millis(15), "{best:?} for {rtt:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn latency_does_not_limit_throughput() {
    let wan = Wan::new().unwrap();
    wan.set_rtt(Duration::from_millis(100));
    let stream = connect(wan.forward(echo().await).unwrap()).await;
    let bytes = noise(20_000_000);
    let started = Instant::now();
    let back = round(stream, &bytes).await;
    let took = started.elapsed();
    assert!(back == bytes, "the bytes were changed");
    assert_eq!(wan.delivered_bytes(Direction::Up), 20_000_000);
    assert_eq!(wan.delivered_bytes(Direction::Down), 20_000_000);
    // A pause per chunk of 64 KiB would take 15 seconds each way; it takes one, and on a busy machine some.
    assert!(took < Duration::from_secs(12), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_narrow_cable_passes_what_it_should() {
    let wan = Wan::new().unwrap();
    wan.set_bandwidth_of(Direction::Up, Some(1_000_000));
    let address = wan.forward(echo().await).unwrap();
    let bytes = noise(750_000);
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let started = Instant::now();
        // Two connections share it.
        let (one, other) = tokio::join!(async { round(connect(address).await, &bytes).await }, async {
            round(connect(address).await, &bytes).await
        },);
        let took = started.elapsed();
        assert!(one == bytes && other == bytes, "the bytes were changed");
        assert!(took >= Duration::from_millis(1480), "{took:?}");
        best = best.min(took);
        // A busy machine may be slower than the cable; the next time it is less busy.
        if best < Duration::from_millis(3000) {
            break;
        }
    }
    assert!(best < Duration::from_millis(3000), "{best:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slices_keep_every_byte() {
    let wan = Wan::new().unwrap();
    wan.set_slice(Some(3));
    let stream = connect(wan.forward(echo().await).unwrap()).await;
    let bytes = noise(30_000);
    assert!(round(stream, &bytes).await == bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stall_holds_and_lets_go() {
    let wan = Wan::new().unwrap();
    let mut stream = connect(wan.forward(echo().await).unwrap()).await;
    ping(&mut stream).await.unwrap();
    wan.stall();
    let held = tokio::time::timeout(Duration::from_millis(300), ping(&mut stream)).await;
    assert!(held.is_err(), "the stall let bytes through");
    wan.resume();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"ping");
    wan.stall_one_way(Direction::Down);
    let held = tokio::time::timeout(Duration::from_millis(300), ping(&mut stream));
    assert!(held.await.is_err(), "the answer's way was stalled");
    testbed::eventually(Duration::from_secs(30), "the other was not", async || {
        Ok(wan.delivered_bytes(Direction::Up) == 12)
    })
    .await
    .unwrap();
    wan.resume();
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"ping");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_to_fall_silent_do_so_each_for_itself() {
    let wan = Wan::new().unwrap();
    let address = wan.forward(echo().await).unwrap();
    let mut before = connect(address).await;
    ping(&mut before).await.unwrap();
    wan.set_silent_after(Direction::Down, Some(8));
    for _ in 0..2 {
        let mut stream = connect(address).await;
        ping(&mut stream).await.unwrap();
        ping(&mut stream).await.unwrap();
        let held = tokio::time::timeout(Duration::from_millis(300), ping(&mut stream)).await;
        assert!(held.is_err(), "it went on");
    }
    ping(&mut before).await.unwrap();
    let mut stream = connect(address).await;
    stream.write_all(b"ping pong").await.unwrap();
    let mut answer = [0; 9];
    let held = tokio::time::timeout(Duration::from_millis(300), stream.read_exact(&mut answer)).await;
    assert!(held.is_err(), "all of it came");
    wan.set_silent_after(Direction::Down, None);
    stream.read_exact(&mut answer[..]).await.unwrap();
    assert_eq!(&answer, b"ping pong");
    ping(&mut stream).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_refuses_until_it_heals() {
    let wan = Wan::new().unwrap();
    let address = wan.forward(echo().await).unwrap();
    let mut stream = connect(address).await;
    ping(&mut stream).await.unwrap();
    wan.cut();
    let error = ping(&mut stream).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    testbed::eventually(Duration::from_secs(30), "it refuses", async || {
        match TcpStream::connect(address).await {
            Ok(_) => Ok(false),
            Err(error) => Ok(error.kind() == std::io::ErrorKind::ConnectionRefused),
        }
    })
    .await
    .unwrap();
    wan.heal();
    testbed::eventually(Duration::from_secs(30), "it is mended", async || {
        let mut stream = TcpStream::connect(address).await?;
        ping(&mut stream).await?;
        Ok(true)
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_is_silent_until_it_heals() {
    let wan = Wan::new().unwrap();
    let address = wan.forward(echo().await).unwrap();
    let mut open = connect(address).await;
    ping(&mut open).await.unwrap();
    wan.cut_as(Cut::Blackhole);
    let silent = tokio::time::timeout(Duration::from_millis(300), ping(&mut open)).await;
    assert!(silent.is_err(), "an answer came out of the hole");
    // Whoever comes in the first moment may still be refused.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let silent = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await;
    assert!(silent.is_err(), "somebody answered out of the hole");
    wan.heal();
    assert!(ping(&mut open).await.is_err(), "it was to be reset");
    testbed::eventually(Duration::from_secs(30), "it takes connections", async || {
        Ok(TcpStream::connect(address).await.is_ok())
    })
    .await
    .unwrap();
    ping(&mut connect(address).await).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_ends_open_connections_only() {
    let wan = Wan::new().unwrap();
    let address = wan.forward(echo().await).unwrap();
    let mut stream = connect(address).await;
    ping(&mut stream).await.unwrap();
    assert_eq!(wan.open_connections(), 1);
    wan.reset_all();
    assert!(ping(&mut stream).await.is_err());
    ping(&mut connect(address).await).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flips_are_made_and_counted() {
    let wan = Wan::new().unwrap();
    wan.set_flip(Direction::Up, 1.0);
    let stream = connect(wan.forward(echo().await).unwrap()).await;
    let bytes = vec![0; 10_000];
    let back = round(stream, &bytes).await;
    let flipped: u32 = back.iter().map(|byte| byte.count_ones()).sum();
    assert!(flipped > 0);
    assert_eq!(u64::from(flipped), wan.flipped_bits(Direction::Up));
    assert_eq!(wan.flipped_bits(Direction::Down), 0);
}
