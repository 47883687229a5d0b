//! The LPC bridge, 8086:2918 at 00:1f.0 (Intel ICH9 data sheet 316972, chapter 13).
//!
//! PMBASE says where the power-management block is; it does not move. PIRQA# to PIRQH# lead to
//! inputs 16 to 23 of the I/O APIC, and to the PIC as the routing registers say: those are set as
//! firmware does it, to interrupts 10 and 11.

use std::sync::{Arc, Mutex};

use device::{Device, InterruptLine};
use serde::{Deserialize, Serialize};
use state::{Persist, Saved, Section, StateError};

use crate::root::Function;
use crate::{ConfigSpace, Identity, MappedBar, lock};

/// Number of PIRQ lines: A to H.
pub const PIRQS: usize = 8;

const PMBASE: usize = 0x40;
/// PMBASE: it is an I/O address.
const PMBASE_IO: u16 = 1;
const ACPI_CONTROL: usize = 0x44;
const ACPI_ENABLED: u8 = 0x80;
/// PIRQA# to PIRQD#, and PIRQE# to PIRQH#.
const ROUTES: [u8; 2] = [0x60, 0x68];
const ROUTE_OFF: u8 = 0x80;
const ROUTE_IRQ: u8 = 0x0f;

/// The PIRQ line, 0 for A to 7 for H, of interrupt pin `pin` (0 for INTA#) of `slot`: slots share
/// PIRQE# to PIRQH# in turn, as q35 wires them.
pub const fn pirq(slot: u8, pin: u8) -> usize {
    4 + (slot as usize + pin as usize) % 4
}

/// The LPC bridge.
pub struct LpcBridge {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    io_apic: [Arc<dyn InterruptLine>; PIRQS],
    /// Interrupts of the PIC that can be routed to.
    pic: Vec<(u8, Arc<dyn InterruptLine>)>,
}

struct State {
    config: ConfigSpace,
    /// Bit n: PIRQ line n is asserted.
    asserted: u8,
}

struct Pirq {
    shared: Arc<Shared>,
    index: usize,
}

impl LpcBridge {
    /// Interrupts of the PIC that PIRQ lines are routed to after power-on: A and B, C and D, and so
    /// on in pairs.
    pub const PIC_IRQS: [u8; 2] = [10, 11];

    /// A bridge with its power-management block at port `pm_base`. PIRQ lines lead to `io_apic`
    /// and to those of `pic` (with their numbers) that the guest routes them to.
    pub fn new(
        pm_base: u16,
        io_apic: [Arc<dyn InterruptLine>; PIRQS],
        pic: Vec<(u8, Arc<dyn InterruptLine>)>,
    ) -> Self {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x8086,
            device: 0x2918,
            revision: 2,
            class: [6, 1, 0],
            subsystem: (0x1af4, 0x1100),
        });
        config.define(PMBASE, &(pm_base | PMBASE_IO).to_le_bytes());
        config.define(ACPI_CONTROL, &[ACPI_ENABLED]);
        let [first, second] = Self::PIC_IRQS;
        for registers in ROUTES {
            config.define(registers.into(), &[first, first, second, second]);
            config.allow(registers.into(), &[ROUTE_OFF | ROUTE_IRQ; 4]);
        }
        let state = Mutex::new(State { config, asserted: 0 });
        Self { shared: Arc::new(Shared { state, io_apic, pic }) }
    }

    /// PIRQ line `index`, 0 for A.
    ///
    /// # Panics
    /// When there is no such line.
    pub fn pirq(&self, index: usize) -> Arc<dyn InterruptLine> {
        assert!(index < PIRQS, "there is no PIRQ line {index}");
        Arc::new(Pirq { shared: Arc::clone(&self.shared), index })
    }
}

impl State {
    /// Whether a PIRQ line that is routed to `irq` is asserted.
    fn level(&self, irq: u8) -> bool {
        let asserted = (0..PIRQS).filter(|n| self.asserted & 1 << n != 0);
        let mut routes = asserted.map(|n| self.config.byte(ROUTES[n / 4] + (n % 4) as u8));
        routes.any(|route| route & ROUTE_OFF == 0 && route & ROUTE_IRQ == irq)
    }
}

