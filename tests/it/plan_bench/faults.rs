//! The real steps are killed, failed, hung and starved of disk at the points at which they run a command or
//! write the journal; afterwards `up` leads to what an undisturbed run does, and `destroy` leaves nothing.
//!
//! A gate has time for a part of the points: of each kind of fault, every step's first and last, and so many of
//! the others. With `NESTLAB_TEST_SEARCH=1` it is all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;

use super::happy::nested;
use crate::support::bench::Bench;

/// How many points lie from one that a gate tries to the next.
const STRIDE: usize = 11;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    Fail,
    Hang,
    Full,
}

/// A point of an undisturbed run.
#[derive(Debug, Clone)]
struct Point {
    at: usize,
    /// The step that passes it; `-` outside of all steps.
    step: String,
    name: String,
}

impl Point {
    fn is_write(&self) -> bool {
        self.name == "the middle of a write"
    }
}

#[test]
fn the_real_steps_have_more_than_three_hundred_points() {
    let lab = Disturbed::new(flat);
    let up = lab.points("up");
    let destroy = lab.points("destroy");
    let faults = 4 * (up.len() + destroy.len());
    assert!(faults >= 300, "{} points in up, {} in destroy", up.len(), destroy.len());
    let steps: BTreeSet<&str> = up.iter().map(|point| point.step.as_str()).collect();
    // The download runs no command; journal writes belong to no step.
    let all = ["-", "l1/define", "l1/place", "l1/ready", "l1/start"];
    assert_eq!(steps, BTreeSet::from(all));
    println!("{} points in up, {} in destroy: {faults} faults", up.len(), destroy.len());
}

#[test]
fn up_finishes_what_a_kill_left() {
    Disturbed::new(flat).everywhere("up", Fault::Kill);
}

#[test]
fn up_finishes_what_a_failure_left() {
    Disturbed::new(flat).everywhere("up", Fault::Fail);
}

#[test]
fn up_finishes_what_two_interrupts_of_a_hanging_run_left() {
    Disturbed::new(flat).everywhere("up", Fault::Hang);
}

#[test]
fn up_finishes_what_a_full_disk_left() {
    Disturbed::new(flat).everywhere("up", Fault::Full);
}

#[test]
fn destroy_finishes_what_a_disturbed_destroy_left() {
    let lab = Disturbed::new(flat);
    for fault in [Fault::Kill, Fault::Fail, Fault::Hang, Fault::Full] {
        lab.everywhere("destroy", fault);
    }
}

/// Few points of many: the guest in the guest costs seconds where the boot sector costs tenths.
#[test]
fn up_finishes_what_faults_in_a_guest_in_a_guest_left() {
    let lab = Disturbed::new(nested);
    let points = lab.points("up");
    let inside: Vec<&Point> = points
        .iter()
        .filter(|point| point.step.starts_with("l1/") || point.step.starts_with("l2/"))
        .collect();
    let steps: BTreeSet<&str> = inside.iter().map(|point| point.step.as_str()).collect();
    for step in ["l1/update", "l1/packages", "l1/reboot", "l1/hypervisor", "l2/place", "l2/define"]
    {
        assert!(steps.contains(step), "{steps:?}");
    }
    let faults = [Fault::Kill, Fault::Fail, Fault::Full];
    let chosen = chosen(&points, 0).into_iter().filter(|point| point.step != "-");
    let each = if search() { 1 } else { 12 };
    for (number, point) in chosen.step_by(each).enumerate() {
        lab.disturbed("up", faults[number % faults.len()], &point);
    }
}

/// A boot sector in L0's QEMU.
fn flat(bench: &Bench) -> String {
    bench.recipe("[[guest]]\nname = \"l1\"\nimage = \"./boot.toml\"\n")
}

fn search() -> bool {
    std::env::var_os("NESTLAB_TEST_SEARCH").is_some_and(|value| value == "1")
}

