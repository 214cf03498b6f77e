//! Reading a table for long without standing in anybody's way.
//!
//! HAZARD: the lock that reading takes (`ACCESS SHARE`) is in nobody's way but of who changes the table's shape or empties
//! it, and who waits for that is in everybody's. So it is looked, every second, whether somebody waits.

use std::{pin::pin, time::Duration};

use tokio::time::{sleep, timeout};

use super::{Address, Connection, connect, fault_of};
use crate::fault::{Code, Fault, Result};

/// How often it is looked whether somebody waits for the table: so long it may hold up everybody else.
pub const GIVE_WAY_INTERVAL: Duration = Duration::from_secs(1);
/// A statement that is canceled has so long to end; then its session is left to itself.
const END_WITHIN: Duration = Duration::from_secs(5);

/// A session beside the one that reads.
pub struct Lookout(Connection);

impl Lookout {
    /// # Errors
    /// As of [`connect`].
    pub async fn open(address: &Address, application: &str) -> Result<Self> {
        connect(address, application).await.map(Self)
    }

    /// Requires that nobody waits to change or empty a table, named as behind `FROM`.
    ///
    /// # Errors
    /// [`Code::TargetBusy`] where somebody does.
    pub async fn require_nobody_waits(&self, from: &str) -> Result<()> {
        // By oids: pg_partition_tree locks each partition, and would wait behind whoever waits.
        let waits = "WITH RECURSIVE part AS (
                 SELECT $1::text::regclass::oid AS oid
                  UNION SELECT i.inhrelid FROM pg_inherits i JOIN part ON part.oid = i.inhparent)
             SELECT EXISTS (
                 SELECT FROM pg_locks
                  WHERE NOT granted AND locktype = 'relation' AND mode = 'AccessExclusiveLock'
                    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                    AND relation IN (SELECT oid FROM part))";
        let name = from.strip_prefix("ONLY ").unwrap_or(from);
        let failed = |error| fault_of(&error).at("look who waits for a table");
        let waits = self.0.query_one(waits, &[&name]).await.map_err(failed)?;
        if !waits.get::<_, bool>(0) {
            return Ok(());
        }
        let message = format!("somebody waits to change or truncate {name}, and was let in");
        Err(Fault::new(Code::TargetBusy, message).remedied_by("ask again when that is done"))
    }

    /// What is read of a table by the session `reader`, unless `given_up` comes first: none then. Where it is not read to
    /// its end its statement is canceled, and the session is of no use any more.
    ///
    /// # Errors
    /// Those of `reading`, and those of [`Lookout::require_nobody_waits`].
    pub async fn watch<T>(
        &self,
        (reader, from): (&Connection, &str),
        given_up: impl Future<Output = ()>,
        reading: impl Future<Output = Result<T>>,
    ) -> Result<Option<T>> {
        let failed = |error| fault_of(&error).at("ask for the number of a session");
        let process: i32 = reader.query_one("SELECT pg_backend_pid()", &[]).await.map_err(failed)?.get(0);
        let mut reading = pin!(reading);
        let looking = async {
            loop {
                sleep(GIVE_WAY_INTERVAL).await;
                if let Err(fault) = self.require_nobody_waits(from).await {
                    return fault;
                }
            }
        };
        let ended = tokio::select! {
            read = &mut reading => return read.map(Some),
            () = given_up => Ok(None),
            fault = looking => Err(fault),
        };
        let cancel = self.0.execute("SELECT pg_cancel_backend($1)", &[&process]).await;
        if cancel.is_ok() {
            let _ = timeout(END_WITHIN, reading).await;
        }
        ended
    }
}
