//! `nestlab screenshot`: what a guest shows, at any depth.

use std::process::ExitCode;

use camino::Utf8PathBuf;

use super::session::LabSession;
use super::{Globals, output};
use crate::error::Result;
use crate::host::Command;
use crate::recipe::LabName;

/// The most bytes that a picture has, which comes from a host that may be hostile.
const MOST_BYTES: usize = 48 << 20;

/// Write a PNG of a guest's screen
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nestlab screenshot kicksecure                writes kicksecure.png
  nestlab screenshot l2 /tmp/l2.png")]
pub(crate) struct Args {
    /// The guest
    guest: String,
    /// The file to write [default: GUEST.png]
    file: Option<Utf8PathBuf>,
    /// The lab [default: the only one]
    #[arg(long, value_name = "NAME")]
    lab: Option<LabName>,
}

pub(crate) async fn run(args: Args, globals: &Globals) -> Result<ExitCode> {
    let session = LabSession::open(globals, args.lab.as_ref())?;
    let vm = session.machines.vm(&args.guest).await?;
    let file = args.file.unwrap_or_else(|| format!("{}.png", args.guest).into());
    let there = vm.machine.spec.directory.join("screen.png");
    vm.hypervisor.screenshot(&*vm.host, &vm.machine.spec, &there).await?;
    let got = vm.host.read(&there, MOST_BYTES).await;
    vm.host.check(&Command::new("rm").args(["-f", "--", there.as_str()])).await?;
    fs_err::write(&file, got?)?;
    output::print(&format!("{file}\n"))?;
    Ok(ExitCode::SUCCESS)
}
