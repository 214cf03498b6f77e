//! Backfill: rows that were there before, put into the stream between watermarks.
//!
//! ```text
//!  copier   low ▶ read a chunk ▶ high                      done, once durable
//!            │                    │                          ▲
//!  stream ───▼── c ── c ── c ─────▼═══ chunk as of here ─────┘
//!               what changed meanwhile is laid over the chunk
//! ```
//!
//! A chunk stands in the stream as the transaction of its high watermark, and says of each of its rows what the row
//! is *there*: so whoever has applied everything before it puts the rows in place and has them exactly, and one that
//! is sent again is as exact at its new place. Between the two watermarks every change to the table is kept aside,
//! and laid over the rows that were read. A transaction whose commit stands before the low watermark may still have
//! been invisible to the reader; it is known by its number, and the chunk is read again.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::{
    CaptureParams,
    behind::{Behind, NOTE_INTERVAL},
};
use crate::{
    changelog::Log,
    fault::{Code, Fault, Result},
    names,
    position::{Offset, Sequence},
    retry::Retry,
    roster::SourceEntry,
    source::{Copier, Portion},
    verify::{About, Question},
};

/// How long nothing is asked for before it is looked again.
const REST: Duration = Duration::from_millis(20);
/// What goes wrong is tried again after so long at most.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// Portions whose high watermark is under way: the next is read meanwhile. Each is held in memory.
const UNDER_WAY_MAX: usize = 2;
/// Portions that are in the log and not known to be durable.
const UNSETTLED_MAX: usize = 4;
/// Questions that wait for their turn: each region that verifies waits for one answer at a time.
const QUESTIONS_MAX: usize = 64;
/// How often what a question is about is read, where it changes too much meanwhile.
const ANSWER_TRIES_MAX: u32 = 5;
/// What was answered is not read again for so long.
const ANSWERED_FOR: Duration = Duration::from_secs(30);
/// Nor is a mark made again for so long after it was last asked for, which is every few seconds until its link, which may be
/// far behind, has come to it: it would undo what was asked for since.
const MARKED_FOR: Duration = Duration::from_secs(300);
/// Answers that are remembered.
const ANSWERED_MAX: usize = 4_096;

/// A watermark, as it travels through the database's log.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Watermark {
    /// The session it is of: one of a session that died means nothing any more.
    pub(super) session: u64,
    /// The portion it is of.
    pub(super) portion: u64,
    /// The table whose changes are to be kept aside from here on; none in a high watermark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) low: Option<String>,
}

