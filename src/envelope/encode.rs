//! Changes into Debezium's envelope with our block beside it, written by hand: what is constant for
//! a table or a transaction is laid out once and copied.
//!
//! `before`, `after`, `op`, `source`, `ts_ms` and `transaction` are Debezium's; `landfall` is ours.
//! `int2`, `int4` and `bool` are JSON numbers and booleans, which every reader keeps exactly;
//! everything else is a JSON string with Postgres's own text.

use std::sync::Arc;

use crate::{
    change::{Cell, Change, Column, Fingerprint, Identity, Row, Shape},
    envelope::body::{self, Chunk, Truncate, Watermark},
    lsn::Lsn,
    position::Position,
    region::Region,
    stamp::Micros,
};

/// Why a change cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unwritable {
    /// JSON is UTF-8; so is everything a UTF-8 session of Postgres sends.
    #[error(
        "column `{column}` of {table} holds bytes that are not UTF-8: the database's encoding must be UTF8"
    )]
    Encoding {
        /// The table.
        table: String,
        /// The column.
        column: String,
    },
    /// The row has more or fewer cells than its shape has columns.
    #[error("a row of {table} has {cells} cells for {columns} columns")]
    Width {
        /// The table.
        table: String,
        /// Cells in the row.
        cells: usize,
        /// Columns in the shape.
        columns: usize,
    },
}

/// For whom a stream's records are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A record for each change, as Debezium's, for whoever reads the topic.
    Debezium,
    /// Several in one, without what Debezium's envelope says besides our block, for Landfall.
    Packed,
}

/// Writes the changes of one source.
pub struct Encoder {
    format: Format,
    /// `"source":{` up to the table, constant for the source.
    source: String,
    origin: String,
    tables: foldhash::HashMap<Fingerprint, TableText>,
    /// Constant for the transaction in hand.
    transaction: TransactionText,
}

#[derive(Default)]
struct TransactionText {
    /// Ends `source`, gives `transaction` up to the ordinal.
    head: Vec<u8>,
    /// Our block's position while the transaction goes on.
    position: Option<Position>,
    /// The same as text, once a change needs it: the only change of a transaction never does.
    open: Vec<u8>,
}

/// What is constant for a table.
struct TableText {
    /// The table's part of `source`.
    source: String,
    fingerprint: String,
    columns: Vec<ColumnText>,
}

struct ColumnText {
    /// `"name":`, escaped.
    name: String,
    form: Form,
}

/// How a value stands in JSON.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Form {
    Number,
    Bool,
    Text,
}

/// One change as a record's key and value; buffers that are used again.
#[derive(Default)]
pub struct Encoded {
    /// The row's key as JSON; empty where it has none.
    pub key: Vec<u8>,
    /// The envelope.
    pub value: Vec<u8>,
}

impl Encoder {
    /// For the changes of `database` in `region`.
    pub fn new(region: &Region, database: &str, format: Format) -> Self {
        let mut source = String::from("\"source\":{\"version\":\"");
        source.push_str(env!("CARGO_PKG_VERSION"));
        source.push_str("\",\"connector\":\"postgresql\",\"name\":");
        push_json(&mut source, region.as_str());
        source.push_str(",\"snapshot\":\"false\",\"db\":");
        push_json(&mut source, database);
        let mut origin = String::new();
        push_json(&mut origin, region.as_str());
        Self {
            format,
            source,
            origin,
            tables: foldhash::HashMap::default(),
            transaction: TransactionText::default(),
        }
    }

    /// Begins a transaction. The changes given after it are its.
    pub fn begin(&mut self, position: &Position, time: Micros) {
        let Position::Postgres(at) = position;
        let text = &mut self.transaction;
        text.position = Some(*position);
        text.open.clear();
        text.head.clear();
        let head = &mut text.head;
        head.extend_from_slice(b",\"txId\":");
        push_number(head, at.xid);
        head.extend_from_slice(b",\"lsn\":");
        push_number(head, at.commit.0);
        head.extend_from_slice(b",\"ts_ms\":");
        push_number(head, time.millis());
        head.extend_from_slice(b"},\"ts_ms\":");
        push_number(head, time.millis());
        head.extend_from_slice(b",\"transaction\":{\"id\":\"");
        push_number(head, at.xid);
        head.push(b':');
        push_number(head, at.commit.0);
        head.extend_from_slice(b"\",\"total_order\":");
    }

