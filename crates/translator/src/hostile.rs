//! Tests that run translated code which is out to do harm, and look for traces outside guest RAM.
//!
//! The pieces that every access goes through, the check and the search for a jump's target, are run
//! on tables of any content, and compared with what the tests of [`crate::tables`] compute. Then
//! whole vCPUs run random code with random registers, also while somebody changes the code, as
//! devices do: everything around guest RAM that can be looked at stays as it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use device::{Answer, StopCause};
use dynasmrt::{DynasmApi, dynasm};
use engine::testing::EmptyBus;
use engine::{Vcpu, VcpuConfig, VcpuExit, VcpuState};
use iced_x86::{Decoder, DecoderOptions, Instruction};
use interpreter::AccessMode;
use memory::{Gpa, GuestRam};
use x86::cr::{cr0, cr4, efer, xcr0};
use x86::segment::{Segment, seg};

use crate::allow::Access;
use crate::cache::CodeCache;
use crate::context::{Frame, JUMP_ENTRIES, TABLES_BIAS, TLB_ENTRIES, Tables, jump_index};
use crate::dump::profile;
use crate::emit::{Emitter, R8, R9};
use crate::enter;
use crate::glue::{Exit, Glue};
use crate::mode::{CodeMode, Mode};
use crate::records::{Checked, Sharing};
use crate::translate::MAX_BLOCK_BYTES;
use crate::{Options, TranslatorVcpu};

/// Numbers from a seed, which is printed: xorshift (Marsaglia 2003).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(name: &str) -> Self {
        let seed = number("HOSTILE_SEED", 1);
        eprintln!("{name}: HOSTILE_SEED={seed}");
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

pub(crate) fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |text| text.parse().expect("a number"))
}

/// Runs single pieces of code on tables of one's own.
struct Piece {
    cache: CodeCache,
    glue: Glue,
    frame: Box<Frame>,
}

impl Piece {
    fn new() -> Self {
        let mut cache = CodeCache::new(2 * MAX_BLOCK_BYTES).unwrap();
        let glue = Glue::emit(&mut cache);
        Self { cache, glue, frame: Box::new(Frame::new()) }
    }

    /// Puts code into the cache that has R8 from guest RAX, and leaves R9 in guest RDX.
    fn make(&mut self, emit: impl FnOnce(&mut Emitter)) -> u64 {
        let mode = CodeMode { user: true, bits32: false };
        let mut emitter = Emitter::new(self.glue, self.cache.next(), 0, mode);
        emitter.begin(&Instruction::default(), 0);
        emitter.load_guest(R8, 0);
        emit(&mut emitter);
        emitter.store_guest(2, R9);
        emitter.interpret();
        emitter.no_resume();
        let (host, _) = emitter.finish(1);
        self.cache.append(&host)
    }

    /// R9 afterwards, unless the code left by `exit`.
    fn run(&mut self, code: u64, tables: &mut Tables, rax: u64, exit: Exit) -> Option<u64> {
        let context = &mut self.frame.context;
        context.set_general(&[rax; 16]);
        context.flags = x86::cr::rflags::FIXED;
        context.tables = std::ptr::from_mut(tables) as u64 + TABLES_BIAS;
        enter::run(self.glue.enter, code, context);
        if context.exit_kind == exit as u64 {
            assert_eq!(context.linear, rax, "the exit names another address");
            return None;
        }
        assert_eq!(context.exit_kind, Exit::Interpret as u64);
        Some(context.general()[2])
    }
}

/// An address near the edges of what tags can stand for.
fn edgy(random: &mut Random) -> u64 {
    let page = random.pick(&[0_u64, 1, 2047, 2048, 4094, 4095]) << 12;
    let top = random.pick(&[0, 1 << 24, 1 << 47, u64::MAX << 47, u64::MAX << 24]);
    let near = random.pick(&[0, 1, 7, 8, 15, 16, 2048, 4064, 4080, 4088, 4095]);
    match random.below(3) {
        0 => random.next(),
        _ => page.wrapping_add(top).wrapping_add(near),
    }
}

