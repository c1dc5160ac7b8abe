//! Who is believed: guests by the host keys that were injected, L0 by the user's `known_hosts`, an image by its
//! digest where it lands.

use std::os::unix::fs::PermissionsExt as _;

use crate::support::bench::Bench;
use crate::support::sshd::{Sshd, user};

#[test]
fn a_guest_with_another_host_key_than_the_injected_one_is_not_entered() {
    let bench = Bench::new();
    let recipe = bench.recipe("[[guest]]\nname = \"l1\"\nimage = \"./host.toml\"\n");
    bench.ok(&["up", &recipe]);
    bench.ok(&[
        "exec",
        "l1",
        "--",
        "sh",
        "-c",
        "cd /etc/ssh && rm ssh_host_* && ssh-keygen -q -t ed25519 -N '' -f ssh_host_ed25519_key && \
         kill \"$(pgrep -o -x sshd)\" && /usr/sbin/sshd -f /usr/local/bin/sshd_config",
    ]);
    // What was seen before must not be needed to tell: the key is the lab's own.
    fs_err::remove_file(bench.lab("bench").join("known_hosts")).expect("it was there");
    let (code, _, told) = bench.ends(&["exec", "l1", "--", "true"]);
    assert_eq!(code, Some(4), "{told}");
    assert!(told.contains("host key"), "{told}");
    bench.destroy();
}

#[test]
fn an_l0_over_ssh_is_entered_only_with_the_host_key_that_the_user_knows() {
    let sshd = Sshd::start(&[]);
    let bench = Bench::new();
    let ssh = bench.path("home/.ssh");
    fs_err::create_dir(&ssh).expect("a folder");
    fs_err::write(ssh.join("id_ed25519"), sshd.read("user")).expect("written");
    fs_err::set_permissions(ssh.join("id_ed25519"), std::fs::Permissions::from_mode(0o600))
        .expect("set");
    let recipe = bench.whole_recipe(
        "lab.toml",
        &format!(
            "schema = 1\nname = \"bench\"\n[host]\nhypervisor = \"qemu\"\n\
             ssh = \"{}@127.0.0.1:{}\"\n[[guest]]\nname = \"l1\"\nimage = \"./boot.toml\"\n",
            user(),
            sshd.port()
        ),
    );
    let known = ssh.join("known_hosts");
    let refused = |words: &str| {
        let (code, _, told) = bench.ends(&["plan", &recipe]);
        assert_eq!(code, Some(4), "{words}: {told}");
        assert!(told.contains(words), "{words}: {told}");
    };
    refused("does not know");
    assert!(!known.exists(), "an unknown key was written down");
    fs_err::write(&known, entry(&sshd)).expect("written");
    assert!(bench.plan(&recipe).iter().any(|(step, _)| step == "l1/start"));
    let other = Sshd::start(&[]);
    let strangers = format!("[127.0.0.1]:{} {}", sshd.port(), other.read("host.pub"));
    fs_err::write(&known, &strangers).expect("written");
    refused("not the one it should be");
    assert_eq!(fs_err::read_to_string(&known).expect("is there"), strangers);
}

fn entry(sshd: &Sshd) -> String {
    format!("[127.0.0.1]:{} {}", sshd.port(), sshd.read("host.pub"))
}

#[test]
fn an_image_that_was_changed_where_it_landed_is_put_there_again() {
    let bench = Bench::new();
    let recipe = bench.recipe("[[guest]]\nname = \"l1\"\nimage = \"./boot.toml\"\n");
    // A disk that nobody has defined a VM for yet.
    let trace = bench.path("trace");
    bench.command(&["up", &recipe]).env("NESTLAB_FAULT_TRACE", &trace).output().expect("runs");
    bench.ok(&["destroy", "bench", "--yes"]);
    let points = fs_err::read_to_string(&trace).expect("a trace");
    let last = points.lines().rfind(|line| line.contains("\tl1/place\t")).expect("a point");
    let at = last.split('\t').next().expect("a number");
    fs_err::remove_dir_all(bench.cache()).expect("the store was there");
    let killed =
        bench.command(&["up", &recipe]).env("NESTLAB_FAULT", format!("kill@{at}")).output();
    assert!(!killed.expect("runs").status.success());

    let disk = bench.lab("bench").join("disks/l1/disk.qcow2");
    let whole = fs_err::read(&disk).expect("it was put there");
    let mut spoilt = whole.clone();
    *spoilt.last_mut().expect("bytes") ^= 1;
    fs_err::write(&disk, spoilt).expect("written");
    let why = bench.json(&["plan", &recipe])["steps"][1]["why"].clone();
    assert!(why.as_str().is_some_and(|why| why.contains("SHA-256")), "{why}");
    bench.ok(&["up", &recipe]);
    bench.ok(&["down", "bench"]);
    assert_eq!(fs_err::read(&disk).expect("is there").last(), whole.last());
    bench.destroy();
}

#[test]
fn an_image_that_changes_on_its_way_to_the_host_is_not_used() {
    let bench = Bench::new();
    let tampering = "#!/bin/sh\n# Spoils a disk before its digest is taken.\n\
                     case \"$2\" in */disks/*) printf x >>\"$2\" ;; esac\nexec /usr/bin/sha256sum \"$@\"\n";
    let program = bench.path("machine/sha256sum");
    fs_err::write(&program, tampering).expect("written");
    fs_err::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("set");
    let recipe = bench.recipe("[[guest]]\nname = \"l1\"\nimage = \"./boot.toml\"\n");
    let (code, _, told) = bench.ends(&["up", &recipe]);
    assert_eq!(code, Some(4), "{told}");
    assert!(told.contains("was verified"), "{told}");
    assert!(!bench.outcomes().contains_key("l1/define"), "it went on: {:?}", bench.outcomes());
    bench.destroy();
}
