//! `--prepare-host`: the remedies that are safe to apply, shown first, applied when agreed to.
//!
//! Safe is what takes nothing from anybody: packages are installed, modules loaded, a group joined, and
//! nesting switched on in KVM, unless guests run on it.

use super::checks::{self, kvm, processor};
use super::host_report::{HostReport, Prober};
use super::needs::Needs;
use crate::error::{Error, Kind, Result};
use crate::guest::{ExecContext, apt, kernel};
use crate::host::{Command, Exit};
use crate::recipe::HypervisorKind;

/// Something that can be done to make the host fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// What it does, in the imperative.
    pub title: String,
    /// The commands, as they are run; as root where that is needed.
    pub commands: Vec<Command>,
    /// What the user must do afterwards, such as log in anew.
    pub afterwards: Option<String>,
    act: Preparation,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Preparation {
    /// apt, with all its care.
    Apt(apt::Task),
    /// The commands, one after the other.
    Run,
    /// The same, but only if no KVM guest runs right before.
    WithoutKvmGuests,
}

/// The package managers that nestlab knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packager {
    Apt,
    Dnf,
    Pacman,
}

impl Packager {
    fn of(look: &HostReport) -> Option<Packager> {
        let programs = [
            ("/usr/bin/apt-get", Packager::Apt),
            ("/usr/bin/dnf", Packager::Dnf),
            ("/usr/bin/pacman", Packager::Pacman),
        ];
        programs.iter().find(|(path, _)| look.survey.has(path)).map(|(_, packager)| *packager)
    }

    /// Returns the packages of `kind` by their names here; none where its own repositories lack it.
    fn packages(self, kind: HypervisorKind) -> &'static [&'static str] {
        match (self, kind) {
            (Packager::Apt, HypervisorKind::Qemu) => &["qemu-system-x86", "qemu-utils", "ovmf"],
            (Packager::Apt, HypervisorKind::VirtualBox) => &["virtualbox"],
            (Packager::Dnf, HypervisorKind::Qemu) => &["qemu-system-x86", "qemu-img", "edk2-ovmf"],
            // Only in RPM Fusion, which is the user's decision.
            (Packager::Dnf, HypervisorKind::VirtualBox) => &[],
            (Packager::Pacman, HypervisorKind::Qemu) => &["qemu-base", "edk2-ovmf"],
            (Packager::Pacman, HypervisorKind::VirtualBox) => {
                &["virtualbox", "virtualbox-host-modules-arch"]
            }
        }
    }
}

/// Returns what can be done so that the host of `exec` fits `needs`; changes nothing.
///
/// # Errors
/// Only if the host cannot be reached.
pub async fn proposals(
    exec: ExecContext<'_>,
    needs: &Needs,
    prober: &dyn Prober,
) -> Result<Vec<Proposal>> {
    let look = HostReport::take(exec.host, needs, prober).await?;
    Ok(propose(exec, &look, needs))
}

fn propose(exec: ExecContext<'_>, look: &HostReport, needs: &Needs) -> Vec<Proposal> {
    // Without a wish, QEMU: it is in every distribution, and emulates where nothing else can be had.
    let kind = needs.hypervisor.unwrap_or(HypervisorKind::Qemu);
    let mut proposals = Vec::new();
    proposals.extend(install(exec, look, kind));
    if checks::surroundings::is_container(look) {
        // Modules and devices are those of the host around it.
        return proposals;
    }
    if kind == HypervisorKind::Qemu {
        proposals.extend(load_kvm(look));
        if needs.nests {
            proposals.extend(switch_nesting_on(look));
        }
        proposals.extend(join(look, "kvm", "/dev/kvm"));
    } else {
        proposals.extend(load_vboxdrv(look));
    }
    proposals
}

