//! What a file is, by its first bytes.

use crate::BootError;
use crate::image::bad_kernel;

/// Bytes of a file that are looked at.
pub(crate) const HEAD_LEN: usize = 0x9000;

/// Kernel formats that have a loader.
pub(crate) enum Format {
    BzImage,
    Elf64,
}

pub(crate) fn kernel(name: &str, head: &[u8]) -> Result<Format, BootError> {
    if head.is_empty() {
        return Err(bad_kernel(name, "is empty", "copy or download it again"));
    }
    if head.starts_with(b"\x7fELF") {
        return Ok(Format::Elf64);
    }
    Ok(Format::BzImage)
}
