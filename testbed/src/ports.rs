//! Free ports on loopback.
//!
//! A server is stopped and started again on the same port in most fault tests,
//! so a port must stay free in between. The kernel hands out outgoing ports
//! from 32768 up; ours are drawn at random from below, where nobody takes them
//! by accident. Within one process a port is given out once. Servers speak TCP
//! only, so a process holds the UDP port of the same number for as long as it
//! lives: another one that runs at the same moment draws a different number,
//! also while our server is stopped.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Mutex;

use anyhow::{Result, bail};

/// Below the range of outgoing ports, above what services are assigned.
const RANGE: std::ops::Range<u16> = 12_000..32_000;

/// The ports given out, each with what keeps other processes from drawing it.
static GIVEN: Mutex<Option<HashMap<u16, UdpSocket>>> = Mutex::new(None);

/// A port on 127.0.0.1 on which nobody listens and which neither this process
/// nor another that runs now has given out before.
pub fn free() -> Result<u16> {
    let mut given = GIVEN.lock().unwrap_or_else(|poison| poison.into_inner());
    let given = given.get_or_insert_default();
    for _ in 0..1000 {
        let port = rand::random_range(RANGE);
        if given.contains_key(&port) {
            continue;
        }
        let Ok(held) = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)) else { continue };
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            given.insert(port, held);
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
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_port_is_given_out_once() {
        let ports: HashSet<u16> = (0..50).map(|_| free().unwrap()).collect();
        assert_eq!(ports.len(), 50);
    }
}