    /// Writes one change of the transaction begun; `end` is the transaction's where it is the last.
    ///
    /// # Errors
    /// The change cannot be written; nothing is.
    pub fn change(
        &mut self,
        change: &Change,
        ordinal: u64,
        end: Option<&Position>,
        out: &mut Encoded,
    ) -> Result<(), Unwritable> {
        out.key.clear();
        out.value.clear();
        let (shape, before, after, op) = match change {
            Change::Insert { shape, new } => (shape, None, Some(new), "c"),
            Change::Update { shape, old, new } => (shape, old.as_ref(), Some(new), "u"),
            Change::Delete { shape, old } => (shape, Some(old), None, "d"),
            Change::Truncate { shapes, cascade, restart_identity } => {
                self.truncate(shapes, *cascade, *restart_identity, ordinal, end, out);
                return Ok(());
            }
            Change::Chunk { .. } | Change::Watermark { .. } => {
                unreachable!("a backfill's are written by `Encoder::copy`")
            }
        };
        let fingerprint = shape.fingerprint();
        let table = self.tables.entry(fingerprint).or_insert_with(|| TableText::new(shape, fingerprint));
        let value = &mut out.value;
        value.extend_from_slice(b"{\"before\":");
        push_row(value, table, shape, before)?;
        value.extend_from_slice(b",\"after\":");
        push_row(value, table, shape, after)?;
        value.extend_from_slice(b",\"op\":\"");
        value.extend_from_slice(op.as_bytes());
        if self.format == Format::Debezium {
            value.extend_from_slice(b"\",");
            value.extend_from_slice(self.source.as_bytes());
            value.extend_from_slice(table.source.as_bytes());
            value.extend_from_slice(&self.transaction.head);
            push_number(value, ordinal + 1);
            value.extend_from_slice(b"},\"landfall\":{\"shape\":\"");
        } else {
            value.extend_from_slice(b"\",\"landfall\":{\"shape\":\"");
        }
        value.extend_from_slice(table.fingerprint.as_bytes());
        value.extend_from_slice(b"\",\"ordinal\":");
        push_number(value, ordinal);
        value.extend_from_slice(b",\"origin\":");
        value.extend_from_slice(self.origin.as_bytes());
        value.extend_from_slice(b",\"position\":");
        match end {
            Some(end) => push_position(value, end),
            None => {
                let TransactionText { position, open, .. } = &mut self.transaction;
                if let Some(position) = position.as_ref().filter(|_| open.is_empty()) {
                    push_position(open, position);
                }
                value.extend_from_slice(open);
            }
        }
        if let Some(new) = after {
            push_absent(value, table, new);
        }
        value.extend_from_slice(b"}}");
        push_key(&mut out.key, table, shape, before, after)
    }

    /// Writes what a backfill brings into the transaction begun, for the regions it is for.
    ///
    /// # Errors
    /// A chunk that is not UTF-8.
    ///
    /// # Panics
    /// Where the change is no backfill's.
    pub fn copy(
        &self,
        change: &Change,
        ordinal: u64,
        end: Option<&Position>,
        to: &[String],
        out: &mut Encoded,
    ) -> Result<(), Unwritable> {
        out.key.clear();
        let position = self.position(end);
        match change {
            Change::Chunk { shape, rows, again, keys, replace, meanwhile, text } => {
                let utf8 = |text| {
                    std::str::from_utf8(text).map_err(|_| Unwritable::Encoding {
                        table: shape.to_string(),
                        column: "(one of a chunk)".to_owned(),
                    })
                };
                let text = utf8(text)?;
                let keys = keys.as_ref().map(|keys| utf8(keys)).transpose()?;
                out.value = body::to_value(&Chunk {
                    position,
                    ordinal,
                    origin: self.origin().into(),
                    to: to.iter().map(Into::into).collect(),
                    shape: shape.fingerprint().to_string().into(),
                    rows: *rows,
                    again: *again,
                    keys: keys.map(Into::into),
                    replace: replace.iter().map(|&at| shape.columns[at].name.to_string().into()).collect(),
                    meanwhile: *meanwhile,
                    copy: text.into(),
                });
            }
            Change::Watermark { shapes, mark } => {
                out.value = body::to_value(&Watermark {
                    position,
                    ordinal,
                    origin: self.origin(),
                    to: to.to_vec(),
                    shapes: shapes.iter().map(|shape| shape.fingerprint().to_string()).collect(),
                    mark: *mark,
                });
            }
            _ => unreachable!("a change of the log is written by `Encoder::change`"),
        }
        Ok(())
    }

