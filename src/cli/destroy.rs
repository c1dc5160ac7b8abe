//! `nestlab destroy`: remove everything that a lab made, or one guest of it, and nothing else.

use std::process::ExitCode;

use super::session::{LabSession, RunSession, command_line};
use super::{Globals, ask};
use crate::engine::{self, Removal};
use crate::error::{Error, Kind, Result};
use crate::event::{EventSink, Level};
use crate::hypervisor::virtualbox::GLOBAL;
use crate::lab::resources::{self, Adopted};
use crate::lab::{Journal, JournalWriter, Lab, LabLock, Labs, Resource};
use crate::plan::{Blueprint, Machine, Machines, recovery};
use crate::recipe::LabName;

/// Remove everything that a lab made, or one guest of it; images stay in the store
///
/// A VM that existed before gets its former settings back, and is never removed; what is inside it that the
/// lab made is removed while it runs. A file that nestlab did not make stays, and so does its folder.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nestlab destroy quickstart                 the whole lab
  nestlab destroy quickstart l2              only this guest, with what it hosts; `up` makes it again
  nestlab destroy quickstart --orphaned      what the recipe does not have any more")]
pub(crate) struct Args {
    /// The lab [default: the only one]
    lab: Option<LabName>,
    /// Only this guest, with what it hosts
    guest: Option<String>,
    /// Only what the recipe does not have any more
    #[arg(long)]
    orphaned: bool,
    /// Make a VM that existed before what it was at `snapshot-before`; all that was done in it since is lost
    #[arg(long)]
    restore_snapshot: bool,
    /// End the lab also where something of it cannot be reached, and leave that where it is
    #[arg(long)]
    leave_inside: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(crate) async fn run(args: Args, globals: &Globals) -> Result<ExitCode> {
    let labs = Labs::at(&globals.state_dir);
    labs.sweep()?;
    let lab = labs.choose(args.lab.as_ref())?;
    let lock = lab.lock(command_line())?;
    let session = match Blueprint::of(&lab)? {
        Some(_) => Some(LabSession::of(lab.clone())?),
        None => None,
    };
    if let Some(session) = &session {
        look_into_damage(session, &lock, globals).await?;
    }
    let doomed = RemovalTarget::of(&lab, session.as_ref(), &args)?;
    if doomed.is_nothing() {
        return nothing_chosen(&args, &lab);
    }
    if !args.yes && !ask::yes(&doomed.question(&lab, &args))? {
        return Ok(ask::cancelled("nothing removed"));
    }
    // Its log would lie in the lab that goes.
    let run_session = RunSession::begin(globals, None)?;
    run_session.warn_of_records(&lab);
    let removed = remove(doomed, lab, lock, session, &args, globals, &run_session).await;
    run_session.end();
    removed.map(|()| ExitCode::SUCCESS)
}

/// Looks for what damage of the journal may hide, so that it is asked about and removed with the rest.
async fn look_into_damage(session: &LabSession, lock: &LabLock, globals: &Globals) -> Result<()> {
    let journal = lock.journal()?;
    if journal.unexamined().is_empty() {
        return Ok(());
    }
    let run_session = RunSession::begin(globals, None)?;
    let found = recovery::find_hidden(&session.machines, &journal, &run_session.events).await;
    run_session.end();
    found
}

fn nothing_chosen(args: &Args, lab: &Lab) -> Result<ExitCode> {
    let error = match &args.guest {
        Some(guest) => Error::new(Kind::Usage, format!("nothing of {guest} is there")),
        None => Error::new(Kind::Usage, format!("the lab {} has no orphaned guest", lab.name())),
    };
    Err(error.hint(format!("nestlab status {} shows what there is", lab.name())))
}

/// What is to be taken away.
struct RemovalTarget {
    /// The guests, if not the whole lab is.
    guests: Option<Vec<Machine>>,
    resources: Vec<Resource>,
    adopted: Vec<Adopted>,
    /// What stays inside the VMs that existed before, a sentence each.
    kept: Vec<String>,
}

impl RemovalTarget {
    fn of(lab: &Lab, session: Option<&LabSession>, args: &Args) -> Result<Self> {
        let records = lab.read_journal()?.records;
        let (resources, adopted) = (resources::remaining(&records), resources::adopted(&records));
        let part = args.guest.is_some() || args.orphaned;
        let Some(session) = session else {
            if part {
                return Err(Error::new(
                    Kind::Usage,
                    format!("nothing of the lab {} was built yet", lab.name()),
                ));
            }
            return Ok(RemovalTarget { guests: None, resources, adopted, kept: Vec::new() });
        };
        let blueprint = session.machines.blueprint();
        let chosen =
            blueprint.chosen(args.guest.as_deref().filter(|_| part), part && args.orphaned)?;
        let mut doomed = RemovalTarget { guests: None, resources, adopted, kept: Vec::new() };
        if part {
            doomed.only(blueprint, &chosen);
        }
        for machine in chosen.iter().filter(|machine| machine.is_existing()) {
            let is_it = |adopted: &Adopted| blueprint.is_adopted_as(machine, adopted);
            let mut kept = machine.keeps();
            if args.restore_snapshot {
                kept.clear();
            }
            if doomed.adopted.iter().any(is_it) && !kept.is_empty() {
                let kept = kept.join(", ");
                doomed.kept.push(format!("{} ({}) keeps {kept}", machine.name, machine.spec.vm));
            }
        }
        Ok(doomed)
    }

