//! A hostile driver: rings, descriptors and requests without sense, anywhere in memory.

use std::sync::Arc;

use backend::{Disk, MemoryDisk};
use memory::{Gpa, GuestRam};
use virtio::{Block, Dma, Queue, VirtioDevice};

use crate::Input;

/// Bytes of RAM, in two parts with a hole between them.
const RAM: u64 = 1 << 16;
const SECOND: u64 = 1 << 20;
const SECTORS: usize = 16;
/// Flags of descriptors (virtio 1.2, 2.7.5).
const NEXT: u8 = 1;
const WRITE: u8 = 2;
const INDIRECT: u8 = 4;
/// Requests in one run.
const REQUESTS: usize = 64;

/// Fills RAM with what the input says, and lets a disk serve the queue there.
///
/// # Panics
/// When the queue or the disk panics, or a read-only disk changes.
pub fn virtqueue(data: &[u8]) {
    let mut input = Input::new(data);
    let ram = Arc::new(GuestRam::new(&[(0, RAM), (SECOND, RAM)]).expect("a small RAM"));
    let dma = Dma::new(Arc::clone(&ram), Arc::new(|| ()));
    let read_only = input.byte() & 1 != 0;
    let disk = MemoryDisk::new(SECTORS);
    let disk = Arc::new(if read_only { disk.read_only() } else { disk });
    let block = Block::new(Arc::clone(&disk) as Arc<dyn Disk>, "disk0");
    let features = input.word() | u64::from(input.byte() & 3) << 28;
    let mut queue = queue(&mut input);
    sprinkle(&ram, &queue, &mut input);
    let ring = virtio::RingFeatures::new(features);
    for _ in 0..REQUESTS {
        let Ok(Some(chain)) = queue.pop(&dma, ring) else { break };
        let Ok(written) = block.execute(0, &chain, &dma, features) else { break };
        if queue.push(&dma, chain.head, written).is_err() {
            break;
        }
        if queue.must_signal(&dma, ring).is_err() {
            break;
        }
    }
    if read_only {
        assert!(disk.content().iter().all(|byte| *byte == 0), "a read-only disk was written");
    }
}

/// A queue whose areas are mostly where they do no harm.
fn queue(input: &mut Input<'_>) -> Queue {
    let size = input.pick(&[32, 32, 256, 16, 4, 1]);
    let mut area = |near: u64| match input.byte() {
        0..=230 => near,
        231..=240 => near + u64::from(input.short()),
        _ => input.pick(&[SECOND, RAM - 0x40, SECOND + RAM - 2, u64::MAX - 0x40, u64::MAX]),
    };
    let (descriptors, driver, device) = (area(0x1000), area(0x2000), area(0x3000));
    let start = input.pick(&[0, 0, 1, 0xfffe]);
    Queue {
        enabled: true,
        size,
        descriptors,
        driver,
        device,
        next_available: start,
        next_used: start,
        ..Queue::new(256)
    }
}

/// Makes requests available, most of them with sense, and then changes memory here and there.
fn sprinkle(ram: &GuestRam, queue: &Queue, input: &mut Input<'_>) {
    // What is not in RAM is left out.
    let put = |gpa: u64, bytes: &[u8]| drop(ram.write(Gpa(gpa), bytes));
    let describe = |index: u64, gpa: u64, len: u32, flags: u8, next: u64| {
        let mut bytes = gpa.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend([flags, 0, next as u8, 0]);
        put(queue.descriptors.saturating_add(16 * index), &bytes);
    };
    let requests = u64::from(input.byte() % 9);
    let index = queue.next_available.wrapping_add(requests as u16);
    put(queue.driver.saturating_add(2), &index.to_le_bytes());
    for request in 0..requests {
        let entry = queue.next_available.wrapping_add(request as u16) & (queue.size - 1);
        let head = 3 * request;
        put(queue.driver.saturating_add(4 + 2 * u64::from(entry)), &[head as u8, 0]);
        let header = 0x5000 + 16 * request;
        let (kind, sector) = (input.pick(&[0, 1, 0, 1, 4, 8, 99]), input.byte() % 18);
        put(header, &[kind, 0, 0, 0, 0, 0, 0, 0, sector, 0, 0, 0, 0, 0, 0, 0]);
        let buffer = input.pick(&[0x6000, 0x6001, SECOND, RAM - 512, RAM - 511, 0x1000, u64::MAX]);
        let len = input.pick(&[512, 1024, 512, 20, 0, u32::MAX]);
        let write = if kind == 1 { 0 } else { WRITE };
        describe(head, header, 16, NEXT, head + 1);
        describe(head + 1, buffer, len, NEXT | write, head + 2);
        describe(head + 2, 0x5800 + request, 1, WRITE, 0);
        if input.byte() < 64 {
            // The same by way of an indirect table, which is that of the queue itself.
            describe(head + 30, queue.descriptors, 16 * 3 * (request as u32 + 1), INDIRECT, 0);
            put(queue.driver.saturating_add(4 + 2 * u64::from(entry)), &[head as u8 + 30, 0]);
        }
    }
    while !input.is_empty() {
        let area = input.pick(&[queue.descriptors, queue.driver, queue.device, 0x5000]);
        put(area.saturating_add((input.short() % 0x200).into()), &[input.byte()]);
    }
}
