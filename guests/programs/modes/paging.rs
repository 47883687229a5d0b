//! PAE and 32-bit paging (SDM vol. 3A 4.3, 4.4).

use crate::privilege::with_task;
use kit::cpu::feature;
use kit::legacy::{CR0_FLAT, CR4_PLAIN, Legacy, at};
use kit::page::bit;
use kit::snippet::USER_BASE;
use kit::trap::vector::GP;
use kit::{Frame4K, Global, Outcome, Report, Trap, ZERO_FRAME, boot, snippet32, tables};

/// Page-directory pointers for PAE; the kit's page directories serve below.
static POINTERS: Global<Frame4K> = Global::new(ZERO_FRAME);
/// Page directory and page table of 32-bit paging.
static DIRECTORY: Global<Frame4K> = Global::new(ZERO_FRAME);
static TABLE: Global<Frame4K> = Global::new(ZERO_FRAME);
static DATA: Global<Frame4K> = Global::new(ZERO_FRAME);

const PG: u32 = 1 << 31;
const PSE: u32 = 1 << 4;
const PAE: u32 = 1 << 5;
/// Unmapped in both kinds of tables.
const HOLE: u32 = 0x4000_0000;

/// Lets the run use PAE paging: identity, and the user alias at 2 GiB.
pub fn enable_pae(run: &mut Legacy) {
    for i in 0..4u64 {
        let entry = boot::PAGE_DIRECTORIES.addr() + i * 4096 | bit::P;
        POINTERS.write(i as usize * 8, &entry.to_le_bytes());
    }
    run.cr0 = CR0_FLAT | PG;
    run.cr3 = POINTERS.addr() as u32;
    run.cr4 = CR4_PLAIN | PAE;
}

/// Lets the run use 32-bit paging with 4 MiB pages: identity for the first
/// GiB, the user alias at 2 GiB, and a table of 4 KiB pages at HOLE.
fn enable_32(run: &mut Legacy) {
    for i in 0..256u32 {
        let flags = (bit::P | bit::W | bit::PS) as u32;
        set(&DIRECTORY, i, i << 22 | flags);
        set(&DIRECTORY, 512 + i, i << 22 | flags | bit::U as u32);
    }
    set(&DIRECTORY, HOLE >> 22, TABLE.addr() as u32 | 7);
    run.cr0 = CR0_FLAT | PG;
    run.cr3 = DIRECTORY.addr() as u32;
    run.cr4 = CR4_PLAIN | PSE;
}

fn set(table: &Global<Frame4K>, index: u32, value: u32) {
    table.write(index as usize * 4, &value.to_le_bytes());
}

fn get(table: &Global<Frame4K>, index: u32) -> u32 {
    u32::from_le_bytes(table.read(index as usize * 4))
}

fn task_run(run: Legacy) -> Trap {
    let trap = with_task(run).run();
    tables::load_tr(tables::TSS_LIMIT);
    trap
}

pub fn run(t: &mut Report) {
    pae(t);
    thirty_two(t);
    small_pages(t);
}

