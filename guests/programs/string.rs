//! String instructions: REP with faults in the middle, resumption, direction,
//! address size, interrupts and single steps between elements (Intel SDM vol.
//! 1 7.3.9, vol. 2B REP).

#![no_std]
#![no_main]

use kit::apic::{self, reg};
use kit::cpu::{self, flag, msr};
use kit::page::{self, bit};
use kit::trap::{self, Frame};
use kit::{Code, Frame4K, Global, Mode, Outcome, Report, ZERO_FRAME, pit, snippet, snippet32};

kit::program!(main);

/// Three pages in a row of addresses; the middle one comes and goes.
const BASE: u64 = page::LOW_WINDOW + 0x10_0000;
const EDGE: u64 = BASE + 4096;
/// Another row, always present.
const DEST: u64 = page::LOW_WINDOW + 0x20_0000;
const FULL: u64 = bit::P | bit::W | bit::U;
const ABSENT: u64 = 0;

static FRAMES: Global<[Frame4K; 3]> = Global::new([ZERO_FRAME; 3]);
static DEST_FRAMES: Global<[Frame4K; 3]> = Global::new([ZERO_FRAME; 3]);

fn main(t: &mut Report) {
    for i in 0..3 {
        page::map(DEST + i * 4096, DEST_FRAMES.addr() + i * 4096, FULL);
        page::map(BASE + i * 4096, FRAMES.addr() + i * 4096, FULL);
    }
    store_fault(t);
    load_fault(t);
    move_faults(t);
    straddling_element(t);
    backward_fault(t);
    compare_and_scan(t);
    zero_count(t);
    overlap(t);
    address_size(t);
    segment_base(t);
    resumption(t);
    single_step(t);
    interrupted(t);
}

fn second_page(flags: u64) {
    page::map(EDGE, FRAMES.addr() + 4096, flags);
}

/// Fills the three source pages with a pattern and clears the others.
fn fill() {
    for i in 0..3 * 512u64 {
        page::poke(FRAMES.addr() + i * 8, 0x0101_0101_0101_0101u64.wrapping_mul(i % 251));
        page::poke(DEST_FRAMES.addr() + i * 8, 0);
    }
}

const MODES: [Mode; 2] = [Mode::Kernel64, Mode::User64];

/// The error code bit of ring 3.
fn user(mode: Mode) -> u64 {
    if mode == Mode::User64 { 4 } else { 0 }
}

fn store_fault(t: &mut Report) {
    second_page(ABSENT);
    let mut table = t.table("rep stos into an absent page");
    for (size, code) in [
        (1u64, snippet!("rep stosb")),
        (2, snippet!("rep stosw")),
        (4, snippet!("rep stosd")),
        (8, snippet!("rep stosq")),
    ] {
        for mode in MODES {
            for before in [0u64, 1, 5, 64] {
                fill();
                let start = EDGE - before * size;
                let run = code.at(mode).rdi(start).rcx(before + 10).rax(0x7777_7777_7777_7777);
                let trap = run.run();
                let got = (trap.outcome(), trap.regs.rcx, trap.regs.rdi);
                let expected = (Outcome::page(2 | user(mode), EDGE), 10, EDGE);
                table.eq(format_args!("size {size} {mode:?} {before} before"), got, expected);
                let edge = FRAMES.addr() + 4096;
                let written = (0..before * size)
                    .all(|i| page::peek(edge - 8 - i / 8 * 8) >> (56 - i % 8 * 8) & 0xff == 0x77);
                table.eq(format_args!("size {size} {before} written"), written, true);
            }
        }
    }
    table.finish();
    second_page(bit::P | bit::U);
    let trap = snippet!("rep stosb").at(Mode::User64).rdi(EDGE - 3).rcx(8).run();
    let got = (trap.outcome(), trap.regs.rcx);
    t.eq("rep stosb into a read-only page", got, (Outcome::page(7, EDGE), 5));
    second_page(FULL);
}

fn load_fault(t: &mut Report) {
    second_page(ABSENT);
    fill();
    let trap = snippet!("rep lodsd").at(Mode::User64).rsi(EDGE - 12).rcx(9).run();
    let got = (trap.outcome(), trap.regs.rcx, trap.regs.rsi);
    t.eq("rep lodsd", got, (Outcome::page(4, EDGE), 6, EDGE));
    let last = page::peek(FRAMES.addr() + 4088) >> 32;
    t.eq("rep lodsd keeps the last element", trap.regs.rax, last);
    second_page(FULL);
}

