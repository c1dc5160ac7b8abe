//! What a recipe with mistakes is answered: the place, the reason, the way out.

use camino::Utf8PathBuf;
use proptest::prelude::*;

use super::*;
use crate::error::{Error, Kind};

/// A recipe without mistakes that uses every kind of table.
const GOOD: &str = r#"
schema = 1
name = "lab"
mirror = "https://mirror.example/debian"
proxy = "socks5h://127.0.0.1:9050"

[limits]
patience = 2

[host]
hypervisor = "virtualbox"
ssh = "me@runner:2222"
host-key = "Left Ctrl"

[[guest]]
name = "l1"
image = "./images/mine.toml"
cpus = 3
memory = "6GiB"
disk = "40GiB"
hypervisor = "virtualbox"
host-key = "F12"
packages = ["htop"]

[[guest]]
name = "gateway"
image = "appliance"
networks = ["inner"]

[[guest]]
name = "mine"
parent = "l1"
vm = "My VM"
snapshot-before = true
ssh = { user = "user", port = 2222, key = "id_ed25519" }
ready = "serial"
serial-pattern = "login:"
networks = ["inner"]
"#;

fn parse(text: &str) -> crate::Result<Recipe> {
    let base = Utf8PathBuf::from("/labs");
    Recipe::parse(text, RecipeOrigin::Text { name: "lab.toml".to_owned(), base })
}

fn refused(text: &str) -> Error {
    let error = parse(text).map(|_| ()).expect_err(text);
    assert_eq!(error.kind(), Kind::Recipe);
    error
}

/// A recipe of `guests` with a head that is right; guests begin at line 4.
fn with_guests(guests: &str) -> String {
    format!("schema = 1\nname = \"lab\"\n\n{guests}")
}

#[test]
fn a_recipe_without_mistakes_says_what_was_written() {
    let recipe = parse(GOOD).unwrap_or_else(|error| panic!("{}", error.report()));
    assert_eq!(recipe.patience, 2.0);
    assert_eq!(recipe.host.hypervisor, HypervisorChoice::VirtualBox);
    let ssh = recipe.host.ssh.as_ref().expect("given");
    assert_eq!((ssh.host.as_str(), ssh.port.get()), ("runner", 2222));
    let names: Vec<_> = recipe.guests().iter().map(|g| (g.name.as_str(), g.level)).collect();
    assert_eq!(names, [("l1", 1), ("gateway", 2), ("mine", 2)]);
    let l1 = recipe.find("l1").expect("is there");
    assert_eq!(
        l1.source,
        GuestSource::Image(ImageRef::Manifest("/labs/./images/mine.toml".into())),
        "a path starts from the recipe's folder"
    );
    let mine = recipe.find("mine").expect("is there");
    let login = mine.ssh.as_ref().expect("given");
    assert_eq!(login.key.as_deref(), Some("/labs/id_ed25519".into()));
    assert_eq!(recipe.parent(mine).map(|guest| guest.name.as_str()), Some("l1"));
    assert_eq!(recipe.ancestors(mine).count(), 1);
    assert_eq!(recipe.source().text(), GOOD);
}

#[test]
fn the_parent_is_the_guest_above_unless_named_and_may_stand_below() {
    let recipe = parse(&with_guests(
        "[[guest]]\nname = \"deep\"\nparent = \"host\"\nimage = \"i\"\n\
         [[guest]]\nname = \"host\"\nparent = \"L0\"\nimage = \"i\"\nhypervisor = \"qemu\"\n\
         [[guest]]\nname = \"beside\"\nimage = \"i\"\n",
    ))
    .unwrap_or_else(|error| panic!("{}", error.report()));
    let names: Vec<_> = recipe.guests().iter().map(|g| (g.name.as_str(), g.level)).collect();
    assert_eq!(names, [("host", 1), ("beside", 2), ("deep", 2)], "each after its parent");
}

#[test]
fn an_existing_vm_settles_that_l0_runs_virtualbox() {
    let recipe = parse(&with_guests("[[guest]]\nname = \"l1\"\nvm = \"Mine\"\n")).expect("good");
    assert_eq!(recipe.host.hypervisor, HypervisorChoice::VirtualBox);
}

