//! Where tasks are spawned: each has a name, an owner that holds its handle, and an end.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
};

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

/// Spawns a task on a thread and a runtime of its own, where whatever it spawns runs as well. What it hands
/// from task to task wakes no other thread, and what it computes keeps nobody else waiting.
///
/// # Panics
/// Where the system refuses another thread: nothing can run then.
pub fn spawn_alone<F>(name: &'static str, future: F) -> Alone
where
    F: Future<Output = ()> + Send + 'static,
{
    let (ended, end) = oneshot::channel();
    let (cancel, cancelled) = oneshot::channel::<()>();
    // Ends when the future does, or when its owner lets go of it.
    spawn_thread(name, move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("the system gives a runtime its descriptors");
        let work = AssertUnwindSafe(|| {
            runtime.block_on(async {
                tokio::select! {
                    () = future => (),
                    _ = cancelled => (),
                }
            });
        });
        let outcome = catch_unwind(work).map_err(|panic| {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            text.or_else(|| panic.downcast_ref().cloned()).unwrap_or_else(|| "a panic".to_owned())
        });
        // A question to Kafka that is still being asked is bounded, and nobody needs its answer.
        runtime.shutdown_background();
        let _ = ended.send(outcome);
    });
    Alone { end, _cancel: cancel }
}

/// A task on a thread of its own. Awaited, it says how it ended, with the panic's words where it broke;
/// dropped, it is cut off at its next wait.
#[derive(Debug)]
pub struct Alone {
    end: oneshot::Receiver<std::result::Result<(), String>>,
    _cancel: oneshot::Sender<()>,
}

impl Future for Alone {
    type Output = std::result::Result<(), String>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let ended = Pin::new(&mut self.end).poll(context);
        ended.map(|ended| ended.unwrap_or_else(|_| Err("its thread is gone".to_owned())))
    }
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
