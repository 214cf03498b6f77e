//! A record's value back into what it says. Values stay slices of the record.

use std::{borrow::Cow, collections::HashMap, fmt, sync::Arc};

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{
    change::{Cell, Change, Fingerprint, Row, Shape, copy_text},
    envelope::{body, encode::Form, layout},
    position::Position,
};

/// Shapes by fingerprint, as a reader has met them.
pub type Shapes = foldhash::HashMap<Fingerprint, Arc<Shape>>;

/// Why a value is not what its header says.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// Not the JSON it should be.
    #[error("the value is not the JSON its kind has")]
    Json(#[from] serde_json::Error),
    /// A change names a shape that no schema record has brought.
    #[error("the change names the shape {0}, which no schema record before it describes")]
    Shape(String),
    /// A schema record whose fingerprint is not its shape's.
    #[error("the schema record of {table} says fingerprint {written}, its shape has {found}")]
    Fingerprint {
        /// The table.
        table: String,
        /// As written.
        written: String,
        /// As computed.
        found: Fingerprint,
    },
    /// A row that does not fit its shape.
    #[error("a row of {table}: {why}")]
    Row {
        /// The table.
        table: String,
        /// What does not fit.
        why: String,
    },
}

/// A change as read: its transaction, its place there, itself.
#[derive(Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Its transaction; with the true end where it is the last.
    pub position: Position,
    /// The name of the region it was first committed in.
    pub origin: Bytes,
    /// Its place in its transaction.
    pub ordinal: u64,
    /// What happened.
    pub change: Change,
    /// The regions it is for, where it is not for all.
    pub to: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    op: &'a str,
    #[serde(borrow)]
    before: Option<&'a RawValue>,
    #[serde(borrow)]
    after: Option<&'a RawValue>,
    #[serde(borrow)]
    landfall: Block<'a>,
}

#[derive(Deserialize)]
struct Block<'a> {
    shape: &'a str,
    ordinal: u64,
    origin: &'a str,
    position: Position,
    #[serde(borrow, default)]
    unchanged: Vec<Cow<'a, str>>,
    #[serde(borrow, default)]
    withheld: Vec<Cow<'a, str>>,
    #[serde(default)]
    encrypted: HashMap<String, String>,
}

/// Reads a change record's value.
///
/// # Errors
/// Whatever does not fit; nothing is guessed.
pub fn change(value: &Bytes, shapes: &Shapes) -> Result<Decoded, Unreadable> {
    layout::change(value, shapes).map_or_else(|| any_change(value, shapes), Ok)
}

/// The same, however the JSON is laid out.
pub(super) fn any_change(value: &Bytes, shapes: &Shapes) -> Result<Decoded, Unreadable> {
    let envelope: Envelope<'_> = serde_json::from_slice(value)?;
    let block = envelope.landfall;
    let shape = shape_of(block.shape, shapes)?;
    let row = |why: String| Unreadable::Row { table: shape.to_string(), why };
    let missing = |what: &str| row(format!("operation `{}` without `{what}`", envelope.op));
    let read = |raw: Option<&RawValue>, encrypted: &HashMap<String, String>, what| {
        raw.map(|raw| cells(raw, value, &shape, encrypted).map_err(|error| row(format!("`{what}`: {error}"))))
            .transpose()
    };
    // What an old image lacks was not logged: it stays as it is.
    let old = read(envelope.before, &HashMap::new(), "before")?.map(|cells| Row(cells.into()));
    let new = match read(envelope.after, &block.encrypted, "after")? {
        Some(new) => {
            Some(complete(new, &shape, &block.unchanged, &block.withheld, block.encrypted).map_err(row)?)
        }
        None => None,
    };
    let change = match envelope.op {
        "c" => Change::Insert { new: new.ok_or_else(|| missing("after"))?, shape },
        "u" => Change::Update { old, new: new.ok_or_else(|| missing("after"))?, shape },
        "d" => Change::Delete { old: old.ok_or_else(|| missing("before"))?, shape },
        other => return Err(row(format!("unknown operation `{other}`"))),
    };
    Ok(Decoded {
        position: block.position,
        origin: value.slice_ref(block.origin.as_bytes()),
        ordinal: block.ordinal,
        change,
        to: None,
    })
}

