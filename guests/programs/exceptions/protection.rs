//! #GP, #SS, #PF, #AC and #TS by single instructions: canonical addresses,
//! privileged instructions, alignment.

use kit::cpu::{self, cr0, cr4, feature, flag};
use kit::trap::vector::*;
use kit::{Frame4K, Global, Mode, Outcome, Report, ZERO_FRAME, page, snippet, tables};

const GP_FAULT: Outcome = Outcome::fault(GP);
const SS_FAULT: Outcome = Outcome::fault(SS);
/// The first address above the lower canonical half.
const NON_CANONICAL: u64 = 1 << 47;

static EDGE_CODE: Global<Frame4K> = Global::new(ZERO_FRAME);

pub fn run(t: &mut Report) {
    if feature::LA57.offered() && cpu::read_cr4() & (1 << 12) != 0 {
        t.skip("canonical addresses", "5-level paging is on");
    } else {
        canonical_data(t);
        canonical_stack(t);
        canonical_branch(t);
        canonical_edge(t);
    }
    privileged(t);
    page_fault(t);
    alignment(t);
    alignment_check(t);
    task_segment(t);
}

fn canonical_data(t: &mut Report) {
    for (name, address, canonical) in [
        ("2^47", NON_CANONICAL, false),
        ("2^47 - 1", NON_CANONICAL - 8, true),
        ("2^64 - 2^47 - 8", 0u64.wrapping_sub(NON_CANONICAL) - 8, false),
        ("2^64 - 2^47", 0u64.wrapping_sub(NON_CANONICAL), true),
        ("2^63", 1 << 63, false),
    ] {
        let read = snippet!("mov rax, [rbx]").at(Mode::Kernel64).rbx(address).outcome();
        let write = snippet!("mov [rbx], rax").at(Mode::Kernel64).rbx(address).outcome();
        let page = |error| if canonical { Outcome::page(error, address) } else { GP_FAULT };
        t.eq(format_args!("read at {name}"), read, page(0));
        t.eq(format_args!("write at {name}"), write, page(2));
    }
    // A straddle of the boundary: the second half is not canonical.
    let straddle = snippet!("mov rax, [rbx]").at(Mode::Kernel64).rbx(NON_CANONICAL - 4).outcome();
    t.holds("read across 2^47", straddle, |&outcome| {
        outcome == GP_FAULT || outcome == Outcome::page(0, NON_CANONICAL - 4)
    });
    let tss = snippet!("lea rax, [rbx]").at(Mode::Kernel64).rbx(NON_CANONICAL).outcome();
    t.eq("lea does not check", tss, Outcome::Done);
    let invlpg = snippet!("invlpg [rbx]").at(Mode::Kernel64).rbx(NON_CANONICAL).outcome();
    t.eq("invlpg of a non-canonical address does nothing", invlpg, Outcome::Done);
    let prefetch = snippet!("prefetcht0 [rbx]").at(Mode::User64).rbx(NON_CANONICAL).outcome();
    t.eq("prefetch of a non-canonical address does nothing", prefetch, Outcome::Done);
}

/// References through the stack pointer raise #SS(0).
fn canonical_stack(t: &mut Report) {
    let at = |code: kit::Code| code.at(Mode::Kernel64).rsp(NON_CANONICAL + 64).outcome();
    t.eq("#SS push", at(snippet!("push rax")), SS_FAULT);
    t.eq("#SS pop", at(snippet!("pop rax")), SS_FAULT);
    t.eq("#SS call", at(snippet!("call 2f", "2:")), SS_FAULT);
    t.eq("#SS ret", at(snippet!("ret")), SS_FAULT);
    t.eq("#SS pushfq", at(snippet!("pushfq")), SS_FAULT);
    t.eq("#SS mov [rsp]", at(snippet!("mov eax, [rsp]")), SS_FAULT);
    t.eq("#SS iretq", at(snippet!("iretq")), SS_FAULT);
    let rbp = snippet!("mov eax, [rbp]").at(Mode::User64).rbp(NON_CANONICAL).outcome();
    t.eq("#SS mov [rbp]", rbp, SS_FAULT);
    let leave = snippet!("leave").at(Mode::User64).rbp(NON_CANONICAL).run();
    t.eq("#SS leave", leave.outcome(), SS_FAULT);
    t.eq("#SS leave keeps rsp", leave.rsp, Mode::User64.base() + kit::snippet::stack_top());
    let enter = at(snippet!("enter 16, 0"));
    t.eq("#SS enter", enter, SS_FAULT);
    let push = snippet!("push [rbx]").at(Mode::Kernel64).rbx(NON_CANONICAL).outcome();
    t.eq("#GP push from a non-canonical address", push, GP_FAULT);
}

