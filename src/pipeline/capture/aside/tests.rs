//! What changed meanwhile, laid over what was read.

use std::sync::Arc;

use super::*;
use crate::{
    change::{Column, Identity, Mark},
    source::Snapshot,
};

fn shape() -> Arc<Shape> {
    let column = |name: &str, key| Column {
        name: name.into(),
        type_schema: "pg_catalog".into(),
        type_name: "text".into(),
        typmod: -1,
        key,
    };
    Arc::new(Shape::new(
        "public",
        "t",
        Identity::Default,
        [column("id", true), column("a", false), column("b", false)],
    ))
}

/// `-` is unchanged.
fn row(text: &str) -> Row {
    let cell = |word: &str| match word {
        "-" => Cell::Unchanged,
        word => Cell::Value(Bytes::copy_from_slice(word.as_bytes())),
    };
    Row(text.split(' ').map(cell).collect())
}

/// `+id a b` inserts, `=id a b` updates, `old>id a b` moves, `-id` deletes.
fn change(text: &str) -> Change {
    let shape = shape();
    let key = |id: &str| row(&format!("{id} - -"));
    if let Some(new) = text.strip_prefix('+') {
        return Change::Insert { shape, new: row(new) };
    }
    if let Some(new) = text.strip_prefix('=') {
        return Change::Update { shape, old: None, new: row(new) };
    }
    if let Some(id) = text.strip_prefix('-') {
        return Change::Delete { shape, old: key(id) };
    }
    let (old, new) = text.split_once('>').unwrap();
    Change::Update { shape, old: Some(key(old)), new: row(new) }
}

/// A transaction of one change comes.
fn come(aside: &mut Aside, xid: u32, text: &str) {
    aside.note(xid);
    aside.change(xid, &mut change(text));
}

const SEEN: u64 = 100;

fn rows(text: &'static str, key: &[usize]) -> Rows {
    Rows {
        shape: shape(),
        key: key.into(),
        first: false,
        seen: Snapshot { low: SEEN - 10, high: SEEN, open: vec![SEEN - 5] },
        done: false,
        again: false,
        replace: false,
        texts: vec![Bytes::from_static(text.as_bytes())],
    }
}

