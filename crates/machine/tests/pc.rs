//! The platform `pc` as its vCPUs see it: what is where, and which line leads where.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backend::CaptureConsole;
use device::{Answer, StopCause, Width};
use engine::{CpuBus, Engine, EngineError, HypercallFrame, TscScale, Vcpu, VcpuConfig};
use lapic::{Event, Mailbox};
use machine::{CpuLevel, HostSide, Machine, MachineSpec};
use memory::Gpa;

/// An engine that only shows what it was given.
#[derive(Default)]
struct Spy(std::sync::Mutex<Option<Arc<Mailbox>>>);

impl Engine for Spy {
    fn name(&self) -> &'static str {
        "spy"
    }

    fn create_vcpu(&self, config: VcpuConfig) -> Result<Box<dyn Vcpu>, EngineError> {
        *self.0.lock().unwrap() = Some(config.mailbox);
        Err(EngineError::Unsupported { engine: "spy", missing: "everything".to_owned() })
    }
}

struct Pc {
    machine: Machine,
    bus: Arc<dyn CpuBus>,
    mailbox: Arc<Mailbox>,
    console: Arc<CaptureConsole>,
}

fn pc() -> Pc {
    let console = CaptureConsole::new(1 << 10);
    let spec = MachineSpec { debug_exit: true, ..MachineSpec::new(16 << 20) };
    let profile = CpuLevel::Portable.profile().unwrap();
    let mut machine =
        Machine::new(spec, profile, HostSide::new(Arc::clone(&console) as _)).unwrap();
    let spy = Spy::default();
    assert!(machine.create_vcpus(&spy).is_err());
    let mailbox = spy.0.lock().unwrap().take().unwrap();
    Pc { bus: machine.bus(), machine, mailbox, console }
}

impl Pc {
    fn out(&self, port: u16, value: u32) -> Answer<()> {
        self.bus.port_write(port, Width::Byte, value)
    }

    fn read(&self, port: u16, width: Width) -> u32 {
        match self.bus.port_read(port, width) {
            Answer::Done(value) => value,
            other => panic!("{other:?}"),
        }
    }

    fn io_apic(&self, register: u32, value: u32) {
        self.bus.mmio_write(0xfec0_0000, &register.to_le_bytes());
        self.bus.mmio_write(0xfec0_0010, &value.to_le_bytes());
    }

    /// Leads input `gsi` to `vector` of the boot processor, level-triggered or not.
    fn route(&self, gsi: u32, vector: u32, level: bool) {
        self.io_apic(0x11 + 2 * gsi, 0);
        self.io_apic(0x10 + 2 * gsi, vector | u32::from(level) << 15);
    }

    fn posted(&self) -> Vec<Event> {
        let mut events = Vec::new();
        self.mailbox.drain(|event| events.push(event));
        events
    }

    /// Waits for a vector, as a sleeping vCPU would.
    fn wait_for(&self, vector: u8) {
        let start = Instant::now();
        while !self.posted().contains(&Event::Interrupt { vector, level: false }) {
            assert!(start.elapsed() < Duration::from_secs(10), "no interrupt");
            std::thread::yield_now();
        }
    }

    /// Makes the local APIC known as enabled: the guest's first act.
    fn enable_apic(&self) {
        let info = self.mailbox.destination();
        self.mailbox.publish(lapic::DestinationInfo { software_enabled: true, ..info });
    }
}

#[test]
fn the_console_prints() {
    let pc = pc();
    for byte in *b"hi" {
        assert_eq!(pc.out(0x3f8, byte.into()), Answer::Done(()));
    }
    assert_eq!(pc.console.text(), "hi");
}

#[test]
fn the_uart_interrupts_on_input_4() {
    let pc = pc();
    pc.enable_apic();
    pc.route(4, 0x41, false);
    let input = pc.machine.console_input();
    assert_eq!(input.push(b"x"), 0, "the guest does not listen yet");
    pc.out(0x3fc, 0x08);
    pc.out(0x3f9, 0x01);
    assert_eq!(input.push(b"x"), 1);
    assert_eq!(pc.posted(), [Event::Interrupt { vector: 0x41, level: false }]);
    assert_eq!(pc.read(0x3f8, Width::Byte), u32::from(b'x'));
}

