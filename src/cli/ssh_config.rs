//! `nestlab ssh-config`: the lab's guests for the user's own ssh, at any depth.

use std::fmt::Write as _;
use std::process::ExitCode;

use super::session::LabSession;
use super::{Globals, output};
use crate::error::{Error, Kind, Result};
use crate::host::StreamAddress;
use crate::hypervisor::Power;
use crate::plan::Machine;
use crate::recipe::LabName;

/// Print an OpenSSH configuration that leads into the lab's guests
///
/// Every guest that is up is a host called GUEST.LAB.nestlab; a deeper one is reached through the one
/// around it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nestlab ssh-config > ~/.ssh/nestlab.conf      then: ssh -F ~/.ssh/nestlab.conf l2.quickstart.nestlab")]
pub(crate) struct Args {
    /// The lab [default: the only one]
    lab: Option<LabName>,
}

pub(crate) async fn run(args: Args, globals: &Globals) -> Result<ExitCode> {
    let session = LabSession::open(globals, args.lab.as_ref())?;
    if session.machines.blueprint().l0_ssh.is_some() {
        return Err(Error::new(Kind::Usage, "L0 of this lab is another machine")
            .hint("`nestlab ssh GUEST` leads there"));
    }
    let mut text = String::new();
    let blueprint = session.machines.blueprint();
    // Of several with one name, the alias is the recipe's.
    let named = |machine: &&Machine| {
        blueprint.known(machine.name.as_str()).is_ok_and(|named| named == *machine)
    };
    for machine in blueprint.all().filter(named) {
        match section(&session, machine).await {
            Ok(section) => text.push_str(&section.unwrap_or_default()),
            // What stands on a guest that is not up is not up either.
            Err(error) if error.kind() == Kind::Unreachable => {}
            Err(error) => return Err(error),
        }
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the section of `machine`; `None` if it is not up or has no SSH server. Writing to a `String`
/// cannot fail.
async fn section(session: &LabSession, machine: &Machine) -> Result<Option<String>> {
    let Some(login) = &machine.login else { return Ok(None) };
    let vm = session.machines.vm_handle(machine).await?;
    if vm.inspect().await?.map(|actual| actual.power) != Some(Power::Running) {
        return Ok(None);
    }
    let address = vm.hypervisor.endpoint(&*vm.host, &machine.spec, login.port).await?;
    let StreamAddress::Tcp(host, port) = address else { return Ok(None) };
    let known = session.lab.known_hosts();
    let alias = known.alias(machine.name.as_str());
    let key = login.key.clone().unwrap_or_else(|| session.lab.keys().user_path());
    let mut out = format!("Host {alias}\n");
    let _ = writeln!(out, "  HostName {host}\n  Port {port}\n  User {}", login.user);
    let _ = writeln!(out, "  IdentityFile \"{key}\"\n  IdentitiesOnly yes");
    let pinned = known.name_of(machine.name.as_str(), login.host_key_injected);
    let _ = writeln!(out, "  HostKeyAlias {pinned}\n  UserKnownHostsFile \"{}\"", known.path());
    if let Some(parent) = &machine.parent {
        let _ = writeln!(out, "  ProxyJump {}", known.alias(parent.as_str()));
    }
    out.push('\n');
    Ok(Some(out))
}
