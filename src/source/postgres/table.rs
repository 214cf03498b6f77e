//! A table of the source, read under a snapshot.

use std::{pin::pin, sync::Arc};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::TryStreamExt;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::copier::CHUNK_BYTES;
use crate::{
    change::{Cell, Column, Identity, Shape, copy_text},
    fault::{Code, Fault, Result},
    names::{literal, qualified, quoted},
    postgres::{Connection, fault_of, tables::base_type},
    source::Snapshot,
    verify::Key,
};

/// Rows travel in texts of about this size.
const TEXT_BYTES: usize = 256 << 10;
/// Reading ends where more has come at once, as it does where rows are much larger than those before.
pub(super) const READ_BYTES_MAX: usize = 2 * CHUNK_BYTES as usize;
/// A row that is larger is not sent to mend another region's: it would be held in memory several times at once.
const MENDED_ROW_BYTES: usize = 64 << 20;

fn sql(doing: &'static str) -> impl Fn(tokio_postgres::Error) -> Fault {
    move |error| fault_of(&error).at(doing)
}

/// A table as it is now.
pub(super) struct Table {
    pub(super) shape: Arc<Shape>,
    pub(super) name: String,
    only: &'static str,
    /// The columns of the index its rows are read along.
    pub(super) key: Box<[usize]>,
    /// A column of it that no change says anything of: it is generated. There is no `key` then.
    pub(super) key_not_logged: Option<String>,
}

/// Rows as they come, in texts that are appended one by one.
pub(super) struct Texts {
    whole: Vec<Bytes>,
    last: BytesMut,
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

impl Texts {
    pub(super) fn new() -> Self {
        Self { whole: Vec::new(), last: BytesMut::with_capacity(TEXT_BYTES), rows: 0, bytes: 0 }
    }

    /// Takes a row's line.
    pub(super) fn push(&mut self, line: &[u8]) {
        if !self.last.is_empty() && self.last.len() + line.len() > TEXT_BYTES {
            self.whole.push(self.last.split().freeze());
        }
        self.last.put_slice(line);
        self.rows += 1;
        self.bytes += line.len() as u64;
    }

