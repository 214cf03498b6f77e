//! Verification beside delivering: asks the source's region, compares its answers with what is here at their place.
//!
//! ```text
//!  ask ──▶ control topic ──▶ its source reads ──▶ the answer, in the stream ──▶ applied up to it ─▶ hold ─▶ look
//!   ▲                                                                                              │ delivering
//!   └──────────── what follows (Survey) ◀── compared, kept ◀────────────────────────────────────── ┘ goes on
//! ```
//!
//! Delivering waits only while a snapshot is taken. One question is under way at a time, and one that is not answered
//! is asked again: whoever asks twice gets two answers, of which the second is nobody's.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};

use super::DeliverParams;
use crate::{
    changelog::Log,
    fault::{Code, Fault, Result},
    metrics::VerifyMeter,
    retry::Retry,
    sink::{Comparison, Inspected, Inspector, Verification},
    verify::{
        About, Answer, Difference, FINDINGS_MAX, Finding, Found, KEYS_MAX, Key, Question, Settled, Survey,
        TableName, hashes,
    },
};

/// How soon it is seen that somebody wants to verify.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// What goes wrong is tried again after so long at most.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// A question that is not answered within this time is asked again: it may have been put while nobody listened.
const ASK_INTERVAL: Duration = Duration::from_secs(5);
/// Later and later, up to this.
const ASK_INTERVAL_MAX: Duration = Duration::from_secs(60);
/// Delivering waits for a snapshot so long at most; the answer is no good then, and asked for again.
const HOLD_MAX: Duration = Duration::from_secs(2);
/// So often in a row: the ranges are asked for again each time.
const ELSEWHERE_MAX: u32 = 3;
/// Why a table is given up of which a range here holds thousands of rows that stand elsewhere there, and are equal.
const SORTED_OTHERWISE: &str = "[LF-TABLE] its key is sorted otherwise there than here (another collation, or an enum whose values \
    stand in another order): ranges of it cannot be compared (next: give the key's columns the same collation in both regions, \
    ALTER TABLE … ALTER … TYPE … COLLATE …, and ask again)";
/// How often it is looked whether rows that were mended are right, where they change meanwhile.
const LOOKS_MAX: u32 = 20;

/// Where whoever delivers meets whoever waits for an answer.
#[derive(Default)]
pub(super) struct Meeting {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
enum State {
    #[default]
    Idle,
    /// This answer is waited for: the verification, and the question's number.
    Expecting(String, u64),
    /// It has come; delivering waits.
    Met(Arc<Answer>),
    /// Delivering may go on.
    Released,
}

impl Meeting {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: State) {
        *self.state() = state;
        self.changed.notify_waiters();
    }

    async fn until<T>(&self, mut found: impl FnMut(&State) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(found) = found(&self.state()) {
                return found;
            }
            changed.await;
        }
    }

    /// Everything before an answer is applied, and nothing behind it. Returns once whoever waits for it holds on to
    /// what is there.
    pub(super) async fn pass(&self, answer: &Arc<Answer>) {
        let expected = matches!(&*self.state(), State::Expecting(verification, number)
            if *verification == answer.verification && *number == answer.number);
        if !expected {
            return;
        }
        self.set(State::Met(Arc::clone(answer)));
        let released = self.until(|state| (!matches!(state, State::Met(_))).then_some(()));
        if timeout(HOLD_MAX, released).await.is_err() {
            self.set(State::Idle);
        }
    }

    /// From here on this answer is waited for: also where it came a moment ago, and nobody was there in time.
    fn expect(&self, verification: &str, number: u64) {
        let mut state = self.state();
        if !matches!(&*state, State::Met(_)) {
            *state = State::Expecting(verification.to_owned(), number);
        }
    }

    /// Lets delivering go on; false where it has gone on already.
    fn release(&self) -> bool {
        let waits = matches!(&*self.state(), State::Met(_));
        if waits {
            self.set(State::Released);
        }
        waits
    }
}

