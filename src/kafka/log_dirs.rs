//! How much disk a topic takes and how much the brokers have left: DescribeLogDirs, which the client
//! library has no call for. Asked over plain connections only; a broker that wants TLS or a password is
//! left unasked, and what it has is unknown.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{Cluster, topic::ClusterFacts};

/// One broker on the local network, or over one line: no election to wait for.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A broker lists one topic of each of its disks; more is no answer of one.
const ANSWER_MAX: usize = 1 << 20;
/// The request's number in the protocol, and the first version that tells of free disk (Kafka 3.3).
const DESCRIBE_LOG_DIRS: [i16; 2] = [35, 4];

/// What one broker says of the disk a topic is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// The broker.
    pub broker: i32,
    /// What the topic takes there; none where it is on another broker.
    pub topic_bytes: Option<u64>,
    /// What is free on the disk it is on, or would be put on.
    pub usable_bytes: u64,
}

/// Asks each broker; none where one of them cannot be asked this way.
pub async fn rooms(cluster: &Cluster, facts: &ClusterFacts, topic: &str) -> Option<Vec<Room>> {
    let protocol = cluster.properties.iter().find(|(name, _)| name == "security.protocol");
    if protocol.is_some_and(|(_, value)| !value.reveal().eq_ignore_ascii_case("plaintext")) {
        return None;
    }
    let mut rooms = Vec::new();
    for broker in &facts.brokers {
        let asked = timeout(TIMEOUT, ask(&broker.host, broker.port, topic)).await;
        let answer = match asked {
            Ok(Ok(answer)) => answer,
            failed => {
                tracing::debug!(?failed, broker = broker.id, "log directories not described");
                return None;
            }
        };
        rooms.push(room(&answer, broker.id, topic)?);
    }
    Some(rooms)
}

