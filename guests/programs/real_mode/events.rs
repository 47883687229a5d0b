//! The interrupt vector table (SDM vol. 3B 21.1.4).

use kit::cpu::flag;
use kit::page::peek;
use kit::real::{
    CODE, STACK, STACK_TOP, VECTORS, at, last, linear, place, restore_vector, set_vector, stub,
};
use kit::trap::vector::*;
use kit::{Outcome, Report, snippet};

const OTHER: u16 = 0x5800;
const TOP: u64 = STACK_TOP as u64;

pub fn run(t: &mut Report) {
    causes(t);
    frame(t);
    handler(t);
    table(t);
    step(t);
}

fn causes(t: &mut Report) {
    t.eq("#DE", at(snippet!(".code16"; "div cx")).outcome(), Outcome::fault(DE));
    t.eq("#UD", at(snippet!(".code16"; "ud2")).outcome(), Outcome::fault(UD));
    t.eq("#BP", at(snippet!(".code16"; "int3")).outcome(), Outcome::trap(BP, 1));
    t.eq("INT n", at(snippet!(".code16"; "int 0x21")).outcome(), Outcome::trap(0x21, 2));
    let mut run = at(snippet!(".code16"; "into"));
    run.eflags |= 1 << 11;
    t.eq("#OF", run.outcome(), Outcome::trap(OF, 1));
    t.eq("INTO without OF", at(snippet!(".code16"; "into")).outcome(), Outcome::Done);
    kit::real::store(linear(kit::real::DATA, 0), &[1, 0, 5, 0]);
    let bound = snippet!(".code16"; ".byte 0x62, 0x07"); // bound ax, [bx]
    let mut run = at(bound);
    run.eax = 6;
    t.eq("#BR", run.outcome(), Outcome::fault(BR));
    run.eax = 5;
    t.eq("bound inside", run.outcome(), Outcome::Done);
    let nm = snippet!(
        ".code16"; "mov eax, cr0", "or al, 8", "mov cr0, eax", "fld1"
    );
    let trap = at(nm).run();
    t.eq("#NM", trap.vector, NM);
}

/// Three words: FLAGS, CS, IP, and no error code.
fn frame(t: &mut Report) {
    let mut run = at(snippet!(".code16"; "int 0x21"));
    run.eflags |= (flag::IF | flag::DF | flag::CF) as u32;
    let trap = run.run();
    let words = peek(linear(STACK, STACK_TOP - 6)) & 0xffff_ffff_ffff;
    let flags = flag::IF | flag::DF | flag::CF | 2;
    t.eq("three words on the stack", words, flags << 32 | u64::from(CODE) << 16 | 2);
    t.eq("the stack behind them", trap.rsp, TOP);
    let inside = u64::from(last().handler_flags);
    t.eq("IF is clear in the handler", inside & (flag::IF | flag::TF), 0);
    t.eq("DF stays", inside & flag::DF, flag::DF);
    let mut run = at(snippet!(".code16"; "div cx"));
    run.esp = 6;
    let trap = run.run();
    t.eq("a frame down to 0", (trap.outcome(), trap.rsp), (Outcome::fault(DE), 6));
    let mut run = at(snippet!(".code16"; "int 0x21"));
    (run.esp, run.eflags) = (0xabc0_0002, 2);
    let trap = run.run();
    t.eq("a frame that wraps", (trap.outcome(), trap.rsp), (Outcome::trap(0x21, 2), 0xabc0_0002));
}

fn handler(t: &mut Report) {
    let code = snippet!(".code16"; "inc cx", "mov dx, cs", "iret");
    place(code, linear(OTHER, 0x40));
    set_vector(0x21, u32::from(OTHER) << 16 | 0x40);
    let mut run = at(snippet!(".code16"; "int 0x21", "int 0x21", "pushf", "pop ax", "mov bx, cs"));
    run.eflags |= flag::CF as u32 | flag::IF as u32;
    let trap = run.run();
    let regs = trap.regs;
    let got = (trap.outcome(), regs.rax, regs.rbx, regs.rcx, regs.rdx);
    t.eq("INT and IRET", got, (Outcome::Done, 0x203, CODE.into(), 2, OTHER.into()));
    restore_vector(0x21);
}

fn table(t: &mut Report) {
    // Another table elsewhere.
    let elsewhere = u64::from(VECTORS) + 0x404;
    kit::real::store(elsewhere + 0x22 * 4, &stub(0x33).to_le_bytes());
    kit::real::store(elsewhere + 0xf0 * 4, &stub(0xf0).to_le_bytes());
    let mut run = at(snippet!(".code16"; "int 0x22"));
    run.idt_base = elsewhere as u32;
    t.eq("a table elsewhere", run.outcome(), Outcome::trap(0x33, 2));
    let lidt = snippet!(".code16"; "lidt [bx]", "sidt [bx + 8]", "int 0x22");
    let mut image = [0; 6];
    image[..2].copy_from_slice(&0x3ff_u16.to_le_bytes());
    image[2..].copy_from_slice(&(elsewhere as u32).to_le_bytes());
    kit::real::store(linear(kit::real::DATA, 0), &image);
    let trap = at(lidt).run();
    t.eq("LIDT", trap.vector, 0x33);
    let stored = peek(linear(kit::real::DATA, 8)) & 0xffff_ffff_ffff;
    t.eq("SIDT", stored, elsewhere << 16 | 0x3ff);
    let mut run = at(snippet!(".code16"; "int 0x40"));
    run.idt_limit = 0x40 * 4 + 2;
    t.eq("#GP a vector cut by the limit", run.outcome(), Outcome::fault(GP));
    run.idt_limit = 0x40 * 4 + 3;
    t.eq("a vector at the limit", run.outcome(), Outcome::trap(0x40, 2));
    run.idt_limit = GP as u32 * 4 - 1;
    t.eq("#DF without #GP in the table", run.outcome(), Outcome::fault(DF));
}

/// What control registers refuse; a machine that obeys locks up.
pub fn control(t: &mut Report) {
    let invalid = snippet!(".code16"; "mov eax, 0x80000000", "mov cr4, eax");
    t.eq("#GP reserved bits of CR4", at(invalid).run().vector, GP);
    let paging = snippet!(".code16"; "mov eax, cr0", "bts eax, 31", "mov cr0, eax");
    t.eq("#GP paging without protection", at(paging).run().vector, GP);
}

fn step(t: &mut Report) {
    let mut run = at(snippet!(".code16"; "inc ax", "nop"));
    run.eflags |= flag::TF as u32;
    t.eq("single step", run.outcome(), Outcome::trap(DB, 1));
    // A step of MOV SS is held off.
    let mut run = at(snippet!(".code16"; "mov ss, bx", "nop", "nop"));
    run.eflags |= flag::TF as u32;
    run.ebx = STACK.into();
    t.eq("a step behind MOV SS", run.outcome(), Outcome::trap(DB, 3));
    kit::cpu::write_dr6(0xffff_0ff0);
}