#[test]
fn the_check_in_line_computes_what_the_tables_tests_compute() {
    let mut random = Random::new("check");
    let mut piece = Piece::new();
    let mut tables = Tables::empty();
    let shapes =
        [(1, 1), (2, 1), (8, 1), (32, 1), (256, 1), (2, 2), (4, 4), (8, 8), (16, 16), (32, 32)];
    for (len, alignment) in shapes {
        for access in [Access::Read, Access::Write] {
            let checked = Checked { access, len, alignment, group: Sharing::Alone };
            let code = piece.make(|emitter| emitter.check(checked));
            for _ in 0..20_000 {
                let linear = edgy(&mut random);
                let index = (linear >> 12) as usize % TLB_ENTRIES;
                let tag = match random.below(3) {
                    0 => edgy(&mut random),
                    1 => (linear & !0xfff).wrapping_neg(),
                    _ => crate::context::empty_tag(index),
                };
                let other = random.next();
                let (mine, theirs) = match access {
                    Access::Read => (&mut tables.read, &mut tables.write),
                    Access::Write => (&mut tables.write, &mut tables.read),
                };
                (mine[index], theirs[index]) = (tag, other);
                tables.addend[index] = random.next();
                let last = if alignment == 1 { u64::from(len) - 1 } else { 0 };
                let sum = tag.wrapping_add(linear).wrapping_add(last);
                let low = u64::from(alignment) - 1;
                let passes = sum & (!0xfff | low) == 0;
                let expected = passes.then_some(tables.addend[index]);
                let result = piece.run(code, &mut tables, linear, Exit::Miss);
                assert_eq!(result, expected, "{linear:#x} {tag:#x} {checked:?}");
            }
        }
    }
}

#[test]
fn the_search_for_a_target_looks_at_its_two_entries_only() {
    let mut random = Random::new("jump");
    let mut piece = Piece::new();
    let mut tables = Tables::empty();
    let code = piece.make(|emitter| {
        emitter.find_target();
        // The offset of the entry found, in words.
        dynasm!(emitter.code ; .arch x64 ; lea r9, [r9 + 0]);
    });
    for _ in 0..100_000 {
        let target = edgy(&mut random);
        let first = jump_index(target);
        let entries = [first, first ^ 1];
        for index in entries {
            tables.jumps[index].tag = match random.below(3) {
                0 => target.wrapping_neg(),
                1 => random.next(),
                _ => crate::context::empty_jump(index),
            };
        }
        let matches = |index: &usize| tables.jumps[*index].tag == target.wrapping_neg();
        let expected = entries.into_iter().find(matches).map(|index| index as u64 * 4);
        assert!(entries.into_iter().all(|index| index < JUMP_ENTRIES));
        let found = piece.run(code, &mut tables, target, Exit::Jump);
        assert_eq!(found, expected, "{target:#x}");
    }
}

pub(crate) const PAGES: u64 = 64;
/// Page tables of 64-bit and compatibility mode, and the uppermost one of 32-bit mode with PAE.
const ROOT: u64 = 0x1000;
const ROOT_32: u64 = ROOT + 0x4000;
/// Guest-physical and, in the lower half, linear address of the code: two pages.
pub(crate) const CODE: u64 = 0x10000;
/// The page behind it, and behind the page tables.
pub(crate) const BEHIND_CODE: u64 = CODE / 4096 + 2;
const UPPER_HALF: u64 = 0xffff_8000_0000_0000;
const CANARY: u8 = 0xc5;

/// What code a case executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Bits64,
    /// 32-bit code under a 64-bit kernel.
    Compatibility,
    /// 32-bit code in protected mode with PAE.
    Protected,
}

impl Kind {
    pub(crate) fn bits32(self) -> bool {
        self != Self::Bits64
    }
}

/// A vCPU between canaries.
pub(crate) struct Prison {
    pub(crate) vcpu: TranslatorVcpu,
    pub(crate) ram: Arc<GuestRam>,
    /// RAM of nobody, in the neighbourhood of the guest's.
    canaries: Vec<GuestRam>,
    power_on: VcpuState,
}

impl Prison {
    pub(crate) fn new() -> Self {
        let size = PAGES * 4096;
        let canary = || {
            let ram = GuestRam::new(&[(0, size)]).unwrap();
            ram.write(Gpa(0), &vec![CANARY; size as usize]).unwrap();
            ram
        };
        let mut canaries = vec![canary(), canary()];
        let ram = Arc::new(GuestRam::new(&[(0, size)]).unwrap());
        canaries.extend([canary(), canary()]);
        let config = VcpuConfig::alone(Arc::new(profile().unwrap()), Arc::clone(&ram));
        let options = Options { cache_bytes: 1 << 20, ..Options::default() };
        let mut vcpu = TranslatorVcpu::new(config, &options).unwrap();
        let power_on = vcpu.save(&BUS).unwrap();
        vcpu.canary_stack().fill(CANARY);
        Self { vcpu, ram, canaries, power_on }
    }

