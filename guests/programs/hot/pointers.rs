//! Operands: wild pointers, stack pointers, page ends, accessed and dirty bits.

use crate::{DATA, FULL, PAGE, heated};
use kit::page::{self, bit};
use kit::trap::vector::{GP, SS};
use kit::{Code, Mode, Outcome, Report, Run, snippet};

/// User-mode access to an absent page.
const READ: u64 = 4;
const WRITE: u64 = 6;
/// Lowest non-canonical address, and the lowest canonical one above.
const HOLE: u64 = 0x8000_0000_0000;
const UPPER: u64 = 0xffff_8000_0000_0000;

/// Canonical addresses where nothing is mapped: low ones, such as host programs have (stacks,
/// heaps, libraries, vsyscall), and the ends of the canonical halves.
const ABSENT: [u64; 14] = [
    0x5555_5555_4000,
    0x5655_5555_5010,
    0x7f00_0000_0000,
    0x7f12_3456_7ff0,
    0x7fff_f7dd_0000,
    0x7fff_ffff_e000,
    HOLE - 4096,
    HOLE - 16,
    UPPER,
    UPPER + 0x1000,
    0xffff_ffff_8000_0000,
    0xffff_ffff_ff60_0000,
    0xffff_ffff_ffff_f000,
    0xffff_ffff_ffff_fff0,
];
const NOT_CANONICAL: [u64; 8] = [
    HOLE,
    HOLE + 4096,
    UPPER - 4096,
    UPPER - 16,
    0x0123_4567_89ab_cde0,
    0xdead_beef_dead_bee0,
    0x7fff_ffff_ffff_fff0,
    0x8000_0000_0000_0000,
];

pub fn run(t: &mut Report) {
    wild(t);
    same_slot(t);
    stacks(t);
    page_ends(t);
    loops(t);
    accessed_and_dirty(t);
    rights(t);
}

