//! What stands in the way, found before anything runs: each finding with its evidence and what mends
//! it, the worst first. Looking changes nothing.

mod clocks;
mod database;
mod disk;
mod kafka;
mod kind;
mod pair;
mod room;
mod settings;
mod stream;
mod tables;
mod target;

use serde::Serialize;

use crate::{
    config::{Mistakes, Settings},
    fault::{Code, Fault, Result},
};

pub use database::grants_of;
pub use disk::is_here;
pub use kind::Kind;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know; nothing to do.
    Note,
    /// It runs, but not all of it, or not for ever.
    Warning,
    /// It will not run.
    Error,
}

impl Severity {
    /// As printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its kind.
    pub id: Kind,
    /// How bad it is.
    pub severity: Severity,
    /// What was seen, where.
    pub evidence: String,
    /// The SQL, command or edit that mends it.
    pub mend: Option<String>,
}

impl Finding {
    /// A finding with nothing to run.
    pub fn new(id: Kind, severity: Severity, evidence: impl Into<String>) -> Self {
        Self { id, severity, evidence: evidence.into(), mend: None }
    }

    /// With what mends it.
    #[must_use]
    pub fn mended_by(mut self, mend: impl Into<String>) -> Self {
        self.mend = Some(mend.into());
        self
    }
}

/// What is wrong with the settings themselves.
pub fn of_mistakes(mistakes: &Mistakes) -> Vec<Finding> {
    let finding = |mistake: &crate::config::Mistake| {
        Finding::new(Kind::Config, Severity::Error, mistake.to_string())
            .mended_by("correct the file or the environment")
    };
    mistakes.all.iter().map(finding).collect()
}

/// How far `check` looks.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Settings of another region, whose database is asked too and compared with this one's.
    pub against: Option<Settings>,
    /// Count the rows of tables that ought to be equal, in place of trusting the planner's estimates.
    pub deep: bool,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Everything, the worst first.
    pub findings: Vec<Finding>,
    /// Whether the database could be asked: where not, most was not looked at.
    pub whole: bool,
}

/// What is found in the settings alone, without any server, the worst first.
pub fn offline(settings: &Settings) -> Vec<Finding> {
    sorted(settings::check(settings))
}

/// What is found in the settings and on the parts they name.
pub async fn online(settings: &Settings, options: &Options) -> Report {
    let mut findings = settings::check(settings);
    let (streams, of_kafka) = kafka::check(settings).await;
    findings.extend(of_kafka);
    let whole = match database::check(settings, options, &streams).await {
        Ok(found) => {
            findings.extend(found);
            true
        }
        Err(fault) => {
            findings.push(of_fault(Kind::DatabaseAnswer, &fault));
            false
        }
    };
    Report { findings: sorted(findings), whole }
}

fn sorted(mut findings: Vec<Finding>) -> Vec<Finding> {
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    findings
}

fn of_fault(kind: Kind, fault: &Fault) -> Finding {
    Finding::new(kind, Severity::Error, format!("{} ({})", fault.message(), fault.code()))
        .mended_by(fault.remedy())
}

/// What a road would halt for.
fn halt(kind: Kind, code: Code, evidence: &str) -> Finding {
    error(kind, format!("{evidence} ({code})"), code.remedy())
}

fn error(kind: Kind, evidence: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding::new(kind, Severity::Error, evidence).mended_by(mend)
}

fn warning(kind: Kind, evidence: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding::new(kind, Severity::Warning, evidence).mended_by(mend)
}

fn note(kind: Kind, evidence: impl Into<String>) -> Finding {
    Finding::new(kind, Severity::Note, evidence)
}

/// The SQL that lets the role of the settings do its work, for a superuser: for a link, on every table of
/// the database. Empty where nothing is missing.
///
/// # Errors
/// Where the database does not answer.
pub async fn grants(settings: &Settings) -> Result<Vec<String>> {
    database::grants(settings).await
}
