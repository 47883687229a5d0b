//! What is executed, and what came of it.

use std::sync::OnceLock;

use x86::exception::vector;

use crate::image::CpuImage;
use crate::layout::{MEMORY, PAGE, PAGES, offset_of};
use crate::random::Random;

/// INT3: what code pages hold around the instructions. Executing it ends a case.
pub const FILL: u8 = 0xcc;

/// A sequence of instructions with the registers and the memory that it starts from.
#[derive(Clone, Debug)]
pub struct Case {
    /// The instructions, one after the other from [`CpuImage::rip`].
    pub instructions: Vec<Vec<u8>>,
    /// Registers at the start.
    pub image: CpuImage,
    /// Which of the prepared pages each page of data starts as, and the page of code that may be
    /// written around its code.
    pub contents: [u16; PAGES],
    /// Quadwords that are stored afterwards, by linear address.
    pub pokes: Vec<(u64, u64)>,
}

/// Memory of a case: the pages of [`crate::layout::MAP`].
pub type Memory = [u8; MEMORY];

impl Case {
    /// All instruction bytes.
    pub fn code(&self) -> Vec<u8> {
        self.instructions.concat()
    }

    /// Writes the memory at the start of the case into `memory`.
    pub fn fill(&self, memory: &mut Memory) {
        const PAGE_BYTES: usize = PAGE as usize;
        memory[..3 * PAGE_BYTES].fill(FILL);
        let pool = prepared_pages();
        for (index, chunk) in memory.chunks_exact_mut(PAGE_BYTES).enumerate().skip(3) {
            chunk.copy_from_slice(&pool[usize::from(self.contents[index]) % pool.len()]);
        }
        for &(address, value) in &self.pokes {
            self.store(memory, address, &value.to_le_bytes());
        }
        let mut at = self.image.rip;
        for bytes in &self.instructions {
            self.store(memory, at, bytes);
            at += bytes.len() as u64;
        }
    }

    /// Stores the bytes that lie in mapped pages.
    fn store(&self, memory: &mut Memory, address: u64, bytes: &[u8]) {
        for (at, byte) in bytes.iter().enumerate() {
            if let Some(offset) = offset_of(address.wrapping_add(at as u64)) {
                memory[offset] = *byte;
            }
        }
    }
}

/// Number of prepared pages.
pub(crate) const POOL: u16 = 64;

type PageBytes = [u8; PAGE as usize];

/// Pages of interesting values from which the data of cases is chosen.
fn prepared_pages() -> &'static [PageBytes] {
    static PAGES: OnceLock<Vec<PageBytes>> = OnceLock::new();
    PAGES.get_or_init(|| {
        (0..POOL)
            .map(|index| {
                let mut random = Random::new(0x6f72_6163_6c65, u64::from(index));
                let mut page = [0; PAGE as usize];
                for word in page.chunks_exact_mut(16) {
                    let value = crate::values::vector_lane(&mut random);
                    word.copy_from_slice(&value.to_le_bytes());
                }
                page
            })
            .collect()
    })
}

/// An exception that ended a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Vector, 0 to 31.
    pub vector: u8,
    /// Error code; zero for vectors without one.
    pub error_code: u32,
    /// CR2, for #PF; else zero.
    pub address: u64,
}

impl Fault {
    /// Whether this is the INT3 that ends a case as planned, or one of the sequence itself.
    pub fn is_breakpoint(&self) -> bool {
        self.vector == vector::BP
    }
}

/// How a case ended. Every case ends in an exception, if only in that of an INT3 after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Registers when the exception was delivered; RIP and RFLAGS as pushed.
    pub image: CpuImage,
    /// The exception.
    pub fault: Fault,
    /// Memory.
    pub memory: Box<Memory>,
}
