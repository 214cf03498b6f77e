//! Logs: to standard error, as text for people or JSON for machines.

use std::io::{IsTerminal, stderr};

use tracing::Dispatch;
use tracing_subscriber::{EnvFilter, fmt, util::SubscriberInitExt};

use crate::config::{LogFormat, LogSettings};

/// Starts logging. A second start (in tests) changes nothing.
pub(super) fn start(settings: &LogSettings) {
    if let Err(error) = written(settings.format, &settings.level).try_init() {
        tracing::debug!(%error, "logs are already written");
    }
}

/// Has what `tell` logs written in the same form, whatever the settings leave out.
pub(super) fn always(settings: &LogSettings, tell: impl FnOnce()) {
    tracing::dispatcher::with_default(&written(settings.format, "info"), tell);
}

fn written(format: LogFormat, level: &str) -> Dispatch {
    let terminal = stderr().is_terminal();
    let json = match format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !terminal,
    };
    let logs = fmt().with_env_filter(EnvFilter::new(level)).with_writer(stderr);
    if json {
        let logs = logs.json().flatten_event(true).with_current_span(true).with_span_list(false);
        Dispatch::new(logs.finish())
    } else {
        let colour = terminal && std::env::var_os("NO_COLOR").is_none();
        Dispatch::new(logs.with_ansi(colour).with_target(false).finish())
    }
}
