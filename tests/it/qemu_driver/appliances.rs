//! Guests with a real kernel: the appliance, reached over SSH through the driver's forward.

use std::sync::Arc;

use camino::Utf8Path;
use nestlab::event::EventSink;
use nestlab::host::ssh::{HostKeyPolicy, Ssh, SshKey, SshTarget, Via};
use nestlab::host::{Command, Host, Local};
use nestlab::hypervisor::spec::mac;
use nestlab::hypervisor::{Hypervisor, Media};
use nestlab::image::build::seed::{self, Seed};
use nestlab::image::build::{self, BuildOptions};
use nestlab::image::{ImageFormat, Manifest, Store};
use nestlab::recipe::{Constraint, Mebibytes};
use ssh_key::rand_core::OsRng;
use ssh_key::{Algorithm, LineEnding, PrivateKey};
use tokio_util::sync::CancellationToken;

use super::bench::{Bench, GRACE, until};

/// An appliance in a VM, and its keys.
struct Appliance {
    bench: Bench,
    login: Arc<str>,
    host_key: String,
}

impl Appliance {
    /// Returns an appliance called `name` in these networks, not started yet. In each it has an address of
    /// which the last octet is given, and knows `two` by name.
    async fn new(name: &str, networks: &[(&str, u8)]) -> Self {
        // The one that all tests share.
        let root = Utf8Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache/images");
        let store = Store::open(&root).expect("opens");
        let manifest = Manifest::shipped("appliance").expect("it is shipped");
        let options = BuildOptions { format: Some(ImageFormat::Iso), ..BuildOptions::default() };
        let (events, cancel) = (EventSink::silent(), CancellationToken::new());
        let image = build::build(&manifest, &store, &options, &events, &cancel);
        let iso = image.await.expect("it builds").path();
        let mut bench = Bench::made(name, "vm", |_| Media::Iso(iso)).await;
        let key = || PrivateKey::random(&mut OsRng, Algorithm::Ed25519).expect("a key");
        let (login, host) = (key(), key());
        let volume = bench.spec.directory.join("seed.img");
        let at = |last| std::net::Ipv4Addr::new(10, 9, 9, last);
        let cards = networks.iter().map(|(network, last)| seed::Card {
            network: (*network).to_owned(),
            mac: mac(bench.spec.uuid(), network),
            address: at(*last),
        });
        let two = seed::Neighbour { name: "two".parse().expect("a name"), address: at(2) };
        let seed = Seed {
            hostname: name.parse().expect("a name"),
            authorized_keys: vec![login.public_key().clone()],
            host_key: Some(host.clone()),
            network: seed::SeedNetwork { cards: cards.collect(), neighbours: vec![two] },
        };
        seed::write(&volume, &seed).expect("writes the seed");
        bench.spec.seed = Some(volume);
        bench.spec.memory = Constraint::Exactly(Mebibytes::new(256).expect("some"));
        bench.spec.nested = Some(true);
        bench.spec.networks = networks.iter().map(|(network, _)| (*network).to_owned()).collect();
        Appliance {
            bench,
            login: login.to_openssh(LineEnding::LF).expect("encodes").as_str().into(),
            host_key: host.public_key().to_openssh().expect("encodes"),
        }
    }

    /// Starts it and returns it as a host once its SSH server answers.
    async fn up(&self) -> Ssh {
        self.bench.start().await;
        let address = self
            .bench
            .qemu
            .endpoint(self.bench.host(), &self.bench.spec, 22)
            .await
            .expect("is forwarded");
        let ssh = Ssh::new(SshTarget {
            name: self.bench.spec.vm.clone(),
            user: "root".to_owned(),
            key: SshKey::Memory(self.login.clone()),
            host_key: HostKeyPolicy::Pinned(vec![self.host_key.clone()]),
            via: Via::Through(Arc::new(Local::new()), address),
            patience: self.bench.probe.patience,
        });
        until("its SSH server answers", async || ssh.probe().await.is_ok()).await;
        ssh
    }
}

/// Runs `argv` in `host` and returns what it printed.
async fn read(host: &dyn Host, argv: &[&str]) -> String {
    let output = host.check(&Command::from_argv(argv.iter().copied())).await;
    output.expect("succeeds").text().trim().to_owned()
}

#[tokio::test]
async fn guests_of_one_network_reach_each_other_and_no_other_network() {
    let unique = std::process::id();
    let (lan, dmz) = (format!("nestlab-lan-{unique}"), format!("nestlab-dmz-{unique}"));
    let one = Appliance::new("one", &[(&lan, 1)]).await;
    let two = Appliance::new("two", &[(&lan, 2)]).await;
    let other = Appliance::new("other", &[(&dmz, 3)]).await;
    let hosts: [&dyn Host; 3] = [&one.up().await, &two.up().await, &other.up().await];
    for (host, address) in hosts.iter().zip(["10.9.9.1/24", "10.9.9.2/24", "10.9.9.3/24"]) {
        let cards = read(*host, &["ip", "addr", "show", "eth1"]).await;
        assert!(cards.contains(address), "{address} is not in {cards}");
    }
    read(hosts[0], &["ping", "-c", "2", "-W", "30", "two"]).await;
    read(hosts[1], &["ping", "-c", "2", "-W", "30", "10.9.9.1"]).await;
    let lost = Command::from_argv(["ping", "-c", "1", "-W", "3", "10.9.9.3"]);
    assert!(!hosts[0].run(&lost).await.expect("runs").exit.success(), "the networks are one");
    assert!(read(hosts[0], &["ip", "addr", "show", "eth0"]).await.contains("10.0.7.15/24"));
    one.bench.stop(GRACE).await;
}

#[tokio::test]
async fn a_guest_that_is_to_nest_has_svm_and_a_device_for_kvm() {
    let appliance = Appliance::new("nest", &[]).await;
    let host = appliance.up().await;
    let host: &dyn Host = &host;
    let flags = read(host, &["grep", "-m1", "^flags", "/proc/cpuinfo"]).await;
    assert!(flags.split(' ').any(|flag| flag == "svm" || flag == "vmx"), "{flags}");
    read(host, &["modprobe", if flags.contains(" svm ") { "kvm_amd" } else { "kvm_intel" }]).await;
    read(host, &["test", "-c", "/dev/kvm"]).await;
    appliance.bench.stop(GRACE).await;
    let said = std::fs::read_to_string(appliance.bench.qemu.serial_log(&appliance.bench.spec))
        .expect("is written");
    assert!(said.contains("nestlab: ready nest"), "{said}");
}
