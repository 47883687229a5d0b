//! Guest code that is out to make an engine slow, large or deaf: 64-bit code in ring 0, on every
//! software engine. Whatever it does, a kick is answered in time, and memory stays bounded.
//!
//! What such code computes is the business of the system programs (`guests/programs/hot`, `smc`)
//! and of the native oracle.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use engine::Engine;
use lifecycle::Outcome;
use ringfence_tests::bare::{self, ENTRY64, debug_exit};
use ringfence_tests::vm::{Guest, Setup};
use translator::{Options, Translator};

/// MiB of RAM.
const MEMORY: u64 = 64;
/// What a vCPU may take to answer a kick.
const KICK: Duration = Duration::from_millis(5);
/// Far above what any of these takes alone.
const LIMIT: Duration = Duration::from_secs(120);
/// A code cache that is filled soon, in bytes.
const SMALL: usize = 4 << 20;
/// Where guests write code: a page of RAM that is not loaded.
const SCRATCH: u32 = 0x20_0000;

fn engines() -> [Arc<dyn Engine>; 2] {
    let translator = Translator::with_options(Options { cache_bytes: SMALL, ..Options::default() })
        .expect("a host with BMI2 and AVX2");
    [Arc::new(interpreter::Interpreter::new()), Arc::new(translator)]
}

fn start(engine: &Arc<dyn Engine>, code: &[u8]) -> Guest {
    Setup::new(Arc::clone(engine), MEMORY, bare::guest64(code)).debug_exit().start()
}

/// The counter `name` of the guest's vCPU.
fn counter(guest: &Guest, name: &str) -> u64 {
    let stats = guest.vm.stats().expect("a VM has statistics");
    let found = stats.vcpus[0].counters.iter().find(|(counter, _)| *counter == name);
    found.unwrap_or_else(|| panic!("no counter {name}: {stats:?}")).1
}

/// The guest does not end by itself, and answers kicks.
#[track_caller]
fn answers_kicks(code: &[u8]) {
    for engine in engines() {
        let guest = start(&engine, code);
        let usual = guest.usual_pause();
        assert!(usual <= KICK, "{}: pauses take {usual:?}", engine.name());
        assert_eq!(guest.vm.outcome(), None, "{}: it has ended", engine.name());
        guest.vm.kill();
        assert_eq!(guest.end(LIMIT), Outcome::Killed);
    }
}

/// The guest comes to write `value` to debug-exit.
#[track_caller]
fn comes_to(code: &[u8], value: u8) {
    for engine in engines() {
        let outcome = start(&engine, code).end(LIMIT);
        assert_eq!(outcome, Outcome::DebugExit(value), "{}", engine.name());
    }
}

#[test]
fn a_jump_to_itself_is_interrupted() {
    // jmp $
    answers_kicks(&[0xeb, 0xfe]);
}

#[test]
fn loops_are_interrupted() {
    // inc rax; jmp $-3
    answers_kicks(&[0x48, 0xff, 0xc0, 0xeb, 0xfb]);
    // again: dec rcx; jnz again; jmp again
    answers_kicks(&[0x48, 0xff, 0xc9, 0x75, 0xfb, 0xeb, 0xf9]);
    // again: loop again; jmp again
    answers_kicks(&[0xe2, 0xfe, 0xeb, 0xfc]);
    // lea rax, [rip]; jmp rax
    answers_kicks(&[0x48, 0x8d, 0x05, 0, 0, 0, 0, 0xff, 0xe0]);
    // again: call next; next: pop rax; jmp again
    answers_kicks(&[0xe8, 0, 0, 0, 0, 0x58, 0xeb, 0xf8]);
    // again: lea rax, [rip + 2]; push rax; ret; jmp again
    answers_kicks(&[0x48, 0x8d, 0x05, 2, 0, 0, 0, 0x50, 0xc3, 0xeb, 0xf5]);
}

