//! `nestlab image`: the images that guests are made from.

use std::process::ExitCode;

use camino::Utf8PathBuf;
use clap::Subcommand;
use jiff::Timestamp;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::session::RunSession;
use super::{Globals, output};
use crate::engine::until_safe_point;
use crate::error::{Error, Kind, Result};
use crate::event::EventSink;
use crate::image::build::mirror::Mirror;
use crate::image::build::{BuildOptions, build};
use crate::image::manifest::{ImageVersion, Manifest, shipped_names};
use crate::image::store::{Provenance, Prune, Store, VerifiedImage};
use crate::image::update::{self, Update};
use crate::image::verify::{Proven, Times};
use crate::image::{Beside, FetchOptions, ImageFormat, fetch, verify_file};
use crate::report::humanize;

/// List, fetch, verify and update the images that guests are made from
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// List the images that ship, and those in the store
    List,
    /// Print an image's manifest, to read or to start from
    #[command(after_help = "\
Examples:
  nestlab image show kicksecure-lxqt
  nestlab image show kicksecure-lxqt > my-image.toml")]
    Show {
        /// A shipped manifest's name, or a path to one
        manifest: String,
    },
    /// Download an image, and keep it if every proof holds
    #[command(after_help = "\
Examples:
  nestlab image fetch kicksecure-lxqt
  nestlab image fetch kicksecure-lxqt --proxy socks5h://127.0.0.1:9050    over Tor

The path of the image is printed on stdout. An interrupted download goes on where it was.")]
    Fetch {
        /// A shipped manifest's name, or a path to one
        manifest: String,
        #[command(flatten)]
        network: NetworkArgs,
    },
    /// Verify a file that is already here, or all of the store, without any connection
    #[command(after_help = "\
What is not named is looked for beside FILE, as it is published: FILE.asc, FILE.sha512sums and so on.

With --store, every image is read again and proven by its digests and by the signatures that were kept when it
was fetched, judged as of then. Exit code 4 if one does not hold; --quarantine takes those out of the store.

Examples:
  nestlab image verify kicksecure-lxqt Kicksecure-LXQt-18.2.1.9.Intel_AMD64.ova --key derivative.asc
  nestlab image verify --store")]
    Verify(Verify),
    /// Build an image from the Debian archive
    #[command(after_help = "\
Examples:
  nestlab image build debian-sid
  nestlab image build appliance --format ova

The path of the image is printed on stdout. What was built from the same inputs is not built again.")]
    Build {
        /// A shipped manifest's name, or a path to one
        manifest: String,
        /// The form to write, if the manifest leaves it open
        #[arg(long)]
        format: Option<ImageFormat>,
        /// The Debian mirror to build from; else the one that this machine's apt uses
        #[arg(long, value_name = "URL", value_parser = Mirror::new)]
        mirror: Option<Mirror>,
    },
    /// Look for a newer version; change the manifest once its proofs hold
    #[command(after_help = "\
Examples:
  nestlab image update kicksecure-lxqt --check     only tell
  nestlab image update ./my-image.toml             fetch, verify, then change the file")]
    Update {
        /// A path to a manifest; with --check also a shipped one's name
        manifest: String,
        /// Only tell whether there is a newer version
        #[arg(long)]
        check: bool,
        #[command(flatten)]
        network: NetworkArgs,
    },
    /// Remove images that a newer one has replaced, and what failed downloads left
    Prune {
        /// Remove every image that no lab needs
        #[arg(long)]
        all: bool,
        /// Only tell what would be removed
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, clap::Args)]
struct NetworkArgs {
    /// Proxy for every download; else http_proxy, https_proxy, all_proxy and no_proxy count
    #[arg(long, value_name = "URL")]
    proxy: Option<Url>,
    /// Accept a signature older than the newest one seen for this image
    #[arg(long)]
    accept_older: bool,
}

