//! Everything that is asked of a host before it is judged; the checks themselves are pure.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;

use super::host_files::HostFiles;
use super::needs::Needs;
use crate::error::{Kind, Result};
use crate::host::{Command, Exit, Host};
use crate::hypervisor::{Drivers, HypervisorKind, Probe};

/// Finds out what a hypervisor on a host can do; KVM by running a micro-guest on it.
#[async_trait]
pub trait Prober: Send + Sync {
    /// Probes `host` for `kind`; the error is [`Kind::HostCannot`] if it is not there or cannot run guests.
    async fn probe(&self, host: &dyn Host, kind: HypervisorKind) -> Result<Probe>;
}

#[async_trait]
impl Prober for Drivers {
    async fn probe(&self, host: &dyn Host, kind: HypervisorKind) -> Result<Probe> {
        self.driver(kind).probe(host).await
    }
}

/// The programs whose answers the checks read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum HostCommand {
    /// The processor's architecture.
    Architecture,
    /// The virtual machine around it, by the processor's own word.
    VirtualMachine,
    /// The container around it.
    Container,
    /// The user and groups.
    User,
    /// Whether commands may run as root.
    Root,
    /// Packages that are half installed.
    Packages,
    /// Whether the firmware knows the key that DKMS signs modules with.
    MokEnrolled,
    /// What the kernel said about virtualization that the firmware locked.
    FirmwareLock,
    /// Free disk space where labs are kept.
    Disk,
    /// Whether the clock is set over the network.
    ClockSynchronized,
    /// The seconds since 1970.
    Clock,
}

/// Prints what the kernel said about a firmware that keeps virtualization off (`arch/x86/kernel/cpu/feat_ctl.c`,
/// `arch/x86/kvm/svm/svm.c`).
const FIRMWARE_LOCK: &str = r#"dmesg 2>/dev/null | grep -iE '(vmx|svm|kvm).*(disabled|not enabled) \(?by bios' | tail -n 1; exit 0"#;

impl HostCommand {
    pub(super) const ALL: [HostCommand; 11] = [
        HostCommand::Architecture,
        HostCommand::VirtualMachine,
        HostCommand::Container,
        HostCommand::User,
        HostCommand::Root,
        HostCommand::Packages,
        HostCommand::MokEnrolled,
        HostCommand::FirmwareLock,
        HostCommand::Disk,
        HostCommand::ClockSynchronized,
        HostCommand::Clock,
    ];

    /// Returns the command that asks it.
    pub(super) fn command(self, needs: &Needs) -> Command {
        let command = |argv: &[&str]| Command::from_argv(argv.iter().copied());
        match self {
            HostCommand::Architecture => command(&["uname", "-m"]),
            HostCommand::VirtualMachine => command(&["systemd-detect-virt", "--vm"]),
            HostCommand::Container => command(&["systemd-detect-virt", "--container"]),
            HostCommand::User => command(&["id"]),
            HostCommand::Root => command(&["true"]).privileged(),
            HostCommand::Packages => command(&["dpkg", "--audit"]),
            HostCommand::MokEnrolled => {
                command(&["mokutil", "--test-key", "/var/lib/dkms/mok.pub"])
            }
            HostCommand::FirmwareLock => command(&["sh", "-c", FIRMWARE_LOCK, "firmware-lock"]),
            HostCommand::Disk => command(&["df", "-Pk", needs.directory.as_str()]),
            HostCommand::ClockSynchronized => {
                command(&["timedatectl", "show", "--property=NTPSynchronized", "--value"])
            }
            HostCommand::Clock => command(&["date", "-u", "+%s"]),
        }
    }
}

/// A program's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProgramAnswer {
    /// Whether it exited with code 0.
    pub(super) success: bool,
    /// What it printed, trimmed.
    pub(super) text: String,
}

