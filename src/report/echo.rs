//! Keeps a terminal from showing `^C` where rows are drawn. A row ends at the terminal's edge, so the two
//! characters would go to the next line, and the row above it would stay for ever.

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcgetpgrp, tcsetattr};

/// The terminal on standard error, with control characters not shown until this is dropped.
pub(super) struct EchoGuard(());

impl EchoGuard {
    /// Hides them; `None` where they were not shown, or where the terminal is another's.
    pub(super) fn begin() -> Option<Self> {
        show(false).then_some(EchoGuard(()))
    }
}

impl Drop for EchoGuard {
    fn drop(&mut self) {
        show(true);
    }
}

/// Returns whether that is a change, and was made.
fn show(wanted: bool) -> bool {
    let terminal = std::io::stderr();
    // A process in the background would be stopped for touching the terminal.
    if tcgetpgrp(&terminal).ok() != Some(rustix::process::getpgrp()) {
        return false;
    }
    let Ok(mut modes) = tcgetattr(&terminal) else { return false };
    if modes.local_modes.contains(LocalModes::ECHOCTL) == wanted {
        return false;
    }
    modes.local_modes.set(LocalModes::ECHOCTL, wanted);
    tcsetattr(&terminal, OptionalActions::Now, &modes).is_ok()
}
