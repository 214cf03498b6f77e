//! A look at the slot while no session takes one: where the stream has halted or waits, or another daemon reads it.

use super::{PostgresSourceConfig, slot};
use crate::{
    fault::Result,
    postgres::{Connection, catalog, connect},
    source::{Kept, Watcher},
};

/// Looks on a connection of its own, which it keeps between two looks.
pub struct PostgresWatcher {
    config: PostgresSourceConfig,
    connection: Option<Connection>,
}

impl PostgresWatcher {
    pub(super) fn new(config: PostgresSourceConfig) -> Self {
        Self { config, connection: None }
    }
}

impl Watcher for PostgresWatcher {
    async fn look(&mut self) -> Result<Kept> {
        // Out of place meanwhile: one that gives no answer is not asked a second time.
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let application = format!("landfall watch {}", self.config.stream);
                connect(&self.config.address, &application).await?
            }
        };
        let slot = catalog::slot(&connection, &self.config.slot).await?;
        self.connection = Some(connection);
        Ok(slot.as_ref().map(slot::kept).unwrap_or_default())
    }

    fn rest(&mut self) {
        self.connection = None;
    }
}
