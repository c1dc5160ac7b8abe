//! apt in a guest: the commands a user would type, and the patience of one who has seen them fail.
//!
//! Each [`Task`] has a check of its own ([`why`]), since apt exits 0 over mirrors that it could not
//! reach and packages that do nothing.

mod archive;
mod lock;
mod repair;
mod run;
mod space;
mod status;
mod task;
mod trouble;

use std::collections::BTreeMap;
use std::time::Duration;

pub use archive::{MissingVersion, missing};
pub use run::Reader;
pub use task::{Package, Task};

use super::{ExecContext, clock};
use crate::error::{Error, Result};
use crate::host::Command;
use run::AptTranscript;
use trouble::{AptError, AptErrorKind};

/// How often a mirror is asked that does not answer apt, which retries by itself three times.
const MIRROR_ATTEMPTS: u32 = 2;

/// How long a mirror is left alone before it is asked again.
const MIRROR_PAUSE: Duration = Duration::from_secs(3);

/// Remembers for which sources the lists were fetched; apt itself leaves no trace of a success.
const STAMP: &str = "/var/lib/nestlab/apt-sources";

/// Prints the state of the lists: `never`, `changed` or `fetched`.
const LISTS: &str = r#"
[ -r "$1" ] || { echo never; exit; }
now=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | sha256sum)
if [ "$(cat "$1")" = "$now" ]; then echo fetched; else echo changed; fi
"#;

/// Writes the stamp that [`LISTS`] reads.
const STAMP_LISTS: &str = r#"
set -eu
mkdir -p "${1%/*}"
cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | sha256sum >"$1.new"
mv "$1.new" "$1"
"#;

/// The setting that lets apt use a Release file past its Valid-Until; signatures are still checked.
const ACCEPT_STALE: &str = "/etc/apt/apt.conf.d/90nestlab-stale-release";

/// Writes the configuration "$2" to the file "$1".
const CONFIGURE: &str = r#"set -eu; printf '%s\n' "$2" >"$1.new"; mv "$1.new" "$1""#;

/// Returns why `task` is to be done, or `None` if it is done.
pub async fn why(exec: ExecContext<'_>, task: &Task) -> Result<Option<String>> {
    match task {
        Task::Update => why_update(exec).await,
        Task::FullUpgrade => why_upgrade(exec).await,
        Task::Install { packages, .. } | Task::Pin { packages, .. } => {
            why_install(exec, packages).await
        }
    }
}

/// Does `task`: waits for apt's locks, finishes what was interrupted, retries what is transient, and
/// holds the result to [`why`].
///
/// # Errors
/// [`Kind::Network`](crate::Kind) for mirrors, `Busy` for a lock whose holder is stuck, `Untrusted`
/// for an unsigned repository, else `Failed`; with the end of apt's output.
pub async fn apply(exec: ExecContext<'_>, task: &Task) -> Result<()> {
    if *task == Task::Update {
        // The stamp is to say of which sources the lists are: what an earlier run fetched may be of others.
        run::discard(exec, &task.command(exec.patience)).await?;
        clock::set(exec).await?;
    }
    lock::wait(exec).await?;
    if repair::needed(exec).await?.is_some() {
        repair::run(exec).await?;
    }
    if *task != Task::Update {
        space::check(exec, task).await?;
    }
    until_done(exec, task).await?;
    if *task != Task::Update && why(exec, task).await?.is_some() {
        // What succeeded may have been the same command of an earlier run that nobody waited for.
        until_done(exec, task).await?;
    }
    if *task == Task::Update {
        let stamp = Command::new("sh").args(["-c", STAMP_LISTS, "stamp-lists", STAMP]);
        exec.host.check(&stamp.privileged()).await?;
    }
    match why(exec, task).await? {
        None => Ok(()),
        Some(why) => Err(Error::failed(format!("apt-get succeeded, but {why}"))
            .on_host(exec.host.name())
            .with_command(task.command(exec.patience).argv().iter().cloned())),
    }
}

/// Lets apt use mirrors whose Release files are past their Valid-Until. Only for images that say so:
/// it gives up apt's protection against being shown an old state.
pub async fn accept_stale_release(exec: ExecContext<'_>) -> Result<()> {
    let setting = "Acquire::Check-Valid-Until \"false\";";
    let write = Command::new("sh").args(["-c", CONFIGURE, "configure", ACCEPT_STALE, setting]);
    exec.host.check(&write.privileged()).await.map(drop)
}

/// Runs `command` (`dkms`, `dpkg`) as root with the same care as apt: detached from the connection,
/// unattended, its output on the progress line. The outer result is whether it could be run.
pub(super) async fn run_detached(exec: ExecContext<'_>, command: Command) -> Result<Result<()>> {
    let transcript = run::detached(exec, &task::unattended(command, exec.patience)).await?;
    Ok(if transcript.exit.success() { Ok(()) } else { Err(transcript.error(exec)) })
}

async fn why_update(exec: ExecContext<'_>) -> Result<Option<String>> {
    let lists = Command::new("sh").args(["-c", LISTS, "lists", STAMP]);
    let state = exec.host.check(&lists).await?.text();
    Ok(match state.trim() {
        "fetched" => {
            let targets = Command::new("apt-get").args(["indextargets", "--format", "$(FILENAME)"]);
            let empty = exec.host.check(&targets).await?.text().trim().is_empty();
            empty.then(|| "the package lists are gone".to_owned())
        }
        "changed" => Some("the package sources changed since the lists were fetched".to_owned()),
        _ => Some("the package lists were not fetched yet".to_owned()),
    })
}

