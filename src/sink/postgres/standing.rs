//! What a target keeps of a stream, read without taking hold of it.

use std::sync::Arc;

use tokio_postgres::Client;

use crate::{
    change::Shape,
    fault::{Code, Fault, Result},
    position::Offset,
    postgres::fault_of,
    region::Region,
};

/// What a target keeps of one stream.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// Where the last record it applied stood; none where it holds nothing of the stream.
    pub applied: Option<Offset>,
    /// Shapes it has met, in no order.
    pub shapes: Vec<Arc<Shape>>,
}

/// Reads what a target keeps; nothing, where our tables are not there or not ours to read.
///
/// # Errors
/// Where the target does not answer.
pub async fn standing(client: &Client, from: &Region, stream: &str) -> Result<Standing> {
    let failed = |error: tokio_postgres::Error| fault_of(&error).at("read where the link stands");
    let readable =
        "SELECT bool_and(coalesce(has_table_privilege(to_regclass('landfall.' || t), 'SELECT'), false))
                      FROM unnest('{progress,shape}'::text[]) t";
    if !client.query_one(readable, &[]).await.map_err(failed)?.get::<_, bool>(0) {
        return Ok(Standing::default());
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
    Ok(Standing { applied: applied.map(|row| Offset(row.get(0))), shapes: shapes.collect::<Result<_>>()? })
}
