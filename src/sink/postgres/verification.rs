//! What is asked of an inspector, and what it found, for whoever asks: rows of `landfall.verification` and of the
//! tables beside it. The daemon that applies the link does the work.

use serde::Serialize;
use tokio_postgres::{Client, Row, types::ToSql};

use crate::{
    fault::{Code, Fault, Result},
    position::{Incarnation, Sequence, WriterEpoch},
    postgres::fault_of,
    region::Region,
    scope::{Pattern, Scope},
    verify::TableName,
};

/// With its last table a link's recovery is over.
pub(super) const END_RECOVERY: &str = "DELETE FROM landfall.recovery
      WHERE link = $1 AND stream = $2 AND NOT EXISTS (
            SELECT FROM landfall.joining j WHERE j.link = $1 AND j.stream = $2 AND j.mark = 'stale')";

/// What somebody wants compared.
#[derive(Clone, Debug)]
pub struct Request {
    /// The tables; every one that is carried, where none is named.
    pub tables: Vec<Pattern>,
    /// Rows in a range, about.
    pub range_rows: u32,
    /// Whether findings are to show the rows.
    pub values: bool,
    /// The share of the time that may be spent reading, above 0 and at most 1.
    pub max_source_load: f64,
    /// Whether rows that differ are put right.
    pub mend: bool,
    /// Tables that are left as they are, whatever the other region tells of them.
    pub ours: Vec<TableName>,
    /// Who asks, for whoever reads later what was asked.
    pub by: String,
}

/// A verification, and how far it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verified {
    /// Its name.
    pub id: String,
    /// The region compared with.
    pub from: String,
    /// Its stream.
    pub stream: String,
    /// `requested`, `running`, `done` or `canceled`.
    pub state: String,
    /// What it waits for, where it does not go on by itself.
    pub waits_for: Option<String>,
    /// As `questions`, of another verification of the link, which is in hand while this one waits for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub behind: Option<u64>,
    /// Questions answered so far, and moments of rest: it goes on as long as this rises.
    pub questions: u64,
    /// Its tables, in the order they are compared; none before they are known.
    pub tables: Vec<TableVerified>,
}

/// A table, and how far it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TableVerified {
    /// `schema.table`.
    pub table: String,
    /// `waiting`, `comparing`, `equal`, `different`, `mended` or `unknown`.
    pub state: String,
    /// Rows there, in the ranges compared.
    pub rows: u64,
    /// Ranges compared.
    pub ranges: u64,
    /// Rows that differ, or did,
    pub differences: u64,
    /// those of them that were put right,
    pub mended: u64,
    /// and those that changed each time they were looked at.
    pub unsure: u64,
    /// Why it, or the rest of it, was not compared.
    pub why: Option<String>,
    /// The rows that differ, as many as were asked for.
    pub findings: Vec<Listed>,
}

/// A row that differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Listed {
    /// Its key; empty where nothing tells the table's rows apart.
    pub key: Vec<String>,
    /// `missing`, `extra`, `different` or `unsure`.
    pub difference: String,
    /// What is here, where it was asked for; of a table without a key, how many rows.
    pub here: Option<String>,
    /// The same of what is there.
    pub there: Option<String>,
    /// It was put right.
    pub mended: bool,
}

impl Verified {
    /// Whether it is over, one way or the other.
    pub fn is_over(&self) -> bool {
        matches!(self.state.as_str(), "done" | "canceled")
    }
}

fn sql(doing: &'static str) -> impl Fn(tokio_postgres::Error) -> Fault {
    move |error| fault_of(&error).at(doing)
}

/// Requires that a daemon applies the link now.
///
/// # Errors
/// [`Code::NotServed`] where none does.
pub async fn require_daemon(client: &Client, from: &Region, stream: &str) -> Result<()> {
    require_tables(client, from, stream).await?;
    if standing(client, from, stream).await?.served { Ok(()) } else { Err(not_served(from, stream)) }
}

