//! Where the bytes of a kernel or initrd come from: an open file, or memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use memory::{Gpa, GuestRam};

use crate::BootError;

/// Bytes copied at a time: a file may be larger than what the host has to spare.
const CHUNK: u64 = 1 << 20;

#[derive(Debug)]
enum Data {
    File(File),
    Bytes(Vec<u8>),
}

/// Bytes with a name. Reading never moves a file position, so that a source can be read again at
/// every reset of the guest.
#[derive(Debug)]
pub(crate) struct Source {
    name: String,
    len: u64,
    data: Data,
}

/// Why a file is no source at all.
pub(crate) enum NotAFile {
    Unreadable(BootError),
    /// "a directory" and the like.
    Other(&'static str),
}

impl Source {
    pub(crate) fn from_file(file: File, name: &str) -> Result<Self, NotAFile> {
        let read_error =
            |cause| NotAFile::Unreadable(BootError::Read { name: name.to_owned(), cause });
        let metadata = file.metadata().map_err(read_error)?;
        if metadata.is_dir() {
            return Err(NotAFile::Other("is a directory"));
        }
        if !metadata.is_file() {
            return Err(NotAFile::Other("is not a regular file"));
        }
        Ok(Self { name: name.to_owned(), len: metadata.len(), data: Data::File(file) })
    }

    pub(crate) fn from_bytes(bytes: Vec<u8>, name: &str) -> Self {
        Self { name: name.to_owned(), len: bytes.len() as u64, data: Data::Bytes(bytes) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Bytes when it was opened.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<(), BootError> {
        let result = match &self.data {
            Data::File(file) => file.read_exact_at(to, offset),
            Data::Bytes(bytes) => usize::try_from(offset)
                .ok()
                .and_then(|start| bytes.get(start..start.checked_add(to.len())?))
                .map(|from| to.copy_from_slice(from))
                .ok_or_else(|| io::ErrorKind::UnexpectedEof.into()),
        };
        result.map_err(|cause| BootError::Read { name: self.name.clone(), cause })
    }

    /// The first `most` bytes, or all if it has fewer.
    pub(crate) fn head(&self, most: usize) -> Result<Vec<u8>, BootError> {
        let mut head = vec![0; self.len.min(most as u64) as usize];
        self.read_at(0, &mut head)?;
        Ok(head)
    }

    /// Copies `len` bytes from `offset` to `gpa`.
    pub(crate) fn copy_to_ram(
        &self,
        offset: u64,
        len: u64,
        ram: &GuestRam,
        gpa: u64,
    ) -> Result<(), BootError> {
        let mut buffer = vec![0; len.min(CHUNK) as usize];
        let mut done = 0;
        while done < len {
            let now = (len - done).min(CHUNK);
            let part = &mut buffer[..now as usize];
            self.read_at(offset + done, part)?;
            ram.write(Gpa(gpa + done), part)?;
            done += now;
        }
        Ok(())
    }
}

/// Zeroes a range of RAM. Whole pages go back to the host instead of being written, so that a
/// large zero-initialised segment costs nothing.
pub(crate) fn zero(ram: &GuestRam, gpa: u64, len: u64) -> Result<(), BootError> {
    const PAGE: u64 = memory::PAGE_SIZE;
    const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];
    let end = gpa + len;
    let first_page = gpa.next_multiple_of(PAGE).min(end);
    let last_page = (end / PAGE * PAGE).max(first_page);
    ram.write(Gpa(gpa), &ZEROS[..(first_page - gpa) as usize])?;
    if last_page > first_page {
        ram.discard(Gpa(first_page), last_page - first_page)?;
    }
    ram.write(Gpa(last_page), &ZEROS[..(end - last_page) as usize])?;
    Ok(())
}
