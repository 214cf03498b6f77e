//! How evenly the machine itself runs. Of a row's way, a thread's being woken and running is most; where a machine
//! does that late, every latency here is that machine's.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// How long it is watched.
const TIME: Duration = Duration::from_secs(6);
/// Between two pieces of work: the thread sleeps, as one that waits for a record does.
const PAUSE: Duration = Duration::from_micros(500);
/// Steps of one piece of work: about 20 µs.
const STEPS: u64 = 30_000;

/// What a short piece of work took, from due to done.
#[derive(Clone, Copy, Debug)]
pub struct Stalls {
    /// At best.
    pub best: Duration,
    /// The wait that 99 of 100 did not exceed.
    pub p99: Duration,
    /// And 999 of 1000.
    pub p999: Duration,
}

/// Watches the machine while nothing else of ours runs.
pub fn watch() -> Stalls {
    let began = Instant::now();
    let mut took = Vec::new();
    while began.elapsed() < TIME {
        let due = Instant::now() + PAUSE;
        std::thread::sleep(PAUSE);
        black_box((0..STEPS).fold(0u64, |sum, step| sum.wrapping_mul(31) ^ black_box(step)));
        took.push(due.elapsed());
    }
    took.sort_unstable();
    let of = |share: f64| took[(share * (took.len() - 1) as f64) as usize];
    Stalls { best: took[0], p99: of(0.99), p999: of(0.999) }
}

impl std::fmt::Display for Stalls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let Self { best, p99, p999 } = *self;
        write!(
            f,
            "with nothing else at work, a sleeping thread is woken and does {:.2} ms of work within {:.2} ms at p99 and \
             {:.2} ms at p99.9; a row wakes about twenty, one after the other",
            ms(best),
            ms(p99),
            ms(p999)
        )
    }
}
