//! Which flags an instruction sequence leaves undefined.

use std::collections::HashSet;

use iced_x86::{Instruction, Mnemonic, OpKind, Register, RflagsBits};
use x86::cr::rflags;

use crate::policy;

/// RFLAGS bits for the decoder's flag bits.
fn to_rflags(bits: u32) -> u64 {
    let pairs = [
        (RflagsBits::OF, rflags::OF),
        (RflagsBits::SF, rflags::SF),
        (RflagsBits::ZF, rflags::ZF),
        (RflagsBits::AF, rflags::AF),
        (RflagsBits::CF, rflags::CF),
        (RflagsBits::PF, rflags::PF),
    ];
    pairs.into_iter().filter(|(from, _)| bits & from != 0).map(|(_, to)| to).sum()
}

/// Undefined flags through a sequence of decoded instructions.
#[derive(Clone, Debug)]
pub struct UndefinedFlags {
    /// Address of each instruction and the flags undefined before it; the end comes last.
    before: Vec<(u64, u64)>,
    has_branches: bool,
}

impl UndefinedFlags {
    /// Follows `instructions`; `None` when one of them reads a flag that may be undefined, so that
    /// the results cannot be compared.
    pub fn follow(instructions: &[Instruction]) -> Option<Self> {
        let has_branches = instructions.iter().any(policy::is_branch);
        let mut undefined = 0;
        if has_branches {
            // A branch may lead from anywhere to anywhere.
            undefined = instructions.iter().map(|i| to_rflags(i.rflags_undefined())).sum_bits();
            if undefined != 0 && leads_into_an_instruction(instructions) {
                return None;
            }
        }
        let mut before = Vec::with_capacity(instructions.len() + 1);
        for instruction in instructions {
            before.push((instruction.ip(), undefined));
            if undefined & to_rflags(instruction.rflags_read()) != 0 {
                return None;
            }
            if !may_leave_flags(instruction) && !has_branches {
                undefined &= !to_rflags(instruction.rflags_modified());
            }
            undefined |= to_rflags(instruction.rflags_undefined());
        }
        before.push((instructions.last().map_or(0, Instruction::next_ip), undefined));
        Some(Self { before, has_branches })
    }

    /// Flags that may be undefined when execution stopped with RIP at `rip`.
    pub fn at(&self, rip: u64) -> u64 {
        let found = self.before.iter().find(|(address, _)| *address == rip);
        match found {
            Some((_, undefined)) if !self.has_branches => *undefined,
            _ => self.before.iter().map(|(_, undefined)| *undefined).sum_bits(),
        }
    }
}

/// Union of flag sets.
trait SumBits {
    fn sum_bits(self) -> u64;
}

impl<I: Iterator<Item = u64>> SumBits for I {
    fn sum_bits(self) -> u64 {
        self.fold(0, |all, bits| all | bits)
    }
}

/// Shifts by CL and repeated comparisons may leave the flags as they were.
fn may_leave_flags(instruction: &Instruction) -> bool {
    let counts_cl = (0..instruction.op_count()).any(|n| {
        instruction.op_kind(n) == OpKind::Register && instruction.op_register(n) == Register::CL
    });
    use Mnemonic as M;
    let shifts = matches!(
        instruction.mnemonic(),
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
    );
    let repeats = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    shifts && counts_cl || repeats
}

/// Whether a direct branch leads between the starts of two instructions.
fn leads_into_an_instruction(instructions: &[Instruction]) -> bool {
    let starts: HashSet<u64> = instructions.iter().map(Instruction::ip).collect();
    let first = instructions.first().map_or(0, Instruction::ip);
    let end = instructions.last().map_or(0, Instruction::next_ip);
    instructions.iter().any(|instruction| {
        let target = instruction.near_branch_target();
        let is_direct = matches!(
            instruction.op0_kind(),
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
        );
        is_direct && (first..end).contains(&target) && !starts.contains(&target)
    })
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    fn follow(bytes: &[u8]) -> Option<UndefinedFlags> {
        let decoder = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE);
        UndefinedFlags::follow(&decoder.into_iter().collect::<Vec<_>>())
    }

    #[test]
    fn a_multiplication_leaves_four_flags_undefined() {
        // mul rcx
        let flags = follow(&[0x48, 0xf7, 0xe1]).unwrap();
        assert_eq!(flags.at(3), rflags::SF | rflags::ZF | rflags::AF | rflags::PF);
        assert_eq!(flags.at(0), 0, "a fault of the instruction itself");
    }

    #[test]
    fn reading_an_undefined_flag_is_refused() {
        // mul rcx; setz al
        assert!(follow(&[0x48, 0xf7, 0xe1, 0x0f, 0x94, 0xc0]).is_none());
        // mul rcx; add eax, eax; setz al
        assert!(follow(&[0x48, 0xf7, 0xe1, 0x01, 0xc0, 0x0f, 0x94, 0xc0]).is_some());
        // mul rcx; shl eax, cl; setz al
        assert!(follow(&[0x48, 0xf7, 0xe1, 0xd3, 0xe0, 0x0f, 0x94, 0xc0]).is_none());
    }
}
