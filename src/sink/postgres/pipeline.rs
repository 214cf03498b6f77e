//! Statements sent one behind the other, answers taken in the same order.
//!
//! The client sends a statement when its future is first polled. So each is polled once when it is
//! put in, which fixes the order on the wire, and awaited later.

use std::{collections::VecDeque, future::Future, pin::Pin, task::Poll};

use tokio_postgres::Error;

type Answer = Result<u64, Error>;
type Pending<'a> = Pin<Box<dyn Future<Output = Answer> + Send + 'a>>;

enum Sent<'a> {
    Waiting(Pending<'a>),
    Answered(Answer),
}

/// Statements under way.
#[derive(Default)]
pub(super) struct Pipeline<'a>(VecDeque<Sent<'a>>);

impl<'a> Pipeline<'a> {
    /// Sends a statement behind those sent before.
    pub(super) async fn send(&mut self, statement: impl Future<Output = Answer> + Send + 'a) {
        let mut statement: Pending<'a> = Box::pin(statement);
        let answer = std::future::poll_fn(|context| {
            Poll::Ready(match statement.as_mut().poll(context) {
                Poll::Ready(answer) => Some(answer),
                Poll::Pending => None,
            })
        })
        .await;
        self.0.push_back(answer.map_or_else(|| Sent::Waiting(statement), Sent::Answered));
    }

    /// Whether a statement failed before it was sent: what is sent behind it would stand without it.
    pub(super) fn lacks_any(&self) -> bool {
        self.0.iter().any(|sent| matches!(sent, Sent::Answered(Err(_))))
    }

    /// The next answer: how many rows the statement touched.
    pub(super) async fn answer(&mut self) -> Answer {
        match self.0.pop_front().expect("one answer for each statement") {
            Sent::Waiting(statement) => statement.await,
            Sent::Answered(answer) => answer,
        }
    }
}
