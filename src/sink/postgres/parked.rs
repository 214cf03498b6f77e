//! What was kept aside: rows of `landfall.parked`, its changes and the rows they speak for. Read and asked for here;
//! the session that applies the link puts it there and takes it away.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use serde::Serialize;
use tokio_postgres::{Client, Row};

use super::session::shape_of;
use crate::{
    change::{Operation, Ordered, Shape},
    envelope::decode::{self, Shapes},
    fault::{Code, Fault, Result},
    plan::parked::{ParkedId, ParkedRows, Part, RowName},
    position::Position,
    postgres::fault_of,
    region::Region,
    sink::Wish,
    stamp::Micros,
    verify::TableName,
};

/// The tables parked transactions are kept in. No foreign keys: the session that writes them works as a replica.
pub(super) const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS landfall.parked (
        id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        link text NOT NULL,
        stream text NOT NULL,
        position jsonb NOT NULL,
        committed timestamptz NOT NULL,
        code text,
        reason text NOT NULL,
        parked timestamptz NOT NULL DEFAULT now(),
        attempts int8 NOT NULL DEFAULT 0,
        asked text CHECK (asked IN ('retry', 'discard'))
    );
    CREATE TABLE IF NOT EXISTS landfall.parked_change (
        parked int8 NOT NULL,
        ordinal int8 NOT NULL,
        operation text NOT NULL,
        body bytea NOT NULL,
        PRIMARY KEY (parked, ordinal)
    );
    CREATE TABLE IF NOT EXISTS landfall.parked_row (
        parked int8 NOT NULL,
        ordinal int8 NOT NULL,
        schema_name text NOT NULL,
        table_name text NOT NULL,
        columns text[],
        key bytea,
        overtaken bool NOT NULL DEFAULT false
    );
    CREATE INDEX IF NOT EXISTS parked_asked ON landfall.parked (id) WHERE asked IS NOT NULL;
    CREATE INDEX IF NOT EXISTS parked_row_parked ON landfall.parked_row (parked, ordinal);
    CREATE INDEX IF NOT EXISTS parked_row_key ON landfall.parked_row USING hash (key);
    COMMENT ON TABLE landfall.parked IS
        'Transactions that this database refused, and those that wait behind them: `landfall parked`.';
    COMMENT ON TABLE landfall.parked_change IS
        'Their changes, each as its record in the stream has it.';
    COMMENT ON TABLE landfall.parked_row IS
        'The rows they speak for: a change to one of them waits behind.'";

/// How many bytes of changes are read at once, one change more at most: as much as a batch holds.
const PORTION_BYTES: i64 = 4 << 20;
/// And how many changes.
const PORTION_CHANGES: i64 = 2_000;

/// A parked transaction.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Listed {
    /// Its number.
    pub id: ParkedId,
    /// The region it comes from.
    pub from: String,
    /// The stream.
    pub stream: String,
    /// Its place in its region's log.
    pub position: String,
    /// When it was committed there, in seconds since 1970.
    pub committed: f64,
    /// For how many seconds it has been parked.
    pub parked_seconds: f64,
    /// How many changes are left of it.
    pub changes: u64,
    /// The tables they are of.
    pub tables: Vec<String>,
    /// The code of what stood in the way; none where it waits behind another.
    pub code: Option<String>,
    /// What stood in the way.
    pub reason: String,
    /// How often it was tried again.
    pub attempts: u64,
    /// What was asked for and is not done yet: `retry` or `discard`.
    pub asked: Option<String>,
}

fn sql(doing: &'static str) -> impl Fn(tokio_postgres::Error) -> Fault {
    move |error| fault_of(&error).at(doing)
}

fn number(number: i64) -> u64 {
    number.max(0).unsigned_abs()
}

/// The parked transactions, of one link's region or of all, oldest first; none where no daemon has made the tables yet.
///
/// # Errors
/// Where the server does not answer, or the role may not.
pub async fn list(client: &Client, from: Option<&Region>) -> Result<Vec<Listed>> {
    let failed = sql("read what is parked");
    let made = "SELECT to_regclass('landfall.parked_row') IS NOT NULL";
    if !client.query_one(made, &[]).await.map_err(&failed)?.get::<_, bool>(0) {
        return Ok(Vec::new());
    }
    let list = "SELECT id, link, stream, position::text, extract(epoch FROM committed)::float8,
                extract(epoch FROM now() - parked)::float8, code, reason, attempts, asked,
                (SELECT count(*) FROM landfall.parked_change c WHERE c.parked = p.id),
                (SELECT coalesce(array_agg(DISTINCT schema_name || '.' || table_name), '{}')
                   FROM landfall.parked_row r WHERE r.parked = p.id)
           FROM landfall.parked p WHERE $1::text IS NULL OR link = $1 ORDER BY id";
    let from = from.map(Region::as_str);
    let rows = client.query(list, &[&from]).await.map_err(failed)?;
    rows.iter()
        .map(|row| {
            Ok(Listed {
                id: ParkedId(row.get(0)),
                from: row.get(1),
                stream: row.get(2),
                position: position_of(row.get(3))?.to_string(),
                committed: row.get(4),
                parked_seconds: row.get(5),
                code: row.get(6),
                reason: row.get(7),
                attempts: number(row.get(8)),
                asked: row.get(9),
                changes: number(row.get(10)),
                tables: row.get(11),
            })
        })
        .collect()
}

