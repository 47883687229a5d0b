//! Tiny guests on the kvm engine. Where /dev/kvm cannot be used, each test says so and passes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use device::{Answer, GuestClock, Nanos, StopCause, Width};
use engine::{
    CpuBus, CpuProfile, Engine, HypercallFrame, Level, Vcpu, VcpuConfig, VcpuExit, VcpuState,
    Vendor,
};
use interpreter::Interpreter;
use kvm::{Kvm, Share};
use lapic::{ApicMode, DestinationInfo, Ipi, Mailbox};
use memory::{Gpa, GuestRam};

/// A bus on which port 0x80 counts and port 0xf4 stops.
struct Ports {
    clock: HandClock,
    written: AtomicU64,
}

struct HandClock;

impl GuestClock for HandClock {
    fn now(&self) -> Nanos {
        0
    }
}

impl CpuBus for Ports {
    fn port_read(&self, _port: u16, _width: Width) -> Answer<u32> {
        Answer::Done(0x5a)
    }

    fn port_write(&self, port: u16, _width: Width, value: u32) -> Answer<()> {
        match port {
            0xf4 => Answer::StopAfterInstruction((), StopCause::DebugExit { value: value as u8 }),
            _ => {
                self.written.fetch_add(u64::from(value), Ordering::Relaxed);
                Answer::Done(())
            }
        }
    }

    fn mmio_read(&self, _gpa: u64, data: &mut [u8]) -> Answer<()> {
        data.fill(0xa5);
        Answer::Done(())
    }

    fn mmio_write(&self, _gpa: u64, _data: &[u8]) -> Answer<()> {
        Answer::Done(())
    }

    fn msr_read(&self, _vcpu: u32, _msr: u32) -> Answer<u64> {
        Answer::Fault
    }

    fn msr_write(&self, _vcpu: u32, _msr: u32, _value: u64) -> Answer<()> {
        Answer::Fault
    }

    fn hypercall(&self, _vcpu: u32, _frame: &mut HypercallFrame) -> Answer<()> {
        Answer::Fault
    }

    fn send_ipi(&self, _from: u32, _ipi: Ipi) {}

    fn end_of_interrupt(&self, _vector: u8) {}

    fn acknowledge_extint(&self) -> u8 {
        0x20
    }

    fn clock(&self) -> &dyn GuestClock {
        &self.clock
    }
}

/// An APIC after power-on.
fn destination(apic_id: u32) -> DestinationInfo {
    DestinationInfo {
        apic_id,
        mode: ApicMode::Xapic,
        software_enabled: false,
        logical_id: 0,
        cluster: false,
        priority: 0,
    }
}

/// A vCPU in real mode at address 0x1000, where `code` is.
struct Guest {
    vcpu: Box<dyn Vcpu>,
    bus: Ports,
    mailbox: Arc<Mailbox>,
    ram: Arc<GuestRam>,
}

impl Guest {
    fn new(engine: &dyn Engine, khz: u32, code: &[u8]) -> Self {
        let vendor = if std::arch::x86_64::__cpuid(0).ebx.to_le_bytes() == *b"Auth" {
            Vendor::Amd
        } else {
            Vendor::Intel
        };
        let profile = CpuProfile::new(Level::V2, vendor, khz, &|_| true).unwrap();
        let ram = Arc::new(GuestRam::new(&[(0, 1 << 20)]).unwrap());
        ram.write(Gpa(0x1000), code).unwrap();
        let mailbox = Arc::new(Mailbox::new(destination(0)));
        let config = VcpuConfig {
            index: 0,
            apic_id: 0,
            profile: Arc::new(profile),
            ram: Arc::clone(&ram),
            mailbox: Arc::clone(&mailbox),
            rendezvous: Arc::new(engine::Rendezvous::new(&[])),
        };
        let bus = Ports { clock: HandClock, written: AtomicU64::new(0) };
        let vcpu = engine.create_vcpu(config).unwrap();
        let mut guest = Self { vcpu, bus, mailbox, ram };
        let mut state = guest.save();
        let cs = &mut state.segments.segment[x86::segment::seg::CS];
        (cs.selector, cs.base) = (0, 0);
        state.general.rip = 0x1000;
        state.general.gpr[4] = 0x8000;
        guest.restore(&state);
        guest
    }

    fn save(&mut self) -> VcpuState {
        self.vcpu.save(&self.bus).unwrap()
    }

    fn restore(&mut self, state: &VcpuState) {
        self.vcpu.restore(state, &self.bus).unwrap();
    }

    fn run(&mut self) -> VcpuExit {
        self.vcpu.run(&self.bus).unwrap()
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
    assert_eq!(guest.bus.written.load(Ordering::Relaxed), 7);
    // The instruction is complete.
    assert_eq!(guest.save().general.rip, 0x1006);
    assert_eq!(guest.counter("port_exits"), 2, "KVM has executed it");
}

#[test]
fn a_kick_ends_an_endless_loop_and_the_state_moves_between_engines() {
    let Some((kvm, khz)) = kvm_here("a kick") else { return };
    let mut guest = Guest::new(&kvm, khz, &FOREVER);
    let kicker = guest.vcpu.kicker();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        kicker.kick();
    });
    assert_eq!(guest.run(), VcpuExit::Paused);
    thread.join().unwrap();
    let state = guest.save();
    assert!(matches!(state.general.rip, 0x1000 | 0x1001), "{:#x}", state.general.rip);
    assert!(guest.counter("kernel_runs") > 0);

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
    // sti; hlt; mov al, 9; out 0xf4, al. The handler at 0x1100 is IRET.
    let mut guest = Guest::new(&kvm, khz, &[0xfb, 0xf4, 0xb0, 9, 0xe6, 0xf4]);
    guest.ram.write(Gpa(0x1100), &[0xcf]).unwrap();
    guest.ram.write(Gpa(0x20 * 4), &[0x00, 0x11, 0, 0]).unwrap();
    let mut state = guest.save();
    // As a firmware leaves the APIC: enabled, LINT0 takes interrupts of the 8259A.
    (state.apic.svr, state.apic.lvt_lint0) = (0x1ff, 0x700);
    guest.restore(&state);
    let mailbox = Arc::clone(&guest.mailbox);
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        mailbox.set_extint(true);
        std::thread::sleep(Duration::from_millis(1));
        mailbox.set_extint(false);
    });
    let exit = guest.run();
    thread.join().unwrap();
    assert_eq!(exit, VcpuExit::Stop(StopCause::DebugExit { value: 9 }));
    assert_eq!(guest.counter("halts"), 1);
}

#[test]
fn a_second_cpu_is_refused() {
    let Some((kvm, khz)) = kvm_here("a second CPU") else { return };
    let profile = CpuProfile::new(Level::V2, Vendor::Intel, khz, &|_| true).unwrap();
    let config = VcpuConfig {
        index: 1,
        apic_id: 1,
        profile: Arc::new(profile),
        ram: Arc::new(GuestRam::new(&[(0, 1 << 20)]).unwrap()),
        mailbox: Arc::new(Mailbox::new(destination(1))),
        rendezvous: Arc::new(engine::Rendezvous::new(&[])),
    };
    let error = kvm.create_vcpu(config).err().unwrap().to_string();
    assert!(error.contains("--cpus 1"), "{error}");
}
