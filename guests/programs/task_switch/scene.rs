//! Two tasks: the run's own ([`legacy::TASK`]), and another one.

use kit::legacy::{self, Legacy, TASK_SELECTOR, Task};
use kit::snippet::stack_top;
use kit::tables::{self, KERNEL_CODE32, KERNEL_DATA, field};
use kit::{Code, Frame4K, Global, ZERO_FRAME};

/// Descriptor of the other task's TSS.
pub const OTHER: u16 = tables::FREE_SELECTOR;
/// Task gate to it.
pub const GATE: u16 = tables::FREE_SELECTOR + 8;
/// Free for a check.
pub const SPARE: u16 = tables::FREE_SELECTOR + 16;

/// Page-aligned, so that a TSS does not cross pages.
static OTHER_TSS: Global<Frame4K> = Global::new(ZERO_FRAME);
/// The other task's stack: the lower half of the snippets' stack.
pub fn other_stack() -> u32 {
    stack_top() as u32 - 0x2000
}

/// Selector and DPL field of a task gate, present.
pub const fn task_gate(selector: u16, dpl: u64) -> u64 {
    (selector as u64) << 16 | 5 << 40 | dpl << 45 | field::PRESENT
}

/// A task that executes `code` in ring 0 with registers zero.
pub fn task(code: Code) -> Task {
    Task {
        eip: code.start as u32,
        regs: [0, 0, 0, 0, other_stack(), 0, 0, 0],
        segments: [
            KERNEL_DATA.into(),
            KERNEL_CODE32.into(),
            KERNEL_DATA.into(),
            KERNEL_DATA.into(),
            0,
            0,
        ],
        ..Task::new()
    }
}

/// Makes `task` the other one, available, with DPL `dpl`, and a gate to it.
pub fn set_other(task: Task, dpl: u64) {
    // SAFETY: the frame is large enough and aligned.
    unsafe { OTHER_TSS.ptr().cast::<Task>().write_volatile(task) };
    let descriptor = tables::system_descriptor(OTHER_TSS.addr(), legacy::TASK_LIMIT, 9);
    tables::set_descriptor(OTHER, descriptor | dpl << 45);
    tables::set_descriptor(GATE, task_gate(OTHER, dpl));
    legacy::TASK.set(Task::new());
}

/// The other task's segment as it is in memory.
pub fn other() -> Task {
    // SAFETY: as in `set_other`.
    unsafe { OTHER_TSS.ptr().cast::<Task>().read_volatile() }
}

/// Linear address of the other task's segment.
pub fn other_address() -> u64 {
    OTHER_TSS.addr()
}

/// The run's own task as it is in memory.
pub fn own() -> Task {
    legacy::TASK.get()
}

/// A run of `code` in the run's own task.
pub fn at(code: Code) -> Legacy {
    legacy::at(code).with_task()
}

/// Whether the descriptors of the own and of the other task are busy.
pub fn busy() -> (bool, bool) {
    let busy = |selector| tables::descriptor(selector) >> 41 & 1 != 0;
    (busy(TASK_SELECTOR), busy(OTHER))
}