/// Source faults, destination faults, and both at once.
fn move_faults(t: &mut Report) {
    second_page(ABSENT);
    let mut table = t.table("rep movs over an absent page");
    for (size, code) in [
        (1u64, snippet!("rep movsb")),
        (2, snippet!("rep movsw")),
        (4, snippet!("rep movsd")),
        (8, snippet!("rep movsq")),
    ] {
        for mode in MODES {
            for before in [0u64, 1, 7, 100] {
                fill();
                let from = code.at(mode).rsi(EDGE - before * size).rdi(DEST).rcx(before + 3);
                let trap = from.run();
                let got = (trap.outcome(), trap.regs.rcx, trap.regs.rsi, trap.regs.rdi);
                let read = Outcome::page(user(mode), EDGE);
                let expected = (read, 3, EDGE, DEST + before * size);
                table.eq(format_args!("from: size {size} {mode:?} {before}"), got, expected);
                let to = code.at(mode).rsi(DEST).rdi(EDGE - before * size).rcx(before + 3);
                let trap = to.run();
                let got = (trap.outcome(), trap.regs.rcx, trap.regs.rsi, trap.regs.rdi);
                let write = Outcome::page(2 | user(mode), EDGE);
                let expected = (write, 3, DEST + before * size, EDGE);
                table.eq(format_args!("to: size {size} {mode:?} {before}"), got, expected);
            }
        }
    }
    table.finish();
    let trap = snippet!("movsb").at(Mode::User64).rsi(EDGE).rdi(EDGE + 8).run();
    t.eq("movsb: the source faults first", trap.outcome(), Outcome::page(4, EDGE));
    second_page(FULL);
}

/// An element that lies on both pages is not moved in part.
fn straddling_element(t: &mut Report) {
    second_page(ABSENT);
    fill();
    let before = page::peek(FRAMES.addr() + 4088);
    let run = snippet!("rep stosq").at(Mode::User64).rdi(EDGE - 19).rcx(5).rax(!0);
    let trap = run.run();
    let got = (trap.outcome(), trap.regs.rcx, trap.regs.rdi);
    t.eq("rep stosq with a straddling element", got, (Outcome::page(6, EDGE), 3, EDGE - 3));
    let now = page::peek(FRAMES.addr() + 4088);
    let expected = before | 0xff_ffff_ffff;
    t.eq("rep stosq wrote whole elements only", now, expected);
    let run = snippet!("rep movsd").at(Mode::Kernel64).rsi(EDGE - 6).rdi(DEST).rcx(5);
    let trap = run.run();
    let got = (trap.outcome(), trap.regs.rcx, trap.regs.rsi, trap.regs.rdi);
    let expected = (Outcome::page(0, EDGE), 4, EDGE - 2, DEST + 4);
    t.eq("rep movsd with a straddling element", got, expected);
    second_page(FULL);
}

fn backward_fault(t: &mut Report) {
    page::map(BASE, 0, ABSENT);
    fill();
    let run = snippet!("rep stosd").at(Mode::User64).flags(flag::DF);
    let trap = run.rdi(EDGE + 8).rcx(10).rax(0x5555_5555).run();
    let got = (trap.outcome(), trap.regs.rcx, trap.regs.rdi);
    t.eq("rep stosd backwards", got, (Outcome::page(6, EDGE - 4), 7, EDGE - 4));
    let run = snippet!("rep movsw").at(Mode::User64).flags(flag::DF);
    let trap = run.rsi(EDGE + 2).rdi(DEST + 100).rcx(10).run();
    let got = (trap.outcome(), trap.regs.rcx, trap.regs.rsi, trap.regs.rdi);
    let expected = (Outcome::page(4, EDGE - 2), 8, EDGE - 2, DEST + 96);
    t.eq("rep movsw backwards", got, expected);
    page::map(BASE, FRAMES.addr(), FULL);
    let trap = snippet!("std", "lodsq", "cld").at(Mode::User64).rsi(EDGE).run();
    t.eq("lodsq backwards", trap.regs.rsi, EDGE - 8);
}

