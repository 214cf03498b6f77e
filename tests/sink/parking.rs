//! One function per promise about transactions that the target refuses and that are kept aside.

use std::collections::{BTreeMap, btree_map::Entry};

use landfall::{
    change::{Change, Mark},
    fault::Code,
    plan::parked::ParkedId,
    sink::{Applied, PARKED_CHANGES_MAX, Sink, Wish},
};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::{
    Target,
    log::{Log, row, shape, update},
    promises::{become_, chunk, claim_soon, come, go, mark, mending, replacing, rows, sliced},
};

/// A row that somebody else wrote.
const THEIRS: &str = "theirs";

fn moves(from: &str, to: &str, v: &str) -> Change {
    update(&shape(), Some(row([from, ""])), row([to, v]))
}

fn empties() -> Change {
    Change::Truncate { shapes: vec![shape()], cascade: false, restart_identity: false }
}

/// Asks for something, and has it done; how many are parked then.
async fn done(target: &impl Target, sink: &mut impl Sink, parked: &[ParkedId], wish: Wish) -> usize {
    target.wish(parked, wish).await;
    let mut left = sink.attend().await.unwrap().parked;
    // One turn takes a second at most, and a machine may be busy.
    loop {
        let now = sink.attend().await.unwrap().parked;
        if now == left {
            return left;
        }
        left = now;
    }
}

fn codes(applied: &Applied) -> Vec<Code> {
    applied.refused.iter().map(landfall::fault::Fault::code).collect()
}

pub(crate) async fn what_is_refused_is_parked_and_the_rest_goes_on(target: &impl Target) {
    let mut log = Log::new();
    let mut sink = target.parking_sink();
    assert_eq!(sink.claim().await.unwrap().parked, 0);
    target.put(7, THEIRS).await;
    let steps = vec![
        log.transaction(vec![come("1", "a")]),
        log.transaction(vec![come("2", "whole or not at all"), come("7", "ours")]),
        log.transaction(vec![come("3", "c")]),
    ];
    let position = steps[1].frame.head.position;
    let mut batch = log.batch(steps);
    batch.shapes = vec![shape()];
    let applied = sink.apply(&batch).await.unwrap();
    assert_eq!((applied.parked, &*applied.aside), (1, &[position][..]));
    assert_eq!(codes(&applied), [Code::Conflict]);
    assert_eq!(target.rows().await, rows(&[(1, "a"), (3, "c"), (7, THEIRS)]));
    assert_eq!(sink.flush().await.unwrap(), batch.through.sequence);

    // Nothing of it is applied while the cause stands, however often it is tried, and whoever comes next knows it.
    let parked = target.parked().await;
    assert_eq!(parked.len(), 1);
    assert_eq!(done(target, &mut sink, &parked, Wish::Retry).await, 1);
    drop(sink);
    let mut sink = target.sink();
    let claim = claim_soon(&mut sink).await;
    assert_eq!((claim.parked, claim.progress.unwrap().through), (1, batch.through));
    assert_eq!(done(target, &mut sink, &parked, Wish::Retry).await, 1);
    assert_eq!(target.rows().await, rows(&[(1, "a"), (3, "c"), (7, THEIRS)]));
    target.remove(7).await;
    target.wish(&parked, Wish::Retry).await;
    let attended = sink.attend().await.unwrap();
    assert_eq!((attended.parked, attended.replayed.iter().map(|it| it.rows).sum::<u64>()), (0, 2));
    assert_eq!(target.rows().await, rows(&[(1, "a"), (2, "whole or not at all"), (3, "c"), (7, "ours")]));
    assert_eq!(sink.claim().await.unwrap().parked, 0);
}

