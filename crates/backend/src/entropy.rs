//! Random bytes.

use std::fs::File;
use std::io::{self, Read};

/// A source of random bytes that are fit for keys.
pub trait Entropy: Send + Sync {
    /// Fills `to`.
    ///
    /// # Errors
    /// What the host said.
    fn fill(&self, to: &mut [u8]) -> io::Result<()>;
}

/// The host's generator.
#[derive(Debug)]
pub struct HostEntropy {
    urandom: File,
}

impl HostEntropy {
    /// Opens the host's generator.
    ///
    /// # Errors
    /// When the host has no `/dev/urandom`.
    pub fn open() -> io::Result<Self> {
        Ok(Self { urandom: File::open("/dev/urandom")? })
    }
}

impl Entropy for HostEntropy {
    fn fill(&self, to: &mut [u8]) -> io::Result<()> {
        (&self.urandom).read_exact(to)
    }
}
