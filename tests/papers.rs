//! What the papers claim is so: the codes, paths, names, commands and settings they name exist, and
//! docs/wire-format.md shows records as the code writes them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use landfall::{
    change::{Cell, Change, Column, Identity, Mark, Row, Shape},
    changelog::kafka::PACK_BYTES,
    config::{SETTINGS, Settings},
    envelope::{
        Encoded, Encoder, Flags, Format, HEADER_LEN, HEADER_NAME, Header, Kind, PACK_RECORDS_MAX, Packer,
        body::{
            Abort, Anchor, Answered, Barrier, Beat, Chunk, Commit, Genesis, HeartbeatBody, Idle, Schema,
            Server, Watermark, to_value,
        },
    },
    fault::Code,
    lsn::Lsn,
    position::{Incarnation, Position, PostgresPosition, Sequence, WriterEpoch},
    stamp::Micros,
    verify::{Answer, Found, Layout, Sum},
};
use serde_json::Value;

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

fn papers() -> Vec<PathBuf> {
    let mut papers: Vec<PathBuf> = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"].map(PathBuf::from).into();
    let mut docs: Vec<PathBuf> = fs::read_dir("docs").unwrap().map(|entry| entry.unwrap().path()).collect();
    docs.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    docs.sort();
    papers.extend(docs);
    papers.extend(decisions());
    papers
}

fn decisions() -> Vec<PathBuf> {
    let mut decisions: Vec<PathBuf> =
        fs::read_dir("docs/decisions").unwrap().map(|entry| entry.unwrap().path()).collect();
    decisions.sort();
    decisions
}

/// The text outside fenced blocks.
fn prose(text: &str) -> String {
    let mut fenced = false;
    let lines = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The fenced blocks of a language.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).map(|tail| tail.split("```").next().unwrap()).collect()
}

/// What stands between backticks.
fn spans(prose: &str) -> Vec<&str> {
    prose.split('`').skip(1).step_by(2).collect()
}

fn sources(dir: &Path, into: &mut String) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else {
            into.push_str(&read(&path));
        }
    }
}

fn all_sources() -> String {
    let mut text = String::new();
    sources(Path::new("src"), &mut text);
    text
}

#[test]
fn every_code_named_exists() {
    let known: BTreeSet<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    for paper in papers() {
        let text = read(&paper);
        for tail in text.split("LF-").skip(1) {
            let end = tail.find(|c: char| !c.is_ascii_uppercase() && c != '-').unwrap_or(tail.len());
            let code = format!("LF-{}", tail[..end].trim_end_matches('-'));
            // The family: `LF-…`.
            let is_family = tail.starts_with('…');
            assert!(is_family || known.contains(code.as_str()), "{}: there is no {code}", paper.display());
        }
    }
}

#[test]
fn every_file_with_tests_is_run() {
    let (manifest, together) = (read("Cargo.toml"), read("tests/daemons.rs"));
    for entry in std::fs::read_dir("tests").unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|is| is == "rs") {
            let name = path.file_stem().unwrap().to_str().unwrap();
            let is_run = manifest.contains(&format!("[[test]]\nname = \"{name}\""))
                || together.contains(&format!("\nmod {name};"));
            assert!(is_run, "{} is neither in Cargo.toml nor in tests/daemons.rs", path.display());
        }
    }
}

#[test]
fn every_path_named_exists() {
    let places = ["src/", "tests/", "testbed/", "docs/", "config/", "scripts/", "packaging/", ".ci/"];
    let files = [".md", ".toml", ".rs"];
    for paper in papers() {
        let text = prose(&read(&paper));
        for span in spans(&text) {
            let is_path = places.iter().any(|place| span.starts_with(place))
                || (files.iter().any(|file| span.ends_with(file)) && !span.contains(['*', ' ', '<', '=']));
            // What begins at the root is a place on a user's machine.
            let is_path = is_path && !span.starts_with('/');
            // A test, named as `tests/file.rs::name`.
            let (path, test) = span.split_once("::").map_or((span, None), |(path, test)| (path, Some(test)));
            if is_path {
                assert!(Path::new(path).exists(), "{}: there is no {path}", paper.display());
            }
            if let Some(test) = test.filter(|_| is_path) {
                assert!(has_test(&read(path), test), "{}: {path} has no test `{test}`", paper.display());
            }
        }
    }
}

