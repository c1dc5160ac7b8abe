//! `nestlab check`: is the recipe right, and what does it come to?

use std::process::ExitCode;

use console::style;
use serde::Serialize;

use super::{Globals, guests, output};
use crate::error::Result;
use crate::plan::images::Images;
use crate::plan::l0::{self, L0Override};
use crate::recipe::budget::{self, ResolvedView, Resources};
use crate::recipe::{Cpus, HypervisorKind, Mebibytes, Recipe};

/// Check a recipe, and show what it comes to: every value, and why it is that one
///
/// Reads the recipe, the manifests of its images and this machine's size; it connects to nothing and runs
/// nothing. Every mistake is shown with its line.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nestlab check quickstart
  nestlab check ./my-lab.toml
  nestlab check ./my-lab.toml --cpus 8 --memory 32GiB    for another machine

Exit codes: 0 the recipe is right, 2 it has mistakes, 3 this machine is too small for it.")]
pub(crate) struct Args {
    /// The recipe: a name (`nestlab recipe list`) or a path
    recipe: String,
    /// Physical cores of L0, instead of this machine's
    #[arg(long, value_name = "CORES", value_parser = cores)]
    cpus: Option<Cpus>,
    /// Memory of L0, such as 32GiB, instead of this machine's
    #[arg(long, value_name = "AMOUNT")]
    memory: Option<Mebibytes>,
}

fn cores(text: &str) -> Result<Cpus, String> {
    text.parse().ok().and_then(Cpus::new).ok_or_else(|| "a machine has at least 1 core".to_owned())
}

/// What `--json` answers.
#[derive(Serialize)]
struct CheckAnswer {
    schema: u32,
    recipe: String,
    host: CheckedL0,
    guests: Vec<ResolvedView>,
}

/// L0 as the recipe was checked against it.
#[derive(Serialize)]
struct CheckedL0 {
    cores: u32,
    memory_mib: u64,
    hypervisor: HypervisorKind,
}

pub(crate) async fn run(args: Args, globals: &Globals) -> Result<ExitCode> {
    let recipe = Recipe::load(&args.recipe)?;
    let images = Images::of(&recipe)?;
    let given = L0Override { cores: args.cpus, memory: args.memory };
    let labs = Some(globals.state_dir.as_path());
    let host = l0::resources(&*l0::local(), hypervisor(&recipe), given, labs).await?;
    let budget = budget::derive(&recipe, &host, &images.defaults())?;
    let guests = budget.view(&recipe);
    if globals.json {
        let (cores, memory_mib) = (host.cores.get(), host.memory.get());
        let host = CheckedL0 { cores, memory_mib, hypervisor: host.hypervisor };
        let recipe = recipe.name.to_string();
        output::print_json(&CheckAnswer { schema: 1, recipe, host, guests })?;
    } else {
        output::print(&format!("{}{}", head(&recipe, &host), guests::lines(&guests)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns what runs the outermost guests. What `auto` comes to is found out by running guests; without
/// that, VirtualBox if it alone is installed, else QEMU.
fn hypervisor(recipe: &Recipe) -> HypervisorKind {
    recipe.host.hypervisor.kind().unwrap_or_else(|| {
        let installed = |program: &str| {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
        };
        if installed("VBoxManage") && !installed("qemu-system-x86_64") {
            HypervisorKind::VirtualBox
        } else {
            HypervisorKind::Qemu
        }
    })
}

fn head(recipe: &Recipe, host: &Resources) -> String {
    let untested = recipe.untested().map(|why| format!(", and untested: {why}"));
    let l0 = match &recipe.host.ssh {
        None => "this machine".to_owned(),
        Some(ssh) => format!("{ssh}, which is not looked at; taken for"),
    };
    format!(
        "{} is right{}\n\n{}  {l0}: {} cores, {}, {}\n",
        recipe.name,
        untested.unwrap_or_default(),
        style("L0").bold(),
        host.cores,
        host.memory,
        host.hypervisor,
    )
}
