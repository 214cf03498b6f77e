//! A daemon is started, asked, frozen and ended. A shell script stands in for
//! Landfall, and a page served by the test for its HTTP port.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use testbed::{Daemon, eventually, home, ports};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SCRIPT: &str = r#"#!/bin/sh
if [ "$1" != run ]; then
    echo "$1 says $SAYING"
    exit 1
fi
trap 'echo "parting"; exit 0' TERM
echo "$0 $*"
cat "$3"
while :; do echo turn; sleep 0.05; done
"#;

fn stand_in(dir: &tempfile::TempDir) -> PathBuf {
    let path = dir.path().join("stand-in");
    std::fs::write(&path, SCRIPT).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

#[tokio::test]
async fn a_daemon_is_started_asked_and_ended() {
    let dir = home::scratch("stand-in").unwrap();
    let http = ports::loopback(ports::free().unwrap());
    let mut daemon = Daemon::builder(stand_in(&dir), "stand-in", "region = \"nowhere\"")
        .http(http)
        .env("SAYING", "hello")
        .start()
        .unwrap();
    eventually(Duration::from_secs(60), "it turns", async || Ok(daemon.log().contains("turn")))
        .await
        .unwrap();
    assert!(daemon.log().contains("region = \"nowhere\""));
    assert!(daemon.vm_hwm_kib().unwrap() > 100);

    let output = daemon.command(&["status"]).await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "status says hello\n");

    let error = daemon.wait_ready(Duration::from_millis(200)).await.unwrap_err();
    assert!(error.to_string().contains("turn"), "{error}");
    let listener = tokio::net::TcpListener::bind(http).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let count = stream.read(&mut request).await.unwrap();
            let body = if request[..count].starts_with(b"GET /metrics ") {
                "replication_up{region=\"nowhere\"} 1\n"
            } else {
                "{}"
            };
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    daemon.wait_ready(Duration::from_secs(60)).await.unwrap();
    let up = daemon.metric("replication_up{region=\"nowhere\"}").await;
    assert_eq!(up.unwrap(), Some(1.0));

    daemon.sigstop().unwrap();
    // It turns twenty times a second otherwise.
    eventually(Duration::from_secs(60), "it stands still", async || {
        let frozen = daemon.log().len();
        tokio::time::sleep(Duration::from_millis(300)).await;
        Ok(daemon.log().len() == frozen)
    })
    .await
    .unwrap();
    daemon.sigcont().unwrap();
    let (status, took) = daemon.sigterm(Duration::from_secs(60)).await.unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(30));
    assert!(daemon.log().ends_with("parting\n"));

    daemon.start_again().unwrap();
    assert!(daemon.start_again().is_err(), "it runs already");
    daemon.kill9().unwrap();
    assert!(!daemon.is_running());
    let error = daemon.wait_ready(Duration::from_secs(5)).await.unwrap_err();
    assert!(error.to_string().contains("ended"), "{error}");
}
