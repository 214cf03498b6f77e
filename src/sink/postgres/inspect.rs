//! Looks into the target for whoever verifies, and keeps what was found in schema `landfall`.

use std::{collections::HashMap, future::pending, sync::Arc, time::Duration};

use tokio_postgres::{error::SqlState, types::ToSql};

use super::{PostgresSinkConfig, standing::link_standing};
use crate::{
    fault::{Code, Fault, Result},
    names::{literal, qualified},
    postgres::{Connection, Digest, Lookout, connect, fault_of},
    region::Region,
    scope::Pattern,
    sink::{Comparison, Inspected, Inspector, LinkStanding, Verification},
    stamp::Micros,
    verify::{About, Answer, FINDINGS_MAX, Found, Key, Options, Settled, Sum, TableName},
};

/// What is asked for, and what came of it. Made with the sink's other tables.
pub(super) const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS landfall.verification (
        id text PRIMARY KEY,
        link text NOT NULL,
        stream text NOT NULL,
        state text NOT NULL DEFAULT 'requested',
        patterns text[] NOT NULL,
        range_rows int8 NOT NULL,
        show_values bool NOT NULL,
        mend bool NOT NULL,
        asked_by text,
        unasked bool NOT NULL DEFAULT false,
        max_source_load float8 NOT NULL,
        requested timestamptz NOT NULL DEFAULT now(),
        begun timestamptz,
        ended timestamptz,
        questions int8 NOT NULL DEFAULT 0,
        waits_for text
    );
    COMMENT ON TABLE landfall.verification IS
        'Comparisons of this region with another, as asked for by landfall verify, repair and recover.';
    CREATE TABLE IF NOT EXISTS landfall.verification_table (
        verification text NOT NULL REFERENCES landfall.verification ON DELETE CASCADE,
        place int4 NOT NULL,
        schema_name text NOT NULL,
        table_name text NOT NULL,
        state text NOT NULL DEFAULT 'waiting',
        after text[],
        rows int8 NOT NULL DEFAULT 0,
        ranges int8 NOT NULL DEFAULT 0,
        differences int8 NOT NULL DEFAULT 0,
        why text,
        ended timestamptz,
        PRIMARY KEY (verification, place)
    );
    CREATE TABLE IF NOT EXISTS landfall.verification_finding (
        verification text NOT NULL REFERENCES landfall.verification ON DELETE CASCADE,
        place int4 NOT NULL,
        key text[] NOT NULL,
        difference text NOT NULL,
        here text,
        there text,
        found timestamptz NOT NULL DEFAULT now(),
        mended bool NOT NULL DEFAULT false
    );
    -- By a hash: a key may be longer than an index takes.
    CREATE INDEX IF NOT EXISTS verification_finding_key
        ON landfall.verification_finding (verification, place, hash_array_extended(key, 0));";

/// Ranges in one question: with 2,000 rows each, some ten milliseconds of reading on either side.
const RANGES: u32 = 16;

/// Rows in a range, and the share of the time that is read, where nobody asked.
const UNASKED_RANGE_ROWS: i64 = 2_000;
const UNASKED_LOAD: f64 = 0.1;
/// What was found unasked is kept so long: three times the longest interval.
const KEPT: &str = "90 days";

/// A finding `f` is of the row `g` of table `$2` of verification `$1`.
const SAME_ROW: &str = "f.verification = $1 AND f.place = $2 AND f.key = g.key
                    AND hash_array_extended(f.key, 0) = hash_array_extended(g.key, 0)";

/// Of `landfall.verification v`: it is not over, and it was asked for, or nobody waits for another that was.
const WANTED: &str = "v.state IN ('requested', 'running')
                  AND NOT (v.unasked AND EXISTS (
                          SELECT FROM landfall.verification o
                           WHERE o.link = v.link AND o.stream = v.stream AND NOT o.unasked
                             AND o.state IN ('requested', 'running')))";

/// Why a table is not called equal of which something was parked meanwhile: a change that the other region's reading did not
/// show is in neither then. What was parked before it showed.
const PARKED_MEANWHILE: &str = "some of its rows were parked while it was compared (next: `landfall parked` lists them; compare it again)";

