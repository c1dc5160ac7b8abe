//! What a failure of VBoxManage means, told from what it printed.
//!
//! The exit code says little: 1 for every failure, 2 for some wrong command lines and 1 for others, 3
//! when VirtualBox itself cannot start, and 0 for an import that was refused for its licence.

use crate::host::{Exit, Output};

/// The kinds of failure that nestlab tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// No such VM, medium or snapshot.
    NotFound,
    /// The VM is in a state in which that cannot be done, such as off or running.
    InvalidState,
    /// Another process works on the VM, or its session is still closing.
    Locked,
    /// A VM uses the medium.
    InUse,
    /// A file that was to be made is already there.
    AlreadyExists,
    /// The VM's settings file, or something else, cannot be reached.
    AccessDenied,
    /// The command line is wrong for this version.
    Usage,
    /// VBoxSVC, the process that VBoxManage talks to, did not answer.
    Service,
    /// The appliance's licence was not accepted; VBoxManage exits with 0.
    Licence,
    /// The kernel driver is not loaded, or may not be opened.
    Driver,
    /// The kernel driver is of another version than the programs.
    DriverVersion,
    /// Another hypervisor (KVM) holds the processor's virtualization.
    VirtualizationInUse,
    /// Virtualization was not switched on in the processor by whom VirtualBox left it to (KVM).
    VirtualizationNotEnabled,
    /// Virtualization is switched off in the firmware, or by the hypervisor outside.
    VirtualizationDisabled,
    /// The processor has no virtualization that VirtualBox can use.
    VirtualizationMissing,
    /// The VM asks for nested virtualization and the host lacks what that takes.
    NestedUnavailable,
    /// Only the Windows Hypervisor Platform (NEM) is left, which drops nested virtualization.
    Nem,
    /// Not enough memory.
    Memory,
    /// The VM's process ended before the VM ran; its log says why.
    Terminated,
    /// Anything else.
    Other,
}

/// Status codes of VirtualBox (include/iprt/err.h, include/VBox/err.h), most telling first: one failure
/// often prints several.
const TOKENS: &[(&str, Fault)] = &[
    ("VERR_CPUM_INVALID_HWVIRT_CONFIG", Fault::NestedUnavailable),
    ("VERR_SVM_IN_USE", Fault::VirtualizationInUse),
    ("VERR_VMX_IN_VMX_ROOT_MODE", Fault::VirtualizationInUse),
    ("VERR_SVM_HOST_SVME_NOT_ENABLED", Fault::VirtualizationNotEnabled),
    ("VERR_SVM_DISABLED", Fault::VirtualizationDisabled),
    ("VERR_VMX_MSR_ALL_VMX_DISABLED", Fault::VirtualizationDisabled),
    ("VERR_VMX_MSR_VMX_DISABLED", Fault::VirtualizationDisabled),
    ("VERR_VMX_MSR_LOCKING_FAILED", Fault::VirtualizationDisabled),
    ("VERR_SVM_NO_SVM", Fault::VirtualizationMissing),
    ("VERR_VMX_NO_VMX", Fault::VirtualizationMissing),
    ("VERR_UNSUPPORTED_CPU", Fault::VirtualizationMissing),
    ("VERR_NEM_NOT_AVAILABLE", Fault::VirtualizationMissing),
    ("VERR_NEM_NOT_ENABLED", Fault::VirtualizationMissing),
    ("VERR_NEM_VM_CREATE_FAILED", Fault::Nem),
    ("VERR_VM_DRIVER_VERSION_MISMATCH", Fault::DriverVersion),
    ("VERR_VERSION_MISMATCH", Fault::DriverVersion),
    ("VERR_VM_DRIVER_NOT_INSTALLED", Fault::Driver),
    ("VERR_VM_DRIVER_NOT_ACCESSIBLE", Fault::Driver),
    ("VERR_VM_DRIVER_LOAD_ERROR", Fault::Driver),
    ("VERR_VM_DRIVER_OPEN_ERROR", Fault::Driver),
    ("VERR_NO_MEMORY", Fault::Memory),
    ("VERR_NO_LOW_MEMORY", Fault::Memory),
    ("VERR_NO_PAGE_MEMORY", Fault::Memory),
    ("VERR_EM_NO_MEMORY", Fault::Memory),
    ("VERR_ALREADY_EXISTS", Fault::AlreadyExists),
];

/// COM status codes, by name and number (include/VBox/com/ErrorInfo, VirtualBox.xidl).
const CODES: &[(&str, Fault)] = &[
    ("0x80bb0001", Fault::NotFound),
    ("0x80bb0002", Fault::InvalidState),
    ("0x80bb0007", Fault::InvalidState),
    ("0x80bb000b", Fault::Locked),
    ("0x80bb000c", Fault::InUse),
    ("0x80070005", Fault::AccessDenied),
    // NS_ERROR_SOCKET_FAIL and NS_ERROR_CALL_FAILED: VBoxSVC is starting, ending or gone.
    ("0xc1f30200", Fault::Service),
    ("0x800706be", Fault::Service),
];

