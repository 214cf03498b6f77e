//! What a target keeps of a stream, read without taking hold of it.

use std::sync::Arc;

use tokio_postgres::Client;

use super::wire::Timestamp;
use crate::{
    change::Shape,
    fault::{Code, Fault, Result},
    position::Offset,
    postgres::fault_of,
    progress::Heartbeat,
    region::Region,
    sink::LinkStanding,
    stamp::Micros,
};

/// What a target keeps of one stream.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// Where the last record it applied stood; none where it holds nothing of the stream.
    pub applied: Option<Offset>,
    /// Shapes it has met, in no order.
    pub shapes: Vec<Arc<Shape>>,
}

/// Reads what a target keeps; none where our tables are there and not the role's to read: what they say of the stream is not
/// known then.
///
/// # Errors
/// Where the target does not answer.
pub async fn standing(client: &Client, from: &Region, stream: &str) -> Result<Option<Standing>> {
    match ours(client, &["progress", "shape"]).await? {
        Ours::Absent => return Ok(Some(Standing::default())),
        Ours::Unreadable => return Ok(None),
        Ours::Readable => (),
    }
    let link = from.as_str();
    let place = "SELECT kafka_offset FROM landfall.progress
                  WHERE link = $1 AND stream = $2 AND incarnation IS NOT NULL";
    let applied = client.query_opt(place, &[&link, &stream]).await.map_err(failed)?;
    let kept = "SELECT body::text FROM landfall.shape WHERE link = $1 AND stream = $2";
    let rows = client.query(kept, &[&link, &stream]).await.map_err(failed)?;
    let shapes = rows.iter().map(|row| {
        serde_json::from_str(row.get(0))
            .map(Arc::new)
            .map_err(|error| Fault::new(Code::Internal, "read a shape from landfall.shape").because(error))
    });
    let applied = applied.map(|row| Offset(row.get(0)));
    Ok(Some(Standing { applied, shapes: shapes.collect::<Result<_>>()? }))
}

/// Reads what the target holds of a link; nothing, where our tables are not there or not ours to read.
pub(super) async fn link_standing(client: &Client, from: &Region, stream: &str) -> Result<LinkStanding> {
    if ours(client, &["progress", "joining", "parked"]).await? != Ours::Readable {
        return Ok(LinkStanding::default());
    }
    // A table that was dropped has nothing to be filled with any more.
    let standing = "SELECT (SELECT count(*) FROM landfall.joining
                             WHERE link = $1 AND stream = $2
                               AND to_regclass(format('%I.%I', schema_name, table_name)) IS NOT NULL),
                           (SELECT count(*) FROM landfall.parked WHERE link = $1 AND stream = $2),
                           p.heartbeat_sent, p.heartbeat_arrived
                      FROM (SELECT) one LEFT JOIN landfall.progress p ON p.link = $1 AND p.stream = $2";
    let row = client.query_one(standing, &[&from.as_str(), &stream]).await.map_err(failed)?;
    let count = |at| usize::try_from(row.get::<_, i64>(at)).unwrap_or(usize::MAX);
    let time = |at| row.get::<_, Option<Timestamp>>(at).map(|it| Micros(it.0));
    let heartbeat = time(2).zip(time(3));
    Ok(LinkStanding {
        heartbeat: heartbeat.map(|(sent, arrived)| Heartbeat { sent, appended: None, arrived }),
        joining: count(0),
        parked: count(1),
    })
}

/// How tables of ours stand to the role.
#[derive(PartialEq, Eq)]
enum Ours {
    Absent,
    Unreadable,
    Readable,
}

/// Without `to_regclass`, which fails for whoever may not use the schema.
async fn ours(client: &Client, tables: &[&str]) -> Result<Ours> {
    let sql = "SELECT bool_and(c.oid IS NOT NULL),
                      bool_and(has_schema_privilege(c.relnamespace, 'USAGE')
                               AND has_table_privilege(c.oid, 'SELECT'))
                 FROM unnest($1::text[]) t
                 LEFT JOIN pg_class c ON c.relname = t AND c.relnamespace = to_regnamespace('landfall')";
    let row = client.query_one(sql, &[&tables]).await.map_err(failed)?;
    Ok(match (row.get(0), row.get(1)) {
        (_, Some(false)) => Ours::Unreadable,
        (true, _) => Ours::Readable,
        (false, _) => Ours::Absent,
    })
}

fn failed(error: tokio_postgres::Error) -> Fault {
    fault_of(&error).at("read where the link stands")
}
