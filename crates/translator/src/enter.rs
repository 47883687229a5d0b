//! Entering translated code.
//!
//! Safety argument in short (in full: docs/translator.md): generated code reaches memory only
//! through (a) RSP, which points at the [`Context`] of a live `Frame`, (b) R15, which is a live
//! `Tables`, (c) an address that a TLB entry has just made of a guest address: such entries lie
//! wholly in the guest RAM window, and (d) the VMM's registers saved on its stack, on the way out.
//! It jumps only to code of the cache.

use crate::context::Context;

/// Runs translated code at `host` until it exits.
///
/// `enter` is one of the enter stubs, `host` an address in a block of the same code cache, and
/// `context` lies in a `Frame` and names live tables and a live vector area.
pub(crate) fn run(enter: u64, host: u64, context: *mut Context) {
    // SAFETY: `enter` follows the System V calling convention, preserves the callee-saved
    // registers and the stack pointer, and returns when translated code exits; see the module
    // header.
    unsafe {
        let enter: extern "sysv64" fn(u64, *mut Context) = std::mem::transmute(enter as *const ());
        enter(host, context);
    }
}
