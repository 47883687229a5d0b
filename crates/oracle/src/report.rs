//! Tells what differs, so that it can be understood and repeated.

use std::fmt;

use iced_x86::FastFormatter;

use crate::case::Case;
use crate::compare::{Difference, GPR_NAMES};
use crate::generate::decode_all;
use crate::image::CpuImage;

/// A case in which host CPU and subject differ.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Seed of the case.
    pub seed: u64,
    /// Number of the case.
    pub number: u64,
    /// The case, made as small as possible.
    pub case: Case,
    /// What differs.
    pub differences: Vec<Difference>,
}

impl Finding {
    /// The instructions' names, by which findings can be grouped.
    pub fn names(&self) -> String {
        let decoded = decode_all(&self.case);
        let names: Vec<String> = decoded.iter().map(|i| format!("{:?}", i.mnemonic())).collect();
        names.join(" ").to_lowercase()
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "ORACLE_SEED={:#x} ORACLE_CASE={}, made smaller:", self.seed, self.number)?;
        let mut formatter = FastFormatter::new();
        let mut at = 0;
        let code = self.case.code();
        for instruction in decode_all(&self.case) {
            let mut text = String::new();
            formatter.format(&instruction, &mut text);
            let bytes = &code[at..code.len().min(at + instruction.len())];
            at += instruction.len();
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x} ")).collect();
            writeln!(f, "  {:x}: {hex:<32} {text}", instruction.ip())?;
        }
        registers(f, &self.case.image)?;
        for (address, value) in &self.case.pokes {
            writeln!(f, "  [{address:#x}] = {value:#x}")?;
        }
        self.differences.iter().try_for_each(|difference| writeln!(f, "  -> {difference}"))
    }
}

/// The registers that are not as they are by default.
fn registers(f: &mut fmt::Formatter<'_>, image: &CpuImage) -> fmt::Result {
    write!(f, "  rflags={:#x}", image.rflags)?;
    for (name, value) in GPR_NAMES.iter().zip(image.gpr) {
        if value != 0 {
            write!(f, " {name}={value:#x}")?;
        }
    }
    writeln!(f)?;
    let plain = CpuImage::default();
    if image.xsave == plain.xsave {
        return Ok(());
    }
    write!(f, "  mxcsr={:#x} fcw={:#x} fsw={:#x}", image.mxcsr(), image.fcw(), image.fsw())?;
    write!(f, " ftw={:#x}", image.ftw())?;
    for index in 0..8 {
        let st = image.st(index);
        if st != [0; 10] {
            let hex: String = st.iter().rev().map(|byte| format!("{byte:02x}")).collect();
            write!(f, " st{index}={hex}")?;
        }
    }
    for index in 0..16 {
        let [low, high] = image.ymm(index);
        if (low, high) != (0, 0) {
            write!(f, "\n  ymm{index}={high:032x}:{low:032x}")?;
        }
    }
    writeln!(f)
}
