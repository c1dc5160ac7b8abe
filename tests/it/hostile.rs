//! What a hostile host, guest or program says, through the real binary: it drives no terminal, and it costs
//! a bounded amount of memory, time and disk.

use std::io::{BufRead as _, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use crate::support::bench::Bench;
use crate::support::lab::Nestlab;

/// A VBoxManage that says what a test wants it to.
struct Fake {
    nestlab: Nestlab,
    program: PathBuf,
}

impl Fake {
    /// Answers `--version` as VirtualBox 7.0, and anything else by the shell's `case` arms in `answers`.
    fn new(answers: &str) -> Self {
        let nestlab = Nestlab::new();
        let program = nestlab.state().join("VBoxManage");
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in\n--version) echo 7.0.20r163906 ;;\n{answers}\n\
             getextradata*) echo 'No value set!' ;;\n\
             'list --long vms') ;;\n\
             *) echo \"VBoxManage: error: unexpected: $*\" >&2; exit 1 ;;\nesac\n"
        );
        std::fs::write(&program, script).expect("is written");
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("can be run");
        Fake { nestlab, program }
    }

    /// Where a fake that hangs says which processes it is.
    fn pids(&self) -> PathBuf {
        self.nestlab.state().join("pids")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.nestlab.command(args);
        command.env("NESTLAB_VBOXMANAGE", &self.program);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("nestlab runs")
    }

    /// Writes the recipe of a lab whose one guest is the VM called `vm`.
    fn recipe_of(&self, vm: &str) -> String {
        let path = self.nestlab.state().join("recipe.toml");
        let recipe = format!(
            "schema = 1\nname = \"hostile\"\n[host]\nhypervisor = \"virtualbox\"\n[[guest]]\n\
             name = \"g\"\nvm = \"{vm}\"\nready = \"guest-additions\"\n"
        );
        std::fs::write(&path, recipe).expect("is written");
        path.to_str().expect("UTF-8").to_owned()
    }
}

/// Sets a title, clears the screen, colors what follows, and turns it around.
const EVIL: &str = r"\033]0;owned\007\033[2J\033[31mevil\302\2332J\342\200\256";

/// Asserts that neither output drives a terminal, and that `word` is in one of them all the same.
fn assert_tame(output: &Output, word: &str) {
    let said = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    for text in &said {
        let drives = |c: char| (c.is_control() && !"\n\t".contains(c)) || c == '\u{202e}';
        assert!(!text.chars().any(drives), "{text:?}");
    }
    assert!(said.iter().any(|text| text.contains(word)), "{word} is missing in {said:?}");
}

#[test]
fn the_name_of_a_vm_cannot_drive_the_terminal_in_an_answer_nor_in_json() {
    let list = format!(
        "'list vms') printf '\"nestlab-{EVIL}-l1\" {{11111111-2222-3333-4444-555555555556}}\\n' ;;"
    );
    let fake = Fake::new(&list);
    assert_tame(&fake.run(&["gc"]), "nestlab-evil");
    assert_tame(&fake.run(&["gc", "--json"]), "evil");
}

#[test]
fn what_vboxmanage_complains_of_cannot_drive_the_terminal() {
    let fake =
        Fake::new(&format!("'list vms') printf 'VBoxManage: error: {EVIL}\\n' >&2; exit 1 ;;"));
    let recipe = fake.recipe_of("win");
    assert_tame(&fake.run(&["plan", &recipe]), "evil");
    assert_tame(&fake.run(&["plan", &recipe, "--json"]), "evil");
}

#[test]
fn what_a_hint_quotes_cannot_drive_the_terminal() {
    let list =
        format!("'list vms') printf '\"{EVIL}\" {{11111111-2222-3333-4444-555555555556}}\\n' ;;");
    let fake = Fake::new(&list);
    let recipe = fake.recipe_of("win");
    assert_tame(&fake.run(&["plan", &recipe]), "are: evil");
}

