//! An OVF descriptor from an OVA: every disk's file is one of the listed files.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nestlab::image::ovf::parse;

fuzz_target!(|data: &[u8]| {
    let Ok(descriptor) = parse(data) else { return };
    for disk in &descriptor.disks {
        if let Some(file) = &disk.file {
            assert!(descriptor.files.iter().any(|known| known.href == *file));
        }
    }
});
