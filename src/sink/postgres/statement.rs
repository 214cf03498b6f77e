//! The text of the statements that apply rows, and the arrays their parameters are.
//!
//! Every row of an action travels in arrays, one for each column, as Postgres's own text:
//! `INSERT INTO t (a, b) SELECT … FROM unnest($1::int8[], $2::text[]) AS u (s0, s1)`. The statement's
//! text does not depend on the number of rows, so it is prepared once. Many rows that come are copied
//! instead, in the text format of `COPY`: the same texts, which the server takes apart at less cost.

use std::error::Error as StdError;

use bytes::{BufMut, Bytes, BytesMut};
use tokio_postgres::types::{Format, IsNull, ToSql, Type};

use super::table::Table;
use crate::{
    change::{Cell, Operation, copy_text},
    plan::Rows,
};

/// What an update that writes nothing does with its rows: it counts them, and nobody changes them meanwhile. To write a
/// column as it is would do as well, were there always one that may be written.
const HELD: &str = "FOR NO KEY UPDATE OF t";

/// Whether rows are updated, and no column of them is written.
fn is_idle(rows: &Rows<'_>) -> bool {
    rows.operation == Operation::Update && rows.set.is_empty()
}

/// The text of the statement that applies `rows`' columns to `table`.
pub(super) fn text(table: &Table, rows: &Rows<'_>) -> String {
    text_where(table, rows, false)
}

/// The same, for rows whose key is the text that is given, not only equal to it.
pub(super) fn text_by_text(table: &Table, rows: &Rows<'_>) -> String {
    text_where(table, rows, true)
}

fn text_where(table: &Table, rows: &Rows<'_>, by_text: bool) -> String {
    let name = &table.name;
    let only = table.only;
    let set_names: Vec<String> = rows.set.iter().map(|&at| table.column_name(at)).collect();
    if rows.any_of_equal {
        return text_of_one(table, rows, &set_names);
    }
    let mut arrays = Vec::new();
    let mut names = Vec::new();
    let mut given = Vec::new();
    for (at, &column) in rows.set.iter().chain(&*rows.locate).enumerate() {
        arrays.push(format!("${}::{}", at + 1, table.array_type(column)));
        names.push(format!("c{at}"));
        given.push(match table.cast(column) {
            Some(cast) => format!("v.c{at}::{cast} AS c{at}"),
            None => format!("v.c{at}"),
        });
    }
    let source =
        format!("SELECT {} FROM unnest({}) AS v ({})", given.join(", "), arrays.join(", "), names.join(", "));
    let wanted: Vec<String> = (rows.set.iter().len()..rows.width())
        .zip(&*rows.locate)
        .map(|(at, &column)| match table.is_at(column, &format!("u.c{at}")) {
            equal if by_text && !table.equality_is_exact(column) => {
                format!("{equal} AND t.{}::text = u.c{at}::text", table.column_name(column))
            }
            equal => equal,
        })
        .collect();
    let wanted = wanted.join(" AND ");
    match rows.operation {
        Operation::Insert if rows.set.is_empty() => format!("INSERT INTO {name} DEFAULT VALUES"),
        Operation::Insert => {
            format!("INSERT INTO {name} ({}) OVERRIDING SYSTEM VALUE {source}", set_names.join(", "))
        }
        Operation::Update if is_idle(rows) => {
            format!("SELECT 1 FROM {only}{name} AS t, ({source}) AS u WHERE {wanted} {HELD}")
        }
        Operation::Update => {
            let assignments: Vec<String> =
                set_names.iter().enumerate().map(|(at, column)| format!("{column} = u.c{at}")).collect();
            let assignments = assignments.join(", ");
            format!("UPDATE {only}{name} AS t SET {assignments} FROM ({source}) AS u WHERE {wanted}")
        }
        Operation::Delete => format!("DELETE FROM {only}{name} AS t USING ({source}) AS u WHERE {wanted}"),
        Operation::Truncate | Operation::Copy | Operation::Watermark => {
            unreachable!("neither is a statement over arrays")
        }
    }
}

/// The same for rows of which there is a right number: the server counts those that were touched, and divides by zero
/// where they are more or fewer.
pub(super) fn counted_text(table: &Table, rows: &Rows<'_>) -> String {
    let column = rows.set.iter().chain(&*rows.locate).next().expect("some column is given");
    let given = table.array_type(*column);
    let text = text(table, rows);
    let returning = if is_idle(rows) { "" } else { " RETURNING 1" };
    format!("WITH t AS ({text}{returning}) SELECT 1 / (count(*) = cardinality($1::{given}))::int FROM t")
}

