//! Leaving and entering long mode, and what forbids it (SDM vol. 3A 9.8.5).

use kit::cpu::{self, msr};
use kit::legacy::{self, CR4_PLAIN, at};
use kit::trap::vector::*;
use kit::{Outcome, Report, boot, snippet32};

pub fn run(t: &mut Report) {
    legacy::init();
    let efer = snippet32!("mov ecx, 0xc0000080", "rdmsr", "mov ebx, cr0");
    let trap = at(efer).run();
    t.eq("with paging off: EFER without LMA", trap.regs.rax, boot::EFER & !(1 << 8));
    t.eq("with paging off: CR0", trap.regs.rbx, legacy::CR0_FLAT.into());
    t.eq("back: EFER", cpu::rdmsr(msr::EFER), boot::EFER | 1 << 10);
    let mut good = true;
    for i in 0..50 {
        let trap = at(snippet32!("add eax, 1")).eax(i).run();
        good &= trap.outcome() == Outcome::Done && trap.regs.rax == u64::from(i) + 1;
    }
    t.that("50 times out and back", good);
    forbidden(t);
    registers(t);
}

fn forbidden(t: &mut Report) {
    // LME set, PAE clear: paging cannot be turned on.
    let no_pae = snippet32!(
        "mov ecx, 0xc0000080", "rdmsr", "or eax, 0x100", "wrmsr", "mov eax, cr0",
        "bts eax, 31"; "mov cr0, eax"
    );
    t.eq("#GP PG with LME and without PAE", at(no_pae).outcome(), Outcome::fault(GP));
    // LME cannot change while paging is on.
    let mut run = at(snippet32!(
        "mov ecx, 0xc0000080", "rdmsr", "or eax, 0x100"; "wrmsr"
    ));
    crate::paging::enable_pae(&mut run);
    t.eq("#GP LME set with paging on", run.outcome(), Outcome::fault(GP));
    let mut run = at(snippet32!("mov eax, cr4", "btr eax, 5"; "mov cr4, eax", "mov ebx, cr4"));
    run.cr4 = CR4_PLAIN | 1 << 5;
    let trap = run.run();
    t.eq(
        "PAE can change with paging off",
        (trap.outcome(), trap.regs.rbx),
        (Outcome::Done, CR4_PLAIN.into()),
    );
}

/// 32-bit code cannot see or lose what is 64-bit.
fn registers(t: &mut Report) {
    let rex = snippet32!(".byte 0x48, 0x48", ".byte 0x40"); // dec eax, dec eax, inc eax
    t.eq("REX prefixes are INC and DEC", at(rex).eax(10).run().regs.rax, 9);
    if !cpu::is_amd() {
        let syscall = at(snippet32!("syscall")).outcome();
        t.eq("#UD SYSCALL outside long mode", syscall, Outcome::fault(UD));
    }
    let swapgs = at(snippet32!(".byte 0x0f, 0x01, 0xf8")).outcome();
    t.eq("#UD SWAPGS outside long mode", swapgs, Outcome::fault(UD));
}
