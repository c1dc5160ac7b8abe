//! The manifests that are compiled into nestlab, so that an installed one works alone.

/// Every shipped manifest: its name and its text.
const SHIPPED: &[(&str, &str)] = &[
    ("appliance", include_str!("../../../images/appliance.toml")),
    ("debian-sid", include_str!("../../../images/debian-sid.toml")),
    ("debian-stable", include_str!("../../../images/debian-stable.toml")),
    ("kicksecure-cli", include_str!("../../../images/kicksecure-cli.toml")),
    ("kicksecure-cli-libvirt", include_str!("../../../images/kicksecure-cli-libvirt.toml")),
    ("kicksecure-lxqt", include_str!("../../../images/kicksecure-lxqt.toml")),
    ("kicksecure-lxqt-libvirt", include_str!("../../../images/kicksecure-lxqt-libvirt.toml")),
];

/// Returns the names of the shipped manifests, sorted.
pub fn shipped_names() -> impl Iterator<Item = &'static str> {
    SHIPPED.iter().map(|(name, _)| *name)
}

pub(super) fn text(name: &str) -> Option<&'static str> {
    SHIPPED.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}
