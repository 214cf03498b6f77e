//! A source in memory: the same promises, for the contract suite and for roads under test.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::{
    change::{Change, Ordered},
    envelope::body::Server,
    fault::{Code, Fault, Result},
    lsn::Lsn,
    position::{Incarnation, Position, PostgresPosition, WriterEpoch},
    source::{Content, Copier, Event, Keeper, Kept, Opened, Portion, Source, Vitals, Watcher, With},
    stamp::Micros,
    verify::{Answer, Found, Question},
};

/// A database's log, shared by whoever clones it.
#[derive(Clone, Default)]
pub struct MemoryDatabase(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    grown: Notify,
}

#[derive(Default)]
struct State {
    transactions: Vec<Transaction>,
    /// Everything up to here may be released.
    confirmed: u64,
    /// A session holds the log.
    held: bool,
    live: bool,
    epoch: u32,
}

#[derive(Clone)]
struct Transaction {
    position: PostgresPosition,
    events: Vec<Event>,
}

/// The length of a commit record, as it were.
const COMMIT_BYTES: u64 = 8;

impl MemoryDatabase {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Commits a transaction.
    pub fn commit(&self, changes: Vec<Change>) {
        let ordered = changes.into_iter().enumerate();
        self.append(
            ordered.map(|(at, change)| Event::Change(Ordered { ordinal: at as u64, change })).collect(),
        );
    }

    fn append(&self, events: Vec<Event>) {
        let mut state = self.state();
        let number = state.transactions.len() as u64 + 1;
        let (commit, xid) = (Lsn(number * 100), number as u32);
        let position =
            PostgresPosition { commit, end: Lsn(commit.0 + COMMIT_BYTES), xid, time: Micros(number as i64) };
        state.transactions.push(Transaction { position, events });
        drop(state);
        self.0.grown.notify_waiters();
    }

    /// Up to where its log may be released.
    pub fn confirmed(&self) -> Lsn {
        Lsn(self.state().confirmed)
    }

    fn kept(&self) -> Kept {
        let state = self.state();
        let written = state.transactions.last().map_or(0, |transaction| transaction.position.end.0);
        Kept { retained_bytes: Some(written.saturating_sub(state.confirmed)), safe_bytes: None }
    }
}

/// Reads a [`MemoryDatabase`].
pub struct MemorySource {
    database: MemoryDatabase,
    session: Option<Session>,
}

struct Session {
    database: MemoryDatabase,
    /// The next transaction to send.
    next: usize,
    events: VecDeque<Event>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.database.state().held = false;
    }
}

impl MemorySource {
    /// Takes hold of nothing yet.
    pub fn new(database: MemoryDatabase) -> Self {
        Self { database, session: None }
    }
}

fn place(end: u64) -> Position {
    Position::Postgres(PostgresPosition { commit: Lsn(end), end: Lsn(end), xid: 0, time: Micros(0) })
}

impl Source for MemorySource {
    type Keeper = MemoryKeeper;
    type Copier = MemoryCopier;
    type Watcher = MemoryWatcher;

    async fn open(&mut self) -> Result<(Opened, MemoryKeeper, MemoryCopier)> {
        self.session = None;
        let mut state = self.database.state();
        if std::mem::replace(&mut state.held, true) {
            return Err(Fault::new(Code::SlotBusy, "another session holds the log"));
        }
        let confirmed = state.confirmed;
        let next = state.transactions.partition_point(|transaction| transaction.position.end.0 <= confirmed);
        let written = state.transactions.last().map_or(0, |transaction| transaction.position.end.0);
        let opened = Opened {
            server: Server { system: "1".into(), timeline: 1 },
            incarnation: Incarnation(1),
            live: state.live,
            consistent: place(0),
            confirmed: place(confirmed),
            written: place(written),
            scope: Vec::new(),
        };
        drop(state);
        self.session = Some(Session { database: self.database.clone(), next, events: VecDeque::new() });
        Ok((opened, MemoryKeeper(self.database.clone()), MemoryCopier))
    }

