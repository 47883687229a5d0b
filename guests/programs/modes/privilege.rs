//! Ring 3 outside long mode: the 32-bit task state segment, IRETD and RETF
//! between levels, call gates with parameters, SYSENTER.

use kit::cpu::{self, feature, msr};
use kit::legacy::{Legacy, at, restore_gate, set_gate, stub};
use kit::snippet::stack_top;
use kit::tables::{self, KERNEL_CODE32, KERNEL_DATA, USER_CODE32, USER_DATA, field};
use kit::trap::vector::*;
use kit::{Global, Outcome, Report, Trap, snippet32};

const SPARE: u16 = tables::FREE_SELECTOR + 32;
const GATE: u16 = tables::FREE_SELECTOR + 48;

/// A 32-bit TSS: link, ESP0, SS0, and the rest.
static TASK: Global<[u32; 26]> = Global::new([0; 26]);

/// Top of the ring 0 stack of the task.
fn stack0() -> u64 {
    tables::rsp0_top()
}

/// Lets the run use a 32-bit task state segment.
pub fn with_task(mut run: Legacy) -> Legacy {
    let mut task = [0; 26];
    task[1] = stack0() as u32;
    task[2] = KERNEL_DATA.into();
    task[25] = 104 << 16;
    TASK.set(task);
    tables::set_descriptor(SPARE, tables::system_descriptor(TASK.addr(), 103, 9));
    run.tr = SPARE.into();
    run
}

/// Runs and loads the 64-bit task register again.
fn task_run(run: Legacy) -> Trap {
    let trap = with_task(run).run();
    tables::load_tr(tables::TSS_LIMIT);
    trap
}

pub fn run(t: &mut Report) {
    tables::load_tr(tables::TSS_LIMIT);
    levels(t);
    returns(t);
    call_gates(t);
    if feature::SEP.offered() {
        sysenter(t);
    } else {
        t.skip("32-bit SYSENTER", "not offered");
    }
}

fn levels(t: &mut Report) {
    set_gate(0x60, stub(0x60), KERNEL_CODE32, 14, 3);
    let trap = task_run(at(snippet32!("int 0x60")).ring3(0));
    t.eq("32-bit ring 3 to 0", trap.outcome(), Outcome::trap(0x60, 2));
    t.eq("32-bit ring 3 to 0: stack of the task", trap.stack, stack0());
    let saved = (trap.cs, trap.ss, trap.rsp);
    t.eq("32-bit ring 3 to 0: saved", saved, (USER_CODE32.into(), USER_DATA.into(), stack_top()));
    restore_gate(0x60);
    let trap = task_run(at(snippet32!("int 0x60")).ring3(0));
    t.eq("32-bit: INT n needs gate DPL 3", trap.outcome(), Outcome::coded(GP, 0x60 * 8 + 2));
    let trap = task_run(at(snippet32!("cli")).ring3(0));
    t.eq("32-bit: #GP cli in ring 3", trap.outcome(), Outcome::coded(GP, 0));
    let trap = task_run(at(snippet32!("mov eax, ds", "mov ecx, cs")).ring3(0));
    t.eq("32-bit ring 3 selectors", (trap.regs.rax, trap.regs.rcx), (0x23, 0x1b));
}

