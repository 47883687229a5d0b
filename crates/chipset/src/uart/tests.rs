use std::sync::Arc;

use backend::{CaptureConsole, ConsoleInput};
use device::testing::RecordingLine;
use device::{Answer, Device, NoLine, PortIo, Width};
use state::{Persist, Section};

use super::Uart;
use crate::hammer::{Random, Subject, access, hammer, watch};

const RBR: u16 = 0;
const IER: u16 = 1;
const IIR: u16 = 2;
const FCR: u16 = 2;
const LCR: u16 = 3;
const MCR: u16 = 4;
const LSR: u16 = 5;
const MSR: u16 = 6;
const SCR: u16 = 7;

struct Rig {
    uart: Uart,
    line: Arc<RecordingLine>,
    console: Arc<CaptureConsole>,
}

impl Rig {
    fn new() -> Self {
        let line = RecordingLine::new();
        let console = CaptureConsole::new(4096);
        let uart = Uart::new(Uart::COM1, line.clone(), console.clone());
        Self { uart, line, console }
    }

    /// As a driver leaves it: FIFOs on, trigger at 8, OUT2 set.
    fn open(ier: u8) -> Self {
        let rig = Self::new();
        rig.write(FCR, 0x81);
        rig.write(MCR, 0x0b);
        rig.write(IER, ier);
        rig
    }

    fn read(&self, offset: u16) -> u8 {
        match self.uart.port_read(Uart::COM1 + offset, Width::Byte) {
            Answer::Done(value) => value as u8,
            other => panic!("{other:?}"),
        }
    }

    fn write(&self, offset: u16, value: u8) {
        let answer = self.uart.port_write(Uart::COM1 + offset, Width::Byte, value.into());
        assert_eq!(answer, Answer::Done(()));
    }
}

#[test]
fn output_reaches_the_back_end() {
    let rig = Rig::new();
    for byte in b"hello" {
        assert_eq!(rig.read(LSR) & 0x60, 0x60);
        rig.write(RBR, *byte);
    }
    assert_eq!(rig.console.text(), "hello");
}

/// The steps by which Linux's 8250 driver tells chips apart (`autoconfig`, `autoconfig_16550a`).
#[test]
fn linux_takes_it_for_a_16550a() {
    let rig = Rig::new();
    rig.write(IER, 0);
    assert_eq!(rig.read(IER), 0);
    rig.write(IER, 0xff);
    assert_eq!(rig.read(IER), 0x0f, "no sleep mode, no XScale bits");
    rig.write(IER, 0);
    rig.write(MCR, 0x1a);
    assert_eq!(rig.read(MSR) & 0xf0, 0x90);
    rig.write(MCR, 0);
    rig.write(LCR, 0xbf);
    rig.write(FCR, 0);
    rig.write(LCR, 0);
    rig.write(FCR, 1);
    assert_eq!(rig.read(IIR) >> 6, 3);
    for bank in [0x80, 0xbf, 0xe0] {
        rig.write(LCR, bank);
        let second = rig.read(IIR);
        assert!(second != 0 && second & 0x10 == 0, "no extended register at LCR {bank:#x}");
    }
    rig.write(FCR, 0x21);
    assert_eq!(rig.read(IIR) >> 5, 6, "no 64-byte FIFO");
    rig.write(LCR, 0);
    rig.write(SCR, 0x5a);
    assert_eq!(rig.read(SCR), 0x5a);
}

#[test]
fn loopback_shows_a_fifo_of_16_bytes_and_an_overrun() {
    let rig = Rig::open(0);
    rig.write(MCR, 0x10);
    for byte in 0..20 {
        rig.write(RBR, byte);
    }
    assert_eq!(rig.read(LSR), 0x63);
    assert_eq!(rig.read(LSR), 0x61, "reading LSR clears the overrun");
    for byte in 0..16 {
        assert_eq!(rig.read(RBR), byte);
    }
    assert_eq!(rig.read(LSR), 0x60);
    assert_eq!(rig.console.text(), "", "nothing leaves in loopback");
}

