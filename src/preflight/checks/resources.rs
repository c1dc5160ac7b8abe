//! Cores, memory and disk against what a recipe takes, across all levels. The rules are the budget's; here
//! each is asked alone, with everything else in abundance, so that each has its own finding.

use super::not_applicable;
use crate::error::Error;
use crate::host::facts;
use crate::preflight::host_report::{HostCommand, HostReport};
use crate::preflight::needs::Needs;
use crate::preflight::{Finding, Verdict};
use crate::recipe::budget::{self, Budget, Resources};
use crate::recipe::{Cpus, HypervisorKind, Mebibytes, Platform};

/// More than any recipe asks for.
const ABUNDANT_CORES: u32 = 1 << 20;
const ABUNDANT_MIB: u64 = 1 << 40;

pub(super) fn cpus(look: &HostReport, needs: &Needs) -> Finding {
    let id = "cpus";
    let source = "/proc/cpuinfo";
    let cpuinfo = look.survey.text(source).unwrap_or_default();
    let Some(cores) = facts::physical_cores(&cpuinfo).and_then(Cpus::new) else {
        return not_applicable(id, "the number of cores is not told").from(source);
    };
    let resources = Resources { cores, ..abundant(needs) };
    let plural = if cores == Cpus::ONE { "" } else { "s" };
    judge(id, needs, &resources, format!("{cores} core{plural}"), |budget| {
        let guests = budget.guests.iter();
        let guests: Vec<_> = guests.map(|g| format!("{} gets {}", g.name, g.cpus.value)).collect();
        guests.join(", ")
    })
    .from(source)
}

pub(super) fn memory(look: &HostReport, needs: &Needs) -> Finding {
    let id = "memory";
    let source = "/proc/meminfo";
    let meminfo = look.survey.text(source).unwrap_or_default();
    let Some(memory) = facts::memory(&meminfo).and_then(Mebibytes::new) else {
        return not_applicable(id, "the size of the memory is not told").from(source);
    };
    let resources = Resources { memory, ..abundant(needs) };
    judge(id, needs, &resources, rounded(memory), |budget| {
        let outer = budget.guests.iter().filter(|guest| guest.level == 1);
        let taken: u64 =
            outer.filter_map(|guest| guest.memory.value.known()).map(Mebibytes::get).sum();
        format!("the guests take {}", Mebibytes::new(taken).map(rounded).unwrap_or_default())
    })
    .from(source)
}

pub(super) fn disk(look: &HostReport, needs: &Needs) -> Finding {
    let id = "disk";
    let source = format!("df {}", needs.directory);
    let Some(free) = free_disk(look.text(HostCommand::Disk)) else {
        return not_applicable(id, "the free space is not told").from(source);
    };
    let resources = Resources { free_disk: Some(free), ..abundant(needs) };
    judge(id, needs, &resources, format!("{} free", rounded(free)), |_| "enough".to_owned())
        .from(source)
}

fn judge(
    id: &'static str,
    needs: &Needs,
    resources: &Resources,
    there: String,
    enough: impl Fn(&Budget) -> String,
) -> Finding {
    let Some(demand) = &needs.recipe else {
        return Finding::new(id, Verdict::Ok, there);
    };
    match budget::derive(&demand.recipe, resources, &demand.images) {
        Ok(budget) => Finding::new(id, Verdict::Ok, format!("{there}: {}", enough(&budget))),
        Err(error) => refused(id, &there, &error),
    }
}

fn refused(id: &'static str, there: &str, error: &Error) -> Finding {
    let problem = error.problems().first();
    let message = problem.map_or(error.message(), |problem| problem.message.as_str());
    let finding = Finding::new(id, Verdict::Fail, format!("{there}: {message}"));
    match problem.and_then(|problem| Some((problem, problem.help.as_ref()?))) {
        Some((problem, help)) => {
            finding.remedy(format!("{}:{}: {help}", problem.file, problem.line))
        }
        None => finding,
    }
}

/// Returns a machine that has enough of everything.
pub(super) fn abundant(needs: &Needs) -> Resources {
    Resources {
        cores: Cpus::new(ABUNDANT_CORES).unwrap_or(Cpus::ONE),
        memory: Mebibytes::new(ABUNDANT_MIB).unwrap_or(Mebibytes::gib(1 << 20)),
        free_disk: None,
        networks: Vec::new(),
        hypervisor: needs.hypervisor.unwrap_or(HypervisorKind::Qemu),
        platform: Platform::Linux,
        host_key: None,
    }
}

fn free_disk(df: &str) -> Option<Mebibytes> {
    let line = df.lines().nth(1)?;
    let kib: u64 = line.split_whitespace().nth(3)?.parse().ok()?;
    Mebibytes::new(kib / 1024)
}

fn rounded(amount: Mebibytes) -> String {
    match amount.get() {
        mib if mib >= 10 * 1024 => format!("{} GiB", mib / 1024),
        mib if mib >= 1024 => format!("{:.1} GiB", mib as f64 / 1024.0),
        mib => format!("{mib} MiB"),
    }
}
