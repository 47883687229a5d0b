//! Unpacking the ELF kernel that a bzImage carries compressed.
//!
//! The payload's last four bytes are the size of what it unpacks to: appended by the kernel's
//! build, or for gzip a part of the format. So every format is bounded, and checked for its end.

use std::io::{self, Read};

use lzma_rust2::{LzmaReader, XzReader};

use crate::bzimage::BzImage;
use crate::image::bad_kernel;
use crate::recognise::COPY_AGAIN;
use crate::source::Source;
use crate::{BootError, KernelImage};

/// The largest ELF kernel that is unpacked, and the largest dictionary for that.
const MAX_UNPACKED: u64 = 1 << 30;
/// Bytes of the size at the payload's end.
const TRAILER: usize = 4;
/// Output that is reserved before there is any: the size is only a claim.
const RESERVE: u64 = 64 << 20;

/// The ELF kernel (vmlinux) inside a bzImage; `name` is for messages. After the ELF file there may
/// be a table of relocations, which loaders ignore.
///
/// # Errors
/// [`BootError::BadKernel`] when `kernel` is no kernel, or its payload is damaged, in a
/// compression that is not known, or larger than 1 GiB.
pub fn extract(kernel: Vec<u8>, name: &str) -> Result<Vec<u8>, BootError> {
    KernelImage::from_bytes(kernel, name)?.vmlinux()
}

/// How the payload is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    Gzip,
    Xz,
    Lzma,
    Zstd,
    Lz4,
}

