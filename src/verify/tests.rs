use std::collections::BTreeMap;

use super::*;

/// A region with one table, asked as a database is.
#[derive(Clone, Default)]
struct Held(BTreeMap<u32, String>);

fn key(id: u32) -> Key {
    vec![id.to_string()]
}

fn id(key: &Key) -> u32 {
    key[0].parse().unwrap()
}

impl Held {
    fn new(rows: impl IntoIterator<Item = u32>) -> Self {
        Self(rows.into_iter().map(|id| (id, format!("row {id}"))).collect())
    }

    fn between(&self, after: Option<&Key>, upto: Option<&Key>) -> Vec<RowHash> {
        let within =
            |at: &u32| after.is_none_or(|after| *at > id(after)) && upto.is_none_or(|upto| *at <= id(upto));
        let rows = self.0.iter().filter(|(at, _)| within(at));
        rows.map(|(at, row)| RowHash { key: key(*at), hash: row.clone(), row: Some(row.clone()) }).collect()
    }

    fn sum(&self, after: Option<&Key>, upto: Option<&Key>) -> Sum {
        let rows = self.between(after, upto);
        let sum: u64 = rows.iter().flat_map(|row| row.hash.bytes()).map(u64::from).sum();
        Sum { upto: upto.cloned(), rows: rows.len() as u64, sum: sum.to_string() }
    }

    /// As the region that is asked finds it: it chooses the ranges.
    fn asked(&self, about: &About) -> Found {
        match about {
            About::Tables | About::Mend { .. } | About::Recover { .. } | About::Settle { .. } => {
                unreachable!("a survey knows its table, and only looks")
            }
            About::Sums { after, range_rows, ranges, .. } => {
                let mut after = after.clone();
                let mut sums = Vec::new();
                for _ in 0..*ranges {
                    let upto = self
                        .between(after.as_ref(), None)
                        .get(*range_rows as usize - 1)
                        .map(|row| row.key.clone());
                    sums.push(self.sum(after.as_ref(), upto.as_ref()));
                    after = upto;
                    if after.is_none() {
                        break;
                    }
                }
                Found::Sums(sums)
            }
            About::Rows { after, upto, .. } => {
                // At most three rows in an answer.
                let mut rows = self.between(after.as_ref(), upto.as_ref());
                let cut = rows.len() > 3;
                rows.truncate(3);
                let upto = if cut { Some(rows[2].key.clone()) } else { upto.clone() };
                Found::Rows { rows, upto }
            }
            About::Keys { keys, .. } => Found::Keys(self.of(keys)),
        }
    }

    fn of(&self, keys: &[Key]) -> Vec<RowHash> {
        keys.iter()
            .flat_map(|key| self.between(None, None).into_iter().filter(move |row| row.key == *key))
            .collect()
    }

    /// As the region that asks finds it, at the place of the answer.
    fn same(&self, about: &About, there: &Found) -> Found {
        match (about, there) {
            (About::Sums { after, .. }, Found::Sums(sums)) => {
                let mut after = after.clone();
                let same = |sum: &Sum| {
                    self.sum(std::mem::replace(&mut after, sum.upto.clone()).as_ref(), sum.upto.as_ref())
                };
                Found::Sums(sums.iter().map(same).collect())
            }
            (About::Rows { after, .. }, Found::Rows { upto, .. }) => {
                Found::Rows { rows: self.between(after.as_ref(), upto.as_ref()), upto: upto.clone() }
            }
            (About::Keys { keys, .. }, _) => Found::Keys(self.of(keys)),
            _ => unreachable!("answers are to what was asked"),
        }
    }
}

fn answer(found: Found, unsure: Vec<Key>, all_unsure: bool, keyless: bool) -> Answer {
    let key = if keyless { Vec::new() } else { vec!["id".to_owned()] };
    let layout = Some(Layout { columns: vec!["id".to_owned(), "note".to_owned()], key });
    Answer { verification: "v".into(), number: 1, took_micros: 1, layout, found, unsure, all_unsure }
}

fn survey() -> Survey {
    let table = TableName { schema: "public".into(), table: "t".into() };
    Survey::new(table, None, Options { range_rows: 10, ranges: 4, values: true })
}

/// Runs a survey to its end; `unsure` says which keys changed while question so and so was answered.
fn run(there: &Held, here: &Held, unsure: impl Fn(usize) -> Vec<Key>) -> (Settled, usize) {
    let (mut survey, mut all, mut asked) = (survey(), Settled::default(), 0);
    loop {
        while let Some(about) = survey.next() {
            asked += 1;
            let found = there.asked(&about);
            let same = here.same(&about, &found);
            survey.take(&answer(found, unsure(asked), false, false), &same).unwrap();
        }
        let settled = survey.settled().unwrap();
        all.rows += settled.rows;
        all.ranges += settled.ranges;
        all.findings.extend(settled.findings);
        if settled.ended {
            return (all, asked);
        }
        assert!(settled.through.is_some());
    }
}

