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
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $consequence:ident, $remedy:literal;)+) => {
        /// A stable name for one thing that can go wrong. Never reused, never renamed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[doc = $doc])+ $name,)+ }

        impl Code {
            /// Every code there is.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// As printed in logs, status and documents.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)+ }
            }

            /// What it means: the text that stands above it here.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii_start(),)+ }
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
    /// A setting is missing, misspelled, out of range, or given twice. Nothing was started.
    ConfigInvalid = "LF-CONFIG", Halt,
        "correct the file (every mistake is listed) and start again";
    /// The address of the daemon's own pages is taken, or not this host's (yet). It is tried for half a minute, then the
    /// daemon ends with exit code 1.
    ListenerBusy = "LF-LISTEN", Retry,
        "free the address of http.listen or set another; another daemon, or a postgres_exporter, may have it (ss -ltnp)";
    /// The database does not answer: it is down, out of reach, or is shutting down.
    DatabaseUnreachable = "LF-DB-UNREACHABLE", Retry,
        "nothing is lost meanwhile; look at the server, the network and the url";
    /// The database refuses the role or its password, knows no such database, or its certificate is not the
    /// one that is trusted.
    DatabaseRefused = "LF-DB-REFUSED", Retry,
        "mend the role, password or pg_hba.conf; it is tried again without a restart";
    /// The role in the url lacks a privilege, or row security hides rows from it.
    PrivilegeMissing = "LF-PRIVILEGE", Retry,
        "run the SQL shown as the owner or a superuser; it is tried again without a restart";
    /// A setting of the server rules replication out: `wal_level`, its version, or that it is a standby.
    ServerSetting = "LF-SERVER-SETTING", Halt,
        "change the server setting named, restart the server if it says so";
    /// The brokers do not answer, or not in time. Changes wait on the side they come from.
    KafkaUnreachable = "LF-KAFKA-UNREACHABLE", Retry,
        "nothing is lost meanwhile; look at the brokers and the network";
    /// The brokers answered with an error that may pass: a leader is being elected, replicas are missing, a
    /// permission is not there yet.
    KafkaRejected = "LF-KAFKA-REJECTED", Retry,
        "it is tried again; look at the broker's log if it stays";
    /// The brokers refuse the connection, or their certificate proves nothing to us.
    KafkaRefused = "LF-KAFKA-REFUSED", Retry,
        "hold security.protocol and the ssl.* and sasl.* settings against the brokers' listener; what is mended there is tried again without a restart, a password changed here needs one";
    /// The brokers know us, and an operation is not allowed.
    KafkaDenied = "LF-KAFKA-DENIED", Retry,
        "allow the principal the operation named (kafka-acls --add); it is tried again without a restart";
    /// A topic's settings would lose data or break order: its retention, cleanup policy, replicas or
    /// timestamps are not what a stream needs.
    TopicSettings = "LF-TOPIC-SETTINGS", Halt,
        "change the topic's settings as listed (kafka-configs --alter), then it goes on by itself";
    /// The publication is gone, lost a table of the scope, or filters rows, columns or operations.
    PublicationChanged = "LF-PUBLICATION", Halt,
        "run the SQL shown as the publication's owner; changes made to the table meanwhile are not in the log: compare it afterwards";
    /// The replication slot is gone though the stream has begun: somebody dropped it, or the server failed
    /// over to one that never had it.
    SlotMissing = "LF-SLOT-MISSING", Halt,
        "the changes in the range shown are gone from the log; begin the stream anew: `landfall recover --source` in its region, then `landfall recover` where it is read";
    /// The server invalidated the slot, most often because more log was waiting for it than
    /// `max_slot_wal_keep_size` allows.
    SlotLost = "LF-SLOT-LOST", Halt,
        "the changes in the range shown are gone from the server; raise max_slot_wal_keep_size (or idle_replication_slot_timeout, where it was idle) and begin the stream anew: `landfall recover --source` in its region, then `landfall recover` where it is read";
    /// The slot stands beyond what the stream in Kafka holds, so the changes between can come from nowhere.
    SlotAhead = "LF-SLOT-AHEAD", Halt,
        "the range shown was released by the server without being in the log: the slot was advanced or recreated by hand, or Kafka lost acknowledged records; begin the stream anew: `landfall recover --source` in its region, then `landfall recover` where it is read";
    /// Another process reads the slot: a second daemon of this region, or one whose connection the server
    /// has not yet given up.
    SlotBusy = "LF-SLOT-BUSY", Retry,
        "another daemon serves this region; this one stands by and takes over when the slot is free";
    /// The database's system identifier is another one than that of the server the stream came from.
    ServerChanged = "LF-SERVER-CHANGED", Halt,
        "point the url at the stream's server, or begin the stream anew: `landfall recover --source` in its region, then `landfall recover` where it is read";
    /// The server lacks the last transaction the log holds, or has another in its place: its history is not
    /// the one that was replicated.
    ServerDiverged = "LF-SERVER-DIVERGED", Halt,
        "the server was restored, or promoted with loss: the other regions hold transactions it does not, which a recovery takes away there, so keep a copy of their tables first; begin the stream anew: `landfall recover --source` in its region, then `landfall recover` where it is read";
    /// The topic is gone, or was made anew: what is in it does not continue what was read from it.
    TopicLost = "LF-TOPIC-LOST", Halt,
        "the topic was deleted or recreated; the range shown is gone from it; begin the stream anew: `landfall recover --source` in its region, then `landfall recover` where it is read";
    /// The topic holds a stream this database knows nothing of.
    StreamForeign = "LF-STREAM-FOREIGN", Halt,
        "the topic is another database's, or the schema `landfall` was dropped here; where the url or the brokers are wrong, correct them and drop the slot that was made here; where they are right and no other database sends there, begin the stream anew: `landfall recover --source` in its region, then `landfall recover` where it is read";
    /// Retention, or somebody, deleted records of the topic before this region had read them.
    RetentionPassed = "LF-RETENTION-PASSED", Halt,
        "the records in the range shown are gone; `landfall recover` in this region has the rows they touched come anew";
    /// The topic has not exactly one partition. The order of a stream is the order of one partition.
    PartitionsChanged = "LF-PARTITIONS", Halt,
        "partitions cannot be taken away: begin the stream anew: `landfall recover --source` in its region, then `landfall recover` where it is read";
    /// A sequence number of the stream repeats or is missing, where records stand without a hole.
    SequenceBroken = "LF-SEQUENCE", Halt,
        "the log is damaged at the place shown; nothing past it was applied; where only a link has halted, `landfall recover` in the link's region has the rows that differ come anew; where the source has, begin the stream anew: `landfall recover --source` in its region, then `landfall recover` where it is read";
    /// A record is damaged, was written by somebody else, or is of a kind this version does not know.
    RecordCorrupt = "LF-RECORD", Halt,
        "nothing past the record was applied; if a newer Landfall wrote it, update this one; if another program did, take its write permission away, and `landfall recover` in a halted link's region brings that past it; where the source has halted, begin the stream anew: `landfall recover --source` in its region, then `landfall recover` where it is read";
    /// The database sent something that pgoutput version 1 does not have.
    ProtocolUnknown = "LF-PROTOCOL", Halt,
        "nothing past it was taken; report the message with the server's version";
    /// The sink has applied more than the topic holds now.
    PositionBeyondEnd = "LF-POSITION-BEYOND-END", Halt,
        "Kafka lost records that were applied here (unclean election, restored disk); where only the link has halted, `landfall recover` in this region has the rows that differ come anew; where the source has as well, begin the stream anew first: `landfall recover --source` in its region";
    /// The stream's beginning is no longer in the topic, and this target holds nothing of the stream: it has
    /// no rows to go on from.
    GenesisGone = "LF-GENESIS-GONE", Halt,
        "run `landfall backfill --to` with this region's name in the region the stream comes from (with --again where it was filled before); it goes on by itself";
    /// A newer apply epoch holds the target: another daemon took hold of it after this one.
    Superseded = "LF-SUPERSEDED", Retry,
        "another daemon took the link over; this one stands by";
    /// Another daemon holds the target for this link and is alive.
    TargetHeld = "LF-TARGET-HELD", Retry,
        "another daemon serves this link; this one stands by and takes over when it is gone";
    /// No daemon does what was asked of it, or it does not get on with it.
    NotServed = "LF-NOT-SERVED", Retry,
        "see with `landfall status`, in both regions, that the daemons run and what their streams wait for; then ask again";
    /// A row is there that should not be, or is not there that should: the target is not what the source
    /// was when it made the change.
    Conflict = "LF-CONFLICT", Halt,
        "somebody else wrote to a table with one writing region; make the row as the message says, it goes on by itself; where there are many, `landfall recover` in this region mends them all";
    /// The target refuses a row for a constraint, a domain or a trigger of its own.
    RowRejected = "LF-ROW-REJECTED", Halt,
        "make the target's table accept the row as the message says, it goes on by itself";
    /// A transaction larger than memory is refused, or waits behind one that is parked: it is read again, to be parked
    /// whole.
    Parking = "LF-PARKING", Retry,
        "nothing to do: it is parked when it has been read again; `landfall parked` then lists it";
    /// So many changes are parked that no more may be.
    ParkedFull = "LF-PARKED-FULL", Halt,
        "mend what stands in the way of the oldest (`landfall parked` lists them) and `landfall parked retry --all`, it goes on by itself; where they are too many, `landfall recover` in this region mends them all";
    /// A table is missing on the target, or its columns do not take the source's.
    TableDiffers = "LF-TABLE", Halt,
        "make the target's table as the message says, it goes on by itself";
    /// The target is busy: a lock, a deadlock, no connection left, a full disk, or it is read-only.
    TargetBusy = "LF-TARGET-BUSY", Retry,
        "it is tried again; the message names who holds the lock, where it is one";
    /// A transaction was begun in the log and its rest does not come.
    TransactionStalled = "LF-TRANSACTION-STALLED", Retry,
        "the open transaction was rolled back and is read again; look at the source's daemon";
    /// The process was asked to stop.
    Stopping = "LF-STOPPING", Retry,
        "nothing to do";
    /// Something was that should not be possible. It is a fault of Landfall, or a message of a server that it
    /// does not know.
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
            // Lines of the source are joined as a sentence is.
            let meaning = code.meaning();
            assert!(meaning.ends_with('.') && !meaning.contains("  "), "{code:?}: {meaning:?}");
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
