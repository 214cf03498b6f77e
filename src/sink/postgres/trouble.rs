//! What an error of the server means to the batch it happened in.

use tokio_postgres::{Error, error::SqlState};

use crate::{
    change::{Change, Operation},
    fault::{Code, Fault},
    plan::Unlocatable,
    position::Position,
    postgres::fault_of,
    sink::{Conflict, ConflictKind, conflict::key_of},
};

/// What became of one attempt.
pub(super) type Attempt<T> = std::result::Result<T, Trouble>;

/// Why a batch did not go through.
pub(super) enum Trouble {
    /// It cannot go on.
    Fault(Fault),
    /// A deadlock or a conflict of transactions: the same again.
    Again(Fault),
    /// A lock was waited for in vain.
    Locked(Fault),
    /// The table is not the one the statement was made for.
    Stale(Refusal),
    /// The rows are not those the batch expects, or the table refuses some: change by change, it is
    /// found out which.
    Differs(Refusal),
}

/// What the server said of a statement, or its count did.
pub(super) struct Refusal {
    state: Option<SqlState>,
    text: String,
    clash: Option<Clash>,
}

/// A unique index that a row would have violated.
pub(super) struct Clash {
    /// The schema of both the table and the index.
    pub(super) schema: String,
    /// The table that holds the row in the way: a partition, where the table is partitioned.
    pub(super) table: String,
    /// The index.
    pub(super) index: String,
}

impl Refusal {
    /// A statement touched another number of rows than it holds.
    pub(super) fn count(expected: u64, touched: u64) -> Self {
        let text = format!("{touched} rows touched where {expected} were meant");
        Self { state: None, text, clash: None }
    }

    /// The unique index it violates, where it does.
    pub(super) fn clash(&self) -> Option<&Clash> {
        self.clash.as_ref()
    }
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<Unlocatable> for Trouble {
    fn from(lost: Unlocatable) -> Self {
        let Unlocatable { shape, operation } = lost;
        let message = format!("an {} of {shape} does not say which row it means", operation.as_str());
        Self::Fault(Fault::new(Code::TableDiffers, message).remedied_by(
            "give the source's table a replica identity (a primary key, or REPLICA IDENTITY FULL) and the \
             target's a unique index over its columns",
        ))
    }
}

/// What an error of a statement that applies rows means.
pub(super) fn of_rows(error: &Error) -> Trouble {
    let Some(server) = error.as_db_error() else { return Trouble::Fault(fault_of(error)) };
    let state = server.code();
    let mut text = format!("{} (SQLSTATE {})", server.message(), state.code());
    if let Some(detail) = server.detail() {
        text = format!("{text}; {detail}");
    }
    let names = server.schema().zip(server.table()).zip(server.constraint());
    let clash = names.filter(|_| *state == SqlState::UNIQUE_VIOLATION).map(|((schema, table), index)| {
        Clash { schema: schema.to_owned(), table: table.to_owned(), index: index.to_owned() }
    });
    let refusal = Refusal { state: Some(state.clone()), text, clash };
    let fault = fault_of(error);
    match state.code() {
        "55P03" => Trouble::Locked(fault),
        code if code.starts_with("40") => Trouble::Again(fault),
        // The type, column, table or plan is not what it was.
        "0A000" | "42703" | "42P01" | "42704" | "42804" | "42846" | "42883" | "3F000" => {
            Trouble::Stale(refusal)
        }
        _ if fault.code() != Code::Internal => Trouble::Fault(fault),
        _ => Trouble::Differs(refusal),
    }
}

/// What an error of a statement of our own means: the guard's is a division by zero.
pub(super) fn of_guard(error: &Error) -> Trouble {
    if error.code() == Some(&SqlState::DIVISION_BY_ZERO) {
        let message = "a newer apply epoch holds the target, or its progress is not where this batch \
                       begins; nothing was written";
        return Trouble::Fault(Fault::new(Code::Superseded, message));
    }
    match of_rows(error) {
        Trouble::Stale(_) | Trouble::Differs(_) => Trouble::Fault(fault_of(error).at("write the progress")),
        other => other,
    }
}

/// The fault of one change that did not go through alone.
pub(super) fn of_change(refusal: Refusal, change: &Change, position: Position, ordinal: u64) -> Fault {
    let conflict = |kind| Conflict::of(kind, change, position, ordinal);
    let operation = change.operation();
    let unique = refusal.state == Some(SqlState::UNIQUE_VIOLATION);
    match operation {
        Operation::Insert if unique => conflict(ConflictKind::InsertExists).into_fault().at(refusal.text),
        Operation::Update if unique => conflict(ConflictKind::UpdateExists).into_fault().at(refusal.text),
        _ => Fault::new(
            Code::RowRejected,
            format!(
                "{} {} {}, change {ordinal} of the transaction at {position}: {}",
                operation.as_str(),
                change.shape(),
                key_of(change),
                refusal.text
            ),
        ),
    }
}

/// The fault of one change that touched `touched` rows where it means one.
pub(super) fn of_count(touched: u64, change: &Change, position: Position, ordinal: u64) -> Fault {
    let operation = change.operation();
    let (shape, key) = (change.shape(), key_of(change));
    match (touched, operation) {
        (0, Operation::Update) => {
            Conflict::of(ConflictKind::UpdateMissing, change, position, ordinal).into_fault()
        }
        (0, Operation::Delete) => {
            Conflict::of(ConflictKind::DeleteMissing, change, position, ordinal).into_fault()
        }
        (0, _) => Fault::new(
            Code::RowRejected,
            format!("{shape} {key}: the row did not come in, and no error said why"),
        )
        .remedied_by("look for a trigger (ENABLE REPLICA or ALWAYS) or a rule that drops rows"),
        _ => Fault::new(
            Code::TableDiffers,
            format!(
                "{} {shape} {key}, change {ordinal} of the transaction at {position}, finds {touched} rows",
                operation.as_str()
            ),
        )
        .remedied_by("remove the surplus rows and make a unique index over the key at the target"),
    }
}

/// The fault of a transaction that the server refused only when it was to be committed.
pub(super) fn of_commit(refusal: Refusal, position: Option<Position>) -> Fault {
    let at = position.map(|position| format!(" at {position}")).unwrap_or_default();
    Fault::new(Code::RowRejected, format!("commit the transaction{at}: {}", refusal.text))
}

/// The fault of a table that differs from what it was looked at as.
pub(super) fn of_slice(refusal: Refusal) -> Fault {
    Fault::new(Code::TargetBusy, format!("the target's table changed meanwhile: {}", refusal.text))
}
