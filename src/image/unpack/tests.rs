use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};

use camino::Utf8PathBuf;

use super::sparse_tar::{FoundDisk, disk};
use super::*;

const ROOMY: Limits = Limits { bytes: 1 << 30, written: 1 << 30 };

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Place { folder: tempfile::tempdir().expect("a folder") }
    }

    fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8Path::from_path(self.folder.path()).expect("UTF-8").join(name)
    }

    /// A file of 64 MiB with data at its start, middle and end, and holes between.
    fn sparse(&self, name: &str) {
        let mut file = File::create(self.path(name)).expect("makes");
        for at in [0, 31 << 20, (64 << 20) - 5] {
            file.put(at, b"datum").expect("writes");
        }
        let mut many = vec![0; 8192];
        for at in 0..40_u64 {
            many.fill(u8::try_from(at).expect("small") + 1);
            file.put((8 << 20) + at * 65_536, &many).expect("writes");
        }
    }

    fn write(&self, name: &str, content: &[u8]) {
        fs_err::write(self.path(name), content).expect("writes");
    }

    /// What the real GNU tar makes of these.
    fn tar(&self, options: &[&str], members: &[&str]) -> Vec<u8> {
        let output = Command::new("tar")
            .arg("-C")
            .arg(self.folder.path())
            .args(options)
            .args(["-cf", "-"])
            .args(members)
            .stderr(Stdio::inherit())
            .output()
            .expect("tar is there");
        assert!(output.status.success());
        output.stdout
    }

    fn libvirt_members(&self) -> [&'static str; 4] {
        self.sparse("Demo.qcow2");
        self.write("Demo.xml", b"<domain/>");
        self.write("DEMO_DISCLAIMER", b"none");
        self.write("DEMO_BINARY_LICENSE_AGREEMENT", b"none");
        ["Demo.qcow2", "Demo.xml", "DEMO_DISCLAIMER", "DEMO_BINARY_LICENSE_AGREEMENT"]
    }

    fn unpack(
        &self,
        form: (ImageFormat, Compression),
        packed: &[u8],
        limits: Limits,
    ) -> Result<Utf8PathBuf> {
        self.write("packed", packed);
        let to = self.path("unpacked");
        let cancel = CancellationToken::new();
        unpack(&self.path("packed"), form, &to, limits, &EventSink::silent(), &cancel).map(|()| to)
    }
}

fn through(program: &str, options: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program is there");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("ends");
    writer.join().expect("joins").expect("takes all input");
    assert!(output.status.success());
    output.stdout
}

#[test]
fn a_sparse_tar_of_the_real_tar_keeps_its_holes() {
    let place = Place::new();
    let members = place.libvirt_members();
    let packed = through("xz", &["-0", "-c"], &place.tar(&["--sparse"], &members));
    let form = (ImageFormat::LibvirtTarXz, Compression::None);
    let unpacked = place.unpack(form, &packed, ROOMY).expect("unpacks");
    let (want, have) = (place.path("Demo.qcow2"), unpacked);
    assert!(fs_err::read(&want).expect("reads") == fs_err::read(&have).expect("reads"));
    let disk_usage = fs_err::metadata(&have).expect("there").blocks() * 512;
    assert!(disk_usage < 8 << 20, "{disk_usage} bytes of disk for three megabytes of data");
}

#[test]
fn a_tar_without_sparse_members_gets_holes_too() {
    let place = Place::new();
    let packed = place.tar(&[], &place.libvirt_members());
    let target = place.path("target");
    let mut file = File::create(&target).expect("makes");
    let found = disk(&packed[..], &mut file, ROOMY).expect("found");
    assert_eq!(found, FoundDisk { name: "Demo.qcow2".into(), size: 64 << 20 });
    assert!(file.metadata().expect("there").blocks() * 512 < 8 << 20);
}

