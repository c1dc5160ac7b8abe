use super::*;

const MINIMAL: &str = r#"schema = 1
name = "demo"
version = "1.2"
arch = "x86_64"
format = "qcow2"
urls = ["https://example.org/{version}/demo-{version}.qcow2.xz"]
sha256 = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
"#;

fn parse(text: &str) -> Result<Manifest> {
    Manifest::parse(text, ManifestOrigin::Text("test".into()))
}

#[test]
fn every_shipped_manifest_is_named_as_its_file_and_has_a_source() {
    for name in shipped_names() {
        let manifest = Manifest::shipped(name).expect(name);
        assert_eq!(manifest.name().as_str(), name);
        if let Some(download) = manifest.download() {
            for url in &download.urls {
                url.image_url(manifest.version()).expect(name);
            }
        }
    }
}

#[test]
fn kicksecures_manifest_demands_all_three_proofs() {
    let manifest = Manifest::shipped("kicksecure-lxqt").expect("shipped");
    let download = manifest.download().expect("downloaded");
    let openpgp = download.openpgp.as_ref().expect("signed");
    assert_eq!(openpgp.fingerprint.as_str(), "916B8D99C38EAF5E8ADC7A2A8D66066A2EEACCDA");
    assert_eq!(openpgp.not_before, Some("2026-07-01T00:00:00Z".parse().expect("a moment")));
    let (url, file) = download.urls[0].image_url(manifest.version()).expect("expands");
    assert_eq!(
        url.as_str(),
        "https://www.kicksecure.com/download/ova/18.2.1.9/Kicksecure-LXQt-18.2.1.9.Intel_AMD64.ova"
    );
    let names = Placeholders { version: "18.2.1.9", url: url.as_str(), file: &file };
    assert_eq!(openpgp.notations["file@name"].expand(names), file);
    let sums = download.checksums.as_ref().expect("checksums");
    assert!(sums.signify.is_some() && sums.openpgp.is_some());
    assert_eq!(sums.location.to_string(), "{url}.sha512sums");
}

#[test]
fn what_is_left_out_has_a_plain_meaning() {
    let manifest = parse(MINIMAL).expect("valid");
    let download = manifest.download().expect("downloaded");
    assert_eq!(download.compression, Compression::Xz);
    assert!(!download.allow_http);
    assert_eq!(manifest.guest(), &GuestDefaults::default());
}

#[test]
fn a_build_is_kept_as_data() {
    let text = r#"schema = 1
name = "debian-sid"
arch = "x86_64"
format = "qcow2"
[build]
kind = "debian"
suite = "sid"
components = ["main", "contrib"]
packages = ["zstd"]
allow-stale = "the mirror's release file is past its date"
[guest]
user = "root"
ssh = true
ready = "ssh"
seed = "cidata"
memory = "2GiB"
firmware = "efi"
"#;
    let manifest = parse(text).expect("valid");
    let build = manifest.build().expect("built");
    assert_eq!((build.kind, build.suite.as_str()), (BuildKind::Debian, "sid"));
    assert_eq!(build.components, ["main", "contrib"]);
    assert_eq!(build.format, Some(ImageFormat::Qcow2));
    assert_eq!(manifest.guest().ready, Some(Readiness::Ssh));
    assert_eq!(manifest.guest().seed, SeedKind::CiData);
}

#[test]
fn what_cannot_be_is_refused_with_its_line() {
    let table = [
        ("schema = 1", "schema = 2", "newer"),
        ("\"x86_64\"", "\"arm64\"", "test:4:8: arm64 images do not work"),
        ("\"x86_64\"", "\"i386\"", "64-bit x86"),
        ("\"qcow2\"", "\"floppy\"", "line 5"),
        ("https://", "ftp://", "test:6:9"),
        ("{version}.qcow2", "{flavor}.qcow2", "not a placeholder"),
        ("{version}.qcow2", "{url}.qcow2", "no meaning here"),
        (".qcow2.xz\"", ".qcow2?x=1\"", "query"),
        ("demo-{version}.qcow2.xz\"", "\"", "plain file name"),
        ("demo-{version}.qcow2.xz\"", "..%2fx\"", "plain file name"),
        ("sha256", "sha265", "unknown field"),
        ("aaaaaaaa\"", "\"", "64 hex digits"),
        ("sha256 = ", "# ", "nothing proves this image"),
        ("version = \"1.2\"", "", "has no value"),
        ("version = \"1.2\"", "version = \"1/../2\"", "not a version"),
        ("arch = \"x86_64\"", "", "`arch` is missing"),
        ("name = \"demo\"", "name = \"../demo\"", "cannot be an image's name"),
    ];
    for (from, to, part) in table {
        let text = MINIMAL.replacen(from, to, 1);
        assert_ne!(text, MINIMAL, "{from}");
        let error = parse(&text).expect_err(part);
        assert_eq!(error.kind(), Kind::Recipe);
        assert!(error.report().contains(part), "{part} is missing in:\n{}", error.report());
    }
}

#[test]
fn unsigned_checksums_alone_prove_nothing() {
    let text = MINIMAL.replace("sha256 = ", "# ");
    let unsigned = format!("{text}\n[checksums]\nurl = \"{{url}}.sha512sums\"\n");
    let error = parse(&unsigned).expect_err("unsigned");
    assert!(error.message().contains("nothing proves"), "{error}");
    let signed = format!(
        "{unsigned}signify = {{ key = \"RWQ6KRormNEETq+M8IysxRe/HAWlqZRlO8u7ACIiv5poAW0ztsirOjCQ\", signature = \"{{url}}.sig\" }}\n"
    );
    parse(&signed).expect("a signed checksum file is a proof");
}

#[test]
fn mirrors_have_the_same_file() {
    let text = MINIMAL.replace("qcow2.xz\"]", "qcow2.xz\", \"https://example.net/other.qcow2\"]");
    let error = parse(&text).expect_err("another file");
    assert!(error.message().contains("a mirror has the same file"), "{error}");
}

#[test]
fn the_identity_changes_with_everything_that_is_trusted() {
    let identity = parse(MINIMAL).expect("valid").identity();
    assert_eq!(identity, parse(&format!("# a comment\n{MINIMAL}")).expect("valid").identity());
    for (from, to) in [("1.2", "1.3"), ("sha256 = \"a", "sha256 = \"b"), ("https", "http")] {
        let other = parse(&MINIMAL.replacen(from, to, 1)).expect("valid").identity();
        assert_ne!(identity, other, "{from} → {to}");
    }
}

#[test]
fn an_update_touches_version_and_pins_only() {
    let text = MINIMAL.replace("version = \"1.2\"", "version = \"1.2\"  # the newest\nsize = 5");
    let manifest = parse(&text).expect("valid");
    let (sha256, sha512) = ("b".repeat(64), "c".repeat(128));
    let updated = manifest.text_for(
        &"1.10".parse().expect("version"),
        77,
        &sha256.parse().expect("hex"),
        &sha512.parse().expect("hex"),
    );
    let expected = text
        .replace("\"1.2\"", "\"1.10\"")
        .replace("size = 5", "size = 77")
        .replace(&"a".repeat(64), &sha256);
    assert_eq!(updated, expected);
    assert_eq!(parse(&updated).expect("valid").version().map(ImageVersion::as_str), Some("1.10"));
}
