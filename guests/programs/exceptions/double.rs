//! Exceptions during the delivery of another event: serial delivery, the EXT
//! bit, and the double fault (SDM vol. 3A table 6-5).

use kit::tables::{self, Gate};
use kit::trap::vector::*;
use kit::{Code, Report, page, snippet};

/// An IST entry that only these checks use.
const IST: u8 = 6;
/// Selector error bits: the IDT is meant; the cause is an earlier event.
const IDT: u64 = 2;
const EXT: u64 = 1;
const HOLE: u64 = page::LOW_WINDOW + 0x8000;
const NON_CANONICAL: u64 = 1 << 47;

pub fn run(t: &mut Report) {
    gates_not_present(t);
    stacks(t);
}

/// Vector and error code: the RIP saved by a double fault is undefined.
fn event(code: Code) -> (u64, u64) {
    let trap = code.kernel();
    (trap.vector, trap.error)
}

/// Runs with the gate of `vector` marked not present.
fn without_gate(vector: u64, code: Code) -> (u64, u64) {
    let vector = vector as u8;
    tables::set_gate(vector, Gate { present: false, ..Gate::standard(vector) });
    let result = event(code);
    tables::restore_gate(vector);
    result
}

fn gates_not_present(t: &mut Report) {
    let ud2 = snippet!("ud2");
    let np = |vector: u64| (NP, vector * 8 + IDT);
    t.eq("INT n to an absent gate", without_gate(0x60, snippet!("int 0x60")), np(0x60));
    let (vector, error) = without_gate(UD, ud2);
    t.eq("benign then #NP", (vector, error & !EXT), np(UD));
    t.eq("EXT is set when delivering an exception fails", error & EXT, EXT);
    t.eq("EXT is clear when INT3 fails", without_gate(BP, snippet!("int3")), np(BP));
    t.eq("EXT is set when INT1 fails", without_gate(DB, snippet!(".byte 0xf1")).1 & EXT, EXT);

    let divide = snippet!("div ecx");
    t.eq("#DF: #DE then #NP", without_gate(DE, divide), (DF, 0));
    let protection = snippet!("mov rax, 1 << 47", "mov rax, [rax]");
    t.eq("#DF: #GP then #NP", without_gate(GP, protection), (DF, 0));
    let page_fault = snippet!("mov eax, [0x40008000]");
    t.eq("#DF: #PF then #NP", without_gate(PF, page_fault), (DF, 0));
    let not_canonical = snippet!("mov rsp, (1 << 47) + 64", "push rax");
    t.eq("#DF: #SS then #NP", without_gate(SS, not_canonical), (DF, 0));
    let trap = {
        tables::set_gate(DE as u8, Gate { present: false, ..Gate::standard(0) });
        let trap = divide.kernel();
        tables::restore_gate(0);
        trap
    };
    t.eq("#DF runs on its IST stack", trap.stack, tables::ist_top(tables::IST_DOUBLE_FAULT));
}

/// Runs with `vector` on an IST stack at `stack`.
fn with_stack(vector: u64, stack: u64, code: Code) -> (u64, u64, u64) {
    let number = vector as u8;
    tables::tss().ist[usize::from(IST) - 1] = stack;
    tables::set_gate(number, Gate { ist: IST, ..Gate::standard(number) });
    let trap = code.kernel();
    tables::restore_gate(number);
    tables::tss().ist[usize::from(IST) - 1] = tables::ist_top(IST);
    (trap.vector, trap.error, if trap.vector == PF { trap.cr2 } else { 0 })
}

fn stacks(t: &mut Report) {
    let ud2 = snippet!("ud2");
    let page_fault = snippet!("mov eax, [0x40000000]");
    let protection = snippet!("mov rax, 1 << 47", "mov rax, [rax]");
    // The error code of a page fault has no EXT bit: a supervisor write.
    t.eq("benign then #PF on the stack", with_stack(UD, HOLE, ud2), (PF, 2, HOLE - 8));
    t.eq("contributory then #PF is serial", with_stack(GP, HOLE, protection), (PF, 2, HOLE - 8));
    t.eq("#DF: #PF then #PF", with_stack(PF, HOLE, page_fault), (DF, 0, 0));
    let (vector, error, _) = with_stack(UD, NON_CANONICAL + 64, ud2);
    t.eq("benign then #SS on the stack", (vector, error & !EXT), (SS, 0));
    t.eq("#DF: contributory then #SS", with_stack(GP, NON_CANONICAL + 64, protection), (DF, 0, 0));
    t.eq("#DF: #PF then #SS", with_stack(PF, NON_CANONICAL + 64, page_fault), (DF, 0, 0));
    // An interrupt's own page fault, then a failing #PF delivery.
    let int = snippet!("int 0x60");
    t.eq("INT n then #PF on the stack", with_stack(0x60, HOLE, int), (PF, 2, HOLE - 8));
}
