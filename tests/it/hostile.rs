//! What a hostile host, guest or program says, through the real binary: it drives no terminal, and it costs
//! a bounded amount of memory, time and disk.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use crate::support::lab::Nestlab;

/// A VBoxManage that says what a test wants it to.
struct Fake {
    nestlab: Nestlab,
    program: PathBuf,
}

impl Fake {
    /// Answers `--version` as VirtualBox 7.0, and anything else by the shell's `case` arms in `answers`.
    fn new(answers: &str) -> Self {
        let nestlab = Nestlab::new();
        let program = nestlab.state().join("VBoxManage");
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in\n--version) echo 7.0.20r163906 ;;\n{answers}\n\
             getextradata*) echo 'No value set!' ;;\n\
             'list --long vms') ;;\n\
             *) echo \"VBoxManage: error: unexpected: $*\" >&2; exit 1 ;;\nesac\n"
        );
        std::fs::write(&program, script).expect("is written");
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("can be run");
        Fake { nestlab, program }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.nestlab.command(args);
        command.env("NESTLAB_VBOXMANAGE", &self.program);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("nestlab runs")
    }

    /// Writes the recipe of a lab whose one guest is the VM called `vm`.
    fn recipe_of(&self, vm: &str) -> String {
        let path = self.nestlab.state().join("recipe.toml");
        let recipe = format!(
            "schema = 1\nname = \"hostile\"\n[host]\nhypervisor = \"virtualbox\"\n[[guest]]\n\
             name = \"g\"\nvm = \"{vm}\"\nready = \"guest-additions\"\n"
        );
        std::fs::write(&path, recipe).expect("is written");
        path.to_str().expect("UTF-8").to_owned()
    }
}

/// Sets a title, clears the screen, colors what follows, and turns it around.
const EVIL: &str = r"\033]0;owned\007\033[2J\033[31mevil\302\2332J\342\200\256";

/// Asserts that neither output drives a terminal, and that `word` is in one of them all the same.
fn assert_tame(output: &Output, word: &str) {
    let said = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    for text in &said {
        let drives = |c: char| (c.is_control() && !"\n\t".contains(c)) || c == '\u{202e}';
        assert!(!text.chars().any(drives), "{text:?}");
    }
    assert!(said.iter().any(|text| text.contains(word)), "{word} is missing in {said:?}");
}

#[test]
fn the_name_of_a_vm_cannot_drive_the_terminal_in_an_answer_nor_in_json() {
    let list = format!(
        "'list vms') printf '\"nestlab-{EVIL}-l1\" {{11111111-2222-3333-4444-555555555556}}\\n' ;;"
    );
    let fake = Fake::new(&list);
    assert_tame(&fake.run(&["gc"]), "nestlab-evil");
    assert_tame(&fake.run(&["gc", "--json"]), "evil");
}

#[test]
fn what_vboxmanage_complains_of_cannot_drive_the_terminal() {
    let fake =
        Fake::new(&format!("'list vms') printf 'VBoxManage: error: {EVIL}\\n' >&2; exit 1 ;;"));
    let recipe = fake.recipe_of("win");
    assert_tame(&fake.run(&["plan", &recipe]), "evil");
    assert_tame(&fake.run(&["plan", &recipe, "--json"]), "evil");
}

#[test]
fn what_a_hint_quotes_cannot_drive_the_terminal() {
    let list =
        format!("'list vms') printf '\"{EVIL}\" {{11111111-2222-3333-4444-555555555556}}\\n' ;;");
    let fake = Fake::new(&list);
    let recipe = fake.recipe_of("win");
    assert_tame(&fake.run(&["plan", &recipe]), "there are: evil");
}

#[test]
fn a_vboxmanage_that_floods_costs_one_error_and_bounded_memory() {
    let fake = Fake::new("'list vms') exec cat /dev/zero ;;");
    // Its threads' stacks and heaps are a part of this; the gigabytes that came in are not.
    let limited = r#"ulimit -v 2000000 && exec "$0" "$@""#;
    let plain = fake.command(&["plan", &fake.recipe_of("win")]);
    let mut command = Command::new("sh");
    command.args(["-c", limited]).arg(plain.get_program()).args(plain.get_args());
    command.env("NESTLAB_VBOXMANAGE", &fake.program);
    let output = command.output().expect("nestlab runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("wrote more than 64 MiB and was ended"), "{said}");
}