    /// Page tables of 512 pages: the code's, and others that lie anywhere from page `lowest`, also
    /// outside RAM, and perhaps on the tables themselves. From [`BEHIND_CODE`] the code is only read.
    pub(crate) fn map(&self, random: &mut Random, lowest: u64) {
        const PRESENT: u64 = 1;
        const WRITABLE: u64 = 2;
        const USER: u64 = 4;
        let all = PRESENT | WRITABLE | USER;
        let code = if lowest < BEHIND_CODE { all } else { PRESENT | USER };
        let entry = |at: u64, value: u64| self.ram.write(Gpa(at), &value.to_le_bytes()).unwrap();
        for table in [ROOT, ROOT + 256 * 8] {
            entry(table, (ROOT + 0x1000) | all);
        }
        entry(ROOT + 0x1000, (ROOT + 0x2000) | all);
        entry(ROOT + 0x2000, (ROOT + 0x3000) | all);
        entry(ROOT_32, (ROOT + 0x2000) | PRESENT);
        for page in 0..512 {
            let frame = (lowest + random.below(PAGES - lowest)) << 12;
            let value = match random.below(24) {
                _ if page << 12 == CODE || page << 12 == CODE + 4096 => (page << 12) | code,
                0 => frame | PRESENT | USER,
                1 => frame | all & !PRESENT,
                2 => ((PAGES + random.below(1 << 20)) << 12) | all,
                _ => frame | all,
            };
            entry(ROOT + 0x3000 + page * 8, value);
        }
    }

    /// A value that may be an address.
    fn value(&mut self, random: &mut Random) -> u64 {
        let offset = random.pick(&[0, 8, 16, 64, 2048, 3968, 4064, 4088, 4095]);
        let page = random.below(512) << 12;
        match random.below(24) {
            0 => random.next(),
            1 => random.below(16),
            2 => (self.ram.host_window() as u64).wrapping_add(page + offset),
            3 => self.vcpu.canary_stack().as_ptr() as u64 + random.below(0x11000),
            4 => {
                self.vcpu.spaces.address(Mode { access: AccessMode::User, bits32: false })
                    + random.below(0x20000)
            }
            5 => 1 << random.below(64),
            6 => UPPER_HALF + page + offset,
            _ => page + offset,
        }
    }

    pub(crate) fn state(&mut self, random: &mut Random, kind: Kind) -> VcpuState {
        use cr0::{ET, MP, NE, PE, PG, WP};
        use cr4::{FSGSBASE, OSFXSR, OSXMMEXCPT, OSXSAVE, PAE, PGE};
        let mut state = self.power_on.clone();
        state.control.cr0 = PE | MP | ET | NE | WP | PG;
        state.control.cr3 = ROOT;
        state.control.cr4 = PAE | PGE | OSFXSR | OSXMMEXCPT | OSXSAVE | FSGSBASE;
        state.control.efer = efer::SCE | efer::LME | efer::LMA | efer::NXE;
        state.control.xcr0 = xcr0::X87 | xcr0::SSE | xcr0::AVX;
        let user = random.below(2) == 0;
        let (code, data) = if user { (0xafb, 0xcf3) } else { (0xa9b, 0xc93) };
        let level = if user { 3 } else { 0 };
        state.segments.segment = [Segment::default(); 6];
        state.segments.segment[seg::CS] = Segment::flat(8 | level, code);
        state.segments.segment[seg::SS] = Segment::flat(16 | level, data);
        if kind.bits32() {
            self.narrow(random, kind, &mut state);
        }
        for index in [seg::FS, seg::GS] {
            let mask = if kind.bits32() { 0xffff_f000 } else { 0x7fff_ffff_ffff };
            state.segments.segment[index].base = self.value(random) & mask;
        }
        // Without gates an exception is a triple fault, which ends the case.
        state.segments.idtr.limit = 0;
        state.general.gpr = std::array::from_fn(|_| self.value(random));
        let half = if kind.bits32() { 0 } else { random.pick(&[0, UPPER_HALF]) };
        state.general.rip = half + CODE + random.pick(&[0, 0, 0, 4000]);
        state.general.rflags = 2;
        state
    }

