//! On a host whose KVM emulates kernel code: KVM executes 64-bit user code, the interpreter the rest.
//!
//! Such a KVM runs user code on the CPU, but its emulator of kernel code is slow and incomplete. So
//! the guest's state lives in the interpreter, and a [`UserCode`] decides when user code has run
//! for so long that a visit to KVM pays. For a visit the vCPU is given no IDT, a task state segment
//! without I/O permissions, a SYSCALL target that is not mapped, and CPUID faulting: whatever would
//! enter the guest's kernel or the hypervisor ends in a triple fault instead, which leaves the instruction undone. The
//! interpreter then executes it ([`undo`] where the CPU is already behind it).
//!
//! What such a KVM gets wrong by itself keeps a vCPU from visiting it ([`fits`]):
//! - It caches the guest's page tables and does not see what the interpreter writes to them. Its
//!   caches are dropped before each visit. (Only when the guest has invalidated translations would
//!   not do: KVM finds what it has cached by the place of a table, and a kernel may use the memory
//!   of a table of a process that has ended without invalidating anything.)
//! - User code reads the host's TSC. A guest that begins here is given it; one whose TSC is another,
//!   because it was restored or has been paused, is interpreted.
//! - Loads of segment registers find the host's descriptors, which those of a Linux guest equal.
//!
//! Specification: Intel SDM vol. 3A 6.15 (double fault), vol. 2B SYSCALL.
//! Neighbours: [`crate::vcpu`] calls; [`crate::exits`] serves what a visit ends with.

use std::sync::Arc;

use engine::{CpuBus, EngineError, RunState, Shadow, Vcpu, VcpuExit, VcpuState};
use kvm_bindings::kvm_vcpu_events;
use memory::{Gpa, GuestRam};
use paging::{Config, Mode};
use x86::cr::{cr0, cr4, dr, efer, rflags};
use x86::msr;
use x86::segment::seg;

use crate::KvmError;
use crate::handle::Handle;
use crate::registers as r;
use crate::vcpu::{Handover, KvmVcpu, Place};

/// The interpreter executes so many instructions between two looks at what it executes.
const PORTION: u64 = 2_000;
/// Instructions of user code that make up for the costs of a visit, ten milliseconds, of which most
/// are KVM dropping its caches.
const VISIT_WORTH: u64 = 1_000_000;
/// Where SYSCALL goes during a visit: the last page, which Linux never maps.
const SYSCALL_TARGET: u64 = 0xffff_ffff_ffff_f000;
/// SYSCALL has cleared IF, without which no visit begins, when the CPU is at its target.
const SYSCALL_MASK: u64 = rflags::IF;
/// Length of SYSCALL, without prefixes that change nothing.
const SYSCALL_LENGTH: u64 = 2;
/// Limit of the TSS during a visit: it ends before the I/O permission bitmap's place.
const TSS_LIMIT: u32 = 0x65;
/// The longest visit while there are other vCPUs, which stand still, in nanoseconds.
const LONGEST_VISIT_NS: u64 = 10_000_000;
/// A host's TSC that is ahead by more than so many nanoseconds is another TSC.
const TSC_AHEAD_NS: u64 = 10_000_000;
/// A host's TSC that is behind by less will catch up at once.
const TSC_BEHIND_NS: u64 = 1_000_000;
/// The bits of CR3 that are an address.
const PAGE_TABLE: u64 = 0x000f_ffff_ffff_f000;
/// Selectors of Linux, guest and host: user code of 32 bits, data, and code of 64 bits.
const USER_CODE_32: u16 = 0x23;
const USER_DATA: u16 = 0x2b;
const USER_CODE: u16 = 0x33;
/// Their descriptors; the accessed bit, which is clear here, may be set.
const USER_DESCRIPTORS: [(u16, u64); 3] = [
    (USER_CODE_32, 0x00cf_fa00_0000_ffff),
    (USER_DATA, 0x00cf_f200_0000_ffff),
    (USER_CODE, 0x00af_fa00_0000_ffff),
];
const DESCRIPTOR_ACCESSED: u64 = 1 << 40;
/// INT3 and INT1, and the first byte of INT n.
const INT3: u8 = 0xcc;
const INT1: u8 = 0xf1;
const INT_N: u8 = 0xcd;
/// Vectors of exceptions that instructions raise when they are done.
const DB: u8 = 1;
const BP: u8 = 3;
const OF: u8 = 4;
/// IA32_MISC_FEATURES_ENABLES, and its bit that makes CPUID a fault in user code.
const FEATURES_ENABLES: u32 = 0x140;
const CPUID_FAULTS: u64 = 1 << 0;