/// What became of a portion.
#[derive(Debug)]
enum Outcome {
    /// It stands in the log, up to this record.
    Appended { through: Sequence, start: Option<String> },
    /// It could not be taken, for this reason.
    Again(&'static str),
}

/// Where copier and capture hand things to each other.
pub(super) struct Desk {
    session: u64,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// What was read, for when its high watermark comes, oldest first.
    portions: VecDeque<(u64, Portion)>,
    outcomes: VecDeque<Outcome>,
    /// A table to be begun anew, until that is kept.
    restart: Option<String>,
    /// What other regions ask, oldest first, and how often it was tried.
    questions: VecDeque<(Question, u32)>,
    /// What was answered last, and until when that holds.
    answered: VecDeque<(String, u64, Instant)>,
}

impl Desk {
    pub(super) fn new() -> Self {
        Self { session: rand::random(), state: Mutex::default(), changed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_waiters();
    }

    /// What a watermark of this session says; none where it is another's.
    pub(super) fn read(&self, content: &[u8]) -> Option<Watermark> {
        let watermark: Watermark = serde_json::from_slice(content).ok()?;
        (watermark.session == self.session).then_some(watermark)
    }

    /// What was read of the portion whose high watermark has come.
    pub(super) fn take(&self, watermark: &Watermark) -> Option<Portion> {
        let mut state = self.state();
        let at = state.portions.iter().position(|(number, _)| *number == watermark.portion)?;
        state.portions.remove(at).map(|(_, portion)| portion)
    }

    /// The portion taken stands in the log.
    pub(super) fn appended(&self, through: Sequence, start: Option<String>) {
        self.change(|state| state.outcomes.push_back(Outcome::Appended { through, start }));
    }

    /// The portion taken is of no use, and with it those that were read behind it.
    pub(super) fn again(&self, why: &'static str) {
        self.change(|state| {
            state.portions.clear();
            state.outcomes.push_back(Outcome::Again(why));
        });
    }

    /// Another region asks something. One that asks more than it waits for is not heard, nor what was answered a moment
    /// ago: the answer is on its way.
    pub(super) fn ask(&self, question: Question, now: Instant) {
        self.change(|state| {
            state.answered.retain(|(.., until)| now < *until);
            let is_it = |verification: &str, number| {
                question.verification == verification && question.number == number
            };
            let answered = state.answered.iter_mut().find(|(id, number, _)| is_it(id, *number));
            let answered = answered.map(|(.., until)| {
                if holds_for(&question.about) == MARKED_FOR {
                    *until = now + MARKED_FOR;
                }
            });
            let waits =
                state.questions.iter().any(|(waiting, _)| is_it(&waiting.verification, waiting.number));
            if answered.is_none() && !waits && state.questions.len() < QUESTIONS_MAX {
                state.questions.push_back((question, 0));
            }
        });
    }

    /// A question's answer stands in the log.
    fn answered(&self, question: Question, now: Instant) {
        let holds = holds_for(&question.about);
        self.change(|state| {
            state.answered.truncate(ANSWERED_MAX - 1);
            state.answered.push_front((question.verification, question.number, now + holds));
        });
    }

    /// A question's answer could not be taken. After a few times it is dropped: whoever asked asks again, or not.
    fn ask_again(&self, question: Question, tries: u32) {
        if tries + 1 < ANSWER_TRIES_MAX {
            self.change(|state| state.questions.push_back((question, tries + 1)));
        }
    }

    /// Has a table begun anew; returns once that is kept.
    pub(super) async fn restart(&self, table: &str) {
        self.change(|state| state.restart = Some(table.to_owned()));
        self.until(|state| state.restart.is_none().then_some(())).await;
    }

    async fn until<T>(&self, mut found: impl FnMut(&mut State) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(found) = found(&mut self.state()) {
                return found;
            }
            changed.await;
        }
    }

    fn watermark(&self, portion: u64, low: Option<&str>) -> String {
        let watermark = Watermark { session: self.session, portion, low: low.map(str::to_owned) };
        serde_json::to_string(&watermark).expect("numbers and text")
    }
}

impl Watermark {
    /// The table whose changes are kept aside from here on, of a low watermark.
    pub(super) fn low(&self) -> Option<&str> {
        self.low.as_deref()
    }
}

/// How long an answer is remembered.
fn holds_for(about: &About) -> Duration {
    match about {
        About::Recover { .. } | About::Settle { .. } => MARKED_FOR,
        About::Tables | About::Sums { .. } | About::Rows { .. } | About::Keys { .. } | About::Mend { .. } => {
            ANSWERED_FOR
        }
    }
}

/// Has portions read and handed over, one after the other. What goes wrong here stops no stream: it is told, and
/// tried again.
pub(super) async fn run<C: Copier, L: Log>(
    params: &CaptureParams,
    copier: &mut C,
    log: &L,
    desk: &Desk,
    entry: &SourceEntry,
) -> std::convert::Infallible {
    let mut copying = Copying::new(params, copier, log, desk, entry);
    let mut retry = Retry::new(REST, RETRY_MAX);
    loop {
        match copying.turn().await {
            Ok(()) => retry.reset(),
            Err(fault) => {
                let delay = retry.next_delay();
                tracing::warn!(%fault, attempt = retry.attempt(), "a backfill waits");
                tokio::time::sleep(delay).await;
            }
        }
    }
}

struct Copying<'a, C, L> {
    params: &'a CaptureParams,
    copier: &'a mut C,
    log: &'a L,
    desk: &'a Desk,
    entry: &'a SourceEntry,
    /// What other regions lack of the log.
    behind: Behind,
    /// When that was last asked, and what a backfill waits for since.
    looked: Option<(Instant, Option<String>)>,
    /// The number of the last portion.
    portion: u64,
    /// The number of one whose low watermark may have gone out, and the high one has not: capture keeps what changes until
    /// it sees that.
    to_close: Option<u64>,
    /// Portions handed over of which nothing was heard yet, oldest first.
    under_way: VecDeque<Work>,
    /// The last portion was an answer: a backfill's is next, where there is one.
    answered: bool,
    /// In the log and not known to be durable, oldest first.
    unsettled: VecDeque<(Sequence, Option<String>)>,
}

