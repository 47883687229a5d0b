//! Random 32-bit code on the interpreter and on the translator: at its end the registers, the memory
//! and the fault are the same.
//!
//! For 64-bit code there is more: the native oracle (crate `oracle`), which has the host CPU for a
//! judge. What 32-bit code adds to it, addresses and stack slots of 32 bits, segments, and the upper
//! halves of registers, the interpreter judges well enough.
//! The code does not change itself: whether a repeated instruction notices is up to the CPU.
//! `HOSTILE_CASES` and `HOSTILE_SEED` as in [`crate::hostile`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use engine::{Vcpu, VcpuConfig, VcpuExit, VcpuState};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};
use interpreter::InterpreterVcpu;
use memory::{Gpa, GuestRam};
use x86::cr::rflags::{AF, OF, PF, SF};

use crate::dump::profile;
use crate::hostile::{
    BEHIND_CODE, BUS, CODE, EndGuard, Kind, PAGES, Prison, Random, append_code, number,
};

/// Flags that instructions leave undefined and whose values differ; the interpreter has ZF and CF as
/// the hosts have them.
const UNDEFINED: u64 = OF | AF | PF | SF;
const INT3: u8 = 0xcc;
/// Where the page tables are, and their entries' accessed bit.
const TABLES: std::ops::Range<usize> = 0x1000..0x6000;
const ACCESSED: u8 = 1 << 5;
const SIZE: usize = (PAGES * 4096) as usize;

/// The same machine with another engine.
struct Reference {
    vcpu: InterpreterVcpu,
    ram: Arc<GuestRam>,
}

impl Reference {
    fn new() -> Self {
        let ram = Arc::new(GuestRam::new(&[(0, PAGES * 4096)]).unwrap());
        let config = VcpuConfig::alone(Arc::new(profile().unwrap()), Arc::clone(&ram));
        Self { vcpu: InterpreterVcpu::new(config).unwrap(), ram }
    }
}

/// What is left of a case.
struct Outcome {
    exit: VcpuExit,
    state: VcpuState,
    ram: Vec<u8>,
}

fn outcome(vcpu: &mut dyn Vcpu, ram: &GuestRam, from: &VcpuState) -> Outcome {
    vcpu.restore(from, &BUS).unwrap();
    let exit = vcpu.run(&BUS).unwrap();
    let state = vcpu.save(&BUS).unwrap();
    Outcome { exit, state, ram: content(ram) }
}

fn content(ram: &GuestRam) -> Vec<u8> {
    let mut content = vec![0; SIZE];
    ram.read(Gpa(0), &mut content).unwrap();
    content
}

/// Whether the instruction's effect shows only what is defined, and the same each time.
fn is_judged(i: &Instruction) -> bool {
    let varies = matches!(
        i.mnemonic(),
        Mnemonic::Rdtsc | Mnemonic::Rdtscp | Mnemonic::Rdrand | Mnemonic::Rdseed | Mnemonic::Hlt
    );
    let reads = u64::from(i.rflags_read());
    let undefined = iced_x86::RflagsBits::OF
        | iced_x86::RflagsBits::AF
        | iced_x86::RflagsBits::PF
        | iced_x86::RflagsBits::SF;
    !varies && reads & u64::from(undefined) == 0
}

/// Some instructions, then INT3 to the end of two pages; they begin at the offset that this gives.
fn code(random: &mut Random) -> (Vec<u8>, u64) {
    let mut page: Vec<u8> = vec![INT3; 8192];
    let begin = random.pick(&[0, 100, 4060, 4080]);
    let mut at = begin;
    for _ in 0..1 + random.below(12) {
        let mut bytes = Vec::new();
        append_code(random, &mut bytes, 1, Kind::Protected);
        let instruction = Decoder::new(32, &bytes, DecoderOptions::NONE).decode();
        if is_judged(&instruction) {
            page[at..at + bytes.len()].copy_from_slice(&bytes);
            at += bytes.len();
        }
    }
    (page, begin as u64)
}

fn compare(case: u64, mine: &Outcome, theirs: &Outcome, code: &[u8]) {
    let told = || {
        let decoder = Decoder::with_ip(32, code, CODE, DecoderOptions::NONE);
        let lines = decoder.into_iter().take(14).map(|i| format!("{:x} {i}\n", i.ip()));
        format!("case {case}\n{}", lines.collect::<String>())
    };
    assert_eq!(mine.exit, theirs.exit, "{}", told());
    let (a, b) = (&mine.state, &theirs.state);
    assert_eq!(a.general.gpr, b.general.gpr, "{}", told());
    assert_eq!(a.general.rip, b.general.rip, "{}", told());
    let (one, other) = (a.general.rflags & !UNDEFINED, b.general.rflags & !UNDEFINED);
    assert_eq!(one, other, "flags; {}", told());
    assert_eq!(a.segments, b.segments, "{}", told());
    assert_eq!(a.control, b.control, "{}", told());
    assert!(a.xsave == b.xsave, "extended state; {}", told());
    // A fetch that turns out not to be needed may mark a page accessed (SDM vol. 3A 4.8).
    let ignored =
        |at: usize| if TABLES.contains(&at) && at.is_multiple_of(8) { ACCESSED } else { 0 };
    let mut bytes = mine.ram.iter().zip(&theirs.ram).enumerate();
    let differs = bytes.position(|(at, (a, b))| (a ^ b) & !ignored(at) != 0);
    assert_eq!(differs, None, "memory; {}", told());
}

#[test]
fn random_32_bit_code_does_what_it_does_on_the_interpreter() {
    let mut random = Random::new("32-bit code");
    let mut prison = Prison::new();
    let mut reference = Reference::new();
    let kickers = [prison.vcpu.kicker(), reference.vcpu.kicker()];
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // A case may loop for ever.
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(50));
                kickers.iter().for_each(|kicker| kicker.kick());
            }
        });
        let end = EndGuard(&ended);
        let count = number("HOSTILE_CASES", 4000);
        let mut compared = 0;
        for case in 0..count {
            let kind = random.pick(&[Kind::Compatibility, Kind::Protected]);
            let (code, begin) = code(&mut random);
            let data: Vec<u8> = (0..SIZE / 8).flat_map(|_| random.next().to_le_bytes()).collect();
            prison.ram.write(Gpa(0), &data).unwrap();
            prison.ram.write(Gpa(CODE), &code).unwrap();
            prison.map(&mut random, BEHIND_CODE);
            reference.ram.write(Gpa(0), &content(&prison.ram)).unwrap();
            let mut state = prison.state(&mut random, kind);
            state.general.rip = CODE + begin;
            let theirs = outcome(&mut reference.vcpu, &reference.ram, &state);
            let mine = outcome(&mut prison.vcpu, &prison.ram, &state);
            if mine.exit != VcpuExit::Paused && theirs.exit != VcpuExit::Paused {
                compare(case, &mine, &theirs, &code[begin as usize..]);
                compared += 1;
            }
        }
        assert!(compared > count / 10 * 9, "{compared} of {count} cases came to an end");
        prison.has_filled_tables(count);
        drop(end);
    });
}
