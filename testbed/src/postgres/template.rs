//! Initialised clusters that were never started: made once per version, kept,
//! and copied.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::home;
use crate::process::{self, User};

/// Changes when the initdb command below changes, so that old templates are
/// not taken for new ones.
const TEMPLATE_FORMAT: u32 = 1;

/// An initialised cluster that was never started, made at first use and kept
/// for all later ones.
pub(super) async fn of(major: u16, installation: &Path, user: Option<User>) -> Result<PathBuf> {
    let owner = user.map_or_else(process::own_uid, |user| user.uid);
    let version = std::fs::read_to_string(installation.join(".version"))
        .map(|version| version.trim().to_owned())
        .unwrap_or_else(|_| major.to_string());
    let name = format!("{version}-{owner}-{TEMPLATE_FORMAT}");

    // Where the home belongs to somebody else, the template goes to scratch.
    let shared = home::dir().join("templates");
    let cache = match std::fs::create_dir_all(&shared).and_then(|()| tempfile::tempfile_in(&shared)) {
        Ok(_) => shared,
        Err(_) => {
            let own = std::env::temp_dir().join(format!("landfall-testbed-templates-{owner}"));
            std::fs::create_dir_all(&own).context("make a directory for templates")?;
            own
        }
    };
    let template = cache.join(name);
    if template.join("PG_VERSION").is_file() {
        return Ok(template);
    }

    let scratch = tempfile::Builder::new()
        .prefix("initdb.")
        .tempdir_in(&cache)
        .context("make a directory for initdb")?;
    if let Some(user) = user {
        std::os::unix::fs::chown(scratch.path(), Some(user.uid), Some(user.gid))
            .context("hand the directory to Postgres")?;
    }
    let data = scratch.path().join("data");
    let mut initdb = tokio::process::Command::new(installation.join("bin/initdb"));
    initdb
        .arg("-D")
        .arg(&data)
        .args(["-U", "postgres", "-A", "trust", "-E", "UTF8"])
        .args(["--locale=C", "--no-sync", "--no-instructions"])
        .current_dir(scratch.path())
        .kill_on_drop(true);
    if let Some(user) = user {
        initdb.uid(user.uid).gid(user.gid);
    }
    run(initdb, "initdb").await?;
    // Whoever comes second finds the first one's, which is just as good.
    match std::fs::rename(&data, &template) {
        Ok(()) => Ok(template),
        Err(_) if template.join("PG_VERSION").is_file() => Ok(template),
        Err(error) => Err(error).context("put the template in place"),
    }
}

/// Copies a directory with owners and modes; the target must not exist.
pub(super) async fn copy(from: &Path, to: &Path) -> Result<()> {
    ensure!(!to.exists(), "{} exists", to.display());
    let mut command = tokio::process::Command::new("cp");
    command.args(["-a", "--reflink=auto"]).arg(from).arg(to).kill_on_drop(true);
    run(command, "copy the cluster").await
}

async fn run(mut command: tokio::process::Command, what: &str) -> Result<()> {
    let output =
        command.stdin(std::process::Stdio::null()).output().await.with_context(|| format!("run {what}"))?;
    ensure!(
        output.status.success(),
        "{what} failed ({}):\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
