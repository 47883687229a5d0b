//! Tiny guests on the kvm engine. Where /dev/kvm cannot be used, each test says so and passes.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use device::{Answer, StopCause};
use engine::testing::EmptyBus;
use engine::{
    CpuProfile, Engine, Level, Rendezvous, RunState, Vcpu, VcpuConfig, VcpuExit, VcpuState, Vendor,
};
use interpreter::Interpreter;
use kvm::{Kvm, Share, Speed};
use lapic::{LocalApic, LocalApicConfig, Mailbox, SavedCountdown};
use memory::{DirtyConsumer, Gpa, GuestRam};

thread_local! {
    /// The sum of what was written to port 0x80: each test runs its guest on its own thread.
    static WRITTEN: Cell<u32> = const { Cell::new(0) };
}

/// A bus on which port 0x80 counts and port 0xf4 stops.
const BUS: EmptyBus = EmptyBus::with_ports(|port, value| match port {
    0xf4 => Answer::StopAfterInstruction((), StopCause::DebugExit { value: value as u8 }),
    _ => {
        WRITTEN.set(WRITTEN.get() + value);
        Answer::Done(())
    }
});

/// A vCPU in real mode at address 0x1000, where `code` is.
struct Guest {
    vcpu: Box<dyn Vcpu>,
    mailbox: Arc<Mailbox>,
    ram: Arc<GuestRam>,
}

impl Guest {
    fn new(engine: &dyn Engine, khz: u32, code: &[u8]) -> Self {
        let [guest] = Self::several(engine, khz, code);
        guest
    }

    /// vCPUs of one VM, of which the first is in real mode and the others wait to be started.
    fn several<const N: usize>(engine: &dyn Engine, khz: u32, code: &[u8]) -> [Self; N] {
        let vendor = if std::arch::x86_64::__cpuid(0).ebx.to_le_bytes() == *b"Auth" {
            Vendor::Amd
        } else {
            Vendor::Intel
        };
        let profile = Arc::new(CpuProfile::new(Level::V2, vendor, khz, &|_| true).unwrap());
        let ram = Arc::new(GuestRam::new(&[(0, 1 << 20)]).unwrap());
        ram.write(Gpa(0x1000), code).unwrap();
        let mailboxes: [_; N] = std::array::from_fn(|index| {
            let (apic_id, bsp) = (index as u32, index == 0);
            let apic = LocalApic::new(LocalApicConfig { apic_id, bsp, ..Default::default() });
            Arc::new(Mailbox::new(apic.destination()))
        });
        let rendezvous = Arc::new(Rendezvous::new(&mailboxes));
        let mut guests = (0..).zip(mailboxes).map(|(index, mailbox)| {
            let (profile, ram) = (Arc::clone(&profile), Arc::clone(&ram));
            let (meeting, posted) = (Arc::clone(&rendezvous), Arc::clone(&mailbox));
            let config = VcpuConfig {
                index,
                apic_id: index,
                profile,
                ram: Arc::clone(&ram),
                mailbox: posted,
                rendezvous: meeting,
            };
            Self { vcpu: engine.create_vcpu(config).unwrap(), mailbox, ram }
        });
        let mut guests: [Self; N] = std::array::from_fn(|_| guests.next().unwrap());
        guests[0].enter_real_mode();
        guests
    }

    /// Goes on at 0x1000.
    fn enter_real_mode(&mut self) {
        let mut state = self.save();
        let cs = &mut state.segments.segment[x86::segment::seg::CS];
        (cs.selector, cs.base) = (0, 0);
        state.general.rip = 0x1000;
        state.general.gpr[4] = 0x8000;
        self.restore(&state);
    }

    fn save(&mut self) -> VcpuState {
        self.vcpu.save(&BUS).unwrap()
    }

    fn restore(&mut self, state: &VcpuState) {
        self.vcpu.restore(state, &BUS).unwrap();
    }

    fn run(&mut self) -> VcpuExit {
        self.vcpu.run(&BUS).unwrap()
    }

    fn counter(&self, name: &str) -> u64 {
        self.vcpu.stats().counters.iter().find(|(n, _)| *n == name).unwrap().1
    }
}

/// The engine, executing everything on KVM whatever that is here, and the TSC frequency of its
/// guests, or the reason why there is none.
fn kvm_here(test: &str) -> Option<(Kvm, u32)> {
    match Kvm::open() {
        Ok(kvm) => {
            let kvm = kvm.with_share(Share::Everything);
            let khz = kvm.fixed_tsc_khz().unwrap_or(1_000_000);
            Some((kvm, khz))
        }
        Err(error) => {
            eprintln!("SKIPPED {test}: {error}");
            None
        }
    }
}

/// mov al, 7; out 0x80, al; out 0xf4, al; hlt
const STOPS: [u8; 7] = [0xb0, 7, 0xe6, 0x80, 0xe6, 0xf4, 0xf4];
/// l: inc ax; jmp l
const FOREVER: [u8; 3] = [0x40, 0xeb, 0xfd];

