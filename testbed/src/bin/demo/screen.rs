//! What is printed: lines that stay, and below them, on a terminal, a table that is drawn again in its
//! place. Elsewhere the table is one line every few seconds.

use std::io::{IsTerminal, Write, stdout};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Where nothing can be drawn again, a line comes so often.
const LINE_EVERY: Duration = Duration::from_secs(3);

/// Lags from which a sample is drawn this high: a decade takes three steps, so that 100 ms and 15 s both
/// show.
const STEPS: [(f64, char); 8] =
    [(0.0, '▁'), (0.2, '▂'), (0.5, '▃'), (1.0, '▄'), (2.0, '▅'), (5.0, '▆'), (10.0, '▇'), (15.0, '█')];

/// What the signs of a sparkline mean.
pub const SCALE: &str = "▁ <0.2 s  ▄ 1 s  ▆ 5 s  █ 15 s";

/// Where everything is printed. Whoever prints waits for whoever prints already.
#[derive(Debug)]
pub struct Screen {
    began: Instant,
    live: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The table below the lines, as it was drawn last.
    table: Vec<String>,
    last_line: Option<Instant>,
}

impl Screen {
    /// Standard output, live where it is a terminal that can be drawn on.
    pub fn new() -> Screen {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        Screen { began: Instant::now(), live: stdout().is_terminal() && !dumb, state: Mutex::default() }
    }

    /// How long it has taken so far.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// A line that stays, with the time it is said at.
    pub fn say(&self, text: impl AsRef<str>) {
        self.print(&format!("[{:>6.1} s]   {}", self.elapsed().as_secs_f64(), text.as_ref()));
    }

    /// The beginning of an act: what is done, and what to look at.
    pub fn act(&self, title: &str, watch: &str) {
        self.print(&format!(
            "\n[{:>6.1} s] {title}\n             Watch: {watch}",
            self.elapsed().as_secs_f64()
        ));
    }

    /// Text that stays.
    pub fn print(&self, text: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let table = std::mem::take(&mut state.table);
        let mut out = erased(&table);
        out.push_str(text);
        out.push('\n');
        out.push_str(&drawn(&table));
        state.table = table;
        put(&out);
    }

    /// How things stand: the table, or from time to time the line.
    pub fn draw(&self, table: Vec<String>, line: impl FnOnce() -> String) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if self.live {
            put(&format!("{}{}", erased(&state.table), drawn(&table)));
            state.table = table;
        } else if state.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY) {
            state.last_line = Some(Instant::now());
            put(&format!("             {}\n", line()));
        }
    }

    /// Takes the table away.
    pub fn clear(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        put(&erased(&std::mem::take(&mut state.table)));
    }
}

/// Up to the table's first line, and nothing below.
fn erased(table: &[String]) -> String {
    if table.is_empty() { String::new() } else { format!("\x1b[{}A\r\x1b[J", table.len() + 1) }
}

/// A line apart from what stays; cut rather than wrapped, so that it is as high as it was counted.
fn drawn(table: &[String]) -> String {
    if table.is_empty() {
        return String::new();
    }
    let lines = table.iter().map(|line| line.chars().take(79).chain(['\n']).collect::<String>());
    std::iter::once("\n".to_owned()).chain(lines).collect()
}

fn put(text: &str) {
    let mut out = stdout().lock();
    // Nobody may be reading any more; the verdict still has to be found.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Lags as signs, as many as fit into `width`: where there are more, each sign is the worst of its share.
pub fn sparkline(lags: &[f64], width: usize) -> String {
    let share = lags.len().div_ceil(width.max(1)).max(1);
    let worst = lags.chunks(share).map(|chunk| chunk.iter().copied().fold(0.0, f64::max));
    let sign = |lag: f64| STEPS.iter().rev().find(|(from, _)| lag >= *from).map_or('▁', |(_, sign)| *sign);
    worst.map(sign).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparkline_shows_the_worst_of_each_share() {
        assert_eq!(sparkline(&[0.1, 0.3, 1.2, 16.0], 4), "▁▂▄█");
        assert_eq!(sparkline(&[0.1, 16.0, 0.1, 0.1, 0.1], 3), "█▁▁");
        assert_eq!(sparkline(&[], 10), "");
        let scale: Vec<char> =
            SCALE.chars().filter(|sign| STEPS.iter().any(|(_, step)| step == sign)).collect();
        assert_eq!(scale, ['▁', '▄', '▆', '█']);
    }

    #[test]
    fn a_table_is_erased_as_high_as_it_was_drawn() {
        let table = vec!["a".repeat(200), "b".to_owned()];
        assert_eq!(drawn(&table).matches('\n').count(), 3);
        assert_eq!(erased(&table), "\x1b[3A\r\x1b[J");
        assert!(drawn(&table).lines().all(|line| line.len() <= 79));
        assert_eq!((drawn(&[]), erased(&[])), (String::new(), String::new()));
    }
}
