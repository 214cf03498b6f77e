//! `landfall verify`: asks the running daemon to compare this region with another, and says what differs.

use std::{
    io::{IsTerminal, stdout},
    path::Path,
    time::{Duration, Instant},
};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{FOUND, GOOD, UNKNOWN, backfill::share, give_up, page, settings};
use crate::{
    config::{LinkSettings, Settings},
    fault::{Code, Fault, Result},
    postgres::{Connection, connect},
    region::Region,
    scope::Pattern,
    sink::postgres::verification::{self, Listed, Request, TableVerified, Verified},
    verify::TableName,
};

/// How often the work is looked at.
const LOOK: Duration = Duration::from_millis(300);
/// How often a line is written where nobody sits at a terminal.
const LINE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Args)]
pub(super) struct Arguments {
    /// The region to compare with; needed where this one has several links.
    #[arg(long, value_name = "REGION")]
    from: Option<Region>,
    /// A table or a pattern, as in source.tables; may be given several times. Every table there is, unless given.
    #[arg(long, value_name = "TABLE")]
    table: Vec<Pattern>,
    /// Shows the rows that differ, not their keys alone.
    #[arg(long)]
    show_values: bool,
    /// Reads for at most this share of the time, above 0 and up to 1: the rest is left to the databases' users.
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, value_parser = share)]
    max_source_load: f64,
    /// Rows in a range: so many are looked at one by one where their sums differ.
    #[arg(long, value_name = "ROWS", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    range_rows: u32,
    /// Lists at most so many rows of a table. Comparing a table ends where 10,000 differ, unless they are put right.
    #[arg(long, value_name = "ROWS", default_value_t = 100)]
    list: u32,
    /// Gives up when nothing has gone on for so many seconds: the other region's daemon is away, or this one's link
    /// does not run.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    patience: u64,
}

/// `landfall repair`: compares, and puts right what differs.
#[derive(Clone, Debug, Args)]
pub(super) struct Repair {
    #[command(flatten)]
    compare: Arguments,
    /// Puts the rows that differ right. Without it, they are only listed.
    #[arg(long)]
    execute: bool,
}

pub(super) async fn repair(path: &Path, arguments: Repair, json: bool) -> u8 {
    carry_out(path, arguments.compare, Purpose::Repair { execute: arguments.execute }, json).await
}

pub(super) async fn run(path: &Path, arguments: Arguments, json: bool) -> u8 {
    carry_out(path, arguments, Purpose::Verify, json).await
}

/// What a comparison is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Verify,
    Repair { execute: bool },
}

async fn carry_out(path: &Path, arguments: Arguments, purpose: Purpose, json: bool) -> u8 {
    let settings = match settings(path, json) {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    let link = match link(&settings, arguments.from.as_ref()) {
        Ok(link) => link,
        Err(fault) => return give_up(json, &fault),
    };
    compare(&settings, link, &arguments, purpose, json).await.unwrap_or_else(|fault| give_up(json, &fault))
}

pub(super) fn link<'a>(settings: &'a Settings, from: Option<&Region>) -> Result<&'a LinkSettings> {
    let names = || settings.links.iter().map(|link| link.from.to_string()).collect::<Vec<_>>().join(", ");
    let mistaken = |message: String| {
        let remedy =
            "run it with the settings of the region to be checked, and name one of its links with --from";
        Err(Fault::new(Code::ConfigInvalid, message).remedied_by(remedy))
    };
    match (from, &settings.links[..]) {
        (_, []) => mistaken(format!("region {} has no [[link]]: nothing comes to it", settings.region)),
        (None, [link]) => Ok(link),
        (None, _) => mistaken(format!("region {} has links from {}", settings.region, names())),
        (Some(from), links) => match links.iter().find(|link| link.from == *from) {
            Some(link) => Ok(link),
            None => mistaken(format!("no link from {from}; there are links from {}", names())),
        },
    }
}

async fn compare(
    settings: &Settings,
    link: &LinkSettings,
    arguments: &Arguments,
    purpose: Purpose,
    json: bool,
) -> Result<u8> {
    let comparing = Comparing::new(settings, link, arguments.patience, arguments.list, json).await?;
    verification::require_daemon(&comparing.connection, &link.from, &link.stream).await?;
    let mend = purpose == Purpose::Repair { execute: true };
    let mut ours = Vec::new();
    if let Some(source) = settings.source.as_ref().filter(|_| matches!(purpose, Purpose::Repair { .. })) {
        let published = (&*source.publication, &source.scope);
        ours = verification::published_only_by_us(&comparing.connection, &link.from, published).await?;
        let is_named = |table: &TableName| {
            arguments.table.iter().any(|it| it.as_table() == Some((&table.schema, &table.table)))
        };
        ours.retain(|table| !is_named(table));
    }
    let request = Request {
        tables: arguments.table.clone(),
        range_rows: arguments.range_rows,
        values: arguments.show_values,
        max_source_load: arguments.max_source_load,
        mend,
        ours,
        by: asker(),
    };
    let found = comparing.run(&request).await?;
    show(&found, arguments, purpose, json);
    Ok(judge(&found))
}

