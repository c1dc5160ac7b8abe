//! A chain L0 → L1 → L2 made of files: real commands, a real lab and the real engine, over a world that
//! is a directory. A folder that holds `running` is a guest that is up. As in the real drivers, what a
//! check takes for done appears whole: it is made under another name first.
//!
//! What is done inside L1 goes over SSH: a job, a command and a copy. All else runs here.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use nestlab::engine::{self, Options, Summary};
use nestlab::event::EventSink;
use nestlab::host::job::{self, JobSpec};
use nestlab::host::ssh::{HostKeyPolicy, Ssh, SshKey, SshTarget, Via};
use nestlab::host::{Command, HostRef, Local, TimeoutScale};
use nestlab::hypervisor::HypervisorKind;
use nestlab::lab::reservations::Claim;
use nestlab::lab::{Lab, LabLock, Labs, Resource};
use nestlab::plan::{Check, Context, Plan, Remover, Step, StepId};
use nestlab::{Error, Kind, Result};
use tokio_util::sync::CancellationToken;

use crate::support::sshd::{Sshd, user};

/// A scratch directory with the state directory of nestlab and the world that it changes.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    pub(crate) root: Utf8PathBuf,
}

impl Chain {
    pub(crate) fn in_directory(root: &Utf8Path) -> Self {
        Chain { root: root.to_owned() }
    }

    /// Makes the world as it is before nestlab: an image to fetch, a thing of somebody else's, and an SSH
    /// server that plays the guest L1.
    pub(crate) fn prepare(&self, sshd: &Sshd) {
        std::fs::create_dir(self.root.join("sshd")).expect("makes the folder");
        for key in ["user", "host.pub"] {
            std::fs::write(self.root.join("sshd").join(key), sshd.read(key)).expect("writes");
        }
        std::fs::write(self.root.join("sshd/port"), sshd.port().to_string()).expect("writes");
        std::fs::create_dir_all(self.world().join("store")).expect("makes the world");
        std::fs::write(self.root.join("publisher.img"), "an image").expect("writes");
        std::fs::write(self.world().join("not-ours"), "somebody else's").expect("writes");
    }

    pub(crate) fn world(&self) -> Utf8PathBuf {
        self.root.join("world")
    }

    fn in_world(&self, path: &str) -> String {
        self.world().join(path).into_string()
    }

    /// L1 from inside, connected when it is first used.
    fn l1(&self) -> HostRef {
        let read = |name| std::fs::read_to_string(self.root.join("sshd").join(name)).expect(name);
        let port = read("port").parse().expect("a port");
        let ssh = Ssh::new(SshTarget {
            name: "l1".to_owned(),
            user: user(),
            key: SshKey::Memory(read("user").into()),
            host_key: HostKeyPolicy::Pinned(vec![read("host.pub")]),
            via: Via::Tcp { host: "127.0.0.1".to_owned(), port },
            patience: TimeoutScale::NATIVE,
        });
        nestlab::faults::host(Arc::new(ssh))
    }

    /// The upgrade of L1, which goes on when nestlab does not.
    fn upgrade(&self) -> JobSpec {
        let [part, done] = ["l1/upgrading", "l1/upgraded"].map(|path| self.in_world(path));
        let script = "touch \"$1\" && mv -f \"$1\" \"$2\"";
        JobSpec {
            id: "upgrade".to_owned(),
            command: Command::new("sh").args(["-c", script, "upgrade", &part, &done]),
            directory: self.root.join("jobs"),
        }
    }

    pub(crate) fn labs(&self) -> Labs {
        Labs::at(self.root.join("state"))
    }

    /// Builds the chain, or goes on with building it.
    pub(crate) async fn up(&self, events: EventSink, cancel: CancellationToken) -> Result<Summary> {
        let lab = self.labs().create(&"demo".parse().expect("a name"), "schema = 1\n")?;
        let lock = lab.lock(["nestlab", "up"])?;
        let journal = lock.journal()?;
        let options =
            Options { command: vec!["nestlab".into(), "up".into()], ..Options::default() };
        engine::run(&self.plan(&lock)?, options, journal, events, cancel).await.into_result()
    }

    /// Removes the lab and all that it made; fine if there is none.
    pub(crate) async fn destroy(&self) -> Result<()> {
        self.labs().sweep()?;
        let name = "demo".parse().expect("a name");
        let Some(lab) = self.labs().list()?.contains(&name).then(|| self.labs().open(&name)) else {
            return Ok(());
        };
        let lab = lab?;
        let lock = lab.lock(["nestlab", "destroy"])?;
        let journal = lock.journal()?;
        let remover = Rm { chain: self.clone(), host: host(), lab: lab.clone() };
        let cancel = CancellationToken::new();
        engine::remove_all(&journal, &remover, &EventSink::silent(), &cancel)
            .await
            .into_result()?;
        drop(journal);
        lab.remove(lock).map(drop)
    }

