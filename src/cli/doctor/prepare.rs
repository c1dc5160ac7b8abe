//! Asking before `--prepare-host` changes anything.

use crate::cli::{ask, output};
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
        output::eprint("Nothing to prepare: what can be done safely is done.\n");
        return Ok(false);
    }
    output::eprint("To prepare this machine:\n");
    for proposal in proposals {
        output::eprint(&format!("  {}\n", proposal.title));
        for command in &proposal.commands {
            output::eprint(&format!("    $ {}\n", quote::display(&command.argv_on(is_root))));
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
        output::eprint(&format!("Then {afterwards}.\n"));
    }
}
