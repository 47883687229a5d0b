//! Saved state that was damaged or forged.

use std::sync::Arc;

use backend::{ConsoleOutput, MemoryDisk};
use chipset::{AcpiPm, DebugExit, DmaMemory, FwCfg, FwCfgItems, GuestMemoryWriter, GuestTsc};
use chipset::{I8042, IoApic, KvmClock, MemorySize, Pic, Pit, Rtc, Uart};
use device::testing::{ManualTime, RecordingLine};
use device::{Answer, Device, Message, Mmio, MsiSender, Nanos, PortIo, Width};
use engine::VcpuState;
use memory::GuestRam;
use pci::{Function, HostBridge, LpcBridge, Root};
use state::{Archive, Section};
use virtio::{Block, Dma, VirtioPci};

use crate::Input;

/// Longest pause between two accesses to a restored device.
const PAUSE_NS: u64 = 50_000_000;

/// Accesses to a restored device.
const ACCESSES: usize = 32;

/// Reads the input as an archive, and as the state of one device: forged as a whole, or the
/// device's own with some bytes changed. A device that takes it must live with it.
///
/// # Panics
/// When a reader or a device panics, or a device saves something else than it was restored from.
pub fn saved_state(data: &[u8]) {
    archive(data);
    let mut input = Input::new(data);
    let time = ManualTime::new();
    let subjects = subjects(&time);
    let subject = &subjects[usize::from(input.byte()) % subjects.len()];
    let section = section(subject.device(), &mut input);
    vcpu(&section);
    if subject.device().restore(&section).is_err() {
        // A refused state leaves the device unusable until it is reset, but not dangerous.
        subject.device().reset();
    } else {
        is_faithful(subject.device());
    }
    for _ in 0..ACCESSES {
        subject.access(&mut input);
        time.advance(input.word() % PAUSE_NS);
    }
    is_faithful(subject.device());
    subject.device().reset();
}

/// What can be read can be written, and gives the same bytes.
fn archive(data: &[u8]) {
    let Ok(archive) = Archive::read_from(data) else { return };
    let mut written = Vec::new();
    archive.write_to(&mut written).expect("read before");
    assert_eq!(written, data[..written.len()], "the archive is written otherwise than read");
}

fn section(device: &dyn Device, input: &mut Input<'_>) -> Section {
    let mut section = device.save("0").expect("a new device");
    if input.byte().is_multiple_of(4) {
        section.payload = input.rest().to_vec();
        return section;
    }
    for _ in 0..=input.byte() % 8 {
        let at = usize::from(input.short()) % section.payload.len();
        section.payload[at] = input.byte();
    }
    section
}

/// The state of a vCPU is only decoded here; the interpreter restores it in another target.
fn vcpu(section: &Section) {
    let forged = Section { kind: "vcpu".to_owned(), version: 1, ..section.clone() };
    if let Ok(state) = forged.decode::<VcpuState>() {
        let encoded = state.to_section(0).expect("decoded before");
        assert_eq!(encoded.decode::<VcpuState>().expect("encoded before"), state);
    }
}

/// A device may correct what a forged state says once (a moment in the future), but its own state
/// it takes as it is.
fn is_faithful(device: &dyn Device) {
    let round_trip = || {
        let saved = device.save("0").expect("save");
        device.restore(&saved).expect("its own state");
        device.save("0").expect("save")
    };
    assert_eq!(round_trip(), round_trip(), "restored to something else");
}

/// A device and how a guest reaches it.
enum Subject {
    Ports(Box<dyn PortDevice>, &'static [(u16, u16)]),
    Registers(IoApic),
    Clock(KvmClock),
    Pci(Box<dyn PciDevice>),
}

trait PciDevice: Device + Function {
    fn as_device(&self) -> &dyn Device;
}

impl<T: Device + Function> PciDevice for T {
    fn as_device(&self) -> &dyn Device {
        self
    }
}

trait PortDevice: Device + PortIo {
    fn as_device(&self) -> &dyn Device;
}

impl<T: Device + PortIo> PortDevice for T {
    fn as_device(&self) -> &dyn Device {
        self
    }
}

impl Subject {
    fn device(&self) -> &dyn Device {
        match self {
            Self::Ports(device, _) => device.as_device(),
            Self::Registers(device) => device,
            Self::Clock(device) => device,
            Self::Pci(device) => device.as_device(),
        }
    }

