//! `nestlab status`: the labs of this machine, and how they are now.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use console::style;
use serde::Serialize;

use super::session::{LabSession, silent};
use super::{Globals, output};
use crate::error::{Error, Kind, Result};
use crate::host::TimeoutScale;
use crate::hypervisor::{Actual, Power, Probe};
use crate::lab::{Lab, LabState, Labs};
use crate::plan::{Blueprint, Machine, VmHandle, provenance, recovery};
use crate::recipe::LabName;
use crate::report::humanize::one_line;

/// How long a host may take to tell of one guest, on bare metal.
const ONE_LOOK: Duration = Duration::from_secs(30);

/// Show the labs of this machine and how their guests are
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this lab
    lab: Option<LabName>,
}

#[derive(Serialize)]
struct StatusAnswer {
    schema: u32,
    labs: Vec<LabStatus>,
}

#[derive(Serialize)]
struct LabStatus {
    lab: String,
    recipe: String,
    /// The process that works on it now.
    busy: Option<u32>,
    /// What is wrong with its records, or keeps other commands from working on it here.
    warnings: Vec<String>,
    guests: Vec<GuestStatus>,
}

#[derive(Serialize)]
struct GuestStatus {
    name: String,
    level: u32,
    parent: String,
    /// Whether the recipe has it no more, or not there.
    orphaned: bool,
    /// The machine that it is on, if that is the lab's L0 no more: `this machine` or `user@host`.
    former_l0: Option<String>,
    /// `running`, `off`, `absent`, `paused`, `saved`, `crashed`, `unknown` or the hypervisor's own word.
    state: String,
    /// Whether evidence was seen that it is up, since it was last started.
    ready: bool,
    /// What that evidence was.
    evidence: Option<String>,
    /// Where its SSH server is reached, as its parent sees it.
    address: Option<String>,
    /// Its addresses in the networks that it shares with guests beside it, by network.
    networks: BTreeMap<String, String>,
    /// What differs between the image that its disk was made from and the one that the recipe wants.
    outdated: Option<String>,
    /// What somebody else changed of its VM; `up` changes it back.
    drift: Vec<Drift>,
}

/// A setting of a VM that is not as the lab left it.
#[derive(Serialize)]
struct Drift {
    setting: String,
    /// What it is; `null`: it is not there.
    actual: Option<String>,
    wanted: String,
}

/// What a look at a guest's VM tells.
struct ObservedVm {
    state: String,
    address: Option<String>,
    drift: Vec<Drift>,
}

impl ObservedVm {
    fn unknown(state: String) -> Self {
        ObservedVm { state, address: None, drift: Vec::new() }
    }
}

