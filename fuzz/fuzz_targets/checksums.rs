//! A checksum file from a publisher: what is accepted names the file exactly once.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nestlab::image::proof::checksums::of_file;

fuzz_target!(|data: &[u8]| {
    if of_file(data, "a.ova").is_ok() {
        let text = std::str::from_utf8(data).expect("only text is accepted");
        let lines = text.lines().filter(|line| line.ends_with(" a.ova") || line.ends_with("*a.ova") || line.contains("(a.ova)"));
        assert_eq!(lines.count(), 1);
    }
});
