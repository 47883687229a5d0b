//! The container of sections: the file `state` of a snapshot, the body of a migration stream.
//!
//! Layout, little-endian: magic (8 bytes), format version (u32), number of sections (u32); per
//! section kind length (u16), instance length (u16), version (u32), payload length (u32), CRC-32
//! of kind, instance, version and payload (u32), then the three byte strings; at the end the
//! CRC-32 of all section checksums (u32), so that a truncated archive never passes for a shorter
//! one.

use std::collections::BTreeSet;
use std::io::{Read, Write};

use crate::{Saved, Section, StateError};

const MAGIC: [u8; 8] = *b"RFSTATE\n";
const FORMAT: u32 = 1;
/// Bounds on what a file may claim, far above what a machine saves.
const MAX_SECTIONS: u32 = 65_536;
const MAX_NAME: u16 = 256;
const MAX_PAYLOAD: u32 = 64 << 20;

/// A set of sections, in order, each kind and instance once.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Archive {
    sections: Vec<Section>,
}

impl Archive {
    /// An archive without sections.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a section.
    ///
    /// # Errors
    /// [`StateError::Duplicate`] when one of the same kind and instance is there.
    pub fn push(&mut self, section: Section) -> Result<(), StateError> {
        if self.position(&section.kind, &section.instance).is_some() {
            return Err(StateError::Duplicate { section: section.name() });
        }
        self.sections.push(section);
        Ok(())
    }

    /// The sections that are left, in order.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// Takes the section `kind/instance` out.
    ///
    /// # Errors
    /// [`StateError::Missing`].
    pub fn take(&mut self, kind: &str, instance: &str) -> Result<Section, StateError> {
        match self.position(kind, instance) {
            Some(at) => Ok(self.sections.remove(at)),
            None => Err(StateError::Missing { section: format!("{kind}/{instance}") }),
        }
    }

    /// Takes the section of `T` and `instance` out and decodes it.
    ///
    /// # Errors
    /// [`StateError::Missing`] or what [`Section::decode`] says.
    pub fn take_decoded<T: Saved>(&mut self, instance: &str) -> Result<T, StateError> {
        self.take(T::KIND, instance)?.decode()
    }

    /// Ends a restore: every section must have been taken.
    ///
    /// # Errors
    /// [`StateError::Leftover`] naming the first that was not.
    pub fn finish(self) -> Result<(), StateError> {
        match self.sections.first() {
            None => Ok(()),
            Some(section) => Err(StateError::Leftover { section: section.name() }),
        }
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// [`StateError::Io`]; [`StateError::Archive`] when a section exceeds the format's bounds.
    pub fn write_to(&self, mut out: impl Write) -> Result<(), StateError> {
        let count = u32::try_from(self.sections.len()).ok().filter(|&n| n <= MAX_SECTIONS);
        let count = count.ok_or_else(|| damaged("too many sections"))?;
        out.write_all(&MAGIC)?;
        out.write_all(&FORMAT.to_le_bytes())?;
        out.write_all(&count.to_le_bytes())?;
        let mut total = crc32fast::Hasher::new();
        for section in &self.sections {
            let crc = checksum(section);
            total.update(&crc.to_le_bytes());
            out.write_all(&length::<u16>(&section.kind, MAX_NAME)?.to_le_bytes())?;
            out.write_all(&length::<u16>(&section.instance, MAX_NAME)?.to_le_bytes())?;
            out.write_all(&section.version.to_le_bytes())?;
            out.write_all(&length::<u32>(&section.payload, MAX_PAYLOAD)?.to_le_bytes())?;
            out.write_all(&crc.to_le_bytes())?;
            out.write_all(section.kind.as_bytes())?;
            out.write_all(section.instance.as_bytes())?;
            out.write_all(&section.payload)?;
        }
        out.write_all(&total.finalize().to_le_bytes())?;
        Ok(())
    }

    /// Reads an archive to its end; what follows in `input` is not touched.
    ///
    /// # Errors
    /// [`StateError::Archive`] naming what is damaged, [`StateError::Io`].
    pub fn read_from(mut input: impl Read) -> Result<Self, StateError> {
        if bytes::<8>(&mut input, "magic")? != MAGIC {
            return Err(damaged("this is no Ringfence state file"));
        }
        let format = u32::from_le_bytes(bytes(&mut input, "header")?);
        if format > FORMAT {
            return Err(damaged(format!(
                "format {format} is newer than {FORMAT}, the newest this Ringfence reads"
            )));
        }
        if format == 0 {
            return Err(damaged("format 0 never was"));
        }
        let count = u32::from_le_bytes(bytes(&mut input, "header")?);
        if count > MAX_SECTIONS {
            return Err(damaged(format!("{count} sections claimed, at most {MAX_SECTIONS}")));
        }
        let mut archive = Self::new();
        let mut names = BTreeSet::new();
        let mut total = crc32fast::Hasher::new();
        for index in 0..count {
            let (section, crc) = read_section(&mut input, index)?;
            total.update(&crc.to_le_bytes());
            if !names.insert((section.kind.clone(), section.instance.clone())) {
                return Err(StateError::Duplicate { section: section.name() });
            }
            archive.sections.push(section);
        }
        if u32::from_le_bytes(bytes(&mut input, "end mark")?) != total.finalize() {
            return Err(damaged("the end mark does not match the sections"));
        }
        Ok(archive)
    }

    fn position(&self, kind: &str, instance: &str) -> Option<usize> {
        self.sections.iter().position(|s| s.kind == kind && s.instance == instance)
    }
}

fn damaged(cause: impl Into<String>) -> StateError {
    StateError::Archive { cause: cause.into() }
}

fn length<T: TryFrom<usize> + PartialOrd + Copy>(
    data: impl AsRef<[u8]>,
    max: T,
) -> Result<T, StateError> {
    T::try_from(data.as_ref().len())
        .ok()
        .filter(|n| *n <= max)
        .ok_or_else(|| damaged("a section is too large"))
}

fn checksum(section: &Section) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(section.kind.as_bytes());
    hasher.update(section.instance.as_bytes());
    hasher.update(&section.version.to_le_bytes());
    hasher.update(&section.payload);
    hasher.finalize()
}

