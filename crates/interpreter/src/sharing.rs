//! What the vCPUs of one VM owe each other: a page is watched before it is decoded, a locked access
//! that the host cannot do atomically has the machine to itself, a vCPU that spins makes room.
//!
//! Neighbours: [`engine::Rendezvous`] is where they meet; `blocks` and the translator decode.

use engine::Withdrawn;
use memory::{RamOffset, Scalar};

use crate::access::Linear;
use crate::cpu::{Bus, Cpu, Raised, Step};
use crate::op::Op;

/// PAUSE instructions between two yields: some microseconds of spinning.
pub(crate) const PAUSES_PER_YIELD: u64 = 64;

/// Places of [`Settled`]; a power of two.
const PLACES: usize = 1 << 12;

/// The pages, with their code version, that were watched here last: for those nobody needs to be
/// asked again.
pub(crate) struct Settled {
    places: Box<[(usize, u32)]>,
}

impl Settled {
    pub(crate) fn new() -> Self {
        Self { places: vec![(usize::MAX, 0); PLACES].into_boxed_slice() }
    }

    /// Enters a page; whether it was there.
    fn insert(&mut self, page: usize, version: u32) -> bool {
        std::mem::replace(&mut self.places[page % PLACES], (page, version)) == (page, version)
    }
}

impl Cpu {
    /// The code on the page of `at` is about to be decoded: from now on every vCPU's writes to it
    /// change its code version, which this gives.
    pub(crate) fn watch_code(&mut self, at: RamOffset) -> u32 {
        let version = self.ram.watch_code(at);
        if !self.settled.insert(at.page(), version) {
            self.withdrawn.add(at);
            let ram = &self.ram;
            let writes = |other| ram.may_be_written_by(at, other);
            let mut asked = Withdrawn::default();
            self.rendezvous.watch(self.index, at, writes, &mut asked);
            self.follow(asked);
        }
        version
    }

    /// Gives up what others have asked for.
    fn follow(&mut self, mut asked: Withdrawn) {
        for &page in &asked.pages {
            self.tlb.withdraw_write(page.0 & !0xfff);
            self.ram.forget_writer(page, self.index);
        }
        if asked.all {
            self.tlb.flush_all();
        }
        self.withdrawn.append(&mut asked);
    }

    /// The page at `at` may be entered as writable.
    pub(crate) fn note_writer(&self, at: RamOffset) {
        if !self.rendezvous.is_alone() {
            self.ram.note_writer(at, self.index);
        }
    }

    /// Begins to execute guest code.
    pub(crate) fn enter(&mut self) {
        let mut asked = Withdrawn::default();
        self.rendezvous.enter(self.index, &mut asked);
        self.follow(asked);
    }

    /// Ends to execute guest code, for a while.
    pub(crate) fn leave(&self) {
        self.rendezvous.leave(self.index);
    }

    /// At an instruction boundary: does what other vCPUs have asked.
    pub(crate) fn serve_others(&mut self) {
        let mut asked = Withdrawn::default();
        self.rendezvous.serve(self.index, &mut asked);
        self.follow(asked);
    }

    /// A locked update across cache lines or pages, or of a device: alone, since the host could
    /// only lock its whole bus, or nothing at all (SDM vol. 3A 9.1.2.2).
    pub(crate) fn update_alone<W: Scalar>(
        &mut self,
        bus: Bus<'_>,
        at: Linear,
        change: impl Fn(u64) -> u64,
    ) -> Result<u64, Raised> {
        let rendezvous = std::sync::Arc::clone(&self.rendezvous);
        self.counters.split_locks += 1;
        rendezvous.exclusively(self.index, || self.update_in_steps::<W>(bus, at, change))
    }
}

/// PAUSE: who waits for another vCPU lets it run, in case it has no core of its own.
pub(crate) fn pause(cpu: &mut Cpu, _op: &Op, _bus: Bus<'_>) -> Step {
    cpu.pauses += 1;
    if cpu.pauses.is_multiple_of(PAUSES_PER_YIELD) && !cpu.rendezvous.is_alone() {
        cpu.leave();
        std::thread::yield_now();
        cpu.enter();
    }
    Ok(())
}