#[test]
fn without_fifos_it_is_a_16450() {
    let rig = Rig::new();
    assert_eq!(rig.read(IIR), 0x01);
    rig.write(MCR, 0x10);
    rig.write(RBR, 1);
    rig.write(RBR, 2);
    assert_eq!(rig.read(LSR) & 3, 3);
    assert_eq!(rig.read(RBR), 2, "the later character replaces the earlier");
    assert_eq!(rig.read(LSR) & 3, 0);
}

#[test]
fn received_data_interrupts_by_trigger_level_and_time_out() {
    let rig = Rig::open(1);
    assert_eq!(rig.uart.push(b"abc"), 3);
    assert!(rig.line.level());
    assert_eq!(rig.read(IIR), 0xcc, "below the trigger level: time-out");
    rig.uart.push(b"defgh");
    assert_eq!(rig.read(IIR), 0xc4);
    assert!(rig.line.level(), "reading IIR does not take a data interrupt back");
    for byte in b"abcdefgh" {
        assert_eq!(rig.read(LSR) & 1, 1);
        assert_eq!(rig.read(RBR), *byte);
    }
    assert!(!rig.line.level());
    assert_eq!(rig.read(IIR), 0xc1);
    assert_eq!(rig.line.edges(), 1);
}

#[test]
fn input_beyond_the_fifo_waits() {
    let rig = Rig::open(1);
    let text = [b'x'; 3000];
    let taken = rig.uart.push(&text);
    assert_eq!(taken, 1024);
    assert_eq!(rig.uart.room(), 16, "16 bytes moved on into the FIFO");
    let mut read = 0;
    while rig.read(LSR) & 1 != 0 {
        assert_eq!(rig.read(LSR) & 2, 0, "no overrun");
        rig.read(RBR);
        read += 1;
    }
    assert_eq!(read, taken);
    assert_eq!(rig.uart.room(), 1024);
}

#[test]
fn clearing_the_fifo_keeps_what_has_not_arrived() {
    let rig = Rig::open(0);
    rig.uart.push(b"0123456789abcdefXY");
    rig.write(FCR, 0x83);
    assert_eq!(rig.read(RBR), b'X');
    assert_eq!(rig.read(RBR), b'Y');
    assert_eq!(rig.read(LSR) & 1, 0);
}

#[test]
fn transmitter_interrupt_is_reported_once_and_comes_again() {
    let rig = Rig::open(0);
    rig.write(IER, 2);
    assert!(rig.line.level(), "enabling the interrupt raises it");
    assert_eq!(rig.read(IIR), 0xc2);
    assert!(!rig.line.level(), "reading IIR took it back");
    assert_eq!(rig.read(IIR), 0xc1);
    rig.write(RBR, b'x');
    assert!(rig.line.level());
    assert_eq!(rig.line.edges(), 2);
    // Disabling and enabling raises it again, which Linux tests for.
    assert_eq!(rig.read(IIR), 0xc2);
    rig.write(IER, 0);
    rig.write(IER, 2);
    assert_eq!(rig.read(IIR), 0xc2);
}

#[test]
fn interrupts_are_identified_by_priority() {
    let rig = Rig::open(0x0f);
    rig.write(MCR, 0x10);
    for byte in 0..17 {
        rig.write(RBR, byte);
    }
    assert_eq!(rig.read(IIR), 0xc6, "overrun");
    rig.read(LSR);
    assert_eq!(rig.read(IIR), 0xc4, "received data");
    rig.write(FCR, 0x83);
    assert_eq!(rig.read(IIR), 0xc2, "transmitter empty");
    assert_eq!(rig.read(IIR), 0xc0, "modem status");
    assert_eq!(rig.read(MSR), 0x0b, "all inputs fell on entering loopback");
    assert_eq!(rig.read(IIR), 0xc1);
}

