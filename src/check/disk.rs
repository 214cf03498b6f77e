//! What is free on the disk of a path, where the path is on this machine.

use std::path::Path;

use crate::postgres::Address;

/// A place on a disk, and what is free there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Free {
    /// The path that was looked at.
    pub(super) path: String,
    /// For whoever is not root.
    pub(super) bytes: u64,
}

/// What is free where a server keeps its files; none where the server is on another machine, or does not
/// say where they are.
pub(super) fn of_server(address: &Address, directory: Option<&str>) -> Option<Free> {
    let directory = Path::new(directory?);
    if !is_here(&address.host) {
        return None;
    }
    // The directory itself is closed to others than its owner. Its nearest parent that can be looked at
    // is on the same disk, unless somebody mounted the directory itself.
    directory.ancestors().take(2).find_map(|path| {
        let facts = rustix::fs::statvfs(path).ok()?;
        Some(Free { path: path.display().to_string(), bytes: facts.f_bavail.saturating_mul(facts.f_frsize) })
    })
}

/// Whether a host name is this machine, whatever its network.
pub fn is_here(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_here() {
        for (host, expected) in [
            ("localhost", true),
            ("127.0.0.1", true),
            ("127.1.2.3", true),
            ("::1", true),
            ("[::1]", true),
            ("10.0.0.1", false),
            ("localhost.example.com", false),
            ("0.0.0.0", false),
        ] {
            assert_eq!(is_here(host), expected, "{host}");
        }
    }
}