impl Shared {
    /// Sets the PIC's interrupts to what the state says. The lines are set with the state
    /// unlocked: two threads may do so in the wrong order, so each looks again.
    fn publish(&self) {
        for (irq, line) in &self.pic {
            loop {
                let level = lock(&self.state).level(*irq);
                line.set(level);
                if lock(&self.state).level(*irq) == level {
                    break;
                }
            }
        }
    }
}

impl InterruptLine for Pirq {
    fn set(&self, level: bool) {
        let bit = 1_u8 << self.index;
        let mut state = lock(&self.shared.state);
        state.asserted = if level { state.asserted | bit } else { state.asserted & !bit };
        drop(state);
        self.shared.io_apic[self.index].set(level);
        self.shared.publish();
    }
}

impl Function for LpcBridge {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        lock(&self.shared.state).config.read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        lock(&self.shared.state).config.write(offset, data);
        self.shared.publish();
    }

    fn mapped_bars(&self) -> Vec<MappedBar> {
        Vec::new()
    }

    fn bar_read(&self, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn bar_write(&self, _bar: u8, _offset: u64, _data: &[u8]) {}
}

/// The levels of the PIRQ lines are the functions' to set again.
#[derive(Serialize, Deserialize)]
struct SavedLpcBridge {
    config: Vec<u8>,
}

impl Saved for SavedLpcBridge {
    const KIND: &'static str = "lpc-bridge";
    const VERSION: u32 = 1;
}

impl Persist for LpcBridge {
    fn kind(&self) -> &'static str {
        SavedLpcBridge::KIND
    }

    fn save(&self, instance: &str) -> Result<Section, StateError> {
        let State { config, asserted: _ } = &*lock(&self.shared.state);
        Section::encode(instance, &SavedLpcBridge { config: config.save() })
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let SavedLpcBridge { config } = section.decode()?;
        if !lock(&self.shared.state).config.restore(&config) {
            return Err(section.invalid("this is not the configuration space of an LPC bridge"));
        }
        self.shared.publish();
        Ok(())
    }
}

impl Device for LpcBridge {
    /// Lines keep the level at which their functions drive them.
    fn reset(&self) {
        lock(&self.shared.state).config.reset();
        self.shared.publish();
    }
}

#[cfg(test)]
mod tests {
    use device::NoLine;
    use device::testing::RecordingLine;

    use super::*;

    fn bridge(pic: Vec<(u8, Arc<dyn InterruptLine>)>) -> LpcBridge {
        LpcBridge::new(0x600, std::array::from_fn(|_| Arc::new(NoLine) as _), pic)
    }

    #[test]
    fn the_power_management_block_is_told() {
        let mut pmbase = [0; 4];
        let bridge = bridge(Vec::new());
        bridge.config_write(0x40, &[0xff; 8]);
        bridge.config_read(0x40, &mut pmbase);
        assert_eq!(pmbase, [1, 6, 0, 0]);
    }

    #[test]
    fn lines_are_routed_to_the_pic() {
        let (ten, five) = (RecordingLine::new(), RecordingLine::new());
        let bridge = bridge(vec![(10, ten.clone()), (5, five.clone())]);
        bridge.pirq(4).set(true);
        assert!(ten.level() && !five.level());
        bridge.config_write(0x68, &[5]);
        assert!(!ten.level() && five.level());
        bridge.pirq(5).set(true);
        assert!(ten.level());
        bridge.config_write(0x69, &[0x85]);
        assert!(!ten.level());
        bridge.pirq(4).set(false);
        assert!(!five.level());
    }

    #[test]
    fn slots_take_turns() {
        assert_eq!([pirq(0, 0), pirq(1, 0), pirq(2, 1), pirq(31, 3)], [4, 5, 7, 6]);
    }

    state::conformance!(saves_and_restores, bridge(Vec::new()), |bridge: &LpcBridge| {
        bridge.config_write(0x60, &[3, 0x80, 0x0f, 0x8f]);
    });
}