/// A near branch to a non-canonical target faults before it is taken.
fn canonical_branch(t: &mut Report) {
    let at = |code: kit::Code| {
        let rsp = kit::snippet::stack_top() - 64;
        let trap = code.at(Mode::Kernel64).rax(NON_CANONICAL).rsp(rsp).run();
        (trap.outcome(), kit::snippet::stack_top() - 64 - trap.rsp)
    };
    t.eq("#GP jmp", at(snippet!("jmp rax")), (GP_FAULT, 0));
    t.eq("#GP call", at(snippet!("call rax")), (GP_FAULT, 0));
    t.eq("#GP ret", at(snippet!("push rax"; "ret")), (GP_FAULT, 8));
    t.eq("#GP ret 16", at(snippet!("push rax"; "ret 16")), (GP_FAULT, 8));
    t.eq("#GP jmp memory", at(snippet!("push rax"; "jmp [rsp]")), (GP_FAULT, 8));
    let iret = snippet!(
        "mov rcx, rsp", "mov rdx, ss", "push rdx", "push rcx", "pushfq", "mov rdx, cs",
        "push rdx", "push rax", "mov rbx, rsp";
        "iretq"
    );
    // Either the IRET itself or the first fetch at the target faults.
    let trap = iret.at(Mode::Kernel64).rax(NON_CANONICAL).run();
    t.holds("#GP iretq", (trap.outcome(), trap.rip), |&(outcome, rip)| {
        outcome == GP_FAULT || (trap.vector == GP && rip == NON_CANONICAL)
    });
}

/// Running over the end of the lower half.
fn canonical_edge(t: &mut Report) {
    let last_page = NON_CANONICAL - 4096;
    page::map(last_page, EDGE_CODE.addr(), page::bit::P | page::bit::W | page::bit::U);
    EDGE_CODE.write(4094, &[0x90, 0x90]);
    let mut run = snippet!("nop").at(Mode::User64);
    run.rip = NON_CANONICAL - 2;
    run.mark = NON_CANONICAL;
    t.eq("#GP running into 2^47", run.outcome(), GP_FAULT);
    EDGE_CODE.write(4094, &[0xeb, 0x00]); // JMP to the next instruction
    let trap = run.run();
    t.holds("#GP jmp into 2^47", (trap.vector, trap.error, trap.rip), |&(vector, error, rip)| {
        vector == GP && error == 0 && (rip == NON_CANONICAL || rip == NON_CANONICAL - 2)
    });
}

fn privileged(t: &mut Report) {
    let mut table = t.table("#GP(0) privileged instructions in ring 3");
    let mut case =
        |name: &str, code: kit::Code| table.eq(format_args!("{name}"), code.u(), GP_FAULT);
    case("hlt", snippet!("hlt"));
    case("cli", snippet!("cli"));
    case("sti", snippet!("sti"));
    case("clts", snippet!("clts"));
    case("invd", snippet!("invd"));
    case("wbinvd", snippet!("wbinvd"));
    case("invlpg", snippet!("invlpg [rsp]"));
    case("lgdt", snippet!("lgdt [rsp]"));
    case("lidt", snippet!("lidt [rsp]"));
    case("lldt", snippet!("lldt ax"));
    case("ltr", snippet!("ltr ax"));
    case("lmsw", snippet!("lmsw ax"));
    case("rdmsr", snippet!("rdmsr"));
    case("wrmsr", snippet!("wrmsr"));
    case("mov from cr0", snippet!("mov rax, cr0"));
    case("mov to cr0", snippet!("mov cr0, rax"));
    case("mov from cr2", snippet!("mov rax, cr2"));
    case("mov from cr3", snippet!("mov rax, cr3"));
    case("mov to cr3", snippet!("mov cr3, rax"));
    case("mov from cr4", snippet!("mov rax, cr4"));
    case("mov from cr8", snippet!("mov rax, cr8"));
    case("mov to cr8", snippet!("mov cr8, rax"));
    case("mov from dr0", snippet!("mov rax, dr0"));
    case("mov to dr7", snippet!("mov dr7, rax"));
    case("in al, dx", snippet!("in al, dx"));
    case("out dx, al", snippet!("out dx, al"));
    case("in al, imm8", snippet!("in al, 0x80"));
    case("outsb", snippet!("outsb"));
    case("insb", snippet!("insb"));
    case("swapgs", snippet!("swapgs"));
    case("sysretq", snippet!(".byte 0x48, 0x0f, 0x07"));
    // AMD has no SYSEXIT in long mode.
    if !cpu::is_amd() {
        case("sysexit", snippet!("sysexit"));
    }
    table.finish();

    t.eq("rdtsc in ring 3", snippet!("rdtsc").u(), Outcome::Done);
    cpu::write_cr4(cpu::read_cr4() | cr4::TSD);
    t.eq("#GP rdtsc in ring 3 with CR4.TSD", snippet!("rdtsc").u(), GP_FAULT);
    t.eq("rdtsc in ring 0 with CR4.TSD", snippet!("rdtsc").k(), Outcome::Done);
    cpu::write_cr4(cpu::read_cr4() & !cr4::TSD);
    t.eq("#GP rdpmc in ring 3 without CR4.PCE", snippet!("rdpmc").u(), GP_FAULT);
    t.eq(
        "#GP iretq with NT",
        snippet!("iretq").at(Mode::Kernel64).flags(flag::NT).outcome(),
        GP_FAULT,
    );
}