    fn plan(&self, lock: &LabLock) -> Result<Plan> {
        let lab = lock.lab();
        let publisher = self.root.join("publisher.img").into_string();
        let step = |id: (&str, &str), needs: &[(&str, &str)], proof: &str| Make {
            id: StepId::new(id.0, id.1),
            needs: needs.iter().map(|(of, what)| StepId::new(of, what)).collect(),
            host: host(),
            resources: Vec::new(),
            work: Vec::new(),
            proof: self.world().join(proof),
            lab: lab.clone(),
            also: None,
        };
        let path = |path: &str| self.in_world(path);
        let l1 = self.l1();
        let steps = vec![
            step(("image", "fetch"), &[], "store/image")
                .makes(self.file("L0", "store/image.part"))
                .makes(self.file("L0", "store/image"))
                .runs(["cp", &publisher, &path("store/image.part")])
                .runs(["mv", &path("store/image.part"), &path("store/image")]),
            step(("l1", "define"), &[], "l1/config")
                .makes(self.vm("L0", "l1", "l1"))
                .runs(["mkdir", "-p", &path("l1")])
                .runs(["cp", &publisher, &path("l1/config.part")])
                .runs(["mv", &path("l1/config.part"), &path("l1/config")]),
            step(("l1", "reserve"), &[], "l1/reserved").also(Also::Reserve).needing("l1", "define"),
            step(("l1", "start"), &[("l1", "reserve")], "l1/running")
                .runs(["touch", &path("l1/running")]),
            step(("l1", "known-host"), &[("l1", "start")], "l1/known")
                .makes(Resource::KnownHost { guest: "l1".into() })
                .also(Also::KnownHost)
                .runs(["touch", &path("l1/known")]),
            step(("l1", "upgrade"), &[("l1", "start")], "l1/upgraded")
                .inside(&l1)
                .does(Work::Job(self.upgrade())),
            step(("l1", "hypervisor"), &[("l1", "upgrade")], "l1/hypervisor")
                .inside(&l1)
                .runs(["touch", &path("l1/hypervisor")]),
            step(("l2", "image"), &[("l1", "start"), ("image", "fetch")], "l1/image")
                .makes(self.file("l1", "l1/image"))
                .inside(&l1)
                .does(Work::Put(path("store/image").into(), path("l1/image").into())),
            step(("l2", "define"), &[("l1", "hypervisor"), ("l2", "image")], "l1/l2/config")
                .makes(self.vm("l1", "l2", "l1/l2"))
                .runs(["mkdir", "-p", &path("l1/l2")])
                .runs(["cp", &path("l1/image"), &path("l1/l2/config.part")])
                .runs(["mv", &path("l1/l2/config.part"), &path("l1/l2/config")]),
            step(("l2", "start"), &[("l2", "define")], "l1/l2/running")
                .runs(["touch", &path("l1/l2/running")]),
            step(("l2", "ready"), &[("l2", "start")], "l1/l2/ready")
                .also(Also::Ready)
                .runs(["touch", &path("l1/l2/ready")]),
        ];
        Plan::new(steps.into_iter().map(|step| Arc::new(step) as Arc<dyn Step>).collect())
    }

    fn file(&self, host: &str, path: &str) -> Resource {
        Resource::Directory { host: host.into(), path: self.world().join(path) }
    }

    fn vm(&self, host: &str, guest: &str, directory: &str) -> Resource {
        Resource::Vm {
            host: host.into(),
            guest: guest.into(),
            hypervisor: HypervisorKind::Qemu,
            vm: format!("nestlab-demo-{guest}"),
            directory: self.world().join(directory),
        }
    }

    /// Every file of the world with what is in it.
    pub(crate) fn snapshot(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        walk(&self.world(), &mut |path, text| {
            let path = path.strip_prefix(self.world()).expect("it lies in the world");
            found.insert(path.to_string(), text);
        });
        found
    }

    /// What is left of nestlab's own once no lab is.
    pub(crate) fn left_in_state(&self) -> Vec<String> {
        let mut left = Vec::new();
        walk(&self.root.join("state"), &mut |path, text| left.push(format!("{path}: {text}")));
        left
    }
}

fn host() -> HostRef {
    nestlab::faults::host(Arc::new(Local::new()))
}

fn walk(directory: &Utf8Path, found: &mut impl FnMut(&Utf8Path, String)) {
    let Ok(entries) = directory.read_dir_utf8() else { return };
    for entry in entries {
        let entry = entry.expect("can be read");
        if entry.file_type().expect("has a type").is_dir() {
            found(entry.path(), "directory".into());
            walk(entry.path(), found);
        } else {
            found(entry.path(), std::fs::read_to_string(entry.path()).expect("can be read"));
        }
    }
}

