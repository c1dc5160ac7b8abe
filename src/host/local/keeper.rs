//! Ends what a nestlab leaves running that was killed.
//!
//! A shell waits at the other end of a pipe. It is told of every process group that begins and ends, and when
//! the pipe closes because nestlab is gone, however that came, it ends those that are left, with all that they
//! started: a guest's disk is not written to by what nobody follows any more, and the next run begins alone.
//! What is to outlive nestlab has a session, and so a group, of its own: a guest's QEMU, VirtualBox's processes, a job.
//!
//! `PR_SET_PDEATHSIG` would do less: it ends a program but nothing that this started, it is forgotten where
//! sudo takes over, and it fires when the thread ends that started the program.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::process::Pid;

/// Reads `+ GROUP` and `- GROUP` until the end, and ends the groups that are left: asks, and kills after two
/// seconds. The group of a command that runs as root has an `s` in front.
///
/// No `--` before a negative number: dash and busybox do not know it there.
const KEEPER: &str = r#"trap '' HUP INT TERM
groups=' '
while read -r change group; do
  case $change in
    +) groups="$groups$group " ;;
    -) case $groups in *" $group "*) groups="${groups%%" $group "*} ${groups#*" $group "}" ;; esac ;;
  esac
done
signal() {
  left=
  for group in $groups; do
    case $group in
      s*) sudo -n -- kill "-$1" -- "-${group#s}" && left=1 ;;
      *) kill "-$1" "-$group" && left=1 ;;
    esac
  done 2>/dev/null
  [ "$left" ]
}
signal TERM || exit 0
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
  signal 0 || exit 0
  sleep 0.1 2>/dev/null || sleep 1
done
signal KILL
exit 0"#;

/// A process group in the care of the keeper, until this is dropped.
pub(super) struct GuardedGroup(String);

impl GuardedGroup {
    /// Gives the group of `leader` into the keeper's care; `elevated` if it runs as root through sudo.
    pub(super) fn new(leader: Pid, elevated: bool) -> Self {
        let mark = if elevated { "s" } else { "" };
        let kept = GuardedGroup(format!("{mark}{}", leader.as_raw_nonzero()));
        kept.tell('+');
        kept
    }

    /// Without a keeper, or with one that was ended, a group is merely not looked after.
    fn tell(&self, change: char) {
        static KEEPER: OnceLock<Option<Mutex<ChildStdin>>> = OnceLock::new();
        if let Some(keeper) = KEEPER.get_or_init(start) {
            let mut keeper = keeper.lock().unwrap_or_else(PoisonError::into_inner);
            // Short enough to be written whole.
            let _ = keeper.write_all(format!("{change} {}\n", self.0).as_bytes());
        }
    }
}

impl Drop for GuardedGroup {
    fn drop(&mut self) {
        self.tell('-');
    }
}

/// Starts the keeper, which holds nothing of nestlab's but the pipe: not its outputs, for which others wait,
/// and not its folder.
fn start() -> Option<Mutex<ChildStdin>> {
    let mut keeper = Command::new("sh")
        .args(["-c", KEEPER, "nestlab-keeper"])
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .ok()?;
    keeper.stdin.take().map(Mutex::new)
}
