//! `nestlab bundle`: everything that explains a failure, in one file.

use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use super::session::{LabSession, RunSession, silent};
use super::{Globals, output};
use crate::engine::until_safe_point;
use crate::error::{Error, Kind, Result};
use crate::event::{EventSink, Level};
use crate::host::{Command, HostRef, TimeoutScale};
use crate::hypervisor::Power;
use crate::lab::bundle::{self, Bundle, BundleSource};
use crate::lab::{Lab, Labs};
use crate::plan::{Blueprint, Machines, VmHandle, l0};
use crate::recipe::LabName;

/// How long a guest may take to let nestlab in, on bare metal.
const ENTRY: Duration = Duration::from_secs(10);

/// The same for a guest that was not seen to be up since its start.
const TRY: Duration = Duration::from_secs(1);

/// Gather what explains a failure into one file: logs, consoles, screens, kernel messages, versions
///
/// Every level that answers is asked. Private keys, passwords, tokens and cookies are taken out of what
/// programs printed, also where a log has other bytes than text between them.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  nestlab bundle            prints the path of the archive; `tar tf` lists what is in it

A failed `nestlab up` makes one by itself.")]
pub(crate) struct Args {
    /// The lab [default: the only one]
    lab: Option<LabName>,
}

#[derive(Serialize)]
struct BundleAnswer {
    schema: u32,
    lab: String,
    path: String,
    files: Vec<String>,
    missing: Vec<MissingPart>,
}

#[derive(Serialize)]
struct MissingPart {
    what: String,
    why: String,
}

pub(crate) async fn run(args: Args, globals: &Globals) -> Result<ExitCode> {
    let lab = Labs::at(&globals.state_dir).choose(args.lab.as_ref())?;
    let run_session = RunSession::begin(&Globals { json: false, ..globals.clone() }, None)?;
    let made = until_safe_point(&run_session.cancel(), gather(&lab, &run_session)).await;
    run_session.end();
    let bundle = made?;
    if globals.json {
        let missing =
            bundle.missing.into_iter().map(|(what, why)| MissingPart { what, why }).collect();
        let (lab, path) = (lab.name().to_string(), bundle.path.into_string());
        output::print_json(&BundleAnswer { schema: 1, lab, path, files: bundle.files, missing })?;
    } else {
        output::print(&format!("{}\n", bundle.path))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes a bundle because `failure` ended a run, tells where it is, and returns whether there is one. A
/// failure that the user can understand without one gets none; that it cannot be made is said and no
/// failure of its own.
pub(super) async fn after(failure: &Error, lab: &Lab, run_session: &RunSession) -> bool {
    let plain = matches!(
        failure.kind(),
        Kind::Usage | Kind::Recipe | Kind::Busy | Kind::Interrupted | Kind::HostCannot
    );
    if plain || run_session.cancel().is_cancelled() {
        return false;
    }
    let gathered = gather(lab, run_session).await;
    match &gathered {
        Ok(bundle) => {
            let text = format!("what explains the failure was gathered in {}", bundle.path);
            run_session.events.notice(Level::Info, text);
        }
        Err(error) => {
            let text = format!("what explains the failure could not be gathered: {error}");
            run_session.events.notice(Level::Warning, text);
        }
    }
    gathered.is_ok()
}

async fn gather(lab: &Lab, run_session: &RunSession) -> Result<Bundle> {
    let events = run_session.events.for_step("bundle");
    let mut asked = AskedLevels::default();
    if Blueprint::of(lab)?.is_some() {
        let session = LabSession::of(lab.clone())?;
        let cancel = run_session.cancel();
        tokio::select! {
            () = asked.every_level(&session.machines, &events) => {}
            () = cancel.cancelled() => {}
        }
    } else {
        asked.level(l0::local(), TimeoutScale::NATIVE);
    }
    let AskedLevels { sources, unreachable, temporary } = asked;
    let made = bundle::bundle(lab, &sources, unreachable, &events, &run_session.cancel()).await;
    for (host, file) in temporary {
        let remove = Command::new("rm").args(["-f", "--", file.as_str()]);
        if let Err(error) = host.check(&remove).await {
            run_session.events.notice(Level::Warning, format!("{file} was left behind: {error}"));
        }
    }
    made
}

/// The levels to ask, and what became of the others.
#[derive(Default)]
struct AskedLevels {
    sources: Vec<BundleSource>,
    unreachable: Vec<(String, String)>,
    /// Screens that were taken for the bundle.
    temporary: Vec<(HostRef, camino::Utf8PathBuf)>,
}

impl AskedLevels {
    fn level(&mut self, host: HostRef, patience: TimeoutScale) {
        let name = host.name().to_owned();
        self.sources.push(BundleSource { name, host, patience, files: Vec::new() });
    }

    async fn every_level(&mut self, machines: &Machines, events: &EventSink) {
        let blueprint = machines.blueprint();
        self.level(machines.l0().clone(), TimeoutScale::new(blueprint.patience));
        for machine in &blueprint.machines {
            let name = machine.name.as_str();
            events.doing(format!("looking at {name}"));
            match machines.vm(name).await {
                Ok(vm) => self.guest(&vm).await,
                Err(error) => self.unreachable.push((name.to_owned(), error.to_string())),
            }
            if machine.login.is_none() {
                continue;
            }
            match entered(machines, name).await {
                Ok((host, patience)) => self.level(host, patience),
                Err(error) => self.unreachable.push((name.to_owned(), error.to_string())),
            }
        }
    }

    /// Adds what the host of a guest has of it: its logs, its console, its screen.
    async fn guest(&mut self, vm: &VmHandle) {
        let (host, spec) = (&vm.host, &vm.machine.spec);
        let name = vm.machine.name.as_str();
        let mut files = Vec::new();
        match vm.hypervisor.log_files(&**host, spec).await {
            Ok(log_files) => files.extend(
                log_files.into_iter().map(|trace| (format!("{name}/{}", trace.name), trace.path)),
            ),
            Err(error) => self.unreachable.push((format!("{name}'s logs"), error.to_string())),
        }
        match self.screen(vm).await {
            Ok(screen) => files.extend(screen.map(|path| (format!("{name}/screen.png"), path))),
            Err(error) => self.unreachable.push((format!("{name}'s screen"), error.to_string())),
        }
        if let Some(source) = self.sources.iter_mut().find(|source| source.name == host.name()) {
            source.files.extend(files);
        }
    }

    async fn screen(&mut self, vm: &VmHandle) -> Result<Option<camino::Utf8PathBuf>> {
        let power = vm.inspect().await?.map(|actual| actual.power);
        if !matches!(power, Some(Power::Running | Power::Paused)) {
            return Ok(None);
        }
        let spec = &vm.machine.spec;
        let file = spec.directory.join("bundle-screen.png");
        self.temporary.push((vm.host.clone(), file.clone()));
        vm.hypervisor.screenshot(&*vm.host, spec, &file).await?;
        Ok(Some(file))
    }
}

async fn entered(machines: &Machines, name: &str) -> Result<(HostRef, TimeoutScale)> {
    let (host, patience) = (machines.host(name).await?, machines.patience(name).await?);
    let was_up = machines.lab().status()?.ready.contains_key(name);
    let limit = patience.limit(if was_up { ENTRY } else { TRY });
    // A session connects when it is first used: one that cannot would fail every question.
    let entry = tokio::time::timeout(limit, async { host.check(&Command::new("true")).await });
    entry.await.unwrap_or_else(|_| Err(silent(name, limit)))?;
    Ok((host, patience))
}
