//! The tar inside a `.libvirt.xz`: nothing is ever put outside the size that its disk claims.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nestlab::image::unpack::{Holes, Limits, sparse_tar};

/// Remembers how far anything was put.
#[derive(Default)]
struct Far(u64);

impl Holes for Far {
    fn put(&mut self, at: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.0 = self.0.max(at + bytes.len() as u64);
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| {
    let limits = Limits { bytes: 1 << 30, written: 1 << 30 };
    let mut far = Far::default();
    if let Ok(found) = sparse_tar::disk(data, &mut far, limits) {
        assert!(far.0 <= found.size && found.size <= limits.bytes);
    }
    assert!(far.0 <= limits.bytes);
});
