//! What the vCPUs of one VM share: the kernel's VM, turns between KVM and the interpreters, the TSC.
//!
//! **Turns.** Code that KVM executes writes to memory without the hooks of `memory`, so that decoded
//! code of an interpreter may be stale after it. Where KVM executes nothing but user code, a visit
//! has the machine to itself ([`SharedVm::alone`]): the other vCPUs leave their interpreters before,
//! and drop what they have decoded behind it ([`SharedVm::rounds`]). Where KVM executes everything,
//! a vCPU in KVM counts as inside of the rendezvous, so that a locked access of an interpreter that
//! the host cannot do atomically waits for it.
//!
//! **TSC.** All vCPUs see the same. On the interpreters it may run ahead of what the guest's time
//! makes it, by as much on each ([`SharedVm::lead`]); in the kernel, offsets that are nearly the
//! same are made the same ([`SharedVm::agree`]).
//!
//! Neighbours: [`crate::vcpu`] and [`crate::user_code`] use it; `engine::Rendezvous` is where the
//! vCPUs meet.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use engine::{EngineError, Kick, Rendezvous, VcpuConfig, Withdrawn, WriteLog};
use kvm_ioctls::VmFd;
use memory::{GuestRam, PAGE_SIZE, RamOffset};

use crate::KvmError;
use crate::device::{Opened, SparePage, map_ram};
use crate::wake::Waker;

/// The VMs of an engine that have vCPUs.
#[derive(Default)]
pub(crate) struct Vms(Mutex<Vec<Weak<SharedVm>>>);

impl Vms {
    /// The VM that `config` belongs to: vCPUs that meet at the same place are of one VM.
    pub(crate) fn of(
        &self,
        config: &VcpuConfig,
        kvm: &Opened,
    ) -> Result<Arc<SharedVm>, EngineError> {
        let mut all = lock(&self.0);
        all.retain(|vm| vm.strong_count() > 0);
        let belongs = |vm: &Arc<SharedVm>| Arc::ptr_eq(&vm.rendezvous, &config.rendezvous);
        if let Some(found) = all.iter().filter_map(Weak::upgrade).find(belongs) {
            return Ok(found);
        }
        let made = Arc::new(SharedVm::new(config, kvm)?);
        all.push(Arc::downgrade(&made));
        Ok(made)
    }
}

/// The vCPU that visits KVM, to be interrupted by whoever wants to execute.
#[derive(Default)]
pub(crate) struct Visitor(Mutex<Option<Arc<Waker>>>);

impl Visitor {
    /// Ends the present visit, if there is one.
    pub(crate) fn interrupt(&self) {
        if let Some(waker) = &*lock(&self.0) {
            waker.wake();
        }
    }
}

/// One VM of the kernel.
pub(crate) struct SharedVm {
    pub(crate) fd: VmFd,
    spare: Mutex<SparePage>,
    /// Outlives the VM, which has it mapped.
    ram: Arc<GuestRam>,
    rendezvous: Arc<Rendezvous>,
    /// The interpreters of the vCPUs, by index.
    carriers: Mutex<Vec<(u32, Arc<dyn Kick>)>>,
    pub(crate) visitor: Arc<Visitor>,
    rounds: AtomicU64,
    lead: AtomicU64,
    born: Mutex<bool>,
    offset: Mutex<Option<u64>>,
    /// The kernel notes which pages are written.
    logged: Mutex<bool>,
    started_elsewhere: AtomicBool,
}

impl SharedVm {
    fn new(config: &VcpuConfig, kvm: &Opened) -> Result<Self, KvmError> {
        let fd = kvm.create_vm()?;
        let spare = SparePage::new(map_ram(&fd, &config.ram, false)?)?;
        kvm.take_exits(&fd)?;
        Ok(Self {
            fd,
            spare: Mutex::new(spare),
            ram: Arc::clone(&config.ram),
            rendezvous: Arc::clone(&config.rendezvous),
            carriers: Mutex::default(),
            visitor: Arc::default(),
            rounds: AtomicU64::new(0),
            lead: AtomicU64::new(0),
            born: Mutex::default(),
            offset: Mutex::default(),
            logged: Mutex::default(),
            started_elsewhere: AtomicBool::new(false),
        })
    }

    /// Guest RAM.
    pub(crate) fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// Whether there is only one vCPU.
    pub(crate) fn is_alone(&self) -> bool {
        self.rendezvous.is_alone()
    }

    /// vCPU `vcpu` has this interpreter.
    pub(crate) fn join(&self, vcpu: u32, carrier: Arc<dyn Kick>) {
        lock(&self.carriers).push((vcpu, carrier));
    }

