//! `nestlab doctor`: can this machine do it?

mod levels;
mod prepare;
mod table;

use std::process::ExitCode;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{Globals, output};
use crate::error::{Error, Kind, Result};
use crate::event::EventSink;
use crate::guest::ExecContext;
use crate::host::{Command, Host, Local, TimeoutScale};
use crate::hypervisor::Drivers;
use crate::image::build::mirror::Mirror;
use crate::lab::{Lab, Labs};
use crate::plan::images::Images;
use crate::plan::l0;
use crate::plan::l0_folder::L0Folder;
use crate::preflight::{
    self, Destination, FORCEABLE, Finding, Needs, Verdict, prepare as remedies,
};
use crate::recipe::{LabName, Recipe};

/// Look whether this machine can do it, and what to do where it cannot
///
/// Looks at the processor, the firmware, the system around this machine, its hypervisors, kernel, packages
/// and resources. With a recipe it is judged by what that recipe needs, also the machine that the recipe
/// names as its host, and, while its lab is up, every guest that runs guests, from inside. It changes
/// nothing, unless asked with `--prepare-host`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nestlab doctor                         what this machine can do
  nestlab doctor quickstart              whether it can do that
  nestlab doctor quickstart --network    and whether mirrors and image hosts can be reached
  nestlab doctor --prepare-host          install and switch on what is missing, after asking

Exit codes: 0 it can, or no recipe was given; 3 it cannot do what the recipe needs.")]
pub(crate) struct Args {
    /// The recipe: a name (`nestlab recipe list`) or a path
    recipe: Option<String>,
    /// The lab that is looked into, if it is up [default: the recipe's name]
    #[arg(long, value_name = "NAME", requires = "recipe")]
    lab: Option<LabName>,
    /// Also try to reach the image hosts of the recipe
    #[arg(long, requires = "recipe")]
    network: bool,
    /// Only warn where this check fails; without a name, where a system is known not to let guests run guests,
    /// such as Qubes OS
    #[arg(long, value_name = "CHECK", num_args = 0..=1, require_equals = true,
        default_missing_value = FORCEABLE[0], value_parser = FORCEABLE)]
    force: Vec<String>,
    /// Apply the remedies that are safe, after showing them and asking
    #[arg(long)]
    prepare_host: bool,
    /// Do not ask
    #[arg(long, requires = "prepare_host")]
    yes: bool,
    /// Write what this machine tells into a new folder, for a bug report
    #[arg(long, value_name = "DIR", conflicts_with_all = ["recipe", "prepare_host"])]
    record: Option<Utf8PathBuf>,
}

/// What `--json` answers.
#[derive(Serialize)]
struct DoctorAnswer<'a> {
    schema: u32,
    checks: &'a [Finding],
}

pub(crate) async fn run(args: Args, globals: &Globals) -> Result<ExitCode> {
    let drivers = Drivers::new();
    if let Some(folder) = &args.record {
        return record(&Local::new(), &drivers, folder, globals).await;
    }
    let recipe = args.recipe.as_deref().map(Recipe::load).transpose()?;
    let labs = Labs::at(&globals.state_dir);
    let lab = recipe.as_ref().map(|it| labs.planned(args.lab.as_ref().unwrap_or(&it.name)));
    let asked = recipe.as_ref().zip(lab.as_ref());
    let host = asked.map_or_else(|| Ok(l0::local()), |(recipe, lab)| l0::of(recipe, lab))?;
    let needs = needs(&args, asked, &*host, globals).await?;
    if args.prepare_host {
        prepare(&*host, &drivers, &needs, args.yes).await?;
    }
    let mut findings = preflight::run(&*host, &needs, &drivers).await?;
    if let Some((recipe, lab)) = asked {
        findings.extend(levels::inside(recipe, lab).await?);
    }
    if globals.json {
        output::print_json(&DoctorAnswer { schema: 1, checks: &findings })?;
    } else {
        let all = globals.verbosity > 0;
        if let Some(ssh) = recipe.as_ref().and_then(|recipe| recipe.host.ssh.as_ref()) {
            output::print(&format!("L0 is {ssh}\n"))?;
        }
        output::print(&table::draw(&findings, table::TableLayout::of_stdout(), all))?;
    }
    let fails = needs.recipe.is_some() && preflight::worst(&findings) == Verdict::Fail;
    Ok(ExitCode::from(if fails { Kind::HostCannot.exit_code() } else { 0 }))
}