pub(crate) async fn what_changes_a_parked_row_waits_behind(target: &impl Target) {
    let mut log = Log::new();
    let mut sink = target.parking_sink();
    sink.claim().await.unwrap();
    target.put(7, THEIRS).await;
    let mut batch = log.one(vec![come("1", "a"), come("5", "e")]);
    batch.shapes = vec![shape()];
    sink.apply(&batch).await.unwrap();
    sink.apply(&log.one(vec![come("7", "ours")])).await.unwrap();
    // One that would not be refused, though it is of the parked row; one that takes another row along; one of that.
    let steps = vec![
        log.transaction(vec![become_("1", "A")]),
        log.transaction(vec![become_("7", "newer"), come("2", "b")]),
        log.transaction(vec![become_("2", "B")]),
        log.transaction(vec![moves("5", "7", "moved")]),
        log.transaction(vec![go("5")]),
        log.transaction(vec![come("3", "c")]),
    ];
    let behind: Vec<_> = steps[1..5].iter().map(|step| step.frame.head.position).collect();
    let applied = sink.apply(&log.batch(steps)).await.unwrap();
    assert_eq!((applied.parked, applied.aside), (5, behind));
    assert_eq!(applied.refused.len(), 0, "they wait, and nothing has refused them");
    assert_eq!(target.rows().await, rows(&[(1, "A"), (3, "c"), (5, "e"), (7, THEIRS)]));

    // A session that would halt before what is refused still has them wait.
    drop(sink);
    let mut sink = target.sink();
    assert_eq!(claim_soon(&mut sink).await.parked, 5);
    let steps = vec![log.transaction(vec![go("7")]), log.transaction(vec![become_("3", "C")])];
    assert_eq!(sink.apply(&log.batch(steps)).await.unwrap().parked, 6);
    assert_eq!(target.rows().await, rows(&[(1, "A"), (3, "C"), (5, "e"), (7, THEIRS)]));
}

pub(crate) async fn a_parked_transaction_is_applied_in_its_turn(target: &impl Target) {
    let mut log = Log::new();
    let mut sink = target.parking_sink();
    sink.claim().await.unwrap();
    target.put(7, THEIRS).await;
    let mut batch = log.one(vec![come("7", "first")]);
    batch.shapes = vec![shape()];
    sink.apply(&batch).await.unwrap();
    sink.apply(&log.one(vec![become_("7", "second"), come("8", "x")])).await.unwrap();
    sink.apply(&log.one(vec![go("8")])).await.unwrap();
    let parked = target.parked().await;
    let [first, second, third] = parked[..] else { panic!("{parked:?}") };
    target.remove(7).await;
    assert_eq!(done(target, &mut sink, &[third], Wish::Retry).await, 3, "it is not its turn");
    assert_eq!(done(target, &mut sink, &[second, third], Wish::Retry).await, 3);
    assert_eq!(done(target, &mut sink, &[first], Wish::Retry).await, 2);
    assert_eq!(target.rows().await, rows(&[(7, "first")]));
    assert_eq!(done(target, &mut sink, &[second, third], Wish::Retry).await, 0);
    assert_eq!(target.rows().await, rows(&[(7, "second")]));
    let applied = sink.apply(&log.one(vec![become_("7", "third")])).await.unwrap();
    assert_eq!((applied.parked, applied.aside.len()), (0, 0), "nothing speaks for the row any more");
    assert_eq!(target.rows().await, rows(&[(7, "third")]));
}

pub(crate) async fn a_table_that_was_emptied_waits_as_a_whole(target: &impl Target) {
    let mut log = Log::new();
    let mut sink = target.parking_sink();
    sink.claim().await.unwrap();
    target.put(7, THEIRS).await;
    let mut batch = log.one(vec![come("1", "a"), come("2", "b")]);
    batch.shapes = vec![shape()];
    sink.apply(&batch).await.unwrap();
    sink.apply(&log.one(vec![come("7", "ours")])).await.unwrap();
    let steps = vec![
        log.transaction(vec![become_("1", "A")]),
        log.transaction(vec![empties()]),
        log.transaction(vec![come("3", "c")]),
    ];
    assert_eq!(sink.apply(&log.batch(steps)).await.unwrap().parked, 3);
    assert_eq!(target.rows().await, rows(&[(1, "A"), (2, "b"), (7, THEIRS)]));
    target.remove(7).await;
    let parked = target.parked().await;
    assert_eq!(done(target, &mut sink, &parked, Wish::Retry).await, 0);
    assert_eq!(target.rows().await, rows(&[(3, "c")]));
}

pub(crate) async fn what_is_discarded_never_comes(target: &impl Target) {
    let mut log = Log::new();
    let mut sink = target.parking_sink();
    sink.claim().await.unwrap();
    target.put(7, THEIRS).await;
    let mut batch = log.one(vec![come("7", "ours"), come("2", "b")]);
    batch.shapes = vec![shape()];
    sink.apply(&batch).await.unwrap();
    sink.apply(&log.one(vec![become_("7", "newer")])).await.unwrap();
    let parked = target.parked().await;
    assert_eq!(done(target, &mut sink, &parked[..1], Wish::Discard).await, 1);
    assert_eq!(target.rows().await, rows(&[(7, THEIRS)]));
    assert_eq!(done(target, &mut sink, &parked[1..], Wish::Retry).await, 0);
    assert_eq!(target.rows().await, rows(&[(7, "newer")]));
    sink.apply(&log.one(vec![come("2", "B")])).await.unwrap();
    assert_eq!(target.rows().await, rows(&[(2, "B"), (7, "newer")]));
}

