//! A real Postgres cluster, with the means to break it.
//!
//! ```text
//! template (initdb, once per version) ──copy──▶ data ──new identity──▶ running
//!                                                 ▲                      │
//!                              restore_from ──────┘◀── stop · kill ──────┘
//! ```
//!
//! A cluster is copied from a template instead of initialised, because initdb
//! takes longer than most tests; [`identity`] then gives the copy a system
//! identifier of its own, as two clusters that share one would be taken for
//! the same server.

mod identity;
mod snapshot;
mod template;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Row};

use crate::process::{Process, Recipe, Signal, User};
use crate::{home, ports, process};

/// Crash recovery replays at most one gigabyte here; a busy machine needs a
/// while for it. After this a start is a failure and shows the log.
const START_TIMEOUT: Duration = Duration::from_secs(180);

/// A fast shutdown that takes longer hangs on somebody: the caller is told.
const STOP_TIMEOUT: Duration = Duration::from_secs(120);

/// How a cluster is shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Sessions are ended, walsenders may finish, a checkpoint is written.
    Fast,
    /// Everything is dropped; the next start recovers from the log.
    Immediate,
}

/// What a cluster shall be.
#[derive(Clone, Debug)]
pub struct Builder {
    major: u16,
    name: String,
    settings: Vec<(String, String)>,
}

impl Builder {
    /// One more line of `postgresql.conf`; a later one wins.
    pub fn setting(mut self, name: &str, value: &str) -> Builder {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Makes the cluster and starts it.
    pub async fn start(self) -> Result<Postgres> {
        let Builder { major, name, settings } = self;
        let installation = home::postgres(major)?;
        let user = User::unprivileged()?;
        let template = template::of(major, &installation, user).await?;
        let scratch = home::scratch(&format!("postgres-{name}"))?;
        let data = scratch.path().join("data");
        template::copy(&template, &data).await?;
        identity::renew(&data).with_context(|| format!("give {name} an identity of its own"))?;

        let mut conf = String::from("\n# the testbed's\n");
        for (setting, value) in
            DEFAULTS.iter().copied().chain(settings.iter().map(|(s, v)| (s.as_str(), v.as_str())))
        {
            conf.push_str(&format!("{setting} = '{}'\n", value.replace('\'', "''")));
        }
        let path = data.join("postgresql.conf");
        let mut whole = std::fs::read_to_string(&path).context("read postgresql.conf")?;
        whole.push_str(&conf);
        std::fs::write(&path, whole).context("write postgresql.conf")?;

        let mut postgres = Postgres {
            process: None,
            log: scratch.path().join("log"),
            scratch,
            data,
            installation,
            user,
            name,
            major,
            port: ports::free()?,
        };
        postgres.start_again().await?;
        Ok(postgres)
    }
}

/// What Landfall needs of a source, and what keeps a small machine quick.
/// Durability is left as a production server has it.
pub const DEFAULTS: &[(&str, &str)] = &[
    ("listen_addresses", "127.0.0.1"),
    ("unix_socket_directories", ""),
    ("wal_level", "logical"),
    ("track_commit_timestamp", "on"),
    ("max_replication_slots", "20"),
    ("max_wal_senders", "20"),
    ("max_connections", "100"),
    ("fsync", "on"),
    ("shared_buffers", "128MB"),
    ("jit", "off"),
    ("TimeZone", "UTC"),
    ("log_timezone", "UTC"),
    ("log_line_prefix", "%m [%p] %a "),
];

/// A cluster on loopback, running or stopped. Its superuser is `postgres`,
/// without a password.
///
/// The port stays the same over stops and starts. Dropped, it is shut down at
/// once and its files are removed.
#[derive(Debug)]
pub struct Postgres {
    // Declared before the files, so that it ends before they go.
    process: Option<Process>,
    log: PathBuf,
    data: PathBuf,
    installation: PathBuf,
    user: Option<User>,
    name: String,
    major: u16,
    port: u16,
    scratch: TempDir,
}

impl Postgres {
    /// Starts a new cluster of this major version with the usual settings.
    /// The name is for directories and messages.
    pub async fn start(major: u16, name: &str) -> Result<Postgres> {
        Postgres::builder(major, name).start().await
    }

    /// A new cluster with settings of its own.
    pub fn builder(major: u16, name: &str) -> Builder {
        Builder { major, name: name.to_owned(), settings: Vec::new() }
    }