fn compare_and_scan(t: &mut Report) {
    fill_destination(b'a');
    for i in 0..512 {
        page::poke(FRAMES.addr() + i * 8, 0x6161_6161_6161_6161);
    }
    let set = |address: u64, value: u8| {
        // SAFETY: the address lies in this program's frames.
        unsafe { (address as *mut u8).write_volatile(value) };
    };
    set(FRAMES.addr() + 40, b'b');
    let run = |code: Code| code.at(Mode::User64).rsi(BASE).rdi(DEST).rcx(100).rax(0x62).run();
    let trap = run(snippet!("repe cmpsb"));
    let got = (trap.regs.rcx, trap.regs.rsi, trap.regs.rdi, trap.rflags & flag::ZF);
    t.eq("repe cmpsb stops behind the difference", got, (59, BASE + 41, DEST + 41, 0));
    t.eq("repe cmpsb: CF of b - a", trap.rflags & flag::CF, 0);
    let trap = run(snippet!("repne cmpsb"));
    let got = (trap.regs.rcx, trap.rflags & flag::ZF);
    t.eq("repne cmpsb stops behind the first match", got, (99, flag::ZF));
    set(DEST_FRAMES.addr() + 17, b'b');
    let trap = run(snippet!("repne scasb"));
    let got = (trap.regs.rcx, trap.regs.rdi, trap.rflags & flag::ZF);
    t.eq("repne scasb", got, (82, DEST + 18, flag::ZF));
    let trap = run(snippet!("repe scasb"));
    let got = (trap.regs.rcx, trap.regs.rdi, trap.rflags & flag::CF);
    t.eq("repe scasb", got, (99, DEST + 1, 0));
    // Flags of the last comparison when the count runs out.
    let trap = snippet!("repe cmpsb").at(Mode::User64).rsi(BASE).rdi(DEST).rcx(5).run();
    t.eq("repe cmpsb to the end", (trap.regs.rcx, trap.rflags & flag::ZF), (0, flag::ZF));
    second_page(ABSENT);
    let trap = snippet!("repne scasb").at(Mode::User64).rdi(EDGE - 4).rcx(50).rax(1).run();
    let got = (trap.outcome(), trap.regs.rcx, trap.regs.rdi);
    t.eq("repne scasb into an absent page", got, (Outcome::page(4, EDGE), 46, EDGE));
    let trap = snippet!("repe cmpsq").at(Mode::User64).rsi(DEST + 64).rdi(EDGE - 16).rcx(50).run();
    let got = (trap.outcome(), trap.regs.rcx, trap.regs.rsi, trap.regs.rdi);
    let expected = (Outcome::page(4, EDGE), 48, DEST + 80, EDGE);
    t.eq("repe cmpsq into an absent page", got, expected);
    let trap = snippet!("cmpsb").at(Mode::User64).rsi(EDGE).rdi(EDGE + 1).run();
    // Which of its two reads faults first is not laid down.
    t.holds("cmpsb: both absent", trap.outcome(), |&outcome| {
        outcome == Outcome::page(4, EDGE) || outcome == Outcome::page(4, EDGE + 1)
    });
    second_page(FULL);
}

/// Fills the destination pages with a byte.
fn fill_destination(byte: u8) {
    for i in 0..3 * 512 {
        page::poke(DEST_FRAMES.addr() + i * 8, 0x0101_0101_0101_0101 * u64::from(byte));
    }
}

fn zero_count(t: &mut Report) {
    second_page(ABSENT);
    for (name, code) in [
        ("movsb", snippet!("rep movsb")),
        ("stosq", snippet!("rep stosq")),
        ("lodsb", snippet!("rep lodsb")),
        ("cmpsb", snippet!("repe cmpsb")),
        ("scasb", snippet!("repne scasb")),
    ] {
        let trap = code.at(Mode::User64).rsi(EDGE).rdi(EDGE).flags(flag::ZF | flag::CF).run();
        let got = (trap.outcome(), trap.regs.rsi, trap.regs.rdi, trap.rflags & 0xff);
        let expected = (Outcome::Done, EDGE, EDGE, flag::ZF | flag::CF | 2);
        t.eq(format_args!("rep {name} with count 0"), got, expected);
    }
    second_page(FULL);
}

