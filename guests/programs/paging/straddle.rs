//! Accesses and instructions that lie on two pages.

use crate::{DATA, FULL, OTHER, SPOT};
use kit::cpu::feature;
use kit::page::{self, bit};
use kit::{Code, Frame4K, Global, Mode, Outcome, Report, snippet, tables};

/// Two neighbouring pages; physically they lie apart, in reverse order.
const FIRST: u64 = page::WINDOW + (8 << 30);
const SECOND: u64 = FIRST + 4096;

/// The two frames by physical address.
fn low_and_high() -> (&'static Global<Frame4K>, &'static Global<Frame4K>) {
    if DATA.addr() < OTHER.addr() { (&DATA, &OTHER) } else { (&OTHER, &DATA) }
}

fn map(first: u64, second: u64) {
    let (low, high) = low_and_high();
    page::map(FIRST, high.addr(), first);
    page::map(SECOND, low.addr(), second);
    for i in 0..32 {
        page::poke(high.addr() + 3840 + i * 8, 0x1111_1111_1111_1111);
        page::poke(low.addr() + SPOT + i * 8, 0x2222_2222_2222_2222);
        if i < 4 {
            page::poke(low.addr() + i * 8, 0x2222_2222_2222_2222);
        }
    }
}

/// The 16 bytes on each side of the boundary, read through the identity map.
fn around() -> [u64; 4] {
    let (low, high) = low_and_high();
    [high.addr() + 4080, high.addr() + 4088, low.addr(), low.addr() + 8].map(page::peek)
}

const CLEAN: [u64; 4] =
    [0x1111_1111_1111_1111, 0x1111_1111_1111_1111, 0x2222_2222_2222_2222, 0x2222_2222_2222_2222];

pub fn run(t: &mut Report) {
    success(t);
    faults(t);
    pushes(t);
    fetch(t);
    DATA.write(0, &[0xcd, tables::END_VECTOR]);
    OTHER.write(0, &[0xcd, tables::END_VECTOR]);
}

fn success(t: &mut Report) {
    map(FULL, FULL);
    let trap = snippet!("mov rax, [rbx]").at(Mode::User64).rbx(SECOND - 4).run();
    t.eq("read over two pages", trap.regs.rax, 0x2222_2222_1111_1111);
    snippet!("mov [rbx], rax").at(Mode::User64).rbx(SECOND - 3).rax(0x8877_6655_4433_2211).run();
    let expected = [CLEAN[0], 0x3322_1111_1111_1111, 0x2222_2288_7766_5544, CLEAN[3]];
    t.eq("write over two pages", around(), expected);
    map(FULL, FULL);
    snippet!("add [rbx], rax").at(Mode::User64).rbx(SECOND - 1).rax(0x0101).run();
    let expected = [CLEAN[0], 0x1211_1111_1111_1111, 0x2222_2222_2222_2223, CLEAN[3]];
    t.eq("add over two pages", around(), expected);
    let first = page::entry(FIRST, 1).get();
    let second = page::entry(SECOND, 1).get();
    t.eq("both pages dirty", (first & bit::D, second & bit::D), (bit::D, bit::D));
}

/// One page of the two is missing or read-only: the address in CR2, and no
/// part of the write happens.
fn faults(t: &mut Report) {
    let stores = [
        ("mov 16-bit", snippet!("mov [rbx], ax"), 1),
        ("mov 32-bit", snippet!("mov [rbx], eax"), 3),
        ("mov 64-bit", snippet!("mov [rbx], rax"), 5),
        ("movups", snippet!("movups [rbx], xmm0"), 9),
        ("fstp 80-bit", snippet!("fninit", "fldpi"; "fstp tbyte ptr [rbx]"), 3),
        ("movnti", snippet!("movnti [rbx], rax"), 2),
    ];
    write_faults(t, "straddling stores that fault write nothing", &stores);
    let changes = [
        ("add 64-bit", snippet!("add [rbx], rax"), 1),
        ("lock add 64-bit", snippet!("lock add [rbx], rax"), 4),
        ("xchg 64-bit", snippet!("xchg [rbx], rax"), 7),
        ("cmpxchg 64-bit", snippet!("cmpxchg [rbx], rcx"), 3),
        ("bts 32-bit", snippet!("bts dword ptr [rbx], 1"), 1),
    ];
    write_faults(t, "straddling changes that fault write nothing", &changes);

    map(FULL, 0);
    let read = snippet!("mov rax, [rbx]").at(Mode::User64).rbx(SECOND - 4).rax(9).run();
    t.eq("straddling read, second absent", read.outcome(), Outcome::page(4, SECOND));
    t.eq("straddling read keeps the register", read.regs.rax, 9);
    if feature::AVX.offered() {
        let old = kit::cpu::read_cr4();
        kit::cpu::write_cr4(old | kit::cpu::cr4::OSXSAVE);
        kit::cpu::try_xsetbv(0, 7);
        map(FULL, 0);
        let code = snippet!("vmovups [rbx], ymm0").at(Mode::User64).rbx(SECOND - 17);
        t.eq("vmovups, second absent", code.outcome(), Outcome::page(6, SECOND));
        t.eq("vmovups wrote nothing", around(), CLEAN);
        kit::cpu::write_cr4(old);
    }
}

