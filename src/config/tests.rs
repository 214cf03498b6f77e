use std::{io, path::Path};

use super::*;
use crate::{envelope::Format, postgres::TlsMode};

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
        Some("/run/secrets/other") => Ok("other\n".to_owned()),
        Some("/empty") => Ok("\n".to_owned()),
        Some("/blank") => Ok("  \n".to_owned()),
        Some("/lines") => Ok("hunter2\nhunter3\n".to_owned()),
        _ => Err(io::Error::from(io::ErrorKind::NotFound)),
    }
}

fn settings(text: &str, environment: &[(&str, &str)]) -> Result<Settings, Mistakes> {
    let environment = environment.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Settings::from_parts(text, environment, &read)
}

fn mistakes(text: &str, environment: &[(&str, &str)]) -> Vec<String> {
    let mistakes = settings(text, environment).expect_err("accepted");
    let told = |it: &Mistake| {
        if it.path.is_empty() { it.problem.clone() } else { format!("{}: {}", it.path, it.problem) }
    };
    mistakes.all.iter().map(told).collect()
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
    assert_eq!((source.checkpoint_interval, source.format), (10 * SECOND, Format::Debezium));
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
            ("LANDFALL__KAFKA__PROPERTIES__SSL__CIPHER__SUITES", "strong"),
            ("LANDFALL__KAFKA__PROPERTIES__SECURITY__PROTOCOL", "ssl"),
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
    let told: Vec<_> = kafka.properties.0.iter().map(|(name, value)| (&**name, value.reveal())).collect();
    assert_eq!(told, [("security.protocol", "ssl"), ("ssl.cipher.suites", "strong")]);
    assert_eq!(found.ready.max_lag, Some(30 * SECOND));
}

/// What it says is in a file, too.
#[test]
fn a_file_of_the_environment_goes_over_what_the_settings_say() {
    let properties = "[kafka.properties]\n\"security.protocol\" = \"sasl_ssl\"\n\"sasl.password\" = \"old\"\n\
                      \"sasl.mechanism\" = \"plain\"\n\"sasl.username\" = \"me\"\n[source]";
    let text = WHOLE.replace("[source]", properties);
    let url = text.replace("landfall@", "landfall:old@").replace("password_file", "# password_file");
    // Which of two was kept, the order of a map said.
    for _ in 0..16 {
        for text in [&text, &url] {
            let environment = [
                ("LANDFALL__DATABASE__PASSWORD__FILE", "/run/secrets/other"),
                ("LANDFALL__KAFKA__PROPERTIES__SASL__PASSWORD__FILE", "/run/secrets/other"),
            ];
            let found = settings(text, &environment).unwrap();
            assert_eq!(found.database.password.reveal(), "other");
            assert_eq!(found.database.password_file, None);
            let properties = found.kafka.unwrap().properties.0;
            let told = properties.iter().find(|(name, _)| name == "sasl.password");
            assert_eq!(told.map(|(_, value)| value.reveal()), Some("other"));
        }
    }
}

#[test]
fn properties_are_named_with_dots_in_quotes_or_not_and_never_printed() {
    let with =
        |properties: &str| WHOLE.replace("[source]", &format!("[kafka.properties]\n{properties}\n[source]"));
    let quoted = with(
        "\"security.protocol\" = \"sasl_ssl\"\n\"sasl.password\" = \"topsecret\"\n\
         \"sasl.mechanism\" = \"plain\"\n\"sasl.username\" = \"me\"",
    );
    let plain = with(
        "security.protocol = \"sasl_ssl\"\nsasl.password = \"topsecret\"\n\
         sasl.mechanism = \"plain\"\nsasl.username = \"me\"",
    );
    for text in [quoted, plain] {
        let found = settings(&text, &[("LANDFALL__KAFKA__PROPERTIES__SASL__PASSWORD", "fromenv")]).unwrap();
        let properties = &found.kafka.as_ref().unwrap().properties.0;
        let told: Vec<_> = properties.iter().map(|(name, value)| (&**name, value.reveal())).collect();
        assert_eq!(
            told,
            [
                ("sasl.mechanism", "plain"),
                ("sasl.password", "fromenv"),
                ("sasl.username", "me"),
                ("security.protocol", "sasl_ssl")
            ]
        );
        let printed = format!("{found:?}");
        assert!(!printed.contains("fromenv") && !printed.contains("hunter2"), "{printed}");
    }
}

