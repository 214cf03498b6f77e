use std::{io, path::Path};

use super::*;
use crate::postgres::TlsMode;

const WHOLE: &str = r#"
    region = "eu-west-1"
    [database]
    url = "postgres://landfall@db.internal:5432/shop"
    password_file = "/run/secrets/landfall"
    [kafka]
    brokers = ["kafka.internal:9092"]
    [source]
    tables = ["public.*"]
    [[link]]
    from = "us-east-1"
    brokers = ["kafka.us-east-1.internal:9092"]
"#;

fn read(path: &Path) -> io::Result<String> {
    match path.to_str() {
        Some("/run/secrets/landfall") => Ok("hunter2\n".to_owned()),
        Some("/empty") => Ok("\n".to_owned()),
        _ => Err(io::Error::from(io::ErrorKind::NotFound)),
    }
}

fn settings(text: &str, environment: &[(&str, &str)]) -> Result<Settings, Mistakes> {
    let environment = environment.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Settings::from_parts(text, environment, &read)
}

fn mistakes(text: &str, environment: &[(&str, &str)]) -> Vec<String> {
    let mistakes = settings(text, environment).expect_err("accepted");
    mistakes.0.iter().map(ToString::to_string).collect()
}

#[test]
fn everything_else_has_a_default() {
    let found = settings(WHOLE, &[]).unwrap();
    assert_eq!(found.database.password.reveal(), "hunter2");
    assert_eq!(found.database.tls, TlsMode::VerifyFull);
    let kafka = found.kafka.unwrap();
    assert_eq!((kafka.replication_factor, kafka.min_insync_replicas, kafka.retention), (3, 2, DAY));
    let source = found.source.unwrap();
    assert_eq!(source.slot, "landfall_eu_west_1_shop");
    assert_eq!((&*source.publication, &*source.stream), ("landfall", "main"));
    assert_eq!((source.heartbeat_interval, source.max_record_bytes), (SECOND, 921_600));
    assert_eq!(source.checkpoint_interval, 10 * SECOND);
    let link = &found.links[0];
    assert_eq!((link.from.as_str(), &*link.stream), ("us-east-1", "main"));
    assert_eq!((link.batch_bytes, link.open_transaction_timeout), (4 << 20, 60 * SECOND));
    assert_eq!(found.http.listen.to_string(), "127.0.0.1:9187");
    assert_eq!(found.ready.max_lag, None);
    assert_eq!((found.log.format, &*found.log.level), (LogFormat::Auto, "info"));
}

#[test]
fn the_environment_goes_over_the_file() {
    let found = settings(
        WHOLE,
        &[
            ("LANDFALL__DATABASE__PASSWORD", "other"),
            ("LANDFALL__KAFKA__BROKERS", "a:1, b:2"),
            ("LANDFALL__KAFKA__REPLICATION_FACTOR", "1"),
            ("LANDFALL__KAFKA__PROPERTIES__SASL__PASSWORD", "pass"),
            ("LANDFALL__READY__MAX_LAG", "30s"),
            ("LANDFALL_CONFIG", "ignored"),
            ("HOME", "/"),
        ],
    )
    .unwrap();
    assert_eq!(found.database.password.reveal(), "other");
    let kafka = found.kafka.unwrap();
    assert_eq!(kafka.brokers, ["a:1", "b:2"]);
    assert_eq!((kafka.replication_factor, kafka.min_insync_replicas), (1, 1));
    assert_eq!(kafka.properties, Properties(vec![("sasl.password".into(), Secret::new("pass"))]));
    assert_eq!(found.ready.max_lag, Some(30 * SECOND));
}

#[test]
fn properties_are_named_with_dots_in_quotes_or_not_and_never_printed() {
    let with =
        |properties: &str| WHOLE.replace("[source]", &format!("[kafka.properties]\n{properties}\n[source]"));
    let quoted = with("\"security.protocol\" = \"sasl_ssl\"\n\"sasl.password\" = \"topsecret\"");
    let plain = with("security.protocol = \"sasl_ssl\"\nsasl.password = \"topsecret\"");
    for text in [quoted, plain] {
        let found = settings(&text, &[("LANDFALL__KAFKA__PROPERTIES__SASL__PASSWORD", "fromenv")]).unwrap();
        let properties = &found.kafka.as_ref().unwrap().properties.0;
        let told: Vec<_> = properties.iter().map(|(name, value)| (&**name, value.reveal())).collect();
        assert_eq!(told, [("sasl.password", "fromenv"), ("security.protocol", "sasl_ssl")]);
        let printed = format!("{found:?}");
        assert!(!printed.contains("fromenv") && !printed.contains("hunter2"), "{printed}");
    }
}

