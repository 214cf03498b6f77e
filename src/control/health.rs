//! Ready answers one question: may users be sent to this region?
//!
//! They may where its own database answers and this daemon is not ending. A stale link makes a region
//! unready only where the settings say that readers need fresh rows: else a cut cable would take both
//! sides out of service at once.

use std::time::Duration;

use serde::Serialize;

use crate::{
    roster::{DatabaseHealth, Mode, Roster},
    stamp::Micros,
};

/// What `GET /health/ready` answers, field by field.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Health {
    /// Users may be sent here.
    Ready {
        /// `READY`.
        status: &'static str,
        /// This region.
        region: String,
        /// `healthy`.
        database_connection: &'static str,
        /// The worst inbound link's lag: null before its first heartbeat, 0 without links.
        replica_lag_seconds: Option<f64>,
        /// `active`.
        system_mode: &'static str,
    },
    /// They may not.
    Degraded {
        /// `DEGRADED`.
        status: &'static str,
        /// This region.
        region: String,
        /// `healthy` or `unhealthy`.
        database_connection: &'static str,
        /// Why not.
        error: String,
        /// `active`, `joining` or `draining`.
        system_mode: &'static str,
    },
}

impl Health {
    /// Whether users may be sent here.
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Ready { .. })
    }
}

/// Whether users may be sent here, `now`.
pub fn health(roster: &Roster, max_lag: Option<Duration>, now: Micros) -> Health {
    let region = roster.region().to_string();
    let (database_connection, unwell) = match roster.database() {
        DatabaseHealth::Healthy => ("healthy", None),
        DatabaseHealth::Unhealthy(error) => ("unhealthy", Some(error)),
        DatabaseHealth::Unasked => ("unhealthy", Some("the database has not answered yet".to_owned())),
    };
    let ending = roster.is_ending().then(|| "the daemon is shutting down".to_owned());
    let error = unwell
        .or(ending)
        .or_else(|| joining(roster))
        .or_else(|| max_lag.and_then(|max_lag| stale(roster, max_lag, now)));
    match error {
        None => Health::Ready {
            status: "READY",
            region,
            database_connection,
            replica_lag_seconds: worst_lag(roster, now),
            system_mode: Mode::Active.as_str(),
        },
        Some(error) => Health::Degraded {
            status: "DEGRADED",
            region,
            database_connection,
            error,
            system_mode: roster.mode().as_str(),
        },
    }
}

/// The worst inbound link's lag; a link that has applied no heartbeat yet is worse than any figure.
pub fn worst_lag(roster: &Roster, now: Micros) -> Option<f64> {
    let mut lags = roster.links().into_iter().map(|link| link.lag_seconds(now));
    lags.try_fold(0.0, |worst: f64, lag| Some(worst.max(lag?)))
}

/// A region that holds a part of its rows is none that readers may see.
fn joining(roster: &Roster) -> Option<String> {
    let links = roster.links();
    let (link, why) = links.iter().find_map(|link| link.joining().map(|why| (link, why)))?;
    Some(format!("link {}/{}: {why}", link.from(), link.stream()))
}

