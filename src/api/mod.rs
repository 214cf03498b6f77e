//! The HTTP listener: what machines and `landfall status` read. Nothing can be changed through it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;

use crate::{
    clock,
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

/// Takes the address to listen on.
///
/// # Errors
/// Where it is taken, or not ours.
pub async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        Fault::new(Code::ConfigInvalid, format!("http.listen: listen on {address}"))
            .because(error)
            .remedied_by("free the address, or set another")
    })
}

/// Serves until the end is asked for. Health is served to the last: a load balancer has to see that
/// this region is going.
///
/// # Errors
/// Where the listener breaks.
pub async fn serve(listener: TcpListener, board: Board, mut stop: Stop) -> std::io::Result<()> {
    axum::serve(listener, router(board)).with_graceful_shutdown(async move { stop.asked().await }).await
}

fn router(board: Board) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/health/shallow", get(shallow))
        .route("/health/ready", get(ready))
        .route("/status", get(whole_status))
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
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(listen(address).await.unwrap_err().code(), Code::ConfigInvalid, "taken");
        let (stopper, stop) = task::stopper();
        let serving = task::spawn("http", serve(listener, board, stop));

        assert!(get(address, "/health/shallow").await.ends_with("\r\n\r\nOK\n"));
        let ready = get(address, "/health/ready").await;
        assert!(ready.starts_with("HTTP/1.0 503") && ready.contains(r#""status":"DEGRADED""#), "{ready}");
        roster.database_healthy(true, "");
        roster.source().slot_retained_bytes.set(7);
        let ready = get(address, "/health/ready").await;
        assert!(ready.starts_with("HTTP/1.0 200") && ready.contains(r#""status":"READY""#), "{ready}");
        let metrics = get(address, "/metrics").await;
        assert!(metrics.contains("text/plain; version=0.0.4"), "{metrics}");
        assert!(metrics.contains("\nreplication_slot_retained_bytes 7\n"), "{metrics}");
        assert!(get(address, "/status").await.contains(r#""slot_retained_bytes":7"#));
        assert!(get(address, "/nothing").await.starts_with("HTTP/1.0 404"));

        stopper.stop();
        serving.await.unwrap().unwrap();
    }
}
