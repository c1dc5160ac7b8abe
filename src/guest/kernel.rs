//! The guest's kernel: which one runs, which one will run after a reboot, and whether modules can be
//! built for it.

use std::cmp::Ordering;

use super::ExecContext;
use super::apt::{Package, Task};
use crate::error::{Error, Result};
use crate::host::Command;

/// Prints the release of the running kernel, then that of every installed one.
const KERNELS: &str = r#"
uname -r
for image in /boot/vmlinuz-*; do
    [ -e "$image" ] && printf '%s\n' "${image#/boot/vmlinuz-}"
done
exit 0
"#;

/// The kernels of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstalledKernels {
    /// The release of the running one, such as `6.12.41+deb13-amd64`.
    pub running: String,
    /// The newest installed one, which the boot loader takes by default; the running one where none is
    /// installed (a kernel given from outside).
    pub next: String,
}

impl InstalledKernels {
    /// Returns why the guest must be rebooted before modules are built, or `None`.
    pub fn why_reboot(&self) -> Option<String> {
        (self.running != self.next)
            .then(|| format!("{} runs, {} is installed", self.running, self.next))
    }
}

/// Returns the running and the next kernel.
pub async fn kernels(exec: ExecContext<'_>) -> Result<InstalledKernels> {
    let ask = Command::new("sh").args(["-c", KERNELS, "kernels"]);
    let answer = exec.host.check(&ask).await?.text();
    let mut releases = answer.lines().map(str::trim).filter(|line| is_release(line));
    let running = releases.next().ok_or_else(|| {
        Error::failed("uname did not tell the kernel's release")
            .on_host(exec.host.name())
            .tail(answer.as_bytes())
    })?;
    let next = releases.max_by(|a, b| compare(a, b)).unwrap_or(running);
    Ok(InstalledKernels { running: running.to_owned(), next: next.to_owned() })
}

/// Returns the task that installs the headers of the kernel called `release`.
///
/// # Errors
/// [`Kind::Failed`](crate::Kind) if the release cannot be part of a package's name.
pub fn headers(release: &str) -> Result<Task> {
    let package: Package = format!("linux-headers-{release}")
        .parse()
        .map_err(|_| Error::failed(format!("the kernel {release} is not one of Debian's")))?;
    Ok(Task::install([package]))
}

/// Returns why the headers of the kernel called `release` are to be installed, or `None` if modules can
/// be built for it: what counts is the folder that a build uses, not a package's state.
pub async fn why_headers(exec: ExecContext<'_>, release: &str) -> Result<Option<String>> {
    let makefile = format!("/lib/modules/{release}/build/Makefile");
    let there = exec.host.run(&Command::new("test").args(["-e", &makefile])).await?;
    Ok((!there.exit.success()).then(|| format!("no headers for the kernel {release}")))
}

/// Returns whether `text` looks like a kernel's release.
pub(crate) fn is_release(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._~".contains(&b))
}

/// Compares two kernel releases as the boot loader's menu does: numbers as numbers, the rest as text,
/// and a release candidate before its release.
pub(crate) fn compare(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.replace("-rc", "~rc"), b.replace("-rc", "~rc"));
    let (mut a, mut b) = (a.as_str(), b.as_str());
    loop {
        if a.is_empty() && b.is_empty() {
            return Ordering::Equal;
        }
        let order =
            weights(&mut a).cmp(&weights(&mut b)).then_with(|| number(&mut a).cmp(&number(&mut b)));
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// Takes the text up to the next number, as weights that sort `~` before the end and letters before
/// other signs (Debian Policy 5.6.12).
fn weights(text: &mut &str) -> Vec<u32> {
    let end = text.find(|c: char| c.is_ascii_digit()).unwrap_or(text.len());
    let (head, rest) = text.split_at(end);
    *text = rest;
    let weigh = |c: char| match c {
        '~' => 0,
        c if c.is_ascii_alphabetic() => u32::from(c),
        c => u32::from(c) + 256,
    };
    head.chars().map(weigh).chain([1]).collect()
}

/// Takes the number at the front, without leading zeros so that longer is larger.
fn number(text: &mut &str) -> (usize, String) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (head, rest) = text.split_at(end);
    *text = rest;
    let head = head.trim_start_matches('0');
    (head.len(), head.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::test_support::Bench;
    use crate::host::scripted::Scripted;
    use proptest::prelude::*;

    async fn kernels_of(answer: &str) -> InstalledKernels {
        let host = Scripted::new("l1").expect_with(["kernels"]).prints(answer);
        kernels(Bench::new().exec(&host)).await.expect("answers")
    }

    #[tokio::test]
    async fn a_newer_installed_kernel_asks_for_a_reboot() {
        let kernels = kernels_of("6.9.7-amd64\n6.10.11-amd64\n6.9.7-amd64\n6.10.2-amd64\n").await;
        assert_eq!(kernels.next, "6.10.11-amd64");
        assert_eq!(
            kernels.why_reboot().as_deref(),
            Some("6.9.7-amd64 runs, 6.10.11-amd64 is installed")
        );
    }

    #[tokio::test]
    async fn the_newest_kernel_and_one_from_outside_need_none() {
        assert_eq!(kernels_of("6.12.1-amd64\n6.12.1-amd64\n").await.why_reboot(), None);
        assert_eq!(kernels_of("6.12.1-appliance\n").await.why_reboot(), None);
    }

    #[test]
    fn releases_sort_as_the_boot_menu_does() {
        let sorted = [
            "5.10.0-8-amd64",
            "5.10.0-28-amd64",
            "6.1.0-9-amd64",
            "6.12-rc7-amd64",
            "6.12-amd64",
            "6.12.9+deb13-amd64",
            "6.12.41+deb13-amd64",
            "7.0.1-amd64",
        ];
        for pair in sorted.windows(2) {
            assert_eq!(compare(pair[0], pair[1]), Ordering::Less, "{pair:?}");
            assert_eq!(compare(pair[1], pair[0]), Ordering::Greater, "{pair:?}");
        }
    }

    #[test]
    fn headers_are_those_of_the_release_and_odd_releases_are_refused() {
        let task = headers("6.12.41+deb13-amd64").expect("Debian's");
        assert_eq!(task.title(), "install linux-headers-6.12.41+deb13-amd64");
        assert!(headers("6.1 -y").is_err());
    }

    proptest! {
        #[test]
        fn comparing_is_an_order(a in "[0-9a-z.~+-]{0,8}", b in "[0-9a-z.~+-]{0,8}") {
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
            prop_assert_eq!(compare(&a, &a), Ordering::Equal);
        }
    }
}