    pub(super) fn into_texts(mut self) -> Vec<Bytes> {
        if !self.last.is_empty() {
            self.whole.push(self.last.freeze());
        }
        self.whole
    }
}

/// What was read.
pub(super) struct Read {
    pub(super) texts: Vec<Bytes>,
    pub(super) rows: u64,
    pub(super) bytes: u64,
    pub(super) seen: Snapshot,
    /// Whether reading ended before the last row was there.
    pub(super) cut: bool,
    /// Whether the server still sends rows that nobody wants: the session is of no more use.
    pub(super) half_way: bool,
    /// How many sessions read side by side.
    pub(super) sessions: u32,
    /// The key of the last row that was held against a condition, where there are more.
    pub(super) looked: Option<Vec<String>>,
}

const TABLE: &str = "
    SELECT c.oid, c.relkind = 'p', c.relreplident::text,
           coalesce((SELECT array_agg(a.attname::text ORDER BY k.at)
              FROM pg_index i
             CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY k (attnum, at)
              JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
             WHERE i.indrelid = c.oid AND i.indisunique AND i.indimmediate AND i.indisvalid
               AND i.indpred IS NULL AND i.indexprs IS NULL AND k.at <= i.indnkeyatts
               AND CASE WHEN c.relreplident = 'i' THEN i.indisreplident ELSE i.indisprimary END), '{}')
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')";

/// The columns that are published, as the log describes them: a domain by its base type.
const COLUMNS: &str = concat!(
    "
    SELECT a.attname::text, a.atttypmod, bn.nspname::text, bt.typname::text
      FROM pg_attribute a
",
    base_type!(),
    "
     WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
     ORDER BY a.attnum"
);

impl Table {
    pub(super) async fn look(client: &Client, schema: &str, table: &str) -> Result<Self> {
        let failed = sql("look at a table that is to be copied");
        let row = client.query_opt(TABLE, &[&schema, &table]).await.map_err(&failed)?.ok_or_else(|| {
            Fault::new(Code::TableDiffers, format!("table {schema}.{table} does not exist any more"))
                .remedied_by("cancel the backfill, and ask for the tables there are")
        })?;
        let (oid, identity): (u32, &str) = (row.get(0), row.get(2));
        let key: Vec<String> = row.get(3);
        let identity = match identity {
            "i" => Identity::Index,
            "f" => Identity::Full,
            "n" => Identity::Nothing,
            _ => Identity::Default,
        };
        let columns: Vec<Column> = client
            .query(COLUMNS, &[&oid])
            .await
            .map_err(&failed)?
            .iter()
            .map(|row| {
                let name: String = row.get(0);
                let key = match identity {
                    Identity::Full => true,
                    Identity::Nothing => false,
                    Identity::Default | Identity::Index => key.contains(&name),
                };
                Column {
                    name: name.into(),
                    type_schema: row.get::<_, String>(2).into(),
                    type_name: row.get::<_, String>(3).into(),
                    typmod: row.get(1),
                    key,
                }
            })
            .collect();
        let place = |name: &String| columns.iter().position(|column| *column.name == **name);
        // Where changes do not name their row, a key would not either.
        let key = if identity == Identity::Nothing { Vec::new() } else { key };
        let key_not_logged = match identity {
            Identity::Default | Identity::Index => key.iter().find(|name| place(name).is_none()).cloned(),
            Identity::Full | Identity::Nothing => None,
        };
        let key = key.iter().map(place).collect::<Option<Vec<usize>>>().unwrap_or_default();
        Ok(Self {
            key_not_logged,
            name: qualified(schema, table),
            only: if row.get(1) { "" } else { "ONLY " },
            key: key.into(),
            shape: Arc::new(Shape::new(schema, table, identity, columns)),
        })
    }

    /// The names of the columns its rows are read along.
    pub(super) fn key_names(&self) -> Vec<String> {
        self.key.iter().map(|&at| self.shape.columns[at].name.to_string()).collect()
    }

    /// The next rows, in the order of the key.
    pub(super) async fn read(
        &self,
        connection: &Connection,
        after: Option<&[String]>,
        limit: u64,
    ) -> Result<Read> {
        let read = self.read_under_snapshot(connection, &self.chunk(after, limit), READ_BYTES_MAX).await;
        // Where it was left half-way, or failed, the caller leaves the connection.
        if read.as_ref().is_ok_and(|read| !read.cut) {
            connection.batch_execute("ROLLBACK").await.map_err(sql("end the reading of a chunk"))?;
        }
        read
    }

    /// The rows with these keys; cut where they are more than is held in memory at once.
    pub(super) async fn read_of(&self, connection: &Connection, keys: &[Key]) -> Result<Read> {
        let tuples: Vec<String> = keys.iter().map(|key| format!("({})", literals(key))).collect();
        let rows = format!("{} WHERE ({}) IN ({})", self.every_row(), self.quoted_key(), tuples.join(", "));
        // One row is larger than that only where it is larger than a chunk may be.
        let bytes_max = if keys.len() == 1 { MENDED_ROW_BYTES } else { READ_BYTES_MAX };
        let read = self.read_under_snapshot(connection, &rows, bytes_max).await?;
        let ended = if read.cut { Ok(()) } else { connection.batch_execute("ROLLBACK").await };
        ended.map_err(sql("end the reading of rows"))?;
        Ok(read)
    }

    /// The statement that reads the rows behind a key, in the key's order.
    pub(super) fn chunk(&self, after: Option<&[String]>, limit: u64) -> String {
        let (rows, key, behind) = (self.every_row(), self.quoted_key(), self.behind(after));
        format!("{rows} WHERE {behind} ORDER BY {key} LIMIT {limit}")
    }

