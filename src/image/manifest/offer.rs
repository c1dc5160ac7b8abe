//! What an image offers, in the words of a recipe's budget.

use super::{Boot, Manifest, Ready};
use crate::recipe::budget::ImageDefaults;
use crate::recipe::{self, Firmware, Mebibytes};

impl Manifest {
    /// Returns what a guest of this image is given where its recipe says nothing.
    pub fn defaults(&self) -> ImageDefaults {
        let guest = self.guest();
        let pattern = guest.serial_pattern.clone();
        ImageDefaults {
            memory: guest.memory,
            cpus: guest.cpus,
            disk: guest.disk,
            // The file as it is downloaded, and about the same again as the guest's own disk.
            room: self
                .download()
                .and_then(|download| download.size)
                .and_then(|size| Mebibytes::new(size.div_ceil(1 << 20).saturating_mul(2))),
            firmware: guest.firmware.map(|boot| match boot {
                Boot::Bios => Firmware::Bios,
                Boot::Efi => Firmware::Efi,
            }),
            ready: guest.ready.and_then(|ready| match ready {
                Ready::Ssh => Some(recipe::Ready::Ssh),
                Ready::Serial => pattern.map(|pattern| recipe::Ready::Serial { pattern }),
                Ready::GuestAdditions => Some(recipe::Ready::GuestAdditions),
                Ready::Screen => Some(recipe::Ready::Screen),
            }),
            ssh: guest.ssh,
        }
    }
}