/// Reads a truncate record's value.
///
/// # Errors
/// Whatever does not fit.
pub fn truncate(value: &[u8], shapes: &Shapes) -> Result<Decoded, Unreadable> {
    let body: body::Truncate = body::from_value(value)?;
    let named = body.shapes.iter().map(|name| shape_of(name, shapes)).collect::<Result<Vec<_>, _>>()?;
    if named.is_empty() {
        return Err(Unreadable::Row { table: "truncate".into(), why: "it names no table".into() });
    }
    let change =
        Change::Truncate { shapes: named, cascade: body.cascade, restart_identity: body.restart_identity };
    Ok(Decoded {
        position: body.position,
        origin: body.origin.into(),
        ordinal: body.ordinal,
        change,
        to: None,
    })
}

/// Reads a chunk record's value.
///
/// # Errors
/// Whatever does not fit.
pub fn chunk(value: &Bytes, shapes: &Shapes) -> Result<Decoded, Unreadable> {
    let body: body::Chunk<'_> = body::from_value(value)?;
    let shape = shape_of(&body.shape, shapes)?;
    let slice = |text: Cow<'_, str>| match text {
        Cow::Borrowed(text) => value.slice_ref(text.as_bytes()),
        Cow::Owned(text) => Bytes::from(text),
    };
    let (text, keys) = (slice(body.copy), body.keys.map(slice));
    // Counted, since a copy that brings in fewer rows than were sent is found out by this number.
    let lines = memchr::memchr_iter(b'\n', &text).count();
    if lines != body.rows as usize {
        let why = format!("the chunk says {} rows and has {lines}", body.rows);
        return Err(Unreadable::Row { table: shape.to_string(), why });
    }
    // A tab stands between two fields and nowhere else.
    let tabs = shape.columns.len().saturating_sub(1);
    let odd = |line: &Bytes| memchr::memchr_iter(b'\t', line).count() != tabs;
    if let Some(line) =
        [Some(&text), keys.as_ref()].into_iter().flatten().find_map(|text| copy_text::lines(text).find(odd))
    {
        let fields = memchr::memchr_iter(b'\t', &line).count() + 1;
        let why = format!("a row of the chunk has {fields} fields for {} columns", shape.columns.len());
        return Err(Unreadable::Row { table: shape.to_string(), why });
    }
    let place = |name: &Cow<'_, str>| {
        shape.columns.iter().position(|column| *column.name == **name).ok_or_else(|| Unreadable::Row {
            table: shape.to_string(),
            why: format!("the chunk's rows are to be found by column {name}, which the table has not"),
        })
    };
    let replace = body.replace.iter().map(place).collect::<Result<Box<[usize]>, _>>()?;
    Ok(Decoded {
        position: body.position,
        origin: body.origin.into_owned().into(),
        ordinal: body.ordinal,
        change: Change::Chunk {
            shape,
            rows: body.rows,
            again: body.again,
            keys,
            replace,
            meanwhile: body.meanwhile,
            text,
        },
        to: Some(body.to.into_iter().map(Cow::into_owned).collect()),
    })
}

/// Reads a watermark record's value.
///
/// # Errors
/// Whatever does not fit.
pub fn watermark(value: &[u8], shapes: &Shapes) -> Result<Decoded, Unreadable> {
    let body: body::Watermark = body::from_value(value)?;
    let named = body.shapes.iter().map(|name| shape_of(name, shapes)).collect::<Result<Vec<_>, _>>()?;
    if named.is_empty() {
        return Err(Unreadable::Row { table: "watermark".into(), why: "it names no table".into() });
    }
    Ok(Decoded {
        position: body.position,
        origin: body.origin.into(),
        ordinal: body.ordinal,
        change: Change::Watermark { shapes: named, mark: body.mark },
        to: Some(body.to),
    })
}

/// Reads a schema record's value.
///
/// # Errors
/// Whatever does not fit.
pub fn schema(value: &[u8]) -> Result<(Fingerprint, Arc<Shape>), Unreadable> {
    let body: body::Schema = body::from_value(value)?;
    let found = body.shape.fingerprint();
    if body.fingerprint != found.to_string() {
        let table = body.shape.to_string();
        return Err(Unreadable::Fingerprint { table, written: body.fingerprint, found });
    }
    Ok((found, Arc::new(body.shape)))
}

fn shape_of(name: &str, shapes: &Shapes) -> Result<Arc<Shape>, Unreadable> {
    let known = name.parse().ok().and_then(|fingerprint| shapes.get(&fingerprint));
    known.cloned().ok_or_else(|| Unreadable::Shape(name.to_owned()))
}

