//! Settings: one TOML file, then the environment (`LANDFALL__SECTION__KEY`), merged by the `config`
//! crate and walked by hand, so that every mistake is told in one run, each with its path and its line.
//! `manual` says what each setting is; docs/configuration.md and `landfall explain` show it.
//!
//! What leaves here cannot be invalid. Nothing below this layer knows TOML, a default or a unit.

mod kafka;
mod level;
mod link;
mod manual;
mod mistake;
mod places;
mod show;
mod source;
mod units;
mod url;
mod walk;

#[cfg(test)]
mod tests;

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ::config::{Config, Environment, File, FileFormat, Value, ValueKind};

pub use kafka::{KafkaSettings, Properties, broker};
pub use link::LinkSettings;
pub use manual::{SETTINGS, Setting};
use mistake::Notes;
pub use mistake::{Mistake, Mistakes};
use places::Places;
pub use show::Effective;
pub use source::SourceSettings;
pub use units::{duration, size};
pub use url::{address as database_address, url as database_url};
pub use walk::nearest;
use walk::{ENVIRONMENT, PREFIX, Section};

use crate::{postgres::Address, region::Region, secret::Secret};

/// Everything a daemon is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The region it serves.
    pub region: Region,
    /// That region's database.
    pub database: Address,
    /// That region's Kafka; there where there is a source.
    pub kafka: Option<KafkaSettings>,
    /// How this region's changes go out, if they do.
    pub source: Option<SourceSettings>,
    /// How other regions' changes come in.
    pub links: Vec<LinkSettings>,
    /// Where health, metrics and status are served.
    pub http: HttpSettings,
    /// What else than a database that answers makes the region ready.
    pub ready: ReadySettings,
    /// How logs are written.
    pub log: LogSettings,
}

/// `[http]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpSettings {
    /// The address listened on.
    pub listen: SocketAddr,
    /// What it is encrypted with; none on loopback, or where plain text was asked for by name.
    pub tls: Option<HttpTls>,
}

/// The listener's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpTls {
    /// Its certificate and those between it and its authority (PEM).
    pub certificate: PathBuf,
    /// Its private key (PEM).
    pub key: PathBuf,
}

/// `[ready]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadySettings {
    /// The lag beyond which this region's readers should go elsewhere; none where stale rows are
    /// better than no region.
    pub max_lag: Option<Duration>,
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// The form of a line.
    pub format: LogFormat,
    /// A level, or a level and directives as `tracing` has them (`info,landfall::sink=debug`); known to be valid, and to
    /// have a level for everything.
    pub level: String,
}

/// The form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
    /// Text on a terminal, JSON otherwise.
    Auto,
}

impl Settings {
    /// The regions this one has links from, by name.
    pub fn peers(&self) -> Vec<String> {
        self.links.iter().map(|link| link.from.to_string()).collect()
    }

    /// Reads the file at `path`, then the environment.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn load(
        path: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Mistakes> {
        Self::load_with_places(path, environment, false).map(|(settings, _)| settings)
    }

    /// As [`Settings::load`], for whoever only looks and has no use for secrets: one that cannot be had, since its file or
    /// its variable is the daemon's own, is no mistake.
    ///
    /// # Errors
    /// Everything else that is wrong, at once.
    pub fn load_to_look(
        path: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Mistakes> {
        Self::load_with_places(path, environment, true).map(|(settings, _)| settings)
    }

    /// The settings as they are in effect, secrets withheld, each with where it comes from.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn show(
        path: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Vec<Effective>, Mistakes> {
        let (settings, places) = Self::load_with_places(path, environment, false)?;
        Ok(show::effective(&settings, &places))
    }

    /// Makes settings of a file's text and an environment; `read` reads the files they name.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn from_parts(
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
        read: &dyn Fn(&Path) -> io::Result<String>,
    ) -> Result<Self, Mistakes> {
        made(None, text, environment, read, false).map(|(settings, _)| settings)
    }

