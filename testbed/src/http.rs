//! One HTTP request over a connection of its own.
//!
//! Servers here are asked for their health, for figures, and told what to run:
//! a request every now and then over loopback, for which these few lines do.
//! HAZARD: no TLS, no redirects, no reuse of connections.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A page is there at once, where the machine has nothing else to do; a server that has not answered by then
/// will not.
const GET_TIMEOUT: Duration = Duration::from_secs(30);

/// 16 MiB: no page of a daemon or of Kafka Connect comes near.
const LIMIT: u64 = 16 * 1024 * 1024;

/// GETs a page; returns the status and the body. A status that means failure
/// is not an error here.
pub async fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    request(address, "GET", path, None, GET_TIMEOUT).await
}

/// Sends a request, with a body of JSON where there is one; returns the status
/// and the answer's body, or an error where it takes longer than the timeout. A status that means failure is not an error here.
pub async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    json: Option<&str>,
    timeout: Duration,
) -> Result<(u16, String)> {
    let exchange = async {
        let mut stream =
            TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
        if let Some(json) = json {
            request
                .push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", json.len()));
        }
        request.push_str("\r\n");
        request.push_str(json.unwrap_or_default());
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(LIMIT).read_to_end(&mut answer).await?;
        parse(&answer)
    };
    tokio::time::timeout(timeout, exchange)
        .await
        .with_context(|| format!("no answer from {address}{path} in {timeout:?}"))?
}

fn parse(answer: &[u8]) -> Result<(u16, String)> {
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .context("an answer without an end of its head")?;
    let head = std::str::from_utf8(&answer[..end]).context("a head that is not text")?;
    let body = &answer[end + 4..];
    let status = head
        .split_whitespace()
        .nth(1)
        .and_then(|status| status.parse().ok())
        .context("an answer without a status")?;
    let header = |wanted: &str| {
        head.lines().skip(1).find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case(wanted).then(|| value.trim())
        })
    };
    let body = if header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        dechunk(body)?
    } else {
        if let Some(length) = header("content-length") {
            let length: usize = length.parse().context("a length that is no number")?;
            ensure!(body.len() == length, "{} of {length} bytes arrived", body.len());
        }
        body.to_vec()
    };
    Ok((status, String::from_utf8(body).context("a body that is not text")?))
}

fn dechunk(mut body: &[u8]) -> Result<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let end = body.windows(2).position(|window| window == b"\r\n").context("a chunk without a length")?;
        let length = usize::from_str_radix(std::str::from_utf8(&body[..end])?.trim(), 16)
            .context("a chunk's length that is no number")?;
        if length == 0 {
            return Ok(whole);
        }
        let chunk = body.get(end + 2..).and_then(|rest| rest.get(..length));
        whole.extend(chunk.context("a chunk cut short")?);
        body = body.get(end + 2 + length + 2..).context("a chunk cut short")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_whole_or_refused() {
        let plain = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(parse(plain).unwrap(), (503, "{}".to_owned()));
        assert!(parse(&plain[..plain.len() - 1]).is_err());
        let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n";
        assert_eq!(parse(chunked).unwrap(), (200, "abc".to_owned()));
    }
}
