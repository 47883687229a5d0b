//! Port and memory-mapped accesses.

/// Width of an access to a port: 1, 2 or 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Word,
    /// 32 bits.
    Dword,
}

impl Width {
    /// Number of bytes: 1, 2 or 4.
    pub const fn bytes(self) -> u16 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
        }
    }

    /// All bits that an access of this width carries; what a read of nothing gives.
    pub const fn mask(self) -> u32 {
        match self {
            Self::Byte => 0xff,
            Self::Word => 0xffff,
            Self::Dword => 0xffff_ffff,
        }
    }
}

/// What happens to the VM after the instruction that made an access has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopCause {
    /// The guest asked for a reset of the machine.
    Reset,
    /// The guest powered the machine off.
    PowerOff,
    /// The guest ended the VM through the debug-exit device; the status is `(value << 1) | 1`.
    DebugExit {
        /// The low 8 bits of what was written.
        value: u8,
    },
    /// The vCPUs are to stop so that the machine can be changed (an address range moves).
    Reconfigure,
}

/// How an access ended.
///
/// ```
/// use device::{Answer, StopCause};
/// let read: Answer<u32> = Answer::Done(7);
/// assert_eq!(read, Answer::Done(7));
/// let write = Answer::StopAfterInstruction((), StopCause::Reset);
/// assert!(matches!(write, Answer::StopAfterInstruction((), StopCause::Reset)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// The access is complete.
    Done(T),
    /// The access raises the architectural fault: #GP for ports and MSRs. Devices rarely use it.
    Fault,
    /// The access is complete; after this instruction the vCPU leaves `run` with the cause.
    StopAfterInstruction(T, StopCause),
}

/// A device behind I/O ports.
pub trait PortIo: Send + Sync {
    /// Reads `width` bytes at `port` (the absolute port number). Bits above the width are ignored.
    fn port_read(&self, port: u16, width: Width) -> Answer<u32>;

    /// Writes the low `width` bytes of `value` to `port` (the absolute port number).
    fn port_write(&self, port: u16, width: Width, value: u32) -> Answer<()>;
}

/// A device behind memory-mapped registers.
pub trait Mmio: Send + Sync {
    /// Reads `data.len()` bytes (1 to 8, not crossing a page) at `offset` from the device's base.
    fn mmio_read(&self, offset: u64, data: &mut [u8]) -> Answer<()>;

    /// Writes `data` (1 to 8 bytes, not crossing a page) at `offset` from the device's base.
    fn mmio_write(&self, offset: u64, data: &[u8]) -> Answer<()>;
}
