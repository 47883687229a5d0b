//! Debug exceptions: single step, instruction, data and I/O breakpoints, DR6
//! and DR7, general detect (Intel SDM vol. 3B chapter 17; AMD APM vol. 2
//! 13.1).

#![no_std]
#![no_main]

use kit::cpu::{self, cr4, feature, flag, msr};
use kit::snippet::{USER_BASE, stack_top};
use kit::trap::{self, Frame, vector::*};
use kit::{Code, Global, Mode, Outcome, Report, Trap, snippet, tables};

kit::program!(main);

/// DR6 with nothing recorded.
const DR6_CLEAR: u64 = 0xffff_0ff0;
/// DR7 with nothing enabled.
const DR7_CLEAR: u64 = 0x400;
const BS: u64 = 1 << 14;
const BD: u64 = 1 << 13;

/// The saved RIP and DR6 of every #DB, in order.
static HITS: Global<[(u64, u64); 16]> = Global::new([(0, 0); 16]);
static COUNT: Global<usize> = Global::new(0);

fn main(t: &mut Report) {
    registers(t);
    step(t);
    step_branches(t);
    step_specials(t);
    step_system_calls(t);
    instruction(t);
    data(t);
    data_table(t);
    data_specials(t);
    io(t);
    general_detect(t);
    cpu::write_dr7(DR7_CLEAR);
}

/// Notes the hit, clears DR6, and lets an instruction breakpoint pass.
fn note(frame: &mut Frame) {
    let count = COUNT.get();
    let mut hits = HITS.get();
    if count < hits.len() {
        hits[count] = (frame.rip, cpu::read_dr6());
    }
    HITS.set(hits);
    COUNT.set(count + 1);
    cpu::write_dr6(DR6_CLEAR);
    frame.rflags |= flag::RF;
    if count > 200 {
        frame.rflags &= !flag::TF;
        cpu::write_dr7(DR7_CLEAR);
    }
}

/// Runs with the hook in place.
fn traced(run: kit::Run) -> Trap {
    COUNT.set(0);
    HITS.set([(0, 0); 16]);
    cpu::write_dr6(DR6_CLEAR);
    trap::hook(DB as u8, Some(note));
    let trap = run.run();
    trap::hook(DB as u8, None);
    trap
}

/// The hits as distances from `mark`, for comparison with a list.
fn offsets(mark: u64) -> Offsets {
    let count = COUNT.get().min(16);
    Offsets(HITS.get().map(|(rip, _)| rip.wrapping_sub(mark) as i64), count)
}

#[derive(Clone, Copy)]
struct Offsets([i64; 16], usize);

impl PartialEq for Offsets {
    fn eq(&self, other: &Self) -> bool {
        self.0[..self.1] == other.0[..other.1]
    }
}

impl core::fmt::Debug for Offsets {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(&self.0[..self.1]).finish()
    }
}

fn list(offsets: &[i64]) -> Offsets {
    let mut all = [0; 16];
    all[..offsets.len()].copy_from_slice(offsets);
    Offsets(all, offsets.len())
}

fn dr6(hit: usize) -> u64 {
    HITS.get()[hit].1
}

