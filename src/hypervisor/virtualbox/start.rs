//! Starts a VM and finds out what became of it: running, refused with a reason, or given up on.

use camino::{Utf8Path, Utf8PathBuf};
use semver::Version;

use super::fault::Fault;
use super::host_facts::look;
use super::manage::{Manage, VBoxManageFailure};
use super::settings::{self, Rule};
use super::version::Spelling;
use super::{log, loopback, machine, ports, remedies, serial_log, storage};
use crate::error::{Error, Kind, Result};
use crate::event::{EventSink, Level};
use crate::host::{Command, Host};
use crate::hypervisor::{Actual, GuestSpec, Power, VmOrigin};

/// How many lines of VBox.log are looked at: what tells of an end stands near the end.
const LOG_LINES: &str = "4000";

/// What the guest additions tell of the system that runs. Without a flag that says otherwise, VirtualBox keeps a
/// property when the VM is off.
const OF_THE_SYSTEM: [&str; 2] =
    ["/VirtualBox/GuestInfo/OS/Product", "/VirtualBox/GuestInfo/OS/Release"];

/// Returns the commands that start the VM `vm`, by name or UUID, which is off and has NAT at `adapters`.
///
/// What the last run said of itself goes first, on the serial console and through the guest additions: whoever
/// waits for it must not find it.
pub(crate) fn commands(
    program: &Utf8Path,
    version: &Version,
    spec: &GuestSpec,
    vm: &str,
    adapters: &[u32],
) -> Vec<Command> {
    let manage = |args: &[&str]| Command::new(program.as_str()).args(args.iter().copied());
    let mut commands = Vec::new();
    if let (VmOrigin::Made(_), storage::Invocation::Program(argv)) =
        (&spec.origin, storage::remove(&serial_log(spec)))
    {
        commands.push(Command::from_argv(argv));
    }
    commands.extend(OF_THE_SYSTEM.map(|name| manage(&["guestproperty", "delete", vm, name])));
    let reach = loopback::arguments(spec, version, adapters);
    if !reach.is_empty() {
        commands.push(manage(&["modifyvm", vm]).args(reach));
    }
    commands.push(resume(program, spec, vm));
    commands
}

/// Returns the command that starts the VM `vm`, or lets it go on from where it was saved: what was said before
/// is then still true.
fn resume(program: &Utf8Path, spec: &GuestSpec, vm: &str) -> Command {
    let kind = if spec.gui { "gui" } else { "headless" };
    Command::new(program.as_str()).args(["startvm", vm, "--type", kind])
}

/// Starts the VM, which is off, and returns when it runs.
pub(crate) async fn start(
    manage: &Manage<'_>,
    spec: &GuestSpec,
    actual: &Actual,
    events: &EventSink,
) -> Result<()> {
    let installed = manage.installed();
    let commands = if actual.power == Power::Off {
        keep_ports_free(manage, spec, actual).await?;
        let adapters: Vec<u32> = settings::nat_adapters(&actual.settings).collect();
        commands(&installed.program, &installed.version, spec, &actual.id, &adapters)
    } else {
        vec![resume(&installed.program, spec, &actual.id)]
    };
    for command in commands {
        if let Err(failure) = manage.run_command(&command, events).await {
            return Err(explain(manage, actual, failure).await);
        }
    }
    // Success is not believed: the VM's own state says whether it runs.
    if machine::is_running(manage, &actual.id).await? {
        tell_lost_nesting(manage, spec, actual, events).await;
        tell_open_loopback(manage, spec, actual, events).await?;
        return Ok(());
    }
    match machine::show(manage, &actual.id).await? {
        Some(now) => Err(why_down(manage, spec, &now).await.unwrap_or_else(|| {
            Error::failed(format!("{} was started and is off again", spec.vm))
                .on_host(manage.host().name())
        })),
        None => Err(Error::failed(format!("{} disappeared as it was started", spec.vm))),
    }
}

/// Moves each forward whose port another program has taken while the VM was off: VirtualBox would start
/// the VM without it and say so only in its log.
async fn keep_ports_free(manage: &Manage<'_>, spec: &GuestSpec, actual: &Actual) -> Result<()> {
    let listening = ports::listening(manage.host()).await?;
    let spelling = Spelling::of(&manage.installed().version);
    for forward in &spec.forwards {
        let Some(rule) = settings::rules(&actual.settings).find(|rule| rule.name == forward.name)
        else {
            continue;
        };
        if rule.host_port(forward.guest_port).is_some_and(|port| listening.contains(&port)) {
            let port = ports::free(manage.host()).await?;
            let text = format!("tcp,127.0.0.1,{port},,{}", forward.guest_port);
            let option = spelling.nat_pf(rule.adapter);
            let moved = Rule { text, ..rule.clone() }.argument();
            let args = ["modifyvm", &actual.id, &option, "delete", &rule.name, &option, &moved];
            manage.run(&args).await?;
        }
    }
    Ok(())
}

