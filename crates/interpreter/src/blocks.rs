//! The cache of decoded instructions.
//!
//! A block is a straight run of instructions inside one page of guest RAM, found by its place in
//! RAM and the code size: processes that map the same page share it. A page that has blocks is
//! watched ([`Cpu::watch_code`]); a write to it changes its code version, and a block
//! of an older version is decoded anew. The writing CPU leaves its present block after the write,
//! so that code that rewrites its own next instruction runs what it wrote.

use memory::RamOffset;

use crate::cpu::{CodeSize, Cpu};
use crate::decode::{Decoded, Flow, MAX_LENGTH, decode};
use crate::op::Op;

/// Longest block unless it is to be shorter.
const MAX_BLOCK: usize = 64;
/// Slots of the direct-mapped table; a power of two.
const SLOTS: usize = 1 << 15;
/// Ops after which the whole cache is dropped.
const MAX_OPS: usize = 1 << 19;
const NO_BLOCK: u64 = u64::MAX;

#[derive(Clone, Copy)]
struct Slot {
    key: u64,
    version: u32,
    start: u32,
    len: u32,
}

const EMPTY: Slot = Slot { key: NO_BLOCK, version: 0, start: 0, len: 0 };

/// Decoded blocks of one CPU.
pub(crate) struct Blocks {
    table: Box<[Slot]>,
    ops: Vec<Op>,
    /// Longest block of code that a translator would take, in instructions: bounds how long an
    /// interrupt waits.
    pub(crate) longest: usize,
    /// Offsets in a page before which blocks end, and where none begins: breakpoints of a debugger.
    /// They are linear addresses and a block may be mapped at several, but offsets are the same.
    pub(crate) stops: Vec<u64>,
    pub(crate) decoded: u64,
    pub(crate) drops: u64,
}

impl Blocks {
    pub(crate) fn new() -> Self {
        Self {
            table: vec![EMPTY; SLOTS].into_boxed_slice(),
            ops: Vec::new(),
            longest: MAX_BLOCK,
            stops: Vec::new(),
            decoded: 0,
            drops: 0,
        }
    }

    /// Forgets all blocks.
    pub(crate) fn clear(&mut self) {
        self.table.fill(EMPTY);
        self.ops.clear();
        self.drops += 1;
    }

    /// The block at `at`, decoded if need be; empty when its first instruction does not end
    /// inside the page, or a debugger may have a breakpoint there.
    #[inline]
    pub(crate) fn find(&mut self, cpu: &mut Cpu, at: RamOffset) -> &[Op] {
        let key = at.0 << 2 | code_tag(cpu.code_size);
        let slot = self.table[index(key)];
        if slot.key == key && slot.version == cpu.ram.code_version(at) {
            let start = slot.start as usize;
            return &self.ops[start..start + slot.len as usize];
        }
        self.decode_block(cpu, at, key)
    }

    #[cold]
    fn decode_block(&mut self, cpu: &mut Cpu, at: RamOffset, key: u64) -> &[Op] {
        if self.ops.len() > MAX_OPS - MAX_BLOCK {
            self.drop_all(cpu);
        }
        // Watched before it is read: a write from now on changes the version.
        let version = cpu.watch_code(at);
        let mut code = [0; 4096];
        let rest = 4096 - (at.0 % 4096) as usize;
        let code = &mut code[..rest.min(MAX_BLOCK * MAX_LENGTH)];
        cpu.ram.read_at(at, code);
        // What a translator takes, it takes unless somebody debugs.
        let translated = cpu.is_translatable() && !cpu.debugged;
        let longest = if translated { self.longest } else { MAX_BLOCK };
        let mut start = self.ops.len();
        let mut offset = 0;
        while self.ops.len() - start < longest && offset < code.len() {
            if self.stops.contains(&(at.0 % 4096 + offset as u64)) {
                break;
            }
            match decode(cpu, &code[offset..]) {
                Ok(Decoded::Op(op, flow)) => {
                    offset += usize::from(op.len);
                    self.ops.push(op);
                    if flow == Flow::Ends {
                        break;
                    }
                }
                Ok(Decoded::Truncated) => break,
                Err(_) => {
                    // No room for native stubs: start over with an empty buffer.
                    self.drop_all(cpu);
                    (start, offset) = (0, 0);
                }
            }
        }
        self.decoded += (self.ops.len() - start) as u64;
        let len = self.ops.len() - start;
        self.table[index(key)] = Slot { key, version, start: start as u32, len: len as u32 };
        &self.ops[start..]
    }

    /// Drops blocks and the native stubs that they refer to.
    fn drop_all(&mut self, cpu: &mut Cpu) {
        self.clear();
        cpu.executor.reset();
    }
}

fn code_tag(size: CodeSize) -> u64 {
    match size {
        CodeSize::Bits16 => 0,
        CodeSize::Bits32 => 1,
        CodeSize::Bits64 => 2,
    }
}

#[inline(always)]
fn index(key: u64) -> usize {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 49) as usize % SLOTS
}
