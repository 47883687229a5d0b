//! vCPUs that are out to stop each other: on every software engine, whatever two of them do to each
//! other, both answer kicks in time, and neither starves.
//!
//! The first executes 64-bit code, the second 16-bit code that the first has started.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use engine::Engine;
use interpreter::Interpreter;
use lifecycle::Outcome;
use memory::RamOffset;
use ringfence_tests::bare::{self, for_ever, ipi, send_ipi};
use ringfence_tests::vm::{Guest, Setup};
use translator::{Options, Translator};

/// MiB of RAM.
const MEMORY: u64 = 64;
/// What a pause may take: an answer of each of two vCPUs that may wait for each other.
const PAUSE: Duration = Duration::from_millis(10);
/// Far above what any of these takes alone.
const LIMIT: Duration = Duration::from_secs(120);
/// A code cache that is filled soon, in bytes.
const SMALL: usize = 4 << 20;

/// Where the first vCPU's loop is, when it is not where it was loaded; both reach it.
const LOOP: u16 = 0x9000;
/// Counters of the loops of both, in a page without code.
const COUNTERS: [u16; 2] = [0xa000, 0xa100];

fn engines() -> [Arc<dyn Engine>; 2] {
    let translator = Translator::with_options(Options { cache_bytes: SMALL, ..Options::default() })
        .expect("a host with BMI2 and AVX2");
    [Arc::new(Interpreter::new()), Arc::new(translator)]
}

/// 16-bit code `inc dword [at]`.
fn count_16(at: u16) -> Vec<u8> {
    [&[0x66, 0xff, 0x06][..], &at.to_le_bytes()].concat()
}

/// 64-bit code `inc dword [at]`.
fn count_64(at: u16) -> Vec<u8> {
    [&[0xff, 0x04, 0x25][..], &u32::from(at).to_le_bytes()].concat()
}

/// What both have counted so far.
fn counted(guest: &Guest) -> [u32; 2] {
    COUNTERS.map(|at| guest.vm.machine().ram().load(RamOffset(u64::from(at))))
}

/// Both loops go on for ever, each with a counter, and pauses come in time.
#[track_caller]
fn both_go_on(first: &[u8], second: &[u8]) {
    let first = for_ever(&[first, &count_64(COUNTERS[0])].concat());
    let second = for_ever(&[second, &count_16(COUNTERS[1])].concat());
    for engine in engines() {
        let name = engine.name();
        let code = bare::guest64(&bare::two_vcpus(&first, &second));
        let guest = Setup::new(engine, MEMORY, code).cpus(2).start();
        let mut before = counted(&guest);
        // Three times, so that going on does not depend on the pauses alone.
        for _ in 0..3 {
            let begin = Instant::now();
            let goes_on = || counted(&guest).iter().zip(&before).all(|(now, then)| now != then);
            while !goes_on() {
                assert!(begin.elapsed() < LIMIT, "{name}: {:?}", counted(&guest));
                thread::sleep(Duration::from_millis(2));
            }
            before = counted(&guest);
        }
        let usual = guest.usual_pause();
        assert!(usual <= PAUSE, "{name}: pauses take {usual:?}");
        assert_eq!(guest.vm.outcome(), None, "{name}: it has ended");
        guest.vm.kill();
        assert_eq!(guest.end(LIMIT), Outcome::Killed);
    }
}

#[test]
fn locked_accesses_across_cache_lines() {
    // lock inc dword [0xb03e], in both
    both_go_on(&[0xf0, 0xff, 0x04, 0x25, 0x3e, 0xb0, 0, 0], &[0x66, 0xf0, 0xff, 0x06, 0x3e, 0xb0]);
}

#[test]
fn locked_accesses_across_pages_beside_plain_ones() {
    // lock inc dword [0xbffe] beside inc dword [0xbffe]
    both_go_on(&[0xf0, 0xff, 0x04, 0x25, 0xfe, 0xbf, 0, 0], &[0x66, 0xff, 0x06, 0xfe, 0xbf]);
}

