//! Proves that the page shows what is: drawn in a real browser from a real daemon, it refreshes itself,
//! names what needs somebody, fits a phone, and takes nothing it shows for markup.
//!
//! What it looked like stays in `target/page`.

use std::{path::Path, process::Stdio, time::Duration};

use testbed::{Browser, Daemon, TwoRegions, browser::Screen, eventually};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

const LANDFALL: &str = env!("CARGO_BIN_EXE_landfall");
const PATIENCE: Duration = Duration::from_secs(180);

/// A table that would be markup, were its name put there as it is.
const HOSTILE: &str = "<img id=hostile src=x onerror=document.title=1>";

const DESK: Screen = Screen { width: 1200, height: 900, phone: false, dark: false };
const PHONE: Screen = Screen { width: 390, height: 844, phone: true, dark: true };

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_how_things_stand() {
    let regions = TwoRegions::start_both(15, 18).await.unwrap();
    regions.execute_both("create table t (id int8 primary key, n int4)").await.unwrap();
    let us = regions.us.start_daemon(LANDFALL, &regions.us_sends()).await.unwrap();
    let both = regions.eu.config().source(&["public.own"]).link(&regions.us).to_toml();
    regions.eu.execute("create table own (id int8 primary key)").await.unwrap();
    let mut eu = regions.eu.start_daemon(LANDFALL, &both).await.unwrap();
    eu.wait_ready(PATIENCE).await.unwrap();
    // What was written before its stream began no link can find.
    eu.wait_heartbeat(PATIENCE).await.unwrap();

    told_in_a_terminals_width(&regions, &eu).await;

    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("page");
    let mut browser = Browser::start().await.unwrap();
    browser.screen(DESK).await.unwrap();
    let place = format!("http://{}/", regions.eu.http);
    browser.open(&place).await.unwrap();
    let text = "document.body.innerText";
    let shows = |word: &str| format!("{text}.includes({word:?})");
    browser.until(PATIENCE, "the link is shown", &shows("us-east-1 → eu-west-1")).await.unwrap();
    // It draws what it is told without being loaded again.
    browser.evaluate("window.same = true").await.unwrap();
    let line = "(document.querySelector('path.lag')?.getAttribute('d').match(/L/g) ?? []).length";
    let moved = format!("{line} > 4 && {}", shows("running for"));
    browser.until(PATIENCE, "the lag is drawn as a line that goes on", &moved).await.unwrap();
    let regions_drawn =
        "[...document.querySelectorAll('#picture text')].map(text => text.textContent).join()";
    let drawn = browser.evaluate(regions_drawn).await.unwrap();
    assert!(drawn.as_str().unwrap().contains("us-east-1") && drawn.as_str().unwrap().contains("eu-west-1"));
    let bars = "document.querySelectorAll('#streams svg rect.full').length";
    let full = format!("{bars} >= 4 && {} && {}", shows("24.0 h of 24.0 h left"), shows("slot: keeps"));
    browser.until(PATIENCE, "slot, queue, stages and head-room have bars", &full).await.unwrap();
    browser.screenshot(&pictures.join("running.png")).await.unwrap();

    // A row that stands in the way halts the link; somebody has to know the code and what to do.
    regions.eu.execute("insert into t values (1, 7)").await.unwrap();
    regions.us.execute("insert into t values (1, 0)").await.unwrap();
    browser.until(PATIENCE, "the halt is shown", &shows("halted LF-CONFLICT")).await.unwrap();
    assert_eq!(browser.evaluate(&shows("Next: ")).await.unwrap(), true);
    assert_eq!(browser.evaluate(&shows("public.t")).await.unwrap(), true);
    browser.screenshot(&pictures.join("halted.png")).await.unwrap();
    browser.screen(PHONE).await.unwrap();
    browser
        .until(
            PATIENCE,
            "it is drawn anew",
            "document.querySelector('#picture svg').viewBox.baseVal.width < 380",
        )
        .await
        .unwrap();
    let wide = browser.evaluate("document.documentElement.scrollWidth").await.unwrap();
    assert!(wide.as_u64().unwrap() <= 390, "wider than a phone: {wide}");
    let ground = browser.evaluate("getComputedStyle(document.body).backgroundColor").await.unwrap();
    assert_eq!(ground, "rgb(15, 20, 25)", "dark where the reader asked for it");
    browser.screenshot(&pictures.join("phone.png")).await.unwrap();
    assert_eq!(browser.evaluate("window.same").await.unwrap(), true, "it was loaded again");

    // Where such a row is parked, the link goes on, and it is not forgotten.
    eu.sigterm(PATIENCE).await.unwrap();
    let parks = "on_refusal = \"park\"\nfrom = \"us-east-1\"";
    eu.set_config(&both.replace("from = \"us-east-1\"", parks)).unwrap();
    eu.start_again().unwrap();
    browser.until(PATIENCE, "the parked one is shown", &shows("has parked 1 transaction")).await.unwrap();
    browser.until(PATIENCE, "the link runs", &shows("running for")).await.unwrap();
    browser.screenshot(&pictures.join("parked.png")).await.unwrap();

    // What is not published warns by its name, on the page of the region it is in.
    regions.us.execute(&format!("create table \"{HOSTILE}\" (id int8 primary key)")).await.unwrap();
    browser.open(&format!("http://{}/", regions.us.http)).await.unwrap();
    browser.until(PATIENCE, "the warning is shown as it is", &shows(HOSTILE)).await.unwrap();
    let made = browser.evaluate("document.querySelector('#hostile') !== null").await.unwrap();
    assert_eq!(made, false, "a table's name became markup");
    let refused = "try { document.body.innerHTML = '<i>'; 'allowed' } catch { 'refused' }";
    assert_eq!(browser.evaluate(refused).await.unwrap(), "refused", "the policy lets text become markup");
    let wide = browser.evaluate("document.documentElement.scrollWidth").await.unwrap();
    assert!(wide.as_u64().unwrap() <= 390, "wider than a phone: {wide}");

    // The attempt above is the one thing the page may have complained of.
    let own = browser.complaints().iter().filter(|it| !it.contains("TrustedHTML")).collect::<Vec<_>>();
    assert!(own.is_empty(), "{own:?}");
    let homes = [regions.us.http, regions.eu.http].map(|http| format!("http://{http}/"));
    let elsewhere = |url: &&String| {
        !url.starts_with("about:")
            && !url.starts_with("data:")
            && !homes.iter().any(|home| url.starts_with(home))
    };
    assert_eq!(browser.requests().iter().find(elsewhere), None);

    // Without the daemon, what is shown is said to be old.
    drop(us);
    browser.until(PATIENCE, "the silence is shown", &shows("The daemon has not answered")).await.unwrap();
}

