//! `landfall backfill`: asks the running daemon to copy rows, and follows it until they are applied.

use std::{
    fmt::Write,
    io::{IsTerminal, stdout},
    path::Path,
    time::{Duration, Instant},
};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{FOUND, GOOD, give_up, page, settings};
use crate::{
    changelog::{
        Log,
        kafka::{KafkaLog, Topics, WriterLimits},
    },
    config::{self, KafkaSettings, Settings, SourceSettings},
    fault::{Code, Fault, Result},
    kafka::TopicRules,
    names,
    postgres::{Connection, connect},
    region::Region,
    scope::Pattern,
    source::postgres::{
        PostgresSourceConfig,
        backfill::{self, Backfill, Request, TableProgress},
    },
};

/// How often the work is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How often a line is written where nobody sits at a terminal.
const LINE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
    /// A region to fill; may be given several times.
    #[arg(long, value_name = "REGION", required = true)]
    to: Vec<Region>,
    /// A table or a pattern, as in source.tables; may be given several times. Every table there is, unless given: then
    /// a region that has nothing of the stream begins here.
    #[arg(long, value_name = "TABLE")]
    table: Vec<Pattern>,
    /// Copies only the rows that meet a condition, written as behind WHERE in SQL; with exactly one table. They take the
    /// place of rows with the same keys, and no other row is touched.
    #[arg(long = "where", value_name = "CONDITION")]
    condition: Option<String>,
    /// Copies at most so many rows a second.
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u64).range(1..))]
    max_rows_per_second: Option<u64>,
    /// Copies at most so much a second, such as 20MiB.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_bytes_per_second: Option<u64>,
    /// Reads nothing while one of the regions is behind by more, such as 10s.
    #[arg(long, value_name = "DURATION", value_parser = config::duration)]
    max_lag: Option<Duration>,
    /// Reads for at most this share of the time, above 0 and up to 1: the rest is left to the database's users. What
    /// several sessions read side by side counts for each of them.
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, value_parser = share)]
    max_source_load: f64,
    /// Reads at most so many rows at once. Fewer are read again after a crash, or where many rows change meanwhile.
    #[arg(long, value_name = "ROWS", default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1..))]
    chunk_rows: u64,
    /// Says what would be copied, and asks for nothing.
    #[arg(long)]
    dry_run: bool,
    /// Copies again what was copied before.
    #[arg(long)]
    again: bool,
    /// Does not stay until it is done.
    #[arg(long)]
    detach: bool,
}

#[derive(Clone, Debug, Subcommand)]
enum Action {
    /// Shows every backfill there is a note of.
    Status,
    /// Holds back the one that is not done, after the chunk in hand.
    Pause,
    /// Lets the one that is held back go on.
    Resume,
    /// Ends the one that is not done. What it has begun to fill stays unfinished until another fills it.
    Cancel,
}

fn size(text: &str) -> std::result::Result<u64, String> {
    config::size(text)
        .and_then(|size| (size > 0).then_some(size).ok_or_else(|| "expected more than 0".to_owned()))
}

pub(super) fn share(text: &str) -> std::result::Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "expected a number".to_owned())?;
    if share > 0.0 && share <= 1.0 { Ok(share) } else { Err("expected more than 0 and at most 1".to_owned()) }
}

pub(super) async fn run(path: &Path, arguments: Arguments, json: bool) -> u8 {
    let settings = match settings(path, json) {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    let Some((source, kafka)) = settings.source.as_ref().zip(settings.kafka.as_ref()) else {
        let message = format!("{} has no [source]: this region sends nothing", path.display());
        let fault = Fault::new(Code::ConfigInvalid, message)
            .remedied_by("run it with the settings of the region that has the rows");
        return give_up(json, &fault);
    };
    let errand = Errand { settings: &settings, source, kafka, json };
    let outcome = match &arguments.action {
        Some(action) => errand.act(action).await,
        None => errand.copy(&arguments).await,
    };
    outcome.unwrap_or_else(|fault| give_up(json, &fault))
}

struct Errand<'a> {
    settings: &'a Settings,
    source: &'a SourceSettings,
    kafka: &'a KafkaSettings,
    json: bool,
}

