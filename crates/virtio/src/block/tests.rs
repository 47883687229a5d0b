use backend::MemoryDisk;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::*;
use crate::Segment;
use crate::testing::{RAM, dma};

const FLUSHES: u64 = 1 << VIRTIO_BLK_F_FLUSH;
const STATUS_AT: u64 = 0x7000;

struct Rig {
    dma: Dma,
    disk: Arc<MemoryDisk>,
    block: Block,
}

impl Rig {
    fn new(disk: MemoryDisk) -> Self {
        let disk = Arc::new(disk);
        let block = Block::new(Arc::clone(&disk) as _, "disk0");
        Self { dma: dma(), disk, block }
    }

    /// Executes a request whose data is at these segments; gives its status and what was written.
    fn request(
        &self,
        kind: u32,
        sector: u64,
        reads: &[(u64, u32)],
        writes: &[(u64, u32)],
    ) -> (u8, Result<u32, DeviceError>) {
        let mut header = [kind.to_le_bytes(), [0; 4]].concat();
        header.extend(sector.to_le_bytes());
        self.dma.write(0x6000, &header).unwrap();
        self.dma.write(STATUS_AT, &[0xaa]).unwrap();
        let segment = |&(gpa, len): &(u64, u32)| Segment { gpa, len };
        // The header may come in pieces.
        let mut readable = vec![Segment { gpa: 0x6000, len: 5 }, Segment { gpa: 0x6005, len: 11 }];
        readable.extend(reads.iter().map(segment));
        let mut writable: Vec<_> = writes.iter().map(segment).collect();
        writable.push(Segment { gpa: STATUS_AT, len: 1 });
        let chain = Chain::new(0, readable, writable);
        let result = self.block.execute(0, &chain, &self.dma, FLUSHES);
        let mut status = [0];
        self.dma.read(STATUS_AT, &mut status).unwrap();
        (status[0], result)
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n / 7) as u8).collect()
}

#[test]
fn what_is_written_in_pieces_is_read_in_others() {
    let rig = Rig::new(MemoryDisk::new(16));
    let data = pattern(2048);
    rig.dma.write(0x8000, &data[..700]).unwrap();
    rig.dma.write(0xa000, &data[700..]).unwrap();
    let done = rig.request(VIRTIO_BLK_T_OUT, 3, &[(0x8000, 700), (0xa000, 1348)], &[]);
    assert_eq!(done, (0, Ok(1)));
    assert_eq!(rig.disk.content()[3 * 512..7 * 512], data);
    let done = rig.request(VIRTIO_BLK_T_IN, 3, &[], &[(0xc001, 1), (0xd000, 2047)]);
    assert_eq!(done, (0, Ok(2049)));
    let mut read = vec![0; 2048];
    rig.dma.read(0xc001, &mut read[..1]).unwrap();
    rig.dma.read(0xd000, &mut read[1..]).unwrap();
    assert_eq!(read, data);
}

#[test]
fn large_requests_are_moved_in_parts() {
    let rig = Rig::new(MemoryDisk::new(1400));
    let data = pattern(700 << 10);
    rig.dma.write(0x1_0000, &data).unwrap();
    let done = rig.request(VIRTIO_BLK_T_OUT, 0, &[(0x1_0000, 700 << 10)], &[]);
    assert_eq!((done, rig.disk.content()), ((0, Ok(1)), data.clone()));
    rig.dma.write(0x1_0000, &vec![0; data.len()]).unwrap();
    let done = rig.request(VIRTIO_BLK_T_IN, 0, &[], &[(0x1_0000, 700 << 10)]);
    assert_eq!(done, (0, Ok((700 << 10) + 1)));
    let mut read = vec![0; data.len()];
    rig.dma.read(0x1_0000, &mut read).unwrap();
    assert_eq!(read, data);
}

#[test]
fn flushes_reach_the_disk() {
    let rig = Rig::new(MemoryDisk::new(16));
    assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 0, &[(0x8000, 512)], &[]).0, 0);
    assert_eq!(rig.disk.flushes(), 0);
    assert_eq!(rig.request(VIRTIO_BLK_T_FLUSH, 0, &[], &[]), (0, Ok(1)));
    assert_eq!(rig.disk.flushes(), 1);
    let chain = Chain::new(
        0,
        vec![Segment { gpa: 0x6000, len: 16 }, Segment { gpa: 0x8000, len: 512 }],
        vec![Segment { gpa: STATUS_AT, len: 1 }],
    );
    rig.dma.write(0x6000, &[1, 0, 0, 0]).unwrap();
    rig.block.execute(0, &chain, &rig.dma, 0).unwrap();
    assert_eq!(rig.disk.flushes(), 2, "a driver that does not flush");
}

#[test]
fn the_disk_says_what_it_is() {
    let rig = Rig::new(MemoryDisk::new(77));
    assert_eq!(rig.block.config()[..8], [77, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(rig.block.config()[20..24], [0, 2, 0, 0]);
    assert_eq!(rig.request(VIRTIO_BLK_T_GET_ID, 0, &[], &[(0x8000, 20)]), (0, Ok(21)));
    let mut id = [0; 6];
    rig.dma.read(0x8000, &mut id).unwrap();
    assert_eq!(&id, b"disk0\0");
    assert_eq!(rig.request(VIRTIO_BLK_T_GET_ID, 0, &[], &[(0x8000, 3)]), (0, Ok(4)));
    assert_eq!(rig.block.features() >> VIRTIO_BLK_F_RO & 1, 0);
}

#[test]
fn a_read_only_disk_is_not_written() {
    let rig = Rig::new(MemoryDisk::new(16).read_only());
    assert_eq!(rig.block.features() >> VIRTIO_BLK_F_RO & 1, 1);
    rig.dma.write(0x8000, &[7; 512]).unwrap();
    assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 0, &[(0x8000, 512)], &[]), (1, Ok(1)));
    assert_eq!(rig.disk.content(), [0; 16 * 512]);
    assert_eq!(rig.request(VIRTIO_BLK_T_IN, 0, &[], &[(0x8000, 512)]), (0, Ok(513)));
}

