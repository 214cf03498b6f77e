//! Messages as text a person can read, without what differs from run to run: ids become names, and places in
//! the log, transaction ids and commit times are left out.

use std::{collections::HashMap, fmt::Write as _};

use bytes::Bytes;
use landfall::{
    change::{Cell, Row},
    postgres::pgoutput::{self, Message, Old, Relation},
};
use tokio_postgres::types::Type;

/// Beyond this a value is told by its beginning, its length and its checksum.
const SHOWN_BYTES: usize = 100;

/// A stream of messages, as the decoder understands it.
///
/// Panics where it does not, and where a message names a table or a type that none before it described.
pub fn text(messages: &[Bytes]) -> String {
    let mut page = Page::default();
    for message in messages {
        page.message(message);
    }
    page.out
}

#[derive(Default)]
struct Page {
    out: String,
    relations: HashMap<u32, Relation>,
    types: HashMap<u32, String>,
}

impl Page {
    fn line(&mut self, line: impl AsRef<str>) {
        writeln!(self.out, "{}", line.as_ref()).unwrap();
    }

    fn message(&mut self, message: &Bytes) {
        let decoded = pgoutput::decode(message.clone());
        match decoded.unwrap_or_else(|error| panic!("{error}: {message:?}")) {
            Message::Begin { .. } => self.line("begin"),
            Message::Commit { .. } => self.line("commit"),
            Message::Logical { transactional, prefix, content, .. } => {
                let content = String::from_utf8(content.into()).unwrap();
                if prefix == super::STEP_PREFIX {
                    return self.line(format!("\n== {content}"));
                }
                let of = if transactional { "of the transaction" } else { "outside transactions" };
                self.line(format!("message {of}: {prefix} {content:?}"));
            }
            Message::Type(described) => {
                let schema = if described.schema.is_empty() { "pg_catalog" } else { &described.schema };
                let name = format!("{schema}.{}", described.name);
                self.line(format!("type {name}"));
                self.types.insert(described.id, name);
            }
            Message::Relation(relation) => {
                let identity = format!("{:?}", relation.identity).to_lowercase();
                self.line(format!("relation {}, identity {identity}", name(&relation)));
                for column in &relation.columns {
                    let mark = if column.key { "key" } else { "   " };
                    let type_name = self.type_name(column.type_id);
                    let modifier =
                        if column.typmod < 0 { String::new() } else { format!(" ({})", column.typmod) };
                    self.line(format!("  {mark} {}: {type_name}{modifier}", column.name));
                }
                self.relations.insert(relation.id, relation);
            }
            Message::Origin { commit, name } => self.line(format!("origin {name}, there {commit}")),
            Message::Insert { relation, new } => {
                self.change("insert", relation);
                self.row("new", relation, &new);
            }
            Message::Update { relation, old, new } => {
                self.change("update", relation);
                if let Some(old) = old {
                    self.old(relation, &old);
                }
                self.row("new", relation, &new);
            }
            Message::Delete { relation, old } => {
                self.change("delete", relation);
                self.old(relation, &old);
            }
            Message::Truncate { relations, cascade, restart_identity } => {
                let names: Vec<String> = relations.iter().map(|id| name(&self.relations[id])).collect();
                let cascade = if cascade { ", cascade" } else { "" };
                let restart = if restart_identity { ", restart identity" } else { "" };
                self.line(format!("truncate {}{cascade}{restart}", names.join(" and ")));
            }
        }
    }

    fn type_name(&self, id: u32) -> String {
        let described = self.types.get(&id).cloned();
        let built_in = || Type::from_oid(id).map(|known| known.name().to_owned());
        described.or_else(built_in).unwrap_or_else(|| panic!("type {id} was not described"))
    }

    fn change(&mut self, what: &str, relation: u32) {
        let name = name(&self.relations[&relation]);
        self.line(format!("{what} {name}"));
    }

    fn old(&mut self, relation: u32, old: &Old) {
        match old {
            Old::Key(row) => self.row("old key", relation, row),
            Old::Full(row) => self.row("old", relation, row),
        }
    }

    fn row(&mut self, which: &str, relation: u32, Row(cells): &Row) {
        let names: Vec<String> =
            self.relations[&relation].columns.iter().map(|column| column.name.clone()).collect();
        assert_eq!(cells.len(), names.len(), "a cell for each column");
        for (cell, name) in cells.iter().zip(names) {
            self.line(format!("  {which} {name}: {}", shown(cell)));
        }
    }
}

fn name(relation: &Relation) -> String {
    format!("{}.{}", relation.schema, relation.table)
}

fn shown(cell: &Cell) -> String {
    match cell {
        Cell::Null => "null".into(),
        Cell::Unchanged => "unchanged".into(),
        Cell::Value(value) if value.len() > SHOWN_BYTES => {
            let head = std::str::from_utf8(&value[..20]).unwrap();
            format!("{head:?}… {} bytes, crc-32 {:08x}", value.len(), crc32fast::hash(value))
        }
        Cell::Value(value) => format!("{:?}", std::str::from_utf8(value).unwrap()),
        Cell::Withheld | Cell::Encrypted { .. } => panic!("no server sends {cell:?}"),
    }
}
