//! What VBoxManage printed: whatever the text, values that came from it, and settings that text which a
//! user wrote freely cannot override.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nestlab::hypervisor::virtualbox::{fault, parse};

fuzz_target!(|data: &str| {
    let text = parse::without_warnings(data);
    assert!(data.ends_with(text) && !text.starts_with("WARNING:"));
    for vm in parse::list_vms(text) {
        assert_eq!(vm.uuid.len(), 36);
        assert!(text.contains(&vm.name) || vm.name.contains('\n'));
    }
    let settings = parse::machine_readable(text);
    let behind = parse::machine_readable(&format!("cpus=3\nVMState=\"poweroff\"\n{text}"));
    assert_eq!((behind["cpus"].as_str(), behind["VMState"].as_str()), ("3", "poweroff"));
    assert!(settings.len() <= behind.len());
    for uuid in parse::settings_files(text).keys() {
        assert_eq!(uuid.len(), 36);
    }
    for path in parse::media(text) {
        assert!(text.contains(&path));
    }
    let _ = (parse::fields(text), parse::capacity_mib(text), parse::value(text));
    let _ = fault::fault_in(text);
});
