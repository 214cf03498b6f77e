//! `landfall init`: from two databases and a broker to two files of settings and the SQL that makes them work.
//!
//! ```text
//!  wishes ─▶ look at both databases and the brokers ─▶ plan: files, what stands in the way, what to run ─▶ written
//! ```
//!
//! Looking leaves nothing behind: what a role that is not there yet would lack is asked as that role, inside a
//! transaction that is rolled back. A password is made here, kept in a file of its own, and told the server
//! only as what proves it (SCRAM).

mod files;
mod look;

use std::{io, path::PathBuf};

use serde::Serialize;

use crate::{
    config::database_address,
    fault::{Code, Fault, Result},
    kafka::{Cluster, cluster_facts},
    postgres::Address,
    region::Region,
    scope::Pattern,
};
use files::Text;

/// What the user wants.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// The region whose changes go out.
    pub from: Side,
    /// The region they go to.
    pub to: Side,
    /// The sending region's Kafka.
    pub brokers: Vec<String>,
    /// The tables that are carried; none for all there are.
    pub tables: Option<Vec<Pattern>>,
    /// The role the daemons work as.
    pub role: String,
    /// Where the files go.
    pub directory: PathBuf,
}

/// One region.
#[derive(Clone, Debug)]
pub struct Side {
    /// Its name.
    pub region: Region,
    /// Its database, as somebody who may look around in it and create roles. Not kept.
    pub url: String,
}

/// What was done, and what is left to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// What was seen of each side.
    pub seen: Vec<String>,
    /// What stands in the way of rows crossing, with what takes it away.
    pub obstacles: Vec<String>,
    /// The files that were written.
    pub files: Vec<String>,
    /// What to run, in this order.
    pub next: Vec<String>,
}

/// Looks, plans and writes.
///
/// # Errors
/// A url that is none, a database or broker that does not answer, a file that is there already.
pub async fn run(wishes: &Wishes) -> Result<Outcome> {
    if wishes.from.region == wishes.to.region {
        return Err(wrong(format!("both regions are called {}", wishes.from.region)));
    }
    let (from, to) = (address(&wishes.from)?, address(&wishes.to)?);
    let cluster = Cluster { brokers: wishes.brokers.clone(), properties: Vec::new() };
    let brokers = cluster_facts(&cluster).await?.brokers.len();
    let seen = look::at(wishes, &from, &to).await?;
    let texts = files::texts(wishes, &seen, brokers)?;
    let directory = std::path::absolute(&wishes.directory)
        .map_err(|error| file_fault("find", &wishes.directory, &error))?;
    for text in &texts {
        let path = directory.join(&text.name);
        if path.exists() {
            return Err(wrong(format!("{} is there already", path.display())).remedied_by(
                "move it away, or let --dir name another directory: what is there is not written over",
            ));
        }
    }
    for text in &texts {
        let path = directory.join(&text.name);
        write(text, &path).map_err(|error| file_fault("write", &path, &error))?;
    }
    let file = |name: String| wishes.directory.join(name).display().to_string();
    let mut next = Vec::new();
    for (side, address) in [(&wishes.from, &from), (&wishes.to, &to)] {
        let (sql, url) = (file(format!("{}.sql", side.region)), crate::config::database_url(address));
        next.push(format!("psql '{url}' -v ON_ERROR_STOP=1 -f {sql}"));
    }
    if seen.restart {
        next.push(format!("restart the server of {}: wal_level has changed", wishes.from.region));
    }
    for command in ["check", "run"] {
        let line =
            |side: &Side| format!("landfall {command} --config {}", file(format!("{}.toml", side.region)));
        next.extend([line(&wishes.from), line(&wishes.to)]);
    }
    Ok(Outcome {
        seen: seen.said,
        obstacles: seen.obstacles,
        files: texts.into_iter().map(|text| file(text.name)).collect(),
        next,
    })
}

fn address(side: &Side) -> Result<Address> {
    database_address(&side.url)
        .map_err(|problems| wrong(format!("the url of {}: {}", side.region, problems.join("; "))))
}

fn wrong(message: String) -> Fault {
    Fault::new(Code::ConfigInvalid, message)
        .remedied_by("correct the command line or the answer; nothing was written")
}

fn file_fault(doing: &str, path: &std::path::Path, error: &io::Error) -> Fault {
    wrong(format!("{doing} {}: {error}", path.display()))
}

/// Never over what is there; what is secret for its owner only.
fn write(text: &Text, path: &std::path::Path) -> io::Result<()> {
    use io::Write as _;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, if text.secret { 0o600 } else { 0o644 });
    options.open(path)?.write_all(text.text.as_bytes())
}
