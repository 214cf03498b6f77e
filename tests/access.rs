//! Proves that a daemon's Kafka may ask for TLS, a password, and leave for each operation: what
//! docs/security.md lists suffices and none of it is too much, and every refusal is told as what it is.

use std::{collections::BTreeSet, path::Path, time::Duration};

use testbed::{Authority, Daemon, Kafka, Postgres, Region, eventually};

const LANDFALL: &str = env!("CARGO_BIN_EXE_landfall");
const PATIENCE: Duration = Duration::from_secs(300);

const SOURCE: &str = "landfall-us-east-1";
const SINK: &str = "landfall-eu-west-1";
const GROUP: &str = "landfall.eu-west-1.from.us-east-1.main";
const TOPIC: &str = "landfall.us-east-1.main";

/// One operation a user is allowed: who, what, on which kind of thing, of which name.
type Leave = (String, String, String, String);

/// What docs/security.md lists, with this test's names filled in.
fn documented() -> BTreeSet<Leave> {
    let page = std::fs::read_to_string("docs/security.md").unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| source |") || line.starts_with("| link |"));
    let mut leaves = BTreeSet::new();
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let user = if cells[1] == "source" { SOURCE } else { SINK };
        let (kind, name) = cells[3].split_once(' ').unwrap();
        let name = name.trim_matches('`').replace("<region>", "us-east-1").replace("<stream>", "main");
        let name = name.replace("<here>", "eu-west-1").replace("<from>", "us-east-1");
        for operation in cells[2].split(", ") {
            leaves.insert((user.into(), operation.trim_matches('`').into(), kind.into(), name.clone()));
        }
    }
    leaves
}

/// What a road of the daemon says is missing: as a person would take it from the command it is told.
async fn asked_for(daemon: &Daemon) -> Option<Leave> {
    let stream = stream(daemon).await?;
    if stream["code"] != "LF-KAFKA-DENIED" {
        return None;
    }
    leave_in(stream["remedy"].as_str()?)
}

/// The leave that the last command in a text gives.
fn leave_in(text: &str) -> Option<Leave> {
    let last = text.rfind("--allow-principal")?;
    let words: Vec<&str> = text[last..].split([' ', ';']).collect();
    let after = |flag: &str| words.iter().position(|word| *word == flag).map(|at| words[at + 1].to_owned());
    let user = after("--allow-principal")?.strip_prefix("User:")?.to_owned();
    Some((user, after("--operation")?, "topic".into(), after("--topic")?))
}

async fn stream(daemon: &Daemon) -> Option<serde_json::Value> {
    let (_, page) = daemon.http_get("/status").await.ok()?;
    let mut status: serde_json::Value = serde_json::from_str(&page).ok()?;
    Some(status["streams"][0].take())
}

fn properties(user: &str, ca: &Path) -> String {
    format!(
        "properties.\"security.protocol\" = \"sasl_ssl\"\nproperties.\"sasl.mechanism\" = \"SCRAM-SHA-512\"\n\
         properties.\"sasl.username\" = \"{user}\"\nproperties.\"ssl.ca.location\" = \"{}\"\n",
        ca.display()
    )
}

