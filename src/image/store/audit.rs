//! Proving everything in the store again, from its bytes and from what it was proven by.

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::record::{Content, ImageEntry, StoredProofs};
use super::{Pins, Store, bound, record, trust};
use crate::error::{Error, Kind, Result};
use crate::event::EventSink;
use crate::image::digest::{Sha256, size_and_digests};
use crate::image::manifest::{Manifest, ManifestOrigin, Placeholders};
use crate::image::verify::{Expectations, Times};
use crate::image::verify_file::prove;
use crate::image::{VerifiedImage, structure};
use crate::recipe::ImageName;

/// An image that was proven again, or was not.
#[derive(Debug)]
pub struct Audited {
    /// The name that it is found by.
    pub name: ImageName,
    /// Its version under that name.
    pub version: String,
    /// Its folder.
    pub folder: Utf8PathBuf,
    /// The proofs that held again, in words.
    pub proofs: Vec<String>,
    /// What did not hold.
    pub wrong: Option<Error>,
    /// Where it was moved to.
    pub kept: Option<Utf8PathBuf>,
}

impl Store {
    /// Reads every image in the store and proves it again, by each name that it has: its digests, its
    /// structure, and the signatures and checksums that it was proven by, as far as the store has kept them,
    /// judged as of when it came. With `quarantine`, what does not hold is taken out of the store. Blocks
    /// for as long as reading it all takes.
    ///
    /// # Errors
    /// [`Kind::Io`] if the store cannot be read, [`Kind::Interrupted`] once `cancel` fires. What does not
    /// hold is no error of this function.
    pub fn audit(
        &self,
        quarantine: bool,
        events: &EventSink,
        cancel: &CancellationToken,
    ) -> Result<Vec<Audited>> {
        let mut audited = Vec::new();
        for name in self.all_names()? {
            for entry in self.known(&name)?.entries {
                let folder = self.folder(&entry.sha256);
                let judged = match self.prove_again(&folder, &entry, &name, events, cancel) {
                    Ok(None) => continue,
                    Ok(Some(proofs)) => Ok(proofs),
                    Err(error) if error.kind() == Kind::Interrupted => return Err(error),
                    Err(error) => Err(error),
                };
                let (name, version) = (name.clone(), entry.version);
                let (proofs, wrong) = match judged {
                    Ok(proofs) => (proofs, None),
                    Err(error) => (Vec::new(), Some(error)),
                };
                audited.push(Audited { name, version, folder, proofs, wrong, kept: None });
            }
        }
        if quarantine {
            for one in &mut audited {
                if let Some(wrong) = &one.wrong {
                    one.kept = self.take_out(&one.name, &one.folder, wrong)?;
                }
            }
        }
        Ok(audited)
    }

    /// Returns the proofs of one image that held again; `None` if it is not here any more.
    fn prove_again(
        &self,
        folder: &Utf8Path,
        entry: &ImageEntry,
        name: &ImageName,
        events: &EventSink,
        cancel: &CancellationToken,
    ) -> Result<Option<Vec<String>>> {
        let Some(content) = self.content(folder)? else { return Ok(None) };
        bound(folder, &content, &entry.sha256, Pins::default())?;
        let file = folder.join(&content.file);
        trust::owned(&file, &fs_err::symlink_metadata(&file)?)?;
        events.doing(format!("reading {name} {}", entry.version));
        let proofs = match record::read::<StoredProofs>(&StoredProofs::path(folder, &entry.key))? {
            Some(kept) => by_what_was_kept(&kept, entry, &content, &file, events, cancel)?,
            None if cancel.is_cancelled() => {
                return Err(Error::new(Kind::Interrupted, "interrupted"));
            }
            None => {
                same(&content, &file, size_and_digests(&file)?)?;
                vec![format!("SHA-256 {}", content.sha256)]
            }
        };
        structure::check(&file, content.format, content.compression)?;
        Ok(Some(proofs))
    }

    /// Keeps what an image was proven by beside it.
    pub(super) fn keep_proofs(
        &self,
        folder: &Utf8Path,
        key: &Sha256,
        kept: &StoredProofs,
    ) -> Result<()> {
        let path = StoredProofs::path(folder, key);
        trust::private_folder(path.parent().expect("it lies in the image's folder"))?;
        record::write(&path, kept)
    }

    /// Has what `image` was proven by count for another manifest too.
    pub(super) fn keep_proofs_also(
        &self,
        image: &VerifiedImage,
        manifest: &Manifest,
    ) -> Result<()> {
        match record::read::<StoredProofs>(&StoredProofs::path(&image.folder, &image.entry.key))? {
            Some(kept) => {
                self.keep_proofs(&image.folder, &manifest.identity(), &kept.under(manifest))
            }
            None => Ok(()),
        }
    }
}

/// Proves the file by the manifest, signatures and checksums that were kept.
fn by_what_was_kept(
    kept: &StoredProofs,
    entry: &ImageEntry,
    content: &Content,
    file: &Utf8Path,
    events: &EventSink,
    cancel: &CancellationToken,
) -> Result<Vec<String>> {
    let refused = |why: &str| Error::new(Kind::Untrusted, format!("{file}: {why}"));
    let origin = match &kept.origin {
        Some(path) => ManifestOrigin::File(path.clone()),
        None => ManifestOrigin::Text("kept in the image store".to_owned()),
    };
    let manifest = Manifest::parse(&kept.manifest, origin)?;
    let download = manifest.download().filter(|_| manifest.identity() == entry.key);
    let download = download.ok_or_else(|| refused("its manifest is not the one it came by"))?;
    let version = manifest.version().map_or("", |version| version.as_str());
    let names = Placeholders { version, url: &kept.url, file: &kept.file };
    // What a key has become since cannot be told here: its newest file is the publisher's.
    let times = Times { now: entry.adopted.max(signed(entry)), newest_seen: None };
    let expectations = Expectations::new(download, names, &kept.evidence()?, times)?;
    let proven = prove(&expectations, file, events, cancel)?;
    same(content, file, (proven.size(), proven.sha256(), proven.sha512()))?;
    Ok(proven.proofs().to_vec())
}

fn signed(entry: &ImageEntry) -> Timestamp {
    entry.provenance.signed_at().unwrap_or(Timestamp::MIN)
}

fn same(
    content: &Content,
    file: &Utf8Path,
    found: (u64, Sha256, crate::image::Sha512),
) -> Result<()> {
    if found == (content.size, content.sha256, content.sha512) {
        return Ok(());
    }
    let (want, have) = (content.sha256, found.1);
    Err(Error::new(Kind::Untrusted, format!("{file} has changed: SHA-256 {want} → {have}")))
}
