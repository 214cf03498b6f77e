//! Free ports on loopback.
//!
//! A server is stopped and started again on the same port in most fault tests,
//! so a port must stay free in between. The kernel hands out outgoing ports
//! from 32768 up; ours are drawn at random from below, where nobody takes them
//! by accident. Within one process a port is given out once; between two
//! processes that run at the same moment the draw makes a clash unlikely, not
//! impossible: the server then fails to start, by name.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Mutex;

use anyhow::{Result, bail};

/// Below the range of outgoing ports, above what services are assigned.
const RANGE: std::ops::Range<u16> = 12_000..32_000;

static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// A port on 127.0.0.1 on which nobody listens and which this process has not
/// given out before.
pub fn free() -> Result<u16> {
    let mut given = GIVEN.lock().unwrap_or_else(|poison| poison.into_inner());
    let given = given.get_or_insert_default();
    for _ in 0..1000 {
        let port = rand::random_range(RANGE);
        if !given.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            given.insert(port);
            return Ok(port);
        }
    }
    bail!("no free port between {} and {}", RANGE.start, RANGE.end)
}

/// The loopback address of a port.
pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_out_once() {
        let ports: HashSet<u16> = (0..50).map(|_| free().unwrap()).collect();
        assert_eq!(ports.len(), 50);
    }
}
