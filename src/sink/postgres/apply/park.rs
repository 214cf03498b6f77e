//! Transactions that are kept aside: because the target refuses them, or because they say something of a row that one
//! kept aside before them speaks for.
//!
//! ```text
//!  refused alone, or behind another ▶ its changes into landfall.parked, and progress moved: one commit
//!  larger than memory               ▶ behind another from its first slice on: slice by slice into landfall.parked
//!                                   ▶ otherwise noted, LF-PARKING, read again: the same
//!  a backfill or repair brings rows ▶ what is parked of exactly these rows is overtaken, and goes: the same commit
//! ```

use std::collections::HashMap;

use super::{Group, Open, Session, into_fault};
use crate::{
    change::{Change, Mark, Shape, TransactionHead},
    crash,
    envelope::{Encoded, Encoder, Format},
    fault::{Code, Fault, Result},
    plan::parked::{ParkedId, Part, RowName, parts_of},
    position::{Incarnation, Position, Sequence},
    sink::{
        Batch, Conflict, ConflictKind, OnRefusal, PARKED_CHANGES_MAX, Step,
        postgres::{
            parked::Kept,
            pipeline::Pipeline,
            trouble::{self, Attempt},
            wire::{AsText, Timestamp},
        },
    },
    stamp::Micros,
    verify::TableName,
};

/// Why a transaction is kept aside.
#[derive(Debug)]
pub(in crate::sink::postgres) enum Why {
    /// The target refuses it.
    Refused(Fault),
    /// One that is parked speaks for the same row.
    Behind(ParkedId),
}

/// A transaction larger than memory that is to be kept aside when its first slice comes again.
#[derive(Debug)]
pub(in crate::sink::postgres) struct Condemned {
    incarnation: Incarnation,
    after: Sequence,
    committed: Micros,
    why: Why,
    /// There was no room for it when so many changes were parked.
    full_at: Option<u64>,
}

impl Condemned {
    pub(super) fn new(batch: &Batch, step: &Step, why: Why) -> Self {
        let committed = step.frame.head.time;
        Self { incarnation: batch.incarnation, after: batch.after, committed, why, full_at: None }
    }

    /// The same, for which there is no room where so many changes are parked.
    pub(super) fn full(batch: &Batch, step: &Step, why: Why, full_at: u64) -> Self {
        Self { full_at: Some(full_at), ..Self::new(batch, step, why) }
    }

    fn fits(&self, parked: u64) -> bool {
        self.full_at.is_none_or(|full_at| parked < full_at)
    }

    /// Its source may have aborted it: then another one begins at the same place.
    fn is(&self, batch: &Batch, step: &Step) -> bool {
        (self.incarnation, self.after, self.committed)
            == (batch.incarnation, batch.after, step.frame.head.time)
    }
}

impl Why {
    fn message(&self) -> String {
        match self {
            Self::Refused(fault) => fault.message(),
            Self::Behind(id) => behind(*id),
        }
    }
}

fn full(parked: u64, why: &Why) -> Fault {
    let message = format!(
        "{parked} changes are parked, and no more than {PARKED_CHANGES_MAX} may be: {}",
        why.message()
    );
    Fault::new(Code::ParkedFull, message)
}

pub(super) fn behind(id: ParkedId) -> String {
    format!("a row it changes is spoken for by parked transaction {id}, and it waits behind")
}

/// The columns that tell a table's rows apart.
type Columns = Box<[Box<str>]>;

/// Rows of one table that changes speak for: which change, and the row's key.
#[derive(Default)]
struct SpokenFor {
    ordinals: Vec<i64>,
    keys: Vec<Option<Box<[u8]>>>,
}

impl Session {
    /// Whether what went wrong with a transaction has it kept aside.
    pub(super) fn parks(&self, fault: &Fault) -> bool {
        self.config.on_refusal == OnRefusal::Park
            && matches!(fault.code(), Code::Conflict | Code::RowRejected)
    }

    /// The oldest parked transaction that speaks for a row these steps change.
    pub(super) async fn ahead_of(&mut self, steps: &[Step]) -> Result<Option<ParkedId>> {
        if self.kept.rows.is_empty() {
            return Ok(None);
        }
        self.known.look_at_tables(&self.connection, steps).await?;
        Ok(self.kept.rows.ahead_of(steps.iter().flat_map(Step::changes), self.known.locators()))
    }

