//! How much processor time processes have used.

use crate::process::children;

/// The kernel counts in hundredths of a second on every Linux there is for this architecture.
const TICKS_PER_SECOND: f64 = 100.0;

/// The seconds a process and all its descendants have used so far, those it has waited for included. 0
/// where it is gone.
pub fn tree_seconds(pid: u32) -> f64 {
    own_seconds(pid).unwrap_or(0.0) + children(pid).into_iter().map(tree_seconds).sum::<f64>()
}

/// The seconds all processors of the machine have been busy since it started.
pub fn machine_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let Some(line) = stat.lines().next() else { return 0.0 };
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user, nice, system; then idle and waiting; then interrupts of both kinds.
    [0, 1, 2, 5, 6].iter().filter_map(|&at| ticks.get(at)).sum::<f64>() / TICKS_PER_SECOND
}

fn own_seconds(pid: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // user, system; and those of children that were waited for.
    let ticks: f64 = (11..15).filter_map(|at| fields.get(at)?.parse::<f64>().ok()).sum();
    Some(ticks / TICKS_PER_SECOND)
}
