//! Moving what a guest has out of the way of another that takes its place.

use camino::Utf8Path;

use crate::host::Command;

/// What the folders begin with in which what a guest had is kept, inside the guest's own.
pub const KEPT: &str = "replaced-";

/// Moves all that is in the folder `$1` to the folder `$2` inside it, the disk last, but for what was kept
/// before and what is just being copied. Run again, it moves what is left.
const MOVE: &str = r#"
set -e
umask 077
mkdir -p -- "$2"
cd -- "$1"
move() {
    for name do
        case $name in replaced-* | *.part | . | ..) continue ;; esac
        [ ! -e "$name" ] && [ ! -L "$name" ] || mv -f -- "$name" "$kept/"
    done
}
kept=$2
for name in * .[!.]*; do
    case $name in disk.*) ;; *) move "$name" ;; esac
done
move disk.*
sync -- . "$2"
"#;

/// Returns the command that moves all that is in the folder `directory` to `kept`, a folder inside it whose
/// name begins with [`KEPT`].
pub(super) fn command(directory: &Utf8Path, kept: &Utf8Path) -> Command {
    Command::new("sh").args(["-c", MOVE, "nestlab-aside", directory.as_str(), kept.as_str()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_copies_under_way_and_what_was_kept_before_is_moved_also_in_two_goes() {
        let folder = tempfile::tempdir().expect("a folder");
        let directory = Utf8Path::from_path(folder.path()).expect("UTF-8");
        let names = ["guest.json", "disk.qcow2", "-odd name", ".hidden", "disk.qcow2.new.part"];
        for name in names {
            std::fs::write(directory.join(name), name).expect("writes");
        }
        for name in ["replaced-1", "replaced-2"] {
            std::fs::create_dir(directory.join(name)).expect("makes");
        }
        let kept = directory.join("replaced-2");
        std::fs::rename(directory.join("guest.json"), kept.join("guest.json")).expect("moves");
        let argv = command(directory, &kept);
        for _ in 0..2 {
            let status = std::process::Command::new("sh").args(&argv.argv()[1..]).status();
            assert!(status.expect("runs").success());
        }
        let list = |folder: &Utf8Path| {
            let files = folder.read_dir_utf8().expect("is there");
            let mut names: Vec<String> =
                files.map(|file| file.expect("reads").file_name().to_owned()).collect();
            names.sort();
            names
        };
        assert_eq!(list(directory), ["disk.qcow2.new.part", "replaced-1", "replaced-2"]);
        assert_eq!(list(&kept), ["-odd name", ".hidden", "disk.qcow2", "guest.json"]);
    }
}
