//! The promises of [`landfall::sink::Sink`], held against every implementation; and what only a real
//! Postgres can show.

#[path = "sink/beside.rs"]
mod beside;
#[path = "sink/log.rs"]
mod log;
#[path = "sink/looking.rs"]
mod looking;
#[path = "sink/not_whole.rs"]
mod not_whole;
#[path = "sink/only_postgres.rs"]
mod only_postgres;
#[path = "sink/parking.rs"]
mod parking;
#[path = "sink/promises.rs"]
mod promises;
#[path = "sink/server.rs"]
mod server;

use std::sync::Arc;

use landfall::{
    change::{Cell, Shape},
    plan::parked::ParkedId,
    sink::{
        OnRefusal, Sink, Wish,
        memory::{MemorySink, MemoryTarget},
        postgres::{PostgresSink, PostgresSinkConfig, parked},
    },
};

use crate::{
    log::{row, shape},
    server::{Database, Server, server},
};

/// A target with the table `public.t (id int8 primary key, v text)`, seen from outside.
#[allow(async_fn_in_trait)]
pub(crate) trait Target {
    type Sink: Sink;
    /// Another daemon's sink for the same stream.
    fn sink(&self) -> Self::Sink;
    /// The same, which parks what is refused.
    fn parking_sink(&self) -> Self::Sink;
    /// The transactions that are parked.
    async fn parked(&self) -> Vec<ParkedId>;
    /// Wants something done with them.
    async fn wish(&self, parked: &[ParkedId], wish: Wish);
    async fn rows(&self) -> Vec<(i64, String)>;
    async fn put(&self, id: i64, v: &str);
    async fn remove(&self, id: i64);
    /// Alters the table: its columns are these.
    async fn alter(&self, to: &Arc<Shape>);
    /// Raises the epoch as a successor would, without ending anybody's session.
    async fn supersede(&self);
}

impl Target for MemoryTarget {
    type Sink = MemorySink;

    fn sink(&self) -> MemorySink {
        MemorySink::new(self.clone(), OnRefusal::Halt)
    }

    fn parking_sink(&self) -> MemorySink {
        MemorySink::new(self.clone(), OnRefusal::Park)
    }

    async fn parked(&self) -> Vec<ParkedId> {
        MemoryTarget::parked(self)
    }

    async fn wish(&self, parked: &[ParkedId], wish: Wish) {
        MemoryTarget::ask(self, parked, wish);
    }

    async fn rows(&self) -> Vec<(i64, String)> {
        let text = |cell: &Cell| match cell {
            Cell::Value(text) => String::from_utf8(text.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        };
        let rows = MemoryTarget::rows(self, "public.t");
        let mut rows: Vec<_> =
            rows.iter().map(|row| (text(&row.0[0]).parse().unwrap(), text(&row.0[1]))).collect();
        rows.sort();
        rows
    }

    async fn put(&self, id: i64, v: &str) {
        MemoryTarget::put(self, &shape(), row([&id.to_string(), v]));
    }

    async fn remove(&self, id: i64) {
        MemoryTarget::remove(self, &shape(), &row([&id.to_string(), ""]));
    }

    async fn alter(&self, to: &Arc<Shape>) {
        MemoryTarget::alter(self, to);
    }

    async fn supersede(&self) {
        self.sink().claim().await.unwrap();
    }
}

/// A database with the table, and a stream of its own: replication origins belong to the server.
struct PostgresTarget {
    database: Database,
    stream: String,
}

impl PostgresTarget {
    async fn new(name: &str) -> Self {
        Self::on(&server(), name).await
    }

    async fn on(server: &Arc<Server>, name: &str) -> Self {
        let database = server.database(name).await;
        let ddl = "CREATE TABLE t (id int8 PRIMARY KEY, v text)";
        database.client.batch_execute(ddl).await.unwrap();
        Self { database, stream: name.to_owned() }
    }

    fn config(&self) -> PostgresSinkConfig {
        PostgresSinkConfig::new(
            self.database.address.clone(),
            "eu-west-1".parse().unwrap(),
            "us-east-1".parse().unwrap(),
            &self.stream,
        )
    }

