//! How long what waits has room to wait: log on the server's disk, records on the brokers'. Reckoned from
//! the rates of now; nothing here asks anybody.

use super::{Finding, Kind, Severity, disk::Free, note, warning};
use crate::{config::KafkaSettings, kafka::Room, postgres::catalog::SlotFacts};

/// What an outage of a region's own Kafka may well last.
const OUTAGE_SECONDS: f64 = 3600.0;
const DAY_SECONDS: f64 = 86_400.0;
/// Below it nothing is said in hours: an idle server would be promised years.
const RATE_LEAST: f64 = 1.0;

/// Room for a slot's log: what the server allows it, what its disk has, and how fast it is written.
pub(super) fn of_log(
    limit: Option<i64>,
    slot: Option<&SlotFacts>,
    free: Option<&Free>,
    rate: f64,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let kept = slot.and_then(|slot| slot.retained_bytes).unwrap_or(0).max(0);
    let pace = format!("the {}/s of log measured now", bytes(rate));
    let lasts = |room: f64| if rate < RATE_LEAST { f64::INFINITY } else { room / rate };
    match limit {
        None => findings.push(
            note(
                Kind::SlotUnlimited,
                format!(
                    "max_slot_wal_keep_size is unlimited: while this region's Kafka is away the log stays on \
                     the server's disk, {}",
                    if rate < RATE_LEAST {
                        "which does not grow at this moment".to_owned()
                    } else {
                        format!("{} an hour at {pace}", bytes(rate * OUTAGE_SECONDS))
                    }
                ),
            )
            .mended_by("ALTER SYSTEM SET max_slot_wal_keep_size = '…';  -- what the disk can spare; then SELECT pg_reload_conf();"),
        ),
        Some(limit) => {
            let safe = slot.and_then(|slot| slot.safe_wal_bytes).unwrap_or(limit - kept).max(0);
            let seconds = lasts(safe as f64);
            if seconds < OUTAGE_SECONDS {
                // Above what is kept already: below it, the next checkpoint would take the slot.
                let wanted = (limit.max(kept) as f64 + rate * OUTAGE_SECONDS * 2.0) / (1 << 20) as f64;
                findings.push(warning(
                    Kind::WalRoom,
                    format!(
                        "max_slot_wal_keep_size leaves the slot {}, which is {} at {pace}: a longer outage of \
                         this region's Kafka loses the slot",
                        bytes(safe as f64),
                        time(seconds)
                    ),
                    format!(
                        "ALTER SYSTEM SET max_slot_wal_keep_size = '{}MB'; SELECT pg_reload_conf();",
                        wanted.ceil()
                    ),
                ));
            }
        }
    }
    match free {
        None => findings.push(note(
            Kind::WalDisk,
            "the free disk of the server is not known here: it is on another machine, or does not tell the role where its files are",
        )),
        Some(free) => {
            let room = free.bytes as f64;
            let wanted = limit.map(|limit| (limit - kept).max(0) as f64);
            let said = format!("{} are free at {}", bytes(room), free.path);
            match wanted {
                Some(wanted) if wanted > room => findings.push(warning(
                    Kind::WalDisk,
                    format!("{said}, and a slot may come to keep {} more of log there", bytes(wanted)),
                    "free disk there, or lower max_slot_wal_keep_size",
                )),
                None if lasts(room) < DAY_SECONDS => findings.push(warning(
                    Kind::WalDisk,
                    format!("{said}: {} of log at {pace}, and nothing limits what a slot keeps", time(lasts(room))),
                    "free disk there, or set max_slot_wal_keep_size",
                )),
                _ => findings.push(note(Kind::WalDisk, said)),
            }
        }
    }
    findings
}

/// How fast a stream grows, and how much of that is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Growth {
    /// Records a second, over this many seconds.
    pub(super) records: f64,
    pub(super) seconds: f64,
    /// Bytes a record, before compression.
    pub(super) record_bytes: f64,
    /// Records the topic holds.
    pub(super) held: i64,
}

/// Room for `kafka.retention` of a stream, on each broker that keeps it.
pub(super) fn of_buffer(
    topic: &str,
    growth: Option<Growth>,
    rooms: Option<&[Room]>,
    kafka: &KafkaSettings,
) -> Finding {
    let retention = kafka.retention.as_secs_f64();
    let Some(growth) = growth else {
        let evidence = format!(
            "topic {topic} holds too little to measure a rate: whether the brokers hold {} of it cannot be told yet",
            time(retention)
        );
        return note(Kind::BufferRoom, evidence);
    };
    let on_disk = rooms.and_then(|rooms| rooms.iter().filter_map(|room| room.topic_bytes).max());
    let (record_bytes, how) = match on_disk {
        Some(taken) if growth.held > 0 => (taken as f64 / growth.held as f64, "as the brokers keep it"),
        _ => (growth.record_bytes, "before compression, so at most"),
    };
    let rate = growth.records * record_bytes;
    let wanted = rate * retention;
    let said = format!(
        "{} of {topic} take {} on each of its brokers, at the {}/s of the last {} ({how})",
        time(retention),
        bytes(wanted),
        bytes(rate),
        time(growth.seconds)
    );
    let Some(rooms) = rooms.filter(|rooms| !rooms.is_empty()) else {
        let evidence =
            format!("{said}; what they have is not known here: they want TLS or a password, or do not say");
        let command = format!(
            "kafka-log-dirs.sh --bootstrap-server {} --describe --topic-list {topic}",
            kafka.brokers.join(",")
        );
        return note(Kind::BufferRoom, evidence).mended_by(command);
    };
    let keepers = rooms.iter().filter(|room| room.topic_bytes.is_some());
    let short = keepers.clone().find(|room| {
        let taken = room.topic_bytes.unwrap_or(0) as f64;
        (room.usable_bytes as f64) + taken < wanted
    });
    if let Some(room) = short {
        let (free, taken) = (bytes(room.usable_bytes as f64), bytes(room.topic_bytes.unwrap_or(0) as f64));
        return Finding::new(
            Kind::BufferRoom,
            Severity::Warning,
            format!("{said}; broker {} has {free} free and {taken} taken by it", room.broker),
        )
        .mended_by(
            "give that broker a larger disk before a link is cut for long: a full broker stops the source",
        );
    }
    let least = keepers.map(|room| room.usable_bytes).min().unwrap_or(0);
    note(Kind::BufferRoom, format!("{said}; they have {} or more free", bytes(least as f64)))
}

