//! What becomes of parked transactions: each wish is carried out in a commit of its own, oldest first.
//!
//! ```text
//!  retry    ▶ stands behind another, or half overtaken: stays, and is told why
//!           ▶ its changes, one by one, and gone from landfall.parked: one commit; refused again: stays
//!           ▶ somebody holds a lock, or the server has no room: it is still asked for, and tried again after a while
//!  discard  ▶ gone from landfall.parked
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Session,
    alone::InTheWay,
    blocker::{ask_blocker, watch, with_blocker},
    into_fault,
    park::{behind, parked_remedy, with_remedy},
};
use crate::{
    change::{Frame, Ordered, TransactionHead},
    crash,
    envelope::decode::Shapes,
    fault::{Code, Fault, Result},
    plan::parked::{ParkedId, Part},
    position::{Offset, Sequence, WriterEpoch},
    postgres::fault_of,
    progress::{Arrival, Cursor},
    region::Region,
    sink::{
        Attended, Conflict, ConflictKind, Replayed, Step, Wish,
        postgres::{
            guard::Origin,
            parked::{self, Asked, Content, PART, part_of},
            trouble::{self, Attempt, Trouble},
        },
    },
    stamp::Micros,
};

/// How often a deadlock or a conflict of transactions is met before a parked transaction stays.
const RETRY_ATTEMPTS_MAX: u32 = 3;

/// The stream waits meanwhile: not for a lock that somebody holds.
const BEGIN_ATTENDING: &str = "BEGIN; SET LOCAL synchronous_commit = on; SET LOCAL lock_timeout = '1s'";
/// That long.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// What met a lock, or a server that lacks room, is not tried for so long: the stream waits while it is.
const BUSY_REST: Duration = Duration::from_secs(5);

/// How long what is asked for is attended to before the stream goes on: the rest has its turn at the next look.
const ATTEND_FOR: Duration = Duration::from_secs(1);
/// Where there was no time for all, the next look takes so many times as long as the stream went on for: whatever comes in
/// that time may wait behind what is parked, and takes less to be parked than to be applied. So it ends.
const ARREARS: u32 = 8;
/// But no longer than this: nobody is told anything meanwhile, and where one after the other stays as it is, nothing shows
/// that we live; who is silent for ten seconds is taken for dead.
const ATTEND_FOR_MAX: Duration = Duration::from_secs(5);

impl Session {
    /// Does what is asked for, oldest first.
    pub(in crate::sink::postgres) async fn attend(&mut self) -> Result<Attended> {
        let meanwhile = self.in_arrears.take().map_or(Duration::ZERO, |since| since.elapsed());
        let until = Instant::now() + (ARREARS * meanwhile).clamp(ATTEND_FOR, ATTEND_FOR_MAX);
        let (mut more, mut shapes) = (false, None);
        // Those that rest, and what stands behind them.
        let mut rest = BTreeSet::new();
        let mut replayed = BTreeMap::new();
        let (mut after, mut looked_again) = (ParkedId(0), false);
        while self.open.is_none() && !self.kept.transactions.is_empty() {
            let (link, stream) = (self.config.from.as_str(), self.config.stream.as_str());
            let Some(asked) = parked::asked(self.client(), link, stream, after).await? else { break };
            more = Instant::now() >= until;
            if more {
                self.in_arrears = Some(Instant::now());
                break;
            }
            after = asked.id;
            let rests = self.busy.get(&asked.id).is_some_and(|until| Instant::now() < *until);
            if asked.wish == Wish::Retry && rests {
                rest.insert(asked.id);
                continue;
            }
            if !looked_again {
                // Whoever asks may have mended the table.
                self.known.forget();
                looked_again = true;
            }
            match asked.wish {
                Wish::Discard => self.discard(&asked).await?,
                Wish::Retry => {
                    if shapes.is_none() {
                        shapes = Some(parked::shapes(self.client(), (link, stream)).await?);
                    }
                    let shapes = shapes.as_ref().expect("read above");
                    self.retry(&asked, shapes, &mut rest, &mut replayed).await?;
                }
            }
        }
        let replayed = replayed.into_values().collect();
        Ok(Attended { parked: self.kept.transactions.len(), more, replayed })
    }

    async fn discard(&mut self, asked: &Asked) -> Result<()> {
        let parts = self.parts(asked.id).await?;
        let discarded = self.try_discard(asked).await;
        if !self.end_of_attending(discarded).await.map_err(into_fault)? {
            return Ok(());
        }
        let changes = self.kept.transactions.get(&asked.id).copied();
        self.forget_parked(asked.id, &parts);
        let (id, position) = (asked.id, asked.position);
        tracing::warn!(%id, %position, changes, "parked transaction discarded, as was asked for");
        Ok(())
    }