/// Whether and when a vCPU visits KVM.
#[derive(Default)]
pub(crate) struct UserCode {
    /// About how many instructions of user code were interpreted since the last visit.
    credit: u64,
    /// The host's TSC runs at the frequency of the guest's.
    tsc_fits: bool,
    /// The guest's TSC is the host's, as far as is known.
    tsc_is_hosts: bool,
    /// The guest has not run yet, and nobody knows its TSC.
    unborn: bool,
}

impl UserCode {
    /// For the vCPU of `handle`; `tsc_fits` when the host's TSC runs at the guest's frequency.
    pub(crate) fn new(handle: &Handle, tsc_fits: bool) -> Result<Self, KvmError> {
        // Such a KVM shows user code the host's features, whatever it is told.
        handle
            .set_msrs(&[(FEATURES_ENABLES, CPUID_FAULTS)])
            .map_err(|_| KvmError::Lacks("CPUID faulting, which its emulation makes necessary"))?;
        Ok(Self { tsc_fits, ..Self::default() })
    }

    /// A state was loaded into the vCPU.
    pub(crate) fn restored(&mut self, state: &VcpuState) {
        let tsc_fits = self.tsc_fits;
        *self = Self { tsc_fits, unborn: tsc_fits && state.tsc == 0, ..Self::default() };
    }
}

impl KvmVcpu {
    /// The guest begins: its TSC is the host's from now on.
    pub(crate) fn begin_user_code(&mut self, bus: &dyn CpuBus) -> Result<(), EngineError> {
        let Some(user) = &mut self.user else { return Ok(()) };
        if std::mem::take(&mut user.unborn) {
            user.tsc_is_hosts = true;
            let (vm, handle, carrier) = (&self.vm, &self.handle, &self.carrier);
            vm.begin(|| Ok(handle.tsc()?.wrapping_sub(carrier.tsc(bus))))?;
            self.follow_others(bus);
        }
        Ok(())
    }

    /// Executes a portion of the guest, after it a visit if that pays.
    pub(crate) fn run_sharing(
        &mut self,
        bus: &dyn CpuBus,
    ) -> Result<Option<VcpuExit>, EngineError> {
        self.carrier.set_budget(Some(PORTION));
        match self.carrier.run(bus)? {
            VcpuExit::BudgetSpent => {}
            VcpuExit::Paused if self.waker.take_kick() => return Ok(Some(VcpuExit::Paused)),
            // A kick that was answered already.
            VcpuExit::Paused => return Ok(None),
            exit => return Ok(Some(exit)),
        }
        let Some(user) = &mut self.user else { return Ok(None) };
        if self.carrier.must_interpret()
            || !self.carrier.has_64bit_code()
            || self.carrier.selectors()[seg::CS] != u64::from(USER_CODE)
        {
            return Ok(None);
        }
        // A sample stands for the portion that it was taken from.
        user.credit += PORTION;
        if user.tsc_is_hosts && user.credit >= VISIT_WORTH {
            user.credit = 0;
            let (vm, waker) = (Arc::clone(&self.vm), Arc::clone(&self.waker));
            vm.alone(self.index, &waker, || self.visit(bus))?;
        }
        Ok(None)
    }

