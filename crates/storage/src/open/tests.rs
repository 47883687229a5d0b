use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;

use backend::{Buffer, DiskOperation, DiskRequest};
use tempfile::TempDir;

use super::*;

const SIZE: u64 = 4 << 20;

fn options(path: &Path) -> ImageOptions {
    ImageOptions { path: path.to_owned(), ..ImageOptions::default() }
}

fn opened(options: &ImageOptions) -> Arc<dyn Disk> {
    open(options, Arc::new(|name: &str| panic!("{name} is full"))).unwrap().disk
}

fn error(options: &ImageOptions) -> String {
    match open(options, Arc::new(|_: &str| ())) {
        Ok(_) => panic!("{} was opened", options.path.display()),
        Err(error) => error.to_string(),
    }
}

fn raw(folder: &TempDir, name: &str) -> PathBuf {
    let path = folder.path().join(name);
    File::create(&path).unwrap().set_len(SIZE).unwrap();
    path
}

fn qcow2(folder: &TempDir, name: &str, backing: Option<(&Path, Format)>) -> PathBuf {
    let path = folder.path().join(name);
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    create_qcow2(&file, name, SIZE, backing).unwrap();
    path
}

fn byte(disk: &dyn Disk, offset: u64) -> u8 {
    let mut read = [0];
    disk.read(offset, &mut read).unwrap();
    read[0]
}

#[test]
fn every_kind_of_disk_reads_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let base = raw(&folder, "base.img");
    let overlay = Some(Overlay::File(folder.path().join("overlay.qcow2")));
    let kinds = [
        options(&raw(&folder, "raw.img")),
        ImageOptions { direct: true, ..options(&raw(&folder, "direct.img")) },
        options(&qcow2(&folder, "image.qcow2", None)),
        ImageOptions { direct: true, ..options(&qcow2(&folder, "direct.qcow2", None)) },
        ImageOptions { overlay, ..options(&base) },
    ];
    for kind in kinds {
        let disk = opened(&kind);
        assert_eq!((disk.len(), disk.is_read_only()), (SIZE, false));
        let (sender, receiver) = channel();
        for number in 0..600_u64 {
            let mut buffer = Buffer::new(4096);
            buffer.fill((number + 1) as u8);
            let (operation, offset) = (DiskOperation::Write, number * 4096);
            let sender = sender.clone();
            let request = DiskRequest { operation, offset, len: 4096, buffer };
            disk.submit(request, Box::new(move |_, result, _| sender.send(result).unwrap()));
        }
        disk.commit();
        (0..600).for_each(|_| receiver.recv().unwrap().unwrap());
        disk.flush().unwrap();
        disk.write_zeroes(0, 4096, true).unwrap();
        disk.write_zeroes(4096, 4096, false).unwrap();
        disk.discard(2 * 4096, 65536).unwrap();
        drop(disk);
        let disk = opened(&kind);
        for number in 20..600 {
            let operation = DiskOperation::Read;
            let (offset, buffer) = (number * 4096, Buffer::new(4096));
            let sender = sender.clone();
            let request = DiskRequest { operation, offset, len: 4096, buffer };
            let check = move |request: DiskRequest, result: std::io::Result<()>, _| {
                result.unwrap();
                assert!(request.buffer.iter().all(|byte| *byte == (number + 1) as u8));
                sender.send(Ok(())).unwrap();
            };
            disk.submit(request, Box::new(check));
        }
        disk.commit();
        (20..600).for_each(|_| receiver.recv().unwrap().unwrap());
        let mut start = Buffer::new(8192);
        disk.read(0, &mut start).unwrap();
        assert!(start.iter().all(|byte| *byte == 0), "{kind:?}");
        assert!(disk.write(SIZE, &start).is_err() && disk.read(SIZE, &mut start).is_err());
    }
    assert!(std::fs::read(&base).unwrap().iter().all(|byte| *byte == 0), "the base was written");
}

