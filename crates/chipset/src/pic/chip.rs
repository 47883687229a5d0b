//! One 8259A.

/// The state of one 8259A. Bit n of a mask is input n.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chip {
    /// Levels of the inputs.
    pub(super) inputs: u8,
    /// Edges that wait for service.
    pub(super) latched: u8,
    /// ISR.
    pub(super) in_service: u8,
    /// IMR.
    pub(super) mask: u8,
    /// ELCR.
    pub(super) level_triggered: u8,
    /// ICW2: the vector of input 0.
    pub(super) vector_base: u8,
    /// ICW3.
    pub(super) cascade: u8,
    /// The input with the highest priority, 0 to 7.
    pub(super) first: u8,
    /// ICW1 bit 3: all inputs are level-triggered.
    pub(super) all_level: bool,
    /// ICW4 bit 1.
    pub(super) auto_eoi: bool,
    /// ICW4 bit 4: special fully nested mode.
    pub(super) fully_nested: bool,
    pub(super) rotate_on_auto_eoi: bool,
    pub(super) special_mask: bool,
    /// The next read is a poll.
    pub(super) poll: bool,
    /// Reads of the command port give ISR rather than IRR.
    pub(super) read_in_service: bool,
    pub(super) expected: Expected,
    /// ICW1 bits 0 and 1: ICW4 follows; ICW3 does not.
    pub(super) wants_icw4: bool,
    pub(super) single: bool,
}

/// What the next write to the data port is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Expected {
    /// OCW1, the mask.
    #[default]
    Mask,
    Icw2,
    Icw3,
    Icw4,
}

impl Chip {
    /// Returns to the power-on state; the inputs stay as their devices drive them.
    pub(super) fn reset(&mut self) {
        *self = Self { inputs: self.inputs, ..Self::default() };
    }

    pub(super) fn set_input(&mut self, input: u8, level: bool) {
        let bit = 1 << input;
        if level {
            self.latched |= bit & !self.inputs;
            self.inputs |= bit;
        } else {
            self.inputs &= !bit;
        }
        self.latched &= !self.by_level();
    }

    pub(super) fn set_level_triggered(&mut self, inputs: u8) {
        self.level_triggered = inputs;
        self.latched &= !self.by_level();
    }

    /// INT: a request is of higher priority than all that is in service.
    pub(super) fn output(&self) -> bool {
        self.best_request().is_some()
    }

    /// The acknowledge cycle: the input now in service (none when spurious) and its vector.
    pub(super) fn acknowledge(&mut self) -> (Option<u8>, u8) {
        let Some(input) = self.best_request() else { return (None, self.vector_base | 7) };
        self.serve(input);
        (Some(input), self.vector_base | input)
    }

    pub(super) fn read_command(&mut self) -> u8 {
        if self.poll {
            self.answer_poll()
        } else if self.read_in_service {
            self.in_service
        } else {
            self.requests()
        }
    }

    pub(super) fn read_data(&mut self) -> u8 {
        if self.poll { self.answer_poll() } else { self.mask }
    }

    pub(super) fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.initialize(value);
        } else if value & 0x08 != 0 {
            self.write_ocw3(value);
        } else {
            self.write_ocw2(value);
        }
    }

    pub(super) fn write_data(&mut self, value: u8) {
        match self.expected {
            Expected::Mask => self.mask = value,
            Expected::Icw2 => {
                self.vector_base = value & 0xf8;
                self.expected = match (self.single, self.wants_icw4) {
                    (false, _) => Expected::Icw3,
                    (true, true) => Expected::Icw4,
                    (true, false) => Expected::Mask,
                };
            }
            Expected::Icw3 => {
                self.cascade = value;
                self.expected = if self.wants_icw4 { Expected::Icw4 } else { Expected::Mask };
            }
            Expected::Icw4 => {
                self.auto_eoi = value & 0x02 != 0;
                self.fully_nested = value & 0x10 != 0;
                self.expected = Expected::Mask;
            }
        }
    }

    /// ICW1: starts over; edges need a new transition, all else is at its default.
    fn initialize(&mut self, icw1: u8) {
        *self = Self {
            inputs: self.inputs,
            level_triggered: self.level_triggered,
            vector_base: self.vector_base,
            cascade: self.cascade,
            expected: Expected::Icw2,
            all_level: icw1 & 0x08 != 0,
            single: icw1 & 0x02 != 0,
            wants_icw4: icw1 & 0x01 != 0,
            ..Self::default()
        };
    }

    /// OCW2: end of interrupt and rotation (data sheet, figure 8).
    fn write_ocw2(&mut self, value: u8) {
        let level = value & 7;
        let (rotate, specific, end) = (value & 0x80 != 0, value & 0x40 != 0, value & 0x20 != 0);
        match (specific, end) {
            (false, false) => self.rotate_on_auto_eoi = rotate,
            (false, true) => {
                if let Some(input) = self.best_of(self.unmasked_in_service()) {
                    self.end(input, rotate);
                }
            }
            (true, true) => self.end(level, rotate),
            (true, false) if rotate => self.make_lowest(level),
            (true, false) => {}
        }
    }

    fn write_ocw3(&mut self, value: u8) {
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
        self.poll = value & 0x04 != 0;
        if value & 0x02 != 0 {
            self.read_in_service = value & 0x01 != 0;
        }
    }

    /// A poll is an acknowledge by reading: bit 7 tells whether there was a request.
    fn answer_poll(&mut self) -> u8 {
        self.poll = false;
        match self.best_request() {
            Some(input) => {
                self.serve(input);
                0x80 | input
            }
            None => 0,
        }
    }

    fn serve(&mut self, input: u8) {
        self.latched &= !(1 << input);
        if !self.auto_eoi {
            self.in_service |= 1 << input;
        } else if self.rotate_on_auto_eoi {
            self.make_lowest(input);
        }
    }

    fn end(&mut self, input: u8, rotate: bool) {
        self.in_service &= !(1 << input);
        if rotate {
            self.make_lowest(input);
        }
    }

    fn make_lowest(&mut self, input: u8) {
        self.first = (input + 1) & 7;
    }

    /// Inputs that act by level.
    fn by_level(&self) -> u8 {
        if self.all_level { 0xff } else { self.level_triggered }
    }

    /// IRR.
    fn requests(&self) -> u8 {
        self.latched | self.inputs & self.by_level()
    }

    /// ISR without the levels that special mask mode takes out: those that are masked neither
    /// block lower ones nor answer to a non-specific EOI.
    fn unmasked_in_service(&self) -> u8 {
        if self.special_mask { self.in_service & !self.mask } else { self.in_service }
    }

    fn best_request(&self) -> Option<u8> {
        let request = self.best_of(self.requests() & !self.mask)?;
        let mut blocking = self.unmasked_in_service();
        if self.fully_nested {
            // The slave may interrupt again from a higher one of its own levels.
            blocking &= !self.cascade;
        }
        match self.best_of(blocking) {
            Some(serving) => (self.rank(request) < self.rank(serving)).then_some(request),
            None => Some(request),
        }
    }

    /// The input of the highest priority in `inputs`.
    fn best_of(&self, inputs: u8) -> Option<u8> {
        let rotated = inputs.rotate_right(u32::from(self.first));
        (rotated != 0).then(|| (rotated.trailing_zeros() as u8 + self.first) & 7)
    }

    fn rank(&self, input: u8) -> u8 {
        input.wrapping_sub(self.first) & 7
    }
}
