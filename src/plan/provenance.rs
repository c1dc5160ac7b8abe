//! Which image a guest's disk was made from, which one the recipe wants, and what becomes of the disk.

use super::blueprint::{Machine, MachineImage};
use super::context::LabContext;
use crate::error::Result;
use crate::image::{Manifest, Sha256, VerifiedImage};
use crate::lab::{DiskImage, LabState, Resource};

/// How much of a digest is shown where two are told apart.
const SHOWN: usize = 12;

/// What becomes of a guest's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DiskDecision {
    /// It is made: there is none that the guest ever ran with.
    Made,
    /// It stays: it was made from what the recipe wants, or there is nothing to make it from.
    Stays,
    /// It stays, though it was made from another image than the recipe wants, or nobody knows from which.
    Kept {
        /// What differs.
        why: String,
        /// Whether it is certain that something does.
        differs: bool,
    },
    /// It is put aside, and another one is made.
    Replaced {
        /// What differs.
        why: String,
    },
}

impl DiskDecision {
    /// Returns whether the image is needed.
    pub(super) fn takes_the_image(&self) -> bool {
        matches!(self, DiskDecision::Made | DiskDecision::Replaced { .. })
    }
}

/// Returns what differs between the image that the disk of `machine` was made from and the one that the
/// lab's recipe, as it was last applied, wants for it: `kicksecure-lxqt 18.2.1.9 → 18.2.2.0`. `None` also if
/// that is not known.
pub fn outdated(machine: &Machine, known: &LabState) -> Option<String> {
    let (made, wanted) = (known.images.get(machine.name.as_str())?, machine.image.as_ref()?);
    WantedImage::of_image(wanted).differs_from(made)
}

/// What is known of the image that a recipe wants.
struct WantedImage {
    name: String,
    version: Option<String>,
    sha256: Option<Sha256>,
}

impl WantedImage {
    fn of_image(image: &MachineImage) -> Self {
        let (version, sha256) = (image.version.clone(), image.sha256);
        WantedImage { name: image.name.to_string(), version, sha256 }
    }

    fn of(manifest: &Manifest, found: Option<&VerifiedImage>) -> Self {
        let pinned = manifest.download().and_then(|download| download.sha256);
        WantedImage {
            name: manifest.name().to_string(),
            version: match found {
                Some(found) => Some(found.version().to_owned()),
                None => manifest.version().map(ToString::to_string),
            },
            sha256: found.map(VerifiedImage::sha256).or(pinned),
        }
    }

    /// Returns what differs between the image that a disk was made from and this one, as far as known.
    fn differs_from(&self, made: &DiskImage) -> Option<String> {
        let version = self.version.as_deref().unwrap_or("as its manifest says now");
        if made.name.as_str() != self.name {
            return Some(format!("{made} → {} {version}", self.name));
        }
        if self.version.as_ref().is_some_and(|wanted| *wanted != made.version) {
            return Some(format!("{made} → {version}"));
        }
        let sha256 = self.sha256.filter(|wanted| *wanted != made.sha256)?;
        let short = |digest: Sha256| digest.to_string().chars().take(SHOWN).collect::<String>();
        Some(format!("{made}: SHA-256 {}… → {}…", short(made.sha256), short(sha256)))
    }
}

impl LabContext {
    /// Returns whether the guest's disk may have been written to by it.
    pub(super) fn is_used(&self, known: &LabState, machine: &Machine) -> bool {
        known.is_used(&vm_of(machine, &self.machines.blueprint().host_in_journal(machine)))
    }

    /// Returns the image that the disk of `machine` was made from. Of a lab that an older nestlab made it is
    /// told by what the lab holds in the store, if only one image can be meant.
    pub(super) fn made_from(
        &self,
        machine: &Machine,
        known: &LabState,
    ) -> Result<Option<DiskImage>> {
        if let Some(image) = known.images.get(machine.name.as_str()) {
            return Ok(Some(image.clone()));
        }
        let recorded = self.begun.recorded(machine).and_then(|old| old.image.as_ref());
        let name = recorded.or(machine.image.as_ref()).map(|image| &image.name);
        let held = self.store.held(self.machines.lab().directory())?;
        let named: Vec<_> = held.iter().filter(|image| Some(image.name()) == name).collect();
        let alone = self.machines.blueprint().machines.len() == 1;
        Ok(match (named.as_slice(), held.as_slice()) {
            ([only], _) => Some(disk_image(only)),
            ([], [only]) if alone => Some(disk_image(only)),
            _ => None,
        })
    }