    /// The key of the last of so many rows behind a key, in its order; none where there are not as many. Asked in a
    /// transaction that reads along the index.
    pub(super) async fn end_of(
        &self,
        connection: &Connection,
        after: Option<&[String]>,
        rows: u64,
    ) -> Result<Option<Vec<String>>> {
        let (key, behind, from) = (self.quoted_key(), self.behind(after), self.from());
        let skipped = rows.max(1) - 1;
        let last = format!("SELECT {key} FROM {from} WHERE {behind} ORDER BY {key} OFFSET {skipped} LIMIT 1");
        let last = connection.simple_query(&last).await.map_err(sql("find the end of a chunk"))?;
        Ok(last.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                (0..self.key.len()).map(|at| row.get(at).map(str::to_owned)).collect::<Option<Vec<_>>>()
            }
            _ => None,
        }))
    }

    /// The columns of the key, as SQL.
    fn quoted_key(&self) -> String {
        self.key_names().iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ")
    }

    /// The condition that a row's key comes after this one.
    fn behind(&self, after: Option<&[String]>) -> String {
        let key = self.quoted_key();
        after.map_or_else(|| "true".to_owned(), |after| format!("({key}) > ({})", literals(after)))
    }

    /// Those of the next rows that meet a condition, in the key's order. `limit` is how many are looked at: with a limit
    /// on those that are found, a condition that few meet would have a whole table read between two watermarks.
    pub(super) async fn read_matching(
        &self,
        connection: &Connection,
        after: Option<&[String]>,
        limit: u64,
        condition: &str,
    ) -> Result<Read> {
        let (rows, key, behind) = (self.every_row(), self.quoted_key(), self.behind(after));
        let seen = begin_snapshot(connection, &self.from()).await?;
        connection.batch_execute(ALONG_THE_INDEX).await.map_err(sql("find the end of a chunk"))?;
        let looked = self.end_of(connection, after, limit).await?;
        let upto =
            looked.as_ref().map_or_else(String::new, |last| format!(" AND ({key}) <= ({})", literals(last)));
        let rows = format!("{rows} WHERE {behind}{upto} AND ({condition}) ORDER BY {key}");
        let read = self.copy_out(connection, &rows, READ_BYTES_MAX, seen).await?;
        if !read.cut {
            connection.batch_execute("ROLLBACK").await.map_err(sql("end the reading of a chunk"))?;
        }
        Ok(Read { looked, ..read })
    }

    /// Requires of a table that was read since it was looked at that it is as it was: its rows are told in the shape it had
    /// then.
    pub(super) async fn require_unaltered(&self, connection: &Connection) -> Result<()> {
        let now = Self::look(connection, &self.shape.schema, &self.shape.table).await?;
        if now.shape.fingerprint() == self.shape.fingerprint() && now.key == self.key {
            return Ok(());
        }
        let message = format!("{} was altered while its rows were read", self.shape);
        Err(Fault::new(Code::TableDiffers, message).remedied_by("nothing: they are read again"))
    }

    /// The statement that reads every row, in no order.
    pub(super) fn every_row(&self) -> String {
        let columns: Vec<String> = self.shape.columns.iter().map(|column| quoted(&column.name)).collect();
        format!("SELECT {} FROM {}", columns.join(", "), self.from())
    }

    /// What rows are read from.
    pub(super) fn from(&self) -> String {
        format!("{}{}", self.only, self.name)
    }

    async fn read_under_snapshot(
        &self,
        connection: &Connection,
        rows: &str,
        bytes_max: usize,
    ) -> Result<Read> {
        let seen = begin_snapshot(connection, &self.from()).await?;
        self.copy_out(connection, rows, bytes_max, seen).await
    }

    async fn copy_out(
        &self,
        connection: &Connection,
        rows: &str,
        bytes_max: usize,
        seen: Snapshot,
    ) -> Result<Read> {
        let failed =
            |error: tokio_postgres::Error| fault_of(&error).at(format_args!("copy rows of {}", self.shape));
        let copied = connection.copy_out(&format!("COPY ({rows}) TO STDOUT")).await.map_err(failed)?;
        let mut copied = pin!(copied);
        let mut texts = Texts::new();
        let mut cut = false;
        while let Some(line) = copied.try_next().await.map_err(failed)? {
            texts.push(&line);
            if texts.bytes > bytes_max as u64 {
                cut = true;
                break;
            }
        }
        let (rows, bytes) = (texts.rows, texts.bytes);
        let texts = texts.into_texts();
        Ok(Read { texts, rows, bytes, seen, cut, half_way: cut, sessions: 1, looked: None })
    }

    /// The key of the last row of some texts.
    pub(super) fn last_key(&self, texts: &[Bytes]) -> Option<Vec<String>> {
        let line = copy_text::lines(texts.last()?).last()?;
        let cells: Vec<Cell> = copy_text::fields(&line).collect();
        let value = |&at: &usize| match cells.get(at) {
            Some(Cell::Value(text)) => String::from_utf8(text.to_vec()).ok(),
            _ => None,
        };
        self.key.iter().map(value).collect::<Option<Vec<_>>>().filter(|key| !key.is_empty())
    }
}

