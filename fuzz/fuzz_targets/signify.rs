//! A signify signature file: nothing that a fuzzer can make is by Kicksecure's key.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nestlab::image::verify::signify::{PublicKey, verify};

fuzz_target!(|data: &[u8]| {
    let key: PublicKey = "RWQ6KRormNEETq+M8IysxRe/HAWlqZRlO8u7ACIiv5poAW0ztsirOjCQ".parse().expect("a key");
    assert!(verify(&key, b"message", data).is_err());
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(key) = text.parse::<PublicKey>()
    {
        assert_eq!(key.to_string().parse(), Ok(key));
    }
});
