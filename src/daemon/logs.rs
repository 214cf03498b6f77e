//! Logs: to standard error, as text for people or JSON for machines.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{LogFormat, LogSettings};

/// Starts logging. A second start (in tests) changes nothing.
pub(super) fn start(settings: &LogSettings) {
    let terminal = stderr().is_terminal();
    let filter = EnvFilter::new(&settings.level);
    let json = match settings.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !terminal,
    };
    let logs = fmt().with_env_filter(filter).with_writer(stderr);
    let started = if json {
        logs.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init()
    } else {
        let colour = terminal && std::env::var_os("NO_COLOR").is_none();
        logs.with_ansi(colour).with_target(false).try_init()
    };
    if let Err(error) = started {
        tracing::debug!(%error, "logs are already written");
    }
}
