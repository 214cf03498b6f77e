//! Reads a change as our own encoder lays it out, in one pass and without a JSON parser.
//!
//! Whatever is laid out in another way is left to [`super::decode`], which takes any JSON with the same
//! content: a value with an escape or a control sign, a column that is unchanged, withheld or encrypted,
//! another order. What is read here is read there just so; `envelope/tests.rs` holds the two against each
//! other.

use bytes::Bytes;
use memchr::{memchr, memrchr};

use super::{
    decode::{Decoded, Shapes},
    encode::Form,
};
use crate::{
    change::{Cell, Change, Row, Shape},
    position::{Position, PostgresPosition},
    stamp::Micros,
};

/// Where our block begins.
const BLOCK: &str = ",\"landfall\":";

/// The change a record's value holds; none where it is not laid out as expected.
pub(super) fn change(value: &Bytes, shapes: &Shapes) -> Option<Decoded> {
    let text = std::str::from_utf8(value).ok()?;
    // One look at all of it: from here on a quote begins or ends a text.
    let has_control = value.iter().fold(false, |has, byte| has | (*byte < 0x20));
    if has_control || memchr(b'\\', value).is_some() {
        return None;
    }
    // Our block ends the record, and three braces open in it.
    let opens = |before: usize| memrchr(b'{', &value[..before]);
    let begin = opens(opens(opens(value.len())?)?)?.checked_sub(BLOCK.len())?;
    let (rows, block) = text.split_at_checked(begin)?;
    let mut block = Reader { rest: block.strip_prefix(BLOCK)?, value };
    block.eat("{\"shape\":\"")?;
    let shape = shapes.get(&block.until_quote()?.parse().ok()?)?;
    block.eat("\",\"ordinal\":")?;
    let ordinal = block.number()?.parse().ok()?;
    block.eat(",\"origin\":\"")?;
    let origin = value.slice_ref(block.until_quote()?.as_bytes());
    block.eat("\",\"position\":{\"postgres\":{\"commit\":\"")?;
    let commit = block.until_quote()?.parse().ok()?;
    block.eat("\",\"end\":\"")?;
    let end = block.until_quote()?.parse().ok()?;
    block.eat("\",\"xid\":")?;
    let xid = block.number()?.parse().ok()?;
    block.eat(",\"time\":")?;
    let time = Micros(block.number()?.parse().ok()?);
    block.eat("}}}}")?;
    block.end()?;

    let mut rows = Reader { rest: rows, value };
    rows.eat("{\"before\":")?;
    let old = rows.row(shape, false)?;
    rows.eat(",\"after\":")?;
    let new = rows.row(shape, true)?;
    rows.eat(",\"op\":\"")?;
    let operation = rows.until_quote()?;
    rows.eat("\"")?;
    if !rows.rest.is_empty() {
        rows.debezium()?;
    }

    let shape = shape.clone();
    let change = match (operation, old, new) {
        ("c", _, Some(new)) => Change::Insert { shape, new },
        ("u", old, Some(new)) => Change::Update { shape, old, new },
        ("d", Some(old), _) => Change::Delete { shape, old },
        _ => return None,
    };
    let position = Position::Postgres(PostgresPosition { commit, end, xid, time });
    Some(Decoded { position, origin, ordinal, change, to: None })
}

/// What is left to read.
struct Reader<'a> {
    rest: &'a str,
    /// The record, which values stay slices of.
    value: &'a Bytes,
}

impl<'a> Reader<'a> {
    fn eat(&mut self, expected: &str) -> Option<()> {
        self.rest = self.rest.strip_prefix(expected)?;
        Some(())
    }

    /// What Debezium's envelope says of a change besides its rows: nothing that our block does not.
    fn debezium(&mut self) -> Option<()> {
        self.eat(",\"source\":{\"version\":\"")?;
        for next in ["connector", "name", "snapshot", "db", "schema", "table"] {
            self.until_quote()?;
            self.eat("\",\"")?;
            self.eat(next)?;
            self.eat("\":\"")?;
        }
        self.until_quote()?;
        self.eat("\"")?;
        for name in [",\"txId\":", ",\"lsn\":", ",\"ts_ms\":", "},\"ts_ms\":"] {
            self.eat(name)?;
            self.number()?;
        }
        self.eat(",\"transaction\":{\"id\":\"")?;
        self.until_quote()?;
        self.eat("\",\"total_order\":")?;
        self.number()?;
        self.eat("}")?;
        self.end()
    }

    fn end(&self) -> Option<()> {
        self.rest.is_empty().then_some(())
    }

    /// A text's content, up to its closing quote.
    fn until_quote(&mut self) -> Option<&'a str> {
        let (text, rest) = self.rest.split_at(memchr(b'"', self.rest.as_bytes())?);
        self.rest = rest;
        Some(text)
    }

    /// A whole number as JSON has it: no sign but a minus, no zero before other digits.
    fn number(&mut self) -> Option<&'a str> {
        let unsigned = self.rest.strip_prefix('-').unwrap_or(self.rest).as_bytes();
        let digits = unsigned.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 || digits > 1 && unsigned[0] == b'0' {
            return None;
        }
        let after = unsigned.get(digits);
        if matches!(after, Some(b'.' | b'e' | b'E')) {
            return None;
        }
        let sign = self.rest.len() - unsigned.len();
        let (number, rest) = self.rest.split_at(sign + digits);
        self.rest = rest;
        Some(number)
    }

    /// A row with the shape's columns in order; where it need not be `whole`, what is left out is
    /// [`Cell::Unchanged`]. The outer none is another layout, the inner one no row.
    fn row(&mut self, shape: &Shape, whole: bool) -> Option<Option<Row>> {
        if self.eat("null").is_some() {
            return Some(None);
        }
        let mut cells = Vec::with_capacity(shape.columns.len());
        let mut before = "{";
        for column in &shape.columns {
            let name = |rest: &'a str| {
                rest.strip_prefix(before)?.strip_prefix('"')?.strip_prefix(&*column.name)?.strip_prefix("\":")
            };
            match name(self.rest) {
                Some(rest) => {
                    self.rest = rest;
                    before = ",";
                    cells.push(self.cell(Form::of(column))?);
                }
                None if whole => return None,
                None => cells.push(Cell::Unchanged),
            }
        }
        if before == "{" {
            self.eat("{")?;
        }
        self.eat("}")?;
        Some(Some(Row(cells.into())))
    }

    fn cell(&mut self, form: Form) -> Option<Cell> {
        if self.eat("null").is_some() {
            return Some(Cell::Null);
        }
        let text = match form {
            Form::Text => {
                self.eat("\"")?;
                let text = self.until_quote()?;
                self.eat("\"")?;
                text
            }
            Form::Number => self.number()?,
            Form::Bool if self.eat("true").is_some() => return Some(Cell::Value(Bytes::from_static(b"t"))),
            Form::Bool => {
                self.eat("false")?;
                return Some(Cell::Value(Bytes::from_static(b"f")));
            }
        };
        Some(Cell::Value(self.value.slice_ref(text.as_bytes())))
    }
}
