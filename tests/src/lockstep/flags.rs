//! Differences that are none: flags that the manual leaves undefined.
//!
//! The interpreter gives them values that some CPUs give, the translator those of the host's own
//! instruction. They lie in RFLAGS until the next instruction that sets them, and meanwhile in
//! what PUSHF and interrupts push. What programs compute from flags is not overlooked: a wrong flag
//! is found as soon as a branch depends on it, and by the native oracle, which knows for every
//! instruction which flags it defines.

use engine::VcpuState;
use x86::cr::rflags::{AF, FIXED, OF, PF, SF};

/// OF after shifts and rotates by more than one, AF after shifts and logic, all of them after
/// multiplications and bit scans. CF and ZF are left out: where these are undefined, the
/// interpreter does as the hosts do.
const UNDEFINED: u64 = OF | AF | PF | SF;
/// Bits that no image of RFLAGS has, bits 3, 5, 15 and above ID.
const NEVER: u64 = !0x3f_7fd7;

/// Whether two values are images of RFLAGS that differ in undefined flags only.
pub(super) fn differ_undefined(a: u64, b: u64) -> bool {
    let image = |value: u64| value & NEVER == 0 && value & FIXED != 0;
    (a ^ b) & !UNDEFINED == 0 && image(a) && image(b)
}

/// Eight bytes; fewer are none.
pub(super) fn quadword(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_le_bytes)
}

/// The subject's state, with the reference's values where only undefined flags differ.
pub(super) fn overlooked(reference: &VcpuState, subject: &VcpuState) -> VcpuState {
    let mut state = subject.clone();
    let overlook = |a: u64, b: &mut u64| {
        if differ_undefined(a, *b) {
            *b = a;
        }
    };
    overlook(reference.general.rflags, &mut state.general.rflags);
    for (a, b) in reference.general.gpr.iter().zip(&mut state.general.gpr) {
        overlook(*a, b);
    }
    // Compilers copy through vector registers, too.
    for (a, b) in reference.xsave.chunks(8).zip(state.xsave.chunks_mut(8)) {
        if differ_undefined(quadword(a), quadword(b)) {
            b.copy_from_slice(a);
        }
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_undefined_flags_are_overlooked() {
        assert!(differ_undefined(0x246, 0x242 | OF | AF));
        // CF and ZF are no such flags.
        assert!(!differ_undefined(0x246, 0x247));
        assert!(!differ_undefined(0x246, 0x206));
        // No image of RFLAGS: bit 1 is clear, an address, a reserved bit.
        assert!(!differ_undefined(0x244, 0x244 | OF));
        assert!(!differ_undefined(0xffff_8000_0000_0002, 0xffff_8000_0000_0802));
        assert!(!differ_undefined(0x24a, 0x24a | OF));
    }
}
