//! Makes cases.
//!
//! An instruction form is drawn from the decoder's own table (`table`), its operands are chosen by
//! their kinds (`operands`), registers and memory are then arranged so that operands lie where it
//! is interesting (`registers`, `arrange`), and the encoder writes the bytes. Some cases are random
//! bytes instead (`garbage`), a few save or restore extended state (`extended`). A case that could
//! execute an instruction that cannot be compared, or that reads undefined flags, is thrown away
//! and another one is made.

mod arrange;
mod extended;
mod garbage;
mod operands;
mod registers;
mod table;

use iced_x86::{Encoder, Instruction, Mnemonic};

use x86::gpr;

use crate::case::{Case, POOL};
use crate::flags::UndefinedFlags;
use crate::image::CpuImage;
use crate::layout::{HIGH, LOW, PAGE, PAGES, page};
use crate::leeway;
use crate::policy;
use crate::random::Random;

/// Makes cases from a seed.
#[derive(Clone, Debug)]
pub struct Generator {
    seed: u64,
    only: Option<Mnemonic>,
}

impl Generator {
    /// A generator of all instructions.
    pub fn new(seed: u64) -> Self {
        Self { seed, only: None }
    }

    /// Restricts the generator to sequences that contain `mnemonic`. `None` when no comparable
    /// instruction has it.
    pub fn only(self, mnemonic: Mnemonic) -> Option<Self> {
        table::has(mnemonic).then_some(Self { only: Some(mnemonic), ..self })
    }

    /// The case with this number. Cases can be made in any order.
    pub fn case(&self, number: u64) -> Case {
        let mut random = Random::new(self.seed, number);
        loop {
            let case = Builder::new(&mut random, self.only).build();
            if let Some(case) = case.filter(is_comparable) {
                return case;
            }
        }
    }
}

/// Whether nothing in the case can make two correct CPUs differ.
pub(crate) fn is_comparable(case: &Case) -> bool {
    let code = case.code();
    !code.is_empty()
        && policy::allows_bytes(&code, case.image.gpr[gpr::RCX])
        && UndefinedFlags::follow(&code, case.image.rip).is_some()
        && !copies_between_windows(case)
        && !repeats_over_itself(case)
        && !uses_after_narrow_repetition(case)
        && (!policy::saves_extended_state(&code) || extended::is_in_use(&case.image))
}

/// Whether a repeated MOVS could overlap itself by way of the other window: the CPU may then copy
/// in pieces of any size, because the linear addresses do not overlap.
fn copies_between_windows(case: &Case) -> bool {
    let [source, target] = [gpr::RSI, gpr::RDI].map(|register| case.image.gpr[register]);
    let other = |address: u64| address.wrapping_sub(LOW).wrapping_add(HIGH);
    let near = |a: u64, b: u64| a.abs_diff(b) < 2 * PAGE;
    let aliased = near(other(source), target) || near(source, other(target));
    aliased && decode_all(case).iter().any(|i| i.has_rep_prefix() && is_copy(i.mnemonic()))
}

/// Whether a repeated string instruction could overwrite itself: when that takes effect depends on
/// how many bytes the CPU stores at a time.
fn repeats_over_itself(case: &Case) -> bool {
    let in_page = |base: u64| (case.image.rip.wrapping_sub(base) / PAGE) == page::PATCHABLE;
    let repeats = |i: &Instruction| i.has_rep_prefix() && i.code().is_string_instruction();
    (in_page(LOW) || in_page(HIGH)) && decode_all(case).iter().any(repeats)
}

/// Whether anything could use the registers of a repeated string instruction with 32-bit addresses
/// afterwards: whether it clears their upper halves when it makes no iteration is the maker's
/// choice.
fn uses_after_narrow_repetition(case: &Case) -> bool {
    let instructions = decode_all(case);
    let before_last = instructions.split_last().map_or(&[][..], |(_, before)| before);
    let repeats = |i: &Instruction| {
        (i.has_rep_prefix() || i.has_repne_prefix()) && leeway::is_narrow_string(i)
    };
    before_last.iter().any(repeats)
        || instructions.iter().any(repeats) && instructions.iter().any(policy::is_branch)
}