    /// Makes the kernel forget all it has cached of the guest's page tables.
    pub(crate) fn flush(&self) -> Result<(), KvmError> {
        lock(&self.spare).flush(&self.fd)
    }

    /// Runs `visit`, in which KVM executes guest code for vCPU `vcpu`, while no other vCPU executes
    /// any. The vCPU is outside of its interpreter, before and after. `waker` interrupts it.
    pub(crate) fn alone<T>(&self, vcpu: u32, waker: &Arc<Waker>, visit: impl FnOnce() -> T) -> T {
        if self.is_alone() {
            return visit();
        }
        // In this order: whoever waits for the end of the visit finds itself kicked behind it, and
        // looks at the number before it executes anything.
        self.rounds.fetch_add(1, Ordering::SeqCst);
        for (_, carrier) in lock(&self.carriers).iter().filter(|(other, _)| *other != vcpu) {
            carrier.kick();
        }
        let result = self.rendezvous.exclusively(vcpu, || {
            *lock(&self.visitor.0) = Some(Arc::clone(waker));
            let result = visit();
            *lock(&self.visitor.0) = None;
            result
        });
        self.rendezvous.leave(vcpu);
        result
    }

    /// How often another vCPU than the one that asks may have changed memory without telling.
    pub(crate) fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::SeqCst)
    }

    /// vCPU `vcpu` is about to execute guest code in KVM; until the guard is dropped it is inside.
    pub(crate) fn inside(&self, vcpu: u32) -> Inside<'_> {
        // What is withdrawn from the vCPU its interpreter has none of any more.
        self.rendezvous.enter(vcpu, &mut Withdrawn::default());
        Inside { vm: self, vcpu }
    }

    /// Ticks by which the guest's TSC is ahead of what its saved value and the guest's time make it.
    pub(crate) fn lead(&self) -> u64 {
        self.lead.load(Ordering::SeqCst)
    }

    /// The TSC of every vCPU goes on by `ticks` at once. For a vCPU that is alone.
    pub(crate) fn add_lead(&self, ticks: u64) {
        self.lead.fetch_add(ticks, Ordering::SeqCst);
    }

    /// A guest whose other processors were started on another engine goes on in KVM.
    pub(crate) fn met_started_guest(&self) {
        self.started_elsewhere.store(true, Ordering::Relaxed);
    }

    /// Whether a vCPU in HLT may wait for another one's KVM_HC_KICK_CPU, which the kernel answers
    /// itself, for a local APIC of its own: guests that begin here are not offered it.
    pub(crate) fn may_lose_wakes(&self) -> bool {
        self.started_elsewhere.load(Ordering::Relaxed)
    }

    /// The guest begins: the first of its vCPUs says what their TSCs start with.
    pub(crate) fn begin(
        &self,
        lead: impl FnOnce() -> Result<u64, EngineError>,
    ) -> Result<(), EngineError> {
        let mut born = lock(&self.born);
        if !*born {
            self.lead.store(lead()?, Ordering::SeqCst);
            *born = true;
        }
        Ok(())
    }

    /// The offset of the kernel's TSC that a vCPU is to have which has come to `proposed` by itself:
    /// that of the others, where it differs by no more than `tolerance` ticks.
    pub(crate) fn agree(&self, proposed: u64, tolerance: u64) -> u64 {
        let mut offset = lock(&self.offset);
        let near =
            |agreed: &u64| proposed.wrapping_sub(*agreed).cast_signed().unsigned_abs() <= tolerance;
        let agreed = offset.filter(near).unwrap_or(proposed);
        *offset = Some(agreed);
        agreed
    }
}

impl WriteLog for SharedVm {
    fn keep(&self, on: bool) -> Result<(), EngineError> {
        let mut logged = lock(&self.logged);
        if *logged != on {
            map_ram(&self.fd, &self.ram, on)?;
            *logged = on;
        }
        Ok(())
    }

    fn collect(&self) -> Result<(), EngineError> {
        // Held, so that nobody marks pages later than an answer that has them says.
        let logged = lock(&self.logged);
        if !*logged {
            return Ok(());
        }
        for (slot, region) in (0..).zip(self.ram.regions()) {
            let bitmap = self.fd.get_dirty_log(slot, region.len as usize);
            for (index, mut bits) in (0..).zip(bitmap.map_err(KvmError::call("KVM_GET_DIRTY_LOG"))?)
            {
                while bits != 0 {
                    let page = index * 64 + u64::from(bits.trailing_zeros());
                    bits &= bits - 1;
                    self.ram.mark_dirty(RamOffset(region.offset.0 + page * PAGE_SIZE));
                }
            }
        }
        Ok(())
    }
}

