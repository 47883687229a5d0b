//! The software TLB and jump tables: filling them, and following the guest's invalidations.
//!
//! There is one [`Tables`] per [`Mode`], so that neither a change of privilege, nor of RFLAGS.AC, nor
//! between 32-bit and 64-bit code flushes anything, and per PCID, so that a CR3 write that keeps entries does not either. But all
//! PCIDs share the tables of supervisor code that obeys SMAP: what it accesses are hardly ever other
//! pages than global ones, and one set of tables stays in the host's caches. What else is there goes
//! when another PCID is selected. Fills are logged, those of global pages apart: a flush costs what
//! it drops.

use std::collections::HashSet;
use std::hash::BuildHasherDefault;

use interpreter::{AccessMode, FoundPage, TlbChange};
use memory::{GuestRam, RamOffset};

use crate::blocks::Spread;
use crate::context::{
    JUMP_ENTRIES, Jump, TABLES_BIAS, TLB_ENTRIES, Tables, empty_jump, empty_tag, jump_index,
};
use crate::mode::Mode;

/// Address spaces (PCIDs) that have tables at a time.
const SPACES: usize = 8;

/// One address space's tables, allocated when first used: for supervisor code that overrides SMAP
/// and for user code.
#[derive(Default)]
struct Space {
    pcid: u16,
    supervisor_ac: Pair,
    user: Pair,
}

/// Tables for 64-bit and for 32-bit code.
type Pair = [Option<Box<Logged>>; 2];

impl Space {
    fn each(&mut self) -> impl Iterator<Item = &mut Logged> {
        let pairs = [&mut self.supervisor_ac, &mut self.user];
        pairs.into_iter().flatten().flatten().map(|logged| &mut **logged)
    }
}

struct Logged {
    tables: Box<Tables>,
    /// Whether the page in the TLB entry is global.
    is_global: [bool; TLB_ENTRIES],
    /// TLB entries and jump entries that may be filled: with what is not global, and with what is.
    filled: [Log; 2],
    jumps_filled: [Log; 2],
    /// Linear pages that jump targets may lie in.
    jump_pages: HashSet<u64, BuildHasherDefault<Spread>>,
}

/// Indexes of a table, each once.
struct Log {
    indexes: Vec<u16>,
    /// A bit for each index.
    has: Vec<u64>,
}

/// What a flush leaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    Nothing,
    Global,
}

pub(crate) struct AddressSpaces {
    /// For supervisor code that obeys SMAP, in all spaces.
    supervisor: Pair,
    spaces: Vec<Space>,
    present: usize,
    next_victim: usize,
    /// Host address of guest RAM's first byte.
    host_window: u64,
}

impl Logged {
    #[cold]
    #[inline(never)]
    fn boxed() -> Box<Self> {
        Box::new(Self {
            tables: Tables::empty(),
            is_global: [false; TLB_ENTRIES],
            filled: [Log::new(TLB_ENTRIES), Log::new(TLB_ENTRIES)],
            jumps_filled: [Log::new(JUMP_ENTRIES), Log::new(JUMP_ENTRIES)],
            jump_pages: HashSet::default(),
        })
    }

    fn set_jump(&mut self, index: usize, jump: Jump) {
        self.jumps_filled[usize::from(jump.global != 0)].add(index);
        self.tables.jumps[index] = jump;
    }

    fn note_jump_page(&mut self, page: u64) {
        if self.jump_pages.len() > 2 * JUMP_ENTRIES {
            // Most are of jumps that have long gone.
            self.flush_jumps(Keep::Nothing);
        }
        self.jump_pages.insert(page);
    }

    fn flush(&mut self, keep: Keep) {
        let Self { tables, filled, is_global, .. } = self;
        let mut empty = |index: usize| {
            tables.read[index] = empty_tag(index);
            tables.write[index] = empty_tag(index);
        };
        let [local, global] = filled;
        match keep {
            Keep::Nothing => global.drain(&mut empty),
            Keep::Global => {}
        }
        local.drain(|index| {
            if keep == Keep::Nothing || !is_global[index] {
                empty(index);
            }
        });
        self.flush_jumps(keep);
    }

