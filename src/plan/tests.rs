//! Tables of small histories, and random ones: what a plan does to a map of rows is what its changes
//! do one by one, and what would stop them stops it.

use std::{collections::BTreeMap, sync::LazyLock};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::change::{Column, Identity};

fn shape(table: &str, columns: &[(&str, bool)]) -> Arc<Shape> {
    let column = |&(name, key): &(&str, bool)| Column {
        name: name.into(),
        type_schema: "pg_catalog".into(),
        type_name: "text".into(),
        typmod: -1,
        key,
    };
    Arc::new(Shape::new("public", table, Identity::Default, columns.iter().map(column).collect::<Vec<_>>()))
}

/// `t (id, a, b)`, key `id`.
fn keyed() -> Arc<Shape> {
    shape("t", &[("id", true), ("a", false), ("b", false)])
}

fn locators(shapes: &[(&Arc<Shape>, Locator)]) -> Locators {
    shapes.iter().map(|(shape, locator)| (shape.fingerprint(), locator.clone())).collect()
}

/// Tables that no backfill has begun with.
fn whole(locators: &Locators) -> Tables<'_> {
    static NONE: LazyLock<JoiningTables> = LazyLock::new(JoiningTables::new);
    Tables { locators, joining: &NONE }
}

fn by_id() -> Locator {
    Locator::Key([0].into())
}

/// `-` is unchanged, `0` is NULL.
fn row(text: &str) -> Row {
    let cell = |word: &str| match word {
        "-" => Cell::Unchanged,
        "0" => Cell::Null,
        word => Cell::Value(word.as_bytes().to_vec().into()),
    };
    Row(text.split(' ').map(cell).collect())
}

fn show(cell: &Cell) -> String {
    match cell {
        Cell::Value(text) => String::from_utf8(text.to_vec()).unwrap(),
        Cell::Null => "0".to_owned(),
        _ => "-".to_owned(),
    }
}

/// `+1 a b` inserts, `=1 a b` updates, `1>2 a b` updates and moves the key, `-1` deletes, `!` empties.
fn change(shape: &Arc<Shape>, text: &str) -> Change {
    let shape = shape.clone();
    let key_image = |key: &str| {
        let rest = shape.columns.len() - 1;
        row(&format!("{key}{}", " -".repeat(rest)))
    };
    if text == "!" {
        return Change::Truncate { shapes: vec![shape], cascade: false, restart_identity: false };
    }
    if let Some(new) = text.strip_prefix('+') {
        return Change::Insert { new: row(new), shape };
    }
    if let Some(new) = text.strip_prefix('=') {
        return Change::Update { old: None, new: row(new), shape };
    }
    if let Some(key) = text.strip_prefix('-') {
        return Change::Delete { old: key_image(key), shape };
    }
    let (old, new) = text.split_once('>').unwrap();
    Change::Update { old: Some(key_image(old)), new: row(new), shape }
}

/// `insert t[0 1 2] 1,a,b | …`: table, columns written, columns located by, rows.
fn describe(action: &Action<'_>) -> String {
    let Action::Rows(rows) = action else { return "truncate".to_owned() };
    assert_eq!(rows.cells.len(), rows.count * rows.width());
    let numbers = |columns: &[usize]| columns.iter().map(usize::to_string).collect::<String>();
    let each: Vec<String> = rows
        .cells
        .chunks(rows.width())
        .map(|cells| cells.iter().map(|cell| show(cell)).collect::<Vec<_>>().join(","))
        .collect();
    format!(
        "{} {}[{}/{}] {}",
        rows.operation.as_str(),
        rows.shape.table,
        numbers(&rows.set),
        numbers(&rows.locate),
        each.join(" ")
    )
}