/// Whether a source has this test: a function marked as one, or one of a suite that others run.
fn has_test(source: &str, name: &str) -> bool {
    let name = format!("async fn {name}(");
    let plain = name.trim_start_matches("async ").to_owned();
    let marked = |line: &str| line.starts_with("#[tokio::test") || line.starts_with("#[test]");
    let lines: Vec<&str> = source.lines().collect();
    lines.iter().enumerate().any(|(at, line)| {
        line.starts_with(&format!("pub(crate) {name}"))
            || ((line.starts_with(&name) || line.starts_with(&plain)) && at > 0 && marked(lines[at - 1]))
    })
}

/// What a heading is called in links to it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    kept.chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .collect::<String>()
        .replace(' ', "-")
}

#[test]
fn every_link_between_papers_leads_somewhere() {
    for paper in papers() {
        let text = prose(&read(&paper));
        for tail in text.split("](").skip(1) {
            let link = tail.split(')').next().unwrap();
            if link.contains("://") {
                continue;
            }
            let (file, place) =
                link.split_once('#').map_or((link, None), |(file, place)| (file, Some(place)));
            let target = if file.is_empty() { paper.clone() } else { paper.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: the link {link} leads nowhere", paper.display());
            if let Some(place) = place {
                let headings = prose(&read(&target));
                let mut headings = headings.lines().filter(|line| line.starts_with('#'));
                let found = headings.any(|line| anchor(line.trim_start_matches('#')) == place);
                assert!(found, "{}: {link}: there is no such heading", paper.display());
            }
        }
    }
}

#[test]
fn every_metric_named_exists() {
    let sources = all_sources();
    for paper in papers() {
        let text = read(&paper);
        for (at, _) in text.match_indices("replication_") {
            let word = text[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_');
            let tail = &text[at..];
            let end = tail.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(tail.len());
            let name = &tail[..end];
            // A family, `replication_*`; and what else begins so, in Kafka and in the settings.
            let other = ["replication_factor"].contains(&name) || name.ends_with('_');
            if !word && !other {
                assert!(sources.contains(&format!("\"{name}\"")), "{}: there is no {name}", paper.display());
            }
        }
    }
}

#[test]
fn sizing_reckons_with_the_limits_there_are() {
    let (paper, code) = (read("docs/sizing.md"), all_sources());
    for (told, written) in [
        ("2 gulps of 256 KiB", "const GULPS: usize = 2;"),
        ("2 gulps of 256 KiB", "const GULP: usize = 256 << 10;"),
        ("producer's queue of 8 MiB", "queue_bytes: 8 << 20"),
        ("3 chunks of 4 MiB", "const CHUNK_BYTES: u64 = 4 << 20"),
        ("8 MiB of changes kept aside", "const ASIDE_BYTES: usize = 8 << 20"),
        ("fetch queue of 8 MiB", "\"queued.max.messages.kbytes\", \"8192\""),
        ("A fetch is what unpacks to 10 MiB", "const UNPACKED: u64 = 10 << 20;"),
        ("it is 1 MiB as it comes", "const BYTES_AT_FIRST: usize = 1 << 20;"),
        (
            "and 3 MiB where what hardly",
            "const SIZES: [usize; 5] = [256 << 10, 512 << 10, 1 << 20, 2 << 20, 3 << 20];",
        ),
        ("4 helpings", "const HELPINGS: usize = 4;"),
        ("segments of an hour", "\"segment.ms\", \"3600000\""),
    ] {
        assert!(paper.contains(told), "docs/sizing.md does not say {told}");
        assert!(code.contains(written), "docs/sizing.md says {told}; the code has no {written}");
    }
}

#[test]
fn every_alert_has_its_runbook() {
    let paper = read("docs/operating.md");
    let alerts = [
        "LandfallDaemonDown",
        "LandfallLinkStalled",
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
        "LandfallRegionsDiffer",
        "LandfallVerificationOverdue",
        "LandfallLinkNotRunning",
    ];
    let sections: Vec<&str> =
        paper.split("\n## ").filter(|section| section.starts_with("Landfall")).collect();
    let headed: Vec<&str> = sections.iter().map(|section| section.lines().next().unwrap()).collect();
    assert_eq!(headed, alerts);
    for section in sections {
        for part in ["What it means", "How to look", "What to do", "What not to do"] {
            assert_eq!(section.matches(&format!("\n**{part}.** ")).count(), 1, "{part} of {section}");
        }
    }
    // Every code that halts says in which of the kinds it is.
    let halted = paper.split("\n## LandfallStreamHalted").nth(1).unwrap().split("\n## ").next().unwrap();
    for code in Code::ALL.iter().filter(|code| code.consequence() == landfall::fault::Consequence::Halt) {
        let known = halted.contains(&format!("`{}`", code.as_str()));
        // Met before anything runs.
        let elsewhere = matches!(code, Code::ConfigInvalid);
        assert!(known || elsewhere, "docs/operating.md: {code} halts, and nothing is said of it");
    }
}

#[test]
fn every_name_and_task_of_the_map_is_in_the_code() {
    let (map, code) = (read("ARCHITECTURE.md"), all_sources());
    let map = prose(&map);
    let words: BTreeSet<&str> = code.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    for span in spans(&map) {
        let is_name = span.starts_with(|c: char| c.is_ascii_uppercase())
            && span.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | ':'));
        if is_name {
            for word in span.split("::") {
                assert!(words.contains(word), "ARCHITECTURE.md: nothing is called {span}");
            }
        }
    }
    for call in ["spawn(\"", "spawn_thread(\""] {
        for tail in code.split(call).skip(1) {
            let name = tail.split('"').next().unwrap();
            assert!(map.contains(&format!("`{name}`")), "ARCHITECTURE.md: the task `{name}` is missing");
        }
    }
}