#[test]
fn stores_into_the_code_of_the_other() {
    // The first calls `mov al, 0; ret` at LOOP, whose number the second counts up; and the other
    // way around: the second's own code begins with `mov al, 0`.
    let [low, high] = LOOP.to_le_bytes();
    let put = [0xc7, 0x04, 0x25, low, high, 0, 0, 0xb0, 0, 0xc3, 0x90];
    // mov ecx, LOOP; call rcx; inc byte [SECOND + 1]
    let call = [0xb9, low, high, 0, 0, 0xff, 0xd1, 0xfe, 0x04, 0x25, 0x01, 0x80, 0, 0];
    let first = [&call[..], &count_64(COUNTERS[0])].concat();
    // mov al, 0; inc byte [LOOP + 1]
    let second = [0xb0, 0, 0xfe, 0x06, low + 1, high];
    let second = for_ever(&[&second[..], &count_16(COUNTERS[1])].concat());
    for engine in engines() {
        let name = engine.name();
        let first = [&put[..], &for_ever(&first)].concat();
        let code = bare::guest64(&bare::two_vcpus(&first, &second));
        let guest = Setup::new(engine, MEMORY, code).cpus(2).start();
        let begin = Instant::now();
        while counted(&guest).contains(&0) {
            assert!(begin.elapsed() < LIMIT, "{name}: {:?}", counted(&guest));
            thread::sleep(Duration::from_millis(2));
        }
        let usual = guest.usual_pause();
        assert!(usual <= PAUSE, "{name}: pauses take {usual:?}");
        guest.vm.kill();
        assert_eq!(guest.end(LIMIT), Outcome::Killed);
    }
}

#[test]
fn a_flood_of_nmis() {
    // Vector 2 of real mode is at 8: 0 leads to zeros at 0, which end where the code is. So it gets
    // an IRET: mov dword [8], 0xc000; mov byte [0xc000], 0xcf
    let mut first = vec![0xc7, 0x04, 0x25, 8, 0, 0, 0, 0, 0xc0, 0, 0];
    first.extend([0xc6, 0x04, 0x25, 0, 0xc0, 0, 0, 0xcf]);
    first.extend(send_ipi(1, ipi::NMI));
    // mov sp, 0x7000
    both_go_on(&first, &[0xbc, 0, 0x70]);
}

#[test]
fn a_flood_of_restarts() {
    let restart = [send_ipi(1, ipi::INIT), send_ipi(1, ipi::STARTUP)].concat();
    // A pause, so that the other comes to count at times: mov ecx, 1000; loop $
    let first = [&restart[..], &[0xb9, 0xe8, 3, 0, 0, 0xe2, 0xfe]].concat();
    both_go_on(&first, &[0x90]);
}

/// INIT makes the bootstrap processor begin anew at the reset vector (SDM vol. 3A 9.4.4), where no
/// firmware is: it may do anything but what it did before, and the other goes on.
#[test]
fn init_to_the_first_vcpu_leaves_the_other_alone() {
    let first = for_ever(&count_64(COUNTERS[0]));
    let first = [send_ipi(0, ipi::INIT), first].concat();
    let second = for_ever(&count_16(COUNTERS[1]));
    for engine in engines() {
        let name = engine.name();
        let code = bare::guest64(&bare::two_vcpus(&first, &second));
        let guest = Setup::new(engine, MEMORY, code).cpus(2).start();
        let begin = Instant::now();
        while counted(&guest)[1] < 1000 {
            assert!(begin.elapsed() < LIMIT, "{name}: {:?}", counted(&guest));
            thread::sleep(Duration::from_millis(2));
        }
        let first_counted = counted(&guest)[0];
        thread::sleep(Duration::from_millis(50));
        assert_eq!(counted(&guest)[0], first_counted, "{name}: the first goes on");
        guest.vm.kill();
        assert_eq!(guest.end(LIMIT), Outcome::Killed, "{name}");
    }
}
