//! `manifest.json`: what a snapshot holds, for people and programs to read alone.

use std::time::Duration;

use machine::MachineSpec;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use state::Section;

use super::{MANIFEST, SnapshotError};

/// Newest format of snapshots. Format 1 lacks all fields of [`Manifest`] that have defaults.
const FORMAT: u32 = 2;
/// Key of the checksum, which is over everything else.
const CHECKSUM: &str = "checksum";

/// What a snapshot says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this format.
    pub format: u32,
    /// When it was taken, in seconds since 1970 (UTC).
    pub created: u64,
    /// The engine that executed the guest.
    pub engine: String,
    /// The machine.
    pub machine: MachineSpec,
    /// The guest's CPU; its whole profile is in the section `cpu-profile`.
    pub cpu: CpuEntry,
    /// Guest real time in nanoseconds.
    pub guest_time: u64,
    /// The sections of the file `state`.
    pub sections: Vec<SectionEntry>,
    /// The file `state`.
    pub state: FileEntry,
    /// Nanoseconds of the second in which it was taken.
    #[serde(default)]
    pub created_nanos: u32,
    /// 128 random bits in hexadecimal: tells the snapshot from another of the same name.
    #[serde(default)]
    pub id: String,
    /// What it is for, in the user's words.
    #[serde(default)]
    pub description: String,
    /// The snapshot that the VM had gone on from, in the same tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// The snapshot, in the same tree, that has the pages of memory that are not in this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<BaseEntry>,
    /// The disks whose content is in the snapshot, by index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskEntry>,
}

/// The snapshot that this one is a difference to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseEntry {
    /// Its name.
    pub name: String,
    /// Its `id`.
    pub id: String,
}

/// A disk whose content is in the snapshot, in the file `disk` with its index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskEntry {
    /// Which disk of the machine, from 0.
    pub index: u32,
    /// Bytes of the file.
    pub bytes: u64,
}

/// The guest's CPU, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuEntry {
    /// Name of the profile.
    pub profile: String,
    /// Vendor.
    pub vendor: engine::Vendor,
    /// TSC frequency in kHz.
    pub tsc_khz: u32,
}

/// Size and checksum of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Bytes.
    pub bytes: u64,
    /// CRC-32.
    pub crc32: u32,
}

/// A section of the file `state`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SectionEntry {
    /// Kind of component.
    pub kind: String,
    /// Which one of its kind.
    pub instance: String,
    /// Version of the payload's format.
    pub version: u32,
    /// Bytes of the payload.
    pub bytes: u64,
    /// CRC-32 of the payload.
    pub crc32: u32,
}

impl FileEntry {
    pub(super) fn of(content: &[u8]) -> Self {
        Self { bytes: content.len() as u64, crc32: crc32fast::hash(content) }
    }
}

impl SectionEntry {
    pub(super) fn of(section: &Section) -> Self {
        Self {
            kind: section.kind.clone(),
            instance: section.instance.clone(),
            version: section.version,
            bytes: section.payload.len() as u64,
            crc32: crc32fast::hash(&section.payload),
        }
    }
}