/// Straight code without a jump back for as long as there is memory.
#[test]
fn a_run_through_all_pages_is_interrupted() {
    // Jumps from page to page, up to the last one, which jumps to the first.
    const PAGES: u32 = 1000;
    let mut code = vec![0x90; 4096 * PAGES as usize];
    for page in 0..PAGES {
        let at = page as usize * 4096;
        let last = page + 1 == PAGES;
        let distance = if last { -(4096 * (PAGES as i32 - 1)) - 5 } else { 4096 - 5 };
        code[at] = 0xe9;
        code[at + 1..at + 5].copy_from_slice(&distance.to_le_bytes());
    }
    answers_kicks(&code);
    // The same with nothing but one-byte NOPs between.
    let mut code = vec![0x90; 1 << 20];
    let back = -(code.len() as i32) - 5;
    code.push(0xe9);
    code.extend(back.to_le_bytes());
    answers_kicks(&code);
}

#[test]
fn long_repetitions_are_interrupted() {
    const RAM: u32 = 32 << 20;
    let repeated = |count: u32, instruction: &[u8]| {
        // again: mov rsi, SCRATCH; mov rdi, SCRATCH; mov rcx, count; instruction; jmp again
        let mut code = vec![0x48, 0xc7, 0xc6];
        code.extend(SCRATCH.to_le_bytes());
        code.extend([0x48, 0xc7, 0xc7]);
        code.extend(SCRATCH.to_le_bytes());
        code.extend([0x48, 0xc7, 0xc1]);
        code.extend(count.to_le_bytes());
        code.extend(instruction);
        code.extend([0xeb, -(code.len() as i8 + 2) as u8]);
        code
    };
    // rep movsb, rep stosb, rep lodsb, repe cmpsb
    for instruction in [&[0xf3, 0xa4][..], &[0xf3, 0xaa], &[0xf3, 0xac], &[0xf3, 0xa6]] {
        answers_kicks(&repeated(RAM, instruction));
    }
    // add rsi, rcx; add rdi, rcx; std; rep movsb; cld
    answers_kicks(&repeated(RAM, &[0x48, 0x01, 0xce, 0x48, 0x01, 0xcf, 0xfd, 0xf3, 0xa4, 0xfc]));
    // rep lodsb through all that is mapped, most of it no RAM.
    answers_kicks(&repeated(0x3f00_0000, &[0xf3, 0xac]));
}

#[test]
fn system_instructions_in_a_loop_are_interrupted() {
    for instruction in [
        &[0x0f, 0xa2][..],                     // cpuid
        &[0x0f, 0x31],                         // rdtsc
        &[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8], // mov rax, cr3; mov cr3, rax
        &[0x0f, 0x01, 0x38],                   // invlpg [rax]
        &[0xf3, 0x90],                         // pause
        &[0xfa, 0xfb],                         // cli; sti: no interrupt comes
        &[0xe4, 0x71],                         // in al, 0x71
        &[0x9c, 0x9d],                         // pushfq; popfq
    ] {
        let mut code = instruction.to_vec();
        code.extend([0xeb, -(code.len() as i8 + 2) as u8]);
        answers_kicks(&code);
    }
}

#[test]
fn code_that_rewrites_itself_is_interrupted() {
    // again: inc byte [rip + 1]; mov al, 0; jmp again
    answers_kicks(&[0xfe, 0x05, 1, 0, 0, 0, 0xb0, 0, 0xeb, 0xf6]);
    // Stores to its own page beside the code: again: inc qword [rip + 256]; jmp again
    answers_kicks(&[0x48, 0xff, 0x05, 0, 1, 0, 0, 0xeb, 0xf7]);
}