    /// Makes a state of 64-bit code one of 32-bit code, mostly in flat segments.
    fn narrow(&self, random: &mut Random, kind: Kind, state: &mut VcpuState) {
        const LONG: u16 = 1 << 9;
        const BIG: u16 = 1 << 10;
        if kind == Kind::Protected {
            state.control.cr3 = ROOT_32;
            state.control.pdptr = [(ROOT + 0x2000) | 1, 0, 0, 0];
            state.control.efer = efer::NXE;
        }
        let segments = &mut state.segments.segment;
        segments[seg::CS].attributes ^= LONG | BIG;
        let data = segments[seg::SS];
        for index in [seg::DS, seg::ES, seg::FS, seg::GS] {
            segments[index] = data;
        }
        match random.below(12) {
            0 => segments[seg::DS].base = 0x1000,
            1 => segments[seg::GS] = Segment::default(),
            2 => segments[seg::ES].limit = 0xf_ffff,
            3 => segments[seg::SS].attributes ^= BIG,
            4 => segments[seg::FS].limit = 0xfff,
            _ => {}
        }
    }

    /// Runs a case until it ends in one way or another.
    fn run(&mut self, random: &mut Random, state: &VcpuState) {
        let budget = (random.below(3) == 0).then(|| 1 + random.below(300));
        self.vcpu.set_budget(budget);
        self.vcpu.restore(state, &BUS).unwrap();
        let exit = self.vcpu.run(&BUS).unwrap();
        let known = matches!(
            exit,
            VcpuExit::TripleFault(_) | VcpuExit::BudgetSpent | VcpuExit::Paused | VcpuExit::Stop(_)
        );
        assert!(known, "{exit:?}");
    }

    /// The test would show nothing if all had been interpreted.
    fn has_run_translated_code(&self, cases: u64) {
        self.has_filled_tables(cases);
        self.has_counted(cases, &["inline_tlb_misses_string", "links_made"]);
    }

    /// Translated code has accessed memory.
    pub(crate) fn has_filled_tables(&self, cases: u64) {
        self.has_counted(cases, &["inline_tlb_fills", "inline_tlb_misses_group"]);
    }

    fn has_counted(&self, cases: u64, names: &[&str]) {
        let counters = self.vcpu.stats().counters;
        for name in names {
            let (_, count) = counters.iter().find(|(n, _)| n == name).expect("it is counted");
            assert!(*count > cases / 50, "{name}: {count} in {cases} cases");
        }
    }

    /// What translated code must not change is as it was.
    fn inspect(&mut self) {
        let stack = self.vcpu.canary_stack();
        assert!(stack.iter().all(|byte| *byte == CANARY), "the vCPU's stack has been written");
        let mut content = vec![0; (PAGES * 4096) as usize];
        for canary in &self.canaries {
            canary.read(Gpa(0), &mut content).unwrap();
            assert!(content.iter().all(|byte| *byte == CANARY), "memory of others was written");
        }
        self.vcpu.inspect_tables();
    }
}

/// Appends random instructions of the kinds that are translated, many by the same base register.
pub(crate) fn append_code(random: &mut Random, code: &mut Vec<u8>, len: usize, kind: Kind) {
    const OPCODES: [&[u8]; 40] = [
        &[0x8b],
        &[0x89],
        &[0x8a],
        &[0x88],
        &[0x01],
        &[0x03],
        &[0x3b],
        &[0x31],
        &[0x87],
        &[0x63],
        &[0xc7],
        &[0xc6],
        &[0x80],
        &[0x81],
        &[0x83],
        &[0xc1],
        &[0xd3],
        &[0xf7],
        &[0xff],
        &[0x8d],
        &[0x0f, 0xb6],
        &[0x0f, 0xbe],
        &[0x0f, 0xb1],
        &[0x0f, 0xc1],
        &[0x0f, 0xab],
        &[0x0f, 0xa3],
        &[0x0f, 0xba],
        &[0x0f, 0xc7],
        &[0x0f, 0x10],
        &[0x0f, 0x11],
        &[0x0f, 0x28],
        &[0x0f, 0x29],
        &[0x0f, 0x6f],
        &[0x0f, 0x7f],
        &[0x0f, 0x44],
        &[0x0f, 0x95],
        &[0x50],
        &[0x58],
        &[0xc9],
        &[0x0f, 0xaf],
    ];
    const PREFIXES: [&[u8]; 12] = [
        &[],
        &[],
        &[],
        &[0x48],
        &[0x48],
        &[0x4c],
        &[0x49],
        &[0x4d],
        &[0x66],
        &[0xf3],
        &[0xf0],
        &[0x64],
    ];
    const PREFIXES_32: [&[u8]; 12] =
        [&[], &[], &[], &[], &[], &[0x66], &[0xf3], &[0xf0], &[0x64], &[0x65], &[0x36], &[0x67]];
    let (prefixes, bitness) = if kind.bits32() { (PREFIXES_32, 32) } else { (PREFIXES, 64) };
    let end = code.len() + len;
    let bases = [3, 5, 6, 7, random.below(8) as u8];
    while code.len() < end {
        let mut bytes = random.pick(&prefixes).to_vec();
        let mut opcode = random.pick(&OPCODES).to_vec();
        if matches!(opcode[0], 0x50 | 0x58) {
            opcode[0] += random.below(8) as u8;
        }
        match random.below(12) {
            // REP MOVS and STOS, RET, and anything.
            0 => bytes = vec![0xf3, random.pick(&[0xa4, 0xa5, 0xaa, 0xab])],
            1 if random.below(6) == 0 => bytes.push(random.pick(&[0xc3, 0xe8, 0xeb, 0x74, 0xe2])),
            2 => bytes.extend(random.next().to_le_bytes()),
            _ => bytes.extend(opcode),
        }
        // [base + 8-bit displacement] mostly.
        let register = (random.below(8) as u8) << 3;
        bytes.push(match random.below(5) {
            0 => random.next() as u8,
            _ => 0x40 | register | random.pick(&bases),
        });
        bytes.push(random.pick(&[0, 8, 16, 0x24, 0xf8, 0x70]));
        bytes.extend([random.pick(&[0, 1, 0xff, 0x7f]), 0, 0, 0, 0, 0]);
        let instruction = Decoder::new(bitness, &bytes, DecoderOptions::NONE).decode();
        if !instruction.is_invalid() {
            bytes.truncate(instruction.len());
            code.extend(bytes);
        }
    }
}