    /// How many of the first steps wait behind nothing. Ends before one that does not fit its table: those before it do.
    pub(super) async fn count_free(&mut self, steps: &[Step]) -> Result<usize> {
        for (at, step) in steps.iter().enumerate() {
            match self.known.look_at_tables(&self.connection, std::slice::from_ref(step)).await {
                Err(fault) if fault.code() == Code::TableDiffers && at > 0 => return Ok(at),
                looked => looked?,
            }
            if self.kept.rows.ahead_of(step.changes(), self.known.locators()).is_some() {
                return Ok(at);
            }
        }
        Ok(steps.len())
    }

    /// Keeps one whole transaction aside, and moves the progress over it.
    pub(super) async fn park(&mut self, alone: &Group<'_>, why: Why) -> Result<()> {
        let [step] = alone.steps else {
            return Err(Fault::new(Code::Internal, "only a single transaction is parked"));
        };
        self.require_room(step, &why)?;
        let parked = self.try_park(alone, step, &why).await;
        if parked.is_err() {
            let _ = self.run("ROLLBACK").await;
        }
        let id = parked.map_err(into_fault)?;
        crash::point("apply.before_commit");
        self.run("COMMIT").await?;
        crash::point("apply.after_commit");
        self.note_commit(alone.to.through.sequence);
        self.note_parked(id, step);
        self.aside.push(step.frame.head.position);
        self.refused.extend(refusal(why, id));
        Ok(())
    }

    async fn try_park(&mut self, alone: &Group<'_>, step: &Step, why: &Why) -> Attempt<ParkedId> {
        self.known.look_at_tables(&self.connection, alone.steps).await?;
        let mut pipeline = Pipeline::default();
        let own = self.send_head(&mut pipeline, alone).await?;
        for _ in 0..own {
            pipeline.answer().await.map_err(|error| trouble::of_guard(&error))?;
        }
        drop(pipeline);
        let id = self.keep_head(&step.frame.head, why).await?;
        self.keep_changes(id, step).await?;
        Ok(id)
    }

    fn require_room(&self, step: &Step, why: &Why) -> Result<()> {
        let parked = self.kept.changes();
        let fits = parked + step.frame.changes.len() as u64 <= PARKED_CHANGES_MAX;
        if fits { Ok(()) } else { Err(full(parked, why)) }
    }

    /// Has a transaction larger than memory read again, to be parked whole; where there is no room for it, says so.
    pub(super) fn condemn(&mut self, batch: &Batch, step: &Step, why: Why) -> Fault {
        let parked = self.kept.changes();
        if let Some(condemned) = self.condemned.as_ref().filter(|it| it.is(batch, step) && !it.fits(parked)) {
            return full(parked, &condemned.why);
        }
        let message = why.message();
        self.condemned = Some(Condemned::new(batch, step, why));
        Fault::new(Code::Parking, message)
    }

    /// Has a transaction larger than memory parked whose first slice waits behind one that is: nothing of it is applied, so
    /// it need not be read again. One there was no room for stays so.
    pub(super) fn condemn_from_its_first(&mut self, batch: &Batch, step: &Step, ahead: ParkedId) {
        if !self.condemned.as_ref().is_some_and(|it| it.is(batch, step)) {
            self.condemned = Some(Condemned::new(batch, step, Why::Behind(ahead)));
        }
    }

    /// Notes a parked transaction, in the transaction that is open.
    async fn keep_head(&self, head: &TransactionHead, why: &Why) -> Attempt<ParkedId> {
        let (link, stream) = (self.config.from.as_str(), self.config.stream.as_str());
        let (code, reason, ahead) = match why {
            Why::Refused(fault) => (Some(fault.code().as_str()), parked_remedy(fault), None),
            Why::Behind(id) => (None, behind(*id), Some(id.0)),
        };
        // What comes behind one that is to be applied again is to be as well, or what is written without a pause would have
        // something parked for ever.
        let keep = "INSERT INTO landfall.parked (link, stream, position, committed, code, reason, asked)
                    VALUES ($1, $2, $3::jsonb, $4, $5, $6,
                            (SELECT asked FROM landfall.parked WHERE id = $7 AND asked = 'retry')) RETURNING id";
        let (position, committed) = (position_text(&head.position)?, Timestamp::from(head.time));
        let kept = self
            .client()
            .query_one(keep, &[&link, &stream, &position, &committed, &code, &reason, &ahead])
            .await
            .map_err(|error| trouble::of_guard(&error))?;
        Ok(ParkedId(kept.get(0)))
    }