async fn ask(host: &str, port: u16, topic: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect((host, port)).await?;
    stream.write_all(&request(topic)).await?;
    let length = usize::try_from(stream.read_i32().await?).unwrap_or(usize::MAX);
    if length > ANSWER_MAX {
        return Err(std::io::Error::other(format!("an answer of {length} bytes")));
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

fn request(topic: &str) -> Vec<u8> {
    let mut body = Vec::new();
    let mut compact = |bytes: &[u8], length: usize| {
        // Lengths of topics and lists are far below 127: one byte of a varint.
        body.push(u8::try_from(length + 1).unwrap_or(u8::MAX));
        body.extend_from_slice(bytes);
    };
    compact(&[], 1);
    compact(topic.as_bytes(), topic.len());
    compact(&0_i32.to_be_bytes(), 1);
    // No tags: of the topic, of the request.
    body.extend_from_slice(&[0, 0]);
    let client = b"landfall-check";
    let mut message = Vec::new();
    message.extend(DESCRIBE_LOG_DIRS.iter().flat_map(|number| number.to_be_bytes()));
    message.extend_from_slice(&1_i32.to_be_bytes());
    message.extend_from_slice(&(client.len() as i16).to_be_bytes());
    message.extend_from_slice(client);
    message.push(0);
    message.extend_from_slice(&body);
    let mut framed = (message.len() as i32).to_be_bytes().to_vec();
    framed.extend_from_slice(&message);
    framed
}

/// Reads an answer; none where it is not one, or is an error.
fn room(answer: &[u8], broker: i32, topic: &str) -> Option<Room> {
    let mut rest = Cursor(answer);
    let (_correlation, _tags, _throttle) = (rest.number::<4>()?, rest.tags()?, rest.number::<4>()?);
    if rest.number::<2>()? != 0 {
        return None;
    }
    let mut best: Option<Room> = None;
    for _ in 0..rest.count()? {
        let error = rest.number::<2>()?;
        rest.text()?;
        let mut topic_bytes = None;
        for _ in 0..rest.count()? {
            let named = rest.text()? == topic.as_bytes();
            for _ in 0..rest.count()? {
                let (_partition, size) = (rest.number::<4>()?, rest.number::<8>()?);
                let (_lag, _future) = (rest.number::<8>()?, rest.number::<1>()?);
                rest.tags()?;
                if named {
                    topic_bytes = Some(topic_bytes.unwrap_or(0) + u64::try_from(size).ok()?);
                }
            }
            rest.tags()?;
        }
        let (_total, usable) = (rest.number::<8>()?, rest.number::<8>()?);
        rest.tags()?;
        let Ok(usable_bytes) = u64::try_from(usable) else { continue };
        if error != 0 {
            continue;
        }
        let found = Room { broker, topic_bytes, usable_bytes };
        let rank = |room: &Room| (room.topic_bytes.is_some(), room.usable_bytes);
        if best.is_none_or(|best| rank(&best) < rank(&found)) {
            best = Some(found);
        }
    }
    best
}

/// Reads the protocol's flexible form from the front.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    /// A signed number of so many bytes.
    fn number<const BYTES: usize>(&mut self) -> Option<i64> {
        let bytes = self.take(BYTES)?;
        let negative = bytes.first().is_some_and(|first| first & 0x80 != 0);
        Some(bytes.iter().fold(if negative { -1 } else { 0 }, |number, byte| number << 8 | i64::from(*byte)))
    }

    fn varint(&mut self) -> Option<usize> {
        let mut number = 0_usize;
        for shift in (0..35).step_by(7) {
            let byte = usize::from(self.take(1)?[0]);
            number |= (byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    /// How many items follow; 0 for a list that is null.
    fn count(&mut self) -> Option<usize> {
        self.varint().map(|count| count.saturating_sub(1))
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = self.count()?;
        self.take(length)
    }

    /// Tagged fields, none of which is known here.
    fn tags(&mut self) -> Option<()> {
        for _ in 0..self.varint()? {
            self.varint()?;
            let length = self.varint()?;
            self.take(length)?;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer with these directories: what `t` takes there, where it is there, and what is free.
    fn answer(error: i16, dirs: &[(Option<i64>, i64)]) -> Vec<u8> {
        let mut bytes =
            [1_i32.to_be_bytes().as_slice(), &[0], &0_i32.to_be_bytes(), &error.to_be_bytes()].concat();
        bytes.push(dirs.len() as u8 + 1);
        for (size, usable) in dirs {
            bytes.extend_from_slice(&[0, 0, 3, b'/', b'd']);
            bytes.push(u8::from(size.is_some()) + 1);
            if let Some(size) = size {
                bytes.extend_from_slice(&[2, b't', 2, 0, 0, 0, 0]);
                bytes.extend_from_slice(&size.to_be_bytes());
                bytes.extend_from_slice(&[0; 10]);
                bytes.push(0);
            }
            bytes.extend_from_slice(&1000_i64.to_be_bytes());
            bytes.extend_from_slice(&usable.to_be_bytes());
            bytes.push(0);
        }
        bytes.push(0);
        bytes
    }

    #[test]
    fn the_disk_a_topic_is_on_is_the_one_that_counts() {
        let room = |error, dirs: &[(Option<i64>, i64)]| {
            room(&answer(error, dirs), 7, "t").map(|room| (room.topic_bytes, room.usable_bytes))
        };
        assert_eq!(room(0, &[(None, 900), (Some(20), 300)]), Some((Some(20), 300)));
        assert_eq!(room(0, &[(None, 100), (None, 300)]), Some((None, 300)));
        // A broker that cannot tell says -1.
        assert_eq!(room(0, &[(Some(20), -1)]), None);
        assert_eq!(room(29, &[(Some(20), 300)]), None, "not authorized");
    }

    #[test]
    fn what_is_no_answer_is_unknown() {
        let whole = answer(0, &[(Some(20), 300)]);
        for length in 0..whole.len() - 2 {
            assert_eq!(room(&whole[..length], 1, "t"), None, "{length}");
        }
    }
}