#[test]
fn a_vboxmanage_that_floods_costs_one_error_and_bounded_memory() {
    let fake = Fake::new("'list vms') exec cat /dev/zero ;;");
    // Its threads' stacks and heaps are a part of this; the gigabytes that came in are not.
    let limited = r#"ulimit -v 2000000 && exec "$0" "$@""#;
    let plain = fake.command(&["plan", &fake.recipe_of("win")]);
    let mut command = Command::new("sh");
    command.args(["-c", limited]).arg(plain.get_program()).args(plain.get_args());
    command.env("NESTLAB_VBOXMANAGE", &fake.program);
    let output = command.output().expect("nestlab runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("wrote more than 64 MiB and was ended"), "{said}");
}

#[test]
fn a_command_and_what_it_started_die_with_a_nestlab_that_was_killed() {
    for signal in ["KILL", "TERM"] {
        // Deaf to SIGTERM, as a program may be that writes a disk.
        let fake = Fake::new(
            r#"'list vms') trap '' TERM; sleep 1000 & echo "$$ $!" >"$0.pids" && mv "$0.pids" "${0%/*}/pids"; wait ;;"#,
        );
        let recipe = fake.recipe_of("win");
        let mut nestlab = fake.command(&["plan", &recipe]).spawn().expect("nestlab starts");
        until("the command runs", || fake.pids().exists());
        let id = nestlab.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &id]).status().expect("kills").success());
        nestlab.wait().expect("nestlab ends");
        let pids = std::fs::read_to_string(fake.pids()).expect("is text");
        assert_eq!(pids.split_whitespace().count(), 2, "{pids}");
        until("all of it is gone", || !pids.split_whitespace().any(is_alive));
    }
}

fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Waits until `condition` holds; nextest ends what never comes, and this says what it was.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    println!("waiting until {what}");
    while !condition() {
        std::thread::sleep(std::time::Duration::from_millis(25));
    }
}

/// A terminal 80 columns wide shows what `said` leaves on it.
fn screen(said: &[u8]) -> String {
    let terminal = indicatif::InMemoryTerm::new(24, 80);
    indicatif::TermLike::write_str(&terminal, &String::from_utf8_lossy(said)).expect("is shown");
    terminal.contents()
}

#[test]
fn ctrl_c_at_a_terminal_leaves_no_dead_row_behind() {
    // Accepts, and answers nothing.
    let server = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = server.local_addr().expect("has one").port();
    let nestlab = Nestlab::new();
    let manifest = nestlab.state().join("silent.toml");
    let text = format!(
        "schema = 1\nname = \"silent\"\nversion = \"1\"\narch = \"x86_64\"\nformat = \"qcow2\"\n\
         urls = [\"http://127.0.0.1:{port}/silent.qcow2\"]\nallow-http = true\nsha256 = \"{}\"\n",
        "0".repeat(64)
    );
    std::fs::write(&manifest, text).expect("is written");
    let program = nestlab.command(&["image", "fetch", manifest.to_str().expect("UTF-8")]);
    let words: Vec<_> = [program.get_program()].into_iter().chain(program.get_args()).collect();
    let words: Vec<_> = words.iter().map(|word| word.to_str().expect("UTF-8")).collect();
    let line = format!("stty cols 80 rows 24; exec {}", words.join(" "));
    let mut script = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .env("TERM", "xterm")
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script starts");
    let mut keys = script.stdin.take().expect("is a pipe");
    let mut output = script.stdout.take().expect("is a pipe");
    let (mut said, mut buffer, mut pressed) = (Vec::new(), [0; 4096], false);
    loop {
        let read = output.read(&mut buffer).expect("is read");
        said.extend_from_slice(&buffer[..read]);
        if read == 0 {
            break;
        }
        // It is drawn again and again: what was drawn once is on the screen by now.
        if !pressed && screen(&said).contains("fetch silent") {
            keys.write_all(b"\x03").expect("is heard");
            pressed = true;
        }
    }
    let exit = script.wait().expect("ends");
    let left = screen(&said);
    assert_eq!(exit.code(), Some(130), "{left}");
    assert!(left.contains("stopping at the next safe point"), "{left}");
    let dead = left.lines().find(|line| line.starts_with(['-', '\\', '|', '/']));
    assert_eq!(dead, None, "{left}");
}

#[test]
fn a_signal_ends_the_wait_for_a_guest_that_does_not_shut_down() {
    let bench = Bench::new();
    bench.boot_image("deaf", "deaf", "ready = \"serial\"\nserial-pattern = \"^up$\"\n");
    let recipe = bench.recipe("[[guest]]\nname = \"l1\"\nimage = \"./deaf.toml\"\n");
    bench.ok(&["up", &recipe]);
    let mut down = bench.spawn(&["down", "bench"]);
    let stderr = std::io::BufReader::new(down.stderr.take().expect("is a pipe"));
    let mut lines = stderr.lines().map(|line| line.expect("is text"));
    assert!(lines.any(|line| line.contains("shut down")), "the guest is asked, and waited for");
    let id = down.id().to_string();
    assert!(Command::new("kill").args(["-s", "TERM", &id]).status().expect("kills").success());
    let rest: Vec<String> = lines.collect();
    assert_eq!(down.wait().expect("ends").code(), Some(130), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("stop l1: goes on")), "{rest:?}");
    assert_eq!(bench.guest("bench", "l1")["state"], "running", "the plug was not pulled");
    bench.destroy();
}
