//! `nestlab up`: make it so.

use std::process::ExitCode;
use std::sync::Arc;

use super::session::{RunSession, command_line};
use super::{Globals, agree, bundle, doctor, guests, lock, output};
use crate::engine::{self, until_safe_point};
use crate::error::{Error, Result};
use crate::event::Level;
use crate::hypervisor::Drivers;
use crate::lab::{Lab, LabLock, Labs};
use crate::plan::l0_folder::L0Folder;
use crate::plan::{self, Blueprint, Consent, Images, LabContext, RecipeSource, l0, recovery};
use crate::preflight::{FORCEABLE, Needs};
use crate::recipe::{LabName, Recipe};
use crate::report::RunLog;

/// Build a lab, or bring it to what its recipe says
///
/// Runs only what is needed: a second `up` finds nothing to do, and one that was interrupted goes on
/// where it stopped. A lab stays with its recipe: another file with the same `name` is refused unless `--lab`
/// names the lab.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nestlab up quickstart                  the shipped recipe, as the lab `quickstart`
  nestlab up my-lab.toml --lab second    the same recipe again, beside the first
  nestlab up my-lab.toml --until l1      only L1 and what it needs
  nestlab up my-lab.toml --replace l1    give L1 a new disk from its image

A disk that a guest has used is kept. What would restart or replace a guest that runs is asked first; without
a terminal, or with --json, it needs --allow, and else `up` ends with exit code 2 before anything changed.
docs/up.md has the whole table; `nestlab plan` shows what would happen.")]
pub(crate) struct Args {
    /// The name of a recipe that ships, or a path
    recipe: String,
    /// The lab's name [default: the recipe's]
    #[arg(long, value_name = "NAME")]
    lab: Option<LabName>,
    /// Stop once this guest is up and provisioned
    #[arg(long, value_name = "GUEST")]
    until: Option<String>,
    /// Build just what `<recipe>.lock` pins, or say what of it cannot be had
    #[arg(long)]
    locked: bool,
    /// Replace the disks of these guests by new ones from their images; the old is kept until the guest is up
    #[arg(long, value_name = "GUEST", value_delimiter = ',')]
    replace: Vec<String>,
    /// What may be done to guests that run without asking
    #[arg(long, value_enum, value_name = "WHAT", value_delimiter = ',')]
    allow: Vec<Allow>,
    /// Go on where this check fails; without a name, where a system is known not to let guests run guests,
    /// such as Qubes OS
    #[arg(long, value_name = "CHECK", num_args = 0..=1, require_equals = true,
        default_missing_value = FORCEABLE[0], value_parser = FORCEABLE)]
    force: Vec<String>,
    /// First apply the remedies that are safe (packages, modules, groups), after showing them and asking
    #[arg(long)]
    prepare_host: bool,
    /// Do not ask
    #[arg(long, requires = "prepare_host")]
    yes: bool,
}

/// What the user can agree to beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Allow {
    /// Restart guests, and with them those inside
    Restart,
    /// Replace the disks of all guests that the recipe wants another image for
    Replace,
    /// Cut off a VM that was there before nestlab, if it does not shut down when asked
    PowerOff,
}