    fn load_with_places(
        path: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
        looking: bool,
    ) -> Result<(Self, Places), Mistakes> {
        let text = std::fs::read_to_string(path).map_err(|error| Mistakes::unread(path, &error))?;
        made(
            Some(&path.display().to_string()),
            &text,
            environment,
            &|path: &Path| std::fs::read_to_string(path),
            looking,
        )
    }
}

/// In the place of a secret that cannot be had, where it is not needed.
const UNREAD: &str = "unread";
/// And in the place of an address that may hold one.
const UNREAD_URL: &str = "postgres://unread@unread/unread";

fn made(
    file: Option<&str>,
    text: &str,
    environment: impl IntoIterator<Item = (String, String)>,
    read: &dyn Fn(&Path) -> io::Result<String>,
    looking: bool,
) -> Result<(Settings, Places), Mistakes> {
    let environment: Vec<(String, String)> = environment.into_iter().collect();
    let ours = environment.iter().map(|(key, _)| key).filter(|key| is_ours(key));
    let notes = Notes::new(Places::of(file, text, ours), read, &environment, looking);
    let settings = merged(text, &environment, &notes).and_then(|root| {
        let mut root = Section::root(root, &notes);
        let settings = walk(&mut root, read);
        root.finish();
        settings
    });
    notes.settle(settings)
}

/// Whether a variable is one of Landfall's settings.
fn is_ours(variable: &str) -> bool {
    variable.to_uppercase().starts_with(&format!("{PREFIX}__"))
}

/// The file, and over it what the environment says.
fn merged(text: &str, environment: &[(String, String)], notes: &Notes<'_>) -> Option<Value> {
    let listed = format!("{PREFIX}__LINK__");
    let mut variables = ::config::Map::new();
    let mut of_links = Vec::new();
    for (key, value) in environment.iter().filter(|(key, _)| is_ours(key)) {
        let upper = key.to_uppercase();
        // Merged as a table, a link from the environment would replace every link of the file.
        if let Some(rest) = upper.strip_prefix(&listed) {
            of_links.push((key, rest.to_lowercase(), value));
        } else if upper.trim_end_matches("__LINK") == PREFIX {
            notes.add("link", format!("{key}: links are written in the file; LANDFALL__LINK__0__BROKERS sets a value of the first"));
        } else {
            variables.insert(key.clone(), value.clone());
        }
    }
    let broken = places::broken(text);
    if !broken.is_empty() {
        broken.into_iter().for_each(|problem| notes.add("", problem));
        return None;
    }
    let environment =
        Environment::with_prefix(PREFIX).prefix_separator("__").separator("__").source(Some(variables));
    let file = File::from_str(&places::readable(text), FileFormat::Toml);
    let built = Config::builder().add_source(file).add_source(environment).build();
    let mut root = built.map_err(|error| notes.add("", error.to_string().trim_end())).ok()?.cache;
    for (variable, keys, value) in of_links {
        if !set_in_link(&mut root, &keys, value) {
            notes.add("link", format!("{variable}: the file has no such [[link]]; the first is number 0"));
        }
    }
    Some(root)
}

/// Sets a value of a link that the file has: `0__properties__sasl__password`.
fn set_in_link(root: &mut Value, keys: &str, value: &str) -> bool {
    let mut keys = keys.split("__");
    let at = keys.next().and_then(|at| at.parse::<usize>().ok());
    let link = match &mut root.kind {
        ValueKind::Table(root) => match root.get_mut("link").map(|links| &mut links.kind) {
            Some(ValueKind::Array(links)) => at.and_then(|at| links.get_mut(at)),
            _ => None,
        },
        _ => None,
    };
    let Some(mut place) = link else { return false };
    let origin = ENVIRONMENT.to_owned();
    for key in keys {
        if !matches!(place.kind, ValueKind::Table(_)) {
            *place = Value::new(Some(&origin), ValueKind::Table(::config::Map::new()));
        }
        let ValueKind::Table(table) = &mut place.kind else { return false };
        place = table.entry(key.to_owned()).or_insert_with(|| Value::new(Some(&origin), ValueKind::Nil));
    }
    *place = Value::new(Some(&origin), ValueKind::String(value.to_owned()));
    true
}