fn found(settled: &Settled) -> Vec<(u32, Difference)> {
    let mut found: Vec<_> = settled.findings.iter().map(|it| (id(&it.key), it.difference)).collect();
    found.sort_by_key(|(id, _)| *id);
    found
}

#[test]
fn what_is_equal_is_asked_for_its_sums_alone() {
    let held = Held::new(0..95);
    let (settled, asked) = run(&held, &held, |_| Vec::new());
    assert_eq!((settled.rows, settled.ranges, asked), (95, 10, 3));
    assert_eq!(settled.findings, []);
}

#[test]
fn every_row_that_differs_is_found_and_no_other() {
    let there = Held::new(0..95);
    let mut here = Held::new((0..95).filter(|id| *id != 17 && *id != 94));
    for other in [0, 9, 10, 63] {
        here.0.insert(other, "another".to_owned());
    }
    here.0.insert(200, "nobody's".to_owned());
    let (settled, _) = run(&there, &here, |_| Vec::new());
    use Difference::{Different, Extra, Missing};
    let expected = [
        (0, Different),
        (9, Different),
        (10, Different),
        (17, Missing),
        (63, Different),
        (94, Missing),
        (200, Extra),
    ];
    assert_eq!(found(&settled), expected);
    assert_eq!(
        settled.findings.iter().find(|it| id(&it.key) == 63).unwrap().here.as_deref(),
        Some("another")
    );
}

/// The table here may lack the key that the other has.
#[test]
fn a_key_that_is_there_once_and_here_twice_is_found() {
    let row = |id: u32, hash: &str| RowHash { key: key(id), hash: hash.into(), row: Some(hash.into()) };
    let sums = |rows| Found::Sums(vec![Sum { upto: None, rows, sum: rows.to_string() }]);
    let rows = |rows| Found::Rows { rows, upto: None };
    // The same row twice, also behind another; and one that is not there at all.
    let there = || vec![row(1, "a"), row(2, "b"), row(3, "c")];
    let here = || [there(), vec![row(1, "a"), row(3, "another"), row(4, "d"), row(4, "d")]].concat();
    let mut survey = survey();
    survey.take(&answer(sums(3), Vec::new(), false, false), &sums(7)).unwrap();
    survey.take(&answer(rows(there()), Vec::new(), false, false), &rows(here())).unwrap();
    let Some(About::Keys { keys, .. }) = survey.next() else { panic!("its keys are not asked for") };
    assert_eq!(keys, [key(1), key(3), key(4)], "each is asked for once");
    survey.take(&answer(Found::Keys(there()), Vec::new(), false, false), &Found::Keys(here())).unwrap();
    let settled = survey.settled().unwrap();
    use Difference::{Different, Extra};
    assert_eq!(found(&settled), [(1, Different), (3, Different), (4, Extra)]);
    let shown: Vec<_> = settled.findings.iter().map(|it| it.here.as_deref().unwrap()).collect();
    assert_eq!(shown, ["a and a", "c and another", "d and d"]);
}

#[test]
fn an_empty_table_and_one_that_should_be() {
    let (none, some) = (Held::default(), Held::new(0..3));
    assert_eq!(run(&none, &none, |_| Vec::new()).0.findings, []);
    assert_eq!(found(&run(&none, &some, |_| Vec::new()).0).len(), 3);
    assert_eq!(found(&run(&some, &none, |_| Vec::new()).0).len(), 3);
}

#[test]
fn a_key_that_changed_meanwhile_is_asked_for_until_it_stands_still() {
    let there = Held::new(0..20);
    let mut here = there.clone();
    here.0.insert(5, "older".to_owned());
    // While it changes nothing is said of it; what it is then, is.
    let (settled, asked) = run(&there, &here, |asked| if asked < 8 { vec![key(5)] } else { Vec::new() });
    assert_eq!(found(&settled), [(5, Difference::Different)]);
    // Sums, and rows 0 to 5; the key until the eighth question; then the range's other rows, in two helpings.
    assert_eq!(asked, 10);
    // Equal to what it was before it changed it may be since the change has not come.
    let (mut survey, old) = (self::survey(), Held::new(0..1));
    let new = Held(BTreeMap::from([(0, "newer".to_owned())]));
    let take = |survey: &mut Survey, there: &Held, unsure| {
        let about = survey.next().expect("there is more to ask");
        let found = there.asked(&about);
        survey.take(&answer(found.clone(), unsure, false, false), &old.same(&about, &found)).unwrap();
    };
    take(&mut survey, &new, Vec::new());
    take(&mut survey, &new, Vec::new());
    take(&mut survey, &old, vec![key(0)]);
    take(&mut survey, &new, Vec::new());
    assert_eq!(found(&survey.settled().unwrap()), [(0, Difference::Different)]);
    // One that always does is told as what it is.
    let (settled, _) = run(&there, &here, |_| vec![key(5)]);
    assert_eq!(found(&settled), [(5, Difference::Unsure)]);
}