/// While it lives, a vCPU executes guest code.
pub(crate) struct Inside<'a> {
    vm: &'a SharedVm,
    vcpu: u32,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.vm.rendezvous.leave(self.vcpu);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use engine::{CpuProfile, Level, Vendor};
    use lapic::{LocalApic, LocalApicConfig, Mailbox};

    use super::*;
    use crate::device;

    /// The configurations of the vCPUs of one VM.
    fn configs(count: u32) -> Vec<VcpuConfig> {
        let profile = CpuProfile::new(Level::V2, Vendor::Intel, 1_000_000, &|_| true).unwrap();
        let (profile, ram) = (Arc::new(profile), Arc::new(GuestRam::new(&[(0, 0x2000)]).unwrap()));
        let mailbox = |apic_id| {
            let apic = LocalApic::new(LocalApicConfig { apic_id, ..LocalApicConfig::default() });
            Arc::new(Mailbox::new(apic.destination()))
        };
        let mailboxes: Vec<_> = (0..count).map(mailbox).collect();
        let rendezvous = Arc::new(Rendezvous::new(&mailboxes));
        let config = |(index, mailbox): (u32, &Arc<Mailbox>)| VcpuConfig {
            index,
            apic_id: index,
            profile: Arc::clone(&profile),
            ram: Arc::clone(&ram),
            mailbox: Arc::clone(mailbox),
            rendezvous: Arc::clone(&rendezvous),
        };
        (0..).zip(&mailboxes).map(config).collect()
    }

    /// Says why when this host has no KVM.
    fn opened() -> Option<Opened> {
        device::open(c"/dev/kvm").inspect_err(|error| eprintln!("skipped: {error}")).ok()
    }

    #[test]
    fn vcpus_that_meet_are_of_one_vm() {
        let Some(kvm) = opened() else { return };
        let (vms, mine, others) = (Vms::default(), configs(2), configs(1));
        let first = vms.of(&mine[0], &kvm).unwrap();
        assert!(Arc::ptr_eq(&first, &vms.of(&mine[1], &kvm).unwrap()));
        assert!(!Arc::ptr_eq(&first, &vms.of(&others[0], &kvm).unwrap()));
        drop(first);
        vms.of(&others[0], &kvm).unwrap();
        assert_eq!(lock(&vms.0).len(), 1, "what is gone is forgotten");
    }

    #[test]
    fn offsets_that_are_nearly_the_same_become_the_same() {
        let Some(kvm) = opened() else { return };
        let vm = SharedVm::new(&configs(2)[0], &kvm).unwrap();
        let offsets = [1_000, 1_090, 950, 5_000, 4_910, u64::MAX, 10];
        let agreed = offsets.map(|offset| vm.agree(offset, 100));
        assert_eq!(agreed, [1_000, 1_000, 1_000, 5_000, 5_000, u64::MAX, u64::MAX]);
    }

    struct Kicked(AtomicBool);

    impl Kick for Kicked {
        fn kick(&self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_visit_has_the_machine_to_itself() {
        let Some(kvm) = opened() else { return };
        let vm = SharedVm::new(&configs(2)[0], &kvm).unwrap();
        let kicked = [(); 2].map(|()| Arc::new(Kicked(AtomicBool::new(false))));
        (0..).zip(&kicked).for_each(|(vcpu, kick)| vm.join(vcpu, Arc::clone(kick) as _));
        let (visiting, rounds) = (AtomicBool::new(false), vm.rounds());
        let waker = Arc::new(Waker::default());
        thread::scope(|scope| {
            let other = vm.inside(1);
            let visit = scope.spawn(|| {
                vm.alone(0, &waker, || {
                    visiting.store(true, Ordering::SeqCst);
                    assert!(lock(&vm.visitor.0).is_some(), "others can end it");
                });
            });
            while !kicked[1].0.load(Ordering::SeqCst) {
                thread::yield_now();
            }
            assert!(!visiting.load(Ordering::SeqCst), "the other vCPU is inside");
            drop(other);
            visit.join().unwrap();
        });
        assert!(visiting.load(Ordering::SeqCst) && !kicked[0].0.load(Ordering::SeqCst));
        assert_eq!(vm.rounds(), rounds + 1);
        // Nobody is inside any more.
        vm.alone(1, &waker, || ());
    }
}