/// One row found by all its columns, of which there may be several: any of them is taken.
///
/// Types without an equality of their own, or with one that is broader than "the same text", are
/// compared by their text.
fn text_of_one(table: &Table, rows: &Rows<'_>, set_names: &[String]) -> String {
    let name = &table.name;
    let only = table.only;
    let value = |at: usize, column: usize| {
        let element = format!("(${}::{})[1]", at + 1, table.array_type(column));
        table.cast(column).map_or(element.clone(), |cast| format!("{element}::{cast}"))
    };
    let first = rows.set.len();
    let same: Vec<String> = rows
        .locate
        .iter()
        .enumerate()
        .map(|(at, &column)| {
            let text = if table.equality_is_exact(column) { "" } else { "::text" };
            let (ours, theirs) = (value(first + at, column), table.column_name(column));
            format!("x.{theirs}{text} IS NOT DISTINCT FROM ({ours}){text}")
        })
        .collect();
    let same = same.join(" AND ");
    // Row addresses repeat from partition to partition.
    let found = if table.partitioned {
        format!("(t.tableoid, t.ctid) = (SELECT x.tableoid, x.ctid FROM {name} AS x WHERE {same} LIMIT 1)")
    } else {
        format!("t.ctid = (SELECT x.ctid FROM {only}{name} AS x WHERE {same} LIMIT 1)")
    };
    if rows.operation == Operation::Delete {
        return format!("DELETE FROM {only}{name} AS t WHERE {found}");
    }
    if is_idle(rows) {
        return format!("SELECT 1 FROM {only}{name} AS t WHERE {found} {HELD}");
    }
    let assignments: Vec<String> = set_names
        .iter()
        .zip(&*rows.set)
        .enumerate()
        .map(|(at, (target, &column))| format!("{target} = {}", value(at, column)))
        .collect();
    format!("UPDATE {only}{name} AS t SET {} WHERE {found}", assignments.join(", "))
}

/// The text of a TRUNCATE of all `tables` in one statement.
pub(super) fn truncate_text<'a>(tables: impl Iterator<Item = &'a Table>) -> String {
    let names: Vec<String> = tables.map(|table| format!("{}{}", table.only, table.name)).collect();
    format!("TRUNCATE {}", names.join(", "))
}

/// The text of the statement that empties `table`. A DELETE: whoever reads the table meanwhile is not waited for,
/// and foreign keys that point here forbid a TRUNCATE.
pub(super) fn empty_text(table: &Table) -> String {
    format!("DELETE FROM {}{}", table.only, table.name)
}

/// The text of the statement that copies rows with these columns into `table`.
pub(super) fn copy_text(table: &Table, columns: &[usize]) -> String {
    let names: Vec<String> = columns.iter().map(|&at| table.column_name(at)).collect();
    format!("COPY {} ({}) FROM STDIN", table.name, names.join(", "))
}

/// What is copied: a line for each row (PostgreSQL documentation, "COPY", Text Format).
pub(super) fn copy_data(rows: &Rows<'_>) -> Bytes {
    let length = |cell: &&Cell| if let Cell::Value(text) = cell { text.len() + 1 } else { 3 };
    let mut out = BytesMut::with_capacity(rows.cells.iter().map(length).sum::<usize>() * 9 / 8);
    for row in rows.cells.chunks_exact(rows.width()) {
        copy_text::put_row(&mut out, row.iter().copied());
    }
    out.freeze()
}

/// One column of an action's rows, as an array parameter in text format. Written straight into the
/// message, so that a large value is held once here and once there.
#[derive(Debug)]
pub(super) struct Array<'a> {
    rows: &'a Rows<'a>,
    at: usize,
}

impl<'a> Array<'a> {
    /// The parameters of an action.
    pub(super) fn all(rows: &'a Rows<'a>) -> impl ExactSizeIterator<Item = Self> + Send {
        (0..rows.width()).map(move |at| Array { rows, at })
    }
}

impl ToSql for Array<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        out.put_u8(b'{');
        for (at, cell) in self.rows.column(self.at).enumerate() {
            if at > 0 {
                out.put_u8(b',');
            }
            match cell {
                Cell::Value(text) => put_element(out, text),
                Cell::Null => out.put_slice(b"NULL"),
                Cell::Unchanged | Cell::Withheld | Cell::Encrypted { .. } => {
                    return Err("a cell without a value cannot be written".into());
                }
            }
        }
        out.put_u8(b'}');
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    tokio_postgres::types::to_sql_checked!();
}

/// An element is always quoted: so `NULL`, an empty text, blanks and braces are themselves.
pub(super) fn put_element(out: &mut BytesMut, mut text: &[u8]) {
    out.reserve(text.len() + 3);
    out.put_u8(b'"');
    while let Some(at) = memchr::memchr2(b'"', b'\\', text) {
        out.put_slice(&text[..at]);
        out.put_slice(&[b'\\', text[at]]);
        text = &text[at + 1..];
    }
    out.put_slice(text);
    out.put_u8(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_quoted_and_escaped() {
        for (text, element) in [
            ("", r#""""#),
            ("NULL", r#""NULL""#),
            (r#"a"b\c"#, r#""a\"b\\c""#),
            ("{1,2}", r#""{1,2}""#),
            (r"\x00", r#""\\x00""#),
        ] {
            let mut out = BytesMut::new();
            put_element(&mut out, text.as_bytes());
            assert_eq!(out, element.as_bytes());
        }
    }
}
