//! One VM on one host: its definition, its process, and the way to its QMP.

use std::time::Duration;

use uuid::Uuid;

use super::definition::Definition;
use super::folder::Folder;
use super::qmp::Qmp;
use super::{argv, scripts};
use crate::error::{Error, Kind, Result};
use crate::host::{Exit, Host, StreamAddress, TimeoutScale};
use crate::hypervisor::{FoundVm, GuestSpec, Power};

/// How long QEMU may be silent on QMP. On bare metal it answers within milliseconds; on a host that is itself
/// emulated, and busy, it was seen to take more than five seconds.
const QMP_SILENCE: Duration = Duration::from_secs(30);

/// How often a condition is looked at that cannot be waited for otherwise.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Where a VM is or is to be, and how slow things are there.
#[derive(Debug, Clone, Copy)]
pub(super) struct QemuVm<'a> {
    /// Its host.
    pub(super) host: &'a dyn Host,
    /// What it is to be.
    pub(super) spec: &'a GuestSpec,
    /// How slow guests are on that host; QEMU itself is no slower.
    pub(super) patience: TimeoutScale,
}

/// A VM that is defined.
#[derive(Debug)]
pub(super) struct Vm {
    /// Its definition as written.
    pub(super) definition: Definition,
    /// Its process, if there is one and it is this VM's.
    pub(super) pid: Option<u32>,
    /// Whether its last process went without ending itself.
    pub(super) died: bool,
}

/// A VM's process, as far as there is one.
#[derive(Debug, PartialEq, Eq)]
struct QemuProcess {
    pid: Option<u32>,
    died: bool,
}

impl<'a> QemuVm<'a> {
    /// Returns the VM's folder.
    pub(super) fn folder(self) -> Folder<'a> {
        Folder(&self.spec.directory)
    }

    /// Returns a failure of the VM: its name and `what` is the matter with it.
    pub(super) fn failure(self, what: impl std::fmt::Display) -> Error {
        Error::failed(format!("{} {what}", self.spec.vm)).on_host(self.host.name())
    }

    /// Returns how long QEMU may be silent on QMP.
    pub(super) fn qmp_silence(self) -> Duration {
        self.patience.limit(QMP_SILENCE)
    }

    /// Looks at the VM; `None` if it is not defined.
    pub(super) async fn look(self) -> Result<Option<Vm>> {
        let command = scripts::look(self.folder());
        let output = self.host.run(&command).await?;
        match output.exit {
            Exit::Code(0) => {}
            Exit::Code(scripts::NOT_DEFINED) => return Ok(None),
            _ => return Err(output.error(&command).on_host(self.host.name())),
        }
        let mut vm = parse(&output.stdout)
            .map_err(|error| error.context(&self.spec.directory).on_host(self.host.name()))?;
        vm.definition.move_into(&self.spec.directory);
        Ok(Some(vm))
    }

    /// Returns the VM's process id and the UUID that it runs under, also if its definition is missing or
    /// damaged.
    pub(super) async fn process(self) -> Result<Option<(u32, Uuid)>> {
        // A UUID comes from the folder that the VM was made in, which may have been moved since: what is
        // written down goes before what follows from the folder's place now.
        if let Ok(Some(vm)) = self.look().await {
            return Ok(vm.pid.map(|pid| (pid, vm.definition.uuid)));
        }
        let uuid = self.spec.uuid();
        let printed = self.host.check(&scripts::process(self.folder())).await?.stdout;
        let parts = printed.split(|byte| *byte == 0);
        Ok(process(parts, &uuid.to_string()).pid.map(|pid| (pid, uuid)))
    }

    /// Returns whether `pid` is still the VM's process.
    pub(super) async fn is_alive(self, pid: u32) -> Result<bool> {
        Ok(self.process().await?.is_some_and(|(running, _)| running == pid))
    }

    /// Looks at the VM, which must be defined.
    pub(super) async fn defined(self) -> Result<Vm> {
        self.look().await?.ok_or_else(|| self.failure("is not defined"))
    }

    /// Looks at the VM, which must run, and returns it with its process id.
    pub(super) async fn running(self) -> Result<(Vm, u32)> {
        match self.look().await? {
            Some(vm) if let Some(pid) = vm.pid => Ok((vm, pid)),
            _ => Err(self.failure("is not running").with_kind(Kind::Unreachable)),
        }
    }

    /// Opens the QMP of the VM's process `pid`.
    pub(super) async fn qmp(self, pid: u32) -> Result<Qmp> {
        let socket = StreamAddress::Unix(self.folder().socket(argv::QMP_SOCKET, pid));
        let stream = self.host.open_stream(&socket).await?;
        Qmp::connect(stream, self.qmp_silence())
            .await
            .map_err(|error| error.on_host(self.host.name()))
    }
}

/// Returns the VMs among what [`scripts::arguments_of_all`] printed: those of a process with a name
/// (`-name guest=`, up to the comma that ends it) and a UUID among its arguments.
pub(super) fn found(printed: &[u8]) -> Vec<FoundVm> {
    let parts: Vec<&[u8]> = printed.split(|byte| *byte == 0).collect();
    parts.split(|part| part.is_empty()).filter_map(one_found).collect()
}

