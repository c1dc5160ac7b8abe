//! The arguments: the commands, and what holds for all of them.

use camino::Utf8PathBuf;
use clap::builder::styling::{AnsiColor, Styles};
use clap::{ArgAction, Parser, Subcommand, ValueEnum};

use super::{
    bundle, check, completions, console, cp, destroy, doctor, down, gc, image, init, lock, logs,
    man, plan, recipe, schema, screenshot, ssh, ssh_config, status, up,
};
use crate::error::{Error, Kind, Result};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const EXAMPLES: &str = "\
Examples:
  nestlab recipe list            the labs that ship
  nestlab check quickstart       what a recipe comes to on this machine, and why
  nestlab doctor quickstart      whether this machine can do it, and what to do where not
  nestlab init my-lab.toml       a commented recipe to start from
  nestlab check my-lab.toml      every mistake in it, with its line

A RECIPE is the name of one that ships, or a path with a `/` in it or a name that ends in `.toml`.

Exit codes:
  0  done                        5  network
  1  a step failed               6  a guest is not reachable or not ready
  2  usage or recipe error       7  the lab is busy
  3  this host cannot do it    130  interrupted
  4  an image is not trusted";

/// Builds nested virtual machine labs: one recipe, one command, L0 → L1 → L2 and deeper.
///
/// A recipe (TOML) says which machines should exist: this one (L0) runs a guest (L1), which runs a guest
/// of its own (L2), and so on. nestlab makes it real, and run again it changes only what differs.
#[derive(Debug, Parser)]
#[command(
    name = "nestlab",
    version,
    styles = STYLES,
    after_help = EXAMPLES,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: CliCommand,
}

/// Every command.
#[derive(Debug, Subcommand)]
pub(crate) enum CliCommand {
    Up(up::Args),
    Plan(plan::Args),
    Status(status::Args),
    Ssh(ssh::SshArgs),
    Exec(ssh::ExecArgs),
    Cp(cp::Args),
    SshConfig(ssh_config::Args),
    Console(console::Args),
    Screenshot(screenshot::Args),
    Lock(lock::Args),
    Down(down::Args),
    Destroy(destroy::Args),
    Logs(logs::Args),
    Bundle(bundle::Args),
    Gc(gc::Args),
    Check(check::Args),
    Doctor(doctor::Args),
    Init(init::Args),
    Image(image::Args),
    Recipe(recipe::Args),
    Schema(schema::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// When to use colors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

impl From<ColorChoice> for crate::report::ColorMode {
    fn from(color: ColorChoice) -> Self {
        match color {
            ColorChoice::Auto => crate::report::ColorMode::Auto,
            ColorChoice::Always => crate::report::ColorMode::Always,
            ColorChoice::Never => crate::report::ColorMode::Never,
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options for every command")]
pub(crate) struct GlobalArgs {
    /// Answer with JSON on stdout
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say nothing but results and errors
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Say more; twice for even more
    #[arg(long, short, global = true, action = ArgAction::Count)]
    verbose: u8,
    /// Plain lines instead of progress bars
    #[arg(long, global = true)]
    no_progress: bool,
    /// When to use colors
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value = "auto")]
    color: ColorChoice,
    /// Where labs are kept [default: $XDG_STATE_HOME/nestlab]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "NESTLAB_STATE_DIR",
        hide_env_values = true
    )]
    state_dir: Option<Utf8PathBuf>,
    /// Where images are kept [default: $XDG_CACHE_HOME/nestlab]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "NESTLAB_CACHE_DIR",
        hide_env_values = true
    )]
    cache_dir: Option<Utf8PathBuf>,
}

/// What holds for every command, settled.
#[derive(Debug, Clone)]
pub(crate) struct Globals {
    /// Answer with JSON on stdout.
    pub(crate) json: bool,
    /// Say nothing but results and errors.
    pub(crate) quiet: bool,
    /// How much more to say, from 0.
    pub(crate) verbosity: u8,
    /// Whether neither progress bars are drawn nor progress is told as events.
    pub(crate) no_progress: bool,
    /// When to use colors.
    pub(crate) color: ColorChoice,
    /// The absolute path of the folder that labs are kept in.
    pub(crate) state_dir: Utf8PathBuf,
    /// The absolute path of the folder that images are kept in.
    pub(crate) cache_dir: Utf8PathBuf,
}

impl Globals {
    /// Settles `args` with the environment.
    ///
    /// # Errors
    /// [`Kind::Usage`] if no home directory is known or a path is not UTF-8.
    pub(crate) fn new(args: GlobalArgs) -> Result<Self> {
        Ok(Globals {
            json: args.json,
            quiet: args.quiet,
            verbosity: args.verbose,
            no_progress: args.no_progress || args.quiet,
            color: args.color,
            state_dir: directory(args.state_dir, "XDG_STATE_HOME", ".local/state", "--state-dir")?,
            cache_dir: directory(args.cache_dir, "XDG_CACHE_HOME", ".cache", "--cache-dir")?,
        })
    }

    /// Settles colors and logging for the process.
    pub(crate) fn set_up_terminal(&self) {
        match self.color {
            ColorChoice::Auto => {}
            ColorChoice::Always => {
                ::console::set_colors_enabled(true);
                ::console::set_colors_enabled_stderr(true);
            }
            ColorChoice::Never => {
                ::console::set_colors_enabled(false);
                ::console::set_colors_enabled_stderr(false);
            }
        }
        let level = match self.verbosity {
            0 => "error",
            1 => "nestlab=info",
            2 => "nestlab=debug",
            _ => "trace",
        };
        let filter = tracing_subscriber::EnvFilter::try_from_env("NESTLAB_LOG")
            .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(::console::colors_enabled_stderr())
            .init();
    }
}

/// Returns the absolute path of `given`, else nestlab's folder in the XDG directory `variable`, which
/// is `$HOME/fallback` if unset, empty or relative (XDG Base Directory Specification).
fn directory(
    given: Option<Utf8PathBuf>,
    variable: &str,
    fallback: &str,
    option: &str,
) -> Result<Utf8PathBuf> {
    if let Some(given) = given.filter(|path| !path.as_str().is_empty()) {
        return utf8(std::path::absolute(given)?);
    }
    let xdg = std::env::var_os(variable).map(std::path::PathBuf::from);
    let base = match xdg.filter(|path| path.is_absolute()) {
        Some(xdg) => utf8(xdg)?,
        None => {
            let home = std::env::home_dir().filter(|home| home.is_absolute()).ok_or_else(|| {
                Error::new(Kind::Usage, "no home directory is known")
                    .hint(format!("set HOME, or name a folder with `{option}`"))
            })?;
            utf8(home)?.join(fallback)
        }
    };
    Ok(base.join("nestlab"))
}

fn utf8(path: std::path::PathBuf) -> Result<Utf8PathBuf> {
    Utf8PathBuf::from_path_buf(path).map_err(|path| {
        Error::new(Kind::Usage, format!("the path {path:?} is not UTF-8"))
            .hint("name another folder with `--state-dir` and `--cache-dir`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_reads_events_is_told_of_progress_unless_it_wants_none() {
        for (shown, flags) in [(true, &["--json"][..]), (false, &["--json", "--no-progress"])] {
            let start = ["nestlab", "up", "quickstart", "--state-dir", "/s", "--cache-dir", "/c"];
            let cli = Cli::try_parse_from([&start, flags].concat()).expect("arguments");
            let globals = Globals::new(cli.globals).expect("settled");
            assert_eq!(globals.no_progress, !shown, "{flags:?}");
        }
    }
}
