//! Proves that the alerts are well-formed, that each has a case that fires and one that does not, and that
//! each tells whoever it wakes up what it found, how bad that is and where to read on.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use serde_json::Value;
use testbed::Prometheus;

const RULES: &str = "dashboards/alerts/landfall.yml";
const CASES: [&str; 2] = ["dashboards/alerts/landfall_test.yml", "dashboards/alerts/landfall_days_test.yml"];
const RUNBOOKS: &str = "docs/operating.md";

fn promtool(args: &[&str]) {
    let output = Command::new("promtool").args(args).output().expect("run promtool: see scripts/setup");
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "promtool {args:?}: {out}{error}");
}

#[test]
fn the_rules_are_rules_and_their_cases_hold() {
    promtool(&["check", "rules", RULES]);
    for cases in CASES {
        promtool(&["test", "rules", cases]);
    }
}

/// The alerts that have a case of either kind.
fn cases() -> (BTreeSet<String>, BTreeSet<String>) {
    let text = CASES.map(|cases| fs::read_to_string(cases).unwrap()).concat();
    let (mut fires, mut rests) = (BTreeSet::new(), BTreeSet::new());
    for case in text.split("alertname: ").skip(1) {
        let (name, rest) = case.split_once('\n').unwrap();
        let expected = rest.trim_start().strip_prefix("exp_alerts:").expect("what is expected");
        let kind = if expected.trim_start().starts_with("[]") { &mut rests } else { &mut fires };
        kind.insert(name.to_owned());
    }
    (fires, rests)
}

#[tokio::test]
async fn every_alert_says_what_how_bad_and_where_to_read_on() {
    let prometheus = Prometheus::start(&[], &[Path::new(RULES)]).await.unwrap();
    let alerts = prometheus.alerts().await.unwrap();
    let names: BTreeSet<String> =
        alerts.iter().map(|alert| alert["name"].as_str().unwrap().to_owned()).collect();
    let wanted = [
        "LandfallDaemonDown",
        "LandfallLinkStalled",
        "LandfallRegionsDiffer",
        "LandfallVerificationOverdue",
        "LandfallLagOverBudget",
        "LandfallSlotInvalidatingSoon",
        "LandfallSlotGrowing",
        "LandfallSlotInactive",
        "LandfallBufferHeadroomLow",
        "LandfallStreamHalted",
        "LandfallPublicationChanged",
        "LandfallWarning",
        "LandfallConflicts",
        "LandfallParked",
        "LandfallRetriesRising",
        "LandfallClockOffset",
        "LandfallLinkNotRunning",
    ];
    assert_eq!(names, wanted.map(str::to_owned).into());
    let (fires, rests) = cases();
    assert_eq!(fires, names, "cases that fire");
    assert_eq!(rests, names, "cases that do not");
    let runbooks = fs::read_to_string(RUNBOOKS).unwrap_or_default();
    for alert in &alerts {
        let name = alert["name"].as_str().unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let annotations = &alert["annotations"];
        assert!(!text(&annotations["summary"]).is_empty(), "{name}: a summary");
        assert!(text(&annotations["description"]).contains("{{ $value"), "{name}: its value");
        let severity = text(&alert["labels"]["severity"]);
        assert!(["critical", "warning"].contains(&severity.as_str()), "{name}: severity {severity:?}");
        let anchor = name.to_lowercase();
        let url = text(&annotations["runbook_url"]);
        assert!(url.ends_with(&format!("{RUNBOOKS}#{anchor}")), "{name}: {url}");
        if Path::new(RUNBOOKS).exists() {
            let is_heading = |line: &str| {
                line.starts_with('#') && line.trim_start_matches('#').trim().to_lowercase() == anchor
            };
            assert!(runbooks.lines().any(is_heading), "{RUNBOOKS} has no section {name}");
        }
    }
}
