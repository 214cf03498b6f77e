//! Topic administration over Kafka's own protocol.
//!
//! Kafka's command-line tools do the same at the price of a JVM start per
//! command, a second or two each on a small machine; and the product's Kafka
//! client must not be the witness of its own work. The handful of requests a
//! test needs are written out here, in their oldest version that Kafka 4 still
//! answers, as those have the plainest layout: big-endian integers, strings
//! and arrays with their length in front.

mod access;
mod produce;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub use produce::Record;

/// How long the brokers may take over one request, and over showing its
/// outcome to everybody.
const PATIENCE: Duration = Duration::from_secs(60);

/// 16 MiB: no answer to these requests comes near; a length beyond is garbage.
const ANSWER_LIMIT: i32 = 16 * 1024 * 1024;

/// A request kind and the version of it that is written here.
#[derive(Clone, Copy, Debug)]
struct Api {
    key: i16,
    version: i16,
}

/// The one request kind here that has no version in the old layout: lengths
/// are of variable size, and every part may be followed by tagged fields.
const FLEXIBLE: i16 = 51;

const LIST_OFFSETS: Api = Api { key: 2, version: 1 };
const METADATA: Api = Api { key: 3, version: 1 };
const CREATE_TOPICS: Api = Api { key: 19, version: 2 };
const DELETE_TOPICS: Api = Api { key: 20, version: 1 };
const DELETE_RECORDS: Api = Api { key: 21, version: 0 };
const CREATE_PARTITIONS: Api = Api { key: 37, version: 0 };
const INCREMENTAL_ALTER_CONFIGS: Api = Api { key: 44, version: 0 };

/// The error codes a test meets, by their names in Kafka's documentation.
mod code {
    pub(super) const NONE: i16 = 0;
    pub(super) const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
    pub(super) const LEADER_NOT_AVAILABLE: i16 = 5;
    pub(super) const NOT_LEADER_OR_FOLLOWER: i16 = 6;
    pub(super) const REQUEST_TIMED_OUT: i16 = 7;
    pub(super) const COORDINATOR_LOAD_IN_PROGRESS: i16 = 14;
    pub(super) const COORDINATOR_NOT_AVAILABLE: i16 = 15;
    pub(super) const NOT_COORDINATOR: i16 = 16;
    pub(super) const NOT_CONTROLLER: i16 = 41;
}

/// What the brokers say about one partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number.
    pub index: i32,
    /// The id of the broker that leads it; -1 while none does.
    pub leader: i32,
    /// The ids of the brokers that hold it.
    pub replicas: Vec<i32>,
    /// The ids of those that are in sync.
    pub in_sync: Vec<i32>,
}

/// Administers a cluster through whichever of its brokers answers.
#[derive(Clone, Debug)]
pub struct Admin {
    servers: Vec<SocketAddr>,
}

impl Admin {
    /// For these bootstrap servers.
    pub fn new(servers: impl IntoIterator<Item = SocketAddr>) -> Admin {
        Admin { servers: servers.into_iter().collect() }
    }

    /// Whether there is such a topic.
    pub async fn topic_exists(&self, topic: &str) -> Result<bool> {
        let mut seen = Err(anyhow::anyhow!("no servers are named"));
        for &server in &self.servers {
            seen = metadata(server, topic).await;
            if seen.is_ok() {
                break;
            }
        }
        Ok(seen?.partitions.is_some())
    }

    /// The partitions of a topic, in order.
    pub async fn partitions(&self, topic: &str) -> Result<Vec<Partition>> {
        self.metadata(topic).await?.partitions.with_context(|| format!("no topic {topic}"))
    }

    /// Makes a topic and waits until every partition of it has a leader.
    pub async fn create_topic(
        &self,
        topic: &str,
        partitions: i32,
        replication_factor: u16,
        settings: &[(&str, &str)],
    ) -> Result<()> {
        let mut body = Body::new();
        body.i32(1);
        body.string(topic);
        body.i32(partitions);
        body.i16(i16::try_from(replication_factor)?);
        body.i32(0);
        body.i32(i32::try_from(settings.len())?);
        for (name, value) in settings {
            body.string(name);
            body.string(value);
        }
        body.timeout();
        body.i8(0);
        self.of_anyone(CREATE_TOPICS, &body, |answer| {
            answer.i32()?; // throttle
            answer.one()?;
            answer.string()?;
            answer.outcome_with_message()
        })
        .await
        .with_context(|| format!("create topic {topic}"))?;
        self.until(
            &format!("topic {topic} has leaders"),
            |seen| {
                seen.as_ref().is_some_and(|seen| {
                    seen.len() == partitions as usize && seen.iter().all(|p| p.leader >= 0)
                })
            },
            topic,
        )
        .await
    }

