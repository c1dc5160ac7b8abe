//! Asking before `--prepare-host` changes anything.

use crate::cli::ask;
use crate::error::Result;
use crate::host::quote;
use crate::preflight::prepare::Proposal;

/// Shows `proposals` on stderr with their commands, and returns whether the user agrees; without asking
/// where `yes` says so.
///
/// # Errors
/// As [`ask::yes`].
pub(super) fn agreed(proposals: &[Proposal], is_root: bool, yes: bool) -> Result<bool> {
    if proposals.is_empty() {
        eprintln!("Nothing to prepare: what can be done safely is done.");
        return Ok(false);
    }
    eprintln!("To prepare this machine:");
    for proposal in proposals {
        eprintln!("  {}", proposal.title);
        for command in &proposal.commands {
            eprintln!("    $ {}", quote::display(&command.argv_on(is_root)));
        }
    }
    if yes {
        return Ok(true);
    }
    ask::yes("Do it?")
}

/// Tells what the user must do afterwards.
pub(super) fn tell_afterwards(proposals: &[Proposal]) {
    for afterwards in proposals.iter().filter_map(|proposal| proposal.afterwards.as_ref()) {
        eprintln!("Then {afterwards}.");
    }
}
