//! The settings as they are in effect, secrets withheld, each with where it comes from.

use serde::Serialize;

use super::{
    KafkaSettings, LinkSettings, LogFormat, Properties, Settings, SourceSettings,
    places::Places,
    source::FORMATS,
    units::{show_duration, show_size},
    url,
};
use crate::sink::OnRefusal;

/// One setting in effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Effective {
    /// Its path, as in mistakes: `link[0].from`.
    pub path: String,
    /// What it is, as it would be written in the file; `"***"` for a secret.
    pub value: String,
    /// Where that was given: `file:line`, a variable, or `default`.
    pub from: String,
}

/// Every setting in effect, in the order of SETTINGS in `manual`. A password is shown as one, wherever it came from.
pub(super) fn effective(settings: &Settings, places: &Places) -> Vec<Effective> {
    let mut sheet = Sheet { places, prefix: String::new(), rows: Vec::new() };
    sheet.text("region", settings.region.as_str());
    sheet.prefix = "database.".to_owned();
    database(&mut sheet, settings);
    if let Some(it) = &settings.kafka {
        sheet.prefix = "kafka.".to_owned();
        kafka(&mut sheet, it);
    }
    if let Some(it) = &settings.source {
        sheet.prefix = "source.".to_owned();
        source(&mut sheet, it);
    }
    for (at, it) in settings.links.iter().enumerate() {
        sheet.prefix = format!("link[{at}].");
        link(&mut sheet, it);
    }
    sheet.prefix = String::new();
    sheet.text("http.listen", &settings.http.listen.to_string());
    if let Some(tls) = &settings.http.tls {
        sheet.text("http.tls_certificate", &tls.certificate.display().to_string());
        sheet.text("http.tls_key", &tls.key.display().to_string());
    }
    let open = settings.http.tls.is_none() && !settings.http.listen.ip().is_loopback();
    sheet.row("http.allow_plaintext", open.to_string());
    if let Some(lag) = settings.ready.max_lag {
        sheet.text("ready.max_lag", &show_duration(lag));
    }
    let format = match settings.log.format {
        LogFormat::Auto => "auto",
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    sheet.text("log.format", format);
    sheet.text("log.level", &settings.log.level);
    sheet.rows
}

struct Sheet<'a> {
    places: &'a Places,
    prefix: String,
    rows: Vec<Effective>,
}

impl Sheet<'_> {
    fn row(&mut self, key: &str, value: String) {
        let path = format!("{}{key}", self.prefix);
        let from = self.places.given(&path).unwrap_or_else(|| "default".to_owned());
        self.rows.push(Effective { path, value, from });
    }

    fn text(&mut self, key: &str, text: &str) {
        self.row(key, quoted(text));
    }

    fn list<'t>(&mut self, key: &str, texts: impl Iterator<Item = &'t str>) {
        let texts: Vec<String> = texts.map(quoted).collect();
        self.row(key, format!("[{}]", texts.join(", ")));
    }

    fn properties(&mut self, properties: &Properties) {
        for (name, _) in &properties.0 {
            let path = format!("{}properties.\"{name}\"", self.prefix);
            let file = format!("{}sasl_password_file", self.prefix);
            let given = [path.as_str(), &file].into_iter().find_map(|path| self.places.given(path));
            let from = given.unwrap_or_else(|| "default".to_owned());
            self.rows.push(Effective { path, value: quoted("***"), from });
        }
    }
}

/// A basic TOML string: JSON's escapes are a subset of TOML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn database(sheet: &mut Sheet<'_>, settings: &Settings) {
    let it = &settings.database;
    sheet.text("url", &url::url(it));
    if it.password.is_empty() {
        return;
    }
    let given =
        ["password", "password_file", "url"].map(|key| sheet.places.given(&format!("database.{key}")));
    let from = given.into_iter().flatten().next().unwrap_or_else(|| "default".to_owned());
    sheet.rows.push(Effective { path: "database.password".to_owned(), value: quoted("***"), from });
}

fn kafka(sheet: &mut Sheet<'_>, it: &KafkaSettings) {
    sheet.list("brokers", it.brokers.iter().map(String::as_str));
    sheet.row("replication_factor", it.replication_factor.to_string());
    sheet.row("min_insync_replicas", it.min_insync_replicas.to_string());
    sheet.text("retention", &show_duration(it.retention));
    sheet.row("allow_short_retention", (it.retention < super::DAY).to_string());
    sheet.properties(&it.properties);
}

fn source(sheet: &mut Sheet<'_>, it: &SourceSettings) {
    sheet.list("tables", it.scope.0.iter().map(|pattern| pattern.as_str()));
    sheet.text("publication", &it.publication);
    sheet.text("slot", &it.slot);
    sheet.text("stream", &it.stream);
    sheet.text("heartbeat_interval", &show_duration(it.heartbeat_interval));
    sheet.text("max_record_bytes", &show_size(it.max_record_bytes as u64));
    sheet.text("checkpoint_interval", &show_duration(it.checkpoint_interval));
    sheet.text("linger", &show_duration(it.linger));
    sheet.row("copy_sessions", it.copy_sessions.to_string());
    if let Some((word, _)) = FORMATS.iter().find(|(_, format)| *format == it.format) {
        sheet.text("format", word);
    }
}

fn link(sheet: &mut Sheet<'_>, it: &LinkSettings) {
    sheet.text("from", it.from.as_str());
    sheet.list("brokers", it.brokers.iter().map(String::as_str));
    sheet.text("stream", &it.stream);
    sheet.properties(&it.properties);
    sheet.text("ordering", "transaction");
    sheet.row("batch_changes", it.batch_changes.to_string());
    sheet.text("batch_bytes", &show_size(it.batch_bytes as u64));
    if let Some(bytes) = it.fetch_bytes {
        sheet.text("fetch_bytes", &show_size(bytes as u64));
    }
    sheet.text("open_transaction_timeout", &show_duration(it.open_transaction_timeout));
    sheet.text("flush_interval", &show_duration(it.flush_interval));
    let on_refusal = match it.on_refusal {
        OnRefusal::Halt => "halt",
        OnRefusal::Park => "park",
    };
    sheet.text("on_refusal", on_refusal);
    sheet.row("copy_sessions", it.copy_sessions.to_string());
    if let Some(interval) = it.verify_interval {
        sheet.text("verify_interval", &show_duration(interval));
    }
}
