//! One GET to the daemon's own listener: HTTP/1.0, so that an answer ends where the connection does.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    api::connect_pinned,
    config::HttpSettings,
    fault::{Code, Fault, Result},
};

/// A daemon on the same machine answers in milliseconds, or not at all.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Far more than a status of thousands of streams.
const ANSWER_MAX: u64 = 16 << 20;

/// Asks the daemon that was started with these settings, and returns what it answered.
pub(super) async fn get(settings: &HttpSettings, path: &str) -> Result<String> {
    let address = reachable(settings.listen);
    let scheme = if settings.tls.is_some() { "https" } else { "http" };
    let fault = |message: String| {
        Fault::new(Code::NotServed, format!("ask the daemon at {scheme}://{address}{path}: {message}")).remedied_by(
            "see that it runs (`landfall run` starts it), and that these are the settings it was started with: \
             http.listen says where it is asked",
        )
    };
    let asked = async {
        let tcp = TcpStream::connect(address).await.map_err(|error| fault(error.to_string()))?;
        let answer = match &settings.tls {
            None => exchange(tcp, address, path).await,
            Some(tls) => exchange(connect_pinned(tcp, tls).await?, address, path).await,
        };
        answer.map_err(|error| fault(error.to_string()))
    };
    let answer = timeout(TIMEOUT, asked)
        .await
        .unwrap_or_else(|_| Err(fault(format!("no answer within {} s", TIMEOUT.as_secs()))))?;
    body(&answer).map(str::to_owned).map_err(fault)
}

/// A daemon that listens everywhere is asked here.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    address: SocketAddr,
    path: &str,
) -> std::io::Result<String> {
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    stream.flush().await?;
    let mut answer = String::new();
    stream.take(ANSWER_MAX).read_to_string(&mut answer).await?;
    Ok(answer)
}

fn body(answer: &str) -> std::result::Result<&str, String> {
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("that is no HTTP answer")?;
    let line = head.lines().next().unwrap_or_default();
    if line.starts_with("HTTP/1") && line.split(' ').nth(1) == Some("200") {
        Ok(body)
    } else {
        Err(line.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_apart() {
        assert_eq!(body("HTTP/1.0 200 OK\r\na: b\r\n\r\n{}"), Ok("{}"));
        assert_eq!(body("HTTP/1.1 404 Not Found\r\n\r\n"), Err("HTTP/1.1 404 Not Found".to_owned()));
        assert!(body("SSH-2.0").is_err());
        assert_eq!(reachable("0.0.0.0:1".parse().unwrap()).to_string(), "127.0.0.1:1");
        assert_eq!(reachable("[::]:1".parse().unwrap()).to_string(), "[::1]:1");
    }
}