    fn position(&self, end: Option<&Position>) -> Position {
        end.copied().or(self.transaction.position).expect("a transaction is begun before its changes")
    }

    fn origin(&self) -> String {
        serde_json::from_str(&self.origin).expect("written by push_json")
    }

    fn truncate(
        &mut self,
        shapes: &[Arc<Shape>],
        cascade: bool,
        restart_identity: bool,
        ordinal: u64,
        end: Option<&Position>,
        out: &mut Encoded,
    ) {
        let body = Truncate {
            position: self.position(end),
            ordinal,
            origin: self.origin(),
            shapes: shapes.iter().map(|shape| shape.fingerprint().to_string()).collect(),
            cascade,
            restart_identity,
        };
        out.value = body::to_value(&body);
    }
}

impl TableText {
    fn new(shape: &Shape, fingerprint: Fingerprint) -> Self {
        let mut source = String::from(",\"schema\":");
        push_json(&mut source, &shape.schema);
        source.push_str(",\"table\":");
        push_json(&mut source, &shape.table);
        let columns = shape.columns.iter().map(|column| {
            let mut name = String::new();
            push_json(&mut name, &column.name);
            name.push(':');
            ColumnText { name, form: Form::of(column) }
        });
        Self { source, fingerprint: fingerprint.to_string(), columns: columns.collect() }
    }
}

impl Form {
    pub(super) fn of(column: &Column) -> Self {
        match (&*column.type_schema, &*column.type_name) {
            ("pg_catalog", "int2" | "int4") => Self::Number,
            ("pg_catalog", "bool") => Self::Bool,
            _ => Self::Text,
        }
    }
}

fn push_row(
    out: &mut Vec<u8>,
    table: &TableText,
    shape: &Shape,
    row: Option<&Row>,
) -> Result<(), Unwritable> {
    let Some(Row(cells)) = row else {
        out.extend_from_slice(b"null");
        return Ok(());
    };
    if cells.len() != table.columns.len() {
        let (cells, columns) = (cells.len(), table.columns.len());
        return Err(Unwritable::Width { table: shape.to_string(), cells, columns });
    }
    let mut before = b'{';
    for (at, (cell, column)) in cells.iter().zip(&table.columns).enumerate() {
        if matches!(cell, Cell::Unchanged | Cell::Withheld) {
            continue;
        }
        out.push(before);
        before = b',';
        out.extend_from_slice(column.name.as_bytes());
        push_cell(out, column.form, cell).map_err(|()| Unwritable::Encoding {
            table: shape.to_string(),
            column: shape.columns[at].name.to_string(),
        })?;
    }
    if before == b'{' {
        out.push(b'{');
    }
    out.push(b'}');
    Ok(())
}

fn push_cell(out: &mut Vec<u8>, form: Form, cell: &Cell) -> Result<(), ()> {
    match cell {
        Cell::Null => out.extend_from_slice(b"null"),
        Cell::Value(text) => match form {
            Form::Number => out.extend_from_slice(text),
            Form::Bool => out.extend_from_slice(if text == "t" { b"true" } else { b"false" }),
            Form::Text => push_text(out, text)?,
        },
        Cell::Encrypted { text, .. } => push_text(out, text)?,
        Cell::Unchanged | Cell::Withheld => unreachable!("left out by the caller"),
    }
    Ok(())
}