#[test]
fn every_module_is_on_the_map() {
    let map = read("ARCHITECTURE.md");
    for entry in fs::read_dir("src").unwrap() {
        let path = entry.unwrap().path();
        let path = path.to_str().unwrap();
        if !matches!(path, "src/lib.rs" | "src/main.rs") {
            // A module is named as its directory, or as its one file.
            let known = map.contains(&format!("`{path}`")) || map.contains(&format!("`{path}/"));
            assert!(known, "ARCHITECTURE.md: {path} is missing");
        }
    }
}

#[test]
fn the_configuration_of_the_readme_is_one() {
    let readme = read("README.md");
    let blocks = blocks(&readme, "toml");
    let password = ("LANDFALL__DATABASE__PASSWORD".to_owned(), "secret".to_owned());
    let settings = Settings::from_parts(blocks[0], [password], &|_| Ok(String::new())).unwrap();
    assert_eq!(settings.region.as_str(), "eu-west-1");
    assert!(settings.source.is_some() && settings.kafka.is_some() && settings.links.len() == 1);
}

/// The settings that an example names, set or in a comment, as the manual writes them.
fn settings_named(example: &str) -> BTreeSet<String> {
    let mut section = String::new();
    let mut named = BTreeSet::new();
    for line in example.lines() {
        let header = line.strip_prefix('[').and_then(|line| line.trim_end().strip_suffix(']'));
        if let Some(header) = header {
            section = match header.trim_matches(['[', ']']).split_once(".properties") {
                Some((section, _)) => format!("{section}.properties"),
                None => header.trim_matches(['[', ']']).to_owned(),
            };
            section = section.replacen("link", "link[]", 1);
            named.insert(section.clone());
        }
        for (at, _) in line.match_indices(" = ") {
            let is_key = |c: char| c.is_ascii_lowercase() || c == '_';
            let key = line[..at].rsplit(|c| !is_key(c)).next().unwrap();
            let dot = if section.is_empty() { "" } else { "." };
            named.insert(format!("{section}{dot}{key}"));
        }
    }
    named
}

