//! What apt tells of its progress: the lines of `APT::Status-Fd` (documented in apt's
//! `progress-reporting.md`), and its summary.

/// One line of progress.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum AptStatus {
    /// Something is downloaded: how far all downloads are, in percent, and which one.
    Download { percent: f64, what: String },
    /// dpkg works on a package: how far the whole run is, in percent, and what it does.
    Package { package: String, percent: f64, what: String },
    /// dpkg failed at a package.
    Failure { package: String, message: String },
}

impl AptStatus {
    /// Returns the progress that `line` tells. The line may have the end of another program's output
    /// in front, since all write into one file.
    pub(super) fn parse(line: &str) -> Option<AptStatus> {
        let (at, kind) = ["pmstatus:", "dlstatus:", "pmerror:"]
            .iter()
            .filter_map(|kind| line.find(kind).map(|at| (at, *kind)))
            .min()?;
        let rest = &line[at + kind.len()..];
        // The name may have an architecture behind a colon, the text anything; the percentage is the
        // first number that stands alone, and the name of a download is a number itself.
        let (name, rest) = rest.split_once(':')?;
        let (percent, what) = rest.split_once(':')?;
        let (percent, what) = match percent.parse::<f64>() {
            Ok(percent) => (percent, what),
            Err(_) => {
                let (percent, what) = what.split_once(':')?;
                (percent.parse().ok()?, what)
            }
        };
        let (package, what) = (name.to_owned(), what.trim().to_owned());
        Some(match kind {
            "dlstatus:" => AptStatus::Download { percent, what },
            "pmstatus:" => AptStatus::Package { package, percent, what },
            _ => AptStatus::Failure { package, message: what },
        })
    }
}

/// Returns how many packages apt's summary line says it will work on: upgraded, newly installed,
/// reinstalled, downgraded and removed ones, not those it leaves alone.
pub(super) fn summary(line: &str) -> Option<u64> {
    let counted = line.strip_suffix(" not upgraded.")?;
    let (work, _left_alone) = counted.rsplit_once(" and ")?;
    work.split(", ")
        .try_fold(0_u64, |sum, part| sum.checked_add(part.split(' ').next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_a_real_run_are_read() {
        // apt 2.6.1: apt-get -y -o APT::Status-Fd=1 install nl-one
        assert_eq!(
            AptStatus::parse("dlstatus:1:20.9847:Retrieving file 1 of 1"),
            Some(AptStatus::Download { percent: 20.9847, what: "Retrieving file 1 of 1".into() })
        );
        assert_eq!(
            AptStatus::parse("pmstatus:nl-one:60.0000:Configuring nl-one (amd64)"),
            Some(AptStatus::Package {
                package: "nl-one".into(),
                percent: 60.0,
                what: "Configuring nl-one (amd64)".into()
            })
        );
    }

    #[test]
    fn a_status_behind_the_end_of_other_output_and_an_architecture_do_not_confuse() {
        assert_eq!(
            AptStatus::parse("(Reading database ... pmstatus:libc6:amd64:5.5:Unpacking: libc6"),
            Some(AptStatus::Package {
                package: "libc6".into(),
                percent: 5.5,
                what: "Unpacking: libc6".into()
            })
        );
        assert_eq!(
            AptStatus::parse("pmerror:x:50.0:installed x package post-installation script subprocess returned error exit status 1"),
            Some(AptStatus::Failure {
                package: "x".into(),
                message: "installed x package post-installation script subprocess returned error exit status 1".into()
            })
        );
    }

    #[test]
    fn other_lines_are_no_status() {
        for line in
            ["", "Get:1 file:/srv ./ InRelease", "pmstatus:", "pmstatus:x:y", "dlstatus:1:x:y"]
        {
            assert_eq!(AptStatus::parse(line), None, "{line}");
        }
    }

    #[test]
    fn the_summary_counts_what_is_worked_on_and_not_what_is_left_alone() {
        for (line, count) in [
            ("1 upgraded, 2 newly installed, 3 to remove and 4 not upgraded.", Some(6)),
            (
                "0 upgraded, 0 newly installed, 1 reinstalled, 0 to remove and 0 not upgraded.",
                Some(1),
            ),
            ("Reading package lists...", None),
            ("x upgraded, 2 newly installed and 4 not upgraded.", None),
            ("18446744073709551615 upgraded, 2 newly installed and 4 not upgraded.", None),
        ] {
            assert_eq!(summary(line), count, "{line}");
        }
    }
}