    /// Keeps changes of a parked transaction and the rows they speak for, in the transaction that is open. Their tables
    /// were looked at before.
    async fn keep_changes(&self, id: ParkedId, step: &Step) -> Attempt<()> {
        let mut encoder = Encoder::new(&self.config.from, "", Format::Packed);
        let head = &step.frame.head;
        encoder.begin(&head.position, head.time);
        let (mut ordinals, mut operations, mut bodies) = (Vec::new(), Vec::new(), Vec::new());
        let mut spoken: HashMap<(TableName, Option<Columns>), SpokenFor> = HashMap::new();
        for ordered in &step.frame.changes {
            let (change, ordinal) = (&ordered.change, ordinal_of(ordered.ordinal)?);
            let mut encoded = Encoded::default();
            encoder
                .change(change, ordered.ordinal, Some(&head.position), &mut encoded)
                .map_err(|error| Fault::new(Code::Internal, "write a change to be parked").because(error))?;
            ordinals.push(ordinal);
            operations.push(change.operation().as_str());
            bodies.push(encoded.value);
            for Part { table, row } in parts_of(change, self.known.locators()) {
                let (columns, key) = row.map(|RowName { columns, key }| (columns, key)).unzip();
                let of = spoken.entry((table, columns)).or_default();
                of.ordinals.push(ordinal);
                of.keys.push(key);
            }
        }
        let failed = |error: tokio_postgres::Error| trouble::of_guard(&error);
        let keep = "INSERT INTO landfall.parked_change (parked, ordinal, operation, body)
                    SELECT $1, * FROM unnest($2::int8[], $3::text[], $4::bytea[])";
        self.client().execute(keep, &[&id.0, &ordinals, &operations, &bodies]).await.map_err(failed)?;
        let speak = "INSERT INTO landfall.parked_row (parked, ordinal, schema_name, table_name, columns, key)
                     SELECT $1, ordinal, $2, $3, $4, key FROM unnest($5::int8[], $6::bytea[]) AS r (ordinal, key)";
        for ((table, columns), SpokenFor { ordinals, keys }) in &spoken {
            let columns: Option<Vec<&str>> =
                columns.as_ref().map(|it| it.iter().map(|name| &**name).collect());
            let keys: Vec<Option<&[u8]>> = keys.iter().map(Option::as_deref).collect();
            self.client()
                .execute(speak, &[&id.0, &table.schema, &table.table, &columns, &ordinals, &keys])
                .await
                .map_err(failed)?;
        }
        Ok(())
    }

    fn note_parked(&mut self, id: ParkedId, step: &Step) {
        self.kept.add(id, step.frame.changes.len() as u64);
        for part in step.changes().flat_map(|change| parts_of(change, self.known.locators())) {
            self.kept.rows.add(id, &part);
        }
    }

    /// Begins to keep a transaction larger than memory aside, where it is to be.
    pub(super) async fn open_aside(&mut self, batch: &Batch, step: &Step) -> Attempt<()> {
        let Some(condemned) = self.condemned.take_if(|it| it.is(batch, step) && it.fits(self.kept.changes()))
        else {
            return Ok(());
        };
        // What it was to wait behind may have been applied since.
        if matches!(condemned.why, Why::Behind(id) if !self.kept.transactions.contains_key(&id)) {
            return Ok(());
        }
        self.run("BEGIN").await?;
        let touch = self.guard.touch(self.client(), batch.after)?.await;
        touch.map_err(|error| trouble::of_guard(&error))?;
        let id = self.keep_head(&step.frame.head, &condemned.why).await?;
        let aside = Some((id, condemned.why));
        self.open = Some(Open { after: batch.after, heartbeat: None, aside, shapes: Vec::new() });
        Ok(())
    }

