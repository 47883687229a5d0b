//! For engines that let user code run on the host CPU itself: when that shows no difference, and
//! which pages the host may map for it.
//!
//! Neighbours: `direct` runs the code; `translator::direct` decides when; [`crate::fallback`] is
//! the rest of what a translating engine asks of the interpreter.

use engine::{CpuBus, RunState, Shadow};
use memory::{Gpa, RamOffset};
use x86::cr::{cr0, cr4, dr, rflags, xcr0};
use x86::segment::seg;

use crate::tlb::Mode;
use crate::vcpu::InterpreterVcpu;

/// Selectors of 64-bit user code under Linux; the data segments are null.
const USER_CODE: u16 = 0x33;
const USER_STACK: u16 = 0x2b;
/// The end of what user code of a Linux host can address.
const TOP: u64 = 0x7fff_ffff_f000;
/// The bits of RFLAGS that user code can change, but IF and the I/O privilege level.
const CHANGEABLE: u64 =
    rflags::ARITHMETIC | rflags::DF | rflags::TF | rflags::NT | rflags::AC | rflags::ID;

/// A page that user code may access, as its page tables say now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserPage {
    /// Where it lies in guest RAM.
    pub ram: RamOffset,
    /// All accessed bits are set: a read changes nothing.
    pub accessed: bool,
    /// It may be written, all its dirty and accessed bits are set, and nobody watches it: a write
    /// changes nothing else.
    pub writable: bool,
    /// It may be executed.
    pub executable: bool,
}

impl InterpreterVcpu {
    /// Whether the host CPU, as user code of Linux finds it, would do what the guest's CPU does
    /// now: 64-bit user code with Linux's selectors, x87, SSE and AVX enabled and nothing else,
    /// no breakpoints, no single-step, no event that waits for the instruction's end.
    pub fn fits_directly(&self) -> bool {
        let cpu = &self.cpu;
        let selectors = cpu.segment.map(|segment| segment.selector);
        let vectors = cpu.cr0 & (cr0::EM | cr0::TS | cr0::NE) == cr0::NE
            && cpu.cr4 & (cr4::OSFXSR | cr4::OSXSAVE | cr4::OSXMMEXCPT)
                == cr4::OSFXSR | cr4::OSXSAVE | cr4::OSXMMEXCPT
            && cpu.xcr0 == xcr0::X87 | xcr0::SSE | xcr0::AVX;
        cpu.mode == Mode::User
            && cpu.is_64bit()
            && !self.must_interpret()
            && vectors
            && cpu.run_state == RunState::Running
            && cpu.shadow == Shadow::None
            && cpu.system_flags & (rflags::TF | rflags::AC | rflags::NT | rflags::IF) == rflags::IF
            && cpu.iopl() == 0
            && cpu.dr7 & dr::DR7_ENABLES == 0
            && selectors[seg::CS] == USER_CODE
            && selectors[seg::SS] == USER_STACK
            && [seg::DS, seg::ES, seg::FS, seg::GS].iter().all(|index| selectors[*index] == 0)
            && cpu.segment[seg::FS].base < TOP
            && cpu.segment[seg::GS].base < TOP
            && self.budget.is_none()
    }

    /// RFLAGS as user code sees it.
    pub fn user_rflags(&self) -> u64 {
        self.cpu.rflags() & (CHANGEABLE | rflags::IF | rflags::FIXED)
    }

    /// Takes over what user code has left in the host's RFLAGS.
    pub fn set_user_rflags(&mut self, value: u64) {
        let kept = self.cpu.rflags() & !(CHANGEABLE | rflags::RF);
        self.cpu.set_rflags(kept | value & CHANGEABLE);
    }

    /// Whatever page tables say of the user page at `linear`; changes nothing there. Who maps the
    /// page writably for user code gives it up when [`InterpreterVcpu::take_withdrawn`] tells.
    pub fn user_page(&mut self, linear: u64) -> Option<UserPage> {
        let found = paging::probe(&self.cpu.ram, &self.cpu.paging, linear)?;
        let page = found.gpa & !0xfff;
        if !found.user || self.cpu.apic.mmio_window() == Some(page) {
            return None;
        }
        let ram = self.cpu.ram.translate(Gpa(page), 4096)?;
        if !self.cpu.ram.is_reached(Gpa(page), false) {
            return None;
        }
        if found.page_size > 4096 {
            self.cpu.tlb.cover_large(linear, found.page_size);
        }
        let mut writable = found.writable
            && found.dirty
            && found.accessed
            && self.cpu.ram.is_reached(Gpa(page), true);
        if writable {
            self.cpu.note_writer(ram);
            writable = self.cpu.ram.is_quiet(ram);
        }
        Some(UserPage {
            ram,
            accessed: found.accessed,
            writable,
            executable: !found.no_execute && found.accessed,
        })
    }

    /// The instruction before RIP was executed with single-step on: a debug trap is due.
    pub fn trap_single_step(&mut self) {
        self.cpu.debug_trap |= dr::DR6_BS;
        self.cpu.attention = true;
    }

    /// User code has gone where the host's descriptors led it, which need not be the guest's:
    /// #GP(0).
    pub fn refuse_segments(&mut self, bus: &dyn CpuBus) {
        let _ = self.cpu.require(false);
        self.cpu.deliver_raised(bus);
        self.cpu.attention |= self.cpu.shutdown;
    }
}
