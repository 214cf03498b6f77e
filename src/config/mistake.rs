//! What is wrong with the settings: everything at once, each with its place.

use std::{cell::RefCell, fmt};

use crate::fault::{Code, Fault};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Mistake {
    /// The path of the setting, such as `link[0].from`; empty where the file as a whole is meant.
    pub path: String,
    /// What is wrong with it, and what would be right.
    pub problem: String,
}

/// Everything that is wrong; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.problem)
        } else {
            write!(f, "{}: {}", self.path, self.problem)
        }
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, mistake) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

impl From<Mistakes> for Fault {
    fn from(mistakes: Mistakes) -> Self {
        Self::new(Code::ConfigInvalid, mistakes.to_string())
    }
}

/// Where mistakes are noted while the settings are walked.
#[derive(Debug, Default)]
pub(super) struct Notes(RefCell<Vec<Mistake>>);

impl Notes {
    pub(super) fn add(&self, path: impl Into<String>, problem: impl Into<String>) {
        self.0.borrow_mut().push(Mistake { path: path.into(), problem: problem.into() });
    }

    /// The mistakes noted, in the order of their paths, or else what was made of the settings.
    ///
    /// # Panics
    /// Where nothing was made and nothing noted: a setting was given up in silence.
    pub(super) fn settle<T>(self, made: Option<T>) -> Result<T, Mistakes> {
        let mut mistakes = self.0.into_inner();
        if mistakes.is_empty() {
            return Ok(made.expect("a setting that is given up leaves a mistake"));
        }
        mistakes.sort_by(|a, b| a.path.cmp(&b.path));
        mistakes.dedup();
        Err(Mistakes(mistakes))
    }
}
