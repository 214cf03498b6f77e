//! Begins a stream anew: forgets it in its database, deletes its topic, and waits for the daemon to begin another.

use std::time::{Duration, Instant};

use crate::{
    cli::{FOUND, GOOD},
    config::{KafkaSettings, Settings, SourceSettings},
    fault::{Code, Fault, Result},
    kafka::{delete_topic, topic_facts},
    names,
    postgres::{Connection, connect},
    source::postgres::anew::{self, Known},
};

/// How often it is looked whether the daemon has begun.
const LOOK: Duration = Duration::from_millis(300);

/// Says what would be done, or does it.
pub(super) async fn run(settings: &Settings, execute: bool, patience: Duration, json: bool) -> Result<u8> {
    let Some((source, kafka)) = settings.source.as_ref().zip(settings.kafka.as_ref()) else {
        let message = format!("region {} has no [source]: there is no stream of it", settings.region);
        return Err(Fault::new(Code::ConfigInvalid, message)
            .remedied_by("run it with the settings of the region whose stream has lost something"));
    };
    let connection = connect(&settings.database, "landfall recover").await?;
    let topic = names::topic(&settings.region, &source.stream);
    let known = anew::known(&connection, &source.stream, &source.slot).await?;
    let work = Work { settings, source, kafka, connection, topic, known };
    if execute { work.execute(patience, json).await } else { work.plan(json).await }
}

struct Work<'a> {
    settings: &'a Settings,
    source: &'a SourceSettings,
    kafka: &'a KafkaSettings,
    connection: Connection,
    topic: String,
    known: Known,
}

impl Work<'_> {
    async fn plan(&self, json: bool) -> Result<u8> {
        let is_there = topic_facts(&self.kafka.cluster(), &self.topic).await?.is_some();
        let topic = is_there.then_some(&self.topic);
        let SourceSettings { stream, slot, .. } = self.source;
        let incarnation = self.known.incarnation.as_deref();
        if json {
            let plan = serde_json::json!({
                "stream": stream, "incarnation": incarnation, "slot": slot, "slot_is": self.slot(),
                "topic": topic, "executed": false,
            });
            println!("{plan}");
            return Ok(GOOD);
        }
        let region = &self.settings.region;
        println!("with --execute the stream {stream} of {region} is begun anew:");
        match incarnation {
            Some(incarnation) => {
                println!("  incarnation {incarnation} and its backfills are forgotten in the database")
            }
            None => println!("  the database knows nothing of it"),
        }
        println!("  slot `{slot}`, which is {}, is dropped where it is there", self.slot());
        match topic {
            None => println!("  its topic is not there"),
            Some(topic) => println!("  topic {topic} is deleted in Kafka, with what it holds"),
        }
        println!(
            "Then the daemon here begins another by itself. Each region with a link from here halts (LF-TOPIC-LOST) until \
             `landfall recover --execute` there, which brings just the rows that differ."
        );
        Ok(GOOD)
    }

    /// How the slot is, in a word.
    fn slot(&self) -> &'static str {
        match &self.known.slot {
            None => "gone",
            Some(slot) if slot.active_pid.is_some() => "read just now",
            Some(slot) if slot.is_lost() => "lost",
            Some(_) => "not read",
        }
    }

    async fn execute(&self, patience: Duration, json: bool) -> Result<u8> {
        let SourceSettings { stream, slot, .. } = self.source;
        if let Some(other) = &self.known.slot_of {
            let message = format!("slot `{slot}` is that of stream `{other}`, and would be dropped");
            return Err(Fault::new(Code::SlotBusy, message)
                .remedied_by("name another slot in source.slot; nothing was changed"));
        }
        // Before Kafka loses anything.
        anew::require_halted(&self.connection, slot).await?;
        delete_topic(&self.kafka.cluster(), &self.topic).await?;
        anew::forget(&self.connection, stream, slot).await?;
        if !json {
            println!("forgotten; waiting for the daemon here to begin the stream");
        }
        let begun = self.begun(patience).await?;
        if json {
            println!("{}", serde_json::json!({ "stream": stream, "incarnation": begun, "executed": true }));
        } else {
            match &begun {
                Some(incarnation) => println!(
                    "begun anew: incarnation {incarnation}\nnext: in each region with a link from {}, `landfall recover --execute`",
                    self.settings.region
                ),
                None => println!(
                    "no daemon has begun it within {} s\nnext: start `landfall run` here, and see it run with `landfall status`; then, in each region with a link from {}, `landfall recover --execute`",
                    patience.as_secs(),
                    self.settings.region
                ),
            }
        }
        Ok(if begun.is_some() { GOOD } else { FOUND })
    }

    /// The incarnation that is read now, once one is and its topic holds the beginning.
    async fn begun(&self, patience: Duration) -> Result<Option<String>> {
        let since = Instant::now();
        loop {
            let known = anew::known(&self.connection, &self.source.stream, &self.source.slot).await?;
            let is_read = known.slot.as_ref().is_some_and(|slot| slot.active_pid.is_some());
            if let Some(incarnation) = known.incarnation.filter(|_| known.is_live && is_read) {
                return Ok(Some(incarnation));
            }
            if since.elapsed() >= patience {
                return Ok(None);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
