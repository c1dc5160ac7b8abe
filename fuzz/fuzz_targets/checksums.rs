//! A checksum file from a publisher: what is accepted is text that names the file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nestlab::image::verify::checksums::of_file;

fuzz_target!(|data: &[u8]| {
    if of_file(data, "a.ova").is_ok() {
        assert!(std::str::from_utf8(data).is_ok_and(|text| text.contains("a.ova")));
    }
});