fn registers(t: &mut Report) {
    cpu::write_dr7(0);
    t.eq("DR7 bit 10 is always set", cpu::read_dr7(), DR7_CLEAR);
    cpu::write_dr7(0xffff_0000);
    t.eq("DR7 conditions read back", cpu::read_dr7(), 0xffff_0400);
    cpu::write_dr7(DR7_CLEAR);
    cpu::write_dr6(0);
    // RTM (bit 16) and bus lock (bit 11) read as 1 where not offered; zero
    // here means "not recorded in inverse" or "clear" by generation.
    t.eq("DR6 fixed bits", cpu::read_dr6() & !(1 << 16 | 1 << 11) & 0xffff_ffff, 0xfffe_07f0);
    cpu::write_dr6(0xf | BS | BD | DR6_CLEAR);
    t.eq("DR6 status bits read back", cpu::read_dr6(), DR6_CLEAR | 0xf | BS | BD);
    cpu::write_dr6(DR6_CLEAR);
    t.eq("#GP DR6 upper half", cpu::try_write_dr6(1 << 32 | DR6_CLEAR), Some(GP));
    t.eq("#GP DR7 upper half", cpu::try_write_dr7(1 << 32 | DR7_CLEAR), Some(GP));
    let value = 0x1234_5678_9abc_def0;
    cpu::write_dr0(value);
    cpu::write_dr1(!value);
    cpu::write_dr2(1);
    cpu::write_dr3(2);
    let got = [cpu::read_dr0(), cpu::read_dr1(), cpu::read_dr2(), cpu::read_dr3()];
    t.eq("DR0 to DR3 hold 64 bits", got, [value, !value, 1, 2]);
    let alias = snippet!(".byte 0x0f, 0x21, 0xe0").kernel().regs.rax; // mov rax, dr4
    t.eq("DR4 is DR6", alias, DR6_CLEAR);
    t.eq("#GP mov from DR0 in ring 3", snippet!("mov rax, dr0").u(), Outcome::fault(GP));
}

fn step(t: &mut Report) {
    for mode in [Mode::Kernel64, Mode::User64] {
        // TF comes with IRETQ: the first trap is behind the first instruction.
        let code = snippet!(; "nop", "inc eax", "jmp 2f", "ud2", "2:", "nop");
        let trap = traced(code.at(mode).flags(flag::TF));
        let expected = list(&[1, 3, 7, 8]);
        t.eq(format_args!("single step {mode:?}"), offsets(trap.mark), expected);
        t.eq(format_args!("single step {mode:?}: DR6"), dr6(0), DR6_CLEAR | BS);
        t.eq(
            format_args!("single step {mode:?}: TF saved by INT"),
            trap.rflags & flag::TF,
            flag::TF,
        );
    }
    let popf =
        snippet!("pushfq", "or dword ptr [rsp], 0x100", "popfq"; "nop", "nop", "push 2", "popfq");
    let trap = traced(popf.at(Mode::Kernel64));
    // POPF that clears TF still ends in a trap, since TF was set before it.
    t.eq("single step set and cleared by POPF", offsets(trap.mark), list(&[1, 2, 4, 5]));
    // Without a hook: the guard sees the plain trap.
    let trap = snippet!("nop", "nop").at(Mode::User64).flags(flag::TF).run();
    t.eq("single step outcome", trap.outcome(), Outcome::trap(DB, 1));
    t.eq("single step saves TF and no RF", trap.rflags & (flag::TF | flag::RF), flag::TF);
    t.eq("single step on IST 4", trap.stack, tables::ist_top(tables::IST_DEBUG));
    let fault = snippet!("ud2").at(Mode::User64).flags(flag::TF).run();
    t.eq("a fault comes instead of the step", fault.outcome(), Outcome::fault(UD));
    cpu::write_dr6(DR6_CLEAR);
}

/// DEBUGCTL.BTF: only taken branches step, and the trap clears it.
fn step_branches(t: &mut Report) {
    cpu::wrmsr(msr::DEBUGCTL, 2);
    t.eq("DEBUGCTL.BTF reads back", cpu::rdmsr(msr::DEBUGCTL), 2);
    let code = snippet!("xor eax, eax"; "jnz 2f", "rep stosb", "jmp 2f", "ud2", "2:", "nop", "nop");
    let run = code.at(Mode::Kernel64).flags(flag::TF).rdi(stack_top() - 64).rcx(3);
    let trap = traced(run);
    t.eq("BTF steps at a taken branch", offsets(trap.mark), list(&[8, 9, 10]));
    t.eq("BTF: DR6", dr6(0), DR6_CLEAR | BS);
    t.eq("the trap clears BTF", cpu::rdmsr(msr::DEBUGCTL), 0);
    cpu::wrmsr(msr::DEBUGCTL, 0);
}

