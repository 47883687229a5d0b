//! GDTR, IDTR, LDTR, TR, the machine status word, and UMIP (SDM vol. 3A 2.4,
//! 2.5).

use crate::{PRESENT, SPARE};
use kit::cpu::{self, cr4, feature};
use kit::snippet::stack_top;
use kit::tables::{self, Pointer};
use kit::trap::vector::*;
use kit::{Code, Mode, Outcome, Report, snippet, snippet32};

pub fn run(t: &mut Report) {
    store(t);
    load_gdt(t);
    local_table(t);
    task_register(t);
    status_word(t);
    if feature::UMIP.offered() {
        umip(t);
    } else {
        t.skip("UMIP", "not offered");
    }
}

fn stored(code: Code, mode: Mode) -> (Outcome, Pointer) {
    let at = stack_top() - 64;
    kit::page::poke(at, !0);
    kit::page::poke(at + 8, !0);
    let trap = code.at(mode).rbx(at + mode.base()).run();
    let limit = kit::page::peek(at) as u16;
    let base = kit::page::peek(at) >> 16 | kit::page::peek(at + 8) << 48;
    (trap.outcome(), Pointer { limit, base })
}

fn store(t: &mut Report) {
    let gdt = (Outcome::Done, tables::gdt_pointer());
    let idt = (Outcome::Done, tables::idt_pointer());
    for mode in [Mode::Kernel64, Mode::User64] {
        t.eq(format_args!("sgdt {mode:?}"), stored(snippet!("sgdt [rbx]"), mode), gdt);
        t.eq(format_args!("sidt {mode:?}"), stored(snippet!("sidt [rbx]"), mode), idt);
    }
    let (outcome, pointer) = stored(snippet32!("sgdt [ebx]"), Mode::Kernel32);
    let low = (outcome, pointer.limit, pointer.base as u32);
    let expected = (Outcome::Done, gdt.1.limit, gdt.1.base as u32);
    t.eq("sgdt in 32-bit code: 6 bytes", low, expected);
    t.eq("sgdt in 32-bit code: no more", pointer.base >> 32, 0xffff_ffff);
    let hole = snippet!("sgdt [rbx]").at(Mode::User64).rbx(0x4000_0000).outcome();
    t.eq("#PF sgdt", hole, Outcome::page(6, 0x4000_0000));
}

fn load_gdt(t: &mut Report) {
    let at = stack_top() - 64;
    // A processor that took the bad value gets the good one back at once.
    let load = |code: Code, base: u64, good: Pointer| {
        kit::page::poke(at, base << 16 | u64::from(good.limit));
        kit::page::poke(at + 8, base >> 48);
        kit::page::poke(at + 16, good.base << 16 | u64::from(good.limit));
        kit::page::poke(at + 24, good.base >> 48);
        code.at(Mode::Kernel64).rbx(at).outcome()
    };
    let lgdt = load(snippet!("lgdt [rbx]", "lgdt [rbx + 16]"), 1 << 47, tables::gdt_pointer());
    t.eq("#GP lgdt non-canonical", lgdt, Outcome::fault(GP));
    let lidt = load(snippet!("lidt [rbx]", "lidt [rbx + 16]"), 1 << 47, tables::idt_pointer());
    t.eq("#GP lidt non-canonical", lidt, Outcome::fault(GP));
    let (_, now) = stored(snippet!("sgdt [rbx]"), Mode::Kernel64);
    t.eq("a faulting lgdt changes nothing", now, tables::gdt_pointer());
    // A smaller limit counts for the next load.
    let mut small = tables::gdt_pointer();
    small.limit = 0x57;
    tables::load_gdt(small);
    let load = snippet!("mov es, eax").at(Mode::Kernel64).rax(SPARE.into()).outcome();
    tables::load_gdt(tables::gdt_pointer());
    t.eq("#GP selector beyond a smaller limit", load, Outcome::coded(GP, SPARE.into()));
}