    /// Keeps a slice aside, in the transaction that is open.
    pub(super) async fn keep_slice(&mut self, id: ParkedId, batch: &Batch, step: &Step) -> Attempt<()> {
        self.known.look_at_tables(&self.connection, std::slice::from_ref(step)).await?;
        let mut pipeline = Pipeline::default();
        for _ in 0..self.send_shapes(&mut pipeline, &batch.shapes).await? {
            pipeline.answer().await.map_err(|error| trouble::of_guard(&error))?;
        }
        drop(pipeline);
        self.keep_changes(id, step).await?;
        self.note_parked(id, step);
        self.aside.push(step.frame.head.position);
        if step.frame.last {
            // Where it ends is known only now.
            let place = "UPDATE landfall.parked SET position = $2::jsonb WHERE id = $1";
            let position = position_text(&step.frame.head.position)?;
            self.client()
                .execute(place, &[&id.0, &position])
                .await
                .map_err(|error| trouble::of_guard(&error))?;
        }
        Ok(())
    }

    /// As [`Session::require_room`], for a slice of a transaction that is being kept aside. Without room, the next session
    /// tries to apply it, as one that halts does.
    pub(super) fn require_room_for_slice(&mut self, batch: &Batch, step: &Step) -> Result<()> {
        let Some((id, why)) = self.open.as_ref().and_then(|open| open.aside.as_ref()) else { return Ok(()) };
        let Err(fault) = self.require_room(step, why) else { return Ok(()) };
        let others = self.kept.changes() - self.kept.transactions.get(id).copied().unwrap_or_default();
        let why = self.open.take().and_then(|open| open.aside).map(|(_, why)| why);
        self.condemned = why.map(|why| Condemned::full(batch, step, why, others));
        Err(fault)
    }

    /// Reads anew what is parked.
    pub(super) async fn read_parked(&mut self) -> Result<()> {
        let (link, stream) = (self.config.from.as_str(), self.config.stream.as_str());
        self.kept = Kept::read(self.client(), link, stream).await?;
        self.overtakes = false;
        Ok(())
    }

    /// A backfill begins a table, or has its rows mended: whatever is parked of it is older than what comes.
    pub(super) async fn overtake_table(&mut self, shape: &Shape, mark: Mark) -> Attempt<()> {
        let table = TableName { schema: shape.schema.to_string(), table: shape.table.to_string() };
        let brings = !matches!(mark, Mark::Done | Mark::Settled);
        if !brings || self.kept.rows.holder(&Part { table: table.clone(), row: None }).is_none() {
            return Ok(());
        }
        let overtaken = "UPDATE landfall.parked_row r SET overtaken = true FROM landfall.parked p
                          WHERE p.id = r.parked AND p.link = $1 AND p.stream = $2
                            AND r.schema_name = $3 AND r.table_name = $4";
        let (link, stream) = (self.config.from.as_str(), self.config.stream.as_str());
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
            [&link, &stream, &table.schema, &table.table];
        self.client().execute(overtaken, &parameters).await.map_err(|error| trouble::of_guard(&error))?;
        self.drop_overtaken().await
    }

    /// A backfill's rows that do not go in: what is parked of their table may be why, where it would have moved another row
    /// out of their way.
    pub(super) fn with_what_is_parked(&self, fault: Fault, change: &Change) -> Fault {
        let Change::Chunk { shape, .. } = change else { return fault };
        let table = TableName { schema: shape.schema.to_string(), table: shape.table.to_string() };
        match self.kept.rows.holder(&Part { table, row: None }) {
            Some(id) => fault.remedied_by(format!(
                "parked transaction {id} changes rows of this table, which may stand in the way: mend what it was refused for, \
                 and `landfall parked retry {id}`; it goes on by itself"
            )),
            None => fault,
        }
    }

    /// Rows came as they are here in the stream: whatever is parked of exactly these rows is older.
    pub(super) async fn overtake_rows(&mut self, change: &Change) -> Attempt<()> {
        let shape = change.shape();
        let table = TableName { schema: shape.schema.to_string(), table: shape.table.to_string() };
        let whole = Part { table, row: None };
        if self.kept.rows.holder(&whole).is_none() {
            return Ok(());
        }
        // Behind one that speaks for the whole table everything is played again in its order.
        if self.kept.rows.is_whole(&whole.table) {
            return Ok(());
        }
        let parts = parts_of(change, self.known.locators());
        let held = parts.into_iter().filter(|part| self.kept.rows.holder(part).is_some());
        let (columns, keys): (Vec<_>, Vec<_>) =
            held.filter_map(|part| part.row).map(|row| (row.columns, row.key.into_vec())).unzip();
        let Some(columns) = columns.first() else { return Ok(()) };
        let columns: Vec<&str> = columns.iter().map(|name| &**name).collect();
        let overtaken = "UPDATE landfall.parked_row r SET overtaken = true FROM landfall.parked p
                          WHERE p.id = r.parked AND p.link = $1 AND p.stream = $2
                            AND r.schema_name = $3 AND r.table_name = $4 AND r.columns = $5
                            AND r.key IN (SELECT unnest($6::bytea[]))";
        let (link, stream) = (self.config.from.as_str(), self.config.stream.as_str());
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
            [&link, &stream, &whole.table.schema, &whole.table.table, &columns, &keys];
        self.client().execute(overtaken, &parameters).await.map_err(|error| trouble::of_guard(&error))?;
        self.drop_overtaken().await
    }

