//! A lab and the recipe that it was built by.

use super::user::User;

#[test]
fn another_recipe_of_the_same_name_does_not_take_a_lab_over_unasked() {
    let user = User::new();
    let mine = user.recipe("mine/lab.toml", "tiny", &["one"]);
    let other = user.recipe("other/lab.toml", "tiny", &["one", "two"]);
    user.ok(&["up", mine.as_str()]);
    for command in ["up", "plan"] {
        let said = user.run(&[command, other.as_str()]);
        assert_eq!(said.code, 2, "{command}");
        let expected = format!("the lab tiny was built by {mine}, and not by {other}");
        assert!(said.err.contains(&expected), "{}", said.err);
        assert!(said.err.contains("`--lab NAME`"), "{}", said.err);
    }
    assert_eq!(user.running(), ["nestlab-tiny-one"]);
    let kept = user.lab("tiny").recipe().expect("reads");
    assert_eq!(kept, std::fs::read_to_string(&mine).expect("is there"));

    user.ok(&["up", other.as_str(), "--lab", "tiny"]);
    assert_eq!(user.running(), ["nestlab-tiny-one", "nestlab-tiny-two"]);
    assert_eq!(user.run(&["up", mine.as_str()]).code, 2, "now it is the other's");
    let moved = user.path("moved.toml");
    std::fs::rename(&other, &moved).expect("moves");
    let said = user.run(&["up", moved.as_str()]);
    assert!(said.err.contains("which is gone") && said.err.contains("--lab tiny"), "{}", said.err);
    user.ok(&["up", moved.as_str(), "--lab", "tiny"]);
    user.ok(&["up", moved.as_str()]);
    user.ok(&["destroy", "tiny", "--yes"]);
}

#[test]
fn a_lab_that_does_not_know_its_recipe_takes_the_next_one() {
    let user = User::new();
    let mine = user.recipe("mine/lab.toml", "tiny", &["one"]);
    user.ok(&["up", mine.as_str()]);
    let file = user.lab("tiny").directory().join("machines.json");
    let text = std::fs::read_to_string(&file).expect("is there");
    let mut older: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert!(older.as_object_mut().expect("an object").remove("recipe").is_some());
    std::fs::write(&file, older.to_string()).expect("writes");
    let other = user.recipe("other/lab.toml", "tiny", &["one"]);
    user.ok(&["up", other.as_str()]);
    assert_eq!(user.run(&["up", mine.as_str()]).code, 2);
    user.ok(&["destroy", "tiny", "--yes"]);
}
