//! `nestlab plan`: what `up` would do, and why; changes nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use console::style;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{Globals, guests, output};
use crate::engine;
use crate::error::Result;
use crate::event::EventSink;
use crate::host::{Command, quote};
use crate::lab::Labs;
use crate::plan::{
    self, Blueprint, Check, Consent, Context, Effect, LabContext, Machine, Plan, RecipeSource,
    StepId, contract, recovery,
};
use crate::recipe::budget::{HostKeyBinding, ResolvedView};
use crate::recipe::{HypervisorKind, LabName, Recipe};

/// Show what `up` would do, and why; change nothing
///
/// Every guest with its values and where each comes from, every step with its state, and the exact
/// commands for the VMs.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nestlab plan quickstart
  nestlab plan my-lab.toml --replace l1     what a new disk for l1 would mean
  nestlab plan my-lab.toml --json | jq '.steps[] | select(.state != \"satisfied\") | .title'

What is kept, restarted, replaced or stuck is said at each step; docs/up.md has the whole table.")]
pub(crate) struct Args {
    /// The name of a recipe that ships, or a path
    recipe: String,
    /// The lab to compare with [default: the recipe's name]
    #[arg(long, value_name = "NAME")]
    lab: Option<LabName>,
    /// Only what leads to this guest
    #[arg(long, value_name = "GUEST")]
    until: Option<String>,
    /// As if `up` were told to replace the disks of these guests
    #[arg(long, value_name = "GUEST", value_delimiter = ',')]
    replace: Vec<String>,
}

#[derive(Serialize)]
struct PlanAnswer {
    schema: u32,
    lab: String,
    /// What is wrong with the lab's records, or keeps `up` from working on it here.
    warnings: Vec<String>,
    guests: Vec<ResolvedView>,
    /// The Host Key of every VirtualBox, the outermost first.
    host_keys: Vec<HostKeyBinding>,
    steps: Vec<StepView>,
    /// The guests that the lab has and its recipe has no more.
    orphaned: Vec<OrphanView>,
    #[serde(skip)]
    about_orphans: Option<String>,
}

/// One of `orphaned` in the JSON answer.
#[derive(Serialize)]
struct OrphanView {
    name: String,
    hypervisor: HypervisorKind,
    vm: String,
    /// `this machine` or `user@host`.
    l0: String,
    /// The guest that it is inside of.
    parent: Option<String>,
}

/// One of `steps` in the JSON answer.
#[derive(Serialize)]
struct StepView {
    id: String,
    guest: Option<String>,
    title: String,
    needs: Vec<String>,
    /// `satisfied`, `needed`, `unknown` or `stuck`.
    state: &'static str,
    /// Why it is needed, stays or is stuck, or cannot be known.
    why: Option<String>,
    /// What it does to what is there, if it is needed or stuck, or leaves as it is.
    effect: Option<Effect>,
    /// Whether `up` asks before it does that.
    asks: bool,
    /// What would be run on the guest's host.
    commands: Vec<Vec<String>>,
}

