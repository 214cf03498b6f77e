//! `landfall recover`: lets a link that cannot go on do so where the other region is now, and mends what it missed. With
//! `--source`, at the other end: begins a stream anew that has lost something.

use std::{
    collections::HashMap,
    path::Path,
    time::{Duration, Instant},
};

use clap::Args;

mod anew;

use super::{
    FOUND, GOOD,
    backfill::share,
    give_up, page, settings,
    verify::{Comparing, asker, link},
};
use crate::{
    changelog::{
        self, Log,
        kafka::{KafkaLog, Topics, WriterLimits},
    },
    config::Settings,
    envelope::body::Start,
    fault::{Code, Fault, Result},
    kafka::{Cluster, TopicRules},
    names,
    position::Offset,
    region::Region,
    scope::Pattern,
    sink::postgres::verification::{self, Request, Stale, Standing, TableVerified},
    verify::{About, Question, TableName},
};

/// How often it is looked whether something has come.
const LOOK: Duration = Duration::from_millis(300);
/// What was asked is asked again after so long: the other region may not have listened.
const ASK: Duration = Duration::from_secs(5);
/// It is another question after so long, and answered anew: where the link could not use the answer. The same one is not.
const ANEW: Duration = Duration::from_secs(30);
/// Comparisons of a table. Each mends what the one before could not see: a second finds next to nothing.
const PASSES_MAX: u32 = 10;
/// Rows in a range.
const RANGE_ROWS: u32 = 2_000;

#[derive(Clone, Debug, Args)]
pub(super) struct Arguments {
    /// The region whose link cannot go on; needed where this one has several links.
    #[arg(long, value_name = "REGION")]
    from: Option<Region>,
    /// Begins this region's own stream anew, which has lost something (its slot, its topic, its server's history). Each
    /// region with a link from here is recovered afterwards.
    #[arg(long, conflicts_with = "from")]
    source: bool,
    /// Does it. Without it, it is only said what would be done.
    #[arg(long)]
    execute: bool,
    /// Reads for at most this share of the time, above 0 and up to 1: the rest is left to the databases' users.
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, value_parser = share)]
    max_source_load: f64,
    /// Gives up when nothing has gone on for so many seconds. Given again, it compares everything once more.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    patience: u64,
}

pub(super) async fn run(path: &Path, arguments: Arguments, json: bool) -> u8 {
    let settings = match settings(path, json) {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    let outcome = match arguments.source {
        true => anew::run(&settings, arguments.execute, Duration::from_secs(arguments.patience), json).await,
        false => recover(&settings, &arguments, json).await,
    };
    outcome.unwrap_or_else(|fault| give_up(json, &fault))
}

async fn recover(settings: &Settings, arguments: &Arguments, json: bool) -> Result<u8> {
    let link = link(settings, arguments.from.as_ref())?;
    let comparing = Comparing::new(settings, link, arguments.patience, 0, json).await?;
    let (from, stream) = (&link.from, &link.stream);
    verification::require_tables(&comparing.connection, from, stream).await?;
    let log = KafkaLog::new(
        Cluster { brokers: link.brokers.clone(), properties: link.properties.0.clone() },
        Topics::of(from, stream),
        names::group(&settings.region, from, stream),
        TopicRules::default(),
        WriterLimits::default(),
    )?;
    let recovery =
        Recovery { comparing, log, here: &settings.region, max_source_load: arguments.max_source_load };
    if !arguments.execute {
        return recovery.plan().await;
    }
    let ours = match &settings.source {
        Some(source) => {
            let published = (&*source.publication, &source.scope);
            verification::published_only_by_us(&recovery.comparing.connection, from, published).await?
        }
        None => Vec::new(),
    };
    recovery.allow().await?;
    recovery.say(&format!("asking {from} where the stream may be begun"));
    let left_out = recovery.begin(ours).await?;
    recovery.compare(&left_out).await
}

/// What is gone between what was applied and what a topic keeps (from its first offset to behind its last): how many
/// offsets, where that can be told, and in words.
fn gap(applied: Option<Offset>, kept: Option<(Offset, Offset)>, is_anew: bool) -> (Option<i64>, String) {
    let Some((low, high)) = kept else { return (None, "is not there".to_owned()) };
    let keeps = format!("keeps offsets {low} to {high}");
    match applied {
        _ if is_anew => {
            (None, format!("{keeps} of a stream that was begun anew: what was applied is of the one before"))
        }
        None if low.0 > 0 => (None, format!("{keeps}: its beginning is gone, and none of it was applied")),
        None => (Some(0), format!("{keeps}: nothing is missing in it")),
        Some(at) if at.0 + 1 > high.0 => {
            (None, format!("{keeps}: it has lost its end, which was applied, or was made anew"))
        }
        Some(at) if at.0 + 1 < low.0 => {
            let lost = low.0 - at.0 - 1;
            (Some(lost), format!("{keeps}: {lost} that were not applied are gone"))
        }
        Some(_) => (Some(0), format!("{keeps}: nothing that comes next is missing in it")),
    }
}

struct Recovery<'a> {
    comparing: Comparing<'a>,
    log: KafkaLog,
    here: &'a Region,
    max_source_load: f64,
}