    /// Forgets the jump targets in the linear page at `page`, and in the one before it, whose last
    /// instruction may go on here.
    fn flush_jumps_into(&mut self, page: u64) {
        let pages = [page, page.wrapping_sub(4096)];
        if !pages.map(|page| self.jump_pages.remove(&page)).contains(&true) {
            return;
        }
        for log in &self.jumps_filled {
            for &index in &log.indexes {
                let jump = &mut self.tables.jumps[usize::from(index)];
                if pages.contains(&jump.page) {
                    jump.tag = empty_jump(usize::from(index));
                }
            }
        }
    }

    fn flush_jumps(&mut self, keep: Keep) {
        let Self { tables, jumps_filled: [local, global], jump_pages, .. } = self;
        let mut empty = |index: usize| tables.jumps[index].tag = empty_jump(index);
        match keep {
            Keep::Nothing => {
                local.drain(&mut empty);
                global.drain(&mut empty);
                jump_pages.clear();
            }
            // The pages of what goes stay listed, which does no harm.
            Keep::Global => local.drain(|index| {
                if tables.jumps[index].global == 0 {
                    tables.jumps[index].tag = empty_jump(index);
                }
            }),
        }
    }
}

impl Log {
    /// For a table of so many entries.
    fn new(entries: usize) -> Self {
        Self { indexes: Vec::new(), has: vec![0; entries / 64] }
    }

    fn add(&mut self, index: usize) {
        let (word, bit) = (index / 64, 1 << (index % 64));
        if self.has[word] & bit == 0 {
            self.has[word] |= bit;
            self.indexes.push(index as u16);
        }
    }

    /// Empties the log, with `each` index that was in it.
    fn drain(&mut self, mut each: impl FnMut(usize)) {
        for index in self.indexes.drain(..).map(usize::from) {
            self.has[index / 64] = 0;
            each(index);
        }
    }
}

impl AddressSpaces {
    pub(crate) fn new(ram: &GuestRam) -> Self {
        Self {
            supervisor: [None, None],
            spaces: vec![Space::default()],
            present: 0,
            next_victim: 0,
            host_window: ram.host_window() as u64,
        }
    }

    #[inline]
    fn logged(&mut self, mode: Mode) -> &mut Logged {
        let space = &mut self.spaces[self.present];
        let pair = match mode.access {
            AccessMode::Supervisor => &mut self.supervisor,
            AccessMode::SupervisorAc => &mut space.supervisor_ac,
            AccessMode::User => &mut space.user,
        };
        pair[usize::from(mode.bits32)].get_or_insert_with(Logged::boxed)
    }

    /// The tables of supervisor code that obeys SMAP.
    fn supervisor(&mut self) -> impl Iterator<Item = &mut Logged> {
        self.supervisor.iter_mut().flatten().map(|logged| &mut **logged)
    }

    /// What generated code uses as address of the tables of the present address space for `mode`.
    pub(crate) fn address(&mut self, mode: Mode) -> u64 {
        std::ptr::from_mut::<Tables>(&mut self.logged(mode).tables) as u64 + TABLES_BIAS
    }

    /// Whether two addresses of different pages use the same entry.
    pub(crate) fn collide(&self, one: u64, other: u64) -> bool {
        one >> 12 != other >> 12 && (one ^ other) >> 12 & (TLB_ENTRIES as u64 - 1) == 0
    }

    /// Whether the page of `linear` is entered for such an access.
    pub(crate) fn has(&mut self, mode: Mode, linear: u64, write: bool) -> bool {
        let tables = &self.logged(mode).tables;
        let index = (linear >> 12) as usize % TLB_ENTRIES;
        let tags = if write { &tables.write } else { &tables.read };
        tags[index] == (linear & !0xfff).wrapping_neg()
    }

    /// The host address of the block at `target`, if it is in the jump table.
    pub(crate) fn find_jump(&mut self, mode: Mode, target: u64) -> Option<u64> {
        let tables = &self.logged(mode).tables;
        let first = jump_index(target);
        let jump = [first, first ^ 1].into_iter().map(|index| &tables.jumps[index]);
        jump.into_iter().find(|jump| jump.tag == target.wrapping_neg()).map(|jump| jump.host)
    }

