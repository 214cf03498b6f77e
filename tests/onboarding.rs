//! Proves that a stranger gets there: every line of the quick start, typed into a shell, brings a row across;
//! `check` names what stands in the way, and what it shows mends it; every code is explained.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use landfall::{check::Kind, config::SETTINGS, fault::Code};
use testbed::{Kafka, Postgres, Region, TwoRegions, eventually};

const LANDFALL: &str = env!("CARGO_BIN_EXE_landfall");
const PATIENCE: Duration = Duration::from_secs(180);

fn landfall(args: &[&str]) -> Output {
    Command::new(LANDFALL).args(args).env_remove("LANDFALL_CONFIG").stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The lines in the shell blocks of a document.
fn typed(document: &str) -> Vec<String> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(document)).unwrap();
    let blocks = text.split("```sh\n").skip(1).map(|tail| tail.split("```").next().unwrap().to_owned());
    blocks.flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// A shell that daemons were started from: they end with it.
struct Shell(std::process::Child);

impl Drop for Shell {
    fn drop(&mut self) {
        let group = format!("-{}", self.0.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quick_start_brings_a_row_across_in_ten_lines() {
    use std::os::unix::process::CommandExt;
    let lines = typed("docs/quickstart.md");
    assert!(lines.len() <= 10, "{} lines: {lines:#?}", lines.len());
    let (a, b, kafka) =
        tokio::try_join!(Postgres::start(15, "a"), Postgres::start(18, "b"), Kafka::start(1)).unwrap();
    for server in [&a, &b] {
        server.create_database("shop").await.unwrap();
    }
    let here =
        |server: &Postgres| format!("postgres://postgres@127.0.0.1:{}/shop?sslmode=disable", server.port());
    let free = [testbed::ports::free().unwrap(), testbed::ports::free().unwrap()];
    let scratch = tempfile::tempdir().unwrap();
    // The reader's own addresses in the place of those shown, and what they type at the end to see it all.
    let mut script = lines.join("\n");
    for (shown, own) in [
        ("postgres://postgres@127.0.0.1:5432/shop?sslmode=disable", here(&a)),
        ("postgres://postgres@127.0.0.1:5433/shop?sslmode=disable", here(&b)),
        ("127.0.0.1:9092", kafka.local()),
    ] {
        assert!(script.contains(shown), "{shown} is not in the quick start");
        script = script.replace(shown, &own);
    }
    // Two ports of our own for the daemons: those in the files may be taken on a machine that runs other tests.
    let ports = format!(
        "sed -i 's/127.0.0.1:9187/127.0.0.1:{}/' region-a.toml\nsed -i 's/127.0.0.1:9188/127.0.0.1:{}/' region-b.toml",
        free[0], free[1]
    );
    let mut steps: Vec<&str> = script.lines().collect();
    let init = steps.iter().position(|line| line.starts_with("landfall init")).unwrap();
    steps.insert(init + 1, &ports);
    let path =
        format!("{}:{}", Path::new(LANDFALL).parent().unwrap().display(), std::env::var("PATH").unwrap());
    let log = std::fs::File::create(scratch.path().join("typed.log")).unwrap();
    // Each line is expected to succeed.
    let child = Command::new("bash")
        .args(["-eux", "-c", &format!("{}\ntouch done\nwait", steps.join("\n"))])
        .current_dir(scratch.path())
        .env("PATH", path)
        .env_remove("LANDFALL_CONFIG")
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .process_group(0)
        .spawn()
        .unwrap();
    let mut shell = Shell(child);
    let since = Instant::now();
    let read = |name: &str| std::fs::read_to_string(scratch.path().join(name)).unwrap_or_default();
    while !scratch.path().join("done").exists() {
        let ended = shell.0.try_wait().unwrap();
        assert!(
            ended.is_none() && since.elapsed() < PATIENCE,
            "{ended:?} after {:?}\n{}\n{}\n{}",
            since.elapsed(),
            read("typed.log"),
            read("region-a.log"),
            read("region-b.log")
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("{}", read("typed.log"));
    let arrived = b.query_text("shop", "select note from orders where id = 1").await.unwrap();
    assert_eq!(arrived.as_deref(), Some("hello"));
    // What was made is a secret only where it has to be one, and nowhere else.
    let password = read("region-a.password");
    assert!(password.trim().len() >= 20);
    for file in ["typed.log", "region-a.log", "region-b.log", "region-a.sql", "region-a.toml"] {
        assert!(!read(file).contains(password.trim()), "{file} holds the password");
    }
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(scratch.path().join("region-a.password")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // What is there is not written over.
    let again = Command::new(LANDFALL)
        .args(["init", "--from", &here(&a), "--to", &here(&b), "--brokers", &kafka.local()])
        .current_dir(scratch.path())
        .output()
        .unwrap();
    assert_eq!(again.status.code(), Some(2), "{}", text(&again.stdout));
    assert!(text(&again.stderr).contains("is there already"), "{}", text(&again.stderr));
    assert_eq!(read("region-a.password"), password);
}

#[tokio::test(flavor = "multi_thread")]
async fn init_asks_three_questions_and_what_it_writes_passes_check() {
    use std::io::Write;
    // One server, as a fresh installation is: the log is not yet written for decoding.
    let (server, kafka) =
        tokio::join!(Postgres::builder(18, "one").setting("wal_level", "replica").start(), Kafka::start(1));
    let (mut server, kafka) = (server.unwrap(), kafka.unwrap());
    let odd = "create schema \"Odd.One\"; create type \"Odd.One\".mood as enum ('well');
        create table \"Odd.One\".\"T\" (id int8 primary key, mood \"Odd.One\".mood, at timestamptz(3))";
    for database in ["here", "there"] {
        server.create_database(database).await.unwrap();
        server.execute(database, odd).await.unwrap();
    }
    server.execute("there", "alter table \"Odd.One\".\"T\" alter at type timestamptz(6)").await.unwrap();
    server.execute("there", "revoke connect on database there from public").await.unwrap();
    let roles = async || server.query_text("here", "select count(*)::text from pg_roles").await.unwrap();
    let before = roles().await;
    let url = |database: &str| server.url(database);
    let ask = |directory: &Path| {
        let mut child = Command::new(LANDFALL)
            .args(["init", "--json", "--from-region", "us", "--to-region", "eu", "--dir"])
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = format!("{}\n{}\n{}\n", url("here"), url("there"), kafka.local());
        child.stdin.take().unwrap().write_all(answers.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let outcome = |output: &Output| -> serde_json::Value {
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", text(&output.stderr)))
    };
    let first = tempfile::tempdir().unwrap();
    let output = ask(first.path());
    let told = outcome(&output);
    assert_eq!(text(&output.stderr).matches('?').count(), 3, "{}", text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{told:#}");
    let obstacle = told["obstacles"][0].as_str().unwrap();
    assert!(obstacle.contains("column at is timestamp(3) with time zone at the source"), "{told:#}");
    assert!(told["next"].to_string().contains("restart the server of us"), "{told:#}");
    assert_eq!(roles().await, before, "looking left a role behind");

    // What it shows mends it.
    let (_, sql) = obstacle.split_once("here: ").unwrap();
    server.execute("there", sql).await.unwrap();
    let second = tempfile::tempdir().unwrap();
    let output = ask(second.path());
    let told = outcome(&output);
    assert_eq!(output.status.code(), Some(0), "{told:#}");
    let file = |name: &str| second.path().join(name);
    // As it says: by psql, a statement at a time, since some of them stand in no transaction.
    for line in told["next"].as_array().unwrap()[..2].iter().filter_map(serde_json::Value::as_str) {
        assert!(line.contains("ON_ERROR_STOP=1"), "{line}");
        let psql = Command::new("sh").args(["-c", line]).stdin(Stdio::null()).output().unwrap();
        assert!(psql.status.success(), "{line}\n{}", text(&psql.stderr));
    }
    let check = |region: &str| {
        let config = file(&format!("{region}.toml")).display().to_string();
        landfall(&["check", "--json", "--config", &config])
    };
    let output = check("us");
    assert_eq!(ids(&findings(&output)), ["wal-level"], "{}", text(&output.stdout));
    server.stop(testbed::postgres::Shutdown::Fast).await.unwrap();
    server.start_again().await.unwrap();
    for region in ["us", "eu"] {
        let output = check(region);
        assert_eq!(
            (ids(&findings(&output)), output.status.code()),
            (vec![], Some(0)),
            "{}",
            text(&output.stdout)
        );
    }
    let password = |region: &str| std::fs::read_to_string(file(&format!("{region}.password"))).unwrap();
    assert_eq!(password("us"), password("eu"), "one server has one role");
}

/// The kinds of what `check` found, worse than a note, and what it said.
fn findings(output: &Output) -> Vec<(String, String, String)> {
    let found: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}\n{}", text(&output.stdout), text(&output.stderr)));
    let field =
        |finding: &serde_json::Value, name: &str| finding[name].as_str().unwrap_or_default().to_owned();
    let told = |it: &serde_json::Value| (field(it, "id"), field(it, "severity"), field(it, "mend"));
    found.as_array().unwrap().iter().map(told).collect()
}

fn ids(found: &[(String, String, String)]) -> Vec<&str> {
    let bad = found.iter().filter(|(_, severity, _)| severity != "note");
    bad.map(|(id, ..)| id.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_each_difference_and_what_it_shows_mends_it() {
    let regions = TwoRegions::start(15, 18, 1).await.unwrap();
    let (us, eu) = (&regions.us, &regions.eu);
    us.execute(
        "create table same (id int8 primary key, v text);
         create table typed (id int8 primary key, v varchar(20), made int8 generated always as identity);
         create table extra (id int8 primary key);
         create table keyless (id int8, v text); alter table keyless replica identity full;
         create table counted (id serial primary key, doubled int8 generated always as (id * 2) stored);
         create table bare (id int8);
         create table gone (id int8 primary key);
         insert into same select n, 'x' from generate_series(1, 10) n",
    )
    .await
    .unwrap();
    eu.execute(
        "create table same (id int8 primary key, v text);
         create table typed (id int8 primary key, v text, made int8 generated always as identity);
         create table extra (id int8 primary key, must text not null);
         create table keyless (id int8, v text);
         create table counted (id serial primary key, doubled int8 generated always as (id * 2) stored);
         create table bare (id int8);
         create table secret (id int8);
         insert into same select n, 'x' from generate_series(1, 7) n",
    )
    .await
    .unwrap();
    let sending = us.daemon(LANDFALL, &regions.us_sends()).stopped().unwrap();
    let taking = eu.daemon(LANDFALL, &regions.eu_receives()).stopped().unwrap();
    us.grant(&sending).await.unwrap();
    eu.grant(&taking).await.unwrap();
    let roles = "grant select on all tables in schema public to landfall";
    regions.execute_both(roles).await.unwrap();

    // The sending side, alone: a table that cannot be carried, and what is good to know of the others.
    let output = sending.command(&["check", "--json"]).await.unwrap();
    let found = findings(&output);
    assert_eq!(ids(&found), ["replica-identity"], "{found:#?}");
    assert_eq!(output.status.code(), Some(1));
    let noted: Vec<&str> = found.iter().map(|(id, ..)| id.as_str()).collect();
    for id in [
        "identity-full",
        "generated-column",
        "sequence-behind",
        "topic",
        "clocks",
        "wal-disk",
        "tables-untold",
    ] {
        assert!(noted.contains(&id), "{id}: {noted:?}");
    }

    // The taking side, held against the other, rows counted.
    let against = sending.config_path().display().to_string();
    let all = ["check", "--json", "--deep", "--against", &against];
    let output = taking.command(&all).await.unwrap();
    let found = findings(&output);
    let mut bad = ids(&found);
    bad.sort_unstable();
    let expected = [
        "tables-unequal",
        "target-differs",
        "target-differs",
        "target-differs",
        "target-key",
        "target-missing",
    ];
    assert_eq!(bad, expected, "{found:#?}");

    // What is shown mends it: the statements as they are, the rest as it says.
    us.execute("alter table bare add primary key (id)").await.unwrap();
    eu.execute("alter table bare add primary key (id); create table gone (id int8 primary key)")
        .await
        .unwrap();
    eu.execute("alter table keyless add unique (id); alter table keyless alter id set not null")
        .await
        .unwrap();
    eu.execute("insert into same select n, 'x' from generate_series(8, 10) n").await.unwrap();
    for (id, _, mend) in &found {
        if id == "target-differs" {
            eu.execute(mend).await.unwrap_or_else(|error| panic!("{mend}: {error}"));
        }
    }
    us.grant(&sending).await.unwrap();
    eu.grant(&taking).await.unwrap();
    regions.execute_both(roles).await.unwrap();
    let output = taking.command(&all).await.unwrap();
    let found = findings(&output);
    assert_eq!((ids(&found), output.status.code()), (vec![], Some(0)), "{found:#?}");
    assert!(found.iter().any(|(id, ..)| id == "tables-equal"), "{found:#?}");

    // Once the stream runs, its topic says what it carries, how fast, and by which clock.
    let mut daemon = sending;
    daemon.start_again().unwrap();
    eventually(PATIENCE, "the stream begins", async || {
        let live = "select count(*)::text from landfall.stream where live";
        Ok(us.postgres.query_text("shop", live).await.is_ok_and(|live| live.as_deref() == Some("1")))
    })
    .await
    .unwrap();
    us.execute("insert into same values (11, 'y'); insert into typed (id) values (1)").await.unwrap();
    eu.execute("alter table same alter v type varchar(5)").await.unwrap();
    eventually(PATIENCE, "a column that was changed is found by the stream alone", async || {
        let found = findings(&taking.command(&["check", "--json"]).await?);
        Ok(ids(&found) == ["target-differs"])
    })
    .await
    .unwrap();
    let output = taking.command(&["check", "--json"]).await.unwrap();
    let page = text(&output.stdout);
    for said in
        ["column v is text at the source", "have had no change yet", "the clock of us-east-1's Kafka is"]
    {
        assert!(page.contains(said), "{said}: {page}");
    }
    let page = text(&daemon.command(&["check", "--json"]).await.unwrap().stdout);
    for said in ["landfall.us-east-1.main take", "or more free", "slot-active"] {
        assert!(page.contains(said), "{said}: {page}");
    }
}

/// A standby, as the server sees one: it keeps the log as it comes, and says so. Ended when dropped.
struct Standby {
    process: std::process::Child,
    _log: tempfile::TempDir,
}

impl Standby {
    fn of(server: &Postgres) -> Self {
        let log = tempfile::tempdir().unwrap();
        let child = Command::new("pg_receivewal")
            .args(["--synchronous", "--no-password", "-h", "127.0.0.1", "-U", "postgres", "-p"])
            .arg(server.port().to_string())
            .arg("-D")
            .arg(log.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        Self { process: child.unwrap(), _log: log }
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_waits_for_any_standby_is_warned_of_and_does_not_wait_for_kafka() {
    let mut us = Region::start("us-east-1", 15, 1).await.unwrap();
    us.execute("create table t (id int8 generated always as identity primary key)").await.unwrap();
    let mut daemon = us.start_daemon(LANDFALL, &us.config().source(&["public.*"]).to_toml()).await.unwrap();
    us.begun(PATIENCE).await.unwrap();
    let confirmed = async |us: &Region| {
        let end = us.postgres.query_text("shop", "select pg_current_wal_lsn()::text").await.unwrap().unwrap();
        let sql = format!("select bool_and(confirmed_flush_lsn >= '{end}')::text from pg_replication_slots");
        let all = async || Ok(us.postgres.query_text("shop", &sql).await?.as_deref() == Some("true"));
        eventually(PATIENCE, "everything is confirmed", all).await.unwrap();
    };
    confirmed(&us).await;

    // The standby comes last: of two that are as good, a server waits for the one that came first.
    let standby = Standby::of(&us.postgres);
    us.postgres.set("synchronous_standby_names", "*").await.unwrap();
    let standings = async || {
        let sql = "select string_agg(application_name || ': ' || sync_state, ', ' order by 1)
              from pg_stat_replication";
        us.postgres.query_text("shop", sql).await.unwrap().unwrap_or_default()
    };
    let expected = "landfall capture main: async, pg_receivewal: sync";
    let waits =
        eventually(PATIENCE, "the server waits for its standby", async || Ok(standings().await == expected));
    assert!(waits.await.is_ok(), "{}", standings().await);
    for _ in 0..50 {
        us.execute("insert into t default values").await.unwrap();
    }
    confirmed(&us).await;
    eventually(PATIENCE, "it still does", async || Ok(standings().await == expected)).await.unwrap();
    let found = findings(&daemon.command(&["check", "--json"]).await.unwrap());
    assert!(ids(&found).contains(&"synchronous-standby"), "{found:#?}");
    eventually(PATIENCE, "status warns", async || {
        Ok(daemon.http_get("/status").await?.1.contains("synchronous_standby_names takes the session"))
    })
    .await
    .unwrap();

    us.kafka.kill(0).await.unwrap();
    for _ in 0..5 {
        let commit = us.execute("insert into t default values");
        tokio::time::timeout(Duration::from_secs(30), commit).await.expect("it waits for Kafka").unwrap();
    }
    us.kafka.start_again(0).await.unwrap();
    confirmed(&us).await;

    // With no standby at all what commits waits for us; and we wait for nobody, a start does not either.
    drop(standby);
    let commit = tokio::time::timeout(PATIENCE, us.execute("insert into t default values"));
    commit.await.expect("nobody confirms it").unwrap();
    daemon.kill9().unwrap();
    let (commit, ()) =
        tokio::join!(tokio::time::timeout(PATIENCE, us.execute("insert into t default values")), async {
            daemon.start_again().unwrap()
        });
    commit.unwrap_or_else(|_| panic!("nobody confirms it: {}", daemon.log_tail())).unwrap();
    confirmed(&us).await;

    // Nor for a standby that is away: what others commit without it is carried.
    us.postgres.set("synchronous_standby_names", "nobody").await.unwrap();
    daemon.kill9().unwrap();
    daemon.start_again().unwrap();
    us.execute("set synchronous_commit = local; insert into t default values").await.unwrap();
    confirmed(&us).await;
    us.postgres.set("synchronous_standby_names", "").await.unwrap();
    eventually(PATIENCE, "status warns no more", async || {
        Ok(!daemon.http_get("/status").await?.1.contains("synchronous_standby_names"))
    })
    .await
    .unwrap();
}

#[test]
fn every_code_finding_and_setting_is_explained() {
    let names = Code::ALL.iter().map(|code| code.as_str());
    let names =
        names.chain(Kind::ALL.iter().map(|kind| kind.as_str())).chain(SETTINGS.iter().map(|it| it.path));
    let list = text(&landfall(&["explain"]).stdout);
    for name in names {
        let output = landfall(&["explain", name]);
        let page = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{name}");
        assert!(page.contains(&format!("{name}\n  means  ")), "{page}");
        assert!(list.contains(&format!("\n  {name} ")), "{name} is not in the list");
    }
    let unknown = landfall(&["explain", "LF-SLOT-LOTS"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text(&unknown.stderr).contains("did you mean LF-SLOT-LOST"), "{}", text(&unknown.stderr));
    // Part of a name brings all that have it, codes, findings and settings.
    for name in ["LF-SLOT", "slot"] {
        let part = landfall(&["explain", name]);
        let said = text(&part.stderr);
        assert_eq!(part.status.code(), Some(2), "{said}");
        for near in ["did you mean source.slot, ", "LF-SLOT-LOST", "LF-SLOT-MISSING", " slot-active"] {
            assert!(said.contains(near), "{near}: {said}");
        }
    }
}

#[test]
fn exit_codes_are_as_the_help_says() {
    let scratch = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = scratch.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let link = "[[link]]\nfrom = \"b\"\nbrokers = [\"127.0.0.1:1\"]\n";
    let local = "region = \"a\"\n[database]\nurl = \"postgres://u@127.0.0.1:1/d\"\n";
    let good = file("good.toml", &format!("{local}{link}"));
    let far = file(
        "far.toml",
        &format!("{}{link}", local.replace("127.0.0.1:1/d", "db.internal:1/d?sslmode=disable")),
    );
    let bad = file("bad.toml", &format!("{local}{}", link.replace("from", "form")));
    for (args, code, said) in [
        (vec!["check", "--offline", "--config", &good], 0, "0 error(s), 0 warning(s), 0 note(s)"),
        (vec!["check", "--offline", "--config", &far], 1, "warning plain-text"),
        (
            vec!["check", "--offline", "--config", &bad],
            1,
            "bad.toml:5: link[0].form: unknown; did you mean `from`?",
        ),
        (vec!["check", "--config", &good], 2, "error   database-answer"),
        (vec!["check", "--offline", "--config", "/nowhere"], 2, "read /nowhere"),
        (vec!["check", "--config", &good, "--against", "/nowhere"], 2, "with --against"),
        (vec!["check"], 2, "which settings?"),
        (vec!["check", "--offline", "--deep", "--config", &good], 2, "error:"),
        (vec!["config", "show", "--config", &good], 0, "batch_changes = 2000"),
        (vec!["config", "show", "--config", &bad], 2, "bad.toml:5: link[0].form"),
        (vec!["run", "--config", &bad], 2, "bad.toml:5: link[0].form"),
        (
            vec![
                "status",
                "--config",
                &file("nobody.toml", &format!("{local}{link}[http]\nlisten = \"127.0.0.1:1\"\n")),
            ],
            2,
            "[LF-NOT-SERVED] ask the daemon at http://127.0.0.1:1/status: ",
        ),
        (vec!["init", "--from", "postgres://u@127.0.0.1:1/d"], 2, "no answer; give --to"),
        (
            vec!["init", "--from", "x", "--to", "y", "--brokers", "127.0.0.1:1"],
            2,
            "the url of region-a: expected postgres://",
        ),
        (vec!["init", "--brokers", "nowhere"], 2, "is no broker"),
        (vec!["explain"], 0, "LF-CONFIG"),
        (vec!["frobnicate"], 2, "error:"),
        (vec!["--help"], 0, "Exit codes: 0 good, 1 something was found, 2 could not be told or wrong use."),
    ] {
        let output = landfall(&args);
        let page = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {page}");
        assert!(page.contains(said), "{args:?} lacks {said}: {page}");
    }
}

#[test]
fn a_command_whose_reader_has_gone_ends_without_a_word() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ended = std::process::Command::new(LANDFALL)
        .arg("explain")
        .stdout(writer)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    assert_eq!((ended.status.code(), text(&ended.stderr)), (Some(141), String::new()));
}

#[test]
fn every_command_says_which_file_it_could_not_read_and_how_to_name_another() {
    let scratch = tempfile::tempdir().unwrap();
    let tried = scratch.path().join("landfall.toml").display().to_string();
    for command in
        ["run", "check", "status", "backfill --to b", "verify", "repair", "recover", "parked", "config show"]
    {
        for json in [false, true] {
            let output = Command::new(LANDFALL)
                .args(command.split(' '))
                .args(["--config", "landfall.toml"])
                .args(json.then_some("--json"))
                .current_dir(scratch.path())
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let page = text(&output.stdout) + &text(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{command}: {page}");
            for said in ["LF-CONFIG", &format!("read {tried}: "), "--config FILE or in LANDFALL_CONFIG"] {
                assert!(page.contains(said), "{command} (--json: {json}) lacks {said}: {page}");
            }
            assert!(!page.contains("every mistake is listed"), "{command}: {page}");
        }
    }
}

#[test]
fn who_asks_a_daemon_that_does_not_run_is_told_so_and_needs_none_of_its_secrets() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("landfall.toml");
    let nobody = testbed::ports::loopback(testbed::ports::free().unwrap());
    let settings = format!(
        "region = \"a\"\n[database]\nurl = \"postgres://u@127.0.0.1:1/d\"\npassword_file = \"/nowhere\"\n[[link]]\n\
         from = \"b\"\nbrokers = [\"127.0.0.1:1\"]\nproperties.\"security.protocol\" = \"sasl_ssl\"\n\
         properties.\"sasl.mechanism\" = \"plain\"\nproperties.\"sasl.username\" = {{ env = \"THE_DAEMONS_OWN\" }}\n\
         [http]\nlisten = \"{nobody}\"\n"
    );
    std::fs::write(&path, settings).unwrap();
    let config = path.display().to_string();
    let output = landfall(&["status", "--json", "--config", &config]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["code"], "LF-NOT-SERVED", "{told}");
    assert!(told["error"].as_str().unwrap().contains(&format!("http://{nobody}/status: ")), "{told}");
    for next in ["`landfall run` starts it", "http.listen"] {
        assert!(told["remedy"].as_str().unwrap().contains(next), "{told}");
    }
    // Whoever does not only look misses each of them.
    let output = landfall(&["config", "show", "--config", &config]);
    let said = text(&output.stderr);
    assert!(
        said.contains("4: database.password_file: read /nowhere") && said.contains("THE_DAEMONS_OWN"),
        "{said}"
    );
    assert!(said.contains("landfall.toml:8: link[0].properties.\"sasl.password\": missing"), "{said}");
}

#[test]
fn shells_and_man_know_every_command() {
    let help = text(&landfall(&["--help"]).stdout);
    let section = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let commands: Vec<&str> = section
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|it| !it.is_empty())
        .collect();
    assert!(commands.contains(&"init") && commands.contains(&"explain"), "{commands:?}");
    let overview = text(&landfall(&["man"]).stdout);
    for command in commands {
        for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
            let script = text(&landfall(&["completions", shell]).stdout);
            assert!(script.contains(command), "{shell} does not complete {command}");
        }
        if command != "help" {
            let page = text(&landfall(&["man", command]).stdout);
            assert!(page.contains(&format!(".TH landfall-{command} 1")), "{command}: {page}");
            assert!(overview.contains(&format!("landfall\\-{command}(1)")), "{command}: {overview}");
        }
    }
    let script = text(&landfall(&["completions", "bash"]).stdout);
    let checked = Command::new("bash").args(["-n", "-c", &script]).output().unwrap();
    assert!(checked.status.success(), "{}", text(&checked.stderr));
}