pub(crate) async fn run(args: Args, globals: &Globals) -> Result<ExitCode> {
    let recipe = Recipe::load(&args.recipe)?;
    let name = args.lab.as_ref().unwrap_or(&recipe.name).clone();
    let lab = Labs::at(&globals.state_dir).planned(&name);
    RecipeSource::admits(&recipe, &lab, args.lab.is_some())?;
    let lab_context = LabContext::open(recipe, &lab, &globals.cache_dir).await?;
    let replaced = lab_context.replaceable(&args.replace)?;
    let lab_context =
        Arc::new(lab_context.with_consent(Consent { replaced, ..Consent::default() })?);
    let plan = plan::builder::plan(lab_context.clone(), args.until.as_deref())?;
    let cancel = CancellationToken::new();
    let checks = engine::check(&plan, EventSink::silent(), cancel.clone()).await?;
    let checks = contract::consequences(checks);
    let context = Context::looking(EventSink::silent(), cancel);
    let blueprint = lab_context.machines.blueprint();
    let answer = PlanAnswer {
        schema: 1,
        lab: name.to_string(),
        warnings: if lab.directory().exists() { recovery::warnings(&lab) } else { Vec::new() },
        guests: lab_context.budget.view(&lab_context.recipe),
        host_keys: lab_context.budget.host_key_bindings(&lab_context.recipe),
        steps: views(&lab_context, &plan, checks, &context).await?,
        orphaned: orphans(blueprint),
        about_orphans: guests::orphaned(blueprint, &name),
    };
    if globals.json {
        output::print_json(&answer)?;
    } else {
        output::print(&text(&answer))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn orphans(blueprint: &Blueprint) -> Vec<OrphanView> {
    let view = |machine: &Machine| {
        let place = blueprint.place(machine);
        OrphanView {
            name: machine.name.to_string(),
            hypervisor: machine.outer,
            vm: machine.spec.vm.clone(),
            l0: place.l0.to_string(),
            parent: place.inside.last().map(|(parent, _)| parent.to_string()),
        }
    };
    blueprint.dropped.iter().map(view).collect()
}

async fn views(
    lab_context: &LabContext,
    plan: &Plan,
    checks: Vec<(StepId, Check)>,
    context: &Context,
) -> Result<Vec<StepView>> {
    let mut checks: BTreeMap<StepId, Check> = checks.into_iter().collect();
    let mut views = Vec::new();
    for step in plan.steps() {
        let check = checks.remove(step.id()).unwrap_or(Check::Unknown("not looked at".to_owned()));
        let (state, why, effect) = parts(check);
        let commands =
            if state == "satisfied" { Vec::new() } else { step.commands(context).await? };
        views.push(StepView {
            id: step.id().to_string(),
            guest: step.guest().map(str::to_owned),
            title: step.title(),
            needs: step.needs().iter().map(ToString::to_string).collect(),
            state,
            why,
            asks: effect.as_ref().is_some_and(|effect| lab_context.asks_for(effect)),
            effect,
            commands: commands.iter().map(Command::argv).map(<[String]>::to_vec).collect(),
        });
    }
    Ok(views)
}

/// Returns a check's state, its reason, and its effect.
fn parts(check: Check) -> (&'static str, Option<String>, Option<Effect>) {
    match check {
        Check::Satisfied => ("satisfied", None, None),
        Check::Needed(why) => ("needed", Some(why), Some(Effect::InPlace)),
        Check::Unknown(why) => ("unknown", Some(why), None),
        Check::Affects { why, effect } => {
            let state = match &effect {
                Effect::Keep { .. } => "satisfied",
                Effect::Stuck { .. } => "stuck",
                Effect::InPlace | Effect::Restart { .. } | Effect::Replace { .. } => "needed",
            };
            (state, Some(why), Some(effect))
        }
    }
}

/// Returns the answer for a person. Writing to a `String` cannot fail.
fn text(answer: &PlanAnswer) -> String {
    let mut out = format!("lab {}\n", style(&answer.lab).bold());
    for warning in &answer.warnings {
        let _ = writeln!(out, "{}", style(format!("warning: {warning}")).yellow());
    }
    out.push_str(&guests::lines(&answer.guests));
    out.push_str(&guests::keys(&answer.host_keys));
    let open = answer.steps.iter().filter(|step| step.state != "satisfied").count();
    let _ = writeln!(out, "\nsteps ({open} of {} to do)", answer.steps.len());
    for step in &answer.steps {
        let mark = match step.state {
            "satisfied" => style("=").green(),
            "needed" => style("+").yellow(),
            "stuck" => style("!").red(),
            _ => style("?").cyan(),
        };
        let why = step.why.as_ref().map(|why| format!("  ({why})")).unwrap_or_default();
        let _ = writeln!(out, "  {mark} {}{}", step.title, style(why).dim());
        if let Some(effect) = step.effect.as_ref().filter(|effect| **effect != Effect::InPlace) {
            let _ = writeln!(out, "      {}", style(effect).yellow());
        }
        for command in &step.commands {
            let _ = writeln!(out, "      {}", style(shown(command)).dim());
        }
    }
    if let Some(orphans) = &answer.about_orphans {
        let _ = writeln!(out, "\n{}", style(orphans).yellow());
    }
    if open == 0 {
        out.push_str("\nnothing to do\n");
    }
    if answer.steps.iter().any(|step| step.asks) {
        out.push_str("\n`up` asks before it does this; without a terminal it needs `--allow`\n");
    }
    out
}

/// Returns a command for a person: of a script that nestlab carries, its name instead of its text, which
/// `--json` has.
fn shown(command: &[String]) -> String {
    match command {
        [shell, option, _script, name, args @ ..] if shell == "sh" && option == "-c" => {
            format!("{name} {}", quote::display(args))
        }
        command => quote::display(command),
    }
}