/// Returns the VM of one process: its id, then its arguments.
fn one_found(process: &[&[u8]]) -> Option<FoundVm> {
    let (pid, arguments) = process.split_first()?;
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(str::to_owned);
    let option = |name: &[u8]| {
        let value = arguments.windows(2).find(|pair| pair[0] == name)?[1];
        text(value)
    };
    let name = option(b"-name")?.strip_prefix("guest=")?.replace(",,", "\0");
    let name = name.split(',').next()?.replace('\0', ",");
    let uuid = Some(option(b"-uuid")?.parse().ok()?);
    let id = text(pid)?;
    id.bytes().all(|byte| byte.is_ascii_digit()).then_some(FoundVm { name, id, uuid, file: None })
}

/// Returns what [`scripts::look`] printed: the definition, and the VM's process.
fn parse(printed: &[u8]) -> Result<Vm> {
    let mut parts = printed.split(|byte| *byte == 0);
    let definition = Definition::parse(parts.next().unwrap_or_default())?;
    let QemuProcess { pid, died } = process(parts, &definition.uuid.to_string());
    Ok(Vm { definition, pid, died })
}

/// Returns what [`scripts::process`] printed: whether QEMU left its mark, a process id, that process's
/// arguments. The process is the VM's only if it has the VM's UUID among them; any other has got the id
/// after QEMU ended.
fn process<'a>(mut parts: impl Iterator<Item = &'a [u8]>, uuid: &str) -> QemuProcess {
    let marked = parts.next() == Some(b"alive");
    let pid = parts.next().and_then(|text| std::str::from_utf8(text).ok()?.trim().parse().ok());
    let arguments: Vec<&[u8]> = parts.collect();
    let ours = arguments.windows(2).any(|pair| pair == [b"-uuid", uuid.as_bytes()]);
    QemuProcess { pid: pid.filter(|_| ours), died: marked && !ours }
}

/// Returns the state that QEMU calls `status`: the words of `RunState` in its QAPI schema.
pub(super) fn power(status: &str) -> Power {
    match status {
        "running" => Power::Running,
        "paused" | "suspended" => Power::Paused,
        "internal-error" => Power::Crashed("QEMU internal error".to_owned()),
        "guest-panicked" => Power::Crashed("the guest's kernel panicked".to_owned()),
        "io-error" => Power::Crashed("the disk could not be read or written".to_owned()),
        other => Power::Changing(other.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::qemu::test_support::spec;

    fn printed(mark: &str, pid: &str, arguments: &[&str]) -> Vec<u8> {
        let definition = Definition::of(&spec()).expect("a disk can be defined");
        let mut bytes = definition.write(Folder("/x".into())).input().to_vec();
        for part in [mark, pid].into_iter().chain(arguments.iter().copied()) {
            bytes.push(0);
            bytes.extend_from_slice(part.as_bytes());
        }
        bytes.push(0);
        bytes
    }

    #[test]
    fn the_vms_that_run_are_told_by_their_arguments() {
        const UUID: &str = "6b1f3c52-0c1e-4a55-9d0f-a3b67e6d5c22";
        let printed = format!(
            "41\0sh\0-c\0x\0\x0042\0qemu-system-x86_64\0-name\0guest=nestlab-a,,b-l1,x=y\0-uuid\0{UUID}\0\0\
             43\0find\0-name\0*.rs\0-uuid\0\x0044\0vi\0-name\0guest=x\0-uuid\0u\0\0"
        );
        let vms = found(printed.as_bytes());
        let names: Vec<_> = vms.iter().map(|vm| (vm.name.as_str(), vm.id.as_str())).collect();
        assert_eq!(names, [("nestlab-a,b-l1", "42")]);
        assert_eq!(vms[0].uuid, Some(UUID.parse().expect("a UUID")));
    }

    #[test]
    fn a_process_is_the_vms_only_with_the_vms_uuid() {
        let uuid = Definition::of(&spec()).expect("a disk can be defined").uuid.to_string();
        let ours = printed("alive", "42", &["qemu-system-x86_64", "-name", "x", "-uuid", &uuid]);
        let ours = parse(&ours).expect("parses");
        assert_eq!((ours.pid, ours.died), (Some(42), false));
        for others in [
            printed("alive", "42", &["sshd"]),
            printed("alive", "42", &["qemu", "-uuid", "6b1f3c52-0c1e-4a55-9d0f-a3b67e6d5c22"]),
            printed("alive", "42", &["grep", &uuid]),
            printed("alive", "42", &[]),
        ] {
            let others = parse(&others).expect("parses");
            assert_eq!((others.pid, others.died), (None, true));
        }
        let ended = parse(&printed("", "42", &["sshd"])).expect("parses");
        assert_eq!((ended.pid, ended.died), (None, false));
    }

    #[test]
    fn a_vm_that_qemu_gave_up_on_has_crashed() {
        assert_eq!(power("running"), Power::Running);
        assert!(matches!(power("internal-error"), Power::Crashed(_)));
        assert!(matches!(power("guest-panicked"), Power::Crashed(_)));
        assert_eq!(power("prelaunch"), Power::Changing("prelaunch".to_owned()));
    }
}
