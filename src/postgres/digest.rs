//! What a table holds, told in few bytes: counts and sums of row hashes, computed by the server.
//!
//! A row's hash is the first 64 bits of the SHA-256 of its carried columns as the server prints a row of them, in
//! UTF-8: the same for the same values on every server that prints them the same, which the settings of our
//! connections see to. Hashes are added: two rows that are exchanged, or one that is there twice, do not cancel out
//! as they would under XOR.

use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use super::fault_of;
use crate::{
    fault::{Code, Fault, Result},
    names::{literal, qualified, quoted},
    verify::{Key, Layout, RowHash, Sum, TableName},
};

/// A row as text is cut to so many characters.
const ROW_CHARS: usize = 1_000;

/// A table to be told of.
pub struct Digest<'a> {
    client: &'a Client,
    /// How it is named after `FROM`.
    from: String,
    columns: Vec<String>,
    key: Vec<String>,
    /// The names of both, for a message.
    table: &'a TableName,
}

/// Where a range begins or ends.
type Bound<'a> = Option<&'a Key>;

impl<'a> Digest<'a> {
    /// Of a table laid out like that. A partitioned one is told of with all its partitions, any other without the
    /// tables that inherit from it.
    ///
    /// # Errors
    /// [`Code::TableDiffers`] where it, or one of the columns, is not there.
    pub async fn new(client: &'a Client, table: &'a TableName, layout: &Layout) -> Result<Self> {
        let sql = "SELECT c.relkind = 'p',
                    ARRAY(SELECT n FROM unnest($3::text[]) n
                           WHERE NOT EXISTS (SELECT FROM pg_attribute a
                                              WHERE a.attrelid = c.oid AND a.attname = n AND a.attnum > 0))
               FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace
              WHERE s.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')";
        let found = client.query_opt(sql, &[&table.schema, &table.table, &layout.columns]).await;
        let failed =
            |error: tokio_postgres::Error| fault_of(&error).at(format_args!("look at table {table}"));
        let Some(row) = found.map_err(failed)? else {
            return Err(Fault::new(Code::TableDiffers, format!("there is no table {table}")));
        };
        let lacking: Vec<String> = row.get(1);
        if !lacking.is_empty() {
            let message = format!("table {table} has no column {}", lacking.join(", "));
            return Err(Fault::new(Code::TableDiffers, message));
        }
        let only = if row.get(0) { "" } else { "ONLY " };
        Ok(Self {
            client,
            from: format!("{only}{}", qualified(&table.schema, &table.table)),
            columns: layout.columns.iter().map(|name| quoted(name)).collect(),
            key: layout.key.iter().map(|name| quoted(name)).collect(),
            table,
        })
    }

    /// How it is named behind `FROM`.
    pub fn from(&self) -> &str {
        &self.from
    }

    /// Whether nothing tells its rows apart: its sum is of all of them, and may take long.
    pub fn is_keyless(&self) -> bool {
        self.key.is_empty()
    }

    /// How many rows there are behind `after` and up to `upto`, and the sum of their hashes.
    ///
    /// # Errors
    /// Where the server does not tell.
    pub async fn sum(&self, after: Bound<'_>, upto: Bound<'_>) -> Result<Sum> {
        let sql = format!(
            "SELECT count(*), coalesce(sum({}), 0) FROM {}{}",
            self.hash(),
            self.from,
            self.within(after, upto)
        );
        let rows = self.rows(&sql).await?;
        let cell = |at| rows.first().and_then(|row| row.get(at)).unwrap_or_default();
        let rows = cell(0).parse().map_err(|error| self.garbled().because(error))?;
        Ok(Sum { upto: upto.cloned(), rows, sum: cell(1).to_owned() })
    }

    /// The key of the `count`th row behind `after`; none where there are fewer.
    ///
    /// # Errors
    /// Where the server does not tell.
    pub async fn bound(&self, after: Bound<'_>, count: u32) -> Result<Option<Key>> {
        if self.key.is_empty() {
            return Ok(None);
        }
        let key = self.key.join(", ");
        let sql = format!(
            "SELECT {key} FROM {}{} ORDER BY {key} OFFSET {} LIMIT 1",
            self.from,
            self.within(after, None),
            count.max(1) - 1
        );
        self.rows(&sql).await?.first().map(|row| self.key_of(row)).transpose()
    }

