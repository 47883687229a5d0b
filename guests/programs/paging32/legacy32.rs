//! 32-bit paging (4.3).

use crate::scene::*;
use kit::cpu;
use kit::page::{peek, poke};
use kit::trap::vector::PF;
use kit::{Code, Outcome, Report, snippet32};

const READ: fn() -> Code = || snippet32!("mov eax, [ebx]");
const WRITE: fn() -> Code = || snippet32!("mov [ebx], eax");
/// Index of a directory entry that checks may use, and its address.
const SPARE: u32 = 0x110;
const SPARE_ADDRESS: u32 = SPARE << 22;

pub fn run(t: &mut Report) {
    large(t);
    reserved(t);
    pse36(t);
    without_pse(t);
    bits(t);
    global(t);
    straddle(t);
}

fn read(address: u32) -> kit::Trap {
    paged32(READ()).ebx(address).run()
}

fn large(t: &mut Report) {
    poke(0x40_0000 + 0x1230, 0x1111_2222);
    set32(&DIRECTORY, SPARE, 0x40_0083);
    let got = read(SPARE_ADDRESS + 0x1230).regs.rax;
    t.eq("4 MiB page", got, 0x1111_2222);
    t.eq("4 MiB page: accessed, not dirty", get32(&DIRECTORY, SPARE), 0x40_00a3);
    paged32(WRITE()).ebx(SPARE_ADDRESS + 0x3f_fffc).eax(5).run();
    t.eq("4 MiB page: dirty", get32(&DIRECTORY, SPARE), 0x40_00e3);
    t.eq("4 MiB page: the last doubleword", peek(0x7f_fff8) >> 32, 5);
    // PAT, PWT, PCD and the bits for software change nothing.
    set32(&DIRECTORY, SPARE, 0x40_1e9b);
    t.eq(
        "4 MiB page: memory type and software bits",
        read(SPARE_ADDRESS + 0x1230).regs.rax,
        0x1111_2222,
    );
    set32(&DIRECTORY, SPARE, 0);
    t.eq(
        "absent directory entry",
        read(SPARE_ADDRESS).outcome(),
        Outcome::page(0, SPARE_ADDRESS.into()),
    );
    set32(&DIRECTORY, SPARE, 0x40_0082);
    t.eq(
        "absent 4 MiB page",
        read(SPARE_ADDRESS).outcome(),
        Outcome::page(0, SPARE_ADDRESS.into()),
    );
}

/// Bit 21 is reserved, and what PSE-36 leaves above the physical width.
fn reserved(t: &mut Report) {
    let width = cpu::physical_bits().min(40);
    let mut table = t.table("4 MiB page: reserved bits");
    for bit in 13..22 {
        set32(&DIRECTORY, SPARE, 0x83 | 1 << bit);
        let outcome = read(SPARE_ADDRESS + 8).outcome();
        // Bit 13 is address bit 32.
        let reserved = bit == 21 || bit + 19 >= width;
        let expected =
            if reserved { Outcome::page(9, u64::from(SPARE_ADDRESS) + 8) } else { Outcome::Done };
        table.eq(format_args!("bit {bit}"), outcome, expected);
    }
    table.finish();
    let write = paged32(WRITE()).ebx(SPARE_ADDRESS);
    set32(&DIRECTORY, SPARE, 0x83 | 1 << 21);
    t.eq(
        "4 MiB page: reserved bit on a write",
        write.outcome(),
        Outcome::page(0xb, SPARE_ADDRESS.into()),
    );
    // Not in an absent entry.
    set32(&DIRECTORY, SPARE, 0x82 | 1 << 21);
    t.eq(
        "4 MiB page: absent before reserved",
        write.outcome(),
        Outcome::page(2, SPARE_ADDRESS.into()),
    );
}

/// Address bits 39:32 in bits 20:13: what is above 4 GiB is not what is below.
fn pse36(t: &mut Report) {
    poke(0x40_0000 + 0x2340, 0x3333_4444);
    set32(&DIRECTORY, SPARE, 0x40_0083 | 1 << 13);
    let code = snippet32!("mov ecx, [ebx]", "mov dword ptr [ebx], 0x55555555");
    let trap = paged32(code).ebx(SPARE_ADDRESS + 0x2340).run();
    t.eq("PSE-36: no fault", trap.outcome(), Outcome::Done);
    t.eq("PSE-36: memory below 4 GiB is not written", peek(0x40_2340), 0x3333_4444);
}