/// What a host told.
#[derive(Debug)]
pub(super) struct HostReport {
    /// Its files.
    pub(super) survey: HostFiles,
    /// Whether it is the machine that nestlab runs on.
    pub(super) local: bool,
    /// How far its clock is from this machine's, in seconds.
    pub(super) clock_offset: Option<i64>,
    answers: BTreeMap<HostCommand, ProgramAnswer>,
    probes: BTreeMap<HypervisorKind, Result<Probe>>,
}

impl HostReport {
    /// Asks `host` everything. Only a host that does not answer is an error.
    pub(super) async fn take(
        host: &dyn Host,
        needs: &Needs,
        prober: &dyn Prober,
    ) -> Result<HostReport> {
        let survey = HostFiles::take(host).await?;
        let mut answers = BTreeMap::new();
        let mut clock_offset = None;
        for question in HostCommand::ALL {
            let before = now();
            let Some(answer) = ask(host, &question.command(needs)).await? else { continue };
            if question == HostCommand::Clock {
                let middle = i64::midpoint(before, now());
                clock_offset = answer.text.parse::<i64>().ok().map(|theirs| theirs - middle);
            }
            answers.insert(question, answer);
        }
        let probes = probes(host, &needs.candidates(), prober).await?;
        Ok(HostReport { survey, local: host.is_local(), clock_offset, answers, probes })
    }

    /// Asks `host` only for its files, for what it runs under, and for VirtualBox, if that may run guests on it.
    pub(super) async fn again(
        host: &dyn Host,
        needs: &Needs,
        prober: &dyn Prober,
    ) -> Result<HostReport> {
        let survey = HostFiles::take(host).await?;
        let mut candidates = needs.candidates();
        candidates.retain(|kind| *kind == HypervisorKind::VirtualBox);
        let probes = probes(host, &candidates, prober).await?;
        let around = HostCommand::VirtualMachine;
        let answer = ask(host, &around.command(needs)).await?.map(|answer| (around, answer));
        let (local, answers) = (host.is_local(), answer.into_iter().collect());
        Ok(HostReport { survey, local, clock_offset: None, answers, probes })
    }

    /// Returns a look at these files and answers, for tests.
    #[cfg(test)]
    pub(super) fn of(survey: HostFiles, answers: &[(HostCommand, &str)]) -> HostReport {
        let answers = answers.iter().map(|(question, text)| {
            (*question, ProgramAnswer { success: true, text: (*text).to_owned() })
        });
        HostReport {
            survey,
            local: true,
            clock_offset: None,
            answers: answers.collect(),
            probes: BTreeMap::new(),
        }
    }

    /// Returns what was answered, `None` if the program is not there.
    pub(super) fn answer(&self, question: HostCommand) -> Option<&ProgramAnswer> {
        self.answers.get(&question)
    }

    /// Returns the answer's text, empty if the program is not there.
    pub(super) fn text(&self, question: HostCommand) -> &str {
        self.answer(question).map_or("", |answer| answer.text.as_str())
    }

    /// Returns what the probe for `kind` found.
    pub(super) fn probe(&self, kind: HypervisorKind) -> Option<&Result<Probe>> {
        self.probes.get(&kind)
    }
}

async fn probes(
    host: &dyn Host,
    kinds: &[HypervisorKind],
    prober: &dyn Prober,
) -> Result<BTreeMap<HypervisorKind, Result<Probe>>> {
    let mut probes = BTreeMap::new();
    for kind in kinds {
        match prober.probe(host, *kind).await {
            Err(error) if error.kind() == Kind::Unreachable => return Err(error),
            probe => probes.insert(*kind, probe),
        };
    }
    Ok(probes)
}

/// Returns the program's answer, `None` if it is not there.
async fn ask(host: &dyn Host, command: &Command) -> Result<Option<ProgramAnswer>> {
    match host.run(command).await {
        // What a shell on the way says of a program that it does not find.
        Ok(output) if output.exit == Exit::Code(127) => Ok(None),
        Ok(output) => Ok(Some(ProgramAnswer {
            success: output.exit.success(),
            text: output.text().trim().to_owned(),
        })),
        Err(error) if error.kind() == Kind::Failed => Ok(None),
        Err(error) => Err(error),
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