pub(crate) async fn a_transaction_larger_than_memory_is_parked_whole(target: &impl Target) {
    let mut log = Log::new();
    let mut sink = target.parking_sink();
    sink.claim().await.unwrap();
    target.put(7, THEIRS).await;
    let slices = vec![vec![come("1", "a")], vec![become_("1", "A"), come("7", "ours")], vec![come("2", "b")]];
    let mut batches = sliced(&mut log, slices);
    batches[0].shapes = vec![shape()];
    let start = batches[0].after;
    sink.apply(&batches[0]).await.unwrap();
    assert_eq!(sink.apply(&batches[1]).await.unwrap_err().code(), Code::Parking);
    assert_eq!(sink.claim().await.unwrap().progress.map_or(start, |it| it.through.sequence), start);
    // It is taken back once more, half-way, before it is kept.
    sink.apply(&batches[0]).await.unwrap();
    sink.abandon().await.unwrap();
    assert_eq!((target.parked().await.len(), sink.claim().await.unwrap().parked), (0, 0));
    sink.apply(&batches[0]).await.unwrap();
    assert_eq!(sink.apply(&batches[1]).await.unwrap_err().code(), Code::Parking);
    sink.claim().await.unwrap();
    let mut parked = Applied::default();
    for batch in &batches {
        parked = sink.apply(batch).await.unwrap();
        assert_eq!(parked.aside.len(), 1);
    }
    assert_eq!((parked.parked, codes(&parked).len()), (1, 1));
    assert_eq!(target.rows().await, rows(&[(7, THEIRS)]));

    // Another, of which only the last slice waits behind it.
    let batches = sliced(&mut log, vec![vec![come("4", "d")], vec![become_("2", "B")]]);
    sink.apply(&batches[0]).await.unwrap();
    assert_eq!(sink.apply(&batches[1]).await.unwrap_err().code(), Code::Parking);
    sink.claim().await.unwrap();
    for batch in &batches {
        sink.apply(batch).await.unwrap();
    }
    // And one that waits from its first on: nothing of it is applied, so it is not asked for again.
    let batches = sliced(&mut log, vec![vec![become_("1", "AA")], vec![come("5", "e")]]);
    sink.apply(&batches[0]).await.unwrap();
    sink.abandon().await.unwrap();
    assert_eq!(target.parked().await.len(), 2);
    for batch in &batches {
        assert_eq!(sink.apply(batch).await.unwrap().aside.len(), 1);
    }
    assert_eq!(sink.flush().await.unwrap(), log.after);
    assert_eq!(target.rows().await, rows(&[(7, THEIRS)]));
    target.remove(7).await;
    let parked = target.parked().await;
    assert_eq!((parked.len(), done(target, &mut sink, &parked, Wish::Retry).await), (3, 0));
    assert_eq!(target.rows().await, rows(&[(1, "AA"), (2, "B"), (4, "d"), (5, "e"), (7, "ours")]));
}

pub(crate) async fn what_comes_behind_one_that_is_to_be_applied_is_to_be_as_well(target: &impl Target) {
    let mut log = Log::new();
    let mut sink = target.parking_sink();
    sink.claim().await.unwrap();
    target.put(1, THEIRS).await;
    target.put(2, THEIRS).await;
    let mut batch = log.one(vec![come("1", "a")]);
    batch.shapes = vec![shape()];
    sink.apply(&batch).await.unwrap();
    sink.apply(&log.one(vec![come("2", "b")])).await.unwrap();
    let parked = target.parked().await;
    target.remove(1).await;
    target.wish(&parked[..1], Wish::Retry).await;
    // They come before anybody has attended to it; one of them by slices.
    sink.apply(&log.one(vec![become_("1", "A")])).await.unwrap();
    for batch in sliced(&mut log, vec![vec![become_("1", "AA")], vec![come("3", "c")]]) {
        sink.apply(&batch).await.unwrap();
    }
    // One that waits behind another, for which nobody asked.
    sink.apply(&log.one(vec![become_("2", "B")])).await.unwrap();
    assert_eq!(target.parked().await.len(), 5);
    assert_eq!(sink.attend().await.unwrap().parked, 2);
    assert_eq!(target.rows().await, rows(&[(1, "AA"), (2, THEIRS), (3, "c")]));
    // Nor does it come because somebody wants it gone.
    target.remove(2).await;
    target.wish(&parked[1..], Wish::Discard).await;
    sink.apply(&log.one(vec![become_("2", "BB")])).await.unwrap();
    assert_eq!(sink.attend().await.unwrap().parked, 2);
    assert_eq!(target.rows().await, rows(&[(1, "AA"), (3, "c")]));
}

