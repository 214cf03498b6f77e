//! A place in one Postgres server's write-ahead log.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A byte position in the write-ahead log, written `16/B374D848` as Postgres does.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Postgres's "no position" (`InvalidXLogRecPtr`).
    pub const INVALID: Self = Self(0);

    /// Bytes from `earlier` to here; 0 where `earlier` is not earlier.
    pub fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Why a text is no LSN.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no LSN: expected two hexadecimal numbers of at most 8 digits, as in 16/B374D848")]
pub struct InvalidLsn(String);

impl FromStr for Lsn {
    type Err = InvalidLsn;

    fn from_str(text: &str) -> Result<Self, InvalidLsn> {
        let invalid = || InvalidLsn(text.to_owned());
        let (high, low) = text.split_once('/').ok_or_else(invalid)?;
        let half = |digits: &str| {
            let fits = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
            if fits { u32::from_str_radix(digits, 16).ok() } else { None }
        };
        match (half(high), half(low)) {
            (Some(high), Some(low)) => Ok(Self(u64::from(high) << 32 | u64::from(low))),
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_number_are_the_same_place() {
        for (text, number) in
            [("0/0", 0), ("0/1A", 26), ("16/B374D848", 0x16_B374_D848), ("FFFFFFFF/FFFFFFFF", u64::MAX)]
        {
            assert_eq!(text.parse::<Lsn>(), Ok(Lsn(number)));
            assert_eq!(Lsn(number).to_string(), text);
        }
        for bad in ["", "0", "/", "0/", "+1/2", "0/123456789", "x/y"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad}");
        }
    }
}