#[test]
fn ports_reach_the_bus_and_a_stop_ends_the_run() {
    let Some((kvm, khz)) = kvm_here("ports") else { return };
    let mut guest = Guest::new(&kvm, khz, &STOPS);
    assert_eq!(guest.run(), VcpuExit::Stop(StopCause::DebugExit { value: 7 }));
    assert_eq!(WRITTEN.get(), 7);
    // The instruction is complete.
    assert_eq!(guest.save().general.rip, 0x1006);
    assert_eq!(guest.counter("port_exits"), 2, "KVM has executed it");
}

#[test]
fn a_kick_ends_an_endless_loop_and_the_state_moves_between_engines() {
    let Some((kvm, khz)) = kvm_here("a kick") else { return };
    let mut guest = Guest::new(&kvm, khz, &FOREVER);
    // A busy host may let the first kick come before KVM has run.
    while guest.counter("kernel_runs") == 0 {
        let kicker = guest.vcpu.kicker();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            kicker.kick();
        });
        assert_eq!(guest.run(), VcpuExit::Paused);
        thread.join().unwrap();
    }
    let state = guest.save();
    assert!(matches!(state.general.rip, 0x1000 | 0x1001), "{:#x}", state.general.rip);

    let mut other = Guest::new(&Interpreter::new(), khz, &FOREVER);
    other.restore(&state);
    assert_eq!(other.save(), state, "the interpreter keeps it");
    other.vcpu.set_budget(Some(2000));
    assert_eq!(other.run(), VcpuExit::BudgetSpent);
    let later = other.save();
    assert_ne!(later.general.gpr[0], state.general.gpr[0]);
    guest.restore(&later);
    assert_eq!(guest.save(), later, "kvm keeps it");
}

#[test]
fn a_budget_is_exact() {
    let Some((kvm, khz)) = kvm_here("a budget") else { return };
    let mut guest = Guest::new(&kvm, khz, &FOREVER);
    guest.vcpu.set_budget(Some(1000));
    assert_eq!(guest.run(), VcpuExit::BudgetSpent);
    assert_eq!(guest.save().general.gpr[0], 500);
}

#[test]
fn an_interrupt_ends_hlt() {
    let Some((kvm, khz)) = kvm_here("an interrupt") else { return };
    // sti; hlt; mov al, 9; out 0xf4, al. The handler at 0x1100, of vector 0, is IRET.
    let mut guest = Guest::new(&kvm, khz, &[0xfb, 0xf4, 0xb0, 9, 0xe6, 0xf4]);
    guest.ram.write(Gpa(0x1100), &[0xcf]).unwrap();
    guest.ram.write(Gpa(0), &[0x00, 0x11, 0, 0]).unwrap();
    let mut state = guest.save();
    // As a firmware leaves the APIC: enabled, LINT0 takes interrupts of the 8259A.
    (state.apic.svr, state.apic.lvt_lint0) = (0x1ff, 0x700);
    guest.restore(&state);
    let mailbox = Arc::clone(&guest.mailbox);
    let ended = Arc::new(AtomicBool::new(false));
    let enough = Arc::clone(&ended);
    let thread = std::thread::spawn(move || {
        // A vCPU without a core may sleep through one.
        while !enough.load(Ordering::SeqCst) {
            for level in [false, true] {
                std::thread::sleep(Duration::from_millis(5));
                mailbox.set_extint(level);
            }
        }
    });
    let exit = guest.run();
    ended.store(true, Ordering::SeqCst);
    thread.join().unwrap();
    assert_eq!(exit, VcpuExit::Stop(StopCause::DebugExit { value: 9 }));
    assert_eq!(guest.counter("halts"), 1);
}

/// vCPU 1 is started, and both wait in KVM for what the other writes.
#[test]
fn two_vcpus_execute_in_one_vm() {
    let Some((kvm, khz)) = kvm_here("two vCPUs") else { return };
    // w: cmp byte [0x3000], 1; jne w; mov byte [0x3001], 1; mov al, 6; out 0xf4, al
    let code = [0x80, 0x3e, 0, 0x30, 1, 0x75, 0xf9, 0xc6, 6, 1, 0x30, 1, 0xb0, 6, 0xe6, 0xf4];
    let [mut first, mut second] = Guest::several(&kvm, khz, &code);
    // mov byte [0x3000], 1; w: cmp byte [0x3001], 1; jne w; mov al, 5; out 0xf4, al
    let code = [0xc6, 6, 0, 0x30, 1, 0x80, 0x3e, 1, 0x30, 1, 0x75, 0xf9, 0xb0, 5, 0xe6, 0xf4];
    second.ram.write(Gpa(0x2000), &code).unwrap();
    second.mailbox.post_init();
    second.mailbox.post_sipi(2);
    let other = std::thread::spawn(move || (second.run(), second));
    let exit = first.run();
    assert_eq!(exit, VcpuExit::Stop(StopCause::DebugExit { value: 6 }));
    let (exit, second) = other.join().unwrap();
    assert_eq!(exit, VcpuExit::Stop(StopCause::DebugExit { value: 5 }));
    for guest in [first, second] {
        assert!(guest.counter("kernel_runs") > 0, "KVM has executed it");
    }
}

