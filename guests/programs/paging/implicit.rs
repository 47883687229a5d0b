//! Accesses that the processor makes on its own, to tables and stacks: they
//! are supervisor accesses at any privilege level.

use crate::FULL;
use kit::cpu::{self, cr4, feature, flag};
use kit::page::{self, bit};
use kit::trap::vector::PF;
use kit::{Frame4K, Global, Mode, Outcome, Report, ZERO_FRAME, snippet, tables};

static LDT: Global<Frame4K> = Global::new(ZERO_FRAME);

/// Where the LDT is seen; the page permissions change.
const LDT_VA: u64 = page::WINDOW + (12 << 30);
/// An address that is never mapped.
const HOLE: u64 = page::WINDOW + (13 << 30) + 0x2000;
/// The LDT's entry 1, RPL 3.
const SELECTOR: u64 = 0x0f;

pub fn run(t: &mut Report) {
    let selector = tables::FREE_SELECTOR;
    tables::set_system_descriptor(selector, LDT_VA, 0xfff, 2);
    LDT.write(8, &(tables::DATA | tables::field::DPL3).to_le_bytes());
    page::map(LDT_VA, LDT.addr(), FULL);
    snippet!("lldt ax").at(Mode::Kernel64).rax(selector.into()).run();
    descriptor_reads(t);
    accessed_bit(t);
    smap(t);
    snippet!("xor eax, eax", "lldt ax").k();
    interrupt_stack(t);
}

fn load(mode: Mode, flags: u64) -> Outcome {
    let code = snippet!("mov es, eax");
    code.at(mode).rax(SELECTOR).flags(flags).outcome()
}

fn descriptor_reads(t: &mut Report) {
    let address = LDT_VA + 8;
    page::map(LDT_VA, LDT.addr(), bit::P | bit::W);
    t.eq("descriptor on a supervisor page, ring 3", load(Mode::User64, 0), Outcome::Done);
    page::map(LDT_VA, LDT.addr(), 0);
    t.eq("descriptor on an absent page, ring 3", load(Mode::User64, 0), Outcome::page(0, address));
    t.eq(
        "descriptor on an absent page, ring 0",
        load(Mode::Kernel64, 0),
        Outcome::page(0, address),
    );
    page::map(LDT_VA, LDT.addr(), FULL | bit::NX);
    t.eq("descriptor on a no-execute page", load(Mode::User64, 0), Outcome::Done);
}

/// Loading a segment sets its accessed bit: a supervisor write.
fn accessed_bit(t: &mut Report) {
    let fresh = (tables::DATA | tables::field::DPL3) & !(1 << 40);
    LDT.write(8, &fresh.to_le_bytes());
    page::map(LDT_VA, LDT.addr(), bit::P);
    let got = load(Mode::User64, 0);
    // The processor may write one byte or more of the descriptor.
    t.holds("accessed bit on a read-only page", got, |&outcome| {
        matches!(outcome, Outcome::PageFault { error: 3, cr2, at: 0 }
            if (LDT_VA + 8..LDT_VA + 16).contains(&cr2))
    });
    t.eq("descriptor unchanged", LDT.read::<8>(8), fresh.to_le_bytes());
    page::map(LDT_VA, LDT.addr(), bit::P | bit::W);
    t.eq("accessed bit on a writable page", load(Mode::User64, 0), Outcome::Done);
    t.eq("descriptor accessed", LDT.read::<8>(8), (fresh | 1 << 40).to_le_bytes());
    page::map(LDT_VA, LDT.addr(), bit::P);
    t.eq("an accessed descriptor is not written", load(Mode::User64, 0), Outcome::Done);
}

/// SMAP applies to implicit accesses whatever RFLAGS.AC says.
fn smap(t: &mut Report) {
    if !feature::SMAP.offered() {
        return t.skip("implicit accesses with SMAP", "not offered");
    }
    page::map(LDT_VA, LDT.addr(), FULL);
    cpu::write_cr4(cpu::read_cr4() | cr4::SMAP);
    let expected = Outcome::page(1, LDT_VA + 8);
    t.eq("SMAP: descriptor on a user page, ring 3", load(Mode::User64, 0), expected);
    t.eq("SMAP: descriptor on a user page, ring 0", load(Mode::Kernel64, 0), expected);
    let got = load(Mode::Kernel64, flag::AC);
    t.eq("SMAP: AC does not open implicit accesses", got, expected);
    cpu::write_cr4(cpu::read_cr4() & !cr4::SMAP);
}

/// The frame of an interrupt from ring 3 is written with supervisor rights.
fn interrupt_stack(t: &mut Report) {
    tables::set_gate(0x60, tables::Gate { dpl: 3, ..tables::Gate::standard(0x60) });
    let code = snippet!("int 0x60");
    tables::tss().rsp[0] = HOLE;
    let trap = code.user();
    let got = (trap.vector, trap.error, trap.cr2, trap.cs & 3);
    t.eq("RSP0 on an absent page", got, (PF, 2, HOLE - 8, 3));
    page::map(HOLE - 4096, LDT.addr(), FULL);
    t.eq("RSP0 on a user page", code.u(), Outcome::trap(0x60, 2));
    if feature::SMAP.offered() {
        cpu::write_cr4(cpu::read_cr4() | cr4::SMAP);
        let trap = code.at(Mode::User64).flags(flag::AC).run();
        let got = (trap.vector, trap.error, trap.cr2);
        t.eq("SMAP: RSP0 on a user page", got, (PF, 3, HOLE - 8));
        cpu::write_cr4(cpu::read_cr4() & !cr4::SMAP);
    }
    tables::tss().rsp[0] = tables::rsp0_top();
    tables::restore_gate(0x60);
}
