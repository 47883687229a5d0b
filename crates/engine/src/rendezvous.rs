//! Where the vCPUs of a software engine meet: who executes guest code now, and how one of them
//! makes sure of the others.
//!
//! A vCPU is *inside* while it executes guest code, and *outside* while it sleeps, is parked or
//! waits here. At an instruction boundary, told by its mailbox, a vCPU that is inside serves what
//! others have asked of it. Two things are asked:
//!
//! - **Pages that hold code from now on** ([`Rendezvous::watch`]). A vCPU may write to a page
//!   without looking at the page's state for as long as it has an entry that says so, or is
//!   between the look and the write. Who is about to decode a page therefore marks it as watched
//!   ([`memory::GuestRam::watch_code`]) and waits until all who may write to it have been at a
//!   boundary. Thus whoever decodes sees every write that was not announced.
//! - **Standstill** ([`Rendezvous::exclusively`]), for a locked access that the host cannot do
//!   atomically: one across two pages, or across two of the host's cache lines.
//!
//! A vCPU that waits here is outside: two that ask each other both go on. What was asked of it
//! meanwhile it learns before it executes guest code again.
//!
//! Neighbours: `interpreter` and `translator` use it; `machine` makes one for each VM.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use lapic::Mailbox;
use memory::RamOffset;

/// Looks at the others before a waiting vCPU sleeps: some microseconds, in which a vCPU that runs
/// on another core reaches its next block.
const SPINS: u32 = 2000;

/// Pages that are listed for a vCPU; more make it drop all its rights to write.
const MOST_PAGES: usize = 1024;

/// What a vCPU has to follow before it executes guest code again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Withdrawn {
    /// Pages to which it may not write any more without looking at their state.
    pub pages: Vec<RamOffset>,
    /// It may not write to any page without looking.
    pub all: bool,
}

impl Withdrawn {
    /// Whether there is nothing to follow.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty() && !self.all
    }

    /// Adds a page.
    pub fn add(&mut self, page: RamOffset) {
        if self.pages.len() < MOST_PAGES {
            self.pages.push(page);
        } else {
            self.all = true;
        }
    }

    /// Moves all of `other` here.
    pub fn append(&mut self, other: &mut Self) {
        self.all |= std::mem::take(&mut other.all);
        for page in other.pages.drain(..) {
            self.add(page);
        }
    }
}

/// The meeting place of the vCPUs of one VM.
pub struct Rendezvous {
    seats: Vec<Seat>,
    state: Mutex<State>,
    changed: Condvar,
}

struct Seat {
    mailbox: Arc<Mailbox>,
    /// Something is asked of the vCPU. Set and cleared under the lock, looked at without.
    due: AtomicBool,
    /// It executes guest code. As `due`.
    inside: AtomicBool,
}

struct State {
    withdrawn: Vec<Withdrawn>,
    /// Who stands alone.
    exclusive: Option<usize>,
}

impl Rendezvous {
    /// A meeting place of the vCPUs that these mailboxes belong to, all outside.
    pub fn new(mailboxes: &[Arc<Mailbox>]) -> Self {
        let seat = |mailbox: &Arc<Mailbox>| Seat {
            mailbox: Arc::clone(mailbox),
            due: AtomicBool::new(false),
            inside: AtomicBool::new(false),
        };
        let withdrawn = vec![Withdrawn::default(); mailboxes.len()];
        Self {
            seats: mailboxes.iter().map(seat).collect(),
            state: Mutex::new(State { withdrawn, exclusive: None }),
            changed: Condvar::new(),
        }
    }

    /// Whether there is only one vCPU, which has nobody to wait for.
    #[inline]
    pub fn is_alone(&self) -> bool {
        self.seats.len() <= 1
    }

    /// vCPU `vcpu` is about to execute guest code; waits while another stands alone.
    pub fn enter(&self, vcpu: u32, withdrawn: &mut Withdrawn) {
        if !self.is_alone() {
            let state = self.lock();
            drop(self.go_inside(state, vcpu as usize, withdrawn));
        }
    }

    /// vCPU `vcpu` executes no guest code until it enters again.
    pub fn leave(&self, vcpu: u32) {
        if !self.is_alone() {
            let _state = self.lock();
            self.go_outside(vcpu as usize);
        }
    }

    /// At an instruction boundary: does what others have asked of vCPU `vcpu`.
    #[inline]
    pub fn serve(&self, vcpu: u32, withdrawn: &mut Withdrawn) {
        let due = self.seats.get(vcpu as usize).is_some_and(|s| s.due.load(Ordering::Acquire));
        if due {
            let state = self.lock();
            self.go_outside(vcpu as usize);
            drop(self.go_inside(state, vcpu as usize, withdrawn));
        }
    }