/// Each of the stores, with so many bytes on the first page.
fn write_faults(t: &mut Report, name: &str, stores: &[(&str, Code, u64)]) {
    let mut table = t.table(name);
    for &(name, code, before) in stores {
        for mode in [Mode::Kernel64, Mode::User64] {
            let error = if mode == Mode::User64 { 6 } else { 2 };
            let at = SECOND - before;
            let run = code.at(mode).rbx(at).rax(0x5a5a_5a5a_5a5a_5a5a);
            let mut case = |what: &str, first, second, expected: Outcome| {
                map(first, second);
                let got = (run.outcome(), around());
                table.eq(format_args!("{name} {mode:?} {what}"), got, (expected, CLEAN));
            };
            let read_only = FULL & !bit::W;
            case("second absent", FULL, 0, Outcome::page(error, SECOND));
            case("second read-only", FULL, read_only, Outcome::page(error | 1, SECOND));
            case("first absent", 0, FULL, Outcome::page(error, at));
            case("first read-only", read_only, FULL, Outcome::page(error | 1, at));
            case("both absent", 0, 0, Outcome::page(error, at));
        }
    }
    table.finish();
}

fn pushes(t: &mut Report) {
    map(0, FULL);
    let trap = snippet!("push rax").at(Mode::User64).rsp(SECOND + 4).run();
    let got = (trap.outcome(), trap.rsp);
    t.eq("push over two pages", got, (Outcome::page(6, SECOND - 4), SECOND + 4));
    map(FULL, 0);
    let trap = snippet!("pop rax").at(Mode::User64).rsp(SECOND - 4).run();
    let got = (trap.outcome(), trap.rsp);
    t.eq("pop over two pages", got, (Outcome::page(4, SECOND), SECOND - 4));
    map(FULL, FULL);
    let trap = snippet!("push rax", "pop rcx").at(Mode::User64).rsp(SECOND + 4).rax(77).run();
    t.eq("push and pop over two pages", trap.regs.rcx, 77);
}

/// An instruction whose end lies on a page that cannot be fetched.
fn fetch(t: &mut Report) {
    // mov rax, imm64 (10 bytes), then INT.
    let code = [0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, 0xcd, tables::END_VECTOR];
    let mut table = t.table("instruction over two pages");
    for before in 1..10usize {
        map(FULL, FULL);
        let (low, high) = low_and_high();
        high.write(4096 - before, &code[..before]);
        low.write(0, &code[before..]);
        for mode in [Mode::Kernel64, Mode::User64] {
            let mut run = snippet!("nop").at(mode);
            run.rip = SECOND - before as u64;
            run.mark = run.rip;
            page::entry(SECOND, 1).set(low.addr() | FULL);
            page::invlpg(SECOND);
            let trap = run.run();
            let got = (trap.outcome(), trap.regs.rax);
            let expected = (Outcome::Done, 0x0807_0605_0403_0201);
            table.eq(format_args!("{before} bytes before, {mode:?}"), got, expected);
            let user = if mode == Mode::User64 { 4 } else { 0 };
            page::entry(SECOND, 1).set(low.addr() | FULL | bit::NX);
            page::invlpg(SECOND);
            let trap = run.run();
            let got = (trap.outcome(), trap.regs.rax);
            let expected = (Outcome::page(0x11 | user, SECOND), 0);
            table.eq(format_args!("{before} bytes before, {mode:?}, NX"), got, expected);
            page::entry(SECOND, 1).set(0);
            page::invlpg(SECOND);
            let expected = Outcome::page(0x10 | user, SECOND);
            table.eq(
                format_args!("{before} bytes before, {mode:?}, absent"),
                run.outcome(),
                expected,
            );
        }
    }
    table.finish();

    // The instruction before the edge completes first.
    map(FULL, 0);
    let (_, high) = low_and_high();
    high.write(4093, &[0xff, 0xc0, 0x90]); // inc eax; nop
    let mut run = snippet!("nop").at(Mode::User64);
    run.rip = SECOND - 3;
    run.mark = SECOND;
    let trap = run.run();
    let got = (trap.outcome(), trap.regs.rax);
    t.eq("running into an absent page", got, (Outcome::page(0x14, SECOND), 1));
    // A prefix run of 15 bytes at the edge: the length fault needs 16 bytes,
    // so the missing page comes first only if a byte of it is wanted.
    high.write(4081, &[0x66; 15]);
    run.rip = SECOND - 15;
    run.mark = run.rip;
    t.holds("15 prefixes before an absent page", run.outcome(), |&outcome| {
        outcome == Outcome::fault(13) || outcome == Outcome::page(0x14, SECOND)
    });
}