fn install(exec: ExecContext<'_>, look: &HostReport, kind: HypervisorKind) -> Vec<Proposal> {
    if look.probe(kind).is_some_and(Result::is_ok) {
        return Vec::new();
    }
    let Some(packager) = Packager::of(look) else { return Vec::new() };
    let names = packager.packages(kind);
    if names.is_empty() {
        return Vec::new();
    }
    let title = format!("install {}", names.join(" "));
    let argv: &[&str] = match packager {
        Packager::Apt => return apt_install(exec, look, kind, names),
        Packager::Dnf => &["dnf", "--assumeyes", "--setopt=install_weak_deps=False", "install"],
        Packager::Pacman => &["pacman", "--sync", "--needed", "--noconfirm"],
    };
    let command = Command::from_argv(argv.iter().chain(names).copied()).privileged();
    vec![Proposal { title, commands: vec![command], afterwards: None, act: Preparation::Run }]
}

/// Debian and Ubuntu: lists first, and the kernel's headers before a driver is built.
fn apt_install(
    exec: ExecContext<'_>,
    look: &HostReport,
    kind: HypervisorKind,
    names: &[&str],
) -> Vec<Proposal> {
    let package = |name: &&str| name.parse().expect("a literal name of a package");
    let mut tasks = vec![apt::Task::Update];
    let release = look.survey.kernel();
    let makefile = format!("/lib/modules/{release}/build/Makefile");
    if kind == HypervisorKind::VirtualBox && !look.survey.has(&makefile) {
        tasks.extend(kernel::headers(&release));
    }
    tasks.push(apt::Task::install(names.iter().map(package)));
    tasks
        .into_iter()
        .map(|task| Proposal {
            title: task.title(),
            commands: vec![task.command(exec.patience)],
            afterwards: None,
            act: Preparation::Apt(task),
        })
        .collect()
}

fn load_kvm(look: &HostReport) -> Option<Proposal> {
    let module = kvm::module(processor::virtualization_of(&look.survey)?);
    (!look.survey.has("/dev/kvm")).then(|| run(format!("load {module}"), &[&["modprobe", module]]))
}

fn load_vboxdrv(look: &HostReport) -> Option<Proposal> {
    let modules = format!("/lib/modules/{}/", look.survey.kernel());
    let built = look.survey.paths(&modules, "").any(|path| path.contains("/vboxdrv.ko"));
    (built && !look.survey.has("/dev/vboxdrv"))
        .then(|| run("load vboxdrv".to_owned(), &[&["modprobe", "vboxdrv"]]))
}

/// Where the setting is kept for the next boot.
const NESTING: &str = "/etc/modprobe.d/nestlab-kvm.conf";

/// Writes the text "$2" to the file "$1".
const WRITE: &str = r#"set -eu; printf '%s\n' "$2" >"$1.new"; mv "$1.new" "$1""#;

fn switch_nesting_on(look: &HostReport) -> Option<Proposal> {
    let module = kvm::module(processor::virtualization_of(&look.survey)?);
    let setting = look.survey.parameter(module, "nested")?;
    // A module that is built in cannot be loaded anew, and one with guests must not be.
    let users = look.survey.module_users(module)?;
    // Whoever switched it off on purpose has a reason that nestlab does not know.
    let on_purpose = look.survey.switches_off(module, "nested").is_some();
    if matches!(setting.as_str(), "Y" | "1") || users > 0 || on_purpose {
        return None;
    }
    let options = format!("options {module} nested=1");
    let argvs: [&[&str]; 3] = [
        &["sh", "-c", WRITE, "write", NESTING, &options],
        &["modprobe", "-r", module],
        &["modprobe", module],
    ];
    let proposal = run(format!("switch nesting on in {module}"), &argvs);
    Some(Proposal { act: Preparation::WithoutKvmGuests, ..proposal })
}

fn join(look: &HostReport, group: &str, device: &str) -> Option<Proposal> {
    let view = look.survey.has(device) && !look.survey.usable(device);
    let user = kvm::user_name(look)?;
    if !view || kvm::is_root(look) || kvm::in_group(look, group) {
        return None;
    }
    let proposal = run(
        format!("let {user} use {device}"),
        &[&["usermod", "--append", "--groups", group, &user]],
    );
    Some(Proposal { afterwards: Some("log out and in, so that it counts".to_owned()), ..proposal })
}