fn stale(roster: &Roster, max_lag: Duration, now: Micros) -> Option<String> {
    let mut links = roster.links();
    // The worst first; unknown is worse than any figure.
    links.sort_by(|a, b| {
        let lag = |link: &crate::roster::LinkEntry| link.lag_seconds(now).unwrap_or(f64::INFINITY);
        lag(b).total_cmp(&lag(a))
    });
    let link = links.first()?;
    let allowed = max_lag.as_secs_f64();
    let place = format!("link {}/{}", link.from(), link.stream());
    match link.lag_seconds(now) {
        None => Some(format!("{place}: no heartbeat was applied yet, ready.max_lag is {allowed} s")),
        Some(lag) if lag > allowed => {
            Some(format!("{place}: {lag:.1} s behind, ready.max_lag is {allowed} s"))
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fault::Code, progress::Heartbeat, roster::State};

    /// Ten seconds after the epoch.
    const NOW: Micros = Micros(10_000_000);

    /// A region with one link for each heartbeat, in seconds.
    fn roster(database: Option<&str>, beats: &[Option<f64>]) -> Roster {
        let roster = Roster::new("eu-west-1".parse().unwrap());
        match database {
            None => roster.database_healthy(true, ""),
            Some(error) => roster.database_healthy(false, error),
        }
        for (at, beat) in beats.iter().enumerate() {
            let link = roster.link(&format!("r{at}").parse().unwrap(), "main");
            link.fill(0, NOW);
            if let Some(seconds) = beat {
                let sent = Micros((seconds * 1e6) as i64);
                link.heartbeat.set(Heartbeat { sent, appended: None, arrived: sent });
            }
        }
        roster
    }

    fn json(roster: &Roster, max_lag: Option<u64>) -> String {
        serde_json::to_string(&health(roster, max_lag.map(Duration::from_secs), NOW)).unwrap()
    }

    #[test]
    fn ready_says_exactly_this() {
        let ready = |lag: &str| {
            format!(
                r#"{{"status":"READY","region":"eu-west-1","database_connection":"healthy","replica_lag_seconds":{lag},"system_mode":"active"}}"#
            )
        };
        for (beats, max_lag, lag) in [
            (&[][..], None, "0.0"),
            (&[Some(9.58)], None, "0.42"),
            (&[Some(9.5), Some(8.0)], None, "2.0"),
            (&[None], None, "null"),
            (&[Some(9.5), None], None, "null"),
            (&[Some(1.0)], None, "9.0"),
            (&[Some(9.0)], Some(2), "1.0"),
            (&[], Some(2), "0.0"),
        ] {
            assert_eq!(json(&roster(None, beats), max_lag), ready(lag), "{beats:?}");
        }
    }

    #[test]
    fn degraded_says_exactly_this() {
        let degraded = |database: &str, error: &str, mode: &str| {
            format!(
                r#"{{"status":"DEGRADED","region":"eu-west-1","database_connection":"{database}","error":"{error}","system_mode":"{mode}"}}"#
            )
        };
        let down = roster(Some("refused"), &[Some(9.0)]);
        assert_eq!(json(&down, None), degraded("unhealthy", "refused", "draining"));
        let ending = roster(None, &[]);
        ending.set_draining();
        assert_eq!(json(&ending, None), degraded("healthy", "the daemon is shutting down", "draining"));
        let fresh = Roster::new("eu-west-1".parse().unwrap());
        assert_eq!(
            json(&fresh, None),
            degraded("unhealthy", "the database has not answered yet", "draining")
        );
        let stale = "link r0/main: 5.0 s behind, ready.max_lag is 2 s";
        assert_eq!(
            json(&roster(None, &[Some(5.0), Some(9.0)]), Some(2)),
            degraded("healthy", stale, "active")
        );
        let silent = "link r1/main: no heartbeat was applied yet, ready.max_lag is 2 s";
        assert_eq!(json(&roster(None, &[Some(5.0), None]), Some(2)), degraded("healthy", silent, "active"));
        let unread = Roster::new("eu-west-1".parse().unwrap());
        unread.database_healthy(true, "");
        unread.link(&"r0".parse().unwrap(), "main");
        let nobody = "link r0/main: whether tables are still to be filled has not been read yet";
        assert_eq!(json(&unread, None), degraded("healthy", nobody, "joining"));
        let joining = roster(None, &[Some(9.9)]);
        joining.links()[0].fill(3, NOW);
        let filling = "link r0/main: 3 tables still to fill, or to compare: where no backfill or recovery is under way, \
                       ask for it again";
        assert_eq!(json(&joining, None), degraded("healthy", filling, "joining"));
        let without = roster(None, &[None]);
        without.links()[0].set(State::Halted {
            code: Code::GenesisGone,
            message: "records 1 to 9 are gone".to_owned(),
            remedy: "fill it".to_owned(),
        });
        let nothing = "link r0/main: nothing of the stream is here, and its beginning is gone: a backfill fills this region";
        assert_eq!(json(&without, None), degraded("healthy", nothing, "joining"));
    }
}
