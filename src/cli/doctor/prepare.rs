//! Asking before `--prepare-host` changes anything.

use std::io::{IsTerminal as _, Write as _};

use crate::error::{Error, Kind, Result};
use crate::host::quote;
use crate::preflight::prepare::Proposal;

/// Shows `proposals` on stderr with their commands, and returns whether the user agrees; without asking
/// where `yes` says so.
///
/// # Errors
/// [`Kind::Usage`] if there is nobody to ask.
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
    if !std::io::stdin().is_terminal() {
        return Err(Error::new(Kind::Usage, "nobody is there to agree").hint("add `--yes`"));
    }
    eprint!("Do it? [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Tells what the user must do afterwards.
pub(super) fn tell_afterwards(proposals: &[Proposal]) {
    for afterwards in proposals.iter().filter_map(|proposal| proposal.afterwards.as_ref()) {
        eprintln!("Then {afterwards}.");
    }
}
