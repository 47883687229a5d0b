//! What fw_cfg of the platform `pc` says of the machine.

use std::sync::Arc;

use boot::acpi::AcpiSpec;
use boot::{MemoryMap, acpi};
use chipset::{DmaMemory, FwCfg, FwCfgItems};
use virtio::Dma;

use crate::pci_bus::FIRST_DISK_SLOT;
use crate::{MachineError, MachineSpec, pc};

/// Guest RAM for its DMA.
struct Memory(Dma);

impl DmaMemory for Memory {
    fn read(&self, gpa: u64, to: &mut [u8]) -> bool {
        self.0.read(gpa, to).is_ok()
    }

    fn write(&self, gpa: u64, from: &[u8]) -> bool {
        self.0.write(gpa, from).is_ok()
    }
}

/// The device of the machine `spec`.
pub(crate) fn device(spec: &MachineSpec, map: &MemoryMap, dma: Dma) -> Result<FwCfg, MachineError> {
    let cpus = u16::try_from(spec.cpus).unwrap_or(u16::MAX);
    let mut items = FwCfgItems::new(map.size(), cpus)
        .file("etc/e820", e820(map))
        .file("bootorder", boot_order(spec.disks.len()));
    // Firmware has its own use for the memory in which the generation ID lies.
    let tables = AcpiSpec { generation_id: None, ..pc::acpi_spec(spec.cpus, map) };
    for (name, content) in acpi::files(&tables)? {
        items = items.file(name, content);
    }
    Ok(FwCfg::new(items, Arc::new(Memory(dma))))
}

/// RAM, as firmware wants to know it: what lies in its holes it adds itself.
fn e820(map: &MemoryMap) -> Vec<u8> {
    const RAM: u32 = 1;
    let entry = |(address, len): (u64, u64)| {
        [&address.to_le_bytes()[..], &len.to_le_bytes(), &RAM.to_le_bytes()].concat()
    };
    map.ram_layout().into_iter().flat_map(entry).collect()
}

/// The disks in their order, as Open Firmware paths.
fn boot_order(disks: usize) -> Vec<u8> {
    let path =
        |index| format!("/pci@i0cf8/scsi@{:x}/disk@0,0", index + usize::from(FIRST_DISK_SLOT));
    let mut order = (0..disks).map(path).collect::<Vec<_>>().join("\n").into_bytes();
    order.push(0);
    order
}