#[test]
fn every_mistake_is_told_with_its_line_and_what_to_write_instead() {
    // Guests begin at line 4. Text, line:column, what is wrong, what to do.
    let table = [
        (
            "[[guest]]\nname = \"l1\"\nimage = \"i\"\nmemroy = \"6GiB\"",
            "7:1",
            "unknown key `memroy`",
            "did you mean `memory`",
        ),
        (
            "[[guest]]\nname = \"l1\"\nimage = \"i\"\nfrob = 1",
            "7:1",
            "unknown key `frob`",
            "overcommit, packages, parent",
        ),
        (
            "[[guest]]\nname = \"l1\"\nimage = \"i\"\nssh = { usr = \"x\", user = \"x\" }",
            "7:9",
            "unknown key `usr`",
            "`user`",
        ),
        ("[[guest]]\nname = \"l1\"\nimage = \"i\"\nmemory = 6", "7:10", "`6` has no unit", "6GiB"),
        ("[[guest]]\nname = \"l1\"\nimage = \"i\"\nmemory = \"6GB\"", "7:10", "`GB`", "GiB"),
        (
            "[[guest]]\nname = \"l1\"\nimage = \"i\"\nhypervisor = \"qemu\"\nnested = false",
            "8:10",
            "l1 runs guests with qemu, which takes nesting",
            "leave `nested` out",
        ),
        (
            "[[guest]]\nname = \"l1\"\nimage = \"i\"\nmemory = \"1MiB\"",
            "7:10",
            "no guest starts with 1MiB",
            "256MiB",
        ),
        ("[[guest]]\nname = \"l1\"\nimage = \"i\"\ncpus = 0", "7:8", "cannot have 0 CPUs", ""),
        ("[[guest]]\nname = \"l1\"\nimage = \"i\"\ncpus = -1", "7:8", "cannot have -1 CPUs", ""),
        (
            "[[guest]]\nname = \"l1\"\nimage = \"i\"\ncpus = \"2\"",
            "7:8",
            "invalid type: string",
            "",
        ),
        (
            "[[guest]]\nname = \"l1\"\nimage = \"i\"\nhypervisor = \"kvm\"",
            "7:14",
            "`kvm` is not a hypervisor",
            "`qemu`",
        ),
        (
            "[[guest]]\nname = \"l1\"\nimage = \"i\"\nhypervisor = \"auto\"",
            "7:14",
            "`auto` is not a hypervisor",
            "`qemu`",
        ),
        (
            "[[guest]]\nname = \"l1\"\nimage = \"i\"\nready = \"serail\"",
            "7:9",
            "`serail`",
            "`serial`",
        ),
        ("[[guest]]\nname = \"l1\"\nimage = \"i\"\nfirmware = \"uefi\"", "7:12", "`uefi`", "`efi`"),
        (
            "[[guest]]\nname = \"l1\"\nimage = \"i\"\nserial-pattern = \"login\"",
            "7:18",
            "readiness is not `serial`",
            "ready = \"serial\"",
        ),
        (
            "[[guest]]\nname = \"l1\"\nimage = \"i\"\nready = \"serial\"\nserial-pattern = \"(\"",
            "8:18",
            "not a regular expression",
            "",
        ),
        (
            "[[guest]]\nname = \"l1\"\nvm = \"Mine\"\nreach-host = true",
            "7:14",
            "exists already",
            "leave `reach-host` out",
        ),
        (
            "[[guest]]\nname = \"l1\"\nimage = \"i\"\nhost-key = \"Right Ctrl\"",
            "7:12",
            "does not run VirtualBox",
            "hypervisor = \"virtualbox\"",
        ),
        (
            "[[guest]]\nname = \"l1\"\nimage = \"i\"\nhypervisor = \"virtualbox\"\nhost-key = \"Rigth Ctrl\"",
            "8:12",
            "`Rigth Ctrl`",
            "`Right Ctrl`",
        ),
        (
            "[[guest]]\nname = \"l1\"\nimage = \"i\"\nhypervisor = \"virtualbox\"\nhost-key = \"F1+F2+F3+F4\"",
            "8:12",
            "at most 3 keys",
            "",
        ),
        (
            "[[guest]]\nname = \"l1\"\nimage = \"i\"\npackages = [\"htop\", \"-y\"]",
            "7:21",
            "`-y` is not a Debian package",
            "",
        ),
        (
            "[[guest]]\nname = \"l1\"\nimage = \"i\"\nnetworks = [\"lan\"]",
            "7:13",
            "alone on `lan`",
            "must name it too",
        ),
        (
            "[[guest]]\nname = \"l1\"\nimage = \"i\"\nnetworks = [\"a\", \"a\"]",
            "7:18",
            "named twice",
            "",
        ),
        (
            "[[guest]]\nname = \"l1\"\nimage = \"i\"\nsnapshot-before = true",
            "7:19",
            "a VM that exists already",
            "",
        ),
        (
            "[[guest]]\nname = \"l1\"\nimage = \"i\"\nssh = { port = 22 }",
            "7:7",
            "which user",
            "user =",
        ),
        (
            "[[guest]]\nname = \"l1\"\nimage = \"i\"\nssh = { user = \"x\", port = 0 }",
            "7:28",
            "`0` is not a port",
            "",
        ),
        ("[[guest]]\nname = \"l1\"\nimage = \"A B\"", "6:9", "cannot be an image's name", ".toml"),
        (
            "[[guest]]\nname = \"l1\"\nimage = \"i\"\nvm = \"x\"",
            "7:6",
            "an `image` and a `vm`",
            "leave one",
        ),
        ("[[guest]]\nname = \"l1\"", "5:8", "neither an `image` nor a `vm`", "debian-sid"),
        ("[[guest]]\nname = \"l1\"\nvm = \"-x\"", "6:6", "cannot be a VM's name", ""),
        (
            "[[guest]]\nname = \"l1\"\nvm = \"x\"\ndisk = \"40GiB\"",
            "7:8",
            "not changed",
            "changed back",
        ),
        (
            "[[guest]]\nname = \"l1\"\nvm = \"x\"\nfirmware = \"efi\"",
            "7:12",
            "not changed",
            "changed back",
        ),
        ("[[guest]]\nimage = \"i\"", "4:1", "a guest has no name", "name ="),
        ("[[guest]]\nname = \"l0\"\nimage = \"i\"", "5:8", "cannot be called `l0`", "`l1`"),
        (
            "[[guest]]\nname = \"My VM\"\nimage = \"i\"",
            "5:8",
            "cannot be a guest's name",
            "lower-case",
        ),
        ("[[guest]]\nname = \"l1\"\nimage = \"i\"\nparent = \"l1\"", "7:10", "its own parent", ""),
        (
            "[[guest]]\nname = \"l1\"\nimage = \"i\"\nparent = \"l9\"",
            "7:10",
            "no guest `l9`",
            "did you mean `l1`",
        ),
        (
            "[[guest]]\nname = \"l1\"\nimage = \"i\"\nparent = \"other\"",
            "7:10",
            "no guest `other`",
            "the guests are l1",
        ),
        (
            "[[guest]]\nname = \"l1\"\nimage = \"i\"\nparent = \"the other\"",
            "7:10",
            "cannot be a guest's name",
            "L0",
        ),
        (
            "[[guest]]\nname = \"a\"\nimage = \"i\"\n[[guest]]\nname = \"b\"\nimage = \"i\"",
            "5:8",
            "a runs b, and no hypervisor",
            "hypervisor = \"virtualbox\"",
        ),
        (
            "[[guest]]\nname = \"a\"\nimage = \"i\"\n[[guest]]\nname = \"a\"\nimage = \"i\"",
            "8:8",
            "two guests are called `a`",
            "its own",
        ),
        (
            "[[guest]]\nname = \"a\"\nimage = \"i\"\nparent = \"b\"\nhypervisor = \"qemu\"\n[[guest]]\nname = \"b\"\nimage = \"i\"\nhypervisor = \"qemu\"",
            "7:10",
            "run each other: a, b",
            "L0",
        ),
        (
            "[[guest]]\nname = \"a\"\nimage = \"i\"\nhypervisor = \"qemu\"\n[[guest]]\nname = \"b\"\nvm = \"x\"",
            "9:8",
            "QEMU on a keeps no list",
            "VirtualBox",
        ),
        (
            "[[guest]]\nname = \"a\"\nimage = \"i\"\nhypervisor = \"qemu\"\n[[guest]]\nname = \"b\"\nimage = \"i\"\nready = \"guest-additions\"",
            "11:9",
            "VirtualBox's, and a runs b with QEMU",
            "ready = \"ssh\"",
        ),
        (
            "[[guest]]\nname = \"a\"\nimage = \"i\"\nhypervisor = \"qemu\"\nnetworks = [\"n\"]\n[[guest]]\nname = \"b\"\nimage = \"i\"\nnetworks = [\"n\"]",
            "8:13",
            "a is alone on `n`",
            "b runs on another host",
        ),
        (
            "[guest]\nname = \"l1\"\nimage = \"i\"",
            "4:1",
            "one table where a list is expected",
            "[[guest]]",
        ),
        ("guest = 5", "4:9", "expected a list", ""),
        ("guest = [5]", "4:10", "expected a guest's table", ""),
        ("", "4:1", "the recipe has no guest", "[[guest]]"),
    ];
    for (guests, place, wrong, way_out) in table {
        let error = refused(&with_guests(guests));
        let problem = error
            .problems()
            .iter()
            .find(|problem| problem.message.contains(wrong))
            .unwrap_or_else(|| panic!("`{wrong}` is missing in:\n{}", error.report()));
        assert_eq!(format!("{}:{}", problem.line, problem.column), place, "{}", error.report());
        let advice = format!("{} {}", problem.message, problem.help.as_deref().unwrap_or_default());
        assert!(advice.contains(way_out), "`{way_out}` is missing in:\n{}", error.report());
        assert!(problem.excerpt.contains('^'), "{}", problem.excerpt);
    }
}