/// Messages that come without a code, or with one that says less.
const PHRASES: &[(&str, Fault)] = &[
    ("is already locked", Fault::Locked),
    ("while it is locked", Fault::Locked),
    ("license agreement listed above is accepted", Fault::Licence),
    ("kernel driver not installed", Fault::Driver),
    ("kernel driver not accessible", Fault::Driver),
    ("(rc=-1908)", Fault::Driver),
    ("is not currently running", Fault::InvalidState),
    ("terminated unexpectedly during startup", Fault::Terminated),
    ("closed before any attempt to power it on", Fault::Terminated),
    ("failed to create the virtualbox object", Fault::Service),
    ("failed to create a session object", Fault::Service),
    ("invalid command", Fault::Usage),
    ("unknown option", Fault::Usage),
    ("invalid option", Fault::Usage),
];

/// Returns what the failed `output` means; `None` if it tells of no failure.
pub(crate) fn fault(output: &Output) -> Option<Fault> {
    let complaints = complaints(&output.error_text());
    match output.exit {
        // A refused licence is the one failure that is known to exit with 0; other error lines of a
        // success are warnings.
        Exit::Code(0) => {
            let refused = fault_in(&complaints) == Some(Fault::Licence);
            refused.then_some(Fault::Licence)
        }
        Exit::Code(2) => Some(fault_in(&complaints).unwrap_or(Fault::Usage)),
        Exit::Code(_) | Exit::Signal(_) => Some(fault_in(&complaints).unwrap_or(Fault::Other)),
    }
}

/// Returns what `text`, a message or the lines of a log, means: by a VERR token, else by a phrase,
/// else by a COM code.
pub fn fault_in(text: &str) -> Option<Fault> {
    let lower = text.to_ascii_lowercase();
    let listed = |table: &[(&str, Fault)], text: &str| {
        table.iter().find(|(token, _)| has(text, token)).map(|(_, fault)| *fault)
    };
    listed(TOKENS, text).or_else(|| listed(PHRASES, &lower)).or_else(|| listed(CODES, &lower))
}

/// Whether `text` contains `token` with nothing of a longer name around it.
fn has(text: &str, token: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(token)
        .any(|(at, _)| !text[..at].ends_with(part) && !text[at + token.len()..].starts_with(part))
}

/// Returns the error lines of what VBoxManage wrote to standard error: the usage text, which may be a
/// thousand lines, and the progress are left out.
pub(crate) fn complaints(stderr: &str) -> String {
    let complains =
        |line: &&str| line.contains("error:") || line.starts_with("VBoxManage: warning");
    let lines: Vec<&str> = stderr.lines().filter(complains).collect();
    if lines.is_empty() { stderr.to_owned() } else { lines.join("\n") }
}

#[cfg(test)]
mod tests {
    use super::super::transcript::transcript;
    use super::*;

    #[test]
    fn recorded_failures_mean_what_happened() {
        for (name, expected) in [
            ("no-such-vm", Some(Fault::NotFound)),
            ("no-such-snapshot", Some(Fault::NotFound)),
            ("inaccessible-vm", Some(Fault::AccessDenied)),
            ("not-running", Some(Fault::InvalidState)),
            ("unknown-option", Some(Fault::Usage)),
            ("unknown-command", Some(Fault::Usage)),
            ("bad-value", Some(Fault::Other)),
            ("import-over-a-file", Some(Fault::AlreadyExists)),
            ("start-without-driver", Some(Fault::Terminated)),
            ("import", None),
            ("list-vms", None),
        ] {
            assert_eq!(fault(&transcript(name).output), expected, "{name}");
        }
    }

    #[test]
    fn an_import_refused_for_its_licence_is_a_failure_although_it_exits_with_0() {
        let refused = transcript("import-without-licence").output;
        assert_eq!((refused.exit.clone(), fault(&refused)), (Exit::Code(0), Some(Fault::Licence)));
    }

    #[test]
    fn the_most_telling_token_wins_and_a_longer_name_is_another_one() {
        let text = "VBoxManage: error: Not in a hypervisor partition (HVP=0) (VERR_NEM_NOT_AVAILABLE).\n\
            VBoxManage: error: AMD-V is being used by another hypervisor (VERR_SVM_IN_USE)\n\
            VBoxManage: error: Details: code NS_ERROR_FAILURE (0x80004005), component ConsoleWrap";
        assert_eq!(fault_in(text), Some(Fault::VirtualizationInUse));
        assert_eq!(fault_in("VERR_NO_MEMORY_FOR_X"), None);
        assert_eq!(fault_in("code VBOX_E_OBJECT_IN_USE (0x80bb000c)"), Some(Fault::InUse));
        let closing = "The machine 'x' is already locked for a session (or being unlocked)\n\
            Details: code VBOX_E_INVALID_OBJECT_STATE (0x80bb0007)";
        assert_eq!(fault_in(closing), Some(Fault::Locked));
    }

    #[test]
    fn a_usage_text_of_a_thousand_lines_is_left_out_of_the_complaints() {
        let output = transcript("unknown-option").output;
        let complaints = complaints(&output.error_text());
        assert!(complaints.lines().count() <= 2, "{complaints}");
        assert!(complaints.contains("Unknown option: --bogus"));
    }
}
