//! What a user does with a lab, and what each command answers and exits with.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

use crate::support::bench::Bench;

const FLAT: &str = "[[guest]]\nname = \"l1\"\nimage = \"./boot.toml\"\n";
const ENTERED: &str = "[[guest]]\nname = \"l1\"\nimage = \"./host.toml\"\n";

#[test]
fn a_guest_is_entered_and_files_are_copied_and_exit_codes_are_the_commands() {
    let bench = Bench::new();
    let recipe = bench.recipe(ENTERED);
    bench.ok(&["up", &recipe]);

    let code = |args: &[&str]| bench.ends(args).0;
    assert_eq!(bench.ok(&["ssh", "l1", "--", "hostname"]), "l1\n");
    for way in ["ssh", "exec"] {
        assert_eq!(code(&[way, "l1", "--", "sh", "-c", "exit 7"]), Some(7), "{way}");
        assert_eq!(code(&[way, "l1", "--", "sh", "-c", "kill -TERM $$"]), Some(255), "{way}");
        assert_eq!(code(&[way, "l9", "--", "true"]), Some(2), "{way}");
    }

    let (mine, back) = (bench.path("mine"), bench.path("back"));
    fs_err::write(&mine, "a\0b\n").expect("written");
    let (from, to) = (mine.to_str().expect("UTF-8"), back.to_str().expect("UTF-8"));
    bench.ok(&["cp", from, "l1:/root/theirs"]);
    bench.ok(&["cp", "l1:/root/theirs", to]);
    assert_eq!(fs_err::read(&back).expect("arrived"), b"a\0b\n");
    assert_eq!(code(&["cp", "l1:/root/no-such-file", to]), Some(1));
    assert_eq!(fs_err::read(&back).expect("is there"), b"a\0b\n", "a failed copy spoilt the file");
    assert_eq!(code(&["cp", from, to]), Some(2));

    bench.ok(&["down", "bench"]);
    assert_eq!(code(&["exec", "l1", "--", "true"]), Some(6));
    bench.destroy();
}

#[test]
fn a_console_shows_what_was_said_and_follows() {
    let bench = Bench::new();
    bench.ok(&["up", &bench.recipe(FLAT)]);
    assert_eq!(bench.ok(&["console", "l1", "--no-follow"]), "up\n");

    let mut following = bench.spawn(&["console", "l1"]);
    let mut said = BufReader::new(following.stdout.take().expect("piped")).lines();
    let mut next = || said.next().expect("goes on").expect("UTF-8");
    assert_eq!(next(), "up");
    // The guest answers each byte with the one before, the first with a dot.
    let socket = bench.lab("bench").join("disks/l1/run/serial");
    let pid = fs_err::read_to_string(bench.lab("bench").join("disks/l1/pid")).expect("its pid");
    let near = format!("/proc/{}/cwd/serial", pid.trim());
    let mut serial = std::os::unix::net::UnixStream::connect(near)
        .unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
    serial.write_all(b"hi\n\n").expect("listens");
    assert_eq!(next(), ".hi");
    let pid = rustix::process::Pid::from_child(&following);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
    assert!(following.wait().expect("ends").success(), "Ctrl-C is how one leaves");
    bench.destroy();
}

#[test]
fn a_screenshot_gets_the_guests_name_and_is_a_picture() {
    let bench = Bench::new();
    bench.ok(&["up", &bench.recipe(FLAT)]);
    let folder = bench.path("shots");
    fs_err::create_dir(&folder).expect("a folder");
    let shot = bench.command(&["screenshot", "l1"]).current_dir(&folder).output().expect("runs");
    assert_eq!(String::from_utf8_lossy(&shot.stdout), "l1.png\n");
    let picture = fs_err::read(folder.join("l1.png")).expect("written");
    assert!(picture.starts_with(b"\x89PNG"), "{} bytes", picture.len());
    bench.ok(&["down", "bench"]);
    assert_eq!(bench.ends(&["screenshot", "l1"]).0, Some(6));
    bench.destroy();
}

#[test]
fn destroy_asks_and_takes_only_yes_for_an_answer() {
    let bench = Bench::new();
    bench.ok(&["up", &bench.recipe(FLAT)]);
    let (code, _, told) = bench.ends(&["destroy", "bench"]);
    assert_eq!(code, Some(2), "nobody can be asked: {told}");
    assert!(told.contains("--yes"), "{told}");
    for answer in ["n", "", "yess"] {
        let (code, asked) = at_a_terminal(&bench, "destroy bench", answer);
        assert_eq!(code, Some(130), "{answer}: {asked}");
        assert!(asked.contains("nestlab-bench-l1"), "what goes is not listed: {asked}");
        assert_eq!(bench.guest("bench", "l1")["state"], "running", "after {answer:?}");
    }
    let (code, asked) = at_a_terminal(&bench, "destroy bench", "y");
    assert_eq!(code, Some(0), "{asked}");
    bench.assert_nothing_left();
}

