//! Who is in the way of a statement that waits.

use std::{pin::pin, time::Duration};

use tokio::time::{sleep, timeout};

use crate::{
    postgres::connect,
    sink::postgres::{PostgresSinkConfig, trouble::Trouble},
};

/// How long the question who holds a lock may take.
const BLOCKER_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) fn with_blocker(trouble: Trouble, blocker: Option<String>) -> Trouble {
    match (trouble, blocker) {
        (Trouble::Locked(fault), Some(who)) => Trouble::Locked(fault.at(format_args!("blocked by {who}"))),
        (trouble, _) => trouble,
    }
}

/// Runs `work`; where it takes longer than `patience`, asks meanwhile.
pub(super) async fn watch<T>(
    work: impl Future<Output = T>,
    patience: Duration,
    ask: impl Future<Output = Option<String>>,
) -> (T, Option<String>) {
    let mut work = pin!(work);
    tokio::select! {
        done = &mut work => (done, None),
        () = sleep(patience) => tokio::join!(work, ask),
    }
}

/// Who is in the way of our backend, asked on a connection of its own.
pub(super) async fn ask_blocker(config: &PostgresSinkConfig, pid: i32) -> Option<String> {
    let asked = async {
        let other = connect(&config.address, "landfall asks who blocks it").await.ok()?;
        // What somebody else's session does is not shown to a plain role; that it is there and whose, is.
        let sql = "SELECT string_agg(format('backend %s (%s%s): %s', a.pid, a.usename, ', ' || a.state,
                                            CASE a.query WHEN '<insufficient privilege>'
                                            THEN 'its statement is shown to members of pg_read_all_stats'
                                            ELSE left(a.query, 200) END), '; ')
                     FROM unnest(pg_blocking_pids($1)) b JOIN pg_stat_activity a ON a.pid = b";
        other.query_one(sql, &[&pid]).await.ok()?.get::<_, Option<String>>(0)
    };
    timeout(BLOCKER_TIMEOUT, asked).await.ok().flatten()
}
