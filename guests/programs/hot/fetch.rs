//! Instructions: jumps into the middle, prefixes without end, code in no memory, code that takes its
//! own page away.

use crate::{FULL, WARM};
use kit::page::{self, bit};
use kit::trap::vector::{GP, UD};
use kit::{Frame4K, Global, Mode, Outcome, Report, Run, ZERO_FRAME, snippet, tables};

static CODE: Global<Frame4K> = Global::new(ZERO_FRAME);
static OTHER: Global<Frame4K> = Global::new(ZERO_FRAME);
/// Linear address of [`CODE`]; the pages around it are absent.
const AT: u64 = page::WINDOW + (5 << 30) + (11 << 12);
/// Physical addresses where there is nothing: all bits are set.
const NOWHERE: u64 = 0xd000_0000;
const END: [u8; 2] = [0xcd, tables::END_VECTOR];

pub fn run(t: &mut Report) {
    page::map(AT, CODE.addr(), FULL);
    middle(t);
    prefixes(t);
    nowhere(t);
    own_page(t);
    straddling(t);
}

/// A run in user mode that starts at `address`.
fn at(address: u64) -> Run {
    let mut run = snippet!("nop").at(Mode::User64);
    (run.rip, run.mark) = (address, address);
    run
}

/// Every byte of a long run of instructions as entry, in both orders and mixed.
fn middle(t: &mut Report) {
    // inc eax, 200 times. From an odd byte on: sar bh, 0xc0 swallows a byte more.
    const TIMES: u64 = 200;
    for i in 0..TIMES {
        CODE.write(2 * i as usize, &[0xff, 0xc0]);
    }
    // What the odd entries leave of the last one: the first byte of the end is its operand.
    CODE.write(2 * TIMES as usize, &[0x90, 0x90, END[0], END[1]]);
    let mut table = t.table("jumps into the middle of blocks");
    let mut entry = 1;
    for turn in 0..3 * 2 * TIMES {
        let offset = match turn / (2 * TIMES) {
            0 => turn,
            1 => 2 * TIMES - 1 - turn % (2 * TIMES),
            _ => {
                // All offsets in a mixed order: 7 generates the numbers below 401 but zero.
                entry = entry * 7 % 401;
                entry % (2 * TIMES)
            }
        };
        let skipped = if offset % 2 == 0 { offset } else { offset + 3 };
        let expected = (2 * TIMES).saturating_sub(skipped) / 2;
        table.eq(format_args!("{offset}"), at(AT + offset).run().regs.rax, expected);
    }
    table.finish();
    // mov eax, imm32 whose operand is code: inc ecx; inc ecx, entered as both in turn.
    let code = [0xb8, 0xff, 0xc1, 0xff, 0xc1, END[0], END[1]];
    CODE.write(0, &code);
    let mut table = t.table("jumps into the middle of an instruction");
    for turn in 0..12 {
        let trap = at(AT + turn % 2).run();
        let expected = if turn % 2 == 0 { (0xc1ff_c1ff, 0) } else { (0, 2) };
        table.eq(format_args!("{turn}"), (trap.regs.rax, trap.regs.rcx), expected);
    }
    table.finish();
}

fn prefixes(t: &mut Report) {
    let mut table = t.table("prefixes without end");
    for prefix in [0x66, 0x67, 0x2e, 0xf2, 0xf3, 0x48] {
        for count in [14, 15, 16, 64] {
            // inc ebx; prefixes; nop; the end
            CODE.fill(0x90);
            CODE.write(0, &[0xff, 0xc3]);
            for i in 0..count {
                CODE.write(2 + i, &[prefix]);
            }
            CODE.write(2 + count + 1, &END);
            let fits = count < 15;
            for turn in 0..WARM {
                let trap = at(AT).run();
                // PAUSE is a NOP as well.
                let expected = if fits {
                    Outcome::Done
                } else {
                    Outcome::Fault { vector: GP, error: 0, at: 2 }
                };
                let got = (trap.outcome(), trap.regs.rbx);
                table.eq(format_args!("{count} of {prefix:#x}, {turn}"), got, (expected, 1));
            }
        }
    }
    table.finish();
    // At the end of the page: 15 bytes are too many, fewer need the absent page.
    let mut table = t.table("prefixes up to an absent page");
    for before in 1..20 {
        CODE.fill(0x66);
        let start = AT + 4096 - before;
        for turn in 0..WARM {
            let expected = match before < 15 {
                true => Outcome::page(0x14, AT + 4096),
                false => Outcome::coded(GP, 0),
            };
            table.eq(format_args!("{before}, {turn}"), at(start).outcome(), expected);
        }
    }
    table.finish();
}

