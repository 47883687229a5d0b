//! INTx#: level-triggered lines that functions share (PCI Local Bus 3.0, 2.2.6).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use device::InterruptLine;

/// A line that is asserted while any of its inputs is.
pub struct SharedLine {
    output: Arc<dyn InterruptLine>,
    /// Bit n: input n is asserted.
    asserted: AtomicU64,
    inputs: AtomicU64,
}

struct Input {
    line: Arc<SharedLine>,
    bit: u64,
}

impl SharedLine {
    /// A line that drives `output`.
    pub fn new(output: Arc<dyn InterruptLine>) -> Arc<Self> {
        Arc::new(Self { output, asserted: AtomicU64::new(0), inputs: AtomicU64::new(0) })
    }

    /// A further input, low.
    ///
    /// # Panics
    /// From the 65th on: a bus has fewer functions.
    pub fn input(self: &Arc<Self>) -> Arc<dyn InterruptLine> {
        let index = self.inputs.fetch_add(1, Ordering::Relaxed);
        assert!(index < 64, "too many inputs of one interrupt line");
        Arc::new(Input { line: Arc::clone(self), bit: 1 << index })
    }
}

impl InterruptLine for Input {
    fn set(&self, level: bool) {
        match level {
            true => self.line.asserted.fetch_or(self.bit, Ordering::SeqCst),
            false => self.line.asserted.fetch_and(!self.bit, Ordering::SeqCst),
        };
        // Two inputs that change at once may set the output in the wrong order: whoever set it
        // last sees that and sets it right.
        loop {
            let level = self.line.asserted.load(Ordering::SeqCst) != 0;
            self.line.output.set(level);
            if (self.line.asserted.load(Ordering::SeqCst) != 0) == level {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use device::testing::RecordingLine;

    use super::*;

    #[test]
    fn the_line_is_high_while_any_input_is() {
        let output = RecordingLine::new();
        let line = SharedLine::new(output.clone());
        let (first, second) = (line.input(), line.input());
        first.set(true);
        second.set(true);
        first.set(false);
        assert!(output.level());
        second.set(false);
        assert!(!output.level());
        assert_eq!(output.edges(), 1);
    }
}
