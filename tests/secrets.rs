//! Proves that secrets stay where they are: a daemon and every command are given canaries for passwords, by
//! every way a password can come, everything is made to fail and then to work, and nothing that was written
//! anywhere holds one. The logs are at `trace`, the Kafka library's own included.

use std::time::Duration;

use testbed::{Authority, Daemon, Kafka, Postgres, Region, eventually, http};

const LANDFALL: &str = env!("CARGO_BIN_EXE_landfall");
const PATIENCE: Duration = Duration::from_secs(180);

/// Whatever holds this has told a secret. Each way of giving one has its own behind it.
const CANARY: &str = "kanarienvogel";

/// Commands whose output is searched. A command that shows settings belongs here.
const COMMANDS: &[&[&str]] = &[
    &["status"],
    &["status", "--json"],
    &["check"],
    &["check", "--json"],
    &["check", "--grants"],
    &["--help"],
];

/// Pages that are searched.
const PAGES: &[&str] = &["/status", "/metrics", "/health/ready", "/health/shallow"];

fn search(place: &str, text: &str) {
    let found = text.lines().find(|line| line.to_lowercase().contains(CANARY));
    assert_eq!(found, None, "{place} tells a secret");
}

/// Searches what the daemon serves, what commands say of it, and what it has written so far.
async fn search_all(daemon: &Daemon, address: std::net::SocketAddr) {
    for page in PAGES {
        if let Ok((_, text)) = http::get(address, page).await {
            search(page, &text);
        }
    }
    let outputs = COMMANDS.iter().map(async |command| (command, daemon.command(command).await.unwrap()));
    for (command, output) in futures_util::future::join_all(outputs).await {
        search(&format!("{command:?}"), &String::from_utf8_lossy(&output.stdout));
        search(&format!("{command:?} (stderr)"), &String::from_utf8_lossy(&output.stderr));
    }
    search("the log", &daemon.log());
}

