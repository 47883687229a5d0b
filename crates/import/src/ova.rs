//! OVA: a tar archive with the description of a VM (OVF), its disks, and their digests (DMTF DSP0243).

use std::collections::BTreeMap;
use std::io::Read;

use sha2::{Digest, Sha256};

use crate::Result;
use crate::file::Part;

/// The most files of an archive that are looked at.
const MAX_FILES: usize = 1000;

/// The largest manifest.
const MAX_MANIFEST: u64 = 1 << 20;

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 20;

/// The only disk of an archive, whose digest was compared if there is one.
pub(crate) fn disk_of(archive: &Part, tick: &mut dyn FnMut(u64, u64)) -> Result<Part> {
    let mut disks = Vec::new();
    let mut digests = BTreeMap::new();
    let unreadable = |error: std::io::Error| archive.damaged(format!("as an archive: {error}"));
    let mut tar = tar::Archive::new(archive.file());
    for entry in tar.entries_with_seek().map_err(unreadable)?.take(MAX_FILES) {
        let mut entry = entry.map_err(unreadable)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let lower = name.to_lowercase();
        if lower.ends_with(".mf") {
            let mut text = String::new();
            entry.by_ref().take(MAX_MANIFEST).read_to_string(&mut text).map_err(unreadable)?;
            digests = manifest(&text);
        } else if lower.ends_with(".vmdk") {
            disks.push((name, entry.raw_file_position(), entry.size()));
        }
    }
    let [(name, start, len)] = disks.as_slice() else {
        let names: Vec<&str> = disks.iter().take(8).map(|(name, ..)| name.as_str()).collect();
        return Err(match names.is_empty() {
            true => archive.damaged("there is no VMDK in it"),
            false => archive.unsupported(format!("has several disks ({})", names.join(", "))),
        });
    };
    let disk = archive.part(name, *start, *len)?;
    match digests.get(name) {
        Some(expected) if digest(&disk, tick)? != *expected => {
            Err(disk.damaged("its SHA-256 is not that of the manifest"))
        }
        _ => Ok(disk),
    }
}

/// The SHA-256 digests of a manifest, by file; lines are `SHA256(disk.vmdk)= 0123...`.
fn manifest(text: &str) -> BTreeMap<String, String> {
    let digest = |line: &str| {
        let (name, digest) = line.trim().strip_prefix("SHA256(")?.rsplit_once(')')?;
        let digest = digest.trim_start_matches(['=', ' ']).to_lowercase();
        Some((name.to_owned(), digest))
    };
    text.lines().filter_map(digest).collect()
}

fn digest(disk: &Part, tick: &mut dyn FnMut(u64, u64)) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut at = 0;
    while at < disk.len() {
        let len = (disk.len() - at).min(CHUNK as u64);
        hasher.update(disk.bytes("the disk", at, len)?);
        at += len;
        tick(at, disk.len());
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
