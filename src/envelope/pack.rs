//! Several records that travel as one of the topic's: what a record costs the client and the broker is then paid once.
//!
//! ```text
//! header   32 bytes as of any record (kind 14, the first one's sequence), then 3 for each record: kind, flags
//! key      empty: a row's key is in its value
//! value    the records' values, each ended by a line feed
//! ```
//!
//! The records are numbered one by one from the first, and are of its epoch and incarnation. Each is what it would be
//! alone; the checksum reaches over all of them.

use bytes::Bytes;

use super::header::{Flags, HEADER_LEN, Header, InvalidHeader, Kind, checksum, head};
use crate::position::Sequence;

/// What the header of a pack has as its kind.
pub(super) const PACK: u8 = 14;
/// Bytes for each record behind the header.
const EACH: usize = 3;
/// Records in a pack at most. What is lost of a topic holds no more numbers than this for each of its offsets.
pub const PACK_RECORDS_MAX: usize = 1024;

/// Gathers records into packs.
#[derive(Debug)]
pub struct Packer {
    bytes_max: usize,
    first: Option<Header>,
    /// The first one's, in case it stays alone.
    key: Vec<u8>,
    /// Kind and flags of each.
    marks: Vec<u8>,
    values: Vec<u8>,
}

/// What a [`Packer`] gathered, as one record of the topic.
#[derive(Debug)]
pub struct Packed<'a> {
    /// Its header.
    pub header: Vec<u8>,
    /// Its key.
    pub key: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
    /// How many records it is.
    pub records: usize,
}

impl Packer {
    /// Packs whose values have up to so many bytes; with 0, each record is one of the topic's.
    pub fn new(bytes_max: usize) -> Self {
        let (key, marks) = (Vec::new(), Vec::new());
        Self { bytes_max, first: None, key, marks, values: Vec::with_capacity(bytes_max) }
    }

    /// Whether a record could share a pack with others.
    pub fn may_share(&self, header: &Header, value: &[u8]) -> bool {
        // A barrier stands outside the sequence. A line feed in a value would end it.
        value.len() < self.bytes_max && header.kind != Kind::Barrier && memchr::memchr(b'\n', value).is_none()
    }

    /// Takes a record that may share a pack; false where what was gathered has to go first.
    pub fn take(&mut self, header: &Header, key: &[u8], value: &[u8]) -> bool {
        let Some(first) = &self.first else {
            self.first = Some(*header);
            self.key.extend_from_slice(key);
            self.push(header, value);
            return true;
        };
        let next = Sequence(first.sequence.0 + self.records() as u64);
        let follows = Header { kind: header.kind, flags: header.flags, sequence: next, ..*first } == *header;
        let fits = self.values.len() + value.len() < self.bytes_max && self.records() < PACK_RECORDS_MAX;
        if follows && fits {
            self.push(header, value);
        }
        follows && fits
    }

    /// How many records were gathered.
    pub fn records(&self) -> usize {
        self.marks.len() / EACH
    }

    /// What was gathered; none where nothing was.
    pub fn packed(&self) -> Option<Packed<'_>> {
        let first = self.first?;
        let alone = self.records() == 1;
        let value = if alone { &self.values[..self.values.len() - 1] } else { &self.values[..] };
        let (header, key) = match alone {
            true => (first.seal(&self.key, value).to_vec(), &self.key[..]),
            false => (seal(&first, &self.marks, value), &[][..]),
        };
        Some(Packed { header, key, value, records: self.records() })
    }

    /// Begins the next pack.
    pub fn clear(&mut self) {
        self.first = None;
        self.key.clear();
        self.marks.clear();
        self.values.clear();
    }

    fn push(&mut self, header: &Header, value: &[u8]) {
        self.marks.push(header.kind as u8);
        self.marks.extend_from_slice(&header.flags.0.to_be_bytes());
        self.values.extend_from_slice(value);
        self.values.push(b'\n');
    }
}

