//! Looks at a host for what decides whether VirtualBox can start VMs there: kernel, driver, processor, KVM
//! and Secure Boot, in one round trip.

use std::collections::BTreeMap;

use super::remedies::{Cpu, SecureBoot, Surroundings};
use super::tsc;
use crate::error::Result;
use crate::host::{Command, Host, TimeoutScale};

/// Prints `name value` lines. It only reads, and measures how fast this shell counts.
const LOOK: &str = r#"
echo "system $(uname -s)"
echo "kernel $(uname -r)"
[ -c /dev/vboxdrv ] && echo "driver present"
grep -m 1 '^flags' /proc/cpuinfo
echo "clock $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
for module in kvm_amd kvm_intel; do [ -d /sys/module/$module ] && echo "kvm $module"; done
echo "secure-boot $(mokutil --sb-state)"
[ -r /var/lib/dkms/mok.pub ] && echo "key $(mokutil --test-key /var/lib/dkms/mok.pub)"
read before rest < /proc/uptime
i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done
read after rest < /proc/uptime
echo "counted $before $after"
:"#;

/// How long the loop above takes on bare metal, in seconds: 0.05 to 0.1 with dash.
const COUNTS_NATIVELY: f64 = 0.1;

/// What [`look`] found.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct HostFindings {
    pub(crate) around: Surroundings,
    /// Whether /dev/vboxdrv is there; `None` where drivers are none of nestlab's business (not Linux).
    pub(crate) driver: Option<bool>,
    /// Whether the host is itself a VM.
    pub(crate) is_guest: bool,
    /// Whether guests should be told to read this host's time stamp counter; see [`tsc`].
    pub(crate) steady_tsc: bool,
    /// The system as `uname -s` calls it: `Linux`, `Darwin`; empty where there is no uname.
    pub(crate) system: String,
    /// How many times slower than bare metal the host is, at least 1.
    pub(crate) slowness: f64,
}

impl HostFindings {
    /// Returns how long to wait for guests here. A guest of a guest pays for every exit twice.
    pub(crate) fn patience(&self) -> TimeoutScale {
        TimeoutScale::new(self.slowness).times(if self.is_guest { 3.0 } else { 1.0 })
    }
}

/// Looks at `host`; a system without a POSIX shell (Windows) gives nothing.
pub(crate) async fn look(host: &dyn Host) -> Result<HostFindings> {
    let command = Command::new("sh").args(["-c", LOOK]);
    match host.run(&command).await {
        Ok(output) => Ok(read(&output.text())),
        Err(error) if error.kind() == crate::Kind::Failed => Ok(HostFindings::default()),
        Err(error) => Err(error),
    }
}

fn read(text: &str) -> HostFindings {
    let mut values: BTreeMap<&str, &str> = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, value)) = line.split_once([' ', '\t']) {
            values.entry(name).or_insert_with(|| value.trim());
        }
    }
    let value = |name: &str| values.get(name).copied().unwrap_or_default();
    let linux = value("system") == "Linux";
    let flags = value("flags");
    HostFindings {
        around: Surroundings {
            kernel: linux.then(|| value("kernel").to_owned()),
            virtualbox: None,
            cpu: Cpu::from_flags(flags),
            kvm_loaded: values.contains_key("kvm"),
            secure_boot: secure_boot(value("secure-boot"), value("key")),
        },
        driver: linux.then(|| values.contains_key("driver")),
        steady_tsc: tsc::is_steady_but_not_said(flags, value("clock")),
        is_guest: flags.split_ascii_whitespace().any(|flag| flag == "hypervisor"),
        system: value("system").to_owned(),
        slowness: slowness(value("counted")).max(1.0),
    }
}

fn secure_boot(state: &str, key: &str) -> SecureBoot {
    match (state.contains("SecureBoot enabled"), key.contains("is already enrolled")) {
        (false, _) => SecureBoot::Off,
        (true, true) => SecureBoot::KeyEnrolled,
        (true, false) => SecureBoot::KeyMissing,
    }
}

fn slowness(counted: &str) -> f64 {
    let mut times = counted.split_ascii_whitespace().map(str::parse::<f64>);
    match (times.next(), times.next()) {
        (Some(Ok(before)), Some(Ok(after))) => (after - before) / COUNTS_NATIVELY,
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Local;

    const EMULATED: &str = "system Linux\nkernel 7.2.13-amd64\ndriver present\n\
        flags\t\t: fpu svm npt hypervisor\nclock tsc\nkvm kvm_amd\nsecure-boot \ncounted 100.10 102.10\n";

    #[test]
    fn an_emulated_host_is_read_and_gets_patience() {
        let found = read(EMULATED);
        assert_eq!(found.around.kernel.as_deref(), Some("7.2.13-amd64"));
        assert_eq!(found.around.cpu, Some(Cpu::Amd));
        assert!(found.around.kvm_loaded && found.is_guest && found.steady_tsc);
        assert_eq!(found.driver, Some(true));
        assert!((59.0..61.0).contains(&found.patience().factor()), "{found:?}");
    }

    #[test]
    fn secure_boot_without_the_key_is_told_from_secure_boot_with_it() {
        assert_eq!(secure_boot("", ""), SecureBoot::Off);
        assert_eq!(secure_boot("SecureBoot disabled", ""), SecureBoot::Off);
        assert_eq!(
            secure_boot("SecureBoot enabled", "/var/lib/dkms/mok.pub is not enrolled"),
            SecureBoot::KeyMissing
        );
        assert_eq!(
            secure_boot("SecureBoot enabled", "/var/lib/dkms/mok.pub is already enrolled"),
            SecureBoot::KeyEnrolled
        );
    }

    #[test]
    fn a_system_that_says_nothing_is_not_called_broken() {
        let found = read("system Darwin\nkernel 23.6.0\ncounted\n");
        assert_eq!((found.driver, found.around.kernel), (None, None));
        assert_eq!(found.slowness, 1.0);
    }

    #[tokio::test]
    async fn this_machine_is_looked_at() {
        let found = look(&Local::new()).await.unwrap();
        assert_eq!(found.system, "Linux");
        assert!(found.around.kernel.is_some_and(|kernel| kernel.contains('.')));
        assert!(found.slowness >= 1.0);
    }
}
