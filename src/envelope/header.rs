//! The header every record of ours carries: 32 bytes, big-endian, in the Kafka header `landfall`; a pack's
//! ([`super::pack`]) has more behind them.
//!
//! ```text
//!  0     version        1
//!  1     kind           see [`Kind`]; an unknown one halts the reader
//!  2..4  flags          see [`Flags`]; an unknown one halts the reader
//!  4..8  writer epoch
//!  8..16 incarnation
//! 16..24 sequence       0 in a barrier, which stands outside the sequence
//! 24..28 reserved       0
//! 28..32 CRC-32 (IEEE) of bytes 0..28, the key's length (u32), the key and the value
//! ```
//!
//! Kafka has a checksum of its own from broker to broker; this one reaches from the process that
//! encoded a record to the process that decodes it.

use std::fmt;

use crate::position::{Incarnation, Sequence, WriterEpoch};

/// The Kafka header's name.
pub const HEADER_NAME: &str = "landfall";
/// Bytes in a header.
pub const HEADER_LEN: usize = 32;
const VERSION: u8 = 1;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Begins an incarnation.
    Genesis = 1,
    /// A writer raised its epoch. Stands outside the sequence.
    Barrier = 2,
    /// A table's shape, before its first use in an epoch.
    Schema = 3,
    /// A change to a row.
    Change = 4,
    /// A piece of a change larger than a record may be.
    Part = 5,
    /// Ends a transaction whose last change was appended before that was known.
    Commit = 6,
    /// The begun transaction will never be completed; what there is of it is void.
    Abort = 7,
    /// A heartbeat that went through the source's log.
    Heartbeat = 8,
    /// Nothing of interest happened up to this position.
    Idle = 9,
    /// A TRUNCATE, naming all its tables.
    Truncate = 10,
    /// Rows copied by a backfill.
    Chunk = 11,
    /// A backfill's low or high mark.
    Watermark = 12,
    /// What a region holds, for another that verifies.
    Answer = 13,
}

impl Kind {
    const ALL: [Self; 13] = [
        Self::Genesis,
        Self::Barrier,
        Self::Schema,
        Self::Change,
        Self::Part,
        Self::Commit,
        Self::Abort,
        Self::Heartbeat,
        Self::Idle,
        Self::Truncate,
        Self::Chunk,
        Self::Watermark,
        Self::Answer,
    ];

    pub(super) fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// Marks on a record. [`Flags::FIRST`] and [`Flags::LAST`] bound a transaction;
/// [`Flags::PART_FIRST`] and [`Flags::PART_LAST`] a change in parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub u16);

impl Flags {
    /// Nothing marked.
    pub const NONE: Self = Self(0);
    /// The transaction begins with this record.
    pub const FIRST: Self = Self(1);
    /// The transaction ends with this record.
    pub const LAST: Self = Self(2);
    /// The change begins with this part. What was there of it before is void.
    pub const PART_FIRST: Self = Self(4);
    /// The change ends with this part.
    pub const PART_LAST: Self = Self(8);
    /// The parts are of a chunk, not of a change.
    pub const OF_CHUNK: Self = Self(16);
    const KNOWN: u16 = 31;

    /// Flags as they are written, where all of them are known.
    pub(super) fn known(flags: u16) -> Result<Self, InvalidHeader> {
        if flags & !Self::KNOWN == 0 { Ok(Self(flags)) } else { Err(InvalidHeader::Flags(flags)) }
    }

    /// Whether all of `other` is set here.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both.
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// `flag` where `condition`, else nothing.
    pub fn when(condition: bool, flag: Self) -> Self {
        if condition { flag } else { Self::NONE }
    }
}

/// A record's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the record is.
    pub kind: Kind,
    /// What is marked on it.
    pub flags: Flags,
    /// Who wrote it.
    pub epoch: WriterEpoch,
    /// The stream's life it belongs to.
    pub incarnation: Incarnation,
    /// Its number; [`Sequence`] 0 in a barrier.
    pub sequence: Sequence,
}

/// Why bytes are not a header of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHeader {
    /// No header named `landfall`: something else wrote the record.
    #[error("the record has no `{HEADER_NAME}` header: something else than Landfall wrote it")]
    Missing,
    /// Not the length a header has.
    #[error("the header has {0} bytes instead of {HEADER_LEN}, or a pack's number of them")]
    Length(usize),
    /// A format this version does not know.
    #[error("the header's version is {0}; this daemon reads version {VERSION}")]
    Version(u8),
    /// A kind this version does not know.
    #[error("the record is of the unknown kind {0}")]
    Kind(u8),
    /// A flag this version does not know.
    #[error("the record carries unknown flags ({0:#06x})")]
    Flags(u16),
    /// Bytes changed between the writer and here.
    #[error("the record's checksum is {found:08x}, its header says {written:08x}")]
    Checksum {
        /// Computed here.
        found: u32,
        /// As written.
        written: u32,
    },
    /// A record that stands in the sequence has no number.
    #[error("the {0} record has no number")]
    Unnumbered(Kind),
    /// A pack that does not hold what its header says.
    #[error("the record is a pack of several: {0}")]
    Pack(&'static str),
}