/// Asks a daemon to compare.
pub(super) struct Comparing<'a> {
    pub(super) connection: Connection,
    pub(super) link: &'a LinkSettings,
    pub(super) patience: Duration,
    /// Rows of a table that are listed.
    list: u32,
    pub(super) json: bool,
}

impl<'a> Comparing<'a> {
    /// Asks the daemon that applies a link.
    pub(super) async fn new(
        settings: &Settings,
        link: &'a LinkSettings,
        patience: u64,
        list: u32,
        json: bool,
    ) -> Result<Self> {
        let connection = connect(&settings.database, "landfall verify").await?;
        Ok(Self { connection, link, patience: Duration::from_secs(patience), list, json })
    }

    /// Asks for a verification and follows it to its end; one that is given up here is ended there.
    pub(super) async fn run(&self, request: &Request) -> Result<Verified> {
        let (from, stream) = (&self.link.from, &self.link.stream);
        let id = verification::request(&self.connection, from, stream, request).await?;
        let outcome = tokio::select! {
            outcome = self.follow(&id) => outcome,
            () = interrupted() => Err(Fault::new(Code::Stopping, "interrupted: the verification is ended")),
        };
        if outcome.is_err() {
            verification::cancel(&self.connection, &id).await?;
        }
        outcome
    }

