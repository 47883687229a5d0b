//! Instructions that exist only outside 64-bit code: decimal adjust, BOUND, ARPL, SALC.

use iced_x86::{Instruction, Mnemonic};
use memory::Scalar;
use x86::exception::{Exception, vector};
use x86::gpr;

use super::{Mem, Reg, Target, by_size, is_memory, operand_size, sign_extend, widths};
use crate::cpu::{Bus, Cpu, Exec, Step};
use crate::op::{Op, read_reg, write_reg};

const RAX: u8 = gpr::RAX as u8;

fn al(cpu: &Cpu) -> u64 {
    read_reg::<u8>(cpu, RAX)
}

fn set_ax(cpu: &mut Cpu, ah: u64, al: u64) {
    write_reg::<u16>(cpu, RAX, (ah & 0xff) << 8 | al & 0xff);
}

/// AAA (`SUBTRACT` false) and AAS.
fn ascii_adjust<const SUBTRACT: bool>(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    let adjust = al(cpu) & 15 > 9 || cpu.flags.af();
    let ax = read_reg::<u16>(cpu, RAX);
    let new = match (adjust, SUBTRACT) {
        (false, _) => ax,
        (true, false) => ax.wrapping_add(0x106),
        (true, true) => ax.wrapping_sub(0x106),
    };
    write_reg::<u16>(cpu, RAX, new & 0xff0f);
    cpu.flags.set_result(8, new & 0x0f);
    cpu.flags.set_cf_of(adjust, false);
    cpu.flags.set_af(adjust);
    Ok(())
}

/// DAA (`SUBTRACT` false) and DAS.
fn decimal_adjust<const SUBTRACT: bool>(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    let (old, old_cf) = (al(cpu), cpu.flags.cf());
    let low = old & 15 > 9 || cpu.flags.af();
    let high = old > 0x99 || old_cf;
    let amount = if low { 6 } else { 0 } + if high { 0x60 } else { 0 };
    let new = if SUBTRACT { old.wrapping_sub(amount) } else { old.wrapping_add(amount) } & 0xff;
    // DAS keeps the borrow of the low correction; a carry of DAA's implies the high correction.
    let borrow = SUBTRACT && low && old < 6;
    write_reg::<u8>(cpu, RAX, new);
    cpu.flags.set_result(8, new);
    cpu.flags.set_cf_of(high || borrow, false);
    cpu.flags.set_af(low);
    Ok(())
}

fn aam(cpu: &mut Cpu, op: &Op, _bus: Bus<'_>) -> Step {
    let base = op.imm & 0xff;
    if base == 0 {
        return cpu.fault(Exception::DE);
    }
    let value = al(cpu);
    set_ax(cpu, value / base, value % base);
    cpu.flags.logic(8, value % base);
    Ok(())
}

fn aad(cpu: &mut Cpu, op: &Op, _bus: Bus<'_>) -> Step {
    let ah = read_reg::<u16>(cpu, RAX) >> 8;
    let value = (al(cpu) + ah * (op.imm & 0xff)) & 0xff;
    set_ax(cpu, 0, value);
    cpu.flags.logic(8, value);
    Ok(())
}

fn salc(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    let value = if cpu.flags.cf() { 0xff } else { 0 };
    write_reg::<u8>(cpu, RAX, value);
    Ok(())
}

fn bound<W: Scalar>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    let index = sign_extend::<W>(read_reg::<W>(cpu, op.reg)) as i64;
    let at = op.linear(cpu, 2 * W::BYTES, false)?;
    let lower = sign_extend::<W>(cpu.read::<W>(bus, at)?) as i64;
    let upper = sign_extend::<W>(cpu.read::<W>(bus, at.plus(W::BYTES))?) as i64;
    if (lower..=upper).contains(&index) {
        return Ok(());
    }
    cpu.fault(Exception::new(vector::BR))
}

/// ARPL: raises the RPL of the destination to that of the source.
fn arpl<D: Target>(cpu: &mut Cpu, op: &Op, bus: Bus<'_>) -> Step {
    if !cpu.protected_mode() {
        return cpu.fault(Exception::UD);
    }
    let rpl = read_reg::<u16>(cpu, op.src) & 3;
    let raised = |selector: u64| if selector & 3 < rpl { selector & !3 | rpl } else { selector };
    let old = D::update::<u16>(cpu, op, bus, raised)?;
    cpu.flags.set_zf(old & 3 < rpl);
    Ok(())
}

pub(crate) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Exec> {
    use Mnemonic as M;
    Some(match instruction.mnemonic() {
        M::Aaa => ascii_adjust::<false>,
        M::Aas => ascii_adjust::<true>,
        M::Daa => decimal_adjust::<false>,
        M::Das => decimal_adjust::<true>,
        M::Aam => {
            op.imm = u64::from(instruction.immediate8());
            aam
        }
        M::Aad => {
            op.imm = u64::from(instruction.immediate8());
            aad
        }
        M::Salc => salc,
        M::Bound => return by_size(operand_size(instruction, 0), widths!(bound)),
        M::Arpl if is_memory(instruction, 0) => arpl::<Mem>,
        M::Arpl => arpl::<Reg>,
        _ => return None,
    })
}
