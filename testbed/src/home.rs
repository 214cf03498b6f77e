//! Where the servers lie and where a test may write.
//!
//! `scripts/setup` fills the home, and `scripts/setup-rivals` what Landfall is
//! measured against; this module only reads it, except for the
//! cache of initialised clusters that [`crate::postgres`] keeps there. Scratch
//! directories carry the process id of the test in their name, so that those a
//! killed test left behind can be told from those in use, and removed.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Once;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

/// The directory `scripts/setup` installs into.
pub fn dir() -> PathBuf {
    std::env::var_os("LANDFALL_TESTBED_HOME")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from("/var/tmp/landfall-testbed"))
}

/// The directory with `bin/postgres` of this major version.
pub fn postgres(major: u16) -> Result<PathBuf> {
    let dir = dir().join("postgres").join(major.to_string());
    if !dir.join("bin/postgres").is_file() {
        bail!("no Postgres {major} in {}: run `scripts/setup {major}`", dir.display());
    }
    Ok(dir)
}

/// The directory with Apache Kafka's jars.
pub fn kafka_libs() -> Result<PathBuf> {
    let libs = dir().join("kafka/libs");
    if !libs.is_dir() {
        bail!("no Apache Kafka in {}: run `scripts/setup`", libs.display());
    }
    Ok(libs)
}

/// Whether the rivals were ever fetched. Where they were and something is
/// missing now, [`connect`] says so.
pub fn has_rivals() -> bool {
    dir().join("connect").is_dir()
}

/// The directory with Kafka Connect's jars in `libs` and a directory for each
/// plug-in in `plugins`.
pub fn connect() -> Result<PathBuf> {
    let dir = dir().join("connect");
    for part in [
        "libs",
        "plugins/debezium-connector-postgres",
        "plugins/debezium-connector-jdbc",
        "plugins/connect-file",
    ] {
        // The stamp is the last thing the script writes.
        if !dir.join(part).join(".version").is_file() {
            bail!("no {part} in {}: run `scripts/setup-rivals`", dir.display());
        }
    }
    Ok(dir)
}

/// A program on the search path, such as `java` or `pgbench`.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("no `{name}` on the search path: run `scripts/setup`"))
}

const SCRATCH_PREFIX: &str = "landfall-testbed.";

/// A new directory for one server, removed on drop.
///
/// Others may enter it, because Postgres runs as somebody else when the test
/// is root. With `LANDFALL_TESTBED_KEEP` set it stays behind, and says where.
pub fn scratch(name: &str) -> Result<TempDir> {
    static SWEEP: Once = Once::new();
    SWEEP.call_once(sweep);

    let mut dir = tempfile::Builder::new()
        .prefix(&format!("{SCRATCH_PREFIX}{}.{name}.", std::process::id()))
        .tempdir()
        .context("make a scratch directory")?;
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755))
        .context("open the scratch directory to the servers")?;
    if std::env::var_os("LANDFALL_TESTBED_KEEP").is_some() {
        dir.disable_cleanup(true);
        eprintln!("testbed: keeping {}", dir.path().display());
    }
    Ok(dir)
}

/// Removes scratch directories whose test is gone.
///
/// A failure here is nobody's trouble: the directory may belong to another
/// user, or another test may be sweeping it at this moment.
fn sweep() {
    if std::env::var_os("LANDFALL_TESTBED_KEEP").is_some() {
        return;
    }
    let Ok(entries) = std::fs::read_dir(std::env::temp_dir()) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(SCRATCH_PREFIX))
            .and_then(|rest| rest.split('.').next())
            .and_then(|pid| pid.parse::<u32>().ok());
        if let Some(pid) = owner
            && !Path::new(&format!("/proc/{pid}")).exists()
        {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_artifact_names_the_setup() {
        let error = postgres(9).unwrap_err().to_string();
        assert!(error.contains("scripts/setup 9"), "{error}");
        let error = program("no-such-program").unwrap_err().to_string();
        assert!(error.contains("scripts/setup"), "{error}");
    }

    #[test]
    fn a_scratch_directory_ends_with_its_owner() {
        let dir = scratch("home").unwrap();
        let path = dir.path().to_owned();
        assert!(path.is_dir());
        drop(dir);
        assert!(!path.exists());
    }
}
