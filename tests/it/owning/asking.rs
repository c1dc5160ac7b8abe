//! What `destroy` asks, of whom, and what an answer does.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::user::{Said, User};

/// Runs `nestlab args…` at a terminal of its own, with `answer` typed, and returns what that showed.
fn at_a_terminal(user: &User, args: &[&str], answer: &str) -> Said {
    let command = user.command(args);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_str().expect("UTF-8")).collect();
    let line = shlex::try_join(words).expect("no NUL");
    let mut child = Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .env("HOME", user.path(""))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("script runs");
    let mut stdin = child.stdin.take().expect("was asked for");
    stdin.write_all(answer.as_bytes()).expect("is heard");
    let said = Said::of(child.wait_with_output().expect("ends"));
    drop(stdin);
    said
}

#[test]
fn an_answer_of_no_removes_nothing_and_is_no_error() {
    let user = User::new();
    user.labs().create(&"tiny".parse().expect("a name"), "schema = 1\n").expect("makes");
    let said = at_a_terminal(&user, &["destroy", "tiny"], "n\n");
    assert_eq!(said.code, 130);
    assert!(said.out.contains("remove the lab tiny and all of this? [y/N]"), "{}", said.out);
    assert!(said.out.contains("cancelled, nothing removed"), "{}", said.out);
    assert!(!said.out.contains("error"), "{}", said.out);
    assert!(user.lab("tiny").is_there());
    assert_eq!(at_a_terminal(&user, &["destroy", "tiny"], "y\n").code, 0);
    assert!(!user.lab("tiny").directory().exists());
}

#[test]
fn without_a_terminal_it_says_which_option_is_the_yes() {
    let user = User::new();
    user.labs().create(&"tiny".parse().expect("a name"), "schema = 1\n").expect("makes");
    let said = user.run(&["destroy", "tiny"]);
    assert_eq!(said.code, 2);
    let expected = "error: this needs a yes, and there is no terminal: add --yes\n";
    assert_eq!((said.err.as_str(), said.out.as_str()), (expected, ""));
    assert!(user.lab("tiny").is_there());
}