#[test]
fn the_pit_interrupts_on_input_2_while_time_passes() {
    let pc = pc();
    pc.enable_apic();
    pc.route(2, 0x30, false);
    pc.out(0x43, 0x34);
    pc.out(0x40, 0xff);
    pc.out(0x40, 0x04);
    // In this mode the output goes high at once.
    pc.posted();
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(pc.posted(), [], "time stands, and the PIT interrupts");
    pc.machine.start_time();
    pc.wait_for(0x30);
    pc.machine.stop_time();
    pc.posted();
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(pc.posted(), []);
}

#[test]
fn the_pic_interrupts_the_boot_processor() {
    let pc = pc();
    // Both controllers: edge, vectors 0x20 and 0x28, cascade, 8086 mode; all but input 4 masked.
    for (port, words) in [(0x20, [0x20, 4]), (0xa0, [0x28, 2])] {
        pc.out(port, 0x11);
        pc.out(port + 1, words[0]);
        pc.out(port + 1, words[1]);
        pc.out(port + 1, 1);
    }
    pc.out(0x21, !(1 << 4) & 0xff);
    assert!(!pc.mailbox.extint());
    pc.out(0x3fc, 0x08);
    pc.out(0x3f9, 0x01);
    pc.machine.console_input().push(b"x");
    assert!(pc.mailbox.extint());
    assert_eq!(pc.bus.acknowledge_extint(), 0x24);
    assert!(!pc.mailbox.extint());
}

#[test]
fn the_power_button_raises_the_sci_until_the_guest_clears_it() {
    let pc = pc();
    pc.enable_apic();
    pc.route(9, 0x39, true);
    pc.bus.port_write(0x602, Width::Word, 0x100);
    pc.machine.press_power_button();
    let sci = Event::Interrupt { vector: 0x39, level: true };
    assert_eq!(pc.posted(), [sci]);
    pc.bus.end_of_interrupt(0x39);
    assert_eq!(pc.posted(), [sci], "a level that stays sends again");
    pc.bus.port_write(0x600, Width::Word, 0x100);
    pc.bus.end_of_interrupt(0x39);
    assert_eq!(pc.posted(), []);
}

#[test]
fn guests_stop_the_machine() {
    let pc = pc();
    let stop = |cause| Answer::StopAfterInstruction((), cause);
    assert_eq!(pc.bus.port_write(0x604, Width::Word, 0x3400), stop(StopCause::PowerOff));
    assert_eq!(pc.out(0xcf9, 6), stop(StopCause::Reset));
    assert_eq!(pc.out(0x64, 0xfe), stop(StopCause::Reset));
    for width in [Width::Byte, Width::Word, Width::Dword] {
        let exit = stop(StopCause::DebugExit { value: 7 });
        assert_eq!(pc.bus.port_write(0xf4, width, 7), exit);
    }
}

#[test]
fn a_configuration_address_is_no_reset() {
    let pc = pc();
    // Function 6 of device 0: its second byte is the value that resets at port 0xcf9.
    assert_eq!(pc.bus.port_write(0xcf8, Width::Dword, 0x8000_0600), Answer::Done(()));
    assert_eq!(pc.bus.port_write(0xcf8, Width::Word, 0x0600), Answer::Done(()));
    assert_eq!(pc.read(0xcf8, Width::Dword), 0x8000_0600);
    assert_eq!(pc.read(0xcfc, Width::Word), 0xffff);
}

#[test]
fn the_kvm_clock_agrees_with_the_tsc() {
    let pc = pc();
    let profile = pc.machine.profile();
    let signature = profile.cpuid(0x4000_0000, 0);
    assert_eq!(signature.ebx.to_le_bytes(), *b"KVMK");
    pc.machine.start_time();
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(pc.bus.msr_write(0, 0x4b56_4d01, 0x1000 | 1), Answer::Done(()));
    assert_eq!(pc.bus.msr_read(0, 0x4b56_4d01), Answer::Done(0x1001));
    let mut info = [0; 32];
    pc.machine.ram().read(Gpa(0x1000), &mut info).unwrap();
    let at = |from: usize| u64::from_le_bytes(info[from..from + 8].try_into().unwrap());
    let (tsc, time) = (at(8), at(16));
    assert!(time >= 2_000_000 && time <= pc.bus.clock().now());
    assert_eq!(tsc, TscScale::new(profile.tsc_khz()).ns_to_ticks(time));
    // Beyond memory the structure is not written; other MSRs are nobody's.
    assert_eq!(pc.bus.msr_write(0, 0x4b56_4d01, u64::MAX), Answer::Done(()));
    assert_eq!(pc.bus.msr_read(0, 0x1234), Answer::Fault);
    assert_eq!(pc.bus.msr_write(0, 0x1234, 0), Answer::Fault);
}