/// The plain page faults; `paging` has the whole table.
fn page_fault(t: &mut Report) {
    const HOLE: u64 = page::LOW_WINDOW + 0x123;
    let read = snippet!("mov eax, [rbx]");
    let write = snippet!("mov [rbx], eax");
    let change = snippet!("add dword ptr [rbx], 1");
    let at = |code: kit::Code, mode| code.at(mode).rbx(HOLE).outcome();
    t.eq("#PF read, ring 0", at(read, Mode::Kernel64), Outcome::page(0, HOLE));
    t.eq("#PF write, ring 0", at(write, Mode::Kernel64), Outcome::page(2, HOLE));
    t.eq("#PF read-modify-write, ring 0", at(change, Mode::Kernel64), Outcome::page(2, HOLE));
    t.eq("#PF read, ring 3", at(read, Mode::User64), Outcome::page(4, HOLE));
    t.eq("#PF write, ring 3", at(write, Mode::User64), Outcome::page(6, HOLE));
    let fetch = |mode| {
        let mut run = snippet!("nop").at(mode);
        run.rip = HOLE;
        run.mark = HOLE;
        run.outcome()
    };
    t.eq("#PF fetch, ring 0", fetch(Mode::Kernel64), Outcome::page(0x10, HOLE));
    t.eq("#PF fetch, ring 3", fetch(Mode::User64), Outcome::page(0x14, HOLE));
    let kernel = snippet!("mov eax, [rbx]").at(Mode::User64).rbx(tables::gdt_addr()).outcome();
    t.eq("#PF supervisor page, ring 3", kernel, Outcome::page(5, tables::gdt_addr()));
    cpu::write_cr2(0x1234_5678);
    snippet!("ud2").k();
    t.eq("other exceptions keep CR2", cpu::read_cr2(), 0x1234_5678);
    let push = snippet!("push rax").at(Mode::User64).rsp(HOLE & !7).run();
    t.eq("#PF push", push.outcome(), Outcome::page(6, (HOLE & !7) - 8));
    t.eq("#PF push keeps rsp", push.rsp, HOLE & !7);
    let call = snippet!("call 2f", "2:").at(Mode::Kernel64).rsp(HOLE & !7).run();
    t.eq("#PF call", call.outcome(), Outcome::page(2, (HOLE & !7) - 8));
    t.eq("#PF call keeps rsp", call.rsp, HOLE & !7);
    let pop = snippet!("pop [rbx]").at(Mode::Kernel64).rbx(HOLE).run();
    t.eq("#PF pop to memory", pop.outcome(), Outcome::page(2, HOLE));
    t.eq("#PF pop to memory keeps rsp", pop.rsp, kit::snippet::stack_top());
}

