//! What QEMU tells about a running guest: its screen and its forwarded ports.

use camino::Utf8Path;
use serde_json::json;

use super::scripts;
use super::vm::QemuVm;
use crate::error::Result;

/// The file in `run/` into which QEMU writes the screen.
pub(super) const SHOT: &str = "screen.png";

/// Writes a PNG of the guest's screen to `to`.
pub(super) async fn screenshot(vm_site: QemuVm<'_>, to: &Utf8Path) -> Result<()> {
    let (_vm, pid) = vm_site.running().await?;
    let mut qmp = vm_site.qmp(pid).await?;
    qmp.execute("screendump", json!({ "filename": SHOT, "format": "png" })).await.map_err(
        |error| {
            error
                .on_host(vm_site.host.name())
                .hint("QEMU writes PNG from 7.1 on, if it was built with libpng")
        },
    )?;
    vm_site.host.check(&scripts::take(&vm_site.folder().run().join(SHOT), to)).await?;
    Ok(())
}

/// VGA's text mode, mode 3: lines of cells at 0xb8000, each a character's byte and its colors'.
const TEXT: (usize, usize) = (25, 80);

/// Returns the lines of the guest's screen, if that is in VGA's text mode.
pub(super) async fn text(vm_site: QemuVm<'_>) -> Result<String> {
    let (_vm, pid) = vm_site.running().await?;
    let (lines, columns) = TEXT;
    let dump = vm_site.qmp(pid).await?.human(&format!("xp /{}hx 0xb8000", lines * columns)).await;
    Ok(characters(&dump.map_err(|error| error.on_host(vm_site.host.name()))?))
}

/// Returns the characters of the cells in `dump`, lines like `00000000000b8000: 0x0753 0x0765`.
fn characters(dump: &str) -> String {
    let cells = dump.lines().filter_map(|line| line.split_once(": ")).flat_map(|(_, cells)| {
        cells
            .split_whitespace()
            .filter_map(|cell| u16::from_str_radix(cell.strip_prefix("0x")?, 16).ok())
    });
    let characters: Vec<char> = cells
        .map(|cell| match cell.to_le_bytes()[0] {
            byte @ 0x20..0x7f => char::from(byte),
            _ => ' ',
        })
        .collect();
    let lines = characters.chunks(TEXT.1).map(|line| line.iter().collect::<String>());
    lines.map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// Returns the port of 127.0.0.1 on which `guest_port` of the running guest is reached.
pub(super) async fn forwarded(vm_site: QemuVm<'_>, guest_port: u16) -> Result<u16> {
    let (_vm, pid) = vm_site.running().await?;
    let table = vm_site.qmp(pid).await?.human("info usernet").await;
    let table = table.map_err(|error| error.on_host(vm_site.host.name()))?;
    host_port(&table, guest_port).ok_or_else(|| {
        vm_site
            .failure(format_args!("does not forward its port {guest_port}"))
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
    fn the_cells_of_a_text_screen_become_its_lines() {
        let line = |text: &str| {
            let cells =
                format!("{text:80}").bytes().map(|b| format!("0x07{b:02x}")).collect::<Vec<_>>();
            format!("00000000000b8000: {}\r\n", cells.join(" "))
        };
        let dump = [line("SeaBIOS"), line(""), line("No bootable device.")].concat();
        assert_eq!(characters(&dump), "SeaBIOS\n\nNo bootable device.\n");
        assert_eq!(characters("Cannot access memory"), "");
    }

    #[test]
    fn a_forward_is_found_by_the_guests_port() {
        assert_eq!(host_port(TABLE, 22), Some(34649));
        assert_eq!(host_port(TABLE, 80), Some(43009));
        assert_eq!(host_port(TABLE, 443), None);
        assert_eq!(host_port("", 22), None);
    }
}
