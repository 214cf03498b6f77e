use super::*;
use crate::{change::Operation, progress::Heartbeat, roster::State, stamp::Micros};

fn metrics() -> (Arc<Roster>, Metrics) {
    let roster = Arc::new(Roster::new("eu-west-1".parse().unwrap()));
    (roster.clone(), Metrics::new(roster))
}

/// Every line of a scrape, without the label that all of them carry.
fn lines(metrics: &Metrics) -> Vec<String> {
    let region = r#"region="eu-west-1""#;
    let bare = |line: &str| {
        assert!(line.contains(region), "{line}");
        line.replace(&format!(",{region}"), "").replace(&format!("{{{region}}}"), "")
    };
    metrics.text().lines().filter(|line| !line.starts_with('#')).map(bare).collect()
}

#[test]
fn what_is_unknown_is_absent() {
    let (roster, metrics) = metrics();
    let names = lines(&metrics);
    assert!(names.iter().all(|line| line.starts_with("replication_start_time_seconds ")), "{names:?}");
    let from = "us-east-1".parse().unwrap();
    let link = roster.link(&from, "main");
    assert!(
        lines(&metrics)
            .iter()
            .all(|line| line.starts_with("replication_stream_state{")
                || line.starts_with("replication_start_"))
    );
    link.headroom_seconds.set(12.5);
    let line = r#"replication_buffer_headroom_seconds{from="us-east-1",stream="main"} 12.5"#;
    assert!(lines(&metrics).contains(&line.to_owned()));
    link.headroom_seconds.forget();
    assert!(!metrics.text().contains("headroom"));
    roster.source().see_slot(Some(0), None, std::time::Instant::now());
    assert!(lines(&metrics).contains(&"replication_slot_retained_bytes 0".to_owned()));
}

