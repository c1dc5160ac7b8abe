//! TCP ports of a host that something listens on, and one on which nothing does.

use std::collections::BTreeSet;

use crate::error::{Error, Result};
use crate::host::{Command, Host};

/// Ports from which one is taken: above the well-known, below the range from which Linux takes the local
/// ends of outgoing connections (ip_local_port_range, 32768 and up).
const RANGE: std::ops::Range<u16> = 20000..32000;

/// Returns the TCP ports that something listens on, at any address.
pub(crate) async fn listening(host: &dyn Host) -> Result<BTreeSet<u16>> {
    // A kernel without IPv6 has no tcp6.
    let read = Command::new("cat").args(["/proc/net/tcp", "/proc/net/tcp6"]);
    Ok(parse(&host.run(&read).await?.text()))
}

/// Returns a port of `host` that nothing listens on.
pub(crate) async fn free(host: &dyn Host) -> Result<u16> {
    let taken = listening(host).await?;
    // Two labs that look at the same time are not to find the same port.
    let start = u16::from_le_bytes([
        uuid::Uuid::new_v4().as_bytes()[0],
        uuid::Uuid::new_v4().as_bytes()[0],
    ]);
    let size = RANGE.end - RANGE.start;
    (0..size)
        .map(|step| RANGE.start + (start % size + step) % size)
        .find(|port| !taken.contains(port))
        .ok_or_else(|| Error::failed("no free TCP port is left").on_host(host.name()))
}

/// Reads /proc/net/tcp and tcp6: of each line the local port, where the state is 0A, LISTEN.
fn parse(text: &str) -> BTreeSet<u16> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (_, port) = words.nth(1)?.rsplit_once(':')?;
            (words.nth(1)? == "0A").then(|| u16::from_str_radix(port, 16).ok())?
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Local;

    #[tokio::test]
    async fn a_port_that_something_listens_on_is_seen_and_not_taken() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(listening(&Local::new()).await.unwrap().contains(&port));
        let free = free(&Local::new()).await.unwrap();
        assert!(RANGE.contains(&free) && free != port);
    }

    #[test]
    fn only_listening_sockets_count_of_both_families() {
        let text = "  sl  local_address rem_address   st tx_queue\n   \
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000\n   \
            1: 0100007F:1F91 0100007F:1F90 01 00000000:00000000\n   \
            0: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 0A 0\n";
        assert_eq!(parse(text), BTreeSet::from([8080, 22]));
    }
}
