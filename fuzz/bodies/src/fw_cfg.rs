//! A hostile guest at fw_cfg: requests without sense, anywhere in memory.

use std::sync::Arc;

use chipset::{DmaMemory, FwCfg, FwCfgItems};
use device::{Answer, PortIo, Width};
use memory::{Gpa, GuestRam};

use crate::Input;

/// RAM of the guest.
const RAM: u64 = 64 << 10;

struct Memory(GuestRam);

impl DmaMemory for Memory {
    fn read(&self, gpa: u64, to: &mut [u8]) -> bool {
        self.0.read(Gpa(gpa), to).is_ok()
    }

    fn write(&self, gpa: u64, from: &[u8]) -> bool {
        self.0.write(Gpa(gpa), from).is_ok()
    }
}

/// Writes requests into RAM, starts them, reads and writes registers.
///
/// # Panics
/// When the device panics, or a request that is in RAM is not answered.
pub fn fw_cfg(data: &[u8]) {
    let mut input = Input::new(data);
    let ram = GuestRam::new(&[(0, RAM)]).expect("64 KiB");
    let memory = Arc::new(Memory(ram));
    let items = FwCfgItems::new(RAM, 1).file("a", vec![1; 5_000]).file("b", Vec::new());
    let device = FwCfg::new(items, Arc::clone(&memory) as _);
    while !input.is_empty() {
        match input.byte() % 4 {
            0 => request(&device, &memory, &mut input),
            1 => {
                let port = 0x510 + u16::from(input.byte() % 16);
                let width = input.pick(&[Width::Byte, Width::Word, Width::Dword]);
                let _: Answer<()> = device.port_write(port, width, input.word() as u32);
            }
            _ => {
                let port = 0x510 + u16::from(input.byte() % 16);
                let width = input.pick(&[Width::Byte, Width::Word, Width::Dword]);
                let _: Answer<u32> = device.port_read(port, width);
            }
        }
    }
}

fn request(device: &FwCfg, memory: &Memory, input: &mut Input<'_>) {
    let at = u64::from(input.short()) & !0xf;
    let length = match input.byte() % 4 {
        0 => input.word() as u32,
        _ => u32::from(input.short()),
    };
    let address = match input.byte() % 4 {
        0 => input.word(),
        _ => u64::from(input.short()),
    };
    let control = input.pick(&[0_u32, 1, 0x19, 0x20, 0x21, 0xffff]) << 16;
    let control = control | u32::from(input.byte() % 32);
    let bytes =
        [&control.to_be_bytes()[..], &length.to_be_bytes(), &address.to_be_bytes()].concat();
    memory.0.write(Gpa(at), &bytes).expect("in RAM");
    let low = (at as u32).swap_bytes();
    let _: Answer<()> = device.port_write(0x514, Width::Dword, 0);
    let _: Answer<()> = device.port_write(0x518, Width::Dword, low);
    let mut answer = [0; 4];
    memory.0.read(Gpa(at), &mut answer).expect("in RAM");
    assert!(u32::from_be_bytes(answer) <= 1, "the request at {at:#x} was not answered");
}
