//! What a guest of QEMU's user network reaches of its host's loopback, asked by the packets that a guest would send:
//! QEMU without a machine, its user network on one wire with this test.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nestlab::hypervisor::Stop;

use super::bench::Bench;

/// What the driver starts QEMU with.
const LIBRARY: &[u8] = include_bytes!("../../../src/hypervisor/qemu/loopback.so");

const GUEST: [u8; 4] = [10, 0, 7, 15];
const GATEWAY: [u8; 4] = [10, 0, 7, 2];
const CARD: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

/// The wire, and the address of the gateway's card on it.
struct Wire {
    socket: UnixDatagram,
    gateway: [u8; 6],
    qemu: Child,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.qemu.kill().expect("QEMU runs");
        self.qemu.wait().expect("QEMU ends");
    }
}

impl Wire {
    /// Starts QEMU in `folder`, with `library` if there is one.
    fn new(folder: &Path, library: Option<&Path>) -> Self {
        let (mine, qemus) = (folder.join("mine"), folder.join("qemus"));
        let socket = UnixDatagram::bind(&mine).expect("binds");
        let dgram = format!(
            "dgram,id=wire,local.type=unix,local.path={},remote.type=unix,remote.path={}",
            qemus.display(),
            mine.display()
        );
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-machine", "none", "-nodefaults", "-display", "none"])
            .args(["-netdev", "user,id=nat,ipv6=off,net=10.0.7.0/24", "-netdev", &dgram])
            .args(["-netdev", "hubport,id=a,hubid=0,netdev=nat"])
            .args(["-netdev", "hubport,id=b,hubid=0,netdev=wire"])
            .stderr(Stdio::null());
        if let Some(library) = library {
            qemu.env("LD_PRELOAD", library);
        }
        let mut wire =
            Wire { socket, gateway: [0xff; 6], qemu: qemu.spawn().expect("QEMU is there") };
        while wire.socket.connect(&qemus).is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
        wire.send(0x0806, &arp(1, GATEWAY, [0; 6]));
        let answer = wire.receive(|frame| frame[12..14] == [8, 6] && frame[20..22] == [0, 2]);
        wire.gateway.copy_from_slice(&answer[6..12]);
        wire
    }

    fn send(&self, kind: u16, payload: &[u8]) {
        let frame = [&self.gateway, &CARD[..], &kind.to_be_bytes(), payload].concat();
        self.socket.send(&frame).expect("QEMU hears");
    }

    /// Returns the next frame that is `wanted`; who asks for the guest's card is answered.
    fn receive(&self, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let mut buffer = [0; 2048];
        loop {
            let size = self.socket.recv(&mut buffer).expect("QEMU speaks");
            let frame = &buffer[..size];
            if wanted(frame) {
                return frame.to_vec();
            }
            if frame[12..14] == [8, 6] && frame[20..22] == [0, 1] {
                let asks = frame[28..32].try_into().expect("an address");
                self.send(0x0806, &arp(2, asks, self.gateway));
            }
        }
    }

    /// Returns whether a connection of the guest to `address` is taken.
    fn reaches(&self, address: Ipv4Addr, port: u16, from: u16) -> bool {
        self.send(0x0800, &syn(address.octets(), port, from));
        let answer = self.receive(|frame| {
            frame[12..14] == [8, 0] && frame[23] == 6 && frame[36..38] == from.to_be_bytes()
        });
        const SYN: u8 = 2;
        answer[47] & SYN != 0
    }
}

/// Returns an ARP packet: a question (1) for `address`, or an answer (2) to who has it and `card`.
fn arp(operation: u8, address: [u8; 4], card: [u8; 6]) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    [&head[..], &CARD, &GUEST, &card, &address].concat()
}

/// Returns an IP packet that asks for a TCP connection (RFC 791, RFC 9293).
fn syn(address: [u8; 4], port: u16, from: u16) -> Vec<u8> {
    let mut tcp =
        [&from.to_be_bytes()[..], &port.to_be_bytes(), &[0, 0, 0, 1, 0, 0, 0, 0]].concat();
    tcp.extend([0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    let pseudo = [&GUEST[..], &address, &[0, 6, 0, 20], &tcp].concat();
    tcp[16..18].copy_from_slice(&checksum(&pseudo));
    let mut ip = [&[0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0], &GUEST[..], &address].concat();
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    [ip, tcp].concat()
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

#[test]
fn no_packet_of_a_guest_leads_to_its_hosts_loopback() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = listener.local_addr().expect("is bound").port();
    let folder = tempfile::tempdir().expect("a folder");
    let library = folder.path().join("loopback.so");
    fs_err::write(&library, LIBRARY).expect("writes");
    for (name, library) in [("open", None), ("closed", Some(library.as_path()))] {
        let place = folder.path().join(name);
        fs_err::create_dir(&place).expect("creates");
        let wire = Wire::new(&place, library);
        let addresses =
            [GATEWAY.into(), Ipv4Addr::LOCALHOST, Ipv4Addr::BROADCAST, Ipv4Addr::UNSPECIFIED];
        for (address, from) in addresses.into_iter().zip(40_001..) {
            assert_eq!(wire.reaches(address, port, from), library.is_none(), "{name}: {address}");
        }
    }
}

#[tokio::test]
async fn a_vm_is_started_with_what_keeps_it_from_the_loopback_unless_its_recipe_opens_that() {
    let mut bench = Bench::new("obedient").await;
    for reach_host in [false, true] {
        bench.spec.reach_host = reach_host;
        bench.start().await;
        let maps = fs_err::read_to_string(format!("/proc/{}/maps", bench.pid().await));
        assert_eq!(maps.expect("runs").contains("/run/loopback.so"), !reach_host);
        bench.stop(Stop::PowerOff).await;
    }
}
