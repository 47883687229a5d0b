//! The mailbox: nothing is lost, INIT comes first, the waker is called, threads may post at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use lapic::{Event, Mailbox};

use crate::{enabled, fresh};

fn mailbox() -> Mailbox {
    Mailbox::new(fresh(0).destination())
}

fn drained(mailbox: &Mailbox) -> Vec<Event> {
    let mut events = Vec::new();
    mailbox.drain(|event| events.push(event));
    events
}

#[test]
fn every_vector_comes_out_as_it_was_posted() {
    let mailbox = mailbox();
    assert!(!mailbox.has_work());
    for vector in 0..=255 {
        for level in [false, true] {
            mailbox.post(vector, level);
            assert!(mailbox.has_work());
            assert_eq!(drained(&mailbox), [Event::Interrupt { vector, level }]);
            assert!(!mailbox.has_work());
        }
    }
    assert_eq!(drained(&mailbox), []);
}

#[test]
fn init_comes_first_and_forgets_the_startup_before_it() {
    let mailbox = mailbox();
    mailbox.post(0x30, false);
    mailbox.post_nmi();
    mailbox.post_sipi(0x11);
    mailbox.post_init();
    mailbox.post_sipi(0x22);
    mailbox.post_sipi(0x33);
    mailbox.post_nmi();
    let interrupt = Event::Interrupt { vector: 0x30, level: false };
    assert_eq!(drained(&mailbox), [Event::Init, Event::Sipi(0x22), Event::Nmi, interrupt]);
    mailbox.post_sipi(0x11);
    mailbox.post_init();
    assert_eq!(drained(&mailbox), [Event::Init]);
}

#[test]
fn each_post_calls_the_waker_and_only_changes_of_extint_do() {
    let mailbox = mailbox();
    mailbox.post(0x20, false);
    let calls = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&calls);
    mailbox.set_waker(Arc::new(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    }));
    let mut expected = 0;
    let mut step = |post: &dyn Fn(&Mailbox), wakes: u32| {
        mailbox.drain(drop);
        post(&mailbox);
        expected += wakes;
        assert_eq!(calls.load(Ordering::Relaxed), expected);
        assert_eq!(mailbox.has_work(), wakes != 0);
    };
    step(&|m| m.post(0x20, true), 1);
    step(&Mailbox::post_nmi, 1);
    step(&Mailbox::post_init, 1);
    step(&|m| m.post_sipi(1), 1);
    step(&Mailbox::kick, 1);
    step(&|m| m.set_extint(true), 1);
    step(&|m| m.set_extint(true), 0);
    step(&|m| m.set_extint(false), 1);
    step(&|m| m.set_extint(false), 0);
    assert!(!mailbox.extint());
    assert_eq!(drained(&mailbox), [], "kicks and levels are no events");
}

/// Four threads post every vector many times while the owner drains: each vector arrives after
/// its last post at the latest, and a woken owner always finds work.
#[test]
fn concurrent_posts_are_not_lost() {
    let mailbox = Arc::new(mailbox());
    let owner = thread::current();
    mailbox.set_waker(Arc::new(move || owner.unpark()));
    let senders: Vec<_> = (0..4u8)
        .map(|sender| {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || {
                for vector in (16..=255).filter(|vector| vector % 4 == sender) {
                    mailbox.post(vector, vector % 8 < 4);
                    thread::yield_now();
                }
            })
        })
        .collect();
    let mut seen = [0u32; 256];
    while seen[16..].contains(&0) {
        if !mailbox.has_work() {
            thread::park();
            continue;
        }
        mailbox.drain(|event| match event {
            Event::Interrupt { vector, level } => {
                assert_eq!(level, vector % 8 < 4);
                seen[usize::from(vector)] += 1;
            }
            other => panic!("nobody posted {other:?}"),
        });
    }
    senders.into_iter().for_each(|sender| sender.join().expect("sender"));
    assert!(seen[16..].iter().all(|count| *count == 1));
}

#[test]
fn drained_interrupts_reach_the_apic() {
    let mailbox = mailbox();
    let mut apic = enabled();
    mailbox.post(0x44, true);
    mailbox.post(0x99, false);
    mailbox.drain(|event| {
        if let Event::Interrupt { vector, level } = event {
            apic.accept(vector, level);
        }
    });
    assert_eq!(apic.acknowledge(), Some(0x99));
    assert_eq!(apic.eoi(), None);
    assert_eq!(apic.acknowledge(), Some(0x44));
    assert_eq!(apic.eoi(), Some(0x44));
}
