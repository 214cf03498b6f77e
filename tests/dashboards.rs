//! Proves that the dashboards show what there is: two regions under load, a link that halts on a conflict
//! and goes on, a real Prometheus that scrapes them; every query of every panel parses, and what it returns
//! moves; a daemon that dies afterwards is shown as dead. Beside that, every panel says what it means, in which
//! unit, and from when on it is bad.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use landfall::roster::State;
use serde_json::Value;
use testbed::{
    Daemon, Prometheus, Region, TwoRegions, eventually,
    prometheus::{SCRAPE_INTERVAL, Series},
    said,
};

const LANDFALL: &str = env!("CARGO_BIN_EXE_landfall");
const PATIENCE: Duration = Duration::from_secs(180);
const RULES: &str = "dashboards/alerts/landfall.yml";

/// What rightly stands still in this test: the beginning of a query, and why.
const STILL: &[(&str, &str)] = &[
    ("sum(rate(replication_redone_batches_total", "no batch differs from what it holds: a conflict halts"),
    ("sum(rate(replication_stale_records_dropped_total", "no source died with a record on its way"),
    ("max(rate(replication_backpressure_seconds_total", "the queue to Kafka never fills"),
    ("sum(replication_warnings{", "every table in scope is published"),
    ("max(replication_parked_transactions{", "this link halts on a conflict; it is the other that parks"),
    ("sum(replication_verify_given_up_total", "every table can be compared"),
    ("3 * max(replication_verify_interval_seconds{", "a setting stays as it is"),
    ("replication_start_time_seconds", "a daemon starts once"),
    ("avg(up{", "no daemon dies before every panel was looked at"),
];

/// What no panel shows: a metric, and who reads it.
const NOT_SHOWN: &[(&str, &str)] = &[
    ("replication_buffer_retention_seconds", "LandfallBufferHeadroomLow divides by it"),
    ("replication_bytes_produced_total", "docs/sizing.md reckons with it"),
    ("replication_bytes_sent_total", "who pays for the way to Kafka; what the line carries is shown"),
    (
        "replication_captured_transactions_total",
        "changes are shown, which transactions of any size consist of",
    ),
];

fn dashboards() -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("dashboards").unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|is| is == "json") {
            let text = fs::read_to_string(&path).unwrap();
            found.push((
                path.file_stem().unwrap().to_str().unwrap().to_owned(),
                serde_json::from_str(&text).unwrap(),
            ));
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    assert_eq!(found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["link", "overview"]);
    found
}

/// The panels that show something.
fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row")
}

#[test]
fn every_panel_has_a_unit_a_threshold_and_says_what_to_do() {
    for (name, dashboard) in dashboards() {
        let mut titles = BTreeSet::new();
        let mut ids = BTreeSet::new();
        for panel in panels(&dashboard) {
            let title = panel["title"].as_str().unwrap();
            let place = format!("{name}, {title}");
            assert!(titles.insert(title) && ids.insert(panel["id"].as_u64()), "{place}: twice");
            let defaults = &panel["fieldConfig"]["defaults"];
            assert!(defaults["unit"].as_str().is_some_and(|unit| !unit.is_empty()), "{place}: a unit");
            let steps = defaults["thresholds"]["steps"].as_array().unwrap();
            assert!(steps.len() >= 2 && steps[1]["value"].is_number(), "{place}: a threshold");
            let description = panel["description"].as_str().unwrap();
            let (means, act) = description.split_once("What to do:").unwrap_or_default();
            assert!(means.len() > 60 && act.len() > 20, "{place}: {description}");
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{place}: whose Prometheus");
        }
    }
}

#[test]
fn panels_lie_side_by_side_and_the_overview_on_one_screen() {
    for (name, dashboard) in dashboards() {
        let mut taken = BTreeSet::new();
        for panel in dashboard["panels"].as_array().unwrap() {
            let at = |side: &str| panel["gridPos"][side].as_u64().unwrap();
            for x in at("x")..at("x") + at("w") {
                for y in at("y")..at("y") + at("h") {
                    assert!(x < 24 && taken.insert((x, y)), "{name}: {} lies on another", panel["title"]);
                }
            }
        }
        // 38 pixels a row: 1080 pixels with the bar above.
        let rows = taken.iter().map(|(_, y)| y + 1).max().unwrap();
        assert!(name != "overview" || rows <= 26, "the overview has {rows} rows");
    }
}