/// What a portion is of.
enum Work {
    Backfill,
    Answer(Question, u32),
}

impl<'a, C: Copier, L: Log> Copying<'a, C, L> {
    fn new(
        params: &'a CaptureParams,
        copier: &'a mut C,
        log: &'a L,
        desk: &'a Desk,
        entry: &'a SourceEntry,
    ) -> Self {
        Self {
            params,
            copier,
            log,
            desk,
            entry,
            behind: Behind::default(),
            looked: None,
            portion: 0,
            to_close: None,
            under_way: VecDeque::new(),
            answered: false,
            unsettled: VecDeque::new(),
        }
    }

    async fn turn(&mut self) -> Result<()> {
        self.attend().await?;
        while let Some((through, start)) = self.unsettled.front() {
            if self.entry.acked.get().is_none_or(|acked| acked < *through) {
                break;
            }
            crate::crash::point("backfill.before_kept");
            self.copier.done(start.as_deref()).await?;
            crate::crash::point("backfill.after_kept");
            self.unsettled.pop_front();
        }
        while let Some(outcome) = { self.desk.state().outcomes.pop_front() } {
            match outcome {
                Outcome::Appended { through, start } => {
                    match self.under_way.pop_front() {
                        Some(Work::Backfill) => self.unsettled.push_back((through, start)),
                        // Nothing is kept of an answer: whoever asked asks again.
                        Some(Work::Answer(question, _)) => self.desk.answered(question, Instant::now()),
                        None => (),
                    }
                }
                Outcome::Again(why) => {
                    tracing::debug!(why, "a chunk or an answer is read again");
                    while let Some(work) = self.under_way.pop_back() {
                        self.again(work, why);
                    }
                }
            }
        }
        if self.under_way.len() >= UNDER_WAY_MAX {
            // Capture may wait for an answer before it comes to the watermark.
            let heard =
                |state: &mut State| (state.restart.is_some() || !state.outcomes.is_empty()).then_some(());
            self.desk.until(heard).await;
            return Ok(());
        }
        if self.unsettled.len() >= UNSETTLED_MAX {
            tokio::time::sleep(REST / 10).await;
            return Ok(());
        }
        self.close().await?;
        let (desk, number) = (self.desk, self.portion + 1);
        // In turns: neither a backfill nor whoever verifies waits for the other's end.
        let question = if self.answered { None } else { desk.state().questions.pop_front() };
        self.answered = question.is_some();
        let low_sent = AtomicBool::new(false);
        let read = self.read(number, question, &low_sent).await;
        if low_sent.into_inner() {
            (self.portion, self.to_close) = (number, Some(number));
        }
        let (work, portion) = read?;
        let Some(portion) = portion else {
            let nothing = self.under_way.is_empty() && self.unsettled.is_empty();
            if desk.state().questions.is_empty() {
                let asked = desk
                    .until(|state| (state.restart.is_some() || !state.questions.is_empty()).then_some(()));
                let _ = tokio::time::timeout(if nothing { REST } else { REST / 10 }, asked).await;
            }
            return Ok(());
        };
        self.portion = number;
        crate::crash::point("backfill.after_read");
        {
            let mut state = desk.state();
            let refused = state.outcomes.iter().find_map(|outcome| match outcome {
                Outcome::Again(why) => Some(*why),
                Outcome::Appended { .. } => None,
            });
            if let Some(why) = refused {
                // It was read behind one that is to be read again.
                drop(state);
                self.again(work, why);
                return Ok(());
            }
            state.portions.push_back((number, portion));
        }
        self.under_way.push_back(work);
        if let Err(fault) = self.copier.send(&desk.watermark(number, None)).await {
            // Whether it went out nobody knows: taken back, it means nothing when it comes.
            let mut state = desk.state();
            if state.portions.back().is_some_and(|(last, _)| *last == number) {
                state.portions.pop_back();
                drop(state);
                if let Some(work) = self.under_way.pop_back() {
                    self.again(work, "its high watermark could not be sent");
                }
            }
            return Err(fault);
        }
        self.to_close = None;
        Ok(())
    }

