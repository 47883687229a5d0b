//! The translated blocks: found by their place in guest RAM, dropped page by page.
//!
//! Direct jumps between blocks are only made inside a page, and everything else goes through the
//! jump tables; a page whose code has changed is therefore dropped whole, with the jump tables
//! emptied, and nothing else has to be undone. Its host code stays until the cache is full, when
//! everything is dropped.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use memory::{GuestRam, RamOffset};

use crate::mode::CodeMode;

/// A block in the code cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    /// Host address, at its poll.
    pub(crate) entry: u64,
    /// Host address behind the poll.
    pub(crate) body: u64,
    pub(crate) instructions: u32,
    /// Its only instruction goes on in the next page: the block only looks itself up in the jump
    /// table, where the one is entered that knows the present next page.
    pub(crate) straddles: bool,
}

/// Which block of a page: its offset and what it is translated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) at: RamOffset,
    pub(crate) mode: CodeMode,
    pub(crate) plain: bool,
}

impl Key {
    fn in_page(self) -> u16 {
        let CodeMode { user, bits32 } = self.mode;
        let bits = [user, self.plain, bits32].into_iter().zip(12..);
        bits.fold((self.at.0 % 4096) as u16, |key, (bit, place)| key | u16::from(bit) << place)
    }
}

#[derive(Default)]
struct Page {
    version: u32,
    /// Blocks by [`Key::in_page`].
    blocks: HashMap<u16, Block, Fast>,
    /// The block of the page's last instruction by the page on which it goes on.
    straddling: HashMap<(usize, CodeMode), (u16, Block), Fast>,
    /// Pages whose last instruction goes on here.
    begin_before: Vec<usize>,
}

#[derive(Default)]
pub(crate) struct Blocks {
    pages: HashMap<usize, Page, Fast>,
    epoch: u64,
}

impl Blocks {
    /// The block, if it has been translated.
    pub(crate) fn find(&self, key: Key) -> Option<Block> {
        self.pages.get(&key.at.page())?.blocks.get(&key.in_page()).copied()
    }

    /// Whether the page of `at` has blocks.
    pub(crate) fn has_page(&self, at: RamOffset) -> bool {
        self.pages.contains_key(&at.page())
    }

    /// The entry of a page whose code version was `version` before it was read. One that is there
    /// already keeps its version: if that is older, all goes at the next look.
    fn page(&mut self, at: RamOffset, version: u32) -> &mut Page {
        self.pages.entry(at.page()).or_insert_with(|| Page { version, ..Page::default() })
    }

    /// Enters a block; `version` is the page's code version from before it was read.
    pub(crate) fn insert(&mut self, key: Key, version: u32, block: Block) {
        self.page(key.at, version).blocks.insert(key.in_page(), block);
    }

    /// The block of the instruction at `first` that goes on at page `second`.
    pub(crate) fn find_straddling(
        &self,
        first: RamOffset,
        second: RamOffset,
        mode: CodeMode,
    ) -> Option<Block> {
        let page = self.pages.get(&first.page())?;
        let (offset, block) = page.straddling.get(&(second.page(), mode))?;
        (u64::from(*offset) == first.0 % 4096).then_some(*block)
    }

    /// Enters such a block; `versions` are those of the two pages from before they were read.
    pub(crate) fn insert_straddling(
        &mut self,
        first: RamOffset,
        second: RamOffset,
        mode: CodeMode,
        versions: [u32; 2],
        block: Block,
    ) {
        let page = self.page(first, versions[0]);
        page.straddling.insert((second.page(), mode), ((first.0 % 4096) as u16, block));
        let page = self.page(second, versions[1]);
        if !page.begin_before.contains(&first.page()) {
            page.begin_before.push(first.page());
        }
    }

    /// Drops the pages whose code has changed; whether there were any.
    pub(crate) fn drop_changed(&mut self, ram: &GuestRam) -> bool {
        let epoch = ram.code_epoch();
        if epoch == self.epoch {
            return false;
        }
        self.epoch = epoch;
        let before = self.pages.len();
        let mut touched = Vec::new();
        self.pages.retain(|page, entry| {
            let stays = ram.code_version(RamOffset(*page as u64 * 4096)) == entry.version;
            if !stays {
                touched.append(&mut entry.begin_before);
            }
            stays
        });
        for page in touched {
            if let Some(entry) = self.pages.get_mut(&page) {
                entry.straddling.clear();
            }
        }
        self.pages.len() != before
    }

    /// Drops all blocks.
    pub(crate) fn clear(&mut self) {
        self.pages.clear();
    }
}

/// A hasher for small integers that spreads them; nobody chooses colliding page numbers to gain
/// anything but their own slowness.
#[derive(Default)]
pub(crate) struct Spread(u64);

type Fast = BuildHasherDefault<Spread>;

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }

    fn write_u16(&mut self, value: u16) {
        self.write_u64(u64::from(value));
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}
