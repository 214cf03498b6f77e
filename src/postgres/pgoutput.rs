//! The messages of Postgres's logical replication protocol (pgoutput, version 1), decoded without copying
//! a value.
//!
//! Layouts: PostgreSQL documentation, "Logical Replication Message Formats". What is not known here is an
//! error: a message that is passed over is a change that is lost.

use bytes::{Buf, Bytes};

use crate::{
    change::{Cell, Identity, Row},
    lsn::Lsn,
};

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A transaction begins.
    Begin {
        /// Where its commit stands.
        commit: Lsn,
        /// When it was committed, in microseconds since 2000.
        time: i64,
        /// Its id.
        xid: u32,
    },
    /// The transaction ends.
    Commit {
        /// Where its commit stands.
        commit: Lsn,
        /// Where it ends: what may be confirmed once all of it is safe.
        end: Lsn,
        /// When it was committed, in microseconds since 2000.
        time: i64,
    },
    /// Something an application wrote into the log (`pg_logical_emit_message`).
    Logical {
        /// Whether it is part of the transaction.
        transactional: bool,
        /// Where it stands.
        place: Lsn,
        /// Whose it is.
        prefix: String,
        /// What was written.
        content: Bytes,
    },
    /// The table the following changes name by `id`, as it was then.
    Relation(Relation),
    /// The name of a type that is not built in.
    Type(TypeName),
    /// The transaction was applied from elsewhere, under this replication origin.
    Origin {
        /// Its position there.
        commit: Lsn,
        /// The origin's name.
        name: String,
    },
    /// A row came.
    Insert {
        /// The table's id.
        relation: u32,
        /// The row.
        new: Row,
    },
    /// A row changed.
    Update {
        /// The table's id.
        relation: u32,
        /// The row before, where it was logged.
        old: Option<Old>,
        /// The row after.
        new: Row,
    },
    /// A row went.
    Delete {
        /// The table's id.
        relation: u32,
        /// The row before.
        old: Old,
    },
    /// Tables were emptied.
    Truncate {
        /// The tables' ids.
        relations: Vec<u32>,
        /// `CASCADE` was given.
        cascade: bool,
        /// `RESTART IDENTITY` was given.
        restart_identity: bool,
    },
}

/// What was logged of a row that is no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Old {
    /// Its replica identity's columns; the others say NULL and mean nothing.
    Key(Row),
    /// All of it.
    Full(Row),
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// Its id in this server.
    pub id: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub table: String,
    /// What its old rows hold.
    pub identity: Identity,
    /// Its published columns.
    pub columns: Vec<RelationColumn>,
}

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationColumn {
    /// Its name.
    pub name: String,
    /// Its type's id in this server.
    pub type_id: u32,
    /// Its type modifier.
    pub typmod: i32,
    /// Whether it is part of the replica identity.
    pub key: bool,
}

/// A type's name; the base type's where it is a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeName {
    /// Its id in this server.
    pub id: u32,
    /// Its schema; empty means `pg_catalog`.
    pub schema: String,
    /// Its name.
    pub name: String,
}