fn seal(first: &Header, marks: &[u8], value: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(HEADER_LEN + marks.len());
    sealed.extend_from_slice(&head(PACK, Flags::NONE, first));
    sealed.extend_from_slice(&[0; 4]);
    sealed.extend_from_slice(marks);
    let sum = sum(&sealed, value);
    sealed[28..HEADER_LEN].copy_from_slice(&sum.to_be_bytes());
    sealed
}

fn sum(sealed: &[u8], value: &[u8]) -> u32 {
    checksum(&[&sealed[..28], &sealed[HEADER_LEN..]], b"", value)
}

/// Whether a header is a pack's, by its length: what else it says is read when it is opened.
pub(crate) fn is_pack(sealed: &[u8]) -> bool {
    sealed.len() > HEADER_LEN
}

/// The records of a pack, in their order. Their values are slices of the pack's.
///
/// # Errors
/// Whatever does not fit, as for [`Header::open`].
pub fn unpack(sealed: &[u8], key: &[u8], value: &Bytes) -> Result<Vec<(Header, Bytes)>, InvalidHeader> {
    let (start, marks) = sealed.split_at_checked(HEADER_LEN).ok_or(InvalidHeader::Length(sealed.len()))?;
    let first =
        super::header::read(start, sum(sealed, value), |kind| (kind == PACK).then_some(Kind::Change))?;
    if !key.is_empty() {
        return Err(InvalidHeader::Pack("it has a key"));
    }
    if marks.is_empty() || marks.len() % EACH != 0 || marks.len() / EACH > PACK_RECORDS_MAX {
        return Err(InvalidHeader::Length(sealed.len()));
    }
    if first.flags != Flags::NONE {
        return Err(InvalidHeader::Flags(first.flags.0));
    }
    let mut records = Vec::with_capacity(marks.len() / EACH);
    let mut from = 0;
    for (at, mark) in marks.chunks_exact(EACH).enumerate() {
        let kind = Kind::of(mark[0]).filter(|kind| *kind != Kind::Barrier);
        let header = Header {
            kind: kind.ok_or(InvalidHeader::Kind(mark[0]))?,
            flags: Flags::known(u16::from_be_bytes([mark[1], mark[2]]))?,
            sequence: Sequence(first.sequence.0.checked_add(at as u64).ok_or(InvalidHeader::Pack(NUMBERS))?),
            ..first
        };
        let length = memchr::memchr(b'\n', &value[from..]).ok_or(InvalidHeader::Pack(LINES))?;
        records.push((header, value.slice(from..from + length)));
        from += length + 1;
    }
    if from < value.len() {
        return Err(InvalidHeader::Pack(LINES));
    }
    Ok(records)
}