#[test]
fn what_is_wrong_outside_the_guests_is_told_too() {
    let guest = "[[guest]]\nname = \"l1\"\nimage = \"i\"\n";
    let table = [
        ("schema = 1", "1:1", "no name"),
        ("name = \"x\"", "1:1", "which schema"),
        ("schema = 0\nname = \"x\"", "1:10", "no recipe schema 0"),
        ("schema = 1\nname = \"../x\"", "2:8", "cannot be a lab's name"),
        ("schema = 1\nname = \"x\"\nmirror = \"ftp://a/debian\"", "3:10", "not a mirror's URL"),
        ("schema = 1\nname = \"x\"\nproxy = \"http://u:p@h\"", "3:9", "a user or password"),
        ("schema = 1\nname = \"x\"\n[limits]\npatience = 0.5", "4:12", "between 1 and 1000"),
        ("schema = 1\nname = \"x\"\n[limits]\npatience = nan", "4:12", "between 1 and 1000"),
        ("schema = 1\nname = \"x\"\n[host]\nhypervisor = \"xen\"", "4:14", "`xen`"),
        ("schema = 1\nname = \"x\"\n[host]\nssh = \"-oProxyCommand=id\"", "4:7", "not an SSH host"),
        ("schema = 1\nname = \"x\"\n[hots]\n", "3:2", "unknown key `hots`"),
        ("schema = 1\nname = \"x\"\nname = \"y\"", "3:1", "duplicate key"),
        ("schema = 1\nname = x", "2:8", ""),
    ];
    for (head, place, wrong) in table {
        let error = refused(&format!("{head}\n{guest}"));
        let places: Vec<_> = error
            .problems()
            .iter()
            .filter(|problem| problem.message.contains(wrong))
            .map(|problem| format!("{}:{}", problem.line, problem.column))
            .collect();
        assert!(places.iter().any(|p| p == place), "{place} `{wrong}`:\n{}", error.report());
    }
}

