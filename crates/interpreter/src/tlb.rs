//! The software TLB: which pages of guest RAM the present access rights reach, so that most
//! accesses need one comparison.
//!
//! Direct-mapped, one table per access mode, so that no change of CPL or of RFLAGS.AC flushes.
//! Entries are tagged with an address-space slot, which stands for a PCID, so that changing CR3
//! with NOFLUSH does not flush either; global pages carry a slot of their own. To flush a PCID is to
//! give it another slot. Every fill is logged: any other flush costs what was filled. Large pages
//! are entered by 4 KiB pieces.
//!
//! Only RAM is entered; devices take the slow way each time.

use paging::Translation;

/// Entries per access mode, a power of two.
const ENTRIES: usize = 2048;
const PAGE: u64 = !0xfff;
/// Tag that no lookup asks for: its slot bits are all ones.
const INVALID: u64 = 0xfff;
/// Slot of global pages; those of PCIDs are below.
const GLOBAL_SLOT: u64 = 0x800;
/// PCIDs that have a slot at a time.
const SPACES: usize = 64;

/// Who accesses memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Mode {
    /// CPL 0 to 2, obeying SMAP.
    Supervisor = 0,
    /// CPL 0 to 2 with RFLAGS.AC set: SMAP is overridden.
    SupervisorAc = 1,
    /// CPL 3.
    User = 2,
}

/// What is asked of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Read,
    Write,
    Fetch,
}

#[derive(Clone, Copy)]
struct Entry {
    read: u64,
    write: u64,
    fetch: u64,
    /// Offset of the page in guest RAM.
    ram: u64,
}

/// `ram` of an entry that is not in the log of fills.
const NOT_LOGGED: u64 = u64::MAX;
const EMPTY: Entry = Entry { read: INVALID, write: INVALID, fetch: INVALID, ram: NOT_LOGGED };

/// A change that another cache of translations must follow: see `fallback`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlbChange {
    /// Everything, also global pages, of all PCIDs.
    All,
    /// All pages that are not global, of all PCIDs.
    NonGlobal,
    /// The pages of a PCID that are not global.
    Pcid(u16),
    /// One page in the present PCID, and if it is global.
    Page(u64),
    /// One page of a PCID, unless it is global.
    PageOfPcid(u64, u16),
    /// Another PCID is present from now on.
    Select(u16),
}

pub(crate) struct Tlb {
    entries: Box<[Entry]>,
    filled: Vec<u32>,
    /// PCIDs and their slots, that which got its slot last at the end.
    spaces: Vec<(u16, u64)>,
    /// The slots from here on have never been used since all have been.
    next_slot: u64,
    present: u16,
    /// Slot of the present PCID.
    slot: u64,
    /// Smallest naturally aligned block that holds all large pages entered: address and size.
    large: Option<(u64, u64)>,
    pub(crate) misses: u64,
    pub(crate) flushes: u64,
    /// Changes since they were last taken, when somebody follows them.
    pub(crate) changes: Option<Vec<TlbChange>>,
}

impl Tlb {
    pub(crate) fn new() -> Self {
        Self {
            entries: vec![EMPTY; ENTRIES * 4].into_boxed_slice(),
            filled: Vec::new(),
            spaces: vec![(0, 0)],
            next_slot: 1,
            present: 0,
            slot: 0,
            large: None,
            misses: 0,
            flushes: 0,
            changes: None,
        }
    }

    /// Offset in guest RAM of the page of `linear`, if `mode` may use it so.
    #[inline(always)]
    pub(crate) fn lookup(&self, mode: Mode, usage: Use, linear: u64) -> Option<u64> {
        let entry = &self.entries[index(mode, linear)];
        let tag = match usage {
            Use::Read => entry.read,
            Use::Write => entry.write,
            Use::Fetch => entry.fetch,
        };
        let page = linear & PAGE;
        if tag == page | self.slot || tag == page | GLOBAL_SLOT { Some(entry.ram) } else { None }
    }

    /// Whether the entry of `linear` is that of a global page.
    #[inline]
    pub(crate) fn is_global(&self, mode: Mode, linear: u64) -> bool {
        self.entries[index(mode, linear)].tag() == linear & PAGE | GLOBAL_SLOT
    }

