//! Proves that a server that is gone without a word (no power, no network) is noticed within a minute and said by name, a
//! database on either side and the line to the other region, and that all goes on once it is back. TCP alone would repeat
//! what was sent for a quarter of an hour, and wait for an answer for ever.

use std::{net::SocketAddr, time::Duration};

use testbed::{
    Daemon, Region, TwoRegions, Wan, eventually, ports,
    region::{DATABASE, ROLE},
    wan::Cut,
};

const LANDFALL: &str = env!("CARGO_BIN_EXE_landfall");
const PATIENCE: Duration = Duration::from_secs(120);
/// What docs/guarantees.md promises.
const NOTICED: Duration = Duration::from_secs(60);

/// A line to a region's database, its address, and the URL through it.
fn line_to(region: &Region) -> (Wan, SocketAddr, String) {
    let near = ports::loopback(region.postgres.port());
    let wan = Wan::new().unwrap();
    let far = wan.forward(near).unwrap();
    let url = region.postgres.url_as(ROLE, DATABASE).replace(&near.to_string(), &far.to_string());
    (wan, far, url)
}

async fn arrives(regions: &TwoRegions, id: i64) {
    let sql = format!("select (count(*) = 1)::text from t where id = {id}");
    let there = async || Ok(regions.eu.postgres.query_text(DATABASE, &sql).await?.as_deref() == Some("true"));
    eventually(PATIENCE, &format!("row {id} arrives"), there).await.unwrap();
}

/// Waits until a daemon's only road says by this code what is away.
async fn says(daemon: &Daemon, code: &str) {
    let said = async || {
        let (_, page) = daemon.http_get("/status").await?;
        let status: serde_json::Value = serde_json::from_str(&page)?;
        Ok(status["streams"][0]["code"] == code)
    };
    if let Err(error) = eventually(NOTICED, &format!("{code} is said"), said).await {
        panic!("{error}\n{}", daemon.log_tail());
    }
}

/// What the kernel has set a timer for, on each connection of anybody's to this port: 2 is to ask whether the other end is
/// there (proc_net_tcp of the kernel's documentation).
fn timers(port: u16) -> Vec<u8> {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let connections = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let ours = connections.filter(|fields| fields[2].ends_with(&format!(":{port:04X}")) && fields[3] == "01");
    ours.map(|fields| fields[5][..2].parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_gone_without_a_word_is_noticed_on_either_side() {
    let regions = TwoRegions::start(15, 18, 1).await.unwrap();
    regions.execute_both("create table t (id int8 primary key)").await.unwrap();
    let (us_line, us_at, us_url) = line_to(&regions.us);
    let (eu_line, eu_at, eu_url) = line_to(&regions.eu);
    let us = regions.us.config().source(&["public.*"]).database_url(&us_url).to_toml();
    let us = regions.us.start_daemon(LANDFALL, &us).await.unwrap();
    let eu = regions.eu.config().link(&regions.us).database_url(&eu_url).to_toml();
    let eu = regions.eu.start_daemon(LANDFALL, &eu).await.unwrap();
    regions.us.begun(PATIENCE).await.unwrap();
    let write = async |id: i64| regions.us.execute(&format!("insert into t values ({id})")).await.unwrap();
    write(1).await;
    arrives(&regions, 1).await;

    for at in [us_at, eu_at] {
        eventually(PATIENCE, "the kernel watches over each connection", async || {
            let timers = timers(at.port());
            Ok(!timers.is_empty() && timers.iter().all(|&timer| timer == 2))
        })
        .await
        .unwrap();
    }

    eu_line.cut_as(Cut::Blackhole);
    write(2).await;
    us_line.cut_as(Cut::Blackhole);
    for daemon in [&eu, &us] {
        says(daemon, "LF-DB-UNREACHABLE").await;
        assert!(daemon.log().contains("nobody is there any more"), "{}", daemon.log_tail());
    }
    write(3).await;
    eu_line.heal();
    us_line.heal();
    arrives(&regions, 2).await;
    arrives(&regions, 3).await;

    regions.us.kafka.wan().cut_as(Cut::Blackhole);
    write(4).await;
    says(&eu, "LF-KAFKA-UNREACHABLE").await;
    regions.us.kafka.wan().heal();
    arrives(&regions, 4).await;
    regions.equal(PATIENCE, &[&us, &eu]).await.unwrap();
}