impl Manifest {
    /// A manifest without sections.
    pub(crate) fn new(
        engine: &str,
        machine: &MachineSpec,
        profile: &engine::CpuProfile,
        guest_time: u64,
    ) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = now.unwrap_or_default();
        Self {
            format: FORMAT,
            created: now.as_secs(),
            engine: engine.to_owned(),
            machine: machine.clone(),
            cpu: CpuEntry {
                profile: profile.name().to_owned(),
                vendor: profile.vendor(),
                tsc_khz: profile.tsc_khz(),
            },
            guest_time,
            sections: Vec::new(),
            state: FileEntry::default(),
            created_nanos: now.subsec_nanos(),
            id: String::new(),
            description: String::new(),
            parent: None,
            base: None,
            disks: Vec::new(),
        }
    }

    /// How long ago the snapshot was taken, by the host's wall clock.
    pub(crate) fn age(&self) -> Duration {
        let created = Duration::new(self.created, self.created_nanos.min(999_999_999));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.unwrap_or_default().saturating_sub(created)
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, SnapshotError> {
        let cannot = |e: serde_json::Error| SnapshotError::io("encode", MANIFEST, e);
        let Value::Object(mut map) = serde_json::to_value(self).map_err(cannot)? else {
            return Err(SnapshotError::damaged(MANIFEST, "it is no object"));
        };
        map.insert(CHECKSUM.to_owned(), checksum(&map).into());
        let mut text = serde_json::to_vec_pretty(&map).map_err(cannot)?;
        text.push(b'\n');
        Ok(text)
    }

    pub(super) fn decode(text: &[u8]) -> Result<Self, SnapshotError> {
        let damaged = |e: &dyn std::fmt::Display| SnapshotError::damaged(MANIFEST, e.to_string());
        let mut map: Map<String, Value> = serde_json::from_slice(text).map_err(|e| damaged(&e))?;
        // Before the checksum: a newer format may compute it otherwise.
        let format = map.get("format").and_then(Value::as_u64);
        match format {
            Some(1..=2) => {}
            Some(found) if found > u64::from(FORMAT) => {
                return Err(SnapshotError::Newer { found, known: FORMAT });
            }
            _ => return Err(damaged(&"it has no known format")),
        }
        let listed = map.remove(CHECKSUM).as_ref().and_then(Value::as_u64);
        if listed != Some(checksum(&map).into()) {
            return Err(damaged(&"its checksum does not match"));
        }
        let manifest: Self = serde_json::from_value(Value::Object(map)).map_err(|e| damaged(&e))?;
        let base = manifest.base.iter().map(|base| &base.name);
        match base.chain(&manifest.parent).find(|name| !is_name(name)) {
            Some(name) => Err(damaged(&format!("{name:?} is no name of a snapshot"))),
            None => Ok(manifest),
        }
    }
}

/// Whether `name` can be the name of a snapshot in a tree: one that cannot lead out of it.
pub(super) fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let starts_well = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    starts_well && name.len() <= 63 && name.bytes().all(allowed)
}

/// CRC-32 of the compact form with sorted keys.
fn checksum(map: &Map<String, Value>) -> u32 {
    let sorted: std::collections::BTreeMap<_, _> = map.iter().collect();
    // A map of JSON values always encodes.
    crc32fast::hash(&serde_json::to_vec(&sorted).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let machine = MachineSpec::new(64 << 20);
        let profile =
            engine::CpuProfile::new(engine::Level::V2, engine::Vendor::Amd, 1_000_000, &|_| true);
        Manifest::new("interpreter", &machine, &profile.unwrap(), 123)
    }

    #[test]
    fn round_trip() {
        let manifest = manifest();
        let text = manifest.encode().unwrap();
        assert_eq!(Manifest::decode(&text).unwrap(), manifest);
        assert!(String::from_utf8(text).unwrap().contains("\"memory\": 67108864"));
    }

    #[test]
    fn a_flipped_bit_never_changes_the_meaning() {
        let manifest = manifest();
        let text = manifest.encode().unwrap();
        for bit in 0..text.len() * 8 {
            let mut damaged = text.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // White space between tokens may change into other white space.
            if let Ok(read) = Manifest::decode(&damaged) {
                assert_eq!(read, manifest, "bit {bit}");
            }
        }
    }

    #[test]
    fn truncation_and_newer_formats_are_told_apart() {
        let text = manifest().encode().unwrap();
        for len in 0..text.len() - 2 {
            let error = Manifest::decode(&text[..len]).unwrap_err().to_string();
            assert!(error.contains("manifest.json is damaged"), "{error}");
        }
        let newer = String::from_utf8(text).unwrap().replace("\"format\": 2", "\"format\": 3");
        let error = Manifest::decode(newer.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("format 3 is newer than 2"), "{error}");
    }

    #[test]
    fn names_do_not_lead_out_of_the_tree() {
        for name in ["../other", "/etc", "", ".", "..", ".hidden", "a/b"] {
            let base = BaseEntry { name: name.to_owned(), id: String::new() };
            let text = Manifest { base: Some(base), ..manifest() }.encode().unwrap();
            assert!(Manifest::decode(&text).is_err(), "{name}");
            let text = Manifest { parent: Some(name.to_owned()), ..manifest() }.encode().unwrap();
            assert!(Manifest::decode(&text).is_err(), "{name}");
        }
        let text = Manifest { parent: Some("a.b-1".to_owned()), ..manifest() }.encode().unwrap();
        assert!(Manifest::decode(&text).is_ok());
    }
}