    /// The rows behind `after` and up to `upto`, in the order of their keys, at most `max`.
    ///
    /// # Errors
    /// Where the server does not tell.
    pub async fn rows_within(&self, after: Bound<'_>, upto: Bound<'_>, max: u32) -> Result<Vec<RowHash>> {
        let rest = format!("{} ORDER BY {} LIMIT {max}", self.within(after, upto), self.key.join(", "));
        self.row_hashes(&self.rows(&self.select_hashes(&rest, false)).await?, false)
    }

    /// Those of these rows that there are; with the rows as text, where they are wanted.
    ///
    /// # Errors
    /// Where the server does not tell.
    pub async fn rows_of(&self, keys: &[Key], values: bool) -> Result<Vec<RowHash>> {
        self.row_hashes(&self.rows(&self.select_rows_of(keys, values)).await?, values)
    }

    /// The statement that [`Digest::rows_of`] sends.
    pub fn select_rows_of(&self, keys: &[Key], values: bool) -> String {
        if keys.is_empty() {
            return self.select_hashes(" WHERE false", values);
        }
        let tuple = |key: &Key| format!("({})", literals(key));
        let keys: Vec<String> = keys.iter().map(tuple).collect();
        // One column is looked up for all keys at once, several for each.
        let key = self.key.join(", ");
        self.select_hashes(&format!(" WHERE ({key}) IN ({})", keys.join(", ")), values)
    }

    fn select_hashes(&self, rest: &str, values: bool) -> String {
        let row = if values { format!(", left({}, {ROW_CHARS})", self.row()) } else { String::new() };
        let hash = format!("to_hex({})", self.hash());
        format!("SELECT {}, {hash}{row} FROM {}{rest}", self.key.join(", "), self.from)
    }

    /// What such a statement answered.
    ///
    /// # Errors
    /// It is something else.
    pub fn row_hashes(&self, rows: &[SimpleQueryRow], values: bool) -> Result<Vec<RowHash>> {
        let hash_of = |row: &SimpleQueryRow| {
            let cell = |at: usize| row.get(at).map(str::to_owned);
            let key = self.key_of(row)?;
            let hash = cell(self.key.len()).ok_or_else(|| self.garbled())?;
            Ok(RowHash { key, hash, row: values.then(|| cell(self.key.len() + 1)).flatten() })
        };
        rows.iter().map(hash_of).collect()
    }

    fn key_of(&self, row: &SimpleQueryRow) -> Result<Key> {
        let cell = |at| row.get(at).map(str::to_owned).ok_or_else(|| self.garbled());
        (0..self.key.len()).map(cell).collect()
    }

    fn row(&self) -> String {
        format!("ROW({})::text", self.columns.join(", "))
    }

    fn hash(&self) -> String {
        let row = self.row();
        format!("('x' || left(encode(sha256(convert_to({row}, 'UTF8')), 'hex'), 16))::bit(64)::int8")
    }

    fn within(&self, after: Bound<'_>, upto: Bound<'_>) -> String {
        let key = self.key.join(", ");
        let bound = |is: &str, key_values: &Key| format!("({key}) {is} ({})", literals(key_values));
        let bounds: Vec<String> = after
            .map(|after| bound(">", after))
            .into_iter()
            .chain(upto.map(|upto| bound("<=", upto)))
            .collect();
        if bounds.is_empty() { String::new() } else { format!(" WHERE {}", bounds.join(" AND ")) }
    }

    /// Every row that statements give, in text, whatever the columns' types.
    ///
    /// # Errors
    /// Where the server does not tell.
    pub async fn rows(&self, sql: &str) -> Result<Vec<SimpleQueryRow>> {
        let failed =
            |error: tokio_postgres::Error| fault_of(&error).at(format_args!("compare table {}", self.table));
        let messages = self.client.simple_query(sql).await.map_err(failed)?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        Ok(rows.collect())
    }

    fn garbled(&self) -> Fault {
        Fault::new(Code::Internal, format!("the server told of table {} what was not asked", self.table))
    }
}

fn literals(values: &Key) -> String {
    values.iter().map(|value| literal(value)).collect::<Vec<_>>().join(", ")
}
