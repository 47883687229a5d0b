//! Debug registers: breakpoints on data, ports and code, single-step (SDM vol. 3B 18.2, 18.3).

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
    /// Whether every instruction must be looked at alone: single-step or code breakpoints.
    #[inline]
    pub(crate) fn steps_singly(&self) -> bool {
        self.system_flags & rflags::TF != 0 || self.dr7 & dr::DR7_ENABLES != 0
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
