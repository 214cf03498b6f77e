//! `landfall parked`: what this region's database refused and was kept aside, and what becomes of it.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use clap::{Args, Subcommand};

use super::{
    FOUND, GOOD, give_up,
    page::{cut, plain, seconds, wrapped},
    settings,
    verify::interrupted,
};
use crate::{
    change::{Cell, Change, Ordered, Row, Shape},
    config::Settings,
    fault::{Code, Fault, Result},
    plan::parked::ParkedId,
    postgres::{Connection, connect},
    region::Region,
    sink::{
        Wish,
        conflict::key_of,
        postgres::{
            parked::{self, Content, Listed},
            verification::require_tables,
        },
    },
};

/// How often it is looked how far the daemon is.
const LOOK: Duration = Duration::from_millis(200);
/// So many are listed for a person; behind one that was refused there may be thousands.
const LISTED_MAX: usize = 50;
/// A value is shown up to so many characters, unless it is asked for as JSON.
const SHOWN_MAX: usize = 200;

#[derive(Clone, Debug, Args)]
pub(super) struct Arguments {
    /// Only what comes from this region.
    #[arg(long, value_name = "REGION", global = true)]
    from: Option<Region>,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Clone, Debug, Subcommand)]
enum Action {
    /// Lists the parked transactions, oldest first, with what stood in the way.
    List,
    /// Shows the changes of one.
    Show {
        /// Its number.
        id: i64,
        /// Shows the rows, not their keys alone.
        #[arg(long)]
        show_values: bool,
    },
    /// Has them applied, oldest first. One that is refused again stays, and what waits behind it.
    Retry {
        #[command(flatten)]
        which: Which,
        /// Gives up when nothing has gone on for so many seconds.
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        patience: u64,
    },
    /// Forgets them: their changes never come here. Without --execute it says what would be lost.
    Discard {
        /// Their numbers.
        #[arg(value_name = "ID", required = true)]
        ids: Vec<i64>,
        /// Does it.
        #[arg(long)]
        execute: bool,
        /// Gives up when nothing has gone on for so many seconds.
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        patience: u64,
    },
}

#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// Their numbers.
    #[arg(value_name = "ID")]
    ids: Vec<i64>,
    /// All there are.
    #[arg(long)]
    all: bool,
}

pub(super) async fn run(path: &Path, arguments: Arguments, json: bool) -> u8 {
    let settings = match settings(path, json) {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    carry_out(&settings, arguments, json).await.unwrap_or_else(|fault| give_up(json, &fault))
}

async fn carry_out(settings: &Settings, arguments: Arguments, json: bool) -> Result<u8> {
    let connection = connect(&settings.database, "landfall parked").await?;
    let listed = parked::list(&connection, arguments.from.as_ref()).await?;
    match arguments.action {
        None | Some(Action::List) => Ok(list(&listed, json)),
        Some(Action::Show { id, show_values }) => {
            let shown = chosen(listed, &Which { ids: vec![id], all: false })?;
            for parked in &shown {
                show(&connection, parked, show_values, json).await?;
            }
            Ok(FOUND)
        }
        Some(Action::Retry { which, patience }) => {
            let chosen = chosen(listed, &which)?;
            let asking = Asking { connection, from: arguments.from, patience: Duration::from_secs(patience) };
            let left = asking.ask(&chosen, Wish::Retry).await?;
            Ok(tell(&chosen, &left, "applied", json))
        }
        Some(Action::Discard { ids, execute, patience }) => {
            let chosen = chosen(listed, &Which { ids, all: false })?;
            if !execute {
                let code = list(&chosen, json);
                if !json && code == FOUND {
                    println!(
                        "nothing was changed; --execute forgets these, and their changes never come here"
                    );
                }
                return Ok(code);
            }
            let asking = Asking { connection, from: arguments.from, patience: Duration::from_secs(patience) };
            let left = asking.ask(&chosen, Wish::Discard).await?;
            Ok(tell(&chosen, &left, "discarded", json))
        }
    }
}

/// Those that are meant.
fn chosen(listed: Vec<Listed>, which: &Which) -> Result<Vec<Listed>> {
    let there: BTreeSet<i64> = listed.iter().map(|parked| parked.id.0).collect();
    if let Some(unknown) = which.ids.iter().find(|id| !there.contains(id)) {
        let message = format!("no transaction {unknown} is parked here");
        return Err(
            Fault::new(Code::ConfigInvalid, message).remedied_by("`landfall parked` lists those that are")
        );
    }
    Ok(listed.into_iter().filter(|parked| which.all || which.ids.contains(&parked.id.0)).collect())
}

fn list(listed: &[Listed], json: bool) -> u8 {
    if json {
        println!("{}", serde_json::to_string(listed).expect("text keys and finite numbers"));
    } else if listed.is_empty() {
        println!("nothing is parked");
    } else {
        for parked in listed.iter().take(LISTED_MAX) {
            paragraph(parked).iter().for_each(|line| println!("{line}"));
        }
        if listed.len() > LISTED_MAX {
            println!("and {} more: --json lists them all", listed.len() - LISTED_MAX);
        }
        println!("{}", transactions(listed.len()));
        println!("next: `parked show ID` shows what one holds, `parked retry --all` applies them");
    }
    if listed.is_empty() { GOOD } else { FOUND }
}

fn transactions(count: usize) -> String {
    if count == 1 { "1 transaction is parked".to_owned() } else { format!("{count} transactions are parked") }
}

fn paragraph(parked: &Listed) -> Vec<String> {
    let changes = if parked.changes == 1 { "change" } else { "changes" };
    let asked = parked.asked.as_ref().map(|wish| format!(", {wish} asked for")).unwrap_or_default();
    let tried = match parked.attempts {
        0 => String::new(),
        1 => ", tried again once".to_owned(),
        attempts => format!(", tried again {attempts} times"),
    };
    let head = format!(
        "{:<5} {}/{}, {} {changes}, parked for {}{tried}{asked}",
        parked.id,
        parked.from,
        parked.stream,
        parked.changes,
        seconds(parked.parked_seconds.max(0.0)),
    );
    let code = parked.code.as_ref().map(|code| format!("[{code}] ")).unwrap_or_default();
    let mut lines = vec![head];
    lines.extend(wrapped(&plain(&parked.tables.join(", ")), 6));
    lines.extend(wrapped(&plain(&format!("{code}{}", parked.reason)), 6));
    lines
}

async fn show(connection: &Connection, parked: &Listed, values: bool, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string(parked).expect("text keys and finite numbers"));
    } else {
        paragraph(parked).iter().for_each(|line| println!("{line}"));
        println!("      committed at {} in {}", parked.position, parked.from);
    }
    let shapes = parked::shapes(connection, (&parked.from, &parked.stream)).await?;
    let mut content = Content::of(parked.id, &shapes);
    loop {
        let changes = content.next(connection).await?;
        if changes.is_empty() {
            return Ok(());
        }
        for change in &changes {
            println!("{}", if json { as_json(change, values).to_string() } else { as_text(change, values) });
        }
    }
}

