//! Entering translated code.
//!
//! Safety argument in short (in full: docs/translator.md): generated code reaches memory only
//! through (a) the GS base, which is the [`Context`], (b) R15, which is a live `Tables`, (c) an
//! address that a TLB entry has just made of a guest address: such entries lie wholly in the guest
//! RAM window, and (d) the VMM's stack, by balanced calls. It jumps only to code of the cache.

use std::arch::asm;

use crate::context::Context;

/// Makes `context` the GS base of this thread, which nothing else on x86-64 Linux uses.
pub(crate) fn bind(context: &Context) {
    // SAFETY: the CPU and kernel allow FSGSBASE (checked when the engine is made), and neither
    // Rust nor the C library uses the GS base.
    unsafe {
        asm!("wrgsbase {}", in(reg) std::ptr::from_ref(context), options(nostack, preserves_flags));
    }
}

/// Runs translated code at `host` until it exits.
///
/// `enter` is one of the enter stubs, `host` an address in a block of the same code cache, and the
/// context bound to this thread names live tables and a live vector area.
pub(crate) fn run(enter: u64, host: u64) {
    // SAFETY: `enter` follows the System V calling convention, preserves the callee-saved
    // registers and returns when translated code exits; see the module header.
    unsafe {
        let enter: extern "sysv64" fn(u64) = std::mem::transmute(enter as *const ());
        enter(host);
    }
}