/// Overlapping moves work element by element.
fn overlap(t: &mut Report) {
    fill();
    page::poke(FRAMES.addr(), 0x8877_6655_4433_2211);
    snippet!("rep movsb").at(Mode::User64).rsi(BASE).rdi(BASE + 1).rcx(23).run();
    let got = [0, 8, 16].map(|i| page::peek(FRAMES.addr() + i));
    t.eq("rep movsb one byte ahead fills", got, [0x1111_1111_1111_1111; 3]);
    page::poke(FRAMES.addr(), 0x8877_6655_4433_2211);
    snippet!("rep movsw").at(Mode::User64).rsi(BASE).rdi(BASE + 2).rcx(11).run();
    let got = [0, 8, 16].map(|i| page::peek(FRAMES.addr() + i));
    t.eq("rep movsw one word ahead fills", got, [0x2211_2211_2211_2211; 3]);
    for i in 0..3 {
        page::poke(FRAMES.addr() + i * 8, i + 1);
    }
    let run = snippet!("rep movsq").at(Mode::User64).flags(flag::DF);
    run.rsi(BASE + 16).rdi(BASE + 24).rcx(3).run();
    let got = [0, 8, 16, 24].map(|i| page::peek(FRAMES.addr() + i));
    t.eq("rep movsq backwards shifts up", got, [1, 1, 2, 3]);
    // Over the edge of pages that are not neighbours in memory.
    page::map(EDGE, FRAMES.addr() + 8192, FULL);
    fill();
    snippet!("rep stosb").at(Mode::User64).rdi(EDGE - 100).rcx(200).rax(0xee).run();
    let got = [4088, 8192, 4096].map(|i| page::peek(FRAMES.addr() + i) & 0xff);
    t.eq("rep stosb over pages apart", (got[0], got[1], got[2] == 0xee), (0xee, 0xee, false));
    second_page(FULL);
}

/// The 67 prefix: 32-bit counts and pointers.
fn address_size(t: &mut Report) {
    fill();
    let high = 0xabcd_0000_0000_0000;
    let run = snippet!("addr32 rep movsb").at(Mode::User64);
    let trap = run.rsi(high | BASE).rdi(high | DEST).rcx(high | 5).run();
    let got = (trap.outcome(), trap.regs.rcx, trap.regs.rsi, trap.regs.rdi);
    let expected = (Outcome::Done, 0, BASE + 5, DEST + 5);
    t.eq("addr32 rep movsb", got, expected);
    let trap = snippet!("addr32 lodsd").at(Mode::User64).rsi(high | BASE).run();
    t.eq("addr32 lodsd", (trap.outcome(), trap.regs.rsi), (Outcome::Done, BASE + 4));
    second_page(ABSENT);
    let run = snippet!("addr32 rep stosb").at(Mode::User64);
    let trap = run.rdi(high | (EDGE - 2)).rcx(high | 9).run();
    let got = (trap.outcome(), trap.regs.rcx as u32, trap.regs.rdi as u32);
    t.eq("addr32 rep stosb, fault", got, (Outcome::page(6, EDGE), 7, EDGE as u32));
    let trap = snippet32!("rep stosb").at(Mode::User32).rdi(EDGE - 2).rcx(9).run();
    let got = (trap.outcome(), trap.regs.rcx as u32, trap.regs.rdi as u32);
    t.eq("rep stosb in 32-bit code, fault", got, (Outcome::page(6, EDGE), 7, EDGE as u32));
    second_page(FULL);
}

fn segment_base(t: &mut Report) {
    fill();
    cpu::wrmsr(msr::FS_BASE, 8);
    let trap = snippet!("lodsq fs:[rsi]").at(Mode::User64).rsi(BASE).run();
    t.eq("lodsq fs:", trap.regs.rax, page::peek(FRAMES.addr() + 8));
    let run = snippet!(".byte 0x64", "rep movsq").at(Mode::User64).rsi(BASE + 8).rdi(DEST);
    run.rcx(2).run();
    let got = [0, 8].map(|i| page::peek(DEST_FRAMES.addr() + i));
    let expected = [16, 24].map(|i| page::peek(FRAMES.addr() + i));
    t.eq("rep movsq from fs:", got, expected);
    cpu::wrmsr(msr::FS_BASE, 0);
    let trap = snippet!(".byte 0x64", "stosq").at(Mode::User64).rdi(DEST + 64).rax(5).run();
    let got = (trap.outcome(), page::peek(DEST_FRAMES.addr() + 64));
    t.eq("the destination has no override", got, (Outcome::Done, 5));
}