    /// Applies a parked transaction, or notes why it still cannot be. Where that says nothing of the transaction, or it stands
    /// behind one of those that `rest`, it is still asked for, and rests as well.
    async fn retry(
        &mut self,
        asked: &Asked,
        shapes: &Shapes,
        rest: &mut BTreeSet<ParkedId>,
        replayed: &mut BTreeMap<(String, &'static str), Replayed>,
    ) -> Result<()> {
        let id = asked.id;
        let parts = self.parts(id).await?;
        let ahead = parts.iter().filter_map(|part| self.kept.rows.holder(part)).min().filter(|it| *it < id);
        if let Some(ahead) = ahead {
            if rest.contains(&ahead) {
                rest.insert(id);
                return Ok(());
            }
            return self.note_behind(id, ahead).await;
        }
        let overtaken = "SELECT EXISTS (SELECT FROM landfall.parked_row WHERE parked = $1 AND overtaken)";
        let overtaken =
            self.client().query_one(overtaken, &[&id.0]).await.map_err(|error| fault_of(&error))?;
        if overtaken.get(0) {
            let why = "a backfill or repair has brought newer rows for a part of it. It goes by itself once one has brought \
                       the rest (`landfall repair --execute`; where it emptied a table, a backfill of that table); where \
                       nothing of the rest differs, discard it";
            return self.note_outcome(id, Code::Conflict, why).await;
        }
        let mut attempt = 1;
        loop {
            let mut counts = BTreeMap::new();
            let config = self.config.clone();
            let ask = ask_blocker(&config, self.backend.pid);
            self.known.find_by_text(true);
            let (tried, blocker) = watch(self.try_retry(asked, shapes, &mut counts), WAIT_MAX / 2, ask).await;
            self.known.find_by_text(false);
            match self.end_of_attending(tried).await.map_err(|trouble| with_blocker(trouble, blocker)) {
                Ok(false) => return Ok(()),
                Ok(true) => {
                    self.forget_parked(id, &parts);
                    for (name, count) in counts {
                        let sum: &mut Replayed =
                            replayed.entry(name).or_insert_with(|| Replayed { rows: 0, ..count.clone() });
                        sum.rows += count.rows;
                    }
                    tracing::info!(%id, position = %asked.position, "parked transaction applied");
                    return Ok(());
                }
                Err(Trouble::Again(fault)) if attempt < RETRY_ATTEMPTS_MAX => {
                    tracing::debug!(%id, %fault, attempt, "parked transaction rolled back, tried again");
                    attempt += 1;
                }
                Err(trouble) => {
                    let fault = into_fault(trouble);
                    if is_of_the_session(&fault) {
                        return Err(fault);
                    }
                    if fault.code() == Code::TargetBusy {
                        rest.insert(id);
                        self.busy.insert(id, Instant::now() + BUSY_REST);
                        return self.note_busy(id, &fault).await;
                    }
                    return self.note_outcome(id, fault.code(), &with_advice(&fault)).await;
                }
            }
        }
    }

    async fn try_retry(
        &mut self,
        asked: &Asked,
        shapes: &Shapes,
        counts: &mut BTreeMap<(String, &'static str), Replayed>,
    ) -> Attempt<bool> {
        if !self.begin_attending(asked).await? {
            return Ok(false);
        }
        let mut content = Content::of(asked.id, shapes);
        loop {
            let changes = content.next(self.client()).await?;
            if changes.is_empty() {
                break;
            }
            for change in changes.iter().map(|ordered| &ordered.change) {
                let (shape, operation) = (change.shape(), change.operation());
                let count = counts
                    .entry((shape.to_string(), operation.as_str()))
                    .or_insert_with(|| Replayed { shape: Arc::clone(shape), operation, rows: 0 });
                count.rows += 1;
            }
            let step = step_of(self.config.from.clone(), asked, changes);
            self.known.look_at_tables(&self.connection, std::slice::from_ref(&step)).await?;
            self.note_touched(std::slice::from_ref(&step));
            self.one_by_one(&step, InTheWay::Stays).await?;
        }
        if let Some(origin) = Origin::of(Some(asked.position), Some(asked.committed)) {
            let set = self.guard.set_origin(self.client(), origin).await;
            set.map_err(|error| trouble::of_guard(&error))?;
        }
        self.take_away(asked.id).await?;
        crash::point("parked.before_commit");
        Ok(true)
    }

    async fn try_discard(&self, asked: &Asked) -> Attempt<bool> {
        if !self.begin_attending(asked).await? {
            return Ok(false);
        }
        self.take_away(asked.id).await.map(|()| true)
    }

    /// Opens a transaction to do what is asked for; false where it is not asked for any more.
    async fn begin_attending(&self, asked: &Asked) -> Attempt<bool> {
        self.run(BEGIN_ATTENDING).await?;
        let touch = self.guard.touch(self.client(), self.committed)?.await;
        touch.map_err(|error| trouble::of_guard(&error))?;
        let still = "SELECT FROM landfall.parked WHERE id = $1 AND asked = $2 FOR UPDATE";
        let still = self.client().query_opt(still, &[&asked.id.0, &asked.wish.as_str()]).await;
        Ok(still.map_err(|error| trouble::of_guard(&error))?.is_some())
    }

    /// Takes a parked transaction out of our tables, in the transaction that is open.
    async fn take_away(&self, id: ParkedId) -> Attempt<()> {
        let gone = "WITH changes AS (DELETE FROM landfall.parked_change WHERE parked = $1),
                         rows AS (DELETE FROM landfall.parked_row WHERE parked = $1)
                    DELETE FROM landfall.parked WHERE id = $1";
        self.client().execute(gone, &[&id.0]).await.map_err(|error| trouble::of_guard(&error))?;
        Ok(())
    }

    /// Commits what was done with a parked transaction, or rolls it back; gives whether it was done.
    async fn end_of_attending(&mut self, done: Attempt<bool>) -> Attempt<bool> {
        if !matches!(done, Ok(true)) {
            let _ = self.run("ROLLBACK").await;
            return done;
        }
        if let Err(error) = self.client().batch_execute("COMMIT").await {
            return Err(match trouble::of_rows(&error) {
                Trouble::Stale(refusal) | Trouble::Differs(refusal) => {
                    Trouble::Fault(trouble::of_commit(refusal, None))
                }
                trouble => trouble,
            });
        }
        crash::point("parked.after_commit");
        self.note_all_flushed();
        Ok(true)
    }

    /// It was tried, and stays.
    async fn note_outcome(&self, id: ParkedId, code: Code, why: &str) -> Result<()> {
        tracing::warn!(%id, %code, "parked transaction stays: {why}");
        let note = "UPDATE landfall.parked SET asked = NULL, attempts = attempts + 1, code = $2, reason = $3
                     WHERE id = $1 AND asked = 'retry'";
        let noted = self.client().execute(note, &[&id.0, &code.as_str(), &why]).await;
        noted.map(drop).map_err(|error| fault_of(&error).at("note what became of a parked transaction"))
    }

    /// It was tried, and is to be again.
    async fn note_busy(&self, id: ParkedId, fault: &Fault) -> Result<()> {
        let why = with_remedy(fault);
        tracing::warn!(%id, code = %fault.code(), "parked transaction waits: {why}");
        let note = "UPDATE landfall.parked SET attempts = attempts + 1, code = $2, reason = $3
                     WHERE id = $1 AND asked = 'retry'";
        let noted = self.client().execute(note, &[&id.0, &fault.code().as_str(), &why]).await;
        noted.map(drop).map_err(|error| fault_of(&error).at("note what a parked transaction waits for"))
    }

    /// It stands behind another, and was not tried.
    async fn note_behind(&self, id: ParkedId, ahead: ParkedId) -> Result<()> {
        let note = "UPDATE landfall.parked SET asked = NULL, code = NULL, reason = $2
                     WHERE id = $1 AND asked = 'retry'";
        let noted = self.client().execute(note, &[&id.0, &behind(ahead)]).await;
        noted.map(drop).map_err(|error| fault_of(&error).at("note what a parked transaction waits for"))
    }

    async fn parts(&self, id: ParkedId) -> Result<Vec<Part>> {
        let parts = format!("SELECT {PART} FROM landfall.parked_row r WHERE r.parked = $1");
        let rows = self.client().query(&parts, &[&id.0]).await;
        let rows = rows.map_err(|error| fault_of(&error).at("read what a parked transaction speaks for"))?;
        Ok(rows.iter().map(|row| part_of(row).1).collect())
    }

    fn forget_parked(&mut self, id: ParkedId, parts: &[Part]) {
        self.kept.remove(id);
        self.busy.remove(&id);
        for part in parts {
            self.kept.rows.remove(id, part);
        }
    }
}

/// Whether a fault ends the session, and says nothing of the transaction that met it.
fn is_of_the_session(fault: &Fault) -> bool {
    matches!(fault.code(), Code::DatabaseUnreachable | Code::DatabaseRefused | Code::Superseded)
}

/// As [`parked_remedy`], for one that was tried again: what stands in its way may have come after it.
fn with_advice(fault: &Fault) -> String {
    let conflict = std::error::Error::source(fault).and_then(|cause| cause.downcast_ref::<Conflict>());
    match conflict.map(|conflict| conflict.kind) {
        Some(ConflictKind::InsertExists | ConflictKind::UpdateExists) => format!(
            "{} (next: the row in the way may be newer than this transaction, by another unique value: compare it with the \
             source's before you delete it; `landfall repair --execute` brings what differs)",
            fault.message()
        ),
        _ if fault.code() == Code::TableDiffers => format!(
            "{} (next: {}; where it was altered since with the source's, leave it: `landfall repair --execute` brings the \
             rows as they are now, and `landfall parked discard` forgets these)",
            fault.message(),
            fault.remedy()
        ),
        _ => parked_remedy(fault),
    }
}

/// Changes of a parked transaction as a step; its place in the stream is of no account.
fn step_of(from: Region, asked: &Asked, changes: Vec<Ordered>) -> Step {
    let nowhere = Cursor { sequence: Sequence(0), epoch: WriterEpoch(0), offset: Offset(0), position: None };
    let head = TransactionHead { position: asked.position, time: asked.committed, origin: from };
    Step {
        frame: Frame { head, changes, first: true, last: true },
        through: nowhere,
        arrival: Arrival { appended: Micros(0), fetched: Micros(0) },
        answer: None,
    }
}