    /// Deletes a topic and waits until no broker shows it any more.
    pub async fn delete_topic(&self, topic: &str) -> Result<()> {
        let mut body = Body::new();
        body.i32(1);
        body.string(topic);
        body.timeout();
        self.of_anyone(DELETE_TOPICS, &body, |answer| {
            answer.i32()?; // throttle
            answer.one()?;
            answer.string()?;
            answer.outcome()
        })
        .await
        .with_context(|| format!("delete topic {topic}"))?;
        self.until(&format!("topic {topic} is gone"), |seen| seen.is_none(), topic).await
    }

    /// Raises the number of partitions to a total and waits until every broker
    /// shows them.
    pub async fn add_partitions(&self, topic: &str, total: i32) -> Result<()> {
        let mut body = Body::new();
        body.i32(1);
        body.string(topic);
        body.i32(total);
        body.i32(-1); // wherever the controller likes
        body.timeout();
        body.i8(0);
        self.of_anyone(CREATE_PARTITIONS, &body, |answer| {
            answer.i32()?; // throttle
            answer.one()?;
            answer.string()?;
            answer.outcome_with_message()
        })
        .await
        .with_context(|| format!("add partitions to {topic}"))?;
        self.until(
            &format!("topic {topic} has {total} partitions"),
            |seen| seen.as_ref().is_some_and(|seen| seen.len() == total as usize),
            topic,
        )
        .await
    }

    /// Sets settings of a topic, leaving the others.
    pub async fn alter_config(&self, topic: &str, settings: &[(&str, &str)]) -> Result<()> {
        const TOPIC: i8 = 2;
        const SET: i8 = 0;
        let mut body = Body::new();
        body.i32(1);
        body.i8(TOPIC);
        body.string(topic);
        body.i32(i32::try_from(settings.len())?);
        for (name, value) in settings {
            body.string(name);
            body.i8(SET);
            body.string(value);
        }
        body.i8(0);
        self.of_anyone(INCREMENTAL_ALTER_CONFIGS, &body, |answer| {
            answer.i32()?; // throttle
            answer.one()?;
            answer.outcome_with_message()
        })
        .await
        .with_context(|| format!("set the configuration of {topic}"))
    }

    /// Deletes the records of a partition before an offset; returns the first
    /// offset that is left.
    pub async fn delete_records(&self, topic: &str, partition: i32, before_offset: i64) -> Result<i64> {
        let mut body = Body::new();
        body.i32(1);
        body.string(topic);
        body.i32(1);
        body.i32(partition);
        body.i64(before_offset);
        body.timeout();
        self.of_leader(DELETE_RECORDS, topic, partition, &body, |answer| {
            answer.i32()?; // throttle
            answer.one()?;
            answer.string()?;
            answer.one()?;
            answer.i32()?; // the partition
            let low = answer.i64()?;
            answer.outcome()?;
            Ok(low)
        })
        .await
        .with_context(|| format!("delete records of {topic}"))
    }

    /// The offset of the first record of a partition.
    pub async fn start_offset(&self, topic: &str, partition: i32) -> Result<i64> {
        self.offset(topic, partition, -2).await
    }

    /// The offset the next record of a partition will get, as far as every
    /// in-sync replica has them.
    pub async fn end_offset(&self, topic: &str, partition: i32) -> Result<i64> {
        self.offset(topic, partition, -1).await
    }

    async fn offset(&self, topic: &str, partition: i32, timestamp: i64) -> Result<i64> {
        let mut body = Body::new();
        body.i32(-1); // no replica
        body.i32(1);
        body.string(topic);
        body.i32(1);
        body.i32(partition);
        body.i64(timestamp);
        self.of_leader(LIST_OFFSETS, topic, partition, &body, |answer| {
            answer.one()?;
            answer.string()?;
            answer.one()?;
            answer.i32()?; // the partition
            answer.outcome()?;
            answer.i64()?; // the timestamp
            answer.i64()
        })
        .await
        .with_context(|| format!("ask for an offset of {topic}"))
    }