const KINDS: [Kind; 4] = [Kind::Bits64, Kind::Bits64, Kind::Compatibility, Kind::Protected];

/// Runs `cases` cases; `between` gets the code before each.
fn cases(name: &str, default: u64, between: impl Fn(&Arc<GuestRam>, &mut Random)) {
    let mut random = Random::new(name);
    let mut prison = Prison::new();
    let kicker = prison.vcpu.kicker();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(2));
                kicker.kick();
            }
        });
        let end = EndGuard(&ended);
        let count = number("HOSTILE_CASES", default);
        let mut kind = Kind::Bits64;
        for case in 0..count {
            if case % 8 == 0 {
                kind = random.pick(&KINDS);
                let mut code = Vec::new();
                append_code(&mut random, &mut code, 8000, kind);
                prison.ram.write(Gpa(CODE), &code[..8000]).unwrap();
            }
            prison.map(&mut random, 0);
            between(&prison.ram, &mut random);
            let mut state = prison.state(&mut random, kind);
            state.general.rip = state.general.rip.wrapping_add(random.below(64) * 16);
            prison.run(&mut random, &state);
            if case % 64 == 0 {
                prison.inspect();
            }
        }
        prison.inspect();
        prison.has_run_translated_code(count);
        drop(end);
    });
}

/// Ends the other threads, also when a test fails.
pub(crate) struct EndGuard<'a>(pub(crate) &'a AtomicBool);

impl Drop for EndGuard<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn random_code_changes_nothing_outside_guest_ram() {
    cases("random code", 20_000, |_, _| {});
}

#[test]
fn code_that_a_device_changes_meanwhile_changes_nothing_outside_guest_ram() {
    let ended = Arc::new(AtomicBool::new(false));
    let end = EndGuard(&ended);
    let started = AtomicBool::new(false);
    let writer = std::sync::Mutex::new(None);
    cases("changing code", 5_000, |ram, random| {
        if started.swap(true, Ordering::Relaxed) {
            return;
        }
        let (ram, ended) = (Arc::clone(ram), Arc::clone(&ended));
        let mut random = Random(random.next() | 1);
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let mut code = Vec::new();
                let kind = random.pick(&KINDS);
                append_code(&mut random, &mut code, 4, kind);
                let at = CODE + random.below(1100);
                ram.write(Gpa(at), &code).unwrap();
                std::thread::yield_now();
            }
        });
        *writer.lock().unwrap() = Some(thread);
    });
    drop(end);
    let thread = writer.into_inner().unwrap().expect("the first case starts it");
    thread.join().unwrap();
}

/// A bus without devices; writes to ports end the run.
pub(crate) const BUS: EmptyBus = EmptyBus::with_ports(|port, _| {
    Answer::StopAfterInstruction((), StopCause::DebugExit { value: port as u8 })
});
