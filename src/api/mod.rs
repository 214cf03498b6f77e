//! The HTTP listener: what machines, `landfall status` and the page read. Nothing can be changed through it.

mod page;

mod tls;

use std::{io::ErrorKind, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;

pub use tls::connect_pinned;

use crate::{
    clock,
    config::HttpSettings,
    control::{health::health, status::status},
    fault::{Code, Fault, Result},
    metrics::Metrics,
    roster::Roster,
    task::Stop,
};

/// What the listener answers from.
#[derive(Clone, Debug)]
pub struct Board {
    /// How things stand.
    pub roster: Arc<Roster>,
    /// What was counted.
    pub metrics: Metrics,
    /// `ready.max_lag`.
    pub max_lag: Option<Duration>,
}

/// A listener that has its address.
pub struct Listening(Kind);

enum Kind {
    Plain(TcpListener),
    Secured(tls::Secured),
}

/// Takes the address to listen on.
///
/// # Errors
/// Where it is taken, or not ours, or the certificate cannot be used.
pub async fn listen(settings: &HttpSettings) -> Result<Listening> {
    let address = settings.listen;
    let tcp = TcpListener::bind(address).await.map_err(|error| {
        let passes = matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable);
        let code = if passes { Code::ListenerBusy } else { Code::ConfigInvalid };
        let fault = Fault::new(code, format!("http.listen: listen on {address}")).because(error);
        if passes { fault } else { fault.remedied_by("set another address") }
    })?;
    Ok(Listening(match &settings.tls {
        None => Kind::Plain(tcp),
        Some(tls) => Kind::Secured(tls::Secured::new(tcp, tls)?),
    }))
}

/// Serves until the end is asked for. Health is served to the last: a load balancer has to see that
/// this region is going.
///
/// # Errors
/// Where the listener breaks.
pub async fn serve(listener: Listening, board: Board, mut stop: Stop) -> std::io::Result<()> {
    let ended = async move { stop.asked().await };
    match listener.0 {
        Kind::Plain(tcp) => axum::serve(tcp, router(board)).with_graceful_shutdown(ended).await,
        Kind::Secured(tls) => axum::serve(tls, router(board)).with_graceful_shutdown(ended).await,
    }
}

fn router(board: Board) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/health/shallow", get(shallow))
        .route("/health/ready", get(ready))
        .route("/status", get(whole_status))
        .merge(page::router())
        .with_state(board)
}

async fn metrics(State(board): State<Board>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], board.metrics.text())
}

/// This process turns; nothing is said of what it does.
async fn shallow() -> &'static str {
    "OK\n"
}

async fn ready(State(board): State<Board>) -> Response {
    let health = health(&board.roster, board.max_lag, clock::now());
    let code = if health.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(health)).into_response()
}

async fn whole_status(State(board): State<Board>) -> impl IntoResponse {
    Json(status(&board.roster, board.max_lag, clock::now()))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;
    use crate::task;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn each_page_answers() {
        let roster = Arc::new(Roster::new("eu-west-1".parse().unwrap()));
        let board = Board { roster: roster.clone(), metrics: Metrics::new(roster.clone()), max_lag: None };
        let at = |listen| HttpSettings { listen, tls: None };
        let listener = listen(&at(SocketAddr::from(([127, 0, 0, 1], 0)))).await.unwrap();
        let Kind::Plain(tcp) = &listener.0 else { panic!("TLS was not asked for") };
        let address = tcp.local_addr().unwrap();
        let Err(taken) = listen(&at(address)).await else { panic!("it is taken") };
        assert_eq!(taken.code(), Code::ListenerBusy);
        let (stopper, stop) = task::stopper();
        let serving = task::spawn("http", serve(listener, board, stop));

        assert!(get(address, "/health/shallow").await.ends_with("\r\n\r\nOK\n"));
        let ready = get(address, "/health/ready").await;
        assert!(ready.starts_with("HTTP/1.0 503") && ready.contains(r#""status":"DEGRADED""#), "{ready}");
        roster.database_healthy(true, "");
        roster.source().see_slot(Some(7), None, std::time::Instant::now());
        let ready = get(address, "/health/ready").await;
        assert!(ready.starts_with("HTTP/1.0 200") && ready.contains(r#""status":"READY""#), "{ready}");
        let metrics = get(address, "/metrics").await;
        assert!(metrics.contains("text/plain; version=0.0.4"), "{metrics}");
        let line = "\nreplication_slot_retained_bytes{region=\"eu-west-1\"} 7\n";
        assert!(metrics.contains(line), "{metrics}");
        assert!(get(address, "/status").await.contains(r#""slot_retained_bytes":7"#));
        let page = get(address, "/").await;
        assert!(
            page.contains("\r\ncontent-security-policy: default-src 'none'; script-src 'self';"),
            "{page}"
        );
        let parts = page
            .split([' ', '>'])
            .filter_map(|word| word.strip_prefix("href=\"").or(word.strip_prefix("src=\"")));
        let parts: Vec<&str> =
            parts.map(|part| part.trim_end_matches('"')).filter(|part| !part.starts_with("data:")).collect();
        assert!(parts.contains(&"page.js") && parts.contains(&"page.css"), "{parts:?}");
        for part in parts {
            let answer = get(address, &format!("/{part}")).await;
            assert!(answer.starts_with("HTTP/1.0 200"), "{part}: {answer}");
        }
        assert!(get(address, "/nothing").await.starts_with("HTTP/1.0 404"));

        stopper.stop();
        serving.await.unwrap().unwrap();
    }
}
