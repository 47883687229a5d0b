//! Random code on a small machine.
//!
//! [`world`] lays out RAM, descriptors and page tables, [`run`] drives a vCPU to an end.

mod run;
mod world;

use std::sync::Arc;

use engine::{VcpuExit, VcpuState};
use memory::{Gpa, GuestRam};

use crate::Input;
use run::Machine;
use world::RAM;

/// Instructions before and after the machine is saved.
const INSTRUCTIONS: u64 = 150;

/// Runs the input as code, with registers and modes that it chooses or from a state that it
/// forges, saves the vCPU in the middle, restores it into another one, and goes on with both.
///
/// # Panics
/// When the interpreter panics or does not stop; when the restored vCPU saves another state than
/// it was restored from; when the two go on differently.
pub fn interpreter_step(data: &[u8]) {
    let mut input = Input::new(data);
    let ram = Arc::new(GuestRam::new(&[(0, RAM)]).expect("64 KiB"));
    let mut first = Machine::new(Arc::clone(&ram));
    let state = world::build(&mut input, &ram, first.save());
    if first.restore(&state).is_err() {
        return;
    }
    let exit = first.run(INSTRUCTIONS);
    let (saved, content) = (first.save(), content(&ram));
    let copy = Arc::new(GuestRam::new(&[(0, RAM)]).expect("64 KiB"));
    copy.write(Gpa(0), &content).expect("all of RAM");
    let mut second = Machine::new(Arc::clone(&copy));
    second.restore(&saved).expect("a state that was saved can be restored");
    assert_same(&saved, &second.save(), "right after the restore");
    if exit != VcpuExit::BudgetSpent || !world::has_its_tables(&saved, &ram) {
        return;
    }
    let exits = (first.run(INSTRUCTIONS), second.run(INSTRUCTIONS));
    let interrupted = exits.0 == VcpuExit::Paused || exits.1 == VcpuExit::Paused;
    // A guest that changes its page tables may see the old ones as long as the TLB has them.
    if interrupted || !world::has_its_tables(&first.save(), &ram) {
        return;
    }
    assert_eq!(exits.0, exits.1, "the restored vCPU ends otherwise");
    assert_same(&first.save(), &second.save(), "after going on");
    assert!(self::content(&ram) == self::content(&copy), "the restored vCPU writes otherwise");
}

fn content(ram: &GuestRam) -> Vec<u8> {
    let mut bytes = vec![0; RAM as usize];
    ram.read(Gpa(0), &mut bytes).expect("all of RAM");
    bytes
}

/// Part by part, so that a difference can be read.
fn assert_same(one: &VcpuState, other: &VcpuState, when: &str) {
    assert_eq!(one.general, other.general, "{when}");
    assert_eq!(one.segments, other.segments, "{when}");
    assert_eq!(one.control, other.control, "{when}");
    assert_eq!(one, other, "{when}");
}