    /// Enters the page of `linear` after a walk for `usage` by `mode`.
    pub(crate) fn fill(
        &mut self,
        mode: Mode,
        usage: Use,
        linear: u64,
        found: &Translation,
        ram: u64,
    ) {
        self.misses += 1;
        let tag = linear & PAGE | if found.global { GLOBAL_SLOT } else { self.slot };
        let index = index(mode, linear);
        let entry = &mut self.entries[index];
        let merged = entry.ram == ram && [entry.read, entry.write, entry.fetch].contains(&tag);
        if entry.ram == NOT_LOGGED {
            self.filled.push(index as u32);
        }
        if !merged {
            entry.drop_uses();
        }
        entry.ram = ram;
        match usage {
            Use::Read => entry.read = tag,
            // A page that may be written may be read: there are no write-only pages.
            Use::Write => (entry.read, entry.write) = (tag, tag),
            Use::Fetch => entry.fetch = tag,
        }
        if found.page_size > 4096 {
            self.cover_large(linear, found.page_size);
        }
    }

    /// A large page is known somewhere: to invalidate a piece of it is to invalidate all.
    pub(crate) fn cover_large(&mut self, linear: u64, size: u64) {
        let page = linear & !(size - 1);
        let (base, mut span) = self.large.unwrap_or((page, size));
        span = span.max(size);
        while (base ^ page) & !(span - 1) != 0 && span < 1 << 63 {
            span <<= 1;
        }
        self.large = Some((base & !(span - 1), span));
    }

    fn note(&mut self, change: TlbChange) {
        if let Some(changes) = &mut self.changes {
            changes.push(change);
        }
    }

    /// Drops everything, also global pages.
    pub(crate) fn flush_all(&mut self) {
        self.note(TlbChange::All);
        self.flushes += 1;
        for index in self.filled.drain(..) {
            self.entries[index as usize] = EMPTY;
        }
        self.large = None;
    }

    /// Drops all but global pages, of all PCIDs.
    pub(crate) fn flush_non_global(&mut self) {
        self.note(TlbChange::NonGlobal);
        self.flush_where(|tag| tag & 0xfff != GLOBAL_SLOT);
    }

    /// Drops the pages of `pcid` that are not global.
    pub(crate) fn flush_pcid(&mut self, pcid: u16) {
        self.note(TlbChange::Pcid(pcid));
        self.flushes += 1;
        if self.slot_of(pcid).is_some() {
            self.give_slot(pcid);
        }
    }

    fn slot_of(&self, pcid: u16) -> Option<u64> {
        self.spaces.iter().find(|space| space.0 == pcid).map(|space| space.1)
    }

    /// Gives `pcid` a slot that no entry is tagged with.
    fn give_slot(&mut self, pcid: u16) {
        if self.next_slot == GLOBAL_SLOT {
            // All have been used: begins anew, with nothing but global pages.
            self.flush_where(|tag| tag & 0xfff != GLOBAL_SLOT);
            (self.spaces, self.slot, self.next_slot) = (vec![(self.present, 0)], 0, 1);
        }
        self.spaces.retain(|space| space.0 != pcid);
        if self.spaces.len() == SPACES {
            let oldest = self.spaces.iter().position(|space| space.0 != self.present);
            self.spaces.remove(oldest.unwrap_or(0));
        }
        self.spaces.push((pcid, self.next_slot));
        if pcid == self.present {
            self.slot = self.next_slot;
        }
        self.next_slot += 1;
    }

    /// INVLPG: drops the page of `linear` in the present PCID, and if global.
    pub(crate) fn flush_page(&mut self, linear: u64) {
        self.note(TlbChange::Page(linear));
        self.flush_page_in(linear, self.slot, true);
    }

    /// INVPCID type 0: drops the page of `linear` in `pcid`, unless global.
    pub(crate) fn flush_page_of_pcid(&mut self, linear: u64, pcid: u16) {
        self.note(TlbChange::PageOfPcid(linear, pcid));
        if let Some(slot) = self.slot_of(pcid) {
            self.flush_page_in(linear, slot, false);
        }
    }

    fn flush_page_in(&mut self, linear: u64, slot: u64, global: bool) {
        if self.large.is_some_and(|(base, span)| linear & !(span - 1) == base) {
            // The page may be a piece of a large page: its other pieces go as well.
            self.flush_all();
            return;
        }
        let page = linear & PAGE;
        for mode in [Mode::Supervisor, Mode::SupervisorAc, Mode::User] {
            let entry = &mut self.entries[index(mode, linear)];
            let tag = entry.tag();
            if tag == page | slot || global && tag == page | GLOBAL_SLOT {
                entry.drop_uses();
            }
        }
    }

    /// Forgets the right to write to the page at `ram` in guest RAM.
    pub(crate) fn withdraw_write(&mut self, ram: u64) {
        for &index in &self.filled {
            let entry = &mut self.entries[index as usize];
            if entry.ram == ram {
                entry.write = INVALID;
            }
        }
    }

    /// Makes `pcid` the present address space.
    pub(crate) fn select_pcid(&mut self, pcid: u16) {
        self.note(TlbChange::Select(pcid));
        self.present = pcid;
        match self.slot_of(pcid) {
            Some(slot) => self.slot = slot,
            None => self.give_slot(pcid),
        }
    }