/// A step that runs commands until a file is there.
struct Make {
    id: StepId,
    needs: Vec<StepId>,
    host: HostRef,
    resources: Vec<Resource>,
    work: Vec<Work>,
    proof: Utf8PathBuf,
    lab: Lab,
    also: Option<Also>,
}

/// A part of a step.
enum Work {
    Run(Command),
    Job(JobSpec),
    /// Copies a file of this machine to one of the host.
    Put(Utf8PathBuf, Utf8PathBuf),
}

/// What a step does besides its commands.
#[derive(Clone, Copy)]
enum Also {
    Reserve,
    KnownHost,
    Ready,
}

impl Make {
    fn makes(mut self, resource: Resource) -> Self {
        self.resources.push(resource);
        self
    }

    fn runs<const N: usize>(self, argv: [&str; N]) -> Self {
        self.does(Work::Run(Command::from_argv(argv)))
    }

    fn does(mut self, work: Work) -> Self {
        self.work.push(work);
        self
    }

    fn inside(mut self, host: &HostRef) -> Self {
        self.host = host.clone();
        self
    }

    fn also(mut self, also: Also) -> Self {
        self.also = Some(also);
        self
    }

    fn needing(mut self, of: &str, what: &str) -> Self {
        self.needs.push(StepId::new(of, what));
        self
    }

    async fn do_also(&self, context: &Context) -> Result<()> {
        match self.also {
            None => Ok(()),
            Some(Also::Reserve) => {
                let all = self.lab.labs().reservations();
                let claim = Claim::Name { host: "L0".to_owned(), name: "vm-of-l1".to_owned() };
                let other = all.claim(self.lab.name(), claim)?;
                let part = self.lab.logs().join("reserved");
                let text = format!("{other:?}");
                let command = Command::new("tee").arg(part.as_str()).stdin(text);
                self.host.check(&command).await?;
                let command = Command::new("mv").args([part.as_str(), self.proof.as_str()]);
                self.host.check(&command).await.map(drop)
            }
            Some(Also::KnownHost) => {
                let key = self.lab.keys().host_key("l1")?;
                self.lab.known_hosts().set("l1", key.public())
            }
            Some(Also::Ready) => context.journal.ready("l2", "a file", None).await,
        }
    }
}

#[async_trait]
impl Step for Make {
    fn id(&self) -> &StepId {
        &self.id
    }

    fn guest(&self) -> Option<&str> {
        self.id.as_str().split_once('/').map(|(guest, _)| guest)
    }

    fn title(&self) -> String {
        format!("make {}", self.id)
    }

    fn needs(&self) -> &[StepId] {
        &self.needs
    }

    async fn check(&self, _context: &Context) -> Result<Check> {
        Ok(if self.proof.exists() { Check::Satisfied } else { Check::Needed("not there".into()) })
    }

    async fn apply(&self, context: &Context) -> Result<()> {
        for resource in &self.resources {
            context.journal.creating(resource.clone()).await?;
        }
        self.do_also(context).await?;
        for work in &self.work {
            match work {
                Work::Run(command) => {
                    context.or_cancelled(self.host.check(command)).await?;
                }
                Work::Job(spec) => {
                    let exit = job::run(&*self.host, spec, &mut |_| {}, &context.cancel).await?;
                    assert!(exit.success(), "{exit}");
                }
                Work::Put(from, to) => {
                    let put = self.host.put(from, to, 0o600, &context.events);
                    context.or_cancelled(put).await?;
                }
            }
        }
        Ok(())
    }

    async fn commands(&self, _context: &Context) -> Result<Vec<Command>> {
        Ok(Vec::new())
    }
}

/// Removes what the chain made; what is on a guest only while that guest runs.
struct Rm {
    chain: Chain,
    host: HostRef,
    lab: Lab,
}

#[async_trait]
impl Remover for Rm {
    async fn remove(&self, resource: &Resource, _feed: &EventSink) -> Result<()> {
        if resource.host() == "l1" && !self.chain.world().join("l1/running").exists() {
            return Err(Error::new(Kind::Unreachable, "l1 is not up").on_host("l1"));
        }
        if resource.carries() == Some("l1") {
            // What runs in a VM ends with it.
            job::stop(&Local::new(), &self.chain.upgrade()).await?;
        }
        match resource {
            Resource::KnownHost { guest } => self.lab.known_hosts().remove(guest),
            Resource::Directory { path, .. } | Resource::Vm { directory: path, .. } => {
                self.host.check(&Command::new("rm").args(["-rf", path.as_str()])).await?;
                if path.exists() {
                    return Err(Error::failed(format!("{path} is still there")));
                }
                Ok(())
            }
            other => Err(Error::internal(format!("the chain made no {other}"))),
        }
    }
}

/// What the state directory says when all went well.
pub(crate) fn held_by_the_lab(chain: &Chain) -> Vec<Claim> {
    let name = "demo".parse().expect("a name");
    chain.labs().reservations().held(&name).expect("reads")
}
