//! `nestlab doctor` on this machine, with the real binary, and the same checks from inside a small real
//! Debian.

use std::io::{BufRead as _, BufReader};
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

/// Returns whether a boot sector runs on KVM to its end, which ends QEMU with exit code 33. On a KVM that only opens,
/// QEMU ends in another way, or says what is wrong and stays.
fn kvm_really_works() -> bool {
    let folder = home();
    // mov dx,0xf4; mov al,0x10; out dx,al; hlt; and the mark of a boot sector
    let mut sector = vec![0xba, 0xf4, 0x00, 0xb0, 0x10, 0xee, 0xf4];
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    // SeaBIOS boots none that is smaller than a track.
    sector.resize(1 << 20, 0);
    let disk = folder.path().join("disk");
    fs_err::write(&disk, sector).expect("writes");
    let mut qemu = std::process::Command::new("qemu-system-x86_64")
        .args([
            "-accel",
            "kvm",
            "-cpu",
            "host",
            "-machine",
            "pc",
            "-m",
            "16",
            "-display",
            "none",
            "-nodefaults",
        ])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-no-reboot", "-drive"])
        .arg(format!("file={},format=raw", disk.display()))
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("QEMU is there");
    let said = BufReader::new(qemu.stderr.take().expect("is piped"));
    let gave_up = said.lines().any(|line| line.expect("UTF-8").contains("KVM internal error"));
    if gave_up {
        qemu.kill().expect("QEMU ends");
    }
    qemu.wait().expect("QEMU ends").code() == Some(33)
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

/// Returns a folder that has every program of this machine but QEMU.
fn programs_without_qemu(home: &Path) -> String {
    let folder = home.join("bin");
    fs_err::create_dir(&folder).expect("creates");
    for program in ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .flat_map(|folder| fs_err::read_dir(folder).expect("is there"))
        .map(|entry| entry.expect("an entry").path())
    {
        let name = program.file_name().expect("a name");
        if !name.to_string_lossy().starts_with("qemu-system") {
            // The same program may be in two of the folders.
            let _ = std::os::unix::fs::symlink(&program, folder.join(name));
        }
    }
    folder.into_os_string().into_string().expect("UTF-8")
}

#[test]
fn preparing_asks_and_without_anybody_to_ask_changes_nothing() {
    let home = home();
    let recipe = recipe(home.path(), "image = \"appliance\"\nmemory = \"512MiB\"\ncpus = 1\n");
    let programs = programs_without_qemu(home.path());
    let output = Command::cargo_bin("nestlab")
        .expect("the binary is built")
        .current_dir(home.path())
        .env_clear()
        .env("HOME", home.path())
        .env("PATH", programs)
        .args(["doctor", &recipe, "--prepare-host"])
        .output()
        .expect("nestlab runs");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("install qemu-system-x86") && said.contains("--yes"), "{said}");
    assert!(!home.path().join(".local").exists(), "nothing was begun");
    let help = nestlab(home.path(), &["doctor", "--help"]);
    let told = text(&help.stdout);
    assert!(told.contains("Exit codes") && told.contains("--prepare-host"), "{told}");
}
