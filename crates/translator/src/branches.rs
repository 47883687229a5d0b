//! Control transfers.
//!
//! A direct branch inside the page is linked to the block that it goes to; all others find theirs
//! in the jump table, before they have any effect.

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Instruction, OpKind};
use interpreter::condition_number;

use crate::allow::Access;
use crate::context::at;
use crate::emit::{HostMemory, R8, R9};
use crate::plan::{Planned, Use};
use crate::registers::HOST_RCX_OF_GUEST;
use crate::translate::{Cold, Flow, PAGE, Translator};

impl Translator<'_> {
    /// Goes on at `target`, counted from the page's beginning, when all that precedes is done.
    pub(crate) fn go_to(&mut self, target: i64) {
        let executed = self.executed;
        if (0..PAGE as i64).contains(&target) {
            self.refund(executed);
            self.emit.chain(executed, target as u32);
            return;
        }
        // Branch distances have 32 bits, so that this fits but for a page.
        self.emit.page_plus(target as i32);
        self.emit.find_target();
        self.emit.no_resume();
        self.refund(executed);
        self.emit.jump_found();
    }

    /// The block is left after `executed` of its instructions.
    fn refund(&mut self, executed: u32) {
        if self.request.counts {
            self.emit.refund(self.total - executed);
        }
    }

    fn direct_target(instruction: &Instruction) -> Option<i64> {
        let target = instruction.near_branch_target() as i64;
        match instruction.op0_kind() {
            OpKind::NearBranch32 => Some(i64::from(target as i32)),
            _ => i32::try_from(target).ok().map(i64::from),
        }
    }

    pub(crate) fn jmp(&mut self, planned: &Planned) -> Option<Flow> {
        let instruction = &planned.instruction;
        match instruction.op0_kind() {
            OpKind::NearBranch64 | OpKind::NearBranch32 => {
                let target = Self::direct_target(instruction)?;
                self.executed += 1;
                self.go_to(target);
                self.executed -= 1;
                return Some(Flow::Ends);
            }
            OpKind::Register => {
                let number = instruction.op0_register().full_register().number() as u8;
                self.emit.load_address(R8, number);
            }
            _ => {
                self.load_operand(planned)?;
                dynasm!(self.emit.code ; .arch x64 ; mov r8, rcx);
            }
        }
        self.emit.find_target();
        self.emit.jump_found();
        Some(Flow::Ends)
    }

    pub(crate) fn call(&mut self, planned: &Planned) -> Option<Flow> {
        let instruction = &planned.instruction;
        let next = instruction.next_ip() as i32;
        let target_slot = at::TEMPORARY + 8;
        let direct = match instruction.op0_kind() {
            OpKind::NearBranch64 | OpKind::NearBranch32 => Some(Self::direct_target(instruction)?),
            OpKind::Memory => {
                self.load_operand(planned)?;
                dynasm!(self.emit.code ; .arch x64 ; mov [BYTE rsp + target_slot], rcx);
                self.emit.retry_here();
                None
            }
            _ => None,
        };
        let slot = self.check_push(planned);
        if let Some(target) = direct
            && (0..PAGE as i64).contains(&target)
        {
            self.push_return_address(slot, next)?;
            self.emit.chain(self.executed + 1, target as u32);
            return Some(Flow::Ends);
        }
        if planned.stack == Use::Single {
            self.emit.address_of(R9, slot)?;
            dynasm!(self.emit.code ; .arch x64 ; mov [BYTE rsp + at::TEMPORARY], r9);
        }
        match (direct, instruction.op0_kind()) {
            (Some(target), _) => self.emit.page_plus(target as i32),
            (None, OpKind::Register) => {
                let number = instruction.op0_register().full_register().number() as u8;
                self.emit.load_address(R8, number);
            }
            _ => dynasm!(self.emit.code ; .arch x64 ; mov r8, [BYTE rsp + target_slot]),
        }
        self.emit.find_target();
        let displacement = match planned.stack.kept() {
            Some(kept) => {
                self.emit.held.lose_all();
                self.emit.use_group(kept, R8);
                kept.distance
            }
            None => {
                dynasm!(self.emit.code ; .arch x64 ; mov r8, [BYTE rsp + at::TEMPORARY]);
                0
            }
        };
        self.push_return_address(HostMemory { base: R8, linear: false, displacement }, next)?;
        self.emit.jump_found();
        Some(Flow::Ends)
    }

    /// Stores the return address at the checked `slot` and moves RSP.
    fn push_return_address(&mut self, slot: HostMemory, next: i32) -> Option<()> {
        let address = slot.spare();
        dynasm!(self.emit.code ; .arch x64 ; mov Rq(address), [BYTE rsp + at::PAGE]);
        self.emit.add_far(address, address, next);
        self.emit.store_word(slot, address)?;
        self.emit.move_stack(-self.word());
        Some(())
    }

    pub(crate) fn ret(&mut self, planned: &Planned) -> Option<Flow> {
        let instruction = &planned.instruction;
        let released =
            if instruction.op_count() == 1 { i32::from(instruction.immediate16()) } else { 0 };
        let slot = self.check_stack(planned, 0, Access::Read);
        self.emit.load_word(R8, slot)?;
        self.emit.find_target();
        self.emit.move_stack(self.word() + released);
        self.emit.jump_found();
        Some(Flow::Ends)
    }

    /// A side exit to the target of `instruction`, by way of a label.
    fn cold_exit(&mut self, instruction: &Instruction) -> Option<dynasmrt::DynamicLabel> {
        let target = Self::direct_target(instruction)?;
        let label = self.emit.code.new_dynamic_label();
        let (offset, executed) = (self.emit.offset, self.executed + 1);
        self.cold.push(Cold { label, executed, target, offset, site: None });
        Some(label)
    }

    pub(crate) fn jcc(&mut self, instruction: &Instruction) -> Option<Flow> {
        let condition = condition_number(instruction.condition_code())?;
        let label = self.cold_exit(instruction)?;
        self.emit.jump_if(condition, label);
        if let Some(cold) = self.cold.last_mut()
            && !self.request.counts
        {
            cold.site = Some(self.emit.here() - 4);
        }
        Some(Flow::Next)
    }

    pub(crate) fn jrcxz(&mut self, instruction: &Instruction) -> Option<Flow> {
        let label = self.cold_exit(instruction)?;
        self.emit.jump_if_counter(true, label);
        Some(Flow::Next)
    }

    pub(crate) fn loop_back(&mut self, instruction: &Instruction) -> Option<Flow> {
        // A taken LOOP whose target lies in another page may go to the interpreter, which counts
        // down itself.
        let target = Self::direct_target(instruction)?;
        if !(0..PAGE as i64).contains(&target) {
            return None;
        }
        let label = self.cold_exit(instruction)?;
        self.emit.add(HOST_RCX_OF_GUEST, HOST_RCX_OF_GUEST, -1);
        self.emit.jump_if_counter(false, label);
        Some(Flow::Next)
    }

    pub(crate) fn emit_cold(&mut self) {
        self.emit.held.lose_all();
        for Cold { label, executed, target, offset, site } in std::mem::take(&mut self.cold) {
            dynasm!(self.emit.code ; .arch x64 ; =>label);
            // Until the jump it is as if the branch had not been executed: it may be begun anew.
            self.emit.begin_at(offset, executed - 1);
            self.executed = executed;
            match site {
                Some(site) if (0..PAGE as i64).contains(&target) => {
                    self.emit.chain_exit(executed, target as u32, site);
                }
                _ => self.go_to(target),
            }
        }
    }
}
