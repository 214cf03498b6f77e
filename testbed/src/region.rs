//! A region: a Postgres, a Kafka, and the configuration of the daemon between
//! them.
//!
//! ```text
//!   a ── postgres, kafka ══ kafka.wan() ══▶ the daemon of b
//!   the daemon of a ◀══ kafka.wan() ══ kafka, postgres ── b
//! ```

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::daemon::{self, Daemon};
use crate::{Kafka, Postgres, checksum, eventually, ports};

/// The database that the daemon of a region replicates.
pub const DATABASE: &str = "shop";

/// The role its daemon works as. It may log in; whatever else it may do was granted by [`Region::grant`].
pub const ROLE: &str = "landfall";

/// A region's servers.
#[derive(Debug)]
pub struct Region {
    /// Its name, as in `region = "…"`.
    pub name: String,
    /// Its database server, with an empty database [`DATABASE`] and the role [`ROLE`].
    pub postgres: Postgres,
    /// Its Kafka.
    pub kafka: Kafka,
    /// Where its daemon shall listen.
    pub http: SocketAddr,
}

impl Region {
    /// Starts a region's servers: this major version of Postgres, and 1 or 3
    /// brokers; 0 where it only receives.
    pub async fn start(name: &str, major: u16, brokers: usize) -> Result<Region> {
        let postgres = Postgres::start(major, name);
        Region::with(name, postgres, Kafka::start(brokers)).await
    }

    /// A region of servers with settings of their own, started together.
    pub async fn with(
        name: &str,
        postgres: impl Future<Output = Result<Postgres>>,
        kafka: impl Future<Output = Result<Kafka>>,
    ) -> Result<Region> {
        let (postgres, kafka) = tokio::try_join!(postgres, kafka)?;
        postgres.create_database(DATABASE).await?;
        postgres.execute(DATABASE, &format!("create role {ROLE} login")).await?;
        Ok(Region { name: name.to_owned(), postgres, kafka, http: ports::loopback(ports::free()?) })
    }

    /// The URL of its database, for the superuser.
    pub fn url(&self) -> String {
        self.postgres.url(DATABASE)
    }

    /// A session in its database.
    pub async fn connect(&self) -> Result<tokio_postgres::Client> {
        self.postgres.connect(DATABASE).await
    }

    /// Runs statements in its database.
    pub async fn execute(&self, sql: &str) -> Result<()> {
        self.postgres.execute(DATABASE, sql).await
    }

    /// The configuration of its daemon, to be completed.
    pub fn config(&self) -> Config<'_> {
        Config {
            region: self,
            database_url: self.postgres.url_as(ROLE, DATABASE),
            kafka: (self.kafka.local(), String::new()),
            source: None,
            packed: false,
            links: Vec::new(),
            extra: String::new(),
        }
    }

    /// A daemon of this region, listening where it should.
    pub fn daemon(&self, binary: impl AsRef<Path>, config: &str) -> daemon::Builder {
        Daemon::builder(binary, &self.name, config).http(self.http)
    }

    /// Whether its stream has begun: what was written before no link can find.
    pub async fn has_begun(&self) -> bool {
        let sql = "select bool_or(live)::text from landfall.stream";
        matches!(self.postgres.query_text(DATABASE, sql).await, Ok(Some(live)) if live == "true")
    }

    /// Waits until its stream has begun.
    ///
    /// # Errors
    /// Where `patience` is over first.
    pub async fn begun(&self, patience: Duration) -> Result<()> {
        let what = format!("the stream of {} has begun", self.name);
        eventually(patience, &what, async || Ok(self.has_begun().await)).await
    }

    /// Starts a daemon of this region, its role granted what it lacks for the tables there are.
    pub async fn start_daemon(&self, binary: impl AsRef<Path>, config: &str) -> Result<Daemon> {
        let mut daemon = self.daemon(binary, config).stopped()?;
        self.grant(&daemon).await?;
        daemon.start_again()?;
        Ok(daemon)
    }

    /// Runs as the superuser what `landfall check --grants` prints for the daemon, and requires that
    /// nothing is missing then. Again after tables were made.
    pub async fn grant(&self, daemon: &Daemon) -> Result<()> {
        let lacks = daemon.command(&["check", "--grants"]).await?;
        let sql = String::from_utf8_lossy(&lacks.stdout).into_owned();
        ensure!(
            matches!(lacks.status.code(), Some(0 | 1)),
            "check --grants ended with {}: {}",
            lacks.status,
            String::from_utf8_lossy(&lacks.stderr)
        );
        self.execute(&sql).await?;
        let left = daemon.command(&["check", "--grants"]).await?;
        ensure!(left.status.success(), "after {sql}: {}", String::from_utf8_lossy(&left.stdout));
        Ok(())
    }
}