/// Asks the daemon that applies the link to do something with parked transactions; those that are gone are passed over.
/// Gives those for which somebody else has asked for something else: nothing is asked then.
///
/// # Errors
/// Where the server does not answer, or the role may not.
pub async fn ask(client: &Client, ids: &[ParkedId], wish: Wish) -> Result<Vec<ParkedId>> {
    let ids: Vec<i64> = ids.iter().map(|id| id.0).collect();
    let ask =
        "WITH wanted AS (SELECT id, asked FROM landfall.parked WHERE id = ANY ($1) ORDER BY id FOR UPDATE),
                    other AS (SELECT id FROM wanted WHERE asked <> $2),
                    asked AS (UPDATE landfall.parked SET asked = $2
                               WHERE id IN (SELECT id FROM wanted) AND NOT EXISTS (SELECT FROM other))
               SELECT id FROM other ORDER BY id";
    let others = client.query(ask, &[&ids, &wish.as_str()]).await;
    let others = others.map_err(sql("ask for what is parked"))?;
    Ok(others.iter().map(|row| ParkedId(row.get(0))).collect())
}

/// For how many of these something was asked that is not done yet.
///
/// # Errors
/// Where the server does not answer, or the role may not.
pub async fn waiting(client: &Client, ids: &[ParkedId]) -> Result<u64> {
    let ids: Vec<i64> = ids.iter().map(|id| id.0).collect();
    let waiting = "SELECT count(*) FROM landfall.parked WHERE id = ANY ($1) AND asked IS NOT NULL";
    let waiting = client.query_one(waiting, &[&ids]).await.map_err(sql("read what is parked"))?;
    Ok(number(waiting.get(0)))
}

/// Takes back what was asked for and is not done yet.
///
/// # Errors
/// Where the server does not answer, or the role may not.
pub async fn withdraw(client: &Client, ids: &[ParkedId]) -> Result<()> {
    let ids: Vec<i64> = ids.iter().map(|id| id.0).collect();
    let withdraw = "UPDATE landfall.parked SET asked = NULL WHERE id = ANY ($1)";
    client.execute(withdraw, &[&ids]).await.map(drop).map_err(sql("take back what was asked for"))
}

/// The shapes that a stream's changes name.
///
/// # Errors
/// Where the server does not answer, or the role may not.
pub async fn shapes(client: &Client, (link, stream): (&str, &str)) -> Result<Shapes> {
    let shapes = "SELECT body::text FROM landfall.shape WHERE link = $1 AND stream = $2";
    let rows = client.query(shapes, &[&link, &stream]).await.map_err(sql("read the shapes"))?;
    let shapes: Vec<Arc<Shape>> = rows.iter().map(|row| shape_of(row.get(0))).collect::<Result<_>>()?;
    Ok(shapes.into_iter().map(|shape| (shape.fingerprint(), shape)).collect())
}

/// Reads a parked transaction's changes, portion by portion.
pub struct Content<'a> {
    id: ParkedId,
    shapes: &'a Shapes,
    after: i64,
}

impl<'a> Content<'a> {
    /// Of the transaction `id`, from its first change on; `shapes` are its stream's.
    pub fn of(id: ParkedId, shapes: &'a Shapes) -> Self {
        Self { id, shapes, after: -1 }
    }

