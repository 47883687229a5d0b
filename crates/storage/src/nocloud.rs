//! The disk by which cloud-init in a guest is told what it is to do (its data source NoCloud).
//!
//! A FAT file system with the label `CIDATA` and the files `user-data`, `meta-data` and
//! `network-config`, made in memory.

use std::io::{self, Cursor, Write};
use std::sync::Arc;

use backend::{Disk, MemoryDisk, SECTOR};
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};

use crate::StorageError;

/// The most bytes of all files together.
const MAX_FILES: usize = 16 << 20;

/// What the file system needs besides the files, generously.
const OVERHEAD: usize = 1 << 20;

/// What a guest is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NoCloud {
    /// What cloud-init is to do, beginning with a line such as `#cloud-config`.
    pub user_data: Vec<u8>,
    /// What the machine is: YAML with `instance-id`, `local-hostname`, `public-keys`.
    pub meta_data: Vec<u8>,
    /// The configuration of its network cards, if it is not DHCP.
    pub network_config: Option<Vec<u8>>,
}

impl NoCloud {
    /// A read-only disk with it.
    ///
    /// # Errors
    /// [`StorageError::Host`] for more than 16 MiB.
    pub fn disk(&self) -> Result<Arc<dyn Disk>, StorageError> {
        let image = self.image();
        let image =
            image.map_err(|cause| StorageError::host("make", "the disk for cloud-init", cause))?;
        let disk = MemoryDisk::new(image.len() / SECTOR as usize);
        let written = disk.write(0, &image);
        written.map_err(|cause| StorageError::host("make", "the disk for cloud-init", cause))?;
        Ok(Arc::new(disk.read_only()))
    }

    fn image(&self) -> io::Result<Vec<u8>> {
        let none = Vec::new();
        let network = self.network_config.as_ref().unwrap_or(&none);
        let size = self.user_data.len() + self.meta_data.len() + network.len();
        if size > MAX_FILES {
            return Err(io::Error::other("its files have more than 16 MiB"));
        }
        let mut image = Cursor::new(vec![0; (size + OVERHEAD).next_multiple_of(1 << 20)]);
        fatfs::format_volume(&mut image, FormatVolumeOptions::new().volume_label(*b"CIDATA     "))?;
        let system = FileSystem::new(&mut image, FsOptions::new())?;
        let add = |name: &str, content: &[u8]| {
            let mut file = system.root_dir().create_file(name)?;
            file.write_all(content)?;
            file.flush()
        };
        add("user-data", &self.user_data)?;
        add("meta-data", &self.meta_data)?;
        if let Some(network) = &self.network_config {
            add("network-config", network)?;
        }
        system.unmount()?;
        Ok(image.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn the_disk_has_the_label_and_the_files() {
        let cloud = NoCloud {
            user_data: vec![b'u'; 3 << 20],
            meta_data: b"instance-id: a\n".to_vec(),
            network_config: None,
        };
        let disk = cloud.disk().expect("room");
        assert!(disk.is_read_only() && disk.write(0, &[0; 512]).is_err());
        let mut content = vec![0; disk.len() as usize];
        disk.read(0, &mut content).expect("all of it");
        let system = FileSystem::new(Cursor::new(content), FsOptions::new()).expect("FAT");
        let label = system.read_volume_label_from_root_dir().expect("readable");
        assert_eq!(label.as_deref(), Some("CIDATA"));
        let mut text = String::new();
        let mut file = system.root_dir().open_file("meta-data").expect("there");
        file.read_to_string(&mut text).expect("text");
        assert_eq!(text, "instance-id: a\n");
        assert!(system.root_dir().open_file("network-config").is_err());
        let large = NoCloud { user_data: vec![0; MAX_FILES + 1], ..cloud };
        assert!(large.disk().is_err());
    }
}