/// Asks for a verification; gives its name.
///
/// # Errors
/// Where the server does not answer, or the role may not.
pub async fn request(client: &Client, from: &Region, stream: &str, request: &Request) -> Result<String> {
    let id = format!("{:08x}", rand::random::<u32>());
    let patterns: Vec<&str> = request.tables.iter().map(Pattern::as_str).collect();
    let ask = "WITH asked AS (
             INSERT INTO landfall.verification
                    (id, link, stream, patterns, range_rows, show_values, max_source_load, mend, asked_by)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9))
         INSERT INTO landfall.verification_table (verification, place, schema_name, table_name, state, why)
         SELECT $1, -row_number() OVER (), s, t, 'unknown', $12 FROM unnest($10::text[], $11::text[]) u (s, t)";
    let schemas: Vec<&str> = request.ours.iter().map(|table| table.schema.as_str()).collect();
    let names: Vec<&str> = request.ours.iter().map(|table| table.table.as_str()).collect();
    let why = format!(
        "nothing tells which region has its rows: it is published here as well, and none has come from {from}. Where {from} \
         has them, name it with --table"
    );
    let rows = i64::from(request.range_rows);
    let load = request.max_source_load;
    client
        .execute(
            ask,
            &[
                &id,
                &from.as_str(),
                &stream,
                &patterns,
                &rows,
                &request.values,
                &load,
                &request.mend,
                &request.by,
                &schemas,
                &names,
                &why,
            ],
        )
        .await
        .map_err(sql("ask for a verification"))?;
    Ok(id)
}

/// How far a verification is, with at most `findings` rows of each table that differ; none where there is no note of
/// it any more.
///
/// # Errors
/// Where the server does not answer, or the role may not.
pub async fn look(client: &Client, id: &str, findings: u32) -> Result<Option<Verified>> {
    let failed = sql("read how far a verification is");
    let verification = "SELECT link, stream, state,
                CASE WHEN before.questions IS NOT NULL THEN 'another verification of this link' ELSE waits_for END,
                v.questions, before.questions
           FROM landfall.verification v
           LEFT JOIN LATERAL (
                    SELECT sum(o.questions)::int8 AS questions FROM landfall.verification o
                     WHERE v.state = 'requested' AND o.link = v.link AND o.stream = v.stream
                       AND o.state = 'running' AND NOT o.unasked) before ON true
          WHERE id = $1";
    let Some(row) = client.query_opt(verification, &[&id]).await.map_err(&failed)? else { return Ok(None) };
    let tables = "SELECT place, schema_name || '.' || table_name, state, rows, ranges, differences, why,
                coalesce(f.mended, 0), coalesce(f.unsure, 0)
           FROM landfall.verification_table t
           LEFT JOIN LATERAL (
                    SELECT count(*) FILTER (WHERE mended) AS mended,
                           count(*) FILTER (WHERE difference = 'unsure' AND NOT mended) AS unsure
                      FROM landfall.verification_finding f
                     WHERE f.verification = t.verification AND f.place = t.place) f ON true
          WHERE verification = $1 AND place >= 0 ORDER BY place";
    let tables = client.query(tables, &[&id]).await.map_err(&failed)?;
    let found = "SELECT place, key, difference, here, there, mended FROM (
               SELECT *, row_number() OVER (PARTITION BY place ORDER BY found, key) AS at
                 FROM landfall.verification_finding WHERE verification = $1) f
          WHERE at <= $2 ORDER BY place, at";
    let found = client.query(found, &[&id, &i64::from(findings)]).await.map_err(&failed)?;
    let number = |number: i64| number.max(0).unsigned_abs();
    let tables = tables.iter().map(|row| {
        let place: i32 = row.get(0);
        let (state, differences, mended): (&str, _, _) = (row.get(2), number(row.get(5)), number(row.get(7)));
        let why: Option<String> = row.get(6);
        // Of rows that nobody looked at it is not known.
        let all_mended = state == "different" && mended == differences && why.is_none();
        let listed = found.iter().filter(|finding| finding.get::<_, i32>(0) == place);
        TableVerified {
            table: row.get(1),
            state: if all_mended { "mended" } else { state }.to_owned(),
            rows: number(row.get(3)),
            ranges: number(row.get(4)),
            differences,
            mended,
            unsure: number(row.get(8)),
            why,
            findings: listed
                .map(|row| Listed {
                    key: row.get(1),
                    difference: row.get(2),
                    here: row.get(3),
                    there: row.get(4),
                    mended: row.get(5),
                })
                .collect(),
        }
    });
    Ok(Some(Verified {
        id: id.to_owned(),
        from: row.get(0),
        stream: row.get(1),
        state: row.get(2),
        waits_for: row.get(3),
        behind: row.get::<_, Option<i64>>(5).map(number),
        questions: number(row.get(4)),
        tables: tables.collect(),
    }))
}

