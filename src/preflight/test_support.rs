//! The systems under `tests/fixtures/hosts`, each a tree of files and the answers of programs, read through
//! a host, and what the checks make of each.

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};

use super::host_files::HostFiles;
use super::host_report::Prober;
use super::record::{Answered, Fixture, Probed, record};
use super::{Finding, Needs, Stage, Verdict, require, run, run_again, worst};
use crate::error::{Error, Kind, Result};
use crate::event::EventSink;
use crate::host::{Command, Exit, Host, Local, OnOutput, StdStream, Stream, StreamAddress};
use crate::hypervisor::{HypervisorKind, Nesting, Probe};
use crate::recipe::{Recipe, RecipeOrigin};

/// A recorded or hand-made host.
#[derive(Debug)]
struct Recorded {
    name: String,
    root: Utf8PathBuf,
    fixture: Fixture,
    local: Local,
}

impl Recorded {
    fn load(folder: &Utf8Path) -> Recorded {
        let text = fs_err::read_to_string(folder.join("fixture.toml")).expect("a fixture");
        let fixture = toml::from_str(&text).unwrap_or_else(|error| panic!("{folder}: {error}"));
        let name = folder.file_name().expect("a name").to_owned();
        Recorded { name, root: folder.join("root"), fixture, local: Local::new() }
    }

    fn needs(&self) -> Needs {
        let mut needs = Needs::nothing("/");
        if let Some(kind) = self.fixture.expect.get("for") {
            needs.hypervisor = Some(kind.clone().try_into().expect("a hypervisor"));
            needs.nests = true;
        }
        needs
    }
}

#[async_trait]
impl Host for Recorded {
    fn name(&self) -> &str {
        &self.name
    }

    async fn run_streaming(&self, command: &Command, on_output: OnOutput<'_>) -> Result<Exit> {
        // The files are read by the script that reads real ones, from another root.
        if command.argv() == HostFiles::command("/").argv() {
            return self
                .local
                .run_streaming(&HostFiles::command(self.root.as_str()), on_output)
                .await;
        }
        match self.fixture.answers.get(&command.to_string()) {
            Some(Answered::Printed(text)) => {
                on_output(StdStream::Out, text.as_bytes());
                Ok(Exit::Code(0))
            }
            Some(Answered::Failed { failed }) => {
                on_output(StdStream::Out, failed.as_bytes());
                Ok(Exit::Code(1))
            }
            None => Err(Error::failed(format!("the program `{}` is not there", command.argv()[0]))),
        }
    }

    async fn put(&self, _: &Utf8Path, to: &Utf8Path, _: u32, _: &EventSink) -> Result<()> {
        panic!("a check wrote {to}")
    }

    async fn get(&self, from: &Utf8Path, _: &Utf8Path, _: &EventSink) -> Result<()> {
        panic!("a check fetched {from}")
    }

    async fn open_stream(&self, address: &StreamAddress) -> Result<Box<dyn Stream>> {
        panic!("a check that was not asked for connected to {address}")
    }

    fn is_root(&self) -> bool {
        true
    }

    fn is_local(&self) -> bool {
        true
    }
}

#[async_trait]
impl Prober for Recorded {
    async fn probe(&self, _host: &dyn Host, kind: HypervisorKind) -> Result<Probe> {
        let not_there = || Error::new(Kind::HostCannot, format!("{kind} is not installed"));
        let Probed { version, version_text, acceleration, cannot_nest, notes } =
            self.fixture.probes.get(&kind).cloned().ok_or_else(not_there)?;
        Ok(Probe {
            version_text: version_text.unwrap_or_else(|| version.to_string()),
            version,
            program: kind.to_string().into(),
            acceleration,
            patience: crate::host::TimeoutScale::NATIVE,
            nesting: cannot_nest.map_or(Nesting::Claimed, Nesting::Absent),
            details: std::collections::BTreeMap::new(),
            notes,
        })
    }
}

fn hosts() -> Vec<Utf8PathBuf> {
    let folder = Utf8Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hosts"));
    let mut hosts: Vec<_> = folder
        .read_dir_utf8()
        .expect("the fixtures are there")
        .map(|entry| entry.expect("an entry").into_path())
        .filter(|path| path.is_dir())
        .collect();
    hosts.sort();
    hosts
}

async fn findings(host: &Recorded) -> Vec<Finding> {
    run(host, &host.needs(), host).await.expect("a fixture answers")
}

