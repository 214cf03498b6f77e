//! Gives a copied cluster a system identifier of its own.
//!
//! The identifier stands in two places: first in `global/pg_control`, under a
//! checksum, and in the long header that opens every WAL segment. Postgres
//! refuses to start when they differ. Nothing else in a cluster that was never
//! started mentions it.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::crc::crc32c;

/// In a WAL segment: magic, info, timeline, page address and remaining length
/// (20 bytes, padded to 24) come before the identifier.
const IDENTIFIER_IN_SEGMENT: usize = 24;

/// Where a page header is long, this bit of its second 16-bit word is set.
const LONG_HEADER: u16 = 0x0002;

/// Replaces the identifier by a random one and returns it.
pub(super) fn renew(data: &Path) -> Result<u64> {
    let path = data.join("global/pg_control");
    let mut control = std::fs::read(&path).context("read pg_control")?;
    let checksum = checksum_position(&control)?;
    // Positive as a signed number, as those made by initdb are.
    let identifier = rand::random::<u64>() >> 1;
    let old = word(&control, 0)?;
    control[..8].copy_from_slice(&identifier.to_le_bytes());
    let sum = crc32c(&control[..checksum]);
    control[checksum..checksum + 4].copy_from_slice(&sum.to_le_bytes());
    std::fs::write(&path, control).context("write pg_control")?;

    for entry in std::fs::read_dir(data.join("pg_wal")).context("list the WAL")? {
        let entry = entry?;
        if !entry.file_type()?.is_file() {
            continue;
        }
        renew_segment(&entry.path(), old, identifier)
            .with_context(|| format!("renew {}", entry.path().display()))?;
    }
    Ok(identifier)
}

fn renew_segment(path: &Path, old: u64, identifier: u64) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    let mut head = [0u8; IDENTIFIER_IN_SEGMENT + 8];
    file.read_exact_at(&mut head, 0)?;
    let info = u16::from_le_bytes([head[2], head[3]]);
    ensure!(info & LONG_HEADER != 0, "its first page has no long header");
    ensure!(word(&head, IDENTIFIER_IN_SEGMENT)? == old, "it belongs to another cluster");
    file.write_all_at(&identifier.to_le_bytes(), IDENTIFIER_IN_SEGMENT as u64)?;
    Ok(())
}

fn word(bytes: &[u8], at: usize) -> Result<u64> {
    let word = bytes.get(at..at + 8).context("the file is cut short")?;
    Ok(u64::from_le_bytes(word.try_into()?))
}

/// The checksum is the last field of the control data, whose length differs
/// between versions: it stands where it fits everything before it.
fn checksum_position(control: &[u8]) -> Result<usize> {
    /// Every version from 13 to 18 lies within.
    const CANDIDATES: std::ops::Range<usize> = 200..512;
    for at in CANDIDATES.step_by(4) {
        let Some(stored) = control.get(at..at + 4) else {
            break;
        };
        if crc32c(&control[..at]).to_le_bytes() == stored {
            return Ok(at);
        }
    }
    bail!("pg_control has no checksum where one is expected")
}
