//! Who switches, and what it does to busy flags, NT and links (table 8-2).

use crate::scene::*;
use kit::cpu::flag;
use kit::legacy::{TASK_SELECTOR, last};
use kit::snippet::stack_top;
use kit::trap::vector::GP;
use kit::{Code, Outcome, Report, snippet32, tables};

const NT: u64 = flag::NT;
const OWN: u64 = TASK_SELECTOR as u64;

pub fn run(t: &mut Report) {
    jump(t);
    call(t);
    gates(t);
    levels(t);
    ping_pong(t);
}

fn jump(t: &mut Report) {
    let there = snippet32!("mov ebx, 0x1234");
    set_other(task(there), 0);
    let code = snippet32!("mov eax, 7"; ".byte 0xea", ".long 0xffffffff", ".word {other}" => other = const OTHER);
    let trap = at(code).run();
    let got = (trap.vector, trap.regs.rax, trap.regs.rbx, trap.rsp);
    t.eq("jmp: the new task", got, (0xf0, 0, 0x1234, other_stack().into()));
    t.eq("jmp: TR", last().tr, OTHER);
    t.eq("jmp: the old task is available, the new one busy", busy(), (false, true));
    t.eq("jmp: no NT, no link", (trap.rflags & NT, other().link), (0, 0));
    t.eq("jmp: CR0.TS", last().cr0 & 8, 8);
    t.eq("jmp: saved EIP and EAX", (own().eip, own().regs[0]), (code.mark as u32 + 7, 7));
}

fn call(t: &mut Report) {
    let there =
        snippet32!("pushfd", "pop edi", "str esi", "mov ebx, 0x1234", "iretd", "inc ebx", "iretd");
    set_other(task(there), 0);
    let call = snippet32!("mov ebp, 5"; ".byte 0x9a", ".long 0", ".word {other}", "mov eax, 6", "str edx" => other = const OTHER);
    let trap = at(call).run();
    let r = trap.regs;
    let got = (trap.outcome(), r.rax, r.rbp, r.rbx, trap.rsp);
    t.eq("call and iret", got, (Outcome::Done, 6, 5, 0, stack_top()));
    t.eq("call and iret: TR", r.rdx, OWN);
    t.eq("call and iret: busy", busy(), (true, false));
    t.eq("call and iret: NT", trap.rflags & NT, 0);
    let saved = other();
    t.eq("call: NT in the new task", u64::from(saved.regs[7]) & NT, NT);
    t.eq("call: the link", u64::from(saved.link), OWN);
    t.eq("call: TR", saved.regs[6], OTHER.into());
    t.eq("iret: EBX saved", saved.regs[3], 0x1234);
    t.eq("iret: NT clear in what is saved", u64::from(saved.eflags) & NT, 0);
    // The next call goes on behind the IRET.
    let again = snippet32!(
        ".byte 0x9a", ".long 0", ".word {other}", ".byte 0x9a", ".long 0", ".word {other}"
        => other = const OTHER
    );
    set_other(task(there), 0);
    at(again).run();
    t.eq("a second call goes on behind iret", other().regs[3], 0x1235);
}

fn gates(t: &mut Report) {
    let there = snippet32!("mov ebx, 0x1234", "iretd");
    set_other(task(there), 0);
    let call = snippet32!(".byte 0x9a", ".long 0", ".word {gate}" => gate = const GATE);
    let got = (at(call).outcome(), other().regs[3], busy());
    t.eq("call by a task gate", got, (Outcome::Done, 0x1234, (true, false)));
    let ends = snippet32!("mov ebx, 0x1235");
    set_other(task(ends), 0);
    let jump = snippet32!(".byte 0xea", ".long 0", ".word {gate}" => gate = const GATE);
    let trap = at(jump).run();
    t.eq("jmp by a task gate", (trap.vector, trap.regs.rbx, busy()), (0xf0, 0x1235, (false, true)));
    // A gate in memory operands.
    let indirect = snippet32!("push {gate}", "push 0", "call fword ptr [esp]" => gate = const GATE);
    set_other(task(there), 0);
    t.eq(
        "indirect call by a task gate",
        (at(indirect).outcome(), other().regs[3]),
        (Outcome::Done, 0x1234),
    );
}

/// DPL of the TSS, or of the gate, against CPL and RPL.
fn levels(t: &mut Report) {
    let there = snippet32!("mov ebx, 0x1234", "iretd");
    let direct = snippet32!(".byte 0x9a", ".long 0", ".word {other} + 3" => other = const OTHER);
    let gate = snippet32!(".byte 0x9a", ".long 0", ".word {gate}" => gate = const GATE);
    let cases: [(&str, Code, u64, u64, Outcome); 4] = [
        ("tss DPL 3, ring 3", direct, 3, 3, Outcome::Done),
        ("tss DPL 0, RPL 3", direct, 0, 0, Outcome::coded(GP, OTHER.into())),
        ("gate DPL 0, ring 3", gate, 0, 3, Outcome::coded(GP, GATE.into())),
        ("gate DPL 3, ring 3", gate, 3, 3, Outcome::Done),
    ];
    for (name, code, dpl, ring, expected) in cases {
        set_other(task(there), dpl);
        let run = if ring == 3 { at(code).ring3(0) } else { at(code) };
        t.eq(format_args!("call: {name}"), run.outcome(), expected);
    }
    // The gate's DPL replaces that of the TSS.
    set_other(task(there), 0);
    tables::set_descriptor(GATE, task_gate(OTHER, 3));
    let got = (at(gate).ring3(0).outcome(), other().regs[3]);
    t.eq("call: gate DPL 3 to a TSS of DPL 0", got, (Outcome::Done, 0x1234));
}

fn ping_pong(t: &mut Report) {
    let there = snippet32!("2:", "inc ebx", ".byte 0xea", ".long 0", ".word {own}", "jmp 2b" => own = const TASK_SELECTOR);
    set_other(task(there), 0);
    let here = snippet32!(
        "mov ecx, 100", "2:", ".byte 0xea", ".long 0", ".word {other}", "loop 2b" => other = const OTHER
    );
    let trap = at(here).run();
    let got = (trap.outcome(), trap.regs.rcx, other().regs[3], busy());
    t.eq("a hundred jumps there and back", got, (Outcome::Done, 0, 100, (true, false)));
}