#[test]
fn members_that_do_not_belong_are_refused() {
    let place = Place::new();
    place.libvirt_members();
    place.write("other.qcow2", b"x");
    place.write("run.sh", b"x");
    place.write("-x.qcow2", b"x");
    fs_err::create_dir(place.path("folder")).expect("makes");
    std::os::unix::fs::symlink("/etc/passwd", place.path("link.qcow2")).expect("links");
    std::fs::hard_link(place.path("Demo.xml"), place.path("HARD")).expect("links");
    let disk_of = |options: &[&str], members: &[&str]| {
        let mut file = File::create(place.path("target")).expect("makes");
        disk(&place.tar(options, members)[..], &mut file, ROOMY)
    };
    for (options, members, part) in [
        (&[][..], &["Demo.qcow2", "other.qcow2"][..], "more than one qcow2"),
        (&[], &["Demo.qcow2", "run.sh"], "`run.sh` does not belong"),
        (&[], &["Demo.xml"], "no qcow2"),
        (&[], &["folder"], "not a plain file name"),
        (&[], &["./Demo.qcow2"], "not a plain file name"),
        (&["--add-file=-x.qcow2"], &[], "not a plain file name"),
        (&["--transform=s,^,../,"], &["Demo.qcow2"], "not a plain file name"),
        (&["-P", "--transform=s,^,/tmp/,"], &["Demo.qcow2"], "not a plain file name"),
        (&[], &["link.qcow2"], "neither a plain file"),
        (&["--hard-dereference"], &["Demo.qcow2", "Demo.xml", "Demo.xml"], "twice"),
        (&[], &["Demo.xml", "HARD"], "neither a plain file"),
        (&["--format=posix", "--sparse"], &["Demo.qcow2"], "not a plain file name"),
    ] {
        let error = disk_of(options, members).expect_err(part);
        assert_eq!(error.kind(), Kind::Untrusted, "{members:?}");
        assert!(error.message().contains(part), "{options:?} {members:?}: {error}");
    }
}

#[test]
fn what_was_cut_off_or_goes_on_is_refused() {
    let place = Place::new();
    let tar = place.tar(&["--sparse"], &place.libvirt_members());
    let mut longer = tar.clone();
    longer.extend_from_slice(b"and more");
    let mut flipped = tar.clone();
    flipped[3] ^= 1;
    for (bytes, part) in [
        (&tar[..100], "cut off"),
        (&tar[..2000], "cut off"),
        (&tar[..0], "cut off"),
        (&longer[..], "something follows"),
        (&flipped[..], "checksum"),
    ] {
        let mut file = File::create(place.path("target")).expect("makes");
        let error = disk(bytes, &mut file, ROOMY).expect_err(part);
        assert!(error.message().contains(part), "{part}: {error}");
    }
}

#[test]
fn every_compression_is_taken_off() {
    let place = Place::new();
    place.sparse("disk");
    let disk = fs_err::read(place.path("disk")).expect("reads");
    for (program, options, compression) in [
        ("xz", &["-0", "-c"][..], Compression::Xz),
        ("zstd", &["-1", "-c"], Compression::Zstd),
        ("gzip", &["-1", "-c"], Compression::Gzip),
    ] {
        let packed = through(program, options, &disk);
        let unpacked =
            place.unpack((ImageFormat::Raw, compression), &packed, ROOMY).expect(program);
        assert!(fs_err::read(&unpacked).expect("reads") == disk, "{program}");
        assert!(fs_err::metadata(&unpacked).expect("there").blocks() * 512 < 8 << 20, "{program}");
        fs_err::remove_file(unpacked).expect("removes");
        let cut = place.unpack((ImageFormat::Raw, compression), &packed[..packed.len() / 2], ROOMY);
        assert_eq!(cut.expect_err("cut off").kind(), Kind::Untrusted, "{program}");
        fs_err::remove_file(place.path("unpacked")).expect("removes");
    }
}

#[test]
fn a_bomb_is_stopped_at_its_limit() {
    let place = Place::new();
    let zeros = through("xz", &["-0", "-c"], &vec![0; 32 << 20]);
    let tight = Limits { bytes: 16 << 20, ..ROOMY };
    let form = (ImageFormat::Raw, Compression::Xz);
    let error = place.unpack(form, &zeros, tight).expect_err("twice as much");
    assert_eq!(error.kind(), Kind::Untrusted);
    fs_err::remove_file(place.path("unpacked")).expect("removes");
    let full = through("xz", &["-0", "-c"], &vec![1; 32 << 20]);
    let error = place
        .unpack(form, &full, Limits { written: 16 << 20, ..ROOMY })
        .expect_err("the disk has less");
    assert_eq!(error.kind(), Kind::HostCannot);
}