/// How long delivering waits for whoever alters a table that is looked at; it is asked about again then.
const LOCK_TIMEOUT: &str = "500ms";
/// A table is not there, or not ours to read.
const CANNOT_BE_LOCKED: [SqlState; 4] = [
    SqlState::UNDEFINED_TABLE,
    SqlState::INVALID_SCHEMA_NAME,
    SqlState::WRONG_OBJECT_TYPE,
    SqlState::INSUFFICIENT_PRIVILEGE,
];

/// Looks into a Postgres target.
pub struct PostgresInspector {
    config: Arc<PostgresSinkConfig>,
    /// Made when there is something to look for.
    connection: Option<Connection>,
}

fn sql(doing: &'static str) -> impl Fn(tokio_postgres::Error) -> Fault {
    move |error| fault_of(&error).at(doing)
}

/// Why a table that came from there is not compared.
fn not_told(from: &Region, table: &TableName) -> String {
    let (schema, name) = (literal(&table.schema), literal(&table.table));
    format!(
        "rows of it came from {from}, which tells of it no more: it is carried there no more, or rows of it have come \
         there from another region (next: in the region that is its home, here where it is carried there no more, and \
         with both daemons stopped once nothing is under way: DELETE FROM landfall.shape WHERE body ->> 'schema' = {schema} AND \
         body ->> 'table' = {name})"
    )
}

impl PostgresInspector {
    /// For the target and the link of a sink.
    pub fn new(config: PostgresSinkConfig) -> Self {
        Self { config: Arc::new(config), connection: None }
    }

    async fn connection(&mut self) -> Result<&Connection> {
        if self.connection.as_ref().is_none_or(|connection| connection.is_closed()) {
            let application = format!("landfall verify {}/{}", self.config.from, self.config.stream);
            self.connection = Some(connect(&self.config.address, &application).await?);
        }
        Ok(self.connection.as_ref().expect("made above"))
    }

