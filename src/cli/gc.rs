//! `nestlab gc`: what labs that are gone left behind.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde::Serialize;

use super::{Globals, output};
use crate::error::{Kind, Result};
use crate::hypervisor::{Drivers, FoundVm, HypervisorRef};
use crate::lab::leftovers::{self, StrayVm, StrayVms};
use crate::lab::{Labs, Resource};
use crate::plan::l0;
use crate::recipe::HypervisorKind;

/// Find what labs that are gone left behind: VMs whose lab's files are deleted
///
/// Without --yes it only looks. With it, the VMs that a lab of this state directory made, and whose lab is
/// gone, are removed. A lab that is there is never touched: one whose last run was interrupted or failed is
/// listed, since `nestlab up` goes on with it. VMs of other state directories and users are listed as such.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nestlab gc              lists what is left
  nestlab gc --yes        removes the VMs whose lab is gone")]
pub(crate) struct Args {
    /// Remove the VMs whose lab is gone
    #[arg(long, short)]
    yes: bool,
}

#[derive(Serialize)]
struct GcAnswer {
    schema: u32,
    labs: Vec<UnfinishedView>,
    /// VMs on this machine that a lab of this state directory made, and whose lab is gone.
    strays: Vec<StrayView>,
    /// VMs on this machine that look like a lab's and were not made in this state directory.
    others: Vec<OtherView>,
}

/// A lab whose last run did not end well.
#[derive(Serialize)]
struct UnfinishedView {
    lab: String,
    /// How its last run ended.
    how: String,
    resources: Vec<Resource>,
    /// Always `false`: only `nestlab destroy` removes a lab.
    destroyed: bool,
}

#[derive(Serialize)]
struct StrayView {
    hypervisor: HypervisorKind,
    vm: String,
    /// The lab that made it.
    lab: String,
    removed: bool,
}

#[derive(Serialize)]
struct OtherView {
    hypervisor: HypervisorKind,
    vm: String,
}

pub(crate) async fn run(args: Args, globals: &Globals) -> Result<ExitCode> {
    let labs = Labs::at(&globals.state_dir);
    labs.sweep()?;
    let drivers = Drivers::new();
    let (mut strays, mut others) = (Vec::new(), Vec::new());
    for hypervisor in [HypervisorKind::VirtualBox, HypervisorKind::Qemu] {
        let driver = drivers.driver(hypervisor);
        let found = look(&labs, &driver).await?;
        for stray in found.ours {
            let removed = args.yes && remove(&labs, &driver, &stray).await?;
            let (vm, lab) = (stray.vm.name, stray.lab.to_string());
            strays.push(StrayView { hypervisor, vm, lab, removed });
        }
        others.extend(found.others.into_iter().map(|vm| OtherView { hypervisor, vm }));
    }
    let unfinished = leftovers::unfinished(&labs)?.into_iter();
    let labs = unfinished.map(|unfinished| UnfinishedView {
        lab: unfinished.lab.name().to_string(),
        how: unfinished.how(),
        resources: unfinished.resources,
        destroyed: false,
    });
    let answer = GcAnswer { schema: 1, labs: labs.collect(), strays, others };
    if globals.json {
        output::print_json(&answer)?;
    } else {
        output::print(&text(&answer))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns what `driver` has on this machine that belongs to no lab.
async fn look(labs: &Labs, driver: &HypervisorRef) -> Result<StrayVms> {
    let vms: Vec<FoundVm> = match driver.vms(&*l0::local()).await {
        // It is not installed here, so it has no VMs.
        Err(error) if error.kind() == Kind::HostCannot => Vec::new(),
        vms => vms?,
    };
    leftovers::strays(labs, vms)
}

/// Removes the VM; not, if somebody made its lab anew since.
async fn remove(labs: &Labs, driver: &HypervisorRef, stray: &StrayVm) -> Result<bool> {
    let (lab, lock) = match labs.hold_the_place_of(&stray.lab) {
        Err(error) if matches!(error.kind(), Kind::Busy | Kind::Usage) => return Ok(false),
        held => held?,
    };
    let still = look(labs, driver).await?.ours.contains(stray);
    if still {
        driver.forget(&*l0::local(), &stray.vm).await?;
    }
    lab.remove(lock)?;
    Ok(still)
}

/// Returns the answer for a person. Writing to a `String` cannot fail.
fn text(answer: &GcAnswer) -> String {
    let mut out = String::new();
    for lab in &answer.labs {
        let _ = writeln!(out, "{}: {}", lab.lab, lab.how);
        for resource in &lab.resources {
            let _ = writeln!(out, "  {resource}");
        }
        let end = format!("`nestlab destroy {}` removes it", lab.lab);
        let _ = writeln!(out, "  `nestlab up` goes on with it; {end}");
    }
    for stray in &answer.strays {
        let (vm, hypervisor, lab) = (&stray.vm, stray.hypervisor, &stray.lab);
        let end = if stray.removed { "removed" } else { "`nestlab gc --yes` removes it" };
        let _ = writeln!(out, "{vm}: a VM in {hypervisor} of the lab {lab}, which is gone; {end}");
    }
    for OtherView { hypervisor, vm } in &answer.others {
        let _ = writeln!(
            out,
            "{vm}: a VM in {hypervisor}, not made by a lab in this state folder; another may own it"
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
        let lab = UnfinishedView {
            lab: "demo".into(),
            how: "interrupted at 2026-01-01T00:00:00Z".into(),
            resources: vec![Resource::Directory { host: "L0".into(), path: "/x".into() }],
            destroyed: false,
        };
        let hypervisor = HypervisorKind::Qemu;
        let stray = |removed| StrayView {
            hypervisor,
            vm: "nestlab-gone-l1".into(),
            lab: "gone".into(),
            removed,
        };
        let answer = GcAnswer {
            schema: 1,
            labs: vec![lab],
            strays: vec![stray(false), stray(true)],
            others: vec![OtherView { hypervisor, vm: "nestlab-x-l1".into() }],
        };
        assert_eq!(
            text(&answer),
            "demo: interrupted at 2026-01-01T00:00:00Z\n  directory /x on L0\n  \
               `nestlab up` goes on with it; `nestlab destroy demo` removes it\n\
             nestlab-gone-l1: a VM in qemu of the lab gone, which is gone; `nestlab gc --yes` removes it\n\
             nestlab-gone-l1: a VM in qemu of the lab gone, which is gone; removed\n\
             nestlab-x-l1: a VM in qemu, not made by a lab in this state folder; another may own it\n"
        );
        let none = GcAnswer { labs: Vec::new(), strays: Vec::new(), others: Vec::new(), ..answer };
        assert_eq!(text(&none), "nothing is left behind\n");
    }
}