/// Compares one finding with what the fixture expects: its verdict, and parts of its words.
fn compare(host: &str, finding: &Finding, expected: &toml::Value) -> Vec<String> {
    let told = format!(
        "{} {} | {} | {}",
        finding.found,
        finding.source,
        finding.remedy.as_deref().unwrap_or_default(),
        finding.commands.join("\n")
    );
    let wanted = |key: &str| expected.get(key).and_then(toml::Value::as_str);
    let verdict = expected.as_str().or_else(|| wanted("verdict")).expect("a verdict");
    let mut differences = Vec::new();
    if finding.verdict.to_string() != verdict {
        differences
            .push(format!("{host}: {} is {}, not {verdict}: {told}", finding.id, finding.verdict));
    }
    for part in ["says", "command"].iter().filter_map(|key| wanted(key)) {
        if !told.contains(part) {
            differences.push(format!("{host}: {} does not say {part:?}: {told}", finding.id));
        }
    }
    differences
}

#[tokio::test]
async fn every_system_is_told_and_judged_as_its_fixture_says() {
    let mut differences = Vec::new();
    for folder in hosts() {
        let host = Recorded::load(&folder);
        let findings = findings(&host).await;
        for (id, expected) in host.fixture.expect.iter().filter(|(id, _)| *id != "for") {
            match findings.iter().find(|finding| finding.id == id) {
                Some(finding) => differences.extend(compare(&host.name, finding, expected)),
                None => differences.push(format!("{}: there is no check {id}", host.name)),
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[tokio::test]
async fn every_system_of_the_table_has_a_fixture_and_says_where_it_comes_from() {
    let mut told = std::collections::BTreeSet::new();
    for folder in hosts() {
        let host = Recorded::load(&folder);
        let needs = host.needs();
        let look =
            super::host_report::HostReport::take(&host, &needs, &host).await.expect("answers");
        told.insert(super::systems::tell(&look).0.id);
        let provenance = &host.fixture.provenance;
        assert!(
            provenance.starts_with("made by hand from ") || provenance.starts_with("recorded "),
            "{folder}: {provenance}"
        );
        let first = fs_err::read_to_string(folder.join("fixture.toml")).expect("reads");
        assert!(
            first.starts_with("provenance = "),
            "{folder} does not say first where it comes from"
        );
        assert!(host.fixture.expect.contains_key("system"), "{folder} expects no system");
    }
    let all: std::collections::BTreeSet<_> =
        super::systems::SYSTEMS.iter().map(|system| system.id).collect();
    assert_eq!(told, all);
}

#[tokio::test]
async fn what_is_not_as_it_should_be_has_a_remedy() {
    for folder in hosts() {
        let host = Recorded::load(&folder);
        for finding in findings(&host).await {
            let judged_badly = finding.verdict >= Verdict::Warn;
            assert!(
                !judged_badly || finding.remedy.is_some(),
                "{}: {} is {} without a remedy",
                host.name,
                finding.id,
                finding.verdict
            );
        }
    }
}

#[tokio::test]
async fn qubes_is_refused_unless_forced() {
    let host = recorded("qubes");
    let refused = run(&host, &host.needs(), &host).await.expect("answers");
    let system = |findings: &[Finding]| {
        findings.iter().find(|finding| finding.id == "system").expect("always told").clone()
    };
    assert_eq!(system(&refused).verdict, Verdict::Fail);
    assert!(system(&refused).remedy.expect("explained").contains("https://"));
    let forced = Needs { forced: ["system".to_owned()].into(), ..host.needs() };
    let forced = run(&host, &forced, &host).await.expect("answers");
    assert_eq!(system(&forced).verdict, Verdict::Warn);
}

/// Returns the recorded host called `name`.
fn recorded(name: &str) -> Recorded {
    let folder = hosts().into_iter().find(|folder| folder.ends_with(name)).expect("is there");
    Recorded::load(&folder)
}

#[tokio::test]
async fn both_hypervisors_fit_only_where_kernel_and_virtualbox_share_the_processor() {
    for (name, verdict) in [("debian-with-virtualbox", Verdict::Fail), ("qemu-tcg", Verdict::Ok)] {
        let host = recorded(name);
        let needs = Needs {
            hypervisor: Some(HypervisorKind::VirtualBox),
            further: vec![HypervisorKind::Qemu],
            nests: false,
            ..host.needs()
        };
        let findings = run(&host, &needs, &host).await.expect("answers");
        let beside = findings.iter().find(|finding| finding.id == "kvm-and-virtualbox");
        let beside = beside.expect("always told");
        assert_eq!(beside.verdict, verdict, "{name}: {beside:?}");
    }
}

#[tokio::test]
async fn a_host_that_a_guest_with_svm_of_its_own_may_crash_is_refused_at_every_level() {
    let host = recorded("qemu-tcg");
    for (nests, level, verdict) in
        [(false, 1, Verdict::Ok), (true, 0, Verdict::Fail), (true, 1, Verdict::Fail)]
    {
        let needs = Needs { nests, level, forced: ["system".to_owned()].into(), ..host.needs() };
        let findings = run(&host, &needs, &host).await.expect("answers");
        let beside = findings.iter().find(|finding| finding.id == "kvm-and-virtualbox");
        let beside = beside.expect("always told");
        assert_eq!(beside.verdict, verdict, "{beside:?}");
        let named = Needs { forced: [beside.id.to_owned()].into(), ..needs };
        let named = run_again(&host, &named, &host).await.expect("answers");
        assert!(worst(&named) < Verdict::Fail, "{named:?}");
        let unloads = beside.commands.iter().any(|command| command == "sudo modprobe -r kvm_amd");
        assert_eq!(unloads, nests, "{beside:?}");
    }
}

#[tokio::test]
async fn what_nests_in_qemu_is_no_danger_to_virtualbox_beside_it() {
    let host = recorded("qemu-tcg");
    for (kind, verdict) in
        [(HypervisorKind::Qemu, Verdict::Ok), (HypervisorKind::VirtualBox, Verdict::Fail)]
    {
        let needs = Needs {
            further: vec![HypervisorKind::Qemu],
            nests_in: Some([kind].into()),
            ..host.needs()
        };
        let findings = run_again(&host, &needs, &host).await.expect("answers");
        let beside = findings.iter().find(|finding| finding.id == "kvm-and-virtualbox");
        assert_eq!(beside.expect("told every time").verdict, verdict, "{kind}: {beside:?}");
    }
}

#[tokio::test]
async fn where_nestlab_chooses_what_virtualbox_would_take_down_is_refused_for_a_recipe_alone() {
    let host = recorded("intel-kvm-waits-virtualbox");
    let text = "schema = 1\nname = \"x\"\n[[guest]]\nname = \"l1\"\nimage = \"appliance\"\n";
    let recipe = Recipe::parse(text, RecipeOrigin::Shipped).expect("a recipe");
    for (needs, verdict) in [
        (Needs::nothing("/"), Verdict::Warn),
        (Needs::of_l0(&recipe, Default::default(), "/"), Verdict::Fail),
    ] {
        let findings = run_again(&host, &needs, &host).await.expect("answers");
        let beside = findings.iter().find(|finding| finding.id == "kvm-and-virtualbox");
        assert_eq!(beside.expect("told every time").verdict, verdict, "{beside:?}");
    }
}

#[tokio::test]
async fn a_guest_that_is_to_become_a_host_is_not_asked_for_what_it_will_be_given() {
    let needs = |stage| Needs {
        hypervisor: Some(HypervisorKind::VirtualBox),
        stage,
        level: 1,
        ..Needs::nothing("/")
    };
    let host = recorded("qemu-tcg");
    let fixture = Fixture { probes: Default::default(), ..host.fixture.clone() };
    let nothing = Recorded { fixture, ..host };
    let reached = run(&nothing, &needs(Stage::Reached), &nothing).await.expect("answers");
    assert!(worst(&reached) < Verdict::Fail, "{reached:?}");
    let settled = run(&nothing, &needs(Stage::Settled), &nothing).await.expect("answers");
    assert_eq!(worst(&settled), Verdict::Fail, "VirtualBox is not installed");

    let host = recorded("virtualbox-without-nesting");
    let reached = run(&host, &needs(Stage::Reached), &host).await.expect("answers");
    let error = require(&reached).expect_err("neither svm nor vmx");
    assert_eq!(error.kind(), Kind::HostCannot);
    assert!(!error.hints().is_empty(), "{error:?}");
}

#[tokio::test]
async fn a_recording_of_this_machine_is_judged_as_the_machine_itself() {
    let folder = tempfile::tempdir().expect("a folder");
    let to = Utf8PathBuf::try_from(folder.path().join("this")).expect("UTF-8");
    let (host, needs) = (Local::new(), Needs::nothing("/"));
    let nothing = Recorded {
        name: String::new(),
        root: Utf8PathBuf::new(),
        fixture: Fixture::default(),
        local: Local::new(),
    };
    let written = record(&host, &nothing, &to).await.expect("records");
    assert!(written.iter().any(|path| path.ends_with("root/proc/cpuinfo")));
    let recorded = Recorded::load(&to);
    let verdicts = |findings: Vec<Finding>| {
        let told = findings.into_iter().map(|finding| (finding.id, finding.verdict));
        // What is free on this machine moves between two looks, the rest stays.
        told.filter(|(id, _)| !["memory", "disk", "ports"].contains(id)).collect::<Vec<_>>()
    };
    let here = run(&host, &needs, &nothing).await.expect("answers");
    let there = run(&recorded, &needs, &nothing).await.expect("answers");
    assert_eq!(verdicts(here), verdicts(there));
    record(&host, &nothing, &to).await.expect_err("does not overwrite");
}