    /// Takes away, in the transaction that is open, the changes of which everything is overtaken, and transactions of
    /// which no change is left.
    async fn drop_overtaken(&mut self) -> Attempt<()> {
        let (link, stream) = (self.config.from.as_str(), self.config.stream.as_str());
        let changes = "DELETE FROM landfall.parked_change c USING landfall.parked p
                        WHERE p.id = c.parked AND p.link = $1 AND p.stream = $2 AND NOT EXISTS (
                              SELECT FROM landfall.parked_row r
                               WHERE r.parked = c.parked AND r.ordinal = c.ordinal AND NOT r.overtaken)";
        let rows = "DELETE FROM landfall.parked_row r USING landfall.parked p
                     WHERE p.id = r.parked AND p.link = $1 AND p.stream = $2 AND NOT EXISTS (
                           SELECT FROM landfall.parked_change c WHERE c.parked = r.parked AND c.ordinal = r.ordinal)";
        let transactions = "DELETE FROM landfall.parked p
                             WHERE p.link = $1 AND p.stream = $2 AND NOT EXISTS (
                                   SELECT FROM landfall.parked_change c WHERE c.parked = p.id)";
        for statement in [changes, rows, transactions] {
            let done = self.client().execute(statement, &[&link, &stream]).await;
            done.map_err(|error| trouble::of_guard(&error))?;
        }
        self.overtakes = true;
        Ok(())
    }
}

pub(super) fn with_remedy(fault: &Fault) -> String {
    format!("{} (next: {})", fault.message(), fault.remedy())
}

/// As [`with_remedy`], for a transaction that is parked: nothing of it goes on by itself.
pub(super) fn parked_remedy(fault: &Fault) -> String {
    let conflict = std::error::Error::source(fault).and_then(|cause| cause.downcast_ref::<Conflict>());
    let next = match (conflict.map(|conflict| conflict.kind), fault.code()) {
        (Some(ConflictKind::InsertExists | ConflictKind::UpdateExists), _) => {
            "delete or move the row that stands in the way at the target, then `landfall parked retry`"
        }
        (Some(ConflictKind::UpdateMissing | ConflictKind::DeleteMissing), _) => {
            "where `landfall verify` finds nothing different, it has been overtaken: `landfall parked discard`; else insert \
             the row at the target as it was before, then `landfall parked retry`"
        }
        (None, Code::RowRejected) if fault.remedy() == Code::RowRejected.remedy() => {
            "make the target's table accept the row as the source's does, then `landfall parked retry`"
        }
        _ => return with_remedy(fault),
    };
    format!("{} (next: {next})", fault.message())
}

/// Says that a transaction was refused and is parked; gives what is counted of it. Said here and not by whoever is given
/// it: what follows in the same batch may fail.
pub(super) fn refusal(why: Why, id: ParkedId) -> Option<Fault> {
    match why {
        Why::Refused(fault) => {
            tracing::warn!(code = %fault.code(), next = "landfall parked", "parked as {id}: {}", fault.message());
            Some(fault)
        }
        Why::Behind(_) => None,
    }
}

fn position_text(position: &Position) -> Result<AsText> {
    serde_json::to_string(position)
        .map(AsText)
        .map_err(|error| Fault::new(Code::Internal, "write a position").because(error))
}

fn ordinal_of(ordinal: u64) -> Result<i64> {
    i64::try_from(ordinal)
        .map_err(|_| Fault::new(Code::Internal, format!("{ordinal} is no change's place in a transaction")))
}
