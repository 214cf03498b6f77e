//! One function per promise of the port.

use std::{error::Error, sync::Arc};

use landfall::{
    change::{Change, Identity, Mark, Meanwhile, Shape},
    fault::{Code, Fault},
    position::{Incarnation, Sequence},
    sink::{Batch, Conflict, ConflictKind, Grouping, Sink},
};

use crate::{
    Target,
    log::{Log, delete, insert, row, shape, shape_with, update},
};

pub(crate) fn come(id: &str, v: &str) -> Change {
    insert(&shape(), row([id, v]))
}

pub(crate) fn become_(id: &str, v: &str) -> Change {
    update(&shape(), None, row([id, v]))
}

pub(crate) fn go(id: &str) -> Change {
    delete(&shape(), row([id, ""]))
}

pub(crate) fn rows(rows: &[(i64, &str)]) -> Vec<(i64, String)> {
    rows.iter().map(|(id, v)| (*id, (*v).to_owned())).collect()
}

fn conflict(fault: &Fault) -> Conflict {
    assert_eq!(fault.code(), Code::Conflict, "{fault}");
    let source = fault.source().and_then(|source| source.downcast_ref::<Conflict>());
    source.expect("a conflict is the fault's source").clone()
}

pub(crate) async fn rows_and_progress_arrive_together(target: &impl Target) {
    let mut log = Log::new();
    let mut sink = target.sink();
    let claim = sink.claim().await.unwrap();
    assert_eq!(claim.progress, None);
    let steps = vec![
        log.transaction(vec![come("1", "a"), come("2", "b"), come("3", "c")]),
        log.transaction(vec![become_("1", "A"), go("2"), come("2", "B"), go("3")]),
    ];
    let mut batch = log.batch(steps);
    batch.shapes = vec![shape()];
    batch.heartbeat = Some(Log::heartbeat());
    let applied = sink.apply(&batch).await.unwrap();
    assert!(!applied.redone);
    assert_eq!(sink.flush().await.unwrap(), batch.through.sequence);
    assert_eq!(target.rows().await, rows(&[(1, "A"), (2, "B")]));
    let claim = sink.claim().await.unwrap();
    let progress = claim.progress.unwrap();
    assert_eq!(progress.through, batch.through);
    assert_eq!(progress.incarnation, batch.incarnation);
    assert_eq!(progress.heartbeat, Some(Log::heartbeat()));
    assert_eq!(claim.shapes, [shape()]);
}

pub(crate) async fn a_successor_goes_on_where_the_predecessor_ended(target: &impl Target) {
    let mut log = Log::new();
    let mut first = target.sink();
    let one = first.claim().await.unwrap();
    first.apply(&log.one(vec![come("1", "a")])).await.unwrap();
    // Its transaction is still open when it ends.
    let open = log.slice(vec![come("2", "lost")], true, false);
    first.apply(&log.batch(vec![open])).await.unwrap();
    drop(first);
    let mut second = target.sink();
    let two = claim_soon(&mut second).await;
    assert!(two.epoch > one.epoch);
    assert_eq!(two.progress.unwrap().through.sequence, log.after);
    second.apply(&log.one(vec![come("2", "b")])).await.unwrap();
    assert_eq!(target.rows().await, rows(&[(1, "a"), (2, "b")]));
}