#[derive(Debug, clap::Args)]
struct Verify {
    /// A shipped manifest's name, or a path to one
    #[arg(required_unless_present = "store")]
    manifest: Option<String>,
    /// The image's file
    #[arg(required_unless_present = "store")]
    file: Option<Utf8PathBuf>,
    /// Prove every image in the store again
    #[arg(long, conflicts_with_all = [
        "manifest", "file", "key", "signature", "checksums", "signify", "checksums_signature", "accept_older",
    ])]
    store: bool,
    /// Move those that do not hold to the store's quarantine
    #[arg(long, requires = "store")]
    quarantine: bool,
    /// The OpenPGP key
    #[arg(long, value_name = "FILE")]
    key: Option<Utf8PathBuf>,
    /// The OpenPGP signature over the image
    #[arg(long, value_name = "FILE")]
    signature: Option<Utf8PathBuf>,
    /// The checksum file
    #[arg(long, value_name = "FILE")]
    checksums: Option<Utf8PathBuf>,
    /// The signify signature over the checksum file
    #[arg(long, value_name = "FILE")]
    signify: Option<Utf8PathBuf>,
    /// The OpenPGP signature over the checksum file
    #[arg(long, value_name = "FILE")]
    checksums_signature: Option<Utf8PathBuf>,
    /// Accept a signature older than the newest one seen for this image
    #[arg(long)]
    accept_older: bool,
}

impl NetworkArgs {
    fn options(self) -> FetchOptions {
        FetchOptions {
            proxy: self.proxy,
            accept_older: self.accept_older,
            ..FetchOptions::default()
        }
    }
}

/// An image in the JSON answers.
#[derive(Serialize)]
struct Image {
    name: String,
    version: String,
    format: &'static str,
    path: Utf8PathBuf,
    size: u64,
    sha256: String,
    sha512: String,
    signed_at: Option<Timestamp>,
    provenance: Provenance,
}

impl From<&VerifiedImage> for Image {
    fn from(image: &VerifiedImage) -> Self {
        Image {
            name: image.name().to_string(),
            version: image.version().to_owned(),
            format: image.format().as_str(),
            path: image.path(),
            size: image.size(),
            sha256: image.sha256().to_string(),
            sha512: image.sha512().to_string(),
            signed_at: image.signed_at(),
            provenance: image.provenance().clone(),
        }
    }
}

/// Answers with one image.
#[derive(Serialize)]
struct OneImage {
    schema: u32,
    image: Image,
}