impl Recovery<'_> {
    /// Something for people; JSON has the outcome.
    fn say(&self, text: &str) {
        if !self.comparing.json {
            println!("{text}");
        }
    }

    /// Says what would be done, and how the link stands.
    async fn plan(&self) -> Result<u8> {
        let Comparing { connection, link, json, .. } = &self.comparing;
        let (from, stream) = (&link.from, &link.stream);
        let Standing { applied, served, tables, bytes } =
            verification::standing(connection, from, stream).await?;
        let bounds = self.log.bounds().await?;
        let under_way = self.stale().await?.tables.len();
        let kept = match bounds {
            Some(bounds) => changelog::incarnation(&self.log, bounds).await?.map(|kept| kept.to_string()),
            None => None,
        };
        let known = verification::incarnation(connection, from, stream).await?;
        let is_anew = kept.is_some() && known.is_some() && kept != known;
        let (lost, gap) = gap(applied.map(Offset), bounds.map(|it| (it.low, it.high)), is_anew);
        if *json {
            let plan = serde_json::json!({
                "from": from.as_str(), "stream": stream, "stale": under_way, "executed": false, "served": served,
                "applied": applied, "kept_from": bounds.map(|it| it.low.0), "kept_to": bounds.map(|it| it.high.0),
                "lost": lost, "tables": tables, "bytes": bytes,
            });
            println!("{plan}");
            return Ok(GOOD);
        }
        let place = applied.map_or_else(|| "nothing".to_owned(), |at| format!("up to offset {at}"));
        println!("the link from {from} ({stream}) has applied {place}");
        println!("topic {} {gap}", self.log.topic());
        if !served {
            println!("no daemon applies the link now; --execute needs `landfall run` here, and in {from}");
        }
        if under_way > 0 {
            println!("a recovery is under way: {under_way} tables are still to be compared with {from}");
        }
        println!(
            "with --execute the link goes on where {from} is then. Every table that {from} tells of is compared while both are \
             written to ({tables} that have come from there, {} here), and exactly the rows that differ come anew, \
             deletions included. What was written here by others than the link, and what {from} itself has lost, is taken \
             away where it differs: keep a copy first of what may be wanted. This region is not ready meanwhile (joining).",
            page::bytes(bytes)
        );
        if lost == Some(0) && under_way == 0 {
            println!(
                "where `landfall status` shows the link running, nothing has to be recovered: `landfall repair` puts \
                 rows right while it goes on"
            );
        }
        Ok(GOOD)
    }

    /// Lets the link go on where its source says, in a stream that was begun anew too.
    async fn allow(&self) -> Result<()> {
        let Comparing { connection, link, .. } = &self.comparing;
        let (from, stream) = (&link.from, &link.stream);
        let since = Instant::now();
        let kept = loop {
            let bounds = self.log.bounds().await?.ok_or_else(|| {
                let topic = self.log.topic();
                let message =
                    format!("topic {topic} does not exist: {from} has lost it, or not begun its stream");
                let remedy = format!("in {from}, `landfall recover --source`; then ask again here");
                Fault::new(Code::TopicLost, message).remedied_by(remedy)
            })?;
            // One that has just been begun is empty for a moment; of one that is cleaned away nobody knows the life.
            match changelog::incarnation(&self.log, bounds).await? {
                None if bounds.high == Offset(0) && since.elapsed() < self.comparing.patience => {
                    tokio::time::sleep(LOOK).await;
                }
                kept => break kept.map(|kept| kept.to_string()),
            }
        };
        let applied = verification::incarnation(connection, from, stream).await?;
        match (kept, applied) {
            (Some(kept), Some(applied)) if kept != applied => {
                self.say(&format!(
                    "{from} has begun its stream anew (incarnation {kept}; here {applied} was applied)"
                ));
                verification::allow_recovery_anew(connection, from, stream).await
            }
            _ => verification::allow_recovery(connection, from, stream).await,
        }
    }

    /// Where this region may begin the stream, as the other last said.
    async fn start(&self) -> Result<Option<Start>> {
        let Some(kept) = self.log.start(self.here.as_str()).await? else { return Ok(None) };
        serde_json::from_slice(&kept).map(Some).map_err(|error| {
            Fault::new(Code::RecordCorrupt, "read where the stream may be begun").because(error)
        })
    }

    /// Asks the other region where the stream may be begun, and waits until the link has begun there; gives the tables that
    /// are left as they are. Anew each time: the link may stand again before something it cannot pass.
    async fn begin(&self, ours: Vec<TableName>) -> Result<Vec<TableName>> {
        let Comparing { connection, link, .. } = &self.comparing;
        let before = self.start().await?;
        let mut asking = self.asking(About::Recover { ours });
        // A link that runs may take long to come to the first of them; those behind it are met by the comparison.
        let mut starts: Vec<Start> = Vec::new();
        loop {
            asking.go_on().await?;
            let start = self.start().await?;
            starts.extend(start.filter(|start| before.as_ref() != Some(start) && !starts.contains(start)));
            for start in &starts {
                let Some(through) = start.through else { continue };
                let place = (start.incarnation, start.epoch, through);
                if verification::has_applied(connection, &link.from, &link.stream, place).await? {
                    return Ok(start.left_out.clone());
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn stale(&self) -> Result<Stale> {
        let Comparing { connection, link, .. } = &self.comparing;
        verification::stale(connection, &link.from, &link.stream).await
    }

    /// Asks the other region to settle a table, and waits until it does not count as stale any more.
    async fn settle(&self, table: &TableName) -> Result<Stale> {
        let mut asking = self.asking(About::Settle { table: table.clone() });
        loop {
            asking.go_on().await?;
            let stale = self.stale().await?;
            if !stale.tables.contains(table) {
                return Ok(stale);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn asking(&self, about: About) -> Asking<'_> {
        let question = Question {
            verification: "recover".to_owned(),
            number: 0,
            by: self.here.to_string(),
            stream: self.comparing.link.stream.clone(),
            about,
        };
        Asking { recovery: self, question, since: Instant::now(), asked: None, anew: None }
    }

    /// Compares and mends what may be stale, until nothing differs.
    async fn compare(&self, left_out: &[TableName]) -> Result<u8> {
        let (mut mended, mut recovered) = (0, Vec::new());
        // A row that took a key in a range already compared is found by the next comparison.
        let mut compared: HashMap<String, u32> = HashMap::new();
        let mut left: Vec<TableVerified> = Vec::new();
        loop {
            let stale = self.stale().await?.tables;
            let given_up = |table: &&TableName| {
                let name = table.to_string();
                left.iter().any(|it| it.table == name) || compared.get(&name) >= Some(&PASSES_MAX)
            };
            let tables: Vec<TableName> = stale.iter().filter(|it| !given_up(it)).cloned().collect();
            if tables.is_empty() {
                break;
            }
            let patterns = tables.iter().map(|it| Pattern::exactly(&it.schema, &it.table)).collect();
            self.say(&format!("comparing {} tables", tables.len()));
            let before = compared.clone();
            let request = Request {
                tables: patterns,
                range_rows: RANGE_ROWS,
                values: false,
                max_source_load: self.max_source_load,
                mend: true,
                ours: Vec::new(),
                by: asker(),
            };
            let compared_now = self.comparing.run(&request).await.map_err(|fault| match fault.code() {
                Code::Stopping => fault.remedied_by(
                    "the region stays joining until every table was compared: `landfall recover --execute` again",
                ),
                _ => fault,
            });
            for table in compared_now?.tables {
                mended += table.mended;
                let times = compared.entry(table.table.clone()).or_default();
                *times += 1;
                match table.state.as_str() {
                    "equal" if *times == 1 => {
                        self.say(&format!("  {}: equal, looked at once more", table.table));
                    }
                    "equal" => {
                        let is_it = |it: &&TableName| it.to_string() == table.table;
                        let Some(name) = tables.iter().find(is_it) else { continue };
                        if self.settle(name).await?.filling.contains(name) {
                            continue;
                        }
                        self.say(&format!("  {}: equal, {} rows", table.table, table.rows));
                        recovered.push(table.table);
                    }
                    "mended" | "different" if table.mended > 0 => {
                        self.say(&format!("  {}: {} rows came anew", table.table, table.mended))
                    }
                    // Rows that never stood still may, the next time.
                    "different" if table.differences == table.unsure => {
                        self.say(&format!("  {}: {} rows did not stand still", table.table, table.unsure));
                    }
                    _ => left.push(table),
                }
            }
            if compared == before {
                // Somebody has ended it.
                break;
            }
        }
        let Comparing { connection, link, .. } = &self.comparing;
        verification::end_recovery(connection, &link.from, &link.stream).await?;
        let Stale { tables: still, filling, .. } = self.stale().await?;
        if self.comparing.json {
            let names = |tables: &[TableName]| tables.iter().map(ToString::to_string).collect::<Vec<_>>();
            let report = serde_json::json!({
                "recovered": recovered, "mended": mended, "left": names(&still), "filling": names(&filling),
                "left_out": names(left_out),
            });
            println!("{report}");
        } else {
            self.tell(mended, recovered.len(), &still, &left, &compared);
            self.tell_of_others(&filling, left_out);
        }
        let all = still.is_empty() && filling.is_empty() && left_out.is_empty();
        Ok(if all { GOOD } else { FOUND })
    }

    fn tell(
        &self,
        mended: u64,
        recovered: usize,
        still: &[TableName],
        left: &[TableVerified],
        compared: &HashMap<String, u32>,
    ) {
        let from = &self.comparing.link.from;
        if still.is_empty() {
            println!("recovered: {recovered} tables hold what {from} holds; {mended} rows came anew");
            return;
        }
        println!("{recovered} tables hold what {from} holds, {mended} rows came anew; still to be mended:");
        for table in still {
            let why = left.iter().find(|it| it.table == table.to_string()).and_then(|it| it.why.as_deref());
            let known = left.iter().any(|it| it.table == table.to_string());
            let otherwise = match compared.get(&table.to_string()) {
                _ if known => "rows that could not be mended one by one".to_owned(),
                Some(times) => format!(
                    "something differed each of the {times} times it was compared: does anybody but the link write it here?"
                ),
                None => "not compared: is it still sent?".to_owned(),
            };
            println!("  {table}: {}", why.unwrap_or(&otherwise));
        }
        println!(
            "next: in {from}, `landfall backfill --to {}` with --table for each of them, or mend what stands in the way and ask again",
            self.here
        );
    }

    /// Tables that were not compared, or whatever was compared of them does not count.
    fn tell_of_others(&self, filling: &[TableName], left_out: &[TableName]) {
        let (from, here) = (&self.comparing.link.from, self.here);
        let list =
            |tables: &[TableName]| tables.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if !filling.is_empty() {
            println!("not whole: {}, which a backfill of {from} is to fill", list(filling));
            println!("next: in {from}, `landfall backfill status`; this region is joining until it is done");
        }
        if !left_out.is_empty() {
            println!("left as they are, since nothing tells which region has their rows: {}", list(left_out));
            println!(
                "next: those that {from} writes, `landfall repair --from {from} --execute` with --table for each; those \
                 that {here} writes, nothing"
            );
        }
    }
}

/// A question that is asked again and again: whoever is to answer it may not have listened.
struct Asking<'a> {
    recovery: &'a Recovery<'a>,
    question: Question,
    since: Instant,
    asked: Option<Instant>,
    /// Since when it is this question.
    anew: Option<Instant>,
}

impl Asking<'_> {
    /// Asks where it is time to.
    ///
    /// # Errors
    /// The other region has not done what it was asked for within the patience there is.
    async fn go_on(&mut self) -> Result<()> {
        let Comparing { link, patience, .. } = &self.recovery.comparing;
        if self.since.elapsed() >= *patience {
            let message = format!("{} has not answered for {} s", link.from, self.since.elapsed().as_secs());
            return Err(Fault::new(Code::NotServed, message).remedied_by(
                "see that its daemon runs, whether its log says `what another region asks cannot be answered`, and with \
                 `landfall status` what this region's link waits for; then ask again",
            ));
        }
        if self.asked.is_some_and(|asked| asked.elapsed() < ASK) {
            return Ok(());
        }
        if self.anew.is_none_or(|anew| anew.elapsed() >= ANEW) {
            self.question.number = u64::from(rand::random::<u32>());
            self.anew = Some(Instant::now());
        }
        let question = serde_json::to_vec(&self.question).expect("text keys, text and numbers");
        self.recovery.log.ask(&question).await?;
        self.asked = Some(Instant::now());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_is_told_at_either_end_of_a_topic() {
        let told = |applied: Option<i64>, kept: Option<(i64, i64)>, is_anew| {
            gap(applied.map(Offset), kept.map(|(low, high)| (Offset(low), Offset(high))), is_anew)
        };
        for (applied, kept, is_anew, lost, says) in [
            (Some(9), Some((0, 10)), false, Some(0), "nothing that comes next is missing"),
            (Some(9), Some((10, 10)), false, Some(0), "nothing that comes next is missing"),
            (Some(9), Some((15, 20)), false, Some(5), "5 that were not applied are gone"),
            (Some(9), Some((0, 5)), false, None, "lost its end"),
            (Some(9), Some((0, 20)), true, None, "begun anew"),
            (None, Some((0, 20)), false, Some(0), "nothing is missing"),
            (None, Some((7, 20)), false, None, "its beginning is gone"),
            (Some(9), None, false, None, "not there"),
        ] {
            let (found, text) = told(applied, kept, is_anew);
            assert!(found == lost && text.contains(says), "{applied:?} {kept:?}: {found:?}, {text}");
        }
    }
}