/// With CR4.PSE clear bit 7 means nothing: the entry names a table.
fn without_pse(t: &mut Report) {
    // All of the image by small pages; the tables of the rest are not needed.
    static TABLES: kit::Global<[kit::Frame4K; 4]> = kit::Global::new([kit::ZERO_FRAME; 4]);
    static TOP: kit::Global<kit::Frame4K> = kit::Global::new(kit::ZERO_FRAME);
    for page in 0..4096_u32 {
        poke(
            TABLES.addr() + u64::from(page) * 4 / 8 * 8,
            u64::from(page | 1) << 44 | 3 << 32 | u64::from(page & !1) << 12 | 3,
        );
    }
    for table in 0..4_u32 {
        set32(&TOP, table, TABLES.addr() as u32 + table * 4096 | 3);
    }
    set32(&TOP, SPARE, TABLE.addr() as u32 | 0x83);
    set32(&TABLE, 2, data(0) as u32 | 3);
    poke(data(0), 0x7777_8888);
    let mut run = paged32(READ()).ebx(SPARE_ADDRESS + 0x2000);
    run.cr3 = TOP.addr() as u32;
    run.cr4 &= !PSE;
    let trap = run.run();
    t.eq(
        "PSE clear: the entry names a table",
        (trap.outcome(), trap.regs.rax),
        (Outcome::Done, 0x7777_8888),
    );
    t.eq(
        "PSE clear: accessed bits",
        (get32(&TOP, SPARE) & 0x60, get32(&TABLE, 2) & 0x60),
        (0x20, 0x20),
    );
}

/// Accessed and dirty bits of small pages, by what an instruction does.
fn bits(t: &mut Report) {
    let cases: [(&str, Code, u32); 5] = [
        ("read", READ(), 0x20),
        ("write", WRITE(), 0x60),
        ("update", snippet32!("inc dword ptr [ebx]"), 0x60),
        ("compare that fails", snippet32!("lock cmpxchg [ebx], ecx"), 0x60),
        ("push", snippet32!("mov esp, ebx", "add esp, 4", "push eax", "mov esp, ebp"), 0x60),
    ];
    for (name, code, expected) in cases {
        set32(&TABLE, 3, data(0) as u32 | 3);
        poke(data(0), 1);
        let mut run = paged32(code).ebx(WINDOW + 0x3000);
        run.regs[6] = run.esp;
        let outcome = run.outcome();
        t.eq(
            format_args!("bits: {name}"),
            (outcome, get32(&TABLE, 3) & 0x60),
            (Outcome::Done, expected),
        );
    }
    let entry = get32(&DIRECTORY, WINDOW >> 22);
    t.eq("bits: the directory entry", entry & 0x60, 0x20);
}

/// Global pages outlive a write of CR3, not of CR4.PGE or INVLPG.
fn global(t: &mut Report) {
    poke(data(0), 1);
    poke(data(1), 2);
    let entry = TABLE.addr() as u32 + 16;
    let check = |flags: u32, code: Code| {
        set32(&TABLE, 4, data(0) as u32 | flags);
        let mut run = paged32(code).ebx(WINDOW + 0x4000).ecx(entry);
        run.cr4 |= PGE;
        run.regs[3] = data(1) as u32 | flags;
        let trap = run.run();
        (trap.outcome(), trap.regs.rax)
    };
    let cr3 = snippet32!(
        "mov eax, [ebx]",
        "mov [ecx], edx",
        "mov eax, cr3",
        "mov cr3, eax",
        "mov eax, [ebx]"
    );
    t.eq("a page after MOV CR3", check(3, cr3), (Outcome::Done, 2));
    let pge = snippet32!(
        "mov eax, [ebx]",
        "mov [ecx], edx",
        "mov eax, cr4",
        "btr eax, 7",
        "mov cr4, eax",
        "mov eax, [ebx]"
    );
    t.eq("a global page after clearing PGE", check(0x103, pge), (Outcome::Done, 2));
    let invlpg = snippet32!("mov eax, [ebx]", "mov [ecx], edx", "invlpg [ebx]", "mov eax, [ebx]");
    t.eq("a global page after INVLPG", check(0x103, invlpg), (Outcome::Done, 2));
}

fn straddle(t: &mut Report) {
    set32(&TABLE, 6, data(0) as u32 | 3);
    set32(&TABLE, 7, 0);
    let write = snippet32!("mov [ebx], eax");
    poke(data(0) + 0xff8, 0);
    let trap = paged32(write).ebx(WINDOW + 0x6ffe).eax(!0).run();
    let got = (trap.vector, trap.error, trap.cr2, peek(data(0) + 0xff8));
    t.eq("a write across into an absent page", got, (PF, 2, u64::from(WINDOW) + 0x7000, 0));
    set32(&TABLE, 7, data(1) as u32 | 3);
    paged32(write).ebx(WINDOW + 0x6ffe).eax(0x1122_3344).run();
    let got = (peek(data(0) + 0xff8) >> 48, peek(data(1)) & 0xffff);
    t.eq("a write across two pages", got, (0x3344, 0x1122));
}
