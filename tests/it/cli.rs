//! The command line as a user meets it: the real binary, its two outputs and its exit code.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Output, Stdio};

use assert_cmd::Command;
use serde_json::Value as Json;

/// Returns nestlab with a home of its own, away from the tester's settings.
fn nestlab(home: &Path) -> Command {
    let mut command = Command::cargo_bin("nestlab").expect("the binary is built");
    command
        .current_dir(home)
        .env_clear()
        .env("HOME", home)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

fn run(home: &Path, arguments: &[&str]) -> Output {
    nestlab(home).args(arguments).output().expect("nestlab runs")
}

fn home() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Returns stdout of a run that must succeed and have nothing to complain of.
fn answer(home: &Path, arguments: &[&str]) -> String {
    let output = run(home, arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "", "{arguments:?} has nothing to complain of");
    text(&output.stdout)
}

fn json_answer(home: &Path, arguments: &[&str]) -> Json {
    let answer = answer(home, arguments);
    assert_eq!(answer.lines().count(), 1, "one object on one line: {answer}");
    serde_json::from_str(&answer).expect("JSON")
}

#[test]
fn help_teaches_with_examples_and_tells_the_exit_codes() {
    let home = home();
    let help = answer(home.path(), &["--help"]);
    for part in
        ["Examples:", "nestlab check quickstart", "Exit codes:", "3  this host cannot do it"]
    {
        assert!(help.contains(part), "{part} is missing in:\n{help}");
    }
    assert!(answer(home.path(), &["--version"]).starts_with("nestlab "));
}

#[test]
fn every_command_has_help_that_says_what_it_does() {
    let home = home();
    let help = answer(home.path(), &["--help"]);
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        // What is indented deeper is the rest of a long description.
        .filter(|line| !line.starts_with("   "))
        .map(|line| line.split_whitespace().next().expect("a command's name"))
        .collect();
    assert!(commands.contains(&"recipe"), "{commands:?}");
    for command in commands {
        let help = answer(home.path(), &[command, "--help"]);
        assert!(help.contains(&format!("Usage: nestlab {command}")), "{help}");
    }
}

#[test]
fn a_wrong_command_line_is_answered_with_exit_code_2_and_the_nearest_word() {
    let home = home();
    let output = run(home.path(), &["recpie", "list"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("recipe"), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "");
}

#[test]
fn with_json_a_wrong_command_line_is_one_json_object_too() {
    let home = home();
    let output = run(home.path(), &["--json", "recpie", "list"]);
    assert_eq!(output.status.code(), Some(2));
    let answer: Json = serde_json::from_slice(&output.stdout).expect("JSON on stdout");
    assert_eq!(answer["schema"], 1);
    assert_eq!(answer["error"]["kind"], "usage");
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn every_shipped_recipe_is_listed_and_can_be_shown() {
    let home = home();
    let listed = json_answer(home.path(), &["recipe", "list", "--json"]);
    let recipes = listed["recipes"].as_array().expect("a list");
    assert!(recipes.len() >= 8, "{listed}");
    for recipe in recipes {
        let name = recipe["name"].as_str().expect("a name");
        let shown = answer(home.path(), &["recipe", "show", name]);
        let file =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes").join(format!("{name}.toml"));
        assert_eq!(shown, fs::read_to_string(file).expect("the recipe's file"));
        assert!(answer(home.path(), &["recipe", "list"]).contains(name));
    }
}

#[test]
fn a_recipe_that_does_not_ship_is_a_usage_error_with_the_nearest_name() {
    let home = home();
    let output = run(home.path(), &["recipe", "show", "quikstart"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("did you mean `quickstart`?"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn init_writes_a_recipe_once_and_never_over_a_file() {
    let home = home();
    let said = answer(home.path(), &["init"]);
    assert!(said.contains("nestlab check lab.toml"), "{said}");
    let written = fs::read_to_string(home.path().join("lab.toml")).expect("is written");
    assert!(written.contains("schema = 1"));
    fs::write(home.path().join("lab.toml"), "mine").expect("changed");
    let output = run(home.path(), &["init"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("exists already"), "{}", text(&output.stderr));
    assert_eq!(fs::read_to_string(home.path().join("lab.toml")).expect("is there"), "mine");
}

#[test]
fn init_follows_no_link_to_a_file_that_is_not_there() {
    let home = home();
    std::os::unix::fs::symlink("elsewhere", home.path().join("lab.toml")).expect("a link");
    assert_eq!(run(home.path(), &["init"]).status.code(), Some(2));
    assert!(!home.path().join("elsewhere").exists());
}

#[test]
fn init_can_start_from_a_recipe_that_ships() {
    let home = home();
    assert_eq!(answer(home.path(), &["init", "vm", "--from", "existing-vm", "--quiet"]), "");
    let shown = answer(home.path(), &["recipe", "show", "existing-vm"]);
    assert_eq!(fs::read_to_string(home.path().join("vm")).expect("is written"), shown);
}

#[test]
fn the_schema_is_json_that_names_the_keys() {
    let home = home();
    let schema: Json =
        serde_json::from_str(&answer(home.path(), &["schema", "recipe"])).expect("JSON");
    assert_eq!(schema["title"], "nestlab recipe");
    assert!(schema["$defs"]["GuestTable"]["properties"]["serial-pattern"].is_object());
}

#[test]
fn a_completion_script_for_bash_is_one_that_bash_reads_and_knows_the_commands_by() {
    let home = home();
    let script = home.path().join("completions");
    fs::write(&script, answer(home.path(), &["completions", "bash"])).expect("written");
    let completed = std::process::Command::new("bash")
        .args(["--norc", "-c", ". \"$1\"; COMP_WORDS=(nestlab rec); COMP_CWORD=1; _nestlab nestlab rec nestlab; echo \"${COMPREPLY[@]}\"", "bash"])
        .arg(&script)
        .output()
        .expect("bash runs");
    assert_eq!(text(&completed.stdout), "recipe\n", "{}", text(&completed.stderr));
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        assert!(answer(home.path(), &["completions", shell]).contains("nestlab"), "{shell}");
    }
}

#[test]
fn the_manual_has_a_page_for_nestlab_and_for_every_command() {
    let home = home();
    assert!(answer(home.path(), &["man"]).contains(".TH nestlab 1"));
    answer(home.path(), &["man", "--dir", "pages"]);
    for page in ["nestlab.1", "nestlab-recipe.1", "nestlab-recipe-show.1", "nestlab-init.1"] {
        let page = fs::read_to_string(home.path().join("pages").join(page)).expect("is written");
        assert!(page.contains(".TH nestlab"), "{page}");
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let home = home();
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("nestlab"))
        .args(["schema", "recipe"])
        .env_clear()
        .env("HOME", home.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("nestlab runs");
    drop(child.stdout.take());
    let status = child.wait().expect("it ends");
    let mut complaint = String::new();
    child.stderr.take().expect("is piped").read_to_string(&mut complaint).expect("UTF-8");
    assert_eq!((status.code(), complaint.as_str()), (Some(0), ""));
}

#[test]
fn a_full_disk_under_stdout_is_an_error() {
    let home = home();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
    let output = std::process::Command::new(assert_cmd::cargo::cargo_bin("nestlab"))
        .args(["recipe", "list"])
        .env_clear()
        .env("HOME", home.path())
        .stdout(full)
        .output()
        .expect("nestlab runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("cannot write to stdout"), "{}", text(&output.stderr));
}

#[test]
fn colors_are_for_terminals_unless_asked_for() {
    let home = home();
    let colored = |arguments: &[&str]| text(&run(home.path(), arguments).stderr).contains('\x1b');
    assert!(!colored(&["recipe", "show", "x"]));
    assert!(colored(&["--color", "always", "recipe", "show", "x"]));
    assert!(!colored(&["--color", "never", "recipe", "show", "x"]));
}

/// A recipe that is right and needs nothing that is not shipped: a tiny Linux in a tiny Linux.
const TINY: &str = "schema = 1\nname = \"tiny\"\n\n[host]\nhypervisor = \"qemu\"\n\n[[guest]]\nname = \"l1\"\n\
                    image = \"appliance\"\nhypervisor = \"qemu\"\n\n[[guest]]\nname = \"l2\"\nimage = \"appliance\"\n";

fn write(home: &Path, text: &str) {
    fs::write(home.join("lab.toml"), text).expect("written");
}

#[test]
fn check_shows_every_value_and_why_it_is_that_one() {
    let home = home();
    write(home.path(), TINY);
    let shown = answer(home.path(), &["check", "lab.toml", "--cpus", "4", "--memory", "16GiB"]);
    for part in [
        "tiny is right",
        "L0  this machine: 4 cores, 16GiB, qemu",
        "l1  level 1, qemu on L0, image appliance",
        "one fewer than L0's 4 physical cores",
        "a deeper guest starts with 1",
        "10.0.3.0/24",
    ] {
        assert!(shown.contains(part), "{part} is missing in:\n{shown}");
    }
}

#[test]
fn check_answers_programs_with_the_fields_that_the_design_settles() {
    let home = home();
    write(home.path(), TINY);
    let answer = json_answer(
        home.path(),
        &["check", "lab.toml", "--json", "--cpus", "4", "--memory", "16GiB"],
    );
    assert_eq!((&answer["schema"], &answer["recipe"]), (&1.into(), &"tiny".into()));
    let l1 = &answer["guests"][0];
    assert_eq!(l1["cpus"], 3);
    assert_eq!(l1["derived"]["cpus"], "one fewer than L0's 4 physical cores");
    assert_eq!((&l1["level"], &l1["parent"]), (&1.into(), &"L0".into()));
    assert_eq!(answer["guests"][1]["cpus"], 1);
}

#[test]
fn every_shipped_recipe_is_right_on_a_common_machine_and_says_if_nobody_ran_it() {
    let home = home();
    let listed = json_answer(home.path(), &["recipe", "list", "--json"]);
    for recipe in listed["recipes"].as_array().expect("a list") {
        let name = recipe["name"].as_str().expect("a name");
        let shown = answer(home.path(), &["check", name, "--cpus", "4", "--memory", "16GiB"]);
        assert!(shown.starts_with(&format!("{name} is right")), "{shown}");
        assert_eq!(shown.contains("untested"), recipe["untested"].is_string(), "{shown}");
    }
}

#[test]
fn check_reads_this_machine_when_nothing_else_is_said() {
    let home = home();
    write(home.path(), TINY);
    let answer = json_answer(home.path(), &["check", "lab.toml", "--json"]);
    let total = fs::read_to_string("/proc/meminfo").expect("Linux has it");
    let total = total.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
    assert_eq!(answer["host"]["memory_mib"].as_u64(), total.map(|kib| kib / 1024));
}

#[test]
fn a_mistake_is_shown_with_its_line_and_exit_code_2() {
    let home = home();
    write(
        home.path(),
        &TINY.replace(
            "hypervisor = \"qemu\"\n\n[[guest]]\nname = \"l2\"",
            "memroy = \"1GiB\"\n\n[[guest]]\nname = \"l2\"",
        ),
    );
    let output = run(home.path(), &["check", "lab.toml"]);
    assert_eq!(output.status.code(), Some(2));
    let expected = "error: lab.toml:10:1: unknown key `memroy`\n     |\n  10 | memroy = \"1GiB\"\n     | ^^^^^^\n  = did you mean `memory`?\n";
    assert_eq!(text(&output.stderr), expected);
    assert_eq!(text(&output.stdout), "");
    let output = run(home.path(), &["check", "lab.toml", "--json"]);
    let answer: Json = serde_json::from_slice(&output.stdout).expect("JSON");
    let problem = &answer["error"]["problems"][0];
    assert_eq!((&problem["line"], &problem["column"]), (&10.into(), &1.into()));
    assert_eq!(problem["help"], "did you mean `memory`?");
}

#[test]
fn a_machine_that_is_too_small_is_exit_code_3_and_the_line_that_asks_too_much() {
    let home = home();
    write(home.path(), &format!("{TINY}memory = \"20GiB\"\n"));
    let output = run(home.path(), &["check", "lab.toml", "--cpus", "4", "--memory", "8GiB"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    write(home.path(), &TINY.replacen("image", "cpus = 9\nimage", 1));
    let output = run(home.path(), &["check", "lab.toml", "--cpus", "4", "--memory", "8GiB"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(
        text(&output.stderr).contains("lab.toml:9:8: l1 is to have 9 CPUs"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_recipe_cannot_drive_the_terminal() {
    let home = home();
    write(
        home.path(),
        "schema = 1\nname = \"\u{1b}[2J\u{1b}]0;x\u{7}\"\n[[guest]]\nname = \"\u{202e}\"\n",
    );
    let output = run(home.path(), &["check", "lab.toml"]);
    let told = text(&output.stderr);
    assert!(!told.chars().any(|c| c.is_control() && c != '\n' || c == '\u{202e}'), "{told:?}");
    assert_eq!(output.status.code(), Some(2));
}
