//! Copies of a cluster, and what is made of them: an earlier state of the same
//! server, or a standby that follows it.
//!
//! Every copy keeps the system identifier and the timeline: that is the point
//! of it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{Postgres, template};
use crate::{eventually, home, ports};

impl Postgres {
    /// Copies the files of a stopped cluster into a new directory.
    pub async fn backup_to(&self, dir: &Path) -> Result<()> {
        ensure!(self.process.is_none(), "stop {} before its files are copied, or take a snapshot", self.name);
        template::copy(&self.data, dir).await
    }

    /// Copies the files of a running cluster into a new directory, all as they
    /// are at one moment, as a snapshot of its volume would. The server is
    /// frozen for as long as the copy takes.
    pub async fn snapshot_to(&mut self, dir: &Path) -> Result<()> {
        self.freeze()?;
        let copied = template::copy(&self.data, dir).await;
        self.thaw()?;
        copied?;
        forget_process(dir)
    }

    /// Puts back what [`Postgres::backup_to`] or [`Postgres::snapshot_to`]
    /// copied: the same server as it was then.
    pub async fn restore_from(&mut self, dir: &Path) -> Result<()> {
        ensure!(self.process.is_none(), "stop {} before its files are replaced", self.name);
        std::fs::remove_dir_all(&self.data).context("remove the files of the cluster")?;
        template::copy(dir, &self.data).await
    }

    /// Starts a standby that follows this server by asynchronous streaming. It
    /// has none of its slots.
    pub async fn standby(&mut self, name: &str) -> Result<Postgres> {
        let scratch = home::scratch(&format!("postgres-{name}"))?;
        let data = scratch.path().join("data");
        self.snapshot_to(&data).await?;
        let slots = data.join("pg_replslot");
        for slot in std::fs::read_dir(&slots).context("list the slots")? {
            std::fs::remove_dir_all(slot?.path()).context("remove a slot")?;
        }
        let conf = data.join("postgresql.conf");
        let mut whole = std::fs::read_to_string(&conf).context("read postgresql.conf")?;
        whole.push_str(&format!(
            "\n# a standby\nprimary_conninfo = 'host=127.0.0.1 port={} user=postgres \
             application_name={name}'\n",
            self.port
        ));
        std::fs::write(&conf, whole).context("write postgresql.conf")?;
        std::fs::write(data.join("standby.signal"), "").context("write standby.signal")?;

        let mut standby = Postgres {
            process: None,
            log: scratch.path().join("log"),
            scratch,
            data,
            installation: self.installation.clone(),
            user: self.user,
            name: name.to_owned(),
            major: self.major,
            port: ports::free()?,
        };
        standby.start_again().await?;
        Ok(standby)
    }

    /// Cuts a standby off from its primary, for good. What the primary commits
    /// from now on, a promotion loses.
    pub async fn stop_following(&self) -> Result<()> {
        self.set("primary_conninfo", "").await?;
        eventually(Duration::from_secs(60), "the standby receives no more", async || {
            let row = self.query_one("postgres", "select count(*) from pg_stat_wal_receiver", &[]).await?;
            Ok(row.get::<_, i64>(0) == 0)
        })
        .await
    }

    /// Makes a standby the primary, and waits until it takes writes.
    pub async fn promote(&self) -> Result<()> {
        let promoted: bool = self.query_one("postgres", "select pg_promote(true, 60)", &[]).await?.get(0);
        if !promoted {
            bail!("{} was not promoted in a minute:\n{}", self.name, self.log_tail());
        }
        Ok(())
    }

    /// Has a server that was promoted take over this one's port, so that
    /// clients find it where they found this one, which must be stopped. It is
    /// restarted for it.
    pub async fn take_over_port(&mut self, successor: &mut Postgres) -> Result<()> {
        ensure!(self.process.is_none(), "stop {} first", self.name);
        successor.stop(super::Shutdown::Fast).await?;
        std::mem::swap(&mut self.port, &mut successor.port);
        successor.start_again().await
    }
}

/// The lock file of the server that runs would keep the copy from starting.
fn forget_process(data: &Path) -> Result<()> {
    match std::fs::remove_file(data.join("postmaster.pid")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context("remove the lock file from the copy")
        }
        _ => Ok(()),
    }
}