/// Returns the points to try: all, or each step's first and last and every `STRIDE`th, from the `offset`th on.
fn chosen(points: &[Point], offset: usize) -> Vec<Point> {
    let mut ends: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for point in points {
        ends.entry(&point.step)
            .and_modify(|ends| ends.1 = point.at)
            .or_insert((point.at, point.at));
    }
    let is_end = |point: &Point| {
        let (first, last) = ends[point.step.as_str()];
        point.step != "-" && (point.at == first || point.at == last)
    };
    let wanted = |point: &&Point| search() || is_end(point) || point.at % STRIDE == offset % STRIDE;
    points.iter().filter(wanted).cloned().collect()
}

/// A lab that is disturbed again and again.
struct Disturbed {
    bench: Bench,
    recipe: String,
    /// What an undisturbed run comes to.
    undisturbed: BTreeMap<String, String>,
}

impl Disturbed {
    fn new(recipe: fn(&Bench) -> String) -> Self {
        let bench = Bench::new();
        let recipe = recipe(&bench);
        bench.ok(&["up", &recipe, "--quiet"]);
        let undisturbed = state(&bench);
        let lab = Disturbed { bench, recipe, undisturbed };
        lab.begin_anew();
        lab
    }

    /// Takes the lab and the store away.
    fn begin_anew(&self) {
        let bench = &self.bench;
        bench.ok(&["destroy", "bench", "--yes", "--quiet"]);
        bench.assert_nothing_left();
        fs_err::remove_dir_all(bench.cache()).expect("the store was there");
    }

    fn arguments<'a>(&'a self, act: &'a str) -> Vec<&'a str> {
        match act {
            "up" => vec!["up", &self.recipe],
            "destroy" => vec!["destroy", "bench", "--yes"],
            other => panic!("what is {other}?"),
        }
    }

    /// Returns the points that an undisturbed run of `act` passes, and leaves neither lab nor store.
    fn points(&self, act: &str) -> Vec<Point> {
        if act == "destroy" {
            self.bench.ok(&["up", &self.recipe, "--quiet"]);
        }
        let trace = self.bench.path("trace");
        let mut command = self.bench.command(&self.arguments(act));
        let output = command.env("NESTLAB_FAULT_TRACE", &trace).output().expect("nestlab runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let points = read_trace(&trace);
        fs_err::remove_file(&trace).expect("it was written");
        if act == "up" {
            self.begin_anew();
        } else {
            fs_err::remove_dir_all(self.bench.cache()).expect("the store was there");
        }
        points
    }

    /// Disturbs `act` at every point that is chosen.
    fn everywhere(&self, act: &str, fault: Fault) {
        let points = self.points(act);
        let mut chosen = chosen(&points, fault as usize * STRIDE / 4);
        // What only looks at L0 before a step begins does not notice a full disk.
        chosen.retain(|point| fault != Fault::Full || point.step != "-" || point.is_write());
        for point in &chosen {
            self.disturbed(act, fault, point);
        }
        println!("{fault:?} in {act}: {} of {} points", chosen.len(), points.len());
    }

    fn disturbed(&self, act: &str, fault: Fault, point: &Point) {
        if act == "destroy" {
            self.bench.ok(&["up", &self.recipe, "--quiet"]);
        }
        let what = format!("{act}, {fault:?} at {} ({}: {})", point.at, point.step, point.name);
        println!("== {what}");
        let (status, told) = self.run_with(act, fault, point.at);
        if self.was_passed(point.at) {
            expect_its_end(fault, status, &told, &what);
        } else {
            // How often a guest is looked at until it is up differs from run to run, and with it what comes last.
            assert!(status.success(), "{what} was not passed:\n{told}");
        }
        if act == "up" {
            let again = self.bench.run(&["up", &self.recipe, "--quiet"]);
            assert!(
                again.status.success(),
                "after {what}:\n{told}\nup ended with {}",
                again.status
            );
            assert_eq!(state(&self.bench), self.undisturbed, "after {what}:\n{told}");
            self.begin_anew();
        } else {
            if self.bench.lab("bench").exists() {
                self.bench.ok(&["destroy", "bench", "--yes", "--quiet"]);
            }
            self.bench.assert_nothing_left();
        }
    }

    /// Returns whether the last run with a fault came to the point with this number.
    fn was_passed(&self, at: usize) -> bool {
        let trace = self.bench.path("trace");
        let passed = read_trace(&trace).iter().any(|point| point.at == at);
        fs_err::remove_file(trace).expect("it was written");
        passed
    }

    /// Runs `act` with the fault. What hangs is interrupted, twice if it goes on.
    fn run_with(&self, act: &str, fault: Fault, at: usize) -> (ExitStatus, String) {
        let word = format!("{fault:?}").to_lowercase();
        let mut command = self.bench.command(&self.arguments(act));
        command.env("NESTLAB_FAULT", format!("{word}@{at}"));
        command.env("NESTLAB_FAULT_TRACE", self.bench.path("trace"));
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
        let mut child = command.spawn().expect("nestlab runs");
        let pid = rustix::process::Pid::from_child(&child);
        let mut told = String::new();
        // What nestlab has started may live longer and hold this open; nestlab's own end counts.
        let (said, hear) = std::sync::mpsc::channel();
        let errors = BufReader::new(child.stderr.take().expect("piped"));
        std::thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok) {
                if said.send(line).is_err() {
                    break;
                }
            }
        });
        let status = loop {
            let ended = child.try_wait().expect("our child");
            let wait = std::time::Duration::from_millis(20);
            while let Ok(line) = hear.recv_timeout(wait) {
                if line.contains("nestlab: hangs") || line.contains("stopping at the next safe") {
                    // It may have ended between its word and ours.
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
                }
                told.push_str(&line);
                told.push('\n');
            }
            if let Some(status) = ended {
                break status;
            }
        };
        (status, told)
    }
}

