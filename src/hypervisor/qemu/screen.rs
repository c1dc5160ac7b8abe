//! What QEMU tells about a running guest: its screen and its forwarded ports.

use camino::Utf8Path;
use serde_json::json;

use super::folder::Folder;
use super::{scripts, vm};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::hypervisor::GuestSpec;

/// The file in `run/` into which QEMU writes the screen.
pub(super) const SHOT: &str = "screen.png";

/// Writes a PNG of the guest's screen to `to`.
pub(super) async fn screenshot(host: &dyn Host, spec: &GuestSpec, to: &Utf8Path) -> Result<()> {
    let mut qmp = vm::running(host, spec).await?.qmp(host, &spec.directory).await?;
    qmp.execute("screendump", json!({ "filename": SHOT, "format": "png" })).await.map_err(
        |error| {
            error.on(host.name()).hint("QEMU writes PNG from 7.1 on, if it was built with libpng")
        },
    )?;
    host.check(&scripts::take(&Folder(&spec.directory).run().join(SHOT), to)).await?;
    Ok(())
}

/// Returns the port of 127.0.0.1 on which `guest_port` of the running guest is reached.
pub(super) async fn forwarded(host: &dyn Host, spec: &GuestSpec, guest_port: u16) -> Result<u16> {
    let mut qmp = vm::running(host, spec).await?.qmp(host, &spec.directory).await?;
    let table = qmp.human("info usernet").await.map_err(|error| error.on(host.name()))?;
    host_port(&table, guest_port).ok_or_else(|| {
        Error::failed(format!("port {guest_port} of {} is not forwarded", spec.vm))
            .on(host.name())
            .tail(table.as_bytes())
    })
}

/// Returns the host's port in the line of `info usernet` that forwards to `guest_port`:
/// `TCP[HOST_FORWARD]  13       127.0.0.1 34649       10.0.7.15    22     0     0`.
fn host_port(table: &str, guest_port: u16) -> Option<u16> {
    table.lines().find_map(|line| {
        let [kind, _fd, _from, host, _to, guest, ..] = *line.split_whitespace().collect::<Vec<_>>()
        else {
            return None;
        };
        let forwards = kind == "TCP[HOST_FORWARD]" && guest.parse() == Ok(guest_port);
        forwards.then(|| host.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `info usernet` of QEMU 10.0.2 with two forwards, one of them in use, and a connection outwards.
    const TABLE: &str = "Hub -1 (nat):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n  TCP[ESTABLISHED]   14       10.0.7.15 40022       127.0.0.1    22     0     0\r\n  TCP[ESTABLISHED]   15       127.0.0.1 34649       10.0.7.15    22     0     0\r\n  TCP[HOST_FORWARD]  13       127.0.0.1 34649       10.0.7.15    22     0     0\r\n  TCP[HOST_FORWARD]  12       127.0.0.1 43009       10.0.7.15    80     0     0\r\n";

    #[test]
    fn a_forward_is_found_by_the_guests_port() {
        assert_eq!(host_port(TABLE, 22), Some(34649));
        assert_eq!(host_port(TABLE, 80), Some(43009));
        assert_eq!(host_port(TABLE, 443), None);
        assert_eq!(host_port("", 22), None);
    }
}
