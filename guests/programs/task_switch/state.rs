//! What is saved and loaded (8.3, steps 8 to 13).

use crate::scene::*;
use kit::cpu::flag;
use kit::legacy::{self, TASK, Task, last};
use kit::real::{self, linear};
use kit::snippet::stack_top;
use kit::tables::{self, KERNEL_CODE32, KERNEL_DATA, USER_CODE32, USER_DATA};
use kit::trap::vector::DB;
use kit::{Frame4K, Global, Outcome, Report, ZERO_FRAME, boot, cpu, snippet, snippet32};

static LDT: Global<[u64; 4]> = Global::new([0; 4]);
/// Page directories for the own and the other task.
static DIRECTORIES: Global<[Frame4K; 2]> = Global::new([ZERO_FRAME; 2]);
static POINTERS: Global<Frame4K> = Global::new(ZERO_FRAME);

pub fn run(t: &mut Report) {
    saved(t);
    loaded(t);
    ring3(t);
    local_table(t);
    address_space(t);
    pae(t);
    virtual_8086(t);
    trap_flag(t);
    breakpoints(t);
}

fn jump_there() -> kit::Code {
    snippet32!(".byte 0xea", ".long 0", ".word {other}" => other = const OTHER)
}

fn saved(t: &mut Report) {
    set_other(task(snippet32!("nop")), 0);
    let marked = Task { link: 0xaaaa_aaaa, cr3: 0xbbbb_b000, ldt: 0, ..Task::new() };
    TASK.set(marked);
    let code = snippet32!(
        "mov eax, 0x10", "mov fs, ax", "mov eax, 1", "mov edx, 3", "mov ebx, 4", "mov ebp, 6",
        "mov esi, 7", "mov edi, 8", "mov ecx, 2", "stc", "std"; ".byte 0xea", ".long 0", ".word {other}"
        => other = const OTHER
    );
    let mut run = at(code);
    run.eflags |= flag::AC as u32;
    run.run();
    let own = own();
    let esp = stack_top() as u32;
    t.eq("saved: registers", own.regs, [1, 2, 3, 4, esp, 6, 7, 8]);
    t.eq("saved: EIP", own.eip, code.mark as u32 + 7);
    let flags = u64::from(own.eflags);
    t.eq("saved: EFLAGS", flags, flag::AC | flag::DF | flag::CF | 2);
    let segments = own.segments.map(|selector| selector & 0xffff);
    let (cs, ds) = (KERNEL_CODE32.into(), KERNEL_DATA.into());
    t.eq("saved: segments", segments, [ds, cs, ds, ds, ds, 0]);
    let kept = (own.link, own.cr3, own.stacks[0][1]);
    t.eq("saved: the rest is left alone", kept, (0xaaaa_aaaa, 0xbbbb_b000, ds));
}

fn loaded(t: &mut Report) {
    let there = snippet32!("mov ebp, fs", "mov edi, gs");
    let mut other = task(there);
    other.regs = [1, 2, 3, 4, other_stack(), 0, 7, 0];
    other.eflags = (flag::CF | flag::DF | flag::AC | 2) as u32;
    other.segments[4] = USER_DATA.into();
    set_other(other, 0);
    let trap = at(jump_there()).run();
    let r = trap.regs;
    let got = (r.rax, r.rcx, r.rdx, r.rbx, r.rsi, r.rbp, r.rdi);
    t.eq("loaded: registers, FS, GS", got, (1, 2, 3, 4, 7, USER_DATA.into(), 0));
    let flags = flag::CF | flag::DF | flag::AC | 2;
    t.eq("loaded: EFLAGS", trap.rflags & !flag::RF, flags);
    t.eq("loaded: ESP", trap.rsp, other_stack().into());
}

fn ring3(t: &mut Report) {
    let there = snippet32!("mov eax, cs", "mov ebx, ss");
    let mut other = task(there);
    let data = u32::from(USER_DATA);
    other.segments = [data, USER_CODE32.into(), data, data, 0, 0];
    other.stacks[0][0] = tables::rsp0_top() as u32 - 256;
    set_other(other, 0);
    let trap = at(jump_there()).run();
    let got = (trap.vector, trap.regs.rax, trap.regs.rbx, trap.stack);
    let expected = (0xf0, USER_CODE32.into(), data.into(), tables::rsp0_top() - 256);
    t.eq("a task in ring 3, and its stack for ring 0", got, expected);
}

fn local_table(t: &mut Report) {
    LDT.set([0, tables::CODE32, tables::DATA, 0]);
    tables::set_descriptor(SPARE, tables::system_descriptor(LDT.addr(), 31, 2));
    let there = snippet32!("sldt eax", "mov ebx, ds", "mov ecx, cs", "mov edx, [esp]");
    let mut other = task(there);
    other.ldt = SPARE.into();
    other.segments = [0x14, 0xc, 0x14, 0x14, 0, 0];
    set_other(other, 0);
    let trap = at(jump_there()).run();
    let got = (trap.vector, trap.regs.rax, trap.regs.rbx, trap.regs.rcx);
    t.eq("a task with an LDT", got, (0xf0, SPARE.into(), 0x14, 0xc));
    // The old task's LDT comes back; it is not saved.
    let back = snippet32!("sldt ebx", "iretd");
    set_other(task(back), 0);
    let mut own = Task::new();
    own.ldt = SPARE.into();
    TASK.set(own);
    let call =
        snippet32!(".byte 0x9a", ".long 0", ".word {other}", "sldt eax" => other = const OTHER);
    let trap = at(call).run();
    let got = (trap.outcome(), trap.regs.rax, other_saved_ebx());
    t.eq("LDTR is loaded from each TSS", got, (Outcome::Done, SPARE.into(), 0));
}