    /// Keeps of all that there is what belongs to the `chosen` machines.
    fn only(&mut self, blueprint: &Blueprint, chosen: &[&Machine]) {
        let is_chosen = |name: &str| {
            let others = blueprint.all().filter(|machine| !chosen.contains(machine));
            let has_name = |machine: &&Machine| machine.name.as_str() == name;
            chosen.iter().any(has_name) && !others.into_iter().any(|other| has_name(&other))
        };
        self.resources.retain(|resource| match resource {
            Resource::Vm { .. } => {
                chosen.iter().any(|machine| blueprint.is_made_as(machine, resource))
            }
            Resource::KnownHost { guest } => is_chosen(guest),
            other => is_chosen(other.host()),
        });
        self.adopted.retain(|adopted| {
            chosen.iter().any(|machine| blueprint.is_adopted_as(machine, adopted))
        });
        self.guests = Some(chosen.iter().copied().cloned().collect());
    }

    /// Returns whether a part of the lab was chosen, and there is nothing of it.
    fn is_nothing(&self) -> bool {
        let orphans = |guests: &Vec<Machine>| guests.iter().any(|guest| guest.place.is_some());
        self.guests.as_ref().is_some_and(|guests| !orphans(guests))
            && self.resources.is_empty()
            && self.adopted.is_empty()
    }

    fn question(&self, lab: &Lab, args: &Args) -> String {
        let mut text = String::new();
        for resource in &self.resources {
            text.push_str(&format!("  {resource}\n"));
        }
        for adopted in &self.adopted {
            let (name, host) = (name_of(adopted), &adopted.host);
            let what = match (adopted.vm == GLOBAL, args.restore_snapshot) {
                (true, _) => "gets its former Host Key back",
                (_, true) => "goes back to its snapshot nestlab-before; all since then is lost",
                _ => "is powered off if it runs, and gets its former settings back",
            };
            text.push_str(&format!("  {name} on {host} {what}\n"));
        }
        for kept in &self.kept {
            text.push_str(&format!("  {kept}\n"));
        }
        let what = match &self.guests {
            None => format!("remove the lab {} and all of this?", lab.name()),
            Some(_) => format!("remove all of this from the lab {}?", lab.name()),
        };
        text + &what
    }
}

/// Returns the name of a VM that existed before, as it was.
fn name_of(adopted: &Adopted) -> &str {
    let name = adopted.settings.first().and_then(|former| former["name"].as_str());
    name.unwrap_or(&adopted.vm)
}

async fn remove(
    doomed: RemovalTarget,
    lab: Lab,
    lock: LabLock,
    session: Option<LabSession>,
    args: &Args,
    globals: &Globals,
    run_session: &RunSession,
) -> Result<()> {
    if let Some(session) = &session {
        let journal = lock.journal()?;
        let undoing = RemovalRun { machines: &session.machines, journal, args, run_session };
        undoing.run(&doomed).await?;
    }
    for kept in &doomed.kept {
        run_session.events.notice(Level::Warning, kept.clone());
    }
    match (&doomed.guests, session) {
        (Some(guests), Some(session)) => forget(guests, &session, &lock).await,
        _ => remove_lab(lab, lock, globals, &run_session.events),
    }
}

/// Takes away what a lab made.
struct RemovalRun<'a> {
    machines: &'a Machines,
    journal: Journal,
    args: &'a Args,
    run_session: &'a RunSession,
}