#[test]
fn a_discard_spares_what_is_beside_it() {
    const CLUSTER: u64 = 65536;
    let folder = tempfile::tempdir().unwrap();
    let base = raw(&folder, "base.img");
    opened(&options(&base)).write(0, &[0xaa; SIZE as usize]).unwrap();
    let overlay = Some(Overlay::File(folder.path().join("overlay.qcow2")));
    let disk = opened(&ImageOptions { overlay, ..options(&base) });
    disk.write(CLUSTER, &[0xbb; 2 * CLUSTER as usize]).unwrap();
    // Two clusters of the overlay go, and the ones around them come into it, in part zero: they may
    // get the place of those.
    disk.discard(CLUSTER - 4096, 2 * CLUSTER + 2 * 4096).unwrap();
    for offset in [0, CLUSTER - 4097, 3 * CLUSTER + 4096, 4 * CLUSTER - 1] {
        assert_eq!(byte(&*disk, offset), 0xaa, "{offset}");
    }
    for offset in [CLUSTER - 4096, CLUSTER, 2 * CLUSTER, 3 * CLUSTER, 3 * CLUSTER + 4095] {
        assert_eq!(byte(&*disk, offset), 0, "{offset}");
    }
}

#[test]
fn discarded_space_is_free_again() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    for path in [raw(&folder, "raw.img"), qcow2(&folder, "image.qcow2", None)] {
        let disk = opened(&options(&path));
        disk.write(0, &vec![7; SIZE as usize]).unwrap();
        disk.flush().unwrap();
        let before = path.metadata().unwrap().blocks();
        disk.discard(0, SIZE / 2).unwrap();
        disk.write_zeroes(SIZE / 2, SIZE / 4, true).unwrap();
        disk.flush().unwrap();
        let after = path.metadata().unwrap().blocks();
        assert!(after < before / 2, "{}: {before} blocks, then {after}", path.display());
    }
}

#[test]
fn a_temporary_overlay_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let base = raw(&folder, "base.img");
    let kind = ImageOptions { overlay: Some(Overlay::Temporary), ..options(&base) };
    let both = [opened(&kind), opened(&kind)];
    both[0].write(100, &[5]).unwrap();
    assert_eq!((byte(&*both[0], 100), byte(&*both[1], 100)), (5, 0));
    assert!(error(&options(&base)).contains("base.img is in use"), "the base is locked");
    drop(both);
    assert_eq!(byte(&*opened(&options(&base)), 100), 0);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn an_overlay_belongs_to_its_base() {
    let folder = tempfile::tempdir().unwrap();
    let (base, other) = (raw(&folder, "base.img"), raw(&folder, "other.img"));
    let overlay = Some(Overlay::File(folder.path().join("o")));
    let kind = ImageOptions { overlay: overlay.clone(), ..options(&base) };
    opened(&kind).write(0, &[9]).unwrap();
    assert_eq!(byte(&*opened(&kind), 0), 9);
    let disk = opened(&kind);
    assert!(error(&kind).contains("in use"));
    drop(disk);
    let text = error(&ImageOptions { overlay, ..options(&other) });
    assert!(text.contains("base.img, not of") && text.contains("other.img"), "{text}");
    let text = error(&ImageOptions { overlay: Some(Overlay::File(base)), ..kind });
    assert!(text.contains("base.img"), "{text}");
}

#[test]
fn chains_are_followed_locked_and_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let base = raw(&folder, "base.img");
    opened(&options(&base)).write(0, b"base").unwrap();
    let mut top = (base.clone(), Format::Raw);
    for number in 0..MAX_CHAIN {
        let name = format!("{number}.qcow2");
        let backing = (Path::new(top.0.file_name().unwrap()), top.1);
        top = (qcow2(&folder, &name, Some(backing)), Format::Qcow2);
    }
    let disk = opened(&options(&top.0));
    assert_eq!(byte(&*disk, 0), b'b');
    for used in [base, folder.path().join("7.qcow2")] {
        assert!(error(&options(&used)).contains("in use"), "{}", used.display());
    }
    drop(disk);
    let one_more = qcow2(&folder, "more.qcow2", Some((&top.0, Format::Qcow2)));
    assert!(error(&options(&one_more)).contains("more than 32"));
}

