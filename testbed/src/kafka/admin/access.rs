//! Who may do what: users with passwords, what they are allowed, and what a
//! consumer group has published. Over Kafka's own protocol, as the rest.

use anyhow::{Context, Result};

use super::{Admin, Answer, Api, Body};
use crate::authority::stretched;

const OFFSET_FETCH: Api = Api { key: 9, version: 1 };
const FIND_COORDINATOR: Api = Api { key: 10, version: 1 };
const CREATE_ACLS: Api = Api { key: 30, version: 1 };
const ALTER_USER_SCRAM_CREDENTIALS: Api = Api { key: 51, version: 0 };

/// The fewest rounds a broker accepts.
const ITERATIONS: i32 = 4096;

/// What a principal may be allowed, by Kafka's names for it.
const OPERATIONS: &[(&str, i8)] =
    &[("Read", 3), ("Write", 4), ("Create", 5), ("Describe", 8), ("DescribeConfigs", 10)];

impl Admin {
    /// Makes a user who proves himself by SCRAM-SHA-512, or gives him another
    /// password.
    pub async fn set_password(&self, user: &str, password: &str) -> Result<()> {
        const SHA_512: i8 = 2;
        let salt: [u8; 16] = rand::random();
        let salted = stretched(password, &salt, ITERATIONS)?;
        let mut body = Body::new();
        body.compact(0); // none to delete
        body.compact(1);
        body.compact_bytes(user.as_bytes());
        body.i8(SHA_512);
        body.i32(ITERATIONS);
        body.compact_bytes(&salt);
        body.compact_bytes(&salted);
        body.no_tags();
        body.no_tags();
        self.of_anyone(ALTER_USER_SCRAM_CREDENTIALS, &body, |answer| {
            answer.i8()?; // no tags in its head
            answer.i32()?; // throttle
            answer.i8()?; // one result
            let name = usize::try_from(answer.i8()?)?.saturating_sub(1);
            answer.skip(name)?;
            answer.outcome()
        })
        .await
        .with_context(|| format!("set the password of {user}"))
    }

    /// Allows a user one operation, as Kafka calls it, on a `topic` or a
    /// `group` of this name.
    pub async fn allow(&self, user: &str, operation: &str, kind: &str, name: &str) -> Result<()> {
        const LITERAL: i8 = 3;
        const ALLOW: i8 = 3;
        let known = OPERATIONS.iter().find(|(known, _)| *known == operation);
        let (_, operation) = known.with_context(|| format!("no operation {operation}"))?;
        let mut body = Body::new();
        body.i32(1);
        body.i8(match kind {
            "topic" => 2,
            "group" => 3,
            other => anyhow::bail!("nothing is allowed on a {other} here"),
        });
        body.string(name);
        body.i8(LITERAL);
        body.string(&format!("User:{user}"));
        body.string("*"); // from any host
        body.i8(*operation);
        body.i8(ALLOW);
        self.of_anyone(CREATE_ACLS, &body, |answer| {
            answer.i32()?; // throttle
            answer.one()?;
            answer.outcome_with_message()
        })
        .await
        .with_context(|| format!("allow {user} an operation on {kind} {name}"))
    }

    /// The offset a group has published for partition 0 of a topic; none where
    /// it has not.
    pub async fn group_offset(&self, group: &str, topic: &str) -> Result<Option<i64>> {
        let mut body = Body::new();
        body.string(group);
        body.i8(0); // a group, no transaction
        self.of_anyone(FIND_COORDINATOR, &body, |answer: &mut Answer| {
            answer.i32()?; // throttle
            answer.outcome_with_message()
        })
        .await
        .with_context(|| format!("find who coordinates {group}"))?;
        let mut body = Body::new();
        body.string(group);
        body.i32(1);
        body.string(topic);
        body.i32(1);
        body.i32(0);
        let offset = self
            .of_anyone(OFFSET_FETCH, &body, |answer| {
                answer.one()?;
                answer.string()?;
                answer.one()?;
                answer.i32()?; // the partition
                let offset = answer.i64()?;
                answer.string()?; // what was written beside it
                answer.outcome()?;
                Ok(offset)
            })
            .await
            .with_context(|| format!("ask for the offset of {group}"))?;
        Ok((offset >= 0).then_some(offset))
    }
}
