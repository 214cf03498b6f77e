//! Which roads a daemon has, made of its settings.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::{config::Settings, metrics::Metrics, roster::Roster, task::Stop};

/// What roads are made of.
#[derive(Debug)]
pub struct Parts {
    /// What the daemon was told.
    pub settings: Settings,
    /// Where a road writes what it does.
    pub roster: Arc<Roster>,
    /// Where it counts.
    pub metrics: Metrics,
    /// Says when to end.
    pub stop: Stop,
}

/// A source or a link at work. It ends soon after [`Parts::stop`] asks, never before.
pub struct Road {
    /// Its name on the roster ([`StateEntry::road`](crate::roster::StateEntry::road)).
    pub name: String,
    /// Its work.
    pub future: BoxFuture<'static, ()>,
}

/// The roads the settings ask for: the source, where there is one, then the links.
pub(super) fn roads(_parts: &Parts) -> Vec<Road> {
    Vec::new()
}
