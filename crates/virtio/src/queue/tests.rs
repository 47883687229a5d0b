use super::*;
use crate::testing::{INDIRECT, NEXT, RAM, Ring, WRITE};

const PLAIN: RingFeatures = RingFeatures { event_index: false, indirect: false };
const ALL: RingFeatures = RingFeatures { event_index: true, indirect: true };

#[test]
fn requests_come_in_order_and_go_back() {
    let (ring, mut queue) = Ring::new(4);
    assert_eq!(queue.pop(&ring.dma, PLAIN), Ok(None));
    for round in 0..10_u16 {
        ring.chain(&[(0x8000, 16, false), (0x9000, 512, true), (0xa000, 1, true)]);
        ring.offer(0);
        let chain = queue.pop(&ring.dma, PLAIN).unwrap().unwrap();
        assert_eq!((chain.reader(&ring.dma).left(), chain.writer(&ring.dma).left()), (16, 513));
        assert_eq!(queue.pop(&ring.dma, PLAIN), Ok(None));
        queue.push(&ring.dma, chain.head, 513).unwrap();
        assert_eq!((ring.used_index(), ring.used(round)), (round + 1, (0, 513)));
    }
}

#[test]
fn indexes_wrap_around() {
    let (ring, mut queue) = Ring::new(2);
    (queue.next_available, queue.next_used, queue.signalled) = (0xffff, 0xffff, 0xffff);
    ring.dma.store_u16(Ring::AVAILABLE + 2, 0xffff).unwrap();
    ring.chain(&[(0x8000, 1, true)]);
    ring.offer(0);
    assert!(queue.pop(&ring.dma, ALL).unwrap().is_some());
    queue.push(&ring.dma, 0, 1).unwrap();
    assert_eq!(ring.used_index(), 0);
    ring.set_used_event(0xffff);
    assert_eq!(queue.must_signal(&ring.dma, ALL), Ok(true));
    assert_eq!(queue.must_signal(&ring.dma, ALL), Ok(false), "nothing new");
}

#[test]
fn the_driver_is_told_when_it_wants_to_be() {
    let (ring, mut queue) = Ring::new(8);
    queue.push(&ring.dma, 0, 0).unwrap();
    assert_eq!(queue.must_signal(&ring.dma, PLAIN), Ok(true));
    ring.dma.store_u16(Ring::AVAILABLE, 1).unwrap();
    queue.push(&ring.dma, 0, 0).unwrap();
    assert_eq!(queue.must_signal(&ring.dma, PLAIN), Ok(false), "NO_INTERRUPT");
    ring.set_used_event(3);
    queue.push(&ring.dma, 0, 0).unwrap();
    assert_eq!(queue.must_signal(&ring.dma, ALL), Ok(false), "entry 2, not yet 3");
    queue.push(&ring.dma, 0, 0).unwrap();
    assert_eq!(queue.must_signal(&ring.dma, ALL), Ok(true));
    queue.push(&ring.dma, 0, 0).unwrap();
    assert_eq!(queue.must_signal(&ring.dma, ALL), Ok(false), "it was told of 3");
}

#[test]
fn an_idle_device_asks_to_be_told() {
    let (ring, mut queue) = Ring::new(8);
    ring.chain(&[(0x8000, 1, true)]);
    ring.offer(0);
    ring.offer(0);
    assert!(queue.pop(&ring.dma, ALL).unwrap().is_some());
    assert_eq!(ring.available_event(), 0, "not while it is busy");
    assert!(queue.pop(&ring.dma, ALL).unwrap().is_some());
    assert_eq!(queue.pop(&ring.dma, ALL), Ok(None));
    assert_eq!(ring.available_event(), 2);
}

#[test]
fn indirect_tables_are_followed() {
    let (ring, mut queue) = Ring::new(2);
    ring.describe(Ring::DESCRIPTORS, 1, 0x5000, 48, INDIRECT, 0);
    ring.describe(0x5000, 0, 0x8000, 16, NEXT, 2);
    ring.describe(0x5000, 2, 0x9000, 512, NEXT | WRITE, 1);
    ring.describe(0x5000, 1, 0xa000, 1, WRITE, 0);
    ring.offer(1);
    let chain = queue.pop(&ring.dma, ALL).unwrap().unwrap();
    assert_eq!(chain.head, 1);
    assert_eq!((chain.reader(&ring.dma).left(), chain.writer(&ring.dma).left()), (16, 513));
}

/// What a chain from descriptor 0 that `describe` writes ends in.
fn refused(describe: impl Fn(&Ring)) -> QueueError {
    let (ring, mut queue) = Ring::new(4);
    describe(&ring);
    ring.offer(0);
    queue.pop(&ring.dma, ALL).expect_err("a chain that makes no sense")
}

