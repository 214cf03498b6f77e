//! What another region asks: read under a snapshot, between two watermarks.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use super::{
    backfill,
    copier::{self, PostgresCopier},
    publication,
    table::{ALONG_THE_INDEX, SNAPSHOT, Table, begin_snapshot, begin_to_read, snapshot_of},
};
use crate::{
    change::Mark,
    fault::{Code, Fault, Result},
    names::qualified,
    postgres::{Connection, Digest, Lookout, fault_of},
    source::{Content, Mend, Portion, ReadFor, Snapshot, With},
    verify::{About, Answer, Found, Key, Layout, Question, RowHash, TableName},
};

/// An answer is one record, and no record should be much larger.
const ANSWER_BYTES: usize = 256 << 10;
/// Rows in an answer, however small they are.
const ANSWER_ROWS: u32 = 20_000;
/// Rows in a range, whatever is asked for.
const RANGE_ROWS_MAX: u32 = 10_000;
/// Ranges in an answer, whatever is asked for.
const RANGES_MAX: u32 = 256;
/// Keys that are looked up for one question.
const KEYS_MAX: usize = 1_000;
/// For so long it is taken as it was seen which tables are ours: a verification of ten thousand of them asks as many
/// questions or more, and a look at the publication opens every one.
///
/// That is safe: a table that has left the publication meanwhile, or has begun to come from another region, is told of as it
/// would be had that happened right behind the look. The first ends the session, which then says what to run; whether it may
/// be read is asked each time. The second may make differences of what its link has not brought here yet, and nothing more:
/// a row that mends would take a newer one's place, so of those it is asked each time where the table comes from
/// ([`require_ours`]). And that a table is not ours is said by a look of its own only: what was published since is told of.
const SEEN_FOR: Duration = Duration::from_secs(10);

pub(super) async fn answer(
    copier: &mut PostgresCopier,
    question: &Question,
    low: impl Fn(&str) -> String + Send,
    given_up: impl Future<Output = ()> + Send,
) -> Result<Option<Portion>> {
    let since = Instant::now();
    let read = match &question.about {
        About::Tables => look(copier).await.map(|looked| (Found::Tables(looked.ours), None, With::Nothing)),
        About::Recover { ours } => match recovery(copier, &question.by, ours).await {
            // Not before it is known that the mark goes out: whoever is left out without it is filled by nobody.
            Ok(marked) => copier.leave_out(&question.by).await.map(|()| marked),
            refused => refused,
        },
        About::Settle { table } => settled(copier, table).await,
        about @ (About::Sums { table, .. }
        | About::Rows { table, .. }
        | About::Keys { table, .. }
        | About::Mend { table, .. }) => {
            let read = read(copier, about, table, low, given_up).await;
            if !matches!(read, Ok(Some(_))) {
                // Its transaction is left half-way.
                copier.connection = None;
            }
            match read {
                Ok(None) => return Ok(None),
                Ok(Some((found, read, with))) => Ok((found, Some(read), with)),
                Err(fault) => Err(fault),
            }
        }
    };
    let (found, read, with) = match read {
        // Not an answer: it is asked again.
        Err(fault) if matches!(fault.code(), Code::DatabaseUnreachable | Code::DatabaseRefused) => {
            return Err(fault);
        }
        Err(fault) => {
            let why = format!("[{}] {} (next: {})", fault.code(), fault.message(), fault.remedy());
            tracing::warn!(by = question.by, why, "what another region asks cannot be answered");
            (Found::Refused(why), None, With::Nothing)
        }
        Ok(read) => read,
    };
    let layout = read.as_ref().map(|read: &ReadFor| Layout {
        columns: read.shape.columns.iter().map(|column| column.name.to_string()).collect(),
        key: read.key.iter().map(|&at| read.shape.columns[at].name.to_string()).collect(),
    });
    let answer = Answer {
        verification: question.verification.clone(),
        number: question.number,
        took_micros: since.elapsed().as_micros().try_into().unwrap_or(u64::MAX),
        layout,
        found,
        unsure: Vec::new(),
        all_unsure: false,
    };
    Ok(Some(Portion { to: vec![question.by.clone()], content: Content::Answer { answer, read, with } }))
}

type Told = (Found, Option<ReadFor>, With);

/// Every table whose rows are this region's to tell may be stale where it is asked for, but for those of which neither
/// region has a row from the other: where both publish them, it may be the other that has them.
async fn recovery(copier: &mut PostgresCopier, by: &String, ours: &[TableName]) -> Result<Told> {
    let looked = look(copier).await?;
    let (told, theirs) = (HashSet::<_>::from_iter(&looked.ours), HashSet::<_>::from_iter(ours));
    let connection = copier.connection().await?;
    let from_there = backfill::received_from(connection, std::slice::from_ref(by)).await?;
    let is_left_out = |table: &TableName| match theirs.contains(table) {
        true => told.contains(table),
        false => from_there.contains(table) && !told.contains(table),
    };
    let left_out = looked.carried.iter().filter(|table| is_left_out(table)).cloned().collect();
    let mut shapes = Vec::new();
    for name in looked.ours.iter().filter(|name| !is_left_out(name)) {
        shapes.push(Table::look(connection, &name.schema, &name.table).await?.shape);
    }
    Ok((Found::Marked, None, With::Recovery { shapes, left_out }))
}

