//! A guest's serial console: however its bytes arrive, a line that is found matches and cannot drive a
//! terminal, and a line that comes in pieces is found as if it came at once.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nestlab::guest::readiness::Serial;
use regex::Regex;

thread_local! {
    static PATTERN: Regex = Regex::new("^[a-z0-9]+ (login:|ready)$").expect("a pattern");
}

fn take(serial: &mut Serial, size: usize, bytes: &[u8]) -> Option<String> {
    serial.take(size.to_string().as_bytes(), bytes).expect("a size")
}

// The first byte says where the rest is cut in two.
fuzz_target!(|data: &[u8]| {
    let Some((cut, bytes)) = data.split_first() else { return };
    let pattern = PATTERN.with(Regex::clone);
    let cut = usize::from(*cut) % (bytes.len() + 1);
    let at_once = take(&mut Serial::new(pattern.clone()), bytes.len(), bytes);
    let mut serial = Serial::new(pattern.clone());
    let first = take(&mut serial, bytes.len(), &bytes[..cut]);
    let second = take(&mut serial, bytes.len(), &bytes[cut..]);
    for line in [&at_once, &first, &second].into_iter().flatten() {
        assert!(pattern.is_match(line));
        assert!(!line.chars().any(char::is_control));
    }
    // In pieces, an unfinished line may match too.
    assert!(at_once.is_none() || first.is_some() || second == at_once);
    // A log that is shorter than what was read is a new one.
    assert_eq!(serial.take(b"0", b"").expect("a size"), None);
});
