//! What is written at the source, and how its arrival is known.
//!
//! Every workload writes twice: a lead-in of a twentieth, then the measured rest. Each part ends in a
//! sentinel, a row of the workload's main table whose arrival means that everything before it has arrived;
//! rates are taken between the two, so that no contender's start-up counts.

use anyhow::{Context, Result};
use tokio_postgres::Client;

use testbed::Postgres;

/// Accounts that updates choose from.
const ACCOUNTS: u64 = 300_000;

/// A kind of load.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Its name in figures.
    pub name: &'static str,
    /// What it is, for people.
    pub about: &'static str,
    /// Its tables; the first is the main one.
    pub tables: &'static [&'static str],
    /// Makes and fills the tables, on every side.
    pub setup: fn() -> String,
    /// How many rows change in a full run.
    pub rows: u64,
    /// Rows changed by one transaction.
    pub rows_per_transaction: u64,
    /// Writes so many transactions, the first of this number; leaves the sentinel.
    write: fn(first: u64, transactions: u64) -> String,
    /// Whether what is written up to this transaction has arrived.
    arrived: fn(last: u64) -> String,
}

const ORDERS: &str = "create table orders (id int8 primary key, customer int4 not null, amount int8 not null,
    status text not null, note text, at timestamptz not null default now())";

/// What a row of `orders` is made of: short words, a number or two, a sentence, a time.
const ORDER: &str =
    "g, (g::int8 * 7919 % 100000)::int4, g::int8 * 31 % 1000000, (array['new','paid','packed','sent'])[1 + g % 4],
    'order ' || g || ' of customer ' || (g::int8 * 7919 % 100000) || ', packed by hand', now()";

fn one_by_one(statement: &str, first: u64, transactions: u64) -> String {
    let last = first + transactions - 1;
    // `k` is for whoever needs one account at random: in a WHERE clause, random() is asked for each row.
    format!(
        "do $$ declare k int8; begin for g in {first}..{last} loop k := 1 + floor(random() * {ACCOUNTS})::int8;
             {statement}; commit; end loop; end $$"
    )
}

fn order_there(last: u64) -> String {
    format!("select exists(select from orders where id = {last})")
}

fn accounts() -> String {
    format!(
        "create table accounts (id int8 primary key, balance int8 not null, filler text not null);
         insert into accounts select g, 0, repeat('filler ', 12) from generate_series(0, {ACCOUNTS}) g"
    )
}

fn account_moved(last: u64) -> String {
    format!("select balance >= {last} from accounts where id = 0")
}

/// Every workload, in the order they are run.
pub const ALL: &[Workload] = &[
    Workload {
        name: "insert-1",
        about: "transactions that insert one row",
        tables: &["orders"],
        setup: || ORDERS.to_owned(),
        rows: 300_000,
        rows_per_transaction: 1,
        write: |first, transactions| {
            one_by_one(&format!("insert into orders select {ORDER}"), first, transactions)
        },
        arrived: order_there,
    },
    Workload {
        name: "insert-1000",
        about: "transactions that insert 1000 rows",
        tables: &["orders"],
        setup: || ORDERS.to_owned(),
        rows: 1_000_000,
        rows_per_transaction: 1000,
        write: |first, transactions| {
            let statement = format!(
                "insert into orders select {ORDER} from generate_series((t - 1) * 1000 + 1, t * 1000) g"
            );
            let last = first + transactions - 1;
            format!("do $$ begin for t in {first}..{last} loop {statement}; commit; end loop; end $$")
        },
        arrived: |last| order_there(last * 1000),
    },
    Workload {
        name: "update-1",
        about: "transactions that update one row by its key, at random",
        tables: &["accounts"],
        setup: accounts,
        rows: 300_000,
        rows_per_transaction: 1,
        write: |first, transactions| {
            let random = "update accounts set balance = balance + 1 where id = k";
            let last = first + transactions - 1;
            format!(
                "{}; update accounts set balance = {last} where id = 0",
                one_by_one(random, first, transactions - 1)
            )
        },
        arrived: account_moved,
    },
    Workload {
        name: "pgbench-n",
        about: "pgbench -N: one update and one insert a transaction",
        tables: &["accounts", "history"],
        setup: || {
            format!(
                "{}; create table history (id int8 primary key, account int8 not null, delta int4 not null,
                     at timestamptz not null, filler char(22))",
                accounts()
            )
        },
        rows: 400_000,
        rows_per_transaction: 2,
        write: |first, transactions| {
            let statement = "update accounts set balance = balance + 1 where id = k;
                 insert into history values (g, k, (g % 97)::int4, now(), '')";
            let last = first + transactions - 1;
            format!(
                "{}; begin; insert into history values ({last}, 0, 0, now(), '');
                 update accounts set balance = {last} where id = 0; commit",
                one_by_one(statement, first, transactions - 1)
            )
        },
        arrived: |last| {
            format!(
                "select exists(select from history where id = {last})
                    and (select balance >= {last} from accounts where id = 0)"
            )
        },
    },
    Workload {
        name: "wide-100",
        about: "transactions that insert one row of 100 columns",
        tables: &["wide"],
        setup: || {
            // With a scale: a `numeric` without one stops Debezium's sink (its array writer sends a struct's name).
            let types = ["int4", "text", "timestamptz", "numeric(20, 2)"];
            let columns: Vec<String> =
                (1..100).map(|at| format!("c{at} {} not null", types[at % 4])).collect();
            format!("create table wide (id int8 primary key, {})", columns.join(", "))
        },
        rows: 60_000,
        rows_per_transaction: 1,
        write: |first, transactions| {
            let values: Vec<String> = (1..100)
                .map(|at| match at % 4 {
                    0 => format!("(g::int8 * {at} % 100000)::int4"),
                    1 => format!("'value ' || (g + {at})"),
                    2 => "now()".to_owned(),
                    _ => format!("g::int8 * {at} / 100.0"),
                })
                .collect();
            one_by_one(&format!("insert into wide select g, {}", values.join(", ")), first, transactions)
        },
        arrived: |last| format!("select exists(select from wide where id = {last})"),
    },
    Workload {
        name: "row-2k",
        about: "transactions that insert one row of 2 KB that compresses badly",
        tables: &["documents"],
        setup: || "create table documents (id int8 primary key, body text not null)".to_owned(),
        rows: 120_000,
        rows_per_transaction: 1,
        write: |first, transactions| {
            let body = "(select string_agg(md5(g || ' ' || part), '') from generate_series(1, 62) part)";
            one_by_one(&format!("insert into documents select g, {body}"), first, transactions)
        },
        arrived: |last| format!("select exists(select from documents where id = {last})"),
    },
    Workload {
        name: "giant",
        about: "one transaction that inserts five million rows",
        tables: &["orders"],
        setup: || ORDERS.to_owned(),
        rows: 5_000_000,
        rows_per_transaction: 5_000_000,
        write: |first, _| {
            format!(
                "insert into orders select {ORDER} from generate_series(({first}::int8 - 1) * 5000000 + 1, {first}::int8 * 5000000) g"
            )
        },
        arrived: |last| order_there(last * 5_000_000),
    },
];