impl Rig {
    /// Executes a request with a range: sector, sectors, flags; gives its status.
    fn range(&self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        let mut range = sector.to_le_bytes().to_vec();
        range.extend(sectors.to_le_bytes());
        range.extend(flags.to_le_bytes());
        self.dma.write(0x8000, &range).unwrap();
        self.request(kind, 0, &[(0x8000, 16)], &[]).0
    }
}

#[test]
fn ranges_are_made_zero_or_discarded() {
    let rig = Rig::new(MemoryDisk::new(16));
    rig.disk.write(0, &[7; 16 * 512]).unwrap();
    assert_eq!(rig.range(VIRTIO_BLK_T_WRITE_ZEROES, 2, 3, 1), 0);
    assert_eq!(rig.disk.content()[2 * 512..5 * 512], [0; 3 * 512]);
    assert_eq!(rig.disk.content()[5 * 512..], [7; 11 * 512]);
    assert_eq!(rig.range(VIRTIO_BLK_T_DISCARD, 2, 14, 0), 0);
    for (kind, sector, sectors, flags, status) in [
        (VIRTIO_BLK_T_WRITE_ZEROES, 2, 15, 0, 1),
        (VIRTIO_BLK_T_WRITE_ZEROES, 2, 0, 0, 1),
        (VIRTIO_BLK_T_WRITE_ZEROES, 2, 1, 2, 2),
        (VIRTIO_BLK_T_DISCARD, 2, 1, 1, 2),
        (VIRTIO_BLK_T_DISCARD, u64::MAX, u32::MAX, 0, 1),
    ] {
        assert_eq!(rig.range(kind, sector, sectors, flags), status, "{kind} {sector} {sectors}");
    }
    assert_eq!(rig.request(VIRTIO_BLK_T_DISCARD, 0, &[(0x8000, 32)], &[]).0, 1, "two ranges");
    let rig = Rig::new(MemoryDisk::new(16).read_only());
    assert_eq!(rig.range(VIRTIO_BLK_T_WRITE_ZEROES, 0, 1, 0), 1);
    assert_eq!(rig.range(VIRTIO_BLK_T_DISCARD, 0, 1, 0), 1);
}

#[test]
fn a_guest_with_several_cpus_finds_several_queues() {
    let block = Block::new(Arc::new(MemoryDisk::new(16)), "disk0");
    assert_eq!((block.queues().len(), block.features() >> VIRTIO_BLK_F_MQ & 1), (1, 0));
    let block = block.with_queues(4);
    assert_eq!((block.queues().len(), block.features() >> VIRTIO_BLK_F_MQ & 1), (4, 1));
    assert_eq!(block.config()[34..36], [4, 0]);
    assert_eq!(block.with_queues(99).queues().len(), 8);
}

#[test]
fn requests_without_sense_fail() {
    let rig = Rig::new(MemoryDisk::new(16));
    let buffer = |len| [(0x8000, len)];
    for sector in [16, 15, u64::MAX, u64::MAX / 512] {
        assert_eq!(rig.request(VIRTIO_BLK_T_IN, sector, &[], &buffer(1024)), (1, Ok(1)));
        assert_eq!(rig.request(VIRTIO_BLK_T_OUT, sector, &buffer(1024), &[]), (1, Ok(1)));
    }
    for len in [0, 1, 511, 513] {
        assert_eq!(rig.request(VIRTIO_BLK_T_IN, 0, &[], &buffer(len)).0, 1, "{len}");
        assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 0, &buffer(len), &[]).0, 1, "{len}");
    }
    for kind in [2, 3, 10, 12, 14, 0x8000_0000, u32::MAX] {
        assert_eq!(rig.request(kind, 0, &[], &buffer(512)), (2, Ok(1)), "type {kind}");
    }
    let huge: Vec<_> = vec![(0x8000, 0xffff_fe00); 254];
    assert_eq!(rig.request(VIRTIO_BLK_T_IN, 0, &[], &huge), (1, Ok(1)));
    assert_eq!(rig.disk.content(), [0; 16 * 512]);
}

#[test]
fn buffers_outside_ram_fail_and_stay_harmless() {
    let rig = Rig::new(MemoryDisk::new(16));
    for gpa in [RAM, RAM - 511, u64::MAX - 100] {
        assert_eq!(rig.request(VIRTIO_BLK_T_IN, 0, &[], &[(gpa, 512)]), (1, Ok(1)));
        assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 0, &[(gpa, 512)], &[]), (1, Ok(1)));
    }
    let nowhere = Chain::new(0, Vec::new(), Vec::new());
    assert_eq!(rig.block.execute(0, &nowhere, &rig.dma, 0), Err(DeviceError));
    let status = Segment { gpa: RAM, len: 1 };
    let chain = Chain::new(0, Vec::new(), vec![status]);
    assert_eq!(rig.block.execute(0, &chain, &rig.dma, 0), Err(DeviceError));
    let chain = Chain::new(0, Vec::new(), vec![Segment { gpa: STATUS_AT, len: 1 }]);
    assert_eq!(rig.block.execute(0, &chain, &rig.dma, 0), Ok(1), "no header: an error");
}
