//! `landfall backfill`: asks the running daemon to copy rows, and follows it until they are applied.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use clap::{Args, Subcommand};

mod shown;

use shown::{Shown, described};

use super::{
    FOUND, GOOD, give_up, settings,
    verify::{asker, interrupted},
};
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
        backfill::{self, Backfill, Chosen, Request},
    },
    verify::TableName,
};

/// How often the work is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How often a line is written where nobody sits at a terminal.
const LINE: Duration = Duration::from_secs(10);
/// How often it is looked whether a daemon still copies.
const SERVED_LOOK: Duration = Duration::from_secs(2);

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
    /// Gives up waiting for a region that has everything in its log when it has applied nothing for so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    patience: u64,
}

#[derive(Clone, Debug, Subcommand)]
enum Action {
    /// Shows every backfill there is a note of.
    Status,
    /// Holds back the one that is not done, after the chunk in hand.
    Pause(Which),
    /// Lets the one that is held back go on.
    Resume(Which),
    /// Ends the one that is not done. What it has begun to fill stays unfinished until another fills it.
    Cancel(Which),
}

#[derive(Clone, Debug, Args)]
struct Which {
    /// Its name, as `landfall backfill status` shows it; needed where there are several.
    #[arg(value_name = "BACKFILL")]
    id: Option<String>,
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
        let (which, from, to): (&Which, &[&str], &str) = match action {
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
            Action::Pause(which) => (which, &["requested", "running"], "paused"),
            Action::Resume(which) => (which, &["paused"], "running"),
            Action::Cancel(which) => (which, &["requested", "running", "paused"], "canceled"),
        };
        let meant = |it: &&Backfill| match &which.id {
            Some(id) => it.id == *id,
            None => from.contains(&it.state.as_str()),
        };
        let found: Vec<&Backfill> = all.iter().filter(meant).collect();
        let changed = match (&found[..], &which.id) {
            ([], Some(id)) => {
                let message = format!("there is no backfill {id} of stream {}", self.source.stream);
                return Err(Fault::new(Code::ConfigInvalid, message)
                    .remedied_by("`landfall backfill status` shows them"));
            }
            ([], None) => None,
            ([it], _) => backfill::set_state(&connection, &it.id, from, to).await?.then_some(&it.id),
            (several, _) => {
                let names: Vec<String> =
                    several.iter().map(|it| format!("{} to {}", it.id, it.to.join(", "))).collect();
                let message =
                    format!("{} backfills are {}: {}", several.len(), from.join(" or "), names.join("; "));
                return Err(Fault::new(Code::ConfigInvalid, message)
                    .remedied_by("give the name of the one that is meant; nothing was changed"));
            }
        };
        if self.json {
            let changed: Vec<&String> = changed.into_iter().collect();
            println!("{}", serde_json::json!({ "state": to, "backfills": changed }));
        } else {
            match (changed, &found[..]) {
                (Some(id), _) => println!("backfill {id}: {to}"),
                (None, [it]) if which.id.is_some() => println!("backfill {} is {}", it.id, it.state),
                (None, _) => println!("nothing is {}", from.join(" or ")),
            }
        }
        Ok(if changed.is_some() { GOOD } else { FOUND })
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
            peers: self.settings.peers(),
        };
        let mut to: Vec<String> = arguments.to.iter().map(ToString::to_string).collect();
        to.sort_unstable();
        to.dedup();
        let carried = backfill::carried(&connection, &config).await?;
        if carried.is_empty() {
            let message = "the stream carries no table".to_owned();
            return Err(Fault::new(Code::TableDiffers, message)
                .remedied_by("publish the tables first; `landfall check` says which are left out"));
        }
        // What a region writes itself is older here, or not here at all.
        let theirs = backfill::received_from(&connection, &config.peers).await?;
        let Chosen { tables, left_out, every } = backfill::choose(carried, &arguments.table, &theirs)?;
        let left_out: Vec<String> = left_out.iter().map(ToString::to_string).collect();
        if self.json && !left_out.is_empty() && !arguments.dry_run {
            println!("{}", serde_json::json!({ "left_out": left_out }));
        }
        for table in &left_out {
            self.say(&format!(
                "left out: {table}, whose rows come here from another region. Name it with --table to replace what is there \
                 all the same",
            ));
        }
        if tables.is_empty() {
            let message = format!("{} comes here from another region", left_out.join(", "));
            return Err(Fault::new(Code::TableDiffers, message).remedied_by(
                "ask in the region that writes them; where that is this one by now, name them with --table, each by its \
                 whole name",
            ));
        }
        let mut tables = backfill::tables(&connection, tables).await?;
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
        let request = Request {
            to: to.clone(),
            every: every && arguments.condition.is_none(),
            condition: arguments.condition.clone(),
            max_rows_per_second: arguments.max_rows_per_second,
            max_bytes_per_second: arguments.max_bytes_per_second,
            max_lag: arguments.max_lag,
            max_source_load: arguments.max_source_load,
            chunk_rows: arguments.chunk_rows,
            by: asker(),
        };
        if arguments.dry_run {
            let pace = backfill::pace(&connection, &self.source.stream).await?;
            shown::plan(&tables, &left_out, &request, pace, self.json);
            return Ok(GOOD);
        }
        self.require_served(&connection).await?;
        let names: Vec<&TableName> = tables.iter().map(|table| &table.table).collect();
        let all = backfill::all(&connection, &self.source.stream).await?;
        // The newest is the first: one that was canceled on its way has emptied what an older one had brought.
        let spoiled = |before: &Backfill| {
            let newer = all.iter().take_while(|it| it.id != before.id);
            let touches = |it: &Backfill| {
                it.to.iter().any(|to| before.to.contains(to))
                    && it.tables.iter().any(|one| before.tables.iter().any(|two| one.table == two.table))
            };
            newer.into_iter().any(|it| it.state == "canceled" && it.condition().is_none() && touches(it))
        };
        let same = |it: &&Backfill| {
            it.to == to
                && it.state != "canceled"
                && it.condition() == arguments.condition.as_deref()
                // Which rows meet a condition changes: what was copied is not what would be.
                && (it.condition().is_none() || !it.is_over())
                && it.tables.iter().map(|table| &table.table).eq(names.iter().copied())
        };
        let id = match all.iter().find(same) {
            Some(before) if !before.is_over() => {
                self.say(&format!(
                    "backfill {} is not done: it goes on, within the limits given now",
                    before.id
                ));
                backfill::set_limits(&connection, &before.id, &request).await?;
                backfill::set_state(&connection, &before.id, &["paused"], "running").await?;
                before.id.clone()
            }
            Some(before) if !arguments.again && !spoiled(before) => {
                let rows = before.rows();
                self.say(&format!(
                    "backfill {} has copied these tables, {rows} rows; --again copies them anew",
                    before.id
                ));
                before.id.clone()
            }
            _ => {
                self.warn_of_strangers(&to).await?;
                backfill::request(&connection, &self.source.stream, &request, &tables).await?
            }
        };
        if arguments.detach {
            // One that was done before has said so.
            let known = all.iter().any(|it| it.id == id && it.is_over());
            if self.json {
                println!("{}", serde_json::json!({ "backfill": id, "done": known }));
            } else if !known {
                println!("backfill {id} is asked for; `landfall backfill status` shows how far it is");
            }
            return Ok(GOOD);
        }
        tokio::select! {
            outcome = self.follow(&connection, &id, Duration::from_secs(arguments.patience)) => outcome,
            () = interrupted() => {
                let message = format!("interrupted; the daemon goes on with backfill {id} by itself");
                Err(Fault::new(Code::Stopping, message).remedied_by(
                    "`landfall backfill status` shows how far it is, and `landfall backfill cancel` ends it",
                ))
            }
        }
    }

    async fn require_served(&self, connection: &Connection) -> Result<()> {
        if backfill::is_served(connection, &self.source.slot).await? {
            return Ok(());
        }
        let message = format!("no daemon reads slot `{}`, and it is a daemon that copies", self.source.slot);
        Err(Fault::new(Code::NotServed, message)
            .remedied_by("start `landfall run` in this region, then ask again"))
    }

    /// Something for people; JSON has it in the states.
    fn say(&self, text: &str) {
        if !self.json {
            println!("{text}");
        }
    }

    /// A name may be mistyped; a region may also be yet to come, and Kafka away.
    async fn warn_of_strangers(&self, regions: &[String]) -> Result<()> {
        for to in regions {
            let (log, group) = self.log_of(to)?;
            if let Ok(None) = log.published_by(&group).await {
                self.say(&format!(
                    "no daemon of a region {to} has read stream {} yet: is that its name? The rows wait in the log for it",
                    self.source.stream
                ));
            }
        }
        Ok(())
    }

    /// Follows a backfill until it is in the log, and then until every region has applied it.
    async fn follow(&self, connection: &Connection, id: &str, patience: Duration) -> Result<u8> {
        let mut shown = Shown::new(self.json);
        let (mut looked, mut served) = (Instant::now(), true);
        let done = loop {
            let all = backfill::all(connection, &self.source.stream).await?;
            let Some(mut now) = all.iter().find(|it| it.id == id).cloned() else {
                let message = format!("backfill {id} is not noted any more");
                return Err(Fault::new(Code::Internal, message));
            };
            if looked.elapsed() >= SERVED_LOOK {
                (looked, served) =
                    (Instant::now(), backfill::is_served(connection, &self.source.slot).await?);
            }
            if !now.is_over() && !served {
                now.waits_for = Some(format!(
                    "a daemon: none reads slot `{}` (next: start `landfall run` in this region)",
                    self.source.slot
                ));
            } else if now.waits_for.is_none() {
                now.waits_for = behind(&all, &now);
            }
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
            self.wait_applied(to, patience).await?;
        }
        Ok(GOOD)
    }

    /// The stream's topic, and the group a region reads it as.
    fn log_of(&self, to: &str) -> Result<(KafkaLog, String)> {
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
        Ok((log, group))
    }

    /// Waits until a region has told that it applied everything the log holds now.
    async fn wait_applied(&self, to: &str, patience: Duration) -> Result<()> {
        let (log, group) = self.log_of(to)?;
        let Some(bounds) = log.bounds().await? else { return Ok(()) };
        let mut said = Instant::now();
        let mut moved = (Instant::now(), None);
        self.say(&format!("everything is in the log; {to} applies it"));
        loop {
            let applied = log.published_by(&group).await?;
            // What was appended last tells of nothing: a place alone is told only now and then.
            let is_applied = applied.is_some_and(|applied| applied >= bounds.high);
            let up_to = applied.map_or_else(|| "nothing yet".to_owned(), |at| format!("up to offset {at}"));
            if is_applied || said.elapsed() >= LINE {
                said = Instant::now();
                let place = applied.map(|at| at.0);
                let is_so = serde_json::json!({ "region": to, "applied": place, "of": bounds.high.0, "done": is_applied });
                match (self.json, is_applied) {
                    (true, _) => println!("{is_so}"),
                    (false, true) => println!("{to} has applied it"),
                    (false, false) => println!("  {to}: {up_to} of {}", bounds.high),
                }
            }
            if is_applied {
                return Ok(());
            }
            if moved.1 != applied {
                moved = (Instant::now(), applied);
            } else if moved.0.elapsed() >= patience {
                let seconds = patience.as_secs();
                let message = format!("{to} has applied nothing for {seconds} s: {up_to} of {}", bounds.high);
                return Err(Fault::new(Code::NotServed, message).remedied_by(
                    "nothing is lost: the rows wait in the log. In that region, `landfall status` says whether its link runs, and what it waits for",
                ));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// The one that is in hand before this one, where there is one.
fn behind(all: &[Backfill], now: &Backfill) -> Option<String> {
    let older = all.iter().rev().find(|it| !it.is_over())?;
    if older.id == now.id || now.is_over() {
        return None;
    }
    let next = match older.state.as_str() {
        "paused" => format!(" (next: landfall backfill resume {0}, or cancel {0})", older.id),
        _ => String::new(),
    };
    Some(format!(
        "backfill {} to {}, which was asked for before and is {}{next}",
        older.id,
        older.to.join(", "),
        older.state
    ))
}
