//! The kit of the bare-machine test programs: everything between the PVH
//! entry point and a check.
//!
//! A program is a `no_std` ELF file that owns a whole (virtual) PC and runs on
//! one processor of it, unless it starts the others with [`smp`].
//! [`program!`] names its main function, which receives a
//! [`Report`] and makes checks. The pieces:
//!
//! * [`boot`]: PVH entry in 32-bit protected mode, page tables, long mode.
//! * [`tables`]: the GDT, the TSS and the IDT that programs start with.
//! * [`trap`]: exception entry, hooks, and [`trap::guard`], which turns an
//!   exception into a value.
//! * [`snippet`]: short assembly sequences that run at any privilege level
//!   and in compatibility mode, with all registers given and taken.
//! * [`legacy`]: the same outside long mode: 16- and 32-bit protected mode,
//!   virtual-8086 mode; [`real`]: in real mode.
//! * [`page`]: the page-table editor and the test window.
//! * [`apic`], [`ioapic`], [`pic`], [`pit`]: the interrupt hardware.
//! * [`smp`]: the other processors, and work for them.
//! * [`cpu`]: control registers, MSRs, CPUID, time-stamp counter.
//! * [`report`]: the PASS, FAIL and SKIP lines and the exit status.
//!
//! # Safety
//! Most functions here are declared safe although they change machine state
//! that Rust knows nothing of: a program owns the machine and exists to provoke
//! faults. Nothing but [`smp`] and what it names is for several processors. What the compiler relies on (its
//! own stack, code and data) is never mapped away by the kit, and every
//! exception stack is separate from the running one.

#![no_std]

pub mod apic;
pub mod boot;
pub mod cpu;
pub mod ioapic;
pub mod legacy;
mod memory;
pub mod page;
pub mod pic;
pub mod pit;
pub mod port;
pub mod real;
pub mod report;
pub mod serial;
pub mod smp;
pub mod snippet;
pub mod tables;
pub mod trap;

pub use report::Report;
pub use snippet::{Code, Mode, Regs, Run};
pub use trap::{Outcome, Trap};

use core::cell::UnsafeCell;

/// A static that one processor mutates without locking.
///
/// Interrupt hooks may run between any two instructions, so shared data is
/// read and written through raw pointers with volatile accesses, or only
/// while interrupts are off.
#[repr(transparent)]
pub struct Global<T>(UnsafeCell<T>);

// SAFETY: one processor uses a value, or all use it through raw pointers under
// rules of their own; see the type's contract.
unsafe impl<T> Sync for Global<T> {}

impl<T> Global<T> {
    /// Wraps an initial value.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// The address of the value.
    pub const fn ptr(&self) -> *mut T {
        self.0.get()
    }

    /// The address of the value as a number: virtual and physical alike.
    pub fn addr(&self) -> u64 {
        self.0.get() as u64
    }
}

impl<T: Copy> Global<T> {
    /// Reads the value as it is in memory now.
    pub fn get(&self) -> T {
        // SAFETY: the pointer is valid and aligned for the static's lifetime.
        unsafe { self.0.get().read_volatile() }
    }

    /// Writes the value to memory now.
    pub fn set(&self, value: T) {
        // SAFETY: as in `get`.
        unsafe { self.0.get().write_volatile(value) }
    }
}

/// A page-aligned 4 KiB frame for page tables, stacks and test data.
#[repr(C, align(4096))]
#[derive(Clone, Copy)]
pub struct Frame4K(pub [u8; 4096]);

impl Global<Frame4K> {
    /// Copies bytes into the frame.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= 4096, "a write beyond the frame");
        for (i, &byte) in bytes.iter().enumerate() {
            // SAFETY: in range, as just asserted.
            unsafe { self.ptr().cast::<u8>().add(offset + i).write_volatile(byte) };
        }
    }

    /// Fills the whole frame with one byte.
    pub fn fill(&self, byte: u8) {
        // SAFETY: the frame is valid for 4096 bytes.
        unsafe { self.ptr().cast::<u8>().write_bytes(byte, 4096) };
    }

    /// Copies bytes out of the frame.
    pub fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        assert!(offset + N <= 4096, "a read beyond the frame");
        // SAFETY: in range, as just asserted; byte arrays need no alignment.
        unsafe { self.ptr().cast::<u8>().add(offset).cast::<[u8; N]>().read_volatile() }
    }
}

/// A zeroed page frame, as a static's initial value.
pub const ZERO_FRAME: Frame4K = Frame4K([0; 4096]);

/// Names the main function of a program: `fn(&mut Report)`.
#[macro_export]
macro_rules! program {
    ($main:path) => {
        /// Called by the kit's entry code on the boot stack.
        #[unsafe(no_mangle)]
        extern "C" fn program_main(start_info: u32) -> ! {
            $crate::start($main, start_info)
        }
    };
}

/// Brings the machine to the state that programs expect, runs `main`, prints
/// the summary, and leaves by the debug-exit port.
pub fn start(main: fn(&mut Report), start_info: u32) -> ! {
    boot::START_INFO.set(start_info);
    serial::init();
    tables::load();
    pic::mask_all();
    let mut report = Report::new();
    main(&mut report);
    report.finish()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    report::abort(format_args!("{info}"))
}

/// The installed `core` is built for unwinding and names this symbol in its
/// unwind tables; with panics aborting, nothing ever calls it.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