/// The values of a key, as SQL.
fn literals(key: &[String]) -> String {
    key.iter().map(|value| literal(value)).collect::<Vec<_>>().join(", ")
}

/// Ranges and keys are read along their index, whatever the server believes of a table it has not analyzed.
pub(super) const ALONG_THE_INDEX: &str = "SET LOCAL enable_seqscan = off";

/// Begins a transaction that reads everything under one snapshot. Where row security would hide rows, the read fails instead.
pub(super) const BEGIN: &str =
    "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL row_security = off";
/// What that transaction sees.
pub(super) const SNAPSHOT: &str = "SELECT pg_current_snapshot()::text";

/// What [`SNAPSHOT`] says: `xmin:xmax:xip,xip`.
pub(super) fn snapshot_of(text: &str) -> Result<Snapshot> {
    let unreadable = || Fault::new(Code::ProtocolUnknown, format!("read the snapshot `{text}`"));
    let number = |text: &str| text.parse::<u64>().map_err(|error| unreadable().because(error));
    let mut parts = text.split(':');
    let mut part = || parts.next().ok_or_else(unreadable);
    let (low, high, open) = (number(part()?)?, number(part()?)?, part()?);
    let open = open.split(',').filter(|open| !open.is_empty()).map(number).collect::<Result<_>>()?;
    Ok(Snapshot { low, high, open })
}

/// Begins a transaction that will read from a table, which waits while the table is rewritten. The lock before the snapshot:
/// to one that was taken before it, a table that was rewritten meanwhile is empty.
pub(super) fn begin_to_read(from: &str) -> String {
    format!("{BEGIN}; LOCK TABLE {from} IN ACCESS SHARE MODE")
}

/// Begins a transaction that reads a table as of now; gives what it sees.
pub(super) async fn begin_snapshot(connection: &Connection, from: &str) -> Result<Snapshot> {
    let failed = sql("read a table under a snapshot");
    connection.batch_execute(&begin_to_read(from)).await.map_err(&failed)?;
    let row = connection.query_one(SNAPSHOT, &[]).await.map_err(&failed)?;
    snapshot_of(row.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_read_as_the_server_writes_it() {
        let none = Snapshot { low: 731, high: 731, open: Vec::new() };
        assert_eq!(snapshot_of("731:731:").unwrap(), none);
        let two = Snapshot { low: 10, high: 20, open: vec![10, 14] };
        assert_eq!(snapshot_of("10:20:10,14").unwrap(), two);
        assert!(snapshot_of("10:20").is_err() && snapshot_of("10:x:").is_err());
    }
}
