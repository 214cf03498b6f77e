//! The text format of `COPY`: a line for each row, a tab between two fields (PostgreSQL documentation,
//! "COPY", Text Format). Rows a backfill copies travel in it from one server to the other as they are.

use bytes::{BufMut, Bytes, BytesMut};

use super::{Cell, Row};

/// What stands for NULL.
const NULL: &[u8] = b"\\N";

/// Appends a row's line.
///
/// # Panics
/// Where a cell is neither a value nor NULL: nothing else can be copied.
pub fn put_row<'a>(out: &mut BytesMut, cells: impl IntoIterator<Item = &'a Cell>) {
    for (at, cell) in cells.into_iter().enumerate() {
        if at > 0 {
            out.put_u8(b'\t');
        }
        match cell {
            Cell::Value(text) => put_field(out, text),
            Cell::Null => out.put_slice(NULL),
            Cell::Unchanged | Cell::Withheld | Cell::Encrypted { .. } => {
                unreachable!("a row is copied with the cells it has")
            }
        }
    }
    out.put_u8(b'\n');
}

fn put_field(out: &mut BytesMut, mut text: &[u8]) {
    let is_sign = |byte: &u8| matches!(byte, b'\\' | b'\t' | b'\n' | b'\r');
    while let Some(at) = text.iter().position(is_sign) {
        out.put_slice(&text[..at]);
        let escaped = match text[at] {
            b'\t' => b't',
            b'\n' => b'n',
            b'\r' => b'r',
            sign => sign,
        };
        out.put_slice(&[b'\\', escaped]);
        text = &text[at + 1..];
    }
    out.put_slice(text);
}

/// The lines of a text, each without its end.
pub fn lines(text: &Bytes) -> impl Iterator<Item = Bytes> + '_ {
    let mut from = 0;
    std::iter::from_fn(move || {
        let rest = text.get(from..).filter(|rest| !rest.is_empty())?;
        let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
        let line = text.slice(from..from + end);
        from += end + 1;
        Some(line)
    })
}

/// The rows of a text.
pub fn rows(text: &Bytes) -> Vec<Row> {
    lines(text).map(|line| Row(fields(&line).collect())).collect()
}

/// The fields of a line, values that need it without their escapes. What no server writes (a lone backslash
/// at the end) is taken as it stands.
pub fn fields(line: &Bytes) -> impl Iterator<Item = Cell> + '_ {
    let mut from = Some(0);
    std::iter::from_fn(move || {
        let at = from?;
        let rest = &line[at..];
        let end = memchr::memchr(b'\t', rest);
        from = end.map(|end| at + end + 1);
        Some(field(line.slice(at..at + end.unwrap_or(rest.len()))))
    })
}

fn field(raw: Bytes) -> Cell {
    if &raw[..] == NULL {
        return Cell::Null;
    }
    let Some(first) = memchr::memchr(b'\\', &raw) else { return Cell::Value(raw) };
    let mut text = BytesMut::with_capacity(raw.len());
    text.put_slice(&raw[..first]);
    let mut bytes = raw[first..].iter();
    while let Some(&byte) = bytes.next() {
        let plain = match byte {
            b'\\' => match bytes.next() {
                Some(b'b') => 8,
                Some(b'f') => 12,
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b't') => b'\t',
                Some(b'v') => 11,
                Some(&sign) => sign,
                None => b'\\',
            },
            byte => byte,
        };
        text.put_u8(plain);
    }
    Cell::Value(text.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_reads_as_it_was_written() {
        for text in ["", "plain", r"\N", r"\.", "a\tb\nc\rd", "\r\n", "\u{8}\u{b}\u{c}", "ä\\"] {
            let row = [Cell::Value(Bytes::copy_from_slice(text.as_bytes())), Cell::Null];
            let mut out = BytesMut::new();
            put_row(&mut out, &row);
            put_row(&mut out, &row[1..]);
            let text = out.freeze();
            let read: Vec<Vec<Cell>> = lines(&text).map(|line| fields(&line).collect()).collect();
            assert_eq!(read, [row.to_vec(), vec![Cell::Null]], "{text:?}");
        }
    }

    #[test]
    fn what_a_server_escapes_is_read() {
        let line = Bytes::from_static(b"\\b\\f\\n\\r\\t\\v\\\\\t\\N\t\t\\\\N");
        let value = |text: &'static [u8]| Cell::Value(Bytes::from_static(text));
        let read: Vec<Cell> = fields(&line).collect();
        assert_eq!(read, [value(b"\x08\x0c\n\r\t\x0b\\"), Cell::Null, value(b""), value(b"\\N")]);
    }

    #[test]
    fn signs_are_escaped() {
        let mut out = BytesMut::new();
        put_row(&mut out, &[Cell::Value(Bytes::from_static(b"a\tb\nc\rd\\N")), Cell::Null]);
        assert_eq!(&out[..], b"a\\tb\\nc\\rd\\\\N\t\\N\n");
    }
}