async fn settled(copier: &mut PostgresCopier, table: &TableName) -> Result<Told> {
    require_ours(copier, table, false).await?;
    let connection = copier.connection().await?;
    let shapes = vec![Table::look(connection, &table.schema, &table.table).await?.shape];
    Ok((Found::Marked, None, With::Mark { shapes, mark: Mark::Settled }))
}

/// What the database says of tables.
struct Looked {
    /// Those the stream carries.
    carried: Vec<TableName>,
    /// Those of them whose rows are this region's to tell: without those that come here from another. Of these this region
    /// has what has arrived, and nothing newer.
    ours: Vec<TableName>,
}

async fn look(copier: &mut PostgresCopier) -> Result<Looked> {
    let (config, now) = (copier.config.clone(), Instant::now());
    let connection = copier.connection().await?;
    let carried = publication::tables(connection, &config).await?;
    let received = backfill::received_from(connection, &config.peers).await?;
    let ours: Vec<TableName> = carried.iter().filter(|table| !received.contains(table)).cloned().collect();
    copier.ours.saw(&ours, now);
    Ok(Looked { carried, ours })
}

/// Requires that a table's rows are this region's to tell: as was seen a moment ago, where that will do.
async fn require_ours(copier: &mut PostgresCopier, table: &TableName, to_mend: bool) -> Result<()> {
    let seen = copier.ours.has(table, Instant::now());
    let is_ours = if seen && to_mend {
        let peers = copier.config.peers.clone();
        !backfill::is_received_from(copier.connection().await?, &peers, table).await?
    } else {
        seen || look(copier).await?.ours.contains(table)
    };
    if is_ours {
        return Ok(());
    }
    let message = format!("the stream does not carry table {table}, or its rows come from another region");
    Err(Fault::new(Code::TableDiffers, message))
}

/// The tables whose rows are this region's to tell, as they were last seen.
#[derive(Default)]
pub(super) struct Ours(Option<(HashSet<TableName>, Instant)>);

impl Ours {
    fn saw(&mut self, tables: &[TableName], now: Instant) {
        self.0 = Some((tables.iter().cloned().collect(), now));
    }

    /// Whether a table was among them not longer than [`SEEN_FOR`] ago.
    fn has(&self, table: &TableName, now: Instant) -> bool {
        let of_now = |seen: &Instant| now.saturating_duration_since(*seen) < SEEN_FOR;
        self.0.as_ref().is_some_and(|(tables, seen)| of_now(seen) && tables.contains(table))
    }
}

async fn read(
    copier: &mut PostgresCopier,
    about: &About,
    table: &TableName,
    low: impl Fn(&str) -> String + Send,
    given_up: impl Future<Output = ()> + Send,
) -> Result<Option<(Found, ReadFor, With)>> {
    require_ours(copier, table, matches!(about, About::Mend { .. })).await?;
    let address = copier.config.address.clone();
    let connection = copier.connection().await?;
    backfill::require_readable(connection, std::iter::once((&*table.schema, &*table.table))).await?;
    let watermark = low(&qualified(&table.schema, &table.table));
    copier::send(connection, &watermark).await?;
    // Behind the watermark: a change of shape before it is seen here, and one after it in the window.
    let found = Table::look(connection, &table.schema, &table.table).await?;
    let columns = found.shape.columns.iter().map(|column| column.name.to_string()).collect();
    let digest = Digest::new(connection, table, &Layout { columns, key: found.key_names() }).await?;
    let (told, seen, with) = match about {
        About::Mend { keys, .. } => {
            let (rows, seen) = rows_of(connection, &found, keys).await?;
            (Found::Mended(rows.keys.len()), seen, With::Rows(rows))
        }
        about => {
            let telling = tell(connection, about, &digest, &found);
            let told = if digest.is_keyless() {
                let lookout = Lookout::open(&address, "landfall lookout").await?;
                lookout.watch((connection, digest.from()), given_up, telling).await?
            } else {
                Some(telling.await?)
            };
            let Some((told, seen)) = told else { return Ok(None) };
            (told, seen, With::Nothing)
        }
    };
    found.require_unaltered(connection).await?;
    Ok(Some((told, ReadFor { shape: found.shape, key: found.key, seen }, with)))
}