fn step_specials(t: &mut Report) {
    let mov_ss = snippet!("mov ecx, ss"; "mov ss, ecx", "nop", "nop");
    let trap = traced(mov_ss.at(Mode::Kernel64).flags(flag::TF));
    t.eq("MOV SS holds the step back", offsets(trap.mark), list(&[0, 3, 4]));
    // INT n clears TF in its handler; IRET brings it back.
    trap::hook(0x60, Some(|_| {}));
    let int = snippet!("int 0x60", "nop", "nop");
    let trap = traced(int.at(Mode::Kernel64).flags(flag::TF));
    trap::hook(0x60, None);
    t.eq("INT n: no step in or behind it", offsets(trap.mark), list(&[3, 4]));
    let icebp = traced(snippet!(".byte 0xf1", "nop").at(Mode::Kernel64));
    t.eq("INT1", offsets(icebp.mark), list(&[1]));
    t.eq("INT1 records nothing in DR6", dr6(0), DR6_CLEAR);
    let sti = snippet!("sti", "nop", "cli").at(Mode::Kernel64).flags(flag::TF);
    let trap = traced(sti);
    // The SDM names MOV SS only; some processors hold it back for STI too.
    t.holds("STI and the step", offsets(trap.mark), |&got| {
        got == list(&[1, 2, 3]) || got == list(&[2, 3])
    });
    let rep = snippet!(; "rep stosb", "nop").at(Mode::Kernel64).flags(flag::TF);
    let trap = traced(rep.rdi(stack_top() - 64).rcx(3));
    t.eq("REP steps by element", offsets(trap.mark), list(&[0, 0, 2, 3]));
    let cpuid = snippet!("cpuid", "rdtsc", "mov rax, cr0", "nop");
    let trap = traced(cpuid.at(Mode::Kernel64).flags(flag::TF));
    t.eq("system instructions step", offsets(trap.mark), list(&[2, 4, 7, 8]));
}

fn step_system_calls(t: &mut Report) {
    if !feature::SYSCALL.offered() {
        return t.skip("single step and SYSCALL", "not offered");
    }
    let entry = snippet!("nop", "nop");
    cpu::wrmsr(msr::STAR, 0x0018_0008 << 32);
    cpu::wrmsr(msr::LSTAR, entry.start);
    cpu::wrmsr(msr::SFMASK, flag::TF);
    traced(snippet!("nop"; "syscall").at(Mode::User64).flags(flag::TF));
    // Behind NOP; whether the SYSCALL that clears TF still ends in a trap (at
    // the entry point) depends on the processor.
    let got = offsets(entry.start);
    t.holds("SYSCALL that masks TF", got, |got| got.1 == 1 || (got.1 == 2 && got.0[1] == 0));
    cpu::write_dr6(DR6_CLEAR);
    cpu::wrmsr(msr::SFMASK, 0);
    traced(snippet!("nop"; "syscall").at(Mode::User64).flags(flag::TF));
    let got = offsets(entry.start);
    t.eq(
        "SYSCALL that keeps TF steps at its entry",
        (got.1, got.0[1], got.0[2], got.0[3]),
        (4, 0, 1, 2),
    );
    // SYSRET sets TF: the first trap is before or behind the first
    // instruction, by generation.
    let user = snippet!("nop", "nop");
    let sysret = snippet!(".byte 0x48, 0x0f, 0x07").at(Mode::Kernel64);
    let run = sysret.rcx(user.start + USER_BASE).r11(flag::TF | 2).rsp(stack_top() + USER_BASE);
    traced(run);
    let got = offsets(user.start + USER_BASE);
    t.holds("SYSRET that sets TF", got, |&got| got == list(&[1, 2]) || got == list(&[0, 1, 2]));
    cpu::write_dr6(DR6_CLEAR);
}

/// DR7 with breakpoint `index` enabled locally: condition `rw` (0 execute, 1
/// write, 2 I/O, 3 read or write), length code `len`.
fn enable(index: u64, rw: u64, len: u64) -> u64 {
    DR7_CLEAR | 1 << (2 * index) | (rw | len << 2) << (16 + 4 * index)
}