/// The same by the command: a table, and with `--watch` one after the other.
async fn told_in_a_terminals_width(regions: &TwoRegions, eu: &Daemon) {
    regions.us.execute("insert into t select g, 0 from generate_series(1001, 6000) g").await.unwrap();
    let (mut last, mut first) = (String::new(), 6001);
    eventually(PATIENCE, "the table tells lag, p99, rate, stages and what is left", async || {
        // The rate is that of the last ten seconds: some rows go on coming until all of it is told at once.
        let insert = format!("insert into t select g, 0 from generate_series({first}, {first} + 499) g");
        regions.us.execute(&insert).await?;
        first += 500;
        last = String::from_utf8(eu.command(&["status"]).await?.stdout)?;
        let line = last.lines().find(|line| line.starts_with("running  link   us-east-1/main"));
        let cells: Vec<&str> = line.unwrap_or_default().split_whitespace().collect();
        // Lag and p99 with their units, 5000 rows within ten seconds, a day's buffer.
        let figure = |at: usize| cells.get(at).is_some_and(|cell| cell.parse::<f64>().is_ok());
        let rate = cells.get(7).and_then(|cell| cell.strip_suffix("/s")?.parse::<f64>().ok());
        Ok(figure(3)
            && figure(5)
            && rate.is_some_and(|rate| rate > 100.0)
            && cells.get(10..) == Some(&["0", "24.0", "h"])
            && last.contains("    time: source ")
            && last.contains(" wide area "))
    })
    .await
    .unwrap_or_else(|error| panic!("{error:#}\n{last}"));
    assert!(!last.contains('\x1b') && last.lines().all(|line| line.chars().count() <= 80), "{last}");

    let mut watching = Command::new(LANDFALL)
        .args(["status", "--watch", "--json", "--config"])
        .arg(eu.config_path())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut looks = BufReader::new(watching.stdout.take().unwrap()).lines();
    let mut ages = Vec::new();
    for _ in 0..2 {
        let look = tokio::time::timeout(PATIENCE, looks.next_line()).await.unwrap().unwrap().unwrap();
        let look: serde_json::Value = serde_json::from_str(&look).unwrap();
        let streams = look["streams"].as_array().unwrap();
        let link = streams.iter().find(|stream| stream["role"] == "link").unwrap();
        ages.push(link["state_seconds"].as_f64().unwrap());
    }
    assert!(ages[1] > ages[0], "each look is a new one: {ages:?}");
}
