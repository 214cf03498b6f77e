//! A region: the place a database and its Kafka stand in, and the name everything else is named after.

use std::{fmt, str::FromStr};

/// A region's name, such as `eu-west-1`.
///
/// Lower-case letters, digits and `-`, at most 32 bytes, beginning with a letter: it becomes part of
/// topic, slot, origin and metric names, and the strictest of those (a slot: 63 bytes of
/// `[a-z0-9_]`) sets the rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Region(Box<str>);

/// Why a text is no region name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no region name: use 1 to 32 of a-z, 0-9 and `-`, beginning with a letter")]
pub struct InvalidRegion(String);

impl Region {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Region {
    type Err = InvalidRegion;

    fn from_str(text: &str) -> Result<Self, InvalidRegion> {
        let fits = (1..=32).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if fits { Ok(Self(text.into())) } else { Err(InvalidRegion(text.to_owned())) }
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_fit_everywhere_are_taken_and_others_refused() {
        for good in ["a", "us-east-1", "eu-west-1"] {
            assert_eq!(good.parse::<Region>().unwrap().as_str(), good);
        }
        for bad in ["", "1a", "-a", "EU", "eu_west", "a.b", "ä", &"a".repeat(33)] {
            assert!(bad.parse::<Region>().is_err(), "{bad}");
        }
    }
}