/// Why bytes are no message of pgoutput version 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It ends before what it announces.
    #[error("the message ends inside {0}")]
    Truncated(&'static str),
    /// It goes on after its end.
    #[error("{0} bytes follow the message")]
    Trailing(usize),
    /// A message, tuple or column kind this version does not have.
    #[error("unknown {what} {:?}", char::from(*.byte))]
    Unknown {
        /// What was read.
        what: &'static str,
        /// The byte found.
        byte: u8,
    },
    /// A name that is not UTF-8.
    #[error("{0} is not UTF-8")]
    Encoding(&'static str),
}

type Decoded<T> = Result<T, Malformed>;

/// Decodes one message. Values are slices of `data`.
///
/// # Errors
/// Whatever is not exactly one message of version 1.
pub fn decode(data: Bytes) -> Decoded<Message> {
    let mut input = Input(data);
    let message = match input.u8("the message's kind")? {
        b'B' => Message::Begin {
            commit: Lsn(input.u64("a commit's position")?),
            time: input.u64("a commit's time")?.cast_signed(),
            xid: input.u32("a transaction's id")?,
        },
        b'C' => {
            // No flag is defined.
            input.flags("commit flag", 0)?;
            Message::Commit {
                commit: Lsn(input.u64("a commit's position")?),
                end: Lsn(input.u64("a commit's end")?),
                time: input.u64("a commit's time")?.cast_signed(),
            }
        }
        b'M' => {
            let transactional = input.flags("logical message flag", 1)? != 0;
            let place = Lsn(input.u64("a logical message's position")?);
            let prefix = input.text("a logical message's prefix")?;
            let length = input.u32("a logical message's length")? as usize;
            let content = input.take(length, "a logical message's content")?;
            Message::Logical { transactional, place, prefix, content }
        }
        b'R' => Message::Relation(relation(&mut input)?),
        b'Y' => Message::Type(TypeName {
            id: input.u32("a type's id")?,
            schema: input.text("a type's schema")?,
            name: input.text("a type's name")?,
        }),
        b'O' => Message::Origin {
            commit: Lsn(input.u64("an origin's position")?),
            name: input.text("an origin's name")?,
        },
        b'I' => {
            let relation = input.u32("a table's id")?;
            match input.u8("a tuple's kind")? {
                b'N' => Message::Insert { relation, new: row(&mut input)? },
                byte => return Err(Malformed::Unknown { what: "tuple kind in an insert", byte }),
            }
        }
        b'U' => update(&mut input)?,
        b'D' => {
            let relation = input.u32("a table's id")?;
            let kind = input.u8("a tuple's kind")?;
            Message::Delete { relation, old: old(kind, &mut input)? }
        }
        b'T' => truncate(&mut input)?,
        byte => return Err(Malformed::Unknown { what: "message kind", byte }),
    };
    match input.0.len() {
        0 => Ok(message),
        left => Err(Malformed::Trailing(left)),
    }
}

fn relation(input: &mut Input) -> Decoded<Relation> {
    let id = input.u32("a table's id")?;
    let schema = match input.text("a table's schema")? {
        empty if empty.is_empty() => "pg_catalog".to_owned(),
        schema => schema,
    };
    let table = input.text("a table's name")?;
    let identity = match input.u8("a replica identity")? {
        b'd' => Identity::Default,
        b'i' => Identity::Index,
        b'f' => Identity::Full,
        b'n' => Identity::Nothing,
        byte => return Err(Malformed::Unknown { what: "replica identity", byte }),
    };
    let count = input.u16("a column count")?;
    let columns = (0..count).map(|_| {
        Ok(RelationColumn {
            key: input.u8("a column's flags")? & 1 != 0,
            name: input.text("a column's name")?,
            type_id: input.u32("a column's type")?,
            typmod: input.u32("a column's modifier")? as i32,
        })
    });
    let columns = columns.collect::<Decoded<_>>()?;
    Ok(Relation { id, schema, table, identity, columns })
}

fn update(input: &mut Input) -> Decoded<Message> {
    let relation = input.u32("a table's id")?;
    let mut kind = input.u8("a tuple's kind")?;
    let mut before = None;
    if kind != b'N' {
        before = Some(old(kind, input)?);
        kind = input.u8("a tuple's kind")?;
    }
    match kind {
        b'N' => Ok(Message::Update { relation, old: before, new: row(input)? }),
        byte => Err(Malformed::Unknown { what: "tuple kind in an update", byte }),
    }
}

fn old(kind: u8, input: &mut Input) -> Decoded<Old> {
    match kind {
        b'K' => Ok(Old::Key(row(input)?)),
        b'O' => Ok(Old::Full(row(input)?)),
        byte => Err(Malformed::Unknown { what: "old tuple kind", byte }),
    }
}

fn truncate(input: &mut Input) -> Decoded<Message> {
    let count = input.u32("a table count")?;
    let options = input.flags("truncate option", 3)?;
    // Not collected into a vector of `count`: the number is the server's word, the bytes are not.
    let relations = (0..count).map(|_| input.u32("a table's id")).collect::<Decoded<_>>()?;
    Ok(Message::Truncate { relations, cascade: options & 1 != 0, restart_identity: options & 2 != 0 })
}

fn row(input: &mut Input) -> Decoded<Row> {
    let count = input.u16("a column count")?;
    let cells = (0..count).map(|_| match input.u8("a column's kind")? {
        b't' => {
            let len = input.u32("a value's length")? as usize;
            Ok(Cell::Value(input.take(len, "a value")?))
        }
        b'n' => Ok(Cell::Null),
        b'u' => Ok(Cell::Unchanged),
        byte => Err(Malformed::Unknown { what: "column kind", byte }),
    });
    Ok(Row(cells.collect::<Decoded<_>>()?))
}

struct Input(Bytes);

impl Input {
    fn take(&mut self, len: usize, what: &'static str) -> Decoded<Bytes> {
        if self.0.len() < len { Err(Malformed::Truncated(what)) } else { Ok(self.0.split_to(len)) }
    }

    fn u8(&mut self, what: &'static str) -> Decoded<u8> {
        self.0.try_get_u8().map_err(|_| Malformed::Truncated(what))
    }

    /// A byte of flags, none but those known.
    fn flags(&mut self, what: &'static str, known: u8) -> Decoded<u8> {
        match self.u8(what)? {
            flags if flags & !known == 0 => Ok(flags),
            byte => Err(Malformed::Unknown { what, byte }),
        }
    }

    fn u16(&mut self, what: &'static str) -> Decoded<u16> {
        self.0.try_get_u16().map_err(|_| Malformed::Truncated(what))
    }

    fn u32(&mut self, what: &'static str) -> Decoded<u32> {
        self.0.try_get_u32().map_err(|_| Malformed::Truncated(what))
    }

    fn u64(&mut self, what: &'static str) -> Decoded<u64> {
        self.0.try_get_u64().map_err(|_| Malformed::Truncated(what))
    }

    /// A text that ends with a zero byte.
    fn text(&mut self, what: &'static str) -> Decoded<String> {
        let end = memchr::memchr(0, &self.0).ok_or(Malformed::Truncated(what))?;
        let text = self.0.split_to(end);
        self.0.advance(1);
        String::from_utf8(text.into()).map_err(|_| Malformed::Encoding(what))
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    fn value(text: &'static str) -> Cell {
        Cell::Value(Bytes::from_static(text.as_bytes()))
    }

    /// As the manual lays it out: the old key, then the new row with a large value it did not touch.
    const UPDATE_WITH_KEY: &[u8] = b"U\0\0\x40\x01K\0\x02t\0\0\0\x011nN\0\x02t\0\0\0\x012u";

    #[test]
    fn an_update_that_changes_its_key_and_leaves_a_large_value_alone() {
        let message = decode(Bytes::from_static(UPDATE_WITH_KEY)).unwrap();
        let expected = Message::Update {
            relation: 0x4001,
            old: Some(Old::Key(Row([value("1"), Cell::Null].into()))),
            new: Row([value("2"), Cell::Unchanged].into()),
        };
        assert_eq!(message, expected);
    }

    #[test]
    fn relations_and_truncates() {
        let bytes =
            b"R\0\0\0\x07public\0t\0d\0\x02\x01id\0\0\0\0\x14\xff\xff\xff\xff\0n\0\0\0\0\x19\xff\xff\xff\xff";
        let Message::Relation(relation) = decode(Bytes::from_static(bytes)).unwrap() else { panic!() };
        assert_eq!((relation.id, relation.table.as_str(), relation.identity), (7, "t", Identity::Default));
        assert_eq!(
            relation.columns[0],
            RelationColumn { name: "id".into(), type_id: 20, typmod: -1, key: true }
        );
        let truncate = decode(Bytes::from_static(b"T\0\0\0\x02\x03\0\0\0\x01\0\0\0\x02")).unwrap();
        let expected = Message::Truncate { relations: vec![1, 2], cascade: true, restart_identity: true };
        assert_eq!(truncate, expected);
    }

    #[test]
    fn what_is_cut_short_or_goes_on_is_refused() {
        for end in 0..UPDATE_WITH_KEY.len() {
            assert!(decode(Bytes::from_static(&UPDATE_WITH_KEY[..end])).is_err(), "cut at {end}");
        }
        let longer = [UPDATE_WITH_KEY, b"x"].concat();
        assert_eq!(decode(longer.into()), Err(Malformed::Trailing(1)));
        let unknown = Malformed::Unknown { what: "message kind", byte: b'S' };
        assert_eq!(decode(Bytes::from_static(b"S")), Err(unknown));
    }

    #[test]
    fn a_length_beyond_the_message_allocates_nothing() {
        let huge = b"I\0\0\0\x01N\0\x01t\x7f\xff\xff\xffabc";
        assert_eq!(decode(Bytes::from_static(huge)), Err(Malformed::Truncated("a value")));
        let many = b"T\xff\xff\xff\xff\0";
        assert_eq!(decode(Bytes::from_static(many)), Err(Malformed::Truncated("a table's id")));
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let seed = rand::random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..20_000 {
            let mut bytes = UPDATE_WITH_KEY.to_vec();
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(0..bytes.len());
                bytes[at] = random.random();
            }
            let _ = decode(bytes.into());
            let mut noise = vec![0; random.random_range(0..64)];
            random.fill(&mut noise[..]);
            let _ = decode(noise.into());
        }
    }
}
