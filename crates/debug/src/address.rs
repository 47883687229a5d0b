//! Where a debugger connects: a TCP port or a Unix socket.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

/// An address as the user writes it: `HOST:PORT`, `:PORT` (of this host only), or the path of a
/// Unix socket, which has a slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Host and port, as the system resolves them.
    Tcp(String),
    /// Path of a socket.
    Unix(PathBuf),
}

/// Why a debugger cannot be listened for.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AddressError {
    /// It is neither form.
    #[error(
        "{0:?} is no address for a debugger; give HOST:PORT, :PORT, or the path of a Unix socket \
         with a slash in it"
    )]
    Malformed(String),
    /// The host refuses.
    #[error("cannot listen for a debugger at {address}: {cause}")]
    Listen {
        /// Where.
        address: Address,
        /// What the host said.
        cause: io::Error,
    },
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.contains('/') {
            return Ok(Self::Unix(PathBuf::from(text)));
        }
        match text.rsplit_once(':') {
            Some((host, port)) if port.parse::<u16>().is_ok() => {
                let host = if host.is_empty() { "localhost" } else { host };
                Ok(Self::Tcp(format!("{host}:{port}")))
            }
            _ => Err(AddressError::Malformed(text.to_owned())),
        }
    }
}

impl fmt::Display for Address {
    /// What gdb's `target remote` takes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(text) => f.write_str(text),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// A socket that listens. A Unix socket's file is removed with it.
pub(crate) enum Listener {
    Tcp(TcpListener),
    /// Its file is removed when it is dropped.
    Unix {
        socket: UnixListener,
        _file: SocketFile,
    },
}

/// The file of a Unix socket.
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody else may have removed it already.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    pub(crate) fn bind(address: &Address) -> Result<Self, AddressError> {
        let bound = match address {
            Address::Tcp(text) => TcpListener::bind(text.as_str()).map(Self::Tcp),
            Address::Unix(path) => {
                remove_stale(path);
                let file = || SocketFile(path.clone());
                UnixListener::bind(path).map(|socket| Self::Unix { socket, _file: file() })
            }
        };
        bound.map_err(|cause| AddressError::Listen { address: address.clone(), cause })
    }

    /// Where it listens: the port that the system chose in place of 0.
    pub(crate) fn local(&self, asked: &Address) -> Address {
        match self {
            Self::Tcp(socket) => {
                socket.local_addr().map_or(asked.clone(), |at| Address::Tcp(at.to_string()))
            }
            Self::Unix { .. } => asked.clone(),
        }
    }

    pub(crate) fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(socket) => {
                let stream = socket.accept()?.0;
                // The protocol's packets are small and each is waited for.
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Self::Unix { socket, .. } => Ok(Stream::Unix(socket.accept()?.0)),
        }
    }
}

/// Removes a socket that nobody listens on any more; anything else is left for bind to refuse.
fn remove_stale(path: &PathBuf) {
    let socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    let refused =
        || UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
    if socket && refused() {
        drop(SocketFile(path.clone()));
    }
}

/// A connection.
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(stream) => stream.try_clone().map(Self::Tcp),
            Self::Unix(stream) => stream.try_clone().map(Self::Unix),
        }
    }

    /// Ends reads and writes of all clones.
    pub(crate) fn shut(&self) {
        // It may be closed already.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

impl Read for Stream {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(to),
            Self::Unix(stream) => stream.read(to),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(from),
            Self::Unix(stream) => stream.write(from),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let tcp = |text: &str| Address::Tcp(text.to_owned());
        assert_eq!("example:1234".parse::<Address>().unwrap(), tcp("example:1234"));
        assert_eq!("[::1]:99".parse::<Address>().unwrap(), tcp("[::1]:99"));
        assert_eq!(":1".parse::<Address>().unwrap(), tcp("localhost:1"));
        assert_eq!("./gdb".parse::<Address>().unwrap(), Address::Unix("./gdb".into()));
        for wrong in ["", "1234", "gdb", ":", ":65536", "host:gdb"] {
            let error = wrong.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains("HOST:PORT"), "{error}");
        }
    }

    #[test]
    fn a_stale_socket_is_replaced_and_other_files_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gdb");
        let address = Address::Unix(path.clone());
        // As a process that was killed leaves it.
        drop(UnixListener::bind(&path).unwrap());
        let first = Listener::bind(&address).unwrap();
        let error = Listener::bind(&address).err().unwrap().to_string();
        assert!(error.contains("in use"), "{error}");
        drop(first);
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        assert!(Listener::bind(&address).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