/// The columns `after` does not show, and why.
fn push_absent(out: &mut Vec<u8>, table: &TableText, row: &Row) {
    let mut list = |what: &str, is: fn(&Cell) -> bool| {
        if !row.0.iter().any(is) {
            return;
        }
        out.extend_from_slice(b",\"");
        out.extend_from_slice(what.as_bytes());
        out.extend_from_slice(b"\":");
        let mut before = b'[';
        for (column, _) in table.columns.iter().zip(&row.0).filter(|(_, cell)| is(cell)) {
            out.push(before);
            before = b',';
            out.extend_from_slice(&column.name.as_bytes()[..column.name.len() - 1]);
        }
        out.push(b']');
    };
    list("unchanged", |cell| *cell == Cell::Unchanged);
    list("withheld", |cell| *cell == Cell::Withheld);
    if row.0.iter().any(|cell| matches!(cell, Cell::Encrypted { .. })) {
        let mut text = String::from(",\"encrypted\":");
        let mut before = '{';
        for (column, cell) in table.columns.iter().zip(&row.0) {
            if let Cell::Encrypted { key_id, .. } = cell {
                text.push(before);
                before = ',';
                text.push_str(&column.name);
                push_json(&mut text, key_id);
            }
        }
        text.push('}');
        out.extend_from_slice(text.as_bytes());
    }
}

/// The key of the row the change finds: the old one's where the key itself changed.
fn push_key(
    out: &mut Vec<u8>,
    table: &TableText,
    shape: &Shape,
    before: Option<&Row>,
    after: Option<&Row>,
) -> Result<(), Unwritable> {
    let keyed = matches!(shape.identity, Identity::Default | Identity::Index);
    let Some(row) = before.or(after).filter(|_| keyed) else { return Ok(()) };
    let mut mark = b'{';
    for at in shape.key_columns() {
        if !matches!(row.0[at], Cell::Value(_) | Cell::Null) {
            out.clear();
            return Ok(());
        }
        out.push(mark);
        mark = b',';
        out.extend_from_slice(table.columns[at].name.as_bytes());
        push_cell(out, table.columns[at].form, &row.0[at]).map_err(|()| Unwritable::Encoding {
            table: shape.to_string(),
            column: shape.columns[at].name.to_string(),
        })?;
    }
    if mark == b',' {
        out.push(b'}');
    }
    Ok(())
}

fn push_position(out: &mut Vec<u8>, position: &Position) {
    let Position::Postgres(at) = position;
    out.extend_from_slice(b"{\"postgres\":{\"commit\":\"");
    push_lsn(out, at.commit);
    out.extend_from_slice(b"\",\"end\":\"");
    push_lsn(out, at.end);
    out.extend_from_slice(b"\",\"xid\":");
    push_number(out, at.xid);
    out.extend_from_slice(b",\"time\":");
    push_number(out, at.time.0);
    out.extend_from_slice(b"}}");
}

/// As an LSN prints itself.
fn push_lsn(out: &mut Vec<u8>, lsn: Lsn) {
    push_hex(out, (lsn.0 >> 32) as u32);
    out.push(b'/');
    push_hex(out, lsn.0 as u32);
}

fn push_hex(out: &mut Vec<u8>, number: u32) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let digits = (35 - (number | 1).leading_zeros()) / 4;
    out.extend((0..digits).rev().map(|at| DIGITS[(number >> (4 * at) & 15) as usize]));
}

fn push_number(out: &mut Vec<u8>, number: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn push_json(out: &mut String, text: &str) {
    let mut bytes = Vec::with_capacity(text.len() + 2);
    push_text(&mut bytes, text.as_bytes()).expect("text is UTF-8");
    out.push_str(std::str::from_utf8(&bytes).expect("JSON of text is text"));
}

/// A JSON string. Runs of ordinary bytes are copied whole.
fn push_text(out: &mut Vec<u8>, text: &[u8]) -> Result<(), ()> {
    std::str::from_utf8(text).map_err(|_| ())?;
    out.push(b'"');
    let mut from = 0;
    for (at, byte) in text.iter().enumerate() {
        if *byte >= 0x20 && *byte != b'"' && *byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&text[from..at]);
        from = at + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(control >> 4)]);
                out.push(HEX[usize::from(control & 15)]);
            }
        }
    }
    out.extend_from_slice(&text[from..]);
    out.push(b'"');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_lsn_is_written_as_it_prints() {
        for lsn in [0, 1, 15, 16, 0xff, 0x100, 0x16_b374_d848, 0x1_0000_0000, u64::MAX, 0xf000_0000] {
            let mut out = Vec::new();
            push_lsn(&mut out, Lsn(lsn));
            assert_eq!(String::from_utf8(out).unwrap(), Lsn(lsn).to_string());
        }
    }
}