/// A daemon's configuration in the making.
#[derive(Clone, Debug)]
pub struct Config<'a> {
    region: &'a Region,
    database_url: String,
    kafka: (String, String),
    source: Option<Vec<String>>,
    packed: bool,
    links: Vec<(String, String, String)>,
    extra: String,
}

impl Config<'_> {
    /// This region's changes to these tables go out.
    pub fn source(mut self, tables: &[&str]) -> Self {
        self.source = Some(tables.iter().map(|&table| table.to_owned()).collect());
        self
    }

    /// They go out with several in a record of the topic.
    pub fn packed(mut self) -> Self {
        self.packed = true;
        self
    }

    /// Another region's changes come in, through its WAN.
    pub fn link(self, from: &Region) -> Self {
        self.link_to(&from.name, &from.kafka.remote())
    }

    /// Changes of a region come in from these bootstrap servers.
    pub fn link_to(self, from: &str, brokers: &str) -> Self {
        self.link_with(from, brokers, "")
    }

    /// The same, with more lines of the link's own, such as how to be let in.
    pub fn link_with(mut self, from: &str, brokers: &str, toml: &str) -> Self {
        self.links.push((from.to_owned(), brokers.to_owned(), toml.to_owned()));
        self
    }

    /// Other bootstrap servers of its own Kafka, and more lines under it.
    pub fn kafka_with(mut self, brokers: &str, toml: &str) -> Self {
        self.kafka = (brokers.to_owned(), toml.to_owned());
        self
    }

    /// Another URL for the database: another user, or through a proxy.
    pub fn database_url(mut self, url: &str) -> Self {
        self.database_url = url.to_owned();
        self
    }

    /// More tables of TOML, put at the end.
    pub fn extra(mut self, toml: &str) -> Self {
        self.extra.push_str(toml);
        self.extra.push('\n');
        self
    }

    /// The text, in the shape a user writes.
    pub fn to_toml(&self) -> String {
        let kafka = &self.region.kafka;
        let mut toml = String::new();
        let mut line = |text: String| {
            // Writing to a string does not fail.
            let _ = writeln!(toml, "{text}");
        };
        line(format!("region = {}", quoted(&self.region.name)));
        line(format!("\n[database]\nurl = {}", quoted(&self.database_url)));
        if !self.kafka.0.is_empty() {
            line(format!(
                "\n[kafka]\nbrokers = {}\nreplication_factor = {}\nmin_insync_replicas = {}{}",
                list(self.kafka.0.split(',')),
                kafka.replication_factor(),
                kafka.min_insync_replicas(),
                on_lines_of_its_own(&self.kafka.1),
            ));
        }
        if let Some(tables) = &self.source {
            let tables = list(tables.iter().map(String::as_str));
            line(format!("\n[source]\ntables = {tables}"));
            if self.packed {
                line("format = \"packed\"".to_owned());
            }
        }
        for (from, brokers, more) in &self.links {
            let brokers = list(brokers.split(','));
            let more = on_lines_of_its_own(more);
            line(format!("\n[[link]]\nfrom = {}\nbrokers = {brokers}{more}", quoted(from)));
        }
        line(format!("\n[http]\nlisten = {}", quoted(&self.region.http.to_string())));
        if !self.extra.is_empty() {
            line(format!("\n{}", self.extra.trim_end()));
        }
        toml
    }
}

