//! `manifest.json`: what a snapshot holds, for people and programs to read alone.

use machine::MachineSpec;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use state::Section;

use super::{MANIFEST, SnapshotError};

/// Newest format of snapshots.
const FORMAT: u32 = 1;
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
        Self {
            format: FORMAT,
            created: now.map_or(0, |age| age.as_secs()),
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
        }
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
            Some(1) => {}
            Some(found) if found > u64::from(FORMAT) => {
                return Err(SnapshotError::Newer { found, known: FORMAT });
            }
            _ => return Err(damaged(&"it has no known format")),
        }
        let listed = map.remove(CHECKSUM).as_ref().and_then(Value::as_u64);
        if listed != Some(checksum(&map).into()) {
            return Err(damaged(&"its checksum does not match"));
        }
        serde_json::from_value(Value::Object(map)).map_err(|e| damaged(&e))
    }
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
        let text = manifest().encode().unwrap();
        assert_eq!(Manifest::decode(&text).unwrap(), manifest());
        assert!(String::from_utf8(text).unwrap().contains("\"memory\": 67108864"));
    }

    #[test]
    fn a_flipped_bit_never_changes_the_meaning() {
        let text = manifest().encode().unwrap();
        for bit in 0..text.len() * 8 {
            let mut damaged = text.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // White space between tokens may change into other white space.
            if let Ok(read) = Manifest::decode(&damaged) {
                assert_eq!(read, manifest(), "bit {bit}");
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
        let newer = String::from_utf8(text).unwrap().replace("\"format\": 1", "\"format\": 2");
        let error = Manifest::decode(newer.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("format 2 is newer than 1"), "{error}");
    }
}