fn is_copy(mnemonic: Mnemonic) -> bool {
    matches!(mnemonic, Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq)
}

/// The instructions of a case, decoded one after the other.
pub fn decode_all(case: &Case) -> Vec<Instruction> {
    policy::decode_all(&case.code(), case.image.rip)
}

/// Puts one case together.
struct Builder<'a> {
    random: &'a mut Random,
    only: Option<Mnemonic>,
    image: CpuImage,
    /// General registers whose value an earlier instruction relies on.
    pinned: u16,
    pokes: Vec<(u64, u64)>,
    instructions: Vec<Vec<u8>>,
    /// Address of the next instruction.
    at: u64,
    encoder: Encoder,
}

impl<'a> Builder<'a> {
    fn new(random: &'a mut Random, only: Option<Mnemonic>) -> Self {
        let mut image = registers::image(random);
        let at = entry(random);
        image.rip = at;
        Self {
            random,
            only,
            image,
            pinned: 1 << gpr::RSP,
            pokes: Vec::new(),
            instructions: Vec::new(),
            at,
            encoder: Encoder::new(64),
        }
    }

    fn build(mut self) -> Option<Case> {
        let free = self.only.is_none();
        if free && self.random.percent(8) {
            self.instructions = garbage::instructions(self.random);
        } else if free && self.random.one_in(100) {
            self.append_extended_state();
        } else {
            let count = [1, 1, 1, 1, 1, 1, 2, 2, 3, 3, 4, 6][self.random.below(12) as usize];
            let chosen = self.random.below(count);
            for index in 0..count {
                let only = self.only.filter(|_| index == chosen);
                self.append(only)?;
            }
        }
        let contents = std::array::from_fn(|index| match index {
            // Code pages hold nothing but code.
            0..3 => 0,
            _ => self.random.below(u64::from(POOL)) as u16,
        });
        let contents: [u16; PAGES] = contents;
        Some(Case {
            instructions: self.instructions,
            image: self.image,
            contents,
            pokes: self.pokes,
        })
    }

    /// Adds an instruction. `None` when its operands cannot be encoded together.
    fn append(&mut self, only: Option<Mnemonic>) -> Option<()> {
        let code = table::pick(self.random, only);
        let instruction = self.instruction(code)?;
        let mut bytes = self.encode(&instruction)?;
        self.prepend_prefixes(&mut bytes);
        self.at += bytes.len() as u64;
        self.instructions.push(bytes);
        Some(())
    }

    fn encode(&mut self, instruction: &Instruction) -> Option<Vec<u8>> {
        let encoded = self.encoder.encode(instruction, self.at);
        let bytes = self.encoder.take_buffer();
        encoded.ok().map(|_| bytes)
    }

    /// Rarely puts prefixes in front that mean nothing, something else, or too much.
    fn prepend_prefixes(&mut self, bytes: &mut Vec<u8>) {
        const PREFIXES: [u8; 17] = [
            0x66, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0x67, 0xf0, 0x40, 0x41, 0x44,
            0x48, 0x4a, 0x4f,
        ];
        if !self.random.one_in(24) {
            return;
        }
        if self.random.one_in(12) {
            // Up to and beyond the longest instruction.
            while bytes.len() < 14 + self.random.below(3) as usize {
                bytes.insert(0, 0x66);
            }
            return;
        }
        for _ in 0..=self.random.below(2) {
            bytes.insert(0, self.random.pick(&PREFIXES));
        }
    }
}

/// Where the code starts: inside the code pages, across their border, against the unmapped page
/// after them, or on the page that the code itself may write.
fn entry(random: &mut Random) -> u64 {
    let base = if random.percent(75) { HIGH } else { LOW };
    let at = |number: u64| base + number * PAGE;
    match random.below(32) {
        0..=3 => at(page::CODE + 1) - random.below(20),
        4..=6 => at(page::CODE + 2) - 1 - random.below(24),
        7..=9 => at(page::PATCHABLE) + 0x400 + random.below(0x800),
        _ => at(page::CODE) + 0x200 + random.below(0xc00),
    }
}