#[test]
fn an_example_that_says_it_has_every_setting_has_it() {
    let us = settings_named(&read("config/us-east-1.toml"));
    let eu = settings_named(&read("config/eu-west-1.toml"));
    for (file, claim, examples, sections) in [
        ("config/us-east-1.toml", "every setting a source has", vec![&us], vec!["source.", "kafka."]),
        ("config/eu-west-1.toml", "every setting a link has", vec![&eu], vec!["link[]."]),
        ("packaging/landfall.toml", "have every setting, commented", vec![&us, &eu], vec![""]),
    ] {
        assert!(read(file).contains(claim), "{file} does not say: {claim}");
        for section in sections {
            for setting in SETTINGS.iter().filter(|setting| setting.path.starts_with(section)) {
                let there = examples.iter().any(|example| example.contains(setting.path));
                assert!(there, "{file} says: {claim}; there is no {}", setting.path);
            }
        }
    }
}

#[test]
fn what_the_package_holds_exists() {
    let manifest = read("Cargo.toml");
    let assets = manifest.split("\nassets = [").nth(1).unwrap().split("\n]").next().unwrap();
    let files: Vec<&str> = assets.lines().filter_map(|line| line.split('"').nth(1)).collect();
    assert!(files.contains(&"target/release/landfall"), "{files:?}");
    for file in files.iter().filter(|file| !file.starts_with("target/")) {
        let fixed = file.split('*').next().unwrap();
        assert!(Path::new(fixed).exists(), "the package holds {file}, which is not there");
    }
}

#[test]
fn every_make_target_named_exists() {
    let makefile = read("Makefile");
    for paper in papers() {
        let text = prose(&read(&paper));
        for span in spans(&text) {
            if let Some(target) = span.strip_prefix("make ") {
                let found = makefile.lines().any(|line| line.starts_with(&format!("{target}:")));
                assert!(found, "{}: there is no `make {target}`", paper.display());
            }
        }
    }
}

#[test]
fn the_commands_of_the_readme_are_those_there_are() {
    let readme = read("README.md");
    let there = |command: &str| {
        let landfall = env!("CARGO_BIN_EXE_landfall");
        Command::new(landfall).args([command, "--help"]).output().unwrap().status.success()
    };
    let text = prose(&readme);
    for span in spans(&text) {
        if let Some(rest) = span.strip_prefix("landfall ") {
            let command = rest.split(' ').next().unwrap();
            assert!(there(command), "there is no `landfall {command}`");
        }
    }
    let absent = text.split("- The commands ").nth(1).unwrap().split("are not there").next().unwrap();
    for span in spans(absent) {
        assert!(!there(span.split(' ').next().unwrap()), "`landfall {span}` is there by now");
    }
}

#[test]
fn decisions_are_numbered_and_listed() {
    for (at, path) in decisions().iter().enumerate() {
        let name = path.file_name().unwrap().to_str().unwrap();
        let number = format!("{:04}", at + 1);
        assert!(name.starts_with(&number), "{name} should be number {number}");
        assert!(read(path).starts_with(&format!("# {number} ")), "{name} begins with another number");
    }
}

// ---- docs/wire-format.md ----

const TIME: Micros = Micros(1_767_225_600_123_456);

fn position(commit: u64, end: u64, xid: u32) -> Position {
    Position::Postgres(PostgresPosition { commit: Lsn(commit), end: Lsn(end), xid, time: TIME })
}

/// The transaction of the examples, from its first record on and from its last.
fn begun() -> Position {
    position(0x15D4_F3A8, 0x15D4_F3A8, 742)
}

