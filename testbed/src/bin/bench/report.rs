//! Figures, goals, ratios: on the terminal as they come, and in docs/benchmarks at the end.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};

use super::measure::{Drain, median};
use super::svg;

/// All figures of a run, by name; a name is `workload/what/contender`.
#[derive(Debug, Default)]
pub struct Report {
    figures: BTreeMap<String, Figure>,
    ratios: Vec<Ratio>,
    missing: Vec<String>,
}

#[derive(Debug, Default)]
struct Figure {
    unit: &'static str,
    values: Vec<f64>,
}

#[derive(Debug)]
struct Ratio {
    name: String,
    value: f64,
    goal: String,
    met: bool,
    /// The rate it is of, and what that would be where the goal were met.
    rate: Option<(String, f64)>,
}

/// What a figure must be.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
}

impl Report {
    /// Adds a value of one round.
    pub fn add(&mut self, name: impl Into<String>, unit: &'static str, value: f64) {
        let name = name.into();
        println!("  {name} {value:.1} {unit}");
        let figure = self.figures.entry(name).or_default();
        figure.unit = unit;
        figure.values.push(value);
    }

    /// Adds what a drain measured.
    pub fn drain(&mut self, workload: &str, what: &str, contender: &str, drain: &Drain) {
        let name = |figure: &str| format!("{workload}/{figure}/{contender}");
        self.add(name(what), "rows/s", drain.rows_per_second);
        for (group, seconds) in &drain.cpu {
            self.add(name(&format!("{what}-cpu {group}")), "s per million rows", *seconds);
        }
        if let Some(bytes) = drain.bytes_per_row {
            self.add(name(&format!("{what}-bytes")), "bytes/row", bytes);
        }
        if let Some(mib) = drain.peak_mib {
            self.add(name(&format!("{what}-peak")), "MiB", mib);
        }
        self.add(name(&format!("{what}-other")), "cores busy with something else", drain.other_cores);
    }

    /// Notes that a rival is not here.
    pub fn missing(&mut self, rival: &str, why: &str) {
        println!("missing {rival}: {why}");
        self.missing.push(format!("{rival}: {why}"));
    }

    /// The same where it failed: everything on the terminal, its cause on the page.
    pub fn failed(&mut self, rival: &str, error: &anyhow::Error) {
        eprintln!("{rival}: {error:#}");
        self.missing(rival, &error.root_cause().to_string());
    }

    /// The median of a figure.
    pub fn of(&self, name: &str) -> Option<f64> {
        median(self.figures.get(name)?.values.clone())
    }

    /// Judges one median by another; nothing is said where one of them is missing.
    pub fn ratio(&mut self, name: &str, ours: &str, theirs: &str, goal: Goal) {
        let (Some(value), Some(rival)) = (self.of(ours), self.of(theirs)) else { return };
        self.judge(name, value / rival, goal);
        if let (Goal::AtLeast(least), Some(ratio)) = (goal, self.ratios.last_mut()) {
            ratio.rate = Some((ours.to_owned(), least * rival));
        }
    }

    /// Judges a value.
    pub fn judge(&mut self, name: &str, value: f64, goal: Goal) {
        let (goal, met) = match goal {
            Goal::AtLeast(least) => (format!(">={least}"), value >= least),
            Goal::AtMost(most) => (format!("<={most}"), value <= most),
        };
        println!("ratio {name} {value:.2} {goal}");
        self.ratios.push(Ratio { name: name.to_owned(), value, goal, met, rate: None });
    }

