//! The bus: configuration accesses by ports and by ECAM, and the map of BARs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use device::{Answer, Device, Mmio, PortIo, StopCause, Width};
use serde::{Deserialize, Serialize};
use state::{Persist, Saved, Section, StateError};

use crate::{Address, HostBridge, MappedBar};

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
/// Enable bit, bus, slot, function and register: the bits of CONFIG_ADDRESS that exist.
const ADDRESS_BITS: u32 = 0x80ff_fffc;
const ADDRESS_ENABLED: u32 = 1 << 31;
/// CONFIG_ADDRESS: the bus.
const ADDRESS_BUS: u32 = 0x00ff_0000;

/// One function on the bus.
pub trait Function: Send + Sync {
    /// Reads configuration space at `offset`, 0 to 0xfff.
    fn config_read(&self, offset: u16, data: &mut [u8]);

    /// Writes configuration space at `offset`, 0 to 0xfff.
    fn config_write(&self, offset: u16, data: &[u8]);

    /// Where the function decodes memory now.
    fn mapped_bars(&self) -> Vec<MappedBar>;

    /// Reads 1 to 8 bytes at `offset` of a BAR; all of them are inside it.
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]);

    /// Writes 1 to 8 bytes at `offset` of a BAR; all of them are inside it.
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]);
}

/// Bus 0 with everything on it.
pub struct Root {
    host: Arc<HostBridge>,
    functions: BTreeMap<Address, Arc<dyn Function>>,
    /// CONFIG_ADDRESS.
    address: AtomicU32,
    map: RwLock<Map>,
}

/// Who decodes what: made from the registers of all functions.
#[derive(Default)]
struct Map {
    ecam: Option<u64>,
    bars: Vec<(MappedBar, Arc<dyn Function>)>,
}

/// What is at an address.
enum Place {
    /// A register of a function, or of nobody.
    Config(Option<Address>, u16),
    Bar(Arc<dyn Function>, u8, u64),
    Nobody,
}

impl Root {
    /// Ports of the configuration mechanism, as (first, count).
    pub const PORTS: (u16, u16) = (CONFIG_ADDRESS, 8);

    /// A bus with `host` at 00:00.0 and `functions` at their addresses.
    ///
    /// # Panics
    /// When two are at one address, or a slot has functions but none with number 0, which is what
    /// kernels look for: both are constants of a machine.
    pub fn new(host: Arc<HostBridge>, functions: Vec<(Address, Arc<dyn Function>)>) -> Self {
        let mut all: BTreeMap<Address, Arc<dyn Function>> = BTreeMap::new();
        all.insert(Address::new(0, 0), Arc::clone(&host) as _);
        for (address, function) in functions {
            assert!(all.insert(address, function).is_none(), "two functions at {address}");
        }
        let found = |a: &Address| all.contains_key(&Address::new(a.slot(), 0));
        assert!(all.keys().all(found), "a slot without function 0");
        let (address, map) = (AtomicU32::new(0), RwLock::new(Map::default()));
        let root = Self { host, functions: all, address, map };
        root.remap();
        root
    }

    /// Where there are functions, in ascending order.
    pub fn addresses(&self) -> impl Iterator<Item = Address> {
        self.functions.keys().copied()
    }