#[test]
fn every_metric_is_in_a_panel_or_it_is_said_who_reads_it() {
    let code =
        ["src/metrics/mod.rs", "src/metrics/standing.rs"].map(|file| fs::read_to_string(file).unwrap());
    let shown: Vec<String> = dashboards()
        .iter()
        .flat_map(|(_, dashboard)| panels(dashboard))
        .flat_map(|panel| panel["targets"].as_array().unwrap())
        .map(|target| target["expr"].as_str().unwrap().to_owned())
        .collect();
    let is_shown = |metric: &str| shown.iter().any(|query| query.contains(metric));
    let tails = code.iter().flat_map(|code| code.split("\"replication_").skip(1));
    let metrics: BTreeSet<String> =
        tails.map(|tail| format!("replication_{}", tail.split('"').next().unwrap())).collect();
    assert!(metrics.len() > 20, "{metrics:?}");
    for metric in &metrics {
        let excused = NOT_SHOWN.iter().any(|(name, _)| name == metric);
        assert!(is_shown(metric) != excused, "{metric} is shown: {}", is_shown(metric));
    }
}

/// The overview's panel of this title.
fn overview(title: &str) -> Value {
    let (_, dashboard) = dashboards().pop().unwrap();
    let found = panels(&dashboard).find(|panel| panel["title"] == title).cloned();
    found.unwrap_or_else(|| panic!("the overview has no panel {title}"))
}

#[test]
fn the_states_shown_are_those_a_stream_can_be_in() {
    let panel = overview("States");
    let query = panel["targets"][0]["expr"].as_str().unwrap();
    let properties = panel["fieldConfig"]["overrides"][0]["properties"].as_array().unwrap();
    let mappings = properties.iter().find(|property| property["id"] == "mappings").unwrap();
    let names = mappings["value"][0]["options"].as_object().unwrap();
    for state in State::NAMES {
        let term = format!("replication_stream_state{{state=\"{state}\"}}");
        let (before, _) = query.split_once(&term).unwrap_or_else(|| panic!("no {term} in {query}"));
        let factor = before.strip_suffix(" * ").map_or("1", |rest| rest.rsplit([' ', '(']).next().unwrap());
        assert_eq!(names[factor]["text"], state, "what {factor} is called");
    }
    assert_eq!((names.len(), &names["0"]["text"]), (State::NAMES.len() + 1, &Value::from("gone")));
}

/// A query with the dashboard's variables filled in, as Grafana does it: a rate is over four scrapes.
fn filled(query: &str) -> String {
    let values = [
        ("$__rate_interval", "4s"),
        ("$from", "us-east-1"),
        ("$region", "eu-west-1"),
        ("$stream", "main"),
        ("$job", "landfall"),
    ];
    let query = values.iter().fold(query.to_owned(), |query, (name, value)| query.replace(name, value));
    assert!(!query.contains('$'), "a variable nobody knows: {query}");
    query
}

fn moves(series: &[Series]) -> bool {
    let moves = |values: &[f64]| values.iter().any(|value| (value - values[0]).abs() > 1e-12);
    series.iter().any(|series| moves(&series.values))
}

/// Writes a few rows a second into a table, until it is dropped.
async fn load(region: &Region, table: &str) -> tokio::task::JoinHandle<()> {
    let client = region.connect().await.unwrap();
    let insert = format!("insert into {table} (note) select md5(random()::text) from generate_series(1, 5)");
    let update = format!("update {table} set note = note || '.' where id % 50 = (random() * 49)::int");
    tokio::spawn(async move {
        loop {
            client.batch_execute(&insert).await.unwrap();
            client.batch_execute(&update).await.unwrap();
            tokio::time::sleep(Duration::from_millis(rand_pause())).await;
        }
    })
}

/// Between 20 and 100 milliseconds, so that rates are not all the same.
fn rand_pause() -> u64 {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    20 + u64::from(nanos / 1000 % 80)
}

/// Has somebody write in eu what only us should: the link halts there, and goes on when that row is gone.
async fn conflict(regions: &TwoRegions, [us, eu]: [&Daemon; 2], id: u64, while_halted: impl AsyncFnOnce()) {
    regions.eu.execute(&format!("insert into orders values ({id}, 'mine')")).await.unwrap();
    regions.us.execute(&format!("insert into orders values ({id}, 'ours')")).await.unwrap();
    while_halted().await;
    regions.eu.execute(&format!("delete from orders where id = {id}")).await.unwrap();
    let goes_on = eventually(PATIENCE, "the link goes on", async || {
        let note = format!("select left(note, 4) from orders where id = {id}");
        Ok(regions.eu.postgres.query_text("shop", &note).await?.as_deref() == Some("ours"))
    });
    if let Err(error) = goes_on.await {
        panic!("{}\n{}\n{:?}\n{error:#}", us.log_tail(), eu.log_tail(), eu.http_get("/status").await);
    }
}

