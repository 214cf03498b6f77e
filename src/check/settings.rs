//! What the settings alone give away: plain text, open doors, files that are not there. No server is asked.

use std::{fs::File, path::Path};

use super::{Finding, Kind, disk::is_here, error, note, warning};
use crate::{
    config::{Properties, Settings},
    postgres::TlsMode,
};

/// Properties of the Kafka client that name files.
const FILES: &[&str] = &[
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.crl.location",
    "ssl.key.location",
    "ssl.keystore.location",
];

pub(super) fn check(settings: &Settings) -> Vec<Finding> {
    let mut findings = of_database(settings);
    if let Some(kafka) = &settings.kafka {
        findings.extend(of_brokers("kafka", "this region's brokers", &kafka.brokers, &kafka.properties));
        if settings.source.is_some() && kafka.min_insync_replicas < 2 {
            findings.push(
                note(
                    Kind::ReplicasFew,
                    format!(
                        "a change counts as safe once {} of {} brokers has it: if that disk goes, changes go",
                        kafka.min_insync_replicas, kafka.replication_factor
                    ),
                )
                .mended_by("with three brokers: kafka.replication_factor = 3, kafka.min_insync_replicas = 2"),
            );
        }
    }
    for (at, link) in settings.links.iter().enumerate() {
        let whose = format!("the brokers of {}", link.from);
        findings.extend(of_brokers(&format!("link[{at}]"), &whose, &link.brokers, &link.properties));
    }
    if let Some(tls) = &settings.http.tls {
        findings.extend(of_file("http.tls_certificate", &tls.certificate));
        findings.extend(of_file("http.tls_key", &tls.key));
    }
    let listen = settings.http.listen;
    if !listen.ip().is_loopback() {
        findings.push(
            note(
                Kind::ListenerOpen,
                format!("http.listen is {listen}: whoever reaches it can read the status"),
            )
            .mended_by("http.listen = \"127.0.0.1:9187\", or a firewall in front of it"),
        );
    }
    findings
}

fn of_database(settings: &Settings) -> Vec<Finding> {
    let database = &settings.database;
    let mut findings = Vec::new();
    if let Some(root) = &database.tls_root {
        findings.extend(of_file("database.url (sslrootcert)", root));
    }
    if is_here(&database.host) {
        return findings;
    }
    match database.tls {
        TlsMode::Disable | TlsMode::Prefer => findings.push(warning(
            Kind::PlainText,
            format!("rows and password may travel to the database at {} in plain text", database.host),
            "sslmode=verify-full in database.url",
        )),
        TlsMode::Require => findings.push(warning(
            Kind::ServerUnproven,
            format!("the database at {} need not prove who it is (sslmode=require)", database.host),
            "sslmode=verify-full in database.url, with sslrootcert where the authority is a private one",
        )),
        TlsMode::VerifyCa | TlsMode::VerifyFull => (),
    }
    findings
}

fn of_brokers(path: &str, whose: &str, brokers: &[String], properties: &Properties) -> Vec<Finding> {
    let value = |name: &str| {
        properties.0.iter().find(|(it, _)| it == name).map(|(_, value)| value.reveal().to_lowercase())
    };
    let mut findings: Vec<Finding> = properties
        .0
        .iter()
        .filter(|(name, _)| FILES.contains(&name.as_str()))
        .filter_map(|(name, file)| {
            of_file(&format!("{path}.properties.\"{name}\""), Path::new(file.reveal()))
        })
        .collect();
    let far = brokers.iter().any(|broker| broker.rsplit_once(':').is_none_or(|(host, _)| !is_here(host)));
    let protocol = value("security.protocol").unwrap_or_else(|| "plaintext".to_owned());
    let mend = format!("{path}.properties.\"security.protocol\" = \"ssl\" or \"sasl_ssl\"");
    if far && protocol.ends_with("plaintext") {
        let evidence = format!("rows travel between here and {whose} in plain text ({protocol})");
        // Within a region that is many a company's rule; between regions, and with a password, it is not.
        findings.push(if path == "kafka" && protocol == "plaintext" {
            note(Kind::PlainText, evidence).mended_by(mend)
        } else {
            warning(Kind::PlainText, evidence, mend)
        });
    }
    let proven = value("ssl.endpoint.identification.algorithm").is_none_or(|it| it != "none");
    if far && protocol.ends_with("ssl") && !proven {
        findings.push(warning(
            Kind::ServerUnproven,
            format!("{whose} need not prove who they are (ssl.endpoint.identification.algorithm = none)"),
            format!("{path}.properties.\"ssl.endpoint.identification.algorithm\" = \"https\""),
        ));
    }
    findings
}

