//! What the machine's BIOS says of memory in real mode: INT 12h, and INT 15h with its functions
//! e820h, e801h and 88h (ACPI 6.4, 15.1).
//!
//! Nothing is asked of it but what every BIOS has, and that its answers agree.

#![no_std]
#![no_main]

use kit::page::peek;
use kit::real::{self, DATA, Real, linear};
use kit::{Report, Trap, legacy, snippet};

kit::program!(main);

const SMAP: u32 = 0x534d_4150;
const CARRY: u32 = 1;
/// Entries that a plausible map has at most.
const MAX_ENTRIES: usize = 32;

fn main(t: &mut Report) {
    legacy::init();
    real::init();
    let mut table = t.table("every vector leads to the ROM");
    for vector in 0..=0xff_u64 {
        let far = peek(vector * 4) as u32;
        let address = u64::from(far >> 16) * 16 + u64::from(far & 0xffff);
        table.eq(format_args!("{vector:#x}"), (0xc_0000..0x10_0000).contains(&address), true);
    }
    table.finish();
    for vector in [0x10, 0x12, 0x13, 0x15, 0x16] {
        real::set_vector(vector, peek(u64::from(vector) * 4) as u32);
    }
    let upper = memory_map(t);
    sizes(t, upper);
    others(t);
}

/// INT 15h, and in EBP the flags that it returned.
fn int15() -> Real {
    real::at(snippet!(".code16"; "int 0x15", "pushf", "pop bp"))
}

fn failed(trap: &Trap) -> bool {
    trap.regs.rbp as u32 & CARRY != 0
}

/// Function e820h; returns the bytes of RAM from 1 MiB on.
fn memory_map(t: &mut Report) -> u64 {
    let mut next = 0;
    let (mut entries, mut ram_from_0, mut ram_from_1m) = (0, 0, 0);
    let mut good = true;
    loop {
        let mut run = int15();
        (run.eax, run.ebx, run.ecx, run.edx) = (0xe820, next, 20, SMAP);
        (run.es, run.edi, run.esi) = (DATA.into(), 0x40, 0x1234);
        real::store(linear(DATA, 0x40), &[0xee; 24]);
        let trap = run.run();
        good &= !failed(&trap) && trap.regs.rax as u32 == SMAP && trap.regs.rcx as u32 == 20;
        good &= trap.regs.rsi as u16 == 0x1234 && trap.regs.rdi as u16 == 0x40;
        good &= peek(linear(DATA, 0x50)) >> 32 == 0xeeee_eeee;
        let (base, len) = (peek(linear(DATA, 0x40)), peek(linear(DATA, 0x48)));
        match (peek(linear(DATA, 0x50)) as u32, base) {
            (1, 0) => ram_from_0 = len,
            (1, 0x10_0000) => ram_from_1m = len,
            (kind, _) => good &= (1..=5).contains(&kind),
        }
        (next, entries) = (trap.regs.rbx as u32, entries + 1);
        if next == 0 || !good || entries == MAX_ENTRIES {
            break;
        }
    }
    t.that("e820h: every entry", good);
    t.holds("e820h: number of entries", entries, |n| (3..MAX_ENTRIES).contains(n));
    t.holds("e820h: low memory", ram_from_0, |len| (0x8_0000..=0xa_0000).contains(len));
    t.holds("e820h: memory from 1 MiB", ram_from_1m, |len| *len >= 64 << 20);
    for (name, ebx, ecx, edx) in
        [("signature", 0, 20, 0), ("room", 0, 19, SMAP), ("continuation", 0x10_0000, 20, SMAP)]
    {
        let mut run = int15();
        (run.eax, run.ebx, run.ecx, run.edx, run.es) = (0xe820, ebx, ecx, edx, DATA.into());
        t.that(format_args!("e820h: bad {name}"), failed(&run.run()));
    }
    ram_from_1m
}

fn sizes(t: &mut Report, upper: u64) {
    let base = real::at(snippet!(".code16"; "int 0x12")).run().regs.rax;
    t.holds("int 12h, KiB", base, |kib| (512..=640).contains(kib));
    let mut run = int15();
    run.eax = 0xe801;
    let trap = run.run();
    t.that("e801h", !failed(&trap));
    let regs = trap.regs;
    let both = (regs.rax as u16 == regs.rcx as u16, regs.rbx as u16 == regs.rdx as u16);
    t.eq("e801h: both pairs", both, (true, true));
    let told = u64::from(regs.rax as u16) * 1024 + u64::from(regs.rbx as u16) * 0x1_0000;
    // A BIOS may keep some for itself, and this counts no less than 64 KiB.
    t.holds("e801h: agrees with e820h", told, |told| upper.abs_diff(*told) < 1 << 20);
    let mut run = int15();
    run.eax = 0x8800;
    let trap = run.run();
    t.holds("88h, KiB", trap.regs.rax & 0xffff, |kib| *kib > 14 << 10);
}

fn others(t: &mut Report) {
    let mut run = int15();
    run.eax = 0x7fff;
    let trap = run.run();
    t.eq("unknown function", (failed(&trap), trap.regs.rax >> 8 & 0xff), (true, 0x86));
    // Registers and flags of who asks are kept.
    let mut run = real::at(snippet!(".code16"; "int 0x10", "int 0x12", "pushf", "pop bp"));
    (run.ebx, run.edi, run.eax) = (0x1234_5678, 0x9abc_def0, 0x0f00);
    run.eflags |= CARRY;
    let trap = run.run();
    let got = (trap.regs.rdi as u32, trap.regs.rbp as u32 & CARRY);
    t.eq("what is not asked for stays", got, (0x9abc_def0, CARRY));
}
