//! Unpacking the ELF kernel that a bzImage carries compressed.

use crate::bzimage::BzImage;
use crate::image::bad_kernel;
use crate::source::Source;
use crate::{BootError, KernelImage};

/// The ELF kernel (vmlinux) inside a bzImage.
///
/// # Errors
/// [`BootError::BadKernel`] when `bzimage` is not a bzImage or its payload is damaged, in a
/// compression that is not known, or larger than 1 GiB.
pub fn extract(bzimage: Vec<u8>, name: &str) -> Result<Vec<u8>, BootError> {
    KernelImage::from_bytes(bzimage, name)?.vmlinux()
}

pub(crate) fn unpack(source: &Source, _image: &BzImage) -> Result<Vec<u8>, BootError> {
    Err(bad_kernel(source.name(), "not written yet", "wait"))
}