pub(crate) async fn run(args: Args, globals: &Globals) -> Result<ExitCode> {
    let recipe = Recipe::load(&args.recipe)?;
    let name = args.lab.as_ref().unwrap_or(&recipe.name);
    let lab = Labs::at(&globals.state_dir).create(name, recipe.source().text())?;
    let held = lab.lock(command_line())?;
    RecipeSource::admits(&recipe, &lab, args.lab.is_some())?;
    let run_session = RunSession::begin(globals, Some(RunLog::create(&lab.logs(), "up")?))?;
    let built = build(recipe, &lab, &held, &args, globals, &run_session).await;
    let explained = match &built {
        Err(failure) => bundle::after(failure, &lab, &run_session).await,
        Ok(_) => false,
    };
    tell_what_is_kept(&lab, &run_session);
    run_session.end();
    let unused = || Ok::<_, Error>(Blueprint::of(&lab)?.is_none() && lab.resources()?.is_empty());
    if built.is_err() && !explained && unused()? {
        // Refused before anything was begun: there is no lab to go on with, and none to destroy.
        lab.remove(held)?;
        return built.map(|_| ExitCode::SUCCESS);
    }
    let lab_context = built?;
    if !globals.json && !globals.quiet {
        output::print(&reached(&lab_context, &lab)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn build(
    recipe: Recipe,
    lab: &Lab,
    held: &LabLock,
    args: &Args,
    globals: &Globals,
    run_session: &RunSession,
) -> Result<Arc<LabContext>> {
    run_session.warn_of_records(lab);
    let text = recipe.source().text().to_owned();
    let locked = if args.locked { Some(lock::read(&recipe)?) } else { None };
    let able = async {
        match Blueprint::of(lab)? {
            None => can_l0(&recipe, lab, args, run_session).await,
            Some(begun) => can_l0_still(&recipe, lab, &begun, args, run_session).await,
        }
    };
    until_safe_point(&run_session.cancel(), able).await?;
    let opened = LabContext::open(recipe, lab, &globals.cache_dir);
    let mut lab_context = until_safe_point(&run_session.cancel(), opened).await?;
    if let Some(lock) = &locked {
        for difference in lock.differs_at_l0(&lab_context.machines).await? {
            run_session.events.notice(Level::Warning, difference);
        }
    }
    lab_context.lock = locked;
    let consent = Consent {
        restart: args.allow.contains(&Allow::Restart),
        power_off: args.allow.contains(&Allow::PowerOff),
        replace: args.allow.contains(&Allow::Replace),
        replaced: lab_context.replaceable(&args.replace)?,
    };
    let lab_context = lab_context.with_consent(consent)?;
    let lab_context =
        Arc::new(agree::settle(lab_context, args.until.as_deref(), globals, run_session).await?);
    let plan = plan::builder::plan(lab_context.clone(), args.until.as_deref())?;
    // What a newer nestlab wrote is refused before anything is written.
    let journal = held.journal()?;
    let blueprint = lab_context.machines.blueprint();
    recovery::before_building(blueprint, lab, &journal).await?;
    held.keep_recipe(&text)?;
    blueprint.keep(held, &journal).await?;
    if let Some(text) = guests::orphaned(blueprint, lab.name()) {
        run_session.events.notice(Level::Warning, text);
    }
    let options = engine::Options { command: command_line(), ..engine::Options::default() };
    if globals.json
        && let Some(keys) =
            guests::keys_in_short(&lab_context.budget.host_key_bindings(&lab_context.recipe))
    {
        run_session.events.notice(Level::Info, keys);
    }
    let summary =
        engine::run(&plan, options, journal, run_session.events.clone(), run_session.cancel())
            .await;
    summary.into_result()?;
    Ok(lab_context)
}

/// Says where the disks are that guests had before they were made anew, if they are still there.
fn tell_what_is_kept(lab: &Lab, run_session: &RunSession) {
    // What is wrong with the journal, the run has told.
    for aside in lab.status().map(|known| known.aside).unwrap_or_default() {
        let text = format!("the disk that {} had before is still in {}", aside.guest, aside.kept);
        run_session.events.notice(Level::Warning, text);
    }
}

/// Looks whether L0 can carry a lab that is not begun yet, after preparing it if that is asked for. Of one
/// that is begun, every step has its own check.
async fn can_l0(recipe: &Recipe, lab: &Lab, args: &Args, run_session: &RunSession) -> Result<()> {
    let (l0, drivers) = (l0::of(recipe, lab)?, Drivers::new());
    let ground = L0Folder::of(recipe, lab, &*l0).await?;
    let directory = doctor::nearest_folder(&*l0, &ground.directory).await?;
    let needs = Needs::of_l0(recipe, Images::of(recipe)?.defaults(), directory);
    let needs = Needs { forced: args.force.iter().cloned().collect(), ..needs };
    if args.prepare_host {
        doctor::prepare(&*l0, &drivers, &needs, args.yes).await?;
    }
    doctor::judge(&*l0, &drivers, &needs, lab, &run_session.events).await
}

/// Looks whether L0 has got a kernel or a VirtualBox since `lab` was begun with which its guests take it down.
async fn can_l0_still(
    recipe: &Recipe,
    lab: &Lab,
    begun: &Blueprint,
    args: &Args,
    run_session: &RunSession,
) -> Result<()> {
    let (l0, drivers) = (l0::of(recipe, lab)?, Drivers::new());
    let mut needs = Needs::of_l0(recipe, Images::of(recipe)?.defaults(), "/");
    needs.forced.extend(args.force.iter().cloned());
    // What was left to nestlab is settled.
    needs.hypervisor.get_or_insert(begun.outermost());
    doctor::judge_again(&*l0, &drivers, &needs, lab, &run_session.events).await
}

/// Returns how the guests are reached now, for the person who waited for them.
fn reached(lab_context: &LabContext, lab: &Lab) -> Result<String> {
    let (blueprint, known) = (lab_context.machines.blueprint(), lab.status()?);
    let enterable = blueprint.machines.iter().filter(|machine| {
        // With `--until` some do not exist yet.
        machine.login.is_some() && known.ready.contains_key(machine.name.as_str())
    });
    let mut lines = String::new();
    for machine in enterable {
        lines.push_str(&format!("nestlab ssh {} --lab {}\n", machine.name, lab.name()));
    }
    let host_key_bindings = lab_context.budget.host_key_bindings(&lab_context.recipe);
    lines.extend(guests::keys_in_short(&host_key_bindings).map(|line| format!("{line}\n")));
    Ok(lines)
}