fn returns(t: &mut Report) {
    // RETF to ring 3 with parameters to drop.
    let outer = snippet32!("mov eax, cs", "mov ebx, esp");
    let code = snippet32!(
        "push {ss}", "push edi", "push 1", "push 2", "push {cs}", "push edx";
        ".byte 0xca, 8, 0" // retf 8
        => ss = const USER_DATA, cs = const USER_CODE32
    );
    let mut run = at(code);
    run.regs[3] = outer.start as u32;
    run.regs[5] = stack_top() as u32 - 512;
    let trap = task_run(run);
    let got = (trap.outcome(), trap.regs.rax, trap.regs.rbx);
    let expected = (Outcome::Done, USER_CODE32.into(), stack_top() - 512 + 8);
    t.eq("32-bit retf to ring 3", got, expected);
    let inner = snippet32!("push {cs}", "push 0"; "retf" => cs = const KERNEL_CODE32);
    let trap = task_run(at(inner).ring3(0));
    t.eq("32-bit: #GP retf to ring 0", trap.outcome(), Outcome::coded(GP, KERNEL_CODE32.into()));
    // The outer level loses data segments that it may not use.
    let look = snippet32!("mov eax, ds", "mov ecx, es");
    let mut run = at(look).ring3(0);
    run.ds = KERNEL_DATA.into();
    let trap = task_run(run);
    t.eq("32-bit: iretd nulls DPL 0 data", (trap.regs.rax, trap.regs.rcx), (0, 0));
    let far = snippet32!(
        "push {cs}", "call 2f", "2:", "add dword ptr [esp], 7", "retf", "ud2", "nop", "mov eax, 5"
        => cs = const KERNEL_CODE32
    );
    let trap = at(far).run();
    t.eq("32-bit retf same level", (trap.outcome(), trap.regs.rax), (Outcome::Done, 5));
}

/// A 32-bit call gate that copies two parameters.
fn call_gates(t: &mut Report) {
    let target = snippet32!(
        "mov eax, [esp + 8]",
        "mov ebx, [esp + 12]",
        "mov ecx, [esp]",
        "mov edx, esp",
        "mov esi, [esp + 16]",
        "mov edi, [esp + 20]"
    );
    let offset = target.start;
    let gate = offset & 0xffff
        | u64::from(KERNEL_CODE32) << 16
        | 2 << 32
        | 12 << 40
        | field::DPL3
        | field::PRESENT
        | (offset >> 16) << 48;
    tables::set_descriptor(GATE, gate);
    let call = snippet32!(
        "push 0x2222", "push 0x1111"; ".byte 0x9a", ".long 0", ".word {gate}"
        => gate = const GATE | 3
    );
    let trap = task_run(at(call).ring3(0));
    t.eq("32-bit call gate", trap.outcome(), Outcome::Done);
    t.eq("32-bit call gate: parameters", (trap.regs.rax, trap.regs.rbx), (0x1111, 0x2222));
    t.eq("32-bit call gate: return EIP", trap.regs.rcx, call.mark + 7);
    t.eq("32-bit call gate: stack", trap.regs.rdx, stack0() - 24);
    let outer = (trap.regs.rsi, trap.regs.rdi & 0xffff);
    t.eq("32-bit call gate: outer stack", outer, (stack_top() - 8, USER_DATA.into()));
    // Without copying at the same level: CS and EIP only.
    let trap = task_run(at(call));
    let got = (trap.outcome(), trap.regs.rax, trap.regs.rdx);
    t.eq("32-bit call gate, same level", got, (Outcome::Done, 0x1111, stack_top() - 16));
}

fn sysenter(t: &mut Report) {
    let target = snippet32!("mov eax, cs", "mov edx, ss", "mov ebx, esp");
    let stack = stack0() - 64;
    cpu::wrmsr(msr::SYSENTER_CS, tables::KERNEL_CODE.into());
    cpu::wrmsr(msr::SYSENTER_ESP, stack);
    cpu::wrmsr(msr::SYSENTER_EIP, target.start);
    let trap = task_run(at(snippet32!("sysenter")).ring3(0));
    let got = (trap.outcome(), trap.regs.rax, trap.regs.rdx, trap.regs.rbx);
    t.eq("32-bit sysenter", got, (Outcome::Done, 8, 0x10, stack));
    let outer = snippet32!("mov eax, cs", "mov edx, ss", "mov ebx, esp");
    let mut run = at(snippet32!("sysexit")).ecx(stack_top() as u32 - 128);
    run.regs[3] = outer.start as u32;
    let trap = task_run(run);
    let got = (trap.outcome(), trap.regs.rax, trap.regs.rdx, trap.regs.rbx);
    t.eq("32-bit sysexit", got, (Outcome::Done, 0x1b, 0x23, stack_top() - 128));
    cpu::wrmsr(msr::SYSENTER_CS, 0);
    let trap = task_run(at(snippet32!("sysenter")).ring3(0));
    t.eq("32-bit: #GP sysenter with a null CS", trap.outcome(), Outcome::coded(GP, 0));
}
