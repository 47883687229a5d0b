use std::fs::File;
use std::os::unix::fs::FileExt;

use super::*;
use crate::create_qcow2;

/// An image of 1 MiB with the first cluster of data written; places in it.
struct Image {
    file: File,
    l1: u64,
    l2: u64,
    refcounts: u64,
}

impl Image {
    fn new() -> Self {
        let file = tempfile::tempfile().unwrap();
        create_qcow2(&file, "disk.qcow2", 1 << 20, None).unwrap();
        let entry = |file: &File, at: u64| {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, at).unwrap();
            u64::from_be_bytes(bytes)
        };
        let (l1, refcounts) = (entry(&file, 40), entry(&file, 48));
        // A level 2 table and a cluster of data behind what is there.
        let end = file::size(&file).unwrap().next_multiple_of(1 << 16);
        file.set_len(end + (2 << 16)).unwrap();
        let image = Self { file, l1, l2: end, refcounts };
        image.put(l1, COPIED | end);
        image.put(end, COPIED | (end + (1 << 16)));
        image
    }

    fn put(&self, at: u64, value: u64) {
        self.file.write_all_at(&value.to_be_bytes(), at).unwrap();
    }

    fn check(&self) -> Result<u64, String> {
        check_qcow2(&self.file, "disk.qcow2").map_err(|error| error.to_string())
    }
}

#[test]
fn an_image_that_makes_sense_is_accepted() {
    assert_eq!(Image::new().check(), Ok(1 << 16));
}

#[test]
fn tables_outside_the_file_or_in_each_other_are_refused_by_name() {
    let (cluster, image) = (1 << 16, Image::new());
    let cases: [(&str, u64, u64); 9] = [
        ("level 1 table", 40, 1 << 40),
        ("level 1 table", 40, image.l1 + 512),
        ("level 1 table", 40, image.refcounts),
        ("refcount table", 48, 1 << 50),
        ("a refcount block", image.refcounts, image.l1),
        ("a level 2 table", image.l1, COPIED | image.refcounts),
        ("a level 2 table", image.l1, COPIED | (100 * cluster)),
        ("a cluster of data", image.l2, COPIED | image.l1),
        ("a cluster of data", image.l2 + 8, COPIED | 1 << 45),
    ];
    for (what, at, value) in cases {
        let image = Image::new();
        image.put(at, value);
        let error = image.check().expect_err(what);
        assert!(error.contains(what) && error.contains("disk.qcow2"), "{what}: {error}");
    }
    image.put(image.l2 + 8, COPIED | (image.l2 + cluster));
    assert!(image.check().unwrap_err().contains("used twice"));
}

#[test]
fn headers_without_sense_are_refused() {
    let put32 = |image: &Image, at: u64, value: u32| {
        image.file.write_all_at(&value.to_be_bytes(), at).unwrap();
    };
    for (at, value, named) in [
        (0, 0x5146_4900, "begin"),
        (4, 4, "version 4"),
        (20, 8, "clusters"),
        (20, 64, "clusters"),
        (32, 1, "encrypted"),
        (36, 0, "too small"),
        (36, u32::MAX, "too large"),
        (56, u32::MAX, "too large"),
        (76, 1, "not closed"),
        (76, 2, "corrupt"),
        (76, 4, "another file"),
        (76, 16, "extended"),
        (72, 1 << 31, "later version"),
        (96, 7, "refcounts"),
    ] {
        let image = Image::new();
        put32(&image, at, value);
        let error = image.check().expect_err(named);
        assert!(error.contains(named), "{at}: {error}");
    }
    for len in [0, 4, 71, 103, 1 << 16, (1 << 16) + 5] {
        let image = Image::new();
        image.file.set_len(len).unwrap();
        assert!(image.check().is_err(), "{len}");
    }
}