fn of_file(setting: &str, file: &Path) -> Option<Finding> {
    let failed = File::open(file).err()?;
    let evidence = format!("{setting}: open {}: {failed}", file.display());
    Some(error(Kind::FileMissing, evidence, Kind::FileMissing.advice()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Severity;

    fn found(url: &str, kafka: &str, link: &str, listen: &str) -> Vec<(Kind, Severity)> {
        let text = format!(
            "region = \"a\"\n[database]\nurl = \"{url}\"\n[kafka]\n{kafka}\n[source]\ntables = [\"public.*\"]\n\
             [[link]]\nfrom = \"b\"\n{link}\n[http]\nlisten = \"{listen}\"\nallow_plaintext = true"
        );
        let settings = Settings::from_parts(&text, [], &|_| unreachable!()).unwrap();
        check(&settings).iter().map(|finding| (finding.id, finding.severity)).collect()
    }

    #[test]
    fn what_travels_in_the_open_is_named() {
        use Severity::{Error, Note, Warning};
        let here = "brokers = [\"127.0.0.1:9092\"]";
        let far = "brokers = [\"k.internal:9092\"]";
        let ssl = |brokers: &str, section: &str, more: &str| {
            format!("{brokers}\n[{section}.properties]\n\"security.protocol\" = \"ssl\"\n{more}")
        };
        let local = "127.0.0.1:9187";
        let plain = "postgres://u@h/d?sslmode=disable";
        let proven = "postgres://u@h/d";
        for (url, kafka, link, listen, expected) in [
            ("postgres://u@127.0.0.1/d?sslmode=disable", here.to_owned(), here.to_owned(), local, vec![]),
            (plain, here.to_owned(), here.to_owned(), local, vec![(Kind::PlainText, Warning)]),
            (
                "postgres://u@h/d?sslmode=require",
                here.to_owned(),
                here.to_owned(),
                local,
                vec![(Kind::ServerUnproven, Warning)],
            ),
            (proven, far.to_owned(), here.to_owned(), local, vec![(Kind::PlainText, Note)]),
            (proven, here.to_owned(), far.to_owned(), local, vec![(Kind::PlainText, Warning)]),
            (proven, ssl(far, "kafka", ""), ssl(far, "link", ""), local, vec![]),
            (
                proven,
                ssl(far, "kafka", "\"ssl.endpoint.identification.algorithm\" = \"none\""),
                here.to_owned(),
                local,
                vec![(Kind::ServerUnproven, Warning)],
            ),
            (
                proven,
                here.to_owned(),
                ssl(far, "link", "\"ssl.ca.location\" = \"/nowhere/ca.pem\""),
                local,
                vec![(Kind::FileMissing, Error)],
            ),
            (
                "postgres://u@h/d?sslrootcert=/nowhere/ca.pem",
                here.to_owned(),
                here.to_owned(),
                local,
                vec![(Kind::FileMissing, Error)],
            ),
            (
                proven,
                format!("{here}\nreplication_factor = 1"),
                here.to_owned(),
                local,
                vec![(Kind::ReplicasFew, Note)],
            ),
            (proven, here.to_owned(), here.to_owned(), "0.0.0.0:9187", vec![(Kind::ListenerOpen, Note)]),
        ] {
            assert_eq!(found(url, &kafka, &link, listen), expected, "{url} {kafka} {link} {listen}");
        }
    }
}
