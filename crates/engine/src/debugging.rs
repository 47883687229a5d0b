//! What a debugger asks of a vCPU, and what it is told.
//!
//! All of it is invisible to the guest: breakpoints change no memory, and neither they nor
//! watchpoints use the guest's debug registers.

/// What a debugger wants. The default is that nobody debugs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Debugging {
    /// Linear addresses of instructions before which `run` returns [`DebugStop::Breakpoint`].
    pub breakpoints: Vec<u64>,
    /// Accesses behind whose instruction `run` returns [`DebugStop::Watchpoint`].
    pub watchpoints: Vec<Watchpoint>,
    /// `run` executes one instruction, whatever breakpoint it has, or delivers its fault, and
    /// returns [`DebugStop::Stepped`]. Interrupts and NMIs wait meanwhile. A vCPU that sleeps
    /// sleeps on until something would end that.
    pub step: bool,
}

impl Debugging {
    /// Whether anything is wanted.
    pub fn is_active(&self) -> bool {
        self.step || !self.breakpoints.is_empty() || !self.watchpoints.is_empty()
    }
}

/// Memory whose accesses are of interest. Those of the guest's instructions and of the events
/// delivered to it count; page walks and devices do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watchpoint {
    /// Linear address of the first byte.
    pub address: u64,
    /// Bytes, at least 1.
    pub len: u64,
    /// Which accesses.
    pub kind: WatchKind,
}

impl Watchpoint {
    /// Whether an access to `size` bytes at `address`, a write or a read, is one that is watched.
    pub fn covers(&self, address: u64, size: u64, write: bool) -> bool {
        let kind = match self.kind {
            WatchKind::Read => !write,
            WatchKind::Write => write,
            WatchKind::Access => true,
        };
        kind && (address.wrapping_sub(self.address) < self.len
            || self.address.wrapping_sub(address) < size)
    }
}

/// Which accesses a watchpoint is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchKind {
    /// Reads.
    Read,
    /// Writes, whether they change anything or not.
    Write,
    /// Both.
    Access,
}

/// Why a vCPU stopped for its debugger, at an instruction boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugStop {
    /// The next instruction has a breakpoint.
    Breakpoint,
    /// The instruction before, or the delivery of an event, touched what is watched.
    Watchpoint(Watchpoint),
    /// The step is done.
    Stepped,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_that_overlap_are_covered() {
        let watch = |kind| Watchpoint { address: 0x1000, len: 4, kind };
        let write = watch(WatchKind::Write);
        for (address, size, hit) in [
            (0x0fff, 1, false),
            (0x0fff, 2, true),
            (0x1003, 8, true),
            (0x1004, 8, false),
            (0x0ff0, 64, true),
            (u64::MAX, 1, false),
        ] {
            assert_eq!(write.covers(address, size, true), hit, "{address:#x}, {size}");
        }
        assert!(!write.covers(0x1000, 1, false));
        assert!(watch(WatchKind::Read).covers(0x1000, 1, false));
        assert!(!watch(WatchKind::Read).covers(0x1000, 1, true));
        assert!(watch(WatchKind::Access).covers(0x1000, 1, true));
    }
}