    fn flush_where(&mut self, drop: impl Fn(u64) -> bool) {
        self.flushes += 1;
        let entries = &mut self.entries;
        self.filled.retain(|&index| {
            let entry = &mut entries[index as usize];
            let tag = entry.tag();
            if tag != INVALID && !drop(tag) {
                return true;
            }
            *entry = EMPTY;
            false
        });
    }
}

impl Entry {
    /// Forgets the page; the entry stays in the log of fills.
    fn drop_uses(&mut self) {
        (self.read, self.write, self.fetch) = (INVALID, INVALID, INVALID);
    }

    /// The tag that the entry's valid uses share.
    fn tag(&self) -> u64 {
        if self.read != INVALID { self.read } else { self.fetch }
    }
}

#[inline(always)]
fn index(mode: Mode, linear: u64) -> usize {
    mode as usize * ENTRIES + (linear >> 12) as usize % ENTRIES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(global: bool, page_size: u64) -> Translation {
        Translation {
            gpa: 0,
            page_size,
            writable: true,
            user: true,
            no_execute: false,
            global,
            dirty: true,
            accessed: true,
        }
    }

    fn hit(tlb: &Tlb, linear: u64) -> bool {
        tlb.lookup(Mode::User, Use::Read, linear).is_some()
    }

    fn fill(tlb: &mut Tlb, linear: u64, global: bool) {
        tlb.fill(Mode::User, Use::Read, linear, &page(global, 4096), 0x5000);
    }

    #[test]
    fn an_entry_serves_only_its_mode_use_and_space() {
        let mut tlb = Tlb::new();
        fill(&mut tlb, 0x1000, false);
        assert!(hit(&tlb, 0x1fff));
        assert_eq!(tlb.lookup(Mode::Supervisor, Use::Read, 0x1000), None);
        assert_eq!(tlb.lookup(Mode::User, Use::Write, 0x1000), None);
        assert!(!hit(&tlb, 0x1000 + (1 << 48)), "non-canonical alias");
        tlb.select_pcid(5);
        assert!(!hit(&tlb, 0x1000));
        tlb.select_pcid(0);
        assert!(hit(&tlb, 0x1000));
    }

    #[test]
    fn global_pages_survive_address_space_flushes() {
        let mut tlb = Tlb::new();
        fill(&mut tlb, 0x1000, true);
        fill(&mut tlb, 0x2000, false);
        tlb.flush_non_global();
        assert!(hit(&tlb, 0x1000) && !hit(&tlb, 0x2000));
        tlb.select_pcid(9);
        assert!(hit(&tlb, 0x1000));
        tlb.flush_page(0x1000);
        assert!(!hit(&tlb, 0x1000));
    }

    #[test]
    fn invalidating_a_piece_drops_the_large_page() {
        let mut tlb = Tlb::new();
        for piece in [0x20_0000, 0x20_1000] {
            tlb.fill(Mode::User, Use::Read, piece, &page(false, 2 << 20), 0x7000);
        }
        tlb.flush_page(0x20_0000);
        assert!(!hit(&tlb, 0x20_1000));
    }

    #[test]
    fn a_reused_slot_starts_empty() {
        let mut tlb = Tlb::new();
        tlb.select_pcid(1);
        fill(&mut tlb, 0x1000, false);
        for pcid in 2..200 {
            tlb.select_pcid(pcid);
            assert!(!hit(&tlb, 0x1000), "pcid {pcid}");
        }
    }

    #[test]
    fn a_flushed_space_stays_empty_however_often_slots_begin_anew() {
        let mut tlb = Tlb::new();
        fill(&mut tlb, 0x9000, true);
        for round in 0..3 * GLOBAL_SLOT {
            let pcid = 1 + (round % 3) as u16;
            tlb.select_pcid(pcid);
            assert!(!hit(&tlb, 0x1000), "round {round}");
            fill(&mut tlb, 0x1000, false);
            assert!(hit(&tlb, 0x1000));
            // Of the present one and of another.
            tlb.flush_pcid(if round % 2 == 0 { pcid } else { 7 });
            assert_eq!(hit(&tlb, 0x1000), round % 2 != 0);
            tlb.flush_pcid(pcid);
        }
        assert!(hit(&tlb, 0x9000), "global");
    }

    #[test]
    fn more_spaces_than_have_slots_do_not_see_each_other() {
        let mut tlb = Tlb::new();
        for pcid in 0..2 * SPACES as u16 {
            tlb.select_pcid(pcid);
            assert!(!hit(&tlb, 0x1000));
            fill(&mut tlb, 0x1000, false);
        }
    }
}
