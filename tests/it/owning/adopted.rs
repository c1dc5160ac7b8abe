//! A VM that existed before, with a guest of the lab inside it. VBoxManage is the real one, which cannot start a VM
//! here: whether this one runs is a file's to say, and a local sshd is its inside.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use camino::Utf8PathBuf;
use nestlab::event::EventSink;
use nestlab::host::Local;
use nestlab::hypervisor::qemu::Qemu;
use nestlab::hypervisor::virtualbox::SavedSettings;
use nestlab::hypervisor::{Hypervisor as _, HypervisorKind, Media, VmOrigin};
use nestlab::lab::{JournalWriter, Lab, Resource};
use nestlab::plan::{Blueprint, Images};
use nestlab::recipe::budget::{self, Resources};
use nestlab::recipe::{Cpus, Mebibytes, Platform, Recipe, RecipeOrigin};

use super::user::{Said, User};
use crate::support::sshd::{self, Sshd};
use crate::support::virtualbox_native::Bench;

/// A lab, as `up` leaves it, whose guest `ws` is the user's VM `Mine`, and whose guest `inner` runs in that.
struct Adopted {
    user: User,
    bench: Bench,
    sshd: Sshd,
    /// What VBoxManage said of the VM before the lab.
    before: Vec<String>,
}

impl Adopted {
    async fn new() -> Self {
        let mut bench = Bench::existing("Mine", true).await;
        let (user, sshd) = (User::new(), Sshd::start(&[]));
        let before = without_disk(bench.host.settings(bench.uuid()).await);
        let lab = user.labs().create(&"mine".parse().unwrap(), "").unwrap();
        let blueprint = blueprint(&user, &lab);
        let held = lab.lock(["nestlab", "up"]).unwrap();
        blueprint.keep(&held, &held.journal().unwrap()).await.unwrap();
        let ledger = JournalWriter::of_step(&held.journal().unwrap(), "up");

        let uuid = bench.uuid().to_owned();
        bench.spec = blueprint.machine("ws").unwrap().spec.clone();
        let (actual, changes) = (bench.inspect().await.unwrap(), bench.changes().await);
        let former = serde_json::to_value(SavedSettings::before(&actual, &changes)).unwrap();
        ledger.former("L0", HypervisorKind::VirtualBox, &uuid, former).await.unwrap();
        bench.up().await;
        let rule = format!("nestlab-ssh,tcp,127.0.0.1,{},,22", sshd.port());
        bench.host.vbox(&["modifyvm", &uuid, "--nat-pf1", "delete", "nestlab-ssh"]).await;
        bench.host.vbox(&["modifyvm", &uuid, "--nat-pf1", &rule]).await;
        let key = lab.keys().user().unwrap();
        std::fs::write(sshd.path("authorized"), format!("{}\n", key.public())).unwrap();

        let inner = &blueprint.machine("inner").unwrap().spec;
        let resource = Resource::Vm {
            host: "ws".to_owned(),
            guest: "inner".to_owned(),
            hypervisor: HypervisorKind::Qemu,
            vm: inner.vm.clone(),
            directory: inner.directory.clone(),
        };
        ledger.creating(resource).await.unwrap();
        std::fs::create_dir_all(&inner.directory).unwrap();
        std::fs::copy(user.path("boot.qcow2"), inner.directory.join("disk.qcow2")).unwrap();
        let (qemu, host, events) = (Qemu::new(), Local::new(), EventSink::silent());
        let probe = qemu.probe(&host).await.unwrap();
        let changes = qemu.changes(inner, None, &probe);
        qemu.change(&host, inner, &changes, &events).await.unwrap();
        qemu.start(&host, inner, &probe, &events).await.unwrap();
        let adopted = Adopted { user, bench, sshd, before };
        adopted.write_program();
        adopted
    }

    fn program(&self) -> Utf8PathBuf {
        self.user.path("VBoxManage")
    }

    /// The file that is there while the VM runs.
    fn on(&self) -> Utf8PathBuf {
        self.user.path("on")
    }