    async fn next(&mut self) -> Result<Event> {
        let session = self.session.as_mut().expect("opened before it is read");
        loop {
            let grown = session.database.0.grown.notified();
            if let Some(event) = session.events.pop_front() {
                return Ok(event);
            }
            let transaction = session.database.state().transactions.get(session.next).cloned();
            if let Some(Transaction { position, events }) = transaction {
                session.next += 1;
                let begin = Position::Postgres(PostgresPosition { end: position.commit, ..position });
                let end = Position::Postgres(PostgresPosition { xid: 0, ..position });
                session.events.push_back(Event::Begin(begin));
                session.events.extend(events);
                session.events.extend([Event::Commit(end), Event::Idle(place(position.end.0))]);
                continue;
            }
            grown.await;
        }
    }

    fn confirm(&mut self, position: &Position) {
        let Position::Postgres(at) = position;
        let mut state = self.database.state();
        state.confirmed = state.confirmed.max(at.end.0);
    }

    fn watcher(&self) -> MemoryWatcher {
        MemoryWatcher(self.database.clone())
    }
}

/// Works beside a [`MemorySource`].
pub struct MemoryKeeper(MemoryDatabase);

impl Keeper for MemoryKeeper {
    async fn raise_epoch(&mut self, above: WriterEpoch) -> Result<WriterEpoch> {
        let mut state = self.0.state();
        state.epoch = state.epoch.max(above.0) + 1;
        Ok(WriterEpoch(state.epoch))
    }

    async fn mark_live(&mut self) -> Result<()> {
        self.0.state().live = true;
        Ok(())
    }

    async fn beat(&mut self, content: &str) -> Result<()> {
        self.0.append(vec![Event::Heartbeat(Bytes::copy_from_slice(content.as_bytes()))]);
        Ok(())
    }

    async fn inspect(&mut self) -> Result<Vitals> {
        Ok(Vitals { kept: self.0.kept(), amiss: Vec::new() })
    }
}

/// Looks at a [`MemoryDatabase`].
pub struct MemoryWatcher(MemoryDatabase);

impl Watcher for MemoryWatcher {
    async fn look(&mut self) -> Result<Kept> {
        Ok(self.0.kept())
    }

    fn rest(&mut self) {}
}

/// Copies nothing: a log in memory begins with its first row.
pub struct MemoryCopier;

impl Copier for MemoryCopier {
    async fn filling(&mut self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    async fn next(&mut self, _low: impl Fn(&str) -> String + Send) -> Result<Option<Portion>> {
        Ok(None)
    }

    async fn answer(
        &mut self,
        question: &Question,
        _low: impl Fn(&str) -> String + Send,
        _given_up: impl Future<Output = ()> + Send,
    ) -> Result<Option<Portion>> {
        let answer = Answer {
            verification: question.verification.clone(),
            number: question.number,
            took_micros: 0,
            layout: None,
            found: Found::Refused("a log in memory has no tables".to_owned()),
            unsure: Vec::new(),
            all_unsure: false,
        };
        Ok(Some(Portion {
            to: vec![question.by.clone()],
            content: Content::Answer { answer, read: None, with: With::Nothing },
        }))
    }

    fn lag_max(&self) -> Option<(&[String], Duration)> {
        None
    }

    async fn wait_for(&mut self, _why: &str) -> Result<()> {
        Ok(())
    }

    async fn send(&mut self, _watermark: &str) -> Result<()> {
        Ok(())
    }

    async fn done(&mut self, _start: Option<&str>) -> Result<()> {
        Ok(())
    }

    fn again(&mut self, _why: &'static str) {}

    async fn restart(&mut self, _table: &str) -> Result<()> {
        Ok(())
    }

    fn written_by(&mut self, _epoch: WriterEpoch) {}

    async fn begin_anew(&mut self) -> Result<()> {
        Ok(())
    }

    async fn starts(&mut self) -> Result<Vec<(String, String)>> {
        Ok(Vec::new())
    }
}