    /// The major version.
    pub fn major(&self) -> u16 {
        self.major
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of one of its databases, for the superuser.
    pub fn url(&self, database: &str) -> String {
        url(self.port, database)
    }

    /// The URL of one of its databases, for another user.
    pub fn url_as(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// Where its files are.
    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    /// The process id of the postmaster while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// A new session. Its connection runs as a task until the client is
    /// dropped or the server goes.
    pub async fn connect(&self, database: &str) -> Result<Client> {
        connect(&self.url(database)).await
    }

    /// Runs statements, separated by semicolons, in a session of their own.
    pub async fn execute(&self, database: &str, sql: &str) -> Result<()> {
        self.connect(database)
            .await?
            .batch_execute(sql)
            .await
            .with_context(|| format!("execute on {}: {sql}", self.name))
    }

    /// The rows of one query, in a session of its own.
    pub async fn query(&self, database: &str, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        self.connect(database)
            .await?
            .query(sql, params)
            .await
            .with_context(|| format!("query {}: {sql}", self.name))
    }

    /// The one row of one query, in a session of its own.
    pub async fn query_one(&self, database: &str, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Row> {
        self.connect(database)
            .await?
            .query_one(sql, params)
            .await
            .with_context(|| format!("query {}: {sql}", self.name))
    }

    /// The first column of the first row as text, as `psql -At` would print
    /// it; None for NULL or no row.
    pub async fn query_text(&self, database: &str, sql: &str) -> Result<Option<String>> {
        let messages = self
            .connect(database)
            .await?
            .simple_query(sql)
            .await
            .with_context(|| format!("query {}: {sql}", self.name))?;
        Ok(messages.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        }))
    }

    /// Makes a database.
    pub async fn create_database(&self, database: &str) -> Result<()> {
        self.execute("postgres", &format!("create database \"{database}\"")).await
    }

    /// Changes a setting and has the server read it. A setting that needs a
    /// restart takes effect with [`Postgres::start_again`].
    pub async fn set(&self, setting: &str, value: &str) -> Result<()> {
        let session = self.connect("postgres").await?;
        let value = value.replace('\'', "''");
        session
            .batch_execute(&format!("alter system set {setting} = '{value}'"))
            .await
            .with_context(|| format!("set {setting} on {}", self.name))?;
        session.batch_execute("select pg_reload_conf()").await.context("reload the settings")
    }

    /// Shuts down, and says how long that took.
    pub async fn stop(&mut self, how: Shutdown) -> Result<Duration> {
        let Some(mut process) = self.process.take() else {
            bail!("{} is stopped already", self.name);
        };
        let started = Instant::now();
        process.signal(match how {
            Shutdown::Fast => Signal::Interrupt,
            Shutdown::Immediate => Signal::Quit,
        })?;
        if process.wait_exit(STOP_TIMEOUT).await.is_none() {
            bail!("{} did not stop ({how:?}) within {STOP_TIMEOUT:?}:\n{}", self.name, self.log_tail());
        }
        Ok(started.elapsed())
    }

    /// Kills the postmaster and all its children with SIGKILL, as a machine
    /// that loses power would.
    pub async fn kill(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else {
            bail!("{} is stopped already", self.name);
        };
        process.kill_tree().with_context(|| format!("kill {}", self.name))
    }

    /// Freezes the server and all its sessions: connections are taken and
    /// never answered, as by a machine that hangs.
    pub fn freeze(&mut self) -> Result<()> {
        self.process.as_mut().with_context(|| format!("{} is stopped", self.name))?.freeze_tree()
    }

    /// Thaws a frozen server.
    pub fn thaw(&mut self) -> Result<()> {
        self.process.as_mut().with_context(|| format!("{} is stopped", self.name))?.thaw_tree()
    }

    /// Starts a stopped or killed cluster on the same port and waits until it
    /// answers a query.
    pub async fn start_again(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "{} is running", self.name);
        let mut process = Recipe::new(
            &format!("postgres {}", self.name),
            &self.installation.join("bin/postgres"),
            &self.log,
        )
        .arg("-D")
        .arg(&self.data)
        // On the command line, so that a restored cluster keeps our port.
        .arg("-p")
        .arg(self.port.to_string())
        .current_dir(self.scratch.path())
        .user(self.user)
        // An immediate shutdown; SIGKILL would leave its shared memory.
        .parting(Signal::Quit)
        .spawn()?;

        let started = Instant::now();
        loop {
            // A standby answers once it is consistent.
            let error = match self.answers().await {
                Ok(()) => break,
                Err(error) => error,
            };
            if let Some(status) = process.exited() {
                bail!("{} ended at its start ({status}):\n{}", self.name, self.log_tail());
            }
            if started.elapsed() > START_TIMEOUT {
                bail!(
                    "{} does not answer after {START_TIMEOUT:?} ({error:#}):\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.process = Some(process);
        Ok(())
    }

    async fn answers(&self) -> Result<()> {
        let session = self.connect("postgres").await?;
        session.batch_execute("select 1").await?;
        Ok(())
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        process::tail(&self.log, 40)
    }
}

/// The URL of a database behind a port of ours, for instance a proxy's.
pub fn url(port: u16, database: &str) -> String {
    format!("postgres://postgres@127.0.0.1:{port}/{database}?sslmode=disable")
}

/// A new session for a URL. Its connection runs as a task until the client is
/// dropped or the server goes.
pub async fn connect(url: &str) -> Result<Client> {
    let (client, connection) =
        tokio_postgres::connect(url, NoTls).await.with_context(|| format!("connect to {url}"))?;
    // Ends with the client. Its error is also the answer to whatever query
    // was running, and is told there.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(client)
}
