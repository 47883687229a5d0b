//! Which flags an instruction sequence leaves undefined.

use iced_x86::{Instruction, Mnemonic, OpKind, Register, RflagsBits};
use x86::cr::rflags;

use crate::case::FILL;
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
    /// With branches, which may lead from anywhere to anywhere: undefined everywhere.
    everywhere: Option<u64>,
}

impl UndefinedFlags {
    /// Follows the instructions in `code`, which lies at `address`; `None` when one of them reads
    /// a flag that may be undefined, so that the results cannot be compared.
    pub fn follow(code: &[u8], address: u64) -> Option<Self> {
        let instructions = policy::decode_all(code, address);
        let everywhere = if instructions.iter().any(policy::is_branch) {
            Some(undefined_everywhere(code, address, &instructions)?)
        } else {
            None
        };
        let mut undefined = everywhere.unwrap_or(0);
        let mut before = Vec::with_capacity(instructions.len() + 1);
        for instruction in &instructions {
            before.push((instruction.ip(), undefined));
            if undefined & to_rflags(instruction.rflags_read()) != 0 {
                return None;
            }
            if everywhere.is_none() {
                if !may_leave_flags(instruction) {
                    undefined &= !to_rflags(instruction.rflags_modified());
                }
                undefined |= left_undefined(instruction);
            }
        }
        before.push((instructions.last().map_or(0, Instruction::next_ip), undefined));
        Some(Self { before, everywhere })
    }

    /// Flags that may be undefined when execution stopped with RIP at `rip`.
    pub fn at(&self, rip: u64) -> u64 {
        let all = || self.before.iter().map(|(_, undefined)| *undefined).sum_bits();
        let found = self.before.iter().find(|(address, _)| *address == rip);
        self.everywhere.unwrap_or_else(|| found.map_or_else(all, |(_, undefined)| *undefined))
    }
}

/// Flags that any instruction leaves undefined; `None` when any reads one of them.
fn undefined_everywhere(code: &[u8], address: u64, instructions: &[Instruction]) -> Option<u64> {
    let (mut read, mut undefined) = (0, 0);
    let mut add = |instruction: &Instruction| {
        read |= to_rflags(instruction.rflags_read());
        undefined |= left_undefined(instruction);
    };
    if may_lead_into_an_instruction(instructions) {
        let mut padded = code.to_vec();
        padded.extend([FILL; policy::LONGEST]);
        for at in 0..code.len() {
            add(&policy::decode(&padded[at..], address + at as u64));
        }
    } else {
        instructions.iter().for_each(&mut add);
    }
    (read & undefined == 0).then_some(undefined)
}

/// Flags that an instruction leaves undefined. The decoder knows the count of RCL and RCR modulo
/// the width and one; OF is undefined by the masked count (SDM vol. 2).
fn left_undefined(instruction: &Instruction) -> u64 {
    let rotates = matches!(instruction.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr);
    let once = instruction.op1_kind() == OpKind::Immediate8 && instruction.immediate8() == 1;
    let of = if rotates && !once { rflags::OF } else { 0 };
    to_rflags(instruction.rflags_undefined()) | of
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

/// Whether a branch may lead between the starts of two instructions: an indirect one may lead
/// anywhere.
fn may_lead_into_an_instruction(instructions: &[Instruction]) -> bool {
    let first = instructions.first().map_or(0, Instruction::ip);
    let end = instructions.last().map_or(0, Instruction::next_ip);
    instructions.iter().filter(|i| policy::is_branch(i)).any(|instruction| {
        let is_direct = matches!(
            instruction.op0_kind(),
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
        );
        let target = instruction.near_branch_target();
        let is_start = instructions.iter().any(|i| i.ip() == target);
        !is_direct || ((first..end).contains(&target) && !is_start)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow(bytes: &[u8]) -> Option<UndefinedFlags> {
        UndefinedFlags::follow(bytes, 0)
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
