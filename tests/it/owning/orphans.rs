//! Guests that left their recipe, and one guest taken out of a lab.

use super::user::User;

#[test]
fn a_guest_that_left_the_recipe_stays_visible_until_it_is_destroyed() {
    let user = User::new();
    user.ok(&["up", user.recipe("tiny.toml", "tiny", &["one", "two"]).as_str()]);
    let recipe = user.recipe("tiny.toml", "tiny", &["one", "uno"]);
    let recipe = recipe.as_str();

    let plan = user.ok(&["plan", recipe]).out;
    assert!(plan.contains("two in qemu on L0 is orphaned"), "{plan}");
    let plan = user.json(&["plan", recipe]);
    let orphaned = &plan["orphaned"][0];
    assert_eq!((&orphaned["name"], &orphaned["vm"]), (&"two".into(), &"nestlab-tiny-two".into()));
    let told = user.ok(&["up", recipe]).err;
    assert_eq!(told.matches("orphaned: it is").count(), 1, "{told}");

    let shown = user.ok(&["status", "tiny"]).out;
    let line = shown.lines().find(|line| line.contains("two")).expect("it is shown");
    assert!(line.contains(" up ") && line.contains("orphaned"), "{shown}");
    let two = user.guest("tiny", "two").expect("it is shown");
    assert_eq!((&two["orphaned"], &two["state"]), (&true.into(), &"running".into()));
    let unreachable = user.run(&["exec", "two", "--lab", "tiny", "--", "true"]);
    assert!(unreachable.err.contains("two cannot be entered"), "it is known: {}", unreachable.err);

    let one = user.pid("nestlab-tiny-one");
    let said = user.ok(&["destroy", "tiny", "two", "--yes"]);
    assert_eq!(said.code, 0);
    assert_eq!(user.running(), ["nestlab-tiny-one", "nestlab-tiny-uno"]);
    assert_eq!(user.pid("nestlab-tiny-one"), one, "the rest runs on");
    assert!(user.guest("tiny", "two").is_none());
    assert!(!user.lab("tiny").guest_directory("two").exists());
    let left = user.lab("tiny").resources().expect("reads");
    assert!(left.iter().all(|resource| resource.carries() != Some("two")), "{left:?}");
    assert!(user.json(&["plan", recipe])["orphaned"].as_array().is_some_and(Vec::is_empty));
    user.ok(&["destroy", "tiny", "--yes"]);
    assert_eq!(user.running(), [""; 0]);
}

#[test]
fn down_stops_an_orphaned_guest_too() {
    let user = User::new();
    user.ok(&["up", user.recipe("tiny.toml", "tiny", &["one", "two"]).as_str()]);
    user.ok(&["up", user.recipe("tiny.toml", "tiny", &["one"]).as_str()]);
    assert_eq!(user.running(), ["nestlab-tiny-one", "nestlab-tiny-two"]);
    user.ok(&["down", "tiny"]);
    assert_eq!(user.running(), [""; 0]);
    let said = user.run(&["destroy", "tiny", "one", "--orphaned", "--yes"]);
    assert_eq!(said.code, 2, "the recipe has it: {}", said.err);
    user.ok(&["destroy", "tiny", "--orphaned", "--yes"]);
    assert!(user.guest("tiny", "two").is_none());
    assert_eq!(user.guest("tiny", "one").expect("stays")["state"], "off");
}

#[test]
fn one_guest_is_taken_out_of_a_lab_and_made_again_by_up() {
    let user = User::new();
    let recipe = user.recipe("tiny.toml", "tiny", &["one", "two"]);
    user.ok(&["up", recipe.as_str()]);
    let one = user.pid("nestlab-tiny-one");
    user.ok(&["destroy", "tiny", "two", "--yes"]);
    assert_eq!(user.running(), ["nestlab-tiny-one"]);
    let two = user.guest("tiny", "two").expect("the recipe has it");
    assert_eq!((&two["state"], &two["orphaned"]), (&"absent".into(), &false.into()));
    assert!(!user.lab("tiny").guest_directory("two").exists());
    user.ok(&["up", recipe.as_str()]);
    assert_eq!(user.running(), ["nestlab-tiny-one", "nestlab-tiny-two"]);
    assert_eq!(user.pid("nestlab-tiny-one"), one, "it was not touched");
    let unknown = user.run(&["destroy", "tiny", "three", "--yes"]);
    assert_eq!(unknown.code, 2);
    assert!(unknown.err.contains("its guests are one, two"), "{}", unknown.err);
    user.ok(&["destroy", "tiny", "--yes"]);
}