pub(crate) async fn run(args: Args, globals: &Globals) -> Result<ExitCode> {
    let labs = Labs::at(&globals.state_dir);
    let mut views = Vec::new();
    if let Some(name) = args.lab {
        views.push(view(labs.open(&name)?).await?);
    } else {
        for name in labs.list()? {
            views.push(view_or_damage(&labs, &name).await);
        }
    }
    let answer = StatusAnswer { schema: 1, labs: views };
    if globals.json {
        output::print_json(&answer)?;
    } else if answer.labs.is_empty() {
        output::print("there is no lab; nestlab up quickstart makes one\n")?;
    } else {
        output::print(&answer.labs.iter().map(text).collect::<Vec<_>>().join("\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the lab `name`, or why it cannot be shown: the others can.
async fn view_or_damage(labs: &Labs, name: &LabName) -> LabStatus {
    let seen = match labs.open(name) {
        Ok(lab) => view(lab).await,
        Err(error) => Err(error),
    };
    seen.unwrap_or_else(|error| LabStatus {
        lab: name.to_string(),
        recipe: labs.planned(name).recipe_path().to_string(),
        busy: None,
        warnings: vec![error.to_string()],
        guests: Vec::new(),
    })
}

async fn view(lab: Lab) -> Result<LabStatus> {
    let warnings = recovery::warnings(&lab);
    // What is seen from here of a lab that is of another machine says nothing.
    let here = lab.refusal().is_none();
    let known = lab.status()?;
    let (name, recipe) = (lab.name().to_string(), lab.recipe_path().to_string());
    let busy = lab.holder()?.map(|holder| holder.pid);
    let mut guests = Vec::new();
    if Blueprint::of(&lab)?.is_some() {
        let session = LabSession::of(lab)?;
        // One after another: a hypervisor that is slow enough answers one at a time.
        for machine in session.machines.blueprint().all() {
            guests.push(guest(&session, machine, &known, here).await);
        }
    }
    Ok(LabStatus { lab: name, recipe, busy, warnings, guests })
}

async fn guest(
    session: &LabSession,
    machine: &Machine,
    known: &LabState,
    here: bool,
) -> GuestStatus {
    let name = machine.name.as_str();
    let seen = if here {
        tokio::select! {
            seen = look(session, machine) => seen,
            error = overdue(session, machine) => Err(error),
        }
    } else {
        Ok(ObservedVm::unknown("unknown".to_owned()))
    };
    let ObservedVm { state, address, drift } = match seen {
        Ok(seen) => seen,
        Err(error) if error.kind() == Kind::Unreachable && machine.parent.is_some() => {
            ObservedVm::unknown("unknown".to_owned())
        }
        Err(error) => ObservedVm::unknown(format!("unknown: {}", error.message())),
    };
    let blueprint = session.machines.blueprint();
    let (orphaned, place) = (blueprint.is_orphaned(machine), blueprint.place(machine));
    // What is known by a name is known of the guest that has it first.
    let is_named = blueprint.known(name).is_ok_and(|named| named == machine);
    let ready = known.ready.get(name).filter(|_| state == "running" && is_named);
    GuestStatus {
        name: name.to_owned(),
        level: blueprint.level(machine),
        parent: machine.parent.as_ref().map_or("L0".to_owned(), ToString::to_string),
        orphaned,
        former_l0: (place.l0 != blueprint.l0()).then(|| place.l0.to_string()),
        ready: ready.is_some(),
        evidence: ready.map(|ready| ready.evidence.clone()),
        state,
        address,
        networks: machine
            .network
            .cards
            .iter()
            .map(|card| (card.network.clone(), format!("{}/24", card.address)))
            .collect(),
        outdated: if orphaned { None } else { provenance::outdated(machine, known) },
        // It is to be removed, not brought to what the recipe says.
        drift: if orphaned { Vec::new() } else { drift },
    }
}

/// Returns, once the host of `machine` has been silent for too long, what to say of it.
async fn overdue(session: &LabSession, machine: &Machine) -> Error {
    let machines = &session.machines;
    let (host, patience) = match machines.blueprint().host_of(machine) {
        // Asking for it finds out what is on the way to the guest's host, as the look does just now.
        Some(around) => (around.name.as_str(), machines.patience_of(around).await),
        None => (machines.l0().name(), Ok(TimeoutScale::new(machines.blueprint().patience))),
    };
    let limit = patience.unwrap_or(TimeoutScale::NATIVE).limit(ONE_LOOK);
    tokio::time::sleep(limit).await;
    silent(host, limit)
}

async fn look(session: &LabSession, machine: &Machine) -> Result<ObservedVm> {
    let vm = session.machines.vm_handle(machine).await?;
    let actual = vm.inspect().await?;
    let values_known = !session.machines.blueprint().recalled;
    let drift = actual.as_ref().filter(|_| values_known).map(|actual| drift(&vm, actual));
    let drift = drift.unwrap_or_default();
    let power = actual.map(|actual| actual.power);
    let address = match (&power, &machine.login) {
        (Some(Power::Running), Some(login)) => {
            vm.hypervisor.endpoint(&*vm.host, &machine.spec, login.port).await.ok()
        }
        _ => None,
    };
    let state = match power {
        None => "absent".to_owned(),
        Some(Power::Off) => "off".to_owned(),
        Some(Power::Saved) => "saved".to_owned(),
        Some(Power::Running) => "running".to_owned(),
        Some(Power::Paused) => "paused".to_owned(),
        Some(Power::Changing(word)) => word,
        Some(Power::Crashed(_)) => "crashed".to_owned(),
    };
    Ok(ObservedVm { state, address: address.map(|address| address.to_string()), drift })
}

/// Returns what differs from the lab's blueprint. Commands alone depend on the hypervisor's version, and
/// none are shown: what is presumed of it saves a probe, which is slow.
fn drift(vm: &VmHandle, actual: &Actual) -> Vec<Drift> {
    let machine = &vm.machine;
    let probe = Probe::presumed(machine.outer);
    let changes = vm.hypervisor.changes(&machine.spec, Some(actual), &probe);
    changes
        .into_iter()
        // A snapshot is what `up` takes before it changes something, no setting.
        .filter(|change| change.setting != "snapshot")
        .map(|change| Drift {
            setting: change.setting,
            actual: change.actual,
            wanted: change.wanted,
        })
        .collect()
}

/// Returns a lab for a person. Writing to a `String` cannot fail.
fn text(lab: &LabStatus) -> String {
    let mut out = format!("{}", style(&lab.lab).bold());
    if let Some(pid) = lab.busy {
        let _ = write!(out, "  (process {pid} works on it)");
    }
    out.push('\n');
    for warning in &lab.warnings {
        let _ = writeln!(out, "  {}", style(format!("warning: {warning}")).yellow());
    }
    if lab.guests.is_empty() && lab.warnings.is_empty() {
        out.push_str("  nothing of it was built yet\n");
    }
    for guest in &lab.guests {
        let state = match one_line(&guest.state).as_str() {
            "running" if guest.ready => style("up".to_owned()).green(),
            "running" => style("running".to_owned()).yellow(),
            other => style(other.to_owned()).red(),
        };
        let indent = "  ".repeat(guest.level as usize);
        let _ = write!(out, "{indent}{:16} {state}", guest.name);
        if let Some(evidence) = &guest.evidence {
            let _ = write!(out, "  {}", style(evidence).dim());
        }
        if let Some(address) = &guest.address {
            let _ = write!(out, "  {}", style(format!("{address} on {}", guest.parent)).dim());
        }
        for (network, address) in &guest.networks {
            let _ = write!(out, "  {}", style(format!("{network} {address}")).dim());
        }
        if guest.orphaned {
            let on = guest.former_l0.as_ref().map(|l0| format!(" on {l0}")).unwrap_or_default();
            let _ = write!(out, "  {}", style(format!("orphaned{on}")).yellow());
        }
        out.push('\n');
        if let Some(outdated) = &guest.outdated {
            let line = one_line(&format!("image: {outdated}"));
            let _ = writeln!(out, "{indent}  {}", style(line).yellow());
        }
        for drift in &guest.drift {
            let actual = drift.actual.as_deref().unwrap_or("none");
            let line = one_line(&format!("{}: {actual} → {}", drift.setting, drift.wanted));
            let _ = writeln!(out, "{indent}  {}", style(line).yellow());
        }
    }
    if lab.guests.iter().any(|guest| guest.orphaned) {
        let remedy = format!("`nestlab destroy {} --orphaned` removes it", lab.lab);
        let _ = writeln!(out, "  orphaned: not in the recipe any more; {remedy}");
    }
    if let Some(guest) = lab.guests.iter().find(|guest| guest.outdated.is_some()) {
        let remedy = format!("`nestlab up --replace {}` replaces its disk", guest.name);
        let _ = writeln!(out, "  another image is wanted (made from → wanted): {remedy}");
    }
    if lab.guests.iter().any(|guest| !guest.drift.is_empty()) {
        let _ = writeln!(out, "  changed since (is → was made): `nestlab up` changes it back");
    }
    out
}
