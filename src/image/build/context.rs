//! What a build works with: this machine's programs, a scratch folder, and where it tells of its
//! progress.

use camino::{Utf8Path, Utf8PathBuf};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Kind, Result};
use crate::event::EventSink;
use crate::host::{Command, Exit, Host, Output, StdStream};

/// Where administrators' programs are, for a user whose `PATH` leaves them out.
const MORE_PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// Prints, of the programs and files given, those that are not there.
const MISSING: &str =
    r#"for name; do command -v "$name" >/dev/null || [ -f "$name" ] || echo "$name"; done"#;

/// A program (or a file, by its path) that a build needs, and the Debian package that brings it.
pub(super) type Need = (&'static str, &'static str);

/// What a build works with.
pub(super) struct BuildContext<'a> {
    /// This machine.
    pub(super) host: &'a dyn Host,
    /// A folder for what is on the way; its owner removes it.
    pub(super) folder: &'a Utf8Path,
    /// Where it tells of its progress.
    pub(super) events: &'a EventSink,
    /// Fires when the build is to end.
    pub(super) cancel: &'a CancellationToken,
}

impl BuildContext<'_> {
    /// Returns the path of `name` in the scratch folder.
    pub(super) fn path(&self, name: &str) -> Utf8PathBuf {
        self.folder.join(name)
    }

    /// Refuses to begin unless everything in `needs` is installed.
    ///
    /// # Errors
    /// [`Kind::HostCannot`], naming all that is missing and what to install.
    pub(super) async fn require(&self, needs: &[Need]) -> Result<()> {
        let command = Command::new("sh")
            .args(["-c", MISSING, "sh"])
            .args(needs.iter().map(|(name, _)| *name));
        let output = self.host.check(&with_path(command)).await?.text();
        let missing: Vec<&str> = output.lines().collect();
        if missing.is_empty() {
            return Ok(());
        }
        let mut packages: Vec<&str> = needs
            .iter()
            .filter(|(name, _)| missing.contains(name))
            .map(|(_, package)| *package)
            .collect();
        packages.dedup();
        Err(Error::new(
            Kind::HostCannot,
            format!("building an image needs what is not installed: {}", missing.join(", ")),
        )
        .on_host(self.host.name())
        .hint(format!("apt-get install --no-install-recommends {}", packages.join(" "))))
    }

    /// Runs `command` in the scratch folder, passing on what it says line by line, and returns its output
    /// and how it ended.
    ///
    /// # Errors
    /// [`Kind::Interrupted`] when the build is to end, and those of [`Host::run_streaming`].
    pub(super) async fn run(&self, command: Command) -> Result<Output> {
        let command = with_path(command);
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut told = 0;
        let mut tell = |stream, bytes: &[u8]| match stream {
            StdStream::Out => stdout.extend_from_slice(bytes),
            StdStream::Err => {
                stderr.extend_from_slice(bytes);
                told += self.tell(&stderr[told..]);
            }
        };
        let exit = tokio::select! {
            exit = self.host.run_streaming(&command, &mut tell) => exit?,
            () = self.cancel.cancelled() => return Err(interrupted()),
        };
        Ok(Output { exit, stdout, stderr })
    }

    /// Runs `command` as [`BuildContext::run`] does; anything but exit code 0 is an error.
    pub(super) async fn check(&self, command: Command) -> Result<Output> {
        let output = self.run(command.clone()).await?;
        match output.exit {
            Exit::Code(0) => Ok(output),
            _ => Err(output.error(&command).on_host(self.host.name())),
        }
    }

    /// Runs `work` on a thread that may block.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if self.cancel.is_cancelled() {
            return Err(interrupted());
        }
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|panic| Error::internal("a build's thread panicked").with_source(panic))?
    }

    /// Passes on the whole lines in `text`; returns how many bytes they are.
    fn tell(&self, text: &[u8]) -> usize {
        let end = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        for line in String::from_utf8_lossy(&text[..end]).lines() {
            self.events.line(line);
            // How mmdebstrap says what it is at: `I: extracting archives...`.
            if let Some(what) = line.strip_prefix("I: ").and_then(|line| line.strip_suffix("...")) {
                self.events.doing(what);
            }
        }
        end
    }
}

/// Returns the command with [`MORE_PATH`] behind the user's own.
fn with_path(command: Command) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:{MORE_PATH}"))
}

fn interrupted() -> Error {
    Error::new(Kind::Interrupted, "the build was interrupted; nothing of it is kept")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::local::Local;

    async fn in_a_workshop<T>(work: impl AsyncFnOnce(BuildContext<'_>) -> T) -> T {
        let folder = tempfile::tempdir().unwrap();
        let (events, cancel) = (EventSink::silent(), CancellationToken::new());
        work(BuildContext {
            host: &Local::new(),
            folder: Utf8Path::from_path(folder.path()).unwrap(),
            events: &events,
            cancel: &cancel,
        })
        .await
    }

    #[tokio::test]
    async fn all_that_is_missing_is_named_at_once_with_one_command_to_install_it() {
        let needs = [
            ("sh", "dash"),
            ("no-such-program", "package-a"),
            ("/no/such/file", "package-b"),
            ("/etc/passwd", "base-passwd"),
        ];
        let error = in_a_workshop(async |shop| shop.require(&needs).await).await.unwrap_err();
        assert_eq!(error.kind(), Kind::HostCannot);
        for name in ["no-such-program", "/no/such/file"] {
            assert!(error.message().contains(name), "{error:?}");
        }
        assert!(error.hints()[0].ends_with("package-a package-b"), "{error:?}");
    }

    #[tokio::test]
    async fn a_build_that_is_to_end_does_not_wait_for_its_program() {
        let error = in_a_workshop(async |shop| {
            shop.cancel.cancel();
            shop.check(Command::new("sleep").arg("1000")).await
        })
        .await
        .unwrap_err();
        assert_eq!(error.kind(), Kind::Interrupted);
    }

    #[tokio::test]
    async fn progress_is_told_line_by_line_as_it_comes() {
        let told = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let sink = told.clone();
        let events =
            EventSink::new(move |event| sink.lock().unwrap().push(event)).for_step("image/x");
        in_a_workshop(async |shop| {
            let shop = BuildContext { events: &events, ..shop };
            let script = "printf 'I: extr' >&2; printf 'acting archives...\nW: odd\n' >&2";
            shop.check(Command::new("sh").args(["-c", script])).await.unwrap();
        })
        .await;
        let told = format!("{:?}", told.lock().unwrap());
        assert!(told.contains("what: \"extracting archives\""), "{told}");
        assert!(told.contains("line: \"W: odd\""), "{told}");
    }
}
