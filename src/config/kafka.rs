//! `[kafka]`, and what a link says of the other region's Kafka.

use std::{io, path::Path, time::Duration};

use super::{
    DAY, SECOND, secret_of, unfit,
    walk::{Section, nearest},
};
use crate::{
    kafka::{Cluster, TopicRules},
    secret::Secret,
};

/// This region's Kafka.
#[derive(Clone, Debug)]
pub struct KafkaSettings {
    /// Where to ask first, as `host:port`.
    pub brokers: Vec<String>,
    /// How many brokers keep each record of a topic we create.
    pub replication_factor: u16,
    /// How many of them must have a record before it is acknowledged.
    pub min_insync_replicas: u16,
    /// How long a topic we create keeps its records: what a cut link can be mended within.
    pub retention: Duration,
    /// How to be let in.
    pub properties: Properties,
}

impl KafkaSettings {
    /// The cluster they name.
    pub fn cluster(&self) -> Cluster {
        Cluster { brokers: self.brokers.clone(), properties: self.properties.0.clone() }
    }

    /// What a stream's topic in it must be.
    pub fn topic_rules(&self) -> TopicRules {
        TopicRules {
            retention: self.retention,
            replication_factor: self.replication_factor.into(),
            min_insync_replicas: self.min_insync_replicas.into(),
            compacted: false,
        }
    }
}

/// Settings of the Kafka library that say how to be let in. None of them is ever printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties(pub Vec<(String, Secret)>);

/// What of them decides which others are used.
const PROTOCOL: &str = "security.protocol";
const USER: &str = "sasl.username";
const PASSWORD: &str = "sasl.password";

/// The values of `security.protocol` that use `sasl.*`, and those that use `ssl.*`.
const SASL: &str = "sasl_ssl or sasl_plaintext";
const TLS: &str = "ssl or sasl_ssl";

/// What may be passed through: how a connection is protected and who we are. Everything else is
/// Landfall's to set, since its promises depend on it.
const ALLOWED: &[&str] = &[
    "security.protocol",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.password",
    "sasl.username",
    "ssl.ca.location",
    "ssl.ca.pem",
    "ssl.certificate.location",
    "ssl.certificate.pem",
    "ssl.cipher.suites",
    "ssl.crl.location",
    "ssl.curves.list",
    "ssl.endpoint.identification.algorithm",
    "ssl.key.location",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.location",
    "ssl.keystore.password",
    "ssl.sigalgs.list",
];

/// What some of them may be.
const WORDS: &[(&str, &[&str])] = &[
    ("security.protocol", &["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"]),
    ("sasl.mechanism", MECHANISMS),
    ("sasl.mechanisms", MECHANISMS),
    ("ssl.endpoint.identification.algorithm", &["https", "none"]),
];

/// Those the library has without Kerberos and without an HTTP client.
const MECHANISMS: &[&str] = &["plain", "scram-sha-256", "scram-sha-512"];

pub(super) fn walk(
    mut section: Section<'_>,
    read: &dyn Fn(&Path) -> io::Result<String>,
) -> Option<KafkaSettings> {
    section.require("brokers", "[\"kafka.internal:9092\"]");
    let brokers = section.list("brokers", broker);
    let replication_factor = section.number("replication_factor", 1..=100).map_or(3, small);
    let insync = section.number("min_insync_replicas", 1..=100).map(small);
    if let Some(insync) = insync.filter(|insync| *insync > replication_factor) {
        section.wrong(
            "min_insync_replicas",
            format!("{insync} of {replication_factor} replicas (replication_factor) can never be in sync"),
        );
    }
    let short = section.flag("allow_short_retention").unwrap_or(false);
    let given = section.has("retention");
    let least = if short { SECOND } else { DAY };
    let retention = section.duration("retention", least..=365 * DAY);
    let properties = properties(&mut section, read);
    section.finish();
    if given && retention.is_none() {
        return None;
    }
    Some(KafkaSettings {
        brokers: brokers?,
        replication_factor,
        min_insync_replicas: insync.unwrap_or(2.min(replication_factor)),
        retention: retention.unwrap_or(DAY),
        properties,
    })
}

fn small(number: u64) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

