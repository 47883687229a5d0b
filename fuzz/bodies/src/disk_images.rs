//! Disks and disk images of whoever wants to harm the program that reads them.

use std::io::{Cursor, Write};
use std::sync::{Arc, OnceLock};

use backend::{Buffer, Disk, MemoryDisk};
use bootdisk::grub::{self, Machine, SearchBy};
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};

use crate::Input;

/// Bytes of the made disk: its file system is a FAT12.
const DISK: usize = 128 << 10;

/// Changes that an input can make to what was made.
const CHANGES: usize = 24;

/// Somebody else's disk is looked through for something to boot: a script of GRUB that the input is,
/// or a file system with changes.
///
/// # Panics
/// When `bootdisk` panics.
pub fn boot_disk(data: &[u8]) {
    let mut input = Input::new(data);
    if input.byte() & 1 == 0 {
        let text = String::from_utf8_lossy(input.rest()).into_owned();
        let _ = grub::default_entry(&OneFile(text.clone()), "hd0,1", "/boot/grub/grub.cfg");
        let _ = bootdisk::parse_entry(&text, &[("a".to_owned(), text.clone())].into());
        return;
    }
    static MADE: OnceLock<Vec<u8>> = OnceLock::new();
    let mut content = MADE.get_or_init(|| fat().expect("there is room")).clone();
    change(&mut input, &mut content);
    let disk = MemoryDisk::new(content.len() / 512);
    disk.write(0, &content).expect("as large");
    let disk: Arc<dyn Disk> = Arc::new(disk);
    let _ = bootdisk::find(&disk);
}

/// A machine all of whose files have the same text.
struct OneFile(String);

impl Machine for OneFile {
    fn text(&self, _device: &str, _path: &str) -> Option<String> {
        Some(self.0.clone())
    }

    fn exists(&self, _device: &str, path: &str) -> bool {
        path.len().is_multiple_of(2)
    }

    fn search(&self, _by: SearchBy, what: &str) -> Option<String> {
        what.len().is_multiple_of(2).then(|| what.to_owned())
    }
}

/// A file system from which systemd-boot would boot.
fn fat() -> std::io::Result<Vec<u8>> {
    let mut image = Cursor::new(vec![0; DISK]);
    fatfs::format_volume(&mut image, FormatVolumeOptions::new())?;
    let system = FileSystem::new(&mut image, FsOptions::new())?;
    system.root_dir().create_dir("loader")?.create_dir("entries")?;
    let mut entry = system.root_dir().create_file("loader/entries/a.conf")?;
    entry.write_all(b"linux /kernel\ninitrd /kernel\noptions x\n")?;
    drop(entry);
    system.root_dir().create_file("kernel")?.write_all(&[7; 3000])?;
    system.unmount()?;
    Ok(image.into_inner())
}

/// Changes bytes at places that the input says, most of them at the beginning.
fn change(input: &mut Input<'_>, content: &mut [u8]) {
    for _ in 0..CHANGES {
        if input.is_empty() {
            return;
        }
        let near = input.pick(&[64, 512, 2048, 16 << 10, usize::MAX]).min(content.len());
        let at = usize::from(input.short()) % near;
        content[at] = input.pick(&[0, 1, 2, 0x55, 0x7f, 0x80, 0xaa, 0xff]) ^ (input.byte() & 3);
    }
}

/// Somebody else's disk image is read: a VMDK, sparse or compressed, or a VHD, with changes.
///
/// # Panics
/// When `import` panics, or when what it reads has another size than it said.
pub fn disk_import(data: &[u8]) {
    let mut input = Input::new(data);
    let mut content = match input.byte() % 3 {
        0 => vmdk(0),
        1 => vmdk(1 << 16),
        _ => vhd(),
    };
    let is_vhd = !content.starts_with(b"KDMV");
    change(&mut input, &mut content);
    if is_vhd {
        // What has a wrong checksum is refused at once.
        let footer = content.len() - 512;
        sum(&mut content[footer..], 64);
        sum(&mut content[512..1536], 36);
    }
    let mut file = tempfile::tempfile().expect("room for a file");
    file.write_all(&content).expect("room for a file");
    let Ok(Some(disk)) = import::open_file(file, "input", &mut |_, _| ()) else { return };
    let len = disk.len();
    let mut buffer = Buffer::new(4096.min(len) as usize);
    for _ in 0..8 {
        let _ = disk.read(input.word() % len, &mut buffer);
        let _ = disk.read(0, &mut buffer);
    }
    assert!(disk.read(len, &mut buffer).is_err(), "read beyond the end");
}

/// A VMDK of two grains: header, description, directory, table, grain.
fn vmdk(flags: u32) -> Vec<u8> {
    let mut image = vec![0; 8 * 512];
    let fields: [(usize, &[u8]); 9] = [
        (0, b"KDMV\x01"),
        (8, &(flags | 3).to_le_bytes()),
        (12, &16_u64.to_le_bytes()),
        (20, &8_u64.to_le_bytes()),
        (28, &1_u64.to_le_bytes()),
        (36, &1_u64.to_le_bytes()),
        (44, &512_u32.to_le_bytes()),
        (56, &2_u64.to_le_bytes()),
        (77, &[u8::from(flags != 0)]),
    ];
    for (at, bytes) in fields {
        image[at..at + bytes.len()].copy_from_slice(bytes);
    }
    image[512..544].copy_from_slice(b"parentCID=ffffffff\ncreateType=\"m");
    image[512 + 19..512 + 32].fill(b'\n');
    image[2 * 512] = 3;
    image[3 * 512] = 7;
    image[7 * 512 + 8] = 20;
    image
}

/// A dynamic VHD of one block: a header, a table, a block, the footer.
fn vhd() -> Vec<u8> {
    let mut image = vec![0; 8 * 512];
    image[512..520].copy_from_slice(b"cxsparse");
    image[512 + 22..512 + 24].copy_from_slice(&1536_u16.to_be_bytes());
    image[512 + 31] = 4;
    image[512 + 34..512 + 36].copy_from_slice(&1024_u16.to_be_bytes());
    image[1536 + 3] = 4;
    let footer = image.len() - 512;
    image[footer..footer + 8].copy_from_slice(b"conectix");
    image[footer + 22..footer + 24].copy_from_slice(&512_u16.to_be_bytes());
    image[footer + 54..footer + 56].copy_from_slice(&2048_u16.to_be_bytes());
    image[footer + 63] = 3;
    image
}

/// Makes the checksum at `at` that of the rest.
fn sum(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
    bytes[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
}
