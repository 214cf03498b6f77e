//! How much processor time processes have used.

use crate::process::children;

/// The kernel counts in hundredths of a second on every Linux there is for this architecture.
const TICKS_PER_SECOND: f64 = 100.0;

/// The seconds a process and all its descendants have used so far, those it has waited for included. 0
/// where it is gone.
pub fn tree_seconds(pid: u32) -> f64 {
    let own = |pid| own_ticks(pid).unwrap_or_default();
    loop {
        let (of_itself, waited_for) = own(pid);
        let below: f64 = children(pid).into_iter().map(tree_seconds).sum();
        // A child that ended between the two looks would be on neither account.
        if own(pid).1 == waited_for {
            return (of_itself + waited_for) as f64 / TICKS_PER_SECOND + below;
        }
    }
}

/// The seconds all processors of the machine have been busy since it started.
pub fn machine_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let Some(line) = stat.lines().next() else { return 0.0 };
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user, nice, system; then idle and waiting; then interrupts of both kinds.
    [0, 1, 2, 5, 6].iter().filter_map(|&at| ticks.get(at)).sum::<f64>() / TICKS_PER_SECOND
}

/// What a process has used itself, and what those had used that it has waited for.
fn own_ticks(pid: u32) -> Option<(u64, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // User and system, of each.
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some((ticks(11)? + ticks(12)?, ticks(13)? + ticks(14)?))
}
