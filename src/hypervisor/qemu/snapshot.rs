//! Snapshots: inside the qcow2 disks, by QEMU while the guest runs, by `qemu-img` while it is off.

use std::time::Duration;

use camino::Utf8PathBuf;
use serde::Deserialize;
use serde_json::{Value, json};

use super::argv::{DISK_NODE, VARIABLES_NODE};
use super::definition::{Definition, DiskFormat, Drive};
use super::folder::Folder;
use super::qmp::Qmp;
use super::scripts;
use super::vm::{self, Vm};
use crate::error::{Error, Kind, Result};
use crate::host::{Command, Host};
use crate::hypervisor::{Firmware, GuestSpec};

/// The id of the one job that runs on a connection.
const JOB: &str = "nestlab-snapshot";

/// What `qemu-img info` tells about a disk.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct DiskInfo {
    /// Its size as a guest sees it, in bytes.
    pub(super) virtual_size: u64,
    #[serde(default)]
    snapshots: Vec<Snapshot>,
    backing_filename: Option<String>,
    #[serde(default)]
    format_specific: FormatSpecific,
}

impl DiskInfo {
    /// Returns the other file that the disk names as part of itself, if it does. A guest that broke into
    /// its QEMU could have written such a name, to be given a file of its host at the next start.
    pub(super) fn other_file(&self) -> Option<&str> {
        self.backing_filename.as_deref().or(self.format_specific.data.data_file.as_deref())
    }
}

