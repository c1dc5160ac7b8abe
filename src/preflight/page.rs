//! The page `docs/hosts.md`: the table of systems and the list of checks, generated from the code.

use std::fmt::Write as _;

use super::checks::CHECKS;
use super::systems::{SYSTEMS, System};

const HEAD: &str = "\
# Hosts

What `nestlab doctor` looks at, and what it knows of the systems that it can find itself in. It looks at
this machine (L0) before every `up`, and from inside each level as soon as that can be reached.

Generated from `src/preflight/`; a test keeps it current (`NESTLAB_UPDATE_DOCS=1 cargo test hosts_page`
writes it).

## Systems

The first that matches is taken, from top to bottom. *Nesting* says whether guests can run guests there.

| system | told by | nesting |
|---|---|---|
";

/// Returns the page in Markdown.
pub fn hosts() -> String {
    let mut page = HEAD.to_owned();
    for system in SYSTEMS {
        // Writing to a String cannot fail.
        let _ = writeln!(
            page,
            "| [{}](#{}) | {} | {} |",
            system.name,
            system.id,
            told_by(system),
            system.support.words()
        );
    }
    page.push_str("\n## What to do, system by system\n");
    for system in SYSTEMS {
        describe(&mut page, system);
    }
    page.push_str("\n## Checks\n\n| id | question |\n|---|---|\n");
    for check in CHECKS {
        let _ = writeln!(page, "| `{}` | {} |", check.id, check.question);
    }
    page.push_str(
        "| `reachable` | Can mirrors and image hosts be reached? Asked only with `--network`. |\n",
    );
    page
}

fn told_by(system: &System) -> String {
    let alternatives = system.signs.iter().map(|signs| {
        let signs: Vec<_> = signs.iter().map(ToString::to_string).collect();
        if signs.is_empty() { "none of the above".to_owned() } else { signs.join(" and ") }
    });
    alternatives.collect::<Vec<_>>().join("; or ")
}

fn describe(page: &mut String, system: &System) {
    let _ =
        write!(page, "\n### <a id=\"{}\"></a>{}\n\n{}\n", system.id, system.name, system.advice);
    if !system.commands.is_empty() {
        let _ = write!(page, "\n```\n{}\n```\n", system.commands.join("\n"));
    }
    if !system.link.is_empty() {
        let _ = write!(page, "\nSee <{}>.\n", system.link);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_page_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/hosts.md");
        if std::env::var_os("NESTLAB_UPDATE_DOCS").is_some() {
            fs_err::write(path, hosts()).expect("writes the page");
        }
        let page = fs_err::read_to_string(path).expect("docs/hosts.md is there");
        assert!(
            page == hosts(),
            "docs/hosts.md is out of date: NESTLAB_UPDATE_DOCS=1 cargo test hosts_page"
        );
    }

    #[test]
    fn every_system_has_advice_and_a_name_of_its_own() {
        let mut ids: Vec<_> = SYSTEMS.iter().map(|system| system.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), SYSTEMS.len());
        assert!(SYSTEMS.iter().all(|system| !system.advice.is_empty()));
    }
}