fn pae(t: &mut Report) {
    let read = snippet32!("mov eax, [ebx]");
    let mut run = at(read).ebx(HOLE);
    enable_pae(&mut run);
    t.eq("PAE: #PF", run.outcome(), Outcome::page(0, HOLE.into()));
    run.regs[1] = kit::snippet::stack_top() as u32 - 64;
    t.eq("PAE: read", run.outcome(), Outcome::Done);
    let mut user = at(read).ring3(USER_BASE as u32).ebx(tables::gdt_addr() as u32);
    enable_pae(&mut user);
    let got = task_run(user).outcome();
    t.eq("PAE: supervisor page in ring 3", got, Outcome::page(5, tables::gdt_addr()));
    user.regs[1] = USER_BASE as u32 + kit::snippet::stack_top() as u32 - 64;
    t.eq("PAE: user page in ring 3", task_run(user).outcome(), Outcome::Done);
    // The pointers are read when CR3 is written.
    let mut reload = at(snippet32!("mov eax, cr3"; "mov cr3, eax", "nop"));
    enable_pae(&mut reload);
    t.eq("PAE: reload", reload.outcome(), Outcome::Done);
    let mut bad = at(snippet32!(
        "mov eax, cr3", "or dword ptr [eax + 24], 2"; "mov cr3, eax", "nop"
    ));
    enable_pae(&mut bad);
    t.eq("#GP PAE: reserved bit in a pointer", bad.outcome(), Outcome::fault(GP));
    if feature::NX.offered() {
        // The fetch from a no-execute page: NXE stays set in EFER.
        let directory = boot::PAGE_DIRECTORIES.addr() + 4096;
        kit::page::poke(directory, DATA.addr() & !0x1f_ffff | bit::P | bit::PS | bit::NX);
        let mut fetch = at(snippet32!("jmp ebx")).ebx(HOLE + (DATA.addr() as u32 & 0x1f_ffff));
        enable_pae(&mut fetch);
        let address = u64::from(fetch.regs[1]);
        fetch.mark = fetch.regs[1];
        t.eq("PAE: no-execute", fetch.outcome(), Outcome::page(0x11, address));
        kit::page::poke(directory, 0);
    }
}

fn thirty_two(t: &mut Report) {
    let read = snippet32!("mov eax, [ebx]");
    let mut run = at(read).ebx(0x7000_0000);
    enable_32(&mut run);
    t.eq("32-bit paging: #PF", run.outcome(), Outcome::page(0, 0x7000_0000));
    run.regs[1] = tables::gdt_addr() as u32;
    t.eq("32-bit paging: 4 MiB page", run.outcome(), Outcome::Done);
    let index = tables::gdt_addr() as u32 >> 22;
    t.eq("32-bit paging: accessed", get(&DIRECTORY, index) & 0x20, 0x20);
    let mut user = at(read).ring3(USER_BASE as u32).ebx(tables::gdt_addr() as u32);
    enable_32(&mut user);
    let got = task_run(user).outcome();
    t.eq("32-bit paging: supervisor page in ring 3", got, Outcome::page(5, tables::gdt_addr()));
    // The D bit of a 4 MiB page.
    let mut write = at(snippet32!("mov [ebx], eax")).ebx(USER_BASE as u32 + DATA.addr() as u32);
    enable_32(&mut write);
    write.run();
    let entry = get(&DIRECTORY, 512 + (DATA.addr() as u32 >> 22));
    t.eq("32-bit paging: dirty 4 MiB page", entry & 0x60, 0x60);
}

fn small_pages(t: &mut Report) {
    kit::page::poke(DATA.addr() + 16, 0x1234_5678);
    let index = 5;
    let address = HOLE + index * 4096 + 16;
    let read = snippet32!("mov eax, [ebx]");
    let write = snippet32!("mov [ebx], eax");
    let mut table = t.table("32-bit paging, 4 KiB page");
    for flags in 0..8u32 {
        let (present, writable, user_page) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
        for ring3 in [false, true] {
            for (kind, code) in [(0u64, read), (2, write)] {
                set(&TABLE, index, DATA.addr() as u32 | flags);
                let mut run = at(code).ebx(address);
                if ring3 {
                    run = run.ring3(USER_BASE as u32);
                }
                enable_32(&mut run);
                let outcome = task_run(run).outcome();
                let user = if ring3 { 4 } else { 0 };
                let allowed = present && (!ring3 || user_page) && (kind == 0 || writable);
                let expected = if allowed {
                    Outcome::Done
                } else {
                    Outcome::page(kind | user | u64::from(present), address.into())
                };
                table.eq(
                    format_args!("flags {flags:#x} ring3 {ring3} kind {kind}"),
                    outcome,
                    expected,
                );
                let bits = get(&TABLE, index) & 0x40;
                let dirty = if allowed && kind == 2 { 0x40 } else { 0 };
                table.eq(
                    format_args!("dirty, flags {flags:#x} ring3 {ring3} kind {kind}"),
                    bits,
                    dirty,
                );
            }
        }
    }
    table.finish();
}