#[test]
fn a_kafka_password_may_stand_in_a_file() {
    let file = "sasl_password_file = \"/run/secrets/landfall\"\n";
    let with = format!("{file}{SASL}");
    let text = WHOLE.replace("[source]", &format!("{with}[source]")) + &with;
    let found = settings(&text, &[]).unwrap();
    for properties in [&found.kafka.unwrap().properties, &found.links[0].properties] {
        let password = properties.0.iter().find(|(name, _)| name == "sasl.password").unwrap();
        assert_eq!(password.1.reveal(), "hunter2");
    }
    let twice = format!("{text}properties.\"sasl.password\" = \"x\"\n");
    let problem =
        "link[0].properties.\"sasl.password\": given more than once: here and by sasl_password_file";
    assert_eq!(mistakes(&twice, &[]), [problem]);
    let nowhere =
        text.replace("sasl_password_file = \"/run/secrets/landfall", "sasl_password_file = \"/empty");
    let found = mistakes(&nowhere, &[]);
    assert!(
        found[0].starts_with("kafka.sasl_password_file: /empty is empty: put the password there"),
        "{found:?}"
    );
}

/// What SASL needs beside a password.
const SASL: &str = "properties.\"security.protocol\" = \"sasl_ssl\"\nproperties.\"sasl.mechanism\" = \"plain\"\n\
                    properties.\"sasl.username\" = \"me\"\n";

#[test]
fn what_lets_a_client_in_has_all_it_needs_and_nothing_without_effect() {
    let sasl = |line: &str| format!("properties.\"security.protocol\" = \"sasl_ssl\"\n{line}");
    for (lines, expected) in [
        (
            sasl("properties.\"sasl.mechanism\" = \"plain\"\n"),
            &[
                "link[0].properties.\"sasl.password\": missing with security.protocol = sasl_ssl; name its file by sasl_password_file, or give it by LANDFALL__LINK__0__PROPERTIES__SASL__PASSWORD",
                "link[0].properties.\"sasl.username\": missing with security.protocol = sasl_ssl; for example \"landfall\"",
            ][..],
        ),
        (
            sasl("properties.\"sasl.username\" = \"me\"\nsasl_password_file = \"/run/secrets/landfall\"\n"),
            &[
                "link[0].properties.\"sasl.mechanism\": missing with security.protocol = sasl_ssl; it is one of plain, scram-sha-256, scram-sha-512",
            ],
        ),
        (
            "properties.\"sasl.username\" = \"me\"\nproperties.\"ssl.ca.location\" = \"/ca\"\n\
             sasl_password_file = \"/run/secrets/landfall\"\n"
                .to_owned(),
            &[
                "link[0].properties.\"sasl.username\": has no effect without security.protocol: set that to sasl_ssl or sasl_plaintext, or take this away",
                "link[0].properties.\"ssl.ca.location\": has no effect without security.protocol: set that to ssl or sasl_ssl, or take this away",
                "link[0].sasl_password_file: has no effect without security.protocol: set that to sasl_ssl or sasl_plaintext, or take this away",
            ],
        ),
        (
            "properties.\"security.protocol\" = \"SSL\"\nproperties.\"sasl.password\" = \"x\"\n".to_owned(),
            &[
                "link[0].properties.\"sasl.password\": has no effect with security.protocol = ssl: set that to sasl_ssl or sasl_plaintext, or take this away",
            ],
        ),
        // What is meant is not known: no more is said of it.
        (
            "properties.\"security.protocol\" = \"tls\"\nproperties.\"ssl.ca.location\" = \"/ca\"\n"
                .to_owned(),
            &[
                "link[0].properties.\"security.protocol\": `tls` is none of plaintext, ssl, sasl_plaintext, sasl_ssl",
            ],
        ),
        (
            format!("{SASL}properties.\"sasl.password\" = \"\"\n"),
            &[
                "link[0].properties.\"sasl.password\": is empty: put the password there, or take the setting away where none is asked for",
            ],
        ),
    ] {
        assert_eq!(mistakes(&format!("{WHOLE}{lines}"), &[]), expected, "{lines}");
    }
    let of_kafka = WHOLE.replace("[source]", &format!("{SASL}[source]"));
    let found = settings(&of_kafka, &[]).unwrap_err();
    assert_eq!(found.all[0].place.as_deref(), Some("line 8"), "{found}");
    assert!(found.to_string().contains("give it by LANDFALL__KAFKA__PROPERTIES__SASL__PASSWORD"), "{found}");
    for protocol in ["sasl_ssl", "sasl_plaintext"] {
        let text = of_kafka.replace("sasl_ssl", protocol);
        settings(&text, &[("LANDFALL__KAFKA__PROPERTIES__SASL__PASSWORD", "x")]).unwrap();
    }
}

