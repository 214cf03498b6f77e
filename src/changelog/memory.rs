//! A log in memory: the same promises, for the contract suite and for pipelines under test.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::{
    changelog::{Bounds, Counts, Entry, Log, Reader, Writer, kafka::PACK_BYTES},
    envelope::{Header, InvalidHeader, Packer, unpack},
    fault::{Code, Fault, Result},
    position::Offset,
    stamp::Micros,
};

/// One stream's log, shared by whoever clones it.
#[derive(Clone, Default)]
pub struct MemoryLog(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    grown: Notify,
}

#[derive(Default)]
struct State {
    /// The offset of the first records kept.
    low: i64,
    /// What stands at each offset.
    entries: Vec<Vec<Entry>>,
    checkpoint: Option<Vec<u8>>,
    starts: BTreeMap<String, Vec<u8>>,
    published: Option<Offset>,
    /// How many more records are taken before one is refused.
    refuse_after: Option<usize>,
    /// What was asked, in a log of its own.
    questions: Option<MemoryLog>,
}

impl MemoryLog {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, records: Vec<(std::result::Result<Header, InvalidHeader>, Bytes)>) {
        let mut state = self.state();
        let offset = Offset(state.low + state.entries.len() as i64);
        let mut left = records.len();
        let entry = |(header, value)| {
            left -= 1;
            Entry { offset, more: left > 0, appended: Micros(0), header, value }
        };
        state.entries.push(records.into_iter().map(entry).collect());
        drop(state);
        self.0.grown.notify_waiters();
    }

    /// Forgets everything before `offset`, as retention would.
    pub fn retain_from(&self, offset: Offset) {
        let mut state = self.state();
        let gone = (offset.0 - state.low).clamp(0, state.entries.len() as i64);
        state.entries.drain(..gone as usize);
        state.low += gone;
    }

    /// Refuses one record after taking `records` more: its writer is dead then, as after a fatal error.
    pub fn refuse_after(&self, records: usize) {
        self.state().refuse_after = Some(records);
    }

    /// What was last published.
    pub fn published(&self) -> Option<Offset> {
        self.state().published
    }

    fn may_take(&self) -> Result<()> {
        let mut state = self.state();
        match &mut state.refuse_after {
            Some(0) => {
                state.refuse_after = None;
                return Err(Fault::new(Code::KafkaRejected, "refused, as it was told to"));
            }
            Some(left) => *left -= 1,
            None => (),
        }
        Ok(())
    }

    fn asked(&self) -> MemoryLog {
        self.state().questions.get_or_insert_default().clone()
    }

    /// Every entry kept.
    pub fn entries(&self) -> Vec<Entry> {
        self.state().entries.concat()
    }
}

impl Log for MemoryLog {
    type Writer = MemoryWriter;
    type Reader = MemoryReader;

    async fn ensure(&self, _may_create: bool) -> Result<()> {
        Ok(())
    }

    async fn bounds(&self) -> Result<Option<Bounds>> {
        let state = self.state();
        let high = state.low + state.entries.len() as i64;
        Ok(Some(Bounds { low: Offset(state.low), high: Offset(high) }))
    }

    async fn retention(&self) -> Result<Option<Duration>> {
        Ok(None)
    }

    fn writer(&self) -> Result<MemoryWriter> {
        Ok(MemoryWriter { log: self.clone(), packer: Packer::new(PACK_BYTES), counts: Arc::default() })
    }

    fn reader(&self, from: Offset) -> Result<MemoryReader> {
        Ok(MemoryReader { log: self.clone(), next: from })
    }

    async fn checkpoint(&self) -> Result<Option<Vec<u8>>> {
        Ok(self.state().checkpoint.clone())
    }

    async fn start(&self, to: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.state().starts.get(to).cloned())
    }

    async fn ask(&self, question: &[u8]) -> Result<()> {
        self.asked().put(vec![(Err(InvalidHeader::Missing), Bytes::copy_from_slice(question))]);
        Ok(())
    }

    async fn questions(&self) -> Result<MemoryReader> {
        let log = self.asked();
        let next = Offset(log.entries().len() as i64);
        Ok(MemoryReader { log, next })
    }

    fn publish(&self, next: Offset) {
        self.state().published = Some(next);
    }

    /// In memory there is one reader, whatever it is called.
    async fn published_by(&self, _group: &str) -> Result<Option<Offset>> {
        Ok(self.state().published)
    }
}