impl RemovalRun<'_> {
    async fn run(&self, doomed: &RemovalTarget) -> Result<()> {
        let (journal, events) = (&self.journal, &self.run_session.events);
        if self.args.restore_snapshot {
            self.restore_snapshots(doomed).await?;
        }
        let remaining = journal.resources();
        let resources = doomed.resources.iter().filter(|known| remaining.contains(known));
        let resources: Vec<Resource> = resources.cloned().collect();
        // What is inside a VM that existed before goes while that runs.
        let cancel = self.run_session.cancel();
        let removal = engine::remove(journal, resources, self.machines, events, &cancel).await;
        let left = self.leave(removal).await?;
        if cancel.is_cancelled() {
            return Err(Error::new(Kind::Interrupted, "interrupted")
                .hint("run the same destroy again to go on"));
        }
        for adopted in &doomed.adopted {
            if left.left.iter().any(|(resource, _)| self.is_inside(resource, adopted)) {
                continue;
            }
            let restored = self.machines.restore(adopted, journal, events);
            engine::until_safe_point(&cancel, restored).await?;
        }
        self.judge(left)
    }

    /// Gives every VM that existed before and has one its snapshot back; what was inside went with that.
    async fn restore_snapshots(&self, doomed: &RemovalTarget) -> Result<()> {
        let events = &self.run_session.events;
        for adopted in doomed.adopted.iter().filter(|adopted| adopted.vm != GLOBAL) {
            let name = name_of(adopted);
            let restored = self.machines.restore_snapshot(adopted, events);
            if !engine::until_safe_point(&self.run_session.cancel(), restored).await? {
                let text = format!("{name} has no snapshot nestlab-before");
                events.notice(Level::Warning, text);
                continue;
            }
            events.notice(
                Level::Info,
                format!("{name} is what it was at its snapshot nestlab-before"),
            );
            let journal = JournalWriter::of_step(&self.journal, "restore");
            for resource in &doomed.resources {
                if self.is_inside(resource, adopted) {
                    journal.removed(resource.clone()).await?;
                }
            }
        }
        Ok(())
    }

    /// Returns whether `resource` is inside the VM `adopted`, at any depth.
    fn is_inside(&self, resource: &Resource, adopted: &Adopted) -> bool {
        let blueprint = self.machines.blueprint();
        let around = blueprint.all().find(|machine| blueprint.is_adopted_as(machine, adopted));
        let Some(around) = around else { return false };
        let hosts = blueprint.all().filter(|machine| blueprint.is_within(machine, around));
        let mut names = hosts.map(|machine| machine.name.as_str());
        names.any(|name| name == resource.host())
    }

    /// Takes what cannot be reached off the journal, if the user wants to leave it; returns what is left then.
    async fn leave(&self, removal: Removal) -> Result<Removal> {
        if !self.args.leave_inside {
            return Ok(removal);
        }
        let journal = JournalWriter::of_step(&self.journal, "leave");
        let mut still = Removal { removed: removal.removed, left: Vec::new() };
        for (resource, error) in removal.left {
            if is_out_of_reach(&error) {
                let text = format!("left where it is: {resource} ({})", error.message());
                self.run_session.events.notice(Level::Warning, text);
                journal.left(resource).await?;
            } else {
                still.left.push((resource, error));
            }
        }
        Ok(still)
    }

    /// Returns the error for what could not be removed, with the ways out.
    fn judge(&self, removal: Removal) -> Result<()> {
        let out_of_reach = removal.left.iter().any(|(_, error)| is_out_of_reach(error));
        let hosts: Vec<String> =
            removal.left.iter().map(|(left, _)| left.host().to_owned()).collect();
        let blueprint = self.machines.blueprint();
        let existing = blueprint.all().find(|machine| {
            machine.is_existing() && hosts.iter().any(|host| *host == *machine.name.as_str())
        });
        let result = removal.into_result().map(drop);
        result.map_err(|error| match (existing, out_of_reach) {
            (Some(machine), true) => error
                .hint(format!("start {} in VirtualBox, and destroy again", machine.spec.vm))
                .hint("or end the lab and leave it there: `--leave-inside`"),
            (None, true) => error.hint("or end the lab and leave it there: `--leave-inside`"),
            (_, false) => error,
        })
    }
}

/// Returns whether what the error is about cannot be asked now.
fn is_out_of_reach(error: &Error) -> bool {
    matches!(error.kind(), Kind::Unreachable | Kind::NotReady)
}

/// Forgets what the lab knows of `guests`, which are gone; those that the recipe has it makes again.
async fn forget(guests: &[Machine], session: &LabSession, lock: &LabLock) -> Result<()> {
    let (before, lab) = (session.machines.blueprint(), &session.lab);
    let mut after = before.clone();
    after.dropped.retain(|machine| !guests.contains(machine));
    after.keep(lock, &lock.journal()?).await?;
    for guest in guests {
        let name = guest.name.as_str();
        let mut others = before.all().filter(|other| other.name.as_str() == name);
        if others.all(|other| guests.contains(other)) {
            lab.keys().remove_host_key(name)?;
            lab.known_hosts().remove(name)?;
        }
    }
    Ok(())
}

/// Removes the lab itself, of which nothing else remains.
fn remove_lab(lab: Lab, lock: LabLock, globals: &Globals, events: &EventSink) -> Result<()> {
    recovery::check_nothing_runs(&lab)?;
    match crate::image::Store::open(&globals.cache_dir.join("images")) {
        Ok(store) => store.release(lab.directory())?,
        // Nothing in it is believed; that it still notes the lab is no reason to keep it.
        Err(error) if error.kind() == Kind::Untrusted => {
            events.notice(Level::Warning, error.report().trim_end());
        }
        Err(error) => return Err(error),
    }
    let folder = lab.directory().to_owned();
    let left = lab.remove(lock)?;
    if !left.is_empty() {
        let left = left.iter().map(|path| path.strip_prefix(&folder).unwrap_or(path).as_str());
        let left = left.collect::<Vec<_>>().join(", ");
        let text = format!("{folder} stays, with what nestlab did not make: {left}");
        events.notice(Level::Warning, text);
    }
    Ok(())
}
