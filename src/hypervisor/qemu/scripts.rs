//! The commands that the driver runs on a host. What needs a shell is a constant script here, and
//! values reach it as arguments.

use camino::Utf8Path;
use uuid::Uuid;

use super::definition::QemuDiskFormat;
use super::folder::Folder;
use super::loopback;
use crate::host::Command;
use crate::recipe::Mebibytes;

/// Writes standard input to `$1`, whole or not at all, readable to nobody else.
const WRITE: &str = r#"
set -e
umask 077
mkdir -p -- "${1%/*}"
cat >"$1.new"
sync -- "$1.new"
mv -f -- "$1.new" "$1"
"#;

/// Returns the command that writes its standard input to `path`.
pub(super) fn write_file(path: &Utf8Path) -> Command {
    script(WRITE, "nestlab-write").arg(path.as_str())
}

/// Returns the command that makes the disk at `path` as large as `size`.
pub(super) fn grow_disk(path: &Utf8Path, format: QemuDiskFormat, size: Mebibytes) -> Command {
    Command::new("qemu-img")
        .args(["resize", "-q", "-f", format.name(), "--", path.as_str()])
        .arg(size.bytes().to_string())
}

/// Returns the command that tells about the disk at `path` as JSON, also while a guest has it open.
pub(super) fn disk_info(path: &Utf8Path, format: QemuDiskFormat) -> Command {
    Command::new("qemu-img").args([
        "info",
        "-U",
        "--output=json",
        "-f",
        format.name(),
        "--",
        path.as_str(),
    ])
}

/// What [`LOOK`] exits with where there is no definition.
pub(super) const NOT_DEFINED: i32 = 3;

/// Prints `alive` if QEMU did not end itself in the folder `$1`, and then, if there is a process with the
/// noted id, that id and the process's arguments; each with a NUL.
macro_rules! process {
    () => {
        r#"
[ ! -e "$1/run/alive" ] || printf alive
printf '\0'
pid=
[ ! -e "$1/pid" ] || read -r pid <"$1/pid"
case $pid in '' | *[!0-9]*) exit 0 ;; esac
[ -e "/proc/$pid/cmdline" ] || exit 0
# What is just becoming QEMU, as by a program that wraps it, has no arguments for a moment.
[ -n "$(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline")" ] || sleep 0.1
printf '%s\0' "$pid"
cat -- "/proc/$pid/cmdline" 2>/dev/null || true
"#
    };
}

/// Prints the definition in the folder `$1` with a NUL, and then its process.
const LOOK: &str = concat!(
    r#"
[ -e "$1/guest.json" ] || exit 3
cat -- "$1/guest.json" || exit 1
printf '\0'
"#,
    process!()
);

/// Returns the command that looks at a VM; `inspect` reads its answer.
pub(super) fn look(folder: Folder<'_>) -> Command {
    let look = [CUT_LOGS, LOOK].concat();
    Command::new("sh").args(["-c", &look, "nestlab-look"]).arg(folder.0.as_str())
}

/// Returns the command that looks at a VM's process alone, whatever became of its definition.
pub(super) fn process(folder: Folder<'_>) -> Command {
    script(process!(), "nestlab-process").arg(folder.0.as_str())
}

/// Prints of every process that is a QEMU its id and its arguments, each with a NUL, and a further NUL. A process
/// may end while it is looked at.
const LIST: &str = r#"
for process in /proc/[0-9]*; do
    grep -zqxe -uuid "$process/cmdline" || continue
    printf '%s\0' "${process#/proc/}"
    cat "$process/cmdline"
    printf '\0'
done 2>/dev/null
exit 0
"#;

/// Returns the command that prints the arguments of every QEMU.
pub(super) fn arguments_of_all() -> Command {
    script(LIST, "nestlab-list")
}

/// Makes the VM's own copy `$3` of the UEFI variables `$1`, which have the format `$2`.
const COPY_VARIABLES: &str = r#"
set -e
umask 077
[ ! -e "$3" ] || exit 0
qemu-img convert -f "$2" -O qcow2 -- "$1" "$3.new"
mv -f -- "$3.new" "$3"
"#;

/// Returns the command that gives a VM its own UEFI variables, if it has none yet.
pub(super) fn copy_variables(template: &str, format: &str, folder: Folder<'_>) -> Command {
    script(COPY_VARIABLES, "nestlab-variables")
        .args([template, format])
        .arg(folder.efi_variables().as_str())
}