/// Verifies whenever somebody asks. What goes wrong here stops no link: it is told, and tried again.
pub(super) async fn run<L: Log, I: Inspector>(
    params: &DeliverParams,
    log: &L,
    inspector: &mut I,
    meeting: &Meeting,
    meter: VerifyMeter,
) -> std::convert::Infallible {
    // An answer to a session before this one is nobody's.
    let number = u64::from(rand::random::<u32>());
    let mut verifying = Verifying {
        params,
        log,
        inspector,
        meeting,
        meter,
        number,
        shown: false,
        in_hand: None,
        waits: false,
        took: Duration::ZERO,
    };
    let mut retry = Retry::new(LOOK_INTERVAL, RETRY_MAX);
    loop {
        match verifying.turn().await {
            Ok(true) => retry.reset(),
            Ok(false) => {
                retry.reset();
                sleep(LOOK_INTERVAL).await;
            }
            Err(fault) => {
                meeting.set(State::Idle);
                verifying.inspector.let_go();
                verifying.tell(&fault).await;
                let delay = retry.next_delay();
                match &verifying.in_hand {
                    Some(id) => tracing::warn!(%fault, id, attempt = retry.attempt(), "a verification waits"),
                    // Nobody waits for one: who delivers tells the same.
                    None => tracing::debug!(%fault, "whether somebody wants to verify is not known"),
                }
                sleep(delay).await;
            }
        }
    }
}

struct Verifying<'a, L, I> {
    params: &'a DeliverParams,
    log: &'a L,
    inspector: &'a mut I,
    meeting: &'a Meeting,
    meter: VerifyMeter,
    /// The last question's.
    number: u64,
    /// When everything was last equal has been told.
    shown: bool,
    /// The verification in hand,
    in_hand: Option<String>,
    /// and whether it was said what it waits for.
    waits: bool,
    /// How long the last answer was read for, on the side where it took longer, where nobody has rested for it.
    took: Duration,
}