/// Appends to a [`MemoryLog`]; what is handed over is acknowledged at once.
pub struct MemoryWriter {
    log: MemoryLog,
    packer: Packer,
    counts: Arc<Counts>,
}

impl MemoryWriter {
    fn put_gathered(&mut self) {
        if let Some(packed) = self.packer.packed() {
            let value = Bytes::copy_from_slice(packed.value);
            let records = if packed.records > 1 {
                let records = unpack(&packed.header, packed.key, &value).expect("as it was packed");
                records.into_iter().map(|(header, value)| (Ok(header), value)).collect()
            } else {
                vec![(Header::open(Some(&packed.header), packed.key, &value), value)]
            };
            self.log.put(records);
            self.counts.give(packed.records as u64);
            self.counts.acknowledge(packed.records as u64);
            self.packer.clear();
        }
    }
}

impl Writer for MemoryWriter {
    async fn append(&mut self, header: &Header, key: &[u8], value: &[u8]) -> Result<Duration> {
        self.log.may_take()?;
        if !self.packer.may_share(header, value) {
            self.put_gathered();
            let sealed = header.seal(key, value);
            let header = Header::open(Some(&sealed), key, value);
            self.log.put(vec![(header, Bytes::copy_from_slice(value))]);
            self.counts.give(1);
            self.counts.acknowledge(1);
        } else if !self.packer.take(header, key, value) {
            self.put_gathered();
            assert!(self.packer.take(header, key, value), "the first of a pack is taken");
        }
        Ok(Duration::ZERO)
    }

    async fn hand_over(&mut self) -> Result<Duration> {
        self.put_gathered();
        Ok(Duration::ZERO)
    }

    fn acknowledged(&self) -> u64 {
        self.counts.acknowledged()
    }

    fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    fn last_offset(&self) -> Option<Offset> {
        let state = self.log.state();
        (self.acknowledged() > 0).then(|| Offset(state.low + state.entries.len() as i64 - 1))
    }

    async fn acknowledged_beyond(&self, seen: u64) -> Result<()> {
        if self.acknowledged() > seen { Ok(()) } else { std::future::pending().await }
    }

    fn unkept(&mut self) -> Option<Duration> {
        None
    }

    async fn all_kept(&self) -> Result<()> {
        Ok(())
    }

    fn keep_checkpoint(&mut self, value: &[u8]) -> Result<()> {
        self.log.state().checkpoint = Some(value.to_vec());
        Ok(())
    }

    fn keep_start(&mut self, to: &str, value: &[u8]) -> Result<()> {
        self.log.state().starts.insert(to.to_owned(), value.to_vec());
        Ok(())
    }

    fn fill(&self) -> f64 {
        0.0
    }

    fn sent(&self) -> u64 {
        0
    }
}

/// Reads a [`MemoryLog`].
pub struct MemoryReader {
    log: MemoryLog,
    next: Offset,
}

impl Reader for MemoryReader {
    async fn read(&mut self) -> Result<Vec<Entry>> {
        loop {
            let log = self.log.clone();
            let grown = log.0.grown.notified();
            if let Some(entries) = self.read_now()? {
                return Ok(entries);
            }
            grown.await;
        }
    }

    fn read_now(&mut self) -> Result<Option<Vec<Entry>>> {
        let state = self.log.state();
        let high = state.low + state.entries.len() as i64;
        if self.next.0 < state.low || self.next.0 > high {
            let message = format!("{} is not within {} to {high}", self.next, state.low);
            return Err(Fault::new(Code::RetentionPassed, message));
        }
        let entries = state.entries[(self.next.0 - state.low) as usize..].concat();
        self.next = Offset(high);
        Ok((!entries.is_empty()).then_some(entries))
    }

    fn received(&self) -> u64 {
        0
    }
}