/// Returns the error for a VM that did not start, with what its log and its host tell about the cause.
async fn explain(manage: &Manage<'_>, actual: &Actual, failure: VBoxManageFailure) -> Error {
    let host = manage.host();
    let logs = logs(host, actual).await;
    let Ok(mut found) = look(host).await else { return failure.error };
    found.around.virtualbox = Some(manage.installed().version.clone());
    let unclear = matches!(failure.fault, Fault::Terminated | Fault::Other | Fault::AccessDenied);
    let fault = match (unclear, found.driver) {
        (true, Some(false)) => Fault::Driver,
        (true, _) => log::fault(&logs).unwrap_or(failure.fault),
        (false, _) => failure.fault,
    };
    let telling = log::telling(&logs).join("\n");
    let mut error = failure.error.with_kind(remedies::kind(fault));
    if !telling.is_empty() {
        error = error.tail(telling.as_bytes());
    }
    remedies::hints(fault, &found.around).into_iter().fold(error, Error::hint)
}

/// Returns the error that tells why the VM is down, if it is down for a reason of its own: a Guru
/// Meditation, or a process that ended.
pub(crate) async fn why_down(
    manage: &Manage<'_>,
    spec: &GuestSpec,
    actual: &Actual,
) -> Option<Error> {
    let aborted = actual.settings.get("VMState").is_some_and(|state| state == "aborted");
    let crashed = matches!(actual.power, Power::Crashed(_));
    if !aborted && !crashed {
        return None;
    }
    let logs = logs(manage.host(), actual).await;
    let what = match log::guru(&logs) {
        Some(guru) => format!("VirtualBox gave up on {}: {guru}", spec.vm),
        None if crashed => format!("VirtualBox gave up on {} (Guru Meditation)", spec.vm),
        None => format!("the process that ran {} has ended", spec.vm),
    };
    let mut error = Error::new(Kind::Failed, what).on_host(manage.host().name());
    let telling = log::telling(&logs).join("\n");
    if !telling.is_empty() {
        error = error.tail(telling.as_bytes());
    }
    if let Some(folder) = machine::log_folder(actual) {
        error = error.hint(format!("the whole log: {}", folder.join("VBox.log")));
    }
    if spec.nests() {
        error = error.hint("nested virtualization is on for this VM: try it with fewer CPUs");
    }
    Some(error)
}

/// Says so when the VM runs, but without the nested virtualization that its settings have.
async fn tell_lost_nesting(
    manage: &Manage<'_>,
    spec: &GuestSpec,
    actual: &Actual,
    events: &EventSink,
) {
    if spec.nests() && log::lost_nesting(&logs(manage.host(), actual).await) {
        let hints = remedies::nested_flag_absent();
        events.notice(Level::Warning, format!("{} runs without svm or vmx: {}", spec.vm, hints[0]));
    }
}

/// Says so when the guest runs and reaches its host's loopback services, though its recipe does not say so.
async fn tell_open_loopback(
    manage: &Manage<'_>,
    spec: &GuestSpec,
    actual: &Actual,
    events: &EventSink,
) -> Result<()> {
    if spec.reach_host || matches!(spec.origin, VmOrigin::Existing { .. }) {
        return Ok(());
    }
    let Some(now) = machine::show(manage, &actual.id).await? else { return Ok(()) };
    if let Some(why) = loopback::open(&manage.installed().version, &now.settings) {
        events.notice(
            Level::Warning,
            format!("{} reaches services on its host's loopback: {why}", spec.vm),
        );
    }
    Ok(())
}

/// Returns the end of the VM's logs, as far as there are any.
async fn logs(host: &dyn Host, actual: &Actual) -> String {
    let Some(folder) = machine::log_folder(actual) else { return String::new() };
    let files = ["VBoxHardening.log", "VBox.log"].map(|name| folder.join(name).into_string());
    let tail = Command::new("tail").args(["-q", "-n", LOG_LINES]).args(files);
    // A log that is not there, or a host that does not answer, leaves the failure without its lines.
    host.run(&tail).await.map(|output| output.text()).unwrap_or_default()
}

/// Returns how VirtualBox executes the running guest, as its log tells: `HM: HMR3Init: AMD-V w/ nested
/// paging`.
pub(crate) async fn execution(host: &dyn Host, actual: &Actual) -> Option<String> {
    let log: Utf8PathBuf = machine::log_folder(actual)?.join("VBox.log");
    let find = Command::new("grep").args(["-E", "HMR3Init|NEMR3Init", log.as_str()]);
    let output = host.run(&find).await.ok()?;
    log::execution(&output.text()).map(str::to_owned)
}
