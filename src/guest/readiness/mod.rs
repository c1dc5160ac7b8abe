//! The evidence that a guest is up, and waiting for it.
//!
//! A hypervisor returns at power-on; whether a system runs inside is told by SSH, a serial line, the
//! guest additions or the screen. Waiting ends by silence, never by a clock: as long as the guest shows
//! signs of life it is waited for.

mod screen;
mod serial;
mod trouble;

use std::time::Duration;

use regex::Regex;
use serde::{Deserialize, Serialize};

use super::liveness::LivenessMonitor;
use super::{ExecContext, reboot};
use crate::error::{Error, Kind, Result};
use crate::event::printable;
use crate::host::{Command, Host};
use crate::hypervisor::{GuestSpec, Hypervisor, Power};
use crate::recipe::Readiness;
use screen::Screen;
pub use serial::Serial;

/// How long a guest may show no sign of life while it boots, on bare metal.
const SILENCE: Duration = Duration::from_secs(120);

const SSH: &str = "waiting for its SSH server";
const GUEST_ADDITIONS: &str = "waiting for its guest additions to report";

/// What proved that a guest is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub enum Evidence {
    /// A command ran over SSH.
    Ssh {
        /// The id of the boot it ran in.
        boot_id: String,
    },
    /// A line on the serial console.
    Serial {
        /// The line, made safe for a terminal.
        line: String,
    },
    /// What the guest additions report.
    GuestAdditions {
        /// The system, such as `Linux`.
        product: String,
        /// Its kernel's release.
        release: String,
    },
    /// A picture that stayed.
    Screen {
        /// Its width in pixels.
        width: u32,
        /// Its height in pixels.
        height: u32,
        /// How often it changed before.
        changes: u32,
    },
}

impl std::fmt::Display for Evidence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Evidence::Ssh { .. } => f.write_str("it answers over SSH"),
            Evidence::Serial { line } => write!(f, "its serial console says {line:?}"),
            Evidence::GuestAdditions { product, release } => {
                write!(f, "its guest additions report {product} {release}")
            }
            Evidence::Screen { width, height, .. } => {
                write!(f, "its screen shows a steady picture of {width}×{height}")
            }
        }
    }
}

/// Prints the size of the log "$1", a newline, and its last 2 KiB; nothing if there is no log.
const CONSOLE: &str = r#"
size=$(stat -c %s -- "$1" 2>/dev/null) || exit 0
echo "$size"
tail -c 2048 -- "$1"
"#;

/// What a guest's serial console tells of it.
pub(super) struct Console {
    /// Changes while the guest lives: the size of its log.
    pub(super) life: String,
    /// What is the matter with the guest, if that is the last that it says.
    pub(super) trouble: Option<String>,
}

/// A guest as seen from the host that runs it.
#[derive(Debug, Clone, Copy)]
pub struct VmView<'a> {
    /// The host that runs it.
    pub host: &'a dyn Host,
    /// What runs it there.
    pub hypervisor: &'a dyn Hypervisor,
    /// Its VM.
    pub spec: &'a GuestSpec,
}

impl VmView<'_> {
    /// Returns what its serial console tells now.
    pub(super) async fn console(&self) -> Result<Console> {
        let log = self.hypervisor.serial_log(self.spec);
        let look = Command::new("sh").args(["-c", CONSOLE, "console", log.as_str()]);
        let answer = self.host.run(&look).await?.stdout;
        // A guest without a serial console has no log, and that is no error.
        let end = answer.iter().position(|byte| *byte == b'\n').unwrap_or(answer.len());
        let (size, last) = answer.split_at(end);
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Ok(Console { life: text(size), trouble: trouble::at_the_end_of(&text(last)) })
    }

    /// Returns the error of a guest that runs and goes no further, as `trouble` tells.
    pub(super) async fn stuck(&self, trouble: &str) -> Error {
        Error::new(Kind::NotReady, trouble)
            .on_host(&self.spec.vm)
            .tail(&self.console_tail().await)
            .hint("`nestlab console` and `nestlab screenshot` show the rest")
    }

    /// Returns an error if the VM does not run any more: what it waits for will not come.
    pub(super) async fn still_runs(&self) -> Result<()> {
        let actual = self.hypervisor.inspect(self.host, self.spec).await?;
        let gone = match actual.map(|actual| actual.power) {
            Some(Power::Running | Power::Paused | Power::Changing(_)) => return Ok(()),
            Some(Power::Crashed(how)) => format!("crashed: {}", printable(&how)),
            Some(Power::Off) => "switched itself off".to_owned(),
            Some(Power::Saved) => "was saved to disk".to_owned(),
            None => "is gone".to_owned(),
        };
        Err(Error::new(Kind::NotReady, format!("the VM {} {gone}", self.spec.vm))
            .on_host(self.host.name())
            .tail(&self.console_tail().await))
    }

    /// Returns the end of its serial console.
    pub(super) async fn console_tail(&self) -> Vec<u8> {
        serial::tail(*self).await
    }
}