#[test]
fn all_mistakes_of_a_file_are_told_at_once() {
    let error = refused(&with_guests(
        "[[guest]]\nname = \"L1\"\nimage = \"i\"\nmemory = 6\nmemroy = 1\nnetworks = [\"A\", 1, \"B\"]\n\
         [[guest]]\nname = \"l2\"\ncpus = 0\n",
    ));
    let told: Vec<_> = error.problems().iter().map(|p| (p.line, p.column)).collect();
    assert_eq!(told, [(5, 8), (7, 10), (8, 1), (9, 13), (9, 18), (9, 21), (12, 8)]);
    assert!(error.message().contains("7 problems"), "{}", error.message());
}

#[test]
fn a_guest_that_is_wrong_otherwise_still_counts_as_a_parent() {
    let error = refused(&with_guests(
        "[[guest]]\nname = \"a\"\nhypervisor = \"qemu\"\n\
         [[guest]]\nname = \"b\"\nparent = \"a\"\nimage = \"i\"\n",
    ));
    assert_eq!(error.problems().len(), 1, "{}", error.report());
    assert!(error.message().contains("neither an `image` nor a `vm`"), "{}", error.message());
}

#[test]
fn a_recipe_of_a_newer_nestlab_is_told_to_be_that_and_nothing_else() {
    let error = refused("schema = 7\nname = \"x\"\nsomething-new = true\n");
    assert!(error.message().contains("schema 7"), "{}", error.message());
    assert_eq!(error.problems().len(), 1);
    assert_eq!(error.problems()[0].help.as_deref(), Some("use a newer nestlab"));
}

#[test]
fn a_shipped_recipe_names_no_files() {
    let text = with_guests("[[guest]]\nname = \"l1\"\nimage = \"./mine.toml\"\n");
    let error = Recipe::parse(&text, RecipeOrigin::Shipped).expect_err("refused");
    assert!(error.report().contains("no files beside it"), "{}", error.report());
}