pub(crate) async fn rows_that_come_anew_overtake_what_is_parked(target: &impl Target) {
    let mut log = Log::new();
    let mut sink = target.parking_sink();
    sink.claim().await.unwrap();
    target.put(7, THEIRS).await;
    target.put(8, THEIRS).await;
    let mut batch = log.one(vec![come("1", "a")]);
    batch.shapes = vec![shape()];
    sink.apply(&batch).await.unwrap();
    sink.apply(&log.one(vec![come("7", "ours")])).await.unwrap();
    sink.apply(&log.one(vec![moves("7", "8", "moved")])).await.unwrap();
    assert_eq!(target.parked().await.len(), 2);
    // Of the row that came, everything is overtaken; of the one that moved, half.
    sink.apply(&log.one(vec![mending("7\t\\N\n", "")])).await.unwrap();
    let parked = target.parked().await;
    assert_eq!(parked.len(), 1);
    assert_eq!(target.rows().await, rows(&[(1, "a"), (8, THEIRS)]));
    assert_eq!(
        done(target, &mut sink, &parked, Wish::Retry).await,
        1,
        "older than what came for a part of it"
    );
    let applied = sink.apply(&log.one(vec![come("7", "again")])).await.unwrap();
    assert_eq!(applied.parked, 2, "the row is spoken for as long as a part of the change is left");
    let applied = sink.apply(&log.one(vec![replacing("8\tmoved\n")])).await.unwrap();
    assert_eq!(applied.parked, 1);
    assert_eq!(target.rows().await, rows(&[(1, "a"), (8, "moved")]));
    let parked = target.parked().await;
    assert_eq!(done(target, &mut sink, &parked, Wish::Retry).await, 0);
    assert_eq!(target.rows().await, rows(&[(1, "a"), (7, "again"), (8, "moved")]));

    // A backfill of the whole table overtakes everything.
    target.put(9, THEIRS).await;
    sink.apply(&log.one(vec![come("9", "ours")])).await.unwrap();
    assert_eq!(sink.apply(&log.one(vec![empties()])).await.unwrap().parked, 2);
    let applied = sink.apply(&log.one(vec![mark(Mark::Wait)])).await.unwrap();
    assert_eq!((applied.parked, target.parked().await.len()), (0, 0));
    sink.apply(&log.one(vec![mark(Mark::Begin)])).await.unwrap();
    sink.apply(&log.one(vec![chunk("9\tours\n", false), mark(Mark::Done)])).await.unwrap();
    assert_eq!(target.rows().await, rows(&[(9, "ours")]));
    sink.apply(&log.one(vec![become_("9", "newer")])).await.unwrap();
    assert_eq!(target.rows().await, rows(&[(9, "newer")]));
}

pub(crate) async fn no_more_is_parked_than_may_be(target: &impl Target) {
    let mut log = Log::new();
    let mut sink = target.parking_sink();
    sink.claim().await.unwrap();
    target.put(7, THEIRS).await;
    let half = PARKED_CHANGES_MAX as usize / 2;
    let large = |v: &'static str| -> Vec<Change> {
        [if v == "a" { come("7", v) } else { become_("7", v) }]
            .into_iter()
            .chain(
                (100..100 + half)
                    .map(|id| if v == "a" { come(&id.to_string(), v) } else { become_(&id.to_string(), v) }),
            )
            .collect()
    };
    let mut batch = log.one(large("a"));
    batch.shapes = vec![shape()];
    assert_eq!(sink.apply(&batch).await.unwrap().parked, 1);
    let behind = log.one(large("b"));
    for _ in 0..2 {
        assert_eq!(sink.apply(&behind).await.unwrap_err().code(), Code::ParkedFull);
        let claim = sink.claim().await.unwrap();
        assert_eq!((claim.parked, claim.progress.unwrap().through), (1, batch.through));
    }
    // With room again it goes on: with nothing in the way, by applying it.
    target.remove(7).await;
    let parked = target.parked().await;
    assert_eq!(done(target, &mut sink, &parked, Wish::Retry).await, 0);
    let applied = sink.apply(&behind).await.unwrap();
    assert_eq!((applied.parked, applied.aside.len()), (0, 0));
    assert!(target.rows().await.iter().all(|(_, v)| v == "b"));
}