#[test]
fn the_kernel_tells_which_pages_were_written() {
    let Some((kvm, khz)) = kvm_here("the write log") else { return };
    // mov byte [0x5000], 1; out 0xf4, al; mov byte [0x6000], 1; mov byte [0x7fff], 1; out 0xf4, al
    let code =
        [0xc6, 6, 0, 0x50, 1, 0xe6, 0xf4, 0xc6, 6, 0, 0x60, 1, 0xc6, 6, 0xff, 0x7f, 1, 0xe6, 0xf4];
    let mut guest = Guest::new(&kvm, khz, &code);
    let log = guest.vcpu.write_log().expect("KVM has a dirty log");
    let ram = Arc::clone(&guest.ram);
    log.keep(true).unwrap();
    log.collect().unwrap();
    ram.track_dirty(DirtyConsumer::Snapshot, true);
    let dirty = || ram.dirty_pages(DirtyConsumer::Snapshot);
    for written in [vec![5], vec![6, 7]] {
        assert!(matches!(guest.run(), VcpuExit::Stop(_)));
        assert!(dirty().is_empty(), "nobody has told yet");
        log.collect().unwrap();
        assert_eq!(dirty(), written);
    }
    log.keep(false).unwrap();
    log.collect().unwrap();
    assert_eq!(guest.counter("instructions_carried"), 0, "KVM has executed it");
}

#[test]
fn a_pause_in_hlt_is_seen_in_the_state() {
    let Some((kvm, khz)) = kvm_here("HLT") else { return };
    // sti; hlt
    let mut guest = Guest::new(&kvm, khz, &[0xfb, 0xf4]);
    let mut pauses = 0;
    // At least one pause begins in HLT.
    while pauses < 2 || guest.counter("halts") == 0 {
        pauses += 1;
        let kicker = guest.vcpu.kicker();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            kicker.kick();
        });
        assert_eq!(guest.run(), VcpuExit::Paused);
        thread.join().unwrap();
    }
    assert_eq!(guest.counter("halts"), 1, "it is still the same one");
    let state = guest.save();
    assert_eq!((state.run_state, state.general.rip), (RunState::Halted, 0x1002));
}

#[test]
fn the_timer_ends_hlt() {
    let Some((kvm, khz)) = kvm_here("the timer") else { return };
    // sti; hlt; mov al, 3; out 0xf4, al. The handler at 0x1100, of vector 0x40, is IRET.
    let mut guest = Guest::new(&kvm, khz, &[0xfb, 0xf4, 0xb0, 3, 0xe6, 0xf4]);
    guest.ram.write(Gpa(0x1100), &[0xcf]).unwrap();
    guest.ram.write(Gpa(0x100), &[0x00, 0x11, 0, 0]).unwrap();
    let mut state = guest.save();
    (state.apic.svr, state.apic.lvt_timer) = (0x1ff, 0x40);
    // The host's own: an emulated KVM has been seen that knows no other.
    // SAFETY: RDTSC exists on every x86-64 CPU.
    state.tsc = unsafe { std::arch::x86_64::_rdtsc() };
    let tsc_ticks = u64::from(khz) * 20;
    state.apic.timer_initial_count = 20_000_000;
    state.apic.timer_countdown = Some(SavedCountdown { tsc_ticks, fraction: 0 });
    guest.restore(&state);
    let start = Instant::now();
    assert_eq!(guest.run(), VcpuExit::Stop(StopCause::DebugExit { value: 3 }));
    assert!(start.elapsed() >= Duration::from_millis(15), "{:?}", start.elapsed());
}

#[test]
fn what_kvm_fails_at_is_carried_by_the_interpreter_and_counted() {
    let Some((kvm, khz)) = kvm_here("a failure") else { return };
    // fld1; fistp word [0x3000]; mov al, [0x3000]; out 0xf4, al: KVM's emulator has no x87.
    let code = [0xd9, 0xe8, 0xdf, 0x1e, 0, 0x30, 0xa0, 0, 0x30, 0xe6, 0xf4];
    let mut guest = Guest::new(&kvm, khz, &code);
    assert_eq!(guest.run(), VcpuExit::Stop(StopCause::DebugExit { value: 1 }));
    let (failures, carried) =
        (guest.counter("emulation_failures"), guest.counter("instructions_carried"));
    match kvm.speed().unwrap() {
        // The interpreter goes on until user mode, or for 10,000 instructions.
        Speed::Emulated(_) => assert!(failures == 1 && carried >= 2, "{failures}, {carried}"),
        Speed::Hardware(_) => assert!(failures == 0 && carried == 0, "{failures}, {carried}"),
    }
}