pub(crate) async fn run(args: Args, globals: &Globals) -> Result<ExitCode> {
    match args.command {
        ImageCommand::List => list(globals)?,
        ImageCommand::Show { manifest } => show(&manifest, globals)?,
        ImageCommand::Fetch { manifest, network } => {
            fetched(&manifest, network.options(), globals).await?;
        }
        ImageCommand::Build { manifest, format, mirror } => {
            built(&manifest, &BuildOptions { mirror, format, holder: None }, globals).await?;
        }
        ImageCommand::Verify(Verify { store: true, quarantine, .. }) => {
            return store_verified(quarantine, globals).await;
        }
        ImageCommand::Verify(args) => verified(args, globals).await?,
        ImageCommand::Update { manifest, check, network } => {
            updated(&manifest, check, network.options(), globals).await?;
        }
        ImageCommand::Prune { all, dry_run } => pruned(all, dry_run, globals)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn store(globals: &Globals) -> Result<Store> {
    Store::open(&globals.cache_dir.join("images"))
}

/// Does `work` as one step whose progress is shown, ended by Ctrl-C.
async fn watched<T>(
    globals: &Globals,
    title: String,
    work: impl AsyncFnOnce(&EventSink, &CancellationToken) -> Result<T>,
) -> Result<T> {
    let run_session = RunSession::aside(globals)?;
    let cancel = run_session.cancel();
    let done = run_session
        .events
        .step("image", &title, "asked for", async |events: &EventSink| {
            until_safe_point(&cancel, work(events, &cancel)).await
        })
        .await;
    run_session.end();
    done
}

fn list(globals: &Globals) -> Result<()> {
    #[derive(Serialize)]
    struct ImageListAnswer {
        schema: u32,
        shipped: Vec<&'static str>,
        images: Vec<Image>,
    }
    let here = store(globals)?.list()?;
    let shipped: Vec<_> = shipped_names().collect();
    if globals.json {
        let images = here.iter().map(Image::from).collect();
        return output::print_json(&ImageListAnswer { schema: 1, shipped, images });
    }
    let names = here.iter().map(|image| image.name().as_str());
    let width = names.chain(shipped.iter().copied()).map(str::len).max().unwrap_or_default();
    let mut text = String::new();
    for image in &here {
        let from = match image.provenance() {
            Provenance::Built { .. } => "built here".to_owned(),
            _ => image.signed_at().map_or_else(
                || "proven by its digest".to_owned(),
                |time| format!("signed {}", time.strftime("%Y-%m-%d")),
            ),
        };
        text.push_str(&format!(
            "{:width$}  {}  {}  {}  {from}\n",
            image.name(),
            image.version(),
            image.format(),
            humanize::bytes(image.size())
        ));
    }
    for name in shipped {
        if !here.iter().any(|image| image.name().as_str() == name) {
            text.push_str(&format!("{name:width$}  not here yet\n"));
        }
    }
    output::print(&text)
}

fn show(manifest: &str, globals: &Globals) -> Result<()> {
    #[derive(Serialize)]
    struct ShownImageAnswer<'a> {
        schema: u32,
        name: &'a str,
        version: Option<&'a ImageVersion>,
        text: &'a str,
        image: Option<Image>,
    }
    let manifest = Manifest::named_or_at(manifest)?;
    if !globals.json {
        return output::print(manifest.text());
    }
    let image = store(globals)?.find(&manifest)?;
    output::print_json(&ShownImageAnswer {
        schema: 1,
        name: manifest.name().as_str(),
        version: manifest.version(),
        text: manifest.text(),
        image: image.as_ref().map(Image::from),
    })
}

fn answer(image: &VerifiedImage, globals: &Globals) -> Result<()> {
    if globals.json {
        return output::print_json(&OneImage { schema: 1, image: image.into() });
    }
    output::print(&format!("{}\n", image.path()))
}

async fn fetched(manifest: &str, options: FetchOptions, globals: &Globals) -> Result<()> {
    let manifest = Manifest::named_or_at(manifest)?;
    let store = store(globals)?;
    let title = format!("fetch {}", manifest.name());
    let image = watched(globals, title, async |events, cancel| {
        fetch(&manifest, &store, &options, events, cancel).await
    })
    .await?;
    answer(&image, globals)
}

async fn built(manifest: &str, options: &BuildOptions, globals: &Globals) -> Result<()> {
    let manifest = Manifest::named_or_at(manifest)?;
    let store = store(globals)?;
    let title = format!("build {}", manifest.name());
    let image = watched(globals, title, async |events, cancel| {
        build(&manifest, &store, options, events, cancel).await
    })
    .await?;
    answer(&image, globals)
}

async fn verified(args: Verify, globals: &Globals) -> Result<()> {
    #[derive(Serialize)]
    struct VerifiedFileAnswer<'a> {
        schema: u32,
        sha256: String,
        sha512: String,
        size: u64,
        signed_at: Option<Timestamp>,
        proofs: &'a [String],
    }
    let (Some(manifest), Some(file)) = (&args.manifest, args.file.clone()) else {
        return Err(Error::new(
            Kind::Usage,
            "which file is to be verified, and by which manifest?",
        ));
    };
    let manifest = Manifest::named_or_at(manifest)?;
    let newest_seen = match args.accept_older {
        true => None,
        false => store(globals)?.newest_signature(manifest.name())?,
    };
    let proven = proven(args, manifest, file, newest_seen, globals).await?;
    if globals.json {
        return output::print_json(&VerifiedFileAnswer {
            schema: 1,
            sha256: proven.sha256().to_string(),
            sha512: proven.sha512().to_string(),
            size: proven.size(),
            signed_at: proven.signed_at(),
            proofs: proven.proofs(),
        });
    }
    let proofs: String = proven.proofs().iter().map(|proof| format!("holds: {proof}\n")).collect();
    output::print(&format!("{proofs}sha256: {}\n", proven.sha256()))
}

/// Proves the whole store again, and returns exit code 4 if something in it does not hold.
async fn store_verified(quarantine: bool, globals: &Globals) -> Result<ExitCode> {
    #[derive(Serialize)]
    struct One {
        name: String,
        version: String,
        folder: Utf8PathBuf,
        holds: bool,
        proofs: Vec<String>,
        why: Option<String>,
        quarantined: Option<Utf8PathBuf>,
    }
    #[derive(Serialize)]
    struct VerifiedStoreAnswer {
        schema: u32,
        images: Vec<One>,
    }
    let store = store(globals)?;
    let images = watched(globals, "verify the image store".to_owned(), async |events, cancel| {
        let (events, cancel) = (events.clone(), cancel.clone());
        let reading =
            tokio::task::spawn_blocking(move || store.audit(quarantine, &events, &cancel));
        reading.await.map_err(|error| Error::internal("the verifier died").with_source(error))?
    })
    .await?;
    let bad = images.iter().any(|image| image.wrong.is_some());
    let images = images.into_iter().map(|image| One {
        name: image.name.to_string(),
        version: image.version,
        folder: image.folder,
        holds: image.wrong.is_none(),
        proofs: image.proofs,
        why: image.wrong.map(|error| error.report()),
        quarantined: image.kept,
    });
    let images: Vec<One> = images.collect();
    if globals.json {
        output::print_json(&VerifiedStoreAnswer { schema: 1, images })?;
    } else {
        let line = |image: &One| match &image.why {
            None => {
                format!("holds: {} {}: {}\n", image.name, image.version, image.proofs.join("; "))
            }
            Some(why) => {
                let moved = image.quarantined.as_ref();
                let moved = moved.map_or(String::new(), |to| format!("; moved to {to}"));
                format!(
                    "does not hold: {} {}: {}{moved}\n",
                    image.name,
                    image.version,
                    why.trim_end()
                )
            }
        };
        let text: String = images.iter().map(line).collect();
        output::print(if text.is_empty() { "the image store is empty\n" } else { &text })?;
    }
    let code = if bad { Kind::Untrusted.exit_code() } else { 0 };
    Ok(ExitCode::from(code))
}

