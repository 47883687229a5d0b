//! From one mode of paging to another (4.1.2).

use crate::scene::*;
use kit::page::poke;
use kit::{Outcome, Report, snippet32};

pub fn run(t: &mut Report) {
    set32(&TABLE, 9, data(0) as u32 | 3);
    set64(&PAE_TABLE, 9, data(1) | 3);
    poke(data(0), 0x3232);
    poke(data(1), 0x6464);
    off_and_on(t);
    flat(t);
}

const ADDRESS: u32 = WINDOW + 0x9000;

/// PAE with paging off, several times.
fn off_and_on(t: &mut Report) {
    let code = snippet32!(
        "mov edi, 3",
        "2:",
        "mov eax, [ebx]",
        "add esi, eax",
        "mov eax, cr0",
        "btc eax, 31",
        "mov cr0, eax",
        "mov eax, cr4",
        "btc eax, 5",
        "mov cr4, eax",
        "mov eax, cr3",
        "mov cr3, ecx",
        "mov ecx, eax",
        "mov eax, cr0",
        "btc eax, 31",
        "mov cr0, eax",
        "mov eax, [ebx]",
        "add edx, eax",
        "mov eax, cr0",
        "btc eax, 31",
        "mov cr0, eax",
        "mov eax, cr4",
        "btc eax, 5",
        "mov cr4, eax",
        "mov eax, cr3",
        "mov cr3, ecx",
        "mov ecx, eax",
        "mov eax, cr0",
        "btc eax, 31",
        "mov cr0, eax",
        "dec edi",
        "jnz 2b"
    );
    let trap = paged32(code).ebx(ADDRESS).ecx(pointers()).run();
    let got = (trap.outcome(), trap.regs.rsi, trap.regs.rdx);
    t.eq("32-bit paging to PAE and back", got, (Outcome::Done, 3 * 0x3232, 3 * 0x6464));
}

/// Turning paging off makes linear addresses physical at once.
fn flat(t: &mut Report) {
    poke(0x40_0000, 0x1357);
    set32(&DIRECTORY, 1, 0x80_0083);
    poke(0x80_0000, 0x2468);
    let code = snippet32!(
        "mov ecx, [ebx]",
        "mov eax, cr0",
        "btr eax, 31",
        "mov cr0, eax",
        "mov edx, [ebx]",
        "bts eax, 31",
        "mov cr0, eax",
        "mov esi, [ebx]"
    );
    let trap = paged32(code).ebx(0x40_0000).run();
    let got = (trap.outcome(), trap.regs.rcx, trap.regs.rdx, trap.regs.rsi);
    t.eq("paging off and on", got, (Outcome::Done, 0x2468, 0x1357, 0x2468));
    set32(&DIRECTORY, 1, 0x40_0083);
}