impl Header {
    /// The header's bytes, sealed over `key` and `value`.
    pub fn seal(&self, key: &[u8], value: &[u8]) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..28].copy_from_slice(&head(self.kind as u8, self.flags, self));
        let sum = checksum(&[&bytes[..28]], key, value);
        bytes[28..].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// Reads a header and proves that it and the record it came with are as they were written.
    ///
    /// # Errors
    /// Whatever does not fit: the record is foreign, newer than this daemon, or damaged.
    pub fn open(bytes: Option<&[u8]>, key: &[u8], value: &[u8]) -> Result<Self, InvalidHeader> {
        let bytes = bytes.ok_or(InvalidHeader::Missing)?;
        if bytes.len() != HEADER_LEN {
            return Err(InvalidHeader::Length(bytes.len()));
        }
        read(bytes, checksum(&[&bytes[..28]], key, value), Kind::of)
    }
}

/// What the checksum follows.
pub(super) fn head(kind: u8, flags: Flags, header: &Header) -> [u8; 28] {
    let mut bytes = [0; 28];
    bytes[0] = VERSION;
    bytes[1] = kind;
    bytes[2..4].copy_from_slice(&flags.0.to_be_bytes());
    bytes[4..8].copy_from_slice(&header.epoch.0.to_be_bytes());
    bytes[8..16].copy_from_slice(&header.incarnation.0.to_be_bytes());
    bytes[16..24].copy_from_slice(&header.sequence.0.to_be_bytes());
    bytes
}

/// Reads a header's 32 bytes, where `found` is the checksum they should have; `kind_of` knows the kinds.
pub(super) fn read(
    bytes: &[u8],
    found: u32,
    kind_of: impl FnOnce(u8) -> Option<Kind>,
) -> Result<Header, InvalidHeader> {
    if bytes[0] != VERSION {
        return Err(InvalidHeader::Version(bytes[0]));
    }
    let number = |range: std::ops::Range<usize>| {
        bytes[range].iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte))
    };
    let written = number(28..32) as u32;
    if found != written {
        return Err(InvalidHeader::Checksum { found, written });
    }
    let header = Header {
        kind: kind_of(bytes[1]).ok_or(InvalidHeader::Kind(bytes[1]))?,
        flags: Flags::known(number(2..4) as u16)?,
        epoch: WriterEpoch(number(4..8) as u32),
        incarnation: Incarnation(number(8..16)),
        sequence: Sequence(number(16..24)),
    };
    if header.sequence == Sequence(0) && header.kind != Kind::Barrier {
        return Err(InvalidHeader::Unnumbered(header.kind));
    }
    Ok(header)
}

/// Over the parts of a header, the key's length, the key and the value.
pub(super) fn checksum(head: &[&[u8]], key: &[u8], value: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    head.iter().for_each(|part| hasher.update(part));
    hasher.update(&(key.len() as u32).to_be_bytes());
    hasher.update(key);
    hasher.update(value);
    hasher.finalize()
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Genesis => "genesis",
            Self::Barrier => "barrier",
            Self::Schema => "schema",
            Self::Change => "change",
            Self::Part => "part",
            Self::Commit => "commit",
            Self::Abort => "abort",
            Self::Heartbeat => "heartbeat",
            Self::Idle => "idle",
            Self::Truncate => "truncate",
            Self::Chunk => "chunk",
            Self::Watermark => "watermark",
            Self::Answer => "answer",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header {
        kind: Kind::Change,
        flags: Flags(3),
        epoch: WriterEpoch(7),
        incarnation: Incarnation(0x0102_0304_0506_0708),
        sequence: Sequence(99),
    };

    #[test]
    fn what_is_sealed_opens_as_it_was() {
        for kind in Kind::ALL {
            let header = Header { kind, ..HEADER };
            assert_eq!(Header::open(Some(&header.seal(b"k", b"v")), b"k", b"v"), Ok(header));
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let sealed = HEADER.seal(b"key", b"value");
        for bit in 0..HEADER_LEN * 8 {
            let mut damaged = sealed;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::open(Some(&damaged), b"key", b"value").is_err(), "bit {bit}");
        }
        assert!(matches!(Header::open(Some(&sealed), b"key", b"valve"), Err(InvalidHeader::Checksum { .. })));
        assert!(matches!(Header::open(Some(&sealed), b"keyv", b"alue"), Err(InvalidHeader::Checksum { .. })));
    }

    #[test]
    fn what_is_foreign_or_newer_is_refused_by_name() {
        assert_eq!(Header::open(None, b"", b""), Err(InvalidHeader::Missing));
        assert_eq!(Header::open(Some(b"abc"), b"", b""), Err(InvalidHeader::Length(3)));
        let mut newer = HEADER.seal(b"", b"");
        newer[0] = 2;
        assert_eq!(Header::open(Some(&newer), b"", b""), Err(InvalidHeader::Version(2)));
        let mut sealed = HEADER.seal(b"", b"");
        sealed[1] = 200;
        let sum = checksum(&[&sealed[..28]], b"", b"");
        sealed[28..].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(Header::open(Some(&sealed), b"", b""), Err(InvalidHeader::Kind(200)));
    }
}