    /// Writes README.md and the pictures.
    pub fn write(&self, directory: &Path, about: &[(String, String)]) -> Result<()> {
        std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        let put = |name: &str, text: &str| {
            std::fs::write(directory.join(name), text).with_context(|| format!("write {name}"))
        };
        let mut page = String::from(PREFACE);
        for (name, value) in about {
            let _ = writeln!(page, "- {name}: {value}");
        }
        for missing in &self.missing {
            let _ = writeln!(page, "- not measured: {missing}");
        }
        page.push_str("\n## Ratios\n\n| Ratio | Value | Goal | Met |\n|---|---|---|---|\n");
        for ratio in &self.ratios {
            let met = if ratio.met { "yes" } else { "**no**" };
            let _ = writeln!(page, "| {} | {:.2} | {} | {met} |", ratio.name, ratio.value, ratio.goal);
        }
        for (what, title) in PICTURES {
            let bars = self.bars(what);
            if bars.is_empty() {
                continue;
            }
            let unit = bars[0].unit;
            let file = format!("{what}.svg");
            let drawn: Vec<(String, f64)> = bars.iter().map(|bar| (bar.label.clone(), bar.value)).collect();
            put(&file, &svg::bars(title, unit, &drawn))?;
            let _ = writeln!(page, "\n## {title}\n\n![{title}]({file})");
        }
        page.push_str(COSTS);
        for what in ["capture", "apply", "whole", "rate"] {
            self.costs(what, &mut page);
        }
        self.shortfalls(&mut page);
        page.push_str(BOUNDS);
        page.push_str(
            "\n## All figures\n\n| Figure | Median | Lowest | Highest | Unit |\n|---|---|---|---|---|\n",
        );
        for (name, figure) in &self.figures {
            let middle = median(figure.values.clone()).unwrap_or(f64::NAN);
            let low = figure.values.iter().copied().fold(f64::INFINITY, f64::min);
            let high = figure.values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let _ = writeln!(
                page,
                "| {name} | {} | {} | {} | {} |",
                number(middle),
                number(low),
                number(high),
                figure.unit
            );
        }
        put("README.md", &page)
    }

    /// What a million rows cost of the processors, and how many a second that allows.
    fn costs(&self, what: &str, page: &mut String) {
        let middle = format!("/{what}/");
        for name in self.figures.keys() {
            let Some((workload, contender)) = name.split_once(&middle) else { continue };
            let Spent { all, servers } = self.spent(workload, what, contender);
            let (most, rate) = (seconds_of_all_cores() * 1e6 / all, self.of(name).unwrap_or(f64::NAN));
            let _ = writeln!(
                page,
                "| {workload} | {what} | {contender} | {all:.1} | {servers:.1} | {most:.0} | {rate:.0} |"
            );
        }
    }

    /// Seconds of processor time that a million rows cost.
    fn spent(&self, workload: &str, what: &str, contender: &str) -> Spent {
        let (begins, ends) = (format!("{workload}/{what}-cpu "), format!("/{contender}"));
        let mut spent = Spent { all: 0.0, servers: 0.0 };
        for (name, figure) in &self.figures {
            let group = name.strip_prefix(&begins).and_then(|rest| rest.strip_suffix(&ends));
            let (Some(group), Some(seconds)) = (group, median(figure.values.clone())) else { continue };
            spent.all += seconds;
            if group.ends_with("Postgres") {
                spent.servers += seconds;
            }
        }
        spent
    }

    /// What the goals of rates that were missed would take.
    fn shortfalls(&self, page: &mut String) {
        page.push_str(SHORTFALLS);
        for ratio in self.ratios.iter().filter(|ratio| !ratio.met) {
            let Some((name, rate)) = &ratio.rate else { continue };
            let mut parts = name.split('/');
            let (Some(workload), Some(what @ ("capture" | "whole" | "rate")), Some(contender)) =
                (parts.next(), parts.next(), parts.next())
            else {
                continue;
            };
            let Spent { all, servers } = self.spent(workload, what, contender);
            let allowed = seconds_of_all_cores() * 1e6 / rate;
            let left = if allowed > servers { format!("{:.1}", allowed - servers) } else { "nothing".into() };
            let _ = writeln!(
                page,
                "| {} | {rate:.0} | {allowed:.1} | {servers:.1} | {left} | {:.1} |",
                ratio.name,
                all - servers
            );
        }
    }

    fn bars(&self, what: &str) -> Vec<Bar> {
        let middle = format!("/{what}/");
        let of = self.figures.iter().filter(|(name, _)| name.contains(&middle));
        of.filter_map(|(name, figure)| {
            let label = name.replacen(&middle, " · ", 1);
            Some(Bar { label, value: median(figure.values.clone())?, unit: figure.unit })
        })
        .collect()
    }
}

/// Seconds per million rows.
struct Spent {
    all: f64,
    /// Of the database servers, among all.
    servers: f64,
}