/// The text of the chunk that comes of `read` and what happened before and after the low watermark.
fn laid_over(
    read: Rows,
    before: &[(u32, &str)],
    after: &[(u32, &str)],
) -> std::result::Result<Vec<String>, &'static str> {
    let mut aside = Aside::new(vec![r#""public"."t""#.into()]);
    before.iter().for_each(|(xid, text)| come(&mut aside, *xid, text));
    let low = Watermark { session: 0, portion: 1, low: Some(r#""public"."t""#.into()) };
    aside.open(&low);
    after.iter().for_each(|(xid, text)| come(&mut aside, *xid, text));
    let changes = aside.lay_over(&Watermark { low: None, ..low }, read)?;
    Ok(changes
        .iter()
        .map(|change| match change {
            Change::Chunk { text, rows, .. } => {
                assert_eq!(*rows as usize, copy_text::lines(text).count());
                String::from_utf8(text.to_vec()).unwrap()
            }
            other => format!("{} {:?}", other.operation().as_str(), other.shape().to_string()),
        })
        .collect())
}

#[test]
fn a_row_that_changed_meanwhile_is_as_it_became() {
    let read = || rows("1\ta\tb\n2\ta\tb\n3\ta\tb\n", &[0]);
    let chunk = |after: &[(u32, &str)]| laid_over(read(), &[], after).unwrap().concat();
    assert_eq!(chunk(&[]), "1\ta\tb\n2\ta\tb\n3\ta\tb\n");
    assert_eq!(chunk(&[(101, "=2 x -")]), "1\ta\tb\n2\tx\tb\n3\ta\tb\n", "what it left unchanged was read");
    assert_eq!(chunk(&[(101, "=2 x y"), (102, "-2")]), "1\ta\tb\n3\ta\tb\n", "a deletion stays");
    assert_eq!(chunk(&[(101, "-2"), (102, "+2 n n")]), "1\ta\tb\n2\tn\tn\n3\ta\tb\n");
    assert_eq!(chunk(&[(101, "2>9 x y")]), "1\ta\tb\n3\ta\tb\n", "its new self came by itself");
    assert_eq!(chunk(&[(101, "9>2 x y")]), "1\ta\tb\n2\tx\ty\n3\ta\tb\n");
    assert_eq!(chunk(&[(101, "+4 x y")]), "1\ta\tb\n2\ta\tb\n3\ta\tb\n", "it came by itself");
    assert_eq!(chunk(&[(101, "=2 x -"), (102, "=2 - z")]), "1\ta\tb\n2\tx\tz\n3\ta\tb\n");
    assert_eq!(chunk(&[(101, "-1"), (102, "-2"), (103, "-3")]), "");
}

#[test]
fn what_the_reader_was_not_shown_is_read_again() {
    let read = || rows("1\ta\tb\n", &[0]);
    // Committed before the low watermark, and still open to the reader's eyes.
    assert!(laid_over(read(), &[(95, "=1 x y")], &[]).is_err());
    assert!(laid_over(read(), &[(100, "=1 x y")], &[]).is_err());
    assert!(laid_over(read(), &[(94, "=1 x y"), (99, "=1 x z")], &[]).is_ok());
}

/// What comes of rows that are read for a backfill, for a repair and for an answer, where only capture's own memory
/// tells what was committed before.
fn of_every_reader(mut aside: Aside) -> [std::result::Result<(), &'static str>; 3] {
    let Rows { shape, key, seen, texts, .. } = rows("1\ta\tb\n", &[0]);
    let read = ReadFor { shape, key, seen };
    let mut portion = 0;
    let mut high = |aside: &mut Aside| {
        portion += 1;
        let low = Watermark { session: 0, portion, low: Some(r#""public"."t""#.into()) };
        aside.open(&low);
        aside.open(&low);
        Watermark { low: None, ..low }
    };
    let mend = Mend { keys: vec![vec!["1".to_owned()]], text: texts.concat().into() };
    let watermark = high(&mut aside);
    let mended = aside.mending(&watermark, &read, &mend).map(drop);
    let watermark = high(&mut aside);
    let told = aside.note_unsure(&watermark, &read, &mut answer());
    let watermark = high(&mut aside);
    let filled = aside.lay_over(&watermark, rows("1\ta\tb\n", &[0])).map(drop);
    [filled, mended, told]
}

#[test]
fn whoever_reads_is_held_against_what_came_before_anybody_asked() {
    let aside = || Aside::new(Vec::new());
    assert_eq!(of_every_reader(aside()), [Ok(()); 3]);
    let mut seen = aside();
    come(&mut seen, 94, "=1 x y");
    assert_eq!(of_every_reader(seen), [Ok(()); 3]);
    let mut changed = aside();
    come(&mut changed, 95, "=1 x y");
    assert_eq!(of_every_reader(changed), [Err(UNSHOWN); 3]);
    // Whatever it is of: what touched the table before it was told of touched it too.
    let mut elsewhere = aside();
    elsewhere.note(95);
    assert_eq!(of_every_reader(elsewhere), [Err(UNSHOWN); 3]);
    // A table that was filled meanwhile takes nothing along.
    let mut filled = Aside::new(vec![r#""public"."t""#.into()]);
    come(&mut filled, 95, "=1 x y");
    filled.filled(&shape());
    assert_eq!(of_every_reader(filled), [Err(UNSHOWN); 3]);
}

#[test]
fn a_table_is_to_be_begun_anew_once_until_it_is() {
    let mut aside = Aside::new(vec![r#""public"."t""#.into()]);
    let mut meets = |text: &str| aside.change(100, &mut change(text));
    assert_eq!(meets("1>9 x y"), None, "it says all it holds");
    assert_eq!(meets("1>9 x -").as_deref(), Some(r#""public"."t""#));
    assert_eq!(meets("2>8 x -"), None);
    aside.fill(&[shape()]);
    assert_eq!(aside.change(101, &mut change("3>7 x -")).as_deref(), Some(r#""public"."t""#));
}

#[test]
fn nothing_of_a_table_is_taken_until_it_is_begun_anew() {
    // Its last rows, were they taken, would have it whole without row 9; and of another row 2, deleted, its values.
    let read = || rows("1\ta\tb\n2\ta\tb\n", &[0]);
    assert_eq!(laid_over(read(), &[], &[(101, "1>9 x -")]), Err(TO_BEGIN));
    assert_eq!(laid_over(read(), &[], &[(101, "-2"), (102, "1>2 x -")]), Err(TO_BEGIN));
    assert_eq!(laid_over(read(), &[(90, "1>9 x -")], &[]), Err(TO_BEGIN));
    assert!(laid_over(read(), &[], &[(101, "1>9 x y")]).is_ok());
}

#[test]
fn so_many_transactions_are_remembered_and_no_more() {
    let mut aside = Aside::new(Vec::new());
    (0..2 * RECENT).for_each(|xid| aside.note(u32::try_from(xid).unwrap()));
    assert_eq!((aside.recent.len(), aside.recent.front()), (RECENT, Some(&u32::try_from(RECENT).unwrap())));
}

/// The lines of what is appended: `+` or `-` before those that came or went since the snapshot.
fn told(changes: &[Change]) -> String {
    let line = |change: &Change| {
        let Change::Chunk { meanwhile, .. } = change else { panic!("{change:?}") };
        let sign = match meanwhile {
            None => "",
            Some(Meanwhile::Came) => "+",
            Some(Meanwhile::Gone) => "-",
        };
        text_lines(change).iter().map(|line| format!("{sign}{}", line.replace('\t', " "))).collect::<Vec<_>>()
    };
    changes.iter().flat_map(line).collect::<Vec<_>>().join("; ")
}

#[test]
fn rows_that_nothing_tells_apart_come_as_they_were_and_what_changed_since_besides() {
    let read = || Rows { first: true, ..rows("1\ta\tb\n1\ta\tb\n2\tc\td\n", &[]) };
    let laid = |after: &[(u32, Change)]| -> std::result::Result<String, &'static str> {
        let mut aside = Aside::new(vec![r#""public"."t""#.into()]);
        let low = Watermark { session: 0, portion: 1, low: Some(r#""public"."t""#.into()) };
        aside.open(&low);
        after.iter().for_each(|(xid, change)| drop(aside.change(*xid, &mut change.clone())));
        Ok(told(&aside.lay_over(&Watermark { low: None, ..low }, read())?))
    };
    let whole = |text: &str| Change::Delete { shape: shape(), old: row(text) };
    let same = "1 a b; 1 a b; 2 c d";
    assert_eq!(laid(&[]), Ok(same.to_owned()));
    assert_eq!(laid(&[(99, change("+1 a b"))]), Ok(same.to_owned()), "it was seen");
    let both = [(95, change("+1 a b")), (101, whole("9 x y"))];
    assert_eq!(laid(&both), Ok(format!("{same}; +1 a b; -9 x y")), "it may come with a later portion");
    let update = Change::Update { shape: shape(), old: Some(row("1 a b")), new: row("3 - e") };
    assert_eq!(
        laid(&[(101, update)]),
        Ok(format!("{same}; +3 a e; -1 a b")),
        "whole, though it does not say so"
    );
    assert!(laid(&[(101, change("-1"))]).is_err(), "it does not say which row it means");
    assert!(laid(&[(101, change("+3 - -"))]).is_err(), "it does not say all it holds");
}

#[test]
fn a_table_under_a_snapshot_goes_on_until_it_is_another() {
    let other = || {
        let mut columns = shape().columns.to_vec();
        columns.pop();
        Arc::new(Shape::new("public", "t", Identity::Default, columns))
    };
    let mut aside = Aside::new(vec![r#""public"."t""#.into()]);
    let watermark = |portion| Watermark { session: 0, portion, low: None };
    let more = |done| Rows { done, ..rows("1\ta\tb\n", &[]) };
    let begin = |aside: &mut Aside, portion| {
        aside.open(&Watermark { session: 0, portion, low: Some(r#""public"."t""#.into()) });
        let first = Rows { first: true, ..more(false) };
        assert_eq!(
            aside.lay_over(&watermark(portion), first).map(|changes| told(&changes)),
            Ok("1 a b".into())
        );
    };
    assert!(aside.lay_over(&watermark(1), more(false)).is_err(), "its first rows are not in the log");
    begin(&mut aside, 1);
    for portion in 2..5 {
        // Whatever changes is kept elsewhere; and an answer is read in between.
        (0..2 * ASIDE_CHANGES as u32).for_each(|xid| drop(aside.change(200 + xid, &mut change("-1"))));
        aside.open(&Watermark { session: 0, portion: 77, low: Some(r#""public"."other""#.into()) });
        let laid = aside.lay_over(&watermark(portion), more(false));
        assert_eq!(laid.map(|changes| told(&changes)), Ok("1 a b".into()));
    }
    let truncate = Change::Truncate { shapes: vec![shape()], cascade: false, restart_identity: false };
    let insert = Change::Insert { shape: other(), new: row("1 a") };
    for (portion, mut spoils) in [(6, truncate), (8, insert)] {
        aside.change(300, &mut spoils);
        assert!(aside.lay_over(&watermark(portion), more(true)).is_err(), "{spoils:?}");
        begin(&mut aside, portion + 1);
    }
    assert!(aside.lay_over(&watermark(10), more(true)).is_ok());
    assert!(aside.lay_over(&watermark(11), more(true)).is_err(), "it is done");
}

fn text_lines(change: &Change) -> Vec<String> {
    let Change::Chunk { text, rows, .. } = change else { panic!("{change:?}") };
    let lines: Vec<String> =
        copy_text::lines(text).map(|line| String::from_utf8(line.to_vec()).unwrap()).collect();
    assert_eq!(lines.len(), *rows as usize);
    lines
}

#[test]
fn rows_that_mend_are_as_they_became_and_no_others() {
    let mend = |after: &[(u32, &str)]| {
        let mut aside = Aside::new(Vec::new());
        let low = Watermark { session: 0, portion: 1, low: Some(r#""public"."t""#.into()) };
        aside.open(&low);
        after.iter().for_each(|(xid, text)| come(&mut aside, *xid, text));
        let Rows { shape, key, seen, texts, .. } = rows("1\ta\tb\n2\ta\tb\n", &[0]);
        let keys = ["1", "2", "4", "9"].map(|key| vec![key.to_owned()]).to_vec();
        let mend = Mend { keys, text: texts.concat().into() };
        let change = aside.mending(&Watermark { low: None, ..low }, &ReadFor { shape, key, seen }, &mend)?;
        assert!(aside.is_idle(), "nothing is kept aside afterwards");
        let Change::Chunk { keys: Some(keys), .. } = &change else { panic!("{change:?}") };
        assert_eq!(&keys[..], b"1\t\\N\t\\N\n2\t\\N\t\\N\n4\t\\N\t\\N\n9\t\\N\t\\N\n");
        Ok::<_, &'static str>(text_lines(&change).join(" "))
    };
    assert_eq!(mend(&[]), Ok("1\ta\tb 2\ta\tb".into()));
    assert_eq!(mend(&[(101, "=2 x -"), (102, "-1")]), Ok("2\tx\tb".into()));
    assert_eq!(
        mend(&[(101, "+4 n n"), (101, "+5 n n")]),
        Ok("1\ta\tb 2\ta\tb 4\tn\tn".into()),
        "5 was not asked for"
    );
    assert_eq!(mend(&[(101, "2>9 x y")]), Ok("1\ta\tb 9\tx\ty".into()));
    assert!(mend(&[(101, "2>7 x y")]).is_err(), "7 may be but another spelling of 2, which is taken away");
    assert!(mend(&[(101, "-2"), (102, "+7 x y")]).is_err(), "so it may");
    assert!(mend(&[(101, "2>9 x -")]).is_err(), "what it left unchanged was not read");
    assert!(mend(&[(101, "-2"), (102, "1>2 x -")]).is_err(), "what was read is another row's");
}

fn answer() -> Answer {
    Answer {
        verification: "v".into(),
        number: 1,
        took_micros: 1,
        layout: None,
        found: Found::Keys(Vec::new()),
        unsure: Vec::new(),
        all_unsure: false,
    }
}

#[test]
fn a_window_ends_with_its_high_watermark_and_no_other_does() {
    let watermark = |portion, low: Option<&str>| Watermark { session: 0, portion, low: low.map(Into::into) };
    let mut aside = Aside::new(Vec::new());
    let open = |aside: &mut Aside, portion| aside.open(&watermark(portion, Some(r#""public"."t""#)));
    open(&mut aside, 2);
    come(&mut aside, 101, "=1 x y");
    assert!(!aside.is_idle());
    // Of what was refused, given up or read again: nobody asks for what changed.
    assert!(aside.close(&watermark(2, None)).is_some_and(|window| window.changes.len() == 1));
    assert!(aside.is_idle());
    open(&mut aside, 3);
    assert!(aside.close(&watermark(2, None)).is_none() && !aside.is_idle(), "one that comes late");
    assert!(aside.close(&watermark(4, None)).is_none() && aside.is_idle(), "nothing came of the third");
}

#[test]
fn an_answer_names_the_keys_its_reader_could_not_have_seen() {
    let note = |before: &[(u32, &str)], after: &[(u32, &str)], key: &[usize]| {
        let mut aside = Aside::new(Vec::new());
        let low = Watermark { session: 0, portion: 1, low: Some(r#""public"."t""#.into()) };
        // Sent twice: what committed before the first was seen.
        aside.open(&low);
        before.iter().for_each(|(xid, text)| come(&mut aside, *xid, text));
        aside.open(&low);
        after.iter().for_each(|(xid, text)| come(&mut aside, *xid, text));
        let Rows { shape, key, seen, .. } = rows("1\ta\tb\n", key);
        let mut answer = answer();
        aside.note_unsure(&Watermark { low: None, ..low }, &ReadFor { shape, key, seen }, &mut answer)?;
        answer.unsure.sort();
        Ok::<_, &'static str>((answer.unsure.concat().join(" "), answer.all_unsure))
    };
    let unsure = |keys: &str, all| Ok((keys.to_owned(), all));
    assert_eq!(note(&[], &[(99, "=1 x y"), (101, "=2 x y"), (102, "3>4 x y")], &[0]), unsure("2 3 4", false));
    assert_eq!(note(&[], &[(99, "+1 x y")], &[]), unsure("", false), "it was seen");
    assert_eq!(note(&[], &[(101, "+1 x y")], &[]), unsure("", true));
    assert_eq!(note(&[(95, "=1 x y")], &[], &[0]), Err(UNSHOWN), "committed, and not shown yet");
    assert_eq!(note(&[(95, "+1 x y")], &[], &[]), Err(UNSHOWN));
    assert_eq!(note(&[(99, "=1 x y")], &[], &[0]), unsure("", false));
    let many: Vec<(u32, &str)> = (0..=ASIDE_CHANGES).map(|_| (101, "=1 x y")).collect();
    assert_eq!(note(&[], &many, &[0]), unsure("", true), "more changed than is kept aside");
}

#[test]
fn a_window_is_bounded_and_of_one_shape() {
    let many: Vec<(u32, &str)> = (0..=ASIDE_CHANGES).map(|_| (101, "=1 x y")).collect();
    assert!(laid_over(rows("1\ta\tb\n", &[0]), &[], &many).is_err());
    let mut other = rows("1\ta\tb\n", &[0]);
    other.shape = Arc::new(Shape::new("public", "t", Identity::Full, shape().columns.clone()));
    assert!(laid_over(other, &[], &[(101, "=1 x y")]).is_err());
}

#[test]
fn a_row_that_moves_without_all_it_holds_begins_its_table_anew() {
    let mut aside = Aside::new(vec![r#""public"."t""#.into()]);
    assert_eq!(aside.change(1, &mut change("2>9 x y")), None);
    assert_eq!(aside.change(1, &mut change("=2 x -")), None);
    assert_eq!(aside.change(1, &mut change("2>9 x -")), Some(r#""public"."t""#.into()));
    // Where the old image shows it, nothing is missing.
    let mut whole = change("2>9 x -");
    if let Change::Update { old, .. } = &mut whole {
        *old = Some(row("2 a b"));
    }
    assert_eq!(aside.change(1, &mut whole), None);
    let Change::Update { new, .. } = whole else { unreachable!("made as an update") };
    assert_eq!(new, row("9 x b"));
    assert_eq!(Mark::Wait.as_str(), "wait");
}
