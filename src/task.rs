//! Where tasks are spawned: each has a name, an owner that holds its handle, and an end.

use std::future::Future;

use tokio::{sync::watch, task::JoinHandle};

/// Spawns a task on the runtime. The owner keeps the handle, and aborts or joins it.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    use tracing::Instrument;
    tokio::spawn(future.instrument(tracing::debug_span!("task", name)))
}

/// Spawns a thread, for work that blocks. The owner tells it to end and joins it.
///
/// # Panics
/// Where the system refuses another thread: nothing can run then.
pub fn spawn_thread<F>(name: &str, work: F) -> std::thread::JoinHandle<()>
where
    F: FnOnce() + Send + 'static,
{
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(work).expect("the system starts a thread")
}

/// Tells everyone who holds a [`Stop`] to end.
#[derive(Debug)]
pub struct Stopper(watch::Sender<bool>);

/// Says when to end.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

/// A pair: one to tell, one to be told (and cloned).
pub fn stopper() -> (Stopper, Stop) {
    let (tell, told) = watch::channel(false);
    (Stopper(tell), Stop(told))
}

impl Stopper {
    /// Asks everyone to end.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Stop {
    /// Whether the end was asked for.
    pub fn is_asked(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns once the end is asked for, or nobody is left to ask for it.
    pub async fn asked(&mut self) {
        let _ = self.0.wait_for(|asked| *asked).await;
    }
}

/// Runs work that blocks for a bounded time beside the runtime.
///
/// # Panics
/// Where the work did.
pub async fn blocking<F, T>(work: F) -> T
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    tokio::task::spawn_blocking(work).await.expect("blocking work does not panic")
}
