//! The ways to a running guest: forwards, serial port, screen, QMP.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use camino::Utf8Path;
use nestlab::Kind;
use nestlab::event::EventSink;
use nestlab::host::{Host, StreamAddress};
use nestlab::hypervisor::{Hypervisor, Power};
use serde_json::Value;

use super::bench::{Bench, GRACE, qmp};

/// Returns the local addresses, as in /proc/net/tcp, on which something listens at `port`.
fn listeners(port: u16) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = std::fs::read_to_string(table).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            let (address, at) = fields[1].rsplit_once(':').expect("address:port");
            if fields[3] == "0A" && at == format!("{port:04X}") {
                found.insert(address.to_owned());
            }
        }
    }
    found
}

#[tokio::test]
async fn forwards_listen_on_the_loopback_address_alone_at_ports_that_never_collide() {
    let (one, two) = (Bench::new("obedient").await, Bench::new("obedient").await);
    one.start().await;
    two.start().await;
    let mut ports = BTreeSet::new();
    for (bench, guest_port) in [(&one, 22), (&one, 80), (&two, 22), (&two, 80)] {
        let port = bench.port(guest_port).await;
        assert!(ports.insert(port), "{port} is used twice");
        assert_eq!(listeners(port), BTreeSet::from(["0100007F".to_owned()]));
        let address = StreamAddress::Tcp("127.0.0.1".to_owned(), port);
        bench.host.open_stream(&address).await.expect("QEMU accepts");
    }
    let error = one.qemu.endpoint(one.host(), &one.spec, 443).await.expect_err("not forwarded");
    assert!(error.message().contains("443"), "{error}");
    one.stop(GRACE).await;
    for port in [22, 80] {
        let error = one.qemu.endpoint(one.host(), &one.spec, port).await.expect_err("is off");
        assert_eq!(error.kind(), Kind::Unreachable);
    }
}

#[tokio::test]
async fn a_serial_log_that_is_too_long_is_cut_to_its_end_and_goes_on() {
    let bench = Bench::new("obedient").await;
    bench.start().await;
    bench.up(1).await;
    let log = bench.qemu.serial_log(&bench.spec);
    let mut flood = std::fs::OpenOptions::new().append(true).open(&log).expect("is there");
    for number in 0..(17 << 20) / 16 {
        writeln!(flood, "flood {number:9}").expect("is written");
    }
    let end = format!("flood {:9}\n", (17 << 20) / 16 - 1);
    bench.inspect().await;
    let cut = std::fs::read_to_string(&log).expect("is text");
    assert!(cut.len() <= 4 << 20 && cut.ends_with(&end), "{} bytes", cut.len());
    assert_eq!(bench.say("abcd").await, ".abc");
    let said = std::fs::read_to_string(&log).expect("is text");
    assert_eq!(said, cut + ".abc", "what comes later stands behind what was kept");
    bench.stop(GRACE).await;
    bench.qemu.destroy(bench.host(), &bench.spec, &EventSink::silent()).await.expect("destroys");
    assert!(!bench.spec.directory.exists());
}

#[tokio::test]
async fn the_serial_port_is_written_from_each_start_on_and_can_be_talked_to() {
    let bench = Bench::new("obedient").await;
    bench.start().await;
    bench.up(1).await;
    assert_eq!(bench.say("abcd").await, ".abc");
    bench.stop(GRACE).await;
    bench.start().await;
    bench.up(1).await;
    let said =
        |name: &str| std::fs::read_to_string(bench.spec.directory.join(name)).expect("is written");
    assert_eq!(
        (said("serial.log").as_str(), said("serial.log.old").as_str()),
        ("up\n", "up\n.abc")
    );
}

#[tokio::test]
async fn the_screen_is_a_png_that_belongs_to_the_user() {
    let bench = Bench::new("obedient").await;
    bench.start().await;
    bench.up(1).await;
    let png = bench.folder.path().join("screen.png");
    let to = Utf8Path::from_path(&png).expect("UTF-8");
    bench.qemu.screenshot(bench.host(), &bench.spec, to).await.expect("shoots");
    let bytes = std::fs::read(&png).expect("is there");
    assert_eq!(bytes[..8], *b"\x89PNG\r\n\x1a\n");
    let meta = std::fs::metadata(&png).expect("is there");
    assert_eq!(meta.uid(), rustix::process::geteuid().as_raw());
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn qmp_understands_the_real_qemu() {
    let bench = Bench::new("obedient").await;
    bench.start().await;
    let mut qmp = qmp(&bench).await;
    let status = qmp.execute("query-status", Value::Null).await.expect("answers");
    assert_eq!(status["status"], "running");
    qmp.execute("stop", Value::Null).await.expect("stops");
    assert!(qmp.take_events().iter().any(|event| event.name == "STOP"));
    let error = qmp.execute("no-such-command", Value::Null).await.expect_err("unknown");
    assert!(error.message().contains("no-such-command"), "{error}");
    drop(qmp);
    assert_eq!(bench.power().await, Power::Paused);
    bench.try_start().await.expect("goes on");
    assert_eq!(bench.power().await, Power::Running);
}
