//! PVH ELF.
use crate::image::bad_kernel;
use crate::load::Request;
use crate::source::Source;
use crate::{BootError, EntryState};

#[derive(Debug)]
pub(crate) struct ElfKernel {}

impl ElfKernel {
    pub(crate) fn parse(source: &Source, _head: &[u8]) -> Result<Self, BootError> {
        Err(bad_kernel(source.name(), "not written yet", "wait"))
    }
}
pub(crate) fn load(_image: &ElfKernel, r: &Request<'_>) -> Result<EntryState, BootError> {
    Err(bad_kernel(r.source.name(), "not written yet", "wait"))
}
