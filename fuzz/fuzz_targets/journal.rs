//! A lab's journal after any damage: its records can be written and read again, and a torn last line
//! changes nothing of what was before.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nestlab::lab::JournalEntry;
use nestlab::lab::journal::Reading;

fuzz_target!(|data: &[u8]| {
    let reading = Reading::of(data);
    let whole = usize::try_from(reading.whole).expect("it lies within the data");
    assert!(whole <= data.len() && (whole == 0 || data[whole - 1] == b'\n'));
    let kept = Reading::of(&data[..whole]);
    assert_eq!((&kept.records, &kept.damaged), (&reading.records, &reading.damaged));
    let lines = data.iter().filter(|byte| **byte == b'\n').count();
    assert!(reading.records.len() + reading.damaged.len() <= lines);

    let mut written = Vec::new();
    for record in &reading.records {
        serde_json::to_writer(&mut written, record).expect("a record is JSON");
        written.push(b'\n');
    }
    let again = Reading::of(&written);
    assert_eq!(again.records.len(), reading.records.len());
    for (again, record) in again.records.iter().zip(&reading.records) {
        // serde_json may read back a fraction, in the settings of a VM, with another last bit.
        if !matches!(record.entry, JournalEntry::Former { .. }) {
            assert_eq!(again, record);
        }
    }
    written.extend_from_slice(br#"{"schema":1,"at":"2026"#);
    assert_eq!(Reading::of(&written).records, again.records);
});