fn read_section(input: &mut impl Read, index: u32) -> Result<(Section, u32), StateError> {
    let what = format!("section {index}");
    let kind_len = u16::from_le_bytes(bytes(input, &what)?);
    let instance_len = u16::from_le_bytes(bytes(input, &what)?);
    let version = u32::from_le_bytes(bytes(input, &what)?);
    let payload_len = u32::from_le_bytes(bytes(input, &what)?);
    let crc = u32::from_le_bytes(bytes(input, &what)?);
    if kind_len > MAX_NAME || instance_len > MAX_NAME || payload_len > MAX_PAYLOAD {
        return Err(damaged(format!("{what} claims an impossible size")));
    }
    let kind = text(input, u32::from(kind_len), &what)?;
    let instance = text(input, u32::from(instance_len), &what)?;
    let payload = exactly(input, payload_len, &what)?;
    let section = Section { kind, instance, version, payload };
    if checksum(&section) != crc {
        return Err(damaged(format!("section {} does not match its checksum", section.name())));
    }
    Ok((section, crc))
}

fn bytes<const N: usize>(input: &mut impl Read, what: &str) -> Result<[u8; N], StateError> {
    let mut buffer = [0; N];
    input.read_exact(&mut buffer).map_err(|e| truncated(e, what))?;
    Ok(buffer)
}

/// Reads `len` bytes without trusting `len` for the allocation.
fn exactly(input: &mut impl Read, len: u32, what: &str) -> Result<Vec<u8>, StateError> {
    let mut data = Vec::new();
    input.take(u64::from(len)).read_to_end(&mut data)?;
    if data.len() as u64 != u64::from(len) {
        return Err(damaged(format!("truncated in {what}")));
    }
    Ok(data)
}

fn text(input: &mut impl Read, len: u32, what: &str) -> Result<String, StateError> {
    String::from_utf8(exactly(input, len, what)?)
        .map_err(|_| damaged(format!("the name of {what} is not text")))
}

fn truncated(error: std::io::Error, what: &str) -> StateError {
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        damaged(format!("truncated in {what}"))
    } else {
        StateError::Io(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Archive {
        let mut archive = Archive::new();
        for (kind, n) in [("pit", 1u8), ("pic", 40), ("vcpu", 200)] {
            archive
                .push(Section {
                    kind: kind.into(),
                    instance: "0".into(),
                    version: 1,
                    payload: vec![n; usize::from(n)],
                })
                .unwrap();
        }
        archive
    }

    fn encoded() -> Vec<u8> {
        let mut out = Vec::new();
        sample().write_to(&mut out).unwrap();
        out
    }

    #[test]
    fn round_trip() {
        assert_eq!(Archive::read_from(&encoded()[..]).unwrap(), sample());
    }

    #[test]
    fn every_truncation_is_an_error() {
        let file = encoded();
        for len in 0..file.len() {
            assert!(Archive::read_from(&file[..len]).is_err(), "length {len} passed");
        }
    }

    #[test]
    fn every_flipped_bit_is_an_error() {
        let file = encoded();
        for bit in 0..file.len() * 8 {
            let mut damaged = file.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Archive::read_from(&damaged[..]).is_err(), "bit {bit} passed");
        }
    }

    #[test]
    fn leftovers_and_missing_sections_are_named() {
        let mut archive = sample();
        assert!(archive.take("rtc", "0").unwrap_err().to_string().contains("rtc/0"));
        archive.take("pit", "0").unwrap();
        assert!(archive.finish().unwrap_err().to_string().contains("pic/0"));
    }

    #[test]
    fn a_section_is_there_once() {
        let mut archive = sample();
        let twice = archive.sections()[0].clone();
        assert!(matches!(archive.push(twice), Err(StateError::Duplicate { .. })));
    }
}