/// Whether a road of the daemon shows the code.
async fn shows(address: std::net::SocketAddr, code: &str) -> bool {
    let Ok((_, page)) = http::get(address, "/status").await else { return false };
    page.contains(&format!("\"code\":\"{code}\""))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_written_anywhere() {
    let authority = Authority::new("ours").unwrap();
    let kafka = Kafka::start_secured(1, &authority);
    let region = Region::with("us-east-1", Postgres::start(18, "us"), kafka).await.unwrap();
    region.execute("create table t (id int8 primary key)").await.unwrap();
    let admin = region.kafka.admin();
    let right = |way: &str| format!("{CANARY}-{way}-right");
    admin.set_password("landfall", &right("sasl")).await.unwrap();
    for topic in ["landfall.us-east-1.main", "landfall.us-east-1.state", "landfall.ap-south-1.main"] {
        for operation in ["Read", "Write", "Create", "DescribeConfigs"] {
            admin.allow("landfall", operation, "topic", topic).await.unwrap();
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, format!("{text}\n")).unwrap();
        path.display().to_string()
    };
    let properties = format!(
        "properties.\"security.protocol\" = \"sasl_ssl\"\nproperties.\"sasl.mechanism\" = \"SCRAM-SHA-512\"\n\
         properties.\"sasl.username\" = \"landfall\"\nproperties.\"ssl.ca.location\" = \"{}\"\n",
        authority.ca().display()
    );
    let secured = region.kafka.secured();
    // Granted while the server trusts everybody; from then on it wants a password.
    let config = region.config().source(&["public.*"]);
    let first = config.clone().kafka_with(&secured, &properties).to_toml();
    let granted = region.daemon(LANDFALL, &first).env("LANDFALL__KAFKA__PROPERTIES__SASL__PASSWORD", "x");
    region.grant(&granted.stopped().unwrap()).await.unwrap();
    region.execute(&format!("alter role landfall password '{}'", right("database"))).await.unwrap();
    let hba = "host all postgres 127.0.0.1/32 trust\nhost all landfall 127.0.0.1/32 scram-sha-256\n";
    std::fs::write(region.postgres.data_dir().join("pg_hba.conf"), hba).unwrap();
    region.execute("select pg_reload_conf()").await.unwrap();

    let url = |password: &str| {
        let port = region.postgres.port();
        format!("postgres://landfall{password}@127.0.0.1:{port}/shop?sslmode=disable")
    };
    let with = |url: &str, kafka: &str, more: &str| {
        let config = config.clone().database_url(url).kafka_with(&secured, &(kafka.to_owned() + &properties));
        let link = format!("{kafka}{properties}");
        let config = config
            .link_with("ap-south-1", &secured, &link)
            .extra("[log]\nlevel = \"trace\"\nformat = \"json\"");
        config.to_toml().replace("[database]\n", &format!("[database]\n{more}"))
    };
    let sasl = |name: &str, text: &str| format!("sasl_password_file = \"{}\"\n", file(name, text));
    let wrong = format!("{CANARY}-wrong");
    let in_file = format!("password_file = \"{}\"\n", file("database", &right("database")));

    // Wrong in the url and in a file; wrong in the file and in the settings; right by the environment.
    let plain = format!("properties.\"sasl.password\" = \"{wrong}\"\n");
    let steps = [
        ("the url", with(&url(&format!(":{wrong}")), &sasl("sasl-wrong", &wrong), ""), None, "LF-DB-REFUSED"),
        ("the file", with(&url(""), &plain, &in_file), None, "LF-KAFKA-REFUSED"),
        ("the environment", with(&url(""), &sasl("sasl", &right("sasl")), ""), Some(right("database")), ""),
    ];
    let mut daemon = region.daemon(LANDFALL, "").stopped().unwrap();
    for (way, toml, environment, expected) in steps {
        daemon.set_config(&toml).unwrap();
        if let Some(password) = &environment {
            daemon.set_env("LANDFALL__DATABASE__PASSWORD", password);
        }
        daemon.start_again().unwrap();
        let reached = eventually(PATIENCE, way, async || {
            Ok(match expected {
                "" => region.kafka.end_offset("landfall.us-east-1.main").await.is_ok_and(|end| end > 5),
                expected => shows(region.http, expected).await,
            })
        });
        if let Err(error) = reached.await {
            let log = daemon.log();
            let loud = |line: &&str| !line.contains("\"TRACE\"") && !line.contains("\"DEBUG\"");
            panic!("{error}\n{}", log.lines().filter(loud).collect::<Vec<_>>().join("\n"));
        }
        search_all(&daemon, region.http).await;
        daemon.sigterm(PATIENCE).await.unwrap();
    }
    let log = daemon.log();
    assert!(log.contains("\"target\":\"librdkafka\""), "the Kafka library's own log was not searched");
    assert!(log.contains("\"tokio_postgres::"), "the database library's own log was not searched");

    // A password that is changed under a running daemon is read again from its file.
    daemon.set_config(&with(&url(""), &sasl("sasl", &right("sasl")), &in_file)).unwrap();
    daemon.remove_env("LANDFALL__DATABASE__PASSWORD");
    daemon.start_again().unwrap();
    let reader = async || {
        let reads = "select active_pid::text from pg_replication_slots where active_pid is not null";
        region.postgres.query_text("shop", reads).await
    };
    eventually(PATIENCE, "the slot is read", async || Ok(reader().await?.is_some())).await.unwrap();
    let before = reader().await.unwrap();
    let renewed = right("renewed");
    region.execute(&format!("alter role landfall password '{renewed}'")).await.unwrap();
    file("database", &renewed);
    let ends = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'landfall'";
    region.execute(ends).await.unwrap();
    eventually(PATIENCE, "it is let in again", async || {
        let now = reader().await?;
        Ok(now.is_some() && now != before)
    })
    .await
    .unwrap();
    search_all(&daemon, region.http).await;
    daemon.sigterm(PATIENCE).await.unwrap();

    // Settings that are wrong are told by their place: what stands there may be a secret.
    for (from, to) in [
        ("[database]\n", format!("[database]\npasswort = \"{wrong}\"\n")),
        ("[database]\n", format!("[database]\npassword = [\"{wrong}\"]\n")),
        ("[http]", format!("[htttp]\nx = \"{wrong}\"\n[http]")),
        ("postgres://landfall", format!("postgres://landfall:{wrong}%zz")),
        ("postgres://landfall", format!("postgres://landfall:{wrong}/1")),
        ("sasl_ssl", format!("sasl_ssl\"\nproperties.\"sasl.pasword\" = \"{wrong}")),
        ("sasl_ssl", format!("sasl_ssl\"\nproperties.\"ssl.key.pem\" = \"{wrong}")),
        ("sasl_ssl", format!("sasl_ssl\"\nproperties.\"ssl.key.password\" = [\"{wrong}\"]\n#")),
        ("[database]\n", format!("[database]\npassword = \"{wrong}\n")),
    ] {
        let text = std::fs::read_to_string(daemon.config_path()).unwrap();
        let spoiled = text.replacen(from, &to, 1);
        assert_ne!(text, spoiled);
        let other = region.daemon(LANDFALL, &spoiled).stopped().unwrap();
        for command in [&["check"] as &[&str], &["run"], &["status"]] {
            let output = tokio::time::timeout(PATIENCE, other.command(command)).await;
            let output = output.unwrap_or_else(|_| panic!("{command:?} goes on with {to}")).unwrap();
            assert_ne!(output.status.code(), Some(0), "{command:?} of {to}");
            search(&format!("{command:?} of {to}"), &String::from_utf8_lossy(&output.stdout));
            search(&format!("{command:?} of {to} (stderr)"), &String::from_utf8_lossy(&output.stderr));
        }
    }
}
