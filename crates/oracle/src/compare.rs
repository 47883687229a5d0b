//! Compares what two CPUs made of a case.
//!
//! Everything counts but what the architecture leaves undefined, or the host kernel hides:
//! - flags that the executed instructions leave undefined ([`crate::flags`]);
//! - what is the maker's choice when an instruction faults ([`crate::leeway`]);
//! - bit 0 (present) of the error code of a page fault above the user half: the kernel always sets
//!   it, so that programs cannot probe its page tables;
//! - x87 pointers, on hosts that keep them otherwise than the guest's CPU ([`choices`]).

use std::fmt;

use x86::cr::rflags;
use x86::exception::{pf, vector};

use crate::case::{Case, Fault, Memory, Observation};
use crate::flags::UndefinedFlags;
use crate::image::CpuImage;
use crate::layout::address_of;
use crate::leeway;
use crate::native::choices;

/// One register, or other part of an observation, that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What differs.
    pub part: String,
    /// Its value on the host CPU.
    pub native: String,
    /// Its value on the subject.
    pub subject: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<9} native {}  subject {}", self.part, self.native, self.subject)
    }
}

/// Where user addresses end, as the kernel sees it.
const USER_END: u64 = 0x0000_7fff_ffff_f000;
/// Most differences of memory that are told.
const MEMORY_LIMIT: usize = 6;

/// Names of the general registers in encoding order.
pub const GPR_NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// What differs between the host CPU and a subject; nothing when they agree.
pub fn compare(case: &Case, native: &Observation, subject: &Observation) -> Vec<Difference> {
    let differences = compare_strictly(case, native, subject);
    if differences.is_empty() {
        return differences;
    }
    let (mut native, mut subject) = (native.clone(), subject.clone());
    leeway::forgive(case, &mut native, &mut subject);
    compare_strictly(case, &native, &subject)
}

fn compare_strictly(case: &Case, native: &Observation, subject: &Observation) -> Vec<Difference> {
    let mut found = Found(Vec::new());
    if visible(native.fault) != visible(subject.fault) {
        found.add("fault", describe(native.fault), describe(subject.fault));
    }
    found.hex("rip", native.image.rip, subject.image.rip);
    found.flags(case, native, subject);
    let pairs = native.image.gpr.iter().zip(&subject.image.gpr);
    for (name, (theirs, ours)) in GPR_NAMES.iter().zip(pairs) {
        found.hex(name, *theirs, *ours);
    }
    found.hex("fs base", native.image.bases[0], subject.image.bases[0]);
    found.hex("gs base", native.image.bases[1], subject.image.bases[1]);
    if native.image.xsave != subject.image.xsave {
        found.extended(&native.image, &subject.image);
    }
    if native.memory != subject.memory {
        found.memory(&native.memory, &subject.memory);
    }
    found.0
}

/// The fault as the host kernel lets it be seen.
fn visible(fault: Fault) -> Fault {
    let hidden = fault.vector == vector::PF && fault.address >= USER_END;
    let error_code = if hidden { fault.error_code | pf::PRESENT } else { fault.error_code };
    Fault { error_code, ..fault }
}

fn describe(fault: Fault) -> String {
    match fault.vector {
        vector::PF => format!("#PF({:#x}) at {:#x}", fault.error_code, fault.address),
        vector::GP | vector::SS => format!("vector {}({:#x})", fault.vector, fault.error_code),
        _ => format!("vector {}", fault.vector),
    }
}

/// Reads a register.
type Word = fn(&CpuImage) -> u64;

struct Found(Vec<Difference>);

impl Found {
    fn add(&mut self, part: &str, native: String, subject: String) {
        self.0.push(Difference { part: part.to_owned(), native, subject });
    }

    fn hex(&mut self, part: &str, native: u64, subject: u64) {
        if native != subject {
            self.add(part, format!("{native:#x}"), format!("{subject:#x}"));
        }
    }

    fn flags(&mut self, case: &Case, native: &Observation, subject: &Observation) {
        let differing = native.image.rflags ^ subject.image.rflags;
        if differing == 0 {
            return;
        }
        // An INT3 has been executed when it traps: the flags are those before it.
        let executed = u64::from(native.fault.is_breakpoint());
        let at = native.image.rip.wrapping_sub(executed);
        let undefined = UndefinedFlags::follow(&case.code(), case.image.rip);
        let undefined = undefined.map_or(0, |flags| flags.at(at));
        let mask = !(undefined & rflags::ARITHMETIC);
        self.hex("rflags", native.image.rflags & mask, subject.image.rflags & mask);
    }

    fn extended(&mut self, native: &CpuImage, subject: &CpuImage) {
        let words: [(&str, Word); 7] = [
            ("mxcsr", |i| i.mxcsr().into()),
            ("fcw", |i| i.fcw().into()),
            ("fsw", |i| i.fsw().into()),
            ("ftw", |i| i.ftw().into()),
            ("fop", |i| i.fop().into()),
            ("fip", CpuImage::fip),
            ("fdp", CpuImage::fdp),
        ];
        let pointers = choices().x87_pointers;
        for (name, read) in words.into_iter().filter(|(n, _)| pointers || !is_pointer(n)) {
            self.hex(name, read(native), read(subject));
        }
        for index in 0..8 {
            let [theirs, ours] = [native.st(index), subject.st(index)].map(hex_of);
            if theirs != ours {
                self.add(&format!("st{index}"), theirs, ours);
            }
        }
        for index in 0..16 {
            let [theirs, ours] = [native.ymm(index), subject.ymm(index)];
            if theirs != ours {
                let text = |y: [u128; 2]| format!("{:032x}:{:032x}", y[1], y[0]);
                self.add(&format!("ymm{index}"), text(theirs), text(ours));
            }
        }
    }

    fn memory(&mut self, native: &Memory, subject: &Memory) {
        let words = native.chunks_exact(8).zip(subject.chunks_exact(8)).enumerate();
        let differing = words.filter(|(_, (theirs, ours))| theirs != ours);
        for (index, (theirs, ours)) in differing.take(MEMORY_LIMIT) {
            let part = format!("[{:#x}]", address_of(index * 8));
            self.add(&part, hex_of(theirs), hex_of(ours));
        }
    }
}

fn is_pointer(name: &str) -> bool {
    matches!(name, "fop" | "fip" | "fdp")
}

/// Little-endian bytes as a number.
fn hex_of(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().rev().map(|byte| format!("{byte:02x}")).collect()
}
