//! Proves that the decoder understands what real servers send: the same script is run on the oldest and the
//! newest Postgres, and every message is read as tests/golden/pgoutput.txt says.
//!
//! ```text
//! script ──▶ Postgres 15, 18 ──slot──▶ messages ──decode──▶ text ═══ pgoutput.txt   needs servers
//!                                          │ recorded
//!                                          ▼
//!                                  pgoutput-15.bin, -18.bin ──decode──▶ text ═══ pgoutput.txt   needs none
//! ```
//!
//! `LANDFALL_RECORD=1` writes the files anew instead of comparing, and the fuzzers' seeds with them; what
//! changed in the text is then for a person to read.

#[path = "golden/render.rs"]
mod render;
#[path = "golden/rewrite.rs"]
mod rewrite;
#[path = "golden/script.rs"]
mod script;
#[path = "golden/seeds.rs"]
mod seeds;

use std::{fs, path::Path, str::FromStr};

use bytes::Bytes;
use futures_util::SinkExt;
use landfall::postgres::{
    OUTPUT_SETTINGS,
    pgoutput::{self, Malformed},
};
use script::{SETUP, STEPS};
use testbed::Postgres;
use tokio_postgres::{Client, Config, NoTls};

const MAJORS: [u16; 2] = [15, 18];
const TEXT: &str = "tests/golden/pgoutput.txt";
/// Begins a step in the stream: a message outside any transaction, with the step's title.
const STEP_PREFIX: &str = "step";

fn recording() -> bool {
    std::env::var_os("LANDFALL_RECORD").is_some()
}

/// Writes the file when recording, else holds it against what is there.
fn golden(path: &str, what: &str, found: &[u8]) {
    if recording() {
        fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
        fs::write(path, found).unwrap();
        return;
    }
    let expected = fs::read(path).unwrap_or_else(|error| panic!("read {path}: {error}"));
    if expected != found {
        let (expected, found) = (String::from_utf8_lossy(&expected), String::from_utf8_lossy(found));
        let line = expected.lines().zip(found.lines()).position(|(expected, found)| expected != found);
        let line = line.unwrap_or_else(|| expected.lines().count().min(found.lines().count()));
        let shown =
            |text: &str| text.lines().skip(line.saturating_sub(5)).take(10).collect::<Vec<_>>().join("\n");
        panic!(
            "{what} is not as {path} says, from line {} on (LANDFALL_RECORD=1 writes it anew)\n\
             ---- written down\n{}\n---- found\n{}",
            line + 1,
            shown(&expected),
            shown(&found)
        );
    }
}

/// Messages one after the other, each behind its length (u32, big-endian).
fn packed(messages: &[Bytes]) -> Vec<u8> {
    messages
        .iter()
        .flat_map(|message| [&(message.len() as u32).to_be_bytes()[..], message].concat())
        .collect()
}

/// The messages a server of this version sent when they were recorded.
fn recorded(major: u16) -> Vec<Bytes> {
    let path = format!("tests/golden/pgoutput-{major}.bin");
    let mut rest = Bytes::from(fs::read(&path).unwrap_or_else(|error| panic!("read {path}: {error}")));
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let len = u32::from_be_bytes(rest.split_to(4)[..].try_into().unwrap());
        messages.push(rest.split_to(len as usize));
    }
    messages
}

/// A session whose values look as Landfall's look.
async fn session(postgres: &Postgres) -> Client {
    let mut config = Config::from_str(&postgres.url("shop")).unwrap();
    let (client, connection) = config.options(OUTPUT_SETTINGS).connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Everything a server of this version sends for the script.
async fn run(major: u16) -> Vec<Bytes> {
    let postgres = Postgres::start(major, "golden").await.unwrap();
    postgres.create_database("shop").await.unwrap();
    let session = session(&postgres).await;
    session.batch_execute(SETUP).await.unwrap();
    session.execute("select pg_create_logical_replication_slot('golden', 'pgoutput')", &[]).await.unwrap();
    for step in STEPS {
        session
            .execute("select pg_logical_emit_message(false, $1, $2::text)", &[&STEP_PREFIX, &step.title])
            .await
            .unwrap();
        session.batch_execute(step.sql).await.unwrap_or_else(|error| panic!("{}: {error:?}", step.title));
        if let Some((table, lines)) = step.copy {
            let sink = session.copy_in::<_, Bytes>(&format!("copy {table} from stdin")).await.unwrap();
            let mut sink = std::pin::pin!(sink);
            sink.send(Bytes::from_static(lines.as_bytes())).await.unwrap();
            sink.finish().await.unwrap();
        }
    }
    let rows = session
        .query(
            "select data from pg_logical_slot_get_binary_changes('golden', null, null, \
             'proto_version', '1', 'publication_names', 'whole,narrow', 'messages', 'true')",
            &[],
        )
        .await
        .unwrap();
    rows.iter().map(|row| Bytes::from(row.get::<_, Vec<u8>>(0))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn real_servers_are_understood() {
    for major in MAJORS {
        let messages = run(major).await;
        golden(TEXT, &format!("what Postgres {major} sends"), render::text(&messages).as_bytes());
        if recording() {
            fs::write(format!("tests/golden/pgoutput-{major}.bin"), packed(&messages)).unwrap();
        }
    }
    if recording() {
        write_seeds();
    }
}

#[test]
fn what_was_recorded_is_understood() {
    let expected = fs::read_to_string(TEXT).unwrap();
    for major in MAJORS {
        let found = render::text(&recorded(major));
        assert!(found == expected, "Postgres {major}: the recording is not read as {TEXT} says:\n{found}");
    }
}

#[test]
fn nothing_a_server_says_is_lost() {
    for message in MAJORS.into_iter().flat_map(recorded) {
        let again = rewrite::bytes(&pgoutput::decode(message.clone()).unwrap());
        assert_eq!(again, message, "as it came, and as it was understood");
    }
}

#[test]
fn nothing_but_a_whole_message_is_taken() {
    for message in MAJORS.into_iter().flat_map(recorded) {
        for end in 0..message.len() {
            assert!(pgoutput::decode(message.slice(..end)).is_err(), "{message:?} cut at {end}");
        }
        let longer = Bytes::from([&message[..], b"\0"].concat());
        assert_eq!(pgoutput::decode(longer), Err(Malformed::Trailing(1)));
    }
}

#[test]
fn the_script_brings_every_kind_of_message() {
    for major in MAJORS {
        let mut kinds: Vec<u8> = recorded(major).iter().map(|message| message[0]).collect();
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(String::from_utf8(kinds).unwrap(), "BCDIMORTUY", "Postgres {major}");
    }
}

/// What the fuzz targets begin with, by directory.
fn seeds() -> [(&'static str, seeds::Seeds); 2] {
    let messages: Vec<Bytes> = recorded(18);
    [("fuzz/seeds/pgoutput", seeds::pgoutput(&messages)), ("fuzz/seeds/envelope", seeds::envelope())]
}

fn write_seeds() {
    for (dir, seeds) in seeds() {
        let _ = fs::remove_dir_all(dir);
        fs::create_dir_all(dir).unwrap();
        for (name, content) in seeds {
            fs::write(Path::new(dir).join(name), content).unwrap();
        }
    }
}

#[test]
fn the_fuzzers_begin_with_what_is_sent_and_written() {
    if recording() {
        return;
    }
    for (dir, expected) in seeds() {
        let found = fs::read_dir(dir).unwrap().map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
        });
        let found: seeds::Seeds = found.collect();
        assert!(found == expected, "{dir} holds other seeds (LANDFALL_RECORD=1 writes them anew)");
    }
}
