//! What is known of the target's tables, and the statements prepared for them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use tokio_postgres::{Client, Statement};

use super::{
    statement,
    table::{self, Table},
    trouble::{self, Attempt},
};
use crate::{
    change::{Change, Fingerprint, Operation, Shape},
    fault::Result,
    plan::{Action, Locator, Locators, Rows, each, plan},
    sink::Step,
};

/// Prepared statements kept, and shapes. When there are more they are all made anew: a limit on
/// memory here and at the server, not a cache policy.
const KEPT_MAX: usize = 1000;

/// What a prepared statement is for.
type StatementName = (Fingerprint, Operation, Box<[usize]>, Box<[usize]>);

/// An action and its statement.
pub(super) enum Ready<'a> {
    Rows(Statement, Rows<'a>),
    Truncate(String),
}

/// The tables met so far, and the statements.
#[derive(Default)]
pub(super) struct Known {
    tables: HashMap<Fingerprint, Table>,
    locators: Locators,
    statements: HashMap<StatementName, Statement>,
}

impl Known {
    /// The changes' actions with their statements.
    pub(super) async fn make_ready<'a>(
        &mut self,
        client: &Client,
        steps: &'a [Step],
    ) -> Attempt<Vec<Ready<'a>>> {
        self.look_at_tables(client, steps).await?;
        let actions = plan(steps.iter().flat_map(Step::changes), &self.locators)?;
        let mut ready = Vec::with_capacity(actions.len());
        for action in actions {
            ready.push(self.make_action_ready(client, action).await?);
        }
        Ok(ready)
    }

    /// One change's action with its statement. Its table was looked at before.
    pub(super) async fn make_ready_alone<'a>(
        &mut self,
        client: &Client,
        change: &'a Change,
    ) -> Attempt<Ready<'a>> {
        let locator = match change {
            Change::Truncate { .. } => Locator::Nowhere,
            _ => self.locators[&change.shape().fingerprint()].clone(),
        };
        self.make_action_ready(client, each(change, &locator)?).await
    }

    async fn make_action_ready<'a>(&mut self, client: &Client, action: Action<'a>) -> Attempt<Ready<'a>> {
        let rows = match action {
            Action::Rows(rows) => rows,
            Action::Truncate { shapes } => {
                let tables = shapes.iter().map(|shape| &self.tables[&shape.fingerprint()]);
                return Ok(Ready::Truncate(statement::truncate_text(tables)));
            }
        };
        let fingerprint = rows.shape.fingerprint();
        let name = (fingerprint, rows.operation, rows.set.clone(), rows.locate.clone());
        if let Some(statement) = self.statements.get(&name) {
            return Ok(Ready::Rows(statement.clone(), rows));
        }
        let text = statement::text(&self.tables[&fingerprint], &rows);
        let statement = client.prepare(&text).await.map_err(|error| trouble::of_rows(&error))?;
        if self.statements.len() >= KEPT_MAX {
            self.statements.clear();
        }
        self.statements.insert(name, statement.clone());
        Ok(Ready::Rows(statement, rows))
    }

    /// Looks at the tables that were not looked at yet.
    pub(super) async fn look_at_tables(&mut self, client: &Client, steps: &[Step]) -> Result<()> {
        let wanted = distinct_shapes(steps);
        if self.tables.len() + wanted.len() > KEPT_MAX {
            self.forget();
        }
        for shape in wanted {
            let fingerprint = shape.fingerprint();
            if !self.tables.contains_key(&fingerprint) {
                let table = table::inspect(client, shape).await?;
                self.locators.insert(fingerprint, table.locator.clone());
                self.tables.insert(fingerprint, table);
            }
        }
        Ok(())
    }

    /// Forgets everything: the tables may have changed.
    pub(super) fn forget(&mut self) {
        self.tables.clear();
        self.locators.clear();
        self.statements.clear();
    }
}

fn distinct_shapes(steps: &[Step]) -> Vec<&Arc<Shape>> {
    let mut seen = HashSet::new();
    let mut distinct = Vec::new();
    for change in steps.iter().flat_map(Step::changes) {
        let shapes = match change {
            Change::Truncate { shapes, .. } => &shapes[..],
            change => std::slice::from_ref(change.shape()),
        };
        distinct.extend(shapes.iter().filter(|shape| seen.insert(Arc::as_ptr(shape) as usize)));
    }
    distinct
}
