//! VBox.log, the log of one VM's run: what it says about how the guest executes and why it ended. Pure.

use super::fault::{Fault, fault_in};

/// How many lines of a log an error shows.
const SHOWN: usize = 12;

/// Returns the lines that tell why a VM ended or did not start, the last ones if there are many, without
/// the time stamps.
pub(crate) fn telling(log: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = log
        .lines()
        .map(without_time)
        .filter(|line| MARKS.iter().any(|mark| line.contains(mark)) && !is_noise(line))
        .collect();
    lines.dedup();
    lines.split_off(lines.len().saturating_sub(SHOWN))
}

/// What stands in a line that tells of a failure.
const MARKS: [&str; 7] = [
    "Guru Meditation",
    "VERR_",
    "VINF_EM_TRIPLE_FAULT",
    "VMSetError",
    "Power up failed",
    "ERROR [COM]",
    "Cannot enable nested",
];

/// Lines with an error code that every log has, or that a guest can cause at will.
fn is_noise(line: &str) -> bool {
    line.contains("VERR_NOT_FOUND") || line.contains("VERR_FILE_NOT_FOUND") || line.contains("IBPB")
}

/// Returns a line without its time stamp, `00:00:01.234567 `.
fn without_time(line: &str) -> &str {
    match line.split_once(' ') {
        Some((time, rest)) if time.bytes().all(|b| b.is_ascii_digit() || b":.".contains(&b)) => {
            rest.trim()
        }
        _ => line.trim(),
    }
}

/// Returns the Guru Meditation that a log tells of: `Guru Meditation 1155 (VINF_EM_TRIPLE_FAULT)`.
pub(crate) fn guru(log: &str) -> Option<&str> {
    let line = log.lines().rfind(|line| line.contains("Guru Meditation "))?;
    line.find("Guru Meditation ").map(|at| line[at..].trim_end_matches('!').trim())
}

/// Returns what kept the VM from starting, if the log tells.
pub(crate) fn fault(log: &str) -> Option<Fault> {
    fault_in(&telling(log).join("\n"))
}

/// How VirtualBox executes the guest: `HM: HMR3Init: AMD-V w/ nested paging and unrestricted guest
/// execution`, `NEM: …`.
pub(crate) fn execution(log: &str) -> Option<&str> {
    let says =
        |line: &&str| line.starts_with("HM: HMR3Init: ") || line.starts_with("NEM: NEMR3Init: ");
    log.lines().map(without_time).rfind(says)
}

/// Whether VirtualBox took nested virtualization from the guest although its settings have it.
pub(crate) fn lost_nesting(log: &str) -> bool {
    log.contains("Can't turn on nested VT-x/AMD-V when NEM is used")
        || log.contains("did not find VT-x or AMD-V")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines as VirtualBox 7.2.22 writes them (formats from VBoxVMM).
    const TRIPLE_FAULT: &str = "\
00:00:01.100000 HM: HMR3Init: AMD-V w/ nested paging\n\
00:00:01.200000 PcBios: something VERR_NOT_FOUND\n\
00:00:45.000000 !!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!\n\
00:00:45.000001 !!\n\
00:00:45.000002 !!         VCPU0: Guru Meditation 1155 (VINF_EM_TRIPLE_FAULT)\n\
00:00:45.000003 !!\n";

    #[test]
    fn a_guru_meditation_is_found_with_its_code() {
        assert_eq!(guru(TRIPLE_FAULT), Some("Guru Meditation 1155 (VINF_EM_TRIPLE_FAULT)"));
        let telling = telling(TRIPLE_FAULT);
        assert_eq!(telling, ["!!         VCPU0: Guru Meditation 1155 (VINF_EM_TRIPLE_FAULT)"]);
        assert_eq!(guru("00:00:01 fine"), None);
    }

    #[test]
    fn how_a_guest_executes_is_read() {
        assert_eq!(execution(TRIPLE_FAULT), Some("HM: HMR3Init: AMD-V w/ nested paging"));
        assert_eq!(execution(""), None);
    }

    #[test]
    fn a_refused_start_means_what_its_code_says() {
        let log = "00:00:02.000000 VMSetError: x.cpp(1) y; rc=VERR_CPUM_INVALID_HWVIRT_CONFIG\n\
            00:00:02.000001 VMSetError: Cannot enable nested VT-x/AMD-V without nested-paging and \
            unrestricted guest execution!\n";
        assert_eq!(fault(log), Some(Fault::NestedUnavailable));
        assert_eq!(telling(log).len(), 2);
    }

    #[test]
    fn nesting_that_was_dropped_silently_is_noticed() {
        assert!(lost_nesting(
            "00:00:01 CPUM: Warning! Can't turn on nested VT-x/AMD-V when NEM is used! (later)"
        ));
        assert!(!lost_nesting(TRIPLE_FAULT));
    }
}
