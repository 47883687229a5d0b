//! The multiboot information (Multiboot Specification 0.6.96, 3.3): one block of the structure,
//! the memory map, the module list and the strings.

use super::Placed;
use crate::MemoryMap;
use crate::map::BASE_MEMORY_KIB;

/// Bytes of the structure up to where VBE information would begin, padded to 8.
const STRUCTURE: u64 = 72;
/// Bytes of an entry of the memory map with the size in front of it, which does not count itself.
const MAP_ENTRY: u64 = 24;
/// Bytes of an entry of the module list.
const MODULE_ENTRY: u64 = 16;
/// What `boot_loader_name` says.
const LOADER_NAME: &str = "Ringfence";

/// Which fields of the structure are there: memory sizes, command line, modules, memory map, name
/// of the boot loader.
const FLAGS: u32 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;

/// Bytes of the block.
pub(super) fn len(map: &MemoryMap, cmdline: &str, modules: &[Placed]) -> u64 {
    let strings: usize = modules.iter().map(|m| m.string.len() + 1).sum();
    let strings = strings + cmdline.len() + LOADER_NAME.len() + 2;
    strings_offset(map, modules) + strings as u64
}

/// Where the strings begin in the block.
fn strings_offset(map: &MemoryMap, modules: &[Placed]) -> u64 {
    STRUCTURE + map.e820().len() as u64 * MAP_ENTRY + modules.len() as u64 * MODULE_ENTRY
}

/// The block as it is at `at`; all of it lies below 4 GiB.
pub(super) fn build(at: u64, map: &MemoryMap, cmdline: &str, modules: &[Placed]) -> Vec<u8> {
    let mut strings = Strings { at: at + strings_offset(map, modules), bytes: Vec::new() };
    let mut entries = Vec::new();
    let memory_map = at + STRUCTURE;
    for entry in map.e820() {
        entries.extend(((MAP_ENTRY - 4) as u32).to_le_bytes());
        entries.extend(entry.addr.to_le_bytes());
        entries.extend(entry.len.to_le_bytes());
        // The types have the numbers of the ACPI address range types.
        entries.extend((entry.kind as u32).to_le_bytes());
    }
    let map_len = entries.len() as u32;
    let module_list = memory_map + u64::from(map_len);
    for module in modules {
        let string = strings.add(&module.string);
        for word in [module.start as u32, module.end as u32, string, 0] {
            entries.extend(word.to_le_bytes());
        }
    }
    let upper_kib = (map.low_end() - MemoryMap::HIGH_MEMORY) >> 10;
    let fields: [(usize, u32); 9] = [
        (0, FLAGS),
        (4, u32::from(BASE_MEMORY_KIB)),
        (8, upper_kib as u32),
        (16, strings.add(cmdline)),
        (20, modules.len() as u32),
        (24, if modules.is_empty() { 0 } else { module_list as u32 }),
        (44, map_len),
        (48, memory_map as u32),
        (64, strings.add(LOADER_NAME)),
    ];
    let mut block = vec![0; STRUCTURE as usize];
    for (offset, value) in fields {
        block[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }
    block.extend(entries);
    block.extend(strings.bytes);
    debug_assert_eq!(block.len() as u64, len(map, cmdline, modules));
    block
}

/// Strings, each ended by a zero.
struct Strings {
    /// Address of the first.
    at: u64,
    bytes: Vec<u8>,
}

impl Strings {
    /// Adds one; returns its address.
    fn add(&mut self, string: &str) -> u32 {
        let address = self.at + self.bytes.len() as u64;
        self.bytes.extend(string.as_bytes());
        self.bytes.push(0);
        address as u32
    }
}
