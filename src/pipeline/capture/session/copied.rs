//! What was read beside the stream and enters it at its watermark: chunks, marks, answers.

use std::{sync::Arc, time::Instant};

use super::{Capture, Transaction};
use crate::{
    change::{Change, Mark, Shape},
    changelog::Writer,
    envelope::{
        Flags, Kind,
        body::{self, Answered, Start},
    },
    fault::{Code, Fault, Result},
    pipeline::capture::copy::Watermark,
    position::{Offset, Position},
    source::{Content, Portion, ReadFor, Source, With},
    verify::{Answer, Found, TableName},
};

impl<S: Source, W: Writer> Capture<'_, S, W> {
    /// A watermark's transaction has ended: nothing else is in it.
    pub(super) async fn watermark(
        &mut self,
        transaction: Transaction,
        content: &[u8],
        end: Position,
    ) -> Result<()> {
        let Some(watermark) = self.desk.read(content) else {
            // The process that read the chunk is gone, and the chunk with it.
            if transaction.begun {
                self.abort(transaction.begin).await?;
                self.appender.mark(end, false);
                self.through = end;
            }
            self.saw(end);
            return Ok(());
        };
        if watermark.low().is_some() {
            self.aside.open(&watermark);
        } else {
            let appended = match self.desk.take(&watermark) {
                Some(portion) => {
                    crate::crash::point("backfill.before_append");
                    self.copy(&watermark, portion, end).await?
                }
                None => false,
            };
            // Whoever read nothing of use has not asked for what changed meanwhile: open, it would be kept for ever.
            self.aside.close(&watermark);
            if appended {
                return Ok(());
            }
        }
        self.saw(end);
        Ok(())
    }

    /// Appends what a backfill read, as the transaction of its high watermark; false where nothing is appended.
    async fn copy(&mut self, watermark: &Watermark, portion: Portion, end: Position) -> Result<bool> {
        let mut start = None;
        let marked = |mark, shape: &Arc<Shape>| Change::Watermark { shapes: vec![shape.clone()], mark };
        let changes = match portion.content {
            Content::Answer { answer, read, with } => {
                return self.answer(watermark, portion.to, answer, (read, with), end).await;
            }
            Content::Mark { shapes, mark, every } => {
                if every {
                    start = Some(self.begins_here(None));
                }
                self.aside.fill(&shapes);
                vec![Change::Watermark { shapes, mark }]
            }
            Content::Begin { shape } => {
                self.aside.fill(&[shape]);
                Vec::new()
            }
            Content::Rows(rows) => {
                // In one transaction with its first rows: from the mark on, nothing that the snapshot shows comes.
                let (first, done, replace) = (rows.first, rows.done, rows.replace);
                let shape = rows.shape.clone();
                let rows = match self.aside.lay_over(watermark, rows) {
                    Ok(rows) => rows,
                    Err(why) => {
                        self.desk.again(why);
                        return Ok(false);
                    }
                };
                let begin = first.then(|| marked(Mark::Snapshot, &shape));
                if done {
                    self.aside.filled(&shape);
                }
                // Some of a table's rows make it no more whole than it was.
                let done = (done && !replace).then(|| marked(Mark::Done, &shape));
                begin.into_iter().chain(rows).chain(done).collect()
            }
        };
        let count = changes.len();
        for (at, change) in changes.iter().enumerate() {
            self.announce(change).await?;
            let end = (at + 1 == count).then_some(&end);
            self.append_copied(change, (at as u64, at == 0, end), &portion.to).await?;
            crate::crash::point("backfill.mid_chunk");
        }
        let start = start.map(|start| self.may_begin(start, &portion.to));
        self.desk.appended(self.appender.sequence(), start);
        if count > 0 {
            self.appender.mark(end, true);
            self.through = end;
            self.saw(end);
        }
        Ok(count > 0)
    }

    /// Whoever begins at the next record; in a `recovery`, with the rows it has, and without the tables that are left out.
    fn begins_here(&mut self, recovery: Option<Vec<TableName>>) -> Start {
        // It knows no shape.
        self.announced.clear();
        // Behind the last that is acknowledged: a link takes a start only where its offset is still there.
        let last = self.appender.writer().last_offset();
        Start {
            incarnation: self.incarnation,
            epoch: self.epoch,
            sequence: self.appender.sequence().next(),
            offset: last.map_or(self.offset, |last| Offset(last.0 + 1)),
            recovery: recovery.is_some(),
            through: None,
            left_out: recovery.unwrap_or_default(),
        }
    }

    /// Keeps where regions may begin the stream, soon; gives it as it is kept.
    fn may_begin(&mut self, start: Start, regions: &[String]) -> String {
        let text = serde_json::to_string(&start).expect("numbers and text");
        self.starts.retain(|(region, ..)| !regions.contains(region));
        self.starts.extend(regions.iter().map(|region| (region.clone(), start.sequence, text.clone())));
        self.checkpoint_at = Instant::now();
        text
    }

    /// Appends a change that was read from a table, at its place in its transaction: its number there, whether it is
    /// the first, and where the transaction ends if it is the last.
    async fn append_copied(
        &mut self,
        change: &Change,
        (ordinal, first, end): (u64, bool, Option<&Position>),
        to: &[String],
    ) -> Result<()> {
        let kind = match change {
            Change::Watermark { .. } => Kind::Watermark,
            _ => Kind::Chunk,
        };
        self.encoder.copy(change, ordinal, end, to, &mut self.encoded).map_err(|error| {
            Fault::new(Code::ProtocolUnknown, format!("encode what was read of {}", change.shape()))
                .because(error)
        })?;
        let flags = Flags::when(first, Flags::FIRST).with(Flags::when(end.is_some(), Flags::LAST));
        let shape = change.shape();
        self.meter.changes(&shape.schema, &shape.table, change.operation(), change.rows());
        self.meter.bytes(self.encoded.value.len() as u64);
        self.entry.changes.add(change.rows());
        self.appender.append(kind, flags, &self.encoded.key, &self.encoded.value).await
    }

    /// Appends what another region asked for, as the transaction of its high watermark.
    async fn answer(
        &mut self,
        watermark: &Watermark,
        to: Vec<String>,
        mut answer: Answer,
        (read, with): (Option<ReadFor>, With),
        end: Position,
    ) -> Result<bool> {
        let mut recovery = None;
        let prepared = match (&read, with) {
            (Some(read), With::Rows(mend)) => self.aside.mending(watermark, read, &mend).map(Some),
            (Some(read), _) => self.aside.note_unsure(watermark, read, &mut answer).map(|()| None),
            (None, With::Mark { shapes, mark }) => Ok(Some(Change::Watermark { shapes, mark })),
            (None, With::Recovery { shapes, left_out }) => {
                recovery = Some(left_out);
                Ok((!shapes.is_empty()).then_some(Change::Watermark { shapes, mark: Mark::Stale }))
            }
            (None, With::Nothing | With::Rows(_)) => Ok(None),
        };
        let change = match prepared {
            Ok(change) => change,
            Err(why) => {
                self.desk.again(why);
                return Ok(false);
            }
        };
        let start = recovery.map(|left_out| self.begins_here(Some(left_out)));
        if let Some(change) = &change {
            self.announce(change).await?;
            self.append_copied(change, (0, true, None), &to).await?;
        }
        if let Some(start) = start {
            // The answer is next, and the last.
            let through = Some(self.appender.sequence().next());
            self.may_begin(Start { through, ..start }, &to);
        }
        let flags = Flags::when(change.is_none(), Flags::FIRST).with(Flags::LAST);
        let (origin, ordinal) = (self.params.region.to_string(), u64::from(change.is_some()));
        let mut answered = Answered { position: end, ordinal, origin, to, answer };
        let mut value = body::to_value(&answered);
        if value.len() > self.params.max_record_bytes {
            let (bytes, max) = (value.len(), self.params.max_record_bytes);
            let why = format!(
                "[{}] the answer takes {bytes} bytes, a record of the stream {max} at most (next: raise source.max_record_bytes there, or compare with fewer --range-rows)",
                Code::KafkaRejected
            );
            (answered.answer.found, answered.answer.unsure) = (Found::Refused(why), Vec::new());
            value = body::to_value(&answered);
        }
        self.meter.bytes(value.len() as u64);
        self.appender.append(Kind::Answer, flags, b"", &value).await?;
        self.desk.appended(self.appender.sequence(), None);
        self.appender.mark(end, true);
        self.through = end;
        self.saw(end);
        Ok(true)
    }
}