async fn proven(
    args: Verify,
    manifest: Manifest,
    file: Utf8PathBuf,
    newest_seen: Option<Timestamp>,
    globals: &Globals,
) -> Result<Proven> {
    let beside = Beside {
        key: args.key,
        signature: args.signature,
        checksums: args.checksums,
        signify: args.signify,
        checksums_signature: args.checksums_signature,
    };
    let times = Times { now: Timestamp::now(), newest_seen };
    let title = format!("verify {file}");
    watched(globals, title, async move |events, cancel| {
        let (events, cancel) = (events.clone(), cancel.clone());
        let reading = tokio::task::spawn_blocking(move || {
            verify_file(&manifest, &file, &beside, times, &events, &cancel)
        });
        reading.await.map_err(|error| Error::internal("the verifier died").with_source(error))?
    })
    .await
}

async fn updated(
    manifest: &str,
    check: bool,
    options: FetchOptions,
    globals: &Globals,
) -> Result<()> {
    #[derive(Serialize)]
    struct UpdateAnswer {
        schema: u32,
        old: String,
        new: String,
        written: bool,
        image: Option<Image>,
    }
    let manifest = Manifest::named_or_at(manifest)?;
    let store = store(globals)?;
    let title = format!("look for a newer {}", manifest.name());
    let found = watched(globals, title, async |events, cancel| {
        events.doing("asking for the newest version");
        update::newest(&manifest, &options, cancel).await
    })
    .await?;
    let (old, new) = match found {
        Update::Newest(version) => (version.clone(), version),
        Update::Newer { old, new } => (old, new),
    };
    let mut image = None;
    if old != new && !check {
        // Before gigabytes are fetched for a file that cannot be changed.
        update::file_of(&manifest)?;
        let title = format!("fetch {} {new}", manifest.name());
        let (fetched, text) = watched(globals, title, async |events, cancel| {
            update::to_version(&manifest, &new, &store, &options, events, cancel).await
        })
        .await?;
        update::write(&manifest, &text)?;
        image = Some(fetched);
    }
    if globals.json {
        let written = image.is_some();
        let image = image.as_ref().map(Image::from);
        let (old, new) = (old.to_string(), new.to_string());
        return output::print_json(&UpdateAnswer { schema: 1, old, new, written, image });
    }
    output::print(&if old == new {
        format!("{}: {old} is the newest\n", manifest.name())
    } else {
        format!("{}: {old} → {new}\n", manifest.name())
    })
}

fn pruned(all: bool, dry_run: bool, globals: &Globals) -> Result<()> {
    #[derive(Serialize)]
    struct Removed {
        path: Utf8PathBuf,
        why: &'static str,
        bytes: u64,
    }
    #[derive(Serialize)]
    struct PruneAnswer {
        schema: u32,
        dry_run: bool,
        removed: Vec<Removed>,
    }
    let how = if all { Prune::Unused } else { Prune::Superseded };
    let pruned = store(globals)?.prune(how, dry_run)?;
    if globals.json {
        let removed = pruned.into_iter();
        let removed =
            removed.map(|one| Removed { path: one.path, why: one.why, bytes: one.bytes }).collect();
        return output::print_json(&PruneAnswer { schema: 1, dry_run, removed });
    }
    let verb = if dry_run { "would remove" } else { "removed" };
    let mut text: String = pruned
        .iter()
        .map(|one| format!("{verb} {} ({}): {}\n", one.path, humanize::bytes(one.bytes), one.why))
        .collect();
    if text.is_empty() {
        text.push_str("nothing to remove\n");
    }
    output::print(&text)
}