/// Has somebody write in us what only eu should: it is parked there, and applied when that row is gone. The row is one
/// that the load does not touch: whatever else a transaction changes waits along with it, and soon that is everything.
async fn park(regions: &TwoRegions, us: &Daemon, id: i64) {
    regions.us.execute(&format!("insert into reviews values ({id}, 'mine')")).await.unwrap();
    regions.eu.execute(&format!("insert into reviews values ({id}, 'ours')")).await.unwrap();
    let parked = |count| {
        eventually(PATIENCE, "as many are parked", async move || {
            Ok(us.metric("replication_parked_transactions").await? == Some(count))
        })
    };
    parked(1.0).await.unwrap();
    tokio::time::sleep(3 * SCRAPE_INTERVAL).await;
    regions.us.execute(&format!("delete from reviews where id = {id}")).await.unwrap();
    let retried = us.command(&["parked", "retry", "--all"]).await.unwrap();
    assert!(retried.status.success(), "{}", testbed::daemon::said(&retried));
    parked(0.0).await.unwrap();
}

/// Compares eu with us twice: a row that only eu has is found, and without it everything is equal. Nothing else is
/// written meanwhile: a row that is never still is not called equal.
async fn compare(regions: &TwoRegions, eu: &Daemon) {
    regions.us.execute("grant select on orders to landfall").await.unwrap();
    let rows = "insert into orders (note) select 'compared' from generate_series(1, 100)";
    regions.us.execute(rows).await.unwrap();
    for (write, code) in
        [("insert into orders values (-1, 'mine')", Some(1)), ("delete from orders where id = -1", Some(0))]
    {
        // A scrape sees how it stood before.
        tokio::time::sleep(3 * SCRAPE_INTERVAL).await;
        regions.eu.execute(write).await.unwrap();
        let compared = eu.command(&["verify"]).await.unwrap();
        assert_eq!(compared.status.code(), code, "{write}: {}", said(&compared));
    }
}

/// What the overview's panel of this title shows now: the labels of each line, one after the other, and its value.
async fn shown(prometheus: &Prometheus, title: &str) -> Vec<(String, f64)> {
    let query = filled(overview(title)["targets"][0]["expr"].as_str().unwrap());
    let labels = |series: &Series| {
        let values = ["region", "role"].map(|label| series.labels.get(label).and_then(Value::as_str));
        values.into_iter().flatten().collect::<Vec<_>>().join(" ")
    };
    let series = prometheus.range(&query).await.unwrap();
    let mut lines: Vec<(String, f64)> =
        series.iter().filter_map(|series| Some((labels(series), *series.values.last()?))).collect();
    lines.sort_by(|(a, _), (b, _)| a.cmp(b));
    lines
}

/// A daemon that is dead is shown as one, not as one that has nothing to tell: eu's is, us's is not.
async fn the_dead_are_shown(prometheus: &Prometheus) {
    let states =
        [("eu-west-1 link", 0), ("eu-west-1 source", 0), ("us-east-1 link", 5), ("us-east-1 source", 5)];
    for (title, wanted) in [
        ("Daemons up", vec![(String::new(), 0.5)]),
        ("Streams not running", vec![(String::new(), 2.0)]),
        ("States", states.map(|(stream, state)| (stream.to_owned(), f64::from(state))).to_vec()),
    ] {
        let what = format!("{title} shows {wanted:?}");
        let outcome = eventually(PATIENCE, &what, async || Ok(shown(prometheus, title).await == wanted));
        if let Err(error) = outcome.await {
            panic!("{:?}\n{error:#}", shown(prometheus, title).await);
        }
    }
}