async fn tell(
    connection: &Connection,
    about: &About,
    digest: &Digest<'_>,
    table: &Table,
) -> Result<(Found, Snapshot)> {
    if let About::Keys { keys, values, .. } = about {
        return tell_keys(digest, table, keys, *values).await;
    }
    let seen = begin_snapshot(connection, &table.from()).await?;
    let failed = |error: tokio_postgres::Error| fault_of(&error).at("read for an answer");
    if !table.key.is_empty() {
        connection.batch_execute(ALONG_THE_INDEX).await.map_err(failed)?;
    }
    let found = match about {
        About::Tables
        | About::Keys { .. }
        | About::Mend { .. }
        | About::Recover { .. }
        | About::Settle { .. } => {
            unreachable!("answered elsewhere")
        }
        About::Sums { after, range_rows, ranges, .. } => {
            let mut after = after.clone();
            let mut sums = Vec::new();
            for _ in 0..(*ranges).clamp(1, RANGES_MAX) {
                let upto = digest.bound(after.as_ref(), (*range_rows).min(RANGE_ROWS_MAX)).await?;
                sums.push(digest.sum(after.as_ref(), upto.as_ref()).await?);
                after = upto;
                if after.is_none() {
                    break;
                }
            }
            Found::Sums(sums)
        }
        About::Rows { after, upto, .. } => {
            let mut rows = digest.rows_within(after.as_ref(), upto.as_ref(), ANSWER_ROWS).await?;
            let mut bytes = 0;
            let fits = rows.iter().take_while(|row| {
                bytes += weight(row);
                bytes <= ANSWER_BYTES
            });
            let fits = fits.count().max(1);
            let cut = rows.len() > fits || rows.len() == ANSWER_ROWS as usize;
            rows.truncate(fits);
            let last: Option<Key> = rows.last().map(|row| row.key.clone());
            Found::Rows { rows, upto: if cut { last } else { upto.clone() } }
        }
    };
    connection.batch_execute("ROLLBACK").await.map_err(failed)?;
    Ok((found, seen))
}

/// In one message to the server: keys are asked for that change often, and what changes between the snapshot and the
/// high watermark is unsure.
async fn tell_keys(
    digest: &Digest<'_>,
    table: &Table,
    keys: &[Key],
    values: bool,
) -> Result<(Found, Snapshot)> {
    if keys.len() > KEYS_MAX {
        let message = format!("{} keys are more than the {KEYS_MAX} one question may name", keys.len());
        return Err(Fault::new(Code::ProtocolUnknown, message));
    }
    let select = digest.select_rows_of(keys, values);
    let begin = begin_to_read(&table.from());
    let rows = digest.rows(&format!("{begin}; {ALONG_THE_INDEX}; {SNAPSHOT}; {select}; ROLLBACK")).await?;
    let (seen, rows) =
        rows.split_first().ok_or_else(|| Fault::new(Code::Internal, "no snapshot was told"))?;
    let seen = snapshot_of(seen.get(0).unwrap_or_default())?;
    let mut rows = digest.row_hashes(rows, values)?;
    if rows.iter().map(weight).sum::<usize>() > ANSWER_BYTES {
        rows.iter_mut().for_each(|row| row.row = None);
    }
    Ok((Found::Keys(rows), seen))
}

/// The rows with these keys, or with as many of the first of them as are held in memory at once.
async fn rows_of(connection: &Connection, table: &Table, keys: &[Key]) -> Result<(Mend, Snapshot)> {
    if table.key.is_empty() {
        let message =
            format!("nothing tells the rows of {} apart: they cannot be mended one by one", table.shape);
        return Err(Fault::new(Code::TableDiffers, message)
            .remedied_by("fill the table anew: landfall backfill --table, in the region that has its rows"));
    }
    let mut keys = keys.get(..KEYS_MAX).unwrap_or(keys);
    loop {
        let read = table.read_of(connection, keys).await?;
        if !read.cut {
            let text = read.texts.concat().into();
            return Ok((Mend { keys: keys.to_vec(), text }, read.seen));
        }
        if let [one] = keys {
            let message =
                format!("the row {} of {} is larger than can be sent at once", one.join(", "), table.shape);
            return Err(Fault::new(Code::TableDiffers, message).remedied_by("mend it by hand"));
        }
        keys = &keys[..keys.len().div_ceil(2)];
    }
}

/// Bytes of a row in an answer, about.
fn weight(row: &RowHash) -> usize {
    row.key.iter().map(|value| value.len() + 4).sum::<usize>() + row.row.as_ref().map_or(0, String::len) + 48
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_of_the_publication_holds_for_a_while() {
        let name = |table: &str| TableName { schema: "public".into(), table: table.into() };
        let (now, mut ours) = (Instant::now(), Ours::default());
        assert!(!ours.has(&name("orders"), now), "nobody looked");
        ours.saw(&[name("orders"), name("items")], now);
        let in_time = now + SEEN_FOR - Duration::from_millis(1);
        assert!([now, in_time].iter().all(|at| ours.has(&name("orders"), *at)));
        assert!(!ours.has(&name("new"), now), "it is looked anew for what was not among them");
        assert!(!ours.has(&name("orders"), now + SEEN_FOR));
        ours.saw(&[name("new")], in_time);
        assert!(ours.has(&name("new"), now + SEEN_FOR) && !ours.has(&name("orders"), now + SEEN_FOR));
    }
}
