//! Gathers and masked moves: which elements they access.
//!
//! Each element may fault on its own and masked-out elements must not fault,
//! so the caller does the accesses one by one, by rising number (Intel SDM
//! vol. 2C, VGATHERDPS and VPMASKMOV; vol. 2B, MASKMOVDQU). If one faults, it
//! drops the plan: a gather keeps what it has loaded and restarts behind it,
//! the others have changed no register.
//!
//! ```
//! use hostexec::FpuState;
//! use hostexec::elements::ElementPlan;
//! use iced_x86::{Decoder, DecoderOptions};
//!
//! // vpmaskmovd xmm1, xmm2, [rax]
//! let bytes = [0xc4, 0xe2, 0x69, 0x8c, 0x08];
//! let instruction = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
//! let mut state = FpuState::new();
//! state.set_xmm(2, 0x80000000 << 32); // element 1
//! let operand_address = 0x1000_u64;
//!
//! let mut plan = ElementPlan::new(&instruction, &state).expect("a masked move");
//! for i in 0..plan.len() {
//!     if plan.is_active(i) {
//!         let address = operand_address.wrapping_add_signed(plan.offset(i));
//!         assert_eq!((address, plan.element_size()), (0x1004, 4));
//!         plan.load(&mut state, i, 77); // what is at the address
//!     }
//! }
//! plan.finish(&mut state);
//! assert_eq!(state.xmm(1), 77 << 32);
//! ```

use iced_x86::{Instruction, Mnemonic, Register};

use crate::state::bytes_at;
use crate::{FpuState, Unit};

/// The elements of one gather or masked move.
#[derive(Clone, Debug)]
pub struct ElementPlan {
    kind: Kind,
    element_size: usize,
    len: usize,
    /// Bit i: element i is accessed.
    active: u32,
    /// Distances of the elements from the operand's address. Only gathers,
    /// which have at most eight, need them.
    offsets: [i64; 8],
    /// Data to store, or loaded so far.
    data: [u8; 32],
    unit: Unit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Into `destination`; elements of `mask` are cleared as they are done.
    Gather {
        destination: usize,
        mask: usize,
        mask_bytes: usize,
    },
    /// Into `destination`, at the end.
    Load {
        destination: usize,
    },
    Store,
}

impl ElementPlan {
    /// Whether an instruction is one of VGATHER*, VPGATHER*, VMASKMOV*,
    /// VPMASKMOV*, MASKMOVDQU, VMASKMOVDQU and MASKMOVQ. The first four belong
    /// to AVX2 but for VMASKMOVPS and VMASKMOVPD, which belong to AVX.
    #[must_use]
    pub fn handles(instruction: &Instruction) -> bool {
        Shape::of(instruction).is_some()
    }

    /// The plan for one execution; `None` if [`ElementPlan::handles`] is false.
    #[must_use]
    pub fn new(instruction: &Instruction, state: &FpuState) -> Option<Self> {
        Some(match Shape::of(instruction)? {
            Shape::Gather { index_size, element_size } => {
                Self::gather(instruction, state, index_size, element_size)
            }
            Shape::Masked { element_size } => Self::masked(instruction, state, element_size),
            Shape::Bytes => Self::bytes(instruction, state),
        })
    }

    fn gather(
        instruction: &Instruction,
        state: &FpuState,
        index_size: usize,
        element_size: usize,
    ) -> Self {
        let destination = instruction.op_register(0);
        let mask = instruction.op_register(2);
        let index = instruction.memory_index();
        let len = (destination.size() / element_size).min(index.size() / index_size);
        let indices = state.ymm(index.number());
        let scale = i64::from(instruction.memory_index_scale());
        let mut offsets = [0; 8];
        for (i, offset) in offsets.iter_mut().enumerate().take(len) {
            let value = if index_size == 4 {
                i64::from(i32::from_le_bytes(bytes_at(&indices, 4 * i)))
            } else {
                i64::from_le_bytes(bytes_at(&indices, 8 * i))
            };
            *offset = value.wrapping_mul(scale);
        }
        Self {
            kind: Kind::Gather {
                destination: destination.number(),
                mask: mask.number(),
                mask_bytes: len * element_size,
            },
            element_size,
            len,
            active: active_elements(&state.ymm(mask.number()), element_size, len),
            offsets,
            data: state.ymm(destination.number()),
            unit: Unit::Avx,
        }
    }

    fn masked(instruction: &Instruction, state: &FpuState, element_size: usize) -> Self {
        let mask = instruction.op_register(1);
        let len = mask.size() / element_size;
        // The memory operand is the other one.
        let destination = instruction.op_register(0);
        let (kind, data) = if destination == Register::None {
            (Kind::Store, state.ymm(instruction.op_register(2).number()))
        } else {
            (Kind::Load { destination: destination.number() }, [0; 32])
        };
        let active = active_elements(&state.ymm(mask.number()), element_size, len);
        Self { kind, element_size, len, active, offsets: [0; 8], data, unit: Unit::Avx }
    }