/// Each query of each panel parses, and what it returns moves.
async fn every_query_moves(prometheus: &Prometheus, [us, eu]: [&Daemon; 2]) {
    for (name, dashboard) in dashboards() {
        for variable in dashboard["templating"]["list"].as_array().unwrap() {
            let Some(query) = variable["query"]["query"].as_str() else { continue };
            let inner = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')')).unwrap();
            let (series, label) = inner.rsplit_once(", ").unwrap();
            let values = prometheus.label_values(label, &filled(series)).await.unwrap();
            let wanted = filled(&format!("${}", variable["name"].as_str().unwrap()));
            assert!(values.contains(&wanted), "{name}: {query} gives {values:?}");
        }
        let annotations = dashboard["annotations"]["list"].as_array().unwrap().iter();
        let annotations = annotations.map(|annotation| ("annotation", annotation["expr"].as_str().unwrap()));
        let targets = panels(&dashboard).flat_map(|panel| {
            let title = panel["title"].as_str().unwrap();
            let targets = panel["targets"].as_array().unwrap().iter();
            targets.map(move |target| (title, target["expr"].as_str().unwrap()))
        });
        for (title, query) in annotations.chain(targets) {
            let still = STILL.iter().find(|(start, _)| query.starts_with(start));
            let (shown, query) = (format!("{name}, {title}: {query}"), filled(query));
            // A mistake in a query is one at once.
            prometheus.range(&query).await.unwrap_or_else(|error| panic!("{shown}: {error:#}"));
            let what = format!("there is something that moves in {shown}");
            let outcome = eventually(PATIENCE, &what, async || {
                let found = prometheus.range(&query).await?;
                Ok(match still {
                    Some(_) => found.iter().any(|series| !series.values.is_empty()),
                    None => moves(&found),
                })
            });
            if let Err(error) = outcome.await {
                let found = prometheus.range(&query).await;
                let logs = format!("{}\n{}", us.log_tail(), eu.log_tail());
                panic!("{error:#}\n{found:?}\n{:?}\n{logs}", eu.http_get("/status").await);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_of_every_panel_returns_data_that_moves() {
    let mut regions = TwoRegions::start_both(15, 18).await.unwrap();
    regions.set_rtt(Duration::from_millis(40));
    for region in [&mut regions.us, &mut regions.eu] {
        region.postgres.set("max_slot_wal_keep_size", "1GB").await.unwrap();
    }
    let table = "(id int8 generated by default as identity primary key, note text)";
    regions
        .execute_both(&format!("create table orders {table}; create table reviews {table}"))
        .await
        .unwrap();
    let parks = "on_refusal = \"park\"";
    let us = regions.us.config().source(&["public.orders"]);
    let us = us.link_with(&regions.eu.name, &regions.eu.kafka.remote(), parks).to_toml();
    let compares = "verify_interval = \"1d\"";
    let eu = regions.eu.config().source(&["public.reviews"]);
    let eu = eu.link_with(&regions.us.name, &regions.us.kafka.remote(), compares).to_toml();
    let us = regions.us.start_daemon(LANDFALL, &us).await.unwrap();
    let mut eu = regions.eu.start_daemon(LANDFALL, &eu).await.unwrap();
    let prometheus =
        Prometheus::start(&[regions.us.http, regions.eu.http], &[Path::new(RULES)]).await.unwrap();
    // What was written before its stream began no link can find.
    for daemon in [&us, &eu] {
        let running = r#"replication_stream_state{state="running"}"#;
        eventually(PATIENCE, "source and link run", async || Ok(daemon.metric(running).await? == Some(2.0)))
            .await
            .unwrap();
    }
    compare(&regions, &eu).await;
    let loads = [load(&regions.us, "orders").await, load(&regions.eu, "reviews").await];
    eventually(PATIENCE, "rows arrive", async || {
        let applied = eu.metric("replication_applied_transactions_total").await?;
        Ok(applied.is_some_and(|applied| applied > 20.0))
    })
    .await
    .unwrap();

    let daemons = [&us, &eu];
    conflict(&regions, daemons, 1_000_000, async || {
        eventually(PATIENCE, "the alerts fire", async || {
            let conflicts = eu.metric("replication_conflicts_total").await?;
            let alerts = prometheus.alerts().await?;
            let firing: BTreeSet<&str> = alerts
                .iter()
                .filter(|alert| alert["state"] == "firing")
                .filter_map(|alert| alert["name"].as_str())
                .collect();
            let halted = firing == ["LandfallConflicts", "LandfallStreamHalted"].into();
            Ok(halted && conflicts == Some(1.0))
        })
        .await
        .unwrap();
    })
    .await;

    // What moves only when something goes wrong goes on moving while it is looked at, with a calm between that a
    // scrape sees.
    let trouble = async {
        for met in 2_u32.. {
            tokio::time::sleep(3 * SCRAPE_INTERVAL).await;
            let counted = async || {
                let conflicts =
                    async || Ok(eu.metric("replication_conflicts_total").await? == Some(f64::from(met)));
                eventually(PATIENCE, "the conflict is counted, once", conflicts).await.unwrap();
            };
            conflict(&regions, daemons, 1_000_000 + u64::from(met), counted).await;
            park(&regions, &us, -50 * i64::from(met) - 1).await;
        }
    };
    tokio::select! {
        () = every_query_moves(&prometheus, daemons) => {}
        () = trouble => {}
    }
    for load in loads {
        assert!(!load.is_finished(), "the load ended early");
        load.abort();
    }
    eu.kill9().unwrap();
    the_dead_are_shown(&prometheus).await;
}
