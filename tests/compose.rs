//! Proves that docker-compose.yml would show rows crossing: it is a Compose file, its servers are of the
//! versions and settings that the tests run, and with its own SQL, configurations and load, on real servers,
//! rows do cross both ways, and the commands its head names do what they say. Only the containers themselves are
//! missing.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use landfall::config::Settings;
use serde_json::Value;
use testbed::{Daemon, Kafka, Postgres, checksum, eventually, home, kafka, ports, postgres, said};

const LANDFALL: &str = env!("CARGO_BIN_EXE_landfall");
const PATIENCE: Duration = Duration::from_secs(180);
const REGIONS: [(&str, &str); 2] = [("us", "us-east-1"), ("eu", "eu-west-1")];

/// What Compose makes of the file, anchors and defaults filled in.
fn compose() -> Value {
    let config = Command::new("docker-compose").arg("config").output().expect("run docker-compose config");
    assert!(config.status.success(), "{}", String::from_utf8_lossy(&config.stderr));
    let program = "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin), sys.stdout)";
    let mut python = Command::new("python3")
        .args(["-c", program])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("run python3");
    std::io::Write::write_all(&mut python.stdin.take().unwrap(), &config.stdout).unwrap();
    serde_json::from_slice(&python.wait_with_output().unwrap().stdout).unwrap()
}

fn service(compose: &Value, name: &str) -> Value {
    let service = &compose["services"][name];
    assert!(service.is_object(), "there is no service {name}");
    service.clone()
}

