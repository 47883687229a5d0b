//! Debug registers: breakpoints on data, ports and code, single-step (SDM vol. 3B 18.2, 18.3); and
//! what a debugger outside of the guest sets, of which the guest sees nothing.

use engine::{DebugStop, Debugging};
use x86::cr::{cr4, dr, rflags};
use x86::exception::{Exception, vector};

use crate::access::Linear;
use crate::cpu::{Cpu, Step};

/// Kind of a breakpoint, DR7.R/W.
const EXECUTE: u64 = 0;
const WRITE: u64 = 1;
/// With CR4.DE.
const PORT: u64 = 2;
const READ_WRITE: u64 = 3;

impl Cpu {
    /// Whether every instruction must be looked at alone: single-step or code breakpoints. A
    /// debugger's breakpoints are left to the blocks, which end before them.
    #[inline]
    pub(crate) fn steps_singly(&self) -> bool {
        self.system_flags & rflags::TF != 0
            || self.dr7 & dr::DR7_ENABLES != 0
            || self.debugged && self.debugger.step
    }

    /// Replaces what a debugger wants.
    pub(crate) fn set_debugging(&mut self, debugging: Debugging) {
        self.debugged = debugging.is_active();
        self.debugger = debugging;
        self.debug_stop = None;
        self.refresh_access();
    }

    /// Whether the debugger wants to see the CPU before the instruction at `address`; it is told.
    pub(crate) fn stops_before(&mut self, address: u64) -> bool {
        let stops =
            self.debugged && !self.debugger.step && self.debugger.breakpoints.contains(&address);
        if stops {
            self.debug_stop = Some(DebugStop::Breakpoint);
            self.attention = true;
        }
        stops
    }

    /// An instruction has faulted: what it touched is touched again when it is restarted.
    pub(crate) fn forget_watched(&mut self) {
        self.debug_stop = None;
    }

    /// Remembers a watched access for the end of the instruction.
    fn note_watched(&mut self, at: Linear, size: u64, write: bool) {
        let hit = self.debugger.watchpoints.iter().find(|w| w.covers(at.address, size, write));
        if let Some(watchpoint) = hit {
            self.debug_stop = Some(DebugStop::Watchpoint(*watchpoint));
            self.leave_block = true;
        }
    }

    /// Whether a debug trap will follow the present instruction, were it complete.
    pub(crate) fn has_pending_trap(&self) -> bool {
        self.debug_trap != 0 || self.system_flags & rflags::TF != 0
    }

    /// DR6 bits of the breakpoints of `kinds` that `[address, address + size)` touches.
    fn matching(&self, address: u64, size: u64, kinds: &[u64]) -> u64 {
        (0..4_usize)
            .filter(|&n| self.dr7 >> (2 * n) & 3 != 0)
            .filter(|&n| kinds.contains(&(self.dr7 >> (16 + 4 * n) & 3)))
            .filter(|&n| {
                let len = [1, 2, 8, 4][(self.dr7 >> (18 + 4 * n) & 3) as usize];
                let start = self.dr[n] & !(len - 1);
                address.wrapping_sub(start) < len || start.wrapping_sub(address) < size
            })
            .fold(0, |bits, n| bits | 1 << n)
    }

    /// Remembers data breakpoints that an access touches: they trap after the instruction.
    pub(crate) fn note_data_access(&mut self, at: Linear, size: u64, write: bool) {
        if self.debugged {
            self.note_watched(at, size, write);
        }
        if self.dr7 & dr::DR7_ENABLES == 0 {
            return;
        }
        let kinds: &[u64] = if write { &[WRITE, READ_WRITE] } else { &[READ_WRITE] };
        self.debug_trap |= self.matching(at.address, size, kinds);
    }

    /// Remembers I/O breakpoints that a port access of `size` bytes touches.
    pub(crate) fn note_port_access(&mut self, port: u16, size: u16) {
        if self.dr7 & dr::DR7_ENABLES != 0 && self.cr4 & cr4::DE != 0 {
            self.debug_trap |= self.matching(u64::from(port), u64::from(size), &[PORT]);
        }
    }

    /// Raises #DB for a code breakpoint at `address`, unless RF is set.
    pub(crate) fn check_code_breakpoint(&mut self, address: u64) -> Step {
        if self.dr7 & dr::DR7_ENABLES == 0 || self.system_flags & rflags::RF != 0 {
            return Ok(());
        }
        let hit = self.matching(address, 1, &[EXECUTE]);
        if hit == 0 {
            return Ok(());
        }
        self.dr6 |= hit;
        self.fault(Exception::new(vector::DB))
    }
}