#[test]
fn ring_indicator_reports_its_trailing_edge() {
    let rig = Rig::new();
    rig.write(MCR, 0x10);
    rig.read(MSR);
    rig.write(MCR, 0x14);
    assert_eq!(rig.read(MSR), 0x40);
    rig.write(MCR, 0x10);
    assert_eq!(rig.read(MSR), 0x04);
}

#[test]
fn out2_gates_the_line() {
    let rig = Rig::open(1);
    rig.write(MCR, 0x03);
    rig.uart.push(b"x");
    assert!(!rig.line.level());
    rig.write(MCR, 0x0b);
    assert!(rig.line.level());
}

#[test]
fn the_divisor_is_behind_dlab() {
    let rig = Rig::new();
    rig.write(LCR, 0x83);
    rig.write(RBR, 0x01);
    rig.write(IER, 0x02);
    assert_eq!((rig.read(RBR), rig.read(IER)), (0x01, 0x02));
    rig.write(LCR, 0x03);
    assert_eq!(rig.read(IER), 0);
    assert_eq!(rig.console.text(), "");
}

#[test]
fn a_wide_access_reaches_neighbouring_registers() {
    let rig = Rig::new();
    rig.uart.port_write(Uart::COM1 + SCR, Width::Dword, 0xffff_ff77);
    assert_eq!(rig.uart.port_read(Uart::COM1 + MSR, Width::Word), Answer::Done(0x77b0));
    assert_eq!(rig.uart.port_read(Uart::COM1 + SCR, Width::Word), Answer::Done(0xff77));
}

#[test]
fn reset_drops_the_line_and_the_input() {
    let rig = Rig::open(1);
    rig.uart.push(b"x");
    rig.uart.reset();
    assert!(!rig.line.level());
    assert_eq!(rig.read(LSR), 0x60);
    assert_eq!(rig.read(IIR), 0x01);
}

#[test]
fn restore_drives_the_line() {
    let rig = Rig::open(1);
    rig.uart.push(b"x");
    let section = rig.uart.save("com1").unwrap();
    let other = Rig::new();
    other.uart.restore(&section).unwrap();
    assert!(other.line.level());
    assert_eq!(other.read(RBR), b'x');
}

#[test]
fn an_overfull_fifo_is_refused() {
    let rig = Rig::open(1);
    rig.uart.push(b"xy");
    let saved = rig.uart.save("com1").unwrap();
    // The same bytes with FIFOs off would be more than the one-byte buffer holds.
    let text = b"\xa3fcr\xcc\x81";
    let at = saved.payload.windows(text.len()).position(|w| w == text).expect("fcr is saved");
    let mut payload = saved.payload.clone();
    payload[at + 5] = 0;
    let error = rig.uart.restore(&Section { payload, ..saved }).unwrap_err();
    assert!(error.to_string().contains("uart/com1"), "{error}");
}

fn conforming() -> Uart {
    Uart::new(Uart::COM1, Arc::new(NoLine), CaptureConsole::new(0))
}

state::conformance!(saves_and_restores, conforming(), |uart: &Uart| {
    uart.port_write(Uart::COM1 + FCR, Width::Byte, 0xc1);
    uart.port_write(Uart::COM1 + IER, Width::Word, 0x0f);
    uart.push(b"some input that is longer than the FIFO");
});

impl Subject for Rig {
    fn step(&self, random: &mut Random) -> u64 {
        watch(&self.line, || match random.below(20) {
            0 => self.uart.push(&[random.next() as u8; 40][..random.below(40) as usize]) as u64,
            _ => {
                let ports: Vec<u16> = (Uart::COM1 - 1..Uart::COM1 + 9).collect();
                access(&self.uart, &ports, random)
            }
        })
    }

    fn device(&self) -> &dyn Device {
        &self.uart
    }
}

#[test]
fn survives_a_hostile_guest() {
    hammer(0x1655_0000, |_| Rig::new());
}