    /// vCPU `vcpu`, at an instruction boundary or as good as, is about to decode the page at
    /// `page`, which it has marked as watched. Returns when the others that may write to it, whom
    /// `writes` tells by index, look at its state before they do.
    pub fn watch(
        &self,
        vcpu: u32,
        page: RamOffset,
        writes: impl Fn(u32) -> bool,
        withdrawn: &mut Withdrawn,
    ) {
        if self.is_alone() {
            return;
        }
        let me = vcpu as usize;
        let asked: Vec<usize> =
            (0..self.seats.len()).filter(|&other| other != me && writes(other as u32)).collect();
        if asked.is_empty() {
            return;
        }
        let mut state = self.lock();
        for &other in &asked {
            state.withdrawn[other].add(page);
        }
        self.go_outside(me);
        drop(state);
        self.ask(&asked);
        let state = self.wait_for(&asked, |seat| !seat.is_inside() || !seat.is_due());
        drop(self.go_inside(state, me, withdrawn));
    }

    /// Runs `act` while no other vCPU executes guest code. vCPU `vcpu` is in the middle of an
    /// instruction that has not accessed memory yet; what is withdrawn from it meanwhile it learns
    /// at the next boundary.
    pub fn exclusively<T>(&self, vcpu: u32, act: impl FnOnce() -> T) -> T {
        if self.is_alone() {
            return act();
        }
        let me = vcpu as usize;
        let others: Vec<usize> = (0..self.seats.len()).filter(|&other| other != me).collect();
        let mut state = self.lock();
        self.go_outside(me);
        while state.exclusive.is_some() {
            state = self.wait(state);
        }
        state.exclusive = Some(me);
        drop(state);
        self.ask(&others);
        drop(self.wait_for(&others, |seat| !seat.is_inside()));
        let _alone = Alone { rendezvous: self, vcpu: me };
        act()
    }

    /// Makes the other vCPUs come to an instruction boundary soon, without waiting: something
    /// changed that they look at there.
    pub fn alert_others(&self, vcpu: u32) {
        for (index, seat) in self.seats.iter().enumerate() {
            if index != vcpu as usize && seat.is_inside() {
                seat.mailbox.kick();
            }
        }
    }

    fn ask(&self, asked: &[usize]) {
        for &other in asked {
            self.seats[other].due.store(true, Ordering::Release);
            if self.seats[other].is_inside() {
                self.seats[other].mailbox.kick();
            }
        }
    }

    /// Waits until `done` holds for all these seats.
    fn wait_for(&self, asked: &[usize], done: impl Fn(&Seat) -> bool) -> MutexGuard<'_, State> {
        let all_done = || asked.iter().all(|&other| done(&self.seats[other]));
        for _ in 0..SPINS {
            if all_done() {
                break;
            }
            std::hint::spin_loop();
        }
        let mut state = self.lock();
        while !all_done() {
            state = self.wait(state);
        }
        state
    }

    fn go_outside(&self, vcpu: usize) {
        self.seats[vcpu].inside.store(false, Ordering::Release);
        self.changed.notify_all();
    }

    fn go_inside<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        vcpu: usize,
        withdrawn: &mut Withdrawn,
    ) -> MutexGuard<'a, State> {
        while state.exclusive.is_some_and(|alone| alone != vcpu) {
            state = self.wait(state);
        }
        withdrawn.append(&mut state.withdrawn[vcpu]);
        self.seats[vcpu].due.store(false, Ordering::Release);
        self.seats[vcpu].inside.store(true, Ordering::SeqCst);
        self.changed.notify_all();
        state
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a standstill, also when what was done in it panics: the others must be able to end.
struct Alone<'a> {
    rendezvous: &'a Rendezvous,
    vcpu: usize,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        let Self { rendezvous, vcpu } = self;
        let seat = &rendezvous.seats[*vcpu];
        let mut state = rendezvous.lock();
        state.exclusive = None;
        seat.inside.store(true, Ordering::SeqCst);
        drop(state);
        rendezvous.changed.notify_all();
        if seat.is_due() {
            // Asked while it was outside: it was not told.
            seat.mailbox.kick();
        }
    }
}

impl Seat {
    fn is_due(&self) -> bool {
        self.due.load(Ordering::Acquire)
    }

