//! What `up` tells before it begins.

use crate::support::bench::Bench;
use crate::support::debian::Deb;

#[test]
fn a_warning_is_told_with_its_remedy_by_the_first_up_and_not_again() {
    let bench = Bench::new();
    bench.packages(&[Deb { name: "nl-one", ..Deb::default() }]);
    let recipe = bench.whole_recipe(
        "lab.toml",
        "schema = 1\nname = \"bench\"\nmirror = \"http://127.0.0.1:9/debian\"\n\
         [host]\nhypervisor = \"qemu\"\n\
         [[guest]]\nname = \"l1\"\nimage = \"./host.toml\"\nmemory = \"1GiB\"\npackages = [\"nl-one\"]\n",
    );
    let up = || {
        let (code, _, said) = bench.ends(&["up", &recipe]);
        assert_eq!(code, Some(0), "{said}");
        said
    };
    let first = up();
    let warning = first.lines().find(|line| line.contains("host-loopback"));
    let warning = warning.unwrap_or_else(|| panic!("it is not told:\n{first}"));
    assert!(warning.starts_with("warning") && warning.contains("reach-host = true"), "{warning}");
    let again = up();
    assert!(!again.contains("host-loopback"), "{again}");
    bench.destroy();
}
