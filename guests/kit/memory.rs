//! The memory routines that compiled Rust code calls by symbol.
//!
//! Written with string instructions, so that the compiler cannot turn their
//! loops back into calls of themselves.

use core::arch::asm;

/// Copies `len` bytes between areas that do not overlap.
///
/// # Safety
/// Both areas must be valid for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller vouches for both areas; the ABI keeps DF clear.
    unsafe {
        asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") len => _,
             options(nostack, preserves_flags));
    }
    to
}

/// Copies `len` bytes between areas that may overlap.
///
/// # Safety
/// Both areas must be valid for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= len {
        // SAFETY: copying upwards never overwrites what is still to be read.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: the target lies above the source, so copying downwards is safe;
    // DF is clear again afterwards.
    unsafe {
        asm!("std", "rep movsb", "cld",
             inout("rdi") to.wrapping_add(len).wrapping_sub(1) => _,
             inout("rsi") from.wrapping_add(len).wrapping_sub(1) => _,
             inout("rcx") len => _, options(nostack));
    }
    to
}

/// Fills `len` bytes with `value`.
///
/// # Safety
/// The area must be valid for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(to: *mut u8, value: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller vouches for the area; the ABI keeps DF clear.
    unsafe {
        asm!("rep stosb", inout("rdi") to => _, in("al") value as u8, inout("rcx") len => _,
             options(nostack, preserves_flags));
    }
    to
}

/// Compares `len` bytes; negative, zero or positive as the first difference.
///
/// # Safety
/// Both areas must be valid for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    let mut i = 0;
    while i < len {
        // SAFETY: i < len, and the caller vouches for both areas.
        let (x, y) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
        i += 1;
    }
    0
}

/// As `memcmp`, where only equality matters.
///
/// # Safety
/// Both areas must be valid for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: same contract.
    unsafe { memcmp(a, b, len) }
}
