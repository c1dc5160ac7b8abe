//! Snapshots: inside the qcow2 disks, by QEMU while the guest runs, by `qemu-img` while it is off.

use std::time::Duration;

use camino::Utf8PathBuf;
use serde::Deserialize;
use serde_json::{Value, json};

use super::argv::{DISK_NODE, VARIABLES_NODE};
use super::definition::{Definition, Drive, QemuDiskFormat};
use super::qmp::Qmp;
use super::scripts;
use super::vm::{LOOK_AGAIN, QemuVm, Vm};
use crate::error::{Error, Kind, Result};
use crate::host::{Command, Host};
use crate::hypervisor::Firmware;

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
            .on_host(host.name())
            .tail(&output.stdout)
    })
}

/// Returns the names of the VM's snapshots, oldest first.
pub(super) async fn names(vm_site: QemuVm<'_>) -> Result<Vec<String>> {
    let Some(vm) = vm_site.look().await? else { return Ok(Vec::new()) };
    Ok(snapshots(vm_site, &vm).await?.into_iter().map(|snapshot| snapshot.name).collect())
}

async fn snapshots(vm_site: QemuVm<'_>, vm: &Vm) -> Result<Vec<Snapshot>> {
    let info = disk_info(vm_site.host, &vm.definition).await?;
    Ok(info.map(|info| info.snapshots).unwrap_or_default())
}

/// Takes the snapshot `name`, with the guest's memory if it runs.
pub(super) async fn take(vm_site: QemuVm<'_>, name: &str) -> Result<()> {
    let vm = vm_site.defined().await?;
    let nodes = nodes(vm_site, &vm.definition)?;
    if snapshots(vm_site, &vm).await?.iter().any(|known| known.name == name) {
        return Err(vm_site.failure(format_args!("has a snapshot called `{name}` already")));
    }
    if let Some(pid) = vm.pid {
        return job(vm_site, &mut vm_site.qmp(pid).await?, "snapshot-save", name, &nodes).await;
    }
    for node in &nodes {
        vm_site.host.check(&offline("-c", name, node)).await?;
    }
    Ok(())
}

/// Restores the snapshot `name`. A running guest runs on as it did then, if it ran; else the VM is off.
pub(super) async fn restore(vm_site: QemuVm<'_>, name: &str) -> Result<Restored> {
    let vm = vm_site.defined().await?;
    let nodes = nodes(vm_site, &vm.definition)?;
    let known = snapshots(vm_site, &vm).await?;
    let snapshot = known
        .iter()
        .find(|snapshot| snapshot.name == name)
        .ok_or_else(|| vm_site.failure(format_args!("has no snapshot called `{name}`")))?;
    let Some(pid) = vm.pid else {
        for node in &nodes {
            vm_site.host.check(&offline("-a", name, node)).await?;
        }
        return Ok(Restored::Done);
    };
    if snapshot.vm_state_size == 0 {
        return Ok(Restored::NeedsPowerOff);
    }
    let mut qmp = vm_site.qmp(pid).await?;
    job(vm_site, &mut qmp, "snapshot-load", name, &nodes).await?;
    qmp.execute("cont", Value::Null).await.map_err(|error| error.on_host(vm_site.host.name()))?;
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

/// A disk that snapshots are kept in.
#[derive(Debug, PartialEq, Eq)]
struct SnapshotDisk {
    name: &'static str,
    path: Utf8PathBuf,
}

/// Returns the disks that belong to a snapshot, the one that holds the memory first.
fn nodes(vm_site: QemuVm<'_>, definition: &Definition) -> Result<Vec<SnapshotDisk>> {
    let Drive::Disk { path, format: QemuDiskFormat::Qcow2 } = &definition.drive else {
        return Err(vm_site
            .failure("has no qcow2 disk, so QEMU can take no snapshot of it")
            .with_kind(Kind::HostCannot)
            .hint("give the guest an image whose disk is qcow2"));
    };
    let mut nodes = vec![SnapshotDisk { name: DISK_NODE, path: path.clone() }];
    if definition.firmware == Firmware::Efi {
        nodes.push(SnapshotDisk { name: VARIABLES_NODE, path: vm_site.folder().efi_variables() });
    }
    Ok(nodes)
}

fn offline(what: &str, name: &str, node: &SnapshotDisk) -> Command {
    Command::new("qemu-img").args(["snapshot", what, name, "--", node.path.as_str()])
}

/// Runs a snapshot job to its end. QEMU accepts the command at once and may fail later, so only the
/// concluded job tells; the job is dismissed either way.
async fn job(
    vm_site: QemuVm<'_>,
    qmp: &mut Qmp,
    command: &str,
    name: &str,
    nodes: &[SnapshotDisk],
) -> Result<()> {
    let devices: Vec<_> = nodes.iter().map(|node| node.name).collect();
    let arguments = json!({ "job-id": JOB, "tag": name, "vmstate": DISK_NODE, "devices": devices });
    let here = |error: Error| error.on_host(vm_site.host.name());
    qmp.execute(command, arguments).await.map_err(here)?;
    let mut silence = Silence::default();
    loop {
        let jobs = qmp.execute("query-jobs", Value::Null).await.map_err(here)?;
        let job = jobs
            .as_array()
            .and_then(|jobs| jobs.iter().find(|job| job["id"] == JOB))
            .ok_or_else(|| vm_site.failure(format_args!("lost its job {command} `{name}`")))?;
        if job["status"] == "concluded" {
            qmp.execute("job-dismiss", json!({ "id": JOB })).await.map_err(here)?;
            return match job["error"].as_str() {
                Some(why) => {
                    Err(vm_site.failure(format_args!("failed at {command} `{name}`: {why}")))
                }
                None => Ok(()),
            };
        }
        if silence.since(job["current-progress"].as_u64()) > vm_site.qmp_silence() {
            return Err(vm_site.failure(format_args!("makes no progress with {command} `{name}`")));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
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