/// How far a workload's writing has come, over all rounds.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// The last transaction of the lead-in.
    pub lead_in: u64,
    /// The last transaction of all.
    pub last: u64,
    /// Where the source's log stood after each.
    pub lead_in_lsn: u64,
    /// And at the end.
    pub last_lsn: u64,
    /// Rows between the two.
    pub rows: u64,
    /// Rows with the lead-in.
    pub all_rows: u64,
}

impl Written {
    /// Whether anything stands before the rows that are timed: else starting up is timed with them.
    pub fn has_lead_in(&self) -> bool {
        self.rows < self.all_rows
    }
}

impl Workload {
    /// Writes `rows` rows after `before` transactions, the lead-in first.
    pub async fn write(&self, client: &Client, before: u64, rows: u64) -> Result<Written> {
        let all = (rows / self.rows_per_transaction).max(1);
        // A single transaction has none.
        let lead_in = if all == 1 { 0 } else { (all / 20).max(2) };
        // The writer is no part of what is measured.
        client.batch_execute("set synchronous_commit = off").await?;
        let mut lsns = [0; 2];
        for (at, (first, transactions)) in
            [(before + 1, lead_in), (before + lead_in + 1, all - lead_in)].into_iter().enumerate()
        {
            if transactions > 0 {
                for statement in [(self.write)(first, transactions)].iter().flat_map(|sql| split(sql)) {
                    client.batch_execute(statement).await.with_context(|| format!("write {}", self.name))?;
                }
            }
            lsns[at] = lsn(client).await?;
        }
        // What is not flushed is not sent.
        client
            .batch_execute("set synchronous_commit = on; select pg_logical_emit_message(true, 'bench', '')")
            .await?;
        Ok(Written {
            lead_in: before + lead_in,
            last: before + all,
            lead_in_lsn: lsns[0],
            last_lsn: lsns[1],
            rows: (all - lead_in) * self.rows_per_transaction,
            all_rows: all * self.rows_per_transaction,
        })
    }

    /// The query that is true once this transaction has arrived.
    pub fn arrived(&self, transaction: u64) -> String {
        (self.arrived)(transaction)
    }

    /// Requires a database at the source and one at the target to hold the same rows.
    pub async fn require_equal(
        &self,
        (source, from): (&Postgres, &str),
        (target, database): (&Postgres, &str),
    ) -> Result<()> {
        for table in self.tables {
            let sql = format!(
                "select count(*) || ' rows, hash ' || coalesce(sum(hashtextextended(t::text, 0)), 0) from {table} t"
            );
            let (here, there) =
                tokio::try_join!(source.query_text(from, &sql), target.query_text(database, &sql))?;
            anyhow::ensure!(here == there, "{table}: the source has {here:?}, {database} has {there:?}");
        }
        Ok(())
    }
}

/// A `DO` block that commits must be a statement of its own.
fn split(sql: &str) -> Vec<&str> {
    match sql.rsplit_once("end $$; ") {
        Some((block, rest)) => vec![&sql[..block.len() + "end $$".len()], rest],
        None => vec![sql],
    }
}

async fn lsn(client: &Client) -> Result<u64> {
    let row = client.query_one("select (pg_current_wal_insert_lsn() - '0/0')::int8", &[]).await?;
    Ok(row.get::<_, i64>(0).cast_unsigned())
}
