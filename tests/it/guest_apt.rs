//! apt in a guest, against the real apt and dpkg of a small real Debian, with repositories made for the
//! test that misbehave as real ones do.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

use crate::support::debian::{Deb, Debian, index};
use nestlab::event::{Event, EventSink, Progress};
use nestlab::guest::ExecContext;
use nestlab::guest::apt::{self, Task};
use nestlab::host::{Command, Host, TimeoutScale};
use nestlab::{Kind, Result};
use tokio_util::sync::CancellationToken;
use wiremock::matchers::any;
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

const LOCAL: &str = "deb [trusted=yes] file:/srv/repo ./\n";
const LIST: &str = "/etc/apt/sources.list.d/test.list";

/// apt waits longer before each of its own retries; here nothing is won by that.
const IMPATIENT: &str = "Acquire::Retries::Delay \"false\";\n";

impl Debian {
    /// Starts a constant shell script inside; it runs until it ends or the Debian does.
    fn spawn(&self, script: &str) -> Child {
        let command = self.enter(&Command::new("sh").args(["-c", script]));
        std::process::Command::new(&command.argv()[0])
            .args(&command.argv()[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("nsenter runs")
    }

    /// Writes a file inside.
    async fn write(&self, path: &str, text: &str) {
        let command = Command::new("tee").arg(path).stdin(text);
        let host: &dyn Host = self;
        host.check(&command).await.expect("tee writes");
    }
}

/// A Debian to work in, and what it told on the way.
struct Lab {
    debian: Debian,
    events: EventSink,
    told: Arc<Mutex<Vec<Event>>>,
    cancel: CancellationToken,
}

impl Lab {
    /// Starts a Debian whose repository, [`LOCAL`], has these packages.
    async fn with(packages: &[Deb<'_>]) -> Lab {
        Lab::on_disk("1G", packages).await
    }

    async fn on_disk(size: &str, packages: &[Deb<'_>]) -> Lab {
        let debian = Debian::start(size);
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = told.clone();
        let events = EventSink::new(move |event| sink.lock().expect("not poisoned").push(event));
        let lab = Lab {
            debian,
            events: events.for_step("l1/apt"),
            told,
            cancel: CancellationToken::new(),
        };
        lab.publish(packages);
        lab.debian.write(LIST, LOCAL).await;
        lab
    }

    /// Adds packages to the repository.
    fn publish(&self, packages: &[Deb<'_>]) {
        let repository = self.debian.srv().join("repo");
        fs_err::create_dir_all(&repository).expect("creates");
        packages.iter().for_each(|package| package.build(&repository));
        index(&repository);
    }

    fn site(&self) -> ExecContext<'_> {
        ExecContext {
            host: &self.debian,
            patience: TimeoutScale::NATIVE,
            events: &self.events,
            cancel: &self.cancel,
        }
    }

    async fn apply(&self, task: &Task) -> Result<()> {
        apt::apply(self.site(), task).await
    }

    async fn why(&self, task: &Task) -> Option<String> {
        apt::why(self.site(), task).await.expect("can be asked")
    }

    /// Fetches the lists and installs `names`.
    async fn installed(&self, names: &[&str]) {
        self.apply(&Task::Update).await.expect("updates");
        self.apply(&install(names)).await.expect("installs");
    }

    async fn version(&self, package: &str) -> String {
        self.debian
            .sh(r#"dpkg-query -W -f '${Version} ${db:Status-Status}' "$1""#, &[package])
            .await
    }

    fn said(&self, what: &str) -> bool {
        said(&self.told, what)
    }
}

fn said(told: &Mutex<Vec<Event>>, what: &str) -> bool {
    progress(told).iter().any(|line| line.contains(what))
}

/// Returns what was told on the progress line.
fn progress(told: &Mutex<Vec<Event>>) -> Vec<String> {
    let told = told.lock().expect("not poisoned");
    told.iter()
        .filter_map(|event| match event {
            Event::StepProgress { progress: Progress::Doing { what }, .. } => Some(what.clone()),
            Event::StepProgress { progress: Progress::Items { done, total, item }, .. } => {
                Some(format!("{done}/{total} {item}"))
            }
            _ => None,
        })
        .collect()
}

fn install(names: &[&str]) -> Task {
    Task::install(names.iter().map(|name| name.parse().expect("a package's name")))
}

/// Serves `lab`'s repository; while `broken` says so, it answers that it is overloaded.
async fn mirror(lab: &Lab, broken: impl Fn() -> bool + Send + Sync + 'static) -> MockServer {
    let server = MockServer::start().await;
    let root = lab.debian.srv().join("repo");
    Mock::given(any())
        .respond_with(move |request: &Request| {
            let path = request.url.path().trim_start_matches("/./").trim_start_matches('/');
            match std::fs::read(root.join(path)) {
                _ if broken() => ResponseTemplate::new(503),
                Ok(bytes) => ResponseTemplate::new(200).set_body_bytes(bytes),
                Err(_) => ResponseTemplate::new(404),
            }
        })
        .mount(&server)
        .await;
    lab.debian.write("/etc/apt/apt.conf.d/99impatient", IMPATIENT).await;
    server
}

#[tokio::test]
async fn the_lists_are_fetched_once_and_again_when_the_sources_change() {
    let lab = Lab::with(&[Deb::default()]).await;
    assert!(lab.why(&Task::Update).await.expect("needed").contains("not fetched"));
    lab.apply(&Task::Update).await.expect("updates");
    assert_eq!(lab.why(&Task::Update).await, None);
    lab.debian.write("/etc/apt/sources.list.d/more.list", "# one more\n").await;
    assert!(lab.why(&Task::Update).await.expect("needed").contains("changed"));
    lab.apply(&Task::Update).await.expect("updates");
    lab.debian.sh("rm -r /var/lib/apt/lists/*", &[]).await;
    assert!(lab.why(&Task::Update).await.expect("needed").contains("gone"));
}

#[tokio::test]
async fn the_lists_of_an_update_that_nobody_waited_for_are_not_taken_for_todays() {
    // Says that it is there by opening the first pipe, and ends with the second; once.
    const HOOK: &str = "APT::Update::Post-Invoke-Success { \
        \"if [ -p /srv/here ]; then read -r _ </srv/here; read -r _ </srv/go; fi; :\"; };\n";
    let lab = Lab::with(&[Deb::default()]).await;
    lab.debian.write("/etc/apt/apt.conf.d/99hook", HOOK).await;
    lab.debian.sh("mkfifo /srv/here /srv/go", &[]).await;
    tokio::select! {
        ended = lab.apply(&Task::Update) => panic!("it waits for the pipe: {ended:?}"),
        _ = lab.debian.sh(": >/srv/here", &[]) => {}
    }
    // nestlab is gone; apt-get is not.
    let finish = ": >/srv/go; rm /srv/here; cd /var/lib/nestlab/jobs; \
        until [ -e apt-get-*/exit ]; do sleep 0.1; done";
    lab.debian.sh(finish, &[]).await;
    lab.publish(&[Deb { name: "nl-new", ..Deb::default() }]);
    lab.apply(&Task::Update).await.expect("updates");
    let known = lab.debian.sh("apt-cache policy nl-new", &[]).await;
    assert!(known.contains("Candidate: 1"), "the lists are the earlier run's: {known}");
}

#[tokio::test]
async fn a_mirror_that_cannot_be_reached_is_no_success_though_apt_would_say_so() {
    let lab = Lab::with(&[]).await;
    lab.debian.write("/etc/apt/apt.conf.d/99impatient", IMPATIENT).await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = closed.local_addr().expect("bound");
    drop(closed);
    lab.debian.write(LIST, &format!("{LOCAL}deb [trusted=yes] http://{address} ./\n")).await;
    let error = lab.apply(&Task::Update).await.expect_err("cannot be reached");
    assert_eq!(error.kind(), Kind::Network, "{error:?}");
    assert!(error.output_tail().expect("apt's words").contains(&address.to_string()), "{error:?}");
    assert!(lab.why(&Task::Update).await.is_some());
}

#[tokio::test]
async fn a_mirror_that_recovers_is_asked_again() {
    let lab = Lab::with(&[Deb::default()]).await;
    let told = lab.told.clone();
    let server = mirror(&lab, move || !said(&told, "asking the mirror again")).await;
    lab.debian.write(LIST, &format!("deb [trusted=yes] {} ./\n", server.uri())).await;
    lab.installed(&["nl-one"]).await;
    assert_eq!(lab.version("nl-one").await, "1 installed");
}

#[tokio::test]
async fn lists_that_the_mirror_has_outgrown_are_fetched_again() {
    let lab = Lab::with(&[Deb::default()]).await;
    let server = mirror(&lab, || false).await;
    lab.debian.write(LIST, &format!("deb [trusted=yes] {} ./\n", server.uri())).await;
    lab.apply(&Task::Update).await.expect("updates");
    fs_err::remove_file(lab.debian.srv().join("repo/nl-one_1_all.deb")).expect("removes");
    lab.publish(&[Deb { version: "2", ..Deb::default() }]);
    lab.apply(&install(&["nl-one"])).await.expect("installs");
    assert_eq!(lab.version("nl-one").await, "2 installed");
}

#[tokio::test]
async fn a_full_upgrade_upgrades_and_then_has_nothing_to_do() {
    let lab = Lab::with(&[Deb::default()]).await;
    lab.installed(&["nl-one"]).await;
    assert_eq!(lab.why(&Task::FullUpgrade).await, None);
    lab.publish(&[
        Deb { version: "2", control: "Depends: nl-new\n", ..Deb::default() },
        Deb { name: "nl-new", ..Deb::default() },
    ]);
    lab.apply(&Task::Update).await.expect("updates");
    let why = lab.why(&Task::FullUpgrade).await;
    assert_eq!(why.as_deref(), Some("2 packages to install or upgrade"));
    lab.apply(&Task::FullUpgrade).await.expect("upgrades");
    assert_eq!(lab.why(&Task::FullUpgrade).await, None);
    assert_eq!(lab.version("nl-one").await, "2 installed");
    let history = lab.debian.sh("cat /var/log/apt/history.log", &[]).await;
    assert!(history.contains(" full-upgrade\n"), "{history}");
}

#[tokio::test]
async fn what_is_only_recommended_is_not_installed_and_the_packages_are_named_as_they_come() {
    let lab = Lab::with(&[
        Deb { control: "Depends: nl-two\nRecommends: nl-extra\n", ..Deb::default() },
        Deb { name: "nl-two", ..Deb::default() },
        Deb { name: "nl-extra", ..Deb::default() },
    ])
    .await;
    lab.apply(&Task::Update).await.expect("updates");
    let task = install(&["nl-one"]);
    assert_eq!(lab.why(&task).await.as_deref(), Some("nl-one is not installed"));
    lab.apply(&task).await.expect("installs");
    assert_eq!(lab.why(&task).await, None);
    assert!(lab.why(&install(&["nl-extra"])).await.is_some());
    let history = lab.debian.sh("cat /var/log/apt/history.log", &[]).await;
    assert!(history.contains(" install --no-install-recommends nl-one\n"), "{history}");
    let told = progress(&lab.told);
    // How far it is of both is apt's own percentage, which counts unpacking too.
    let items: Vec<_> = told.iter().filter_map(|line| line.split_once("/2 Installed ")).collect();
    let names: Vec<_> = items.iter().map(|(_, name)| *name).collect();
    assert_eq!(names, ["nl-two", "nl-one"]);
    assert!(items.is_sorted_by_key(|(done, _)| done.parse::<u32>().expect("a number")), "{told:?}");
}

#[tokio::test]
async fn no_question_is_asked_and_changed_settings_are_kept() {
    const TEMPLATES: &str =
        "Template: nl-one/disk\nType: string\nDescription: Which disk?\n It must be one.\n";
    const CONFIG: &str = "#!/bin/sh\nset -e\n. /usr/share/debconf/confmodule\ndb_input critical nl-one/disk || true\ndb_go\n";
    const POSTINST: &str =
        "#!/bin/sh\nset -e\n. /usr/share/debconf/confmodule\ndb_get nl-one/disk\n[ -z \"$RET\" ]\n";
    let scripts = [
        ("templates", TEMPLATES),
        ("config", CONFIG),
        ("postinst", POSTINST),
        ("conffiles", "/etc/nl-one.conf\n"),
    ];
    let one = |version, settings: &'static str| Deb {
        version,
        control: "Depends: debconf\n",
        files: if settings == "a" {
            &[("etc/nl-one.conf", "a\n")]
        } else {
            &[("etc/nl-one.conf", "b\n")]
        },
        scripts: &scripts,
        ..Deb::default()
    };
    let lab = Lab::with(&[one("1", "a")]).await;
    lab.installed(&["nl-one"]).await;
    lab.debian.write("/etc/nl-one.conf", "mine\n").await;
    lab.publish(&[one("2", "b")]);
    lab.apply(&Task::Update).await.expect("updates");
    lab.apply(&Task::FullUpgrade).await.expect("upgrades");
    assert_eq!(lab.version("nl-one").await, "2 installed");
    assert_eq!(lab.debian.sh("cat /etc/nl-one.conf", &[]).await, "mine\n");
}

#[tokio::test]
async fn an_interrupted_dpkg_is_finished_first() {
    // Blocks on a pipe until it is killed; the second time there is no pipe.
    const POSTINST: &str = "#!/bin/sh\nif [ -p /srv/pipe ]; then read -r _ </srv/pipe; fi\n";
    let lab = Lab::with(&[
        Deb { scripts: &[("postinst", POSTINST)], ..Deb::default() },
        Deb { name: "nl-two", ..Deb::default() },
    ])
    .await;
    lab.apply(&Task::Update).await.expect("updates");
    lab.debian.sh("mkfifo /srv/pipe", &[]).await;
    let mut apt = lab.debian.spawn("exec apt-get -y install nl-one");
    lab.debian
        .sh("until script=$(pidof -x nl-one.postinst); do sleep 0.1; done; kill -9 $(pidof dpkg apt-get) $script; rm /srv/pipe", &[])
        .await;
    apt.wait().expect("ends");
    let state = lab.version("nl-one").await;
    assert!(state.contains("half-configured"), "{state}");
    lab.apply(&install(&["nl-two"])).await.expect("repairs, then installs");
    assert_eq!(lab.version("nl-one").await, "1 installed");
    assert_eq!(lab.version("nl-two").await, "1 installed");
    assert!(lab.said("finishing what an interrupted dpkg left"), "{:?}", progress(&lab.told));
}

#[tokio::test]
async fn a_held_lock_is_waited_for_and_its_holder_named() {
    // Takes the lock as apt does, says so, and keeps it until its input ends.
    const HOLD: &str = r#"
cp /usr/bin/perl /usr/local/bin/unattended-upgr
exec unattended-upgr -e '
    use Fcntl qw(F_SETLK F_WRLCK SEEK_SET);
    my @locks;
    for my $file ("/var/lib/dpkg/lock-frontend", "/var/lib/apt/lists/lock") {
        open(my $lock, ">>", $file) or die;
        my $whole = pack("s! s! x![q] q q i x4", F_WRLCK, SEEK_SET, 0, 0, 0);
        fcntl($lock, F_SETLK, $whole) or die;
        push @locks, $lock;
    }
    $| = 1; print "held\n"; <STDIN>'
"#;
    let lab = Lab::with(&[Deb::default()]).await;
    let mut holder = lab.debian.spawn(HOLD);
    let mut said = String::new();
    BufReader::new(holder.stdout.take().expect("piped")).read_line(&mut said).expect("reads");
    assert_eq!(said, "held\n");
    let update = lab.apply(&Task::Update);
    tokio::pin!(update);
    loop {
        tokio::select! {
            done = &mut update => panic!("did not wait for the lock: {done:?}"),
            () = tokio::time::sleep(std::time::Duration::from_millis(50)) => {}
        }
        if lab.said("waiting for unattended-upgrades (process ") {
            break;
        }
    }
    holder.stdin.take().expect("piped").write_all(b"\n").expect("writes");
    update.await.expect("updates once the lock is free");
    holder.wait().expect("ends");
}

#[tokio::test]
async fn what_does_not_fit_on_the_disk_is_refused_before_anything_is_touched() {
    let huge = Deb { name: "nl-huge", control: "Installed-Size: 90000000\n", ..Deb::default() };
    let lab = Lab::with(&[huge]).await;
    lab.apply(&Task::Update).await.expect("updates");
    let error = lab.apply(&install(&["nl-huge"])).await.expect_err("does not fit");
    assert!(error.message().contains("too small to install nl-huge"), "{error}");
    assert!(error.hints()[0].contains("`disk`"), "{error:?}");
    assert_eq!(
        lab.debian.sh("ls /var/cache/apt/archives/*.deb 2>/dev/null || true", &[]).await,
        ""
    );
}

#[tokio::test]
async fn a_disk_that_fills_up_is_recognized() {
    // It says that it is small, and fills the disk when it is configured.
    const POSTINST: &str = "#!/bin/sh\nset -e\ndd if=/dev/zero of=/var/tmp/big bs=1M\n";
    let lab = Lab::with(&[Deb { scripts: &[("postinst", POSTINST)], ..Deb::default() }]).await;
    lab.apply(&Task::Update).await.expect("updates");
    let error = lab.apply(&install(&["nl-one"])).await.expect_err("fills the disk");
    assert!(error.message().contains("the disk is full"), "{error:?}");
    assert!(error.hints()[0].contains("disk"), "{error:?}");
}

#[tokio::test]
async fn an_expired_mirror_is_refused_with_the_reason_unless_the_image_allows_it() {
    let lab = Lab::with(&[Deb::default()]).await;
    release(&lab, "Thu, 01 Jan 2015 00:00:00 UTC", Some("Fri, 02 Jan 2015 00:00:00 UTC"));
    let error = lab.apply(&Task::Update).await.expect_err("expired");
    assert_eq!(error.kind(), Kind::Network, "{error:?}");
    assert!(error.message().contains("expired"), "{error}");
    assert!(error.hints()[0].contains("`allow-stale ="), "{error:?}");
    apt::accept_stale_release(lab.site()).await.expect("writes the setting");
    lab.apply(&Task::Update).await.expect("updates");
}

#[tokio::test]
async fn a_mirror_of_the_future_is_blamed_on_the_clock() {
    let lab = Lab::with(&[Deb::default()]).await;
    release(&lab, "Thu, 01 Jan 2099 00:00:00 UTC", None);
    let error = lab.apply(&Task::Update).await.expect_err("not valid yet");
    assert!(error.message().contains("clock"), "{error:?}");
}

#[tokio::test]
async fn an_unsigned_repository_is_not_trusted() {
    let lab = Lab::with(&[Deb::default()]).await;
    release(&lab, "Thu, 01 Jan 2015 00:00:00 UTC", None);
    lab.debian.write(LIST, "deb file:/srv/repo ./\n").await;
    let error = lab.apply(&Task::Update).await.expect_err("unsigned");
    assert_eq!(error.kind(), Kind::Untrusted, "{error:?}");
}

#[tokio::test]
async fn a_package_that_fails_is_named_with_what_it_said() {
    const POSTINST: &str = "#!/bin/sh\necho the frobnicator is missing\nexit 3\n";
    let lab = Lab::with(&[Deb { scripts: &[("postinst", POSTINST)], ..Deb::default() }]).await;
    lab.apply(&Task::Update).await.expect("updates");
    let error = lab.apply(&install(&["nl-one"])).await.expect_err("fails");
    assert!(error.message().contains("nl-one"), "{error}");
    assert!(
        error.output_tail().expect("output").contains("the frobnicator is missing"),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_package_that_no_repository_has_is_named_with_where_to_look() {
    let lab = Lab::with(&[Deb::default()]).await;
    lab.apply(&Task::Update).await.expect("updates");
    let error = lab.apply(&install(&["virtualbox"])).await.expect_err("not there");
    assert!(error.message().contains("virtualbox"), "{error}");
    assert!(error.hints()[0].contains("contrib"), "{error:?}");
}

/// Writes an unsigned `Release` file for `lab`'s repository.
fn release(lab: &Lab, date: &str, valid_until: Option<&str>) {
    use sha2::Digest;
    let repository = lab.debian.srv().join("repo");
    let packages = fs_err::read(repository.join("Packages")).expect("reads");
    let digest = hex::encode(sha2::Sha256::digest(&packages));
    let valid = valid_until.map(|date| format!("Valid-Until: {date}\n")).unwrap_or_default();
    let text = format!("Date: {date}\n{valid}SHA256:\n {digest} {} Packages\n", packages.len());
    fs_err::write(repository.join("Release"), text).expect("writes");
}