/// The server notices a closed connection a moment later.
pub(crate) async fn claim_soon(sink: &mut impl Sink) -> landfall::sink::Claim {
    loop {
        match sink.claim().await {
            Err(fault) if fault.code() == Code::TargetHeld => {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            claim => return claim.unwrap(),
        }
    }
}

pub(crate) async fn an_old_epoch_and_a_wrong_place_are_refused(target: &impl Target) {
    let mut log = Log::new();
    let mut sink = target.sink();
    sink.claim().await.unwrap();
    let first = log.one(vec![come("1", "a")]);
    sink.apply(&first).await.unwrap();
    let refused = sink.apply(&first).await.unwrap_err();
    assert_eq!(refused.code(), Code::Superseded, "the same batch again: {refused}");
    sink.claim().await.unwrap();
    let mut ahead = log.one(vec![come("2", "b")]);
    ahead.after = Sequence(99);
    assert_eq!(sink.apply(&ahead).await.unwrap_err().code(), Code::Superseded);
    sink.claim().await.unwrap();
    target.supersede().await;
    ahead.after = first.through.sequence;
    assert_eq!(sink.apply(&ahead).await.unwrap_err().code(), Code::Superseded);
    assert_eq!(target.rows().await, rows(&[(1, "a")]));
}

pub(crate) async fn another_life_of_the_stream_is_refused(target: &impl Target) {
    let mut log = Log::new();
    let mut sink = target.sink();
    sink.claim().await.unwrap();
    sink.apply(&log.one(vec![come("1", "a")])).await.unwrap();
    log.incarnation = Incarnation(7);
    assert_eq!(sink.apply(&log.one(vec![come("2", "b")])).await.unwrap_err().code(), Code::Superseded);
    assert_eq!(target.rows().await, rows(&[(1, "a")]));
}

pub(crate) async fn conflicts_are_named_and_what_came_before_stays(target: &impl Target) {
    target.put(7, "theirs").await;
    let cases: [(Change, ConflictKind, &str); 3] = [
        (come("7", "ours"), ConflictKind::InsertExists, "(id)=(7)"),
        (become_("8", "x"), ConflictKind::UpdateMissing, "(id)=(8)"),
        (go("9"), ConflictKind::DeleteMissing, "(id)=(9)"),
    ];
    let mut log = Log::new();
    for (at, (change, kind, key)) in cases.into_iter().enumerate() {
        let mut sink = target.sink();
        let progress = claim_soon(&mut sink).await.progress;
        log.after = progress.map_or(Sequence(0), |progress| progress.through.sequence);
        let id = at.to_string();
        let before = log.transaction(vec![come(&id, "before")]);
        let culprit = log.transaction(vec![become_(&id, "lost"), change]);
        let behind = log.transaction(vec![come("77", "behind")]);
        let position = culprit.frame.head.position;
        let reached = before.through;
        let fault = sink.apply(&log.batch(vec![before, culprit, behind])).await.unwrap_err();
        let named = conflict(&fault);
        assert_eq!((named.kind, named.ordinal, named.position), (kind, 1, position), "{fault}");
        assert_eq!((&*named.table, &*named.key), ("public.t", key));
        let claim = sink.claim().await.unwrap();
        assert_eq!(claim.progress.unwrap().through, reached);
    }
    let before = [(0, "before"), (1, "before"), (2, "before"), (7, "theirs")];
    assert_eq!(target.rows().await, rows(&before));
}

pub(crate) fn sliced(log: &mut Log, slices: Vec<Vec<Change>>) -> Vec<Batch> {
    let last = slices.len() - 1;
    let slices = slices.into_iter().enumerate();
    let slices = slices.map(|(at, changes)| {
        let slice = log.slice(changes, at == 0, at == last);
        log.batch(vec![slice])
    });
    slices.collect()
}

pub(crate) async fn slices_become_visible_with_the_last(target: &impl Target) {
    let mut log = Log::new();
    let mut sink = target.sink();
    sink.claim().await.unwrap();
    sink.apply(&log.one(vec![come("1", "a")])).await.unwrap();
    let start = log.after;
    assert_eq!(sink.flush().await.unwrap(), start);
    let batches =
        sliced(&mut log, vec![vec![come("2", "b")], vec![become_("2", "B"), go("1")], vec![come("3", "c")]]);
    for batch in &batches[..2] {
        assert_eq!(sink.apply(batch).await.unwrap().flushed, start);
        assert_eq!(sink.flush().await.unwrap(), start);
        // In memory there is no reader beside the writer.
    }
    sink.apply(&batches[2]).await.unwrap();
    assert_eq!(sink.flush().await.unwrap(), log.after);
    assert_eq!(target.rows().await, rows(&[(2, "B"), (3, "c")]));
    sink.apply(&log.one(vec![go("3")])).await.unwrap();
    assert_eq!(target.rows().await, rows(&[(2, "B")]));
}

pub(crate) async fn an_abandoned_transaction_leaves_nothing(target: &impl Target) {
    let mut log = Log::new();
    let mut sink = target.sink();
    sink.claim().await.unwrap();
    sink.abandon().await.unwrap();
    let batches = sliced(&mut log, vec![vec![come("1", "a")], vec![come("2", "b")]]);
    sink.apply(&batches[0]).await.unwrap();
    sink.abandon().await.unwrap();
    assert_eq!(target.rows().await, []);
    for batch in &batches {
        sink.apply(batch).await.unwrap();
    }
    assert_eq!(target.rows().await, rows(&[(1, "a"), (2, "b")]));
}

pub(crate) async fn a_conflict_in_a_slice_takes_the_transaction_back(target: &impl Target) {
    let mut log = Log::new();
    let mut sink = target.sink();
    sink.claim().await.unwrap();
    target.put(2, "theirs").await;
    let batches = sliced(&mut log, vec![vec![come("1", "a")], vec![become_("1", "A"), come("2", "b")]]);
    sink.apply(&batches[0]).await.unwrap();
    let named = conflict(&sink.apply(&batches[1]).await.unwrap_err());
    assert_eq!((named.kind, named.ordinal), (ConflictKind::InsertExists, 2));
    assert_eq!(sink.claim().await.unwrap().progress, None);
    assert_eq!(target.rows().await, rows(&[(2, "theirs")]));
    target.remove(2).await;
    for batch in &batches {
        sink.apply(batch).await.unwrap();
    }
    assert_eq!(target.rows().await, rows(&[(1, "A"), (2, "b")]));
}

pub(crate) async fn one_source_transaction_may_be_one_target_transaction(target: &impl Target) {
    let mut log = Log::new();
    let mut sink = target.sink();
    sink.claim().await.unwrap();
    let steps = vec![
        log.transaction(vec![come("1", "a")]),
        log.transaction(vec![go("1")]),
        log.transaction(vec![come("1", "b")]),
    ];
    let mut batch = log.batch(steps);
    batch.grouping = Grouping::One;
    sink.apply(&batch).await.unwrap();
    assert_eq!(sink.flush().await.unwrap(), log.after);
    assert_eq!(target.rows().await, rows(&[(1, "b")]));
    let progress = sink.claim().await.unwrap().progress.unwrap();
    assert_eq!((progress.through, progress.grouped_through), (batch.through, Sequence(0)));
}

pub(crate) async fn empty_batches_move_progress(target: &impl Target) {
    let mut log = Log::new();
    let mut sink = target.sink();
    sink.claim().await.unwrap();
    assert_eq!(sink.flush().await.unwrap(), Sequence(0));
    let batch = log.batch(vec![]);
    sink.apply(&batch).await.unwrap();
    assert_eq!(sink.flush().await.unwrap(), batch.through.sequence);
    assert_eq!(sink.flush().await.unwrap(), batch.through.sequence);
    assert_eq!(sink.claim().await.unwrap().progress.unwrap().through, batch.through);
}

pub(crate) fn mark(mark: Mark) -> Change {
    Change::Watermark { shapes: vec![shape()], mark }
}

pub(crate) fn chunk(text: impl Into<String>, again: bool) -> Change {
    let text = text.into();
    let rows = text.lines().count() as u32;
    let replace = Box::default();
    Change::Chunk { shape: shape(), rows, again, keys: None, replace, meanwhile: None, text: text.into() }
}

pub(crate) async fn a_table_that_is_filled_is_lenient_and_then_strict(target: &impl Target) {
    let mut log = Log::new();
    let mut sink = target.sink();
    assert_eq!(sink.claim().await.unwrap().joining, 0);
    target.put(1, "stale").await;
    target.put(9, "stale").await;
    let waits = sink.apply(&log.one(vec![mark(Mark::Wait)])).await.unwrap();
    assert_eq!(waits.joining, 1);
    // One that would go through, and one that would not.
    sink.apply(&log.one(vec![become_("1", "x")])).await.unwrap();
    sink.apply(&log.one(vec![come("9", "x"), go("4")])).await.unwrap();
    assert_eq!(target.rows().await, rows(&[(1, "stale"), (9, "stale")]), "nothing counts while it waits");
    sink.apply(&log.one(vec![mark(Mark::Begin)])).await.unwrap();
    assert_eq!(target.rows().await, []);

    sink.apply(&log.one(vec![chunk("1\ta\n2\tb\n", false)])).await.unwrap();
    sink.apply(&log.one(vec![chunk("2\tb\n", true)])).await.unwrap();
    let moves = update(&shape(), Some(row(["77", ""])), row(["6", "f"]));
    let meanwhile = vec![become_("1", "A"), become_("7", "x"), go("8"), come("3", "c"), moves];
    sink.apply(&log.one(meanwhile)).await.unwrap();
    assert_eq!(target.rows().await, rows(&[(1, "A"), (2, "b"), (3, "c"), (6, "f")]));
    sink.apply(&log.one(vec![chunk("3\tC\n4\td\n", false)])).await.unwrap();
    sink.apply(&log.one(vec![chunk("2\tB\n", true)])).await.unwrap();
    assert_eq!(target.rows().await, rows(&[(1, "A"), (2, "B"), (3, "C"), (4, "d"), (6, "f")]));

    // Another session knows how it stands. The last chunk is larger than memory.
    drop(sink);
    let mut sink = target.sink();
    assert_eq!(claim_soon(&mut sink).await.joining, 1);
    let first = log.slice(vec![chunk("6\tF\n", false)], true, false);
    assert_eq!(sink.apply(&log.batch(vec![first])).await.unwrap().joining, 1);
    let last = log.slice(vec![chunk("10\tj\n", false), mark(Mark::Done)], false, true);
    assert_eq!(sink.apply(&log.batch(vec![last])).await.unwrap().joining, 0);
    assert_eq!(target.rows().await, rows(&[(1, "A"), (2, "B"), (3, "C"), (4, "d"), (6, "F"), (10, "j")]));
    let fault = sink.apply(&log.one(vec![become_("7", "x")])).await.unwrap_err();
    assert_eq!(conflict(&fault).kind, ConflictKind::UpdateMissing);
}

pub(crate) async fn rows_that_are_mended_are_as_they_were_sent(target: &impl Target) {
    let mut log = Log::new();
    let mut sink = target.sink();
    sink.claim().await.unwrap();
    sink.apply(&log.one(vec![come("1", "a"), come("2", "b"), come("3", "c")])).await.unwrap();
    target.put(5, "wrong").await;
    target.put(7, "strange").await;
    // Of four rows one was never wrong, one is not what it was, one is not here, one should not be.
    let (keys, text) = ("1\t\\N\n5\t\\N\n6\t\\N\n7\t\\N\n", "1\ta\n5\te\n6\tf\n");
    for _ in 0..2 {
        sink.apply(&log.one(vec![mending(keys, text)])).await.unwrap();
        assert_eq!(target.rows().await, rows(&[(1, "a"), (2, "b"), (3, "c"), (5, "e"), (6, "f")]));
    }
    sink.apply(&log.one(vec![become_("5", "E"), go("1")])).await.unwrap();
    sink.apply(&log.one(vec![mending("2\t\\N\n", "")])).await.unwrap();
    assert_eq!(target.rows().await, rows(&[(3, "c"), (5, "E"), (6, "f")]));
    // What cannot be put in place leaves everything as it was, and the stream goes on.
    sink.apply(&log.one(vec![mending("5\t\\N\n", "3\tx\n")])).await.unwrap();
    assert_eq!(target.rows().await, rows(&[(3, "c"), (5, "E"), (6, "f")]));
    sink.apply(&log.one(vec![become_("3", "C")])).await.unwrap();
    assert_eq!(target.rows().await, rows(&[(3, "C"), (5, "E"), (6, "f")]));
}

/// Rows of another region, those with these keys and no others.
pub(crate) fn mending(keys: &'static str, text: &'static str) -> Change {
    Change::Chunk {
        shape: shape(),
        rows: text.lines().count() as u32,
        again: false,
        keys: Some(keys.into()),
        replace: Box::default(),
        meanwhile: None,
        text: text.into(),
    }
}

/// Rows that meet a condition, each in place of what has its key.
pub(crate) fn replacing(text: &'static str) -> Change {
    let rows = text.lines().count() as u32;
    let (replace, meanwhile) = ([0].into(), None);
    Change::Chunk { shape: shape(), rows, again: false, keys: None, replace, meanwhile, text: text.into() }
}

pub(crate) async fn some_of_a_tables_rows_take_the_place_of_others(target: &impl Target) {
    let mut log = Log::new();
    let mut sink = target.sink();
    sink.claim().await.unwrap();
    sink.apply(&log.one(vec![come("1", "a"), come("2", "b")])).await.unwrap();
    target.put(5, "wrong").await;
    target.put(7, "ours").await;
    for _ in 0..2 {
        let applied = sink.apply(&log.one(vec![replacing("1\ta\n5\te\n6\tf\n")])).await.unwrap();
        assert_eq!(applied.joining, 0, "the table is as whole as it was");
        assert_eq!(target.rows().await, rows(&[(1, "a"), (2, "b"), (5, "e"), (6, "f"), (7, "ours")]));
    }
    sink.apply(&log.one(vec![become_("5", "E"), go("1")])).await.unwrap();
    assert_eq!(target.rows().await, rows(&[(2, "b"), (5, "E"), (6, "f"), (7, "ours")]));

    // In a table that is being filled they are no more than some of its rows.
    assert_eq!(sink.apply(&log.one(vec![mark(Mark::Wait)])).await.unwrap().joining, 1);
    assert_eq!(sink.apply(&log.one(vec![replacing("9\tx\n")])).await.unwrap().joining, 1);
    sink.apply(&log.one(vec![mark(Mark::Begin)])).await.unwrap();
    assert_eq!(sink.apply(&log.one(vec![replacing("2\tb\n")])).await.unwrap().joining, 1);
    sink.apply(&log.one(vec![chunk("1\ta\n2\tB\n", false)])).await.unwrap();
    assert_eq!(sink.apply(&log.one(vec![mark(Mark::Done)])).await.unwrap().joining, 0);
    sink.apply(&log.one(vec![replacing("1\tA\n")])).await.unwrap();
    assert_eq!(target.rows().await, rows(&[(1, "A"), (2, "B")]));
    let fault = sink.apply(&log.one(vec![become_("8", "x")])).await.unwrap_err();
    assert_eq!(conflict(&fault).kind, ConflictKind::UpdateMissing, "it is strict as before");
}

pub(crate) async fn a_table_that_may_be_stale_keeps_its_rows_and_is_lenient(target: &impl Target) {
    let mut log = Log::new();
    let mut sink = target.sink();
    sink.claim().await.unwrap();
    target.put(1, "old").await;
    target.put(2, "old").await;
    // Whoever settled it had compared it before a backfill asked for it.
    sink.apply(&log.one(vec![mark(Mark::Wait)])).await.unwrap();
    assert_eq!(sink.apply(&log.one(vec![mark(Mark::Settled)])).await.unwrap().joining, 1);
    assert_eq!(sink.apply(&log.one(vec![mark(Mark::Stale)])).await.unwrap().joining, 1);
    assert_eq!(target.rows().await, rows(&[(1, "old"), (2, "old")]));
    sink.apply(&log.one(vec![become_("1", "a"), come("2", "b"), become_("7", "x"), go("8")])).await.unwrap();
    drop(sink);
    let mut sink = target.sink();
    assert_eq!(claim_soon(&mut sink).await.joining, 1);
    let moves = update(&shape(), Some(row(["1", ""])), row(["3", "c"]));
    sink.apply(&log.one(vec![moves, come("4", "d"), go("4"), go("4")])).await.unwrap();
    assert_eq!(target.rows().await, rows(&[(2, "b"), (3, "c")]));
    assert_eq!(sink.apply(&log.one(vec![mark(Mark::Settled)])).await.unwrap().joining, 0);
    let fault = sink.apply(&log.one(vec![go("4")])).await.unwrap_err();
    assert_eq!(conflict(&fault).kind, ConflictKind::DeleteMissing);
}

pub(crate) async fn a_mark_that_is_taken_back_was_never_made(target: &impl Target) {
    let mut log = Log::new();
    let mut sink = target.sink();
    sink.claim().await.unwrap();
    sink.apply(&log.one(vec![come("1", "a")])).await.unwrap();
    let begins = log.slice(vec![mark(Mark::Begin), chunk("5\te\n", false)], true, false);
    sink.apply(&log.batch(vec![begins])).await.unwrap();
    sink.abandon().await.unwrap();
    assert_eq!(target.rows().await, rows(&[(1, "a")]));
    let applied = sink.apply(&log.one(vec![become_("1", "A")])).await.unwrap();
    assert_eq!(applied.joining, 0);
    let fault = sink.apply(&log.one(vec![become_("7", "x")])).await.unwrap_err();
    assert_eq!(conflict(&fault).kind, ConflictKind::UpdateMissing, "it is strict as before");
}

/// The table, where nothing tells its rows apart at the source.
pub(crate) fn keyless() -> Arc<Shape> {
    let mut columns = shape().columns.to_vec();
    columns.iter_mut().for_each(|column| column.key = true);
    Arc::new(Shape::new("public", "t", Identity::Full, columns))
}

pub(crate) fn keyless_mark(mark: Mark) -> Change {
    Change::Watermark { shapes: vec![keyless()], mark }
}

/// Rows of the snapshot, or such as came or went after it.
pub(crate) fn portion(text: &'static str, meanwhile: Option<Meanwhile>) -> Change {
    let rows = text.lines().count() as u32;
    let (keys, replace) = (None, Box::default());
    Change::Chunk { shape: keyless(), rows, again: false, keys, replace, meanwhile, text: text.into() }
}

pub(crate) async fn a_table_copied_under_one_snapshot_ends_with_what_changed_since(target: &impl Target) {
    let (come, go) = (|id, v| insert(&keyless(), row([id, v])), |id, v| delete(&keyless(), row([id, v])));
    let become_ = |id, from, to| update(&keyless(), Some(row([id, from])), row([id, to]));
    let mut log = Log::new();
    let mut sink = target.sink();
    sink.claim().await.unwrap();
    target.put(1, "stale").await;
    assert_eq!(sink.apply(&log.one(vec![keyless_mark(Mark::Wait)])).await.unwrap().joining, 1);
    sink.apply(&log.one(vec![go("1", "stale")])).await.unwrap();
    // One that is begun and left is begun anew: of the first nothing stays.
    let first = vec![
        keyless_mark(Mark::Snapshot),
        portion("8\tlost\n", None),
        portion("8\tlost\n", Some(Meanwhile::Gone)),
        portion("7\tlost\n", Some(Meanwhile::Came)),
    ];
    assert_eq!(sink.apply(&log.one(first)).await.unwrap().joining, 1);
    sink.apply(&log.one(vec![come("6", "lost")])).await.unwrap();
    let begins = vec![
        keyless_mark(Mark::Snapshot),
        portion("1\ta\n2\tb\n", None),
        portion("9\tx\n", Some(Meanwhile::Came)),
        portion("3\tc\n", Some(Meanwhile::Gone)),
    ];
    sink.apply(&log.one(begins)).await.unwrap();
    assert_eq!(target.rows().await, rows(&[(1, "a"), (2, "b")]));
    // Rows that have come, that have not, and that the snapshot never saw.
    let group = vec![
        log.transaction(vec![become_("2", "b", "B"), go("4", "d"), come("5", "e")]),
        log.transaction(vec![go("5", "e"), come("6", "f"), become_("6", "f", "F"), become_("6", "F", "f")]),
        log.transaction(vec![go("10", "j"), come("10", "J")]),
    ];
    assert_eq!(sink.apply(&log.batch(group)).await.unwrap().joining, 1);
    assert_eq!(target.rows().await, rows(&[(1, "a"), (2, "b")]), "nothing of it counts before its end");

    // Another session knows how it stands. What is taken back was never made up for.
    drop(sink);
    let mut sink = target.sink();
    assert_eq!(claim_soon(&mut sink).await.joining, 1);
    sink.apply(&log.one(vec![portion("3\tc\n4\td\n", None)])).await.unwrap();
    let slices = vec![vec![portion("7\tg\n10\tj\n", None)], vec![keyless_mark(Mark::Done)]];
    let slices = sliced(&mut log, slices);
    sink.apply(&slices[0]).await.unwrap();
    sink.abandon().await.unwrap();
    assert_eq!(target.rows().await, rows(&[(1, "a"), (2, "b"), (3, "c"), (4, "d")]));
    assert_eq!(sink.apply(&slices[0]).await.unwrap().joining, 1);
    assert_eq!(sink.apply(&slices[1]).await.unwrap().joining, 0);
    let whole = rows(&[(1, "a"), (2, "B"), (6, "f"), (7, "g"), (9, "x"), (10, "J")]);
    assert_eq!(target.rows().await, whole);
    let fault = sink.apply(&log.one(vec![go("4", "d")])).await.unwrap_err();
    assert_eq!(conflict(&fault).kind, ConflictKind::DeleteMissing, "it is strict as before");
}

pub(crate) async fn a_table_may_change_its_shape_within_a_batch(target: &impl Target) {
    let wide = shape_with(&[("v", "text"), ("w", "text")]);
    target.alter(&wide).await;
    let mut log = Log::new();
    let mut sink = target.sink();
    sink.claim().await.unwrap();
    let steps = vec![
        log.transaction(vec![come("1", "a"), come("2", "b")]),
        log.transaction(vec![insert(&wide, row(["3", "c", "x"])), update(&wide, None, row(["1", "A", "y"]))]),
        log.transaction(vec![become_("3", "C"), go("2"), insert(&wide, row(["2", "B", "z"]))]),
    ];
    assert!(!sink.apply(&log.batch(steps)).await.unwrap().redone);
    assert_eq!(target.rows().await, rows(&[(1, "A"), (2, "B"), (3, "C")]));
}

pub(crate) async fn a_batch_halts_where_its_table_changes_to_what_the_target_does_not_take(
    target: &impl Target,
) {
    let (mut sink, mut log) = (target.sink(), Log::new());
    sink.claim().await.unwrap();
    as_far_as_its_table_fits(target, &mut sink, &mut log, &[]).await;
}

pub(crate) async fn what_is_parked_does_not_keep_a_batch_from_going_as_far_as_its_table_fits(
    target: &impl Target,
) {
    let (mut sink, mut log) = (target.parking_sink(), Log::new());
    sink.claim().await.unwrap();
    target.put(7, "theirs").await;
    let mut refused = log.one(vec![come("7", "ours")]);
    refused.shapes = vec![shape()];
    assert_eq!(sink.apply(&refused).await.unwrap().parked, 1);
    as_far_as_its_table_fits(target, &mut sink, &mut log, &[(7, "theirs")]).await;
    assert_eq!(target.parked().await.len(), 1, "what does not fit is no reason to be parked");
}

/// The source's table is altered between two transactions of one batch: what came before goes, whatever comes behind waits
/// until the target's is altered too.
async fn as_far_as_its_table_fits<T: Target>(
    target: &T,
    sink: &mut T::Sink,
    log: &mut Log,
    there: &[(i64, &str)],
) {
    let retyped = shape_with(&[("v", "varchar")]);
    let holds = |now: &[(i64, &str)]| rows(&[now, there].concat());
    target.alter(&shape()).await;
    let before = log.transaction(vec![come("1", "a"), come("2", "b")]);
    let last = log.transaction(vec![become_("1", "A")]);
    let reached = last.through;
    let first =
        log.transaction(vec![insert(&retyped, row(["3", "c"])), update(&retyped, None, row(["2", "B"]))]);
    let behind = log.transaction(vec![update(&retyped, None, row(["3", "C"]))]);
    let batch = log.batch(vec![before, last, first, behind]);
    let fault = sink.apply(&batch).await.unwrap_err();
    assert_eq!(fault.code(), Code::TableDiffers, "{fault}");
    assert!(fault.message().contains("public.t") && fault.message().contains("column v"), "{fault}");
    let rest = Batch { after: reached.sequence, steps: batch.steps[2..].to_vec(), ..batch };
    for _ in 0..2 {
        assert_eq!(sink.claim().await.unwrap().progress.unwrap().through, reached);
        assert_eq!(target.rows().await, holds(&[(1, "A"), (2, "b")]));
        assert_eq!(sink.apply(&rest).await.unwrap_err().code(), Code::TableDiffers);
    }
    target.alter(&retyped).await;
    sink.claim().await.unwrap();
    sink.apply(&rest).await.unwrap();
    assert_eq!(target.rows().await, holds(&[(1, "A"), (2, "B"), (3, "C")]));
}
