//! The names of an image's backing files, without opening the image as a disk.
//!
//! For whoever has to know them beforehand: a process that restricts what it can open. Reads the
//! header of qcow2 (QEMU's docs/interop/qcow2.txt) and checks nothing; [`crate::open`] does that.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::check::MAGIC;
use crate::file::{self, Access};
use crate::open::{MAX_CHAIN, beside};
use crate::{Format, ImageOptions};

/// Type of the header extension that names the format of the backing file.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Length of a header of version 2, and the place of the length in later ones.
const HEADER_V2: u64 = 72;
const HEADER_LENGTH: u64 = 100;
/// Longest name of a backing file.
const MAX_NAME: u32 = 1023;
/// More header extensions than any image has.
const MAX_EXTENSIONS: usize = 64;

/// The backing files of the image that `options` name, and theirs, as far as opening the image
/// would follow them: nothing for a raw image, and for one that only its content makes a qcow2
/// image, since its guest may have written that.
pub fn backing_files(options: &ImageOptions) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let by_name = options.path.extension().is_some_and(|extension| extension == "qcow2");
    let meant = match options.format {
        Some(format) => format == Format::Qcow2,
        None => by_name || options.overlay.is_some(),
    };
    let mut next = meant.then(|| options.path.clone());
    while let Some(path) = next.take()
        && found.len() < MAX_CHAIN
    {
        let Some((backing, format)) = backing_of(&path) else { break };
        next = (format == Format::Qcow2).then(|| backing.clone());
        found.push(backing);
    }
    found
}

fn backing_of(path: &Path) -> Option<(PathBuf, Format)> {
    let file = file::open(path, Access { read_only: true, direct: false }).ok()?;
    let mut magic = [0; MAGIC.len()];
    file.read_exact_at(&mut magic, 0).ok()?;
    if magic != MAGIC {
        return None;
    }
    let (at, len) = (u64_at(&file, 8)?, u32_at(&file, 16)?);
    if at == 0 || len == 0 || len > MAX_NAME {
        return None;
    }
    let mut name = vec![0; len as usize];
    file.read_exact_at(&mut name, at).ok()?;
    let name = String::from_utf8(name).ok()?;
    Some((beside(path, &name), backing_format(&file)?))
}

/// The format of the backing file, from the extensions behind the header.
fn backing_format(file: &File) -> Option<Format> {
    let mut at = match u32_at(file, 4)? {
        2 => HEADER_V2,
        _ => u64::from(u32_at(file, HEADER_LENGTH)?),
    };
    for _ in 0..MAX_EXTENSIONS {
        let (kind, len) = (u32_at(file, at)?, u32_at(file, at + 4)?);
        if kind == 0 {
            return None;
        }
        if kind == BACKING_FORMAT {
            let mut name = [0; 8];
            let name = name.get_mut(..len as usize)?;
            file.read_exact_at(name, at + 8).ok()?;
            return Format::from_name(std::str::from_utf8(name).ok()?);
        }
        at = at.checked_add(8 + u64::from(len).next_multiple_of(8))?;
    }
    None
}

fn u32_at(file: &File, at: u64) -> Option<u32> {
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, at).ok()?;
    Some(u32::from_be_bytes(bytes))
}

fn u64_at(file: &File, at: u64) -> Option<u64> {
    Some(u64::from(u32_at(file, at)?) << 32 | u64::from(u32_at(file, at + 4)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::create_qcow2;

    #[test]
    fn a_chain_is_followed_as_far_as_it_would_be_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let make = |name: &str, below: Option<(&str, Format)>| {
            let file = File::create_new(path(name)).unwrap();
            let below = below.map(|(below, format)| (path(below), format));
            let below = below.as_ref().map(|(below, format)| (&**below, *format));
            create_qcow2(&file, name, 1 << 20, below).unwrap();
        };
        make("forged", Some(("secret", Format::Raw)));
        make("middle", Some(("forged", Format::Raw)));
        make("top.qcow2", Some(("middle", Format::Qcow2)));
        let of = |name: &str, format| {
            let options = ImageOptions { path: path(name), format, ..ImageOptions::default() };
            backing_files(&options)
        };
        let chain = vec![path("middle"), path("forged")];
        assert_eq!(of("top.qcow2", None), chain, "what is in a raw image is the guest's");
        assert_eq!(of("forged", None), Vec::<PathBuf>::new());
        assert_eq!(of("forged", Some(Format::Qcow2)), [path("secret")]);
        assert_eq!(of("top.qcow2", Some(Format::Raw)), Vec::<PathBuf>::new());
        assert_eq!(of("missing.qcow2", None), Vec::<PathBuf>::new());
    }
}
