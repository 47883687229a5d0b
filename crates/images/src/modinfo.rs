//! Reads a kernel module's `.modinfo` section: `key=value` strings, each ended
//! by a zero byte, that the module's build has left there (include/linux/
//! module.h in the Linux sources).

use object::read::elf::{FileHeader, SectionHeader};
use object::{Endianness, elf};

/// The keys that loading needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ModInfo {
    /// The modules that must be loaded before, with `_` for `-`.
    pub depends: Vec<String>,
    /// Patterns of the device and service names that the module answers to.
    pub aliases: Vec<String>,
}

/// Reads the section from the module `file`; the reason when it cannot be.
pub(crate) fn read(file: &[u8]) -> Result<ModInfo, String> {
    let section = section(file).map_err(|error| format!("not a 64-bit ELF file: {error}"))?;
    let section = section.ok_or("it has no .modinfo section")?;
    let mut info = ModInfo::default();
    for string in section.split(|&byte| byte == 0) {
        let text = String::from_utf8_lossy(string);
        match text.split_once('=') {
            Some(("depends", names)) => info
                .depends
                .extend(names.split(',').filter(|name| !name.is_empty()).map(canonical_name)),
            Some(("alias", pattern)) => info.aliases.push(pattern.to_owned()),
            _ => {}
        }
    }
    Ok(info)
}

/// A module's name as the kernel reports it: `-` and `_` are the same.
pub(crate) fn canonical_name(name: &str) -> String {
    name.replace('-', "_")
}

fn section(file: &[u8]) -> object::Result<Option<&[u8]>> {
    let header = elf::FileHeader64::<Endianness>::parse(file)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, file)?;
    match sections.section_by_name(endian, b".modinfo") {
        Some((_, section)) => section.data(endian, file).map(Some),
        None => Ok(None),
    }
}

/// A minimal module file for tests: an ELF header, `.modinfo` and its names.
#[cfg(test)]
pub(crate) fn sample_module(modinfo: &str) -> Vec<u8> {
    const HEADER: usize = 64;
    let strings = b"\0.modinfo\0.shstrtab\0";
    let info = modinfo.as_bytes();
    let table = HEADER + info.len() + strings.len();
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend(1u16.to_le_bytes()); // relocatable
    file.extend(62u16.to_le_bytes()); // x86-64
    file.extend(1u32.to_le_bytes());
    file.extend([0; 16]); // no entry point, no program headers
    file.extend((table as u64).to_le_bytes());
    file.extend(0u32.to_le_bytes());
    for half in [HEADER as u16, 0, 0, 64, 3, 2] {
        file.extend(half.to_le_bytes());
    }
    file.extend(info);
    file.extend(strings);
    file.extend([0; 64]);
    let mut section = |name: u32, kind: u32, offset: usize, size: usize| {
        file.extend(name.to_le_bytes());
        file.extend(kind.to_le_bytes());
        file.extend([0; 16]);
        file.extend((offset as u64).to_le_bytes());
        file.extend((size as u64).to_le_bytes());
        file.extend([0; 24]);
    };
    section(1, 1, HEADER, info.len());
    section(10, 3, HEADER + info.len(), strings.len());
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_dependencies_and_aliases() {
        let file = sample_module(
            "license=GPL\0alias=virtio:d00000001v*\0depends=virtio-ring,virtio\0alias=x=y\0",
        );
        let info = read(&file).expect("modinfo");
        assert_eq!(info.depends, ["virtio_ring", "virtio"]);
        assert_eq!(info.aliases, ["virtio:d00000001v*", "x=y"]);
    }

    #[test]
    fn no_dependencies_are_no_names() {
        assert_eq!(read(&sample_module("depends=\0")).expect("modinfo"), ModInfo::default());
    }

    #[test]
    fn what_is_not_a_module_gives_a_reason() {
        let file = sample_module("depends=\0");
        assert!(read(b"").is_err());
        assert!(read(b"\x7fELF").is_err());
        for length in 0..file.len() {
            // Truncation anywhere is an error or an empty section, never a panic.
            if let Ok(info) = read(&file[..length]) {
                assert_eq!(info, ModInfo::default());
            }
        }
    }
}