fn walk(root: &mut Section<'_>, read: &dyn Fn(&Path) -> io::Result<String>) -> Option<Settings> {
    root.require("region", "\"eu-west-1\"");
    let region: Option<Region> = root.parsed("region", str::parse);
    root.require_section("database", "url = \"postgres://landfall@db.internal:5432/shop\"");
    let database = root.section("database").map(|section| database(section, read));
    if root.has("source") {
        root.require_section("kafka", "brokers = [\"kafka.internal:9092\"]");
    }
    let kafka = root.section("kafka").map(|section| kafka::walk(section, read));
    let given = root.has("source");
    let source = root
        .section("source")
        .map(|section| source::walk(section, region.as_ref(), database.as_ref().and_then(Option::as_ref)));
    let links_given = root.has("link");
    let links = root.sections("link").into_iter();
    let links: Vec<_> = links.map(|section| link::walk(section, region.as_ref(), read)).collect();
    if !given && !links_given {
        root.wrong(
            "",
            "nothing to do: add [source] to send this region's changes, or [[link]] to take another's",
        );
    }
    link::refuse_duplicates(root, &links);
    let http = http(root.section_or_empty("http"));
    let ready = ready(root.section_or_empty("ready"), links_given);
    let log = log(root.section_or_empty("log"));
    Some(Settings {
        region: region?,
        database: database??,
        kafka: match kafka {
            Some(kafka) => Some(kafka?),
            None => None,
        },
        source: match source {
            Some(source) => Some(source?),
            None => None,
        },
        links: links.into_iter().collect::<Option<_>>()?,
        http: http?,
        ready,
        log,
    })
}

fn database(mut section: Section<'_>, read: &dyn Fn(&Path) -> io::Result<String>) -> Option<Address> {
    section.require("url", "\"postgres://landfall@db.internal:5432/shop\"");
    let address = section.text("url").and_then(|url| match url::address(&url) {
        Ok(address) => Some(address),
        Err(problems) => {
            problems.iter().for_each(|problem| section.wrong("url", problem));
            None
        }
    });
    let override_all = section.is_from_environment("password");
    let direct = section.text("password");
    if let Some(problem) = direct.as_deref().and_then(|text| unfit(text, "the role's password")) {
        section.wrong("password", problem);
    }
    let direct = direct.map(Secret::new);
    let mut given: Vec<&str> = Vec::new();
    if direct.is_some() {
        given.push("password");
    }
    let file = section.text("password_file");
    if file.is_some() {
        given.push("password_file");
    }
    let in_url = address.as_ref().map(|address| address.password.clone()).filter(|secret| !secret.is_empty());
    if in_url.is_some() {
        given.push("the url");
    }
    if given.len() > 1 && !override_all {
        section.wrong("password", format!("given more than once: by {}", given.join(" and by ")));
    }
    let password_file = file.as_deref().filter(|_| direct.is_none()).map(PathBuf::from);
    let password = match (direct, file) {
        (Some(direct), _) => Some(direct),
        (None, Some(path)) => secret_of(&section, "password_file", &path, read),
        (None, None) => in_url,
    };
    section.finish();
    Some(Address { password: password.unwrap_or_default(), password_file, ..address? })
}

/// What is wrong with a secret: it is one line, and not blank. `what` names it.
fn unfit(text: &str, what: &str) -> Option<String> {
    let instead = format!("put {what} there, or take the setting away where none is asked for");
    if text.is_empty() {
        Some(format!("is empty: {instead}"))
    } else if text.trim().is_empty() {
        Some(format!("holds only blanks: {instead}"))
    } else if text.contains(['\n', '\r']) {
        Some(format!("holds several lines: keep {what} alone, and at most one line's end behind it"))
    } else {
        None
    }
}