/// The cells an object shows, the rest [`Cell::Unchanged`].
fn cells(
    raw: &RawValue,
    value: &Bytes,
    shape: &Shape,
    encrypted: &HashMap<String, String>,
) -> Result<Vec<Cell>, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_str(raw.get());
    let row = json.deserialize_map(RowVisitor { value, shape, encrypted })?;
    json.end().map(|()| row)
}

struct RowVisitor<'v> {
    value: &'v Bytes,
    shape: &'v Shape,
    encrypted: &'v HashMap<String, String>,
}

impl<'de> Visitor<'de> for RowVisitor<'_> {
    type Value = Vec<Cell>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with the table's columns")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Vec<Cell>, M::Error> {
        let columns = &self.shape.columns;
        let mut cells = vec![Cell::Unchanged; columns.len()];
        // Columns come in the shape's order: the next one is found at the first look.
        let mut expected = 0;
        while let Some(name) = map.next_key::<Name<'de>>()? {
            let known = (expected..columns.len()).chain(0..expected).find(|at| *columns[*at].name == *name.0);
            let Some(at) = known else {
                map.next_value::<IgnoredAny>()?;
                return Err(serde::de::Error::custom(format_args!("no column `{}` in the shape", name.0)));
            };
            let raw = map.next_value::<&'de RawValue>()?;
            // What is encrypted is text, whatever it was before.
            let form =
                if self.encrypted.contains_key(&*name.0) { Form::Text } else { Form::of(&columns[at]) };
            cells[at] = cell(raw.get(), self.value, form)
                .map_err(|why| serde::de::Error::custom(format_args!("column `{}` {why}", name.0)))?;
            expected = at + 1;
        }
        Ok(cells)
    }
}

/// A key, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// A value in the one form its column has; in another one somebody else wrote it.
fn cell(raw: &str, value: &Bytes, form: Form) -> Result<Cell, String> {
    Ok(match (form, raw.as_bytes()) {
        (_, b"null") => Cell::Null,
        (Form::Bool, b"true") => Cell::Value(Bytes::from_static(b"t")),
        (Form::Bool, b"false") => Cell::Value(Bytes::from_static(b"f")),
        (Form::Number, digits @ [b'-' | b'0'..=b'9', ..]) if !digits.iter().any(|b| b".eE".contains(b)) => {
            Cell::Value(value.slice_ref(digits))
        }
        (Form::Text, [b'"', inner @ .., b'"']) if memchr::memchr(b'\\', inner).is_none() => {
            Cell::Value(value.slice_ref(inner))
        }
        (Form::Text, [b'"', ..]) => {
            let text: String = serde_json::from_str(raw).map_err(|error| error.to_string())?;
            Cell::Value(Bytes::from(text))
        }
        (Form::Bool, _) => return Err("holds no boolean".into()),
        (Form::Number, _) => return Err("holds no whole number".into()),
        (Form::Text, _) => return Err("holds no text".into()),
    })
}

/// Checks that every column `after` leaves out is accounted for.
fn complete(
    mut cells: Vec<Cell>,
    shape: &Shape,
    unchanged: &[Cow<'_, str>],
    withheld: &[Cow<'_, str>],
    mut encrypted: HashMap<String, String>,
) -> Result<Row, String> {
    for (cell, column) in cells.iter_mut().zip(&shape.columns) {
        let listed = |list: &[Cow<'_, str>]| list.iter().any(|name| **name == *column.name);
        let key_id = encrypted.remove(&*column.name);
        *cell = match (std::mem::replace(cell, Cell::Null), key_id) {
            (Cell::Value(text), Some(key_id)) => Cell::Encrypted { key_id: key_id.into(), text },
            (Cell::Unchanged, _) if listed(unchanged) => Cell::Unchanged,
            (Cell::Unchanged, _) if listed(withheld) => Cell::Withheld,
            (Cell::Unchanged, _) => {
                return Err(format!("column `{}` is neither shown nor accounted for", column.name));
            }
            (shown, None) => shown,
            (_, Some(_)) => {
                return Err(format!("column `{}` is marked as encrypted and is not text", column.name));
            }
        };
    }
    match encrypted.keys().next() {
        Some(name) => Err(format!("unknown column `{name}` is marked as encrypted")),
        None => Ok(Row(cells.into())),
    }
}