/// Bytes, in the largest unit that leaves a figure to read.
fn bytes(bytes: f64) -> String {
    let units = [(1_u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit as f64) {
        Some((unit, name)) => format!("{:.1} {name}", bytes / unit as f64),
        None => format!("{bytes:.0} B"),
    }
}

/// Seconds, in the largest unit that leaves a figure to read.
fn time(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 100.0 * 3600.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} d", s / DAY_SECONDS),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn found(findings: &[Finding]) -> Vec<(Kind, Severity)> {
        findings.iter().map(|finding| (finding.id, finding.severity)).collect()
    }

    #[test]
    fn a_slot_has_room_for_an_hour_of_outage() {
        use Severity::{Note, Warning};
        let free = |bytes| Free { path: "/data".into(), bytes };
        const GIB: i64 = 1 << 30;
        for (limit, free, rate, expected) in [
            (None, None, 0.0, [(Kind::SlotUnlimited, Note), (Kind::WalDisk, Note)].as_slice()),
            (None, Some(free(1 << 30)), 1e6, &[(Kind::SlotUnlimited, Note), (Kind::WalDisk, Warning)]),
            (None, Some(free(1 << 40)), 1e6, &[(Kind::SlotUnlimited, Note), (Kind::WalDisk, Note)]),
            // A gibibyte at a megabyte a second is eighteen minutes.
            (Some(GIB), Some(free(1 << 40)), 1e6, &[(Kind::WalRoom, Warning), (Kind::WalDisk, Note)]),
            (Some(10 * GIB), Some(free(1 << 40)), 1e6, &[(Kind::WalDisk, Note)]),
            (Some(10 * GIB), Some(free(1 << 30)), 0.0, &[(Kind::WalDisk, Warning)]),
        ] {
            let findings = of_log(limit, None, free.as_ref(), rate);
            assert_eq!(found(&findings), expected, "{limit:?} {free:?} {rate}");
        }
    }

    #[test]
    fn a_slot_is_given_more_room_than_it_has_taken() {
        const GIB: i64 = 1 << 30;
        let slot = |kept, safe| SlotFacts {
            plugin: Some("pgoutput".into()),
            database: Some("shop".into()),
            active_pid: None,
            restart: None,
            confirmed_flush: None,
            wal_status: Some("extended".into()),
            safe_wal_bytes: Some(safe),
            retained_bytes: Some(kept),
            wal_size_bytes: GIB,
            invalidation: None,
            synced: false,
        };
        // Two hours of a megabyte a second are 6867 MiB.
        for (limit, kept, safe, wanted) in [
            (GIB, 0, GIB, "7891MB"),
            (100 * GIB, 100 * GIB - 1, 1, "109267MB"),
            // It is over its limit, and is lost at the next checkpoint.
            (100 * GIB, 101 * GIB, 0, "110291MB"),
        ] {
            let findings = of_log(Some(limit), Some(&slot(kept, safe)), None, 1e6);
            let mend = findings[0].mend.as_deref().unwrap();
            assert!(mend.contains(&format!("'{wanted}'")), "{limit} {kept}: {mend}");
        }
    }

    #[test]
    fn a_broker_has_room_for_the_retention() {
        let kafka = KafkaSettings {
            brokers: vec!["k:1".into()],
            replication_factor: 1,
            min_insync_replicas: 1,
            retention: Duration::from_secs(86_400),
            properties: crate::config::Properties::default(),
        };
        let growth = Growth { records: 100.0, seconds: 600.0, record_bytes: 1000.0, held: 1_000_000 };
        let room = |topic_bytes, usable_bytes| Room { broker: 1, topic_bytes, usable_bytes };
        // 100 records a second of 1000 bytes are 8.6 GB a day; as kept, of 100 bytes, 864 MB.
        let kept = Some(100_000_000);
        for (growth, rooms, severity, said) in [
            (None, None, Severity::Note, "too little"),
            (Some(growth), None, Severity::Note, "8.0 GiB"),
            (Some(growth), Some(vec![room(kept, 1 << 40)]), Severity::Note, "824.0 MiB"),
            (Some(growth), Some(vec![room(kept, 500_000_000)]), Severity::Warning, "broker 1 has 476.8 MiB"),
            // What it has taken already counts.
            (Some(growth), Some(vec![room(kept, 800_000_000)]), Severity::Note, "762.9 MiB or more"),
            // A broker that does not keep it does not matter.
            (Some(growth), Some(vec![room(kept, 1 << 40), room(None, 1)]), Severity::Note, "1.0 TiB or more"),
        ] {
            let finding = of_buffer("t", growth, rooms.as_deref(), &kafka);
            assert_eq!(finding.severity, severity, "{finding:?}");
            assert!(finding.evidence.contains(said), "{said}: {finding:?}");
        }
    }
}
