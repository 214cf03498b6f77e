//! What the shell and `man` know of the command line: made from it, so that they cannot say otherwise.

use std::io::{Write, stdout};

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

use super::{GOOD, UNKNOWN};

/// Prints what completes the command line in `shell`.
pub(super) fn completions(shell: Shell, mut command: Command) -> u8 {
    let mut written = Vec::new();
    clap_complete::generate(shell, &mut command, "landfall", &mut written);
    print(&written)
}

/// Prints the man page of `landfall`, or of one of its commands.
pub(super) fn man(name: Option<&str>, command: Command) -> u8 {
    let mut command = command;
    command.build();
    let page = match name {
        None => Some(command),
        Some(name) => command.find_subcommand(name).cloned(),
    };
    let Some(page) = page else {
        eprintln!("landfall: there is no command {}", name.unwrap_or_default());
        return UNKNOWN;
    };
    let mut written = Vec::new();
    match Man::new(page).render(&mut written) {
        Ok(()) => print(&written),
        Err(error) => {
            eprintln!("landfall: write the man page: {error}");
            UNKNOWN
        }
    }
}

/// A reader that had enough, such as `head`, is no failure.
fn print(bytes: &[u8]) -> u8 {
    match stdout().write_all(bytes) {
        Ok(()) => GOOD,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => GOOD,
        Err(_) => UNKNOWN,
    }
}
