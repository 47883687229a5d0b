use super::*;

fn common() -> Common {
    Common::new(1 << 9, 2, &[256])
}

fn dword(common: &Common, at: usize) -> u32 {
    let image = common.image();
    u32::from_le_bytes([image[at], image[at + 1], image[at + 2], image[at + 3]])
}

fn accept(common: &mut Common, features: u64) {
    for which in [0_u32, 1] {
        common.write(at::DRIVER_FEATURE_SELECT, &which.to_le_bytes());
        let half = (features >> (32 * which)) as u32;
        common.write(at::DRIVER_FEATURE, &half.to_le_bytes());
    }
}

#[test]
fn features_are_negotiated() {
    let mut common = common();
    assert_eq!(dword(&common, at::DEVICE_FEATURE), 1 << 9 | 1 << 28 | 1 << 29);
    common.write(at::DEVICE_FEATURE_SELECT, &1_u32.to_le_bytes());
    assert_eq!(dword(&common, at::DEVICE_FEATURE), 1);
    common.write(at::DEVICE_FEATURE_SELECT, &2_u32.to_le_bytes());
    assert_eq!(dword(&common, at::DEVICE_FEATURE), 0);
    for (features, agreed) in
        [(0, false), (1 << 9, false), (1 << 32, true), (1 << 32 | 1 << 30, false)]
    {
        common.reset();
        accept(&mut common, features);
        common.write(at::STATUS, &[3]);
        common.write(at::STATUS, &[11]);
        assert_eq!(common.status, if agreed { 11 } else { 3 }, "{features:#x}");
    }
    common.reset();
    accept(&mut common, 1 << 32);
    common.write(at::STATUS, &[11]);
    accept(&mut common, u64::MAX);
    assert_eq!(common.driver_features, 1 << 32, "agreed is agreed");
}

#[test]
fn a_device_starts_once_and_only_after_agreement() {
    let mut common = common();
    assert_eq!(common.write(at::STATUS, &[7]), Request::Nothing);
    assert!(!common.is_live());
    accept(&mut common, 1 << 32);
    assert_eq!(common.write(at::STATUS, &[15]), Request::Start);
    assert_eq!(common.write(at::STATUS, &[15]), Request::Nothing);
    assert_eq!(common.write(at::STATUS, &[0xff]), Request::Nothing);
    assert_eq!(common.status, 0x8f, "NEEDS_RESET is the device's");
    common.status |= status::NEEDS_RESET;
    assert!(!common.is_live());
    assert_eq!(common.write(at::STATUS, &[0]), Request::Reset);
}

#[test]
fn a_queue_is_set_up_and_then_stays() {
    let mut common = common();
    assert_eq!(dword(&common, 0x18), 0xffff_0100, "size and no vector");
    for size in [0_u16, 3, 512, 0xffff] {
        common.write(at::QUEUE_SIZE, &size.to_le_bytes());
        assert_eq!(common.queues[0].size, 256);
    }
    common.write(at::QUEUE_SIZE, &64_u16.to_le_bytes());
    common.write(at::QUEUE_VECTOR, &1_u16.to_le_bytes());
    common.write(at::QUEUE_DESCRIPTORS, &0x1_2345_6000_u64.to_le_bytes());
    common.write(at::QUEUE_DRIVER, &0x7000_u32.to_le_bytes());
    common.write(at::QUEUE_DEVICE + 4, &1_u32.to_le_bytes());
    common.write(at::QUEUE_ENABLE, &[1, 0]);
    let queue = common.queues[0];
    assert_eq!((queue.size, queue.vector, queue.enabled), (64, 1, true));
    let areas = (queue.descriptors, queue.driver, queue.device);
    assert_eq!(areas, (0x1_2345_6000, 0x7000, 1 << 32));
    common.write(at::QUEUE_SIZE, &[2, 0]);
    common.write(at::QUEUE_DRIVER, &[0; 8]);
    common.write(at::QUEUE_ENABLE, &[0, 0]);
    assert_eq!(common.queues[0], queue);
    common.write(at::QUEUE_VECTOR, &2_u16.to_le_bytes());
    assert_eq!(common.queues[0].vector, NO_VECTOR, "there are two vectors");
    common.write(at::QUEUE_SELECT, &[1, 0]);
    common.write(at::QUEUE_ENABLE, &[1, 0]);
    assert_eq!(dword(&common, 0x18), 0, "there is one queue");
    common.reset();
    assert_eq!(common, self::common());
}

#[test]
fn accesses_of_other_widths_do_nothing() {
    let mut common = common();
    for offset in 0..0x48 {
        for len in [0, 3, 5, 6, 7] {
            common.write(offset, &[0x5a; 8][..len]);
        }
    }
    common.write(at::STATUS, &[15, 0]);
    common.write(at::QUEUE_SIZE, &[2, 0, 0, 0]);
    common.write(at::QUEUE_DRIVER + 2, &[0x5a; 4]);
    assert_eq!(common, self::common());
}
