//! nestlab is killed, failed, hung and starved of disk at every point at which it writes its journal or
//! runs a command; afterwards `up` finishes the lab and `destroy` leaves nothing.
//!
//! The faulty runs are processes of their own: this program again, told by its environment.

mod chain;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use nestlab::engine::{RunningSteps, Signals};
use nestlab::event::{Event, EventSink};
use nestlab::lab::reservations::Claim;
use nestlab::lab::status::StepState;
use nestlab::{Kind, faults};
use tokio_util::sync::CancellationToken;

use crate::support::sshd::Sshd;
use chain::{Chain, held_by_the_lab};

const DIRECTORY: &str = "NESTLAB_TEST_DIRECTORY";
const ACT: &str = "NESTLAB_TEST_ACT";
const ENTRY: &str =
    "engine_faults::an_undisturbed_run_builds_everything_and_destroy_leaves_nothing";

#[test]
fn an_undisturbed_run_builds_everything_and_destroy_leaves_nothing() {
    if let Ok(directory) = std::env::var(DIRECTORY) {
        act(Utf8Path::new(&directory), &std::env::var(ACT).expect("says what to do"));
    }
    let sshd = Sshd::start(&[]);
    let bench = Bench::new(&sshd);
    let before = bench.chain.snapshot();
    let (status, _) = bench.child("up", None).end();
    assert!(status.success(), "{status}");
    let built = bench.chain.snapshot();
    assert!(built.contains_key("l1/l2/ready") && built["l1/reserved"] == "None", "{built:?}");
    assert!(bench.points() >= 100, "only {} points", bench.points());
    assert_eq!(bench.up_again(), 0, "a second run has nothing to do");
    bench.destroy_and_see_nothing_left(&before);
}

#[test]
fn up_finishes_what_a_kill_at_any_point_left() {
    for_every_point("kill", |bench, status, errors| {
        assert_eq!(status.signal(), Some(9), "{errors}");
        bench.finish_and_compare();
    });
}

#[test]
fn up_finishes_what_a_failure_at_any_point_left() {
    for_every_point("fail", |bench, status, errors| {
        assert_eq!(status.code(), Some(1), "{errors}");
        assert!(errors.contains("injected"), "the cause is not told:\n{errors}");
        bench.finish_and_compare();
    });
}

#[test]
fn up_finishes_what_a_full_disk_at_any_point_left_and_the_disk_is_named() {
    for_every_point("full", |bench, status, errors| {
        assert_eq!(status.code(), Some(1), "{errors}");
        assert!(errors.contains("no space left"), "the disk is not named:\n{errors}");
        bench.finish_and_compare();
    });
}

#[test]
fn two_interrupts_end_what_hangs_at_any_point_and_up_finishes_it() {
    for_every_point("hang", |bench, status, errors| {
        assert_eq!(status.code(), Some(130), "{errors}");
        bench.finish_and_compare();
    });
}

#[test]
fn destroy_right_after_a_kill_at_any_point_leaves_nothing() {
    for_every_point("kill", |bench, _, _| {
        bench.destroy_and_see_nothing_left(&bench.before);
    });
}

#[test]
fn a_destroy_that_was_killed_at_any_point_is_finished_by_the_next() {
    let sshd = Sshd::start(&[]);
    let mut faults = 0;
    loop {
        let bench = Bench::new(&sshd);
        bench.run_here(bench.chain.up(EventSink::silent(), CancellationToken::new()));
        let (status, errors) = bench.child("destroy", Some(format!("kill@{}", faults + 1))).end();
        if status.success() {
            break;
        }
        assert_eq!(status.signal(), Some(9), "{errors}");
        faults += 1;
        bench.destroy_and_see_nothing_left(&bench.before);
    }
    // Few: what is inside of a guest goes with its VM, and is only recorded.
    assert!(faults >= 20, "only {faults} points in a destroy");
}

#[test]
fn a_closed_terminal_does_not_end_a_run() {
    let sshd = Sshd::start(&[]);
    let bench = Bench::new(&sshd);
    let mut faulty = bench.child("wait", None);
    let pid = rustix::process::Pid::from_child(&faulty.child);
    let mut told = BufReader::new(faulty.child.stderr.take().expect("was asked for")).lines();
    let mut next = || told.next().expect("says something").expect("UTF-8");
    assert_eq!(next(), "waiting");
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("it is there");
    assert!(next().contains("the terminal is gone; the run goes on"));
    std::fs::write(bench.root.join("go"), "").expect("writes");
    assert!(faulty.child.wait().expect("waits").success());
}

/// Runs a fresh chain with the fault at each point in turn, until a run passes fewer points than
/// that; `then` sees how the run ended and what it told.
fn for_every_point(fault: &str, then: impl Fn(&Bench<'_>, ExitStatus, &str)) {
    let sshd = Sshd::start(&[]);
    let mut point = 0;
    loop {
        let bench = Bench::new(&sshd);
        let (status, errors) = bench.child("up", Some(format!("{fault}@{}", point + 1))).end();
        if status.success() {
            break;
        }
        point += 1;
        then(&bench, status, &errors);
    }
    println!("{fault}: {point} faults injected, {point} survived, 0 things left over");
    assert!(point >= 100, "only {point} points");
}

/// In memory, where there is such a file system: what a process has written outlives its end there, too, and
/// thousands of synced lines wait for no disk.
fn scratch() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    let made = tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir());
    made.expect("a temporary directory")
}

