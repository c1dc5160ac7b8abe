//! Rebooting a guest, and knowing that it did.
//!
//! SSH often answers before the old system has stopped it, so an answer proves nothing: only a new
//! boot id does.

use std::time::Duration;

use super::ExecContext;
use super::liveness::LivenessMonitor;
use super::readiness::VmView;
use crate::error::{Error, Kind, Result};
use crate::host::{Command, Host};

/// How long a guest may show no sign of life while it reboots, on bare metal.
const SILENCE: Duration = Duration::from_secs(120);

/// Returns the id that the guest's kernel chose when it started.
pub async fn boot_id(host: &dyn Host) -> Result<String> {
    let ask = Command::new("cat").arg("/proc/sys/kernel/random/boot_id");
    let id = host.check(&ask).await?.text().trim().to_owned();
    if id.is_empty() {
        return Err(Error::failed("the kernel has no boot id")
            .on_host(host.name())
            .with_command(ask.argv().iter().cloned()));
    }
    Ok(id)
}

/// Reboots the guest and returns its new boot id once it answers again. `view` shows signs of life
/// while it cannot answer.
///
/// # Errors
/// [`Kind::NotReady`] if it shows no sign of life, [`Kind::HostCannot`] for the machine that nestlab
/// runs on.
pub async fn reboot(exec: ExecContext<'_>, view: Option<VmView<'_>>) -> Result<String> {
    reboot_within(exec, view, exec.patience.limit(SILENCE)).await
}

async fn reboot_within(
    exec: ExecContext<'_>,
    view: Option<VmView<'_>>,
    silence: Duration,
) -> Result<String> {
    if exec.host.is_local() {
        return Err(Error::new(Kind::HostCannot, "this machine must be rebooted")
            .on_host(exec.host.name())
            .hint("reboot it yourself, then run the same command again"));
    }
    let before = boot_id(exec.host).await?;
    exec.events.doing("rebooting");
    ask_for_it(exec).await?;
    let mut watch = LivenessMonitor::new(exec, view, silence, "waiting for the reboot");
    loop {
        watch.rest().await?;
        let state = match watch.until(boot_id(exec.host)).await {
            Ok(id) if id != before => return Ok(id),
            Ok(_) => "it has not stopped yet",
            Err(error) if error.kind() == Kind::Unreachable => "it does not answer yet",
            Err(error) => return Err(error),
        };
        watch.turn(format!("waiting for the reboot: {state}"), state.to_owned()).await?;
    }
}

/// Tells the guest to reboot. That the connection drops over it is no error.
async fn ask_for_it(exec: ExecContext<'_>) -> Result<()> {
    for program in [&["systemctl", "reboot"][..], &["reboot"]] {
        let command = Command::from_argv(program.iter().copied()).privileged();
        match exec.host.run(&command).await {
            Ok(output) if output.exit.success() => return Ok(()),
            // The signal of a shutdown that is faster than the answer.
            Ok(output) if matches!(output.exit, crate::host::Exit::Signal(_)) => return Ok(()),
            Err(error) if error.kind() == Kind::Unreachable => return Ok(()),
            Ok(_) | Err(_) => {}
        }
    }
    Err(Error::failed("neither systemctl nor reboot could reboot it")
        .on_host(exec.host.name())
        .with_command(["systemctl", "reboot"]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::test_support::Bench;
    use crate::host::Local;
    use crate::host::scripted::Scripted;

    const ID: [&str; 2] = ["cat", "/proc/sys/kernel/random/boot_id"];

    #[tokio::test]
    async fn an_answer_of_the_system_that_is_going_down_is_not_taken_for_the_new_one() {
        let host = Scripted::new("l1")
            .expect(ID)
            .prints("old\n")
            .expect(["systemctl", "reboot"])
            .loses_the_connection()
            .expect(ID)
            .prints("old\n")
            .expect(ID)
            .loses_the_connection()
            .expect(ID)
            .prints("new\n");
        let bench = Bench::new();
        assert_eq!(reboot(bench.exec(&host), None).await.expect("comes back"), "new");
        assert_eq!(
            bench.doings(),
            [
                "rebooting",
                "waiting for the reboot: it has not stopped yet",
                "waiting for the reboot: it does not answer yet"
            ]
        );
    }

    #[tokio::test]
    async fn a_guest_without_systemd_is_rebooted_too() {
        let host = Scripted::new("l2")
            .expect(ID)
            .prints("old\n")
            .expect(["systemctl", "reboot"])
            .cannot_be_found()
            .expect(["reboot"])
            .prints("")
            .expect(ID)
            .prints("new\n");
        reboot(Bench::new().exec(&host), None).await.expect("comes back");
    }

    #[tokio::test]
    async fn a_guest_that_does_not_come_back_is_not_waited_for_for_ever() {
        let host = Scripted::new("l1")
            .expect(ID)
            .prints("old\n")
            .expect(["systemctl", "reboot"])
            .prints("")
            .expect(ID)
            .loses_the_connection()
            .expect(ID)
            .loses_the_connection();
        let bench = Bench::new();
        let error = reboot_within(bench.exec(&host), None, Duration::ZERO).await.expect_err("gone");
        assert_eq!(error.kind(), Kind::NotReady);
    }

    #[tokio::test]
    async fn the_machine_that_nestlab_runs_on_is_never_rebooted() {
        let host = Local::new();
        let error = reboot(Bench::new().exec(&host), None).await.expect_err("refused");
        assert_eq!(error.kind(), Kind::HostCannot);
    }
}
