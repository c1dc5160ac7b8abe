//! The one place that runs VBoxManage: its warnings are stripped, its failures told apart, and what is
//! only in the way for a moment is tried again.

use std::time::Duration;

use backon::{ConstantBuilder, Retryable};
use camino::{Utf8Path, Utf8PathBuf};
use semver::Version;

use super::fault::{Fault, complaints, fault};
use super::{parse, remedies, version};
use crate::error::{Error, Kind, Result};
use crate::event::EventSink;
use crate::host::{Command, Host, Output, StdStream, TimeoutScale};

/// VirtualBox as it was found on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// The program that is run.
    pub program: Utf8PathBuf,
    /// Its version.
    pub version: Version,
    /// The version as the program printed it.
    pub version_text: String,
}

/// Where VBoxManage lies when it is not on PATH: Debian and Oracle's packages, a self-extracting
/// installation, macOS, Windows, and Windows as seen from WSL.
const USUAL_PLACES: [&str; 8] = [
    "VBoxManage",
    "/usr/bin/VBoxManage",
    "/usr/lib/virtualbox/VBoxManage",
    "/opt/VirtualBox/VBoxManage",
    "/usr/local/bin/VBoxManage",
    "/Applications/VirtualBox.app/Contents/MacOS/VBoxManage",
    r"C:\Program Files\Oracle\VirtualBox\VBoxManage.exe",
    "/mnt/c/Program Files/Oracle/VirtualBox/VBoxManage.exe",
];

/// Names the program on L0, ahead of PATH and the usual places.
pub(crate) const PROGRAM_VARIABLE: &str = "NESTLAB_VBOXMANAGE";

/// Finds VBoxManage on `host`: by `wanted` alone if it is given, else on PATH, else in the usual places.
pub(crate) async fn find(host: &dyn Host, wanted: Option<&Utf8Path>) -> Result<Installed> {
    if let Some(program) = wanted {
        return version_of(host, program).await?.ok_or_else(|| {
            Error::new(Kind::HostCannot, format!("{program} is not VBoxManage, or cannot be run"))
                .on_host(host.name())
                .hint(format!("{PROGRAM_VARIABLE} names it"))
        });
    }
    for program in USUAL_PLACES {
        if let Some(installed) = version_of(host, Utf8Path::new(program)).await? {
            return Ok(installed);
        }
    }
    Err(Error::new(Kind::HostCannot, "VirtualBox is not installed")
        .on_host(host.name())
        .hint("on Debian sid: apt install --no-install-recommends virtualbox")
        .hint(format!("if it is at an unusual place: {PROGRAM_VARIABLE}=/path/to/VBoxManage")))
}

/// Returns what `program` says it is; `None` if there is no such program, or it is none.
async fn version_of(host: &dyn Host, program: &Utf8Path) -> Result<Option<Installed>> {
    let version = Command::new(program.as_str()).arg("--version").silence(SILENCE);
    let output = match host.run(&version).await {
        Ok(output) => output,
        Err(error) if error.kind() == Kind::Failed => return Ok(None),
        Err(error) => return Err(error),
    };
    let text = output.text();
    let text = parse::without_warnings(&text).trim();
    Ok(version::parse(text).filter(|_| output.exit.success()).map(|version| Installed {
        program: program.to_owned(),
        version,
        version_text: text.to_owned(),
    }))
}

/// A failed run of VBoxManage: what it means, and the error that tells it.
#[derive(Debug)]
pub(crate) struct VBoxManageFailure {
    /// What it means.
    pub fault: Fault,
    /// The error.
    pub error: Error,
}

impl From<VBoxManageFailure> for Error {
    fn from(failure: VBoxManageFailure) -> Error {
        failure.error
    }
}

/// How long VBoxManage may say nothing on bare metal. It is silent for minutes while it writes a large disk;
/// what says nothing for so long hangs, and would hang for ever.
const SILENCE: Duration = Duration::from_secs(30 * 60);

/// How much of what it says is looked at for how far it is, in bytes.
const PROGRESS: usize = 64;

/// VBoxManage on a host.
pub(crate) struct Manage<'a> {
    host: &'a dyn Host,
    installed: Installed,
    patience: TimeoutScale,
}

