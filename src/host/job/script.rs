//! What runs on a job's host: POSIX shell for dash, bash and busybox. `$1` is always the job's folder.
//!
//! The folder holds `job` (process id, when that process started, boot id), `input`, `output`, and in the
//! end `exit`.

/// Defines `is_over`: whether the job's process is gone, with the reason in `$state`. A process id that
/// another process has by now is told by its start time, and a zombie counts as gone.
macro_rules! is_over {
    () => {
        r#"d=$1
nth20() { echo "$1 ${20}"; }
is_over() {
  read -r pid start boot < "$d/job" || { state=absent; return 0; }
  [ "$boot" = "$(cat /proc/sys/kernel/random/boot_id)" ] || { state=rebooted; return 0; }
  state=gone
  read -r stat < "/proc/$pid/stat" || return 0
  case "$(nth20 ${stat##*") "})" in
    Z*) return 0;;
    *" $start") return 1;;
    *) return 0;;
  esac
}
"#
    };
}

/// Starts a detached shell that runs the script `$2` with the arguments behind it, and waits until there is a
/// job; says `attached` if there was one already. Standard input is the job's.
pub(super) const START: &str = r#"old=$(umask); umask 077
d=$1 script=$2; shift 2
mkdir -p -- "$d" || exit
[ -e "$d/job" ] && { echo attached; exit 0; }
command -v setsid >/dev/null || { echo "setsid is not there" >&2; exit 1; }
cat > "$d/input.$$" && mv -f -- "$d/input.$$" "$d/input" || exit
umask "$old"
setsid sh -c "$script" nestlab-job "$d" "$@" </dev/null >/dev/null 2>&1 &
n=0
while [ "$n" -lt 150 ]; do
  [ -e "$d/job" ] && exit 0
  sleep 0.2 2>/dev/null || sleep 1
  n=$((n + 1))
done
echo "the job did not start" >&2
exit 1"#;

/// The job itself. The link is made by one shell alone, and whole: two that are started at once cannot both
/// be the job.
pub(super) const RUN: &str = r#"old=$(umask); umask 077
nth20() { echo "${20}"; }
d=$1; shift
read -r stat < /proc/$$/stat
echo "$$ $(nth20 ${stat##*") "}) $(cat /proc/sys/kernel/random/boot_id)" > "$d/claim.$$"
ln -- "$d/claim.$$" "$d/job" 2>/dev/null
mine=$?
rm -f -- "$d/claim.$$"
[ "$mine" = 0 ] || exit 0
exec > "$d/output" 2>&1
umask "$old"
while [ "$1" != -- ]; do export "$1"; shift; done; shift
if command -v -- "$1" >/dev/null; then "$@" < "$d/input"; code=$?; else code=missing; fi
umask 077
echo "$code" > "$d/exit.part" && mv -f -- "$d/exit.part" "$d/exit""#;

/// Writes the output from byte `$2` on, as it comes. On standard error it says `on` when it begins, and in
/// the end what has become of the job. Whether it is over is asked before the rest of its output is read, so that nothing is missed.
pub(super) const FOLLOW: &str = concat!(
    is_over!(),
    r#"echo on >&2
exec 3>&2 2>/dev/null
until [ -e "$d/output" ]; do
  is_over && { echo "$state" >&3; exit 0; }
  sleep 0.2 || sleep 1
done
exec 4< "$d/output"
[ "$2" = 0 ] || dd bs="$2" count=1 <&4 >/dev/null
while :; do
  is_over; over=$?
  cat <&4 || exit
  [ "$over" = 0 ] && break
  sleep 0.3 || sleep 1
done
if read -r code < "$d/exit"; then echo "exit $code" >&3; else echo "$state" >&3; fi"#
);

/// Ends the job's process group, if it runs, and removes the folder.
pub(super) const STOP: &str = concat!(
    is_over!(),
    r#"exec 2>/dev/null
if ! is_over; then
  kill -TERM "-$pid"
  n=0
  until is_over || [ "$n" -ge 20 ]; do
    sleep 0.1 || sleep 1
    n=$((n + 1))
  done
  kill -KILL "-$pid"
fi
rm -rf -- "$d""#
);
