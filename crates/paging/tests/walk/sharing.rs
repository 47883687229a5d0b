//! Tables that others watch or change: dirty log, code pages, concurrent walks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use memory::{DirtyConsumer, RamOffset};
use paging::{Access, Config, Kind, Mode, walk};

use crate::{config, ram, store};

const PWU: u64 = 7;
const READ: Access = Access { kind: Kind::Read, user: false, smap_override: false };
const WRITE: Access = Access { kind: Kind::Write, ..READ };

/// Maps linear page 0 through tables on pages 1 to 4 to page 5.
fn mapped() -> (memory::GuestRam, Config) {
    let ram = ram(16);
    for page in 1..=4 {
        store(&ram, Mode::FourLevel, page << 12, (page + 1) << 12 | PWU);
    }
    (ram, config(Mode::FourLevel, 0x1000))
}

#[test]
fn setting_bits_marks_the_tables_as_written() {
    let (ram, config) = mapped();
    ram.track_dirty(DirtyConsumer::Snapshot, true);
    assert!(ram.dirty_pages(DirtyConsumer::Snapshot).is_empty());
    walk(&ram, &config, 0, READ).expect("mapped");
    assert_eq!(ram.dirty_pages(DirtyConsumer::Snapshot), [1, 2, 3, 4]);
    walk(&ram, &config, 0, READ).expect("mapped");
    assert!(ram.dirty_pages(DirtyConsumer::Snapshot).is_empty(), "all bits were set");
    walk(&ram, &config, 0, WRITE).expect("mapped");
    assert_eq!(ram.dirty_pages(DirtyConsumer::Snapshot), [4], "only the dirty bit");
    walk(&ram, &config, 0x1000, WRITE).expect_err("not mapped");
    assert!(ram.dirty_pages(DirtyConsumer::Snapshot).is_empty());
}

#[test]
fn setting_bits_on_a_code_page_makes_its_code_stale() {
    let (ram, config) = mapped();
    let versions: Vec<u32> = (1..=5).map(|page| ram.watch_code(RamOffset(page << 12))).collect();
    walk(&ram, &config, 0, WRITE).expect("mapped");
    for (page, version) in (1..=5).zip(versions) {
        let stale = ram.code_version(RamOffset(page << 12)) != version;
        assert_eq!(stale, page <= 4, "page {page}");
    }
}

/// Two processors walk while a third flips a bit that software may use: no update is lost, and no
/// walk fails.
#[test]
fn concurrent_walks_lose_no_update() {
    let (ram, config) = mapped();
    let (ram, done) = (&ram, &AtomicBool::new(false));
    let software_bit = 1u64 << 9;
    thread::scope(|scope| {
        for access in [READ, WRITE] {
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(walk(ram, &config, 0x10, access).expect("mapped").gpa, 0x5010);
                }
            });
        }
        for round in 0..20_000 {
            // Clears accessed and dirty, as a kernel does when it ages pages, and flips the bit.
            let at = RamOffset(0x4000);
            let mut old = ram.load::<u64>(at);
            loop {
                assert_eq!(old & software_bit != 0, round % 2 != 0, "an update was lost");
                assert_eq!(old & !(software_bit | 0x60), 0x5007);
                match ram.compare_exchange(at, old, (old ^ software_bit) & !0x60) {
                    Ok(_) => break,
                    Err(now) => old = now,
                }
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}
