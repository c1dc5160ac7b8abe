//! What an image offers, in the words of a recipe's budget.

use super::{Manifest, SeedKind};
use crate::recipe::Mebibytes;
use crate::recipe::budget::ImageDefaults;

impl Manifest {
    /// Returns what a guest of this image is given where its recipe says nothing.
    pub fn defaults(&self) -> ImageDefaults {
        let guest = self.guest();
        ImageDefaults {
            memory: guest.memory,
            cpus: guest.cpus,
            disk: guest.disk,
            // The file as it is downloaded, and about the same again as the guest's own disk.
            room: self
                .download()
                .and_then(|download| download.size)
                .and_then(|size| Mebibytes::new(size.div_ceil(1 << 20).saturating_mul(2))),
            firmware: guest.firmware,
            ready: guest.ready.clone(),
            ssh: guest.ssh,
            seeded: guest.seed == SeedKind::CiData && guest.ssh,
        }
    }
}