    /// What is next: of this number, where there is something. Says whether its low watermark may have gone out.
    async fn read(
        &mut self,
        number: u64,
        question: Option<(Question, u32)>,
        low_sent: &AtomicBool,
    ) -> Result<(Work, Option<Portion>)> {
        let desk = self.desk;
        let low = |table: &str| {
            low_sent.store(true, Relaxed);
            desk.watermark(number, Some(table))
        };
        Ok(match question {
            Some((question, tries)) => {
                // Where it fails, or the stream waits, it is dropped: whoever asked asks again.
                let stream_waits = desk.until(|state| state.restart.is_some().then_some(()));
                let portion = self.copier.answer(&question, low, stream_waits).await?;
                (Work::Answer(question, tries), portion)
            }
            None if self.is_held_back().await? => (Work::Backfill, None),
            None => (Work::Backfill, self.copier.next(low).await?),
        })
    }

    /// Sends the high watermark of a portion that nothing came of: capture keeps what changes for it no more.
    async fn close(&mut self) -> Result<()> {
        if let Some(number) = self.to_close {
            self.copier.send(&self.desk.watermark(number, None)).await?;
            self.to_close = None;
        }
        Ok(())
    }

    /// Whether a region is too far behind for more rows to come before its changes.
    async fn is_held_back(&mut self) -> Result<bool> {
        if self.copier.lag_max().is_none() {
            (self.behind, self.looked) = (Behind::default(), None);
            return Ok(false);
        }
        if let Some((looked, why)) = &self.looked
            && looked.elapsed() < NOTE_INTERVAL
        {
            return Ok(why.is_some());
        }
        // Where nobody can tell how far a region is, that is what is waited for.
        let why = self.too_far_behind().await.unwrap_or_else(|fault| {
            Some(format!("[{}] {} (next: {})", fault.code(), fault.message(), fault.remedy()))
        });
        if let Some(why) = &why {
            self.copier.wait_for(why).await?;
        }
        let is_held_back = why.is_some();
        self.looked = Some((Instant::now(), why));
        Ok(is_held_back)
    }

    /// Which region is too far behind, and by how much.
    async fn too_far_behind(&mut self) -> Result<Option<String>> {
        let Some((regions, lag_max)) = self.copier.lag_max() else { return Ok(None) };
        let now = Instant::now();
        let mut slowest: Option<(Offset, &str)> = None;
        for to in regions {
            let to_group = to.parse().map(|to| names::group(&to, &self.params.region, &self.params.stream));
            let group = to_group
                .map_err(|error| Fault::new(Code::Internal, "a backfill is for no region").because(error))?;
            let applied = self.log.published_by(&group).await?.unwrap_or(Offset(0));
            if slowest.is_none_or(|(slowest, _)| applied < slowest) {
                slowest = Some((applied, to));
            }
        }
        if let Some(bounds) = self.log.bounds().await? {
            self.behind.note(bounds.high, now);
        }
        Ok(slowest.and_then(|(applied, to)| {
            let lag = self.behind.lag(applied, now);
            let (lag, most) = (lag.as_secs(), lag_max.as_secs_f64());
            (lag as f64 > most).then(|| format!("{to} is {lag} s behind; --max-lag is {most} s"))
        }))
    }

    /// Has a portion read again.
    fn again(&mut self, work: Work, why: &'static str) {
        match work {
            Work::Backfill => self.copier.again(why),
            Work::Answer(question, tries) => self.desk.ask_again(question, tries),
        }
    }

    /// Does what capture waits for.
    async fn attend(&mut self) -> Result<()> {
        let Some(table) = self.desk.state().restart.clone() else { return Ok(()) };
        tracing::info!(
            table,
            "a row without its unchanged values took another key: the table is copied anew"
        );
        self.copier.restart(&table).await?;
        self.desk.change(|state| state.restart = None);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
