//! The demo: two regions under load, and one thing after another that goes wrong between them; then every
//! row of both databases held against the other's.
//!
//! ```text
//!   us-east-1                                    eu-west-1
//!   bank transfers ─┐
//!   pgbench ────────┼▶ Postgres 15 ▶ daemon ▶ Kafka ══ WAN ══▶ daemon ▶ Postgres 18
//!   probe ──────────┘                  ✗       ✗        ✗        ✗          ✗
//!        └───────────────── how long until the row is there? ───────────────┘
//! ```
//!
//! `make demo` builds what it needs and starts it. It takes one argument, the path of the `landfall`
//! binary (or `LANDFALL_BINARY`); its last line is the verdict, and it ends with 0 only where both sides
//! are equal and the ledger's record of what was acknowledged agrees. With `KEEP=1` everything then goes
//! on running, and what there is to look at is printed. With `LANDFALL_TESTBED_KEEP` set, the directories
//! with all logs stay behind.
//!
//! pgbench's history table has no key. A table without one can carry no update and no delete, and equal
//! rows could not be told apart in the comparison, so it is given one of its own before the load starts
//! (`testbed::load`); nothing is left out.

mod acts;
mod keep;
mod screen;
mod standing;
mod verdict;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use acts::Demo;

#[tokio::main]
async fn main() -> ExitCode {
    let binary = std::env::args_os().nth(1).or_else(|| std::env::var_os("LANDFALL_BINARY"));
    let Some(binary) = binary else {
        eprintln!("usage: demo PATH-OF-LANDFALL (or `make demo`)");
        return ExitCode::from(2);
    };
    // The daemon runs in a directory of its own.
    let binary = match std::fs::canonicalize(&binary) {
        Ok(binary) => binary,
        Err(error) => {
            eprintln!("demo: find {}: {error}", binary.display());
            return ExitCode::from(2);
        }
    };
    match run(&binary).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("\n{error:#}\n");
            let first = error.to_string().lines().next().unwrap_or_default().to_owned();
            println!("verdict: DIFFERENT the demo did not come to its end: {first}");
            ExitCode::FAILURE
        }
    }
}

/// Whether both sides were equal.
async fn run(binary: &Path) -> Result<bool> {
    let mut demo = Demo::start(binary).await?;
    let verdict = match demo.run().await {
        Ok(verdict) => verdict,
        Err(error) => {
            demo.screen.clear();
            for (region, daemon) in [("us-east-1", &demo.us), ("eu-west-1", &demo.eu)] {
                eprintln!("\nthe last lines of {region}'s daemon:\n{}", daemon.log_tail());
            }
            return Err(error);
        }
    };
    demo.screen.print(&verdict.line());
    if keep::is_asked() {
        keep::keep(binary, &demo.regions, [&demo.us, &demo.eu], &demo.pgbench).await?;
    }
    Ok(verdict.is_equal())
}
