//! What can go wrong, and what happens next.
//!
//! A [`Fault`] carries a stable [`Code`]; the code alone decides the [`Consequence`], in one table
//! without a wildcard. Whoever raises a fault says what was being done and where; the remedy beside
//! the code says what a person does next. Faults are logged where they are handled, once.

use std::{error::Error as StdError, fmt};

/// What follows from a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consequence {
    /// The world may heal: try again, later and later.
    Retry,
    /// Going on could lose, double or corrupt: this stream stops until a person has acted.
    Halt,
}

macro_rules! codes {
    ($($(#[$doc:meta])+ $name:ident = $code:literal, $consequence:ident, $remedy:literal;)+) => {
        /// A stable name for one thing that can go wrong. Never reused, never renamed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])+ $name,)+ }

        impl Code {
            /// Every code there is.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// As printed in logs, status and documents.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)+ }
            }

            /// What follows.
            pub fn consequence(self) -> Consequence {
                match self { $(Self::$name => Consequence::$consequence,)+ }
            }

            /// What a person does about it.
            pub fn remedy(self) -> &'static str {
                match self { $(Self::$name => $remedy,)+ }
            }
        }
    };
}

codes! {
    /// A setting is missing, misspelled or out of range.
    ConfigInvalid = "LF-CONFIG", Halt,
        "correct the file (every mistake is listed) and start again";
    /// The database does not answer.
    DatabaseUnreachable = "LF-DB-UNREACHABLE", Retry,
        "nothing is lost meanwhile; look at the server, the network and the url";
    /// The database refuses the role, its password or its certificate.
    DatabaseRefused = "LF-DB-REFUSED", Retry,
        "mend the role, password or pg_hba.conf; it is tried again without a restart";
    /// The role lacks a privilege.
    PrivilegeMissing = "LF-PRIVILEGE", Retry,
        "run the SQL shown as the owner or a superuser; it is tried again without a restart";
    /// A server setting rules replication out.
    ServerSetting = "LF-SERVER-SETTING", Halt,
        "change the server setting named, restart the server if it says so";
    /// The brokers do not answer.
    KafkaUnreachable = "LF-KAFKA-UNREACHABLE", Retry,
        "nothing is lost meanwhile; look at the brokers and the network";
    /// The brokers answered with an error that may pass.
    KafkaRejected = "LF-KAFKA-REJECTED", Retry,
        "it is tried again; look at the broker's log if it stays";
    /// A topic's settings would lose data or break order.
    TopicSettings = "LF-TOPIC-SETTINGS", Halt,
        "change the topic's settings as listed (kafka-configs --alter), then it goes on by itself";
    /// The publication is gone, lost a table, or filters what it publishes.
    PublicationChanged = "LF-PUBLICATION", Halt,
        "run the SQL shown as the publication's owner; changes made to the table meanwhile are not in the log: compare it afterwards";
    /// The slot is gone though the stream has begun.
    SlotMissing = "LF-SLOT-MISSING", Halt,
        "the changes in the range shown are gone from the log; copy the tables anew under a new incarnation";
    /// The server invalidated the slot.
    SlotLost = "LF-SLOT-LOST", Halt,
        "the changes in the range shown are gone from the server; raise max_slot_wal_keep_size and copy the tables anew under a new incarnation";
    /// The slot stands beyond what the stream holds.
    SlotAhead = "LF-SLOT-AHEAD", Halt,
        "the range shown was released by the server without being in the log: the slot was advanced or recreated by hand, or Kafka lost acknowledged records; copy the tables anew under a new incarnation";
    /// Another process reads the slot.
    SlotBusy = "LF-SLOT-BUSY", Retry,
        "another daemon serves this region; this one stands by and takes over when the slot is free";
    /// The database is another server than the stream came from.
    ServerChanged = "LF-SERVER-CHANGED", Halt,
        "point the url at the stream's server, or begin a new incarnation and copy the tables anew";
    /// The server lacks the log's last transaction, or has another in its place.
    ServerDiverged = "LF-SERVER-DIVERGED", Halt,
        "the server was restored, or promoted with loss: the other regions hold transactions it does not; compare the tables and begin a new incarnation";
    /// The topic is gone, or lives another life than the stream.
    TopicLost = "LF-TOPIC-LOST", Halt,
        "the topic was deleted or recreated; the range shown is gone from it; begin a new incarnation and copy the tables anew";
    /// The topic holds a stream this database knows nothing of.
    StreamForeign = "LF-STREAM-FOREIGN", Halt,
        "the topic belongs to another database or the schema `landfall` was dropped; restore it, or use another region name";
    /// Retention, or somebody, deleted records before they were read.
    RetentionPassed = "LF-RETENTION-PASSED", Halt,
        "the records in the range shown are gone; copy the tables they touched anew";
    /// The topic has not exactly one partition.
    PartitionsChanged = "LF-PARTITIONS", Halt,
        "partitions cannot be taken away: begin a new incarnation on a topic with one partition";
    /// A sequence number repeats or is missing.
    SequenceBroken = "LF-SEQUENCE", Halt,
        "the log is damaged at the place shown; nothing past it was applied; copy the tables anew under a new incarnation";
    /// A record is damaged, foreign, or of a kind this version does not know.
    RecordCorrupt = "LF-RECORD", Halt,
        "nothing past the record was applied; if another program wrote it, take its write permission away; if a newer Landfall did, update this one";
    /// The database sent something pgoutput version 1 does not have.
    ProtocolUnknown = "LF-PROTOCOL", Halt,
        "nothing past it was taken; report the message with the server's version";
    /// The sink stands beyond the end of the topic.
    PositionBeyondEnd = "LF-POSITION-BEYOND-END", Halt,
        "Kafka lost records that were applied here (unclean election, restored disk): compare the regions before going on";
    /// The stream's beginning is no longer in the topic, and this target holds nothing of it.
    GenesisGone = "LF-GENESIS-GONE", Halt,
        "existing rows come across by a backfill; begin a new incarnation for now";
    /// A newer apply epoch holds the target.
    Superseded = "LF-SUPERSEDED", Retry,
        "another daemon took the link over; this one stands by";
    /// Another daemon holds the target and is alive.
    TargetHeld = "LF-TARGET-HELD", Retry,
        "another daemon serves this link; this one stands by and takes over when it is gone";
    /// A row is there that should not be, or is not there that should.
    Conflict = "LF-CONFLICT", Halt,
        "somebody else wrote to a table with one writing region; make the row as the message says, it goes on by itself";
    /// The target refuses a row for a constraint of its own.
    RowRejected = "LF-ROW-REJECTED", Halt,
        "make the target's table accept the row as the message says, it goes on by itself";
    /// A table is missing on the target, or its columns do not take the source's.
    TableDiffers = "LF-TABLE", Halt,
        "make the target's table as the message says, it goes on by itself";
    /// The target is busy: locks, deadlocks, connections, disk.
    TargetBusy = "LF-TARGET-BUSY", Retry,
        "it is tried again; the message names who holds the lock, where it is one";
    /// A transaction was begun in the log and its rest does not come.
    TransactionStalled = "LF-TRANSACTION-STALLED", Retry,
        "the open transaction was rolled back and is read again; look at the source's daemon";
    /// The process is asked to stop.
    Stopping = "LF-STOPPING", Retry,
        "nothing to do";
    /// Something that cannot be, was.
    Internal = "LF-INTERNAL", Halt,
        "report it with the log around it";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something went wrong: what, where and why, by a code that says what follows.
pub struct Fault(Box<Inner>);

struct Inner {
    code: Code,
    message: String,
    remedy: Option<String>,
    cause: Option<Box<dyn StdError + Send + Sync>>,
}

/// What most of this crate returns.
pub type Result<T> = std::result::Result<T, Fault>;

impl Fault {
    /// A fault; `message` says what was being done, where, and what stood in the way.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { code, message: message.into(), remedy: None, cause: None }))
    }

    /// With the error beneath.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }

    /// With a remedy made for this case (the SQL to run), in place of the code's.
    #[must_use]
    pub fn remedied_by(mut self, remedy: impl Into<String>) -> Self {
        self.0.remedy = Some(remedy.into());
        self
    }

    /// The same fault with where it happened in front of its message.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.0.message = format!("{place}: {}", self.0.message);
        self
    }

    /// Its code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// What follows.
    pub fn consequence(&self) -> Consequence {
        self.0.code.consequence()
    }

    /// What happened, with its causes, without code and remedy.
    pub fn message(&self) -> String {
        let mut text = self.0.message.clone();
        let mut cause = self.0.cause.as_deref().map(|cause| cause as &dyn StdError);
        while let Some(error) = cause {
            let said = error.to_string();
            if !text.contains(&said) {
                text.push_str(": ");
                text.push_str(&said);
            }
            cause = error.source();
        }
        text
    }

    /// What a person does about it.
    pub fn remedy(&self) -> &str {
        self.0.remedy.as_deref().unwrap_or(self.0.code.remedy())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {} (next: {})", self.code(), self.message(), self.remedy())
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl StdError for Fault {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.cause.as_deref().map(|cause| cause as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn codes_are_unique_and_say_what_to_do() {
        let names: HashSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        for code in Code::ALL {
            assert!(code.as_str().starts_with("LF-") && !code.remedy().is_empty(), "{code:?}");
        }
    }

    #[test]
    fn a_fault_reads_as_what_where_why_and_what_next() {
        let fault = Fault::new(Code::SlotMissing, "open slot `s`")
            .because(std::io::Error::other("gone"))
            .at("source us-east-1");
        assert_eq!(fault.message(), "source us-east-1: open slot `s`: gone");
        assert!(fault.to_string().starts_with("[LF-SLOT-MISSING] source us-east-1"));
        assert_eq!(fault.remedied_by("run X").remedy(), "run X");
    }
}