#[test]
fn hypercalls_wake_or_say_that_they_are_unknown() {
    const KICK_CPU: u64 = 5;
    let pc = pc();
    let call = |rax, cpl, apic_id| {
        let mut frame = HypercallFrame { rax, arguments: [0, apic_id, 0, 0], cpl };
        assert_eq!(pc.bus.hypercall(0, &mut frame), Answer::Done(()));
        frame.rax as i64
    };
    let woken = || {
        let mut woken = false;
        pc.mailbox.drain(|event| woken |= event == Event::Wake);
        woken
    };
    assert_eq!((call(1, 0, 0), call(1, 3, 0)), (-1000, -1));
    assert_eq!((call(KICK_CPU, 3, 0), woken()), (-1, false));
    assert_eq!((call(KICK_CPU, 0, 77), woken()), (0, false), "nobody there");
    assert_eq!((call(KICK_CPU, 0, 0), woken()), (0, true));
}

#[test]
fn a_guest_that_touches_everything_breaks_nothing() {
    let pc = pc();
    for value in [0, 0xff, 0x5a5a_5a5a, u32::MAX] {
        for port in 0..=u16::MAX {
            for width in [Width::Byte, Width::Word, Width::Dword] {
                pc.bus.port_read(port, width);
                pc.bus.port_write(port, width, value);
            }
        }
    }
    for page in [0xfec0_0000_u64, 0xfed0_0000, 0xb000_0000, 0xffff_f000, u64::MAX - 0xfff] {
        for offset in 0..0xff8 {
            let mut data = [0; 8];
            for len in [1, 2, 4, 8] {
                pc.bus.mmio_read(page + offset, &mut data[..len]);
                pc.bus.mmio_write(page + offset, &[0xa5; 8][..len]);
            }
        }
    }
    let stats = pc.machine.stats();
    assert!(stats.ports.iter().all(|p| p.reads > 0 && p.writes > 0), "{:?}", stats.ports);
    let devices: Vec<_> = stats.mmio.iter().map(|m| m.device).collect();
    assert_eq!(devices, ["rom-area", "pci", "io-apic", "unclaimed"]);
}

#[test]
fn what_was_saved_is_restored_and_nothing_is_left_over() {
    let pc = pc();
    pc.out(0x3ff, 0x5a);
    pc.out(0x43, 0x34);
    pc.route(4, 0x41, false);
    pc.bus.msr_write(0, 0x4b56_4d01, 0x1001);
    let mut archive = state::Archive::new();
    pc.machine.save(&mut archive).unwrap();
    let fresh = self::pc();
    let profile = Machine::saved_profile(&mut archive).unwrap();
    assert_eq!(&profile, fresh.machine.profile());
    fresh.machine.restore_clock(&mut archive).unwrap();
    fresh.machine.restore_devices(&mut archive).unwrap();
    archive.finish().unwrap();
    assert_eq!(fresh.read(0x3ff, Width::Byte), 0x5a);
    assert_eq!(fresh.bus.msr_read(0, 0x4b56_4d01), Answer::Done(0x1001));
}

#[test]
fn a_missing_device_is_named() {
    let pc = pc();
    let mut archive = state::Archive::new();
    pc.machine.save(&mut archive).unwrap();
    archive.take("pit", "0").unwrap();
    let error = pc.machine.restore_devices(&mut archive).unwrap_err().to_string();
    assert!(error.contains("pit/0"), "{error}");
}

fn config(pc: &Pc, slot: u32, register: u32) -> u32 {
    pc.bus.port_write(0xcf8, Width::Dword, 1 << 31 | slot << 11 | register);
    pc.read(0xcfc, Width::Dword)
}

fn set_config(pc: &Pc, slot: u32, register: u32, value: u32) {
    pc.bus.port_write(0xcf8, Width::Dword, 1 << 31 | slot << 11 | register);
    pc.bus.port_write(0xcfc, Width::Dword, value);
}