    /// Follows a verification until it is over.
    async fn follow(&self, id: &str) -> Result<Verified> {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{spinner} {human_pos} rows compared, {per_sec}  {msg}");
        if self.json || !stdout().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        } else if let Ok(style) = style {
            bar.set_style(style);
        }
        let mut written = Instant::now();
        let mut moved = (Instant::now(), None);
        loop {
            let Some(now) = verification::look(&self.connection, id, self.list).await? else {
                return Err(Fault::new(Code::Internal, format!("verification {id} is not noted any more")));
            };
            if now.is_over() {
                bar.finish_and_clear();
                return Ok(now);
            }
            let rows: u64 = now.tables.iter().map(|table| table.rows).sum();
            let over =
                now.tables.iter().filter(|table| !matches!(&*table.state, "waiting" | "comparing")).count();
            let place = (now.behind.unwrap_or(now.questions), over, now.state.clone());
            if moved.1.as_ref() != Some(&place) {
                moved = (Instant::now(), Some(place));
            } else if moved.0.elapsed() >= self.patience {
                let seconds = self.patience.as_secs();
                let why = now.waits_for.unwrap_or_else(|| "nothing says why".to_owned());
                let message = format!(
                    "could not be compared with {}: nothing has gone on for {seconds} s: {why}",
                    now.from
                );
                return Err(Fault::new(Code::NotServed, message).remedied_by(
                    "see with `landfall status` that this region's link runs, and there that the other's source does. A large \
                     table without a key is read for one question: --patience gives it longer",
                ));
            }
            bar.set_position(rows);
            let table = now.tables.iter().find(|table| table.state == "comparing");
            let waits = now.waits_for.as_ref().map(|why| format!("waits: {why}"));
            bar.set_message(waits.clone().or(table.map(|table| table.table.clone())).unwrap_or_default());
            if bar.is_hidden() && written.elapsed() >= LINE {
                written = Instant::now();
                if self.json {
                    println!("{}", serde_json::to_string(&now).expect("text keys and finite numbers"));
                } else {
                    let waits = waits.map_or_else(String::new, |waits| format!("; {waits}"));
                    println!("{rows} rows compared, {over} of {} tables{waits}", now.tables.len());
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Who asks, as far as the system knows: user and host.
pub(super) fn asker() -> String {
    let named = |name| std::env::var(name).ok().filter(|text: &String| !text.is_empty());
    let user = ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(named);
    let user = user.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()));
    let system = rustix::system::uname();
    format!("{user}@{}", system.nodename().to_string_lossy())
}

/// Returns when somebody wants this process to end.
pub(super) async fn interrupted() {
    let [mut terminate, mut hang_up] =
        [SignalKind::terminate(), SignalKind::hangup()].map(|kind| signal(kind).ok());
    let told = async |signal: &mut Option<Signal>| match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => (),
        () = told(&mut terminate) => (),
        () = told(&mut hang_up) => (),
    }
}

/// 0 equal, 1 different, 2 could not tell.
fn judge(found: &Verified) -> u8 {
    if found.tables.iter().any(|table| table.differences > table.mended + table.unsure) {
        return FOUND;
    }
    let good = |table: &TableVerified| matches!(&*table.state, "equal" | "mended");
    let equal = !found.tables.is_empty() && found.tables.iter().all(good);
    if equal && found.state == "done" { GOOD } else { UNKNOWN }
}

fn show(found: &Verified, arguments: &Arguments, purpose: Purpose, json: bool) {
    if json {
        println!("{}", serde_json::to_string(found).expect("text keys and finite numbers"));
        return;
    }
    if found.tables.is_empty() {
        println!("none of the tables that {} carries was asked for", found.from);
    }
    for table in &found.tables {
        let badness = match table.state.as_str() {
            "equal" | "mended" => 0,
            "different" => 2,
            _ => 1,
        };
        let state = page::painted(&format!("{:<10}", table.state), badness, super::colour());
        println!("  {:<40} {state} {:>12} rows, {} ranges", table.table, table.rows, table.ranges);
        if let Some(why) = &table.why {
            page::wrapped(why, 4).iter().for_each(|line| println!("{line}"));
        }
        for finding in &table.findings {
            println!("    {}", listed(finding));
        }
        let left = table.differences.saturating_sub(table.findings.len() as u64);
        if left > 0 {
            println!("    and {left} more (--list {} lists them)", table.differences);
        }
    }
    let unsure: u64 = found.tables.iter().map(|table| table.unsure).sum();
    let differences: u64 = found.tables.iter().map(|table| table.differences - table.mended).sum();
    let differences = differences.saturating_sub(unsure);
    let mended: u64 = found.tables.iter().map(|table| table.mended).sum();
    if mended > 0 {
        println!("{mended} rows were put right");
    }
    let verdict = match judge(found) {
        GOOD => format!("equal: {} tables here hold what {} holds", found.tables.len(), found.from),
        FOUND => format!("different: {differences} rows are not what they are in {}", found.from),
        _ => format!("could not tell of every table whether it holds what {} holds", found.from),
    };
    println!("{verdict}");
    if unsure > 0 {
        println!("{unsure} rows never stood still while they were compared: a quieter hour tells");
    }
    if purpose == (Purpose::Repair { execute: false }) && differences > 0 {
        println!("nothing was changed; --execute puts these rows right, as {} has them then", found.from);
    }
    if !arguments.show_values && differences + unsure > 0 {
        println!("--show-values shows the rows themselves");
    }
}

fn listed(finding: &Listed) -> String {
    let key = if finding.key.is_empty() { "(no key)".to_owned() } else { finding.key.join(", ") };
    let side = |name: &str, row: &Option<String>| {
        row.as_ref().map_or_else(String::new, |row| format!("\n      {name:<6} {row}"))
    };
    let (here, there) = (side("here", &finding.here), side("there", &finding.there));
    let mended = if finding.mended { "  mended" } else { "" };
    format!("{:<10} {key}{mended}{there}{here}", finding.difference)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(state: &str, differences: &[&str]) -> TableVerified {
        let listed = |difference: &&str| Listed {
            key: vec!["1".to_owned()],
            difference: (*difference).to_owned(),
            here: None,
            there: None,
            mended: false,
        };
        TableVerified {
            table: "public.t".into(),
            state: state.into(),
            rows: 1,
            ranges: 1,
            differences: differences.len() as u64,
            mended: 0,
            unsure: differences.iter().filter(|it| **it == "unsure").count() as u64,
            why: None,
            findings: differences.iter().map(listed).collect(),
        }
    }

    #[test]
    fn a_doubt_is_neither_equal_nor_different() {
        let cases = [
            (vec![table("equal", &[]), table("equal", &[])], GOOD),
            (vec![table("equal", &[]), table("different", &["missing"])], FOUND),
            (vec![table("unknown", &[]), table("different", &["extra", "unsure"])], FOUND),
            (vec![table("equal", &[]), table("unknown", &[])], UNKNOWN),
            (vec![table("different", &["unsure"])], UNKNOWN),
            (Vec::new(), UNKNOWN),
        ];
        for (tables, expected) in cases {
            let found = Verified {
                id: "1".into(),
                from: "us-east-1".into(),
                stream: "main".into(),
                state: "done".into(),
                waits_for: None,
                behind: None,
                questions: 1,
                tables,
            };
            assert_eq!(judge(&found), expected, "{found:?}");
        }
    }
}
