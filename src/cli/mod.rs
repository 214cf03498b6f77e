//! The command line. Exit codes: 0 good, 1 found something, 2 could not tell or wrong use.

mod check;
mod http;
mod page;
mod status;

use std::{
    io::{IsTerminal, stdout},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use crate::{
    config::{LogFormat, Mistakes, Settings},
    daemon,
};

/// Carries committed changes from one region's Postgres to the others, through Kafka.
#[derive(Debug, Parser)]
#[command(name = "landfall", version, propagate_version = true)]
struct Cli {
    /// The settings of this region.
    #[arg(long, global = true, env = "LANDFALL_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Answers (and, of `run`, logs) as JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Command {
    /// Runs the daemon until SIGTERM or SIGINT.
    Run,
    /// Looks for what stands in the way: settings, server, privileges, tables. Changes nothing.
    Check {
        /// Prints the SQL that grants the database's role what it lacks, and nothing else.
        #[arg(long)]
        grants: bool,
    },
    /// Asks the running daemon how everything stands, worst first.
    Status,
}

/// Good.
const GOOD: u8 = 0;
/// Something was found.
const FOUND: u8 = 1;
/// Nothing could be told, or the command was used wrongly.
const UNKNOWN: u8 = 2;

/// Runs the command the process was started with.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let Some(path) = &cli.config else {
        eprintln!("landfall: which settings? give --config FILE or set LANDFALL_CONFIG");
        return ExitCode::from(UNKNOWN);
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("landfall: start the runtime: {error}");
            return ExitCode::from(UNKNOWN);
        }
    };
    runtime.block_on(async {
        match cli.command {
            Command::Run => run(path, cli.json).await,
            Command::Check { grants: true } => ExitCode::from(check::grants(path, cli.json).await),
            Command::Check { grants: false } => ExitCode::from(check::run(path, cli.json).await),
            Command::Status => ExitCode::from(status::run(path, cli.json).await),
        }
    })
}

async fn run(path: &Path, json: bool) -> ExitCode {
    match Settings::load(path, environment()) {
        Ok(mut settings) => {
            if json {
                settings.log.format = LogFormat::Json;
            }
            daemon::run(settings).await
        }
        Err(mistakes) => {
            complain(path, &mistakes);
            ExitCode::from(UNKNOWN)
        }
    }
}

/// The environment, without what is not UTF-8 (none of it can be ours).
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
}

fn complain(path: &Path, mistakes: &Mistakes) {
    let count = mistakes.0.len();
    let noun = if count == 1 { "mistake" } else { "mistakes" };
    eprintln!("landfall: [LF-CONFIG] {count} {noun} in {} and the environment:", path.display());
    for mistake in &mistakes.0 {
        eprintln!("  {mistake}");
    }
}

/// Says that nothing could be told.
fn give_up(json: bool, fault: &crate::fault::Fault) -> u8 {
    if json {
        let document = serde_json::json!({
            "error": fault.message(), "code": fault.code().as_str(), "remedy": fault.remedy(),
        });
        println!("{document}");
    } else {
        eprintln!("landfall: [{}] {}\n  next: {}", fault.code(), fault.message(), fault.remedy());
    }
    UNKNOWN
}

/// Whether standard output is read by a person who wants colour.
fn colour() -> bool {
    stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        for line in
            ["landfall status --json --config a", "landfall --config a check", "landfall run --config a"]
        {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(cli.config, Some(PathBuf::from("a")), "{line}");
        }
        assert_eq!(Cli::try_parse_from(["landfall", "stats"]).unwrap_err().exit_code(), 2);
    }
}