async fn needs(
    args: &Args,
    asked: Option<(&Recipe, &Lab)>,
    host: &dyn Host,
    globals: &Globals,
) -> Result<Needs> {
    let Some((recipe, lab)) = asked else {
        let directory = nearest_folder(host, &globals.state_dir).await?;
        return Ok(Needs {
            forced: args.force.iter().cloned().collect(),
            ..Needs::nothing(directory)
        });
    };
    let ground = L0Folder::of(recipe, lab, host).await?;
    let directory = nearest_folder(host, &ground.directory).await?;
    let images = Images::of(recipe)?;
    let reach = if args.network { destinations(recipe, &images)? } else { Vec::new() };
    let needs = Needs::of_l0(recipe, images.defaults(), directory);
    Ok(Needs { forced: args.force.iter().cloned().collect(), reach, ..needs })
}

/// Looks whether `host` can do what `needs` say, before `lab` is begun; tells each warning with its remedy.
///
/// # Errors
/// [`Kind::HostCannot`] with every check that failed and its remedy.
pub(super) async fn judge(
    host: &dyn Host,
    drivers: &Drivers,
    needs: &Needs,
    lab: &Lab,
    events: &EventSink,
) -> Result<()> {
    let findings = preflight::run(host, needs, drivers).await?;
    preflight::tell(lab, &findings, events)?;
    preflight::require(&findings)
}

/// Looks whether `host`, on which `lab` was begun, has become one that it would take down.
///
/// # Errors
/// As [`judge`].
pub(super) async fn judge_again(
    host: &dyn Host,
    drivers: &Drivers,
    needs: &Needs,
    lab: &Lab,
    events: &EventSink,
) -> Result<()> {
    let findings = preflight::run_again(host, needs, drivers).await?;
    preflight::tell(lab, &findings, events)?;
    preflight::require(&findings)
}

/// Returns the folder `path` on `host`, or the nearest one above it that is there.
pub(super) async fn nearest_folder(host: &dyn Host, path: &Utf8Path) -> Result<Utf8PathBuf> {
    for folder in path.ancestors() {
        let there = Command::new("test").args(["-d", folder.as_str()]);
        if host.run(&there).await?.exit.success() {
            return Ok(folder.to_owned());
        }
    }
    Ok(Utf8PathBuf::from("/"))
}

/// Returns the servers that the images of `recipe` come from; for one that is built, the Debian mirror.
fn destinations(recipe: &Recipe, images: &Images) -> Result<Vec<Destination>> {
    let mut urls = Vec::new();
    for manifest in recipe.guests().iter().filter_map(|g| images.manifest(&g.name.value)) {
        match manifest.download() {
            Some(download) => {
                for template in &download.urls {
                    urls.push(template.image_url(manifest.version())?.0);
                }
            }
            None => urls.extend(Url::parse(mirror(recipe)?.archive())),
        }
    }
    let mut destinations: Vec<_> = urls
        .iter()
        .filter_map(|url| {
            let host = url.host_str()?.to_owned();
            Some(Destination { host, port: url.port_or_known_default()? })
        })
        .collect();
    destinations.sort();
    destinations.dedup();
    Ok(destinations)
}

fn mirror(recipe: &Recipe) -> Result<Mirror> {
    match &recipe.mirror {
        None => Mirror::of_this_host(),
        Some(mirror) => Mirror::new(&mirror.to_string())
            .map_err(|why| Error::new(Kind::Recipe, format!("the recipe's mirror {why}"))),
    }
}

async fn record(
    host: &dyn Host,
    drivers: &Drivers,
    folder: &Utf8Path,
    globals: &Globals,
) -> Result<ExitCode> {
    let written = preflight::record(host, drivers, folder).await?;
    if globals.json {
        output::print_json(&serde_json::json!({ "schema": 1, "files": written }))?;
    } else {
        output::print(&format!("{folder}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows the remedies that are safe and applies them, once the user agrees.
pub(super) async fn prepare(
    host: &dyn Host,
    drivers: &Drivers,
    needs: &Needs,
    yes: bool,
) -> Result<()> {
    let cancel = CancellationToken::new();
    let events = EventSink::silent();
    let exec =
        ExecContext { host, patience: TimeoutScale::NATIVE, events: &events, cancel: &cancel };
    let proposals = remedies::proposals(exec, needs, drivers).await?;
    if prepare::agreed(&proposals, host.is_root(), yes)? {
        remedies::apply(exec, &proposals).await?;
        prepare::tell_afterwards(&proposals);
    }
    Ok(())
}
