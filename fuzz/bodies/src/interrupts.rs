//! Hostile guests and devices among interrupt controllers: APIC registers in every mode, messages
//! and interprocessor interrupts to anybody and nobody, storms, an I/O APIC that is programmed
//! without sense.

use std::sync::Arc;

use chipset::IoApic;
use device::{Message, Mmio};
use lapic::{Effects, Event, Fabric, LocalApic, LocalApicConfig, Mailbox};
use state::Persist;

use crate::Input;

/// Processors.
const APICS: u32 = 4;
/// Actions in one run.
const ACTIONS: usize = 256;
/// Messages of a storm.
const STORM: u32 = 64;

struct Machine {
    apics: Vec<LocalApic>,
    fabric: Arc<Fabric>,
    io_apic: IoApic,
    /// Guest TSC.
    now: u64,
}

/// Does what the input chooses.
///
/// # Panics
/// When a controller panics, delivers what its priority forbids, or is restored to something else
/// than it was.
pub fn interrupts(data: &[u8]) {
    let mut input = Input::new(data);
    let mut machine = Machine::new();
    for _ in 0..ACTIONS {
        if input.is_empty() {
            break;
        }
        machine.act(&mut input);
    }
    for index in 0..machine.apics.len() {
        machine.serve(index);
        machine.is_restored_to_itself(index);
    }
    let saved = machine.io_apic.save("0").expect("save");
    machine.io_apic.restore(&saved).expect("its own state");
    assert_eq!(machine.io_apic.save("0").expect("save"), saved);
}

impl Machine {
    fn new() -> Self {
        let apic = |apic_id| {
            LocalApic::new(LocalApicConfig { apic_id, bsp: apic_id == 0, ..Default::default() })
        };
        let apics: Vec<_> = (0..APICS).map(apic).collect();
        let mailboxes = apics.iter().map(|apic| Arc::new(Mailbox::new(apic.destination())));
        let fabric = Arc::new(Fabric::new(mailboxes.collect()));
        let io_apic = IoApic::new(Arc::clone(&fabric) as _);
        Self { apics, fabric, io_apic, now: 0 }
    }

    fn act(&mut self, input: &mut Input<'_>) {
        let kind = input.byte();
        let index = usize::from(kind >> 4) % self.apics.len();
        match kind % 8 {
            0 | 1 => self.write_register(index, input),
            2 => self.write_msr(index, input),
            3 => {
                let base = input.pick(&[0xfee0_0800, 0xfee0_0c00, 0xfee0_0000, 0, u64::MAX]);
                // Refused or not: the mode is a valid one, which the next accesses find.
                let _ = self.apics[index].set_base_msr(base ^ u64::from(input.byte()) << 4);
                self.publish(index);
            }
            4 => {
                let address = input.pick(&[0xfee0_0000, 0, u64::MAX]) | u64::from(input.short());
                let message = Message { address, data: u32::from(input.short()) };
                let copies = input.pick(&[1, STORM]);
                (0..copies).for_each(|_| self.fabric.deliver_message(message));
            }
            5 => {
                let offset = input.pick(&[0, 0x10, 0x40, 4, 0xfff]);
                let value = input.word().to_le_bytes();
                self.io_apic.mmio_write(offset, &value[..input.pick(&[4, 1, 2, 8])]);
                self.io_apic.mmio_read(offset, &mut [0; 4]);
            }
            6 => self.io_apic.line(input.byte() % 24).set(input.byte() & 1 != 0),
            _ => {
                self.now = self.now.wrapping_add(u64::from(input.short()) << (input.byte() % 48));
                self.serve(index);
            }
        }
    }

    fn write_register(&mut self, index: usize, input: &mut Input<'_>) {
        let offset = u32::from(input.short());
        // Most accesses hit registers.
        let offset = if offset & 1 == 0 { offset & 0x3f0 } else { offset & 0xfff };
        let value = input.word() as u32;
        let effects = self.apics[index].mmio_write(offset, value, self.now);
        self.apply(index, effects);
        self.apics[index].mmio_read(offset, self.now);
    }

    fn write_msr(&mut self, index: usize, input: &mut Input<'_>) {
        let msr = input.pick(&[0x800, 0x830, 0x80b, 0x80f, 0x832, 0x83f, 0x6e0]);
        let msr = msr + u32::from(input.byte() % 2) * u32::from(input.byte());
        if let Ok(effects) = self.apics[index].msr_write(msr, input.word(), self.now) {
            self.apply(index, effects);
        }
        // A register may be there to be written only.
        let _ = self.apics[index].msr_read(msr, self.now);
    }

    fn apply(&mut self, index: usize, effects: Effects) {
        if let Some(ipi) = effects.ipi {
            (0..STORM).for_each(|_| self.fabric.deliver(&ipi));
        }
        if let Some(vector) = effects.eoi {
            self.io_apic.eoi(vector);
        }
        self.publish(index);
    }

    fn publish(&self, index: usize) {
        let (apic, mailbox) = (&self.apics[index], &self.fabric.mailboxes()[index]);
        mailbox.publish(apic.destination());
        assert_eq!(mailbox.destination(), apic.destination(), "packed and unpacked");
    }

    /// What an engine does between two instructions, with interrupts enabled.
    fn serve(&mut self, index: usize) {
        let apic = &mut self.apics[index];
        let mailbox = &self.fabric.mailboxes()[index];
        mailbox.drain(|event| match event {
            Event::Interrupt { vector, level } => apic.accept(vector, level),
            Event::Init => apic.init(),
            Event::Nmi | Event::Sipi(_) | Event::Wake => {}
        });
        assert!(!mailbox.has_work(), "nobody else posts here");
        if apic.deadline().is_some_and(|deadline| deadline <= self.now) {
            apic.tick(self.now);
        }
        while let Some(pending) = apic.pending() {
            let before = apic.ppr();
            assert!(pending >= 16 && pending >> 4 > before >> 4, "{pending:#x} over {before:#x}");
            assert_eq!(apic.acknowledge(), Some(pending));
            assert!(apic.ppr() >> 4 >= pending >> 4, "it is in service");
        }
        self.publish(index);
    }

    fn is_restored_to_itself(&mut self, index: usize) {
        let apic = &mut self.apics[index];
        let saved = apic.save(self.now);
        apic.restore(&saved, self.now).expect("its own state");
        assert_eq!(apic.save(self.now), saved, "restored to something else");
    }
}