    async fn run(&self, sql: &str) {
        self.database.client.batch_execute(sql).await.unwrap();
    }

    /// One text out of the target.
    async fn ask(&self, sql: &str) -> Option<String> {
        self.database.client.query_one(sql, &[]).await.unwrap().get(0)
    }
}

impl Target for PostgresTarget {
    type Sink = PostgresSink;

    fn sink(&self) -> PostgresSink {
        PostgresSink::new(self.config())
    }

    fn parking_sink(&self) -> PostgresSink {
        PostgresSink::new(PostgresSinkConfig { on_refusal: OnRefusal::Park, ..self.config() })
    }

    async fn parked(&self) -> Vec<ParkedId> {
        let listed = parked::list(&self.database.client, None).await.unwrap();
        listed.iter().map(|parked| parked.id).collect()
    }

    async fn wish(&self, ids: &[ParkedId], wish: Wish) {
        assert_eq!(parked::ask(&self.database.client, ids, wish).await.unwrap(), []);
    }

    async fn rows(&self) -> Vec<(i64, String)> {
        let rows = self.database.client.query("SELECT id, v FROM t ORDER BY id", &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    async fn put(&self, id: i64, v: &str) {
        self.run(&format!("INSERT INTO t VALUES ({id}, '{v}')")).await;
    }

    async fn remove(&self, id: i64) {
        self.run(&format!("DELETE FROM t WHERE id = {id}")).await;
    }

    async fn alter(&self, to: &Arc<Shape>) {
        for column in &to.columns {
            let (name, type_name) = (&column.name, &column.type_name);
            let alter = format!(
                "ALTER TABLE t ADD COLUMN IF NOT EXISTS {name} {type_name}; ALTER TABLE t ALTER {name} TYPE {type_name}"
            );
            self.run(&alter).await;
        }
    }

    async fn supersede(&self) {
        self.run("UPDATE landfall.progress SET apply_epoch = apply_epoch + 1").await;
    }
}

macro_rules! promises {
    ($($file:ident: $($name:ident)+;)+) => {
        mod memory {
            $($(#[tokio::test]
            async fn $name() {
                crate::$file::$name(&landfall::sink::memory::MemoryTarget::default()).await;
            })+)+
        }
        mod postgres {
            $($(#[tokio::test]
            async fn $name() {
                crate::$file::$name(&crate::PostgresTarget::new(stringify!($name)).await).await;
            })+)+
        }
    };
}

promises! {
    promises:
    rows_and_progress_arrive_together
    a_successor_goes_on_where_the_predecessor_ended
    an_old_epoch_and_a_wrong_place_are_refused
    another_life_of_the_stream_is_refused
    conflicts_are_named_and_what_came_before_stays
    slices_become_visible_with_the_last
    an_abandoned_transaction_leaves_nothing
    a_conflict_in_a_slice_takes_the_transaction_back
    one_source_transaction_may_be_one_target_transaction
    empty_batches_move_progress
    a_table_that_is_filled_is_lenient_and_then_strict
    rows_that_are_mended_are_as_they_were_sent
    some_of_a_tables_rows_take_the_place_of_others
    a_table_that_may_be_stale_keeps_its_rows_and_is_lenient
    a_mark_that_is_taken_back_was_never_made
    a_table_copied_under_one_snapshot_ends_with_what_changed_since
    a_table_may_change_its_shape_within_a_batch
    a_batch_halts_where_its_table_changes_to_what_the_target_does_not_take
    what_is_parked_does_not_keep_a_batch_from_going_as_far_as_its_table_fits
    ;
    parking:
    what_is_refused_is_parked_and_the_rest_goes_on
    what_changes_a_parked_row_waits_behind
    a_parked_transaction_is_applied_in_its_turn
    a_table_that_was_emptied_waits_as_a_whole
    what_is_discarded_never_comes
    a_transaction_larger_than_memory_is_parked_whole
    what_comes_behind_one_that_is_to_be_applied_is_to_be_as_well
    rows_that_come_anew_overtake_what_is_parked
    however_it_is_parked_it_ends_as_the_source
    no_more_is_parked_than_may_be
    ;
}