#[test]
fn changes_fold_as_far_as_a_divergence_still_shows() {
    let shape = keyed();
    let locators = locators(&[(&shape, by_id())]);
    let cases: &[(&[&str], &[&str])] = &[
        (&["+1 a b", "+2 c d"], &["insert t[012/] 1,a,b 2,c,d"]),
        (&["+1 a b", "=1 c -"], &["insert t[012/] 1,c,b"]),
        (&["+1 a b", "-1"], &["insert t[012/] 1,a,b", "delete t[/0] 1"]),
        (&["=1 a -", "=1 - b"], &["update t[12/0] a,b,1"]),
        (&["=1 a -", "=2 - b"], &["update t[1/0] a,1", "update t[2/0] b,2"]),
        (&["=1 a b", "-1"], &["delete t[/0] 1"]),
        (&["-1", "+1 a b"], &["delete t[/0] 1", "insert t[012/] 1,a,b"]),
        (&["-1", "+1 a b", "=1 - c"], &["delete t[/0] 1", "insert t[012/] 1,a,c"]),
        (&["-1", "+1 a b", "-1"], &["delete t[/0] 1", "insert t[012/] 1,a,b", "delete t[/0] 1"]),
        // What no healthy history holds must fail, not vanish.
        (&["+1 a b", "+1 c d"], &["insert t[012/] 1,a,b", "insert t[012/] 1,c,d"]),
        (&["-1", "-1"], &["delete t[/0] 1", "delete t[/0] 1"]),
        (&["-1", "=1 a b"], &["delete t[/0] 1", "update t[12/0] a,b,1"]),
        (&["=1 a b", "+1 c d"], &["update t[12/0] a,b,1", "insert t[012/] 1,c,d"]),
        // A key that moves stands alone, and so does what empties the table.
        (
            &["=1 a b", "1>2 c -", "=2 d e"],
            &["update t[12/0] a,b,1", "update t[01/0] 2,c,1", "update t[12/0] d,e,2"],
        ),
        (&["1>1 c -"], &["update t[1/0] c,1"]),
        (&["+1 a b", "!", "+1 a b"], &["insert t[012/] 1,a,b", "truncate", "insert t[012/] 1,a,b"]),
        // Nothing but the key: the row must still be there, and no column is written, which may refuse even itself.
        (&["=1 - -", "=2 - -"], &["update t[/0] 1 2"]),
        (&["=1 - -", "=1 a -"], &["update t[1/0] a,1"]),
        (&["1>1 - -"], &["update t[/0] 1"]),
        (&["+1 0 -"], &["insert t[01/] 1,0"]),
        (&[], &[]),
    ];
    for (changes, expected) in cases {
        let changes: Vec<Change> = changes.iter().map(|text| change(&shape, text)).collect();
        let actions = plan(&changes, whole(&locators)).unwrap();
        assert_eq!(actions.iter().map(describe).collect::<Vec<_>>(), *expected, "{changes:?}");
    }
}

#[test]
fn tables_without_a_key_go_change_by_change() {
    let (shape, other) = (shape("log", &[("x", false), ("y", false)]), keyed());
    let full = |x: &str| Change::Delete { shape: shape.clone(), old: row(x) };
    let changes = [
        change(&shape, "+a b"),
        change(&other, "+1 a b"),
        change(&shape, "+a b"),
        full("a b"),
        change(&other, "=1 c -"),
        full("a 0"),
    ];
    let locators = locators(&[(&shape, Locator::WholeRow), (&other, by_id())]);
    let actions = plan(&changes, whole(&locators)).unwrap();
    let expected = [
        "insert log[01/] a,b a,b",
        "insert t[012/] 1,a,b",
        "delete log[/01] a,b",
        "update t[1/0] c,1",
        "delete log[/01] a,0",
    ];
    assert_eq!(actions.iter().map(describe).collect::<Vec<_>>(), expected);
    let nowhere = self::locators(&[(&shape, Locator::Nowhere), (&other, by_id())]);
    let lost = plan(&changes, whole(&nowhere)).unwrap_err();
    assert_eq!((lost.shape, lost.operation), (shape, Operation::Delete));
}

#[test]
fn a_table_whose_shape_changes_keeps_its_order() {
    let (before, after) = (keyed(), shape("t", &[("id", true), ("a", false)]));
    let locators = locators(&[(&before, by_id()), (&after, by_id())]);
    let changes = [change(&before, "+1 a b"), change(&after, "-1"), change(&before, "+1 c d")];
    let actions = plan(&changes, whole(&locators)).unwrap();
    let expected = ["insert t[012/] 1,a,b", "delete t[/0] 1", "insert t[012/] 1,c,d"];
    assert_eq!(actions.iter().map(describe).collect::<Vec<_>>(), expected);

    // Each of these touches one row, whatever the order.
    let changes = [change(&before, "=1 a b"), change(&after, "=1 c"), change(&before, "=1 d e")];
    let actions = plan(&changes, whole(&locators)).unwrap();
    let expected = ["update t[12/0] a,b,1", "update t[1/0] c,1", "update t[12/0] d,e,1"];
    assert_eq!(actions.iter().map(describe).collect::<Vec<_>>(), expected);
}

#[test]
fn equal_keys_of_several_columns_are_told_apart() {
    let shape = shape("t", &[("k", true), ("l", true)]);
    let locators = locators(&[(&shape, Locator::Key([0, 1].into()))]);
    let changes = [change(&shape, "+ab c"), change(&shape, "+a bc"), change(&shape, "+a 0")];
    assert_eq!(plan(&changes, whole(&locators)).unwrap().len(), 1, "three rows, one statement");
}

type Map = BTreeMap<String, Vec<String>>;

/// Touches the map as a statement would: none where it fails, else how many rows.
fn execute(map: &mut Map, action: &Action<'_>) -> Option<usize> {
    let Action::Rows(rows) = action else {
        map.clear();
        return Some(usize::MAX);
    };
    let mut touched = 0;
    for cells in rows.cells.chunks(rows.width()) {
        let (set, locate) = cells.split_at(rows.set.len());
        let mut new = match rows.operation {
            Operation::Insert => vec!["default".to_owned(); rows.shape.columns.len()],
            _ => match map.remove(&show(locate[0])) {
                Some(row) => row,
                None => continue,
            },
        };
        touched += 1;
        if rows.operation != Operation::Delete {
            rows.set.iter().zip(set).for_each(|(&at, cell)| new[at] = show(cell));
            if map.insert(new[0].clone(), new).is_some() {
                return None;
            }
        }
    }
    Some(touched)
}