/// A daemon's findings about its brokers: message and remedy.
async fn brokers_found(daemon: &Daemon) -> (String, String) {
    let output = daemon.command(&["check", "--json"]).await.unwrap();
    let page = String::from_utf8_lossy(&output.stdout);
    let findings: serde_json::Value = serde_json::from_str(&page).unwrap_or_else(|_| panic!("{page}"));
    let about =
        |finding: &&serde_json::Value| finding["id"].as_str().is_some_and(|id| id.ends_with("brokers"));
    let found = findings.as_array().unwrap().iter().find(about).unwrap_or_else(|| panic!("{page}"));
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    (text("evidence"), text("mend"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secured_kafka_is_worked_with_as_documented_and_its_refusals_are_told() {
    let (ours, theirs) = (Authority::new("ours").unwrap(), Authority::new("theirs").unwrap());
    let (us, eu) = tokio::try_join!(
        Region::with("us-east-1", Postgres::start(15, "us"), Kafka::start_secured(1, &ours)),
        Region::with("eu-west-1", Postgres::start(18, "eu"), Kafka::start(1)),
    )
    .unwrap();
    let admin = us.kafka.admin();
    for user in [SOURCE, SINK] {
        admin.set_password(user, &format!("{user}'s own")).await.unwrap();
    }
    for region in [&us, &eu] {
        region.execute("create table t (id int8 primary key)").await.unwrap();
    }
    let secrets = tempfile::tempdir().unwrap();
    let password_file = secrets.path().join("sasl");
    std::fs::write(&password_file, format!("{SINK}'s own\n")).unwrap();
    let password_line = format!("sasl_password_file = \"{}\"\n", password_file.display());

    let sends = |brokers: &str, more: &str| {
        let toml = us.config().source(&["public.*"]).kafka_with(brokers, more).to_toml();
        toml.replace("[source]\n", "[source]\ncheckpoint_interval = \"1s\"\n")
    };
    let takes = |brokers: &str, more: &str| eu.config().link_with("us-east-1", brokers, more).to_toml();
    let (near, far) = (us.kafka.secured(), us.kafka.remote());
    let sending = sends(&near, &properties(SOURCE, &ours.ca()));
    let taking = takes(&far, &(password_line.clone() + &properties(SINK, &ours.ca())));

    // A wrong password on either side, and the right one afterwards.
    let variable = "LANDFALL__KAFKA__PROPERTIES__SASL__PASSWORD";
    std::fs::write(&password_file, "guessed\n").unwrap();
    let mut source = us.daemon(LANDFALL, &sending).env(variable, "guessed").stopped().unwrap();
    let mut sink = eu.daemon(LANDFALL, &taking).stopped().unwrap();
    us.grant(&source).await.unwrap();
    eu.grant(&sink).await.unwrap();
    for daemon in [&mut source, &mut sink] {
        daemon.start_again().unwrap();
    }
    for daemon in [&source, &sink] {
        let told = eventually(PATIENCE, "a wrong password is told", async || {
            let Some(stream) = stream(daemon).await else { return Ok(false) };
            let remedy = stream["remedy"].as_str().unwrap_or_default();
            Ok(stream["code"] == "LF-KAFKA-REFUSED" && remedy.contains("sasl.username"))
        });
        told.await.unwrap_or_else(|error| panic!("{error}\n{}", daemon.log_tail()));
    }
    std::fs::write(&password_file, format!("{SINK}'s own\n")).unwrap();
    source.set_env(variable, &format!("{SOURCE}'s own"));
    for daemon in [&mut source, &mut sink] {
        // Not asked: one that waits for a broker's answer takes seconds to end.
        daemon.kill9().unwrap();
        daemon.start_again().unwrap();
    }

    // Who the brokers are: not signed by whom we trust, certified for another name, not speaking TLS.
    let by_address = |brokers: &str| brokers.replace("localhost", "127.0.0.1");
    let strange = |user: &str| properties(user, &theirs.ca());
    let known = |user: &str| properties(user, &ours.ca());
    let mut asked = Vec::new();
    for (source_toml, sink_toml, code, says) in [
        (
            sends(&near, &strange(SOURCE)),
            takes(&far, &(password_line.clone() + &strange(SINK))),
            "LF-KAFKA-REFUSED",
            "ssl.ca.location",
        ),
        (
            sends(&by_address(&near), &known(SOURCE)),
            takes(&by_address(&far), &(password_line.clone() + &known(SINK))),
            "LF-KAFKA-REFUSED",
            "subjectAltName",
        ),
        (sends(&near, ""), takes(&far, ""), "LF-KAFKA-UNREACHABLE", "security.protocol"),
    ] {
        for (region, toml, user) in [(&us, source_toml, SOURCE), (&eu, sink_toml, SINK)] {
            let mut daemon = region.daemon(LANDFALL, &toml);
            // The other has it from its file; and one that nothing would use is refused.
            if user == SOURCE && toml.contains("sasl_ssl") {
                daemon = daemon.env(variable, &format!("{user}'s own"));
            }
            asked.push(async move {
                let daemon = daemon.stopped().unwrap();
                let mut found = brokers_found(&daemon).await;
                // On a busy machine a look may end before the reason comes; so may a person's, who looks again.
                for _ in 0..10 {
                    if found.0.contains(code) && found.1.contains(says) {
                        break;
                    }
                    found = brokers_found(&daemon).await;
                }
                (found, code, says, user)
            });
        }
    }
    let refusals = futures_util::future::join_all(asked);

    // Nothing is allowed; each operation is allowed once it is asked for, until a row is across.
    let allowed = std::cell::RefCell::new(BTreeSet::new());
    let across = eventually(PATIENCE, "what is told leads to a row across", async || {
        for daemon in [&source, &sink] {
            let Some(leave) = asked_for(daemon).await else { continue };
            // Noted once it is allowed: what failed on the way is done again.
            if !allowed.borrow().contains(&leave) {
                admin.allow(&leave.0, &leave.1, &leave.2, &leave.3).await?;
                allowed.borrow_mut().insert(leave);
            }
        }
        let live = "select count(*)::text from landfall.stream where live";
        if us.postgres.query_text("shop", live).await.ok().flatten().as_deref() == Some("1") {
            us.execute("insert into t values (1) on conflict do nothing").await?;
        }
        let arrived = eu.postgres.query_text("shop", "select count(*)::text from t").await?;
        let running = stream(&source).await.is_some_and(|stream| stream["state"] == "running");
        // The first checkpoint comes a second later: to be written, it is asked for last.
        let checkpoints = admin.end_offset("landfall.us-east-1.state", 0).await.unwrap_or(0);
        Ok(arrived.as_deref() == Some("1") && running && checkpoints > 0)
    });
    let (across, refusals) = tokio::join!(across, refusals);
    for ((evidence, mend), code, says, user) in refusals {
        assert!(evidence.contains(code) && mend.contains(says), "{user}, {says}: {evidence}\n{mend}");
    }
    if let Err(error) = across {
        panic!("{error}: {allowed:#?}\n{}\n{}", source.log_tail(), sink.log_tail());
    }
    // The group's offset is for people; it is asked for in the log only, and nothing waits for it.
    assert_eq!(admin.group_offset(GROUP, TOPIC).await.unwrap(), None);
    admin.allow(SINK, "Read", "group", GROUP).await.unwrap();
    allowed.borrow_mut().insert((SINK.into(), "Read".into(), "group".into(), GROUP.into()));
    eventually(PATIENCE, "the group's offset is published", async || {
        Ok(admin.group_offset(GROUP, TOPIC).await?.is_some())
    })
    .await
    .unwrap_or_else(|error| panic!("{error}\n{}", sink.log_tail()));
    // Another region's questions are asked for in the log, and by whoever puts them. Each time a longer wait for the
    // answer: a short one tells soon what is not allowed, and on a busy machine no answer comes within it.
    let mut patience = 2;
    eventually(PATIENCE, "what is told leads to a verification", async || {
        let log = source.log();
        let heard = log.lines().rfind(|line| line.contains("what they ask is not heard"));
        patience += 2;
        let output = sink.command(&["verify", "--patience", &patience.to_string()]).await?;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        for leave in [heard.and_then(leave_in), leave_in(&told)].into_iter().flatten() {
            if !allowed.borrow().contains(&leave) {
                admin.allow(&leave.0, &leave.1, &leave.2, &leave.3).await?;
                allowed.borrow_mut().insert(leave);
            }
        }
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.contains("GRANT SELECT") {
            us.execute("grant select on t to public").await?;
        }
        Ok(output.contains("equal: 1 tables"))
    })
    .await
    .unwrap_or_else(|error| panic!("{error}: {allowed:#?}\n{}", source.log_tail()));
    assert_eq!(*allowed.borrow(), documented(), "left: what was asked for; right: docs/security.md");
}
