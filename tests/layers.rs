//! Imports point down, and the control road cannot see a change.

use std::{fs, path::Path};

/// A module may import modules of a smaller number. Equal numbers may not import each other.
#[rustfmt::skip]
const RANKS: &[(&str, u8)] = &[
    // Words: what everything is called.
    ("region", 0), ("lsn", 0), ("fault", 0), ("secret", 0), ("gate", 0),
    ("names", 1), ("stamp", 1),
    ("position", 2), ("scope", 2),
    ("change", 3), ("verify", 3),
    ("progress", 4), ("envelope", 4),
    // Rules: decide with values.
    ("policy", 10), ("resolve", 10), ("translate", 10), ("topology", 10),
    ("plan", 11),
    // Tools: one technology each.
    ("clock", 20), ("crash", 20), ("pace", 20), ("task", 20), ("retry", 20),
    ("roster", 21),
    ("metrics", 22),
    ("postgres", 23), ("kafka", 23),
    // Ports, and the roads between them.
    ("source", 30), ("changelog", 30), ("sink", 30),
    ("pipeline", 40), ("control", 40),
    // The edge.
    ("config", 50), ("api", 51), ("check", 51), ("daemon", 52), ("init", 52), ("cli", 53),
];

/// Modules that must not know about rows, and what they would learn about rows from.
const BLIND: &[&str] = &["control", "api"];
const ROWS: &[&str] = &["change", "source", "changelog", "sink"];

/// Words and rules decide with values: these have no place below this rank.
const PURE_BELOW: u8 = 20;
const IMPURE: &[&str] =
    &["async ", ".await", "tokio::", "SystemTime", "Instant::now", "std::net", "std::fs", "std::thread"];

#[test]
fn imports_point_down() {
    let mut wrong = Vec::new();
    visit(Path::new("src"), &mut wrong);
    assert!(wrong.is_empty(), "imports against the layers:\n{}", wrong.join("\n"));
}

fn visit(dir: &Path, wrong: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            visit(&path, wrong);
            continue;
        }
        let from = path.strip_prefix("src").unwrap().iter().next().unwrap();
        let from = from.to_str().unwrap().trim_end_matches(".rs");
        if matches!(from, "lib" | "main") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let code: Vec<&str> = text.lines().map(|line| line.split("//").next().unwrap()).collect();
        if rank(from) < PURE_BELOW {
            for what in IMPURE.iter().filter(|what| code.iter().any(|line| line.contains(**what))) {
                wrong.push(format!("{}: `{from}` decides with values, but names `{what}`", path.display()));
            }
        }
        if code.iter().any(|line| line.contains("super::super::")) {
            wrong.push(format!("{}: a path through `super::super` hides what it imports", path.display()));
        }
        for to in imported(&code.join("\n")) {
            let blind = BLIND.contains(&from) && ROWS.contains(&to);
            if to != from && (blind || rank(to) >= rank(from)) {
                wrong.push(format!("{}: `{from}` imports `{to}`", path.display()));
            }
        }
    }
}

/// Top-level names after `crate::`, looking inside braces.
fn imported(code: &str) -> Vec<&str> {
    let mut names = Vec::new();
    for tail in code.split("crate::").skip(1) {
        let Some(group) = tail.strip_prefix('{') else {
            names.push(word(tail));
            continue;
        };
        let (mut depth, mut start) = (1, 0);
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => (),
            }
            if depth == 0 || (depth == 1 && c == ',') {
                names.push(word(group[start..at].trim()));
                start = at + 1;
            }
            if depth == 0 {
                break;
            }
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

fn rank(module: &str) -> u8 {
    let found = RANKS.iter().find(|(name, _)| *name == module);
    found.unwrap_or_else(|| panic!("`{module}` has no rank: add it to RANKS")).1
}