#[test]
fn a_recipe_is_loaded_by_its_path_and_messages_call_it_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = Utf8PathBuf::from_path_buf(folder.path().join("lab.toml")).expect("UTF-8");
    fs_err::write(&path, GOOD).expect("written");
    let recipe = Recipe::load(path.as_str()).expect("good");
    assert_eq!(recipe.origin(), &RecipeOrigin::File(path.clone()));
    fs_err::write(&path, "schema = 1\nnmae = \"x\"\n").expect("written");
    let error = Recipe::load(path.as_str()).expect_err("refused");
    assert!(error.report().contains(&format!("{path}:2:1")), "{}", error.report());
}

#[test]
fn a_name_that_does_not_ship_is_answered_with_the_nearest() {
    let error = Recipe::load("quickstrat").expect_err("refused");
    assert_eq!(error.kind(), Kind::Usage);
    assert!(error.report().contains("did you mean `quickstart`"), "{}", error.report());
    let error = Recipe::load("./no-such-recipe.toml").expect_err("refused");
    assert_eq!(error.kind(), Kind::Io);
    assert!(error.report().contains("nestlab init"), "{}", error.report());
}

#[test]
fn a_file_that_is_no_recipe_at_all_is_refused_in_a_few_lines() {
    let error = refused(&"= [[\n".repeat(5000));
    assert!(error.problems().len() <= 20);
    assert!(error.report().contains("more problems are not shown"), "{}", error.report());
}

proptest! {
    #[test]
    fn no_change_to_a_recipe_makes_the_reader_fail_otherwise_than_with_places(
        at in 0..GOOD.len(), cut in 0usize..30, put in "[\\[\\]{}=\"'.#\n, a-z0-9\\-]{0,12}",
    ) {
        let start = GOOD.floor_char_boundary(at);
        let end = GOOD.floor_char_boundary((at + cut).min(GOOD.len()));
        let text = format!("{}{put}{}", &GOOD[..start], &GOOD[end..]);
        if let Err(error) = parse(&text) {
            prop_assert_eq!(error.kind(), Kind::Recipe);
            prop_assert!(!error.problems().is_empty());
            let lines = text.split('\n').count();
            prop_assert!(error.problems().iter().all(|p| (1..=lines).contains(&p.line)));
        }
    }
}

#[test]
fn a_host_with_both_hypervisors_runs_each_guest_in_the_one_that_it_names() {
    let guests = |l2: &str| {
        format!(
            "schema = 1\nname = \"x\"\n[[guest]]\nname = \"l1\"\nimage = \"i\"\n\
             hypervisor = [\"virtualbox\", \"qemu\"]\n[[guest]]\nname = \"l2\"\nimage = \"i\"\n{l2}"
        )
    };
    let recipe = Recipe::parse(&guests("runs-in = \"qemu\"\n"), RecipeOrigin::Shipped);
    let recipe = recipe.unwrap_or_else(|error| panic!("{}", error.report()));
    let kinds: Vec<_> = recipe.guests()[0].hypervisors().collect();
    assert_eq!(kinds, [HypervisorKind::VirtualBox, HypervisorKind::Qemu]);
    let chosen = recipe.guests()[1].runs_in.as_ref().map(|at| at.value);
    assert_eq!(chosen, Some(HypervisorKind::Qemu));

    let report =
        |text: &str| Recipe::parse(text, RecipeOrigin::Shipped).expect_err("a mistake").report();
    let one =
        guests("runs-in = \"qemu\"\n").replace("[\"virtualbox\", \"qemu\"]", "\"virtualbox\"");
    let told = report(&one);
    assert!(told.contains(":10:11") && told.contains("which l1 does not have"), "{told}");
    let twice = guests("").replace("\"qemu\"]", "\"virtualbox\"]");
    assert!(report(&twice).contains("`virtualbox` is in the list twice"), "{}", report(&twice));
    let none = guests("").replace("[\"virtualbox\", \"qemu\"]", "[]");
    assert!(report(&none).contains(":6:14"), "{}", report(&none));
    let word = guests("").replace("\"qemu\"]", "\"xen\"]");
    assert!(report(&word).contains("choose one of `virtualbox`, `qemu`"), "{}", report(&word));
    let auto = "schema = 1\nname = \"x\"\n[host]\nhypervisor = [\"auto\", \"qemu\"]\n\
                [[guest]]\nname = \"l1\"\nimage = \"i\"\n";
    assert!(report(auto).contains(":4:14"), "{}", report(auto));
}
