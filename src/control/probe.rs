//! Asks this region's database every second whether it lives, over a connection of its own, so that
//! the answer does not wait behind a road's work.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::{
    fault::{Code, Fault, Result},
    postgres::{Address, Connection, connect, fault_of},
    roster::Roster,
    task::Stop,
};

/// How often it is asked: a load balancer that asks us every few seconds gets a fresh answer.
const EVERY: Duration = Duration::from_secs(1);

/// How long it may take to answer, before it counts as not answering. A busy server answers this in
/// milliseconds; one that takes longer is no place to send users to.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Asks until the end is asked for, and writes the answers on the roster.
pub async fn run(address: Address, roster: Arc<Roster>, mut stop: Stop) {
    let mut clock = interval(EVERY);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut session: Option<Connection> = None;
    let asking = async {
        loop {
            clock.tick().await;
            match ask(&address, &mut session).await {
                Ok(()) => roster.database_healthy(true, ""),
                Err(fault) => {
                    session = None;
                    roster.database_healthy(false, &fault.message());
                }
            }
        }
    };
    tokio::select! {
        () = asking => (),
        () = stop.asked() => (),
    }
}

async fn ask(address: &Address, session: &mut Option<Connection>) -> Result<()> {
    let connection = match session {
        Some(connection) => connection,
        None => {
            session.insert(timeout(ANSWER_TIMEOUT, connect(address, "landfall probe")).await.map_err(late)??)
        }
    };
    let asked = timeout(ANSWER_TIMEOUT, connection.simple_query("SELECT 1")).await.map_err(late)?;
    asked.map(|_| ()).map_err(|error| fault_of(&error))
}

fn late(_: tokio::time::error::Elapsed) -> Fault {
    let seconds = ANSWER_TIMEOUT.as_secs();
    Fault::new(Code::DatabaseUnreachable, format!("the database did not answer within {seconds} s"))
}
