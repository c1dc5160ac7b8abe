//! Guests of one boot sector, assembled from `tests/guests/`.

use std::process::Command;

use camino::Utf8Path;

/// Assembles `tests/guests/<name>.s` into a raw disk at `disk`. It has 1 MiB: SeaBIOS boots none that is
/// smaller than a track.
pub(crate) fn assemble(name: &str, disk: &Utf8Path) {
    let source = format!("{}/tests/guests/{name}.s", env!("CARGO_MANIFEST_DIR"));
    let object = disk.with_extension("o");
    run(Command::new("as").args(["--64", &source, "-o", object.as_str()]));
    let link = ["-e", "0", "-Ttext=0", "--oformat", "binary"];
    run(Command::new("ld").args(link).args([object.as_str(), "-o", disk.as_str()]));
    std::fs::remove_file(&object).expect("the object was made");
    let file = std::fs::File::options().write(true).open(disk).expect("the disk was made");
    file.set_len(1 << 20).expect("the disk grows");
}

/// Runs `command`, which must succeed.
pub(crate) fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}
