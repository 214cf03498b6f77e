//! `KEEP=1`: everything goes on running, for whoever wants to look around.

use std::path::Path;

use anyhow::{Context, Result};
use testbed::region::DATABASE;
use testbed::{Daemon, TwoRegions, load::Pgbench};

/// Transactions a second, so that there is something to see.
const RATE: f64 = 20.0;

/// Whether it was asked for.
pub fn is_asked() -> bool {
    std::env::var_os("KEEP").is_some_and(|keep| !keep.is_empty() && keep != "0")
}

/// Goes on with a light load, says where everything is, and waits for Ctrl-C.
pub async fn keep(
    binary: &Path,
    regions: &TwoRegions,
    daemons: [&Daemon; 2],
    pgbench: &Pgbench,
) -> Result<()> {
    let load = pgbench.start(1, Some(RATE))?;
    println!("\n{}", guide(binary, regions, daemons));
    tokio::signal::ctrl_c().await.context("wait for Ctrl-C")?;
    println!("\nending everything");
    load.stop().await
}

fn guide(binary: &Path, regions: &TwoRegions, daemons: [&Daemon; 2]) -> String {
    let mut guide = format!(
        "Everything goes on running, under {RATE} pgbench transactions a second, until Ctrl-C.\n\nPages to open\n"
    );
    let both = [(&regions.us, daemons[0]), (&regions.eu, daemons[1])];
    let mut say = |line: String| guide.extend([line.as_str(), "\n"]);
    for (region, _) in both {
        say(format!("  {:<10} http://{}/", region.name, region.http));
    }
    say("\nHow it stands".to_owned());
    for (_, daemon) in both {
        say(format!("  {} status --watch --config {}", binary.display(), daemon.config_path().display()));
    }
    let eu = daemons[1].config_path();
    say(format!("  {} check --config {}", binary.display(), eu.display()));
    for (region, _) in both {
        say(format!("  curl -s http://{}/metrics | grep ^replication_", region.http));
    }
    say("\nA row to send".to_owned());
    let [us_url, eu_url] = [&regions.us, &regions.eu].map(|region| region.postgres.url(DATABASE));
    say(format!("  psql '{us_url}' -c \"update pgbench_accounts set abalance = 42 where aid = 1\""));
    say(format!("  psql '{eu_url}' -c \"select abalance from pgbench_accounts where aid = 1\""));
    say("\nA row in the way: the link halts with LF-CONFLICT, and goes on once it is gone".to_owned());
    let branch = "insert into pgbench_branches (bid, bbalance) values (7, 0)";
    say(format!("  psql '{eu_url}' -c \"{branch}\""));
    say(format!("  psql '{us_url}' -c \"{branch}\""));
    say(format!("  psql '{eu_url}' -c \"delete from pgbench_branches where bid = 7\""));
    say("\nkill -9, and start again".to_owned());
    for (region, daemon) in both {
        let pid = daemon.pid().map_or("?".to_owned(), |pid| pid.to_string());
        say(format!("  kill -9 {pid}   # {}'s daemon", region.name));
        say(format!("  {} run --config {}", binary.display(), daemon.config_path().display()));
    }
    say("\nServers and logs".to_owned());
    for (region, daemon) in both {
        say(format!("  {:<10} {}", region.name, region.postgres.url(DATABASE)));
        if !region.kafka.local().is_empty() {
            say(format!(
                "  {:<10} Kafka {}, over the WAN {}",
                "",
                region.kafka.local(),
                region.kafka.remote()
            ));
        }
        say(format!("  {:<10} {}", "", daemon.log_path().display()));
    }
    guide
}
