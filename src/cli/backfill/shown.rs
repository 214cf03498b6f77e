//! How a backfill is shown: before it is asked for, while it goes on, and when it is over.

use std::{
    fmt::Write,
    io::{IsTerminal, stdout},
    time::Instant,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::LINE;
use crate::{
    cli::page,
    source::postgres::backfill::{Backfill, Request, TableProgress},
};

/// Bytes a second, as tables take them on disk, where no earlier backfill tells: two cores that carried the databases,
/// Kafka and the daemons of both regions reached as much.
const PACE_ASSUMED: f64 = 20.0 * (1 << 20) as f64;

/// Shows what would be copied, and how long that would take.
pub(super) fn plan(
    tables: &[TableProgress],
    left_out: &[String],
    request: &Request,
    pace: Option<f64>,
    json: bool,
) {
    let rows: u64 = tables.iter().map(|table| table.expected_rows).sum();
    let bytes: u64 = tables.iter().map(|table| table.expected_bytes).sum();
    let seconds = expected_seconds(rows, bytes, request, pace.unwrap_or(PACE_ASSUMED));
    if json {
        let plan = serde_json::json!({
            "tables": tables, "left_out": left_out, "rows": rows, "bytes": bytes, "seconds": seconds,
            "pace": if pace.is_some() { "earlier" } else { "assumed" },
        });
        println!("{}", serde_json::to_string_pretty(&plan).expect("text keys and finite numbers"));
        return;
    }
    for table in tables {
        let size = page::bytes(table.expected_bytes);
        println!("  {:<40} about {:>12} rows {:>12}", table.table.to_string(), table.expected_rows, size);
        if let Some(condition) = &table.condition {
            println!("    where {condition}");
        }
    }
    let rate = page::bytes(pace.unwrap_or(PACE_ASSUMED) as u64);
    let known = match pace {
        Some(_) => format!("earlier ones here copied {rate} of disk a second"),
        None => format!("at {rate} of disk a second: no earlier one here tells how fast it is"),
    };
    println!("{} tables, about {rows} rows, {} on disk", tables.len(), page::bytes(bytes));
    println!("about {} ({known})", page::seconds(seconds));
    if tables.iter().any(|table| table.condition.is_some()) {
        println!("rows with the same keys are replaced in the other region, and no other row is touched");
    } else {
        println!("whatever the other region holds in them is replaced");
    }
}

/// How long it takes, held to what was asked for.
fn expected_seconds(rows: u64, bytes: u64, request: &Request, pace: f64) -> f64 {
    let reading = bytes as f64 / pace.max(1.0) / request.max_source_load.max(0.01);
    let at = |much: u64, rate: Option<u64>| rate.map_or(0.0, |rate| much as f64 / rate.max(1) as f64);
    reading.max(at(rows, request.max_rows_per_second)).max(at(bytes, request.max_bytes_per_second))
}

/// How a backfill is shown while it goes on.
pub(super) struct Shown {
    json: bool,
    bar: ProgressBar,
    since: Instant,
    rows_before: Option<u64>,
    written: Option<Instant>,
}

impl Shown {
    pub(super) fn new(json: bool) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template(
            "{bar:30} {human_pos}/{human_len} rows, {per_sec}, {eta} left  {msg}",
        );
        if json || !stdout().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        } else if let Ok(style) = style {
            bar.set_style(style);
        }
        Self { json, bar, since: Instant::now(), rows_before: None, written: None }
    }

    pub(super) fn update(&mut self, now: &Backfill) {
        let begun_with = *self.rows_before.get_or_insert(now.rows());
        self.bar.set_length(now.expected_rows());
        self.bar.set_position(now.rows());
        self.bar.set_message(match &now.waits_for {
            Some(why) => format!("waits: {why}"),
            None => now
                .tables
                .iter()
                .find(|it| it.state == "copying")
                .map_or_else(String::new, |it| it.table.to_string()),
        });
        let due = self.written.is_none_or(|at| at.elapsed() >= LINE);
        if !self.bar.is_hidden() || !due {
            return;
        }
        self.written = Some(Instant::now());
        if self.json {
            println!("{}", serde_json::to_string(now).expect("text keys and finite numbers"));
            return;
        }
        let rate = (now.rows() - begun_with) as f64 / self.since.elapsed().as_secs_f64().max(0.001);
        let left = now.expected_rows().saturating_sub(now.rows()) as f64 / rate.max(1.0);
        let tables = now.tables.iter().filter(|table| table.state == "done").count();
        println!(
            "backfill {}: {} of about {} rows, {tables} of {} tables, {rate:.0} rows/s, about {} left{}",
            now.id,
            now.rows(),
            now.expected_rows(),
            now.tables.len(),
            page::seconds(left),
            now.waits_for.as_ref().map_or_else(String::new, |why| format!("; waits: {why}"))
        );
    }

    pub(super) fn end(&self, now: &Backfill) {
        self.bar.finish_and_clear();
        if self.json {
            println!("{}", serde_json::to_string(now).expect("text keys and finite numbers"));
        } else {
            print!("{}", described(now));
        }
    }
}

pub(super) fn described(it: &Backfill) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(text, "backfill {} to {}: {}, {} rows", it.id, it.to.join(", "), it.state, it.rows());
    if let Some(why) = &it.waits_for {
        let _ = writeln!(text, "  waits: {why}");
    }
    for table in &it.tables {
        let _ = writeln!(
            text,
            "  {:<40} {:<8} {:>12} rows {:>12}",
            table.table.to_string(),
            table.state,
            table.rows,
            page::bytes(table.bytes)
        );
        if let Some(condition) = &table.condition {
            let _ = writeln!(text, "    where {condition}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_of_what_was_asked_for_says_how_long_it_takes() {
        let request = Request {
            to: vec!["eu-west-1".to_owned()],
            every: true,
            condition: None,
            max_rows_per_second: None,
            max_bytes_per_second: None,
            max_lag: None,
            max_source_load: 1.0,
            chunk_rows: 1,
            by: String::new(),
        };
        let seconds = |request: &Request| expected_seconds(1_000, 1_000_000, request, 10_000.0);
        assert_eq!(seconds(&request), 100.0);
        let half = Request { max_source_load: 0.5, ..request.clone() };
        assert_eq!(seconds(&half), 200.0);
        let by_rows = Request { max_rows_per_second: Some(2), ..half.clone() };
        assert_eq!(seconds(&by_rows), 500.0);
        let by_bytes = Request { max_bytes_per_second: Some(1_000), ..by_rows };
        assert_eq!(seconds(&by_bytes), 1_000.0);
    }
}