/// Runs `nestlab <args>` at a terminal of its own, answers its question, and returns how it ended and what
/// was on the terminal.
fn at_a_terminal(bench: &Bench, args: &str, answer: &str) -> (Option<i32>, String) {
    let nestlab = bench.command(&[]);
    let program = nestlab.get_program().to_str().expect("UTF-8").to_owned();
    let own: Vec<&str> = nestlab.get_args().filter_map(|arg| arg.to_str()).collect();
    let line = format!("{program} {} {args}", own.join(" "));
    let mut script = bench.command(&[]);
    let mut command = std::process::Command::new("script");
    command.args(["-qefc", &line, "/dev/null"]);
    command.envs(script.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script is part of every Debian");
    script.stdin(Stdio::null());
    let mut typed = child.stdin.take().expect("piped");
    writeln!(typed, "{answer}").expect("listens");
    let output = child.wait_with_output().expect("ends");
    drop(typed);
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn one_run_at_a_time_and_ctrl_c_ends_it_so_that_the_next_goes_on() {
    let bench = Bench::new();
    bench.boot_image("mute", "deaf", "ready = \"serial\"\nserial-pattern = \"^never$\"\n");
    let recipe = bench.recipe("[[guest]]\nname = \"l1\"\nimage = \"./mute.toml\"\n");
    let mut up = bench.spawn(&["up", &recipe]);
    let mut told = BufReader::new(up.stderr.take().expect("piped")).lines();
    let mut until = |part: &str| {
        let line = told.find(|line| line.as_ref().is_ok_and(|line| line.contains(part)));
        line.unwrap_or_else(|| panic!("{part} was never told")).expect("UTF-8")
    };
    until("begin    wait until l1 is up");
    let (code, _, busy) = bench.ends(&["up", &recipe]);
    assert_eq!(code, Some(7), "{busy}");
    let pid = rustix::process::Pid::from_child(&up);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
    until("stopping at the next safe point");
    until("goes on with the next run");
    assert_eq!(up.wait().expect("ends").code(), Some(130));
    assert_eq!(bench.outcomes()["l1/ready"], "interrupted");
    assert_eq!(bench.guest("bench", "l1")["state"], "running", "what runs goes on");
    bench.destroy();
}

#[test]
fn a_guest_that_gives_up_is_not_waited_for_and_is_told_with_exit_code_6() {
    let bench = Bench::new();
    bench.boot_image("panic", "panicking", "ready = \"serial\"\nserial-pattern = \"^up$\"\n");
    let recipe = bench.recipe("[[guest]]\nname = \"l1\"\nimage = \"./panic.toml\"\n");
    let (code, _, told) = bench.ends(&["up", &recipe]);
    assert_eq!(code, Some(6), "{told}");
    assert!(told.contains("kernel panicked"), "{told}");
    bench.destroy();
}

#[test]
fn what_is_refused_before_it_began_leaves_no_lab() {
    let bench = Bench::new();
    let recipe = bench.recipe(&format!("{FLAT}memory = \"900TiB\"\n"));
    let (code, _, told) = bench.ends(&["up", &recipe]);
    assert_eq!(code, Some(3), "{told}");
    bench.assert_nothing_left();
    let (code, _, told) = bench.ends(&["up", &recipe, "--locked"]);
    assert_eq!(code, Some(2), "there is no lock: {told}");
    bench.assert_nothing_left();
}

#[test]
fn how_much_is_told_is_the_users_to_say() {
    let bench = Bench::new();
    let recipe = bench.recipe(FLAT);
    let (code, out, told) = bench.ends(&["up", &recipe, "--quiet"]);
    assert_eq!((code, out.as_str()), (Some(0), ""));
    assert!(told.lines().all(|line| line.starts_with("warning")), "{told}");
    bench.ok(&["down", "bench"]);
    let (_, _, plain) = bench.ends(&["up", &recipe, "--no-progress"]);
    assert!(plain.contains("done     start l1"), "{plain}");
    assert!(!plain.contains("   ...   "), "progress was told all the same: {plain}");
    bench.ok(&["down", "bench"]);
    let (_, _, verbose) = bench.ends(&["up", &recipe, "-v"]);
    assert!(verbose.contains("define l1 in qemu"), "a step that is right is told, too: {verbose}");
    bench.destroy();
}

#[test]
fn a_lab_is_locked_and_built_again_by_its_lock() {
    let bench = Bench::new();
    let recipe = bench.recipe(ENTERED);
    let lock = bench.path("lab.toml.lock");
    bench.packages(&[crate::support::debian::Deb::default()]);
    bench.ok(&["up", &recipe]);
    bench.ok(&["lock", &recipe]);
    let written = fs_err::read_to_string(&lock).expect("beside the recipe");
    assert!(written.contains("[image.\"host.raw\"]") || written.contains("host"), "{written}");
    assert!(bench.ok(&["lock", &recipe]).contains("(nothing changed)"));
    assert_eq!(fs_err::read_to_string(&lock).expect("is there"), written);

    let other = bench.path("other.lock");
    let changed = written.replacen("version = \"1\"", "version = \"2\"", 1);
    assert_ne!(changed, written);
    fs_err::write(&other, changed).expect("written");
    let (old, new) = (lock.to_str().expect("UTF-8"), other.to_str().expect("UTF-8"));
    assert!(bench.ok(&["lock", old, "--diff", new]).contains('2'));
    assert_eq!(bench.ok(&["lock", old, "--diff", old]), "");

    bench.destroy();
    bench.ok(&["up", &recipe, "--locked"]);
    assert_eq!(bench.outcomes()["l1/locked"], "right");
    bench.destroy();

    let digest = written.split_once("sha256 = \"").expect("a digest").1[..64].to_owned();
    fs_err::write(&lock, written.replace(&digest, &"0".repeat(64))).expect("written");
    let (code, _, told) = bench.ends(&["up", &recipe, "--locked"]);
    assert!(code.is_some_and(|code| code != 0), "another image than the locked one: {told}");
    assert!(told.contains("lock"), "{told}");
    bench.destroy();
}
