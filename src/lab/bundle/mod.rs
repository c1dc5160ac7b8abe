//! A bundle: what helps to understand a failed lab, in one archive that can be handed on. No private key,
//! password, token or cookie is in it.
//!
//! Each level is asked a fixed list of questions and for its guests' files; what does not answer is
//! named in the bundle, and never a reason not to make one.

mod archive;
mod questions;
mod secrets;

use std::time::Duration;

use camino::Utf8PathBuf;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use self::archive::Archive;
use self::secrets::Secrets;
use super::directory::Lab;
use super::numbered::Numbered;
use super::private;
use crate::error::{Error, Kind, Result};
use crate::event::EventSink;
use crate::host::{Command, HostRef, TimeoutScale};

/// How many bundles of a lab are kept; an older one goes when a new one is made.
const KEPT: usize = 5;
/// How much of the end of a file or an answer is taken, in bytes.
const TAIL: usize = 4 << 20;
/// How long a host may be silent while it answers a question, on bare metal.
const SILENCE: Duration = Duration::from_secs(20);

/// A machine to ask.
#[derive(Debug, Clone)]
pub struct BundleSource {
    /// Its name, `L0` or the guest's: the folder in the bundle.
    pub name: String,
    /// The machine.
    pub host: HostRef,
    /// How slow it is.
    pub patience: TimeoutScale,
    /// Its files to take: the name in the bundle, and the path there.
    pub files: Vec<(String, Utf8PathBuf)>,
}

/// A bundle that was made.
#[derive(Debug)]
pub struct Bundle {
    /// The archive, mode 0600.
    pub path: Utf8PathBuf,
    /// The names in it.
    pub files: Vec<String>,
    /// What could not be had, and why.
    pub missing: Vec<(String, String)>,
}

/// Makes a bundle of `lab` in its `logs/`. `unreachable` names the levels that could not be asked.
///
/// # Errors
/// [`Kind::Io`] if the archive cannot be written, [`Kind::Interrupted`].
pub async fn bundle(
    lab: &Lab,
    sources: &[BundleSource],
    unreachable: Vec<(String, String)>,
    events: &EventSink,
    cancel: &CancellationToken,
) -> Result<Bundle> {
    let (directory, beginning) = (lab.logs(), format!("nestlab-{}-", lab.name()));
    let earlier = Numbered { directory: &directory, beginning: &beginning, ending: ENDING };
    let path = earlier.next(KEPT, "")?;
    let name = path.file_name().expect("it has just been given one").trim_end_matches(ENDING);
    let mut gathering = Gathering {
        archive: Archive::create(&path, name)?,
        secrets: Secrets::of(lab)?,
        missing: unreachable,
    };
    gathering.own_files(lab)?;
    for source in sources {
        tokio::select! {
            biased;
            () = cancel.cancelled() => {
                return Err(Error::new(Kind::Interrupted, "interrupted; no bundle was made"));
            }
            asked = gathering.ask(source, events) => asked?,
        }
    }
    gathering.finish()
}

/// The ending of a bundle's name.
const ENDING: &str = ".bundle.tar.gz";

struct Gathering {
    archive: Archive,
    secrets: Secrets,
    missing: Vec<(String, String)>,
}

impl Gathering {
    fn add(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let clean = self.secrets.removed_from(bytes);
        self.archive.add(name, &clean)
    }

    /// Takes what lies in the lab's directory: the recipe, the journal, the logs; never keys or disks.
    fn own_files(&mut self, lab: &Lab) -> Result<()> {
        let mut files = vec![
            ("recipe.toml".to_owned(), lab.recipe_path()),
            ("journal.jsonl".to_owned(), lab.journal_path()),
            ("known_hosts".to_owned(), lab.known_hosts().path()),
        ];
        for entry in fs_err::read_dir(lab.logs())? {
            let Ok(path) = Utf8PathBuf::from_path_buf(entry?.path()) else { continue };
            let Some(name) = path.file_name().filter(|name| !name.ends_with(ENDING)) else {
                continue;
            };
            files.push((format!("logs/{name}"), path));
        }
        files.sort();
        for (name, path) in files {
            match fs_err::read(&path) {
                Ok(bytes) => self.add(&name, end_of(&bytes))?,
                Err(error) => self.missing.push((name, error.to_string())),
            }
        }
        Ok(())
    }