/// Operands that must be aligned, whatever CR0.AM says.
fn alignment(t: &mut Report) {
    let off = kit::snippet::stack_top() - 63;
    let at = |code: kit::Code| code.at(Mode::Kernel64).rbx(off).outcome();
    t.eq("#GP movaps unaligned", at(snippet!("movaps xmm0, [rbx]")), GP_FAULT);
    t.eq("#GP movdqa store unaligned", at(snippet!("movdqa [rbx], xmm0")), GP_FAULT);
    t.eq("#GP addps unaligned", at(snippet!("addps xmm0, [rbx]")), GP_FAULT);
    t.eq("#GP movntps unaligned", at(snippet!("movntps [rbx], xmm0")), GP_FAULT);
    t.eq("#GP fxsave unaligned", at(snippet!("fxsave [rbx]")), GP_FAULT);
    t.eq("movups unaligned", at(snippet!("movups xmm0, [rbx]")), Outcome::Done);
    t.eq("addss unaligned", at(snippet!("addss xmm0, [rbx]")), Outcome::Done);
    if feature::CX16.offered() {
        t.eq("#GP cmpxchg16b unaligned", at(snippet!("cmpxchg16b [rbx]")), GP_FAULT);
    } else {
        t.skip("#GP cmpxchg16b unaligned", "no CMPXCHG16B");
    }
    // Alignment is checked before the page is touched.
    let hole = snippet!("movaps xmm0, [rbx]").at(Mode::Kernel64).rbx(page::LOW_WINDOW + 8);
    t.eq("#GP movaps unaligned before #PF", hole.outcome(), GP_FAULT);
}

/// #AC: ring 3, CR0.AM, RFLAGS.AC (SDM vol. 3A 6.15, interrupt 17).
fn alignment_check(t: &mut Report) {
    let ac_fault = Outcome::fault(AC);
    let stack = kit::snippet::stack_top() - 64;
    let at = |code: kit::Code, mode: Mode, offset: u64, bits: u64| {
        code.at(mode).rbx(mode.base() + stack + offset).flags(bits).outcome()
    };
    let word = snippet!("mov ax, [rbx]");
    let double = snippet!("mov eax, [rbx]");
    let quad = snippet!("mov [rbx], rax");
    let byte = snippet!("mov al, [rbx]");
    t.eq("no #AC without CR0.AM", at(double, Mode::User64, 1, flag::AC), Outcome::Done);
    cpu::write_cr0(cpu::read_cr0() | cr0::AM);
    t.eq("no #AC without RFLAGS.AC", at(double, Mode::User64, 1, 0), Outcome::Done);
    t.eq("no #AC in ring 0", at(double, Mode::Kernel64, 1, flag::AC), Outcome::Done);
    t.eq("#AC word", at(word, Mode::User64, 1, flag::AC), ac_fault);
    t.eq("word at 2 mod 4", at(word, Mode::User64, 2, flag::AC), Outcome::Done);
    t.eq("#AC doubleword at 2", at(double, Mode::User64, 2, flag::AC), ac_fault);
    t.eq("#AC quadword write at 4", at(quad, Mode::User64, 4, flag::AC), ac_fault);
    t.eq("aligned quadword", at(quad, Mode::User64, 8, flag::AC), Outcome::Done);
    t.eq("byte", at(byte, Mode::User64, 3, flag::AC), Outcome::Done);
    let push = snippet!("push rax").at(Mode::User64).flags(flag::AC);
    let push = push.rsp(Mode::User64.base() + stack + 4).outcome();
    t.eq("#AC push on an unaligned stack", push, ac_fault);
    t.eq("#AC lock add", at(snippet!("lock add [rbx], eax"), Mode::User64, 1, flag::AC), ac_fault);
    cpu::write_cr0(cpu::read_cr0() & !cr0::AM);
}

/// #TS when the TSS ends before the stack pointer that a gate asks for.
fn task_segment(t: &mut Report) {
    const IST7_OFFSET: u32 = 84;
    tables::set_gate(0x60, tables::Gate { ist: 7, ..tables::Gate::standard(0x60) });
    tables::load_tr(IST7_OFFSET + 6);
    let expected = Outcome::coded(TS, tables::TSS_SELECTOR.into());
    t.eq("#TS for an IST entry beyond the TSS limit", snippet!("int 0x60").k(), expected);
    tables::load_tr(IST7_OFFSET + 7);
    t.eq("IST entry at the TSS limit", snippet!("int 0x60").k(), Outcome::trap(0x60, 2));
    tables::load_tr(tables::TSS_LIMIT);
    tables::restore_gate(0x60);
}