/// Code where there is no memory; and on a page that was memory before.
fn nowhere(t: &mut Report) {
    CODE.fill(0x90);
    CODE.write(0, &END);
    let mut table = t.table("code in no memory");
    for turn in 0..4 {
        table.eq(format_args!("{turn} memory"), at(AT).outcome(), Outcome::Done);
        page::map(AT, NOWHERE, FULL);
        for again in 0..WARM {
            // All ones: the invalid /7 of group 5.
            table.eq(format_args!("{turn}.{again}"), at(AT).outcome(), Outcome::fault(UD));
        }
        page::map(AT, CODE.addr(), FULL);
    }
    table.finish();
    t.eq("data in no memory", page_read(NOWHERE), u64::MAX);
}

fn page_read(physical: u64) -> u64 {
    page::map(AT, physical, FULL);
    let load = snippet!("mov rax, [rdi]");
    let got = load.at(Mode::User64).rdi(AT).run().regs.rax;
    page::map(AT, CODE.addr(), FULL);
    got
}

/// Code that maps another page under itself: what follows INVLPG comes from there.
fn own_page(t: &mut Report) {
    // mov [rdi], rsi; invlpg [rbx]; mov eax, n; the end
    let code =
        |value: u8| [0x48, 0x89, 0x37, 0x0f, 0x01, 0x3b, 0xb8, value, 0, 0, 0, END[0], END[1]];
    CODE.write(0, &code(1));
    OTHER.write(0, &code(2));
    let entry = page::entry(AT, 1);
    let address = entry_address(AT);
    let mut table = t.table("code that remaps its own page");
    for turn in 0..16 {
        let (from, to, expected) = match turn % 2 {
            0 => (&CODE, &OTHER, 2),
            _ => (&OTHER, &CODE, 1),
        };
        page::map(AT, from.addr(), FULL);
        let mut run = at(AT).rdi(address).rsi(to.addr() | FULL).rbx(AT);
        // The page tables are the supervisor's.
        (run.cs, run.ss) = supervisor();
        run.rsp = kit::snippet::stack_top();
        table.eq(format_args!("{turn}"), run.run().regs.rax, expected);
        table.eq(format_args!("{turn} mapped"), entry.get() & page::ADDRESS, to.addr());
    }
    table.finish();
    page::map(AT, CODE.addr(), FULL);
}

/// Selectors of ring 0, 64-bit.
fn supervisor() -> (u64, u64) {
    let (cs, ss) = Mode::Kernel64.selectors();
    (cs.into(), ss.into())
}

/// Where the page-table entry of `address` lies: tables are identity-mapped.
fn entry_address(address: u64) -> u64 {
    let table = page::entry(address, 2).get() & page::ADDRESS;
    table + (address >> 12 & 511) * 8
}

/// An instruction on two pages, the second of which comes, goes and changes.
fn straddling(t: &mut Report) {
    CODE.fill(0x90);
    let mut table = t.table("an instruction on two pages, the second comes and goes");
    for before in 1..5_u64 {
        // mov eax, imm32
        let bytes = [0xb8, 1, 1, 1, 1];
        CODE.write(4096 - before as usize, &bytes[..before as usize]);
        let start = AT + 4096 - before;
        for turn in 0..8_u8 {
            page::map(AT + 4096, OTHER.addr(), 0);
            let got = at(start).outcome();
            table.eq(format_args!("{before} absent {turn}"), got, Outcome::page(0x14, AT + 4096));
            page::map(AT + 4096, OTHER.addr(), bit::P | bit::U | bit::NX);
            let got = at(start).outcome();
            table.eq(format_args!("{before} NX {turn}"), got, Outcome::page(0x15, AT + 4096));
            page::map(AT + 4096, OTHER.addr(), FULL);
            let rest = 5 - before as usize;
            OTHER.write(0, &[turn; 4][..rest]);
            OTHER.write(rest, &END);
            let ones = 0x0101_0101_u64 & ((1 << (8 * (before - 1))) - 1);
            let turns = u64::from(u32::from_le_bytes([turn; 4]));
            let expected = ones | turns & !((1 << (8 * (before - 1))) - 1);
            for _ in 0..WARM {
                table.eq(format_args!("{before} {turn}"), at(start).run().regs.rax, expected);
            }
        }
    }
    table.finish();
    page::map(AT + 4096, OTHER.addr(), 0);
}
