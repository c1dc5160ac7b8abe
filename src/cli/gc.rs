//! `nestlab gc`: what labs left behind that nobody works on any more.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde::Serialize;

use super::session::command_line;
use super::{Globals, destroy, output};
use crate::error::{Kind, Result};
use crate::hypervisor::Drivers;
use crate::lab::leftovers::{self, Unfinished};
use crate::lab::{Labs, Resource};
use crate::plan::l0;
use crate::recipe::HypervisorKind;

/// Find what labs left behind: runs that were cut off, and VMs of labs that are gone
///
/// Without --yes it only looks. With it, the labs that are listed as not finished are destroyed; a VM that
/// belongs to no lab is never touched, since nothing proves who made it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nestlab gc              lists what is left
  nestlab gc --yes        destroys the labs whose last run did not end well")]
pub(crate) struct Args {
    /// Destroy the labs that are listed
    #[arg(long, short)]
    yes: bool,
}

#[derive(Serialize)]
struct Answer {
    schema: u32,
    labs: Vec<LabView>,
    /// VMs on this machine that look like a lab's and belong to none.
    strays: Vec<Stray>,
}

#[derive(Serialize)]
struct LabView {
    lab: String,
    /// How its last run ended.
    how: String,
    resources: Vec<Resource>,
    destroyed: bool,
}

#[derive(Serialize)]
struct Stray {
    hypervisor: HypervisorKind,
    vm: String,
}

pub(crate) async fn run(args: Args, globals: &Globals) -> Result<ExitCode> {
    let labs = Labs::at(&globals.state_dir);
    labs.sweep()?;
    let strays = strays(&labs).await?;
    let mut views = Vec::new();
    for unfinished in leftovers::unfinished(&labs)? {
        let (lab, how) = (unfinished.lab.name().to_string(), unfinished.how());
        let resources = unfinished.resources.clone();
        let destroyed = args.yes && destroyed(unfinished, globals).await?;
        views.push(LabView { lab, how, resources, destroyed });
    }
    let answer = Answer { schema: 1, labs: views, strays };
    if globals.json {
        output::print_json(&answer)?;
    } else {
        output::print(&text(&answer))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Destroys the lab; not, if somebody began to work on it since.
async fn destroyed(unfinished: Unfinished, globals: &Globals) -> Result<bool> {
    let lock = match unfinished.lab.lock(command_line()) {
        // Somebody works on it, or it is of another machine.
        Err(other) if matches!(other.kind(), Kind::Busy | Kind::HostCannot) => return Ok(false),
        lock => lock?,
    };
    destroy::remove(unfinished.lab, lock, globals).await?;
    Ok(true)
}

async fn strays(labs: &Labs) -> Result<Vec<Stray>> {
    let (host, drivers) = (l0::local(), Drivers::new());
    let mut found = Vec::new();
    for hypervisor in [HypervisorKind::VirtualBox, HypervisorKind::Qemu] {
        let vms = match drivers.driver(hypervisor).list(&*host).await {
            // It is not installed here, so it has no VMs.
            Err(error) if error.kind() == Kind::HostCannot => continue,
            vms => vms?,
        };
        let strays = leftovers::strays(labs, vms)?.into_iter();
        found.extend(strays.map(|vm| Stray { hypervisor, vm }));
    }
    Ok(found)
}

/// Returns the answer for a person. Writing to a `String` cannot fail.
fn text(answer: &Answer) -> String {
    let mut out = String::new();
    for lab in &answer.labs {
        let end = if lab.destroyed { "; destroyed" } else { "" };
        let _ = writeln!(out, "{}: {}{end}", lab.lab, lab.how);
        if lab.destroyed {
            continue;
        }
        for resource in &lab.resources {
            let _ = writeln!(out, "  {resource}");
        }
        let _ = writeln!(out, "  nestlab up finishes it, nestlab destroy {} removes it", lab.lab);
    }
    for stray in &answer.strays {
        let (vm, hypervisor) = (&stray.vm, stray.hypervisor);
        let _ = writeln!(
            out,
            "{vm}: a VM in {hypervisor} that belongs to no lab here; it is yours to remove"
        );
    }
    if out.is_empty() {
        out.push_str("nothing is left behind\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_said_with_what_to_do_about_it() {
        let lab = |destroyed| LabView {
            lab: "demo".into(),
            how: "interrupted at 2026-01-01T00:00:00Z".into(),
            resources: vec![Resource::Directory { host: "L0".into(), path: "/x".into() }],
            destroyed,
        };
        let stray = Stray { hypervisor: HypervisorKind::Qemu, vm: "nestlab-gone-l1".into() };
        let answer = Answer { schema: 1, labs: vec![lab(false), lab(true)], strays: vec![stray] };
        assert_eq!(
            text(&answer),
            "demo: interrupted at 2026-01-01T00:00:00Z\n  directory /x on L0\n  \
               nestlab up finishes it, nestlab destroy demo removes it\n\
             demo: interrupted at 2026-01-01T00:00:00Z; destroyed\n\
             nestlab-gone-l1: a VM in qemu that belongs to no lab here; it is yours to remove\n"
        );
        let none = Answer { schema: 1, labs: Vec::new(), strays: Vec::new() };
        assert_eq!(text(&none), "nothing is left behind\n");
    }
}