    /// Enters the page of `linear`.
    pub(crate) fn fill(&mut self, mode: Mode, linear: u64, found: FoundPage, writable: bool) {
        let page = linear & !0xfff;
        let host = self.host_window.wrapping_add(found.ram.0 & !0xfff);
        let logged = self.logged(mode);
        let index = (linear >> 12) as usize % TLB_ENTRIES;
        let tag = page.wrapping_neg();
        let tables = &mut logged.tables;
        logged.is_global[index] = found.global;
        logged.filled[usize::from(found.global)].add(index);
        if tables.read[index] != tag {
            tables.write[index] = empty_tag(index);
        }
        tables.read[index] = tag;
        tables.addend[index] = host.wrapping_sub(page);
        if writable {
            tables.write[index] = tag;
        }
    }

    /// Enters a jump target, whose page may be global, in its first entry; what was there goes to
    /// the neighbour, which is its second.
    pub(crate) fn fill_jump(&mut self, mode: Mode, target: u64, host: u64, global: bool) {
        let (logged, page) = (self.logged(mode), target & !0xfff);
        logged.note_jump_page(page);
        let index = jump_index(target);
        let tag = target.wrapping_neg();
        let before = logged.tables.jumps[index];
        if before.tag != empty_jump(index) && before.tag != tag {
            logged.set_jump(index ^ 1, before);
        }
        logged.set_jump(index, Jump { tag, page, host, global: global.into() });
    }

    /// Forgets all jump targets: blocks have been dropped.
    pub(crate) fn flush_all_jumps(&mut self) {
        self.each(|logged| logged.flush_jumps(Keep::Nothing));
    }

    /// Forgets everything.
    pub(crate) fn flush_all(&mut self) {
        self.each(|logged| logged.flush(Keep::Nothing));
    }

    /// Withdraws the right to write to the RAM page at `ram`, which somebody watches from now on.
    pub(crate) fn protect(&mut self, ram: RamOffset) {
        let host = self.host_window.wrapping_add(ram.0 & !0xfff);
        self.each(|logged| {
            let tables = &mut logged.tables;
            for &index in logged.filled.iter().flat_map(|log| &log.indexes) {
                let index = usize::from(index);
                let page = tables.write[index].wrapping_neg();
                if tables.addend[index].wrapping_add(page) == host {
                    tables.write[index] = empty_tag(index);
                }
            }
        });
    }

    /// Follows what the guest did to its address translation.
    pub(crate) fn apply(&mut self, change: TlbChange) {
        match change {
            TlbChange::All => self.flush_all(),
            TlbChange::NonGlobal => self.each(|logged| logged.flush(Keep::Global)),
            TlbChange::Pcid(pcid) => {
                self.supervisor().for_each(|logged| logged.flush(Keep::Global));
                let spaces = self.spaces.iter_mut().filter(|space| space.pcid == pcid);
                spaces.flat_map(Space::each).for_each(|logged| logged.flush(Keep::Global));
            }
            TlbChange::Page(linear) | TlbChange::PageOfPcid(linear, _) => self.flush_page(linear),
            TlbChange::Select(pcid) => self.select(pcid),
        }
    }

    /// Drops the page of `linear` everywhere: more than asked, never less.
    fn flush_page(&mut self, linear: u64) {
        let index = (linear >> 12) as usize % TLB_ENTRIES;
        let tag = (linear & !0xfff).wrapping_neg();
        self.each(|logged| {
            if logged.tables.read[index] == tag {
                logged.tables.read[index] = empty_tag(index);
                logged.tables.write[index] = empty_tag(index);
            }
            logged.flush_jumps_into(linear & !0xfff);
        });
    }

    fn select(&mut self, pcid: u16) {
        if self.spaces[self.present].pcid == pcid {
            return;
        }
        self.supervisor().for_each(|logged| logged.flush(Keep::Global));
        if let Some(found) = self.spaces.iter().position(|s| s.pcid == pcid) {
            self.present = found;
            return;
        }
        if self.spaces.len() < SPACES {
            self.spaces.push(Space { pcid, ..Space::default() });
            self.present = self.spaces.len() - 1;
            return;
        }
        self.next_victim = (self.next_victim + 1) % SPACES;
        let victim = &mut self.spaces[self.next_victim];
        victim.pcid = pcid;
        victim.each().for_each(|logged| logged.flush(Keep::Global));
        self.present = self.next_victim;
    }