    /// One access that a guest could make.
    fn access(&self, input: &mut Input<'_>) {
        let write = input.byte() & 1 != 0;
        match self {
            Self::Ports(device, ranges) => {
                let (first, count) = input.pick(ranges);
                let port = first + u16::from(input.byte()) % count;
                let width = input.pick(&[Width::Byte, Width::Word, Width::Dword]);
                if write {
                    let _: Answer<()> = device.port_write(port, width, input.word() as u32);
                } else {
                    let _: Answer<u32> = device.port_read(port, width);
                }
            }
            Self::Registers(device) => {
                let offset = u64::from(input.short()) % IoApic::SIZE;
                let mut data = input.word().to_le_bytes();
                let part = &mut data[..input.pick(&[4, 4, 1, 2, 8])];
                if write {
                    let _: Answer<()> = device.mmio_write(offset, part);
                } else {
                    let _: Answer<()> = device.mmio_read(offset, part);
                }
            }
            Self::Clock(device) => {
                let msr = input.pick(&[0x11, 0x12, 0x4b56_4d00, 0x4b56_4d01]);
                if write {
                    let _: bool = device.msr_write(0, msr, input.word());
                } else {
                    let _: Option<u64> = device.msr_read(0, msr);
                    device.refresh();
                }
            }
            Self::Pci(device) => {
                let (register, bar) = (input.byte(), input.pick(&[4, 1]));
                let offset = u64::from(input.short()) % 0x1000;
                let mut data = input.word().to_le_bytes();
                let part = &mut data[..input.pick(&[4, 2, 1, 8])];
                match (write, input.byte() & 1) {
                    (true, 0) => device.config_write(register.into(), part),
                    (true, _) => device.bar_write(bar, offset, part),
                    (false, 0) => device.config_read(register.into(), part),
                    (false, _) => device.bar_read(bar, offset, part),
                }
                device.mapped_bars();
            }
        }
    }
}

/// What devices are connected to here: it leads nowhere.
struct Nowhere;

impl ConsoleOutput for Nowhere {
    fn write(&self, _bytes: &[u8]) {}
}

impl MsiSender for Nowhere {
    fn send(&self, _message: Message) {}
}

impl GuestMemoryWriter for Nowhere {
    fn write(&self, gpa: u64, _data: &[u8]) -> bool {
        gpa < 1 << 20
    }
}

impl DmaMemory for Nowhere {
    fn read(&self, gpa: u64, _to: &mut [u8]) -> bool {
        gpa < 1 << 20
    }

    fn write(&self, gpa: u64, _from: &[u8]) -> bool {
        gpa < 1 << 20
    }
}

impl GuestTsc for Nowhere {
    fn khz(&self) -> u32 {
        2_000_000
    }

    fn at(&self, _vcpu: usize, time: Nanos) -> u64 {
        time.saturating_mul(2)
    }
}

const UART_PORTS: [(u16, u16); 1] = [(Uart::COM1, Uart::PORTS)];
const RTC_PORTS: [(u16, u16); 1] = [Rtc::PORTS];
const FW_CFG_PORTS: [(u16, u16); 1] = [FwCfg::PORTS];
const PCI_PORTS: [(u16, u16); 1] = [Root::PORTS];
const EXIT_PORTS: [(u16, u16); 1] = [(DebugExit::PORT, DebugExit::PORTS)];

/// One of each device.
fn subjects(time: &Arc<ManualTime>) -> Vec<Subject> {
    let line = RecordingLine::new;
    let timers = time.as_ref();
    let size = MemorySize { below_4g: 512 << 20, above_4g: 0 };
    vec![
        Subject::Ports(Box::new(Pic::new(line())), &Pic::PORTS),
        Subject::Ports(Box::new(Pit::new(time.clone(), timers, line())), &Pit::PORTS),
        Subject::Ports(Box::new(Uart::new(Uart::COM1, line(), Arc::new(Nowhere))), &UART_PORTS),
        Subject::Ports(Box::new(AcpiPm::new(time.clone(), timers, line())), &AcpiPm::PORTS),
        Subject::Ports(
            Box::new(Rtc::new(time.clone(), time.clone(), timers, line(), size)),
            &RTC_PORTS,
        ),
        Subject::Ports(Box::new(I8042::new(line(), line())), &I8042::PORTS),
        Subject::Ports(Box::new(DebugExit), &EXIT_PORTS),
        Subject::Ports(
            Box::new(FwCfg::new(FwCfgItems::new(1 << 20, 1), Arc::new(Nowhere))),
            &FW_CFG_PORTS,
        ),
        Subject::Registers(IoApic::new(Arc::new(Nowhere))),
        Subject::Clock(KvmClock::new(
            2,
            Arc::new(Nowhere),
            time.clone(),
            time.clone(),
            Arc::new(Nowhere),
        )),
        Subject::Pci(Box::new(HostBridge::new())),
        Subject::Pci(Box::new(LpcBridge::new(
            0x600,
            std::array::from_fn(|_| line() as _),
            vec![(10, line() as _)],
        ))),
        Subject::Ports(Box::new(Root::new(Arc::new(HostBridge::new()), Vec::new())), &PCI_PORTS),
        Subject::Pci(Box::new(disk())),
    ]
}

/// A disk, which never works on its own.
fn disk() -> VirtioPci {
    let ram = Arc::new(GuestRam::new(&[(0, 1 << 16)]).expect("a small RAM"));
    let dma = Dma::new(ram, Arc::new(|| ()));
    let block = Box::new(Block::new(Arc::new(MemoryDisk::new(16)), "disk0"));
    VirtioPci::new(block, dma, Arc::new(Nowhere), RecordingLine::new()).expect("a thread")
}