    /// The next of its changes, in their order; none where it has no more.
    ///
    /// # Errors
    /// Where the server does not answer, or what is kept there is not what was.
    pub async fn next(&mut self, client: &Client) -> Result<Vec<Ordered>> {
        let portion = "SELECT ordinal, operation, body FROM (
               SELECT *, sum(octet_length(body)) OVER (ORDER BY ordinal) - octet_length(body) AS before FROM (
                   SELECT ordinal, operation, body FROM landfall.parked_change
                    WHERE parked = $1 AND ordinal > $2 ORDER BY ordinal LIMIT $3) c) c
              WHERE before < $4 ORDER BY ordinal";
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
            [&self.id.0, &self.after, &PORTION_CHANGES, &PORTION_BYTES];
        let rows = client.query(portion, &parameters).await.map_err(sql("read parked changes"))?;
        let changes = rows.iter().map(|row| self.read(row)).collect::<Result<Vec<_>>>()?;
        if let Some(last) = rows.last() {
            self.after = last.get(0);
        }
        Ok(changes)
    }

    fn read(&self, row: &Row) -> Result<Ordered> {
        let (ordinal, operation, body): (i64, &str, &[u8]) = (row.get(0), row.get(1), row.get(2));
        let body = Bytes::copy_from_slice(body);
        let decoded = if operation == Operation::Truncate.as_str() {
            decode::truncate(&body, self.shapes)
        } else {
            decode::change(&body, self.shapes)
        };
        let decoded = decoded.map_err(|error| {
            Fault::new(Code::Internal, format!("read change {ordinal} of parked {}", self.id)).because(error)
        })?;
        Ok(Ordered { ordinal: number(ordinal), change: decoded.change })
    }
}

/// What is parked of one stream, as its session knows it.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) rows: ParkedRows,
    /// How many changes each transaction has.
    pub(super) transactions: BTreeMap<ParkedId, u64>,
    changes: u64,
}

impl Kept {
    pub(super) async fn read(client: &Client, link: &str, stream: &str) -> Result<Self> {
        let failed = sql("read what is parked");
        let mut kept = Self::default();
        let parked = "SELECT id, (SELECT count(*) FROM landfall.parked_change c WHERE c.parked = p.id)
                        FROM landfall.parked p WHERE link = $1 AND stream = $2";
        for row in client.query(parked, &[&link, &stream]).await.map_err(&failed)? {
            kept.add(ParkedId(row.get(0)), number(row.get(1)));
        }
        if !kept.transactions.is_empty() {
            // A table that was copied anew is whole, though what emptied another along with it has still to come.
            let rows = format!(
                "SELECT {PART} FROM landfall.parked_row r JOIN landfall.parked p ON p.id = r.parked
                  WHERE p.link = $1 AND p.stream = $2 AND NOT (r.overtaken AND r.key IS NULL)"
            );
            for row in client.query(&rows, &[&link, &stream]).await.map_err(&failed)? {
                let (id, part) = part_of(&row);
                kept.rows.add(id, &part);
            }
        }
        Ok(kept)
    }

    /// How many changes are parked.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// A transaction is parked, or more of one.
    pub(super) fn add(&mut self, id: ParkedId, changes: u64) {
        *self.transactions.entry(id).or_default() += changes;
        self.changes += changes;
    }

    /// A transaction is parked no more.
    pub(super) fn remove(&mut self, id: ParkedId) {
        self.changes -= self.transactions.remove(&id).unwrap_or_default();
    }
}

/// What [`part_of`] reads, of `landfall.parked_row r`.
pub(super) const PART: &str = "r.parked, r.schema_name, r.table_name, r.columns, r.key";

pub(super) fn part_of(row: &Row) -> (ParkedId, Part) {
    let columns: Option<Vec<&str>> = row.get(3);
    let key: Option<&[u8]> = row.get(4);
    let columns = columns.map(|columns| columns.into_iter().map(Box::from).collect());
    let name = columns.zip(key).map(|(columns, key)| RowName { columns, key: key.into() });
    let table = TableName { schema: row.get(1), table: row.get(2) };
    (ParkedId(row.get(0)), Part { table, row: name })
}

pub(super) fn position_of(text: &str) -> Result<Position> {
    serde_json::from_str(text)
        .map_err(|error| Fault::new(Code::Internal, "read a position from landfall.parked").because(error))
}

/// A parked transaction that something was asked for.
pub(super) struct Asked {
    pub(super) id: ParkedId,
    pub(super) wish: Wish,
    pub(super) position: Position,
    pub(super) committed: Micros,
}

/// The oldest that something was asked for, behind `after`.
pub(super) async fn asked(
    client: &Client,
    link: &str,
    stream: &str,
    after: ParkedId,
) -> Result<Option<Asked>> {
    let asked = "SELECT id, asked, position::text, committed FROM landfall.parked
                  WHERE link = $1 AND stream = $2 AND id > $3 AND asked IS NOT NULL ORDER BY id LIMIT 1";
    let row = client.query_opt(asked, &[&link, &stream, &after.0]).await;
    let Some(row) = row.map_err(sql("read what is asked for"))? else { return Ok(None) };
    let wish = if row.get::<_, &str>(1) == Wish::Discard.as_str() { Wish::Discard } else { Wish::Retry };
    Ok(Some(Asked {
        id: ParkedId(row.get(0)),
        wish,
        position: position_of(row.get(2))?,
        committed: Micros(row.get::<_, super::wire::Timestamp>(3).0),
    }))
}