    async fn ask(&mut self, source: &BundleSource, events: &EventSink) -> Result<()> {
        events.doing(format!("asking {}", source.name));
        let questions = questions::of(&*source.host);
        for (file, command) in questions {
            self.put_answer(source, &format!("{}/{file}", source.name), command).await?;
        }
        for (name, path) in &source.files {
            let bytes = TAIL.to_string();
            let command = Command::new("tail").args(["-c", &bytes, "--", path.as_str()]);
            self.put_answer(source, &format!("{}/{name}", source.name), command).await?;
        }
        Ok(())
    }

    /// Puts what `command` answers into the bundle, or why it did not.
    async fn put_answer(
        &mut self,
        source: &BundleSource,
        name: &str,
        command: Command,
    ) -> Result<()> {
        let command = command.silence(source.patience.limit(SILENCE));
        match source.host.run(&command).await {
            Ok(output) if output.exit.success() => self.add(name, end_of(&output.stdout)),
            Ok(output) => {
                let error = output.error(&command);
                let why = error.output_tail().unwrap_or(error.message()).to_owned();
                self.missing.push((name.to_owned(), why));
                Ok(())
            }
            Err(error) => {
                self.missing.push((name.to_owned(), error.to_string()));
                Ok(())
            }
        }
    }

    fn finish(mut self) -> Result<Bundle> {
        let mut text = format!(
            "nestlab {}\nmade {:.0}\n\nPrivate keys, passwords, tokens and cookies were left out or replaced by {}.\n",
            env!("CARGO_PKG_VERSION"),
            Timestamp::now(),
            secrets::MARK,
        );
        if !self.missing.is_empty() {
            text.push_str("\nWhat could not be had:\n");
        }
        for (name, why) in &self.missing {
            text.push_str(&format!("  {name}: {}\n", crate::event::printable(why)));
        }
        self.add("README.txt", text.as_bytes())?;
        let (path, files) = self.archive.finish()?;
        private::check_secret(&path)?;
        Ok(Bundle { path, files, missing: self.missing })
    }
}