const LINES: &str = "its value has not as many lines as its header has records";
const NUMBERS: &str = "its numbers go beyond the last there is";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::{Incarnation, WriterEpoch};

    fn header(kind: Kind, sequence: u64) -> Header {
        let (epoch, incarnation) = (WriterEpoch(7), Incarnation(9));
        Header { kind, flags: Flags::FIRST, epoch, incarnation, sequence: Sequence(sequence) }
    }

    fn pack(records: &[(Header, &[u8])]) -> Packer {
        let mut packer = Packer::new(1000);
        for (header, value) in records {
            assert!(packer.may_share(header, value) && packer.take(header, b"key", value), "{header:?}");
        }
        packer
    }

    #[test]
    fn what_is_packed_comes_out_as_it_was() {
        let records: [(Header, &[u8]); 3] = [
            (header(Kind::Schema, 5), b"{\"a\":1}"),
            (header(Kind::Change, 6), b""),
            (Header { flags: Flags(31), ..header(Kind::Part, 7) }, b"half a"),
        ];
        let packer = pack(&records);
        let packed = packer.packed().unwrap();
        assert_eq!((packed.records, packed.key, packed.value), (3, &b""[..], &b"{\"a\":1}\n\nhalf a\n"[..]));
        assert!(is_pack(&packed.header));
        let value = Bytes::copy_from_slice(packed.value);
        let found = unpack(&packed.header, b"", &value).unwrap();
        assert_eq!(found, records.map(|(header, value)| (header, Bytes::from_static(value))));
    }

    #[test]
    fn a_record_alone_is_what_it_would_be_without_a_pack() {
        let first = header(Kind::Change, 5);
        let mut packer = pack(&[(first, b"value")]);
        let packed = packer.packed().unwrap();
        assert_eq!((packed.key, packed.value, packed.records), (&b"key"[..], &b"value"[..], 1));
        assert_eq!(packed.header, first.seal(b"key", b"value"));
        packer.clear();
        assert!(packer.packed().is_none());
        assert!(packer.take(&header(Kind::Change, 99), b"other", b"2"));
        assert_eq!(packer.packed().unwrap().key, b"other");
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let packer = pack(&[(header(Kind::Change, 5), b"one"), (header(Kind::Commit, 6), b"two")]);
        let packed = packer.packed().unwrap();
        let value = Bytes::copy_from_slice(packed.value);
        for bit in 0..packed.header.len() * 8 {
            let mut damaged = packed.header.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(unpack(&damaged, b"", &value).is_err(), "bit {bit}");
        }
        for bit in 0..value.len() * 8 {
            let mut damaged = value.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(unpack(&packed.header, b"", &damaged.into()).is_err(), "bit {bit} of the value");
        }
        assert!(unpack(&packed.header, b"key", &value).is_err());
        for length in 0..packed.header.len() {
            assert!(unpack(&packed.header[..length], b"", &value).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn what_does_not_belong_together_is_not_packed() {
        let mut packer = pack(&[(header(Kind::Change, 5), b"one")]);
        let next = header(Kind::Change, 6);
        let large = [b'x'; 996];
        assert!(!packer.take(&next, b"", &large), "larger than a pack");
        assert!(!packer.take(&header(Kind::Change, 7), b"", b"two"), "a number is missing");
        assert!(!packer.take(&Header { epoch: WriterEpoch(8), ..next }, b"", b"two"));
        assert!(!packer.take(&Header { incarnation: Incarnation(8), ..next }, b"", b"two"));
        assert!(!packer.may_share(&header(Kind::Barrier, 0), b"two"));
        assert!(!packer.may_share(&next, b"two\nlines"));
        assert!(!packer.may_share(&next, &[b'x'; 1000]));
        assert_eq!(packer.records(), 1);
        let mut packer = Packer::new(1 << 16);
        for at in 0..=PACK_RECORDS_MAX as u64 {
            let taken = packer.take(&header(Kind::Change, 5 + at), b"", b"");
            assert_eq!(taken, at < PACK_RECORDS_MAX as u64, "{at}");
        }
    }

    #[test]
    fn a_well_sealed_pack_with_something_else_in_it_is_refused() {
        let first = header(Kind::Change, 5);
        let refused = |marks: &[u8], value: &'static [u8]| {
            unpack(&seal(&first, marks, value), b"", &Bytes::from_static(value)).unwrap_err()
        };
        assert_eq!(refused(&[4, 0, 0, 4, 0, 0], b"one\n"), InvalidHeader::Pack(LINES));
        assert_eq!(refused(&[4, 0, 0], b"one\ntwo\n"), InvalidHeader::Pack(LINES));
        assert_eq!(refused(&[4, 0, 0], b"one"), InvalidHeader::Pack(LINES));
        assert_eq!(refused(&[2, 0, 0], b"a barrier\n"), InvalidHeader::Kind(2));
        assert_eq!(refused(&[PACK, 0, 0], b"a pack\n"), InvalidHeader::Kind(PACK));
        assert_eq!(refused(&[4, 0x80, 0], b"one\n"), InvalidHeader::Flags(0x8000));
        let last = Header { sequence: Sequence(u64::MAX), ..first };
        let value = Bytes::from_static(b"one\ntwo\n");
        let sealed = seal(&last, &[4, 0, 0, 4, 0, 0], &value);
        assert_eq!(unpack(&sealed, b"", &value), Err(InvalidHeader::Pack(NUMBERS)));
    }
}
