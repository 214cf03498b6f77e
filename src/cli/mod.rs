//! The command line. Exit codes: 0 good, 1 found something, 2 could not tell or wrong use.

mod backfill;
mod check;
mod config;
mod explain;
mod http;
mod init;
mod page;
mod parked;
mod recover;
mod shell;
mod status;
mod verify;

use std::{
    io::{IsTerminal, stdout},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{CommandFactory, Parser, Subcommand};

use crate::{
    config::{LogFormat, Mistakes, Settings},
    daemon,
};

/// Carries committed changes from one region's Postgres to the others, through Kafka.
#[derive(Debug, Parser)]
#[command(name = "landfall", version, propagate_version = true, after_help = EXIT_CODES)]
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

/// Shown below the help, and held to by every command.
const EXIT_CODES: &str = "Exit codes: 0 good, 1 something was found, 2 could not be told or wrong use.";

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Runs the daemon until SIGTERM or SIGINT.
    Run,
    /// Looks for what stands in the way: settings, server, privileges, tables, topics. Changes nothing.
    Check {
        /// Asks no server: what the settings alone give away.
        #[arg(long, conflicts_with_all = ["grants", "against", "deep"])]
        offline: bool,
        /// The settings of another region, whose database is asked too and compared with this one's.
        #[arg(long, value_name = "FILE", conflicts_with = "grants")]
        against: Option<PathBuf>,
        /// Counts the rows of tables that ought to be equal, in place of trusting estimates.
        #[arg(long, requires = "against")]
        deep: bool,
        /// Prints the SQL that grants the database's role what it lacks, and nothing else.
        #[arg(long)]
        grants: bool,
    },
    /// Asks the running daemon how everything stands, worst first.
    Status {
        /// Looks again every second, until it is interrupted.
        #[arg(long)]
        watch: bool,
    },
    /// Copies the rows there are into other regions, while both sides keep running. With the settings of the region
    /// that has them.
    Backfill(backfill::Arguments),
    /// Compares this region with another while both keep running, row by row at the same place of the stream. With the
    /// settings of the region to be checked.
    Verify(verify::Arguments),
    /// Compares as `verify` does, and has the rows that differ come anew from the other region. Without --execute it
    /// changes nothing.
    Repair(verify::Repair),
    /// Lets a link that cannot go on (records it needs are gone, it met a conflict) do so where the other region is now,
    /// and has exactly the rows come anew that differ then. Without --execute it says what it would do.
    Recover(recover::Arguments),
    /// What this region's database refused and was kept aside, with whatever waits behind it: lists, shows, has it applied,
    /// forgets it.
    Parked(parked::Arguments),
    /// Looks at two databases and writes what their daemons need: settings, SQL, passwords.
    Init(init::Arguments),
    /// Says what a code means and what to do; without one, lists all there are.
    Explain {
        /// A code of logs or status (LF-SLOT-LOST), a finding of `check` (wal-level), or a setting
        /// (source.linger).
        code: Option<String>,
    },
    /// The settings.
    Config {
        #[command(subcommand)]
        command: Config,
    },
    /// Prints what completes this command line in a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Prints a man page, for `man -l -`.
    Man {
        /// The command it is of; without one, landfall itself.
        command: Option<String>,
    },
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Config {
    /// Prints every setting in effect with where it comes from, secrets withheld.
    Show,
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
    if !matches!(cli.command, Command::Run) {
        end_with_the_reader();
    }
    match &cli.command {
        Command::Explain { code } => return ExitCode::from(explain::run(code.as_deref(), cli.json)),
        Command::Completions { shell } => return ExitCode::from(shell::completions(*shell, Cli::command())),
        Command::Man { command } => return ExitCode::from(shell::man(command.as_deref(), Cli::command())),
        _ => (),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("landfall: start the runtime: {error}");
            return ExitCode::from(UNKNOWN);
        }
    };
    runtime.block_on(async {
        if let Command::Init(arguments) = cli.command {
            return ExitCode::from(init::run(arguments, cli.json).await);
        }
        let Some(path) = &cli.config else {
            eprintln!("landfall: which settings? give --config FILE or set LANDFALL_CONFIG");
            return ExitCode::from(UNKNOWN);
        };
        match cli.command {
            Command::Run => run(path, cli.json).await,
            Command::Check { grants: true, .. } => ExitCode::from(check::grants(path, cli.json).await),
            Command::Check { grants: false, offline, against, deep } => {
                let look = check::Look { offline, against: against.as_deref(), deep };
                ExitCode::from(check::run(path, look, cli.json).await)
            }
            Command::Backfill(arguments) => ExitCode::from(backfill::run(path, arguments, cli.json).await),
            Command::Verify(arguments) => ExitCode::from(verify::run(path, arguments, cli.json).await),
            Command::Repair(arguments) => ExitCode::from(verify::repair(path, arguments, cli.json).await),
            Command::Recover(arguments) => ExitCode::from(recover::run(path, arguments, cli.json).await),
            Command::Parked(arguments) => ExitCode::from(parked::run(path, arguments, cli.json).await),
            Command::Status { watch } => ExitCode::from(status::run(path, cli.json, watch).await),
            Command::Config { command: Config::Show } => ExitCode::from(config::show(path, cli.json)),
            Command::Explain { .. }
            | Command::Completions { .. }
            | Command::Man { .. }
            | Command::Init(_) => unreachable!("answered without settings"),
        }
    })
}