#[test]
fn a_password_is_one_line_and_not_blank_wherever_it_stands() {
    let file = |name: &str| WHOLE.replace("/run/secrets/landfall", name);
    let given = |value: &str| {
        WHOLE.replace("password_file = \"/run/secrets/landfall\"", &format!("password = {value}"))
    };
    for (text, expected) in [
        (
            given("\"\""),
            "database.password: is empty: put the role's password there, or take the setting away",
        ),
        (given("\" \""), "database.password: holds only blanks"),
        (given("\"a\\nb\""), "database.password: holds several lines"),
        (given("{ file = \"/lines\" }"), "database.password: holds several lines"),
        (file("/empty"), "database.password_file: /empty is empty"),
        (file("/blank"), "database.password_file: /blank holds only blanks"),
        (file("/lines"), "database.password_file: /lines holds several lines: keep the password alone"),
    ] {
        let found = mistakes(&text, &[]);
        assert!(found.len() == 1 && found[0].starts_with(expected), "expected {expected}\nfound {found:#?}");
        assert!(!found[0].contains("hunter"), "{found:#?}");
    }
    let found = mistakes(WHOLE, &[("LANDFALL__DATABASE__PASSWORD", "")]);
    assert!(found[0].starts_with("database.password: is empty"), "{found:#?}");
}

#[test]
fn a_number_too_large_for_anything_is_told_by_its_place_beside_all_other_mistakes() {
    let text = WHOLE
        .replace(
            "[source]",
            "replication_factor = 9999999999999999999999\n[source]\nlinger = 0xFFFFFFFFFFFFFFFFFF",
        )
        .replace(
            "from = \"us-east-1\"",
            "from = \"us-east-1\"\nbatch_bytes = 99_999_999_999_999_999_999\nx = [1e999]",
        );
    let found = settings(&text, &[]).unwrap_err();
    let told: Vec<String> = found.all.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "line 8: kafka.replication_factor: expected a whole number from 1 to 100",
            "line 14: link[0].batch_bytes: expected a size from 64KiB to 64MiB",
            "line 15: link[0].x: unknown; known here: from, brokers, stream, sasl_password_file, properties, ordering, batch_changes, batch_bytes, fetch_bytes, open_transaction_timeout, flush_interval, verify_interval, on_refusal, copy_sessions",
            "line 10: source.linger: expected a text in quotes, as in \"1s\", found a number",
        ]
    );
    // Whatever is taken as text must not be another one.
    let password = "[link.properties]\n\"security.protocol\" = 99999999999999999999\n";
    let found = mistakes(&format!("{WHOLE}{password}"), &[]);
    assert_eq!(
        found,
        ["link[0].properties.\"security.protocol\": expected a text in quotes, found a number"]
    );
}

#[test]
fn a_lag_is_limited_only_where_a_link_can_lag() {
    let link = WHOLE.find("[[link]]").unwrap();
    let text = format!("{}[ready]\nmax_lag = \"5s\"\n", &WHOLE[..link]);
    let found = settings(&text, &[]).unwrap_err();
    let problem = "line 11: ready.max_lag: has no effect without a [[link]], which alone can lag: add it, or take this away";
    assert_eq!(found.to_string(), problem);
}