    /// Lets KVM execute user code until something happens that is not for it. No other vCPU executes
    /// anything meanwhile.
    fn visit(&mut self, bus: &dyn CpuBus) -> Result<(), EngineError> {
        // What others have done while this vCPU waited for its turn.
        self.follow_others(bus);
        let state = self.carrier.save(bus)?;
        self.apic
            .restore(&state.apic, state.tsc)
            .map_err(|e| EngineError::BadState(e.to_string()))?;
        let waits = self.apic.pending().is_some() || self.mailbox.extint();
        if waits || !fits(&state, self.vm.ram()) || !self.meets_tsc(state.tsc)? {
            return Ok(());
        }
        self.drop_stale_tables()?;
        self.write_registers(&for_visit(&state))?;
        let distance = |at: u64| self.scale.ticks_to_ns(at.saturating_sub(state.tsc));
        let longest = (!self.vm.is_alone()).then_some(LONGEST_VISIT_NS);
        let due = self.apic.deadline().map(distance);
        let alarm = due.into_iter().chain(longest).min();
        // Whoever wakes the vCPU after this line ends KVM_RUN; who did before is seen below.
        self.handle.set_immediate_exit(false);
        if self.mailbox.has_work() || self.waker.is_kicked() {
            return Ok(());
        }
        self.alarm.set(alarm);
        self.handle.page().request_interrupt_window = 0;
        self.counters.visits += 1;
        self.place = Place::Kernel;
        self.run_once(bus)?;
        self.complete(bus)?;
        let triple_fault = self.handover.take() == Some(Handover::Shutdown);
        let after = self.read_after_visit(&state, triple_fault)?;
        // The guest's kernel is next.
        self.tables_stale = true;
        let before = self.carrier.tsc_offset();
        self.give_to_carrier(&after, bus)?;
        // The other vCPUs' TSCs go on as this one's has, and never back.
        let ahead = self.carrier.tsc_offset().wrapping_sub(before);
        if ahead.cast_signed() > 0 {
            self.vm.add_lead(ahead);
            self.took_lead();
        } else {
            self.carrier.shift_tsc(ahead.wrapping_neg(), bus);
        }
        Ok(())
    }

    /// Whether the host's TSC goes on where the guest's is, for which it waits a little.
    fn meets_tsc(&mut self, guest: u64) -> Result<bool, EngineError> {
        let ahead = self.scale.ns_to_ticks(TSC_AHEAD_NS).cast_signed();
        let behind = self.scale.ns_to_ticks(TSC_BEHIND_NS).cast_signed();
        loop {
            let difference = self.handle.tsc()?.wrapping_sub(guest).cast_signed();
            if (0..ahead).contains(&difference) {
                return Ok(true);
            }
            if difference >= 0 || difference < -behind {
                if let Some(user) = &mut self.user {
                    user.tsc_is_hosts = false;
                }
                return Ok(false);
            }
        }
    }

    /// What user code can have changed of `before`.
    fn read_after_visit(
        &mut self,
        before: &VcpuState,
        triple_fault: bool,
    ) -> Result<VcpuState, EngineError> {
        let fd = &self.handle.fd;
        let mut after = before.clone();
        r::from_regs(&fd.get_regs().map_err(KvmError::call("KVM_GET_REGS"))?, &mut after);
        let sregs = fd.get_sregs().map_err(KvmError::call("KVM_GET_SREGS"))?;
        after.segments.segment = r::segments(&sregs);
        r::from_xsave(&fd.get_xsave().map_err(KvmError::call("KVM_GET_XSAVE"))?, &mut after);
        let events = fd.get_vcpu_events().map_err(KvmError::call("KVM_GET_VCPU_EVENTS"))?;
        r::from_events(&events, &mut after);
        let end = End::of(triple_fault, &events, after.general.rflags);
        let debug = fd.get_debug_regs().map_err(KvmError::call("KVM_GET_DEBUGREGS"))?;
        let code = |linear| read::<1>(self.vm.ram(), before, linear).map(|[byte]| byte);
        undo(&mut after, before, end, debug.dr6, code);
        // The flag that a fault leaves set while it is delivered.
        after.general.rflags &= !rflags::RF;
        after.tsc = self.handle.tsc()?;
        after.apic = self.apic.save(after.tsc);
        after.events.extint = self.mailbox.extint();
        Ok(after)
    }
}