    /// Returns what becomes of the disk of `machine`.
    pub(super) fn fate(&self, machine: &Machine, known: &LabState) -> Result<DiskDecision> {
        let guest = machine.name.as_str();
        let manifest = self.images.manifest(&machine.name);
        let (Some(wanted), Some(manifest)) = (&machine.image, manifest) else {
            return Ok(DiskDecision::Stays);
        };
        if known.aside.iter().any(|aside| aside.guest == guest && !aside.moved) {
            let why = "its replacement was interrupted".to_owned();
            return Ok(DiskDecision::Replaced { why });
        }
        if !self.is_used(known, machine) {
            return Ok(DiskDecision::Made);
        }
        let found = self.find_image(manifest, wanted.made)?.ok();
        let wanted = WantedImage::of(manifest, found.as_ref());
        let Some(made) = self.made_from(machine, known)? else {
            let why = format!("which image the disk of {guest} was made from is not known");
            return Ok(self.stays_or_not(guest, Some((why, false)), &wanted));
        };
        let differs = wanted.differs_from(&made).map(|why| (why, true));
        Ok(self.stays_or_not(guest, differs, &wanted))
    }

    fn stays_or_not(
        &self,
        guest: &str,
        differs: Option<(String, bool)>,
        wanted: &WantedImage,
    ) -> DiskDecision {
        let surely = differs.as_ref().is_some_and(|(_, differs)| *differs);
        match differs {
            Some((why, _)) if self.consent.replaces(guest, surely) => {
                DiskDecision::Replaced { why }
            }
            None if self.consent.replaces(guest, false) => {
                DiskDecision::Replaced { why: format!("another from {}", wanted.name) }
            }
            Some((why, differs)) => DiskDecision::Kept { why, differs },
            None => DiskDecision::Stays,
        }
    }
}

/// Returns what the journal keeps of an image that a disk is made from.
pub(super) fn disk_image(image: &VerifiedImage) -> DiskImage {
    DiskImage {
        name: image.name().clone(),
        version: image.version().to_owned(),
        sha256: image.sha256(),
    }
}

/// Returns the guest's VM, as the journal knows it; `host` is what the journal calls its host.
pub(super) fn vm_of(machine: &Machine, host: &str) -> Resource {
    Resource::Vm {
        host: host.to_owned(),
        guest: machine.name.to_string(),
        hypervisor: machine.outer,
        vm: machine.spec.vm.clone(),
        directory: machine.spec.directory.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(version: &str, digest: u8) -> DiskImage {
        DiskImage {
            name: "img".parse().expect("a name"),
            version: version.to_owned(),
            sha256: Sha256::from_bytes([digest; 32]),
        }
    }

    fn wanted(name: &str, version: Option<&str>, digest: Option<u8>) -> WantedImage {
        WantedImage {
            name: name.to_owned(),
            version: version.map(str::to_owned),
            sha256: digest.map(|digest| Sha256::from_bytes([digest; 32])),
        }
    }

    #[test]
    fn another_image_version_or_digest_is_a_difference_and_what_is_not_known_is_none() {
        let difference = |wanted: WantedImage| wanted.differs_from(&made("1", 7));
        assert_eq!(difference(wanted("img", Some("1"), Some(7))), None);
        assert_eq!(difference(wanted("img", None, None)), None);
        assert_eq!(difference(wanted("img", Some("2"), None)).as_deref(), Some("img 1 → 2"));
        let other = difference(wanted("other", Some("3"), None));
        assert_eq!(other.as_deref(), Some("img 1 → other 3"));
        let digest = difference(wanted("img", Some("1"), Some(8)));
        assert_eq!(digest.as_deref(), Some("img 1: SHA-256 070707070707… → 080808080808…"));
    }
}