/// A basic TOML string. JSON's escapes are a subset of TOML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// More lines of a table, to be put behind its last one; nothing where there are none.
fn on_lines_of_its_own(toml: &str) -> String {
    match toml.trim_end() {
        "" => String::new(),
        lines => format!("\n{lines}"),
    }
}

fn list<'a>(items: impl Iterator<Item = &'a str>) -> String {
    let items: Vec<String> = items.map(quoted).collect();
    format!("[{}]", items.join(", "))
}

/// Two regions, started together.
#[derive(Debug)]
pub struct TwoRegions {
    /// The one that writes, where only one does.
    pub us: Region,
    /// The other.
    pub eu: Region,
}

impl TwoRegions {
    /// Starts `us-east-1` with 1 or 3 brokers, and `eu-west-1`, which only
    /// receives, with these major versions of Postgres.
    pub async fn start(us_major: u16, eu_major: u16, brokers: usize) -> Result<TwoRegions> {
        let (us, eu) = tokio::try_join!(
            Region::start("us-east-1", us_major, brokers),
            Region::start("eu-west-1", eu_major, 0),
        )?;
        Ok(TwoRegions { us, eu })
    }

    /// The same, where both send: a broker each.
    pub async fn start_both(us_major: u16, eu_major: u16) -> Result<TwoRegions> {
        let (us, eu) = tokio::try_join!(
            Region::start("us-east-1", us_major, 1),
            Region::start("eu-west-1", eu_major, 1),
        )?;
        Ok(TwoRegions { us, eu })
    }

    /// Puts them this far apart, in both directions.
    pub fn set_rtt(&self, rtt: Duration) {
        self.us.kafka.wan().set_rtt(rtt);
        self.eu.kafka.wan().set_rtt(rtt);
    }

    /// Cuts them off from each other.
    pub fn cut(&self) {
        self.us.kafka.wan().cut();
        self.eu.kafka.wan().cut();
    }

    /// Mends the cut.
    pub fn heal(&self) {
        self.us.kafka.wan().heal();
        self.eu.kafka.wan().heal();
    }

    /// The configuration of the first region's daemon where it only sends
    /// everything in schema `public`.
    pub fn us_sends(&self) -> String {
        self.us.config().source(&["public.*"]).to_toml()
    }

    /// The configuration of the second region's daemon where it only
    /// receives.
    pub fn eu_receives(&self) -> String {
        self.eu.config().link(&self.us).to_toml()
    }

    /// Waits until every table holds the same rows in both, by checksum.
    ///
    /// # Errors
    /// The tables that differ when `patience` is over, and what these daemons logged last.
    pub async fn equal(&self, patience: Duration, daemons: &[&Daemon]) -> Result<()> {
        let (us, eu) = (self.us.connect().await?, self.eu.connect().await?);
        let differences = async || {
            let (us, eu) = (checksum::database(&us).await?, checksum::database(&eu).await?);
            anyhow::Ok(checksum::differences(&us, &eu))
        };
        let equal = eventually(patience, "both regions hold the same rows", async || {
            Ok(differences().await?.is_empty())
        });
        match equal.await {
            Ok(()) => Ok(()),
            Err(error) => {
                let logs: Vec<String> = daemons.iter().map(|daemon| daemon.log_tail()).collect();
                Err(error.context(format!("{:?}\n--- {}", differences().await?, logs.join("\n--- "))))
            }
        }
    }

    /// Runs statements in both databases, such as those that make tables.
    pub async fn execute_both(&self, sql: &str) -> Result<()> {
        tokio::try_join!(self.us.execute(sql), self.eu.execute(sql))?;
        Ok(())
    }
}
