//! The one place where an argument vector becomes text that a POSIX shell reads (SSH hands commands to
//! the login shell of the other side), or that a person reads.

/// Returns the vector as a command line that a POSIX shell splits back into exactly `argv`.
///
/// Every argument is quoted, whatever is in it; a NUL byte, which no program can receive as an
/// argument, is left out.
pub fn posix<S: AsRef<str>>(argv: &[S]) -> String {
    argv.iter().map(|arg| quoted(arg.as_ref())).collect::<Vec<_>>().join(" ")
}

/// Returns the vector for display, with control characters made visible; for reading, and for
/// pasting when nothing in it is odd.
pub fn display<S: AsRef<str>>(argv: &[S]) -> String {
    argv.iter()
        .map(|arg| crate::event::printable(&quoted(arg.as_ref())).replace('\n', "\\n"))
        .collect::<Vec<_>>()
        .join(" ")
}

fn quoted(arg: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:=@%+,".contains(&b);
    if !arg.is_empty() && arg.bytes().all(plain) && !arg.starts_with('=') {
        return arg.to_owned();
    }
    format!("'{}'", arg.replace('\0', "").replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_posix_shell_gives_back_every_argument(argv in prop::collection::vec("[^\0]{0,12}", 1..5)) {
            let split = shlex::split(&posix(&argv)).expect("balanced quotes");
            prop_assert_eq!(split, argv);
        }
    }

    #[test]
    fn a_real_shell_sees_no_substitution() {
        let argv = [
            "printf", "%s|", "$(id)", "`id`", "a'b", "a\"b", "a\nb", "-n", "", "*", "~", "!x", "\\",
        ];
        let output =
            std::process::Command::new("sh").arg("-c").arg(posix(&argv)).output().expect("sh runs");
        let expected = argv[2..].iter().map(|arg| format!("{arg}|")).collect::<String>();
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    }
}
