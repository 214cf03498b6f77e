//! Proves that a daemon works as a plain role, and that a role which lacks something is told, by the daemon
//! itself, what exactly to run.

use std::time::Duration;

use testbed::{Daemon, TwoRegions, eventually};

const LANDFALL: &str = env!("CARGO_BIN_EXE_landfall");
const PATIENCE: Duration = Duration::from_secs(40);

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

#[tokio::test(flavor = "multi_thread")]
async fn a_role_with_nothing_is_told_step_by_step_what_to_run() {
    for (us_major, eu_major) in [(15, 18), (18, 15)] {
        let regions = TwoRegions::start(us_major, eu_major, 1).await.unwrap();
        let table = "create schema sales; create table sales.t (id int8 primary key)";
        regions.execute_both(table).await.unwrap();
        let config = regions.us.config().source(&["sales.*"]).to_toml();
        let us = regions.us.daemon(LANDFALL, &config).start().unwrap();
        let eu = regions.eu.daemon(LANDFALL, &regions.eu_receives()).start().unwrap();
        let arrived = async || {
            let sql = "select count(*)::text from sales.t";
            Ok(regions.eu.postgres.query_text("shop", sql).await?.as_deref() == Some("1"))
        };
        let begun = async || {
            let sql = "select count(*)::text from landfall.stream where live";
            regions.us.postgres.query_text("shop", sql).await.is_ok_and(|live| live.as_deref() == Some("1"))
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
            if !written.get() && begun().await {
                regions.us.execute("insert into sales.t values (1)").await?;
                written.set(true);
            }
            arrived().await
        });
        if let Err(error) = outcome.await {
            panic!("{error}: {:#?}\n{}\n{}", ran.borrow(), us.log_tail(), eu.log_tail());
        }
        // Read the log, publish, apply, write the table: each was said once.
        assert_eq!(ran.borrow().len(), 4, "{:#?}", ran.borrow());
        for daemon in [&us, &eu] {
            let check = daemon.command(&["check"]).await.unwrap();
            let page = String::from_utf8_lossy(&check.stdout).into_owned();
            assert_eq!(check.status.code(), Some(0), "{page}");
        }
    }
}
