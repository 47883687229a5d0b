//! From a disk to a raw image.

use std::fs::File;
use std::os::unix::fs::FileExt;

use backend::{Buffer, Disk};

use crate::{Error, Result};

/// Bytes that are read at a time.
const CHUNK: u64 = 1 << 20;

/// Bytes that are left out where they are all zero.
const BLOCK: usize = 4096;

/// Writes the content of `disk`, which messages call `name`, to the empty file `to`: what is zero
/// takes no space. `tick` is told how many bytes are through, and of how many.
///
/// # Errors
/// [`Error::Read`], also for damaged places; [`Error::Write`].
pub fn copy(disk: &dyn Disk, name: &str, to: &File, tick: &mut dyn FnMut(u64, u64)) -> Result<()> {
    let len = disk.len();
    to.set_len(len).map_err(Error::Write)?;
    let mut chunk = Buffer::new(CHUNK as usize);
    let mut at = 0;
    while at < len {
        let part = (len - at).min(CHUNK) as usize;
        disk.read(at, &mut chunk[..part])
            .map_err(|cause| Error::Read { name: name.to_owned(), cause })?;
        write_data(&chunk[..part], at, to).map_err(Error::Write)?;
        at += part as u64;
        tick(at, len);
    }
    Ok(())
}

/// Writes the runs of blocks that are not zero.
fn write_data(content: &[u8], at: u64, to: &File) -> std::io::Result<()> {
    let is_data = |block: &[u8]| block.iter().any(|byte| *byte != 0);
    let mut start = 0;
    while start < content.len() {
        let blocks = content[start..].chunks(BLOCK);
        let data: usize = blocks.clone().take_while(|b| is_data(b)).map(<[u8]>::len).sum();
        if data > 0 {
            to.write_all_at(&content[start..start + data], at + start as u64)?;
        }
        let zeros = content[start + data..].chunks(BLOCK).take_while(|b| !is_data(b));
        start += data + zeros.map(<[u8]>::len).sum::<usize>();
    }
    Ok(())
}