/// The secret in the file a key names.
fn secret_of(
    section: &Section<'_>,
    key: &str,
    path: &str,
    read: &dyn Fn(&Path) -> io::Result<String>,
) -> Option<Secret> {
    match read(Path::new(path)) {
        Ok(text) => {
            let secret = Secret::of_line(&text);
            if let Some(problem) = unfit(secret.reveal(), "the password") {
                section.wrong(key, format!("{path} {problem}"));
            }
            Some(secret)
        }
        Err(_) if section.looking() => Some(Secret::new(UNREAD)),
        Err(error) => {
            section.wrong(key, format!("read {path}: {error}"));
            None
        }
    }
}

fn http(mut section: Section<'_>) -> Option<HttpSettings> {
    let given = section.has("listen");
    let listen = section.parsed("listen", |text| {
        text.parse()
            .map_err(|_| format!("`{text}` is no address: expected an IP and a port, as in 127.0.0.1:9187"))
    });
    let tls = match (section.text("tls_certificate"), section.text("tls_key")) {
        (Some(certificate), Some(key)) => Some(HttpTls { certificate: certificate.into(), key: key.into() }),
        (Some(_), None) => {
            section
                .wrong("tls_key", "missing beside tls_certificate; for example \"/etc/landfall/http.key\"");
            None
        }
        (None, Some(_)) => {
            section
                .wrong("tls_certificate", "missing beside tls_key; for example \"/etc/landfall/http.pem\"");
            None
        }
        (None, None) => None,
    };
    let plaintext = section.flag("allow_plaintext").unwrap_or(false);
    let listen = match listen {
        None if given => None,
        listen => Some(listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 9187)))),
    };
    if let Some(address) = listen.filter(|address| !address.ip().is_loopback() && tls.is_none() && !plaintext)
    {
        section.wrong(
            "listen",
            format!(
                "{address} can be reached by other machines, in plain text: set tls_certificate and tls_key, \
                 listen on 127.0.0.1, or say allow_plaintext = true"
            ),
        );
    }
    section.finish();
    Some(HttpSettings { listen: listen?, tls })
}

fn ready(mut section: Section<'_>, links_given: bool) -> ReadySettings {
    if section.has("max_lag") && !links_given {
        section.wrong(
            "max_lag",
            "has no effect without a [[link]], which alone can lag: add it, or take this away",
        );
    }
    let max_lag = section.duration("max_lag", Duration::from_millis(100)..=DAY);
    section.finish();
    ReadySettings { max_lag }
}

fn log(mut section: Section<'_>) -> LogSettings {
    let words = [("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)];
    let format = section.word("format", &words).unwrap_or(LogFormat::Auto);
    let level = section.text("level").and_then(|text| match level::directives(&text) {
        Ok(level) => Some(level),
        Err(problems) => {
            problems.into_iter().for_each(|problem| section.wrong("level", problem));
            None
        }
    });
    section.finish();
    LogSettings { format, level: level.unwrap_or_else(|| "info".to_owned()) }
}

/// 24 hours.
const DAY: Duration = Duration::from_secs(86_400);

/// A second, for ranges.
const SECOND: Duration = Duration::from_secs(1);

/// A stream's name: part of topics, origins and groups, whose separators are `.` and `/`.
fn stream_name(text: &str) -> Result<String, String> {
    let fits = (1..=32).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'));
    match text {
        "state" | "control" => Err(format!("`{text}` is kept for Landfall's own topics")),
        _ if fits => Ok(text.to_owned()),
        _ => Err(format!(
            "`{text}` is no stream name: use 1 to 32 of a-z, 0-9, `-` and `_`, beginning with a letter"
        )),
    }
}