fn other_saved_ebx() -> u32 {
    other().regs[3]
}

/// Two directories of 4 MiB pages that differ at 1 GiB.
fn address_space(t: &mut Report) {
    const WINDOW: u32 = 0x4000_0000;
    let directory = |index: u64| DIRECTORIES.addr() + index * 4096;
    for space in 0..2 {
        for entry in 0..64 {
            kit::page::poke(
                directory(space) + entry * 8,
                (entry * 2 + 1) << 54 | 0x83 << 32 | entry << 23 | 0x83,
            );
        }
        let window = space << 22 | 0x83;
        kit::page::poke(directory(space) + u64::from(WINDOW >> 22) * 4, window);
    }
    let there = snippet32!("mov eax, [ebx]", "mov ecx, cr3");
    let mut other = task(there);
    other.cr3 = directory(1) as u32;
    other.regs[3] = WINDOW + 0x100;
    set_other(other, 0);
    // 0x40_0100 is free memory on any machine of 16 MiB.
    kit::page::poke(0x40_0100, 0x1111_2222);
    let mut run = at(jump_there());
    run.cr0 = legacy::CR0_FLAT | 1 << 31;
    run.cr4 = legacy::CR4_PLAIN | 1 << 4;
    run.cr3 = directory(0) as u32;
    let trap = run.run();
    let got = (trap.vector, trap.regs.rax, trap.regs.rcx);
    t.eq("CR3 is loaded", got, (0xf0, 0x1111_2222, directory(1)));
    other.eip = snippet32!("mov ecx, cr3").start as u32;
    set_other(other, 0);
    let mut run = at(jump_there());
    run.cr3 = directory(0) as u32;
    let trap = run.run();
    t.eq("CR3 stays without paging", trap.regs.rcx, directory(0));
}

/// With PAE the pointers come with CR3.
fn pae(t: &mut Report) {
    let entries = |offset: usize| {
        for i in 0..4_usize {
            let entry = boot::PAGE_DIRECTORIES.addr() + i as u64 * 4096 | 1;
            POINTERS.write(offset + i * 8, &entry.to_le_bytes());
        }
    };
    entries(0);
    entries(32);
    // At 1 GiB the second set has what the first has at 0.
    POINTERS.write(32 + 8, &(boot::PAGE_DIRECTORIES.addr() | 1).to_le_bytes());
    let there = snippet32!("mov eax, [ebx + 0x40000000]", "sub eax, [ebx]", "inc eax");
    let mut other = task(there);
    other.cr3 = POINTERS.addr() as u32 + 32;
    other.regs[3] = 0x10_0000;
    set_other(other, 0);
    let mut run = at(jump_there());
    run.cr0 = legacy::CR0_FLAT | 1 << 31;
    run.cr4 = legacy::CR4_PLAIN | 1 << 5;
    run.cr3 = POINTERS.addr() as u32;
    let trap = run.run();
    t.eq("PAE: the pointers are loaded", (trap.vector, trap.regs.rax), (0xf0, 1));
}

fn virtual_8086(t: &mut Report) {
    let there = snippet!(".code16"; "mov ax, ds", "mov bx, cs", "add cx, [si]");
    real::place(there, linear(real::CODE, 0));
    kit::page::poke(linear(real::DATA, 0x40), 0x30);
    let mut other = task(there);
    let data = u32::from(real::DATA);
    other.eip = 0;
    other.eflags = 0x2_3002;
    other.regs = [0, 1, 0, 0, real::STACK_TOP, 0, 0x40, 0];
    other.segments = [0x1111, real::CODE.into(), real::STACK.into(), data, 0x2222, 0x3333];
    set_other(other, 0);
    let trap = at(jump_there()).run();
    let r = trap.regs;
    let got = (trap.vector, r.rax, r.rbx, r.rcx, trap.rflags >> 17 & 1);
    t.eq("a task in virtual-8086 mode", got, (0xf0, data.into(), real::CODE.into(), 0x31, 1));
    let s = last();
    t.eq(
        "its data segments",
        [s.es, s.fs, s.gs].map(|word| word & 0xffff),
        [0x1111, 0x2222, 0x3333],
    );
}

/// T: a debug trap before the first instruction.
fn trap_flag(t: &mut Report) {
    let there = snippet32!("mov ebx, 0x1234");
    let mut other = task(there);
    other.trap = 1;
    set_other(other, 0);
    cpu::write_dr6(0xffff_0ff0);
    let mut run = at(jump_there());
    run.mark = there.start as u32;
    let trap = run.run();
    let got = (trap.outcome(), trap.regs.rbx, last().dr6 & 0xe00f);
    t.eq("#DB by the T flag", got, (Outcome::fault(DB), 0, 1 << 15));
    cpu::write_dr6(0xffff_0ff0);
}

/// Local breakpoints are off in the new task, global ones stay.
fn breakpoints(t: &mut Report) {
    let there = snippet32!("mov eax, dr7");
    set_other(task(there), 0);
    let code = snippet32!(
        "mov eax, 0x70f", "mov dr7, eax"; ".byte 0xea", ".long 0", ".word {other}" => other = const OTHER
    );
    let trap = at(code).run();
    let got = trap.regs.rax;
    cpu::write_dr7(0x400);
    // Whether LE goes with them, only older manuals say.
    t.eq("DR7: local enables are cleared", got & !0x100, 0x60a);
}
