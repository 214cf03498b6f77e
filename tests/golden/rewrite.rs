//! A decoded message as the bytes it came from, to prove that decoding it lost nothing. Shared with the fuzz
//! target.

use landfall::{
    change::{Cell, Identity, Row},
    postgres::pgoutput::{Message, Old},
};

/// The message as a server sends it.
pub fn bytes(message: &Message) -> Vec<u8> {
    let mut out = Vec::new();
    match message {
        Message::Begin { commit, time, xid } => {
            out.push(b'B');
            long(&mut out, commit.0);
            long(&mut out, time.cast_unsigned());
            number(&mut out, *xid);
        }
        Message::Commit { commit, end, time } => {
            out.extend_from_slice(b"C\0");
            long(&mut out, commit.0);
            long(&mut out, end.0);
            long(&mut out, time.cast_unsigned());
        }
        Message::Logical { transactional, place, prefix, content } => {
            out.extend_from_slice(&[b'M', u8::from(*transactional)]);
            long(&mut out, place.0);
            text(&mut out, prefix);
            number(&mut out, content.len() as u32);
            out.extend_from_slice(content);
        }
        Message::Relation(relation) => {
            out.push(b'R');
            number(&mut out, relation.id);
            // A server sends this schema's name as an empty one.
            text(&mut out, if relation.schema == "pg_catalog" { "" } else { &relation.schema });
            text(&mut out, &relation.table);
            out.push(match relation.identity {
                Identity::Default => b'd',
                Identity::Index => b'i',
                Identity::Full => b'f',
                Identity::Nothing => b'n',
            });
            count(&mut out, relation.columns.len());
            for column in &relation.columns {
                out.push(u8::from(column.key));
                text(&mut out, &column.name);
                number(&mut out, column.type_id);
                number(&mut out, column.typmod as u32);
            }
        }
        Message::Type(name) => {
            out.push(b'Y');
            number(&mut out, name.id);
            text(&mut out, &name.schema);
            text(&mut out, &name.name);
        }
        Message::Origin { commit, name } => {
            out.push(b'O');
            long(&mut out, commit.0);
            text(&mut out, name);
        }
        Message::Insert { relation, new } => {
            out.push(b'I');
            number(&mut out, *relation);
            row(&mut out, b'N', new);
        }
        Message::Update { relation, old: before, new } => {
            out.push(b'U');
            number(&mut out, *relation);
            if let Some(before) = before {
                old(&mut out, before);
            }
            row(&mut out, b'N', new);
        }
        Message::Delete { relation, old: before } => {
            out.push(b'D');
            number(&mut out, *relation);
            old(&mut out, before);
        }
        Message::Truncate { relations, cascade, restart_identity } => {
            out.push(b'T');
            number(&mut out, relations.len() as u32);
            out.push(u8::from(*cascade) | u8::from(*restart_identity) << 1);
            for relation in relations {
                number(&mut out, *relation);
            }
        }
    }
    out
}

fn old(out: &mut Vec<u8>, old: &Old) {
    match old {
        Old::Key(cells) => row(out, b'K', cells),
        Old::Full(cells) => row(out, b'O', cells),
    }
}

fn row(out: &mut Vec<u8>, kind: u8, Row(cells): &Row) {
    out.push(kind);
    count(out, cells.len());
    for cell in cells {
        match cell {
            Cell::Value(value) => {
                out.push(b't');
                number(out, value.len() as u32);
                out.extend_from_slice(value);
            }
            Cell::Null => out.push(b'n'),
            Cell::Unchanged => out.push(b'u'),
            Cell::Withheld | Cell::Encrypted { .. } => panic!("no server sends {cell:?}"),
        }
    }
}

fn long(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_be_bytes());
}

fn number(out: &mut Vec<u8>, number: u32) {
    out.extend_from_slice(&number.to_be_bytes());
}

fn count(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&u16::try_from(count).unwrap().to_be_bytes());
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
    out.push(0);
}
