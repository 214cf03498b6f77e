//! Proves that a daemon works as a plain role, that a role which lacks something is told, by the daemon
//! itself, what exactly to run, and that both sides of a connection prove who they are.

use std::time::Duration;

use testbed::{Daemon, Region, TwoRegions, eventually, said};

const LANDFALL: &str = env!("CARGO_BIN_EXE_landfall");
const PATIENCE: Duration = Duration::from_secs(180);

/// The statements in what a road says is to be done; none while it says nothing of privileges.
async fn told(daemon: &Daemon) -> Option<String> {
    let (_, page) = daemon.http_get("/status").await.ok()?;
    let status: serde_json::Value = serde_json::from_str(&page).ok()?;
    let stream = &status["streams"][0];
    if stream["code"] != "LF-PRIVILEGE" {
        return None;
    }
    let remedy = stream["remedy"].as_str()?;
    // As a person would copy it: from the first word in capitals to the last semicolon.
    let verbs = ["ALTER", "CREATE", "GRANT"];
    let start = verbs.iter().filter_map(|verb| remedy.find(verb)).min()?;
    let end = remedy.rfind(';').map_or(remedy.len(), |at| at + 1);
    Some(remedy[start..end].to_owned())
}

/// Has every session of the role begin as a company may have it begin for applications: soon cut off, unable to write, and
/// with literals read as they were long ago.
async fn set_up_for_applications(region: &Region) {
    let mut settings = vec![
        "statement_timeout = '100ms'",
        "lock_timeout = '100ms'",
        "idle_in_transaction_session_timeout = '100ms'",
        "idle_session_timeout = '100ms'",
        "default_transaction_read_only = on",
        "standard_conforming_strings = off",
    ];
    if region.postgres.major() >= 17 {
        settings.push("transaction_timeout = '100ms'");
    }
    for setting in settings {
        region.execute(&format!("alter role landfall in database shop set {setting}")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_with_nothing_is_told_step_by_step_what_to_run() {
    for (us_major, eu_major) in [(15, 18), (18, 15)] {
        let regions = TwoRegions::start(us_major, eu_major, 1).await.unwrap();
        let table = "create schema sales; create table sales.t (id int8 primary key)";
        regions.execute_both(table).await.unwrap();
        regions.eu.execute("revoke connect on database shop from public").await.unwrap();
        for region in [&regions.us, &regions.eu] {
            set_up_for_applications(region).await;
        }
        let config = regions.us.config().source(&["sales.*"]).to_toml();
        let us = regions.us.daemon(LANDFALL, &config).start().unwrap();
        let eu = regions.eu.daemon(LANDFALL, &regions.eu_receives()).start().unwrap();
        let arrived = async || {
            let sql = "select count(*)::text from sales.t";
            Ok(regions.eu.postgres.query_text("shop", sql).await?.as_deref() == Some("1"))
        };
        let ran = std::cell::RefCell::new(Vec::new());
        let written = std::cell::Cell::new(false);
        let outcome = eventually(PATIENCE, "what is told leads to a row across", async || {
            for (daemon, region) in [(&us, &regions.us), (&eu, &regions.eu)] {
                let Some(sql) = told(daemon).await else { continue };
                if !ran.borrow().contains(&sql) {
                    region.execute(&sql).await?;
                    ran.borrow_mut().push(sql);
                }
            }
            if !written.get() && regions.us.has_begun().await {
                regions.us.execute("insert into sales.t values (1)").await?;
                written.set(true);
            }
            arrived().await
        });
        if let Err(error) = outcome.await {
            panic!("{error}: {:#?}\n{}\n{}", ran.borrow(), us.log_tail(), eu.log_tail());
        }
        // Read the log, publish, connect, apply, write the table: each was said once.
        assert_eq!(ran.borrow().len(), 5, "{:#?}", ran.borrow());
        for daemon in [&us, &eu] {
            // A heartbeat that was long on its way here is taken for a clock that is wrong, until the next one.
            let mut page = String::new();
            eventually(PATIENCE, "nothing is left to be found", async || {
                let check = daemon.command(&["check"]).await?;
                page = String::from_utf8_lossy(&check.stdout).into_owned();
                Ok(check.status.success())
            })
            .await
            .unwrap_or_else(|error| panic!("{error}\n{page}"));
        }
        // Sessions that read while a stream goes on, and one that waits longer than applications may.
        let refused = said(&us.command(&["backfill", "--to", "eu-west-1"]).await.unwrap());
        let sql =
            refused.split("run as a superuser: ").nth(1).and_then(|rest| rest.split(" then ask").next());
        regions.us.execute(sql.unwrap_or_else(|| panic!("{refused}"))).await.unwrap();
        let mut locker = regions.us.connect().await.unwrap();
        let lock = locker.transaction().await.unwrap();
        lock.batch_execute("lock table sales.t in access exclusive mode").await.unwrap();
        let filling = us.start_command(&["backfill", "--to", "eu-west-1"]).unwrap();
        eventually(PATIENCE, "the backfill waits for the table", async || {
            let sql = "select bool_or(not granted)::text from pg_locks where relation = 'sales.t'::regclass";
            Ok(regions.us.postgres.query_text("shop", sql).await?.as_deref() == Some("true"))
        })
        .await
        .unwrap_or_else(|error| panic!("{error}\n{}", us.log_tail()));
        lock.rollback().await.unwrap();
        let filled = filling.wait_with_output().await.unwrap();
        assert!(filled.status.success(), "{}\n{}\n{}", said(&filled), us.log_tail(), eu.log_tail());
        let verified = eu.command(&["verify"]).await.unwrap();
        assert!(verified.status.success(), "{}\n{}\n{}", said(&verified), us.log_tail(), eu.log_tail());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_in_the_place_of_another_is_told_whose_our_own_tables_are() {
    let regions = TwoRegions::start(15, 18, 1).await.unwrap();
    regions.execute_both("create table t (id int8 primary key)").await.unwrap();
    let us = regions.us.start_daemon(LANDFALL, &regions.us_sends()).await.unwrap();
    let mut eu = regions.eu.start_daemon(LANDFALL, &regions.eu_receives()).await.unwrap();
    regions.us.begun(PATIENCE).await.unwrap();
    let arrives = async |id: i64| {
        regions.us.execute(&format!("insert into t values ({id})")).await.unwrap();
        eventually(PATIENCE, "a row crosses", async || {
            let sql = format!("select count(*)::text from t where id = {id}");
            Ok(regions.eu.postgres.query_text("shop", &sql).await?.as_deref() == Some("1"))
        })
        .await
        .unwrap_or_else(|error| panic!("{error}\n{}", us.log_tail()));
    };
    arrives(1).await;
    eu.sigterm(PATIENCE).await.unwrap();
    // A region that held nothing of the stream would be filled anew.
    regions.us.kafka.delete_records("landfall.us-east-1.main", 1).await.unwrap();
    regions.eu.execute("create role successor login").await.unwrap();
    let url = regions.eu.postgres.url_as("successor", "shop");
    eu.set_config(&regions.eu.config().link(&regions.us).database_url(&url).to_toml()).unwrap();
    // It may use neither the schema nor, once it may, the tables in it.
    for grant in ["", "grant usage, create on schema landfall to successor"] {
        regions.eu.execute(grant).await.unwrap();
        let check = said(&eu.command(&["check"]).await.unwrap());
        assert!(check.contains("ALTER TABLE \"landfall\".\"progress\" OWNER TO \"successor\";"), "{check}");
        assert!(!check.contains("LF-GENESIS-GONE"), "{check}");
    }
    eu.start_again().unwrap();
    eventually(PATIENCE, "the daemon says it, too", async || {
        Ok(told(&eu).await.is_some_and(|sql| sql.contains("OWNER TO")))
    })
    .await
    .unwrap();
    regions.eu.grant(&eu).await.unwrap();
    arrives(2).await;
}

/// The codes the roads of a daemon show.
async fn codes(daemon: &Daemon) -> Vec<String> {
    let (_, page) = daemon.http_get("/status").await.unwrap_or_default();
    let status: serde_json::Value = serde_json::from_str(&page).unwrap_or_default();
    let streams = status["streams"].as_array().cloned().unwrap_or_default();
    streams.iter().filter_map(|stream| Some(stream["code"].as_str()?.to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn server_and_role_prove_who_they_are() {
    let regions = TwoRegions::start(15, 18, 1).await.unwrap();
    regions.execute_both("create table t (id int8 primary key)").await.unwrap();
    let mut daemons = Vec::new();
    let mut certificates = Vec::new();
    for (region, config) in [
        (&regions.us, regions.us.config().source(&["public.*"])),
        (&regions.eu, regions.eu.config().link(&regions.us)),
    ] {
        // Granted while the server still trusts everybody; from then on only with TLS and a password.
        let daemon = region.daemon(LANDFALL, &config.clone().to_toml()).stopped().unwrap();
        region.grant(&daemon).await.unwrap();
        region.execute("alter role landfall password 'right'").await.unwrap();
        let data = region.postgres.data_dir();
        let made = std::process::Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
            .args([
                "-addext",
                "subjectAltName=DNS:localhost",
                "-addext",
                "basicConstraints=critical,CA:false",
            ])
            .arg("-keyout")
            .arg(data.join("server.key"))
            .arg("-out")
            .arg(data.join("server.crt"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let owner = std::fs::metadata(data).unwrap();
        for file in ["server.key", "server.crt"] {
            use std::os::unix::fs::MetadataExt;
            std::os::unix::fs::chown(data.join(file), Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        let copy = tempfile::tempdir().unwrap();
        std::fs::copy(data.join("server.crt"), copy.path().join("ca.pem")).unwrap();
        let hba = "hostssl all landfall 127.0.0.1/32 scram-sha-256\nhost all landfall 127.0.0.1/32 reject\n\
                   host all postgres 127.0.0.1/32 trust\n";
        std::fs::write(data.join("pg_hba.conf"), hba).unwrap();
        region.postgres.set("ssl", "on").await.unwrap();
        let url = |root: &std::path::Path| {
            let port = region.postgres.port();
            format!(
                "postgres://landfall@localhost:{port}/shop?sslmode=verify-full&sslrootcert={}",
                root.display()
            )
        };
        let good = config.database_url(&url(&copy.path().join("ca.pem"))).to_toml();
        daemons.push((region.daemon(LANDFALL, &good).env("LANDFALL__DATABASE__PASSWORD", "wrong"), region));
        certificates.push(copy);
    }
    let mut started = Vec::new();
    for (daemon, region) in daemons {
        let mut daemon = daemon.start().unwrap();
        let refused = eventually(PATIENCE, "a wrong password is told", async || {
            Ok(codes(&daemon).await.iter().any(|code| code == "LF-DB-REFUSED"))
        });
        if let Err(error) = refused.await {
            panic!("{}: {error}\n{}", region.name, daemon.log_tail());
        }
        daemon.sigterm(PATIENCE).await.unwrap();
        daemon.set_env("LANDFALL__DATABASE__PASSWORD", "right");
        daemon.start_again().unwrap();
        started.push(daemon);
    }
    let arrived = eventually(PATIENCE, "a row crosses between proven parts", async || {
        if regions.us.has_begun().await {
            regions.us.execute("insert into t values (1) on conflict do nothing").await?;
        }
        let sql = "select count(*)::text from t";
        Ok(regions.eu.postgres.query_text("shop", sql).await?.as_deref() == Some("1"))
    });
    if let Err(error) = arrived.await {
        panic!("{error}\n{}\n{}", started[0].log_tail(), started[1].log_tail());
    }
    let sql = "select count(*)::text from pg_stat_ssl s join pg_stat_activity a using (pid)
                where a.usename = 'landfall' and s.ssl";
    for region in [&regions.us, &regions.eu] {
        let encrypted = region.postgres.query_text("shop", sql).await.unwrap().unwrap();
        assert_ne!(encrypted, "0", "{}", region.name);
    }
    // A certificate that somebody else made proves nothing.
    let other = certificates[1].path().join("ca.pem");
    let port = regions.us.postgres.port();
    let url = format!(
        "postgres://landfall@localhost:{port}/shop?sslmode=verify-full&sslrootcert={}",
        other.display()
    );
    let config = regions.us.config().source(&["public.*"]).database_url(&url).to_toml();
    started[0].sigterm(PATIENCE).await.unwrap();
    started[0].set_config(&config).unwrap();
    started[0].start_again().unwrap();
    eventually(PATIENCE, "a server that is not proven is refused", async || {
        Ok(codes(&started[0]).await.iter().any(|code| code == "LF-DB-REFUSED"))
    })
    .await
    .unwrap();
}