/// The last [`TAIL`] bytes.
fn end_of(bytes: &[u8]) -> &[u8] {
    &bytes[bytes.len().saturating_sub(TAIL)..]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;
    use std::sync::Arc;

    use camino::Utf8Path;

    use super::*;
    use crate::host::Local;
    use crate::lab::Labs;

    fn lab() -> (tempfile::TempDir, Lab) {
        let scratch = tempfile::tempdir().expect("a temporary directory");
        let state = Utf8Path::from_path(scratch.path()).expect("UTF-8").join("state");
        let lab = Labs::at(state).create(&"demo".parse().expect("a name"), "").expect("makes");
        (scratch, lab)
    }

    fn read(bundle: &Bundle) -> BTreeMap<String, String> {
        let file = std::fs::File::open(&bundle.path).expect("is there");
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
        let entries = archive.entries().expect("is a tar");
        entries
            .map(|entry| {
                let mut entry = entry.expect("is whole");
                let path = entry.path().expect("has a path").to_string_lossy().into_owned();
                let (_, name) = path.split_once('/').expect("everything is in one folder");
                let name = name.to_owned();
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).expect("reads");
                (name, String::from_utf8_lossy(&bytes).into_owned())
            })
            .collect()
    }

    fn here(files: Vec<(String, Utf8PathBuf)>) -> BundleSource {
        let host = Arc::new(Local::new());
        BundleSource { name: "L0".into(), host, patience: TimeoutScale::NATIVE, files }
    }

    async fn make(lab: &Lab, files: Vec<(String, Utf8PathBuf)>) -> Bundle {
        let unreachable = vec![("l1".to_owned(), "does not answer".to_owned())];
        bundle(lab, &[here(files)], unreachable, &EventSink::silent(), &CancellationToken::new())
            .await
            .expect("a bundle")
    }

    #[tokio::test]
    async fn a_bundle_has_what_the_lab_and_its_levels_say_and_names_what_it_has_not() {
        let (_keep, lab) = lab();
        let serial = lab.guest_directory("l1").join("serial.log");
        std::fs::create_dir_all(lab.guest_directory("l1")).expect("makes");
        std::fs::write(&serial, "login:").expect("writes");
        std::fs::write(lab.logs().join("x.log.jsonl"), "{}").expect("writes");
        let gone = lab.directory().join("gone.log");
        let files = vec![("l1/serial.log".to_owned(), serial), ("l1/gone.log".to_owned(), gone)];
        let made = make(&lab, files).await;
        let files = read(&made);
        assert_eq!(files["L0/l1/serial.log"], "login:");
        assert_eq!(files["logs/x.log.jsonl"], "{}");
        assert!(files["L0/uname"].contains("Linux"), "{:?}", files["L0/uname"]);
        for part in ["l1: does not answer", "L0/l1/gone.log: ", "journal.jsonl: "] {
            assert!(files["README.txt"].contains(part), "{part}: {}", files["README.txt"]);
        }
    }

    #[tokio::test]
    async fn no_private_key_is_in_a_bundle_wherever_it_was_printed() {
        let (_keep, lab) = lab();
        let (user, host) =
            (lab.keys().user().expect("makes"), lab.keys().host_key("l1").expect("makes"));
        let inner: Vec<&str> = user.private().lines().collect();
        let said = format!(
            "oops:\n{}\nand in pieces: {} {}\n",
            host.private(),
            inner[1],
            serde_json::to_string(user.private()).expect("is JSON"),
        );
        std::fs::write(lab.logs().join("x.log.jsonl"), &said).expect("writes");
        let recipe = "proxy = \"http://me:hunter2@proxy.example:8080\"\n";
        lab.lock(["test"]).and_then(|lock| lock.keep_recipe(recipe)).expect("writes");
        let files = read(&make(&lab, Vec::new()).await);
        let all: String = files.values().cloned().collect();
        for key in [user.private(), host.private()] {
            for line in key.lines().filter(|line| line.len() > 30 && !line.contains("KEY")) {
                assert!(!all.contains(line), "a line of a private key is in the bundle");
            }
        }
        assert!(!all.contains("hunter2"));
        assert!(files["recipe.toml"].contains("proxy.example:8080"), "{}", files["recipe.toml"]);
        assert!(!files.keys().any(|name| name.contains("keys/")), "{:?}", files.keys());
    }

    #[tokio::test]
    async fn old_bundles_make_room_and_none_is_inside_another() {
        let (_keep, lab) = lab();
        for _ in 0..KEPT {
            make(&lab, Vec::new()).await;
        }
        let last = make(&lab, Vec::new()).await;
        assert!(!last.files.iter().any(|name| name.ends_with(ENDING)), "{:?}", last.files);
        assert_eq!(lab.logs().read_dir_utf8().expect("lists").count(), KEPT);
    }

    #[tokio::test]
    async fn the_newest_bundles_stay_although_the_clock_was_set_back() {
        let (_keep, lab) = lab();
        for day in 10..10 + KEPT {
            let name = format!("nestlab-demo-209901{day}T000000.000000Z{ENDING}");
            std::fs::write(lab.logs().join(name), "").expect("writes");
        }
        let (one, two) = (make(&lab, Vec::new()).await, make(&lab, Vec::new()).await);
        assert!(one.path.exists() && two.path.exists());
        assert_eq!(lab.logs().read_dir_utf8().expect("lists").count(), KEPT);
    }

    #[tokio::test]
    async fn a_key_in_a_log_with_a_nul_in_it_is_in_no_bundle() {
        let (_keep, lab) = lab();
        let key = lab.keys().user().expect("makes");
        let said = format!("\0boot\r\n{}", key.private().replace('\n', "\r\n"));
        std::fs::write(lab.logs().join("l1-serial.log"), said).expect("writes");
        let files = read(&make(&lab, Vec::new()).await);
        let left = &files["logs/l1-serial.log"];
        assert!(left.contains("boot") && left.contains(secrets::MARK), "{left:?}");
        for line in key.private().lines().filter(|line| line.len() > 30 && !line.contains("KEY")) {
            assert!(!left.contains(line), "a line of a private key is in the bundle");
        }
    }

    #[tokio::test]
    async fn an_interrupted_bundle_leaves_no_file() {
        let (_keep, lab) = lab();
        let cancel = CancellationToken::new();
        cancel.cancel();
        let host = Arc::new(crate::host::scripted::Scripted::new("L0"));
        let source = BundleSource {
            name: "L0".into(),
            host,
            patience: TimeoutScale::NATIVE,
            files: Vec::new(),
        };
        let made = bundle(&lab, &[source], Vec::new(), &EventSink::silent(), &cancel).await;
        assert_eq!(made.expect_err("was cancelled").kind(), Kind::Interrupted);
        assert_eq!(lab.logs().read_dir_utf8().expect("lists").count(), 0);
    }
}
