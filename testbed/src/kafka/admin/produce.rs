//! Records written over Kafka's own protocol, byte for byte as the test says.
//!
//! For records that a stranger might write, or that shall be read by a
//! stranger: Landfall's client must not be the witness of its own work. One
//! request, one batch, no compression; nothing here is quick.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use super::{Admin, Api, Body};
use crate::crc::crc32c;

const PRODUCE: Api = Api { key: 0, version: 3 };

/// The format of batches since Kafka 0.11, and still.
const MAGIC: i8 = 2;

/// A record to be written.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// None is no key, which is not an empty one.
    pub key: Option<Vec<u8>>,
    /// None is a tombstone.
    pub value: Option<Vec<u8>>,
    /// Names and values, in order.
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Admin {
    /// Appends records to a partition, in order and all or none, and returns
    /// the offset of the first once every in-sync replica has them. Records
    /// larger than the topic takes are an error.
    pub async fn append(&self, topic: &str, partition: i32, records: &[Record]) -> Result<i64> {
        const ALL_IN_SYNC: i16 = -1;
        ensure!(!records.is_empty(), "no records to append to {topic}");
        let mut body = Body::new();
        body.i16(-1); // no transaction
        body.i16(ALL_IN_SYNC);
        body.timeout();
        body.i32(1);
        body.string(topic);
        body.i32(1);
        body.i32(partition);
        body.bytes(&batch(records)?);
        self.of_leader(PRODUCE, topic, partition, &body, |answer| {
            answer.one()?;
            answer.string()?;
            answer.one()?;
            answer.i32()?; // the partition
            answer.outcome()?;
            answer.i64()
        })
        .await
        .with_context(|| format!("append to {topic}"))
    }
}

/// One batch, its offsets counted from 0 for the broker to move. All records
/// bear the present time: the broker would soon delete old ones.
fn batch(records: &[Record]) -> Result<Vec<u8>> {
    let now_ms = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    let count = i32::try_from(records.len())?;
    // What the checksum covers.
    let mut tail = Body::new();
    tail.i16(0); // neither compressed nor part of a transaction
    tail.i32(count - 1); // the last offset
    tail.i64(now_ms); // the first time
    tail.i64(now_ms); // the last
    tail.i64(-1); // no producer to tell repeats by,
    tail.i16(-1); // its epoch
    tail.i32(-1); // and first sequence number
    tail.i32(count);
    for (offset, record) in records.iter().enumerate() {
        let mut one = vec![0]; // attributes: there are none
        varint(&mut one, 0); // how long after the first time
        varint(&mut one, i64::try_from(offset)?);
        bytes(&mut one, record.key.as_deref())?;
        bytes(&mut one, record.value.as_deref())?;
        varint(&mut one, i64::try_from(record.headers.len())?);
        for (name, value) in &record.headers {
            bytes(&mut one, Some(name.as_bytes()))?;
            bytes(&mut one, Some(value))?;
        }
        bytes(&mut tail.0, Some(&one))?;
    }
    let mut whole = Body::new();
    whole.i64(0); // the first offset
    whole.i32(i32::try_from(tail.0.len() + 9)?);
    whole.i32(-1); // whichever leader this reaches
    whole.i8(MAGIC);
    whole.0.extend(crc32c(&tail.0).to_be_bytes());
    whole.0.extend(tail.0);
    Ok(whole.0)
}

/// A length and that many bytes; -1 for none.
fn bytes(into: &mut Vec<u8>, value: Option<&[u8]>) -> Result<()> {
    match value {
        Some(value) => {
            varint(into, i64::try_from(value.len())?);
            into.extend(value);
        }
        None => varint(into, -1),
    }
    Ok(())
}

/// Seven bits a byte, the lowest first, the sign in the very lowest.
fn varint(into: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        into.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    into.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_takes_the_bytes_it_needs() {
        let written = |value| {
            let mut bytes = Vec::new();
            varint(&mut bytes, value);
            bytes
        };
        assert_eq!(written(0), [0]);
        assert_eq!(written(-1), [1]);
        assert_eq!(written(63), [126]);
        assert_eq!(written(64), [128, 1]);
    }
}