fn peek(pc: &Pc, gpa: u64) -> u32 {
    let mut data = [0; 4];
    assert_eq!(pc.bus.mmio_read(gpa, &mut data), Answer::Done(()));
    u32::from_le_bytes(data)
}

#[test]
fn functions_are_found_by_ports_and_by_ecam() {
    let pc = pc();
    for (slot, id) in [(0, 0x29c0_8086), (1, 0x1044_1af4), (2, u32::MAX), (31, 0x2918_8086)] {
        assert_eq!(config(&pc, slot, 0), id);
        assert_eq!(peek(&pc, 0xb000_0000 + (u64::from(slot) << 15)), id);
    }
    // The LPC bridge says where the power-management block is.
    assert_eq!(config(&pc, 31, 0x40), 0x601);
}

#[test]
fn bars_go_where_nobody_else_is() {
    let pc = pc();
    // Register BAR of the entropy device: number of queues and status, the device id being known.
    let queues = |at: u64| peek(&pc, at + 0x10) >> 16;
    for base in [0xc000_0000_u64, 0x10_0000_0000, 0x0100_0000] {
        set_config(&pc, 1, 0x20, base as u32);
        set_config(&pc, 1, 0x24, (base >> 32) as u32);
        set_config(&pc, 1, 0x04, 6);
        assert_eq!(queues(base), 1, "{base:#x}");
        set_config(&pc, 1, 0x04, 0);
        assert_eq!(queues(base), 0xffff, "{base:#x}");
    }
    // Over a device of the platform, and over RAM, it is not reached.
    set_config(&pc, 1, 0x04, 6);
    for base in [0xfec0_0000, 0] {
        let before = (peek(&pc, base), peek(&pc, base + 0x10));
        set_config(&pc, 1, 0x20, base as u32);
        set_config(&pc, 1, 0x24, 0);
        assert_eq!((peek(&pc, base), peek(&pc, base + 0x10)), before, "{base:#x}");
    }
}

#[test]
fn other_disks_than_the_specifications_are_refused() {
    let disk = Arc::new(backend::MemoryDisk::new(8)) as Arc<dyn backend::Disk>;
    let spec = MachineSpec::new(16 << 20);
    let console = CaptureConsole::new(16);
    let host = HostSide { disks: vec![disk], ..HostSide::new(console) };
    let profile = CpuLevel::Portable.profile().unwrap();
    let Err(error) = Machine::new(spec, profile, host) else { panic!("a machine was made") };
    let text = error.to_string();
    assert!(text.contains("no disks") && text.contains("4096 bytes"), "{text}");
}

#[test]
fn fw_cfg_tells_of_the_machine() {
    let pc = pc();
    let item = |key: u32, len: usize| -> Vec<u8> {
        pc.bus.port_write(0x510, Width::Word, key);
        (0..len).map(|_| pc.read(0x511, Width::Byte) as u8).collect()
    };
    assert_eq!(item(0, 4), b"QEMU");
    assert_eq!(item(3, 8), (16_u64 << 20).to_le_bytes());
    assert_eq!(item(5, 2), [1, 0]);
    let count = u32::from_be_bytes(item(0x19, 4).try_into().unwrap()) as usize;
    let directory = item(0x19, 4 + 64 * count);
    let names: Vec<&[u8]> = directory[4..]
        .chunks(64)
        .map(|entry| entry[8..].split(|byte| *byte == 0).next().unwrap())
        .collect();
    let expected: [&[u8]; 5] =
        [b"bootorder", b"etc/acpi/rsdp", b"etc/acpi/tables", b"etc/e820", b"etc/table-loader"];
    assert_eq!(names, expected);
    // The root pointer by DMA, to 2 MiB.
    let ram = pc.machine.ram();
    let request = [0x21_000a_u32.to_be_bytes(), 36_u32.to_be_bytes()].concat();
    ram.write(Gpa(0x1000), &[request, 0x20_0000_u64.to_be_bytes().to_vec()].concat()).unwrap();
    pc.bus.port_write(0x518, Width::Dword, 0x1000_u32.swap_bytes());
    let (mut control, mut rsdp) = ([1; 4], [0; 8]);
    ram.read(Gpa(0x1000), &mut control).unwrap();
    ram.read(Gpa(0x20_0000), &mut rsdp).unwrap();
    assert_eq!((control, &rsdp), ([0; 4], b"RSD PTR "));
}
