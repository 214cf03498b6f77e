//! The progress row: moved in the same transaction as the rows, by whoever holds the epoch.
//!
//! An UPDATE that finds no row is no error, and a pipelined transaction would go on and commit. So
//! the update is counted inside the server, and a count of zero divides by zero there: the
//! transaction is lost before its first row.

use tokio_postgres::{
    Client, Error, Statement,
    types::{PgLsn, ToSql},
};

use super::{
    PostgresSinkConfig,
    session::LANE,
    wire::{AsText, Timestamp},
};
use crate::{
    fault::{Code, Fault, Result},
    names::literal,
    position::{ApplyEpoch, Incarnation, Position, Sequence},
    postgres::fault_of,
    progress::{Cursor, Heartbeat},
    stamp::Micros,
};

/// The statements that touch our own tables and the origin, prepared.
pub(super) struct Guard {
    epoch: ApplyEpoch,
    moving: Statement,
    touching: Statement,
    origin: Statement,
    /// Keeps a shape.
    pub(super) shape: Statement,
}

/// Where progress is to go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Move {
    pub(super) incarnation: Incarnation,
    pub(super) after: Sequence,
    pub(super) through: Cursor,
    pub(super) heartbeat: Option<Heartbeat>,
    /// Whether several source transactions share this target transaction.
    pub(super) grouped: bool,
}

/// The place and time of a replication origin: the commit timestamp of the target's transaction is then the source
/// transaction's. It is set in every transaction, since it sticks to the session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    pub(super) end: PgLsn,
    pub(super) time: Timestamp,
}

impl Origin {
    /// That of a transaction at this position, committed at this time; none where the position is none.
    pub(super) fn of(position: Option<Position>, time: Option<Micros>) -> Option<Self> {
        let Some(Position::Postgres(at)) = position else { return None };
        Some(Self { end: PgLsn::from(at.end.0), time: Timestamp::from(time.unwrap_or(at.time)) })
    }
}

impl Guard {
    /// Whoever holds a later one holds the target.
    pub(super) fn epoch(&self) -> ApplyEpoch {
        self.epoch
    }

    pub(super) async fn prepare(
        client: &Client,
        config: &PostgresSinkConfig,
        epoch: ApplyEpoch,
    ) -> Result<Self> {
        let link = literal(config.from.as_str());
        let stream = literal(&config.stream);
        let ours = format!(
            "link = {link} AND stream = {stream} AND lane = {LANE} AND apply_epoch = $1 AND sequence = $2"
        );
        let moving = format!(
            "WITH held AS (
                 UPDATE landfall.progress
                    SET incarnation = $3, sequence = $4, writer_epoch = $5, position = $6::jsonb,
                        kafka_offset = $7, heartbeat_sent = coalesce($8, heartbeat_sent),
                        heartbeat_arrived = coalesce($9, heartbeat_arrived),
                        grouped_through = coalesce($10, grouped_through)
                  WHERE {ours} AND coalesce(incarnation, $3) = $3
                 RETURNING 1)
             SELECT 1 / count(*), pg_replication_origin_xact_setup($11, $12) FROM held"
        );
        let touching = format!(
            "WITH held AS (
                 UPDATE landfall.progress SET session_pid = session_pid WHERE {ours} RETURNING 1)
             SELECT 1 / count(*) FROM held"
        );
        let shape = format!(
            "INSERT INTO landfall.shape (link, stream, fingerprint, body)
             VALUES ({link}, {stream}, $1, $2::jsonb) ON CONFLICT DO NOTHING"
        );
        let prepare = async |sql: &str| {
            client.prepare(sql).await.map_err(|error| fault_of(&error).at("prepare our own statements"))
        };
        Ok(Self {
            epoch,
            moving: prepare(&moving).await?,
            touching: prepare(&touching).await?,
            origin: prepare("SELECT pg_replication_origin_xact_setup($1, $2)").await?,
            shape: prepare(&shape).await?,
        })
    }

    /// Moves the progress and sets the transaction's origin, or fails in the server.
    pub(super) fn advance<'a>(
        &'a self,
        client: &'a Client,
        to: &Move,
        origin: Option<Origin>,
    ) -> Result<impl Future<Output = std::result::Result<u64, Error>> + Send + use<'a>> {
        let heartbeat = |time: fn(Heartbeat) -> Timestamp| to.heartbeat.map(time);
        let position = to.through.position.map(|position| serde_json::to_string(&position)).transpose();
        let position =
            position.map_err(|error| Fault::new(Code::Internal, "write a position").because(error))?;
        let parameters: Vec<Box<dyn ToSql + Send + Sync>> = vec![
            Box::new(self.epoch.0),
            Box::new(number(to.after)?),
            Box::new(to.incarnation.to_string()),
            Box::new(number(to.through.sequence)?),
            Box::new(i64::from(to.through.epoch.0)),
            Box::new(position.map(AsText)),
            Box::new(to.through.offset.0),
            Box::new(heartbeat(|it| it.sent.into())),
            Box::new(heartbeat(|it| it.arrived.into())),
            Box::new(to.grouped.then(|| number(to.through.sequence)).transpose()?),
            Box::new(origin.map(|it| it.end)),
            Box::new(origin.map(|it| it.time)),
        ];
        Ok(async move { client.execute_raw(&self.moving, parameters).await })
    }

    /// Sets the transaction's origin where no progress is moved.
    pub(super) async fn set_origin(
        &self,
        client: &Client,
        origin: Origin,
    ) -> std::result::Result<u64, Error> {
        let parameters: [Box<dyn ToSql + Send + Sync>; 2] = [Box::new(origin.end), Box::new(origin.time)];
        client.execute_raw(&self.origin, parameters).await
    }

    /// Locks the progress row where it is, or fails in the server.
    pub(super) fn touch<'a>(
        &'a self,
        client: &'a Client,
        at: Sequence,
    ) -> Result<impl Future<Output = std::result::Result<u64, Error>> + Send + use<'a>> {
        let parameters: [i64; 2] = [self.epoch.0, number(at)?];
        Ok(async move { client.execute_raw(&self.touching, parameters).await })
    }
}

/// A sequence number as the progress row keeps it.
pub(super) fn number(sequence: Sequence) -> Result<i64> {
    i64::try_from(sequence.0)
        .map_err(|_| Fault::new(Code::Internal, format!("{sequence} is no sequence number of a stream")))
}
