//! File systems on partitions: ext2, ext3 and ext4 by `ext4_view`, FAT by `fatfs`.
//!
//! Whatever they say is bounded here: the size of files and the number of names in a folder.

use std::io::Read;

use ext4_view::Ext4;

use crate::partitions::Partition;
use crate::source::{Part, Source};

/// The largest kernel or initramfs in bytes.
pub(crate) const MAX_FILE: u64 = 512 << 20;

/// The largest boot configuration in bytes.
pub(crate) const MAX_CONFIG: u64 = 1 << 20;

/// The most names of a folder that are looked at.
const MAX_NAMES: usize = 4096;

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 20;

/// A partition with its file system.
pub(crate) struct Volume {
    /// Where it is.
    pub partition: Partition,
    files: Files,
}

enum Files {
    Ext(Ext4),
    Fat(Box<fatfs::FileSystem<Part>>),
    /// What it is instead, as far as that is known.
    Other(&'static str),
}

/// Magic numbers of file systems that are not read: place, bytes, name.
const OTHERS: [(u64, &[u8], &str); 5] = [
    (0, b"XFSB", "xfs"),
    (0x10040, b"_BHRfS_M", "btrfs"),
    (0, b"LUKS\xba\xbe", "encrypted (LUKS)"),
    (0x218, b"LVM2 001", "LVM"),
    (0x8001, b"CD001", "ISO 9660"),
];

impl Volume {
    /// Finds out what is on a partition.
    pub(crate) fn open(source: &Source, partition: Partition) -> Self {
        let part = || Part::new(source, partition.start, partition.len);
        Self { partition, files: Files::open(&part) }
    }

    /// "partition 1 (ext4)", for messages.
    pub(crate) fn describe(&self) -> String {
        let what = match &self.files {
            Files::Ext(_) => "ext4",
            Files::Fat(_) => "FAT",
            Files::Other(name) => name,
        };
        match self.partition.number {
            0 => format!("the disk without partitions ({what})"),
            number => format!("partition {number} ({what})"),
        }
    }

    /// The device that a guest has it as, when the disk is its first virtio disk.
    pub(crate) fn device(&self) -> String {
        match self.partition.number {
            0 => "/dev/vda".to_owned(),
            number => format!("/dev/vda{number}"),
        }
    }

    /// The identity of the file system, as `blkid` shows it.
    pub(crate) fn uuid(&self) -> Option<String> {
        match &self.files {
            Files::Ext(ext) => Some(ext.uuid().to_string().to_lowercase()),
            Files::Fat(fat) => {
                let id = fat.volume_id();
                Some(format!("{:04x}-{:04x}", id >> 16, id & 0xffff))
            }
            Files::Other(_) => None,
        }
    }

    /// The name of the file system.
    pub(crate) fn label(&self) -> Option<String> {
        match &self.files {
            Files::Ext(ext) => ext.label().to_str().ok().map(str::to_owned),
            Files::Fat(fat) => Some(fat.volume_label().trim_end().to_owned()),
            Files::Other(_) => None,
        }
    }

    /// The content of the file `path`, which has at most `most` bytes.
    ///
    /// # Errors
    /// Why it cannot be had, in words.
    pub(crate) fn read(&self, path: &str, most: u64) -> Result<Vec<u8>, String> {
        match &self.files {
            Files::Ext(ext) => read_ext(ext, path, most),
            Files::Fat(fat) => {
                let mut file = fat.root_dir().open_file(path.trim_matches('/')).map_err(text)?;
                let mut content = Vec::new();
                file.by_ref().take(most + 1).read_to_end(&mut content).map_err(text)?;
                if content.len() as u64 > most { Err(too_large(most)) } else { Ok(content) }
            }
            Files::Other(name) => Err(format!("file systems of this kind are not read: {name}")),
        }
    }

    /// A text file of at most [`MAX_CONFIG`] bytes, if there is one.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        let content = self.read(path, MAX_CONFIG).ok()?;
        Some(String::from_utf8_lossy(&content).into_owned())
    }

    /// Whether there is a file or folder `path`.
    pub(crate) fn exists(&self, path: &str) -> bool {
        match &self.files {
            Files::Ext(ext) => ext.exists(path).unwrap_or(false),
            Files::Fat(fat) => {
                let path = path.trim_matches('/');
                fat.root_dir().open_file(path).is_ok() || fat.root_dir().open_dir(path).is_ok()
            }
            Files::Other(_) => false,
        }
    }

    /// The names in the folder `path`, in order; none when there is no such folder.
    pub(crate) fn names(&self, path: &str) -> Vec<String> {
        let mut names: Vec<String> = match &self.files {
            Files::Ext(ext) => ext.read_dir(path).map_or(Vec::new(), |entries| {
                entries
                    .take(MAX_NAMES)
                    .filter_map(|entry| Some(entry.ok()?.file_name().as_str().ok()?.to_owned()))
                    .collect()
            }),
            Files::Fat(fat) => {
                fat.root_dir().open_dir(path.trim_matches('/')).map_or(Vec::new(), |folder| {
                    folder
                        .iter()
                        .take(MAX_NAMES)
                        .filter_map(|entry| Some(entry.ok()?.file_name()))
                        .collect()
                })
            }
            Files::Other(_) => Vec::new(),
        };
        names.sort();
        names
    }
}

impl Files {
    fn open(part: &dyn Fn() -> Part) -> Self {
        let has = |place, magic: &[u8]| {
            let mut found = vec![0; magic.len()];
            part().read_at(place, &mut found).is_ok() && found == magic
        };
        // ext4: the magic number of the superblock (s_magic).
        if has(0x438, &[0x53, 0xef]) {
            return match Ext4::load(Box::new(part())) {
                Ok(ext) => Self::Ext(ext),
                Err(_) => Self::Other("damaged ext4"),
            };
        }
        if let Some((_, _, name)) = OTHERS.iter().find(|(place, magic, _)| has(*place, magic)) {
            return Self::Other(name);
        }
        if !has(510, &[0x55, 0xaa]) {
            return Self::Other("unknown");
        }
        match fatfs::FileSystem::new(part(), fatfs::FsOptions::new()) {
            Ok(fat) => Self::Fat(Box::new(fat)),
            Err(_) => Self::Other("unknown"),
        }
    }
}

fn read_ext(ext: &Ext4, path: &str, most: u64) -> Result<Vec<u8>, String> {
    let mut file = ext.open(path).map_err(text)?;
    let len = file.metadata().len();
    if len > most {
        return Err(too_large(most));
    }
    let mut content = Vec::new();
    let mut chunk = vec![0; CHUNK.min(len as usize + 1)];
    loop {
        let len = file.read_bytes(&mut chunk).map_err(text)?;
        if len == 0 || content.len() as u64 > most {
            return Ok(content);
        }
        content.extend_from_slice(&chunk[..len]);
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn too_large(most: u64) -> String {
    format!("it has more than {} MiB", most >> 20)
}