/// Puts what the guest said before aside: whoever waits for a line on its serial console must find none of an
/// earlier start. Then starts the command `$4…` in the folder `$1` and its `run/`, which is given to the user `$2` if that
/// is not empty, in a session of its own, and prints its process id. Standard input is a library of the name `$3`
/// that is loaded into it, if that is not empty.
///
/// The process notes its own id before it becomes QEMU, so that no moment exists in which it runs
/// and is not known; the substitution ends when it has become QEMU and closed its end of the pipe.
/// `run/` is made anew, since the next QEMU, as long as it is root, writes to names that the last one could
/// have turned into links. `-daemonize` would do less: it drops what QEMU says later, and leaves `run/`.
const START: &str = r#"
set -e
umask 077
rm -rf -- "$1/run"
mkdir -- "$1/run"
[ -z "$2" ] || chown -- "$2" "$1/run"
[ ! -e "$1/serial.log" ] || mv -f -- "$1/serial.log" "$1/serial.log.old"
cd -- "$1/run"
[ -z "$3" ] || cat >"$3"
shift 2
pid=$(setsid sh -c '
    [ -z "$1" ] || export LD_PRELOAD="./$1"
    shift
    echo "$$" >../pid.new && mv -f ../pid.new ../pid && echo "$$" &&
    exec "$@" </dev/null >>../qemu.log 2>&1
' nestlab-qemu "$@" &)
echo "${pid:?QEMU could not be started}"
"#;

/// Returns the command that starts `qemu` (an argument vector) detached; `owner` is the user and group
/// id as which it will run, `1000:1000`, if that is not the host's user. Unless it `reaches_host`, its user network
/// does not carry the guest to the host's loopback.
pub(super) fn start(
    folder: Folder<'_>,
    owner: Option<&str>,
    reaches_host: bool,
    qemu: &[String],
) -> Command {
    let library = if reaches_host { "" } else { loopback::NAME };
    let command = script(START, "nestlab-start")
        .args([folder.0.as_str(), owner.unwrap_or_default(), library])
        .args(qemu.iter().cloned());
    if reaches_host { command } else { command.stdin(loopback::LIBRARY.to_vec()) }
}

/// Returns the command that tells whether the process `pid` has that file loaded, by its exit code.
pub(super) fn is_kept_from_loopback(pid: u32) -> Command {
    Command::new("grep").args(["-q", loopback::NAME, &format!("/proc/{pid}/maps")])
}

/// Sends the signal `$3` to the process `$1` if the UUID `$2` is among its arguments; succeeds in any case.
const SIGNAL: &str = r#"
tr '\0' '\n' 2>/dev/null <"/proc/$1/cmdline" | grep -qxF -- "$2" && kill -s "$3" "$1"
exit 0
"#;

/// Returns the command that kills the process `pid`, if it is still the VM with `uuid`.
pub(super) fn kill(pid: u32, uuid: Uuid) -> Command {
    script(SIGNAL, "nestlab-kill").args([pid.to_string(), uuid.to_string(), "KILL".to_owned()])
}

/// Returns the command that forgets the last process of a VM that was stopped.
pub(super) fn forget(folder: Folder<'_>) -> Command {
    Command::new("rm").args(["-f", "--", folder.pid().as_str(), folder.alive().as_str()])
}

/// Moves `$1`, which another user made, to `$2` and makes it ours, if it is a plain file.
const TAKE: &str = r#"
umask 077
mv -f -- "$1" "$2.new" || exit 1
if [ ! -L "$2.new" ] && [ -f "$2.new" ] && chown -- "$(id -u):$(id -g)" "$2.new" && chmod 600 "$2.new"; then
    mv -f -- "$2.new" "$2"
else
    rm -f -- "$2.new"
    exit 1
fi
"#;

/// Returns the command that moves the file `from`, which QEMU made, to `to`.
pub(super) fn take(from: &Utf8Path, to: &Utf8Path) -> Command {
    script(TAKE, "nestlab-take").args([from.as_str(), to.as_str()])
}

/// Removes the files `$2…` and what a copy to one of them left that was killed, `run/` in the folder `$1`, and
/// that folder, or prints what else is in there.
const REMOVE: &str = r#"
dir=$1
shift
for file do
    rm -f -- "$file" "$file".*.part || exit 1
done
[ -d "$dir" ] || exit 0
rm -rf -- "$dir/run"
rmdir -- "$dir" 2>/dev/null || find "$dir" -mindepth 1
"#;

/// Returns the command that removes `files` and the folders around them.
pub(super) fn remove<S: AsRef<str>>(folder: Folder<'_>, files: &[S]) -> Command {
    script(REMOVE, "nestlab-remove")
        .arg(folder.0.as_str())
        .args(files.iter().map(|file| file.as_ref().to_owned()))
}

/// Cuts each log in the folder `$1` that has more than 16 MiB down to its last 4 MiB. What a guest writes to its
/// serial port has no limit in QEMU, so every look at the VM sets one; between two looks it can grow. QEMU and
/// the shell that runs it append, wherever the end is, so nothing is written behind a hole.
const CUT_LOGS: &str = r#"
for log in "$1/serial.log" "$1/qemu.log"; do
    size=$(stat -c %s -- "$log" 2>/dev/null) || continue
    [ "$size" -gt 16777216 ] || continue
    (umask 077 && tail -c 4194304 -- "$log" >"$log.$$.part") 2>/dev/null
    : >"$log"
    cat -- "$log.$$.part" >>"$log" 2>/dev/null
    rm -f -- "$log.$$.part"
done
"#;

/// Returns a shell command: the constant `text` under the name `name`; arguments follow.
pub(super) fn script(text: &'static str, name: &str) -> Command {
    Command::new("sh").args(["-c", text, name])
}
