//! Unpacking the ELF kernel of a bzImage.

use std::io::Write;

use lzma_rust2::{LzmaOptions, LzmaWriter, XzOptions, XzWriter};

use crate::sample::{Random, bzimage, bzimage_with, elf};

/// Something that compresses, larger than one LZ4 block.
fn kernel() -> Vec<u8> {
    let mut random = Random(0x5eed_0003);
    let mut kernel = elf();
    while kernel.len() < 9 << 20 {
        let run = [random.next() as u8; 4096];
        kernel.extend(&run[..1 + random.below(4096)]);
    }
    kernel
}

fn size_of(kernel: &[u8]) -> [u8; 4] {
    (kernel.len() as u32).to_le_bytes()
}

fn lz4(kernel: &[u8]) -> Vec<u8> {
    let mut packed = vec![0x02, 0x21, 0x4c, 0x18];
    for block in kernel.chunks(8 << 20) {
        let block = lz4_flex::block::compress(block);
        packed.extend((block.len() as u32).to_le_bytes());
        packed.extend(block);
    }
    packed
}

/// `kernel` in every format that a kernel's payload has here, with the size behind it.
fn payloads(kernel: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(kernel).unwrap();
    let mut xz = XzWriter::new(Vec::new(), XzOptions::with_preset(1)).unwrap();
    xz.write_all(kernel).unwrap();
    let mut lzma =
        LzmaWriter::new_use_header(Vec::new(), &LzmaOptions::with_preset(1), None).unwrap();
    lzma.write_all(kernel).unwrap();
    let level = ruzstd::encoding::CompressionLevel::Fastest;
    let zstd = ruzstd::encoding::compress_to_vec(kernel, level);
    let sized = |packed: Vec<u8>| [&packed[..], &size_of(kernel)].concat();
    vec![
        ("gzip", gzip.finish().unwrap()),
        ("xz", sized(xz.finish().unwrap())),
        ("lzma", sized(lzma.finish().unwrap())),
        ("zstd", sized(zstd)),
        ("lz4", sized(lz4(kernel))),
    ]
}

#[test]
fn every_compression_is_unpacked() {
    let kernel = kernel();
    for (name, payload) in payloads(&kernel) {
        let unpacked = boot::vmlinux::extract(bzimage_with(&payload), "vmlinuz");
        assert!(unpacked.unwrap() == kernel, "{name}");
    }
    assert!(boot::vmlinux::extract(bzimage_with(&kernel), "vmlinuz").unwrap() == kernel);
    assert!(boot::vmlinux::extract(kernel.clone(), "vmlinux").unwrap() == kernel);
}

#[test]
fn a_wrong_size_is_an_error() {
    for (name, mut payload) in payloads(&elf()) {
        let last = payload.len() - 4;
        for size in [0, elf().len() as u32 - 1, elf().len() as u32 + 1, 1 << 30, u32::MAX] {
            payload[last..].copy_from_slice(&size.to_le_bytes());
            let error = boot::vmlinux::extract(bzimage_with(&payload), "vmlinuz").unwrap_err();
            assert!(error.to_string().starts_with("kernel vmlinuz: "), "{name}: {error}");
        }
    }
}

#[test]
fn unknown_and_missing_payloads_are_errors() {
    let bzip2 = boot::vmlinux::extract(bzimage_with(b"BZh91AY"), "vmlinuz").unwrap_err();
    assert!(bzip2.to_string().contains("is not gzip, xz, lzma, zstd or lz4"), "{bzip2}");
    for len in [0_u32, 4, u32::MAX] {
        let mut file = bzimage();
        crate::sample::put(&mut file, crate::sample::field::PAYLOAD_LENGTH, &len.to_le_bytes());
        let error = boot::vmlinux::extract(file, "vmlinuz").unwrap_err();
        assert!(error.to_string().contains("not inside the file"), "{error}");
    }
}

#[test]
fn damaged_payloads_never_panic() {
    let mut random = Random(0x5eed_0004);
    let kernel: Vec<u8> = elf().into_iter().cycle().take(100_000).collect();
    let payloads = payloads(&kernel);
    for _ in 0..300 {
        for (name, payload) in &payloads {
            let mut payload = payload.clone();
            for _ in 0..=random.below(3) {
                // Headers more often than data.
                let limit = 1 + random.below(payload.len());
                let at = random.below(limit);
                payload[at] = random.next() as u8;
            }
            if let Err(error) = boot::vmlinux::extract(bzimage_with(&payload), "vmlinuz") {
                assert!(!error.to_string().contains('\n'), "{name}: {error}");
            }
        }
    }
}