#[test]
fn chains_without_sense_are_refused() {
    let table = Ring::DESCRIPTORS;
    let indirect =
        |len, flags| refused(move |ring| ring.describe(table, 0, 0x5000, len, INDIRECT | flags, 1));
    for (error, expected) in [
        (
            refused(|ring| {
                ring.describe(table, 0, 0x8000, 1, NEXT, 1);
                ring.describe(table, 1, 0x8000, 1, NEXT, 0);
            }),
            QueueError::Loop { head: 0 },
        ),
        (
            refused(|ring| ring.describe(table, 0, 0x8000, 1, NEXT, 4)),
            QueueError::Descriptor { index: 4 },
        ),
        (
            refused(|ring| ring.chain(&[(0x8000, 1, true), (0x8000, 1, false)])),
            QueueError::Order { index: 1 },
        ),
        (indirect(0, 0), QueueError::Indirect { index: 0 }),
        (indirect(17, 0), QueueError::Indirect { index: 0 }),
        (indirect(!15, 0), QueueError::Indirect { index: 0 }),
        (indirect(16, NEXT), QueueError::Indirect { index: 0 }),
        (
            refused(|ring| {
                ring.describe(table, 0, 0x5000, 32, INDIRECT, 0);
                ring.describe(0x5000, 0, 0x5000, 32, INDIRECT, 0);
            }),
            QueueError::Indirect { index: 0 },
        ),
        (
            refused(|ring| ring.describe(table, 0, RAM - 8, 16, INDIRECT, 0)),
            QueueError::NotRam { gpa: RAM - 8 },
        ),
        (
            refused(|ring| {
                ring.describe(table, 0, 0x5000, 16, INDIRECT, 0);
                ring.describe(0x5000, 0, 0x8000, 1, NEXT, 1);
            }),
            QueueError::Descriptor { index: 1 },
        ),
    ] {
        assert_eq!(error, expected);
    }
}

#[test]
fn an_indirect_descriptor_needs_the_feature() {
    let (ring, mut queue) = Ring::new(4);
    ring.describe(Ring::DESCRIPTORS, 0, 0x5000, 16, INDIRECT, 0);
    ring.offer(0);
    assert_eq!(queue.pop(&ring.dma, PLAIN), Err(QueueError::Indirect { index: 0 }));
}

#[test]
fn rings_without_sense_are_refused() {
    let (ring, mut queue) = Ring::new(4);
    ring.dma.store_u16(Ring::AVAILABLE + 2, 5).unwrap();
    assert_eq!(queue.pop(&ring.dma, ALL), Err(QueueError::Jump { by: 5 }));
    ring.dma.store_u16(Ring::AVAILABLE + 2, 0xffff).unwrap();
    assert_eq!(queue.pop(&ring.dma, ALL), Err(QueueError::Jump { by: 0xffff }));
    ring.dma.store_u16(Ring::AVAILABLE + 2, 1).unwrap();
    ring.dma.store_u16(Ring::AVAILABLE + 4, 4).unwrap();
    assert_eq!(queue.pop(&ring.dma, ALL), Err(QueueError::Descriptor { index: 4 }));
    for gpa in [RAM - 2, u64::MAX, u64::MAX - 3] {
        let mut odd = Queue { driver: gpa, ..queue };
        assert!(odd.pop(&ring.dma, ALL).is_err());
        assert!(odd.must_signal(&ring.dma, ALL).is_ok(), "nothing was returned");
        let mut odd = Queue { device: gpa, next_available: 1, ..queue };
        assert!(odd.pop(&ring.dma, ALL).is_err());
        assert!(odd.push(&ring.dma, 0, 0).is_err());
    }
}

#[test]
fn buffers_may_be_anywhere_until_they_are_used() {
    let (ring, mut queue) = Ring::new(4);
    ring.chain(&[(u64::MAX - 1, u32::MAX, false), (RAM - 1, 2, true), (0x8000, 2, true)]);
    ring.offer(0);
    let chain = queue.pop(&ring.dma, ALL).unwrap().unwrap();
    assert_eq!(chain.reader(&ring.dma).left(), u64::from(u32::MAX));
    assert_eq!(chain.reader(&ring.dma).read(&mut [0; 3]), Err(NotRam));
    let mut writer = chain.writer(&ring.dma);
    assert_eq!(writer.write(&[1, 2, 3, 4]), Err(NotRam));
    let mut writer = chain.writer(&ring.dma);
    writer.skip_to_last(1);
    assert_eq!((writer.left(), writer.write(&[7])), (1, Ok(())));
    assert_eq!(ring.read(0x8000, 2), [0, 7]);
    assert_eq!(writer.write(&[7]), Err(NotRam), "no room");
}
