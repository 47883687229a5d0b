//! Partition tables: MBR with extended partitions, GPT (UEFI 2.10, chapter 5).

use std::io;

use crate::source::Source;

/// Bytes of a sector of an MBR, and of the blocks of a GPT here.
const SECTOR: u64 = 512;

/// The most partitions of a table that are looked at.
const MAX_PARTITIONS: usize = 128;

/// Partition types of an MBR: protective for a GPT, and those that hold further tables.
const PROTECTIVE: u8 = 0xee;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// A partition, or a disk as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    /// As Linux and GRUB count them, from 1; 0 for the whole disk.
    pub number: u32,
    /// First byte on the disk.
    pub start: u64,
    /// Bytes, at least one; all on the disk.
    pub len: u64,
}

/// The partitions of a disk that lie on it; the whole disk where there is no table.
pub(crate) fn read(source: &Source) -> io::Result<Vec<Partition>> {
    let whole = || vec![Partition { number: 0, start: 0, len: source.len() }];
    let mut sector = [0; SECTOR as usize];
    source.read(0, &mut sector)?;
    if sector[510..] != [0x55, 0xaa] {
        return Ok(whole());
    }
    let entries = mbr_entries(&sector);
    if entries.iter().any(|entry| entry.kind == PROTECTIVE) {
        return gpt(source).map(|found| found.unwrap_or_else(whole));
    }
    let mut found = Vec::new();
    for (number, entry) in (1..).zip(&entries) {
        if EXTENDED.contains(&entry.kind) {
            logical(source, u64::from(entry.start), &mut found)?;
        } else if entry.kind != 0 {
            add(source, &mut found, number, u64::from(entry.start), u64::from(entry.sectors));
        }
    }
    // The boot sector of a file system ends like that, too.
    if found.is_empty() { Ok(whole()) } else { Ok(found) }
}

/// An entry of an MBR.
#[derive(Clone, Copy)]
struct MbrEntry {
    kind: u8,
    start: u32,
    sectors: u32,
}

fn mbr_entries(sector: &[u8; SECTOR as usize]) -> [MbrEntry; 4] {
    [446, 462, 478, 494].map(|at| MbrEntry {
        kind: sector[at + 4],
        start: u32_at(sector, at + 8),
        sectors: u32_at(sector, at + 12),
    })
}

/// Follows the chain of tables in the extended partition at the sector `base`. Logical partitions
/// have numbers from 5 on.
fn logical(source: &Source, base: u64, found: &mut Vec<Partition>) -> io::Result<()> {
    let mut table = base;
    for number in 5..5 + MAX_PARTITIONS as u32 {
        let mut sector = [0; SECTOR as usize];
        if table * SECTOR + SECTOR > source.len() {
            break;
        }
        source.read(table * SECTOR, &mut sector)?;
        let [own, next, ..] = mbr_entries(&sector);
        if sector[510..] != [0x55, 0xaa] {
            break;
        }
        if own.kind != 0 {
            add(source, found, number, table + u64::from(own.start), u64::from(own.sectors));
        }
        if !EXTENDED.contains(&next.kind) || next.start == 0 {
            break;
        }
        table = base + u64::from(next.start);
    }
    Ok(())
}

/// The partitions of a GPT, or `None` where its header is none.
fn gpt(source: &Source) -> io::Result<Option<Vec<Partition>>> {
    let mut header = [0; SECTOR as usize];
    source.read(SECTOR, &mut header)?;
    let (table, count, size) =
        (u64_at(&header, 72), u32_at(&header, 80), u32_at(&header, 84) as usize);
    if &header[..8] != b"EFI PART" || !(128..=4096).contains(&size) {
        return Ok(None);
    }
    let count = (count as usize).min(MAX_PARTITIONS);
    let Some(at) = table.checked_mul(SECTOR) else { return Ok(None) };
    let mut entries = vec![0; count * size];
    if source.read(at, &mut entries).is_err() {
        return Ok(None);
    }
    let mut found = Vec::new();
    for (number, entry) in (1..).zip(entries.chunks_exact(size)) {
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        if entry[..16] != [0; 16] && last >= first {
            add(source, &mut found, number, first, (last - first).saturating_add(1));
        }
    }
    Ok(Some(found))
}

/// Adds what lies on the disk.
fn add(source: &Source, found: &mut Vec<Partition>, number: u32, first: u64, sectors: u64) {
    let range = first.checked_mul(SECTOR).zip(sectors.checked_mul(SECTOR));
    let Some((start, len)) = range else { return };
    let fits = start.checked_add(len).is_some_and(|end| end <= source.len());
    if fits && start != 0 && len != 0 && found.len() < MAX_PARTITIONS {
        found.push(Partition { number, start, len });
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use backend::{Disk, MemoryDisk};

    use super::*;

    fn disk() -> MemoryDisk {
        MemoryDisk::new(1000)
    }

    fn source(disk: MemoryDisk) -> Source {
        Source::new(Arc::new(disk))
    }

    fn table(disk: &MemoryDisk, sector: u64, entries: &[(u8, u32, u32)]) {
        let mut bytes = [0; 512];
        for (place, (kind, start, sectors)) in bytes[446..510].chunks_mut(16).zip(entries) {
            place[4] = *kind;
            place[8..12].copy_from_slice(&start.to_le_bytes());
            place[12..].copy_from_slice(&sectors.to_le_bytes());
        }
        bytes[510..].copy_from_slice(&[0x55, 0xaa]);
        disk.write(sector * 512, &bytes).expect("on the disk");
    }

    fn found(disk: MemoryDisk) -> Vec<(u32, u64, u64)> {
        let found = read(&source(disk)).expect("readable");
        found.iter().map(|p| (p.number, p.start / 512, p.len / 512)).collect()
    }

    #[test]
    fn a_disk_without_a_table_is_one_volume() {
        assert_eq!(found(disk()), [(0, 0, 1000)]);
        let boot_sector_of_a_file_system = disk();
        table(&boot_sector_of_a_file_system, 0, &[]);
        assert_eq!(found(boot_sector_of_a_file_system), [(0, 0, 1000)]);
    }

    #[test]
    fn primary_and_logical_partitions_have_linux_numbers() {
        let disk = disk();
        table(&disk, 0, &[(0x83, 10, 90), (0x05, 100, 800), (0x83, 900, 200)]);
        table(&disk, 100, &[(0x83, 1, 49), (0x05, 50, 100)]);
        table(&disk, 150, &[(0x82, 2, 48), (0x05, 50, 100)]);
        // The third partition is not all on the disk, and the chain of tables is a circle.
        assert_eq!(found(disk)[..3], [(1, 10, 90), (5, 101, 49), (6, 152, 48)]);
    }

    #[test]
    fn a_gpt_is_read_within_limits() {
        let disk = disk();
        table(&disk, 0, &[(0xee, 1, 999)]);
        let mut header = [0; 512];
        header[..8].copy_from_slice(b"EFI PART");
        header[72] = 2;
        header[80..84].copy_from_slice(&[0xff; 4]);
        header[84] = 128;
        disk.write(512, &header).expect("on the disk");
        let mut entry = [1; 128];
        entry[32..48].copy_from_slice(&[100_u64.to_le_bytes(), 199_u64.to_le_bytes()].concat());
        disk.write(2 * 512 + 128, &entry).expect("on the disk");
        entry[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
        disk.write(2 * 512, &entry).expect("on the disk");
        assert_eq!(found(disk), [(2, 100, 100)]);
    }
}