async fn why_upgrade(exec: ExecContext<'_>) -> Result<Option<String>> {
    let simulation = Task::FullUpgrade.simulation();
    let output = exec.host.run(&simulation).await?;
    if !output.exit.success() {
        // It refuses to look further when something is half installed; apply repairs that.
        let text = output.error_text();
        return match text.lines().find_map(AptError::of).map(|trouble| trouble.cause) {
            Some(AptErrorKind::Interrupted | AptErrorKind::BrokenDependencies) => {
                Ok(Some("packages are half installed".to_owned()))
            }
            _ => Err(output.error(&simulation).on_host(exec.host.name())),
        };
    }
    let text = output.text();
    let count = |word: &str| text.lines().filter(|line| line.starts_with(word)).count();
    let (upgrades, removals, rest) = (count("Inst "), count("Remv "), count("Conf "));
    Ok(match (upgrades, removals) {
        (0, 0) if rest == 0 => None,
        (0, 0) => Some(format!("{rest} packages to configure")),
        (_, 0) => Some(format!("{upgrades} packages to install or upgrade")),
        _ => Some(format!("{upgrades} packages to install or upgrade, {removals} to remove")),
    })
}

async fn why_install(exec: ExecContext<'_>, packages: &[Package]) -> Result<Option<String>> {
    let states = states(exec, packages.iter().map(Package::name)).await?;
    let missing: Vec<_> = packages
        .iter()
        .filter(|package| states.get(package.name()).map(String::as_str) != Some("installed"))
        .map(|package| match states.get(package.name()).map(String::as_str) {
            None | Some("not-installed" | "config-files") => format!("{package} is not installed"),
            Some(state) => format!("{package} is {state}"),
        })
        .collect();
    Ok((!missing.is_empty()).then(|| missing.join(", ")))
}

/// Returns dpkg's word for the state of each of `names` that it has ever heard of, by the name with
/// and without its architecture.
async fn states(
    exec: ExecContext<'_>,
    names: impl Iterator<Item = &str>,
) -> Result<BTreeMap<String, String>> {
    let format = "${Package} ${Architecture} ${db:Status-Status}\n";
    let ask = Command::new("dpkg-query").args(["-W", "-f", format]).args(names);
    // It exits 1 when it has not heard of one of them, and still answers for the others.
    let answer = exec.host.run(&ask).await?.text();
    let mut states = BTreeMap::new();
    for line in answer.lines() {
        if let [package, architecture, state] = line.split(' ').collect::<Vec<_>>()[..] {
            states.insert(package.to_owned(), state.to_owned());
            states.insert(format!("{package}:{architecture}"), state.to_owned());
        }
    }
    Ok(states)
}

/// What was already tried against a trouble; nothing is tried for ever.
#[derive(Default)]
struct Tried {
    mirror: u32,
    repair: bool,
    lists: bool,
    clock: bool,
}

/// Runs the task's command until it succeeds or nothing more can be done about what it complains of.
async fn until_done(exec: ExecContext<'_>, task: &Task) -> Result<()> {
    let command = task.command(exec.patience);
    let mut tried = Tried::default();
    loop {
        let transcript = run::detached(exec, &command).await?;
        let Some(trouble) = transcript.trouble() else {
            return if transcript.exit.success() { Ok(()) } else { Err(transcript.error(exec)) };
        };
        // A warning about one of many lines does not matter once apt has done its work, except for an
        // update, where apt calls a mirror that it could not reach a warning.
        if transcript.exit.success() && *task != Task::Update {
            return Ok(());
        }
        if !try_recover(exec, trouble, &mut tried).await? {
            return Err(transcript.error(exec));
        }
    }
}

/// Does what helps against `trouble`, and returns whether it is worth another try.
async fn try_recover(exec: ExecContext<'_>, trouble: &AptError, tried: &mut Tried) -> Result<bool> {
    let first = |done: &mut bool| !std::mem::replace(done, true);
    match trouble.cause {
        AptErrorKind::Locked => lock::wait(exec).await.map(|()| true),
        AptErrorKind::Interrupted | AptErrorKind::BrokenDependencies
            if first(&mut tried.repair) =>
        {
            repair::run(exec).await.map(|()| true)
        }
        AptErrorKind::NotYetValid if first(&mut tried.clock) => {
            Ok(clock::set(exec).await?.is_some())
        }
        AptErrorKind::OldLists if first(&mut tried.lists) => {
            exec.events.doing("fetching the package lists again, since the mirror has changed");
            let update: AptTranscript =
                run::detached(exec, &Task::Update.command(exec.patience)).await?;
            if update.exit.success() { Ok(true) } else { Err(update.error(exec)) }
        }
        AptErrorKind::Mirror if tried.mirror + 1 < MIRROR_ATTEMPTS => {
            tried.mirror += 1;
            exec.events.doing("waiting before asking the mirror again");
            exec.pause(MIRROR_PAUSE).await?;
            Ok(true)
        }
        _ => Ok(false),
    }
}
