//! Debian packages that are older than those of the archive's unstable suite: an image that is built with
//! them has something to upgrade, whatever the archive holds today.

use std::path::{Path, PathBuf};
use std::process::Command;

use nestlab::image::build::mirror::Mirror;

/// Where the older packages come from.
const SUITE: &str = "trixie";

/// Packages of [`SUITE`] in a folder, fetched by an apt that knows nothing of this machine's packages.
pub struct Outdated<'a> {
    folder: &'a Path,
}

impl<'a> Outdated<'a> {
    /// Reads the suite's lists.
    pub fn in_folder(folder: &'a Path) -> Self {
        let mirror = Mirror::of_this_host().expect("a Debian mirror");
        for path in ["etc", "lists/partial", "cache/archives/partial", "debs"] {
            std::fs::create_dir_all(folder.join(path)).expect("the folder can be written");
        }
        let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let line = format!("deb [signed-by={keys}] {} {SUITE} main\n", mirror.archive());
        std::fs::write(folder.join("etc/sources.list"), line).expect("it can be written");
        let outdated = Outdated { folder };
        outdated.apt(&["update"]);
        outdated
    }

    /// A kernel, and the package that asks for the newest one: an upgrade replaces it, and the machine
    /// runs another kernel than it should until it is rebooted.
    pub fn kernel(&self) -> Vec<PathBuf> {
        let newest = self.download("linux-image-amd64");
        let needs = run(Command::new("dpkg-deb").arg("-f").arg(&newest).arg("Depends"));
        let kernel = needs.split_whitespace().next().expect("it depends on a kernel");
        vec![self.download(kernel.trim_end_matches(',')), newest]
    }

    /// `hostname` under a version that is older than any.
    pub fn hostname(&self) -> PathBuf {
        let package = self.download("hostname");
        let tree = self.folder.join("tree");
        run(Command::new("dpkg-deb").arg("-R").arg(&package).arg(&tree));
        let control = tree.join("DEBIAN/control");
        let text = std::fs::read_to_string(&control).expect("a control file");
        let older = |line: &str| match line.starts_with("Version:") {
            true => "Version: 0~nestlab1\n".to_owned(),
            false => format!("{line}\n"),
        };
        std::fs::write(&control, text.lines().map(older).collect::<String>()).expect("it");
        let deb = self.folder.join("hostname_old.deb");
        // With a fixed date the same package comes out each time, and so the same image.
        let date = ("SOURCE_DATE_EPOCH", "0");
        let build = ["--root-owner-group", "-b"];
        run(Command::new("dpkg-deb").env(date.0, date.1).args(build).arg(&tree).arg(&deb));
        deb
    }

    fn download(&self, name: &str) -> PathBuf {
        self.apt(&["download", name]);
        let files = std::fs::read_dir(self.folder.join("debs")).expect("the folder").flatten();
        let mut found = files.map(|entry| entry.path()).filter(|path| {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            file.split('_').next() == Some(name)
        });
        found.next().unwrap_or_else(|| panic!("{name} came"))
    }

    fn apt(&self, words: &[&str]) {
        let within =
            |option: &str, path: &str| format!("{option}={}", self.folder.join(path).display());
        let options = [
            within("Dir::Etc::sourcelist", "etc/sources.list"),
            within("Dir::Etc::sourceparts", "etc/none"),
            within("Dir::State::lists", "lists"),
            within("Dir::Cache", "cache"),
            "Dir::State::status=/dev/null".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            "APT::Sandbox::User=".to_owned(),
            // A mirror that is behind is good enough here; its signatures are checked all the same.
            "Acquire::Check-Valid-Until=false".to_owned(),
        ];
        let options = options.iter().flat_map(|option| ["-o", option.as_str()]);
        run(Command::new("apt-get")
            .current_dir(self.folder.join("debs"))
            .arg("-q")
            .args(options)
            .args(words));
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("the program runs");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}