fn set_address(index: u64, address: u64) {
    match index {
        0 => cpu::write_dr0(address),
        1 => cpu::write_dr1(address),
        2 => cpu::write_dr2(address),
        _ => cpu::write_dr3(address),
    }
}

fn instruction(t: &mut Report) {
    for index in 0..4 {
        for mode in [Mode::Kernel64, Mode::User64] {
            let code = snippet!("inc eax"; "inc ecx", "nop");
            set_address(index, code.mark + mode.base());
            cpu::write_dr7(enable(index, 0, 0));
            let trap = traced(code.at(mode));
            cpu::write_dr7(DR7_CLEAR);
            // Breakpoints that match but are not enabled may be recorded too.
            let got = (offsets(trap.mark), dr6(0) & (BS | BD | 1 << index), trap.regs.rcx);
            let expected = (list(&[0]), 1 << index, 1);
            t.eq(format_args!("instruction breakpoint {index} {mode:?}"), got, expected);
        }
    }
    let code = snippet!(; "inc ecx", "nop");
    set_address(0, code.mark);
    cpu::write_dr7(enable(0, 0, 0));
    let trap = code.kernel();
    t.eq("instruction breakpoint is a fault", trap.outcome(), Outcome::fault(DB));
    t.eq("instruction breakpoint saves no RF", trap.rflags & flag::RF, 0);
    t.eq("instruction breakpoint: not executed", trap.regs.rcx, 0);
    let trap = code.at(Mode::Kernel64).flags(flag::RF).run();
    t.eq("RF suppresses it once", trap.outcome(), Outcome::Done);
    cpu::write_dr6(DR6_CLEAR);
    let code = snippet!("mov ecx, 5"; "2: inc eax", "dec ecx", "jnz 2b");
    set_address(0, code.mark);
    let trap = traced(code.at(Mode::Kernel64));
    t.eq("in a loop: every time", (COUNT.get(), trap.regs.rax), (5, 5));
    cpu::write_dr7(DR7_CLEAR | 2);
    traced(code.at(Mode::Kernel64));
    t.eq("global enable", COUNT.get(), 5);
    cpu::write_dr7(DR7_CLEAR);
    traced(code.at(Mode::Kernel64));
    t.eq("not enabled", COUNT.get(), 0);
    let inside = snippet!(; "mov eax, 0x11223344", "nop");
    set_address(0, inside.mark + 1);
    cpu::write_dr7(enable(0, 0, 0));
    traced(inside.at(Mode::Kernel64));
    t.eq("an address inside an instruction does not match", COUNT.get(), 0);
    // Both reasons at once: the step ends where the breakpoint lies.
    let code = snippet!(; "nop", "inc ecx");
    set_address(0, code.mark + 1);
    let trap = traced(code.at(Mode::Kernel64).flags(flag::TF));
    cpu::write_dr7(DR7_CLEAR);
    t.holds(
        "step onto a breakpoint",
        (offsets(trap.mark), dr6(0), dr6(1)),
        |&(got, first, second)| {
            (got == list(&[1, 3]) && first & (BS | 1) == BS | 1)
            || (got == list(&[1, 1, 3]) && first & BS != 0 && second & 1 != 0)
            // A step handler that sets RF passes over the breakpoint.
            || (got == list(&[1, 3]) && first & BS != 0)
        },
    );
    cpu::write_dr6(DR6_CLEAR);
}

/// Runs `code` with RBX at the watched place; number of hits, first offset,
/// first DR6.
fn watch(code: Code, mode: Mode, dr7: u64, address: u64) -> (usize, i64, u64) {
    cpu::write_dr7(dr7);
    let trap = traced(code.at(mode).rbx(address + mode.base()).rax(7));
    cpu::write_dr7(DR7_CLEAR);
    match COUNT.get() {
        0 => (0, 0, 0),
        count => (count, offsets(trap.mark).0[0], dr6(0) & 0xf),
    }
}

