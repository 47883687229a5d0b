//! A file, or a part of one, that is read at any place.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::{Error, Result};

/// A part of a file, with the name that messages give it.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    file: Arc<File>,
    name: Arc<str>,
    start: u64,
    len: u64,
}

impl Part {
    /// All of a file.
    pub(crate) fn whole(file: File, name: &str) -> Result<Self> {
        let read = |cause| Error::Read { name: name.to_owned(), cause };
        let metadata = file.metadata().map_err(read)?;
        if !metadata.is_file() {
            return Err(read(io::Error::other("it is not a file")));
        }
        Ok(Self { file: Arc::new(file), name: name.into(), start: 0, len: metadata.len() })
    }

    /// A part of this part, with a name of its own.
    pub(crate) fn part(&self, name: &str, start: u64, len: u64) -> Result<Self> {
        let end = start.checked_add(len);
        if end.is_none_or(|end| end > self.len) {
            return Err(self.damaged(format!("{name} goes beyond its end")));
        }
        let name = format!("{name} in {}", self.name).into();
        Ok(Self { file: Arc::clone(&self.file), name, start: self.start + start, len })
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Fills `to` from `offset` on.
    ///
    /// # Errors
    /// Also when that is beyond the end.
    pub(crate) fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(to.len() as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.file.read_exact_at(to, self.start + offset)
    }

    /// `len` bytes at `offset`, which must be in the file before memory is taken for them.
    pub(crate) fn bytes(&self, what: &str, offset: u64, len: u64) -> Result<Vec<u8>> {
        let end = offset.checked_add(len);
        if end.is_none_or(|end| end > self.len) {
            return Err(self.damaged(format!("{what} is not in the file")));
        }
        let mut bytes = vec![0; len as usize];
        let read = self.read(offset, &mut bytes);
        read.map_err(|cause| Error::Read { name: self.name.to_string(), cause })?;
        Ok(bytes)
    }

    pub(crate) fn damaged(&self, reason: impl Into<String>) -> Error {
        Error::Damaged { name: self.name.to_string(), reason: reason.into() }
    }

    pub(crate) fn unsupported(&self, what: impl Into<String>) -> Error {
        Error::Unsupported { name: self.name.to_string(), what: what.into() }
    }

    /// What a disk tells its reader of a damaged place.
    pub(crate) fn invalid(&self, reason: &str) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, self.damaged(reason).to_string())
    }
}