impl<'a> Manage<'a> {
    /// Returns VBoxManage as `installed` on `host`.
    pub(crate) fn new(host: &'a dyn Host, installed: Installed) -> Self {
        Manage { host, installed, patience: TimeoutScale::NATIVE }
    }

    /// Waits as long as a host deserves that is as slow as `patience` says.
    pub(crate) fn patient(self, patience: TimeoutScale) -> Self {
        Manage { patience, ..self }
    }

    /// Returns its host.
    pub(crate) fn host(&self) -> &'a dyn Host {
        self.host
    }

    /// Returns what was found.
    pub(crate) fn installed(&self) -> &Installed {
        &self.installed
    }

    /// Returns the command that runs it with `args`.
    pub(crate) fn command<S: Into<String>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        Command::new(self.installed.program.as_str()).args(args)
    }

    /// Runs it with `args` and returns what it printed, without warnings.
    pub(crate) async fn run(&self, args: &[&str]) -> Result<String, VBoxManageFailure> {
        self.run_command(&self.command(args.iter().copied()), &EventSink::silent()).await
    }

    /// Runs `command`, which may be VBoxManage or a small program beside it; tells `events` how far it is.
    ///
    /// What failed because VBoxSVC was just starting or ending, or because a VM's session was still
    /// closing, is tried again for a while: neither has changed anything.
    pub(crate) async fn run_command(
        &self,
        command: &Command,
        events: &EventSink,
    ) -> Result<String, VBoxManageFailure> {
        let patiently =
            ConstantBuilder::default().with_delay(Duration::from_millis(500)).with_max_times(20);
        (async || self.run_once(command, events).await)
            .retry(patiently)
            .when(|failure| matches!(failure.fault, Fault::Service | Fault::Locked))
            .await
    }

    async fn run_once(
        &self,
        command: &Command,
        events: &EventSink,
    ) -> Result<String, VBoxManageFailure> {
        let mut last = Vec::new();
        let mut watch = |stream, bytes: &[u8]| {
            if stream == StdStream::Err {
                last.extend_from_slice(bytes);
                last.drain(..last.len().saturating_sub(PROGRESS));
                if let Some(percent) = percent(&last) {
                    events.doing(format!("{percent} %"));
                }
            }
        };
        let command = match command.silence_limit() {
            Some(_) => command.clone(),
            None => command.clone().silence(self.patience.limit(SILENCE)),
        };
        let ran = self.host.run_watched(&command, &mut watch).await;
        let output = ran.map_err(|error| VBoxManageFailure { fault: Fault::Other, error })?;
        match fault(&output) {
            None => Ok(parse::without_warnings(&output.text()).to_owned()),
            Some(fault) => Err(self.failure(&command, &output, fault)),
        }
    }

    fn failure(&self, command: &Command, output: &Output, fault: Fault) -> VBoxManageFailure {
        let said = complaints(&output.error_text());
        let first = said.lines().map(message).find(|line| !line.is_empty());
        let program = Utf8Path::new(&command.argv()[0]).file_name().unwrap_or("VBoxManage");
        let what = command.argv().get(1).map_or("", String::as_str);
        let told = crate::event::printable(first.unwrap_or("no reason given"));
        let error = Error::new(remedies::kind(fault), format!("{program} {what}: {told}"))
            .on_host(self.host.name())
            .with_command(command.argv().iter().cloned())
            .tail(said.as_bytes());
        VBoxManageFailure { fault, error }
    }
}

/// Returns a line of VBoxManage's complaints without its prefix.
fn message(line: &str) -> &str {
    let prefixes = ["VBoxManage: error: ", "VBoxManage: fatal error: ", "VBoxManage.exe: error: "];
    prefixes.iter().find_map(|prefix| line.strip_prefix(prefix)).unwrap_or(line).trim()
}

/// Returns the last percentage in progress such as `0%...10%...20%`.
fn percent(stderr: &[u8]) -> Option<u8> {
    let text = String::from_utf8_lossy(&stderr[stderr.len().saturating_sub(PROGRESS)..]);
    let (before, _) = text.rsplit_once('%')?;
    let digits = before.len() - before.bytes().rev().take_while(u8::is_ascii_digit).count();
    before[digits..].parse().ok().filter(|percent| *percent <= 100)
}

