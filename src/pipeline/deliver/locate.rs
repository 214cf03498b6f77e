//! Where in a log a sink goes on, and the named ways in which it cannot. Never a reset.

use crate::{
    changelog::{self, Bounds, Log},
    envelope::body::Start,
    fault::{Code, Fault, Result},
    position::Offset,
    progress::{Cursor, Progress},
    region::Region,
};

/// Finds the offset to read from, and where the stream is begun in its middle, the place that is: from there on a
/// backfill brings every row, and what was before it does not count any more.
///
/// # Errors
/// The place is not in the log any more, or the log is another: each with its code and the range.
pub(super) async fn locate<L: Log>(
    log: &L,
    progress: Option<&Progress>,
    (here, recovers): (&Region, bool),
) -> Result<(Offset, Option<Start>)> {
    let bounds = log.bounds().await?;
    let start = match bounds {
        Some(_) => start(log, here).await,
        None => Ok(None),
    };
    let start = match start {
        // The topic beside the stream's may have no leader, or too few replicas to say where it ends. Who has a place in the
        // log needs no start, and has no rows to miss before it.
        Err(fault)
            if matches!(fault.code(), Code::KafkaRejected | Code::KafkaUnreachable)
                && progress.is_some()
                && !recovers =>
        {
            let Ok(from) = place(log, bounds, progress).await else { return Err(fault) };
            let code = fault.code().as_str();
            tracing::warn!(%fault, code, "the link goes on from its own place");
            return Ok((from, None));
        }
        start => start?,
    };
    if let Some(bounds) = bounds
        && let Some(start) = start
        && (bounds.low..=bounds.high).contains(&start.offset)
        // What a recovery brought another target, or this one long ago, makes nobody else whole.
        && (recovers || !start.recovery)
        && progress.is_none_or(|at| {
            at.incarnation == start.incarnation && is_before(&at.through, &start)
        })
        // It outlives the stream that it was kept for, where that is begun anew.
        && changelog::incarnation(log, bounds).await?.is_none_or(|it| it == start.incarnation)
    {
        return Ok((start.offset, Some(start)));
    }
    Ok((place(log, bounds, progress).await?, None))
}

/// Whether a place is before a start. Numbers rise with epochs, but for a log that lost its end: what is appended in place of
/// that is of a higher epoch, and may have numbers that were applied here already.
fn is_before(at: &Cursor, start: &Start) -> bool {
    at.epoch < start.epoch || at.epoch == start.epoch && at.sequence.next() < start.sequence
}

/// Where this region may begin the stream, as its source says.
async fn start<L: Log>(log: &L, here: &Region) -> Result<Option<Start>> {
    let Some(kept) = log.start(here.as_str()).await? else { return Ok(None) };
    let start = serde_json::from_slice(&kept);
    start
        .map(Some)
        .map_err(|error| Fault::new(Code::RecordCorrupt, "read where the stream may be begun").because(error))
}

async fn place<L: Log>(log: &L, bounds: Option<Bounds>, progress: Option<&Progress>) -> Result<Offset> {
    let Some(progress) = progress else {
        let bounds = bounds.ok_or_else(|| {
            Fault::new(Code::KafkaRejected, "the stream's topic does not exist yet: its source has not begun")
        })?;
        if bounds.low > Offset(0) {
            let message = format!(
                "nothing of the stream was applied here, and its records before {} are gone",
                bounds.low
            );
            return Err(Fault::new(Code::GenesisGone, message));
        }
        return Ok(bounds.low);
    };
    let at = progress.through;
    let stream =
        format!("incarnation {}, applied through {} at {}", progress.incarnation, at.sequence, at.offset);
    let Some(bounds) = bounds else {
        return Err(Fault::new(Code::TopicLost, format!("the topic does not exist; {stream}")));
    };
    let next = Offset(at.offset.0 + 1);
    if next > bounds.high {
        return Err(beyond(log, bounds, progress, &stream).await);
    }
    if next < bounds.low {
        let message =
            format!("records from {next} to before {} are gone from the topic; {stream}", bounds.low);
        return Err(Fault::new(Code::RetentionPassed, message));
    }
    // From the record at the place itself, where it is still there: it proves that the topic is the same.
    Ok(at.offset.max(bounds.low))
}

/// The place is beyond the topic's end: another topic, or one that lost records?
async fn beyond<L: Log>(log: &L, bounds: Bounds, progress: &Progress, stream: &str) -> Fault {
    let ends = format!("the topic ends at offset {}; {stream}", bounds.high.0 - 1);
    let same = match changelog::incarnation(log, bounds).await {
        Ok(Some(incarnation)) => incarnation == progress.incarnation,
        Ok(None) => bounds.low > Offset(0),
        Err(fault) => return fault,
    };
    Fault::new(if same { Code::PositionBeyondEnd } else { Code::TopicLost }, ends)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::{Incarnation, Sequence, WriterEpoch};

    #[test]
    fn a_start_is_taken_once_whatever_numbers_a_lost_end_had() {
        let start = Start {
            incarnation: Incarnation(1),
            epoch: WriterEpoch(3),
            sequence: Sequence(10),
            offset: Offset(12),
            recovery: true,
            through: None,
            left_out: Vec::new(),
        };
        let at = |epoch, sequence| Cursor {
            sequence: Sequence(sequence),
            epoch: WriterEpoch(epoch),
            offset: Offset(0),
            position: None,
        };
        for (epoch, sequence, before) in [
            (3, 8, true),
            (3, 9, false),
            (3, 10, false),
            (2, 8, true),
            // Of an end that was lost, and written anew with fewer records.
            (2, 1000, true),
            (4, 11, false),
        ] {
            assert_eq!(is_before(&at(epoch, sequence), &start), before, "{epoch}, {sequence}");
        }
    }
}