/// Ends a verification that is not over.
///
/// # Errors
/// Where the server does not answer, or the role may not.
pub async fn cancel(client: &Client, id: &str) -> Result<()> {
    let cancel = "UPDATE landfall.verification SET state = 'canceled', ended = now(), waits_for = NULL
                   WHERE id = $1 AND state IN ('requested', 'running')";
    client.execute(cancel, &[&id]).await.map(drop).map_err(sql("end a verification"))
}

/// Tables whose rows may be older than the place their link stands at.
#[derive(Clone, Debug, PartialEq)]
pub struct Stale {
    /// The tables, in the order of their names.
    pub tables: Vec<TableName>,
    /// Those a backfill is filling, or is to fill: what they hold is not looked at.
    pub filling: Vec<TableName>,
}

/// Which tables may be stale.
///
/// # Errors
/// Where the server does not answer, or the role may not.
pub async fn stale(client: &Client, from: &Region, stream: &str) -> Result<Stale> {
    let joining = "SELECT schema_name, table_name, mark = 'stale'
                     FROM landfall.joining WHERE link = $1 AND stream = $2 ORDER BY 1, 2";
    let rows = client.query(joining, &[&from.as_str(), &stream]).await;
    let rows = rows.map_err(sql("read which tables may be stale"))?;
    let (stale, filling): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.get(2));
    let names = |rows: &[&Row]| {
        rows.iter().map(|row| TableName { schema: row.get(0), table: row.get(1) }).collect::<Vec<_>>()
    };
    Ok(Stale { tables: names(&stale), filling: names(&filling) })
}

/// How a link stands here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    /// The offset of the last record applied; none where nothing is.
    pub applied: Option<i64>,
    /// Whether a daemon applies it now.
    pub served: bool,
    /// Tables that have come by it,
    pub tables: u64,
    /// and the bytes they take on disk here.
    pub bytes: u64,
}

/// How a link stands.
///
/// # Errors
/// Where the server does not answer, or the role may not.
pub async fn standing(client: &Client, from: &Region, stream: &str) -> Result<Standing> {
    let failed = sql("read how a link stands");
    let parameters: [&(dyn ToSql + Sync); 2] = [&from.as_str(), &stream];
    let progress = "SELECT kafka_offset, incarnation IS NOT NULL, EXISTS (
                    SELECT FROM pg_stat_activity a WHERE a.pid = p.session_pid AND a.backend_start = p.session_start)
           FROM landfall.progress p WHERE link = $1 AND stream = $2 ORDER BY lane LIMIT 1";
    let progress = client.query_opt(progress, &parameters).await.map_err(&failed)?;
    let size = "SELECT count(*), coalesce(sum(pg_table_size(t)), 0)::int8
           FROM (SELECT DISTINCT c.oid::regclass AS t
                   FROM landfall.shape s
                   JOIN pg_namespace n ON n.nspname = s.body ->> 'schema'
                   JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = s.body ->> 'table' AND c.relkind IN ('r', 'p')
                  WHERE link = $1 AND stream = $2) s";
    let size = client.query_one(size, &parameters).await.map_err(&failed)?;
    Ok(Standing {
        applied: progress.as_ref().filter(|row| row.get(1)).map(|row| row.get(0)),
        served: progress.is_some_and(|row| row.get(2)),
        tables: size.get::<_, i64>(0).unsigned_abs(),
        bytes: size.get::<_, i64>(1).unsigned_abs(),
    })
}

/// Lets a link go on where its source is now. The sink takes it back with the commit that settles the last table.
///
/// # Errors
/// Where the server does not answer, or the role may not.
pub async fn allow_recovery(client: &Client, from: &Region, stream: &str) -> Result<()> {
    let allow = "INSERT INTO landfall.recovery (link, stream) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    let allowed = client.execute(allow, &[&from.as_str(), &stream]).await;
    allowed.map(drop).map_err(sql("let a link be recovered"))
}

/// The tables this region's own stream carries, and of which no row has come by the link.
///
/// # Errors
/// Where the server does not answer, or the role may not.
pub async fn published_only_by_us(
    client: &Client,
    from: &Region,
    (publication, scope): (&str, &Scope),
) -> Result<Vec<TableName>> {
    let ours = "SELECT schemaname::text, tablename::text FROM pg_publication_tables p
                 WHERE pubname = $1 AND NOT EXISTS (
                       SELECT FROM landfall.shape
                        WHERE link = $2 AND body ->> 'schema' = schemaname AND body ->> 'table' = tablename)";
    let rows = client.query(ours, &[&publication, &from.as_str()]).await;
    let rows = rows.map_err(sql("ask which tables are this region's own"))?;
    let ours = rows.iter().map(|row| TableName { schema: row.get(0), table: row.get(1) });
    Ok(ours.filter(|table| scope.holds(&table.schema, &table.table)).collect())
}