fn data(t: &mut Report) {
    let place = stack_top() - 256;
    let write = snippet!(; "mov [rbx], eax", "nop");
    let read = snippet!(; "mov ecx, [rbx]", "nop");
    let change = snippet!(; "add [rbx], eax", "nop");
    for mode in [Mode::Kernel64, Mode::User64] {
        for index in 0..4 {
            set_address(index, place + mode.base());
            let hit = (1, 2, 1 << index);
            for (name, code, rw, expected) in [
                ("write, on write", write, 1, hit),
                ("read, on write", read, 1, (0, 0, 0)),
                ("change, on write", change, 1, hit),
                ("write, on access", write, 3, hit),
                ("read, on access", read, 3, hit),
            ] {
                let got = watch(code, mode, enable(index, rw, 3), place);
                t.eq(format_args!("data breakpoint {index} {mode:?}: {name}"), got, expected);
            }
        }
    }
    let trap = {
        set_address(0, place);
        cpu::write_dr7(enable(0, 1, 3));
        let trap = write.at(Mode::Kernel64).rbx(place).rax(0x77).run();
        cpu::write_dr7(DR7_CLEAR);
        trap
    };
    t.eq("data breakpoint is a trap", trap.outcome(), Outcome::trap(DB, 2));
    t.eq("data breakpoint saves no RF", trap.rflags & flag::RF, 0);
    t.eq("data breakpoint: the write is done", kit::page::peek(place) as u32, 0x77);
    cpu::write_dr6(DR6_CLEAR);
}

/// Length of the breakpoint against place and size of the access.
fn data_table(t: &mut Report) {
    let place = stack_top() - 256;
    let accesses = [
        (1u64, snippet!("mov [rbx], al")),
        (2, snippet!("mov [rbx], ax")),
        (4, snippet!("mov [rbx], eax")),
        (8, snippet!("mov [rbx], rax")),
        (16, snippet!("movups [rbx], xmm0")),
    ];
    let mut table = t.table("data breakpoint lengths");
    for (code, length) in [(0u64, 1u64), (1, 2), (3, 4), (2, 8)] {
        set_address(0, place);
        for (size, access) in accesses {
            for offset in -18i64..10 {
                let at = place.wrapping_add_signed(offset);
                let hit = at < place + length && at + size > place;
                let got = watch(access, Mode::Kernel64, enable(0, 1, code), at);
                let case = format_args!("length {length}, {size} bytes at {offset}");
                table.eq(case, got.0, usize::from(hit));
            }
        }
    }
    // The low bits of the address are ignored by the length.
    set_address(0, place + 3);
    let got = watch(accesses[0].1, Mode::Kernel64, enable(0, 1, 3), place);
    table.eq(format_args!("address aligned down"), got.0, 1);
    table.finish();
}