impl Compression {
    fn of(payload: &[u8]) -> Option<Self> {
        // Magic numbers as in Linux lib/decompress.c.
        const MAGICS: &[(&[u8], Compression)] = &[
            (&[0x1f, 0x8b], Compression::Gzip),
            (b"\xfd7zXZ\0", Compression::Xz),
            (&[0x5d, 0x00, 0x00], Compression::Lzma),
            (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
            (&LZ4_LEGACY, Compression::Lz4),
        ];
        MAGICS.iter().find(|m| payload.starts_with(m.0)).map(|m| m.1)
    }
}

/// The whole file, when it is no larger than what would be unpacked.
pub(crate) fn whole(source: &Source) -> Result<Vec<u8>, BootError> {
    if source.len() > MAX_UNPACKED {
        let cause = format!("has {} bytes, more than {MAX_UNPACKED}", source.len());
        return Err(bad_kernel(source.name(), cause, "strip it of debugging information"));
    }
    source.head(MAX_UNPACKED as usize)
}

/// Unpacks a kernel that is gzip-compressed as a whole, as distributions ship the Xen hypervisor.
pub(crate) fn gunzip(source: &Source) -> Result<Vec<u8>, BootError> {
    let bad = |cause: String| bad_kernel(source.name(), cause, COPY_AGAIN);
    let packed = whole(source)?;
    match read_all(flate2::read::MultiGzDecoder::new(&packed[..]), MAX_UNPACKED) {
        Ok(unpacked) if unpacked.len() as u64 <= MAX_UNPACKED => Ok(unpacked),
        Ok(_) => {
            Err(bad(format!("is gzip-compressed, and unpacks to more than {MAX_UNPACKED} bytes")))
        }
        Err(error) => Err(bad(format!("is gzip-compressed, and damaged ({error})"))),
    }
}

/// Unpacks the payload of a checked bzImage.
pub(crate) fn unpack(source: &Source, image: &BzImage) -> Result<Vec<u8>, BootError> {
    let name = source.name();
    let bad = |cause: String| bad_kernel(name, cause, COPY_AGAIN);
    let (offset, len) = image.payload;
    let start = image.kernel_offset + offset;
    if len <= TRAILER as u64 || start + len > source.len() {
        return Err(bad(format!("has its payload at {start:#x}+{len:#x}, not inside the file")));
    }
    let mut payload = vec![0; len as usize];
    source.read_at(start, &mut payload)?;
    let compression = match Compression::of(&payload) {
        // Not compressed, the payload is the kernel itself, without a size behind it.
        None if payload.starts_with(b"\x7fELF") => return Ok(payload),
        Some(compression) => compression,
        None => {
            let cause = "has a payload that is not gzip, xz, lzma, zstd or lz4";
            return Err(bad_kernel(name, cause, "unpack it with linux's extract-vmlinux script"));
        }
    };
    let (body, trailer) = payload.split_at(payload.len() - TRAILER);
    let size = trailer.iter().rev().fold(0, |size, &byte| size << 8 | u64::from(byte));
    if size > MAX_UNPACKED {
        return Err(bad(format!("claims to unpack to {size} bytes, more than {MAX_UNPACKED}")));
    }
    let unpacked = match compression {
        Compression::Gzip => read_all(flate2::read::GzDecoder::new(&payload[..]), size),
        Compression::Xz => unpack_xz(body, size),
        Compression::Lzma => LzmaReader::new_mem_limit(body, (MAX_UNPACKED >> 10) as u32, None)
            .and_then(|reader| read_all(reader, size)),
        Compression::Zstd => ruzstd::decoding::StreamingDecoder::new(body)
            .map_err(io::Error::other)
            .and_then(|reader| read_all(reader, size)),
        Compression::Lz4 => unpack_lz4(body, size),
    };
    match unpacked {
        Ok(unpacked) if unpacked.len() as u64 == size => Ok(unpacked),
        Ok(unpacked) => {
            Err(bad(format!("has a damaged payload ({} bytes of {size})", unpacked.len())))
        }
        Err(error) => Err(bad(format!("has a damaged payload ({error})"))),
    }
}

/// Reads to the end, or to one byte more than `size`, which the caller finds to be wrong.
fn read_all(reader: impl Read, size: u64) -> io::Result<Vec<u8>> {
    let mut unpacked = Vec::with_capacity(size.min(RESERVE) as usize);
    reader.take(size + 1).read_to_end(&mut unpacked)?;
    Ok(unpacked)
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn unpack_xz(body: &[u8], size: u64) -> io::Result<Vec<u8>> {
    check_xz_dictionary(body)?;
    read_all(XzReader::new(body, false), size)
}

/// Refuses a dictionary larger than any kernel: the decoder would allocate it. The size stands
/// last in the first block's list of filters (The .xz File Format 3.1 and 5.3.1).
fn check_xz_dictionary(body: &[u8]) -> io::Result<()> {
    const STREAM_HEADER: usize = 12;
    const LZMA2: [u8; 2] = [0x21, 1];
    const MAX_ENCODED: u8 = 36; // 1 GiB
    let short = || invalid("xz header is cut short");
    let units = usize::from(*body.get(STREAM_HEADER).ok_or_else(short)?);
    let header = body.get(STREAM_HEADER..STREAM_HEADER + (units + 1) * 4).ok_or_else(short)?;
    // Zero padding and a checksum follow the list, so the last match is the filter.
    let filter = header.windows(3).rev().find(|window| window[..2] == LZMA2);
    match filter {
        Some(filter) if filter[2] <= MAX_ENCODED => Ok(()),
        Some(_) => Err(invalid("xz dictionary is larger than 1 GiB")),
        None => Err(invalid("xz stream without lzma2")),
    }
}

/// Magic number of a legacy frame, the format of `lz4 -l`.
const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// Most bytes that a block of a legacy frame unpacks to (LZ4 Frame Format, legacy frame).
const LZ4_BLOCK: usize = 8 << 20;

fn unpack_lz4(body: &[u8], size: u64) -> io::Result<Vec<u8>> {
    let mut unpacked = Vec::with_capacity(size.min(RESERVE) as usize);
    let mut block = vec![0; LZ4_BLOCK];
    let mut rest = body;
    while let Some((word, after)) = rest.split_first_chunk::<4>() {
        // Frames may follow each other; each begins with the magic number.
        if *word == LZ4_LEGACY {
            rest = after;
            continue;
        }
        let len = u32::from_le_bytes(*word) as usize;
        let packed = after.get(..len).ok_or_else(|| invalid("lz4 block is cut short"))?;
        rest = &after[len..];
        let done =
            lz4_flex::block::decompress_into(packed, &mut block).map_err(io::Error::other)?;
        if (unpacked.len() + done) as u64 > size {
            return Err(invalid("lz4 data is longer than it says"));
        }
        unpacked.extend_from_slice(&block[..done]);
    }
    Ok(unpacked)
}
