//! FS and GS bases: MSRs, FSGSBASE instructions, SWAPGS, what selector loads
//! do to them (SDM vol. 3A 3.4.4; vol. 2 WRFSBASE, SWAPGS).

use crate::{SPARE, described};
use kit::cpu::{self, cr4, feature, msr};
use kit::snippet::stack_top;
use kit::tables::set_descriptor;
use kit::trap::vector::*;
use kit::{Mode, Outcome, Report, snippet};

pub fn run(t: &mut Report) {
    addressing(t);
    selector_loads(t);
    swapgs(t);
    if feature::FSGSBASE.offered() {
        instructions(t);
    } else {
        t.skip("FSGSBASE", "not offered");
    }
    cpu::wrmsr(msr::FS_BASE, 0);
    cpu::wrmsr(msr::GS_BASE, 0);
}

fn addressing(t: &mut Report) {
    let data = stack_top() - 64;
    kit::page::poke(data, 0x1234_5678_9abc_def0);
    cpu::wrmsr(msr::FS_BASE, data - 16);
    cpu::wrmsr(msr::GS_BASE, data + 1000);
    let code = snippet!("mov rax, fs:[16]", "mov rcx, gs:[rbx]", "mov rdx, fs:[rsi + 8]");
    let trap = code.at(Mode::Kernel64).rbx((-1000i64) as u64).rsi(8).run();
    let value = 0x1234_5678_9abc_def0;
    t.eq("FS and GS base addressing", [trap.regs.rax, trap.regs.rcx, trap.regs.rdx], [value; 3]);
    let lea = snippet!("lea rax, fs:[rbx + 5]").at(Mode::Kernel64).rbx(1).run();
    t.eq("lea ignores the base", lea.regs.rax, 6);
    // The sum wraps at 2^64; with a 32-bit address size the offset wraps first.
    cpu::wrmsr(msr::FS_BASE, data);
    let wrap = snippet!("mov rax, fs:[ebx]").at(Mode::Kernel64).rbx(5 << 32).run();
    t.eq("32-bit address size cuts the offset, not the sum", wrap.regs.rax, value);
    for register in [msr::FS_BASE, msr::GS_BASE, msr::KERNEL_GS_BASE] {
        let result = cpu::try_wrmsr(register, 1 << 47);
        t.eq(format_args!("#GP non-canonical MSR {register:#x}"), result, Some(GP));
        cpu::wrmsr(register, 0xffff_8000_0000_0000);
        let back = cpu::rdmsr(register);
        t.eq(format_args!("MSR {register:#x} reads back"), back, 0xffff_8000_0000_0000);
    }
    cpu::wrmsr(msr::GS_BASE, 0x7fff_ffff_fff0);
    let code = snippet!("mov rax, gs:[16]").k();
    t.eq("#GP base plus offset not canonical", code, Outcome::fault(GP));
    cpu::wrmsr(msr::GS_BASE, 0);
}

fn selector_loads(t: &mut Report) {
    let base = 0x1234_5000u64;
    let low = base & 0xff_ffff;
    set_descriptor(SPARE, described(0x12, 0) | low << 16 | (base >> 24) << 56);
    cpu::wrmsr(msr::FS_BASE, 0xffff_8000_0000_0000);
    snippet!("mov fs, eax").at(Mode::Kernel64).rax(SPARE.into()).run();
    t.eq("loading FS takes the descriptor's base", cpu::rdmsr(msr::FS_BASE), base);
    cpu::wrmsr(msr::GS_BASE, 0x7777_0000);
    snippet!("mov gs, eax").at(Mode::Kernel64).rax(0x10).run();
    t.eq("loading GS takes the descriptor's base", cpu::rdmsr(msr::GS_BASE), 0);
    cpu::wrmsr(msr::GS_BASE, 0x7777_0000);
    snippet!("xor eax, eax", "mov gs, eax").k();
    // Intel clears the base, AMD keeps it.
    t.holds("loading a null GS", cpu::rdmsr(msr::GS_BASE), |&base| {
        base == 0 || (cpu::is_amd() && base == 0x7777_0000)
    });
    cpu::wrmsr(msr::GS_BASE, 0x6666_0000);
    snippet!("nop").u();
    let base = cpu::rdmsr(msr::GS_BASE);
    t.eq("a visit to ring 3 keeps the base", base, 0x6666_0000);
    snippet!("mov eax, 0x3333", "mov gs, eax").k();
    t.eq("a faulting load keeps the base", cpu::rdmsr(msr::GS_BASE), 0x6666_0000);
    let trap = snippet!("mov eax, gs").kernel();
    t.eq("writing the base keeps the selector", trap.regs.rax, 0);
}

fn swapgs(t: &mut Report) {
    cpu::wrmsr(msr::GS_BASE, 0x1111_0000);
    cpu::wrmsr(msr::KERNEL_GS_BASE, 0x2222_0000);
    snippet!("swapgs").k();
    let bases = (cpu::rdmsr(msr::GS_BASE), cpu::rdmsr(msr::KERNEL_GS_BASE));
    t.eq("swapgs", bases, (0x2222_0000, 0x1111_0000));
    snippet!("swapgs", "swapgs", "swapgs").k();
    let bases = (cpu::rdmsr(msr::GS_BASE), cpu::rdmsr(msr::KERNEL_GS_BASE));
    t.eq("swapgs three times", bases, (0x1111_0000, 0x2222_0000));
    t.eq("#GP swapgs in ring 3", snippet!("swapgs").u(), Outcome::fault(GP));
    let narrow = kit::snippet32!(".byte 0x0f, 0x01, 0xf8").at(Mode::Kernel32).outcome();
    t.eq("#UD swapgs in 32-bit code", narrow, Outcome::fault(UD));
}

fn instructions(t: &mut Report) {
    let read = snippet!("rdfsbase rax");
    t.eq("#UD rdfsbase without CR4.FSGSBASE", read.k(), Outcome::fault(UD));
    cpu::write_cr4(cpu::read_cr4() | cr4::FSGSBASE);
    cpu::wrmsr(msr::FS_BASE, 0xffff_8765_4321_0000);
    cpu::wrmsr(msr::GS_BASE, 0x1234_5678_0000);
    let code = snippet!("mov rcx, -1", "rdfsbase rax", "rdgsbase rbx", "rdgsbase ecx");
    let trap = code.user();
    let got = (trap.outcome(), trap.regs.rax, trap.regs.rbx, trap.regs.rcx);
    let expected = (Outcome::Done, 0xffff_8765_4321_0000, 0x1234_5678_0000, 0x5678_0000);
    t.eq("rdfsbase and rdgsbase in ring 3", got, expected);
    let code = snippet!("wrfsbase rax", "wrgsbase ebx");
    code.at(Mode::User64).rax(0x5555_6666_7777).rbx(0xffff_ffff_8888_9999).run();
    let bases = (cpu::rdmsr(msr::FS_BASE), cpu::rdmsr(msr::GS_BASE));
    t.eq("wrfsbase and wrgsbase in ring 3", bases, (0x5555_6666_7777, 0x8888_9999));
    let got = snippet!("wrfsbase rax").at(Mode::User64).rax(1 << 47).outcome();
    t.eq("#GP wrfsbase non-canonical", got, Outcome::fault(GP));
    let narrow = kit::snippet32!(".byte 0xf3, 0x0f, 0xae, 0xc0").at(Mode::User32).outcome();
    t.eq("#UD rdfsbase in 32-bit code", narrow, Outcome::fault(UD));
    cpu::write_cr4(cpu::read_cr4() & !cr4::FSGSBASE);
}