fn data_specials(t: &mut Report) {
    let place = stack_top() - 256;
    set_address(0, place);
    set_address(1, place + 4);
    let both = enable(0, 1, 3) | enable(1, 1, 3);
    let wide = snippet!(; "mov [rbx], rax", "nop");
    t.eq("one access, two breakpoints", watch(wide, Mode::Kernel64, both, place), (1, 3, 3));
    cpu::write_dr7(enable(0, 1, 3));
    let trap = traced(wide.at(Mode::Kernel64).rbx(place).flags(flag::TF));
    cpu::write_dr7(DR7_CLEAR);
    let first = HITS.get()[0];
    t.eq(
        "data breakpoint and step together",
        (first.0, first.1 & (BS | 1)),
        (trap.mark + 3, BS | 1),
    );

    let push = snippet!("lea rsp, [rbx + 8]"; "push rax", "nop");
    t.eq("push", watch(push, Mode::Kernel64, enable(0, 1, 3), place), (1, 1, 1));
    let xchg = snippet!(; "xchg [rbx], eax", "nop");
    t.eq("xchg", watch(xchg, Mode::User64, enable(0, 1, 3), place), (0, 0, 0));
    set_address(0, place + USER_BASE);
    t.eq(
        "xchg at its linear address",
        watch(xchg, Mode::User64, enable(0, 1, 3), place),
        (1, 2, 1),
    );
    set_address(0, place);

    // A repeated store: the trap follows the element that hits.
    let rep = snippet!("lea rdi, [rbx - 8]", "mov ecx, 16"; "rep stosb", "nop");
    cpu::write_dr7(enable(0, 1, 0));
    let trap = traced(rep.at(Mode::Kernel64).rbx(place));
    cpu::write_dr7(DR7_CLEAR);
    // Fast string operation may report later, at the end of the instruction.
    t.holds("rep stosb over a breakpoint", (COUNT.get(), offsets(trap.mark).0[0]), |&(n, at)| {
        n == 1 && (at == 0 || at == 2)
    });
    t.eq("rep stosb completes", trap.regs.rcx, 0);

    // MOV SS from a watched place: the trap waits one instruction.
    let ss = snippet!("mov [rbx], ss"; "mov ss, [rbx]", "nop", "nop");
    let got = watch(ss, Mode::Kernel64, enable(0, 3, 1), place);
    // The set-up itself hits once, before the mark.
    t.eq("MOV SS from a watched place: hits", got.0, 2);
    let second = HITS.get()[1].0.wrapping_sub(ss.mark);
    t.eq("MOV SS: trap behind the next instruction", second, 3);
    // A fault leaves no trap behind.
    let fault = snippet!(; "mov [rbx], eax");
    set_address(0, 0x4000_0000);
    cpu::write_dr7(enable(0, 1, 3));
    let trap = fault.at(Mode::Kernel64).rbx(0x4000_0000).run();
    cpu::write_dr7(DR7_CLEAR);
    t.eq("a faulting store hits no breakpoint", trap.outcome(), Outcome::page(2, 0x4000_0000));
}

/// I/O breakpoints need CR4.DE.
fn io(t: &mut Report) {
    cpu::write_cr4(cpu::read_cr4() | cr4::DE);
    set_address(2, 0x80);
    let out = snippet!(; "out 0x80, al", "nop");
    t.eq("I/O breakpoint", watch(out, Mode::Kernel64, enable(2, 2, 0), 0), (1, 2, 4));
    let input = snippet!(; "in al, 0x80", "nop");
    t.eq("I/O breakpoint on input", watch(input, Mode::Kernel64, enable(2, 2, 0), 0), (1, 2, 4));
    let other = snippet!(; "out 0x81, al", "nop");
    t.eq("I/O breakpoint, other port", watch(other, Mode::Kernel64, enable(2, 2, 0), 0).0, 0);
    let wide = snippet!("mov edx, 0x7f"; "in ax, dx", "nop");
    t.eq(
        "I/O breakpoint, overlapping word",
        watch(wide, Mode::Kernel64, enable(2, 2, 0), 0),
        (1, 2, 4),
    );
    cpu::write_cr4(cpu::read_cr4() & !cr4::DE);
}

fn general_detect(t: &mut Report) {
    const GD: u64 = 1 << 13;
    let read = snippet!("mov dr7, rax"; "mov rcx, dr0", "nop");
    let trap = traced(read.at(Mode::Kernel64).rax(DR7_CLEAR | GD));
    t.eq("general detect is a fault", offsets(trap.mark).0[0], 0);
    t.eq("general detect: BD", dr6(0), DR6_CLEAR | BD);
    t.eq("general detect is off after the fault", (COUNT.get(), cpu::read_dr7()), (1, DR7_CLEAR));
    let write = snippet!("mov dr7, rax"; "mov dr6, rcx");
    let trap = write.at(Mode::Kernel64).rax(DR7_CLEAR | GD).rcx(DR6_CLEAR).run();
    t.eq("general detect on a write", trap.outcome(), Outcome::fault(DB));
    cpu::write_dr7(DR7_CLEAR);
    cpu::write_dr6(DR6_CLEAR);
}
