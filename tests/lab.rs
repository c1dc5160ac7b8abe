//! Labs as several processes see them: locks, permissions, and what is left when one is gone.
//!
//! The other process is this program again, told by its environment.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};

use camino::{Utf8Path, Utf8PathBuf};
use nestlab::Kind;
use nestlab::lab::{Lab, Labs};
use nestlab::recipe::LabName;

const STATE: &str = "NESTLAB_TEST_STATE";
const ACT: &str = "NESTLAB_TEST_ACT";
const ENTRY: &str = "a_second_nestlab_is_told_who_works_on_the_lab_and_since_when";

#[test]
fn a_second_nestlab_is_told_who_works_on_the_lab_and_since_when() {
    if let Ok(state) = std::env::var(STATE) {
        act(Utf8Path::new(&state), &std::env::var(ACT).expect("says what to do"));
    }
    let bench = Bench::new();
    let other = bench.other("lock");
    let error = bench.lab.lock(["nestlab", "up"]).expect_err("the other holds it");
    assert_eq!((error.kind(), error.kind().exit_code()), (Kind::Busy, 7));
    let pid = other.child.id();
    for part in ["`nestlab up other`", &format!("process {pid}"), "since 20"] {
        assert!(error.message().contains(part), "{part} is missing: {error}");
    }
    assert!(error.hints()[0].contains(&format!("kill {pid}")), "{error:?}");
    let holder = bench.lab.holder().expect("reads").expect("somebody holds it");
    assert_eq!(
        (holder.pid, holder.command),
        (pid, ["nestlab", "up", "other"].map(String::from).to_vec())
    );
    other.let_go();
    assert_eq!(bench.lab.holder().expect("reads"), None);
    bench.lab.lock(["nestlab", "up"]).expect("nobody holds it any more");
}

#[test]
fn the_lock_of_a_killed_nestlab_is_free() {
    let bench = Bench::new();
    let mut other = bench.other("lock");
    other.child.kill().expect("kills");
    other.child.wait().expect("waits");
    bench.lab.lock(["nestlab", "up"]).expect("the dead hold nothing");
}

#[test]
fn a_guest_that_outlives_nestlab_does_not_keep_its_lock() {
    let bench = Bench::new();
    let mut other = bench.other("lock-and-leave-a-program");
    let status = other.child.wait().expect("waits");
    assert!(status.success());
    // The program still runs: it reads from the pipe of which this is the other end.
    other.stdin.write_all(b"x").expect("the program is there to read");
    bench.lab.lock(["nestlab", "up"]).expect("the guest holds no lock");
}

#[test]
fn looking_who_works_on_a_lab_disturbs_nobody() {
    let bench = Bench::new();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::SeqCst) {
                    bench.lab.holder().expect("reads");
                }
            });
        }
        let locks: Vec<_> = (0..200).map(|_| bench.lab.lock(["nestlab"]).map(drop)).collect();
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        for lock in locks {
            lock.expect("only lookers were there");
        }
    });
}

#[test]
fn a_lab_that_others_can_write_is_refused_with_the_remedy() {
    let bench = Bench::new();
    let state = bench.labs.state_directory().to_owned();
    let directory = bench.lab.directory().to_owned();
    for path in [&state, &state.join("labs"), &directory] {
        let open = std::fs::Permissions::from_mode(0o770);
        std::fs::set_permissions(path, open).expect("chmod");
        let error = bench.labs.open(bench.lab.name()).expect_err("others can write it");
        assert_eq!(error.kind(), Kind::Io);
        assert!(error.hints()[0].contains(&format!("chmod 700 {path}")), "{error:?}");
        let closed = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(path, closed).expect("chmod");
    }
    bench.labs.open(bench.lab.name()).expect("is closed again");
}

#[test]
fn everything_in_a_lab_is_closed_to_others() {
    let bench = Bench::new();
    bench.lab.keys().host_key("l1").expect("makes a key");
    bench
        .lab
        .known_hosts()
        .set("l1", bench.lab.keys().user().expect("makes").public())
        .expect("writes");
    drop(bench.lab.lock(["nestlab"]).and_then(|lock| lock.journal()).expect("opens"));
    let mut seen = 0;
    let mut directories = vec![bench.labs.state_directory().to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in directory.read_dir_utf8().expect("lists") {
            let entry = entry.expect("is there");
            let metadata = entry.metadata().expect("has some");
            let mode = metadata.permissions().mode() & 0o777;
            assert_eq!(mode, if metadata.is_dir() { 0o700 } else { 0o600 }, "{}", entry.path());
            directories.extend(metadata.is_dir().then(|| entry.path().to_owned()));
            seen += 1;
        }
    }
    assert!(seen >= 10, "only {seen} files");
}