impl Errand<'_> {
    async fn connect(&self) -> Result<Connection> {
        connect(&self.settings.database, "landfall backfill").await
    }

    async fn act(&self, action: &Action) -> Result<u8> {
        let connection = self.connect().await?;
        let all = backfill::all(&connection, &self.source.stream).await?;
        let (from, to): (&[&str], &str) = match action {
            Action::Status => {
                if self.json {
                    println!("{}", serde_json::to_string_pretty(&all).expect("text keys and finite numbers"));
                } else if all.is_empty() {
                    println!("no backfill was asked for");
                } else {
                    all.iter().for_each(|it| print!("{}", described(it)));
                }
                return Ok(if all.iter().all(Backfill::is_over) { GOOD } else { FOUND });
            }
            Action::Pause => (&["requested", "running"], "paused"),
            Action::Resume => (&["paused"], "running"),
            Action::Cancel => (&["requested", "running", "paused"], "canceled"),
        };
        let mut changed = Vec::new();
        for it in all.iter().filter(|it| from.contains(&it.state.as_str())) {
            if backfill::set_state(&connection, &it.id, from, to).await? {
                changed.push(&it.id);
            }
        }
        if self.json {
            println!("{}", serde_json::json!({ "state": to, "backfills": changed }));
        } else if changed.is_empty() {
            println!("nothing is {}", from.join(" or "));
        } else {
            changed.iter().for_each(|id| println!("backfill {id}: {to}"));
        }
        Ok(if changed.is_empty() { FOUND } else { GOOD })
    }

    async fn copy(&self, arguments: &Arguments) -> Result<u8> {
        let here = &self.settings.region;
        if arguments.to.contains(here) {
            let message = format!("{here} is this region: it has the rows");
            return Err(Fault::new(Code::ConfigInvalid, message).remedied_by("name the regions to be filled"));
        }
        let connection = self.connect().await?;
        let config = PostgresSourceConfig {
            address: self.settings.database.clone(),
            stream: self.source.stream.clone(),
            scope: self.source.scope.clone(),
            publication: self.source.publication.clone(),
            slot: self.source.slot.clone(),
            copy_sessions: self.source.copy_sessions,
        };
        let carried = backfill::carried(&connection, &config).await?;
        let mut tables = backfill::tables(&connection, carried, &arguments.table).await?;
        if tables.is_empty() {
            let message = "the stream carries no table".to_owned();
            return Err(Fault::new(Code::TableDiffers, message)
                .remedied_by("publish the tables first; `landfall check` says which are left out"));
        }
        backfill::require_readable(&connection, tables.iter().map(TableProgress::name)).await?;
        if let Some(condition) = &arguments.condition {
            let ([_], [table]) = (&arguments.table[..], &mut tables[..]) else {
                let message = format!("--where `{condition}` is of {} tables", tables.len());
                return Err(Fault::new(Code::ConfigInvalid, message).remedied_by(
                    "name the one table it is of: --table SCHEMA.TABLE, once; nothing was asked for",
                ));
            };
            table.expected_rows = backfill::require_condition(&connection, table, condition).await?;
            table.condition = Some(condition.clone());
        }
        if arguments.dry_run {
            self.show_plan(&tables);
            return Ok(GOOD);
        }
        if !backfill::is_served(&connection, &self.source.slot).await? {
            let message =
                format!("no daemon reads slot `{}`, and it is a daemon that copies", self.source.slot);
            return Err(Fault::new(Code::SlotBusy, message)
                .remedied_by("start `landfall run` in this region, then ask again"));
        }
        let to: Vec<String> = arguments.to.iter().map(ToString::to_string).collect();
        let names: Vec<&str> = tables.iter().map(|table| table.table.as_str()).collect();
        let all = backfill::all(&connection, &self.source.stream).await?;
        let same = |it: &&Backfill| {
            it.to == to
                && it.state != "canceled"
                && it.condition() == arguments.condition.as_deref()
                // Which rows meet a condition changes: what was copied is not what would be.
                && (it.condition().is_none() || !it.is_over())
                && it.tables.iter().map(|table| table.table.as_str()).eq(names.iter().copied())
        };
        let id = match all.iter().find(same) {
            Some(before) if !before.is_over() => {
                self.say(&format!("backfill {} is not done: it goes on", before.id));
                backfill::set_state(&connection, &before.id, &["paused"], "running").await?;
                before.id.clone()
            }
            Some(before) if !arguments.again => {
                let rows = before.rows();
                self.say(&format!(
                    "backfill {} has copied these tables, {rows} rows; --again copies them anew",
                    before.id
                ));
                return Ok(GOOD);
            }
            _ => {
                let request = Request {
                    to: to.clone(),
                    tables: arguments.table.clone(),
                    condition: arguments.condition.clone(),
                    max_rows_per_second: arguments.max_rows_per_second,
                    max_bytes_per_second: arguments.max_bytes_per_second,
                    max_lag: arguments.max_lag,
                    max_source_load: arguments.max_source_load,
                    chunk_rows: arguments.chunk_rows,
                };
                backfill::request(&connection, &self.source.stream, &request, &tables).await?
            }
        };
        if arguments.detach {
            self.say(&format!("backfill {id} is asked for; `landfall backfill status` shows how far it is"));
            return Ok(GOOD);
        }
        self.follow(&connection, &id).await
    }

    /// Something for people; JSON has it in the states.
    fn say(&self, text: &str) {
        if !self.json {
            println!("{text}");
        }
    }

    fn show_plan(&self, tables: &[TableProgress]) {
        if self.json {
            println!("{}", serde_json::to_string_pretty(tables).expect("text keys and finite numbers"));
            return;
        }
        let (rows, bytes) = tables
            .iter()
            .fold((0, 0), |(rows, bytes), table| (rows + table.expected_rows, bytes + table.expected_bytes));
        for table in tables {
            let size = page::bytes(table.expected_bytes);
            println!("  {:<40} about {:>12} rows {:>12}", table.table, table.expected_rows, size);
            if let Some(condition) = &table.condition {
                println!("    where {condition}");
            }
        }
        println!("{} tables, about {rows} rows, {} on disk", tables.len(), page::bytes(bytes));
        if tables.iter().any(|table| table.condition.is_some()) {
            println!("rows with the same keys are replaced in the other region, and no other row is touched");
        } else {
            println!("whatever the other region holds in them is replaced");
        }
    }

    /// Follows a backfill until it is in the log, and then until every region has applied it.
    async fn follow(&self, connection: &Connection, id: &str) -> Result<u8> {
        let mut shown = Shown::new(self.json);
        let done = loop {
            let all = backfill::all(connection, &self.source.stream).await?;
            let Some(now) = all.into_iter().find(|it| it.id == id) else {
                let message = format!("backfill {id} is not noted any more");
                return Err(Fault::new(Code::Internal, message));
            };
            shown.update(&now);
            if now.is_over() || now.state == "paused" {
                break now;
            }
            tokio::time::sleep(LOOK).await;
        };
        shown.end(&done);
        if done.state != "done" {
            return Ok(FOUND);
        }
        for to in &done.to {
            self.wait_applied(to).await?;
        }
        Ok(GOOD)
    }

    /// Waits until a region has told that it applied everything the log holds now.
    async fn wait_applied(&self, to: &str) -> Result<()> {
        let region = &self.settings.region;
        let to: Region = to
            .parse()
            .map_err(|error| Fault::new(Code::Internal, "a backfill is for no region").because(error))?;
        let group = names::group(&to, region, &self.source.stream);
        let log = KafkaLog::new(
            self.kafka.cluster(),
            Topics::of(region, &self.source.stream),
            group.clone(),
            TopicRules::default(),
            WriterLimits::default(),
        )?;
        let Some(bounds) = log.bounds().await? else { return Ok(()) };
        let mut said = Instant::now();
        self.say(&format!("everything is in the log; {to} applies it"));
        loop {
            let applied = log.published_by(&group).await?;
            // What was appended last tells of nothing: a place alone is told only now and then.
            if applied.is_some_and(|applied| applied >= bounds.high) {
                self.say(&format!("{to} has applied it"));
                return Ok(());
            }
            if said.elapsed() >= LINE {
                said = Instant::now();
                let at = applied.map_or_else(|| "nothing yet".to_owned(), |at| format!("up to offset {at}"));
                self.say(&format!("  {to}: {at} of {}", bounds.high));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// How a backfill is shown while it goes on.
struct Shown {
    json: bool,
    bar: ProgressBar,
    since: Instant,
    rows_before: Option<u64>,
    written: Option<Instant>,
}

impl Shown {
    fn new(json: bool) -> Self {
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

    fn update(&mut self, now: &Backfill) {
        let begun_with = *self.rows_before.get_or_insert(now.rows());
        self.bar.set_length(now.expected_rows());
        self.bar.set_position(now.rows());
        self.bar.set_message(match &now.waits_for {
            Some(why) => format!("waits: {why}"),
            None => now
                .tables
                .iter()
                .find(|it| it.state == "copying")
                .map_or_else(String::new, |it| it.table.clone()),
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

    fn end(&self, now: &Backfill) {
        self.bar.finish_and_clear();
        if self.json {
            println!("{}", serde_json::to_string(now).expect("text keys and finite numbers"));
        } else {
            print!("{}", described(now));
        }
    }
}

fn described(it: &Backfill) -> String {
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
            table.table,
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
