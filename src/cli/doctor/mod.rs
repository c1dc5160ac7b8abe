//! `nestlab doctor`: can this machine do it?

mod prepare;
mod table;

use std::process::ExitCode;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{Globals, output};
use crate::error::{Error, Kind, Result};
use crate::event::{Feed, Level};
use crate::guest::Site;
use crate::host::{Host, Local, Patience};
use crate::hypervisor::Drivers;
use crate::image::build::mirror::Mirror;
use crate::plan::images::Images;
use crate::preflight::{self, Destination, Finding, Needs, Verdict, prepare as remedies};
use crate::recipe::Recipe;

/// Look whether this machine can do it, and what to do where it cannot
///
/// Looks at the processor, the firmware, the system around this machine, its hypervisors, kernel, packages
/// and resources. With a recipe it is judged by what that recipe needs. It changes nothing, unless asked
/// with `--prepare-host`.
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
    /// Also try to reach the image hosts of the recipe
    #[arg(long, requires = "recipe")]
    network: bool,
    /// Only warn where a system is known not to let guests run guests, such as Qubes OS
    #[arg(long)]
    force: bool,
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
struct Answer<'a> {
    schema: u32,
    checks: &'a [Finding],
}

pub(crate) async fn run(args: Args, globals: &Globals) -> Result<ExitCode> {
    let host = Local::new();
    let drivers = Drivers::new();
    if let Some(folder) = &args.record {
        return record(&host, &drivers, folder, globals).await;
    }
    let needs = needs(&args, globals)?;
    if args.prepare_host {
        prepare(&host, &drivers, &needs, args.yes).await?;
    }
    let findings = preflight::run(&host, &needs, &drivers).await?;
    if globals.json {
        output::print_json(&Answer { schema: 1, checks: &findings })?;
    } else {
        let all = globals.verbosity > 0;
        output::print(&table::draw(&findings, table::Look::of_stdout(), all))?;
    }
    let fails = needs.recipe.is_some() && preflight::worst(&findings) == Verdict::Fail;
    Ok(ExitCode::from(if fails { Kind::HostCannot.exit_code() } else { 0 }))
}

fn needs(args: &Args, globals: &Globals) -> Result<Needs> {
    let directory = nearest_folder(&globals.state_dir);
    let Some(name) = &args.recipe else {
        return Ok(Needs { force: args.force, ..Needs::nothing(directory) });
    };
    let recipe = Recipe::load(name)?;
    let images = Images::of(&recipe)?;
    let reach = if args.network { destinations(&recipe, &images)? } else { Vec::new() };
    let needs = Needs::of_l0(&recipe, images.defaults(), directory);
    Ok(Needs { force: args.force, reach, ..needs })
}

/// Looks whether `host` can do what `needs` say, before anything is begun; tells what the user should
/// know even if it can.
///
/// # Errors
/// [`Kind::HostCannot`] with every check that failed and its remedy.
pub(super) async fn judge(
    host: &dyn Host,
    drivers: &Drivers,
    needs: &Needs,
    feed: &Feed,
) -> Result<()> {
    let findings = preflight::run(host, needs, drivers).await?;
    let mixed = findings.iter().find(|finding| finding.id == "mixed-hypervisors");
    if let Some(mixed) = mixed.filter(|finding| finding.verdict == Verdict::Warn) {
        let remedy = mixed.remedy.as_deref().unwrap_or_default();
        feed.notice(Level::Warning, format!("{}: {remedy}", mixed.found));
    }
    let failed: Vec<_> = findings.iter().filter(|it| it.verdict == Verdict::Fail).collect();
    let Some(first) = failed.first() else { return Ok(()) };
    let lines: Vec<_> = failed.iter().map(|it| format!("{}: {}", it.id, it.found)).collect();
    let mut error = Error::new(Kind::HostCannot, format!("{}: {}", first.id, first.found))
        .on(host.name())
        .tail(lines.join("\n").as_bytes());
    for finding in failed {
        error = finding.remedy.iter().chain(&finding.commands).fold(error, Error::hint);
    }
    Err(error)
}

/// Returns the folder itself, or the nearest one above it that is there.
pub(super) fn nearest_folder(path: &Utf8Path) -> Utf8PathBuf {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Utf8Path::new("/")).to_owned()
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
    let feed = Feed::silent();
    let site = Site { host, patience: Patience::NATIVE, feed: &feed, cancel: &cancel };
    let proposals = remedies::proposals(site, needs, drivers).await?;
    if prepare::agreed(&proposals, host.is_root(), yes)? {
        remedies::apply(site, &proposals).await?;
        prepare::tell_afterwards(&proposals);
    }
    Ok(())
}
