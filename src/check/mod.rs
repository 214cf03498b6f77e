//! What stands in the way, found before anything runs: each finding with its evidence and what mends
//! it, the worst first. Looking changes nothing.

mod database;
mod kafka;

use serde::Serialize;

use crate::{
    config::{Mistakes, Settings},
    fault::Result,
};

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
    /// A stable name for its kind.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was seen, where.
    pub evidence: String,
    /// The SQL, command or edit that mends it.
    pub mend: Option<String>,
}

impl Finding {
    /// A finding with nothing to run.
    pub fn new(id: &'static str, severity: Severity, evidence: impl Into<String>) -> Self {
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
        Finding::new("config", Severity::Error, mistake.to_string())
            .mended_by("correct the file or the environment")
    };
    mistakes.0.iter().map(finding).collect()
}

/// What is found on the parts the settings name, the worst first.
///
/// # Errors
/// Where a part does not answer: then nothing can be told about it.
pub async fn online(settings: &Settings) -> Result<Vec<Finding>> {
    let mut findings = database::check(settings).await?;
    findings.extend(kafka::check(settings).await);
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Ok(findings)
}

/// The SQL that lets the role of the settings do its work, for a superuser: for a link, on every table of
/// the database. Empty where nothing is missing.
///
/// # Errors
/// Where the database does not answer.
pub async fn grants(settings: &Settings) -> Result<Vec<String>> {
    database::grants(settings).await
}