/// What this machine has to give in a second.
fn seconds_of_all_cores() -> f64 {
    std::thread::available_parallelism().map_or(1, usize::from) as f64
}

struct Bar {
    label: String,
    value: f64,
    unit: &'static str,
}

/// As many digits as mean something.
fn number(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

const PICTURES: &[(&str, &str)] = &[
    ("capture", "Source to Kafka"),
    ("whole", "From the source to rows in the target"),
    ("apply", "Catching up from Kafka"),
    ("rate", "The first copy of a table"),
    ("whole-bytes", "Bytes on the line"),
    ("p50", "Commit to visible, the middle row"),
    ("p99", "Commit to visible, 99 of 100 rows"),
];

const COSTS: &str = "
## What the processors allow

Seconds of processor time a million rows cost, of all processes that take part and of the two database servers among them;
how many rows a second that allows, were every core busy with nothing else; and how many there were. Where the last
two are near each other, the machine is the limit, and only what costs less can be quicker. Not on this account: the
line's proxy, which whoever sends more bytes keeps busier, and a receiver's own process.

| Workload | Of it | Contender | All | The servers | Rows/s allowed | Rows/s |
|---|---|---|---|---|---|---|
";

const SHORTFALLS: &str = "
## What the missed goals would take

For each ratio of rates that missed its goal: the rate that would meet it; the seconds of processor time that all cores of
this machine have for a million rows at that rate; what the database servers alone take of it; what that leaves for
Landfall and Kafka, and what they take. Where nothing is left, no change to Landfall meets the goal on this machine.

| Ratio | Rows/s | Seconds there are | The servers take | Left | Landfall and Kafka take |
|---|---|---|---|---|---|
";

const BOUNDS: &str = "
And those that are of no rate, or of one that no processor bounds:

- **row-2k-bytes-vs-native**: a row is 62 hashes of 16 bytes each. No coding leaves less than these 992 bytes, 0.46 of what
  native sends.
- **…-150ms-vs-0ms**: one request at a time is under way to a broker, and brings what unpacks to 10 MiB, 3 MiB at most:
  20 MB/s of what is on the line. The first ones bring 1 MiB, until it is known how far it unpacks, and to ask for
  another size takes a new connection.
- **hot-key-p99-vs-idle**: where changes come thousands a second, the source lets them gather for 2 ms and the writer
  for 2 ms more, or every one of them costs everybody a wake-up; a row beside them waits for both. Idle, it waits for neither.
";

const PREFACE: &str = "# Benchmarks

Written by `make bench`, which runs every contender in turn on one machine, over the same rows, several times
around; do not edit. A rate is taken between two sentinel rows, so that no start-up counts (but of giant, which is one
transaction). Figures are named `workload/what/contender`.

How the contenders are set, and how durable what they do is:

- **landfall**: the defaults, but for what is listed under *The run*. Kafka acknowledges with all (one) of its replicas, which does not wait for the
  disk; the target commits asynchronously inside a burst and what is told is flushed every 100 ms.
- **native**: `CREATE SUBSCRIPTION` with its defaults: the apply worker's `synchronous_commit` is off.
  **native-durable** is the same with it on.
- **receiver**: `pg_recvlogical` with pgoutput over TCP into nothing: what the server's decoder gives one
  reader. Nothing is stored.
- **debezium**: Debezium's Postgres connector (to Kafka, zstd) and its JDBC sink in one Kafka Connect worker,
  set as their documentation recommends for throughput (`testbed/src/connect/debezium.rs` says each setting). It
  reads a database of its own at the same server, with a third of the rows.

Every drain is a backlog that is caught up with: at a thousand rows a second, one of five minutes (insert-1, update-1) to
a quarter of an hour (insert-1000). One transaction of five million rows (giant) is measured in one round, without
Debezium; growth in one round as well.

One broker and one Kafka Connect worker serve the whole run. The broker is set as Kafka's own start script has it, with
half the heap, and warmed up by a load of its own before anybody is measured, and by 15 s of Landfall's rows before latency
is; the worker by rows of each workload. Now and then the broker's collector stops it, and whatever goes through it waits.
Latency is the time from a commit's return to a reader's first seeing the row; nobody looks while nothing is under way.
*Evenness* below says how late this machine wakes a thread by itself.

## The run

";