    /// Asks one broker after the other, again and again, until one gives an
    /// answer that does not ask to be asked again.
    async fn of_anyone<T>(
        &self,
        api: Api,
        body: &Body,
        read: impl Fn(&mut Answer) -> Result<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut last = anyhow::anyhow!("no servers are named");
            for &server in &self.servers {
                match ask(server, api, body, &read).await {
                    Ok(value) => return Ok(value),
                    Err(error) if worth_another_try(&error) => last = error,
                    Err(error) => return Err(error),
                }
            }
            if Instant::now() > deadline {
                return Err(last);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The same, of the broker that leads a partition at that moment.
    async fn of_leader<T>(
        &self,
        api: Api,
        topic: &str,
        partition: i32,
        body: &Body,
        read: impl Fn(&mut Answer) -> Result<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let attempt = async {
                let seen = self.metadata(topic).await?;
                let Some(partitions) = seen.partitions else {
                    bail!(Refused(code::UNKNOWN_TOPIC_OR_PARTITION, None));
                };
                let leader = partitions
                    .iter()
                    .find(|known| known.index == partition)
                    .with_context(|| format!("{topic} has no partition {partition}"))?
                    .leader;
                let server = seen
                    .brokers
                    .iter()
                    .find(|(id, _)| *id == leader)
                    .map(|(_, address)| *address)
                    .ok_or(Refused(code::LEADER_NOT_AVAILABLE, None))?;
                ask(server, api, body, &read).await
            };
            match attempt.await {
                Ok(value) => return Ok(value),
                Err(error) if worth_another_try(&error) && Instant::now() < deadline => {}
                Err(error) => return Err(error),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn metadata(&self, topic: &str) -> Result<Metadata> {
        let mut seen = Err(anyhow::anyhow!("no servers are named"));
        for &server in &self.servers {
            seen = metadata(server, topic).await;
            if seen.is_ok() {
                break;
            }
        }
        seen
    }

    /// Waits until every broker that answers sees the topic so.
    async fn until(
        &self,
        what: &str,
        holds: impl Fn(&Option<Vec<Partition>>) -> bool,
        topic: &str,
    ) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut answered = 0;
            let mut fine = 0;
            for &server in &self.servers {
                if let Ok(seen) = metadata(server, topic).await {
                    answered += 1;
                    fine += usize::from(holds(&seen.partitions));
                }
            }
            if answered > 0 && fine == answered {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "waited {PATIENCE:?} until {what}: {fine} of {answered} brokers say so"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

struct Metadata {
    brokers: Vec<(i32, SocketAddr)>,
    /// None: there is no such topic.
    partitions: Option<Vec<Partition>>,
}

async fn metadata(server: SocketAddr, topic: &str) -> Result<Metadata> {
    let mut body = Body::new();
    body.i32(1);
    body.string(topic);
    ask(server, METADATA, &body, |answer| {
        let mut brokers = Vec::new();
        for _ in 0..answer.count()? {
            let id = answer.i32()?;
            let host = answer.string()?.context("a broker without a host")?;
            let port = answer.i32()?;
            answer.string()?; // rack
            brokers.push((id, format!("{host}:{port}").parse()?));
        }
        answer.i32()?; // the controller
        answer.one()?;
        let error = answer.i16()?;
        answer.string()?;
        answer.i8()?; // internal
        let mut partitions = Vec::new();
        for _ in 0..answer.count()? {
            answer.i16()?; // its error: no leader, which shows in the leader
            partitions.push(Partition {
                index: answer.i32()?,
                leader: answer.i32()?,
                replicas: answer.i32s()?,
                in_sync: answer.i32s()?,
            });
        }
        partitions.sort_by_key(|partition| partition.index);
        let partitions = match error {
            code::NONE | code::LEADER_NOT_AVAILABLE => Some(partitions),
            code::UNKNOWN_TOPIC_OR_PARTITION => None,
            other => bail!(Refused(other, None)),
        };
        Ok(Metadata { brokers, partitions })
    })
    .await
}

/// A broker answered with an error code.
#[derive(Debug)]
struct Refused(i16, Option<String>);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kafka error {}", self.0)?;
        match &self.1 {
            Some(message) => write!(f, ": {message}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Refused {}

/// A broker that is gone, or not yet what it will be, may be asked again.
fn worth_another_try(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<Refused>() {
        Some(Refused(code, _)) => matches!(
            *code,
            code::LEADER_NOT_AVAILABLE
                | code::NOT_LEADER_OR_FOLLOWER
                | code::REQUEST_TIMED_OUT
                | code::COORDINATOR_LOAD_IN_PROGRESS
                | code::COORDINATOR_NOT_AVAILABLE
                | code::NOT_COORDINATOR
                | code::NOT_CONTROLLER
        ),
        None => error.downcast_ref::<std::io::Error>().is_some(),
    }
}

/// One request over a connection of its own.
async fn ask<T>(
    server: SocketAddr,
    api: Api,
    body: &Body,
    read: impl Fn(&mut Answer) -> Result<T>,
) -> Result<T> {
    const CORRELATION: i32 = 7;
    let exchange = async {
        let mut stream = TcpStream::connect(server).await?;
        let mut head = Body::new();
        head.i16(api.key);
        head.i16(api.version);
        head.i32(CORRELATION);
        head.string("testbed");
        if api.key == FLEXIBLE {
            head.no_tags();
        }
        let length = i32::try_from(head.0.len() + body.0.len()).map_err(std::io::Error::other)?;
        stream.write_all(&length.to_be_bytes()).await?;
        stream.write_all(&head.0).await?;
        stream.write_all(&body.0).await?;
        let length = stream.read_i32().await?;
        if !(4..=ANSWER_LIMIT).contains(&length) {
            return Err(std::io::Error::other(format!("an answer of {length} bytes")));
        }
        let mut bytes = vec![0; length as usize];
        stream.read_exact(&mut bytes).await?;
        Ok(bytes)
    };
    let bytes = tokio::time::timeout(PATIENCE, exchange)
        .await
        .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
    let mut answer = Answer(&bytes);
    ensure!(answer.i32()? == CORRELATION, "an answer to another request");
    read(&mut answer)
}

/// A request being written.
struct Body(Vec<u8>);

impl Body {
    fn new() -> Body {
        Body(Vec::new())
    }

    fn i8(&mut self, value: i8) {
        self.0.extend(value.to_be_bytes());
    }

    fn i16(&mut self, value: i16) {
        self.0.extend(value.to_be_bytes());
    }

    fn i32(&mut self, value: i32) {
        self.0.extend(value.to_be_bytes());
    }

    fn i64(&mut self, value: i64) {
        self.0.extend(value.to_be_bytes());
    }

    fn string(&mut self, value: &str) {
        let length = i16::try_from(value.len()).expect("a name or setting is short");
        self.i16(length);
        self.0.extend(value.as_bytes());
    }

    fn bytes(&mut self, value: &[u8]) {
        let length = i32::try_from(value.len()).expect("a test writes less than 2 GiB");
        self.i32(length);
        self.0.extend(value);
    }

    /// The length of what follows in the newer layout: one more than it is.
    fn compact(&mut self, length: usize) {
        let length = i8::try_from(length + 1).expect("what a test sends so is short");
        self.i8(length);
    }

    fn compact_bytes(&mut self, value: &[u8]) {
        self.compact(value.len());
        self.0.extend(value);
    }

    fn no_tags(&mut self) {
        self.i8(0);
    }

    fn timeout(&mut self) {
        self.i32(PATIENCE.as_millis() as i32);
    }
}

/// An answer being read.
struct Answer<'a>(&'a [u8]);

impl Answer<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>().context("an answer cut short")?;
        self.0 = rest;
        Ok(*head)
    }

    fn skip(&mut self, length: usize) -> Result<()> {
        let (_, rest) = self.0.split_at_checked(length).context("an answer cut short")?;
        self.0 = rest;
        Ok(())
    }

    fn i8(&mut self) -> Result<i8> {
        Ok(i8::from_be_bytes(self.take()?))
    }

    fn i16(&mut self) -> Result<i16> {
        Ok(i16::from_be_bytes(self.take()?))
    }

    fn i32(&mut self) -> Result<i32> {
        Ok(i32::from_be_bytes(self.take()?))
    }

    fn i64(&mut self) -> Result<i64> {
        Ok(i64::from_be_bytes(self.take()?))
    }

    fn string(&mut self) -> Result<Option<String>> {
        let length = self.i16()?;
        let Ok(length) = usize::try_from(length) else {
            return Ok(None);
        };
        let (head, rest) = self.0.split_at_checked(length).context("an answer cut short")?;
        self.0 = rest;
        Ok(Some(String::from_utf8(head.to_vec())?))
    }

    fn count(&mut self) -> Result<usize> {
        Ok(usize::try_from(self.i32()?).unwrap_or(0))
    }

    fn i32s(&mut self) -> Result<Vec<i32>> {
        (0..self.count()?).map(|_| self.i32()).collect()
    }

    /// The length of an array that must hold one element.
    fn one(&mut self) -> Result<()> {
        let count = self.count()?;
        ensure!(count == 1, "an answer about {count} things, not one");
        Ok(())
    }

    fn outcome(&mut self) -> Result<()> {
        match self.i16()? {
            code::NONE => Ok(()),
            other => bail!(Refused(other, None)),
        }
    }

    fn outcome_with_message(&mut self) -> Result<()> {
        let error = self.i16()?;
        let message = self.string()?;
        match error {
            code::NONE => Ok(()),
            other => bail!(Refused(other, message)),
        }
    }
}