/// A handler maps the page: the instruction goes on where it was.
fn resumption(t: &mut Report) {
    static FAULTS: Global<u64> = Global::new(0);
    fill();
    second_page(ABSENT);
    FAULTS.set(0);
    trap::hook(
        14,
        Some(|_| {
            FAULTS.set(FAULTS.get() + 1);
            second_page(FULL);
        }),
    );
    let run = snippet!("rep movsb").at(Mode::User64).rsi(BASE + 1).rdi(DEST).rcx(8192);
    let trap = run.run();
    trap::hook(14, None);
    let got = (trap.outcome(), trap.regs.rcx, trap.regs.rsi, FAULTS.get());
    t.eq("rep movsb resumed after a fault", got, (Outcome::Done, 0, BASE + 8193, 1));
    let same = (0..1023u64).all(|i| {
        let source = FRAMES.addr() + i * 8;
        let expected = page::peek(source) >> 8 | page::peek(source + 8) << 56;
        page::peek(DEST_FRAMES.addr() + i * 8) == expected
    });
    t.that("rep movsb resumed: all bytes moved", same);
}

/// With TF set, #DB comes after every element.
fn single_step(t: &mut Report) {
    static STEPS: Global<[(u64, u64); 8]> = Global::new([(0, 0); 8]);
    static COUNT: Global<usize> = Global::new(0);
    fill();
    COUNT.set(0);
    trap::hook(
        1,
        Some(|frame: &mut Frame| {
            let mut steps = STEPS.get();
            let count = COUNT.get();
            if count < 8 {
                steps[count] = (frame.rip, frame.regs.rcx);
            }
            STEPS.set(steps);
            COUNT.set(count + 1);
        }),
    );
    let code = snippet!("push 0x102", "popfq"; "rep movsb", "nop", "push 2", "popfq");
    let trap = code.at(Mode::Kernel64).rsi(BASE).rdi(DEST).rcx(3).run();
    trap::hook(1, None);
    let at = trap.mark;
    let got = (STEPS.get()[..4] == [(at, 2), (at, 1), (at + 2, 0), (at + 3, 0)], COUNT.get());
    // Three elements, NOP, PUSH, POPF (whose own trap still comes).
    t.eq("single step through rep movsb", got, (true, 6));
}

/// A timer interrupts long moves: the saved RIP is the instruction, and the
/// result is complete.
fn interrupted(t: &mut Report) {
    static TAKEN: Global<u64> = Global::new(0);
    static INSIDE: Global<u64> = Global::new(0);
    static BEHIND: Global<u64> = Global::new(0);
    pit::stop();
    apic::enter_xapic();
    apic::enable();
    TAKEN.set(0);
    INSIDE.set(0);
    trap::hook(
        0x40,
        Some(|frame: &mut Frame| {
            TAKEN.set(TAKEN.get() + 1);
            if frame.regs.rcx != 0 && frame.rip != BEHIND.get() {
                INSIDE.set(INSIDE.get() + 1);
            }
            apic::eoi();
        }),
    );
    apic::write(reg::TIMER_DIVIDE, 0xb);
    apic::write(reg::LVT_TIMER, apic::PERIODIC | 0x40);
    let code = snippet!("rep stosb"; "nop");
    BEHIND.set(code.mark);
    let mut complete = true;
    // Up to 1.6 million elements, until an interrupt fell inside.
    for round in 0..200u64 {
        fill();
        apic::write(reg::TIMER_INITIAL, 20_000);
        let run = code.at(Mode::User64).flags(flag::IF).rdi(BASE).rcx(8192).rax(round | 0x80);
        let trap = run.run();
        apic::write(reg::TIMER_INITIAL, 0);
        complete &= trap.regs.rcx == 0 && trap.regs.rdi == BASE + 8192;
        let byte = (round | 0x80) & 0xff;
        let fill = 0x0101_0101_0101_0101 * byte;
        complete &= (0..1024).all(|i| page::peek(FRAMES.addr() + i * 8) == fill);
        if INSIDE.get() >= 3 {
            break;
        }
    }
    apic::write(reg::LVT_TIMER, apic::MASKED);
    trap::hook(0x40, None);
    t.that("interrupted rep stosb completes", complete);
    if INSIDE.get() > 0 {
        t.that("rep stosb is interruptible between elements", true);
    } else {
        let taken = TAKEN.get();
        t.skip(
            "rep stosb is interruptible between elements",
            format_args!("{taken} interrupts, none inside"),
        );
    }
}