/// Writes `mov eax, imm32; ret` all over 16 MiB, calls each, and does it again with other values,
/// with a growing shift: every call is to new code.
fn fills_the_cache(rounds: u8) -> Vec<u8> {
    let mut code = vec![
        0xbb, 0, 0, 0, 0, // mov ebx, 0: the round
        // round:
        0xbf, 0, 0, 0x20, 0, // mov edi, SCRATCH
        0x01, 0xdf, // add edi, ebx
        // next:
        0xc6, 0x07, 0xb8, // mov byte [rdi], 0xb8
        0x89, 0x7f, 0x01, // mov [rdi + 1], edi
        0xc6, 0x47, 0x05, 0xc3, // mov byte [rdi + 5], 0xc3
        0xff, 0xd7, // call rdi
        0x39, 0xf8, // cmp eax, edi
        0x75, 0x14, // jne wrong
        0x83, 0xc7, 0x40, // add edi, 64
        0x81, 0xff, 0, 0, 0x20, 1, // cmp edi, SCRATCH + 16 MiB
        0x72, 0xe5, // jb next
        0xff, 0xc3, // inc ebx
        0x80, 0xfb, rounds, // cmp bl, rounds
        0x75, 0xd7, // jne round
        0xeb, 0x08, // jmp right
    ];
    // wrong:
    code.extend(debug_exit(9));
    // right:
    code.extend(debug_exit(7));
    code
}

/// Resident memory of this process in bytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("/proc is mounted");
    let pages: u64 = text.split(' ').nth(1).and_then(|p| p.parse().ok()).expect("a number");
    pages * 4096
}

#[test]
fn code_that_is_always_new_stays_in_the_cache() {
    let [interpreter, translator] = engines();
    assert_eq!(start(&interpreter, &fills_the_cache(1)).end(LIMIT), Outcome::DebugExit(7));
    let before = resident();
    let guest = start(&translator, &fills_the_cache(4));
    let mut most = 0;
    while guest.vm.outcome().is_none() {
        most = most.max(resident());
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(guest.end(LIMIT), Outcome::DebugExit(7));
    let drops = counter(&guest, "code_cache_drops");
    assert!(drops > 1, "the cache was dropped {drops} times");
    // The guest's RAM, the cache, and what is kept beside it: other tests of this process run, too.
    let grown = most.saturating_sub(before) >> 20;
    assert!(grown < 512, "{grown} MiB more than before");
}

#[test]
fn running_off_the_end_of_memory_is_a_triple_fault() {
    for engine in engines() {
        // mov eax, end of RAM - 2; jmp rax: zeros are `add [rax], al`, then nothing is there.
        let [a, b, c, d] = ((MEMORY as u32) << 20).wrapping_sub(2).to_le_bytes();
        let outcome = start(&engine, &[0xb8, a, b, c, d, 0xff, 0xe0]).end(LIMIT);
        assert!(matches!(outcome, Outcome::TripleFault(_)), "{}: {outcome}", engine.name());
    }
}

#[test]
fn a_stack_pointer_into_nothing_is_a_triple_fault() {
    for pointer in
        [0_u64, 0x7fff_ffff_e000, 0x5555_5555_5000, 1 << 47, u64::MAX, 0xdead_beef_0000_0000]
    {
        for engine in engines() {
            // A loop that uses the stack as it should, first: mov ecx, 1000; again: push rax; pop rax;
            // loop again; mov rsp, pointer; push rax
            let mut code = vec![0xb9, 0xe8, 3, 0, 0, 0x50, 0x58, 0xe2, 0xfc, 0x48, 0xbc];
            code.extend(pointer.to_le_bytes());
            code.extend([0x50, 0xeb, 0xfe]);
            let outcome = start(&engine, &code).end(LIMIT);
            let Outcome::TripleFault(fault) = outcome else {
                panic!("{} at {pointer:#x}: {outcome}", engine.name());
            };
            assert_eq!(fault.rip, ENTRY64 + 19, "{} at {pointer:#x}", engine.name());
        }
    }
}

/// The test of the guests: 64-bit code is entered.
#[test]
fn code_is_entered_in_long_mode() {
    // mov rax, 1 << 32; shr rax, 32; add al, 6; mov dx, 0xf4; out dx, al; hlt
    let mut code = vec![0x48, 0xb8, 0, 0, 0, 0, 1, 0, 0, 0, 0x48, 0xc1, 0xe8, 32, 4, 6];
    code.extend([0x66, 0xba, 0xf4, 0, 0xee, 0xf4]);
    comes_to(&code, 7);
}
