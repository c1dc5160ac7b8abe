//! What QEMU on one host offers to a command line: a [`Probe`], read back.

use camino::Utf8PathBuf;

use super::sandbox::Sandbox;
use crate::hypervisor::{Acceleration, Probe};

/// Keys of [`Probe::details`].
pub(super) mod detail {
    pub(in super::super) const CONFINEMENT: &str = "confinement";
    pub(in super::super) const EFI_CODE: &str = "efi-code";
    pub(in super::super) const EFI_VARIABLES: &str = "efi-variables";
    pub(in super::super) const EFI_FORMAT: &str = "efi-format";
    pub(in super::super) const DISPLAY: &str = "display";
}

/// A UEFI for guests: files on the host, both of one format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Efi {
    /// The firmware.
    pub(super) code: Utf8PathBuf,
    /// The template of a guest's variables.
    pub(super) variables: Utf8PathBuf,
    /// `raw` or `qcow2`.
    pub(super) format: String,
}

/// What QEMU on one host offers.
#[derive(Debug, Clone)]
pub(super) struct QemuInstall {
    /// The program.
    pub(super) program: Utf8PathBuf,
    /// How guests execute.
    pub(super) acceleration: Acceleration,
    /// How QEMU is confined.
    pub(super) confinement: Sandbox,
    /// The UEFI, if there is one.
    pub(super) efi: Option<Efi>,
    /// The kind of window that QEMU can open, if it can.
    pub(super) display: Option<String>,
}

impl QemuInstall {
    /// Returns what `probe` found.
    pub(super) fn of(probe: &Probe) -> Self {
        let detail = |name: &str| probe.details.get(name);
        let efi = match (
            detail(detail::EFI_CODE),
            detail(detail::EFI_VARIABLES),
            detail(detail::EFI_FORMAT),
        ) {
            (Some(code), Some(variables), Some(format)) => {
                Some(Efi { code: code.into(), variables: variables.into(), format: format.clone() })
            }
            _ => None,
        };
        QemuInstall {
            program: probe.program.clone(),
            acceleration: probe.acceleration,
            confinement: detail(detail::CONFINEMENT)
                .and_then(|text| text.parse().ok())
                .unwrap_or(Sandbox::None),
            efi,
            display: detail(detail::DISPLAY).cloned(),
        }
    }
}