fn ended() -> Position {
    position(0x15D4_F3A8, 0x15D4_F3D8, 742)
}

fn place() -> Position {
    position(0x15D5_0000, 0x15D5_0000, 0)
}

fn shape() -> Arc<Shape> {
    let column = |name: &str, type_name: &str, typmod, key| Column {
        name: name.into(),
        type_schema: "pg_catalog".into(),
        type_name: type_name.into(),
        typmod,
        key,
    };
    let columns = [
        column("id", "int8", -1, true),
        column("quantity", "int4", -1, false),
        column("paid", "bool", -1, false),
        column("price", "numeric", 655_366, false),
        column("note", "text", -1, false),
    ];
    Arc::new(Shape::new("public", "orders", Identity::Default, columns))
}

fn text(value: &str) -> Cell {
    Cell::Value(bytes::Bytes::copy_from_slice(value.as_bytes()))
}

fn encoded(change: &Change, ordinal: u64, end: Option<&Position>) -> (String, Value) {
    let mut encoder = Encoder::new(&"us-east-1".parse().unwrap(), "shop", Format::Debezium);
    encoder.begin(&begun(), TIME);
    let mut out = Encoded::default();
    encoder.change(change, ordinal, end, &mut out).unwrap();
    let mut value: Value = serde_json::from_slice(&out.value).unwrap();
    // The program's version moves on; the paper shows the one it was written for.
    if let Some(version) = value.pointer_mut("/source/version") {
        *version = "0.1.0".into();
    }
    (String::from_utf8(out.key).unwrap(), value)
}

fn body<T: serde::Serialize>(body: &T) -> (String, Value) {
    (String::new(), serde_json::from_slice(&to_value(body)).unwrap())
}

/// Key and value of every example, in the order of the paper.
fn examples() -> Vec<(Kind, Vec<(String, Value)>)> {
    let server = Server { system: "7572130494562828901".into(), timeline: 1 };
    let barrier = |anchor| body(&Barrier { server: server.clone(), time: TIME, anchor });
    let insert = Row([text("9007199254740993"), text("3"), text("t"), text("NaN"), Cell::Null].into());
    let update = Row([text("9007199254740993"), text("2"), text("t"), text("19.90"), Cell::Unchanged].into());
    let old =
        Row([text("9007199254740993"), Cell::Unchanged, Cell::Unchanged, Cell::Unchanged, Cell::Unchanged]
            .into());
    let truncate = Change::Truncate { shapes: vec![shape()], cascade: false, restart_identity: true };
    vec![
        (
            Kind::Genesis,
            vec![body(&Genesis {
                region: "us-east-1".into(),
                stream: "main".into(),
                server: server.clone(),
                database: "shop".into(),
                consistent: place(),
                scope: vec!["public.orders".into()],
                time: TIME,
            })],
        ),
        (
            Kind::Barrier,
            vec![barrier(None), barrier(Some(Anchor { after: place(), next: Sequence(52_001) }))],
        ),
        (
            Kind::Schema,
            vec![body(&Schema {
                fingerprint: shape().fingerprint().to_string(),
                shape: shape().as_ref().clone(),
            })],
        ),
        (
            Kind::Change,
            vec![
                encoded(&Change::Insert { shape: shape(), new: insert }, 0, None),
                encoded(&Change::Update { shape: shape(), old: None, new: update }, 1, None),
                encoded(&Change::Delete { shape: shape(), old }, 2, Some(&ended())),
            ],
        ),
        (Kind::Part, vec![]),
        (Kind::Commit, vec![body(&Commit { position: ended() })]),
        (Kind::Abort, vec![body(&Abort { position: begun() })]),
        (
            Kind::Heartbeat,
            vec![body(&HeartbeatBody { position: ended(), beat: Beat { sent: TIME, echo: Vec::new() } })],
        ),
        (Kind::Idle, vec![body(&Idle { position: place() })]),
        (Kind::Truncate, vec![encoded(&truncate, 0, Some(&ended()))]),
        (
            Kind::Chunk,
            vec![body(&Chunk {
                position: begun(),
                ordinal: 1,
                origin: "us-east-1".into(),
                to: vec!["eu-west-1".into()],
                shape: shape().fingerprint().to_string().into(),
                rows: 2,
                again: false,
                keys: None,
                replace: Vec::new(),
                meanwhile: None,
                copy: "1\t3\tt\t19.90\t\\N\n2\t1\tf\tNaN\ttwo\\nlines\n".into(),
            })],
        ),
        (
            Kind::Watermark,
            vec![body(&Watermark {
                position: begun(),
                ordinal: 0,
                origin: "us-east-1".into(),
                to: vec!["eu-west-1".into()],
                shapes: vec![shape().fingerprint().to_string()],
                mark: Mark::Begin,
            })],
        ),
        (
            Kind::Answer,
            vec![body(&Answered {
                position: ended(),
                ordinal: 0,
                origin: "us-east-1".into(),
                to: vec!["eu-west-1".into()],
                answer: Answer {
                    verification: "5eed0001".into(),
                    number: 4,
                    took_micros: 1_800,
                    layout: Some(Layout {
                        columns: vec!["id".into(), "note".into()],
                        key: vec!["id".into()],
                    }),
                    found: Found::Sums(vec![
                        Sum { upto: Some(vec!["2000".into()]), rows: 2_000, sum: "-83647712033".into() },
                        Sum { upto: None, rows: 17, sum: "1204".into() },
                    ]),
                    unsure: vec![vec!["7".into()]],
                    all_unsure: false,
                },
            })],
        ),
    ]
}