#[cfg(test)]
mod tests {
    use super::super::transcript::{printed, transcript};
    use super::*;
    use crate::host::scripted::Scripted;

    fn installed() -> Installed {
        Installed {
            program: "VBoxManage".into(),
            version: Version::new(7, 2, 22),
            version_text: "7.2.22_Debianr175245".into(),
        }
    }

    #[tokio::test]
    async fn it_is_found_on_path_and_its_warnings_are_not_its_version() {
        let host =
            Scripted::new("l1").expect(["VBoxManage", "--version"]).prints(printed("version"));
        assert_eq!(find(&host, None).await.unwrap(), installed());
    }

    #[tokio::test]
    async fn a_usual_place_is_tried_when_path_has_none() {
        let host = Scripted::new("l1")
            .expect(["VBoxManage", "--version"])
            .cannot_be_found()
            .expect(["/usr/bin/VBoxManage", "--version"])
            .fails(127, "sh: 1: /usr/bin/VBoxManage: not found\n")
            .expect(["/usr/lib/virtualbox/VBoxManage", "--version"])
            .prints("7.0.20r163906\n");
        let found = find(&host, None).await.unwrap();
        assert_eq!(found.program, "/usr/lib/virtualbox/VBoxManage");
    }

    #[tokio::test]
    async fn the_named_program_is_the_only_one_tried() {
        let host = Scripted::new("L0").expect(["/opt/x", "--version"]).prints("GNU x 1.0\n");
        let error = find(&host, Some("/opt/x".into())).await.unwrap_err();
        assert_eq!(error.kind(), Kind::HostCannot);
        assert!(error.report().contains(PROGRAM_VARIABLE), "{error:?}");
    }

    #[tokio::test]
    async fn where_there_is_none_the_error_says_how_to_get_it() {
        let mut host = Scripted::new("l1");
        for place in USUAL_PLACES {
            host = host.expect([place, "--version"]).cannot_be_found();
        }
        let error = find(&host, None).await.unwrap_err();
        assert_eq!((error.kind(), error.host()), (Kind::HostCannot, Some("l1")));
        assert!(error.report().contains("--no-install-recommends virtualbox"), "{error:?}");
    }

    #[tokio::test]
    async fn an_unreachable_host_is_not_taken_for_one_without_virtualbox() {
        let host = Scripted::new("l1").expect(["VBoxManage", "--version"]).loses_the_connection();
        assert_eq!(find(&host, None).await.unwrap_err().kind(), Kind::Unreachable);
    }

    #[tokio::test]
    async fn a_failure_tells_its_first_complaint_the_command_and_the_host() {
        let recorded = transcript("no-such-vm").output;
        let host = Scripted::new("l1").expect(["VBoxManage", "showvminfo", "nope"]).answers(
            1,
            recorded.stdout,
            recorded.stderr,
        );
        let manage = Manage::new(&host, installed());
        let failure = manage.run(&["showvminfo", "nope"]).await.unwrap_err();
        assert_eq!(failure.fault, Fault::NotFound);
        let report = failure.error.report();
        assert!(
            report.starts_with(
                "error: VBoxManage showvminfo: Could not find a registered machine named 'nope'\n"
            ),
            "{report}"
        );
        assert!(report.contains("host:    l1") && report.contains("VBoxManage showvminfo nope"));
    }

    #[tokio::test]
    async fn a_session_that_is_still_closing_is_waited_for() {
        let locked = "VBoxManage: error: The machine 'x' is already locked for a session (or being \
            unlocked)\nVBoxManage: error: Details: code VBOX_E_INVALID_OBJECT_STATE (0x80bb0007)\n";
        let host = Scripted::new("l1")
            .expect(["VBoxManage", "modifyvm", "x"])
            .fails(1, locked)
            .expect(["VBoxManage", "modifyvm", "x"])
            .prints("");
        assert!(Manage::new(&host, installed()).run(&["modifyvm", "x"]).await.is_ok());
    }

    #[test]
    fn progress_is_read_from_dots_and_percents() {
        assert_eq!(percent(b"0%...10%...20%"), Some(20));
        assert_eq!(percent(b"0%...10%...20%..."), Some(20));
        assert_eq!(percent("Interpreting é…\n0%".as_bytes()), Some(0));
        assert_eq!(percent(b"100 MB"), None);
    }
}