/// `host:port`, the host in brackets where it is an IPv6 address.
pub fn broker(text: &str) -> Result<String, String> {
    let wrong = || format!("`{text}` is no broker: expected host:port, as in kafka.internal:9092");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host_fits = match bracketed {
        Some(host) => host.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        }
    };
    let port_fits = port.parse::<u16>().is_ok_and(|port| port > 0);
    if host_fits && port_fits { Ok(text.to_owned()) } else { Err(wrong()) }
}

/// The `properties` of a section, and its `sasl_password_file`.
pub(super) fn properties(
    section: &mut Section<'_>,
    read: &dyn Fn(&Path) -> io::Result<String>,
) -> Properties {
    let mut properties = Vec::new();
    let mut given = Vec::new();
    let file_given = section.has("sasl_password_file");
    let file = section.text("sasl_password_file");
    let from_file = file.and_then(|path| secret_of(section, "sasl_password_file", &path, read));
    for (path, name, text) in section.names_and_texts("properties") {
        let name = name.as_str();
        if !ALLOWED.contains(&name) {
            let near = nearest(name, ALLOWED).map(|near| format!("; did you mean \"{near}\"?"));
            let near = near.unwrap_or_else(|| {
                "; only security.protocol, sasl.* and ssl.* settings are, the rest is Landfall's to set"
                    .to_owned()
            });
            section.note_at(path, format!("not passed through{near}"));
            continue;
        }
        given.push((path.clone(), name.to_owned()));
        if let Some((_, words)) = WORDS.iter().find(|(of, _)| *of == name)
            && !words.contains(&text.to_lowercase().as_str())
        {
            section.note_at(path, format!("`{text}` is none of {}", words.join(", ")));
            continue;
        }
        let what = [(USER, "the user's name"), (PASSWORD, "the password")];
        let what = what.iter().find(|(of, _)| *of == name);
        if let Some(problem) = what.and_then(|(_, what)| unfit(&text, what)) {
            section.note_at(&path, problem);
        }
        if name == PASSWORD && from_file.is_some() {
            section.note_at(path, "given more than once: here and by sasl_password_file");
        }
        properties.push((name.to_owned(), Secret::new(text)));
    }
    hold_together(section, &properties, &given, file_given);
    properties.extend(from_file.map(|password| (PASSWORD.to_owned(), password)));
    Properties(properties)
}

/// Notes what would have no effect, since `security.protocol` does not use it, and what that needs and does not have.
/// `given` are the paths and names of what is there, be it right or not.
fn hold_together(
    section: &Section<'_>,
    properties: &[(String, Secret)],
    given: &[(String, String)],
    file_given: bool,
) {
    let is_given = |name: &str| given.iter().any(|(_, it)| it == name);
    let protocol =
        properties.iter().find(|(name, _)| name == PROTOCOL).map(|(_, it)| it.reveal().to_lowercase());
    if protocol.is_none() && is_given(PROTOCOL) {
        // What is meant is not known; that it is wrong has been said.
        return;
    }
    let (uses_sasl, uses_tls) =
        protocol.as_deref().map_or((false, false), |it| (it.starts_with("sasl"), it.ends_with("ssl")));
    let as_it_is = protocol
        .as_ref()
        .map_or_else(|| format!("without {PROTOCOL}"), |protocol| format!("with {PROTOCOL} = {protocol}"));
    let idle = |by: &str| format!("has no effect {as_it_is}: set that to {by}, or take this away");
    for (path, name) in given {
        if name.starts_with("sasl.") && !uses_sasl {
            section.note_at(path, idle(SASL));
        } else if name.starts_with("ssl.") && !uses_tls {
            section.note_at(path, idle(TLS));
        }
    }
    if file_given && !uses_sasl {
        section.wrong("sasl_password_file", idle(SASL));
    }
    if !uses_sasl {
        return;
    }
    let missing = |name: &str, mend: &str| {
        section.wrong(&format!("properties.\"{name}\""), format!("missing {as_it_is}; {mend}"));
    };
    if !is_given("sasl.mechanism") && !is_given("sasl.mechanisms") {
        missing("sasl.mechanism", &format!("it is one of {}", MECHANISMS.join(", ")));
    }
    if !is_given(USER) {
        missing(USER, "for example \"landfall\"");
    }
    if !is_given(PASSWORD) && !file_given && !section.looking() {
        let variable = section.variable(&format!("properties.{PASSWORD}"));
        missing(PASSWORD, &format!("name its file by sasl_password_file, or give it by {variable}"));
    }
}
