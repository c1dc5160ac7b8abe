//! From TOML to a consistent [`Manifest`], with every refusal pointing at its line.

use std::collections::BTreeMap;
use std::ops::Range;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::Offset;
use toml::Spanned;

use super::raw::{
    RawBuild, RawChecksums, RawChecksumsOpenPgp, RawGuest, RawManifest, RawOpenPgp, SCHEMA,
};
use super::url_template::{Location, Template};
use super::{
    BuildTable, Checksums, Download, GuestDefaults, ImageSource, ImageVersion, Manifest,
    ManifestOrigin, OpenPgp, Signify, Spans,
};
use crate::error::{Error, Kind, Result};
use crate::image::format::{Compression, ImageFormat};
use crate::recipe::{Readiness, ReadyKind};

/// What is wrong, where in the text, and what to do about it.
struct ManifestError {
    span: Range<usize>,
    what: String,
    hint: Option<String>,
}

impl ManifestError {
    fn at<T>(place: &Spanned<T>, what: impl Into<String>) -> Self {
        ManifestError { span: place.span(), what: what.into(), hint: None }
    }

    fn whole(what: impl Into<String>) -> Self {
        ManifestError { span: 0..0, what: what.into(), hint: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

type Checked<T> = Result<T, ManifestError>;

/// The folder that relative paths start from, if there is one.
struct Base<'a>(Option<&'a Utf8Path>);

pub(super) fn manifest(text: &str, origin: ManifestOrigin) -> Result<Manifest> {
    newer_schema(text, &origin)?;
    let raw: RawManifest = toml::from_str(text).map_err(|error| {
        // toml's message shows the line with a caret.
        Error::new(Kind::Recipe, format!("{origin}: {}", error.to_string().trim_end()))
    })?;
    let base = Base(match &origin {
        ManifestOrigin::File(path) => path.parent(),
        ManifestOrigin::Shipped | ManifestOrigin::Text(_) => None,
    });
    checked(raw, &base)
        .map(|(name, version, source, guest, spans)| Manifest {
            name,
            version,
            source,
            guest,
            origin: origin.clone(),
            text: text.to_owned(),
            spans,
        })
        .map_err(|fault| shown(text, &origin, fault))
}

/// A manifest of a newer nestlab is named as one, not refused key by key.
fn newer_schema(text: &str, origin: &ManifestOrigin) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Schema {
        schema: u32,
    }
    match toml::from_str::<Schema>(text) {
        Ok(Schema { schema }) if schema > SCHEMA => Err(Error::new(
            Kind::Recipe,
            format!("{origin}: schema {schema} is newer than this nestlab, which knows {SCHEMA}"),
        )
        .hint("update nestlab")),
        _ => Ok(()),
    }
}

fn shown(text: &str, origin: &ManifestOrigin, fault: ManifestError) -> Error {
    let start = fault.span.start.min(text.len());
    let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
    let number = text[..start].matches('\n').count() + 1;
    let line = text[line_start..].lines().next().unwrap_or("");
    let column = text[line_start..start].chars().count() + 1;
    let carets = text[start..fault.span.end.clamp(start, text.len())]
        .lines()
        .next()
        .map_or(1, |marked| marked.chars().count().max(1));
    let margin = " ".repeat(number.to_string().len());
    let message = format!(
        "{origin}:{number}:{column}: {}\n{margin} |\n{number} | {line}\n{margin} | {}{}",
        fault.what,
        " ".repeat(column - 1),
        "^".repeat(carets)
    );
    let error = Error::new(Kind::Recipe, message);
    match fault.hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

type ManifestParts =
    (crate::recipe::ImageName, Option<ImageVersion>, ImageSource, GuestDefaults, Spans);

fn checked(mut raw: RawManifest, base: &Base<'_>) -> Checked<ManifestParts> {
    if raw.schema.get_ref() != &SCHEMA {
        return Err(ManifestError::at(&raw.schema, format!("the schema is {SCHEMA}")));
    }
    architecture(raw.arch.as_ref())?;
    let spans = Spans {
        version: raw.version.as_ref().map(Spanned::span),
        size: raw.size.as_ref().map(Spanned::span),
        sha256: raw.sha256.as_ref().map(Spanned::span),
        sha512: raw.sha512.as_ref().map(Spanned::span),
    };
    let guest = raw.guest.take().map_or(Ok(GuestDefaults::default()), guest)?;
    let source = match raw.build.take() {
        Some(table) => ImageSource::Build(build(table, &raw, base)?),
        None => ImageSource::Download(Box::new(download(&raw, base)?)),
    };
    Ok((raw.name, raw.version.map(Spanned::into_inner), source, guest, spans))
}

fn architecture(arch: Option<&Spanned<String>>) -> Checked<()> {
    match arch {
        None => {
            Err(ManifestError::whole("`arch` is missing").hint("only `arch = \"x86_64\"` works"))
        }
        Some(arch) if arch.get_ref() == "x86_64" => Ok(()),
        Some(arch) => Err(ManifestError::at(
            arch,
            format!(
                "{} images do not work: a nested lab needs 64-bit x86",
                arch.get_ref().escape_debug()
            ),
        )
        .hint("only `arch = \"x86_64\"` works")),
    }
}

fn build(table: Spanned<RawBuild>, raw: &RawManifest, base: &Base<'_>) -> Checked<BuildTable> {
    if let Some(urls) = &raw.urls {
        return Err(ManifestError::at(urls, "an image is built or downloaded, not both"));
    }
    let proof = [
        raw.openpgp.as_ref().map(Spanned::span),
        raw.checksums.as_ref().map(Spanned::span),
        raw.sha256.as_ref().map(Spanned::span),
        raw.sha512.as_ref().map(Spanned::span),
        raw.size.as_ref().map(Spanned::span),
    ];
    if let Some(span) = proof.into_iter().flatten().next() {
        let what = "a built image is proven by the archive's signature, not by this";
        return Err(ManifestError { span, what: what.into(), hint: None });
    }
    let table = table.into_inner();
    let words = |list: Vec<Spanned<String>>| -> Checked<Vec<String>> {
        list.into_iter().map(archive_word).collect()
    };
    if let Some(reason) = table.allow_stale.as_ref().filter(|r| r.get_ref().trim().is_empty()) {
        return Err(ManifestError::at(
            reason,
            "`allow-stale` says why a stale archive is accepted",
        ));
    }
    let components = words(table.components)?;
    Ok(BuildTable {
        kind: table.kind.into_inner(),
        suite: archive_word(table.suite)?,
        components: if components.is_empty() { vec!["main".to_owned()] } else { components },
        packages: words(table.packages)?,
        modules: words(table.modules)?,
        debs: table.debs.into_iter().map(|path| path_in(path, base)).collect::<Checked<_>>()?,
        allow_stale: table.allow_stale.map(Spanned::into_inner),
        format: raw.format.as_ref().map(|format| *format.get_ref()),
    })
}

/// A suite's, component's, package's or module's name: never an option, a path or a list.
fn archive_word(word: Spanned<String>) -> Checked<String> {
    let text = word.get_ref();
    let ok = text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._:".contains(&b));
    if ok { Ok(word.into_inner()) } else { Err(ManifestError::at(&word, "this is not a name")) }
}

fn download(raw: &RawManifest, base: &Base<'_>) -> Checked<Download> {
    let urls = urls(raw)?;
    let format = raw.format.as_ref().ok_or_else(|| {
        ManifestError::whole("`format` is missing").hint("such as `format = \"qcow2\"`")
    })?;
    let compression = compression(raw, format, &urls)?;
    let openpgp = raw.openpgp.as_ref().map(|table| openpgp(table.get_ref(), base)).transpose()?;
    let checksums =
        raw.checksums.as_ref().map(|table| checksums(table, openpgp.as_ref(), base)).transpose()?;
    let signed_sums =
        checksums.as_ref().is_some_and(|sums| sums.signify.is_some() || sums.openpgp.is_some());
    if openpgp.is_none() && raw.sha256.is_none() && raw.sha512.is_none() && !signed_sums {
        return Err(ManifestError::whole("nothing proves this image").hint(
            "name `sha256`, `sha512`, `[openpgp]`, or `[checksums]` with a signature over it",
        ));
    }
    Ok(Download {
        format: *format.get_ref(),
        compression,
        urls,
        allow_http: raw.allow_http.as_ref().is_some_and(|allow| *allow.get_ref()),
        size: raw.size.as_ref().map(|size| *size.get_ref()),
        unpacked_size: raw.unpacked_size.as_ref().map(|size| *size.get_ref()),
        sha256: raw.sha256.as_ref().map(|digest| *digest.get_ref()),
        sha512: raw.sha512.as_ref().map(|digest| *digest.get_ref()),
        openpgp,
        checksums,
        latest: raw
            .latest
            .as_ref()
            .map(|latest| {
                let template = template(&latest.url, &[])?;
                web(&latest.url, latest.url.get_ref()).map(|()| template)
            })
            .transpose()?,
    })
}

fn urls(raw: &RawManifest) -> Checked<Vec<Template>> {
    let missing = || {
        ManifestError::whole(
            "neither `urls` nor `[build]`: nothing says where the image comes from",
        )
    };
    let list = raw.urls.as_ref().ok_or_else(missing)?;
    if list.get_ref().is_empty() {
        return Err(ManifestError::at(list, "this names no address"));
    }
    let version = raw.version.as_ref().map(Spanned::get_ref);
    let mut names: Vec<String> = Vec::new();
    let mut templates = Vec::new();
    for url in list.get_ref() {
        let template = template(url, &["version"])?;
        if version.is_none() && url.get_ref().contains("{version}") {
            return Err(ManifestError::at(url, "`{version}` has no value: `version` is missing"));
        }
        let (_, file) =
            template.image_url(version).map_err(|error| ManifestError::at(url, error.message()))?;
        if names.first().is_some_and(|first| *first != file) {
            return Err(ManifestError::at(url, format!("a mirror has the same file, not {file}")));
        }
        names.push(file);
        templates.push(template);
    }
    Ok(templates)
}

fn compression(
    raw: &RawManifest,
    format: &Spanned<ImageFormat>,
    urls: &[Template],
) -> Checked<Compression> {
    let by_name = match format.get_ref() {
        ImageFormat::LibvirtTarXz => Compression::None,
        _ => Compression::of_name(urls[0].as_str()),
    };
    let Some(said) = &raw.compression else { return Ok(by_name) };
    let wrapped = *said.get_ref() != Compression::None;
    if wrapped && matches!(format.get_ref(), ImageFormat::LibvirtTarXz | ImageFormat::Ova) {
        return Err(ManifestError::at(
            said,
            format!("{} has no compression around it", format.get_ref()),
        ));
    }
    Ok(*said.get_ref())
}

fn openpgp(raw: &RawOpenPgp, base: &Base<'_>) -> Checked<OpenPgp> {
    Ok(OpenPgp {
        fingerprint: raw.fingerprint.clone(),
        key: location(&raw.key, &[], base)?,
        signature: location(&raw.signature, &["url", "file", "version"], base)?,
        notations: notations(&raw.notations)?,
        not_before: raw.not_before.as_ref().map(instant).transpose()?,
    })
}

fn checksums(
    table: &Spanned<RawChecksums>,
    image: Option<&OpenPgp>,
    base: &Base<'_>,
) -> Checked<Checksums> {
    let raw = table.get_ref();
    let beside = &["url", "file", "version"];
    let signify = raw
        .signify
        .as_ref()
        .map(|signify| {
            let signature = location(&signify.signature, beside, base)?;
            Ok(Signify { key: signify.key.clone(), signature })
        })
        .transpose()?;
    let openpgp =
        raw.openpgp.as_ref().map(|raw| checksums_openpgp(raw, image, base)).transpose()?;
    Ok(Checksums { location: location(&raw.url, beside, base)?, signify, openpgp })
}

fn checksums_openpgp(
    table: &Spanned<RawChecksumsOpenPgp>,
    image: Option<&OpenPgp>,
    base: &Base<'_>,
) -> Checked<OpenPgp> {
    let raw = table.get_ref();
    let missing = |key| {
        ManifestError::at(
            table,
            format!("`{key}` is missing, and there is no `[openpgp]` to take it from"),
        )
    };
    let key = match &raw.key {
        Some(key) => location(key, &[], base)?,
        None => image.map(|image| image.key.clone()).ok_or_else(|| missing("key"))?,
    };
    Ok(OpenPgp {
        fingerprint: raw
            .fingerprint
            .clone()
            .or_else(|| image.map(|image| image.fingerprint.clone()))
            .ok_or_else(|| missing("fingerprint"))?,
        key,
        signature: location(&raw.signature, &["url", "file", "version"], base)?,
        notations: notations(&raw.notations)?,
        not_before: match &raw.not_before {
            Some(time) => Some(instant(time)?),
            None => image.and_then(|image| image.not_before),
        },
    })
}

fn notations(raw: &BTreeMap<String, Spanned<String>>) -> Checked<BTreeMap<String, Template>> {
    let one = |(name, value): (&String, &Spanned<String>)| {
        Ok((name.clone(), template(value, &["file", "version"])?))
    };
    raw.iter().map(one).collect()
}

fn template(text: &Spanned<String>, allowed: &[&str]) -> Checked<Template> {
    Template::new(text.get_ref(), allowed).map_err(|what| ManifestError::at(text, what))
}

fn location(text: &Spanned<String>, allowed: &[&str], base: &Base<'_>) -> Checked<Location> {
    let value = text.get_ref();
    if value.starts_with("{url}") && allowed.contains(&"url") {
        return template(text, allowed).map(Location::Url);
    }
    if value.contains("://") {
        web(text, value)?;
        return template(text, allowed).map(Location::Url);
    }
    path_in(Spanned::new(text.span(), Utf8PathBuf::from(value)), base).map(Location::Path)
}

fn web<T>(place: &Spanned<T>, value: &str) -> Checked<()> {
    if value.starts_with("https://") || value.starts_with("http://") {
        Ok(())
    } else {
        Err(ManifestError::at(place, "only https and http addresses work"))
    }
}

fn path_in(path: Spanned<Utf8PathBuf>, base: &Base<'_>) -> Checked<Utf8PathBuf> {
    match base.0 {
        _ if path.get_ref().is_absolute() => Ok(path.into_inner()),
        Some(base) => Ok(base.join(path.get_ref())),
        None => {
            Err(ManifestError::at(&path, "a relative path works only in a manifest that is a file"))
        }
    }
}

/// A TOML date is midnight UTC; a date and time without offset is UTC.
fn instant(spanned: &Spanned<toml::value::Datetime>) -> Checked<Timestamp> {
    let bad =
        || ManifestError::at(spanned, "this is not a moment").hint("write it like `2026-07-01`");
    let value = spanned.get_ref();
    let date = value.date.ok_or_else(bad)?;
    let small = |n: u8| i8::try_from(n).map_err(|_| bad());
    let year = i16::try_from(date.year).map_err(|_| bad())?;
    let date = Date::new(year, small(date.month)?, small(date.day)?).map_err(|_| bad())?;
    let time = match value.time {
        None => Time::midnight(),
        Some(time) => {
            let second = small(time.second.unwrap_or(0))?;
            Time::new(small(time.hour)?, small(time.minute)?, second, 0).map_err(|_| bad())?
        }
    };
    let offset = match value.offset {
        None | Some(toml::value::Offset::Z) => Offset::UTC,
        Some(toml::value::Offset::Custom { minutes }) => {
            Offset::from_seconds(i32::from(minutes) * 60).map_err(|_| bad())?
        }
    };
    offset.to_timestamp(DateTime::from_parts(date, time)).map_err(|_| bad())
}

fn guest(raw: RawGuest) -> Checked<GuestDefaults> {
    if let Some(user) = &raw.user {
        let name = user.get_ref();
        let ok = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
        if !ok {
            return Err(ManifestError::at(user, "this is not a user's name"));
        }
    }
    if let (Some(pattern), false) =
        (&raw.serial_pattern, raw.ready.as_ref().is_some_and(|r| *r.get_ref() == ReadyKind::Serial))
    {
        return Err(ManifestError::at(pattern, "this is for `ready = \"serial\"` only"));
    }
    let ready = raw.ready.map(|ready| evidence(&ready, raw.ssh, raw.serial_pattern)).transpose()?;
    Ok(GuestDefaults {
        user: raw.user.map(Spanned::into_inner),
        ssh: raw.ssh == Some(true),
        ready,
        memory: raw.memory,
        cpus: raw.cpus,
        disk: raw.disk,
        firmware: raw.firmware,
        seed: raw.seed,
    })
}

fn evidence(
    ready: &Spanned<ReadyKind>,
    ssh: Option<bool>,
    pattern: Option<Spanned<String>>,
) -> Checked<Readiness> {
    match ready.get_ref() {
        ReadyKind::Ssh if ssh == Some(true) => Ok(Readiness::Ssh),
        ReadyKind::Ssh => {
            Err(ManifestError::at(ready, "ready by SSH, but `ssh = true` is missing"))
        }
        ReadyKind::Serial => match pattern {
            Some(pattern) if regex::Regex::new(pattern.get_ref()).is_ok() => {
                Ok(Readiness::Serial { pattern: pattern.into_inner() })
            }
            Some(pattern) => Err(ManifestError::at(&pattern, "this is not a regular expression")),
            None => Err(ManifestError::at(
                ready,
                "ready by serial line, but `serial-pattern` is missing",
            )),
        },
        ReadyKind::GuestAdditions => Ok(Readiness::GuestAdditions),
        ReadyKind::Screen => Ok(Readiness::Screen),
    }
}
