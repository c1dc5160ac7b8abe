//! What is litter, what is not, and what is not nestlab's.

use nestlab::lab::JournalEntry;

use super::user::User;

#[tokio::test]
async fn gc_never_touches_a_lab_whose_last_run_was_interrupted() {
    let user = User::new();
    let recipe = user.recipe("tiny.toml", "tiny", &["one"]);
    user.ok(&["up", recipe.as_str()]);
    let journal =
        user.lab("tiny").lock(["nestlab"]).and_then(|lock| lock.journal()).expect("opens");
    let command = vec!["nestlab".to_owned(), "up".to_owned()];
    let begun = JournalEntry::RunStarted { command, version: "0".to_owned(), pid: 1, steps: 5 };
    journal.append(begun).await.expect("writes");
    drop(journal);
    let said = user.ok(&["gc", "--yes"]);
    assert!(said.out.contains("tiny: ended by force"), "it is listed");
    assert!(said.out.contains("`nestlab up` goes on with it"), "with what to do");
    assert_eq!(user.running(), ["nestlab-tiny-one"], "and runs on");
    user.ok(&["up", recipe.as_str()]);
    user.ok(&["destroy", "tiny", "--yes"]);
    assert_eq!(user.running(), [""; 0]);
}

#[test]
fn gc_removes_the_vm_of_a_lab_whose_files_are_gone_and_of_no_other_state_directory() {
    let (user, other) = (User::new(), User::new());
    let recipe = user.recipe("tiny.toml", "tiny", &["one"]);
    user.ok(&["up", recipe.as_str()]);
    std::fs::remove_dir_all(user.lab("tiny").directory()).expect("is there");
    let others = other.ok(&["gc", "--yes"]).out;
    assert!(!others.contains("yours to remove"), "{others}");
    let line = others.lines().find(|line| line.contains("nestlab-tiny-one")).expect("is listed");
    assert!(line.contains("not made by a lab in this state folder; another may own it"), "{line}");
    assert_eq!(user.running(), ["nestlab-tiny-one"], "another state directory's is not touched");
    let listed = user.json(&["gc"]);
    assert_eq!(listed["strays"][0]["lab"], "tiny", "{listed}");
    assert_eq!(user.running(), ["nestlab-tiny-one"], "without --yes it only looks");
    user.ok(&["gc", "--yes"]);
    assert_eq!(user.running(), [""; 0]);
    assert_eq!(user.json(&["gc"])["strays"].as_array().map(Vec::len), Some(0));
    assert!(!user.lab("tiny").directory().exists(), "no empty folder is left");
}

#[test]
fn a_file_of_the_users_stays_when_the_lab_around_it_is_destroyed() {
    let user = User::new();
    let recipe = user.recipe("tiny.toml", "tiny", &["one"]);
    user.ok(&["up", recipe.as_str()]);
    let lab = user.lab("tiny");
    let notes = ["disks/one/my-notes.txt", "my-notes.txt"].map(|name| lab.directory().join(name));
    for path in &notes {
        std::fs::write(path, "mine").expect("writes");
    }
    let said = user.ok(&["destroy", "tiny", "--yes"]);
    let stays = format!("{} stays, with what nestlab did not make", lab.directory());
    assert!(said.err.contains(&stays), "{}", said.err);
    for path in &notes {
        assert_eq!(std::fs::read_to_string(path).expect("is there"), "mine");
        std::fs::remove_file(path).expect("is there");
    }
    assert_eq!(user.running(), [""; 0]);
    let mut left = Vec::new();
    walk(lab.directory(), &mut left);
    assert_eq!(left, [""; 0], "nothing of nestlab's stays");
    assert!(user.ok(&["status"]).out.contains("there is no lab"));
    user.ok(&["up", recipe.as_str()]);
    user.ok(&["destroy", "tiny", "--yes"]);
    assert!(!lab.directory().exists());
}

fn walk(folder: &camino::Utf8Path, files: &mut Vec<String>) {
    for entry in folder.read_dir_utf8().expect("lists") {
        let entry = entry.expect("is there");
        if entry.file_type().expect("has one").is_dir() {
            walk(entry.path(), files);
        } else {
            files.push(entry.path().to_string());
        }
    }
}