    /// Asks for a verification of every table, where it is time for one.
    async fn ask_unasked(&mut self, interval: Duration) -> Result<()> {
        let (link, stream) = (self.config.from.to_string(), self.config.stream.clone());
        let id = format!("{:08x}", rand::random::<u32>());
        let failed = sql("ask for the next verification");
        let connection = self.connection().await?;
        let ask = "INSERT INTO landfall.verification
                 (id, link, stream, patterns, range_rows, show_values, max_source_load, mend, unasked)
             SELECT $1, $2, $3, '{}', $4, false, $5, false, true
              WHERE NOT EXISTS (SELECT FROM landfall.joining WHERE link = $2 AND stream = $3)
                AND NOT EXISTS (SELECT FROM landfall.verification
                                 WHERE link = $2 AND stream = $3 AND patterns = '{}' AND state <> 'canceled'
                                   AND (requested > now() - $6 * interval '1 second'
                                        OR state IN ('requested', 'running')))";
        let seconds = interval.as_secs_f64();
        let asked = connection
            .execute(ask, &[&id, &link, &stream, &UNASKED_RANGE_ROWS, &UNASKED_LOAD, &seconds])
            .await
            .map_err(&failed)?;
        if asked > 0 {
            let forget = format!(
                "DELETE FROM landfall.verification
                  WHERE link = $1 AND stream = $2 AND unasked AND ended < now() - interval '{KEPT}'"
            );
            connection.execute(&forget, &[&link, &stream]).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Tables that are here, and of which the link has brought rows.
    async fn came(&mut self) -> Result<Vec<TableName>> {
        let (link, stream) = (self.config.from.to_string(), self.config.stream.clone());
        let connection = self.connection().await?;
        // Without `to_regclass`, which fails for whoever may not use the schema.
        let came = "SELECT DISTINCT n.nspname::text, c.relname::text
               FROM landfall.shape s
               JOIN pg_namespace n ON n.nspname = s.body ->> 'schema'
               JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = s.body ->> 'table' AND c.relkind IN ('r', 'p')
              WHERE link = $1 AND stream = $2 ORDER BY 1, 2";
        let rows = connection.query(came, &[&link, &stream]).await;
        let rows = rows.map_err(sql("ask which tables have come"))?;
        Ok(rows.iter().map(|row| TableName { schema: row.get(0), table: row.get(1) }).collect())
    }

    async fn found(&mut self, about: &About, answer: &Answer) -> Result<Found> {
        let (Some(table), Some(layout)) = (about.table(), &answer.layout) else {
            return Ok(Found::Refused("the answer does not say how the table is laid out".to_owned()));
        };
        let filling = "SELECT FROM landfall.joining
                        WHERE link = $1 AND stream = $2 AND schema_name = $3 AND table_name = $4
                          AND mark <> 'stale'";
        let (link, stream) = (self.config.from.to_string(), self.config.stream.clone());
        let address = self.config.address.clone();
        let connection = self.connection().await?;
        let names: [&(dyn ToSql + Sync); 4] = [&link, &stream, &table.schema, &table.table];
        let filling = connection.query_opt(filling, &names).await;
        if filling.map_err(sql("ask whether a table is being filled"))?.is_some() {
            return Ok(Found::Refused("a backfill is filling it: compare it when that is done".to_owned()));
        }
        let digest = Digest::new(connection, table, layout).await?;
        match (about, &answer.found) {
            (About::Sums { after, .. }, Found::Sums(sums)) => {
                let mut after = after.clone();
                let mut here: Vec<Sum> = Vec::with_capacity(sums.len());
                let sum = async {
                    for Sum { upto, .. } in sums {
                        here.push(digest.sum(after.as_ref(), upto.as_ref()).await?);
                        after.clone_from(upto);
                    }
                    Ok(here)
                };
                if !digest.is_keyless() {
                    return sum.await.map(Found::Sums);
                }
                let lookout = Lookout::open(&address, "landfall lookout").await?;
                let summed = lookout.watch((connection, digest.from()), pending(), sum).await?;
                Ok(Found::Sums(summed.expect("nobody gives it up")))
            }
            (About::Rows { after, .. }, Found::Rows { upto, rows }) => {
                // As many more as make it plain that the rest differs too.
                let max = u32::try_from(rows.len()).unwrap_or(u32::MAX).saturating_add(FINDINGS_MAX as u32);
                let rows = digest.rows_within(after.as_ref(), upto.as_ref(), max).await?;
                Ok(Found::Rows { rows, upto: upto.clone() })
            }
            (About::Keys { keys, values, .. }, Found::Keys(_)) => {
                digest.rows_of(keys, *values).await.map(Found::Keys)
            }
            _ => Ok(Found::Refused("the answer is not to what was asked".to_owned())),
        }
    }
}

impl Inspector for PostgresInspector {
    async fn standing(&mut self) -> Result<LinkStanding> {
        let (from, stream) = (self.config.from.clone(), self.config.stream.clone());
        link_standing(self.connection().await?, &from, &stream).await
    }

    async fn take_up(&mut self) -> Result<Option<Verification>> {
        let (link, stream) = (self.config.from.to_string(), self.config.stream.clone());
        if let Some(interval) = self.config.verify_interval {
            self.ask_unasked(interval).await?;
        }
        let connection = self.connection().await?;
        let failed = sql("look for a verification that is asked for");
        let next = "SELECT id, range_rows, show_values, max_source_load, state = 'requested', mend
               FROM landfall.verification
              WHERE link = $1 AND stream = $2 AND state IN ('requested', 'running')
              ORDER BY unasked, requested, id LIMIT 1";
        let Some(row) = connection.query_opt(next, &[&link, &stream]).await.map_err(&failed)? else {
            return Ok(None);
        };
        let id: String = row.get(0);
        let tables = "SELECT place, schema_name, table_name, after,
                    differences - (SELECT count(*) FROM landfall.verification_finding f
                                    WHERE f.verification = t.verification AND f.place = t.place AND mended),
                    state NOT IN ('waiting', 'comparing')
               FROM landfall.verification_table t WHERE verification = $1 ORDER BY place";
        let tables = connection.query(tables, &[&id]).await.map_err(&failed)?;
        let tables = tables.iter().map(|row| Inspected {
            place: row.get(0),
            table: TableName { schema: row.get(1), table: row.get(2) },
            after: row.get(3),
            differences: row.get::<_, i64>(4).unsigned_abs(),
            done: row.get(5),
        });
        let tables = (!row.get::<_, bool>(4)).then(|| tables.collect());
        let range_rows = u32::try_from(row.get::<_, i64>(1)).unwrap_or(u32::MAX).max(1);
        let options = Options { range_rows, ranges: RANGES, values: row.get(2) };
        Ok(Some(Verification { id, options, max_source_load: row.get(3), mend: row.get(5), tables }))
    }

    async fn begin(&mut self, id: &str, carried: &[TableName]) -> Result<Vec<(TableName, String)>> {
        let from = self.config.from.clone();
        let came = self.came().await?;
        let connection = self.connection().await?;
        let failed = sql("note which tables are compared");
        let wanted = "SELECT patterns FROM landfall.verification WHERE id = $1";
        let row = connection.query_one(wanted, &[&id]).await.map_err(&failed)?;
        let patterns: Vec<String> = row.get(0);
        let patterns: Vec<Pattern> = patterns.iter().filter_map(|text| text.parse().ok()).collect();
        let matches = |pattern: &Pattern, table: &TableName| pattern.matches(&table.schema, &table.table);
        let wanted = |table: &&TableName| {
            patterns.is_empty() || patterns.iter().any(|pattern| matches(pattern, table))
        };
        let ours = "SELECT schema_name, table_name, why FROM landfall.verification_table
                     WHERE verification = $1 AND place < 0";
        let ours = connection.query(ours, &[&id]).await.map_err(&failed)?;
        let ours: HashMap<TableName, String> = ours
            .iter()
            .map(|row| (TableName { schema: row.get(0), table: row.get(1) }, row.get(2)))
            .collect();
        let (kept, tables): (Vec<TableName>, Vec<TableName>) =
            carried.iter().filter(wanted).cloned().partition(|table| ours.contains_key(table));
        // Whoever reads that all is equal takes what came from there to be, told of or not.
        let came = came.iter().filter(wanted).filter(|table| !carried.contains(table));
        let mut untold: Vec<(TableName, String)> =
            came.map(|table| (table.clone(), not_told(&from, table))).collect();
        untold.extend(kept.into_iter().filter_map(|table| Some((table.clone(), ours.get(&table)?.clone()))));
        for pattern in &patterns {
            let known = tables.iter().chain(untold.iter().map(|(table, _)| table));
            if !known.into_iter().any(|table| matches(pattern, table)) {
                let named = pattern.as_table().or_else(|| pattern.as_str().rsplit_once('.'));
                let (schema, table) = named.expect("two parts");
                let why = format!(
                    "{from} has no such table to tell of: it carries none, or its rows come from another region"
                );
                untold.push((TableName { schema: schema.to_owned(), table: table.to_owned() }, why));
            }
        }
        let all = || tables.iter().chain(untold.iter().map(|(table, _)| table));
        let schemas: Vec<&str> = all().map(|table| table.schema.as_str()).collect();
        let names: Vec<&str> = all().map(|table| table.table.as_str()).collect();
        let whys: Vec<Option<&str>> =
            tables.iter().map(|_| None).chain(untold.iter().map(|(_, why)| Some(why.as_str()))).collect();
        let begun = "WITH ours AS (DELETE FROM landfall.verification_table WHERE verification = $1 AND place < 0),
             tables AS (
                 INSERT INTO landfall.verification_table (verification, place, schema_name, table_name, why, state, ended)
                 SELECT $1, row_number() OVER () - 1, s, t, w,
                        CASE WHEN w IS NULL THEN 'waiting' ELSE 'unknown' END, CASE WHEN w IS NOT NULL THEN now() END
                   FROM unnest($2::text[], $3::text[], $4::text[]) u (s, t, w))
             UPDATE landfall.verification SET state = 'running', begun = now(), waits_for = NULL
              WHERE id = $1 AND state = 'requested'";
        connection.execute(begun, &[&id, &schemas, &names, &whys]).await.map_err(failed)?;
        Ok(untold)
    }

    async fn hold(&mut self, table: &TableName) -> Result<()> {
        let connection = self.connection().await?;
        // The lock before the snapshot: to one that was taken before it, a table that was rewritten meanwhile is empty.
        let lock = format!("LOCK TABLE {} IN ACCESS SHARE MODE;", qualified(&table.schema, &table.table));
        let begin = |lock: &str| {
            format!(
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL row_security = off;
                 SET LOCAL enable_seqscan = off; SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'; {lock} SELECT 1"
            )
        };
        let held = match connection.batch_execute(&begin(&lock)).await {
            // Who looks at it says so.
            Err(error) if error.code().is_some_and(|state| CANNOT_BE_LOCKED.contains(state)) => {
                connection.batch_execute(&format!("ROLLBACK; {}", begin(""))).await
            }
            held => held,
        };
        if held.is_err() {
            self.connection = None;
        }
        held.map_err(|error| fault_of(&error).at(format_args!("hold on to what is in table {table}")))
    }

    async fn look(&mut self, about: &About, answer: &Answer) -> Result<Found> {
        let found = self.found(about, answer).await;
        let ended = match &self.connection {
            // A statement of one that failed may still run.
            Some(connection) if found.is_ok() => connection.batch_execute("ROLLBACK").await.is_ok(),
            _ => false,
        };
        if !ended {
            self.connection = None;
        }
        match found {
            Err(fault) if matches!(fault.code(), Code::DatabaseUnreachable | Code::DatabaseRefused) => {
                Err(fault)
            }
            Err(fault) => Ok(Found::Refused(format!(
                "[{}] {} (next: {})",
                fault.code(),
                fault.message(),
                fault.remedy()
            ))),
            found => found,
        }
    }

    async fn keep(
        &mut self,
        id: &str,
        table: &Inspected,
        settled: &Settled,
        comparison: &Comparison,
    ) -> Result<()> {
        let connection = self.connection().await?;
        let (state, why) = match comparison {
            Comparison::GoesOn => (Some("comparing"), None),
            Comparison::Ended => (None, None),
            Comparison::Enough => {
                (Some("different"), Some("so many rows differ that the rest was not compared"))
            }
            Comparison::GivenUp(why) => (Some("unknown"), Some(why.as_str())),
        };
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let findings = &settled.findings;
        // Arrays of arrays must be even: a key travels as JSON.
        let keys: Vec<String> =
            findings.iter().map(|it| serde_json::to_string(&it.key).expect("a key is text")).collect();
        let differences: Vec<&str> = findings.iter().map(|it| it.difference.as_str()).collect();
        let here: Vec<Option<&str>> = findings.iter().map(|it| it.here.as_deref()).collect();
        let there: Vec<Option<&str>> = findings.iter().map(|it| it.there.as_deref()).collect();
        // One that is found again, since its ranges are compared again, counts once.
        let keep = format!(
            "WITH given AS (
                 SELECT ARRAY(SELECT jsonb_array_elements_text(k::jsonb)) AS key, d, h, t
                   FROM unnest($8::text[], $9::text[], $10::text[], $11::text[]) g (k, d, h, t)),
             again AS (
                 UPDATE landfall.verification_finding f
                    SET difference = g.d, here = g.h, there = g.t, mended = false
                   FROM given g WHERE {SAME_ROW}),
             new AS (
                 INSERT INTO landfall.verification_finding (verification, place, key, difference, here, there)
                 SELECT $1, $2, key, d, h, t FROM given g
                  WHERE NOT EXISTS (SELECT FROM landfall.verification_finding f WHERE {SAME_ROW})
                 RETURNING 1),
             new_rows AS (SELECT count(*) AS number FROM new),
             aside AS (
                 SELECT EXISTS (
                     SELECT FROM landfall.verification v
                       JOIN landfall.parked p ON p.link = v.link AND p.stream = v.stream AND p.parked >= v.begun
                       JOIN landfall.parked_row r ON r.parked = p.id AND NOT r.overtaken
                      WHERE v.id = $1 AND r.schema_name = $12 AND r.table_name = $13) AS parked)
             UPDATE landfall.verification_table
                SET after = coalesce($3, after), rows = rows + $4, ranges = ranges + $5,
                    differences = differences + number,
                    why = coalesce($7, why, CASE WHEN $6::text IS NULL AND differences + number = 0 AND parked
                                                 THEN $14 END),
                    state = coalesce($6, CASE WHEN differences + number > 0 THEN 'different'
                                              WHEN parked THEN 'unknown' ELSE 'equal' END),
                    ended = CASE WHEN $6 = 'comparing' THEN NULL ELSE now() END
               FROM new_rows, aside
              WHERE verification = $1 AND place = $2"
        );
        let (rows, ranges) = (number(settled.rows), number(settled.ranges));
        let parameters: [&(dyn ToSql + Sync); 14] = [
            &id,
            &table.place,
            &settled.through,
            &rows,
            &ranges,
            &state,
            &why,
            &keys,
            &differences,
            &here,
            &there,
            &table.table.schema,
            &table.table.table,
            &PARKED_MEANWHILE,
        ];
        connection.execute(&keep, &parameters).await.map(drop).map_err(sql("keep what was compared"))
    }

    async fn mended(&mut self, id: &str, table: &Inspected, keys: &[Key]) -> Result<()> {
        let connection = self.connection().await?;
        let keys: Vec<String> =
            keys.iter().map(|key| serde_json::to_string(key).expect("a key is text")).collect();
        let mended = format!(
            "UPDATE landfall.verification_finding f SET mended = true
               FROM (SELECT ARRAY(SELECT jsonb_array_elements_text(k::jsonb)) AS key FROM unnest($3::text[]) u (k)) g
              WHERE {SAME_ROW}"
        );
        let noted = connection.execute(&mended, &[&id, &table.place, &keys]).await;
        noted.map(drop).map_err(sql("note which rows are mended"))
    }

    async fn is_wanted(&mut self, id: &str) -> Result<bool> {
        let connection = self.connection().await?;
        let wanted = format!("SELECT FROM landfall.verification v WHERE id = $1 AND {WANTED}");
        let wanted = connection.query_opt(&wanted, &[&id]).await;
        wanted.map(|row| row.is_some()).map_err(sql("ask whether a verification is wanted"))
    }

    async fn goes_on(&mut self, id: &str) -> Result<()> {
        let connection = self.connection().await?;
        let count = "UPDATE landfall.verification SET questions = questions + 1 WHERE id = $1";
        connection.execute(count, &[&id]).await.map(drop).map_err(sql("count that a verification goes on"))
    }

    fn let_go(&mut self) {
        self.connection = None;
    }

    async fn wait_for(&mut self, id: &str, why: Option<&str>) -> Result<bool> {
        let connection = self.connection().await?;
        let say = format!("UPDATE landfall.verification v SET waits_for = $2 WHERE id = $1 AND {WANTED}");
        let said = connection.execute(&say, &[&id, &why]).await;
        said.map(|count| count > 0).map_err(sql("say what a verification waits for"))
    }

    async fn last_clean(&mut self) -> Result<Option<Micros>> {
        let (link, stream) = (self.config.from.to_string(), self.config.stream.clone());
        let connection = self.connection().await?;
        let clean = "SELECT (extract(epoch FROM max(ended)) * 1000000)::int8 FROM landfall.verification v
              WHERE link = $1 AND stream = $2 AND state = 'done' AND patterns = '{}'
                AND NOT EXISTS (SELECT FROM landfall.verification_table t
                                 WHERE t.verification = v.id AND t.state <> 'equal')";
        let row = connection.query_one(clean, &[&link, &stream]).await;
        row.map(|row| row.get::<_, Option<i64>>(0).map(Micros)).map_err(sql("ask when all was equal"))
    }

    async fn end(&mut self, id: &str) -> Result<()> {
        let connection = self.connection().await?;
        let end = "UPDATE landfall.verification SET state = 'done', ended = now(), waits_for = NULL
                    WHERE id = $1 AND state = 'running'";
        connection.execute(end, &[&id]).await.map(drop).map_err(sql("end a verification"))
    }
}