/// A recovery is over, where no table may be stale any more.
///
/// # Errors
/// Where the server does not answer, or the role may not.
pub async fn end_recovery(client: &Client, from: &Region, stream: &str) -> Result<()> {
    let ended = client.execute(END_RECOVERY, &[&from.as_str(), &stream]).await;
    ended.map(drop).map_err(sql("end a recovery"))
}

/// The incarnation of the stream that the link has applied from; none where it has applied nothing.
///
/// # Errors
/// Where the server does not answer, or the role may not.
pub async fn incarnation(client: &Client, from: &Region, stream: &str) -> Result<Option<String>> {
    let applied = "SELECT incarnation FROM landfall.progress WHERE link = $1 AND stream = $2";
    let applied = client.query_opt(applied, &[&from.as_str(), &stream]).await;
    Ok(applied.map_err(sql("read what the link has applied"))?.and_then(|row| row.get(0)))
}

/// Whether a link stands at or behind a record of that incarnation of its stream, and of that writer or a later one: a log that
/// lost its end has lower numbers again.
///
/// # Errors
/// Where the server does not answer, or the role may not.
pub async fn has_applied(
    client: &Client,
    from: &Region,
    stream: &str,
    (incarnation, epoch, through): (Incarnation, WriterEpoch, Sequence),
) -> Result<bool> {
    let applied = "SELECT EXISTS (SELECT FROM landfall.progress WHERE link = $1 AND stream = $2
                                     AND incarnation = $3 AND (writer_epoch, sequence) >= ($4, $5))";
    let through = i64::try_from(through.0).unwrap_or(i64::MAX);
    let parameters: [&(dyn ToSql + Sync); 5] =
        [&from.as_str(), &stream, &incarnation.to_string(), &i64::from(epoch.0), &through];
    let applied = client.query_one(applied, &parameters).await;
    Ok(applied.map_err(sql("read what the link has applied"))?.get(0))
}

/// As [`allow_recovery`], for a link whose stream was begun anew: where it stood in the one before does not count, nor
/// what was parked of it, since every row is compared.
///
/// # Errors
/// Where the server does not answer, or the role may not.
pub async fn allow_recovery_anew(client: &Client, from: &Region, stream: &str) -> Result<()> {
    let allow = "WITH place AS (DELETE FROM landfall.progress WHERE link = $1 AND stream = $2),
                      marks AS (DELETE FROM landfall.joining WHERE link = $1 AND stream = $2),
                      parked AS (DELETE FROM landfall.parked WHERE link = $1 AND stream = $2 RETURNING id),
                      changes AS (DELETE FROM landfall.parked_change WHERE parked IN (SELECT id FROM parked)),
                      rows AS (DELETE FROM landfall.parked_row WHERE parked IN (SELECT id FROM parked))
                 INSERT INTO landfall.recovery (link, stream) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    let allowed = client.execute(allow, &[&from.as_str(), &stream]).await;
    allowed.map(drop).map_err(sql("let a link be recovered in a stream begun anew"))
}

/// Requires that a daemon of this version has served the link here: it makes the tables all of this is kept in.
///
/// # Errors
/// [`Code::NotServed`] where none has.
pub async fn require_tables(client: &Client, from: &Region, stream: &str) -> Result<()> {
    let made = "SELECT to_regclass('landfall.verification_finding') IS NOT NULL
                   AND to_regclass('landfall.recovery') IS NOT NULL
                   AND to_regclass('landfall.parked_row') IS NOT NULL";
    let made = client.query_one(made, &[]).await.map_err(sql("look for our own tables"))?;
    if made.get(0) { Ok(()) } else { Err(not_served(from, stream)) }
}

fn not_served(from: &Region, stream: &str) -> Fault {
    let message =
        format!("no daemon applies the link from {from} ({stream}) here, and it is a daemon that compares");
    Fault::new(Code::NotServed, message)
        .remedied_by("start `landfall run` in this region; `landfall status` says whether its link runs")
}
