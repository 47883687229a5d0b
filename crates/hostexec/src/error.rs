//! What can go wrong outside the guest's own exceptions.

use thiserror::Error;

/// Errors of this crate.
#[derive(Debug, Error)]
pub enum HostExecError {
    /// The code buffer holds no further stub.
    #[error("code buffer of {size} bytes is full: drop all handles and call reset")]
    Full {
        /// Size of the buffer in bytes.
        size: usize,
    },
    /// The host gave no executable memory.
    #[error(
        "cannot map {size} bytes of executable memory: {cause}; this engine needs memfd_create and executable shared mappings"
    )]
    CodeBuffer {
        /// Bytes that were asked for.
        size: usize,
        /// The system's answer.
        cause: rustix::io::Errno,
    },
    /// A guest's value for MXCSR has reserved bits; the guest gets #GP(0).
    #[error("MXCSR value {value:#x} has reserved bits (allowed are {allowed:#x})", allowed = crate::state::MXCSR_MASK)]
    ReservedMxcsr {
        /// The refused value.
        value: u32,
    },
    /// The header of an XSAVE area is malformed; the guest gets #GP(0).
    #[error("XSAVE header is malformed: XSTATE_BV {xstate_bv:#x}, XCOMP_BV {xcomp_bv:#x}")]
    XsaveHeader {
        /// First quadword of the header.
        xstate_bv: u64,
        /// Second quadword of the header.
        xcomp_bv: u64,
    },
    /// A saved state does not have the length of an XSAVE area.
    #[error("extended CPU state has {given} bytes instead of {expected}", expected = crate::state::STATE_SIZE)]
    StateSize {
        /// Length that was given, in bytes.
        given: usize,
    },
}
