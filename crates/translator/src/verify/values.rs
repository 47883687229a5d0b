//! What the check of a block knows about registers and the context at a point of the code.

use iced_x86::Register;

use crate::context::GROUPS;
use crate::registers::SLOTTED;

/// Words of the context that hold values of one block: two temporaries, then the groups' slots.
pub(super) const WORDS: usize = 2 + GROUPS;

/// Host registers that no value survives in when translated code is left and entered again.
pub(super) const SCRATCH: [usize; 3] = [1, 8, 9];

/// An unknown value of the guest plus a constant; two of the same number differ by constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) of: u32,
    pub(super) plus: i64,
}

/// Guest addresses that an access has been checked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) at: Address,
    pub(super) len: i64,
    pub(super) write: bool,
    /// What `at` is a multiple of: 1, 16 or 32.
    pub(super) alignment: i64,
}

impl Range {
    /// How far into the range an address lies; it need not be inside.
    pub(super) fn distance(&self, to: Address) -> Option<i64> {
        (to.of == self.at.of).then(|| to.plus.wrapping_sub(self.at.plus))
    }
}

/// What a register or a word of the context holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// Unknown, perhaps of the VMM: not to be used.
    Void,
    /// The guest's, or made of the guest's values.
    Guest(Address),
    Constant(u64),
    /// A guest value shifted left by so many bits, and one below `1 << bits`.
    Shifted(u64),
    Below(u64),
    /// Index of the TLB entry of an address.
    TlbIndex(Address),
    /// Tag of that entry.
    Tag(Address, bool),
    /// Tag plus address plus `last`.
    Sum(Address, bool, i64),
    /// Zero when the range may be accessed.
    Verdict(Range),
    /// Host address minus guest address in a range that may be accessed.
    Addend(Range),
    /// Host address, so many bytes into such a range.
    Host(Range, i64),
    /// Hash of a jump's target, and so on until its linear page.
    Hash(Address),
    JumpIndex(Address),
    JumpTag(Address),
    /// Zero when the jump entry is the target's.
    JumpVerdict(Address),
    JumpPage(Address),
    /// All bits of the sign of a value of 64 or else 32 bits, and its complement.
    Sign(Address, bool),
    NotSign(Address, bool),
    /// Zero when the second is the sign of the first.
    SignVerdict(Address, Address, bool),
    /// Address of the XSAVE area.
    VectorArea,
    /// Zero when the guest's vector registers are in the host's.
    VectorsMissing,
}

impl Value {
    /// Whether the guest may get to see it.
    pub(super) fn is_harmless(self) -> bool {
        matches!(self, Self::Guest(_) | Self::Constant(_) | Self::Shifted(_) | Self::Below(_))
    }

    /// The guest's value that it is.
    pub(super) fn address(self) -> Option<Address> {
        match self {
            Self::Guest(address) => Some(address),
            _ => None,
        }
    }

    /// It plus a constant, if it is of the guest.
    pub(super) fn plus(self, distance: i64) -> Option<Self> {
        let Address { of, plus } = self.address()?;
        Some(Self::Guest(Address { of, plus: plus.wrapping_add(distance) }))
    }
}

/// What has been found out about a division to come; each bit falls when RAX, RDX or R8 changes.
pub(super) mod divisor {
    /// R8 is not 0.
    pub(in crate::verify) const NOT_ZERO: u8 = 1;
    /// R8 is not -1.
    pub(in crate::verify) const NOT_MINUS_ONE: u8 = 2;
    /// RDX (with 64 bits) or EDX is below R8 or R8D.
    pub(in crate::verify) const ABOVE_64: u8 = 4;
    pub(in crate::verify) const ABOVE_32: u8 = 8;
    /// RDX or EDX is the sign of RAX or EAX.
    pub(in crate::verify) const SIGN_64: u8 = 16;
    pub(in crate::verify) const SIGN_32: u8 = 32;
}

/// What is known at a point of the code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    /// By host number; those of RSP and R15 are not looked at.
    pub(super) registers: [Value; 16],
    pub(super) slots: [Value; SLOTTED.len()],
    pub(super) words: [Value; WORDS],
    /// The check that has passed, and the jump entry that has been found.
    pub(super) passed: Option<Range>,
    pub(super) found: Option<Address>,
    /// The context's page is that of this target.
    pub(super) page: Option<Address>,
    /// The guest's vector registers are in the host's.
    pub(super) vectors: bool,
    /// The flags have been pushed.
    pub(super) pushed: bool,
    /// Facts of [`divisor`].
    pub(super) divisor: u8,
    /// The instruction before has compared RDX (true) or EDX with R8 or R8D.
    pub(super) compared: Option<bool>,
    /// The instruction before has loaded R15, and the context does not know yet.
    pub(super) tables_changed: bool,
}

/// Numbers the values of the guest.
#[derive(Default)]
pub(super) struct Numbers(u32);

impl Numbers {
    pub(super) fn fresh(&mut self) -> Value {
        self.0 += 1;
        Value::Guest(Address { of: self.0, plus: 0 })
    }
}

impl State {
    /// At a block's entry: guest registers hold what they like.
    pub(super) fn entry(numbers: &mut Numbers) -> Self {
        let mut state = Self {
            registers: std::array::from_fn(|_| numbers.fresh()),
            slots: std::array::from_fn(|_| numbers.fresh()),
            words: [Value::Void; WORDS],
            passed: None,
            found: None,
            page: None,
            vectors: false,
            pushed: false,
            divisor: 0,
            compared: None,
            tables_changed: false,
        };
        state.forget_scratch();
        state
    }

    /// Translated code is entered again: scratch registers hold something of the VMM.
    pub(super) fn forget_scratch(&mut self) {
        for register in SCRATCH {
            self.registers[register] = Value::Void;
        }
        (self.passed, self.found, self.page) = (None, None, None);
        (self.divisor, self.compared) = (0, None);
    }

    /// The value of a general register in its full width.
    pub(super) fn get(&self, register: Register) -> Value {
        self.registers[register.full_register().number()]
    }

    pub(super) fn set(&mut self, register: Register, value: Value) {
        let number = register.full_register().number();
        if matches!(number, 0 | 2 | 8) {
            self.divisor = 0;
        }
        self.registers[number] = value;
    }

    /// What is known where two ways meet.
    pub(super) fn meet(&mut self, other: &Self, numbers: &mut Numbers) {
        let mut one = |mine: &mut Value, theirs: &Value| {
            if mine != theirs {
                let harmless = mine.is_harmless() && theirs.is_harmless();
                *mine = if harmless { numbers.fresh() } else { Value::Void };
            }
        };
        self.registers.iter_mut().zip(&other.registers).for_each(|(a, b)| one(a, b));
        self.slots.iter_mut().zip(&other.slots).for_each(|(a, b)| one(a, b));
        self.words.iter_mut().zip(&other.words).for_each(|(a, b)| one(a, b));
        self.passed = self.passed.filter(|_| self.passed == other.passed);
        self.found = self.found.filter(|_| self.found == other.found);
        self.page = self.page.filter(|_| self.page == other.page);
        self.vectors &= other.vectors;
        self.divisor &= other.divisor;
        self.compared = self.compared.filter(|_| self.compared == other.compared);
    }
}