/// Kinds a reader accepts, by trying every number: `open` takes 32 bytes whose sum is right.
fn kinds() -> BTreeMap<u8, Kind> {
    let header = Header {
        kind: Kind::Idle,
        flags: Flags::NONE,
        epoch: WriterEpoch(1),
        incarnation: Incarnation(1),
        sequence: Sequence(1),
    };
    let kinds = (0..=u8::MAX).filter_map(|number| {
        let mut bytes = header.seal(b"", b"");
        bytes[1] = number;
        let sum = as_the_paper_says(&bytes[..28], b"", b"");
        bytes[28..].copy_from_slice(&sum.to_be_bytes());
        Header::open(Some(&bytes), b"", b"").ok().map(|header| (number, header.kind))
    });
    kinds.collect()
}

/// CRC-32 over bytes 0 to 27, the key's length, the key and the value.
fn as_the_paper_says(head: &[u8], key: &[u8], value: &[u8]) -> u32 {
    let length = (key.len() as u32).to_be_bytes();
    crc32fast::hash(&[head, &length, key, value].concat())
}

#[test]
fn the_wire_format_lists_header_kinds_and_flags() {
    let paper = read("docs/wire-format.md");
    assert!(paper.contains(&format!("{HEADER_LEN} bytes")), "the header's length");
    assert!(paper.contains(&format!("header `{HEADER_NAME}`")), "the header's name");
    let sections: Vec<&str> = paper.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let expected: Vec<String> = kinds().iter().map(|(number, kind)| format!("{kind} ({number})")).collect();
    assert_eq!(sections, expected, "one section for each kind, in order");
    let flags = [
        ("FIRST", Flags::FIRST),
        ("LAST", Flags::LAST),
        ("PART_FIRST", Flags::PART_FIRST),
        ("PART_LAST", Flags::PART_LAST),
        ("OF_CHUNK", Flags::OF_CHUNK),
    ];
    for (name, flag) in flags {
        assert!(paper.contains(&format!("| `{name}` | {} |", flag.0)), "flag {name}");
    }
}