impl<L: Log, I: Inspector> Verifying<'_, L, I> {
    /// Goes on with what is asked for; false where nothing is.
    async fn turn(&mut self) -> Result<bool> {
        if !self.shown {
            if let Some(at) = self.inspector.last_clean().await? {
                self.meter.clean(at);
            }
            self.shown = true;
        }
        let taken_up = self.inspector.take_up().await?;
        let Some(verification) = taken_up else {
            self.in_hand = None;
            return Ok(false);
        };
        let id = &verification.id;
        if self.in_hand.as_ref() != Some(id) {
            // Whatever a session before this one said it waited for.
            self.inspector.wait_for(id, None).await?;
            self.in_hand = Some(id.clone());
            self.took = Duration::ZERO;
        }
        let Some(tables) = &verification.tables else {
            let Some((answer, _)) = self.ask(&verification, &About::Tables).await? else { return Ok(true) };
            match &answer.found {
                Found::Tables(tables) => {
                    for (table, why) in self.inspector.begin(id, tables).await? {
                        self.note_given_up(id, &table, &why);
                    }
                }
                Found::Refused(why) => {
                    let message = format!("{} does not tell its tables: {why}", self.params.from);
                    return Err(Fault::new(Code::TableDiffers, message));
                }
                other => {
                    let message = format!("asked for its tables, {} answered {other:?}", self.params.from);
                    return Err(Fault::new(Code::ProtocolUnknown, message));
                }
            }
            return Ok(true);
        };
        for table in tables.iter().filter(|table| !table.done) {
            if !self.table(&verification, table).await? {
                return Ok(true);
            }
        }
        self.inspector.end(id).await?;
        self.shown = false;
        Ok(true)
    }

    /// Says to whoever waits why it does not go on, where that can be said.
    async fn tell(&mut self, fault: &Fault) {
        let Some(id) = self.in_hand.clone() else { return };
        self.waits = true;
        let why = format!("[{}] {} (next: {})", fault.code(), fault.message(), fault.remedy());
        if let Err(fault) = self.inspector.wait_for(&id, Some(&why)).await {
            tracing::debug!(%fault, "nobody can be told why a verification waits");
        }
    }

    /// Compares a table; false where nobody wants it any longer.
    async fn table(&mut self, verification: &Verification, table: &Inspected) -> Result<bool> {
        let id = &verification.id;
        let mut survey = Survey::new(table.table.clone(), table.after.clone(), verification.options);
        // Rows that differ and are not put right. What was noted in ranges that are compared again is found again.
        let mut left = if verification.mend { 0 } else { table.differences };
        // How often in a row a range here held thousands of rows more, which were all there too.
        let mut elsewhere = 0;
        loop {
            while let Some(about) = survey.next() {
                let Some((answer, here)) = self.ask(verification, &about).await? else { return Ok(false) };
                if let Err(why) = survey.take(&answer, &here) {
                    return self.give_up(verification, table, why).await;
                }
            }
            let Some(mut settled) = survey.settled() else { return Ok(true) };
            if settled.cut && settled.findings.is_empty() {
                // Or thousands of rows came just then: those do not come the next time.
                elsewhere += 1;
                if elsewhere < ELSEWHERE_MAX {
                    continue;
                }
                return self.give_up(verification, table, SORTED_OTHERWISE.to_owned()).await;
            }
            elsewhere = 0;
            let findings = std::mem::take(&mut settled.findings);
            let unsure = findings.iter().filter(|it| it.difference == Difference::Unsure).count();
            let (before, different) = (left, (findings.len() - unsure) as u64);
            left += findings.len() as u64;
            let mut mended = 0;
            if verification.mend && !findings.is_empty() {
                // Noted first: what is put right and then not noted nobody would ever know of. How far the table is compared
                // is noted last, so that these ranges are compared again where this is the end of us.
                let found = Settled { findings, ..Settled::default() };
                self.inspector.keep(id, table, &found, &Comparison::GoesOn).await?;
                crate::crash::point("verify.before_mended");
                let put_right = self.mend(verification, table, &found.findings).await?;
                let Some(put_right) = put_right else { return Ok(false) };
                mended = put_right;
                left = left.saturating_sub(mended);
            } else {
                settled.findings = findings;
            }
            let comparison = match settled.ended {
                _ if left >= FINDINGS_MAX as u64 || (settled.cut && mended == 0) => Comparison::Enough,
                true => Comparison::Ended,
                false => Comparison::GoesOn,
            };
            if settled.cut && comparison == Comparison::GoesOn {
                // They are counted when they are compared to their end, and so is what could not be put right.
                (settled.rows, settled.ranges, left) = (0, 0, before);
                self.meter.compared(0, mended);
            } else {
                self.meter.compared(settled.ranges, different);
            }
            crate::crash::point("verify.before_kept");
            self.inspector.keep(id, table, &settled, &comparison).await?;
            if comparison != Comparison::GoesOn {
                return Ok(true);
            }
        }
    }

    /// Ends the comparison of a table that cannot be compared.
    async fn give_up(&mut self, verification: &Verification, table: &Inspected, why: String) -> Result<bool> {
        self.note_given_up(&verification.id, &table.table, &why);
        let given_up = Comparison::GivenUp(why);
        self.inspector.keep(&verification.id, table, &Settled::default(), &given_up).await?;
        Ok(true)
    }

    fn note_given_up(&self, id: &str, table: &TableName, why: &str) {
        tracing::warn!(%table, id, why, "a table could not be compared");
        self.meter.given_up();
    }

    /// Leaves the databases to their users for as long as was asked for, after reading as long as the slower did. False where
    /// nobody wants the verification any longer.
    async fn rest(&mut self, verification: &Verification) -> Result<bool> {
        let (id, load) = (&verification.id, verification.max_source_load.clamp(0.01, 1.0));
        let rest = std::mem::take(&mut self.took).mul_f64(1.0 / load - 1.0);
        let until = Instant::now() + rest;
        if rest > LOOK_INTERVAL {
            self.waits = true;
            let seconds = rest.as_secs_f64();
            let why = format!("it rests for {seconds:.0} s, to read for no more than {load} of the time");
            self.inspector.wait_for(id, Some(&why)).await?;
        }
        while until.saturating_duration_since(Instant::now()) > LOOK_INTERVAL {
            sleep(LOOK_INTERVAL).await;
            self.inspector.goes_on(id).await?;
            if !self.inspector.is_wanted(id).await? {
                return Ok(false);
            }
        }
        sleep_until(until).await;
        self.inspector.is_wanted(id).await
    }

    /// Has the rows that differ come as they are there, and looks whether they are here then: how many are; none where
    /// nobody wants it any longer.
    async fn mend(
        &mut self,
        verification: &Verification,
        inspected: &Inspected,
        findings: &[Finding],
    ) -> Result<Option<u64>> {
        let (id, table) = (&verification.id, &inspected.table);
        let differs = |it: &&Finding| !it.key.is_empty() && it.difference != Difference::Unsure;
        let all: Vec<Key> = findings.iter().filter(differs).map(|it| it.key.clone()).collect();
        let mut left = &all[..];
        while !left.is_empty() {
            let keys = left[..left.len().min(KEYS_MAX)].to_vec();
            let about = About::Mend { table: table.clone(), keys };
            let Some(answer) = self.answered(verification, &about).await? else { return Ok(None) };
            self.meeting.release();
            match &answer.found {
                Found::Mended(keys) if *keys > 0 => left = &left[left.len().min(*keys)..],
                other => {
                    tracing::warn!(%table, answer = ?other, "rows are not mended");
                    break;
                }
            }
            self.inspector.goes_on(id).await?;
            self.took = Duration::from_micros(answer.took_micros);
        }
        // What came may have been refused here, or have changed since: as it is now is what counts.
        let mut here_as_there: HashSet<Key> = HashSet::new();
        for keys in all.chunks(KEYS_MAX) {
            for _ in 0..LOOKS_MAX {
                let undone: Vec<Key> =
                    keys.iter().filter(|key| !here_as_there.contains(*key)).cloned().collect();
                if undone.is_empty() {
                    break;
                }
                let about = About::Keys { table: table.clone(), keys: undone.clone(), values: false };
                let Some((answer, here)) = self.ask(verification, &about).await? else { return Ok(None) };
                let (Found::Keys(there), Found::Keys(here)) = (&answer.found, &here) else { break };
                let (there, here) = (hashes(there), hashes(here));
                let stood = |key: &Key| !answer.all_unsure && !answer.unsure.contains(key);
                let is_same = |key: &Key| stood(key) && there.get(key) == here.get(key);
                here_as_there.extend(undone.into_iter().filter(is_same));
                if answer.unsure.is_empty() && !answer.all_unsure {
                    break;
                }
            }
        }
        let mended: Vec<Key> = all.into_iter().filter(|key| here_as_there.contains(key)).collect();
        if mended.is_empty() {
            return Ok(Some(0));
        }
        self.inspector.mended(id, inspected, &mended).await?;
        let rows = mended.len() as u64;
        if mended.len() > KEYS_MAX {
            tracing::info!(%table, id, rows, "rows are mended: each is in landfall.verification_finding");
        } else {
            for key in mended {
                tracing::info!(%table, id, key = key.join(", "), "a row is mended");
            }
        }
        Ok(Some(rows))
    }

    /// Asks, and looks what is here at the answer's place. None where nobody wants it any longer.
    async fn ask(
        &mut self,
        verification: &Verification,
        about: &About,
    ) -> Result<Option<(Arc<Answer>, Found)>> {
        loop {
            let Some(answer) = self.answered(verification, about).await? else { return Ok(None) };
            let Some(table) = about.table().filter(|_| answer.layout.is_some()) else {
                // It tells of no table: there is nothing to hold.
                self.meeting.release();
                self.inspector.goes_on(&verification.id).await?;
                let here = answer.found.clone();
                return Ok(Some((answer, here)));
            };
            let held = self.inspector.hold(table).await;
            let in_time = self.meeting.release();
            held?;
            let since = Instant::now();
            let here = self.inspector.look(about, &answer).await?;
            self.took = since.elapsed().max(Duration::from_micros(answer.took_micros));
            if in_time {
                self.inspector.goes_on(&verification.id).await?;
                return Ok(Some((answer, here)));
            }
        }
    }

    /// Asks until an answer comes: delivering stands at its place then.
    async fn answered(&mut self, verification: &Verification, about: &About) -> Result<Option<Arc<Answer>>> {
        if !self.rest(verification).await? {
            return Ok(None);
        }
        let id = &verification.id;
        self.number += 1;
        let question = Question {
            verification: id.clone(),
            number: self.number,
            by: self.params.here.to_string(),
            stream: self.params.stream.clone(),
            about: about.clone(),
        };
        let text = serde_json::to_vec(&question).expect("text keys, text and numbers");
        let (since, mut interval) = (Instant::now(), ASK_INTERVAL);
        loop {
            let again = Instant::now() + interval;
            self.meeting.expect(id, self.number);
            // Where the link lags, each comes back as late as the first.
            interval = (2 * interval).min(ASK_INTERVAL_MAX);
            if let Err(fault) = self.log.ask(&text).await {
                self.waits = true;
                let why = format!("[{}] {} (next: {})", fault.code(), fault.message(), fault.remedy());
                self.inspector.wait_for(id, Some(&why)).await?;
            }
            let met = self.meeting.until(|state| match state {
                State::Met(answer) => Some(Arc::clone(answer)),
                _ => None,
            });
            if let Ok(answer) = timeout_at(again, met).await {
                if std::mem::take(&mut self.waits) {
                    self.inspector.wait_for(id, None).await?;
                }
                return Ok(Some(answer));
            }
            self.waits = true;
            let (from, seconds) = (&self.params.from, since.elapsed().as_secs());
            let why =
                format!("{from} has not answered for {seconds} s, or what it said is not applied here yet");
            if !self.inspector.wait_for(id, Some(&why)).await? {
                self.meeting.set(State::Idle);
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn answer(number: u64) -> Arc<Answer> {
        let verification = "v".to_owned();
        let (found, unsure) = (Found::Keys(Vec::new()), Vec::new());
        Arc::new(Answer {
            verification,
            number,
            took_micros: 1,
            layout: None,
            found,
            unsure,
            all_unsure: false,
        })
    }

    #[tokio::test]
    async fn delivering_waits_for_nobody_but_whoever_expects_the_answer() {
        let meeting = Meeting::default();
        assert!(meeting.pass(&answer(1)).now_or_never().is_some(), "nobody verifies");
        meeting.expect("v", 2);
        assert!(meeting.pass(&answer(1)).now_or_never().is_some(), "an answer to an earlier question");
        let expected = answer(2);
        let mut passing = std::pin::pin!(meeting.pass(&expected));
        assert!(passing.as_mut().now_or_never().is_none());
        assert!(meeting.release(), "it is held on to in time");
        passing.await;
        assert!(!meeting.release(), "delivering has gone on");
        assert!(meeting.pass(&expected).now_or_never().is_some(), "the same once more");
        // Nobody was there in time, or it is asked for a second time: the next that comes is waited for again.
        meeting.set(State::Idle);
        meeting.expect("v", 2);
        let mut passing = std::pin::pin!(meeting.pass(&expected));
        assert!(passing.as_mut().now_or_never().is_none());
        meeting.expect("v", 2);
        assert!(meeting.release(), "it has come, and is waited for no more");
        passing.await;
    }
}