#[test]
fn whoever_only_looks_needs_no_secret() {
    let text = format!("{WHOLE}{SASL}")
        .replace("password_file = \"/run/secrets/landfall\"", "password = { env = \"NOWHERE\" }");
    assert_eq!(mistakes(&text, &[]).len(), 2);
    let (found, _) = made(None, &text, [], &read, true).unwrap();
    assert_eq!(found.http.listen.to_string(), "127.0.0.1:9187");
    let unreadable = |_: &Path| Err(io::Error::from(io::ErrorKind::PermissionDenied));
    let (start, tail) = text.split_once("url = ").unwrap();
    let (_, rest) = tail.split_once('\n').unwrap();
    for url in ["{ env = \"NOWHERE\" }", "{ file = \"/etc/landfall/url\" }"] {
        let text = format!("{start}url = {url}\n{rest}");
        assert!(made(None, &text, [], &unreadable, false).is_err(), "{url}");
        let (found, _) = made(None, &text, [], &unreadable, true).unwrap();
        assert_eq!(found.http.listen.to_string(), "127.0.0.1:9187");
    }
    // What is no secret is told as what it is.
    let text = text.replacen("region = \"eu-west-1\"", "region = { file = \"/etc/region\" }", 1);
    let found = made(None, &text, [], &unreadable, true).unwrap_err();
    assert!(found.all.iter().any(|it| it.problem.starts_with("read /etc/region")), "{found}");
}

/// The section and the key of a setting, in a file that is right but for what is put there.
fn with_setting(path: &str, value: &str) -> String {
    let (section, key) = path.rsplit_once('.').unwrap();
    let title = match section {
        "link[]" => "[[link]]".to_owned(),
        section => format!("[{section}]"),
    };
    let line = format!("{key} = {value}\n");
    if WHOLE.contains(&title) {
        WHOLE.replace(&title, &format!("{title}\n{line}"))
    } else {
        format!("{WHOLE}{title}\n{line}")
    }
}

#[test]
fn the_ranges_of_the_manual_are_those_that_mistakes_tell() {
    let mut seen = 0;
    for setting in SETTINGS {
        let form = setting.form.strip_prefix("duration, ").or_else(|| setting.form.strip_prefix("size, "));
        let (form, values) = match form {
            Some(form) if setting.form.starts_with("duration") => (form, ["\"10000d\"", "1000000"]),
            Some(form) => (form, ["\"1B\"", "-1"]),
            None => (setting.form, ["0", "5000000"]),
        };
        let form = form.split(',').next().unwrap();
        let Some((from, to)) =
            form.split_once(" to ").filter(|(from, to)| !from.contains(' ') && !to.contains(' '))
        else {
            continue;
        };
        let expected = format!(" from {from} to {to}");
        let found = mistakes(&with_setting(setting.path, values[0]), &[]);
        assert!(found.len() == 1 && found[0].contains(&expected), "{}: {expected}: {found:?}", setting.path);
        // A number without its unit is told as what it may have been meant.
        let found = mistakes(&with_setting(setting.path, values[1]), &[]);
        let either = if setting.form.starts_with("duration") { "as in \"" } else { &expected };
        assert!(found.len() == 1 && found[0].contains(either), "{}: {either}: {found:?}", setting.path);
        seen += 1;
    }
    assert!(seen >= 16, "{seen}");
}

#[test]
fn a_file_that_cannot_be_read_is_told_by_its_whole_path_with_what_names_another() {
    let found = Settings::load(Path::new("no/such.toml"), []).unwrap_err();
    assert!(found.unread);
    let fault = crate::fault::Fault::from(found);
    let path = std::env::current_dir().unwrap().join("no/such.toml");
    assert!(fault.message().starts_with(&format!("read {}: ", path.display())), "{fault}");
    assert!(fault.remedy().contains("--config"), "{fault}");
    let found = settings("", &[]).unwrap_err();
    assert!(!found.unread && crate::fault::Fault::from(found).remedy().starts_with("correct the file"));
}

