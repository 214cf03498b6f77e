//! What a session does with what comes through its log.

use std::sync::Arc;

use super::*;
use crate::{
    change::{Cell, Column, Identity, Row, Shape},
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

/// What a session works with.
struct Stage {
    params: CaptureParams,
    metrics: Metrics,
    entry: Arc<SourceEntry>,
    desk: Desk,
    source: MemorySource,
    checkpoint: Option<Checkpoint>,
    ran: bool,
}

impl Stage {
    fn new() -> Self {
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
        let (entry, source) = (roster.source(), MemorySource::new(MemoryDatabase::default()));
        Self { params, metrics, entry, desk: Desk::new(), source, checkpoint: None, ran: false }
    }

    /// A session that goes on behind this tail, of a stream that has carried these tables.
    fn session(&mut self, tail: &Tail, carried: &[&str]) -> Capture<'_, MemorySource, impl Writer + use<>> {
        let (incarnation, epoch, begins) = (Incarnation(1), WriterEpoch(1), at(0, 0));
        let params = &self.params;
        let writer = MemoryLog::default().writer().unwrap();
        Capture {
            params,
            source: &mut self.source,
            incarnation,
            epoch,
            encoder: Encoder::new(&params.region, &params.database, params.format),
            appender: Appender::new(writer, incarnation, epoch, Sequence(0), params.max_record_bytes),
            resume: Resume::new(tail, begins, at(900, 900)).unwrap(),
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
            entry: &self.entry,
            unacknowledged: VecDeque::new(),
            meter: self.metrics.capture(&params.region, &params.stream),
            queue: self.metrics.queue("kafka"),
            desk: &self.desk,
            aside: Aside::new(Vec::new()),
            starts: Vec::new(),
            offset: Offset(0),
            checkpoint: &mut self.checkpoint,
            carried: carried.iter().map(|&table| table.to_owned()).collect(),
            began: begins,
            ran: &mut self.ran,
        }
    }
}

#[tokio::test]
async fn what_a_table_held_before_it_was_carried_is_no_other_history() {
    let key = Column {
        name: "id".into(),
        type_schema: "pg_catalog".into(),
        type_name: "int8".into(),
        typmod: -1,
        key: true,
    };
    let shape = Arc::new(Shape::new("public", "late", Identity::Default, vec![key]));
    let change = Change::Insert { shape, new: Row(vec![Cell::Value(b"1".to_vec().into())].into()) };
    // An idle record has said that nothing of the stream lies before it.
    let tail = Tail { through: Some(at(150, 150)), ..Tail::default() };
    for (carried, is_another) in [(&["public.t"][..], false), (&["public.t", "public.late"], true)] {
        let mut stage = Stage::new();
        let mut session = stage.session(&tail, carried);
        session.take(Event::Begin(at(120, 120))).await.unwrap();
        let taken = session.take(Event::Change(Ordered { ordinal: 0, change: change.clone() })).await;
        assert_eq!(
            taken.map_err(|fault| fault.code()),
            if is_another { Err(Code::ServerDiverged) } else { Ok(()) }
        );
        if !is_another {
            session.take(Event::Commit(at(120, 128))).await.unwrap();
            assert_eq!(session.appender.sequence(), Sequence(0), "it is not appended");
        }
    }
}

#[tokio::test]
async fn a_high_watermark_closes_its_window_whatever_was_read() {
    let mut stage = Stage::new();
    let tail = Tail { through: Some(at(0, 0)), ..Tail::default() };
    let mut capture = stage.session(&tail, &[]);
    // Answered though nothing could be read, and given up.
    for (number, portion) in [(1, Some(refused())), (2, None)] {
        let watermarks = capture.desk.between(number, portion);
        for (which, (text, is_idle)) in watermarks.into_iter().zip([false, true]).enumerate() {
            let commit = 100 * (2 * number + which as u64);
            capture.take(Event::Begin(at(commit, commit))).await.unwrap();
            capture.take(Event::Watermark(text.into())).await.unwrap();
            capture.take(Event::Commit(at(commit, commit + 8))).await.unwrap();
            assert_eq!(capture.aside.is_idle(), is_idle, "portion {number}, watermark {which}");
        }
    }
}