    /// Panics unless the masks are as they were made, every entry leads to a page inside `window`,
    /// and every jump entry to `code`.
    #[cfg(test)]
    pub(crate) fn inspect(&self, window: std::ops::Range<u64>, code: std::ops::Range<u64>) {
        let others = self.spaces.iter().flat_map(|space| [&space.supervisor_ac, &space.user]);
        let all = others.chain([&self.supervisor]);
        for tables in all.flatten().flatten().map(|logged| &logged.tables) {
            assert!(tables.masks == crate::context::Masks::ALL, "masks have been changed");
            for index in 0..TLB_ENTRIES {
                for tag in [tables.read[index], tables.write[index]] {
                    let page = tables.addend[index].wrapping_sub(tag);
                    let inside = window.contains(&page) && page % 4096 == window.start % 4096;
                    assert!(tag == empty_tag(index) || inside, "entry {index}: {page:#x}");
                }
            }
            for (index, jump) in tables.jumps.iter().enumerate() {
                let inside = code.contains(&jump.host);
                assert!(jump.tag == empty_jump(index) || inside, "jump entry {index}");
            }
        }
    }

    fn each(&mut self, f: impl FnMut(&mut Logged)) {
        let others = self.spaces.iter_mut().flat_map(Space::each);
        let supervisor = self.supervisor.iter_mut().flatten().map(|logged| &mut **logged);
        others.chain(supervisor).for_each(f);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::JUMP_ENTRIES;

    const SUPERVISOR: Mode = Mode { access: AccessMode::Supervisor, bits32: false };
    const USER: Mode = Mode { access: AccessMode::User, bits32: false };

    /// What the check in line computes: whether an access passes, and to which host address.
    fn check(tables: &Tables, write: bool, linear: u64, size: u64) -> Option<u64> {
        let index = (linear >> 12) as usize % TLB_ENTRIES;
        let tags = if write { &tables.write } else { &tables.read };
        let sum = tags[index].wrapping_add(linear).wrapping_add(size - 1);
        (sum >> 12 == 0).then(|| linear.wrapping_add(tables.addend[index]))
    }

    fn spaces() -> AddressSpaces {
        AddressSpaces::new(&GuestRam::new(&[(0, 1 << 20)]).unwrap())
    }

    fn local(ram: u64) -> FoundPage {
        FoundPage { ram: RamOffset(ram), global: false }
    }

    #[test]
    fn global_pages_survive_a_change_of_the_address_space() {
        let mut spaces = spaces();
        let mode = SUPERVISOR;
        spaces.fill(mode, 0x7000, local(0x3000), true);
        spaces.fill(mode, 0x8000, FoundPage { global: true, ..local(0x4000) }, true);
        spaces.fill_jump(mode, 0x7010, 0x1234, false);
        spaces.fill_jump(mode, 0x8010, 0x1234, true);
        spaces.apply(TlbChange::Pcid(0));
        let present = |spaces: &mut AddressSpaces| {
            let tables = &spaces.logged(mode).tables;
            [0x7000, 0x8000].map(|page| check(tables, true, page, 8).is_some())
        };
        assert_eq!(present(&mut spaces), [false, true]);
        assert_eq!(spaces.find_jump(mode, 0x7010), None);
        assert_eq!(spaces.find_jump(mode, 0x8010), Some(0x1234));
        spaces.apply(TlbChange::All);
        assert_eq!(present(&mut spaces), [false, false]);
        assert_eq!(spaces.find_jump(mode, 0x8010), None);
    }

    /// Addresses that try to match a tag: each entry's own, its neighbours', and around page edges.
    fn attempts(index: usize) -> impl Iterator<Item = u64> {
        let pages = (0..TLB_ENTRIES as u64).map(|other| other << 12);
        let tops = [0, 1 << 47, u64::MAX << 47, 1 << 62, u64::MAX << 22];
        pages.chain([(index as u64) << 12]).flat_map(move |page| {
            tops.into_iter().flat_map(move |top| {
                [0_u64.wrapping_sub(8), 0_u64.wrapping_sub(1), 0, 1, 4088, 4095, 4096]
                    .into_iter()
                    .map(move |near| page.wrapping_add(top).wrapping_add(near))
            })
        })
    }

    #[test]
    fn an_empty_table_lets_nothing_through() {
        let mut spaces = spaces();
        let tables = &spaces.logged(USER).tables;
        for linear in attempts(0) {
            for size in [1, 2, 4, 8, 16, 32] {
                assert_eq!(check(tables, false, linear, size), None, "{linear:#x}+{size}");
                assert_eq!(check(tables, true, linear, size), None, "{linear:#x}+{size}");
            }
        }
    }

    #[test]
    fn an_entry_serves_its_page_and_nothing_else() {
        let mut spaces = spaces();
        let window = spaces.host_window;
        let page = 0xffff_8880_0012_3000;
        spaces.fill(SUPERVISOR, page, local(0x5000), false);
        let tables = &spaces.logged(SUPERVISOR).tables;
        for linear in attempts((page >> 12) as usize % TLB_ENTRIES).chain([page, page + 4088]) {
            for size in [1_u64, 8, 32] {
                let inside = linear >= page && linear - page <= 4096 - size;
                let expected = inside.then(|| window + 0x5000 + (linear - page));
                assert_eq!(check(tables, false, linear, size), expected, "{linear:#x}+{size}");
                assert_eq!(check(tables, true, linear, size), None, "no right to write");
            }
        }
    }

    #[test]
    fn a_watched_page_loses_its_write_entry() {
        let mut spaces = spaces();
        spaces.fill(USER, 0x7000, local(0x3000), true);
        spaces.protect(RamOffset(0x3000));
        let tables = &spaces.logged(USER).tables;
        assert_eq!(check(tables, true, 0x7000, 8), None);
        assert!(check(tables, false, 0x7000, 8).is_some());
    }

    #[test]
    fn invalidations_reach_every_space() {
        let mut spaces = spaces();
        for pcid in [1, 2] {
            spaces.apply(TlbChange::Select(pcid));
            spaces.fill(USER, 0x7000, local(0x3000), true);
            spaces.fill_jump(USER, 0x7010, 0x1234, false);
        }
        spaces.apply(TlbChange::Page(0x7000));
        for pcid in [1, 2] {
            spaces.apply(TlbChange::Select(pcid));
            let tables = &spaces.logged(USER).tables;
            assert_eq!(check(tables, false, 0x7000, 8), None);
            let index = jump_index(0x7010);
            assert_eq!(tables.jumps[index].tag, empty_jump(index));
        }
    }

    #[test]
    fn supervisor_code_keeps_only_global_pages_in_another_space() {
        let mut spaces = spaces();
        let mode = SUPERVISOR;
        spaces.fill(mode, 0x7000, local(0x3000), true);
        spaces.fill(mode, 0x8000, FoundPage { global: true, ..local(0x4000) }, true);
        spaces.fill_jump(mode, 0x7010, 0x1234, false);
        spaces.fill_jump(mode, 0x8010, 0x1234, true);
        spaces.fill(USER, 0x7000, local(0x3000), true);
        let address = spaces.address(mode);
        for pcid in [0, 1] {
            spaces.apply(TlbChange::Select(pcid));
            assert_eq!(spaces.has(mode, 0x7000, false), pcid == 0);
            assert_eq!(spaces.find_jump(mode, 0x7010).is_some(), pcid == 0);
            assert_eq!(spaces.has(USER, 0x7000, false), pcid == 0);
            assert!(spaces.has(mode, 0x8000, true) && spaces.find_jump(mode, 0x8010).is_some());
        }
        assert_eq!(spaces.address(mode), address);
    }

    #[test]
    fn an_empty_jump_entry_matches_no_target_that_looks_there() {
        for index in 0..JUMP_ENTRIES {
            let matched = jump_index(empty_jump(index).wrapping_neg());
            assert!(matched != index && matched ^ 1 != index);
        }
    }

    #[test]
    fn two_targets_with_the_same_first_entry_are_both_kept() {
        let mut spaces = spaces();
        let mode = USER;
        let other =
            (1..).map(|n| 0x40_0000 + n * 4).find(|t| jump_index(*t) == jump_index(0x40_0000));
        let targets = [0x40_0000, other.unwrap()];
        for target in targets {
            spaces.fill_jump(mode, target, target + 1, false);
        }
        assert_eq!(targets.map(|t| spaces.find_jump(mode, t)), targets.map(|t| Some(t + 1)));
        spaces.apply(TlbChange::Page(0x40_0000));
        assert_eq!(spaces.find_jump(mode, targets[0]), None);
    }
}
