//! What fw_cfg shows, and where.

use std::collections::BTreeMap;

/// Keys of the items that have a fixed one.
mod key {
    pub(super) const SIGNATURE: u16 = 0x00;
    pub(super) const ID: u16 = 0x01;
    pub(super) const UUID: u16 = 0x02;
    pub(super) const RAM_SIZE: u16 = 0x03;
    pub(super) const NO_GRAPHIC: u16 = 0x04;
    pub(super) const CPUS: u16 = 0x05;
    pub(super) const BOOT_MENU: u16 = 0x0e;
    pub(super) const MAX_CPUS: u16 = 0x0f;
    pub(super) const FILE_DIRECTORY: u16 = 0x19;
    pub(super) const FIRST_FILE: u16 = 0x20;
    /// Whether interrupt 0 arrives at input 2 of the I/O APIC.
    pub(super) const IRQ0_OVERRIDE: u16 = 0x8002;
}

/// ID: the selector and data registers, and DMA.
const INTERFACES: u32 = 0b11;
/// Bytes of a name in the directory, with the zero that ends it.
const NAME: usize = 56;
/// Keys above this have other meanings.
const MAX_FILES: usize = 0x3fe0;

/// The items of a fw_cfg device.
#[derive(Clone, Debug, Default)]
pub struct FwCfgItems {
    items: BTreeMap<u16, Vec<u8>>,
    files: BTreeMap<String, Vec<u8>>,
}

impl FwCfgItems {
    /// The items of a machine with `ram` bytes of RAM and `cpus` processors, without files.
    pub fn new(ram: u64, cpus: u16) -> Self {
        let word = |value: u16| value.to_le_bytes().to_vec();
        let items = BTreeMap::from([
            (key::SIGNATURE, b"QEMU".to_vec()),
            (key::ID, INTERFACES.to_le_bytes().to_vec()),
            (key::UUID, vec![0; 16]),
            (key::RAM_SIZE, ram.to_le_bytes().to_vec()),
            (key::NO_GRAPHIC, word(1)),
            (key::CPUS, word(cpus)),
            (key::MAX_CPUS, word(cpus)),
            (key::BOOT_MENU, word(0)),
            (key::IRQ0_OVERRIDE, 1_u32.to_le_bytes().to_vec()),
        ]);
        Self { items, files: BTreeMap::new() }
    }

    /// Adds the file `name`, which is at most 55 bytes long.
    ///
    /// # Panics
    /// When the name is longer: names are the machine's own.
    #[must_use]
    pub fn file(mut self, name: &str, content: Vec<u8>) -> Self {
        assert!(name.len() < NAME, "fw_cfg file name {name} is longer than {} bytes", NAME - 1);
        self.files.insert(name.to_owned(), content);
        self
    }

    /// All items by key, with the directory of the files. Files are in the order of their names.
    pub(super) fn finish(self) -> BTreeMap<u16, Vec<u8>> {
        let Self { mut items, files } = self;
        assert!(files.len() <= MAX_FILES, "{} fw_cfg files", files.len());
        let mut directory = (files.len() as u32).to_be_bytes().to_vec();
        for (key, (name, content)) in (key::FIRST_FILE..).zip(files) {
            directory.extend((content.len() as u32).to_be_bytes());
            directory.extend(key.to_be_bytes());
            directory.extend([0; 2]);
            let mut padded = name.into_bytes();
            padded.resize(NAME, 0);
            directory.extend(padded);
            items.insert(key, content);
        }
        items.insert(key::FILE_DIRECTORY, directory);
        items
    }
}