    fn is_inside(&self) -> bool {
        self.inside.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::thread;

    use lapic::{LocalApic, LocalApicConfig};

    use super::*;

    const PAGE: RamOffset = RamOffset(0x5000);

    fn mailboxes(count: usize) -> Vec<Arc<Mailbox>> {
        let apic = LocalApic::new(LocalApicConfig::default());
        (0..count).map(|_| Arc::new(Mailbox::new(apic.destination()))).collect()
    }

    /// Runs vCPU `index` until `end`: `step` is a piece of guest code between two boundaries.
    fn run(
        meeting: &Rendezvous,
        index: u32,
        end: &AtomicBool,
        mut step: impl FnMut(&mut Withdrawn),
    ) {
        let mut withdrawn = Withdrawn::default();
        meeting.enter(index, &mut withdrawn);
        while !end.load(Ordering::Relaxed) {
            meeting.serve(index, &mut withdrawn);
            step(&mut withdrawn);
        }
        meeting.leave(index);
    }

    #[test]
    fn one_vcpu_waits_for_nobody() {
        let meeting = Rendezvous::new(&mailboxes(1));
        let mut withdrawn = Withdrawn::default();
        meeting.enter(0, &mut withdrawn);
        meeting.watch(0, PAGE, |_| true, &mut withdrawn);
        assert_eq!(meeting.exclusively(0, || 7), 7);
        assert!(withdrawn.is_empty());
    }

    #[test]
    fn who_is_outside_learns_it_when_it_enters() {
        let meeting = Rendezvous::new(&mailboxes(3));
        let mut mine = Withdrawn::default();
        meeting.enter(0, &mut mine);
        meeting.watch(0, PAGE, |vcpu| vcpu == 1, &mut mine);
        let entering = |vcpu| {
            let mut withdrawn = Withdrawn::default();
            meeting.enter(vcpu, &mut withdrawn);
            withdrawn.pages
        };
        assert_eq!((entering(1), entering(2)), (vec![PAGE], vec![]));
        assert_eq!(entering(1), [], "told once");
    }

    #[test]
    fn a_list_that_grows_too_long_becomes_everything() {
        let mut withdrawn = Withdrawn::default();
        (0..MOST_PAGES as u64 + 1).for_each(|page| withdrawn.add(RamOffset(page << 12)));
        assert!(withdrawn.all && withdrawn.pages.len() == MOST_PAGES);
    }

    /// The others take the right to write while the page is not watched, and use it until it is
    /// withdrawn: never while vCPU 0 decodes.
    #[test]
    fn nobody_writes_unannounced_while_a_page_is_decoded() {
        const VCPUS: u32 = 4;
        let meeting = Rendezvous::new(&mailboxes(VCPUS as usize));
        let [end, watched, decoding] = [(); 3].map(|()| AtomicBool::new(false));
        let writes = AtomicU32::new(0);
        thread::scope(|scope| {
            for me in 1..VCPUS {
                let (meeting, end, watched) = (&meeting, &end, &watched);
                let (decoding, writes) = (&decoding, &writes);
                scope.spawn(move || {
                    let mut may_write = false;
                    run(meeting, me, end, |withdrawn| {
                        may_write &= std::mem::take(withdrawn).is_empty();
                        may_write |= !watched.load(Ordering::SeqCst);
                        if may_write {
                            writes.fetch_add(1, Ordering::Relaxed);
                            assert!(!decoding.load(Ordering::SeqCst), "an unannounced write");
                        }
                    });
                });
            }
            while writes.load(Ordering::Relaxed) == 0 {
                thread::yield_now();
            }
            let mut round = 0;
            run(&meeting, 0, &end, |withdrawn| {
                watched.store(true, Ordering::SeqCst);
                meeting.watch(0, PAGE, |vcpu| vcpu != 0, withdrawn);
                decoding.store(true, Ordering::SeqCst);
                thread::yield_now();
                decoding.store(false, Ordering::SeqCst);
                watched.store(false, Ordering::SeqCst);
                round += 1;
                end.store(round == 50, Ordering::SeqCst);
            });
        });
    }

    #[test]
    fn standstill_is_exclusive() {
        const VCPUS: u32 = 4;
        const ROUNDS: u32 = 50;
        let meeting = Rendezvous::new(&mailboxes(VCPUS as usize));
        let (alone, counter, done) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
        let end = AtomicBool::new(false);
        thread::scope(|scope| {
            for me in 0..VCPUS {
                let (meeting, alone, counter) = (&meeting, &alone, &counter);
                let (end, done) = (&end, &done);
                scope.spawn(move || {
                    let mut round = 0;
                    run(meeting, me, end, |_| {
                        assert!(!alone.load(Ordering::SeqCst), "guest code during a standstill");
                        if round < ROUNDS {
                            round += 1;
                            meeting.exclusively(me, || {
                                assert!(!alone.swap(true, Ordering::SeqCst));
                                // Not atomic, and right all the same.
                                let before = counter.load(Ordering::Relaxed);
                                counter.store(before + 1, Ordering::Relaxed);
                                alone.store(false, Ordering::SeqCst);
                            });
                        } else if round == ROUNDS {
                            round += 1;
                            if done.fetch_add(1, Ordering::SeqCst) == VCPUS - 1 {
                                end.store(true, Ordering::SeqCst);
                            }
                        }
                    });
                });
            }
        });
        assert_eq!(counter.load(Ordering::SeqCst), VCPUS * ROUNDS);
    }
}
