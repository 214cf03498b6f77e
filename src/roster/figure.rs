//! One figure on the board.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

/// A figure that one road writes and anybody reads. Unknown until it is written the first time, and
/// again once it is forgotten: what is unknown is shown as unknown, never as 0.
#[derive(Debug)]
pub struct Figure<T>(Mutex<Option<T>>);

impl<T> Default for Figure<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone> Figure<T> {
    /// Writes it.
    pub fn set(&self, value: T) {
        *self.lock() = Some(value);
    }

    /// Writes it, or forgets it.
    pub fn replace(&self, value: Option<T>) {
        *self.lock() = value;
    }

    /// Makes it unknown again.
    pub fn forget(&self) {
        *self.lock() = None;
    }

    /// Reads it.
    pub fn get(&self) -> Option<T> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A count that one road adds to and anybody reads; it begins at 0 with the daemon.
#[derive(Debug, Default)]
pub struct Tally(AtomicU64);

impl Tally {
    /// Adds to it.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Reads it.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