fn goes_through(map: &mut Map, actions: &[Action<'_>]) -> bool {
    actions.iter().all(|action| match action {
        Action::Rows(rows) => execute(map, action) == Some(rows.count),
        Action::Truncate { .. } => execute(map, action).is_some(),
        Action::Keep(_) => false,
    })
}

#[test]
fn random_histories_end_as_they_do_one_by_one() {
    // The table is altered now and then, and altered back.
    let shapes = [keyed(), shape("t", &[("id", true), ("a", true), ("b", false)])];
    let locators = locators(&[(&shapes[0], by_id()), (&shapes[1], by_id())]);
    let (mut good, mut bad) = (0, 0);
    for seed in 0..20_000_u64 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut start = Map::new();
        for key in 1..=3 {
            if random.random_bool(0.5) {
                start.insert(key.to_string(), vec![key.to_string(), "a".to_owned(), "b".to_owned()]);
            }
        }
        // Mostly changes that fit the rows there are, else one in a few at random.
        let mut rows = start.clone();
        let mut changes = Vec::new();
        let mut shape = 0;
        for at in 0..random.random_range(1..14) {
            let key = random.random_range(1..=4).to_string();
            let other = random.random_range(1..=4).to_string();
            let (a, b) = match random.random_range(0..5) {
                0 => ("-".to_owned(), "-".to_owned()),
                1..3 => (format!("a{at}"), "-".to_owned()),
                _ => (format!("a{at}"), format!("b{at}")),
            };
            let there = rows.contains_key(&key) != random.random_bool(0.03);
            let text = match (there, random.random_range(0..12)) {
                (_, 0) if random.random_bool(0.2) => "!".to_owned(),
                (false, _) => format!("+{key} {a} {b}"),
                (true, 0..4) => format!("-{key}"),
                (true, 4..6) if !rows.contains_key(&other) => format!("{key}>{other} {a} {b}"),
                (true, _) => format!("={key} {a} {b}"),
            };
            shape ^= usize::from(random.random_bool(0.1));
            let change = change(&shapes[shape], &text);
            execute(&mut rows, &each(&change, whole(&locators)).unwrap()[0]);
            changes.push(change);
        }
        let one_by_one: Vec<_> = changes.iter().flat_map(|it| each(it, whole(&locators)).unwrap()).collect();
        let (mut expected, mut actual) = (start.clone(), start);
        let fits = goes_through(&mut expected, &one_by_one);
        let planned = plan(&changes, whole(&locators)).unwrap();
        assert_eq!(goes_through(&mut actual, &planned), fits, "seed {seed}: {changes:?}");
        if fits {
            good += 1;
            assert_eq!(actual, expected, "seed {seed}: {changes:?}");
        } else {
            bad += 1;
        }
    }
    assert!(good > 2000 && bad > 2000, "both kinds are met: {good} and {bad}");
}

#[test]
fn what_changes_under_a_snapshot_is_kept_and_not_done() {
    let (bare, other) = (shape("bare", &[("a", true), ("b", true)]), keyed());
    let locators = locators(&[(&bare, Locator::WholeRow), (&other, by_id())]);
    let joining = JoiningTables::from([(r#""public"."bare""#.to_owned(), Joining::Snapshot)]);
    let tables = Tables { locators: &locators, joining: &joining };
    let come = |text| Change::Insert { shape: bare.clone(), new: row(text) };
    let go = |text| Change::Delete { shape: bare.clone(), old: row(text) };
    let become_ =
        |old: Option<&str>, new| Change::Update { shape: bare.clone(), old: old.map(row), new: row(new) };
    let changes = [
        come("1 0"),
        change(&other, "+1 a b"),
        become_(Some("1 0"), "2 -"),
        go("2 0"),
        // These do not say all their row holds.
        become_(None, "3 x"),
        go("3 -"),
        come("3 -"),
    ];
    let planned = plan(&changes, tables).unwrap();
    let [Action::Rows(rows), Action::Keep(keep)] = &planned[..] else { panic!("{planned:?}") };
    assert_eq!((rows.shape, rows.count, keep.shape), (&other, 1, &bare));
    let told = |keep: &Keep<'_>| -> Vec<String> {
        let cells = |cells: &[&Cell]| cells.iter().map(|cell| show(cell)).collect::<Vec<_>>().join(" ");
        keep.rows.iter().map(|(what, row)| format!("{what:?} {}", cells(row))).collect()
    };
    assert_eq!(told(keep), ["Came 1 0", "Gone 1 0", "Came 2 0", "Gone 2 0"]);
    let one_by_one = changes.iter().flat_map(|change| each(change, tables).unwrap());
    let kept =
        one_by_one.filter_map(|action| if let Action::Keep(keep) = action { Some(keep) } else { None });
    assert_eq!(kept.flat_map(|keep| told(&keep)).collect::<Vec<_>>(), told(keep));
}