#[test]
fn each_mistake_is_named_with_its_path() {
    for (from, to, expected) in [
        ("\"eu-west-1\"", "\"EU\"", "region: `EU` is no region name"),
        ("region = \"eu-west-1\"", "", "region: missing; for example region = \"eu-west-1\""),
        ("region", "regoin", "regoin: unknown; did you mean `region`?"),
        ("[kafka]", "[kafak]", "kafak: unknown; did you mean `kafka`?"),
        ("[kafka]", "[kafak]", "kafka: missing"),
        ("brokers = [\"kafka.internal:9092\"]", "brokers = []", "kafka.brokers: the list is empty"),
        (
            "brokers = [\"kafka.internal:9092\"]",
            "brokers = \"a:1\"",
            "kafka.brokers: expected a list of texts",
        ),
        ("kafka.internal:9092", "kafka.internal", "kafka.brokers[0]: `kafka.internal` is no broker"),
        ("[source]", "retention = \"1h\"\n[source]", "kafka.retention: below 24h"),
        (
            "[source]",
            "retention = 24\n[source]",
            "kafka.retention: expected a text in quotes, found a whole number",
        ),
        ("[source]", "retention = \"24\"\n[source]", "kafka.retention: `24` is no duration"),
        (
            "[source]",
            "replication_factor = 0\n[source]",
            "kafka.replication_factor: expected a number from 1 to 100",
        ),
        ("[source]", "min_insync_replicas = 4\n[source]", "kafka.min_insync_replicas: 4 of 3 replicas"),
        (
            "[source]",
            "allow_short_retention = \"true\"\n[source]",
            "kafka.allow_short_retention: expected true or false",
        ),
        (
            "[source]",
            "[kafka.properties]\n\"enable.idempotence\" = false\n[source]",
            "kafka.properties.\"enable.idempotence\": not passed through",
        ),
        (
            "[source]",
            "[kafka.properties]\n\"ssl.ca.locaton\" = \"x\"\n[source]",
            "kafka.properties.\"ssl.ca.locaton\": not passed through; did you mean \"ssl.ca.location\"?",
        ),
        (
            "[source]",
            "[kafka.properties]\n\"security.protocol\" = \"tls\"\n[source]",
            "kafka.properties.\"security.protocol\": `tls` is none of plaintext, ssl",
        ),
        ("tables = [\"public.*\"]", "", "source.tables: missing; for example tables = [\"public.*\"]"),
        ("\"public.*\"", "\"public.*\", \"orders\"", "source.tables[1]: `orders` is no table pattern"),
        (
            "\"public.*\"",
            "\"landfall.*\"",
            "source.tables[0]: `landfall.*` names a schema that is never published",
        ),
        ("[[link]]", "slot = \"Slot\"\n[[link]]", "source.slot: `Slot` is no slot name"),
        ("[[link]]", "stream = \"state\"\n[[link]]", "source.stream: `state` is kept"),
        (
            "[[link]]",
            "heartbeat_interval = \"1h\"\n[[link]]",
            "source.heartbeat_interval: expected a duration from 100ms to 5s",
        ),
        ("[[link]]", "max_record_bytes = \"900KB\"\n[[link]]", "source.max_record_bytes: `900KB` is no size"),
        (
            "[[link]]",
            "max_record_bytes = 1\n[[link]]",
            "source.max_record_bytes: expected a size from 16KiB to 8MiB",
        ),
        ("[[link]]", "[link]", "link: expected sections under [[link]], found a section"),
        ("from = \"us-east-1\"", "from = \"eu-west-1\"", "link[0].from: is this region"),
        ("from = \"us-east-1\"", "", "link[0].from: missing"),
        (
            "from = \"us-east-1\"",
            "from = \"us-east-1\"\nordering = \"key\"",
            "link[0].ordering: `key` is not available yet",
        ),
        (
            "from = \"us-east-1\"",
            "from = \"us-east-1\"\nordering = \"none\"",
            "link[0].ordering: `none` is unknown",
        ),
        (
            "from = \"us-east-1\"",
            "from = \"us-east-1\"\nbatch_bytes = \"1B\"",
            "link[0].batch_bytes: expected a size",
        ),
        (
            "from = \"us-east-1\"",
            "from = \"us-east-1\"\nlanes = 4",
            "link[0].lanes: unknown; known here: from, brokers",
        ),
        ("landfall@db.internal", "db.internal", "database.url: no role"),
        ("5432", "port", "database.url: `port` is no port"),
        ("/run/secrets/landfall", "/nowhere", "database.password_file: read /nowhere: entity not found"),
        ("/run/secrets/landfall", "/empty", "database.password_file: /empty is empty"),
        (
            "landfall@db",
            "landfall:pw@db",
            "database.password: given more than once: by password_file and by the url",
        ),
        (
            "[[link]]",
            "[http]\nlisten = \"localhost:1\"\n[[link]]",
            "http.listen: `localhost:1` is no address",
        ),
        ("[[link]]", "[ready]\nmax_lag = \"now\"\n[[link]]", "ready.max_lag: `now` is no duration"),
        ("[[link]]", "[log]\nformat = \"xml\"\n[[link]]", "log.format: `xml` is none of auto, text, json"),
        ("[[link]]", "[log]\nlevel = \"=,=\"\n[[link]]", "log.level: `=,=`"),
        ("region = ", "region == ", "TOML parse error at line 2"),
    ] {
        let text = WHOLE.replacen(from, to, 1);
        assert_ne!(text, WHOLE, "{from} is not there");
        let found = mistakes(&text, &[]);
        assert!(
            found.iter().any(|mistake| mistake.starts_with(expected)),
            "expected {expected}\nfound {found:#?}"
        );
    }
}

