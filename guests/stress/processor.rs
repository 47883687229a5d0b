//! A job that asks the processor about itself with instructions that no fault keeps from user code:
//! their answers have to agree with what CPUID and the kernel say.
//!
//! A monitor that executes user code on the host CPU has to catch them, or they tell of the host.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;

use crate::sys;
use crate::violation;

/// The selector whose segment limit has the number of the CPU in its low twelve bits, on Linux.
const CPU_NUMBER: u32 = 0x7b;

/// XCR0 against CPUID, and the limit of a segment against the kernel's number of this CPU.
pub fn answers(seed: u64) -> u64 {
    for _ in 0..100 {
        // Leaf 0xd, EAX and EDX: the bits that XCR0 can have (SDM vol. 2A, CPUID).
        let can = __cpuid_count(0xd, 0);
        let can = u64::from(can.edx) << 32 | u64::from(can.eax);
        let has = enabled_states();
        if has & !can != 0 || has & 3 != 3 {
            violation(&format!("XCR0 is {has:#x}, CPUID allows {can:#x}"));
        }
        // The thread may have moved away and back in between, but not time and again.
        if (0..10).all(|_| segment_tells_another_cpu()) {
            violation("the segment limit tells of another CPU than the kernel");
        }
    }
    seed
}

/// Whether the number in the segment limit is not the kernel's.
fn segment_tells_another_cpu() -> bool {
    let before = sys::current_cpu();
    let limit = segment_limit(CPU_NUMBER);
    sys::current_cpu() == before && limit.is_some_and(|limit| limit & 0xfff != before)
}

/// XGETBV of XCR0 (SDM vol. 2D).
fn enabled_states() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: only the named registers change; the kernel has set CR4.OSXSAVE, as Rust's own
    // detection of AVX relies on.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack)) }
    u64::from(high) << 32 | u64::from(low)
}

/// LSL (SDM vol. 2A); `None` when the segment is not to be seen.
fn segment_limit(selector: u32) -> Option<u32> {
    let (limit, seen): (u32, u8);
    // SAFETY: only the named registers and the flags change.
    unsafe {
        asm!("lsl {limit:e}, {selector:e}", "setz {seen}", selector = in(reg) selector,
            limit = out(reg) limit, seen = out(reg_byte) seen, options(nomem, nostack));
    }
    (seen != 0).then_some(limit)
}
