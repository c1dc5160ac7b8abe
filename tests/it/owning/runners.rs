//! An L0 that is another machine: a local sshd plays it.

use camino::Utf8PathBuf;

use super::user::User;
use crate::support::sshd::{self, Sshd};

/// Starts a runner whose users keep their state in `folder`.
fn runner(folder: &Utf8PathBuf) -> Sshd {
    Sshd::start(&[&format!("SetEnv HOME={folder} XDG_STATE_HOME={folder}")])
}

fn guests(status: &serde_json::Value) -> Vec<serde_json::Value> {
    status["labs"][0]["guests"].as_array().expect("guests").clone()
}

#[test]
fn the_guests_of_a_former_l0_are_shown_with_it_and_destroyed_there() {
    let user = User::new();
    let there = user.path("runner");
    let runner = runner(&there);
    user.may_enter(&runner);
    let destination = format!("{}@127.0.0.1:{}", sshd::user(), runner.port());
    let ssh = format!("ssh = \"{destination}\"");
    user.ok(&["up", user.recipe("tiny.toml", "tiny", &["one"]).as_str()]);
    let here = user.pid("nestlab-tiny-one");
    let recipe = user.recipe_on("tiny.toml", "tiny", &ssh, &["one"]);
    user.ok(&["up", recipe.as_str()]);
    let running = user.running();
    assert_eq!(running.len(), 2, "{running:?}");
    assert_eq!(user.pid("nestlab-tiny-one"), here, "the one on this machine runs on");

    let shown = user.ok(&["status", "tiny"]).out;
    assert!(shown.contains("orphaned on this machine"), "{shown}");
    let status = guests(&user.json(&["status", "tiny"]));
    assert_eq!(status.len(), 2, "{status:?}");
    assert_eq!((&status[0]["orphaned"], &status[0]["former_l0"]), (&false.into(), &().into()));
    assert_eq!(status[1]["former_l0"], "this machine");
    assert_eq!(status[1]["state"], "running");

    user.ok(&["destroy", "tiny", "--orphaned", "--yes"]);
    let left = user.running();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_ne!(left[0], "nestlab-tiny-one", "the one on the runner is the lab's");
    assert!(!user.lab("tiny").guest_directory("one").exists());

    user.ok(&["up", user.recipe("tiny.toml", "tiny", &["one"]).as_str()]);
    let shown = user.ok(&["status", "tiny"]).out;
    assert!(shown.contains(&format!("orphaned on {destination}")), "{shown}");
    user.ok(&["destroy", "tiny", "--yes"]);
    assert_eq!(user.running(), [""; 0], "each was removed where it was");
    let left: Vec<_> = there.join("nestlab").read_dir_utf8().expect("lists").collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!user.lab("tiny").directory().exists());
}

#[test]
fn two_users_with_a_lab_of_one_name_do_not_meet_on_a_runner() {
    let (one, other) = (User::new(), User::new());
    let there = one.path("runner");
    let runner = runner(&there);
    // The other names no user: it is the one who runs nestlab.
    let users = [(&one, format!("{}@127.0.0.1", sshd::user())), (&other, "127.0.0.1".to_owned())];
    for (user, destination) in &users {
        user.may_enter(&runner);
        let ssh = format!("ssh = \"{destination}:{}\"", runner.port());
        let recipe = user.recipe_on("tiny.toml", "tiny", &ssh, &["one"]);
        let mut up = user.command(&["up", recipe.as_str()]);
        let output = up.env("USER", sshd::user()).output().expect("runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let running = one.running();
    assert_eq!(running.len(), 2, "both run there: {running:?}");
    let folders = || there.join("nestlab").read_dir_utf8().expect("lists").count();
    assert_eq!(folders(), 2);
    one.ok(&["destroy", "tiny", "--yes"]);
    let left = one.running();
    assert!(left.len() == 1 && running.contains(&left[0]), "{left:?}");
    assert_eq!(folders(), 1);
    let mut destroy = other.command(&["destroy", "tiny", "--yes"]);
    assert!(destroy.env("USER", sshd::user()).status().expect("runs").success());
    assert_eq!(one.running(), [""; 0]);
}

#[test]
fn a_lab_that_an_older_nestlab_built_on_a_runner_keeps_its_names_there() {
    let user = User::new();
    let there = user.path("runner");
    let runner = runner(&there);
    user.may_enter(&runner);
    let ssh = format!("ssh = \"{}@127.0.0.1:{}\"", sshd::user(), runner.port());
    let recipe = user.recipe_on("tiny.toml", "tiny", &ssh, &["one"]);
    user.ok(&["up", recipe.as_str()]);
    let running = user.running();
    // As it would be if no owner had been written down: no folder and no owner of its own.
    let file = user.lab("tiny").directory().join("machines.json");
    let text = std::fs::read_to_string(&file).expect("is there");
    let mut older: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let fields = older.as_object_mut().expect("an object");
    let owner = fields.remove("owner").expect("has one");
    fields.remove("l0_folder").expect("has one");
    assert!(running[0].contains(owner.as_str().expect("text")), "{running:?}");
    std::fs::write(&file, older.to_string()).expect("writes");
    let plan = user.json(&["plan", recipe.as_str()]);
    let commands = plan["steps"].to_string();
    assert!(commands.contains("nestlab/tiny/one"), "{commands}");
    std::fs::write(&file, text).expect("writes");
    user.ok(&["destroy", "tiny", "--yes"]);
}