#[derive(Debug, Default, Deserialize)]
struct FormatSpecific {
    #[serde(default)]
    data: FormatData,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct FormatData {
    data_file: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Snapshot {
    name: String,
    vm_state_size: u64,
}

/// Reads what `qemu-img` tells about the definition's disk; `None` if it has none.
pub(super) async fn disk_info(
    host: &dyn Host,
    definition: &Definition,
) -> Result<Option<DiskInfo>> {
    let Drive::Disk { path, format } = &definition.drive else { return Ok(None) };
    let command = scripts::disk_info(path, *format);
    let output = host.check(&command).await?;
    serde_json::from_slice(&output.stdout).map(Some).map_err(|error| {
        Error::failed(format!("qemu-img described {path} in words of its own: {error}"))
            .on(host.name())
            .tail(&output.stdout)
    })
}

/// Returns the names of the VM's snapshots, oldest first.
pub(super) async fn names(host: &dyn Host, spec: &GuestSpec) -> Result<Vec<String>> {
    let Some(vm) = Vm::look(host, spec).await? else { return Ok(Vec::new()) };
    let info = disk_info(host, &vm.definition).await?;
    Ok(info.into_iter().flat_map(|info| info.snapshots).map(|snapshot| snapshot.name).collect())
}

/// Takes the snapshot `name`, with the guest's memory if it runs.
pub(super) async fn take(host: &dyn Host, spec: &GuestSpec, name: &str) -> Result<()> {
    let vm = defined(host, spec).await?;
    let nodes = nodes(&vm.definition, spec).map_err(|error| error.on(host.name()))?;
    if names(host, spec).await?.iter().any(|known| known == name) {
        return Err(Error::failed(format!("{} has a snapshot called `{name}` already", spec.vm))
            .on(host.name()));
    }
    if vm.pid.is_some() {
        let mut qmp = vm.qmp(host, &spec.directory).await?;
        return job(&mut qmp, "snapshot-save", name, &nodes)
            .await
            .map_err(|error| error.on(host.name()));
    }
    for node in &nodes {
        host.check(&offline("-c", name, node)).await?;
    }
    Ok(())
}

/// Restores the snapshot `name`. A running guest runs on as it did then, if it ran; else the VM is off.
pub(super) async fn restore(host: &dyn Host, spec: &GuestSpec, name: &str) -> Result<Restored> {
    let vm = defined(host, spec).await?;
    let nodes = nodes(&vm.definition, spec).map_err(|error| error.on(host.name()))?;
    let info = disk_info(host, &vm.definition).await?;
    let snapshot = info
        .into_iter()
        .flat_map(|info| info.snapshots)
        .find(|snapshot| snapshot.name == name)
        .ok_or_else(|| {
            Error::failed(format!("{} has no snapshot called `{name}`", spec.vm)).on(host.name())
        })?;
    if vm.pid.is_none() {
        for node in &nodes {
            host.check(&offline("-a", name, node)).await?;
        }
        return Ok(Restored::Done);
    }
    if snapshot.vm_state_size == 0 {
        return Ok(Restored::NeedsPowerOff);
    }
    let mut qmp = vm.qmp(host, &spec.directory).await?;
    job(&mut qmp, "snapshot-load", name, &nodes).await.map_err(|error| error.on(host.name()))?;
    qmp.execute("cont", Value::Null).await.map_err(|error| error.on(host.name()))?;
    Ok(Restored::Done)
}

/// What [`restore`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Restored {
    /// The snapshot is restored.
    Done,
    /// The snapshot holds no memory, so the running guest must be off for it.
    NeedsPowerOff,
}

async fn defined(host: &dyn Host, spec: &GuestSpec) -> Result<Vm> {
    Vm::look(host, spec)
        .await?
        .ok_or_else(|| Error::failed(format!("{} is not defined", spec.vm)).on(host.name()))
}

/// A disk that snapshots are kept in.
#[derive(Debug, PartialEq, Eq)]
struct Node {
    name: &'static str,
    path: Utf8PathBuf,
}

/// Returns the disks that belong to a snapshot, the one that holds the memory first.
fn nodes(definition: &Definition, spec: &GuestSpec) -> Result<Vec<Node>> {
    let Drive::Disk { path, format: DiskFormat::Qcow2 } = &definition.drive else {
        return Err(Error::new(
            Kind::HostCannot,
            format!("{} has no qcow2 disk, so QEMU can take no snapshot of it", spec.vm),
        )
        .hint("give the guest an image whose disk is qcow2"));
    };
    let mut nodes = vec![Node { name: DISK_NODE, path: path.clone() }];
    if definition.firmware == Firmware::Efi {
        let path = Folder(&spec.directory).efi_variables();
        nodes.push(Node { name: VARIABLES_NODE, path });
    }
    Ok(nodes)
}

fn offline(what: &str, name: &str, node: &Node) -> Command {
    Command::new("qemu-img").args(["snapshot", what, name, "--", node.path.as_str()])
}

/// Runs a snapshot job to its end. QEMU accepts the command at once and may fail later, so only the
/// concluded job tells; the job is dismissed either way.
async fn job(qmp: &mut Qmp, command: &str, name: &str, nodes: &[Node]) -> Result<()> {
    let devices: Vec<_> = nodes.iter().map(|node| node.name).collect();
    let arguments = json!({ "job-id": JOB, "tag": name, "vmstate": DISK_NODE, "devices": devices });
    qmp.execute(command, arguments).await?;
    let mut silence = Silence::default();
    loop {
        let jobs = qmp.execute("query-jobs", Value::Null).await?;
        let job = jobs
            .as_array()
            .and_then(|jobs| jobs.iter().find(|job| job["id"] == JOB))
            .ok_or_else(|| Error::failed(format!("{command} `{name}` vanished")))?;
        if job["status"] == "concluded" {
            let outcome = match job["error"].as_str() {
                Some(error) => Err(Error::failed(format!("{command} `{name}` failed: {error}"))),
                None => Ok(()),
            };
            qmp.execute("job-dismiss", json!({ "id": JOB })).await?;
            return outcome;
        }
        if silence.since(job["current-progress"].as_u64()) > vm::qmp_silence() {
            return Err(Error::failed(format!("{command} `{name}` makes no progress")));
        }
        tokio::time::sleep(vm::LOOK_AGAIN).await;
    }
}

/// How long a job's progress has been the same.
#[derive(Debug)]
struct Silence {
    progress: Option<u64>,
    since: std::time::Instant,
}

impl Default for Silence {
    fn default() -> Self {
        Silence { progress: None, since: std::time::Instant::now() }
    }
}

impl Silence {
    fn since(&mut self, progress: Option<u64>) -> Duration {
        if progress != self.progress {
            *self = Silence { progress, ..Silence::default() };
        }
        self.since.elapsed()
    }
}