#[test]
fn all_mistakes_are_told_together() {
    let text = r#"
        region = "X"
        colour = true
        [database]
        url = "postgres://h/d?sslmode=no"
        [kafka]
        brokers = ["a"]
        retention = "1s"
        [source]
        tables = "public.*"
        [[link]]
        from = "1"
        brokers = ["b:1"]
        [[link]]
        from = "us-east-1"
        brokers = ["b:1"]
        [[link]]
        from = "us-east-1"
        brokers = ["b:1"]
    "#;
    let found = mistakes(text, &[("LANDFALL__DATABSE__URL", "x")]);
    let paths: Vec<&str> = found.iter().map(|mistake| mistake.split(": ").next().unwrap()).collect();
    assert_eq!(
        paths,
        [
            "colour",
            "database.url",
            "database.url",
            "databse",
            "kafka.brokers[0]",
            "kafka.retention",
            "link[0].from",
            "link[2]",
            "region",
            "source.tables",
        ],
        "{found:#?}"
    );
    assert_eq!(found[3], "databse: unknown (set by LANDFALL__DATABSE__URL); did you mean `database`?");
}

#[test]
fn the_environment_is_checked_as_the_file_is() {
    for (key, value, expected) in [
        ("LANDFALL__LINK__0__FROM", "x", "link: LANDFALL__LINK__0__FROM: links are written in the file"),
        ("LANDFALL__LINK", "x", "link: LANDFALL__LINK: links are written in the file"),
        ("LANDFALL__DATABASE", "x", "database: expected a section, found a text"),
        ("LANDFALL__REGION__X", "x", "region: expected a text in quotes, found a section"),
        ("LANDFALL__KAFKA__REPLICATION_FACTOR", "three", "kafka.replication_factor: expected a whole number"),
        ("LANDFALL__KAFKA__TIMEOUT", "1", "kafka.timeout: unknown (set by LANDFALL__KAFKA__TIMEOUT)"),
    ] {
        let found = mistakes(WHOLE, &[(key, value)]);
        assert!(
            found.iter().any(|mistake| mistake.starts_with(expected)),
            "expected {expected}\nfound {found:#?}"
        );
    }
}

#[test]
fn a_daemon_has_something_to_do() {
    let text = "region = \"a\"\n[database]\nurl = \"postgres://u@h/d\"";
    assert!(mistakes(text, &[])[0].starts_with("nothing to do"));
    let link = format!("{text}\n[[link]]\nfrom = \"b\"\nbrokers = [\"k:1\"]");
    assert!(
        settings(&link, &[]).unwrap().kafka.is_none(),
        "a region that only takes needs no Kafka of its own"
    );
}

#[test]
fn short_retention_is_for_tests_and_says_so() {
    let text = WHOLE.replace("[source]", "retention = \"10s\"\nallow_short_retention = true\n[source]");
    assert_eq!(settings(&text, &[]).unwrap().kafka.unwrap().retention, 10 * SECOND);
}

#[test]
fn the_examples_that_are_shipped_load() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut seen = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        settings(&text, &[]).unwrap_or_else(|mistakes| panic!("{}:\n{mistakes}", path.display()));
        seen += 1;
    }
    assert!(seen >= 3, "{seen}");
}
