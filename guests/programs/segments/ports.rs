//! IN, OUT, INS and OUTS in ring 3: IOPL and the I/O permission bitmap (SDM
//! vol. 1 19.5).

use kit::cpu::flag;
use kit::tables::{load_tr, tss};
use kit::trap::vector::GP;
use kit::{Mode, Outcome, Report, snippet};

/// Ports that are harmless to read: the POST code and the second half of it.
const PORT: u64 = 0x80;
const GP_FAULT: Outcome = Outcome::fault(GP);
/// Limit of the TSS with the whole bitmap and its closing byte.
const FULL_LIMIT: u32 = 103 + 8193;

pub fn run(t: &mut Report) {
    privilege(t);
    bitmap(t);
    string(t);
    limit(t);
    load_tr(kit::tables::TSS_LIMIT);
}

fn input(size: u32, port: u64, flags: u64) -> Outcome {
    let code = match size {
        1 => snippet!("in al, dx"),
        2 => snippet!("in ax, dx"),
        _ => snippet!("in eax, dx"),
    };
    code.at(Mode::User64).rdx(port).flags(flags).outcome()
}

fn privilege(t: &mut Report) {
    t.eq("#GP in, IOPL 0, no bitmap", input(1, PORT, 0), GP_FAULT);
    t.eq("#GP in, IOPL 2, no bitmap", input(1, PORT, 2 << 12), GP_FAULT);
    t.eq("in, IOPL 3", input(1, PORT, flag::IOPL), Outcome::Done);
    let out = snippet!("out 0x80, al").at(Mode::User64).flags(flag::IOPL).outcome();
    t.eq("out, IOPL 3", out, Outcome::Done);
    let kernel = snippet!("in al, dx").at(Mode::Kernel64).rdx(PORT).outcome();
    t.eq("in, ring 0", kernel, Outcome::Done);
}

/// Denies every port but those given.
fn allow(ports: &[u64]) {
    tss().bitmap = [0xff; 8193];
    for &port in ports {
        tss().bitmap[port as usize / 8] &= !(1 << (port % 8));
    }
}

fn bitmap(t: &mut Report) {
    tss().io_map = 104;
    load_tr(FULL_LIMIT);
    allow(&[PORT]);
    t.eq("bitmap allows the port", input(1, PORT, 0), Outcome::Done);
    t.eq("#GP bitmap denies the next", input(1, PORT + 1, 0), GP_FAULT);
    t.eq("#GP word needs two bits", input(2, PORT, 0), GP_FAULT);
    allow(&[PORT, PORT + 1]);
    t.eq("word with two bits", input(2, PORT, 0), Outcome::Done);
    t.eq("#GP doubleword needs four bits", input(4, PORT, 0), GP_FAULT);
    allow(&[PORT, PORT + 1, PORT + 2, PORT + 3]);
    t.eq("doubleword with four bits", input(4, PORT, 0), Outcome::Done);
    // Bits that lie in two bytes of the map.
    allow(&[0x87, 0x88]);
    t.eq("word over two map bytes", input(2, 0x87, 0), Outcome::Done);
    allow(&[0x87]);
    t.eq("#GP word over two map bytes, second denied", input(2, 0x87, 0), GP_FAULT);
    allow(&[0x88]);
    t.eq("#GP word over two map bytes, first denied", input(2, 0x87, 0), GP_FAULT);
    allow(&[0xffff]);
    t.eq("the last port", input(1, 0xffff, 0), Outcome::Done);
    allow(&[PORT]);
    let out = snippet!("out dx, al").at(Mode::User64).rdx(PORT).outcome();
    t.eq("out through the bitmap", out, Outcome::Done);
    let out = snippet!("out dx, al").at(Mode::User64).rdx(0x21).outcome();
    t.eq("#GP out denied by the bitmap", out, GP_FAULT);
}

fn string(t: &mut Report) {
    allow(&[PORT]);
    let at = kit::snippet::stack_top() + Mode::User64.base() - 64;
    let code = snippet!("rep outsb").at(Mode::User64).rdx(PORT).rsi(at).rcx(3).run();
    let got = (code.outcome(), code.regs.rcx, code.regs.rsi);
    t.eq("rep outsb allowed", got, (Outcome::Done, 0, at + 3));
    let code = snippet!("rep outsb").at(Mode::User64).rdx(0x21).rsi(at).rcx(3).run();
    t.eq("#GP rep outsb denied", (code.outcome(), code.regs.rcx), (GP_FAULT, 3));
    let code = snippet!("insb").at(Mode::User64).rdx(PORT).rdi(0x4000_0000).outcome();
    t.eq("#PF insb to an absent page", code, Outcome::page(6, 0x4000_0000));
}

/// Bits beyond the TSS limit deny.
fn limit(t: &mut Report) {
    tss().bitmap = [0; 8193];
    // The map's bytes up to and with that of PORT, and one more.
    load_tr(103 + 0x80 / 8 + 2);
    t.eq("port inside the limit", input(1, PORT, 0), Outcome::Done);
    load_tr(103 + 0x80 / 8);
    t.eq("#GP port beyond the limit", input(1, PORT, 0), GP_FAULT);
    load_tr(FULL_LIMIT);
    tss().io_map = 0xffff;
    t.eq("#GP map base beyond the limit", input(1, PORT, 0), GP_FAULT);
    tss().io_map = 104;
}
