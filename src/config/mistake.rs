//! What is wrong with the settings: everything at once, each with its place.

use std::{cell::RefCell, collections::BTreeSet, fmt, io, path::Path};

use super::places::Places;
use crate::fault::{Code, Fault};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Mistake {
    /// Where to look: `file:line`, or the variable of the environment.
    pub place: Option<String>,
    /// The path of the setting, such as `link[0].from`; empty where the file as a whole is meant.
    pub path: String,
    /// What is wrong with it, and what would be right.
    pub problem: String,
}

/// Everything that is wrong; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes {
    /// Each of them, in the order of their paths.
    pub all: Vec<Mistake>,
    /// Whether it is that the file cannot be read: then nothing is known of what stands in it.
    pub unread: bool,
}

impl Mistakes {
    /// That the file at `path` cannot be read.
    pub(super) fn unread(path: &Path, error: &io::Error) -> Self {
        let tried = std::path::absolute(path);
        let tried = tried.as_deref().unwrap_or(path).display();
        let problem = format!("read {tried}: {error}");
        Self { all: vec![Mistake { place: None, path: String::new(), problem }], unread: true }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        if self.path.is_empty() {
            f.write_str(&self.problem)
        } else {
            write!(f, "{}: {}", self.path, self.problem)
        }
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, mistake) in self.all.iter().enumerate() {
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
        let fault = Self::new(Code::ConfigInvalid, mistakes.to_string());
        if mistakes.unread { fault.remedied_by(UNREAD_NEXT) } else { fault }
    }
}

/// What is done about a file that cannot be read.
const UNREAD_NEXT: &str = "give the path of this region's settings, in a file that can be read, with --config FILE or in \
                           LANDFALL_CONFIG";

/// What a walk over the settings needs beside them, and where it notes mistakes.
pub(super) struct Notes<'a> {
    mistakes: RefCell<Vec<Mistake>>,
    asked: RefCell<BTreeSet<String>>,
    /// Where each setting was given.
    pub(super) places: Places,
    /// Reads the files that settings name.
    pub(super) read: &'a dyn Fn(&Path) -> io::Result<String>,
    /// The whole environment, for settings that name one of its variables.
    pub(super) environment: &'a [(String, String)],
    /// Whether the settings are only looked at: then a secret that cannot be had is missed by nobody.
    pub(super) looking: bool,
}

impl<'a> Notes<'a> {
    pub(super) fn new(
        places: Places,
        read: &'a dyn Fn(&Path) -> io::Result<String>,
        environment: &'a [(String, String)],
        looking: bool,
    ) -> Self {
        Self { mistakes: RefCell::default(), asked: RefCell::default(), places, read, environment, looking }
    }

    pub(super) fn add(&self, path: impl Into<String>, problem: impl Into<String>) {
        let path = path.into();
        // What concerns the file as a whole names its own line, where there is one.
        let place = self.places.near(&path);
        self.mistakes.borrow_mut().push(Mistake { place, path, problem: problem.into() });
    }

    /// Notes that a setting is known, whether it is given or not.
    pub(super) fn ask(&self, path: String) {
        self.asked.borrow_mut().insert(path);
    }

    /// Every setting and section that was asked for.
    #[cfg(test)]
    pub(super) fn asked(&self) -> BTreeSet<String> {
        self.asked.borrow().clone()
    }

    /// The mistakes noted, in the order of their paths, or else what was made of the settings.
    ///
    /// # Panics
    /// Where nothing was made and nothing noted: a setting was given up in silence.
    pub(super) fn settle<T>(self, made: Option<T>) -> Result<(T, Places), Mistakes> {
        let mut mistakes = self.mistakes.into_inner();
        if mistakes.is_empty() {
            return Ok((made.expect("a setting that is given up leaves a mistake"), self.places));
        }
        mistakes.sort_by(|a, b| a.path.cmp(&b.path));
        mistakes.dedup();
        Err(Mistakes { all: mistakes, unread: false })
    }
}