    /// Reads a register; nobody reads as all-ones.
    pub fn config_read(&self, address: Address, offset: u16, data: &mut [u8]) {
        match self.functions.get(&address) {
            Some(function) => function.config_read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes a register; nobody ignores it.
    pub fn config_write(&self, address: Address, offset: u16, data: &[u8]) -> Answer<()> {
        let Some(function) = self.functions.get(&address) else { return Answer::Done(()) };
        function.config_write(offset, data);
        self.remap();
        match self.host.take_change() {
            true => Answer::StopAfterInstruction((), StopCause::Reconfigure),
            false => Answer::Done(()),
        }
    }

    /// Reads 1 to 8 bytes of memory; nobody reads as all-ones.
    pub fn memory_read(&self, gpa: u64, data: &mut [u8]) {
        match self.find(gpa, data.len()) {
            Place::Config(Some(address), offset) => self.config_read(address, offset, data),
            Place::Bar(function, bar, offset) => function.bar_read(bar, offset, data),
            Place::Config(None, _) | Place::Nobody => data.fill(0xff),
        }
    }

    /// Writes 1 to 8 bytes of memory; nobody ignores it.
    pub fn memory_write(&self, gpa: u64, data: &[u8]) -> Answer<()> {
        match self.find(gpa, data.len()) {
            Place::Config(Some(address), offset) => {
                return self.config_write(address, offset, data);
            }
            Place::Bar(function, bar, offset) => function.bar_write(bar, offset, data),
            Place::Config(None, _) | Place::Nobody => {}
        }
        Answer::Done(())
    }

    /// Makes the map anew. The functions are asked while it is locked, so that whoever comes last
    /// of several sees all changes.
    fn remap(&self) {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        map.ecam = self.host.ecam();
        map.bars.clear();
        for function in self.functions.values() {
            let mapped = function.mapped_bars().into_iter();
            map.bars.extend(mapped.map(|bar| (bar, Arc::clone(function))));
        }
    }

    /// What is at `len` bytes from `gpa`. Where several are, ECAM comes first, then the function
    /// with the lowest address.
    fn find(&self, gpa: u64, len: usize) -> Place {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        let ecam = map.ecam.and_then(|base| gpa.checked_sub(base));
        if let Some(offset) = ecam.filter(|offset| *offset < HostBridge::ECAM_LEN) {
            let bus = offset >> 20;
            let address = (bus == 0).then(|| Address::from_bits((offset >> 12) as u8));
            return Place::Config(address, (offset & 0xfff) as u16);
        }
        for (bar, function) in &map.bars {
            if let Some(offset) = gpa.checked_sub(bar.base)
                && offset < bar.len
                && len as u64 <= bar.len - offset
            {
                return Place::Bar(Arc::clone(function), bar.bar, offset);
            }
        }
        Place::Nobody
    }

    /// The register that the data port at `port` leads to.
    fn selected(&self, port: u16) -> Option<(Address, u16)> {
        let address = self.address.load(Ordering::Relaxed);
        let reachable = address & (ADDRESS_ENABLED | ADDRESS_BUS) == ADDRESS_ENABLED;
        let byte = port.checked_sub(CONFIG_DATA)?;
        let register = (address & 0xfc) as u16 + byte;
        reachable.then(|| (Address::from_bits((address >> 8) as u8), register))
    }
}

/// An access to CONFIG_ADDRESS is one of 32 bits; others go by it.
impl PortIo for Root {
    fn port_read(&self, port: u16, width: Width) -> Answer<u32> {
        if (port, width) == (CONFIG_ADDRESS, Width::Dword) {
            return Answer::Done(self.address.load(Ordering::Relaxed));
        }
        let mut data = [0xff; 4];
        if let Some((address, register)) = self.selected(port) {
            self.config_read(address, register, &mut data[..width.bytes().into()]);
        }
        Answer::Done(u32::from_le_bytes(data) & width.mask())
    }

    fn port_write(&self, port: u16, width: Width, value: u32) -> Answer<()> {
        if (port, width) == (CONFIG_ADDRESS, Width::Dword) {
            self.address.store(value & ADDRESS_BITS, Ordering::Relaxed);
        } else if let Some((address, register)) = self.selected(port) {
            let data = &value.to_le_bytes()[..width.bytes().into()];
            return self.config_write(address, register, data);
        }
        Answer::Done(())
    }
}

/// A range of guest-physical addresses that leads to the bus.
pub struct Window {
    root: Arc<Root>,
    base: u64,
}

impl Window {
    /// The window that begins at `base`.
    pub fn new(root: &Arc<Root>, base: u64) -> Self {
        Self { root: Arc::clone(root), base }
    }
}

impl Mmio for Window {
    fn mmio_read(&self, offset: u64, data: &mut [u8]) -> Answer<()> {
        self.root.memory_read(self.base.wrapping_add(offset), data);
        Answer::Done(())
    }

    fn mmio_write(&self, offset: u64, data: &[u8]) -> Answer<()> {
        self.root.memory_write(self.base.wrapping_add(offset), data)
    }
}

#[derive(Serialize, Deserialize)]
struct SavedRoot {
    address: u32,
}

impl Saved for SavedRoot {
    const KIND: &'static str = "pci";
    const VERSION: u32 = 1;
}

/// To be restored after the functions: where they decode memory is found out then.
impl Persist for Root {
    fn kind(&self) -> &'static str {
        SavedRoot::KIND
    }

    fn save(&self, instance: &str) -> Result<Section, StateError> {
        let Self { host: _, functions: _, address, map: _ } = self;
        Section::encode(instance, &SavedRoot { address: address.load(Ordering::Relaxed) })
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let SavedRoot { address } = section.decode()?;
        if address & !ADDRESS_BITS != 0 {
            return Err(section.invalid("the configuration address has reserved bits set"));
        }
        self.address.store(address, Ordering::Relaxed);
        self.remap();
        Ok(())
    }
}

/// To be reset after the functions.
impl Device for Root {
    fn reset(&self) {
        self.address.store(0, Ordering::Relaxed);
        self.remap();
    }
}

#[cfg(test)]
mod tests;