    /// Writes a VBoxManage for which the VM runs as long as the file says so, until it is stopped.
    fn write_program(&self) {
        let real = self.user.path("real-VBoxManage");
        self.bench.host.program(&real);
        let (on, uuid) = (self.on(), self.bench_uuid());
        let text = format!(
            "#!/bin/sh\n\
             case \"$1\" in\n\
             controlvm) rm -f {on}; exit 0 ;;\n\
             esac\n\
             [ -e {on} ] || exec {real} \"$@\"\n\
             case \"$1 $2\" in\n\
             'list runningvms') echo '\"Mine\" {{{uuid}}}' ;;\n\
             showvminfo*) {real} \"$@\" | sed 's/^VMState=.*/VMState=\"running\"/' ;;\n\
             *) exec {real} \"$@\" ;;\n\
             esac\n"
        );
        std::fs::write(self.program(), text).unwrap();
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(self.program(), open).unwrap();
    }

    fn bench_uuid(&self) -> String {
        let journal = self.user.lab("mine").read_journal().unwrap();
        nestlab::lab::resources::adopted(&journal.records)[0].vm.clone()
    }

    fn runs(&self) {
        std::fs::write(self.on(), "").unwrap();
    }

    fn nestlab(&self, args: &[&str]) -> Said {
        println!("$ nestlab {}", args.join(" "));
        let mut command = self.user.command(args);
        Said::of(command.env("NESTLAB_VBOXMANAGE", self.program()).output().unwrap())
    }

    async fn settings(&self) -> Vec<String> {
        without_disk(self.bench.host.settings("Mine").await)
    }
}

/// Returns the settings without the disk, which is another one as long as there is a snapshot.
fn without_disk(mut settings: Vec<String>) -> Vec<String> {
    settings.retain(|line| !line.starts_with("\"Disks-"));
    settings
}

fn recipe(user: &User) -> Recipe {
    let image = user.path("boot.toml");
    let text = format!(
        "schema = 1\nname = \"mine\"\n[host]\nhypervisor = \"virtualbox\"\n\
         [[guest]]\nname = \"ws\"\nvm = \"Mine\"\nsnapshot-before = true\n\
         hypervisor = \"qemu\"\ncpus = 2\nssh = {{ user = \"{}\" }}\n\
         [[guest]]\nname = \"inner\"\nimage = \"{image}\"\n",
        sshd::user()
    );
    let origin = RecipeOrigin::Text { name: "mine.toml".to_owned(), base: user.path("") };
    Recipe::parse(&text, origin).unwrap()
}

fn blueprint(user: &User, lab: &Lab) -> Blueprint {
    let recipe = recipe(user);
    let images = Images::of(&recipe).unwrap();
    let machine = Resources {
        cores: Cpus::new(4).unwrap(),
        memory: Mebibytes::gib(16),
        free_disk: None,
        networks: Vec::new(),
        hypervisor: HypervisorKind::VirtualBox,
        platform: Platform::Linux,
        host_key: None,
    };
    let budget = budget::derive(&recipe, &machine, &images.defaults()).unwrap();
    let mut blueprint = Blueprint::draw(&recipe, &budget, &images, lab).unwrap();
    // The VM's inside is this machine: where the guest in it lies there is the test's to say.
    let inner = blueprint.machines.iter_mut().find(|machine| machine.name.as_str() == "inner");
    let spec = &mut inner.unwrap().spec;
    spec.directory = user.path("inside/mine/inner");
    spec.origin = VmOrigin::Made(Media::Disk(spec.directory.join("disk.qcow2")));
    spec.memory = nestlab::recipe::Constraint::Exactly(Mebibytes::new(64).unwrap());
    blueprint
}