/// The images of a row a change has, with what they are called.
fn images(change: &Change) -> Vec<(&'static str, &Row)> {
    match change {
        Change::Insert { new, .. } => vec![("after", new)],
        Change::Update { old, new, .. } => {
            old.iter().map(|old| ("before", old)).chain([("after", new)]).collect()
        }
        Change::Delete { old, .. } => vec![("before", old)],
        Change::Truncate { .. } | Change::Chunk { .. } | Change::Watermark { .. } => Vec::new(),
    }
}

fn tables(change: &Change) -> String {
    change.shapes().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn as_text(ordered: &Ordered, values: bool) -> String {
    let change = &ordered.change;
    let key = if images(change).is_empty() { String::new() } else { format!(" {}", key_of(change)) };
    let mut text = format!("{:>5}  {} {}{key}", ordered.ordinal, change.operation().as_str(), tables(change));
    for (name, row) in images(change).into_iter().filter(|_| values) {
        let cells = change.shape().columns.iter().zip(&*row.0);
        let cells = cells.filter_map(|(column, cell)| Some(format!("{}={}", column.name, shown(cell)?)));
        text.push_str(&format!("\n       {name:<6} {}", cells.collect::<Vec<_>>().join(" ")));
    }
    plain(&text)
}

/// A cell that is given.
fn shown(cell: &Cell) -> Option<String> {
    match cell {
        Cell::Value(text) => Some(cut(&String::from_utf8_lossy(text), SHOWN_MAX)),
        Cell::Null => Some("null".to_owned()),
        Cell::Withheld => Some("withheld".to_owned()),
        Cell::Encrypted { .. } => Some("encrypted".to_owned()),
        Cell::Unchanged => None,
    }
}

fn as_json(ordered: &Ordered, values: bool) -> serde_json::Value {
    let change = &ordered.change;
    let mut object = serde_json::json!({
        "ordinal": ordered.ordinal,
        "operation": change.operation().as_str(),
        "table": tables(change),
        "key": key_of(change),
    });
    for (name, row) in images(change).into_iter().filter(|_| values) {
        object[name] = row_json(change.shape(), row);
    }
    object
}

fn row_json(shape: &Shape, row: &Row) -> serde_json::Value {
    let cell = |cell: &Cell| match cell {
        Cell::Value(text) => Some(String::from_utf8_lossy(text).into_owned().into()),
        Cell::Null => Some(serde_json::Value::Null),
        Cell::Unchanged | Cell::Withheld | Cell::Encrypted { .. } => None,
    };
    let cells = shape.columns.iter().zip(&*row.0);
    cells.filter_map(|(column, it)| Some((column.name.to_string(), cell(it)?))).collect()
}

/// Asks the daemon that applies the link, and waits for it.
struct Asking {
    connection: Connection,
    from: Option<Region>,
    patience: Duration,
}

impl Asking {
    /// What is left of those that something was wanted for.
    async fn ask(&self, chosen: &[Listed], wish: Wish) -> Result<Vec<Listed>> {
        let links: BTreeSet<(&str, &str)> =
            chosen.iter().map(|parked| (parked.from.as_str(), parked.stream.as_str())).collect();
        for (from, stream) in links {
            let from = from.parse().map_err(|_| {
                Fault::new(Code::Internal, format!("`{from}` in landfall.parked is no region"))
            })?;
            require_tables(&self.connection, &from, stream).await?;
        }
        let ids: Vec<ParkedId> = chosen.iter().map(|parked| parked.id).collect();
        let others = parked::ask(&self.connection, &ids, wish).await?;
        if !others.is_empty() {
            let others: Vec<_> = others.iter().map(ToString::to_string).collect();
            let message = format!("somebody else wants something else done with {}", others.join(", "));
            return Err(Fault::new(Code::ConfigInvalid, message)
                .remedied_by("nothing was asked for; look with `landfall parked` what became of them"));
        }
        let outcome = tokio::select! {
            outcome = self.follow(&ids) => outcome,
            () = interrupted() => {
                Err(Fault::new(Code::Stopping, "interrupted: what was not done yet is not asked for any more"))
            }
        };
        if outcome.is_err() {
            parked::withdraw(&self.connection, &ids).await?;
        }
        outcome
    }

    async fn follow(&self, ids: &[ParkedId]) -> Result<Vec<Listed>> {
        let mut moved = (Instant::now(), u64::MAX);
        loop {
            let waiting = parked::waiting(&self.connection, ids).await?;
            if waiting == 0 {
                let mut left = parked::list(&self.connection, self.from.as_ref()).await?;
                left.retain(|parked| ids.contains(&parked.id));
                return Ok(left);
            }
            if waiting < moved.1 {
                moved = (Instant::now(), waiting);
            } else if moved.0.elapsed() >= self.patience {
                let seconds = self.patience.as_secs();
                let message =
                    format!("{waiting} parked transactions wait, and nothing has gone on for {seconds} s");
                return Err(Fault::new(Code::NotServed, message)
                    .remedied_by("see with `landfall status` that the link runs; then ask again"));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn tell(chosen: &[Listed], left: &[Listed], done: &str, json: bool) -> u8 {
    let gone = chosen.len() - left.len();
    if json {
        println!("{}", serde_json::json!({ done: gone, "left": left }));
    } else {
        for parked in left.iter().take(LISTED_MAX) {
            paragraph(parked).iter().for_each(|line| println!("{line}"));
        }
        let still = if left.is_empty() { String::new() } else { format!(", {} stay", left.len()) };
        println!("{gone} {done}{still}");
    }
    if left.is_empty() { GOOD } else { FOUND }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parked(id: i64, code: Option<&str>) -> Listed {
        Listed {
            id: ParkedId(id),
            from: "us-east-1".into(),
            stream: "main".into(),
            position: "0/1A".into(),
            committed: 0.0,
            parked_seconds: 240.0,
            changes: 2,
            tables: vec!["public.orders".into(), "public.t\u{1b}[31m".into()],
            code: code.map(str::to_owned),
            reason: "insert_exists: public.orders (id)=(7), change 1 of the transaction at 0/1A (xid 9)"
                .into(),
            attempts: 1,
            asked: None,
        }
    }

    #[test]
    fn a_transaction_is_a_paragraph() {
        let lines = paragraph(&parked(17, Some("LF-CONFLICT")));
        let expected = [
            "17    us-east-1/main, 2 changes, parked for 4 min, tried again once",
            "      public.orders, public.t\u{fffd}[31m",
            "      [LF-CONFLICT] insert_exists: public.orders (id)=(7), change 1 of the",
            "      transaction at 0/1A (xid 9)",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn only_what_is_there_can_be_meant() {
        let listed = || vec![parked(3, None), parked(5, None)];
        let which = |ids: &[i64], all| Which { ids: ids.to_vec(), all };
        let ids = |which| chosen(listed(), &which).unwrap().iter().map(|it| it.id.0).collect::<Vec<_>>();
        assert_eq!(ids(which(&[], true)), [3, 5]);
        assert_eq!(ids(which(&[5], false)), [5]);
        let fault = chosen(listed(), &which(&[3, 4], false)).unwrap_err();
        assert_eq!(fault.message(), "no transaction 4 is parked here");
    }
}