#[test]
fn whoever_others_can_reach_speaks_tls_unless_told_otherwise() {
    let http = |lines: &str| format!("{WHOLE}[http]\n{lines}");
    let tls = "tls_certificate = \"/c.pem\"\ntls_key = \"/k.pem\"\n";
    for (lines, address, secured) in [
        (tls.to_owned(), "127.0.0.1:9187", true),
        (format!("listen = \"0.0.0.0:1\"\n{tls}"), "0.0.0.0:1", true),
        ("listen = \"10.0.0.1:1\"\nallow_plaintext = true\n".to_owned(), "10.0.0.1:1", false),
        ("listen = \"[::1]:1\"\n".to_owned(), "[::1]:1", false),
    ] {
        let found = settings(&http(&lines), &[]).unwrap().http;
        assert_eq!((found.listen.to_string().as_str(), found.tls.is_some()), (address, secured), "{lines}");
    }
    for lines in ["listen = \"0.0.0.0:1\"", "listen = \"[::]:1\"\nallow_plaintext = false"] {
        let found = mistakes(&http(lines), &[]);
        assert!(found[0].starts_with("http.listen: ") && found[0].contains("tls_certificate"), "{found:?}");
    }
    for (given, missing) in [("tls_certificate", "tls_key"), ("tls_key", "tls_certificate")] {
        let found = mistakes(&http(&format!("{given} = \"/x\"")), &[]);
        assert!(found[0].starts_with(&format!("http.{missing}: missing beside {given}")), "{found:?}");
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
        (
            "[\"kafka.internal:9092\"]",
            "[\"a:1\", \"b:1\", \"a:1\"]",
            "kafka.brokers[2]: `a:1` is there already, as kafka.brokers[0]: take one of them away",
        ),
        (
            "[\"public.*\"]",
            "[\"public.*\", \"public.*\"]",
            "source.tables[1]: `public.*` is there already, as source.tables[0]: take one of them away",
        ),
        ("[source]", "retention = \"1h\"\n[source]", "kafka.retention: expected a duration from 1d to 365d"),
        (
            "[source]",
            "retention = \"400d\"\n[source]",
            "kafka.retention: expected a duration from 1d to 365d",
        ),
        (
            "[source]",
            "retention = \"400d\"\nallow_short_retention = true\n[source]",
            "kafka.retention: expected a duration from 1s to 365d",
        ),
        (
            "[source]",
            "retention = 24\n[source]",
            "kafka.retention: expected a text in quotes, as in \"24h\", found a whole number",
        ),
        (
            "[[link]]",
            "linger = 5\n[[link]]",
            "source.linger: expected a text in quotes, as in \"5ms\", found a whole number",
        ),
        (
            "[[link]]",
            "heartbeat_interval = 0.5\n[[link]]",
            "source.heartbeat_interval: expected a text in quotes, as in \"5s\", found a number",
        ),
        (
            "[[link]]",
            "max_record_bytes = [1]\n[[link]]",
            "source.max_record_bytes: expected a size from 16KiB to 8MiB, as in \"8MiB\", found a list",
        ),
        (
            "[[link]]",
            "max_record_bytes = -1\n[[link]]",
            "source.max_record_bytes: expected a size from 16KiB to 8MiB",
        ),
        ("[source]", "retention = \"24\"\n[source]", "kafka.retention: `24` is no duration"),
        (
            "[source]",
            "replication_factor = 0\n[source]",
            "kafka.replication_factor: expected a whole number from 1 to 100",
        ),
        (
            "[source]",
            "replication_factor = \"3\"\n[source]",
            "kafka.replication_factor: expected a whole number from 1 to 100, found a text",
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
        ("5432", "port", "database.url: the port is no number from 1 to 65535"),
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
        ("[[link]]", "[log]\nlevel = \"=,=\"\n[[link]]", "log.level: `=`"),
        (
            "[[link]]",
            "[log]\nlevel = \"warning\"\n[[link]]",
            "log.level: `warning` is no level; did you mean `warn`?",
        ),
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
        url = "postgres://u@h:x/d?sslmode=no"
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
        ("LANDFALL__LINK__1__FROM", "x", "link: LANDFALL__LINK__1__FROM: the file has no such [[link]]"),
        ("LANDFALL__LINK__FROM", "x", "link: LANDFALL__LINK__FROM: the file has no such [[link]]"),
        (
            "LANDFALL__LINK__0__FORM",
            "x",
            "link[0].form: unknown (set by LANDFALL__LINK__0__FORM); did you mean `from`",
        ),
        ("LANDFALL__LINK__0__BROKERS", "b", "link[0].brokers[0]: `b` is no broker"),
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
        if path.is_dir() {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        // One of them says that this comes from the environment.
        let variable = "LANDFALL__KAFKA__PROPERTIES__SASL__PASSWORD";
        let environment = [(variable, "x")];
        let environment = &environment[..usize::from(text.contains(variable))];
        settings(&text, environment).unwrap_or_else(|mistakes| panic!("{}:\n{mistakes}", path.display()));
        seen += 1;
    }
    assert!(seen >= 3, "{seen}");
}

/// A path as the manual has it: links without their numbers, quotes and the names of properties left out.
fn general(path: &str) -> String {
    let path = path.replace("link[0]", "link[]");
    match path.split_once(".properties") {
        Some((section, _)) => format!("{section}.properties"),
        None => path,
    }
}

#[test]
fn the_manual_names_every_setting_that_is_asked_for_and_no_other() {
    let notes = Notes::new(Places::default(), &read, &[], false);
    let root = merged(WHOLE, &[], &notes).unwrap();
    let mut root = Section::root(root, &notes);
    walk(&mut root, &read).unwrap();
    root.finish();
    let asked = notes.asked();
    let is_section = |path: &str| {
        asked
            .iter()
            .any(|other| other.starts_with(&format!("{path}.")) || other.starts_with(&format!("{path}[")))
    };
    let asked: std::collections::BTreeSet<String> =
        asked.iter().filter(|path| !is_section(path)).map(|path| general(path)).collect();
    let told: std::collections::BTreeSet<String> = SETTINGS.iter().map(|it| it.path.to_owned()).collect();
    assert_eq!(asked, told);
    assert_eq!(SETTINGS.len(), told.len(), "one is there twice");
}

#[test]
fn the_defaults_of_the_manual_are_those_in_effect() {
    let (found, places) = made(Some("f"), WHOLE, [], &read, false).unwrap();
    let shown = show::effective(&found, &places);
    for setting in SETTINGS {
        let row = shown.iter().find(|row| general(&row.path) == setting.path);
        match setting.default {
            manual::Fallback::Is(default) => {
                let row = row.unwrap_or_else(|| panic!("{} is not shown", setting.path));
                assert_eq!((&*row.value, &*row.from), (default, "default"), "{}", setting.path);
            }
            manual::Fallback::Follows(_) => assert_eq!(row.unwrap().from, "default", "{}", setting.path),
            manual::Fallback::Required => assert!(row.unwrap().from.starts_with("f:"), "{}", setting.path),
            // The password is given in this file, by another setting.
            manual::Fallback::Absent => {
                assert!(row.is_none_or(|row| row.path == "database.password"), "{}", setting.path);
            }
        }
    }
}

#[test]
fn what_is_in_effect_is_shown_with_its_place_and_without_secrets() {
    let text = format!(
        "{}\n[link.properties]\n\"sasl.password\" = \"hush1\"\nsasl.username = {{ env = \"KAFKA_USER\" }}\n\
         sasl.mechanism = \"plain\"\nsecurity.protocol = \"sasl_ssl\"\n",
        WHOLE.trim_end()
    );
    let environment = [
        ("KAFKA_USER", "hush2"),
        ("LANDFALL__LINK__0__BATCH_CHANGES", "7"),
        ("LANDFALL__KAFKA__REPLICATION_FACTOR__FILE", "/factor"),
        ("LANDFALL__LOG__LEVEL", "warn"),
    ];
    let environment = environment.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let files = |path: &Path| match path.to_str() {
        Some("/factor") => Ok("5\n".to_owned()),
        _ => read(path),
    };
    let (found, places) = made(Some("f.toml"), &text, environment, &files, false).unwrap();
    assert_eq!(found.links[0].properties.0[2].1.reveal(), "hush2");
    let shown = show::effective(&found, &places);
    let row = |path: &str| {
        let row = shown.iter().find(|row| row.path == path).unwrap_or_else(|| panic!("{path} is not shown"));
        (row.value.clone(), row.from.clone())
    };
    let row_is = |path: &str, value: &str, from: &str| {
        assert_eq!(row(path), (value.to_owned(), from.to_owned()), "{path}");
    };
    row_is("region", "\"eu-west-1\"", "f.toml:2");
    row_is(
        "database.url",
        "\"postgres://landfall@db.internal:5432/shop?sslmode=verify-full&sslrootcert=system\"",
        "f.toml:4",
    );
    row_is("database.password", "\"***\"", "f.toml:5");
    row_is("kafka.replication_factor", "5", "LANDFALL__KAFKA__REPLICATION_FACTOR__FILE");
    row_is("link[0].batch_changes", "7", "LANDFALL__LINK__0__BATCH_CHANGES");
    row_is("link[0].properties.\"sasl.password\"", "\"***\"", "f.toml:14");
    row_is("source.slot", "\"landfall_eu_west_1_shop\"", "default");
    row_is("log.level", "\"warn\"", "LANDFALL__LOG__LEVEL");
    let printed = serde_json::to_string(&shown).unwrap();
    assert!(!printed.contains("hunter2") && !printed.contains("hush"), "{printed}");
}

#[test]
fn a_value_that_is_elsewhere_is_fetched_or_missed_by_name() {
    let with = |value: &str| WHOLE.replace("tables = [\"public.*\"]", &format!("tables = {value}"));
    let environment = [("TABLES", "a.b, c.d")];
    let tables = |text: &str| {
        settings(text, &environment)
            .map(|it| it.source.unwrap().scope.to_string())
            .map_err(|it| it.to_string())
    };
    assert_eq!(tables(&with("{ env = \"TABLES\" }")).unwrap(), "a.b, c.d");
    assert_eq!(
        tables(&with("[\"x.y\", { file = \"/empty\" }]")).unwrap_err(),
        "line 9: source.tables[1]: `` is no table pattern: expected schema.table, as in public.* or sales.order_*"
    );
    let missed = tables(&with("{ env = \"NOTHING\" }")).unwrap_err();
    assert_eq!(missed, "line 9: source.tables: the environment has no variable NOTHING");
    let missed = tables(&with("{ file = \"/nothing\" }")).unwrap_err();
    assert!(missed.starts_with("line 9: source.tables: read /nothing: "), "{missed}");
}

#[test]
fn each_mistake_has_its_line_or_its_variable() {
    let text =
        WHOLE.replace("kafka.internal:9092", "kafka").replace("from = \"us-east-1\"", "form = \"us-east-1\"");
    let found = settings(&text, &[("LANDFALL__LOG__LEVEL", "=,="), ("LANDFALL__LINK__0__BATCH_BYTES", "1B")]);
    let places: Vec<_> =
        found.unwrap_err().all.into_iter().map(|it| (it.path, it.place.unwrap_or_default())).collect();
    for (path, place) in [
        ("kafka.brokers[0]", "line 7"),
        ("link[0].batch_bytes", "LANDFALL__LINK__0__BATCH_BYTES"),
        ("link[0].form", "line 11"),
        ("log.level", "LANDFALL__LOG__LEVEL"),
    ] {
        assert!(places.contains(&(path.to_owned(), place.to_owned())), "{path} at {place}: {places:?}");
    }
}

#[test]
fn the_document_of_settings_is_the_manual() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (head, shown) = text.split_once("<!-- the settings -->\n\n").expect("the mark before the settings");
    let wanted = manual::document();
    if std::env::var_os("LANDFALL_BLESS").is_some() {
        std::fs::write(&path, format!("{head}<!-- the settings -->\n\n{}\n", wanted.trim_end())).unwrap();
    } else {
        assert_eq!(
            shown.trim_end(),
            wanted.trim_end(),
            "run this test with LANDFALL_BLESS=1, which writes it"
        );
    }
}

#[test]
fn a_text_that_is_no_toml_is_told_by_line_and_column_and_never_shown() {
    let text = WHOLE
        .replace("password_file = \"/run/secrets/landfall\"", "password = hunter2")
        .replace("[source]", "[source");
    let found = mistakes(&text, &[]);
    assert!(found.len() >= 2, "{found:#?}");
    for (told, place) in found.iter().zip(["line 5, column ", "line 8, column "]) {
        assert!(told.starts_with(&format!("TOML parse error at {place}")), "{found:#?}");
    }
    assert!(!found.concat().contains("hunter2"), "{found:#?}");
}
