//! What is asked and read, in turns.

use std::{future::Future, sync::Arc};

use super::*;
use crate::{
    change::Mark, changelog::memory::MemoryLog, envelope::Format, position::WriterEpoch, roster::Roster,
    source::Content,
};

#[test]
fn a_mark_that_was_made_is_not_made_again_for_whoever_asks_late() {
    let (desk, now) = (Desk::new(), Instant::now());
    let question = |number, about| Question {
        verification: "v".to_owned(),
        number,
        by: "eu-west-1".to_owned(),
        stream: "main".to_owned(),
        about,
    };
    let recover = || About::Recover { ours: Vec::new() };
    let wait = || desk.state().questions.iter().map(|(it, _)| it.number).collect::<Vec<_>>();
    for (number, about) in [(1, About::Tables), (2, recover())] {
        desk.answered(question(number, about), now);
    }
    desk.ask(question(1, About::Tables), now);
    assert_eq!(wait(), [0; 0], "its answer is on its way");
    let later = now + 2 * ANSWERED_FOR;
    desk.ask(question(1, About::Tables), later);
    desk.ask(question(2, recover()), later);
    assert_eq!(wait(), [1], "it was lost; the mark was not");
    desk.ask(question(3, recover()), later);
    assert_eq!(wait(), [1, 3]);
}

/// What a [`Reader`] does when it is asked to read.
enum Step {
    /// There is nothing to read.
    Nothing,
    /// It sends a low watermark, and is canceled, held back or given up behind it.
    LowOnly,
    /// It sends a low watermark, and the server is gone.
    Fails,
    /// It sends a low watermark, reads something, and meanwhile what was read before that is refused.
    Refused,
}

/// Reads nothing of use.
struct Reader {
    steps: VecDeque<Step>,
    /// How often sending fails.
    broken: usize,
    sent: Vec<String>,
    desk: Arc<Desk>,
}

impl Reader {
    fn step(&mut self, low: impl Fn(&str) -> String) -> Result<Option<Portion>> {
        match self.steps.pop_front() {
            None | Some(Step::Nothing) => return Ok(None),
            Some(Step::LowOnly) => self.sent.push(low("t")),
            Some(Step::Fails) => {
                self.sent.push(low("t"));
                return Err(gone());
            }
            Some(Step::Refused) => {
                self.sent.push(low("t"));
                self.desk.again("it changed too much");
                let content = Content::Mark { shapes: Vec::new(), mark: Mark::Begin, every: false };
                return Ok(Some(Portion { to: Vec::new(), content }));
            }
        }
        Ok(None)
    }
}

fn gone() -> Fault {
    Fault::new(Code::DatabaseUnreachable, "it is gone")
}

impl Copier for Reader {
    async fn filling(&mut self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    async fn next(&mut self, low: impl Fn(&str) -> String + Send) -> Result<Option<Portion>> {
        self.step(low)
    }

    async fn answer(
        &mut self,
        _: &Question,
        low: impl Fn(&str) -> String + Send,
        _: impl Future<Output = ()> + Send,
    ) -> Result<Option<Portion>> {
        self.step(low)
    }

    fn lag_max(&self) -> Option<(&[String], Duration)> {
        None
    }

    async fn wait_for(&mut self, _: &str) -> Result<()> {
        Ok(())
    }

    async fn send(&mut self, watermark: &str) -> Result<()> {
        if self.broken > 0 {
            self.broken -= 1;
            return Err(gone());
        }
        self.sent.push(watermark.to_owned());
        Ok(())
    }

    async fn done(&mut self, _: Option<&str>) -> Result<()> {
        Ok(())
    }

    fn again(&mut self, _: &'static str) {}

    async fn restart(&mut self, _: &str) -> Result<()> {
        Ok(())
    }

    fn written_by(&mut self, _: WriterEpoch) {}

    async fn begin_anew(&mut self) -> Result<()> {
        Ok(())
    }

    async fn starts(&mut self) -> Result<Vec<(String, String)>> {
        Ok(Vec::new())
    }
}

/// What is sent in the course of some turns, in which a question is asked first where it is `asked`: `low 1`, `high 1`.
async fn sent(asked: bool, steps: impl IntoIterator<Item = Step>, broken: usize) -> Vec<String> {
    let params = CaptureParams {
        region: "us-east-1".parse().unwrap(),
        stream: "main".into(),
        database: "shop".into(),
        heartbeat_interval: Duration::from_secs(1),
        checkpoint_interval: Duration::from_secs(1),
        max_record_bytes: 1 << 20,
        format: Format::Debezium,
    };
    let entry = &Roster::new(params.region.clone()).source();
    let (desk, log) = (Arc::new(Desk::new()), &MemoryLog::default());
    let steps = steps.into_iter().collect();
    let mut reader = Reader { steps, broken, sent: Vec::new(), desk: desk.clone() };
    let mut copying = Copying::new(&params, &mut reader, log, &desk, entry);
    if asked {
        let (verification, by, stream) = ("v".to_owned(), "eu-west-1".to_owned(), "main".to_owned());
        let question = Question { verification, number: 1, by, stream, about: About::Tables };
        desk.ask(question, Instant::now());
    }
    for _ in 0..8 {
        let _ = copying.turn().await;
    }
    let said = |text: &String| {
        let watermark = desk.read(text.as_bytes()).unwrap();
        format!("{} {}", watermark.low().map_or("high", |_| "low"), watermark.portion)
    };
    reader.sent.iter().map(said).collect()
}

#[tokio::test]
async fn a_low_watermark_that_nothing_comes_of_is_followed_by_its_high_one() {
    use Step::{Fails, LowOnly, Nothing, Refused};
    let none: [&str; 0] = [];
    assert_eq!(sent(false, [Nothing, Nothing], 0).await, none);
    // A read that fails, of a backfill that is canceled then; an answer that is given up; a server that goes.
    for asked in [false, true] {
        assert_eq!(sent(asked, [LowOnly], 0).await, ["low 1", "high 1"]);
        assert_eq!(sent(asked, [Fails, Nothing], 0).await, ["low 1", "high 1"]);
        assert_eq!(sent(asked, [Fails], 3).await, ["low 1", "high 1"], "until it goes out");
        assert_eq!(sent(asked, [Refused], 0).await, ["low 1", "high 1"]);
    }
    assert_eq!(sent(true, [LowOnly, LowOnly], 0).await, ["low 1", "high 1", "low 2", "high 2"]);
}

impl Desk {
    /// The two watermarks of a portion, which lies here for when the second comes, where anything was read.
    pub(in crate::pipeline::capture) fn between(&self, number: u64, portion: Option<Portion>) -> [String; 2] {
        self.state().portions.extend(portion.map(|portion| (number, portion)));
        [Some("\"public\".\"t\""), None].map(|low| self.watermark(number, low))
    }
}