/// Random histories of a source against a target into which somebody else writes: what is refused is parked, tried now
/// and then, by one session after another. When the other's rows are gone and everything is tried again, the target is
/// what the source is.
pub(crate) async fn however_it_is_parked_it_ends_as_the_source(target: &impl Target) {
    let mut log = Log::new();
    let mut sink = target.parking_sink();
    sink.claim().await.unwrap();
    let mut first = log.one(vec![]);
    first.shapes = vec![shape()];
    sink.apply(&first).await.unwrap();
    let mut source = BTreeMap::new();
    let mut most = 0;
    for seed in 0..25 {
        let mut random = StdRng::seed_from_u64(seed);
        for at in 0..12 {
            let stranger = random.random_range(0..8);
            if random.random_bool(0.3) && !target.rows().await.iter().any(|(id, _)| *id == stranger) {
                target.put(stranger, THEIRS).await;
            }
            let mut history = History { source: &mut source, random: &mut random };
            let count = history.random.random_range(1..6);
            let changes: Vec<Vec<Change>> = (0..count).map(|_| history.transaction()).collect();
            if random.random_bool(0.2) {
                let batches = sliced(&mut log, changes);
                let mut next = 0;
                while let Some(batch) = batches.get(next) {
                    match sink.apply(batch).await {
                        Ok(_) => next += 1,
                        Err(fault) => {
                            assert_eq!(fault.code(), Code::Parking, "seed {seed}, batch {at}: {fault}");
                            sink.claim().await.unwrap();
                            next = 0;
                        }
                    }
                }
            } else {
                let steps = changes.into_iter().map(|changes| log.transaction(changes)).collect();
                let applied = sink.apply(&log.batch(steps)).await;
                most = most.max(applied.unwrap_or_else(|it| panic!("seed {seed}, batch {at}: {it}")).parked);
            }
            if random.random_bool(0.2) {
                let parked = target.parked().await;
                done(target, &mut sink, &parked, Wish::Retry).await;
            }
            if random.random_bool(0.1) {
                sink.claim().await.unwrap();
            }
        }
        for (id, v) in target.rows().await {
            if v == THEIRS {
                target.remove(id).await;
            }
        }
        let parked = target.parked().await;
        assert_eq!(done(target, &mut sink, &parked, Wish::Retry).await, 0, "seed {seed}");
        let expected: Vec<(i64, String)> = source.clone().into_iter().collect();
        assert_eq!(target.rows().await, expected, "seed {seed}");
    }
    assert!(most > 3, "hardly anything was parked: {most}");
}

/// What a source does to its few rows.
struct History<'a> {
    source: &'a mut BTreeMap<i64, String>,
    random: &'a mut StdRng,
}

impl History<'_> {
    fn transaction(&mut self) -> Vec<Change> {
        let count = self.random.random_range(1..4);
        (0..count).map(|_| self.change()).collect()
    }

    fn change(&mut self) -> Change {
        let id: i64 = self.random.random_range(0..8);
        let v = format!("{:x}", self.random.random::<u16>());
        let other: i64 = self.random.random_range(0..8);
        if self.random.random_bool(0.02) {
            self.source.clear();
            return empties();
        }
        if let Entry::Vacant(place) = self.source.entry(id) {
            place.insert(v.clone());
            return come(&id.to_string(), &v);
        }
        match self.random.random_range(0..3) {
            0 => {
                self.source.remove(&id);
                go(&id.to_string())
            }
            1 if !self.source.contains_key(&other) => {
                self.source.remove(&id);
                self.source.insert(other, v.clone());
                moves(&id.to_string(), &other.to_string(), &v)
            }
            _ => {
                self.source.insert(id, v.clone());
                become_(&id.to_string(), &v)
            }
        }
    }
}
