//! The package manager.

use super::not_applicable;
use crate::preflight::host_report::{HostCommand, HostReport};
use crate::preflight::needs::Needs;
use crate::preflight::{Finding, Verdict};

pub(super) fn whole(look: &HostReport, _needs: &Needs) -> Finding {
    let id = "packages";
    if !look.survey.has("/var/lib/dpkg/status") {
        return not_applicable(id, "no dpkg here").from("/var/lib/dpkg/status");
    }
    let source = "dpkg --audit";
    let audit = look.text(HostCommand::Packages);
    let journal = look.survey.paths("/var/lib/dpkg/updates/", "").next().is_some();
    if audit.is_empty() && !journal {
        return Finding::new(id, Verdict::Ok, "all whole").from(source);
    }
    let names: Vec<_> = audit
        .lines()
        .filter(|line| line.starts_with(' '))
        .filter_map(|line| line.split_whitespace().next())
        .take(3)
        .collect();
    let found = match names.as_slice() {
        [] => "dpkg was interrupted".to_owned(),
        names => format!("half installed: {}", names.join(", ")),
    };
    Finding::new(id, Verdict::Warn, found)
        .from(source)
        .remedy("Finish them:")
        .command("sudo dpkg --configure -a")
        .command("sudo apt-get --fix-broken install")
}

pub(super) fn root(look: &HostReport, needs: &Needs) -> Finding {
    let id = "root";
    let may = look.answer(HostCommand::Root).is_some_and(|answer| answer.success);
    let source = "sudo -n true";
    match (may, needs.level) {
        (true, _) => Finding::new(id, Verdict::Ok, "yes, as root or with sudo").from(source),
        (false, 0) => {
            Finding::new(id, Verdict::Ok, "no; labs need none, only `--prepare-host` does")
                .from(source)
        }
        (false, _) => Finding::new(
            id,
            Verdict::Fail,
            "no: neither root nor sudo without a password",
        )
        .from(source)
        .remedy(
            "give the image's user rights, or enter the guest as root (`user` under `[guest.ssh]`)",
        ),
    }
}