/// `-c name=value` of a Postgres.
fn postgres_settings(service: &Value) -> BTreeMap<String, String> {
    let command = service["command"].as_array().unwrap().iter().filter_map(Value::as_str);
    let settings = command.filter_map(|word| word.split_once('='));
    settings.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// `KAFKA_SOME_SETTING` of a Kafka, named as its own files do.
fn kafka_settings(service: &Value) -> BTreeMap<String, String> {
    let environment = service["environment"].as_object().unwrap().iter();
    let settings = environment.filter(|(name, _)| *name != "KAFKA_HEAP_OPTS").map(|(name, value)| {
        let name = name.strip_prefix("KAFKA_").unwrap().to_lowercase().replace('_', ".");
        (name, value.as_str().unwrap().to_owned())
    });
    settings.collect()
}

/// A version that scripts/setup fetches.
fn fetched(start: &str) -> String {
    let setup = fs::read_to_string("scripts/setup").unwrap();
    let rest = setup.split(start).nth(1).unwrap_or_else(|| panic!("scripts/setup has no {start}"));
    rest.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap().to_owned()
}

#[test]
fn versions_and_settings_are_those_the_tests_run() {
    let compose = compose();
    let postgres_image = format!("postgres:{}", fetched("[17]=").trim_end_matches(".0"));
    let kafka_image = format!("apache/kafka:{}", fetched("kafka_version="));
    for (short, _) in REGIONS {
        let server = service(&compose, &format!("postgres-{short}"));
        assert_eq!(server["image"], postgres_image);
        assert_eq!(service(&compose, &format!("load-{short}"))["image"], postgres_image);
        let settings = postgres_settings(&server);
        for needed in ["wal_level", "track_commit_timestamp", "max_replication_slots", "max_wal_senders"] {
            let ours = postgres::DEFAULTS.iter().find(|(name, _)| *name == needed).unwrap().1;
            assert_eq!(settings.get(needed).map(String::as_str), Some(ours), "{needed}");
        }

        let broker = service(&compose, &format!("kafka-{short}"));
        assert_eq!(broker["image"], kafka_image);
        let settings = kafka_settings(&broker);
        // The testbed's brokers have a second listener, for the line; and they hurry, so that a test of a
        // fault is short.
        let only_ours = [
            "listener.security.protocol.map",
            "log.retention.check.interval.ms",
            "log.initial.task.delay.ms",
            "broker.session.timeout.ms",
            "broker.heartbeat.interval.ms",
            "controller.quorum.election.timeout.ms",
            "controller.quorum.fetch.timeout.ms",
        ];
        for (name, ours) in kafka::DEFAULTS.iter().filter(|(name, _)| !only_ours.contains(name)) {
            assert_eq!(settings.get(*name).map(String::as_str), Some(*ours), "{name}");
        }
    }
}

#[test]
fn the_image_is_built_in_stages_and_runs_as_nobody_in_particular() {
    let dockerfile = fs::read_to_string("Dockerfile").unwrap();
    let stages: Vec<&str> = dockerfile.split("\nFROM ").skip(1).collect();
    assert!(stages.len() == 2 && stages[0].contains(" AS build"), "{} stages", stages.len());
    let manifest = fs::read_to_string("Cargo.toml").unwrap();
    let oldest = manifest.split("rust-version = \"").nth(1).unwrap().split('"').next().unwrap();
    assert!(stages[0].starts_with(&format!("rust:{oldest}-")), "the oldest Rust that will do is {oldest}");
    let copies = stages[0].lines().filter_map(|line| line.strip_prefix("COPY "));
    let copied: Vec<&str> =
        copies.flat_map(|line| line.rsplit_once(' ').unwrap().0.split_whitespace()).collect();
    has_what_cargo_wants(&copied);
    let last = stages[1];
    assert!(
        last.lines().any(|line| line.strip_prefix("USER ").is_some_and(|user| !user.starts_with(['0', 'r'])))
    );
    assert!(
        last.lines()
            .any(|line| line.starts_with("HEALTHCHECK ") && line.contains("landfall status; test $? -ne 2"))
    );
    let compose = compose();
    for (short, region) in REGIONS {
        let daemon = service(&compose, &format!("landfall-{short}"));
        assert!(daemon["build"].is_object() && daemon["user"].is_null(), "{daemon}");
        assert!(daemon["image"].is_null(), "two builds of one name get in each other's way: {daemon}");
        assert_eq!(daemon["healthcheck"]["test"], serde_json::json!(["CMD", "landfall", "status"]));
        let mounted = daemon["volumes"][0].as_str().unwrap();
        assert!(mounted.ends_with(&format!("/config/compose/{region}.toml:/etc/landfall/landfall.toml:ro")));
    }
}

#[test]
fn everything_that_is_mounted_is_there_and_ports_are_for_this_machine_only() {
    let compose = compose();
    let root = std::env::current_dir().unwrap();
    for (name, service) in compose["services"].as_object().unwrap() {
        for volume in service["volumes"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let source = volume.split(':').next().unwrap();
            let own = compose["volumes"].get(source).is_some();
            assert!(
                own || (source.starts_with(root.to_str().unwrap()) && Path::new(source).exists()),
                "{name}: {volume}"
            );
        }
        for port in service["ports"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            assert!(port.starts_with("127.0.0.1:"), "{name}: {port}");
        }
        for other in service["depends_on"].as_object().into_iter().flatten().map(|(other, _)| other) {
            assert!(compose["services"].get(other).is_some(), "{name} depends on {other}");
        }
    }
    let config =
        Command::new("promtool").args(["check", "config", "dashboards/prometheus.yml"]).output().unwrap();
    assert!(config.status.success(), "{}", String::from_utf8_lossy(&config.stdout));
}

/// Nothing that the package is made of is missing among what is copied into the image.
fn has_what_cargo_wants(copied: &[&str]) {
    let build = tempfile::tempdir().unwrap();
    let status = Command::new("cp").arg("-r").args(copied).arg(build.path()).status().unwrap();
    assert!(status.success(), "COPY {copied:?}");
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--locked", "--format-version=1"])
        .current_dir(build.path())
        .output()
        .unwrap();
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let targets = |metadata: &[u8]| -> Vec<String> {
        let metadata: Value = serde_json::from_slice(metadata).unwrap();
        let package =
            metadata["packages"].as_array().unwrap().iter().find(|it| it["name"] == "landfall").unwrap();
        let targets = package["targets"].as_array().unwrap().iter();
        targets.filter(|it| it["kind"][0] != "test").map(|it| it["name"].to_string()).collect()
    };
    let here = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--locked", "--format-version=1"])
        .output()
        .unwrap();
    assert_eq!(targets(&metadata.stdout), targets(&here.stdout), "what there is to build");
}

/// One region of the file, on the testbed's servers.
struct Side {
    postgres: Postgres,
    kafka: Kafka,
}

impl Side {
    async fn start(compose: &Value, short: &str, region: &str, major: u16) -> Side {
        let mut builder = Postgres::builder(major, region);
        for (name, value) in postgres_settings(&service(compose, &format!("postgres-{short}"))) {
            builder = builder.setting(&name, &value);
        }
        let settings = kafka_settings(&service(compose, &format!("kafka-{short}")));
        let addresses = ["listener", "advertised", "node.id", "quorum.voters", "log.dirs"];
        let settings: Vec<(&str, &str)> = settings
            .iter()
            .filter(|(name, _)| !addresses.iter().any(|address| name.contains(address)))
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let (postgres, kafka) = tokio::try_join!(builder.start(), Kafka::start_with(1, &settings)).unwrap();
        postgres.create_database("shop").await.unwrap();
        for file in ["shop", region] {
            let sql = fs::read_to_string(format!("config/compose/{file}.sql")).unwrap();
            postgres.execute("shop", &sql).await.unwrap();
        }
        Side { postgres, kafka }
    }

    /// The daemon with the region's own file, its hosts replaced by where they are here.
    fn daemon(&self, region: &str, other: &Side, short: &str, other_short: &str) -> Daemon {
        let file = format!("config/compose/{region}.toml");
        let written = fs::read_to_string(&file).unwrap();
        let environment = [("LANDFALL__DATABASE__PASSWORD".to_owned(), "landfall".to_owned())];
        Settings::from_parts(&written, environment, &|path| fs::read_to_string(path)).unwrap();
        let port =
            self.postgres.url("shop").rsplit(':').next().unwrap().split('/').next().unwrap().to_owned();
        let http = ports::loopback(ports::free().unwrap());
        let mut here = written.clone();
        for (there, now) in [
            (format!("postgres-{short}:5432"), format!("127.0.0.1:{port}")),
            (format!("kafka-{short}:9092"), self.kafka.local()),
            (format!("kafka-{other_short}:9092"), other.kafka.remote()),
            ("0.0.0.0:9187".to_owned(), http.to_string()),
        ] {
            assert!(here.contains(&there), "{file} does not name {there}");
            here = here.replace(&there, &now);
        }
        Daemon::builder(LANDFALL, region, &here)
            .http(http)
            .env("LANDFALL__DATABASE__PASSWORD", "landfall")
            .start()
            .unwrap()
    }

    /// A hundred transactions of the load.
    async fn load(&self, compose: &Value, short: &str) {
        let load = service(compose, &format!("load-{short}"));
        let volume = load["volumes"][0].as_str().unwrap();
        let (file, inside) = volume.strip_suffix(":ro").unwrap().rsplit_once(':').unwrap();
        let command = load["command"].as_str().unwrap();
        let (given, mut words) = (format!("--file={inside}"), command.split_whitespace());
        assert_eq!(words.next(), Some("pgbench"));
        let words: Vec<String> = words
            .map(|word| match word {
                word if word == given => format!("--file={file}"),
                word if word.starts_with("--time=") => "--transactions=50".to_owned(),
                word if word.starts_with("--rate=") => "--rate=200".to_owned(),
                word => word.to_owned(),
            })
            .collect();
        assert!(words.contains(&format!("--file={file}")), "{command}");
        let output = tokio::process::Command::new(home::program("pgbench").unwrap())
            .args(words)
            .arg(self.postgres.url("shop"))
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_cross_both_ways_with_its_files() {
    let compose = compose();
    let (us, eu) = tokio::join!(
        Side::start(&compose, "us", "us-east-1", 15),
        Side::start(&compose, "eu", "eu-west-1", 18)
    );
    let mut daemons = [us.daemon("us-east-1", &eu, "us", "eu"), eu.daemon("eu-west-1", &us, "eu", "us")];
    // What the load waits for is the image's health check.
    for daemon in &mut daemons {
        daemon.wait_ready(PATIENCE).await.unwrap();
        let healthy = eventually(PATIENCE, "its health check holds", async || {
            Ok(daemon.command(&["status"]).await?.status.success())
        });
        healthy.await.unwrap();
    }
    // Healthy is not begun: what is written before the streams begin no link can find.
    for daemon in &daemons {
        daemon.wait_heartbeat(PATIENCE).await.unwrap();
    }
    us.load(&compose, "us").await;
    eu.load(&compose, "eu").await;
    let (there, here) =
        (us.postgres.connect("shop").await.unwrap(), eu.postgres.connect("shop").await.unwrap());
    eventually(PATIENCE, "both sides hold the same orders and reviews", async || {
        let (there, here) = (checksum::database(&there).await?, checksum::database(&here).await?);
        let counted = eu.postgres.query_text("shop", "select count(*)::text from orders").await?;
        Ok(counted.as_deref() == Some("100") && checksum::differences(&there, &here).is_empty())
    })
    .await
    .unwrap();
    let commands = commands_to_try();
    assert!(commands.len() >= 3, "{commands:?}");
    for (short, arguments) in commands {
        let at = REGIONS.iter().position(|(name, _)| *name == short).unwrap();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let tried = daemons[at].command(&arguments).await.unwrap();
        assert!(tried.status.success(), "{short} {arguments:?}: {}", said(&tried));
    }
}

/// The commands in the head of the file: in which region, and what.
fn commands_to_try() -> Vec<(String, Vec<String>)> {
    let text = fs::read_to_string("docker-compose.yml").unwrap();
    let commands = text.split("docker compose exec landfall-").skip(1).map(|tail| {
        // What it is good for stands behind some spaces.
        let command = tail.lines().next().unwrap().split("  ").next().unwrap();
        let (short, command) = command.split_once(" landfall ").unwrap();
        (short.to_owned(), command.split(' ').map(str::to_owned).collect())
    });
    commands.collect()
}