#[test]
fn rows_that_nothing_tells_apart_are_compared_as_one() {
    let sum = |rows, sum: &str| Found::Sums(vec![Sum { upto: None, rows, sum: sum.to_owned() }]);
    let mut survey = survey();
    for _ in 0..5 {
        // Something changed while it was read: that is no answer.
        survey.take(&answer(sum(3, "30"), Vec::new(), true, true), &sum(4, "40")).unwrap();
        assert_eq!(survey.settled(), None);
    }
    // Nor is it where it is equal: what changed may be lacking here.
    survey.take(&answer(sum(4, "40"), Vec::new(), true, true), &sum(4, "40")).unwrap();
    assert_eq!(survey.settled(), None);
    survey.take(&answer(sum(4, "40"), Vec::new(), false, true), &sum(4, "40")).unwrap();
    let settled = survey.settled().unwrap();
    assert_eq!((settled.ended, settled.rows, settled.findings), (true, 4, Vec::new()));

    let mut survey = self::survey();
    survey.take(&answer(sum(4, "40"), Vec::new(), false, true), &sum(4, "41")).unwrap();
    let findings = survey.settled().unwrap().findings;
    assert_eq!((findings[0].difference, findings.len()), (Difference::Different, 1));

    // One that always changes is told as what it is, sooner where it takes long to read.
    for (seconds, times) in [(0, 50), (2, 5), (14, 3)] {
        let changing = answer(sum(3, "30"), Vec::new(), true, true);
        let changing = Answer { took_micros: seconds * 1_000_000, ..changing };
        let (mut survey, mut asked) = (self::survey(), 0);
        while survey.next().is_some() {
            survey.take(&changing, &sum(4, "40")).unwrap();
            asked += 1;
        }
        let findings = survey.settled().unwrap().findings;
        assert_eq!((findings[0].difference, asked), (Difference::Unsure, times));
    }
}

#[test]
fn more_than_is_listed_is_not_looked_at() {
    let row = |id: usize| RowHash { key: vec![id.to_string()], hash: "h".into(), row: None };
    let sums = |rows| {
        Found::Sums(vec![
            Sum { upto: Some(key(9)), rows, sum: rows.to_string() },
            Sum { upto: None, rows, sum: rows.to_string() },
        ])
    };
    let mut survey = survey();
    survey.take(&answer(sums(0), Vec::new(), false, false), &sums(50_000)).unwrap();
    let rows = |rows| Found::Rows { rows, upto: Some(key(9)) };
    survey
        .take(&answer(rows(Vec::new()), Vec::new(), false, false), &rows((0..50_000).map(row).collect()))
        .unwrap();
    let mut asked = 0;
    while let Some(about) = survey.next() {
        let About::Keys { keys, .. } = about else { panic!("{about:?}: the second range is not looked at") };
        let here = keys.iter().map(|key| row(key[0].parse().unwrap())).collect();
        survey.take(&answer(Found::Keys(Vec::new()), Vec::new(), false, false), &Found::Keys(here)).unwrap();
        asked += 1;
    }
    assert_eq!(asked, FINDINGS_MAX / KEYS_MAX);
    let settled = survey.settled().unwrap();
    assert_eq!((settled.findings.len(), settled.cut, settled.ended), (FINDINGS_MAX, true, false));
    // What was found may have been put right: the same ranges are asked for again.
    let again = survey.next();
    assert!(matches!(&again, Some(About::Sums { after: None, .. })), "{again:?}");
}

#[test]
fn an_answer_to_something_else_ends_the_survey() {
    let sums = Found::Sums(vec![Sum { upto: None, rows: 0, sum: "0".into() }]);
    let refused = Found::Refused("[LF-PRIVILEGE] may not".to_owned());
    let error = survey().take(&answer(refused, Vec::new(), false, false), &sums).unwrap_err();
    assert_eq!(error, "[LF-PRIVILEGE] may not");
    let keys = Found::Keys(Vec::new());
    assert!(survey().take(&answer(sums, Vec::new(), false, false), &keys).is_err());
}

#[test]
fn a_question_is_a_regions_and_holds_no_zero_byte() {
    let question = |by: &str, key: &str| Question {
        verification: "v".into(),
        number: 1,
        by: by.into(),
        stream: "main".into(),
        about: About::Keys {
            table: TableName { schema: "public".into(), table: "t".into() },
            keys: vec![vec![key.into()]],
            values: false,
        },
    };
    assert!(question("eu-west-1", "\\u0000").is_sound());
    assert!(!question("eu-west-1", "a\0b").is_sound());
    assert!(!question("eu west", "a").is_sound());
    let long = Question { verification: "v".repeat(65), ..question("eu-west-1", "a") };
    assert!(!long.is_sound());
}