#[test]
fn the_lab_may_be_left_out_when_there_is_only_one() {
    let bench = Bench::new();
    assert_eq!(bench.labs.choose(None).expect("there is one").name(), bench.lab.name());
    let unknown = bench.labs.choose(Some(&name("other"))).expect_err("is not there");
    assert!(unknown.hints()[0].contains("demo"), "{unknown:?}");
    bench.labs.create(&name("other"), "").expect("makes");
    let error = bench.labs.choose(None).expect_err("there are two");
    assert_eq!(error.kind(), Kind::Usage);
    assert!(error.hints()[0].contains("demo, other"), "{error:?}");
    let none = Labs::at(bench.labs.state_directory().join("nowhere")).choose(None);
    assert!(none.expect_err("there is none").hints()[0].contains("nestlab up"));
}

#[test]
fn the_recipe_is_kept_as_it_was_applied() {
    let bench = Bench::new();
    let lock = bench.lab.lock(["nestlab", "up"]).expect("locks");
    lock.keep_recipe("schema = 1\nname = \"other\"\n").expect("writes");
    let again = bench.labs.create(bench.lab.name(), "schema = 1\n").expect("opens");
    assert_eq!(again.recipe().expect("reads"), "schema = 1\nname = \"other\"\n");
}

#[test]
fn a_removed_lab_leaves_no_trace_and_can_be_made_again() {
    let bench = Bench::new();
    let lock = bench.lab.lock(["nestlab", "destroy"]).expect("locks");
    bench.lab.clone().remove(lock).expect("removes");
    let labs = bench.labs.state_directory().join("labs");
    assert_eq!(labs.read_dir_utf8().expect("lists").count(), 0);
    let error = bench.lab.lock(["nestlab", "up"]).expect_err("it is gone");
    assert_ne!(error.kind(), Kind::Busy);
    let lab = bench.labs.create(bench.lab.name(), "").expect("makes");
    lab.lock(["nestlab", "up"]).expect("locks");
}

#[test]
fn what_a_killed_removal_left_is_swept() {
    let bench = Bench::new();
    let labs = bench.labs.state_directory().join("labs");
    std::fs::create_dir_all(labs.join(".removed-1/disks")).expect("makes");
    assert_eq!(bench.labs.list().expect("lists"), [name("demo")]);
    assert_eq!(bench.labs.sweep().expect("sweeps"), 1);
    assert_eq!(labs.read_dir_utf8().expect("lists").count(), 1);
}

fn name(name: &str) -> LabName {
    name.parse().expect("a name")
}

struct Bench {
    _scratch: tempfile::TempDir,
    labs: Labs,
    lab: Lab,
}

/// This program again, at work on the lab.
struct Other {
    child: Child,
    stdin: ChildStdin,
}

impl Bench {
    fn new() -> Self {
        let scratch = tempfile::tempdir().expect("a temporary directory");
        let root = Utf8PathBuf::from_path_buf(scratch.path().into()).expect("UTF-8");
        let labs = Labs::at(root.join("state"));
        let lab = labs.create(&name("demo"), "schema = 1\n").expect("makes");
        Bench { _scratch: scratch, labs, lab }
    }

    /// Starts the other process and waits until it holds the lock.
    fn other(&self, act: &str) -> Other {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", ENTRY, "--nocapture"])
            .env(STATE, self.labs.state_directory())
            .env(ACT, act)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("this program runs");
        let stdin = child.stdin.take().expect("was asked for");
        let mut told = BufReader::new(child.stderr.take().expect("was asked for")).lines();
        let line = told.next().expect("it says something").expect("UTF-8");
        assert_eq!(line, "locked");
        Other { child, stdin }
    }
}

impl Other {
    fn let_go(self) {
        let Other { mut child, stdin } = self;
        drop(stdin);
        assert!(child.wait().expect("waits").success());
    }
}

/// What the other process does; it does not return.
fn act(state: &Utf8Path, act: &str) -> ! {
    let lab = Labs::at(state).open(&name("demo")).expect("is there");
    let _lock = lab.lock(["nestlab", "up", "other"]).expect("nobody else holds it");
    if act == "lock-and-leave-a-program" {
        // Like a guest: it reads what this process would, and lives on.
        let mut command = Command::new("sh");
        command.args(["-c", "read x"]).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("sh runs");
        eprintln!("locked");
        std::process::exit(0);
    }
    eprintln!("locked");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("the pipe ends");
    std::process::exit(0)
}
