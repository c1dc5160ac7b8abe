//! `nestlab doctor` on this machine, with the real binary, and the same checks from inside a small real
//! Debian.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Output, Stdio};

use crate::support::debian::{Deb, Debian, index};
use assert_cmd::Command;
use nestlab::hypervisor::Drivers;
use nestlab::preflight::{self, Finding, Needs, Verdict};
use serde_json::Value as Json;

/// Runs the binary with a home of its own.
fn nestlab(home: &Path, arguments: &[&str]) -> Output {
    Command::cargo_bin("nestlab")
        .expect("the binary is built")
        .current_dir(home)
        .env_clear()
        .env("HOME", home)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .args(arguments)
        .output()
        .expect("nestlab runs")
}

fn home() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn checks(output: &Output) -> Vec<Json> {
    let answer: Json = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(answer["schema"], 1);
    answer["checks"].as_array().expect("a list").clone()
}

fn check<'a>(checks: &'a [Json], id: &str) -> &'a Json {
    checks.iter().find(|check| check["id"] == id).unwrap_or_else(|| panic!("{id}: {checks:?}"))
}

/// Writes a recipe of one guest and returns its path.
fn recipe(home: &Path, guest: &str) -> String {
    let path = home.join("lab.toml");
    let text = format!(
        "schema = 1\nname = \"lab\"\n[host]\nhypervisor = \"qemu\"\n[[guest]]\nname = \"l1\"\n{guest}"
    );
    fs_err::write(&path, text).expect("writes");
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn the_answer_is_one_json_object_of_checks_with_all_fields() {
    let home = home();
    let output = nestlab(home.path(), &["doctor", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let checks = checks(&output);
    assert!(checks.len() >= 25, "{checks:?}");
    for check in &checks {
        assert!(check["id"].is_string() && check["found"].is_string(), "{check}");
        assert_eq!(check["level"], 0, "{check}");
        assert!(check["source"].is_string(), "{check}");
        let verdict = check["verdict"].as_str().expect("a verdict");
        assert!(["ok", "warn", "fail", "not-applicable"].contains(&verdict), "{check}");
        let needs_remedy = ["warn", "fail"].contains(&verdict);
        assert!(!needs_remedy || check["remedy"].is_string(), "no remedy: {check}");
    }
    assert_eq!(check(&checks, "architecture")["verdict"], "ok");
}

#[test]
fn people_get_a_line_for_each_check_and_a_summary() {
    let home = home();
    let output = nestlab(home.path(), &["doctor"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let told = text(&output.stdout);
    assert!(told.starts_with("  ok    architecture"), "{told}");
    assert!(told.lines().last().expect("a summary").contains(" ok, "), "{told}");
    assert!(!told.contains('\x1b'), "no colors in a pipe");
}

/// Starts QEMU with a boot sector that ends it with exit code 33.
fn boot_sector(folder: &Path, accel: &str) -> std::process::Child {
    // mov dx,0xf4; mov al,0x10; out dx,al; hlt; and the mark of a boot sector
    let mut sector = vec![0xba, 0xf4, 0x00, 0xb0, 0x10, 0xee, 0xf4];
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    // SeaBIOS boots none that is smaller than a track.
    sector.resize(1 << 20, 0);
    let disk = folder.join(accel);
    fs_err::write(&disk, sector).expect("writes");
    std::process::Command::new("qemu-system-x86_64")
        .args(["-accel", accel, "-machine", "pc", "-m", "16", "-display", "none", "-nodefaults"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-no-reboot", "-drive"])
        .arg(format!("file={},format=raw", disk.display()))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("QEMU is there")
}

/// Returns whether a guest on KVM ends before three emulated ones that start after it: hardware is faster
/// where it works at all.
fn kvm_really_works() -> bool {
    let folder = home();
    let mut kvm = boot_sector(folder.path(), "kvm");
    for _ in 0..3 {
        let emulated = boot_sector(folder.path(), "tcg").wait().expect("QEMU ends");
        assert_eq!(emulated.code(), Some(33), "the boot sector is right");
    }
    let ended = kvm.try_wait().expect("QEMU can be asked");
    kvm.kill().expect("QEMU ends");
    kvm.wait().expect("QEMU ended");
    ended.is_some_and(|status| status.code() == Some(33))
}

#[test]
fn a_kvm_that_opens_is_believed_only_if_a_guest_runs_on_it() {
    let home = home();
    let checks = checks(&nestlab(home.path(), &["doctor", "--json"]));
    let found = check(&checks, "kvm-runs-guests");
    let expected = match (Path::new("/dev/kvm").exists(), kvm_really_works()) {
        (false, _) => "not-applicable",
        (true, true) => "ok",
        (true, false) => "warn",
    };
    assert_eq!(found["verdict"], expected, "{found}");
}

#[test]
fn a_recipe_that_this_machine_is_too_small_for_is_exit_code_3() {
    let home = home();
    let recipe = recipe(home.path(), "image = \"appliance\"\nmemory = \"900TiB\"\ncpus = 1\n");
    let output = nestlab(home.path(), &["doctor", &recipe, "--json"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stdout));
    let checks = checks(&output);
    assert_eq!(check(&checks, "memory")["verdict"], "fail");
    assert_eq!(check(&checks, "disk")["verdict"], "ok", "{}", check(&checks, "disk"));
}

#[test]
fn a_recipe_that_fits_is_exit_code_0() {
    let home = home();
    let recipe = recipe(home.path(), "image = \"appliance\"\nmemory = \"512MiB\"\ncpus = 1\n");
    let output = nestlab(home.path(), &["doctor", &recipe]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
    assert!(text(&output.stdout).contains("l1 gets 1"), "{}", text(&output.stdout));
}

#[test]
fn image_hosts_are_tried_only_when_asked() {
    let home = home();
    let listening = TcpListener::bind("127.0.0.1:0").expect("binds");
    let closed = TcpListener::bind("127.0.0.1:0").expect("binds");
    let (open, shut) = (listening.local_addr(), closed.local_addr());
    let (open, shut) = (open.expect("bound").port(), shut.expect("bound").port());
    drop(closed);
    let manifest = format!(
        "schema = 1\nname = \"x\"\nversion = \"1\"\narch = \"x86_64\"\nformat = \"qcow2\"\nallow-http = true\n\
         urls = [\"http://127.0.0.1:{open}/x.qcow2\", \"http://127.0.0.1:{shut}/x.qcow2\"]\nsha256 = \"{}\"\n",
        "0".repeat(64)
    );
    fs_err::write(home.path().join("x.toml"), manifest).expect("writes");
    let recipe = recipe(home.path(), "image = \"./x.toml\"\nmemory = \"512MiB\"\ncpus = 1\n");
    let output = nestlab(home.path(), &["doctor", &recipe, "--json", "--network"]);
    let checks = checks(&output);
    let verdict = |port: u16| {
        let source = format!("a connection to 127.0.0.1:{port}");
        checks.iter().find(|check| check["source"] == source.as_str()).map(|c| c["verdict"].clone())
    };
    assert_eq!(verdict(open), Some("ok".into()), "{}", text(&output.stderr));
    assert_eq!(verdict(shut), Some("warn".into()));
    let quiet = nestlab(home.path(), &["doctor", &recipe, "--json"]);
    assert!(!text(&quiet.stdout).contains("reachable"));
}

#[test]
fn a_recording_holds_files_to_read_and_overwrites_nothing() {
    let home = home();
    let output = nestlab(home.path(), &["doctor", "--record", "here"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "here\n");
    let fixture = fs_err::read_to_string(home.path().join("here/fixture.toml")).expect("is there");
    assert!(fixture.contains("\"uname -m\" = \"x86_64\""), "{fixture}");
    assert!(home.path().join("here/root/proc/cpuinfo").exists());
    let again = nestlab(home.path(), &["doctor", "--record", "here"]);
    assert_eq!(again.status.code(), Some(1));
}

fn finding<'a>(findings: &'a [Finding], id: &str) -> &'a Finding {
    findings.iter().find(|finding| finding.id == id).expect("every check answers")
}

#[tokio::test]
async fn the_same_checks_judge_a_guest_from_inside() {
    let debian = Debian::start("600M");
    let needs = Needs { level: 1, ..Needs::nothing("/srv") };
    let look = async || preflight::run(&debian, &needs, &Drivers::new()).await.expect("answers");

    let whole = look().await;
    assert!(whole.iter().all(|finding| finding.level == 1));
    assert_eq!(finding(&whole, "packages").verdict, Verdict::Ok);
    assert_eq!(finding(&whole, "root").verdict, Verdict::Ok);
    assert_eq!(finding(&whole, "clock").found, "right");
    assert!(finding(&whole, "architecture").found.contains("Debian"));

    // A package whose script fails stays half configured, and the checks tell it by name.
    let scripts = [("postinst", "#!/bin/sh\nexit 1\n")];
    Deb { name: "nl-broken", scripts: &scripts, ..Deb::default() }
        .build(&debian.srv().join("repo"));
    index(&debian.srv().join("repo"));
    debian.sh("dpkg -i /srv/repo/nl-broken_1_all.deb || true", &[]).await;
    let broken = look().await;
    let packages = finding(&broken, "packages");
    assert_eq!(packages.verdict, Verdict::Warn);
    assert!(packages.found.contains("nl-broken"), "{packages:?}");
    assert!(packages.commands.iter().any(|command| command.contains("dpkg --configure -a")));
}

#[test]
fn preparing_asks_and_without_anybody_to_ask_changes_nothing() {
    let home = home();
    let output = nestlab(home.path(), &["doctor", "--prepare-host"]);
    let said = text(&output.stderr);
    // What there is to prepare depends on this machine; nobody agreed to any of it.
    match output.status.code() {
        Some(0) => assert!(said.contains("Nothing to prepare"), "{said}"),
        Some(2) => assert!(said.contains("$ ") && said.contains("--yes"), "{said}"),
        code => panic!("{code:?}: {said}"),
    }
    let help = nestlab(home.path(), &["doctor", "--help"]);
    let told = text(&help.stdout);
    assert!(told.contains("Exit codes") && told.contains("--prepare-host"), "{told}");
}