/// A kill kills, a hang is interrupted; what failed says so, or could do without.
fn expect_its_end(fault: Fault, status: ExitStatus, told: &str, what: &str) {
    match fault {
        Fault::Kill => assert_eq!(status.signal(), Some(9), "{what}:\n{told}"),
        Fault::Hang => assert_eq!(status.code(), Some(130), "{what}:\n{told}"),
        Fault::Fail | Fault::Full if status.success() => {}
        Fault::Fail => assert!(told.contains("injected"), "the cause is not told: {what}:\n{told}"),
        Fault::Full => {
            assert!(told.contains("no space left"), "the full disk is not named: {what}:\n{told}")
        }
    }
}

fn read_trace(trace: &Path) -> Vec<Point> {
    let text = fs_err::read_to_string(trace).expect("a trace");
    let point = |line: &str| {
        let mut words = line.split('\t').map(str::to_owned);
        let mut next = || words.next().expect("three words");
        Point { at: next().parse().expect("a number"), step: next(), name: next() }
    };
    text.lines().map(point).collect()
}

/// Returns what the lab is: its files, what it keeps of its machines, the VM's definition, and how every step
/// ended last, however it came to be so.
fn state(bench: &Bench) -> BTreeMap<String, String> {
    let lab = bench.lab("bench");
    let mut state = BTreeMap::new();
    files(&lab, &lab, &mut state);
    for (step, outcome) in bench.outcomes() {
        let is_right = outcome == "done" || outcome == "right";
        state.insert(step, if is_right { "right".to_owned() } else { outcome });
    }
    let guests = bench.json(&["status", "bench"])["labs"][0]["guests"].clone();
    for guest in guests.as_array().expect("guests") {
        let name = guest["name"].as_str().expect("a name");
        state.insert(name.to_owned(), format!("{} {}", guest["state"], guest["ready"]));
    }
    state
}

/// Adds the files in `folder`, those that say what the lab is with their text.
fn files(lab: &Path, folder: &Path, state: &mut BTreeMap<String, String>) {
    for entry in fs_err::read_dir(folder).expect("reads").flatten() {
        let path = entry.path();
        let name = path.strip_prefix(lab).expect("inside").display().to_string();
        // Of every run one, and of a failed one a bundle.
        if name == "logs" {
            continue;
        }
        let tells =
            name == "machines.json" || name == "recipe.toml" || name.ends_with("guest.json");
        let text =
            if tells { fs_err::read_to_string(&path).expect("reads") } else { String::new() };
        state.insert(name, text);
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files(lab, &path, state);
        }
    }
}