fn local_table(t: &mut Report) {
    let load = |selector: u64| snippet!("lldt ax").at(Mode::Kernel64).rax(selector).outcome();
    let sldt = snippet!("sldt eax");
    t.eq("lldt null", load(0), Outcome::Done);
    t.eq("sldt null", sldt.kernel().regs.rax, 0);
    t.eq("#GP lldt of data", load(0x10), Outcome::coded(GP, 0x10));
    t.eq("#GP lldt of a TSS", load(0x48), Outcome::coded(GP, 0x48));
    t.eq("#GP lldt from the LDT", load(SPARE as u64 | 4), Outcome::coded(GP, u64::from(SPARE | 4)));
    t.eq("#GP lldt beyond the GDT", load(0x200), Outcome::coded(GP, 0x200));
    let table = stack_top() - 1024;
    kit::page::poke(table, tables::DATA);
    kit::page::poke(table + 8, tables::DATA);
    let absent = tables::system_descriptor(table, 0xf, 2) & !PRESENT;
    tables::set_descriptor(SPARE, absent);
    tables::set_descriptor(SPARE + 8, table >> 32);
    t.eq("#NP lldt", load(SPARE.into()), Outcome::coded(NP, SPARE.into()));
    tables::set_system_descriptor(SPARE, table, 0xf, 2);
    t.eq("lldt", load(u64::from(SPARE) | 3), Outcome::Done);
    t.eq("sldt keeps RPL", sldt.kernel().regs.rax, u64::from(SPARE) | 3);
    let es = |selector: u64| snippet!("mov es, eax").at(Mode::Kernel64).rax(selector).outcome();
    t.eq("LDT entry 0 is usable", es(4), Outcome::Done);
    t.eq("LDT entry 1", es(0xc), Outcome::Done);
    t.eq("#GP beyond the LDT limit", es(0x14), Outcome::coded(GP, 0x14));
    t.eq("lldt null again", load(0), Outcome::Done);
    t.eq("#GP LDT selector after lldt 0", es(4), Outcome::coded(GP, 4));
}

fn task_register(t: &mut Report) {
    let load = |selector: u64| snippet!("ltr ax").at(Mode::Kernel64).rax(selector).outcome();
    let busy = tables::descriptor(tables::TSS_SELECTOR) >> 40 & 15;
    t.eq("ltr made the TSS busy", busy, 11);
    let tss = u64::from(tables::TSS_SELECTOR);
    t.eq("str", snippet!("str eax").kernel().regs.rax, tss);
    t.eq("#GP ltr of a busy TSS", load(tss), Outcome::coded(GP, tss));
    t.eq("#GP ltr of data", load(0x10), Outcome::coded(GP, 0x10));
    let descriptor = tables::system_descriptor(tables::tss_addr(), tables::TSS_LIMIT, 9);
    // A processor that takes the null selector gets a good one back at once.
    tables::set_descriptor(SPARE, descriptor);
    tables::set_descriptor(SPARE + 8, tables::tss_addr() >> 32);
    let null = snippet!("xor eax, eax"; "ltr ax", "ltr cx").at(Mode::Kernel64).rcx(SPARE.into());
    t.eq("#GP ltr null", null.outcome(), Outcome::coded(GP, 0));
    tables::set_descriptor(SPARE, descriptor & !PRESENT);
    t.eq("#NP ltr", load(SPARE.into()), Outcome::coded(NP, SPARE.into()));
    tables::set_descriptor(SPARE, descriptor);
    t.eq("ltr of another descriptor", load(SPARE.into()), Outcome::Done);
    t.eq("str after it", snippet!("str eax").kernel().regs.rax, SPARE.into());
    tables::load_tr(tables::TSS_LIMIT);
    let wide = snippet!("mov rax, -1", "str ax").kernel().regs.rax;
    t.eq("str with a 16-bit operand", wide, 0xffff_ffff_ffff_0000 | tss);
}

fn status_word(t: &mut Report) {
    let cr0 = cpu::read_cr0();
    let smsw = snippet!("smsw rax");
    t.eq("smsw is cr0", smsw.user().regs.rax & 0xffff, cr0 & 0xffff);
    let value = cr0 & 0xffff | 8;
    let trap = snippet!("lmsw ax", "mov rax, cr0", "clts").at(Mode::Kernel64).rax(value).run();
    t.eq("lmsw sets TS", trap.regs.rax, cr0 | 8);
    let trap = snippet!("lmsw ax", "mov rax, cr0").at(Mode::Kernel64).rax(cr0 & 0xe).run();
    t.eq("lmsw cannot clear PE", trap.regs.rax & 1, 1);
    cpu::write_cr0(cr0);
}

/// With CR4.UMIP the stores fault in ring 3 only.
fn umip(t: &mut Report) {
    cpu::write_cr4(cpu::read_cr4() | cr4::UMIP);
    let cases = [
        ("sgdt", snippet!("sgdt [rsp - 64]")),
        ("sidt", snippet!("sidt [rsp - 64]")),
        ("sldt", snippet!("sldt eax")),
        ("str", snippet!("str eax")),
        ("smsw", snippet!("smsw eax")),
        ("smsw to memory", snippet!("smsw [rsp - 64]")),
    ];
    for (name, code) in cases {
        t.eq(format_args!("#GP {name} with UMIP"), code.u(), Outcome::fault(GP));
        t.eq(format_args!("{name} with UMIP in ring 0"), code.k(), Outcome::Done);
    }
    cpu::write_cr4(cpu::read_cr4() & !cr4::UMIP);
    for (name, code) in cases {
        t.eq(format_args!("{name} without UMIP"), code.u(), Outcome::Done);
    }
}
