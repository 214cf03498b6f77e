//! Nothing outlives a test, however it ends.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use testbed::{Kafka, Postgres, eventually};

/// Set for the process that is to be killed; elsewhere `victim` has nothing
/// to do.
const VICTIM: &str = "LANDFALL_TESTBED_VICTIM";

#[tokio::test]
async fn victim() {
    if std::env::var_os(VICTIM).is_none() {
        return;
    }
    let (postgres, kafka) = tokio::try_join!(Postgres::start(15, "victim"), Kafka::start(1)).unwrap();
    println!(
        "servers {} {} {}",
        postgres.pid().unwrap(),
        kafka.pid(0).unwrap(),
        postgres.data_dir().display()
    );
    tokio::time::sleep(Duration::from_secs(600)).await;
}

#[tokio::test]
async fn nothing_outlives_a_killed_test() {
    let mut test = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim", "--nocapture"])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let line = BufReader::new(test.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
        .find(|line| line.starts_with("servers "))
        .expect("the victim starts its servers");
    let words: Vec<&str> = line.split(' ').collect();
    let servers = [words[1], words[2]].map(|pid| PathBuf::from("/proc").join(pid));
    assert!(servers.iter().all(|server| server.exists()), "{line}");

    test.kill().unwrap();
    test.wait().unwrap();
    eventually(Duration::from_secs(60), "its servers are gone", async || {
        Ok(servers.iter().all(|server| !runs(server)))
    })
    .await
    .unwrap();

    // Its files are swept by the next process that needs some.
    let files = Path::new(words[3]).parent().unwrap();
    assert!(files.exists());
    drop(testbed::home::scratch("sweeper").unwrap());
    assert!(!files.exists());
}

/// An orphan may stay a zombie where init is slow to reap.
fn runs(server: &Path) -> bool {
    std::fs::read_to_string(server.join("stat"))
        .is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z")))
}
