//! What a session does with what comes through its log.

use std::sync::Arc;

use super::*;
use crate::{
    changelog::memory::MemoryLog,
    envelope::Format,
    lsn::Lsn,
    source::{
        Content, Portion, With,
        memory::{MemoryDatabase, MemorySource},
    },
    verify::{Answer, Found},
};

fn at(commit: u64, end: u64) -> Position {
    Position::Postgres(PostgresPosition { commit: Lsn(commit), end: Lsn(end), xid: 7, time: Micros(0) })
}

/// An answer for which nothing was read.
fn refused() -> Portion {
    let answer = Answer {
        verification: "v".into(),
        number: 1,
        took_micros: 1,
        layout: None,
        found: Found::Refused("a row is larger than can be sent at once".into()),
        unsure: Vec::new(),
        all_unsure: false,
    };
    Portion {
        to: vec!["eu-west-1".into()],
        content: Content::Answer { answer, read: None, with: With::Nothing },
    }
}

#[tokio::test]
async fn a_high_watermark_closes_its_window_whatever_was_read() {
    let params = CaptureParams {
        region: "us-east-1".parse().unwrap(),
        stream: "main".into(),
        database: "shop".into(),
        heartbeat_interval: Duration::from_secs(1),
        checkpoint_interval: Duration::from_secs(1),
        max_record_bytes: 1 << 20,
        format: Format::Debezium,
    };
    let roster = Arc::new(Roster::new(params.region.clone()));
    let metrics = Metrics::new(roster.clone());
    let (log, desk, incarnation, epoch) = (MemoryLog::default(), Desk::new(), Incarnation(1), WriterEpoch(1));
    let begins = at(0, 0);
    let tail = Tail { through: Some(begins), ..Tail::default() };
    let mut capture = Capture {
        params: &params,
        source: &mut MemorySource::new(MemoryDatabase::default()),
        incarnation,
        epoch,
        encoder: Encoder::new(&params.region, &params.database, params.format),
        appender: Appender::new(
            log.writer().unwrap(),
            incarnation,
            epoch,
            Sequence(0),
            params.max_record_bytes,
        ),
        resume: Resume::new(&tail, begins, begins).unwrap(),
        transaction: None,
        announced: HashSet::new(),
        encoded: Encoded::default(),
        seen: begins,
        through: begins,
        last: None,
        durable: None,
        idle_at: Instant::now(),
        checkpoint_at: Instant::now(),
        is_unkept: false,
        entry: &roster.source(),
        unacknowledged: VecDeque::new(),
        meter: metrics.capture(&params.region, &params.stream),
        queue: metrics.queue("kafka"),
        desk: &desk,
        aside: Aside::new(Vec::new()),
        starts: Vec::new(),
        offset: Offset(0),
        checkpoint: &mut None,
        began: begins,
        ran: &mut false,
    };
    // Answered though nothing could be read, and given up.
    for (number, portion) in [(1, Some(refused())), (2, None)] {
        let watermarks = desk.between(number, portion);
        for (which, (text, is_idle)) in watermarks.into_iter().zip([false, true]).enumerate() {
            let commit = 100 * (2 * number + which as u64);
            capture.take(Event::Begin(at(commit, commit))).await.unwrap();
            capture.take(Event::Watermark(text.into())).await.unwrap();
            capture.take(Event::Commit(at(commit, commit + 8))).await.unwrap();
            assert_eq!(capture.aside.is_idle(), is_idle, "portion {number}, watermark {which}");
        }
    }
}