    fn bytes(instruction: &Instruction, state: &FpuState) -> Self {
        let registers = [instruction.op_register(1), instruction.op_register(2)];
        let [data, mask] = registers.map(|register| {
            if register.is_mm() {
                let mut wide = [0; 32];
                wide[..8].copy_from_slice(&state.mm(register.number()).to_le_bytes());
                wide
            } else {
                state.ymm(register.number())
            }
        });
        let unit = match instruction.mnemonic() {
            Mnemonic::Maskmovq => Unit::Mmx,
            Mnemonic::Maskmovdqu => Unit::Sse,
            _ => Unit::Avx,
        };
        let len = registers[0].size();
        let active = active_elements(&mask, 1, len);
        Self { kind: Kind::Store, element_size: 1, len, active, offsets: [0; 8], data, unit }
    }

    /// Which enable bits the instruction is subject to. [`Unit::Mmx`] waits for
    /// x87 exceptions.
    #[must_use]
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// Number of elements: 1 to 16.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes of an element: 1, 4 or 8.
    #[must_use]
    pub fn element_size(&self) -> usize {
        self.element_size
    }

    /// Whether elements are stored, with [`ElementPlan::store_value`]; else
    /// they are loaded, with [`ElementPlan::load`].
    #[must_use]
    pub fn is_store(&self) -> bool {
        self.kind == Kind::Store
    }

    /// Whether it is a gather: it may end between two elements, and goes on with those left.
    #[must_use]
    pub fn is_gather(&self) -> bool {
        matches!(self.kind, Kind::Gather { .. })
    }

    /// Whether element `i` is accessed.
    #[must_use]
    pub fn is_active(&self, i: usize) -> bool {
        i < self.len && self.active >> i & 1 == 1
    }

    /// Distance of element `i` from the address of the memory operand without
    /// its vector index (base plus displacement; for MASKMOVDQU, RDI). The sum
    /// wraps at the address size.
    #[must_use]
    pub fn offset(&self, i: usize) -> i64 {
        match self.kind {
            Kind::Gather { .. } => self.offsets[i],
            Kind::Load { .. } | Kind::Store => (i * self.element_size) as i64,
        }
    }

    /// Value of element `i` to store, in the low bytes.
    #[must_use]
    pub fn store_value(&self, i: usize) -> u64 {
        let mut value = [0; 8];
        let start = i * self.element_size;
        value[..self.element_size].copy_from_slice(&self.data[start..start + self.element_size]);
        u64::from_le_bytes(value)
    }

    /// Takes loaded element `i`, in the low bytes of `value`.
    pub fn load(&mut self, state: &mut FpuState, i: usize, value: u64) {
        let range = i * self.element_size..(i + 1) * self.element_size;
        self.data[range.clone()].copy_from_slice(&value.to_le_bytes()[..self.element_size]);
        if let Kind::Gather { destination, mask, .. } = self.kind {
            let mut register = state.ymm(destination);
            register[range.clone()].copy_from_slice(&self.data[range.clone()]);
            state.set_ymm(destination, &register);
            let mut register = state.ymm(mask);
            register[range].fill(0);
            state.set_ymm(mask, &register);
        }
    }

    /// Completes the instruction when all active elements are done.
    pub fn finish(mut self, state: &mut FpuState) {
        match self.kind {
            Kind::Gather { destination, mask, mask_bytes } => {
                self.data[mask_bytes..].fill(0);
                state.set_ymm(destination, &self.data);
                state.set_ymm(mask, &[0; 32]);
            }
            Kind::Load { destination } => state.set_ymm(destination, &self.data),
            Kind::Store if self.unit == Unit::Mmx => state.begin_mmx(),
            Kind::Store => {}
        }
    }
}

/// Kinds of instructions, with sizes in bytes.
enum Shape {
    Gather { index_size: usize, element_size: usize },
    Masked { element_size: usize },
    Bytes,
}

impl Shape {
    fn of(instruction: &Instruction) -> Option<Self> {
        if instruction.encoding() == iced_x86::EncodingKind::EVEX {
            return None;
        }
        Some(match instruction.mnemonic() {
            Mnemonic::Vgatherdps | Mnemonic::Vpgatherdd => {
                Self::Gather { index_size: 4, element_size: 4 }
            }
            Mnemonic::Vgatherdpd | Mnemonic::Vpgatherdq => {
                Self::Gather { index_size: 4, element_size: 8 }
            }
            Mnemonic::Vgatherqps | Mnemonic::Vpgatherqd => {
                Self::Gather { index_size: 8, element_size: 4 }
            }
            Mnemonic::Vgatherqpd | Mnemonic::Vpgatherqq => {
                Self::Gather { index_size: 8, element_size: 8 }
            }
            Mnemonic::Vmaskmovps | Mnemonic::Vpmaskmovd => Self::Masked { element_size: 4 },
            Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovq => Self::Masked { element_size: 8 },
            Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu | Mnemonic::Maskmovq => Self::Bytes,
            _ => return None,
        })
    }
}

/// Elements whose most significant mask bit is set.
fn active_elements(mask: &[u8; 32], element_size: usize, len: usize) -> u32 {
    (0..len).fold(0, |active, i| active | u32::from(mask[(i + 1) * element_size - 1] >> 7) << i)
}