#[test]
fn head_room_ages_while_nobody_can_look() {
    let (roster, metrics) = metrics();
    let link = roster.link(&"us-east-1".parse().unwrap(), "main");
    link.headroom_seconds.set(86_400.0);
    link.headroom_looked.set(Micros(clock_seconds_ago(3600)));
    link.retention_seconds.set(86_400.0);
    let of = |name: &str| -> f64 {
        let text = metrics.text();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!((82_700.0..=82_800.0).contains(&of("replication_buffer_headroom_seconds{")));
    assert!((of("replication_buffer_retention_seconds{") - 86_400.0).abs() < 1e-9);
}

#[test]
fn lag_is_computed_when_it_is_asked_for() {
    let (roster, metrics) = metrics();
    let sent = Micros(clock_seconds_ago(5));
    roster.link(&"us-east-1".parse().unwrap(), "main").heartbeat.set(Heartbeat {
        sent,
        appended: None,
        arrived: sent,
    });
    let text = metrics.text();
    let lag = text.lines().find(|line| line.starts_with("replication_lag_seconds{")).unwrap();
    let seconds: f64 = lag.rsplit(' ').next().unwrap().parse().unwrap();
    assert!((5.0..60.0).contains(&seconds), "{lag}");
}

fn clock_seconds_ago(seconds: i64) -> i64 {
    crate::clock::now().0 - seconds * 1_000_000
}

#[test]
fn meters_add_up_by_table_and_operation() {
    let (_, metrics) = metrics();
    let mut capture = metrics.capture(&"eu-west-1".parse().unwrap(), "main");
    capture.transactions(1);
    capture.changes("public", "a", Operation::Insert, 2);
    capture.changes("public", "b", Operation::Delete, 1);
    capture.changes("public", "a", Operation::Insert, 3);
    let mut deliver = metrics.deliver(&"us-east-1".parse().unwrap(), "main");
    deliver.changes("public", "a", Operation::Update, 7);
    deliver.latency(0.0007);
    capture.read(-0.5);
    capture.appended(0.003);
    deliver.fetched(0.08);
    deliver.applied(700.0);
    for total in [1000, 1000, 1700] {
        capture.sent(total);
        deliver.received(total + 1);
    }
    metrics.conflict("insert_exists", "halt", "public.a");
    metrics.retry(Code::KafkaUnreachable);
    let mut queue = metrics.queue("capture");
    queue.fill(0.25);
    queue.blocked(std::time::Duration::from_millis(1500));
    let lines = lines(&metrics);
    for line in [
        "replication_captured_transactions_total 1",
        r#"replication_captured_changes_total{operation="insert",table="public.a"} 5"#,
        r#"replication_captured_changes_total{operation="delete",table="public.b"} 1"#,
        r#"replication_applied_changes_total{from="us-east-1",operation="update",stream="main",table="public.a"} 7"#,
        r#"replication_end_to_end_latency_seconds_bucket{from="us-east-1",stream="main",le="0.0005"} 0"#,
        r#"replication_end_to_end_latency_seconds_bucket{from="us-east-1",stream="main",le="0.001"} 1"#,
        r#"replication_end_to_end_latency_seconds_bucket{from="us-east-1",stream="main",le="900"} 1"#,
        r#"replication_stage_latency_seconds_bucket{from="eu-west-1",stage="read",stream="main",le="0.0005"} 1"#,
        r#"replication_stage_latency_seconds_sum{from="eu-west-1",stage="appended",stream="main"} 0.003"#,
        r#"replication_stage_latency_seconds_sum{from="us-east-1",stage="fetched",stream="main"} 0.08"#,
        r#"replication_stage_latency_seconds_bucket{from="us-east-1",stage="applied",stream="main",le="600"} 0"#,
        r#"replication_stage_latency_seconds_bucket{from="us-east-1",stage="applied",stream="main",le="900"} 1"#,
        "replication_bytes_sent_total 1700",
        r#"replication_bytes_received_total{from="us-east-1",stream="main"} 1701"#,
        r#"replication_conflicts_total{conflict_type="insert_exists",entity_type="public.a",resolution="halt"} 1"#,
        r#"replication_retries_total{class="LF-KAFKA-UNREACHABLE"} 1"#,
        r#"replication_queue_fill_ratio{queue="capture"} 0.25"#,
        r#"replication_backpressure_seconds_total{queue="capture"} 1.5"#,
    ] {
        assert!(lines.iter().any(|found| found == line), "missing: {line}\nin:\n{}", lines.join("\n"));
    }
}

#[test]
fn more_tables_than_can_be_named_are_still_counted() {
    let (_, metrics) = metrics();
    let mut capture = metrics.capture(&"eu-west-1".parse().unwrap(), "main");
    for table in 0..1100 {
        capture.changes("s", &format!("t{table}"), Operation::Insert, 1);
        capture.changes("s", "t0", Operation::Insert, 1);
    }
    let total: u64 = lines(&metrics)
        .iter()
        .filter(|line| line.contains("captured_changes_total"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert_eq!(total, 2200);
    assert!(lines(&metrics).iter().any(|line| line.ends_with(r#"table="(other)"} 100"#)));
}

/// The tables that a family counts by, and all that it has counted of them.
fn counted(metrics: &Metrics, family: &str, label: &str) -> HashMap<String, u64> {
    let mut tables = HashMap::new();
    for line in lines(metrics).iter().filter(|line| line.starts_with(family)) {
        let (_, table) = line.split_once(&format!("{label}=\"")).expect(line);
        let (table, value) = (table.split('"').next().unwrap(), line.rsplit(' ').next().unwrap());
        *tables.entry(table.to_owned()).or_default() += value.parse::<u64>().unwrap();
    }
    tables
}

#[test]
fn so_many_tables_are_named_in_a_daemons_life_and_those_stay() {
    let (_, metrics) = metrics();
    let region = "us-east-1".parse().unwrap();
    // Two sessions, one after the other: the second meets others first, and then those the first one met.
    for range in [0..600, 600..1200, 0..600] {
        let mut capture = metrics.capture(&region, "main");
        let mut deliver = metrics.deliver(&region, "main");
        for table in range {
            let name = format!("t{table}");
            capture.changes("s", &name, Operation::Insert, 1);
            deliver.changes("s", &name, Operation::Insert, 1);
            metrics.conflict("insert_exists", "parked", &format!("s.{name}"));
        }
    }
    for (family, label) in [
        ("replication_captured_changes_total", "table"),
        ("replication_applied_changes_total", "table"),
        ("replication_conflicts_total", "entity_type"),
    ] {
        let counted = counted(&metrics, family, label);
        let of = |table: &str| counted.get(table).copied();
        assert_eq!((counted.len(), of("(other)")), (1001, Some(200)), "{family}");
        assert_eq!(
            (of("s.t0"), of("s.t599"), of("s.t999"), of("s.t1000")),
            (Some(2), Some(2), Some(1), None)
        );
    }
}

#[test]
fn a_stream_is_in_one_state() {
    let (roster, metrics) = metrics();
    roster.source().set(State::Running);
    let lines = lines(&metrics);
    let of = |state: &str, value: u8| {
        format!(
            r#"replication_stream_state{{from="eu-west-1",role="source",state="{state}",stream="main"}} {value}"#
        )
    };
    assert!(lines.contains(&of("running", 1)) && lines.contains(&of("halted", 0)), "{lines:?}");
}