#[test]
fn the_wire_format_shows_records_as_they_are_written() {
    let paper = read("docs/wire-format.md");
    for (kind, examples) in examples() {
        let title = format!("### {kind} (");
        let section = paper.split(&title).nth(1).unwrap_or_else(|| panic!("no section on {kind}"));
        let section = section.split("\n##").next().unwrap();
        let shown: Vec<Value> = blocks(section, "json")
            .into_iter()
            .map(|block| {
                serde_json::from_str(block).unwrap_or_else(|error| panic!("{kind}: {error}\n{block}"))
            })
            .collect();
        let written: Vec<Value> = examples.iter().map(|(_, value)| value.clone()).collect();
        for value in &written {
            assert!(shown.contains(value), "docs/wire-format.md lacks this {kind} record:\n{value:#}");
        }
        assert_eq!(shown.len(), written.len(), "{kind}: more is shown than is written here");
        for (key, _) in examples.iter().filter(|(key, _)| !key.is_empty()) {
            assert!(section.contains(&format!("`{key}`")), "{kind}: the key {key}");
        }
    }
}

#[test]
fn the_wire_format_shows_a_header_byte_by_byte() {
    let paper = read("docs/wire-format.md");
    let value = to_value(&Idle { position: place() });
    let header = Header {
        kind: Kind::Idle,
        flags: Flags::NONE,
        epoch: WriterEpoch(2),
        incarnation: Incarnation(0x9f2c_41d0_77ab_e613),
        sequence: Sequence(52),
    };
    let sealed = header.seal(b"", &value);
    assert_eq!(sealed[28..], as_the_paper_says(&sealed[..28], b"", &value).to_be_bytes());
    let hex: Vec<String> = sealed.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex[0], "01", "the version that the paper is about");
    let line = |range: std::ops::Range<usize>| hex[range].join(" ");
    for (name, bytes) in [
        ("version", line(0..1)),
        ("kind", line(1..2)),
        ("flags", line(2..4)),
        ("writer epoch", line(4..8)),
        ("incarnation", line(8..16)),
        ("sequence", line(16..24)),
        ("reserved", line(24..28)),
        ("checksum", line(28..32)),
    ] {
        assert!(paper.contains(&format!("{bytes} ")) && paper.contains(name), "{name}: {bytes}");
    }
    assert!(paper.contains(std::str::from_utf8(&value).unwrap()), "the record it belongs to");
}

#[test]
fn the_wire_format_shows_a_pack_byte_by_byte() {
    let paper = read("docs/wire-format.md");
    let header = |kind, sequence| Header {
        kind,
        flags: Flags::NONE,
        epoch: WriterEpoch(2),
        incarnation: Incarnation(0x9f2c_41d0_77ab_e613),
        sequence: Sequence(sequence),
    };
    let mut packer = Packer::new(PACK_BYTES);
    assert!(packer.take(&header(Kind::Abort, 52), b"", &to_value(&Abort { position: begun() })));
    assert!(packer.take(&header(Kind::Idle, 53), b"", &to_value(&Idle { position: place() })));
    let packed = packer.packed().unwrap();
    let (head, marks) = packed.header.split_at(HEADER_LEN);
    let sum = as_the_paper_says(&[&head[..28], marks].concat(), packed.key, packed.value);
    assert_eq!(head[28..], sum.to_be_bytes());
    let section = paper.split("\n## Packs\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let shown = blocks(section, "text")[0];
    assert!(shown.starts_with(std::str::from_utf8(packed.value).unwrap()), "its value\n{shown}");
    let shown: Vec<&str> = shown
        .lines()
        .filter(|line| !line.starts_with('{'))
        .flat_map(|line| line.split("  ").next().unwrap_or_default().split_whitespace())
        .collect();
    let written: Vec<String> = packed.header.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(shown, written);
    assert!(section.contains(&format!("{PACK_RECORDS_MAX} records and {} KiB", PACK_BYTES >> 10)));
}

#[test]
#[ignore = "prints the examples, for whoever writes them down"]
fn print_the_examples() {
    for (kind, examples) in examples() {
        println!("### {kind} ({})", kind as u8);
        for (key, value) in examples {
            println!("key `{key}`\n{value:#}");
        }
    }
}