/// Whoever reads what a command says may have enough of it (`| head`). There is nobody to tell the rest then, and nothing has
/// gone wrong: it ends as by SIGPIPE, which no process of ours may be killed by, since it would come from any connection.
fn end_with_the_reader() {
    const BY_SIGPIPE: i32 = 128 + 13;
    let otherwise = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload().downcast_ref::<String>();
        if text.is_some_and(|text| text.starts_with("failed printing to stdout: Broken pipe")) {
            std::process::exit(BY_SIGPIPE);
        }
        otherwise(panic);
    }));
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
            complain(path, mistakes);
            ExitCode::from(UNKNOWN)
        }
    }
}

/// The environment, without what is not UTF-8 (none of it can be ours).
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
}

/// The settings; where they hold mistakes, what to exit with once these are told.
fn settings(path: &Path, json: bool) -> Result<Settings, u8> {
    Settings::load(path, environment()).map_err(|mistakes| {
        if json {
            return give_up(json, &mistakes.into());
        }
        complain(path, mistakes);
        UNKNOWN
    })
}

fn complain(path: &Path, mistakes: Mistakes) {
    if mistakes.unread {
        give_up(false, &mistakes.into());
        return;
    }
    let count = mistakes.all.len();
    let noun = if count == 1 { "mistake" } else { "mistakes" };
    eprintln!("landfall: [LF-CONFIG] {count} {noun} in {} and the environment:", path.display());
    for mistake in &mistakes.all {
        eprintln!("  {mistake}");
    }
    eprintln!("  next: `landfall explain` with a setting's path says what it takes");
}

/// Says that nothing could be told.
fn give_up(json: bool, fault: &crate::fault::Fault) -> u8 {
    if json {
        println!("{}", as_json(fault));
    } else {
        eprintln!("landfall: [{}] {}\n  next: {}", fault.code(), fault.message(), fault.remedy());
    }
    UNKNOWN
}

fn as_json(fault: &crate::fault::Fault) -> serde_json::Value {
    serde_json::json!({
        "error": fault.message(), "code": fault.code().as_str(), "remedy": fault.remedy(),
    })
}

/// Whether standard output is read by a person who wants colour.
fn colour() -> bool {
    stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        for line in [
            "landfall status --json --watch --config a",
            "landfall --config a check",
            "landfall run --config a",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(cli.config, Some(PathBuf::from("a")), "{line}");
        }
        assert_eq!(Cli::try_parse_from(["landfall", "stats"]).unwrap_err().exit_code(), 2);
    }
}
