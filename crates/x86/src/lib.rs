//! Architectural definitions of x86-64 (Intel SDM, AMD APM): plain data, no behaviour of a machine.
//!
//! Modules: [`cr`] (control registers, EFER, RFLAGS), [`exception`] (vectors and error codes),
//! [`msr`] (model-specific registers), [`paging`] (page-table entries), [`segment`] (descriptors
//! and segment registers), [`cpuid`] (leaves and feature bits), [`xsave`] (extended state).
//!
//! Neighbours: everything above uses it; it uses nothing of ours.

#![forbid(unsafe_code)]

pub mod cpuid;
pub mod cr;
pub mod exception;
pub mod msr;
pub mod paging;
pub mod segment;
pub mod xsave;

/// Indexes of the general registers in encoding order, as `VcpuState` and instructions number them.
pub mod gpr {
    /// RAX.
    pub const RAX: usize = 0;
    /// RCX.
    pub const RCX: usize = 1;
    /// RDX.
    pub const RDX: usize = 2;
    /// RBX.
    pub const RBX: usize = 3;
    /// RSP.
    pub const RSP: usize = 4;
    /// RBP.
    pub const RBP: usize = 5;
    /// RSI.
    pub const RSI: usize = 6;
    /// RDI.
    pub const RDI: usize = 7;
    /// R11, where SYSCALL puts RFLAGS.
    pub const R11: usize = 11;
}

/// Whether `address` is canonical for 48-bit linear addresses (SDM vol. 1 3.3.7.1).
#[inline]
pub const fn is_canonical(address: u64) -> bool {
    ((address as i64) << 16 >> 16) as u64 == address
}