/// Code that accesses memory at RDI, whether it writes first, and its operand's size.
fn accesses() -> [(&'static str, Code, bool, u64); 12] {
    [
        ("mov r64", snippet!("mov rax, [rdi]"), false, 8),
        ("movzx", snippet!("movzx eax, byte ptr [rdi]"), false, 1),
        ("add r32", snippet!("add eax, [rdi]"), false, 4),
        ("cmp imm", snippet!("cmp word ptr [rdi], 5"), false, 2),
        ("movups", snippet!("movups xmm0, [rdi]"), false, 16),
        ("jmp mem", snippet!("lea rax, [rip + 2f]"; "push [rdi]", "2:"), false, 8),
        ("lodsq", snippet!("push rdi", "pop rsi"; "lodsq"), false, 8),
        ("mov m64", snippet!("mov [rdi], rax"), true, 8),
        ("mov m8", snippet!("mov byte ptr [rdi], 7"), true, 1),
        ("add m32", snippet!("add [rdi], eax"), true, 4),
        ("movaps store", snippet!("movaps [rdi], xmm0"), true, 16),
        ("stosd", snippet!("stosd"), true, 4),
    ]
}

fn wild(t: &mut Report) {
    let mut table = t.table("wild pointers");
    for (name, code, writes, _) in accesses() {
        let error = if writes { WRITE } else { READ };
        for address in ABSENT {
            let got = heated(code, |run| run.rdi(address)).outcome();
            table.eq(format_args!("{name} {address:#x}"), got, Outcome::page(error, address));
        }
        for address in NOT_CANONICAL {
            let got = heated(code, |run| run.rdi(address)).outcome();
            table.eq(format_args!("{name} {address:#x}"), got, Outcome::coded(GP, 0));
        }
    }
    table.finish();
}

/// Addresses that differ from a known page in one bit, or by a little: they may select the same
/// entry of a table.
fn same_slot(t: &mut Report) {
    let mut table = t.table("addresses beside a known page");
    for (name, code, writes, _) in accesses() {
        let error = if writes { WRITE } else { READ };
        for shift in 12..47 {
            let address = PAGE ^ 1 << shift;
            let mapped = page_is_mapped(address);
            let got = heated(code, |run| run.rdi(address)).outcome();
            if !mapped {
                table.eq(format_args!("{name} bit {shift}"), got, Outcome::page(error, address));
            }
        }
        for shift in 47..64 {
            let address = PAGE ^ 1 << shift;
            let got = heated(code, |run| run.rdi(address)).outcome();
            table.eq(format_args!("{name} bit {shift}"), got, Outcome::coded(GP, 0));
        }
    }
    table.finish();
}

/// Whether the kit maps `address`: low memory, user alias, devices.
fn page_is_mapped(address: u64) -> bool {
    address < 1 << 33
}

fn stacks(t: &mut Report) {
    let uses = [
        ("push", snippet!("mov rsp, rdi"; "push rax"), 8, WRITE),
        ("push imm", snippet!("mov rsp, rdi"; "push 5"), 8, WRITE),
        ("pop", snippet!("mov rsp, rdi"; "pop rax"), 0, READ),
        ("call", snippet!("mov rsp, rdi"; "call 2f", "2:"), 8, WRITE),
        ("pushfq", snippet!("mov rsp, rdi"; "pushfq"), 8, WRITE),
        ("mov through rsp", snippet!("mov rsp, rdi"; "mov rax, [rsp]"), 0, READ),
        ("enter", snippet!("mov rsp, rdi"; "enter 32, 0"), 8, WRITE),
        ("leave", snippet!("mov rbp, rdi"; "leave"), 0, READ),
    ];
    let mut table = t.table("wild stack pointers");
    for (name, code, below, error) in uses {
        // Sixteen bytes from the ends of the halves, so that below is in the same half.
        for address in ABSENT.map(|address| address | 8) {
            let got = heated(code, |run| run.rdi(address)).outcome();
            let at = address.wrapping_sub(below);
            table.eq(format_args!("{name} {address:#x}"), got, Outcome::page(error, at));
        }
        for address in NOT_CANONICAL.map(|address| address | 8) {
            let got = heated(code, |run| run.rdi(address)).outcome();
            table.eq(format_args!("{name} {address:#x}"), got, Outcome::coded(SS, 0));
        }
    }
    table.finish();
}

/// Accesses that begin in a known page, or before it, and end in an absent one.
fn page_ends(t: &mut Report) {
    let mut table = t.table("across the ends of a known page");
    for (name, code, writes, size) in accesses() {
        let error = if writes { WRITE } else { READ };
        for over in 1..size {
            let before = page::peek(DATA.addr() + 4088);
            let after = PAGE + 4096;
            let got = heated(code, |run| run.rdi(after - size + over)).outcome();
            // MOVAPS checks its alignment first.
            let expected = |address| match name {
                "movaps store" => Outcome::coded(GP, 0),
                _ => Outcome::page(error, address),
            };
            table.eq(format_args!("{name} {over} over"), got, expected(after));
            let now = page::peek(DATA.addr() + 4088);
            table.eq(format_args!("{name} {over} over, memory"), now, before);
            let address = PAGE - over;
            let got = heated(code, |run| run.rdi(address)).outcome();
            table.eq(format_args!("{name} {over} before"), got, expected(address));
        }
        let got = heated(code, |run| run.rdi(PAGE + 4096 - size)).outcome();
        table.eq(format_args!("{name} at the end"), got, Outcome::Done);
        let got = heated(code, |run| run.rdi(PAGE)).outcome();
        table.eq(format_args!("{name} at the beginning"), got, Outcome::Done);
    }
    table.finish();
}

/// Loops that run from a known page into an absent one: registers are exact at the fault.
fn loops(t: &mut Report) {
    let turn = |run: Run| run.rdi(PAGE + 64).rcx(5000);
    let trap = heated(snippet!("2:"; "mov rax, [rdi]", "add rdi, rsi", "dec rcx", "jnz 2b"), turn);
    let left = 5000 - (4096 - 64) / 8;
    t.eq("a loop of loads stops at the end", trap.outcome(), Outcome::page(READ, PAGE + 4096));
    t.eq("a loop of loads, registers", (trap.regs.rdi, trap.regs.rcx), (PAGE + 4096, left));
    let trap = heated(snippet!("2:"; "mov [rdi], rcx", "add rdi, rsi", "dec rcx", "jnz 2b"), turn);
    t.eq("a loop of stores stops at the end", trap.outcome(), Outcome::page(WRITE, PAGE + 4096));
    t.eq("a loop of stores, registers", (trap.regs.rdi, trap.regs.rcx), (PAGE + 4096, left));
    t.eq("a loop of stores, the last", page::peek(DATA.addr() + 4088), left + 1);
    let down = snippet!("lea rsp, [rdi + 64]", "2:"; "push rcx", "dec rcx", "jnz 2b");
    let trap = heated(down, |run| run.rdi(PAGE + 1024).rcx(5000));
    t.eq("a loop of pushes stops below the page", trap.outcome(), Outcome::page(WRITE, PAGE - 8));
    t.eq("a loop of pushes, registers", (trap.rsp, trap.regs.rcx), (PAGE, 5000 - 1088 / 8));
    let recursion = snippet!(
        "lea rsp, [rdi + 64]", "mov rax, rcx", "call 2f", "jmp 3f", "2:", "dec rax", "jz 4f",
        "call 2b", "4:", "ret", "3:"; "nop"
    );
    let trap = heated(recursion, |run| run.rdi(PAGE + 1024).rcx(5000));
    let depth = 1088 / 8;
    let got = (trap.vector, trap.cr2, trap.rsp, trap.regs.rax);
    t.eq("a recursion stops below the page", got, (14, PAGE - 8, PAGE, 5000 - depth));
}

fn accessed_and_dirty(t: &mut Report) {
    let load = snippet!("mov rax, [rdi]");
    let store = snippet!("mov [rdi], rax");
    let change = snippet!("lock add [rdi], rax");
    let bits = || page::entry(PAGE, 1).get() & (bit::A | bit::D);
    let go = |code: Code| {
        code.at(Mode::User64).rdi(PAGE + 128).run();
    };
    for (name, code) in [("mov", store), ("lock add", change)] {
        (0..4).for_each(|_| go(code));
        page::map(PAGE, DATA.addr(), FULL);
        (0..4).for_each(|_| go(load));
        t.eq(format_args!("{name}: loads leave a page clean"), bits(), bit::A);
        go(code);
        t.eq(format_args!("{name}: a store after loads makes it dirty"), bits(), bit::A | bit::D);
        (0..4).for_each(|_| go(code));
        page::map(PAGE, DATA.addr(), FULL | bit::A);
        go(code);
        t.eq(format_args!("{name}: a store makes it dirty again"), bits(), bit::A | bit::D);
        page::map(PAGE, DATA.addr(), FULL);
        go(load);
        t.eq(format_args!("{name}: a load marks it accessed again"), bits(), bit::A);
    }
}

/// Rights that are taken away and given back, with INVLPG.
fn rights(t: &mut Report) {
    let load = snippet!("mov rax, [rdi]");
    let store = snippet!("mov [rdi], rax");
    let mut table = t.table("rights taken from a known page");
    for turn in 0..8 {
        let at = |code: Code| heated(code, |run| run.rdi(PAGE + 8)).outcome();
        let again = |code: Code| code.at(Mode::User64).rdi(PAGE + 8).outcome();
        table.eq(format_args!("{turn} store"), at(store), Outcome::Done);
        page::map(PAGE, DATA.addr(), bit::P | bit::U);
        table.eq(format_args!("{turn} read-only"), again(store), Outcome::page(7, PAGE + 8));
        table.eq(format_args!("{turn} read-only, load"), again(load), Outcome::Done);
        page::map(PAGE, DATA.addr(), bit::P | bit::W);
        table.eq(format_args!("{turn} supervisor"), again(load), Outcome::page(5, PAGE + 8));
        let supervisor = load.at(Mode::Kernel64).rdi(PAGE + 8).outcome();
        table.eq(format_args!("{turn} supervisor, by it"), supervisor, Outcome::Done);
        table.eq(format_args!("{turn} supervisor again"), again(load), Outcome::page(5, PAGE + 8));
        page::map(PAGE, DATA.addr(), 0);
        table.eq(format_args!("{turn} absent"), again(store), Outcome::page(WRITE, PAGE + 8));
        page::map(PAGE, DATA.addr(), FULL);
    }
    table.finish();
}