/// Whether KVM executes the guest in `state` as a CPU would.
fn fits(state: &VcpuState, ram: &GuestRam) -> bool {
    let segments = &state.segments.segment;
    let flags = state.general.rflags;
    let selectors = segments.each_ref().map(|segment| segment.selector);
    let plain_data = |index: usize| [0, USER_DATA].contains(&selectors[index]);
    state.run_state == RunState::Running
        && state.control.efer & (efer::LMA | efer::SCE) == efer::LMA | efer::SCE
        && (selectors[seg::CS], selectors[seg::SS]) == (USER_CODE, USER_DATA)
        && plain_data(seg::DS)
        && plain_data(seg::ES)
        && (selectors[seg::FS], selectors[seg::GS]) == (0, 0)
        && flags & (rflags::IF | rflags::TF | rflags::IOPL | rflags::NT) == rflags::IF
        && state.debug.dr7 & dr::DR7_ENABLES == 0
        && state.events.shadow == Shadow::None
        && !state.events.nmi
        && state.events.debug_trap == 0
        && translate(ram, state, SYSCALL_TARGET).is_none()
        && USER_DESCRIPTORS.iter().all(|(selector, expected)| {
            let at = state.segments.gdtr.base.wrapping_add(u64::from(selector & !7));
            let within = u32::from(selector | 7) <= u32::from(state.segments.gdtr.limit);
            let found = read::<8>(ram, state, at).map(u64::from_le_bytes);
            within && found.map(|raw| raw & !DESCRIPTOR_ACCESSED) == Some(*expected)
        })
}

/// `state` with no way into the guest's kernel.
fn for_visit(state: &VcpuState) -> VcpuState {
    let mut visit = state.clone();
    visit.segments.idtr = x86::segment::TableRegister::default();
    visit.segments.tr.limit = TSS_LIMIT;
    visit.debug.dr6 = dr::DR6_FIXED;
    // SGDT and its like would tell what was just replaced.
    visit.control.cr4 |= cr4::UMIP;
    // KVM may not have them, and they mean nothing to user code.
    visit.control.cr4 &= !(cr4::PCIDE | cr4::SMEP | cr4::SMAP);
    visit.control.cr3 &= PAGE_TABLE;
    for (number, value) in &mut visit.msrs {
        match *number {
            msr::LSTAR | msr::CSTAR => *value = SYSCALL_TARGET,
            msr::SFMASK => *value = SYSCALL_MASK,
            msr::SYSENTER_CS => *value = 0,
            _ => {}
        }
    }
    visit
}

/// How a visit ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Between two instructions.
    Interrupted,
    /// A fault, before the instruction.
    Fault,
    /// A trap, behind the instruction.
    Trap,
}

impl End {
    fn of(triple_fault: bool, events: &kvm_vcpu_events, flags: u64) -> Self {
        if events.exception.injected | events.exception.pending != 0 {
            // KVM was interrupted before it could deliver it.
            return match events.exception.nr {
                DB | BP | OF => Self::Trap,
                _ => Self::Fault,
            };
        }
        match triple_fault {
            false => Self::Interrupted,
            // Set for the delivery of faults.
            true if flags & rflags::RF != 0 => Self::Fault,
            true => Self::Trap,
        }
    }
}

/// Takes back what the CPU has done of an instruction that leads into the guest's kernel, so that
/// the interpreter can execute it. `code` reads a byte of the guest's code.
fn undo(
    after: &mut VcpuState,
    before: &VcpuState,
    end: End,
    dr6: u64,
    code: impl Fn(u64) -> Option<u8>,
) {
    let general = &mut after.general;
    let (rip, flags) = (general.rip, general.rflags);
    if rip == SYSCALL_TARGET && flags & rflags::IF == 0 {
        // It has put both into registers that it overwrites anyway.
        general.rip = general.gpr[1].wrapping_sub(SYSCALL_LENGTH);
        general.rflags = general.gpr[11];
        after.segments.segment[seg::CS] = before.segments.segment[seg::CS];
        after.segments.segment[seg::SS] = before.segments.segment[seg::SS];
    } else if end != End::Trap {
        // Nothing was done.
    } else if flags & rflags::TF != 0 && dr6 & dr::DR6_BS != 0 {
        after.events.debug_trap |= dr::DR6_BS;
    } else if matches!(code(rip.wrapping_sub(1)), Some(INT3 | INT1)) {
        general.rip = rip.wrapping_sub(1);
    } else if code(rip.wrapping_sub(2)) == Some(INT_N) {
        general.rip = rip.wrapping_sub(2);
    }
}