#[tokio::test]
async fn destroy_removes_what_is_inside_a_vm_of_the_users_while_it_runs_and_gives_it_back() {
    let adopted = Adopted::new().await;
    adopted.runs();
    let inside = adopted.user.path("inside/mine/inner");
    let said = adopted.nestlab(&["destroy", "mine", "--yes"]);
    assert_eq!(said.code, 0);
    assert_eq!(adopted.user.running(), [""; 0]);
    assert!(!inside.exists());
    assert!(!adopted.on().exists(), "it was powered off for its settings");
    assert_eq!(adopted.settings().await, adopted.before);
    assert!(!adopted.user.lab("mine").directory().exists());
    let kept = "ws (Mine) keeps the packages that were installed and upgraded in it, /var/lib/nestlab, \
                the snapshot nestlab-before";
    assert!(said.err.contains(kept), "{}", said.err);
}

#[tokio::test]
async fn what_is_inside_a_vm_that_is_off_is_named_and_the_lab_can_be_ended_without_it() {
    let adopted = Adopted::new().await;
    let changed = adopted.settings().await;
    let said = adopted.nestlab(&["destroy", "mine", "--yes"]);
    assert_eq!(said.code, 1);
    for part in ["nestlab-mine-inner", "start Mine in VirtualBox", "--leave-inside"] {
        assert!(said.err.contains(part), "{part} is missing: {}", said.err);
    }
    assert_eq!(adopted.settings().await, changed, "it can still be entered once it runs");
    assert!(adopted.user.lab("mine").is_there());

    let said = adopted.nestlab(&["destroy", "mine", "--leave-inside", "--yes"]);
    assert_eq!(said.code, 0);
    assert!(said.err.contains("left where it is: VM nestlab-mine-inner in qemu on ws"));
    assert_eq!(adopted.settings().await, adopted.before);
    assert!(!adopted.user.lab("mine").directory().exists());
}

#[tokio::test]
async fn a_vm_of_the_users_goes_back_to_the_snapshot_that_was_taken_before() {
    let adopted = Adopted::new().await;
    let snapshots = async || {
        let said = adopted.bench.host.vbox(&["showvminfo", "Mine", "--machinereadable"]).await;
        said.lines().filter(|line| line.starts_with("SnapshotName")).count()
    };
    assert_eq!(snapshots().await, 1);
    adopted.bench.host.vbox(&["modifyvm", "Mine", "--memory", "1024"]).await;
    let said = adopted.nestlab(&["destroy", "mine", "--restore-snapshot", "--yes"]);
    assert_eq!(said.code, 0, "what was inside went with the snapshot");
    assert_eq!(snapshots().await, 0);
    assert_eq!(adopted.settings().await, adopted.before);
    assert!(!said.err.contains("keeps"), "{}", said.err);
    assert!(!adopted.user.lab("mine").directory().exists());
}

#[tokio::test]
async fn a_vm_that_is_in_one_lab_is_refused_to_another() {
    let adopted = Adopted::new().await;
    let text = "schema = 1\nname = \"second\"\n[host]\nhypervisor = \"virtualbox\"\n[[guest]]\n\
                name = \"l1\"\nvm = \"Mine\"\ncpus = 1\n";
    let recipe = adopted.user.write("second.toml", text);
    let said = adopted.nestlab(&["plan", recipe.as_str()]);
    assert_eq!(said.code, 2);
    assert!(said.err.contains("the VM Mine is in the lab mine already"), "{}", said.err);
    assert!(said.err.contains("`nestlab destroy mine` gives it back"), "{}", said.err);
}

#[tokio::test]
async fn openssh_takes_the_key_that_nestlab_pinned_for_a_vm_of_the_users() {
    let adopted = Adopted::new().await;
    adopted.runs();
    let said = adopted.nestlab(&["ssh", "ws", "--lab", "mine", "--", "echo", "by nestlab"]);
    assert_eq!(said.out, "by nestlab\n");
    let config = adopted.nestlab(&["ssh-config", "mine"]).out;
    let file = adopted.user.write("ssh.conf", &config);
    let output = Command::new("ssh")
        .args(["-F", file.as_str(), "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes"])
        .args(["ws.mine.nestlab", "echo by OpenSSH"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "by OpenSSH\n", "{config}\n{said}");
    drop(adopted.sshd);
}
