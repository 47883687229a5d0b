//! Guests that misbehave: the VM ends as the architecture says or as its owner says, and nothing
//! keeps its vCPU from answering a kick.

use std::thread;
use std::time::{Duration, Instant};

use engine::TripleFault;
use lifecycle::Outcome;
use ringfence_tests::bare::{self, ENTRY, debug_exit};
use ringfence_tests::vm::{Guest, Setup, engine};

/// Far above what any of these takes alone.
const LIMIT: Duration = Duration::from_secs(120);
/// MiB of RAM.
const MEMORY: u64 = 16;
/// What a vCPU may take to answer a kick.
const KICK: Duration = Duration::from_millis(5);
/// Ports where a byte written ends the guest, with the ports below whose wider accesses reach
/// them: i8042 command, fast A20, debug exit, PM1 control, reset control.
const ENDING_PORTS: [std::ops::RangeInclusive<u16>; 5] =
    [0x61..=0x64, 0x8f..=0x92, 0xf1..=0xf4, 0x5fd..=0x607, 0xcf6..=0xcf9];

fn start(code: &[u8]) -> Guest {
    Setup::new(engine(), MEMORY, bare::guest(code)).debug_exit().start()
}

/// Pauses and resumes the running guest; the time within which a quarter of the pauses came. Others
/// on the host make some pauses long; what the vCPU itself takes makes all of them long.
fn usual_pause(guest: &Guest) -> Duration {
    let mut times: Vec<Duration> = (0..41)
        .map(|_| {
            thread::sleep(Duration::from_millis(2));
            let asked = Instant::now();
            guest.vm.pause().expect("it runs");
            let took = asked.elapsed();
            guest.vm.resume().expect("it is paused");
            took
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 4]
}

#[track_caller]
fn answers_kicks(code: &[u8]) {
    let guest = start(code);
    let usual = usual_pause(&guest);
    assert!(usual <= KICK, "pauses take {usual:?}");
    guest.vm.kill();
    assert_eq!(guest.end(LIMIT), Outcome::Killed);
}

#[test]
fn a_loop_with_interrupts_off_is_interrupted() {
    // cli; jmp $
    answers_kicks(&[0xfa, 0xeb, 0xfe]);
}

#[test]
fn a_halt_with_interrupts_off_is_interrupted() {
    // cli; hlt; jmp $-1
    answers_kicks(&[0xfa, 0xf4, 0xeb, 0xfd]);
}

#[test]
fn a_long_repetition_is_interrupted() {
    // again: mov ecx, -1; rep lodsb; jmp again (no address is refused: there is no paging)
    answers_kicks(&[0xb9, 0xff, 0xff, 0xff, 0xff, 0xf3, 0xac, 0xeb, 0xf7]);
    // again: mov edi, 0x200000; mov ecx, 0xc00000; rep stosb; jmp again
    answers_kicks(&[0xbf, 0, 0, 0x20, 0, 0xb9, 0, 0, 0xc0, 0, 0xf3, 0xaa, 0xeb, 0xf2]);
}

#[test]
fn a_flood_of_port_accesses_is_interrupted() {
    // mov dx, 0x71; in al, dx; jmp $-1
    answers_kicks(&[0x66, 0xba, 0x71, 0, 0xec, 0xeb, 0xfd]);
}

#[test]
fn code_that_rewrites_itself_is_interrupted() {
    // again: inc byte [ENTRY + 7]; mov al, 0; jmp again
    let [a, b, c, d] = (ENTRY + 7).to_le_bytes();
    answers_kicks(&[0xfe, 0x05, a, b, c, d, 0xb0, 0, 0xeb, 0xf6]);
}

/// A guest whose #UD handler returns to the instruction that raised it.
#[test]
fn a_storm_of_faults_is_interrupted() {
    const GDT: u32 = ENTRY + 0x100;
    const IDT: u32 = ENTRY + 0x200;
    const HANDLER: u32 = ENTRY + 0x80;
    let pointer = |limit: u16, base: u32| [&limit.to_le_bytes()[..], &base.to_le_bytes()].concat();
    let mut code = vec![0; 0x300];
    let mut put = |at: u32, bytes: &[u8]| code[at as usize..][..bytes.len()].copy_from_slice(bytes);
    // mov esp, 0x200000; lgdt [ENTRY + 0x40]; lidt [ENTRY + 0x48]; ud2
    let operand = |offset: u32| (ENTRY + offset).to_le_bytes();
    put(0, &[0xbc, 0, 0, 0x20, 0]);
    put(5, &[&[0x0f, 0x01, 0x15][..], &operand(0x40)].concat());
    put(12, &[&[0x0f, 0x01, 0x1d][..], &operand(0x48)].concat());
    put(19, &[0x0f, 0x0b]);
    put(0x40, &pointer(23, GDT));
    put(0x48, &pointer(0x7f, IDT));
    // iretd
    put(HANDLER - ENTRY, &[0xcf]);
    // Flat code at the handler's selector and at 0x10, which the guest is entered with.
    put(GDT - ENTRY + 8, &0x00cf_9a00_0000_ffff_u64.to_le_bytes());
    put(GDT - ENTRY + 16, &0x00cf_9a00_0000_ffff_u64.to_le_bytes());
    let gate =
        u64::from(HANDLER & 0xffff) | 8 << 16 | 0x8e00 << 32 | u64::from(HANDLER >> 16) << 48;
    put(IDT - ENTRY + 6 * 8, &gate.to_le_bytes());
    answers_kicks(&code);
}

#[test]
fn running_off_the_end_of_memory_is_a_triple_fault() {
    // mov eax, 0x200000; jmp eax: zeros are `add [eax], al`, and behind RAM all bits are set.
    let guest = start(&[0xb8, 0, 0, 0x20, 0, 0xff, 0xe0]);
    let end = u64::from((MEMORY as u32) << 20);
    let outcome = guest.end(LIMIT);
    let Outcome::TripleFault(TripleFault { vcpu: 0, rip, cr3: 0 }) = outcome else {
        panic!("{outcome}");
    };
    assert_eq!(rip, end, "{rip:#x}");
}

#[test]
fn reading_every_port_and_page_does_no_harm() {
    let mut code = vec![
        0x31, 0xd2, // xor edx, edx
        0xec, 0x66, 0xed, 0xed, // ports: in al, dx; in ax, dx; in eax, dx
        0x66, 0x42, 0x75, 0xf8, // inc dx; jnz ports
        0x31, 0xff, // xor edi, edi
        0x8b, 0x07, // pages: mov eax, [edi]
        0x8a, 0x87, 0xff, 0x0f, 0, 0, // mov al, [edi + 0xfff]
        0x81, 0xc7, 0, 0x10, 0, 0, // add edi, 0x1000
        0x75, 0xf0, // jnz pages
    ];
    code.extend(debug_exit(7));
    assert_eq!(start(&code).end(LIMIT), Outcome::DebugExit(7));
}

#[test]
fn writing_every_port_and_page_does_no_harm() {
    let mut code = Vec::new();
    for value in [0x00, 0xff, 0x5a] {
        code.extend([0xb8, value, value, value, value]); // mov eax, value
        for port in (0..=0xffff_u16).filter(|p| !ENDING_PORTS.iter().any(|r| r.contains(p))) {
            let [low, high] = port.to_le_bytes();
            // mov dx, port; out dx, al; out dx, ax; out dx, eax
            code.extend([0x66, 0xba, low, high, 0xee, 0x66, 0xef, 0xef]);
        }
        // mov edi, MEMORY; pages: mov [edi], eax; mov [edi + 0xfff], al; add edi, 0x1000; jnz pages
        let [a, b, c, d] = ((MEMORY as u32) << 20).to_le_bytes();
        code.extend([0xbf, a, b, c, d, 0x89, 0x07, 0x88, 0x87, 0xff, 0x0f, 0, 0]);
        code.extend([0x81, 0xc7, 0, 0x10, 0, 0, 0x75, 0xf0]);
        for page in [0xfec0_0000_u32, 0xfee0_0000] {
            let [a, b, c, d] = page.to_le_bytes();
            // mov edi, page; mov ecx, 0x400; rep stosd
            code.extend([0xbf, a, b, c, d, 0xb9, 0, 4, 0, 0, 0xf3, 0xab]);
        }
    }
    code.extend(debug_exit(9));
    assert_eq!(start(&code).end(LIMIT), Outcome::DebugExit(9));
}