/// Waits until there is evidence that the guest is up. `exec.host` is the guest; it is asked only for
/// [`Readiness::Ssh`], else it may be any host.
///
/// # Errors
/// [`Kind::NotReady`] if the VM ends, or shows no sign of life; with the end of its serial console.
/// What SSH refuses for good, such as a wrong host key, is returned as it is.
pub async fn wait(exec: ExecContext<'_>, view: VmView<'_>, wanted: &Readiness) -> Result<Evidence> {
    wait_within(exec, view, wanted, exec.patience.limit(SILENCE)).await
}

/// Looks once, without waiting, and returns the evidence if there is any. A screen cannot be judged by one
/// look: that is always `None`.
pub async fn look(
    exec: ExecContext<'_>,
    view: VmView<'_>,
    wanted: &Readiness,
) -> Result<Option<Evidence>> {
    if *wanted == Readiness::Screen {
        return Ok(None);
    }
    match ReadinessProbe::of(wanted, exec)?.look(exec, view).await? {
        Observation::Up(evidence) => Ok(Some(evidence)),
        Observation::Waiting { .. } => Ok(None),
    }
}

async fn wait_within(
    exec: ExecContext<'_>,
    view: VmView<'_>,
    wanted: &Readiness,
    silence: Duration,
) -> Result<Evidence> {
    let mut sign = ReadinessProbe::of(wanted, exec)?;
    let mut watch = LivenessMonitor::new(exec, Some(view), silence, sign.what());
    loop {
        exec.proceed()?;
        match watch.until(sign.look(exec, view)).await? {
            Observation::Up(evidence) => return Ok(evidence),
            Observation::Waiting { what, life } => watch.turn(what, life).await?,
        }
        watch.rest().await?;
    }
}

/// What one look at a guest gave.
enum Observation {
    /// It is up.
    Up(Evidence),
    /// It is not yet.
    Waiting {
        /// What is waited for, for the progress line.
        what: String,
        /// Changes while the guest lives.
        life: String,
    },
}

/// What is looked at, and what is remembered from one look to the next.
enum ReadinessProbe {
    Ssh,
    Serial(Serial),
    GuestAdditions,
    Screen(Screen),
}

impl ReadinessProbe {
    fn of(wanted: &Readiness, exec: ExecContext<'_>) -> Result<ReadinessProbe> {
        Ok(match wanted {
            Readiness::Ssh => ReadinessProbe::Ssh,
            Readiness::Serial { pattern } => {
                let pattern = Regex::new(pattern).map_err(|error| {
                    Error::new(Kind::Recipe, "the pattern for the serial console is not one")
                        .with_source(error)
                })?;
                ReadinessProbe::Serial(Serial::new(pattern))
            }
            Readiness::GuestAdditions => ReadinessProbe::GuestAdditions,
            Readiness::Screen => {
                ReadinessProbe::Screen(Screen::new(exec.patience.limit(screen::STEADY)))
            }
        })
    }

    /// Returns what is waited for, for the progress line.
    fn what(&self) -> &'static str {
        match self {
            ReadinessProbe::Ssh => SSH,
            ReadinessProbe::Serial(_) => "waiting for a line on its serial console",
            ReadinessProbe::GuestAdditions => GUEST_ADDITIONS,
            ReadinessProbe::Screen(_) => "waiting for its screen",
        }
    }

    async fn look(&mut self, exec: ExecContext<'_>, view: VmView<'_>) -> Result<Observation> {
        match self {
            ReadinessProbe::Ssh => ssh(exec).await,
            ReadinessProbe::Serial(serial) => serial.look(view).await,
            ReadinessProbe::GuestAdditions => guest_additions(view).await,
            ReadinessProbe::Screen(screen) => screen.look(view).await,
        }
    }
}

async fn ssh(exec: ExecContext<'_>) -> Result<Observation> {
    match reboot::boot_id(exec.host).await {
        Ok(boot_id) => Ok(Observation::Up(Evidence::Ssh { boot_id })),
        Err(error) if error.kind() == Kind::Unreachable => {
            Ok(Observation::Waiting { what: SSH.to_owned(), life: error.message().to_owned() })
        }
        Err(error) => Err(error),
    }
}

async fn guest_additions(view: VmView<'_>) -> Result<Observation> {
    let property = async |name: &str| {
        let name = format!("/VirtualBox/GuestInfo/OS/{name}");
        let value = view.hypervisor.guest_property(view.host, view.spec, &name).await?;
        Ok::<_, Error>(printable(value.unwrap_or_default().trim()))
    };
    let product = property("Product").await?;
    if product.is_empty() {
        let what = GUEST_ADDITIONS.to_owned();
        return Ok(Observation::Waiting { what, life: String::new() });
    }
    let release = property("Release").await?;
    Ok(Observation::Up(Evidence::GuestAdditions { product, release }))
}
