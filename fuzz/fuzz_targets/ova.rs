//! An OVA: every member of an accepted one lies inside it, under a plain name.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use nestlab::image::ova::inspect;

fuzz_target!(|data: &[u8]| {
    let Ok(ova) = inspect(&mut Cursor::new(data)) else { return };
    for (name, member) in &ova.members {
        assert!(!name.contains('/') && !name.starts_with('.'));
        assert!(member.offset + member.size <= data.len() as u64);
    }
});