fn run(title: String, argvs: &[&[&str]]) -> Proposal {
    let command = |argv: &&[&str]| Command::from_argv(argv.iter().copied()).privileged();
    Proposal {
        title,
        commands: argvs.iter().map(command).collect(),
        afterwards: None,
        act: Preparation::Run,
    }
}

/// Applies `proposals` in order. To apply one again does no harm.
///
/// # Errors
/// What the first one that fails says; those behind it are not tried.
pub async fn apply(exec: ExecContext<'_>, proposals: &[Proposal]) -> Result<()> {
    for proposal in proposals {
        exec.proceed()?;
        exec.events.doing(proposal.title.clone());
        match &proposal.act {
            Preparation::Apt(task) => apt::apply(exec, task).await?,
            Preparation::Run => run_all(exec, proposal).await?,
            Preparation::WithoutKvmGuests => {
                refuse_with_kvm_guests(exec).await?;
                run_all(exec, proposal).await?;
            }
        }
    }
    Ok(())
}

async fn run_all(exec: ExecContext<'_>, proposal: &Proposal) -> Result<()> {
    for command in &proposal.commands {
        exec.host.check(command).await.map_err(|error| error.context(&proposal.title))?;
    }
    Ok(())
}

/// Guests may have been started since the proposal was made.
async fn refuse_with_kvm_guests(exec: ExecContext<'_>) -> Result<()> {
    let ask = Command::new("cat").arg("/proc/modules");
    let output = exec.host.run(&ask).await?;
    let modules = output.text();
    let running = modules.lines().any(|line| {
        let fields: Vec<_> = line.split(' ').collect();
        matches!(fields[..], ["kvm_amd" | "kvm_intel", _, users, ..] if users != "0")
    });
    if output.exit != Exit::Code(0) || running {
        return Err(Error::new(
            Kind::HostCannot,
            "KVM guests run on this host: its settings stay as they are",
        )
        .on_host(exec.host.name())
        .hint("end them, then run the same command again"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::test_support::Bench;
    use crate::host::scripted::Scripted;
    use crate::preflight::host_files::HostFiles;
    use crate::preflight::host_report::HostCommand;

    /// An Intel machine that runs KVM as a module, with `users` guests, and what else its files tell.
    fn intel(users: u32, more: &[(&str, &str)]) -> HostFiles {
        let modules = format!("kvm_intel 393216 {users} - Live 0x0\nkvm 1 1 kvm_intel, Live 0x0\n");
        let mut files = vec![
            ("/proc/cpuinfo", "processor : 0\nflags : fpu lm vmx ept\n"),
            ("/proc/modules", &modules),
            ("/proc/sys/kernel/osrelease", "6.12.41+deb13-amd64\n"),
        ];
        files.extend(more);
        HostFiles::of(&files)
    }

    fn titles(look: &HostReport, needs: &Needs) -> Vec<String> {
        let (host, bench) = (Scripted::new("L0"), Bench::new());
        let proposals = propose(bench.exec(&host), look, needs);
        proposals.into_iter().map(|proposal| proposal.title).collect()
    }

    fn needs(kind: HypervisorKind) -> Needs {
        Needs { hypervisor: Some(kind), nests: true, ..Needs::nothing("/") }
    }

    const ANN: &str = "uid=1000(ann) gid=1000(ann) groups=1000(ann),27(sudo)";

    #[test]
    fn each_distribution_gets_its_own_packages() {
        for (program, kind, titles_wanted) in [
            (
                "/usr/bin/apt-get",
                HypervisorKind::VirtualBox,
                &[
                    "update the package lists",
                    "install linux-headers-6.12.41+deb13-amd64",
                    "install virtualbox",
                ][..],
            ),
            ("/usr/bin/dnf", HypervisorKind::Qemu, &["install qemu-system-x86 qemu-img edk2-ovmf"]),
            ("/usr/bin/pacman", HypervisorKind::Qemu, &["install qemu-base edk2-ovmf"]),
            ("/usr/bin/dnf", HypervisorKind::VirtualBox, &[]),
        ] {
            let survey = intel(0, &[(program, ""), ("/dev/kvm", "")]);
            let look = HostReport::of(survey, &[(HostCommand::User, "uid=0(root) gid=0(root)")]);
            assert_eq!(titles(&look, &needs(kind)), titles_wanted, "{program} {kind}");
        }
    }

    #[test]
    fn nesting_is_switched_on_only_where_no_guest_runs() {
        let nested = "/sys/module/kvm_intel/parameters/nested";
        let proposed = |users| {
            let look = HostReport::of(intel(users, &[(nested, "N\n"), ("/dev/kvm", "")]), &[]);
            titles(&look, &needs(HypervisorKind::Qemu))
        };
        assert_eq!(proposed(0), ["switch nesting on in kvm_intel"]);
        assert!(proposed(1).is_empty());
    }

    #[test]
    fn nesting_that_somebody_switched_off_on_purpose_stays_off() {
        let nested = ("/sys/module/kvm_intel/parameters/nested", "N\n");
        let on_purpose = ("/etc/modprobe.d/kvm.conf", "options kvm_intel nested=0\n");
        let look = HostReport::of(intel(0, &[nested, on_purpose, ("/dev/kvm", "")]), &[]);
        assert!(switch_nesting_on(&look).is_none());
    }

    #[test]
    fn a_user_who_may_not_use_kvm_joins_its_group_and_a_missing_module_is_loaded() {
        let look = HostReport::of(intel(0, &[("/dev/kvm", "")]), &[(HostCommand::User, ANN)]);
        assert_eq!(titles(&look, &needs(HypervisorKind::Qemu)), ["let ann use /dev/kvm"]);
        let look = HostReport::of(intel(0, &[]), &[(HostCommand::User, ANN)]);
        assert_eq!(titles(&look, &needs(HypervisorKind::Qemu)), ["load kvm_intel"]);
    }

    #[test]
    fn a_container_touches_no_module_of_its_host() {
        let look = HostReport::of(intel(0, &[("/.dockerenv", "")]), &[(HostCommand::User, ANN)]);
        assert!(titles(&look, &needs(HypervisorKind::Qemu)).is_empty());
    }

    fn nesting() -> Proposal {
        let nested = "/sys/module/kvm_intel/parameters/nested";
        let look = HostReport::of(intel(0, &[(nested, "N\n"), ("/dev/kvm", "")]), &[]);
        switch_nesting_on(&look).expect("is off")
    }

    #[tokio::test]
    async fn a_guest_that_was_started_meanwhile_keeps_kvm_as_it_is() {
        let host = Scripted::new("L0")
            .expect(["cat", "/proc/modules"])
            .prints("kvm_intel 393216 1 - Live 0x0\n");
        let error = apply(Bench::new().exec(&host), &[nesting()]).await.expect_err("refused");
        assert_eq!(error.kind(), Kind::HostCannot);
    }

    #[tokio::test]
    async fn nesting_is_kept_for_the_next_boot_and_switched_on_now() {
        let host = Scripted::new("L0")
            .expect(["cat", "/proc/modules"])
            .prints("kvm_intel 393216 0 - Live 0x0\n")
            .expect_with([NESTING, "options kvm_intel nested=1"])
            .prints("")
            .expect(["modprobe", "-r", "kvm_intel"])
            .prints("")
            .expect(["modprobe", "kvm_intel"])
            .prints("");
        apply(Bench::new().exec(&host), &[nesting()]).await.expect("applies");
    }

    #[tokio::test]
    async fn what_fails_names_the_proposal_and_ends_the_preparation() {
        let host = Scripted::new("L0")
            .expect(["modprobe", "kvm_intel"])
            .fails(1, "modprobe: ERROR: could not insert 'kvm_intel': Operation not supported\n");
        let load = run("load kvm_intel".to_owned(), &[&["modprobe", "kvm_intel"]]);
        let error =
            apply(Bench::new().exec(&host), &[load.clone(), load]).await.expect_err("fails");
        assert!(error.message().starts_with("load kvm_intel"), "{error}");
    }
}