#[test]
fn a_chain_that_bites_its_tail_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let a = qcow2(&folder, "a.qcow2", Some((Path::new("b.qcow2"), Format::Qcow2)));
    qcow2(&folder, "b.qcow2", Some((Path::new("a.qcow2"), Format::Qcow2)));
    let own = qcow2(&folder, "own.qcow2", Some((Path::new("own.qcow2"), Format::Qcow2)));
    for path in [a, own] {
        let text = error(&ImageOptions { read_only: true, ..options(&path) });
        assert!(text.contains("its own backing file"), "{text}");
        assert!(error(&options(&path)).contains(".qcow2"));
    }
}

#[test]
fn a_guest_cannot_make_its_disk_read_other_files() {
    let folder = tempfile::tempdir().unwrap();
    let secret = raw(&folder, "secret");
    let forged = qcow2(&folder, "disk.img", Some((&secret, Format::Raw)));
    let text = error(&options(&forged));
    assert!(text.contains("secret") && text.contains("format=qcow2"), "{text}");
    let meant = ImageOptions { format: Some(Format::Qcow2), ..options(&forged) };
    assert_eq!(opened(&meant).len(), SIZE);
    let as_raw = ImageOptions { format: Some(Format::Raw), ..options(&forged) };
    assert_eq!(byte(&*opened(&as_raw), 0), b'Q');
}

#[test]
fn what_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.img");
    assert!(error(&options(&missing)).contains("missing.img"));
    let top = qcow2(&folder, "top.qcow2", Some((Path::new("gone.img"), Format::Raw)));
    assert!(error(&options(&top)).contains("gone.img"));
    let readable = raw(&folder, "readable.img");
    let disk = opened(&ImageOptions { read_only: true, ..options(&readable) });
    assert!(disk.is_read_only() && disk.write(0, &[1]).is_err());
}

#[test]
fn a_full_host_is_told_and_the_request_fails_with_it() {
    // The one file of a Linux host that is always full.
    let full = File::options().write(true).open("/dev/full").unwrap();
    let failure = std::io::Write::write(&mut &full, &[0]).unwrap_err();
    assert_eq!(failure.kind(), ErrorKind::StorageFull);
    struct FullDisk;
    impl Disk for FullDisk {
        fn len(&self) -> u64 {
            SIZE
        }
        fn is_read_only(&self) -> bool {
            false
        }
        fn read(&self, _: u64, _: &mut [u8]) -> std::io::Result<()> {
            Ok(())
        }
        fn write(&self, _: u64, _: &[u8]) -> std::io::Result<()> {
            Err(ErrorKind::StorageFull.into())
        }
        fn flush(&self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let told = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&told);
    let disk = Configured {
        disk: Arc::new(FullDisk),
        name: "full.img".into(),
        serial: Some("serial".to_owned()),
        limit: RateLimit::default(),
        when_full: Arc::new(move |name: &str| {
            assert_eq!(name, "full.img");
            count.fetch_add(1, Ordering::SeqCst);
        }),
    };
    assert_eq!(disk.serial(), Some("serial"));
    for operation in [DiskOperation::Read, DiskOperation::Write, DiskOperation::Flush] {
        let request = DiskRequest { operation, offset: 0, len: 512, buffer: Buffer::new(512) };
        let is_full = operation == DiskOperation::Write;
        disk.submit(request, Box::new(move |_, result, _| assert_eq!(result.is_err(), is_full)));
    }
    assert_eq!(told.load(Ordering::SeqCst), 1);
}