/// A fresh chain in a scratch directory.
struct Bench<'a> {
    _scratch: tempfile::TempDir,
    root: Utf8PathBuf,
    chain: Chain,
    before: BTreeMap<String, String>,
    sshd: &'a Sshd,
}

impl<'a> Bench<'a> {
    fn new(sshd: &'a Sshd) -> Self {
        let scratch = scratch();
        let root = Utf8Path::from_path(scratch.path()).expect("UTF-8").to_owned();
        let chain = Chain::in_directory(&root);
        chain.prepare(sshd);
        let before = chain.snapshot();
        Bench { _scratch: scratch, root, chain, before, sshd }
    }

    /// Starts this program again to do `act`, with `fault`.
    fn child(&self, act: &str, fault: Option<String>) -> Faulty {
        let (alive, held) = std::io::pipe().expect("a pipe");
        // Whatever the child starts inherits this end; when all of it is gone, the pipe ends.
        rustix::io::fcntl_setfd(&held, rustix::io::FdFlags::empty()).expect("keeps it open");
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", ENTRY, "--nocapture"]);
        command.env(DIRECTORY, &self.root).env(ACT, act).env_remove("NESTLAB_FAULT");
        if let Some(fault) = fault {
            command.env("NESTLAB_FAULT", fault);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        Faulty { child: command.spawn().expect("this program runs"), alive }
    }

    fn points(&self) -> u64 {
        let text = std::fs::read_to_string(self.root.join("points")).expect("the child wrote it");
        text.parse().expect("a number")
    }

    fn run_here<T>(&self, work: impl Future<Output = nestlab::Result<T>>) -> T {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(work).unwrap_or_else(|error| panic!("{error:?}"))
    }

    fn up_again(&self) -> usize {
        self.run_here(self.chain.up(EventSink::silent(), CancellationToken::new())).changed()
    }

    /// Runs `up` again and sees that the world, the journal and the reservations are as those of an
    /// undisturbed run; then the same with `destroy`.
    fn finish_and_compare(&self) {
        self.up_again();
        static UNDISTURBED: OnceLock<(BTreeMap<String, String>, Vec<Claim>)> = OnceLock::new();
        let (world, held) = UNDISTURBED.get_or_init(|| {
            let undisturbed = Bench::new(self.sshd);
            undisturbed.up_again();
            (undisturbed.chain.snapshot(), held_by_the_lab(&undisturbed.chain))
        });
        assert_eq!(self.chain.snapshot(), *world);
        assert_eq!(held_by_the_lab(&self.chain), *held);
        let lab = self.chain.labs().choose(None).expect("there is one lab");
        let reading = lab.read_journal().expect("reads");
        assert!(reading.damaged.is_empty(), "{:?}", reading.damaged);
        let status = lab.status().expect("reads");
        assert!(status.steps.values().all(|step| step.state == StepState::Good), "{status:?}");
        assert!(status.ready.contains_key("l2"), "{status:?}");
        self.destroy_and_see_nothing_left(&self.before);
    }

    fn destroy_and_see_nothing_left(&self, before: &BTreeMap<String, String>) {
        self.run_here(self.chain.destroy());
        assert_eq!(self.chain.snapshot(), *before, "the world is not as it was");
        let left = self.chain.left_in_state();
        assert!(left.iter().all(|line| line.ends_with("labs: directory")), "{left:?}");
    }
}

/// A run with a fault.
struct Faulty {
    child: Child,
    /// Ends when the child and all that it started are gone.
    alive: std::io::PipeReader,
}

impl Faulty {
    /// Waits until it has ended, with all that it started; interrupts it if it says that it hangs,
    /// and once more if it says that it is waiting. Returns how it ended and what it told.
    fn end(mut self) -> (ExitStatus, String) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let interrupt = || {
            rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it is there");
        };
        let mut told = String::new();
        let errors = BufReader::new(self.child.stderr.take().expect("was asked for"));
        for line in errors.lines() {
            let line = line.expect("UTF-8");
            if line.contains("nestlab: hangs") || line.contains("stopping at the next safe point") {
                interrupt();
            }
            told.push_str(&line);
            told.push('\n');
        }
        let status = self.child.wait().expect("it was started");
        self.alive.read_to_end(&mut Vec::new()).expect("ends");
        (status, told)
    }
}

/// Listens for signals as `up` does; what the user is told goes to standard error.
fn listen() -> nestlab::Result<(EventSink, Signals)> {
    let events = EventSink::new(|event| {
        if let Event::Notice { text, .. } = event {
            eprintln!("{text}");
        }
    });
    let running = RunningSteps::default();
    let events = running.watch(events);
    let signals = Signals::listen(events.clone(), running, || {})?;
    Ok((events, signals))
}

/// What the child does; it does not return.
fn act(directory: &Utf8Path, act: &str) -> ! {
    let chain = Chain::in_directory(directory);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let result = runtime.block_on(async {
        match act {
            "up" => {
                let (events, signals) = listen()?;
                chain.up(events, signals.cancel()).await.map(drop)
            }
            "wait" => {
                let (_, signals) = listen()?;
                eprintln!("waiting");
                while !directory.join("go").exists() && !signals.cancel().is_cancelled() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Ok(())
            }
            "destroy" => chain.destroy().await,
            other => panic!("what is {other}?"),
        }
    });
    std::fs::write(directory.join("points"), faults::passed().to_string()).expect("writes");
    let code = match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{}", error.report());
            if error.kind() == Kind::Internal { 101 } else { i32::from(error.kind().exit_code()) }
        }
    };
    std::process::exit(code)
}