/// The guest-physical address of `linear` in the 64-bit address space of `state`.
fn translate(ram: &GuestRam, state: &VcpuState, linear: u64) -> Option<Gpa> {
    let control = &state.control;
    let config = Config {
        mode: if control.cr0 & cr0::PG == 0 { Mode::Off } else { Mode::FourLevel },
        root: control.cr3 & PAGE_TABLE,
        nxe: control.efer & efer::NXE != 0,
        gigabyte_pages: true,
        physical_bits: 52,
        ..Config::default()
    };
    paging::probe(ram, &config, linear).map(|found| Gpa(found.gpa))
}

/// Bytes at `linear` that lie in one page of RAM.
fn read<const N: usize>(ram: &GuestRam, state: &VcpuState, linear: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if linear % 4096 + N as u64 > 4096 {
        return None;
    }
    ram.read(translate(ram, state, linear)?, &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use x86::segment::Segment;

    use super::*;

    const USER: u64 = 0x40_0000;

    /// User code at [`USER`] with interrupts enabled.
    fn user() -> VcpuState {
        let mut apic = lapic::LocalApic::new(lapic::LocalApicConfig {
            apic_id: 0,
            bsp: true,
            physical_address_bits: 40,
            tsc_khz: std::num::NonZeroU32::MIN,
            bus_khz: std::num::NonZeroU32::MIN,
        });
        let mut state = r::blank(apic.save(0));
        (state.general.rip, state.general.rflags) = (USER, rflags::IF | rflags::FIXED);
        state.segments.segment[seg::CS] =
            Segment::from_descriptor(USER_CODE, USER_DESCRIPTORS[2].1);
        state
    }

    fn undone(
        change: impl FnOnce(&mut VcpuState),
        end: End,
        dr6: u64,
        code: &[(u64, u8)],
    ) -> VcpuState {
        let before = user();
        let mut after = before.clone();
        change(&mut after);
        let find = |at| code.iter().find(|(address, _)| *address == at).map(|(_, byte)| *byte);
        undo(&mut after, &before, end, dr6, find);
        after
    }

    #[test]
    fn a_syscall_is_taken_back() {
        let flags = rflags::IF | rflags::CF | rflags::FIXED;
        let syscall = |state: &mut VcpuState| {
            state.general.rip = SYSCALL_TARGET;
            state.general.rflags = rflags::FIXED | rflags::CF | rflags::RF;
            (state.general.gpr[1], state.general.gpr[11]) = (USER + 2, flags);
            state.segments.segment[seg::CS] = Segment::default();
        };
        for end in [End::Fault, End::Interrupted] {
            let after = undone(syscall, end, 0, &[]);
            assert_eq!((after.general.rip, after.general.rflags), (USER, flags));
            assert_eq!(after.segments.segment[seg::CS].selector, USER_CODE);
        }
    }

    #[test]
    fn a_jump_to_the_target_of_syscall_is_a_fault() {
        let jump = |state: &mut VcpuState| {
            state.general.rip = SYSCALL_TARGET;
            state.general.rflags |= rflags::RF;
        };
        assert_eq!(undone(jump, End::Fault, 0, &[]).general.rip, SYSCALL_TARGET);
    }

    #[test]
    fn a_breakpoint_instruction_is_taken_back_and_a_fault_behind_one_is_not() {
        let behind = |state: &mut VcpuState| state.general.rip = USER + 1;
        assert_eq!(undone(behind, End::Trap, 0, &[(USER, INT3)]).general.rip, USER);
        assert_eq!(undone(behind, End::Trap, 0, &[(USER, INT1)]).general.rip, USER);
        assert_eq!(undone(behind, End::Fault, 0, &[(USER, INT3)]).general.rip, USER + 1);
        let behind_long = |state: &mut VcpuState| state.general.rip = USER + 2;
        let int_3 = [(USER, INT_N), (USER + 1, 3)];
        assert_eq!(undone(behind_long, End::Trap, 0, &int_3).general.rip, USER);
    }

    #[test]
    fn a_single_step_trap_waits_at_its_boundary() {
        let step = |state: &mut VcpuState| {
            state.general.rip = USER + 1;
            state.general.rflags |= rflags::TF;
        };
        let after = undone(step, End::Trap, dr::DR6_FIXED | dr::DR6_BS, &[(USER, INT3)]);
        assert_eq!((after.general.rip, after.events.debug_trap), (USER + 1, dr::DR6_BS));
    }

    #[test]
    fn an_exception_that_was_not_delivered_counts() {
        let mut events = kvm_vcpu_events::default();
        assert!(End::of(false, &events, 0) == End::Interrupted);
        assert!(End::of(true, &events, 0) == End::Trap);
        assert!(End::of(true, &events, rflags::RF) == End::Fault);
        (events.exception.pending, events.exception.nr) = (1, BP);
        assert!(End::of(false, &events, 0) == End::Trap);
        events.exception.nr = 14;
        assert!(End::of(false, &events, 0) == End::Fault);
    }

    #[test]
    fn a_visit_has_no_way_into_the_kernel() {
        let mut state = user();
        state.segments.idtr.limit = 0xfff;
        state.segments.tr.limit = 0x2000;
        state.msrs = vec![(msr::STAR, 1), (msr::LSTAR, 2), (msr::SFMASK, 3)];
        let visit = for_visit(&state);
        assert_eq!((visit.segments.idtr.limit, visit.segments.tr.limit), (0, TSS_LIMIT));
        let expected = [(msr::STAR, 1), (msr::LSTAR, SYSCALL_TARGET), (msr::SFMASK, SYSCALL_MASK)];
        assert_eq!(visit.msrs, expected);
    }

    #[test]
    fn only_linux_user_code_fits() {
        let ram = GuestRam::new(&[(0, 0x1_0000)]).unwrap();
        assert!(!fits(&user(), &ram), "nothing is mapped");
        let mut state = linux_user(&ram);
        assert!(fits(&state, &ram));
        state.general.rflags |= rflags::TF;
        assert!(!fits(&state, &ram), "single-step");
        state = linux_user(&ram);
        state.segments.segment[seg::FS].selector = USER_DATA;
        assert!(!fits(&state, &ram), "a segment loaded");
        state = linux_user(&ram);
        ram.write(Gpa(0x4028), &[0; 8]).unwrap();
        assert!(!fits(&state, &ram), "another descriptor table");
    }

    /// [`user`] with page tables at 0x1000, which map the first 2 MiB, and Linux's descriptors.
    fn linux_user(ram: &GuestRam) -> VcpuState {
        for (at, entry) in [(0x1000, 0x2007_u64), (0x2000, 0x3007), (0x3000, 0x87)] {
            ram.write(Gpa(at), &entry.to_le_bytes()).unwrap();
        }
        for (selector, raw) in USER_DESCRIPTORS {
            ram.write(Gpa(0x4000 + u64::from(selector & !7)), &raw.to_le_bytes()).unwrap();
        }
        let mut state = user();
        state.segments.segment[seg::SS].selector = USER_DATA;
        (state.segments.gdtr.base, state.segments.gdtr.limit) = (0x4000, 0x7f);
        (state.control.cr0, state.control.cr3) = (cr0::PE | cr0::PG, 0x1000);
        state.control.efer = efer::SCE | efer::LME | efer::LMA;
        state
    }
}
